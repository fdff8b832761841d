//! The wire protocol on a whole service: connections, framing, joins and leaves.
//!
//! Each test carries the number of the checklist's item (C1 to C26) in its name.

use std::time::{Duration, Instant};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use walcast::config::Secret;

use crate::service::{
    self, ALICE, BOB, Refused, SECRET, Service, Socket, VERSIONS, Version, anon, now, shared, sign,
    token, user,
};

const JOIN_NOTHING: &str = r#"{"config":{"postgres_changes":[]}}"#;

fn nothing() -> Value {
    serde_json::from_str(JOIN_NOTHING).unwrap()
}

/// Everything about one table of schema `public`.
fn all_of(table: &str) -> Value {
    json!([{ "event": "*", "schema": "public", "table": table }])
}

async fn open(service: &Service, version: Version, query: &str) -> Result<Socket, Refused> {
    Socket::open(version, &service.url(&format!("/socket/websocket?{query}")), &[]).await
}

/// The answer instead of an upgrade: the status, and the text of its `error`.
async fn refused(service: &Service, query: &str) -> (u16, String) {
    let refused = open(service, Version::V2, query).await;
    let (status, body) = refused.map(|_| ()).expect_err("a refusal");
    let body: Value = serde_json::from_str(&body).unwrap();
    (status, body["error"].as_str().unwrap().to_owned())
}

fn unauthorised(text: &str) -> (u16, String) {
    (401, text.to_owned())
}

#[tokio::test]
async fn c1_both_paths_open_a_socket() {
    let service = shared().await;
    for path in ["/socket/websocket", "/realtime/v1/websocket"] {
        let url = service.url(&format!("{path}?apikey={}&vsn=2.0.0", anon()));
        Socket::open(Version::V2, &url, &[]).await.unwrap().heartbeat().await;
    }
}

#[tokio::test]
async fn c2_vsn_chooses_the_framing() {
    let service = shared().await;
    let apikey = anon();
    for (vsn, version) in [
        ("", Version::V1),
        ("&vsn=1.0.0", Version::V1),
        ("&vsn=1.0.9", Version::V1),
        ("&vsn=2.0.0", Version::V2),
        ("&vsn=2.0.1&eventsPerSecond=10&log_level=info", Version::V2),
    ] {
        let mut socket = open(service, version, &format!("apikey={apikey}{vsn}")).await.unwrap();
        socket.heartbeat().await;
    }
    let unknown = open(service, Version::V2, &format!("apikey={apikey}&vsn=9.9.9")).await;
    assert_eq!(unknown.map(|_| ()), Err((403, String::new())));
}

#[tokio::test]
async fn c3_bad_api_keys_are_refused_with_their_reason() {
    let service = shared().await;
    let with = |claims: Value| format!("apikey={}", sign(&claims, SECRET));
    let expired = with(json!({ "role": "anon", "exp": now() - 10 }));
    let role_missing = with(json!({ "exp": now() + 60 }));
    let exp_missing = with(json!({ "role": "anon" }));
    let of_another =
        sign(&json!({ "role": "anon", "exp": now() + 60 }), "another-secret-of-thirty-two-bytes!");
    let fields = unauthorised("Fields `role` and `exp` are required in JWT");
    let malformed = unauthorised("The token provided is not a valid JWT");
    assert_eq!(refused(service, "vsn=2.0.0").await, unauthorised("API key is missing"));
    assert_eq!(refused(service, &expired).await, unauthorised("Token has expired"));
    assert_eq!(
        refused(service, &format!("apikey={of_another}")).await,
        unauthorised("Failed to validate JWT signature")
    );
    assert_eq!(refused(service, "apikey=garbage").await, malformed);
    assert_eq!(refused(service, "apikey=").await, malformed);
    assert_eq!(refused(service, "apikey=sb_publishable_unknown").await, malformed);
    assert_eq!(refused(service, &role_missing).await, fields);
    assert_eq!(refused(service, &exp_missing).await, fields);
    let postgres = with(json!({ "role": "postgres", "exp": now() + 60 }));
    assert_eq!(refused(service, &postgres).await.0, 403, "a role outside the configured ones");
    let odd = with(json!({ "role": "anon", "exp": "tomorrow" }));
    assert_eq!(refused(service, &odd).await, (500, "Error connecting to Realtime".into()));
}

