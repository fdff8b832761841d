//! The feed: read → gate → match → authorise → publish → acknowledge, in commit order.
//!
//! In:     the write-ahead log, the catalog, the authoriser's answers, the hub's audiences.
//! Out:    frames in the hub; positions acknowledged to the slot once everything up to them is out.
//! Never:  a change published unchecked, or before other sessions can see it; a commit
//!         acknowledged before it was published; a change dropped because a database did not
//!         answer (it is held and asked again).

mod filters;
mod frames;
mod reader;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hashbrown::{HashMap, HashSet};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::auth::rls::{self, Authorizer, Question, Verdict, Visibility};
use crate::catalog::{self, Catalog, QualifiedName, RowAccess, Table};
use crate::change::{Change, ColumnSet, Operation, Relation};
use crate::config;
use crate::db::Login;
use crate::hub::{
    AudienceId, AudienceView, BindingId, Candidate, ClaimsId, Delivery, Hub, Interest, Side,
    Subscription,
};
use crate::lsn::Lsn;
use crate::subscribe::Answer;
use crate::telemetry;
use crate::wal::{self, Format, Identity, WalStream};

pub use filters::Filters;

use frames::{Frames, Rules, Wanted};
use reader::{Definition, Pending, Reader, Segment};

/// Waits between attempts to connect: the first, and what doubling ends at.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Waits between attempts to get an answer about a held batch.
const HELD: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

/// What clients are told when the log does not continue where it ended.
const GAP: &str = "Some changes were lost: the replication slot does not continue where it ended. Fetch the data again.";

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

/// A party is told at most this often that its policies failed for a table.
const NOTICE_INTERVAL: Duration = Duration::from_secs(10);

/// Parties whose last notice is remembered; beyond it all are forgotten.
const NOTICES_MAX: usize = 10_000;

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

