//! Versions and frames, byte by byte.

use proptest::prelude::*;
use serde_json::json;

use super::super::*;
use super::{ROOM, VERSIONS};

#[test]
fn the_version_is_chosen_by_vsn() {
    for (vsn, expected) in [
        (None, Ok(Version::V1)),
        (Some("1.0.0"), Ok(Version::V1)),
        (Some("1.0.7"), Ok(Version::V1)),
        (Some("2.0.0"), Ok(Version::V2)),
        (Some("2.0.12"), Ok(Version::V2)),
    ] {
        assert_eq!(Version::from_vsn(vsn), expected, "{vsn:?}");
    }
    for vsn in [
        "", "9.9.9", "1", "1.0", "2.0", "1.1.0", "2.1.0", "2.0.", "2.0.x", "2.0.0-rc", "v2.0.0",
        "2.0.-1", "02.0.0", "2.0.0 ",
    ] {
        assert_eq!(Version::from_vsn(Some(vsn)), Err(UnsupportedVersion), "{vsn:?}");
    }
}

fn describe(frame: &Frame<'_>) -> String {
    let reference = |reference: &Option<RawRef>| {
        reference.as_ref().map_or("-".to_owned(), |reference| reference.as_json().to_owned())
    };
    let payload = match frame.payload {
        Payload::Json(json) => json.get().to_owned(),
        Payload::Bytes(bytes) => format!("{bytes:?}"),
        Payload::Broadcast(UserBroadcast { event, meta, encoding, data }) => {
            format!("{event} {meta:?} {encoding:?} {data:?}")
        }
    };
    let (join_ref, own) = (reference(&frame.join_ref), reference(&frame.reference));
    format!("{join_ref} {own} {} {} {payload}", frame.topic, frame.event)
}

fn check_text(version: Version, text: &str, expected: &str) {
    match decode_text(version, text) {
        Ok(frame) => assert_eq!(describe(&frame), expected, "{text}"),
        Err(error) => assert_eq!(error.to_string(), expected, "{text}"),
    }
}

