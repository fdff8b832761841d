//! What functions can read about the request: the `request.*` settings.

use axum::http::{HeaderMap, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};

use super::Request;
use crate::rest::request::Target;
use crate::rest::run::Context;

/// What stays as it is in one part of a path.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A name as a part of a path.
pub(super) fn encoded(name: &str) -> String {
    utf8_percent_encode(name, PLAIN).to_string()
}

/// Of this request.
pub(super) fn context(request: &Request<'_>) -> Context {
    let path = match request.target {
        Target::Root => "/".to_owned(),
        Target::Relation(name) => format!("/{name}"),
        Target::Function(name) => format!("/rpc/{name}"),
    };
    Context {
        method: request.method.as_str().to_owned(),
        path,
        headers: headers(request.headers),
        cookies: cookies(request.headers),
    }
}

/// All but cookies, by lowercase names; values of one name joined, what is no text left out.
fn headers(headers: &HeaderMap) -> String {
    let mut shown = Map::new();
    for name in headers.keys().filter(|name| *name != header::COOKIE) {
        let values = headers.get_all(name).iter();
        let texts: Option<Vec<&str>> =
            values.map(|value| std::str::from_utf8(value.as_bytes()).ok()).collect();
        if let Some(texts) = texts {
            shown.insert(name.as_str().to_owned(), texts.join(", ").into());
        }
    }
    Value::Object(shown).to_string()
}

/// By name.
fn cookies(headers: &HeaderMap) -> String {
    let texts = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = texts.flat_map(|text| text.split(';')).filter_map(|pair| pair.split_once('='));
    let pairs = pairs.map(|(name, value)| (name.trim().to_owned(), value.trim().into()));
    Value::Object(pairs.collect()).to_string()
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn headers_and_cookies_are_objects() {
        let mut sent = HeaderMap::new();
        for (name, value) in [
            ("x-forwarded-for", "192.0.2.1"),
            ("x-tenant", "one"),
            ("x-tenant", "two \"2\""),
            ("cookie", "a=1; b = x=y"),
            ("cookie", "nothing"),
        ] {
            sent.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        sent.insert("x-bytes", HeaderValue::from_bytes(b"\xff").unwrap());
        assert_eq!(
            headers(&sent),
            r#"{"x-forwarded-for":"192.0.2.1","x-tenant":"one, two \"2\""}"#
        );
        assert_eq!(cookies(&sent), r#"{"a":"1","b":"x=y"}"#);
        assert_eq!(cookies(&HeaderMap::new()), "{}");
    }

    #[test]
    fn a_name_is_encoded_as_one_part_of_a_path() {
        assert_eq!(encoded("a b/c?ü-._~"), "a%20b%2Fc%3F%C3%BC-._~");
    }
}
