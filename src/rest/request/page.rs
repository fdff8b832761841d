//! The `Range` header: which rows, for clients that do not say it with `limit` and `offset`.
//!
//! In:     the headers of a GET, and what its query string says.
//! Out:    the rows that both name.
//! Never:  a range of bytes, or of anything else but rows.
//! Source: `docs.postgrest.org/en/v12/references/api/pagination_count.html`

use axum::http::{HeaderMap, StatusCode, header};

use super::Range;
use crate::rest::Problem;

/// Leaves of `range` what the header names, too; what is no `first-last` names everything.
///
/// # Errors
/// 416 `PGRST103` for a range that ends before it begins.
pub(super) fn within(range: &mut Range, headers: &HeaderMap) -> Result<(), Problem> {
    let is_rows = headers.get("range-unit").is_none_or(|unit| unit == "items");
    let text = headers.get(header::RANGE).and_then(|text| text.to_str().ok());
    let Some((first, last)) = text.filter(|_| is_rows).and_then(parse) else {
        return Ok(());
    };
    if last.is_some_and(|last| last < first) {
        let details = "The lower boundary must be lower than or equal to the upper boundary in the Range \
             header.";
        let message = "Requested range not satisfiable";
        return Err(Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, "PGRST103", message)
            .with_details(details));
    }
    let begin = range.offset.unwrap_or(0);
    let ends = [range.limit.map(|limit| begin.saturating_add(limit)), last.map(|last| last + 1)];
    let first = first.max(begin);
    let end = ends.into_iter().flatten().min();
    range.limit = end.map(|end| end.saturating_sub(first));
    range.offset = Some(first).filter(|first| *first > 0);
    Ok(())
}

/// `0-9`, or `10-` to the end. A number that Postgres cannot count to is as good as the greatest.
fn parse(text: &str) -> Option<(u64, Option<u64>)> {
    let (first, last) = text.trim().split_once('-')?;
    let is_number = |digits: &str| digits.bytes().all(|digit| digit.is_ascii_digit());
    if first.is_empty() || !is_number(first) || !is_number(last) {
        return None;
    }
    let greatest = u64::try_from(i64::MAX).expect("it is positive");
    let number = |digits: &str| digits.parse().unwrap_or(greatest).min(greatest);
    Some((number(first), (!last.is_empty()).then(|| number(last))))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    /// Limit and offset before, the header, limit and offset after; none: it is refused.
    #[track_caller]
    fn check(
        before: (Option<u64>, Option<u64>),
        headers: &[(&'static str, &str)],
        after: Option<(Option<u64>, Option<u64>)>,
    ) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_str(value).unwrap());
        }
        let mut range = Range { limit: before.0, offset: before.1 };
        let found = within(&mut range, &map).map(|()| (range.limit, range.offset));
        assert_eq!(found.ok(), after, "{headers:?}");
    }

    #[test]
    fn a_page_is_what_header_and_query_string_both_name() {
        let nothing = (None, None);
        check(nothing, &[], Some(nothing));
        check(nothing, &[("range", "0-9")], Some((Some(10), None)));
        check(nothing, &[("range", "10-19"), ("range-unit", "items")], Some((Some(10), Some(10))));
        check(nothing, &[("range", "5-")], Some((None, Some(5))));
        check((Some(3), None), &[("range", "1-9")], Some((Some(2), Some(1))));
        check((Some(3), Some(4)), &[("range", "0-")], Some((Some(3), Some(4))));
        check((None, Some(4)), &[("range", "0-5")], Some((Some(2), Some(4))));
        check((Some(1), None), &[("range", "5-9")], Some((Some(0), Some(5))));
        let greatest = u64::try_from(i64::MAX).unwrap();
        let beyond = "0-99999999999999999999";
        check(nothing, &[("range", beyond)], Some((Some(greatest + 1), None)));
    }

    #[test]
    fn what_is_about_something_else_is_not_about_rows() {
        let some = (Some(1), Some(2));
        for headers in [
            &[("range", "bytes=0-9")][..],
            &[("range", "0-9"), ("range-unit", "bytes")],
            &[("range", "-5")],
            &[("range", "x-y")],
            &[("range", "5")],
            &[("range", "0-9,20-29")],
        ] {
            check(some, headers, Some(some));
        }
    }

    #[test]
    fn a_range_that_ends_before_it_begins_is_refused() {
        check((None, None), &[("range", "9-0")], None);
    }

    proptest! {
        #[test]
        fn no_header_makes_a_page_larger(
            text in "[0-9]{0,25}-?[0-9]{0,25}|.*",
            limit in prop::option::of(any::<u64>()),
            offset in prop::option::of(any::<u64>()),
        ) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_str(&text) {
                headers.insert("range", value);
            }
            let mut range = Range { limit, offset };
            if within(&mut range, &headers).is_ok() {
                prop_assert!(range.offset.unwrap_or(0) >= offset.unwrap_or(0));
                prop_assert!(range.limit.unwrap_or(u64::MAX) <= limit.unwrap_or(u64::MAX));
            }
        }
    }
}
