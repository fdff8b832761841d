//! The whole service in this process, and raw clients of it.
//!
//! [`Service::start`] gives a test its own database and service; [`shared`] one of them to all tests
//! that make their own tables and change no setting. A [`Socket`] speaks one version of the
//! protocol and waits for nothing longer than [`DEADLINE`].

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{SinkExt as _, StreamExt as _};
use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tokio_util::sync::CancellationToken;
use walcast::config::{Config, Log, Secret};

use crate::cluster::Database;

/// How long anything may take before a test fails: on a machine that has other work too, a hundred
/// times what it takes else.
pub(crate) const DEADLINE: Duration = Duration::from_mins(2);

/// Settings of the service under which nothing fails because the machine is slow: what is withheld,
/// refused or given up because Postgres took its time is for tests that set shorter ones.
pub(crate) const PATIENT: [(&str, &str); 4] = [
    ("WALCAST_DATABASE_CHECK_TIMEOUT_MS", "60000"),
    ("WALCAST_DATABASE_BATCH_CHECK_TIMEOUT_MS", "120000"),
    ("WALCAST_DATABASE_CHANNEL_WAIT_TIMEOUT_MS", "60000"),
    ("WALCAST_DATABASE_CONNECT_TIMEOUT_MS", "60000"),
];

/// Signs every token here.
pub(crate) const SECRET: &str = "a-secret-of-thirty-two-bytes-or-more";

/// Two users.
pub(crate) const ALICE: &str = "00000000-0000-4000-8000-00000000000a";
pub(crate) const BOB: &str = "00000000-0000-4000-8000-00000000000b";

/// A running service and its database.
pub(crate) struct Service {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// What it was started with.
    pub(crate) config: Config,
    shutdown: CancellationToken,
    task: Option<JoinHandle<anyhow::Result<()>>>,
    /// Its database; dropped last.
    pub(crate) database: Database,
}

impl Service {
    /// On a new database, with the defaults, but patient.
    pub(crate) async fn start() -> Self {
        Self::with(Self::keep_all).await
    }

