//! The whole service as a black box: the binary, its database, and sockets that count frames.
//!
//! In:     a database of the bench's cluster; settings as environment variables.
//! Out:    a running `walcast serve` that can be paused, with its CPU time and memory; joined
//!         sockets; the other limits of the same run.
//! Never:  a look inside; anything but loopback.

#![allow(dead_code, reason = "each bench takes what it needs")]

pub(crate) mod heart;
pub(crate) mod load;
pub(crate) mod node;

use std::fs;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{EncodingKey, Header};
use serde_json::json;

use crate::cluster;

/// Signs every token here.
const SECRET: &str = "a-secret-of-thirty-two-bytes-or-more";

/// How long one step of a bench may take before it is given up.
pub(crate) const DEADLINE: Duration = Duration::from_mins(2);

/// The table of every bench, captured, with its rights; no Row Level Security.
pub(crate) const TABLE: &str = "
    create table t (id int primary key, note text);
    grant all on t to anon, authenticated, service_role;
    alter publication supabase_realtime add table t;
";

/// A number from the environment.
pub(crate) fn number(name: &str, default: u32) -> u32 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

/// Two decimals are more than a shared machine gives.
pub(crate) fn rounded(ratio: f64) -> serde_json::Value {
    ((ratio * 100.0).round() / 100.0).into()
}

/// The middle one.
pub(crate) fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// A count that is certain to be exact as a float.
pub(crate) fn float(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap())
}

/// `walcast serve`, and where it listens.
pub(crate) struct Service {
    child: Child,
    /// Its process.
    pub(crate) process: Process,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    paused: bool,
}

impl Service {
    /// Starts it on a database; it is ready when this returns.
    pub(crate) fn start(database: &str) -> Self {
        Self::start_with(database, &[])
    }

