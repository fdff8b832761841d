//! Messages → changes that somebody asked for, in commit order.
//!
//! In:     batches of pgoutput messages; which tables are wanted, and which rooms anybody is in.
//! Out:    [`Segment`]s: changes under one definition of each table, with their transactions, and
//!         what new rows of `realtime.messages` say.
//! Never:  IO; a look into the rows of a table that nobody asked for.

use std::cell::Cell;
use std::sync::Arc;
use std::time::SystemTime;

use hashbrown::HashMap;

use super::messages::{self, Deleted, Message as StoredMessage, Moved, Places, Read};
use crate::catalog::{Table, TableColumn};
use crate::change::{
    Commit, OldImage, Operation, Origin, Relation, Tuple, TupleBuilder, Value, origin,
};
use crate::cursor::Place;
use crate::hub::RoomName;
use crate::lsn::Lsn;
use crate::mapping::{self, Declaration, Rules};
use crate::wal::Batch;
use crate::wal::pgoutput::{self, DecodeError, Message, OldKind, TupleColumn, TupleData};

/// Transactional messages with this prefix say that the catalog changed at their place in the log.
pub(super) const DDL_PREFIX: &str = "walcast.ddl";

/// Room for the columns of a usual row; more grow it.
const COLUMNS_USUAL: usize = 16;

/// Refused declarations of one batch that are told one by one.
const REFUSED_MAX: usize = 8;

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
    fn identity(&self) -> u8 {
        match self.replica_identity {
            pgoutput::ReplicaIdentity::Default => b'd',
            pgoutput::ReplicaIdentity::Nothing => b'n',
            pgoutput::ReplicaIdentity::Full => b'f',
            pgoutput::ReplicaIdentity::Index => b'i',
        }
    }

    /// The relation as the rest of the house knows it, its columns called what they are called
    /// now; and whether that is settled for whatever changes follow. `is_before` says of a
    /// transaction whether it committed before the changes at hand.
    pub(super) fn complete(
        &self,
        table: Option<&Table>,
        is_before: impl Fn(u32) -> bool,
    ) -> (Relation, bool) {
        let columns = self.columns.iter();
        let columns = columns.map(|c| (u8::from(c.in_identity), &*c.name, c.type_oid));
        let (schema, name) = (&self.schema, &self.table);
        let relation =
            Relation::from_message(self.oid, schema, name, self.identity(), columns, table);
        let Some(table) = table else { return (relation, true) };
        let settled = Cell::new(true);
        let is_before = |xid| {
            let before = is_before(xid);
            settled.set(settled.get() && before);
            before
        };
        let names: Vec<&str> = self.columns.iter().map(|column| &*column.name).collect();
        let columns = table.columns_of(&names, is_before);
        (relation.named(&columns, table), settled.get())
    }

    /// This partition as rows of `root`, the partitioned table above it: the columns that the log
    /// carries in the root's order, and their places in this partition's tuples. `own` is the
    /// partition in the catalog. Both tables' columns have the same names at any time; one of the
    /// root's that was defined anew since, by another transaction than the partition's, is left
    /// out.
    pub(super) fn within(
        &self,
        root: &Table,
        own: (&Table, &Relation),
        is_before: impl Fn(u32) -> bool,
    ) -> (Relation, Box<[usize]>, bool) {
        let (table, relation) = own;
        let mut settled = true;
        let mut columns: Vec<(usize, &TableColumn)> = Vec::new();
        for column in &root.columns {
            let place = if column.defined_by.is_none_or(&is_before) {
                self.columns.iter().position(|logged| logged.name == column.name)
            } else {
                settled = false;
                let mut same = table.columns.iter();
                let same = same.find(|same| same.name == column.name);
                let together = same.is_some_and(|same| same.defined_by == column.defined_by);
                relation.column(&column.name).filter(|_| together)
            };
            columns.extend(place.map(|place| (place, column)));
        }
        let places: Box<[usize]> = columns.iter().map(|(place, _)| *place).collect();
        let named: Vec<Option<&TableColumn>> =
            columns.iter().map(|(_, column)| Some(*column)).collect();
        let columns = places.iter().filter_map(|place| self.columns.get(*place));
        let columns = columns.map(|c| (u8::from(c.in_identity), &*c.name, c.type_oid));
        let (schema, name, identity) = (&root.schema, &root.name, self.identity());
        let relation =
            Relation::from_message(root.oid, schema, name, identity, columns, Some(root));
        (relation.named(&named, root), places, settled)
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
    /// Who made its transaction, if that was said.
    pub origin: Option<Arc<Origin>>,
    /// What it means to the application, as declared at its place.
    pub mapped: Option<Arc<Declaration>>,
    /// It was published before, and comes again only because events are gathered from all rows of
    /// its transaction.
    pub again: bool,
}

/// What one transaction did in this segment and before it.
#[derive(Debug)]
pub(super) struct Touched {
    /// Which one.
    pub commit: Commit,
    /// Tables it wrote to.
    pub tables: Box<[u32]>,
    /// Its changes so far.
    pub changes: u32,
    /// Whether that is all it did.
    pub whole: bool,
    /// It emptied a table.
    pub truncated: bool,
    /// It wrote to more tables than are remembered.
    pub overflowed: bool,
}

