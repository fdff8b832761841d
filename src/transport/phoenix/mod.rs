//! The Phoenix protocol: WebSocket messages ↔ [`Frame`] and [`Message`].
//!
//! In:     one text or binary message of a client; messages and finished payloads for it.
//! Out:    a frame that borrows from the message; one text message.
//! Never:  IO, state, a look into a payload, a panic on any bytes.
//! Source: spec of the realtime protocol, sections 2.1 and 2.2.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;
use std::io::Write;

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::cursor::Cursor;
use crate::event::broadcast::{Broadcast, Encoding};
use crate::session::{Frame, Message, Payload, RawRef, UserBroadcast};

/// How text frames are written, chosen by the client when it connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// `1.0.x`: an object, which has no `join_ref` on the way to the client.
    V1,
    /// `2.0.x`: an array of five; binary frames too.
    V2,
}

/// The client asked for a version that does not exist: refuse the upgrade with 403 and no body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unsupported serializer version")]
pub struct UnsupportedVersion;

impl Version {
    /// From the `vsn` parameter; the older version when there is none.
    ///
    /// # Errors
    /// [`UnsupportedVersion`], also for what is no version number.
    pub fn from_vsn(vsn: Option<&str>) -> Result<Self, UnsupportedVersion> {
        let Some(vsn) = vsn else { return Ok(Self::V1) };
        let (series, patch) = vsn.rsplit_once('.').ok_or(UnsupportedVersion)?;
        if patch.is_empty() || !patch.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(UnsupportedVersion);
        }
        match series {
            "1.0" => Ok(Self::V1),
            "2.0" => Ok(Self::V2),
            _ => Err(UnsupportedVersion),
        }
    }
}

/// Not a frame: log it and drop it, the connection stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed frame: {0}")]
pub struct DecodeError(&'static str);

/// The members of a version 1 frame; others are ignored.
#[derive(Deserialize)]
struct Object<'a> {
    #[serde(borrow)]
    topic: Cow<'a, str>,
    #[serde(borrow)]
    event: Cow<'a, str>,
    #[serde(borrow)]
    payload: &'a RawValue,
    #[serde(borrow, rename = "ref")]
    reference: &'a RawValue,
    #[serde(borrow)]
    join_ref: Option<&'a RawValue>,
}

/// The elements of a version 2 frame; further ones are ignored.
struct Array<'a> {
    join_ref: &'a RawValue,
    reference: &'a RawValue,
    topic: Cow<'a, str>,
    event: Cow<'a, str>,
    payload: &'a RawValue,
}

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Array<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements;

        impl<'de> Visitor<'de> for Elements {
            type Value = Array<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of five")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let short = |length| de::Error::invalid_length(length, &Self);
                let join_ref = list.next_element()?.ok_or_else(|| short(0))?;
                let reference = list.next_element()?.ok_or_else(|| short(1))?;
                let Text(topic) = list.next_element()?.ok_or_else(|| short(2))?;
                let Text(event) = list.next_element()?.ok_or_else(|| short(3))?;
                let payload = list.next_element()?.ok_or_else(|| short(4))?;
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Array { join_ref, reference, topic, event, payload })
            }
        }

        deserializer.deserialize_seq(Elements)
    }
}

/// Decodes one text message.
///
/// # Errors
/// [`DecodeError`] when it is no frame of that version.
pub fn decode_text(version: Version, text: &str) -> Result<Frame<'_>, DecodeError> {
    let malformed = |_| DecodeError("not the JSON of this version");
    let long = |_| DecodeError("a ref is too long");
    let optional = |json: &RawValue| RawRef::from_json(json).map_err(long);
    match version {
        // A struct would also be read from an array.
        Version::V1 if !text.trim_start().starts_with('{') => Err(DecodeError("not an object")),
        Version::V1 => {
            let frame: Object<'_> = serde_json::from_str(text).map_err(malformed)?;
            Ok(Frame {
                join_ref: frame.join_ref.map_or(Ok(None), optional)?,
                reference: optional(frame.reference)?,
                topic: frame.topic,
                event: frame.event,
                payload: Payload::Json(frame.payload),
            })
        }
        Version::V2 => {
            let frame: Array<'_> = serde_json::from_str(text).map_err(malformed)?;
            Ok(Frame {
                join_ref: optional(frame.join_ref)?,
                reference: optional(frame.reference)?,
                topic: frame.topic,
                event: frame.event,
                payload: Payload::Json(frame.payload),
            })
        }
    }
}

