//! New rows of `realtime.messages` → what they say to which room.
//!
//! In:     definitions, inserted and deleted rows as the log has them.
//! Out:    [`Message`]s in their place among the row changes; how many were too large to be said.
//! Never:  IO; a look into a payload; a row of another table, unless the catalog is asked first
//!         ([`Message::unsure`]).
//! Source: spec of the realtime protocol, section 4.5.

use std::collections::VecDeque;

use bytes::Bytes;

use super::reader::Definition;
use crate::change::Commit;
use crate::cursor::Place;
use crate::event::broadcast::{Broadcast, Encoding, Meta, UserEvent};
use crate::hub::RoomName;
use crate::wal::Batch;
use crate::wal::pgoutput::{DecodeError, TupleColumn, TupleData};

/// Where stored messages are.
pub(super) const SCHEMA: &str = "realtime";
/// Its name there.
pub(super) const TABLE: &str = "messages";

/// What the topic of every channel begins with.
const TOPIC_PREFIX: &str = "realtime:";

/// What one new row says.
#[derive(Debug)]
pub(super) struct Message {
    /// Who is told.
    pub room: RoomName,
    /// What they are told.
    pub what: Broadcast,
    /// Its transaction.
    pub commit: Commit,
    /// Its number among the row changes of its transaction.
    pub ordinal: u32,
    /// The table looks like a partition of `realtime.messages` and has no name that says so: the
    /// catalog has to.
    pub unsure: Option<u32>,
    /// Its transaction took a row of this id out of that table just before, of which the same can
    /// be said: if it is a partition too, the message was only moved.
    pub moved_from: Option<u32>,
}

impl Message {
    /// Its place in the log, among row changes and messages.
    pub(super) fn place(&self) -> Place {
        Place { commit: self.commit.lsn, ordinal: self.ordinal }
    }
}

/// Where the columns of a message are in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Places {
    id: usize,
    topic: usize,
    event: usize,
    private: usize,
    inserted_at: usize,
    payload: usize,
    /// The table of an older installation has none.
    binary_payload: Option<usize>,
    /// Later ones have it: stored for replay alone.
    skip_broadcast: Option<usize>,
    /// See [`Message::unsure`].
    pub(super) unsure: Option<u32>,
}

impl Places {
    /// None: this table holds no messages.
    pub(super) fn of(table: &Definition) -> Option<Self> {
        let place = |name: &str| table.columns.iter().position(|column| *column.name == *name);
        Some(Self {
            id: place("id")?,
            topic: place("topic")?,
            event: place("event")?,
            private: place("private")?,
            inserted_at: place("inserted_at")?,
            payload: place("payload")?,
            binary_payload: place("binary_payload"),
            skip_broadcast: place("skip_broadcast"),
            unsure: (!is_named_like_one(&table.schema, &table.table)).then_some(table.oid),
        })
    }
}

/// `realtime.messages`, or one of its day partitions. Only administrators make tables there.
fn is_named_like_one(schema: &str, table: &str) -> bool {
    let Some(rest) = table.strip_prefix(TABLE).filter(|_| schema == SCHEMA) else { return false };
    let day = |day: &str| {
        let digits = |part: &str, count| {
            part.len() == count && part.bytes().all(|byte| byte.is_ascii_digit())
        };
        let mut parts = day.split('_');
        let date = [parts.next(), parts.next(), parts.next()];
        parts.next().is_none()
            && matches!(date, [Some(y), Some(m), Some(d)]
                if digits(y, 4) && digits(m, 2) && digits(d, 2))
    };
    rest.is_empty() || rest.strip_prefix('_').is_some_and(day)
}

/// Deleted messages of one transaction that are remembered. A row that is moved is inserted right
/// after it was deleted; only triggers write in between.
const DELETED_MAX: usize = 16;

/// The latest messages that a transaction has deleted. An UPDATE that moves a row to another
/// partition is in the log as a DELETE there and an INSERT here, and says nothing new.
#[derive(Debug, Clone, Default)]
pub(super) struct Deleted {
    /// Table, whether that is [`Message::unsure`], id.
    latest: VecDeque<(u32, bool, Box<str>)>,
}

/// Whether a new row was in another partition before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moved {
    /// It is new.
    No,
    /// It was only moved.
    Yes,
    /// If this table is a partition.
    From(u32),
}

