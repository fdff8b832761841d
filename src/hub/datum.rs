//! A value's text → something that compares as Postgres compares that type.
//!
//! In:     text as the type's output function writes it, under the pinned output settings.
//! Out:    [`Datum`]: equal, hashed and (where [`Kind::is_ordered`]) ordered like the SQL type.
//! Never:  guessing: text that is not exactly as expected has no datum, and Postgres decides.

use std::borrow::Cow;
use std::cmp::Ordering;

/// How a type's values compare, for the types that compare here as in Postgres.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    /// `int2`, `int4`, `int8`, `oid`.
    Integer,
    Numeric,
    Float4,
    Float8,
    Uuid,
    Date,
    Time,
    Timestamp,
    TimestampTz,
    /// `text`, `varchar`, `name`: equality of bytes, order left to Postgres' collations.
    Text,
    /// `char(n)`: as `Text`, trailing blanks do not count.
    Padded,
    /// Enums: equality of labels, order left to Postgres.
    Label,
}

impl Kind {
    /// By type OID. `bytewise`: equal means equal bytes, as under a deterministic collation and
    /// for enums.
    pub(super) fn of(type_oid: u32, bytewise: bool) -> Option<Self> {
        Some(match type_oid {
            16 => Self::Bool,
            20 | 21 | 23 | 26 => Self::Integer,
            700 => Self::Float4,
            701 => Self::Float8,
            1082 => Self::Date,
            1083 => Self::Time,
            1114 => Self::Timestamp,
            1184 => Self::TimestampTz,
            1700 => Self::Numeric,
            2950 => Self::Uuid,
            19 | 25 | 1043 if bytewise => Self::Text,
            1042 if bytewise => Self::Padded,
            // Below, types of the system itself with rules of their own.
            FIRST_NORMAL_OID.. if bytewise => Self::Label,
            _ => return None,
        })
    }

    /// Whether `<` is known here too.
    pub(super) fn is_ordered(self) -> bool {
        !matches!(self, Self::Text | Self::Padded | Self::Label)
    }

    /// The datum that `text` stands for; none when it is not as this type's output writes it.
    pub(super) fn read(self, text: &[u8]) -> Option<Datum<'_>> {
        let bytes = |bytes| Some(Datum::Bytes(Cow::Borrowed(bytes)));
        match self {
            Self::Text | Self::Label => bytes(text),
            Self::Padded => {
                let blanks = text.iter().rev().take_while(|byte| **byte == b' ').count();
                bytes(&text[..text.len() - blanks])
            }
            Self::Uuid => is_uuid(text).then_some(Datum::Bytes(Cow::Borrowed(text))),
            Self::Bool => match text {
                b"t" => Some(Datum::Number(1)),
                b"f" => Some(Datum::Number(0)),
                _ => None,
            },
            Self::Integer => {
                let text = str::from_utf8(text).ok()?;
                (!text.starts_with('+')).then(|| text.parse().ok().map(Datum::Number))?
            }
            Self::Numeric => read_numeric(text).map(Datum::Numeric),
            Self::Float4 => {
                let value: f32 = float_text(text)?.parse().ok()?;
                Some(Datum::Number(float_rank(value.into())))
            }
            Self::Float8 => Some(Datum::Number(float_rank(float_text(text)?.parse().ok()?))),
            Self::Date => infinite(text).or_else(|| {
                let (text, bc) = split_era(text);
                let (date, rest) = read_date(text, bc)?;
                rest.is_empty().then_some(Datum::Number(date))
            }),
            Self::Time => {
                let (time, rest) = read_time(text)?;
                rest.is_empty().then_some(Datum::Number(time))
            }
            Self::Timestamp => read_timestamp(text, false),
            Self::TimestampTz => read_timestamp(text, true),
        }
    }

    /// The text that the type's output writes for the input `text`, when that is certain without
    /// asking Postgres. `None` says nothing about whether the input is valid.
    pub(super) fn canonical(self, type_oid: u32, text: &str) -> Option<Cow<'_, str>> {
        match self {
            Self::Bool => match text {
                "t" | "true" => Some(Cow::Borrowed("t")),
                "f" | "false" => Some(Cow::Borrowed("f")),
                _ => None,
            },
            Self::Integer => {
                let value: i64 = text.parse().ok()?;
                let fits = match type_oid {
                    21 => i16::try_from(value).is_ok(),
                    23 => i32::try_from(value).is_ok(),
                    26 => u32::try_from(value).is_ok(),
                    _ => type_oid == 20,
                };
                (fits && value.to_string() == text).then_some(Cow::Borrowed(text))
            }
            Self::Numeric => {
                let digits = text.strip_prefix('-').unwrap_or(text);
                let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
                let all_digits =
                    |t: &str| !t.is_empty() && t.bytes().all(|byte| byte.is_ascii_digit());
                let plain = all_digits(whole) && all_digits(fraction);
                let minimal = whole == "0" || !whole.starts_with('0');
                let zero = digits.bytes().all(|byte| matches!(byte, b'0' | b'.'));
                // Beyond this scale the server rounds or refuses.
                let short = whole.len() <= 1000 && fraction.len() <= 1000;
                (plain && minimal && short && !(zero && text.starts_with('-')))
                    .then_some(Cow::Borrowed(text))
            }
            Self::Uuid => {
                let lower = text.to_ascii_lowercase();
                is_uuid(lower.as_bytes()).then_some(Cow::Owned(lower))
            }
            Self::Text if type_oid == 19 && text.len() > 63 => None,
            Self::Text | Self::Padded => (!text.contains('\0')).then_some(Cow::Borrowed(text)),
            Self::Float4
            | Self::Float8
            | Self::Date
            | Self::Time
            | Self::Timestamp
            | Self::TimestampTz
            | Self::Label => None,
        }
    }
}

