//! Writing: insert, upsert, update, delete.
//!
//! In:     what is to be written, its names not looked up yet.
//! Out:    `with source as (insert, update or delete … returning …) select … from …`.
//! Never:  a column in `returning` that the answer does not read: each needs the right to read it,
//!         and makes the policies for reading count; a row refused here, where Postgres can.
//! Source: spec `rest.md` D3, docs.postgrest.org/en/v12/references/api, section "Tables and Views"

mod rows;
#[cfg(test)]
mod tests;

use axum::http::StatusCode;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use self::rows::Rows;
use super::read::{self, Selection, Source, TARGET, condition};
use super::{Count, Form};
use crate::rest::Problem;
use crate::rest::request::{
    At, Body, Condition, Item, Missing, Operator, Query, Range, Resolution, Test,
};
use crate::rest::schema::{Relation, Schema};
use crate::rest::sql::{Sql, Statement};

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
    /// `PUT`: one row, named by its primary key. No row in the answer means that the body's is
    /// another: see [`put_mismatch`].
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

/// How many rows are merged in one statement, as a setting of its transaction: `returning` cannot
/// tell a new row from an updated one without the right to read system columns.
const MERGED: &str = "walcast.rest_merged";

/// What a statement does, as far as its answer depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    /// There was nothing to do.
    Nothing,
    /// Rows were updated or deleted.
    Changed,
    /// All rows are new.
    Inserted,
    /// Rows are new, or were there.
    Merged,
}

/// The statement that writes.
///
/// Its `page_total` counts what was affected, except that it counts what is in the body where that
/// is to be exactly one row; `total` is the same, when it was asked for; `inserted` is none for an
/// update or delete. `location` is there for exactly one row of a relation with a primary key.
///
/// # Errors
/// `PGRST204` for unknown columns, and what `rest.md` D3 says.
pub fn write(writing: &Writing<'_>) -> Result<Statement, Problem> {
    let Writing { relation, query, .. } = *writing;
    // A limit says nothing about what a write returns.
    let mut returned = query.clone();
    returned.ranges.retain(|range| !range.path.is_empty());
    let selection = Selection::resolve(writing.schema, relation, &returned, None)?;

    let mut sql = Sql::new();
    sql.push("with source as (");
    let done = match writing.action {
        Action::Insert { body, missing, resolution } => {
            let rows = Rows::resolve(relation, query, body, missing)?;
            insert(writing, &rows, resolution, &mut sql)?
        }
        Action::Put { body } => put(writing, body, &mut sql)?,
        Action::Update { body } => update(writing, body, &mut sql)?,
        Action::Delete => {
            refuse_limit(query)?;
            sql.push("delete from ").qualified(&relation.schema, &relation.name);
            sql.push(" as ").push(TARGET).push(" where ");
            condition(relation, query, &mut sql)?;
            Done::Changed
        }
    };
    if done == Done::Nothing {
        return Ok(nothing(writing));
    }
    returning(writing, &selection, &mut sql);
    sql.push(")");
    answer(writing, &selection, done, &mut sql)?;
    read::finish(sql)
}

/// 400 `PGRST115`: a `PUT` whose body names another row than its URL. Nothing was written.
pub fn put_mismatch() -> Problem {
    let message = "Payload values do not match URL in primary key column(s)";
    Problem::new(StatusCode::BAD_REQUEST, "PGRST115", message)
}

/// Writes the insert of `POST`.
fn insert(
    writing: &Writing<'_>,
    rows: &Rows<'_>,
    resolution: Option<Resolution>,
    sql: &mut Sql,
) -> Result<Done, Problem> {
    let relation = writing.relation;
    let conflict = match &writing.query.on_conflict {
        Some(columns) if !columns.is_empty() => conflict_columns(relation, columns)?,
        _ => relation.primary_key.iter().map(|column| &**column).collect(),
    };
    // Without a key no row can be there already.
    let resolution = resolution.filter(|_| !conflict.is_empty());
    if rows.len() == 0 {
        return Ok(Done::Nothing);
    }
    insert_into(relation, rows, sql);
    if let Some(resolution) = resolution {
        on_conflict(&conflict, rows, resolution, sql);
    }
    Ok(match resolution {
        Some(Resolution::MergeDuplicates) => Done::Merged,
        Some(Resolution::IgnoreDuplicates) | None => Done::Inserted,
    })
}

