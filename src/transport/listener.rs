//! The listening socket, and every connection that came through it.
//!
//! In:     TCP connections; a router that answers their requests; a word to stop.
//! Out:    upgraded sockets running [`websocket::run`]; sockets that are [taken over](Takeover) to be
//!         answered without end; connections that are silent, too many or left at the end, closed
//!         with a reason.
//! Never:  parses HTTP (hyper does); decides who may connect (`http` asks).

use std::convert::Infallible;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, Request, header};
use hashbrown::HashMap;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;
use tracing::{debug, info, warn};

use super::websocket::{self, Limits, Peer, Room};
use crate::config;
use crate::hub::outbox::{CloseReason, Outbox};
use crate::telemetry;

/// How long hyper may take to hand over an upgraded socket.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest time a closing socket may take to take our last words.
const CLOSE_GRACE_MAX: Duration = Duration::from_secs(2);

/// Longest and shortest time between two looks at who is idle.
const SWEEP_INTERVAL: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(5));

/// Pause after an accept that failed for want of something, such as file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// hyper refuses smaller buffers.
const HYPER_BUFFER_MIN: usize = 8192;

/// What a connection beyond the limit is told; the text of one packet.
const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
    content-length: 32\r\nretry-after: 1\r\nconnection: close\r\n\r\n\
    {\"error\":\"Too many connections\"}";

/// Every connection of this process: counted, bounded, swept, and told to go.
#[derive(Debug)]
pub struct Connections {
    sockets_max: usize,
    http_max: usize,
    outbox_bytes_max: usize,
    header_bytes_max: usize,
    header_timeout: Duration,
    idle_timeout: Duration,
    drain_timeout: Duration,
    limits: Limits,
    /// Sockets, and upgrades that are under way.
    sockets: AtomicUsize,
    /// TCP connections that still speak HTTP.
    http: AtomicUsize,
    live: Mutex<Live>,
    clients: Mutex<Clients>,
    /// Sockets of one client; 0: as many as it likes.
    client_sockets_max: usize,
    tasks: TaskTracker,
    /// Set when the process stops.
    stopping: CancellationToken,
}

/// The open sockets, for what must reach all of them.
#[derive(Debug, Default)]
struct Live {
    next: u64,
    outboxes: HashMap<u64, Arc<Outbox>>,
}

/// A place among the sockets; given back when dropped.
#[derive(Debug)]
pub struct Place {
    connections: Arc<Connections>,
    /// Whose it is, where those of one client are counted.
    client: Option<IpAddr>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.sockets.fetch_sub(1, Ordering::Relaxed);
        if let Some(client) = self.client {
            self.connections.clients().leave(client);
        }
    }
}

/// How many sockets each client has.
#[derive(Debug, Default)]
struct Clients(HashMap<IpAddr, usize>);

impl Clients {
    /// Counts one more, unless there are `max`.
    fn enter(&mut self, client: IpAddr, max: usize) -> bool {
        let count = self.0.entry(client).or_default();
        let free = *count < max;
        *count += usize::from(free);
        free
    }

    fn leave(&mut self, client: IpAddr) {
        if let Some(count) = self.0.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&client);
            }
        }
        if self.0.capacity() > 64 && self.0.len() < self.0.capacity() / 8 {
            self.0.shrink_to_fit();
        }
    }
}

/// Who an address is: behind IPv6, one client has the whole of a /64.
fn client_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        address @ IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)))
        }
    }
}

/// An open socket's entry in [`Live`].
struct Entry {
    id: u64,
    place: Place,
}

impl Entry {
    /// Another outbox has this connection's socket.
    fn is_now(&self, outbox: &Arc<Outbox>) {
        self.place.connections.live().outboxes.insert(self.id, Arc::clone(outbox));
        if self.place.connections.stopping.is_cancelled() {
            outbox.close(CloseReason::Shutdown);
        }
    }

    /// Takes note of the end.
    fn ended(self, reason: CloseReason) {
        debug!(connection = self.id, reason = reason.label(), ?reason, "socket closed");
        let closed = telemetry::CONNECTIONS_CLOSED;
        metrics::counter!(closed, telemetry::REASON => reason.label()).increment(1);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let connections = &self.place.connections;
        let mut live = connections.live();
        live.outboxes.remove(&self.id);
        // After a storm the table would stay as large as it was.
        if live.outboxes.capacity() > 64 && live.outboxes.len() < live.outboxes.capacity() / 8 {
            live.outboxes.shrink_to_fit();
        }
    }
}

impl Connections {
    /// None yet, and no limit for one client.
    pub fn new(settings: &config::Server) -> Arc<Self> {
        Self::with_client_limit(settings, 0)
    }