    /// On a new database, with other settings.
    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::on(Database::create().await, change).await
    }

    /// On a database that may have things in it.
    pub(crate) async fn on(database: Database, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        config.database.url = Secret::new(&*database.url);
        config.replication.slot.clone_from(&database.name);
        config.jwt.secret = Secret::new(SECRET);
        config.database.check_timeout_ms = 60_000;
        config.database.batch_check_timeout_ms = 120_000;
        config.database.channel_wait_timeout_ms = 60_000;
        config.database.connect_timeout_ms = 60_000;
        config.server.join_error_backoff_ms = 0;
        config.server.connect_error_backoff_ms = 0;
        change(&mut config);
        let listener = listen().await;
        let address = listener.local_addr().unwrap();
        let mut service =
            Self { address, config, shutdown: CancellationToken::new(), task: None, database };
        service.run(listener);
        service.ready().await;
        service
    }

    fn run(&mut self, listener: TcpListener) {
        log();
        self.shutdown = CancellationToken::new();
        let run = walcast::server::run_on(listener, self.config.clone(), self.shutdown.clone());
        self.task = Some(tokio::spawn(run));
    }

    /// Waits until changes flow.
    pub(crate) async fn ready(&mut self) {
        let wait = async {
            while !self.request("/readyz").await.starts_with("HTTP/1.1 200 ") {
                let task = self.task.as_mut().unwrap();
                assert!(!task.is_finished(), "the service ended: {:?}", task.await);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(DEADLINE, wait).await.expect("ready in time");
    }

    /// Stops it as SIGTERM does; the result is its own.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        let task = self.task.take().expect("it runs");
        timeout(DEADLINE, task).await.expect("stops in time").unwrap()
    }

    /// Starts again, on the same port, after [`Self::stop`].
    pub(crate) async fn start_again(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.run(listener);
        self.ready().await;
    }

    /// Returns when everything that committed before was told: whoever joins now begins behind it.
    pub(crate) async fn read_all(&self) {
        let mut socket = self.connect(Version::V1, &service_role()).await;
        let payload = json!({ "config": { "broadcast": { "self": false } } });
        let reply = socket.join("realtime:read all", &payload).await;
        assert_eq!(reply["status"], "ok", "{reply}");
        let say = "select realtime.send('{}', 'read', 'read all', false)";
        self.admin().await.batch_execute(say).await.unwrap();
        socket.expect("broadcast").await;
    }

    /// A connection to its database as the superuser.
    pub(crate) async fn admin(&self) -> Client {
        self.database.client().await
    }

    /// A new table with a `bigint` key called `id` and these columns, that every role may use and
    /// the publication has; its name.
    pub(crate) async fn table(&self, columns: &str) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let create = format!(
            "create table {name} (id bigint primary key, {columns});
            grant all on {name} to anon, authenticated, service_role;
            alter publication supabase_realtime add table {name};"
        );
        self.admin().await.batch_execute(&create).await.unwrap();
        name
    }

    /// A new table as [`Self::table`] makes it, whose rows are seen by their `owner` alone.
    pub(crate) async fn owned_table(&self, columns: &str) -> String {
        let name = self.table(&format!("owner uuid, {columns}")).await;
        let protect = format!(
            "alter table {name} enable row level security;
            create policy own on {name} to authenticated using (owner = (select auth.uid()));"
        );
        self.admin().await.batch_execute(&protect).await.unwrap();
        name
    }

    /// Keeps what it published for as long as a test takes, whatever others write to the same log
    /// meanwhile.
    pub(crate) fn keep_all(config: &mut Config) {
        config.replication.replay_window_bytes = 1 << 30;
        config.replication.replay_window_ms = 3_600_000;
    }

    /// The response to a GET: head and body.
    pub(crate) async fn request(&self, path: &str) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = Vec::new();
        let _ = timeout(DEADLINE, stream.read_to_end(&mut response)).await.unwrap();
        String::from_utf8(response).unwrap()
    }

    /// The URL of a socket.
    pub(crate) fn url(&self, path_and_query: &str) -> String {
        format!("ws://{}{path_and_query}", self.address)
    }

    /// An open socket, as supabase-js opens it.
    pub(crate) async fn connect(&self, version: Version, token: &str) -> Socket {
        let vsn = version.vsn();
        let url = self.url(&format!("/realtime/v1/websocket?apikey={token}&vsn={vsn}"));
        Socket::open(version, &url, &[]).await.expect("a socket")
    }

    /// A socket as `role`, with one channel `realtime:test` on `parameters`.
    pub(crate) async fn subscribe(
        &self,
        version: Version,
        token: &str,
        parameters: Value,
    ) -> Socket {
        let mut socket = self.connect(version, token).await;
        socket.subscribe("realtime:test", parameters).await;
        socket
    }
}

/// A listening socket whose port may be let go and taken again: it is below those that the kernel
/// gives to other sockets of this machine, which could take it in between.
pub(crate) async fn listen() -> TcpListener {
    loop {
        let port = rand::random_range(10_000..20_000);
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)).await {
            return listener;
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Log lines of the service, when `WALCAST_TEST_LOG` holds a filter.
fn log() {
    if let Ok(filter) = std::env::var("WALCAST_TEST_LOG") {
        let _ = walcast::telemetry::init(&Log { filter, ..Log::default() });
    }
}

/// The service of all tests that make their own tables in it; it lives in a thread of its own.
pub(crate) async fn shared() -> &'static Service {
    static SHARED: OnceLock<Service> = OnceLock::new();
    let started = || {
        std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let service = runtime.block_on(Service::with(Service::keep_all));
            // The runtime goes on for the rest of the run.
            std::mem::forget(runtime);
            service
        })
        .join()
        .expect("the shared service starts")
    };
    tokio::task::spawn_blocking(move || SHARED.get_or_init(started)).await.unwrap()
}

/// A token of one hour with these claims; `exp` and `iat` may be among them.
pub(crate) fn token(claims: &Value) -> String {
    sign(&with_expiry(claims), SECRET)
}

/// The token of a signed-in user.
pub(crate) fn user(subject: &str) -> String {
    token(&json!({ "role": "authenticated", "sub": subject }))
}

/// The token of nobody in particular.
pub(crate) fn anon() -> String {
    token(&json!({ "role": "anon" }))
}

