//! The feed: read → gate → match → authorise → publish → acknowledge, in commit order.
//!
//! In:     the write-ahead log, the catalog, the authoriser's answers, the hub's audiences.
//! Out:    frames in the hub; positions acknowledged to the slot once everything up to them is out.
//! Never:  a change published unchecked, or before other sessions can see it; a commit
//!         acknowledged before it was published; a change dropped because a database did not
//!         answer (it is held and asked again).

mod course;
mod decide;
mod declarations;
mod declared;
mod domain;
mod filters;
mod frames;
mod guard;
mod history;
mod lookups;
mod memory;
mod messages;
mod publish;
mod reader;
mod replay;
mod watches;
mod written;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::config;
use crate::cursor::{Cursor, Epoch, Place};
use crate::db::Login;
use crate::kill;
use crate::lsn::Lsn;
use crate::mapping::Rules;
use crate::telemetry;
use crate::wal::{self, Batch, Format, Identity, WalStream};

pub use declarations::Declarations;
pub use filters::Filters;
pub use guard::{Budget, CATALOG_AGE_MUCH, Pressure, SlotState};
pub use history::History;
pub use lookups::Lookups;
pub use publish::Publisher;
pub use replay::{Replayer, Replays, Resume};
pub use watches::Watches;
pub use written::{Write, Writes, Written};

use course::Course;
use history::Read;
use memory::Memory;
use reader::{Reader, Segment};

/// Waits between attempts to connect: the first, and what doubling ends at.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Waits between attempts while only a person can help, and while somebody else reads the slot:
/// that often it is not too much, and whoever is gone is followed within two seconds.
const RETRY_SLOWLY: Duration = Duration::from_secs(1);

/// Between looks at how far the feed came: the first, and what doubling ends at.
const PASSED: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));

/// What clients are told when the log does not continue where it ended.
const GAP: &str = "Some changes were lost: the replication slot does not continue where it ended. Fetch the data again.";

/// How long the sockets have to take that in before they are closed.
const NOTICE_GRACE: Duration = Duration::from_millis(250);

/// Tables that one connection may describe. It says a definition once, so none can be forgotten
/// but all: beyond this a new connection is opened.
const RELATIONS_MAX: usize = 100_000;

/// What clients are told when changes of published tables are not in the stream.
const LEFT_OUT: &str = "Some changes were lost: a publication did not exist when they were made. Fetch the data again.";

/// How often the publications are looked for, beside what the server says of them: servers from
/// version 18 on leave changes out without an error.
const PUBLICATIONS_INTERVAL: Duration = Duration::from_mins(1);

/// How often the stream is asked whether the server left something out.
const STREAM_INTERVAL: Duration = Duration::from_millis(500);

