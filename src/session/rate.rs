//! How many a second.
//!
//! In:     the time of each event, and how many a second there may be.
//! Out:    whether this one is within it.
//! Never:  a lock, an allocation, a wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::users::{UserPlace, Users};

/// Counts events within each second of the clock.
#[derive(Debug, Default)]
pub(super) struct Rate {
    /// The second since 1970 in the upper half, the events within it in the lower.
    state: AtomicU64,
}

impl Rate {
    /// Counts one; false when there were `most` in this second already.
    pub(super) fn admit(&self, most: usize, now: SystemTime) -> bool {
        let second = second(now);
        let next = |state| second | (within(state, now) + 1).min(u64::from(u32::MAX));
        let counted = |state| Some(next(state));
        // The closure never declines.
        let before = self.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, counted);
        let count = next(before.unwrap_or_default()) & u64::from(u32::MAX);
        usize::try_from(count).is_ok_and(|count| count <= most)
    }

    /// Counts all of `count`, or none and false when there would be more than `most` in this
    /// second.
    fn admit_all(&self, count: usize, most: usize, now: SystemTime) -> bool {
        let most = u64::try_from(most).unwrap_or(u64::MAX).min(u64::from(u32::MAX));
        let Ok(count) = u64::try_from(count) else { return false };
        let counted = |state| {
            let sum = within(state, now).checked_add(count).filter(|sum| *sum <= most)?;
            Some(second(now) | sum)
        };
        self.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, counted).is_ok()
    }
}

/// The second of the clock, in the upper half.
fn second(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()) << 32
}

/// The events that `state` counts in the second of `now`.
fn within(state: u64, now: SystemTime) -> u64 {
    if state >> 32 == second(now) >> 32 { state & u64::from(u32::MAX) } else { 0 }
}

/// What all connections together do.
#[derive(Debug, Default)]
pub struct Rates {
    pub(super) users: Arc<Users>,
    pub(super) joins: Rate,
    pub(super) events: Rate,
}

impl Rates {
    /// Counts one join; false when there were `most` in this second already.
    pub fn admit_join(&self, most: usize, now: SystemTime) -> bool {
        self.joins.admit(most, now)
    }

    /// Counts one connection of a user; none when it has `most`.
    pub fn enter(&self, subject: &Arc<str>, most: usize) -> Option<UserPlace> {
        self.users.enter(subject, most)
    }

    /// Counts the events of one request; none of them, and false, when there would be more than
    /// `most` in this second.
    pub fn admit_events(&self, count: usize, most: usize, now: SystemTime) -> bool {
        self.events.admit_all(count, most, now)
    }

    /// The events of this second so far.
    pub fn events(&self, now: SystemTime) -> u64 {
        within(self.events.state.load(Ordering::Relaxed), now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_second_has_room_for_so_many_and_the_next_one_again() {
        let rate = Rate::default();
        let at = |milliseconds| UNIX_EPOCH + Duration::from_millis(milliseconds);
        let admitted: Vec<bool> = (0..4).map(|_| rate.admit(3, at(5_000))).collect();
        assert_eq!(admitted, [true, true, true, false]);
        assert!(!rate.admit(3, at(5_999)));
        assert!(rate.admit(3, at(6_000)));
        // A clock that was set back does not block for ever.
        assert!(rate.admit(1, at(1_000)));
        assert!(!rate.admit(1, at(1_001)));
    }

    #[test]
    fn of_several_at_once_all_fit_or_none_is_counted() {
        let rates = Rates::default();
        let now = UNIX_EPOCH + Duration::from_secs(5);
        assert!(rates.admit_events(2, 3, now));
        assert!(!rates.admit_events(2, 3, now));
        assert_eq!(rates.events(now), 2);
        assert!(rates.admit_events(1, 3, now));
        assert!(!rates.admit_events(usize::MAX, usize::MAX, now));
        let next = now + Duration::from_secs(1);
        assert_eq!(rates.events(next), 0);
        assert!(rates.admit_events(3, 3, next));
        assert!(!rates.events.admit(3, next));
    }
}
