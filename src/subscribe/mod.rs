//! The checks a subscription passes before it is active, and comparisons left to Postgres.
//!
//! In:     conditions and `select` as parsed; the table's columns that the role may read.
//! Out:    [`Bound`] conditions with operands in canonical form, or [`Refused`] with the text the
//!         client gets to see. Most conditions are settled without asking Postgres.
//! Never:  names or values from clients in SQL text; a filter on a column the role may not read.

mod ask;

use futures_util::future::join_all;
use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

pub use ask::{Answer, Operators, ask};

use self::ask::{Resolved, Statement, is_about_the_question, symbol};
use crate::hub::{Bound, Condition, Is, Operand, Operator, canonical};

const COLLATION_OF: &str = include_str!("../../sql/collation_of.sql");

/// Elements of one `in` list, as the reference server has it.
const LIST_MAX: usize = 100;

/// OIDs that every server shares.
const BOOL: u32 = 16;
const BYTEA: u32 = 17;
const TEXT: u32 = 25;

/// Why a check has no good result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Final: tell the client.
    #[error("subscription refused")]
    Refused(#[from] Refused),
    /// Postgres gave no answer: try again later.
    #[error("cannot ask Postgres")]
    Postgres(#[from] tokio_postgres::Error),
}

/// Why a subscription is not possible, as the part of the error text after `Exception: `.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("ERROR {code} ({name}) {message}")]
pub struct Refused {
    code: Box<str>,
    name: &'static str,
    message: Box<str>,
}

impl Refused {
    fn raised(message: impl Into<Box<str>>) -> Self {
        Self { code: "P0001".into(), name: "raise_exception", message: message.into() }
    }

    /// The role that the claims name does not exist.
    pub fn no_such_role(role: &str) -> Self {
        let message = format!("role \"{role}\" does not exist").into();
        Self { code: "42704".into(), name: "undefined_object", message }
    }
}

/// A column that the subscriber's role may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column<'a> {
    /// Name.
    pub name: &'a str,
    /// Its declared type.
    pub type_oid: u32,
    /// `pg_attribute.attcollation`; 0 for types without one.
    pub collation_oid: u32,
}

/// Outcome of [`check`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Check {
    /// Everything is in order.
    Settled(Box<[Bound]>),
    /// Postgres must look at some of it. Equal questions have equal answers.
    Unsettled(Unsettled),
}

/// Conditions of which some must be looked at by Postgres.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Unsettled {
    items: Box<[Item]>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Item {
    condition: Condition,
    type_oid: u32,
    collation_oid: u32,
    settled: Option<Bound>,
}

/// Checks what is certain without Postgres. `readable`: every column the role may read, and no
/// other.
///
/// # Errors
/// [`Refused`]: final.
pub fn check(
    conditions: &[Condition],
    select: Option<&[String]>,
    readable: &[Column<'_>],
) -> Result<Check, Refused> {
    let find = |name: &str| readable.iter().find(|column| column.name == name);
    let mut items = Vec::with_capacity(conditions.len());
    for condition in conditions {
        let column = find(&condition.column).ok_or_else(|| {
            Refused::raised(format!("invalid column for filter {}", condition.column))
        })?;
        items.push(Item {
            condition: condition.clone(),
            type_oid: column.type_oid,
            collation_oid: column.collation_oid,
            settled: settle(condition, column)?,
        });
    }
    if let Some(unknown) = select.into_iter().flatten().find(|name| find(name).is_none()) {
        return Err(Refused::raised(format!("invalid column for select {unknown}")));
    }
    Ok(match items.iter().map(|item| item.settled.clone()).collect() {
        Some(bound) => Check::Settled(bound),
        None => Check::Unsettled(Unsettled { items: items.into() }),
    })
}

/// What can be said about a condition without Postgres; `None` when that is not enough.
fn settle(condition: &Condition, column: &Column<'_>) -> Result<Option<Bound>, Refused> {
    let bytewise = is_text(column.type_oid) && is_plain_collation(column.collation_oid);
    let read = |text: &str| canonical(column.type_oid, bytewise, text);
    let operand = match condition.operator {
        Operator::Is => {
            let is = Is::parse(&condition.value).ok_or_else(|| {
                Refused::raised(
                    "invalid value for is filter: must be null, true, false, or unknown",
                )
            })?;
            (is == Is::Null || column.type_oid == BOOL).then_some(Operand::Is(is))
        }
        Operator::Eq
        | Operator::Neq
        | Operator::Lt
        | Operator::Lte
        | Operator::Gt
        | Operator::Gte
        | Operator::IsDistinct => read(&condition.value).map(Operand::Value),
        Operator::Like | Operator::ILike
            if column.type_oid != BYTEA && ends_in_escape(&condition.value) =>
        {
            // Postgres says so only when a match gets that far.
            return Err(Refused {
                code: "22025".into(),
                name: "invalid_escape_sequence",
                message: "LIKE pattern must not end with escape character".into(),
            });
        }
        Operator::Like | Operator::ILike if bytewise => read(&condition.value).map(Operand::Value),
        Operator::Like | Operator::ILike | Operator::Match | Operator::IMatch => None,
        Operator::In => match plain_list(&condition.value) {
            Some(list) if list.len() > LIST_MAX => return Err(too_many_values()),
            Some(list) => {
                let read = |text| read(text).map(Some);
                list.into_iter().map(read).collect::<Option<_>>().map(Operand::List)
            }
            None => None,
        },
    };
    Ok(operand.map(|operand| Bound {
        column: condition.column.clone(),
        type_oid: column.type_oid,
        base_oid: column.type_oid,
        operator: condition.operator,
        negated: condition.negated,
        operand,
        bytewise,
        collation: system_collation(column.collation_oid).map(Into::into),
    }))
}

/// Whether an odd number of backslashes is at the end of a pattern.
fn ends_in_escape(pattern: &str) -> bool {
    pattern.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1
}

fn too_many_values() -> Refused {
    Refused::raised(format!("too many values for `in` filter. Maximum {LIST_MAX}"))
}

/// `text`, `varchar`, `char(n)` and `name`.
const fn is_text(type_oid: u32) -> bool {
    matches!(type_oid, 19 | TEXT | 1042 | 1043)
}

/// The database's collation, `C` and `POSIX`: always deterministic.
const fn is_plain_collation(collation_oid: u32) -> bool {
    matches!(collation_oid, 100 | 950 | 951)
}

/// The collations with fixed OIDs that are not the database's.
const fn system_collation(collation_oid: u32) -> Option<&'static str> {
    match collation_oid {
        950 => Some("pg_catalog.\"C\""),
        951 => Some("pg_catalog.\"POSIX\""),
        _ => None,
    }
}

