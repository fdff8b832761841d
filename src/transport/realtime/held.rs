//! Frames of a socket that wait for the key of a token.
//!
//! In:     frames of topics on which a token named a key that is being fetched.
//! Out:    the same frames, in their order, when the fetch is over or there are too many.
//! Never:  a frame of another topic; more than a bound.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::session::{Frame, Payload};
use crate::transport::phoenix::{self, DecodeError, Version};

/// Frames that one socket may have held. A join, a token and what follows them are a few.
const FRAMES_MAX: usize = 64;

/// Bytes of them.
const BYTES_MAX: usize = 256 * 1024;

/// A message as it came.
#[derive(Debug, Clone, Copy)]
pub(super) enum Raw<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
}

#[derive(Debug)]
enum Kept {
    Text(Box<str>),
    Binary(Box<[u8]>),
}

impl<'a> Raw<'a> {
    pub(super) fn decode(self, version: Version) -> Result<Frame<'a>, DecodeError> {
        match self {
            Self::Text(text) => phoenix::decode_text(version, text),
            Self::Binary(data) => phoenix::decode_binary(version, data),
        }
    }

    fn len(self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(data) => data.len(),
        }
    }
}

/// There is no room for the frame: what is held has to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// What is held, in the order it came.
#[derive(Debug, Default)]
pub(super) struct Held {
    topics: Vec<Box<str>>,
    frames: Vec<Kept>,
    bytes: usize,
}

impl Held {
    /// Whether frames of this topic have to wait for one that waits.
    pub(super) fn has(&self, topic: &str) -> bool {
        self.topics.iter().any(|held| **held == *topic)
    }

    /// Holds a frame, and with it all that follow on its topic.
    pub(super) fn push(&mut self, topic: &str, raw: Raw<'_>) -> Result<(), Full> {
        let bytes = self.bytes.saturating_add(raw.len());
        if self.frames.len() >= FRAMES_MAX || bytes > BYTES_MAX {
            return Err(Full);
        }
        self.bytes = bytes;
        if !self.has(topic) {
            self.topics.push(topic.into());
        }
        self.frames.push(match raw {
            Raw::Text(text) => Kept::Text(text.into()),
            Raw::Binary(data) => Kept::Binary(data.into()),
        });
        Ok(())
    }

    /// The frames, in their order.
    pub(super) fn frames(&self) -> impl Iterator<Item = Raw<'_>> {
        self.frames.iter().map(|kept| match kept {
            Kept::Text(text) => Raw::Text(text),
            Kept::Binary(data) => Raw::Binary(data),
        })
    }
}

/// The tokens that a frame asks to be verified. Which of them counts is the session's to say.
pub(super) fn tokens(frame: &Frame<'_>) -> impl Iterator<Item = String> {
    #[derive(Deserialize)]
    struct Tokens<'a> {
        #[serde(borrow)]
        access_token: Option<&'a RawValue>,
        #[serde(borrow)]
        user_token: Option<&'a RawValue>,
    }
    let payload = match frame.payload {
        Payload::Json(payload) if matches!(&*frame.event, "phx_join" | "access_token") => payload,
        Payload::Json(_) | Payload::Bytes(_) | Payload::Broadcast(_) => RawValue::NULL,
    };
    let object = payload.get().starts_with('{').then_some(payload.get());
    let tokens = object.and_then(|json| serde_json::from_str::<Tokens<'_>>(json).ok());
    let tokens = tokens.map(|tokens| [tokens.user_token, tokens.access_token]);
    tokens.into_iter().flatten().flatten().filter_map(|raw| serde_json::from_str(raw.get()).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(text: &str) -> Frame<'_> {
        Raw::Text(text).decode(Version::V2).unwrap()
    }

    #[test]
    fn frames_come_out_in_their_order_up_to_the_bound() {
        let mut held = Held::default();
        assert!(!held.has("a"));
        held.push("a", Raw::Text("1")).unwrap();
        held.push("b", Raw::Binary(b"2")).unwrap();
        held.push("a", Raw::Text("3")).unwrap();
        assert!(held.has("a") && held.has("b") && !held.has("c"));
        let order: Vec<usize> = held.frames().map(Raw::len).collect();
        assert_eq!(order, [1, 1, 1]);
        assert!(matches!(held.frames().nth(1), Some(Raw::Binary(b"2"))));
        assert_eq!(held.push("a", Raw::Text(&"x".repeat(BYTES_MAX - 2))), Err(Full));
        for _ in 3..FRAMES_MAX {
            held.push("a", Raw::Text("x")).unwrap();
        }
        assert_eq!(held.push("a", Raw::Text("")), Err(Full));
        assert_eq!(held.frames().count(), FRAMES_MAX);
    }

    #[test]
    fn tokens_are_found_where_the_session_reads_them() {
        let check = |text: &str, expected: &[&str]| {
            let found: Vec<String> = tokens(&frame(text)).collect();
            assert_eq!(found, expected, "{text}");
        };
        check(r#"["1","1","t","phx_join",{"access_token":"a","user_token":"b"}]"#, &["b", "a"]);
        check(r#"["1","1","t","access_token",{"access_token":"\u0061"}]"#, &["a"]);
        check(r#"["1","1","t","phx_join",{"access_token":null,"user_token":7}]"#, &[]);
        check(r#"["1","1","t","phx_join",{"access_token":"a","access_token":"b"}]"#, &[]);
        check(r#"["1","1","t","broadcast",{"access_token":"a"}]"#, &[]);
        check(r#"["1","1","t","phx_join",[{"access_token":"a"}]]"#, &[]);
        check(r#"["1","1","t","phx_join",{"config":{"access_token":"a"}}]"#, &[]);
    }
}
