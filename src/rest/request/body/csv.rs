//! `text/csv` → a JSON array of objects, each value a string, or null where it says `NULL`.
//!
//! Source: RFC 4180; what it says of quotes is taken where a field begins with one.

use axum::http::StatusCode;

use super::Body;
use super::json::Keys;
use crate::rest::Problem;

/// Columns of a header: what a table can have.
const COLUMNS_MAX: usize = 1_600;

/// Bytes of the JSON text that lines may become. Names are repeated on every line there, so that
/// a small body could become an endless one.
const TEXT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The first line has the names. Empty lines are passed over.
pub(super) fn parse(body: &[u8]) -> Result<Body, Problem> {
    let text = std::str::from_utf8(body).map_err(|_| Problem::body("CSV is not valid UTF-8"))?;
    let mut lines = Lines { rest: text.strip_prefix('\u{feff}').unwrap_or(text) };
    let Some(header) = lines.next_line()? else { return Ok(Body::Empty) };
    if header.len() > COLUMNS_MAX {
        return Err(Problem::body(format!("More than {COLUMNS_MAX} columns in CSV")));
    }
    let mut keys = Keys::default();
    let mut names = Vec::with_capacity(header.len());
    for name in &header {
        keys.place(name, names.len());
        names.push(string(name));
    }
    let mut json = String::from("[");
    let mut len = 0;
    while let Some(line) = lines.next_line()? {
        if line.len() != names.len() {
            return Err(Problem::body("All lines must have same number of fields"));
        }
        json.push_str(if len == 0 { "{" } else { ",{" });
        len += 1;
        for (place, (name, value)) in names.iter().zip(&line).enumerate() {
            if place > 0 {
                json.push(',');
            }
            json.push_str(name);
            json.push(':');
            json.push_str(&if value == "NULL" { "null".to_owned() } else { string(value) });
        }
        json.push('}');
        if json.len() > TEXT_BYTES_MAX {
            let message = "CSV is too long";
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "PGRST102", message));
        }
    }
    json.push(']');
    Ok(Body::Array { text: json.into(), keys: keys.names, len, is_uniform: true })
}

/// As JSON text.
fn string(value: &str) -> String {
    serde_json::Value::from(value).to_string()
}

/// What is not read yet.
struct Lines<'a> {
    rest: &'a str,
}

impl Lines<'_> {
    /// The fields of the next line that is not empty.
    fn next_line(&mut self) -> Result<Option<Vec<String>>, Problem> {
        self.rest = self.rest.trim_start_matches(['\r', '\n']);
        if self.rest.is_empty() {
            return Ok(None);
        }
        let mut fields = Vec::new();
        loop {
            fields.push(self.field()?);
            if let Some(rest) = self.rest.strip_prefix(',') {
                self.rest = rest;
            } else if self.rest.is_empty() || self.rest.starts_with(['\r', '\n']) {
                return Ok(Some(fields));
            } else {
                return Err(Problem::body("CSV goes on after a quoted field"));
            }
        }
    }

    fn field(&mut self) -> Result<String, Problem> {
        let Some(quoted) = self.rest.strip_prefix('"') else {
            let length = self.rest.find([',', '\r', '\n']).unwrap_or(self.rest.len());
            let (field, rest) = self.rest.split_at(length);
            self.rest = rest;
            return Ok(field.to_owned());
        };
        let mut field = String::new();
        let mut rest = quoted;
        while let Some((inside, after)) = rest.split_once('"') {
            field.push_str(inside);
            let Some(more) = after.strip_prefix('"') else {
                self.rest = after;
                return Ok(field);
            };
            field.push('"');
            rest = more;
        }
        Err(Problem::body("CSV ends in a quoted field"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(csv: &str, expected: &str) {
        let found = match parse(csv.as_bytes()) {
            Ok(Body::Array { text, len, keys, is_uniform: true }) => {
                let rows: Vec<serde_json::Value> = serde_json::from_slice(&text).unwrap();
                assert_eq!(rows.len(), len);
                format!("{} {}", keys.join("|"), std::str::from_utf8(&text).unwrap())
            }
            Ok(other) => format!("{other:?}"),
            Err(problem) => problem.to_string(),
        };
        assert_eq!(found, expected, "{csv}");
    }

    #[test]
    fn lines_become_objects_of_strings() {
        check("a,b\n1,hi\n2,bye", r#"a|b [{"a":"1","b":"hi"},{"a":"2","b":"bye"}]"#);
        check("a,b\r\n\r\n1,NULL\r\n\n,\r\n", r#"a|b [{"a":"1","b":null},{"a":"","b":""}]"#);
        check("\u{feff}a\n\"x\n\"\"y\"\",\"\n", r#"a [{"a":"x\n\"y\","}]"#);
        check("\"a b\"\nx\"y\n", r#"a b [{"a b":"x\"y"}]"#);
        check("a,b", "a|b []");
        check("\n", "Empty");
    }

    #[test]
    fn what_is_no_table_is_refused() {
        let uneven = "PGRST102: All lines must have same number of fields";
        check("a,b\n1\n", uneven);
        check("a\n1,2\n", uneven);
        check("a\n\"1", "PGRST102: CSV ends in a quoted field");
        check("a\n\"1\"2", "PGRST102: CSV goes on after a quoted field");
        assert!(parse(b"a\n\xff").is_err());
        assert!(parse(",".repeat(COLUMNS_MAX).as_bytes()).is_err());
    }

    #[test]
    fn a_small_body_does_not_become_an_endless_one() {
        let name = "a".repeat(100_000);
        let problem = parse(format!("{name}\n{}", "1\n".repeat(700)).as_bytes()).unwrap_err();
        assert_eq!(problem.status, StatusCode::PAYLOAD_TOO_LARGE);
    }

    proptest! {
        #[test]
        fn what_is_written_as_csv_is_read_back(
            rows in (1..4_usize).prop_flat_map(|width| {
                prop::collection::vec(prop::collection::vec("[a-c\",\r\n ]{0,4}", width), 1..5)
            }),
        ) {
            let quote = |field: &String| format!("\"{}\"", field.replace('"', "\"\""));
            let lines: Vec<String> =
                rows.iter().map(|row| row.iter().map(quote).collect::<Vec<_>>().join(",")).collect();
            let Ok(Body::Array { text, .. }) = parse(lines.join("\n").as_bytes()) else {
                panic!("{lines:?}");
            };
            let read: Vec<serde_json::Map<String, serde_json::Value>> =
                serde_json::from_slice(&text).unwrap();
            prop_assert_eq!(read.len(), rows.len() - 1);
            for (read, row) in read.iter().zip(&rows[1..]) {
                // Of columns with one name, JSON keeps the last.
                for (place, name) in rows[0].iter().enumerate() {
                    let place = rows[0].iter().rposition(|other| other == name).unwrap_or(place);
                    prop_assert_eq!(read[name].as_str().unwrap(), &row[place]);
                }
            }
        }

        #[test]
        fn no_text_panics(text in "[a\",\r\n\\PC]{0,60}") {
            let _ = parse(text.as_bytes());
        }
    }
}
