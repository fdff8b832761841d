//! Rooms: the channels that hear each other.
//!
//! In:     channels that enter and leave; broadcasts for a room; what members show of themselves.
//! Out:    frames in the outboxes of those who may hear them; who has to be flushed.
//! Never:  a decision about rights (whoever enters says what it may hear); a wait.
//!
//! A public and a private channel of one name are two rooms. A broadcast is encoded once for each
//! wire format in the room, whoever many get it. Each room has a lock of its own: a crowded one
//! does not hold up the others.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hashbrown::{HashMap, HashSet};

use super::outbox::{DirtyList, Waiting};
use super::presence::{MemberId, Presence, Supply, TrackError};
use super::subscriber::unix_seconds;
use super::{Format, Subscriber, Told};
use crate::config;
use crate::cursor::{Cursor, Place};
use crate::event::broadcast::Broadcast;

/// Watchers to whom whoever leaves writes itself; more are told by a task that takes turns.
const TOLD_WHEN_LEAVING_MAX: usize = 32;

/// Which room.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RoomName {
    /// The full topic.
    pub topic: Arc<str>,
    /// Whether policies decide who may be there.
    pub private: bool,
}

/// A channel that enters a room.
#[derive(Debug)]
pub struct Entrant {
    /// Whom to send to.
    pub subscriber: Arc<Subscriber>,
    /// Wire format.
    pub format: Format,
    /// Whether it hears broadcasts.
    pub hears: bool,
    /// When its claims expire: it hears nothing from then on.
    pub expires_at: SystemTime,
    /// Whether stored messages come first: until [`Occupancy::replay`], broadcasts wait.
    pub replays: bool,
    /// What its client calls the connection when it writes, so as not to hear of its own writes.
    pub connection_id: Option<Arc<str>>,
}

/// Every room that somebody is in.
#[derive(Debug)]
pub(super) struct Rooms {
    open: Mutex<HashMap<RoomName, Arc<Room>>>,
    /// How often somebody's right to be in a room was doubted.
    doubts: AtomicU64,
    supply: Arc<Supply>,
}

#[derive(Debug)]
struct Room {
    name: RoomName,
    supply: Arc<Supply>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    members_made: u64,
    groups: Vec<Group>,
    presence: Option<Box<Presence>>,
    /// Members that are told who is there.
    watchers: usize,
    /// Somebody comes back when the next diff is due.
    awaited: bool,
    /// The last member has left, and this room is no longer the one of its name.
    closed: bool,
}

/// The members with one wire format.
#[derive(Debug)]
struct Group {
    format: Format,
    /// In the order of their numbers.
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    number: u64,
    subscriber: Arc<Subscriber>,
    hears: bool,
    watches: bool,
    /// Seconds since 1970.
    expires_at: u64,
    replay: Option<Box<Replay>>,
    /// Newer claims are being looked at; what comes after the older ones expired waits here.
    late: Option<Box<Waiting<Option<Heard>>>>,
    /// How often its right to be here was doubted: an answer from before is none.
    doubts: u32,
    connection_id: Option<Arc<str>>,
    /// Its place in the room of the past, while it catches up. It ends with what lets it hear.
    past: Option<Box<Past>>,
}

/// Whether somebody has heard what waits for him in several rooms.
type Heard = Arc<AtomicBool>;

/// Whose turn it is, of what is said in several rooms.
#[derive(Debug, Default)]
enum Turn {
    /// It is said in one.
    #[default]
    Only,
    /// Who hears it now. Whether for some it has to wait.
    First(bool),
    /// Who has not heard it anywhere, and may hear it later: in whichever room lets him first.
    Last(HashMap<(usize, u8), Heard>),
}

/// Whom a broadcast passes over.
#[derive(Debug, Default)]
struct Except<'a> {
    turn: Turn,
    /// The member with this number.
    member: Option<u64>,
    /// The connection that calls itself this.
    connection: Option<&'a str>,
    /// Who has heard it in another room, by outbox and format; none: it is said in one.
    heard: Option<HashSet<(usize, u8)>>,
    /// Where it stands in the log, when its cursor is of a place before.
    place: Option<Place>,
}

