//! What no client of good will sends: each is answered, or closed with a reason, and nobody else
//! notices.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::service::{
    ALICE, BOB, DEADLINE, Service, Socket, VERSIONS, Version, anon, now, shared, sign, token, user,
};

/// Two that talk to each other in a room of their own, and who must not notice anything.
struct Bystanders {
    topic: String,
    speaker: Socket,
    listener: Socket,
    said: u32,
}

impl Bystanders {
    async fn of(service: &Service, name: &str) -> Self {
        let topic = format!("realtime:bystanders of {name}");
        let mut speaker = service.connect(Version::V2, &anon()).await;
        let mut listener = service.connect(Version::V1, &anon()).await;
        for socket in [&mut speaker, &mut listener] {
            assert_eq!(socket.join(&topic, &json!({ "config": {} })).await["status"], "ok");
        }
        Self { topic, speaker, listener, said: 0 }
    }

    async fn are_untouched(&mut self) {
        self.said += 1;
        let payload = json!({ "type": "broadcast", "event": "e", "payload": { "n": self.said } });
        self.speaker.send(&Value::Null, &Value::Null, &self.topic, "broadcast", &payload).await;
        let heard = self.listener.expect("broadcast").await;
        assert_eq!(heard.payload["payload"]["n"], self.said);
        self.speaker.nothing_came().await;
    }
}

fn public() -> Value {
    json!({ "config": { "broadcast": { "ack": true }, "presence": { "enabled": true, "key": "k" } } })
}

fn private() -> Value {
    json!({ "config": { "private": true, "broadcast": { "ack": true } } })
}

#[tokio::test]
async fn f62_frames_that_are_none_are_dropped_and_the_socket_lives() {
    let service = shared().await;
    let mut bystanders = Bystanders::of(service, "frames that are none").await;
    for version in VERSIONS {
        let mut socket = service.connect(version, &anon()).await;
        let topic = "realtime:frames that are none";
        assert_eq!(socket.join(topic, &json!({ "config": {} })).await["status"], "ok");

        let whole = [&[3, 1, 1, 29, 1, 0, 1][..], b"12", topic.as_bytes(), b"e{}"].concat();
        for length in 0..whole.len() - 3 {
            socket.send_message(Message::binary(whole[..length].to_vec())).await;
        }
        for kind in [1, 2, 4, 255] {
            socket.send_message(Message::binary(vec![kind; 300])).await;
        }
        // Texts that are not UTF-8.
        socket.send_message(Message::binary(vec![3, 1, 1, 2, 1, 1, 1, 255, 255, 255, 255])).await;
        for text in [
            "",
            "{",
            "[]",
            "[1]",
            "null",
            "\"x\"",
            "[null,null,7,\"e\",{}]",
            "{\"topic\":7}",
            "[null,null,\"t\",\"e\"]",
            "{\"topic\":\"t\",\"event\":\"e\",\"payload\":{}}",
            "\u{0}",
            "[null,null,\"t\u{1}\",\"e\",{}]",
        ] {
            socket.send_text(text).await;
        }
        let deep = format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
        socket.send_text(deep).await;
        socket.nothing_came().await;
        bystanders.are_untouched().await;
    }
}

#[tokio::test]
async fn refs_of_any_type_come_back_as_they_were() {
    let service = shared().await;
    for version in VERSIONS {
        let mut socket = service.connect(version, &anon()).await;
        for reference in [
            json!(7),
            json!(-1.5),
            json!(true),
            json!({ "a": [1] }),
            json!([]),
            json!("\u{1}\u{7f}"),
            json!(""),
            json!("x".repeat(250)),
        ] {
            socket.send(&Value::Null, &reference, "phoenix", "heartbeat", &json!({})).await;
            assert_eq!(socket.next().await.reference, reference);
            let topic = "realtime:refs of any type";
            socket.send(&reference, &reference, topic, "phx_join", &public()).await;
            let reply = socket.reply(&reference).await;
            assert_eq!(reply.payload["status"], "ok", "{reference}");
            socket.send(&reference, &reference, topic, "phx_leave", &json!({})).await;
            assert_eq!(socket.reply(&reference).await.payload["status"], "ok");
            socket.rest().await;
        }
        // Longer than any client's: no frame at all.
        let long = json!("x".repeat(1000));
        socket.send(&long, &long, "phoenix", "heartbeat", &json!({})).await;
        socket.nothing_came().await;
    }
}