    /// None yet, and at most so many of one client; 0: as many as it likes.
    pub fn with_client_limit(settings: &config::Server, client_sockets_max: usize) -> Arc<Self> {
        let drain_timeout = Duration::from_millis(settings.drain_timeout_ms);
        Arc::new(Self {
            sockets_max: settings.connections_max,
            http_max: settings.http_connections_max,
            outbox_bytes_max: settings.outbox_bytes_max,
            header_bytes_max: settings.header_bytes_max,
            header_timeout: Duration::from_millis(settings.header_timeout_ms),
            idle_timeout: Duration::from_millis(settings.idle_timeout_ms),
            drain_timeout,
            limits: Limits {
                message_bytes_max: settings.frame_bytes_max,
                close_grace: CLOSE_GRACE_MAX.min(drain_timeout),
                unfinished: Arc::new(Room::new(settings.unfinished_bytes_max)),
            },
            sockets: AtomicUsize::new(0),
            http: AtomicUsize::new(0),
            live: Mutex::default(),
            clients: Mutex::default(),
            client_sockets_max,
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        })
    }

    /// Open sockets, and upgrades that are under way.
    pub fn sockets(&self) -> usize {
        self.sockets.load(Ordering::Relaxed)
    }

    /// TCP connections that speak HTTP.
    pub fn http(&self) -> usize {
        self.http.load(Ordering::Relaxed)
    }

    /// Bytes held for messages that have not come to their end, over all sockets.
    pub fn unfinished_bytes(&self) -> usize {
        self.limits.unfinished.used()
    }

    /// Where messages that are not at their end have room.
    pub fn unfinished(&self) -> Arc<Room> {
        Arc::clone(&self.limits.unfinished)
    }

    /// A place for one more socket, unless there are too many, or the process stops.
    pub fn reserve(self: &Arc<Self>) -> Option<Place> {
        if self.stopping.is_cancelled() {
            return None;
        }
        take_one(&self.sockets, self.sockets_max)
            .then(|| Place { connections: Arc::clone(self), client: None })
    }

    /// Closes every open socket.
    pub fn close_all(&self, reason: CloseReason) {
        for outbox in self.all() {
            outbox.close(reason);
        }
    }

    /// Closes every socket whose peer has taken nothing for so long of what is there for it; how
    /// many.
    pub fn close_stalled(&self, least: Duration) -> usize {
        let stalls = |outbox: &Arc<Outbox>| outbox.stalled().is_some_and(|since| since >= least);
        let stalled: Vec<_> = self.all().into_iter().filter(stalls).collect();
        for outbox in &stalled {
            outbox.close(CloseReason::TooSlow);
        }
        stalled.len()
    }

    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of the list, so that nothing else happens under its lock.
    fn all(&self) -> Vec<Arc<Outbox>> {
        self.live().outboxes.values().map(Arc::clone).collect()
    }

    fn sweep(&self) {
        for outbox in self.all() {
            if outbox.idle() >= self.idle_timeout {
                outbox.close(CloseReason::Idle);
            } else if outbox.stalled().is_some_and(|stalled| stalled >= self.idle_timeout) {
                // It speaks, so the kernel may take it for alive; but it cannot be told anything.
                outbox.close(CloseReason::Gone);
            } else {
                outbox.rest();
            }
        }
    }
}

/// Counts one more, unless there are `max`.
fn take_one(count: &AtomicUsize, max: usize) -> bool {
    count
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
            (count < max).then_some(count + 1)
        })
        .is_ok()
}

impl Place {
    /// The same place as one of those that this address may have, unless it has them all.
    #[must_use]
    pub fn of(mut self, address: Option<IpAddr>) -> Option<Self> {
        let max = self.connections.client_sockets_max;
        let Some(address) = address.filter(|_| max > 0) else { return Some(self) };
        let client = client_of(address);
        if !self.connections.clients().enter(client, max) {
            return None;
        }
        self.client = Some(client);
        Some(self)
    }