impl Except<'_> {
    /// Whether it is not a member's turn.
    fn puts_off(&mut self, is_late: bool) -> bool {
        match &mut self.turn {
            Turn::Only => false,
            Turn::First(some_are_late) => {
                *some_are_late |= is_late;
                is_late
            }
            Turn::Last(_) => !is_late,
        }
    }

    /// By what a member's rooms know that it has heard something.
    fn heard(&mut self, member: &Member, format: u8) -> Option<Heard> {
        let Turn::Last(waiting) = &mut self.turn else { return None };
        Some(Arc::clone(waiting.entry(member.connection(format)).or_default()))
    }

    /// Whether a member is one of them. It is counted as one from now on.
    fn takes(&mut self, member: &Member, format: u8) -> bool {
        self.member == Some(member.number)
            || self.connection.is_some_and(|id| member.connection_id.as_deref() == Some(id))
            || self.heard.as_mut().is_some_and(|heard| {
                // Whoever is not owed it here may be owed it in another room.
                let is_owed = self.place.is_none_or(|place| member.subscriber.is_owed(place));
                let connection = member.connection(format);
                let is_last = matches!(self.turn, Turn::Last(_));
                !is_owed
                    || if is_last { heard.contains(&connection) } else { !heard.insert(connection) }
            })
    }
}

/// A place in a room of the past.
#[derive(Debug)]
struct Past {
    subscriber: Arc<Subscriber>,
    _occupancy: Occupancy,
}

impl Drop for Past {
    fn drop(&mut self) {
        self.subscriber.leave();
    }
}

/// Finds a channel's place in its room, as long as it is there.
#[derive(Debug, Clone)]
pub(super) struct Seated {
    room: Weak<Room>,
    format: u8,
    number: u64,
}

/// Whether a channel is shown what was said in its room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entered {
    /// It is, or it is not there to hear it.
    Yes,
    /// Its claims are being looked at.
    Later,
}

/// A stored message, as it is replayed.
#[derive(Debug)]
pub struct Replayed {
    /// Its name.
    pub id: Box<str>,
    /// When it was stored: [`Broadcast::stored_at`].
    pub at: Option<Box<str>>,
    /// As it is written; none where the format cannot say it.
    pub frame: Option<Bytes>,
}

/// The stored message that a live one came from.
#[derive(Debug)]
struct Source {
    id: Option<Box<str>>,
    at: Option<Box<str>>,
}

