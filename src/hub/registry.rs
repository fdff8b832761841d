//! The hub's tables: audiences, parties, bindings and the index of each relation.
//!
//! In:     calls under the hub's lock; nothing here waits or does IO.
//! Out:    candidates, views, offered frames.
//! Never:  a walk over all subscriptions of a table for one change.

use std::sync::Arc;
use std::time::SystemTime;

use hashbrown::{Equivalent, HashMap, HashSet};

use super::index::TableIndex;
use super::outbox::DirtyList;
use super::predicate::{Image, Match, Predicate, Unbound};
use super::subscription::{Name, Subscription};
use super::{
    AudienceView, Candidate, Delivery, Format, Interest, Membership, Outgoing, Recipients,
    Registration, Side, Subscriber, Turn,
};
use crate::auth::Claims;
use crate::change::{Change, OldImage, Operation, Relation};

/// Names one audience. Never used twice: what was decided for one that is gone reaches nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AudienceId(u64);

/// Stands for one (role, claims) among current subscribers. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClaimsId(u64);

/// One subscription of one audience. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BindingId(u64);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct AudienceKey {
    format: u8,
    topic: Arc<str>,
    role: Arc<str>,
    interests: Arc<[Interest]>,
}

#[derive(Debug)]
struct Audience {
    key: AudienceKey,
    format: Format,
    bindings: Box<[BindingId]>,
    parties: HashMap<ClaimsId, Vec<Arc<Subscriber>>>,
}

#[derive(Debug)]
struct Binding {
    audience: AudienceId,
    interest: Arc<Interest>,
}

#[derive(Debug)]
struct Interned {
    role: Arc<str>,
    json: Arc<str>,
    uses: usize,
}

#[derive(Hash)]
struct ClaimsKeyRef<'a>(&'a str, &'a str);

#[derive(Debug, PartialEq, Eq, Hash)]
struct ClaimsKey(Arc<str>, Arc<str>);

impl Equivalent<ClaimsKey> for ClaimsKeyRef<'_> {
    fn equivalent(&self, key: &ClaimsKey) -> bool {
        *self.0 == *key.0 && *self.1 == *key.1
    }
}

#[derive(Debug)]
struct Table {
    relation: Arc<Relation>,
    /// The log names its partitions instead.
    by_partition: bool,
    index: TableIndex<BindingId>,
    bindings: HashSet<BindingId>,
    /// Somebody fits only the definition to come.
    stale: bool,
}

type TableName = (Option<Box<str>>, Option<Box<str>>);

#[derive(Debug, Default)]
pub(super) struct Registry {
    audiences: HashMap<AudienceId, Audience>,
    audience_ids: HashMap<AudienceKey, AudienceId>,
    bindings: HashMap<BindingId, Binding>,
    claims: HashMap<ClaimsId, Interned>,
    claims_ids: HashMap<ClaimsKey, ClaimsId>,
    tables: HashMap<u32, Table>,
    /// Tables asked for, by schema and table (none: any), with the number of bindings.
    asked: HashMap<TableName, usize>,
    /// Bindings on a partitioned table.
    pub(super) partitioned: usize,
    /// Numbers given out so far.
    numbers: u64,
    pub(super) generation: u64,
    pub(super) subscribers: usize,
    pub(super) in_flight: bool,
    pub(super) deferred: Vec<(Arc<Membership>, Turn, Deferred)>,
}

/// What waits for the end of a batch.
#[derive(Debug)]
pub(super) enum Deferred {
    /// A move under other claims.
    Refresh(Registration),
    /// A stand-in for other claims.
    StandIn(Arc<Claims>),
}

impl Registry {
    pub(super) fn join(&mut self, registration: Registration) -> (AudienceId, ClaimsId) {
        let Registration { subscriber, format, topic, claims, interests } = registration;
        let claims_id = self.intern(&claims.role, &claims.json);
        let role = Arc::clone(&claims.role);
        let key = AudienceKey { format: format.id, topic, role, interests };
        let id = match self.audience_ids.get(&key) {
            Some(&id) => id,
            None => self.open_audience(key, format),
        };
        let audience = self.audiences.get_mut(&id).expect("it was open or is now");
        audience.parties.entry(claims_id).or_default().push(subscriber);
        self.subscribers += 1;
        (id, claims_id)
    }

    /// The same subscriptions under other claims; none when one of them has ended.
    pub(super) fn again(
        &self,
        id: AudienceId,
        subscriber: Arc<Subscriber>,
        claims: Arc<Claims>,
    ) -> Option<Registration> {
        let Audience { key, format, .. } = self.audiences.get(&id)?;
        let whole = self.audience_ids.get(key) == Some(&id);
        let (topic, interests) = (Arc::clone(&key.topic), Arc::clone(&key.interests));
        let format = *format;
        whole.then_some(Registration { subscriber, format, topic, claims, interests })
    }

