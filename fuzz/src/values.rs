//! Values in Postgres' text form → JSON: any bytes give one JSON value on one line, of a length the
//! input accounts for; what Postgres would print for a value gives that value.

use std::sync::LazyLock;

use serde_json::value::RawValue;
use serde_json::{Map, Number, Value};
use walcast::change::value::{Type, render};

/// Scalars, then values within values.
static KINDS: LazyLock<Vec<Type>> = LazyLock::new(|| {
    let array = |element: Type| Type::Array { element: Box::new(element), delimiter: b',' };
    let pair = |x: Type, y: Type| Type::Composite([("x".into(), x), ("y".into(), y)].into());
    let scalars = [
        Type::Text,
        Type::Bool,
        Type::Integer,
        Type::Numeric,
        Type::Float,
        Type::Json,
        Type::Bytea,
        Type::Timestamp,
        Type::TimestampTz,
    ];
    let mut kinds = scalars.to_vec();
    kinds.extend(scalars.iter().cloned().map(array));
    kinds.extend(scalars.iter().cloned().map(|kind| pair(Type::Text, kind)));
    kinds.push(Type::Array { element: Box::new(Type::Text), delimiter: b';' });
    kinds.push(Type::Vector(Box::new(Type::Integer)));
    kinds.push(array(pair(array(Type::Integer), Type::Json)));
    kinds.push(pair(pair(Type::Bytea, array(Type::Text)), Type::Vector(Box::new(Type::Bool))));
    kinds
});

/// The first byte says of which type the rest is, or what is to be built of it.
pub fn check(bytes: &[u8]) {
    let Some((&selector, text)) = bytes.split_first() else { return };
    if selector < 0x80 {
        let kind = &KINDS[usize::from(selector) % KINDS.len()];
        let json = rendered(kind, text);
        scalar(kind, text, &json);
    } else {
        printed(selector, text);
    }
}

/// The JSON, which must be one value on one line, behind what was there before.
fn rendered(kind: &Type, text: &[u8]) -> String {
    let mut out = b"before".to_vec();
    render(kind, text, &mut out);
    let json = out.strip_prefix(b"before").expect("it is only added to");
    let json = std::str::from_utf8(json).expect("JSON is UTF-8");
    assert!(serde_json::from_str::<&RawValue>(json).is_ok(), "{kind:?} {json}");
    assert!(json.bytes().all(|byte| byte >= b' '), "{kind:?} {json}");
    assert!(json.len() <= 16 * text.len() + 64, "{kind:?} {json}");
    json.to_owned()
}

/// What a scalar's JSON must be, by other means.
fn scalar(kind: &Type, bytes: &[u8], json: &str) {
    let text = String::from_utf8_lossy(bytes);
    let string = || serde_json::from_str::<String>(json).unwrap_or_else(|_| panic!("{json}"));
    match kind {
        Type::Text => assert_eq!(string(), text),
        Type::Bytea => assert_eq!(string(), text.strip_prefix("\\x").unwrap_or(&text)),
        Type::Bool => match &*text {
            "t" => assert_eq!(json, "true"),
            "f" => assert_eq!(json, "false"),
            _ => assert_eq!(string(), text),
        },
        Type::Numeric | Type::Float if matches!(&*text, "NaN" | "Infinity" | "-Infinity") => {
            assert_eq!(json, "null");
        }
        Type::Integer | Type::Numeric | Type::Float => {
            let is_blank = text.starts_with([' ', '\t', '\r', '\n'])
                || text.ends_with([' ', '\t', '\r', '\n']);
            let is_number = serde_json::from_str::<Number>(&text).is_ok() && !is_blank;
            if is_number || json == text {
                assert_eq!(json, text);
                assert!(text.starts_with(|first: char| first == '-' || first.is_ascii_digit()));
            } else {
                assert_eq!(string(), text);
            }
        }
        Type::Json => match serde_json::from_slice::<Value>(bytes) {
            Ok(value) => assert_eq!(serde_json::from_str::<Value>(json).ok(), Some(value)),
            Err(_) if json.len() == bytes.len() => {} // a number or a depth that `Value` has not
            Err(_) => assert_eq!(string(), text),
        },
        Type::Timestamp | Type::TimestampTz => {
            let string = string();
            let plain = string == text;
            let split = string.replacen('T', " ", 1);
            assert!(plain || split == text || is_offset_completed(&split, &text), "{json}");
        }
        Type::Array { .. } | Type::Vector(_) | Type::Composite(_) => {}
    }
}

