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

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::auth::rls::{self, Authorizer, Question, Verdict, Visibility};
use crate::catalog::{self, Catalog, RowAccess, Table};
use crate::change::{Change, ColumnSet, Operation, Relation};
use crate::config;
use crate::db::Login;
use crate::hub::{
    AudienceId, AudienceView, Candidate, ClaimsId, Delivery, Hub, Recipients, Subscription,
};
use crate::lsn::Lsn;
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
    pub published: AtomicU64,
    /// Last position the server told of.
    pub head: AtomicU64,
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
}

/// How far this process has come, across connections.
#[derive(Debug, Default)]
struct Place {
    /// Commits before this were made before this process listened.
    live_from: Option<Lsn>,
    /// End of the last transaction that is completely published.
    committed: Lsn,
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
        } else {
            return None;
        };
        // Positions of before say nothing about this log.
        self.live_from = Some(identity.start);
        (self.committed, self.within) = (identity.start, None);
        Some(reason)
    }
}

/// What is kept between batches.
#[derive(Default)]
struct Memory {
    relations: HashMap<u32, Completed>,
    /// By table and role.
    columns: HashMap<(u32, Arc<str>), Readable>,
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
                    let attached = Instant::now();
                    let ended = self.attached(&mut wal, &mut place, &shutdown).await;
                    self.status.attached.store(false, Ordering::Relaxed);
                    wal.close().await;
                    if attached.elapsed() > RECONNECT.1 {
                        wait = RECONNECT.0;
                    }
                    match ended {
                        Ok(Ended::Shutdown) => return Ok(()),
                        Ok(Ended::Printable) => continue,
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
                wal::Error::RowTooLarge(_) if place.format == Format::Text => {
                    place.format = Format::Binary;
                }
                wal::Error::RowTooLarge(_)
                | wal::Error::SlotLost { .. }
                | wal::Error::Refused { .. }
                | wal::Error::Malformed(_) => return Err(error.into()),
            }
            metrics::counter!(telemetry::WAL_CONNECTS).increment(1);
            let error = telemetry::chain(&error);
            warn!(error, retry_in_ms = wait.as_millis(), "no write-ahead log for now");
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(RECONNECT.1);
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
        }
        let live_from = place.live_from.unwrap_or_default();
        self.status.attached.store(true, Ordering::Relaxed);
        self.ready.send_replace(true);
        let mut reader = Reader::new(live_from, place.within);
        let mut memory = Memory::default();
        // Whatever was cached may have changed while nobody read the log.
        self.catalog.forget_all();
        self.authorizer.forget(None);
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
            let wants = |schema: &str, table: &str| self.hub.wants(schema, table);
            let one = place.format == Format::Binary;
            let segments = reader.read(&batch, self.hub.generation(), one, wants)?;
            let decoded = reader.changes_decoded - decoded;
            metrics::counter!(telemetry::CHANGES).increment(decoded);
            for segment in segments {
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
                        return Ok(Ended::Printable);
                    }
                }
            }
            let head = wal.position().head;
            self.status.head.store(head.get(), Ordering::Relaxed);
        }
    }

    /// Publishes one segment, asking again until Postgres answers.
    async fn publish(&self, segment: &Segment, memory: &mut Memory) {
        let mut wait = HELD.0;
        loop {
            let _batch = EndBatch(&self.hub);
            let Err(error) = self.attempt(segment, memory).await else { break };
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

    async fn attempt(&self, segment: &Segment, memory: &mut Memory) -> Result<(), Unanswered> {
        for touched in &segment.transactions {
            let (commit, tables) = (touched.commit, &touched.tables);
            self.authorizer.observe_transaction(commit, tables, touched.changes);
        }
        self.report_unreadable(segment);
        if segment.changes.is_empty() {
            self.forget(segment);
            return Ok(());
        }
        self.authorizer.wait_visible(&segment.xids).await?;
        self.forget(segment);
        let changes = self.complete(&segment.changes, memory).await?;
        let candidates = self.hub.candidates(&changes, self.changes.announce_move_out);
        let candidates = self.finish_filters(&changes, candidates).await?;
        if candidates.is_empty() {
            return Ok(());
        }
        let audiences = self.audiences(&changes, &candidates);
        let answers = self.answers(&changes, &candidates, &audiences, memory).await?;
        self.notify(&answers, &audiences, memory);
        let deliveries = self.frames(&changes, &candidates, &audiences, &answers, memory);
        let delivered = self.hub.publish(&deliveries);
        metrics::counter!(telemetry::DELIVERIES).increment(delivered);
        if let Some(last) = changes.last()
            && let Ok(latency) = last.commit.time.elapsed()
        {
            metrics::histogram!(telemetry::LATENCY_SECONDS).record(latency);
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
            look_now.notify_one();
        }
    }
}

/// Why an attached stream was left without an error.
enum Ended {
    Shutdown,
    /// What the server could not print is behind: go on in text.
    Printable,
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
        for &oid in &segment.redefined {
            self.catalog.forget(oid);
            self.authorizer.forget(Some(oid));
        }
        if segment.catalog_changed {
            self.catalog.forget_all();
            self.authorizer.forget(None);
        }
    }

    /// Changes with their tables completed from the catalog, and the hub told of new definitions.
    async fn complete(
        &self,
        pending: &[Pending],
        memory: &mut Memory,
    ) -> Result<Vec<Change>, Unanswered> {
        let mut done: HashMap<u32, Arc<Relation>> = HashMap::new();
        for change in pending {
            let oid = change.definition.oid;
            if done.contains_key(&oid) {
                continue;
            }
            let table = self.catalog.table(oid).await?;
            let known = memory.relations.get(&oid).filter(|known| {
                Arc::ptr_eq(&known.definition, &change.definition)
                    && same(known.table.as_ref(), table.as_ref())
            });
            let relation = if let Some(known) = known {
                Arc::clone(&known.relation)
            } else {
                let definition = Arc::clone(&change.definition);
                let relation = Arc::new(definition.complete(table.as_deref()));
                let completed = Completed { definition, table, relation: Arc::clone(&relation) };
                memory.relations.insert(oid, completed);
                relation
            };
            for (audience, unfit) in self.hub.define(&relation) {
                let schema = &relation.schema;
                let table = &relation.table;
                warn!(%schema, %table, error = %unfit, "a filter no longer fits its table");
                let text = format!(
                    "A filter no longer fits table {schema}.{table}: {unfit}. Subscribe again."
                );
                self.hub.notice_all(audience, &text);
            }
            done.insert(oid, relation);
        }
        let change = |pending: &Pending| Change {
            operation: pending.operation,
            relation: Arc::clone(&done[&pending.definition.oid]),
            record: pending.record.clone(),
            old_record: pending.old_record.clone(),
            commit: pending.commit,
            ordinal: pending.ordinal,
        };
        Ok(pending.iter().map(change).collect())
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
        let keep = |candidate: &Candidate| !candidate.ask || answers.next().unwrap_or(false);
        Ok(candidates.into_iter().filter(keep).collect())
    }

    /// A row that the server cannot print reaches nobody; they are told that it exists.
    fn report_unreadable(&self, segment: &Segment) {
        for &oid in &segment.unreadable {
            error!(relation = oid, "a row is too large for the server to print; it reaches nobody");
            let withheld = telemetry::WITHHELD;
            metrics::counter!(withheld, telemetry::REASON => "unprintable").increment(1);
            for (audience, _) in self.hub.listeners(oid) {
                self.hub.notice_all(
                    audience,
                    "A change was too large to be read: fetch the table again.",
                );
            }
        }
    }
}

