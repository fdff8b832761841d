//! One connection's bounded out list, together with the socket it is written to.
//!
//! In:     finished frames, shared between connections, whole or from their second part on; the
//!         reason to end.
//! Out:    the same bytes in order, up to 64 frames in one system call.
//! Never:  waits; builds a frame; holds more than its bound; hands out a frame after a close.
//!
//! The *dirty list*: a publisher offers its frames to every outbox that should have them, keeps
//! those that were clean, and flushes each of these once ([`DirtyList`]). The system call is what
//! delivery costs, so it is made once a connection and batch, by the publisher itself; the
//! connection's own task runs only to read, and to drain after the socket was full.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::kill;

/// Frames in one system call. More gains nothing measurable; fewer costs a call each.
const FRAMES_PER_WRITE: usize = 64;

/// How long one task writes to others' sockets before everybody else gets a turn. Shorter costs a
/// visit to the scheduler for fewer writes; longer is what a heartbeat may have to wait for.
pub const TURN: Duration = Duration::from_millis(1);

/// Places that an idle [`DirtyList`] keeps.
const IDLE_PLACES: usize = 64;

/// What a queued frame costs beyond its bytes: the handle in the queue. Counted, so that very
/// small frames cannot fill memory below the bound in bytes.
const FRAME_OVERHEAD: usize = size_of::<Queued>();

/// Bytes of a second part up to which a frame of two is made one: copying a page costs no more
/// than to keep two parts.
const JOINED_MAX: usize = 4096;

/// Handles that an idle queue keeps; a longer one gives its memory back ([`Outbox::rest`]).
const IDLE_CAPACITY: usize = 4;

/// The connection's mailbox has something: [`Outbox::wake`].
const WOKEN: u8 = 1;
/// The socket was full: the connection's task must drain.
const BLOCKED: u8 = 2;
/// A close reason is set.
const CLOSING: u8 = 4;

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// The transport is gone; nobody is left to tell.
    Gone,
    /// The peer closed, with this code if it gave one.
    Peer(Option<u16>),
    /// The peer reads more slowly than its events come; it should reconnect and resume.
    TooSlow,
    /// Nothing came in for the idle timeout.
    Idle,
    /// This server stops.
    Shutdown,
    /// A message longer than allowed.
    TooBig,
    /// All sockets together hold too much of unfinished messages.
    Crowded,
    /// Text that is not UTF-8.
    InvalidUtf8,
    /// A breach of RFC 6455, and which.
    Protocol(&'static str),
    /// A defect here.
    Internal,
    /// The session asked for it.
    Session {
        /// A WebSocket close code that may be sent.
        code: u16,
        /// What the peer is told, at most 123 bytes.
        text: &'static str,
    },
}

impl CloseReason {
    /// Code and text of the Close frame; `None` when there is nobody to send one to.
    pub const fn code_and_text(self) -> Option<(u16, &'static str)> {
        match self {
            Self::Gone => None,
            // 1005 stands for "no code" and is never sent.
            Self::Peer(None) => Some((1005, "")),
            Self::Peer(Some(code)) => Some((code, "")),
            Self::TooSlow => Some((1013, "too slow: reconnect and resume")),
            Self::Idle => Some((1000, "idle")),
            Self::Shutdown => Some((1012, "server restarts")),
            Self::TooBig => Some((1009, "message too big")),
            Self::Crowded => Some((1013, "too many unfinished messages")),
            Self::InvalidUtf8 => Some((1007, "text is not UTF-8")),
            Self::Protocol(what) => Some((1002, what)),
            Self::Internal => Some((1011, "internal error")),
            Self::Session { code, text } => Some((code, text)),
        }
    }

    /// A short name for metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Peer(_) => "peer",
            Self::TooSlow => "too_slow",
            Self::Idle => "idle",
            Self::Shutdown => "shutdown",
            Self::TooBig => "too_big",
            Self::Crowded => "crowded",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::Protocol(_) => "protocol",
            Self::Internal => "internal",
            Self::Session { .. } => "session",
        }
    }
}

/// One connection's out list and socket.
#[derive(Debug)]
pub struct Outbox {
    /// None while its peer fetches what is queued, over HTTP.
    stream: OnceLock<Arc<TcpStream>>,
    /// Bytes that may be queued.
    bytes_max: usize,
    queue: Mutex<Queue>,
    /// Sum of [`cost`] over frames that wait outside, to be queued later: [`Waiting`].
    waiting_bytes: AtomicUsize,
    /// The connection's task.
    task: AtomicWaker,
    /// What that task has to look at: `WOKEN`, `BLOCKED`, `CLOSING`.
    signals: AtomicU8,
    opened: Instant,
    /// When something last came in, in milliseconds since `opened`.
    last_seen_ms: AtomicU64,
    /// Its peer says something now and then, and is gone if it does not.
    speaks: bool,
}

