//! One segment's changes: completed, matched, authorised, made into frames.
//!
//! In:     changes in commit order, whose transactions are visible to new snapshots.
//! Out:    deliveries, handed to the hub; what withheld a change, told and counted.
//! Never:  a change delivered that was not decided; a change dropped because nobody answered
//!         ([`Unanswered`]: the caller holds the segment and asks again).

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hashbrown::{HashMap, HashSet};
use tracing::{debug, error, warn};

use super::domain::{Mapped, Told};
use super::filters;
use super::frames::{Frames, Rules, Wanted};
use super::lookups;
use super::memory::{Completed, Memory, Within};
use super::messages::{self, Message};
use super::publish::Publisher;
use super::reader::{Definition, Pending, Segment};
use super::watches;
use crate::auth::rls::{self, Question, Verdict, Visibility};
use crate::catalog::{self, RowAccess, Table};
use crate::change::{Change, Commit, Operation, Relation};
use crate::cursor::Place;
use crate::hub::{
    AudienceId, AudienceView, BindingId, Candidate, ClaimsId, Interest, Outgoing, Side,
};
use crate::kill;
use crate::lsn::Lsn;
use crate::subscribe::Answer;
use crate::telemetry;

/// A party is told at most this often that its policies failed for a table.
const NOTICE_INTERVAL: Duration = Duration::from_secs(10);

/// Parties whose last notice is remembered; beyond it all are forgotten.
const NOTICES_MAX: usize = 10_000;

/// Messages that were too large are told in one line at most this often.
const REFUSED_INTERVAL: Duration = Duration::from_secs(1);

