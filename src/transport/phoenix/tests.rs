//! Whole conversations with a session in both versions; `frames` has them byte by byte.

mod frames;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::auth::jwt::Verifier;
use crate::config;
use crate::session::{
    Grants, Input, JoinOutcome, JoinRequest, Limits, Output, Session, Subscribed, SystemMessage,
};
use frames::{KIND_3, bytes};

const SECRET: &str = "a-shared-secret-that-is-long-enough";
const NOW: u64 = 1_800_000_000;
const VERSIONS: [Version; 2] = [Version::V1, Version::V2];
const ROOM: &str = "realtime:room";

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn token(role: &str, expires_at: u64) -> String {
    let claims = json!({ "role": role, "exp": expires_at, "sub": "u1" });
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap()
}

fn connect_token() -> String {
    token("anon", NOW + 3600)
}

/// One client and its session; what the session wants is told as lines.
struct Talk {
    version: Version,
    session: Session,
    now: SystemTime,
    joins: Vec<JoinRequest>,
}

impl Talk {
    fn new(version: Version) -> Self {
        let settings =
            config::Jwt { secret: config::Secret::new(SECRET), ..config::Jwt::default() };
        let roles = ["anon", "authenticated"].map(String::from);
        let verifier = Arc::new(Verifier::new(&settings, &roles).unwrap());
        let token = connect_token();
        let claims = Arc::new(verifier.verify(&token, at(NOW)).unwrap());
        let limits = Limits {
            channels_max: 3,
            subscriptions_max: 4,
            connection_joins_per_second_max: 1000,
            joins_per_second_max: 1000,
            connection_events_per_second_max: 1000,
            events_per_second_max: 1000,
            connections_per_user_max: 0,
            payload_bytes_max: 1_000_000,
            presence_events_max: 3,
            presence_window: Duration::from_secs(30),
            private_only: false,
        };
        let session = Session::new(&token, claims, verifier, limits, Arc::default());
        Self { version, session, now: at(NOW), joins: Vec::new() }
    }

    /// The five parts of a frame as this version writes them.
    fn say(&mut self, parts: &Value) -> Vec<String> {
        let text = match self.version {
            Version::V2 => parts.to_string(),
            Version::V1 => {
                let mut frame = json!({ "ref": parts[1], "topic": parts[2], "event": parts[3], "payload": parts[4] });
                if !parts[0].is_null() {
                    frame["join_ref"] = parts[0].clone();
                }
                frame.to_string()
            }
        };
        self.say_text(&text)
    }

    fn say_text(&mut self, text: &str) -> Vec<String> {
        match decode_text(self.version, text) {
            Ok(frame) => self.input(Input::Frame(frame)),
            Err(_) => Vec::new(),
        }
    }

    fn input(&mut self, input: Input<'_>) -> Vec<String> {
        let mut outputs = Vec::new();
        self.session.handle(input, self.now, &mut outputs);
        outputs.into_iter().map(|output| self.line(output)).collect()
    }

    fn line(&mut self, output: Output) -> String {
        match output {
            Output::Send(message) => format!("send {}", self.read(&message)),
            Output::Beat(message) => format!("beat {}", self.read(&message)),
            Output::SendLater(message) => format!("later {}", self.read(&message)),
            Output::Leave(channel) => format!("leave {}", channel.get()),
            Output::Forget(channel) => format!("forget {}", channel.get()),
            Output::Refresh { channel, claims } => {
                format!("refresh {} {}", channel.get(), claims.role)
            }
            Output::JoinAgain { channel, claims } => {
                format!("again {} {}", channel.get(), claims.role)
            }
            Output::Disconnect { code, reason } => format!("disconnect {code} {reason}"),
            Output::Replay { channel, .. } => format!("replay {}", channel.get()),
            Output::Broadcast { channel, broadcast, echo } => {
                let payload = broadcast.payload().unwrap_or_default();
                let echo = if echo { " echo" } else { "" };
                format!("say {} {}{echo}", channel.get(), String::from_utf8_lossy(&payload))
            }
            Output::Track { channel, meta, .. } => format!("track {} {meta}", channel.get()),
            Output::Untrack { channel } => format!("untrack {}", channel.get()),
            Output::CheckWrite { channel, claims, turn, sees } => {
                let sees = if sees { " sees" } else { "" };
                format!("check {} {} {turn}{sees}", channel.get(), claims.role)
            }
            Output::Join(join) => {
                let line =
                    format!("join {} {} {}", join.channel.get(), join.topic, join.claims.role);
                self.joins.push(*join);
                line
            }
        }
    }

    /// A message as version 2 shows it; in version 1 the join ref must be missing.
    fn read(&self, message: &Message) -> String {
        let text = encode(self.version, message);
        let frame: Value = serde_json::from_slice(&text).unwrap();
        match self.version {
            Version::V2 => {
                assert_eq!(frame.as_array().unwrap().len(), 5);
                frame.to_string()
            }
            Version::V1 => {
                let keys: Vec<_> = frame.as_object().unwrap().keys().collect();
                assert_eq!(keys, ["topic", "event", "ref", "payload"]);
                let join_ref: Value = message.join_ref.as_ref().map_or(Value::Null, |join_ref| {
                    serde_json::from_str(join_ref.as_json()).unwrap()
                });
                json!([join_ref, frame["ref"], frame["topic"], frame["event"], frame["payload"]])
                    .to_string()
            }
        }
    }

    /// Joins and answers the join well; returns the lines of both.
    fn join(&mut self, join_ref: &str, topic: &str, payload: &Value) -> Vec<String> {
        let mut lines = self.say(&json!([join_ref, join_ref, topic, "phx_join", payload]));
        lines.extend(self.accept());
        lines
    }

    /// Answers the latest join well.
    fn accept(&mut self) -> Vec<String> {
        let join = self.joins.last().expect("a join went out").clone();
        self.answer(&join)
    }

    fn answer(&mut self, join: &JoinRequest) -> Vec<String> {
        let subscriptions = (1..)
            .take(join.postgres_changes.len())
            .map(|id| Subscribed { id, extra: None })
            .collect();
        let outcome =
            JoinOutcome::Ok { subscriptions, begins: None, replays: false, system: Vec::new() };
        self.input(Input::Joined { channel: join.channel, outcome })
    }
}

/// Runs a conversation in both versions.
fn both(conversation: impl Fn(&mut Talk)) {
    for version in VERSIONS {
        conversation(&mut Talk::new(version));
    }
}

