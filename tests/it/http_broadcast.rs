//! Broadcasts over HTTP, on a whole service.
//!
//! Each test carries the number of the checklist's item (C37 to C41) in its name.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use walcast::config::Secret;

use crate::service::{
    ALICE, BOB, DEADLINE, Service, Socket, VERSIONS, Version, anon, now, service_role, shared,
    sign, token, user,
};

const BATCH: &str = "/api/broadcast";

/// What the service answered.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn parse(response: &[u8]) -> Self {
        let response = std::str::from_utf8(response).unwrap();
        let (head, body) = response.split_once("\r\n\r\n").expect("a whole head");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head: head.to_ascii_lowercase(), body: body.into() }
    }

    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1);
        lines.filter_map(|line| line.split_once(": ")).find(|(key, _)| *key == name).map(|it| it.1)
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }

    /// Status and the text of `message`.
    fn refusal(&self) -> (u16, String) {
        (self.status, self.json()["message"].as_str().unwrap().to_owned())
    }
}

/// A request; the answer is read while the body is being sent.
async fn request(service: &Service, head: &str, body: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(service.address).await.unwrap();
    let (mut incoming, mut outgoing) = stream.split();
    let send = async {
        let head = format!("{head}host: x\r\nconnection: close\r\n\r\n");
        outgoing.write_all(head.as_bytes()).await.unwrap();
        // Whoever answers early need not read the rest.
        let _ = outgoing.write_all(body).await;
    };
    let mut response = Vec::new();
    let receive = async {
        let _ = incoming.read_to_end(&mut response).await;
    };
    timeout(DEADLINE, async { tokio::join!(send, receive) }).await.expect("an answer in time");
    Answer::parse(&response)
}