#[test]
fn version_1_frames_are_objects() {
    let check = |text, expected| check_text(Version::V1, text, expected);
    check(
        r#"{"topic":"realtime:a","event":"phx_join","payload":{"x": 1},"ref":"1","join_ref":"1"}"#,
        r#""1" "1" realtime:a phx_join {"x": 1}"#,
    );
    check(r#" {"ref":null,"payload":[],"event":"e","topic":"t","more":[[1]]} "#, "- - t e []");
    check(r#"{"topic":"t","event":"e","payload":{},"ref":7,"join_ref":null}"#, "- 7 t e {}");
    check(r#"{"topic":"\u00fc","event":"e\n","payload":"","ref":1.50}"#, "- 1.50 ü e\n \"\"");
}

#[test]
fn version_2_frames_are_arrays_of_five_or_more() {
    let check = |text, expected| check_text(Version::V2, text, expected);
    check(r#"["1","2","t","e",{"a": [1, 2]}]"#, r#""1" "2" t e {"a": [1, 2]}"#);
    check(r#"[null,null,"t","e",{}]"#, "- - t e {}");
    check(r#"[null,"007","t","e",{},"extra",[]]"#, r#"- "007" t e {}"#);
    check(r#"[1e2,{"odd": true},"t","e",null]"#, r#"1e2 {"odd": true} t e null"#);
}

#[test]
fn a_large_payload_is_borrowed_from_its_message() {
    let payload = json!({ "rows": vec![json!({ "x": [1, 2.5, "three"] }); 10_000] }).to_string();
    for (version, text) in [
        (Version::V1, format!(r#"{{"topic":"t","event":"e","ref":null,"payload":{payload}}}"#)),
        (Version::V2, format!(r#"[null,null,"t","e",{payload}]"#)),
    ] {
        let frame = decode_text(version, &text).unwrap();
        let Payload::Json(json) = frame.payload else { panic!("text frames carry JSON") };
        assert_eq!(json.get(), payload);
        assert!(text.as_bytes().as_ptr_range().contains(&json.get().as_ptr()));
    }
}

#[test]
fn malformed_text_is_refused_in_both_versions() {
    let deep = format!("[{}", "[".repeat(100_000));
    let long = "x".repeat(300);
    for text in [
        "",
        " ",
        "{",
        "[",
        "[]",
        "{}",
        "\"x\"",
        "null",
        "7",
        "nonsense",
        "[1,2,3,4]",
        &deep,
        "[\"1\",\"2\",\"t\",\"e\"]",
        "[null,null,7,\"e\",{}]",
        "[null,null,\"t\",null,{}]",
        "[null,null,\"t\",\"e\",{}] x",
        "[null,null,\"t\",\"e\",{]",
        "[null,null,\"t\\ud800\",\"e\",{}]",
        r#"{"topic":"t","event":"e","payload":{}}"#,
        r#"{"topic":"t","event":"e","ref":"1"}"#,
        r#"{"topic":"t","payload":{},"ref":"1"}"#,
        r#"{"event":"e","payload":{},"ref":"1"}"#,
        r#"{"topic":null,"event":"e","payload":{},"ref":"1"}"#,
        r#"{"topic":"t","topic":"u","event":"e","payload":{},"ref":"1"}"#,
        &format!(r#"[null,"{long}","t","e",{{}}]"#),
        &format!(r#"{{"topic":"t","event":"e","payload":{{}},"ref":"{long}"}}"#),
    ] {
        for version in VERSIONS {
            assert!(decode_text(version, text).is_err(), "{version:?} {text}");
        }
    }
    // What one version takes, the other does not.
    assert!(decode_text(Version::V1, r#"["t","e",{},"1",null]"#).is_err());
    assert!(
        decode_text(Version::V2, r#"{"topic":"t","event":"e","payload":{},"ref":"1"}"#).is_err()
    );
}

pub(super) fn bytes(hex: &str) -> Vec<u8> {
    let hex: Vec<char> = hex.chars().filter(|digit| !digit.is_whitespace()).collect();
    hex.chunks(2)
        .map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap())
        .collect()
}

/// The test vector of the protocol's specification.
pub(super) const KIND_3: &str =
    "03 01 01 0d 03 00 01 31 35 7265616c74696d653a726f6f6d 6d7367 7b2261223a317d";

#[test]
fn a_binary_broadcast_is_decoded() {
    let frame = bytes(KIND_3);
    let frame = decode_binary(Version::V2, &frame).unwrap();
    assert_eq!(
        describe(&frame),
        format!(r#""1" "5" realtime:room broadcast msg "" Json {:?}"#, br#"{"a":1}"#)
    );
    let frame = bytes("03 00 00 01 01 02 00 74 65 7b7d ff00");
    let frame = decode_binary(Version::V2, &frame).unwrap();
    assert_eq!(describe(&frame), r#"- - t broadcast e "{}" Bytes [255, 0]"#);
    // Any encoding but 0 is JSON.
    let frame = bytes("03 00 00 01 01 00 09 74 65");
    let frame = decode_binary(Version::V2, &frame).unwrap();
    assert_eq!(describe(&frame), r#"- - t broadcast e "" Json []"#);
}

#[test]
fn a_binary_push_is_decoded() {
    let frame = bytes("00 01 02 01 01 31 3232 74 65 0102");
    let frame = decode_binary(Version::V2, &frame).unwrap();
    assert_eq!(describe(&frame), r#""1" "22" t e [1, 2]"#);
}

#[test]
fn cut_and_strange_binary_frames_are_refused() {
    let whole = bytes(KIND_3);
    let header_and_texts = whole.len() - br#"{"a":1}"#.len();
    for length in 0..header_and_texts {
        assert!(decode_binary(Version::V2, &whole[..length]).is_err(), "{length}");
    }
    assert!(decode_binary(Version::V2, &whole[..header_and_texts]).is_ok());
    assert!(decode_binary(Version::V1, &whole).is_err());
    for kind in [1, 2, 4, 5, 255] {
        let mut other = whole.clone();
        other[0] = kind;
        assert!(decode_binary(Version::V2, &other).is_err(), "{kind}");
    }
    assert!(decode_binary(Version::V2, &bytes("00 00 00 01 01 ff 65")).is_err());
    assert!(decode_binary(Version::V2, &bytes("00 ff 00 01 01 31 74 65")).is_err());
}

#[test]
fn texts_of_255_bytes_fit_a_binary_frame() {
    let long = [b'x'; 255];
    let frame = [&[3, 0, 0, 255, 255, 0, 1][..], &long, &long, b"{}"].concat();
    let frame = decode_binary(Version::V2, &frame).unwrap();
    assert_eq!(frame.topic.len(), 255);
    assert!(matches!(frame.payload, Payload::Broadcast(broadcast) if broadcast.event.len() == 255));
    // A ref that needs escapes may outgrow its bound; it is refused, not cut.
    let frame = [&[0, 255, 0, 1, 1][..], &[1; 255], b"te"].concat();
    assert!(decode_binary(Version::V2, &frame).is_err());
}

#[test]
fn pushes_are_written_in_both_versions() {
    let join_ref = RawRef::from_text("7").unwrap();
    let push = |version, join_ref: Option<&RawRef>| {
        String::from_utf8(encode_push(version, join_ref, "realtime:\"ü\"", "e", b"{\"a\": 1}"))
            .unwrap()
    };
    assert_eq!(
        push(Version::V1, join_ref.as_ref()),
        r#"{"topic":"realtime:\"ü\"","event":"e","ref":null,"payload":{"a": 1}}"#
    );
    assert_eq!(push(Version::V2, join_ref.as_ref()), r#"["7",null,"realtime:\"ü\"","e",{"a": 1}]"#);
    assert_eq!(push(Version::V2, None), r#"[null,null,"realtime:\"ü\"","e",{"a": 1}]"#);
}

#[test]
fn row_changes_carry_their_ids_around_the_same_data() {
    let data = br#"{"type":"INSERT"}"#;
    for (ids, expected) in
        [(&[][..], "[]"), (&[7][..], "[7]"), (&[1, u32::MAX][..], "[1,4294967295]")]
    {
        let payload = format!(r#"{{"ids":{expected},"data":{{"type":"INSERT"}}}}"#);
        assert_eq!(row_change_payload(ids, data), payload.as_bytes());
        for version in VERSIONS {
            assert_eq!(
                encode_row_change(version, ROOM, ids, data),
                encode_push(version, None, ROOM, "postgres_changes", payload.as_bytes())
            );
        }
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,80}") {
        for version in VERSIONS {
            let _ = decode_text(version, &text);
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), kind in 0..5u8) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = kind;
        }
        for version in VERSIONS {
            let _ = decode_binary(version, &bytes);
        }
    }

    #[test]
    fn what_is_encoded_is_decoded_to_the_same(
        topic in "\\PC{0,30}", event in "\\PC{0,30}", reference in "[a-z0-9\"\\\\]{1,20}", number in any::<i64>(),
    ) {
        let payload = json!({ "x": [number, topic] }).to_string();
        let join_ref = RawRef::from_text(&reference).unwrap();
        let text = encode_push(Version::V2, join_ref.as_ref(), &topic, &event, payload.as_bytes());
        let frame = decode_text(Version::V2, std::str::from_utf8(&text).unwrap()).unwrap();
        prop_assert_eq!((&*frame.topic, &*frame.event), (&*topic, &*event));
        prop_assert_eq!(frame.join_ref, join_ref);
        let Payload::Json(json) = frame.payload else { panic!("text frames carry JSON") };
        prop_assert_eq!(json.get(), payload.as_str());
        let text = encode_push(Version::V1, None, &topic, &event, payload.as_bytes());
        let frame = decode_text(Version::V1, std::str::from_utf8(&text).unwrap()).unwrap();
        prop_assert_eq!((&*frame.topic, &*frame.event), (&*topic, &*event));
    }
}
