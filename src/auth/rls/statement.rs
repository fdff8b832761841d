//! A table's policies → the functions that evaluate them, and row images → their parameters.
//!
//! In:     [`Facts`], what `sql/rls_table.sql` found for one role; row images from the log.
//! Out:    the text of `pg_temp` functions; composite literals with what each image leaves open.
//! Never:  IO; a null that stands for a value the log did not carry.
//!
//! A condition is used as the server prints it under the very `search_path` it then runs under.
//! Printed under another path, an unqualified name in it could mean another function.

use std::fmt::Write as _;

use serde::Deserialize;

use crate::change::{OldImage, Relation, Tuple, Value};

/// Bytes of one value beyond which an image counts as not having it: the server takes parameters
/// of less than 1 GiB, and the whole of a row in one.
const VALUE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What decides who may see a table's rows, for one role.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Facts {
    /// Qualified and quoted.
    pub(super) name: String,
    /// The bare name, quoted: what conditions call the row.
    pub(super) alias: String,
    /// Row Level Security is on for the table.
    pub(super) row_security: bool,
    /// Row Level Security applies to the role: it is on, and the role does not bypass it.
    pub(super) active: bool,
    /// The role may SELECT at least one column.
    pub(super) readable: bool,
    /// The role's own attributes and memberships, opaque.
    pub(super) role: serde_json::Value,
    /// In order, without dropped ones.
    pub(super) columns: Vec<Column>,
    /// Those that apply to the role's SELECT.
    pub(super) policies: Vec<Policy>,
}

/// One column of the table as it is now.
#[derive(Debug, Clone, Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "facts of the catalog, independent of each other"
)]
pub(super) struct Column {
    number: i32,
    name: String,
    quoted: String,
    type_oid: u32,
    type_name: String,
    domain: bool,
    generated: bool,
    selectable: bool,
    in_key: bool,
}

impl Column {
    /// Where the log has it. By name, and by number where that is known: names may have changed
    /// between two looks at the catalog.
    fn place_in(&self, relation: &Relation) -> Option<usize> {
        let place = relation.column(&self.name)?;
        let attnum = relation.columns.get(place)?.attnum;
        attnum.is_none_or(|attnum| i32::from(attnum) == self.number).then_some(place)
    }
}

/// One policy.
#[derive(Debug, Clone, Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "facts of the catalog, independent of each other"
)]
pub(super) struct Policy {
    permissive: bool,
    condition: String,
    /// Numbers of the columns it names; a system column's is negative.
    needs: Vec<i32>,
    whole_row: bool,
    /// Other tables that it names.
    tables: Vec<u32>,
    /// Of some of these the log does not tell all.
    unlogged: bool,
    /// What else it reads cannot be told; it may be the row itself.
    opaque: bool,
    stable_calls: Vec<String>,
    plan_each_time: bool,
}

/// Which of a table's policies an image does not decide, in the order of [`Facts::policies`].
pub(super) type Open = Box<[bool]>;

/// One row image, ready to be a parameter.
#[derive(Debug, Clone)]
pub(super) struct Image {
    /// A composite literal of the table's row type.
    pub(super) literal: String,
    /// Which columns it really knows, in the order of [`Facts::columns`].
    pub(super) known: Vec<bool>,
    /// Policies that need a column it does not know.
    pub(super) open: Open,
}

/// Where an image comes from, and so what a null in it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// A new row: every column that the log carries, unless marked unchanged.
    New,
    /// An old row.
    Old(OldImage),
}

impl Facts {
    /// Whether no row is visible, whatever it holds: no permissive policy applies.
    pub(super) fn nobody(&self) -> bool {
        self.active && !self.policies.iter().any(|policy| policy.permissive)
    }

    /// Whether some policy reads, or may read, what the log does not tell of: then it does not tell
    /// either whether a transaction changed the answer.
    pub(super) fn reads_hidden(&self) -> bool {
        self.policies.iter().any(|policy| policy.unlogged || policy.opaque)
    }

