//! The past: channels that come back with a cursor, in a hub of their own for a while.
//!
//! In:     a channel that has everything up to a place; what is published to it there.
//! Out:    where it goes on, by the claims and subscriptions it has now; what its client is told.
//! Never:  a frame by claims that are no longer in force.

use std::sync::{Arc, MutexGuard, PoisonError};

use bytes::Bytes;

use super::{Hub, Membership, Seat, Subscriber};
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

impl Membership {
    /// It has every row change up to `reached`: `word` follows, and those that waited. Or the place
    /// up to which it must be shown more first, because too much came meanwhile.
    pub fn caught_up(&self, reached: Place, word: Bytes) -> Option<Place> {
        self.leave_past();
        self.subscriber.caught_up(reached, word)
    }

    /// Whether it is shown the past.
    pub fn is_in_past(&self) -> bool {
        self.in_past().is_some()
    }

    /// It is shown no more of the past once this returns.
    pub fn leave_past(&self) {
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
    /// [`Subscriber::reached`] tells how far it came. None: it has none now, and may again.
    ///
    /// It is shown nothing more there once its claims or subscriptions here change, or it leaves.
    ///
    /// # Errors
    /// One of its subscriptions has ended.
    pub fn enter_past(
        &self,
        membership: &Membership,
        past: &Arc<Self>,
        after: Place,
        until: Place,
    ) -> Result<Option<Arc<Subscriber>>, SubscriptionEnded> {
        let registry = self.lock();
        let Seat::In(audience, claims) = *membership.seat() else { return Ok(None) };
        let subscriber = membership.subscriber.in_the_past(after, until);
        let claims = registry.claims(claims, subscriber.expires_at()).ok_or(SubscriptionEnded)?;
        let registration = registry.again(audience, Arc::clone(&subscriber), claims);
        let registration = registration.ok_or(SubscriptionEnded)?;
        let (audience, claims) = past.lock().join(registration);
        let there = past.membership(Arc::clone(&subscriber), Seat::In(audience, claims), after);
        *membership.in_past() = Some(Box::new(there));
        Ok(Some(subscriber))
    }
}
