//! Calling a function.

use super::{Count, Form};
use crate::rest::Problem;
use crate::rest::request::{Body, Query};
use crate::rest::schema::{Function, Schema};
use crate::rest::sql::Statement;

/// What a function is called with.
#[derive(Debug, Clone, Copy)]
pub enum Arguments<'a> {
    /// A JSON object: names and values.
    Body(&'a Body),
    /// Pairs of the query string.
    Pairs(&'a [(&'a str, &'a str)]),
}

/// What is to be called.
#[derive(Debug, Clone, Copy)]
pub struct Calling<'a> {
    /// The names.
    pub schema: &'a Schema,
    /// Which one.
    pub function: &'a Function,
    /// With what.
    pub arguments: Arguments<'a>,
    /// What is made of the rows it returns.
    pub query: &'a Query,
    /// In which form.
    pub form: Form,
    /// Whether rows are counted.
    pub count: Option<Count>,
    /// Rows an answer may have.
    pub rows_max: Option<u64>,
}

/// The function of this name that takes arguments of these names.
///
/// # Errors
/// 404 `PGRST202` when there is none, 300 `PGRST203` when several do.
pub fn choose<'a>(
    schema: &'a Schema,
    schema_name: &str,
    name: &str,
    arguments: &[&str],
) -> Result<&'a Function, Problem> {
    let _ = (schema, schema_name, name, arguments);
    todo!()
}

/// The statement that calls.
///
/// # Errors
/// As [`super::read::read`], for what is made of the rows.
pub fn call(calling: &Calling<'_>) -> Result<Statement, Problem> {
    let _ = calling;
    todo!()
}