/// `FirstNormalObjectId`: where the OIDs of objects made after initdb start.
const FIRST_NORMAL_OID: u32 = 16384;

/// A value that compares as its SQL type does. Only datums of one [`Kind`] are comparable.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Datum<'a> {
    /// Integers as they are; days, microseconds and floats by a number in the same order.
    Number(i64),
    Numeric(Numeric<'a>),
    Bytes(Cow<'a, [u8]>),
}

impl Datum<'_> {
    /// With memory of its own.
    pub(super) fn into_owned(self) -> Datum<'static> {
        match self {
            Self::Number(number) => Datum::Number(number),
            Self::Numeric(numeric) => Datum::Numeric(numeric.into_owned()),
            Self::Bytes(bytes) => Datum::Bytes(Cow::Owned(bytes.into_owned())),
        }
    }
}

/// A `numeric` by its digits, without leading zeros before or trailing zeros after the point.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Numeric<'a> {
    NegativeInfinity,
    Finite {
        negative: bool,
        whole: Cow<'a, [u8]>,
        fraction: Cow<'a, [u8]>,
    },
    Infinity,
    /// Equal to itself and above everything else.
    NaN,
}

impl Numeric<'_> {
    fn into_owned(self) -> Numeric<'static> {
        let owned = |digits: Cow<'_, [u8]>| Cow::Owned(digits.into_owned());
        match self {
            Self::NegativeInfinity => Numeric::NegativeInfinity,
            Self::Finite { negative, whole, fraction } => {
                Numeric::Finite { negative, whole: owned(whole), fraction: owned(fraction) }
            }
            Self::Infinity => Numeric::Infinity,
            Self::NaN => Numeric::NaN,
        }
    }

    fn class(&self) -> u8 {
        match self {
            Self::NegativeInfinity => 0,
            Self::Finite { .. } => 1,
            Self::Infinity => 2,
            Self::NaN => 3,
        }
    }
}

