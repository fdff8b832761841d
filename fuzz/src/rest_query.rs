//! Query strings of the REST interface, as they stand in a URL: what is refused is the client's
//! fault, nothing depends on whether a character is written as it is or as a percent code, and no
//! filter is lost or compares with another value.

use std::fmt::Write as _;

use walcast::rest::request::{Condition, Operator, Query, Test, pairs};

/// Names that are no column's.
const RESERVED: [&str; 9] =
    ["select", "order", "limit", "offset", "columns", "on_conflict", "and", "or", "not"];

/// The whole input is the query string.
pub fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let read = Query::from_text(text);
    if let Err(problem) = &read {
        assert!(problem.status.is_client_error(), "{problem:?}");
    }
    let Ok(pairs) = pairs(text) else { return };
    let mut encoded = String::new();
    for (place, (name, value)) in pairs.iter().enumerate() {
        if place > 0 {
            encoded.push('&');
        }
        encode(name, &mut encoded);
        encoded.push('=');
        encode(value, &mut encoded);
    }
    assert_eq!(Query::from_text(&encoded), read, "{encoded}");
    let Ok(query) = read else { return };
    for (name, value) in &pairs {
        let is_column = name.bytes().all(|byte| byte.is_ascii_lowercase()) && !name.is_empty();
        if is_column
            && !RESERVED.contains(&&**name)
            && let Some(value) = value.strip_prefix("eq.")
        {
            assert!(
                query.filters.iter().any(|filter| {
                    filter.path.is_empty() && is_equality(&filter.what, name, value)
                }),
                "{name} {value}"
            );
        }
    }
}

/// Whether it is this column's comparison with this value.
fn is_equality(condition: &Condition, name: &str, value: &str) -> bool {
    let Condition::Test { field, test: Test::Compare { operator, quantifier, value: found } } =
        condition
    else {
        return false;
    };
    let same = field.name == name && field.path.is_empty() && found == value;
    same && *operator == Operator::Eq && quantifier.is_none()
}

fn encode(text: &str, out: &mut String) {
    for byte in text.bytes() {
        write!(out, "%{byte:02X}").expect("memory takes every write");
    }
}
