//! Which came first, a definition or a change.
//!
//! In:     what our answers saw; the transactions that changed definitions, as they are decoded.
//! Out:    whether a transaction certainly committed before some changes.
//! Never:  a yes by guess: what is not known to be before is not.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::snapshot::Snapshot;

/// Snapshots remembered: with their interval, how far behind changes may be and still be told from
/// definitions made since.
const SNAPSHOTS_MAX: usize = 64;

/// Snapshots nearer to each other than this are not both kept.
const SNAPSHOTS_INTERVAL: Duration = Duration::from_secs(1);

/// Transactions remembered because they changed definitions.
const DEFINERS_MAX: usize = 1024;

/// What is known of the order of definitions and changes.
#[derive(Default)]
pub(super) struct Past {
    /// What our answers saw, oldest first, none of them much younger than the one before.
    snapshots: VecDeque<(Instant, Snapshot)>,
    /// Transactions that changed definitions and were decoded.
    definers: VecDeque<u32>,
    /// Transactions before this one had ended before anything that is decoded.
    horizon: Option<u32>,
}

impl Past {
    /// Takes note of what an answer saw.
    pub(super) fn keep(&mut self, snapshot: Snapshot) {
        let (now, count) = (Instant::now(), self.snapshots.len());
        let last_but_one = count.checked_sub(2).and_then(|place| self.snapshots.get(place));
        if last_but_one.is_some_and(|(at, _)| now.duration_since(*at) < SNAPSHOTS_INTERVAL) {
            self.snapshots.pop_back();
        } else if count >= SNAPSHOTS_MAX {
            self.snapshots.pop_front();
        }
        self.snapshots.push_back((now, snapshot));
    }

    /// Takes note of transactions that changed definitions and were decoded.
    pub(super) fn observe(&mut self, definers: &[u32]) {
        for xid in definers {
            if self.definers.len() >= DEFINERS_MAX {
                self.definers.pop_front();
            }
            self.definers.push_back(*xid);
        }
    }

    /// No transaction was decoded before what comes now.
    pub(super) fn forget(&mut self) {
        self.definers.clear();
    }

    /// Whatever is decoded is of transactions that committed after every one before `horizon`.
    pub(super) fn begin_after(&mut self, horizon: Option<u32>) {
        self.horizon = horizon;
    }

    /// Knows what `other` saw.
    pub(super) fn share(&mut self, other: &Self) {
        self.snapshots.clone_from(&other.snapshots);
    }

    /// See [`super::Catalog::is_before`].
    pub(super) fn is_before(&self, xid: u32, changes: &[u32]) -> bool {
        if self.horizon.is_some_and(|horizon| precedes(xid, horizon)) {
            return true;
        }
        let between = |snapshot: &Snapshot| {
            snapshot.has_ended(xid) && !changes.iter().any(|change| snapshot.sees(*change))
        };
        self.definers.contains(&xid) || self.snapshots.iter().any(|(_, snapshot)| between(snapshot))
    }
}

/// Ids before these are not given to transactions: what has one was always there.
const FIRST_NORMAL_XID: u32 = 3;

/// As the server compares ids, which come again after 2^32.
fn precedes(xid: u32, other: u32) -> bool {
    xid < FIRST_NORMAL_XID || xid.wrapping_sub(other) > u32::MAX / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ended_before_the_log_begins_is_before_every_change() {
        let mut past = Past::default();
        assert!(!past.is_before(90, &[100]));
        past.begin_after(Some(95));
        assert!(past.is_before(90, &[100]) && past.is_before(2, &[100]));
        assert!(!past.is_before(95, &[100]) && !past.is_before(99, &[100]));
        past.begin_after(Some(5));
        assert!(past.is_before(u32::MAX - 5, &[100]), "before they came again");
    }
}