#[tokio::test]
async fn c4_the_x_api_key_header_wins_over_the_query() {
    let service = shared().await;
    let good = anon();
    let url = service.url("/socket/websocket?apikey=garbage&vsn=2.0.0");
    let mut socket = Socket::open(Version::V2, &url, &[("x-api-key", &good)]).await.unwrap();
    socket.heartbeat().await;
    let url = service.url(&format!("/socket/websocket?apikey={good}&vsn=2.0.0"));
    let garbage = Socket::open(Version::V2, &url, &[("x-api-key", "garbage")]).await;
    assert_eq!(garbage.map(|_| ()).unwrap_err().0, 401);
}

#[tokio::test]
async fn c5_a_token_with_white_space_or_percent_codes_verifies() {
    let service = shared().await;
    let good = anon();
    let (head, tail) = good.split_at(20);
    for apikey in [
        format!("{head}%0A{tail}"),
        format!("{head}%20{tail}%0D%0A"),
        good.replace('.', "%2E"),
        // Encoded twice: by the client, and by what stood between.
        good.replace('.', "%252E"),
    ] {
        let opened = open(service, Version::V2, &format!("apikey={apikey}&vsn=2.0.0")).await;
        opened.unwrap_or_else(|refused| panic!("{apikey}: {refused:?}")).heartbeat().await;
    }
}

/// A token of the key set in `tests/data/jwt`.
fn signed(algorithm: Algorithm, kid: Option<&str>, key: &EncodingKey) -> String {
    let header = Header { kid: kid.map(str::to_owned), ..Header::new(algorithm) };
    let claims = service::with_expiry(&json!({ "role": "anon" }));
    jsonwebtoken::encode(&header, &claims, key).unwrap()
}

const PUBLISHABLE: &str = "sb_publishable_0123456789abcdefghij";
const SECRET_KEY: &str = "sb_secret_0123456789abcdefghijklmn";

#[tokio::test]
async fn c6_c7_c26_keys_of_every_kind_and_the_limit_of_channels() {
    let service = Service::with(|config| {
        config.jwt.jwks = include_str!("../data/jwt/jwks.json").into();
        config.jwt.api_keys =
            Secret::new(json!({ PUBLISHABLE: "anon", SECRET_KEY: "service_role" }).to_string());
        config.server.channels_per_connection_max = 3;
    })
    .await;

    // C6: the key set's keys by their ids; HS256 falls back to the secret.
    let rsa = EncodingKey::from_rsa_der(include_bytes!("../data/jwt/rsa.der"));
    let p256 = EncodingKey::from_ec_der(include_bytes!("../data/jwt/p256.der"));
    let ed25519 = EncodingKey::from_ed_der(include_bytes!("../data/jwt/ed25519.der"));
    let secret = EncodingKey::from_secret(SECRET.as_bytes());
    for (algorithm, kid, key) in [
        (Algorithm::RS256, "rsa", &rsa),
        (Algorithm::ES256, "p256", &p256),
        (Algorithm::EdDSA, "ed25519", &ed25519),
        (Algorithm::HS256, "nobody knows it", &secret),
    ] {
        let apikey = signed(algorithm, Some(kid), key);
        service.connect(Version::V2, &apikey).await.heartbeat().await;
    }
    let unknown = signed(Algorithm::RS256, Some("other"), &rsa);
    assert_eq!(
        refused(&service, &format!("apikey={unknown}")).await,
        unauthorised(
            "Failed to generate JWT signer for key ID (kid) \"other\", check your JWT secret or \
             JWKS configuration"
        )
    );
    let nameless = signed(Algorithm::ES256, None, &p256);
    assert_eq!(
        refused(&service, &format!("apikey={nameless}")).await,
        unauthorised("Failed to generate JWT signer, check your JWT secret or JWKS configuration")
    );
    let swapped = signed(Algorithm::ES256, Some("rsa"), &p256);
    assert_eq!(refused(&service, &format!("apikey={swapped}")).await.0, 401);

    // C7: an API key is its role, for the connection and for channels that name it.
    let admin = service.admin().await;
    let t = service.owned_table("value text").await;
    admin.batch_execute(&format!("create policy none on {t} to anon using (false)")).await.unwrap();
    for version in VERSIONS {
        let mut publishable = service.subscribe(version, PUBLISHABLE, all_of(&t)).await;
        let mut everything = service.connect(version, SECRET_KEY).await;
        let payload = json!({
            "config": { "postgres_changes": all_of(&t) }, "access_token": PUBLISHABLE,
        });
        assert_eq!(everything.join("realtime:test", &payload).await["status"], "ok");
        everything.expect("system").await;
        let insert = format!("insert into {t} values ({}, null, 'x')", version.vsn().len());
        admin.batch_execute(&insert).await.unwrap();
        assert_eq!(everything.change().await["record"]["value"], "x", "as service_role");
        publishable.nothing_came().await;
        admin.batch_execute(&format!("truncate {t}")).await.unwrap();
    }
    let stranger = refused(&service, "apikey=sb_publishable_0123456789abcdefghiX").await;
    assert_eq!(stranger, unauthorised("The token provided is not a valid JWT"));

    // C26: as many channels as are allowed, then none; a left one makes room.
    let mut socket = service.connect(Version::V2, &anon()).await;
    for number in 0..3 {
        assert_eq!(socket.join(&format!("realtime:{number}"), &nothing()).await["status"], "ok");
    }
    let refusal = socket.join("realtime:3", &nothing()).await;
    assert_eq!(refusal["status"], "error");
    assert_eq!(refusal["response"]["reason"], "ChannelRateLimitReached: Too many channels");
    assert_eq!(socket.join("realtime:2", &nothing()).await["status"], "ok", "not one more");
    socket.expect("phx_close").await;
    let leave = socket.reference();
    socket.send(&Value::Null, &leave, "realtime:0", "phx_leave", &json!({})).await;
    assert_eq!(socket.reply(&leave).await.payload["status"], "ok");
    socket.expect("phx_close").await;
    assert_eq!(socket.join("realtime:3", &nothing()).await["status"], "ok");
}