#[tokio::test]
async fn f57_strange_topics_are_answered() {
    let service = shared().await;
    let mut bystanders = Bystanders::of(service, "strange topics").await;
    for version in VERSIONS {
        let mut socket = service.connect(version, &anon()).await;
        for sub_topic in [
            "\u{1}\u{1b}[31m\r\n\u{7f}",
            "\u{202e}\u{feff}",
            "' or 1=1; --",
            "%00",
            &"é".repeat(2000),
        ] {
            let topic = format!("realtime:{sub_topic}");
            let join_ref = socket.send_join(&topic, &public()).await;
            assert_eq!(socket.reply(&join_ref).await.payload["status"], "ok", "{sub_topic}");
            let said = json!({ "event": "e\u{1}", "payload": {}, "type": "broadcast" });
            let reference = socket.reference();
            socket.send(&join_ref, &reference, &topic, "broadcast", &said).await;
            assert_eq!(socket.reply(&reference).await.payload["status"], "ok");
        }
        socket.rest().await;
        for (topic, reason) in [
            (
                format!("realtime:{}", "x".repeat(65_536)),
                "TopicNameTooLong: The topic name is too long",
            ),
            ("realtime:a\0b".into(), "TopicNameInvalid: The topic name contains a NUL"),
            ("x".repeat(65_536), "unmatched topic"),
        ] {
            let refusal = socket.join(&topic, &public()).await;
            assert_eq!(refusal["response"]["reason"], reason);
        }
        socket.nothing_came().await;
        bystanders.are_untouched().await;
    }
}

#[tokio::test]
async fn f57_ten_thousand_joins_end_in_refusals_or_in_the_end_of_the_socket() {
    for joins_per_second_max in [1_000_000, 20] {
        let service = Service::with(|config| {
            config.limits.connection_joins_per_second_max = joins_per_second_max;
            config.limits.joins_per_second_max = 1_000_000;
        })
        .await;
        let mut bystanders = Bystanders::of(&service, "ten thousand joins").await;
        let mut socket = service.connect(Version::V2, &anon()).await;
        let (mut joined, mut refused, mut end) = (0, 0, None);
        'sending: for first in (0..10_000).step_by(500) {
            for n in first..first + 500 {
                let topic = format!("realtime:many {n}");
                socket
                    .send(&json!(n), &json!(n), &topic, "phx_join", &json!({ "config": {} }))
                    .await;
            }
            for _ in 0..500 {
                match socket.try_next().await {
                    Ok(reply) if reply.payload["status"] == "ok" => joined += 1,
                    Ok(reply) => {
                        let reason = reply.payload["response"]["reason"].as_str().unwrap();
                        let (code, _) = reason.split_once(": ").unwrap();
                        assert!(
                            ["ChannelRateLimitReached", "ClientJoinRateLimitReached"]
                                .contains(&code)
                        );
                        refused += 1;
                    }
                    Err(code) => {
                        end = code;
                        break 'sending;
                    }
                }
            }
            bystanders.are_untouched().await;
        }
        let most = service.config.server.channels_per_connection_max;
        if joins_per_second_max > 10_000 {
            assert_eq!((joined, refused, end), (most, 10_000 - most, None));
            socket.heartbeat().await;
        } else {
            assert!(joined <= most, "{joined}");
            assert_eq!(end, Some(1001), "after {joined} and {refused}");
        }
        bystanders.are_untouched().await;
    }
}

