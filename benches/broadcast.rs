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
//! it knows all the others. Each member must be told of every other, so the bytes grow with the square
//! of the members, whoever sends them, and so does the time to write them. What is ours to keep linear
//! is the rest, and it is held to three things, each of the best of the rounds, since what others do to
//! a shared machine only adds to it: the messages that a member hears (`frames`) have a bound, however
//! many members there are; the CPU time that a member costs outside the kernel (`user`, in ticks of
//! 10 ms over all members) is in the largest room at most twice that of the smallest; and the time to
//! fill a room, as a multiple of a bare loop's that writes the same frames to as many sockets right
//! after, does not grow with the room. `beyond` (CPU time more than the bare loop's, least and most of
//! the rounds) is shown and not judged: it is a small difference of two large times. Every size has the
//! same number of members in all (ten rooms of 500, one of 5,000).

#![allow(clippy::unwrap_used, reason = "a benchmark ends where its expectation does")]

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/it/cluster.rs"]
mod cluster;
mod service;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use walcast::transport::websocket::text_frame;

use service::heart::{Heart, Latency};
use service::load::{self, Bare, Figure, Load, ME, heading, is_client, print};
use service::load::{write_batch, write_one};
use service::{
    BINARY, DEADLINE, Process, ROOM, Service, Socket, TEXT, float, masked, number, rounded,
};

/// Bytes of a message's own text.
const TEXT_BYTES: usize = 200;
/// Messages sent at once at saturation, and frames in one bare `writev`.
const BATCH: usize = 64;
/// Messages that may be under way at saturation.
const WINDOW: usize = 256;
/// How much more a member of the largest room may cost outside the kernel than one of the smallest:
/// what is linear does not change, what is quadratic is ten times as much.
const USER_RATIO_MAX: f64 = 2.0;
/// Frames of one member: its answers, the state, and a diff for each fraction of a second.
const FRAMES_MAX: f64 = 64.0;

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
    let figures = runs.into_iter().map(load::median);
    let results = names.into_iter().zip(figures).zip([0, 0, 2, 2]);
    let results = results.map(|((name, figure), limit)| (name, figure, limit)).collect();
    let [saturated, single] = beats.map(Latency::of);
    Measured { results, saturated, single }
}

/// As the load counts.
fn count_of(count: usize) -> u64 {
    u64::try_from(count).unwrap()
}

/// A room of each size, filled at once, as often as gives the same members for every size.
fn presences(database: &str, counts: &[usize]) -> Value {
    let service = Service::start(database);
    service.process.pin_to(0);
    println!("\nper member; heartbeats are those of a socket outside the room\n");
    println!(
        "{:>6} {:>9} {:>8} {:>8} {:>8} {:>8} {:>15} {:>8} {:>8} {:>7} {:>8}  heartbeats",
        "N",
        "seconds",
        "ms",
        "ms bare",
        "CPU ms",
        "bare",
        "beyond",
        "user",
        "bytes",
        "frames",
        "MB peak"
    );
    let most = counts.last().copied().unwrap_or_default();
    let mut sizes = Vec::new();
    for &count in counts {
        let rooms = most / count;
        let (mut runs, mut beats) = (Vec::new(), Vec::new());
        for round in 0..number("WALCAST_BENCH_ROUNDS", 3) {
            let mut bare = Bare::open(count, 1);
            let mut run = Run::default();
            for room in 0..rooms {
                let (filled, heartbeats) = fill(&service, count, &format!("{round:02}-{room:02}"));
                wait_until_empty(&service);
                run.bare.add(&write_bare(&mut bare, count, &filled.lengths));
                run.ours.add(&filled.cost);
                run.bytes += filled.bytes;
                run.frames += filled.frames;
                beats.extend(heartbeats);
            }
            runs.push(run);
        }
        let members = float(count_of(count * rooms));
        let of = |what: fn(&Run) -> f64| runs.iter().map(move |run| what(run) / members);
        // What others do to a shared machine only adds to it.
        let least = |what| of(what).fold(f64::INFINITY, f64::min) * 1000.0;
        let mean = |what| of(what).sum::<f64>() / float(count_of(runs.len()));
        let (ms, bare_ms) = (least(|run| run.ours.seconds), least(|run| run.bare.seconds));
        let (cpu, bare_cpu) = (least(|run| run.ours.run), least(|run| run.bare.run));
        let user = least(|run| run.ours.user);
        let (bytes, frames) = (mean(|run| float(run.bytes)), mean(|run| float(run.frames)));
        let peak = service.process.memory("VmHWM") / 1_000_000;
        let beyond = Range::of(of(|run| run.ours.run - run.bare.run));
        println!(
            "{count:>6} {:>9.3} {ms:>8.3} {bare_ms:>8.3} {cpu:>8.3} {bare_cpu:>8.3} {:>7.3} {:>7.3} \
             {user:>8.3} {bytes:>8.0} {frames:>7.1} {peak:>8}  {}",
            ms * float(count_of(count)) / 1000.0,
            beyond.least * 1000.0,
            beyond.most * 1000.0,
            Latency::of(beats),
        );
        sizes.push(Size { frames, user, vs_bare_write: bare_ms / ms });
    }
    let (first, last) = (&sizes[0], &sizes[sizes.len() - 1]);
    let verdict = verdict(first, last);
    let user = [first, last].map(|size| (size.user * 1e3).round() / 1e3);
    let vs_bare_write = [first, last].map(|size| rounded(size.vs_bare_write));
    json!({
        "frames_per_member": rounded(last.frames),
        "frames_at_most": FRAMES_MAX,
        "user_ms": user,
        "user_at_most_times_the_smallest": USER_RATIO_MAX,
        "vs_bare_write": vs_bare_write,
        "verdict": verdict,
        "passed": verdict == PASSED,
    })
}