#[tokio::test]
async fn c8_heartbeats_are_answered_while_a_join_waits() {
    let service = shared().await;
    let t = service.owned_table("value text").await;
    for version in VERSIONS {
        let mut socket = service.connect(version, &user(ALICE)).await;
        let mut admin = service.admin().await;
        let transaction = admin.transaction().await.unwrap();
        // The join asks the table's policy, and has to wait.
        transaction
            .batch_execute(&format!("lock table {t} in access exclusive mode"))
            .await
            .unwrap();
        let payload = json!({ "config": { "postgres_changes": all_of(&t) } });
        let join = socket.send_join("realtime:waiting", &payload).await;
        let reference = json!("the heart's");
        socket.send(&Value::Null, &reference, "phoenix", "heartbeat", &json!({})).await;
        let beat = socket.next().await;
        assert_eq!((&*beat.event, &beat.reference), ("phx_reply", &reference), "not the join's");
        assert_eq!((&*beat.topic, &beat.join_ref), ("phoenix", &Value::Null));
        assert_eq!(beat.payload, json!({ "status": "ok", "response": {} }));
        transaction.commit().await.unwrap();
        assert_eq!(socket.reply(&join).await.payload["status"], "ok");
    }
}

#[tokio::test]
async fn c9_malformed_frames_are_dropped_and_the_socket_stays() {
    let service = shared().await;
    for version in VERSIONS {
        let mut socket = service.connect(version, &anon()).await;
        let malformed = [
            "",
            "{",
            "[]",
            "\"x\"",
            "null",
            "7",
            "[1,2,3,4]",
            "{}",
            "\u{0}",
            "[[[[[",
            r#"{"topic":"phoenix","event":"heartbeat","payload":{}}"#,
            r#"{"topic":7,"event":"heartbeat","payload":{},"ref":"1"}"#,
            r#"["1","1","phoenix",null,{}]"#,
            r#"["1","1","phoenix","heartbeat",{}"#,
        ];
        for text in malformed {
            socket.send_text(text).await;
        }
        let deep = "[".repeat(100_000);
        socket.send_text(deep).await;
        for bytes in [&b""[..], b"\x03", b"\x03\x01\x01\xff\x03\x00\x01", b"\xff\x00", b"\x00\x01"]
        {
            socket.send_message(Message::binary(bytes.to_vec())).await;
        }
        socket.nothing_came().await;
    }
}