/// Why the feed ended. Whatever can heal was waited for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log cannot be read: a person must act.
    #[error("the write-ahead log cannot be read")]
    Wal(#[from] wal::Error),
    /// A bug here or an unknown server version: stop, never retry.
    #[error("the write-ahead log was not understood")]
    Stream(#[from] reader::Error),
}

/// What other parts may know of the feed at any time.
#[derive(Debug, Default)]
pub struct Status {
    /// Attached to the slot and reading.
    pub attached: AtomicBool,
    /// A batch is held because Postgres did not answer.
    pub held: AtomicBool,
    /// The server did not let the replication login in, and nobody has seen to that since.
    pub refused: AtomicBool,
    /// The server answered when it was last asked how it is.
    pub answers: AtomicBool,
    /// How often tables, types or functions may have changed: counted once such a commit can be
    /// seen by new snapshots, and before anything of it, or after it, is published.
    pub catalog_changes: AtomicU64,
    /// Wakes whoever waits for one more.
    catalog_change: Notify,
    /// End of the last published commit.
    published: AtomicU64,
    /// Everything up to there was published, and new snapshots see it.
    cursor: Mutex<Option<Cursor>>,
    /// End of the server's log, when it was last asked.
    current: AtomicU64,
    /// The positions of the stream of now.
    progress: Mutex<Option<wal::Progress>>,
    /// How it stands with the slot, and the sentence about it.
    slot: Mutex<(SlotState, String)>,
    /// What opening the stream waits for.
    opening: wal::Opening,
    /// The slot keeps so much WAL that nothing may be kept for convenience.
    shedding: AtomicBool,
    /// The slot keeps too much WAL and is to be given up.
    give_up: watch::Sender<bool>,
    /// A publication that must exist was not found: look at once.
    look_for_publications: Notify,
    /// What is declared where the log was read to.
    rules: Mutex<Rules>,
}

impl Status {
    fn declared(&self, rules: &Rules) {
        let mut known = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.is(rules) {
            *known = rules.clone();
        }
    }

    /// Whether changes of some table are told in private rooms of this topic (without `realtime:`).
    pub fn maps(&self, topic: &str) -> bool {
        let rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner).clone();
        rules.tell(topic)
    }

    /// How it stands with the slot, and in a sentence why it is not read; empty while it is.
    pub fn slot(&self) -> (SlotState, String) {
        if let Some(blockers) = self.opening.blockers() {
            let what = format!("creating the slot waits for open transactions{blockers}");
            return (SlotState::WaitingForSnapshot, what);
        }
        self.slot.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_slot(&self, state: SlotState, why: String) {
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = (state, why);
    }

    /// Lets the replay window go while the server's disk matters more.
    pub fn shed(&self, shedding: bool) {
        self.shedding.store(shedding, Ordering::Relaxed);
        let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(progress) = progress.as_ref() {
            progress.shed(shedding);
        }
    }

    /// Has the slot given up, or not any more. The feed looks again before it drops it.
    pub fn give_up(&self, wanted: bool) {
        self.give_up.send_if_modified(|now| std::mem::replace(now, wanted) != wanted);
    }

    /// A publication that must exist was not found.
    pub fn misses_publication(&self) {
        self.look_for_publications.notify_one();
    }

    async fn is_to_be_given_up(&self) {
        let mut wanted = self.give_up.subscribe();
        // Whoever holds the sender is who waits.
        let _ = wanted.wait_for(|wanted| *wanted).await;
    }

    fn follow(&self, progress: &wal::Progress) {
        let mut current = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.shed(self.shedding.load(Ordering::Relaxed));
        *current = Some(progress.clone());
    }

    /// Returns once everything that committed before this place in the log was published, or
    /// concerns nobody.
    pub async fn passed(&self, lsn: Lsn) {
        let is_past = || {
            let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
            progress.as_ref().is_some_and(|progress| progress.is_past(lsn))
        };
        let mut pause = PASSED.0;
        while !is_past() {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PASSED.1);
        }
    }

    /// How far the feed came: whoever reads the database after this call finds everything up to
    /// there. None before the first connection.
    pub fn cursor(&self) -> Option<Cursor> {
        *self.cursor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn came_to(&self, cursor: Cursor) {
        *self.cursor.lock().unwrap_or_else(PoisonError::into_inner) = Some(cursor);
    }

    /// Counts a change of the catalog.
    fn note_catalog_change(&self) {
        self.catalog_changes.fetch_add(1, Ordering::Release);
        self.catalog_change.notify_waiters();
    }

    fn changes_of_catalog(&self) -> u64 {
        self.catalog_changes.load(Ordering::Acquire)
    }

    /// Returns once there were more changes of the catalog than these.
    async fn catalog_changed(&self, changes: u64) {
        loop {
            // Made before it is looked: nothing that comes in between is missed.
            let more = self.catalog_change.notified();
            if self.changes_of_catalog() != changes {
                return;
            }
            more.await;
        }
    }

    /// Takes note of where the server's log ends.
    pub fn seen(&self, current_lsn: u64) {
        self.current.store(current_lsn, Ordering::Relaxed);
    }

    /// Log that may hold changes still to be published, in bytes.
    pub fn lag_bytes(&self) -> u64 {
        let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        // Where there is nothing to publish, the slot follows the log by itself.
        let flushed = progress.as_ref().map_or(0, |progress| progress.position().flushed.get());
        let published = self.published.load(Ordering::Relaxed).max(flushed);
        self.current.load(Ordering::Relaxed).saturating_sub(published)
    }
}

/// Everything the feed stands on.
#[derive(Debug)]
pub struct Feed {
    /// Login with REPLICATION.
    pub login: Login,
    /// Slot and batches.
    pub replication: config::Replication,
    /// What is made of changes, and to whom it goes.
    pub publisher: Publisher,
    /// What was read last, for whoever comes back.
    pub history: Arc<History>,
    /// For health and metrics.
    pub status: Arc<Status>,
    /// Becomes true once changes committed from now on are certain to be delivered.
    pub ready: watch::Sender<bool>,
    /// Whoever waits for a write of his.
    pub writes: Writes,
    /// Called when changes are lost for good: every subscriber has to read its rows again.
    pub gap: Gap,
}

/// See [`Feed::gap`].
pub struct Gap(pub Box<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gap")
    }
}

