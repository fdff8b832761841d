//! Which tables recent transactions wrote to.
//!
//! In:     every batch, in commit order.
//! Out:    what else a row's transaction did, and which transactions before it did what.
//! Never:  more than [`TRANSACTIONS_MAX`] transactions, or older ones than [`AGE_MAX`].

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::change::{Change, Commit};
use crate::lsn::Lsn;

/// How long a transaction is remembered: well beyond the life of a snapshot of the past.
const AGE_MAX: Duration = Duration::from_secs(15);
/// How many are remembered. Beyond that the oldest is forgotten.
const TRANSACTIONS_MAX: usize = 16_384;

#[derive(Debug)]
struct Transaction {
    lsn: Lsn,
    tables: BTreeSet<u32>,
    /// Row changes, counted from the first one, whether or not we were shown all of them.
    changes: u32,
    /// Whether that is all it did.
    whole: bool,
    at: Instant,
}

/// Recent transactions by xid; the server does not use one twice while we remember it.
#[derive(Debug, Default)]
pub(super) struct Touched {
    recent: HashMap<u32, Transaction>,
    /// Oldest first.
    order: VecDeque<u32>,
    /// When one was last forgotten because there were too many.
    overflowed: Option<Instant>,
}

/// What a transaction did beside one row.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Company {
    /// It changed other rows.
    pub(super) rows: bool,
    /// Other tables it wrote to.
    pub(super) others: BTreeSet<u32>,
    /// Whether that is all. Otherwise it may have done anything else.
    pub(super) whole: bool,
}

impl Company {
    /// Of a transaction that is not remembered: it may have done anything.
    fn unknown() -> Self {
        Self { rows: true, others: BTreeSet::new(), whole: false }
    }
}

impl Touched {
    /// Takes note of a batch; once more changes nothing.
    pub(super) fn note(&mut self, batch: &[Change], now: Instant) {
        for change in batch {
            let changes = change.ordinal.saturating_add(1);
            self.add(change.commit, [change.relation.oid], changes, now);
        }
        self.forget_old(now);
    }

    /// Takes note of (a part of) a transaction: the tables it wrote to, and its changes so far.
    /// `whole`: that is all it did.
    pub(super) fn note_transaction(
        &mut self,
        commit: Commit,
        tables: &[u32],
        changes: u32,
        whole: bool,
        now: Instant,
    ) {
        self.add(commit, tables.iter().copied(), changes, now).whole = whole;
        self.forget_old(now);
    }

    fn add(
        &mut self,
        commit: Commit,
        tables: impl IntoIterator<Item = u32>,
        changes: u32,
        now: Instant,
    ) -> &mut Transaction {
        let known = self.recent.entry(commit.xid).or_insert_with(|| {
            self.order.push_back(commit.xid);
            let (lsn, tables) = (commit.lsn, BTreeSet::new());
            Transaction { lsn, tables, changes: 0, whole: true, at: now }
        });
        known.tables.extend(tables);
        known.changes = known.changes.max(changes);
        known.at = now;
        known
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some(first) = self.order.front() {
            let old = |first: &Transaction| now.duration_since(first.at) > AGE_MAX;
            if self.order.len() <= TRANSACTIONS_MAX && !self.recent.get(first).is_some_and(old) {
                break;
            }
            if !self.recent.get(first).is_some_and(old) {
                self.overflowed = Some(now);
            }
            self.recent.remove(first);
            self.order.pop_front();
        }
    }

    /// What `xid` did beside one row of `table`.
    pub(super) fn company(&self, xid: u32, table: u32) -> Company {
        self.recent.get(&xid).map_or_else(Company::unknown, |transaction| Company {
            rows: transaction.changes > 1,
            others: transaction.tables.iter().copied().filter(|other| *other != table).collect(),
            whole: transaction.whole,
        })
    }

    /// Whether the transaction `xid` is known to have committed after `lsn`.
    pub(super) fn is_after(&self, xid: u32, lsn: Lsn) -> bool {
        self.recent.get(&xid).is_some_and(|transaction| transaction.lsn > lsn)
    }

