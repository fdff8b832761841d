//! pgoutput: WAL payload bytes → [`Message`].
//!
//! In:     one `XLogData` payload, its 25-byte header already removed.
//! Out:    one message; values are slices of the input, nothing is copied. Rows are not looked
//!         at until somebody asks: a table nobody listens to costs a tag and an OID.
//! Never:  IO, state, relation lookups (`change` keeps the relations), a panic on any bytes.
//! Source: postgresql.org/docs/17/protocol-logicalrep-message-formats.html

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use crate::lsn::Lsn;

/// Seconds from 1970, where [`SystemTime`] counts from, to 2000, where Postgres does.
const POSTGRES_EPOCH_S: u64 = 946_684_800;

/// These bytes are no message of the protocol versions we ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The message ends within a field.
    #[error("a message is cut short")]
    Short,
    /// Bytes follow what should be the last field.
    #[error("{0} bytes follow the end of a message")]
    Trailing(usize),
    /// A tag that these protocol versions do not have.
    #[error("unknown {what} tag {tag:#04x}")]
    Tag {
        /// What the tag should have named.
        what: &'static str,
        /// The byte found.
        tag: u8,
    },
    /// A length below zero that does not mean null.
    #[error("a negative length")]
    Length,
    /// A timestamp outside what this machine can represent.
    #[error("a timestamp out of range")]
    Time,
}

/// One logical replication message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'a> {
    /// A transaction starts; everything up to its [`Message::Commit`] is part of it.
    Begin(Begin),
    /// The transaction is complete.
    Commit(Commit),
    /// The transaction was replicated from another server.
    Origin(Origin<'a>),
    /// What a relation looks like from here on.
    Relation(Relation<'a>),
    /// The name of a type that is not built in.
    Type(Type<'a>),
    /// A new row.
    Insert(Insert<'a>),
    /// A row changed.
    Update(Update<'a>),
    /// A row went.
    Delete(Delete<'a>),
    /// All rows of some tables went.
    Truncate(Truncate<'a>),
    /// What `pg_logical_emit_message` wrote.
    Logical(Logical<'a>),
}

/// Start of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begin {
    /// Where the commit record starts: equals [`Commit::lsn`].
    pub commit_lsn: Lsn,
    /// When it committed, by the server's clock.
    pub time: SystemTime,
    /// Transaction id: 32 bits, without its epoch.
    pub xid: u32,
}

/// End of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Where the commit record starts. Orders transactions.
    pub lsn: Lsn,
    /// Where the commit record ends: what to acknowledge, and where to resume.
    pub end_lsn: Lsn,
    /// When it committed, by the server's clock.
    pub time: SystemTime,
}

/// The server a transaction came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin<'a> {
    /// Commit on that server.
    pub lsn: Lsn,
    /// Its name here.
    pub name: Cow<'a, str>,
}

/// What the old image of a table's rows holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key (`d`).
    Default,
    /// Nothing (`n`).
    Nothing,
    /// The whole row (`f`).
    Full,
    /// The columns of one unique index (`i`).
    Index,
}

/// A table as of this place in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation<'a> {
    /// OID; rows name it.
    pub oid: u32,
    /// Schema; the log leaves `pg_catalog` out, here it is spelled.
    pub schema: Cow<'a, str>,
    /// Table.
    pub table: Cow<'a, str>,
    /// What old images hold.
    pub replica_identity: ReplicaIdentity,
    /// Columns in the order of its rows.
    pub columns: Vec<Column<'a>>,
}

/// One column of a [`Relation`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column<'a> {
    /// Part of the replica identity; with identity `full` every column is.
    pub in_identity: bool,
    /// Name.
    pub name: Cow<'a, str>,
    /// OID of its type.
    pub type_oid: u32,
    /// `atttypmod`, such as the length of a `varchar(n)` plus 4; -1 for none.
    pub type_modifier: i32,
}

/// A type that is not built in; sent before the first relation that uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Type<'a> {
    /// OID.
    pub oid: u32,
    /// Schema; `pg_catalog` spelled.
    pub schema: Cow<'a, str>,
    /// Name; for a domain the name of its base type.
    pub name: Cow<'a, str>,
}

/// A new row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Insert<'a> {
    /// OID of the table.
    pub relation: u32,
    /// The row.
    pub new: TupleData<'a>,
}