    /// Whether some policy reads other rows than the one it decides on, or may.
    pub(super) fn reads_others(&self) -> bool {
        self.policies.iter().any(|policy| policy.opaque || !policy.tables.is_empty())
    }

    /// Whether some policy reads this table.
    pub(super) fn reads(&self, table: u32) -> bool {
        self.policies.iter().any(|policy| policy.tables.contains(&table))
    }

    /// An image of this table's row type, its values found by name and type: the log may be older
    /// than the catalog. `None` in `tuple` is an image of which nothing is known.
    pub(super) fn image(
        &self,
        relation: &Relation,
        tuple: Option<&Tuple>,
        source: Source,
    ) -> Image {
        let values = self.columns.iter().map(|column| {
            let place = column.place_in(relation)?;
            let logged = relation.columns.get(place)?;
            if logged.type_oid != column.type_oid || place >= tuple?.len() {
                return None;
            }
            match (tuple?.get(place), source) {
                // A generated column is computed, not stored in the log, by servers before 18.
                (Value::Null, Source::New | Source::Old(OldImage::Full)) => {
                    (!column.generated).then_some(None)
                }
                (Value::Unchanged, _) | (Value::Null, Source::Old(OldImage::Key)) => None,
                (Value::Text(_), Source::Old(OldImage::Key)) if !logged.in_identity => None,
                (Value::Text(text), _) if text.len() > VALUE_BYTES_MAX => None,
                (Value::Text(text), _) => std::str::from_utf8(text).ok().map(Some),
            }
        });
        let values: Vec<Option<Option<&str>>> = values.collect();
        let known: Vec<bool> = values.iter().map(Option::is_some).collect();
        let open = self.policies.iter().map(|policy| self.leaves_open(policy, &known)).collect();
        // Values that no policy looks at stay here, unless their type refuses a null.
        let sent = values.into_iter().zip(&self.columns).map(|(value, column)| {
            value.flatten().filter(|_| column.domain || self.looks_at(column))
        });
        Image { literal: composite(sent), known, open }
    }

    fn looks_at(&self, column: &Column) -> bool {
        let by = |policy: &Policy| policy.whole_row || policy.needs.contains(&column.number);
        self.policies.iter().any(by)
    }

    fn leaves_open(&self, policy: &Policy, known: &[bool]) -> bool {
        let has = |number: &i32| {
            let place = self.columns.iter().position(|column| column.number == *number);
            place.and_then(|place| known.get(place)).is_some_and(|known| *known)
        };
        !policy.needs.iter().all(has) || (policy.whole_row && !known.iter().all(|known| *known))
    }