const PASSED: &str = "passed";

/// What the smallest and the largest rooms tell. Written so that what is not a number does not pass.
fn verdict(first: &Size, last: &Size) -> &'static str {
    let is_linear = first.user > 0.0 && last.user <= USER_RATIO_MAX * first.user;
    if last.frames <= FRAMES_MAX && is_linear && last.vs_bare_write >= first.vs_bare_write {
        PASSED
    } else if !is_linear {
        "a member of a large room costs more"
    } else if last.frames > FRAMES_MAX {
        "too many messages"
    } else {
        "a large room is further from what its bytes cost"
    }
}

/// What rooms of one size came to, for each member.
struct Size {
    frames: f64,
    /// CPU milliseconds outside the kernel.
    user: f64,
    vs_bare_write: f64,
}

/// The rounds' best and worst.
struct Range {
    least: f64,
    most: f64,
}

impl Range {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let none = Self { least: f64::INFINITY, most: f64::NEG_INFINITY };
        values.fold(none, |range, value| Self {
            least: range.least.min(value),
            most: range.most.max(value),
        })
    }
}

/// Rooms of one size, one after the other, and the bare loops after each.
#[derive(Default)]
struct Run {
    ours: Cost,
    bare: Cost,
    bytes: u64,
    frames: u64,
}

/// What something took of a process, in seconds.
#[derive(Default)]
struct Cost {
    /// By the clock.
    seconds: f64,
    /// How long its threads ran.
    run: f64,
    /// Outside the kernel.
    user: f64,
}

impl Cost {
    fn since(start: Instant, process: Process) -> Self {
        let seconds = start.elapsed().as_secs_f64();
        Self { seconds, run: process.run_seconds(), user: process.user_seconds() }
    }

    fn minus(self, before: &Self) -> Self {
        let (run, user) = (self.run - before.run, self.user - before.user);
        Self { seconds: self.seconds - before.seconds, run, user }
    }

    fn add(&mut self, more: &Self) {
        self.seconds += more.seconds;
        self.run += more.run;
        self.user += more.user;
    }
}

/// A bare loop that gives as many sockets frames of these lengths.
fn write_bare(bare: &mut Bare, count: usize, lengths: &[usize]) -> Cost {
    ME.pin_to(0);
    let frames: Vec<Vec<u8>> = lengths.iter().map(|length| vec![b'x'; *length]).collect();
    let bytes = count_of(lengths.iter().sum::<usize>() * count);
    let start = Instant::now();
    let before = Cost::since(start, *ME);
    bare.load.time(bytes, || {
        for frame in &frames {
            write_one(&bare.streams, frame, 1);
        }
    });
    Cost::since(start, *ME).minus(&before)
}

/// Until nobody of the room before is left, who would be told that others leave.
fn wait_until_empty(service: &Service) {
    let start = Instant::now();
    while service.counter("walcast_connections ") > 0.0 {
        assert!(start.elapsed() < DEADLINE, "somebody stays");
        thread::sleep(Duration::from_millis(20));
    }
}

/// What it took until everybody knew everybody.
struct Filled {
    cost: Cost,
    /// Received by all members.
    bytes: u64,
    frames: u64,
    /// Of the frames that one of them received.
    lengths: Vec<usize>,
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
    /// Of the frames that have come, without their headers.
    lengths: Vec<usize>,
}

/// How much of a frame's content tells what it is.
const HEAD_BYTES: usize = 60;

/// Fills a room of this name; also gives milliseconds to the answers of heartbeats elsewhere.
fn fill(service: &Service, count: usize, room: &str) -> (Filled, Vec<f64>) {
    // Of one length whatever the numbers: a frame's length tells how many members are in it.
    let topic = format!("realtime:crowd-{count:05}-{room}");
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
            let (skip, length, head, lengths) = (0, 0, Vec::new(), Vec::new());
            Member { stream, track, tracked: false, known: 0, skip, head, length, lengths }
        })
        .collect();
    let heart = Heart::start(service);
    let start = Instant::now();
    let before = Cost::since(start, service.process);
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
    let cost = Cost::since(start, service.process).minus(&before);
    let frames = members.iter().map(|member| count_of(member.lengths.len())).sum();
    // One with as many frames as most.
    members.sort_by_key(|member| member.lengths.len());
    let lengths = members.swap_remove(count / 2).lengths;
    (Filled { cost, bytes, frames, lengths }, heart.stop())
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
        self.lengths.push(self.length);
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