/// No answer from Postgres for now; the batch is held.
#[derive(Debug, thiserror::Error)]
enum Unanswered {
    #[error("row level security was not decided")]
    Rls(#[from] rls::Error),
    #[error("the catalog could not be read")]
    Catalog(#[from] catalog::Error),
    #[error("a filter was not decided")]
    Filter(#[from] filters::Error),
}

/// What other parts may know of the feed at any time.
#[derive(Debug, Default)]
pub struct Status {
    /// Attached to the slot and reading.
    pub attached: AtomicBool,
    /// A batch is held because Postgres did not answer.
    pub held: AtomicBool,
    /// End of the last published commit.
    published: AtomicU64,
    /// End of the server's log, when it was last asked.
    current: AtomicU64,
    /// The positions of the stream of now.
    progress: Mutex<Option<wal::Progress>>,
}

impl Status {
    fn follow(&self, progress: &wal::Progress) {
        let mut current = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        *current = Some(progress.clone());
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
    /// What is shown.
    pub changes: config::Changes,
    /// Table definitions.
    pub catalog: Arc<Catalog>,
    /// Who may see a row.
    pub authorizer: Arc<Authorizer>,
    /// Filters that only Postgres can finish.
    pub filters: Filters,
    /// Subscribers.
    pub hub: Arc<Hub>,
    /// For health and metrics.
    pub status: Arc<Status>,
    /// Becomes true once changes committed from now on are certain to be delivered.
    pub ready: watch::Sender<bool>,
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

/// How far this process has come, across connections.
#[derive(Debug, Default)]
struct Place {
    /// Commits before this were made before this process listened.
    live_from: Option<Lsn>,
    /// End of the last transaction that is completely published.
    committed: Lsn,
    /// How far we moved the slot: beyond `committed` where there was nothing to publish.
    flushed: Lsn,
    /// Last published change of an incomplete one.
    within: Option<(Lsn, u32)>,
    /// Text, but for a stretch that the server cannot print.
    format: Format,
    /// System identifier and timeline of the log that these positions are of.
    history: Option<(String, u32)>,
}

impl Place {
    /// Takes note of what a new connection found. Some: why changes are missing between what was
    /// published and what comes now.
    fn attach(&mut self, identity: &Identity) -> Option<&'static str> {
        let history = (identity.system_id.clone(), identity.timeline);
        let before = self.history.replace(history.clone());
        let Some(before) = before else {
            self.live_from = Some(identity.head);
            return None;
        };
        let reason = if before != history {
            "another_history"
        } else if identity.created_slot {
            "slot_recreated"
        } else if identity.start > self.committed.max(self.flushed) {
            // Somebody else read on meanwhile, or moved it.
            "slot_moved"
        } else {
            return None;
        };
        // Positions of before say nothing about this log.
        self.live_from = Some(identity.start);
        (self.committed, self.flushed, self.within) = (identity.start, identity.start, None);
        Some(reason)
    }
}

/// What is kept between batches.
#[derive(Default)]
struct Memory {
    relations: HashMap<u32, Completed>,
    /// By table and role.
    columns: HashMap<(u32, Arc<str>), Readable>,
    roots: Roots,
    /// Party, its claims and the table: an id is given again once its party has left.
    notices: HashMap<(ClaimsId, Arc<str>, u32), Instant>,
}

/// What a role may read of a relation, as long as both definitions stay.
struct Readable {
    relation: Arc<Relation>,
    table: Arc<Table>,
    columns: Arc<ColumnSet>,
}

struct Completed {
    definition: Arc<Definition>,
    table: Option<Arc<Table>>,
    relation: Arc<Relation>,
    /// For a partition whose root somebody asked for: its rows as the root's.
    within: Option<Within>,
}

#[derive(Clone)]
struct Within {
    root: Arc<Table>,
    relation: Arc<Relation>,
    /// Of the root's columns in the partition's tuples.
    places: Arc<[usize]>,
}

/// The partitioned table above each table, as far as it was asked about.
#[derive(Default)]
struct Roots {
    known: HashMap<u32, Option<QualifiedName>>,
    /// [`Catalog::forgotten`] at the time.
    as_of: u64,
    /// Grows with each change of these answers.
    version: u64,
}

impl Roots {
    fn forget_old(&mut self, forgotten: u64) {
        if self.as_of != forgotten {
            self.as_of = forgotten;
            self.known.clear();
            self.version = self.version.wrapping_add(1);
        }
    }

    fn learn(&mut self, oid: u32, table: Option<&Table>) {
        if !self.known.contains_key(&oid) {
            self.known.insert(oid, table.and_then(|table| table.partition_root.clone()));
            self.version = self.version.wrapping_add(1);
        }
    }
}

impl Feed {
    /// Publishes until `shutdown`, reconnecting as often as it takes.
    ///
    /// # Errors
    /// Only what no waiting heals; nothing after it was acknowledged.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let mut place = Place::default();
        let mut wait = RECONNECT.0;
        loop {
            let opened = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                opened = WalStream::open_as(
                    &self.login,
                    &self.replication,
                    place.committed,
                    place.format,
                ) => opened,
            };
            let error = match opened {
                Ok(mut wal) => {
                    let (attached, progress) = (Instant::now(), wal.progress());
                    self.status.follow(&progress);
                    let ended = self.attached(&mut wal, &mut place, &shutdown).await;
                    self.status.attached.store(false, Ordering::Relaxed);
                    wal.close().await;
                    place.flushed = progress.position().flushed;
                    if attached.elapsed() > RECONNECT.1 {
                        wait = RECONNECT.0;
                    }
                    match ended {
                        Ok(Ended::Shutdown) => return Ok(()),
                        Ok(Ended::Reopen) => continue,
                        Err(Error::Wal(error)) => error,
                        Err(error @ Error::Stream(_)) => return Err(error),
                    }
                }
                Err(error) => error,
            };
            match error {
                wal::Error::Disconnected(_)
                | wal::Error::SlotBusy { .. }
                | wal::Error::PublicationMissing { .. } => {}
                // It was let in before: the login is made again, or its password put right.
                wal::Error::LoginRefused(_) if place.live_from.is_some() => {}
                wal::Error::RowTooLarge(_) if place.format == Format::Text => {
                    place.format = Format::Binary;
                }
                // The new slot is a gap, told when it is attached.
                wal::Error::SlotLost { .. } if self.replace_slot().await => {}
                wal::Error::RowTooLarge(_)
                | wal::Error::SlotLost { .. }
                | wal::Error::LoginRefused(_)
                | wal::Error::Refused { .. }
                | wal::Error::Malformed(_) => return Err(error.into()),
            }
            let error = telemetry::chain(&error);
            warn!(error, retry_in_ms = wait.as_millis(), "no write-ahead log for now");
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(RECONNECT.1);
        }
    }

    /// Clears the way for a new slot, where the old one certainly holds nothing any more.
    async fn replace_slot(&self) -> bool {
        let name = &self.replication.slot;
        match wal::inspect(&self.login, name).await {
            Ok(None) => true,
            Ok(Some(slot)) if slot.wal_status.as_deref() == Some("lost") => {
                match wal::drop_slot(&self.login, name).await {
                    Ok(_) => {
                        warn!(slot = name, "the lost slot was dropped; a new one follows");
                        true
                    }
                    Err(error) => {
                        warn!(error = telemetry::chain(&error), "the lost slot was not dropped");
                        false
                    }
                }
            }
            Ok(Some(_)) | Err(_) => false,
        }
    }

    async fn attached(
        &self,
        wal: &mut WalStream,
        place: &mut Place,
        shutdown: &CancellationToken,
    ) -> Result<Ended, Error> {
        if let Some(reason) = place.attach(wal.identity()) {
            error!(reason, "changes are missing: the slot does not continue what was published");
            metrics::counter!(telemetry::GAPS, telemetry::REASON => reason).increment(1);
            self.hub.notice_everybody(GAP);
            (self.gap.0)();
        }
        let live_from = place.live_from.unwrap_or_default();
        self.status.attached.store(true, Ordering::Relaxed);
        self.ready.send_replace(true);
        metrics::counter!(telemetry::WAL_CONNECTS).increment(1);
        let mut reader = Reader::new(live_from, place.within);
        let mut memory = Memory::default();
        // Whatever was cached may have changed while nobody read the log.
        self.catalog.forget_all();
        self.authorizer.forget(None);
        self.hub.forget_tables();
        let look_now = Notify::new();
        let mut missing = std::pin::pin!(self.publication_missing(&look_now));
        let mut look = tokio::time::interval(STREAM_INTERVAL);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let batch = tokio::select! {
                () = shutdown.cancelled() => return Ok(Ended::Shutdown),
                publication = &mut missing => {
                    return Err(wal::Error::PublicationMissing { publication }.into());
                }
                _ = look.tick() => {
                    self.report_left_out(wal, &look_now);
                    continue;
                }
                batch = wal.next_batch() => batch?,
            };
            let decoded = reader.changes_decoded;
            memory.roots.forget_old(self.catalog.forgotten());
            let generation = (self.hub.generation(), memory.roots.version);
            let wants = |table: &Definition, anew: bool| self.wants(table, anew, &memory.roots);
            let one = place.format == Format::Binary;
            let listening = self.hub.subscribers() > 0;
            let segments = reader.read(&batch, generation, listening, one, wants)?;
            let decoded = reader.changes_decoded - decoded;
            metrics::counter!(telemetry::CHANGES).increment(decoded);
            for segment in segments {
                if self.authorizer.observe_decoded(&segment.xids)
                    && let Err(error) = self.authorizer.look().await
                {
                    debug!(error = telemetry::chain(&error), "no look at what is visible");
                }
                if !segment.is_empty() {
                    tokio::select! {
                        () = shutdown.cancelled() => return Ok(Ended::Shutdown),
                        () = self.publish(&segment, &mut memory) => {}
                    }
                }
                if let Some(last) = segment.changes.last() {
                    place.within = Some((last.commit.lsn, last.ordinal));
                }
                if let Some(committed) = segment.committed {
                    place.committed = committed;
                    self.status.published.store(committed.get(), Ordering::Relaxed);
                    wal.acknowledge(committed);
                    if place.format == Format::Binary {
                        // The row that could not be printed is behind us.
                        place.format = Format::Text;
                        return Ok(Ended::Reopen);
                    }
                }
            }
            if reader.relations() > RELATIONS_MAX {
                // The server describes again what is still used.
                return Ok(Ended::Reopen);
            }
        }
    }

    /// Whether anybody may have asked for a table, or for a partitioned table that it is a part of.
    fn wants(&self, table: &Definition, anew: bool, roots: &Roots) -> bool {
        if self.hub.wants(&table.schema, &table.table) {
            return true;
        }
        // Which table it is a part of may have changed with its definition.
        let root = roots.known.get(&table.oid).filter(|_| !anew);
        self.hub.wants_partitioned()
            && match root {
                Some(Some(root)) => self.hub.wants(&root.schema, &root.name),
                Some(None) => false,
                None => true,
            }
    }

    /// Publishes one segment, asking again until Postgres answers.
    async fn publish(&self, segment: &Segment, memory: &mut Memory) {
        let mut wait = HELD.0;
        let mut done = 0;
        loop {
            let _batch = EndBatch(&self.hub);
            let Err(error) = self.attempt(segment, &mut done, memory).await else { break };
            if !self.status.held.swap(true, Ordering::Relaxed) {
                let error = telemetry::chain(&error);
                warn!(error, "changes are held until Postgres answers");
            }
            metrics::counter!(telemetry::CHECKS_FAILED, telemetry::REASON => "held").increment(1);
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(HELD.1);
        }
        if self.status.held.swap(false, Ordering::Relaxed) {
            info!("Postgres answers again; held changes go out");
        }
    }

    /// Publishes what is left of a segment; `done` counts its changes that are out.
    async fn attempt(
        &self,
        segment: &Segment,
        done: &mut usize,
        memory: &mut Memory,
    ) -> Result<(), Unanswered> {
        for touched in &segment.transactions {
            let (commit, tables) = (touched.commit, &touched.tables);
            let (changes, whole) = (touched.changes, touched.whole);
            self.authorizer.observe_transaction(commit, tables, changes, whole);
        }
        if segment.changes.is_empty() && !segment.asks_the_catalog() {
            return Ok(());
        }
        // What is forgotten now must not be learned again from before the change.
        self.authorizer.wait_visible(&segment.xids).await?;
        self.forget(segment);
        while let Some(rest) = segment.changes.get(*done..).filter(|rest| !rest.is_empty()) {
            let (changes, used) = self.complete(rest, memory).await?;
            self.decide(&changes, memory).await?;
            *done += used;
        }
        self.report_unreadable(segment).await
    }

    /// Publishes changes under one definition of each table.
    async fn decide(&self, changes: &[Change], memory: &mut Memory) -> Result<(), Unanswered> {
        let candidates = self.hub.candidates(changes, self.changes.announce_move_out);
        let candidates = self.finish_filters(changes, candidates).await?;
        if candidates.is_empty() {
            return Ok(());
        }
        let audiences = self.audiences(changes, &candidates);
        let answers = self.answers(changes, &candidates, &audiences, memory).await?;
        self.notify(&answers, &audiences, memory);
        let deliveries = self.frames(changes, &candidates, &audiences, &answers, memory);
        let delivered = self.hub.publish(&deliveries);
        metrics::counter!(telemetry::DELIVERIES).increment(delivered);
        if delivered > 0 {
            let now = SystemTime::now();
            for of_commit in changes.chunk_by(|a, b| a.commit.lsn == b.commit.lsn) {
                if let Ok(latency) = now.duration_since(of_commit[0].commit.time) {
                    metrics::histogram!(telemetry::LATENCY_SECONDS).record(latency);
                }
            }
        }
        Ok(())
    }
}

impl Feed {
    /// Returns the name of a publication once it is missing.
    async fn publication_missing(&self, look_now: &Notify) -> String {
        loop {
            tokio::select! {
                () = tokio::time::sleep(PUBLICATIONS_INTERVAL) => {}
                () = look_now.notified() => {}
            }
            match wal::missing_publication(&self.login, &self.replication).await {
                Ok(None) => {}
                Ok(Some(publication)) => return publication,
                Err(error) => debug!(%error, "the publications cannot be looked for"),
            }
        }
    }

