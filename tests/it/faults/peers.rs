//! What clients and those who pretend to be some do: they stop reading, come back all at once, flood,
//! lie about their requests, write into the log. Tests are named after the rows of the fault matrix in
//! `docs/guarantees.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::proxy::{Direction, Fault, Proxy};
use crate::cluster::Database;
use crate::operations::{Program, environment};
use crate::service::{
    DEADLINE, SECRET, Service, Socket, Version, anon, now, shared, sign, token, user,
};
use crate::stream::all_of;

/// Everybody may do everything with it.
const TABLE_T: &str = "
    create table t (id bigint primary key, value text);
    grant all on t to anon, authenticated, service_role;
    alter publication supabase_realtime add table t;
";

fn url(address: SocketAddr, token: &str) -> String {
    format!("ws://{address}/realtime/v1/websocket?apikey={token}&vsn=2.0.0")
}

/// Joins on everything of a table, from a cursor on if there is one; where the subscription begins.
async fn join(socket: &mut Socket, table: &str, cursor: Option<&Value>) -> Value {
    let mut all = all_of(table);
    if let Some(cursor) = cursor {
        all[0]["cursor"] = cursor.clone();
    }
    let payload = json!({ "config": { "postgres_changes": all } });
    let reply = socket.join("realtime:test", &payload).await;
    assert_eq!(reply["status"], "ok", "{reply}");
    reply["response"]["cursor"].clone()
}

#[tokio::test]
async fn f53_who_stopped_reading_is_closed_and_goes_on_where_he_was() {
    let database = Database::create().await;
    let mut variables = environment(&database).to_vec();
    variables.push(("WALCAST_SERVER_OUTBOX_BYTES_MAX", "65536"));
    variables.push(("WALCAST_REPLICATION_REPLAY_WINDOW_MS", "3600000"));
    variables.push(("WALCAST_REPLICATION_REPLAY_WINDOW_BYTES", "4294967296"));
    let mut program = Program::start(&variables);
    program.ready().await;
    let client = database.client().await;
    client.batch_execute(TABLE_T).await.unwrap();
    let proxy = Proxy::start(program.address().await, 1).await;
    let mut socket = Socket::open(Version::V2, &url(proxy.address, &anon()), &[]).await.unwrap();
    let mut cursor = join(&mut socket, "t", None).await;
    socket.expect("system").await;
    proxy.set(Direction::Down, Fault::Stall);
    let mut written = 0_i64;
    // What the kernels take on the way is theirs to say.
    while program.metric("walcast_connections").await > 0.5 {
        assert!(written < 5000, "it was never closed");
        let insert = "insert into t select $1::int8, repeat('x', 200000)";
        client.execute(insert, &[&written]).await.unwrap();
        written += 1;
    }
    proxy.heal();
    let mut next = 0;
    let mut take = |mut data: Value| {
        assert_eq!(data["record"]["id"], next);
        next += 1;
        data["cursor"].take()
    };
    // It may have been cut in the middle of a frame, if it took nothing at all meanwhile.
    let code = loop {
        match socket.try_next().await {
            Ok(mut message) => cursor = take(message.payload["data"].take()),
            Err(code) => break code,
        }
    };
    assert!(code.is_none_or(|code| code == 1013), "{code:?}");
    let mut socket = Socket::open(Version::V2, &url(proxy.address, &anon()), &[]).await.unwrap();
    join(&mut socket, "t", Some(&cursor)).await;
    socket.expect("system").await;
    client.execute("insert into t values ($1, 'last')", &[&written]).await.unwrap();
    let mut last = json!(null);
    while last != "last" {
        let mut message = socket.next().await;
        if message.event == "postgres_changes" {
            let data = message.payload["data"].take();
            last = data["record"]["value"].clone();
            take(data);
        } else {
            assert_eq!(message.payload["kind"], "caught_up", "{}", message.payload);
        }
    }
    assert_eq!(next, written + 1);
}

