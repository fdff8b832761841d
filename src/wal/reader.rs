//! The thread that owns a started stream: socket → batches, and status updates on time.
//!
//! In:     a connection in streaming mode; what the caller has published.
//! Out:    batches of whole messages, handed over a few at a time, or the error that ends them.
//! Never:  a wake-up per message; reading on when the caller is behind; silence towards the server
//!         because the caller is behind.
//!
//! The server sends each message with a system call of its own. A reader that wakes for each makes
//! both sides switch contexts, and halves what either can do. So while there is traffic this one
//! sleeps, really sleeps, and then takes all that has come: an event loop that waits for the socket
//! on another task's behalf would wake just the same, hence a thread of its own. When there is no
//! traffic it hands over at once.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead as _, AsyncReadExt as _, AsyncWriteExt as _, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::connection::{Connection, ServerError, frame_header, lost, unexpected};
use super::framing::{self, Found};
use super::slot::stream_error;
use super::standby::{Answer, Standby};
use super::{Batch, Error, Positions};
use crate::config::Replication;
use crate::db::socket::Socket;
use crate::kill;
use crate::lsn::Lsn;

/// How long a TCP socket is left to fill, at first. Measured on single-row transactions: 0.3 ms
/// costs a tenth, 0.1 ms a third.
const LINGER_TCP: Duration = Duration::from_millis(1);

/// The same while there is a backlog. A server that sends into an open window pays for a whole
/// transmission each time; once the window is closed a send only appends to its own buffer, and
/// costs a third. So it has to be left alone for longer than it needs to fill the window.
const LINGER_BACKLOG: Duration = Duration::from_millis(4);

/// Bytes a millisecond from which on there is a backlog, or a load that is as good as one.
const BACKLOG_BYTES: usize = 16 * 1024;

/// The same for a Unix socket, whose buffer is full after some 210 small messages: after that the
/// server waits for us.
const LINGER_UNIX: Duration = Duration::from_micros(250);

/// Batches that follow each other this closely mean traffic.
const BUSY: Duration = Duration::from_millis(2);

/// Batches up to this size are copied out of the read buffer, so that one small change kept by
/// somebody does not keep a quarter megabyte with it.
const COPIED_BYTES_MAX: usize = 16 * 1024;

/// Room that must be left for a read to be worth its system call.
const READ_BYTES_MIN: usize = 16 * 1024;

/// Batches that a transaction may fill and still be handed over in one piece. More would be more
/// memory; fewer, more rows whose way out of sight cannot be told: see `auth/rls/checker/past.rs`.
const WHOLE_BATCHES_MAX: usize = 4;

/// Between looks at what the caller has published.
const TICK: Duration = Duration::from_millis(500);

/// Silence, in sender timeouts, after which the server is taken for dead. Not one: while it builds
/// a row of a gigabyte it answers nothing for ten seconds, and would never get past it. A link
/// that is cut is noticed sooner, by the kernel (`TCP_USER_TIMEOUT`).
const SILENT_TIMEOUTS_MAX: u32 = 3;

/// How long the server may take to say why it broke the stream off.
const POST_MORTEM_TIMEOUT: Duration = Duration::from_secs(5);

/// The code of the warning about a publication passed over. Its text follows `lc_messages`; nothing
/// else in a stream warns with this code.
const PUBLICATION_SKIPPED: &str = "55000";

pub(super) struct Reader {
    connection: Connection,
    settings: Replication,
    standby: Standby,
    positions: Arc<Positions>,
    /// Bytes of whole `CopyData` messages at the start of the connection's input.
    scanned: usize,
    /// Bytes of them up to where the last transaction ended; zero: none has.
    ended: usize,
    /// A part of the transaction that goes on was handed over already.
    parted: bool,
    /// Whether one of them is more than a keepalive.
    is_waiting: bool,
    /// What follows the scanned ones.
    next: Next,
    /// Bytes still missing of the message that is being read, as far as it is known.
    missing: usize,
    handed_over: Instant,
    /// More is expected at once.
    traffic: bool,
    /// How long the socket is left to fill meanwhile.
    pause: Duration,
    /// Bytes read since the last pause began.
    gathered: usize,
    /// When the server was last heard.
    heard: Instant,
    status_sent: Instant,
    /// What the server waits for.
    answer: Answer,
}