/// A changed row, not yet split into old and new image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Update<'a> {
    /// OID of the table.
    pub relation: u32,
    body: &'a [u8],
}

/// Which columns an old image has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldKind {
    /// Those of the replica identity (`K`); the others read as null.
    Key,
    /// All (`O`).
    Full,
}

/// An update's old image, when the log has one, and its new one.
pub type OldAndNew<'a> = (Option<(OldKind, TupleData<'a>)>, TupleData<'a>);

impl<'a> Update<'a> {
    /// The old image (there when the key changed or the identity is `full`) and the new one.
    ///
    /// # Errors
    /// When the bytes are not an update.
    pub fn split(&self) -> Result<OldAndNew<'a>, DecodeError> {
        let mut input = Input(self.body);
        let kind = match input.u8()? {
            b'N' => return Ok((None, TupleData(input.0))),
            b'K' => OldKind::Key,
            b'O' => OldKind::Full,
            tag => return Err(DecodeError::Tag { what: "update", tag }),
        };
        let before = input.0;
        let mut columns = TupleData(before).columns();
        for column in columns.by_ref().take_counted() {
            column?;
        }
        let old = &before[..before.len() - columns.input.0.len()];
        let mut rest = columns.input;
        match rest.u8()? {
            b'N' => Ok((Some((kind, TupleData(old))), TupleData(rest.0))),
            tag => Err(DecodeError::Tag { what: "tuple", tag }),
        }
    }
}

/// A row that went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delete<'a> {
    /// OID of the table.
    pub relation: u32,
    /// Which columns `old` has.
    pub kind: OldKind,
    /// The row.
    pub old: TupleData<'a>,
}

/// Tables that were emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncate<'a> {
    /// `CASCADE` was given.
    pub cascade: bool,
    /// `RESTART IDENTITY` was given.
    pub restart_identity: bool,
    oids: &'a [u8],
}

impl Truncate<'_> {
    /// OIDs of the tables.
    pub fn relations(&self) -> impl ExactSizeIterator<Item = u32> {
        let (oids, _rest) = self.oids.as_chunks::<4>();
        oids.iter().map(|oid| u32::from_be_bytes(*oid))
    }
}

/// A message of `pg_logical_emit_message`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logical<'a> {
    /// Part of the transaction around it. One that is not stands before the `Begin` of the
    /// transaction that wrote it, and stays even if that is rolled back.
    pub transactional: bool,
    /// Where it is in the log.
    pub lsn: Lsn,
    /// Who it is for.
    pub prefix: Cow<'a, str>,
    /// What it says.
    pub content: &'a [u8],
}

/// One column of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TupleColumn<'a> {
    /// SQL null; in a key-only old image also "not sent".
    Null,
    /// A large value that the update left alone.
    Unchanged,
    /// Postgres' text format, in the connection's client encoding.
    Text(&'a [u8]),
    /// Postgres' binary format: only on a connection that asked for it.
    Binary(&'a [u8]),
}

/// One row image, as the log has it: a column count and the columns. Not checked until read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TupleData<'a>(&'a [u8]);

impl<'a> TupleData<'a> {
    /// The columns in order. Ends after the first error.
    pub fn columns(&self) -> Columns<'a> {
        let mut input = Input(self.0);
        match input.u16() {
            Ok(left) => Columns { input, left: usize::from(left), failed: None },
            Err(error) => Columns { input, left: 0, failed: Some(error) },
        }
    }

    /// The row as it stands in the batch; every value of its columns lies within.
    pub fn bytes(&self) -> &'a [u8] {
        self.0
    }

    /// Bytes of the row in the log.
    pub fn bytes_len(&self) -> usize {
        self.0.len()
    }
}

/// Walks the columns of a [`TupleData`].
#[derive(Debug, Clone)]
pub struct Columns<'a> {
    input: Input<'a>,
    left: usize,
    failed: Option<DecodeError>,
}

impl<'a> Columns<'a> {
    fn column(&mut self) -> Result<TupleColumn<'a>, DecodeError> {
        match self.input.u8()? {
            b'n' => Ok(TupleColumn::Null),
            b'u' => Ok(TupleColumn::Unchanged),
            b't' => self.input.sized().map(TupleColumn::Text),
            b'b' => self.input.sized().map(TupleColumn::Binary),
            tag => Err(DecodeError::Tag { what: "column", tag }),
        }
    }

    /// Only as many columns as the count says, without a complaint about what follows them.
    fn take_counted(&mut self) -> impl Iterator<Item = Result<TupleColumn<'a>, DecodeError>> {
        std::iter::from_fn(
            || {
                if self.left == 0 && self.failed.is_none() { None } else { self.next() }
            },
        )
    }
}

