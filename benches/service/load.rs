//! Many sockets in a process of their own, and the bare loops that write to as many.
//!
//! In:     how many, of what kind, and who publishes to them.
//! Out:    deliveries a second, and CPU time a delivery, of any way to publish.
//! Never:  a wait for the receivers: they read in a busy loop, so that nobody pays for waking them.
//!
//! The process is this same binary, told by its arguments to be the load: see [`is_client`].

use std::env;
use std::io::{ErrorKind, IoSlice, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{self, Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{CHANGES, Join, MAPPED, Process, ROOM, SOCKETIO_TOPIC, Socket, float};

/// Each figure is the median of so many runs of this length, taken in turn.
pub(crate) const ROUNDS: usize = 3;
pub(crate) const ROUND: Duration = Duration::from_millis(600);

/// Whether this process was started as the load. It has been, when this returns.
pub(crate) fn is_client() -> bool {
    let arguments: Vec<String> = env::args().collect();
    let [_, mode, address, control, count, kind] = &arguments[..] else { return false };
    if mode != "load-client" {
        return false;
    }
    let (address, control) = (address.parse().unwrap(), control.parse().unwrap());
    load_client(address, control, count.parse().unwrap(), kind);
    true
}

/// This process.
pub(crate) static ME: std::sync::LazyLock<Process> =
    std::sync::LazyLock::new(|| Process(process::id()));

pub(crate) fn heading() {
    println!(
        "{:>6}  {:<26} {:>13} {:>10} {:>9}",
        "N", "way", "deliveries/s", "CPU s/M", "of limit"
    );
}

pub(crate) fn print(count: usize, results: &[(&str, Figure, usize)]) {
    for (way, figure, limit) in results {
        println!(
            "{count:>6}  {way:<26} {:>13.0} {:>10.3} {:>9.2}",
            figure.rate,
            figure.cpu_seconds * 1e6,
            figure.rate / results[*limit].1.rate,
        );
    }
}

/// One way of publishing, measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figure {
    /// Deliveries a second.
    pub(crate) rate: f64,
    /// CPU seconds of this process a delivery.
    pub(crate) cpu_seconds: f64,
}

pub(crate) fn median(mut runs: Vec<Figure>) -> Figure {
    runs.sort_by(|one, other| one.rate.total_cmp(&other.rate));
    runs[runs.len() / 2]
}

/// Sockets without a server.
pub(crate) struct Bare {
    pub(crate) streams: Vec<TcpStream>,
    pub(crate) load: Load,
}

impl Bare {
    pub(crate) fn open(count: usize, frame_bytes: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut load = Load::start(listener.local_addr().unwrap(), count, "bare");
        load.unit = u64::try_from(frame_bytes).unwrap();
        let streams: Vec<TcpStream> = (0..count).map(|_| listener.accept().unwrap().0).collect();
        for stream in &streams {
            stream.set_nodelay(true).unwrap();
        }
        load.wait_until_open();
        Self { streams, load }
    }
}

pub(crate) fn write_batch(streams: &[TcpStream], frame: &[u8], messages: usize) {
    let slices = vec![IoSlice::new(frame); messages];
    for mut stream in streams {
        let written = stream.write_vectored(&slices).unwrap();
        assert_eq!(written, messages * frame.len());
    }
}

pub(crate) fn write_one(streams: &[TcpStream], frame: &[u8], messages: usize) {
    for _ in 0..messages {
        for mut stream in streams {
            stream.write_all(frame).unwrap();
        }
    }
}

/// The child process at the other end.
pub(crate) struct Load {
    child: Child,
    control: TcpStream,
    /// Who publishes to it.
    pub(crate) publisher: Process,
    /// What one delivery counts for in the reports: 1, or its bytes where the load counts those.
    pub(crate) unit: u64,
    received: u64,
    sent: u64,
}

impl Load {
    pub(crate) fn start(address: SocketAddr, count: usize, kind: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let child = Command::new(env::current_exe().unwrap())
            .args(["load-client", &address.to_string()])
            .args([&listener.local_addr().unwrap().to_string(), &count.to_string(), kind])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Process(child.id()).pin_to(1);
        let control = listener.accept().unwrap().0;
        Self { child, control, publisher: *ME, unit: 1, received: 0, sent: 0 }
    }

    /// Waits for the first report, sent once every socket is open.
    pub(crate) fn wait_until_open(&mut self) {
        self.control.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        self.read_report();
    }

    fn read_report(&mut self) {
        let mut report = [0; 8];
        self.control.read_exact(&mut report).unwrap();
        self.received = u64::from_le_bytes(report);
    }

    /// Publishes for one round, never more than `window` messages ahead of what was received.
    pub(crate) fn measure(
        &mut self,
        count: usize,
        batch: usize,
        window: usize,
        publish: &mut dyn FnMut(usize),
    ) -> Figure {
        let each = u64::try_from(count).unwrap() * self.unit;
        let (of_batch, ahead) =
            (u64::try_from(batch).unwrap() * each, u64::try_from(window - batch).unwrap() * each);
        self.control.write_all(&[1]).unwrap();
        let (first, cpu, start) = (self.sent, self.publisher.cpu_seconds(), Instant::now());
        while start.elapsed() < ROUND {
            while self.sent - self.received > ahead {
                self.read_report();
            }
            publish(batch);
            self.sent += of_batch;
        }
        self.wait();
        let seconds = start.elapsed().as_secs_f64();
        let deliveries = float((self.sent - first) / self.unit);
        let cpu = self.publisher.cpu_seconds() - cpu;
        Figure { rate: deliveries / seconds, cpu_seconds: cpu / deliveries }
    }

    /// From a word to go until everything that waited for it has come.
    pub(crate) fn time(&mut self, deliveries: u64, go: impl FnOnce()) -> Figure {
        self.control.write_all(&[1]).unwrap();
        let (cpu, start) = (self.publisher.cpu_seconds(), Instant::now());
        go();
        self.sent += deliveries * self.unit;
        self.wait();
        let seconds = start.elapsed().as_secs_f64();
        let cpu = self.publisher.cpu_seconds() - cpu;
        let deliveries = float(deliveries);
        Figure { rate: deliveries / seconds, cpu_seconds: cpu / deliveries }
    }

    fn wait(&mut self) {
        while self.received < self.sent {
            self.read_report();
        }
        assert_eq!(self.received, self.sent, "what was received, what was sent");
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One socket at the other end, and how what comes there is counted.
enum End {
    Bytes(TcpStream),
    Frames(Box<Socket>),
    /// Of Socket.IO, whose server sends heartbeats and waits for the answers.
    Packets(Box<Socket>),
}

impl End {
    fn bytes(address: SocketAddr, is_websocket: bool) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        if is_websocket {
            let request = "GET /socket/websocket HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\n\
                upgrade: websocket\r\nsec-websocket-version: 13\r\n\
                sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
            stream.write_all(request.as_bytes()).unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            assert!(head.starts_with(b"HTTP/1.1 101"));
        }
        stream.set_nonblocking(true).unwrap();
        Self::Bytes(stream)
    }

    /// How much has come; none: the end.
    fn read(&mut self, buffer: &mut [u8]) -> Option<u64> {
        match self {
            Self::Bytes(stream) => match stream.read(buffer) {
                Ok(0) => None,
                Ok(read) => Some(u64::try_from(read).unwrap()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => Some(0),
                Err(_) => None,
            },
            Self::Frames(socket) => socket.read(buffer).map(|(_, frames)| frames),
            Self::Packets(socket) => {
                let (_, frames) = socket.read(buffer)?;
                socket.answer_heartbeats();
                Some(frames)
            }
        }
    }
}

/// Sockets that have joined.
fn joined(address: SocketAddr, count: usize, join: &Join) -> Vec<End> {
    let mut sockets = Vec::with_capacity(count);
    while sockets.len() < count {
        let mut joining: Vec<Socket> = Vec::new();
        while joining.len() < 100.min(count - sockets.len()) {
            let mut socket = Socket::open(address, join);
            socket.ask_to_join(join);
            joining.push(socket);
        }
        for mut socket in joining {
            socket.joined(join);
            socket.set_nonblocking();
            sockets.push(End::Frames(Box::new(socket)));
        }
    }
    sockets
}

/// Sockets of Socket.IO that are in its room.
fn joined_socketio(address: SocketAddr, count: usize) -> Vec<End> {
    let mut sockets = Vec::with_capacity(count);
    while sockets.len() < count {
        let mut joining: Vec<Socket> = Vec::new();
        while joining.len() < 100.min(count - sockets.len()) {
            let mut socket = Socket::open_socketio(address);
            socket.ask_to_join_socketio(SOCKETIO_TOPIC);
            joining.push(socket);
        }
        for mut socket in joining {
            socket.joined_socketio();
            socket.set_nonblocking();
            sockets.push(End::Packets(Box::new(socket)));
        }
    }
    sockets
}

/// Opens the sockets, reports, then reads for ever and reports how much came.
fn load_client(address: SocketAddr, control: SocketAddr, count: usize, kind: &str) {
    let mut control = TcpStream::connect(control).unwrap();
    let mut ends: Vec<End> = match kind {
        "service" => joined(address, count, &CHANGES),
        "room" => joined(address, count, &ROOM),
        "mapped" => joined(address, count, &MAPPED),
        "socketio" => joined_socketio(address, count),
        kind => (0..count).map(|_| End::bytes(address, kind == "websocket")).collect(),
    };
    let mut buffer = vec![0; 256 * 1024];
    let mut total = 0_u64;
    let mut last = Instant::now();
    control.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    control.write_all(&total.to_le_bytes()).unwrap();
    loop {
        let before = total;
        for end in &mut ends {
            let Some(more) = end.read(&mut buffer) else { return };
            total += more;
        }
        if total > before {
            last = Instant::now();
            if control.write_all(&total.to_le_bytes()).is_err() {
                return;
            }
        } else if last.elapsed() > Duration::from_millis(20) {
            // Between two rounds the core belongs to the other client: wait for the next one.
            match control.read(&mut [0]) {
                Ok(0) => return,
                Ok(_) => last = Instant::now(),
                // Nobody said so, but the publisher may only have been held up.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }
}
