//! Private channels and replay over the socket, on a whole service.
//!
//! Each test carries the number of the checklist's item (C47, C80 to C87) in its name.

use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::service::{
    ALICE, BOB, Received, Service, Socket, VERSIONS, Version, anon, now, service_role, sign, token,
    user,
};

/// Who may do what: `member` reads and writes rooms, `reader` only hears them, `watcher` only sees
/// presence, `speaker` hears and writes but does not see presence, by the claim `does`; `raises`
/// makes the policy fail.
const POLICIES: &str = "
    create function public.does() returns text language plpgsql stable as $$
    begin
        if auth.jwt() ->> 'does' = 'raises' then raise exception 'the secret of the policy'; end if;
        return auth.jwt() ->> 'does';
    end $$;
    create policy hears on realtime.messages for select to authenticated using (
        realtime.topic() like 'room%' and realtime.messages.extension = 'broadcast'
        and public.does() in ('member', 'reader', 'speaker')
    );
    create policy sees on realtime.messages for select to authenticated using (
        realtime.topic() like 'room%' and realtime.messages.extension = 'presence'
        and public.does() in ('member', 'watcher')
    );
    create policy writes on realtime.messages for insert to authenticated with check (
        realtime.topic() like 'room%' and public.does() in ('member', 'speaker')
    );
    create policy shown on realtime.messages for select to authenticated using (
        current_setting('request.headers')::json ->> 'x-room' = realtime.topic()
        and realtime.messages.extension = 'broadcast'
        and auth.uid()::text = current_setting('request.jwt.claim.sub')
    );
";

async fn start() -> Service {
    let service = Service::start().await;
    service.admin().await.batch_execute(POLICIES).await.unwrap();
    service
}

fn who(does: &str) -> String {
    token(&json!({ "role": "authenticated", "sub": ALICE, "does": does }))
}

fn config(more: &Value) -> Value {
    let mut config = json!({ "private": true, "broadcast": { "ack": true } });
    for (name, value) in more.as_object().unwrap() {
        config[name] = value.clone();
    }
    json!({ "config": config })
}

struct Channel {
    socket: Socket,
    topic: String,
    join_ref: Value,
}

impl Channel {
    async fn try_join(
        service: &Service,
        version: Version,
        token: &str,
        topic: &str,
        config: &Value,
    ) -> Result<Self, String> {
        let mut socket = service.connect(version, token).await;
        let topic = format!("realtime:{topic}");
        let join_ref = socket.send_join(&topic, config).await;
        let reply = socket.reply(&join_ref).await.payload;
        match reply["status"].as_str() {
            Some("ok") => Ok(Self { socket, topic, join_ref }),
            _ => Err(reply["response"]["reason"].as_str().unwrap().to_owned()),
        }
    }

    async fn join(service: &Service, version: Version, does: &str, topic: &str) -> Self {
        let config = config(&json!({}));
        Self::try_join(service, version, &who(does), topic, &config).await.unwrap()
    }

    async fn push(&mut self, event: &str, payload: &Value) -> Value {
        let reference = self.socket.reference();
        self.socket.send(&self.join_ref, &reference, &self.topic, event, payload).await;
        self.socket.reply(&reference).await.payload
    }

    async fn say(&mut self, n: u32) -> Value {
        let said = json!({ "type": "broadcast", "event": "e", "payload": { "n": n } });
        self.push("broadcast", &said).await
    }

    async fn hear(&mut self) -> Value {
        self.socket.expect("broadcast").await.payload["payload"]["n"].take()
    }

    async fn authenticate(&mut self, token: &str) {
        let reference = self.socket.reference();
        let payload = json!({ "access_token": token });
        self.socket.send(&self.join_ref, &reference, &self.topic, "access_token", &payload).await;
    }

    /// The sentence with which the channel is ended.
    async fn shut_down(&mut self) -> String {
        let mut system = self.socket.next().await;
        while system.event != "system" {
            system = self.socket.next().await;
        }
        assert_eq!(system.payload["status"], "error");
        assert_eq!(system.payload["extension"], "system");
        let close = self.socket.expect("phx_close").await;
        assert_eq!(close.reference, self.join_ref);
        system.payload["message"].as_str().unwrap().to_owned()
    }
}