/// The elements of an array literal without quotes, escapes, nesting or nulls, for types whose
/// delimiter is a comma.
fn plain_list(literal: &str) -> Option<Vec<&str>> {
    let body = literal.strip_prefix('{')?.strip_suffix('}')?;
    if body.contains(['"', '\\', '{', '}']) {
        return None;
    }
    // What Postgres takes for blank between elements, and no more.
    let blank = [' ', '\t', '\n', '\r', '\u{b}', '\u{c}'];
    if body.trim_matches(blank).is_empty() {
        return Some(Vec::new());
    }
    let elements = body.split(',').map(|element| element.trim_matches(blank));
    let known = |element: &&str| !element.is_empty() && !element.eq_ignore_ascii_case("null");
    elements.map(|element| Some(element).filter(known)).collect()
}

impl Unsettled {
    /// Lets Postgres look at the rest: up to three round trips the first time a type is met, one
    /// afterwards, one more to find the culprit when it refuses.
    ///
    /// The session must be as for [`ask`].
    ///
    /// # Errors
    /// [`Error::Refused`] is final, [`Error::Postgres`] is not.
    pub async fn finish(
        &self,
        client: &Client,
        operators: &Operators,
    ) -> Result<Box<[Bound]>, Error> {
        let operands = match self.attempt(client, operators, run_all).await {
            Err(Error::Postgres(error)) if is_about_the_question(&error) => {
                // A value or an operator was refused, or a name has changed since it was looked
                // up: afresh, and each for itself.
                operators.forget(self.open().map(Item::key));
                self.attempt(client, operators, run_each).await?
            }
            done => done?,
        };
        let mut bound = operands.into_iter();
        let all = self.items.iter().map(|item| item.settled.clone().or_else(|| bound.next()));
        Ok(all.map(|bound| bound.expect("one for each open item")).collect())
    }

    fn open(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(|item| item.settled.is_none())
    }