impl Ord for Numeric<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let (
            Self::Finite { negative, whole, fraction },
            Self::Finite { negative: other_negative, whole: other_whole, fraction: other_fraction },
        ) = (self, other)
        else {
            return self.class().cmp(&other.class());
        };
        let magnitude = whole
            .len()
            .cmp(&other_whole.len())
            .then_with(|| whole.cmp(other_whole))
            .then_with(|| fraction.cmp(other_fraction));
        match (negative, other_negative) {
            (false, false) => magnitude,
            (true, true) => magnitude.reverse(),
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
        }
    }
}

impl PartialOrd for Numeric<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

fn read_numeric(text: &[u8]) -> Option<Numeric<'_>> {
    match text {
        b"NaN" => return Some(Numeric::NaN),
        b"Infinity" => return Some(Numeric::Infinity),
        b"-Infinity" => return Some(Numeric::NegativeInfinity),
        _ => {}
    }
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let point = digits.iter().position(|byte| *byte == b'.');
    let (whole, fraction) = match point {
        Some(point) => (&digits[..point], &digits[point + 1..]),
        None => (digits, &digits[digits.len()..]),
    };
    let all_digits = |digits: &[u8]| digits.iter().all(u8::is_ascii_digit);
    if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    let zeros = |digits: &mut dyn Iterator<Item = &u8>| digits.take_while(|d| **d == b'0').count();
    let whole = &whole[zeros(&mut whole.iter())..];
    let fraction = &fraction[..fraction.len() - zeros(&mut fraction.iter().rev())];
    let negative = negative && !(whole.is_empty() && fraction.is_empty());
    Some(Numeric::Finite { negative, whole: whole.into(), fraction: fraction.into() })
}

/// What Postgres writes for a float and Rust reads alike: digits, or one of three names.
fn float_text(text: &[u8]) -> Option<&str> {
    let number = text.iter().all(|b| b.is_ascii_digit() || b"+-.e".contains(b));
    let name = matches!(text, b"NaN" | b"Infinity" | b"-Infinity");
    str::from_utf8(text).ok().filter(|_| number || name)
}

/// A number in the order of floats: -0 equals 0, and `NaN` equals itself, above infinity.
fn float_rank(value: f64) -> i64 {
    let value = if value.is_nan() {
        f64::NAN.abs()
    } else if value == 0.0 {
        0.0
    } else {
        value
    };
    let bits = i64::from_ne_bytes(value.to_ne_bytes());
    if bits < 0 { bits ^ i64::MAX } else { bits }
}

/// The 36 characters that `uuid` output has: lower case, four dashes.
fn is_uuid(text: &[u8]) -> bool {
    text.len() == 36
        && text.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        })
}

fn infinite(text: &[u8]) -> Option<Datum<'static>> {
    match text {
        b"infinity" => Some(Datum::Number(i64::MAX)),
        b"-infinity" => Some(Datum::Number(i64::MIN)),
        _ => None,
    }
}

fn split_era(text: &[u8]) -> (&[u8], bool) {
    match text.strip_suffix(b" BC") {
        Some(text) => (text, true),
        None => (text, false),
    }
}

/// Digits at the start, at least `least` of them, and what follows.
fn digits(text: &[u8], least: usize, most: usize) -> Option<(i64, &[u8])> {
    let count = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if count < least || count > most {
        return None;
    }
    let (digits, rest) = text.split_at(count);
    Some((str::from_utf8(digits).ok()?.parse().ok()?, rest))
}

/// Days since 2000-01-01 of the proleptic Gregorian calendar, and what follows.
fn read_date(text: &[u8], bc: bool) -> Option<(i64, &[u8])> {
    let (year, rest) = digits(text, 4, 7)?;
    let (month, rest) = digits(rest.strip_prefix(b"-")?, 2, 2)?;
    let (day, rest) = digits(rest.strip_prefix(b"-")?, 2, 2)?;
    if year == 0 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let year = if bc { 1 - year } else { year };
    // Years start in March here, so that the leap day is a year's last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // 730425 days lie between 0000-03-01 and 2000-01-01.
    Some((days + (month * 153 + 2) / 5 + day - 1 - 730_425, rest))
}

