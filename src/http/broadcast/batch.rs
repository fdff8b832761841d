//! Several broadcasts in one body: JSON → messages, or what is wrong with each.
//!
//! In:     `{"messages": [{"topic", "event", "payload", "private", "id"}]}`; limits.
//! Out:    every message, or none of them and why.
//! Never:  a default in place of a `private` that is no boolean, or is said twice: what was meant
//!         to be private must not be told to a public room.
//! Source: spec of the realtime protocol, section 4.3.

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::topic::{ParseTopicError, Topic};

const BLANK: &str = "can't be blank";
/// What is said about a value of the wrong kind.
pub(super) const INVALID: &str = "is invalid";

/// What is said about a name that fits no frame with opaque bytes.
pub(super) const TOO_LONG: &str = "is too long for opaque bytes";

/// What is said about a payload that is too large.
pub(super) const TOO_LARGE: &str = "Payload size exceeds tenant limit";

/// What a batch may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Messages of one batch.
    pub messages_max: usize,
    /// Bytes of one message's payload.
    pub payload_bytes_max: usize,
}

/// A message that can be sent.
#[derive(Debug)]
pub struct Message<'a> {
    /// Where it is said.
    pub topic: Topic,
    /// Its name.
    pub event: Box<str>,
    /// An object.
    pub payload: &'a RawValue,
    /// Whether it is for the private room of that name.
    pub private: bool,
    /// The sender's own name for it.
    pub id: Option<Box<str>>,
}

/// Why a batch cannot be sent.
#[derive(Debug)]
pub enum Unusable {
    /// It is not JSON, or names something twice.
    Malformed,
    /// It has too many messages; nothing is known of any.
    TooMany,
    /// By message, or by the list.
    Invalid(Errors),
}

/// The body that says what is wrong.
#[derive(Debug, Serialize)]
pub struct Errors {
    errors: Listed,
}