    /// Tells everybody when the server left changes out, and has the publications looked for.
    fn report_left_out(&self, wal: &WalStream, look_now: &Notify) {
        if wal.publication_skipped() {
            let reason = "publication_missing";
            error!(reason, "changes are missing: a publication did not exist at their place");
            metrics::counter!(telemetry::GAPS, telemetry::REASON => reason).increment(1);
            self.hub.notice_everybody(LEFT_OUT);
            (self.gap.0)();
            look_now.notify_one();
        }
    }
}

/// Why an attached stream was left without an error.
enum Ended {
    Shutdown,
    /// Go on over a new connection: what the server could not print is behind, or it described
    /// more tables than are kept.
    Reopen,
}

/// Ends the hub's batch however the attempt ended, so that refreshed claims never wait for ever.
struct EndBatch<'a>(&'a Hub);

impl Drop for EndBatch<'_> {
    fn drop(&mut self) {
        self.0.end_batch();
    }
}

impl Feed {
    fn forget(&self, segment: &Segment) {
        for Definition { oid, schema, table, .. } in segment.redefined.iter().map(|d| &**d) {
            self.catalog.forget(*oid);
            self.authorizer.forget(Some(*oid));
            for audience in self.hub.rename(*oid, schema, table) {
                let text = "A table was renamed: its changes no longer come under the name you \
                            subscribed to. Subscribe again.";
                self.hub.notice_all(audience, text);
            }
        }
        if segment.catalog_changed {
            self.catalog.forget_all();
            self.authorizer.forget(None);
        }
    }