/// Microseconds since midnight, and what follows.
fn read_time(text: &[u8]) -> Option<(i64, &[u8])> {
    let (hour, rest) = digits(text, 2, 2)?;
    let (minute, rest) = digits(rest.strip_prefix(b":")?, 2, 2)?;
    let (second, rest) = digits(rest.strip_prefix(b":")?, 2, 2)?;
    if hour > 24 || minute > 59 || second > 59 {
        return None;
    }
    let mut micros = ((hour * 60 + minute) * 60 + second) * 1_000_000;
    let Some(fraction) = rest.strip_prefix(b".") else {
        return Some((micros, rest));
    };
    let (mut value, rest) = digits(fraction, 1, 6)?;
    for _ in fraction.len() - rest.len()..6 {
        value *= 10;
    }
    micros += value;
    Some((micros, rest))
}

fn read_timestamp(text: &[u8], zoned: bool) -> Option<Datum<'_>> {
    if let Some(infinite) = infinite(text) {
        return Some(infinite);
    }
    let (text, bc) = split_era(text);
    let (days, rest) = read_date(text, bc)?;
    let (time, rest) = read_time(rest.strip_prefix(b" ")?)?;
    let offset = if zoned { read_offset(rest)? } else { rest.is_empty().then_some(0)? };
    let midnight = days.checked_mul(86_400_000_000)?;
    Some(Datum::Number(midnight.checked_add(time)?.checked_sub(offset)?))
}

