//! In the official container's place: what its neighbours ask, what its environment says, what its
//! database keeps, and the other services behind the same URL.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use futures_util::StreamExt as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::time::timeout;
use walcast::config::{Config, Secret};

use crate::cluster::{Database, bin, connect};
use crate::service::{
    ALICE, DEADLINE, PATIENT, SECRET, Service, Socket, Version, anon, now, service_role, sign, user,
};

/// Sends one request as it is; reads the answer to its end.
async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = Vec::new();
    timeout(DEADLINE, stream.read_to_end(&mut response)).await.unwrap().unwrap();
    String::from_utf8(response).unwrap()
}

/// A request with these headers, and its answer.
async fn ask(address: SocketAddr, line: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = format!("{line} HTTP/1.1\r\nhost: rt.example\r\nconnection: close\r\n");
    for (name, value) in headers {
        request.extend([name, ": ", value, "\r\n"]);
    }
    request.push_str("\r\n");
    Answer::parse(&exchange(address, &request).await)
}

/// An answer in its parts.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Answer {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let pair = |line: &str| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.to_ascii_lowercase(), value.to_owned())
        };
        Self { status, headers: lines.map(pair).collect(), body: body.to_owned() }
    }

    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(it, _)| it == name).map_or("", |(_, value)| value)
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }
}