/// A run of changes in which each table has one definition.
#[derive(Debug, Default)]
pub(super) struct Segment {
    /// Changes that somebody asked for.
    pub changes: Vec<Pending>,
    /// What new rows of `realtime.messages` say to rooms that somebody is in.
    pub messages: Vec<StoredMessage>,
    /// How many of these rows were too large, or could not be read.
    pub messages_refused: usize,
    /// Every transaction seen, wanted or not, whose effects the decision may depend on.
    pub xids: Vec<u32>,
    /// Tables whose definition, grants or policies may have changed before these changes.
    pub redefined: Vec<Arc<Definition>>,
    /// The catalog changed before these changes, in a way that no table tells.
    pub catalog_changed: bool,
    /// Transactions that said so, for the last time before all changes here, and committed.
    pub definers: Vec<u32>,
    /// What transactions did, wanted or not, when somebody listens to anything.
    pub transactions: Vec<Touched>,
    /// Somebody did when it was read.
    pub listening: bool,
    /// Tables with rows that the server could not print; nobody gets these rows. Each once.
    pub unreadable: Vec<Arc<Definition>>,
    /// Transactions that are complete with this segment, whose writers may wait for it: the id
    /// they gave, the commit, and the end.
    pub written: Vec<(Box<str>, Lsn, Lsn)>,
    /// End of the last transaction that is complete with this segment.
    pub committed: Option<Lsn>,
    /// Commit of the last one complete with it from whose rows events are gathered.
    pub gathered: Option<Lsn>,
    /// Why declarations in it are not in force; not all of many.
    pub undeclared: Vec<mapping::AnnounceError>,
}

impl Pending {
    /// Where it stands in the log.
    pub(super) fn place(&self) -> Place {
        Place { commit: self.commit.lsn, ordinal: self.ordinal }
    }
}

impl Segment {
    /// Whether the catalog must be asked, whatever the changes are.
    pub(super) fn asks_the_catalog(&self) -> bool {
        !self.redefined.is_empty() || self.catalog_changed || !self.unreadable.is_empty()
    }

    /// The last of its changes and messages: its transaction, and its number there.
    pub(super) fn last(&self) -> Option<Place> {
        let change = self.changes.iter().rev().find(|change| !change.again).map(Pending::place);
        let message = self.messages.last().map(StoredMessage::place);
        change.max(message)
    }

    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
            && self.messages.is_empty()
            && self.redefined.is_empty()
            && self.transactions.is_empty()
            && self.unreadable.is_empty()
            && !self.catalog_changed
            && self.definers.is_empty()
            && self.gathered.is_none()
    }
}

#[derive(Debug)]
struct Known {
    definition: Arc<Definition>,
    wanted: bool,
    /// Its new rows may be messages.
    messages: Option<Places>,
    /// What its changes mean to the application, from here on.
    mapped: Option<Arc<Declaration>>,
}

#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is one thing that it did, by itself")]
struct Transaction {
    commit: Commit,
    ordinal: u32,
    /// Tables that were emptied: changes that are no rows.
    truncated: u32,
    history: bool,
    touched: Vec<u32>,
    /// It touched more tables than are remembered.
    overflowed: bool,
    /// It said that it changed the catalog.
    defines: bool,
    /// Events are gathered from its rows.
    gathers: bool,
    origin: Option<Arc<Origin>>,
    /// Messages it deleted.
    deleted: Deleted,
}

impl Transaction {
    fn new(commit: Commit, history: bool) -> Self {
        let touched = Vec::new();
        Self {
            commit,
            ordinal: 0,
            truncated: 0,
            history,
            touched,
            overflowed: false,
            defines: false,
            gathers: false,
            origin: None,
            deleted: Deleted::default(),
        }
    }

    /// Only the first word in front of all rows counts: it is the writer's own.
    fn say_origin(&mut self, content: &[u8]) {
        if self.origin.is_none() && self.ordinal == 0 && self.truncated == 0 {
            // What cannot be read is the first word all the same.
            self.origin = Some(Arc::new(Origin::parse(content).unwrap_or_default()));
        }
    }

    fn touch(&mut self, oid: u32) {
        if self.touched.last() == Some(&oid) || self.touched.contains(&oid) {
            return;
        }
        if self.touched.len() < TOUCHED_MAX {
            self.touched.push(oid);
        } else {
            self.overflowed = true;
        }
    }
}

/// The transaction that a batch begins in, and what is declared there.
#[derive(Debug, Clone, Default)]
pub(super) struct Start(Option<Transaction>, Rules);

impl Start {
    /// Whether events are gathered from rows of the same transaction that came before.
    pub(super) fn gathers(&self) -> bool {
        self.0.as_ref().is_some_and(|transaction| transaction.gathers)
    }
}

/// What is kept between batches of one connection.
#[derive(Debug)]
pub(super) struct Reader {
    known: HashMap<u32, Known>,
    transaction: Option<Transaction>,
    /// Commits before this were made before this process listened: nobody is owed them.
    live_from: Lsn,
    /// Last change that was published, when its transaction was not complete.
    published: Option<Place>,
    generation: Option<(u64, u64)>,
    /// Everything up to there was read.
    at: Place,
    /// A larger payload of a message is said to nobody.
    payload_bytes_max: usize,
    /// What is declared at this place.
    rules: Rules,
    /// Whether somebody asked for a table that is known.
    wanting: bool,
    /// When the last transaction that it came to was committed.
    committed_at: SystemTime,
    /// Row changes seen so far, wanted or not.
    pub changes_decoded: u64,
}

impl Reader {
    /// For a new connection. `published` is the last change of an incomplete transaction that was
    /// published over an earlier one.
    pub(super) fn new(live_from: Lsn, published: Option<Place>, payload_bytes_max: usize) -> Self {
        Self {
            known: HashMap::new(),
            transaction: None,
            live_from,
            published,
            generation: None,
            at: Place::ZERO,
            payload_bytes_max,
            rules: Rules::default(),
            wanting: false,
            committed_at: SystemTime::UNIX_EPOCH,
            changes_decoded: 0,
        }
    }

