//! What dies: the service, the server, their links. Nothing committed after SUBSCRIBED is missed.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, Database, connect};
use crate::service::{
    ALICE, DEADLINE, PATIENT, SECRET, Service, Socket, Version, anon, listen, service_role, user,
};
use crate::stream::all_of;

/// Everybody may do everything with it.
const TABLE_T: &str = "
    create table t (id bigint primary key, value text);
    grant all on t to anon, authenticated, service_role;
    alter publication supabase_realtime add table t;
";

/// `walcast serve` as a process of its own.
struct Program {
    child: Child,
    address: SocketAddr,
}

/// A port that was free a moment ago.
async fn free_address() -> SocketAddr {
    listen().await.local_addr().unwrap()
}

impl Program {
    /// Starts it and waits for nothing.
    fn spawn(database: &Database, address: SocketAddr) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_walcast"))
            .arg("serve")
            .env_clear()
            .envs(PATIENT)
            .env("DATABASE_URL", &database.url)
            .env("WALCAST_JWT_SECRET", SECRET)
            .env("WALCAST_SLOT", &database.name)
            .env("WALCAST_BIND", address.to_string())
            .env("WALCAST_LOG", std::env::var("WALCAST_TEST_LOG").unwrap_or("error".into()))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { child, address }
    }

    /// SIGKILL, and the end of it.
    async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// A socket at the first moment at which there can be one, ready or not.
    async fn connect(&self, token: &str) -> Socket {
        let deadline = Instant::now() + DEADLINE;
        while TcpStream::connect(self.address).await.is_err() {
            assert!(Instant::now() < deadline, "nobody listens");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let address = self.address;
        let url = format!("ws://{address}/realtime/v1/websocket?apikey={token}&vsn=2.0.0");
        Socket::open(Version::V2, &url, &[]).await.unwrap()
    }

    async fn subscribe(&self, token: &str, table: &str) -> Socket {
        let mut socket = self.connect(token).await;
        socket.subscribe("realtime:test", all_of(table).into()).await;
        socket
    }

    /// Resident memory in bytes.
    fn memory(&self) -> u64 {
        let status = format!("/proc/{}/status", self.child.id().unwrap());
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

async fn insert(client: &Client, id: i64) {
    client.execute("insert into t values ($1, 'new')", &[&id]).await.unwrap();
}

fn id(change: &Value) -> i64 {
    change["record"]["id"].as_i64().unwrap_or_else(|| panic!("{change}"))
}

#[tokio::test]
async fn f01_after_the_service_was_killed_the_next_one_misses_nothing_from_its_first_subscriber_on()
{
    let database = Database::create().await;
    let admin = database.client().await;
    let address = free_address().await;
    let mut program = Program::spawn(&database, address);
    // Nothing is there before the first start has installed it.
    let mut first = program.connect(&anon()).await;
    let mut joined = first.join("realtime:none", &json!({})).await;
    while joined["status"] != "ok" {
        joined = first.join("realtime:none", &json!({})).await;
    }
    let published = async {
        let there = "select from pg_publication where pubname = 'supabase_realtime'";
        while admin.query_opt(there, &[]).await.unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, published).await.unwrap();
    admin.batch_execute(TABLE_T).await.unwrap();
    let mut next = 1;
    for _ in 0..4 {
        // At once, in whatever state it is.
        let mut socket = program.subscribe(&anon(), "t").await;
        for _ in 0..3 {
            insert(&admin, next).await;
            let change = socket.change().await;
            assert_eq!(id(&change), next, "neither lost nor from before");
            next += 1;
        }
        program.kill().await;
        let slot = "select count(*) from pg_replication_slots where slot_name = $1";
        let kept: i64 = admin.query_one(slot, &[&database.name]).await.unwrap().get(0);
        assert_eq!(kept, 1, "the slot keeps its place");
        // Nobody is owed what is committed while nobody listens.
        insert(&admin, next).await;
        next += 1;
        program = Program::spawn(&database, address);
    }
    program.kill().await;
}

#[tokio::test]
async fn a_slot_in_use_is_waited_for_and_taken_over() {
    let mut first = Service::start().await;
    let admin = first.admin().await;
    admin.batch_execute(TABLE_T).await.unwrap();
    let second = Program::spawn(&first.database, free_address().await);
    let mut socket = second.connect(&anon()).await;
    // It listens, and says that it is not ready while the other one reads.
    let payload = json!({ "config": { "postgres_changes": all_of("t") } });
    let refused = socket.join("realtime:test", &payload).await;
    assert_eq!(refused["status"], "error", "{refused}");
    let reason = refused["response"]["reason"].as_str().unwrap();
    assert!(reason.starts_with("InitializingProjectConnection"), "{reason}");
    let mut of_first = first.subscribe(Version::V2, &anon(), all_of("t").into()).await;
    insert(&admin, 1).await;
    assert_eq!(id(&of_first.change().await), 1);
    first.stop().await.unwrap();
    socket.subscribe("realtime:test", all_of("t").into()).await;
    insert(&admin, 2).await;
    assert_eq!(id(&socket.change().await), 2);
    // And back, from one that could not even say goodbye.
    second.kill().await;
    first.start_again().await;
    let mut of_first = first.subscribe(Version::V2, &anon(), all_of("t").into()).await;
    insert(&admin, 3).await;
    assert_eq!(id(&of_first.change().await), 3);
    first.stop().await.unwrap();
}

#[tokio::test]
async fn f36_a_row_of_a_hundred_megabytes_is_announced_and_leaves_no_trace() {
    let database = Database::create().await;
    let admin = database.client().await;
    let program = Program::spawn(&database, free_address().await);
    let mut socket = program.connect(&user(ALICE)).await;
    wait_for_publication(&admin).await;
    admin
        .batch_execute(
            "create table docs (id int primary key, owner uuid, body text);
            alter table docs enable row level security;
            create policy own on docs to authenticated using (owner = auth.uid());
            grant all on docs to authenticated;
            alter publication supabase_realtime add table docs;",
        )
        .await
        .unwrap();
    socket.subscribe("realtime:test", all_of("docs").into()).await;
    let before = program.memory();
    let sql = format!(
        "insert into docs values (1, '{ALICE}', repeat('x', 100 * 1024 * 1024));
        insert into docs values (2, '{ALICE}', 'small');"
    );
    admin.batch_execute(&sql).await.unwrap();
    let change = socket.change().await;
    assert_eq!(change["errors"], json!(["Error 413: Payload Too Large"]));
    assert_eq!(change["record"], json!({ "id": 1, "owner": ALICE }));
    assert_eq!(socket.change().await["record"]["id"], 2);
    let settled = async {
        while program.memory() > before + 40 * 1024 * 1024 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let memory = || format!("{} bytes, {before} before", program.memory());
    timeout(DEADLINE, settled).await.unwrap_or_else(|_| panic!("{}", memory()));
    program.kill().await;
}

async fn wait_for_publication(admin: &Client) {
    let wait = async {
        let there = "select from pg_publication where pubname = 'supabase_realtime'";
        while admin.query_opt(there, &[]).await.unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, wait).await.unwrap();
}

#[tokio::test]
async fn f36_a_row_that_the_server_cannot_print_is_told_of_and_passed() {
    let service = Service::start().await;
    let admin = service.admin().await;
    // A bit takes a byte in text: 14 columns of 10 MB are more text than the server can build.
    let columns: Vec<String> = (1..=14).map(|n| format!("c{n} varbit")).collect();
    admin
        .batch_execute(&format!(
            "{TABLE_T}
            create table large (id int primary key, {});
            grant select on large to authenticated, service_role;
            alter table large enable row level security;
            create policy p on large to authenticated using (true);
            alter publication supabase_realtime add table large;",
            columns.join(", ")
        ))
        .await
        .unwrap();
    let both = || Value::from([all_of("large"), all_of("t")].concat());
    let mut sockets = Vec::new();
    for token in [user(ALICE), service_role(), anon()] {
        sockets.push(service.subscribe(Version::V2, &token, both()).await);
    }
    let values = vec!["z"; 14].join(", ");
    let sql = format!(
        "begin; insert into t values (1); commit;
        begin;
        insert into t values (2);
        insert into large select 1, {values} from (select b'0'::bit(80000000)::varbit) as a (z);
        insert into t values (3);
        commit;
        begin; insert into t values (4); commit;
        begin; insert into large values (2); insert into t values (5); commit;"
    );
    admin.batch_execute(&sql).await.unwrap();
    for (socket, may_see) in sockets.iter_mut().zip([true, true, false]) {
        let (mut ids, mut told) = (Vec::new(), Vec::new());
        while ids.last() != Some(&5) {
            let message = socket.next().await;
            let data = &message.payload["data"];
            if message.event == "system" {
                told.push(message.payload["message"].as_str().unwrap().to_owned());
            } else if data["table"] == "t" {
                ids.push(id(data));
            } else {
                assert_eq!(data["record"]["id"], 2);
                assert!(may_see, "{data}");
            }
        }
        let rest = socket.rest().await.into_iter();
        told.extend(rest.map(|m| m.payload["message"].as_str().unwrap().to_owned()));
        // What followed it in its own transaction shares its fate, and that is said as well.
        assert_eq!(ids, [1, 2, 4, 5]);
        let text = "A change was too large to be read: fetch the table again.";
        assert_eq!(told, if may_see { vec![text; 2] } else { vec![text] });
    }
}

/// Inserts as fast as it can, over new connections whenever one is lost.
async fn write(url: String, first: i64, stop: CancellationToken) {
    let mut id = first;
    while !stop.is_cancelled() {
        let Ok((client, connection)) = tokio_postgres::connect(&url, NoTls).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let driver = tokio::spawn(connection);
        while !stop.is_cancelled() {
            // Whether a lost answer was a commit shows in the table.
            let done = client.execute("insert into t values ($1, 'w')", &[&id]).await;
            id += 1;
            if done.is_err() {
                break;
            }
        }
        drop(client);
        let _ = driver.await;
    }
}

#[tokio::test]
async fn f16_f17_a_server_that_crashes_among_writers_loses_and_repeats_nothing() {
    let cluster = Cluster::start("crash", &[]);
    let admin = connect(&cluster.url("postgres")).await;
    admin.batch_execute("create database crash").await.unwrap();
    let url = cluster.url("crash");
    let database = Database { name: "crash".into(), url: url.clone() };
    let service = Service::on(database, |_| ()).await;
    service.admin().await.batch_execute(TABLE_T).await.unwrap();
    let mut socket = service.subscribe(Version::V2, &anon(), all_of("t").into()).await;
    let stop = CancellationToken::new();
    let first = [1_000_000, 2_000_000];
    let writers = first.map(|first| tokio::spawn(write(url.clone(), first, stop.clone())));
    let mut received: Vec<i64> = Vec::new();
    let mut more = async |socket: &mut Socket, count: usize| {
        for _ in 0..count {
            received.push(id(&socket.change().await));
        }
    };
    more(&mut socket, 200).await;
    // The walsender alone: the server takes every other process down with it, and comes back.
    let walsender = "select pid from pg_stat_replication where application_name like 'walcast%'";
    let pid: i32 = admin.query_one(walsender, &[]).await.unwrap().get(0);
    let killed = Command::new("kill").args(["-9", &pid.to_string()]).status().await.unwrap();
    assert!(killed.success());
    more(&mut socket, 200).await;
    // All of it at once.
    cluster.server.kill().unwrap();
    cluster.server.start_again().unwrap();
    more(&mut socket, 200).await;
    stop.cancel();
    for writer in writers {
        writer.await.unwrap();
    }
    let admin = service.admin().await;
    insert(&admin, 9_000_000).await;
    while received.last() != Some(&9_000_000) {
        received.push(id(&socket.change().await));
    }
    let rows = admin.query("select id from t", &[]).await.unwrap();
    let rows: BTreeSet<i64> = rows.iter().map(|row| row.get(0)).collect();
    let distinct: BTreeSet<i64> = received.iter().copied().collect();
    assert_eq!(distinct.len(), received.len(), "something came twice");
    let lost: Vec<_> = rows.difference(&distinct).collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
    let invented: Vec<_> = distinct.difference(&rows).collect();
    assert!(invented.is_empty(), "shown, but not in the table: {invented:?}");
    for first in first {
        let of_writer = |id: &&i64| (first..first + 1_000_000).contains(*id);
        assert!(received.iter().filter(of_writer).is_sorted(), "out of order");
    }
}