#[tokio::test]
async fn c10_events_of_unjoined_topics_are_unmatched() {
    let service = shared().await;
    for version in VERSIONS {
        let mut socket = service.connect(version, &anon()).await;
        let unmatched = json!({ "status": "error", "response": { "reason": "unmatched topic" } });
        for (topic, event) in [
            ("realtime:nowhere", "broadcast"),
            ("realtime:nowhere", "access_token"),
            ("foo:bar", "phx_join"),
            ("foo", "anything"),
            ("phoenix", "phx_join"),
            ("phoenix", "other"),
        ] {
            let reference = socket.reference();
            socket.send(&reference, &reference, topic, event, &json!({})).await;
            let reply = socket.expect("phx_reply").await;
            assert_eq!(reply.payload, unmatched, "{topic} {event}");
            assert_eq!((reply.topic.as_str(), reply.reference), (topic, reference));
            assert_eq!(reply.join_ref, Value::Null, "{topic} {event}");
        }
        let reference = socket.reference();
        socket.send(&Value::Null, &reference, "realtime:nowhere", "phx_leave", &json!({})).await;
        let reply = socket.reply(&reference).await;
        assert_eq!(reply.payload, json!({ "status": "ok", "response": {} }));
        socket.nothing_came().await;
    }
}

/// Every frame of every other test is checked for it as well.
#[tokio::test]
async fn c11_frames_have_exactly_the_members_of_their_version() {
    let service = shared().await;
    let t = service.table("value text").await;
    let admin = service.admin().await;
    for (version, id) in VERSIONS.into_iter().zip(1_i64..) {
        let mut socket = service.connect(version, &anon()).await;
        let payload = json!({ "config": { "postgres_changes": all_of(&t) } });
        let join = socket.send_join("realtime:test", &payload).await;
        let mut frames = vec![socket.read_text().await.unwrap(), socket.read_text().await.unwrap()];
        admin.execute(&format!("insert into {t} values ($1)"), &[&id]).await.unwrap();
        frames.push(socket.read_text().await.unwrap());
        let events = ["phx_reply", "system", "postgres_changes"];
        for (text, event) in frames.iter().zip(events) {
            let frame: Value = serde_json::from_str(text).unwrap();
            match version {
                Version::V1 => {
                    let mut members: Vec<_> = frame.as_object().unwrap().keys().collect();
                    members.sort();
                    assert_eq!(members, ["event", "payload", "ref", "topic"], "{text}");
                    assert_eq!(frame["event"], event);
                    let reference = if event == "phx_reply" { join.clone() } else { Value::Null };
                    assert_eq!(frame["ref"], reference, "{text}");
                }
                Version::V2 => {
                    let frame = frame.as_array().unwrap();
                    assert_eq!(frame.len(), 5, "{text}");
                    assert_eq!(frame[3], event);
                    let (join_ref, reference) = match event {
                        "phx_reply" => (join.clone(), join.clone()),
                        "system" => (join.clone(), Value::Null),
                        _ => (Value::Null, Value::Null),
                    };
                    assert_eq!((&frame[0], &frame[1]), (&join_ref, &reference), "{text}");
                }
            }
        }
    }
}

#[tokio::test]
async fn c12_a_silent_socket_is_closed_and_heartbeats_keep_it() {
    const IDLE: Duration = Duration::from_secs(2);
    let service = Service::with(|config| {
        config.server.idle_timeout_ms = IDLE.as_millis().try_into().unwrap();
    })
    .await;
    let mut silent = service.connect(Version::V2, &anon()).await;
    let mut lively = service.connect(Version::V1, &anon()).await;
    let start = Instant::now();
    assert_eq!(silent.join("realtime:test", &nothing()).await["status"], "ok");
    let mut beats = 0;
    let keep_alive = async {
        let mut pause = tokio::time::interval(IDLE / 5);
        loop {
            pause.tick().await;
            lively.heartbeat().await;
            beats += 1;
        }
    };
    let code = tokio::select! {
        code = silent.closed() => code,
        () = keep_alive => unreachable!("it goes on for ever"),
    };
    assert_eq!(code, Some(1000));
    assert!(start.elapsed() >= IDLE, "{:?}", start.elapsed());
    // As long again: the lively one has long outlived the silence it would have been closed for.
    let until = start + IDLE * 2;
    while Instant::now() < until {
        tokio::time::sleep(IDLE / 5).await;
        lively.heartbeat().await;
    }
    assert!(beats > 1, "{beats}");
}

