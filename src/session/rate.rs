//! How many a second.
//!
//! In:     the time of each event, and how many a second there may be.
//! Out:    whether this one is within it.
//! Never:  a lock, an allocation, a wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::users::Users;

/// Counts events within each second of the clock.
#[derive(Debug, Default)]
pub(super) struct Rate {
    /// The second since 1970 in the upper half, the events within it in the lower.
    state: AtomicU64,
}

impl Rate {
    /// Counts one; false when there were `most` in this second already.
    pub(super) fn admit(&self, most: usize, now: SystemTime) -> bool {
        let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()) << 32;
        let next = |state: u64| {
            let same = state >> 32 == second >> 32;
            let count = if same { (state & u64::from(u32::MAX)) + 1 } else { 1 };
            second | count.min(u64::from(u32::MAX))
        };
        let counted = |state| Some(next(state));
        // The closure never declines.
        let before = self.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, counted);
        let count = next(before.unwrap_or_default()) & u64::from(u32::MAX);
        usize::try_from(count).is_ok_and(|count| count <= most)
    }
}

/// What all connections together do.
#[derive(Debug, Default)]
pub struct Rates {
    pub(super) users: Arc<Users>,
    pub(super) joins: Rate,
    pub(super) events: Rate,
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
}
