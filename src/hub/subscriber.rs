//! One subscriber: a channel's place in the hub, and what it may still be sent.
//!
//! In:     finished frames, in commit order.
//! Out:    the connection's outbox; before the join is answered, a held list.
//! Never:  a row change at or after `expires_at`, or of a place that it is not owed; a frame before
//!         the join reply, or after it left.
//!
//! While a channel catches up, its row changes wait; if they become too many, they are let go, and
//! are replayed with the rest. A *stand-in* holds for a channel what its newer claims are shown
//! after the older ones expired, until it is known whether they may subscribe.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::outbox::{Outbox, Waiting, joined};
use super::past::Newest;
use crate::cursor::Place;
use crate::lsn::Lsn;

/// How a channel learns what is not a frame.
pub trait Inbox: Send + Sync {
    /// Something about this channel that its client is told in words.
    fn notice(&self, message: String);
    /// Whether it may still be in its room must be asked anew: until it is told, it hears nothing.
    fn doubted(&self);
}

/// Bytes of row changes that wait while a channel catches up, before they are let go.
const CATCH_UP_BYTES_MAX: usize = 256 * 1024;

const PENDING: u8 = 0;
const LIVE: u8 = 1;
const GONE: u8 = 2;

/// A session on a topic.
pub struct Subscriber {
    outbox: Arc<Outbox>,
    inbox: Box<dyn Inbox>,
    state: AtomicU8,
    held: Mutex<Waiting<()>>,
    /// Row changes before are not for it. Seconds since 1970.
    begins_at: u64,
    /// Seconds since 1970.
    expires_at: AtomicU64,
    /// Row changes up to there are not for it.
    after: AtomicPlace,
    /// Nor is what was said in a room up to there.
    said_after: AtomicPlace,
    /// Nor are later ones than this.
    until: AtomicPlace,
    /// The last one it was offered, of a channel in the past.
    reached: AtomicPlace,
    /// Of such a channel, between which places something could not be decided.
    missed: Mutex<Option<(Place, Place)>>,
    /// Of such a channel, where what it is offered goes instead.
    newest: Option<Arc<Newest>>,
    /// It catches up: row changes go into `later`.
    catching_up: AtomicBool,
    later: Mutex<Later>,
}

/// Row changes of a channel that catches up.
struct Later {
    waiting: Waiting<Place>,
    /// The last one that was let go.
    let_go: Option<Place>,
}

/// A place that is written by one at a time, and read by those who see that write by a lock.
struct AtomicPlace(AtomicU64, AtomicU32);

impl AtomicPlace {
    fn new(place: Place) -> Self {
        Self(AtomicU64::new(place.commit.get()), AtomicU32::new(place.ordinal))
    }

    fn load(&self) -> Place {
        let commit = Lsn::new(self.0.load(Ordering::Relaxed));
        Place { commit, ordinal: self.1.load(Ordering::Relaxed) }
    }

    fn store(&self, place: Place) {
        self.0.store(place.commit.get(), Ordering::Relaxed);
        self.1.store(place.ordinal, Ordering::Relaxed);
    }
}

/// A stand-in has nobody to tell: the channel itself is told the same.
struct Deaf;

impl Inbox for Deaf {
    fn notice(&self, _message: String) {}

    fn doubted(&self) {}
}

/// What a channel is told in the past, it is told here.
struct Here(Arc<Subscriber>);

impl Inbox for Here {
    fn notice(&self, message: String) {
        self.0.notice(message);
    }

    fn doubted(&self) {
        self.0.doubted();
    }
}

impl fmt::Debug for Subscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscriber").finish_non_exhaustive()
    }
}

