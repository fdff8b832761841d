//! Messages → changes that somebody asked for, in commit order.
//!
//! In:     batches of pgoutput messages; which tables are wanted.
//! Out:    [`Segment`]s: changes under one definition of each table, with their transactions.
//! Never:  IO; a look into the rows of a table that nobody asked for.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::catalog::Table;
use crate::change::{Commit, OldImage, Operation, Relation, Tuple, TupleBuilder, Value};
use crate::lsn::Lsn;
use crate::wal::Batch;
use crate::wal::pgoutput::{self, DecodeError, Message, OldKind, TupleColumn, TupleData};

/// Transactional messages with this prefix say that the catalog changed at their place in the log.
pub(super) const DDL_PREFIX: &str = "walcast.ddl";

/// Room for the columns of a usual row; more grow it.
const COLUMNS_USUAL: usize = 16;

/// Relations of one transaction that are remembered.
const TOUCHED_MAX: usize = 256;

/// A stream that cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Bytes that are no message.
    #[error("malformed pgoutput message")]
    Decode(#[from] DecodeError),
    /// A row outside a transaction or of a table that was never described.
    #[error("a row of relation {0} came before its transaction or its definition")]
    OutOfOrder(u32),
}

/// The old image, if sent, and the new one, if there is one.
type Images<'b> = (Option<(OldKind, TupleData<'b>)>, Option<TupleData<'b>>);

/// A table's definition as the log sent it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Definition {
    /// OID.
    pub oid: u32,
    /// Schema name.
    pub schema: Box<str>,
    /// Table name.
    pub table: Box<str>,
    /// What its old images hold.
    pub replica_identity: pgoutput::ReplicaIdentity,
    /// Columns in the order of the tuples.
    pub columns: Box<[DefinedColumn]>,
}

impl Definition {
    /// The relation as the rest of the house knows it.
    pub(super) fn complete(&self, table: Option<&Table>) -> Relation {
        let identity = match self.replica_identity {
            pgoutput::ReplicaIdentity::Default => b'd',
            pgoutput::ReplicaIdentity::Nothing => b'n',
            pgoutput::ReplicaIdentity::Full => b'f',
            pgoutput::ReplicaIdentity::Index => b'i',
        };
        let columns = self.columns.iter();
        let columns = columns.map(|c| (u8::from(c.in_identity), &*c.name, c.type_oid));
        Relation::from_message(self.oid, &self.schema, &self.table, identity, columns, table)
    }
}

/// One column of a [`Definition`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DefinedColumn {
    /// Part of the replica identity.
    pub in_identity: bool,
    /// Name.
    pub name: Box<str>,
    /// Type OID.
    pub type_oid: u32,
}

/// A change whose table is not completed from the catalog yet.
#[derive(Debug)]
pub(super) struct Pending {
    /// What happened.
    pub operation: Operation,
    /// Its table as of its place in the log.
    pub definition: Arc<Definition>,
    /// New row.
    pub record: Option<Tuple>,
    /// Old row.
    pub old_record: Option<(OldImage, Tuple)>,
    /// Its transaction.
    pub commit: Commit,
    /// Number among the row changes of its transaction.
    pub ordinal: u32,
}

/// What one transaction did in this segment and before it.
#[derive(Debug)]
pub(super) struct Touched {
    /// Which one.
    pub commit: Commit,
    /// Tables it wrote to.
    pub tables: Box<[u32]>,
    /// Its row changes so far.
    pub changes: u32,
}

/// A run of changes in which each table has one definition.
#[derive(Debug, Default)]
pub(super) struct Segment {
    /// Changes that somebody asked for.
    pub changes: Vec<Pending>,
    /// Every transaction seen, wanted or not, whose effects the decision may depend on.
    pub xids: Vec<u32>,
    /// Tables whose definition, grants or policies may have changed before these changes.
    pub redefined: Vec<u32>,
    /// The catalog changed before these changes, in a way that no table tells.
    pub catalog_changed: bool,
    /// What transactions did, wanted or not, when somebody listens to anything.
    pub transactions: Vec<Touched>,
    /// Tables with a row that the server could not print; nobody gets that row.
    pub unreadable: Vec<u32>,
    /// End of the last transaction that is complete with this segment.
    pub committed: Option<Lsn>,
}

