//! RFC 6455 over a socket that is ours alone: handshake, frames, limits, close.
//!
//! In:     the bytes of one peer, hostile or not; signals of its [`Outbox`].
//! Out:    whole messages to a [`Peer`]; finished frames for outboxes; one [`CloseReason`].
//! Never:  extensions or sub-protocols; memory for bytes that were announced but did not come; a
//!         buffer, a timer or a second task for an idle connection.
//! Source: rfc-editor.org/rfc/rfc6455

mod decoder;

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, Method, Version, header};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use sha1::{Digest as _, Sha1};

use self::decoder::{Decoder, Incoming};
use crate::hub::outbox::{CloseReason, Outbox, TURN};

/// Bytes read at once, into one buffer a thread. Larger messages are gathered.
const SCRATCH_BYTES: usize = 64 * 1024;

/// Reads in one turn of a connection's task; then others get theirs.
const READS_PER_TURN: usize = 4;

const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

/// The protocol above: takes whole messages, answers through the outbox it was made with.
///
/// `Break` ends the connection with that reason.
pub trait Peer: Send {
    /// One text message.
    fn text(&mut self, text: &str) -> ControlFlow<CloseReason>;
    /// One binary message.
    fn binary(&mut self, data: &[u8]) -> ControlFlow<CloseReason>;
    /// After one or more calls of [`Outbox::wake`].
    fn woken(&mut self) -> ControlFlow<CloseReason>;
    /// So much was gathered for others that it goes out before more is taken.
    fn is_full(&self) -> bool {
        false
    }
    /// Lets go out what was gathered for others; false when it is later than `until` and something
    /// is left.
    fn settle(&mut self, _until: Instant) -> bool {
        true
    }
    /// Another outbox has taken the socket of the one that this ran on, and is this connection's
    /// from now on. Asked when everything has settled.
    fn moved(&mut self) -> Option<Arc<Outbox>> {
        None
    }
}

/// What one connection may cost.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of one message, over all its fragments. More: close 1009.
    pub message_bytes_max: usize,
    /// How long a closing connection may take to be told so.
    pub close_grace: Duration,
    /// Room for the unfinished messages of all connections together.
    pub unfinished: Arc<Room>,
}

/// Bytes that many connections share; what does not fit is refused.
#[derive(Debug)]
pub struct Room {
    used: AtomicUsize,
    max: usize,
}

impl Room {
    /// Room for `max` bytes.
    pub const fn new(max: usize) -> Self {
        Self { used: AtomicUsize::new(0), max }
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// One connection's part of a [`Room`].
#[derive(Debug)]
pub struct Share {
    room: Arc<Room>,
    held: usize,
}

impl Share {
    /// Nothing of it yet.
    pub const fn of(room: Arc<Room>) -> Self {
        Self { room, held: 0 }
    }

    /// Holds `bytes` from now on; `false` when that is more than the room has.
    pub fn hold(&mut self, bytes: usize) -> bool {
        if bytes == self.held {
            return true;
        }
        let before = if bytes > self.held {
            self.room.used.fetch_add(bytes - self.held, Ordering::Relaxed)
        } else {
            self.room.used.fetch_sub(self.held - bytes, Ordering::Relaxed)
        };
        let grown = bytes.saturating_sub(self.held);
        self.held = bytes;
        grown == 0 || before.saturating_add(grown) <= self.room.max
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.hold(0);
    }
}

/// Why a request is no WebSocket handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// An ordinary request: answer 426.
    #[error("this path speaks WebSocket: send an upgrade request")]
    NotAnUpgrade,
    /// Answer 426 and name version 13.
    #[error("only version 13 of the WebSocket protocol is spoken here")]
    WrongVersion,
    /// Answer 400.
    #[error("malformed WebSocket handshake")]
    Malformed,
}

/// Checks a handshake; gives the value of `Sec-WebSocket-Accept`.
///
/// # Errors
/// What to answer instead of 101.
pub fn accept_handshake(
    method: &Method,
    version: Version,
    headers: &HeaderMap,
) -> Result<String, HandshakeError> {
    let lists = |name: header::HeaderName, token: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|part| part.trim().eq_ignore_ascii_case(token))
    };
    if method != Method::GET
        || version != Version::HTTP_11
        || !lists(header::CONNECTION, "upgrade")
        || !lists(header::UPGRADE, "websocket")
    {
        return Err(HandshakeError::NotAnUpgrade);
    }
    if one(headers, &header::SEC_WEBSOCKET_VERSION)? != "13" {
        return Err(HandshakeError::WrongVersion);
    }
    let has_body = headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
    let key = one(headers, &header::SEC_WEBSOCKET_KEY)?;
    // A nonce of 16 bytes. Its content is the client's affair.
    let nonce = BASE64_STANDARD.decode(key).map_err(|_| HandshakeError::Malformed)?;
    if has_body || nonce.len() != 16 {
        return Err(HandshakeError::Malformed);
    }
    Ok(accept_key(key))
}

