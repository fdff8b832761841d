//! Calling a function.
//!
//! In:     a [`Function`] of the catalog, what it is called with, what is made of what it returns.
//! Out:    `with source as (<the call>) select … from source`: the function is called once, by the
//!         names of its arguments, each with its own type.
//! Never:  a function without its schema; a value outside parameters.
//! Source: spec `rest.md` D4, docs.postgrest.org/en/v12/references/api/functions.html

mod choose;

pub use choose::choose;

use self::choose::argument;
use super::read::{self, Selection, Source};
use super::{Count, Form};
use crate::rest::Problem;
use crate::rest::request::{Body, Item, Query};
use crate::rest::schema::{Argument, Column, Function, Relation, Returns, Schema};
use crate::rest::sql::{Sql, Statement};

/// What a function is called with.
#[derive(Debug, Clone, Copy)]
pub enum Arguments<'a> {
    /// A JSON object: names and values.
    Body(&'a Body),
    /// What [`arguments`](crate::rest::request::arguments) says of the query string.
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
    /// Whether rows are counted. They are counted exactly, whatever is asked: the function has
    /// returned them anyway.
    pub count: Option<Count>,
    /// Rows an answer may have.
    pub rows_max: Option<u64>,
}

/// The statement that calls.
///
/// For a function that returns nothing, `body` is none in every form.
///
/// # Errors
/// As [`super::read::read`], for what is made of the rows; 400 `PGRST102` for a body that is no
/// object; 400 `PGRST127` for arguments of types that have no values of their own.
pub fn call(calling: &Calling<'_>) -> Result<Statement, Problem> {
    let function = calling.function;
    let given = given(function, calling.arguments)?;
    let mut sql = Sql::new();
    let own;
    let relation = match &function.returns {
        Returns::Void => {
            value_source(function, &given, &mut sql);
            sql.push(" select null::pg_catalog.text as body, ");
            sql.push("pg_catalog.count(*)::pg_catalog.text as page_total, ");
            null_columns(&["total", "inserted", "location"], &mut sql);
            sql.push(" from source");
            return read::finish(sql);
        }
        Returns::Scalar { type_sql, base_type } => {
            own = value_relation(function, type_sql, base_type);
            &own
        }
        Returns::Record => {
            own = value_relation(function, "pg_catalog.record", "record");
            &own
        }
        Returns::Row { relation, columns } => {
            if let Some(relation) = calling.schema.by_oid.get(relation) {
                relation
            } else {
                own = row_relation(function, *relation, columns);
                &own
            }
        }
        Returns::Table { columns } => {
            own = row_relation(function, 0, columns);
            &own
        }
    };
    let value_query;
    let query = if is_value(function) {
        value_query = value_query_of(calling, relation)?;
        &value_query
    } else {
        calling.query
    };
    let selection = Selection::resolve(calling.schema, relation, query, calling.rows_max)?;
    match &function.returns {
        Returns::Row { .. } => row_source(function, &given, &[], &mut sql),
        Returns::Table { columns } => row_source(function, &given, columns, &mut sql),
        Returns::Scalar { .. } | Returns::Record | Returns::Void => {
            value_source(function, &given, &mut sql);
        }
    }
    sql.push(" select ");
    body(calling, &mut sql)?;
    sql.push(" as body, pg_catalog.count(*)::pg_catalog.text as page_total, ");
    let count = calling.count.map(|_| Count::Exact);
    selection.total(count, calling.rows_max, Source::Named("source"), &mut sql);
    sql.push(" as total, ");
    null_columns(&["inserted", "location"], &mut sql);
    sql.push(" from (");
    selection.render(Source::Named("source"), true, &mut sql);
    sql.push(") as s");
    read::finish(sql)
}

/// The arguments that are given, and how.
#[derive(Debug)]
struct Given<'a> {
    arguments: Vec<&'a Argument>,
    values: Values<'a>,
}