fn bearer(token: &str) -> [(&'static str, String); 1] {
    [("authorization", format!("Bearer {token}"))]
}

/// As [`ask`], with a bearer token.
async fn ask_as(address: SocketAddr, line: &str, token: &str) -> Answer {
    let [(name, value)] = bearer(token);
    ask(address, line, &[(name, &value)]).await
}

#[tokio::test]
async fn probes_are_answered_under_both_families_of_paths() {
    let service = crate::service::shared().await;
    for path in ["/healthcheck", "/health", "/healthz"] {
        let answer = ask(service.address, &format!("GET {path}"), &[]).await;
        assert_eq!((answer.status, &*answer.body), (200, "ok"), "{path}");
        let answer = ask(service.address, &format!("HEAD {path}"), &[]).await;
        assert_eq!((answer.status, &*answer.body), (200, ""), "{path}");
    }
    for path in ["/api/ping", "/realtime/v1/api/ping"] {
        let answer = ask(service.address, &format!("GET {path}"), &[]).await;
        assert_eq!((answer.status, answer.json()), (200, json!({ "message": "Success" })));
    }
    let status = ask(service.address, "GET /status", &[]).await;
    assert_eq!(status.json()["status"], "ready");
    assert_eq!(ask(service.address, "GET /api/nothing", &[]).await.status, 404);
    assert_eq!(ask(service.address, "GET /auth/v1/health", &[]).await.status, 404);
}

#[tokio::test]
async fn the_tenants_health_is_for_bearers_of_our_tokens() {
    let service = crate::service::shared().await;
    let expired = sign(&json!({ "role": "anon", "exp": now() - 1 }), SECRET);
    let forged = sign(&json!({ "role": "anon", "exp": now() + 60 }), &"x".repeat(32));
    let without_role = sign(&json!({ "exp": now() + 60 }), SECRET);
    for path in ["/api/tenants/realtime-dev/health", "/realtime/v1/api/tenants/any/health"] {
        let get = format!("GET {path}");
        for token in [&*expired, &*forged, "garbage", ""] {
            let answer = ask_as(service.address, &get, token).await;
            assert_eq!((answer.status, &*answer.body), (403, ""), "{token}");
        }
        assert_eq!(ask(service.address, &get, &[]).await.status, 403);
        for token in [&*anon(), &*without_role] {
            let answer = ask_as(service.address, &get, token).await;
            assert_eq!(answer.status, 200);
            let mut body = answer.json();
            assert!(body["data"]["connected_cluster"].take().is_u64());
            assert_eq!(
                body["data"],
                json!({
                    "healthy": true, "db_connected": true, "replication_connected": true,
                    "connected_cluster": null, "region": "local", "node": "walcast",
                })
            );
            let answer = ask_as(service.address, &format!("HEAD {path}"), token).await;
            assert_eq!((answer.status, &*answer.body), (200, ""));
        }
    }
}

#[tokio::test]
async fn there_is_one_tenant_and_it_cannot_be_written() {
    let service = Service::with(|config| {
        config.server.tenant_name = "mine".into();
        config.limits.joins_per_second_max = 77;
    })
    .await;
    let list = ask_as(service.address, "GET /api/tenants", &anon()).await.json();
    assert_eq!(list["data"].as_array().unwrap().len(), 1);
    let one = ask_as(service.address, "GET /realtime/v1/api/tenants/mine", &anon()).await;
    assert_eq!(one.json()["data"], list["data"][0]);
    assert_eq!(one.json()["data"]["external_id"], "mine");
    assert_eq!(one.json()["data"]["max_joins_per_second"], 77);
    assert!(!one.body.contains(SECRET));
    for line in [
        "POST /api/tenants",
        "PUT /api/tenants/mine",
        "DELETE /api/tenants/mine",
        "POST /api/tenants/mine/reload",
        "POST /api/tenants/mine/shutdown",
    ] {
        assert_eq!(ask(service.address, line, &[]).await.status, 403, "{line}");
        let answer = ask_as(service.address, line, &service_role()).await;
        assert_eq!((answer.status, answer.header("allow")), (405, "GET, HEAD"), "{line}");
        assert!(answer.json()["message"].as_str().unwrap().contains("settings"), "{line}");
    }
}

#[tokio::test]
async fn metrics_are_read_with_their_own_secret() {
    let other = "another-secret-of-thirty-two-bytes-or-more";
    let service = Service::with(|config| config.jwt.metrics_secret = Secret::new(other)).await;
    let scraper = sign(&json!({}), other);
    let expired = sign(&json!({ "exp": now() - 1 }), other);
    for path in ["GET /metrics", "GET /tenant-metrics"] {
        assert_eq!(ask(service.address, path, &[]).await.status, 403);
        for token in [&*anon(), &*expired] {
            assert_eq!(ask_as(service.address, path, token).await.status, 403);
        }
        assert_eq!(ask_as(service.address, path, &scraper).await.status, 200);
    }
    // The other way round it opens nothing.
    let health = "GET /api/tenants/x/health";
    assert_eq!(ask_as(service.address, health, &scraper).await.status, 403);
}

#[tokio::test]
async fn f87_a_browser_may_ask_from_any_page_unless_there_is_a_list() {
    let service = crate::service::shared().await;
    let preflight = [
        ("origin", "https://app.example"),
        ("access-control-request-method", "GET"),
        ("access-control-request-headers", "authorization,x-mine"),
    ];
    let answer = ask(service.address, "OPTIONS /realtime/v1/api/ping", &preflight).await;
    assert_eq!(answer.status, 204);
    assert_eq!(answer.header("access-control-allow-origin"), "*");
    assert_eq!(answer.header("access-control-allow-headers"), "authorization,x-mine");
    let answer = ask(service.address, "GET /api/ping", &preflight[..1]).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, "*"));

    let listed = Service::with(|config| config.limits.origins = vec!["https://app.example".into()]);
    let service = listed.await;
    let answer = ask(service.address, "OPTIONS /api/ping", &preflight).await;
    assert_eq!(answer.header("access-control-allow-origin"), "https://app.example");
    assert_eq!(answer.header("vary"), "Origin");
    let evil = [("origin", "https://evil.example"), preflight[1], preflight[2]];
    let answer = ask(service.address, "OPTIONS /api/ping", &evil).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (403, ""));
    let answer = ask(service.address, "GET /api/ping", &evil[..1]).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, ""));

    let url = service.url(&format!("/socket/websocket?apikey={}", anon()));
    let open = async |headers: &[(&'static str, &str)]| {
        Socket::open(Version::V1, &url, headers).await.map(drop)
    };
    assert_eq!(open(&[("origin", "https://app.example")]).await, Ok(()));
    assert_eq!(open(&[]).await, Ok(()));
    let refused = open(&[("origin", "https://evil.example")]).await.unwrap_err();
    assert_eq!(refused, (403, "{\"error\":\"Origin is not allowed\"}".into()));
}