    /// The claims of a party, valid until then.
    pub(super) fn claims(&self, id: ClaimsId, expires_at: SystemTime) -> Option<Arc<Claims>> {
        let Interned { role, json, .. } = self.claims.get(&id)?;
        let (role, json) = (Arc::clone(role), Arc::clone(json));
        Some(Arc::new(Claims { role, subject: None, json, expires_at }))
    }

    pub(super) fn leave(
        &mut self,
        subscriber: &Arc<Subscriber>,
        audience: AudienceId,
        claims: ClaimsId,
    ) {
        let parties = &mut self.audiences.get_mut(&audience).expect("a member's is open").parties;
        let party = parties.get_mut(&claims).expect("a member's party exists");
        let place = party.iter().position(|member| Arc::ptr_eq(member, subscriber));
        party.swap_remove(place.expect("a member is in its party"));
        if party.is_empty() {
            parties.remove(&claims);
        }
        let closed = parties.is_empty();
        if closed {
            self.close_audience(audience);
        }
        self.subscribers -= 1;
        self.release(claims);
    }

    fn intern(&mut self, role: &Arc<str>, json: &Arc<str>) -> ClaimsId {
        if let Some(&id) = self.claims_ids.get(&ClaimsKeyRef(role, json)) {
            self.claims.get_mut(&id).expect("an interned one is there").uses += 1;
            return id;
        }
        let (role, json) = (Arc::clone(role), Arc::clone(json));
        let key = ClaimsKey(Arc::clone(&role), Arc::clone(&json));
        let id = ClaimsId(self.number());
        self.claims.insert(id, Interned { role, json, uses: 1 });
        self.claims_ids.insert(key, id);
        id
    }