    /// Changes with their tables completed from the catalog, and the hub told of new definitions:
    /// those that have one definition of each table, and how many of `pending` they are.
    ///
    /// A change of a partition comes twice when somebody asked for the partitioned table: under
    /// the partition's name, and as a row of the whole, for whose readers the whole's policies and
    /// grants decide, as if they had selected from it.
    async fn complete(
        &self,
        pending: &[Pending],
        memory: &mut Memory,
    ) -> Result<(Vec<Change>, usize), Unanswered> {
        let mut done: HashMap<u32, (Arc<Relation>, Option<Within>)> = HashMap::new();
        let mut roots: HashMap<u32, Arc<Relation>> = HashMap::new();
        let mut changes = Vec::with_capacity(pending.len());
        for (used, change) in pending.iter().enumerate() {
            let oid = change.definition.oid;
            if !done.contains_key(&oid) {
                let (relation, within) = self.define(&change.definition, memory).await?;
                if let Some(Within { relation, .. }) = &within {
                    let root = roots.entry(relation.oid).or_insert_with(|| Arc::clone(relation));
                    // Partitions differ in what the log carries of them, or the root came itself.
                    if root != relation || done.contains_key(&relation.oid) {
                        return Ok((changes, used));
                    }
                }
                if roots.contains_key(&oid) {
                    return Ok((changes, used));
                }
                self.announce(&relation, false);
                if let Some(Within { relation, .. }) = &within {
                    self.announce(relation, true);
                }
                done.insert(oid, (relation, within));
            }
            let (relation, within) = &done[&oid];
            let whole = Change {
                operation: change.operation,
                relation: Arc::clone(relation),
                record: change.record.clone(),
                old_record: change.old_record.clone(),
                commit: change.commit,
                ordinal: change.ordinal,
            };
            let as_root = within.as_ref().map(|within| Change {
                relation: Arc::clone(&within.relation),
                record: change.record.as_ref().map(|record| record.rearranged(&within.places)),
                old_record: change
                    .old_record
                    .as_ref()
                    .map(|(image, old)| (*image, old.rearranged(&within.places))),
                ..whole.clone()
            });
            changes.push(whole);
            changes.extend(as_root);
        }
        Ok((changes, pending.len()))
    }