/// What keeps stored messages and live ones apart.
#[derive(Debug)]
enum Replay {
    /// Live ones wait.
    Waiting(Waiting<Source>),
    /// These were sent from the store, and may still come live.
    Sent(Box<[Box<str>]>),
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Rooms {
    pub(super) fn new(settings: config::Presence) -> Self {
        let supply = Arc::new(Supply::new(settings, rand::random()));
        Self { open: Mutex::default(), doubts: AtomicU64::default(), supply }
    }

    pub(super) fn enter(self: &Arc<Self>, name: &RoomName, entrant: Entrant) -> Occupancy {
        let Entrant { subscriber, format, hears, expires_at, replays, connection_id } = entrant;
        let waiting = || Waiting::new(Arc::clone(subscriber.outbox()));
        let replay = replays.then(|| Box::new(Replay::Waiting(waiting())));
        let expires_at = unix_seconds(expires_at);
        let (watches, late, doubts, past) = (false, None, 0, None);
        let mut closed = None;
        // A room's lock is waited for without that of all rooms: it may be a crowded one.
        let (room, number) = loop {
            let room = self.room(name, closed.as_ref());
            let mut inner = locked(&room.inner);
            if inner.closed {
                drop(inner);
                closed = Some(room);
                continue;
            }
            inner.members_made += 1;
            let number = inner.members_made;
            let member = Member {
                number,
                subscriber,
                hears,
                watches,
                expires_at,
                replay,
                late,
                doubts,
                connection_id,
                past,
            };
            inner.group(format).members.push(member);
            drop(inner);
            break (room, number);
        };
        Occupancy { rooms: Arc::downgrade(self), room, format: format.id, number }
    }

    /// Whoever is in a private room of these hears nothing more until it was found out anew whether
    /// he may be there; what comes meanwhile waits. Returns how many are asked about.
    pub(super) fn doubt(&self, is_meant: impl Fn(&str) -> bool) -> usize {
        // First: whoever enters later than the look at the rooms sees it.
        self.doubt_newcomers();
        let meant = |(name, room): (&RoomName, &Arc<Room>)| {
            (name.private && is_meant(&name.topic)).then(|| Arc::clone(room))
        };
        let rooms: Vec<_> = locked(&self.open).iter().filter_map(meant).collect();
        let members = |room: &Arc<Room>| {
            let mut inner = locked(&room.inner);
            let members = inner.groups.iter_mut().flat_map(|group| &mut group.members);
            members.map(Member::doubt).count()
        };
        rooms.iter().map(members).sum()
    }

    pub(super) fn doubt_newcomers(&self) {
        self.doubts.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn doubts(&self) -> u64 {
        self.doubts.load(Ordering::SeqCst)
    }

    pub(super) fn are_open(&self) -> bool {
        !locked(&self.open).is_empty()
    }

    pub(super) fn is_open(&self, name: &RoomName) -> bool {
        locked(&self.open).contains_key(name)
    }

    /// The room of this name; a new one, if it would be the `closed` one.
    fn room(&self, name: &RoomName, closed: Option<&Arc<Room>>) -> Arc<Room> {
        let mut open = locked(&self.open);
        let known = open.get(name).filter(|room| !closed.is_some_and(|c| Arc::ptr_eq(room, c)));
        if let Some(room) = known {
            return Arc::clone(room);
        }
        let (name, supply) = (name.clone(), Arc::clone(&self.supply));
        let room = Arc::new(Room { name: name.clone(), supply, inner: Mutex::default() });
        open.insert(name, Arc::clone(&room));
        room
    }

    /// Forgets a room that is closed, unless another one has taken its name.
    fn forget(&self, closed: &Arc<Room>) {
        let mut open = locked(&self.open);
        if open.get(&closed.name).is_some_and(|room| Arc::ptr_eq(room, closed)) {
            open.remove(&closed.name);
        }
    }

    /// Returns how many frames were handed over.
    pub(super) fn broadcast(
        &self,
        name: &RoomName,
        broadcast: &Broadcast,
        dirty: &mut DirtyList,
    ) -> u64 {
        let room = locked(&self.open).get(name).map(Arc::clone);
        room.map_or(0, |room| room.broadcast(broadcast, None, &mut Except::default(), dirty))
    }

    /// The same for several rooms, each connection once.
    pub(super) fn broadcast_to(
        &self,
        names: &[RoomName],
        broadcast: &Broadcast,
        dirty: &mut DirtyList,
    ) -> u64 {
        let heard = (names.len() > 1).then(HashSet::new);
        let mut except = Except { heard, ..Except::default() };
        let mut delivered = 0;
        for name in names {
            let room = locked(&self.open).get(name).map(Arc::clone);
            delivered += room.map_or(0, |room| room.broadcast(broadcast, None, &mut except, dirty));
        }
        delivered
    }

    /// The same for what came through the log.
    pub(super) fn say(
        &self,
        name: &RoomName,
        broadcast: &Broadcast,
        cursor: Cursor,
        dirty: &mut DirtyList,
    ) -> u64 {
        let room = locked(&self.open).get(name).map(Arc::clone);
        let mut nobody = Except::default();
        room.map_or(0, |room| room.broadcast(broadcast, Some(cursor), &mut nobody, dirty))
    }

    /// The same for several rooms.
    pub(super) fn tell(&self, told: &Told, dirty: &mut DirtyList) -> u64 {
        let Told { rooms, what, except, place, cursor } = told;
        let heard = (rooms.len() > 1).then(HashSet::new);
        let (connection, place) = (except.as_deref(), Some(*place));
        let turn = if rooms.len() > 1 { Turn::First(false) } else { Turn::Only };
        let mut except = Except { turn, member: None, connection, heard, place };
        let mut delivered = 0;
        loop {
            for name in rooms {
                let room = locked(&self.open).get(name).map(Arc::clone);
                let say = |room: Arc<Room>| room.broadcast(what, Some(*cursor), &mut except, dirty);
                delivered += room.map_or(0, say);
            }
            // What waits in one room, and may come to nothing, was perhaps heard in another.
            if !matches!(except.turn, Turn::First(true)) {
                return delivered;
            }
            except.turn = Turn::Last(HashMap::new());
        }
    }
}

impl Room {
    fn broadcast(
        &self,
        broadcast: &Broadcast,
        cursor: Option<Cursor>,
        except: &mut Except<'_>,
        dirty: &mut DirtyList,
    ) -> u64 {
        let now = unix_seconds(SystemTime::now());
        let stands =
            cursor.map(|cursor| Cursor { place: except.place.unwrap_or(cursor.place), ..cursor });
        let mut delivered = 0;
        for group in &mut locked(&self.inner).groups {
            let mut frame = None;
            for member in &mut group.members {
                let (is_late, format) = (member.is_late(now), group.format.id);
                if !member.hears
                    || !member.takes(now)
                    || except.puts_off(is_late)
                    || except.takes(member, format)
                {
                    continue;
                }
                let heard = except.heard(member, format);
                if frame.is_none() {
                    frame = (group.format.broadcast)(
                        group.format.namespace,
                        &self.name.topic,
                        broadcast,
                        cursor,
                    );
                }
                // What this format cannot say reaches nobody who speaks it.
                let Some(frame) = &frame else { break };
                delivered += 1;
                match member.replay.as_deref_mut() {
                    None => member.say(frame, heard, stands, now, dirty),
                    Some(Replay::Sent(ids)) => {
                        if !broadcast.id().is_some_and(|id| ids.iter().any(|sent| **sent == *id)) {
                            member.say(frame, heard, stands, now, dirty);
                        }
                    }
                    Some(Replay::Waiting(frames)) => {
                        let (id, at) = (broadcast.id(), broadcast.stored_at());
                        let source = Source { id: id.map(Into::into), at: at.map(Into::into) };
                        frames.push(source, frame.clone());
                    }
                }
            }
        }
        delivered
    }

    /// Tells the watchers what is due, and comes back for what is not.
    fn tell_presence(self: &Arc<Self>, inner: &mut Inner, dirty: &mut DirtyList) {
        let Inner { groups, presence, watchers, .. } = &mut *inner;
        let Some(known) = presence else { return };
        if let Some(diff) = known.take_diff(Instant::now(), *watchers) {
            let now = unix_seconds(SystemTime::now());
            for Group { format, members } in groups {
                let mut frame = None;
                for member in members.iter_mut().filter(|m| m.watches && m.takes(now)) {
                    let make = || (format.push)(&self.name.topic, "presence_diff", &diff);
                    let frame = frame.get_or_insert_with(make);
                    member.tell(frame, None, now, dirty);
                }
            }
        }
        if known.is_empty() && known.due_at().is_none() {
            *presence = None;
        }
        self.come_back(inner);
    }

    /// Tells the watchers what is not told yet when it is due, unless somebody is about to.
    fn come_back(self: &Arc<Self>, inner: &mut Inner) {
        let due_at = inner.presence.as_ref().and_then(|presence| presence.due_at());
        // Without a runtime nobody is left to be told.
        if let Some(due_at) = due_at
            && !inner.awaited
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            inner.awaited = true;
            let room = Arc::downgrade(self);
            runtime.spawn(async move {
                tokio::time::sleep_until(due_at.into()).await;
                let mut dirty = DirtyList::default();
                if let Some(room) = room.upgrade() {
                    let mut inner = locked(&room.inner);
                    inner.awaited = false;
                    room.tell_presence(&mut inner, &mut dirty);
                }
                dirty.flush_in_turns().await;
            });
        }
    }
}

impl Inner {
    fn group(&mut self, format: Format) -> &mut Group {
        let at = self.groups.iter().position(|group| group.format.id == format.id);
        let at = at.unwrap_or_else(|| {
            // Most rooms are of one or two, and of one format.
            self.groups.reserve_exact(1);
            self.groups.push(Group { format, members: Vec::with_capacity(1) });
            self.groups.len() - 1
        });
        &mut self.groups[at]
    }