/// No answer from Postgres for now; the batch is held.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unanswered {
    #[error("row level security was not decided")]
    Rls(#[from] rls::Error),
    #[error("the catalog could not be read")]
    Catalog(#[from] catalog::Error),
    #[error("a filter was not decided")]
    Filter(#[from] filters::Error),
    #[error("nothing was looked up")]
    Lookup(#[from] lookups::Error),
    #[error("it is not known who may be in rooms")]
    Watches(#[from] watches::Error),
}

impl Publisher {
    /// Publishes changes under one definition of each table, and messages and events in their
    /// places between them. `ended`: see [`Self::domain`].
    pub(super) async fn decide(
        &self,
        (changes, mapped): (&[Change], &[Mapped]),
        messages: &[&Message],
        ended: Option<Lsn>,
        memory: &mut Memory,
    ) -> Result<(), Unanswered> {
        let candidates = if changes.is_empty() {
            Vec::new()
        } else {
            let mut candidates = self.hub.candidates(changes, self.changes.announce_move_out);
            let again: HashSet<usize> =
                mapped.iter().filter(|mapped| mapped.again).map(|mapped| mapped.change).collect();
            if !again.is_empty() {
                candidates.retain(|candidate| !again.contains(&place(candidate.change)));
            }
            self.finish_filters(changes, candidates).await?
        };
        let said = Box::pin(self.domain(changes, mapped, ended, memory)).await?;
        if candidates.is_empty() && messages.is_empty() && said.told.is_empty() {
            memory.gathered = said.gathered;
            return Ok(());
        }
        let audiences = self.audiences(changes, &candidates);
        let answers = self.answers(changes, &candidates, &audiences, memory).await?;
        self.notify(&answers, &audiences, memory);
        let spoken = Spoken::in_order(messages, &said.told);
        let outgoing = self.frames(changes, spoken, &candidates, &audiences, &answers, memory);
        memory.gathered = said.gathered;
        kill::point(kill::Point::BeforeFanOut);
        let (delivered, mut dirty) = self.hub.publish(&outgoing);
        // A crowd does not hold up other sockets, and what comes next follows when it was written to.
        dirty.flush_in_turns().await;
        kill::point(kill::Point::AfterFanOut);
        metrics::counter!(telemetry::DELIVERIES).increment(delivered);
        count_messages("ok", messages.len());
        let events = u64::try_from(said.told.len()).unwrap_or(u64::MAX);
        metrics::counter!(telemetry::DOMAIN_EVENTS).increment(events);
        if delivered > 0 {
            let now = SystemTime::now();
            let mut commits: Vec<Commit> = changes.iter().map(|change| change.commit).collect();
            commits.extend(messages.iter().map(|message| message.commit));
            commits.sort_by_key(|commit| commit.lsn);
            commits.dedup_by_key(|commit| commit.lsn);
            for commit in commits {
                if let Ok(latency) = now.duration_since(commit.time) {
                    metrics::histogram!(telemetry::LATENCY_SECONDS).record(latency);
                }
            }
        }
        Ok(())
    }

    /// Messages of tables that are `realtime.messages`.
    pub(super) async fn sure<'a>(
        &self,
        messages: &'a [Message],
    ) -> Result<Vec<&'a Message>, Unanswered> {
        let mut sure = Vec::with_capacity(messages.len());
        for message in messages {
            let is_one = match message.unsure {
                None => true,
                Some(oid) => self.holds_messages(oid).await?,
            };
            let was_one = match message.moved_from {
                None => false,
                Some(oid) => self.holds_messages(oid).await?,
            };
            if is_one && !was_one {
                sure.push(message);
            }
        }
        Ok(sure)
    }

    /// Whether a table is a partition of `realtime.messages`.
    async fn holds_messages(&self, oid: u32) -> Result<bool, Unanswered> {
        let table = self.catalog.table(oid).await?;
        let root = table.as_ref().and_then(|table| table.partition_root.as_ref());
        Ok(root.is_some_and(|root| {
            *root.schema == *messages::SCHEMA && *root.name == *messages::TABLE
        }))
    }

    /// Says that rows of `realtime.messages` were broadcast to nobody.
    pub(super) fn report_refused(&self, refused: usize, memory: &mut Memory) {
        if refused == 0 {
            return;
        }
        count_messages("error", refused);
        memory.refused += refused;
        let now = Instant::now();
        let due = |last: Instant| now.duration_since(last) >= REFUSED_INTERVAL;
        if memory.refused_told.is_none_or(due) {
            let (messages, payload_bytes_max) = (memory.refused, self.payload_bytes_max);
            warn!(messages, payload_bytes_max, "UnableToBroadcastChanges: payloads are too large");
            memory.refused = 0;
            memory.refused_told = Some(now);
        }
    }

    pub(super) fn forget(&self, segment: &Segment) {
        if segment.catalog_changed || !segment.redefined.is_empty() {
            self.status.note_catalog_change();
        }
        self.catalog.observe_definers(&segment.definers);
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
    pub(super) async fn complete(
        &self,
        pending: &[Pending],
        memory: &mut Memory,
    ) -> Result<(Vec<Change>, Vec<Mapped>, usize), Unanswered> {
        let mut done: HashMap<u32, (Arc<Relation>, Option<Within>)> = HashMap::new();
        let mut roots: HashMap<u32, Arc<Relation>> = HashMap::new();
        let mut changes = Vec::with_capacity(pending.len());
        let mut mapped = Vec::new();
        if pending.is_empty() {
            return Ok((changes, mapped, 0));
        }
        let beside = self.catalog.beside().await?;
        for (used, change) in pending.iter().enumerate() {
            let oid = change.definition.oid;
            if beside.contains(&oid) {
                continue;
            }
            if !done.contains_key(&oid) {
                let same = pending.iter().filter(|other| other.definition.oid == oid);
                let mut xids: Vec<u32> = same.map(|other| other.commit.xid).collect();
                xids.dedup();
                let (relation, within) = self.define(&change.definition, &xids, memory).await?;
                if let Some(Within { relation, .. }) = &within {
                    let root = roots.entry(relation.oid).or_insert_with(|| Arc::clone(relation));
                    // Partitions differ in what the log carries of them, or the root came itself.
                    if root != relation || done.contains_key(&relation.oid) {
                        return Ok((changes, mapped, used));
                    }
                }
                if roots.contains_key(&oid) {
                    return Ok((changes, mapped, used));
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
                origin: change.origin.clone(),
            };
            if let Some(declaration) = &change.mapped {
                let (declaration, again) = (Arc::clone(declaration), change.again);
                mapped.push(Mapped { change: changes.len(), declaration, again });
            }
            let as_root = within.as_ref().filter(|_| !change.again).map(|within| Change {
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
        Ok((changes, mapped, pending.len()))
    }

    /// For changes of `xids`: a table's relation, and for a partition its place in a table that somebody asked for.
    async fn define(
        &self,
        definition: &Arc<Definition>,
        xids: &[u32],
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
            known.settled
                && Arc::ptr_eq(&known.definition, definition)
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
        let is_before = |xid: u32| self.catalog.is_before(xid, xids);
        // Equal ones are the same one, so that what was made of it need not be made anew.
        let same_as = |oid: u32, relation: Relation| {
            let known = memory.relations.get(&oid).map(|known| Arc::clone(&known.relation));
            match known {
                Some(known) if *known == relation => known,
                Some(_) | None => Arc::new(relation),
            }
        };
        let (relation, mut settled) = definition.complete(table.as_deref(), is_before);
        let relation = same_as(oid, relation);
        let within = root.zip(table.as_ref()).map(|(root, table)| {
            let (rows, places, root_settled) =
                definition.within(&root, (table, &relation), is_before);
            settled &= root_settled;
            Within { relation: same_as(root.oid, rows), places: places.into(), root }
        });
        if let Some(within) = &within {
            memory.keep_root(definition, within);
        }
        let completed = Completed {
            definition: Arc::clone(definition),
            table,
            relation: Arc::clone(&relation),
            settled,
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
    pub(super) async fn report_unreadable(&self, segment: &Segment) -> Result<(), Unanswered> {
        if segment.unreadable.is_empty() {
            return Ok(());
        }
        let beside = self.catalog.beside().await?;
        for definition in &segment.unreadable {
            if beside.contains(&definition.oid) {
                continue;
            }
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

impl Publisher {
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
        kill::point(kill::Point::BeforeCheck);
        let answered = self.authorizer.visible_to(changes, &questions).await?;
        kill::point(kill::Point::AfterCheck);
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
            for (number, _) in verdicts().filter(|(_, v)| v.old == Visibility::Forgotten) {
                self.hub.miss(claims, changes[place(number)].place());
            }
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
        spoken: Vec<Spoken<'_>>,
        candidates: &[Candidate],
        audiences: &Audiences,
        answers: &Answers,
        memory: &mut Memory,
    ) -> Vec<Outgoing> {
        let mut frames = Frames::new(memory.epoch, self.is_of_the_past());
        let mut spoken = spoken.into_iter().peekable();
        let mut rest = candidates;
        let mut wanted = Vec::new();
        while let Some(first) = rest.first() {
            let count = rest.iter().take_while(|next| next.change == first.change).count();
            let (of_change, after) = rest.split_at(count);
            rest = after;
            let change = &changes[place(first.change)];
            while let Some(next) = spoken.next_if(|next| next.place() < change.place()) {
                next.say(&mut frames);
            }
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
        for rest in spoken {
            rest.say(&mut frames);
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

/// What is said to rooms between row changes.
#[derive(Debug, Clone, Copy)]
enum Spoken<'a> {
    /// By a stored message.
    Message(&'a Message),
    /// By a change of a mapped table, after its row change.
    Event(&'a Told),
}

impl<'a> Spoken<'a> {
    fn in_order(messages: &[&'a Message], told: &'a [Told]) -> Vec<Self> {
        let messages = messages.iter().map(|message| Self::Message(message));
        let mut all: Vec<Self> = messages.chain(told.iter().map(Self::Event)).collect();
        all.sort_by_key(Self::place);
        all
    }

    fn place(&self) -> Place {
        match self {
            Self::Message(message) => message.place(),
            Self::Event(told) => told.place,
        }
    }

    fn say(self, frames: &mut Frames) {
        match self {
            Self::Message(message) => frames.say(message),
            Self::Event(told) => frames.tell(told),
        }
    }
}

/// What a party that was not asked about gets: nothing.
const UNDECIDED: Verdict = Verdict { new: Visibility::Failed, old: Visibility::Failed };

fn count_messages(result: &'static str, count: usize) {
    let count = u64::try_from(count).unwrap_or(u64::MAX);
    metrics::counter!(telemetry::DATABASE_BROADCASTS, telemetry::RESULT => result).increment(count);
}

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
