//! The `data` of a `postgres_changes` event: one row's change as supabase-js expects it.
//!
//! In:     a [`Change`], the columns that may be shown, and how much of the old row.
//! Out:    `{"schema":…,"table":…,"type":…,"commit_timestamp":…,"columns":[…],"record":{…},
//!         "old_record":{…},"errors":null,"cursor":"…"}`, appended to the caller's buffer; with
//!         `"origin":{"sub","connection_id","mutation_id"}` when the writer said who it is.
//! Never:  null for a value the log did not carry: such a column is absent.
//! Source: supabase/walrus, `apply_rls`; Supabase Realtime, `postgres_changes`.

use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::change::value::{self, Type};
use crate::change::{Change, ColumnSet, OldImage, Operation, ReplicaIdentity, Tuple, Value};
use crate::cursor::{Cursor, Epoch};

/// Bytes of a value that is kept in a row too large to be shown whole.
const KEPT_BYTES_MAX: usize = 64;

/// What of the old row may be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OldColumns {
    /// All that the log carried.
    All,
    /// The primary key.
    Key,
    /// Nothing.
    None,
}

/// A change as one group of subscribers sees it.
#[derive(Debug, Clone, Copy)]
pub struct RowEvent<'a> {
    /// What happened to the row.
    pub change: &'a Change,
    /// What happened as far as they can tell: an update that takes the row out of their sight is
    /// a DELETE.
    pub operation: Operation,
    /// The columns they may read and asked for, the primary key's among them.
    pub columns: &'a ColumnSet,
    /// What they may know of the old row.
    pub old: OldColumns,
    /// Bytes of the shown values' text above which those of more than 64 bytes are left out.
    pub record_bytes_max: usize,
    /// Of the log that the change's place is in.
    pub epoch: Epoch,
}

