//! A column's text → JSON, by type.
//!
//! In:     a value in Postgres' text format under pinned output settings, and its [`Type`].
//! Out:    JSON text, equal to what `to_jsonb` gives for that value; the exceptions are at [`render`].
//! Never:  IO; floating-point round trips of numbers; invalid JSON, whatever the bytes are.
//! Source: Postgres' `array_out`, `record_out` and `jsonb.c`, asked through a real server by
//!         `tests/it/values.rs`.

use std::borrow::Cow;

use serde::de::IgnoredAny;

/// How a column's text becomes JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Type {
    /// `t` or `f`.
    Bool,
    /// `int2`, `int4`, `int8`: the digits are the JSON number.
    Integer,
    /// `numeric`: the digits are the JSON number; `NaN` and infinities are null.
    Numeric,
    /// `float4`, `float8`: shortest form; `NaN` and infinities are null.
    Float,
    /// `json` and `jsonb`: embedded as they are.
    Json,
    /// `\x…`: a string of bare hexadecimal digits.
    Bytea,
    /// `timestamp`: a string with `T` between date and time.
    Timestamp,
    /// `timestamptz`: as `timestamp`, with a complete offset.
    TimestampTz,
    /// A JSON array, nested by dimension.
    Array {
        /// Type of the elements.
        element: Box<Self>,
        /// Between elements: `,`, for `box` `;`.
        delimiter: u8,
    },
    /// `int2vector`, `oidvector`: an array of the numbers between blanks.
    Vector(Box<Self>),
    /// A JSON object of the attributes in order.
    Composite(Box<[(Box<str>, Self)]>),
    /// Everything else: a string of Postgres' text.
    Text,
}

/// Types within types (arrays of composites with arrays …) that are taken apart; a value deeper
/// inside is shown as a string of its text. Nobody nests by hand beyond a few; the bound keeps a
/// hostile schema from using up the stack.
pub const NESTING_MAX: usize = 32;

/// Dimensions of an array. Postgres allows 6.
const DIMENSIONS_MAX: usize = 6;

/// Appends the JSON of one value that is not null.
///
/// Equal to `to_jsonb(value)`, except that, for the clients' sake, a whole column (not an element
/// or attribute) of `bytea` loses its `\x` and one of `numeric` or `float` that is `NaN` or
/// infinite is null; and that floats keep their shortest form (`1e+300`, where `to_jsonb` writes
/// 301 digits) and `json` its spelling (duplicate keys, digits; line ends become blanks).
///
/// Text that does not parse as its type becomes a string of that text, invalid UTF-8 in it
/// replaced; so whatever the bytes are, the output is one JSON value.
pub fn render(kind: &Type, text: &[u8], out: &mut Vec<u8>) {
    match kind {
        Type::Numeric | Type::Float if is_not_finite(text) => out.extend_from_slice(b"null"),
        Type::Bytea => match text.strip_prefix(b"\\x") {
            Some(digits) => string(digits, out),
            None => string(text, out),
        },
        Type::Bool
        | Type::Integer
        | Type::Numeric
        | Type::Float
        | Type::Json
        | Type::Timestamp
        | Type::TimestampTz
        | Type::Array { .. }
        | Type::Vector(_)
        | Type::Composite(_)
        | Type::Text => nested(kind, text, out, 0),
    }
}

/// Appends a JSON string of `text`, invalid UTF-8 replaced.
pub fn string(text: &[u8], out: &mut Vec<u8>) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    match std::str::from_utf8(text) {
        Ok(_) => escape(text, out),
        Err(_) => escape(String::from_utf8_lossy(text).as_bytes(), out),
    }
    out.push(b'"');
}

