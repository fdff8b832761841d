//! The payload of a join, and what a session weighs. Conversations are tested with the transport.

use serde_json::json;

use super::*;
use std::time::Duration;

fn wishes(payload: &serde_json::Value) -> Result<Wishes, String> {
    let raw = serde_json::value::to_raw_value(payload).unwrap();
    Wishes::parse(&raw, 4)
}

fn problem(config: &serde_json::Value) -> String {
    wishes(&json!({ "config": config })).map(|_| ()).expect_err(&config.to_string())
}

/// What realtime-js sends.
#[test]
fn a_full_payload_is_understood() {
    let wishes = wishes(&json!({
        "config": {
            "broadcast": { "ack": true, "self": "TRUE", "replay": { "since": 1, "limit": 10 }, "replication_ready": true },
            "presence": { "key": "me", "enabled": true },
            "postgres_changes": [{ "event": "*", "table": "t" }, null],
            "private": false,
            "postgres_changes_options": { "wait": true, "timeout": 7500 },
        },
        "access_token": "a",
        "user_token": "u",
        "version": "realtime-js/2.112.2",
    }))
    .unwrap();
    assert!(wishes.broadcast.acknowledge && wishes.broadcast.echo);
    assert!(wishes.broadcast.announce_replication);
    assert_eq!(wishes.broadcast.replay.unwrap().get(), r#"{"since":1,"limit":10}"#);
    assert!(wishes.presence.enabled);
    assert_eq!(wishes.presence.key.unwrap().get(), r#""me""#);
    assert_eq!(wishes.postgres_changes.len(), 1);
    assert_eq!(wishes.wait, Some(Duration::from_millis(7500)));
    assert!(!wishes.private && !wishes.legacy);
}

#[test]
fn everything_is_optional_and_null_is_missing() {
    for config in [
        json!({}),
        json!({ "broadcast": null, "presence": null, "postgres_changes": null, "private": null,
                "postgres_changes_options": null }),
        json!({ "broadcast": { "ack": null, "self": null, "replay": null },
                "presence": null, "postgres_changes": [],
                "postgres_changes_options": { "wait": null } }),
    ] {
        let wishes = wishes(&json!({ "config": config })).unwrap();
        assert!(!wishes.broadcast.acknowledge && !wishes.broadcast.echo, "{config}");
        assert!(wishes.broadcast.replay.is_none() && wishes.presence.key.is_none(), "{config}");
        assert!(!wishes.presence.enabled && !wishes.private && !wishes.legacy, "{config}");
        assert!(wishes.postgres_changes.is_empty() && wishes.wait.is_none(), "{config}");
    }
}

#[test]
fn presence_is_for_who_asked_and_for_clients_that_cannot_ask() {
    for (presence, enabled) in [
        (json!({ "key": "", "enabled": true }), true),
        (json!({ "key": "", "enabled": "False" }), false),
        (json!({ "key": "" }), true),
        (json!({ "key": null, "enabled": null }), true),
        (json!({}), true),
        (json!(null), false),
    ] {
        let wishes = wishes(&json!({ "config": { "presence": presence } })).unwrap();
        assert_eq!(wishes.presence.enabled, enabled, "{presence}");
    }
}

#[test]
fn a_value_of_the_wrong_type_is_named() {
    for (config, expected) in [
        (json!([]), "config is not an object"),
        (json!(7), "config is not an object"),
        (json!({ "private": "maybe" }), "private is not a boolean"),
        (json!({ "broadcast": [] }), "broadcast is not an object"),
        (json!({ "broadcast": { "ack": 1 } }), "broadcast.ack is not a boolean"),
        (json!({ "broadcast": { "self": {} } }), "broadcast.self is not a boolean"),
        (json!({ "broadcast": { "replay": 7 } }), "broadcast.replay is not an object"),
        (json!({ "presence": true }), "presence is not an object"),
        (json!({ "presence": { "enabled": "on" } }), "presence.enabled is not a boolean"),
        (json!({ "postgres_changes": {} }), "postgres_changes is not a list"),
        (json!({ "postgres_changes": ["t"] }), "an element of postgres_changes is not an object"),
        (json!({ "postgres_changes": [[]] }), "an element of postgres_changes is not an object"),
        (json!({ "postgres_changes_options": 1 }), "postgres_changes_options is not an object"),
        (
            json!({ "postgres_changes_options": { "wait": true, "timeout": "5" } }),
            "postgres_changes_options.timeout is not a positive number",
        ),
        (
            json!({ "postgres_changes_options": { "wait": true, "timeout": -1 } }),
            "postgres_changes_options.timeout is not a positive number",
        ),
    ] {
        assert_eq!(problem(&config), expected, "{config}");
    }
    for payload in [json!([]), json!("x"), json!(7), json!([{ "private": false }])] {
        assert_eq!(wishes(&payload).map(|_| ()), Err("the payload is not an object".into()));
    }
}

#[test]
fn a_member_named_twice_is_refused() {
    for payload in [
        r#"{"config":{},"config":{"private":true}}"#,
        r#"{"config":{"private":true,"private":false}}"#,
        r#"{"config":{"private":true,"priv\u0061te":false}}"#,
    ] {
        let raw: Box<RawValue> = serde_json::from_str(payload).unwrap();
        let problem = Wishes::parse(&raw, 4).map(|_| ()).unwrap_err();
        assert!(problem.ends_with("names a member twice"), "{problem}");
    }
}

#[test]
fn lists_and_texts_are_bounded() {
    let list = |length| json!({ "postgres_changes": vec![json!({}); length] });
    assert!(wishes(&json!({ "config": list(4) })).is_ok());
    assert_eq!(problem(&list(5)), "postgres_changes has more than 4 elements");
    let nulls = json!({ "config": { "postgres_changes": [null, null, null, {}, {}, {}, {}] } });
    assert_eq!(wishes(&nulls).unwrap().postgres_changes.len(), 4);
    let long = json!({ "postgres_changes": [{ "filter": "x".repeat(300_000) }] });
    assert_eq!(problem(&long), "postgres_changes has more than 262144 bytes");
    let key = json!({ "presence": { "key": "x".repeat(5000) } });
    assert_eq!(problem(&key), "presence.key has more than 4096 bytes");
    let deep = format!(r#"{{"config":{{"x":{}{}}}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let raw: Box<RawValue> = serde_json::from_str(&deep).unwrap();
    assert!(Wishes::parse(&raw, 4).is_ok(), "unknown members are skipped, however deep");
}

#[test]
fn the_wait_has_a_default_and_a_bound() {
    let wait = |options| {
        wishes(&json!({ "config": { "postgres_changes_options": options } })).unwrap().wait
    };
    assert_eq!(wait(json!({ "wait": true })), Some(Duration::from_secs(15)));
    assert_eq!(wait(json!({ "wait": "true", "timeout": 1e300 })), Some(Duration::from_secs(20)));
    assert_eq!(wait(json!({ "wait": true, "timeout": 20_001 })), Some(Duration::from_secs(20)));
    assert_eq!(wait(json!({ "wait": true, "timeout": 0 })), Some(Duration::ZERO));
    assert_eq!(wait(json!({ "wait": false, "timeout": 5 })), None);
    assert_eq!(wait(json!({ "timeout": 5 })), None);
}

/// The goal is well below 2 KB for an idle session with one channel; its claims are shared with
/// the checks and counted there.
#[test]
fn an_idle_session_with_a_channel_is_small() {
    let session = size_of::<Session>();
    let channel = size_of::<Channel>();
    assert!(session <= 224, "{session}");
    assert!(channel <= 112, "{channel}");
    let topic_and_ref = 255 + 16 + 8;
    assert!(session + channel + topic_and_ref < 600);
}
