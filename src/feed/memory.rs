//! What the feed keeps between batches of one connection: completed tables, and who was told what.
//!
//! In:     definitions from the log, tables from the catalog.
//! Out:    relations, access and readable columns, each as long as its sources stay the same.
//! Never:  IO; an answer about a table that was not asked for in this batch.

use std::sync::Arc;
use std::time::Instant;

use hashbrown::HashMap;

use super::domain::Planned;
use super::reader::Definition;
use crate::catalog::{QualifiedName, RowAccess, Table};
use crate::change::{ColumnSet, Relation};
use crate::cursor::Epoch;
use crate::hub::{ClaimsId, Subscription};
use crate::mapping::{Gathered, Refusal};

/// What is kept between batches.
#[derive(Default)]
pub(super) struct Memory {
    /// Of the log that is read.
    pub(super) epoch: Epoch,
    pub(super) relations: HashMap<u32, Completed>,
    /// By table and role.
    pub(super) columns: HashMap<(u32, Arc<str>), Readable>,
    pub(super) roots: Roots,
    /// Party, its claims and the table: an id is given again once its party has left.
    pub(super) notices: HashMap<(ClaimsId, Arc<str>, u32), Instant>,
    /// Messages that were too large since that was last told.
    pub(super) refused: usize,
    pub(super) refused_told: Option<Instant>,
    /// By table.
    pub(super) plans: HashMap<u32, Planned>,
    /// What the open transaction has said so far.
    pub(super) gathered: Gathered,
    /// Declaration, rule and refusal, and when that was told last.
    pub(super) refusals: HashMap<(i64, usize, Option<Refusal>), Instant>,
}

/// What a role may read of a relation, as long as both definitions stay.
pub(super) struct Readable {
    pub(super) relation: Arc<Relation>,
    pub(super) table: Arc<Table>,
    pub(super) columns: Arc<ColumnSet>,
}

pub(super) struct Completed {
    pub(super) definition: Arc<Definition>,
    pub(super) table: Option<Arc<Table>>,
    pub(super) relation: Arc<Relation>,
    /// The columns are told from each other, whatever changes follow.
    pub(super) settled: bool,
    /// For a partition whose root somebody asked for: its rows as the root's.
    pub(super) within: Option<Within>,
}

#[derive(Clone)]
pub(super) struct Within {
    pub(super) root: Arc<Table>,
    pub(super) relation: Arc<Relation>,
    /// Of the root's columns in the partition's tuples.
    pub(super) places: Arc<[usize]>,
}

/// The partitioned table above each table, as far as it was asked about.
#[derive(Default)]
pub(super) struct Roots {
    pub(super) known: HashMap<u32, Option<QualifiedName>>,
    /// [`Catalog::forgotten`] at the time.
    pub(super) as_of: u64,
    /// Grows with each change of these answers.
    pub(super) version: u64,
}

impl Roots {
    pub(super) fn forget_old(&mut self, forgotten: u64) {
        if self.as_of != forgotten {
            self.as_of = forgotten;
            self.known.clear();
            self.version = self.version.wrapping_add(1);
        }
    }

    pub(super) fn learn(&mut self, oid: u32, table: Option<&Table>) {
        if !self.known.contains_key(&oid) {
            self.known.insert(oid, table.and_then(|table| table.partition_root.clone()));
            self.version = self.version.wrapping_add(1);
        }
    }
}

impl Memory {
    /// A partition's root can be looked up like any table.
    pub(super) fn keep_root(&mut self, definition: &Arc<Definition>, within: &Within) {
        let completed = Completed {
            definition: Arc::clone(definition),
            table: Some(Arc::clone(&within.root)),
            relation: Arc::clone(&within.relation),
            settled: true,
            within: None,
        };
        self.relations.insert(within.root.oid, completed);
    }

    pub(super) fn table(&self, oid: u32) -> Option<Arc<Table>> {
        self.relations.get(&oid)?.table.clone()
    }

    pub(super) fn access(&self, oid: u32, role: &str) -> RowAccess {
        self.table(oid).map_or(RowAccess::None, |table| table.row_access(role))
    }

    /// Which columns this role may read, and the subscription selected.
    pub(super) fn columns(
        &mut self,
        relation: &Arc<Relation>,
        table: &Arc<Table>,
        role: &Arc<str>,
        subscription: &Subscription,
    ) -> Arc<ColumnSet> {
        let key = (relation.oid, Arc::clone(role));
        let known = self.columns.get(&key).filter(|known| {
            Arc::ptr_eq(&known.relation, relation) && Arc::ptr_eq(&known.table, table)
        });
        let readable = if let Some(known) = known {
            Arc::clone(&known.columns)
        } else {
            let columns = Arc::new(table.readable_in(role, relation));
            let (relation, table) = (Arc::clone(relation), Arc::clone(table));
            self.columns.insert(key, Readable { relation, table, columns: Arc::clone(&columns) });
            columns
        };
        let Some(select) = &subscription.select else { return readable };
        let selected = |place: &usize| {
            let column = &relation.columns[*place];
            column.in_primary_key || select.iter().any(|name| **name == *column.name)
        };
        Arc::new(readable.iter().filter(selected).collect())
    }
}
