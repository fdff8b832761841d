//! The write-ahead log as a stream of batches, through one logical replication slot.
//!
//! In:     a [`Login`] that may replicate, the slot and its publications, where to resume.
//! Out:    [`WalStream`]: batches of messages in commit order, or the [`Error`] that says what the
//!         caller does next.
//! Never:  hidden reconnects; a confirmed position that the caller has not published; a lost slot
//!         replaced silently.
//! Source: postgresql.org/docs/17/protocol-replication.html

mod connection;
mod framing;
pub mod pgoutput;
mod reader;
mod slot;
mod standby;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

use self::connection::{Canceller, Connection, QueryError};
use self::pgoutput::{DecodeError, Message};
use self::reader::Reader;
use self::standby::Standby;
use crate::config::Replication;
use crate::db::Login;
use crate::lsn::Lsn;

pub use self::connection::ServerError;
pub use self::framing::Survey;
pub use self::slot::{
    Identity, Publications, Slot, drop_slot, inspect, look_for_publications, replace,
};

/// How long the end of a stream may take: a status update and a goodbye, one round trip.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why there is no stream, or no more of it. Each variant is one thing the caller does next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Open again, with backoff; the slot keeps our place.
    #[error("the replication connection is lost")]
    Disconnected(#[source] io::Error),
    /// Wait for the other reader to end, then open again and take over.
    #[error("slot {slot} is being read by another connection{}", .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    SlotBusy {
        /// Its name.
        slot: String,
        /// The server process that reads it, if it still does.
        pid: Option<i32>,
    },
    /// Changes are gone for good: declare a gap to every subscriber, drop the slot, open again.
    #[error("slot {slot} is lost: {reason}")]
    SlotLost {
        /// Its name.
        slot: String,
        /// What happened to it.
        reason: String,
    },
    /// The slot stands at a place in the log where a publication did not exist, and cannot get past
    /// it, whatever exists now. Only giving up what it holds helps: a person's decision, or that of
    /// the WAL budget. Do not try faster than once a second.
    #[error(
        "slot {slot} is wedged at {lsn}: a publication did not exist at that place in the log, and the changes behind it cannot be read; `walcast slot replace` gives them up and starts anew"
    )]
    SlotWedged {
        /// Its name.
        slot: String,
        /// The place.
        lsn: Lsn,
    },
    /// The slot could not be created, because transactions were open for too long. Open again;
    /// nothing was left behind.
    #[error(
        "the slot {slot} could not be created within {waited_ms} ms, because transactions were open{blockers}: end them, or raise create_timeout_ms"
    )]
    SlotWaits {
        /// Its name.
        slot: String,
        /// `create_timeout_ms`.
        waited_ms: u64,
        /// Whose they were; empty where it cannot be told.
        blockers: String,
    },
    /// Create the publication as its owner, then open again. Do not try faster than once a second.
    #[error("publication {publication} does not exist: create it with `create publication {}`", slot::quoted(.publication))]
    PublicationMissing {
        /// Its name.
        publication: String,
    },
    /// The publication of messages did not exist at this place in the log. Open again without it,
    /// until everything before now is behind us.
    #[error("the publication of messages does not exist at this place in the log")]
    MessagesMissing,
    /// The server does not let this login in. Make it again when it is one of ours; otherwise a
    /// person must act.
    #[error("the replication login was refused: check its user, password and line in pg_hba.conf")]
    LoginRefused(#[source] Box<ServerError>),
    /// One row is too large for the server to write as text. Open again with [`Format::Binary`],
    /// publish that stretch without its values, and come back with [`Format::Text`].
    #[error("a row is too large for the server to send as text")]
    RowTooLarge(#[source] ServerError),
    /// A person must act; the sentence says how.
    #[error("{problem}")]
    Refused {
        /// What is wrong and what to do.
        problem: String,
        /// What the server said, when it was the server.
        source: Option<Box<ServerError>>,
    },
    /// A bug here or an unknown kind of server: stop, never retry.
    #[error("the server sent what is not the replication protocol")]
    Malformed(#[from] DecodeError),
}

/// How the server writes values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// As text: what everything else here expects.
    #[default]
    Text,
    /// In each type's own binary format: the way past a row that does not fit into text.
    Binary,
}

/// Where the stream is. Positions only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Furthest position received.
    pub received: Lsn,
    /// Furthest position that the server said it had read its log to.
    pub head: Lsn,
    /// What was last confirmed to the slot: the server may remove log before it.
    pub flushed: Lsn,
    /// Everything that committed before this was published, or concerns nobody: a stream may go on
    /// here. Brought up to date with `flushed`.
    pub settled: Lsn,
}

