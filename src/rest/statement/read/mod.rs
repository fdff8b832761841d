//! Reading: a `select` tree, resolved against the catalog, as one statement.
//!
//! In:     a [`Query`], the relation it is about, the [`Schema`].
//! Out:    a statement that answers it; parts of it for writes and calls.
//! Never:  a name that the catalog does not have; a value outside parameters. The text depends on
//!         the shape of what is asked alone, so that a prepared statement serves many requests.
//!
//! The way: `resolve` looks names up (with `field`, `relationship`, `filter` and `cast`), `render`
//! writes the SQL (with `related` for what is embedded).
//!
//! Counts. [`Count::Exact`] is in the statement, as `total`. For [`Count::Planned`] there is no
//! `total`: run what [`estimate`] gives and let [`planned_rows`] read it. For [`Count::Estimated`]
//! `total` is counted up to one more than `rows_max`: up to `rows_max` it is exact, above it the
//! answer is the larger of it and the estimate.

mod cast;
mod field;
mod filter;
mod related;
mod relationship;
mod render;
mod resolve;
pub(super) mod similar;
#[cfg(test)]
mod tests;

pub(in crate::rest) use self::similar::closest;

use self::filter::{Filter, Scope};
use self::render::{Alias, Renderer};
use self::resolve::{By, Node, Output, Window};
use super::{Count, Form};
use crate::rest::Problem;
use crate::rest::request::Query;
use crate::rest::rows::is_certain;
use crate::rest::schema::{Relation, Schema};
use crate::rest::sql::{PARAMETERS_MAX, Sql, Statement};

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

/// What the target of a statement is called in it: `update "public"."stories" as t0 … where` and
/// what [`condition`] writes.
pub const TARGET: &str = "t0";

/// The statement that reads.
///
/// # Errors
/// `42703` for unknown columns, `PGRST200` and `PGRST201` for relationships, `PGRST108` for filters on what is
/// not embedded, and what `rest.md` says of each.
pub fn read(reading: &Reading<'_>) -> Result<Statement, Problem> {
    let Reading { schema, relation, query, form, count, rows_max } = *reading;
    let selection = Selection::resolve(schema, relation, query, rows_max)?;
    let mut sql = Sql::new();
    sql.push("select ");
    body(form, "s", &mut sql)?;
    sql.push(" as body, pg_catalog.count(*)::pg_catalog.text as page_total, ");
    selection.total(count, rows_max, Source::Relation, &mut sql);
    sql.push(
        " as total, null::pg_catalog.text as inserted, null::pg_catalog.text as location from (",
    );
    selection.render(Source::Relation, true, &mut sql);
    sql.push(") as s");
    finish(sql)
}

/// The statement whose rows are those of the answer, where their JSON can be made of them as they
/// come; none where Postgres must make it, or has to count.
///
/// # Errors
/// As [`read`].
pub fn rows(reading: &Reading<'_>) -> Result<Option<Statement>, Problem> {
    let Reading { schema, relation, query, form, count, rows_max } = *reading;
    let counts = matches!(count, Some(Count::Exact | Count::Estimated));
    if counts || !matches!(form, Form::Array | Form::Object) {
        return Ok(None);
    }
    let selection = Selection::resolve(schema, relation, query, rows_max)?;
    let is_certain = selection.node.outputs.iter().all(|output| match output {
        Output::All => relation.columns.iter().all(|column| is_certain(column.type_oid)),
        Output::Field { place, cast, .. } => {
            cast.is_none() && place.is_whole() && is_certain(place.column.type_oid)
        }
        Output::Embedded(_) => false,
    });
    if !is_certain {
        return Ok(None);
    }
    let mut sql = Sql::new();
    selection.render(Source::Relation, true, &mut sql);
    finish(sql).map(Some)
}

/// The statement that tells how many rows the planner expects without limit and offset.
///
/// # Errors
/// As [`read`].
pub fn estimate(reading: &Reading<'_>) -> Result<Statement, Problem> {
    let Reading { schema, relation, query, rows_max, .. } = *reading;
    let selection = Selection::resolve(schema, relation, query, rows_max)?;
    let mut sql = Sql::new();
    sql.push("explain (format json) ");
    Renderer::new(&mut sql).matching(&selection.node, Source::Relation);
    finish(sql)
}

