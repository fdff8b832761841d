//! Who made a transaction, as its writer said in the log.
//!
//! In:     the transactional message [`PREFIX`], JSON `{"id", "sub", "connection_id",
//!         "mutation_id"}`, all optional strings; the last two may be called `conn` and `mutation`.
//! Out:    [`Origin`], and its JSON for events.
//! Never:  more than [`TEXT_BYTES_MAX`] of one text: whoever may write may write this message.
//! Source: postgresql.org/docs/17/functions-admin.html, `pg_logical_emit_message`

use serde::{Deserialize, Serialize};

/// Of the message. The first of a transaction counts, and only in front of its rows: what runs
/// within it cannot speak for its writer.
pub const PREFIX: &str = "walcast.origin";

/// Bytes of one text. Longer ones are left out.
pub const TEXT_BYTES_MAX: usize = 255;

/// Bytes of the message that are looked at: four texts, each byte of them escaped.
const MESSAGE_BYTES_MAX: usize = 8192;

/// Who made a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Origin {
    /// Names the request, for whoever waits until it is published. Not for events.
    #[serde(skip_serializing)]
    pub id: Option<Box<str>>,
    /// The `sub` claim of the writer's token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub: Option<Box<str>>,
    /// What the writer calls its connection.
    #[serde(skip_serializing_if = "Option::is_none", alias = "conn")]
    pub connection_id: Option<Box<str>>,
    /// What the writer calls this change.
    #[serde(skip_serializing_if = "Option::is_none", alias = "mutation")]
    pub mutation_id: Option<Box<str>>,
}

impl Origin {
    /// From a message's content; none when it is not one.
    pub fn parse(content: &[u8]) -> Option<Self> {
        if content.len() > MESSAGE_BYTES_MAX {
            return None;
        }
        let mut origin: Self = serde_json::from_slice(content).ok()?;
        let texts =
            [&mut origin.id, &mut origin.sub, &mut origin.connection_id, &mut origin.mutation_id];
        for text in texts {
            text.take_if(|text| text.is_empty() || text.len() > TEXT_BYTES_MAX);
        }
        Some(origin)
    }

    /// Whether an event has anything to say of it.
    pub fn is_told(&self) -> bool {
        self.sub.is_some() || self.connection_id.is_some() || self.mutation_id.is_some()
    }

    /// The message's content.
    pub fn to_message(&self) -> String {
        let Self { id, sub, connection_id, mutation_id } = self;
        serde_json::json!({
            "id": id, "sub": sub, "connection_id": connection_id, "mutation_id": mutation_id,
        })
        .to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let origin = Origin {
            id: Some("7".into()),
            sub: Some("u\"1".into()),
            connection_id: None,
            mutation_id: Some("m".into()),
        };
        assert_eq!(Origin::parse(origin.to_message().as_bytes()), Some(origin.clone()));
        let short = Origin::parse(br#"{"sub":"u","conn":"c","mutation":"m"}"#).unwrap();
        assert_eq!((short.connection_id, short.mutation_id), (Some("c".into()), Some("m".into())));
        assert_eq!(serde_json::to_string(&origin).unwrap(), r#"{"sub":"u\"1","mutation_id":"m"}"#);
    }

    #[test]
    fn what_is_no_origin_or_too_long_says_nothing() {
        for content in ["", "null", "[]x", "{\"sub\":1}", "\u{0}"] {
            assert_eq!(Origin::parse(content.as_bytes()), None, "{content:?}");
        }
        let long = "x".repeat(TEXT_BYTES_MAX + 1);
        let message = format!(r#"{{"sub":"{long}","mutation_id":"m","else":1}}"#);
        let origin = Origin::parse(message.as_bytes()).unwrap();
        assert_eq!((origin.sub, origin.mutation_id.as_deref()), (None, Some("m")));
        assert!(!Origin::parse(br#"{"id":"1","sub":""}"#).unwrap().is_told());
        let huge = format!(r#"{{"else":"{}"}}"#, "x".repeat(MESSAGE_BYTES_MAX));
        assert_eq!(Origin::parse(huge.as_bytes()), None);
    }
}
