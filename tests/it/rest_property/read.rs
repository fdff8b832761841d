//! What is read: one choice, written as a query string and as SQL.

use super::dice::{Dice, encoded, literal, quoted, written};
use super::world::{Column, Kind, LINKS, Link, Table, named};

/// Rows an answer, or one embedding, may have in the service that is asked.
pub(super) const ROWS_MAX: usize = 15;

/// Pairs of a query string.
pub(super) type Pairs = Vec<(String, String)>;

/// What is embedded: what it is called, how it is asked whether there is any, and its one row: an
/// alias and where it is from, and of which table.
type Related = (String, String, Option<(String, &'static Table)>);

/// Rows of one relation in SQL.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// As `from` has them, with an alias.
    source: String,
    alias: String,
    /// Members of the JSON object of each: names and expressions.
    members: Vec<(String, String)>,
    conditions: Vec<String>,
    orders: Vec<String>,
    pub(super) limit: Option<usize>,
    pub(super) offset: usize,
    /// What is embedded, to be ordered by or asked about.
    related: Vec<Related>,
}

impl Rows {
    fn object(&self) -> String {
        // More than a hundred arguments are too many for one call.
        let members: Vec<String> =
            self.members.iter().map(|(name, sql)| format!("{}, {sql}", literal(name))).collect();
        format!("json_build_object({})", members.join(", "))
    }

    fn matching(&self, also: &str) -> String {
        let mut conditions: Vec<&str> = self.conditions.iter().map(String::as_str).collect();
        conditions.extend([also].into_iter().filter(|also| !also.is_empty()));
        let conditions =
            if conditions.is_empty() { "true".into() } else { conditions.join(" and ") };
        format!(" from {} where {conditions}", self.source)
    }

    fn window(&self, limit_max: usize) -> String {
        let limit = self.limit.unwrap_or(limit_max).min(limit_max);
        let orders = if self.orders.is_empty() {
            String::new()
        } else {
            format!(" order by {}", self.orders.join(", "))
        };
        format!("{orders} limit {limit} offset {}", self.offset)
    }

    /// The page, as an array.
    pub(super) fn page(&self) -> String {
        format!(
            "select coalesce(json_agg(q.j), '[]')::text from (select {} as j{}{}) as q",
            self.object(),
            self.matching(""),
            self.window(ROWS_MAX)
        )
    }

    /// How many there are.
    pub(super) fn count(&self) -> String {
        format!("select count(*){}", self.matching(""))
    }

    /// Just the conditions, of rows called `t`.
    pub(super) fn conditions(&self) -> String {
        if self.conditions.is_empty() { "true".into() } else { self.conditions.join(" and ") }
    }

    /// The array of these rows of something that a `with` calls this.
    pub(super) fn of_written(&self) -> String {
        format!(
            "select coalesce(json_agg({}), '[]')::text, count(*)::text from {}",
            self.object(),
            self.source
        )
    }
}

/// Reads `table`, in the words of a URL and in SQL. `source` is what stands for it in SQL.
pub(super) fn target(table: &'static Table, source: &str, dice: &mut Dice) -> (Pairs, Rows) {
    let mut pairs = Vec::new();
    let mut rows = Rows { source: format!("{source} as t"), alias: "t".into(), ..Rows::default() };
    let select = if dice.percent(10) {
        rows.members = all(table, "t");
        None
    } else {
        Some(items(table, &mut rows, &mut Vec::new(), 0, &mut pairs, dice))
    };
    filters(table, &mut rows, &[], &mut pairs, dice);
    order(table, &mut rows, &[], &mut pairs, dice);
    if dice.percent(40) {
        let limit = *dice.of(&[0, 1, 2, 3, 5, 100]);
        rows.limit = Some(limit);
        pairs.push(("limit".into(), limit.to_string()));
    }
    if dice.percent(25) {
        rows.offset = *dice.of(&[0, 1, 2, 4, 30]);
        pairs.push(("offset".into(), rows.offset.to_string()));
    }
    pairs.extend(select.map(|select| ("select".into(), select)));
    let turn = dice.below(pairs.len() + 1).min(pairs.len().saturating_sub(1));
    // The order of pairs says nothing; of those about one thing there is but one.
    pairs.rotate_left(turn);
    (pairs, rows)
}

/// What a write returns of the rows it wrote, which a `with` calls `w`; and for which filters.
pub(super) fn written_rows(table: &'static Table, dice: &mut Dice) -> (Pairs, Rows) {
    let mut rows = Rows { source: "w as t".into(), alias: "t".into(), ..Rows::default() };
    let mut used = Vec::new();
    if dice.percent(40) {
        rows.members = all(table, "t");
        return (Vec::new(), rows);
    }
    let mut select = Vec::new();
    for _ in 0..=dice.below(3) {
        select.push(field(table, &mut rows, &mut used, dice));
    }
    (vec![("select".into(), select.join(","))], rows)
}

/// Filters alone, of rows called `t`.
pub(super) fn only_filters(table: &'static Table, dice: &mut Dice) -> (Pairs, Rows) {
    let mut pairs = Vec::new();
    let mut rows = Rows { alias: "t".into(), ..Rows::default() };
    while rows.conditions.is_empty() {
        filters(table, &mut rows, &[], &mut pairs, dice);
    }
    (pairs, rows)
}

fn all(table: &Table, alias: &str) -> Vec<(String, String)> {
    let columns = table.columns.iter();
    columns.map(|(name, _)| ((*name).to_owned(), format!("{alias}.{}", quoted(name)))).collect()
}

/// A `select` list.
fn items(
    table: &'static Table,
    rows: &mut Rows,
    path: &mut Vec<String>,
    depth: usize,
    pairs: &mut Pairs,
    dice: &mut Dice,
) -> String {
    let mut used: Vec<String> = Vec::new();
    let mut list = Vec::new();
    if dice.percent(20) {
        let alias = rows.alias.clone();
        rows.members.extend(all(table, &alias));
        used.extend(table.columns.iter().map(|(name, _)| (*name).to_owned()));
        list.push("*".to_owned());
    }
    for _ in 0..dice.below(4) {
        list.push(field(table, rows, &mut used, dice));
    }
    if depth < 3 {
        for _ in 0..dice.below(3) {
            let links: Vec<&Link> = LINKS.iter().filter(|link| link.from == table.name).collect();
            if links.is_empty() {
                break;
            }
            let link = *dice.of(&links);
            list.push(embed(link, rows, path, &mut used, depth, pairs, dice));
        }
    }
    if list.is_empty() || rows.members.is_empty() {
        list.push(field(table, rows, &mut used, dice));
    }
    list.join(",")
}

/// One column, or something in it.
fn field(
    table: &'static Table,
    rows: &mut Rows,
    used: &mut Vec<String>,
    dice: &mut Dice,
) -> String {
    let column = *dice.of(table.columns);
    if dice.errs() {
        rows.members.push(("x".into(), "t_no.such".into()));
        rows.members.last_mut().unwrap().1 = format!("{}.no_such", rows.alias);
        return "x:no_such".into();
    }
    let (mut url, mut sql, is_plain) = place(column, &rows.alias, 15, dice);
    if dice.percent(10) {
        let cast = if column.1 == Kind::Int {
            *dice.of(&["text", "numeric", "int8", "double precision"])
        } else {
            *dice.of(&["text", "varchar"])
        };
        url = format!("{url}::{cast}");
        sql = format!("({sql})::{cast}");
    }
    let name = column.0.to_owned();
    if is_plain && !used.contains(&name) && dice.percent(60) {
        used.push(name.clone());
        rows.members.push((name, sql));
        return url;
    }
    let alias = dice.name("a");
    rows.members.push((alias.clone(), sql));
    format!("{alias}:{url}")
}

/// A column, perhaps with steps into its JSON: in a URL, in SQL, and whether it is just that.
fn place((name, kind): Column, alias: &str, steps: u32, dice: &mut Dice) -> (String, String, bool) {
    let (mut url, sql) = (written(name, dice), format!("{alias}.{}", quoted(name)));
    let is_document = matches!(kind, Kind::Jsonb | Kind::Json);
    if !dice.percent(if is_document { 70 } else { steps }) || kind == Kind::Words {
        return (url, sql, true);
    }
    let mut sql = if is_document { sql } else { format!("to_jsonb({sql})") };
    let ways: &[&[&str]] = if is_document {
        &[&["a"], &["b", "0"], &["c", "d"], &["k"], &["l", "-1"], &["nothing"], &["c"]]
    } else {
        &[&["0"], &["-1"], &["a"]]
    };
    let way = *dice.of(ways);
    for (position, step) in way.iter().enumerate() {
        let is_text = position + 1 == way.len() && dice.percent(50);
        let arrow = if is_text { "->>" } else { "->" };
        url.push_str(arrow);
        url.push_str(step);
        let step = if step.parse::<i32>().is_ok() { format!("({step})") } else { literal(step) };
        sql = format!("({sql} {arrow} {step})");
    }
    (url, sql, false)
}

/// Related rows, in a list and in all that is said about them.
fn embed(
    link: &'static Link,
    parent: &mut Rows,
    path: &mut Vec<String>,
    used: &mut Vec<String>,
    depth: usize,
    pairs: &mut Pairs,
    dice: &mut Dice,
) -> String {
    let table = named(link.to);
    let target = link.written.split('!').next().unwrap_or(link.written);
    let is_spread = link.is_one && dice.percent(25);
    let is_aliased = !is_spread && (dice.percent(60) || used.iter().any(|used| used == target))
        || parent.related.iter().any(|(name, ..)| name == target);
    if is_aliased && is_spread {
        // A spread has no other name, and this one is taken.
        return field(named(link.from), parent, used, dice);
    }
    let name = if is_aliased { dice.name("e") } else { target.to_owned() };
    if !is_spread {
        used.push(name.clone());
    }
    let is_inner = dice.percent(25);
    let child = dice.name("c");
    let source = format!("{} as {child}", link.to);
    let mut rows = Rows { source, alias: child.clone(), ..Rows::default() };

    path.push(name.clone());
    let is_empty = !is_spread && dice.percent(6);
    // What is neither shown nor demanded is not in the SQL, where a wrong name could be noticed.
    let may_err = dice.may_err;
    dice.may_err &= !is_empty;
    let list = if is_empty {
        String::new()
    } else if is_spread {
        // Its members get names that nothing else has.
        let mut list = Vec::new();
        for _ in 0..=dice.below(2) {
            let (url, sql, _) = place(*dice.of(table.columns), &child, 10, dice);
            let alias = dice.name("a");
            rows.members.push((alias.clone(), sql));
            list.push(format!("{alias}:{url}"));
        }
        list.join(",")
    } else {
        items(table, &mut rows, path, depth + 1, pairs, dice)
    };
    if dice.percent(35) {
        filters(table, &mut rows, path, pairs, dice);
    }
    if !link.is_one {
        order(table, &mut rows, path, pairs, dice);
        let key = |last: &str| [path.as_slice(), &[last.to_owned()]].concat().join(".");
        if dice.percent(30) {
            let limit = *dice.of(&[1, 2, 3]);
            rows.limit = Some(limit);
            pairs.push((key("limit"), limit.to_string()));
        }
        if dice.percent(15) {
            rows.offset = *dice.of(&[1, 2]);
            pairs.push((key("offset"), rows.offset.to_string()));
        }
    }
    path.pop();
    if is_empty {
        dice.may_err = may_err;
    }

    let condition = link.condition.replace("{p}", &parent.alias).replace("{c}", &child);
    let matching = rows.matching(&condition);
    let exists = format!("exists (select{matching} offset {})", rows.offset);
    if is_inner {
        parent.conditions.push(exists.clone());
    }
    if is_spread {
        for (name, sql) in &rows.members {
            parent.members.push((name.clone(), format!("(select {sql}{matching})")));
        }
    } else if !is_empty && link.is_one {
        parent.members.push((name.clone(), format!("(select {}{matching})", rows.object())));
    } else if !is_empty {
        let array = format!(
            "(select coalesce(json_agg(q.j), '[]') from (select {} as j{matching}{}) as q)",
            rows.object(),
            rows.window(ROWS_MAX)
        );
        parent.members.push((name.clone(), array));
    }
    let row = (link.is_one && !is_empty).then(|| (format!("{child}{matching}"), table));
    parent.related.push((name.clone(), exists, row));

    let alias = if is_aliased { format!("{name}:") } else { String::new() };
    let inner = if is_inner { "!inner" } else { "" };
    let spread = if is_spread { "..." } else { "" };
    let written = link.written;
    format!("{spread}{alias}{written}{inner}({list})")
}

/// Filters of the target, or of what is embedded at `path`.
fn filters(table: &Table, rows: &mut Rows, path: &[String], pairs: &mut Pairs, dice: &mut Dice) {
    let prefix: String = path.iter().flat_map(|name| [name.as_str(), "."]).collect();
    for _ in 0..dice.below(3) {
        if dice.percent(30) {
            let is_or = dice.percent(60);
            let is_not = dice.percent(20);
            let (branches, sql) = tree(table, rows, is_or, 0, dice);
            let name = format!(
                "{prefix}{}{}",
                if is_not { "not." } else { "" },
                if is_or { "or" } else { "and" }
            );
            rows.conditions.push(if is_not { format!("not {sql}") } else { sql });
            pairs.push((name, branches));
            continue;
        }
        let (field, operation, sql) = test(table, rows, false, dice);
        rows.conditions.push(sql);
        pairs.push((format!("{prefix}{field}"), operation));
    }
}

/// `(a.eq.1,or(…))`
fn tree(
    table: &Table,
    rows: &Rows,
    is_or: bool,
    depth: usize,
    dice: &mut Dice,
) -> (String, String) {
    let (mut urls, mut sqls) = (Vec::new(), Vec::new());
    for _ in 0..=dice.below(3) {
        if depth < 3 && dice.percent(30) {
            let (is_or, is_not) = (dice.percent(50), dice.percent(30));
            let (url, sql) = tree(table, rows, is_or, depth + 1, dice);
            let word = if is_or { "or" } else { "and" };
            urls.push(format!("{}{word}{url}", if is_not { "not." } else { "" }));
            sqls.push(if is_not { format!("not {sql}") } else { sql });
        } else {
            let (field, operation, sql) = test(table, rows, true, dice);
            urls.push(format!("{field}.{operation}"));
            sqls.push(sql);
        }
    }
    let word = if is_or { " or " } else { " and " };
    (format!("({})", urls.join(",")), format!("({})", sqls.join(word)))
}

/// One test: the field, the operation, and both in SQL.
fn test(table: &Table, rows: &Rows, in_tree: bool, dice: &mut Dice) -> (String, String, String) {
    let is_not = dice.percent(15);
    let not = if is_not { "not." } else { "" };
    let negated = |sql: String| if is_not { format!("(not {sql})") } else { format!("({sql})") };
    if !rows.related.is_empty() && dice.percent(15) {
        let (name, exists, _) = dice.of(&rows.related);
        if table.columns.iter().all(|(column, _)| column != name) {
            let (url, sql) = if dice.percent(50) {
                ("is.null", format!("not {exists}"))
            } else {
                ("not.is.null", exists.clone())
            };
            return (name.clone(), url.into(), format!("({sql})"));
        }
    }
    if dice.errs() {
        let sql = format!("{}.no_such = '1'", rows.alias);
        return ("no_such".into(), format!("{not}eq.1"), negated(sql));
    }
    // A column that what is embedded is called after is not meant by its name.
    let is_own = |(name, _): &&Column| rows.related.iter().all(|(related, ..)| related != name);
    let columns: Vec<&Column> = table.columns.iter().filter(is_own).collect();
    let column = **dice.of(&columns);
    let (url, sql, is_plain) = place(column, &rows.alias, 4, dice);
    // What is inside JSON is JSON, or text after a last `->>`.
    let kind = match (is_plain, sql.contains("->>")) {
        (true, _) => column.1,
        (false, true) => Kind::Text,
        (false, false) => Kind::Jsonb,
    };
    if !is_plain && kind == Kind::Jsonb && column.1 == Kind::Json {
        // Of json there is nothing to ask but whether it is there.
        let sql = negated(format!("{sql} is null"));
        return (url, format!("{not}is.null"), sql);
    }
    let (operation, sql) = comparison(kind, &sql, in_tree, dice);
    (url, format!("{not}{operation}"), negated(sql))
}

/// What can be asked of a value of this kind.
fn comparison(kind: Kind, sql: &str, in_tree: bool, dice: &mut Dice) -> (String, String) {
    const ORDER: &[(&str, &str)] = &[
        ("eq", "="),
        ("eq", "="),
        ("neq", "<>"),
        ("gt", ">"),
        ("gte", ">="),
        ("lt", "<"),
        ("lte", "<="),
        ("isdistinct", "is distinct from"),
    ];
    const RANGE: &[(&str, &str)] = &[
        ("cs", "@>"),
        ("cd", "<@"),
        ("ov", "&&"),
        ("sl", "<<"),
        ("sr", ">>"),
        ("nxr", "&<"),
        ("nxl", "&>"),
        ("adj", "-|-"),
        ("eq", "="),
    ];
    let value =
        |text: &str, dice: &mut Dice| if in_tree { written(text, dice) } else { text.to_owned() };
    if dice.percent(10) {
        let (url, is) = *dice.of(&[("null", "null"), ("not_null", "not null"), ("NULL", "null")]);
        return (format!("is.{url}"), format!("{sql} is {is}"));
    }
    if dice.errs() {
        let (url, operator) =
            *dice.of(&[("ov", "&&"), ("like", "like"), ("adj", "-|-"), ("cs", "@>"), ("gt", ">")]);
        return (format!("{url}.7"), format!("{sql} {operator} '7'"));
    }
    let operators = match kind {
        Kind::Bool if dice.percent(60) => {
            let is = *dice.of(&["true", "false", "unknown"]);
            return (format!("is.{is}"), format!("{sql} is {is}"));
        }
        Kind::Text | Kind::Email if dice.percent(40) => {
            let (url, operator) =
                *dice.of(&[("like", "like"), ("ilike", "ilike"), ("match", "~"), ("imatch", "~*")]);
            let patterns: &[&str] = if operator.contains('~') {
                &["^[ar]", "e.*d$", "b", "(x|y)"]
            } else {
                &["*e*", "R%", "a_b*", "%@x", "*\\%*", "", "c*"]
            };
            let pattern = *dice.of(patterns);
            let meant =
                if operator.contains('~') { pattern.to_owned() } else { pattern.replace('*', "%") };
            if dice.percent(25) {
                let all = dice.percent(50);
                let other = if operator.contains('~') { "." } else { "%" };
                let (word, joined) = if all { ("all", " and ") } else { ("any", " or ") };
                let list = format!("{{\"{}\",\"{other}\"}}", pattern.replace('\\', "\\\\"));
                // `*` in the list is a wildcard too.
                let sqls =
                    [meant.as_str(), other].map(|one| format!("{sql} {operator} {}", literal(one)));
                let url = format!("{url}({word}).{list}");
                return (url, format!("({})", sqls.join(joined)));
            }
            let url = format!("{url}.{}", value(pattern, dice));
            return (url, format!("{sql} {operator} {}", literal(&meant)));
        }
        Kind::Words => {
            let (url, function) = *dice.of(&[
                ("fts", "to_tsquery"),
                ("plfts", "plainto_tsquery"),
                ("phfts", "phraseto_tsquery"),
                ("wfts", "websearch_to_tsquery"),
            ]);
            let word = *dice.of(&["cat", "fat", "rats", "the"]);
            let is_configured = dice.percent(60);
            let (config, argument) =
                if is_configured { ("(english)", "'english', ") } else { ("", "") };
            let sql = format!("{sql} @@ {function}({argument}{})", literal(word));
            return (format!("{url}{config}.{word}"), sql);
        }
        Kind::Json => return ("is.null".into(), format!("{sql} is null")),
        Kind::Range => RANGE,
        Kind::Texts | Kind::Ints if dice.percent(60) => &RANGE[..3],
        Kind::Jsonb if dice.percent(50) => &RANGE[..2],
        Kind::Int
        | Kind::Text
        | Kind::Numeric
        | Kind::Real
        | Kind::Bool
        | Kind::Date
        | Kind::Time
        | Kind::Uuid
        | Kind::Mood
        | Kind::Email
        | Kind::Texts
        | Kind::Ints
        | Kind::Jsonb => ORDER,
    };
    let is_listed = !matches!(kind, Kind::Texts | Kind::Ints | Kind::Range);
    if is_listed && dice.percent(20) {
        let texts: Vec<String> = (0..dice.below(4)).map(|_| dice.text(kind)).collect();
        let urls: Vec<String> = texts.iter().map(|text| written(text, dice)).collect();
        let sqls: Vec<String> = texts.iter().map(|text| literal(text)).collect();
        let sql = if sqls.is_empty() {
            // No value is among none; the column is named, for whoever may not read it.
            format!("(case when {sql} is null then false else false end)")
        } else {
            format!("{sql} in ({})", sqls.join(", "))
        };
        return (format!("in.({})", urls.join(",")), sql);
    }
    let (url, operator) = *dice.of(operators);
    let text = dice.text(kind);
    (format!("{url}.{}", value(&text, dice)), format!("{sql} {operator} {}", literal(&text)))
}

/// An order that leaves nothing open.
fn order(table: &Table, rows: &mut Rows, path: &[String], pairs: &mut Pairs, dice: &mut Dice) {
    let mut terms = Vec::new();
    for _ in 0..dice.below(3) {
        let (url, nulls) = *dice.of(&[
            ("", ""),
            (".asc", ""),
            (".desc", " desc"),
            (".nullsfirst", " nulls first"),
            (".desc.nullslast", " desc nulls last"),
            (".asc.nullslast", " nulls last"),
        ]);
        let ones: Vec<_> = rows.related.iter().filter(|(.., row)| row.is_some()).collect();
        if !ones.is_empty() && dice.percent(30) {
            let (name, _, row) = *dice.of(&ones);
            let (row, to) = row.as_ref().expect("it is there");
            let (column, kind) = *dice.of(to.columns);
            if kind != Kind::Json {
                let rest = row.split_once(' ').expect("an alias and where it is from");
                let sql = format!("(select {}.{} {})", rest.0, quoted(column), rest.1);
                rows.orders.push(format!("{sql}{nulls}"));
                terms.push(format!("{name}({}){url}", written(column, dice)));
                continue;
            }
        }
        let column = *dice.of(table.columns);
        let (place, sql, is_plain) = place(column, &rows.alias, 4, dice);
        if column.1 == Kind::Json && (is_plain || !sql.contains("->>")) {
            continue;
        }
        rows.orders.push(format!("{sql}{nulls}"));
        terms.push(format!("{place}{url}"));
    }
    for key in table.key {
        rows.orders.push(format!("{}.{}", rows.alias, quoted(key)));
        terms.push((*key).to_owned());
    }
    let name = path.iter().map(String::as_str).chain(["order"]).collect::<Vec<_>>().join(".");
    pairs.push((name, terms.join(",")));
}

/// As it stands in a URL.
pub(super) fn query_string(pairs: &Pairs) -> String {
    let pairs: Vec<String> =
        pairs.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect();
    pairs.join("&")
}