/// The stream's positions, for whoever watches: reading them costs three loads.
#[derive(Debug, Clone)]
pub struct Progress(Arc<Positions>);

#[derive(Debug, Default)]
struct Positions {
    received: AtomicU64,
    head: AtomicU64,
    flushed: AtomicU64,
    settled: AtomicU64,
    /// End of the last commit the caller has published.
    published: AtomicU64,
    /// End of the last commit received; the end of all logs within a transaction.
    owed: AtomicU64,
    /// The server's position when it last told it outside a transaction: what was committed before
    /// was sent. Stored after `owed`, loaded before it.
    told: AtomicU64,
    /// The server passed over a publication since this was last looked at.
    publication_skipped: AtomicBool,
    /// The server's disk matters more than the replay window.
    shedding: AtomicBool,
}

impl Progress {
    /// Where the stream is now.
    pub fn position(&self) -> Position {
        let load = |position: &AtomicU64| Lsn::new(position.load(Ordering::Relaxed));
        Position {
            received: load(&self.0.received),
            head: load(&self.0.head),
            flushed: load(&self.0.flushed),
            settled: load(&self.0.settled),
        }
    }

    /// Lets the replay window go, or keeps it again: the slot then follows what was published.
    pub fn shed(&self, shedding: bool) {
        self.0.shedding.store(shedding, Ordering::Relaxed);
    }

    /// Whether everything that committed before this was published, or concerns nobody.
    pub fn is_past(&self, lsn: Lsn) -> bool {
        let told = self.0.told.load(Ordering::Acquire);
        let owed = self.0.owed.load(Ordering::Acquire);
        let published = self.0.published.load(Ordering::Relaxed);
        published >= lsn.get() || (told >= lsn.get() && published >= owed)
    }
}

/// What opening a stream waits for, for whoever watches.
#[derive(Debug, Clone, Default)]
pub struct Opening(Arc<Mutex<Creating>>);

#[derive(Debug, Default)]
struct Creating {
    /// Whose open transactions it waits for; empty until that is known.
    blockers: Option<String>,
    /// Ends the creation of a slot that is under way.
    canceller: Option<Canceller>,
}

impl Opening {
    /// Whose open transactions the creation of the slot waits for; none while it waits for nobody.
    /// Empty where it cannot be told.
    pub fn blockers(&self) -> Option<String> {
        self.lock().blockers.clone()
    }

    fn begin(&self, canceller: Canceller) {
        *self.lock() = Creating { blockers: None, canceller: Some(canceller) };
    }

    fn waits_for(&self, blockers: &str) {
        self.lock().blockers = Some(blockers.to_owned());
    }

    /// Nothing is being created any more; gives what ends what was.
    fn end(&self) -> Option<Canceller> {
        std::mem::take(&mut *self.lock()).canceller
    }

    fn lock(&self) -> MutexGuard<'_, Creating> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One or more whole protocol messages, contiguous in memory.
#[derive(Debug, Clone)]
pub struct Batch {
    bytes: Bytes,
}

impl Batch {
    /// The logical replication messages in order; keepalives between them are left out. An error
    /// ends them.
    pub fn messages(&self) -> Messages<'_> {
        Messages { rest: &self.bytes }
    }

    /// As a server would send these payloads.
    #[cfg(test)]
    pub(crate) fn of(payloads: &[Vec<u8>]) -> Self {
        let frames = payloads.iter().flat_map(|payload| tests::frame(b'w', 24, payload));
        Self { bytes: frames.collect::<Vec<_>>().into() }
    }