/// Reads a binary frame from front to back.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Result<u8, DecodeError> {
        let (first, rest) = self.0.split_first().ok_or(DecodeError("truncated header"))?;
        self.0 = rest;
        Ok(*first)
    }

    fn text(&mut self, length: u8) -> Result<&'a str, DecodeError> {
        let length = usize::from(length);
        let (text, rest) = self.0.split_at_checked(length).ok_or(DecodeError("truncated text"))?;
        self.0 = rest;
        std::str::from_utf8(text).map_err(|_| DecodeError("text is not UTF-8"))
    }

    fn reference(&mut self, length: u8) -> Result<Option<RawRef>, DecodeError> {
        RawRef::from_text(self.text(length)?).map_err(|_| DecodeError("a ref is too long"))
    }
}

/// A push with an opaque payload.
const KIND_PUSH: u8 = 0;
/// A user's broadcast from a client.
const KIND_USER_BROADCAST_IN: u8 = 3;

/// Decodes one binary message: a kind byte, a length byte for each text, the texts, the payload.
///
/// # Errors
/// [`DecodeError`] when it is cut short, of another kind, or of a version without binary frames.
pub fn decode_binary(version: Version, bytes: &[u8]) -> Result<Frame<'_>, DecodeError> {
    if version == Version::V1 {
        return Err(DecodeError("version 1 has no binary frames"));
    }
    let mut reader = Reader(bytes);
    match reader.byte()? {
        KIND_PUSH => {
            let [join_ref, reference, topic, event] =
                [reader.byte()?, reader.byte()?, reader.byte()?, reader.byte()?];
            Ok(Frame {
                join_ref: reader.reference(join_ref)?,
                reference: reader.reference(reference)?,
                topic: reader.text(topic)?.into(),
                event: reader.text(event)?.into(),
                payload: Payload::Bytes(reader.0),
            })
        }
        KIND_USER_BROADCAST_IN => {
            let [join_ref, reference, topic, event, meta, encoding] = [
                reader.byte()?,
                reader.byte()?,
                reader.byte()?,
                reader.byte()?,
                reader.byte()?,
                reader.byte()?,
            ];
            let (join_ref, reference) = (reader.reference(join_ref)?, reader.reference(reference)?);
            let topic = reader.text(topic)?.into();
            let broadcast = UserBroadcast {
                event: reader.text(event)?,
                meta: reader.text(meta)?,
                encoding: if encoding == 0 { Encoding::Bytes } else { Encoding::Json },
                data: reader.0,
            };
            let event = "broadcast".into();
            Ok(Frame { join_ref, reference, topic, event, payload: Payload::Broadcast(broadcast) })
        }
        _ => Err(DecodeError("unknown kind")),
    }
}

/// Bytes around the parts of a frame: brackets, quotes, commas, names.
const FRAME_OVERHEAD: usize = 64;

fn write_text(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("text is always a JSON string");
}

fn write_ref(out: &mut Vec<u8>, reference: Option<&RawRef>) {
    out.extend_from_slice(reference.map_or("null", RawRef::as_json).as_bytes());
}

