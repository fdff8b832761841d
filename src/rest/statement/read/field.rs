//! A column, or something inside one, found in the catalog and written as SQL.
//!
//! In:     a [`Field`] of a request, the relation it is about.
//! Out:    [`Place`]: an expression that is free of the request's text but for parameters.
//! Never:  a name that the relation does not have.

use axum::http::StatusCode;

use super::render::Alias;
use crate::rest::Problem;
use crate::rest::request::{Field, Key, Step};
use crate::rest::schema::{Column, Relation, Schema};
use crate::rest::sql::Sql;

/// A field whose column there is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    /// The column.
    pub(super) column: &'a Column,
    /// Steps into its JSON.
    steps: &'a [Step],
}

impl<'a> Place<'a> {
    /// Looks the column up.
    ///
    /// # Errors
    /// 400 `42703`, in Postgres' own words; `PGRST127` for a computed column.
    pub(super) fn find(
        schema: Option<&Schema>,
        relation: &'a Relation,
        field: &'a Field,
    ) -> Result<Self, Problem> {
        let Some(column) = relation.column(&field.name) else {
            return Err(unknown_column(schema, relation, &field.name));
        };
        Ok(Self { column, steps: &field.path })
    }

    /// What it is called in an answer: after the last key on the way, else after the column.
    pub(super) fn output_name(&self) -> &'a str {
        let key = self.steps.iter().rev().find_map(|step| match &step.to {
            Key::Name(name) if !name.is_empty() => Some(name.as_str()),
            Key::Name(_) | Key::Index(_) => None,
        });
        key.unwrap_or(&self.column.name)
    }

    /// Whether it is the column itself.
    pub(super) fn is_whole(&self) -> bool {
        self.steps.is_empty()
    }

    /// Whether the text search operators take it as it is.
    pub(super) fn is_tsvector(&self) -> bool {
        self.steps.is_empty() && &*self.column.base_type == "tsvector"
    }

    /// Writes it as a column of `alias`.
    pub(super) fn render(&self, alias: Alias, sql: &mut Sql) {
        if self.steps.is_empty() {
            sql.push(&alias.to_string()).push(".").name(&self.column.name);
            return;
        }
        let is_json = matches!(&*self.column.base_type, "json" | "jsonb");
        sql.push(if is_json { "(" } else { "(pg_catalog.to_jsonb(" });
        sql.push(&alias.to_string()).push(".").name(&self.column.name);
        sql.push(if is_json { "" } else { ")" });
        for step in self.steps {
            sql.push(if step.as_text { " ->> " } else { " -> " });
            match &step.to {
                Key::Name(name) => sql.value(name.clone()).push("::pg_catalog.text"),
                Key::Index(index) => sql.value(index.to_string()).push("::integer"),
            };
        }
        sql.push(")");
    }
}

/// 400 `42703`, unless a function of this name computes the column, which is not built.
fn unknown_column(schema: Option<&Schema>, relation: &Relation, name: &str) -> Problem {
    let functions = schema.map_or(&[][..], |schema| schema.functions(&relation.schema, name));
    let is_computed = functions.iter().any(|function| {
        function.arguments.len() == 1
            && is_row_of(&function.arguments[0].type_sql, relation)
            && !function.returns_set
    });
    if is_computed {
        return Problem::not_implemented("computed columns");
    }
    let message = format!("column {}.{name} does not exist", relation.name);
    Problem::new(StatusCode::BAD_REQUEST, "42703", message)
}

/// Whether a type, as `format_type` writes it, is the row type of a relation.
pub(super) fn is_row_of(type_sql: &str, relation: &Relation) -> bool {
    let unquoted: String = type_sql.chars().filter(|&character| character != '"').collect();
    unquoted == format!("{}.{}", relation.schema, relation.name)
}