#[tokio::test]
async fn c13_a_frame_of_more_than_5_mb_closes_the_socket() {
    let service = shared().await;
    let mut socket = service.connect(Version::V2, &anon()).await;
    let frame = |bytes: usize| {
        let frame = r#"["1","1","realtime:x","phx_join",{"config":{},"x":""}]"#;
        frame.replace("\"\"", &format!("\"{}\"", "x".repeat(bytes - frame.len())))
    };
    socket.send_text(frame(5_000_000)).await;
    assert_eq!(socket.reply(&json!("1")).await.payload["status"], "ok", "at the limit");
    socket.send_text(frame(5_000_001)).await;
    assert_eq!(socket.closed().await, Some(1009));
}

#[tokio::test]
async fn c14_refs_are_echoed_exactly() {
    let service = shared().await;
    for version in VERSIONS {
        let mut socket = service.connect(version, &anon()).await;
        for reference in
            [json!("007"), json!("chk_join"), json!("é\"\\\u{1}"), json!(7), json!(-1.5)]
        {
            let topic = format!("realtime:{}", reference.to_string().len());
            socket.send(&reference, &reference, &topic, "phx_join", &nothing()).await;
            let reply = socket.expect("phx_reply").await;
            assert_eq!(reply.reference, reference);
            assert_eq!(reply.payload["status"], "ok");
            if version == Version::V2 {
                assert_eq!(reply.join_ref, reference);
            }
            socket.send(&Value::Null, &reference, &topic, "phx_leave", &json!({})).await;
            assert_eq!(socket.expect("phx_reply").await.reference, reference);
            assert_eq!(socket.expect("phx_close").await.reference, reference);
        }
    }
}

#[tokio::test]
async fn c15_a_join_without_wishes_is_answered_with_an_empty_list() {
    let service = shared().await;
    for version in VERSIONS {
        let mut socket = service.connect(version, &anon()).await;
        for config in [
            json!({}),
            json!({ "postgres_changes": [] }),
            json!({ "postgres_changes": null, "broadcast": { "self": false, "ack": false },
                    "presence": { "key": "", "enabled": false }, "private": false }),
        ] {
            let reply = socket.join("realtime:test", &json!({ "config": config })).await;
            assert_eq!(reply, json!({ "status": "ok", "response": { "postgres_changes": [] } }));
            let leave = socket.reference();
            socket.send(&Value::Null, &leave, "realtime:test", "phx_leave", &json!({})).await;
            socket.reply(&leave).await;
            socket.expect("phx_close").await;
        }
        socket.nothing_came().await;
    }
}

#[tokio::test]
async fn c16_a_join_without_a_topic_is_refused() {
    let service = shared().await;
    for version in VERSIONS {
        let mut socket = service.connect(version, &anon()).await;
        let reply = socket.join("realtime:", &nothing()).await;
        assert_eq!(reply["status"], "error");
        let reason = "TopicNameRequired: You must provide a topic name";
        assert_eq!(reply["response"], json!({ "reason": reason }));
    }
}

#[tokio::test]
async fn c17_which_token_governs_a_channel() {
    let service = shared().await;
    let admin = service.admin().await;
    let t = service.owned_table("value text").await;
    let (alice, bob) = (user(ALICE), user(BOB));
    let mut id = 0_i64;
    for version in VERSIONS {
        let opaque = "sb_publishable_x";
        for (tokens, owner) in [
            (json!({}), ALICE),
            (json!({ "access_token": bob }), BOB),
            (json!({ "access_token": null, "user_token": null }), ALICE),
            (json!({ "access_token": alice, "user_token": bob }), BOB),
            (json!({ "access_token": opaque }), ALICE),
            (json!({ "access_token": opaque, "user_token": bob }), ALICE),
            (json!({ "access_token": bob, "user_token": opaque }), ALICE),
        ] {
            let mut socket = service.connect(version, &alice).await;
            let mut payload = tokens.clone();
            payload["config"] = json!({ "postgres_changes": all_of(&t) });
            assert_eq!(socket.join("realtime:test", &payload).await["status"], "ok", "{tokens}");
            socket.expect("system").await;
            let insert =
                format!("insert into {t} values ({}, '{ALICE}'), ({}, '{BOB}')", id + 1, id + 2);
            id += 2;
            admin.batch_execute(&insert).await.unwrap();
            assert_eq!(socket.change().await["record"]["owner"], owner, "{tokens}");
        }
    }
}