fn unauthorised(topic: &str) -> String {
    format!("Unauthorized: You do not have permissions to read from this Channel topic: {topic}")
}

#[tokio::test]
async fn c80_a_private_channel_is_joined_by_those_whom_a_policy_lets_read() {
    let service = start().await;
    for version in VERSIONS {
        let join = |token: String, topic: &'static str| {
            let service = &service;
            async move {
                let config = config(&json!({}));
                Channel::try_join(service, version, &token, topic, &config).await.map(|_| ())
            }
        };
        assert_eq!(join(who("member"), "room1").await, Ok(()));
        assert_eq!(join(who("reader"), "room1").await, Ok(()));
        assert_eq!(join(service_role(), "anything").await, Ok(()));
        assert_eq!(join(who("stranger"), "room1").await, Err(unauthorised("room1")));
        assert_eq!(join(who("member"), "hall").await, Err(unauthorised("hall")));
        assert_eq!(join(anon(), "room1").await, Err(unauthorised("room1")));
        // What a policy raises is nobody's business.
        assert_eq!(join(who("raises"), "room1").await, Err(unauthorised("room1")));
    }
}

#[tokio::test]
async fn c35_c81_who_may_not_write_is_told_and_not_heard() {
    let service = start().await;
    for version in VERSIONS {
        let mut member = Channel::join(&service, version, "member", "room1").await;
        let mut reader = Channel::join(&service, version, "reader", "room1").await;
        let public = json!({ "config": { "broadcast": { "ack": true } } });
        let mut outside =
            Channel::try_join(&service, version, &who("member"), "room1", &public).await.unwrap();
        assert_eq!(member.say(1).await, json!({ "status": "ok", "response": {} }));
        assert_eq!(reader.hear().await, 1);
        let refused = json!({ "status": "error", "response": { "reason": "Unauthorized" } });
        assert_eq!(reader.say(2).await, refused);
        // A public channel of the same name is another room.
        outside.say(3).await;
        member.say(4).await;
        assert_eq!(reader.hear().await, 4);
        for channel in [&mut member, &mut reader, &mut outside] {
            channel.socket.nothing_came().await;
        }
    }
}

#[tokio::test]
async fn c82_broadcasts_and_presence_are_granted_apart() {
    let service = start().await;
    let presence = config(&json!({ "presence": { "enabled": true, "key": "k" } }));
    for version in VERSIONS {
        let join = |does| {
            let (service, presence, token) = (&service, &presence, who(does));
            async move { Channel::try_join(service, version, &token, "room2", presence).await }
        };
        let mut member = join("member").await.unwrap();
        assert_eq!(member.socket.expect("presence_state").await.payload, json!({}));
        let mut watcher = join("watcher").await.unwrap();
        watcher.socket.expect("presence_state").await;
        let mut reader = join("reader").await.unwrap();
        let track = json!({ "type": "presence", "event": "track", "payload": { "a": 1 } });
        assert_eq!(member.push("presence", &track).await["status"], "ok");
        member.say(1).await;
        watcher.socket.expect("presence_diff").await;
        watcher.socket.nothing_came().await;
        assert_eq!(reader.hear().await, 1);
        reader.socket.nothing_came().await;
        let declined = json!({ "status": "error", "response": {} });
        assert_eq!(watcher.push("presence", &track).await, declined);
        // Presence alone lets nobody in who did not ask for it.
        let joined =
            Channel::try_join(&service, version, &who("watcher"), "room2", &config(&json!({})))
                .await;
        assert_eq!(joined.map(|_| ()).unwrap_err(), unauthorised("room2"));
    }
}

/// A channel that asked for presence, and one that did not.
async fn shown_and_quiet(
    service: &Service,
    version: Version,
    does: &str,
    topic: &str,
) -> (Channel, Channel) {
    let options = config(&json!({ "presence": { "enabled": true, "key": "shown" } }));
    let shown = Channel::try_join(service, version, &who("member"), topic, &options).await;
    let mut shown = shown.unwrap();
    assert_eq!(shown.socket.expect("presence_state").await.payload, json!({}));
    shown.track(1).await;
    assert_eq!(shown.changed("joins").await, json!({ "shown": 1 }));
    let options = config(&json!({ "presence": { "enabled": false, "key": "quiet" } }));
    let quiet = Channel::try_join(service, version, &who(does), topic, &options).await.unwrap();
    (shown, quiet)
}

