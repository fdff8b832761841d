//! Bodies of writes and calls: JSON, with the keys that another reader finds in it.

use axum::http::{HeaderMap, HeaderValue, header};
use bytes::Bytes;
use serde_json::Value;
use walcast::rest::request::Body;

/// The first byte chooses the `Content-Type`; the rest is the body.
pub fn check(bytes: &[u8]) {
    let Some((&selector, content)) = bytes.split_first() else { return };
    let mut headers = HeaderMap::new();
    let kind = match selector % 4 {
        0 => "application/json",
        1 => "text/csv",
        2 => "application/x-www-form-urlencoded",
        _ => "Application/vnd.pgrst.object+JSON; charset=utf-8",
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    let body = Bytes::copy_from_slice(content);
    let is_json = matches!(selector % 4, 0 | 3);
    match Body::parse(&headers, body) {
        Ok(body) => read(content, is_json, &body),
        Err(problem) => {
            assert!(problem.status.is_client_error(), "{problem:?}");
            let is_other = serde_json::from_slice::<Value>(content).is_err();
            assert!(!is_json || is_other, "JSON was refused: {problem:?}");
        }
    }
}

fn read(content: &[u8], is_json: bool, body: &Body) {
    let Some(text) = body.text() else {
        assert_eq!((body, body.keys()), (&Body::Empty, &[][..]));
        return;
    };
    if is_json {
        assert_eq!(text, content, "what came is passed on");
    }
    // A number that this reader has not is refused by it, and by Postgres where it matters.
    let Ok(value) = serde_json::from_slice::<Value>(text) else {
        assert!(is_json && serde_json::from_slice::<&serde_json::value::RawValue>(text).is_ok());
        return;
    };
    let keys_of = |value: &Value| -> Vec<String> {
        value.as_object().into_iter().flat_map(|object| object.keys().cloned()).collect()
    };
    match body {
        Body::Empty => panic!("it has text"),
        Body::Object { keys, .. } => {
            assert!(value.is_object());
            assert_eq!(*keys, keys_of(&value));
        }
        Body::Array { keys, len, is_uniform, .. } => {
            let rows = value.as_array().expect("an array was found");
            assert!(rows.len() == *len && rows.iter().all(Value::is_object));
            let mut all = Vec::new();
            for key in rows.iter().flat_map(keys_of) {
                if !all.contains(&key) {
                    all.push(key);
                }
            }
            if is_json || !rows.is_empty() {
                assert_eq!(*keys, all);
            }
            let sorted = |row: &Value| {
                let mut keys = keys_of(row);
                keys.sort();
                keys
            };
            let alike = rows.windows(2).all(|pair| sorted(&pair[0]) == sorted(&pair[1]));
            assert_eq!(*is_uniform, alike);
        }
        Body::Other(_) => {
            let is_rows = value.as_array().is_some_and(|rows| rows.iter().all(Value::is_object));
            assert!(!value.is_object() && !is_rows);
        }
    }
    if !is_json {
        let cells = match &value {
            Value::Array(rows) => rows.iter().filter_map(Value::as_object).collect(),
            Value::Object(row) => vec![row],
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                panic!("{value} is no row")
            }
        };
        for cell in cells.into_iter().flat_map(serde_json::Map::values) {
            assert!(cell.is_string() || cell.is_null(), "{cell}");
        }
    }
}