#[tokio::test]
async fn c18_c19_a_bad_channel_token_is_refused_and_nothing_else_waits_for_it() {
    let service = Service::with(|config| config.server.join_error_backoff_ms = 5000).await;
    let expired = sign(&json!({ "role": "anon", "exp": now() - 100 }), SECRET);
    let forged =
        sign(&json!({ "role": "anon", "exp": now() + 60 }), "another-secret-of-thirty-two-bytes!");
    let incomplete = sign(&json!({ "exp": now() + 60 }), SECRET);
    let check = async |version| {
        let mut socket = service.connect(version, &anon()).await;
        let mut refusals = Vec::new();
        for (number, token) in
            [&*expired, &*forged, "garbage", "a.b.c", &*incomplete].into_iter().enumerate()
        {
            let payload = json!({ "config": {}, "access_token": token });
            let topic = format!("realtime:bad{number}");
            refusals.push(socket.send_join(&topic, &payload).await);
        }
        // C19: others on the socket do not wait for them, and they are answered in time.
        assert_eq!(socket.join("realtime:good", &nothing()).await["status"], "ok");
        socket.nothing_came().await;
        let mut reasons = Vec::new();
        for reference in refusals {
            let reply = socket.reply(&reference).await;
            assert_eq!(reply.payload["status"], "error");
            if version == Version::V2 {
                assert_eq!(reply.join_ref, reference);
            }
            reasons.push(reply.payload["response"]["reason"].as_str().unwrap().to_owned());
        }
        let start = "InvalidJWTToken: Token has expired ";
        assert!(
            reasons[0].starts_with(start) && reasons[0].ends_with(" seconds ago"),
            "{reasons:?}"
        );
        assert_eq!(
            reasons[1..],
            [
                "JwtSignatureError: Failed to validate JWT signature",
                "MalformedJWT: The token provided is not a valid JWT",
                "MalformedJWT: The token provided is not a valid JWT",
                "InvalidJWTToken: Fields `role` and `exp` are required in JWT",
            ]
        );
    };
    futures_util::future::join_all(VERSIONS.map(check)).await;
}

#[tokio::test]
async fn c20_a_second_join_of_a_topic_replaces_the_first() {
    let service = shared().await;
    let admin = service.admin().await;
    let t = service.table("value text").await;
    for (version, id) in VERSIONS.into_iter().zip(1_i64..) {
        let mut socket = service.connect(version, &anon()).await;
        let twice = json!([
            { "event": "*", "schema": "public", "table": t },
            { "event": "INSERT", "schema": "public", "table": t },
        ]);
        let payload = json!({ "config": { "postgres_changes": twice } });
        let first = socket.send_join("realtime:test", &payload).await;
        socket.reply(&first).await;
        socket.expect("system").await;
        let payload = json!({ "config": { "postgres_changes": all_of(&t) } });
        let second = socket.send_join("realtime:test", &payload).await;
        let closed = socket.expect("phx_close").await;
        assert_eq!(closed.reference, first);
        assert_eq!(closed.payload, json!({}));
        let reply = socket.expect("phx_reply").await;
        assert_eq!((&reply.reference, &reply.payload["status"]), (&second, &json!("ok")));
        socket.expect("system").await;
        if version == Version::V2 {
            assert_eq!((closed.join_ref, reply.join_ref), (first, second));
        }
        admin.execute(&format!("insert into {t} values ($1)"), &[&id]).await.unwrap();
        admin.execute(&format!("update {t} set value = 'u' where id = $1"), &[&id]).await.unwrap();
        let insert = socket.expect("postgres_changes").await;
        assert_eq!(insert.payload["ids"].as_array().unwrap().len(), 1, "the new join's alone");
        assert_eq!(socket.change().await["type"], "UPDATE", "the insert came once");
    }
}