/// Writes the upsert of `PUT`.
fn put(writing: &Writing<'_>, body: &Body, sql: &mut Sql) -> Result<Done, Problem> {
    let Writing { relation, query, .. } = *writing;
    if root_range(query).is_some() {
        let message = "limit/offset querystring parameters are not allowed for PUT";
        return Err(Problem::new(StatusCode::BAD_REQUEST, "PGRST114", message));
    }
    let key = key_filters(relation, query).ok_or_else(|| {
        let message = "Filters must include all and only primary key columns with 'eq' operators";
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, "PGRST105", message)
    })?;
    let rows = Rows::resolve(relation, query, body, Missing::Null)?;
    if rows.len() != 1 || !key.iter().all(|(column, _)| rows.has(column)) {
        return Err(put_mismatch());
    }
    insert_into(relation, &rows, sql);
    for (place, (column, value)) in key.iter().enumerate() {
        sql.push(if place == 0 { " where r." } else { " and r." }).name(column).push(" = ");
        sql.value(value.to_string());
    }
    let columns: Vec<&str> = relation.primary_key.iter().map(|column| &**column).collect();
    on_conflict(&columns, &rows, Resolution::MergeDuplicates, sql);
    Ok(Done::Merged)
}

/// Writes the update of `PATCH`.
fn update(writing: &Writing<'_>, body: &Body, sql: &mut Sql) -> Result<Done, Problem> {
    let Writing { relation, query, .. } = *writing;
    refuse_limit(query)?;
    let rows = Rows::resolve(relation, query, body, Missing::Null)?;
    if rows.len() > 1 {
        return Err(Problem::body("An update takes one object"));
    }
    if rows.len() == 0 || rows.columns().is_empty() {
        // The filters are checked like those of any other update.
        condition(relation, query, sql)?;
        return Ok(Done::Nothing);
    }
    sql.push("update ").qualified(&relation.schema, &relation.name);
    sql.push(" as ").push(TARGET).push(" set (");
    rows.names(sql);
    // A sub-select, since a name in the condition is then the relation's for sure.
    sql.push(") = (");
    rows.select(sql);
    sql.push(") where ");
    condition(relation, query, sql)?;
    Ok(Done::Changed)
}

/// Writes `insert into … select … from …`.
fn insert_into(relation: &Relation, rows: &Rows<'_>, sql: &mut Sql) {
    // The alias: a relation may be called `excluded`.
    sql.push("insert into ").qualified(&relation.schema, &relation.name);
    sql.push(" as ").push(TARGET).push(" ");
    if !rows.columns().is_empty() {
        sql.push("(");
        rows.names(sql);
        sql.push(") ");
    }
    rows.select(sql);
}

/// Writes `on conflict (…) do …`.
fn on_conflict(columns: &[&str], rows: &Rows<'_>, resolution: Resolution, sql: &mut Sql) {
    sql.push(" on conflict (");
    for (place, column) in columns.iter().enumerate() {
        sql.push(if place == 0 { "" } else { ", " }).name(column);
    }
    sql.push(") do ");
    if resolution == Resolution::IgnoreDuplicates || rows.merged().next().is_none() {
        sql.push("nothing");
        return;
    }
    sql.push("update set ");
    for (place, column) in rows.merged().enumerate() {
        sql.push(if place == 0 { "" } else { ", " }).name(&column.name);
        sql.push(" = excluded.").name(&column.name);
    }
    // Asked once for each row that was there; always true.
    sql.push(" where pg_catalog.set_config('").push(MERGED).push("', (");
    merged(sql);
    sql.push(" + 1)::pg_catalog.text, true) is not null");
}

/// Writes how many rows were merged so far. After a transaction that set it, the setting is empty.
fn merged(sql: &mut Sql) {
    sql.push("coalesce(nullif(pg_catalog.current_setting('").push(MERGED);
    sql.push("', true), ''), '0')::pg_catalog.int8");
}

/// The columns of `on_conflict=`, as the catalog knows them.
fn conflict_columns<'a>(relation: &'a Relation, names: &[String]) -> Result<Vec<&'a str>, Problem> {
    let known = |name: &String| match relation.column(name) {
        Some(column) => Ok(&*column.name),
        // As Postgres says it.
        None => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "42703",
            format!("column \"{name}\" does not exist"),
        )),
    };
    names.iter().map(known).collect()
}

/// The filters of a `PUT`: each column of the primary key, and nothing else, with `eq`.
fn key_filters<'a>(relation: &'a Relation, query: &'a Query) -> Option<Vec<(&'a str, &'a str)>> {
    let mut filters = Vec::new();
    for At { path, what } in &query.filters {
        if !path.is_empty() {
            continue;
        }
        let Condition::Test { field, test } = what else { return None };
        let Test::Compare { operator: Operator::Eq, quantifier: None, value } = test else {
            return None;
        };
        let key = relation.primary_key.iter().find(|key| ***key == *field.name)?;
        if !field.path.is_empty() {
            return None;
        }
        filters.push((&**key, value.as_str()));
    }
    let is_filtered = |key: &str| filters.iter().any(|(column, _)| *column == key);
    let is_whole = relation.primary_key.iter().all(|key| is_filtered(key));
    (is_whole && !filters.is_empty()).then_some(filters)
}

/// The range of the target's own rows.
fn root_range(query: &Query) -> Option<&Range> {
    let root = query.ranges.iter().find(|range| range.path.is_empty());
    root.map(|range| &range.what).filter(|range| **range != Range::default())
}