impl Deleted {
    /// Takes note of a deleted row of `table`.
    ///
    /// # Errors
    /// Bytes that are no row.
    pub(super) fn note(
        &mut self,
        table: u32,
        places: &Places,
        old: &TupleData<'_>,
    ) -> Result<(), DecodeError> {
        let id = old.columns().nth(places.id).transpose()?.and_then(uuid);
        if let Some(id) = id {
            self.latest.truncate(DELETED_MAX - 1);
            self.latest.push_front((table, places.unsure.is_some(), id));
        }
        Ok(())
    }

    /// What is known of a new row of `table`.
    pub(super) fn moved(&self, table: u32, id: Option<&str>) -> Moved {
        let mut same = self.latest.iter().filter(|(from, _, deleted)| {
            // Whoever deletes a row and inserts it again where it was wants it to be said.
            *from != table && Some(&**deleted) == id
        });
        match same.next() {
            None => Moved::No,
            Some((_, false, _)) => Moved::Yes,
            Some((from, true, _)) => Moved::From(*from),
        }
    }
}

/// What became of one row.
#[derive(Debug)]
pub(super) enum Read {
    /// It is to be said.
    Said(RoomName, Broadcast),
    /// It says nothing, or nobody is there to hear it.
    Nothing,
    /// It is too large, cannot be read, or fits no frame.
    Refused,
}

/// Reads one new row. `hears`: whether anybody is in a room.
///
/// # Errors
/// Bytes that are no row.
pub(super) fn read(
    places: &Places,
    batch: &Batch,
    row: &TupleData<'_>,
    payload_bytes_max: usize,
    hears: &dyn Fn(&RoomName) -> bool,
) -> Result<Read, DecodeError> {
    let columns = row.columns().collect::<Result<Vec<_>, _>>()?;
    let column = |place: usize| columns.get(place).copied().unwrap_or(TupleColumn::Null);
    let optional = |place: Option<usize>| place.map_or(TupleColumn::Null, column);
    let is_null = |place: usize| column(place) == TupleColumn::Null;
    let skipped = boolean(optional(places.skip_broadcast)) == Some(true);
    if skipped || [places.id, places.event, places.inserted_at].into_iter().any(is_null) {
        return Ok(Read::Nothing);
    }
    let Some((topic, private)) = text(column(places.topic)).zip(boolean(column(places.private)))
    else {
        return Ok(Read::Nothing);
    };
    let topic = [TOPIC_PREFIX, topic].concat();
    let room = RoomName { topic: topic.into(), private };
    if !hears(&room) {
        return Ok(Read::Nothing);
    }
    let (binary, json) = (optional(places.binary_payload), column(places.payload));
    let payload = if binary != TupleColumn::Null {
        bytea(binary, payload_bytes_max, batch).map(|bytes| (Encoding::Bytes, bytes))
    } else if json != TupleColumn::Null {
        jsonb(json, payload_bytes_max).map(|json| (Encoding::Json, batch.slice(json)))
    } else {
        return Ok(Read::Nothing);
    };
    let event = text(column(places.event));
    let id = uuid(column(places.id));
    Ok(match (payload, event, id) {
        (Some((encoding, data)), Some(event), Some(id)) => {
            let stored_at = printed(column(places.inserted_at)).map(Into::into);
            let meta = Meta { id: Some(id), stored_at, ..Meta::default() };
            let event = UserEvent { event: event.into(), encoding, data, meta };
            if event.can_be_told_on(&room.topic) {
                Read::Said(room, Broadcast::User(event))
            } else {
                Read::Refused
            }
        }
        _ => Read::Refused,
    })
}

fn text(column: TupleColumn<'_>) -> Option<&str> {
    match column {
        // Text has one form only.
        TupleColumn::Text(text) | TupleColumn::Binary(text) => str::from_utf8(text).ok(),
        TupleColumn::Null | TupleColumn::Unchanged => None,
    }
}

/// A value whose binary form is another.
fn printed(column: TupleColumn<'_>) -> Option<&str> {
    match column {
        TupleColumn::Text(_) => text(column),
        TupleColumn::Binary(_) | TupleColumn::Null | TupleColumn::Unchanged => None,
    }
}

fn boolean(column: TupleColumn<'_>) -> Option<bool> {
    match column {
        TupleColumn::Text(b"t") | TupleColumn::Binary([1]) => Some(true),
        TupleColumn::Text(b"f") | TupleColumn::Binary([0]) => Some(false),
        TupleColumn::Text(_)
        | TupleColumn::Binary(_)
        | TupleColumn::Null
        | TupleColumn::Unchanged => None,
    }
}

