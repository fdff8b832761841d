//! Fan-out: deliveries a second and memory a connection, against bare write loops in the same run.
//!
//! In:     `--full` adds 9,500 subscribers; `--idle` measures memory only.
//! Out:    a table, then one JSON line with the ratios.
//! Never:  anything but loopback; more than a minute or two.
//!
//! Every message goes to every subscriber. This process publishes; a child process of the same
//! binary holds the other ends, reads in a busy loop so that nobody pays for waking it, and
//! reports how many bytes came. Where `taskset` exists, each process has a core of its own.

#![allow(clippy::unwrap_used, reason = "a benchmark ends where its expectation does")]

use std::collections::VecDeque;
use std::env;
use std::fs;
use std::hint::black_box;
use std::io::{ErrorKind, IoSlice, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::process::{self, Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use axum::http::request::Parts;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use walcast::config;
use walcast::http::{Service, router};
use walcast::hub::outbox::{CloseReason, DirtyList, Outbox};
use walcast::transport::admit::{Admit, Refusal};
use walcast::transport::listener::{Connections, serve};
use walcast::transport::websocket::{Peer, text_frame};

/// The payload of one message.
const MESSAGE_BYTES: usize = 300;
/// Header and payload; the bare loops write as many bytes.
const FRAME_BYTES: usize = MESSAGE_BYTES + 4;
/// Messages published at once at saturation, and frames in one bare `writev`.
const BATCH: usize = 64;
/// Messages that may be under way at saturation.
const WINDOW: usize = 256;
/// Messages that may be under way when they are published one at a time.
const SINGLE_WINDOW: usize = 32;
/// Connections for the idle measurement.
const IDLE_CONNECTIONS: usize = 10_000;
/// Each figure is the median of so many runs of this length, taken in turn.
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_millis(600);

fn main() {
    let arguments: Vec<String> = env::args().collect();
    if let [_, mode, address, control, count, kind] = &arguments[..]
        && mode == "load-client"
    {
        let is_websocket = kind == "websocket";
        return load_client(
            address.parse().unwrap(),
            control.parse().unwrap(),
            count.parse().unwrap(),
            is_websocket,
        );
    }
    pin_to(process::id(), 0);
    let mut counts = vec![100, 1000];
    if arguments.iter().any(|argument| argument == "--full") {
        // Two sets of sockets are open at once, within 20,000 descriptors.
        counts.push(9500);
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();

    let idle = idle_bytes_per_connection(&runtime);
    if arguments.iter().any(|argument| argument == "--idle") {
        return println!("idle: {idle} bytes");
    }
    println!("idle: {idle} bytes of resident memory a connection, of {IDLE_CONNECTIONS}\n");
    println!(
        "{:>6}  {:<26} {:>13} {:>10} {:>9}",
        "N", "way", "deliveries/s", "CPU s/M", "of limit"
    );
    let (mut saturation, mut single) = (Vec::new(), Vec::new());
    let (mut saturation_cpu, mut single_cpu) = (Vec::new(), Vec::new());
    for count in counts {
        let results = compare(&runtime, count);
        for (way, figure, limit) in &results {
            println!(
                "{count:>6}  {way:<26} {:>13.0} {:>10.3} {:>9.2}",
                figure.rate,
                figure.cpu_seconds * 1e6,
                figure.rate / results[*limit].1.rate,
            );
        }
        saturation.push((count, results[1].1.rate / results[0].1.rate));
        single.push((count, results[3].1.rate / results[2].1.rate));
        // CPU time is steadier than the clock where others use the machine.
        saturation_cpu.push((count, results[0].1.cpu_seconds / results[1].1.cpu_seconds));
        single_cpu.push((count, results[2].1.cpu_seconds / results[3].1.cpu_seconds));
    }
    let by_count = |ratios: &[(usize, f64)]| {
        ratios.iter().map(|(count, ratio)| format!("\"{count}\":{ratio:.3}")).collect::<Vec<_>>()
    };
    let worst = |ratios: &[(usize, f64)]| {
        ratios.iter().map(|(_, ratio)| *ratio).fold(f64::INFINITY, f64::min)
    };
    println!(
        "{{\"scenario\":\"fan_out\",\"ratios\":{{\"saturation_vs_writev64\":{:.3},\
         \"single_vs_write\":{:.3},\"saturation_vs_writev64_cpu\":{:.3},\
         \"single_vs_write_cpu\":{:.3}}},\"by_subscribers\":{{\"saturation_vs_writev64\":{{{}}},\
         \"single_vs_write\":{{{}}}}},\"idle_rss_bytes_per_connection\":{idle}}}",
        worst(&saturation),
        worst(&single),
        worst(&saturation_cpu),
        worst(&single_cpu),
        by_count(&saturation).join(","),
        by_count(&single).join(","),
    );
}

/// One way of publishing, measured.
#[derive(Debug, Clone, Copy)]
struct Figure {
    /// Deliveries a second.
    rate: f64,
    /// CPU seconds of this process a delivery.
    cpu_seconds: f64,
}

/// The four ways for one number of subscribers: name, figure, and which of them is its limit.
fn compare(runtime: &Runtime, count: usize) -> Vec<(&'static str, Figure, usize)> {
    let frame = text_frame(&[b'x'; MESSAGE_BYTES]);
    assert_eq!(frame.len(), FRAME_BYTES);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut bare_load = Load::start(listener.local_addr().unwrap(), count, "bare");
    let bare: Vec<TcpStream> = (0..count).map(|_| listener.accept().unwrap().0).collect();
    for stream in &bare {
        stream.set_nodelay(true).unwrap();
    }
    bare_load.wait_until_open();
    let server = Server::start(runtime);
    let mut load = Load::start(server.address, count, "websocket");
    load.wait_until_open();
    let outboxes = server.outboxes(count);

    let mut write_batch = |messages: usize| {
        let slices = vec![IoSlice::new(&frame); messages];
        for mut stream in &bare {
            let written = stream.write_vectored(&slices).unwrap();
            assert_eq!(written, messages * FRAME_BYTES);
        }
    };
    let mut write_one = |messages: usize| {
        for _ in 0..messages {
            for mut stream in &bare {
                stream.write_all(&frame).unwrap();
            }
        }
    };
    let mut ours = publisher(&outboxes);
    let mut runs: [Vec<Figure>; 4] = Default::default();
    for _ in 0..ROUNDS {
        runs[0].push(bare_load.measure(count, BATCH, WINDOW, &mut write_batch));
        runs[1].push(load.measure(count, BATCH, WINDOW, &mut ours));
        runs[2].push(bare_load.measure(count, 1, SINGLE_WINDOW, &mut write_one));
        runs[3].push(load.measure(count, 1, SINGLE_WINDOW, &mut ours));
    }
    let names = ["bare writev of 64", "walcast, saturated", "bare write", "walcast, one at a time"];
    let figures = runs.into_iter().map(median);
    names.into_iter().zip(figures).zip([0, 0, 2, 2]).map(|((n, f), l)| (n, f, l)).collect()
}

/// The publisher under test: makes that many messages, and gives each to every subscriber.
fn publisher(outboxes: &[Arc<Outbox>]) -> impl FnMut(usize) {
    let payload = [b'x'; MESSAGE_BYTES];
    let mut dirty = DirtyList::default();
    move |messages| {
        for _ in 0..messages {
            let frame = text_frame(black_box(&payload));
            for outbox in outboxes {
                dirty.offer(outbox, &frame).unwrap();
            }
        }
        dirty.flush();
    }
}

fn median(mut runs: Vec<Figure>) -> Figure {
    runs.sort_by(|one, other| one.rate.total_cmp(&other.rate));
    runs[runs.len() / 2]
}

fn idle_bytes_per_connection(runtime: &Runtime) -> u64 {
    let server = Server::start(runtime);
    // What the first connections cost once: code pages, arenas, this and that.
    let mut first = Load::start(server.address, 100, "websocket");
    first.wait_until_open();
    let held = server.outboxes(100);
    let before = resident_bytes();
    let mut load = Load::start(server.address, IDLE_CONNECTIONS, "websocket");
    load.wait_until_open();
    while server.connections.http() > 0 || server.connections.sockets() < IDLE_CONNECTIONS + 100 {
        thread::sleep(Duration::from_millis(10));
    }
    let after = resident_bytes();
    drop(held);
    after.saturating_sub(before) / u64::try_from(IDLE_CONNECTIONS).unwrap()
}

/// The server's side as in production, with a session that says nothing.
struct Server {
    address: SocketAddr,
    connections: Arc<Connections>,
    opened: Arc<Mutex<VecDeque<Arc<Outbox>>>>,
    stop: CancellationToken,
    task: Option<tokio::task::JoinHandle<std::io::Result<()>>>,
    runtime: tokio::runtime::Handle,
}

struct Everybody {
    opened: Arc<Mutex<VecDeque<Arc<Outbox>>>>,
}

struct Silent;

impl Peer for Silent {
    fn text(&mut self, _text: &str) -> ControlFlow<CloseReason> {
        ControlFlow::Continue(())
    }
    fn binary(&mut self, _data: &[u8]) -> ControlFlow<CloseReason> {
        ControlFlow::Continue(())
    }
    fn woken(&mut self) -> ControlFlow<CloseReason> {
        ControlFlow::Continue(())
    }
}

impl Admit for Everybody {
    type Peer = Silent;

    fn admit(
        &self,
        _request: &Parts,
    ) -> Result<impl FnOnce(Arc<Outbox>) -> Silent + Send + 'static, Refusal> {
        let opened = Arc::clone(&self.opened);
        Ok(move |outbox| {
            opened.lock().unwrap().push_back(outbox);
            Silent
        })
    }
}

impl Server {
    fn start(runtime: &Runtime) -> Self {
        let settings = config::Server { idle_timeout_ms: 600_000, ..config::Server::default() };
        let connections = Connections::new(&settings);
        let opened = Arc::new(Mutex::new(VecDeque::new()));
        let routes = router(Arc::new(Service {
            admit: Everybody { opened: Arc::clone(&opened) },
            connections: Arc::clone(&connections),
            ready: Box::new(|| Ok(())),
            metrics: Box::new(String::new),
        }));
        let stop = CancellationToken::new();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let task = runtime.spawn(serve(listener, routes, Arc::clone(&connections), stop.clone()));
        let runtime = runtime.handle().clone();
        Self { address, connections, opened, stop, task: Some(task), runtime }
    }

    /// The outboxes of the first `count` sockets.
    fn outboxes(&self, count: usize) -> Vec<Arc<Outbox>> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let mut opened = self.opened.lock().unwrap();
            if opened.len() >= count {
                return opened.drain(..count).collect();
            }
            drop(opened);
            assert!(Instant::now() < deadline, "sockets did not open");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take() {
            self.runtime.block_on(task).unwrap().unwrap();
        }
    }
}

/// The child process at the other end.
struct Load {
    child: Child,
    control: TcpStream,
    received: u64,
    sent: u64,
}

impl Load {
    fn start(address: SocketAddr, count: usize, kind: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let child = Command::new(env::current_exe().unwrap())
            .args(["load-client", &address.to_string()])
            .args([&listener.local_addr().unwrap().to_string(), &count.to_string(), kind])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        pin_to(child.id(), 1);
        let control = listener.accept().unwrap().0;
        Self { child, control, received: 0, sent: 0 }
    }

    /// Waits for the first report, sent once every socket is open.
    fn wait_until_open(&mut self) {
        self.control.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        self.read_report();
    }

    fn read_report(&mut self) {
        let mut report = [0; 8];
        self.control.read_exact(&mut report).unwrap();
        self.received = u64::from_le_bytes(report);
    }

    /// Publishes for one round, never more than `window` messages ahead of what was received.
    fn measure(
        &mut self,
        count: usize,
        batch: usize,
        window: usize,
        publish: &mut dyn FnMut(usize),
    ) -> Figure {
        let bytes_each = u64::try_from(count * FRAME_BYTES).unwrap();
        let (batch_bytes, ahead) = (
            u64::try_from(batch).unwrap() * bytes_each,
            u64::try_from(window - batch).unwrap() * bytes_each,
        );
        self.control.write_all(&[1]).unwrap();
        let (first, cpu, start) = (self.sent, cpu_seconds(), Instant::now());
        while start.elapsed() < ROUND {
            while self.sent - self.received > ahead {
                self.read_report();
            }
            publish(batch);
            self.sent += batch_bytes;
        }
        while self.received < self.sent {
            self.read_report();
        }
        assert_eq!(self.received, self.sent, "bytes received, bytes sent");
        let seconds = start.elapsed().as_secs_f64();
        let deliveries = (self.sent - first) / u64::try_from(FRAME_BYTES).unwrap();
        let deliveries = f64::from(u32::try_from(deliveries).unwrap());
        Figure { rate: deliveries / seconds, cpu_seconds: (cpu_seconds() - cpu) / deliveries }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Opens the sockets, reports, then reads for ever and reports how much came.
fn load_client(address: SocketAddr, control: SocketAddr, count: usize, is_websocket: bool) {
    let mut control = TcpStream::connect(control).unwrap();
    let mut streams = Vec::with_capacity(count);
    for _ in 0..count {
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
        streams.push(stream);
    }
    let mut buffer = vec![0; 256 * 1024];
    let mut total = 0_u64;
    let mut last = Instant::now();
    control.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    control.write_all(&total.to_le_bytes()).unwrap();
    loop {
        let before = total;
        for stream in &mut streams {
            match stream.read(&mut buffer) {
                Ok(0) => return,
                Ok(read) => total += u64::try_from(read).unwrap(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
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

/// Best effort: without `taskset` the scheduler decides.
fn pin_to(process: u32, core: u32) {
    let _ = Command::new("taskset")
        .args(["-acp", &core.to_string(), &process.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

/// User and system time of this process, from hundredths of a second.
fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    // Fields 14 and 15; the second one is in parentheses and may hold anything.
    let rest = stat.rsplit_once(')').unwrap().1;
    let ticks = rest.split_whitespace().skip(11).take(2);
    ticks.map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
