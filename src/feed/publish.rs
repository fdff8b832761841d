//! Segments of the log, published: completed, authorised, handed to a hub.
//!
//! In:     [`Segment`]s in commit order.
//! Out:    frames in the outboxes of one hub's subscribers.
//! Never:  anything of a segment before its transactions are visible to new snapshots; anything
//!         dropped because a database did not answer (it is held and asked again).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::Status;
use super::decide::Unanswered;
use super::filters::Filters;
use super::lookups::Lookups;
use super::memory::{Memory, Roots};
use super::messages::Message;
use super::reader::{self, Definition, Pending, Reader, Segment};
use super::watches::Watches;
use crate::auth::rls::Authorizer;
use crate::catalog::Catalog;
use crate::config;
use crate::cursor::Place;
use crate::hub::{Hub, RoomName};
use crate::telemetry;
use crate::wal::Batch;

/// Waits between attempts to get an answer about a held batch.
const HELD: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

/// What is made of changes, and to whom it goes.
#[derive(Debug)]
pub struct Publisher {
    /// What is shown.
    pub changes: config::Changes,
    /// Bytes of a stored message's payload above which it is broadcast to nobody.
    pub payload_bytes_max: usize,
    /// Table definitions.
    pub catalog: Arc<Catalog>,
    /// Who may see a row.
    pub authorizer: Arc<Authorizer>,
    /// Filters that only Postgres can finish.
    pub filters: Filters,
    /// What events take from other tables.
    pub lookups: Lookups,
    /// Rows that decide who may be in rooms; none for the past, which decides nothing of now.
    pub watches: Option<Watches>,
    /// Subscribers.
    pub hub: Arc<Hub>,
    /// For health and metrics.
    pub status: Arc<Status>,
}

impl Publisher {
    /// Reads a batch for the subscribers of now. `one_transaction`: see [`Reader::read`].
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub(super) fn read(
        &self,
        batch: &Batch,
        reader: &mut Reader,
        memory: &mut Memory,
        one_transaction: bool,
    ) -> Result<Vec<Segment>, reader::Error> {
        memory.roots.forget_old(self.catalog.forgotten());
        // Neither ever goes back, so their sum stays as it is only while both do.
        let version = self.watches.as_ref().map_or(0, Watches::version);
        let generation = (self.hub.generation() + version, memory.roots.version);
        let wants = |table: &Definition, anew: bool| self.wants(table, anew, &memory.roots);
        let listening =
            self.hub.subscribers() > 0 || self.watches.is_some() && self.hub.has_rooms();
        let hears = |room: &RoomName| self.hub.has_room(room);
        let hears: Option<&dyn Fn(&RoomName) -> bool> =
            if self.hub.has_rooms() { Some(&hears) } else { None };
        let mut segments =
            reader.read(batch, generation, listening, one_transaction, hears, wants)?;
        for segment in &mut segments {
            segment.listening = listening;
        }
        Ok(segments)
    }

    /// Whether it shows what was, to those that come back.
    pub(super) const fn is_of_the_past(&self) -> bool {
        self.watches.is_none()
    }

    /// Whether anybody may have asked for a table, or for a partitioned table that it is a part of.
    pub(super) fn wants(&self, table: &Definition, anew: bool, roots: &Roots) -> bool {
        if self.hub.wants(&table.schema, &table.table)
            || self.watches.as_ref().is_some_and(|watches| watches.has(table.oid))
        {
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

    /// Takes note of what was decoded.
    pub(super) async fn observe(&self, segment: &Segment) {
        if self.authorizer.observe_decoded(&segment.xids)
            && let Err(error) = self.authorizer.look().await
        {
            debug!(error = telemetry::chain(&error), "no look at what is visible");
        }
    }

    /// Publishes one segment, asking again until Postgres answers.
    pub(super) async fn publish(&self, segment: &Segment, memory: &mut Memory) {
        let mut wait = HELD.0;
        let mut done = Done::default();
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

    /// Publishes what is left of a segment; `done` counts what of it is out.
    async fn attempt(
        &self,
        segment: &Segment,
        done: &mut Done,
        memory: &mut Memory,
    ) -> Result<(), Unanswered> {
        for touched in &segment.transactions {
            let (commit, tables) = (touched.commit, &touched.tables);
            let (changes, whole) = (touched.changes, touched.whole);
            self.authorizer.observe_transaction(commit, tables, changes, whole);
        }
        let watches = self.watches.as_ref().filter(|_| self.hub.has_rooms());
        if let Some(watches) = watches {
            watches.look(&self.status).await?;
        } else {
            // Whoever enters as the first was asked about before this, perhaps.
            self.hub.doubt_newcomers();
        }
        let nothing = segment.changes.is_empty()
            && segment.messages.is_empty()
            && !watches.is_some_and(|watches| watches.concern(segment));
        if nothing && segment.gathered.is_none() && !segment.asks_the_catalog() {
            self.catalog.observe_definers(&segment.definers);
            return Ok(());
        }
        // What is forgotten now must not be learned again from before the change.
        self.authorizer.wait_visible(&segment.xids).await?;
        self.forget(segment);
        if let Some(watches) = watches {
            watches.look(&self.status).await?;
            watches.doubt(segment, &self.hub);
        }
        let messages = self.sure(&segment.messages).await?;
        loop {
            let rest = segment.changes.get(done.changes..).unwrap_or_default();
            let (changes, mapped, used) = self.complete(rest, memory).await?;
            let out = |said: &&&Message| done.said.is_some_and(|last| said.place() <= last);
            let said = &messages[messages.iter().take_while(out).count()..];
            // Those before what is left after these changes.
            let next = rest.get(used).map(Pending::place);
            let is_due = |said: &&Message| next.is_none_or(|next| said.place() < next);
            let due = said.iter().take_while(|said| is_due(said)).count();
            let ended = segment.gathered.filter(|_| next.is_none());
            let changes = (&changes[..], &mapped[..]);
            self.decide(changes, &said[..due], ended, memory).await?;
            done.changes += used;
            done.said = said[..due].last().map_or(done.said, |last| Some(last.place()));
            if next.is_none() {
                break;
            }
        }
        self.report_unreadable(segment).await
    }
}

/// How much of a segment is out.
#[derive(Debug, Default)]
struct Done {
    changes: usize,
    /// The last message that is.
    said: Option<Place>,
}

/// Ends the hub's batch however the attempt ended, so that refreshed claims never wait for ever.
struct EndBatch<'a>(&'a Hub);

impl Drop for EndBatch<'_> {
    fn drop(&mut self) {
        self.0.end_batch();
    }
}