/// Audiences of a batch, and the tables each is asking about.
type Audiences = HashMap<AudienceId, (AudienceView, Vec<u32>)>;

/// Per party: its verdicts by place of the change, and what its policies said when they failed.
#[derive(Default)]
struct Answers {
    verdicts: HashMap<ClaimsId, HashMap<u32, Verdict>>,
    failed: Vec<(ClaimsId, u32, String)>,
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
            let verdicts = question.changes.iter().copied().zip(answer.verdicts);
            answers.verdicts.insert(claims, verdicts.collect());
            if let (Some(error), Some(&first)) = (answer.error, question.changes.first()) {
                let oid = changes[place(first)].relation.oid;
                answers.failed.push((claims, oid, error));
            }
        }
        Ok(answers)
    }

    /// Tells parties whose own policies failed, so that they know what they miss.
    fn notify(&self, answers: &Answers, audiences: &Audiences, memory: &mut Memory) {
        for (claims, oid, error) in &answers.failed {
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
                    let text = format!(
                        "A change was withheld: its policies could not be evaluated. {error}"
                    );
                    self.hub.notice(audience, *claims, &text);
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
                if let Some(error) = refusal(change, &table, role) {
                    let ids = self.ids(group);
                    frames.add_error(change, id, &ids, Recipients::All, error);
                    continue;
                }
                wanted.clear();
                for candidate in group {
                    let Some(interest) = self.hub.interest(candidate.binding) else { continue };
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
                let number = first.change;
                let rights = |claims: ClaimsId| {
                    let verdict = answers.verdicts.get(&claims).and_then(|v| v.get(&number));
                    verdict.copied().unwrap_or(UNDECIDED)
                };
                let unrestricted = access == RowAccess::All;
                frames.add(number, change, id, &wanted, unrestricted, rights, rules);
            }
        }
        frames.finish()
    }

    fn ids(&self, group: &[Candidate]) -> Vec<u32> {
        let interest = |candidate: &Candidate| self.hub.interest(candidate.binding);
        group.iter().filter_map(interest).map(|interest| interest.subscription.id).collect()
    }
}

/// What a party that was not asked about gets: nothing.
const UNDECIDED: Verdict = Verdict { new: Visibility::Failed, old: Visibility::Failed };

fn withheld(reason: &'static str) {
    metrics::counter!(telemetry::WITHHELD, telemetry::REASON => reason).increment(1);
}

/// What keeps a role from being shown any new row of this table.
fn refusal(change: &Change, table: &Table, role: &str) -> Option<&'static str> {
    if change.operation == Operation::Delete {
        return None;
    }
    if table.primary_key.is_empty() {
        return Some("Error 400: Bad Request, no primary key");
    }
    if table.primary_key.iter().all(|name| table.may_read(role, name)) {
        None
    } else {
        Some("Error 401: Unauthorized")
    }
}

impl Memory {
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
    fn a_new_slot_or_another_history_is_a_gap_and_starts_afresh() {
        for (found, reason) in [
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