fn one<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Result<&'a str, HandshakeError> {
    let mut values = headers.get_all(name).iter();
    match (values.next().and_then(|value| value.to_str().ok()), values.next()) {
        (Some(value), None) => Ok(value.trim()),
        _ => Err(HandshakeError::Malformed),
    }
}

/// RFC 6455, 4.2.2: proof that this key was understood.
fn accept_key(key: &str) -> String {
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    BASE64_STANDARD.encode(hash.finalize())
}

/// A text frame, header and payload in one buffer. Server frames are unmasked, so that one can be
/// shared by every connection that gets the same bytes.
pub fn text_frame(payload: &[u8]) -> Bytes {
    frame(TEXT, payload)
}

/// A binary frame; see [`text_frame`].
pub fn binary_frame(payload: &[u8]) -> Bytes {
    frame(BINARY, payload)
}

/// The beginning of a text frame whose payload goes on with `rest_bytes` more, for a rest that is
/// shared by frames that begin in different ways.
pub fn text_frame_head(payload: &[u8], rest_bytes: usize) -> Bytes {
    partial_frame(TEXT, payload, rest_bytes)
}

fn frame(opcode: u8, payload: &[u8]) -> Bytes {
    partial_frame(opcode, payload, 0)
}

fn partial_frame(opcode: u8, payload: &[u8], rest_bytes: usize) -> Bytes {
    let mut frame = Vec::with_capacity(10 + payload.len());
    frame.push(0x80 | opcode);
    let length = payload.len() + rest_bytes;
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(length @ 0..=125), _) => frame.push(length),
        (_, Ok(length)) => {
            frame.push(126);
            frame.extend_from_slice(&length.to_be_bytes());
        }
        (_, Err(_)) => {
            frame.push(127);
            let length = u64::try_from(length).expect("a length in memory fits 64 bits");
            frame.extend_from_slice(&length.to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    // Exact, so that turning it into shared bytes does not move it.
    frame.shrink_to_fit();
    frame.into()
}

fn close_frame(code: u16, text: &str) -> Bytes {
    if code == 1005 {
        return frame(CLOSE, &[]);
    }
    let mut payload = code.to_be_bytes().to_vec();
    // A control frame holds 125 bytes.
    let end = text.floor_char_boundary(123);
    payload.extend_from_slice(&text.as_bytes()[..end]);
    frame(CLOSE, &payload)
}

/// Runs one connection to its end, and says why it ended.
///
/// `leftover` is what the HTTP server read past the request. The socket is shut down at the end,
/// also when the peer panics, even while others still hold the outbox. `moved` is told of the outbox
/// that took this one's socket, if one does ([`Peer::moved`]).
pub async fn run<P: Peer>(
    outbox: Arc<Outbox>,
    leftover: Bytes,
    limits: Limits,
    peer: P,
    moved: impl FnMut(&Arc<Outbox>) + Send,
) -> CloseReason {
    let end = End { outbox };
    // A copy, mostly of nothing: the original keeps all of the HTTP server's read buffer.
    let first = leftover.to_vec();
    drop(leftover);
    let grace = limits.close_grace;
    let (reason, end) = {
        let mut pump = Pump {
            end,
            moved,
            decoder: Decoder::new(limits.message_bytes_max),
            unfinished: Share { room: limits.unfinished, held: 0 },
            leftover: first,
            draining: false,
            anew: false,
            stage: Stage::Reading,
            peer,
        };
        let reason = poll_fn(|context| pump.poll(context)).await;
        // The peer goes here, and with it every subscription: nobody offers any more.
        (reason, pump.end)
    };
    if let Some((code, text)) = reason.code_and_text() {
        end.outbox.push_last(close_frame(code, text));
        // In a box, so that only closing connections pay for it.
        Box::pin(say_goodbye(&end.outbox, reason, grace)).await;
    }
    reason
}

/// Shuts the socket down, however the connection ends.
pub(super) struct End {
    pub(super) outbox: Arc<Outbox>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.outbox.shut_down();
    }
}

