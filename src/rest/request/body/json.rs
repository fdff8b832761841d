//! JSON: its syntax, its depth, and the keys of its objects.

use std::collections::HashMap;
use std::fmt;

use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::Body;
use crate::rest::Problem;

/// Arrays and objects inside each other: what other parsers take too. Postgres reads each level by
/// recursion, and a stack that is exhausted there would be an error of the server.
const DEPTH_MAX: usize = 128;

/// Reads a body that is not empty.
pub(super) fn parse(body: Bytes) -> Result<Body, Problem> {
    let invalid = || Problem::body("Empty or invalid json");
    let text = std::str::from_utf8(&body).map_err(|_| invalid())?;
    if !is_shallow(text) {
        return Err(Problem::body(format!("JSON nested more than {DEPTH_MAX} deep")));
    }
    let mut keys = Keys::default();
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let shape = Value(&mut keys).deserialize(&mut deserializer);
    let shape = shape.and_then(|shape| deserializer.end().map(|()| shape));
    let shape = match shape {
        Ok(shape) => shape,
        // Outside of objects numbers are looked into, and one may be too great for a float.
        Err(_) if is_valid(text) && !text.trim_start().starts_with('{') => Shape::Other,
        Err(_) => return Err(invalid()),
    };
    Ok(match shape {
        Shape::Object => Body::Object { keys: keys.names, text: body },
        Shape::Array { len, is_uniform } => {
            Body::Array { keys: keys.names, text: body, len, is_uniform }
        }
        Shape::Other => Body::Other(body),
    })
}

/// Whether the syntax is that of JSON.
fn is_valid(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// Whether the depth is bounded, without recursion.
fn is_shallow(text: &str) -> bool {
    let mut depth = 0_usize;
    let mut is_in_string = false;
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => is_in_string = !is_in_string,
            b'\\' if is_in_string => {
                bytes.next();
            }
            b'[' | b'{' if !is_in_string => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return false;
                }
            }
            b']' | b'}' if !is_in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    true
}

/// What the outermost value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Object,
    Array { len: usize, is_uniform: bool },
    Other,
}

/// Keys of objects, each once, in the order they came.
#[derive(Debug, Default)]
pub(super) struct Keys {
    pub(super) names: Vec<String>,
    places: HashMap<String, usize>,
    /// By place: the number of the object that had it last.
    seen_in: Vec<usize>,
    /// Objects begun.
    objects: usize,
}

impl Keys {
    /// The place of a key. `guess` is where it is in an object like the one before.
    pub(super) fn place(&mut self, name: &str, guess: usize) -> usize {
        if self.names.get(guess).is_some_and(|guessed| guessed == name) {
            return guess;
        }
        if let Some(place) = self.places.get(name) {
            return *place;
        }
        let place = self.names.len();
        self.names.push(name.to_owned());
        self.places.insert(name.to_owned(), place);
        self.seen_in.push(0);
        place
    }

    /// Reads one object; how many different keys it has.
    fn object<'de, A: MapAccess<'de>>(&mut self, mut map: A) -> Result<usize, A::Error> {
        self.objects += 1;
        let mut distinct = 0;
        let mut guess = 0;
        while let Some(place) = map.next_key_seed(Key { keys: self, guess })? {
            map.next_value::<IgnoredAny>()?;
            guess = place + 1;
            if std::mem::replace(&mut self.seen_in[place], self.objects) != self.objects {
                distinct += 1;
            }
        }
        Ok(distinct)
    }
}

/// One key.
struct Key<'a> {
    keys: &'a mut Keys,
    guess: usize,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = usize;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a key")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<usize, E> {
        Ok(self.keys.place(name, self.guess))
    }
}

/// The outermost value.
struct Value<'a>(&'a mut Keys);

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = Shape;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Shape, D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// What is neither an object nor an array is only passed over.
macro_rules! other {
    ($shape:expr, $($visit:ident: $type:ty),+) => {
        $(fn $visit<E: Error>(self, _: $type) -> Result<Self::Value, E> {
            Ok($shape)
        })+

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok($shape)
        }
    };
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = Shape;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Shape, A::Error> {
        self.0.object(map).map(|_| Shape::Object)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Shape, A::Error> {
        let keys = self.0;
        let mut len = 0;
        let mut first = None;
        let mut is_uniform = true;
        let mut is_all_objects = true;
        while let Some(distinct) = sequence.next_element_seed(Element(keys))? {
            len += 1;
            match distinct {
                Some(distinct) => {
                    let first = *first.get_or_insert(distinct);
                    is_uniform &= distinct == first && keys.names.len() == first;
                }
                None => is_all_objects = false,
            }
        }
        Ok(if is_all_objects { Shape::Array { len, is_uniform } } else { Shape::Other })
    }

    other!(
        Shape::Other, visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64,
        visit_str: &str
    );
}

/// One element of the outermost array: of an object, how many different keys it has.
struct Element<'a>(&'a mut Keys);

