//! Frames of the Phoenix protocol: what was read, written again in any version that can carry it,
//! is the same frame; no ref takes the place of another.

use bytes::Bytes;
use serde_json::Value;
use walcast::event::broadcast::{Broadcast, Encoding, Meta, UserEvent};
use walcast::session::{Frame, Message, Payload, REF_BYTES_MAX, RawRef, UserBroadcast};
use walcast::transport::phoenix::{
    Content, Version, decode_binary, decode_text, encode, encode_broadcast, encode_push,
};

/// The first byte says what the rest is: `1` and `2` text of that version, anything else binary.
pub fn check(bytes: &[u8]) {
    let Some((&selector, content)) = bytes.split_first() else { return };
    match (selector, std::str::from_utf8(content)) {
        (b'1', Ok(text)) => said(Version::V1, text),
        (b'2', Ok(text)) => said(Version::V2, text),
        _ => {
            assert!(decode_binary(Version::V1, content).is_err());
            binary(content);
        }
    }
}

/// What a frame says, to compare.
fn meaning(frame: &Frame<'_>) -> (Option<String>, Option<String>, String, String, Vec<u8>) {
    let json = |reference: &Option<RawRef>| Some(reference.as_ref()?.as_json().to_owned());
    let payload = match frame.payload {
        Payload::Json(json) => json.get().as_bytes().to_vec(),
        Payload::Bytes(bytes) => bytes.to_vec(),
        Payload::Broadcast(UserBroadcast { event, meta, encoding, data }) => {
            format!("{event:?} {meta:?} {encoding:?} {data:?}").into_bytes()
        }
    };
    let (join_ref, reference) = (json(&frame.join_ref), json(&frame.reference));
    (
        join_ref,
        reference,
        frame.topic.clone().into_owned(),
        frame.event.clone().into_owned(),
        payload,
    )
}

fn string(text: &str) -> String {
    Value::from(text).to_string()
}

fn or_null(reference: Option<&RawRef>) -> &str {
    reference.map_or("null", RawRef::as_json)
}

fn said(version: Version, text: &str) {
    let frame = decode_text(version, text);
    agrees(version, text, frame.as_ref().ok());
    let Ok(frame) = frame else { return };
    let Payload::Json(payload) = frame.payload else { panic!("text has no bytes") };
    let payload = payload.get();
    let (join_ref, reference) =
        (or_null(frame.join_ref.as_ref()), or_null(frame.reference.as_ref()));
    let (topic, event) = (string(&frame.topic), string(&frame.event));
    let expected = meaning(&frame);

    let array = format!("[{join_ref},{reference},{topic},{event},{payload}]");
    let read = decode_text(Version::V2, &array).expect("it was a frame");
    assert_eq!(meaning(&read), expected, "{array}");
    let object = format!(
        r#"{{"payload":{payload},"join_ref":{join_ref},"event":{event},"ref":{reference},"topic":{topic}}}"#
    );
    let read = decode_text(Version::V1, &object).expect("it was a frame");
    assert_eq!(meaning(&read), expected, "{object}");

    // The way to the client; version 1 has no `join_ref` there.
    let message = Message {
        join_ref: frame.join_ref.clone(),
        reference: frame.reference.clone(),
        topic: frame.topic.as_ref().into(),
        event: "phx_reply",
        payload: payload.to_owned().into(),
    };
    for version in [Version::V1, Version::V2] {
        let join_ref = expected.0.clone().filter(|_| version == Version::V2);
        let sent = encode(version, &message);
        let sent = std::str::from_utf8(&sent).expect("text frames are UTF-8");
        let read = decode_text(version, sent).expect("what is sent can be read");
        let (topic, payload) = (expected.2.clone(), expected.4.clone());
        let reply = (
            join_ref.clone(),
            expected.1.clone(),
            topic.clone(),
            "phx_reply".into(),
            payload.clone(),
        );
        assert_eq!(meaning(&read), reply, "{sent}");
        let pushed = encode_push(
            version,
            frame.join_ref.as_ref(),
            &frame.topic,
            &frame.event,
            payload.as_slice(),
        );
        let pushed = std::str::from_utf8(&pushed).expect("text frames are UTF-8");
        let read = decode_text(version, pushed).expect("what is sent can be read");
        assert_eq!(
            meaning(&read),
            (join_ref, None, topic, expected.3.clone(), payload),
            "{pushed}"
        );
    }
}