/// What follows the messages of the stream that were scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// More of them, as far as we know.
    Stream,
    /// A message beside the stream.
    Control,
    /// Nothing: the server closed the connection.
    End,
}

/// What to do next.
enum Due {
    /// Wait for bytes.
    Read,
    /// Let bytes gather.
    Linger,
    /// Hand a batch over.
    Batch,
}

impl Reader {
    pub(super) fn new(
        connection: Connection,
        settings: &Replication,
        standby: Standby,
        positions: Arc<Positions>,
    ) -> Self {
        let now = Instant::now();
        let pause = shortest_pause(&connection.socket);
        Self {
            connection,
            settings: settings.clone(),
            standby,
            positions,
            scanned: 0,
            ended: 0,
            parted: false,
            is_waiting: false,
            next: Next::Stream,
            missing: 0,
            handed_over: now,
            traffic: false,
            pause,
            gathered: 0,
            heard: now,
            status_sent: now,
            answer: Answer::None,
        }
    }

    /// Reads until the stream ends or is to be closed. An error is the last thing handed over.
    pub(super) async fn run(
        mut self,
        batches: mpsc::Sender<Result<Batch, Error>>,
        closing: CancellationToken,
    ) {
        if let Err(error) = self.stream(&batches, &closing).await {
            // The slot is free for the next connection before the caller hears of it.
            drop(self.connection);
            batches.send(Err(error)).await.ok();
        }
    }

    async fn stream(
        &mut self,
        batches: &mpsc::Sender<Result<Batch, Error>>,
        closing: &CancellationToken,
    ) -> Result<(), Error> {
        let mut ticks = interval(self.status_interval().min(TICK));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stalled_since = None;
        self.scan()?; // What came with the answer to the start command.
        loop {
            if self.next != Next::Stream && self.scanned == 0 {
                self.control_message().await?;
                continue;
            }
            match std::mem::replace(&mut self.answer, Answer::None) {
                Answer::None => {}
                Answer::Status => self.send_status(None, false).await?,
                Answer::Leave => {
                    self.say_goodbye().await?;
                    return Err(lost(io::Error::other("the server is shutting down")));
                }
            }
            match self.due() {
                Due::Batch => tokio::select! {
                    permit = batches.reserve() => {
                        let Ok(permit) = permit else { return Ok(()) };
                        permit.send(Ok(self.take_batch()));
                        if stalled_since.take().is_some() {
                            self.heard = Instant::now();
                        }
                        self.scan()?;
                    }
                    _ = ticks.tick() => {
                        let since = *stalled_since.get_or_insert_with(Instant::now);
                        self.tick(Some(since)).await?;
                    }
                    () = closing.cancelled() => return self.say_goodbye().await,
                },
                Due::Linger => self.linger().await?,
                Due::Read => tokio::select! {
                    read = self.read() => read?,
                    _ = ticks.tick() => self.tick(None).await?,
                    () = closing.cancelled() => return self.say_goodbye().await,
                },
            }
        }
    }

    fn status_interval(&self) -> Duration {
        (self.settings.sender_timeout() / 3).min(Duration::from_secs(10))
    }

    fn due(&self) -> Due {
        if !self.is_waiting {
            // The rest of a large row is not worth a pause.
            return if self.traffic && self.missing == 0 { Due::Linger } else { Due::Read };
        }
        let whole = self.ended > 0
            || !self.standby.in_transaction()
            || self.next != Next::Stream
            || self.scanned >= self.whole_bytes_max();
        if whole {
            Due::Batch
        } else if self.traffic && self.missing == 0 {
            Due::Linger
        } else {
            Due::Read
        }
    }