    /// The part as bytes that share this batch's memory. `part` must lie within the batch; one
    /// from elsewhere is copied.
    pub fn slice(&self, part: &[u8]) -> Bytes {
        let start = part.as_ptr().addr().checked_sub(self.bytes.as_ptr().addr());
        let range = start.and_then(|start| Some(start..start.checked_add(part.len())?));
        match range {
            Some(range) if range.end <= self.bytes.len() => self.bytes.slice(range),
            Some(_) | None => Bytes::copy_from_slice(part),
        }
    }

    /// The same in memory of its own, so that keeping it keeps nothing else.
    #[must_use]
    pub fn copied(&self) -> Self {
        Self { bytes: Bytes::copy_from_slice(&self.bytes) }
    }

    /// The whole batch; every value of its messages lies within.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Size in memory, headers included.
    pub fn bytes_len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// Walks the messages of a [`Batch`].
#[derive(Debug, Clone)]
pub struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    /// The payload of the next `XLogData`: one `CopyData` frame less its headers.
    fn payload(&mut self) -> Result<Option<&'a [u8]>, DecodeError> {
        while !self.rest.is_empty() {
            // Tag `d`, length of length and body, kind; for XLogData three 64-bit numbers more.
            let (head, rest) = self.rest.split_first_chunk::<6>().ok_or(DecodeError::Short)?;
            let [_tag, a, b, c, d, kind] = *head;
            let length = usize::try_from(u32::from_be_bytes([a, b, c, d]))
                .ok()
                .and_then(|length| length.checked_sub(5))
                .ok_or(DecodeError::Length)?;
            let (body, rest) = rest.split_at_checked(length).ok_or(DecodeError::Short)?;
            self.rest = rest;
            if kind == b'w' {
                return body.get(24..).ok_or(DecodeError::Short).map(Some);
            }
        }
        Ok(None)
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let message = self.payload().transpose()?.and_then(pgoutput::decode);
        if message.is_err() {
            self.rest = &[];
        }
        Some(message)
    }
}

/// The slot's changes, read ahead by a thread of its own. Dropping it ends the thread, which then
/// says goodbye to the server.
#[derive(Debug)]
pub struct WalStream {
    identity: Identity,
    batches: mpsc::Receiver<Result<Batch, Error>>,
    positions: Arc<Positions>,
    closing: DropGuard,
    /// Resolves when the thread is done.
    ended: oneshot::Receiver<()>,
}

impl WalStream {
    /// Connects, checks everything that could lose changes later, creates the slot when it is
    /// missing, and starts to read at `resume`: the end of the last commit published, or
    /// [`Lsn::ZERO`] for wherever the slot is. [`Identity::start`] tells what came of it. Without
    /// the publication of messages.
    ///
    /// # Errors
    /// Each variant says what to do.
    pub async fn open(login: &Login, settings: &Replication, resume: Lsn) -> Result<Self, Error> {
        let opening = Opening::default();
        Self::open_as(login, settings, resume, (Format::Text, false), &opening).await
    }