    async fn attempt(
        &self,
        client: &Client,
        operators: &Operators,
        run: impl AsyncFnOnce(&Client, &[Probe<'_>]) -> Result<Vec<Vec<Option<String>>>, Error>,
    ) -> Result<Vec<Bound>, Error> {
        let resolved = operators.resolve(client, self.open().map(Item::key)).await?;
        let mut probes = Vec::new();
        for item in self.open() {
            let known = resolved.get(&(item.type_oid, symbol(item.condition.operator)));
            let known = known.ok_or_else(|| {
                let column = &item.condition.column;
                Refused::raised(format!("failed to lookup type for column {column}"))
            })?;
            let collation = fetch_collation(client, item.collation_oid).await?;
            probes.push(Probe::new(&item.condition, known, collation)?);
        }
        let operands = run(client, &probes).await?;
        let bound = probes.into_iter().zip(operands).map(|(probe, operand)| probe.bind(operand));
        Ok(bound.collect::<Result<_, _>>()?)
    }
}

impl Item {
    fn key(&self) -> (u32, Operator) {
        (self.type_oid, self.condition.operator)
    }
}

/// A collation's name as SQL and whether it is deterministic; `None` for the database's.
async fn fetch_collation(
    client: &Client,
    collation_oid: u32,
) -> Result<Option<(Box<str>, bool)>, Error> {
    if collation_oid == 0 || is_plain_collation(collation_oid) {
        return Ok(system_collation(collation_oid).map(|collation| (collation.into(), true)));
    }
    let parameters: [(&(dyn ToSql + Sync), Type); 1] = [(&collation_oid, Type::OID)];
    let row = client.query_typed_opt(COLLATION_OF, &parameters).await?;
    let row = row.ok_or_else(|| Refused::raised("failed to lookup the column's collation"))?;
    Ok(Some((row.try_get::<_, String>("collation")?.into(), row.try_get("is_deterministic")?)))
}

/// One condition on its way through Postgres.
struct Probe<'a> {
    condition: &'a Condition,
    known: &'a Resolved,
    collation: Option<(Box<str>, bool)>,
}

impl<'a> Probe<'a> {
    fn new(
        condition: &'a Condition,
        known: &'a Resolved,
        collation: Option<(Box<str>, bool)>,
    ) -> Result<Self, Refused> {
        let (word, type_name) = (condition.operator.as_str(), &known.type_name);
        if condition.operator == Operator::Is {
            let value = &condition.value;
            return Err(Refused::raised(format!(
                "is {value} filter requires a boolean column, got {type_name}"
            )));
        }
        if condition.operator == Operator::In && known.array_oid == 0 {
            return Err(Refused::raised(format!(
                "operator {word} is not supported on column {} of type {type_name}: it has no array type",
                condition.column
            )));
        }
        Ok(Self { condition, known, collation })
    }

    /// Two columns: the operand as the type's output writes it (`text[]`), and the outcome of a
    /// comparison, which does not matter: it is there to fail when the operator does not exist.
    fn write(&self, statement: &mut Statement<'a>) {
        let value = Some(self.condition.value.as_bytes());
        let compare = |statement: &mut Statement<'a>, left: &dyn Fn(&mut Statement<'a>)| {
            left(statement);
            if let Some((collation, _)) = &self.collation {
                statement.push(" collate ");
                statement.push(collation);
            }
            statement.push(" ");
            statement.push(&self.known.operator);
            statement.push(" ");
        };
        let declared = self.declared_oid();
        match self.condition.operator {
            Operator::In => {
                // `unnest` in `from` would make a composite of nulls out of a null composite.
                statement.push(
                    "array(select case when pg_catalog.num_nulls(x) = 0 then pg_catalog.format('%s', x) end from (select pg_catalog.unnest(",
                );
                statement.parameter(value, declared);
                statement.push(") as x) as e), (select pg_catalog.bool_or(");
                compare(statement, &|statement| statement.push("x"));
                statement.push("x) from (select pg_catalog.unnest(");
                statement.parameter(value, declared);
                statement.push(") as x) as e)");
            }
            Operator::Like | Operator::ILike | Operator::Match | Operator::IMatch => {
                statement.push("array[pg_catalog.format('%s', ");
                statement.parameter(value, self.known.right_oid);
                statement.push(")], ");
                // Every type with patterns takes any text, so the pattern serves as the value.
                compare(statement, &|statement| statement.parameter(value, self.known.base_oid));
                statement.parameter(value, self.known.right_oid);
            }
            Operator::Eq
            | Operator::Neq
            | Operator::Lt
            | Operator::Lte
            | Operator::Gt
            | Operator::Gte
            | Operator::Is
            | Operator::IsDistinct => {
                statement.push("array[pg_catalog.format('%s', ");
                statement.parameter(value, declared);
                statement.push(")], ");
                compare(statement, &|statement| statement.parameter(value, declared));
                statement.parameter(value, declared);
            }
        }
    }

    /// The type that reads the operand.
    fn declared_oid(&self) -> u32 {
        if self.condition.operator == Operator::In {
            self.known.array_oid
        } else {
            self.known.type_oid
        }
    }

    fn bind(self, operand: Vec<Option<String>>) -> Result<Bound, Refused> {
        let condition = self.condition;
        let operand = if condition.operator == Operator::In {
            if operand.len() > LIST_MAX {
                return Err(too_many_values());
            }
            Operand::List(operand.into_iter().map(|element| element.map(Into::into)).collect())
        } else {
            Operand::Value(operand.into_iter().flatten().next().unwrap_or_default().into())
        };
        let deterministic = self.collation.as_ref().is_none_or(|(_, deterministic)| *deterministic);
        let known = self.known;
        Ok(Bound {
            column: condition.column.clone(),
            type_oid: known.type_oid,
            base_oid: known.base_oid,
            operator: condition.operator,
            negated: condition.negated,
            operand,
            bytewise: known.is_enum || (is_text(known.base_oid) && deterministic),
            collation: self.collation.map(|(collation, _)| collation),
        })
    }