/// The token that sees everything.
pub(crate) fn service_role() -> String {
    token(&json!({ "role": "service_role" }))
}

/// An HS256 token of exactly these claims.
pub(crate) fn sign(claims: &Value, secret: &str) -> String {
    jsonwebtoken::encode(&Header::default(), claims, &EncodingKey::from_secret(secret.as_bytes()))
        .unwrap()
}

/// The claims, valid for an hour unless they say otherwise.
pub(crate) fn with_expiry(claims: &Value) -> Value {
    let mut claims = claims.clone();
    let members = claims.as_object_mut().unwrap();
    members.entry("exp").or_insert_with(|| (now() + 3600).into());
    claims
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// The version of the protocol a socket speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V2,
}

/// Both.
pub(crate) const VERSIONS: [Version; 2] = [Version::V1, Version::V2];

impl Version {
    /// As the query says it.
    pub(crate) fn vsn(self) -> &'static str {
        match self {
            Self::V1 => "1.0.0",
            Self::V2 => "2.0.0",
        }
    }
}

/// One message from the service.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Received {
    /// Always null in V1, which has none.
    pub(crate) join_ref: Value,
    pub(crate) reference: Value,
    pub(crate) topic: String,
    pub(crate) event: String,
    pub(crate) payload: Value,
}

/// Why there is no socket: the status and the body of the answer.
pub(crate) type Refused = (u16, String);

/// A client that does nothing by itself.
pub(crate) struct Socket {
    pub(crate) version: Version,
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    next_ref: u32,
    /// Messages that were passed over while waiting for another.
    passed: VecDeque<Received>,
}

