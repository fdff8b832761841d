//! What changes of mapped tables say to which rooms.
//!
//! In:     completed changes with what was declared for their tables at their place in the log.
//! Out:    [`Told`]: events with their rooms, in their place among the row changes.
//! Never:  an event for a room that nobody is in; one in a public room that was not declared so.
//!
//! Several events of one change have one place. All but the last carry the cursor of the change
//! before: whoever comes back with it is told all of them again, rather than not the rest.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hashbrown::HashMap;
use tracing::warn;

use super::decide::Unanswered;
use super::lookups::{Key, Lookup};
use super::memory::Memory;
use super::publish::Publisher;
use crate::change::value;
use crate::change::{Change, Commit, Origin, Relation};
use crate::cursor::Place;
use crate::event::broadcast::{Broadcast, Encoding, Meta, UserEvent};
use crate::event::row;
use crate::hub::RoomName;
use crate::lsn::Lsn;
use crate::mapping::{self, Declaration, Firing, Gathered, Group, Limits, Looked, Plan, Refusal};
use crate::telemetry;

/// What the topic of every channel begins with.
const TOPIC_PREFIX: &str = "realtime:";

/// Rows of one gathered event.
const GATHERED_ROWS_MAX: usize = 1000;

/// Bytes that are gathered of one transaction.
const GATHERED_BYTES_MAX: usize = 4 << 20;

/// The same refusal of a rule is told at most this often.
const REFUSAL_INTERVAL: Duration = Duration::from_secs(10);

/// Refusals whose last time is remembered; beyond it all are forgotten.
const REFUSALS_MAX: usize = 1000;

/// A change of a mapped table.
#[derive(Debug)]
pub(super) struct Mapped {
    /// Its number among the changes at hand.
    pub change: usize,
    /// What was declared at its place.
    pub declaration: Arc<Declaration>,
    /// It was published before: only what is gathered from it is still owed.
    pub again: bool,
}

/// An event on its way to its rooms.
#[derive(Debug)]
pub(super) struct Told {
    /// Who is told.
    pub rooms: Box<[RoomName]>,
    /// What.
    pub what: Broadcast,
    /// The connection that is left out.
    pub except: Option<Box<str>>,
    /// Its place in the log.
    pub place: Place,
    /// What whoever has it has.
    pub reached: Place,
}

/// What a run of changes says.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// In order.
    pub told: Vec<Told>,
    /// What is gathered after it.
    pub gathered: Gathered,
}

/// A rule's plan for the table as it was defined.
#[derive(Debug)]
pub(super) struct Planned {
    declaration: Arc<Declaration>,
    relation: Arc<Relation>,
    plan: Arc<Plan>,
}

/// A firing that is looked up for, or rendered.
struct Due<'a> {
    change: &'a Change,
    declaration: i64,
    plan: Arc<Plan>,
    firing: Firing,
    again: bool,
}

impl Publisher {
    /// What changes say. `ended`: the last transaction that is complete with them and from whose
    /// rows events are gathered.
    pub(super) async fn domain(
        &self,
        changes: &[Change],
        mapped: &[Mapped],
        ended: Option<Lsn>,
        memory: &mut Memory,
    ) -> Result<Said, Unanswered> {
        let mut due = Vec::new();
        for Mapped { change, declaration, again } in mapped {
            let change = &changes[*change];
            let plan = memory.plan(declaration, &change.relation);
            let fired = mapping::fire(&plan, change);
            for (rule, refusal) in fired.refused {
                memory.refuse(declaration, rule, refusal, &change.relation);
            }
            for firing in fired.firings {
                let rule = &plan.rules[firing.rule];
                let gathers = rule.aggregate.is_some();
                if *again && !gathers {
                    continue;
                }
                // Who comes while a transaction is read hears what it says when it ends.
                let heard = gathers || self.is_heard(&firing.topics, rule.public);
                if heard {
                    let (plan, again) = (Arc::clone(&plan), *again);
                    due.push(Due { change, declaration: declaration.id, plan, firing, again });
                }
            }
        }
        let mut looked = self.looked_up(&due).await?;
        // Kept only when all of it is out: what is asked again is gathered again.
        let mut said = Said { told: Vec::new(), gathered: memory.gathered.clone() };
        let limits = Limits {
            rows_max: GATHERED_ROWS_MAX,
            group_bytes_max: self.payload_bytes_max / 2,
            bytes_max: GATHERED_BYTES_MAX,
        };
        for (number, Due { change, declaration, plan, firing, again }) in due.iter().enumerate() {
            if said.gathered.commit().is_some_and(|open| open.lsn < change.commit.lsn) {
                self.end_gathering(&mut said, memory);
            }
            let rule = &plan.rules[firing.rule];
            let looked = std::mem::take(&mut looked[number]);
            let mut payload = Vec::new();
            mapping::render(plan, change, firing, &looked, &mut payload);
            let (event, topics) = (Arc::clone(&rule.event), firing.topics.clone());
            let place = change.place();
            if let Some(name) = &rule.aggregate {
                let group = Group::new(
                    *declaration,
                    firing.rule,
                    event,
                    topics,
                    rule.public,
                    rule.exclude_origin,
                    change.origin.clone(),
                    name.clone(),
                );
                let full = said.gathered.add(change.commit, group, &payload, limits);
                for group in full.into_iter().filter(|_| !again) {
                    self.tell_group(group, change.commit, place, &mut said.told, memory);
                }
                continue;
            }
            let last = due.get(number + 1).is_none_or(|next| next.change.place() != place);
            let reached = if last { place } else { before(place) };
            let event = Event {
                name: event,
                topics,
                public: rule.public,
                exclude_origin: rule.exclude_origin,
                origin: change.origin.clone(),
                table: &change.relation.table,
                payload,
            };
            self.tell(event, change.commit, (place, reached), &mut said.told, memory);
        }
        if said.gathered.commit().is_some_and(|open| ended.is_some_and(|ended| open.lsn <= ended)) {
            self.end_gathering(&mut said, memory);
        }
        Ok(said)
    }