    fn release(&mut self, id: ClaimsId) {
        let claims = self.claims.get_mut(&id).expect("claims in use are there");
        claims.uses -= 1;
        if claims.uses == 0 {
            self.claims_ids.remove(&ClaimsKeyRef(&claims.role, &claims.json));
            self.claims.remove(&id);
        }
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn open_audience(&mut self, key: AudienceKey, format: Format) -> AudienceId {
        let id = AudienceId(self.number());
        let mut bindings = Vec::with_capacity(key.interests.len());
        for interest in &*key.interests {
            let interest = Arc::new(interest.clone());
            let binding = BindingId(self.number());
            let asked = self.asked.entry(table_name(&interest.subscription)).or_default();
            *asked += 1;
            if *asked == 1 {
                self.generation += 1;
            }
            if interest.partitioned {
                self.partitioned += 1;
                self.generation += 1;
            }
            for table in self.tables.values_mut() {
                if table.is_covered_by(&interest.subscription) {
                    // The table changed since its last row. Its next one defines it anew, and then
                    // whoever does not fit is told.
                    table.stale |= table.add(binding, &interest).is_err();
                }
            }
            self.bindings.insert(binding, Binding { audience: id, interest });
            bindings.push(binding);
        }
        let (bindings, parties) = (bindings.into(), HashMap::new());
        self.audiences.insert(id, Audience { key: key.clone(), format, bindings, parties });
        self.audience_ids.insert(key, id);
        id
    }

    fn close_audience(&mut self, id: AudienceId) {
        let Some(audience) = self.audiences.remove(&id) else { return };
        if self.audience_ids.get(&audience.key) == Some(&id) {
            self.audience_ids.remove(&audience.key);
        }
        for binding in audience.bindings {
            self.close_binding(binding);
        }
    }

    fn close_binding(&mut self, id: BindingId) {
        let Some(Binding { interest, .. }) = self.bindings.remove(&id) else { return };
        if interest.partitioned {
            self.partitioned -= 1;
            self.generation += 1;
        }
        let name = table_name(&interest.subscription);
        if let Some(count) = self.asked.get_mut(&name) {
            *count -= 1;
            if *count == 0 {
                self.asked.remove(&name);
                self.generation += 1;
            }
        }
        for table in self.tables.values_mut() {
            if table.bindings.remove(&id) {
                table.index.remove(id);
            }
        }
    }

    /// Ends one subscription of an audience for good. Whoever asks for the same later has to be
    /// checked anew, and does not come into this audience.
    pub(super) fn end_binding(&mut self, id: BindingId) -> Option<AudienceId> {
        let audience = self.bindings.get(&id)?.audience;
        self.close_binding(id);
        if let Some(Audience { key, .. }) = self.audiences.get(&audience)
            && self.audience_ids.get(key) == Some(&audience)
        {
            self.audience_ids.remove(key);
        }
        Some(audience)
    }

    pub(super) fn wants(&self, schema: &str, table: &str) -> bool {
        if self.asked.is_empty() {
            return false;
        }
        let (schema, table) = (Some(schema.into()), Some(table.into()));
        [(schema.clone(), table.clone()), (schema, None), (None, table), (None, None)]
            .iter()
            .any(|name: &TableName| self.asked.contains_key(name))
    }

    /// Returns the audiences whose filters no longer fit the table.
    pub(super) fn define(
        &mut self,
        relation: &Arc<Relation>,
        by_partition: bool,
    ) -> Vec<(AudienceId, Unbound)> {
        let mut unfit = Vec::new();
        let known = self.tables.get(&relation.oid);
        let same =
            |t: &Table| !t.stale && t.by_partition == by_partition && t.relation == *relation;
        if known.is_some_and(same) {
            return unfit;
        }
        let mut table = Table {
            relation: Arc::clone(relation),
            by_partition,
            index: TableIndex::default(),
            bindings: HashSet::new(),
            stale: false,
        };
        for (id, binding) in &self.bindings {
            if table.is_covered_by(&binding.interest.subscription)
                && let Err(error) = table.add(*id, &binding.interest)
            {
                unfit.push((binding.audience, error));
            }
        }
        self.tables.insert(relation.oid, table);
        unfit
    }

    pub(super) fn rename(&mut self, relation: u32, schema: &str, table: &str) -> Vec<AudienceId> {
        let Some(known) = self.tables.get(&relation) else { return Vec::new() };
        if *known.relation.schema == *schema && *known.relation.table == *table {
            return Vec::new();
        }
        // Defined anew with its next row, if anybody asked for it under its new name.
        let bindings = self.tables.remove(&relation).into_iter().flat_map(|known| known.bindings);
        let asked = bindings.filter_map(|id| self.bindings.get(&id));
        let lost = asked.filter(|binding| !binding.interest.subscription.covers(schema, table));
        let mut audiences: Vec<_> = lost.map(|binding| binding.audience).collect();
        audiences.sort_unstable();
        audiences.dedup();
        audiences
    }

    pub(super) fn candidates(&self, changes: &[Change], move_out: bool) -> Vec<Candidate> {
        let mut found = Vec::new();
        let (mut new, mut old) = (Vec::new(), Vec::new());
        for (number, change) in changes.iter().enumerate() {
            let Some(table) = self.tables.get(&change.relation.oid) else { continue };
            let number = u32::try_from(number).expect("a batch holds fewer changes than 2^32");
            let mut push = |binding: BindingId, side, old_matches, answer| {
                let Some(entry) = self.bindings.get(&binding) else { return };
                let (audience, ask) = (entry.audience, answer == Match::Ask);
                let change = number;
                found.push(Candidate { change, audience, binding, side, old_matches, ask });
            };
            new.clear();
            old.clear();
            match change.operation {
                Operation::Insert => {
                    let Some(record) = &change.record else { continue };
                    table.index.candidates(Operation::Insert, record, Image::Whole, &mut new);
                    for &(binding, answer) in &new {
                        push(binding, Side::Shown, false, answer);
                    }
                }
                Operation::Delete => {
                    let Some((image, record)) = &change.old_record else { continue };
                    let image = match image {
                        OldImage::Full => Image::Whole,
                        OldImage::Key => Image::Key,
                    };
                    table.index.candidates(Operation::Delete, record, image, &mut new);
                    for &(binding, answer) in &new {
                        push(binding, Side::Shown, true, answer);
                    }
                }
                Operation::Update => {
                    let Some(record) = &change.record else { continue };
                    table.index.candidates(Operation::Update, record, Image::Whole, &mut new);
                    let whole = match &change.old_record {
                        Some((OldImage::Full, old)) if move_out => Some(old),
                        Some(_) | None => None,
                    };
                    if let Some(record) = whole {
                        // Who listens for deletions and accepted the old row.
                        table.index.candidates(Operation::Delete, record, Image::Whole, &mut old);
                        old.sort_unstable_by_key(|&(binding, _)| binding);
                    }
                    for &(binding, answer) in &new {
                        let was = old.binary_search_by_key(&binding, |&(id, _)| id);
                        push(binding, Side::Shown, was.is_ok(), answer);
                        if let (Match::Ask, Ok(was)) = (answer, was) {
                            // If Postgres says that the new row is not accepted, this holds.
                            push(binding, Side::Left, true, old[was].1);
                        }
                    }
                    if old.is_empty() {
                        continue;
                    }
                    new.sort_unstable_by_key(|&(binding, _)| binding);
                    for &(binding, answer) in &old {
                        if new.binary_search_by_key(&binding, |&(id, _)| id).is_err() {
                            push(binding, Side::Left, true, answer);
                        }
                    }
                }
            }
        }
        found
    }

    /// Looks at every binding: for what happens rarely.
    pub(super) fn listeners(&self, schema: &str, table: &str) -> HashSet<AudienceId> {
        let bindings = self.bindings.values();
        let concerned = bindings.filter(|b| b.interest.subscription.covers(schema, table));
        concerned.map(|binding| binding.audience).collect()
    }

    pub(super) fn forget_tables(&mut self) {
        self.tables.clear();
    }

    pub(super) fn view(&self, id: AudienceId) -> Option<AudienceView> {
        let audience = self.audiences.get(&id)?;
        let json = |id: &ClaimsId| Arc::clone(&self.claims[id].json);
        Some(AudienceView {
            format: audience.format,
            topic: Arc::clone(&audience.key.topic),
            role: Arc::clone(&audience.key.role),
            parties: audience.parties.keys().map(|id| (*id, json(id))).collect(),
        })
    }

    pub(super) fn audiences(&self) -> Vec<AudienceId> {
        self.audiences.keys().copied().collect()
    }

    pub(super) fn interest(&self, id: BindingId) -> Option<Arc<Interest>> {
        self.bindings.get(&id).map(|binding| Arc::clone(&binding.interest))
    }

    pub(super) fn predicate(&self, id: BindingId, relation: u32) -> Option<Predicate> {
        self.tables.get(&relation)?.index.predicate(id).cloned()
    }

    pub(super) fn everybody(&self, audience: AudienceId) -> Vec<Arc<Subscriber>> {
        let audience = self.audiences.get(&audience).into_iter();
        audience.flat_map(|audience| audience.parties.values().flatten()).cloned().collect()
    }

    pub(super) fn party(&self, audience: AudienceId, claims: ClaimsId) -> Vec<Arc<Subscriber>> {
        let audience = self.audiences.get(&audience);
        audience.and_then(|a| a.parties.get(&claims)).cloned().unwrap_or_default()
    }

    /// Whether nothing is kept of anybody.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.audiences.is_empty()
            && self.audience_ids.is_empty()
            && self.bindings.is_empty()
            && self.claims.is_empty()
            && self.claims_ids.is_empty()
            && self.asked.is_empty()
            && self.deferred.is_empty()
            && self.tables.values().all(|t| t.bindings.is_empty() && t.index.is_empty())
    }