/// Gives the queue and the last words a short time to leave, then the peer one to answer.
pub(super) async fn say_goodbye(outbox: &Outbox, reason: CloseReason, grace: Duration) {
    let goodbye = async {
        poll_fn(|context| outbox.poll_drain(context)).await?;
        outbox.shut_down_writing();
        if matches!(reason, CloseReason::Peer(_)) {
            return Ok(());
        }
        // Closing with bytes unread would reset the connection, and the peer lose our last words.
        while poll_fn(|context| with_scratch(|scratch| outbox.poll_read(context, scratch))).await?
            > 0
        {}
        io::Result::Ok(())
    };
    // Neither a late nor a broken peer changes what follows.
    let _ = tokio::time::timeout(grace, goodbye).await;
}

/// One connection's reading half and its protocol.
struct Pump<P, M> {
    end: End,
    /// Told of the outbox that took this one's socket.
    moved: M,
    decoder: Decoder,
    unfinished: Share,
    /// What was read and is still to be handled.
    leftover: Vec<u8>,
    /// The socket was full, and this task has to write the rest.
    draining: bool,
    /// Another turn is due, with another outbox.
    anew: bool,
    stage: Stage,
    peer: P,
}

/// What a connection's task does when it gets its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Takes what comes.
    Reading,
    /// Lets go out what its peer gathered for others, before it takes more.
    Settling,
    /// The same, and then ends.
    Ending,
}

impl<P: Peer, M: FnMut(&Arc<Outbox>)> Pump<P, M> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<CloseReason> {
        let until = Instant::now() + TURN;
        if self.stage != Stage::Ending
            && let ControlFlow::Break(reason) = self.turn(context, until)
        {
            self.end.outbox.close(reason);
            self.stage = Stage::Ending;
        }
        if self.stage != Stage::Ending {
            return Poll::Pending;
        }
        if !self.peer.settle(until) {
            give_way(context);
            return Poll::Pending;
        }
        // The first reason, which may be somebody else's.
        Poll::Ready(self.end.outbox.close(CloseReason::Gone))
    }

    fn turn(&mut self, context: &mut Context<'_>, until: Instant) -> ControlFlow<CloseReason> {
        let signals = self.end.outbox.poll_signals(context.waker());
        if signals.closing() {
            return ControlFlow::Break(CloseReason::Gone);
        }
        if signals.woken() {
            self.peer.woken()?;
        }
        self.draining |= signals.blocked();
        if self.draining
            && let Poll::Ready(drained) = self.end.outbox.poll_drain(context)
        {
            if drained.is_err() {
                return ControlFlow::Break(CloseReason::Gone);
            }
            self.draining = false;
        }
        let idle = with_scratch(|scratch| self.read(context, scratch, until))?;
        if !idle || std::mem::take(&mut self.anew) {
            give_way(context);
        }
        ControlFlow::Continue(())
    }

    /// Takes what has come and lets go out what that made, in turns; true when nothing is left.
    fn read(
        &mut self,
        context: &mut Context<'_>,
        scratch: &mut [u8],
        until: Instant,
    ) -> ControlFlow<CloseReason, bool> {
        for _ in 0..READS_PER_TURN {
            if self.stage == Stage::Settling && !self.settle(until) {
                return ControlFlow::Continue(false);
            }
            if self.leftover.is_empty() {
                match self.end.outbox.poll_read(context, scratch) {
                    Poll::Pending => return ControlFlow::Continue(self.settle(until)),
                    Poll::Ready(Ok(0) | Err(_)) => return ControlFlow::Break(CloseReason::Gone),
                    Poll::Ready(Ok(count)) => self.take(&mut scratch[..count], until)?,
                }
            } else {
                let mut leftover = std::mem::take(&mut self.leftover);
                self.take(&mut leftover, until)?;
            }
            // The turn is over. What was gathered waits, so that a write takes more of it.
            if !self.leftover.is_empty() && self.stage == Stage::Reading {
                return ControlFlow::Continue(false);
            }
        }
        self.settle(until);
        ControlFlow::Continue(false)
    }

    fn settle(&mut self, until: Instant) -> bool {
        let settled = self.peer.settle(until);
        if settled && let Some(outbox) = self.peer.moved() {
            self.draining = true;
            (self.moved)(&outbox);
            self.end.outbox = outbox;
            // Whatever it signalled was not for this task.
            self.anew = true;
        }
        self.stage = if settled { Stage::Reading } else { Stage::Settling };
        settled
    }

    /// Handles every message that `input` completes, as far as its turn goes; what is left is kept.
    fn take(&mut self, input: &mut [u8], until: Instant) -> ControlFlow<CloseReason> {
        let mut at = 0;
        while at < input.len() {
            if at > 0 && (self.stage == Stage::Settling || Instant::now() >= until) {
                self.leftover = input[at..].to_vec();
                break;
            }
            let (used, incoming) = match self.decoder.next(&mut input[at..]) {
                Ok(step) => step,
                Err(reason) => return ControlFlow::Break(reason),
            };
            at += used;
            match incoming {
                None | Some(Incoming::Pong) => {}
                Some(Incoming::Text(text)) => self.peer.text(text)?,
                Some(Incoming::Binary(data)) => self.peer.binary(data)?,
                Some(Incoming::Ping(payload)) => {
                    if let Err(reason) = self.end.outbox.send(frame(PONG, payload)) {
                        return ControlFlow::Break(reason);
                    }
                }
                Some(Incoming::Close(code)) => return ControlFlow::Break(CloseReason::Peer(code)),
            }
            if self.peer.is_full() {
                self.stage = Stage::Settling;
            }
        }
        self.decoder.rest();
        if self.unfinished.hold(self.decoder.held_bytes() + self.leftover.len()) {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(CloseReason::Crowded)
        }
    }
}

