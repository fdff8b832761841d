//! Messages of logical replication: what was read, written again, is what came; not a byte more or
//! less makes it up; nothing in memory is larger than the input that claims it.

use std::time::{Duration, SystemTime};

use walcast::wal::pgoutput::{
    DecodeError, Message, OldKind, ReplicaIdentity, TupleColumn, TupleData, decode,
};

/// The whole input is the payload of one `XLogData`.
pub fn check(bytes: &[u8]) {
    let Ok(message) = decode(bytes) else { return };
    if let Message::Relation(relation) = &message {
        assert!(relation.columns.len() <= bytes.len() / 10, "a column takes ten bytes");
    }
    let Some(written) = encode(&message) else {
        assert!(walk(&message).is_err(), "{message:?}");
        return;
    };
    let read = decode(&written).expect("what was read can be written");
    assert_eq!(read, message);
    assert_eq!(walk(&read), Ok(()));
    match message {
        Message::Begin(_) | Message::Insert(_) | Message::Update(_) | Message::Delete(_) => {
            assert_eq!(written, bytes);
        }
        // Flags nobody reads, names that are no UTF-8, and `pg_catalog` as nothing.
        Message::Commit(_) | Message::Truncate(_) => assert_eq!(written.len(), bytes.len()),
        Message::Origin(_) | Message::Relation(_) | Message::Type(_) | Message::Logical(_) => {}
    }
    let cut = decode(&bytes[..bytes.len() - 1]).and_then(|message| walk(&message));
    assert!(cut.is_err(), "a byte less is a message too");
    let longer = [bytes, b"\0"].concat();
    let longer = decode(&longer).and_then(|message| walk(&message));
    assert_eq!(longer, Err(DecodeError::Trailing(1)));
}

/// Reads all there is to read.
fn walk(message: &Message<'_>) -> Result<(), DecodeError> {
    let columns = |tuple: TupleData<'_>| tuple.columns().try_for_each(|column| column.map(drop));
    match message {
        Message::Insert(insert) => columns(insert.new),
        Message::Update(update) => {
            let (old, new) = update.split()?;
            if let Some((_, old)) = old {
                columns(old)?;
            }
            columns(new)
        }
        Message::Delete(delete) => columns(delete.old),
        Message::Truncate(_)
        | Message::Begin(_)
        | Message::Commit(_)
        | Message::Origin(_)
        | Message::Relation(_)
        | Message::Type(_)
        | Message::Logical(_) => Ok(()),
    }
}

/// Writes a message as a server does; none when a row of it cannot be read.
fn encode(message: &Message<'_>) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend(text.as_bytes());
        out.push(0);
    };
    match message {
        Message::Begin(begin) => {
            out.push(b'B');
            out.extend(begin.commit_lsn.get().to_be_bytes());
            out.extend(micros(begin.time).to_be_bytes());
            out.extend(begin.xid.to_be_bytes());
        }
        Message::Commit(commit) => {
            out.extend(b"C\0");
            out.extend(commit.lsn.get().to_be_bytes());
            out.extend(commit.end_lsn.get().to_be_bytes());
            out.extend(micros(commit.time).to_be_bytes());
        }
        Message::Origin(origin) => {
            out.push(b'O');
            out.extend(origin.lsn.get().to_be_bytes());
            text(&mut out, &origin.name);
        }
        Message::Relation(relation) => {
            out.push(b'R');
            out.extend(relation.oid.to_be_bytes());
            text(&mut out, &relation.schema);
            text(&mut out, &relation.table);
            out.push(match relation.replica_identity {
                ReplicaIdentity::Default => b'd',
                ReplicaIdentity::Nothing => b'n',
                ReplicaIdentity::Full => b'f',
                ReplicaIdentity::Index => b'i',
            });
            out.extend(u16::try_from(relation.columns.len()).ok()?.to_be_bytes());
            for column in &relation.columns {
                out.push(u8::from(column.in_identity));
                text(&mut out, &column.name);
                out.extend(column.type_oid.to_be_bytes());
                out.extend(column.type_modifier.to_be_bytes());
            }
        }
        Message::Type(kind) => {
            out.push(b'Y');
            out.extend(kind.oid.to_be_bytes());
            text(&mut out, &kind.schema);
            text(&mut out, &kind.name);
        }
        Message::Insert(insert) => {
            out.push(b'I');
            out.extend(insert.relation.to_be_bytes());
            out.push(b'N');
            row(&mut out, insert.new)?;
        }
        Message::Update(update) => {
            out.push(b'U');
            out.extend(update.relation.to_be_bytes());
            let (old, new) = update.split().ok()?;
            if let Some((kind, old)) = old {
                out.push(letter(kind));
                row(&mut out, old)?;
            }
            out.push(b'N');
            row(&mut out, new)?;
        }
        Message::Delete(delete) => {
            out.push(b'D');
            out.extend(delete.relation.to_be_bytes());
            out.push(letter(delete.kind));
            row(&mut out, delete.old)?;
        }
        Message::Truncate(truncate) => {
            out.push(b'T');
            out.extend(u32::try_from(truncate.relations().len()).ok()?.to_be_bytes());
            out.push(u8::from(truncate.cascade) | u8::from(truncate.restart_identity) << 1);
            truncate.relations().for_each(|oid| out.extend(oid.to_be_bytes()));
        }
        Message::Logical(logical) => {
            out.push(b'M');
            out.push(u8::from(logical.transactional));
            out.extend(logical.lsn.get().to_be_bytes());
            text(&mut out, &logical.prefix);
            sized(&mut out, logical.content)?;
        }
    }
    Some(out)
}

fn letter(kind: OldKind) -> u8 {
    match kind {
        OldKind::Key => b'K',
        OldKind::Full => b'O',
    }
}

fn row(out: &mut Vec<u8>, tuple: TupleData<'_>) -> Option<()> {
    let columns: Vec<_> = tuple.columns().collect::<Result<_, _>>().ok()?;
    out.extend(u16::try_from(columns.len()).ok()?.to_be_bytes());
    for column in columns {
        match column {
            TupleColumn::Null => out.push(b'n'),
            TupleColumn::Unchanged => out.push(b'u'),
            TupleColumn::Text(text) => {
                out.push(b't');
                sized(out, text)?;
            }
            TupleColumn::Binary(bytes) => {
                out.push(b'b');
                sized(out, bytes)?;
            }
        }
    }
    Some(())
}

fn sized(out: &mut Vec<u8>, bytes: &[u8]) -> Option<()> {
    out.extend(u32::try_from(bytes.len()).ok()?.to_be_bytes());
    out.extend(bytes);
    Some(())
}

/// Microseconds since 2000-01-01.
fn micros(time: SystemTime) -> i64 {
    let epoch = SystemTime::UNIX_EPOCH + Duration::from_hours(262_968);
    let micros = match time.duration_since(epoch) {
        Ok(since) => i128::try_from(since.as_micros()),
        Err(error) => i128::try_from(error.duration().as_micros()).map(|micros| -micros),
    };
    micros.ok().and_then(|micros| i64::try_from(micros).ok()).expect("it was 64 bits")
}
