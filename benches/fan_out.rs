//! Fan-out: deliveries a second and memory a connection, against bare write loops in the same run.
//!
//! In:     `--full` adds 9,500 subscribers; `--idle` measures memory only; `--outbox` leaves the
//!         whole service out; `--service` and `--mapped` measure nothing else.
//! Out:    a table, then one JSON line with the ratios.
//! Needs:  the `PostgreSQL` server binaries, for the whole service; `node` and `npm`, for the comparison.
//! Never:  anything but loopback; more than a minute or two.
//!
//! Every message goes to every subscriber. This process publishes; a child process of the same
//! binary holds the other ends, reads in a busy loop so that nobody pays for waking it, and
//! reports how many bytes came. Where `taskset` exists, each process has a core of its own.
//!
//! The whole service is `walcast serve` with 1,000 subscribers of one topic on one table: rows
//! written in SQL, frames counted at the other ends. Saturated: it is stopped, a transaction of
//! many rows is committed, and it goes on. One at a time: a row is committed when everybody has
//! the one before; the bare loop waits alike. The bare loops write frames of the same size.
//!
//! Mapped is the same service and rows that are mapped to events, which 1,000 clients hear in a room:
//! those of Socket.IO, and those that join as supabase-js does. In turn with them, a server that is
//! Socket.IO's own (`service/room.mjs`) tells as many clients the same event. What is compared is how
//! many deliveries a second of CPU time is worth, user and system time of the server's process: the
//! ratio is to be at least 3, saturated and with 32 rows under way. Where each row waits until all
//! have the one before, nearly all of it is the kernel's time for one write a socket, and a bare loop
//! of writes (see the table of the whole service) itself is worth little more than twice that server.

#![allow(clippy::unwrap_used, reason = "a benchmark ends where its expectation does")]

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/it/cluster.rs"]
mod cluster;
mod service;

use std::collections::VecDeque;
use std::env;
use std::hint::black_box;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use axum::http::request::Parts;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use walcast::config;
use walcast::http::{Gate, Operations, Service, router};
use walcast::hub::outbox::{CloseReason, DirtyList, Outbox};
use walcast::transport::admit::{Admit, Refusal};
use walcast::transport::listener::{Connections, serve};
use walcast::transport::websocket::{Peer, text_frame};

use service::load::{
    self, Bare, Figure, Load, ME, ROUNDS, heading, median, print, write_batch, write_one,
};
use service::node::Node;
use service::{Process, SOCKETIO_TOPIC, TABLE};

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
/// Subscribers of the whole service.
const SUBSCRIBERS: usize = 1000;
/// Joined connections for its idle measurement.
const JOINED_CONNECTIONS: usize = 5000;
/// Rows of the transaction that saturates it.
const BACKLOG_ROWS: u32 = 1500;

fn main() {
    let arguments: Vec<String> = env::args().collect();
    if load::is_client() {
        return;
    }
    // `cargo test --benches` also runs this; it measures only when asked to.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let asked = |name: &str| arguments.iter().any(|argument| argument == name);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut result = serde_json::Map::new();
    result.insert("scenario".into(), "fan_out".into());
    // Before anything is pinned: Postgres may use both cores.
    let begin = |what| !asked("--outbox") && !asked("--idle") && !asked(what);
    if begin("--mapped") {
        result.insert("service".into(), whole_service(&runtime));
        println!();
    }
    if begin("--service") {
        result.insert("mapped".into(), mapped(&runtime));
        println!();
    }
    ME.pin_to(0);
    if asked("--service") || asked("--mapped") {
        return println!("{}", serde_json::Value::from(result));
    }
    let mut counts = vec![100, 1000];
    if asked("--full") {
        // Two sets of sockets are open at once, within 20,000 descriptors.
        counts.push(9500);
    }
    let idle = idle_bytes_per_connection(&runtime);
    if asked("--idle") {
        return println!("idle: {idle} bytes");
    }
    println!("outboxes: {idle} bytes of resident memory a connection, of {IDLE_CONNECTIONS}\n");
    heading();
    let mut ratios = serde_json::Map::new();
    let mut worst = |name: &str, ratio: f64| {
        let least = ratios.get(name).and_then(serde_json::Value::as_f64).unwrap_or(f64::INFINITY);
        ratios.insert(name.into(), service::rounded(ratio.min(least)));
    };
    for count in counts {
        let results = compare(&runtime, count);
        print(count, &results);
        worst("saturation_vs_writev64", results[1].1.rate / results[0].1.rate);
        worst("single_vs_write", results[3].1.rate / results[2].1.rate);
        // CPU time is steadier than the clock where others use the machine.
        let cpu =
            |ours: usize, limit: usize| results[limit].1.cpu_seconds / results[ours].1.cpu_seconds;
        worst("saturation_vs_writev64_cpu", cpu(1, 0));
        worst("single_vs_write_cpu", cpu(3, 2));
    }
    result.insert("ratios".into(), ratios.into());
    result.insert("idle_rss_bytes_per_connection".into(), idle.into());
    println!("{}", serde_json::Value::from(result));
}