/// Exactly as `to_jsonb`, as far as the type is known.
fn nested(kind: &Type, text: &[u8], out: &mut Vec<u8>, depth: usize) {
    let start = out.len();
    let understood = match kind {
        Type::Bool => boolean(text).map(|word| out.extend_from_slice(word)),
        Type::Integer | Type::Numeric | Type::Float => {
            Some(text).filter(|text| is_number(text)).map(|digits| out.extend_from_slice(digits))
        }
        Type::Json => json(text, out),
        Type::Timestamp => timestamp(text, out),
        Type::TimestampTz => timestamp_tz(text, out),
        Type::Array { element, delimiter } if depth < NESTING_MAX => {
            array(element, *delimiter, text, out, depth + 1)
        }
        Type::Vector(element) if depth < NESTING_MAX => {
            vector(element, text, out, depth + 1);
            Some(())
        }
        Type::Composite(attributes) if depth < NESTING_MAX => {
            composite(attributes, text, out, depth + 1)
        }
        Type::Array { .. } | Type::Vector(_) | Type::Composite(_) | Type::Bytea | Type::Text => {
            None
        }
    };
    if understood.is_none() {
        out.truncate(start);
        string(text, out);
    }
}

fn boolean(text: &[u8]) -> Option<&'static [u8]> {
    match text {
        b"t" => Some(b"true"),
        b"f" => Some(b"false"),
        _ => None,
    }
}

fn is_not_finite(text: &[u8]) -> bool {
    matches!(text, b"NaN" | b"Infinity" | b"-Infinity")
}

/// Whether the text is a JSON number, to its last byte.
fn is_number(text: &[u8]) -> bool {
    fn digits(text: &[u8]) -> Option<&[u8]> {
        let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
        if end == 0 { None } else { text.get(end..) }
    }
    fn parse(text: &[u8]) -> Option<()> {
        let text = text.strip_prefix(b"-").unwrap_or(text);
        let mut rest = match text {
            [b'0', rest @ ..] => rest,
            _ => digits(text)?,
        };
        if let [b'.', fraction @ ..] = rest {
            rest = digits(fraction)?;
        }
        if let [b'e' | b'E', exponent @ ..] = rest {
            let exponent = match exponent {
                [b'+' | b'-', digits @ ..] => digits,
                _ => exponent,
            };
            rest = digits(exponent)?;
        }
        rest.is_empty().then_some(())
    }
    parse(text).is_some()
}

/// Bytes that a JSON string cannot hold as they are.
const ESCAPED: [bool; 256] = {
    let mut escaped = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        escaped[byte] = true;
        byte += 1;
    }
    escaped[0x22] = true;
    escaped[0x5c] = true;
    escaped
};

/// The inside of a JSON string. `text` is UTF-8.
fn escape(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    while let Some(at) = rest.iter().position(|&byte| ESCAPED[usize::from(byte)]) {
        let (plain, tail) = rest.split_at(at);
        out.extend_from_slice(plain);
        let Some((&byte, tail)) = tail.split_first() else { break };
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            _ => {
                let digit = |value: u8| if value < 10 { b'0' + value } else { b'a' + (value - 10) };
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
            }
        }
        rest = tail;
    }
    out.extend_from_slice(rest);
}

/// JSON as it is. A line end can only stand between its tokens; it becomes a blank, so that the
/// value fits a line-based transport.
fn json(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    std::str::from_utf8(text).ok()?;
    // Not recursive, so deep nesting costs no stack.
    serde_json::from_slice::<IgnoredAny>(text).ok()?;
    let start = out.len();
    out.extend_from_slice(text);
    for byte in out.get_mut(start..)? {
        if *byte < b' ' {
            *byte = b' ';
        }
    }
    Some(())
}

/// `2024-01-02 03:04:05.6`, perhaps with ` BC`; `infinity` has no blank and no `T`.
fn timestamp(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let blank = text.iter().position(|&byte| byte == b' ')?;
    let (date, time) = text.split_at(blank);
    plain(date)?;
    plain(time)?;
    out.push(b'"');
    out.extend_from_slice(date);
    out.push(b'T');
    out.extend_from_slice(time.get(1..)?);
    out.push(b'"');
    Some(())
}

