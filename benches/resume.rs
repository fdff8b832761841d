//! Coming back: how soon after a restart the first missed event is there, and how long a crowd takes.
//!
//! In:     `--restart` and `--crowd` measure only that; `WALCAST_BENCH_ROUNDS` (default 3),
//!         `WALCAST_BENCH_CLIENTS` (default 5000), `WALCAST_BENCH_MISSED` (default 100).
//! Out:    a table; last, one JSON line of figures in seconds, each the worst of the rounds.
//! Needs:  the `PostgreSQL` server binaries; descriptors for 5,000 sockets a process.
//! Never:  anything but loopback.
//!
//! Restart: the replay window (64 MB) is filled with rows, the service is stopped and started again, and
//! a client that had seen all but the last rows of the window joins with its cursor as soon as it is let
//! in. Taken from the start of the process, to the first row it had missed, and to the last.
//!
//! Crowd: so many clients, each with claims of its own, know one cursor; behind it come so many rows under
//! Row Level Security that all may see. All connect at once, join with the cursor and read until they
//! have every row, once each. Taken from the first connection to the last client's last row; this process
//! has all the clients, so its own time is in it.

#![allow(clippy::unwrap_used, reason = "a benchmark ends where its expectation does")]

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/it/cluster.rs"]
mod cluster;
mod service;

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_postgres::Client;

use service::{DEADLINE, Service, TABLE, TEXT, float, masked, number, rounded, token};

/// Bytes of a row's text; with what the log adds to it a row takes some 1,100 bytes of log.
const ROW_BYTES: usize = 1000;
/// The window that a restart is measured with, as the setting has it by default.
const WINDOW_BYTES: u64 = 64 * 1024 * 1024;
/// Rows a transaction.
const BATCH: u32 = 100;
/// How long a round may take.
const PATIENCE: Duration = DEADLINE;

fn main() {
    // `cargo test --benches` also runs this; it measures only when asked to.
    let arguments: Vec<String> = std::env::args().collect();
    let is_there = |argument: &str| arguments.iter().any(|given| given == argument);
    if !is_there("--bench") {
        return;
    }
    let all = is_there("--restart") == is_there("--crowd");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut figures = json!({ "scenario": "resume" });
    if all || is_there("--restart") {
        figures["restart"] = runtime.block_on(restart());
    }
    if all || is_there("--crowd") {
        figures["crowd"] = runtime.block_on(crowd());
    }
    println!("\n{figures}");
}

/// The window full, a stop, a start.
async fn restart() -> Value {
    let database = cluster::Database::create().await;
    let admin = database.client().await;
    let window = WINDOW_BYTES.to_string();
    let settings = [
        ("WALCAST_REPLICATION_REPLAY_WINDOW_BYTES", window.as_str()),
        ("WALCAST_REPLICATION_REPLAY_WINDOW_MS", "3600000"),
    ];
    let mut service = Service::start_with(&database.name, &settings);
    admin.batch_execute(TABLE).await.unwrap();
    println!("after a restart with a window of {} MB\n", WINDOW_BYTES >> 20);
    println!("{:>6} {:>12} {:>12} {:>12}", "round", "let in s", "first s", "all s");
    let (mut first_most, mut done_most) = (0.0_f64, 0.0_f64);
    let mut base = 0;
    for round in 1..=number("WALCAST_BENCH_ROUNDS", 3) {
        let client = Resuming::new(&service, json!({ "role": "service_role" }));
        let from = log_end(&admin).await;
        base = write(&admin, base, from, WINDOW_BYTES * 9 / 10).await;
        // As far as somebody is who was there until just before.
        let cursor = client.after(&admin, base).await;
        base = write_rows(&admin, base, BATCH).await;
        drop(service);
        let start = Instant::now();
        service = Service::start_with(&database.name, &settings);
        let let_in = start.elapsed().as_secs_f64();
        let resumed = Resuming::new(&service, client.claims).resume(&cursor, BATCH).await.unwrap();
        assert_eq!(resumed.rows, BATCH, "every row that was missed, once");
        let since = |at: Instant| (at - start).as_secs_f64();
        let (first, done) = (since(resumed.first.unwrap()), since(resumed.done));
        println!("{round:>6} {let_in:>12.2} {first:>12.2} {done:>12.2}");
        (first_most, done_most) = (first_most.max(first), done_most.max(done));
    }
    json!({ "first_event_s": rounded(first_most), "all_s": rounded(done_most) })
}