impl<'a> Iterator for Columns<'a> {
    type Item = Result<TupleColumn<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.failed.take() {
            (self.left, self.input) = (0, Input(&[]));
            return Some(Err(error));
        }
        let Some(left) = self.left.checked_sub(1) else {
            let trailing = std::mem::take(&mut self.input.0).len();
            return (trailing > 0).then_some(Err(DecodeError::Trailing(trailing)));
        };
        self.left = left;
        let column = self.column();
        if column.is_err() {
            (self.left, self.input) = (0, Input(&[]));
        }
        Some(column)
    }

    /// Not more than the bytes can hold, whatever the count claims.
    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.left.min(self.input.0.len()).saturating_add(1)))
    }
}

/// Decodes one message.
///
/// # Errors
/// When the bytes are not a message of protocol version 1 to 4 without streaming.
pub fn decode(payload: &[u8]) -> Result<Message<'_>, DecodeError> {
    let mut input = Input(payload);
    let message = match input.u8()? {
        b'B' => Message::Begin(Begin {
            commit_lsn: input.lsn()?,
            time: input.time()?,
            xid: input.u32()?,
        }),
        b'C' => {
            let _flags = input.u8()?;
            Message::Commit(Commit {
                lsn: input.lsn()?,
                end_lsn: input.lsn()?,
                time: input.time()?,
            })
        }
        b'O' => Message::Origin(Origin { lsn: input.lsn()?, name: input.text()? }),
        b'R' => Message::Relation(input.relation()?),
        b'Y' => {
            Message::Type(Type { oid: input.u32()?, schema: input.schema()?, name: input.text()? })
        }
        b'I' => {
            let relation = input.u32()?;
            input.tag("insert", b'N')?;
            Message::Insert(Insert { relation, new: TupleData(input.rest()) })
        }
        b'U' => Message::Update(Update { relation: input.u32()?, body: input.rest() }),
        b'D' => {
            let relation = input.u32()?;
            let kind = match input.u8()? {
                b'K' => OldKind::Key,
                b'O' => OldKind::Full,
                tag => return Err(DecodeError::Tag { what: "delete", tag }),
            };
            Message::Delete(Delete { relation, kind, old: TupleData(input.rest()) })
        }
        b'T' => {
            let count = usize::try_from(input.u32()?).map_err(|_| DecodeError::Short)?;
            let flags = input.u8()?;
            let bytes = count.checked_mul(4).ok_or(DecodeError::Short)?;
            Message::Truncate(Truncate {
                cascade: flags & 1 != 0,
                restart_identity: flags & 2 != 0,
                oids: input.take(bytes)?,
            })
        }
        b'M' => Message::Logical(Logical {
            transactional: input.u8()? & 1 != 0,
            lsn: input.lsn()?,
            prefix: input.text()?,
            content: input.sized()?,
        }),
        tag => return Err(DecodeError::Tag { what: "message", tag }),
    };
    match input.0.len() {
        0 => Ok(message),
        trailing => Err(DecodeError::Trailing(trailing)),
    }
}