impl Segment {
    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
            && self.redefined.is_empty()
            && self.transactions.is_empty()
            && self.unreadable.is_empty()
            && !self.catalog_changed
    }
}

#[derive(Debug)]
struct Known {
    definition: Arc<Definition>,
    wanted: bool,
}

#[derive(Debug)]
struct Transaction {
    commit: Commit,
    ordinal: u32,
    history: bool,
    touched: Vec<u32>,
}

/// What is kept between batches of one connection.
#[derive(Debug)]
pub(super) struct Reader {
    known: HashMap<u32, Known>,
    transaction: Option<Transaction>,
    /// Commits before this were made before this process listened: nobody is owed them.
    live_from: Lsn,
    /// Last change that was published, when its transaction was not complete.
    published: Option<(Lsn, u32)>,
    generation: Option<u64>,
    /// Row changes seen so far, wanted or not.
    pub changes_decoded: u64,
}

impl Reader {
    /// For a new connection. `published` is the last change of an incomplete transaction that was
    /// published over an earlier one.
    pub(super) fn new(live_from: Lsn, published: Option<(Lsn, u32)>) -> Self {
        Self {
            known: HashMap::new(),
            transaction: None,
            live_from,
            published,
            generation: None,
            changes_decoded: 0,
        }
    }

    /// Reads one batch. `wants` tells which tables somebody asked for; its answers hold as long as
    /// `generation` stays the same. `one_transaction`: what follows the first commit is left, to be
    /// read again over another connection.
    ///
    /// # Errors
    /// A message that is not valid, or out of order: the caller must not go on with this stream.
    pub(super) fn read(
        &mut self,
        batch: &Batch,
        generation: u64,
        one_transaction: bool,
        wants: impl Fn(&str, &str) -> bool,
    ) -> Result<Vec<Segment>, Error> {
        if self.generation.replace(generation) != Some(generation) {
            for known in self.known.values_mut() {
                known.wanted = wants(&known.definition.schema, &known.definition.table);
            }
        }
        let listening = self.known.values().any(|known| known.wanted);
        let mut segments = Vec::new();
        let mut segment = Segment::default();
        segment.xids.extend(self.transaction.as_ref().map(|t| t.commit.xid));
        for message in batch.messages() {
            match message? {
                Message::Begin(begin) => {
                    let (lsn, time) = (begin.commit_lsn, begin.time);
                    let commit = Commit { xid: begin.xid, lsn, time };
                    let history = commit.lsn < self.live_from;
                    let touched = Vec::new();
                    self.transaction = Some(Transaction { commit, ordinal: 0, history, touched });
                    segment.xids.push(begin.xid);
                }
                Message::Commit(commit) => {
                    self.leave_transaction(&mut segment, listening);
                    self.transaction = None;
                    segment.committed = Some(commit.end_lsn);
                    if one_transaction {
                        break;
                    }
                }
                Message::Relation(relation) => {
                    let wanted = wants(&relation.schema, &relation.table);
                    let definition = define(relation);
                    let oid = definition.oid;
                    let same = |pending: &Pending| pending.definition.oid == oid;
                    if segment.changes.iter().any(same) {
                        segments.push(close(&mut segment));
                    }
                    segment.redefined.push(oid);
                    let known = Known { definition: Arc::new(definition), wanted };
                    self.known.insert(oid, known);
                }
                Message::Logical(message) if message.prefix == DDL_PREFIX => {
                    if !segment.changes.is_empty() {
                        segments.push(close(&mut segment));
                    }
                    segment.catalog_changed = true;
                }
                Message::Insert(insert) => {
                    self.row(&mut segment, batch, insert.relation, Operation::Insert, || {
                        Ok((None, Some(insert.new)))
                    })?;
                }
                Message::Update(update) => {
                    self.row(&mut segment, batch, update.relation, Operation::Update, || {
                        let (old, new) = update.split()?;
                        Ok((old, Some(new)))
                    })?;
                }
                Message::Delete(delete) => {
                    self.row(&mut segment, batch, delete.relation, Operation::Delete, || {
                        Ok((Some((delete.kind, delete.old)), None))
                    })?;
                }
                Message::Truncate(_)
                | Message::Logical(_)
                | Message::Origin(_)
                | Message::Type(_) => {}
            }
        }
        self.leave_transaction(&mut segment, listening);
        segments.push(close(&mut segment));
        Ok(segments)
    }