fn ok(join_ref: &str, reference: &str, topic: &str) -> String {
    format!(
        "send {}",
        json!([join_ref, reference, topic, "phx_reply", { "status": "ok", "response": {} }])
    )
}

fn joined(join_ref: &str, topic: &str) -> String {
    let payload = json!({ "status": "ok", "response": { "postgres_changes": [] } });
    format!("send {}", json!([join_ref, join_ref, topic, "phx_reply", payload]))
}

fn closed(join_ref: &str, topic: &str) -> String {
    format!("send {}", json!([join_ref, join_ref, topic, "phx_close", {}]))
}

fn refused(join_ref: &str, topic: &str, reason: &str) -> String {
    let payload = json!({ "status": "error", "response": { "reason": reason } });
    format!("later {}", json!([join_ref, join_ref, topic, "phx_reply", payload]))
}

fn unmatched(reference: &str, topic: &str) -> String {
    let payload = json!({ "status": "error", "response": { "reason": "unmatched topic" } });
    format!("send {}", json!([null, reference, topic, "phx_reply", payload]))
}

fn shutdown(join_ref: &str, message: &str) -> [String; 2] {
    let payload =
        json!({ "extension": "system", "status": "error", "message": message, "channel": "room" });
    [format!("send {}", json!([join_ref, null, ROOM, "system", payload])), closed(join_ref, ROOM)]
}

const NOTHING: [String; 0] = [];

#[test]
fn a_heartbeat_is_answered_also_while_joins_wait() {
    both(|talk| {
        let beat = json!([null, "9", "phoenix", "heartbeat", {}]);
        let answer = json!([null, "9", "phoenix", "phx_reply", { "status": "ok", "response": {} }]);
        assert_eq!(talk.say(&beat), [format!("beat {answer}")]);
        talk.say(&json!(["1", "1", ROOM, "phx_join", {}]));
        assert_eq!(talk.say(&beat), [format!("beat {answer}")]);
    });
}

#[test]
fn malformed_frames_are_dropped_and_the_session_goes_on() {
    both(|talk| {
        for text in [
            "{",
            "[]",
            "\"x\"",
            r#"{"topic":"phoenix","event":"heartbeat","payload":{}}"#,
            "[null,\"1\",\"phoenix\"]",
        ] {
            assert_eq!(talk.say_text(text), NOTHING, "{text}");
        }
        assert_eq!(talk.say(&json!([null, "1", "phoenix", "heartbeat", {}])).len(), 1);
    });
}