/// Everybody at once.
async fn crowd() -> Value {
    let clients = number("WALCAST_BENCH_CLIENTS", 5000);
    let missed = number("WALCAST_BENCH_MISSED", 100);
    let database = cluster::Database::create().await;
    let admin = database.client().await;
    let service = Service::start(&database.name);
    admin.batch_execute(TABLE).await.unwrap();
    let policies = "alter table t enable row level security;
        create policy mine on t to authenticated using ((select auth.uid()) is not null)";
    admin.batch_execute(policies).await.unwrap();
    let crowd: Vec<Resuming> = (0..clients)
        .map(|number| {
            let sub = format!("00000000-0000-4000-8000-{number:012}");
            Resuming::new(&service, json!({ "role": "authenticated", "sub": sub }))
        })
        .collect();
    println!("\n{clients} clients come back at once, {missed} rows each\n");
    println!(
        "{:>6} {:>12} {:>12} {:>14} {:>12}",
        "round", "all s", "median s", "service CPU s", "peak MB"
    );
    let (mut most, mut base) = (0.0_f64, 0);
    for round in 1..=number("WALCAST_BENCH_ROUNDS", 3) {
        let cursor = crowd[0].after(&admin, base).await;
        base = write_rows(&admin, base, missed).await;
        let (cpu, start) = (service.process.cpu_seconds(), Instant::now());
        let tasks: Vec<_> = crowd
            .iter()
            .map(|client| {
                let (client, cursor) = (client.clone(), cursor.clone());
                tokio::spawn(async move { client.resume(&cursor, missed).await })
            })
            .collect();
        let mut times = Vec::new();
        for task in tasks {
            let resumed = task.await.unwrap().unwrap();
            assert_eq!(resumed.rows, missed, "every row that was missed, once");
            times.push((resumed.done - start).as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        let last = times[times.len() - 1];
        let cpu = service.process.cpu_seconds() - cpu;
        let peak = float(service.process.memory("VmHWM") >> 20);
        let median = times[times.len() / 2];
        println!("{round:>6} {last:>12.2} {median:>12.2} {cpu:>14.2} {peak:>12.0}");
        most = most.max(last);
    }
    json!({ "clients": clients, "missed": missed, "all_current_s": rounded(most) })
}

async fn log_end(admin: &Client) -> u64 {
    let end = "select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint";
    let end: i64 = admin.query_one(end, &[]).await.unwrap().get(0);
    u64::try_from(end).unwrap()
}

/// Writes rows until the log is so much longer than at `from`; the last id.
async fn write(admin: &Client, mut base: u32, from: u64, bytes: u64) -> u32 {
    while log_end(admin).await - from < bytes {
        for _ in 0..100 {
            base = write_rows(admin, base, BATCH).await;
        }
    }
    base
}

/// One transaction; the last id.
async fn write_rows(admin: &Client, base: u32, rows: u32) -> u32 {
    let insert = format!(
        "insert into t select {base} + id, repeat('x', {ROW_BYTES}) from generate_series(1, {rows}) as id"
    );
    admin.batch_execute(&insert).await.unwrap();
    base + rows
}

/// Somebody with a token who may come back.
#[derive(Clone)]
struct Resuming {
    address: SocketAddr,
    claims: Value,
    token: String,
}

/// What came of coming back.
struct Resumed {
    rows: u32,
    /// When the first of them was there.
    first: Option<Instant>,
    /// When all were.
    done: Instant,
}

impl Resuming {
    fn new(service: &Service, claims: Value) -> Self {
        let address = service.address;
        Self { address, token: token(claims.clone()), claims }
    }

    /// A cursor behind the row with this id, and so behind all before it; 0: behind what was read so far.
    async fn after(&self, admin: &Client, id: u32) -> String {
        let mut socket = Frames::open(self).await.unwrap();
        let begins = socket.join(None).await.unwrap();
        if id == 0 {
            return begins;
        }
        let update = format!("update t set note = note where id = {id}");
        admin.batch_execute(&update).await.unwrap();
        let at = async {
            loop {
                let frame = socket.next().await.unwrap();
                if frame["event"] == "postgres_changes" {
                    return frame["payload"]["data"]["cursor"].as_str().unwrap().to_owned();
                }
            }
        };
        timeout(PATIENCE, at).await.expect("the row that was written")
    }

    /// Until so many rows are there, and the word that the past is over: what the service itself has
    /// not read again by then follows behind that word.
    async fn resume(&self, cursor: &str, expected: u32) -> io::Result<Resumed> {
        let come_back = async {
            let mut socket = Frames::open(self).await?;
            socket.join(Some(cursor)).await?;
            let (mut rows, mut first, mut is_past) = (0, None, false);
            while rows < expected || !is_past {
                let frame = socket.next_text().await?;
                if contains(&frame, br#""postgres_changes""#)
                    && contains(&frame, br#""commit_timestamp""#)
                {
                    rows += 1;
                    first.get_or_insert_with(Instant::now);
                } else if contains(&frame, br#""caught_up""#) {
                    is_past = true;
                } else if contains(&frame, br#""gap""#) {
                    panic!("a gap: {}", String::from_utf8_lossy(&frame));
                }
            }
            Ok(Resumed { rows, first, done: Instant::now() })
        };
        timeout(PATIENCE, come_back).await.expect("caught up in time")
    }
}

/// A WebSocket and what has been read of it.
struct Frames {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Up to here it was taken.
    at: usize,
}

impl Frames {
    async fn open(client: &Resuming) -> io::Result<Self> {
        let mut stream = TcpStream::connect(client.address).await?;
        stream.set_nodelay(true)?;
        let head = format!(
            "GET /socket/websocket?apikey={}&vsn=1.0.0 HTTP/1.1\r\nhost: x\r\n\
             connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            client.token
        );
        stream.write_all(head.as_bytes()).await?;
        let mut socket = Self { stream, buffer: Vec::new(), at: 0 };
        let end = loop {
            let end = socket.buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
            if let Some(end) = end {
                break end + 4;
            }
            socket.read().await?;
        };
        assert!(socket.buffer.starts_with(b"HTTP/1.1 101"), "not upgraded");
        socket.at = end;
        Ok(socket)
    }

    /// The cursor where the subscription begins.
    async fn join(&mut self, cursor: Option<&str>) -> io::Result<String> {
        let mut entry = json!({ "event": "*", "schema": "public", "table": "t" });
        if let Some(cursor) = cursor {
            entry["cursor"] = cursor.into();
        }
        let join = json!({
            "topic": "realtime:bench", "event": "phx_join", "ref": "1", "join_ref": "1",
            "payload": { "config": { "postgres_changes": [entry] } },
        });
        self.stream.write_all(&masked(TEXT, join.to_string().as_bytes())).await?;
        let reply = self.next().await?;
        assert_eq!(reply["payload"]["status"], "ok", "{reply}");
        Ok(reply["payload"]["response"]["cursor"].as_str().unwrap().to_owned())
    }

    async fn next(&mut self) -> io::Result<Value> {
        Ok(serde_json::from_slice(&self.next_text().await?)?)
    }

    /// The text of the next frame.
    async fn next_text(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some((head, length)) = length(&self.buffer[self.at..]) {
                let begin = self.at + head;
                if let Some(text) = self.buffer.get(begin..begin + length) {
                    let text = text.to_vec();
                    self.at = begin + length;
                    return Ok(text);
                }
            }
            self.buffer.drain(..self.at);
            self.at = 0;
            self.read().await?;
        }
    }

    async fn read(&mut self) -> io::Result<()> {
        if self.stream.read_buf(&mut self.buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

/// Bytes of a frame's head, and of its text; none: not all of the head is there.
fn length(bytes: &[u8]) -> Option<(usize, usize)> {
    match *bytes.get(1)? {
        126 => {
            let length = bytes.get(2..4)?;
            Some((4, usize::from(u16::from_be_bytes(length.try_into().unwrap()))))
        }
        127 => {
            let length = u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap());
            Some((10, usize::try_from(length).unwrap()))
        }
        length => Some((2, usize::from(length))),
    }
}

fn contains(text: &[u8], needle: &[u8]) -> bool {
    text.windows(needle.len()).any(|bytes| bytes == needle)
}
