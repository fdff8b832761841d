//! Broadcasts: what somebody says to a room.
//!
//! In:     a client's payload, an HTTP body, or a row of `realtime.messages`.
//! Out:    the payload of a `broadcast` event as JSON text.
//! Never:  a look into a user's payload; a rendering of opaque bytes as JSON.
//! Source: spec of the realtime protocol, section 2.3.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::cursor::Cursor;

/// What the payload of a [`UserEvent`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Opaque bytes.
    Bytes,
    /// UTF-8 JSON.
    Json,
}

/// Bytes of the topic, and of the event's name, beside opaque bytes: the one frame that carries them
/// has a byte for the length of each.
const NAME_BYTES_MAX: usize = 255;

/// What a room is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broadcast {
    /// The payload of the `broadcast` event, a JSON object, passed on as it is.
    Whole(Bytes),
    /// An event of the user's own; how it is written depends on who receives it.
    User(UserEvent),
}

/// An event of the user's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserEvent {
    /// Its name.
    pub event: Box<str>,
    /// What `data` is.
    pub encoding: Encoding,
    /// The user's payload: valid JSON, or any bytes.
    pub data: Bytes,
    /// What the server adds.
    pub meta: Meta,
}

/// What the server says about a broadcast.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meta {
    /// Names the stored message it came from, or the sender's own name for it.
    pub id: Option<Box<str>>,
    /// It was stored before the receiver joined.
    pub replayed: bool,
    /// When it was stored, as Postgres prints it: the texts are in the order of the times. Not told.
    pub stored_at: Option<Box<str>>,
    /// More members of the object, as JSON with commas between.
    pub about: Option<Box<str>>,
}

impl Meta {
    /// A JSON object; none when there is nothing to say. `cursor`: of what came through the log.
    pub fn to_json(&self, cursor: Option<Cursor>) -> Option<String> {
        let replayed = self.replayed.then(|| r#""replayed":true"#.to_owned());
        let id = self.id.as_deref().map(|id| format!(r#""id":{}"#, json_string(id)));
        let cursor = cursor.map(|cursor| format!(r#""cursor":"{cursor}""#));
        let about = self.about.as_ref().map(ToString::to_string);
        let members = [replayed, id, cursor, about].into_iter().flatten();
        let members: Vec<String> = members.collect();
        (!members.is_empty()).then(|| format!("{{{}}}", members.join(",")))
    }
}

impl Broadcast {
    /// The payload of the event for those who get it as text; none for opaque bytes.
    pub fn payload(&self) -> Option<Bytes> {
        self.payload_at(None)
    }

    /// The same of what came through the log, with its place there.
    pub fn payload_at(&self, cursor: Option<Cursor>) -> Option<Bytes> {
        match self {
            Self::Whole(payload) => Some(payload.clone()),
            Self::User(user) => user.payload(cursor),
        }
    }

    /// The name of the stored message it came from.
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::Whole(_) => None,
            Self::User(user) => user.meta.id.as_deref(),
        }
    }

    /// When that was stored.
    pub fn stored_at(&self) -> Option<&str> {
        match self {
            Self::Whole(_) => None,
            Self::User(user) => user.meta.stored_at.as_deref(),
        }
    }
}

impl UserEvent {
    /// Whether some client can be told of it on this topic. Opaque bytes beside long names fit no
    /// frame.
    pub fn can_be_told_on(&self, topic: &str) -> bool {
        let fits = topic.len() <= NAME_BYTES_MAX && self.event.len() <= NAME_BYTES_MAX;
        self.encoding == Encoding::Json || fits
    }

    fn payload(&self, cursor: Option<Cursor>) -> Option<Bytes> {
        if self.encoding == Encoding::Bytes {
            return None;
        }
        let event = json_string(&self.event);
        let meta = self.meta.to_json(cursor);
        let mut json = Vec::with_capacity(self.data.len() + event.len() + 128);
        json.extend_from_slice(br#"{"event":"#);
        json.extend_from_slice(event.as_bytes());
        json.extend_from_slice(br#","payload":"#);
        json.extend_from_slice(&self.data);
        json.extend_from_slice(br#","type":"broadcast""#);
        if let Some(meta) = meta {
            json.extend_from_slice(br#","meta":"#);
            json.extend_from_slice(meta.as_bytes());
        }
        json.push(b'}');
        Some(json.into())
    }
}

/// Event and payload of a broadcast that is passed on as its sender wrote it; none when it names no
/// event.
pub fn parts(whole: &[u8]) -> Option<(Cow<'_, str>, Option<&[u8]>)> {
    #[derive(Deserialize)]
    struct Parts<'a> {
        #[serde(borrow)]
        event: Cow<'a, str>,
        #[serde(borrow, default)]
        payload: Option<&'a RawValue>,
    }
    let Parts { event, payload } = serde_json::from_slice(whole).ok()?;
    Some((event, payload.map(|payload| payload.get().as_bytes())))
}

fn json_string(text: &str) -> String {
    serde_json::to_string(text).expect("text is always a JSON string")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn event(encoding: Encoding, meta: Meta) -> Broadcast {
        let data = Bytes::from_static(br#"{"a": 1}"#);
        Broadcast::User(UserEvent { event: "say \"hi\"".into(), encoding, data, meta })
    }

    fn parsed(broadcast: &Broadcast) -> Value {
        serde_json::from_slice(&broadcast.payload().unwrap()).unwrap()
    }

    #[test]
    fn a_users_event_becomes_an_object_that_names_it() {
        assert_eq!(
            parsed(&event(Encoding::Json, Meta::default())),
            json!({ "event": "say \"hi\"", "payload": { "a": 1 }, "type": "broadcast" })
        );
        let meta = Meta { id: Some("7".into()), replayed: true, ..Meta::default() };
        assert_eq!(
            parsed(&event(Encoding::Json, meta))["meta"],
            json!({ "replayed": true, "id": "7" })
        );
        let meta = Meta { replayed: true, ..Meta::default() };
        assert_eq!(parsed(&event(Encoding::Json, meta))["meta"], json!({ "replayed": true }));
    }

    #[test]
    fn opaque_bytes_are_never_text() {
        assert_eq!(event(Encoding::Bytes, Meta::default()).payload(), None);
    }

    #[test]
    fn opaque_bytes_need_short_names() {
        let long = "x".repeat(256);
        for (encoding, topic, name, expected) in [
            (Encoding::Bytes, &*"x".repeat(255), &*"y".repeat(255), true),
            (Encoding::Bytes, &*long, "y", false),
            (Encoding::Bytes, "x", &*long, false),
            (Encoding::Json, &*long, &*long, true),
        ] {
            let (event, data, meta) = (name.into(), Bytes::new(), Meta::default());
            let user = UserEvent { event, encoding, data, meta };
            assert_eq!(user.can_be_told_on(topic), expected, "{encoding:?} {topic} {name}");
        }
    }
}
