//! Commit → frame at a steady 100 changes a second, against a bare pgoutput reader in the same run.
//!
//! In:     `WALCAST_BENCH_SECONDS` (default 15), `WALCAST_BENCH_RATE` (default 100).
//! Out:    a table of percentiles in milliseconds; last, one JSON line with them and the ratio of
//!         the medians.
//! Needs:  the `PostgreSQL` server binaries; starts a cluster of its own.
//!
//! Both times begin at the commit timestamp that the log carries: the same clock, the same place.
//! The bare reader's ends when the row is decoded, the service's when the frame has been read from
//! the socket by its subscriber.

#![allow(clippy::unwrap_used, reason = "a benchmark ends where its expectation does")]

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/it/cluster.rs"]
mod cluster;
mod service;

use std::collections::HashMap;
use std::thread;
use std::time::{Duration, SystemTime};

use walcast::config::Replication;
use walcast::db::Login;
use walcast::lsn::Lsn;
use walcast::wal::WalStream;
use walcast::wal::pgoutput::{Message, TupleColumn};

use service::{DEADLINE, Service, Socket, TABLE, number, rounded};

/// Commits at the start that are not counted: caches fill.
const WARM_UP: i32 = 100;

fn main() {
    // `cargo test --benches` also runs this; it measures only when asked to.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run());
}

async fn run() {
    let (seconds, rate) = (number("WALCAST_BENCH_SECONDS", 15), number("WALCAST_BENCH_RATE", 100));
    let rows = i32::try_from(seconds * rate).unwrap() + WARM_UP;
    let database = cluster::Database::create().await;
    let client = database.client().await;
    let service = Service::start(&database.name);
    client.batch_execute(TABLE).await.unwrap();
    let socket = service.subscribe();
    let frames = thread::spawn(move || read_frames(socket, rows));
    let stream = bare_reader(&cluster::cluster().tcp_url(&database.name)).await;
    let bare = tokio::spawn(read_log(stream, rows));

    let insert = "insert into t values ($1, repeat('x', 192))";
    let insert = client.prepare(insert).await.unwrap();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
    for id in 1..=rows {
        ticks.tick().await;
        client.execute(&insert, &[&id]).await.unwrap();
    }
    let bare = tokio::time::timeout(DEADLINE, bare).await.expect("the log ends").unwrap();
    let frames = frames.join().unwrap();

    println!("{rate} changes a second for {seconds} s; commit → seen, in milliseconds\n");
    println!("{:<34} {:>8} {:>8} {:>8} {:>8}", "", "p50", "p90", "p99", "max");
    let since_commit = |id: &i32, at: &SystemTime| {
        let (commit, _) = bare[id];
        at.duration_since(commit).unwrap_or_default()
    };
    let ours = frames.iter().map(|(id, at)| (id, since_commit(id, at)));
    let theirs = bare.iter().map(|(id, (_, at))| (id, since_commit(id, at)));
    let theirs = Percentiles::of("bare pgoutput reader", theirs);
    let ours = Percentiles::of("walcast, frame at the subscriber", ours);
    let ratio = ours.p50 / theirs.p50;
    println!(
        "\n{}",
        serde_json::json!({
            "scenario": "latency",
            "ratios": { "p50_vs_bare_reader": rounded(ratio) },
            "milliseconds": {
                "p50": rounded(ours.p50), "p99": rounded(ours.p99),
                "bare_p50": rounded(theirs.p50), "bare_p99": rounded(theirs.p99),
            },
        })
    );
}

struct Percentiles {
    p50: f64,
    p99: f64,
}

impl Percentiles {
    fn of<'a>(name: &str, times: impl Iterator<Item = (&'a i32, Duration)>) -> Self {
        let counted = times.filter(|(id, _)| **id > WARM_UP);
        let mut times: Vec<f64> = counted.map(|(_, time)| time.as_secs_f64() * 1e3).collect();
        times.sort_by(f64::total_cmp);
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        println!("{name:<34} {:>8.2} {:>8.2} {:>8.2} {:>8.2}", at(50), at(90), at(99), at(100));
        Self { p50: at(50), p99: at(99) }
    }
}

/// When the frame of each row came.
fn read_frames(mut socket: Socket, rows: i32) -> HashMap<i32, SystemTime> {
    let mut seen = HashMap::new();
    for _ in 0..rows {
        let frame = socket.frame();
        let at = SystemTime::now();
        let frame: serde_json::Value = serde_json::from_slice(&frame).unwrap();
        let id = frame["payload"]["data"]["record"]["id"].as_i64().unwrap();
        seen.insert(i32::try_from(id).unwrap(), at);
    }
    seen
}

async fn bare_reader(url: &str) -> WalStream {
    let login = Login::parse(url, Duration::from_secs(10)).unwrap();
    let publications = vec!["supabase_realtime".into()];
    let settings = Replication { slot: "bare".into(), publications, ..Replication::default() };
    WalStream::open(&login, &settings, Lsn::ZERO).await.unwrap()
}

/// When each row was committed, and when it was decoded.
async fn read_log(mut stream: WalStream, rows: i32) -> HashMap<i32, (SystemTime, SystemTime)> {
    let mut seen = HashMap::new();
    let mut commit = SystemTime::UNIX_EPOCH;
    while seen.len() < usize::try_from(rows).unwrap() {
        let batch = stream.next_batch().await.unwrap();
        for message in batch.messages() {
            let message = message.unwrap();
            if let Message::Begin(begin) = message {
                commit = begin.time;
            } else if let Message::Insert(insert) = message {
                let TupleColumn::Text(id) = insert.new.columns().next().unwrap().unwrap() else {
                    panic!("the key is text");
                };
                let id: i32 = std::str::from_utf8(id).unwrap().parse().unwrap();
                seen.insert(id, (commit, SystemTime::now()));
            }
        }
    }
    stream.close().await;
    seen
}