impl Socket {
    /// Opens `url`, with headers.
    pub(crate) async fn open(
        version: Version,
        url: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, Refused> {
        let mut request = url.into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let opened = timeout(DEADLINE, tokio_tungstenite::connect_async(request)).await;
        match opened.expect("an answer to the upgrade") {
            Ok((stream, _)) => Ok(Self { version, stream, next_ref: 1, passed: VecDeque::new() }),
            Err(tungstenite::Error::Http(response)) => {
                let body = response.body().clone().unwrap_or_default();
                Err((response.status().as_u16(), String::from_utf8(body).unwrap()))
            }
            Err(error) => panic!("no upgrade and no answer: {error}"),
        }
    }

    /// A ref that was not used before.
    pub(crate) fn reference(&mut self) -> Value {
        let reference = self.next_ref.to_string();
        self.next_ref += 1;
        reference.into()
    }

    /// Sends text as it is.
    pub(crate) async fn send_text(&mut self, text: impl Into<String>) {
        self.send_message(Message::text(text.into())).await;
    }

    /// Sends any message as it is.
    pub(crate) async fn send_message(&mut self, message: Message) {
        timeout(DEADLINE, self.stream.send(message)).await.expect("sent in time").unwrap();
    }

    /// Sends one frame in the socket's version.
    pub(crate) async fn send(
        &mut self,
        join_ref: &Value,
        reference: &Value,
        topic: &str,
        event: &str,
        payload: &Value,
    ) {
        let frame = match self.version {
            Version::V1 => json!({
                "topic": topic, "event": event, "payload": payload, "ref": reference,
                "join_ref": join_ref,
            }),
            Version::V2 => json!([join_ref, reference, topic, event, payload]),
        };
        self.send_text(frame.to_string()).await;
    }

    /// Sends a join with this payload; gives its ref, which is the channel's join ref.
    pub(crate) async fn send_join(&mut self, topic: &str, payload: &Value) -> Value {
        let reference = self.reference();
        self.send(&reference, &reference, topic, "phx_join", payload).await;
        reference
    }

    /// Joins; gives the reply's payload: `status` and `response`.
    pub(crate) async fn join(&mut self, topic: &str, payload: &Value) -> Value {
        let reference = self.send_join(topic, payload).await;
        self.reply(&reference).await.payload
    }

    /// Joins with these elements of `postgres_changes`, waits until they are in force, gives
    /// their ids.
    pub(crate) async fn subscribe(&mut self, topic: &str, parameters: Value) -> Vec<u64> {
        let (ids, system) = self.try_subscribe(topic, parameters).await;
        assert_eq!(system["status"], "ok", "{system}");
        assert_eq!(system["message"], "Subscribed to PostgreSQL");
        ids
    }

    /// Joins with these elements of `postgres_changes`; gives their ids and the `system` message
    /// that says what became of them.
    pub(crate) async fn try_subscribe(
        &mut self,
        topic: &str,
        parameters: Value,
    ) -> (Vec<u64>, Value) {
        let payload = json!({ "config": { "postgres_changes": parameters } });
        let reply = self.join(topic, &payload).await;
        assert_eq!(reply["status"], "ok", "{reply}");
        let echo = reply["response"]["postgres_changes"].as_array().unwrap();
        let ids = echo.iter().map(|element| element["id"].as_u64().unwrap()).collect();
        let system = self.expect("system").await;
        assert_eq!(system.topic, topic);
        (ids, system.payload)
    }

    /// The next message, if the socket is still open then.
    pub(crate) async fn try_next(&mut self) -> Result<Received, Option<u16>> {
        match self.passed.pop_front() {
            Some(message) => Ok(message),
            None => self.read().await,
        }
    }

    /// The next message of all.
    pub(crate) async fn next(&mut self) -> Received {
        self.try_next().await.unwrap_or_else(|code| panic!("the socket was closed: {code:?}"))
    }

    /// The next message, which must be this event.
    pub(crate) async fn expect(&mut self, event: &str) -> Received {
        let message = self.next().await;
        assert_eq!(message.event, event, "{message:?}");
        message
    }

    /// The `data` of the next message, which must be a row change.
    pub(crate) async fn change(&mut self) -> Value {
        self.expect("postgres_changes").await.payload["data"].take()
    }

    /// The close code with which the socket ends; nothing may come before it.
    pub(crate) async fn closed(&mut self) -> Option<u16> {
        self.try_next().await.expect_err("the end of the socket")
    }

    /// The reply to a ref; what came before it is kept for later.
    pub(crate) async fn reply(&mut self, reference: &Value) -> Received {
        let mut passed = std::mem::take(&mut self.passed);
        let is_reply =
            |message: &Received| message.event == "phx_reply" && message.reference == *reference;
        if let Some(at) = passed.iter().position(is_reply) {
            let reply = passed.remove(at).unwrap();
            self.passed = passed;
            return reply;
        }
        loop {
            match self.read().await {
                Ok(message) if is_reply(&message) => {
                    self.passed = passed;
                    return message;
                }
                Ok(message) => passed.push_back(message),
                Err(code) => panic!("closed before the reply to {reference}: {code:?}"),
            }
        }
    }

    /// Sends a heartbeat and waits for its answer; what came before it is kept for later.
    pub(crate) async fn heartbeat(&mut self) {
        let reference = self.reference();
        self.send(&Value::Null, &reference, "phoenix", "heartbeat", &json!({})).await;
        let reply = self.reply(&reference).await;
        assert_eq!(reply.payload, json!({ "status": "ok", "response": {} }));
    }

    /// What came so far.
    pub(crate) async fn rest(&mut self) -> Vec<Received> {
        self.heartbeat().await;
        self.passed.drain(..).collect()
    }

    /// Asserts that nothing but answers to heartbeats came so far.
    pub(crate) async fn nothing_came(&mut self) {
        self.heartbeat().await;
        assert!(self.passed.is_empty(), "{:?}", self.passed);
    }

    /// Reads one message from the wire.
    async fn read(&mut self) -> Result<Received, Option<u16>> {
        match self.read_message().await? {
            Message::Binary(data) => Ok(decode_kind_4(&data)),
            Message::Text(text) => Ok(self.decode(&text)),
            other @ (Message::Ping(_)
            | Message::Pong(_)
            | Message::Close(_)
            | Message::Frame(_)) => {
                panic!("an unexpected message: {other:?}")
            }
        }
    }

    /// Reads the text of one message from the wire.
    pub(crate) async fn read_text(&mut self) -> Result<String, Option<u16>> {
        match self.read_message().await? {
            Message::Text(text) => Ok(text.to_string()),
            other @ (Message::Binary(_)
            | Message::Ping(_)
            | Message::Pong(_)
            | Message::Close(_)
            | Message::Frame(_)) => panic!("an unexpected message: {other:?}"),
        }
    }

    async fn read_message(&mut self) -> Result<Message, Option<u16>> {
        loop {
            let message = timeout(DEADLINE, self.stream.next());
            match message.await.expect("something came in time") {
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(frame))) => {
                    return Err(frame.map(|frame| u16::from(frame.code)));
                }
                Some(Ok(message)) => return Ok(message),
                Some(Err(_)) | None => return Err(None),
            }
        }
    }

    /// Sends a user's broadcast as version 2 does, in a binary frame of kind 3. `json`: what the
    /// payload claims to be.
    pub(crate) async fn send_kind_3(
        &mut self,
        (join_ref, reference): (&Value, &Value),
        topic: &str,
        event: &str,
        json: bool,
        payload: &[u8],
    ) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let parts = [text(join_ref), text(reference), topic.into(), event.into(), String::new()];
        let mut frame = vec![3];
        frame.extend(parts.iter().map(|part| u8::try_from(part.len()).unwrap()));
        frame.push(u8::from(json));
        frame.extend(parts.iter().flat_map(|part| part.bytes()));
        frame.extend_from_slice(payload);
        self.send_message(Message::binary(frame)).await;
    }

    /// What one text frame says; every frame has exactly the members of its version.
    fn decode(&self, text: &str) -> Received {
        let string = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{text}")).to_owned();
        let value: Value = serde_json::from_str(text).unwrap();
        match self.version {
            Version::V1 => {
                let members: Vec<_> = value.as_object().unwrap().keys().collect();
                assert_eq!(members.len(), 4, "{text}");
                Received {
                    join_ref: Value::Null,
                    reference: value["ref"].clone(),
                    topic: string(&value["topic"]),
                    event: string(&value["event"]),
                    payload: value["payload"].clone(),
                }
            }
            Version::V2 => {
                let [join_ref, reference, topic, event, payload] = &value.as_array().unwrap()[..]
                else {
                    panic!("not five elements: {text}");
                };
                Received {
                    join_ref: join_ref.clone(),
                    reference: reference.clone(),
                    topic: string(topic),
                    event: string(event),
                    payload: payload.clone(),
                }
            }
        }
    }
}

