//! Changes: what a committed transaction did to one row, free of any client's format.
//!
//! In:     pgoutput messages with their batch, and the relations they name.
//! Out:    [`Change`]: operation, relation, new and old row image, place in the commit order.
//! Never:  IO; JSON envelopes (`event` writes those).
//! Source: postgresql.org/docs/17/protocol-logicalrep-message-formats.html

mod builtin;
mod columns;
pub mod origin;
mod relation;
mod tuple;
pub mod value;

use std::sync::Arc;
use std::time::SystemTime;

use crate::cursor::Place;
use crate::lsn::Lsn;

pub use builtin::builtin;
pub use columns::ColumnSet;
pub use origin::Origin;
pub use relation::{Column, Relation, ReplicaIdentity};
pub use tuple::{Tuple, TupleBuilder, Value};

/// What happened to the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// A new row.
    Insert,
    /// A row replaced by another version.
    Update,
    /// A row removed.
    Delete,
}

impl Operation {
    /// The name in events and filters: `INSERT`, `UPDATE`, `DELETE`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Insert => "INSERT",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
        }
    }
}

/// How much of the old row the log carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldImage {
    /// Only the replica identity's columns; every other column reads as null and means "not sent".
    Key,
    /// The whole row (`replica identity full`).
    Full,
}

/// The transaction a change belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Transaction id as the log has it: 32 bits, without its epoch.
    pub xid: u32,
    /// Where the commit record starts. Orders transactions.
    pub lsn: Lsn,
    /// When it committed, by the server's clock.
    pub time: SystemTime,
}

/// One row's change.
#[derive(Debug, Clone)]
pub struct Change {
    /// What happened.
    pub operation: Operation,
    /// The table as it was when the change was written.
    pub relation: Arc<Relation>,
    /// The new row: there for inserts and updates.
    pub record: Option<Tuple>,
    /// The old row, as far as the replica identity made the log carry it.
    pub old_record: Option<(OldImage, Tuple)>,
    /// Its transaction.
    pub commit: Commit,
    /// Number among the row changes of its transaction, from 0, counted before any filtering.
    pub ordinal: u32,
    /// Who made its transaction, if that was said.
    pub origin: Option<Arc<Origin>>,
}

impl Change {
    /// Where it stands in the log.
    pub const fn place(&self) -> Place {
        Place { commit: self.commit.lsn, ordinal: self.ordinal }
    }
}
