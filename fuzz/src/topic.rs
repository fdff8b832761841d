//! Topics: the text is the topic, byte for byte, so no two are one. Templates of topics: what is read
//! from a topic makes that topic again.

use walcast::mapping::template::{Given, Template};
use walcast::topic::{ParseTopicError, TOPIC_BYTES_MAX, Topic};

/// The whole input is a topic; its first line is a template too, and each other one a value, or a topic.
pub fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    template(first, rest);
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

fn template(text: &str, rest: &str) {
    let Ok(template) = Template::parse(text) else { return };
    assert_eq!(template.as_str(), text);
    let fill = |values: &[&str]| template.fill(values.iter().map(|v| Given::Text((*v).into())));
    for topic in rest.lines() {
        if let Some(values) = template.values(topic) {
            assert_eq!(fill(&values), Ok(Some(topic.into())), "{text}");
        }
    }
    let values: Vec<&str> = rest.lines().take(template.columns().count()).collect();
    if let Ok(Some(topic)) = fill(&values) {
        assert_eq!(template.values(&topic).as_deref(), Some(&values[..]), "{text}");
    }
}