/// Begins a frame; the payload and [`finish`] must follow.
fn begin(
    version: Version,
    (join_ref, reference): (Option<&RawRef>, Option<&RawRef>),
    topic: &str,
    event: &str,
    payload_bytes: usize,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(FRAME_OVERHEAD + topic.len() + event.len() + payload_bytes);
    match version {
        Version::V1 => {
            out.extend_from_slice(br#"{"topic":"#);
            write_text(&mut out, topic);
            out.extend_from_slice(br#","event":"#);
            write_text(&mut out, event);
            out.extend_from_slice(br#","ref":"#);
            write_ref(&mut out, reference);
            out.extend_from_slice(br#","payload":"#);
        }
        Version::V2 => {
            out.push(b'[');
            write_ref(&mut out, join_ref);
            out.push(b',');
            write_ref(&mut out, reference);
            out.push(b',');
            write_text(&mut out, topic);
            out.push(b',');
            write_text(&mut out, event);
            out.push(b',');
        }
    }
    out
}

fn finish(version: Version, mut out: Vec<u8>) -> Vec<u8> {
    out.push(end(version));
    out
}

/// Encodes one message as the content of a text frame.
pub fn encode(version: Version, message: &Message) -> Vec<u8> {
    let Message { join_ref, reference, topic, event, payload } = message;
    let refs = (join_ref.as_ref(), reference.as_ref());
    let mut out = begin(version, refs, topic, event, payload.len());
    out.extend_from_slice(payload.as_bytes());
    finish(version, out)
}

/// Encodes a push that answers nothing, around a payload that is JSON already.
///
/// Fan-out frames have no `join_ref`, so equal ones are the same bytes for every subscriber.
pub fn encode_push(
    version: Version,
    join_ref: Option<&RawRef>,
    topic: &str,
    event: &str,
    payload: &[u8],
) -> Vec<u8> {
    let mut out = begin(version, (join_ref, None), topic, event, payload.len());
    out.extend_from_slice(payload);
    finish(version, out)
}

/// The content of a push up to its payload, which must follow, and behind it [`end`].
pub fn encode_push_head(
    version: Version,
    join_ref: Option<&RawRef>,
    topic: &str,
    event: &str,
) -> Vec<u8> {
    begin(version, (join_ref, None), topic, event, 0)
}

/// What ends every message.
pub const fn end(version: Version) -> u8 {
    match version {
        Version::V1 => b'}',
        Version::V2 => b']',
    }
}

/// The content of a frame, which says what kind of frame it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// For a text frame.
    Text(Vec<u8>),
    /// For a binary frame.
    Binary(Vec<u8>),
}

/// A broadcast for all receivers of a version; none when it cannot be told to them: opaque bytes
/// need version 2, and names that fit the length bytes of its frames.
///
/// `cursor`: its place, if it came through the log.
pub fn encode_broadcast(
    version: Version,
    topic: &str,
    broadcast: &Broadcast,
    cursor: Option<Cursor>,
) -> Option<Content> {
    if version == Version::V2
        && let Broadcast::User(user) = broadcast
        && let meta = user.meta.to_json(cursor).unwrap_or_default()
        && let Some(frame) = user_broadcast(topic, &user.event, &meta, user.encoding, &user.data)
    {
        return Some(Content::Binary(frame));
    }
    let payload = broadcast.payload_at(cursor)?;
    Some(Content::Text(encode_push(version, None, topic, "broadcast", &payload)))
}

/// A user's broadcast on its way to a client.
const KIND_USER_BROADCAST_OUT: u8 = 4;

/// None when a name is too long for its length byte.
fn user_broadcast(
    topic: &str,
    event: &str,
    meta: &str,
    encoding: Encoding,
    data: &[u8],
) -> Option<Vec<u8>> {
    let length = |text: &str| u8::try_from(text.len()).ok();
    let json = u8::from(encoding == Encoding::Json);
    let header = [KIND_USER_BROADCAST_OUT, length(topic)?, length(event)?, length(meta)?, json];
    let mut out =
        Vec::with_capacity(header.len() + topic.len() + event.len() + meta.len() + data.len());
    out.extend_from_slice(&header);
    for text in [topic, event, meta] {
        out.extend_from_slice(text.as_bytes());
    }
    out.extend_from_slice(data);
    Some(out)
}

/// Bytes of an id with its comma.
const ID_BYTES: usize = 11;

fn write_row_change(out: &mut Vec<u8>, ids: &[u32], data: &[u8]) {
    out.extend_from_slice(br#"{"ids":["#);
    for (number, id) in ids.iter().enumerate() {
        let comma = if number == 0 { "" } else { "," };
        write!(out, "{comma}{id}").expect("memory takes every write");
    }
    out.extend_from_slice(br#"],"data":"#);
    out.extend_from_slice(data);
    out.push(b'}');
}

/// The payload of a `postgres_changes` event: rendered `data`, and the subscriptions it is for.
pub fn row_change_payload(ids: &[u32], data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(FRAME_OVERHEAD + ids.len() * ID_BYTES + data.len());
    write_row_change(&mut out, ids, data);
    out
}

/// The whole `postgres_changes` frame for all subscribers of a topic, its data copied once.
pub fn encode_row_change(version: Version, topic: &str, ids: &[u32], data: &[u8]) -> Vec<u8> {
    let payload_bytes = ids.len() * ID_BYTES + data.len();
    let mut out = begin(version, (None, None), topic, "postgres_changes", payload_bytes);
    write_row_change(&mut out, ids, data);
    finish(version, out)
}