#[derive(Debug)]
enum Values<'a> {
    /// One JSON object has them.
    Json(&'a bytes::Bytes),
    /// Each is text.
    Texts(Vec<String>),
}

/// Looks the arguments up.
fn given<'a>(function: &'a Function, arguments: Arguments<'a>) -> Result<Given<'a>, Problem> {
    let given = match arguments {
        Arguments::Body(Body::Empty) => {
            Given { arguments: Vec::new(), values: Values::Texts(Vec::new()) }
        }
        Arguments::Body(Body::Object { text, keys }) => {
            let known = function.arguments.iter();
            let known = known.filter(|known| {
                !known.name.is_empty() && keys.iter().any(|key| **key == *known.name)
            });
            Given { arguments: known.collect(), values: Values::Json(text) }
        }
        Arguments::Body(Body::Array { .. } | Body::Other(_)) => {
            return Err(Problem::body("The arguments of a function are a JSON object"));
        }
        Arguments::Pairs(pairs) => texts(function, pairs),
    };
    // `anyelement` and its like take their type from the value, and text has none.
    if given.arguments.iter().any(|argument| argument.category == 'P') {
        return Err(Problem::not_implemented("arguments of polymorphic types"));
    }
    Ok(given)
}

/// Arguments from the query string, in the order of the function's. Of several of one name the last
/// counts, except that a variadic argument takes all of them.
fn texts<'a>(function: &'a Function, pairs: &[(&str, &str)]) -> Given<'a> {
    let mut arguments = Vec::new();
    let mut values = Vec::new();
    for known in &function.arguments {
        let named = pairs.iter().filter(|(name, _)| argument(function, name) == Some(known));
        let said: Vec<&str> = named.map(|(_, value)| *value).collect();
        let Some(last) = said.last() else { continue };
        arguments.push(known);
        values.push(match said.as_slice() {
            [_, _, ..] if known.is_variadic => array(&said),
            _ => String::from(*last),
        });
    }
    Given { arguments, values: Values::Texts(values) }
}

/// An array literal.
fn array(elements: &[&str]) -> String {
    let quoted: Vec<String> = elements
        .iter()
        .map(|element| format!("\"{}\"", element.replace('\\', "\\\\").replace('"', "\\\"")))
        .collect();
    format!("{{{}}}", quoted.join(","))
}

/// Writes `with source as materialized (select "schema"."name"(…) as "name" from …)`. Materialised,
/// so that it is called also when nobody reads what it returns.
fn value_source(function: &Function, given: &Given<'_>, sql: &mut Sql) {
    sql.push("with source as materialized (select ");
    invocation(function, given, sql);
    sql.push(" as ").name(&function.name);
    if let Some(text) = record(given) {
        sql.push(" from ");
        unpacked(given, text, sql);
    }
    sql.push(")");
}

/// Writes `with source as (select f.* from …, lateral "schema"."name"(…) as f(…))`.
fn row_source(function: &Function, given: &Given<'_>, columns: &[Column], sql: &mut Sql) {
    sql.push("with source as (select f.* from ");
    if let Some(text) = record(given) {
        unpacked(given, text, sql);
        sql.push(", lateral ");
    }
    invocation(function, given, sql);
    sql.push(" as f");
    for (place, column) in columns.iter().enumerate() {
        sql.push(if place == 0 { "(" } else { ", " }).name(&column.name);
    }
    sql.push(if columns.is_empty() { ")" } else { "))" });
}

/// The JSON object that has arguments to unpack.
fn record<'a>(given: &Given<'a>) -> Option<&'a bytes::Bytes> {
    match given.values {
        Values::Json(text) if !given.arguments.is_empty() => Some(text),
        Values::Json(_) | Values::Texts(_) => None,
    }
}

/// Writes `pg_catalog.json_to_record($1) as a("x" integer, …)`.
fn unpacked(given: &Given<'_>, text: &bytes::Bytes, sql: &mut Sql) {
    sql.push("pg_catalog.json_to_record(").value(text.clone());
    sql.push("::pg_catalog.json) as a(");
    for (place, argument) in given.arguments.iter().enumerate() {
        sql.push(if place == 0 { "" } else { ", " }).name(&argument.name);
        sql.push(" ").push(&argument.type_sql);
    }
    sql.push(")");
}