    /// The values of an image as text, column by column, for [`Facts::row_function`].
    pub(super) fn texts<'a>(&self, relation: &Relation, tuple: &'a Tuple) -> Vec<Option<&'a str>> {
        let text = |column: &Column| match tuple.get(column.place_in(relation)?) {
            Value::Text(text) => std::str::from_utf8(text).ok(),
            Value::Null | Value::Unchanged => None,
        };
        self.columns.iter().map(text).collect()
    }

    /// Whether a row can be found again: it has a primary key, the role may read it, and the image
    /// knows it.
    pub(super) fn can_find(&self, known: &[bool]) -> bool {
        let mut key = self.columns.iter().zip(known).filter(|(column, _)| column.in_key).peekable();
        key.peek().is_some() && key.all(|(column, known)| column.selectable && *known)
    }

    /// A function that answers for each user and each of a list of images; null where only the
    /// policies that are `open` could tell.
    ///
    /// `traced`: it also tells, for each user, which relations were read for that.
    pub(super) fn image_function(&self, function: &str, open: &[bool], traced: bool) -> String {
        let name = &self.name;
        let alias = &self.alias;
        let condition = self.condition(open);
        let plan_each_time = self.policies.iter().any(|policy| policy.plan_each_time);
        let evaluate = |rows: &str, seen: &str| {
            if plan_each_time {
                let statement = format!(
                    "select array(select {condition} from pg_catalog.unnest($1) as {alias})"
                );
                format!("execute {} into {seen} using {rows};", literal(&statement))
            } else {
                format!(
                    "{seen} := array(
                        select {condition} from pg_catalog.unnest({rows}) as {alias}
                    );"
                )
            }
        };
        // One row on which a policy raises an error is not a reason to withhold the others.
        let recover = format!(
            "if pg_catalog.cardinality(walcast_rows) > 1 then
                -- Full length from the start: an array that begins at its second element is read
                -- as one that begins at its first.
                walcast_seen := pg_catalog.array_fill(
                    null::boolean, array[pg_catalog.cardinality(walcast_rows)]
                );
                for walcast_place in 1 .. pg_catalog.cardinality(walcast_rows) loop
                    walcast_done := false;
                    begin
                        {become_user}
                        walcast_one := walcast_rows[walcast_place:walcast_place];
                        {one}
                        {check_role}
                        walcast_done := true;
                        raise exception using errcode = 'WC001';
                    exception
                        when query_canceled then
                            {canceled}
                        when {FAILURES_OF_POSTGRES} then
                            raise;
                        when others then
                            if walcast_done then
                                walcast_seen[walcast_place] := walcast_seen_one[1];
                            else
                                walcast_failed := walcast_failed || walcast_place;
                            end if;
                    end;
                end loop;
                walcast_done := true;
            end if;",
            become_user = BECOME_USER,
            check_role = CHECK_ROLE,
            canceled = CANCELED,
            one = evaluate("walcast_one", "walcast_seen_one"),
        );
        // Images the table's types refuse (a domain was tightened since) are left undecided.
        let prepare = format!(
            "begin
                walcast_rows := array(
                    select walcast_i.image::{name}
                    from pg_catalog.unnest(walcast_images) with ordinality as walcast_i (image, place)
                    order by walcast_i.place
                );
            exception when query_canceled then
                return;
            when others then
                for walcast_place in 1 .. pg_catalog.cardinality(walcast_images) loop
                    begin
                        walcast_row := null;
                        walcast_row := walcast_images[walcast_place]::{name};
                    exception when query_canceled then
                        return;
                    when others then
                        walcast_refused := walcast_refused || walcast_place;
                    end;
                    walcast_rows[walcast_place] := walcast_row;
                end loop;
            end;"
        );
        let finish = "foreach walcast_undecided in array walcast_refused loop
                    walcast_seen[walcast_undecided] := null;
                end loop;";
        Parts {
            function,
            parameters: "walcast_images text[]",
            declare: &format!(
                "walcast_row {name};
                walcast_one {name}[];
                walcast_seen_one boolean[];
                walcast_refused int[] := '{{}}';
                walcast_undecided int;"
            ),
            rows: &format!("{name}[]"),
            prepare: &prepare,
            evaluate: &evaluate("walcast_rows", "walcast_seen"),
            recover: &recover,
            finish,
            trace: if traced { TRACE } else { "" },
        }
        .text()
    }

    /// A function that answers for each user and each of a list of images whether that user sees,
    /// in the table, the very row version that the image shows: equal in each column that the image
    /// knows and the role may read. Images come one after the other, column by column.
    pub(super) fn row_function(&self, function: &str) -> String {
        let mut same = String::from("true");
        for (index, column) in self.columns.iter().enumerate() {
            let (place, quoted) = (index + 1, &column.quoted);
            if !column.selectable {
                continue;
            }
            if column.in_key {
                let type_name = &column.type_name;
                let _ = write!(
                    same,
                    " and walcast_t.{quoted}
                        = {function}.walcast_values[walcast_before + {place}]::{type_name}"
                );
            }
            let _ = write!(
                same,
                " and ({function}.walcast_known[walcast_before + {place}] is not true or case
                    when {function}.walcast_values[walcast_before + {place}] is null
                    then pg_catalog.num_nulls(walcast_t.{quoted}) = 1
                    else pg_catalog.num_nulls(walcast_t.{quoted}) = 0
                        and pg_catalog.format('%s', walcast_t.{quoted}) collate \"C\"
                            = {function}.walcast_values[walcast_before + {place}]
                    end)"
            );
        }
        let (name, width) = (&self.name, self.columns.len());
        Parts {
            function,
            parameters: "walcast_known boolean[], walcast_values text[]",
            declare: "walcast_before int;",
            rows: "int[]",
            prepare: "",
            evaluate: &format!(
                "walcast_before := 0;
                while walcast_before < pg_catalog.cardinality(walcast_known) loop
                    walcast_seen := walcast_seen
                        || exists(select from {name} as walcast_t where {same});
                    walcast_before := walcast_before + {width};
                end loop;"
            ),
            recover: "",
            finish: "",
            trace: "",
        }
        .text()
    }

    /// `restrictive and … and (permissive or …)`, as Postgres joins them. Null is an unknown that
    /// three-valued logic carries to the end; a policy's own null is a no.
    fn condition(&self, open: &[bool]) -> String {
        let part = |(policy, open): (&Policy, &bool)| {
            if *open {
                String::from("null::pg_catalog.bool")
            } else {
                let condition = once_a_statement(&policy.condition, &policy.stable_calls);
                format!("coalesce(({condition}), false)")
            }
        };
        let all = || self.policies.iter().zip(open);
        let restrictive = all().filter(|(policy, _)| !policy.permissive).map(part);
        // Last name first, as Postgres does: it shows where one of them raises an error.
        let permissive = all().rev().filter(|(policy, _)| policy.permissive);
        let permissive: Vec<String> = permissive.map(part).collect();
        let any = format!("({})", permissive.join(" or "));
        restrictive.chain([any]).collect::<Vec<_>>().join(" and ")
    }
}

