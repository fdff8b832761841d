//! What is asked, with the names it may use → one SQL statement. Pure.
//!
//! In:     a [`Query`](super::request::Query), the [`Schema`](super::schema::Schema).
//! Out:    a [`Statement`](super::sql::Statement) whose one row has the columns of [`Answer`].
//! Never:  more than one statement; a name that is not the catalog's.

pub mod call;
pub mod read;
pub mod write;

use serde::{Deserialize, Serialize};

/// The one row that every statement of this module returns, all columns as text, in this order:
/// `body, page_total, total, inserted, location`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Answer {
    /// The JSON text of the answer, as Postgres prints it; none when it was not asked for.
    pub body: Option<String>,
    /// Rows in the answer, or affected.
    pub page_total: u64,
    /// Rows there are without limit and offset, when they were asked for.
    pub total: Option<u64>,
    /// Of an upsert: how many rows were new.
    pub inserted: Option<u64>,
    /// Of an insert that wants it: the query string that names the new row, as `id=eq.1`.
    pub location: Option<String>,
}

/// In which form the body is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Form {
    /// An array of rows, or what a function returns.
    #[default]
    Array,
    /// The row alone. That there is exactly one is for whoever runs the statement to find out.
    Object,
    /// Comma-separated values with a header line.
    Csv,
    /// No body.
    None,
}

/// How rows are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Count {
    /// By counting.
    Exact,
    /// As the planner guesses.
    Planned,
    /// By counting up to the row limit of answers, beyond that as the planner guesses.
    Estimated,
}
