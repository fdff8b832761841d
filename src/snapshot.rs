//! Which transactions a Postgres snapshot sees.
//!
//! In:     the text of `pg_current_snapshot()`, and 32-bit transaction ids as the log has them.
//! Out:    what `pg_visible_in_snapshot` answers, without asking the server once an id.
//! Never:  IO.
//! Source: postgresql.org/docs/17/functions-info.html, "Transaction ID and Snapshot Information"

use std::str::FromStr;

/// `xmin:xmax:xip,…`: transactions below `xmin` have ended, those from `xmax` on had not begun,
/// those in `xip` were running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    xmin: u64,
    xmax: u64,
    running: Box<[u64]>,
}

/// Transactions between two snapshots that are looked at one by one; of more, some is unknown.
const LACKING_MAX: u64 = 100_000;

/// The server's text was not a snapshot.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a snapshot: expected xmin:xmax:xip,…")]
pub struct ParseSnapshotError;

impl FromStr for Snapshot {
    type Err = ParseSnapshotError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |digits: &str| digits.parse::<u64>().map_err(|_| ParseSnapshotError);
        let mut parts = text.splitn(3, ':');
        let mut next = || parts.next().ok_or(ParseSnapshotError);
        let (xmin, xmax, running) = (number(next()?)?, number(next()?)?, next()?);
        let mut running = running
            .split(',')
            .filter(|id| !id.is_empty())
            .map(number)
            .collect::<Result<Box<[u64]>, _>>()?;
        running.sort_unstable();
        Ok(Self { xmin, xmax, running })
    }
}

impl Snapshot {
    /// Whether it sees what the committed transaction `xid` did.
    pub fn sees(&self, xid: u32) -> bool {
        let xid = self.widen(xid);
        xid < self.xmin || (xid < self.xmax && self.running.binary_search(&xid).is_err())
    }

    /// Whether `xid` had ended for it, with all transactions before it. Unlike [`Self::sees`] it may
    /// be asked about a subtransaction: of those that run, a snapshot names only the outermost.
    pub fn has_ended(&self, xid: u32) -> bool {
        self.widen(xid) < self.xmin
    }

    /// Whether every transaction that `later` sees and this one does not is `known`. Transactions
    /// that wrote nothing have no id; those that were rolled back count.
    pub fn lacks_only(&self, later: &Self, known: impl Fn(u32) -> bool) -> bool {
        if later.xmax.saturating_sub(self.xmax) > LACKING_MAX {
            return false;
        }
        let lacking = self.running.iter().copied().chain(self.xmax..later.xmax);
        let mut lacking = lacking.map(|xid| u32::try_from(xid & 0xFFFF_FFFF).unwrap_or_default());
        lacking.all(|xid| !later.sees(xid) || known(xid))
    }

    /// How far it reaches: of two snapshots, the one with more is newer.
    pub fn reach(&self) -> (u64, u64) {
        (self.xmax, self.xmin)
    }

    /// The 64-bit id: of those with these low bits, the one nearest to the snapshot's end. The
    /// server keeps all ids in use within 2^31 of each other.
    fn widen(&self, xid: u32) -> u64 {
        let low = u64::from(xid);
        let candidate = (self.xmax & !0xFFFF_FFFF) | low;
        let half = 1_u64 << 31;
        if candidate > self.xmax.saturating_add(half) {
            candidate.saturating_sub(1 << 32)
        } else if candidate.saturating_add(half) < self.xmax {
            candidate.saturating_add(1 << 32)
        } else {
            candidate
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(text: &str) -> Snapshot {
        text.parse().unwrap()
    }

    #[test]
    fn ended_running_and_future_transactions_are_told_apart() {
        let taken = snapshot("10:20:12,15");
        for xid in [3, 9, 10, 11, 13, 19] {
            assert!(taken.sees(xid), "{xid}");
        }
        for xid in [12, 15, 20, 21, 1000] {
            assert!(!taken.sees(xid), "{xid}");
        }
        assert!(snapshot("10:10:").sees(9));
        assert!(!snapshot("10:10:").sees(10));
    }

    #[test]
    fn a_subtransaction_has_ended_when_all_before_it_have() {
        let taken = snapshot("10:20:10,15");
        assert!(taken.has_ended(9));
        for xid in [10, 12, 16, 20] {
            assert!(!taken.has_ended(xid), "{xid}");
        }
    }

    #[test]
    fn ids_keep_their_meaning_across_the_wrap() {
        // Epoch 1 has just begun: 0xFFFFFFF0 is of epoch 0, 5 of epoch 1.
        let young = snapshot("4294967300:4294967310:4294967304");
        assert!(young.sees(0xFFFF_FFF0));
        assert!(young.sees(5));
        assert!(!young.sees(8), "4294967304 is running");
        assert!(!young.sees(14));
        // The end of epoch 0: a small id is of epoch 1, not yet begun.
        let old = snapshot("4294967280:4294967290:");
        assert!(!old.sees(5));
        assert!(old.sees(0xFFFF_FF00));
    }

    #[test]
    fn what_came_between_two_snapshots_is_all_known_or_not() {
        let before = snapshot("10:20:12,15");
        let check = |later: &str, known: &[u32]| {
            before.lacks_only(&snapshot(later), |xid| known.contains(&xid))
        };
        assert!(check("12:20:12,15", &[]));
        assert!(check("21:21:", &[12, 15, 20]));
        assert!(!check("21:21:", &[12, 20]), "15 ended");
        assert!(check("15:21:15", &[12, 20]), "15 still runs");
        assert!(!check("21:22:", &[12, 15, 20]), "21");
        assert!(!check("900000:900000:", &(0..900_000).collect::<Vec<_>>()), "too many to look at");
    }

    #[test]
    fn what_the_server_never_writes_is_refused() {
        for text in ["", "1", "1:2", "a:2:", "1:b:", "1:2:c", "1:2:3,x"] {
            assert_eq!(text.parse::<Snapshot>(), Err(ParseSnapshotError), "{text}");
        }
    }
}