    /// A transaction up to this size is handed over in one piece: what it did to one row may depend
    /// on what it did to others.
    fn whole_bytes_max(&self) -> usize {
        let batches = if self.parted { 1 } else { WHOLE_BATCHES_MAX };
        self.settings.batch_bytes.saturating_mul(batches)
    }

    /// Sleeps while bytes gather, and takes them. No traffic when there are none.
    async fn linger(&mut self) -> Result<(), Error> {
        let pause = self.pause;
        self.gathered = 0;
        std::thread::sleep(pause);
        // Lets the event loop see what happened to the socket.
        tokio::task::yield_now().await;
        self.read_available().await?;
        self.traffic = self.gathered > 0;
        self.pause = next_pause(&self.connection.socket, pause, self.gathered);
        Ok(())
    }

    /// Waits for bytes and takes what there is. Safe to cancel.
    async fn read(&mut self) -> Result<(), Error> {
        self.make_room();
        let read = self.connection.socket.read_buf(&mut self.connection.input).await;
        self.have_read(read.map_err(lost)?)
    }

    /// Takes what has arrived, without waiting, up to a full batch.
    async fn read_available(&mut self) -> Result<(), Error> {
        while self.next == Next::Stream && self.scanned < self.read_bytes_max() {
            self.make_room();
            let Connection { socket, input, .. } = &mut self.connection;
            // A read that is not ready leaves no waker behind: whoever waits next registers again.
            let mut reading = std::pin::pin!(socket.read_buf(input));
            let read = poll_fn(|context| match reading.as_mut().poll(context) {
                Poll::Ready(read) => Poll::Ready(Some(read)),
                Poll::Pending => Poll::Ready(None),
            });
            let Some(read) = read.await else { return Ok(()) };
            self.have_read(read.map_err(lost)?)?;
        }
        Ok(())
    }

    /// Scanned bytes beyond which no more is read before a batch is handed over.
    fn read_bytes_max(&self) -> usize {
        if self.ended > 0 { self.settings.batch_bytes } else { self.whole_bytes_max() }
    }

    fn have_read(&mut self, bytes: usize) -> Result<(), Error> {
        if bytes == 0 {
            self.next = Next::End;
            return Ok(());
        }
        self.heard = Instant::now();
        self.gathered += bytes;
        self.missing = self.missing.saturating_sub(bytes);
        if self.missing == 0 { self.scan() } else { Ok(()) }
    }

    /// One large message gets exactly its room, in one piece; otherwise a batch's worth.
    fn make_room(&mut self) {
        let input = &mut self.connection.input;
        let spare = input.capacity() - input.len();
        if self.missing > spare {
            input.reserve(self.missing.max(READ_BYTES_MIN));
        } else if spare < READ_BYTES_MIN && self.missing == 0 {
            input.reserve(self.settings.batch_bytes.max(READ_BYTES_MIN));
        }
    }

    /// Finds the whole messages that have arrived, and notes what they say of our position.
    fn scan(&mut self) -> Result<(), Error> {
        loop {
            match framing::first(&self.connection.input[self.scanned..])? {
                Found::CopyData(message, length) => {
                    if framing::copy_data(&mut self.standby, message, &mut self.answer)? {
                        self.is_waiting = true;
                    }
                    self.scanned += length;
                    if !self.standby.in_transaction() {
                        self.ended = self.scanned;
                    }
                }
                Found::Control => {
                    self.next = Next::Control;
                    break;
                }
                Found::Part(missing) => {
                    if missing > 0 {
                        self.missing = missing;
                    }
                    break;
                }
            }
        }
        if !self.is_waiting {
            self.connection.input.advance(self.scanned);
            (self.scanned, self.ended) = (0, 0);
        }
        let received = self.standby.received().get();
        self.positions.received.store(received, Ordering::Relaxed);
        self.positions.head.fetch_max(received, Ordering::Relaxed);
        let (owed, told) = self.standby.promised();
        self.positions.owed.store(owed.get(), Ordering::Release);
        self.positions.told.store(told.get(), Ordering::Release);
        Ok(())
    }

