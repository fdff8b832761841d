//! The document itself. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};

use super::value::{self, map};
use super::{Privileges, Rights};
use crate::rest::request::{At, Condition, arguments as are_arguments, filter};
use crate::rest::schema::{Argument, Column, Function, Relation, Returns, Schema, Volatility};

/// What a filter looks like.
const FILTER: &str = r"^(not\.)*((eq|neq|gt|gte|lt|lte|like|ilike|match|imatch|isdistinct)(\((any|all)\))?|in|is|cs|cd|ov|sl|sr|nxl|nxr|adj|(fts|plfts|phfts|wfts)(\([^()]*\))?)\.";

/// What stays as it is in a path.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

const JSON: &str = "application/json";
const OBJECT: &str = "application/vnd.pgrst.object+json";
const CSV: &str = "text/csv";

/// The document for whoever has these rights; none when it would have more than `max` bytes.
pub(super) fn document(
    picture: &Schema,
    schema: &str,
    privileges: &Privileges,
    max: usize,
) -> Option<String> {
    let mut document = Document { text: String::new(), max };
    let info = json!({
        "title": format!("Rows of {schema}"),
        "description": "Tables, views and functions, in the dialect of PostgREST. \
                        All is done with the rights of whoever asks.",
        "version": env!("CARGO_PKG_VERSION"),
    });
    document.push(r#"{"openapi":"3.1.0","info":"#)?;
    document.push(&info.to_string())?;
    let beginning = json!({
        "servers": [{ "url": "/rest/v1" }],
        "security": [{ "bearer": [] }, { "apikey": [] }, {}],
    });
    document.members(&beginning)?;
    // Sorted, so that the same schema has the same document.
    let mut relations = BTreeMap::new();
    for relation in picture.relations.values().filter(|it| *it.schema == *schema) {
        let rights = privileges.relations.get(&relation.oid).filter(|_| !relation.is_partition);
        if let Some(shown) = rights.and_then(|rights| Shown::new(relation, rights)) {
            relations.insert(&*relation.name, shown);
        }
    }
    let mut functions: BTreeMap<&str, Vec<&Function>> = BTreeMap::new();
    for ((of, name), all) in &picture.functions {
        let may = |function: &&Function| {
            privileges.functions.contains(&function.oid)
                && function.arguments.iter().all(|argument| !argument.name.is_empty())
        };
        let mut all: Vec<&Function> = all.iter().map(|it| &**it).filter(may).collect();
        if **of == *schema && !all.is_empty() {
            all.sort_unstable_by_key(|function| function.oid);
            functions.insert(name, all);
        }
    }
    document.push(r#","paths":{"#)?;
    document.member(true, "/", &root())?;
    for (name, shown) in &relations {
        document.member(false, &format!("/{}", in_path(name)), &shown.path())?;
    }
    for (name, all) in &functions {
        document.member(
            false,
            &format!("/rpc/{}", in_path(name)),
            &calls(name, all, &relations),
        )?;
    }
    document.push(r#"},"components":{"schemas":{"#)?;
    document.member(true, "walcast.problem", &problem())?;
    for shown in relations.values() {
        for (key, schema) in shown.schemas(picture, &relations) {
            document.member(false, &key, &schema)?;
        }
    }
    document.push(r#"},"parameters":{"#)?;
    let mut is_first = true;
    for (name, parameter) in parameters() {
        document.member(is_first, &format!("walcast.{name}"), &parameter)?;
        is_first = false;
    }
    for shown in relations.values() {
        for (column, parameter) in shown.filterable() {
            let name = format!("{}.{}", key(&shown.relation.name), key(&column.name));
            document.member(false, &name, &column_filter(column, &parameter))?;
        }
    }
    document.push("}")?;
    document.members(&json!({ "responses": responses(), "securitySchemes": security() }))?;
    document.push("}}")?;
    Some(document.text)
}

/// JSON in the making, a piece at a time, so that no more of it is held than its text.
struct Document {
    text: String,
    max: usize,
}

impl Document {
    fn push(&mut self, text: &str) -> Option<()> {
        self.text.push_str(text);
        (self.text.len() <= self.max).then_some(())
    }

    fn member(&mut self, is_first: bool, name: &str, value: &Value) -> Option<()> {
        self.push(if is_first { "" } else { "," })?;
        self.push(&Value::from(name).to_string())?;
        self.push(":")?;
        self.push(&value.to_string())
    }

    /// All of an object, behind others.
    fn members(&mut self, object: &Value) -> Option<()> {
        object.as_object()?.iter().try_for_each(|(name, value)| self.member(false, name, value))
    }
}

/// A name as a part of a path template: its braces would stand for something.
fn in_path(name: &str) -> String {
    utf8_percent_encode(name, PLAIN).to_string()
}

/// A name as a key of components, which takes only few characters. Others become `.hex.`, so that
/// no two names have one key.
fn key(name: &str) -> String {
    let mut key = String::new();
    for character in name.chars() {
        if character.is_ascii_alphanumeric() || "_-".contains(character) {
            key.push(character);
        } else {
            write!(key, ".{:x}.", u32::from(character)).expect("a string takes everything");
        }
    }
    key
}

fn schema_of(key: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{key}") })
}

fn parameter(name: &str) -> Value {
    json!({ "$ref": format!("#/components/parameters/{name}") })
}

/// The first line, and what is behind it.
fn comment(text: Option<&str>) -> (Option<&str>, Option<&str>) {
    let Some(text) = text.map(str::trim).filter(|text| !text.is_empty()) else {
        return (None, None);
    };
    match text.split_once('\n') {
        None => (Some(text), None),
        Some((first, rest)) => (Some(first.trim()), Some(rest.trim())),
    }
}

/// With `summary` and `description`, as far as there is one.
fn described(mut operation: Value, text: Option<&str>) -> Value {
    let (summary, description) = comment(text);
    for (name, text) in [("summary", summary), ("description", description)] {
        if let (Some(text), Some(operation)) = (text, operation.as_object_mut()) {
            operation.insert(name.into(), text.into());
        }
    }
    operation
}

/// A relation as the caller sees it.
struct Shown<'a> {
    relation: &'a Relation,
    rights: &'a Rights,
    key: String,
}

impl<'a> Shown<'a> {
    /// None when the caller can do nothing with it.
    fn new(relation: &'a Relation, rights: &'a Rights) -> Option<Self> {
        let shown = Self { relation, rights, key: key(&relation.name) };
        (shown.reads() || shown.inserts() || shown.updates() || shown.deletes()).then_some(shown)
    }

    fn reads(&self) -> bool {
        self.rights.read.any()
    }

    fn inserts(&self) -> bool {
        self.rights.insert.any() && self.relation.insertable
    }

    fn updates(&self) -> bool {
        self.rights.update.any() && self.relation.updatable
    }

    fn deletes(&self) -> bool {
        self.rights.delete && self.relation.deletable
    }

    /// Columns that something can be done with.
    fn columns(&self) -> impl Iterator<Item = &'a Column> {
        let rights = self.rights;
        self.relation.columns.iter().filter(|column| {
            let number = column.attnum;
            rights.read.has(number) || rights.insert.has(number) || rights.update.has(number)
        })
    }

    /// Columns that a condition can be about, and what that is called.
    fn filterable(&self) -> impl Iterator<Item = (&'a Column, String)> {
        let rights = self.rights;
        let columns = self.relation.columns.iter();
        let columns = columns.filter(|column| rights.read.has(column.attnum));
        columns.filter_map(|column| Some((column, filter_name(&column.name)?)))
    }

    fn filters(&self) -> impl Iterator<Item = Value> {
        let columns = self.filterable();
        columns.map(|(column, _)| parameter(&format!("{}.{}", self.key, key(&column.name))))
    }

    /// `todos`: a row; `todos.part`: what is asked for of it, or changed; `todos.insert`: a new one.
    fn schemas(
        &self,
        picture: &Schema,
        others: &BTreeMap<&str, Shown<'_>>,
    ) -> [(String, Value); 3] {
        let name = |suffix: &str| format!("{}{suffix}", self.key);
        let mut properties = Map::new();
        let (mut required, mut needed) = (Vec::new(), Vec::new());
        for column in self.columns() {
            let rights = self.rights;
            let (read, insert) = (rights.read.has(column.attnum), rights.insert.has(column.attnum));
            let mut schema = value::of_column(column);
            if let Some(text) = self.column_text(column, picture, others) {
                schema.insert("description".into(), text.into());
            }
            let writes = insert || rights.update.has(column.attnum);
            if column.generated || !writes {
                schema.insert("readOnly".into(), true.into());
            } else if !read {
                schema.insert("writeOnly".into(), true.into());
            }
            properties.insert(column.name.to_string(), schema.into());
            if read && !column.nullable {
                required.push(&*column.name);
            }
            // A view's columns may have defaults behind it.
            let is_missed = !column.nullable && column.default.is_none() && !column.generated;
            if insert && is_missed && !self.relation.is_view {
                needed.push(&*column.name);
            }
        }
        let mut part = json!({ "type": "object", "properties": properties });
        let (title, description) = comment(self.relation.comment.as_deref());
        for (name, text) in [("title", title), ("description", description)] {
            if let (Some(text), Some(part)) = (text, part.as_object_mut()) {
                part.insert(name.into(), text.into());
            }
        }
        let with = |required: Vec<&str>| {
            let mut schema = map(json!({ "allOf": [schema_of(&name(".part"))] }));
            if !required.is_empty() {
                schema.insert("required".into(), required.into());
            }
            schema.into()
        };
        [(name(""), with(required)), (name(".part"), part), (name(".insert"), with(needed))]
    }

    /// Its comment, and which keys it is in. The marks are those that programs look for.
    fn column_text(
        &self,
        column: &Column,
        picture: &Schema,
        others: &BTreeMap<&str, Shown<'_>>,
    ) -> Option<String> {
        let mut lines: Vec<String> = column.comment.iter().map(ToString::to_string).collect();
        if self.relation.primary_key.contains(&column.name) {
            lines.push("Note:\nThis is a Primary Key.<pk/>".into());
        }
        let keys = picture.foreign_keys_of(self.relation.oid).iter();
        let keys = keys.filter(|key| key.from == self.relation.oid);
        for key in keys {
            let Some(place) = key.from_columns.iter().position(|name| *name == column.name) else {
                continue;
            };
            let (Some(to), Some(of)) = (picture.by_oid.get(&key.to), key.to_columns.get(place))
            else {
                continue;
            };
            // Only what the caller is told of anyway; views have the keys of their tables.
            let other =
                others.get(&*to.name).filter(|other| other.relation.oid == to.oid && !to.is_view);
            if other.is_some_and(|other| other.columns().any(|column| column.name == *of)) {
                let table = &to.name;
                lines.push(format!(
                    "Note:\nThis is a Foreign Key to `{table}.{of}`.<fk table='{table}' column='{of}'/>"
                ));
            }
        }
        (!lines.is_empty()).then(|| lines.join("\n\n"))
    }

    fn path(&self) -> Value {
        let mut item = Map::new();
        for (method, is_possible) in [
            ("get", self.reads()),
            ("post", self.inserts()),
            ("put", self.inserts() && self.updates() && !self.relation.primary_key.is_empty()),
            ("patch", self.updates()),
            ("delete", self.deletes()),
        ] {
            if is_possible {
                let operation = self.operation(method);
                item.insert(method.into(), described(operation, self.relation.comment.as_deref()));
            }
        }
        item.into()
    }

    fn operation(&self, method: &str) -> Value {
        let key = &self.key;
        let with = |names: &[&str]| -> Vec<Value> {
            names.iter().map(|name| parameter(&format!("walcast.{name}"))).collect()
        };
        let rows = self.rows();
        let written = json!({
            "description": "The rows, where `Prefer: return=representation` asks for them",
            "headers": headers(), "content": rows,
        });
        let nothing = json!({ "description": "Done", "headers": headers() });
        let (parameters, body, answers) = match method {
            "get" => {
                let mut parameters = with(&["select", "order", "limit", "offset", "and", "or"]);
                parameters.extend(with(&["preferRead"]));
                parameters.extend(self.filters());
                let found = |text: &str| json!({ "description": text, "headers": headers(), "content": rows });
                let answers = json!({
                    "200": found("The rows"), "206": found("A part of the rows, which were counted"),
                });
                (parameters, None, answers)
            }
            "post" => {
                let one = schema_of(&format!("{key}.insert"));
                let body = json!({ "anyOf": [one, { "type": "array", "items": one }] });
                let parameters = with(&["select", "columns", "on_conflict", "preferWrite"]);
                let answers = json!({ "200": written, "201": written });
                (parameters, Some((body, true)), answers)
            }
            "put" => {
                let mut parameters = with(&["select", "preferWrite"]);
                let keys = self.relation.primary_key.iter().filter_map(|name| filter_name(name));
                parameters.extend(keys.map(|name| {
                    json!({
                        "name": name, "in": "query", "required": true,
                        "description": "Which row it is: the same as in the body",
                        "schema": { "type": "string", "pattern": r"^eq\." },
                    })
                }));
                let body = schema_of(&format!("{key}.insert"));
                let answers = json!({ "200": written, "201": written, "204": nothing });
                (parameters, Some((body, false)), answers)
            }
            "patch" => {
                let mut parameters = with(&["select", "columns", "and", "or", "preferWrite"]);
                parameters.extend(self.filters());
                let body = schema_of(&format!("{key}.part"));
                (parameters, Some((body, false)), json!({ "200": written, "204": nothing }))
            }
            _ => {
                let mut parameters = with(&["select", "and", "or", "preferWrite"]);
                parameters.extend(self.filters());
                (parameters, None, json!({ "200": written, "204": nothing }))
            }
        };
        let mut operation = json!({
            "operationId": format!("{method}.{key}"), "tags": [&self.relation.name],
            "parameters": parameters, "responses": answers,
        });
        operation["responses"]["default"] = refused();
        if let Some((schema, is_many)) = body {
            let mut content = json!({ JSON: { "schema": schema } });
            if is_many {
                content[CSV] = json!({ "schema": { "type": "string" } });
            }
            operation["requestBody"] = json!({ "required": true, "content": content });
        }
        operation
    }

    /// What is answered with rows.
    fn rows(&self) -> Value {
        let one = schema_of(&format!("{}.part", self.key));
        json!({
            JSON: { "schema": { "type": "array", "items": one } },
            OBJECT: { "schema": one },
            CSV: { "schema": { "type": "string" } },
        })
    }
}

/// What a condition about this column is called: quoted where its name would mean something else.
fn filter_name(column: &str) -> Option<String> {
    let quoted = format!("\"{}\"", column.replace('\\', "\\\\").replace('"', "\\\""));
    [column.to_owned(), quoted].into_iter().find(|name| {
        let Ok(At { path, what }) = filter(name, "is.null") else { return false };
        match what {
            Condition::Test { field, .. } => {
                path.is_empty() && field.name == column && field.path.is_empty()
            }
            Condition::And(_) | Condition::Or(_) | Condition::Not(_) => false,
        }
    })
}

fn column_filter(column: &Column, name: &str) -> Value {
    let type_sql = &column.type_sql;
    let text = match &column.comment {
        Some(comment) => format!("{comment}\n\nOperator and value, which is read as {type_sql}."),
        None => format!("Operator and value, which is read as {type_sql}."),
    };
    json!({
        "name": name, "in": "query", "description": text,
        "schema": { "type": "string", "pattern": FILTER },
    })
}

/// A function, under all that share its name.
fn calls(name: &str, all: &[&Function], relations: &BTreeMap<&str, Shown<'_>>) -> Value {
    let key = key(name);
    let mut answers = Map::new();
    let mut schemas = Vec::new();
    for function in all {
        if function.returns == Returns::Void {
            answers.insert("204".into(), json!({ "description": "Done" }));
        } else {
            schemas.push(returned(function, relations));
        }
    }
    schemas.dedup();
    if !schemas.is_empty() {
        let schema = match <[Value; 1]>::try_from(schemas) {
            Ok([only]) => only,
            Err(schemas) => json!({ "anyOf": schemas }),
        };
        let content = json!({
            JSON: { "schema": schema }, OBJECT: { "schema": {} },
            CSV: { "schema": { "type": "string" } },
        });
        let answer = json!({
            "description": "What it returns", "headers": headers(), "content": content,
        });
        answers.insert("206".into(), answer.clone());
        answers.insert("200".into(), answer);
        answers.insert("204".into(), json!({ "description": "Done" }));
    }
    answers.insert("default".into(), refused());
    let of_rows =
        ["select", "order", "limit", "offset"].map(|name| parameter(&format!("walcast.{name}")));
    let mut common = Vec::new();
    if all.iter().any(|function| function.returns_set) {
        common.extend(of_rows);
    }
    let text = all.iter().find_map(|function| function.comment.as_deref());
    let mut item = Map::new();
    let mut reading: Vec<&Function> = all.to_vec();
    reading.retain(|function| function.volatility != Volatility::Volatile);
    if !reading.is_empty() {
        let mut parameters = common.clone();
        parameters.push(parameter("walcast.preferRead"));
        parameters.extend(arguments(&reading));
        let operation = json!({
            "operationId": format!("get.rpc.{key}"), "tags": [format!("(rpc) {name}")],
            "parameters": parameters, "responses": answers,
        });
        item.insert("get".into(), described(operation, text));
    }
    let mut bodies: Vec<Value> = all.iter().map(|function| body(function)).collect();
    bodies.dedup();
    let is_needed = bodies.iter().all(|body| body.get("required").is_some());
    let schema = match <[Value; 1]>::try_from(bodies) {
        Ok([only]) => only,
        Err(bodies) => json!({ "anyOf": bodies }),
    };
    common.push(parameter("walcast.preferCall"));
    let operation = json!({
        "operationId": format!("post.rpc.{key}"), "tags": [format!("(rpc) {name}")],
        "parameters": common, "responses": answers,
        "requestBody": { "required": is_needed, "content": { JSON: { "schema": schema } } },
    });
    item.insert("post".into(), described(operation, text));
    item.into()
}

/// Of a call by GET. What one of them can do without is not required.
fn arguments(functions: &[&Function]) -> Vec<Value> {
    let mut found: Vec<(&str, Value, bool)> = Vec::new();
    let arguments = functions.iter().flat_map(|function| &*function.arguments);
    let can_be_said = |argument: &&Argument| !are_arguments(&[(&*argument.name, "x")]).is_empty();
    for argument in arguments.filter(can_be_said) {
        if found.iter().all(|(name, ..)| **name != *argument.name) {
            let is_everywhere = functions.iter().all(|function| {
                let mut all = function.arguments.iter();
                all.any(|it| it.name == argument.name && !it.has_default && !it.is_variadic)
            });
            let schema = value::in_query(&argument.base_type, argument.category);
            found.push((&argument.name, schema.into(), is_everywhere));
        }
    }
    let parameter = |(name, schema, required): (&str, Value, bool)| json!({ "name": name, "in": "query", "required": required, "schema": schema });
    found.into_iter().map(parameter).collect()
}

/// Arguments as a JSON object.
fn body(function: &Function) -> Value {
    let properties: Map<String, Value> = function
        .arguments
        .iter()
        .map(|it| (it.name.to_string(), value::of_type(&it.base_type, it.category).into()))
        .collect();
    let required: Vec<&str> = function
        .arguments
        .iter()
        .filter(|argument| !argument.has_default && !argument.is_variadic)
        .map(|argument| &*argument.name)
        .collect();
    let mut schema = map(json!({ "type": "object", "properties": properties }));
    if !required.is_empty() {
        schema.insert("required".into(), required.into());
    }
    schema.into()
}

fn returned(function: &Function, relations: &BTreeMap<&str, Shown<'_>>) -> Value {
    let of_columns = |columns: &[Column]| {
        let properties: Map<String, Value> = columns
            .iter()
            .map(|column| (column.name.to_string(), value::of_column(column).into()))
            .collect();
        json!({ "type": "object", "properties": properties })
    };
    let one = match &function.returns {
        Returns::Void => json!({}),
        Returns::Scalar { base_type, .. } => {
            let category = if base_type.ends_with("[]") { 'A' } else { ' ' };
            nullable(value::of_type(base_type, category))
        }
        Returns::Row { relation, columns } => {
            match relations.values().find(|shown| shown.relation.oid == *relation) {
                Some(shown) => schema_of(&format!("{}.part", shown.key)),
                None => of_columns(columns),
            }
        }
        Returns::Table { columns } => of_columns(columns),
        Returns::Record => json!({ "type": "object" }),
    };
    if function.returns_set { json!({ "type": "array", "items": one }) } else { one }
}

/// A function may return nothing instead of a value.
fn nullable(schema: Map<String, Value>) -> Value {
    if schema.contains_key("type") {
        json!({ "anyOf": [schema, { "type": "null" }] })
    } else {
        schema.into()
    }
}

fn refused() -> Value {
    json!({ "$ref": "#/components/responses/problem" })
}

fn headers() -> Value {
    json!({
        "Content-Range": {
            "description": "Which rows of how many: `0-24/3573`", "schema": { "type": "string" },
        },
        "Preference-Applied": {
            "description": "Preferences that had a meaning", "schema": { "type": "string" },
        },
    })
}

fn root() -> Value {
    json!({ "get": {
        "operationId": "get", "summary": "This document",
        "responses": {
            "200": {
                "description": "What can be asked for",
                "content": {
                    "application/openapi+json": { "schema": { "type": "object" } },
                    JSON: { "schema": { "type": "object" } },
                },
            },
            "default": refused(),
        },
    }})
}

fn problem() -> Value {
    json!({
        "type": "object",
        "required": ["code", "message", "details", "hint"],
        "properties": {
            "code": { "type": "string", "description": "`PGRST…`, or the SQLSTATE" },
            "message": { "type": "string", "description": "What happened" },
            "details": { "description": "More about it" },
            "hint": { "type": ["string", "null"], "description": "What to do about it" },
        },
    })
}

fn responses() -> Value {
    json!({ "problem": {
        "description": "Why there is no answer; nothing was written",
        "content": { JSON: { "schema": schema_of("walcast.problem") } },
    }})
}

fn security() -> Value {
    json!({
        "bearer": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT" },
        "apikey": { "type": "apiKey", "in": "header", "name": "apikey" },
    })
}

/// What many operations have.
fn parameters() -> Vec<(&'static str, Value)> {
    let query = |name: &'static str, text: &str, schema: Value| {
        (name, json!({ "name": name, "in": "query", "description": text, "schema": schema }))
    };
    let prefer = |name: &'static str, text: &str, examples: &[&str]| {
        let examples: Map<String, Value> = (1..)
            .zip(examples)
            .map(|(number, value)| (format!("e{number}"), json!({ "value": value })))
            .collect();
        let parameter = json!({
            "name": "Prefer", "in": "header", "description": text,
            "schema": { "type": "string" }, "examples": examples,
        });
        (name, parameter)
    };
    let text = || json!({ "type": "string" });
    let number = || json!({ "type": "integer", "format": "int64", "minimum": 0 });
    let tree = || json!({ "type": "string", "pattern": r"^\(.*\)$" });
    vec![
        query("select", "Columns, and related rows in brackets: `id,name,parts(id)`", text()),
        query("order", "By what: `name.desc.nullslast,id`", text()),
        query("limit", "Rows at most", number()),
        query("offset", "Rows that are left out in front", number()),
        query("and", "Conditions that all must hold: `(a.eq.1,b.gt.2)`", tree()),
        query("or", "Conditions of which one must hold: `(a.eq.1,b.gt.2)`", tree()),
        query("columns", "Keys of the body that are written, the others are not", text()),
        query("on_conflict", "Columns whose values are in one row only", text()),
        prefer(
            "preferRead",
            "How rows are counted, and what is made of unknown preferences",
            &["count=exact", "count=planned", "count=estimated, handling=strict"],
        ),
        prefer(
            "preferWrite",
            "What is answered, how rows are counted, and what is made of those there are",
            &[
                "return=representation",
                "return=minimal, count=exact",
                "return=headers-only",
                "resolution=merge-duplicates, return=representation",
                "resolution=ignore-duplicates, missing=default",
                "handling=strict, max-affected=10",
            ],
        ),
        prefer("preferCall", "What is answered", &["return=minimal", "count=exact"]),
    ]
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn picture(name: &str, columns: &[&str]) -> (Schema, Privileges) {
        let column = |(number, name): (i16, &&str)| Column {
            attnum: number,
            name: (*name).into(),
            base_type: "text".into(),
            ..Column::default()
        };
        let relation = Relation {
            oid: 7,
            schema: "public".into(),
            name: name.into(),
            columns: (1..).zip(columns).map(column).collect(),
            insertable: true,
            updatable: true,
            deletable: true,
            ..Relation::default()
        };
        let mut picture = Schema::default();
        picture.relations.insert(("public".into(), name.into()), Arc::new(relation));
        let privileges = r#"{"relations":[[7,"rawd",null,null,null]],"functions":null}"#;
        (picture, Privileges::parse(privileges).unwrap())
    }

    #[test]
    fn a_document_has_a_largest() {
        let (picture, privileges) = picture("a", &["b", "c"]);
        let whole = document(&picture, "public", &privileges, usize::MAX).unwrap();
        assert_eq!(document(&picture, "public", &privileges, whole.len()), Some(whole.clone()));
        for max in [0, 100, whole.len() - 1] {
            assert_eq!(document(&picture, "public", &privileges, max), None, "{max}");
        }
        let other = document(&picture, "other", &privileges, usize::MAX).unwrap();
        assert!(!other.contains("/a"), "{other}");
    }

    #[test]
    fn filters_are_what_is_read_as_filters() {
        for name in
            ["a", "a b", "a.b", "or", "limit", "select", "a->b", "\"", "\\", "ü", "{x}", " "]
        {
            assert!(filter_name(name).is_some(), "{name}");
        }
        assert_eq!(filter_name("limit").as_deref(), Some("\"limit\""));
    }

    proptest! {
        #[test]
        fn whatever_it_is_called_it_is_json(name in "\\PC{1,8}", column in "\\PC{1,8}") {
            let (picture, privileges) = picture(&name, &[&column, "other"]);
            let text = document(&picture, "public", &privileges, usize::MAX).unwrap();
            let document: Value = serde_json::from_str(&text).unwrap();
            let parameters = document["components"]["parameters"].as_object().unwrap();
            for name in parameters.keys().chain(document["components"]["schemas"].as_object().unwrap().keys()) {
                prop_assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)), "{name}");
            }
        }

        #[test]
        fn no_two_names_have_one_key(one in "[a.0-9_é ]{0,6}", other in "[a.0-9_é ]{0,6}") {
            prop_assert_eq!(key(&one) == key(&other), one == other);
        }
    }
}
