//! Comparisons that only Postgres can make, many of them in one round trip.
//!
//! In:     [`Question`]s: a value, an operator and an operand, each as text, and their type.
//! Out:    one [`Answer`] each.
//! Never:  text from clients or rows in a statement: values are parameters, and names come from
//!         the catalog, quoted by the server. Sets no role: use a login that may do nothing else.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use bytes::BytesMut;
use futures_util::future::join_all;
use tokio_postgres::Client;
use tokio_postgres::types::{Format, IsNull, Kind, ToSql, Type};

use super::Error;
use crate::hub::{Is, Operand, Operator, Question};

const OPERATOR_OF: &str = include_str!("../../sql/operator_of.sql");

/// Parameters of one statement. The protocol's limit is 65535; far fewer keep planning short.
const PARAMETERS_MAX: usize = 1000;

/// Operators remembered. Beyond it all are looked up again: types are few, churn is rare.
const OPERATORS_MAX: usize = 4096;

/// What Postgres said about one comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// True.
    Yes,
    /// False or unknown.
    No,
    /// An error, such as a value the type no longer takes or a pattern that takes too long: not a
    /// match, and a reason to end the subscription it belongs to.
    Failed,
}

/// The operators looked up so far.
#[derive(Debug, Default)]
pub struct Operators {
    known: Mutex<HashMap<(u32, &'static str), Arc<Resolved>>>,
}

/// One type's operator of one name.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) type_oid: u32,
    /// The type's name as an error text shows it.
    pub(super) type_name: String,
    pub(super) is_enum: bool,
    /// The type below all domains: what values are read as.
    pub(super) base_oid: u32,
    /// 0 when the type has no array type.
    pub(super) array_oid: u32,
    /// `operator(schema.name)`.
    pub(super) operator: String,
    pub(super) right_oid: u32,
}

/// The operator that decides; negation and lists are built around it.
pub(super) const fn symbol(operator: Operator) -> &'static str {
    match operator {
        Operator::Eq
        | Operator::Neq
        | Operator::In
        | Operator::IsDistinct
        // `is` needs none; its type is looked up all the same.
        | Operator::Is => "=",
        Operator::Lt => "<",
        Operator::Lte => "<=",
        Operator::Gt => ">",
        Operator::Gte => ">=",
        Operator::Like => "~~",
        Operator::ILike => "~~*",
        Operator::Match => "~",
        Operator::IMatch => "~*",
    }
}

impl Operators {
    /// Looks up what is not known yet, in at most one round trip.
    pub(super) async fn resolve(
        &self,
        client: &Client,
        wanted: impl Iterator<Item = (u32, Operator)>,
    ) -> Result<HashMap<(u32, &'static str), Arc<Resolved>>, Error> {
        let mut found = HashMap::new();
        let (mut types, mut names) = (Vec::new(), Vec::new());
        {
            let known = self.known.lock().expect("no code panics under this lock");
            for (type_oid, operator) in wanted {
                let key = (type_oid, symbol(operator));
                if found.contains_key(&key) {
                    continue;
                }
                if let Some(resolved) = known.get(&key) {
                    found.insert(key, Arc::clone(resolved));
                } else {
                    types.push(key.0);
                    names.push(key.1);
                }
            }
        }
        if types.is_empty() {
            return Ok(found);
        }
        let parameters: [(&(dyn ToSql + Sync), Type); 2] =
            [(&types, Type::OID_ARRAY), (&names, Type::TEXT_ARRAY)];
        let rows = client.query_typed(OPERATOR_OF, &parameters).await?;
        let mut known = self.known.lock().expect("no code panics under this lock");
        if known.len() + rows.len() > OPERATORS_MAX {
            known.clear();
        }
        for row in rows {
            let name: &str = row.try_get("name")?;
            let Some(name) = names.iter().copied().find(|own| *own == name) else { continue };
            let key = (row.try_get("type_oid")?, name);
            let resolved = Arc::new(Resolved {
                type_oid: key.0,
                type_name: row.try_get("type_name")?,
                is_enum: row.try_get("is_enum")?,
                base_oid: row.try_get("base_oid")?,
                array_oid: row.try_get("array_oid")?,
                operator: row.try_get("operator")?,
                right_oid: row.try_get("right_oid")?,
            });
            known.insert(key, Arc::clone(&resolved));
            found.insert(key, resolved);
        }
        Ok(found)
    }

