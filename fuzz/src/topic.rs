//! Topics: the text is the topic, byte for byte, so no two are one.

use walcast::topic::{ParseTopicError, TOPIC_BYTES_MAX, Topic};

/// The whole input is a topic.
pub fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    one(text);
    one(&format!("realtime:{text}"));
}

fn one(text: &str) {
    let name = text.strip_prefix("realtime:");
    match Topic::parse(text) {
        Ok(topic) => {
            assert_eq!((topic.as_str(), &*topic.to_string()), (text, text));
            assert_eq!(Some(topic.sub_topic()), name);
            assert!(text.len() <= TOPIC_BYTES_MAX && !text.contains('\0'));
            assert_eq!(Topic::parse(topic.as_str()).as_ref(), Ok(&topic));
            let other = Topic::parse(&format!("{text}x"));
            assert!(other.is_err() || other.as_ref() != Ok(&topic));
        }
        Err(ParseTopicError::Unmatched) => assert_eq!(name, None),
        Err(ParseTopicError::Nameless) => assert_eq!(name, Some("")),
        Err(ParseTopicError::TooLong) => assert!(text.len() > TOPIC_BYTES_MAX),
        Err(ParseTopicError::Nul) => assert!(text.contains('\0')),
    }
}