    /// With this declared where it begins to read.
    pub(super) fn under(self, rules: Rules) -> Self {
        Self { rules, ..self }
    }

    /// For what was read before, from a batch that began like this, with these tables defined.
    /// Nothing up to `published` is read again.
    pub(super) fn again(
        start: Start,
        defined: impl Iterator<Item = Arc<Definition>>,
        published: Place,
        payload_bytes_max: usize,
    ) -> Self {
        let Start(transaction, rules) = start;
        let known = defined.map(|definition| {
            let (wanted, messages) = (false, Places::of(&definition));
            let mapped = rules.of(definition.oid).cloned();
            (definition.oid, Known { definition, wanted, messages, mapped })
        });
        let known = known.collect();
        let new = Self::new(Lsn::ZERO, Some(published), payload_bytes_max);
        // Whoever comes back is owed what was history to all who were there.
        let transaction = transaction.map(|open| Transaction { history: false, ..open });
        Self { known, transaction, rules, ..new }
    }

    /// What has to be known to read on from here.
    pub(super) fn start(&self) -> Start {
        Start(self.transaction.clone(), self.rules.clone())
    }

    /// What is declared where it reads.
    pub(super) const fn rules(&self) -> &Rules {
        &self.rules
    }

    /// When the last transaction that it came to was committed; 1970 before the first.
    pub(super) const fn committed_at(&self) -> SystemTime {
        self.committed_at
    }

    /// Everything up to there was read.
    pub(super) const fn at(&self) -> Place {
        self.at
    }

    /// Reads one batch. `wants` tells which tables somebody asked for (true: defined anew); its
    /// answers hold as long as `generation` stays the same. `listening`: what transactions did is
    /// to be told, whether or not their rows are wanted. `hears` tells which rooms anybody is in;
    /// none: nobody is in any. `one_transaction`: what follows the first
    /// commit is left, to be read again over another connection.
    ///
    /// # Errors
    /// A message that is not valid, or out of order: the caller must not go on with this stream.
    pub(super) fn read(
        &mut self,
        batch: &Batch,
        generation: (u64, u64),
        listening: bool,
        one_transaction: bool,
        hears: Option<&dyn Fn(&RoomName) -> bool>,
        wants: impl Fn(&Definition, bool) -> bool,
    ) -> Result<Vec<Segment>, Error> {
        if self.generation.replace(generation) != Some(generation) {
            for known in self.known.values_mut() {
                known.wanted = wants(&known.definition, false);
            }
            self.wanting = self.known.values().any(|known| known.wanted);
        }
        let mut segments = Vec::new();
        let mut segment = Segment::default();
        segment.xids.extend(self.transaction.as_ref().map(|t| t.commit.xid));
        for message in batch.messages() {
            match message? {
                Message::Begin(begin) => {
                    let (lsn, time) = (begin.commit_lsn, begin.time);
                    let commit = Commit { xid: begin.xid, lsn, time };
                    let history = commit.lsn < self.live_from;
                    self.committed_at = time;
                    self.transaction = Some(Transaction::new(commit, history));
                    segment.xids.push(begin.xid);
                }
                Message::Commit(commit) => {
                    self.leave_transaction(&mut segment, listening, true);
                    let ended = self.transaction.take();
                    if let Some(ended) = ended {
                        // What came before it last said so is in an earlier segment.
                        segment.definers.extend(ended.defines.then_some(ended.commit.xid));
                        segment.gathered =
                            ended.gathers.then_some(ended.commit.lsn).or(segment.gathered);
                        let id = ended.origin.and_then(|origin| origin.id.clone());
                        segment.written.extend(id.map(|id| (id, commit.lsn, commit.end_lsn)));
                    }
                    segment.committed = Some(commit.end_lsn);
                    self.at = self.at.max(Place::after(commit.lsn));
                    if one_transaction {
                        break;
                    }
                }
                Message::Relation(relation) => {
                    let definition = Arc::new(define(relation));
                    let wanted = wants(&definition, true);
                    let oid = definition.oid;
                    let same = |pending: &Pending| pending.definition.oid == oid;
                    if segment.changes.iter().any(same) {
                        self.leave_transaction(&mut segment, listening, false);
                        segments.push(close(&mut segment));
                    }
                    segment.redefined.push(Arc::clone(&definition));
                    self.wanting |= wanted;
                    let messages = Places::of(&definition);
                    let mapped = self.rules.of(oid).cloned();
                    self.known.insert(oid, Known { definition, wanted, messages, mapped });
                }
                Message::Logical(message)
                    if message.transactional && message.prefix == mapping::PREFIX =>
                {
                    self.declare(&mut segment, message.content);
                }
                Message::Logical(message) if message.prefix == DDL_PREFIX => {
                    if !segment.changes.is_empty() {
                        self.leave_transaction(&mut segment, listening, false);
                        segments.push(close(&mut segment));
                    }
                    segment.catalog_changed = true;
                    if let Some(transaction) = &mut self.transaction {
                        transaction.defines = true;
                    }
                }
                Message::Logical(message)
                    if message.transactional && message.prefix == origin::PREFIX =>
                {
                    if let Some(transaction) = &mut self.transaction {
                        transaction.say_origin(message.content);
                    }
                }
                Message::Insert(insert) => {
                    if let Some(hears) = hears {
                        self.message(&mut segment, batch, insert.relation, &insert.new, hears)?;
                    }
                    let in_rooms = hears.is_some();
                    let row = (insert.relation, Operation::Insert);
                    self.row(&mut segment, batch, row, in_rooms, || Ok((None, Some(insert.new))))?;
                }
                Message::Update(update) => {
                    let row = (update.relation, Operation::Update);
                    self.row(&mut segment, batch, row, hears.is_some(), || {
                        let (old, new) = update.split()?;
                        Ok((old, Some(new)))
                    })?;
                }
                Message::Delete(delete) => {
                    self.deleted(delete.relation, &delete.old)?;
                    let row = (delete.relation, Operation::Delete);
                    self.row(&mut segment, batch, row, hears.is_some(), || {
                        Ok((Some((delete.kind, delete.old)), None))
                    })?;
                }
                Message::Truncate(truncate) => {
                    if let Some(transaction) = &mut self.transaction {
                        for oid in truncate.relations() {
                            transaction.truncated = transaction.truncated.saturating_add(1);
                            transaction.touch(oid);
                        }
                    }
                }
                Message::Logical(_) | Message::Origin(_) | Message::Type(_) => {}
            }
        }
        self.leave_transaction(&mut segment, listening, false);
        segments.push(close(&mut segment));
        Ok(segments)
    }