    /// The same, with more settings.
    pub(crate) fn start_with(database: &str, settings: &[(&str, &str)]) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let log = std::env::var("WALCAST_LOG").unwrap_or_else(|_| "error".into());
        let child = Command::new(env!("CARGO_BIN_EXE_walcast"))
            .arg("serve")
            .env("DATABASE_URL", cluster::cluster().tcp_url(database))
            .env("WALCAST_JWT_SECRET", SECRET)
            .env("WALCAST_SLOT", database)
            .env("WALCAST_BIND", address.to_string())
            .env("WALCAST_LOG", log)
            // A paused service must not be taken for a dead one, nor a client that only reads.
            .env("WALCAST_REPLICATION_SENDER_TIMEOUT_MS", "600000")
            .env("WALCAST_SERVER_IDLE_TIMEOUT_MS", "3600000")
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let process = Process(child.id());
        let service = Self { child, process, address, paused: false };
        let deadline = Instant::now() + DEADLINE;
        while !service.get("/readyz").is_ok_and(|text| text.starts_with("HTTP/1.1 200 ")) {
            assert!(Instant::now() < deadline, "the service is not ready");
            thread::sleep(Duration::from_millis(20));
        }
        service
    }

    /// The response to a GET: head and body.
    fn get(&self, path: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(self.address)?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
        let mut response = String::new();
        stream.read_to_string(&mut response)?;
        Ok(response)
    }

    /// The sum of one counter over its labels.
    pub(crate) fn counter(&self, name: &str) -> f64 {
        let metrics = self.get("/metrics").unwrap();
        let value = |line: &str| {
            let rest = line.strip_prefix(name)?;
            let rest = rest.split_once('}').map_or(rest, |(_, value)| value);
            rest.trim().parse::<f64>().ok()
        };
        metrics.lines().filter_map(value).sum()
    }

    /// Stops it where it stands.
    pub(crate) fn pause(&mut self) {
        self.process.pause();
        self.paused = true;
    }

    /// Lets it go on.
    pub(crate) fn resume(&mut self) {
        self.process.resume();
        self.paused = false;
    }

    /// A socket with one channel on every change of `t`, as `service_role`.
    pub(crate) fn subscribe(&self) -> Socket {
        self.join(&CHANGES)
    }

    /// A socket that has joined.
    pub(crate) fn join(&self, join: &Join) -> Socket {
        let mut socket = Socket::open(self.address, join);
        socket.ask_to_join(join);
        socket.joined(join);
        socket
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if self.paused {
            self.resume();
        }
        self.process.signal("TERM");
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.child.try_wait().is_ok_and(|status| status.is_none()) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A process that is measured.
#[derive(Clone, Copy)]
pub(crate) struct Process(pub(crate) u32);

impl Process {
    fn signal(self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.0.to_string()]).status();
        assert!(status.is_ok_and(|status| status.success()), "cannot signal {}", self.0);
    }

    pub(crate) fn pause(self) {
        self.signal("STOP");
    }

    pub(crate) fn resume(self) {
        self.signal("CONT");
    }

    /// User and system time, in hundredths of a second.
    pub(crate) fn cpu_seconds(self) -> f64 {
        self.times().iter().sum()
    }

    /// User time alone, in hundredths of a second.
    pub(crate) fn user_seconds(self) -> f64 {
        self.times()[0]
    }

    fn times(self) -> [f64; 2] {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap();
        // Fields 14 and 15; the second one is in parentheses and may hold anything.
        let mut fields = stat.rsplit_once(')').unwrap().1.split_whitespace().skip(11);
        [(); 2].map(|()| fields.next().unwrap().parse::<f64>().unwrap() / 100.0)
    }

    /// How long its threads of now have run, to the nanosecond.
    pub(crate) fn run_seconds(self) -> f64 {
        let threads = fs::read_dir(format!("/proc/{}/task", self.0)).unwrap();
        let run = |thread: io::Result<fs::DirEntry>| {
            // One that ended meanwhile has nothing to say.
            let text = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<f64>().ok()
        };
        threads.filter_map(run).sum::<f64>() / 1e9
    }

    /// One line of `/proc/PID/status`, such as `VmRSS` or `VmHWM`, in bytes.
    pub(crate) fn memory(self, what: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
        let kilobytes = line.trim_start_matches(':').trim().trim_end_matches(" kB");
        kilobytes.parse::<u64>().unwrap() * 1024
    }

    /// Bytes it has handed to `write` so far.
    pub(crate) fn written(self) -> u64 {
        let io = fs::read_to_string(format!("/proc/{}/io", self.0)).unwrap();
        let line = io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap();
        line.trim().parse().unwrap()
    }

    /// Best effort: without `taskset` the scheduler decides.
    pub(crate) fn pin_to(self, core: u32) {
        let _ = Command::new("taskset")
            .args(["-acp", &core.to_string(), &self.0.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

/// A token that sees every row.
fn service_role() -> String {
    token(json!({ "role": "service_role" }))
}

/// A token with these claims, for some hours.
pub(crate) fn token(mut claims: serde_json::Value) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    claims["iat"] = now.into();
    claims["exp"] = (now + 36_000).into();
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&Header::default(), &claims, &key).unwrap()
}

/// Opcode of a text frame, whole.
pub(crate) const TEXT: u8 = 0x81;
/// Opcode of a binary frame, whole.
pub(crate) const BINARY: u8 = 0x82;

/// A client's frame. With a mask of zeros its content stays as it is.
pub(crate) fn masked(opcode: u8, content: &[u8]) -> Vec<u8> {
    let mut frame = vec![opcode];
    if let Ok(length @ 0..126) = u8::try_from(content.len()) {
        frame.push(0x80 | length);
    } else {
        frame.push(0xfe);
        frame.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
    }
    frame.extend([0; 4]);
    frame.extend(content);
    frame
}

/// How a socket joins its one channel.
pub(crate) struct Join {
    /// Of the protocol.
    version: &'static str,
    topic: &'static str,
    /// The channel's configuration, as JSON.
    config: &'static str,
    /// What the last frame holds that belongs to the join.
    last: &'static str,
}

/// Every change of `t`.
pub(crate) const CHANGES: Join = Join {
    version: "1.0.0",
    topic: "realtime:bench",
    config: r#"{"postgres_changes":[{"event":"*","schema":"public","table":"t"}]}"#,
    last: "Subscribed to PostgreSQL",
};

/// A room and its broadcasts.
pub(crate) const ROOM: Join = Join {
    version: "2.0.0",
    topic: "realtime:room",
    config: r#"{"broadcast":{"self":false,"ack":false}}"#,
    last: r#""status":"ok""#,
};

/// A private room in which mapped changes are told, as supabase-js joins it.
pub(crate) const MAPPED: Join = Join {
    version: "2.0.0",
    topic: "realtime:map:1",
    config: r#"{"private":true,"broadcast":{"self":false,"ack":false}}"#,
    last: r#""status":"ok""#,
};

/// The room of the same kind that Socket.IO's clients join.
pub(crate) const SOCKETIO_TOPIC: &str = "map:2";

/// A WebSocket that reads without masking, copying or parsing more than lengths.
pub(crate) struct Socket {
    stream: TcpStream,
    count: FrameCount,
}

impl Socket {
    /// An upgraded socket.
    pub(crate) fn open(address: SocketAddr, join: &Join) -> Self {
        let (token, version) = (service_role(), join.version);
        Self::upgraded(address, &format!("/socket/websocket?apikey={token}&vsn={version}"))
    }

    /// A socket of Socket.IO's, in the namespace `/`.
    pub(crate) fn open_socketio(address: SocketAddr) -> Self {
        let mut socket = Self::upgraded(address, "/socket.io/?EIO=4&transport=websocket");
        assert_eq!(socket.frame().first(), Some(&b'0'), "no handshake");
        let connect = format!(r#"40{{"token":"{}"}}"#, service_role());
        socket.send(&masked(TEXT, connect.as_bytes()));
        socket.expect_packet("40{");
        socket
    }

    /// Asks for a room of Socket.IO's; [`Self::joined_socketio`] reads the answer.
    pub(crate) fn ask_to_join_socketio(&mut self, topic: &str) {
        let join = format!(r#"420["join",{{"topic":"{topic}"}}]"#);
        self.send(&masked(TEXT, join.as_bytes()));
    }

    /// Reads until it is in that room.
    pub(crate) fn joined_socketio(&mut self) {
        let answer = self.expect_packet("430[");
        assert!(answer.contains(r#""ok":true"#), "not joined: {answer}");
    }

    /// Reads until a packet begins like this.
    fn expect_packet(&mut self, begin: &str) -> String {
        for _ in 0..100 {
            let packet = String::from_utf8(self.frame()).unwrap();
            assert!(!packet.starts_with("44"), "refused: {packet}");
            if packet.starts_with(begin) {
                return packet;
            }
        }
        panic!("no packet {begin}");
    }

    fn upgraded(address: SocketAddr, path: &str) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: x\r\n\
             connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        .unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
        Self { stream, count: FrameCount::default() }
    }

    /// Asks to join; [`Self::joined`] reads the answer.
    pub(crate) fn ask_to_join(&mut self, join: &Join) {
        let Join { version, topic, config, .. } = join;
        let text = if *version == "1.0.0" {
            format!(
                r#"{{"topic":"{topic}","event":"phx_join","ref":"1","join_ref":"1","payload":{{"config":{config}}}}}"#
            )
        } else {
            format!(r#"["1","1","{topic}","phx_join",{{"config":{config}}}]"#)
        };
        self.send(&masked(TEXT, text.as_bytes()));
    }

    /// Writes finished frames.
    pub(crate) fn send(&mut self, frames: &[u8]) {
        self.stream.write_all(frames).unwrap();
    }

    /// Reads until the channel is certain to get what it asked for.
    pub(crate) fn joined(&mut self, join: &Join) {
        let mut all = Vec::new();
        let needle = join.last.as_bytes();
        while !all.windows(needle.len()).any(|bytes| bytes == needle) {
            all.extend(self.frame());
            assert!(all.len() < 65_536, "not joined: {}", String::from_utf8_lossy(&all));
        }
    }

    /// The text of the next frame.
    pub(crate) fn frame(&mut self) -> Vec<u8> {
        let mut head = [0; 2];
        self.stream.read_exact(&mut head).unwrap();
        let length = match head[1] {
            126 => {
                let mut length = [0; 2];
                self.stream.read_exact(&mut length).unwrap();
                u64::from(u16::from_be_bytes(length))
            }
            127 => {
                let mut length = [0; 8];
                self.stream.read_exact(&mut length).unwrap();
                u64::from_be_bytes(length)
            }
            length => u64::from(length),
        };
        let mut text = vec![0; usize::try_from(length).unwrap()];
        self.stream.read_exact(&mut text).unwrap();
        text
    }

    /// The socket itself, for a bench that reads more.
    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// From here on it does not wait.
    pub(crate) fn set_nonblocking(&mut self) {
        self.stream.set_nonblocking(true).unwrap();
    }

    /// Answers the heartbeats of Engine.IO among what was read.
    pub(crate) fn answer_heartbeats(&mut self) {
        if std::mem::take(&mut self.count.heartbeats) > 0 {
            self.send(&masked(TEXT, b"3"));
        }
    }

    /// Reads what has come; how many bytes, and frames that began with them. None: the end.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Option<(u64, u64)> {
        match self.stream.read(buffer) {
            Ok(0) => None,
            Ok(read) => {
                let frames = self.count.take(&buffer[..read]);
                Some((u64::try_from(read).unwrap(), frames))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Some((0, 0)),
            Err(_) => None,
        }
    }

    /// Reads in a thread until so many frames have begun; says when, and gives itself back.
    pub(crate) fn expect(mut self, frames: u64) -> mpsc::Receiver<(Instant, Self)> {
        let (done, receiver) = mpsc::channel();
        thread::spawn(move || {
            let (mut seen, mut buffer) = (0, vec![0; 256 * 1024]);
            while seen < frames {
                let Some((_, more)) = self.read(&mut buffer) else { return };
                seen += more;
            }
            // The bench may have given up.
            let _ = done.send((Instant::now(), self));
        });
        receiver
    }
}

/// Counts frames in a stream of bytes.
#[derive(Debug, Default)]
pub(crate) struct FrameCount {
    /// Payload bytes still to come.
    skip: u64,
    head: Vec<u8>,
    /// Those of a single byte, which are heartbeats and not counted otherwise.
    heartbeats: u64,
}

impl FrameCount {
    /// Frames, but for heartbeats, whose header ends in these bytes.
    fn take(&mut self, mut bytes: &[u8]) -> u64 {
        let mut frames = 0;
        while !bytes.is_empty() {
            if self.skip > 0 {
                let here = bytes.len().min(usize::try_from(self.skip).unwrap());
                bytes = &bytes[here..];
                self.skip -= u64::try_from(here).unwrap();
                continue;
            }
            self.head.push(bytes[0]);
            bytes = &bytes[1..];
            let length = match self.head[..] {
                [_, 126, high, low] => u64::from(u16::from_be_bytes([high, low])),
                [_, 127, ref length @ ..] if length.len() == 8 => {
                    u64::from_be_bytes(length.try_into().unwrap())
                }
                [_, length] if length < 126 => u64::from(length),
                _ => continue,
            };
            self.head.clear();
            self.skip = length;
            if length == 1 {
                self.heartbeats += 1;
            } else {
                frames += 1;
            }
        }
        frames
    }
}