/// Sets role and claims for the user at hand, for the subtransaction it runs in.
const BECOME_USER: &str = "perform
    pg_catalog.set_config('role', walcast_role, true),
    pg_catalog.set_config('request.jwt.claims', walcast_claims[walcast_user], true),
    pg_catalog.set_config('request.jwt.claim.sub', walcast_subjects[walcast_user], true),
    pg_catalog.set_config('request.jwt.claim.role', walcast_role, true);";

/// An answer given under another role is no answer.
const CHECK_ROLE: &str = "if current_user <> walcast_role then
    raise exception 'a policy of this table changed the role';
end if;";

/// The statement's timeout struck, or somebody canceled it: the rest is asked in another call.
const CANCELED: &str = "walcast_seen := null;
walcast_code := sqlstate;
walcast_message := sqlerrm;
return next;
return;";

/// Whatever is read stays locked to the end of the transaction, also by functions that run with
/// other rights. Catalogs are read all the time; what counts of them is compared elsewhere.
const TRACE: &str = "walcast_tables := array(
    select l.relation
    from pg_catalog.pg_locks as l
    where l.pid = pg_catalog.pg_backend_pid() and l.locktype = 'relation' and l.relation >= 16384
);";

/// Locks, memory, disk: these end the whole call; they are nobody's no.
const FAILURES_OF_POSTGRES: &str =
    "insufficient_resources or system_error or transaction_rollback or lock_not_available";

/// What differs between the functions.
struct Parts<'a> {
    function: &'a str,
    parameters: &'a str,
    declare: &'a str,
    /// Type of the prepared rows.
    rows: &'a str,
    /// Runs once, before any user.
    prepare: &'a str,
    /// Runs as each user; sets `walcast_seen`.
    evaluate: &'a str,
    /// Runs after it raised an error.
    recover: &'a str,
    /// Runs after each user.
    finish: &'a str,
    /// Runs as each user, once it is decided; sets `walcast_tables`.
    trace: &'a str,
}

