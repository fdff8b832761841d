//! How fast a backlog leaves a slot, against `pg_recvlogical` writing to `/dev/null`.
//!
//! In:     `WALCAST_BENCH_CHANGES` (default 300000), `WALCAST_BENCH_ROUNDS` (default 3).
//! Out:    a table; last, one JSON line of ratios: our changes a second over theirs. Each round
//!         drains equal copies of one slot, theirs and ours in turn; the medians are compared.
//! Needs:  the `PostgreSQL` server binaries; starts a cluster of its own.

#![allow(clippy::unwrap_used, reason = "a benchmark ends where its expectation does")]

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/it/cluster.rs"]
mod cluster;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tokio_postgres::Client;
use walcast::config::Replication;
use walcast::db::Login;
use walcast::lsn::Lsn;
use walcast::wal::WalStream;
use walcast::wal::pgoutput::Message;

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

fn number(name: &str, default: u32) -> u32 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

async fn run() {
    let changes = number("WALCAST_BENCH_CHANGES", 300_000);
    let rounds = number("WALCAST_BENCH_ROUNDS", 3);
    println!("{changes} changes of 200 bytes, {rounds} rounds, changes a second (median)\n");
    println!(
        "{:<24} {:>5} {:>15} {:>10} {:>7}",
        "load", "via", "pg_recvlogical", "walcast", "ratio"
    );
    let mut ratios = serde_json::Map::new();
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
                theirs.push(time.await);
                ours.push(measure(&client, async |slot| walcast(url, slot, changes).await).await);
            }
            let rate = |times: &mut Vec<Duration>| {
                times.sort();
                f64::from(changes) / times[times.len() / 2].as_secs_f64()
            };
            let (theirs, ours) = (rate(&mut theirs), rate(&mut ours));
            let ratio = ours / theirs;
            println!("{:<24} {via:>5} {theirs:>15.0} {ours:>10.0} {ratio:>7.2}", load.name);
            let key = format!("{}_rows_{via}", load.rows_per_transaction);
            ratios.insert(key, ((ratio * 100.0).round() / 100.0).into());
        }
        client.execute("select pg_drop_replication_slot('backlog')", &[]).await.unwrap();
    }
    println!("\n{}", serde_json::json!({ "scenario": "drain", "ratios": ratios }));
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
    let rows = load.rows_per_transaction;
    client
        .batch_execute(&format!(
            "do $$ begin
                for low in 1..{changes} by {rows} loop
                    insert into t select id, repeat('x', 192)
                    from generate_series(low, least(low + {rows} - 1, {changes})) as id;
                    commit;
                end loop;
            end $$"
        ))
        .await
        .unwrap();
    client.batch_execute("checkpoint").await.unwrap();
    let row = client.query_one("select pg_current_wal_lsn()::text", &[]).await.unwrap();
    row.get::<_, &str>(0).parse().unwrap()
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