impl Feed {
    /// Publishes until `shutdown`, reconnecting as often as it takes.
    ///
    /// # Errors
    /// Only what no waiting heals; nothing after it was acknowledged.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let mut course = Course::default();
        let mut wait = RECONNECT.0;
        loop {
            let opened = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                opened = WalStream::open_as(
                    &self.login,
                    &self.replication,
                    course.committed,
                    (course.format, !course.without_messages),
                    &self.status.opening,
                ) => opened,
            };
            let error = match opened {
                Ok(mut wal) => {
                    let (attached, progress) = (Instant::now(), wal.progress());
                    let committed = course.committed;
                    self.status.follow(&progress);
                    let ended = tokio::select! {
                        ended = self.attached(&mut wal, &mut course, &shutdown) => ended,
                        () = self.status.is_to_be_given_up() => Ok(Ended::GiveUp),
                    };
                    self.status.attached.store(false, Ordering::Relaxed);
                    self.status.held.store(false, Ordering::Relaxed);
                    wal.close().await;
                    course.flushed = progress.position().flushed;
                    if attached.elapsed() > RECONNECT.1 || course.committed > committed {
                        wait = RECONNECT.0;
                    }
                    match ended {
                        Ok(Ended::Shutdown) => return Ok(()),
                        Ok(Ended::Reopen) => continue,
                        Ok(Ended::GiveUp) => {
                            self.give_up(&mut course).await;
                            continue;
                        }
                        Err(Error::Wal(error)) => error,
                        Err(error @ Error::Stream(_)) => return Err(error),
                    }
                }
                Err(error) => error,
            };
            let state = state_after(&error);
            let repeated = self.status.slot().0 == state;
            self.status.set_slot(state, error.to_string());
            if matches!(error, wal::Error::LoginRefused(_)) {
                self.status.refused.store(true, Ordering::Relaxed);
            }
            match error {
                wal::Error::Disconnected(_)
                | wal::Error::SlotBusy { .. }
                | wal::Error::SlotWedged { .. }
                | wal::Error::PublicationMissing { .. } => {}
                wal::Error::MessagesMissing => course.without_messages = true,
                // Both were let in, or made, before: it is made again, or put right.
                wal::Error::LoginRefused(_) | wal::Error::SlotWaits { .. }
                    if course.live_from.is_some() || course.given_up.is_some() => {}
                wal::Error::RowTooLarge(_) if course.format == Format::Text => {
                    course.format = Format::Binary;
                }
                // The new slot is a gap, told when it is attached.
                wal::Error::SlotLost { .. } if self.clear_lost_slot(&mut course).await => {}
                wal::Error::RowTooLarge(_)
                | wal::Error::SlotLost { .. }
                | wal::Error::SlotWaits { .. }
                | wal::Error::LoginRefused(_)
                | wal::Error::Refused { .. }
                | wal::Error::Malformed(_) => return Err(error.into()),
            }
            if state == SlotState::Standby {
                wait = wait.min(RETRY_SLOWLY);
            } else if [SlotState::PublicationMissing, SlotState::Wedged].contains(&state) {
                wait = RETRY_SLOWLY;
            }
            let (code, text) = (state.code(), telemetry::chain(&error));
            let retry_in_ms = wait.as_millis();
            if state == SlotState::Wedged && !repeated {
                error!(
                    code,
                    error = text,
                    retry_in_ms,
                    "a person must act, or the WAL budget will"
                );
            } else {
                warn!(code, error = text, retry_in_ms, "no write-ahead log for now");
            }
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
                // While another instance reads it, it is that one's to give up.
                () = self.status.is_to_be_given_up(), if state != SlotState::Standby => {
                    self.give_up(&mut course).await;
                }
            }
            wait = (wait * 2).min(RECONNECT.1);
        }
    }

    /// Clears the way for a new slot, where the old one certainly holds nothing any more. False
    /// when it is something else that is wrong with it.
    async fn clear_lost_slot(&self, course: &mut Course) -> bool {
        let name = &self.replication.slot;
        match wal::inspect(&self.login, name).await {
            Ok(None) => true,
            Ok(Some(slot)) if slot.wal_status.as_deref() == Some("lost") => {
                match wal::drop_slot(&self.login, name).await {
                    Ok(_) => {
                        warn!(slot = name, "the lost slot was dropped; a new one follows");
                        course.given_up = Some(slot.loss());
                    }
                    Err(error) => {
                        warn!(error = telemetry::chain(&error), "the lost slot was not dropped");
                    }
                }
                true
            }
            Ok(Some(_)) => false,
            // Nobody knows; the next attempt may.
            Err(error) => matches!(error, wal::Error::Disconnected(_)),
        }
    }

    /// Drops the slot because it keeps too much WAL, if it still does and nobody else reads it.
    async fn give_up(&self, course: &mut Course) {
        let name = &self.replication.slot;
        let budget_bytes = self.replication.wal_budget_bytes;
        self.status.give_up(false);
        let found = match wal::inspect(&self.login, name).await {
            Ok(Some(slot)) => slot,
            Ok(None) => return,
            Err(error) => {
                warn!(error = telemetry::chain(&error), "the slot cannot be looked at");
                return;
            }
        };
        let retained_bytes = found.retained_bytes.unwrap_or(0);
        if retained_bytes < budget_bytes || !found.is_ours(self.login.dbname()) {
            return;
        }
        let code = SlotState::GivingUp.code();
        self.status.set_slot(
            SlotState::GivingUp,
            format!("slot {name} kept {retained_bytes} bytes of WAL and is given up"),
        );
        match wal::drop_slot(&self.login, name).await {
            Ok(_) => {
                error!(
                    code,
                    slot = name,
                    retained_bytes,
                    budget_bytes,
                    "the slot was given up, because it kept more WAL than its budget; what was \
                     not published is lost, and a new slot follows"
                );
                course.given_up = Some(code);
            }
            Err(error) => {
                let error = telemetry::chain(&error);
                error!(
                    code,
                    error,
                    slot = name,
                    retained_bytes,
                    budget_bytes,
                    "the slot keeps more WAL than its budget and was not dropped"
                );
            }
        }
    }

    async fn attached(
        &self,
        wal: &mut WalStream,
        course: &mut Course,
        shutdown: &CancellationToken,
    ) -> Result<Ended, Error> {
        // Without them nothing may be read; the stream is not begun until they are known.
        let rules = declared::at_start(&self.login, wal.identity()).await;
        let rules = rules.map_err(|error| wal::Error::Disconnected(io::Error::other(error)))?;
        let gap = course.attach(wal.identity());
        let live_from = course.live_from.unwrap_or_default();
        let epoch = self.begin_history(wal.identity(), live_from, gap.is_some());
        if let Some(reason) = gap {
            error!(reason, "changes are missing: the slot does not continue what was published");
            metrics::counter!(telemetry::GAPS, telemetry::REASON => reason).increment(1);
            self.publisher.hub.notice_everybody(GAP);
            // A connection that is told to close takes no more words.
            tokio::time::sleep(NOTICE_GRACE).await;
            (self.gap.0)();
        }
        self.status.attached.store(true, Ordering::Relaxed);
        self.status.set_slot(SlotState::Attached, String::new());
        self.status.note_catalog_change();
        self.ready.send_replace(true);
        metrics::counter!(telemetry::WAL_CONNECTS).increment(1);
        let mut reader =
            Reader::new(live_from, course.within, self.publisher.payload_bytes_max).under(rules);
        let mut memory = Memory { epoch, ..Memory::default() };
        // Whatever was cached may have changed while nobody read the log.
        self.publisher.catalog.forget_all();
        self.publisher.catalog.forget_definers();
        self.publisher.authorizer.forget(None);
        self.publisher.hub.forget_tables();
        let look_now = Notify::new();
        let (with_messages, head) = (wal.identity().messages, wal.identity().head);
        if !with_messages && !course.without_messages && self.reads_messages() {
            let publication = &self.replication.messages_publication;
            warn!(publication, "nothing is broadcast from the database: there is no publication");
        }
        let mut looking = std::pin::pin!(
            self.watch_publications(with_messages || course.without_messages, &look_now)
        );
        let mut look = tokio::time::interval(STREAM_INTERVAL);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let batch = tokio::select! {
                () = shutdown.cancelled() => return Ok(Ended::Shutdown),
                found = &mut looking => match found {
                    Found::Missing(publication) => {
                        return Err(wal::Error::PublicationMissing { publication }.into());
                    }
                    Found::Messages => {
                        info!("the publication of messages exists now");
                        return Ok(Ended::Reopen);
                    }
                },
                _ = look.tick() => {
                    self.report_left_out(wal, &look_now);
                    let settled = wal.position().settled;
                    if course.without_messages && settled >= head {
                        // What is before the publication, if it exists, is behind us.
                        course.without_messages = false;
                        course.committed = course.committed.max(settled);
                        return Ok(Ended::Reopen);
                    }
                    continue;
                }
                batch = wal.next_batch() => batch?,
            };
            let segments = self.read(&batch, &mut reader, &mut memory, course)?;
            kill::point(kill::Point::AfterDecode);
            for segment in segments {
                if segment.catalog_changed && !with_messages {
                    look_now.notify_one();
                }
                self.publisher.observe(&segment).await;
                if !segment.is_empty() {
                    tokio::select! {
                        () = shutdown.cancelled() => return Ok(Ended::Shutdown),
                        () = self.publisher.publish(&segment, &mut memory) => {}
                    }
                }
                self.publisher.report_refused(segment.messages_refused, &mut memory);
                for cause in &segment.undeclared {
                    let cause = telemetry::chain(cause);
                    error!(error = cause, "a declaration in the log is not in force");
                }
                for (id, commit, end) in &segment.written {
                    let cursor = Cursor { place: Place::after(*commit), epoch };
                    self.writes.published(id, Written { end: *end, cursor });
                }
                if let Some(last) = segment.last() {
                    course.within = Some(last);
                }
                if let Some(committed) = segment.committed {
                    course.committed = committed;
                    self.status.published.store(committed.get(), Ordering::Relaxed);
                    wal.acknowledge(committed);
                    if course.format == Format::Binary {
                        // The row that could not be printed is behind us.
                        course.format = Format::Text;
                        return Ok(Ended::Reopen);
                    }
                }
            }
            self.status.came_to(Cursor { place: reader.at(), epoch });
            if reader.relations() > RELATIONS_MAX {
                // The server describes again what is still used.
                return Ok(Ended::Reopen);
            }
        }
    }
}