    fn is_heard(&self, topics: &[Box<str>], public: bool) -> bool {
        topics.iter().any(|topic| self.hub.has_room(&room(topic, public)))
    }

    /// What each of these looks up.
    async fn looked_up(&self, due: &[Due<'_>]) -> Result<Vec<Vec<Looked>>, Unanswered> {
        let mut wanted: HashMap<Lookup, Vec<Key>> = HashMap::new();
        let lookups = |due: &Due<'_>| -> Vec<(Lookup, Option<Key>)> {
            let rule = &due.plan.rules[due.firing.rule];
            let keys = due.plan.keys(due.change, &due.firing);
            let lookup = |lookup: &mapping::LookupPlan| Lookup {
                declaration: due.declaration,
                rule: due.firing.rule,
                name: lookup.name.clone(),
                columns: lookup.columns.clone(),
            };
            rule.lookups.iter().map(lookup).zip(keys).collect()
        };
        for (lookup, key) in due.iter().flat_map(lookups) {
            let Some(key) = key else { continue };
            let keys = wanted.entry(lookup).or_default();
            if keys.last() != Some(&key) {
                keys.push(key);
            }
        }
        for keys in wanted.values_mut() {
            keys.sort_unstable();
            keys.dedup();
        }
        let found = self.lookups.find(wanted).await?;
        let looked = |(lookup, key): (Lookup, Option<Key>)| {
            let rows = found.get(&lookup)?;
            rows.get(&key?).cloned().flatten()
        };
        Ok(due.iter().map(|due| lookups(due).into_iter().map(looked).collect()).collect())
    }

    fn end_gathering(&self, said: &mut Said, memory: &mut Memory) {
        let Some(commit) = said.gathered.commit() else { return };
        for group in said.gathered.take() {
            self.tell_group(group, commit, Place::after(commit.lsn), &mut said.told, memory);
        }
    }

    fn tell_group(
        &self,
        group: Group,
        commit: Commit,
        place: Place,
        told: &mut Vec<Told>,
        memory: &mut Memory,
    ) {
        let payload = group.payload();
        let Group { event, topics, public, exclude_origin, origin, .. } = group;
        let (name, table) = (event, "");
        let event = Event { name, topics, public, exclude_origin, origin, table, payload };
        let reached = if place.ordinal == u32::MAX { place } else { before(place) };
        self.tell(event, commit, (place, reached), told, memory);
    }