    fn take_batch(&mut self) -> Batch {
        // What was begun follows with its end, unless it is too large for that.
        let cut = self.ended > 0 && self.next == Next::Stream;
        let length = if cut { self.ended } else { self.scanned };
        let input = &mut self.connection.input;
        let bytes = if length <= COPIED_BYTES_MAX {
            let bytes = Bytes::copy_from_slice(&input[..length]);
            input.advance(length);
            bytes
        } else {
            let bytes = input.split_to(length).freeze();
            if length > 4 * self.settings.batch_bytes {
                // Or the rest would keep the memory of a large row as long as the stream lasts.
                *input = BytesMut::from(&input[..]);
            }
            bytes
        };
        self.parted = self.standby.in_transaction() && !cut;
        (self.scanned, self.ended) = (self.scanned - length, 0);
        self.is_waiting = self.scanned > 0;
        let now = Instant::now();
        self.traffic |= now.saturating_duration_since(self.handed_over) < BUSY;
        self.handed_over = now;
        Batch { bytes }
    }

    /// What the server sends beside the stream: notices, and why and that it ends.
    async fn control_message(&mut self) -> Result<(), Error> {
        let input = &mut self.connection.input;
        let whole = frame_header(input)?.filter(|(_, length)| input.len() > *length);
        let Some((tag, length)) = whole else {
            return Err(lost(io::ErrorKind::UnexpectedEof.into()));
        };
        let message = input.split_to(length + 1);
        match tag {
            b'N' | b'S' => {
                if tag == b'N' {
                    self.note(&ServerError::parse(&message[5..])?);
                }
                self.next = Next::Stream;
                self.scan()
            }
            b'E' => {
                let error = ServerError::parse(&message[5..])?;
                debug!(%error, "the server broke the stream off");
                let connection = &mut self.connection;
                let settings = &self.settings;
                let post_mortem = async move {
                    // The rest of the stream; the connection can then be asked what happened.
                    if !error.code.starts_with("57P") {
                        connection.answer().await.ok();
                    }
                    stream_error(connection, settings, error).await
                };
                Err(tokio::time::timeout(POST_MORTEM_TIMEOUT, post_mortem)
                    .await
                    .unwrap_or_else(|_elapsed| lost(io::ErrorKind::TimedOut.into())))
            }
            b'c' | b'C' | b'Z' => Err(lost(io::Error::other("the server ended the stream"))),
            tag => Err(unexpected(tag)),
        }
    }

    /// From version 18 the server passes over a publication that did not exist at this place in the
    /// log, and all it says is a warning.
    fn note(&self, notice: &ServerError) {
        if notice.code == PUBLICATION_SKIPPED
            && super::slot::names_messages(&self.settings, &notice.message)
        {
            // What was stored before somebody made it is nobody's: no gap.
            debug!(%notice, "the publication of messages did not exist at this place");
        } else if notice.code == PUBLICATION_SKIPPED {
            warn!(%notice, "the server left changes out");
            self.positions.publication_skipped.store(true, Ordering::Relaxed);
        } else {
            debug!(%notice, "the server has something to say");
        }
    }

    /// Moves the slot, keeps the server assured that we live, and checks that it does; or, while
    /// the caller takes nothing and so nothing is read, that this does not last.
    async fn tick(&mut self, stalled_since: Option<Instant>) -> Result<(), Error> {
        let timeout = self.settings.sender_timeout() * SILENT_TIMEOUTS_MAX;
        if let Some(since) = stalled_since {
            // The server may be shutting down, which we cannot see behind the data, and it waits
            // for us as long as we answer. What was not published is sent again.
            if since.elapsed() >= Duration::from_millis(self.settings.stall_timeout_ms) {
                let stalled = "nothing was taken from the stream for too long";
                return Err(lost(io::Error::new(io::ErrorKind::TimedOut, stalled)));
            }
        } else if self.heard.elapsed() >= timeout {
            self.read_available().await?;
            if self.heard.elapsed() >= timeout && self.next == Next::Stream {
                let silent = format!("the server was silent for {} ms", timeout.as_millis());
                return Err(lost(io::Error::new(io::ErrorKind::TimedOut, silent)));
            }
        }
        self.advance().await?;
        if self.status_sent.elapsed() >= self.status_interval() {
            // The server speaks up by itself only when it does not hear from us.
            let ask = stalled_since.is_none() && self.heard.elapsed() >= self.status_interval();
            self.send_status(None, ask).await?;
        }
        Ok(())
    }