    /// Whether no transaction was forgotten too early: then [`Self::earlier`] misses none that a
    /// snapshot of the past could lack.
    pub(super) fn is_complete(&self, now: Instant) -> bool {
        self.overflowed.is_none_or(|at| now.duration_since(at) > AGE_MAX)
    }

    /// Transactions that committed before `lsn` and may have written to a table that is
    /// `relevant`.
    pub(super) fn earlier(
        &self,
        lsn: Lsn,
        xid: u32,
        relevant: impl Fn(u32) -> bool,
    ) -> impl Iterator<Item = u32> {
        let all = self.recent.iter();
        let earlier = all.filter(move |(other, what)| what.lsn < lsn && **other != xid);
        let relevant = earlier
            .filter(move |(_, what)| !what.whole || what.tables.iter().any(|t| relevant(*t)));
        relevant.map(|(other, _)| *other)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use super::*;
    use crate::change::{Operation, Relation, ReplicaIdentity};

    fn change(xid: u32, ordinal: u32, table: u32) -> Change {
        let relation = Relation {
            oid: table,
            schema: "public".into(),
            table: "t".into(),
            replica_identity: ReplicaIdentity::Full,
            columns: Box::default(),
        };
        let commit = Commit { xid, lsn: Lsn::new(u64::from(xid)), time: SystemTime::UNIX_EPOCH };
        Change {
            operation: Operation::Delete,
            relation: Arc::new(relation),
            record: None,
            old_record: None,
            commit,
            ordinal,
            origin: None,
        }
    }

    #[test]
    fn a_transaction_is_known_across_batches() {
        let mut touched = Touched::default();
        let now = Instant::now();
        touched.note(&[change(7, 0, 100)], now);
        let alone = Company { rows: false, others: BTreeSet::new(), whole: true };
        assert_eq!(touched.company(7, 100), alone);
        touched.note(&[change(7, 1, 200)], now);
        let expected = Company { rows: true, others: BTreeSet::from([200]), whole: true };
        assert_eq!(touched.company(7, 100), expected);
        assert_eq!(touched.company(8, 100), Company::unknown());
    }

    #[test]
    fn only_earlier_and_relevant_transactions_count() {
        let mut touched = Touched::default();
        touched.note(&[change(5, 0, 1), change(6, 0, 2), change(8, 0, 1)], Instant::now());
        let earlier = |table| touched.earlier(Lsn::new(7), 7, move |oid| oid == table);
        assert_eq!(earlier(1).collect::<Vec<_>>(), [5]);
        assert_eq!(earlier(2).collect::<Vec<_>>(), [6]);
        assert_eq!(earlier(3).count(), 0);
    }

    #[test]
    fn what_is_not_whole_may_have_done_anything() {
        let (mut touched, now) = (Touched::default(), Instant::now());
        let commit = change(5, 0, 1).commit;
        touched.note_transaction(commit, &[1], 1, false, now);
        touched.note(&[change(5, 0, 1)], now);
        assert!(!touched.company(5, 1).whole);
        assert_eq!(touched.earlier(Lsn::new(7), 7, |_| false).collect::<Vec<_>>(), [5]);
        touched.note_transaction(commit, &[1, 2], 3, true, now);
        let expected = Company { rows: true, others: BTreeSet::from([2]), whole: true };
        assert_eq!(touched.company(5, 1), expected);
        assert_eq!(touched.earlier(Lsn::new(7), 7, |_| false).count(), 0);
    }

    #[test]
    fn memory_is_bounded_by_age_and_number() {
        let mut touched = Touched::default();
        let now = Instant::now();
        touched.note(&[change(1, 0, 1)], now);
        touched.note(&[change(2, 0, 1)], now + AGE_MAX + Duration::from_secs(1));
        assert_eq!(touched.order, [2]);
        let many: Vec<_> = (0..20_000).map(|xid| change(xid, 0, 1)).collect();
        assert!(touched.is_complete(now));
        touched.note(&many, now);
        assert!(!touched.is_complete(now));
        assert!(touched.is_complete(now + AGE_MAX + Duration::from_secs(1)));
        assert_eq!(
            (touched.order.len(), touched.recent.len()),
            (TRANSACTIONS_MAX, TRANSACTIONS_MAX)
        );
    }
}