#[tokio::test]
async fn a_meta_of_a_megabyte_closes_its_channel_and_no_other() {
    let service = shared().await;
    for version in VERSIONS {
        let topic = format!("realtime:a meta of a megabyte {version:?}");
        let mut other = service.connect(version, &anon()).await;
        assert_eq!(other.join(&topic, &public()).await["status"], "ok");
        let mut socket = service.connect(version, &anon()).await;
        let join_ref = socket.send_join(&topic, &public()).await;
        assert_eq!(socket.reply(&join_ref).await.payload["status"], "ok");
        assert_eq!(socket.join("realtime:its other channel", &public()).await["status"], "ok");
        socket.rest().await;
        other.rest().await;
        let track = json!({ "type": "presence", "event": "track", "payload": { "x": "x".repeat(1_000_000) } });
        socket.send(&join_ref, &json!("t"), &topic, "presence", &track).await;
        let system = socket.expect("system").await;
        assert_eq!(system.payload["message"], "Track message size exceeded");
        assert_eq!(socket.expect("phx_close").await.topic, topic);
        socket.nothing_came().await;
        other.nothing_came().await;
    }
}

/// Members hear who is `member`; deciding that takes a while.
const SLOW: &str = "
    create policy hears on realtime.messages for select to authenticated using (
        realtime.topic() like 'room%' and (select pg_sleep(0.1)) is not null
    );
    create policy writes on realtime.messages for insert to authenticated with check (
        realtime.topic() like 'room%' and (select pg_sleep(0.1)) is not null
    );
";

/// One client changes its token as fast as it can, and says something each time.
#[tokio::test]
async fn f66_a_flood_of_tokens_keeps_nobody_from_joining() {
    let service = Service::with(|config| {
        config.database.channel_pool_size = 1;
        config.database.channel_wait_timeout_ms = 10_000;
    })
    .await;
    service.admin().await.batch_execute(SLOW).await.unwrap();
    let mut socket = service.connect(Version::V2, &user(ALICE)).await;
    let topic = "realtime:room1";
    let join_ref = socket.send_join(topic, &private()).await;
    assert_eq!(socket.reply(&join_ref).await.payload["status"], "ok");
    for n in 0..200 {
        let claims = json!({ "role": "authenticated", "sub": ALICE, "exp": now() + 100 + n % 2 });
        let refresh = json!({ "access_token": token(&claims) });
        socket.send(&join_ref, &Value::Null, topic, "access_token", &refresh).await;
        socket.send(&join_ref, &Value::Null, topic, "broadcast", &json!({})).await;
    }
    socket.heartbeat().await;
    let mut other = service.connect(Version::V2, &user(BOB)).await;
    // All of them would take twice as long.
    let joined = timeout(Duration::from_secs(10), other.join("realtime:room2", &private())).await;
    assert_eq!(joined.expect("a place in the queue")["status"], "ok");
}

/// One client joins slow private topics and leaves them, all the time.
#[tokio::test]
async fn f66_a_flood_of_messages_is_refused_to_its_sender_alone() {
    const SENT: usize = 2000;
    let service = Service::with(|config| config.limits.connection_events_per_second_max = 50).await;
    let mut bystanders = Bystanders::of(&service, "a flood of messages").await;
    let topic = "realtime:a flood of messages";
    let mut listener = service.connect(Version::V2, &anon()).await;
    assert_eq!(listener.join(topic, &public()).await["status"], "ok");
    let mut socket = service.connect(Version::V2, &anon()).await;
    assert_eq!(socket.join(topic, &public()).await["status"], "ok");
    let push = json!({ "type": "broadcast", "event": "e", "payload": {} });
    for reference in 0..SENT {
        socket.send(&Value::Null, &json!(reference), topic, "broadcast", &push).await;
    }
    let (mut taken, mut refused) = (0, 0);
    while taken + refused < SENT {
        let reply = socket.next().await;
        match reply.payload["status"].as_str() {
            Some("ok") => taken += 1,
            Some("error") => {
                let reason = &reply.payload["response"]["reason"];
                assert_eq!(reason, "Too many messages per second");
                refused += 1;
            }
            _ => assert_eq!(reply.event, "presence_state"),
        }
    }
    assert!(taken >= 50 && refused > 0, "{taken} taken, {refused} refused");
    let heard = listener.rest().await;
    assert_eq!(heard.iter().filter(|message| message.event == "broadcast").count(), taken);
    bystanders.are_untouched().await;
    socket.heartbeat().await;
}

