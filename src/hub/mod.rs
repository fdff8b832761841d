//! The hub: who subscribed to what, and how finished frames reach them.
//!
//! In:     registrations of subscribers; changes (whom could they concern?); finished frames; what is
//!         said in rooms, and who is present there.
//! Out:    candidates for the authoriser; frames in the outboxes, in commit order.
//! Never:  a client's JSON, a decision about rights, a wait.
//!
//! Subscribers that would get the same frames form an *audience*: same wire format, topic, role and
//! subscriptions. Its frames are made once. Inside it, subscribers with the same claims form a
//! *party*: rights are asked once for each party.
//!
//! A channel that comes back with a cursor is in two hubs for a while: here, where what comes through
//! the log waits, and in one of its own in the past ([`Hub::enter_past`]), where it is sent what it
//! missed.

mod datum;
mod filter;
mod index;
pub mod outbox;
mod past;
mod predicate;
mod presence;
mod registry;
mod rooms;
mod subscriber;
mod subscription;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hashbrown::HashSet;

use crate::auth::Claims;
use crate::change::{Change, Operation, Relation};
use crate::config;
use crate::cursor::{Cursor, Epoch, Place};
use crate::event::broadcast::Broadcast;

pub use filter::{
    CONDITIONS_MAX, Condition, FILTER_BYTES_MAX, Operator, ParseError, parse, segments,
};
pub use index::TableIndex;
pub use past::{Comeback, Newest, Returner, SubscriptionEnded, Word};
pub use predicate::{Bound, Image, Is, Match, Operand, Predicate, Question, Unbound, canonical};
pub use presence::{MemberId, Presence, Supply, TrackError};
pub use registry::{AudienceId, BindingId, ClaimsId};
pub use rooms::{Entrant, Occupancy, Replayed, RoomName};
pub use subscriber::{Inbox, Subscriber};
pub use subscription::{Events, Name, Subscription, SubscriptionError};

use outbox::DirtyList;
use registry::{Deferred, Registry};
use rooms::Rooms;

/// How an audience's frames are written: one function for each wire format.
#[derive(Clone, Copy)]
pub struct Format {
    /// Tells formats apart; formats with the same number must write the same bytes.
    pub id: u8,
    /// What its frames are written for, where one protocol has several: given to whatever writes
    /// them.
    pub namespace: &'static str,
    /// A row's change → frame.
    pub encode: fn(&Shown<'_>) -> Bytes,
    /// Namespace, topic, broadcast, its place when it came through the log → frame; none when the
    /// format cannot say it.
    pub broadcast: fn(&str, &str, &Broadcast, Option<Cursor>) -> Option<Bytes>,
    /// Topic, event, payload (a JSON object) → frame.
    pub push: fn(&str, &str, &[u8]) -> Bytes,
    /// Namespace, topic, how a channel that came back goes on → frame.
    pub word: fn(&str, &str, &Word) -> Bytes,
}

/// A row's change as one audience is shown it.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    /// Topic as it stands in frames.
    pub topic: &'a str,
    /// Ids of the subscriptions that matched.
    pub ids: &'a [u32],
    /// What happened, as shown.
    pub operation: Operation,
    /// The rendered `data` object.
    pub data: &'a [u8],
    /// Its place in the log.
    pub cursor: Cursor,
}

impl std::fmt::Debug for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Format({})", self.id)
    }
}

/// A subscriber with everything that decides its frames.
#[derive(Debug)]
pub struct Registration {
    /// Whom to send to.
    pub subscriber: Arc<Subscriber>,
    /// Wire format.
    pub format: Format,
    /// Topic as it stands in frames.
    pub topic: Arc<str>,
    /// Whose rights decide.
    pub claims: Arc<Claims>,
    /// What it asked for, checked.
    pub interests: Arc<[Interest]>,
}

/// A subscription that was checked against the tables it names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Interest {
    /// What was asked for.
    pub subscription: Subscription,
    /// Its conditions as Postgres understands them.
    pub conditions: Box<[Bound]>,
    /// Its one table is partitioned: changes may come under the names of its partitions.
    pub partitioned: bool,
}