/// A reader that knows only JSON takes the same frames for the same.
fn agrees(version: Version, text: &str, frame: Option<&Frame<'_>>) {
    let Ok(value) = serde_json::from_str::<Value>(text) else { return };
    let at = |name: &str, place: usize| match version {
        Version::V1 => value.as_object().and_then(|object| object.get(name)),
        Version::V2 => value.as_array().and_then(|array| array.get(place)),
    };
    let fields = (
        at("topic", 2).and_then(Value::as_str),
        at("event", 3).and_then(Value::as_str),
        at("payload", 4),
        at("ref", 1),
    );
    match (frame, fields) {
        (Some(frame), (Some(topic), Some(event), Some(payload), Some(reference))) => {
            assert_eq!((&*frame.topic, &*frame.event), (topic, event), "{text}");
            let Payload::Json(json) = frame.payload else { panic!("text has no bytes") };
            assert_eq!(serde_json::from_str::<Value>(json.get()).ok().as_ref(), Some(payload));
            let own = or_null(frame.reference.as_ref());
            assert_eq!(serde_json::from_str::<Value>(own).ok().as_ref(), Some(reference));
            let join_ref = or_null(frame.join_ref.as_ref());
            let other = at("join_ref", 0).cloned().unwrap_or_default();
            assert_eq!(serde_json::from_str::<Value>(join_ref).ok(), Some(other), "{text}");
        }
        (Some(frame), _) => panic!("{text} was taken for {frame:?}"),
        // Version 1 may also name a member twice.
        (None, (Some(_), Some(_), Some(_), Some(_))) if version == Version::V2 => {
            assert!(text.len() > REF_BYTES_MAX, "{text} was refused");
        }
        (None, _) => {}
    }
}

fn binary(bytes: &[u8]) {
    let Ok(frame) = decode_binary(Version::V2, bytes) else { return };
    let expected = meaning(&frame);
    // A ref is text here: that of its JSON.
    let text = |reference: &Option<RawRef>| {
        reference.as_ref().map_or_else(String::new, |reference| {
            serde_json::from_str(reference.as_json()).expect("a ref from text is a string")
        })
    };
    let (join_ref, reference) = (text(&frame.join_ref), text(&frame.reference));
    let length = |text: &str| u8::try_from(text.len()).expect("it had a length byte");
    let mut written = vec![bytes[0], length(&join_ref), length(&reference), length(&frame.topic)];
    match frame.payload {
        Payload::Json(_) => panic!("a binary frame has bytes"),
        Payload::Bytes(data) => {
            written.push(length(&frame.event));
            for text in [&*join_ref, &reference, &frame.topic, &frame.event] {
                written.extend(text.as_bytes());
            }
            written.extend(data);
            assert_eq!(written, bytes);
        }
        Payload::Broadcast(user) => {
            assert_eq!(frame.event, "broadcast");
            written.extend([length(user.event), length(user.meta)]);
            // Any other byte than zero means JSON.
            written.push(if user.encoding == Encoding::Bytes { 0 } else { bytes[6] });
            for text in [&*join_ref, &reference, &frame.topic, user.event, user.meta] {
                written.extend(text.as_bytes());
            }
            written.extend(user.data);
            assert_eq!(written, bytes);
            broadcast(&frame.topic, user);
        }
    }
    // The same refs in the text of version 2.
    let array = format!(
        "[{},{},{},{},null]",
        or_null(frame.join_ref.as_ref()),
        or_null(frame.reference.as_ref()),
        string(&frame.topic),
        string(&frame.event)
    );
    let (join_ref, reference, topic, event, _) =
        meaning(&decode_text(Version::V2, &array).expect("it was a frame"));
    assert_eq!(
        (join_ref, reference, topic, event),
        (expected.0, expected.1, expected.2, expected.3)
    );
}

/// What one client says is what the others are told.
fn broadcast(topic: &str, user: UserBroadcast<'_>) {
    let is_json = serde_json::from_slice::<Value>(user.data).is_ok();
    if user.encoding == Encoding::Json && !is_json {
        return; // the room refuses it
    }
    let told = Broadcast::User(UserEvent {
        event: user.event.into(),
        encoding: user.encoding,
        data: Bytes::copy_from_slice(user.data),
        meta: Meta::default(),
    });
    let Some(Content::Binary(frame)) = encode_broadcast(Version::V2, topic, &told, None) else {
        panic!("names that came in a binary frame fit one");
    };
    let [4, topic_bytes, event_bytes, 0, encoding, ref rest @ ..] = frame[..] else {
        panic!("{frame:?}")
    };
    assert_eq!(encoding == 0, user.encoding == Encoding::Bytes);
    let (found_topic, rest) = rest.split_at(usize::from(topic_bytes));
    let (event, data) = rest.split_at(usize::from(event_bytes));
    assert_eq!((found_topic, event, data), (topic.as_bytes(), user.event.as_bytes(), user.data));
    match encode_broadcast(Version::V1, topic, &told, None) {
        None => assert_eq!(user.encoding, Encoding::Bytes),
        Some(Content::Binary(_)) => panic!("version 1 has no binary frames"),
        Some(Content::Text(text)) => {
            let frame: Value = serde_json::from_slice(&text).expect("a frame is JSON");
            assert_eq!((&frame["topic"], &frame["event"]), (&topic.into(), &"broadcast".into()));
            assert_eq!(frame["payload"]["event"], user.event);
            let data: Value = serde_json::from_slice(user.data).expect("it was JSON");
            assert_eq!(frame["payload"]["payload"], data);
        }
    }
}