fn refuse_limit(query: &Query) -> Result<(), Problem> {
    match root_range(query) {
        Some(_) => Err(Problem::not_implemented("limit and offset on updates and deletes")),
        None => Ok(()),
    }
}

/// Writes ` returning …`.
fn returning(writing: &Writing<'_>, selection: &Selection<'_>, sql: &mut Sql) {
    let mut columns = match writing.form {
        Form::None => Vec::new(),
        Form::Array | Form::Object | Form::Csv => selection.columns(),
    };
    if writing.wants_location {
        for key in &writing.relation.primary_key {
            if !columns.contains(&&**key) {
                columns.push(key);
            }
        }
    }
    sql.push(" returning ");
    if columns.is_empty() {
        // Takes no right to read.
        sql.push("1");
    }
    for (place, column) in columns.iter().enumerate() {
        sql.push(if place == 0 { "" } else { ", " }).name(column);
    }
}

/// Writes the columns of the answer, and from what.
fn answer(
    writing: &Writing<'_>,
    selection: &Selection<'_>,
    done: Done,
    sql: &mut Sql,
) -> Result<(), Problem> {
    // With `!inner` embedded rows, the body can have fewer rows than were affected.
    let is_page_affected = match writing.form {
        Form::None | Form::Object => true,
        Form::Array | Form::Csv => {
            !writing.query.select.iter().any(|item| matches!(item, Item::Embed(_)))
        }
    };
    let affected = if is_page_affected {
        "pg_catalog.count(*)"
    } else {
        "(select pg_catalog.count(*) from source)"
    };
    sql.push(" select ");
    read::body(writing.form, "s", sql)?;
    sql.push(" as body, ").push(affected).push("::pg_catalog.text as page_total, ");
    match writing.count {
        Some(Count::Exact | Count::Planned | Count::Estimated) => sql.push(affected),
        None => sql.push("null"),
    };
    sql.push("::pg_catalog.text as total, ");
    match done {
        Done::Nothing | Done::Changed => {
            sql.push("null");
        }
        Done::Inserted => {
            sql.push(affected);
        }
        Done::Merged => {
            // In this order within one select: all rows must have come before the setting is read.
            sql.push("(select pg_catalog.count(*) - ");
            merged(sql);
            sql.push(" from source)");
        }
    }
    sql.push("::pg_catalog.text as inserted, ");
    location(writing, sql);
    sql.push("::pg_catalog.text as location from ");
    if writing.form == Form::None {
        sql.push("source");
    } else {
        sql.push("(");
        selection.render(Source::Named("source"), false, sql);
        sql.push(") as s");
    }
    Ok(())
}

/// What need not be escaped in a query string.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Writes the query string that names the one new row.
fn location(writing: &Writing<'_>, sql: &mut Sql) {
    let keys = &writing.relation.primary_key;
    if !writing.wants_location || keys.is_empty() {
        sql.push("null");
        return;
    }
    sql.push("(select case when pg_catalog.count(*) = 1 then pg_catalog.min(");
    for (place, key) in keys.iter().enumerate() {
        let separator = if place == 0 { "" } else { "&" };
        let name = utf8_percent_encode(key, UNRESERVED);
        sql.push(if place == 0 { "" } else { " || " });
        sql.value(format!("{separator}{name}=")).push("::pg_catalog.text || coalesce('eq.' || ");
        // Character by character, as UTF-8.
        sql.push("(select pg_catalog.string_agg(case when c ~ '^[A-Za-z0-9_.~-]?$' then c else ");
        sql.push("pg_catalog.upper(pg_catalog.regexp_replace(pg_catalog.encode(");
        sql.push("pg_catalog.convert_to(c, 'UTF8'), 'hex'), '(..)', E'%\\\\1', 'g')) end, '' ");
        sql.push("order by n) from pg_catalog.regexp_split_to_table(source.").name(key);
        sql.push("::pg_catalog.text, '') with ordinality as p(c, n)), 'is.null')");
    }
    sql.push(") end from source)");
}

/// The answer about no rows, from no relation.
fn nothing(writing: &Writing<'_>) -> Statement {
    let body = match writing.form {
        Form::Array => "'[]'",
        Form::Object | Form::Csv | Form::None => "null",
    };
    let total = if writing.count.is_some() { "'0'" } else { "null" };
    let inserted = match writing.action {
        Action::Insert { .. } | Action::Put { .. } => "'0'",
        Action::Update { .. } | Action::Delete => "null",
    };
    let mut sql = Sql::new();
    for (value, name) in [(body, "body"), ("'0'", "page_total"), (total, "total")] {
        sql.push(if name == "body" { "select " } else { ", " });
        sql.push(value).push("::pg_catalog.text as ").push(name);
    }
    sql.push(", ").push(inserted).push("::pg_catalog.text as inserted");
    sql.push(", null::pg_catalog.text as location");
    sql.finish()
}
