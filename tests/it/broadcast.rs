//! Broadcasts over the socket, on a whole service.
//!
//! Each test carries the number of the checklist's item (C27 to C36) in its name.

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::service::{Service, Socket, VERSIONS, Version, anon, shared};

/// A topic of a test's own in the shared service.
fn topic(name: &str) -> String {
    format!("realtime:broadcast {name}")
}

fn config(ack: bool, echo: bool) -> Value {
    json!({ "config": { "broadcast": { "ack": ack, "self": echo } } })
}

fn said(event: &str, payload: &Value) -> Value {
    json!({ "type": "broadcast", "event": event, "payload": payload })
}

/// A channel of a socket of its own.
struct Channel {
    socket: Socket,
    topic: String,
    join_ref: Value,
}

impl Channel {
    async fn join(service: &Service, version: Version, topic: &str, payload: &Value) -> Self {
        let mut socket = service.connect(version, &anon()).await;
        let join_ref = socket.send_join(topic, payload).await;
        let reply = socket.reply(&join_ref).await.payload;
        assert_eq!(reply["status"], "ok", "{reply}");
        Self { socket, topic: topic.into(), join_ref }
    }

    /// Sends a text broadcast; its ref.
    async fn say(&mut self, payload: &Value) -> Value {
        let reference = self.socket.reference();
        self.socket.send(&self.join_ref, &reference, &self.topic, "broadcast", payload).await;
        reference
    }

    /// Sends a binary one; its ref.
    async fn say_kind_3(&mut self, event: &str, json: bool, payload: &[u8]) -> Value {
        let reference = self.socket.reference();
        let refs = (&self.join_ref, &reference);
        self.socket.send_kind_3(refs, &self.topic, event, json, payload).await;
        reference
    }

    async fn hear(&mut self) -> Value {
        let message = self.socket.expect("broadcast").await;
        assert_eq!(message.topic, self.topic);
        assert_eq!((message.join_ref, message.reference), (Value::Null, Value::Null));
        message.payload
    }
}

#[tokio::test]
async fn c27_c29_everybody_else_hears_and_the_sender_if_it_wants_to() {
    let service = shared().await;
    for sender in VERSIONS {
        for receiver in VERSIONS {
            let topic = topic(&format!("c27 {sender:?} {receiver:?}"));
            let mut quiet = Channel::join(service, sender, &topic, &config(false, false)).await;
            let mut echo = Channel::join(service, sender, &topic, &config(false, true)).await;
            let mut other = Channel::join(service, receiver, &topic, &config(false, false)).await;
            let first = said("first", &json!({ "a": [1, "x"] }));
            quiet.say(&first).await;
            assert_eq!(other.hear().await, first);
            assert_eq!(echo.hear().await, first);
            let second = said("second", &json!({}));
            echo.say(&second).await;
            assert_eq!(echo.hear().await, second);
            assert_eq!(other.hear().await, second);
            assert_eq!(quiet.hear().await, second);
            for channel in [&mut quiet, &mut echo, &mut other] {
                channel.socket.nothing_came().await;
            }
        }
    }
}

#[tokio::test]
async fn c28_a_broadcast_is_answered_only_where_that_was_asked_for() {
    let service = shared().await;
    for version in VERSIONS {
        let topic = topic(&format!("c28 {version:?}"));
        let mut asks = Channel::join(service, version, &topic, &config(true, false)).await;
        let mut other = Channel::join(service, version, &topic, &config(false, false)).await;
        let reference = asks.say(&said("e", &json!({}))).await;
        let reply = asks.socket.reply(&reference).await;
        assert_eq!(reply.payload, json!({ "status": "ok", "response": {} }));
        assert_eq!(other.hear().await, said("e", &json!({})));
        other.say(&said("e", &json!({}))).await;
        other.socket.nothing_came().await;
        asks.hear().await;
    }
}