/// Of each key of a state or a diff, the number that its one meta has.
fn numbers(presences: &Value) -> Value {
    let presences = presences.as_object().unwrap().iter();
    presences.map(|(key, presence)| (key.clone(), presence["metas"][0]["n"].clone())).collect()
}

impl Channel {
    async fn track(&mut self, n: u32) {
        let push = json!({ "type": "presence", "event": "track", "payload": { "n": n } });
        assert_eq!(self.push("presence", &push).await, json!({ "status": "ok", "response": {} }));
    }

    /// The state that comes next, whose join it names where the version has room for that.
    async fn state(&mut self) -> Value {
        let Received { topic, event, payload, join_ref, .. } = self.socket.next().await;
        assert_eq!((&*topic, &*event), (&*self.topic, "presence_state"), "{payload}");
        if self.socket.version == Version::V2 {
            assert_eq!(join_ref, self.join_ref);
        }
        numbers(&payload)
    }

    /// The joins or the leaves of the diff that comes next.
    async fn changed(&mut self, what: &str) -> Value {
        let Received { event, payload, .. } = self.socket.next().await;
        assert_eq!(event, "presence_diff", "{payload}");
        numbers(&payload[what])
    }
}

#[tokio::test]
async fn c82_who_did_not_ask_for_presence_sees_it_once_it_shows_itself() {
    let service = start().await;
    for version in VERSIONS {
        for first in ["track", "broadcast"] {
            let topic = format!("room {version:?} {first}");
            let (mut shown, mut quiet) = shown_and_quiet(&service, version, "member", &topic).await;
            if first == "broadcast" {
                quiet.say(1).await;
                assert_eq!(shown.hear().await, 1);
            }
            shown.track(2).await;
            shown.changed("joins").await;
            quiet.socket.nothing_came().await;
            quiet.track(3).await;
            assert_eq!(quiet.state().await, json!({ "shown": 2 }));
            assert_eq!(quiet.changed("joins").await, json!({ "quiet": 3 }));
            assert_eq!(shown.changed("joins").await, json!({ "quiet": 3 }));
            shown.track(4).await;
            assert_eq!(quiet.changed("joins").await, json!({ "shown": 4 }));
            // There is one state.
            quiet.track(5).await;
            assert_eq!(quiet.changed("leaves").await, json!({ "quiet": 3 }));
            quiet.socket.nothing_came().await;
        }
    }
}

#[tokio::test]
async fn c82_who_may_not_see_presence_may_show_itself() {
    let service = start().await;
    for version in VERSIONS {
        let topic = format!("room {version:?}");
        let (mut shown, mut quiet) = shown_and_quiet(&service, version, "speaker", &topic).await;
        for n in [2, 3] {
            quiet.track(n).await;
            assert_eq!(shown.changed("joins").await, json!({ "quiet": n }));
        }
        shown.track(4).await;
        shown.changed("joins").await;
        quiet.socket.nothing_came().await;
        // It has shown itself: a token that may see shows it who is there.
        quiet.authenticate(&who("member")).await;
        assert_eq!(quiet.state().await, json!({ "quiet": 3, "shown": 4 }));
        shown.track(5).await;
        assert_eq!(quiet.changed("joins").await, json!({ "shown": 5 }));
    }
}

#[tokio::test]
async fn c84_who_came_to_see_presence_by_a_track_ends_with_a_token_that_may_not() {
    let service = start().await;
    for version in VERSIONS {
        let topic = format!("room {version:?}");
        let (mut shown, mut quiet) = shown_and_quiet(&service, version, "member", &topic).await;
        // Without presence it is asked about none.
        quiet.authenticate(&who("speaker")).await;
        quiet.say(1).await;
        assert_eq!(shown.hear().await, 1);
        quiet.authenticate(&who("member")).await;
        quiet.track(2).await;
        assert_eq!(quiet.state().await, json!({ "shown": 1 }));
        quiet.changed("joins").await;
        shown.changed("joins").await;
        quiet.authenticate(&who("speaker")).await;
        let lost = "You no longer have permission to read from this Channel topic";
        assert_eq!(quiet.shut_down().await, format!("{lost}: {topic}"));
        assert_eq!(shown.changed("leaves").await, json!({ "quiet": 2 }));
        shown.track(3).await;
        shown.changed("joins").await;
        quiet.socket.nothing_came().await;
    }
}