/// As [`timestamp`], with `+01`, `+05:30` or `+00:19:32` after the time; hours alone get `:00`.
fn timestamp_tz(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (instant, era) = match text.strip_suffix(b" BC") {
        Some(instant) => (instant, &b" BC"[..]),
        None => (text, &b""[..]),
    };
    let blank = instant.iter().position(|&byte| byte == b' ')?;
    let sign = instant.iter().rposition(|byte| matches!(byte, b'+' | b'-'))?;
    let offset = instant.get(sign..)?;
    timestamp(instant, out)?;
    out.pop();
    if sign > blank && offset.len() == 3 {
        out.extend_from_slice(b":00");
    }
    out.extend_from_slice(era);
    out.push(b'"');
    Some(())
}

/// Whether the text needs no escape in a JSON string.
fn plain(text: &[u8]) -> Option<()> {
    text.iter().all(|&byte| byte.is_ascii() && !ESCAPED[usize::from(byte)]).then_some(())
}

fn vector(element: &Type, text: &[u8], out: &mut Vec<u8>, depth: usize) {
    out.push(b'[');
    let numbers = text.split(|&byte| byte == b' ').filter(|number| !number.is_empty());
    for (place, number) in numbers.enumerate() {
        if place > 0 {
            out.push(b',');
        }
        nested(element, number, out, depth);
    }
    out.push(b']');
}

/// `{1,NULL}`, `{{1,2},{3,4}}`, `[0:1]={"a b","c\"d"}`.
fn array(
    element: &Type,
    delimiter: u8,
    text: &[u8],
    out: &mut Vec<u8>,
    depth: usize,
) -> Option<()> {
    let mut rest = match text {
        [b'[', ..] => {
            let equals = text.iter().position(|&byte| byte == b'=')?;
            text.get(equals + 1..)?
        }
        _ => text,
    };
    let mut open = 0_usize;
    loop {
        // A value or a deeper dimension.
        let (&first, after) = rest.split_first()?;
        match first {
            b'{' => {
                open += 1;
                if open > DIMENSIONS_MAX {
                    return None;
                }
                out.push(b'[');
                rest = after;
                if !after.starts_with(b"}") {
                    continue;
                }
            }
            _ if open == 0 => return None,
            b'"' => {
                let (value, after) = quoted_element(after)?;
                nested(element, value.as_ref(), out, depth);
                rest = after;
            }
            _ => {
                let end = rest.iter().position(|&byte| byte == delimiter || byte == b'}')?;
                let (value, after) = rest.split_at(end);
                if value.iter().any(|byte| matches!(byte, b'"' | b'\\' | b'{')) || end == 0 {
                    return None;
                }
                if value == b"NULL" {
                    out.extend_from_slice(b"null");
                } else {
                    nested(element, value, out, depth);
                }
                rest = after;
            }
        }
        // What follows it: the end of any number of dimensions, then a delimiter or the end.
        loop {
            let (&next, after) = rest.split_first()?;
            rest = after;
            if next == delimiter {
                out.push(b',');
                break;
            }
            if next != b'}' {
                return None;
            }
            out.push(b']');
            open -= 1;
            if open == 0 {
                return rest.is_empty().then_some(());
            }
        }
    }
}

/// The value up to the closing quote, and what follows the quote: `\` escapes any byte.
fn quoted_element(text: &[u8]) -> Option<(Cow<'_, [u8]>, &[u8])> {
    let special = |byte: &u8| matches!(byte, b'"' | b'\\');
    let (value, mut rest) = text.split_at(text.iter().position(special)?);
    if let [b'"', after @ ..] = rest {
        return Some((Cow::Borrowed(value), after));
    }
    let mut value = value.to_vec();
    loop {
        match rest {
            [b'\\', byte, after @ ..] => {
                value.push(*byte);
                rest = after;
            }
            [b'"', after @ ..] => return Some((Cow::Owned(value), after)),
            _ => return None,
        }
        let (plain, tail) = rest.split_at(rest.iter().position(special)?);
        value.extend_from_slice(plain);
        rest = tail;
    }
}