#[tokio::test]
async fn one_address_has_so_many_sockets_and_gets_them_back() {
    let service = Service::with(|config| {
        config.limits.connections_per_ip_max = 2;
        config.limits.address_header = "x-forwarded-for".into();
    })
    .await;
    let url = service.url(&format!("/socket/websocket?apikey={}", anon()));
    let open = async |address: &str| {
        Socket::open(Version::V1, &url, &[("x-forwarded-for", address)]).await
    };
    let first = open("203.0.113.1").await.unwrap();
    let _second = open("198.51.100.7, 203.0.113.1").await.unwrap();
    let refused = open("203.0.113.1").await.err().unwrap();
    assert_eq!(refused, (429, "{\"error\":\"Too many connected users\"}".into()));
    let _other = open("203.0.113.2").await.unwrap();
    let _half = open("2001:db8:1:2::1").await.unwrap();
    let _whole = open("2001:db8:1:2::2").await.unwrap();
    assert_eq!(open("2001:db8:1:2:ffff::3").await.err().unwrap().0, 429);
    let _next = open("2001:db8:1:3::1").await.unwrap();
    drop(first);
    let again = async {
        while open("203.0.113.1").await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, again).await.expect("the place comes back");
}

/// A directory with the program under other names, as its image has them.
struct Links(PathBuf);