pub(super) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Subscriber {
    /// A channel whose join is not answered yet: frames are held until it is.
    pub fn new(outbox: Arc<Outbox>, inbox: Box<dyn Inbox>, expires_at: SystemTime) -> Arc<Self> {
        Arc::new(Self::with(outbox, inbox, PENDING, unix_seconds(expires_at)))
    }

    fn with(outbox: Arc<Outbox>, inbox: Box<dyn Inbox>, state: u8, expires_at: u64) -> Self {
        let waiting = Waiting::new(Arc::clone(&outbox));
        Self {
            held: Mutex::new(Waiting::new(Arc::clone(&outbox))),
            outbox,
            inbox,
            state: AtomicU8::new(state),
            begins_at: 0,
            expires_at: AtomicU64::new(expires_at),
            after: AtomicPlace::new(Place::ZERO),
            said_after: AtomicPlace::new(Place::ZERO),
            until: AtomicPlace::new(Place::LAST),
            reached: AtomicPlace::new(Place::ZERO),
            missed: Mutex::default(),
            newest: None,
            catching_up: AtomicBool::new(false),
            later: Mutex::new(Later { waiting, let_go: None }),
        }
    }

    /// Takes for this channel the row changes of the past that are after `after` and not after
    /// `until`; `newest` gets them, if it is given.
    pub(super) fn in_the_past(
        self: &Arc<Self>,
        after: Place,
        until: Place,
        newest: Option<Arc<Newest>>,
    ) -> Arc<Self> {
        let expires_at = self.expires_at.load(Ordering::Relaxed);
        let past = Self::with(
            Arc::clone(&self.outbox),
            Box::new(Here(Arc::clone(self))),
            LIVE,
            expires_at,
        );
        past.after.store(after);
        past.said_after.store(after);
        past.reached.store(after);
        past.until.store(until);
        Arc::new(Self { newest, ..past })
    }

    /// Where its row changes begin, to be said before it can be found.
    pub(super) fn begin_after(&self, after: Place) {
        self.after.store(after);
    }

    /// Of a channel in the past: up to where it has everything that it was offered.
    pub fn reached(&self) -> Place {
        self.reached.load()
    }

    /// Something at this place could not be decided for it.
    pub(super) fn miss(&self, place: Place) {
        if self.after.load() < place && place <= self.until.load() {
            let mut missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
            let (first, _) = missed.unwrap_or((place, place));
            *missed = Some((first, place));
        }
    }

    /// Of a channel in the past: between which places something could not be decided for it, since
    /// this was last asked.
    pub fn take_missed(&self) -> Option<(Place, Place)> {
        self.missed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// It has everything up to `after`: what comes through the log waits until it was shown what it
    /// missed. To be called before it can be found.
    pub fn come_back(&self, after: Place) {
        self.begin_after(after);
        self.catch_up();
    }

    /// Has row changes wait until [`Self::caught_up`]. To be called before it can be found.
    pub(super) fn catch_up(&self) {
        self.catching_up.store(true, Ordering::Release);
    }

    /// The channel has every row change up to `reached`. What waited follows, and what comes from
    /// now on, after `word`; the place up to which more has to be replayed first, if some was let
    /// go.
    pub(super) fn caught_up(&self, reached: Place, word: Bytes) -> Option<Place> {
        let mut later = self.later();
        if let Some(let_go) = later.let_go.take().filter(|let_go| *let_go > reached) {
            return Some(let_go);
        }
        if self.catching_up.load(Ordering::Acquire) {
            let waited = later.waiting.take().into_iter();
            let waited = waited.filter(|(place, _)| *place > reached).map(|(_, frame)| frame);
            let frames: Vec<Bytes> = std::iter::once(word).chain(waited).collect();
            if self.offer(&frames) {
                self.outbox.flush();
            }
            // What the history has may still be on its way here: read, and not published so far.
            self.after.store(self.after.load().max(reached));
            self.said_after.store(self.said_after.load().max(reached));
            self.catching_up.store(false, Ordering::Release);
        }
        None
    }

    /// If it catches up: all that waits is replayed, and so is what was held for it elsewhere.
    /// Whether it does.
    pub(super) fn lets_go(&self) -> bool {
        let mut later = self.later();
        let catching_up = self.catching_up.load(Ordering::Acquire);
        if catching_up {
            later.waiting.clear();
            later.let_go = Some(Place::LAST);
        }
        catching_up
    }

    /// Whether what is offered now goes to the outbox, and what was before did.
    pub(super) fn takes_everything(&self) -> bool {
        self.state.load(Ordering::Acquire) == LIVE && !self.catching_up.load(Ordering::Acquire)
    }

    /// Bytes that its connection has not taken yet.
    pub(super) fn queued_bytes(&self) -> usize {
        self.outbox.queued_bytes()
    }

    /// Whether the channel has left.
    pub fn is_gone(&self) -> bool {
        self.state.load(Ordering::Acquire) == GONE || self.outbox.closing().is_some()
    }

    /// Holds for this channel what claims that are valid until then are shown, from the moment that
    /// the claims in force expire.
    pub(super) fn stand_in(&self, expires_at: SystemTime) -> Arc<Self> {
        let expires_at = unix_seconds(expires_at);
        let stand_in = Self::with(Arc::clone(&self.outbox), Box::new(Deaf), PENDING, expires_at);
        stand_in.after.store(self.after.load());
        let begins_at = self.expires_at.load(Ordering::Relaxed);
        Arc::new(Self { begins_at, ..stand_in })
    }

    /// How long the claims that row changes are decided by are still valid.
    pub(super) fn valid_for(&self) -> Duration {
        let expires_at = Duration::from_secs(self.expires_at.load(Ordering::Relaxed));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        expires_at.saturating_sub(now)
    }

    /// What a stand-in holds. It holds nothing more.
    pub(super) fn relieve(&self) -> Vec<Bytes> {
        let mut held = self.held();
        self.state.store(GONE, Ordering::Release);
        held.take().into_iter().map(|((), frame)| frame).collect()
    }

    /// The connection to flush after frames were offered.
    pub(super) fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    pub(super) fn expires_at(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.expires_at.load(Ordering::Relaxed))
    }

    pub(super) fn expire_at(&self, time: SystemTime) {
        self.expires_at.store(unix_seconds(time), Ordering::Relaxed);
    }

    /// Tells the client something in words.
    pub(super) fn notice(&self, message: String) {
        self.inbox.notice(message);
    }

    /// Has it asked anew whether it may be in its room.
    pub(super) fn doubted(&self) {
        self.inbox.doubted();
    }

    /// [`Self::offer`] for row changes, with the place of each, unless the claims that they are
    /// decided by have expired: those that it is owed. `now` is in seconds since 1970.
    pub(super) fn offer_rows(&self, frames: &[Bytes], places: &[Place], now: u64) -> bool {
        let valid = self.begins_at..self.expires_at.load(Ordering::Relaxed);
        let (Some(first), Some(last)) = (places.first(), places.last()) else { return false };
        if !valid.contains(&now) {
            return false;
        }
        if self.catching_up.load(Ordering::Acquire) && self.wait(frames, places) {
            return false;
        }
        // If it did catch up, `after` is where: it was stored before.
        let (after, until) = (self.after.load(), self.until.load());
        if after < *first && until == Place::LAST {
            return self.offer(frames);
        }
        let owed = |place: &&Place| after < **place && **place <= until;
        let from = places.iter().take_while(|place| **place <= after).count();
        let count = places[from..].iter().take_while(owed).count();
        let owed = &frames[from..from + count];
        if until == Place::LAST {
            return count > 0 && self.offer(owed);
        }
        // Another frame of the same change may follow.
        self.offer_past(owed, until.min(*last))
    }

    /// [`Self::offer`] for what was said in a room at a place in the log, if it is owed that.
    pub(super) fn offer_said(&self, frame: &Bytes, place: Place) -> bool {
        let frame = std::slice::from_ref(frame);
        if self.catching_up.load(Ordering::Acquire) && self.wait(frame, &[place]) {
            return false;
        }
        let until = self.until.load();
        if place <= self.said_after.load() || place > until {
            return false;
        }
        if until == Place::LAST { self.offer(frame) } else { self.offer_past(frame, place) }
    }

    /// Whether what stands there in the log is for it.
    pub(super) fn is_owed(&self, place: Place) -> bool {
        place > self.said_after.load() && place <= self.until.load()
    }

    /// Offers a channel in the past what leads up to `reached`. If it has left, in one of its lists
    /// or another, it is offered nothing, and has not come there.
    fn offer_past(&self, frames: &[Bytes], reached: Place) -> bool {
        let _leaving_waits = self.held();
        if self.state.load(Ordering::Acquire) != LIVE {
            return false;
        }
        self.reached.store(reached.max(self.reached.load()));
        if let Some(newest) = &self.newest {
            newest.push(frames);
            return false;
        }
        !frames.is_empty() && self.outbox.offer_many(frames).unwrap_or(false)
    }

    /// Keeps row changes until [`Self::caught_up`]; false when it is.
    fn wait(&self, frames: &[Bytes], places: &[Place]) -> bool {
        let mut later = self.later();
        if !self.catching_up.load(Ordering::Acquire) {
            return false;
        }
        let after = self.after.load();
        for (place, frame) in places.iter().zip(frames).filter(|(place, _)| **place > after) {
            let Later { waiting, let_go } = &mut *later;
            if let_go.is_some() || !waiting.try_push(*place, frame, CATCH_UP_BYTES_MAX) {
                waiting.clear();
                *let_go = Some(*place);
            }
        }
        true
    }

    fn later(&self) -> MutexGuard<'_, Later> {
        self.later.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues frames; true when the outbox was empty before and wants a flush. Whoever offers holds
    /// the lock of the list that it found the subscriber in, and so does whoever takes it off that
    /// list: nothing comes after that.
    pub(super) fn offer(&self, frames: &[Bytes]) -> bool {
        if self.state.load(Ordering::Acquire) == LIVE {
            return self.outbox.offer_many(frames).unwrap_or(false);
        }
        let mut held = self.held();
        // It may have changed before the list was ours.
        match self.state.load(Ordering::Acquire) {
            LIVE => self.outbox.offer_many(frames).unwrap_or(false),
            PENDING => {
                for frame in frames {
                    held.push((), frame.clone());
                }
                false
            }
            _gone => false,
        }
    }

    /// [`Self::offer`] for one frame in two parts, the second one shared with others.
    pub(super) fn offer_parts(&self, first: Bytes, rest: &Bytes) -> bool {
        if self.state.load(Ordering::Acquire) == LIVE {
            return self.outbox.offer_parts(first, rest).unwrap_or(false);
        }
        self.offer(&[joined(&first, rest)])
    }

    /// The join was answered: what was held follows, then live frames.
    pub fn go_live(&self) {
        let mut held = self.held();
        if self.state.load(Ordering::Acquire) != PENDING {
            return;
        }
        let frames: Vec<Bytes> = held.take().into_iter().map(|((), frame)| frame).collect();
        if !frames.is_empty() && self.outbox.offer_many(&frames).unwrap_or(false) {
            self.outbox.flush();
        }
        self.state.store(LIVE, Ordering::Release);
    }

    /// Nothing more is sent.
    pub(super) fn leave(&self) {
        let mut held = self.held();
        self.state.store(GONE, Ordering::Release);
        held.clear();
        self.later().waiting.clear();
    }

    fn held(&self) -> MutexGuard<'_, Waiting<()>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What waits for the join's answer.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> Vec<Bytes> {
        self.held().frames().cloned().collect()
    }
}
