//! Writing: insert, upsert, update, delete.

use super::{Count, Form};
use crate::rest::Problem;
use crate::rest::request::{Body, Missing, Query, Resolution};
use crate::rest::schema::{Relation, Schema};
use crate::rest::sql::Statement;

/// What is to be written.
#[derive(Debug, Clone, Copy)]
pub struct Writing<'a> {
    /// The names.
    pub schema: &'a Schema,
    /// The target.
    pub relation: &'a Relation,
    /// Which rows, which columns, what is returned.
    pub query: &'a Query,
    /// What is done.
    pub action: Action<'a>,
    /// In which form rows are returned.
    pub form: Form,
    /// Whether affected rows are counted.
    pub count: Option<Count>,
    /// Whether the place of the new row is wanted.
    pub wants_location: bool,
}

/// What is done.
#[derive(Debug, Clone, Copy)]
pub enum Action<'a> {
    /// `POST`
    Insert {
        /// The rows.
        body: &'a Body,
        /// About keys that are missing.
        missing: Missing,
        /// About rows that are there.
        resolution: Option<Resolution>,
    },
    /// `PUT`: one row, named by its primary key.
    Put {
        /// The row.
        body: &'a Body,
    },
    /// `PATCH`
    Update {
        /// The new values.
        body: &'a Body,
    },
    /// `DELETE`
    Delete,
}

/// The statement that writes.
///
/// # Errors
/// `PGRST204` for unknown columns, and what `rest.md` D3 says.
pub fn write(writing: &Writing<'_>) -> Result<Statement, Problem> {
    let _ = writing;
    todo!()
}
