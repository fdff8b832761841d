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