/// Writes `"schema"."name"("x" := …, variadic "y" := …)`.
fn invocation(function: &Function, given: &Given<'_>, sql: &mut Sql) {
    sql.qualified(&function.schema, &function.name).push("(");
    // A variadic argument is the last of its function's, and arguments keep their order.
    for (place, argument) in given.arguments.iter().enumerate() {
        sql.push(if place == 0 { "" } else { ", " });
        sql.push(if argument.is_variadic { "variadic " } else { "" });
        sql.name(&argument.name).push(" := ");
        match &given.values {
            Values::Json(_) => sql.push("a.").name(&argument.name),
            Values::Texts(texts) => {
                let text = texts.get(place).expect("one for each argument");
                sql.value(text.clone()).push("::").push(&argument.type_sql)
            }
        };
    }
    sql.push(")");
}

/// Writes the expression of the answer's `body`: an array only for a function that returns a set.
fn body(calling: &Calling<'_>, sql: &mut Sql) -> Result<(), Problem> {
    let function = calling.function;
    let is_value = is_value(function);
    match calling.form {
        Form::Csv | Form::None => return read::body(calling.form, "s", sql),
        Form::Array if function.returns_set && !is_value => {
            return read::body(Form::Array, "s", sql);
        }
        Form::Array if function.returns_set => {
            sql.push("coalesce(pg_catalog.json_agg(s.").name(&function.name);
            sql.push("), '[]')::pg_catalog.text");
        }
        Form::Array | Form::Object => {
            sql.push("coalesce(");
            if is_value {
                sql.push("(pg_catalog.array_agg(pg_catalog.to_json(s.").name(&function.name);
                sql.push(")))[1]::pg_catalog.text");
            } else {
                read::body(Form::Object, "s", sql)?;
            }
            sql.push(", 'null')");
        }
    }
    Ok(())
}

/// Whether it returns values that have no columns of their own.
fn is_value(function: &Function) -> bool {
    match &function.returns {
        Returns::Scalar { .. } | Returns::Record => true,
        Returns::Void | Returns::Row { .. } | Returns::Table { .. } => false,
    }
}

/// What is made of values: they are selected as they are, whatever stars there are.
///
/// # Errors
/// As [`call`].
fn value_query_of(calling: &Calling<'_>, relation: &Relation) -> Result<Query, Problem> {
    if calling.query.select.iter().any(|item| *item != Item::All) {
        // An unknown column is that first.
        Selection::resolve(calling.schema, relation, calling.query, None)?;
        let feature = "select on functions that do not return rows of known columns";
        return Err(Problem::not_implemented(feature));
    }
    Ok(Query { select: Vec::new(), ..calling.query.clone() })
}

fn null_columns(names: &[&str], sql: &mut Sql) {
    for (place, name) in names.iter().enumerate() {
        sql.push(if place == 0 { "" } else { ", " });
        sql.push("null::pg_catalog.text as ").push(name);
    }
}

/// A relation with one column, called like the function, as Postgres calls it too.
fn value_relation(function: &Function, type_sql: &str, base_type: &str) -> Relation {
    let column = Column {
        attnum: 1,
        name: function.name.clone(),
        type_sql: type_sql.into(),
        base_type: base_type.into(),
        category: if type_sql.ends_with("[]") { 'A' } else { 'U' },
        nullable: true,
        ..Column::default()
    };
    row_relation(function, 0, &[column])
}

/// A relation that nobody can find by name: the rows of a function.
fn row_relation(function: &Function, oid: u32, columns: &[Column]) -> Relation {
    Relation {
        oid,
        schema: function.schema.clone(),
        name: function.name.clone(),
        columns: columns.into(),
        ..Relation::default()
    }
}
