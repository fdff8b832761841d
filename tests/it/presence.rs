//! Presence over the socket, on a whole service.
//!
//! Each test carries the number of the checklist's item (C48 to C56) in its name.

use serde_json::{Value, json};

use crate::service::{Received, Service, Socket, VERSIONS, Version, anon, shared};

/// A topic of a test's own in the shared service.
fn topic(name: &str) -> String {
    format!("realtime:presence {name}")
}

fn config(key: &str, enabled: bool) -> Value {
    json!({ "config": { "presence": { "key": key, "enabled": enabled } } })
}

/// A channel on a socket of its own.
struct Member {
    socket: Socket,
    topic: String,
    join_ref: Value,
}

impl Member {
    /// Joins; gives the first state, if presence is enabled.
    async fn join(service: &Service, version: Version, topic: &str, config: &Value) -> Self {
        let mut socket = service.connect(version, &anon()).await;
        let join_ref = socket.send_join(topic, config).await;
        let reply = socket.reply(&join_ref).await.payload;
        assert_eq!(reply["status"], "ok", "{reply}");
        Self { socket, topic: topic.into(), join_ref }
    }

    async fn push(&mut self, payload: &Value) -> Value {
        let reference = self.socket.reference();
        self.socket.send(&self.join_ref, &reference, &self.topic, "presence", payload).await;
        self.socket.reply(&reference).await.payload
    }

    async fn track(&mut self, meta: &Value) {
        let push = json!({ "type": "presence", "event": "track", "payload": meta });
        assert_eq!(self.push(&push).await, json!({ "status": "ok", "response": {} }));
    }

    async fn untrack(&mut self) {
        let push = json!({ "type": "presence", "event": "untrack" });
        assert_eq!(self.push(&push).await["status"], "ok");
    }

    async fn state(&mut self) -> Value {
        let Received { topic, event, payload, join_ref, .. } = self.socket.next().await;
        assert_eq!((&*topic, &*event), (&*self.topic, "presence_state"));
        if self.socket.version == Version::V2 {
            assert_eq!(join_ref, self.join_ref);
        }
        payload
    }

    async fn diff(&mut self) -> Value {
        let Received { topic, payload, join_ref, .. } = self.socket.expect("presence_diff").await;
        assert_eq!(topic, self.topic);
        assert_eq!(join_ref, Value::Null);
        payload
    }
}

/// The metas under a key, without their refs.
fn metas(presences: &Value, key: &str) -> Vec<Value> {
    let metas = presences[key]["metas"].as_array().unwrap_or_else(|| panic!("{key}: {presences}"));
    let stripped = |meta: &Value| {
        let mut meta = meta.clone();
        let members = meta.as_object_mut().unwrap();
        assert!(members.remove("phx_ref").unwrap().is_string());
        members.remove("phx_ref_prev");
        meta
    };
    metas.iter().map(stripped).collect()
}

#[tokio::test]
async fn c48_who_tracks_is_in_the_state_of_whoever_comes_later() {
    let service = shared().await;
    for version in VERSIONS {
        let topic = topic(&format!("c48 {version:?}"));
        let mut first = Member::join(service, version, &topic, &config("a", true)).await;
        assert_eq!(first.state().await, json!({}));
        first.track(&json!({ "n": 1 })).await;
        let diff = first.diff().await;
        assert_eq!(metas(&diff["joins"], "a"), [json!({ "n": 1 })]);
        assert_eq!(diff["leaves"], json!({}));
        let mut second = Member::join(service, version, &topic, &config("b", true)).await;
        let state = second.state().await;
        assert_eq!(metas(&state, "a"), [json!({ "n": 1 })]);
        assert_eq!(state["a"], diff["joins"]["a"]);
        second.track(&json!({ "n": 2 })).await;
        assert_eq!(metas(&first.diff().await["joins"], "b"), [json!({ "n": 2 })]);
    }
}

/// A long state is shared by all to whom it is told, whatever each one's frame begins with.
#[tokio::test]
async fn c48_a_long_state_is_whole_for_everybody_whatever_his_version_and_join() {
    let service = shared().await;
    let topic = topic("c48 long");
    let mut shown = Member::join(service, Version::V2, &topic, &config("a", false)).await;
    let meta = json!({ "text": "x".repeat(50_000) });
    shown.track(&meta).await;
    shown.state().await;
    for (version, reference) in
        [(Version::V2, "1"), (Version::V1, "1"), (Version::V2, "a longer ref"), (Version::V1, "7")]
    {
        let mut socket = service.connect(version, &anon()).await;
        let join_ref = json!(reference);
        socket.send(&join_ref, &join_ref, &topic, "phx_join", &config("w", true)).await;
        assert_eq!(socket.reply(&join_ref).await.payload["status"], "ok");
        let mut member = Member { socket, topic: topic.clone(), join_ref };
        assert_eq!(metas(&member.state().await, "a"), std::slice::from_ref(&meta));
        member.socket.nothing_came().await;
    }
}

