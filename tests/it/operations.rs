//! `walcast serve` as an operator meets it: what it refuses, what it waits for, how it stops, what
//! it tells.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::process::Stdio;
use std::sync::OnceLock;

use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::timeout;
use tokio_postgres::Client;

use crate::cluster::{Cluster, Database, cluster, connect};
use crate::service::{ALICE, BOB, DEADLINE, PATIENT, SECRET, Socket, Version, anon, user};

/// Everybody may see it.
const TABLE_T: &str = "
    create table t (id bigint primary key);
    grant select on t to anon;
    alter publication supabase_realtime add table t;
";

/// Rows of their owner only.
const TABLE_RLS_T: &str = "
    create table rls_t (id bigint primary key, owner uuid);
    grant select on rls_t to authenticated;
    alter table rls_t enable row level security;
    create policy own on rls_t to authenticated using (owner = (select auth.uid()));
    alter publication supabase_realtime add table rls_t;
";

/// A running `walcast serve` whose log nobody reads.
pub(crate) struct Unread {
    _child: Child,
    pub(crate) address: SocketAddr,
}

/// A running `walcast serve`.
pub(crate) struct Program {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
    address: Option<SocketAddr>,
}

impl Program {
    /// Starts it on a free port, with nothing but this environment.
    pub(crate) fn start(environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_walcast"));
        command.arg("serve").env_clear();
        Self::spawn(command, environment)
    }

