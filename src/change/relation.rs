//! Table definitions as the log describes them, completed from the catalog.
//!
//! In:     a pgoutput Relation message and, when the catalog still has it, the table.
//! Out:    [`Relation`]: everything needed to read, filter and render that table's tuples.
//! Never:  IO.

use super::columns::ColumnSet;
use super::value::Type;

/// What a table's old row images hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key (`d`).
    Default,
    /// Nothing (`n`): updates and deletes of a published table fail in the application.
    Nothing,
    /// The whole row (`f`).
    Full,
    /// The columns of one unique index (`i`).
    Index,
}

impl ReplicaIdentity {
    /// From `pg_class.relreplident`, which the log repeats. An unknown one promises nothing.
    pub const fn from_code(code: u8) -> Self {
        match code {
            b'd' => Self::Default,
            b'f' => Self::Full,
            b'i' => Self::Index,
            _ => Self::Nothing,
        }
    }
}

/// One column of a tuple, in the order the log sends them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Name, as the catalog has it now; empty when the log's column cannot be told from others.
    pub name: Box<str>,
    /// Its number in the catalog, where that is known.
    pub attnum: Option<i16>,
    /// Type OID.
    pub type_oid: u32,
    /// `pg_type.typname`, such as `int4` or `_text`.
    pub type_name: Box<str>,
    /// How its text becomes JSON.
    pub kind: Type,
    /// Part of the replica identity (every column is, when that is full).
    pub in_identity: bool,
    /// Part of the primary key. Never known from the log alone.
    pub in_primary_key: bool,
}

/// A table as of a place in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// OID: the identity that survives renames.
    pub oid: u32,
    /// Schema name.
    pub schema: Box<str>,
    /// Table name.
    pub table: Box<str>,
    /// What its old images hold.
    pub replica_identity: ReplicaIdentity,
    /// Columns that the log carries, in its order.
    pub columns: Box<[Column]>,
}

impl Relation {
    /// The place of a column in this relation's tuples.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| *column.name == *name && !name.is_empty())
    }

    /// The places of the primary key's columns; empty when there is no key or it is not known.
    pub fn primary_key(&self) -> ColumnSet {
        let columns = (0..).zip(&self.columns);
        columns.filter(|(_, column)| column.in_primary_key).map(|(place, _)| place).collect()
    }
}
