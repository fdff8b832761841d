//! Bodies with several broadcasts: nothing is said that the body does not say, above all nothing to
//! a public room that was meant for a private one.

use serde_json::Value;
use walcast::http::batch::{Limits, Unusable, parse};

const LIMITS: Limits = Limits { messages_max: 8, payload_bytes_max: 64 };

/// The whole input is the body.
pub fn check(bytes: &[u8]) {
    let read = match parse(bytes, LIMITS) {
        Ok(messages) => messages,
        Err(Unusable::Malformed | Unusable::TooMany) => return,
        Err(Unusable::Invalid(errors)) => {
            let text = serde_json::to_string(&errors).expect("it becomes a body");
            // At most five faults a message, and as many messages as are allowed.
            assert!(text.len() <= 64 + LIMITS.messages_max * 256, "{text}");
            return;
        }
    };
    assert!((1..=LIMITS.messages_max).contains(&read.len()));
    // A number or a depth that this reader refuses may stand in what is passed over.
    let Ok(body) = serde_json::from_slice::<Value>(bytes) else { return };
    let said = body["messages"].as_array().expect("it was read as a list");
    assert_eq!(said.len(), read.len());
    for (said, read) in said.iter().zip(&read) {
        assert_eq!(said["topic"], read.topic.sub_topic());
        assert_eq!((said["event"].as_str(), read.event.is_empty()), (Some(&*read.event), false));
        let payload = read.payload.get();
        assert!(payload.len() <= LIMITS.payload_bytes_max);
        assert_eq!(serde_json::from_str::<Value>(payload).ok().as_ref(), Some(&said["payload"]));
        assert!(said["payload"].is_object());
        let is_private = match &said["private"] {
            Value::Null => false,
            Value::Bool(is_private) => *is_private,
            Value::String(text) => {
                assert!(["true", "false"].contains(&&*text.to_ascii_lowercase()), "{text}");
                text.eq_ignore_ascii_case("true")
            }
            other @ (Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                panic!("{other} is no boolean")
            }
        };
        assert_eq!(read.private, is_private);
        assert_eq!(read.id.as_deref(), said["id"].as_str().filter(|id| !id.is_empty()));
    }
}
