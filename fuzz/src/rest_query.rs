//! Query strings of the REST interface, as they stand in a URL: what is refused is the client's
//! fault, and nothing depends on whether a character is written as it is or as a percent code.

use std::fmt::Write as _;

use walcast::rest::request::{Query, pairs};

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
}

fn encode(text: &str, out: &mut String) {
    for byte in text.bytes() {
        write!(out, "%{byte:02X}").expect("memory takes every write");
    }
}