impl Feed {
    /// Returns once a publication is missing that must exist, or the one of messages exists while
    /// it is not `known`.
    async fn watch_publications(&self, known: bool, look_now: &Notify) -> Found {
        loop {
            tokio::select! {
                () = tokio::time::sleep(PUBLICATIONS_INTERVAL) => {}
                () = look_now.notified() => {}
                () = self.status.look_for_publications.notified() => {}
            }
            match wal::look_for_publications(&self.login, &self.replication).await {
                Ok(wal::Publications { missing: Some(publication), .. }) => {
                    return Found::Missing(publication);
                }
                Ok(wal::Publications { messages: true, .. }) if !known && self.reads_messages() => {
                    return Found::Messages;
                }
                Ok(_) => {}
                Err(error) => debug!(%error, "the publications cannot be looked for"),
            }
        }
    }

    /// Says to the history, and to whoever joins, where the log is read from now.
    fn begin_history(&self, identity: &Identity, live_from: Lsn, anew: bool) -> Epoch {
        let epoch = Epoch::of(&identity.system_id, identity.timeline);
        let (begins, horizon) = (Place::before(identity.start), identity.catalog_xmin);
        self.history.attach(epoch, begins, live_from, horizon, anew);
        self.publisher.catalog.begin_after(horizon);
        if anew || self.status.cursor().is_none() {
            self.status.came_to(Cursor { place: begins, epoch });
        }
        // A new slot may begin later than the log ended when it was asked for.
        self.publisher.hub.read_at(epoch, begins.max(Place::before(live_from)), anew);
        epoch
    }