/// A binary frame of kind 4, as if it had come as text; `binary` holds opaque bytes, and `kind`
/// tells that it did not.
fn decode_kind_4(data: &[u8]) -> Received {
    let [4, topic, event, meta, json, rest @ ..] = data else { panic!("no kind 4: {data:?}") };
    let mut rest = rest;
    let mut text = |length: &u8| {
        let (text, after) = rest.split_at(usize::from(*length));
        rest = after;
        std::str::from_utf8(text).unwrap().to_owned()
    };
    let (topic, event, meta) = (text(topic), text(event), text(meta));
    let mut payload = json!({ "kind": 4, "event": event });
    if !meta.is_empty() {
        payload["meta"] = serde_json::from_str(&meta).unwrap();
    }
    if *json == 0 {
        payload["binary"] = rest.into();
    } else {
        payload["payload"] = serde_json::from_slice(rest).unwrap();
    }
    let (join_ref, reference) = (Value::Null, Value::Null);
    Received { join_ref, reference, topic, event: "broadcast".into(), payload }
}

#[tokio::test]
async fn a_committed_row_reaches_a_subscriber_of_either_version() {
    let mut service = Service::start().await;
    let admin = service.admin().await;
    let t = service.table("value text, details text").await;
    for (version, id) in VERSIONS.into_iter().zip(1_i64..) {
        let all = json!([{ "event": "*", "schema": "public", "table": t }]);
        let mut socket = service.subscribe(version, &anon(), all).await;
        admin.execute(&format!("insert into {t} values ($1, 'new')"), &[&id]).await.unwrap();
        let change = socket.change().await;
        assert_eq!(change["record"], json!({ "id": id, "value": "new", "details": null }));
        socket.nothing_came().await;
    }
    service.stop().await.unwrap();
}