    /// A table's relation, and for a partition its place in a table that somebody asked for.
    async fn define(
        &self,
        definition: &Arc<Definition>,
        memory: &mut Memory,
    ) -> Result<(Arc<Relation>, Option<Within>), Unanswered> {
        let oid = definition.oid;
        let table = self.catalog.table(oid).await?;
        let mut root = None;
        if self.hub.wants_partitioned() {
            memory.roots.learn(oid, table.as_deref());
            let above = table.as_ref().and_then(|table| {
                let name = table.partition_root.as_ref()?;
                table.partition_root_oid.filter(|_| self.hub.wants(&name.schema, &name.name))
            });
            if let Some(above) = above {
                root = self.catalog.table(above).await?;
            }
        }
        let known = memory.relations.get(&oid).filter(|known| {
            Arc::ptr_eq(&known.definition, definition)
                && same(known.table.as_ref(), table.as_ref())
                && same(known.within.as_ref().map(|within| &within.root), root.as_ref())
        });
        if let Some(known) = known {
            let (relation, within) = (Arc::clone(&known.relation), known.within.clone());
            if let Some(within) = &within {
                memory.keep_root(definition, within);
            }
            return Ok((relation, within));
        }
        let relation = Arc::new(definition.complete(table.as_deref()));
        let within = root.map(|root| {
            let (relation, places) = definition.within(&root);
            // Equal ones are the same one, so that what was made of it need not be made anew.
            let known = memory.relations.get(&root.oid).map(|known| Arc::clone(&known.relation));
            let relation = match known {
                Some(known) if *known == relation => known,
                Some(_) | None => Arc::new(relation),
            };
            Within { relation, places: places.into(), root }
        });
        if let Some(within) = &within {
            memory.keep_root(definition, within);
        }
        let completed = Completed {
            definition: Arc::clone(definition),
            table,
            relation: Arc::clone(&relation),
            within: within.clone(),
        };
        memory.relations.insert(oid, completed);
        Ok((relation, within))
    }

    fn announce(&self, relation: &Arc<Relation>, by_partition: bool) {
        for (audience, unfit) in self.hub.define(relation, by_partition) {
            let schema = &relation.schema;
            let table = &relation.table;
            warn!(%schema, %table, error = %unfit, "a filter no longer fits its table");
            let text = format!(
                "A filter no longer fits table {schema}.{table}: {unfit}. Subscribe again."
            );
            self.hub.notice_all(audience, &text);
        }
    }