    /// Queues frames of row changes; returns how many. What is said to rooms is passed over.
    pub(super) fn offer(&self, outgoing: &[Outgoing], now: u64, dirty: &mut DirtyList) -> u64 {
        let mut delivered = 0;
        for outgoing in outgoing {
            let Outgoing::Rows(delivery) = outgoing else { continue };
            let Some(audience) = self.audiences.get(&delivery.audience) else { continue };
            match &delivery.to {
                Recipients::All => {
                    for party in audience.parties.values() {
                        delivered += offer_all(party, delivery, now, dirty);
                    }
                }
                Recipients::Parties(parties) => {
                    for party in parties.iter().filter_map(|id| audience.parties.get(id)) {
                        delivered += offer_all(party, delivery, now, dirty);
                    }
                }
            }
        }
        delivered
    }
}

fn offer_all(
    party: &[Arc<Subscriber>],
    delivery: &Delivery,
    now: u64,
    dirty: &mut DirtyList,
) -> u64 {
    let Delivery { frames, places, .. } = delivery;
    for subscriber in party {
        if subscriber.offer_rows(frames, places, now) {
            dirty.push(subscriber.outbox());
        }
    }
    u64::try_from(party.len() * frames.len()).unwrap_or(u64::MAX)
}

/// For tests of what is done with ids that a registry gives out.
#[cfg(test)]
impl AudienceId {
    pub(crate) const fn of(number: u64) -> Self {
        Self(number)
    }
}

#[cfg(test)]
impl ClaimsId {
    pub(crate) const fn of(number: u64) -> Self {
        Self(number)
    }
}

impl Table {
    fn is_covered_by(&self, subscription: &Subscription) -> bool {
        covers(subscription, &self.relation) && !(self.by_partition && subscription.is_of_many())
    }

    fn add(&mut self, binding: BindingId, interest: &Interest) -> Result<(), Unbound> {
        let predicate = Predicate::compile(&interest.conditions, &self.relation)?;
        self.index.insert(binding, interest.subscription.events, predicate);
        self.bindings.insert(binding);
        Ok(())
    }
}

fn table_name(subscription: &Subscription) -> TableName {
    let name = |name: &Name| match name {
        Name::Any => None,
        Name::Is(name) => Some(name.clone()),
    };
    (name(&subscription.schema), name(&subscription.table))
}

fn covers(subscription: &Subscription, relation: &Relation) -> bool {
    subscription.covers(&relation.schema, &relation.table)
}