#[tokio::test]
async fn c21_a_leave_is_answered_and_ends_the_channel() {
    let service = shared().await;
    let admin = service.admin().await;
    let t = service.table("value text").await;
    for (version, id) in VERSIONS.into_iter().zip(1_i64..) {
        let mut socket = service.connect(version, &anon()).await;
        let payload = json!({ "config": { "postgres_changes": all_of(&t) } });
        let left = socket.send_join("realtime:left", &payload).await;
        socket.reply(&left).await;
        socket.expect("system").await;
        socket.subscribe("realtime:stays", all_of(&t)).await;
        let leave = socket.reference();
        socket.send(&left, &leave, "realtime:left", "phx_leave", &json!({})).await;
        let reply = socket.expect("phx_reply").await;
        assert_eq!(reply.reference, leave);
        assert_eq!(reply.payload, json!({ "status": "ok", "response": {} }));
        let closed = socket.expect("phx_close").await;
        assert_eq!((closed.reference, closed.payload), (left.clone(), json!({})));
        if version == Version::V2 {
            assert_eq!((&reply.join_ref, &closed.join_ref), (&left, &left));
        }
        admin.execute(&format!("insert into {t} values ($1)"), &[&id]).await.unwrap();
        admin.execute(&format!("update {t} set value = 'u' where id = $1"), &[&id]).await.unwrap();
        for event in ["INSERT", "UPDATE"] {
            let message = socket.expect("postgres_changes").await;
            assert_eq!(message.topic, "realtime:stays");
            assert_eq!(message.payload["data"]["type"], event);
        }
        socket.nothing_came().await;
    }
}

#[tokio::test]
async fn c22_c23_stale_and_missing_join_refs() {
    let service = shared().await;
    let admin = service.admin().await;
    let t = service.table("value text").await;
    for (version, id) in VERSIONS.into_iter().zip(1_i64..) {
        let mut socket = service.connect(version, &anon()).await;
        socket.subscribe("realtime:test", all_of(&t)).await;
        // C22: a leave of an earlier join is not one of this.
        let leave = socket.reference();
        socket.send(&json!("stale"), &leave, "realtime:test", "phx_leave", &json!({})).await;
        socket.nothing_came().await;
        admin.execute(&format!("insert into {t} values ($1)"), &[&id]).await.unwrap();
        assert_eq!(socket.change().await["record"]["id"], id);
        // C23: any other push counts for the channel that is joined now.
        let push = socket.reference();
        let refresh = json!({ "access_token": "garbage" });
        socket.send(&json!("stale"), &push, "realtime:test", "access_token", &refresh).await;
        let system = socket.expect("system").await;
        assert_eq!(system.payload["message"], "The token provided is not a valid JWT");
        socket.expect("phx_close").await;
        socket.subscribe("realtime:test", all_of(&t)).await;
        let leave = socket.reference();
        socket.send(&Value::Null, &leave, "realtime:test", "phx_leave", &json!({})).await;
        assert_eq!(socket.reply(&leave).await.payload["status"], "ok");
        socket.expect("phx_close").await;
    }
}

#[tokio::test]
async fn c24_booleans_may_be_text_and_nothing_else_passes_for_one() {
    let service = shared().await;
    for version in VERSIONS {
        let mut socket = service.connect(version, &anon()).await;
        let config = json!({
            "broadcast": { "ack": "true", "self": "FALSE" }, "presence": { "enabled": "false" },
            "private": "False",
        });
        let reply = socket.join("realtime:test", &json!({ "config": config })).await;
        assert_eq!(reply["status"], "ok", "{reply}");
        for (private, reason) in [
            (json!("yes"), "InvalidJoinPayload: private is not a boolean"),
            (json!(1), "InvalidJoinPayload: private is not a boolean"),
            (
                json!("TRUE"),
                "Unauthorized: You do not have permissions to read from this Channel topic: room",
            ),
        ] {
            let payload = json!({ "config": { "private": private } });
            let reply = socket.join("realtime:room", &payload).await;
            assert_eq!(reply, json!({ "status": "error", "response": { "reason": reason } }));
        }
    }
}