#[tokio::test]
async fn f62_json_that_is_odd_is_dropped_or_refused_and_what_decides_is_not_said_twice() {
    let service = shared().await;
    let mut bystanders = Bystanders::of(service, "odd json").await;
    let mut socket = service.connect(Version::V2, &anon()).await;
    let join = |payload: &str| format!(r#"["j","j","realtime:odd json","phx_join",{payload}]"#);
    for text in [
        "\u{feff}[null,\"j\",\"phoenix\",\"heartbeat\",{}]".to_owned(),
        r#"["j","j","realtime:\ud800","phx_join",{}]"#.into(),
        r#"["j","j","realtime:x\udc00","phx_join",{}]"#.into(),
        r#"["j","j","realtime:nul\u0000","phx_join",{}]"#.into(),
        join("{},"),
        join("{'config':{}}"),
        join("{\"config\":NaN}"),
        join("{\"config\":01}"),
        join("{\"config\":{}}}"),
        join(&format!("{{\"config\":{}}}", "9".repeat(100_000))),
        join(&format!("{{\"config\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000))),
    ] {
        let shown: String = text.chars().take(80).collect();
        socket.send_text(text).await;
        for message in socket.rest().await {
            assert_ne!(message.payload["status"], "ok", "{shown}: {message:?}");
        }
    }
    // What means nothing is passed over, however deep it is.
    let deep = format!("{{\"config\":{}1{}}}", "{\"a\":".repeat(100_000), "}".repeat(100_000));
    socket.send_text(join(&deep)).await;
    assert_eq!(socket.reply(&json!("j")).await.payload["status"], "ok");
    // Nobody may read one of them and act on the other.
    for payload in [
        r#"{"config":{"private":false,"private":true}}"#,
        r#"{"config":{},"config":{"private":true}}"#,
        r#"{"config":{},"access_token":"a","access_token":"b"}"#,
    ] {
        socket.send_text(join(payload)).await;
        let reply = socket.reply(&json!("j")).await.payload;
        assert_eq!(reply["status"], "error", "{payload}: {reply}");
    }
    // A number that fits no type is one nevertheless, where nothing is made of it.
    let topic = "realtime:odd numbers";
    assert_eq!(socket.join(topic, &public()).await["status"], "ok");
    socket.rest().await;
    let push = format!(
        r#"["1","9","{topic}","broadcast",{{"type":"broadcast","event":"e","payload":{{"n":1e400}}}}]"#
    );
    socket.send_text(push).await;
    socket.reply(&json!("9")).await;
    bystanders.are_untouched().await;
}

#[tokio::test]
async fn joining_and_leaving_slow_topics_keeps_nobody_from_joining() {
    let service = Service::with(|config| {
        config.database.channel_pool_size = 2;
        config.database.channel_wait_timeout_ms = 6000;
    })
    .await;
    let policy = "create policy hears on realtime.messages for select to authenticated using (
        realtime.topic() not like 'slow%' or (select pg_sleep(0.5)) is not null)";
    service.admin().await.batch_execute(policy).await.unwrap();
    let mut socket = service.connect(Version::V2, &user(ALICE)).await;
    for n in 0..40 {
        let topic = format!("realtime:slow{n}");
        let join_ref = socket.send_join(&topic, &private()).await;
        socket.send(&join_ref, &json!("l"), &topic, "phx_leave", &json!({})).await;
    }
    socket.heartbeat().await;
    let mut other = service.connect(Version::V2, &user(BOB)).await;
    let joined = timeout(Duration::from_secs(6), other.join("realtime:room", &private())).await;
    assert_eq!(joined.expect("a place of its own")["status"], "ok");
    // None of those that it left is asked about any more: they would take ten seconds.
    let joined = timeout(Duration::from_secs(6), socket.join("realtime:room", &private())).await;
    assert_eq!(joined.expect("its turn")["status"], "ok");
}

#[tokio::test]
async fn what_is_said_on_a_private_channel_before_leaving_is_heard() {
    let service = Service::start().await;
    service.admin().await.batch_execute(SLOW).await.unwrap();
    let topic = "realtime:room1";
    for version in VERSIONS {
        let mut listener = service.connect(version, &user(BOB)).await;
        assert_eq!(listener.join(topic, &private()).await["status"], "ok");
        let mut speaker = service.connect(version, &user(ALICE)).await;
        let join_ref = speaker.send_join(topic, &private()).await;
        assert_eq!(speaker.reply(&join_ref).await.payload["status"], "ok");
        let said = json!({ "type": "broadcast", "event": "e", "payload": { "last": "word" } });
        speaker.send(&join_ref, &json!("s"), topic, "broadcast", &said).await;
        speaker.send(&join_ref, &json!("l"), topic, "phx_leave", &json!({})).await;
        for reference in ["s", "l"] {
            let reply = speaker.expect("phx_reply").await;
            assert_eq!(
                (reply.reference, &reply.payload["status"]),
                (json!(reference), &json!("ok"))
            );
        }
        speaker.expect("phx_close").await;
        assert_eq!(listener.expect("broadcast").await.payload["payload"]["last"], "word");
    }
}

#[tokio::test]
async fn a_subject_that_postgres_cannot_take_is_allowed_nothing() {
    let service = Service::start().await;
    service.admin().await.batch_execute(SLOW).await.unwrap();
    let claims = json!({ "role": "authenticated", "sub": "a\0b", "exp": now() + 60 });
    let mut socket = service.connect(Version::V2, &sign(&claims, crate::service::SECRET)).await;
    let refusal = socket.join("realtime:room1", &private()).await;
    let reason = "Unauthorized: You do not have permissions to read from this Channel topic: room1";
    assert_eq!(refusal["response"]["reason"], reason);
    // Nothing of it is left on a connection that others get.
    let mut other = service.connect(Version::V2, &user(BOB)).await;
    let joined = timeout(DEADLINE, other.join("realtime:room1", &private())).await;
    assert_eq!(joined.unwrap()["status"], "ok");
}

/// Whoever may write in a room may fill the store with what is too much for whoever joins later.
#[tokio::test]
async fn large_stored_messages_are_replayed_as_far_as_they_fit() {
    let service = Service::start().await;
    let admin = service.admin().await;
    admin.batch_execute(SLOW).await.unwrap();
    let store = "insert into realtime.messages
        (topic, extension, event, private, inserted_at, payload, binary_payload)
        select 'room1', 'broadcast', n::text, true, now() at time zone 'utc' - n * interval '1 second',
            case when n % 2 = 0 then jsonb_build_object('x', repeat('x', bytes)) end,
            case when n % 2 = 1 then convert_to(repeat('x', bytes), 'UTF8') end
        from generate_series(1, 20) as n,
            lateral (select case when n in (2, 3) then 4000000 else 2000000 end as bytes) as b";
    let mut listener = service.connect(Version::V2, &anon()).await;
    listener.join("realtime:after", &json!({ "config": {} })).await;
    admin.batch_execute(store).await.unwrap();
    // They are in the log before this, and do not come live any more.
    let say = "select realtime.send('{}', 'e', 'after', false)";
    admin.batch_execute(say).await.unwrap();
    listener.expect("broadcast").await;
    let mut socket = service.connect(Version::V2, &user(ALICE)).await;
    let config = json!({ "private": true, "broadcast": { "replay": { "since": 1 } } });
    assert_eq!(socket.join("realtime:room1", &json!({ "config": config })).await["status"], "ok");
    let came: Vec<String> = socket
        .rest()
        .await
        .iter()
        .map(|message| message.payload["event"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(came, ["6", "5", "4", "1"]);
}
