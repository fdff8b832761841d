//! Rows as the server sends them → the JSON that `json_agg` and `row_to_json` make of them. Pure.
//!
//! In:     the columns that the server describes, and its [`Rows`] in text format.
//! Out:    byte for byte what Postgres itself would write, for types where that is certain.
//! Never:  a guess: a column of another type, or a time in another style than ISO, gives nothing, and
//!         the statement is to be asked for JSON instead.
//! Source: Postgres' `json.c` (`datum_to_json`, `composite_to_json`, `json_agg_transfn`), asked
//!         through a real server by `tests/it/rest_rows.rs`.
//!
//! Postgres spends as much time on the JSON of a page as on finding its rows.

use crate::change::builtin;
use crate::change::value::{self, Type};
use crate::db::pipeline::{ANSWER_BYTES_MAX, Row, Rows};

/// Types of times, which `json_agg` writes in ISO style whatever `DateStyle` says.
const DATE: u32 = 1082;
const DATE_ARRAY: u32 = 1182;

/// How a value's text becomes JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Bool,
    /// Digits, or a word that JSON has no number for.
    Number,
    Json,
    Date,
    Timestamp,
    TimestampTz,
    Text,
    /// Of elements that need no settings.
    Array(Type),
}

impl Kind {
    /// Only for types that every server has. Others may have a cast to JSON, which `json_agg` uses.
    fn of(oid: u32) -> Option<Self> {
        let (_, kind) = builtin(oid)?;
        Some(match kind {
            Type::Text if oid == DATE => Self::Date,
            Type::Text | Type::Bytea => Self::Text,
            Type::Bool => Self::Bool,
            Type::Integer | Type::Numeric | Type::Float => Self::Number,
            Type::Json => Self::Json,
            Type::Timestamp => Self::Timestamp,
            Type::TimestampTz => Self::TimestampTz,
            Type::Array { ref element, .. } => match **element {
                Type::Text if oid == DATE_ARRAY => return None,
                Type::Text
                | Type::Bytea
                | Type::Bool
                | Type::Integer
                | Type::Numeric
                | Type::Float => Self::Array(kind),
                Type::Json
                | Type::Timestamp
                | Type::TimestampTz
                | Type::Array { .. }
                | Type::Vector(_)
                | Type::Composite(_) => return None,
            },
            Type::Vector(_) | Type::Composite(_) => return None,
        })
    }

    /// Appends the JSON of a value; none when that is not certain.
    fn write(&self, text: &[u8], out: &mut Vec<u8>) -> Option<()> {
        match self {
            Self::Bool => out.extend_from_slice(match text {
                b"t" => b"true",
                b"f" => b"false",
                _ => return None,
            }),
            // The last letter of a word is none of these.
            Self::Number if text.last().is_some_and(u8::is_ascii_digit) => {
                out.extend_from_slice(text);
            }
            Self::Json => out.extend_from_slice(text),
            Self::Date => {
                is_iso(text.strip_suffix(b" BC").unwrap_or(text)).then_some(())?;
                value::string(text, out);
            }
            Self::Timestamp | Self::TimestampTz => {
                is_iso(text.split(|&byte| byte == b' ').next()?).then_some(())?;
                let kind =
                    if *self == Self::Timestamp { Type::Timestamp } else { Type::TimestampTz };
                value::render(&kind, text, out);
            }
            Self::Number | Self::Text => value::string(text, out),
            Self::Array(kind) => value::render(kind, text, out),
        }
        Some(())
    }
}

/// Whether a type's JSON is certain.
pub fn is_certain(oid: u32) -> bool {
    Kind::of(oid).is_some()
}

/// Whether a date is written as under `DateStyle` ISO: its year, of four digits or more, first.
fn is_iso(date: &[u8]) -> bool {
    if matches!(date, b"infinity" | b"-infinity") {
        return true;
    }
    let Some((year, [b'-', m, n, b'-', d, e])) =
        date.len().checked_sub(6).and_then(|at| date.split_at_checked(at))
    else {
        return false;
    };
    year.len() >= 4 && year.iter().chain([m, n, d, e]).all(u8::is_ascii_digit)
}

/// The columns of a statement's rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// What stands before each value, from the end of the one before: `{"id":`; how it is written.
    columns: Box<[(Box<[u8]>, Kind)]>,
}