    /// Tables described over this connection.
    pub(super) fn relations(&self) -> usize {
        self.known.len()
    }

    fn leave_transaction(&self, segment: &mut Segment, listening: bool, complete: bool) {
        if let (true, Some(transaction)) = (listening || self.wanting, &self.transaction) {
            segment.transactions.push(Touched {
                commit: transaction.commit,
                tables: transaction.touched.as_slice().into(),
                changes: transaction.ordinal.saturating_add(transaction.truncated),
                whole: complete && !transaction.overflowed,
                truncated: transaction.truncated > 0,
                overflowed: transaction.overflowed,
            });
        }
    }

    /// Takes what a new row says, if it is a message. To be called before [`Self::row`].
    fn message(
        &self,
        segment: &mut Segment,
        batch: &Batch,
        oid: u32,
        row: &TupleData<'_>,
        hears: &dyn Fn(&RoomName) -> bool,
    ) -> Result<(), Error> {
        let known = self.known.get(&oid).ok_or(Error::OutOfOrder(oid))?;
        let Some(places) = &known.messages else { return Ok(()) };
        let transaction = self.transaction.as_ref().ok_or(Error::OutOfOrder(oid))?;
        let (commit, ordinal) = (transaction.commit, transaction.ordinal);
        let is_out =
            self.published.is_some_and(|last| Place { commit: commit.lsn, ordinal } <= last);
        if transaction.history || is_out {
            return Ok(());
        }
        match messages::read(places, batch, row, self.payload_bytes_max, hears)? {
            Read::Said(room, what) => {
                let (unsure, moved) = (places.unsure, transaction.deleted.moved(oid, what.id()));
                let moved_from = match moved {
                    Moved::Yes => return Ok(()),
                    Moved::No => None,
                    Moved::From(table) => Some(table),
                };
                let said = StoredMessage { room, what, commit, ordinal, unsure, moved_from };
                segment.messages.push(said);
            }
            Read::Nothing => {}
            Read::Refused => segment.messages_refused += 1,
        }
        Ok(())
    }

    /// Takes note of a deleted row, if it was a message.
    fn deleted(&mut self, oid: u32, old: &TupleData<'_>) -> Result<(), Error> {
        let known = self.known.get(&oid).ok_or(Error::OutOfOrder(oid))?;
        let Some(places) = &known.messages else { return Ok(()) };
        let transaction = self.transaction.as_mut().ok_or(Error::OutOfOrder(oid))?;
        if !transaction.history {
            transaction.deleted.note(oid, places, old)?;
        }
        Ok(())
    }