#[tokio::test]
async fn f54_all_who_come_back_at_once_get_what_each_of_them_missed() {
    const USERS: usize = 5;
    const SOCKETS: usize = 100;
    let mut service = Service::with(Service::keep_all).await;
    let table = service.owned_table("value text").await;
    let subject = |n: usize| format!("00000000-0000-4000-8000-{:012}", n % USERS);
    let connect = async |service: &Service, n: usize, cursor: Option<Value>| {
        let mut socket = service.connect(Version::V2, &user(&subject(n))).await;
        let begins = join(&mut socket, &table, cursor.as_ref()).await;
        (socket, begins)
    };
    let first = join_all((0..SOCKETS).map(|n| connect(&service, n, None))).await;
    let cursors: Vec<Value> = first.iter().map(|(_, cursor)| cursor.clone()).collect();
    let admin = service.admin().await;
    let write = async |from: usize| {
        for n in from..from + 4 * USERS {
            let insert = format!("insert into {table} values ({n}, '{}', 'v')", subject(n));
            admin.batch_execute(&insert).await.unwrap();
        }
    };
    write(0).await;
    service.stop().await.unwrap();
    drop(first);
    write(4 * USERS).await;
    service.start_again().await;
    let again = cursors.into_iter().enumerate();
    let again = again.map(|(n, cursor)| connect(&service, n, Some(cursor)));
    for (n, (mut socket, _)) in join_all(again).await.into_iter().enumerate() {
        let mut seen = Vec::new();
        while seen.len() < 8 {
            let message = socket.next().await;
            if message.event == "postgres_changes" {
                seen.push(message.payload["data"]["record"]["id"].as_u64().unwrap());
            } else {
                assert_ne!(message.payload["kind"], "gap", "{}", message.payload);
            }
        }
        let own = (0..8 * USERS).filter(|id| id % USERS == n % USERS);
        assert_eq!(seen, own.map(|id| id.try_into().unwrap()).collect::<Vec<u64>>());
        let more: Vec<_> = socket.rest().await;
        assert!(more.iter().all(|message| message.event == "system"), "{more:?}");
    }
}

#[tokio::test]
async fn f56_one_client_on_and_off_in_a_hurry_leaves_one_presence() {
    const TIMES: u64 = 30;
    let service = shared().await;
    let topic = "realtime:on and off";
    let payload = json!({ "config": { "presence": { "key": "me", "enabled": true } } });
    let mut watcher = service.connect(Version::V2, &anon()).await;
    assert_eq!(watcher.join(topic, &payload).await["status"], "ok");
    let mut last = None;
    for n in 0..TIMES {
        let mut socket = service.connect(Version::V2, &anon()).await;
        assert_eq!(socket.join(topic, &payload).await["status"], "ok");
        let track = json!({ "type": "presence", "event": "track", "payload": { "n": n } });
        let reference = socket.reference();
        socket.send(&Value::Null, &reference, topic, "presence", &track).await;
        assert_eq!(socket.reply(&reference).await.payload["status"], "ok");
        // The one before is lost only now: both are there for a moment.
        last = Some(socket);
    }
    // What its state becomes by the diffs, as clients make it.
    let mut metas: BTreeMap<String, u64> = BTreeMap::new();
    let listed = |side: &Value| -> Vec<(String, u64)> {
        let metas = side["me"]["metas"].as_array().cloned().unwrap_or_default();
        let one = |meta: Value| {
            (meta["phx_ref"].as_str().unwrap().to_owned(), meta["n"].as_u64().unwrap_or(u64::MAX))
        };
        metas.into_iter().map(one).collect()
    };
    while metas.values().collect::<Vec<_>>() != [&(TIMES - 1)] {
        let message = timeout(DEADLINE, watcher.next()).await.unwrap();
        match &*message.event {
            "presence_state" => metas = listed(&message.payload).into_iter().collect(),
            "presence_diff" => {
                metas.extend(listed(&message.payload["joins"]));
                for (gone, _) in listed(&message.payload["leaves"]) {
                    metas.remove(&gone);
                }
            }
            other => panic!("{other}"),
        }
    }
    // Whoever comes now is told the same.
    let mut late = service.connect(Version::V2, &anon()).await;
    assert_eq!(late.join(topic, &payload).await["status"], "ok");
    let state = late.expect("presence_state").await.payload;
    assert_eq!(listed(&state), metas.into_iter().collect::<Vec<_>>());
    drop(last);
}