    fn leave_transaction(&self, segment: &mut Segment, listening: bool) {
        if let (true, Some(transaction)) = (listening, &self.transaction) {
            segment.transactions.push(Touched {
                commit: transaction.commit,
                tables: transaction.touched.as_slice().into(),
                changes: transaction.ordinal,
            });
        }
    }

    fn row<'b>(
        &mut self,
        segment: &mut Segment,
        batch: &Batch,
        oid: u32,
        operation: Operation,
        tuples: impl FnOnce() -> Result<Images<'b>, DecodeError>,
    ) -> Result<(), Error> {
        self.changes_decoded += 1;
        let transaction = self.transaction.as_mut().ok_or(Error::OutOfOrder(oid))?;
        let ordinal = transaction.ordinal;
        transaction.ordinal += 1;
        if transaction.touched.last() != Some(&oid)
            && transaction.touched.len() < TOUCHED_MAX
            && !transaction.touched.contains(&oid)
        {
            transaction.touched.push(oid);
        }
        let known = self.known.get(&oid).ok_or(Error::OutOfOrder(oid))?;
        if !known.wanted || transaction.history {
            return Ok(());
        }
        if self.published.is_some_and(|last| (transaction.commit.lsn, ordinal) <= last) {
            return Ok(());
        }
        let (old, new) = tuples()?;
        let old = match old {
            Some((kind, data)) => Some((kind, tuple(batch, &data)?)),
            None => None,
        };
        let new = new.map(|data| tuple(batch, &data)).transpose()?;
        if matches!(old, Some((_, None))) || matches!(new, Some(None)) {
            segment.unreadable.push(oid);
            return Ok(());
        }
        let old_record = old.and_then(|(kind, tuple)| {
            let image = match kind {
                OldKind::Key => OldImage::Key,
                OldKind::Full => OldImage::Full,
            };
            Some((image, tuple?))
        });
        let mut record = new.flatten();
        if let (Some(new), Some((OldImage::Full, old))) = (&mut record, &old_record) {
            *new = new.filled_from(old);
        }
        segment.changes.push(Pending {
            operation,
            definition: Arc::clone(&known.definition),
            record,
            old_record,
            commit: transaction.commit,
            ordinal,
        });
        Ok(())
    }
}

fn close(segment: &mut Segment) -> Segment {
    let next = Segment { xids: segment.xids.clone(), ..Segment::default() };
    std::mem::replace(segment, next)
}

/// None: the values are not text.
fn tuple(batch: &Batch, data: &TupleData<'_>) -> Result<Option<Tuple>, DecodeError> {
    let mut builder = TupleBuilder::new(batch.slice(data.bytes()), COLUMNS_USUAL);
    for column in data.columns() {
        builder.push(match column? {
            TupleColumn::Null => Value::Null,
            TupleColumn::Unchanged => Value::Unchanged,
            TupleColumn::Text(text) => Value::Text(text),
            // Only in a stretch that the server could not print.
            TupleColumn::Binary(_) => return Ok(None),
        });
    }
    Ok(Some(builder.build()))
}

fn define(relation: pgoutput::Relation<'_>) -> Definition {
    let columns = relation.columns.into_iter().map(|column| DefinedColumn {
        in_identity: column.in_identity,
        name: column.name.into(),
        type_oid: column.type_oid,
    });
    Definition {
        oid: relation.oid,
        schema: relation.schema.into(),
        table: relation.table.into(),
        replica_identity: relation.replica_identity,
        columns: columns.collect(),
    }
}
