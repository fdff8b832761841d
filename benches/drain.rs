//! How fast a backlog leaves a slot, against `pg_recvlogical` writing to `/dev/null`.
//!
//! In:     `WALCAST_BENCH_CHANGES` (default 100000), `WALCAST_BENCH_ROUNDS` (default 3);
//!         `WALCAST_BENCH_READER=1` measures the reader of the log alone, too;
//!         `WALCAST_BENCH_HUGE=1` drains one transaction of `WALCAST_BENCH_ROWS` (default 10000000)
//!         rows instead, and measures memory and how long others wait meanwhile.
//! Out:    a table; last, one JSON line of ratios: our changes a second over theirs, medians.
//! Needs:  the `PostgreSQL` server binaries; starts a cluster of its own.
//!
//! `walcast serve` and `pg_recvlogical` are attached to a slot each and stopped; the backlog is
//! written; then one after the other goes on, and the time to its last change is taken. So both
//! drain the same log, with the same start, and nobody reads what was there before it came.

#![allow(clippy::unwrap_used, reason = "a benchmark ends where its expectation does")]

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/it/cluster.rs"]
mod cluster;
mod service;

use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tokio_postgres::Client;
use walcast::config::Replication;
use walcast::db::Login;
use walcast::lsn::Lsn;
use walcast::wal::WalStream;
use walcast::wal::pgoutput::Message;

use service::heart::{Heart, Latency};
use service::{DEADLINE, Process, Service, TABLE, float, median, number, rounded};

/// How the backlog is made.
struct Load {
    name: &'static str,
    rows_per_transaction: u32,
}

const LOADS: [Load; 2] = [
    Load { name: "100-row transactions", rows_per_transaction: 100 },
    Load { name: "single-row transactions", rows_per_transaction: 1 },
];

fn main() {
    // `cargo test --benches` also runs this; it measures only when asked to.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run());
}

/// How long ten million rows may take.
const HUGE_DEADLINE: Duration = Duration::from_mins(15);

/// How often the end of a drain is looked for.
const LOOK: Duration = Duration::from_millis(5);

async fn run() {
    if number("WALCAST_BENCH_HUGE", 0) > 0 {
        return huge(number("WALCAST_BENCH_ROWS", 10_000_000)).await;
    }
    let changes = number("WALCAST_BENCH_CHANGES", 100_000);
    let rounds = number("WALCAST_BENCH_ROUNDS", 3);
    println!("{changes} changes of 200 bytes, {rounds} rounds, changes a second (median)\n");
    println!(
        "{:<24} {:<16} {:>15} {:>10} {:>7} {:>12}",
        "load", "subscribers", "pg_recvlogical", "walcast", "ratio", "CPU s/M"
    );
    let mut ratios = serde_json::Map::new();
    for load in LOADS {
        for subscribed in [false, true] {
            let name = if subscribed { "one" } else { "none" };
            let drained = drain_service(&load, subscribed, changes, rounds).await;
            let Drained { theirs, ours, ratio, cpu_seconds } = drained;
            println!(
                "{:<24} {name:<16} {theirs:>15.0} {ours:>10.0} {ratio:>7.2} {:>12.2}",
                load.name,
                cpu_seconds * 1e6,
            );
            ratios.insert(format!("{}_rows_{name}", load.rows_per_transaction), rounded(ratio));
        }
    }
    if number("WALCAST_BENCH_READER", 0) > 0 {
        drain_reader(changes, rounds, &mut ratios).await;
    }
    println!("\n{}", serde_json::json!({ "scenario": "drain", "ratios": ratios }));
}

/// Changes a second of either, the median of the ratios, and our CPU time a change.
struct Drained {
    theirs: f64,
    ours: f64,
    ratio: f64,
    cpu_seconds: f64,
}