    /// Tells the slot how far it may move: the position once, then zero again (see `standby`).
    async fn advance(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        let published = Lsn::new(self.positions.published.load(Ordering::Relaxed));
        self.standby.publish(published, now);
        self.standby.shed(self.positions.shedding.load(Ordering::Relaxed));
        if let Some(flush) = self.standby.advance(now) {
            kill::point(kill::Point::BeforeAcknowledge);
            self.send_status(Some(flush), false).await?;
            self.send_status(None, false).await?;
            kill::point(kill::Point::AfterAcknowledge);
        }
        let flushed = self.standby.flushed().get();
        self.positions.flushed.store(flushed, Ordering::Relaxed);
        self.positions.settled.store(self.standby.settled().get(), Ordering::Relaxed);
        Ok(())
    }

    async fn send_status(&mut self, flush: Option<Lsn>, ask: bool) -> Result<(), Error> {
        let mut message = BytesMut::new();
        frontend::CopyData::new(self.standby.status(flush, ask)).map_err(lost)?.write(&mut message);
        self.send(&message).await?;
        self.status_sent = Instant::now();
        Ok(())
    }

    /// A few bytes; a socket that does not take them is dead.
    async fn send(&mut self, message: &[u8]) -> Result<(), Error> {
        let socket = &mut self.connection.socket;
        let sending = async {
            socket.write_all(message).await?;
            socket.flush().await
        };
        match tokio::time::timeout(self.settings.sender_timeout(), sending).await {
            Ok(sent) => sent.map_err(lost),
            Err(_elapsed) => Err(lost(io::ErrorKind::TimedOut.into())),
        }
    }

    /// The last status, the end of the stream, and the end of the connection; then whatever the
    /// server still sends until it closes.
    async fn say_goodbye(&mut self) -> Result<(), Error> {
        self.advance().await?;
        let mut message = BytesMut::new();
        frontend::copy_done(&mut message);
        frontend::terminate(&mut message);
        self.send(&message).await?;
        let mut discarded = vec![0; 64 * 1024];
        let discarding = poll_fn(|context| {
            loop {
                let mut buffer = ReadBuf::new(&mut discarded);
                let socket = Pin::new(&mut self.connection.socket);
                match socket.poll_read(context, &mut buffer) {
                    Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                    Poll::Ready(_end) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        });
        tokio::time::timeout(super::GOODBYE_TIMEOUT, discarding).await.ok();
        Ok(())
    }
}

const fn shortest_pause(socket: &Socket) -> Duration {
    match socket {
        Socket::Tcp(_) | Socket::Tls(_) => LINGER_TCP,
        Socket::Unix(_) => LINGER_UNIX,
    }
}

/// The pause after one that gathered this many bytes.
fn next_pause(socket: &Socket, pause: Duration, gathered: usize) -> Duration {
    let shortest = shortest_pause(socket);
    let milliseconds = usize::try_from(pause.as_millis()).unwrap_or(usize::MAX);
    let backlog = gathered >= BACKLOG_BYTES.saturating_mul(milliseconds);
    match socket {
        Socket::Tcp(_) | Socket::Tls(_) if backlog => (pause * 2).min(LINGER_BACKLOG),
        Socket::Tcp(_) | Socket::Tls(_) | Socket::Unix(_) => shortest,
    }
}
