//! Event streams over HTTP, on a whole service.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::process::Command;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use walcast::config::Secret;
use walcast::cursor::Cursor;

use crate::cluster::Database;
use crate::service::{
    ALICE, BOB, DEADLINE, SECRET, Service, Version, anon, now, service_role, shared, sign, token,
    user,
};

/// One event, as a browser hands it out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) id: Option<String>,
    pub(crate) topic: Option<String>,
    pub(crate) data: String,
}

impl Event {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|_| panic!("{self:?}"))
    }
}

/// A client that reads an answer as it comes.
pub(crate) struct Stream {
    socket: TcpStream,
    read: Vec<u8>,
    pub(crate) status: u16,
    pub(crate) head: String,
    events: VecDeque<Event>,
    /// `retry:` fields and comments so far.
    retry: Vec<u64>,
    comments: usize,
}

fn get(path: &str, headers: &[(&str, &str)]) -> String {
    let mut request = format!(
        "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\naccept: text/event-stream\r\n"
    );
    for (name, value) in headers {
        request.extend([name, ": ", value, "\r\n"]);
    }
    request + "\r\n"
}

impl Stream {
    async fn send(socket: TcpStream, request: &str) -> Self {
        let (read, events, retry) = (Vec::new(), VecDeque::new(), Vec::new());
        let mut client =
            Self { socket, read, status: 0, head: String::new(), events, retry, comments: 0 };
        client.socket.write_all(request.as_bytes()).await.unwrap();
        let end = loop {
            if let Some(at) = client.read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(client.more().await, "an answer: {:?}", client.read);
        };
        let head: Vec<u8> = client.read.drain(..end).collect();
        client.head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        client.status = client.head.split(' ').nth(1).unwrap().parse().unwrap();
        client
    }

    /// Asks for a stream with these parameters and headers.
    pub(crate) async fn ask(service: &Service, query: &str, headers: &[(&str, &str)]) -> Self {
        Self::ask_at(service.address, query, headers).await
    }

    async fn ask_at(address: SocketAddr, query: &str, headers: &[(&str, &str)]) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        Self::send(stream, &get(&format!("/events?{query}"), headers)).await
    }

    /// The same with a token, until everything is in force.
    pub(crate) async fn open(service: &Service, token: &str, query: &str) -> Self {
        let mut stream = Self::ask(service, query, &[("authorization", &bearer(token))]).await;
        if stream.status != 200 {
            let body = stream.rest().await;
            panic!("{}: {body}", stream.status);
        }
        stream.expect("ready").await;
        stream
    }

    /// Reads more; false at the end.
    async fn more(&mut self) -> bool {
        self.read.reserve(16 * 1024);
        let count = timeout(DEADLINE, self.socket.read_buf(&mut self.read)).await.expect("in time");
        count.unwrap_or(0) > 0
    }

    /// The next event; none at the end.
    pub(crate) async fn try_next(&mut self) -> Option<Event> {
        loop {
            while let Some(end) = self.read.windows(2).position(|bytes| bytes == b"\n\n") {
                let block: Vec<u8> = self.read.drain(..end + 2).collect();
                self.block(std::str::from_utf8(&block).unwrap());
            }
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            if !self.more().await {
                return None;
            }
        }
    }

    fn block(&mut self, block: &str) {
        let (mut name, mut id, mut topic, mut data) = (None, None, None, Vec::new());
        for line in block.lines().filter(|line| !line.is_empty()) {
            match line.split_once(": ").unwrap_or((line, "")) {
                ("event", value) => name = Some(value.to_owned()),
                ("id", value) => id = Some(value.to_owned()),
                ("topic", value) => topic = Some(value.to_owned()),
                ("data", value) => data.push(value),
                ("retry", value) => self.retry.push(value.parse().unwrap()),
                (":", _) => self.comments += 1,
                _ => panic!("no field: {line:?}"),
            }
        }
        if let Some(name) = name {
            self.events.push_back(Event { name, id, topic, data: data.join("\n") });
        }
    }

    pub(crate) async fn next(&mut self) -> Event {
        // Comments come all the time, and are no events.
        let next = timeout(DEADLINE, self.try_next()).await;
        next.expect("an event in time").expect("the stream goes on")
    }

    pub(crate) async fn expect(&mut self, name: &str) -> Event {
        let event = self.next().await;
        assert_eq!(event.name, name, "{event:?}");
        event
    }

    /// The last event, which says why, and the end.
    async fn expect_close(&mut self, reason: &str) {
        let close = self.expect("close").await;
        assert_eq!(close.json()["reason"], reason, "{close:?}");
        assert_eq!(self.try_next().await, None);
    }

    /// Everything to the end.
    async fn rest(&mut self) -> String {
        while self.more().await {}
        String::from_utf8(std::mem::take(&mut self.read)).unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1);
        lines.filter_map(|line| line.split_once(": ")).find(|(key, _)| *key == name).map(|it| it.1)
    }
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// Status and `error` of a refusal.
async fn refused(service: &Service, query: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let mut stream = Stream::ask(service, query, headers).await;
    let body = stream.rest().await;
    let body: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{body}"));
    (stream.status, body["error"].as_str().unwrap().to_owned())
}