/// The whole service against `pg_recvlogical`.
async fn drain_service(load: &Load, subscribed: bool, changes: u32, rounds: u32) -> Drained {
    let database = cluster::Database::create().await;
    let client = database.client().await;
    let mut service = Service::start(&database.name);
    client.batch_execute(TABLE).await.unwrap();
    client.batch_execute("set synchronous_commit = off").await.unwrap();
    let mut socket = subscribed.then(|| service.subscribe());
    let peer = Peer::start(&client, &database.name).await;
    let (mut theirs, mut ours, mut ratios, mut cpu) = (vec![], vec![], vec![], vec![]);
    let (all, mut base) = (changes, 0);
    for round in 0..=rounds {
        // What comes first pays for what is made once; it is not counted.
        let changes = if round == 0 { all.div_ceil(10) } else { all };
        let before = service.counter("walcast_changes_total");
        service.pause();
        peer.process.pause();
        write(&client, load, base, changes).await;
        base += changes;
        let end = log_end(&client).await;
        let (mut their_time, mut our_time) = (Duration::ZERO, Duration::ZERO);
        let used = service.process.cpu_seconds();
        for turn in [round % 2, (round + 1) % 2] {
            let start = Instant::now();
            if turn == 0 {
                peer.process.resume();
                their_time = peer.last_write(&client, end, DEADLINE).await - start;
                continue;
            }
            let last = socket.take().map(|socket| socket.expect(u64::from(changes)));
            service.resume();
            if let Some(last) = last {
                let (at, back) = last.recv_timeout(DEADLINE).expect("every frame comes");
                our_time = at - start;
                socket = Some(back);
            } else {
                let all = before + f64::from(changes);
                while service.counter("walcast_changes_total") < all {
                    assert!(start.elapsed() < DEADLINE, "the service does not drain");
                    thread::sleep(LOOK);
                }
                our_time = start.elapsed();
            }
        }
        if round > 0 {
            let (their_time, our_time) = (their_time.as_secs_f64(), our_time.as_secs_f64());
            theirs.push(f64::from(changes) / their_time);
            ours.push(f64::from(changes) / our_time);
            ratios.push(their_time / our_time);
            cpu.push((service.process.cpu_seconds() - used) / f64::from(changes));
        }
    }
    Drained {
        theirs: median(&mut theirs),
        ours: median(&mut ours),
        ratio: median(&mut ratios),
        cpu_seconds: median(&mut cpu),
    }
}

/// Writes rows with these many ids after `base`.
async fn write(client: &Client, load: &Load, base: u32, changes: u32) {
    let rows = load.rows_per_transaction;
    client
        .batch_execute(&format!(
            "do $$ begin
                for low in 1..{changes} by {rows} loop
                    insert into t select {base} + id, repeat('x', 192)
                    from generate_series(low, least(low + {rows} - 1, {changes})) as id;
                    commit;
                end loop;
            end $$"
        ))
        .await
        .unwrap();
    client.batch_execute("checkpoint").await.unwrap();
}

async fn log_end(client: &Client) -> Lsn {
    let row = client.query_one("select pg_current_wal_lsn()::text", &[]).await.unwrap();
    row.get::<_, &str>(0).parse().unwrap()
}

/// A `pg_recvlogical` that goes on for ever.
struct Peer {
    child: Child,
    process: Process,
    slot: &'static str,
}