    fn member(&mut self, format: u8, number: u64) -> Option<&mut Member> {
        let group = self.groups.iter_mut().find(|group| group.format.id == format)?;
        let at = group.members.binary_search_by_key(&number, |member| member.number).ok()?;
        group.members.get_mut(at)
    }

    fn remove(&mut self, format: u8, number: u64) {
        let Some(at) = self.groups.iter().position(|group| group.format.id == format) else {
            return;
        };
        let members = &mut self.groups[at].members;
        if let Ok(member) = members.binary_search_by_key(&number, |member| member.number) {
            self.watchers -= usize::from(members.remove(member).watches);
        }
        if members.is_empty() {
            self.groups.swap_remove(at);
        }
        if let Some(presence) = &mut self.presence {
            presence.untrack(MemberId(number));
        }
    }
}

impl Member {
    /// Whether its claims are valid, or may turn out to be.
    fn takes(&self, now: u64) -> bool {
        now < self.expires_at || self.late.is_some()
    }

    /// Whether what it is told waits until newer claims were looked at.
    fn is_late(&self, now: u64) -> bool {
        self.late.is_some() && now >= self.expires_at
    }

    /// Which connection hears it, in which format.
    fn connection(&self, format: u8) -> (usize, u8) {
        (Arc::as_ptr(self.subscriber.outbox()).addr(), format)
    }