impl Links {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("walcast-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        for link in ["curl", "sh"] {
            let program = Path::new(env!("CARGO_BIN_EXE_walcast"));
            std::os::unix::fs::symlink(program, directory.join(link)).unwrap();
        }
        Self(directory)
    }

    async fn run(&self, name: &str, arguments: &[&str]) -> (i32, String) {
        let output = Command::new(self.0.join(name)).args(arguments).env_clear().output().await;
        let Output { status, stdout, .. } = output.unwrap();
        (status.code().unwrap(), String::from_utf8(stdout).unwrap())
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn the_compose_files_health_check_runs_inside_the_image() {
    let service = crate::service::shared().await;
    let links = Links::new("links");
    let check = |token: &str, tenant: &str| {
        format!(
            "curl -sSfL --head -o /dev/null -H \"Authorization: Bearer {token}\" \
             http://localhost:{}/api/tenants/{tenant}/health",
            service.address.port()
        )
    };
    let healthy = links.run("sh", &["-c", &check(&anon(), "realtime-dev")]).await;
    assert_eq!(healthy, (0, String::new()));
    assert_eq!(links.run("sh", &["-c", &check("wrong", "realtime-dev")]).await.0, 22);
    let url = format!("http://{}/api/ping", service.address);
    assert_eq!(links.run("curl", &["-s", &url]).await, (0, "{\"message\":\"Success\"}".into()));
    let (code, head) = links.run("curl", &["-sI", &url]).await;
    assert!(code == 0 && head.starts_with("HTTP/1.1 200 "), "{code} {head}");
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(links.run("curl", &["-f", &format!("http://{unused}/")]).await.0, 7);
    assert_eq!(links.run("sh", &["-c", "id"]).await.0, 2);
}

/// Everything in a database that `pg_dump` knows, rows included.
async fn dump(database: &Database) -> String {
    let directory = bin().unwrap_or_else(|| {
        let installed = std::fs::read_dir("/usr/lib/postgresql").unwrap();
        let newest = installed.map(|entry| entry.unwrap().path().join("bin")).max();
        newest.expect("PostgreSQL is installed")
    });
    let program = [directory.join("pg_dump"), "pg_dump".into()];
    let program = program.iter().find(|path| path.exists()).unwrap_or(&program[1]);
    let output = Command::new(program).args(["--create", &database.url]).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    // A key of each dump's own, which is for psql.
    let fixed = |line: &&str| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict");
    text.lines().filter(fixed).collect::<Vec<_>>().join("\n")
}

/// Runs `walcast` with this environment; what it printed.
async fn walcast(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_walcast"))
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .await
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// A database as the official container leaves it.
async fn official() -> Database {
    let database = Database::create().await;
    let client = database.client().await;
    for role in ["anon", "authenticated", "service_role"] {
        let bypass = if role == "service_role" { " bypassrls" } else { "" };
        let create = format!("create role {role} nologin noinherit{bypass}");
        client.batch_execute(&create).await.ok(); // Another test may have.
    }
    let (admin, keeper) = (format!("admin_{}", database.name), format!("keeper_{}", database.name));
    let roles = format!("create role {admin} superuser; create role {keeper} nologin noinherit");
    client.batch_execute(&roles).await.unwrap();
    let sql = include_str!("../data/official.sql");
    let sql = sql.replace("ADMIN", &admin).replace("KEEPER", &keeper);
    client.batch_execute(&sql).await.unwrap();
    database
}

#[tokio::test]
async fn an_official_database_is_adopted_and_left_as_found() {
    let database = official().await;
    let before = dump(&database).await;
    let mut service = Service::on(database, |_| ()).await;
    let database = &service.database;
    let environment =
        [("DATABASE_URL", &*database.url), ("WALCAST_SLOT", &service.config.replication.slot)];
    walcast(&["migrate"], &environment).await;

    // It serves what the database publishes, by the policies that are there.
    let all = json!([{ "event": "*", "schema": "public", "table": "todos" }]);
    let mut socket = service.subscribe(Version::V2, &user(ALICE), all).await;
    let insert = format!("insert into public.todos values (1, '{ALICE}', 'milk')");
    service.admin().await.batch_execute(&insert).await.unwrap();
    assert_eq!(socket.change().await["record"]["title"], "milk");
    // The trigger's message is in a partition that walcast made: it is not walcast's to delete.
    let messages = "select count(*) from realtime.messages where topic = 'todos'";
    let client = service.admin().await;
    assert_eq!(client.query_one(messages, &[]).await.unwrap().get::<_, i64>(0), 1);
    assert_ne!(dump(database).await, before);

    drop(socket);
    service.stop().await.unwrap();
    let database = &service.database;
    let environment =
        [("DATABASE_URL", &*database.url), ("WALCAST_SLOT", &service.config.replication.slot)];
    client.batch_execute("delete from public.todos").await.unwrap();
    let text = walcast(&["uninstall", "--drop-slot"], &environment).await;
    assert!(text.contains(&format!("dropped  slot {}", database.name)), "{text}");
    assert!(text.contains("dropped  schema walcast"), "{text}");
    assert!(text.contains("it holds messages"), "{text}");
    let kept = text.lines().filter(|line| line.starts_with("kept"));
    assert_eq!(kept.filter(|line| !line.contains("kept     role ")).count(), 1, "{text}");

    let today = "select c.oid::regclass::text from pg_class as c \
         where c.oid = (select tableoid from realtime.messages where topic = 'todos')";
    let today: String = client.query_one(today, &[]).await.unwrap().get(0);
    client.batch_execute(&format!("drop table {today}")).await.unwrap();
    let after = dump(database).await;
    assert_eq!(after, before);
    let left: i64 = client
        .query_one(
            "select (select count(*) from pg_replication_slots where database = current_database()) \
                 + (select count(*) from pg_roles as r \
                     join pg_shdescription as d on d.objoid = r.oid \
                     where r.rolname ~ '^walcast_(repl|check)_' \
                         and d.description like '%' || current_database() || '%')",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(left, 0, "slots and logins");
    assert_eq!(
        walcast(&["uninstall"], &environment).await,
        "nothing of walcast is installed here\n"
    );
}

#[tokio::test]
async fn the_official_environment_starts_it_with_the_official_log() {
    let database = Database::create().await;
    let url: tokio_postgres::Config = database.url.parse().unwrap();
    let host = match &url.get_hosts()[0] {
        tokio_postgres::config::Host::Tcp(name) => name.clone(),
        tokio_postgres::config::Host::Unix(directory) => directory.to_str().unwrap().to_owned(),
    };
    let (port, password) = (url.get_ports()[0].to_string(), url.get_password().unwrap_or_default());
    let mut child = Command::new(env!("CARGO_BIN_EXE_walcast"))
        .arg("serve")
        .env_clear()
        .envs(PATIENT)
        .envs([
            ("PORT", "0"),
            ("DB_HOST", &*host),
            ("DB_PORT", &*port),
            ("DB_USER", url.get_user().unwrap()),
            ("DB_PASSWORD", std::str::from_utf8(password).unwrap()), // Empty counts as not set.
            ("DB_NAME", &*database.name),
            ("DB_AFTER_CONNECT_QUERY", "SET search_path TO _realtime"),
            ("DB_ENC_KEY", "supabaserealtime"),
            ("DB_SSL", "False"),
            ("API_JWT_SECRET", SECRET),
            ("METRICS_JWT_SECRET", SECRET),
            ("SECRET_KEY_BASE", "hunter2"),
            ("ERL_AFLAGS", "-proto_dist inet_tcp"),
            ("DNS_NODES", "''"),
            ("RLIMIT_NOFILE", "many"),
            ("APP_NAME", "realtime"),
            ("SEED_SELF_HOST", "True"),
            ("RUN_JANITOR", "perhaps"),
            ("DISABLE_HEALTHCHECK_LOGGING", "true"),
            ("MAX_HEADER_LENGTH", "4096"),
            ("SLOT_NAME_SUFFIX", &*database.name),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let (mut ignored, mut address) = (0, None);
    while address.is_none() {
        let line = timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap().expect("a line");
        let (clock, rest) = line.split_once(' ').unwrap();
        assert!(clock.len() == 12 && clock.as_bytes()[8] == b'.', "{line}");
        let level = rest.split(' ').next().unwrap();
        assert!(["[info]", "[warning]", "[error]", "[debug]"].contains(&level), "{line}");
        assert!(!line.contains("hunter2") && !line.contains(SECRET), "{line}");
        if line.contains("names without meaning") {
            ignored += 1;
            for name in ["SECRET_KEY_BASE", "RLIMIT_NOFILE", "RUN_JANITOR", "DNS_NODES"] {
                assert!(line.contains(name), "{name} in {line}");
            }
        }
        address = line.split_once("listening address=").map(|(_, it)| it.parse().unwrap());
    }
    assert_eq!(ignored, 1);
    let health = ask_as(address.unwrap(), "HEAD /api/tenants/realtime-dev/health", &anon()).await;
    assert_eq!(health.status, 200);
    let admin = connect(&database.url).await;
    let slots =
        "select slot_name::text from pg_replication_slots where database = current_database()";
    let attached = async {
        loop {
            if let Some(row) = admin.query_opt(slots, &[]).await.unwrap() {
                return row.get::<_, String>(0);
            }
            tokio::task::yield_now().await;
        }
    };
    let slot = timeout(DEADLINE, attached).await.unwrap();
    assert_eq!(slot, format!("walcast_{}", database.name));
}

/// What an upstream was asked.
#[derive(Debug, Clone)]
struct Seen {
    line: String,
    headers: axum::http::HeaderMap,
}

/// Another service of a project: it answers as the path says, and keeps what it saw.
struct Upstream {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// What comes in of bodies, piece by piece.
    pieces: mpsc::UnboundedReceiver<Bytes>,
    /// What `/functions/v1/stream` answers, piece by piece.
    answer: mpsc::UnboundedSender<Bytes>,
}

#[derive(Clone)]
struct Desk {
    seen: Arc<Mutex<Vec<Seen>>>,
    pieces: mpsc::UnboundedSender<Bytes>,
    answer: Arc<Mutex<Option<mpsc::UnboundedReceiver<Bytes>>>>,
}

impl Upstream {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, pieces) = mpsc::unbounded_channel();
        let (answer, answers) = mpsc::unbounded_channel();
        let desk = Desk {
            seen: Arc::default(),
            pieces: sender,
            answer: Arc::new(Mutex::new(Some(answers))),
        };
        let seen = Arc::clone(&desk.seen);
        let router = Router::new().fallback(any(reply)).with_state(desk);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, seen, pieces, answer }
    }

    fn last(&self) -> Seen {
        self.seen.lock().unwrap().last().unwrap().clone()
    }

    /// A service in front of it.
    async fn behind(&self, change: impl FnOnce(&mut Config)) -> Service {
        let upstream = format!("http://{}", self.address);
        Service::with(|config| {
            config.proxy.upstream = upstream;
            change(config);
        })
        .await
    }
}

async fn reply(State(desk): State<Desk>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let line = format!("{} {}", parts.method, parts.uri);
    desk.seen.lock().unwrap().push(Seen { line, headers: parts.headers.clone() });
    let host = parts.headers[header::HOST].to_str().unwrap().to_owned();
    match parts.uri.path() {
        "/storage/v1/upload" => {
            let mut body = body.into_data_stream();
            let mut count = 0;
            while let Some(Ok(piece)) = body.next().await {
                count += piece.len();
                let _ = desk.pieces.send(piece);
            }
            let location = format!("http://{host}/storage/v1/upload/7?x=1");
            (StatusCode::CREATED, [(header::LOCATION, location)], count.to_string()).into_response()
        }
        "/functions/v1/stream" => {
            let mut answers = desk.answer.lock().unwrap().take().unwrap();
            let stream = futures_util::stream::poll_fn(move |cx| answers.poll_recv(cx));
            Body::from_stream(stream.map(Ok::<_, std::io::Error>)).into_response()
        }
        "/functions/v1/silent" => std::future::pending().await,
        "/auth/v1/login" => {
            let headers = [
                (header::SET_COOKIE, "a=1; Domain=127.0.0.1; Path=/".to_owned()),
                (header::STRICT_TRANSPORT_SECURITY, "max-age=1".to_owned()),
                (header::ACCESS_CONTROL_ALLOW_ORIGIN, "https://theirs.example".to_owned()),
                (header::LOCATION, "https://accounts.example/".to_owned()),
            ];
            let mut response = (StatusCode::FOUND, headers).into_response();
            let second = "b=2; Domain=other.example".parse().unwrap();
            response.headers_mut().append(header::SET_COOKIE, second);
            response
        }
        _ => "theirs".into_response(),
    }
}

#[tokio::test]
async fn other_services_are_passed_through_untouched() {
    let upstream = Upstream::start().await;
    let service = upstream.behind(|_| ()).await;
    let headers = [
        ("authorization", "Bearer user"),
        ("apikey", "anon"),
        ("te", "trailers"),
        ("x-forwarded-for", "203.0.113.5"),
        ("proxy-authorization", "hunter2"),
    ];
    let answer = ask(service.address, "PATCH /rest/v1/t?id=eq.1&a=%2F%20b", &headers).await;
    assert_eq!((answer.status, &*answer.body), (200, "theirs"));
    let seen = upstream.last();
    assert_eq!(seen.line, "PATCH /rest/v1/t?id=eq.1&a=%2F%20b");
    let header = |name: &str| seen.headers.get(name).map_or("", |value| value.to_str().unwrap());
    assert_eq!(header("host"), upstream.address.to_string());
    assert_eq!(header("authorization"), "Bearer user");
    assert_eq!(header("apikey"), "anon");
    assert_eq!(header("x-forwarded-for"), "203.0.113.5, 127.0.0.1");
    for gone in ["te", "proxy-authorization", "connection"] {
        assert_eq!(header(gone), "", "{gone}");
    }

    let answer =
        ask(service.address, "GET /auth/v1/login", &[("origin", "https://a.example")]).await;
    assert_eq!(answer.status, 302);
    let cookies: Vec<_> =
        answer.headers.iter().filter(|(name, _)| name == "set-cookie").map(|(_, it)| it).collect();
    assert_eq!(cookies, ["a=1; Path=/", "b=2; Domain=other.example"]);
    assert_eq!(answer.header("location"), "https://accounts.example/");
    assert_eq!(answer.header("strict-transport-security"), "");
    assert_eq!(answer.header("access-control-allow-origin"), "https://theirs.example");

    // Ours stay ours, and what is neither is nobody's.
    let count = upstream.seen.lock().unwrap().len();
    assert_eq!(ask(service.address, "GET /api/ping", &[]).await.status, 200);
    for (line, status) in [
        ("GET /", 404),
        ("GET /pg/tables", 404),
        ("GET /realtime/v1/api/other", 404),
        ("GET /rest/v1/../../pg", 400),
        ("GET /rest/v1/%2e%2e/x", 400),
    ] {
        assert_eq!(ask(service.address, line, &[]).await.status, status, "{line}");
    }
    let upgrade = [("upgrade", "websocket")];
    assert_eq!(ask(service.address, "GET /functions/v1/socket", &upgrade).await.status, 501);
    assert_eq!(upstream.seen.lock().unwrap().len(), count);
    let offer = [("upgrade", "h2c"), ("connection", "upgrade")];
    assert_eq!(ask(service.address, "GET /functions/v1/plain", &offer).await.status, 200);
    assert!(!upstream.last().headers.contains_key("upgrade"));
}

#[tokio::test]
async fn bodies_flow_both_ways_as_they_come() {
    let mut upstream = Upstream::start().await;
    let service = upstream.behind(|_| ()).await;

    // Up: each piece arrives before the next one is sent.
    let mut stream = TcpStream::connect(service.address).await.unwrap();
    let head = "POST /storage/v1/upload HTTP/1.1\r\nhost: rt.example\r\nconnection: close\r\n\
                x-forwarded-proto: https\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    for piece in ["first", "second"] {
        let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
        stream.write_all(chunk.as_bytes()).await.unwrap();
        let arrived = timeout(DEADLINE, upstream.pieces.recv()).await.unwrap().unwrap();
        assert_eq!(arrived, piece);
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let mut text = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut text)).await.unwrap().unwrap();
    let answer = Answer::parse(&text);
    assert_eq!((answer.status, &*answer.body), (201, "11"));
    assert_eq!(answer.header("location"), "https://rt.example/storage/v1/upload/7?x=1");

    // Down: each piece is here before the next one is made.
    let mut stream = TcpStream::connect(service.address).await.unwrap();
    let head = "GET /functions/v1/stream HTTP/1.1\r\nhost: rt.example\r\nconnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut text = String::new();
    for piece in ["tick", "tock"] {
        upstream.answer.send(Bytes::from(piece)).unwrap();
        while !text.contains(piece) {
            let mut part = [0; 1024];
            let read = timeout(DEADLINE, stream.read(&mut part)).await.unwrap().unwrap();
            assert_ne!(read, 0, "{text}");
            text.push_str(std::str::from_utf8(&part[..read]).unwrap());
        }
    }
}