/// `+02`, `-03:30`, `+00:19:32` in microseconds, to the end of the text.
fn read_offset(text: &[u8]) -> Option<i64> {
    let (sign, rest) = match text.split_first()? {
        (b'+', rest) => (1, rest),
        (b'-', rest) => (-1, rest),
        _ => return None,
    };
    let (mut seconds, mut rest) = digits(rest, 2, 2).map(|(hours, rest)| (hours * 3600, rest))?;
    for unit in [60, 1] {
        let Some(part) = rest.strip_prefix(b":") else { break };
        let (value, after) = digits(part, 2, 2)?;
        seconds += value * unit;
        rest = after;
    }
    rest.is_empty().then_some(sign * seconds * 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each list ascends; texts with `=` between them are equal.
    fn check(kind: Kind, ascending: &[&str]) {
        let mut previous: Option<Datum<'_>> = None;
        for group in ascending {
            let mut equal = group.split(" = ").map(|text| kind.read(text.as_bytes()).unwrap());
            let first = equal.next().unwrap();
            assert!(equal.all(|datum| datum == first), "{group}");
            assert!(previous.is_none_or(|previous| previous < first), "{group}");
            previous = Some(first);
        }
    }

    #[test]
    fn values_are_ordered_as_in_sql() {
        check(Kind::Bool, &["f", "t"]);
        check(Kind::Integer, &["-9223372036854775808", "-1", "0", "7", "9223372036854775807"]);
        check(
            Kind::Numeric,
            &[
                "-Infinity",
                "-100",
                "-99.9",
                "-0.02",
                "-0.010 = -0.01",
                "0 = 0.00",
                "0.01",
                "0.1 = 0.1000",
                "0.11",
                "1.0 = 1.00 = 1",
                "1.01",
                "9",
                "10",
                "123456789012345678901234567890.1",
                "Infinity",
                "NaN",
            ],
        );
        check(
            Kind::Float8,
            &[
                "-Infinity",
                "-1e+300",
                "-1.5",
                "-5e-324",
                "-0 = 0",
                "5e-324",
                "0.1",
                "1e+20",
                "Infinity",
                "NaN",
            ],
        );
        check(Kind::Float4, &["-Infinity", "-3.4028235e+38", "-0 = 0", "0.1", "Infinity", "NaN"]);
        check(
            Kind::Date,
            &[
                "-infinity",
                "4713-01-01 BC",
                "0001-12-31 BC",
                "0001-01-01",
                "1999-12-31",
                "2000-02-28",
                "2000-02-29",
                "2000-03-01",
                "9999-12-31",
                "10000-01-01",
                "5874897-12-31",
                "infinity",
            ],
        );
        check(
            Kind::Time,
            &["00:00:00", "00:00:00.000001", "00:00:00.1 = 00:00:00.100", "24:00:00"],
        );
        check(
            Kind::Timestamp,
            &[
                "-infinity",
                "4713-01-01 00:00:00 BC",
                "2024-01-01 00:00:00.5",
                "2024-01-01 00:00:01",
                "294276-12-31 23:59:59.999999",
                "infinity",
            ],
        );
        check(
            Kind::TimestampTz,
            &[
                "0001-12-31 23:59:59+00 BC",
                "0001-01-01 00:00:00+00",
                "2024-01-01 00:00:00+02 = 2023-12-31 22:00:00+00 = 2023-12-31 18:30:00-03:30",
                "2024-01-01 00:00:00+00",
                "infinity",
            ],
        );
    }

    #[test]
    fn text_equality_is_of_bytes_and_padding_does_not_count() {
        assert_eq!(Kind::Padded.read(b"a  "), Kind::Padded.read(b"a"));
        assert_eq!(Kind::Padded.read(b"   "), Kind::Padded.read(b""));
        assert_ne!(Kind::Text.read(b"a "), Kind::Text.read(b"a"));
        assert!(!Kind::Text.is_ordered());
    }

    #[test]
    fn text_that_no_output_function_writes_has_no_datum() {
        for (kind, texts) in [
            (Kind::Bool, &["", "true", "T"][..]),
            (Kind::Integer, &["", "+1", " 1", "1.0", "99999999999999999999"]),
            (Kind::Numeric, &["", "-", ".5", "1e3", "+1", "1.2.3", "nan", "\u{661}"]),
            (Kind::Float8, &["", "inf", "infinity", "nan", "1_0", " 1"]),
            (Kind::Uuid, &["", "6F9619FF-8B86-D011-B42D-00C04FC964FF"]),
            (Kind::Date, &["", "24-01-01", "2024-1-1", "2024-13-01", "01/02/2024", "0000-01-01"]),
            (Kind::Time, &["", "1:00:00", "00:00", "00:60:00", "00:00:00.", "00:00:00.1234567"]),
            (Kind::Timestamp, &["2024-01-01", "2024-01-01T00:00:00", "2024-01-01 00:00:00+00"]),
            (Kind::Timestamp, &["9999999-01-01 00:00:00"]),
            (Kind::TimestampTz, &["2024-01-01 00:00:00", "2024-01-01 00:00:00 CET"]),
        ] {
            for text in texts {
                assert_eq!(kind.read(text.as_bytes()), None, "{kind:?} {text}");
            }
        }
    }

    #[test]
    fn canonical_text_is_only_claimed_when_certain() {
        let check = |oid, text: &str, expected: Option<&str>| {
            let kind = Kind::of(oid, true).unwrap();
            assert_eq!(kind.canonical(oid, text).as_deref(), expected, "{oid} {text}");
        };
        check(23, "2147483647", Some("2147483647"));
        check(23, "2147483648", None);
        check(21, "-32768", Some("-32768"));
        check(26, "-1", None);
        check(20, "007", None);
        check(20, "-0", None);
        check(16, "true", Some("t"));
        check(16, "yes", None);
        check(1700, "1.50", Some("1.50"));
        check(1700, "-0.0", None);
        check(1700, "01", None);
        check(1700, "1e3", None);
        check(25, "any thing", Some("any thing"));
        check(25, "nul\0", None);
        check(19, &"x".repeat(64), None);
        check(
            2950,
            "6F9619FF-8B86-D011-B42D-00C04FC964FF",
            Some("6f9619ff-8b86-d011-b42d-00c04fc964ff"),
        );
        check(2950, "6f9619ff8b86d011b42d00c04fc964ff", None);
        check(1082, "2024-01-01", None);
        assert_eq!(Kind::of(114, true), None);
        assert_eq!(Kind::of(25, false), None);
    }
}