/// Who is declined has not shown itself, and has lost nothing when he may not see.
#[tokio::test]
async fn c84_a_declined_track_shows_nothing_and_costs_no_channel() {
    let service = start().await;
    let sees = "create policy sees_too on realtime.messages for select to authenticated using (
        realtime.messages.extension = 'presence' and public.does() = 'reader')";
    service.admin().await.batch_execute(sees).await.unwrap();
    for version in VERSIONS {
        let topic = format!("room {version:?}");
        let (mut shown, mut quiet) = shown_and_quiet(&service, version, "reader", &topic).await;
        let track = json!({ "type": "presence", "event": "track", "payload": {} });
        let declined = json!({ "status": "error", "response": {} });
        assert_eq!(quiet.push("presence", &track).await, declined);
        shown.track(2).await;
        shown.changed("joins").await;
        quiet.socket.nothing_came().await;
        quiet.authenticate(&who("speaker")).await;
        quiet.track(3).await;
        assert_eq!(shown.changed("joins").await, json!({ "quiet": 3 }));
        quiet.socket.nothing_came().await;
    }
}

#[tokio::test]
async fn c83_policies_see_the_topic_the_user_and_the_headers() {
    let service = start().await;
    for (header, allowed) in [(Some("hall"), true), (Some("room1"), false), (None, false)] {
        let url = service.url(&format!("/socket/websocket?apikey={}&vsn=2.0.0", user(BOB)));
        let headers: Vec<_> = header.map(|value| ("x-room", value)).into_iter().collect();
        let mut socket = Socket::open(Version::V2, &url, &headers).await.unwrap();
        let reply = socket.join("realtime:hall", &config(&json!({}))).await;
        assert_eq!(reply["status"] == "ok", allowed, "{header:?} {reply}");
    }
}

#[tokio::test]
async fn c84_another_token_is_decided_anew() {
    let service = start().await;
    for version in VERSIONS {
        let mut member = Channel::join(&service, version, "member", "room3").await;
        let mut other = Channel::join(&service, version, "member", "room3").await;
        // Nothing to decide.
        other.authenticate("sb_publishable_x").await;
        other.authenticate(&who("member")).await;
        assert_eq!(other.say(1).await["status"], "ok");
        assert_eq!(member.hear().await, 1);
        // What may be written is asked again.
        other.authenticate(&who("reader")).await;
        assert_eq!(other.say(2).await["response"]["reason"], "Unauthorized");
        other.authenticate(&who("member")).await;
        assert_eq!(other.say(3).await["status"], "ok");
        assert_eq!(member.hear().await, 3);
        other.authenticate(&who("stranger")).await;
        let denied = "You do not have permissions to read from this Channel topic: room3";
        assert_eq!(other.shut_down().await, denied);
        member.say(4).await;
        other.socket.nothing_came().await;
        let expired = json!({ "role": "authenticated", "sub": ALICE, "exp": now() - 5 });
        member.authenticate(&sign(&expired, crate::service::SECRET)).await;
        assert!(member.shut_down().await.starts_with("Token has expired"));
    }
}

