//! Engine.IO 4: how packets travel. Sessions that poll, and their way to a WebSocket.
//!
//! In:     requests of `/socket.io/` that `http` let in; text messages of a WebSocket.
//! Out:    packets to a [`Connection`]; answers to polls; a handshake.
//! Never:  two polls of one session at once; a session that outlives its silence; binary packets.
//! Source: the published protocol of Engine.IO, revision 4.
//!
//! A session that polls has an outbox without a socket: what it is told stays there until it is
//! fetched. When its client has proved that a WebSocket works (`2probe`, `3probe`, `5`), the
//! session's outbox takes over that socket, and nothing above notices.

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hashbrown::HashMap;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::connection::Connection;
use super::packet::{self, Engine, PacketError};
use crate::hub::outbox::{CloseReason, Outbox, TURN};
use crate::transport::websocket::{Peer, text_frame};

/// Between two signs of life that a client is asked for.
pub(super) const PING_INTERVAL: Duration = Duration::from_secs(25);
/// How long it may take to give one.
pub(super) const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest wait of a poll: longer than any ping lets one wait.
const POLL_MAX: Duration = Duration::from_secs(30);
/// Bytes of one poll's answer, unless one packet alone has more.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// How long the last words of a session that polls wait to be fetched.
const FAREWELL: Duration = Duration::from_secs(2);

const TEXT: u8 = 0x81;

/// What a client is told that nobody ever could be.
const BROKEN: CloseReason = CloseReason::Protocol("not a packet of Engine.IO 4");

/// Sessions that poll, by their ids.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<HashMap<Box<str>, Arc<Polled>>>);

impl Sessions {
    fn all(&self) -> MutexGuard<'_, HashMap<Box<str>, Arc<Polled>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, id: &str) -> Option<Arc<Polled>> {
        self.all().get(id).map(Arc::clone)
    }
}

/// A session that polls.
#[derive(Debug)]
pub(super) struct Polled {
    outbox: Arc<Outbox>,
    /// None when it has moved to a WebSocket, or ended. Whoever looks at the outbox's signals holds
    /// this: they are for one task at a time.
    peer: Mutex<Option<Connection>>,
    /// Something is there to be fetched.
    told: Notify,
    /// A poll is under way.
    polls: AtomicBool,
    /// The next poll is to be answered, whatever there is.
    hurries: AtomicBool,
    /// The client knows the end.
    parted: Notify,
}

/// What a request is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// 200, with this text.
    Packets(Vec<u8>),
    /// 200, `ok`.
    Taken,
    /// 400, with a code and a sentence of the protocol.
    Refused(u8, &'static str),
    /// 413.
    TooLarge,
}

impl Answer {
    /// There is no such session (any more).
    pub const UNKNOWN: Self = Self::Refused(1, "Session ID unknown");
    /// A transport, or a use of one, that is none.
    pub const TRANSPORT: Self = Self::Refused(0, "Transport unknown");
    /// The request is none.
    pub const BAD: Self = Self::Refused(3, "Bad request");
    /// Another revision of the protocol.
    pub const VERSION: Self = Self::Refused(5, "Unsupported protocol version");
}

impl Polled {
    fn peer(&self) -> MutexGuard<'_, Option<Connection>> {
        self.peer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is there for the client, as soon as there is something.
    pub(super) async fn poll(&self) -> Answer {
        if self.polls.swap(true, Ordering::AcqRel) {
            self.outbox.close(CloseReason::Protocol("two polls at once"));
            return Answer::BAD;
        }
        let _over = Over(&self.polls);
        let until = tokio::time::Instant::now() + POLL_MAX;
        loop {
            let told = self.told.notified();
            let packets = unwrapped(&self.outbox.fetch(ANSWER_BYTES_MAX));
            if !packets.is_empty() {
                return Answer::Packets(packets);
            }
            if self.outbox.closing().is_some() {
                self.parted.notify_one();
                return Answer::Packets(b"1".to_vec());
            }
            let late = tokio::time::timeout_at(until, told).await.is_err();
            if self.hurries.swap(false, Ordering::AcqRel) || late {
                return Answer::Packets(b"6".to_vec());
            }
        }
    }