#[tokio::test]
async fn c25_a_join_without_config_subscribes_to_its_topic() {
    let service = shared().await;
    let admin = service.admin().await;
    let t = service.table("value text").await;
    for (version, id) in VERSIONS.into_iter().zip(1_i64..) {
        let mut socket = service.connect(version, &anon()).await;
        let topic = format!("realtime:public:{t}");
        for (topic, payload) in [
            (topic.clone(), json!({})),
            (format!("{topic}:id=eq.{id}"), json!({ "user_token": anon() })),
        ] {
            let reply = socket.join(&topic, &payload).await;
            assert_eq!(reply, json!({ "status": "ok", "response": { "postgres_changes": [] } }));
            let system = socket.expect("system").await;
            assert_eq!(system.payload["message"], "Subscribed to PostgreSQL");
        }
        let others = format!("insert into {t} values ({}), ($1)", id + 100);
        admin.execute(&others, &[&id]).await.unwrap();
        admin.execute(&format!("delete from {t} where id = $1"), &[&id]).await.unwrap();
        let mut seen = Vec::new();
        for _ in 0..5 {
            let message = socket.next().await;
            assert_eq!(message.event, message.payload["type"], "{message:?}");
            assert_eq!(message.payload.get("ids"), None);
            assert_eq!(message.payload["table"], t.as_str());
            let row = match &*message.event {
                "DELETE" => &message.payload["old_record"]["id"],
                _ => &message.payload["record"]["id"],
            };
            seen.push((message.topic == topic, message.event.clone(), row.clone()));
        }
        seen.sort_by_key(|(all, event, row)| (*all, event.clone(), row.as_i64()));
        let event = |all: bool, event: &str, row: i64| (all, event.to_owned(), json!(row));
        assert_eq!(
            seen,
            [
                event(false, "DELETE", id),
                event(false, "INSERT", id),
                event(true, "DELETE", id),
                event(true, "INSERT", id),
                event(true, "INSERT", id + 100),
            ]
        );
    }
}

#[tokio::test]
async fn f79_an_expired_connection_token_ends_channels_and_not_the_socket() {
    let service = shared().await;
    let short = token(&json!({ "role": "anon", "exp": now() + 2 }));
    let mut socket = service.connect(Version::V2, &short).await;
    assert_eq!(socket.join("realtime:test", &nothing()).await["status"], "ok");
    let system = socket.expect("system").await;
    let message = system.payload["message"].as_str().unwrap();
    assert!(message.starts_with("Token has expired "), "{message}");
    socket.expect("phx_close").await;
    socket.heartbeat().await;
    let refusal = socket.join("realtime:test", &nothing()).await;
    assert_eq!(refusal["status"], "error");
    let with = json!({ "config": {}, "access_token": anon() });
    assert_eq!(socket.join("realtime:test", &with).await["status"], "ok");
}

#[tokio::test]
async fn a_stop_says_goodbye_and_a_restart_goes_on() {
    let mut service = Service::start().await;
    let admin = service.admin().await;
    let t = service.table("value text").await;
    for (version, id) in VERSIONS.into_iter().zip(1_i64..) {
        let mut socket = service.subscribe(version, &anon(), all_of(&t)).await;
        let mut idle = service.connect(version, &anon()).await;
        let (stopped, idle, subscribed) =
            tokio::join!(service.stop(), idle.closed(), socket.closed());
        stopped.unwrap();
        assert_eq!((idle, subscribed), (Some(1012), Some(1012)), "clients come back after it");
        // What is written while nobody listens is history for those who join afterwards.
        let insert = format!("insert into {t} values ($1, 'missed')");
        admin.execute(&insert, &[&(id + 10)]).await.unwrap();
        service.start_again().await;
        let mut socket = service.subscribe(version, &anon(), all_of(&t)).await;
        let insert = format!("insert into {t} values ($1, 'new')");
        admin.execute(&insert, &[&id]).await.unwrap();
        let message = socket.expect("postgres_changes").await;
        assert_eq!(message.payload["data"]["record"]["value"], "new");
    }
}