    /// Forgets these, since an error may come from a name that DDL has changed.
    pub(super) fn forget(&self, keys: impl Iterator<Item = (u32, Operator)>) {
        let mut known = self.known.lock().expect("no code panics under this lock");
        for (type_oid, operator) in keys {
            known.remove(&(type_oid, symbol(operator)));
        }
    }
}

/// Answers every question, in order: one round trip for about 500 of them, one more when an
/// operator was not met before, one more when any of them fails.
///
/// The session must have its output settings pinned, a `statement_timeout` (a pattern can be
/// written to run for hours), USAGE on the schemas of the types in question, and no transaction.
///
/// # Errors
/// [`Error::Postgres`] when nothing is known: the connection is lost, the server is stopping or
/// out of resources. Ask again on another connection; match nothing until then.
pub async fn ask(
    client: &Client,
    operators: &Operators,
    questions: &[Question<'_>],
) -> Result<Vec<Answer>, Error> {
    let mut answers = Vec::with_capacity(questions.len());
    let mut rest = questions;
    while !rest.is_empty() {
        let mut parameters = 0;
        let fits = |question: &&Question<'_>| {
            parameters += 2 + operand_count(question.operand);
            parameters <= PARAMETERS_MAX
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (batch, after) = rest.split_at(count);
        answers.extend(ask_batch(client, operators, batch).await?);
        rest = after;
    }
    Ok(answers)
}

fn operand_count(operand: &Operand) -> usize {
    match operand {
        Operand::Value(_) | Operand::Is(_) => 1,
        Operand::List(list) => list.len(),
    }
}

async fn ask_batch(
    client: &Client,
    operators: &Operators,
    questions: &[Question<'_>],
) -> Result<Vec<Answer>, Error> {
    match ask_once(client, operators, questions).await {
        Err(Error::Postgres(error)) if is_about_the_question(&error) => {}
        done => return done,
    }
    // One of them failed, or an operator's name changed: each for itself, without waiting for
    // one another's answers.
    let keys = || questions.iter().map(|question| (question.type_oid, question.operator));
    operators.forget(keys());
    operators.resolve(client, keys()).await?;
    let each = questions.iter().map(|question| async {
        match ask_once(client, operators, std::slice::from_ref(question)).await {
            Ok(answers) => Ok(answers.first().copied().unwrap_or(Answer::Failed)),
            Err(Error::Postgres(error)) if is_about_the_question(&error) => Ok(Answer::Failed),
            Err(error) => Err(error),
        }
    });
    join_all(each).await.into_iter().collect()
}

async fn ask_once(
    client: &Client,
    operators: &Operators,
    questions: &[Question<'_>],
) -> Result<Vec<Answer>, Error> {
    let wanted = questions.iter().map(|question| (question.type_oid, question.operator));
    let resolved = operators.resolve(client, wanted).await?;
    let mut statement = Statement::new("select array[");
    let mut asked = Vec::with_capacity(questions.len());
    for question in questions {
        let known = resolved.get(&(question.type_oid, symbol(question.operator)));
        asked.push(known.is_some());
        if let Some(known) = known {
            let separator = if statement.parameters.is_empty() { "" } else { ",\n" };
            statement.push(separator);
            statement.push("coalesce(");
            statement.compare(question, known);
            statement.push(", false)");
        }
    }
    if !asked.contains(&true) {
        return Ok(vec![Answer::Failed; questions.len()]);
    }
    statement.push("]::pg_catalog.bool[]");
    let row = statement.query_one(client).await?;
    let mut truths = row.try_get::<_, Vec<bool>>(0)?.into_iter();
    let answers = asked.into_iter().map(|asked| match asked.then(|| truths.next()).flatten() {
        Some(true) => Answer::Yes,
        Some(false) => Answer::No,
        None => Answer::Failed,
    });
    Ok(answers.collect())
}

/// Whether the error says something about a value, an operator or the time one took, rather than
/// about the connection or the server.
pub(super) fn is_about_the_question(error: &tokio_postgres::Error) -> bool {
    let Some(code) = error.code().map(tokio_postgres::error::SqlState::code) else { return false };
    let about_the_server = ["08", "25", "40", "53", "57", "58", "XX"];
    code == "57014" || !about_the_server.iter().any(|class| code.starts_with(class))
}

/// A statement in the making: text of our own and the catalog's, and typed parameters.
pub(super) struct Statement<'a> {
    text: String,
    parameters: Vec<(Text<'a>, Type)>,
    places: HashMap<(u32, usize, usize), usize>,
}

impl<'a> Statement<'a> {
    pub(super) fn new(start: &str) -> Self {
        Self { text: start.into(), parameters: Vec::new(), places: HashMap::new() }
    }

    pub(super) fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Adds a parameter in its type's text form, and refers to it.
    pub(super) fn parameter(&mut self, value: Option<&'a [u8]>, type_oid: u32) {
        let place = value.map(|value| (type_oid, value.as_ptr().addr(), value.len()));
        let next = self.parameters.len() + 1;
        // The same bytes in many questions are sent once.
        let number = place.map_or(next, |place| *self.places.entry(place).or_insert(next));
        if number == next {
            // Only the OID goes to the server; the name is for error texts of the driver.
            let name = Type::new("parameter".into(), type_oid, Kind::Simple, String::new());
            self.parameters.push((Text(value), name));
        }
        write!(self.text, "${number}").expect("a string takes every write");
    }

    fn compare(&mut self, question: &Question<'a>, known: &Resolved) {
        let negated =
            matches!(question.operator, Operator::Neq | Operator::IsDistinct) != question.negated;
        self.push(if negated { "not (" } else { "(" });
        match question.operand {
            Operand::Value(operand) => self.one(question, Some(operand.as_bytes()), known),
            Operand::List(list) => {
                self.push("false");
                for element in list {
                    self.push(" or ");
                    self.one(question, element.as_deref().map(str::as_bytes), known);
                }
            }
            Operand::Is(is) => {
                self.parameter(Some(question.value), known.base_oid);
                self.push(match is {
                    Is::Null => " is null",
                    Is::True => " is true",
                    Is::False => " is false",
                    Is::Unknown => " is unknown",
                });
            }
        }
        self.push(")");
    }

    fn one(&mut self, question: &Question<'a>, operand: Option<&'a [u8]>, known: &Resolved) {
        self.parameter(Some(question.value), known.base_oid);
        if let Some(collation) = question.collation {
            self.push(" collate ");
            self.push(collation);
        }
        self.push(" ");
        self.push(&known.operator);
        self.push(" ");
        self.parameter(operand, known.right_oid);
    }

    pub(super) async fn query_one(
        &self,
        client: &Client,
    ) -> Result<tokio_postgres::Row, tokio_postgres::Error> {
        let parameters: Vec<(&(dyn ToSql + Sync), Type)> = self
            .parameters
            .iter()
            .map(|(value, name)| -> (&(dyn ToSql + Sync), Type) { (value, name.clone()) })
            .collect();
        client.query_typed_one(&self.text, &parameters).await
    }
}

/// A parameter sent as text, whatever its type: its input function reads it.
#[derive(Debug)]
struct Text<'a>(Option<&'a [u8]>);

impl ToSql for Text<'_> {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        let Some(text) = self.0 else { return Ok(IsNull::Yes) };
        out.extend_from_slice(text);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    tokio_postgres::types::to_sql_checked!();
}
