//! Choices that a seed decides, and the values they are made of.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

use super::world::Kind;

/// Decides.
pub(super) struct Dice {
    random: StdRng,
    next: u32,
    /// Whether something wrong may still be asked for: with two errors in one request, which of
    /// them is told depends on when Postgres looks.
    pub(super) may_err: bool,
}

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let may_err = random.random_range(0..6) == 0;
        Self { random, next: 0, may_err }
    }

    /// True this often.
    pub(super) fn percent(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        self.random.random_range(0..end)
    }

    pub(super) fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    /// A name that nothing else has.
    pub(super) fn name(&mut self, prefix: &str) -> String {
        self.next += 1;
        format!("{prefix}{}", self.next)
    }

    /// Something wrong, now and then, once.
    pub(super) fn errs(&mut self) -> bool {
        if self.may_err && self.percent(12) {
            self.may_err = false;
            return true;
        }
        false
    }

    /// The text of a value of this kind.
    pub(super) fn text(&mut self, kind: Kind) -> String {
        if kind != Kind::Text && self.errs() {
            return "nonsense {".into();
        }
        let texts: &[&str] = match kind {
            Kind::Int => &["0", "1", "2", "3", "4", "5", "7", "12", "-1", " 6 ", "40"],
            Kind::Text => &[
                "Red",
                "Blue",
                "Red, \"Blue\"",
                "Gr\\een",
                "a%b_c",
                "Ann",
                "good",
                "bad",
                "",
                "c5",
                "none",
                "null",
                "l2",
                "'; drop table books; --",
                "$1",
                "ü)(",
                "{a}",
                "bio 3",
            ],
            Kind::Numeric => &["1.5", "30", "18.00", "1e1", "-0", "NaN", "12.75"],
            Kind::Real => &["1.5", "2", "3.25"],
            Kind::Bool => &["true", "f", "yes", "0"],
            Kind::Date => &["2000-01-04", "2024-01-03", "infinity", "1 jan 2000"],
            Kind::Time => {
                &["2024-01-05", "2024-01-10 12:00:00+00", "2024-01-15T12:00:00Z", "epoch"]
            }
            Kind::Uuid => &[
                "00000000-0000-4000-8000-00000000000a",
                "00000000-0000-4000-8000-00000000000b",
                "{00000000-0000-4000-8000-00000000000C}",
            ],
            Kind::Mood => &["sad", "ok", "happy"],
            Kind::Email => &["a1@x", "a2@x", "zz@zz"],
            Kind::Texts => &["{x}", "{y,z}", "{}", "{x,y,z}", "{\"x\"}"],
            Kind::Ints => &["{1}", "{1,2}", "{}", "{5,NULL}"],
            Kind::Jsonb => &["{\"a\": 1}", "{}", "[]", "{\"c\": {\"d\": 4}}", "{\"b\": [\"x\"]}"],
            Kind::Json => &["{}", "{\"k\": 1}"],
            Kind::Range => &["[3,8)", "empty", "[10,)", "(,5]", "[7,12)"],
            Kind::Words => &["'cat'", "'fat' 'cat'"],
        };
        (*self.of(texts)).to_owned()
    }

    /// A value of this kind as JSON, and as SQL.
    pub(super) fn json(&mut self, kind: Kind) -> (Value, String) {
        if self.percent(8) {
            return (Value::Null, "null".into());
        }
        let text = self.text(kind);
        let sql = literal(&text);
        let number = text.trim().parse::<i64>().ok().filter(|_| kind == Kind::Int);
        let value = match number {
            Some(number) if self.percent(70) => number.into(),
            _ if kind == Kind::Jsonb => match serde_json::from_str(&text) {
                Ok(value) => value,
                Err(_) => return (Value::Null, "null".into()),
            },
            _ if kind == Kind::Ints && text == "{1,2}" => json!([1, 2]),
            _ => json!(text),
        };
        (value, sql)
    }
}

/// SQL's own way to write a text.
pub(super) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!("e'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// A name in SQL.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A name or a value in a URL's own lists, quoted where it must be, and sometimes where not.
pub(super) fn written(text: &str, dice: &mut Dice) -> String {
    let is_plain = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if is_plain && dice.percent(80) {
        return text.to_owned();
    }
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// As a part of a query string.
pub(super) fn encoded(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'a'..=b'z'
            | b'A'..=b'Z'
            | b'0'..=b'9'
            | b'.'
            | b'_'
            | b'('
            | b')'
            | b','
            | b'*'
            | b'!'
            | b'-' => {
                out.push(char::from(byte));
            }
            _ => write!(out, "%{byte:02X}").unwrap(),
        }
        out
    })
}