#[test]
fn refs_are_echoed_byte_for_byte() {
    for (reference, echoed) in [
        (r#""007""#, r#""007""#),
        (r#""chk_join""#, r#""chk_join""#),
        ("7", "7"),
        ("1.0", "1.0"),
        ("null", "null"),
        ("true", "true"),
        (r#""\u0041""#, r#""\u0041""#),
        (r#"{"a": 1}"#, r#"{"a": 1}"#),
    ] {
        let text = format!(r#"[null,{reference},"phoenix","heartbeat",{{}}]"#);
        let mut talk = Talk::new(Version::V2);
        let frame = decode_text(talk.version, &text).unwrap();
        let mut outputs = Vec::new();
        talk.session.handle(Input::Frame(frame), talk.now, &mut outputs);
        let [Output::Beat(message)] = &outputs[..] else { panic!("{outputs:?}") };
        let answer = String::from_utf8(encode(Version::V2, message)).unwrap();
        assert!(answer.starts_with(&format!("[null,{echoed},")), "{answer}");
        let answer = String::from_utf8(encode(Version::V1, message)).unwrap();
        assert!(answer.contains(&format!(r#""ref":{echoed},"#)), "{answer}");
    }
}

#[test]
fn an_event_to_an_unjoined_topic_is_unmatched_but_a_leave_is_fine() {
    both(|talk| {
        for (topic, event) in [
            (ROOM, "broadcast"),
            (ROOM, "access_token"),
            (ROOM, "anything"),
            ("foo:bar", "phx_join"),
            ("foo:bar", "presence"),
            ("phoenix", "phx_join"),
            ("phoenix", "other"),
            ("", "heartbeat"),
            (ROOM, "heartbeat"),
        ] {
            let lines = talk.say(&json!(["1", "3", topic, event, {}]));
            assert_eq!(lines, [unmatched("3", topic)], "{topic} {event}");
        }
        for topic in [ROOM, "foo:bar"] {
            assert_eq!(talk.say(&json!(["1", "3", topic, "phx_leave", {}])), [ok("1", "3", topic)]);
        }
    });
}

#[test]
fn a_join_goes_to_the_hub_and_its_answer_to_the_client() {
    both(|talk| {
        let lines = talk.say(&json!(["1", "1", ROOM, "phx_join", { "config": {} }]));
        assert_eq!(lines, ["join 1 realtime:room anon"]);
        assert!(!talk.joins[0].legacy);
        assert_eq!(talk.accept(), [joined("1", ROOM)]);
        assert_eq!(talk.session.channels(), 1);
    });
}

#[test]
fn the_reply_echoes_each_subscription_with_its_id_in_order() {
    let asked = [
        r#"{"event":"*","schema":"public","table":"t","filter":"id=eq.1"}"#,
        r#"{ "table" : "t", "x": 1.50, "big": 12345678901234567890123, "filter": null }"#,
        "{}",
        r#"{ "id": "mine" }"#,
    ];
    let config = format!(
        r#"{{"config":{{"postgres_changes":[{},null,{},{},{}]}}}}"#,
        asked[0], asked[1], asked[2], asked[3]
    );
    let mut talk = Talk::new(Version::V2);
    talk.say_text(&format!(r#"["1","1","{ROOM}","phx_join",{config}]"#));
    let join = talk.joins.pop().unwrap();
    let given: Vec<&str> = join.postgres_changes.iter().map(|asked| asked.get()).collect();
    assert_eq!(given, asked);
    let extra = |text| Some(Cow::Borrowed(text));
    let subscriptions = vec![
        Subscribed { id: 104_868_235, extra: extra(r#""delete_mode":"pk_compat""#) },
        Subscribed { id: 2, extra: None },
        Subscribed { id: 3, extra: extra(r#""delete_mode":"drop""#) },
        Subscribed { id: 2, extra: None },
    ];
    let outcome =
        JoinOutcome::Ok { subscriptions, begins: None, replays: false, system: Vec::new() };
    let mut outputs = Vec::new();
    talk.session.handle(Input::Joined { channel: join.channel, outcome }, talk.now, &mut outputs);
    let [Output::Send(reply)] = &outputs[..] else { panic!("{outputs:?}") };
    let expected = format!(
        "{{\"status\":\"ok\",\"response\":{{\"postgres_changes\":[{}]}}}}",
        [
            r#"{"event":"*","schema":"public","table":"t","filter":"id=eq.1","delete_mode":"pk_compat","id":104868235}"#,
            r#"{ "table" : "t", "x": 1.50, "big": 12345678901234567890123, "filter": null ,"id":2}"#,
            r#"{"delete_mode":"drop","id":3}"#,
            r#"{ "id": "mine" ,"id":2}"#,
        ]
        .join(",")
    );
    assert_eq!(reply.payload, expected);
    let read: Value = serde_json::from_str(&reply.payload).unwrap();
    assert_eq!(read["response"]["postgres_changes"][3]["id"], 2, "ours is read");
}

#[test]
fn system_messages_follow_the_reply_and_name_the_sub_topic() {
    both(|talk| {
        talk.say(&json!(["1", "1", ROOM, "phx_join", { "config": {} }]));
        let channel = talk.joins[0].channel;
        let system = vec![SystemMessage::subscribed()];
        let outcome =
            JoinOutcome::Ok { subscriptions: Vec::new(), begins: None, replays: false, system };
        let told = |status: &str, message: &str| {
            let payload = json!({ "extension": "postgres_changes", "status": status, "message": message, "channel": "room" });
            format!("send {}", json!(["1", null, ROOM, "system", payload]))
        };
        assert_eq!(
            talk.input(Input::Joined { channel, outcome }),
            [joined("1", ROOM), told("ok", "Subscribed to PostgreSQL")]
        );
        let message = SystemMessage::not_subscribed("no \"such\" table");
        assert_eq!(
            talk.input(Input::System { channel, message }),
            [told("error", "no \"such\" table")]
        );
    });
}

#[test]
fn a_nameless_or_impossible_topic_is_refused() {
    both(|talk| {
        let long = format!("realtime:{}", "x".repeat(5000));
        for (topic, reason) in [
            ("realtime:", "TopicNameRequired: You must provide a topic name"),
            (&*long, "TopicNameTooLong: The topic name is too long"),
            ("realtime:a\0", "TopicNameInvalid: The topic name contains a NUL"),
        ] {
            let lines = talk.say(&json!(["1", "1", topic, "phx_join", {}]));
            let refused = refused("1", topic, reason);
            // One that waits would keep its long name in memory.
            let at_once = refused.replacen("later", "send", 1);
            assert_eq!(lines, [if topic == long { at_once } else { refused }]);
        }
    });
}

#[test]
fn topics_of_255_bytes_and_of_any_script_work() {
    both(|talk| {
        for topic in [format!("realtime:{}", "x".repeat(246)), "realtime:部屋/🦀".to_owned()] {
            assert!(
                talk.join("1", &topic, &json!({ "config": {} })).contains(&joined("1", &topic))
            );
        }
    });
}

#[test]
fn the_channel_token_is_picked_by_precedence() {
    let user = token("authenticated", NOW + 60);
    let garbage = "garbage";
    for (payload, expected) in [
        (json!({}), "anon"),
        (json!({ "access_token": user }), "authenticated"),
        (json!({ "user_token": user }), "authenticated"),
        (json!({ "user_token": user, "access_token": garbage }), "authenticated"),
        (json!({ "access_token": null }), "anon"),
        (json!({ "access_token": 7, "user_token": null }), "anon"),
        (json!({ "access_token": "sb_publishable_x" }), "anon"),
        (json!({ "user_token": "sb_secret_x" }), "anon"),
        (json!({ "user_token": "sb_secret_x", "access_token": user }), "anon"),
        (json!({ "user_token": user, "access_token": "sb_publishable_x" }), "anon"),
    ] {
        both(|talk| {
            let mut payload = payload.clone();
            payload["config"] = json!({});
            let lines = talk.say(&json!(["1", "1", ROOM, "phx_join", payload]));
            assert_eq!(lines, [format!("join 1 realtime:room {expected}")], "{payload}");
        });
    }
}

#[test]
fn a_join_with_a_bad_token_says_which_way_it_is_bad() {
    let good = token("anon", NOW + 60);
    let (message, _) = good.rsplit_once('.').unwrap();
    let no_fields = jsonwebtoken::encode(
        &Header::new(Algorithm::HS256),
        &json!({ "role": "anon" }),
        &EncodingKey::from_secret(SECRET.as_bytes()),
    )
    .unwrap();
    for (token, reason) in [
        (token("anon", NOW - 5), "InvalidJWTToken: Token has expired 5 seconds ago"),
        (format!("{message}.AAAA"), "JwtSignatureError: Failed to validate JWT signature"),
        ("garbage".into(), "MalformedJWT: The token provided is not a valid JWT"),
        (String::new(), "MalformedJWT: The token provided is not a valid JWT"),
        (no_fields, "InvalidJWTToken: Fields `role` and `exp` are required in JWT"),
        (token("postgres", NOW + 5), "Unauthorized: The role in the token is not allowed"),
    ] {
        both(|talk| {
            let lines = talk
                .say(&json!(["1", "1", ROOM, "phx_join", { "access_token": token, "config": {} }]));
            assert_eq!(lines, [refused("1", ROOM, reason)]);
            assert_eq!(talk.session.channels(), 0);
            let other = "realtime:other";
            assert!(talk.join("2", other, &json!({})).contains(&joined("2", other)));
        });
    }
}

#[test]
fn an_expired_connection_token_joins_nothing_but_the_socket_lives() {
    both(|talk| {
        talk.now = at(NOW + 3600);
        let lines = talk.say(&json!(["1", "1", ROOM, "phx_join", {}]));
        let reason = "InvalidJWTToken: Token has expired 0 seconds ago";
        assert_eq!(lines, [refused("1", ROOM, reason)]);
        let fresh = token("authenticated", NOW + 7200);
        let lines = talk.say(&json!(["2", "2", ROOM, "phx_join", { "access_token": fresh }]));
        assert_eq!(lines, ["join 1 realtime:room authenticated"]);
        let same = json!(["3", "3", "realtime:b", "phx_join", { "access_token": connect_token() }]);
        assert_eq!(talk.say(&same), [refused("3", "realtime:b", reason)]);
    });
}

#[test]
fn a_second_join_of_a_topic_closes_the_first() {
    both(|talk| {
        talk.join("1", ROOM, &json!({}));
        let lines = talk.say(&json!(["5", "5", ROOM, "phx_join", {}]));
        assert_eq!(
            lines,
            ["leave 1".to_owned(), closed("1", ROOM), "join 2 realtime:room anon".into()]
        );
        assert_eq!(talk.accept(), [joined("5", ROOM)]);
        assert_eq!(talk.session.channels(), 1);
    });
}

#[test]
fn a_second_join_overtakes_one_that_waits_and_its_late_answer_is_dropped() {
    both(|talk| {
        talk.say(&json!(["1", "1", ROOM, "phx_join", {}]));
        let lines = talk.say(&json!(["2", "2", ROOM, "phx_join", {}]));
        assert_eq!(
            lines,
            ["leave 1".to_owned(), closed("1", ROOM), "join 2 realtime:room anon".into()]
        );
        let late = talk.joins[0].clone();
        assert_eq!(talk.answer(&late), ["leave 1"]);
        assert_eq!(talk.accept(), [joined("2", ROOM)]);
    });
}

#[test]
fn a_refused_second_join_has_closed_the_first_all_the_same() {
    both(|talk| {
        talk.join("1", ROOM, &json!({}));
        let lines = talk.say(&json!(["2", "2", ROOM, "phx_join", { "access_token": "x" }]));
        let reason = "MalformedJWT: The token provided is not a valid JWT";
        assert_eq!(lines, ["leave 1".to_owned(), closed("1", ROOM), refused("2", ROOM, reason)]);
        assert_eq!(talk.session.channels(), 0);
    });
}

#[test]
fn a_leave_is_answered_and_then_the_channel_closes() {
    both(|talk| {
        talk.join("1", ROOM, &json!({}));
        let leave = json!(["1", "2", ROOM, "phx_leave", {}]);
        assert_eq!(
            talk.say(&leave),
            ["forget 1".to_owned(), "leave 1".to_owned(), ok("1", "2", ROOM), closed("1", ROOM)]
        );
        assert_eq!(talk.say(&leave), [ok("1", "2", ROOM)]);
    });
}

#[test]
fn a_leave_while_the_join_waits_ends_it() {
    both(|talk| {
        talk.say(&json!(["1", "1", ROOM, "phx_join", {}]));
        let lines = talk.say(&json!(["1", "2", ROOM, "phx_leave", {}]));
        assert_eq!(
            lines,
            ["forget 1".to_owned(), "leave 1".to_owned(), ok("1", "2", ROOM), closed("1", ROOM)]
        );
        assert_eq!(talk.accept(), ["leave 1"]);
        let channel = talk.joins[0].channel;
        let outcome = JoinOutcome::Error { reason: "late".into() };
        assert_eq!(talk.input(Input::Joined { channel, outcome }), ["leave 1"]);
    });
}

#[test]
fn a_stale_leave_is_ignored_and_one_without_a_join_ref_is_not() {
    both(|talk| {
        talk.join("1", ROOM, &json!({}));
        talk.join("4", ROOM, &json!({}));
        assert_eq!(talk.say(&json!(["1", "5", ROOM, "phx_leave", {}])), NOTHING);
        assert_eq!(talk.session.channels(), 1);
        let lines = talk.say(&json!([null, "6", ROOM, "phx_leave", {}]));
        assert_eq!(
            lines,
            ["forget 2".to_owned(), "leave 2".to_owned(), ok("4", "6", ROOM), closed("4", ROOM)]
        );
    });
}

#[test]
fn a_join_without_a_join_ref_works_to_its_end() {
    both(|talk| {
        let lines = talk.say(&json!([null, "chk_join", ROOM, "phx_join", {}]));
        assert_eq!(lines, ["join 1 realtime:room anon"]);
        let payload = json!({ "status": "ok", "response": { "postgres_changes": [] } });
        let reply = json!([null, "chk_join", ROOM, "phx_reply", payload]);
        assert_eq!(talk.accept(), [format!("send {reply}")]);
        let left = json!([null, "2", ROOM, "phx_reply", { "status": "ok", "response": {} }]);
        let close = json!([null, null, ROOM, "phx_close", {}]);
        assert_eq!(
            talk.say(&json!(["chk_join", "2", ROOM, "phx_leave", {}])),
            [
                "forget 1".to_owned(),
                "leave 1".to_owned(),
                format!("send {left}"),
                format!("send {close}")
            ]
        );
    });
}

#[test]
fn a_push_with_a_stale_or_missing_join_ref_is_processed() {
    for join_ref in [json!("1"), json!("99"), json!(null)] {
        both(|talk| {
            talk.join("1", ROOM, &json!({}));
            let user = token("authenticated", NOW + 60);
            let push = json!([join_ref, "2", ROOM, "access_token", { "access_token": user }]);
            assert_eq!(talk.say(&push), ["refresh 1 authenticated"]);
        });
    }
}

#[test]
fn unknown_events_on_a_joined_channel_get_no_reply() {
    both(|talk| {
        talk.join("1", ROOM, &json!({}));
        for event in ["anything", "", "phx_reply", "phx_close", "system", "heartbeat", "PHX_LEAVE"]
        {
            assert_eq!(talk.say(&json!(["1", "2", ROOM, event, {}])), NOTHING, "{event}");
        }
        assert_eq!(talk.session.channels(), 1);
    });
}

#[test]
fn a_binary_broadcast_to_an_unjoined_topic_is_unmatched() {
    let mut talk = Talk::new(Version::V2);
    let frame = bytes(KIND_3);
    let frame = || decode_binary(Version::V2, &frame).unwrap();
    assert_eq!(talk.input(Input::Frame(frame())), [unmatched("5", ROOM)]);
    talk.join("1", ROOM, &json!({}));
    let said = r#"say 1 {"event":"msg","payload":{"a":1},"type":"broadcast"}"#;
    assert_eq!(talk.input(Input::Frame(frame())), [said]);
    // A join must be text.
    let join = [&[0, 0, 1, 13, 8][..], b"1", ROOM.as_bytes(), b"phx_join", b"{}"].concat();
    let lines = talk.input(Input::Frame(decode_binary(Version::V2, &join).unwrap()));
    assert!(lines[2].contains("InvalidJoinPayload: the payload is not JSON"), "{lines:?}");
}

#[test]
fn string_booleans_are_taken_and_other_types_refused() {
    for (private, expected) in [
        (json!(false), None),
        (json!("false"), None),
        (json!("FALSE"), None),
        (json!(null), None),
        (json!(true), None),
        (json!("True"), None),
        (json!("yes"), Some("InvalidJoinPayload: private is not a boolean")),
        (json!(1), Some("InvalidJoinPayload: private is not a boolean")),
        (json!([]), Some("InvalidJoinPayload: private is not a boolean")),
        (json!(" true"), Some("InvalidJoinPayload: private is not a boolean")),
    ] {
        both(|talk| {
            let lines = talk
                .say(&json!(["1", "1", ROOM, "phx_join", { "config": { "private": private } }]));
            match expected {
                None => assert_eq!(lines, ["join 1 realtime:room anon"], "{private}"),
                Some(reason) => assert_eq!(lines, [refused("1", ROOM, reason)], "{private}"),
            }
        });
    }
}

#[test]
fn more_channels_than_allowed_are_refused_until_one_ends() {
    both(|talk| {
        for number in 1..=3 {
            talk.join("1", &format!("realtime:{number}"), &json!({}));
        }
        let fourth = json!(["4", "4", "realtime:4", "phx_join", {}]);
        let full = refused("4", "realtime:4", "ChannelRateLimitReached: Too many channels");
        assert_eq!(talk.say(&fourth), [full]);
        // Joining one of the three again takes no more room.
        let again = talk.say(&json!(["5", "5", "realtime:2", "phx_join", {}]));
        assert_eq!(again[2], "join 4 realtime:2 anon");
        talk.say(&json!([null, "6", "realtime:1", "phx_leave", {}]));
        assert_eq!(talk.say(&fourth), ["join 5 realtime:4 anon"]);
    });
}

#[test]
fn a_config_less_join_is_legacy() {
    both(|talk| {
        for payload in [
            json!({}),
            json!({ "user_token": connect_token() }),
            json!({ "config": null }),
            json!(null),
        ] {
            talk.say(&json!(["1", "1", "realtime:public:t", "phx_join", payload]));
            let join = talk.joins.pop().unwrap();
            assert!(join.legacy && join.postgres_changes.is_empty(), "{payload}");
        }
        talk.say(&json!(["1", "1", "realtime:public:t", "phx_join", { "config": {} }]));
        assert!(!talk.joins.pop().unwrap().legacy);
    });
}

#[test]
fn a_failed_join_is_answered_later_and_leaves_no_channel() {
    both(|talk| {
        talk.say(&json!(["1", "1", ROOM, "phx_join", {}]));
        let channel = talk.joins[0].channel;
        let reason = "RealtimeRestarting: Realtime is restarting, please standby";
        let outcome = JoinOutcome::Error { reason: reason.into() };
        assert_eq!(talk.input(Input::Joined { channel, outcome }), [refused("1", ROOM, reason)]);
        assert_eq!(talk.session.channels(), 0);
    });
}

#[test]
fn an_answer_that_does_not_fit_the_join_fails_it() {
    both(|talk| {
        talk.say(
            &json!(["1", "1", ROOM, "phx_join", { "config": { "postgres_changes": [{}, {}] } }]),
        );
        let subscriptions = vec![Subscribed { id: 1, extra: None }];
        let outcome =
            JoinOutcome::Ok { subscriptions, begins: None, replays: false, system: Vec::new() };
        let channel = talk.joins[0].channel;
        assert_eq!(
            talk.input(Input::Joined { channel, outcome }),
            ["leave 1".to_owned(), refused("1", ROOM, "Unknown Error on Channel")]
        );
    });
}

#[test]
fn a_refreshed_token_replaces_the_claims_without_a_reply() {
    both(|talk| {
        talk.join("1", ROOM, &json!({}));
        let refresh =
            |token: &str| json!(["1", "2", ROOM, "access_token", { "access_token": token }]);
        let user = token("authenticated", NOW + 60);
        assert_eq!(talk.say(&refresh(&user)), ["refresh 1 authenticated"]);
        assert_eq!(talk.say(&refresh(&user)), NOTHING, "the same again");
        assert_eq!(talk.say(&refresh(&connect_token())), ["refresh 1 anon"]);
    });
}

#[test]
fn refreshes_that_mean_nothing_are_ignored() {
    both(|talk| {
        talk.join("1", ROOM, &json!({}));
        for payload in [
            json!({ "access_token": connect_token() }),
            json!({ "access_token": null }),
            json!({ "access_token": "sb_publishable_x" }),
            json!({ "access_token": 7 }),
            json!({ "access_token": { "a": "b" } }),
            json!({}),
            json!(null),
            json!([connect_token()]),
            json!("x"),
        ] {
            assert_eq!(
                talk.say(&json!(["1", "2", ROOM, "access_token", payload])),
                NOTHING,
                "{payload}"
            );
        }
        assert_eq!(talk.session.channels(), 1);
    });
}

#[test]
fn a_refresh_that_fails_shuts_the_channel_down_with_its_text() {
    let good = token("authenticated", NOW + 60);
    let (message, _) = good.rsplit_once('.').unwrap();
    let no_fields = jsonwebtoken::encode(
        &Header::new(Algorithm::HS256),
        &json!({ "exp": NOW + 5 }),
        &EncodingKey::from_secret(SECRET.as_bytes()),
    )
    .unwrap();
    let signer = jsonwebtoken::encode(
        &Header { kid: Some("k1".into()), ..Header::new(Algorithm::HS256) },
        &json!({}),
        &EncodingKey::from_secret(SECRET.as_bytes()),
    )
    .unwrap()
    .split_once('.')
    .map(|(_, rest)| format!("eyJhbGciOiJSUzI1NiIsImtpZCI6ImsxIn0.{rest}"))
    .unwrap();
    for (token, text) in [
        (token("anon", NOW - 9), "Token has expired 9 seconds ago"),
        ("garbage".into(), "The token provided is not a valid JWT"),
        (String::new(), "The token provided is not a valid JWT"),
        (no_fields, "Fields `role` and `exp` are required in JWT"),
        (format!("{message}.AAAA"), "Failed to validate JWT signature"),
        (
            signer,
            "Failed to generate JWT signer for key ID (kid) \"k1\", check your JWT secret or JWKS \
             configuration",
        ),
        (token("postgres", NOW + 9), "The role in the token is not allowed"),
    ] {
        both(|talk| {
            talk.join("1", ROOM, &json!({}));
            let lines =
                talk.say(&json!(["1", "2", ROOM, "access_token", { "access_token": token }]));
            let [system, close] = shutdown("1", text);
            assert_eq!(lines, ["leave 1".to_owned(), system, close]);
            assert_eq!(talk.say(&json!(["1", "3", ROOM, "x", {}])), [unmatched("3", ROOM)]);
        });
    }
}

#[test]
fn a_refresh_while_the_join_waits_is_what_it_is_decided_by() {
    both(|talk| {
        talk.say(&json!(["1", "1", ROOM, "phx_join", {}]));
        for (expires_at, role) in [(60, "anon"), (61, "authenticated")] {
            let user = token(role, NOW + expires_at);
            let refresh = json!(["1", "2", ROOM, "access_token", { "access_token": user }]);
            assert_eq!(talk.say(&refresh), NOTHING);
        }
        assert_eq!(talk.accept(), ["again 1 authenticated"], "once, by the last");
        assert_eq!(talk.accept(), [joined("1", ROOM)]);
        assert_eq!(talk.accept(), NOTHING);
    });
    // What the older one was refused may be the newer one's right.
    both(|talk| {
        talk.say(&json!(["1", "1", ROOM, "phx_join", {}]));
        let user = token("authenticated", NOW + 60);
        let refresh = json!(["1", "2", ROOM, "access_token", { "access_token": user }]);
        assert_eq!(talk.say(&refresh), NOTHING);
        let channel = talk.joins[0].channel;
        let refusal = || {
            let outcome = JoinOutcome::Error { reason: "Unauthorized: no".into() };
            Input::Joined { channel, outcome }
        };
        assert_eq!(talk.input(refusal()), ["again 1 authenticated"]);
        assert_eq!(talk.input(refusal()), [refused("1", ROOM, "Unauthorized: no")]);
    });
}

#[test]
fn a_bad_refresh_while_the_join_waits_is_the_joins_answer() {
    both(|talk| {
        talk.say(&json!(["1", "1", ROOM, "phx_join", {}]));
        let lines = talk.say(&json!(["1", "2", ROOM, "access_token", { "access_token": "x" }]));
        let reason = "MalformedJWT: The token provided is not a valid JWT";
        assert_eq!(lines, ["leave 1".to_owned(), refused("1", ROOM, reason)]);
        assert_eq!(talk.accept(), ["leave 1"]);
    });
}

#[test]
fn a_channel_ends_when_its_token_expires() {
    both(|talk| {
        let short = token("authenticated", NOW + 10);
        talk.join("1", ROOM, &json!({ "access_token": short }));
        talk.join("2", "realtime:other", &json!({}));
        let channel = talk.joins[0].channel;
        assert_eq!(talk.session.next_expiry(), Some((channel, at(NOW + 10))));
        talk.now = at(NOW + 9);
        assert_eq!(talk.input(Input::Expired { channel }), NOTHING, "not yet");
        talk.now = at(NOW + 12);
        let [system, close] = shutdown("1", "Token has expired 2 seconds ago");
        assert_eq!(talk.input(Input::Expired { channel }), ["leave 1".to_owned(), system, close]);
        assert_eq!(talk.input(Input::Expired { channel }), NOTHING, "only once");
        assert_eq!(talk.session.next_expiry(), Some((talk.joins[1].channel, at(NOW + 3600))));
    });
}

#[test]
fn a_refresh_in_time_keeps_the_channel() {
    both(|talk| {
        talk.join("1", ROOM, &json!({ "access_token": token("anon", NOW + 10) }));
        let longer = token("anon", NOW + 100);
        talk.say(&json!(["1", "2", ROOM, "access_token", { "access_token": longer }]));
        talk.now = at(NOW + 10);
        let channel = talk.joins[0].channel;
        assert_eq!(talk.input(Input::Expired { channel }), NOTHING);
        talk.now = at(NOW + 100);
        assert_eq!(talk.input(Input::Expired { channel }).len(), 3);
    });
}

#[test]
fn a_token_that_expires_while_the_join_waits_fails_it() {
    let reason = "InvalidJWTToken: Token has expired 0 seconds ago";
    both(|talk| {
        let join = json!(["1", "1", ROOM, "phx_join", { "access_token": token("anon", NOW + 10) }]);
        talk.say(&join);
        talk.now = at(NOW + 10);
        assert_eq!(talk.accept(), ["leave 1".to_owned(), refused("1", ROOM, reason)]);
    });
    both(|talk| {
        let join = json!(["1", "1", ROOM, "phx_join", { "access_token": token("anon", NOW + 10) }]);
        talk.say(&join);
        talk.now = at(NOW + 10);
        let channel = talk.joins[0].channel;
        let lines = talk.input(Input::Expired { channel });
        assert_eq!(lines, ["leave 1".to_owned(), refused("1", ROOM, reason)]);
    });
}

#[test]
fn a_lost_permission_shuts_the_channel_down() {
    both(|talk| {
        talk.join("1", ROOM, &json!({}));
        let channel = talk.joins[0].channel;
        let text = "You do not have permissions to read from this Channel topic: room";
        let [system, close] = shutdown("1", text);
        let lines = talk.input(Input::Shutdown { channel, message: text.into() });
        assert_eq!(lines, ["leave 1".to_owned(), system, close]);
        let message = SystemMessage::subscribed();
        assert_eq!(talk.input(Input::System { channel, message }), NOTHING);
    });
}

#[test]
fn a_join_that_waits_is_told_nothing_but_its_answer() {
    both(|talk| {
        talk.say(&json!(["1", "1", ROOM, "phx_join", {}]));
        let channel = talk.joins[0].channel;
        let message = SystemMessage::subscribed();
        assert_eq!(talk.input(Input::System { channel, message }), NOTHING);
        let lines = talk.input(Input::Shutdown { channel, message: "no more".into() });
        assert_eq!(lines, ["leave 1".to_owned(), refused("1", ROOM, "Unauthorized: no more")]);
        assert_eq!(talk.input(Input::Shutdown { channel, message: "again".into() }), NOTHING);
    });
}

#[test]
fn a_second_answer_to_one_join_changes_nothing() {
    both(|talk| {
        talk.join("1", ROOM, &json!({}));
        assert_eq!(talk.accept(), NOTHING);
        let outcome = JoinOutcome::Error { reason: "late".into() };
        let channel = talk.joins[0].channel;
        assert_eq!(talk.input(Input::Joined { channel, outcome }), NOTHING);
        assert_eq!(talk.session.channels(), 1);
    });
}

#[test]
fn equal_tokens_on_one_connection_share_their_claims() {
    both(|talk| {
        let user = token("authenticated", NOW + 60);
        for (number, token) in [(1, &connect_token()), (2, &user), (3, &user)] {
            let payload = json!({ "access_token": token, "config": {} });
            talk.join("1", &format!("realtime:{number}"), &payload);
        }
        let [connect, first, second] = &talk.joins[..] else { panic!("three joins") };
        assert!(Arc::ptr_eq(&first.claims, &second.claims));
        assert!(!Arc::ptr_eq(&connect.claims, &first.claims));
    });
}

#[test]
fn a_disconnect_tells_every_joined_topic_first() {
    both(|talk| {
        talk.join("1", ROOM, &json!({}));
        talk.join("2", "realtime:b", &json!({}));
        talk.say(&json!(["3", "3", "realtime:c", "phx_join", {}]));
        let told = |join_ref: &str, topic: &str| {
            let payload = json!({ "extension": "system", "status": "ok", "message": "Server requested disconnect" });
            format!("send {}", json!([join_ref, null, topic, "system", payload]))
        };
        assert_eq!(
            talk.input(Input::Disconnect { code: 1012, reason: "restart" }),
            [told("1", ROOM), told("2", "realtime:b"), "disconnect 1012 restart".into()]
        );
        assert_eq!(talk.session.channels(), 0);
    });
}

/// A channel whose right to write is checked; it wants answers.
fn private() -> Value {
    json!({ "config": { "private": true, "broadcast": { "ack": true } } })
}

fn say(reference: &str) -> Value {
    json!(["1", reference, ROOM, "broadcast", {}])
}

impl Talk {
    fn may(&mut self, turn: u32, broadcast: bool, presence: bool) -> Vec<String> {
        let channel = self.joins.last().unwrap().channel;
        let grants = Some(Grants { broadcast, presence });
        self.input(Input::MayWrite { channel, turn, grants })
    }

    fn may_write(&mut self, turn: u32, broadcast: bool) -> Vec<String> {
        self.may(turn, broadcast, false)
    }
}

#[test]
fn what_is_said_before_a_leave_is_said() {
    both(|talk| {
        talk.join("1", ROOM, &private());
        assert_eq!(talk.say(&say("2")), ["check 1 anon 0"]);
        assert_eq!(talk.say(&json!(["1", "3", ROOM, "phx_leave", {}])), NOTHING);
        let reply = unmatched("4", ROOM).replace("[null,", "[\"1\",");
        assert_eq!(talk.say(&say("4")), [reply]);
        let lines = talk.may_write(0, true);
        let left =
            ["forget 1".to_owned(), "leave 1".to_owned(), ok("1", "3", ROOM), closed("1", ROOM)];
        assert_eq!(lines[..2], ["say 1 {}".to_owned(), ok("1", "2", ROOM)]);
        assert_eq!(lines[2..], left);
        assert_eq!(talk.session.channels(), 0);
    });
}

#[test]
fn a_second_leave_does_not_wait_and_every_push_has_an_answer() {
    both(|talk| {
        talk.join("1", ROOM, &private());
        talk.say(&say("2"));
        talk.say(&json!(["1", "3", ROOM, "phx_leave", {}]));
        let lines = talk.say(&json!(["1", "4", ROOM, "phx_leave", {}]));
        let refused = unmatched("2", ROOM).replace("[null,", "[\"1\",");
        let replies = [ok("1", "3", ROOM), ok("1", "4", ROOM), closed("1", ROOM)];
        assert_eq!(lines[..3], ["forget 1".to_owned(), "leave 1".to_owned(), refused]);
        assert_eq!(lines[3..], replies);
        assert_eq!(talk.may_write(0, true), NOTHING);
    });
}

#[test]
fn what_was_said_to_a_channel_that_is_not_joined_after_all_is_answered() {
    both(|talk| {
        talk.say(&json!(["1", "1", ROOM, "phx_join", private()]));
        assert_eq!(talk.say(&say("2")), NOTHING);
        let channel = talk.joins[0].channel;
        let outcome = JoinOutcome::Error { reason: "no".into() };
        let lines = talk.input(Input::Joined { channel, outcome });
        let push = unmatched("2", ROOM).replace("[null,", "[\"1\",");
        assert_eq!(lines, [push, refused("1", ROOM, "no")]);
    });
}

fn track(reference: &str) -> Value {
    json!(["1", reference, ROOM, "presence", { "event": "track", "payload": {} }])
}

/// Also when what may be written is known, or is being found out, because of a broadcast.
#[test]
fn a_first_track_asks_whether_presence_may_be_read() {
    both(|talk| {
        talk.join("1", ROOM, &private());
        assert_eq!(talk.say(&track("2")), ["check 1 anon 0 sees"]);
        assert_eq!(talk.say(&say("3")), NOTHING);
        let said = ["say 1 {}".to_owned(), ok("1", "3", ROOM)];
        assert_eq!(talk.may(0, true, true), ["track 1 {}", &said[0], &said[1]]);
        assert_eq!(talk.say(&track("4")), ["track 1 {}"]);
    });
    both(|talk| {
        talk.join("1", ROOM, &private());
        assert_eq!(talk.say(&say("2")), ["check 1 anon 0"]);
        assert_eq!(talk.say(&track("3")), NOTHING);
        assert_eq!(talk.say(&say("4")), NOTHING);
        assert_eq!(talk.say(&json!(["1", "5", ROOM, "phx_leave", {}])), NOTHING);
        let said = |reference| ["say 1 {}".to_owned(), ok("1", reference, ROOM)];
        let lines = talk.may(0, true, true);
        assert_eq!(lines, [&said("2")[..], &["check 1 anon 0 sees".into()]].concat());
        let left =
            ["forget 1".to_owned(), "leave 1".to_owned(), ok("1", "5", ROOM), closed("1", ROOM)];
        let lines = talk.may(0, true, true);
        assert_eq!(lines, [&["track 1 {}".into()], &said("4")[..], &left].concat());
    });
    both(|talk| {
        talk.join("1", ROOM, &private());
        talk.say(&say("2"));
        talk.may(0, true, true);
        assert_eq!(talk.say(&track("3")), ["check 1 anon 0 sees"]);
        assert_eq!(talk.may(0, true, true), ["track 1 {}"]);
    });
}

#[test]
fn whether_presence_may_be_read_is_asked_only_where_it_is_not_known_and_matters() {
    both(|talk| {
        let mut enabled = private();
        enabled["config"]["presence"] = json!({ "enabled": true });
        talk.join("1", ROOM, &enabled);
        assert_eq!(talk.say(&track("2")), ["check 1 anon 0"]);
        assert_eq!(talk.may(0, true, true), ["track 1 {}"]);
    });
    let declined = |reference: &str| {
        let payload = json!({ "status": "error", "response": {} });
        format!("send {}", json!(["1", reference, ROOM, "phx_reply", payload]))
    };
    both(|talk| {
        talk.join("1", ROOM, &private());
        assert_eq!(talk.say(&say("2")), ["check 1 anon 0"]);
        talk.may(0, true, false);
        assert_eq!(talk.say(&track("3")), [declined("3")]);
    });
    // Declined, it has not shown itself: the next claims are asked with their first track.
    both(|talk| {
        talk.join("1", ROOM, &private());
        talk.say(&track("2"));
        assert_eq!(talk.may(0, true, false), [declined("2")]);
        let other = token("authenticated", NOW + 60);
        talk.say(&json!(["1", null, ROOM, "access_token", { "access_token": other }]));
        assert_eq!(talk.say(&track("3")), ["check 1 authenticated 1 sees"]);
        assert_eq!(talk.may(1, true, true), ["track 1 {}"]);
        // It has: newer ones are asked at once, with what else they may read.
        let other = token("authenticated", NOW + 90);
        talk.say(&json!(["1", null, ROOM, "access_token", { "access_token": other }]));
        assert_eq!(talk.say(&track("4")), ["check 1 authenticated 2"]);
    });
    // An answer about older claims is none.
    both(|talk| {
        talk.join("1", ROOM, &private());
        talk.say(&track("2"));
        let other = token("authenticated", NOW + 60);
        talk.say(&json!(["1", null, ROOM, "access_token", { "access_token": other }]));
        assert_eq!(talk.may(0, true, true), ["check 1 authenticated 1 sees"]);
        assert_eq!(talk.may(1, true, true), ["track 1 {}"]);
    });
}

/// However often the claims change, one check is under way, and only the claims in force count.
#[test]
fn the_right_to_write_is_checked_once_at_a_time_and_for_the_claims_in_force() {
    both(|talk| {
        talk.join("1", ROOM, &private());
        assert_eq!(talk.say(&say("2")), ["check 1 anon 0"]);
        for (turn, role) in [(1, "authenticated"), (2, "anon")] {
            let other = token(role, NOW + 60 + turn);
            let refresh = json!(["1", null, ROOM, "access_token", { "access_token": other }]);
            assert_eq!(talk.say(&refresh), [format!("refresh 1 {role}")]);
            assert_eq!(talk.say(&say("3")), NOTHING);
        }
        assert_eq!(talk.may_write(0, true), ["check 1 anon 2"]);
        let lines = talk.may_write(2, false);
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line.contains("Unauthorized")), "{lines:?}");
    });
}

#[test]
fn what_waits_on_all_channels_of_a_connection_is_bounded_together() {
    let mut talk = Talk::new(Version::V2);
    let large = json!({ "x": "x".repeat(700_000) });
    let mut push = |topic: &str, payload: &Value| {
        talk.say(&json!(["1", "1", topic, "phx_join", {}]));
        talk.say(&json!(["1", "2", topic, "broadcast", payload]))
    };
    assert_eq!(push("realtime:a", &large), NOTHING);
    assert!(push("realtime:b", &large)[0].contains("Too many messages wait"));
    assert_eq!(push("realtime:c", &json!({})), NOTHING);
}

// Anything at all

/// Frames that are nearly right, so that the state machine is reached.
fn frames() -> impl Strategy<Value = Value> {
    let word = |words: &'static [&'static str]| prop::sample::select(words);
    let reference = prop_oneof![
        Just(Value::Null),
        (0..4u8).prop_map(|number| json!(number.to_string())),
        Just(json!(1)),
    ];
    let payload = prop_oneof![
        Just(json!({})),
        Just(json!({ "config": {} })),
        Just(json!({ "config": { "postgres_changes": [{ "table": "t" }, null, {}] } })),
        Just(json!({ "config": { "private": true } })),
        Just(json!({ "config": { "postgres_changes": [7] } })),
        Just(json!({ "config": [], "access_token": "x" })),
        Just(json!({ "access_token": "x" })),
        Just(json!({ "access_token": token("authenticated", NOW + 30) })),
        Just(json!({ "access_token": token("anon", NOW + 5), "config": {} })),
        Just(json!([])),
        Just(json!("x")),
    ];
    let topics = word(&[
        "realtime:a",
        "realtime:b",
        "realtime:c",
        "realtime:d",
        "realtime:",
        "phoenix",
        "x",
    ]);
    let events =
        word(&["phx_join", "phx_join", "phx_leave", "access_token", "heartbeat", "broadcast", "?"]);
    (reference.clone(), reference, topics, events, payload).prop_map(
        |(join_ref, own, topic, event, payload)| json!([join_ref, own, topic, event, payload]),
    )
}

#[derive(Debug, Clone)]
enum Step {
    Say(Value),
    Answer { which: usize, well: bool },
    Expire(usize),
    Wait(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => frames().prop_map(Step::Say),
        3 => (0..8usize, any::<bool>()).prop_map(|(which, well)| Step::Answer { which, well }),
        1 => (0..8usize).prop_map(Step::Expire),
        1 => (0..10u8).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    /// Whatever happens, the hub's view and the session's agree, and nothing grows without bound.
    #[test]
    fn any_sequence_keeps_channels_bounded_and_accounted_for(steps in steps(), newer in any::<bool>()) {
        let version = if newer { Version::V2 } else { Version::V1 };
        let mut talk = Talk::new(version);
        let mut registered = std::collections::BTreeSet::new();
        let mut answered = std::collections::BTreeSet::new();
        for step in steps {
            let now = talk.now;
            let lines = match step {
                Step::Say(frame) => talk.say(&frame),
                Step::Answer { which, well } => {
                    let Some(join) = talk.joins.get(which).cloned() else { continue };
                    if !answered.insert(join.channel) {
                        continue;
                    }
                    if well {
                        registered.insert(join.channel.get());
                        talk.answer(&join)
                    } else {
                        let outcome = JoinOutcome::Error { reason: "no".into() };
                        talk.input(Input::Joined { channel: join.channel, outcome })
                    }
                }
                Step::Expire(which) => {
                    let Some(channel) = talk.joins.get(which).map(|join| join.channel) else { continue };
                    talk.input(Input::Expired { channel })
                }
                Step::Wait(seconds) => {
                    talk.now = now + Duration::from_secs(u64::from(seconds));
                    continue;
                }
            };
            prop_assert!(lines.len() <= 4, "{:?}", lines);
            for line in &lines {
                if let Some(channel) = line.strip_prefix("leave ") {
                    registered.remove(&channel.parse().unwrap());
                }
            }
            prop_assert!(talk.session.channels() <= 3);
            prop_assert!(registered.len() <= talk.session.channels(), "{:?}", registered);
        }
    }
}