#[tokio::test]
async fn c30_json_in_a_binary_frame_reaches_each_version_in_its_own_way() {
    let service = shared().await;
    let topic = topic("c30");
    let mut sender = Channel::join(service, Version::V2, &topic, &config(true, true)).await;
    let mut old = Channel::join(service, Version::V1, &topic, &config(false, false)).await;
    let reference = sender.say_kind_3("msg", true, br#"{"a": 1}"#).await;
    sender.socket.reply(&reference).await;
    let new = json!({ "kind": 4, "event": "msg", "payload": { "a": 1 } });
    assert_eq!(sender.hear().await, new);
    assert_eq!(old.hear().await, said("msg", &json!({ "a": 1 })));
}

#[tokio::test]
async fn c31_opaque_bytes_reach_version_2_alone() {
    let service = shared().await;
    let topic = topic("c31");
    let mut sender = Channel::join(service, Version::V2, &topic, &config(false, false)).await;
    let mut new = Channel::join(service, Version::V2, &topic, &config(false, false)).await;
    let mut old = Channel::join(service, Version::V1, &topic, &config(false, false)).await;
    sender.say_kind_3("msg", false, &[0, 255, 1]).await;
    let bytes = json!({ "kind": 4, "event": "msg", "binary": [0, 255, 1] });
    assert_eq!(new.hear().await, bytes);
    old.socket.nothing_came().await;
    sender.say(&said("after", &json!({}))).await;
    assert_eq!(old.hear().await, said("after", &json!({})));
}

#[tokio::test]
async fn c32_a_text_broadcast_is_passed_on_with_everything_in_it() {
    let service = shared().await;
    for version in VERSIONS {
        let topic = topic(&format!("c32 {version:?}"));
        let mut sender = Channel::join(service, version, &topic, &config(false, false)).await;
        let mut other = Channel::join(service, version, &topic, &config(false, false)).await;
        for payload in [json!({}), json!({ "type": 7, "more": { "x": [null] }, "event": "e" })] {
            sender.say(&payload).await;
            assert_eq!(other.hear().await, payload);
        }
    }
}

#[tokio::test]
async fn c33_names_of_many_bytes_survive() {
    let service = shared().await;
    let long = format!("realtime:{}", "ü".repeat(123));
    assert_eq!(long.len(), 255);
    for topic in [topic("c33 日本 🦀"), long] {
        for receiver in VERSIONS {
            let mut sender =
                Channel::join(service, Version::V2, &topic, &config(false, false)).await;
            let mut other = Channel::join(service, receiver, &topic, &config(false, false)).await;
            for event in ["ж".repeat(127) + "x", "🦀".into()] {
                sender.say_kind_3(&event, true, b"[1]").await;
                let heard = other.hear().await;
                assert_eq!((&heard["event"], &heard["payload"]), (&json!(event), &json!([1])));
            }
        }
    }
}

#[tokio::test]
async fn c34_a_payload_over_the_limit_is_refused_to_its_sender() {
    let service = shared().await;
    for version in VERSIONS {
        let topic = topic(&format!("c34 {version:?}"));
        let mut sender = Channel::join(service, version, &topic, &config(true, false)).await;
        let mut other = Channel::join(service, version, &topic, &config(false, false)).await;
        let large = "x".repeat(3_000_600);
        let reference = sender.say(&said("e", &json!({ "a": large }))).await;
        let reply = sender.socket.reply(&reference).await.payload;
        assert_eq!(reply, json!({ "status": "error", "response": "payload_size_exceeded" }));
        if version == Version::V2 {
            let reference = sender.say_kind_3("e", false, large.as_bytes()).await;
            let reply = sender.socket.reply(&reference).await.payload;
            assert_eq!(reply["response"], "payload_size_exceeded");
        }
        let fits = said("e", &json!({ "a": "x".repeat(2_999_900) }));
        sender.say(&fits).await;
        assert_eq!(other.hear().await, fits);
    }
}

#[tokio::test]
async fn what_is_no_broadcast_is_refused_to_its_sender_alone() {
    let service = shared().await;
    let topic = topic("malformed");
    let mut sender = Channel::join(service, Version::V2, &topic, &config(false, false)).await;
    let mut other = Channel::join(service, Version::V2, &topic, &config(false, false)).await;
    for bytes in [&b"{"[..], b"", b"{\"a\":1} x", b"\"\xff\""] {
        let reference = sender.say_kind_3("e", true, bytes).await;
        let reply = sender.socket.reply(&reference).await.payload;
        assert_eq!(reply["status"], "error", "{bytes:?}");
        assert_eq!(reply["response"]["reason"], "Broadcast payload is not valid JSON");
    }
    for payload in [json!([]), json!("x"), json!(null), json!(1)] {
        let reference = sender.say(&payload).await;
        let reply = sender.socket.reply(&reference).await.payload;
        assert_eq!(reply["response"]["reason"], "Broadcast payload must be a map");
    }
    other.socket.nothing_came().await;
    sender.say(&said("e", &json!({}))).await;
    assert_eq!(other.hear().await, said("e", &json!({})));
}

#[tokio::test]
async fn c36_a_thousand_messages_arrive_in_order() {
    let service = shared().await;
    for version in VERSIONS {
        let topic = topic(&format!("c36 {version:?}"));
        let mut sender = Channel::join(service, version, &topic, &config(false, false)).await;
        let mut other = Channel::join(service, version, &topic, &config(false, false)).await;
        for number in 0..1000 {
            sender.say(&said("n", &json!({ "n": number }))).await;
        }
        for number in 0..1000 {
            assert_eq!(other.hear().await["payload"]["n"], number);
        }
    }
}

#[tokio::test]
async fn a_channel_that_left_hears_nothing_and_says_nothing() {
    let service = shared().await;
    let topic = topic("left");
    let mut stays = Channel::join(service, Version::V2, &topic, &config(true, false)).await;
    let mut leaves = Channel::join(service, Version::V2, &topic, &config(false, false)).await;
    let reference = leaves.socket.reference();
    let join_ref = leaves.join_ref.clone();
    leaves.socket.send(&join_ref, &reference, &topic, "phx_leave", &json!({})).await;
    leaves.socket.reply(&reference).await;
    leaves.socket.expect("phx_close").await;
    let reference = stays.say(&said("e", &json!({}))).await;
    stays.socket.reply(&reference).await;
    leaves.socket.nothing_came().await;
    let reference = leaves.say(&said("e", &json!({}))).await;
    let reply = leaves.socket.reply(&reference).await.payload;
    assert_eq!(reply["response"]["reason"], "unmatched topic");
    stays.socket.nothing_came().await;
}

#[tokio::test]
async fn what_is_said_right_after_a_join_waits_for_it() {
    let service = shared().await;
    let topic = topic("eager");
    let mut other = Channel::join(service, Version::V2, &topic, &config(false, false)).await;
    let mut socket = service.connect(Version::V2, &anon()).await;
    let join = json!(["1", "1", topic, "phx_join", config(false, false)]).to_string();
    let say = json!(["1", "2", topic, "broadcast", said("e", &json!({}))]).to_string();
    socket.send_message(Message::text(join)).await;
    socket.send_message(Message::text(say)).await;
    assert_eq!(other.hear().await, said("e", &json!({})));
}