    /// As [`Self::start`], by a command that ends up as `walcast serve`.
    pub(crate) fn spawn(mut command: Command, environment: &[(&str, &str)]) -> Self {
        let mut child = command
            .envs([("WALCAST_BIND", "127.0.0.1:0"), ("WALCAST_JWT_SECRET", SECRET)])
            .envs(PATIENT)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, lines, address: None }
    }

    /// On a database with a slot of the database's name, until changes flow.
    pub(crate) async fn serving(database: &Database) -> Self {
        let mut program = Self::start(&environment(database));
        program.ready().await;
        program
    }

    /// The next line with this part; everything before it is passed over.
    pub(crate) async fn line(&mut self, part: &str) -> String {
        let mut passed = String::new();
        let found = timeout(DEADLINE, self.find(part, &mut passed)).await;
        found.unwrap_or_else(|_| panic!("no {part:?} in time after:\n{passed}"))
    }

    pub(crate) async fn find(&mut self, part: &str, passed: &mut String) -> String {
        loop {
            let line = self.lines.next_line().await.unwrap();
            let Some(line) = line else { panic!("no {part:?} in:\n{passed}") };
            assert!(!line.contains(SECRET) && !line.contains("hunter2"), "a secret: {line}");
            if let Some((_, address)) = line.rsplit_once("listening address=") {
                self.address = Some(address.parse().unwrap());
            } else if let Some((_, rest)) = line.split_once(r#""message":"listening","address":""#)
            {
                self.address = Some(rest.split('"').next().unwrap().parse().unwrap());
            }
            if line.contains(part) {
                return line;
            }
            passed.push_str(&line);
            passed.push('\n');
        }
    }

    pub(crate) async fn address(&mut self) -> SocketAddr {
        if let Some(address) = self.address {
            return address;
        }
        self.line("listening").await;
        self.address.unwrap()
    }

    /// The response to a GET: head and body.
    pub(crate) async fn get(&mut self, path: &str) -> String {
        let address = self.address().await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        timeout(DEADLINE, stream.read_to_string(&mut response)).await.unwrap().unwrap();
        response
    }

    pub(crate) async fn is_ready(&mut self) -> bool {
        self.get("/readyz").await.starts_with("HTTP/1.1 200 ")
    }

    pub(crate) async fn ready(&mut self) {
        self.becomes_ready(true).await;
    }

    pub(crate) async fn becomes_ready(&mut self, ready: bool) {
        let wait = async {
            while self.is_ready().await != ready {
                tokio::time::sleep(POLL).await;
            }
        };
        timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("ready={ready} in time"));
    }

    pub(crate) async fn subscribe(&mut self, token: &str, table: &str) -> Socket {
        let address = self.address().await;
        let url = format!("ws://{address}/realtime/v1/websocket?apikey={token}&vsn=2.0.0");
        let mut socket = Socket::open(Version::V2, &url, &[]).await.unwrap();
        let all = json!([{ "event": "*", "schema": "public", "table": table }]);
        socket.subscribe("realtime:test", all).await;
        socket
    }

    /// One value out of `/metrics`; the name has its labels with it. Zero when it is not there.
    pub(crate) async fn metric(&mut self, name: &str) -> f64 {
        let text = self.get("/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits until these metrics are in these ranges: they are counted around what clients see, a
    /// moment before or after.
    async fn measures(&mut self, expected: &[(&str, RangeInclusive<f64>)]) {
        let mut found = Vec::new();
        let wait = async {
            loop {
                found.clear();
                for (name, range) in expected {
                    let value = self.metric(name).await;
                    if !range.contains(&value) {
                        found.push((*name, value));
                    }
                }
                if found.is_empty() {
                    return;
                }
                tokio::time::sleep(POLL).await;
            }
        };
        let settled = timeout(DEADLINE, wait).await;
        assert!(settled.is_ok(), "not as expected: {found:?}");
    }

    pub(crate) fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends a signal, such as `STOP`.
    pub(crate) fn signal(&self, name: &str) {
        let (signal, pid) = (format!("-{name}"), self.pid().to_string());
        assert!(std::process::Command::new("kill").args([signal, pid]).status().unwrap().success());
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// SIGKILL, and the end of it.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Reads its log no more: what it writes from now on fails.
    pub(crate) fn without_log(self) -> Unread {
        Unread { _child: self.child, address: self.address.expect("where it listens was read") }
    }

    /// Every line from here on, until it has ended.
    pub(crate) async fn log(mut self) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(line) = timeout(DEADLINE, self.lines.next_line()).await.unwrap().unwrap() {
            lines.push(line);
        }
        lines
    }

    /// How it ends, and the last line it wrote.
    pub(crate) async fn end(mut self) -> (i32, String) {
        let mut last = String::new();
        while let Some(line) = timeout(DEADLINE, self.lines.next_line()).await.unwrap().unwrap() {
            assert!(!line.contains(SECRET) && !line.contains("hunter2"), "a secret: {line}");
            last = line;
        }
        let status = timeout(DEADLINE, self.child.wait()).await.unwrap().unwrap();
        (status.code().expect("no signal ended it"), last)
    }
}

/// Between two looks at something that has no event of its own.
pub(crate) const POLL: std::time::Duration = std::time::Duration::from_millis(20);

pub(crate) fn environment(database: &Database) -> [(&'static str, &str); 2] {
    [("DATABASE_URL", &database.url), ("WALCAST_SLOT", &database.name)]
}

/// `serve` ends with one sentence, which has this in it.
async fn refuses(environment: &[(&str, &str)], parts: &[&str]) {
    let (code, last) = Program::start(environment).end().await;
    assert_eq!(code, 1, "{last}");
    assert!(last.starts_with("walcast: "), "{last}");
    for part in parts {
        assert!(last.contains(part), "no {part:?} in: {last}");
    }
}

/// Waits until a query says true.
pub(crate) async fn until(client: &Client, query: &str) {
    let wait = async {
        while !client.query_one(query, &[]).await.unwrap().get::<_, bool>(0) {
            tokio::time::sleep(POLL).await;
        }
    };
    timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("never true: {query}"));
}

/// A server that can do little: no logical decoding, one slot and one walsender when there is.
fn poor(wal_level: &'static str) -> &'static Cluster {
    static REPLICA: OnceLock<Cluster> = OnceLock::new();
    static LOGICAL: OnceLock<Cluster> = OnceLock::new();
    let place = if wal_level == "logical" { &LOGICAL } else { &REPLICA };
    place.get_or_init(|| {
        let few =
            [("wal_level", wal_level), ("max_replication_slots", "1"), ("max_wal_senders", "1")];
        Cluster::start(&format!("poor-{wal_level}"), &few)
    })
}

/// A role for one test, with a password; its URL.
async fn role(client: &Client, database: &Database, name: &str, attributes: &str) -> String {
    let name = format!("{name}_{}", database.name);
    let sql = format!("create role {name} login password 'hunter2' {attributes}");
    client.batch_execute(&sql).await.unwrap();
    database.url.replace("postgres://postgres@", &format!("postgres://{name}:hunter2@"))
}

#[tokio::test]
async fn a_server_that_is_not_there_ends_serve() {
    let start = "start Postgres there, or correct the host and port in DATABASE_URL";
    refuses(&[("DATABASE_URL", "postgres://a:hunter2@127.0.0.1:1/x")], &[start]).await;
    refuses(&[("DATABASE_URL", "postgres://a@%2Fno%2Fsuch/x")], &[start]).await;
    let name = "correct the host name in DATABASE_URL";
    refuses(&[("DATABASE_URL", "postgres://a:hunter2@no-such-host.invalid/x")], &[name]).await;
    let text = "setting DATABASE_URL: must be written postgres://user:password@host:port/database";
    refuses(&[("DATABASE_URL", "mysql://a:hunter2@h/x")], &[text]).await;
    let database = Database::create().await;
    let absent = database.url.replace(&database.name, "no_such_database");
    refuses(&[("DATABASE_URL", &absent)], &["create that database, or correct the name"]).await;
}

#[tokio::test]
async fn a_wrong_password_ends_serve() {
    let database = Database::create().await;
    let client = database.client().await;
    let name = format!("known_{}", database.name);
    let sql = format!("create role {name} login password 'right'");
    client.batch_execute(&sql).await.unwrap();
    let url = cluster().tcp_url(&database.name);
    let address = url.rsplit_once('@').unwrap().1;
    let url = format!("postgres://{name}:hunter2@{address}");
    let advice = "correct the user and password in DATABASE_URL";
    refuses(&[("DATABASE_URL", &url)], &[advice]).await;
}

#[tokio::test]
async fn a_port_that_is_taken_ends_serve() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let database = Database::create().await;
    let environment = [("DATABASE_URL", &*database.url), ("WALCAST_BIND", &address)];
    let advice = "stop what listens there, or set WALCAST_BIND to another address";
    refuses(&environment, &["cannot listen on ", advice]).await;
}

#[tokio::test]
async fn a_log_without_logical_decoding_ends_serve() {
    let cluster = tokio::task::spawn_blocking(|| poor("replica")).await.unwrap();
    let url = cluster.url("postgres");
    let advice = "run `alter system set wal_level = logical` and restart Postgres";
    refuses(&[("DATABASE_URL", &url)], &["wal_level = replica", advice]).await;
    let doctor = Command::new(env!("CARGO_BIN_EXE_walcast"))
        .arg("doctor")
        .env_clear()
        .env("DATABASE_URL", &url)
        .output();
    let doctor = doctor.await.unwrap();
    assert_eq!(doctor.status.code(), Some(1));
    let text = String::from_utf8(doctor.stdout).unwrap();
    assert!(
        text.contains("red   wal_level is replica, so row changes are not in the log"),
        "{text}"
    );
    assert!(text.contains("alter system set wal_level = logical;"), "{text}");
}

#[tokio::test]
async fn no_free_slot_ends_serve_and_no_free_walsender_is_waited_for() {
    let cluster = tokio::task::spawn_blocking(|| poor("logical")).await.unwrap();
    let url = cluster.url("postgres");
    let client = connect(&url).await;
    let taken = "select pg_create_logical_replication_slot('taken', 'pgoutput')";
    client.batch_execute(taken).await.unwrap();
    let advice = "all replication slots are in use: raise max_replication_slots or drop one";
    refuses(&[("DATABASE_URL", &url), ("WALCAST_SLOT", "ours")], &[advice]).await;
    client.batch_execute("select pg_drop_replication_slot('taken')").await.unwrap();
    // Its own walsender takes the only one.
    let mut first = Program::start(&[("DATABASE_URL", &url), ("WALCAST_SLOT", "ours")]);
    first.ready().await;
    let mut second = Program::start(&[("DATABASE_URL", &url), ("WALCAST_SLOT", "ours")]);
    second.line("raise max_wal_senders or max_connections, or end another connection").await;
    assert!(!second.is_ready().await);
    first.terminate();
    assert_eq!(first.end().await.0, 0);
    second.ready().await;
    second.terminate();
    assert_eq!(second.end().await.0, 0);
}

#[tokio::test]
async fn a_missing_publication_is_made_or_waited_for() {
    let database = Database::create().await;
    let client = database.client().await;
    let several = ("WALCAST_PUBLICATIONS", "first_one,Second one");
    let mut program = Program::start(&[environment(&database).as_slice(), &[several]].concat());
    // The first is made by whoever starts first; others are the user's.
    let sentence = r#"publication Second one does not exist: create it with `create publication \"Second one\"`"#;
    program.line(sentence).await;
    let made = "select count(*) from pg_publication where pubname = 'first_one'";
    assert_eq!(client.query_one(made, &[]).await.unwrap().get::<_, i64>(0), 1);
    assert!(!program.is_ready().await);
    client.batch_execute("create publication \"Second one\"").await.unwrap();
    program.ready().await;
}

#[tokio::test]
async fn logins_that_can_do_too_little_end_serve() {
    let database = Database::create().await;
    let client = database.client().await;
    let owner = environment(&database);
    let program = Program::serving(&database).await;
    program.terminate();
    assert_eq!(program.end().await.0, 0);
    let weak = role(&client, &database, "weak", "noinherit").await;
    let able = role(&client, &database, "able", "noinherit in role anon, authenticated").await;
    let reader = role(&client, &database, "reader", "noinherit replication").await;
    // Without REPLICATION.
    let given = [("WALCAST_REPLICATION_URL", &*weak), ("WALCAST_CHECK_URL", &*able)];
    let sentence = "the login of WALCAST_REPLICATION_URL has no REPLICATION; run: alter role";
    refuses(&[owner.as_slice(), &given].concat(), &[sentence]).await;
    // Without the roles.
    let given = [("WALCAST_REPLICATION_URL", &*reader), ("WALCAST_CHECK_URL", &*weak)];
    let sentence = "none of the roles anon, authenticated, service_role is one that the login of \
                    WALCAST_CHECK_URL may become; run: grant \"anon\", \"authenticated\"";
    refuses(&[owner.as_slice(), &given].concat(), &[sentence]).await;
    // Some of the roles are enough for some of the tokens.
    let given = [("WALCAST_REPLICATION_URL", &*reader), ("WALCAST_CHECK_URL", &*able)];
    let mut program = Program::start(&[owner.as_slice(), &given].concat());
    program.line("may not become service_role; their tokens are refused").await;
    program.ready().await;
    // Roles that exist nowhere.
    let unknown = ("WALCAST_ROLES", "nobody_of_that_name");
    let sentence = "none of the roles nobody_of_that_name exists";
    refuses(&[owner.as_slice(), &[unknown]].concat(), &[sentence]).await;
}

#[tokio::test]
async fn an_installing_login_without_power_says_what_an_administrator_runs() {
    let database = Database::create().await;
    let client = database.client().await;
    let url = role(&client, &database, "tenant", "").await;
    let name = &database.name;
    let environment = [("DATABASE_URL", &*url), ("WALCAST_SLOT", &**name)];
    let mut program = Program::start(&environment);
    let sentence = format!("run: grant create on database {name} to tenant_{name}");
    program.line(&sentence).await;
    let (code, last) = program.end().await;
    assert_eq!(code, 1);
    assert!(last.contains("DATABASE_URL may not make logins"), "{last}");
    assert!(last.contains("create role walcast_repl login replication noinherit"), "{last}");
    // Given both logins and the right to create, it runs; what only a superuser may do is left out.
    let grant = format!("grant create on database {name} to tenant_{name}");
    client.batch_execute(&grant).await.unwrap();
    let reader = role(&client, &database, "replica", "noinherit replication").await;
    let in_roles = "noinherit in role anon, authenticated, service_role";
    let able = role(&client, &database, "member", in_roles).await;
    let given = [("WALCAST_REPLICATION_URL", &*reader), ("WALCAST_CHECK_URL", &*able)];
    let environment = [environment.as_slice(), &given].concat();
    let mut program = Program::start(&environment);
    program.line("not created name=\"event trigger walcast_ddl\"").await;
    program.ready().await;
    // What another login installed is used as it is.
    let superuser = [("DATABASE_URL", &*database.url), ("WALCAST_SLOT", &**name)];
    drop(program);
    let mut program = Program::start(&superuser);
    program.line("schema walcast belongs to tenant_").await;
    program.ready().await;
}

#[tokio::test]
async fn f04_sigterm_says_goodbye_and_leaves_nothing_behind() {
    let database = Database::create().await;
    let mut program = Program::serving(&database).await;
    let client = database.client().await;
    client.batch_execute(TABLE_T).await.unwrap();
    let mut socket = program.subscribe(&anon(), "t").await;
    client.batch_execute("insert into t values (1)").await.unwrap();
    assert_eq!(socket.change().await["record"]["id"], 1);
    let logins = "select count(*) from pg_roles where rolname like 'walcast%' and \
                  shobj_description(oid, 'pg_authid') like '% for ' || current_database() || ',%'";
    assert_eq!(client.query_one(logins, &[]).await.unwrap().get::<_, i64>(0), 2);
    program.terminate();
    assert_eq!(socket.closed().await, Some(1012));
    let (code, _) = program.end().await;
    assert_eq!(code, 0);
    assert_eq!(client.query_one(logins, &[]).await.unwrap().get::<_, i64>(0), 0);
    let free = "select count(*) = 1 and not bool_or(active) from pg_replication_slots \
                where database = current_database()";
    assert!(client.query_one(free, &[]).await.unwrap().get::<_, bool>(0), "the slot is free");
}

#[tokio::test]
async fn f05_sigterm_ends_a_program_that_still_waits() {
    let database = Database::create().await;
    let several = ("WALCAST_PUBLICATIONS", "first_one,never_made");
    let mut program = Program::start(&[environment(&database).as_slice(), &[several]].concat());
    program.line("publication never_made does not exist").await;
    program.terminate();
    assert_eq!(program.end().await.0, 0);
}

#[tokio::test]
async fn a_second_instance_waits_for_the_slot_and_takes_over() {
    let database = Database::create().await;
    let first = Program::serving(&database).await;
    let client = database.client().await;
    client.batch_execute(TABLE_T).await.unwrap();
    let mut second = Program::start(&environment(&database));
    second.line("is being read by another connection").await;
    let not_ready = second.get("/readyz").await;
    assert!(not_ready.starts_with("HTTP/1.1 503 "), "{not_ready}");
    assert!(not_ready.contains("no replication slot is attached (standby)"), "{not_ready}");
    assert!(second.get("/healthz").await.starts_with("HTTP/1.1 200 "));
    first.terminate();
    assert_eq!(first.end().await.0, 0);
    second.ready().await;
    let mut socket = second.subscribe(&anon(), "t").await;
    client.batch_execute("insert into t values (2)").await.unwrap();
    assert_eq!(socket.change().await["record"]["id"], 2);
}

#[tokio::test]
async fn logins_that_somebody_drops_are_made_again() {
    let database = Database::create().await;
    let mut program = Program::serving(&database).await;
    let client = database.client().await;
    client.batch_execute(TABLE_RLS_T).await.unwrap();
    let mut socket = program.subscribe(&user(ALICE), "rls_t").await;
    let insert = "insert into rls_t values ($1, '00000000-0000-4000-8000-00000000000a')";
    client.execute(insert, &[&1_i64]).await.unwrap();
    assert_eq!(socket.change().await["record"]["id"], 1);
    let ours = "select rolname::text from pg_roles where rolname like 'walcast%' and \
                shobj_description(oid, 'pg_authid') like '% for ' || current_database() || ',%'";
    let logins = client.query(ours, &[]).await.unwrap();
    assert_eq!(logins.len(), 2);
    for login in &logins {
        let login: &str = login.get(0);
        let drop = format!(
            "alter role {login} nologin;
             select pg_terminate_backend(pid, 5000) from pg_stat_activity
             where usename = '{login}';
             drop role {login}"
        );
        client.batch_execute(&drop).await.unwrap();
    }
    program.line("logins that were dropped or changed are made again").await;
    until(&client, &format!("select count(*) = 2 from ({ours}) as o")).await;
    program.ready().await;
    // A new subscriber is checked, and both are served, by connections of the new logins.
    let mut late = program.subscribe(&user(ALICE), "rls_t").await;
    client.execute(insert, &[&2_i64]).await.unwrap();
    assert_eq!(late.change().await["record"]["id"], 2);
    assert_eq!(socket.change().await["record"]["id"], 2);
    program.terminate();
    assert_eq!(program.end().await.0, 0);
    assert_eq!(client.query(ours, &[]).await.unwrap().len(), 0);
}

#[tokio::test]
async fn a_lost_slot_is_replaced_and_everybody_told_to_read_again() {
    let database = Database::create().await;
    let mut program = Program::serving(&database).await;
    let client = database.client().await;
    client.batch_execute(TABLE_T).await.unwrap();
    let mut socket = program.subscribe(&anon(), "t").await;
    // Whoever does this by hand gets what he asks for; the slot is gone, and with it its changes.
    client
        .batch_execute(&format!(
            "do $$ begin
                 for i in 1..1000 loop
                     perform pg_terminate_backend(active_pid, 1000) from pg_replication_slots
                     where slot_name = '{0}' and active_pid is not null;
                     begin
                         perform pg_drop_replication_slot('{0}');
                         return;
                     exception when object_in_use then null;
                     end;
                 end loop;
             end $$",
            database.name
        ))
        .await
        .unwrap();
    socket.expect("system").await;
    assert_eq!(socket.closed().await, Some(1012));
    program.ready().await;
    let mut socket = program.subscribe(&anon(), "t").await;
    client.batch_execute("insert into t values (3)").await.unwrap();
    assert_eq!(socket.change().await["record"]["id"], 3);
}

#[tokio::test]
async fn readiness_is_lost_with_the_stream_and_comes_back() {
    let database = Database::create().await;
    let mut program = Program::serving(&database).await;
    let client = database.client().await;
    // The slot cannot be had as long as somebody else is faster.
    client.batch_execute("alter publication supabase_realtime rename to elsewhere").await.unwrap();
    let end = "select pg_terminate_backend(active_pid) from pg_replication_slots \
               where slot_name = current_database()";
    client.query(end, &[]).await.unwrap();
    program.becomes_ready(false).await;
    assert!(program.get("/healthz").await.starts_with("HTTP/1.1 200 "));
    client.batch_execute("alter publication elsewhere rename to supabase_realtime").await.unwrap();
    program.ready().await;
}

#[tokio::test]
async fn metrics_tell_what_was_read_delivered_and_withheld() {
    let database = Database::create().await;
    let mut program = Program::serving(&database).await;
    let client = database.client().await;
    client.batch_execute(TABLE_RLS_T).await.unwrap();
    let mut alice = program.subscribe(&user(ALICE), "rls_t").await;
    let bob = program.subscribe(&user(BOB), "rls_t").await;
    program
        .measures(&[
            ("walcast_connections", 2.0..=2.0),
            ("walcast_channels", 2.0..=2.0),
            ("walcast_joins_total{result=\"ok\"}", 2.0..=2.0),
        ])
        .await;
    client
        .batch_execute(
            "insert into rls_t select i, '00000000-0000-4000-8000-00000000000a' \
             from generate_series(1, 3) as i",
        )
        .await
        .unwrap();
    for id in 1..=3 {
        assert_eq!(alice.change().await["record"]["id"], id);
    }
    // The three of one transaction come in as many batches as the log was read in.
    program
        .measures(&[
            ("walcast_changes_total", 3.0..=3.0),
            ("walcast_deliveries_total", 3.0..=3.0),
            ("walcast_withheld_total{reason=\"policy\"}", 3.0..=3.0),
            ("walcast_wal_connects_total", 1.0..=1.0),
            ("walcast_latency_seconds_count", 1.0..=3.0),
            ("walcast_check_seconds_count", 1.0..=3.0),
        ])
        .await;
    drop(bob);
    program
        .measures(&[
            ("walcast_connections", 1.0..=1.0),
            ("walcast_channels", 1.0..=1.0),
            ("walcast_subscriptions", 1.0..=1.0),
            ("walcast_wal_retained_bytes", 1.0..=f64::INFINITY),
        ])
        .await;
    let text = program.get("/metrics").await;
    assert!(text.contains("walcast_connections_closed_total{reason=\""), "{text}");
    assert!(text.contains("walcast_wal_lag_bytes "), "{text}");
    assert!(text.contains("walcast_latency_seconds_bucket{le=\"0.0025\"} "), "{text}");
}