#[derive(Debug, Serialize)]
struct Listed {
    messages: Wrong,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Wrong {
    /// The list itself.
    List([&'static str; 1]),
    /// One entry a message, empty for a good one.
    Each(Vec<Faults>),
}

/// What is wrong with one message.
#[derive(Debug, Default, Serialize)]
struct Faults {
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<[&'static str; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<[&'static str; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<[&'static str; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    private: Option<[&'static str; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<[&'static str; 1]>,
}

/// `null` is as good as absent.
type Field<'a> = Option<&'a RawValue>;

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    messages: Field<'a>,
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    topic: Field<'a>,
    #[serde(borrow)]
    event: Field<'a>,
    #[serde(borrow)]
    payload: Field<'a>,
    #[serde(borrow)]
    private: Field<'a>,
    #[serde(borrow)]
    id: Field<'a>,
}

/// The messages of `body`; all can be sent.
///
/// # Errors
/// [`Unusable`]: none of them can be.
pub fn parse(body: &[u8], limits: Limits) -> Result<Vec<Message<'_>>, Unusable> {
    let of_list =
        |text| Unusable::Invalid(Errors { errors: Listed { messages: Wrong::List([text]) } });
    if body.is_empty() {
        return Err(of_list(BLANK));
    }
    let body: &RawValue = serde_json::from_slice(body).map_err(|_| Unusable::Malformed)?;
    if !is_object(body) {
        return Err(of_list(BLANK));
    }
    let Body { messages } = serde_json::from_str(body.get()).map_err(|_| Unusable::Malformed)?;
    let messages = messages.ok_or_else(|| of_list(BLANK))?;
    if !messages.get().starts_with('[') {
        return Err(of_list(INVALID));
    }
    let list = AtMost(limits.messages_max);
    let list = list.deserialize(&mut serde_json::Deserializer::from_str(messages.get()));
    let list = list.map_err(|_| Unusable::Malformed)?.ok_or(Unusable::TooMany)?;
    if list.is_empty() {
        return Err(of_list(BLANK));
    }
    if !list.iter().all(|message| is_object(message)) {
        return Err(of_list(INVALID));
    }
    let (mut good, mut faults) = (Vec::with_capacity(list.len()), Vec::new());
    for (number, message) in list.into_iter().enumerate() {
        let fields = serde_json::from_str(message.get()).map_err(|_| Unusable::Malformed)?;
        match check(&fields, limits.payload_bytes_max) {
            Ok(message) => good.push(message),
            Err(wrong) => {
                faults.resize_with(number, Faults::default);
                faults.push(wrong);
            }
        }
        if !faults.is_empty() {
            faults.resize_with(number + 1, Faults::default);
        }
    }
    if faults.is_empty() {
        Ok(good)
    } else {
        Err(Unusable::Invalid(Errors { errors: Listed { messages: Wrong::Each(faults) } }))
    }
}

fn check<'a>(fields: &Fields<'a>, payload_bytes_max: usize) -> Result<Message<'a>, Faults> {
    let topic = name(fields.topic)
        .and_then(|name| Topic::parse(&format!("realtime:{name}")).map_err(problem));
    let event = name(fields.event);
    let payload = match fields.payload {
        None => Err(BLANK),
        Some(payload) if !is_object(payload) => Err(INVALID),
        Some(payload) if payload.get().len() > payload_bytes_max => Err(TOO_LARGE),
        Some(payload) => Ok(payload),
    };
    let private = match fields.private {
        None => Ok(false),
        Some(private) => boolean(private.get().trim_matches('"')).ok_or(INVALID),
    };
    let id = fields.id.map(string).transpose();
    match (topic, event, payload, private, id) {
        (Ok(topic), Ok(event), Ok(payload), Ok(private), Ok(id)) => Ok(Message {
            topic,
            event: event.into(),
            payload,
            private,
            id: id.filter(|id| !id.is_empty()).map(Into::into),
        }),
        (topic, event, payload, private, id) => {
            fn fault<T>(field: Result<T, &'static str>) -> Option<[&'static str; 1]> {
                field.err().map(|text| [text])
            }
            Err(Faults {
                topic: fault(topic),
                event: fault(event),
                payload: fault(payload),
                private: fault(private),
                id: fault(id),
            })
        }
    }
}

/// What is said about a name that is no topic.
pub(super) fn problem(problem: ParseTopicError) -> &'static str {
    match problem {
        ParseTopicError::Nameless => BLANK,
        ParseTopicError::Unmatched | ParseTopicError::TooLong | ParseTopicError::Nul => INVALID,
    }
}

/// Text that says yes or no, as the members of a join may say it.
pub(super) fn boolean(text: &str) -> Option<bool> {
    let is = |word| text.eq_ignore_ascii_case(word);
    if is("true") { Some(true) } else { is("false").then_some(false) }
}

fn is_object(value: &RawValue) -> bool {
    value.get().starts_with('{')
}

fn string(value: &RawValue) -> Result<String, &'static str> {
    serde_json::from_str(value.get()).map_err(|_| INVALID)
}