/// While the store is read for a member's replay, the member becomes somebody else.
#[tokio::test]
async fn c84_nothing_is_told_by_a_token_that_was_replaced_while_the_join_waited() {
    let service = start().await;
    let admin = service.admin().await;
    let policy =
        "create function public.is_free(payload jsonb) returns boolean language plpgsql as $$
        begin
            if payload ? 'n' then perform pg_advisory_xact_lock_shared(84); end if;
            return true;
        end $$;
        create policy waits on realtime.messages as restrictive for select to authenticated
            using (public.is_free(payload))";
    admin.batch_execute(policy).await.unwrap();
    let mut speaker = witness(&service, "room84").await;
    for (becomes, told) in [("stranger", false), ("reader", true)] {
        store(&admin, "room84", 0..1).await;
        assert_eq!(speaker.hear().await, 0);
        admin.batch_execute("select pg_advisory_lock(84)").await.unwrap();
        let mut socket = service.connect(Version::V2, &who("member")).await;
        let topic = "realtime:room84".to_owned();
        let asked = config(&json!({ "broadcast": { "replay": { "since": 1 } } }));
        let join_ref = socket.send_join(&topic, &asked).await;
        let waits =
            "select exists (select from pg_locks where locktype = 'advisory' and not granted
            and database = (select oid from pg_database where datname = current_database()))";
        let reading =
            async { while !admin.query_one(waits, &[]).await.unwrap().get::<_, bool>(0) {} };
        tokio::time::timeout(crate::service::DEADLINE, reading).await.unwrap();
        // It is in the room, and this waits for it.
        speaker.say(1).await;
        let mut member = Channel { socket, topic, join_ref: join_ref.clone() };
        member.authenticate(&who(becomes)).await;
        member.socket.heartbeat().await;
        admin.batch_execute("select pg_advisory_unlock(84)").await.unwrap();
        let reply = member.socket.reply(&join_ref).await.payload;
        if told {
            assert_eq!(reply["status"], "ok");
            assert_eq!(member.hear().await, 0);
        } else {
            assert_eq!(reply["response"]["reason"], unauthorised("room84"));
        }
        speaker.say(2).await;
        if told {
            assert_eq!(member.hear().await, 0, "stored before, for the stranger");
            assert_eq!(member.hear().await, 2);
        }
        member.socket.nothing_came().await;
    }
}

#[tokio::test]
async fn c84_losing_one_of_two_permissions_ends_the_channel() {
    let service = start().await;
    let presence = config(&json!({ "presence": { "enabled": true } }));
    let joined = Channel::try_join(&service, Version::V2, &who("member"), "room4", &presence).await;
    let mut member = joined.unwrap();
    member.authenticate(&who("watcher")).await;
    let lost = "You no longer have permission to read from this Channel topic: room4";
    assert_eq!(member.shut_down().await, lost);
}

#[tokio::test]
async fn c85_a_private_channel_ends_with_its_token() {
    let service = start().await;
    let claims = json!({
        "role": "authenticated", "sub": ALICE, "does": "member", "exp": now() + 2,
    });
    let token = sign(&claims, crate::service::SECRET);
    let joined =
        Channel::try_join(&service, Version::V2, &token, "room5", &config(&json!({}))).await;
    let mut member = joined.unwrap();
    let mut other = Channel::join(&service, Version::V2, "member", "room5").await;
    assert_eq!(member.shut_down().await, "Token has expired 0 seconds ago");
    let expiry = claims["exp"].as_u64().unwrap();
    assert!((expiry..=expiry + 1).contains(&now()), "{expiry} {}", now());
    other.say(1).await;
    member.socket.nothing_came().await;
}

#[tokio::test]
async fn c86_private_only_refuses_public_channels() {
    let service = Service::with(|config| config.limits.private_only = true).await;
    service.admin().await.batch_execute(POLICIES).await.unwrap();
    let mut socket = service.connect(Version::V2, &who("member")).await;
    let reply = socket.join("realtime:room", &json!({ "config": {} })).await;
    let reason = "PrivateOnly: This project only allows private channels";
    assert_eq!(reply["response"]["reason"], reason);
    Channel::join(&service, Version::V2, "member", "room").await;
}

#[tokio::test]
async fn c87_what_is_tried_to_find_out_leaves_nothing() {
    let service = start().await;
    let mut member = Channel::join(&service, Version::V2, "member", "room6").await;
    let mut reader = Channel::join(&service, Version::V2, "reader", "room6").await;
    member.say(1).await;
    reader.say(2).await;
    assert_eq!(reader.hear().await, 1);
    let rows = "select count(*) from realtime.messages";
    let row = service.admin().await.query_one(rows, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 0);
    // Whatever was committed before this message has come.
    for channel in [&mut member, &mut reader] {
        channel.socket.nothing_came().await;
    }
}