    fn row<'b>(
        &mut self,
        segment: &mut Segment,
        batch: &Batch,
        (oid, operation): (u32, Operation),
        in_rooms: bool,
        tuples: impl FnOnce() -> Result<Images<'b>, DecodeError>,
    ) -> Result<(), Error> {
        self.changes_decoded += 1;
        let transaction = self.transaction.as_mut().ok_or(Error::OutOfOrder(oid))?;
        let ordinal = transaction.ordinal;
        transaction.ordinal += 1;
        self.at = self.at.max(Place { commit: transaction.commit.lsn, ordinal });
        transaction.touch(oid);
        let known = self.known.get(&oid).ok_or(Error::OutOfOrder(oid))?;
        let mapped = known.mapped.as_ref().filter(|mapped| in_rooms || mapped.gathers());
        if !known.wanted && mapped.is_none() || transaction.history {
            return Ok(());
        }
        let place = Place { commit: transaction.commit.lsn, ordinal };
        let gathers = mapped.is_some_and(|mapped| mapped.gathers());
        transaction.gathers |= gathers;
        let mut again = false;
        if let Some(last) = self.published.filter(|last| place <= *last) {
            // The event that is gathered was not told before the end of the transaction.
            again = gathers && last < Place::after(place.commit);
            if !again {
                return Ok(());
            }
        }
        let (old, new) = tuples()?;
        let old = match old {
            Some((kind, data)) => Some((kind, tuple(batch, &data)?)),
            None => None,
        };
        let new = new.map(|data| tuple(batch, &data)).transpose()?;
        if matches!(old, Some((_, None))) || matches!(new, Some(None)) {
            if !segment.unreadable.iter().any(|known| known.oid == oid) {
                segment.unreadable.push(Arc::clone(&known.definition));
            }
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
            origin: transaction.origin.clone(),
            mapped: mapped.cloned(),
            again,
        });
        Ok(())
    }

    /// Takes a declaration, which is in force for all rows from here on.
    fn declare(&mut self, segment: &mut Segment, content: &[u8]) {
        let relation = match self.rules.announce(content) {
            Ok(relation) => Some(relation),
            Err(error) => {
                let relation = match &error {
                    mapping::AnnounceError::Declaration(relation, _) => Some(*relation),
                    mapping::AnnounceError::Malformed | mapping::AnnounceError::Unsigned => None,
                };
                if segment.undeclared.len() < REFUSED_MAX {
                    segment.undeclared.push(error);
                }
                relation
            }
        };
        if let Some(relation) = relation
            && let Some(known) = self.known.get_mut(&relation)
        {
            known.mapped = self.rules.of(relation).cloned();
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    const T: u32 = 10;
    const U: u32 = 20;

    fn text(text: &str) -> Vec<u8> {
        [text.as_bytes(), b"\0"].concat()
    }

    fn begin(lsn: u64, xid: u32) -> Vec<u8> {
        [&b"B"[..], &lsn.to_be_bytes(), &[0; 8], &xid.to_be_bytes()].concat()
    }

    /// The end is one after the commit record.
    fn commit(lsn: u64) -> Vec<u8> {
        [&b"C\0"[..], &lsn.to_be_bytes(), &(lsn + 1).to_be_bytes(), &[0; 8]].concat()
    }

    /// A table with one `int4` and one `text`.
    fn relation(oid: u32, name: &str) -> Vec<u8> {
        let column = |flags: u8, name: &str, type_oid: u32| {
            [&[flags][..], &text(name), &type_oid.to_be_bytes(), &[255; 4]].concat()
        };
        let columns = [&[0, 2][..], &column(1, "id", 23), &column(0, "note", 25)].concat();
        [&b"R"[..], &oid.to_be_bytes(), &text("public"), &text(name), b"f", &columns].concat()
    }

    fn tuple(id: &str, kind: u8) -> Vec<u8> {
        let value = |kind: u8, value: &str| {
            let length = u32::try_from(value.len()).unwrap();
            [&[kind][..], &length.to_be_bytes(), value.as_bytes()].concat()
        };
        [&[0, 2][..], &value(b't', id), &value(kind, "note")].concat()
    }

    fn insert(oid: u32, id: &str) -> Vec<u8> {
        [&b"I"[..], &oid.to_be_bytes(), b"N", &tuple(id, b't')].concat()
    }

    fn unreadable(oid: u32, id: &str) -> Vec<u8> {
        [&b"I"[..], &oid.to_be_bytes(), b"N", &tuple(id, b'b')].concat()
    }

    /// An update of a row whose note stays, so that it is not sent.
    fn update_unchanged(oid: u32, id: &str) -> Vec<u8> {
        let id_text = [&b"t"[..], &u32::try_from(id.len()).unwrap().to_be_bytes(), id.as_bytes()];
        let new = [&[0, 2][..], &id_text.concat(), b"u"].concat();
        [&b"U"[..], &oid.to_be_bytes(), b"O", &tuple(id, b't'), b"N", &new].concat()
    }

    fn truncate(oid: u32) -> Vec<u8> {
        [&b"T"[..], &1_u32.to_be_bytes(), b"\0", &oid.to_be_bytes()].concat()
    }

    fn logical(transactional: bool, prefix: &str, content: &str) -> Vec<u8> {
        let length = u32::try_from(content.len()).unwrap().to_be_bytes();
        let flags = u8::from(transactional);
        [b"M", &[flags][..], &[0; 8], &text(prefix), &length, content.as_bytes()].concat()
    }

    fn ddl() -> Vec<u8> {
        logical(true, DDL_PREFIX, "")
    }

    fn origin(id: &str) -> Vec<u8> {
        logical(true, origin::PREFIX, &format!(r#"{{"id":"{id}","sub":"of {id}"}}"#))
    }

    fn only_t(table: &Definition, _: bool) -> bool {
        *table.table == *"t"
    }

    fn place(commit: u64, ordinal: u32) -> Place {
        Place { commit: Lsn::new(commit), ordinal }
    }

    fn reader() -> Reader {
        Reader::new(Lsn::ZERO, None, 1000)
    }

    fn read(reader: &mut Reader, payloads: &[Vec<u8>]) -> Vec<Segment> {
        reader.read(&Batch::of(payloads), (1, 0), false, false, None, only_t).unwrap()
    }

    fn redefined(segment: &Segment) -> Vec<u32> {
        segment.redefined.iter().map(|definition| definition.oid).collect()
    }

    fn ids(segment: &Segment) -> Vec<(u64, u32, String)> {
        let id = |change: &Pending| match change.record.as_ref().unwrap().get(0) {
            Value::Text(text) => str::from_utf8(text).unwrap().to_owned(),
            other @ (Value::Null | Value::Unchanged) => panic!("{other:?}"),
        };
        segment.changes.iter().map(|c| (c.commit.lsn.get(), c.ordinal, id(c))).collect()
    }

    #[test]
    fn changes_are_numbered_whether_or_not_they_are_wanted() {
        let segments = read(
            &mut reader(),
            &[
                begin(100, 7),
                relation(U, "u"),
                insert(U, "0"),
                relation(T, "t"),
                insert(T, "1"),
                insert(U, "2"),
                insert(T, "3"),
                commit(100),
            ],
        );
        let [segment] = &segments[..] else { panic!("{segments:?}") };
        assert_eq!(ids(segment), [(100, 1, "1".into()), (100, 3, "3".into())]);
        assert_eq!(segment.xids, [7]);
        assert_eq!(redefined(segment), [U, T]);
        assert_eq!(segment.committed, Some(Lsn::new(101)));
        let [touched] = &segment.transactions[..] else { panic!("{segment:?}") };
        assert_eq!((&*touched.tables, touched.changes, touched.whole), (&[U, T][..], 4, true));
    }

    #[test]
    fn a_transaction_goes_on_in_the_next_batch() {
        let mut reader = reader();
        let first = read(&mut reader, &[begin(100, 7), relation(T, "t"), insert(T, "0")]);
        assert_eq!(first[0].committed, None);
        assert!(!first[0].transactions[0].whole, "more may follow");
        let second = read(&mut reader, &[insert(T, "1"), commit(100), begin(200, 8)]);
        assert_eq!(ids(&second[0]), [(100, 1, "1".into())]);
        assert_eq!(second[0].xids, [7, 8]);
        let known: Vec<_> =
            second[0].transactions.iter().map(|t| (t.commit.xid, t.whole)).collect();
        assert_eq!(known, [(7, true), (8, false)]);
        assert_eq!(second[0].committed, Some(Lsn::new(101)));
    }

    #[test]
    fn a_new_definition_of_a_table_begins_a_segment() {
        let segments = read(
            &mut reader(),
            &[
                begin(100, 7),
                relation(U, "u"),
                insert(U, "x"),
                relation(T, "t"),
                insert(T, "0"),
                relation(U, "u"),
                relation(T, "t"),
                insert(T, "1"),
                commit(100),
            ],
        );
        let [first, second] = &segments[..] else { panic!("{segments:?}") };
        assert_eq!((redefined(first), redefined(second)), (vec![U, T, U], vec![T]));
        assert_eq!((first.committed, second.committed), (None, Some(Lsn::new(101))));
        assert_eq!((first.xids.as_slice(), second.xids.as_slice()), (&[7][..], &[7][..]));
        // What the first one's changes are decided by includes what else the transaction did.
        let [touched] = &first.transactions[..] else { panic!("{first:?}") };
        assert_eq!((&*touched.tables, touched.whole), (&[U, T][..], false));
        assert!(!Arc::ptr_eq(&first.changes[0].definition, &second.changes[0].definition));
    }

    #[test]
    fn a_change_of_the_catalog_begins_a_segment() {
        let payloads =
            [begin(100, 7), relation(T, "t"), insert(T, "0"), ddl(), insert(T, "1"), commit(100)];
        let segments = read(&mut reader(), &payloads);
        let [first, second] = &segments[..] else { panic!("{segments:?}") };
        assert!(!first.catalog_changed && second.catalog_changed && second.asks_the_catalog());
        assert_eq!(first.transactions.len(), 1);
        assert!(!first.transactions[0].whole);
    }

    #[test]
    fn only_the_first_word_in_front_of_its_rows_says_who_made_a_transaction() {
        let segments = read(
            &mut reader(),
            &[
                logical(false, origin::PREFIX, r#"{"sub":"outside"}"#),
                begin(100, 7),
                logical(false, origin::PREFIX, r#"{"sub":"not transactional"}"#),
                origin("a"),
                origin("b"),
                relation(T, "t"),
                insert(T, "0"),
                commit(100),
                begin(200, 8),
                insert(T, "1"),
                origin("c"),
                insert(T, "2"),
                commit(200),
                begin(300, 9),
                logical(true, origin::PREFIX, "nonsense"),
                origin("d"),
                insert(T, "3"),
                commit(300),
            ],
        );
        let [segment] = &segments[..] else { panic!("{segments:?}") };
        let subs: Vec<_> = segment
            .changes
            .iter()
            .map(|c| c.origin.as_ref().and_then(|origin| origin.sub.as_deref()))
            .collect();
        assert_eq!(subs, [Some("of a"), None, None, None]);
        assert_eq!(segment.written, [("a".into(), Lsn::new(100), Lsn::new(101))]);
    }

    #[test]
    fn what_was_published_before_a_reconnect_comes_once() {
        let payloads = [
            begin(100, 7),
            relation(T, "t"),
            insert(T, "0"),
            insert(T, "1"),
            insert(T, "2"),
            commit(100),
            begin(200, 8),
            insert(T, "3"),
            commit(200),
        ];
        let mut reader = Reader::new(Lsn::ZERO, Some(place(100, 1)), 1000);
        let segments = read(&mut reader, &payloads);
        assert_eq!(ids(&segments[0]), [(100, 2, "2".into()), (200, 0, "3".into())]);
    }

    #[test]
    fn nobody_is_owed_what_committed_before() {
        let mut reader = Reader::new(Lsn::new(150), None, 1000);
        let segments = read(
            &mut reader,
            &[
                begin(100, 7),
                relation(T, "t"),
                insert(T, "0"),
                commit(100),
                begin(150, 8),
                insert(T, "1"),
                commit(150),
            ],
        );
        assert_eq!(ids(&segments[0]), [(150, 0, "1".into())]);
        assert_eq!(segments[0].xids, [7, 8]);
        assert_eq!(segments[0].transactions.len(), 2, "it may have changed who sees what");
    }

    #[test]
    fn what_was_history_is_read_again_for_whoever_comes_back() {
        let mut reader = Reader::new(Lsn::new(150), None, 1000);
        let first = [begin(100, 7), relation(T, "t"), insert(T, "0")];
        let segments = read(&mut reader, &first);
        assert!(segments[0].changes.is_empty() && reader.at() == place(100, 0));
        let (start, defined) = (reader.start(), segments[0].redefined.clone().into_iter());
        let mut again = Reader::again(start, defined, reader.at(), 1000);
        let segments = read(&mut again, &[insert(T, "1"), commit(100)]);
        assert_eq!(ids(&segments[0]), [(100, 1, "1".into())]);
    }

    #[test]
    fn a_table_described_before_anybody_asked_is_read_once_they_do() {
        let mut reader = reader();
        let one = |id| [begin(100, 7), insert(T, id), commit(100)];
        let nobody = |_: &Definition, _: bool| false;
        let described =
            [vec![begin(90, 6), relation(T, "t"), commit(90)], one("0").into()].concat();
        let first =
            reader.read(&Batch::of(&described), (1, 0), false, false, None, nobody).unwrap();
        assert!(first[0].changes.is_empty() && first[0].transactions.is_empty());
        let second =
            reader.read(&Batch::of(&one("1")), (2, 0), false, false, None, only_t).unwrap();
        assert_eq!(second[0].changes.len(), 1);
        let third = reader.read(&Batch::of(&one("2")), (3, 0), false, false, None, nobody).unwrap();
        assert!(third[0].changes.is_empty());
    }

    #[test]
    fn transactions_are_told_when_somebody_listens_to_anything() {
        let mut reader = reader();
        let payloads = [begin(100, 7), relation(U, "u"), insert(U, "0"), truncate(T), commit(100)];
        let quiet = reader.read(&Batch::of(&payloads), (1, 0), false, false, None, only_t).unwrap();
        assert!(quiet[0].transactions.is_empty());
        let told = reader.read(&Batch::of(&payloads), (1, 0), true, false, None, only_t).unwrap();
        let [touched] = &told[0].transactions[..] else { panic!("{told:?}") };
        assert_eq!((&*touched.tables, touched.changes, touched.whole), (&[U, T][..], 2, true));
    }

    #[test]
    fn a_transaction_of_more_tables_than_are_remembered_is_not_whole() {
        let mut payloads = vec![begin(100, 7), relation(T, "t")];
        payloads.extend((0..=u32::try_from(TOUCHED_MAX).unwrap()).map(|oid| truncate(1000 + oid)));
        payloads.push(commit(100));
        let segments = read(&mut reader(), &payloads);
        assert_eq!(segments[0].transactions[0].tables.len(), TOUCHED_MAX);
        assert!(!segments[0].transactions[0].whole);
    }

    fn gathering() -> Rules {
        let json = r#"{"topics": ["t:{note}"], "rules": [
            {"event": "e", "on": ["insert"], "aggregate": "rows", "payload": {}}
        ]}"#;
        Rules::new(None, [Declaration::parse(1, T, json).unwrap()])
    }

    #[test]
    fn what_is_gathered_from_a_transaction_is_gathered_again_from_its_beginning() {
        let payloads = [
            begin(100, 7),
            relation(T, "t"),
            insert(T, "0"),
            insert(T, "1"),
            insert(T, "2"),
            commit(100),
        ];
        let nobody = |_: &Definition, _: bool| false;
        let mut reader = Reader::new(Lsn::ZERO, Some(place(100, 1)), 1000).under(gathering());
        let batch = Batch::of(&payloads);
        let segments = reader.read(&batch, (1, 0), false, false, None, nobody).unwrap();
        let [segment] = &segments[..] else { panic!("{segments:?}") };
        let again: Vec<bool> = segment.changes.iter().map(|change| change.again).collect();
        assert_eq!(again, [true, true, false]);
        assert!(segment.changes.iter().all(|change| change.mapped.is_some()));
        assert_eq!((segment.last(), segment.gathered), (Some(place(100, 2)), Some(Lsn::new(100))));
        // All of it was told.
        let done = Place::after(Lsn::new(100));
        let mut reader = Reader::new(Lsn::ZERO, Some(done), 1000).under(gathering());
        let segments = reader.read(&batch, (1, 0), false, false, None, nobody).unwrap();
        assert!(segments[0].changes.is_empty());
    }

    #[test]
    fn a_mapped_table_is_read_while_somebody_is_in_a_room_as_declared_at_its_place() {
        let rule =
            r#"{"topics": ["t"], "rules": [{"event": "e", "on": ["insert"], "payload": {}}]}"#;
        let rules = Rules::new(None, [Declaration::parse(1, T, rule).unwrap()]);
        let payloads = [
            begin(100, 7),
            relation(T, "t"),
            insert(T, "0"),
            logical(true, mapping::PREFIX, "forged"),
            insert(T, "1"),
            commit(100),
        ];
        let nobody = |_: &Definition, _: bool| false;
        let hears = |_: &RoomName| true;
        let hears: &dyn Fn(&RoomName) -> bool = &hears;
        for (hears, expected) in [(Some(hears), 2), (None, 0)] {
            let mut reader = reader().under(rules.clone());
            let batch = Batch::of(&payloads);
            let segments = reader.read(&batch, (1, 0), false, false, hears, nobody).unwrap();
            assert_eq!(segments[0].changes.len(), expected);
            assert_eq!(segments[0].undeclared.len(), 1);
            let again = Reader::again(reader.start(), std::iter::empty(), Place::ZERO, 1000);
            assert!(again.rules.of(T).is_some(), "whoever reads on from here knows it");
        }
    }

    const M: u32 = 30;

    /// `realtime.messages` with what a message needs.
    fn messages_relation() -> Vec<u8> {
        let names = ["id", "topic", "event", "private", "inserted_at", "payload"];
        let column =
            |name: &&str| [&[0][..], &text(name), &25_u32.to_be_bytes(), &[255; 4]].concat();
        let columns: Vec<u8> = names.iter().flat_map(column).collect();
        let name = [text("realtime"), text("messages")].concat();
        [&b"R"[..], &M.to_be_bytes(), &name, b"d", &[0, 6], &columns].concat()
    }

    fn message(id: &str, topic: &str, payload: &str) -> Vec<u8> {
        let value = |value: &str| {
            let length = u32::try_from(value.len()).unwrap();
            [b"t", &length.to_be_bytes()[..], value.as_bytes()].concat()
        };
        let values = [id, topic, "e", "f", "2026-01-01", payload].map(value).concat();
        [&b"I"[..], &M.to_be_bytes(), b"N", &[0, 6], &values].concat()
    }

    /// Their places and ids; somebody is in every room but `empty`.
    fn said(reader: &mut Reader, payloads: &[Vec<u8>]) -> Vec<(u64, u32, String)> {
        let hears: &dyn Fn(&RoomName) -> bool = &|room| *room.topic != *"realtime:empty";
        let batch = Batch::of(payloads);
        let segments = reader.read(&batch, (1, 0), false, false, Some(hears), only_t).unwrap();
        let messages = segments.iter().flat_map(|segment| &segment.messages);
        messages
            .map(|said| (said.commit.lsn.get(), said.ordinal, said.what.id().unwrap().to_owned()))
            .collect()
    }

    fn with_messages() -> Vec<Vec<u8>> {
        vec![
            begin(100, 7),
            messages_relation(),
            relation(T, "t"),
            message("a", "room", "1"),
            insert(T, "0"),
            message("b", "empty", "1"),
            message("c", "room", "2"),
            commit(100),
            begin(200, 8),
            message("d", "room", "3"),
            commit(200),
        ]
    }

    #[test]
    fn messages_are_numbered_among_the_changes() {
        let expected = [(100, 0, "a".into()), (100, 3, "c".into()), (200, 0, "d".into())];
        assert_eq!(said(&mut reader(), &with_messages()), expected);
    }

    #[test]
    fn messages_that_nobody_is_owed_or_that_were_said_are_not_said() {
        let d = (200, 0, "d".to_owned());
        assert_eq!(
            said(&mut Reader::new(Lsn::new(150), None, 1000), &with_messages()),
            *std::slice::from_ref(&d)
        );
        let published = Some(place(100, 2));
        let mut reader = Reader::new(Lsn::ZERO, published, 1000);
        assert_eq!(said(&mut reader, &with_messages()), [(100, 3, "c".into()), d]);
        let nobody = &mut self::reader();
        let segments = read(nobody, &with_messages());
        assert!(segments[0].messages.is_empty(), "nobody is in any room");
        assert_eq!(segments[0].last(), Some(place(100, 1)));
    }

    #[test]
    fn a_segment_ends_with_its_last_change_or_message() {
        let mut reader = reader();
        let hears: &dyn Fn(&RoomName) -> bool = &|_| true;
        let batch = Batch::of(&with_messages());
        let segments = reader.read(&batch, (1, 0), false, false, Some(hears), only_t).unwrap();
        assert_eq!(segments[0].last(), Some(place(200, 0)));
        let batch =
            Batch::of(&[begin(300, 9), message("e", "room", &"x".repeat(1001)), commit(300)]);
        let segments = reader.read(&batch, (1, 0), false, false, Some(hears), only_t).unwrap();
        assert_eq!((segments[0].messages.len(), segments[0].messages_refused), (0, 1));
    }

    #[test]
    fn an_unprintable_row_names_its_table_once() {
        let segments = read(
            &mut reader(),
            &[
                begin(100, 7),
                relation(T, "t"),
                unreadable(T, "0"),
                unreadable(T, "1"),
                insert(T, "2"),
                commit(100),
            ],
        );
        let tables: Vec<_> = segments[0].unreadable.iter().map(|table| &*table.table).collect();
        assert_eq!(tables, ["t"]);
        assert_eq!(ids(&segments[0]), [(100, 2, "2".into())]);
    }

    #[test]
    fn an_unchanged_value_comes_from_the_old_row() {
        let payloads = [begin(100, 7), relation(T, "t"), update_unchanged(T, "0"), commit(100)];
        let segments = read(&mut reader(), &payloads);
        let change = &segments[0].changes[0];
        assert_eq!(change.record.as_ref().unwrap().get(1), Value::Text(b"note"));
        assert_eq!(change.operation, Operation::Update);
    }

    #[test]
    fn only_one_transaction_is_read_where_that_is_asked() {
        let payloads = [
            begin(100, 7),
            relation(T, "t"),
            insert(T, "0"),
            commit(100),
            begin(200, 8),
            insert(T, "1"),
        ];
        let batch = Batch::of(&payloads);
        let segments = reader().read(&batch, (1, 0), false, true, None, only_t).unwrap();
        assert_eq!(ids(&segments[0]), [(100, 0, "0".into())]);
    }

    #[test]
    fn what_is_out_of_order_ends_the_stream() {
        for payloads in [
            vec![relation(T, "t"), insert(T, "0")],
            vec![begin(100, 7), insert(T, "0")],
            vec![begin(100, 7), b"?".to_vec()],
        ] {
            let read = reader().read(&Batch::of(&payloads), (1, 0), false, false, None, only_t);
            assert!(read.is_err(), "{payloads:?}");
        }
    }
}