#[tokio::test]
async fn no_more_requests_are_passed_through_than_may_be() {
    let upstream = Upstream::start().await;
    let service = upstream.behind(|config| config.proxy.requests_max = 1).await;
    let address = service.address;
    let first = tokio::spawn(async move { ask(address, "GET /functions/v1/silent", &[]).await });
    let taken = async {
        while upstream.seen.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, taken).await.unwrap();
    assert_eq!(ask(address, "GET /rest/v1/", &[]).await.status, 503);
    // The place of a client that goes away is free again.
    first.abort();
    let free = async {
        while ask(address, "GET /rest/v1/", &[]).await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, free).await.expect("the place comes back");
}

#[tokio::test]
async fn an_upstream_that_is_away_slow_or_ourselves_is_told_apart() {
    let upstream = Upstream::start().await;
    let service = upstream.behind(|config| config.proxy.silence_max_ms = 1000).await;
    let answer = ask(service.address, "GET /functions/v1/silent", &[]).await;
    assert_eq!(answer.status, 504);
    assert_eq!(answer.json()["error"], "The upstream did not answer in time");
    let looped = [("x-walcast-proxied", "1")];
    assert_eq!(ask(service.address, "GET /rest/v1/", &looped).await.status, 508);

    // An answer that stops in the middle is cut, not ended.
    let mut stream = TcpStream::connect(service.address).await.unwrap();
    let head = "GET /functions/v1/stream HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    upstream.answer.send(Bytes::from("half")).unwrap();
    let mut text = Vec::new();
    let _ = timeout(DEADLINE, stream.read_to_end(&mut text)).await.unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("half") && !text.ends_with("0\r\n\r\n"), "{text}");

    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let service = Service::with(|config| config.proxy.upstream = format!("http://{unused}")).await;
    let answer = ask(service.address, "GET /auth/v1/health", &[]).await;
    assert_eq!(answer.status, 502);
    assert_eq!(answer.json()["error"], "The upstream cannot be reached");
}

