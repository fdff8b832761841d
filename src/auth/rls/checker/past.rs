//! Old rows, asked about in a snapshot from before the transaction that replaced or removed them.
//!
//! In:     answers from after it, and what was touched meanwhile.
//! Out:    the answers that were in [`Doubt`], replaced by those of the past where these are exact.
//! Never:  a row shown because the past could not be asked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use tokio_postgres::types::ToSql;

use super::super::history::Held;
use super::super::{Error, Visibility, lock};
use super::call::{IMAGE_BYTES_PER_CALL, IMAGES_PER_CALL, Input, value_len};
use super::sheet::{Item, Sheet, Side, at, image_of};
use super::{Checker, Job, Lessons, unanswered};
use crate::change::{Change, Operation};
use crate::snapshot::Snapshot;

/// In what an answer about an old row may be wrong, because it is from after the transaction that
/// replaced or removed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Doubt {
    /// A DELETE that nobody sees any more goes to those who saw the row before.
    SawBefore,
    /// The same where policies may read what the log does not tell of: the past is believed only if
    /// it turns out that they read nothing of the kind, or that nobody at all wrote anything
    /// between it and the transaction.
    SawBeforeUntold,
    /// An UPDATE's old values are kept from those who came to see them by the same transaction.
    LetIn,
    /// The same where policies may read what the log does not tell of: old values go to those who
    /// found this very row version in the table before the transaction, whatever happened since.
    LetInUntold,
}

impl Doubt {
    /// The answer that is doubted.
    fn of(self) -> Visibility {
        match self {
            Self::SawBefore | Self::SawBeforeUntold => Visibility::No,
            Self::LetIn | Self::LetInUntold => Visibility::Yes,
        }
    }

    /// What holds when the past cannot be asked.
    fn otherwise(self) -> Visibility {
        match self {
            Self::SawBefore | Self::SawBeforeUntold => Visibility::No,
            Self::LetIn => Visibility::Unknown,
            Self::LetInUntold => Visibility::YesNow,
        }
    }
}