    /// What the client is told about an error of this condition alone.
    fn explain(&self, error: Error) -> Error {
        let Error::Postgres(error) = error else { return error };
        let Some(refused) = refusal(&error) else { return Error::Postgres(error) };
        let (operator, type_name) = (self.condition.operator, &self.known.type_name);
        let word = operator.as_str();
        let message = match (&*refused.code, operator) {
            (
                "42883" | "42725",
                Operator::Like | Operator::ILike | Operator::Match | Operator::IMatch,
            ) => {
                format!("operator {word} requires a text-compatible column type, got {type_name}")
            }
            (_, Operator::Match | Operator::IMatch) => {
                format!("invalid regular expression for {word} filter: {}", refused.message)
            }
            ("42883" | "42725" | "0A000", _) => {
                let column = &self.condition.column;
                let problem = refused.message.replace(" pg_catalog.", " ");
                format!(
                    "operator {word} is not supported on column {column} of type {type_name}: {problem}"
                )
            }
            _ => return refused.into(),
        };
        Refused::raised(message).into()
    }
}

/// Sends probes in one statement; the operands come back in their order.
async fn run_all(client: &Client, probes: &[Probe<'_>]) -> Result<Vec<Vec<Option<String>>>, Error> {
    let mut statement = Statement::new("select ");
    for (index, probe) in probes.iter().enumerate() {
        statement.push(if index == 0 { "" } else { ",\n" });
        probe.write(&mut statement);
    }
    let row = statement.query_one(client).await?;
    (0..probes.len()).map(|index| Ok(row.try_get(index * 2)?)).collect()
}

/// Sends each probe for itself, without waiting for one another; the first refused one counts.
async fn run_each(
    client: &Client,
    probes: &[Probe<'_>],
) -> Result<Vec<Vec<Option<String>>>, Error> {
    let each = probes.iter().map(|probe| run_all(client, std::slice::from_ref(probe)));
    let results = join_all(each).await.into_iter().zip(probes).map(|(result, probe)| {
        let operand = result.map_err(|error| probe.explain(error))?.pop();
        Ok(operand.expect("one for the one probe"))
    });
    results.collect()
}

/// The error as clients know it, when it is about what the client sent. Nothing else of the
/// database's texts is shown.
fn refusal(error: &tokio_postgres::Error) -> Option<Refused> {
    if !is_about_the_question(error) {
        return None;
    }
    let error = error.as_db_error()?;
    let code = error.code().code();
    let name = condition_name(code);
    Some(Refused { code: code.into(), name, message: error.message().into() })
}

/// The manual's name of an error code that a value, an operator or a pattern can cause; for the
/// rest the name of its class.
fn condition_name(code: &str) -> &'static str {
    match code {
        "2201B" => "invalid_regular_expression",
        "22001" => "string_data_right_truncation",
        "22003" => "numeric_value_out_of_range",
        "22007" => "invalid_datetime_format",
        "22008" => "datetime_field_overflow",
        "22009" => "invalid_time_zone_displacement_value",
        "22015" => "interval_field_overflow",
        "22021" => "character_not_in_repertoire",
        "22023" => "invalid_parameter_value",
        "22025" => "invalid_escape_sequence",
        "22026" => "string_data_length_mismatch",
        "22030" => "duplicate_json_object_key_value",
        "22032" => "invalid_json_text",
        "2200M" => "invalid_xml_document",
        "2200N" => "invalid_xml_content",
        "2202E" => "array_subscript_error",
        "22P02" => "invalid_text_representation",
        "22P05" => "untranslatable_character",
        "23502" => "not_null_violation",
        "23514" => "check_violation",
        "3F000" => "invalid_schema_name",
        "42501" => "insufficient_privilege",
        "42601" => "syntax_error",
        "42602" => "invalid_name",
        "42704" => "undefined_object",
        "42725" => "ambiguous_function",
        "42846" => "cannot_coerce",
        "42883" => "undefined_function",
        "42P01" => "undefined_table",
        "54001" => "statement_too_complex",
        // A pattern or value that alone takes longer than any check may.
        "57014" => "query_canceled",
        "P0001" => "raise_exception",
        _ => match code.get(..2) {
            Some("0A") => "feature_not_supported",
            Some("22") => "data_exception",
            Some("23") => "integrity_constraint_violation",
            Some("42") => "syntax_error_or_access_rule_violation",
            Some("54") => "program_limit_exceeded",
            Some(_) | None => "error",
        },
    }
}