#[tokio::test]
async fn an_upload_that_keeps_coming_is_not_silence() {
    let mut upstream = Upstream::start().await;
    let service = upstream.behind(|config| config.proxy.silence_max_ms = 2000).await;
    let mut stream = TcpStream::connect(service.address).await.unwrap();
    let head = "POST /storage/v1/upload HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                transfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    // Longer than the silence that ends it, all in all.
    let mut tick = tokio::time::interval(Duration::from_millis(600));
    for _ in 0..5 {
        tick.tick().await;
        stream.write_all(b"1\r\nx\r\n").await.unwrap();
        timeout(DEADLINE, upstream.pieces.recv()).await.unwrap().unwrap();
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let mut text = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut text)).await.unwrap().unwrap();
    assert_eq!(Answer::parse(&text).body, "5");
}

/// A program that serves with this environment, and where.
async fn listening(environment: &[(&str, &str)]) -> (tokio::process::Child, SocketAddr) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_walcast"))
        .arg("serve")
        .env_clear()
        .envs(PATIENT)
        .envs([("WALCAST_BIND", "127.0.0.1:0"), ("WALCAST_JWT_SECRET", SECRET)])
        .envs(environment.iter().copied())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    loop {
        let line = timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap().expect("a line");
        if let Some((_, address)) = line.split_once("listening address=") {
            let address = address.parse().unwrap();
            // What it writes later has a reader, too.
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return (child, address);
        }
    }
}