/// A request with a body; the status of the answer, and the answer.
async fn request(service: &Service, head: &str, headers: &[(&str, &str)], body: &[u8]) -> String {
    let mut stream = TcpStream::connect(service.address).await.unwrap();
    let mut request = format!("{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
    for (name, value) in headers {
        request.extend([name, ": ", value, "\r\n"]);
    }
    request.extend(["content-length: ", &body.len().to_string(), "\r\n\r\n"]);
    stream.write_all(&[request.as_bytes(), body].concat()).await.unwrap();
    let mut answer = Vec::new();
    timeout(DEADLINE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    String::from_utf8(answer).unwrap()
}

/// Says something to a public room over HTTP.
async fn say(service: &Service, topic: &str, event: &str, kind: &str, body: &[u8]) {
    let path = format!("POST /api/broadcast/{topic}/events/{event}");
    let headers = [("authorization", &*bearer(&anon())), ("content-type", kind)];
    let answer = request(service, &path, &headers, body).await;
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
}

/// The sockets that the service has.
async fn sockets(service: &Service) -> u64 {
    let path = "GET /api/tenants/realtime-dev/health";
    let bearer = bearer(&service_role());
    let answer = request(service, path, &[("authorization", &bearer)], b"").await;
    let body: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    body["data"]["connected_cluster"].as_u64().unwrap_or_else(|| panic!("{body}"))
}

async fn until_sockets(service: &Service, count: u64) {
    let wait = async {
        while sockets(service).await != count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("never {count} sockets"));
}

/// `record.id` of the next event, which must be of this operation.
async fn id_of(stream: &mut Stream, operation: &str) -> i64 {
    let event = stream.expect(operation).await;
    let data = event.json();
    let record = if operation == "DELETE" { &data["old_record"] } else { &data["record"] };
    record["id"].as_i64().unwrap_or_else(|| panic!("{event:?}"))
}

#[tokio::test]
async fn row_changes_come_as_they_do_on_a_socket_with_a_cursor_as_their_id() {
    let service = shared().await;
    let table = service.table("value text, doc json").await;
    let all = json!([{ "event": "*", "schema": "public", "table": table }]);
    let mut socket = service.subscribe(Version::V2, &anon(), all).await;
    let mut stream = Stream::open(service, &anon(), &format!("changes={table}")).await;
    assert_eq!(stream.header("content-type"), Some("text/event-stream"));
    assert_eq!(stream.header("cache-control"), Some("no-store"));
    assert_eq!(stream.header("x-accel-buffering"), Some("no"));
    assert_eq!(stream.header("connection"), Some("close"));
    assert_eq!(stream.header("content-length"), None);
    assert!(stream.header("date").is_some());
    assert!(matches!(stream.retry[..], [1000..=3000]), "{:?}", stream.retry);
    let admin = service.admin().await;
    let sql = format!(
        "insert into {table} values (1, 'new', e'{{\n\"a\":\r1}}');
        update {table} set value = 'newer';
        delete from {table};"
    );
    admin.batch_execute(&sql).await.unwrap();
    let mut last = String::new();
    for operation in ["INSERT", "UPDATE", "DELETE"] {
        let event = stream.expect(operation).await;
        let change = socket.change().await;
        assert_eq!(event.json(), change);
        assert_eq!(event.id.as_deref(), change["cursor"].as_str());
        let id = event.id.unwrap();
        assert!(last < id, "{last} {id}");
        last = id;
    }
}

#[tokio::test]
async fn each_user_gets_the_rows_that_policies_show_him() {
    let service = shared().await;
    let table = service.owned_table("value text").await;
    let admin = service.admin().await;
    // So that the log tells whose a row was.
    admin.batch_execute(&format!("alter table {table} replica identity full")).await.unwrap();
    let query = format!("changes={table}");
    let mut alice = Stream::open(service, &user(ALICE), &query).await;
    let mut bob = Stream::open(service, &user(BOB), &query).await;
    let mut everybody = Stream::open(service, &service_role(), &query).await;
    let sql = format!(
        "insert into {table} (id, owner) values (1, '{ALICE}'), (2, '{BOB}'), (3, null);
        commit;
        update {table} set owner = '{BOB}' where id = 1;
        insert into {table} (id, owner) values (4, '{ALICE}'), (5, '{BOB}');"
    );
    admin.batch_execute(&sql).await.unwrap();
    assert_eq!(id_of(&mut alice, "INSERT").await, 1);
    // The row leaves her sight.
    assert_eq!(id_of(&mut alice, "DELETE").await, 1);
    assert_eq!(id_of(&mut alice, "INSERT").await, 4);
    assert_eq!(id_of(&mut bob, "INSERT").await, 2);
    assert_eq!(id_of(&mut bob, "UPDATE").await, 1);
    assert_eq!(id_of(&mut bob, "INSERT").await, 5);
    for expected in 1..=3 {
        assert_eq!(id_of(&mut everybody, "INSERT").await, expected);
    }
}

#[tokio::test]
async fn filters_operations_and_columns_are_chosen_in_the_query() {
    let service = shared().await;
    let first = service.table("value text, other text").await;
    let second = service.table("value text").await;
    // Encoded as `URLSearchParams` does, and as a person types it.
    let mut one = Stream::open(
        service,
        &anon(),
        &format!("changes=public.{first}%28id%2Cvalue%29%40INSERT%3Aid%3Dgt.2%2Cvalue%3Deq.%22a%2Cb+c%22%2C{second}"),
    )
    .await;
    let two = format!("changes={first}@delete&changes=public.{second}:value=in.(x,y)");
    let mut two = Stream::open(service, &anon(), &two).await;
    let admin = service.admin().await;
    let sql = format!(
        "insert into {first} values (1, 'a,b c', 'o'), (3, 'a,b c', 'o'), (4, 'z', 'o');
        insert into {second} values (5, 'z'), (6, 'x');
        delete from {first} where id = 3;
        insert into {second} values (7, 'y');"
    );
    admin.batch_execute(&sql).await.unwrap();
    let event = one.expect("INSERT").await;
    assert_eq!(event.json()["record"], json!({ "id": 3, "value": "a,b c" }));
    for expected in [5, 6, 7] {
        assert_eq!(id_of(&mut one, "INSERT").await, expected);
    }
    assert_eq!(id_of(&mut two, "INSERT").await, 6);
    assert_eq!(id_of(&mut two, "DELETE").await, 3);
    assert_eq!(id_of(&mut two, "INSERT").await, 7);
}

#[tokio::test]
async fn rooms_are_heard_by_the_names_of_their_events() {
    let service = shared().await;
    let mut stream = Stream::open(service, &anon(), "topics=sse-a,sse-b").await;
    let mut elsewhere = Stream::open(service, &anon(), "topic=sse-c").await;
    let json = "application/json";
    say(service, "sse-a", "moved", json, b"{\"x\":\n1}").await;
    let event = stream.expect("moved").await;
    assert_eq!((event.topic.as_deref(), event.id.as_deref()), (Some("sse-a"), None));
    assert_eq!(event.data, "{\"x\":\n1}");
    say(service, "sse-b", "bytes", "application/octet-stream", b"\x00\xff").await;
    let event = stream.expect("bytes").await;
    assert_eq!(event.topic.as_deref(), Some("sse-b"));
    assert_eq!(event.data, "data:application/octet-stream;base64,AP8=");
    // What one may say of itself nobody else may say.
    for event in ["INSERT", "close", "broadcast", "a%0Ad"] {
        say(service, "sse-b", event, json, b"7").await;
        let whole = stream.expect("broadcast").await.json();
        let event = event.replace("%0A", "\n");
        assert_eq!(whole, json!({ "event": event, "payload": 7, "type": "broadcast" }));
    }
    // From an older client, whose payload goes on as it wrote it.
    let mut socket = service.connect(Version::V1, &anon()).await;
    let reference = socket.send_join("realtime:sse-a", &json!({ "config": {} })).await;
    assert_eq!(socket.reply(&reference).await.payload["status"], "ok");
    let payload = json!({ "type": "broadcast", "event": "said", "payload": { "a": [1] } });
    socket.send(&Value::Null, &Value::Null, "realtime:sse-a", "broadcast", &payload).await;
    assert_eq!(stream.expect("said").await.json(), json!({ "a": [1] }));
    // And from the database, through the log.
    let admin = service.admin().await;
    let send = "select realtime.send('{\"b\":2}', 'stored', 'sse-a', false)";
    admin.batch_execute(send).await.unwrap();
    let event = stream.expect("stored").await;
    assert_eq!(event.json()["b"], 2);
    assert!(event.id.is_some());
    say(service, "sse-c", "only_this", json, b"1").await;
    elsewhere.expect("only_this").await;
}

#[tokio::test]
async fn rows_and_stored_broadcasts_of_one_stream_come_in_the_order_of_their_commits() {
    let service = shared().await;
    let table = service.table("value text").await;
    let topic = format!("order-{table}");
    let query = format!("changes={table}&topics={topic}");
    let mut stream = Stream::open(service, &anon(), &query).await;
    let admin = service.admin().await;
    for id in 0..20_i64 {
        let sql = format!(
            "insert into {table} values ({id}, 'x');
            select realtime.send('{{\"n\":{id}}}', 'said', '{topic}', false);"
        );
        admin.batch_execute(&sql).await.unwrap();
    }
    let mut last = String::new();
    for id in 0..20_i64 {
        for name in ["INSERT", "said"] {
            let event = stream.expect(name).await;
            let data = event.json();
            assert_eq!(if name == "said" { &data["n"] } else { &data["record"]["id"] }, id);
            let cursor = event.id.unwrap();
            assert!(last < cursor, "{last} {cursor}");
            last = cursor;
        }
    }
}

#[tokio::test]
async fn a_private_room_is_entered_by_policy_alone() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let policies = format!(
        "create policy hears on realtime.messages for select to authenticated
            using (realtime.topic() = 'mine' and auth.uid() = '{ALICE}');
        create policy carries on realtime.messages for select to authenticated using (
            current_setting('request.headers')::json ->> 'x-room' = realtime.topic());
        create policy writes on realtime.messages for insert to authenticated with check (true);"
    );
    admin.batch_execute(&policies).await.unwrap();
    let mut public = Stream::open(&service, &anon(), "topics=mine").await;
    let mut alice = Stream::open(&service, &user(ALICE), "topics=mine&private=true").await;
    let token = bearer(&user(BOB));
    let headers = [("authorization", &*token), ("x-room", "mine")];
    let mut carried = Stream::ask(&service, "topics=mine&private=true", &headers).await;
    carried.expect("ready").await;
    let query = "topics=mine&private=true";
    let (status, text) = refused(&service, query, &[("authorization", &token)]).await;
    assert_eq!(status, 403);
    assert_eq!(text, "You do not have permissions to read from this Channel topic: mine");
    // One room that is closed keeps all of it closed.
    let query = "topics=mine,other&private=true";
    let (status, _) = refused(&service, query, &[("authorization", &bearer(&user(ALICE)))]).await;
    assert_eq!(status, 403);
    let path = "POST /api/broadcast/mine/events/e?private=true";
    let headers = [("authorization", &*token), ("content-type", "application/json")];
    let answer = request(&service, path, &headers, b"1").await;
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    assert_eq!(alice.expect("e").await.data, "1");
    assert_eq!(carried.expect("e").await.data, "1");
    say(&service, "mine", "for_all", "application/json", b"2").await;
    public.expect("for_all").await;
}

#[tokio::test]
async fn a_token_comes_in_a_header_or_in_the_query_and_must_be_good() {
    let service = shared().await;
    let good = anon();
    let (bearer_, lower) = (bearer(&good), format!("bearer {good}"));
    for headers in
        [&[("authorization", &*bearer_)][..], &[("Authorization", &lower)], &[("apikey", &good)]]
    {
        let mut stream = Stream::ask(service, "topics=tokens", headers).await;
        stream.expect("ready").await;
    }
    for query in [format!("apikey={good}"), format!("apikey=sb_x&access_token={good}")] {
        let mut stream = Stream::ask(service, &format!("topics=tokens&{query}"), &[]).await;
        stream.expect("ready").await;
    }
    let expired = token(&json!({ "role": "anon", "exp": now() - 1 }));
    let forged = sign(&json!({ "role": "service_role", "exp": now() + 60 }), &"x".repeat(32));
    let nobody = token(&json!({ "role": "postgres" }));
    for (headers, error) in [
        (&[][..], "API key is missing"),
        (&[("authorization", "Basic x")], "The token provided is not a valid JWT"),
        (&[("authorization", "Bearer x")], "The token provided is not a valid JWT"),
        (&[("apikey", "sb_publishable_x")], "The token provided is not a valid JWT"),
        (&[("authorization", &*bearer(&expired))], "Token has expired"),
        (&[("authorization", &*bearer(&forged))], "Failed to validate JWT signature"),
    ] {
        let found = refused(service, "topics=tokens", headers).await;
        assert_eq!(found, (401, error.to_owned()), "{headers:?}");
    }
    let found = refused(service, "topics=tokens", &[("authorization", &bearer(&nobody))]).await;
    assert_eq!(found, (403, "The role in the token is not allowed".to_owned()));
    // A bad token in a header is not made good by another one elsewhere.
    let query = format!("topics=tokens&access_token={good}");
    let (status, _) = refused(service, &query, &[("authorization", "Bearer x")]).await;
    assert_eq!(status, 401);
}

#[tokio::test]
async fn what_cannot_be_subscribed_to_is_refused_in_a_sentence() {
    let service = shared().await;
    let table = service.table("value text").await;
    let token = bearer(&anon());
    let headers = [("authorization", &*token)];
    for (query, part) in [
        ("", "nothing is asked for"),
        ("changes=no_such_table", "Please check Realtime is enabled"),
        (&*format!("changes={table}:nothing=eq.1"), "invalid column for filter nothing"),
        (&format!("changes={table}:value=foo.1"), "Error parsing `filter` params"),
        (&format!("changes={table}:id=eq.x"), "invalid input syntax"),
        (&format!("changes={table}@TRUNCATE"), "an event is INSERT, UPDATE, DELETE or *"),
        (&format!("changes={table},"), "expected a name"),
        (&format!("changes={table}&topics=%00"), "contains a NUL"),
        (&format!("changes={table}&private=2"), "`private` must be true or false"),
        (&format!("changes={}", ["t"; 101].join(",")), "more than 100 elements"),
    ] {
        let (status, error) = refused(service, query, &headers).await;
        assert_eq!(status, 400, "{query}: {error}");
        assert!(error.contains(part), "{query}: {error}");
    }
    let answer = request(service, "POST /events?topics=a", &headers, b"").await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    // One element that is wrong keeps all of it out.
    let (status, _) = refused(service, &format!("changes={table},no_such_table"), &headers).await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn a_stream_is_a_place_among_the_sockets_and_a_client_that_hangs_up_gives_it_back() {
    let service = Service::with(|config| config.server.connections_max = 1).await;
    let table = service.table("value text").await;
    let query = format!("changes={table}&topics=a");
    let token = bearer(&anon());
    let headers = [("authorization", &*token)];
    for _ in 0..3 {
        let stream = Stream::open(&service, &anon(), &query).await;
        until_sockets(&service, 1).await;
        let mut second = Stream::ask(&service, &query, &headers).await;
        assert_eq!((second.status, second.header("retry-after")), (503, Some("2")));
        assert!(second.rest().await.contains("Too many connections"));
        // Whoever comes back by himself would take that for the last word.
        let again = [headers[0], ("last-event-id", "x")];
        let mut second = Stream::ask(&service, &query, &again).await;
        assert_eq!(second.status, 200);
        second.expect_close("unavailable").await;
        assert_eq!(second.retry.len(), 1);
        drop(stream);
        until_sockets(&service, 0).await;
    }
}

#[tokio::test]
async fn one_address_and_one_user_have_so_many_streams() {
    let service = Service::with(|config| config.limits.connections_per_ip_max = 2).await;
    let token = bearer(&anon());
    let headers = [("authorization", &*token)];
    let mut open = vec![Stream::open(&service, &anon(), "topics=a").await];
    open.push(Stream::open(&service, &anon(), "topics=a").await);
    let crowded = (429, "Too many connected users".to_owned());
    assert_eq!(refused(&service, "topics=a", &headers).await, crowded);
    drop(open);
    until_sockets(&service, 0).await;
    Stream::open(&service, &anon(), "topics=a").await;

    let service = Service::with(|config| config.limits.connections_per_user_max = 1).await;
    let alice = bearer(&user(ALICE));
    let headers = [("authorization", &*alice)];
    let stream = Stream::open(&service, &user(ALICE), "topics=a").await;
    Stream::open(&service, &user(BOB), "topics=a").await;
    assert_eq!(refused(&service, "topics=a", &headers).await, crowded);
    drop(stream);
    until_sockets(&service, 0).await;
    Stream::open(&service, &user(ALICE), "topics=a").await;
}

#[tokio::test]
async fn joins_topics_and_public_rooms_are_limited_as_on_a_socket() {
    let service = Service::with(|config| {
        config.limits.joins_per_second_max = 2;
        config.server.channels_per_connection_max = 3;
    })
    .await;
    let token = bearer(&anon());
    let headers = [("authorization", &*token)];
    let (status, error) = refused(&service, "topics=a,b,c", &headers).await;
    assert_eq!((status, &*error), (429, "Too many joins per second"));
    let (status, error) = refused(&service, "topics=a,b,c,d", &headers).await;
    assert_eq!((status, &*error), (400, "more than 3 topics"));
    let service = Service::with(|config| config.limits.private_only = true).await;
    let (status, error) = refused(&service, "topics=a", &headers).await;
    assert_eq!((status, &*error), (403, "This project only allows private channels"));
}

#[tokio::test]
async fn pages_of_other_origins_are_answered_as_the_settings_say() {
    let service = Service::with(|config| {
        config.limits.origins = vec!["https://app.example".into()];
    })
    .await;
    let token = bearer(&anon());
    let own = [("authorization", &*token), ("origin", "https://app.example")];
    let mut stream = Stream::ask(&service, "topics=a", &own).await;
    stream.expect("ready").await;
    assert_eq!(stream.header("access-control-allow-origin"), Some("https://app.example"));
    let mut wrong = Stream::ask(&service, "changes=no_such_table", &own).await;
    assert_eq!(wrong.status, 400);
    assert_eq!(wrong.header("access-control-allow-origin"), Some("https://app.example"));
    assert!(wrong.header("content-length").is_some() && !wrong.rest().await.is_empty());
    let foreign = [("authorization", &*token), ("origin", "https://evil.example")];
    let found = refused(&service, "topics=a", &foreign).await;
    assert_eq!(found, (403, "Origin is not allowed".to_owned()));
}

#[tokio::test]
async fn a_token_that_expires_ends_the_stream_and_says_so() {
    let service = shared().await;
    let table = service.table("value text").await;
    let short = token(&json!({ "role": "anon", "exp": now() + 3 }));
    let mut stream = Stream::open(service, &short, &format!("changes={table}")).await;
    stream.expect_close("token_expired").await;
    let (status, _) = refused(service, "topics=a", &[("authorization", &bearer(&short))]).await;
    assert_eq!(status, 401);
}

#[tokio::test]
async fn a_server_that_stops_says_so_and_does_not_wait() {
    let mut service = Service::start().await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(Stream::open(&service, &anon(), "topics=a").await);
    }
    service.stop().await.unwrap();
    for mut stream in streams {
        stream.expect_close("shutdown").await;
    }
}

#[tokio::test]
async fn a_stream_without_events_lives_by_its_comments() {
    let service = Service::with(|config| {
        config.server.stream_heartbeat_ms = 100;
        config.server.idle_timeout_ms = 1000;
    })
    .await;
    let mut stream = Stream::open(&service, &anon(), "topics=a").await;
    // Longer than a socket may be silent.
    while stream.comments < 25 {
        assert!(stream.more().await, "it ended");
        let text = std::mem::take(&mut stream.read);
        let blocks = String::from_utf8(text).unwrap();
        stream.comments += blocks.matches(":\n\n").count();
    }
    say(&service, "a", "still_here", "application/json", b"1").await;
    stream.read.clear();
    while !String::from_utf8_lossy(&stream.read).contains("event: still_here\n") {
        assert!(stream.more().await, "it ended");
    }
}

#[tokio::test]
async fn f53_a_client_that_does_not_read_is_closed_and_told_why() {
    let service = Service::with(|config| config.server.outbox_bytes_max = 256 * 1024).await;
    let table = service.table("value text").await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let stream = socket.connect(service.address).await.unwrap();
    let path = format!("/events?changes={table}&apikey={}", anon());
    let mut slow = Stream::send(stream, &get(&path, &[])).await;
    slow.expect("ready").await;
    let mut quick = Stream::open(&service, &anon(), &format!("changes={table}")).await;
    let admin = service.admin().await;
    for id in 0_i64.. {
        assert!(id < 5000, "it was never closed");
        let sql = format!("insert into {table} values ({id}, repeat('x', 100000))");
        admin.batch_execute(&sql).await.unwrap();
        assert_eq!(id_of(&mut quick, "INSERT").await, id);
        if sockets(&service).await == 1 {
            break;
        }
    }
    let mut read = 0;
    let end = loop {
        match slow.try_next().await {
            Some(event) if event.name == "INSERT" => read += 1,
            event => break event,
        }
    };
    // It may have been cut in the middle of an event, if it took nothing at all meanwhile.
    if let Some(end) = end {
        assert_eq!((&*end.name, &end.json()["reason"]), ("close", &json!("too_slow")), "{read}");
    }
    id_of_next_insert(&service, &table, &mut quick).await;
}

/// Another row still comes.
async fn id_of_next_insert(service: &Service, table: &str, stream: &mut Stream) {
    let admin = service.admin().await;
    admin.batch_execute(&format!("insert into {table} values (-1, 'x')")).await.unwrap();
    assert_eq!(id_of(stream, "INSERT").await, -1);
}

#[tokio::test]
async fn a_subscription_that_ends_is_told_in_words() {
    let service = shared().await;
    let table = service.table("value text, other text").await;
    let query = format!("changes={table}:other=eq.x");
    let mut stream = Stream::open(service, &anon(), &query).await;
    let admin = service.admin().await;
    admin.batch_execute(&format!("insert into {table} values (1, 'v', 'x')")).await.unwrap();
    assert_eq!(id_of(&mut stream, "INSERT").await, 1);
    let sql = format!(
        "alter table {table} drop column other;
        insert into {table} values (2, 'v');"
    );
    admin.batch_execute(&sql).await.unwrap();
    let notice = stream.expect("notice").await.json();
    assert!(notice["message"].as_str().unwrap().contains("other"), "{notice}");
}

#[tokio::test]
async fn a_feed_that_is_not_there_is_waited_for_by_who_comes_back() {
    let service = Service::start().await;
    let table = service.table("value text").await;
    // It gets no slot as long as the other one reads it.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let second = walcast::server::run_on(listener, service.config.clone(), stop.clone());
    let second = tokio::spawn(second);
    let token = bearer(&anon());
    let headers = [("authorization", &*token)];
    let query = format!("changes={table}");
    let mut stream = Stream::ask_at(address, &query, &headers).await;
    assert_eq!((stream.status, stream.header("retry-after")), (503, Some("2")));
    let body: Value = serde_json::from_str(&stream.rest().await).unwrap();
    assert_eq!(body["error"], "Connecting to the project database");
    let again = [headers[0], ("last-event-id", "x")];
    let mut stream = Stream::ask_at(address, &query, &again).await;
    assert_eq!(stream.status, 200);
    stream.expect_close("unavailable").await;
    stop.cancel();
    second.await.unwrap().unwrap();
}

#[tokio::test]
async fn where_rows_are_at_the_root_a_table_may_be_called_events() {
    let service = Service::with(|config| config.rest.at_root = true).await;
    let admin = service.admin().await;
    let sql = "create table events (id int); insert into events values (7); \
               grant select on events to anon;";
    admin.batch_execute(sql).await.unwrap();
    let token = bearer(&anon());
    let rows = async {
        loop {
            let answer = request(&service, "GET /events", &[("authorization", &token)], b"").await;
            if answer.ends_with("[{\"id\":7}]") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, rows).await.expect("rows of the table");
    Stream::open(&service, &anon(), "topics=a").await;
}

#[tokio::test]
async fn a_key_that_goes_away_takes_its_streams_with_it() {
    // Whatever closes all sockets closes all streams: here, a gap in the log.
    let mut service = Service::with(|config| config.jwt.secret = Secret::new(SECRET)).await;
    let mut stream = Stream::open(&service, &anon(), "topics=a").await;
    let admin = service.admin().await;
    let name = service.database.name.clone();
    let drop_slot = async {
        let end = format!(
            "select pg_terminate_backend(active_pid) from pg_replication_slots
            where slot_name = '{name}' and active_pid is not null"
        );
        let gone = format!("select pg_drop_replication_slot('{name}')");
        loop {
            admin.batch_execute(&end).await.unwrap();
            if admin.batch_execute(&gone).await.is_ok() {
                return;
            }
        }
    };
    timeout(DEADLINE, drop_slot).await.expect("the slot is dropped");
    stream.expect_close("shutdown").await;
    service.stop().await.unwrap();
}

/// Ids of the rows up to the word that nothing is missing any more, with the id of each event.
async fn replayed(stream: &mut Stream) -> (Vec<(i64, String)>, Event) {
    let mut rows = Vec::new();
    loop {
        let event = stream.next().await;
        match &*event.name {
            "INSERT" => {
                let id = event.json()["record"]["id"].as_i64().unwrap();
                rows.push((id, event.id.unwrap()));
            }
            "caught_up" | "gap" => return (rows, event),
            other => panic!("{other}: {event:?}"),
        }
    }
}

/// Comes back to a stream on one table, after `last`.
async fn again(service: &Service, token: &str, query: &str, last: &str) -> Stream {
    let headers = [("authorization", &*bearer(token)), ("last-event-id", last)];
    let mut stream = Stream::ask(service, query, &headers).await;
    let ready = stream.expect("ready").await;
    assert_eq!(ready.id, last.parse::<Cursor>().is_ok().then(|| last.to_owned()));
    stream
}

#[tokio::test]
async fn whoever_comes_back_is_sent_what_he_missed_once_and_goes_on() {
    let service = shared().await;
    let table = service.owned_table("value text").await;
    let query = format!("changes={table}@INSERT");
    let admin = service.admin().await;
    let insert = async |from: i64, to: i64, owner: &str| {
        let sql = format!(
            "insert into {table} (id, owner) select n, '{owner}' from generate_series({from}, {to}) n"
        );
        admin.batch_execute(&sql).await.unwrap();
    };
    let mut stream =
        Stream::ask(service, &query, &[("authorization", &*bearer(&user(ALICE)))]).await;
    let ready = stream.expect("ready").await;
    assert_eq!(ready.json(), json!({ "cursor": ready.id }));
    // Nothing came yet: the stream begins where it began.
    drop(stream);
    insert(1, 3, ALICE).await;
    insert(4, 4, BOB).await;
    let mut stream = again(service, &user(ALICE), &query, &ready.id.unwrap()).await;
    // What the service had not read by then comes behind that word.
    let mut first = stream.next().await;
    if first.name == "caught_up" {
        first = stream.expect("INSERT").await;
    }
    let cursor = first.id.clone().unwrap();
    assert_eq!(first.json()["record"]["id"], 1);
    drop(stream);
    insert(5, 6, ALICE).await;
    // In the query, where there is no header; the header wins.
    let from_query = format!("{query}&cursor={cursor}");
    let bearer = bearer(&user(ALICE));
    let mut streams = vec![again(service, &user(ALICE), &query, &cursor).await];
    streams.push(again(service, &user(ALICE), &format!("{query}&cursor=x"), &cursor).await);
    let mut asked = Stream::ask(service, &from_query, &[("authorization", &bearer)]).await;
    assert_eq!(asked.expect("ready").await.id.as_ref(), Some(&cursor));
    streams.push(asked);
    insert(7, 7, ALICE).await;
    for mut stream in streams {
        let (mut rows, word) = replayed(&mut stream).await;
        assert_eq!(word.name, "caught_up");
        assert_eq!(word.id.as_deref(), word.json()["cursor"].as_str());
        while rows.len() < 5 {
            let event = stream.expect("INSERT").await;
            assert!(event.id > word.id);
            rows.push((event.json()["record"]["id"].as_i64().unwrap(), event.id.unwrap()));
        }
        assert_eq!(rows.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [2, 3, 5, 6, 7]);
        assert!(rows.is_sorted_by(|(_, one), (_, next)| one < next), "{rows:?}");
    }
    // Decided as of now: somebody else sees his own.
    let mut bob = again(service, &user(BOB), &query, &cursor).await;
    let (rows, _) = replayed(&mut bob).await;
    assert_eq!(rows.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [4]);
}

#[tokio::test]
async fn what_cannot_be_sent_any_more_is_one_gap() {
    let service = shared().await;
    let table = service.table("value text").await;
    let query = format!("changes={table}@INSERT");
    let open = [("authorization", &*bearer(&anon()))];
    let begins = Stream::ask(service, &query, &open).await.expect("ready").await.id.unwrap();
    let (place, epoch) = begins.rsplit_once('-').unwrap();
    let other = if epoch.starts_with('0') { "1" } else { "0" };
    let admin = service.admin().await;
    for (n, (last, reason)) in (1_i64..).zip([
        ("not a cursor".to_owned(), "malformed_cursor"),
        ("x".repeat(5000), "malformed_cursor"),
        (format!("{place}-{other}{}", &epoch[1..]), "another_history"),
        (format!("FFFFFFFFFFFFFFFF-ffffffff-{epoch}"), "ahead_of_the_log"),
        (format!("{:016X}-00000000-{epoch}", 0), "history_expired"),
    ]) {
        let mut stream = again(service, &anon(), &query, &last).await;
        let gap = stream.expect("gap").await;
        let data = gap.json();
        assert_eq!((&data["reason"], data["to"].as_str()), (&json!(reason), gap.id.as_deref()));
        assert_eq!(data["from"].as_str(), last.parse::<Cursor>().is_ok().then_some(&*last));
        stream.expect("caught_up").await;
        admin.batch_execute(&format!("insert into {table} values ({n})")).await.unwrap();
        assert_eq!(id_of(&mut stream, "INSERT").await, n);
        // From where it went on nothing is missing.
        let mut stream = again(service, &anon(), &query, &gap.id.unwrap()).await;
        let (mut rows, word) = replayed(&mut stream).await;
        assert_eq!(word.name, "caught_up");
        if rows.is_empty() {
            rows.push((id_of(&mut stream, "INSERT").await, String::new()));
        }
        assert_eq!(rows[0].0, n);
    }
}

#[tokio::test]
async fn rooms_are_replayed_with_the_rows_in_one_order() {
    let service = shared().await;
    let table = service.table("value text").await;
    let (topic, other) = (format!("resume-{table}"), format!("other-{table}"));
    let query = format!("changes={table}@INSERT&topics={topic},{other}");
    let open = [("authorization", &*bearer(&anon()))];
    let begins = Stream::ask(service, &query, &open).await.expect("ready").await.id.unwrap();
    let admin = service.admin().await;
    let all = async |n: i64| {
        let sql = format!(
            "insert into {table} values ({n});
            select realtime.send('{{\"n\":{n}}}', 'said', '{topic}', false);
            select realtime.send('{{\"n\":{n}}}', 'also', '{other}', false);"
        );
        admin.batch_execute(&sql).await.unwrap();
    };
    all(1).await;
    all(2).await;
    let names = ["INSERT", "said", "also"];
    let expected: Vec<_> = (1..=3).flat_map(|n| names.map(|name| (name.to_owned(), n))).collect();
    // From the start, and then from each event.
    let mut last = begins.clone();
    for behind in 0..=6 {
        let mut stream = again(service, &anon(), &query, &last).await;
        if behind == 6 {
            all(3).await;
        }
        let missed = if behind == 6 { 9 } else { 6 } - behind;
        let (mut heard, mut ids, mut words) = (Vec::new(), Vec::new(), 0);
        while heard.len() < missed || words == 0 {
            let event = stream.next().await;
            let id = event.id.clone().expect("what came through the log has its place");
            if &*event.name == "caught_up" {
                words += 1;
                continue;
            }
            let data = event.json();
            let n = data["n"].as_i64().or(data["record"]["id"].as_i64()).unwrap();
            heard.push((event.name, n));
            ids.push(id);
        }
        assert_eq!(heard, expected[behind..behind + missed]);
        assert!(ids.is_sorted() && *ids[0] > *last, "{ids:?} after {last}");
        last.clone_from(&ids[0]);
    }
    // Rooms alone go on too, and what is no cursor is one gap.
    let mut stream = again(service, &anon(), &format!("topics={other}"), &begins).await;
    let mut heard = Vec::new();
    while heard.len() < 3 {
        let event = stream.next().await;
        if event.name != "caught_up" {
            heard.push((event.name.clone(), event.json()["n"].as_i64()));
        }
    }
    assert_eq!(heard, [1, 2, 3].map(|n| ("also".to_owned(), Some(n))));
    let mut stream = again(service, &anon(), &format!("topics={other}"), "nonsense").await;
    assert_eq!(stream.expect("gap").await.json()["reason"], "malformed_cursor");
    stream.expect("caught_up").await;
}

#[tokio::test]
async fn f85_no_token_reaches_the_log_whatever_is_logged() {
    let database = Database::create().await;
    let mut program = Command::new(env!("CARGO_BIN_EXE_walcast"))
        .arg("serve")
        .env_clear()
        .envs([("WALCAST_BIND", "127.0.0.1:0"), ("WALCAST_JWT_SECRET", SECRET)])
        .envs([("DATABASE_URL", &*database.url), ("WALCAST_SLOT", &*database.name)])
        .env("WALCAST_LOG", "trace")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(program.stderr.take().unwrap()).lines();
    let (address, addressed) = tokio::sync::oneshot::channel();
    let (ready, readied) = tokio::sync::oneshot::channel();
    // It is read all the time: a pipe that is full would hold the program up.
    let log = tokio::spawn(async move {
        let (mut log, mut address, mut ready) = (String::new(), Some(address), Some(ready));
        while let Some(line) = lines.next_line().await.unwrap() {
            if let Some((_, found)) = line.split_once("listening address=")
                && let Some(address) = address.take()
            {
                address.send(found.parse::<SocketAddr>().unwrap()).unwrap();
            }
            if line.contains("slot attached")
                && let Some(ready) = ready.take()
            {
                ready.send(()).unwrap();
            }
            log.extend([&*line, "\n"]);
        }
        log
    });
    let address = timeout(DEADLINE, addressed).await.expect("it listens").unwrap();
    timeout(DEADLINE, readied).await.expect("it is ready").unwrap();
    let good = anon();
    let bad = sign(&json!({ "role": "anon", "exp": now() + 60 }), &"x".repeat(32));
    for token in [&good, &bad] {
        let (bearer, query) = (bearer(token), format!("topics=a&access_token={token}"));
        let wrong = format!("changes=no_such_table&apikey={token}");
        for (query, headers) in [
            ("topics=a", &[("authorization", &*bearer)][..]),
            ("topics=a", &[("apikey", token)]),
            (&query, &[]),
            (&wrong, &[]),
        ] {
            let mut stream = Stream::ask_at(address, query, headers).await;
            if stream.status == 200 {
                stream.expect("ready").await;
            }
        }
    }
    let pid = program.id().unwrap().to_string();
    let kill = std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap();
    assert!(kill.success());
    let log = timeout(DEADLINE, log).await.expect("it ends").unwrap();
    // What was asked for is logged, so that there is something to look at.
    assert!(log.contains("socket open"), "{log}");
    for token in [&good, &bad] {
        let signature = token.rsplit('.').next().unwrap();
        let line = log.lines().find(|line| line.contains(signature));
        assert_eq!(line, None, "a token in the log");
    }
}
