//! `Accept`: in which form the answer is wanted.

use axum::http::{HeaderMap, StatusCode, header};

use crate::rest::Problem;

/// What we can produce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Media {
    /// `application/json`, `application/vnd.pgrst.array+json`, `*/*`
    #[default]
    Json,
    /// `application/vnd.pgrst.object+json`: exactly one row, not in an array.
    Object,
    /// `text/csv`
    Csv,
    /// `application/openapi+json`, for the root.
    OpenApi,
}

impl Media {
    /// The best of what `Accept` asks for, in its order of preference.
    ///
    /// # Errors
    /// 406 `PGRST107` when none of it can be produced; `PGRST127` for what PostgREST could.
    pub fn choose(headers: &HeaderMap) -> Result<Self, Problem> {
        let mut asked = Vec::new();
        for header in headers.get_all(header::ACCEPT) {
            let header = String::from_utf8_lossy(header.as_bytes()).into_owned();
            asked.extend(split(&header, ',').into_iter().filter_map(Asked::parse));
        }
        if asked.is_empty() {
            return Ok(Self::default());
        }
        // Stable: what is asked for equally is tried in the order it came.
        asked.sort_by_key(|asked| (std::cmp::Reverse(asked.quality), asked.is_any));
        let mut not_implemented = None;
        for asked in asked.iter().filter(|asked| asked.quality > 0) {
            match asked.range {
                Range::Known(media) => return Ok(media),
                Range::NotImplemented(feature) => {
                    not_implemented.get_or_insert(feature);
                }
                Range::Unknown => {}
            }
        }
        if let Some(feature) = not_implemented {
            return Err(Problem::not_implemented(feature));
        }
        let names: Vec<&str> = asked.iter().map(|asked| asked.name.as_str()).collect();
        let message = format!("None of these media types are available: {}", names.join(", "));
        Err(Problem::new(StatusCode::NOT_ACCEPTABLE, "PGRST107", message))
    }

    /// For the header of the answer.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json; charset=utf-8",
            Self::Object => "application/vnd.pgrst.object+json; charset=utf-8",
            Self::Csv => "text/csv; charset=utf-8",
            Self::OpenApi => "application/openapi+json; charset=utf-8",
        }
    }
}

/// One element of `Accept`.
#[derive(Debug)]
struct Asked {
    /// As it came, without its parameters.
    name: String,
    /// Thousandths.
    quality: u16,
    /// `*/*` and its like, which any other is more specific than.
    is_any: bool,
    range: Range,
}

