//! What one version of the protocol makes of events.
//!
//! In:     row changes, broadcasts and presence, rendered.
//! Out:    finished WebSocket frames, the same for all who get them.
//! Never:  anything about one receiver.

use bytes::Bytes;
use serde_json::json;

use crate::cursor::Cursor;
use crate::event::broadcast::Broadcast;
use crate::hub::{Format, Shown, Word};
use crate::transport::phoenix::{self, Version};
use crate::transport::websocket::{binary_frame, text_frame};

/// The wire format of an audience.
pub(super) fn format(version: Version, legacy: bool) -> Format {
    type Encode = fn(&Shown<'_>) -> Bytes;
    let (id, encode): (u8, Encode) = match (version, legacy) {
        (Version::V1, false) => (1, |shown| row_frame(Version::V1, shown)),
        (Version::V2, false) => (2, |shown| row_frame(Version::V2, shown)),
        (Version::V1, true) => (3, |shown| legacy_frame(Version::V1, shown)),
        (Version::V2, true) => (4, |shown| legacy_frame(Version::V2, shown)),
    };
    match version {
        Version::V1 => Format {
            id,
            namespace: "",
            encode,
            broadcast: |_, topic, said, cursor| encode_broadcast(Version::V1, topic, said, cursor),
            push: |topic, event, payload| push_frame(Version::V1, topic, event, payload),
            word: |_, topic, word| word_frame(Version::V1, topic, word),
        },
        Version::V2 => Format {
            id,
            namespace: "",
            encode,
            broadcast: |_, topic, said, cursor| encode_broadcast(Version::V2, topic, said, cursor),
            push: |topic, event, payload| push_frame(Version::V2, topic, event, payload),
            word: |_, topic, word| word_frame(Version::V2, topic, word),
        },
    }
}

pub(super) fn encode_broadcast(
    version: Version,
    topic: &str,
    broadcast: &Broadcast,
    cursor: Option<Cursor>,
) -> Option<Bytes> {
    Some(match phoenix::encode_broadcast(version, topic, broadcast, cursor)? {
        phoenix::Content::Text(text) => text_frame(&text),
        phoenix::Content::Binary(data) => binary_frame(&data),
    })
}

fn push_frame(version: Version, topic: &str, event: &str, payload: &[u8]) -> Bytes {
    text_frame(&phoenix::encode_push(version, None, topic, event, payload))
}

/// Nothing is known of the session that the client named: its channel begins here.
pub(super) fn session_started_frame(version: Version, topic: &str, begins: Cursor) -> Bytes {
    let payload = json!({
        "extension": "postgres_changes",
        "status": "ok",
        "message": "Nothing is known of this session: it begins here.",
        "kind": "session_started",
        "cursor": begins.to_string(),
        "channel": topic.strip_prefix("realtime:").unwrap_or(topic),
    });
    push_frame(version, topic, "system", payload.to_string().as_bytes())
}

/// How a channel that came back goes on: a `system` event with members of its own.
fn word_frame(version: Version, topic: &str, word: &Word) -> Bytes {
    let channel = topic.strip_prefix("realtime:").unwrap_or(topic);
    let payload = match word {
        Word::CaughtUp(cursor) => json!({
            "extension": "postgres_changes",
            "status": "ok",
            "message": "Caught up",
            "kind": "caught_up",
            "cursor": cursor.to_string(),
            "channel": channel,
        }),
        Word::Gap { from, to, reason } => json!({
            "extension": "postgres_changes",
            "status": "error",
            "message": "Some changes cannot be sent any more: fetch the data again.",
            "kind": "gap",
            "from": from.map(|from| from.to_string()),
            "to": to.to_string(),
            "reason": reason,
            "channel": channel,
        }),
    };
    push_frame(version, topic, "system", payload.to_string().as_bytes())
}

/// Joins without a `config` get the operation as the event and the data as the payload.
fn legacy_frame(version: Version, shown: &Shown<'_>) -> Bytes {
    let Shown { topic, operation, data, .. } = *shown;
    text_frame(&phoenix::encode_push(version, None, topic, operation.as_str(), data))
}

/// The place of the change is in the data.
fn row_frame(version: Version, shown: &Shown<'_>) -> Bytes {
    let Shown { topic, ids, data, .. } = *shown;
    text_frame(&phoenix::encode_row_change(version, topic, ids, data))
}