impl Parts<'_> {
    /// The `create function` statement.
    ///
    /// Each user is asked in a subtransaction that is always rolled back, so nothing a policy's
    /// function sets (role, claims, any parameter) reaches the next user. The body is a string:
    /// it records no dependency that could stand in the way of the application's DDL.
    fn text(&self) -> String {
        let Self { function, parameters, declare, rows, prepare, evaluate, recover, finish, trace } =
            self;
        let body = format!(
            "
            #variable_conflict use_column
            declare
                walcast_rows {rows};
                walcast_done boolean;
                {declare}
            begin
                {prepare}
                for walcast_user_place in 1 .. pg_catalog.cardinality(walcast_claims) loop
                    walcast_user := walcast_user_place;
                    walcast_seen := null;
                    walcast_failed := '{{}}';
                    walcast_code := null;
                    walcast_message := null;
                    walcast_tables := null;
                    walcast_done := false;
                    begin
                        {BECOME_USER}
                        {evaluate}
                        {CHECK_ROLE}
                        {trace}
                        walcast_done := true;
                        raise exception using errcode = 'WC001';
                    exception
                        when query_canceled then
                            {CANCELED}
                        when {FAILURES_OF_POSTGRES} then
                            raise;
                        when others then
                            if not walcast_done then
                                walcast_seen := null;
                                walcast_code := sqlstate;
                                walcast_message := sqlerrm;
                            end if;
                    end;
                    if not walcast_done then
                        {recover}
                    end if;
                    if current_user <> walcast_role then
                        raise exception 'the role did not come back';
                    end if;
                    if walcast_done then
                        {finish}
                    end if;
                    return next;
                end loop;
            end"
        );
        format!(
            "create function pg_temp.{function}(
                walcast_role text,
                walcast_claims text[],
                walcast_subjects text[],
                {parameters},
                out walcast_user int,
                out walcast_seen boolean[],
                out walcast_failed int[],
                out walcast_code text,
                out walcast_message text,
                out walcast_tables oid[]
            ) returns setof record language plpgsql as {};
            grant execute on function pg_temp.{function} to public",
            literal(&body)
        )
    }
}

/// Puts each of `calls` into a sub-select of its own, so that it is computed once a statement and
/// not once a row; a stable function gives the same all through a statement. A call that stands
/// where a table may stand, or cannot be told from one, stays as it is.
fn once_a_statement(condition: &str, calls: &[String]) -> String {
    let mut out = String::with_capacity(condition.len());
    let mut rest = condition;
    let mut quote: Option<char> = None;
    while let Some(next) = rest.chars().next() {
        let call = calls.iter().find(|call| quote.is_none() && rest.starts_with(call.as_str()));
        if let Some(call) = call.filter(|_| may_wrap(&out)) {
            out.push_str("(select ");
            out.push_str(call);
            out.push(')');
            rest = rest.get(call.len()..).unwrap_or_default();
            continue;
        }
        match quote {
            // A doubled quote closes and opens again.
            Some(open) if open == next => quote = None,
            None if matches!(next, '\'' | '"') => quote = Some(next),
            Some(_) | None => {}
        }
        out.push(next);
        rest = rest.get(next.len_utf8()..).unwrap_or_default();
    }
    out
}

/// Whether a call that follows this text is an expression of its own: not the tail of a longer
/// name, and not an item of a FROM list.
fn may_wrap(before: &str) -> bool {
    let word = before.trim_end();
    let glued = word.len() == before.len()
        && before.ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '$' | '.' | '"'));
    let upper = word.to_ascii_uppercase();
    let table = [",", "FROM", "JOIN", "LATERAL", "FROM(", "ONLY"];
    // `= any ((select f()))` would compare with a row, not with the elements of an array.
    let list = upper.strip_suffix('(').map(str::trim_end).unwrap_or_default();
    !glued
        && !table.iter().any(|token| upper.ends_with(token))
        && !["ANY", "ALL", "SOME"].iter().any(|token| list.ends_with(token))
}

