//! Rooms: broadcasts a second from one sender, and how long presence takes to fill a room.
//!
//! In:     `--broadcast` and `--presence` measure only that; `--small` leaves 10,000 receivers
//!         and 5,000 members out; `WALCAST_BENCH_ROUNDS` (default 3).
//! Out:    two tables; last, one JSON line of ratios.
//! Needs:  the `PostgreSQL` server binaries; descriptors for 10,000 sockets a process.
//! Never:  anything but loopback; a subscription to row changes (`fan_out` measures those).
//!
//! `walcast serve` has a core of its own, and so has a child process that holds the receivers.
//! Saturated: the sender writes 64 messages at a time, as fast as they are taken. One at a time:
//! the next one is sent when everybody has the one before. The bare loops write frames of the same
//! size to as many sockets. Meanwhile a socket that has nothing to do with the room sends
//! heartbeats, and the time to their answers is taken.
//!
//! Presence: everybody asks to join at once, shows itself when its join is answered, and waits until
//! it knows all the others. All that has to be told grows with the square of the members, so the
//! bare loop writes everybody the whole state once.

#![allow(clippy::unwrap_used, reason = "a benchmark ends where its expectation does")]

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/it/cluster.rs"]
mod cluster;
mod service;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use walcast::transport::websocket::text_frame;

use service::load::{
    Bare, Figure, Load, ME, heading, is_client, median, print, write_batch, write_one,
};
use service::{BINARY, DEADLINE, ROOM, Service, Socket, TEXT, float, masked, number, rounded};

/// Bytes of a message's own text.
const TEXT_BYTES: usize = 200;
/// Messages sent at once at saturation, and frames in one bare `writev`.
const BATCH: usize = 64;
/// Messages that may be under way at saturation.
const WINDOW: usize = 256;
/// Time between two heartbeats.
const HEARTBEAT: Duration = Duration::from_millis(3);

fn main() {
    if is_client() {
        return;
    }
    let arguments: Vec<String> = std::env::args().collect();
    let asked = |name: &str| arguments.iter().any(|argument| argument == name);
    // `cargo test --benches` also runs this; it measures only when asked to.
    if !asked("--bench") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let database = runtime.block_on(cluster::Database::create());
    let mut result = Map::new();
    result.insert("scenario".into(), "broadcast".into());
    if !asked("--presence") {
        let counts: &[usize] = if asked("--small") { &[1000] } else { &[1000, 10_000] };
        result.insert("broadcast".into(), broadcasts(&database.name, counts));
    }
    if !asked("--broadcast") {
        let counts: &[usize] =
            if asked("--small") { &[500, 1000] } else { &[500, 1000, 2500, 5000] };
        result.insert("presence".into(), presences(&database.name, counts));
    }
    println!("{}", Value::from(result));
}

/// What the sender writes, and so what is received.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    frame: fn(&str) -> Vec<u8>,
}