    /// Takes the socket over once hyper has answered 101, and runs it in a task of its own.
    ///
    /// `start` makes the protocol above from the connection's outbox.
    pub fn upgrade<P: Peer + 'static>(
        self,
        upgrade: OnUpgrade,
        start: impl FnOnce(Arc<Outbox>) -> P + Send + 'static,
    ) {
        let tasks = self.connections.tasks.clone();
        // Two tasks, one after the other: the first one's memory is free when the socket runs.
        tasks.spawn(async move {
            let Ok(Ok(upgraded)) = timeout(UPGRADE_TIMEOUT, upgrade).await else {
                debug!("the peer went away during its upgrade");
                return;
            };
            let parts = upgraded
                .downcast::<TokioIo<TcpStream>>()
                .expect("every connection is made of a TCP stream in `HttpConnection::run`");
            self.run(parts.io.into_inner(), parts.read_buf, start);
        });
    }

    fn run<P: Peer + 'static>(
        self,
        stream: TcpStream,
        read: bytes::Bytes,
        start: impl FnOnce(Arc<Outbox>) -> P,
    ) {
        let connections = Arc::clone(&self.connections);
        let outbox = Arc::new(Outbox::new(stream, connections.outbox_bytes_max));
        let peer = start(Arc::clone(&outbox));
        let entry = self.enter(&outbox);
        let limits = connections.limits.clone();
        connections.tasks.spawn(async move {
            let moved = |outbox: &Arc<Outbox>| entry.is_now(outbox);
            let reason = websocket::run(outbox, read, limits, peer, moved).await;
            entry.ended(reason);
        });
    }

    /// Runs a connection without a socket, whose peer fetches what it is told, in a task of its own.
    pub fn host<R>(self, run: impl FnOnce(Arc<Outbox>) -> R)
    where
        R: Future<Output = Option<CloseReason>> + Send + 'static,
    {
        let connections = Arc::clone(&self.connections);
        let outbox = Arc::new(Outbox::to_be_fetched(connections.outbox_bytes_max));
        let entry = self.enter(&outbox);
        let running = run(outbox);
        connections.tasks.spawn(async move {
            // None: it goes on with a socket, which is a connection of its own.
            if let Some(reason) = running.await {
                entry.ended(reason);
            }
        });
    }

    /// Runs a socket that was taken over, and whose peer only listens, in a task of its own. `run`
    /// gets the connection's outbox, and how long it may take to say goodbye.
    pub fn attend<R>(self, stream: TcpStream, run: impl FnOnce(Arc<Outbox>, Duration) -> R)
    where
        R: Future<Output = CloseReason> + Send + 'static,
    {
        let connections = Arc::clone(&self.connections);
        let outbox = Arc::new(Outbox::of_listener(stream, connections.outbox_bytes_max));
        let entry = self.enter(&outbox);
        let running = run(outbox, connections.limits.close_grace);
        connections.tasks.spawn(async move { entry.ended(running.await) });
    }

    /// Its socket is open from now on, and hears what all are told.
    fn enter(self, outbox: &Arc<Outbox>) -> Entry {
        let connections = Arc::clone(&self.connections);
        let id = {
            let mut live = connections.live();
            live.next += 1;
            let id = live.next;
            live.outboxes.insert(id, Arc::clone(outbox));
            id
        };
        let entry = Entry { id, place: self };
        if connections.stopping.is_cancelled() {
            outbox.close(CloseReason::Shutdown);
        }
        debug!(connection = id, "socket open");
        entry
    }
}

/// In the extensions of a response: the socket is wanted when the rest of the response is known.
/// What the response says is not written; whoever takes the socket over writes an answer of his
/// own, with these headers and others. Nothing else is asked on this connection then.
#[derive(Clone)]
pub struct Takeover(Arc<Mutex<Option<Start>>>);

type Start = Box<dyn FnOnce(HeaderMap, TcpStream) + Send>;

impl fmt::Debug for Takeover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Takeover")
    }
}

impl Takeover {
    /// By `start`, with the headers of the response.
    pub fn new(start: impl FnOnce(HeaderMap, TcpStream) + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::new(start)))))
    }

    fn take(&self) -> Option<Start> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Where a connection learns that its socket is wanted.
#[derive(Debug, Default)]
struct Handover {
    wanted: Mutex<Option<(HeaderMap, Takeover)>>,
    told: Notify,
}

impl Handover {
    fn wanted(&self) -> MutexGuard<'_, Option<(HeaderMap, Takeover)>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn want(&self, headers: HeaderMap, takeover: Takeover) {
        *self.wanted() = Some((headers, takeover));
        self.told.notify_one();
    }
}

/// Accepts connections until `shutdown`, then says goodbye to all of them within the drain time.
///
/// # Errors
/// When the listening socket itself is broken.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    connections: Arc<Connections>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let (shortest, longest) = SWEEP_INTERVAL;
    let between = (connections.idle_timeout / 16).clamp(shortest, longest);
    let mut sweep = interval(between);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sweeps = Sweeps { between, last: Instant::now(), left_out: false };
    let outcome = loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break Ok(()),
            _ = sweep.tick() => {
                if sweeps.is_due(Instant::now()) {
                    connections.sweep();
                }
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => accept(&connections, &router, stream, address),
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) if error.kind() == ErrorKind::InvalidInput => break Err(error),
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    };
    drop(listener);
    drain(&connections).await;
    outcome
}