impl<'de> DeserializeSeed<'de> for Element<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Element<'_> {
    type Value = Option<usize>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        self.0.object(map).map(Some)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
        while sequence.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    other!(None, visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, expected: &str) {
        let found = match parse(Bytes::from(text.to_owned())) {
            Ok(Body::Empty) => "empty".to_owned(),
            Ok(Body::Object { keys, .. }) => format!("object {keys:?}"),
            Ok(Body::Array { keys, len, is_uniform, .. }) => {
                let uniform = if is_uniform { " uniform" } else { "" };
                format!("array {keys:?} {len}{uniform}")
            }
            Ok(Body::Other(_)) => "other".to_owned(),
            Err(problem) => {
                assert_eq!((problem.status.as_u16(), &*problem.code), (400, "PGRST102"));
                problem.message
            }
        };
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn the_keys_of_objects_are_collected_in_order() {
        check("{}", "object []");
        check(r#" {"b":{"c":[1,{"d":2}]},"a":null,"b":1} "#, r#"object ["b", "a"]"#);
        check(r#"{"\u00e4\n":1,"ä\n":2,"":3}"#, r#"object ["ä\n", ""]"#);
        check("[]", "array [] 0 uniform");
        check("[{},{}]", "array [] 2 uniform");
        check(r#"[{"a":1,"b":2},{"b":1,"a":2}]"#, r#"array ["a", "b"] 2 uniform"#);
        check(r#"[{"a":1,"b":2},{"b":1,"b":2,"a":1}]"#, r#"array ["a", "b"] 2 uniform"#);
        check(r#"[{"a":1},{"b":2},{"a":3}]"#, r#"array ["a", "b"] 3"#);
        check(r#"[{"a":1,"b":2},{"a":3}]"#, r#"array ["a", "b"] 2"#);
        check(r#"[{"a":1},{"a":2,"b":3}]"#, r#"array ["a", "b"] 2"#);
        check(r#"[{"a":1,"b":2},{"a":1,"a":2}]"#, r#"array ["a", "b"] 2"#);
        check(r#"[{},{"a":1}]"#, r#"array ["a"] 2"#);
    }

    #[test]
    fn anything_else_is_other() {
        for text in [
            "1",
            "-0.5e3",
            "1e999",
            "true",
            "null",
            "\"a\"",
            "[1]",
            "[[]]",
            "[{\"a\":1},2]",
            "[null]",
            "[\"a\",true,1.5,-1,1e999]",
        ] {
            check(text, "other");
        }
    }

    #[test]
    fn values_are_not_looked_into() {
        check(r#"{"a":1e999,"b":123456789012345678901234567890.5}"#, r#"object ["a", "b"]"#);
        check(r#"{"a":"\u0000"}"#, r#"object ["a"]"#);
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in [
            "{",
            "}",
            "{a:1}",
            "{\"a\":}",
            "{\"a\":1,}",
            "[1,]",
            "{} {}",
            "[]]",
            "\"",
            "'a'",
            "{\"a\":01}",
            "{\"a\":\"\n\"}",
            "\u{feff}{}",
            "{\"a\":nul}",
            "{\"a\":1e}",
            "{1:2}",
            "[{\"a\":1},",
            "NaN",
            "{\"\\ud800\":1}",
        ] {
            check(text, "Empty or invalid json");
        }
        assert!(parse(Bytes::from_static(b"{\"a\":\"\xff\"}")).is_err());
    }

    #[test]
    fn depth_is_bounded() {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        check(&format!("{{\"a\":{}}}", deep(DEPTH_MAX - 1)), r#"object ["a"]"#);
        check(&deep(DEPTH_MAX), "other");
        check(&deep(DEPTH_MAX + 1), "JSON nested more than 128 deep");
        check(&"{\"a\":".repeat(100_000), "JSON nested more than 128 deep");
        check(&format!("[\"{}\\\"{}\"]", "[".repeat(200), "{".repeat(200)), "other");
    }

    proptest! {
        /// What serde makes of the same text is the oracle.
        #[test]
        fn the_shape_is_what_the_value_is(
            text in r#"(\[|\{|"a":|"b":|,|1|null|"x"|\}|\]| ){0,12}"#,
        ) {
            let found = parse(Bytes::from(text.clone()));
            match serde_json::from_str::<serde_json::Value>(&text) {
                Err(_) => prop_assert!(found.is_err(), "{}", text),
                Ok(serde_json::Value::Object(map)) => {
                    let keys: Vec<String> = map.keys().cloned().collect();
                    prop_assert_eq!(found.unwrap(), Body::Object { text: text.into(), keys });
                }
                Ok(serde_json::Value::Array(list)) if list.iter().all(serde_json::Value::is_object) => {
                    let objects = || list.iter().map(|object| object.as_object().unwrap());
                    let Ok(Body::Array { len, is_uniform, keys, .. }) = found else {
                        panic!("{text}: {found:?}");
                    };
                    prop_assert_eq!(len, list.len());
                    prop_assert!(objects().flat_map(|object| object.keys()).all(|key| keys.contains(key)));
                    let is_same = |object: &serde_json::Map<String, serde_json::Value>| {
                        object.len() == keys.len()
                    };
                    prop_assert_eq!(is_uniform, objects().all(is_same), "{}", text);
                }
                Ok(_) => prop_assert_eq!(found.unwrap(), Body::Other(text.into())),
            }
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(Bytes::from(bytes));
        }
    }
}