fn name(field: Field<'_>) -> Result<String, &'static str> {
    let name = string(field.ok_or(BLANK)?)?;
    if name.is_empty() { Err(BLANK) } else { Ok(name) }
}

/// A list of at most so many elements; none when there are more.
struct AtMost(usize);

impl<'de> DeserializeSeed<'de> for AtMost {
    type Value = Option<Vec<&'de RawValue>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for AtMost {
    type Value = Option<Vec<&'de RawValue>>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while list.len() < self.0 {
            match access.next_element()? {
                Some(element) => list.push(element),
                None => return Ok(Some(list)),
            }
        }
        if access.next_element::<IgnoredAny>()?.is_none() {
            return Ok(Some(list));
        }
        while access.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const LIMITS: Limits = Limits { messages_max: 3, payload_bytes_max: 20 };

    /// What is wrong with a body, as the client is told it.
    fn wrong(body: &str) -> Value {
        match parse(body.as_bytes(), LIMITS) {
            Err(Unusable::Invalid(errors)) => {
                serde_json::to_value(errors).unwrap()["errors"]["messages"].take()
            }
            other => panic!("{body}: {other:?}"),
        }
    }

    fn message(changes: &Value) -> Value {
        let mut message = json!({ "topic": "t", "event": "e", "payload": {} });
        for (name, value) in changes.as_object().unwrap().clone() {
            message[name] = value;
        }
        message
    }

    fn of(messages: &[Value]) -> String {
        json!({ "messages": messages }).to_string()
    }

    #[test]
    fn a_good_batch_is_its_messages_in_order() {
        let other =
            json!({ "topic": "ü/ ?", "payload": { "a": [1] }, "private": "TRUE", "id": "7" });
        let body = of(&[message(&json!({ "private": null, "id": "" })), message(&other)]);
        let messages = parse(body.as_bytes(), LIMITS).unwrap();
        let [first, second] = &messages[..] else { panic!("{messages:?}") };
        assert_eq!((first.topic.sub_topic(), &*first.event, first.private), ("t", "e", false));
        assert_eq!((first.payload.get(), &first.id), ("{}", &None));
        assert_eq!((second.topic.sub_topic(), second.private), ("ü/ ?", true));
        assert_eq!((second.payload.get(), second.id.as_deref()), (r#"{"a":[1]}"#, Some("7")));
    }

    #[test]
    fn a_list_that_is_none_is_refused_as_one() {
        for body in ["", "{}", "[]", "7", "null", r#"{"messages":null}"#, r#"{"messages":[]}"#] {
            assert_eq!(wrong(body), json!(["can't be blank"]), "{body}");
        }
        for list in ["{}", "7", "\"x\"", "[7]", "[null]", r#"[{"topic":"t"},[]]"#] {
            let body = format!(r#"{{"messages":{list}}}"#);
            assert_eq!(wrong(&body), json!(["is invalid"]), "{body}");
        }
    }

    #[test]
    fn each_message_is_told_what_is_wrong_with_it() {
        let blank = json!(["can't be blank"]);
        let invalid = json!(["is invalid"]);
        assert_eq!(
            wrong(&of(&[message(&json!({})), json!({}), message(&json!({}))])),
            json!([{}, { "topic": blank, "event": blank, "payload": blank }, {}])
        );
        let nothing = json!({ "topic": "", "event": null, "payload": null });
        assert_eq!(
            wrong(&of(&[message(&nothing)])),
            json!([{ "topic": blank, "event": blank, "payload": blank }])
        );
        let odd = json!({ "topic": 1, "event": {}, "payload": [], "private": 1, "id": 7 });
        assert_eq!(
            wrong(&of(&[message(&odd), message(&json!({}))])),
            json!([
                { "topic": invalid, "event": invalid, "payload": invalid, "private": invalid,
                  "id": invalid },
                {}
            ])
        );
        for topic in ["x".repeat(5000), "a\0b".into()] {
            assert_eq!(
                wrong(&of(&[message(&json!({ "topic": topic }))])),
                json!([{ "topic": invalid }])
            );
        }
        for private in [json!("yes"), json!(""), json!([true]), json!("\"true"), json!({})] {
            assert_eq!(
                wrong(&of(&[message(&json!({ "private": private }))])),
                json!([{ "private": invalid }]),
                "{private}"
            );
        }
        let large = json!({ "payload": { "a": "x".repeat(20) } });
        assert_eq!(wrong(&of(&[message(&large)])), json!([{ "payload": [TOO_LARGE] }]));
    }

    #[test]
    fn what_is_no_json_or_says_a_thing_twice_is_malformed() {
        let bodies: [&[u8]; 6] = [
            b"{",
            b"{\"messages\":[}",
            b"{\"messages\":[]} x",
            b"{\"messages\":[{\"a\":\"\xff\"}]}",
            br#"{"messages":[],"messages":[]}"#,
            br#"{"messages":[{"private":true,"private":false}]}"#,
        ];
        for body in bodies {
            let parsed = parse(body, LIMITS);
            assert!(matches!(parsed, Err(Unusable::Malformed)), "{body:?}: {parsed:?}");
        }
    }

    #[test]
    fn more_messages_than_allowed_are_not_looked_at() {
        let messages = vec![message(&json!({})); 3];
        assert!(parse(of(&messages).as_bytes(), LIMITS).is_ok());
        let parsed = parse(br#"{"messages":[1,2,3,4,5]}"#, LIMITS);
        assert!(matches!(parsed, Err(Unusable::TooMany)), "{parsed:?}");
    }
}