fn uuid(column: TupleColumn<'_>) -> Option<Box<str>> {
    match column {
        TupleColumn::Text(_) => text(column).map(Into::into),
        TupleColumn::Binary(bytes) => {
            let bytes: [u8; 16] = bytes.try_into().ok()?;
            let hex = format!("{:032x}", u128::from_be_bytes(bytes));
            let parts = [hex.get(..8)?, hex.get(8..12)?, hex.get(12..16)?, hex.get(16..20)?];
            Some(format!("{}-{}", parts.join("-"), hex.get(20..)?).into())
        }
        TupleColumn::Null | TupleColumn::Unchanged => None,
    }
}

/// Its text, which is JSON.
fn jsonb(column: TupleColumn<'_>, bytes_max: usize) -> Option<&[u8]> {
    let json = match column {
        // In binary, a version number goes before the text.
        TupleColumn::Text(json) | TupleColumn::Binary([1, json @ ..]) => json,
        TupleColumn::Binary(_) | TupleColumn::Null | TupleColumn::Unchanged => return None,
    };
    (json.len() <= bytes_max && str::from_utf8(json).is_ok()).then_some(json)
}

fn bytea(column: TupleColumn<'_>, bytes_max: usize, batch: &Batch) -> Option<Bytes> {
    match column {
        TupleColumn::Text(text) => {
            let digits = text.strip_prefix(br"\x")?;
            if digits.len() / 2 > bytes_max {
                return None;
            }
            let (pairs, rest) = digits.as_chunks::<2>();
            let byte = |[high, low]: &[u8; 2]| Some((nibble(*high)? << 4) | nibble(*low)?);
            let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
            bytes.filter(|_| rest.is_empty()).map(Bytes::from)
        }
        TupleColumn::Binary(bytes) => (bytes.len() <= bytes_max).then(|| batch.slice(bytes)),
        TupleColumn::Null | TupleColumn::Unchanged => None,
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::reader::DefinedColumn;
    use crate::wal::pgoutput::{self, Message as Protocol};

    const COLUMNS: [&str; 9] = [
        "topic",
        "extension",
        "payload",
        "event",
        "private",
        "inserted_at",
        "id",
        "binary_payload",
        "skip_broadcast",
    ];

    const ID: &str = "00112233-4455-6677-8899-aabbccddeeff";

    fn table(schema: &str, table: &str, columns: &[&str]) -> Definition {
        let column =
            |name: &&str| DefinedColumn { in_identity: false, name: (*name).into(), type_oid: 25 };
        Definition {
            oid: 7,
            schema: schema.into(),
            table: table.into(),
            replica_identity: pgoutput::ReplicaIdentity::Default,
            columns: columns.iter().map(column).collect(),
        }
    }

    /// A row of [`COLUMNS`], read; none is null, `b` before a value means binary.
    fn check(row: [Option<&[u8]>; 9], binary: bool) -> Read {
        let kind = if binary { b'b' } else { b't' };
        let mut insert = [&b"I"[..], &7_u32.to_be_bytes(), b"N", &9_u16.to_be_bytes()].concat();
        for value in row {
            match value {
                None => insert.push(b'n'),
                Some(value) => {
                    insert.push(kind);
                    insert.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
                    insert.extend_from_slice(value);
                }
            }
        }
        let batch = Batch::of(&[insert]);
        let Some(Ok(Protocol::Insert(insert))) = batch.messages().next() else {
            panic!("not an insert")
        };
        let places = Places::of(&table("realtime", "messages", &COLUMNS)).unwrap();
        read(&places, &batch, &insert.new, 20, &|room| *room.topic != *"realtime:empty").unwrap()
    }

    fn row<'a>(payload: Option<&'a [u8]>, binary: Option<&'a [u8]>) -> [Option<&'a [u8]>; 9] {
        [
            Some(b"room"),
            Some(b"broadcast"),
            payload,
            Some(b"e"),
            Some(b"t"),
            Some(b"2026-11-21 00:00:00"),
            Some(ID.as_bytes()),
            binary,
            None,
        ]
    }

    fn said(encoding: Encoding, data: &'static [u8]) -> Broadcast {
        let stored_at = Some("2026-11-21 00:00:00".into());
        let meta = Meta { id: Some(ID.into()), stored_at, ..Meta::default() };
        Broadcast::User(UserEvent { event: "e".into(), encoding, data: Bytes::from(data), meta })
    }

    #[track_caller]
    fn says(read: &Read, what: &Broadcast) {
        let Read::Said(room, found) = read else { panic!("{read:?}") };
        assert_eq!((&*room.topic, room.private), ("realtime:room", true));
        assert_eq!(found, what);
    }

    #[test]
    fn a_row_says_its_payload_to_the_room_of_its_topic() {
        let json = said(Encoding::Json, br#"{"a": 1}"#);
        says(&check(row(Some(br#"{"a": 1}"#), None), false), &json);
        let bytes = said(Encoding::Bytes, &[0, 255, 16]);
        says(&check(row(None, Some(br"\x00fF10")), false), &bytes);
        says(&check(row(Some(b"{}"), Some(br"\x00ff10")), false), &bytes);
    }

    #[test]
    fn a_row_in_binary_says_the_same() {
        let mut binary = row(Some(b"\x01{\"a\": 1}"), None);
        let id = 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff_u128.to_be_bytes();
        binary[4] = Some(&[1]);
        binary[6] = Some(&id);
        // But for the time, which goes no further than the order of a replay.
        let timeless = |said: Broadcast| match said {
            Broadcast::User(mut user) => {
                user.meta.stored_at = None;
                Broadcast::User(user)
            }
            Broadcast::Whole(_) => said,
        };
        says(&check(binary, true), &timeless(said(Encoding::Json, br#"{"a": 1}"#)));
        (binary[2], binary[7]) = (None, Some(&[0, 255, 16][..]));
        says(&check(binary, true), &timeless(said(Encoding::Bytes, &[0, 255, 16])));
    }

    #[test]
    fn a_row_without_all_that_it_needs_says_nothing() {
        for place in [0, 2, 3, 4, 5, 6] {
            let mut lacking = row(Some(b"{}"), None);
            lacking[place] = None;
            assert!(matches!(check(lacking, false), Read::Nothing), "{}", COLUMNS[place]);
        }
        let mut skipped = row(Some(b"{}"), None);
        skipped[8] = Some(b"t");
        assert!(matches!(check(skipped, false), Read::Nothing));
        let mut unheard = row(Some(b"{}"), None);
        unheard[0] = Some(b"empty");
        assert!(matches!(check(unheard, false), Read::Nothing));
    }

    #[test]
    fn what_is_too_large_or_unreadable_is_refused() {
        let json: [&[u8]; 2] = [b"\"2345678901234567890\"", b"\"\xff\""];
        for json in json {
            let read = check(row(Some(json), None), false);
            assert!(matches!(read, Read::Refused), "{json:?} {read:?}");
        }
        let binary: [&[u8]; 4] =
            [br"\x0001020304050607080910111213141516171819AA", br"\x0", br"\x0g", br"\000"];
        for binary in binary {
            let read = check(row(None, Some(binary)), false);
            assert!(matches!(read, Read::Refused), "{binary:?} {read:?}");
        }
        let fits = check(row(Some(b"\"234567890123456789\""), None), false);
        assert!(matches!(fits, Read::Said(..)));
        let fits = check(row(None, Some(br"\x0001020304050607080910111213141516171819")), false);
        assert!(matches!(fits, Read::Said(..)));
    }

    #[test]
    fn only_the_catalog_knows_a_partition_by_another_name() {
        let unsure = |schema: &str, name: &str| {
            Places::of(&table(schema, name, &COLUMNS)).map(|places| places.unsure.is_some())
        };
        assert_eq!(unsure("realtime", "messages"), Some(false));
        assert_eq!(unsure("realtime", "messages_2026_11_21"), Some(false));
        for (schema, name) in [
            ("public", "messages"),
            ("public", "messages_2026_11_21"),
            ("realtime", "messages_2026_11"),
            ("realtime", "messages_2026_11_21_x"),
            ("realtime", "messages_by_hand"),
            ("realtime", "my_messages"),
        ] {
            assert_eq!(unsure(schema, name), Some(true), "{schema}.{name}");
        }
        assert_eq!(Places::of(&table("realtime", "messages", &COLUMNS[1..])), None);
        assert!(Places::of(&table("realtime", "messages", &COLUMNS[..7])).is_some());
    }
}