impl Shape {
    /// Of columns with these names and types; none when the JSON of one is not certain.
    pub fn of(columns: &[(Vec<u8>, u32)]) -> Option<Self> {
        let column = |(place, (name, oid)): (usize, &(Vec<u8>, u32))| {
            let mut before = vec![if place == 0 { b'{' } else { b',' }];
            value::string(name, &mut before);
            before.push(b':');
            Some((before.into_boxed_slice(), Kind::of(*oid)?))
        };
        let columns = columns.iter().enumerate().map(column).collect::<Option<_>>()?;
        Some(Self { columns })
    }

    /// What `json_agg` makes of them: an array, with line ends between its rows. None also where
    /// it may be too long for Postgres to make it.
    pub fn array(&self, rows: &Rows) -> Option<String> {
        let names: usize = self.columns.iter().map(|(before, _)| before.len()).sum();
        let expected = rows.len().checked_mul(names + 16)?.checked_add(rows.bytes())?;
        if expected > ANSWER_BYTES_MAX {
            return None;
        }
        let mut out = Vec::with_capacity(expected);
        out.push(b'[');
        for (place, row) in rows.iter().enumerate() {
            if place > 0 {
                out.extend_from_slice(b", \n ");
            }
            self.write(row, &mut out)?;
        }
        out.push(b']');
        String::from_utf8(out).ok()
    }

    /// What `row_to_json` makes of one.
    pub fn object(&self, row: Row<'_>) -> Option<String> {
        let mut out = Vec::new();
        self.write(row, &mut out)?;
        String::from_utf8(out).ok()
    }

    fn write(&self, mut row: Row<'_>, out: &mut Vec<u8>) -> Option<()> {
        if self.columns.is_empty() {
            out.push(b'{');
        }
        for (before, kind) in &self.columns {
            out.extend_from_slice(before);
            match row.next()? {
                None => out.extend_from_slice(b"null"),
                Some(text) => kind.write(text, out)?,
            }
        }
        out.push(b'}');
        row.next().is_none().then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(oid: u32, text: &str) -> Option<String> {
        let mut out = Vec::new();
        Kind::of(oid)?.write(text.as_bytes(), &mut out)?;
        Some(String::from_utf8(out).unwrap())
    }

    #[test]
    fn values_are_written_as_postgres_writes_them() {
        for (oid, text, json) in [
            (16, "t", "true"),
            (23, "-7", "-7"),
            (701, "1e+300", "1e+300"),
            (701, "-Infinity", "\"-Infinity\""),
            (1700, "NaN", "\"NaN\""),
            (1700, "1.50", "1.50"),
            (17, "\\x00ff", "\"\\\\x00ff\""),
            (114, "{\"a\" :\n1}", "{\"a\" :\n1}"),
            (25, "a\"\u{1}\u{7f}", "\"a\\\"\\u0001\u{7f}\""),
            (1082, "2024-01-02", "\"2024-01-02\""),
            (1082, "0044-03-15 BC", "\"0044-03-15 BC\""),
            (1082, "infinity", "\"infinity\""),
            (1114, "2024-01-02 03:04:05.6", "\"2024-01-02T03:04:05.6\""),
            (1184, "2024-01-02 03:04:05+05", "\"2024-01-02T03:04:05+05:00\""),
            (1184, "-infinity", "\"-infinity\""),
            (1009, "{a,NULL,\"b \\\"\"}", "[\"a\",null,\"b \\\"\"]"),
        ] {
            assert_eq!(written(oid, text).as_deref(), Some(json), "{oid} {text}");
        }
    }

    #[test]
    fn what_is_not_certain_is_left_to_postgres() {
        // Types of the database's own; rows; JSON and times within arrays; vectors.
        for oid in [0, 16_384, 2249, 199, 3807, 1182, 1115, 1185, 22, 30, 1006] {
            assert!(!is_certain(oid), "{oid}");
        }
        for (oid, text) in [
            (1082, "02.01.2024"),
            (1082, "01-02-2024"),
            (1114, "Tue Jan 02 03:04:05 2024"),
            (1184, "01/02/2024 03:04:05 UTC"),
            (16, "yes"),
        ] {
            assert_eq!(written(oid, text), None, "{text}");
        }
    }
}