    /// Takes what a client posted.
    pub(super) async fn post(&self, body: &str) -> Answer {
        self.outbox.seen();
        let Ok(packets) = packet::packets(body) else {
            self.outbox.close(BROKEN);
            return Answer::BAD;
        };
        for text in packets {
            let flow = match self.peer().as_mut() {
                Some(connection) => take(connection, &self.outbox, text),
                None => return Answer::UNKNOWN,
            };
            if let ControlFlow::Break(reason) = flow {
                let reason = self.outbox.close(reason);
                let is_fault = matches!(reason, CloseReason::Protocol(_));
                return if is_fault { Answer::BAD } else { Answer::Taken };
            }
        }
        self.settle().await;
        Answer::Taken
    }

    /// Lets go out what was gathered for others.
    async fn settle(&self) {
        while !self.peer().as_mut().is_none_or(|peer| peer.settle(Instant::now() + TURN)) {
            tokio::task::yield_now().await;
        }
    }

    /// Runs a session until it ends, and says why; none when it goes on with a WebSocket.
    async fn run(&self) -> Option<CloseReason> {
        loop {
            let signals = poll_fn(|context| {
                let peer = self.peer();
                if peer.is_none() {
                    return Poll::Ready(None);
                }
                let signals = self.outbox.poll_signals(context.waker());
                let any = signals.closing() || signals.woken() || signals.blocked();
                if any { Poll::Ready(Some(signals)) } else { Poll::Pending }
            });
            let signals = signals.await?;
            if signals.woken()
                && let Some(ControlFlow::Break(reason)) = self.peer().as_mut().map(Peer::woken)
            {
                self.outbox.close(reason);
            }
            self.settle().await;
            self.told.notify_one();
            if let Some(reason) = self.outbox.closing() {
                // With its subscriptions: nothing comes after this.
                self.peer().take()?;
                self.told.notify_one();
                let _ = timeout(FAREWELL, self.parted.notified()).await;
                self.outbox.shut_down();
                return Some(reason);
            }
        }
    }
}

/// Ends a poll.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Runs a new session that polls; to be given its outbox.
pub(super) fn host(
    sessions: Arc<Sessions>,
    id: Box<str>,
    connection: Connection,
    outbox: Arc<Outbox>,
) -> impl Future<Output = Option<CloseReason>> + Send + 'static {
    let polled = Arc::new(Polled {
        outbox,
        peer: Mutex::new(Some(connection)),
        told: Notify::new(),
        polls: AtomicBool::new(false),
        hurries: AtomicBool::new(false),
        parted: Notify::new(),
    });
    sessions.all().insert(id.clone(), Arc::clone(&polled));
    let listed = Listed { sessions, id };
    async move {
        let _listed = listed;
        polled.run().await
    }
}

/// A session's place in the list.
struct Listed {
    sessions: Arc<Sessions>,
    id: Box<str>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.sessions.all().remove(&self.id);
    }
}

/// What runs on a WebSocket.
pub struct Socket(Kind);

enum Kind {
    /// The connection itself.
    Live(Box<Connection>),
    /// A client tries whether a WebSocket works for it.
    Trial {
        own: Arc<Outbox>,
        polled: Arc<Polled>,
    },
    /// It works: this outbox has the socket now.
    Moved(Box<Connection>, Arc<Outbox>),
    Over,
}

impl Socket {
    /// A connection that began with a WebSocket.
    pub(super) fn live(connection: Connection) -> Self {
        Self(Kind::Live(Box::new(connection)))
    }

    /// One that a session which polls tries.
    pub(super) fn trial(own: Arc<Outbox>, polled: Arc<Polled>) -> Self {
        Self(Kind::Trial { own, polled })
    }

    fn connection(&mut self) -> Option<&mut Connection> {
        match &mut self.0 {
            Kind::Live(connection) | Kind::Moved(connection, _) => Some(connection),
            Kind::Trial { .. } | Kind::Over => None,
        }
    }
}