    fn tell(
        &self,
        event: Event<'_>,
        commit: Commit,
        (place, reached): (Place, Place),
        told: &mut Vec<Told>,
        memory: &mut Memory,
    ) {
        let Event { name, topics, public, exclude_origin, origin, table, payload } = event;
        if !self.is_heard(&topics, public) {
            return;
        }
        if payload.len() > self.payload_bytes_max {
            metrics::counter!(telemetry::WITHHELD, telemetry::REASON => "mapping_size")
                .increment(1);
            if memory.is_due((0, 0, None)) {
                let bytes = payload.len();
                warn!(
                    event = &*name,
                    bytes, "the payload of an event is too large: nobody is told"
                );
            }
            return;
        }
        let rooms = topics.iter().map(|topic| room(topic, public)).collect();
        let number = told.iter().rev().take_while(|earlier| earlier.place == place).count();
        let id = format!("{:016X}-{:08x}.{number}", place.commit.get(), place.ordinal);
        let about = about(origin.as_deref(), table, commit);
        let (id, replayed) = (Some(id.into()), self.is_of_the_past());
        let meta = Meta { id, replayed, about: Some(about.into()), ..Meta::default() };
        let (encoding, data) = (Encoding::Json, Bytes::from(payload));
        let what = Broadcast::User(UserEvent { event: (*name).into(), encoding, data, meta });
        let except = origin.filter(|_| exclude_origin);
        let except = except.and_then(|origin| origin.connection_id.clone());
        told.push(Told { rooms, what, except, place, reached });
    }
}

/// One event, rendered.
struct Event<'a> {
    name: Arc<str>,
    topics: Box<[Box<str>]>,
    public: bool,
    exclude_origin: bool,
    origin: Option<Arc<Origin>>,
    table: &'a str,
    payload: Vec<u8>,
}

fn room(topic: &str, public: bool) -> RoomName {
    RoomName { topic: [TOPIC_PREFIX, topic].concat().into(), private: !public }
}

/// The place before this one.
fn before(place: Place) -> Place {
    match place.ordinal.checked_sub(1) {
        Some(ordinal) => Place { ordinal, ..place },
        None => Place::before(place.commit),
    }
}

/// What the server says of an event beside its name and cursor: members of an object.
fn about(origin: Option<&Origin>, table: &str, commit: Commit) -> String {
    let mut out = Vec::new();
    let mut member = |name: &str, text: Option<&str>| {
        if let Some(text) = text {
            out.extend_from_slice(format!("\"{name}\":").as_bytes());
            value::string(text.as_bytes(), &mut out);
            out.push(b',');
        }
    };
    member("actor", origin.and_then(|origin| origin.sub.as_deref()));
    member("mutation_id", origin.and_then(|origin| origin.mutation_id.as_deref()));
    member("table", Some(table).filter(|table| !table.is_empty()));
    out.extend_from_slice(b"\"commit_timestamp\":");
    row::timestamp(commit.time, &mut out);
    String::from_utf8(out).expect("JSON is text")
}

impl Memory {
    /// The places of a declaration's columns.
    fn plan(&mut self, declaration: &Arc<Declaration>, relation: &Arc<Relation>) -> Arc<Plan> {
        let known = self.plans.get(&relation.oid).filter(|known| {
            Arc::ptr_eq(&known.declaration, declaration) && Arc::ptr_eq(&known.relation, relation)
        });
        if let Some(known) = known {
            return Arc::clone(&known.plan);
        }
        let plan = Arc::new(Plan::new(declaration, relation));
        let (declaration, relation) = (Arc::clone(declaration), Arc::clone(relation));
        let planned = Planned { declaration, relation, plan: Arc::clone(&plan) };
        self.plans.insert(planned.relation.oid, planned);
        plan
    }

    /// Whether something may be said about this again.
    fn is_due(&mut self, what: (i64, usize, Option<Refusal>)) -> bool {
        let now = Instant::now();
        if self.refusals.len() >= REFUSALS_MAX {
            self.refusals.clear();
        }
        let last = self.refusals.get(&what);
        let due = last.is_none_or(|last| now.duration_since(*last) >= REFUSAL_INTERVAL);
        if due {
            self.refusals.insert(what, now);
        }
        due
    }

    /// Says that a row's event was not made, and why.
    fn refuse(
        &mut self,
        declaration: &Declaration,
        rule: usize,
        refusal: Refusal,
        relation: &Relation,
    ) {
        let reason = telemetry::REASON;
        metrics::counter!(telemetry::WITHHELD, reason => refusal.as_str()).increment(1);
        if !self.is_due((declaration.id, rule, Some(refusal))) {
            return;
        }
        let event = declaration.rules.get(rule).map_or("", |rule| &rule.event);
        let (schema, table) = (&relation.schema, &relation.table);
        match refusal {
            Refusal::Column => {
                warn!(%schema, %table, event, "an event needs a column that is not in the log");
            }
            Refusal::Topic => {
                warn!(%schema, %table, event, "a row's value cannot be part of a topic");
            }
            Refusal::OldRow => {
                warn!(%schema, %table, event, "an event needs the old row: set replica identity full");
            }
        }
    }
}
