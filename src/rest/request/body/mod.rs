//! The body of a write or a call.
//!
//! In:     its bytes, and the `Content-Type` they came with.
//! Out:    [`Body`]: JSON text, and the keys of its objects.
//! Never:  values built in memory; text that is not JSON; a depth that could exhaust a stack here
//!         or in Postgres.

mod csv;
mod form;
mod json;

use axum::http::{HeaderMap, header};
use bytes::Bytes;

use crate::rest::Problem;

/// A body, checked to be what its `Content-Type` says, its values left as they came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Nothing, or only white space.
    Empty,
    /// One JSON object.
    Object {
        /// Its text.
        text: Bytes,
        /// Its keys, each once, in the order they came.
        keys: Vec<String>,
    },
    /// A JSON array of objects.
    Array {
        /// Its text.
        text: Bytes,
        /// The keys of all of them, each once.
        keys: Vec<String>,
        /// How many objects there are.
        len: usize,
        /// Whether all have the same keys.
        is_uniform: bool,
    },
    /// Any other JSON value.
    Other(Bytes),
}

impl Body {
    /// JSON (also without a `Content-Type`); form and CSV become JSON text of strings.
    ///
    /// # Errors
    /// 400 `PGRST102` when it is not what it says, or something else; `PGRST127` for what only
    /// PostgREST passes to a function as it is.
    pub fn parse(headers: &HeaderMap, body: Bytes) -> Result<Self, Problem> {
        if body.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self::Empty);
        }
        let mut types = headers.get_all(header::CONTENT_TYPE).iter();
        let said = types.next();
        if types.any(|other| Some(other) != said) {
            return Err(Problem::body("More than one Content-Type"));
        }
        let said = said.map(|said| String::from_utf8_lossy(said.as_bytes()));
        let said = said.as_deref().unwrap_or("application/json");
        let name = said.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let (kind, format) = name.split_once('/').unwrap_or((name.as_str(), ""));
        match (kind, format) {
            ("application", format) if format == "json" || format.ends_with("+json") => {
                json::parse(body)
            }
            ("text", "csv") => csv::parse(&body),
            ("application", "x-www-form-urlencoded") => form::parse(&body),
            ("text", "plain" | "xml") | ("application", "octet-stream") => {
                Err(Problem::not_implemented(&format!("bodies of type {name}")))
            }
            _ => Err(Problem::body(format!("Content-Type not acceptable: {name}"))),
        }
    }

    /// Its JSON text; none when there is nothing.
    pub fn text(&self) -> Option<&Bytes> {
        match self {
            Self::Empty => None,
            Self::Object { text, .. } | Self::Array { text, .. } | Self::Other(text) => Some(text),
        }
    }

    /// The keys of its objects, each once.
    pub fn keys(&self) -> &[String] {
        match self {
            Self::Object { keys, .. } | Self::Array { keys, .. } => keys,
            Self::Empty | Self::Other(_) => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(content_type: &[&'static str], body: &str) -> Result<Body, String> {
        let mut headers = HeaderMap::new();
        for value in content_type {
            headers.append(header::CONTENT_TYPE, value.parse().unwrap());
        }
        Body::parse(&headers, Bytes::from(body.to_owned())).map_err(|problem| problem.to_string())
    }

    #[test]
    fn json_is_what_a_body_is_unless_it_says_otherwise() {
        let object = Body::Object { text: Bytes::from(r#"{"a":1}"#), keys: vec!["a".to_owned()] };
        for content_type in [
            &[][..],
            &["application/json"],
            &["Application/JSON; charset=utf-8"],
            &["application/vnd.pgrst.object+json"],
            &["application/json", "application/json"],
        ] {
            assert_eq!(parse(content_type, r#"{"a":1}"#), Ok(object.clone()), "{content_type:?}");
        }
        assert_eq!((object.keys().len(), object.text().unwrap().len()), (1, 7));
    }

    #[test]
    fn nothing_is_nothing_whatever_it_says() {
        for content_type in [&[][..], &["application/json"], &["image/png"], &["text/plain"]] {
            assert_eq!(parse(content_type, " \r\n\t"), Ok(Body::Empty), "{content_type:?}");
        }
        assert_eq!((Body::Empty.text(), Body::Empty.keys().len()), (None, 0));
    }

    #[test]
    fn other_types_are_refused() {
        let check = |content_type: &[&'static str], expected: &str| {
            assert_eq!(parse(content_type, "{}"), Err(expected.to_owned()), "{content_type:?}");
        };
        check(&["image/png"], "PGRST102: Content-Type not acceptable: image/png");
        check(&["json"], "PGRST102: Content-Type not acceptable: json");
        check(&["text/plain;charset=UTF-8"], "PGRST127: Feature not implemented");
        check(&["application/octet-stream"], "PGRST127: Feature not implemented");
        check(&["application/json", "text/csv"], "PGRST102: More than one Content-Type");
    }
}