impl Peer for Socket {
    fn text(&mut self, text: &str) -> ControlFlow<CloseReason> {
        let (own, polled) = match &mut self.0 {
            Kind::Live(connection) | Kind::Moved(connection, _) => {
                let outbox = Arc::clone(connection.outbox());
                return take(connection, &outbox, text);
            }
            Kind::Trial { own, polled } => (own, polled),
            Kind::Over => return ControlFlow::Break(CloseReason::Gone),
        };
        match packet::engine(text) {
            Ok(Engine::Ping(said)) => {
                let sent = own.send(text_frame(format!("3{said}").as_bytes()));
                polled.hurries.store(true, Ordering::Release);
                polled.told.notify_one();
                sent.map_or_else(ControlFlow::Break, ControlFlow::Continue)
            }
            Ok(Engine::Upgrade) => {
                // From here on the signals of its outbox are for this task.
                let Some(mut connection) = polled.peer().take() else {
                    return ControlFlow::Break(CloseReason::Gone);
                };
                let outbox = Arc::clone(&polled.outbox);
                if !outbox.take_socket(own) {
                    return ControlFlow::Break(CloseReason::Internal);
                }
                polled.told.notify_one();
                let flow = connection.woken();
                self.0 = Kind::Moved(Box::new(connection), Arc::clone(&outbox));
                match outbox.closing() {
                    Some(reason) => ControlFlow::Break(reason),
                    None => flow,
                }
            }
            Ok(_) | Err(_) => ControlFlow::Break(BROKEN),
        }
    }

    fn binary(&mut self, _data: &[u8]) -> ControlFlow<CloseReason> {
        ControlFlow::Break(CloseReason::Protocol("binary packets are not spoken here"))
    }

    fn woken(&mut self) -> ControlFlow<CloseReason> {
        self.connection().map_or(ControlFlow::Continue(()), Peer::woken)
    }

    fn is_full(&self) -> bool {
        match &self.0 {
            Kind::Live(connection) => connection.is_full(),
            // Whatever follows is for the other outbox.
            Kind::Moved(..) => true,
            Kind::Trial { .. } | Kind::Over => false,
        }
    }

    fn settle(&mut self, until: Instant) -> bool {
        self.connection().is_none_or(|connection| connection.settle(until))
    }

    fn moved(&mut self) -> Option<Arc<Outbox>> {
        match std::mem::replace(&mut self.0, Kind::Over) {
            Kind::Moved(connection, outbox) => {
                self.0 = Kind::Live(connection);
                Some(outbox)
            }
            kind @ (Kind::Live(_) | Kind::Trial { .. } | Kind::Over) => {
                self.0 = kind;
                None
            }
        }
    }
}

/// One packet of Engine.IO.
fn take(connection: &mut Connection, outbox: &Outbox, text: &str) -> ControlFlow<CloseReason> {
    match packet::engine(text) {
        Ok(Engine::Message(text)) => connection.packet(text),
        Ok(Engine::Close) => ControlFlow::Break(CloseReason::Peer(None)),
        Ok(Engine::Pong | Engine::Noop) => ControlFlow::Continue(()),
        Ok(Engine::Ping(said)) => outbox
            .send(text_frame(format!("3{said}").as_bytes()))
            .map_or_else(ControlFlow::Break, ControlFlow::Continue),
        Ok(Engine::Upgrade) | Err(_) => ControlFlow::Break(BROKEN),
    }
}

/// The first packet of a session: its id and what it may expect.
pub(super) fn open_packet(id: &str, upgrades: bool, payload_bytes_max: usize) -> Vec<u8> {
    let upgrades: &[&str] = if upgrades { &["websocket"] } else { &[] };
    let handshake = serde_json::json!({
        "sid": id,
        "upgrades": upgrades,
        "pingInterval": u64::try_from(PING_INTERVAL.as_millis()).unwrap_or(u64::MAX),
        "pingTimeout": u64::try_from(PING_TIMEOUT.as_millis()).unwrap_or(u64::MAX),
        "maxPayload": payload_bytes_max,
    });
    format!("0{handshake}").into_bytes()
}

/// The texts of WebSocket frames, as one answer to a poll.
fn unwrapped(frames: &[Bytes]) -> Vec<u8> {
    let mut packets = Vec::with_capacity(frames.iter().map(Bytes::len).sum());
    for frame in frames.iter().filter(|frame| frame.first() == Some(&TEXT)) {
        let head = match frame.get(1) {
            Some(126) => 4,
            Some(127) => 10,
            Some(_) | None => 2,
        };
        if !packets.is_empty() {
            packets.push(packet::SEPARATOR);
        }
        packets.extend_from_slice(frame.get(head..).unwrap_or_default());
    }
    packets
}