impl Checker {
    /// Asks about old rows in a snapshot from before their transaction, where that transaction
    /// may itself have changed the answer; what [`Doubt`] says about it.
    pub(super) async fn ask_the_past(
        &self,
        sheet: &mut Sheet<'_>,
        lessons: &mut Lessons,
        table: u32,
        items: &[Item],
        users: &[usize],
        answering: &Snapshot,
    ) -> Result<(), Error> {
        let mut snapshots: BTreeMap<(u32, Doubt), Option<Held>> = BTreeMap::new();
        // Items of the same transaction that the same users ask about go together.
        let mut groups: BTreeMap<(u32, Doubt, Vec<usize>), Vec<&Item>> = BTreeMap::new();
        for item in items.iter().filter(|item| item.side == Side::Old) {
            let Some(change) = at(sheet.job.batch, item.change) else { continue };
            let Some(doubt) = self.doubt(sheet.job, table, change) else { continue };
            let doubted = doubt.of();
            let doubts = |user: &usize| {
                sheet.get(*user, item.change).is_some_and(|verdict| verdict.old == doubted)
            };
            let asked: Vec<usize> = users.iter().copied().filter(doubts).collect();
            let mut otherwise = doubt.otherwise();
            if otherwise == Visibility::No
                && sheet.job.of_the_past
                && self.may_have_changed(sheet.job, table, change)
            {
                otherwise = Visibility::Forgotten;
            }
            for &user in &asked {
                sheet.set(user, item.change, Side::Old, otherwise);
            }
            if !asked.is_empty() {
                let xid = change.commit.xid;
                snapshots
                    .entry((xid, doubt))
                    .or_insert_with(|| self.snapshot_before(sheet.job, table, change, doubt));
                groups.entry((xid, doubt, asked)).or_default().push(item);
            }
        }
        let mut begun: Option<(&str, Snapshot)> = None;
        for ((xid, doubt, asked), items) in groups {
            let Some(held) = snapshots.get(&(xid, doubt)).and_then(Option::as_ref) else {
                continue;
            };
            if begun.as_ref().is_none_or(|(id, _)| *id != held.id) {
                // An error means that its holder has moved on; a lost connection shows next.
                let Ok(Ok(snapshot)) = self.begin(Some(held)).await else {
                    begun = None;
                    continue;
                };
                begun = Some((&held.id, snapshot));
            }
            if begun.as_ref().is_some_and(|(_, snapshot)| !snapshot.sees(xid)) {
                match doubt {
                    Doubt::SawBefore | Doubt::LetIn => {
                        self.ask_images(sheet, lessons, table, &items, &asked, false).await?;
                    }
                    Doubt::SawBeforeUntold => {
                        let asking = self.ask_images(sheet, lessons, table, &items, &asked, true);
                        let reads = asking.await?;
                        let only = Self::lacks_only(sheet.job, items[0], held, answering);
                        for (user, read) in reads {
                            if !only && !self.is_told(sheet.job, items[0], held, read).await? {
                                for item in &items {
                                    sheet.set(user, item.change, Side::Old, Visibility::No);
                                }
                            }
                        }
                    }
                    Doubt::LetInUntold => {
                        self.ask_images(sheet, lessons, table, &items, &asked, false).await?;
                        for item in &items {
                            for &user in &asked {
                                let verdict = sheet.get(user, item.change);
                                if verdict.is_some_and(|v| v.old == Visibility::Yes) {
                                    sheet.set(user, item.change, Side::Old, Visibility::YesNow);
                                }
                            }
                        }
                        self.find_old_rows(sheet, lessons, table, &items, &asked).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Asks whether users find these old row versions in the table: whoever does could have read
    /// every value of them.
    async fn find_old_rows(
        &self,
        sheet: &mut Sheet<'_>,
        lessons: &mut Lessons,
        table: u32,
        items: &[&Item],
        users: &[usize],
    ) -> Result<(), Error> {
        let Some(table) = self.tables.get(&table) else { return Ok(()) };
        let Some(statement) = &table.row_function else { return Ok(()) };
        let can_find = |item: &&Item| table.facts.can_find(&item.image.known);
        let items: Vec<&Item> = items.iter().copied().filter(can_find).collect();
        let batch = sheet.job.batch;
        let mut rest = items.as_slice();
        while !rest.is_empty() {
            let tuples = rest.iter().map_while(|item| {
                let change = at(batch, item.change)?;
                let (tuple, _) = image_of(change, Side::Old)?;
                Some((change, tuple?))
            });
            let mut bytes = 0_usize;
            let tuples = tuples.take(IMAGES_PER_CALL).take_while(|(_, tuple)| {
                let fits = bytes <= IMAGE_BYTES_PER_CALL;
                bytes = bytes.saturating_add(tuple.values().map(value_len).sum());
                fits
            });
            let tuples: Vec<_> = tuples.collect();
            let (chunk, later) = rest.split_at(tuples.len().max(1));
            rest = later;
            let known = chunk.iter().flat_map(|item| item.image.known.iter().copied());
            let known: Vec<bool> = known.collect();
            let values = tuples.iter();
            let values = values.flat_map(|(change, old)| table.facts.texts(&change.relation, old));
            let values: Vec<Option<&str>> = values.collect();
            let input = Input::Rows { known: &known, values: &values, rows: chunk.len() };
            for (user, seen) in self.call(sheet, lessons, statement, &input, users).await? {
                for (place, item) in chunk.iter().enumerate() {
                    if seen.at(place) == Visibility::Yes {
                        sheet.set(user, item.change, Side::Old, Visibility::Yes);
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether nobody at all wrote anything between a snapshot of the past and a change.
    fn lacks_only(job: &Job<'_>, item: &Item, held: &Held, answering: &Snapshot) -> bool {
        let Some(change) = at(job.batch, item.change) else { return false };
        let (xid, lsn) = (change.commit.xid, change.commit.lsn);
        let touched = lock(job.touched);
        held.snapshot.lacks_only(answering, |other| other == xid || touched.is_after(other, lsn))
    }

    /// Whether the log tells all about the tables that were `read` in a snapshot of the past, and
    /// that nobody wrote to them between it and the change.
    async fn is_told(
        &self,
        job: &Job<'_>,
        item: &Item,
        held: &Held,
        read: Option<BTreeSet<u32>>,
    ) -> Result<bool, Error> {
        let (Some(read), Some(change)) = (read, at(job.batch, item.change)) else {
            return Ok(false);
        };
        let exact = {
            let touched = lock(job.touched);
            let mut earlier = touched
                .earlier(change.commit.lsn, change.commit.xid, |other| read.contains(&other));
            touched.is_complete(Instant::now()) && earlier.all(|xid| held.snapshot.sees(xid))
        };
        if !exact {
            return Ok(false);
        }
        let read: Vec<u32> = read.into_iter().collect();
        let parameters: [&(dyn ToSql + Sync); 2] = [&read, &&*self.publications];
        let row = self.client.query_one(&self.untold, &parameters).await.map_err(unanswered)?;
        let untold: bool = row.try_get(0).map_err(unanswered)?;
        Ok(!untold)
    }

    /// Whether a change's own transaction may have changed who could see its old row: it wrote to
    /// what the policies read, or may have.
    fn may_have_changed(&self, job: &Job<'_>, table: u32, change: &Change) -> bool {
        let Some(facts) = self.tables.get(&table).map(|table| &table.facts) else { return true };
        let company = lock(job.touched).company(change.commit.xid, table);
        facts.reads_hidden()
            || (!company.whole && facts.reads_others())
            || (company.rows && facts.reads(table))
            || company.others.iter().any(|other| facts.reads(*other))
    }

    /// In what the answer about a change's old row may be wrong, because it is from after the
    /// change's own transaction.
    fn doubt(&self, job: &Job<'_>, table: u32, change: &Change) -> Option<Doubt> {
        let facts = &self.tables.get(&table)?.facts;
        let company = lock(job.touched).company(change.commit.xid, table);
        match change.operation {
            Operation::Delete if facts.reads_hidden() => Some(Doubt::SawBeforeUntold),
            Operation::Delete if company.rows || !company.whole => Some(Doubt::SawBefore),
            // Without an old image there is nothing to keep back.
            Operation::Update if change.old_record.is_none() => None,
            Operation::Update if facts.reads_hidden() => Some(Doubt::LetInUntold),
            Operation::Update
                if company.others.iter().any(|other| facts.reads(*other))
                    || (!company.whole && facts.reads_others()) =>
            {
                Some(Doubt::LetIn)
            }
            Operation::Insert | Operation::Update | Operation::Delete => None,
        }
    }

    /// The newest held snapshot from before a change's transaction, if it answers the doubt: an
    /// earlier transaction that it does not see either could have taken the row away.
    fn snapshot_before(
        &self,
        job: &Job<'_>,
        table: u32,
        change: &Change,
        doubt: Doubt,
    ) -> Option<Held> {
        let (xid, lsn) = (change.commit.xid, change.commit.lsn);
        let held = job.history.before(xid)?;
        let facts = &self.tables.get(&table)?.facts;
        let exact = match doubt {
            Doubt::SawBefore | Doubt::LetIn => {
                let touched = lock(job.touched);
                let company = touched.company(xid, table);
                let relevant = |other| {
                    other != table
                        && (!company.whole || company.others.contains(&other) || facts.reads(other))
                };
                touched.is_complete(Instant::now())
                    && touched.earlier(lsn, xid, relevant).all(|xid| held.snapshot.sees(xid))
            }
            // What was read, or the row that was found, tells more.
            Doubt::SawBeforeUntold | Doubt::LetInUntold => true,
        };
        exact.then_some(held)
    }
}