/// One frame of the queue.
#[derive(Debug)]
struct Queued {
    first: Bytes,
    /// What follows it in the same frame, and is shared with connections that have another `first`.
    rest: Option<Box<Bytes>>,
}

impl From<Bytes> for Queued {
    fn from(frame: Bytes) -> Self {
        Self { first: frame, rest: None }
    }
}

impl Queued {
    fn parts(&self) -> impl Iterator<Item = &Bytes> {
        [Some(&self.first), self.rest.as_deref()].into_iter().flatten()
    }

    fn len(&self) -> usize {
        self.first.len() + self.rest.as_ref().map_or(0, |rest| rest.len())
    }

    fn cost(&self) -> usize {
        self.len() + FRAME_OVERHEAD
    }
}

#[derive(Debug)]
struct Queue {
    frames: VecDeque<Queued>,
    /// Bytes of the first frame that are already written.
    written: usize,
    /// Sum of [`cost`] over `frames`.
    bytes: usize,
    /// When the full socket last took something, in milliseconds since `opened`.
    stalled_at_ms: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Empty: the next offer must be followed by a flush.
    Clean,
    /// Somebody offered and will flush.
    Dirty,
    /// The socket is full: the connection's task drains.
    Blocked,
    /// No more offers; the connection's task writes what is left.
    Closing(CloseReason),
}

/// What a write left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    Everything,
    UntilFull,
}

/// What the connection's task has to do, besides reading.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signals(u8);

impl Signals {
    pub(crate) fn woken(self) -> bool {
        self.0 & WOKEN != 0
    }

    pub(crate) fn blocked(self) -> bool {
        self.0 & BLOCKED != 0
    }

    pub(crate) fn closing(self) -> bool {
        self.0 & CLOSING != 0
    }
}

impl Outbox {
    /// An empty outbox for an open socket; `bytes_max` as in `server.outbox_bytes_max`.
    pub fn new(stream: TcpStream, bytes_max: usize) -> Self {
        Self::with(Some(stream), bytes_max, true)
    }

    /// The same for a peer that has nothing to say: however long it is silent, it is not idle.
    pub fn of_listener(stream: TcpStream, bytes_max: usize) -> Self {
        Self::with(Some(stream), bytes_max, false)
    }

    /// The same without a socket: its peer fetches what is queued ([`Outbox::fetch`]), until it has one.
    pub fn to_be_fetched(bytes_max: usize) -> Self {
        Self::with(None, bytes_max, true)
    }

    fn with(stream: Option<TcpStream>, bytes_max: usize, speaks: bool) -> Self {
        Self {
            stream: stream.map(|stream| OnceLock::from(Arc::new(stream))).unwrap_or_default(),
            bytes_max,
            queue: Mutex::new(Queue {
                frames: VecDeque::new(),
                written: 0,
                bytes: 0,
                stalled_at_ms: 0,
                state: State::Clean,
            }),
            waiting_bytes: AtomicUsize::new(0),
            task: AtomicWaker::new(),
            signals: AtomicU8::new(0),
            opened: Instant::now(),
            last_seen_ms: AtomicU64::new(0),
            speaks,
        }
    }

    /// Queues one finished frame without waiting. `true`: the outbox was clean, and the caller
    /// must [`flush`](Self::flush) it.
    ///
    /// No IO, but where the bound is reached: then the socket gets what it takes, and only if that
    /// is not enough is the outbox full. One frame that is larger than the bound passes when it is
    /// alone.
    ///
    /// # Errors
    /// Why this connection takes no more frames; its subscriber can be forgotten.
    pub fn offer(&self, frame: Bytes) -> Result<bool, CloseReason> {
        self.offer_to(&mut self.lock(), frame.into())
    }

    /// [`offer`](Self::offer) for a frame in two parts, the second one shared with connections whose
    /// first is another: it is copied for none of them.
    ///
    /// # Errors
    /// As [`offer`](Self::offer).
    pub fn offer_parts(&self, first: Bytes, rest: &Bytes) -> Result<bool, CloseReason> {
        let queued = if rest.len() <= JOINED_MAX {
            joined(&first, rest).into()
        } else {
            Queued { first, rest: Some(Box::new(rest.clone())) }
        };
        self.offer_to(&mut self.lock(), queued)
    }