impl Peer {
    async fn start(client: &Client, database: &str) -> Self {
        let slot = "theirs";
        let create = "select pg_create_logical_replication_slot($1, 'pgoutput')";
        client.execute(create, &[&slot]).await.unwrap();
        let cluster = cluster::cluster();
        let mut command = Command::new(cluster.server.bin().join("pg_recvlogical"));
        command.args(["-d", &cluster.tcp_url(database), "-S", slot, "--start", "--no-loop"]);
        command.args(["--fsync-interval=0", "-f", "/dev/null", "-o", "proto_version=1"]);
        command.args(["-o", "publication_names=supabase_realtime", "-o", "messages=true"]);
        // While it is stopped it answers nothing.
        command.env("PGOPTIONS", "-c wal_sender_timeout=0");
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        let peer = Self { process: Process(child.id()), child, slot };
        let deadline = Instant::now() + DEADLINE;
        while peer.sent(client).await.is_none() {
            assert!(Instant::now() < deadline, "pg_recvlogical is not attached");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        peer
    }

    /// How far its walsender is.
    async fn sent(&self, client: &Client) -> Option<Lsn> {
        let sent = "select r.sent_lsn::text from pg_stat_replication r
            join pg_replication_slots s on s.active_pid = r.pid
            where s.slot_name = $1 and r.state = 'streaming'";
        let row = client.query_opt(sent, &[&self.slot]).await.unwrap();
        row.and_then(|row| row.get::<_, Option<&str>>(0)?.parse().ok())
    }

    /// When it wrote last, once its walsender has sent everything and it has been quiet.
    async fn last_write(&self, client: &Client, end: Lsn, limit: Duration) -> Instant {
        let deadline = Instant::now() + limit;
        let (mut written, mut at) = (self.process.written(), Instant::now());
        loop {
            tokio::time::sleep(LOOK).await;
            let now = self.process.written();
            if now != written {
                (written, at) = (now, Instant::now());
            } else if at.elapsed() > Duration::from_millis(100)
                && self.sent(client).await.is_some_and(|sent| sent >= end)
                && self.process.written() == written
            {
                return at;
            }
            assert!(Instant::now() < deadline, "pg_recvlogical does not drain");
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One huge transaction: its time against `pg_recvlogical`'s, our memory, and the answers to the
/// heartbeats of a client that has nothing to do with it.
async fn huge(rows: u32) {
    println!("one transaction of {rows} rows of 200 bytes\n");
    println!(
        "{:<12} {:>10} {:>10} {:>10} {:>10} {:>10}  heartbeats of another client, ms",
        "subscribers", "before MB", "peak MB", "seconds", "theirs", "ratio"
    );
    let mut figures = serde_json::Map::new();
    for subscribed in [false, true] {
        let name = if subscribed { "one" } else { "none" };
        let database = cluster::Database::create().await;
        let client = database.client().await;
        let mut service = Service::start(&database.name);
        client.batch_execute(TABLE).await.unwrap();
        let subscriber = subscribed.then(|| service.subscribe());
        let peer = Peer::start(&client, &database.name).await;
        let before = service.process.memory("VmRSS");
        let counted = service.counter("walcast_changes_total");
        service.pause();
        peer.process.pause();
        let insert = format!(
            "insert into t select id, repeat('x', 192) from generate_series(1, {rows}) as id"
        );
        client.batch_execute(&insert).await.unwrap();
        let end = log_end(&client).await;

        let start = Instant::now();
        peer.process.resume();
        let theirs = (peer.last_write(&client, end, HUGE_DEADLINE).await - start).as_secs_f64();

        let last = subscriber.map(|socket| socket.expect(u64::from(rows)));
        let start = Instant::now();
        service.resume();
        let beats = Heart::start(&service);
        if let Some(last) = last {
            last.recv_timeout(HUGE_DEADLINE).expect("every frame comes");
        } else {
            while service.counter("walcast_changes_total") < counted + f64::from(rows) {
                assert!(start.elapsed() < HUGE_DEADLINE, "the service does not drain");
                thread::sleep(Duration::from_millis(100));
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        let beats = Latency::of(beats.stop());
        let peak = service.process.memory("VmHWM");
        let megabytes = |bytes: u64| float(bytes / 1024) / 1024.0;
        println!(
            "{name:<12} {:>10.1} {:>10.1} {seconds:>10.1} {theirs:>10.1} {:>10.2}  {beats}",
            megabytes(before),
            megabytes(peak),
            seconds / theirs,
        );
        figures.insert(format!("peak_rss_mb_{name}"), rounded(megabytes(peak)));
        figures.insert(format!("times_theirs_{name}"), rounded(seconds / theirs));
        figures.insert(format!("heartbeat_ms_max_{name}"), rounded(beats.most));
    }
    println!("\n{}", serde_json::json!({ "scenario": "drain_huge", "figures": figures }));
}

/// The reader of the log alone: decoded and acknowledged, nothing else.
async fn drain_reader(
    changes: u32,
    rounds: u32,
    ratios: &mut serde_json::Map<String, serde_json::Value>,
) {
    println!(
        "\n{:<24} {:<16} {:>15} {:>10} {:>7}",
        "load", "reader, via", "pg_recvlogical", "walcast", "ratio"
    );
    for load in LOADS {
        let database = cluster::Database::create().await;
        let client = database.client().await;
        let end = make_backlog(&client, &load, changes).await;
        let tcp = cluster::cluster().tcp_url(&database.name);
        for (via, url) in [("tcp", tcp.as_str()), ("unix", database.url.as_str())] {
            let (mut theirs, mut ours) = (Vec::new(), Vec::new());
            for _ in 0..rounds {
                let time = measure(&client, async |slot| {
                    pg_recvlogical(&database.name, via, slot, end).await;
                });
                theirs.push(f64::from(changes) / time.await.as_secs_f64());
                let time = measure(&client, async |slot| walcast(url, slot, changes).await);
                ours.push(f64::from(changes) / time.await.as_secs_f64());
            }
            let (theirs, ours) = (median(&mut theirs), median(&mut ours));
            let ratio = ours / theirs;
            println!("{:<24} {via:<16} {theirs:>15.0} {ours:>10.0} {ratio:>7.2}", load.name);
            let key = format!("reader_{}_rows_{via}", load.rows_per_transaction);
            ratios.insert(key, rounded(ratio));
        }
        client.execute("select pg_drop_replication_slot('backlog')", &[]).await.unwrap();
    }
}

/// A slot, `changes` rows behind it, and the position to drain to.
async fn make_backlog(client: &Client, load: &Load, changes: u32) -> Lsn {
    client
        .batch_execute(
            "set synchronous_commit = off;
             create table t (id int primary key, note text);
             create publication p for table t",
        )
        .await
        .unwrap();
    client
        .batch_execute("select pg_create_logical_replication_slot('backlog', 'pgoutput')")
        .await
        .unwrap();
    write(client, load, 0, changes).await;
    log_end(client).await
}

/// The time that `drain` takes on a fresh copy of the slot.
async fn measure(client: &Client, drain: impl AsyncFn(&str)) -> Duration {
    let slot = "copy";
    client
        .execute("select pg_copy_logical_replication_slot('backlog', $1)", &[&slot])
        .await
        .unwrap();
    let start = Instant::now();
    drain(slot).await;
    let time = start.elapsed();
    let deadline = Instant::now() + Duration::from_secs(10);
    while client.execute("select pg_drop_replication_slot($1)", &[&slot]).await.is_err() {
        assert!(Instant::now() < deadline, "the slot is not free");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    time
}

async fn pg_recvlogical(database: &str, via: &str, slot: &str, end: Lsn) {
    let cluster = cluster::cluster();
    let mut command = Command::new(cluster.server.bin().join("pg_recvlogical"));
    let url = if via == "tcp" { cluster.tcp_url(database) } else { cluster.url(database) };
    command.args(["-d", &url]);
    command.args(["-S", slot, "--start", "--no-loop", "--fsync-interval=0", "-f", "/dev/null"]);
    command.args(["-o", "proto_version=1", "-o", "publication_names=p", "-o", "messages=true"]);
    command.arg(format!("--endpos={end}")).stdin(Stdio::null());
    let status = tokio::task::spawn_blocking(move || command.status()).await.unwrap();
    assert!(status.unwrap().success());
}

/// Reads, decodes and acknowledges all of it.
async fn walcast(url: &str, slot: &str, changes: u32) {
    let login = Login::parse(url, Duration::from_secs(10)).unwrap();
    let settings =
        Replication { slot: slot.into(), publications: vec!["p".into()], ..Replication::default() };
    let mut stream = WalStream::open(&login, &settings, Lsn::ZERO).await.unwrap();
    let mut rows = 0;
    while rows < changes {
        let batch = stream.next_batch().await.unwrap();
        for message in batch.messages() {
            let message = message.unwrap();
            if let Message::Insert(insert) = message {
                rows += 1;
                assert_eq!(insert.new.columns().flatten().count(), 2);
            } else if let Message::Commit(commit) = message {
                stream.acknowledge(commit.end_lsn);
            }
        }
    }
    stream.close().await;
}
