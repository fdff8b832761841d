//! Conditions with every name looked up, and single comparisons as SQL.
//!
//! In:     [`Condition`]s of one relation, and what is embedded in it.
//! Out:    [`Filter`]; SQL of one comparison, a parameter for each value.
//! Never:  a value in the text. A parameter has the type that a quoted literal would have there.

use axum::http::StatusCode;

use super::field::Place;
use super::render::Alias;
use crate::rest::Problem;
use crate::rest::request::{Condition, Is, Operator, Quantifier, Search, Test};
use crate::rest::schema::{Relation, Schema};
use crate::rest::sql::{Sql, array_literal};

/// A tree of tests whose names there are.
#[derive(Debug)]
pub(super) enum Filter<'a> {
    /// All hold.
    All(Vec<Filter<'a>>),
    /// One holds.
    Any(Vec<Filter<'a>>),
    /// It does not hold.
    Not(Box<Filter<'a>>),
    /// One comparison.
    Compare(Place<'a>, &'a Test),
    /// Whether there are related rows, or that there are none.
    Related {
        /// Which of the embeddings.
        embedding: usize,
        /// There are.
        is_present: bool,
    },
}

/// Where a condition's names are looked up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope<'a, 'b> {
    /// For functions that compute a column.
    pub(super) schema: Option<&'a Schema>,
    /// Its columns.
    pub(super) relation: &'a Relation,
    /// Names of what is embedded in it.
    pub(super) embeddings: &'b [&'a str],
}

impl<'a> Filter<'a> {
    /// Looks all names up.
    ///
    /// # Errors
    /// `42703`; `PGRST120` when an embedding is compared with anything but NULL.
    pub(super) fn resolve(scope: Scope<'a, '_>, condition: &'a Condition) -> Result<Self, Problem> {
        let all = |conditions: &'a [Condition]| -> Result<Vec<Self>, Problem> {
            conditions.iter().map(|condition| Self::resolve(scope, condition)).collect()
        };
        Ok(match condition {
            Condition::And(conditions) => Self::All(all(conditions)?),
            Condition::Or(conditions) => Self::Any(all(conditions)?),
            Condition::Not(condition) => Self::Not(Box::new(Self::resolve(scope, condition)?)),
            Condition::Test { field, test } => {
                let embedding = scope.embeddings.iter().position(|name| *name == field.name);
                let embedding = embedding.filter(|_| field.path.is_empty());
                match (embedding, test) {
                    (Some(embedding), Test::Is(Is::Null)) => {
                        Self::Related { embedding, is_present: false }
                    }
                    (Some(embedding), Test::Is(Is::NotNull)) => {
                        Self::Related { embedding, is_present: true }
                    }
                    (Some(_), _) if scope.relation.column(&field.name).is_none() => {
                        return Err(bad_operator(&field.name));
                    }
                    _ => Self::Compare(Place::find(scope.schema, scope.relation, field)?, test),
                }
            }
        })
    }
}

fn bad_operator(target: &str) -> Problem {
    let message = format!("Bad operator on the '{target}' embedded resource");
    Problem::new(StatusCode::BAD_REQUEST, "PGRST120", message)
        .with_details("Only is null or not is null filters are allowed on embedded resources")
}

/// Writes one comparison.
pub(super) fn compare(place: &Place<'_>, test: &Test, alias: Alias, sql: &mut Sql) {
    match test {
        Test::Compare { operator, quantifier, value } => {
            place.render(alias, sql);
            sql.push(" ").push(symbol(*operator)).push(" ");
            match quantifier {
                Some(Quantifier::Any) => sql.push("any (").value(value.clone()).push(")"),
                Some(Quantifier::All) => sql.push("all (").value(value.clone()).push(")"),
                None => sql.value(value.clone()),
            };
        }
        Test::In(values) => {
            place.render(alias, sql);
            sql.push(" = any (").value(array_literal(values)).push(")");
        }
        Test::Is(is) => {
            place.render(alias, sql);
            sql.push(match is {
                Is::Null => " is null",
                Is::NotNull => " is not null",
                Is::True => " is true",
                Is::False => " is false",
                Is::Unknown => " is unknown",
            });
        }
        Test::Search { kind, config, value } => {
            let config = config.as_deref();
            if place.is_tsvector() {
                place.render(alias, sql);
            } else {
                sql.push("pg_catalog.to_tsvector(");
                configuration(config, sql);
                place.render(alias, sql);
                sql.push(")");
            }
            sql.push(" @@ pg_catalog.").push(match kind {
                Search::Query => "to_tsquery(",
                Search::Plain => "plainto_tsquery(",
                Search::Phrase => "phraseto_tsquery(",
                Search::Web => "websearch_to_tsquery(",
            });
            configuration(config, sql);
            sql.value(value.clone()).push("::pg_catalog.text)");
        }
    }
}

/// Writes the text search configuration, when there is one, as a first argument.
fn configuration(config: Option<&str>, sql: &mut Sql) {
    if let Some(config) = config {
        // Digits alone would be an OID, which nobody looks up before it is used.
        let is_number = config.bytes().all(|byte| byte.is_ascii_digit());
        let name = if is_number { format!("\"{config}\"") } else { config.to_owned() };
        sql.value(name).push("::pg_catalog.regconfig, ");
    }
}

/// The SQL operator. Looked up along the search path, as types of extensions need.
const fn symbol(operator: Operator) -> &'static str {
    match operator {
        Operator::Eq => "=",
        Operator::Neq => "<>",
        Operator::Gt => ">",
        Operator::Gte => ">=",
        Operator::Lt => "<",
        Operator::Lte => "<=",
        Operator::Like => "like",
        Operator::ILike => "ilike",
        Operator::Match => "~",
        Operator::IMatch => "~*",
        Operator::IsDistinct => "is distinct from",
        Operator::Contains => "@>",
        Operator::ContainedIn => "<@",
        Operator::Overlaps => "&&",
        Operator::StrictlyLeft => "<<",
        Operator::StrictlyRight => ">>",
        Operator::NotRightOf => "&<",
        Operator::NotLeftOf => "&>",
        Operator::Adjacent => "-|-",
    }
}