#[tokio::test]
async fn an_upstream_in_tls_proves_its_name() {
    let links = Links::new("tls");
    let directory = &links.0;
    let openssl = |arguments: &str| {
        let mut command = std::process::Command::new("openssl");
        command.args(arguments.split(' ')).current_dir(directory);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    std::fs::write(directory.join("san"), "subjectAltName=DNS:localhost").unwrap();
    openssl("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.pem");
    openssl("req -newkey rsa:2048 -nodes -subj /CN=leaf -keyout leaf.key -out leaf.csr");
    let sign = "x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2";
    openssl(&format!("{sign} -extfile san -out leaf.pem"));

    let certificate = CertificateDer::from_pem_file(directory.join("leaf.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(directory.join("leaf.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let settings = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(settings));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let answer = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nsafe";
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            });
        }
    });

    let database = Database::create().await;
    let trusted = directory.join("ca.pem");
    let ask_through = async |host: &str, trusted: &Path| {
        let upstream = format!("https://{host}:{port}");
        let (_child, address) = listening(&[
            ("DATABASE_URL", &database.url),
            ("WALCAST_SLOT", &database.name),
            ("UPSTREAM_SUPABASE_URL", &upstream),
            ("SSL_CERT_FILE", trusted.to_str().unwrap()),
        ])
        .await;
        let answer = ask(address, "GET /rest/v1/", &[]).await;
        (answer.status, answer.body)
    };
    assert_eq!(ask_through("localhost", &trusted).await, (200, "safe".into()));
    // The right authority for another name, and the right name by another authority.
    assert_eq!(ask_through("127.0.0.1", &trusted).await.0, 502);
    openssl("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout no.key -out no.pem");
    assert_eq!(ask_through("localhost", &directory.join("no.pem")).await.0, 502);
}