#[tokio::test]
async fn c49_who_did_not_ask_gets_neither_state_nor_diffs_until_it_tracks() {
    let service = shared().await;
    for version in VERSIONS {
        let topic = topic(&format!("c49 {version:?}"));
        let mut quiet = Member::join(service, version, &topic, &config("q", false)).await;
        let mut other = Member::join(service, version, &topic, &config("o", true)).await;
        other.state().await;
        other.track(&json!({})).await;
        other.diff().await;
        quiet.socket.nothing_came().await;
        quiet.track(&json!({ "here": true })).await;
        assert_eq!(metas(&quiet.state().await, "o"), [json!({})]);
        assert_eq!(metas(&quiet.diff().await["joins"], "q"), [json!({ "here": true })]);
        other.diff().await;
    }
}

/// What supabase-js before 2.54 sends, which knows no `enabled`.
#[tokio::test]
async fn c49_a_client_older_than_the_option_gets_state_and_diffs() {
    let service = shared().await;
    for version in VERSIONS {
        let topic = topic(&format!("c49 old {version:?}"));
        let old = json!({ "config": { "presence": { "key": "" } } });
        let mut old = Member::join(service, version, &topic, &old).await;
        assert_eq!(old.state().await, json!({}));
        let mut other = Member::join(service, version, &topic, &config("o", false)).await;
        other.track(&json!({ "n": 1 })).await;
        assert_eq!(metas(&old.diff().await["joins"], "o"), [json!({ "n": 1 })]);
    }
}

#[tokio::test]
async fn c50_an_update_is_one_diff_and_the_same_again_is_none() {
    let service = shared().await;
    for version in VERSIONS {
        let topic = topic(&format!("c50 {version:?}"));
        let mut member = Member::join(service, version, &topic, &config("a", true)).await;
        member.state().await;
        member.track(&json!({ "x": 1 })).await;
        let first = member.diff().await["joins"]["a"]["metas"][0].take();
        member.track(&json!({ "x": 2 })).await;
        let diff = member.diff().await;
        let (join, leave) = (&diff["joins"]["a"]["metas"][0], &diff["leaves"]["a"]["metas"][0]);
        assert_eq!((&join["x"], &leave["x"]), (&json!(2), &json!(1)));
        assert_eq!(join["phx_ref_prev"], first["phx_ref"]);
        assert_eq!(leave["phx_ref"], first["phx_ref"]);
        assert_ne!(join["phx_ref"], first["phx_ref"]);
        member.track(&json!({ "x": 2 })).await;
        member.socket.nothing_came().await;
    }
}

#[tokio::test]
async fn c51_untracking_leaving_and_a_lost_socket_are_leaves() {
    let service = shared().await;
    for version in VERSIONS {
        let topic = topic(&format!("c51 {version:?}"));
        let mut watcher = Member::join(service, version, &topic, &config("w", true)).await;
        watcher.state().await;
        for way in ["untrack", "phx_leave", "drop"] {
            let mut member = Member::join(service, version, &topic, &config("m", true)).await;
            member.track(&json!({})).await;
            assert_eq!(metas(&watcher.diff().await["joins"], "m"), [json!({})]);
            match way {
                "untrack" => {
                    member.untrack().await;
                    assert_eq!(metas(&watcher.diff().await["leaves"], "m"), [json!({})]);
                    member.track(&json!({ "again": 1 })).await;
                    let diff = watcher.diff().await;
                    assert_eq!(metas(&diff["joins"], "m"), [json!({ "again": 1 })]);
                    drop(member);
                }
                "phx_leave" => {
                    let (join_ref, reference) = (member.join_ref.clone(), json!("9"));
                    let socket = &mut member.socket;
                    socket.send(&join_ref, &reference, &topic, "phx_leave", &json!({})).await;
                    socket.reply(&reference).await;
                }
                _ => drop(member),
            }
            assert_eq!(metas(&watcher.diff().await["leaves"], "m").len(), 1, "{way}");
        }
    }
}

#[tokio::test]
async fn c52_two_sockets_with_one_key_are_two_metas_of_it() {
    let service = shared().await;
    let topic = topic("c52");
    let mut one = Member::join(service, Version::V2, &topic, &config("k", true)).await;
    one.state().await;
    one.track(&json!({ "n": 1 })).await;
    one.diff().await;
    let mut two = Member::join(service, Version::V1, &topic, &config("k", true)).await;
    two.state().await;
    two.track(&json!({ "n": 2 })).await;
    one.diff().await;
    let mut late = Member::join(service, Version::V2, &topic, &config("l", true)).await;
    assert_eq!(metas(&late.state().await, "k"), [json!({ "n": 1 }), json!({ "n": 2 })]);
    drop(one);
    assert_eq!(metas(&late.diff().await["leaves"], "k"), [json!({ "n": 1 })]);
    let mut later = Member::join(service, Version::V2, &topic, &config("l", true)).await;
    assert_eq!(metas(&later.state().await, "k"), [json!({ "n": 2 })]);
}