    /// As [`WalStream::open`], with values in the given format, and, where `true`, with the
    /// publication of messages, if it exists. `opening` tells what is waited for. Dropping this
    /// future takes a slot back that is only being made.
    ///
    /// # Errors
    /// Each variant says what to do.
    pub async fn open_as(
        login: &Login,
        settings: &Replication,
        resume: Lsn,
        (format, messages): (Format, bool),
        opening: &Opening,
    ) -> Result<Self, Error> {
        let waits = opening.clone();
        let (sender, batches) = mpsc::channel(settings.batches_ahead.max(1));
        let (opened, opening) = oneshot::channel();
        let (ending, ended) = oneshot::channel();
        let positions = Arc::new(Positions::default());
        let token = CancellationToken::new();
        let closing = token.clone().drop_guard();
        let (login, settings) = (login.clone(), settings.clone());
        let reader_positions = Arc::clone(&positions);
        let reading = async move {
            let as_asked = (format, messages);
            let attaching = attach(&login, &settings, resume, as_asked, reader_positions, &waits);
            let attached = token.run_until_cancelled(attaching).await;
            let creating = waits.end();
            let (identity, reader) = match attached {
                None => {
                    // The caller gave up. The server would go on waiting, and leave a slot behind
                    // that nobody reads.
                    if let Some(canceller) = creating {
                        canceller.cancel().await.ok();
                    }
                    return;
                }
                Some(Ok(attached)) => attached,
                Some(Err(error)) => {
                    opened.send(Err(error)).ok();
                    return;
                }
            };
            if opened.send(Ok(identity)).is_ok() {
                reader.run(sender, token).await;
            }
        };
        // Its own thread and event loop, because it sleeps in the middle (see `reader`), and so
        // that the server hears of us on time whatever the rest of the process does.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::Disconnected)?;
        thread::Builder::new()
            .name("walcast-wal".into())
            .spawn(move || {
                runtime.block_on(reading);
                runtime.shutdown_background();
                drop(ending);
            })
            .map_err(Error::Disconnected)?;
        match opening.await {
            Ok(opened) => Ok(Self { identity: opened?, batches, positions, closing, ended }),
            Err(_ended) => Err(Error::Disconnected(io::ErrorKind::Interrupted.into())),
        }
    }

    /// Which server and history this is, and where the stream started.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The next batch, as soon as there is one. Safe to cancel: nothing is lost.
    ///
    /// # Errors
    /// What ended the stream; nothing after the last batch was received.
    pub async fn next_batch(&mut self) -> Result<Batch, Error> {
        match self.batches.recv().await {
            Some(batch) => batch,
            None => Err(Error::Disconnected(io::ErrorKind::NotConnected.into())),
        }
    }

    /// Everything up to the end of this commit ([`pgoutput::Commit::end_lsn`]) is published. The
    /// slot follows after the replay window. Never blocks; positions that go back are ignored.
    pub fn acknowledge(&self, published: Lsn) {
        self.positions.published.fetch_max(published.get(), Ordering::Relaxed);
    }

    /// Whether, since the last call, the server left changes out because a publication did not exist
    /// at their place in the log (version 18 and later; before, the stream ends in an error).
    pub fn publication_skipped(&self) -> bool {
        self.positions.publication_skipped.swap(false, Ordering::Relaxed)
    }

    /// Where the stream is now.
    pub fn position(&self) -> Position {
        self.progress().position()
    }

    /// A handle on the positions that outlives the stream.
    pub fn progress(&self) -> Progress {
        Progress(Arc::clone(&self.positions))
    }

    /// Tells the server what was acknowledged and frees the slot, in bounded time.
    pub async fn close(self) {
        drop((self.closing, self.batches));
        if tokio::time::timeout(2 * GOODBYE_TIMEOUT, self.ended).await.is_err() {
            warn!("the server did not take our goodbye in time");
        }
    }
}

