//! The past: channels that come back with a cursor, in a hub of their own for a while.
//!
//! In:     a channel that has everything up to a place, with its row changes and its rooms; what is
//!         published to it there.
//! Out:    where it goes on, by the claims and subscriptions it has now; what its client is told.
//! Never:  a frame by claims that are no longer in force.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;

use super::rooms::{Entered, Seated};
use super::{Hub, Membership, Occupancy, Seat, Subscriber};
use crate::cursor::{Cursor, Place};

/// Not all that a channel asked for is still subscribed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a subscription of the channel has ended")]
pub struct SubscriptionEnded;

/// How a channel that came back goes on, for its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// What it missed was sent; from this place on it hears what happens.
    CaughtUp(Cursor),
    /// What happened between the two cannot be sent: it has to read its rows again.
    Gap {
        /// The last that it has, if that could be told.
        from: Option<Cursor>,
        /// Where its row changes go on.
        to: Cursor,
        /// One word.
        reason: &'static str,
    },
}

/// The last of what a channel in the past was shown.
#[derive(Debug)]
pub struct Newest {
    most: usize,
    frames: Mutex<VecDeque<Bytes>>,
}

impl Newest {
    /// Nothing yet, and never more than `most`.
    pub fn new(most: usize) -> Self {
        Self { most, frames: Mutex::default() }
    }

    pub(super) fn push(&self, frames: &[Bytes]) {
        let mut kept = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(frames.iter().cloned());
        let too_many = kept.len().saturating_sub(self.most);
        kept.drain(..too_many);
    }

    /// It; nothing is left.
    pub fn take(&self) -> VecDeque<Bytes> {
        std::mem::take(&mut *self.frames.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A channel that comes back: its row changes, its rooms, or both.
#[derive(Debug)]
pub struct Comeback {
    subscriber: Weak<Subscriber>,
    rows: Option<Weak<Membership>>,
    rooms: Box<[Seated]>,
}

impl Comeback {
    /// Of a channel with row changes, unless they were refused, and in these rooms.
    pub fn new<'a>(
        subscriber: &Arc<Subscriber>,
        rows: Option<&Arc<Membership>>,
        rooms: impl IntoIterator<Item = &'a Occupancy>,
    ) -> Self {
        let rows = rows.filter(|rows| rows.is_in()).map(Arc::downgrade);
        let rooms = rooms.into_iter().map(Occupancy::seated).collect();
        Self { subscriber: Arc::downgrade(subscriber), rows, rooms }
    }

    /// The channel, if it is there.
    pub fn find(&self) -> Option<Returner> {
        let subscriber = self.subscriber.upgrade().filter(|subscriber| !subscriber.is_gone())?;
        let rows = self.rows.as_ref().and_then(Weak::upgrade);
        let rows = rows.filter(|rows| !rows.is_gone());
        let is_there = rows.is_some() || self.rooms.iter().any(Seated::is_there);
        is_there.then(|| Returner { subscriber, rows, rooms: self.rooms.clone() })
    }
}

/// A channel that came back, and is there.
#[derive(Debug)]
pub struct Returner {
    subscriber: Arc<Subscriber>,
    rows: Option<Arc<Membership>>,
    rooms: Box<[Seated]>,
}

impl Returner {
    /// Bytes that its connection has not taken yet.
    pub fn queued_bytes(&self) -> usize {
        self.subscriber.queued_bytes()
    }

    /// Sends a frame to the channel, in front of all that waits.
    pub fn tell(&self, frame: Bytes) {
        if self.subscriber.offer(&[frame]) {
            self.subscriber.outbox().flush();
        }
    }

    /// It has everything up to `reached`: `word` follows, and what waited. Or the place up to which
    /// it must be shown more first, because too much came meanwhile.
    pub fn caught_up(&self, reached: Place, word: Bytes) -> Option<Place> {
        self.leave_past();
        self.subscriber.caught_up(reached, word)
    }

    /// It is shown no more of the past once this returns.
    pub fn leave_past(&self) {
        if let Some(rows) = &self.rows {
            rows.leave_past();
        }
        for room in &self.rooms {
            room.leave_past();
        }
    }
}

impl Membership {
    fn is_in(&self) -> bool {
        matches!(*self.seat(), Seat::In(..))
    }

    /// It is shown no more of the past once this returns.
    pub(super) fn leave_past(&self) {
        let past = self.in_past().take();
        drop(past);
    }

    fn in_past(&self) -> MutexGuard<'_, Option<Box<Self>>> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hub {
    /// Shows a channel what is published in `past`, a hub of its own, after `after` and up to
    /// `until`, by the claims and subscriptions it has here now; the channel there, whose
    /// [`Subscriber::reached`] tells how far it came. None: it has none now, and may again. `newest`
    /// gets what it is shown, if it is given.
    ///
    /// It is shown nothing more there once its claims or subscriptions here change, or it leaves:
    /// then the channel there is gone.
    ///
    /// # Errors
    /// One of its subscriptions has ended.
    pub fn enter_past(
        &self,
        channel: &Returner,
        past: &Arc<Self>,
        (after, until): (Place, Place),
        newest: Option<Arc<Newest>>,
    ) -> Result<Option<Arc<Subscriber>>, SubscriptionEnded> {
        let there = channel.subscriber.in_the_past(after, until, newest);
        let entered = self.show_rows(channel, past, &there, after)?;
        if !entered && channel.rooms.is_empty() {
            return Ok(None);
        }
        for room in &channel.rooms {
            if room.enter_past(&past.rooms, &there) == Entered::Later {
                channel.leave_past();
                return Ok(None);
            }
        }
        Ok(Some(there))
    }

    /// Whether it has subscriptions to row changes.
    fn show_rows(
        &self,
        channel: &Returner,
        past: &Arc<Self>,
        there: &Arc<Subscriber>,
        after: Place,
    ) -> Result<bool, SubscriptionEnded> {
        let Some(membership) = &channel.rows else { return Ok(false) };
        let registry = self.lock();
        let Seat::In(audience, claims) = *membership.seat() else { return Ok(false) };
        let claims = registry.claims(claims, there.expires_at()).ok_or(SubscriptionEnded)?;
        let registration = registry.again(audience, Arc::clone(there), claims);
        let registration = registration.ok_or(SubscriptionEnded)?;
        let (audience, claims) = past.lock().join(registration);
        let there = past.membership(Arc::clone(there), Seat::In(audience, claims), after);
        *membership.in_past() = Some(Box::new(there));
        Ok(true)
    }
}