/// `(1,"a ""b""",)`: an empty field is null.
fn composite(
    attributes: &[(Box<str>, Type)],
    text: &[u8],
    out: &mut Vec<u8>,
    depth: usize,
) -> Option<()> {
    let mut rest = text.strip_prefix(b"(")?;
    out.push(b'{');
    for (place, (name, kind)) in attributes.iter().enumerate() {
        if place > 0 {
            rest = rest.strip_prefix(b",")?;
            out.push(b',');
        }
        string(name.as_bytes(), out);
        out.push(b':');
        match rest.first()? {
            b',' | b')' => out.extend_from_slice(b"null"),
            b'"' => {
                let (value, after) = quoted_field(rest.get(1..)?)?;
                nested(kind, value.as_ref(), out, depth);
                rest = after;
            }
            _ => {
                let end = rest.iter().position(|byte| matches!(byte, b',' | b')'))?;
                let (value, after) = rest.split_at(end);
                if value.iter().any(|byte| matches!(byte, b'"' | b'\\' | b'(')) {
                    return None;
                }
                nested(kind, value, out, depth);
                rest = after;
            }
        }
    }
    out.push(b'}');
    (rest == b")").then_some(())
}

/// The value up to the closing quote, and what follows the quote: `""` and `\\` stand for one.
fn quoted_field(text: &[u8]) -> Option<(Cow<'_, [u8]>, &[u8])> {
    let special = |byte: &u8| matches!(byte, b'"' | b'\\');
    let mut owned = Vec::new();
    let mut rest = text;
    loop {
        let (plain, tail) = rest.split_at(rest.iter().position(special)?);
        match tail {
            [b'"', b'"', after @ ..] => {
                owned.extend_from_slice(plain);
                owned.push(b'"');
                rest = after;
            }
            [b'\\', byte, after @ ..] => {
                owned.extend_from_slice(plain);
                owned.push(*byte);
                rest = after;
            }
            [b'"', after @ ..] if owned.is_empty() => return Some((Cow::Borrowed(plain), after)),
            [b'"', after @ ..] => {
                owned.extend_from_slice(plain);
                return Some((Cow::Owned(owned), after));
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rendered(kind: &Type, text: &[u8]) -> String {
        let mut out = Vec::new();
        render(kind, text, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn array_of(element: Type) -> Type {
        Type::Array { element: Box::new(element), delimiter: b',' }
    }

    #[track_caller]
    fn check(kind: &Type, text: &str, json: &str) {
        assert_eq!(rendered(kind, text.as_bytes()), json, "{kind:?} of {text}");
    }

    #[test]
    fn numbers_keep_their_digits() {
        check(&Type::Integer, "9007199254740993", "9007199254740993");
        check(&Type::Integer, "-9223372036854775808", "-9223372036854775808");
        check(&Type::Numeric, "1.50", "1.50");
        check(&Type::Float, "1e+300", "1e+300");
        check(&Type::Float, "-0", "-0");
    }

    #[test]
    fn what_json_has_no_number_for_is_null_in_a_column_and_text_inside_a_value() {
        for kind in [Type::Numeric, Type::Float] {
            for text in ["NaN", "Infinity", "-Infinity"] {
                check(&kind, text, "null");
                check(&array_of(kind.clone()), &format!("{{{text}}}"), &format!("[\"{text}\"]"));
            }
        }
    }

    #[test]
    fn bytes_lose_their_prefix_in_a_column_and_keep_it_inside_a_value() {
        check(&Type::Bytea, "\\x0102ff", "\"0102ff\"");
        check(&Type::Bytea, "\\x", "\"\"");
        check(&array_of(Type::Bytea), r#"{"\\x01"}"#, r#"["\\x01"]"#);
    }

    #[test]
    fn times_have_a_t_and_a_complete_offset() {
        check(&Type::Timestamp, "2024-01-02 03:04:05.6", r#""2024-01-02T03:04:05.6""#);
        check(&Type::Timestamp, "0044-03-15 01:02:03 BC", r#""0044-03-15T01:02:03 BC""#);
        check(&Type::Timestamp, "-infinity", r#""-infinity""#);
        check(&Type::TimestampTz, "2024-01-02 03:04:05+00", r#""2024-01-02T03:04:05+00:00""#);
        check(&Type::TimestampTz, "2024-01-02 03:04:05-05", r#""2024-01-02T03:04:05-05:00""#);
        check(&Type::TimestampTz, "2024-01-02 03:04:05+05:30", r#""2024-01-02T03:04:05+05:30""#);
        let before_christ = r#""0044-03-15T01:02:03-04:56:02 BC""#;
        check(&Type::TimestampTz, "0044-03-15 01:02:03-04:56:02 BC", before_christ);
        check(&Type::TimestampTz, "0044-03-15 01:02:03+00 BC", r#""0044-03-15T01:02:03+00:00 BC""#);
        check(&Type::TimestampTz, "infinity", r#""infinity""#);
    }

    #[test]
    fn strings_are_escaped() {
        check(
            &Type::Text,
            "a\u{1}\u{1f}\u{7f}\u{8}\u{c}\n\r\t\"\\/\u{2028}é",
            "\"a\\u0001\\u001f\u{7f}\\b\\f\\n\\r\\t\\\"\\\\/\u{2028}é\"",
        );
        assert_eq!(rendered(&Type::Text, b"a\xffb"), "\"a\u{fffd}b\"");
    }

    #[test]
    fn json_is_embedded_on_one_line() {
        check(&Type::Json, "{\"a\":1,\n\t\"a\" : 2}", r#"{"a":1,  "a" : 2}"#);
        check(&Type::Json, "null", "null");
        check(&Type::Json, "{\"a\":", r#""{\"a\":""#);
        check(&Type::Json, "1 2", r#""1 2""#);
        check(&Type::Json, "", r#""""#);
        assert_eq!(rendered(&Type::Json, b"\"\xff\""), "\"\\\"\u{fffd}\\\"\"");
    }

    #[test]
    fn json_nested_as_deep_as_it_likes_costs_no_stack() {
        let deep = "[".repeat(200_000) + &"]".repeat(200_000);
        check(&Type::Json, &deep, &deep);
    }

    #[test]
    fn arrays_are_nested_by_dimension() {
        let integers = array_of(Type::Integer);
        check(&integers, "{}", "[]");
        check(&integers, "{1,NULL}", "[1,null]");
        check(&integers, "[0:1]={7,8}", "[7,8]");
        check(&integers, "[-1:0][2:3]={{1,2},{3,4}}", "[[1,2],[3,4]]");
        check(
            &array_of(Type::Text),
            r#"{"",NULL,"NULL","null","a,b","a\"b","a\\b","{}"," x ",é}"#,
            r#"["",null,"NULL","null","a,b","a\"b","a\\b","{}"," x ","é"]"#,
        );
        let boxes = Type::Array { element: Box::new(Type::Text), delimiter: b';' };
        check(&boxes, "{(3,4),(1,2);(7,8),(5,6)}", r#"["(3,4),(1,2)","(7,8),(5,6)"]"#);
        check(&array_of(integers), r#"{"{1,2}",NULL}"#, "[[1,2],null]");
    }

    #[test]
    fn vectors_are_arrays_of_their_numbers() {
        let vector = Type::Vector(Box::new(Type::Integer));
        check(&vector, "1 2", "[1,2]");
        check(&vector, "", "[]");
        check(&array_of(vector), r#"{"1 2","3"}"#, "[[1,2],[3]]");
    }

    #[test]
    fn composites_are_objects() {
        let pair = Type::Composite(
            [("x".into(), Type::Integer), ("y \"q".into(), Type::Text)].into_iter().collect(),
        );
        check(&pair, r#"(1,"a,""\\ b")"#, r#"{"x":1,"y \"q":"a,\"\\ b"}"#);
        check(&pair, "(,)", r#"{"x":null,"y \"q":null}"#);
        check(&pair, r#"(,"")"#, r#"{"x":null,"y \"q":""}"#);
        check(&array_of(pair), r#"{"(1,\"a\"\"b\")",NULL}"#, r#"[{"x":1,"y \"q":"a\"b"},null]"#);
        check(&Type::Composite([].into()), "()", "{}");
    }

    #[test]
    fn text_that_is_not_of_its_type_is_shown_as_it_is() {
        let pair = Type::Composite(
            [("x".into(), Type::Integer), ("y".into(), Type::Text)].into_iter().collect(),
        );
        for text in ["", "(", "(1", "(1)", "(1,2,3)", "(1,2)3", "(1,\"2)", "(1,2\"", "1,2"] {
            check(&pair, text, &serde_json::to_string(text).unwrap());
        }
        let integers = array_of(Type::Integer);
        for text in ["", "{", "}", "{1", "{1,}", "{,1}", "{1}2", "{\"1}", "[0:1]{1}", "{{1}", "1"] {
            check(&integers, text, &serde_json::to_string(text).unwrap());
        }
        for text in ["", "-", "01", "1.", ".5", "1e", "+1", "0x1", " 1", "1 ", "٣"] {
            check(&Type::Numeric, text, &serde_json::to_string(text).unwrap());
        }
        check(&Type::Bool, "true", r#""true""#);
    }

    #[test]
    fn nesting_beyond_the_bound_is_a_string() {
        let mut kind = Type::Integer;
        let mut text = "1".to_owned();
        for _ in 0..NESTING_MAX {
            kind = Type::Composite([("a".into(), kind)].into_iter().collect());
        }
        for _ in 0..NESTING_MAX.min(8) {
            text = format!("({text})");
        }
        assert!(
            serde_json::from_str::<serde_json::Value>(&rendered(&kind, text.as_bytes())).is_ok()
        );
        for _ in 0..4 * NESTING_MAX {
            kind = array_of(kind);
        }
        let braces = "{".repeat(300) + &"}".repeat(300);
        check(&kind, &braces, &serde_json::to_string(&braces).unwrap());
    }

    fn kinds() -> impl Strategy<Value = Type> {
        let scalar = prop_oneof![
            Just(Type::Bool),
            Just(Type::Integer),
            Just(Type::Numeric),
            Just(Type::Float),
            Just(Type::Json),
            Just(Type::Bytea),
            Just(Type::Timestamp),
            Just(Type::TimestampTz),
            Just(Type::Text),
        ];
        scalar.prop_recursive(4, 16, 3, |inner| {
            prop_oneof![
                (inner.clone(), prop_oneof![Just(b','), Just(b';')]).prop_map(
                    |(kind, delimiter)| Type::Array { element: Box::new(kind), delimiter }
                ),
                inner.clone().prop_map(|kind| Type::Vector(Box::new(kind))),
                prop::collection::vec((".{0,4}".prop_map(String::into_boxed_str), inner), 0..3)
                    .prop_map(|attributes| Type::Composite(attributes.into())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn any_bytes_give_one_json_value(
            kind in kinds(),
            text in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..40),
                r#"[\]\[{}()",;:\\ =\-+.0-9eNULtfTBCna\n]{0,60}"#.prop_map(String::into_bytes),
            ],
        ) {
            let mut out = b"before".to_vec();
            render(&kind, &text, &mut out);
            let json = out.strip_prefix(b"before").unwrap();
            prop_assert!(serde_json::from_slice::<serde_json::Value>(json).is_ok()
                // The one number that serde_json's own value cannot hold.
                || serde_json::from_slice::<Box<serde_json::value::RawValue>>(json).is_ok());
            prop_assert!(!json.contains(&b'\n'));
        }
    }
}