    /// [`offer`](Self::offer) for several frames under one lock; they stay together.
    ///
    /// # Errors
    /// As [`offer`](Self::offer); the frames before the one that did not fit were queued.
    pub fn offer_many(&self, frames: &[Bytes]) -> Result<bool, CloseReason> {
        let mut queue = self.lock();
        let mut was_clean = false;
        for frame in frames {
            was_clean |= self.offer_to(&mut queue, frame.clone().into())?;
        }
        Ok(was_clean)
    }

    /// [`offer`](Self::offer) and [`flush`](Self::flush): for a single reply.
    ///
    /// # Errors
    /// As [`offer`](Self::offer).
    pub fn send(&self, frame: Bytes) -> Result<(), CloseReason> {
        let mut queue = self.lock();
        self.offer_to(&mut queue, frame.into())?;
        self.flush_locked(&mut queue);
        Ok(())
    }

    /// Writes what is queued, until nothing is left or the socket is full; then the connection's
    /// task goes on. Does nothing when there is nothing to do.
    pub fn flush(&self) {
        self.flush_locked(&mut self.lock());
    }

    /// Wakes the connection's task: its peer has something to do.
    pub fn wake(&self) {
        self.signal(WOKEN);
    }

    /// Ends the connection; the first reason wins, and is returned. What is queued gets a short
    /// time to leave (not for [`CloseReason::TooSlow`]), then the peer is told why.
    pub fn close(&self, reason: CloseReason) -> CloseReason {
        self.close_locked(&mut self.lock(), reason)
    }

    /// Why this connection is ending, if it is.
    pub fn closing(&self) -> Option<CloseReason> {
        match self.lock().state {
            State::Closing(reason) => Some(reason),
            State::Clean | State::Dirty | State::Blocked => None,
        }
    }

    /// Bytes that wait in the queue, handles included.
    pub fn queued_bytes(&self) -> usize {
        self.lock().bytes
    }

    /// How long nothing has come in of what should.
    pub fn idle(&self) -> Duration {
        if !self.speaks {
            return Duration::ZERO;
        }
        let seen = Duration::from_millis(self.last_seen_ms.load(Ordering::Relaxed));
        self.opened.elapsed().saturating_sub(seen)
    }

    /// How long a peer whose socket is full has taken nothing; none while there is nothing to take.
    pub fn stalled(&self) -> Option<Duration> {
        let queue = self.lock();
        let stalled_at = Duration::from_millis(queue.stalled_at_ms);
        let blocked = matches!(queue.state, State::Blocked) && !queue.frames.is_empty();
        blocked.then(|| self.opened.elapsed().saturating_sub(stalled_at))
    }

    /// Gives back the memory of a queue that was long and is empty. Never waits.
    pub fn rest(&self) {
        if let Ok(mut queue) = self.queue.try_lock()
            && queue.frames.is_empty()
            && queue.frames.capacity() > IDLE_CAPACITY
        {
            queue.frames = VecDeque::new();
        }
    }

