//! Topics: the names that can be joined.
//!
//! In:     a full topic from a client, `realtime:` and a sub-topic.
//! Out:    [`Topic`], parsed once, cheap to clone; equality is bytewise, nothing is normalised.
//! Never:  IO; whether anybody may join it (`auth` decides).

use std::fmt;
use std::sync::Arc;

/// What every joinable topic begins with.
const PREFIX: &str = "realtime:";

/// Bytes of a full topic. Clients use up to 255 (the binary frames cannot carry more); beyond
/// this a topic is only memory taken on the server.
pub const TOPIC_BYTES_MAX: usize = 4096;

/// A name that can be joined. Never empty after its prefix, never longer than
/// [`TOPIC_BYTES_MAX`], never with a NUL, which Postgres could not take.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic(Arc<str>);

/// Why a text is no topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseTopicError {
    /// Nothing on this server answers to it.
    #[error("a topic begins with realtime:")]
    Unmatched,
    /// It is the bare prefix.
    #[error("the topic has no name after realtime:")]
    Nameless,
    /// It is longer than [`TOPIC_BYTES_MAX`].
    #[error("a topic has at most {TOPIC_BYTES_MAX} bytes")]
    TooLong,
    /// It contains a NUL.
    #[error("a topic cannot contain a NUL character")]
    Nul,
}

impl Topic {
    /// From the full topic of a frame.
    ///
    /// # Errors
    /// Which rule it breaks; the prefix is looked at first.
    pub fn parse(text: &str) -> Result<Self, ParseTopicError> {
        let name = text.strip_prefix(PREFIX).ok_or(ParseTopicError::Unmatched)?;
        if name.is_empty() {
            return Err(ParseTopicError::Nameless);
        }
        if text.len() > TOPIC_BYTES_MAX {
            return Err(ParseTopicError::TooLong);
        }
        if name.contains('\0') {
            return Err(ParseTopicError::Nul);
        }
        Ok(Self(text.into()))
    }

    /// The full topic, as frames carry it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The topic without `realtime:`, as policies and system messages name it.
    pub fn sub_topic(&self) -> &str {
        self.0.get(PREFIX.len()..).expect("a topic begins with its prefix")
    }

    /// The full topic, shared.
    pub fn to_shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sub_topic_is_what_follows_the_prefix() {
        for sub_topic in ["room", "public:todos:id=eq.1", "realtime:", " ", "räume/ü", "*"] {
            let topic = Topic::parse(&format!("realtime:{sub_topic}")).unwrap();
            assert_eq!(topic.sub_topic(), sub_topic);
            assert_eq!(topic.as_str(), format!("realtime:{sub_topic}"));
        }
    }

    #[test]
    fn other_names_are_refused_each_for_its_reason() {
        assert_eq!(Topic::parse("realtime:"), Err(ParseTopicError::Nameless));
        assert_eq!(Topic::parse("realtime:a\0b"), Err(ParseTopicError::Nul));
        for text in ["", "phoenix", "realtime", "Realtime:room", " realtime:room", "foo:bar"] {
            assert_eq!(Topic::parse(text), Err(ParseTopicError::Unmatched), "{text:?}");
        }
    }

    #[test]
    fn a_topic_of_255_bytes_is_fine_and_the_bound_is_exact() {
        let of = |bytes: usize| format!("realtime:{}", "é".repeat(bytes).split_at(bytes - 9).0);
        assert!(Topic::parse(&of(255)).is_ok());
        let longest = format!("realtime:{}", "x".repeat(TOPIC_BYTES_MAX - PREFIX.len()));
        assert!(Topic::parse(&longest).is_ok());
        assert_eq!(Topic::parse(&(longest + "x")), Err(ParseTopicError::TooLong));
    }

    #[test]
    fn topics_that_only_look_alike_differ() {
        let composed = Topic::parse("realtime:caf\u{e9}").unwrap();
        let decomposed = Topic::parse("realtime:cafe\u{301}").unwrap();
        assert_ne!(composed, decomposed);
    }
}