/// A place in the hub; dropping it leaves.
#[derive(Debug)]
pub struct Membership {
    hub: Weak<Hub>,
    subscriber: Arc<Subscriber>,
    at: Mutex<Seat>,
    /// Changed under the hub's lock only.
    stand_in: Mutex<Option<Box<StandIn>>>,
    turns: AtomicU64,
    /// Where its row changes begin, as was found when it joined.
    begins: Place,
    /// Its place in the past, while it catches up.
    past: Mutex<Option<Box<Membership>>>,
}

/// Holds what newer claims are shown, until it is known whether they may subscribe.
#[derive(Debug)]
struct StandIn {
    turn: Turn,
    claims: Arc<Claims>,
    subscriber: Arc<Subscriber>,
    audience: AudienceId,
    party: ClaimsId,
}

/// So long before claims expire a stand-in takes its place, if newer ones are looked at then: longer
/// than one look takes, and changes that are being decided when it comes.
const STAND_IN_BEFORE: Duration = Duration::from_secs(20);

/// One attempt to put a membership under other claims. Only the latest counts: the older one may
/// have waited longer for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn(u64);

impl Membership {
    /// Begins a refresh; those that are under way come to nothing.
    pub fn begin_refresh(&self) -> Turn {
        Turn(self.turns.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Whether this refresh is still wanted: no later one has begun, and the channel is there.
    pub fn is_awaiting(&self, turn: Turn) -> bool {
        self.turns.load(Ordering::Relaxed) == turn.0 && !matches!(*self.seat(), Seat::Gone)
    }

    /// How long until [`Hub::stand_in`] has something to do.
    pub fn until_stand_in(&self) -> Duration {
        self.subscriber.valid_for().saturating_sub(STAND_IN_BEFORE)
    }

    /// Its row changes begin after this place.
    pub const fn begins(&self) -> Place {
        self.begins
    }

    /// Whether it left.
    pub fn is_gone(&self) -> bool {
        matches!(*self.seat(), Seat::Gone) || self.subscriber.is_gone()
    }

    /// Whether its connection was handed every row change for it that was published before this
    /// call: it is neither behind nor between two tokens.
    pub fn is_current(&self) -> bool {
        // While it is put under other claims, nobody gets further than this.
        let seat = self.seat();
        let is_valid = match *seat {
            Seat::In(..) => !self.subscriber.valid_for().is_zero(),
            // It is owed no row changes.
            Seat::Out => true,
            Seat::Gone => false,
        };
        is_valid && self.subscriber.takes_everything()
    }

    fn seat(&self) -> MutexGuard<'_, Seat> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn standing_in(&self) -> MutexGuard<'_, Option<Box<StandIn>>> {
        self.stand_in.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was held for claims that `claims` continue; nothing is held any more.
    fn relieve(&self, registry: &mut Registry, claims: Option<&Arc<Claims>>) -> Vec<Bytes> {
        let Some(stand_in) = self.standing_in().take() else { return Vec::new() };
        registry.leave(&stand_in.subscriber, stand_in.audience, stand_in.party);
        let held = stand_in.subscriber.relieve();
        // What one user was shown is not told when the channel becomes another's.
        let continued = claims.is_some_and(|claims| {
            let same = claims.role == stand_in.claims.role
                && claims.subject == stand_in.claims.subject
                && claims.subject.is_some();
            same || Arc::ptr_eq(claims, &stand_in.claims)
        });
        if continued { held } else { Vec::new() }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if let Some(hub) = self.hub.upgrade() {
            hub.leave(self);
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Seat {
    In(AudienceId, ClaimsId),
    /// Its subscriptions were refused. Other claims may bring it in.
    Out,
    /// It left.
    Gone,
}

/// Why a binding was found for a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Its filter accepts the new row (for a DELETE: the old row).
    Shown,
    /// It listens for deletions and accepts the old row of an update, but not the new one. While
    /// Postgres has to say that, the binding comes as [`Self::Shown`] too, before this.
    Left,
}

/// One binding that may want one change.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// Place of the change in the batch.
    pub change: u32,
    /// Its audience.
    pub audience: AudienceId,
    /// The binding.
    pub binding: BindingId,
    /// What matched.
    pub side: Side,
    /// Whether the same update's old row was accepted too.
    pub old_matches: bool,
    /// Postgres has to finish the filter (`filter` decided all it could).
    pub ask: bool,
}

/// What the feed must know about an audience to make and address its frames.
#[derive(Debug, Clone)]
pub struct AudienceView {
    /// Wire format.
    pub format: Format,
    /// Topic as it stands in frames.
    pub topic: Arc<str>,
    /// Role of all its subscribers.
    pub role: Arc<str>,
    /// Distinct claims of its subscribers.
    pub parties: Box<[(ClaimsId, Arc<str>)]>,
}

/// To whom of an audience frames go.
#[derive(Debug, Clone)]
pub enum Recipients {
    /// Everybody.
    All,
    /// Subscribers with these claims.
    Parties(Box<[ClaimsId]>),
}

/// Frames for (part of) one audience.
#[derive(Debug)]
pub struct Delivery {
    /// Which audience.
    pub audience: AudienceId,
    /// Which of its subscribers.
    pub to: Recipients,
    /// Finished frames in commit order.
    frames: Vec<Bytes>,
    /// Of each frame, where its change stands in the log.
    places: Vec<Place>,
}

impl Delivery {
    /// Of one frame.
    pub fn new(audience: AudienceId, to: Recipients, place: Place, frame: Bytes) -> Self {
        Self { audience, to, frames: vec![frame], places: vec![place] }
    }

    /// Adds a frame of a later change, or of the same.
    pub fn push(&mut self, place: Place, frame: Bytes) {
        self.frames.push(frame);
        self.places.push(place);
    }

    /// Its frames in commit order.
    pub fn frames(&self) -> &[Bytes] {
        &self.frames
    }
}

/// What goes out, in its place among the rest.
#[derive(Debug)]
pub enum Outgoing {
    /// Frames of row changes.
    Rows(Delivery),
    /// What a stored message says to a room, and where it stands in the log.
    Said(RoomName, Broadcast, Cursor),
    /// What a change of a mapped table means to several rooms.
    Told(Told),
}

/// What several rooms are told, each connection once.
#[derive(Debug)]
pub struct Told {
    /// Which. Of those that a connection is in, it hears it in the first.
    pub rooms: Box<[RoomName]>,
    /// What.
    pub what: Broadcast,
    /// The connection that is left out, by the name it has for itself.
    pub except: Option<Box<str>>,
    /// Where it stands in the log.
    pub place: Place,
    /// What whoever has heard it has.
    pub cursor: Cursor,
}

/// All subscribers of this process.
#[derive(Debug)]
pub struct Hub {
    registry: Mutex<Registry>,
    /// How far the log was read. Whoever joins holds it: what was read before is not for him.
    read: Mutex<ReadTo>,
    rooms: Arc<Rooms>,
}

/// How far the log was read.
#[derive(Debug, Clone, Copy, Default)]
struct ReadTo {
    epoch: Epoch,
    place: Place,
}

impl Default for Hub {
    fn default() -> Self {
        Self::new(config::Presence::default())
    }
}

impl Hub {
    /// Nobody is there.
    pub fn new(presence: config::Presence) -> Self {
        let (registry, read) = (Mutex::default(), Mutex::default());
        Self { registry, read, rooms: Arc::new(Rooms::new(presence)) }
    }

    fn read(&self) -> MutexGuard<'_, ReadTo> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The log is read from here; `anew` when it is another one than before, or has a hole.
    pub fn read_at(&self, epoch: Epoch, place: Place, anew: bool) {
        let mut read = self.read();
        let place = if anew { place } else { read.place.max(place) };
        *read = ReadTo { epoch, place };
    }

    /// Reads on, and says how far. Whoever is there is asked what he wants; whoever joins later
    /// begins after it.
    pub fn while_reading<T>(&self, reading: impl FnOnce() -> (T, Place)) -> T {
        let mut read = self.read();
        let (found, place) = reading();
        read.place = read.place.max(place);
        found
    }

    /// How far the log was read.
    pub fn read_to(&self) -> Cursor {
        let ReadTo { epoch, place } = *self.read();
        Cursor { place, epoch }
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a subscriber; its frames are held until [`Subscriber::go_live`].
    pub fn join(self: &Arc<Self>, registration: Registration) -> Membership {
        self.join_from(registration, None)
    }

    /// Adds a subscriber that has everything up to `resume`, if it says so: then its row changes
    /// wait until [`Returner::caught_up`].
    pub fn join_from(
        self: &Arc<Self>,
        registration: Registration,
        resume: Option<Place>,
    ) -> Membership {
        let subscriber = Arc::clone(&registration.subscriber);
        let read = self.read();
        // What it claims to have counts only where it is behind.
        let begins = resume.map_or(read.place, |resume| resume.min(read.place));
        subscriber.begin_after(begins);
        if resume.is_some() {
            subscriber.catch_up();
        }
        let (audience, claims) = self.lock().join(registration);
        drop(read);
        self.membership(subscriber, Seat::In(audience, claims), begins)
    }

    /// A place for a subscriber that gets nothing until [`Self::refresh`] brings it in.
    pub fn outside(self: &Arc<Self>, subscriber: Arc<Subscriber>) -> Membership {
        self.membership(subscriber, Seat::Out, Place::ZERO)
    }

    fn membership(
        self: &Arc<Self>,
        subscriber: Arc<Subscriber>,
        seat: Seat,
        begins: Place,
    ) -> Membership {
        let (hub, at, turns) = (Arc::downgrade(self), Mutex::new(seat), AtomicU64::new(0));
        let (stand_in, past) = (Mutex::default(), Mutex::default());
        Membership { hub, subscriber, at, stand_in, turns, begins, past }
    }

    /// Removes a subscriber. Nothing reaches it after this returns.
    pub fn leave(&self, membership: &Membership) {
        let mut registry = self.lock();
        membership.subscriber.leave();
        membership.leave_past();
        membership.relieve(&mut registry, None);
        let seat = std::mem::replace(&mut *membership.seat(), Seat::Gone);
        if let Seat::In(audience, claims) = seat {
            registry.leave(&membership.subscriber, audience, claims);
        }
    }

    /// Takes a subscriber's subscriptions away, unless a later refresh has begun. Nothing reaches
    /// it after this returns, until a refresh brings it in again.
    pub fn suspend(&self, membership: &Membership, turn: Turn) {
        let mut registry = self.lock();
        if !membership.is_awaiting(turn) {
            return;
        }
        membership.leave_past();
        membership.relieve(&mut registry, None);
        let seat = std::mem::replace(&mut *membership.seat(), Seat::Out);
        if let Seat::In(audience, claims) = seat {
            registry.leave(&membership.subscriber, audience, claims);
        }
    }

    /// Puts a subscriber under new claims and newly checked subscriptions, unless a later refresh
    /// has begun.
    ///
    /// While a batch is being decided the change waits for its end: no event is decided by the
    /// old claims and sent under the new.
    pub fn refresh(&self, membership: &Arc<Membership>, turn: Turn, registration: Registration) {
        let mut dirty = DirtyList::default();
        let mut registry = self.lock();
        if registry.in_flight {
            let deferred = Deferred::Refresh(registration);
            registry.deferred.push((Arc::clone(membership), turn, deferred));
        } else {
            Self::move_to(&mut registry, membership, turn, registration, &mut dirty);
        }
        drop(registry);
    }

    /// While it is found out whether newer claims may subscribe, holds from the moment that the
    /// older ones expire what the newer ones are shown: [`Self::refresh`] delivers it, and
    /// [`Self::suspend`] forgets it. Does nothing long before that moment, or when a later refresh
    /// has begun.
    pub fn stand_in(&self, membership: &Arc<Membership>, turn: Turn, claims: &Arc<Claims>) {
        if !membership.until_stand_in().is_zero() {
            return;
        }
        let mut registry = self.lock();
        if registry.in_flight {
            let deferred = Deferred::StandIn(Arc::clone(claims));
            registry.deferred.push((Arc::clone(membership), turn, deferred));
        } else {
            Self::put_stand_in(&mut registry, membership, turn, Arc::clone(claims));
        }
    }

    fn put_stand_in(
        registry: &mut Registry,
        membership: &Membership,
        turn: Turn,
        claims: Arc<Claims>,
    ) {
        let is_there = membership.standing_in().as_ref().is_some_and(|there| there.turn == turn);
        if is_there || !membership.is_awaiting(turn) {
            return;
        }
        let Seat::In(audience, _) = *membership.seat() else { return };
        let subscriber = membership.subscriber.stand_in(claims.expires_at);
        let again = registry.again(audience, Arc::clone(&subscriber), Arc::clone(&claims));
        let Some(registration) = again else { return };
        subscriber.offer(&membership.relieve(registry, Some(&claims)));
        let (audience, party) = registry.join(registration);
        let stand_in = StandIn { turn, claims, subscriber, audience, party };
        *membership.standing_in() = Some(Box::new(stand_in));
    }

    fn move_to(
        registry: &mut Registry,
        membership: &Membership,
        turn: Turn,
        registration: Registration,
        dirty: &mut DirtyList,
    ) {
        if !membership.is_awaiting(turn) {
            return;
        }
        membership.leave_past();
        let mut seat = membership.seat();
        if let Seat::In(audience, claims) = *seat {
            registry.leave(&membership.subscriber, audience, claims);
        }
        let held = membership.relieve(registry, Some(&registration.claims));
        membership.subscriber.expire_at(registration.claims.expires_at);
        // If it is behind, what waits was decided by the older claims.
        let is_replayed = membership.subscriber.lets_go();
        if !held.is_empty()
            && !membership.subscriber.valid_for().is_zero()
            && !is_replayed
            && membership.subscriber.offer(&held)
        {
            dirty.push(membership.subscriber.outbox());
        }
        let (audience, claims) = registry.join(registration);
        *seat = Seat::In(audience, claims);
    }

    /// A channel enters a room; its frames are held until [`Subscriber::go_live`].
    pub fn enter(&self, room: &RoomName, entrant: Entrant) -> Occupancy {
        self.rooms.enter(room, entrant)
    }

    /// Says something to everybody in a room. Returns how many frames were handed over; they go
    /// out when the list is flushed.
    pub fn broadcast(&self, room: &RoomName, what: &Broadcast, dirty: &mut DirtyList) -> u64 {
        self.rooms.broadcast(room, what, dirty)
    }

    /// The same in several rooms: whoever is in more than one of them hears it once.
    pub fn broadcast_to(&self, rooms: &[RoomName], what: &Broadcast, dirty: &mut DirtyList) -> u64 {
        self.rooms.broadcast_to(rooms, what, dirty)
    }

    /// Whoever is in a private room of these topics (without `realtime:`) hears nothing more until it
    /// was found out anew whether he may be there; what comes meanwhile waits. Returns how many are
    /// asked about.
    pub fn doubt(&self, is_meant: impl Fn(&str) -> bool) -> usize {
        self.rooms.doubt(|topic| is_meant(topic.strip_prefix("realtime:").unwrap_or(topic)))
    }

    /// Only whoever enters by an answer from before is doubted.
    pub fn doubt_newcomers(&self) {
        self.rooms.doubt_newcomers();
    }

    /// How often somebody was doubted. Whoever enters a room by an answer that he asked for
    /// before is to be doubted too.
    pub fn doubts(&self) -> u64 {
        self.rooms.doubts()
    }

    /// Whether anybody is in any room.
    pub fn has_rooms(&self) -> bool {
        self.rooms.are_open()
    }

    /// Whether anybody is in a room.
    pub fn has_room(&self, room: &RoomName) -> bool {
        self.rooms.is_open(room)
    }

    /// Whether anybody asked for this table.
    pub fn wants(&self, schema: &str, table: &str) -> bool {
        self.lock().wants(schema, table)
    }

    /// Whether anybody asked for a partitioned table.
    pub fn wants_partitioned(&self) -> bool {
        self.lock().partitioned > 0
    }

    /// Changes whenever the answer of [`Self::wants`] may.
    pub fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// Takes a table's definition, new or changed: filters are compiled against it. Returns the
    /// audiences with a filter that no longer fits; those filters match nothing.
    ///
    /// `by_partition`: the log names partitions of this table instead. Then the changes are not for
    /// those who asked for many tables: they get them under the partitions' names.
    pub fn define(
        &self,
        relation: &Arc<Relation>,
        by_partition: bool,
    ) -> Vec<(AudienceId, Unbound)> {
        self.lock().define(relation, by_partition)
    }

    /// Takes note of a table's name. Returns the audiences that had asked for it under another.
    pub fn rename(&self, relation: u32, schema: &str, table: &str) -> Vec<AudienceId> {
        self.lock().rename(relation, schema, table)
    }

    /// Which bindings may want these changes, in the order of the changes. Starts a batch: until
    /// [`Self::end_batch`], refreshed claims wait.
    pub fn candidates(&self, changes: &[Change], announce_move_out: bool) -> Vec<Candidate> {
        let mut registry = self.lock();
        registry.in_flight = true;
        registry.candidates(changes, announce_move_out)
    }

    /// Every audience with a subscription to this table, whatever its filters.
    pub fn listeners(&self, schema: &str, table: &str) -> HashSet<AudienceId> {
        self.lock().listeners(schema, table)
    }

    /// Forgets every table's definition: each is defined anew before its next candidates.
    pub fn forget_tables(&self) {
        self.lock().forget_tables();
    }

    /// Ends a subscription of a whole audience for good, and tells its subscribers.
    pub fn end_binding(&self, id: BindingId, message: &str) {
        let told = {
            let mut registry = self.lock();
            registry.end_binding(id).map(|audience| registry.everybody(audience))
        };
        for subscriber in told.into_iter().flatten() {
            subscriber.notice(message.to_owned());
        }
    }

    /// What is needed to make an audience's frames; none when its last subscriber left meanwhile.
    pub fn audience(&self, id: AudienceId) -> Option<AudienceView> {
        self.lock().view(id)
    }

    /// What a binding asked for.
    pub fn interest(&self, id: BindingId) -> Option<Arc<Interest>> {
        self.lock().interest(id)
    }

    /// The filter of a binding, compiled for a table.
    pub fn predicate(&self, id: BindingId, relation: u32) -> Option<Predicate> {
        self.lock().predicate(id, relation)
    }

    /// Hands over what goes out in the order given. Returns the number of frames handed over, and
    /// who has to be flushed before more is published.
    pub fn publish(&self, outgoing: &[Outgoing]) -> (u64, DirtyList) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(u64::MAX, |d| d.as_secs());
        let mut dirty = DirtyList::default();
        let mut delivered = 0;
        let mut rest = outgoing;
        while let Some(next) = rest.first() {
            match next {
                Outgoing::Said(room, broadcast, cursor) => {
                    delivered += self.rooms.say(room, broadcast, *cursor, &mut dirty);
                    rest = &rest[1..];
                }
                Outgoing::Told(told) => {
                    delivered += self.rooms.tell(told, &mut dirty);
                    rest = &rest[1..];
                }
                Outgoing::Rows(_) => {
                    let is_said = |next: &Outgoing| !matches!(next, Outgoing::Rows(_));
                    let rows = rest.iter().position(is_said).unwrap_or(rest.len());
                    let (rows, after) = rest.split_at(rows);
                    delivered += self.lock().offer(rows, now, &mut dirty);
                    rest = after;
                }
            }
        }
        (delivered, dirty)
    }

    /// Ends the batch that [`Self::candidates`] started: refreshed claims take effect.
    pub fn end_batch(&self) {
        let mut dirty = DirtyList::default();
        let mut registry = self.lock();
        registry.in_flight = false;
        let deferred = std::mem::take(&mut registry.deferred);
        let mut moved = Vec::with_capacity(deferred.len());
        for (membership, turn, deferred) in deferred {
            match deferred {
                Deferred::Refresh(to) => {
                    Self::move_to(&mut registry, &membership, turn, to, &mut dirty);
                }
                Deferred::StandIn(claims) => {
                    Self::put_stand_in(&mut registry, &membership, turn, claims);
                }
            }
            moved.push(membership);
        }
        // The last owner of a membership leaves by dropping it, which takes the lock.
        drop(registry);
    }

    /// Tells every subscriber with these claims in the audience something in words.
    pub fn notice(&self, audience: AudienceId, claims: ClaimsId, message: &str) {
        let party = self.lock().party(audience, claims);
        for subscriber in party {
            subscriber.notice(message.to_owned());
        }
    }

    /// Something at this place could not be decided for these claims.
    pub fn miss(&self, claims: ClaimsId, place: Place) {
        let registry = self.lock();
        for audience in registry.audiences() {
            for subscriber in registry.party(audience, claims) {
                subscriber.miss(place);
            }
        }
    }

    /// Tells every subscriber of the audience something in words.
    pub fn notice_all(&self, audience: AudienceId, message: &str) {
        let everybody = self.lock().everybody(audience);
        for subscriber in everybody {
            subscriber.notice(message.to_owned());
        }
    }

    /// Tells every subscriber something in words.
    pub fn notice_everybody(&self, message: &str) {
        let audiences = self.lock().audiences();
        for audience in audiences {
            self.notice_all(audience, message);
        }
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Subscribers now.
    pub fn subscribers(&self) -> usize {
        self.lock().subscribers
    }
}