/// The rows expected, from the one column of the one row of [`estimate`].
pub fn planned_rows(plan: &str) -> Option<u64> {
    let plan: serde_json::Value = serde_json::from_str(plan).ok()?;
    plan.get(0)?.get("Plan")?.get("Plan Rows")?.as_u64()
}

/// Writes the expression of the answer's `body`, over rows that a `from` calls `rows`.
///
/// # Errors
/// `PGRST127` for a form that is not built.
pub(super) fn body(form: Form, rows: &str, sql: &mut Sql) -> Result<(), Problem> {
    match form {
        Form::Array => {
            sql.push("coalesce(pg_catalog.json_agg(").push(rows).push(".*), '[]')");
            sql.push("::pg_catalog.text");
        }
        // Not json_agg(…) -> 0, which would parse all of it again.
        Form::Object => {
            sql.push("(pg_catalog.array_agg(pg_catalog.row_to_json(").push(rows).push(".*)))[1]");
            sql.push("::pg_catalog.text");
        }
        Form::Csv => return Err(Problem::not_implemented("text/csv")),
        Form::None => {
            sql.push("null::pg_catalog.text");
        }
    }
    Ok(())
}

/// The statement, if the protocol can carry it.
///
/// # Errors
/// 400 `PGRST100` for more parameters than it can count.
pub(super) fn finish(sql: Sql) -> Result<Statement, Problem> {
    if sql.parameters() > PARAMETERS_MAX {
        let expected = format!("at most {PARAMETERS_MAX} values");
        return Err(Problem::query("query string", expected));
    }
    Ok(sql.finish())
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
    node: Node<'a>,
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
        Ok(Self { node: resolve::resolve(schema, relation, query, rows_max)? })
    }

    /// Columns of the relation that it reads, in attribute order: what `returning` must give. Those
    /// that are only in the target's own filters are not among them.
    pub fn columns(&self) -> Vec<&'a str> {
        let node = &self.node;
        let mut read: Vec<&str> = Vec::new();
        for output in &node.outputs {
            match output {
                Output::All => {
                    read.extend(node.relation.columns.iter().map(|column| &*column.name));
                }
                Output::Field { place, .. } => read.push(&place.column.name),
                Output::Embedded(_) => {}
            }
        }
        for term in &node.orders {
            match &term.by {
                By::Own(place) => read.push(&place.column.name),
                By::Related { .. } => {}
            }
        }
        for embedding in &node.embeddings {
            read.extend(embedding.link.here.iter().map(|name| &**name));
        }
        let columns = node.relation.columns.iter().map(|column| &*column.name);
        columns.filter(|name| read.contains(name)).collect()
    }

    /// Writes `select <list> from <source> <joins> where … order by … limit … offset …`. With
    /// `is_filtered` off, the target's own filters are left out: a write has applied them.
    pub fn render(&self, source: Source<'_>, is_filtered: bool, sql: &mut Sql) {
        Renderer::new(sql).target(&self.node, source, is_filtered);
    }

    /// Writes the answer's `total`, within a `select` that aggregates the rows of
    /// [`Selection::render`], filtered, from the same source.
    pub(super) fn total(
        &self,
        count: Option<Count>,
        rows_max: Option<u64>,
        source: Source<'_>,
        sql: &mut Sql,
    ) {
        let most = match count {
            Some(Count::Exact) => None,
            Some(Count::Estimated) => rows_max.map(|rows| rows.saturating_add(1)),
            Some(Count::Planned) | None => {
                sql.push("null::pg_catalog.text");
                return;
            }
        };
        Renderer::new(sql).total(&self.node, source, most);
    }
}

/// Writes the condition of the target's own filters, `true` without any: for `update … where`. The
/// statement must call the target [`TARGET`].
///
/// # Errors
/// As [`read`].
pub fn condition(relation: &Relation, query: &Query, sql: &mut Sql) -> Result<(), Problem> {
    let scope = Scope { schema: None, relation, embeddings: &[] };
    let own = query.filters.iter().filter(|at| at.path.is_empty());
    let filters = own.map(|at| Filter::resolve(scope, &at.what)).collect::<Result<_, _>>()?;
    let node = Node {
        relation,
        outputs: Vec::new(),
        filters,
        orders: Vec::new(),
        window: Window::default(),
        embeddings: Vec::new(),
    };
    Renderer::new(sql).filters(&node.filters, &node, Alias::TARGET);
    Ok(())
}