#[tokio::test]
async fn public_rooms_work_while_the_database_does_not() {
    let service = Service::start().await;
    let kill = "select pg_terminate_backend(pid) from pg_stat_activity
                where datname = current_database() and pid <> pg_backend_pid()";
    let admin = service.admin().await;
    let name = &service.database.name;
    // Nobody but a superuser gets in any more, and nobody is.
    admin.batch_execute(&format!("alter database {name} connection limit 0")).await.unwrap();
    admin.execute(kill, &[]).await.unwrap();
    let public = json!({ "config": { "presence": { "enabled": true } } });
    let join =
        async || Channel::try_join(&service, Version::V2, &anon(), "down", &public).await.unwrap();
    let (mut one, mut two) = (join().await, join().await);
    for channel in [&mut one, &mut two] {
        channel.socket.expect("presence_state").await;
    }
    let said = json!({ "type": "broadcast", "event": "e", "payload": { "n": 1 } });
    let reference = one.socket.reference();
    one.socket.send(&one.join_ref, &reference, &one.topic, "broadcast", &said).await;
    assert_eq!(two.hear().await, 1);
    let track = json!({ "type": "presence", "event": "track", "payload": {} });
    assert_eq!(two.push("presence", &track).await["status"], "ok");
    one.socket.expect("presence_diff").await;
    let private =
        Channel::try_join(&service, Version::V2, &who("member"), "room", &config(&json!({}))).await;
    let problem = private.map(|_| ()).unwrap_err();
    assert!(problem.starts_with("UnableToConnectToProject: "), "{problem}");
    admin.batch_execute(&format!("alter database {name} connection limit -1")).await.unwrap();
}

/// Stores messages `from..to` on a topic, one a transaction.
async fn store(admin: &Client, topic: &str, numbers: std::ops::Range<i32>) {
    for n in numbers {
        let send = "select realtime.send(jsonb_build_object('n', $1::int), 'e', $2, true)";
        admin.execute(send, &[&n, &topic]).await.unwrap();
    }
}

/// Hears everything said in a room; to know that it is over.
async fn witness(service: &Service, topic: &str) -> Channel {
    let config = config(&json!({}));
    Channel::try_join(service, Version::V2, &service_role(), topic, &config).await.unwrap()
}

async fn replay(
    service: &Service,
    version: Version,
    token: &str,
    topic: &str,
    options: Value,
) -> Result<Channel, String> {
    let config = config(&json!({ "broadcast": { "replay": options } }));
    Channel::try_join(service, version, token, topic, &config).await
}

#[tokio::test]
async fn c47_stored_messages_are_replayed_oldest_first() {
    let service = start().await;
    let admin = service.admin().await;
    for version in VERSIONS {
        let topic = &format!("room7 {version:?}");
        let mut witness = witness(&service, topic).await;
        store(&admin, topic, 0..40).await;
        admin
            .execute("select realtime.send_binary('\\x00ff'::bytea, 'b', $1, true)", &[topic])
            .await
            .unwrap();
        for _ in 0..41 {
            witness.socket.expect("broadcast").await;
        }
        let options = json!({ "since": 1, "limit": 1000 });
        let mut member = replay(&service, version, &who("member"), topic, options).await.unwrap();
        // The newest 25, one of which version 1 cannot be told.
        for n in 16..40 {
            let Received { payload, join_ref, .. } = member.socket.expect("broadcast").await;
            assert_eq!(payload["payload"]["n"], n);
            assert_eq!(payload["meta"]["replayed"], true);
            assert_eq!(payload["meta"]["id"], payload["payload"]["id"]);
            if version == Version::V2 {
                assert_eq!(join_ref, member.join_ref);
            }
        }
        if version == Version::V2 {
            let binary = member.socket.expect("broadcast").await.payload;
            assert_eq!((&binary["kind"], &binary["binary"]), (&json!(4), &json!([0, 255])));
            assert_eq!(binary["meta"]["replayed"], true);
        }
        let options = json!({ "since": (now() + 30) * 1000 });
        let mut late = replay(&service, version, &who("member"), topic, options).await.unwrap();
        late.socket.nothing_came().await;
    }
}