#[tokio::test]
async fn f65_a_flood_of_bad_tokens_asks_nothing_of_postgres_and_delays_nobody() {
    let service = Service::start().await;
    let admin = service.admin().await;
    // From here on nobody is let into the database: whatever asks it is not answered.
    let name = &service.database.name;
    let none = format!(
        "alter database {name} connection limit 0;
        select pg_terminate_backend(pid, 60000) from pg_stat_activity
        where datname = '{name}' and application_name like 'walcast %'"
    );
    admin.batch_execute(&none).await.unwrap();
    let expired = token(&json!({ "role": "anon", "exp": now() - 10 }));
    let elsewhere = sign(&json!({ "role": "anon", "exp": now() + 60 }), &"x".repeat(32));
    let role = token(&json!({ "role": "postgres" }));
    let bad = [
        expired,
        elsewhere,
        role,
        "a.b.c".into(),
        String::new(),
        "x".repeat(20_000),
        format!("{}.", anon()),
    ];
    let flood = (0..350).map(|n| {
        let url = url(service.address, &bad[n % bad.len()]);
        async move { Socket::open(Version::V2, &url, &[]).await.err().expect("it is refused").0 }
    });
    let good = (0..20).map(|_| async {
        let mut socket = service.connect(Version::V2, &anon()).await;
        socket.join("realtime:a room", &json!({ "config": {} })).await["status"].clone()
    });
    let (refused, joined) = tokio::join!(join_all(flood), join_all(good));
    let statuses: BTreeSet<u16> = refused.into_iter().collect();
    assert!(statuses.iter().all(|status| [401, 403].contains(status)), "{statuses:?}");
    assert!(joined.iter().all(|status| status == "ok"), "{joined:?}");
    admin.batch_execute(&format!("alter database {name} connection limit -1")).await.unwrap();
}

/// Sends bytes as they are, and reads to the end of what is answered.
async fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // It may be refused before all of it was said.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = timeout(DEADLINE, stream.read_to_end(&mut answer)).await.expect("an end in time");
    String::from_utf8_lossy(&answer).into_owned()
}

/// How many responses there are in it.
fn responses(answer: &str) -> usize {
    answer.matches("HTTP/1.1 ").count()
}

#[tokio::test]
async fn f67_requests_that_two_readers_could_read_in_two_ways_are_refused() {
    let service = Service::with(|config| config.server.header_timeout_ms = 1000).await;
    let post =
        "POST /realtime/v1/api/broadcast HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let hidden = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    for (name, request) in [
        (
            "both lengths",
            format!(
                "{post}content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"
            ),
        ),
        (
            "both lengths, the other way round",
            format!(
                "{post}transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n{hidden}"
            ),
        ),
        ("two lengths", format!("{post}content-length: 0\r\ncontent-length: 40\r\n\r\n{hidden}")),
        ("a list of lengths", format!("{post}content-length: 0, 40\r\n\r\n{hidden}")),
        ("a signed length", format!("{post}content-length: +0\r\n\r\n{hidden}")),
        ("another coding", format!("{post}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n{hidden}")),
        (
            "chunked is not last",
            format!("{post}transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n{hidden}"),
        ),
        ("a folded header", format!("{post}x: a\r\n b\r\ncontent-length: 0\r\n\r\n{hidden}")),
        ("a space before a colon", format!("{post}content-length : 0\r\n\r\n{hidden}")),
        ("two hosts", format!("{post}host: y\r\ncontent-length: 0\r\n\r\n{hidden}")),
        ("a nul", format!("{post}x: a\0b\r\ncontent-length: 0\r\n\r\n{hidden}")),
        (
            "an old version with chunks",
            format!(
                "{}transfer-encoding: chunked\r\n\r\n0\r\n\r\n{hidden}",
                post.replace("HTTP/1.1", "HTTP/1.0")
            ),
        ),
    ] {
        let answer = exchange(service.address, request.as_bytes()).await;
        let first = answer.lines().next().unwrap_or_default();
        let status: u16 =
            first.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
        assert!((400..500).contains(&status), "{name}: {answer}");
        assert_eq!(responses(&answer), 1, "{name}: {answer}");
    }
    // What follows an upgrade is frames, never another request.
    let upgrade = format!(
        "GET /realtime/v1/websocket?apikey={}&vsn=2.0.0 HTTP/1.1\r\nhost: x\r\n\
         connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        anon()
    );
    for request in
        [format!("{upgrade}\r\n{hidden}"), format!("{upgrade}content-length: 40\r\n\r\n{hidden}")]
    {
        let answer = exchange(service.address, request.as_bytes()).await;
        assert_eq!(responses(&answer), 1, "{answer}");
    }
}