#[tokio::test]
async fn c53_a_key_is_used_as_given_and_made_up_when_there_is_none() {
    let service = shared().await;
    for key in ["ключ 🔑 \"x\"", ""] {
        let topic = topic(&format!("c53 {key}"));
        let mut member = Member::join(service, Version::V2, &topic, &config(key, true)).await;
        member.state().await;
        member.track(&json!({})).await;
        let diff = member.diff().await;
        let (made, _) = diff["joins"].as_object().unwrap().iter().next().unwrap();
        if key.is_empty() {
            let admin = service.admin().await;
            let row = admin.query_one("select $1::text::uuid::text", &[made]).await.unwrap();
            assert_eq!(row.get::<_, &str>(0), made);
            assert_eq!(made.as_bytes()[14], b'4', "{made}");
        } else {
            assert_eq!(made, key);
        }
    }
}

#[tokio::test]
async fn c54_what_is_no_presence_is_refused() {
    let service = shared().await;
    for version in VERSIONS {
        let topic = topic(&format!("c54 {version:?}"));
        let mut member = Member::join(service, version, &topic, &config("a", true)).await;
        member.state().await;
        for meta in [json!(1), json!("x"), json!([]), json!(null)] {
            let push = json!({ "type": "presence", "event": "track", "payload": meta });
            let reply = member.push(&push).await;
            if meta.is_null() {
                // Missing: nothing is said of oneself.
                assert_eq!(reply["status"], "ok");
                member.diff().await;
                member.untrack().await;
                member.diff().await;
            } else {
                let reason = json!({ "reason": "Presence track payload must be a map" });
                assert_eq!(reply, json!({ "status": "error", "response": reason }));
            }
        }
        let reply = member.push(&json!({ "type": "presence", "event": "dance" })).await;
        assert_eq!(reply, json!({ "status": "error", "response": {} }));
        let reply = member.push(&json!({ "type": "presence" })).await;
        assert_eq!(reply, json!({ "status": "ok", "response": {} }));
        let push = json!({ "type": "presence", "event": "TRACK", "payload": { "a": 1 } });
        assert_eq!(member.push(&push).await["status"], "ok");
        member.diff().await;
        assert_eq!(member.push(&json!({ "event": "UnTrack" })).await["status"], "ok");
        member.diff().await;
    }
}

#[tokio::test]
async fn c55_after_a_reconnection_the_state_has_no_stale_meta() {
    let service = shared().await;
    let topic = topic("c55");
    let mut member = Member::join(service, Version::V2, &topic, &config("a", true)).await;
    member.state().await;
    member.track(&json!({ "n": 1 })).await;
    let mut watcher = Member::join(service, Version::V2, &topic, &config("w", true)).await;
    watcher.state().await;
    drop(member);
    watcher.diff().await;
    let mut member = Member::join(service, Version::V2, &topic, &config("a", true)).await;
    assert_eq!(member.state().await, json!({}));
    member.track(&json!({ "n": 2 })).await;
    assert_eq!(metas(&member.diff().await["joins"], "a"), [json!({ "n": 2 })]);
}

#[tokio::test]
async fn c56_too_many_or_too_large_presences_end_the_channel() {
    let service = Service::with(|config| {
        config.limits.presence_events_per_window_max = 3;
        config.presence.meta_bytes_max = 1024;
    })
    .await;
    for (version, large) in
        VERSIONS.into_iter().flat_map(|version| [(version, true), (version, false)])
    {
        let topic = topic("c56");
        let mut member = Member::join(&service, version, &topic, &config("a", false)).await;
        let meta = if large { "x".repeat(2000) } else { String::new() };
        let pushes = if large { 1 } else { 4 };
        for number in 0..pushes {
            let meta = json!({ "n": number, "x": meta });
            let push = json!({ "type": "presence", "event": "track", "payload": meta });
            let reference = member.socket.reference();
            let join_ref = member.join_ref.clone();
            member.socket.send(&join_ref, &reference, &topic, "presence", &push).await;
        }
        let mut system = member.socket.next().await;
        while system.event != "system" {
            system = member.socket.next().await;
        }
        let expected = if large {
            "Track message size exceeded"
        } else {
            "Client presence rate limit exceeded"
        };
        assert_eq!(system.payload["message"], expected);
        assert_eq!(system.payload["status"], "error");
        let close = member.socket.expect("phx_close").await;
        assert_eq!(close.reference, member.join_ref);
    }
}

#[tokio::test]
async fn f82_a_member_cannot_choose_its_own_ref() {
    let service = shared().await;
    let topic = topic("spoof");
    let mut member = Member::join(service, Version::V2, &topic, &config("a", true)).await;
    member.state().await;
    member.track(&json!({ "phx_ref": "mine", "phx_ref_prev": "yours", "x": 1 })).await;
    let diff = member.diff().await;
    let meta = &diff["joins"]["a"]["metas"][0];
    assert_ne!(meta["phx_ref"], "mine");
    assert_eq!(meta.get("phx_ref_prev"), None);
    assert_eq!(meta["x"], 1);
}