    /// Candidates whose filters accepted the change, the last word had by Postgres.
    async fn finish_filters(
        &self,
        changes: &[Change],
        candidates: Vec<Candidate>,
    ) -> Result<Vec<Candidate>, Unanswered> {
        if !candidates.iter().any(|candidate| candidate.ask) {
            return Ok(candidates);
        }
        let mut asked = Vec::new();
        for candidate in candidates.iter().filter(|candidate| candidate.ask) {
            let change = &changes[place(candidate.change)];
            let predicate = self.hub.predicate(candidate.binding, change.relation.oid);
            asked.push((predicate, filters::image(change, candidate.side)));
        }
        let mut answers = self.filters.ask(&asked).await?.into_iter();
        let mut shown: HashSet<(u32, BindingId)> = HashSet::new();
        let mut kept = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            let key = (candidate.change, candidate.binding);
            let answer = if candidate.ask { answers.next() } else { Some(Answer::Yes) };
            match answer {
                // A row leaves a filter only if it is not in it any more.
                Some(Answer::Yes) if candidate.side == Side::Left && shown.contains(&key) => {}
                Some(Answer::Yes) => {
                    if candidate.side == Side::Shown && candidate.ask {
                        shown.insert(key);
                    }
                    kept.push(candidate);
                }
                Some(Answer::No) | None => {}
                Some(Answer::Failed) => {
                    // Asked for every change, it would hold back everybody else's.
                    withheld("filter_failed");
                    let Relation { schema, table, .. } =
                        &*changes[place(candidate.change)].relation;
                    let text = format!(
                        "The subscription to {schema}.{table} ended: its filter failed or took too long."
                    );
                    self.hub.end_binding(candidate.binding, &text);
                }
            }
        }
        Ok(kept)
    }

    /// A row that the server cannot print reaches nobody. Those who may see rows of its table are
    /// told that there is one.
    async fn report_unreadable(&self, segment: &Segment) -> Result<(), Unanswered> {
        for definition in &segment.unreadable {
            let Definition { schema, table, .. } = &**definition;
            error!(%schema, %table, "a row is too large for the server to print; it reaches nobody");
            withheld("unprintable");
            let own = self.catalog.table(definition.oid).await?;
            let root = match own.as_ref().and_then(|table| table.partition_root_oid) {
                Some(root) => self.catalog.table(root).await?,
                None => None,
            };
            for table in [own, root].into_iter().flatten() {
                for audience in self.hub.listeners(&table.schema, &table.name) {
                    let Some(view) = self.hub.audience(audience) else { continue };
                    if table.row_access(&view.role) != RowAccess::None {
                        let text = "A change was too large to be read: fetch the table again.";
                        self.hub.notice_all(audience, text);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Audiences of a batch, and the tables each is asking about.
type Audiences = HashMap<AudienceId, (AudienceView, Vec<u32>)>;

/// Per party: its verdicts by place of the change; whose policies failed, for which table.
#[derive(Default)]
struct Answers {
    verdicts: HashMap<ClaimsId, HashMap<u32, Verdict>>,
    failed: Vec<(ClaimsId, u32)>,
}

impl Feed {
    fn audiences(&self, changes: &[Change], candidates: &[Candidate]) -> Audiences {
        let mut audiences = Audiences::new();
        let mut add = |id: AudienceId, oid: u32| {
            if let Some((_, tables)) = audiences.get_mut(&id) {
                if !tables.contains(&oid) {
                    tables.push(oid);
                }
            } else if let Some(view) = self.hub.audience(id) {
                audiences.insert(id, (view, vec![oid]));
            }
        };
        for candidate in candidates {
            add(candidate.audience, changes[place(candidate.change)].relation.oid);
        }
        audiences
    }

    /// Asks for every party whose rights depend on the row.
    async fn answers(
        &self,
        changes: &[Change],
        candidates: &[Candidate],
        audiences: &Audiences,
        memory: &Memory,
    ) -> Result<Answers, Unanswered> {
        let mut questions: Vec<Question> = Vec::new();
        let mut numbers: HashMap<ClaimsId, usize> = HashMap::new();
        let mut parties: Vec<ClaimsId> = Vec::new();
        for candidate in candidates {
            let Some((view, _)) = audiences.get(&candidate.audience) else { continue };
            let oid = changes[place(candidate.change)].relation.oid;
            if memory.access(oid, &view.role) != RowAccess::ByPolicy {
                continue;
            }
            for (claims, json) in &view.parties {
                let number = *numbers.entry(*claims).or_insert_with(|| {
                    parties.push(*claims);
                    let (role, claims) = (Arc::clone(&view.role), Arc::clone(json));
                    questions.push(Question { role, claims, changes: Vec::new() });
                    questions.len() - 1
                });
                let asked = &mut questions[number].changes;
                if asked.last() != Some(&candidate.change) {
                    asked.push(candidate.change);
                }
            }
        }
        let mut answers = Answers::default();
        if questions.is_empty() {
            return Ok(answers);
        }
        let started = Instant::now();
        let answered = self.authorizer.visible_to(changes, &questions).await?;
        metrics::histogram!(telemetry::CHECK_SECONDS).record(started.elapsed());
        for ((question, answer), claims) in questions.iter().zip(answered).zip(parties) {
            let verdicts = || question.changes.iter().copied().zip(answer.verdicts.iter().copied());
            let failed = verdicts().filter_map(|(number, verdict)| {
                let change = &changes[place(number)];
                let decisive = match change.operation {
                    Operation::Insert | Operation::Update => verdict.new,
                    Operation::Delete => verdict.old,
                };
                (decisive == Visibility::Failed).then_some(change.relation.oid)
            });
            let mut oids: Vec<u32> = failed.collect();
            oids.sort_unstable();
            oids.dedup();
            answers.verdicts.insert(claims, verdicts().collect());
            answers.failed.extend(oids.into_iter().map(|oid| (claims, oid)));
        }
        Ok(answers)
    }

    /// Tells parties whose own policies failed, so that they know what they miss.
    fn notify(&self, answers: &Answers, audiences: &Audiences, memory: &mut Memory) {
        for (claims, oid) in &answers.failed {
            let failed = telemetry::CHECKS_FAILED;
            metrics::counter!(failed, telemetry::REASON => "policy").increment(1);
            let now = Instant::now();
            if memory.notices.len() >= NOTICES_MAX {
                memory.notices.clear();
            }
            let views = audiences.values().filter(|(_, tables)| tables.contains(oid));
            let mut parties = views.flat_map(|(view, _)| &view.parties);
            let Some((_, json)) = parties.find(|(party, _)| party == claims) else { continue };
            let key = (*claims, Arc::clone(json), *oid);
            let last = memory.notices.entry(key).or_insert(now);
            if *last != now && now.duration_since(*last) < NOTICE_INTERVAL {
                continue;
            }
            *last = now;
            for (&audience, (view, tables)) in audiences {
                if tables.contains(oid) && view.parties.iter().any(|(party, _)| party == claims) {
                    debug!(relation = oid, "a policy failed for a subscriber");
                    // Postgres' own words may quote the very row that is withheld.
                    let text = "A change was withheld: its policies could not be evaluated.";
                    self.hub.notice(audience, *claims, text);
                }
            }
        }
    }

    fn frames(
        &self,
        changes: &[Change],
        candidates: &[Candidate],
        audiences: &Audiences,
        answers: &Answers,
        memory: &mut Memory,
    ) -> Vec<Delivery> {
        let mut frames = Frames::default();
        let mut rest = candidates;
        let mut wanted = Vec::new();
        while let Some(first) = rest.first() {
            let count = rest.iter().take_while(|next| next.change == first.change).count();
            let (of_change, after) = rest.split_at(count);
            rest = after;
            let change = &changes[place(first.change)];
            let Some(table) = memory.table(change.relation.oid) else {
                // Dropped meanwhile: nobody can be asked who may see its rows.
                withheld("dropped_table");
                continue;
            };
            // Bindings of one audience side by side, audiences in a stable order.
            let mut of_change = of_change.to_vec();
            of_change.sort_by_key(|candidate| candidate.audience);
            for group in of_change.chunk_by(|a, b| a.audience == b.audience) {
                let audience = group[0].audience;
                let Some((view, _)) = audiences.get(&audience) else { continue };
                let role = &view.role;
                let access = table.row_access(role);
                if access == RowAccess::None {
                    withheld("no_policy");
                    continue;
                }
                let id = (audience, view);
                let unrestricted = access == RowAccess::All;
                let number = first.change;
                let rights = |claims: ClaimsId| {
                    let verdict = answers.verdicts.get(&claims).and_then(|v| v.get(&number));
                    verdict.copied().unwrap_or(UNDECIDED)
                };
                let group = self.entitled(group, &table, role);
                if let Some(error) = refusal(change, &table, role) {
                    withheld("no_privilege");
                    let ids: Vec<u32> = group.iter().map(|(_, i)| i.subscription.id).collect();
                    frames.add_error(change, id, &ids, unrestricted, rights, error.text());
                    if error == Refusal::Unauthorized {
                        // Whoever asked for many tables goes on with the others.
                        let of_one = |i: &Interest| !i.subscription.is_of_many();
                        for (candidate, _) in group.iter().filter(|(_, i)| of_one(i)) {
                            self.end(candidate.binding, &table, "the primary key");
                        }
                    }
                    continue;
                }
                wanted.clear();
                for (candidate, interest) in group {
                    let asked = &interest.subscription;
                    let columns = memory.columns(&change.relation, &table, role, asked);
                    let (side, old_matches) = (candidate.side, candidate.old_matches);
                    wanted.push(Wanted { interest, columns, side, old_matches });
                }
                let rules = Rules {
                    delete_mode: self
                        .changes
                        .delete_mode_of(&change.relation.schema, &change.relation.table),
                    announce_move_out: self.changes.announce_move_out,
                    record_bytes_max: self.changes.record_bytes_max,
                    row_security: table.row_security,
                };
                let hidden = frames.add(number, change, id, &wanted, unrestricted, rights, rules);
                if hidden > 0 {
                    let policy = telemetry::WITHHELD;
                    metrics::counter!(policy, telemetry::REASON => "policy").increment(hidden);
                }
            }
        }
        frames.finish()
    }

    /// The bindings of one audience that are still there and may still use their filters. Others
    /// end here: a filter on a column that its role may no longer read would tell what is in it.
    fn entitled<'a>(
        &self,
        group: &'a [Candidate],
        table: &Table,
        role: &str,
    ) -> Vec<(&'a Candidate, Arc<Interest>)> {
        let mut entitled = Vec::with_capacity(group.len());
        for candidate in group {
            let Some(interest) = self.hub.interest(candidate.binding) else { continue };
            let mut columns = interest.conditions.iter().map(|condition| &*condition.column);
            if let Some(hidden) = columns.find(|column| !table.may_read(role, column)) {
                withheld("filter_column");
                self.end(
                    candidate.binding,
                    table,
                    &format!("column {hidden}, which it filters by,"),
                );
                continue;
            }
            entitled.push((candidate, interest));
        }
        entitled
    }

    fn end(&self, binding: BindingId, table: &Table, what: &str) {
        let (schema, name) = (&table.schema, &table.name);
        let text = format!("The subscription to {schema}.{name} ended: {what} may not be read.");
        self.hub.end_binding(binding, &text);
    }
}

/// What a party that was not asked about gets: nothing.
const UNDECIDED: Verdict = Verdict { new: Visibility::Failed, old: Visibility::Failed };

fn withheld(reason: &'static str) {
    metrics::counter!(telemetry::WITHHELD, telemetry::REASON => reason).increment(1);
}

/// What keeps a role from being shown any new row of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// It has no primary key.
    NoKey,
    /// The role may not read all of it.
    Unauthorized,
}

impl Refusal {
    /// As the reference server says it.
    const fn text(self) -> &'static str {
        match self {
            Self::NoKey => "Error 400: Bad Request, no primary key",
            Self::Unauthorized => "Error 401: Unauthorized",
        }
    }
}

fn refusal(change: &Change, table: &Table, role: &str) -> Option<Refusal> {
    if change.operation == Operation::Delete {
        return None;
    }
    if table.primary_key.is_empty() {
        return Some(Refusal::NoKey);
    }
    let readable = table.primary_key.iter().all(|name| table.may_read(role, name));
    (!readable).then_some(Refusal::Unauthorized)
}

impl Memory {
    /// A partition's root can be looked up like any table.
    fn keep_root(&mut self, definition: &Arc<Definition>, within: &Within) {
        let completed = Completed {
            definition: Arc::clone(definition),
            table: Some(Arc::clone(&within.root)),
            relation: Arc::clone(&within.relation),
            within: None,
        };
        self.relations.insert(within.root.oid, completed);
    }

    fn table(&self, oid: u32) -> Option<Arc<Table>> {
        self.relations.get(&oid)?.table.clone()
    }

    fn access(&self, oid: u32, role: &str) -> RowAccess {
        self.table(oid).map_or(RowAccess::None, |table| table.row_access(role))
    }

    /// Which columns this role may read, and the subscription selected.
    fn columns(
        &mut self,
        relation: &Arc<Relation>,
        table: &Arc<Table>,
        role: &Arc<str>,
        subscription: &Subscription,
    ) -> Arc<ColumnSet> {
        let key = (relation.oid, Arc::clone(role));
        let known = self.columns.get(&key).filter(|known| {
            Arc::ptr_eq(&known.relation, relation) && Arc::ptr_eq(&known.table, table)
        });
        let readable = if let Some(known) = known {
            Arc::clone(&known.columns)
        } else {
            let columns = Arc::new(table.readable_in(role, relation));
            let (relation, table) = (Arc::clone(relation), Arc::clone(table));
            self.columns.insert(key, Readable { relation, table, columns: Arc::clone(&columns) });
            columns
        };
        let Some(select) = &subscription.select else { return readable };
        let selected = |place: &usize| {
            let column = &relation.columns[*place];
            column.in_primary_key || select.iter().any(|name| **name == *column.name)
        };
        Arc::new(readable.iter().filter(selected).collect())
    }
}

fn same(one: Option<&Arc<Table>>, other: Option<&Arc<Table>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

fn place(number: u32) -> usize {
    usize::try_from(number).expect("an index into a slice in memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(timeline: u32, start: u64, created_slot: bool) -> Identity {
        Identity {
            system_id: "7".into(),
            timeline,
            server_version: 150_018,
            head: Lsn::new(100),
            start: Lsn::new(start),
            created_slot,
        }
    }

    #[test]
    fn the_first_attachment_owes_nobody_the_past() {
        let mut place = Place::default();
        assert_eq!(place.attach(&identity(1, 10, true)), None);
        assert_eq!((place.live_from, place.committed), (Some(Lsn::new(100)), Lsn::ZERO));
    }

    #[test]
    fn a_reconnect_goes_on_where_it_was() {
        let mut place = Place::default();
        place.attach(&identity(1, 10, false));
        (place.committed, place.within) = (Lsn::new(150), Some((Lsn::new(160), 3)));
        assert_eq!(place.attach(&identity(1, 150, false)), None);
        assert_eq!(place.live_from, Some(Lsn::new(100)));
        assert_eq!((place.committed, place.within), (Lsn::new(150), Some((Lsn::new(160), 3))));
    }

    #[test]
    fn a_slot_that_followed_an_idle_log_is_no_gap() {
        let mut place = Place::default();
        place.attach(&identity(1, 10, false));
        (place.committed, place.flushed) = (Lsn::new(150), Lsn::new(165));
        assert_eq!(place.attach(&identity(1, 165, false)), None);
    }

    #[test]
    fn a_new_slot_or_another_history_is_a_gap_and_starts_afresh() {
        for (found, reason) in [
            (identity(1, 170, false), "slot_moved"),
            (identity(1, 170, true), "slot_recreated"),
            (identity(2, 170, false), "another_history"),
        ] {
            let mut place = Place::default();
            place.attach(&identity(1, 10, false));
            (place.committed, place.within) = (Lsn::new(150), Some((Lsn::new(160), 3)));
            assert_eq!(place.attach(&found), Some(reason));
            assert_eq!(place.live_from, Some(Lsn::new(170)));
            assert_eq!((place.committed, place.within), (Lsn::new(170), None));
        }
    }
}