/// Whether the two differ by `:00`, before the era.
fn is_offset_completed(found: &str, text: &str) -> bool {
    let (instant, era) = match text.strip_suffix(" BC") {
        Some(instant) => (instant, " BC"),
        None => (text, ""),
    };
    let date_has_t = instant.split(' ').next().is_some_and(|date| date.contains('T'));
    found == format!("{instant}:00{era}") || date_has_t
}

/// Builds a value, prints it as Postgres does, and expects it back.
fn printed(selector: u8, content: &[u8]) {
    let array = |element: Type| Type::Array { element: Box::new(element), delimiter: b',' };
    let record = |of: &[Type]| {
        let names = (0..of.len()).map(|number| format!("c{number}").into());
        Type::Composite(names.zip(of.iter().cloned()).collect())
    };
    let items: Vec<Option<String>> = content
        .split(|byte| *byte == 0xFF)
        .take(64)
        .map(|item| (item != b"\xFE").then(|| String::from_utf8_lossy(item).into_owned()))
        .collect();
    let texts = vec![Type::Text; items.len()];
    let list = Value::Array(items.iter().map(|item| value(item.as_deref())).collect());
    let object = |values: Vec<Value>| {
        let names = (0..values.len()).map(|number| format!("c{number}"));
        Value::Object(names.zip(values).collect::<Map<_, _>>())
    };
    let row = object(items.iter().map(|item| value(item.as_deref())).collect());
    let (kind, text, expected) = match selector % 6 {
        0 => (array(Type::Text), array_out(&items), list),
        1 => {
            let text = format!("[0:{}]={}", items.len() - 1, array_out(&items));
            (array(Type::Text), text, list)
        }
        2 => (record(&texts), record_out(&items), row),
        3 => {
            let rows = [Some(record_out(&items)), None, Some(record_out(&items))];
            let expected = Value::Array(vec![row.clone(), Value::Null, row]);
            (array(record(&texts)), array_out(&rows), expected)
        }
        4 => {
            let fields = [Some(array_out(&items)), None, Some(record_out(&items))];
            let kinds = [array(Type::Text), Type::Bool, record(&texts)];
            (record(&kinds), record_out(&fields), object(vec![list, Value::Null, row]))
        }
        _ => {
            let text = format!("{{{0},{0}}}", array_out(&items));
            (array(Type::Text), text, Value::Array(vec![list.clone(), list]))
        }
    };
    let json = rendered_anyway(&kind, text.as_bytes());
    assert_eq!(serde_json::from_str::<Value>(&json).ok(), Some(expected), "{text} {json}");
}

/// As [`rendered`], for types whose names are longer than their values.
fn rendered_anyway(kind: &Type, text: &[u8]) -> String {
    let mut out = Vec::new();
    render(kind, text, &mut out);
    String::from_utf8(out).expect("JSON is UTF-8")
}

fn value(item: Option<&str>) -> Value {
    item.map_or(Value::Null, Value::from)
}

/// As Postgres' function of this name.
fn array_out(items: &[Option<String>]) -> String {
    let items = items.iter().map(|item| {
        let Some(item) = item else { return "NULL".to_owned() };
        let quoted = item.is_empty()
            || item.eq_ignore_ascii_case("NULL")
            || item.contains(['"', '\\', '{', '}', ',', ' ', '\t', '\n', '\r', '\u{b}', '\u{c}']);
        if !quoted {
            return item.clone();
        }
        format!("\"{}\"", item.replace('\\', "\\\\").replace('"', "\\\""))
    });
    format!("{{{}}}", items.collect::<Vec<_>>().join(","))
}

/// As Postgres' function of this name.
fn record_out(items: &[Option<String>]) -> String {
    let items = items.iter().map(|item| {
        let Some(item) = item else { return String::new() };
        let quoted = item.is_empty()
            || item.contains(['"', '\\', '(', ')', ',', ' ', '\t', '\n', '\r', '\u{b}', '\u{c}']);
        if !quoted {
            return item.clone();
        }
        format!("\"{}\"", item.replace('\\', "\\\\").replace('"', "\"\""))
    });
    format!("({})", items.collect::<Vec<_>>().join(","))
}