/// What an element is satisfied with.
#[derive(Debug, Clone, Copy)]
enum Range {
    /// This.
    Known(Media),
    /// Something that PostgREST has.
    NotImplemented(&'static str),
    /// Nothing here.
    Unknown,
}

impl Asked {
    /// None when there is nothing between the commas.
    fn parse(element: &str) -> Option<Self> {
        let mut parts = split(element, ';').into_iter();
        let name = parts.next()?.trim().to_ascii_lowercase();
        if name.is_empty() {
            return None;
        }
        let mut quality = 1_000;
        let mut is_stripped = false;
        for parameter in parts {
            let Some((key, value)) = parameter.split_once('=') else { continue };
            let value = value.trim().trim_matches('"');
            if key.trim().eq_ignore_ascii_case("q") {
                quality = thousandths(value).unwrap_or(quality);
            } else if key.trim().eq_ignore_ascii_case("nulls") {
                is_stripped = value == "stripped";
            }
        }
        let stripped = Range::NotImplemented("nulls=stripped");
        let range = match name.as_str() {
            "application/vnd.pgrst.object+json"
            | "application/vnd.pgrst.object"
            | "application/vnd.pgrst.array+json"
            | "application/vnd.pgrst.array"
                if is_stripped =>
            {
                stripped
            }
            "application/vnd.pgrst.object+json" | "application/vnd.pgrst.object" => {
                Range::Known(Media::Object)
            }
            "*/*"
            | "application/*"
            | "application/json"
            | "application/vnd.pgrst.array+json"
            | "application/vnd.pgrst.array" => Range::Known(Media::Json),
            "text/csv" | "text/*" => Range::Known(Media::Csv),
            "application/openapi+json" => Range::Known(Media::OpenApi),
            "application/geo+json" => Range::NotImplemented("application/geo+json"),
            "application/vnd.pgrst.plan"
            | "application/vnd.pgrst.plan+json"
            | "application/vnd.pgrst.plan+text" => {
                Range::NotImplemented("application/vnd.pgrst.plan")
            }
            _ => Range::Unknown,
        };
        Some(Self { is_any: name.ends_with("/*"), name, quality, range })
    }
}

/// A weight, `0.8`, in thousandths.
fn thousandths(value: &str) -> Option<u16> {
    let (whole, part) = value.split_once('.').unwrap_or((value, ""));
    let is_number = part.len() <= 3 && part.bytes().all(|byte| byte.is_ascii_digit());
    let part = format!("{part:0<3}");
    match whole {
        "0" if is_number => part.parse().ok(),
        "1" if is_number && part == "000" => Some(1_000),
        _ => None,
    }
}

/// Splits at a separator that is not in double quotes.
pub(super) fn split(text: &str, separator: char) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut is_quoted = false;
    let mut is_escaped = false;
    let mut start = 0;
    for (place, character) in text.char_indices() {
        match character {
            _ if is_escaped => is_escaped = false,
            '\\' if is_quoted => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            other if other == separator && !is_quoted => {
                parts.push(&text[start..place]);
                start = place + separator.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(accept: &[&'static str]) -> Result<Media, String> {
        let mut headers = HeaderMap::new();
        for value in accept {
            headers.append(header::ACCEPT, value.parse().unwrap());
        }
        Media::choose(&headers).map_err(|problem| {
            let details = problem.details.as_ref().and_then(|details| details.as_str());
            let details = details.unwrap_or_default();
            format!("{} {}: {} {details}", problem.status.as_u16(), problem.code, problem.message)
        })
    }

    #[test]
    fn the_best_that_can_be_produced_is_chosen() {
        let check = |accept: &'static str, expected: Media| {
            assert_eq!(choose(&[accept]), Ok(expected), "{accept}");
        };
        assert_eq!(choose(&[]), Ok(Media::Json));
        check("", Media::Json);
        check("*/*", Media::Json);
        check("application/*", Media::Json);
        check("application/json", Media::Json);
        check("Application/JSON; charset=utf-8", Media::Json);
        check("application/vnd.pgrst.array+json", Media::Json);
        check("application/vnd.pgrst.object+json", Media::Object);
        check("application/vnd.pgrst.object", Media::Object);
        check("application/vnd.pgrst.object+json;nulls=kept", Media::Object);
        check("text/csv", Media::Csv);
        check("application/openapi+json", Media::OpenApi);
        check("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Media::Json);
        check("application/json;q=0.5, text/csv", Media::Csv);
        check("text/csv;q=0.4, application/json;q=0.45", Media::Json);
        check("*/*, text/csv", Media::Csv);
        check("text/csv;q=0, */*", Media::Json);
        check("application/geo+json, application/json;q=0.1", Media::Json);
        check("image/png;a=\"x,text/csv;q=1\", application/json;q=0.2", Media::Json);
        assert_eq!(choose(&["image/png", "text/csv"]), Ok(Media::Csv));
    }

    #[test]
    fn what_cannot_be_produced_is_named() {
        let check = |accept: &'static str, expected: &str| {
            assert_eq!(choose(&[accept]), Err(expected.to_owned()), "{accept}");
        };
        let none = "406 PGRST107: None of these media types are available:";
        check("application/octet-stream", &format!("{none} application/octet-stream "));
        check("image/png;q=0.1, text/xml", &format!("{none} text/xml, image/png "));
        check("application/json;q=0", &format!("{none} application/json "));
        check("nonsense", &format!("{none} nonsense "));
        let not = "400 PGRST127: Feature not implemented";
        check("application/geo+json", &format!("{not} application/geo+json"));
        let plan =
            "application/vnd.pgrst.plan+text; for=\"application/json\"; options=analyze|wal;";
        check(plan, &format!("{not} application/vnd.pgrst.plan"));
        check("application/vnd.pgrst.array+json;nulls=stripped", &format!("{not} nulls=stripped"));
        check(
            "application/vnd.pgrst.object+json; nulls=stripped",
            &format!("{not} nulls=stripped"),
        );
    }

    #[test]
    fn weights_are_thousandths() {
        for (text, expected) in [
            ("1", Some(1_000)),
            ("1.000", Some(1_000)),
            ("0", Some(0)),
            ("0.8", Some(800)),
            ("0.", Some(0)),
            ("0.123", Some(123)),
            ("0.1234", None),
            ("1.001", None),
            ("2", None),
            ("-1", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(thousandths(text), expected, "{text}");
        }
    }
}