/// Asks every client for a sign of life now and then, and ends those that gave none since the last
/// time.
///
/// Connections are in as many groups as there are beats between two questions, so that one task with
/// one timer does for all of them.
#[derive(Debug)]
pub(super) struct Heart(Mutex<Groups>);

#[derive(Debug)]
struct Groups {
    /// The group that is asked next.
    next: usize,
    groups: Vec<Vec<Asked>>,
}

#[derive(Debug)]
struct Asked {
    outbox: Weak<Outbox>,
    /// When it was; none: never.
    at: Option<Instant>,
}

/// Between two groups.
const BEAT: Duration = Duration::from_secs(1);

impl Default for Heart {
    fn default() -> Self {
        let count = usize::try_from(PING_INTERVAL.as_secs()).unwrap_or(1).max(1);
        let groups = std::iter::repeat_with(Vec::new).take(count).collect();
        Self(Mutex::new(Groups { next: 0, groups }))
    }
}

impl Heart {
    /// Asks this one too, for the first time a whole interval from now.
    pub(super) fn add(&self, outbox: &Arc<Outbox>) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = inner.groups.len();
        let last = (inner.next + count - 1) % count;
        inner.groups[last].push(Asked { outbox: Arc::downgrade(outbox), at: None });
    }

    /// Asks one group.
    fn beat(&self, now: Instant) {
        let asked: Vec<(Arc<Outbox>, Option<Instant>)> = {
            let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let next = inner.next;
            inner.next = (next + 1) % inner.groups.len();
            let group = &mut inner.groups[next];
            group.retain(|asked| asked.outbox.strong_count() > 0);
            let ask = |asked: &mut Asked| Some((asked.outbox.upgrade()?, asked.at.replace(now)));
            group.iter_mut().filter_map(ask).collect()
        };
        let ping = text_frame(b"2");
        for (outbox, before) in asked {
            let since = before.map(|before| now.saturating_duration_since(before));
            if since.is_some_and(|since| since >= PING_TIMEOUT && outbox.idle() > since) {
                outbox.close(CloseReason::Idle);
            } else {
                // One that takes no more is closed by whoever finds that out.
                let _ = outbox.send(ping.clone());
            }
        }
    }

    /// Until `stop`.
    pub(super) async fn run(&self, stop: CancellationToken) {
        let mut interval = tokio::time::interval(BEAT);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(interval.tick()).await.is_some() {
            self.beat(Instant::now());
        }
    }
}

impl From<PacketError> for CloseReason {
    fn from(_: PacketError) -> Self {
        Self::Protocol("not a packet of Socket.IO 5")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_is_asked_once_a_round_and_nobody_ended_before_he_could_answer() {
        let heart = Heart::default();
        let rounds = heart.0.lock().unwrap().groups.len();
        let outbox = outbox();
        heart.add(&outbox);
        let start = Instant::now();
        for round in 0..3 {
            for beat in 0..u32::try_from(rounds).unwrap() {
                assert!(outbox.fetch(100).is_empty(), "round {round}, beat {beat}");
                heart.beat(start + PING_INTERVAL * round + BEAT * beat);
            }
            // However late the beats are, it was silent for less than that.
            assert_eq!(outbox.closing(), None);
            assert_eq!(outbox.fetch(100), [text_frame(b"2")]);
        }
    }

    fn outbox() -> Arc<Outbox> {
        Arc::new(Outbox::to_be_fetched(10_000))
    }

    #[test]
    fn frames_are_unwrapped_for_one_answer() {
        let long = "x".repeat(70_000);
        let frames = [&b"2"[..], &b"42[\"a\"]"[..], "é".repeat(100).as_bytes(), long.as_bytes()]
            .map(text_frame);
        let packets = String::from_utf8(unwrapped(&frames)).unwrap();
        let expected = ["2", "42[\"a\"]", &"é".repeat(100), &long].join("\u{1e}");
        assert_eq!(packets, expected);
        assert_eq!(unwrapped(&[Bytes::from_static(b"\x88\x00")]), b"");
    }

    #[test]
    fn a_handshake_says_what_to_expect() {
        let text = String::from_utf8(open_packet("id", true, 5)).unwrap();
        let expected = r#"0{"sid":"id","upgrades":["websocket"],"pingInterval":25000,"pingTimeout":20000,"maxPayload":5}"#;
        assert_eq!(text, expected);
    }
}