/// Connects, checks, makes the slot where it is missing, and starts the stream.
async fn attach(
    login: &Login,
    settings: &Replication,
    resume: Lsn,
    (format, messages): (Format, bool),
    positions: Arc<Positions>,
    opening: &Opening,
) -> Result<(Identity, Reader), Error> {
    let mut connection = Connection::open(login, settings.sender_timeout()).await?;
    let mut identity = slot::identify(&mut connection).await?;
    // Publication first, slot second: see `slot::check_publications`.
    slot::check_publications(&mut connection, &settings.publications).await?;
    if messages && !settings.messages_publication.is_empty() {
        let name = &settings.messages_publication;
        identity.messages = slot::has_publication(&mut connection, name).await?;
    }
    let mut found = slot::find(&mut connection, &settings.slot).await?;
    if found.is_none() {
        slot::create(&mut connection, login, settings, identity.server_version, opening).await?;
        identity.created_slot = true;
        found = slot::find(&mut connection, &settings.slot).await?;
    }
    let found = found.ok_or_else(|| Error::SlotLost {
        slot: settings.slot.clone(),
        reason: "it was dropped as soon as it was created".into(),
    })?;
    slot::check(&found, login.dbname())?;
    slot::keep_failover(&mut connection, settings, &found).await?;
    let confirmed = found.confirmed_flush_lsn.unwrap_or(Lsn::ZERO);
    identity.start = start_position(resume, confirmed, identity.head);
    identity.catalog_xmin = found.catalog_xmin;

    let binary = matches!(format, Format::Binary);
    let command = slot::start_command(settings, identity.start, binary, identity.messages);
    match connection.start(&command).await {
        Ok(()) => {}
        Err(QueryError::Server(error)) => {
            return Err(slot::stream_error(&mut connection, settings, error).await);
        }
        Err(QueryError::Connection(error)) => return Err(error),
    }
    info!(
        slot = %settings.slot, start = %identity.start, head = %identity.head,
        retained_bytes = found.retained_bytes, "slot attached"
    );
    let standby = Standby::new(
        confirmed,
        identity.start,
        Duration::from_millis(settings.replay_window_ms),
        settings.replay_window(),
        Instant::now(),
    );
    positions.received.store(identity.start.get(), Ordering::Relaxed);
    positions.head.store(identity.head.get(), Ordering::Relaxed);
    positions.flushed.store(confirmed.get(), Ordering::Relaxed);
    positions.settled.store(identity.start.get(), Ordering::Relaxed);
    positions.published.store(identity.start.get(), Ordering::Relaxed);
    Ok((identity, Reader::new(connection, settings, standby, positions)))
}

/// A position that the slot has passed cannot be had; one that the log has not reached is of
/// another history, and the server would stay silent until it is reached.
fn start_position(resume: Lsn, confirmed: Lsn, head: Lsn) -> Lsn {
    if resume > head {
        warn!(%resume, %head, "the server's log ends before the position to resume at");
        return confirmed;
    }
    resume.max(confirmed)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn frame(kind: u8, header: usize, payload: &[u8]) -> Vec<u8> {
        let body = [&[kind][..], &vec![0; header], payload].concat();
        let length = u32::try_from(body.len() + 4).unwrap();
        [&b"d"[..], &length.to_be_bytes(), &body].concat()
    }

    #[test]
    fn keepalives_in_a_batch_are_passed_over() {
        let origin = b"O\0\0\0\0\0\0\0\x07there\0";
        let bytes = [frame(b'k', 17, b""), frame(b'w', 24, origin), frame(b'k', 17, b"")].concat();
        let batch = Batch { bytes: bytes.into() };
        let messages: Vec<_> = batch.messages().map(Result::unwrap).collect();
        assert!(matches!(&messages[..], [Message::Origin(origin)] if origin.name == "there"));
    }

    #[test]
    fn a_cut_batch_ends_in_an_error() {
        let whole = frame(b'w', 24, b"O\0\0\0\0\0\0\0\x07there\0");
        for length in 1..whole.len() {
            let batch = Batch { bytes: Bytes::copy_from_slice(&whole[..length]) };
            let messages: Vec<_> = batch.messages().collect();
            assert!(matches!(messages[..], [Err(_)]), "{length}: {messages:?}");
        }
    }

    #[test]
    fn a_part_shares_the_memory_of_its_batch() {
        let batch = Batch { bytes: Bytes::from(vec![1, 2, 3, 4]) };
        let part = batch.slice(&batch.bytes()[1..3]);
        assert_eq!(part.as_ptr(), batch.bytes()[1..].as_ptr());
        assert_eq!(&batch.slice(b"foreign")[..], b"foreign");
    }

    #[test]
    fn a_stream_never_starts_where_the_server_would_stay_silent() {
        let at = Lsn::new;
        assert_eq!(start_position(Lsn::ZERO, at(10), at(20)), at(10));
        assert_eq!(start_position(at(15), at(10), at(20)), at(15));
        assert_eq!(start_position(at(5), at(10), at(20)), at(10));
        assert_eq!(start_position(at(25), at(10), at(20)), at(10));
    }
}
