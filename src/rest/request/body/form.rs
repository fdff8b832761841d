//! `application/x-www-form-urlencoded` → one JSON object of strings.

use serde_json::{Map, Value};

use super::Body;
use crate::rest::Problem;
use crate::rest::request::pairs::decode;

/// Fields of one form: what a table can have columns.
const FIELDS_MAX: usize = 1_600;

/// Of fields with one name, the last counts.
pub(super) fn parse(body: &[u8]) -> Result<Body, Problem> {
    let invalid = || Problem::body("Form is not valid UTF-8");
    let text = std::str::from_utf8(body).map_err(|_| invalid())?;
    let mut object = Map::new();
    for pair in text.trim().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode(name).map_err(|_| invalid())?;
        let value = decode(value).map_err(|_| invalid())?;
        object.insert(name.into_owned(), Value::String(value.into_owned()));
        if object.len() > FIELDS_MAX {
            return Err(Problem::body(format!("More than {FIELDS_MAX} fields in a form")));
        }
    }
    let keys = object.keys().cloned().collect();
    Ok(Body::Object { text: Value::Object(object).to_string().into(), keys })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_becomes_an_object_of_strings() {
        let check = |form: &str, expected: &str, expected_keys: &[&str]| {
            let Ok(Body::Object { text, keys }) = parse(form.as_bytes()) else { panic!("{form}") };
            assert_eq!(
                (&*text, &*keys.join("|")),
                (expected.as_bytes(), &*expected_keys.join("|"))
            );
        };
        check("a=1&b=x+y", r#"{"a":"1","b":"x y"}"#, &["a", "b"]);
        check("b=%22&a=&c&b=2\r\n", r#"{"b":"2","a":"","c":""}"#, &["b", "a", "c"]);
        check("%C3%A4=%00", "{\"ä\":\"\\u0000\"}", &["ä"]);
        check("&", "{}", &[]);
    }

    #[test]
    fn what_is_no_text_or_too_long_is_refused() {
        assert!(parse(b"a=\xff").is_err());
        assert!(parse(b"a=%ff").is_err());
        let many: Vec<String> = (0..=FIELDS_MAX).map(|number| format!("c{number}=1")).collect();
        assert!(parse(many[1..].join("&").as_bytes()).is_ok());
        assert!(parse(many.join("&").as_bytes()).is_err());
    }
}