/// `walcast serve` with everybody on one topic, against the bare loops; its ratios and memory.
fn whole_service(runtime: &Runtime) -> serde_json::Value {
    let database = runtime.block_on(cluster::Database::create());
    let client = runtime.block_on(database.client());
    let mut service = service::Service::start(&database.name);
    let sql = |text: &str| runtime.block_on(client.batch_execute(text)).unwrap();
    sql(TABLE);
    let insert = "insert into t values ($1, repeat('x', 192))";
    let insert = runtime.block_on(client.prepare(insert)).unwrap();
    service.process.pin_to(0);
    ME.pin_to(0);

    let mut id = 1_000_000; // The length of a frame does not change with it.
    let mut probe = service.subscribe();
    sql(&format!("insert into t values ({id}, repeat('x', 192))"));
    let frame = text_frame(&vec![b'x'; probe.frame().len()]);
    drop(probe);

    let mut load = Load::start(service.address, SUBSCRIBERS, "service");
    load.publisher = service.process;
    load.wait_until_open();
    let mut bare = Bare::open(SUBSCRIBERS, frame.len());
    let mut runs: [Vec<Figure>; 6] = Default::default();
    for _ in 0..ROUNDS {
        runs[0].push(bare.load.measure(SUBSCRIBERS, BATCH, WINDOW, &mut |messages| {
            write_batch(&bare.streams, &frame, messages);
        }));
        service.pause();
        // Committed for certain: what is not flushed to the log is not sent.
        sql(&format!(
            "insert into t select {id} + n, repeat('x', 192) from generate_series(1, {BACKLOG_ROWS}) n"
        ));
        id += i32::try_from(BACKLOG_ROWS).unwrap();
        let deliveries = u64::from(BACKLOG_ROWS) * u64::try_from(SUBSCRIBERS).unwrap();
        runs[1].push(load.time(deliveries, || service.resume()));
        for (place, window) in [(2, 1), (4, SINGLE_WINDOW)] {
            runs[place].push(bare.load.measure(SUBSCRIBERS, 1, window, &mut |messages| {
                write_one(&bare.streams, &frame, messages);
            }));
            runs[place + 1].push(load.measure(SUBSCRIBERS, 1, window, &mut |_one| {
                id += 1;
                runtime.block_on(client.execute(&insert, &[&id])).unwrap();
            }));
        }
    }
    let names = [
        "bare writev of 64",
        "service, saturated",
        "bare write, waiting",
        "service, waiting",
        "bare write",
        "service, row by row",
    ];
    let figures = runs.into_iter().map(median);
    let limits = [0, 0, 2, 2, 4, 4];
    let results: Vec<_> = names.into_iter().zip(figures).zip(limits).collect();
    let results: Vec<_> = results.into_iter().map(|((n, f), l)| (n, f, l)).collect();
    println!("the whole service, frames of {} bytes\n", frame.len());
    heading();
    print(SUBSCRIBERS, &results);
    drop((load, bare, service));

    // A fresh one: no memory that was used and is free.
    let service = service::Service::start(&database.name);
    let mut first = Load::start(service.address, 100, "service");
    first.wait_until_open();
    let before = settled(service.process);
    let mut load = Load::start(service.address, JOINED_CONNECTIONS, "service");
    load.wait_until_open();
    let after = settled(service.process);
    let idle = after.saturating_sub(before) / u64::try_from(JOINED_CONNECTIONS).unwrap();
    println!("\n{idle} bytes of resident memory a joined connection, of {JOINED_CONNECTIONS}");
    let ratio = |ours: usize| {
        let limit = ours - 1;
        let (ours, limit) = (results[ours].1, results[limit].1);
        let (rate, cpu) = (ours.rate / limit.rate, limit.cpu_seconds / ours.cpu_seconds);
        serde_json::json!({ "rate": service::rounded(rate), "cpu": service::rounded(cpu) })
    };
    serde_json::json!({
        "saturation_vs_writev64": ratio(1),
        "single_waiting_vs_write": ratio(3),
        "single_vs_write": ratio(5),
        "idle_rss_bytes_per_joined_connection": idle,
    })
}