    /// Whether `bytes` more may wait outside the queue. If so, they are counted.
    fn may_wait(&self, bytes: usize) -> bool {
        let more = |before: usize| {
            let after = before.saturating_add(bytes);
            (before == 0 || after <= self.bytes_max).then_some(after)
        };
        self.waiting_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn offer_to(&self, queue: &mut Queue, frame: Queued) -> Result<bool, CloseReason> {
        if let State::Closing(reason) = queue.state {
            return Err(reason);
        }
        let cost = frame.cost();
        if !queue.fits(cost, self.bytes_max) {
            // Not yet flushed is not slow: see what the socket takes before judging.
            if self.write(queue).is_err() {
                return Err(self.close_locked(queue, CloseReason::Gone));
            }
            if !queue.fits(cost, self.bytes_max) {
                return Err(self.close_locked(queue, CloseReason::TooSlow));
            }
        }
        queue.bytes += cost;
        queue.frames.push_back(frame);
        let was_clean = queue.state == State::Clean;
        if was_clean {
            queue.state = State::Dirty;
        }
        Ok(was_clean)
    }

    fn flush_locked(&self, queue: &mut Queue) {
        if queue.state != State::Dirty {
            return;
        }
        match self.write(queue) {
            Ok(Written::Everything) => queue.state = State::Clean,
            Ok(Written::UntilFull) => {
                queue.state = State::Blocked;
                queue.stalled_at_ms = self.now_ms();
                self.signal(BLOCKED);
            }
            Err(_) => {
                self.close_locked(queue, CloseReason::Gone);
            }
        }
    }

    fn close_locked(&self, queue: &mut Queue, reason: CloseReason) -> CloseReason {
        if let State::Closing(first) = queue.state {
            return first;
        }
        queue.state = State::Closing(reason);
        if matches!(reason, CloseReason::TooSlow | CloseReason::Gone) {
            queue.drop_unstarted();
        }
        self.signal(CLOSING);
        reason
    }

    /// One system call for up to [`FRAMES_PER_WRITE`] frames, again until empty or full.
    fn write(&self, queue: &mut Queue) -> io::Result<Written> {
        let Some(stream) = self.stream.get().filter(|_| !queue.frames.is_empty()) else {
            let is_empty = queue.frames.is_empty();
            return Ok(if is_empty { Written::Everything } else { Written::UntilFull });
        };
        while let Some(front) = queue.frames.front() {
            let outcome = if queue.frames.len() == 1 && front.rest.is_none() {
                // Most writes are of one frame, and cheaper without a list.
                stream.try_write(front.first.get(queue.written..).unwrap_or_default())
            } else {
                let mut slices = [IoSlice::new(&[]); FRAMES_PER_WRITE];
                let (mut count, mut written) = (0, queue.written);
                let parts = queue.frames.iter().flat_map(Queued::parts);
                for part in parts.take(FRAMES_PER_WRITE) {
                    let Some(left) = part.get(written..).filter(|left| !left.is_empty()) else {
                        written -= part.len();
                        continue;
                    };
                    slices[count] = IoSlice::new(left);
                    (count, written) = (count + 1, 0);
                }
                stream.try_write_vectored(&slices[..count])
            };
            match outcome {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    queue.consume(written);
                    if queue.state == State::Blocked {
                        queue.stalled_at_ms = self.now_ms();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Written::UntilFull);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Written::Everything)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn signal(&self, signal: u8) {
        self.signals.fetch_or(signal, Ordering::Release);
        self.task.wake();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing under this lock leaves a half-made queue behind when it panics.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A peer that fetches over HTTP.
impl Outbox {
    /// What is queued, as far as one answer takes it: at least one frame, if there is one, and
    /// about `bytes_max`. It is the peer's from then on.
    pub fn fetch(&self, bytes_max: usize) -> Vec<Bytes> {
        self.seen();
        let mut queue = self.lock();
        let (mut fetched, mut bytes) = (Vec::new(), 0);
        while let Some(first) = queue.frames.front()
            && (fetched.is_empty() || bytes + first.len() <= bytes_max)
            && self.stream.get().is_none()
            && let Some(frame) = queue.frames.pop_front()
        {
            bytes += frame.len();
            queue.bytes -= frame.cost();
            fetched.push(match frame.rest {
                None => frame.first,
                Some(rest) => joined(&frame.first, &rest),
            });
        }
        if queue.frames.is_empty() && queue.state == State::Blocked {
            queue.state = State::Clean;
        }
        fetched
    }

    /// Something came in from its peer.
    pub fn seen(&self) {
        self.last_seen_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// Takes the socket of another outbox, which is not written to any more; what is queued goes
    /// there from now on. False when there is one already.
    pub fn take_socket(&self, of: &Self) -> bool {
        let mut queue = self.lock();
        let taken =
            of.stream.get().is_some_and(|stream| self.stream.set(Arc::clone(stream)).is_ok());
        if taken && queue.state == State::Clean && !queue.frames.is_empty() {
            queue.state = State::Blocked;
        }
        drop(queue);
        self.seen();
        // Whoever runs it from now on has to look.
        self.signal(WOKEN | BLOCKED);
        taken
    }
}

/// The connection's own task; nobody else calls these.
impl Outbox {
    /// Registers the task, then says what it has to look at. In this order, so that a signal in
    /// between wakes it again.
    pub(crate) fn poll_signals(&self, waker: &Waker) -> Signals {
        self.task.register(waker);
        Signals(self.signals.swap(0, Ordering::Acquire))
    }

    /// Writes what is queued, waiting for room; ready when nothing is left.
    pub(crate) fn poll_drain(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Whoever has no socket is not drained.
        let Some(stream) = self.stream.get() else { return Poll::Pending };
        loop {
            ready!(stream.poll_write_ready(context))?;
            let mut queue = self.lock();
            if self.write(&mut queue)? == Written::Everything {
                if queue.state == State::Blocked {
                    queue.state = State::Clean;
                }
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Reads what has come; ready with 0 at the end of the stream.
    pub(crate) fn poll_read(
        &self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Some(stream) = self.stream.get() else { return Poll::Pending };
        loop {
            ready!(stream.poll_read_ready(context))?;
            // A read that does not fill the buffer has emptied the socket: saying "would block"
            // then spares the system call that would find that out.
            let mut read = None;
            let capacity = buffer.len();
            let outcome = stream.try_io(Interest::READABLE, || {
                let count = stream.try_read(buffer)?;
                read = Some(count);
                if 0 < count && count < capacity {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(())
            });
            match (read, outcome) {
                (Some(count), _) => {
                    self.last_seen_ms.store(self.now_ms(), Ordering::Relaxed);
                    return Poll::Ready(Ok(count));
                }
                (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                (None, Err(error)) => return Poll::Ready(Err(error)),
                (None, Ok(())) => {}
            }
        }
    }

    /// Queues the Close frame behind everything else, past the bound.
    pub(crate) fn push_last(&self, frame: Bytes) {
        let mut queue = self.lock();
        let frame = Queued::from(frame);
        queue.bytes += frame.cost();
        queue.frames.push_back(frame);
    }

    /// Ends our half of the stream, so that the peer reads an end after the Close frame.
    pub(crate) fn shut_down_writing(&self) {
        // A socket that is already gone is what we want.
        let _ = self.stream.get().map(|stream| SockRef::from(&**stream).shutdown(Shutdown::Write));
    }

    /// Ends both halves and forgets what is queued, even while others still hold the outbox.
    pub(crate) fn shut_down(&self) {
        let mut queue = self.lock();
        self.close_locked(&mut queue, CloseReason::Gone);
        queue.frames = VecDeque::new();
        (queue.written, queue.bytes) = (0, 0);
        let _ = self.stream.get().map(|stream| SockRef::from(&**stream).shutdown(Shutdown::Both));
    }
}

impl Queue {
    fn fits(&self, cost: usize, bytes_max: usize) -> bool {
        self.frames.is_empty() || self.bytes.saturating_add(cost) <= bytes_max
    }

    /// Forgets `written` bytes from the front.
    fn consume(&mut self, written: usize) {
        self.written += written;
        while let Some(first) = self.frames.front()
            && first.len() <= self.written
        {
            self.written -= first.len();
            self.bytes -= first.cost();
            self.frames.pop_front();
        }
    }

    /// Forgets every frame of which nothing is out; a begun one must end, or the peer could not
    /// read what follows.
    fn drop_unstarted(&mut self) {
        self.frames.truncate(usize::from(self.written > 0));
        self.frames.shrink_to_fit();
        self.bytes = self.frames.iter().map(Queued::cost).sum();
    }
}

/// The two parts of a frame as one.
pub(super) fn joined(first: &[u8], rest: &[u8]) -> Bytes {
    [first, rest].concat().into()
}

/// Frames that wait for something before they are offered. All that wait for one connection are
/// bounded together, as its queue is: what does not fit here would not fit there.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    outbox: Arc<Outbox>,
    frames: Vec<(T, Bytes)>,
    bytes: usize,
}

impl<T> Waiting<T> {
    pub(super) const fn new(outbox: Arc<Outbox>) -> Self {
        Self { outbox, frames: Vec::new(), bytes: 0 }
    }

    /// Keeps a frame. Without room for it the connection is closed: it would miss the frame.
    pub(super) fn push(&mut self, name: T, frame: Bytes) {
        let bytes = frame.len() + FRAME_OVERHEAD + size_of::<T>();
        if self.outbox.may_wait(bytes) {
            self.bytes += bytes;
            self.frames.push((name, frame));
        } else {
            self.clear();
            self.outbox.close(CloseReason::TooSlow);
        }
    }

    /// Keeps a frame, if there is room for it within `bytes_max` too.
    pub(super) fn try_push(&mut self, name: T, frame: &Bytes, bytes_max: usize) -> bool {
        let bytes = frame.len() + FRAME_OVERHEAD + size_of::<T>();
        let fits = self.bytes + bytes <= bytes_max && self.outbox.may_wait(bytes);
        if fits {
            self.bytes += bytes;
            self.frames.push((name, frame.clone()));
        }
        fits
    }

    /// What waited, in its order.
    pub(super) fn take(&mut self) -> Vec<(T, Bytes)> {
        self.outbox.waiting_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = 0;
        std::mem::take(&mut self.frames)
    }

    /// What waits.
    #[cfg(test)]
    pub(super) fn frames(&self) -> impl Iterator<Item = &Bytes> {
        self.frames.iter().map(|(_, frame)| frame)
    }

    pub(super) fn clear(&mut self) {
        drop(self.take());
    }
}

impl<T> Drop for Waiting<T> {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The outboxes that one round of publishing has made dirty.
///
/// A publisher offers as many frames as it has, to as many outboxes as should have them, and
/// flushes at the end of the round: each connection costs one system call, however many frames it
/// got. Dropping the list flushes too, so that no frame stays behind when a round is cut short.
#[derive(Debug, Default)]
pub struct DirtyList {
    dirty: Vec<Arc<Outbox>>,
}

impl DirtyList {
    /// Queues one frame for one connection.
    ///
    /// # Errors
    /// As [`Outbox::offer`].
    pub fn offer(&mut self, outbox: &Arc<Outbox>, frame: &Bytes) -> Result<(), CloseReason> {
        if outbox.offer(frame.clone())? {
            self.dirty.push(Arc::clone(outbox));
        }
        Ok(())
    }

    /// Takes a connection that an offer has made dirty.
    pub fn push(&mut self, outbox: &Arc<Outbox>) {
        self.dirty.push(Arc::clone(outbox));
    }

    /// Queues several frames for one connection.
    ///
    /// # Errors
    /// As [`Outbox::offer_many`].
    pub fn offer_many(
        &mut self,
        outbox: &Arc<Outbox>,
        frames: &[Bytes],
    ) -> Result<(), CloseReason> {
        if outbox.offer_many(frames)? {
            self.dirty.push(Arc::clone(outbox));
        }
        Ok(())
    }

    /// Connections with something to write.
    pub fn len(&self) -> usize {
        self.dirty.len()
    }

    /// Whether nothing is to be written.
    pub fn is_empty(&self) -> bool {
        self.dirty.is_empty()
    }

    /// Gives every dirty connection its write.
    pub fn flush(&mut self) {
        for outbox in self.dirty.drain(..) {
            outbox.flush();
        }
    }

    /// Gives dirty connections their write, one at least; false when it is later than `until` and
    /// some are left.
    pub fn flush_until(&mut self, until: Instant) -> bool {
        while let Some(outbox) = self.dirty.pop() {
            outbox.flush();
            if self.dirty.is_empty() {
                break;
            }
            kill::point(kill::Point::MidFanOut);
            if Instant::now() >= until {
                return false;
            }
        }
        if self.dirty.capacity() > IDLE_PLACES {
            self.dirty = Vec::new();
        }
        true
    }

    /// Gives every dirty connection its write, and other tasks their turns meanwhile.
    pub async fn flush_in_turns(&mut self) {
        while !self.flush_until(Instant::now() + TURN) {
            tokio::task::yield_now().await;
        }
    }
}

impl Drop for DirtyList {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::net::TcpListener;

    use super::*;

    /// An outbox, and the end of the socket that reads.
    async fn outbox(bytes_max: usize) -> (Outbox, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        server.writable().await.unwrap();
        (Outbox::new(server, bytes_max), client)
    }

    fn frame(length: usize) -> Bytes {
        vec![b'x'; length].into()
    }

    /// Fills the socket until the queue begins to hold something.
    fn fill(outbox: &Outbox) {
        while outbox.queued_bytes() == 0 {
            outbox.send(frame(100_000)).unwrap();
        }
    }

    #[tokio::test]
    async fn only_the_first_offer_after_a_flush_finds_it_clean() {
        let (outbox, _client) = outbox(1000).await;
        assert_eq!(outbox.offer(frame(10)), Ok(true));
        assert_eq!(outbox.offer(frame(10)), Ok(false));
        assert_eq!(outbox.queued_bytes(), 2 * (10 + FRAME_OVERHEAD));
        outbox.flush();
        assert_eq!(outbox.queued_bytes(), 0);
        assert_eq!(outbox.offer_many(&[frame(10), frame(10)]), Ok(true));
        assert_eq!(outbox.offer_many(&[]), Ok(false));
    }

    #[tokio::test]
    async fn a_list_that_is_dropped_is_flushed() {
        let (outbox, _client) = outbox(1000).await;
        let outbox = Arc::new(outbox);
        let mut dirty = DirtyList::default();
        dirty.offer(&outbox, &frame(10)).unwrap();
        dirty.offer(&outbox, &frame(10)).unwrap();
        assert_eq!(dirty.len(), 1);
        drop(dirty);
        assert_eq!(outbox.queued_bytes(), 0);
    }

    #[tokio::test]
    async fn a_long_list_is_flushed_in_turns_and_gives_its_memory_back() {
        let mut dirty = DirtyList::default();
        let mut sockets = Vec::new();
        for _ in 0..100 {
            let (outbox, client) = outbox(1000).await;
            let outbox = Arc::new(outbox);
            dirty.offer(&outbox, &frame(10)).unwrap();
            sockets.push((outbox, client));
        }
        // Late already: one write, so that it comes to an end whatever the clock says.
        let late = Instant::now();
        assert!(!dirty.flush_until(late));
        assert_eq!(dirty.len(), 99);
        dirty.flush_in_turns().await;
        assert!(sockets.iter().all(|(outbox, _)| outbox.queued_bytes() == 0));
        assert_eq!(dirty.dirty.capacity(), 0);
        assert!(dirty.flush_until(late));
    }

    #[tokio::test]
    async fn the_bound_holds_to_the_byte_once_the_socket_is_full() {
        let frames = 10;
        let (outbox, _client) = outbox(frames * (100_000 + FRAME_OVERHEAD)).await;
        fill(&outbox);
        let queued = outbox.queued_bytes() / (100_000 + FRAME_OVERHEAD);
        for _ in queued..frames {
            assert_eq!(outbox.offer(frame(100_000)), Ok(false));
        }
        let reason = CloseReason::TooSlow;
        assert_eq!(outbox.offer(frame(1)), Err(reason));
        assert_eq!(outbox.offer_many(&[frame(1)]), Err(reason));
        assert_eq!(outbox.send(frame(1)), Err(reason));
        assert_eq!(outbox.close(CloseReason::Idle), reason);
        assert!(outbox.queued_bytes() <= 100_000 + FRAME_OVERHEAD);
    }

    #[tokio::test]
    async fn frames_of_no_size_are_bounded_too() {
        let (outbox, _client) = outbox(150_000).await;
        fill(&outbox);
        let mut taken = 0;
        while outbox.offer(frame(1)).is_ok() {
            taken += 1;
        }
        assert!(taken <= 150_000 / FRAME_OVERHEAD, "{taken} frames");
        assert_eq!(outbox.closing(), Some(CloseReason::TooSlow));
    }

    /// Reads that many bytes.
    async fn read(client: &TcpStream, bytes: usize) -> Vec<u8> {
        let mut read = Vec::new();
        while read.len() < bytes {
            client.readable().await.unwrap();
            match client.try_read_buf(&mut read) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        read
    }

    #[tokio::test]
    async fn a_frame_of_two_parts_is_written_as_one_and_copied_for_nobody() {
        let (outbox, client) = outbox(1_000_000).await;
        let (large, small) = (vec![b'l'; 100_000].into(), Bytes::from_static(b"s"));
        let mut expected = Vec::new();
        for (number, rest) in [&large, &small, &large, &small].into_iter().enumerate() {
            let first = Bytes::from(format!("first {number}"));
            expected.extend([&first[..], rest].concat());
            outbox.offer_parts(first, rest).unwrap();
            outbox.offer(frame(10)).unwrap();
            expected.extend(&frame(10));
        }
        assert_eq!(outbox.queued_bytes(), expected.len() + 8 * FRAME_OVERHEAD);
        {
            let queue = outbox.lock();
            let rests: Vec<_> = queue.frames.iter().filter_map(|f| f.rest.as_deref()).collect();
            assert!(rests.len() == 2 && rests.iter().all(|rest| rest.as_ptr() == large.as_ptr()));
        }
        outbox.flush();
        assert!(read(&client, expected.len()).await == expected);
        assert_eq!(outbox.queued_bytes(), 0);
    }

    #[tokio::test]
    async fn a_frame_that_was_begun_stays_whole_when_the_rest_is_dropped() {
        // Cut anywhere, also between its parts.
        for written in [1, 5, 6, 50_000] {
            let (outbox, client) = outbox(1_000_000).await;
            {
                let mut queue = outbox.lock();
                let rest = Some(Box::new(frame(100_000)));
                queue.frames.push_back(Queued { first: frame(5), rest });
                queue.frames.push_back(frame(7).into());
                queue.bytes = queue.frames.iter().map(Queued::cost).sum();
                queue.consume(written);
                queue.drop_unstarted();
                assert_eq!(queue.frames.len(), 1, "{written}");
                assert_eq!(queue.bytes, 100_005 + FRAME_OVERHEAD);
            }
            // What is left of it follows, then nothing.
            let left = 100_005 - written;
            let writing = async {
                while outbox.queued_bytes() > 0 {
                    outbox.lock().state = State::Dirty;
                    outbox.flush();
                    tokio::task::yield_now().await;
                }
            };
            let (read, ()) = tokio::join!(read(&client, left), writing);
            assert_eq!(read.len(), left);
        }
    }

    #[tokio::test]
    async fn a_reset_peer_closes_the_outbox_at_the_next_write() {
        let (outbox, client) = outbox(1000).await;
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        // The reset is there before the read end says so.
        outbox.stream.get().unwrap().readable().await.unwrap();
        while outbox.send(frame(10)).is_ok() {}
        assert_eq!(outbox.closing(), Some(CloseReason::Gone));
    }

    #[tokio::test]
    async fn without_a_socket_frames_wait_to_be_fetched_within_the_bound() {
        let outbox = Outbox::to_be_fetched(1000);
        assert_eq!(outbox.offer(frame(10)), Ok(true));
        outbox.flush();
        assert_eq!(outbox.offer(frame(20)), Ok(false));
        outbox.flush();
        // At least one, and then as many as fit.
        assert_eq!(outbox.fetch(5), [frame(10)]);
        assert_eq!(outbox.fetch(100), [frame(20)]);
        assert!(outbox.fetch(100).is_empty());
        assert_eq!(outbox.queued_bytes(), 0);
        assert_eq!(outbox.offer(frame(10)), Ok(true));
        let (first, rest) = (frame(1), frame(JOINED_MAX + 1));
        let large = Outbox::to_be_fetched(1_000_000);
        large.offer_parts(first, &rest).unwrap();
        assert_eq!(large.fetch(1), [frame(JOINED_MAX + 2)]);
        let full =
            std::iter::repeat_with(|| outbox.offer(frame(100))).take(20).find_map(Result::err);
        assert_eq!(full, Some(CloseReason::TooSlow));
        assert!(outbox.fetch(100).is_empty());
    }

    #[tokio::test]
    async fn a_socket_that_is_taken_over_gets_what_waits_and_what_comes() {
        let (own, client) = outbox(1000).await;
        let outbox = Outbox::to_be_fetched(1000);
        outbox.send(frame(10)).unwrap();
        assert!(outbox.take_socket(&own));
        assert!(!outbox.take_socket(&own));
        // It is the socket's now.
        assert!(outbox.fetch(100).is_empty());
        outbox.send(frame(20)).unwrap();
        let signals = poll_fn(|context| Poll::Ready(outbox.poll_signals(context.waker()))).await;
        assert!(signals.blocked() && signals.woken());
        poll_fn(|context| outbox.poll_drain(context)).await.unwrap();
        assert_eq!(read(&client, 30).await, frame(30));
        outbox.send(frame(5)).unwrap();
        assert_eq!(outbox.queued_bytes(), 0);
        assert_eq!(read(&client, 5).await, frame(5));
    }

    #[tokio::test]
    async fn rest_gives_memory_back_and_keeps_frames() {
        let (outbox, _client) = outbox(1_000_000).await;
        let frames = vec![frame(10); 1000];
        outbox.offer_many(&frames).unwrap();
        outbox.rest();
        assert_eq!(outbox.lock().frames.len(), 1000);
        outbox.flush();
        assert!(outbox.lock().frames.capacity() >= 1000);
        outbox.rest();
        assert_eq!(outbox.lock().frames.capacity(), 0);
    }

    #[test]
    fn every_reason_but_gone_has_a_code_that_may_be_sent() {
        let session = CloseReason::Session { code: 4000, text: "x" };
        for reason in [
            CloseReason::Gone,
            CloseReason::Peer(Some(1000)),
            CloseReason::TooSlow,
            CloseReason::Idle,
            CloseReason::Shutdown,
            CloseReason::TooBig,
            CloseReason::Crowded,
            CloseReason::InvalidUtf8,
            CloseReason::Protocol("x"),
            CloseReason::Internal,
            session,
        ] {
            let code_and_text = reason.code_and_text();
            assert_eq!(code_and_text.is_none(), reason == CloseReason::Gone);
            if let Some((code, text)) = code_and_text {
                assert!(matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999), "{code}");
                assert!(text.len() <= 123);
            }
        }
    }
}