    /// Offers a frame, or keeps it until newer claims were looked at, and `heard` says that it was
    /// not heard elsewhere.
    fn tell(&mut self, frame: &Bytes, heard: Option<Heard>, now: u64, dirty: &mut DirtyList) {
        match &mut self.late {
            Some(late) if now >= self.expires_at => late.push(heard, frame.clone()),
            Some(_) | None => self.offer(std::slice::from_ref(frame), dirty),
        }
    }

    /// From here on everything waits, and it is asked about.
    fn doubt(&mut self) {
        self.doubts = self.doubts.wrapping_add(1);
        self.expires_at = 0;
        // What it has not heard of the past, it may have to hear by another answer.
        self.past = None;
        self.subscriber.lets_go();
        let outbox = self.subscriber.outbox();
        self.late.get_or_insert_with(|| Box::new(Waiting::new(Arc::clone(outbox))));
        self.subscriber.doubted();
    }

    /// The same for a broadcast, which waits while the channel catches up if it came through the log.
    fn say(
        &mut self,
        frame: &Bytes,
        heard: Option<Heard>,
        cursor: Option<Cursor>,
        now: u64,
        dirty: &mut DirtyList,
    ) {
        let Some(Cursor { place, .. }) = cursor else {
            return self.tell(frame, heard, now, dirty);
        };
        if self.is_late(now) {
            // Of a channel that is behind, the claims that decide are those it has when it comes there.
            if !self.subscriber.lets_go() {
                self.tell(frame, heard, now, dirty);
            }
        } else if self.subscriber.offer_said(frame, place) {
            dirty.push(self.subscriber.outbox());
        }
    }

    fn offer(&self, frames: &[Bytes], dirty: &mut DirtyList) {
        if self.subscriber.offer(frames) {
            dirty.push(self.subscriber.outbox());
        }
    }
}

/// A channel's place in a room; dropping it leaves.
#[derive(Debug)]
pub struct Occupancy {
    rooms: Weak<Rooms>,
    room: Arc<Room>,
    format: u8,
    number: u64,
}

impl Occupancy {
    /// Says something to everybody else in the room, and with `echo` to itself too. Returns how
    /// many frames were handed over; they go out when the list is flushed.
    pub fn broadcast(&self, broadcast: &Broadcast, echo: bool, dirty: &mut DirtyList) -> u64 {
        let member = (!echo).then_some(self.number);
        let mut except = Except { member, ..Except::default() };
        self.room.broadcast(broadcast, None, &mut except, dirty)
    }

    /// Its right to be here is to be found out anew, as by [`super::Hub::doubt`].
    pub fn doubt(&self) {
        if let Some(member) = locked(&self.room.inner).member(self.format, self.number) {
            member.doubt();
        }
    }

    /// How often that was doubted so far, for [`Self::renew`].
    pub fn doubts(&self) -> u32 {
        let mut inner = locked(&self.room.inner);
        inner.member(self.format, self.number).map_or(0, |member| member.doubts)
    }

    /// Newer claims are being looked at. Until [`Self::renew`], what comes after the older ones
    /// expired is kept, not lost.
    pub fn await_renewal(&self) {
        if let Some(member) = locked(&self.room.inner).member(self.format, self.number) {
            member.past = None;
            let outbox = member.subscriber.outbox();
            member.late.get_or_insert_with(|| Box::new(Waiting::new(Arc::clone(outbox))));
        }
    }

