//! What passes between a session and its transport: frames in, messages out, both without bytes.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde_json::value::RawValue;

use crate::event::broadcast::Encoding;

/// Bytes of a ref's JSON text. Clients count up, or use a word; a session keeps one a channel.
pub const REF_BYTES_MAX: usize = 256;

/// A ref as the client wrote it: any JSON value but null, echoed byte for byte.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RawRef(Box<str>);

/// The ref is longer than [`REF_BYTES_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a ref has at most {REF_BYTES_MAX} bytes")]
pub struct RefTooLong;

impl RawRef {
    /// From a frame's JSON; null is no ref.
    ///
    /// # Errors
    /// [`RefTooLong`].
    pub fn from_json(json: &RawValue) -> Result<Option<Self>, RefTooLong> {
        match json.get() {
            "null" => Ok(None),
            text if text.len() > REF_BYTES_MAX => Err(RefTooLong),
            text => Ok(Some(Self(text.into()))),
        }
    }

    /// From a binary frame, where refs are plain text and none is empty text.
    ///
    /// # Errors
    /// [`RefTooLong`], when its JSON is.
    pub fn from_text(text: &str) -> Result<Option<Self>, RefTooLong> {
        if text.is_empty() {
            return Ok(None);
        }
        let json = json_string(text);
        if json.len() > REF_BYTES_MAX { Err(RefTooLong) } else { Ok(Some(Self(json.into()))) }
    }

    /// The JSON to echo.
    pub fn as_json(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for RawRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One decoded frame from a client.
#[derive(Debug, Clone)]
pub struct Frame<'a> {
    /// The join this frame belongs to, as the client sees it.
    pub join_ref: Option<RawRef>,
    /// What a reply is matched by.
    pub reference: Option<RawRef>,
    /// The full topic, unchecked.
    pub topic: Cow<'a, str>,
    /// The event's name.
    pub event: Cow<'a, str>,
    /// What it says.
    pub payload: Payload<'a>,
}

/// The payload of a frame, borrowed from it.
#[derive(Debug, Clone, Copy)]
pub enum Payload<'a> {
    /// Valid JSON, its content not looked at.
    Json(&'a RawValue),
    /// The opaque rest of a binary push.
    Bytes(&'a [u8]),
    /// A user's broadcast in a binary frame; the frame's event is `broadcast`.
    Broadcast(UserBroadcast<'a>),
}

/// A broadcast as a binary frame carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserBroadcast<'a> {
    /// The user's own name for the event.
    pub event: &'a str,
    /// A JSON object, or empty; unchecked.
    pub meta: &'a str,
    /// What `data` claims to be.
    pub encoding: Encoding,
    /// The user's payload; unchecked.
    pub data: &'a [u8],
}

/// One message to the client, before its transport writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The channel's join, where the protocol names it.
    pub join_ref: Option<RawRef>,
    /// The ref of the frame that this answers.
    pub reference: Option<RawRef>,
    /// The full topic.
    pub topic: Arc<str>,
    /// The event's name.
    pub event: &'static str,
    /// A JSON object.
    pub payload: Cow<'static, str>,
}

const REPLY_OK: &str = r#"{"status":"ok","response":{}}"#;

impl Message {
    /// A reply without content.
    pub(super) fn done(
        join_ref: Option<RawRef>,
        reference: Option<RawRef>,
        topic: Arc<str>,
    ) -> Self {
        Self { join_ref, reference, topic, event: "phx_reply", payload: REPLY_OK.into() }
    }

    /// A reply whose `response` is this JSON.
    pub(super) fn reply(
        join_ref: Option<RawRef>,
        reference: Option<RawRef>,
        topic: Arc<str>,
        response: &str,
    ) -> Self {
        let payload = format!(r#"{{"status":"ok","response":{response}}}"#).into();
        Self { join_ref, reference, topic, event: "phx_reply", payload }
    }

    /// A reply that something went wrong; its `response` is this JSON.
    pub(super) fn error(
        join_ref: Option<RawRef>,
        reference: Option<RawRef>,
        topic: Arc<str>,
        response: &str,
    ) -> Self {
        let payload = format!(r#"{{"status":"error","response":{response}}}"#).into();
        Self { join_ref, reference, topic, event: "phx_reply", payload }
    }

    /// A reply that says what went wrong.
    pub(super) fn refusal(
        join_ref: Option<RawRef>,
        reference: Option<RawRef>,
        topic: Arc<str>,
        reason: &str,
    ) -> Self {
        let reason = json_string(reason);
        Self::error(join_ref, reference, topic, &format!(r#"{{"reason":{reason}}}"#))
    }

    /// The end of a channel. Clients ignore it unless its ref is their current join's.
    pub(super) fn close(join_ref: Option<RawRef>, topic: Arc<str>) -> Self {
        let reference = join_ref.clone();
        Self { join_ref, reference, topic, event: "phx_close", payload: "{}".into() }
    }

    /// A push from the channel itself.
    pub(super) fn push(
        join_ref: Option<RawRef>,
        topic: Arc<str>,
        event: &'static str,
        payload: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { join_ref, reference: None, topic, event, payload: payload.into() }
    }
}

/// A text as a JSON string.
pub(super) fn json_string(text: &str) -> String {
    serde_json::to_string(text).expect("text is always a JSON string")
}