/// Which sweeps are made.
struct Sweeps {
    between: Duration,
    last: Instant,
    /// The last one was left out.
    left_out: bool,
}

impl Sweeps {
    /// Whether this one is. It is late by far when the whole process stood still: then what clients
    /// said meanwhile is read first, or all of them would pass for silent.
    fn is_due(&mut self, now: Instant) -> bool {
        let is_late = now.saturating_duration_since(self.last) > self.between * 4;
        // One is left out, not all those of a machine that is always late.
        self.left_out = is_late && !self.left_out;
        self.last = now;
        !self.left_out
    }
}

/// The peer was gone before we came to it; the listening socket is well.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted
    )
}

/// Nothing new, goodbye to everybody, and a bounded wait for them to go.
async fn drain(connections: &Connections) {
    connections.stopping.cancel();
    connections.close_all(CloseReason::Shutdown);
    connections.tasks.close();
    if timeout(connections.drain_timeout, connections.tasks.wait()).await.is_err() {
        let (sockets, http) = (connections.sockets(), connections.http());
        info!(sockets, http, "connections left at the end of the drain time");
    }
}

fn accept(connections: &Arc<Connections>, router: &Router, stream: TcpStream, address: SocketAddr) {
    if !take_one(&connections.http, connections.http_max) {
        // The kernel's buffer takes it or nobody does: a flood must not make us wait.
        let _ = SockRef::from(&stream).send(REFUSAL);
        return;
    }
    let http = HttpConnection { connections: Arc::clone(connections) };
    // A small frame leaves at once; coalescing is ours, not Nagle's.
    let _ = stream.set_nodelay(true);
    // A peer that takes none of what we send for so long is given up by the kernel.
    let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(connections.idle_timeout));
    let router = router.clone();
    connections.tasks.spawn(async move { http.run(stream, router, address).await });
}

/// A connection that speaks HTTP, as long as it does.
struct HttpConnection {
    connections: Arc<Connections>,
}

impl Drop for HttpConnection {
    fn drop(&mut self) {
        self.connections.http.fetch_sub(1, Ordering::Relaxed);
    }
}

impl HttpConnection {
    async fn run(&self, stream: TcpStream, router: Router, address: SocketAddr) {
        let handover = Arc::new(Handover::default());
        let wanted = Arc::clone(&handover);
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(address));
            let answering = router.clone().oneshot(request.map(Body::new));
            let wanted = Arc::clone(&wanted);
            async move {
                let Ok(mut response) = answering.await;
                let Some(takeover) = response.extensions_mut().remove::<Takeover>() else {
                    return Ok::<_, Infallible>(response);
                };
                let mut headers = std::mem::take(response.headers_mut());
                // Of the response that is not written.
                for its_own in [header::CONTENT_LENGTH, header::TRANSFER_ENCODING] {
                    headers.remove(its_own);
                }
                wanted.want(headers, takeover);
                // hyper answers nothing: it is about to lose the connection.
                std::future::pending().await
            }
        });
        let connections = &self.connections;
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(connections.header_timeout)
            .max_header_size(connections.header_bytes_max)
            .max_buf_size(connections.header_bytes_max.max(HYPER_BUFFER_MIN))
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let serving = async {
            tokio::select! {
                outcome = &mut connection => return Some(outcome),
                () = connections.stopping.cancelled() => {}
            }
            Pin::new(&mut connection).graceful_shutdown();
            timeout(connections.drain_timeout, &mut connection).await.ok()
        };
        let outcome = tokio::select! {
            outcome = serving => outcome,
            () = handover.told.notified() => {
                hand_over(&handover, connection.into_parts().map(|parts| parts.io.into_inner()));
                return;
            }
        };
        if let Some(Err(error)) = outcome {
            debug!(%error, "http connection ended");
        }
    }
}

/// Gives the socket to who wants it. What was read past its request is not for him: he only speaks.
fn hand_over(handover: &Handover, stream: Option<TcpStream>) {
    let wanted = handover.wanted().take();
    if let (Some((headers, takeover)), Some(stream)) = (wanted, stream)
        && let Some(start) = takeover.take()
    {
        start(headers, stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f06_the_first_sweep_after_a_pause_is_left_out_and_no_other() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut sweeps = Sweeps { between: Duration::from_secs(1), last: start, left_out: false };
        let due = [1, 2, 6, 100, 101, 102].map(|second| (second, sweeps.is_due(at(second))));
        let expected = [(1, true), (2, true), (6, true), (100, false), (101, true), (102, true)];
        assert_eq!(due, expected);
        // A machine that is always late by far is swept all the same.
        let due = (1..=10).filter(|n| sweeps.is_due(at(100 + 20 * n))).count();
        assert_eq!(due, 5);
    }
}