const WAYS: [Way; 2] = [
    Way {
        name: "text",
        frame: |data| {
            let payload = format!(r#"{{"type":"broadcast","event":"move","payload":{data}}}"#);
            let text = format!(r#"["1",null,"realtime:room","broadcast",{payload}]"#);
            masked(TEXT, text.as_bytes())
        },
    },
    Way {
        name: "binary",
        frame: |data| {
            // Kind 3: lengths of join_ref, ref, topic, event and meta; JSON; then these.
            let mut content = vec![3, 1, 0, 13, 4, 0, 1];
            content.extend(b"1realtime:roommove");
            content.extend(data.bytes());
            masked(BINARY, &content)
        },
    },
];

/// One sender and `counts` receivers in one room, against the bare loops.
fn broadcasts(database: &str, counts: &[usize]) -> Value {
    let data = json!({ "text": "x".repeat(TEXT_BYTES) }).to_string();
    let settings = [("WALCAST_LIMITS_CONNECTION_EVENTS_PER_SECOND_MAX", "100000000")];
    let service = Service::start_with(database, &settings);
    service.process.pin_to(0);
    ME.pin_to(0);
    let mut sender = service.join(&ROOM);
    let idle = Heart::start(&service).beat_for(Duration::from_secs(1));
    println!("heartbeats of an idle service: {idle}\n");
    heading();
    let mut ratios = Map::new();
    for &count in counts {
        let mut load = Load::start(service.address, count, "room");
        load.publisher = service.process;
        load.wait_until_open();
        for way in WAYS {
            let frame = (way.frame)(&data);
            let mut probe = service.join(&ROOM);
            sender.send(&frame);
            let received = text_frame(&vec![b'x'; probe.frame().len()]);
            drop(probe);
            load.time(count_of(count), || ());
            let measured = compare(&mut load, count, &service, &received, &mut |messages| {
                sender.send(&frame.repeat(messages));
            });
            let Measured { results, saturated, single } = measured;
            print(count, &results);
            println!("{count:>6}  {}, heartbeats at saturation: {saturated}", way.name);
            println!("{count:>6}  {}, heartbeats, one at a time: {single}", way.name);
            let ratio = |ours: usize| {
                let (ours, limit) = (results[ours].1, results[ours - 1].1);
                let (rate, cpu) = (ours.rate / limit.rate, limit.cpu_seconds / ours.cpu_seconds);
                json!({ "rate": rounded(rate), "cpu": rounded(cpu) })
            };
            ratios.insert(
                format!("{}_{count}", way.name),
                json!({
                    "saturation_vs_writev64": ratio(1),
                    "single_waiting_vs_write": ratio(3),
                    "heartbeat_p99_ms_saturated": rounded(saturated.p99),
                }),
            );
        }
    }
    ratios.into()
}

/// The ways of one message and one number of receivers: name, figure, and which is its limit.
struct Measured {
    results: Vec<(&'static str, Figure, usize)>,
    saturated: Latency,
    single: Latency,
}

fn compare(
    load: &mut Load,
    count: usize,
    service: &Service,
    frame: &[u8],
    send: &mut dyn FnMut(usize),
) -> Measured {
    let mut bare = Bare::open(count, frame.len());
    let mut runs: [Vec<Figure>; 4] = Default::default();
    let mut beats: [Vec<f64>; 2] = Default::default();
    for _ in 0..number("WALCAST_BENCH_ROUNDS", 3) {
        runs[0].push(bare.load.measure(count, BATCH, WINDOW, &mut |messages| {
            write_batch(&bare.streams, frame, messages);
        }));
        let heart = Heart::start(service);
        runs[1].push(load.measure(count, BATCH, WINDOW, send));
        beats[0].extend(heart.stop());
        runs[2].push(bare.load.measure(count, 1, 1, &mut |messages| {
            write_one(&bare.streams, frame, messages);
        }));
        let heart = Heart::start(service);
        runs[3].push(load.measure(count, 1, 1, send));
        beats[1].extend(heart.stop());
    }
    let names =
        ["bare writev of 64", "walcast, saturated", "bare write, waiting", "walcast, waiting"];
    let figures = runs.into_iter().map(median);
    let results = names.into_iter().zip(figures).zip([0, 0, 2, 2]);
    let results = results.map(|((name, figure), limit)| (name, figure, limit)).collect();
    let [saturated, single] = beats.map(Latency::of);
    Measured { results, saturated, single }
}

/// A socket that has nothing to do with the room, and how soon its heartbeats are answered.
struct Heart {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<f64>>,
}

impl Heart {
    fn start(service: &Service) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut socket = Socket::open(service.address, &ROOM);
        let stopped = Arc::clone(&stop);
        let beat = masked(TEXT, br#"[null,"1","phoenix","heartbeat",{}]"#);
        let thread = thread::spawn(move || {
            let mut milliseconds = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let start = Instant::now();
                socket.send(&beat);
                socket.frame();
                milliseconds.push(start.elapsed().as_secs_f64() * 1000.0);
                thread::sleep(HEARTBEAT);
            }
            milliseconds
        });
        Self { stop, thread }
    }

    fn stop(self) -> Vec<f64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }

    fn beat_for(self, time: Duration) -> Latency {
        thread::sleep(time);
        Latency::of(self.stop())
    }
}

/// In milliseconds.
#[derive(Clone, Copy)]
struct Latency {
    p50: f64,
    p99: f64,
    most: f64,
}

impl Latency {
    fn of(mut milliseconds: Vec<f64>) -> Self {
        milliseconds.sort_by(f64::total_cmp);
        let at = |percent: usize| milliseconds[(milliseconds.len() - 1) * percent / 100];
        Self { p50: at(50), p99: at(99), most: at(100) }
    }
}

impl std::fmt::Display for Latency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms", self.p50, self.p99, self.most)
    }
}