    /// Reads a batch, and takes it into the history. Whoever joins meanwhile is not shown anything
    /// of it.
    fn read(
        &self,
        batch: &Batch,
        reader: &mut Reader,
        memory: &mut Memory,
        course: &Course,
    ) -> Result<Vec<Segment>, reader::Error> {
        let decoded = reader.changes_decoded;
        let one_transaction = course.format == Format::Binary;
        let segments = self.publisher.hub.while_reading(|| {
            let start = reader.start();
            let segments = self.publisher.read(batch, reader, memory, one_transaction);
            let (ends, committed_at) = (reader.at(), reader.committed_at());
            if let Ok(segments) = &segments
                && !batch.is_empty()
            {
                let defined = segments.iter().flat_map(|segment| &segment.redefined).cloned();
                let definers = segments.iter().flat_map(|segment| &segment.definers).copied();
                let (batch, defined, definers) =
                    (batch.clone(), defined.collect(), definers.collect());
                kill::point(kill::Point::BeforeHistory);
                self.history.push(Read {
                    batch,
                    start,
                    defined,
                    definers,
                    one_transaction,
                    ends,
                    committed_at,
                });
            }
            (segments, ends)
        });
        self.status.declared(reader.rules());
        let decoded = reader.changes_decoded - decoded;
        metrics::counter!(telemetry::CHANGES).increment(decoded);
        segments
    }