async fn post(service: &Service, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut head = format!("POST {path} HTTP/1.1\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    request(service, &head, body).await
}

/// As anybody, with JSON.
async fn say(service: &Service, path: &str, body: &Value) -> Answer {
    say_as(service, &anon(), path, body).await
}

async fn say_as(service: &Service, token: &str, path: &str, body: &Value) -> Answer {
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", &*bearer), ("content-type", "application/json")];
    post(service, path, &headers, body.to_string().as_bytes()).await
}

fn message(topic: &str, payload: &Value) -> Value {
    json!({ "topic": topic, "event": "e", "payload": payload })
}

fn batch(messages: &[Value]) -> Value {
    json!({ "messages": messages })
}

fn single(topic: &str, event: &str) -> String {
    format!("{BATCH}/{topic}/events/{event}")
}

/// What a text broadcast says.
fn said(event: &str, payload: &Value) -> Value {
    json!({ "type": "broadcast", "event": event, "payload": payload })
}

/// What a binary one says, by `decode_kind_4`.
fn said_binary(event: &str, payload: &Value) -> Value {
    json!({ "kind": 4, "event": event, "payload": payload })
}

/// A channel that only listens.
struct Listener {
    socket: Socket,
    topic: String,
}

impl Listener {
    async fn join_room(
        service: &Service,
        version: Version,
        token: &str,
        topic: &str,
        private: bool,
    ) -> Self {
        let mut socket = service.connect(version, token).await;
        let topic = format!("realtime:{topic}");
        let reply = socket.join(&topic, &json!({ "config": { "private": private } })).await;
        assert_eq!(reply["status"], "ok", "{reply}");
        Self { socket, topic }
    }

    async fn join(service: &Service, version: Version, topic: &str) -> Self {
        Self::join_room(service, version, &anon(), topic, false).await
    }

    async fn hear(&mut self) -> Value {
        let message = self.socket.expect("broadcast").await;
        assert_eq!(message.topic, self.topic);
        assert_eq!((message.join_ref, message.reference), (Value::Null, Value::Null));
        message.payload
    }
}

#[tokio::test]
async fn c37_a_batch_reaches_its_rooms_as_text() {
    let service = shared().await;
    let mut listeners = Vec::new();
    for version in VERSIONS {
        listeners.push(Listener::join(service, version, "c37 one").await);
    }
    let mut other = Listener::join(service, Version::V2, "c37 two").await;
    let messages = [message("c37 one", &json!({ "a": [1, "ü"] })), message("c37 two", &json!({}))];
    let answer = say(service, BATCH, &batch(&messages)).await;
    assert_eq!((answer.status, &*answer.body), (202, ""));
    for listener in &mut listeners {
        assert_eq!(listener.hear().await, said("e", &json!({ "a": [1, "ü"] })));
        listener.socket.nothing_came().await;
    }
    assert_eq!(other.hear().await, said("e", &json!({})));
    other.socket.nothing_came().await;
    for name in ["x-rate-rolling", "x-rate-limit", "x-rate-limit-remaining"] {
        let value = answer.header(name).unwrap_or_else(|| panic!("{name}: {answer:?}"));
        value.parse::<u64>().unwrap();
    }
}

#[tokio::test]
async fn c37_nothing_of_a_batch_is_sent_when_one_message_is_wrong() {
    let service = shared().await;
    let mut listener = Listener::join(service, Version::V2, "c37 wrong").await;
    let good = message("c37 wrong", &json!({}));
    let wrong = json!({ "topic": "c37 wrong", "event": "e" });
    let answer = say(service, BATCH, &batch(&[good.clone(), wrong, good])).await;
    assert_eq!(answer.status, 422);
    let blank = json!(["can't be blank"]);
    assert_eq!(answer.json(), json!({ "errors": { "messages": [{}, { "payload": blank }, {}] } }));
    let answer = say(service, BATCH, &json!({})).await;
    assert_eq!(answer.status, 422);
    assert_eq!(answer.json(), json!({ "errors": { "messages": blank } }));
    listener.socket.nothing_came().await;
}

#[tokio::test]
async fn c37_nobody_without_a_good_token_is_heard() {
    let service = shared().await;
    let mut listener = Listener::join(service, Version::V2, "c37 nobody").await;
    let body = batch(&[message("c37 nobody", &json!({}))]).to_string();
    let expired = sign(&json!({ "role": "anon", "exp": now() - 1 }), crate::service::SECRET);
    let forged = sign(&json!({ "role": "anon", "exp": now() + 60 }), &"x".repeat(40));
    let unlisted = token(&json!({ "role": "postgres" }));
    let roleless = token(&json!({}));
    let good = anon();
    let bearer = |token: &str| ("authorization", format!("Bearer {token}"));
    let key = |token: &str| ("apikey", token.to_owned());
    let basic = ("authorization", format!("Basic {good}"));
    let three_words = ("authorization", format!("Bearer {good} {good}"));
    let tries = [
        vec![],
        vec![bearer(&expired)],
        vec![bearer(&forged)],
        vec![bearer(&unlisted)],
        vec![bearer(&roleless)],
        vec![key(&expired)],
        vec![key("")],
        vec![key("sb_publishable_unknown")],
        // The key does not stand in for a bearer's token that is no good.
        vec![bearer(&expired), key(&good)],
        vec![basic, key(&good)],
        vec![("authorization", "Bearer".to_owned()), key(&good)],
        vec![three_words, key(&good)],
        vec![bearer(&good), bearer(&good)],
    ];
    for headers in tries {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        for path in [BATCH, &single("c37%20nobody", "e"), &single("c37%20nobody", "%ff")] {
            let answer = post(service, path, &headers, body.as_bytes()).await;
            assert_eq!(answer.refusal(), (401, "Unauthorized".into()), "{headers:?}");
        }
    }
    listener.socket.nothing_came().await;
}

/// `member` may write in rooms, and whoever names the room in a header; `raises` and `sleeps` make
/// the policy fail.
const POLICIES: &str = "
    create function public.does() returns text language plpgsql stable as $$
    begin
        if auth.jwt() ->> 'does' = 'raises' then raise exception 'the secret of the policy'; end if;
        if auth.jwt() ->> 'does' = 'sleeps' then perform pg_sleep(600); end if;
        return auth.jwt() ->> 'does';
    end $$;
    create policy hears on realtime.messages for select to authenticated using (true);
    create policy writes on realtime.messages for insert to authenticated with check (
        realtime.messages.extension = 'broadcast'
        and realtime.topic() like 'room%' and public.does() = 'member'
    );
    create policy shows on realtime.messages for insert to authenticated with check (
        current_setting('request.headers')::json ->> 'x-room' = realtime.topic()
        and current_setting('request.headers')::json ->> 'authorization' is null
        and current_setting('request.headers')::json ->> 'apikey' is null
    );
";

async fn with_policies() -> Service {
    let service = Service::with(|config| config.database.check_timeout_ms = 2000).await;
    service.admin().await.batch_execute(POLICIES).await.unwrap();
    service
}

fn who(does: &str) -> String {
    token(&json!({ "role": "authenticated", "sub": ALICE, "does": does }))
}

fn private(topic: &str, n: u32) -> Value {
    let mut message = message(topic, &json!({ "n": n }));
    message["private"] = true.into();
    message
}

#[tokio::test]
async fn c38_a_private_message_reaches_the_private_room_of_whom_a_policy_lets_write() {
    let service = with_policies().await;
    let mut public = Listener::join(&service, Version::V2, "room").await;
    let mut rooms = Vec::new();
    for version in VERSIONS {
        rooms.push(Listener::join_room(&service, version, &user(ALICE), "room", true).await);
    }
    let messages = [private("room", 1), message("room", &json!({ "n": 2 })), private("hall", 3)];
    for does in ["stranger", "member"] {
        let answer = say_as(&service, &who(does), BATCH, &batch(&messages)).await;
        assert_eq!((answer.status, &*answer.body), (202, ""));
    }
    let answer = say(&service, BATCH, &batch(&[private("room", 4)])).await;
    assert_eq!((answer.status, &*answer.body), (202, ""));
    let of_service = say_as(&service, &service_role(), BATCH, &batch(&[private("room", 5)])).await;
    assert_eq!(of_service.status, 202);
    for room in &mut rooms {
        assert_eq!(room.hear().await["payload"]["n"], 1);
        assert_eq!(room.hear().await["payload"]["n"], 5);
        room.socket.nothing_came().await;
    }
    for _ in 0..2 {
        assert_eq!(public.hear().await["payload"]["n"], 2);
    }
    public.socket.nothing_came().await;
}

#[tokio::test]
async fn c40_a_private_single_broadcast_is_refused_to_whom_no_policy_lets_write() {
    let service = with_policies().await;
    let mut public = Listener::join(&service, Version::V2, "room").await;
    let mut room = Listener::join_room(&service, Version::V2, &user(ALICE), "room", true).await;
    let path = single("room", "e?private=true");
    for token in [who("stranger"), anon()] {
        let answer = say_as(&service, &token, &path, &json!({})).await;
        assert_eq!(answer.refusal(), (403, "Unauthorized".into()));
    }
    let path_elsewhere = single("hall", "e?private=true");
    let answer = say_as(&service, &who("member"), &path_elsewhere, &json!({})).await;
    assert_eq!(answer.status, 403);
    for query in ["private=yes", "private=true&private=false", "private[]=true", "private"] {
        let path = single("room", &format!("e?{query}"));
        let answer = say_as(&service, &who("member"), &path, &json!({})).await;
        assert_eq!(answer.status, 422, "{query}");
        assert_eq!(answer.json(), json!({ "errors": { "private": ["is invalid"] } }));
    }
    room.socket.nothing_came().await;
    let answer = say_as(&service, &who("member"), &path, &json!({ "a": 1 })).await;
    assert_eq!((answer.status, &*answer.body), (202, ""));
    assert_eq!(room.hear().await, said_binary("e", &json!({ "a": 1 })));
    room.socket.nothing_came().await;
    public.socket.nothing_came().await;
}

#[tokio::test]
async fn c38_policies_see_the_headers_but_no_credentials() {
    let service = with_policies().await;
    let mut room = Listener::join_room(&service, Version::V2, &user(ALICE), "hall", true).await;
    let bearer = format!("bearer {}", who("stranger"));
    let key = anon();
    let body = batch(&[private("hall", 1)]).to_string();
    for value in ["other", "hall"] {
        let headers = [("Authorization", &*bearer), ("ApiKey", &*key), ("X-Room", value)];
        let answer = post(&service, BATCH, &headers, body.as_bytes()).await;
        assert_eq!(answer.status, 202);
        let path = single("hall", "single?private=true");
        let answer = post(&service, &path, &headers, b"{}").await;
        assert_eq!(answer.status, if value == "hall" { 202 } else { 403 });
    }
    assert_eq!(room.hear().await["payload"]["n"], 1);
    assert_eq!(room.hear().await["event"], "single");
    room.socket.nothing_came().await;
}

#[tokio::test]
async fn without_an_answer_of_the_policies_nothing_is_sent_and_the_sender_is_told() {
    let service = with_policies().await;
    let mut public = Listener::join(&service, Version::V2, "room").await;
    let both = batch(&[message("room", &json!({})), private("room", 1)]);
    let path = single("room", "e?private=true");
    let raises = who("raises");
    for answer in [
        say_as(&service, &raises, BATCH, &both).await,
        say_as(&service, &raises, &path, &json!({})).await,
    ] {
        assert_eq!(answer.refusal(), (422, "RLS policy error".into()));
        assert!(!answer.body.contains("secret"));
    }
    let answer = say_as(&service, &who("sleeps"), BATCH, &both).await;
    assert_eq!(answer.refusal(), (422, "Query canceled".into()));
    let admin = service.admin().await;
    let drop = "do $$ declare part regclass; begin
        for part in select inhrelid::regclass from pg_inherits
            where inhparent = 'realtime.messages'::regclass
        loop execute format('alter table realtime.messages detach partition %s', part); end loop;
    end $$";
    admin.batch_execute(drop).await.unwrap();
    for answer in [
        say_as(&service, &who("member"), BATCH, &both).await,
        say_as(&service, &who("member"), &path, &json!({})).await,
    ] {
        assert_eq!(answer.refusal(), (422, "Missing messages partition".into()));
    }
    let name = &service.database.name;
    let close = format!("alter database {name} connection limit 0");
    let end = "select pg_terminate_backend(pid) from pg_stat_activity
               where datname = current_database() and pid <> pg_backend_pid()";
    admin.batch_execute(&close).await.unwrap();
    admin.execute(end, &[]).await.unwrap();
    for answer in [
        say_as(&service, &who("member"), BATCH, &both).await,
        say_as(&service, &who("member"), &path, &json!({})).await,
    ] {
        assert_eq!(answer.refusal(), (422, "Tenant database unavailable".into()));
    }
    public.socket.nothing_came().await;
    // What needs no policy needs no database.
    let answer = say(&service, &single("room", "e"), &json!({})).await;
    assert_eq!(answer.status, 202);
    public.hear().await;
    admin.batch_execute(&format!("alter database {name} connection limit -1")).await.unwrap();
}

#[tokio::test]
async fn c39_the_id_of_a_message_reaches_its_receivers() {
    let service = shared().await;
    let mut named = message("c39", &json!({}));
    named["id"] = "my \"id\"".into();
    for version in VERSIONS {
        let mut listener = Listener::join(service, version, "c39").await;
        assert_eq!(say(service, BATCH, &batch(std::slice::from_ref(&named))).await.status, 202);
        let mut expected = said("e", &json!({}));
        expected["meta"] = json!({ "id": "my \"id\"" });
        assert_eq!(listener.hear().await, expected);
    }
}

#[tokio::test]
async fn c40_a_single_broadcast_is_its_body() {
    let service = shared().await;
    let mut new = Listener::join(service, Version::V2, "c40").await;
    let mut old = Listener::join(service, Version::V1, "c40").await;
    let path = single("c40", "e");
    // Any JSON value is a payload, as it is.
    for value in [json!({ "a": { "b": null } }), json!([1]), json!("x"), json!(7), json!(null)] {
        let answer = say(service, &path, &value).await;
        assert_eq!((answer.status, &*answer.body), (202, ""));
        assert_eq!(new.hear().await, said_binary("e", &value));
        assert_eq!(old.hear().await, said("e", &value));
    }
    let token = anon();
    let untyped = post(service, &path, &[("apikey", &token)], b"{\"a\":1}").await;
    assert_eq!(untyped.status, 202);
    assert_eq!(new.hear().await, said_binary("e", &json!({ "a": 1 })));
    assert_eq!(old.hear().await, said("e", &json!({ "a": 1 })));
    let bytes = [("apikey", &*token), ("content-type", "application/octet-stream")];
    let answer = post(service, &path, &bytes, &[0, 255, 1]).await;
    assert_eq!(answer.status, 202);
    let heard = json!({ "kind": 4, "event": "e", "binary": [0, 255, 1] });
    assert_eq!(new.hear().await, heard);
    // Nobody could be told of it.
    let long = single("c40", &"e".repeat(256));
    let answer = post(service, &long, &bytes, &[0]).await;
    assert_eq!(answer.status, 422);
    assert_eq!(answer.json(), json!({ "errors": { "event": ["is too long for opaque bytes"] } }));
    let text = [("apikey", &*token), ("content-type", "text/plain")];
    let answer = post(service, &path, &text, b"{}").await;
    assert_eq!(answer.status, 415);
    let problem = "Unsupported Media Type. Use application/json or application/octet-stream";
    assert_eq!(answer.json(), json!({ "error": problem }));
    for body in [&b"{"[..], b"{} {}", b"\"\xff\"", b" "] {
        let answer = post(service, &path, &[("apikey", &token)], body).await;
        assert_eq!(answer.refusal(), (400, "The body is not valid JSON".into()));
    }
    new.socket.nothing_came().await;
    old.socket.nothing_came().await;
}

#[tokio::test]
async fn c40_names_in_the_path_are_decoded() {
    let service = shared().await;
    let mut listener = Listener::join(service, Version::V2, "c40 a/b?ü+%").await;
    let path = single("c40%20a%2Fb%3F%C3%BC+%25", "%F0%9F%A6%80%2F%22");
    assert_eq!(say(service, &path, &json!({})).await.status, 202);
    assert_eq!(listener.hear().await, said_binary("🦀/\"", &json!({})));
    let answer = say(service, &single("%ff", "e"), &json!({})).await;
    assert_eq!(answer.refusal(), (400, "The path is not UTF-8".into()));
    for topic in ["a%00b".to_owned(), "x".repeat(5000)] {
        let answer = say(service, &single(&topic, "e"), &json!({})).await;
        assert_eq!(answer.status, 422);
        assert_eq!(answer.json(), json!({ "errors": { "topic": ["is invalid"] } }));
    }
    let answer = say(service, &single("", "e"), &json!({})).await;
    assert_eq!(answer.json(), json!({ "errors": { "topic": ["can't be blank"] } }));
    for path in [single("t", ""), format!("{BATCH}/t/events")] {
        assert_eq!(say(service, &path, &json!({})).await.status, 404, "{path}");
    }
    listener.socket.nothing_came().await;
}

#[tokio::test]
async fn c41_both_families_of_paths_take_the_key_alone_and_ignore_the_query() {
    let service = shared().await;
    let token = anon();
    let key = [("apikey", &*token), ("content-type", "application/json")];
    let mut listener = Listener::join(service, Version::V2, "c41").await;
    for prefix in ["", "/realtime/v1"] {
        for query in ["", "?apikey=other&vsn=2.0.0"] {
            let path = format!("{prefix}{BATCH}{query}");
            let body = batch(&[message("c41", &json!({ "a": 1 }))]).to_string();
            let answer = post(service, &path, &key, body.as_bytes()).await;
            assert_eq!(answer.status, 202, "{path}");
            assert_eq!(listener.hear().await, said("e", &json!({ "a": 1 })));
            let path = format!("{prefix}{}{query}", single("c41", "one"));
            let answer = post(service, &path, &key, b"{\"a\":2}").await;
            assert_eq!(answer.status, 202, "{path}");
            assert_eq!(listener.hear().await, said_binary("one", &json!({ "a": 2 })));
        }
    }
    listener.socket.nothing_came().await;
}

#[tokio::test]
async fn c41_browsers_may_ask_and_read_every_answer() {
    let service = shared().await;
    for path in [BATCH.to_owned(), format!("/realtime/v1{}", single("t", "e"))] {
        let head = format!(
            "OPTIONS {path} HTTP/1.1\r\norigin: https://app.example\r\n\
             access-control-request-method: POST\r\n\
             access-control-request-headers: apikey,authorization,content-type,x-client-info\r\n"
        );
        let answer = request(service, &head, b"").await;
        assert_eq!(answer.status, 204);
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
        assert!(answer.header("access-control-allow-methods").unwrap().contains("post"));
        let allowed = answer.header("access-control-allow-headers").unwrap();
        for name in ["apikey", "authorization", "content-type", "x-client-info"] {
            assert!(allowed.contains(name), "{allowed}");
        }
        let token = anon();
        let origin = ("origin", "https://app.example");
        for (headers, status) in [(vec![origin], 401), (vec![origin, ("apikey", &*token)], 422)] {
            let body = if path.contains("events") { "x".repeat(3_000_001) } else { "{}".into() };
            let answer = post(service, &path, &headers, body.as_bytes()).await;
            assert_eq!(answer.status, status);
            assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
            let exposed = answer.header("access-control-expose-headers").unwrap();
            assert!(exposed.contains("x-rate-limit-remaining"));
        }
        assert_eq!(request(service, &format!("GET {path} HTTP/1.1\r\n"), b"").await.status, 405);
    }
}

#[tokio::test]
async fn pages_that_are_not_on_the_list_are_not_heard() {
    let service =
        Service::with(|config| config.limits.origins = vec!["https://app.example".into()]).await;
    let mut listener = Listener::join(&service, Version::V2, "t").await;
    let token = anon();
    for (origin, status) in [("https://evil.example", 403), ("https://app.example", 202)] {
        let headers = [("apikey", &*token), ("origin", origin)];
        let answer = post(&service, &single("t", "e"), &headers, b"{}").await;
        assert_eq!(answer.status, status);
    }
    listener.hear().await;
    listener.socket.nothing_came().await;
}

#[tokio::test]
async fn api_keys_stand_for_their_role_in_either_header() {
    let key = "sb_publishable_0123456789abcdef0123456789";
    let service = Service::with(|config| {
        config.jwt.api_keys = Secret::new(json!({ key: "anon" }).to_string());
    })
    .await;
    let mut listener = Listener::join(&service, Version::V2, "t").await;
    let bearer = format!("Bearer {key}");
    for header in [("apikey", key), ("authorization", &*bearer)] {
        assert_eq!(post(&service, &single("t", "e"), &[header], b"{}").await.status, 202);
        listener.hear().await;
    }
    listener.socket.nothing_came().await;
}

#[tokio::test]
async fn a_payload_over_the_limit_is_refused_and_the_limit_itself_is_not() {
    let service = Service::with(|config| {
        config.limits.payload_bytes_max = 100_000;
        config.limits.batch_bytes_max = 400_000;
    })
    .await;
    let mut listener = Listener::join(&service, Version::V2, "t").await;
    let of = |bytes: usize| json!({ "a": "x".repeat(bytes - r#"{"a":""}"#.len()) });
    let text = json!(["Payload size exceeds tenant limit"]);
    let answer = say(&service, &single("t", "e"), &of(100_001)).await;
    assert_eq!(answer.status, 422);
    assert_eq!(answer.json(), json!({ "errors": { "payload": text } }));
    let messages = [message("t", &of(10)), message("t", &of(100_001))];
    let answer = say(&service, BATCH, &batch(&messages)).await;
    assert_eq!(answer.status, 422);
    assert_eq!(answer.json(), json!({ "errors": { "messages": [{}, { "payload": text }] } }));
    let many = vec![message("t", &of(100_000)); 4];
    let answer = say(&service, BATCH, &batch(&many)).await;
    assert_eq!(answer.status, 413);
    assert!(answer.json()["message"].is_string());
    listener.socket.nothing_came().await;
    assert_eq!(say(&service, &single("t", "e"), &of(100_000)).await.status, 202);
    assert_eq!(listener.hear().await["payload"], of(100_000));
    assert_eq!(say(&service, BATCH, &batch(&many[..3])).await.status, 202);
    for _ in 0..3 {
        assert_eq!(listener.hear().await["payload"], of(100_000));
    }
}

#[tokio::test]
async fn f64_a_body_that_only_promises_to_come_is_answered() {
    let service = Service::with(|config| config.server.body_timeout_ms = 100).await;
    let token = anon();
    for path in [BATCH.to_owned(), single("t", "e")] {
        let head = format!("POST {path} HTTP/1.1\r\napikey: {token}\r\ncontent-length: 1000\r\n");
        let answer = request(&service, &head, b"{\"messages\":[").await;
        assert_eq!(answer.refusal(), (408, "The body did not come in time".into()));
        let head = format!(
            "POST {path} HTTP/1.1\r\napikey: {token}\r\ncontent-length: 99999999999999\r\n"
        );
        let answer = request(&service, &head, b"").await;
        assert_eq!(answer.status, if path == BATCH { 413 } else { 422 });
    }
}

/// A sender that cannot write its whole body takes that for a broken connection.
#[tokio::test]
async fn whoever_is_refused_is_heard_out_first() {
    let service = shared().await;
    let large = vec![b'x'; 9_000_000];
    let token = anon();
    let tries = [
        (BATCH.to_owned(), "x", 401),
        (BATCH.to_owned(), &*token, 413),
        (single("t", "e"), "x", 401),
        (single("t", "e"), &*token, 422),
        (single("t", "e?private=x"), &*token, 422),
    ];
    for (path, key, status) in tries {
        let mut stream = TcpStream::connect(service.address).await.unwrap();
        let length = large.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\napikey: {key}\r\n\
             content-length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        timeout(DEADLINE, stream.write_all(&large)).await.unwrap().expect("all of it is taken");
        let mut response = Vec::new();
        timeout(DEADLINE, stream.read_to_end(&mut response)).await.unwrap().unwrap();
        assert_eq!(Answer::parse(&response).status, status, "{path}");
    }
}

#[tokio::test]
async fn bodies_of_all_requests_together_are_bounded() {
    let service = Service::with(|config| {
        config.server.frame_bytes_max = 10_000;
        config.server.unfinished_bytes_max = 10_000;
    })
    .await;
    let large = json!({ "a": "x".repeat(20_000) });
    let answer = say(&service, &single("t", "e"), &large).await;
    assert_eq!(answer.refusal(), (429, "Too many requests".into()));
    // What it held is free again.
    assert_eq!(say(&service, &single("t", "e"), &json!({ "a": "x" })).await.status, 202);
}

#[tokio::test]
async fn too_many_messages_are_refused_whole() {
    let service = Service::with(|config| {
        config.limits.events_per_second_max = 5;
        config.limits.batch_messages_max = 4;
    })
    .await;
    let mut listener = Listener::join(&service, Version::V2, "t").await;
    let of = |count| batch(&vec![message("t", &json!({})); count]);
    let too_many = "Too many messages to broadcast, please reduce the batch size";
    let answer = say(&service, BATCH, &of(5)).await;
    assert_eq!(answer.refusal(), (429, too_many.into()));
    listener.socket.nothing_came().await;
    // Sooner or later two of these begin in one second.
    let refused = async {
        loop {
            let answer = say(&service, BATCH, &of(3)).await;
            assert_eq!(answer.header("x-rate-limit"), Some("5"));
            if answer.status != 202 {
                return answer;
            }
            assert_eq!(answer.header("retry-after"), None);
            for _ in 0..3 {
                listener.hear().await;
            }
        }
    };
    let refused = timeout(DEADLINE, refused).await.expect("a full second");
    assert_eq!(refused.refusal(), (429, "You have exceeded your rate limit".into()));
    assert_eq!(refused.header("retry-after"), Some("1"));
    listener.socket.nothing_came().await;
    // No second has room for so many.
    let service = Service::with(|config| config.limits.events_per_second_max = 2).await;
    let answer = say(&service, BATCH, &of(3)).await;
    assert_eq!(answer.refusal(), (429, too_many.into()));
}

#[tokio::test]
async fn a_large_batch_arrives_in_order() {
    let service = shared().await;
    let mut listeners = Vec::new();
    for version in VERSIONS {
        listeners.push(Listener::join(service, version, "large batch").await);
    }
    let messages: Vec<_> = (0..1000).map(|n| message("large batch", &json!({ "n": n }))).collect();
    assert_eq!(say(service, BATCH, &batch(&messages)).await.status, 202);
    for listener in &mut listeners {
        for n in 0..1000 {
            assert_eq!(listener.hear().await["payload"]["n"], n);
        }
        listener.socket.nothing_came().await;
    }
}

#[tokio::test]
async fn no_answer_keeps_a_connection_from_being_used_again() {
    let service = shared().await;
    let mut listener = Listener::join(service, Version::V2, "again").await;
    let mut stream = TcpStream::connect(service.address).await.unwrap();
    let token = anon();
    let path = single("again", "e");
    for body in ["{\"a\":1}", "{", "{\"a\":2}"] {
        let length = body.len();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\napikey: {token}\r\n\
             content-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = vec![0; 4096];
        let read = timeout(DEADLINE, stream.read(&mut answer)).await.unwrap().unwrap();
        let status = Answer::parse(&answer[..read]).status;
        assert_eq!(status, if body == "{" { 400 } else { 202 });
    }
    assert_eq!(listener.hear().await, said_binary("e", &json!({ "a": 1 })));
    assert_eq!(listener.hear().await, said_binary("e", &json!({ "a": 2 })));
}

/// A user, or an address without one, has one check at a time, however many requests it sends.
#[tokio::test]
async fn c39_whoever_says_much_in_slow_rooms_waits_for_itself() {
    let service = Service::with(|config| config.database.channel_pool_size = 2).await;
    let admin = service.admin().await;
    let policy = "create policy writes on realtime.messages for insert to anon, authenticated
        with check (
            realtime.topic() <> 'slow'
            or (select pg_advisory_xact_lock_shared(39)::text) is not null
        )";
    admin.batch_execute(policy).await.unwrap();
    let private = |topic| format!("{}?private=true", single(topic, "e"));
    let waiting = "select count(*) from pg_stat_activity
        where datname = current_database() and wait_event = 'advisory'";
    for token in [user(ALICE), anon()] {
        admin.batch_execute("select pg_advisory_lock(39)").await.unwrap();
        let say = async |_| say_as(&service, &token, &private("slow"), &json!({})).await.status;
        let flood = futures_util::future::join_all((0..6).map(say));
        let other = async {
            while admin.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 0 {
                tokio::task::yield_now().await;
            }
            let (bob, path, empty) = (user(BOB), private("quick"), json!({}));
            let said = say_as(&service, &bob, &path, &empty);
            let said = said.await.status;
            admin.batch_execute("select pg_advisory_unlock(39)").await.unwrap();
            said
        };
        let all = async { tokio::join!(flood, other) };
        let (flood, other) = timeout(DEADLINE, all).await.unwrap();
        assert_eq!((&*flood, other), (&[202; 6][..], 202));
    }
}
