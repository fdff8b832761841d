//! A type of Postgres as a JSON Schema of how its values are written.

use serde_json::{Map, Value, json};

use crate::rest::schema::Column;

/// What its values look like in JSON; empty where that is not known.
pub(super) fn of_type(base_type: &str, category: char) -> Map<String, Value> {
    if category == 'A' {
        let element = base_type.strip_suffix("[]").map(|element| of_type(element, ' '));
        // Of more than one dimension, elements are arrays: nothing tells.
        let items = element.unwrap_or_default();
        return map(json!({ "type": "array", "items": items }));
    }
    if category == 'C' {
        return map(json!({ "type": "object" }));
    }
    map(match base_type {
        "smallint" => json!({
            "type": "integer", "format": "int16", "minimum": i16::MIN, "maximum": i16::MAX,
        }),
        "integer" => json!({
            "type": "integer", "format": "int32", "minimum": i32::MIN, "maximum": i32::MAX,
        }),
        "bigint" => json!({ "type": "integer", "format": "int64" }),
        "real" => json!({ "type": "number", "format": "float" }),
        "double precision" => json!({ "type": "number", "format": "double" }),
        "numeric" => json!({ "type": "number", "format": "numeric" }),
        "boolean" => json!({ "type": "boolean" }),
        "text" | "character varying" | "character" | "bpchar" | "name" => {
            json!({ "type": "string" })
        }
        "uuid" => json!({ "type": "string", "format": "uuid" }),
        "date" => json!({ "type": "string", "format": "date" }),
        "timestamp with time zone" => json!({ "type": "string", "format": "date-time" }),
        "time with time zone" => json!({ "type": "string", "format": "time" }),
        "timestamp without time zone"
        | "time without time zone"
        | "interval"
        | "bytea"
        | "inet"
        | "cidr"
        | "macaddr"
        | "macaddr8"
        | "money"
        | "bit"
        | "bit varying"
        | "xml"
        | "oid"
        | "tsvector"
        | "tsquery"
        | "int4range"
        | "int8range"
        | "numrange"
        | "tsrange"
        | "tstzrange"
        | "daterange"
        | "point"
        | "line"
        | "lseg"
        | "box"
        | "path"
        | "polygon"
        | "circle" => json!({ "type": "string", "format": base_type }),
        "json" | "jsonb" => json!({}),
        other => json!({ "format": other }),
    })
}

/// The same, of an argument in a query string: all but plain values are text there.
pub(super) fn in_query(base_type: &str, category: char) -> Map<String, Value> {
    let schema = of_type(base_type, category);
    match schema.get("type").and_then(Value::as_str) {
        Some("integer" | "number" | "boolean" | "string") => schema,
        _ => map(json!({ "type": "string", "format": base_type })),
    }
}

/// Of a column: with what it may be and what it is when nothing is said.
pub(super) fn of_column(column: &Column) -> Map<String, Value> {
    let mut schema = if column.enum_values.is_empty() {
        of_type(&column.base_type, column.category)
    } else {
        let labels = column.enum_values.iter().map(|label| Value::from(&**label));
        let null = column.nullable.then_some(Value::Null);
        map(json!({
            "type": "string", "format": &*column.base_type,
            "enum": labels.chain(null).collect::<Vec<_>>(),
        }))
    };
    if let Some(most) = column.max_length {
        schema.insert("maxLength".into(), most.into());
    }
    let kind = schema.get("type").and_then(Value::as_str).map(str::to_owned);
    let default = column.default.as_deref().and_then(|sql| literal(sql, kind.as_deref()?));
    if let Some(default) = default {
        schema.insert("default".into(), default);
    }
    if let (true, Some(kind)) = (column.nullable, kind) {
        schema.insert("type".into(), json!([kind, "null"]));
    }
    schema
}

/// A default that is a value; none for an expression.
fn literal(sql: &str, kind: &str) -> Option<Value> {
    match kind {
        "boolean" => sql.parse::<bool>().ok().map(Value::from),
        "integer" | "number" => {
            // Negative ones are written in brackets, or in quotes with a type behind.
            let plain = sql.trim_matches(['(', ')']);
            let text = quoted(plain).unwrap_or_else(|| plain.to_owned());
            let value: Value = serde_json::from_str(&text).ok()?;
            (value.is_number() && (kind == "number" || value.is_i64())).then_some(value)
        }
        "string" => quoted(sql).map(Value::from),
        _ => None,
    }
}

/// `'it''s'::text`: what is in the quotes.
fn quoted(sql: &str) -> Option<String> {
    let rest = sql.strip_prefix('\'')?;
    let mut text = String::new();
    let mut characters = rest.char_indices().peekable();
    while let Some((place, character)) = characters.next() {
        if character != '\'' {
            text.push(character);
        } else if characters.next_if(|(_, next)| *next == '\'').is_some() {
            text.push('\'');
        } else {
            let cast = rest.get(place + 1..)?;
            let is_type = |c: char| c.is_alphanumeric() || " _.\"[]".contains(c);
            let plain = cast.is_empty()
                || cast.strip_prefix("::").is_some_and(|name| name.chars().all(is_type));
            return plain.then_some(text);
        }
    }
    None
}

/// The object in a value that is one.
pub(super) fn map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Map::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_that_are_values_are_told() {
        let check = |sql: &str, kind: &str, expected: Option<Value>| {
            assert_eq!(literal(sql, kind), expected, "{sql}");
        };
        check("7", "integer", Some(json!(7)));
        check("'-7'::integer", "integer", Some(json!(-7)));
        check("(-7)", "integer", Some(json!(-7)));
        check("1.5", "number", Some(json!(1.5)));
        check("1.5", "integer", None);
        check("nextval('a_id_seq'::regclass)", "integer", None);
        check("true", "boolean", Some(json!(true)));
        check("'it''s'::text", "string", Some(json!("it's")));
        check("'x'::public.mood", "string", Some(json!("x")));
        check("'a'::text || 'b'::text", "string", None);
        check("('a'::text)", "string", None);
        check("now()", "string", None);
        check("'open", "string", None);
        check("'{}'::jsonb", "object", None);
    }

    #[test]
    fn types_are_written_as_postgres_writes_them() {
        let kind = |base: &str, category: char| Value::Object(of_type(base, category));
        assert_eq!(kind("bigint", 'N'), json!({ "type": "integer", "format": "int64" }));
        let items = json!({ "type": "string", "format": "uuid" });
        assert_eq!(kind("uuid[]", 'A'), json!({ "type": "array", "items": items }));
        assert_eq!(kind("jsonb", 'U'), json!({}));
        assert_eq!(kind("extensions.hstore", 'U'), json!({ "format": "extensions.hstore" }));
        let text = Value::Object(in_query("integer[]", 'A'));
        assert_eq!(text, json!({ "type": "string", "format": "integer[]" }));
        let column = Column {
            base_type: "public.mood".into(),
            enum_values: ["a".into(), "b".into()].into(),
            nullable: true,
            default: Some("'b'::public.mood".into()),
            ..Column::default()
        };
        let expected = json!({
            "type": ["string", "null"], "format": "public.mood", "enum": ["a", "b", null],
            "default": "b",
        });
        assert_eq!(Value::Object(of_column(&column)), expected);
    }
}