#[tokio::test]
async fn f84_whatever_clients_say_the_log_has_whole_lines_and_metrics_no_new_names() {
    const EVIL: [&str; 6] = [
        "two\nlines",
        "\r\n{\"level\":\"ERROR\"}",
        "\u{1b}[31mred\u{1b}[0m",
        "\"},\"fields\":{\"message\":\"forged",
        "\u{2028}\u{202e}\\u0000",
        "%0d%0aset: x",
    ];
    let database = Database::create().await;
    let mut variables = environment(&database).to_vec();
    variables.push(("LOG_FORMAT", "json"));
    variables.push(("WALCAST_LOG", "debug"));
    let mut program = Program::start(&variables);
    program.ready().await;
    let address = program.address().await;
    let misbehave = async |round: usize| {
        for (n, evil) in EVIL.iter().enumerate() {
            let subject = format!("{evil}{round}");
            let token = token(&json!({ "role": "authenticated", "sub": subject, "email": evil }));
            let mut socket = Socket::open(Version::V2, &url(address, &token), &[]).await.unwrap();
            let topic = format!("realtime:{round} {n} {evil}");
            socket.join(&topic, &json!({ "config": {} })).await;
            let table = json!([{ "event": evil, "schema": evil, "table": evil, "filter": evil }]);
            let payload = json!({ "config": { "postgres_changes": table } });
            socket.join(&format!("{topic} rows"), &payload).await;
            let private = json!({ "config": { "private": true } });
            socket.join(&format!("{topic} private"), &private).await;
            let push = json!({ "type": "broadcast", "event": evil, "payload": { "x": evil } });
            socket.send(&Value::Null, &json!(evil), &topic, evil, &push).await;
            socket.heartbeat().await;
            let path: Vec<_> = evil.bytes().map(|byte| format!("%{byte:02x}")).collect();
            let path = path.concat();
            for path in [
                format!("/rest/v1/{path}?{path}=eq.{path}"),
                format!("/socket/websocket?apikey={path}"),
                format!("/events?changes={path}&apikey={path}"),
                format!("/realtime/v1/api/tenants/{path}/health"),
            ] {
                let request = format!(
                    "GET {path} HTTP/1.1\r\nhost: x\r\nuser-agent: \"}}\u{e9}\t{{\r\n\
                     connection: close\r\n\r\n"
                );
                exchange(address, request.as_bytes()).await;
            }
        }
    };
    for round in 0..3 {
        misbehave(round).await;
    }
    // Every label is a word out of a list of ours, or the bound of a bucket.
    let text = program.get("/metrics").await;
    let (_, metrics) = text.split_once("\r\n\r\n").unwrap();
    let series: Vec<_> = metrics.lines().filter(|line| line.starts_with("walcast_")).collect();
    let plain = |c: char| c.is_ascii_alphanumeric() || "_{}\"=,.+- ".contains(c);
    assert!(series.len() > 20 && series.len() < 1000, "{}", series.len());
    for line in series {
        assert!(line.chars().all(plain) && !line.contains("lines"), "{line}");
    }
    program.terminate();
    let lines = program.log().await;
    assert!(lines.len() > 50, "{}", lines.len());
    for line in lines {
        let value: Result<Value, _> = serde_json::from_str(&line);
        assert!(value.is_ok_and(|value| value["level"].is_string()), "{line}");
        assert!(!line.contains('\u{1b}') && !line.contains(SECRET), "{line}");
    }
}