/// A string literal, for `standard_conforming_strings = on`.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Values → the text of a composite; each one quoted, null left empty.
fn composite<'a>(values: impl Iterator<Item = Option<&'a str>>) -> String {
    let mut text = String::from("(");
    for (index, value) in values.enumerate() {
        if index > 0 {
            text.push(',');
        }
        if let Some(value) = value {
            text.push('"');
            for character in value.chars() {
                if matches!(character, '"' | '\\') {
                    text.push(character);
                }
                text.push(character);
            }
            text.push('"');
        }
    }
    text.push(')');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::value::Type;
    use crate::change::{self, ReplicaIdentity};

    fn column(number: i32, name: &str, type_oid: u32) -> Column {
        Column {
            number,
            name: name.into(),
            quoted: name.into(),
            type_oid,
            type_name: "text".into(),
            domain: name == "word",
            generated: name == "computed",
            selectable: true,
            in_key: number == 1,
        }
    }

    fn policy(permissive: bool, needs: &[i32]) -> Policy {
        Policy {
            permissive,
            condition: format!("p{needs:?}"),
            needs: needs.to_vec(),
            whole_row: false,
            tables: vec![],
            unlogged: false,
            opaque: false,
            stable_calls: vec!["auth.uid()".into()],
            plan_each_time: false,
        }
    }

    fn facts(policies: Vec<Policy>) -> Facts {
        Facts {
            name: "public.t".into(),
            alias: "t".into(),
            row_security: true,
            active: true,
            readable: true,
            role: serde_json::Value::Null,
            columns: vec![column(1, "id", 25), column(2, "body", 25), column(4, "computed", 25)],
            policies,
        }
    }

    fn relation(columns: &[(&str, u32, bool)]) -> Relation {
        let column = |&(name, type_oid, in_identity): &(&str, u32, bool)| change::Column {
            name: name.into(),
            attnum: None,
            type_oid,
            type_name: "text".into(),
            kind: Type::Text,
            in_identity,
            in_primary_key: in_identity,
        };
        Relation {
            oid: 1,
            schema: "public".into(),
            table: "t".into(),
            replica_identity: ReplicaIdentity::Default,
            columns: columns.iter().map(column).collect(),
        }
    }

    #[test]
    fn a_composite_keeps_quotes_backslashes_and_nulls_apart() {
        let values = [Some("a\"b\\c"), None, Some(""), Some("(,)")];
        assert_eq!(composite(values.into_iter()), r#"("a""b\\c",,"","(,)")"#);
        assert_eq!(composite(std::iter::empty()), "()");
    }

    #[test]
    fn values_are_found_by_name_and_type() {
        let facts = facts(vec![policy(true, &[1]), policy(true, &[2])]);
        let tuple = Tuple::copied([Value::Text(b"new"), Value::Text(b"1")]);
        // Another order, and `body` had another type when this was written.
        let image = facts.image(
            &relation(&[("body", 17, false), ("id", 25, true)]),
            Some(&tuple),
            Source::New,
        );
        assert_eq!(image.literal, r#"("1",,)"#);
        assert_eq!(image.known, [true, false, false]);
        assert_eq!(*image.open, [false, true]);
    }

    #[test]
    fn only_values_that_a_policy_looks_at_are_sent() {
        let mut facts = facts(vec![policy(true, &[1])]);
        facts.columns.push(column(5, "word", 25));
        let columns = [("id", 25, true), ("body", 25, false), ("word", 25, false)];
        let tuple = Tuple::copied(["1", "large", "w"].map(|text| Value::Text(text.as_bytes())));
        let image = facts.image(&relation(&columns), Some(&tuple), Source::New);
        assert_eq!(image.literal, r#"("1",,,"w")"#);
        assert_eq!(image.known, [true, true, false, true]);
        assert_eq!(*image.open, [false]);
    }

    #[test]
    fn a_missing_value_is_never_a_null() {
        let facts = facts(vec![policy(true, &[2]), policy(true, &[4]), policy(true, &[-6])]);
        let relation = relation(&[("id", 25, true), ("body", 25, false)]);
        let open = |value, source| {
            let tuple = Tuple::copied([Value::Text(b"1"), value]);
            facts.image(&relation, Some(&tuple), source).open
        };
        assert_eq!(*open(Value::Null, Source::New), [false, true, true]);
        assert_eq!(*open(Value::Unchanged, Source::New), [true, true, true]);
        assert_eq!(*open(Value::Null, Source::Old(OldImage::Full)), [false, true, true]);
        assert_eq!(*open(Value::Null, Source::Old(OldImage::Key)), [true, true, true]);
        assert_eq!(*open(Value::Text(b"\xff"), Source::New), [true, true, true]);
        assert_eq!(*facts.image(&relation, None, Source::New).open, [true, true, true]);
    }

    #[test]
    fn a_whole_row_needs_every_column() {
        let mut whole = policy(true, &[]);
        whole.whole_row = true;
        let facts = facts(vec![whole]);
        let tuple = Tuple::copied([Value::Text(b"1"), Value::Null]);
        let relation = relation(&[("id", 25, true), ("body", 25, false)]);
        assert!(facts.image(&relation, Some(&tuple), Source::New).open[0], "computed is missing");
    }

    #[test]
    fn policies_are_joined_as_postgres_joins_them() {
        let facts = facts(vec![policy(false, &[1]), policy(true, &[2]), policy(true, &[])]);
        assert_eq!(
            facts.condition(&[false, false, false]),
            "coalesce((p[1]), false) and (coalesce((p[]), false) or coalesce((p[2]), false))"
        );
        assert_eq!(
            facts.condition(&[false, true, false]),
            "coalesce((p[1]), false) and (coalesce((p[]), false) or null::pg_catalog.bool)"
        );
    }

    #[test]
    fn the_claims_are_computed_once_a_statement() {
        let check = |condition: &str, expected: &str| {
            assert_eq!(once_a_statement(condition, &["auth.uid()".into()]), expected);
        };
        check("(auth.uid() = owner)", "((select auth.uid()) = owner)");
        check("(NOT auth.uid() IS NULL)", "(NOT (select auth.uid()) IS NULL)");
        check("(note = 'it''s auth.uid()'::text)", "(note = 'it''s auth.uid()'::text)");
        check(r#"("odd auth.uid()" = 1)"#, r#"("odd auth.uid()" = 1)"#);
        check("(xauth.uid() = owner)", "(xauth.uid() = owner)");
        check("(x.auth.uid() = owner)", "(x.auth.uid() = owner)");
        check("(SELECT u.u FROM auth.uid() u(u))", "(SELECT u.u FROM auth.uid() u(u))");
        check("(SELECT 1 FROM t, auth.uid() u(u))", "(SELECT 1 FROM t, auth.uid() u(u))");
        check("(SELECT 1 FROM ROWS FROM(auth.uid()) u)", "(SELECT 1 FROM ROWS FROM(auth.uid()) u)");
        check("(map = ANY (auth.uid()))", "(map = ANY (auth.uid()))");
        check("f(owner, auth.uid())", "f(owner, auth.uid())");
    }

    #[test]
    fn a_row_is_found_again_only_by_a_whole_readable_key() {
        let mut facts = facts(vec![]);
        assert!(facts.can_find(&[true, false, false]));
        assert!(!facts.can_find(&[false, true, true]));
        facts.columns[0].selectable = false;
        assert!(!facts.can_find(&[true, true, true]));
        facts.columns[0].in_key = false;
        assert!(!facts.can_find(&[true, true, true]), "no key at all");
    }
}