#[tokio::test]
async fn c47_bad_replay_options_and_missing_rights_are_refused() {
    let service = start().await;
    for (options, does, expected) in [
        (json!({}), "member", "UnableToReplayMessages: Replay params are not valid".to_owned()),
        (
            json!({ "since": "x" }),
            "member",
            "UnableToReplayMessages: Replay params are not valid".into(),
        ),
        (json!({ "since": 1 }), "watcher", unauthorised("room")),
    ] {
        let presence =
            json!({ "presence": { "enabled": true }, "broadcast": { "replay": options } });
        let config = config(&presence);
        let joined = Channel::try_join(&service, Version::V2, &who(does), "room", &config).await;
        assert_eq!(joined.map(|_| ()).unwrap_err(), expected);
    }
    let public = json!({ "config": { "broadcast": { "replay": { "since": 1 } } } });
    let joined = Channel::try_join(&service, Version::V2, &anon(), "room", &public).await;
    let expected = "UnableToReplayMessages: Replay is not allowed for public channels";
    assert_eq!(joined.map(|_| ()).unwrap_err(), expected);
}

#[tokio::test]
async fn replay_shows_nobody_what_his_policies_hide() {
    let service = start().await;
    let admin = service.admin().await;
    admin
        .batch_execute(
            "create policy less on realtime.messages as restrictive for select to authenticated
                using (payload is null or (payload ->> 'n')::int % 2 = 0)",
        )
        .await
        .unwrap();
    let mut witness = witness(&service, "room8").await;
    store(&admin, "room8", 0..4).await;
    for n in 0..4 {
        assert_eq!(witness.hear().await, n);
    }
    let options = json!({ "since": 1 });
    let mut member = replay(&service, Version::V2, &who("member"), "room8", options).await.unwrap();
    assert_eq!(member.hear().await, 0);
    assert_eq!(member.hear().await, 2);
    member.socket.nothing_came().await;
}

#[tokio::test]
async fn a_user_has_so_many_connections() {
    let service = Service::with(|config| config.limits.connections_per_user_max = 2).await;
    let public = json!({ "config": {} });
    let join = async |subject: &str, topic: &str| {
        Channel::try_join(&service, Version::V2, &user(subject), topic, &public).await
    };
    let first = join(ALICE, "one").await.unwrap();
    let mut second = join(ALICE, "two").await.unwrap();
    // Another channel is no other connection.
    assert_eq!(second.socket.join("realtime:three", &public).await["status"], "ok");
    let expected = "ConnectionRateLimitReached: Too many connected users";
    assert_eq!(join(ALICE, "one").await.map(|_| ()).unwrap_err(), expected);
    join(BOB, "one").await.unwrap();
    let mut first = first;
    first.socket.send_message(tokio_tungstenite::tungstenite::Message::Close(None)).await;
    first.socket.closed().await;
    // Its place is free once the service has let it go.
    let freed = async {
        while join(ALICE, "one").await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::service::DEADLINE, freed).await.unwrap();
}

#[tokio::test]
async fn c47_between_the_store_and_the_stream_nothing_is_missing_or_comes_twice() {
    let service = start().await;
    for (round, version) in [VERSIONS, VERSIONS].concat().into_iter().enumerate() {
        let topic = format!("room9 {round}");
        let admin = service.admin().await;
        let sender = {
            let topic = topic.clone();
            tokio::spawn(async move { store(&admin, &topic, 0..25).await })
        };
        let options = json!({ "since": 1 });
        let mut member = replay(&service, version, &who("member"), &topic, options).await.unwrap();
        for n in 0..25 {
            assert_eq!(member.hear().await, n);
        }
        sender.await.unwrap();
        member.socket.nothing_came().await;
    }
}

#[tokio::test]
async fn c42_a_private_room_hears_the_database_as_its_policies_allow() {
    let service = start().await;
    let admin = service.admin().await;
    let presence = config(&json!({ "presence": { "enabled": true } }));
    for version in VERSIONS {
        let mut reader = Channel::join(&service, version, "reader", "room10").await;
        let watcher =
            Channel::try_join(&service, version, &who("watcher"), "room10", &presence).await;
        let mut watcher = watcher.unwrap();
        watcher.socket.expect("presence_state").await;
        store(&admin, "room10", 1..2).await;
        assert_eq!(reader.hear().await, 1);
        watcher.socket.nothing_came().await;
    }
}
