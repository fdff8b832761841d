//! The text of a payload → its members, each as it is written: no number loses a digit.

use std::fmt;

use hashbrown::HashMap;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Refused;

/// The members of an object, in their order.
#[derive(Debug)]
pub(super) struct Ordered<'a>(pub(super) Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Ordered<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Members).map(Self)
    }
}

impl Serialize for Ordered<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// The members of a payload by name: of several of one name the last, as Postgres has it.
#[derive(Debug)]
pub(super) struct Members<'a>(HashMap<String, &'a RawValue>);

impl<'a> Members<'a> {
    /// From what came.
    ///
    /// # Errors
    /// It is no object.
    pub(super) fn read(payload: &'a RawValue) -> Result<Self, Refused> {
        let ordered: Result<Ordered<'a>, _> = serde_json::from_str(payload.get());
        match ordered {
            Ok(Ordered(members)) => Ok(Self(members.into_iter().collect())),
            Err(_) => Err(Refused::invalid("The payload is not an object")),
        }
    }

    /// A member as it is written.
    pub(super) fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.0.get(name).copied()
    }

    /// Whether it is there and not null.
    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value.get() != "null")
    }

    /// A member, if it is such a thing.
    pub(super) fn read_as<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_str(self.get(name)?.get()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_as_they_are_written() {
        let text = r#"{"b":1.000000000000000000001,"a":{"x":[ 1 ]},"b":2,"n":null}"#;
        let payload = RawValue::from_string(text.into()).unwrap();
        let members = Members::read(&payload).unwrap();
        assert_eq!(members.get("b").unwrap().get(), "2");
        assert_eq!(members.get("a").unwrap().get(), r#"{"x":[ 1 ]}"#);
        assert!(members.has("a") && !members.has("n") && !members.has("z"));
        for wrong in ["null", "1", "\"x\"", "[]"] {
            let payload = RawValue::from_string(wrong.into()).unwrap();
            assert_eq!(Members::read(&payload).unwrap_err().code, "VALIDATION_FAILED");
        }
    }

    #[test]
    fn depth_is_not_walked() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(50_000), "]".repeat(50_000));
        if let Ok(payload) = RawValue::from_string(deep) {
            assert!(Members::read(&payload).unwrap().has("a"));
        }
    }
}
