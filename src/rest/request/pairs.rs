//! The query string as names and values.

use std::borrow::Cow;

use axum::http::StatusCode;
use percent_encoding::percent_decode;

use super::query;
use crate::rest::Problem;

/// Parameters of one query string: far more than an application has columns to filter by.
const PAIRS_MAX: usize = 1_000;

/// Bytes of all names and values together: hyper takes no longer URL either.
const BYTES_MAX: usize = 65_536;

/// Names and values, decoded.
pub type Pairs<'a> = Vec<(Cow<'a, str>, Cow<'a, str>)>;

/// What a query string has had so far.
#[derive(Debug, Default)]
pub(super) struct Limit {
    pairs: usize,
    bytes: usize,
}

impl Limit {
    /// Counts one pair.
    ///
    /// # Errors
    /// 414 when it is one too many; 400 `PGRST100` for a NUL byte, which no text in Postgres has.
    pub(super) fn admit(&mut self, name: &str, value: &str) -> Result<(), Problem> {
        self.pairs += 1;
        self.bytes = self.bytes.saturating_add(name.len()).saturating_add(value.len());
        if self.pairs > PAIRS_MAX || self.bytes > BYTES_MAX {
            let message = "failed to parse query string: it is too long";
            let details = format!("at most {PAIRS_MAX} parameters and {BYTES_MAX} bytes");
            return Err(
                Problem::new(StatusCode::URI_TOO_LONG, "PGRST100", message).with_details(details)
            );
        }
        if name.contains('\0') || value.contains('\0') {
            return Err(unreadable("NUL bytes are not allowed"));
        }
        Ok(())
    }
}

/// Decodes a query string, without its question mark. A name without a `=` says nothing, and is
/// left out.
///
/// # Errors
/// 400 `PGRST100` for bytes that are no UTF-8, and NUL; 414 when it is too long.
pub fn pairs(query: &str) -> Result<Pairs<'_>, Problem> {
    let mut limit = Limit::default();
    let mut pairs = Vec::new();
    for pair in query.split('&') {
        let Some((name, value)) = pair.split_once('=') else { continue };
        let (name, value) = (decode(name)?, decode(value)?);
        limit.admit(&name, &value)?;
        pairs.push((name, value));
    }
    Ok(pairs)
}

/// Those of the pairs that a function is called with: all that are neither a filter nor one of
/// the dialect's own.
pub fn arguments<'a>(pairs: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let is_argument =
        |(name, value): &&(&str, &str)| !query::is_reserved(name) && !query::is_filter(value);
    pairs.iter().filter(is_argument).copied().collect()
}

/// `+` is a space, `%41` an A.
pub(super) fn decode(text: &str) -> Result<Cow<'_, str>, Problem> {
    let not_utf8 = |_| unreadable("not valid UTF-8");
    if text.contains('+') {
        let text = text.replace('+', " ");
        let decoded = percent_decode(text.as_bytes()).decode_utf8().map_err(not_utf8)?;
        return Ok(Cow::Owned(decoded.into_owned()));
    }
    percent_decode(text.as_bytes()).decode_utf8().map_err(not_utf8)
}

fn unreadable(details: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "PGRST100", "failed to parse query string")
        .with_details(details)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(query: &str) -> Vec<(String, String)> {
        let pairs = pairs(query).unwrap();
        pairs.into_iter().map(|(name, value)| (name.into_owned(), value.into_owned())).collect()
    }

    #[test]
    fn names_and_values_are_decoded() {
        let check = |query: &str, expected: &[(&str, &str)]| {
            let expected: Vec<_> =
                expected.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
            assert_eq!(decoded(query), expected, "{query}");
        };
        check("", &[]);
        check("a=1&b=2", &[("a", "1"), ("b", "2")]);
        check("a&b=&&=c", &[("b", ""), ("", "c")]);
        check("a+b=c%20d%2Be&f=g=h", &[("a b", "c d+e"), ("f", "g=h")]);
        check("a=%C3%A4%", &[("a", "ä%")]);
    }

    #[test]
    fn what_no_text_can_hold_is_refused() {
        for query in ["a=%00", "%00=a", "a=%ff", "%c3=a"] {
            let problem = pairs(query).unwrap_err();
            assert_eq!((problem.status.as_u16(), &*problem.code), (400, "PGRST100"), "{query}");
        }
    }

    #[test]
    fn a_query_string_has_a_longest() {
        assert_eq!(pairs(&"a=1&".repeat(PAIRS_MAX)).unwrap().len(), PAIRS_MAX);
        for query in ["a=1&".repeat(PAIRS_MAX + 1), format!("a={}", "b".repeat(BYTES_MAX))] {
            assert_eq!(pairs(&query).unwrap_err().status, StatusCode::URI_TOO_LONG);
        }
    }

    #[test]
    fn a_function_is_called_with_what_is_no_filter() {
        let pairs = [
            ("a", "1"),
            ("b", "eq.1"),
            ("c", "not.is.null"),
            ("d", "in.x"),
            ("e", "{1,2}"),
            ("select", "a"),
            ("limit", "1"),
            ("f.order", "a"),
            ("or", "(a.eq.1)"),
            ("g", ""),
        ];
        assert_eq!(arguments(&pairs), [("a", "1"), ("d", "in.x"), ("e", "{1,2}"), ("g", "")]);
    }
}
