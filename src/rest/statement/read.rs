//! Reading: a `select` tree, resolved against the catalog, as one statement.

use super::{Count, Form};
use crate::rest::Problem;
use crate::rest::request::Query;
use crate::rest::schema::{Relation, Schema};
use crate::rest::sql::{Sql, Statement};

/// What is to be read.
#[derive(Debug, Clone, Copy)]
pub struct Reading<'a> {
    /// The names.
    pub schema: &'a Schema,
    /// The target.
    pub relation: &'a Relation,
    /// What of it.
    pub query: &'a Query,
    /// In which form.
    pub form: Form,
    /// Whether all rows are counted, and how.
    pub count: Option<Count>,
    /// Rows an answer may have; none is unlimited.
    pub rows_max: Option<u64>,
}

/// The statement that reads.
///
/// # Errors
/// `42703` for unknown columns, `PGRST200` and `PGRST201` for relationships, `PGRST108` for filters on what is
/// not embedded, and what `rest.md` says of each.
pub fn read(reading: &Reading<'_>) -> Result<Statement, Problem> {
    let _ = reading;
    todo!()
}

/// Where the rows come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source<'a> {
    /// The relation itself.
    Relation,
    /// Something that a `with` in front gives this name, with the relation's columns.
    Named(&'a str),
}

/// A `select` tree with every name resolved: also what a write returns, and what is made of the
/// rows of a function.
#[derive(Debug)]
pub struct Selection<'a> {
    relation: &'a Relation,
}

impl<'a> Selection<'a> {
    /// Looks all names up.
    ///
    /// # Errors
    /// As [`read`].
    pub fn resolve(
        schema: &'a Schema,
        relation: &'a Relation,
        query: &'a Query,
        rows_max: Option<u64>,
    ) -> Result<Self, Problem> {
        let _ = (schema, query, rows_max);
        Ok(Self { relation })
    }

    /// Columns of the relation that it reads, in attribute order: what `returning` must give.
    pub fn columns(&self) -> Vec<&'a str> {
        self.relation.columns.iter().map(|column| &*column.name).collect()
    }

    /// Writes `select <list> from <source> <joins> where … order by … limit … offset …`. With
    /// `is_filtered` off, the target's own filters are left out: a write has applied them.
    pub fn render(&self, source: Source<'_>, is_filtered: bool, sql: &mut Sql) {
        let _ = (source, is_filtered, sql);
        todo!()
    }
}

/// Writes the condition of the target's own filters, `true` without any: for `update … where`.
///
/// # Errors
/// As [`read`].
pub fn condition(relation: &Relation, query: &Query, sql: &mut Sql) -> Result<(), Problem> {
    let _ = (relation, query, sql);
    todo!()
}