/// Rows that are mapped to events, against Socket.IO's own server; the ratios of deliveries a second
/// of CPU time, none without that server.
fn mapped(runtime: &Runtime) -> serde_json::Value {
    const NOTE_BYTES: usize = 192;
    let database = runtime.block_on(cluster::Database::create());
    let client = runtime.block_on(database.client());
    let mut service = service::Service::start(&database.name);
    let sql = |text: &str| runtime.block_on(client.batch_execute(text)).unwrap();
    sql("create table stories (id int primary key, map int not null, note text);
         alter table stories replica identity full;
         grant all on stories to service_role;
         alter publication supabase_realtime add table stories;
         select walcast.map_table('stories', entity => 'story', topic => 'map:{map}', columns => '{id,note}')");
    let insert = format!("insert into stories values ($1, $2, repeat('x', {NOTE_BYTES}))");
    let insert = runtime.block_on(client.prepare(&insert)).unwrap();
    service.process.pin_to(0);
    ME.pin_to(0);

    // Room 1 is that of supabase-js, room 2 that of Socket.IO.
    let mut id = 1_000_000;
    let mut walcast = [(1, "mapped"), (2, "socketio")].map(|(map, kind)| {
        let mut load = Load::start(service.address, SUBSCRIBERS, kind);
        load.publisher = service.process;
        load.wait_until_open();
        (map, load)
    });
    let mut node = Node::start(SOCKETIO_TOPIC, "story.created", NOTE_BYTES).map(|node| {
        node.process.pin_to(0);
        let mut load = Load::start(node.address, SUBSCRIBERS, "socketio");
        load.publisher = node.process;
        load.wait_until_open();
        (node, load)
    });
    let mut runs: [Vec<Figure>; 9] = Default::default();
    for _ in 0..ROUNDS {
        if let Some((node, load)) = &mut node {
            for (place, batch, window) in [(0, BATCH, WINDOW), (3, 1, 1), (6, 1, SINGLE_WINDOW)] {
                runs[place].push(load.measure(SUBSCRIBERS, batch, window, &mut |messages| {
                    node.publish(messages);
                }));
            }
        }
        for (place, (map, load)) in walcast.iter_mut().enumerate() {
            service.pause();
            // Committed for certain: what is not flushed to the log is not sent.
            sql(&format!(
                "insert into stories
                 select {id} + n, {map}, repeat('x', {NOTE_BYTES}) from generate_series(1, {BACKLOG_ROWS}) n"
            ));
            id += i32::try_from(BACKLOG_ROWS).unwrap();
            let deliveries = u64::from(BACKLOG_ROWS) * u64::try_from(SUBSCRIBERS).unwrap();
            runs[place + 1].push(load.time(deliveries, || service.resume()));
            for (of_way, window) in [(3, 1), (6, SINGLE_WINDOW)] {
                runs[of_way + place + 1].push(load.measure(SUBSCRIBERS, 1, window, &mut |_one| {
                    id += 1;
                    runtime.block_on(client.execute(&insert, &[&id, map])).unwrap();
                }));
            }
        }
    }
    println!("rows mapped to events, and a server of Socket.IO's own\n");
    println!("{:>6}  {:<32} {:>13} {:>16}", "N", "way", "deliveries/s", "deliveries/CPU s");
    let mut ratios = serde_json::Map::new();
    for (way, runs) in ["saturated", "waiting", "one by one"].into_iter().zip(runs.chunks_mut(3)) {
        let mut limit = None;
        for (server, runs) in ["node", "supabase-js", "socket.io"].into_iter().zip(runs) {
            if runs.is_empty() {
                continue;
            }
            let Figure { rate, cpu_seconds } = median(std::mem::take(runs));
            let name = if server == "node" { "socket.io of node" } else { server };
            let way_name = format!("{name}, {way}");
            println!("{SUBSCRIBERS:>6}  {way_name:<32} {rate:>13.0} {:>16.0}", 1.0 / cpu_seconds);
            if let Some(limit) = limit {
                let key = format!("{}_{}", server.replace(['-', '.'], ""), way.replace(' ', "_"));
                ratios.insert(key, service::rounded(limit / cpu_seconds));
            } else if server == "node" {
                limit = Some(cpu_seconds);
            }
        }
    }
    ratios.into()
}

/// Resident memory once it does not fall any more.
fn settled(process: Process) -> u64 {
    let mut least = process.memory("VmRSS");
    loop {
        thread::sleep(Duration::from_millis(500));
        let now = process.memory("VmRSS");
        if now >= least {
            return now;
        }
        least = now;
    }
}

/// The four ways for one number of subscribers: name, figure, and which of them is its limit.
fn compare(runtime: &Runtime, count: usize) -> Vec<(&'static str, Figure, usize)> {
    let frame = text_frame(&[b'x'; MESSAGE_BYTES]);
    assert_eq!(frame.len(), FRAME_BYTES);
    let mut bare = Bare::open(count, FRAME_BYTES);
    let server = Server::start(runtime);
    let mut load = Load::start(server.address, count, "websocket");
    load.unit = u64::try_from(FRAME_BYTES).unwrap();
    load.wait_until_open();
    let outboxes = server.outboxes(count);

    let mut ours = publisher(&outboxes);
    let mut runs: [Vec<Figure>; 4] = Default::default();
    for _ in 0..ROUNDS {
        runs[0].push(bare.load.measure(count, BATCH, WINDOW, &mut |messages| {
            write_batch(&bare.streams, &frame, messages);
        }));
        runs[1].push(load.measure(count, BATCH, WINDOW, &mut ours));
        runs[2].push(bare.load.measure(count, 1, SINGLE_WINDOW, &mut |messages| {
            write_one(&bare.streams, &frame, messages);
        }));
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

fn idle_bytes_per_connection(runtime: &Runtime) -> u64 {
    let server = Server::start(runtime);
    // What the first connections cost once: code pages, arenas, this and that.
    let mut first = Load::start(server.address, 100, "websocket");
    first.wait_until_open();
    let held = server.outboxes(100);
    let before = ME.memory("VmRSS");
    let mut load = Load::start(server.address, IDLE_CONNECTIONS, "websocket");
    load.wait_until_open();
    while server.connections.http() > 0 || server.connections.sockets() < IDLE_CONNECTIONS + 100 {
        thread::sleep(Duration::from_millis(10));
    }
    let after = ME.memory("VmRSS");
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
            gate: Gate::default(),
            operations: Operations::default(),
            events: None,
            socketio: None,
            broadcasts: None,
            rows: None,
            proxy: None,
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