/// Asks for another turn, after everybody else had theirs and the sockets were looked at: a task
/// that woke itself at once could keep its thread from seeing what has come meanwhile.
fn give_way(context: &mut Context<'_>) {
    // The first poll arranges that, and is never ready.
    let _ = pin!(tokio::task::yield_now()).poll(context);
}

/// Lends this thread's read buffer.
pub(super) fn with_scratch<T>(use_it: impl FnOnce(&mut [u8]) -> T) -> T {
    thread_local! {
        static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    }
    let mut scratch = SCRATCH.take();
    scratch.resize(SCRATCH_BYTES, 0);
    let result = use_it(&mut scratch);
    SCRATCH.set(scratch);
    result
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use axum::http::HeaderValue;
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[test]
    fn the_accept_key_of_the_rfc() {
        assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    fn handshake(changes: &[(&'static str, Option<&'static str>)]) -> Result<(), HandshakeError> {
        let mut headers = HeaderMap::new();
        let usual = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        for (name, value) in usual {
            headers.insert(name, HeaderValue::from_static(value));
        }
        for (name, value) in changes {
            match value {
                Some(value) => headers.insert(*name, HeaderValue::from_static(value)),
                None => headers.remove(*name),
            };
        }
        accept_handshake(&Method::GET, Version::HTTP_11, &headers).map(drop)
    }

    #[test]
    fn only_a_proper_handshake_is_accepted() {
        assert_eq!(handshake(&[]), Ok(()));
        assert_eq!(handshake(&[("connection", None)]), Err(HandshakeError::NotAnUpgrade));
        assert_eq!(handshake(&[("upgrade", Some("h2c"))]), Err(HandshakeError::NotAnUpgrade));
        let version = "sec-websocket-version";
        assert_eq!(handshake(&[(version, Some("8"))]), Err(HandshakeError::WrongVersion));
        assert_eq!(handshake(&[(version, None)]), Err(HandshakeError::Malformed));
        let key = "sec-websocket-key";
        assert_eq!(handshake(&[(key, None)]), Err(HandshakeError::Malformed));
        assert_eq!(handshake(&[(key, Some("c2hvcnQ="))]), Err(HandshakeError::Malformed));
        assert_eq!(handshake(&[(key, Some("not base64!"))]), Err(HandshakeError::Malformed));
        assert_eq!(handshake(&[("content-length", Some("5"))]), Err(HandshakeError::Malformed));
        assert_eq!(handshake(&[("content-length", Some("0"))]), Ok(()));
    }

    #[test]
    fn a_frame_uses_the_shortest_length() {
        let head = |length: usize| text_frame(&vec![b'x'; length])[..4.min(2 + length)].to_vec();
        assert_eq!(head(0), [0x81, 0]);
        assert_eq!(head(125)[..2], [0x81, 125]);
        assert_eq!(head(126), [0x81, 126, 0, 126]);
        assert_eq!(head(65_535), [0x81, 126, 0xFF, 0xFF]);
        assert_eq!(text_frame(&vec![0; 65_536])[..10], [0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(text_frame(&vec![0; 65_536]).len(), 65_546);
        assert_eq!(binary_frame(&[7])[..], [0x82, 1, 7]);
    }

    #[test]
    fn a_close_frame_is_cut_to_a_control_frame() {
        assert_eq!(close_frame(1005, "")[..], [0x88, 0]);
        assert_eq!(close_frame(1000, "idle")[..], *b"\x88\x06\x03\xe8idle");
        assert_eq!(close_frame(1000, &"é".repeat(100)).len(), 2 + 2 + 122);
    }

    /// What an idle connection costs is mostly this: a task holds nothing else.
    #[tokio::test]
    async fn the_future_of_a_connection_is_small() {
        struct Nobody;
        impl Peer for Nobody {
            fn text(&mut self, _: &str) -> ControlFlow<CloseReason> {
                ControlFlow::Continue(())
            }
            fn binary(&mut self, _: &[u8]) -> ControlFlow<CloseReason> {
                ControlFlow::Continue(())
            }
            fn woken(&mut self) -> ControlFlow<CloseReason> {
                ControlFlow::Continue(())
            }
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let outbox = Arc::new(Outbox::new(stream, 1000));
        let unfinished = Arc::new(Room::new(1000));
        let limits = Limits { message_bytes_max: 1000, close_grace: Duration::ZERO, unfinished };
        let future = run(outbox, Bytes::new(), limits, Nobody, |_| ());
        let (future, outbox) = (size_of_val(&future), size_of::<Outbox>());
        assert!(future <= 448, "the future takes {future} bytes");
        assert!(outbox <= 256, "the outbox takes {outbox} bytes");
    }

    /// Each message makes work for three turns, during which nothing else may be taken.
    #[tokio::test]
    async fn what_is_gathered_goes_out_before_more_is_taken_and_before_the_end() {
        #[derive(Default)]
        struct Work {
            taken: Vec<String>,
            left: usize,
        }
        struct Busy(Arc<Mutex<Work>>);
        impl Peer for Busy {
            fn text(&mut self, text: &str) -> ControlFlow<CloseReason> {
                let mut work = self.0.lock().unwrap();
                assert_eq!(work.left, 0, "{text} came too early");
                work.taken.push(text.to_owned());
                work.left = 3;
                ControlFlow::Continue(())
            }
            fn binary(&mut self, _: &[u8]) -> ControlFlow<CloseReason> {
                ControlFlow::Continue(())
            }
            fn woken(&mut self) -> ControlFlow<CloseReason> {
                ControlFlow::Continue(())
            }
            fn is_full(&self) -> bool {
                self.0.lock().unwrap().left > 0
            }
            fn settle(&mut self, _: Instant) -> bool {
                let mut work = self.0.lock().unwrap();
                work.left = work.left.saturating_sub(1);
                work.left == 0
            }
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut client, _) = listener.accept().await.unwrap();
        // Masked with zeros; half of them come together with the request.
        let mut input: Vec<u8> = (0..10).flat_map(|n| [0x81, 0x81, 0, 0, 0, 0, b'0' + n]).collect();
        input.extend([0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8]);
        let rest = input.split_off(5 * 7 + 3);
        client.write_all(&rest).await.unwrap();
        client.shutdown().await.unwrap();
        let outbox = Arc::new(Outbox::new(stream, 1000));
        let unfinished = Arc::new(Room::new(1000));
        let limits = Limits {
            message_bytes_max: 1000,
            close_grace: Duration::from_secs(10),
            unfinished: Arc::clone(&unfinished),
        };
        let work = Arc::new(Mutex::new(Work::default()));
        let reason = run(outbox, input.into(), limits, Busy(Arc::clone(&work)), |_| ()).await;
        assert_eq!(reason, CloseReason::Peer(Some(1000)));
        let work = work.lock().unwrap();
        assert_eq!(work.taken.concat(), "0123456789");
        assert_eq!(work.left, 0);
        assert_eq!(unfinished.used(), 0);
    }

    #[test]
    fn a_share_returns_what_it_held() {
        let room = Arc::new(Room::new(100));
        let mut share = Share { room: Arc::clone(&room), held: 0 };
        assert!(share.hold(100));
        let mut second = Share { room: Arc::clone(&room), held: 0 };
        assert!(!second.hold(1));
        assert!(share.hold(10));
        drop((share, second));
        assert_eq!(room.used(), 0);
    }
}