/// The bytes still to be read. Every read is checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Input<'a>(pub(super) &'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub(super) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn i32(&mut self) -> Result<i32, DecodeError> {
        self.array().map(i32::from_be_bytes)
    }

    pub(super) fn lsn(&mut self) -> Result<Lsn, DecodeError> {
        self.array().map(|bytes| Lsn::new(u64::from_be_bytes(bytes)))
    }

    /// Microseconds since 2000-01-01.
    fn time(&mut self) -> Result<SystemTime, DecodeError> {
        let micros = self.array().map(i64::from_be_bytes)?;
        let epoch = SystemTime::UNIX_EPOCH + Duration::from_secs(POSTGRES_EPOCH_S);
        let distance = Duration::from_micros(micros.unsigned_abs());
        let time =
            if micros < 0 { epoch.checked_sub(distance) } else { epoch.checked_add(distance) };
        time.ok_or(DecodeError::Time)
    }

    /// A 32-bit length and that many bytes.
    fn sized(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = usize::try_from(self.i32()?).map_err(|_| DecodeError::Length)?;
        self.take(length)
    }

    /// Bytes up to a zero byte, which is consumed.
    pub(super) fn terminated(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = self.0.iter().position(|byte| *byte == 0).ok_or(DecodeError::Short)?;
        let text = self.take(length)?;
        self.u8()?;
        Ok(text)
    }

    /// A name. Only a database without an encoding can hold one that is not UTF-8; its bad bytes
    /// are replaced, because a name must not stop the stream.
    pub(super) fn text(&mut self) -> Result<Cow<'a, str>, DecodeError> {
        self.terminated().map(String::from_utf8_lossy)
    }

    fn schema(&mut self) -> Result<Cow<'a, str>, DecodeError> {
        self.text().map(|name| if name.is_empty() { Cow::Borrowed("pg_catalog") } else { name })
    }

    fn tag(&mut self, what: &'static str, expected: u8) -> Result<(), DecodeError> {
        let tag = self.u8()?;
        if tag == expected { Ok(()) } else { Err(DecodeError::Tag { what, tag }) }
    }

    fn relation(&mut self) -> Result<Relation<'a>, DecodeError> {
        let (oid, schema, table) = (self.u32()?, self.schema()?, self.text()?);
        let replica_identity = match self.u8()? {
            b'd' => ReplicaIdentity::Default,
            b'n' => ReplicaIdentity::Nothing,
            b'f' => ReplicaIdentity::Full,
            b'i' => ReplicaIdentity::Index,
            tag => return Err(DecodeError::Tag { what: "replica identity", tag }),
        };
        // No room is reserved for the count: it is only a claim until the columns are there.
        let columns = (0..self.u16()?)
            .map(|_| {
                Ok(Column {
                    in_identity: self.u8()? & 1 != 0,
                    name: self.text()?,
                    type_oid: self.u32()?,
                    type_modifier: self.i32()?,
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Relation { oid, schema, table, replica_identity, columns })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::TupleColumn::{Binary, Null, Text, Unchanged};
    use super::*;

    /// Made by `tests/data/pgoutput-15.sql`.
    const TEXT: &str = include_str!("../../tests/data/pgoutput-15-text.hex");
    const BINARY: &str = include_str!("../../tests/data/pgoutput-15-binary.hex");

    fn captured(lines: &str) -> Vec<Vec<u8>> {
        let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
        lines.lines().map(|line| line.as_bytes().chunks(2).map(byte).collect()).collect()
    }

    fn columns(tuple: TupleData<'_>) -> Result<Vec<TupleColumn<'_>>, DecodeError> {
        tuple.columns().collect()
    }

    /// Reads everything there is to read. Whether all of it was sound.
    fn walk(message: &Message<'_>) -> Result<(), DecodeError> {
        match message {
            Message::Insert(insert) => columns(insert.new).map(drop),
            Message::Update(update) => {
                let (old, new) = update.split()?;
                if let Some((_kind, old)) = old {
                    columns(old)?;
                }
                columns(new).map(drop)
            }
            Message::Delete(delete) => columns(delete.old).map(drop),
            Message::Truncate(truncate) => {
                truncate.relations().for_each(drop);
                Ok(())
            }
            Message::Begin(_)
            | Message::Commit(_)
            | Message::Origin(_)
            | Message::Relation(_)
            | Message::Type(_)
            | Message::Logical(_) => Ok(()),
        }
    }

    #[test]
    fn what_a_real_server_sends_is_read() {
        let bytes = captured(TEXT);
        let messages: Vec<_> = bytes.iter().map(|bytes| decode(bytes).unwrap()).collect();
        let Message::Begin(begin) = messages[0] else { panic!("{:?}", messages[0]) };
        assert_eq!((begin.commit_lsn, begin.xid), (Lsn::new(0x153_4D98), 730));
        let Message::Commit(commit) = messages[messages.len() - 1] else { panic!() };
        assert_eq!((commit.lsn, commit.time), (begin.commit_lsn, begin.time));
        assert_eq!(commit.end_lsn, Lsn::new(0x153_4FD8));
        let since_1970 = commit.time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        // select extract(epoch from timestamptz '2000-01-01 UTC') + 0x000303bfcccdcc70 / 1e6
        assert_eq!(since_1970.as_micros(), 946_684_800_000_000 + 0x3_03bf_cccd_cc70);

        let Message::Type(mood) = &messages[1] else { panic!() };
        assert_eq!((mood.oid, &*mood.schema, &*mood.name), (16385, "public", "mood"));
        let Message::Relation(t) = &messages[2] else { panic!() };
        assert_eq!((t.oid, &*t.schema, &*t.table), (16387, "public", "t"));
        assert_eq!(t.replica_identity, ReplicaIdentity::Default);
        let names: Vec<_> =
            t.columns.iter().map(|c| (&*c.name, c.type_oid, c.in_identity)).collect();
        assert_eq!(names, [("id", 23, true), ("note", 25, false), ("m", 16385, false)]);
        let Message::Relation(f) = &messages[7] else { panic!() };
        assert_eq!(f.replica_identity, ReplicaIdentity::Full);
        assert!(f.columns.iter().all(|column| column.in_identity));

        let Message::Insert(insert) = messages[3] else { panic!() };
        assert_eq!(insert.relation, 16387);
        assert_eq!(columns(insert.new).unwrap(), [Text(b"7"), Null, Text(b"fine")]);
        let Message::Update(update) = messages[4] else { panic!() };
        let (old, new) = update.split().unwrap();
        assert_eq!(old, None);
        assert_eq!(columns(new).unwrap(), [Text(b"7"), Text(b"x"), Text(b"fine")]);
        let Message::Update(update) = messages[5] else { panic!() };
        let (old, new) = update.split().unwrap();
        let (kind, old) = old.unwrap();
        assert_eq!(kind, OldKind::Key);
        assert_eq!(columns(old).unwrap(), [Text(b"7"), Null, Null]);
        assert_eq!(columns(new).unwrap(), [Text(b"8"), Text(b"x"), Text(b"fine")]);
        let Message::Delete(delete) = messages[6] else { panic!() };
        assert_eq!(delete.kind, OldKind::Key);
        assert_eq!(columns(delete.old).unwrap(), [Text(b"8"), Null, Null]);

        let long = "y".repeat(2100);
        let Message::Update(update) = messages[9] else { panic!() };
        let (old, new) = update.split().unwrap();
        let (kind, old) = old.unwrap();
        assert_eq!(kind, OldKind::Full);
        assert_eq!(columns(old).unwrap(), [Text(b"1"), Text(long.as_bytes())]);
        assert_eq!(columns(new).unwrap(), [Text(b"2"), Unchanged]);

        let Message::Truncate(truncate) = messages[messages.len() - 3] else { panic!() };
        assert!(truncate.cascade && truncate.restart_identity);
        assert_eq!(truncate.relations().collect::<Vec<_>>(), [16387, 16394]);
        let Message::Logical(logical) = &messages[messages.len() - 2] else { panic!() };
        assert!(logical.transactional && logical.lsn == Lsn::new(0x153_4D98));
        assert_eq!((&*logical.prefix, logical.content), ("walcast.event", &b"hello"[..]));
    }

    #[test]
    fn binary_values_are_told_from_text() {
        let bytes = captured(BINARY);
        let messages: Vec<_> = bytes.iter().map(|bytes| decode(bytes).unwrap()).collect();
        let Message::Insert(insert) = messages[3] else { panic!() };
        assert_eq!(columns(insert.new).unwrap(), [Binary(&[0, 0, 0, 7]), Null, Binary(b"fine")]);
    }

    #[test]
    fn every_cut_of_a_message_is_an_error() {
        for bytes in captured(TEXT).iter().chain(&captured(BINARY)) {
            assert_eq!(decode(bytes).and_then(|message| walk(&message)), Ok(()));
            for length in 0..bytes.len() {
                let read = decode(&bytes[..length]).and_then(|message| walk(&message));
                assert!(read.is_err(), "{length} of {bytes:02x?}");
            }
            let longer = [&bytes[..], b"\0"].concat();
            let read = decode(&longer).and_then(|message| walk(&message));
            assert_eq!(read, Err(DecodeError::Trailing(1)), "{bytes:02x?}");
        }
    }

    #[test]
    fn a_claimed_count_reserves_nothing() {
        // A truncate of four thousand million tables, a row of 65,535 columns, neither there.
        assert_eq!(decode(b"T\xFF\xFF\xFF\xFF\0"), Err(DecodeError::Short));
        let Ok(Message::Insert(insert)) = decode(b"I\0\0\0\x01N\xFF\xFFn") else { panic!() };
        assert_eq!(insert.new.columns().size_hint(), (0, Some(2)));
        assert_eq!(columns(insert.new), Err(DecodeError::Short));
        let Ok(Message::Insert(insert)) = decode(b"I\0\0\0\x01N\0\x01t\xFF\xFF\xFF\xFF") else {
            panic!()
        };
        assert_eq!(columns(insert.new), Err(DecodeError::Length));
    }

    #[derive(Debug, Clone, PartialEq)]
    enum Value {
        Null,
        Unchanged,
        Text(Vec<u8>),
        Binary(Vec<u8>),
    }

    fn row() -> impl Strategy<Value = Vec<Value>> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..20);
        let value = prop_oneof![
            Just(Value::Null),
            Just(Value::Unchanged),
            bytes().prop_map(Value::Text),
            bytes().prop_map(Value::Binary),
        ];
        proptest::collection::vec(value, 0..6)
    }

    fn encode(row: &[Value]) -> Vec<u8> {
        let mut bytes = u16::try_from(row.len()).unwrap().to_be_bytes().to_vec();
        for value in row {
            let (tag, content) = match value {
                Value::Null => (b'n', None),
                Value::Unchanged => (b'u', None),
                Value::Text(text) => (b't', Some(text)),
                Value::Binary(binary) => (b'b', Some(binary)),
            };
            bytes.push(tag);
            if let Some(content) = content {
                bytes.extend(u32::try_from(content.len()).unwrap().to_be_bytes());
                bytes.extend(content);
            }
        }
        bytes
    }

    fn decoded(tuple: TupleData<'_>) -> Vec<Value> {
        tuple
            .columns()
            .map(|column| match column.unwrap() {
                TupleColumn::Null => Value::Null,
                TupleColumn::Unchanged => Value::Unchanged,
                TupleColumn::Text(text) => Value::Text(text.to_vec()),
                TupleColumn::Binary(bytes) => Value::Binary(bytes.to_vec()),
            })
            .collect()
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(message) = decode(&bytes) {
                walk(&message).ok();
            }
        }

        #[test]
        fn no_damage_to_real_bytes_makes_it_panic(
            line in 0..16_usize, at in any::<proptest::sample::Index>(), byte in any::<u8>()
        ) {
            let mut bytes = captured(TEXT).swap_remove(line);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(message) = decode(&bytes) {
                walk(&message).ok();
            }
        }

        #[test]
        fn an_update_is_split_where_its_images_meet(
            relation in any::<u32>(), full in any::<bool>(), old in row(), new in row()
        ) {
            let tag = if full { b"O" } else { b"K" };
            let bytes = [
                b"U", &relation.to_be_bytes()[..], tag, &encode(&old), b"N", &encode(&new),
            ].concat();
            let Ok(Message::Update(update)) = decode(&bytes) else { panic!() };
            prop_assert_eq!(update.relation, relation);
            let (found, found_new) = update.split().unwrap();
            let (kind, found_old) = found.unwrap();
            prop_assert_eq!(kind, if full { OldKind::Full } else { OldKind::Key });
            prop_assert_eq!(decoded(found_old), old);
            prop_assert_eq!(decoded(found_new), new);
        }

        #[test]
        fn begin_and_commit_carry_their_numbers(
            lsn in any::<u64>(), end in any::<u64>(), micros in any::<i64>(), xid in any::<u32>()
        ) {
            let begin = [
                b"B", &lsn.to_be_bytes()[..], &micros.to_be_bytes(), &xid.to_be_bytes(),
            ].concat();
            let Ok(Message::Begin(begin)) = decode(&begin) else { panic!() };
            prop_assert_eq!((begin.commit_lsn, begin.xid), (Lsn::new(lsn), xid));
            let commit = [
                b"C\0", &lsn.to_be_bytes()[..], &end.to_be_bytes(), &micros.to_be_bytes(),
            ].concat();
            let Ok(Message::Commit(commit)) = decode(&commit) else { panic!() };
            prop_assert_eq!((commit.lsn, commit.end_lsn), (Lsn::new(lsn), Lsn::new(end)));
            prop_assert_eq!(commit.time, begin.time);
        }
    }
}