/// As the load counts.
fn count_of(count: usize) -> u64 {
    u64::try_from(count).unwrap()
}

/// A room of each size, filled at once.
fn presences(database: &str, counts: &[usize]) -> Value {
    let service = Service::start(database);
    service.process.pin_to(0);
    println!("\nheartbeats are those of a socket outside the room\n");
    println!(
        "{:>6} {:>9} {:>11} {:>9} {:>10} {:>11} {:>10} {:>9}  heartbeats",
        "N", "seconds", "ms/member", "CPU s", "MB", "frames/N", "of bare", "MB peak"
    );
    let mut filled = Vec::new();
    for &count in counts {
        let mut runs: Vec<Filled> = (0..number("WALCAST_BENCH_ROUNDS", 3))
            .map(|round| fill(&service, count, round))
            .collect();
        runs.sort_by(|one, other| one.seconds.total_cmp(&other.seconds));
        let run = runs.swap_remove(runs.len() / 2);
        let bare = bare_state(count, run.state_bytes);
        let size = float(count_of(count));
        let peak = service.process.memory("VmHWM") / 1_000_000;
        println!(
            "{count:>6} {:>9.3} {:>11.3} {:>9.2} {:>10.1} {:>11.1} {:>10.2} {peak:>9}  {}",
            run.seconds,
            run.seconds * 1000.0 / size,
            run.cpu_seconds,
            float(run.bytes / 1000) / 1000.0,
            run.frames / size,
            bare / run.seconds,
            run.heartbeats,
        );
        filled.push((size, run, bare));
    }
    let (first, last) = (&filled[0], &filled[filled.len() - 1]);
    let by_member = |of: &(f64, Filled, f64)| of.1.seconds / of.0;
    json!({
        "time_per_member_vs_smallest": rounded(by_member(last) / by_member(first)),
        "frames_per_member": rounded(last.1.frames / last.0),
        "vs_bare_write": rounded(last.2 / last.1.seconds),
    })
}

/// What it took until everybody knew everybody.
struct Filled {
    seconds: f64,
    cpu_seconds: f64,
    /// Received by all members.
    bytes: u64,
    frames: f64,
    /// Of the whole state.
    state_bytes: usize,
    heartbeats: Latency,
}

/// One that joins a room, shows itself, and counts whom it knows.
struct Member {
    stream: TcpStream,
    track: Vec<u8>,
    tracked: bool,
    known: usize,
    /// Content of the frame under way that is still to come; its header and beginning.
    skip: usize,
    head: Vec<u8>,
    length: usize,
    frames: u64,
}

/// How much of a frame's content tells what it is.
const HEAD_BYTES: usize = 60;

