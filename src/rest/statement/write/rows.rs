//! A body → the rows that are written, as Postgres reads them from JSON.
//!
//! In:     a body, `columns=`.
//! Out:    [`Rows`]: catalog columns, and SQL that makes rows of them out of one parameter.
//! Never:  a value read here: Postgres sees the client's own text, so that no number loses a digit.

use axum::http::StatusCode;
use bytes::Bytes;

use crate::rest::Problem;
use crate::rest::request::{Body, Missing, Query};
use crate::rest::schema::{Column, Relation};
use crate::rest::sql::Sql;

/// Rows of a body.
#[derive(Debug)]
pub(super) struct Rows<'a> {
    /// What is written, each once.
    columns: Vec<&'a Column>,
    /// What is meant to be written and no row has: it gets its default.
    left: Vec<&'a Column>,
    text: &'a Bytes,
    shape: Shape,
    /// Whether a column that a row does not have gets its default, row by row.
    fills: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    One,
    Many(usize),
}

impl<'a> Rows<'a> {
    /// Looks the columns up: those of `columns=`, or the body's keys.
    ///
    /// # Errors
    /// 400 `PGRST102` when the body has no rows or rows of different shapes, 400 `PGRST204` for an
    /// unknown column.
    pub(super) fn resolve(
        relation: &'a Relation,
        query: &Query,
        body: &'a Body,
        missing: Missing,
    ) -> Result<Self, Problem> {
        let chosen = query.columns.as_deref().filter(|columns| !columns.is_empty());
        let (text, keys, shape, is_uniform) = match body {
            Body::Empty => return Err(Problem::body("Empty or invalid json")),
            Body::Other(_) => return Err(Problem::body("All object keys must match")),
            Body::Object { text, keys } => (text, keys, Shape::One, true),
            Body::Array { text, keys, len, is_uniform } => {
                (text, keys, Shape::Many(*len), *is_uniform)
            }
        };
        if chosen.is_none() && !is_uniform {
            return Err(Problem::body("All object keys must match"));
        }
        let mut columns: Vec<&Column> = Vec::new();
        for name in chosen.unwrap_or(keys) {
            let column = relation.column(name).ok_or_else(|| unknown_column(relation, name))?;
            if !columns.iter().any(|known| known.attnum == column.attnum) {
                columns.push(column);
            }
        }
        let fills = missing == Missing::Default;
        // What no row has is left to Postgres.
        let (columns, left): (Vec<_>, Vec<_>) = columns
            .into_iter()
            .partition(|column| !fills || keys.iter().any(|key| **key == *column.name));
        Ok(Self { columns, left, text, shape, fills: fills && !is_uniform })
    }

    /// What is written, each column once.
    pub(super) fn columns(&self) -> &[&'a Column] {
        &self.columns
    }

    /// What a row that is there already is set to: what is written, and defaults that are meant to
    /// be.
    pub(super) fn merged(&self) -> impl Iterator<Item = &'a Column> {
        let left = self.left.iter().copied().filter(|column| !column.generated);
        self.columns.iter().copied().chain(left)
    }

    /// How many rows there are.
    pub(super) fn len(&self) -> usize {
        match self.shape {
            Shape::One => 1,
            Shape::Many(len) => len,
        }
    }

    /// Whether a column is written.
    pub(super) fn has(&self, column: &str) -> bool {
        self.columns.iter().any(|known| *known.name == *column)
    }

    /// Writes `"a", "b"`.
    pub(super) fn names(&self, sql: &mut Sql) {
        for (place, column) in self.columns.iter().enumerate() {
            sql.push(if place == 0 { "" } else { ", " }).name(&column.name);
        }
    }

    /// Writes `select … from …`, one row for each of the body's, its columns in order. A column can
    /// be named behind it as `r."a"`, unless defaults are filled in.
    pub(super) fn select(&self, sql: &mut Sql) {
        if self.columns.is_empty() {
            // Rows without a column: every column gets its default.
            sql.push("select from pg_catalog.generate_series(1, ").value(self.len().to_string());
            sql.push("::pg_catalog.int4)");
        } else if self.fills && self.columns.iter().any(|column| default(column).is_some()) {
            self.select_filled(sql);
        } else {
            sql.push("select ");
            for (place, column) in self.columns.iter().enumerate() {
                sql.push(if place == 0 { "r." } else { ", r." }).name(&column.name);
            }
            let function = match self.shape {
                Shape::One => "json_to_record",
                Shape::Many(_) => "json_to_recordset",
            };
            sql.push(" from pg_catalog.").push(function).push("(").value(self.text.clone());
            sql.push("::pg_catalog.json) as r(");
            define(self.columns.iter().copied(), sql);
            sql.push(")");
        }
    }

    /// As [`Self::select`], where a default is evaluated for each row that needs it, and only then.
    fn select_filled(&self, sql: &mut Sql) {
        let plain = || self.columns.iter().copied().filter(|column| default(column).is_none());
        sql.push("select ");
        for (place, column) in self.columns.iter().enumerate() {
            sql.push(if place == 0 { "" } else { ", " });
            let Some(default) = default(column) else {
                sql.push("r.").name(&column.name);
                continue;
            };
            // Read alone: a domain may refuse the NULL that a missing key would be.
            sql.push("case when k.keys operator(pg_catalog.?) ");
            sql.value(column.name.to_string()).push("::pg_catalog.text then (select x.");
            sql.name(&column.name).push(" from pg_catalog.json_to_record(e.o) as x(");
            define([*column], sql);
            sql.push(")) else (").push(default).push(")::").push(&column.type_sql).push(" end");
        }
        sql.push(" from pg_catalog.json_array_elements(").value(self.text.clone());
        sql.push("::pg_catalog.json) as e(o), lateral (select e.o::pg_catalog.jsonb) as k(keys)");
        if plain().next().is_some() {
            sql.push(", lateral pg_catalog.json_to_record(e.o) as r(");
            define(plain(), sql);
            sql.push(")");
        }
    }
}

/// The default that a row without this column gets. What is generated has an expression too, but
/// may not be written at all, as Postgres says.
fn default(column: &Column) -> Option<&str> {
    column.default.as_deref().filter(|_| !column.generated)
}

/// Writes `"a" integer, "b" text`.
fn define<'a>(columns: impl IntoIterator<Item = &'a Column>, sql: &mut Sql) {
    for (place, column) in columns.into_iter().enumerate() {
        sql.push(if place == 0 { "" } else { ", " });
        sql.name(&column.name).push(" ").push(&column.type_sql);
    }
}

fn unknown_column(relation: &Relation, name: &str) -> Problem {
    let relation = &relation.name;
    let message = format!("Could not find the '{name}' column of '{relation}' in the schema cache");
    Problem::new(StatusCode::BAD_REQUEST, "PGRST204", message)
}