/// Appends the event.
///
/// A DELETE has no `record`, an INSERT no `old_record`. An unchanged large value is taken from the
/// old row when the log has it whole, and is absent otherwise. A key that an update left alone is
/// taken from the new row, since the log does not repeat it.
pub fn render(event: &RowEvent<'_>, out: &mut Vec<u8>) {
    let RowEvent { change, operation, columns, .. } = *event;
    let large = is_large(event);
    head(change, operation, out);
    timestamp(change.commit.time, out);
    out.extend_from_slice(br#","columns":["#);
    let mut first = true;
    for (place, column) in change.relation.columns.iter().enumerate() {
        if columns.contains(place) {
            separate(&mut first, out);
            out.extend_from_slice(br#"{"name":"#);
            value::string(column.name.as_bytes(), out);
            out.extend_from_slice(br#","type":"#);
            value::string(column.type_name.as_bytes(), out);
            out.push(b'}');
        }
    }
    out.push(b']');
    if operation != Operation::Delete {
        out.extend_from_slice(br#","record":"#);
        object(event, large, |place| new_value(change, place), out);
    }
    if operation != Operation::Insert {
        out.extend_from_slice(br#","old_record":"#);
        object(event, large, |place| old_value(change, event.old, place), out);
    }
    out.extend_from_slice(if large {
        br#","errors":["Error 413: Payload Too Large"]"#
    } else {
        br#","errors":null"#
    });
    if let Some(origin) = change.origin.as_ref().filter(|origin| origin.is_told()) {
        out.extend_from_slice(br#","origin":"#);
        serde_json::to_writer(&mut *out, &**origin).expect("a buffer takes every string");
    }
    cursor(change, event.epoch, out);
    out.push(b'}');
}

/// Appends an event that says only that something happened to a row of this table, and why no
/// more: `text` is one of `Error 400: Bad Request, no primary key` and `Error 401: Unauthorized`.
pub fn render_error(change: &Change, epoch: Epoch, text: &str, out: &mut Vec<u8>) {
    head(change, change.operation, out);
    out.extend_from_slice(br#"null,"columns":[]"#);
    if change.operation != Operation::Delete {
        out.extend_from_slice(br#","record":{}"#);
    }
    if change.operation != Operation::Insert {
        out.extend_from_slice(br#","old_record":{}"#);
    }
    out.extend_from_slice(br#","errors":["#);
    value::string(text.as_bytes(), out);
    out.push(b']');
    cursor(change, epoch, out);
    out.push(b'}');
}

/// `,"cursor":…`
fn cursor(change: &Change, epoch: Epoch, out: &mut Vec<u8>) {
    let cursor = Cursor { place: change.place(), epoch };
    write!(out, r#","cursor":"{cursor}""#).expect("memory takes every write");
}

/// Whether the row's primary key is after the change what it was before: then the old key says
/// nothing that the new row does not. False when the log does not tell.
pub fn keeps_key(change: &Change) -> bool {
    let mut keys = (0_usize..).zip(&change.relation.columns).filter(|(_, c)| c.in_primary_key);
    change.operation == Operation::Update
        && keys.all(|(place, _)| {
            let old = old_value(change, OldColumns::Key, place);
            old.is_some() && old == new_value(change, place)
        })
}

/// `{"schema":…,"table":…,"type":…,"commit_timestamp":`
fn head(change: &Change, operation: Operation, out: &mut Vec<u8>) {
    out.extend_from_slice(br#"{"schema":"#);
    value::string(change.relation.schema.as_bytes(), out);
    out.extend_from_slice(br#","table":"#);
    value::string(change.relation.table.as_bytes(), out);
    out.extend_from_slice(br#","type":""#);
    out.extend_from_slice(operation.as_str().as_bytes());
    out.extend_from_slice(br#"","commit_timestamp":"#);
}

/// The columns of one image; `value` is `None` where nothing is to be shown.
fn object<'a>(
    event: &RowEvent<'_>,
    large: bool,
    value: impl Fn(usize) -> Option<Value<'a>>,
    out: &mut Vec<u8>,
) {
    out.push(b'{');
    let mut first = true;
    for (place, column) in event.change.relation.columns.iter().enumerate() {
        if !event.columns.contains(place) {
            continue;
        }
        let Some(value) = value(place) else { continue };
        if large && matches!(value, Value::Text(text) if text.len() > KEPT_BYTES_MAX) {
            continue;
        }
        let (start, was_first) = (out.len(), first);
        separate(&mut first, out);
        value::string(column.name.as_bytes(), out);
        out.push(b':');
        let json = out.len();
        if !put(&column.kind, value, out) || (large && out.len() - json > KEPT_BYTES_MAX) {
            out.truncate(start);
            first = was_first;
        }
    }
    out.push(b'}');
}

fn separate(first: &mut bool, out: &mut Vec<u8>) {
    if !*first {
        out.push(b',');
    }
    *first = false;
}

/// Appends a value; false when there is none to append.
fn put(kind: &Type, value: Value<'_>, out: &mut Vec<u8>) -> bool {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Text(text) => value::render(kind, text, out),
        Value::Unchanged => return false,
    }
    true
}

/// The new row's value in a column, when the log has it.
fn new_value(change: &Change, place: usize) -> Option<Value<'_>> {
    change.record.as_ref().and_then(|record| known(record, place)).or_else(|| {
        match (&change.record, &change.old_record) {
            (Some(record), Some((OldImage::Full, old))) if place < record.len() => {
                known(old, place)
            }
            (_, Some((OldImage::Full | OldImage::Key, _)) | None) => None,
        }
    })
}

/// The old row's value in a column, when the log has it and it may be shown.
fn old_value(change: &Change, old: OldColumns, place: usize) -> Option<Value<'_>> {
    let column = change.relation.columns.get(place)?;
    let allowed = match old {
        OldColumns::All => true,
        OldColumns::Key => column.in_primary_key,
        OldColumns::None => false,
    };
    if !allowed {
        return None;
    }
    match &change.old_record {
        Some((OldImage::Full, tuple)) => known(tuple, place),
        Some((OldImage::Key, tuple)) if column.in_identity => known(tuple, place),
        // In a key-only image, null elsewhere means "not sent".
        Some((OldImage::Key, _)) => None,
        None => {
            let repeated = change.operation == Operation::Update
                && change.relation.replica_identity != ReplicaIdentity::Full
                && column.in_identity;
            change.record.as_ref().filter(|_| repeated).and_then(|tuple| known(tuple, place))
        }
    }
}

/// A value that the image has. An image shorter than its relation has no nulls at its end.
fn known(tuple: &Tuple, place: usize) -> Option<Value<'_>> {
    match tuple.get(place) {
        value @ (Value::Null | Value::Text(_)) if place < tuple.len() => Some(value),
        Value::Null | Value::Text(_) | Value::Unchanged => None,
    }
}

/// Whether the values to be shown are together too large. Hidden columns do not count: their size
/// is not for everybody to know.
fn is_large(event: &RowEvent<'_>) -> bool {
    let change = event.change;
    let images = [change.record.as_ref(), change.old_record.as_ref().map(|(_, tuple)| tuple)];
    let whole: usize = images.iter().flatten().map(|tuple| Tuple::text_bytes(tuple)).sum();
    if whole <= event.record_bytes_max / 2 {
        // An unchanged value is shown twice at most.
        return false;
    }
    let size = |value: Option<Value<'_>>| match value {
        Some(Value::Text(text)) => text.len(),
        Some(Value::Null | Value::Unchanged) | None => 0,
    };
    let shown = event.columns.iter().map(|place| {
        let new = match event.operation {
            Operation::Insert | Operation::Update => size(new_value(change, place)),
            Operation::Delete => 0,
        };
        let old = match event.operation {
            Operation::Update | Operation::Delete => size(old_value(change, event.old, place)),
            Operation::Insert => 0,
        };
        new.saturating_add(old)
    });
    shown.fold(0, usize::saturating_add) > event.record_bytes_max
}

/// Appends `"2026-08-21T10:11:12.345Z"`: UTC, milliseconds cut off.
pub fn timestamp(time: SystemTime, out: &mut Vec<u8>) {
    let millis = match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        Err(before) => {
            let before = before.duration();
            let cut = i64::from(before.subsec_nanos() % 1_000_000 != 0);
            i64::try_from(before.as_millis()).map_or(i64::MIN, |millis| -millis - cut)
        }
    };
    let (days, in_day) = (millis.div_euclid(86_400_000), millis.rem_euclid(86_400_000));
    let (year, month, day) = date(days);
    out.push(b'"');
    if year < 0 {
        out.push(b'-');
    }
    number(year.unsigned_abs(), 4, out);
    for (before, value, digits) in [
        (b'-', month, 2),
        (b'-', day, 2),
        (b'T', in_day / 3_600_000, 2),
        (b':', in_day / 60_000 % 60, 2),
        (b':', in_day / 1000 % 60, 2),
        (b'.', in_day % 1000, 3),
    ] {
        out.push(before);
        number(value.unsigned_abs(), digits, out);
    }
    out.extend_from_slice(b"Z\"");
}

/// Year, month and day in the Gregorian calendar, from days since 1970-01-01.
fn date(days: i64) -> (i64, i64, i64) {
    /// Days in 400 years.
    const ERA: i64 = 146_097;
    // Years begin in March here, so that the leap day is the last of its year.
    let days = days + 719_468; // since 0000-03-01
    let (era, day) = (days.div_euclid(ERA), days.rem_euclid(ERA));
    let year = (day - day / 1460 + day / 36_524 - day / (ERA - 1)) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153; // from 0 = March
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

/// Appends a decimal number with at least `digits` digits.
fn number(value: u64, digits: usize, out: &mut Vec<u8>) {
    let mut reversed = [b'0'; 20];
    let (mut rest, mut length) = (value, 0);
    for place in &mut reversed {
        if rest == 0 && length >= digits {
            break;
        }
        *place = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        length += 1;
    }
    out.extend(reversed.iter().take(length).rev());
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::change::{Column, Commit, Origin, Relation};
    use crate::lsn::Lsn;

    const MAX: usize = 1024 * 1024;

    fn column(name: &str, type_name: &str, kind: Type, in_primary_key: bool) -> Column {
        Column {
            name: name.into(),
            attnum: None,
            type_oid: 0,
            type_name: type_name.into(),
            kind,
            in_identity: in_primary_key,
            in_primary_key,
        }
    }

    /// `todos (id int8 primary key, "ti""tle" text, done bool)`.
    fn todos(replica_identity: ReplicaIdentity) -> Arc<Relation> {
        let mut columns = [
            column("id", "int8", Type::Integer, true),
            column("ti\"tle", "text", Type::Text, false),
            column("done", "bool", Type::Bool, false),
        ];
        if replica_identity == ReplicaIdentity::Full {
            for column in &mut columns {
                column.in_identity = true;
            }
        }
        Arc::new(Relation {
            oid: 1,
            schema: "public".into(),
            table: "todos".into(),
            replica_identity,
            columns: columns.into(),
        })
    }

    fn tuple(values: [Option<&str>; 3]) -> Tuple {
        Tuple::copied(values.map(|value| match value {
            None => Value::Null,
            Some("<unchanged>") => Value::Unchanged,
            Some(text) => Value::Text(text.as_bytes()),
        }))
    }

    fn change(
        relation: Arc<Relation>,
        operation: Operation,
        record: Option<[Option<&str>; 3]>,
        old: Option<(OldImage, [Option<&str>; 3])>,
    ) -> Change {
        Change {
            operation,
            relation,
            record: record.map(tuple),
            old_record: old.map(|(image, values)| (image, tuple(values))),
            commit: Commit {
                xid: 7,
                lsn: Lsn::new(16),
                time: UNIX_EPOCH + Duration::from_micros(1_787_307_072_345_999),
            },
            ordinal: 0,
            origin: None,
        }
    }

    fn shown(change: &Change, old: OldColumns) -> String {
        shown_as(change, change.operation, &ColumnSet::all(3), old, MAX)
    }

    fn shown_as(
        change: &Change,
        operation: Operation,
        columns: &ColumnSet,
        old: OldColumns,
        record_bytes_max: usize,
    ) -> String {
        let mut out = Vec::new();
        let epoch = Epoch::default();
        render(&RowEvent { change, operation, columns, old, record_bytes_max, epoch }, &mut out);
        serde_json::from_slice::<serde_json::Value>(&out).unwrap();
        let event = String::from_utf8(out).unwrap();
        // The same for all of them.
        let (event, cursor) = event.rsplit_once(",\"cursor\":").unwrap();
        assert_eq!(cursor, "\"0000000000000010-00000000-00000000\"}");
        format!("{event}}}")
    }

    /// From `"record"` or `"old_record"` on.
    fn rows(event: &str) -> &str {
        &event[event.find("],").unwrap() + 2..]
    }

    #[test]
    fn an_insert_is_shown_whole() {
        let change = change(
            todos(ReplicaIdentity::Default),
            Operation::Insert,
            Some([Some("1"), Some("a \"b\""), None]),
            None,
        );
        assert_eq!(
            shown(&change, OldColumns::All),
            concat!(
                r#"{"schema":"public","table":"todos","type":"INSERT","#,
                r#""commit_timestamp":"2026-08-21T10:11:12.345Z","#,
                r#""columns":[{"name":"id","type":"int8"},{"name":"ti\"tle","type":"text"},"#,
                r#"{"name":"done","type":"bool"}],"#,
                r#""record":{"id":1,"ti\"tle":"a \"b\"","done":null},"errors":null}"#,
            )
        );
    }

    #[test]
    fn who_wrote_is_told_when_it_was_said() {
        let mut change = change(
            todos(ReplicaIdentity::Default),
            Operation::Insert,
            Some([Some("1"), None, None]),
            None,
        );
        let said = Origin { id: Some("7".into()), sub: Some("ann".into()), ..Origin::default() };
        change.origin = Some(Arc::new(said));
        let event = shown(&change, OldColumns::All);
        assert!(event.ends_with(r#","errors":null,"origin":{"sub":"ann"}}"#), "{event}");
        change.origin = Some(Arc::new(Origin { id: Some("7".into()), ..Origin::default() }));
        assert!(shown(&change, OldColumns::All).ends_with(r#","errors":null}"#));
    }

    #[test]
    fn only_the_columns_asked_for_are_shown() {
        let change = change(
            todos(ReplicaIdentity::Full),
            Operation::Update,
            Some([Some("1"), Some("b"), Some("t")]),
            Some((OldImage::Full, [Some("1"), Some("a"), Some("f")])),
        );
        let columns = [0, 2].into_iter().collect();
        let event = shown_as(&change, Operation::Update, &columns, OldColumns::All, MAX);
        assert!(!event.contains("tle"), "{event}");
        assert_eq!(
            rows(&event),
            r#""record":{"id":1,"done":true},"old_record":{"id":1,"done":false},"errors":null}"#
        );
        let none = ColumnSet::new();
        let event = shown_as(&change, Operation::Update, &none, OldColumns::All, MAX);
        assert!(event.ends_with(r#""columns":[],"record":{},"old_record":{},"errors":null}"#));
    }

    #[test]
    fn an_update_that_keeps_its_key_repeats_it_as_the_old_row() {
        let change = change(
            todos(ReplicaIdentity::Default),
            Operation::Update,
            Some([Some("1"), Some("b"), Some("t")]),
            None,
        );
        for old in [OldColumns::All, OldColumns::Key] {
            assert!(shown(&change, old).ends_with(r#","old_record":{"id":1},"errors":null}"#));
        }
        assert!(shown(&change, OldColumns::None).ends_with(r#","old_record":{},"errors":null}"#));
        assert!(keeps_key(&change));
    }

    #[test]
    fn an_update_of_the_key_shows_the_old_one() {
        let change = change(
            todos(ReplicaIdentity::Default),
            Operation::Update,
            Some([Some("2"), Some("b"), Some("t")]),
            Some((OldImage::Key, [Some("1"), None, None])),
        );
        for old in [OldColumns::All, OldColumns::Key] {
            assert!(shown(&change, old).ends_with(r#","old_record":{"id":1},"errors":null}"#));
        }
        assert!(shown(&change, OldColumns::None).ends_with(r#","old_record":{},"errors":null}"#));
        assert!(!keeps_key(&change));
    }

    #[test]
    fn a_full_old_row_is_shown_as_far_as_allowed() {
        let change = change(
            todos(ReplicaIdentity::Full),
            Operation::Update,
            Some([Some("1"), Some("b"), Some("t")]),
            Some((OldImage::Full, [Some("1"), Some("a"), None])),
        );
        assert!(
            shown(&change, OldColumns::All)
                .ends_with(r#","old_record":{"id":1,"ti\"tle":"a","done":null},"errors":null}"#)
        );
        assert!(
            shown(&change, OldColumns::Key).ends_with(r#","old_record":{"id":1},"errors":null}"#)
        );
        assert!(keeps_key(&change));
    }

    #[test]
    fn without_its_full_old_row_nothing_is_said_of_the_old_one() {
        let change = change(
            todos(ReplicaIdentity::Full),
            Operation::Update,
            Some([Some("2"), Some("b"), Some("t")]),
            None,
        );
        for old in [OldColumns::All, OldColumns::Key] {
            assert!(shown(&change, old).ends_with(r#","old_record":{},"errors":null}"#));
        }
        assert!(!keeps_key(&change));
    }

    #[test]
    fn a_delete_has_no_record() {
        let by_key = change(
            todos(ReplicaIdentity::Default),
            Operation::Delete,
            None,
            Some((OldImage::Key, [Some("1"), None, None])),
        );
        let whole = change(
            todos(ReplicaIdentity::Full),
            Operation::Delete,
            None,
            Some((OldImage::Full, [Some("1"), Some("a"), None])),
        );
        let key = r#""old_record":{"id":1},"errors":null}"#;
        assert_eq!(rows(&shown(&by_key, OldColumns::All)), key);
        assert_eq!(rows(&shown(&by_key, OldColumns::Key)), key);
        assert_eq!(rows(&shown(&whole, OldColumns::Key)), key);
        assert_eq!(
            rows(&shown(&whole, OldColumns::All)),
            r#""old_record":{"id":1,"ti\"tle":"a","done":null},"errors":null}"#
        );
    }

    #[test]
    fn an_update_out_of_sight_is_a_delete_of_the_old_key() {
        let whole = change(
            todos(ReplicaIdentity::Full),
            Operation::Update,
            Some([Some("2"), Some("secret"), Some("t")]),
            Some((OldImage::Full, [Some("1"), Some("a"), None])),
        );
        let event = shown_as(&whole, Operation::Delete, &ColumnSet::all(3), OldColumns::Key, MAX);
        assert!(event.contains(r#""type":"DELETE""#));
        assert_eq!(rows(&event), r#""old_record":{"id":1},"errors":null}"#);
    }

    #[test]
    fn an_identity_index_shows_its_columns_and_never_a_key_it_does_not_hold() {
        let mut relation = (*todos(ReplicaIdentity::Index)).clone();
        relation.columns[0].in_identity = false;
        relation.columns[1].in_identity = true;
        let change = change(
            Arc::new(relation),
            Operation::Delete,
            None,
            Some((OldImage::Key, [None, Some("a"), None])),
        );
        assert_eq!(
            rows(&shown(&change, OldColumns::All)),
            r#""old_record":{"ti\"tle":"a"},"errors":null}"#
        );
        assert_eq!(rows(&shown(&change, OldColumns::Key)), r#""old_record":{},"errors":null}"#);
        assert!(!keeps_key(&change));
    }

    #[test]
    fn an_unchanged_value_is_absent_or_the_old_one_but_never_null() {
        let values = [Some("1"), Some("<unchanged>"), Some("t")];
        let default =
            change(todos(ReplicaIdentity::Default), Operation::Update, Some(values), None);
        assert!(
            rows(&shown(&default, OldColumns::All)).starts_with(r#""record":{"id":1,"done":true}"#)
        );
        let full = change(
            todos(ReplicaIdentity::Full),
            Operation::Update,
            Some(values),
            Some((OldImage::Full, [Some("1"), Some("large"), None])),
        );
        assert!(
            rows(&shown(&full, OldColumns::Key))
                .starts_with(r#""record":{"id":1,"ti\"tle":"large","done":true}"#)
        );
    }

    #[test]
    fn an_image_shorter_than_its_relation_is_not_filled_with_nulls() {
        let mut change = change(
            todos(ReplicaIdentity::Full),
            Operation::Update,
            Some([None; 3]),
            Some((OldImage::Full, [Some("1"), Some("a"), Some("t")])),
        );
        change.record = Some(Tuple::copied([Value::Text(b"1")]));
        let event = shown(&change, OldColumns::Key);
        assert_eq!(rows(&event), r#""record":{"id":1},"old_record":{"id":1},"errors":null}"#);
    }

    #[test]
    fn a_row_that_is_too_large_loses_its_long_values() {
        let long = "x".repeat(65);
        let escaped = "\"".repeat(40); // 40 bytes of text, 82 of JSON
        let short = "x".repeat(62);
        let error = r#""errors":["Error 413: Payload Too Large"]}"#;
        for (title, kept) in [(&long, false), (&escaped, false), (&short, true)] {
            let change = change(
                todos(ReplicaIdentity::Full),
                Operation::Update,
                Some([Some("1"), Some(title), Some("t")]),
                Some((OldImage::Full, [Some("1"), Some(title), Some("t")])),
            );
            let all = ColumnSet::all(3);
            let bytes = 2 * (title.len() + 2);
            let event = shown_as(&change, Operation::Update, &all, OldColumns::All, bytes - 1);
            assert!(event.ends_with(error), "{event}");
            assert_eq!(event.matches(r#""ti\"tle":"#).count(), if kept { 2 } else { 0 });
            assert_eq!(event.matches(r#""id":1,"#).count(), 2);
            let event = shown_as(&change, Operation::Update, &all, OldColumns::All, bytes);
            assert!(event.ends_with(r#""errors":null}"#), "{event}");
            // Those who do not see the large column are not told how large it is.
            let columns = [0, 2].into_iter().collect();
            let event = shown_as(&change, Operation::Update, &columns, OldColumns::All, 4);
            assert!(event.ends_with(r#""errors":null}"#), "{event}");
        }
    }

    #[test]
    fn an_unchanged_value_counts_where_it_is_shown() {
        let large = "x".repeat(100);
        let change = change(
            todos(ReplicaIdentity::Full),
            Operation::Update,
            Some([Some("1"), Some("<unchanged>"), Some("t")]),
            Some((OldImage::Full, [Some("1"), Some(&large), Some("t")])),
        );
        let all = ColumnSet::all(3);
        let event = shown_as(&change, Operation::Update, &all, OldColumns::All, 203);
        assert!(event.contains("413"));
        let event = shown_as(&change, Operation::Update, &all, OldColumns::All, 204);
        assert!(!event.contains("413"));
    }

    #[test]
    fn an_error_says_nothing_about_the_row() {
        let change = change(
            todos(ReplicaIdentity::Default),
            Operation::Update,
            Some([Some("1"), Some("b"), Some("t")]),
            None,
        );
        let mut out = Vec::new();
        render_error(&change, Epoch::default(), "Error 401: Unauthorized", &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            concat!(
                r#"{"schema":"public","table":"todos","type":"UPDATE","commit_timestamp":null,"#,
                r#""columns":[],"record":{},"old_record":{},"errors":["Error 401: Unauthorized"],"#,
                r#""cursor":"0000000000000010-00000000-00000000"}"#,
            )
        );
    }

    #[test]
    fn commit_times_are_utc_with_three_digits() {
        let check = |seconds: i64, nanos: u32, text: &str| {
            let distance = Duration::from_secs(seconds.unsigned_abs());
            let time = if seconds < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance };
            let mut out = Vec::new();
            timestamp(time + Duration::from_nanos(u64::from(nanos)), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), format!("\"{text}\""));
        };
        check(0, 0, "1970-01-01T00:00:00.000Z");
        check(951_782_400, 999_999_999, "2000-02-29T00:00:00.999Z");
        check(951_868_799, 1_000_000, "2000-02-29T23:59:59.001Z");
        check(4_107_542_400, 0, "2100-03-01T00:00:00.000Z");
        check(-1, 999_999_999, "1969-12-31T23:59:59.999Z");
        check(-62_135_596_800, 0, "0001-01-01T00:00:00.000Z");
        check(253_402_300_800, 0, "10000-01-01T00:00:00.000Z");
    }

    #[test]
    fn dates_follow_each_other_through_four_centuries() {
        let lengths = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let (mut year, mut month, mut day) = (1899, 1, 1);
        for number in -25_932..121_000 {
            assert_eq!(date(number), (year, month, day));
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length =
                if month == 2 && leap { 29 } else { lengths[usize::try_from(month).unwrap() - 1] };
            day += 1;
            if day > length {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
    }

    fn image() -> impl Strategy<Value = Vec<Option<Vec<u8>>>> {
        prop::collection::vec(
            prop::option::of(prop_oneof![
                prop::collection::vec(any::<u8>(), 0..80),
                Just(b"42".to_vec()),
                Just(b"<unchanged>".to_vec()),
            ]),
            0..5,
        )
    }

    proptest! {
        #[test]
        fn any_change_is_one_json_object_of_the_shown_columns(
            operation in prop_oneof![
                Just(Operation::Insert), Just(Operation::Update), Just(Operation::Delete)
            ],
            record in prop::option::of(image()),
            old in prop::option::of((any::<bool>(), image())),
            identity in prop_oneof![
                Just(ReplicaIdentity::Default), Just(ReplicaIdentity::Nothing),
                Just(ReplicaIdentity::Full), Just(ReplicaIdentity::Index)
            ],
            columns in prop::collection::vec(0..5_usize, 0..4),
            shown_old in prop_oneof![
                Just(OldColumns::All), Just(OldColumns::Key), Just(OldColumns::None)
            ],
            record_bytes_max in 0..300_usize,
        ) {
            let tuple = |values: &Vec<Option<Vec<u8>>>| {
                Tuple::copied(values.iter().map(|value| match value.as_deref() {
                    None => Value::Null,
                    Some(b"<unchanged>") => Value::Unchanged,
                    Some(text) => Value::Text(text),
                }))
            };
            let mut change = change(todos(identity), operation, None, None);
            change.record = record.as_ref().map(tuple);
            change.old_record = old.as_ref().map(|(full, values)| {
                (if *full { OldImage::Full } else { OldImage::Key }, tuple(values))
            });
            let columns: ColumnSet = columns.into_iter().collect();
            let event = shown_as(&change, operation, &columns, shown_old, record_bytes_max);
            let event: serde_json::Value = serde_json::from_str(&event).unwrap();
            let allowed: Vec<&str> = (0..).zip(&change.relation.columns)
                .filter(|(place, _)| columns.contains(*place))
                .map(|(_, column)| &*column.name)
                .collect();
            for image in ["record", "old_record"] {
                let shown = event.get(image).and_then(|image| image.as_object());
                for name in shown.into_iter().flat_map(|image| image.keys()) {
                    prop_assert!(allowed.contains(&&**name));
                }
            }
            if shown_old == OldColumns::None && operation != Operation::Insert {
                prop_assert!(event["old_record"].as_object().unwrap().is_empty());
            }
            let _ = keeps_key(&change);
        }
    }
}