    fn reads_messages(&self) -> bool {
        !self.replication.messages_publication.is_empty()
    }

    /// Tells everybody when the server left changes out, and has the publications looked for.
    fn report_left_out(&self, wal: &WalStream, look_now: &Notify) {
        if wal.publication_skipped() {
            let reason = "publication_missing";
            error!(reason, "changes are missing: a publication did not exist at their place");
            metrics::counter!(telemetry::GAPS, telemetry::REASON => reason).increment(1);
            self.history.interrupt();
            self.publisher.hub.notice_everybody(LEFT_OUT);
            (self.gap.0)();
            look_now.notify_one();
        }
    }
}

/// What a look at the publications found.
enum Found {
    /// One that must exist does not.
    Missing(String),
    /// The one of messages exists now.
    Messages,
}

/// Why an attached stream was left without an error.
enum Ended {
    Shutdown,
    /// Go on over a new connection: what the server could not print is behind, or it described
    /// more tables than are kept.
    Reopen,
    /// The slot keeps too much WAL.
    GiveUp,
}

/// What an error says of the slot.
fn state_after(error: &wal::Error) -> SlotState {
    match error {
        wal::Error::Disconnected(_)
        | wal::Error::MessagesMissing
        | wal::Error::Refused { .. }
        | wal::Error::Malformed(_) => SlotState::Unreachable,
        wal::Error::SlotBusy { .. } => SlotState::Standby,
        wal::Error::SlotLost { .. } => SlotState::Lost,
        wal::Error::SlotWedged { .. } => SlotState::Wedged,
        wal::Error::SlotWaits { .. } => SlotState::WaitingForSnapshot,
        wal::Error::PublicationMissing { .. } => SlotState::PublicationMissing,
        wal::Error::LoginRefused(_) => SlotState::LoginRefused,
        wal::Error::RowTooLarge(_) => SlotState::RowTooLarge,
    }
}
