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

use self::ask::{Resolved, Statement, symbol};
use crate::hub::{Bound, Condition, Is, Operand, Operator, canonical};

const COLLATION_OF: &str = include_str!("../../sql/collation_of.sql");

/// Elements of one `in` list, as the reference server has it.
const LIST_MAX: usize = 100;

/// OIDs that every server shares.
const BOOL: u32 = 16;
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
        Operator::Like | Operator::ILike if bytewise => read(&condition.value).map(Operand::Value),
        Operator::Like | Operator::ILike | Operator::Match | Operator::IMatch => None,
        Operator::In => match plain_list(&condition.value) {
            Some(list) if list.len() > LIST_MAX => return Err(too_many_values()),
            Some(list) => {
                let read: Option<_> = list.into_iter().map(|text| Some(read(text))).collect();
                read.filter(|list: &Box<[_]>| !list.contains(&None)).map(Operand::List)
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
        collation: None,
    }))
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
    /// The session must have its output settings pinned and a `statement_timeout`, and must not be
    /// in a transaction.
    ///
    /// # Errors
    /// [`Error::Refused`] is final, [`Error::Postgres`] is not.
    pub async fn finish(
        &self,
        client: &Client,
        operators: &Operators,
    ) -> Result<Box<[Bound]>, Error> {
        let open = || self.items.iter().filter(|item| item.settled.is_none());
        let wanted = open().map(|item| (item.type_oid, item.condition.operator));
        let resolved = operators.resolve(client, wanted).await?;
        let mut probes = Vec::new();
        for item in open() {
            let key = (item.type_oid, symbol(item.condition.operator));
            let known = resolved.get(&key).ok_or_else(|| {
                let column = &item.condition.column;
                Refused::raised(format!("failed to lookup type for column {column}"))
            })?;
            let collation = fetch_collation(client, item.collation_oid).await?;
            probes.push(Probe::new(&item.condition, known, collation)?);
        }
        let operands = match run(client, &probes).await {
            Ok(operands) => operands,
            Err(Error::Postgres(error)) if refusal(&error).is_some() => {
                operators.clear();
                let each = probes.iter().map(|probe| run(client, std::slice::from_ref(probe)));
                let mut operands = Vec::with_capacity(probes.len());
                for (probe, result) in probes.iter().zip(join_all(each).await) {
                    operands.extend(result.map_err(|error| probe.explain(error))?);
                }
                operands
            }
            Err(error) => return Err(error),
        };
        let mut bound = probes
            .into_iter()
            .zip(operands)
            .zip(open())
            .map(|((probe, operand), item)| probe.bind(operand, item.type_oid));
        let all = self.items.iter().map(|item| {
            item.settled
                .clone()
                .map_or_else(|| bound.next().expect("one result for each open item"), Ok)
        });
        Ok(all.collect::<Result<_, _>>()?)
    }
}

/// A collation's name as SQL and whether it is deterministic; `None` for the plain ones.
async fn fetch_collation(
    client: &Client,
    collation_oid: u32,
) -> Result<Option<(Box<str>, bool)>, Error> {
    if collation_oid == 0 || is_plain_collation(collation_oid) {
        return Ok(None);
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
                // An element that is null itself, not a composite of nulls.
                statement.push(
                    "array(select case when pg_catalog.num_nulls(x) = 0 then pg_catalog.format('%s', x) end from pg_catalog.unnest(",
                );
                statement.parameter(value, declared);
                statement.push(") as x), (select pg_catalog.bool_or(");
                compare(statement, &|statement| statement.push("x"));
                statement.push("x) from pg_catalog.unnest(");
                statement.parameter(value, declared);
                statement.push(") as x)");
            }
            Operator::Like | Operator::ILike | Operator::Match | Operator::IMatch => {
                statement.push("array[pg_catalog.format('%s', ");
                statement.parameter(value, self.known.right_oid);
                statement.push(")], ");
                compare(statement, &|statement| statement.parameter(None, self.known.base_oid));
                statement.parameter(value, self.known.right_oid);
                if matches!(self.condition.operator, Operator::Match | Operator::IMatch) {
                    // A null on the left stops the comparison above before it reads the pattern.
                    statement.push(" or ''::pg_catalog.text operator(pg_catalog.~) ");
                    statement.parameter(value, TEXT);
                }
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

    fn bind(self, operand: Vec<Option<String>>, type_oid: u32) -> Result<Bound, Refused> {
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
            type_oid,
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
async fn run(client: &Client, probes: &[Probe<'_>]) -> Result<Vec<Vec<Option<String>>>, Error> {
    let mut statement = Statement::new("select ");
    for (index, probe) in probes.iter().enumerate() {
        statement.push(if index == 0 { "" } else { ",\n" });
        probe.write(&mut statement);
    }
    let row = statement.query_one(client).await?;
    (0..probes.len()).map(|index| Ok(row.try_get(index * 2)?)).collect()
}

/// The error as clients know it, when it is about what the client sent. Nothing else of the
/// database's texts is shown.
fn refusal(error: &tokio_postgres::Error) -> Option<Refused> {
    let error = error.as_db_error()?;
    let code = error.code().code();
    let name = match code {
        "0A000" => "feature_not_supported",
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
        "2200D" => "invalid_escape_octet",
        "2200M" => "invalid_xml_document",
        "2200N" => "invalid_xml_content",
        "2202E" => "array_subscript_error",
        "22P02" => "invalid_text_representation",
        "22P05" => "untranslatable_character",
        "23502" => "not_null_violation",
        "23514" => "check_violation",
        "42704" => "undefined_object",
        "42725" => "ambiguous_function",
        "42846" => "cannot_coerce",
        "42883" => "undefined_function",
        "54000" => "program_limit_exceeded",
        "54001" => "statement_too_complex",
        // A pattern or value that alone takes longer than any check may.
        "57014" => "query_canceled",
        _ if code.starts_with("22") => "data_exception",
        _ => return None,
    };
    Some(Refused { code: code.into(), name, message: error.message().into() })
}