    /// Whether it hears broadcasts from now on, and when its claims expire. What waited for that
    /// follows, and goes out when the list is flushed. `doubts` as they were when the question was
    /// asked: with more of them since, the answer is none.
    pub fn renew(&self, hears: bool, expires_at: SystemTime, doubts: u32, dirty: &mut DirtyList) {
        let mut inner = locked(&self.room.inner);
        let member = inner.member(self.format, self.number);
        if let Some(member) = member.filter(|member| member.doubts == doubts) {
            member.past = None;
            // What the older claims let it hear, and it has not heard, the newer ones have to.
            member.subscriber.lets_go();
            // Something was kept for who no longer hears: it cannot be told what it was.
            if let Some(mut late) = member.late.take()
                && (hears || !member.hears)
            {
                let late = late.take().into_iter();
                let is_new = |heard: &Option<Heard>| {
                    heard.as_ref().is_none_or(|heard| !heard.swap(true, Ordering::AcqRel))
                };
                let late = late.filter(|(heard, _)| is_new(heard)).map(|(_, frame)| frame);
                let late: Vec<Bytes> = late.collect();
                member.offer(&late, dirty);
            }
            member.hears = hears;
            member.expires_at = unix_seconds(expires_at);
        }
    }

    /// Where it is, for whoever shows the channel what it missed.
    pub(super) fn seated(&self) -> Seated {
        let room = Arc::downgrade(&self.room);
        Seated { room, format: self.format, number: self.number }
    }

    /// Whether its connection was handed everything for it that came through the log and was
    /// published before this call: its claims are valid, and it is not behind.
    pub fn is_current(&self) -> bool {
        let now = unix_seconds(SystemTime::now());
        let mut inner = locked(&self.room.inner);
        inner.member(self.format, self.number).is_some_and(|member| {
            let waits = matches!(member.replay.as_deref(), Some(Replay::Waiting(_)));
            member.late.is_none()
                && now < member.expires_at
                && !waits
                && member.subscriber.takes_everything()
        })
    }

    /// Is told from now on who is there, beginning with a frame that ends with the state as it is
    /// known to all (a JSON object) and the byte `end`; `begin` makes what is before, for so many
    /// bytes. Does nothing the second time.
    pub fn watch(&self, end: u8, begin: impl FnOnce(usize) -> Bytes, dirty: &mut DirtyList) {
        let mut inner = locked(&self.room.inner);
        // The state is as long as there are members: it is rendered once, and shared.
        if inner.member(self.format, self.number).is_none_or(|member| member.watches) {
            return;
        }
        let nobody = || vec![b'{', b'}', end].into();
        let state = inner.presence.as_mut().map_or_else(nobody, |known| known.state(end));
        let Some(member) = inner.member(self.format, self.number) else { return };
        member.watches = true;
        if member.subscriber.offer_parts(begin(state.len()), &state) {
            dirty.push(member.subscriber.outbox());
        }
        inner.watchers += 1;
    }

    /// Shows `meta`, a JSON object, under `key`, instead of what it showed before.
    ///
    /// # Errors
    /// Why not; nothing has changed.
    pub fn track(&self, key: &str, meta: &str, dirty: &mut DirtyList) -> Result<(), TrackError> {
        let mut inner = locked(&self.room.inner);
        if inner.member(self.format, self.number).is_none() {
            return Ok(());
        }
        let supply = &self.room.supply;
        let new = || Box::new(Presence::new(Arc::clone(supply), Instant::now()));
        inner.presence.get_or_insert_with(new).track(MemberId(self.number), key, meta)?;
        self.room.tell_presence(&mut inner, dirty);
        Ok(())
    }

    /// Shows nothing any more.
    pub fn untrack(&self, dirty: &mut DirtyList) {
        let mut inner = locked(&self.room.inner);
        if let Some(presence) = &mut inner.presence {
            presence.untrack(MemberId(self.number));
            self.room.tell_presence(&mut inner, dirty);
        }
    }