fn fill(service: &Service, count: usize, round: u32) -> Filled {
    // Of one length whatever the numbers: a frame's length tells how many members are in it.
    let topic = format!("realtime:crowd-{count:05}-{round:02}");
    let note = "x".repeat(20);
    let entry =
        format!(r#""m00000":{{"metas":[{{"phx_ref":"0123456789abcdef","note":"{note}"}}]}}"#);
    let shape = Shape {
        entry: entry.len(),
        state: format!(r#"["1",null,"{topic}","presence_state",{{}}]"#).len(),
        diff: format!(r#"[null,null,"{topic}","presence_diff",{{"joins":{{}},"leaves":{{}}}}]"#)
            .len(),
    };
    ME.pin_to(1);
    let payload = json!({ "type": "presence", "event": "track", "payload": { "note": note } });
    let track = masked(TEXT, format!(r#"["1","2","{topic}","presence",{payload}]"#).as_bytes());
    let mut members: Vec<Member> = (0..count)
        .map(|_| {
            let stream = Socket::open(service.address, &ROOM).into_stream();
            let track = track.clone();
            let (skip, length, head) = (0, 0, Vec::new());
            Member { stream, track, tracked: false, known: 0, skip, head, length, frames: 0 }
        })
        .collect();
    let heart = Heart::start(service);
    let (start, cpu) = (Instant::now(), service.process.cpu_seconds());
    for (number, member) in members.iter_mut().enumerate() {
        let config = json!({ "presence": { "enabled": true, "key": format!("m{number:05}") } });
        let join = format!(r#"["1","1","{topic}","phx_join",{{"config":{config}}}]"#);
        member.stream.write_all(&masked(TEXT, join.as_bytes())).unwrap();
        member.stream.set_nonblocking(true).unwrap();
    }
    let mut buffer = vec![0; 256 * 1024];
    let (mut bytes, mut knowing) = (0, 0);
    while knowing < count {
        assert!(start.elapsed() < DEADLINE, "{knowing} of {count} know everybody");
        for member in &mut members {
            let before = member.known;
            bytes += member.read(&mut buffer, &shape);
            assert!(member.known <= count, "{} of {count} members known", member.known);
            knowing += usize::from(before < count && member.known == count);
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    Filled {
        seconds,
        cpu_seconds: service.process.cpu_seconds() - cpu,
        bytes,
        frames: float(members.iter().map(|member| member.frames).sum()),
        state_bytes: shape.state + count * (shape.entry + 1),
        heartbeats: Latency::of(heart.stop()),
    }
}

/// Bytes of a member, and of what surrounds them.
struct Shape {
    entry: usize,
    state: usize,
    diff: usize,
}

impl Shape {
    /// How many members a frame of that length tells of.
    fn members(&self, around: usize, length: usize) -> usize {
        if length == around {
            return 0;
        }
        // All but the first have a comma.
        let bytes = length + 1 - around;
        assert_eq!(bytes % (self.entry + 1), 0, "a frame of {length} bytes");
        bytes / (self.entry + 1)
    }
}

impl Member {
    /// Takes what has come, and shows itself once its join is answered. Returns its bytes.
    fn read(&mut self, buffer: &mut [u8], shape: &Shape) -> u64 {
        let read = match self.stream.read(buffer) {
            Ok(0) => panic!("closed"),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return 0,
            Err(error) => panic!("{error}"),
        };
        let mut bytes = &buffer[..read];
        while !bytes.is_empty() {
            if self.skip == 0 {
                // A header, byte by byte.
                self.head.push(bytes[0]);
                bytes = &bytes[1..];
                let length = match self.head[..] {
                    [_, 126, high, low] => usize::from(u16::from_be_bytes([high, low])),
                    [_, 127, ref length @ ..] if length.len() == 8 => {
                        usize::try_from(u64::from_be_bytes(length.try_into().unwrap())).unwrap()
                    }
                    [_, length] if length < 126 => usize::from(length),
                    _ => continue,
                };
                self.head.clear();
                (self.skip, self.length) = (length, length);
                continue;
            }
            let here = bytes.len().min(self.skip);
            let wanted = HEAD_BYTES.saturating_sub(self.head.len()).min(here);
            self.head.extend(&bytes[..wanted]);
            bytes = &bytes[here..];
            self.skip -= here;
            if self.skip == 0 {
                self.take(shape);
                self.head.clear();
            }
        }
        u64::try_from(read).unwrap()
    }

    /// A whole frame has come.
    fn take(&mut self, shape: &Shape) {
        self.frames += 1;
        let head = String::from_utf8_lossy(&self.head);
        if head.contains("\"presence_state\"") {
            self.known += shape.members(shape.state, self.length);
        } else if head.contains("\"presence_diff\"") {
            self.known += shape.members(shape.diff, self.length);
        } else {
            assert!(head.contains("\"phx_reply\""), "{head}");
            if !std::mem::replace(&mut self.tracked, true) {
                self.stream.write_all(&self.track).unwrap();
            }
        }
    }
}

/// Seconds in which a bare loop writes as many sockets the whole state.
fn bare_state(count: usize, bytes: usize) -> f64 {
    ME.pin_to(0);
    let state = vec![b'x'; bytes];
    let mut bare = Bare::open(count, bytes);
    let start = Instant::now();
    bare.load.time(count_of(count), || write_one(&bare.streams, &state, 1));
    start.elapsed().as_secs_f64()
}