    /// Sends stored messages, oldest first, together with what came meanwhile. Each comes once, and
    /// none after a newer one, if what was committed when they were read has come live.
    pub fn replay(&self, stored: Vec<Replayed>) {
        let mut dirty = DirtyList::default();
        let mut inner = locked(&self.room.inner);
        let Some(member) = inner.member(self.format, self.number) else { return };
        let Some(Replay::Waiting(waiting)) = member.replay.as_deref_mut() else { return };
        let frames = merge(&stored, waiting.take());
        member.offer(&frames, &mut dirty);
        let ids: Box<[_]> = stored.into_iter().map(|stored| stored.id).collect();
        member.replay = (!ids.is_empty()).then(|| Box::new(Replay::Sent(ids)));
    }
}

impl Seated {
    pub(super) fn is_there(&self) -> bool {
        let Some(room) = self.room.upgrade() else { return false };
        locked(&room.inner).member(self.format, self.number).is_some()
    }

    /// Has `there` hear what is said in this room in the past, as long as the channel may.
    pub(super) fn enter_past(&self, past: &Arc<Rooms>, there: &Arc<Subscriber>) -> Entered {
        let Some(room) = self.room.upgrade() else { return Entered::Yes };
        let mut inner = locked(&room.inner);
        let format = inner.groups.iter().find(|group| group.format.id == self.format);
        let format = format.map(|group| group.format);
        let member = inner.member(self.format, self.number);
        let Some((format, member)) = format.zip(member) else { return Entered::Yes };
        if member.late.is_some() {
            return Entered::Later;
        }
        if member.hears {
            let subscriber = Arc::clone(there);
            let expires_at = UNIX_EPOCH + Duration::from_secs(member.expires_at);
            let (replays, connection_id) = (false, member.connection_id.clone());
            let entrant =
                Entrant { subscriber, format, hears: true, expires_at, replays, connection_id };
            let occupancy = past.enter(&room.name, entrant);
            let subscriber = Arc::clone(there);
            member.past = Some(Box::new(Past { subscriber, _occupancy: occupancy }));
        }
        Entered::Yes
    }

    /// It hears no more of the past once this returns.
    pub(super) fn leave_past(&self) {
        let Some(room) = self.room.upgrade() else { return };
        if let Some(member) = locked(&room.inner).member(self.format, self.number) {
            member.past = None;
        }
    }
}

/// Stored messages, oldest first, and live ones, in the order of the log, as one. What is both comes
/// as it was stored.
fn merge(stored: &[Replayed], live: Vec<(Source, Bytes)>) -> Vec<Bytes> {
    let place = |replayed: &Replayed| {
        live.iter().position(|(source, _)| source.id.as_ref() == Some(&replayed.id))
    };
    let places: Vec<Option<usize>> = stored.iter().map(place).collect();
    let mut frames = Vec::with_capacity(stored.len() + live.len());
    let mut sent = 0;
    for (number, (source, frame)) in live.into_iter().enumerate() {
        if places.contains(&Some(number)) {
            continue;
        }
        // Of two that came live the log tells which is older; of others, the time, and what has
        // none was said while the channel was there.
        let is_older = |(replayed, place): (&Replayed, &Option<usize>)| match place {
            Some(place) => *place < number,
            None => source.at.is_none() || replayed.at <= source.at,
        };
        let older = stored.iter().zip(&places).rposition(is_older).map_or(0, |last| last + 1);
        if older > sent {
            frames.extend(stored[sent..older].iter().filter_map(|older| older.frame.clone()));
            sent = older;
        }
        frames.push(frame);
    }
    frames.extend(stored[sent..].iter().filter_map(|rest| rest.frame.clone()));
    frames
}

impl Drop for Occupancy {
    fn drop(&mut self) {
        // Goes last, after the locks: it writes.
        let mut dirty = DirtyList::default();
        let Some(rooms) = self.rooms.upgrade() else { return };
        let mut inner = locked(&self.room.inner);
        inner.remove(self.format, self.number);
        inner.closed = inner.groups.is_empty();
        if inner.closed {
            drop(inner);
            rooms.forget(&self.room);
        } else if inner.watchers <= TOLD_WHEN_LEAVING_MAX {
            self.room.tell_presence(&mut inner, &mut dirty);
        } else {
            self.room.come_back(&mut inner);
        }
    }
}
