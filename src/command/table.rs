//! A declared row's operation and a payload → one statement. Pure.
//!
//! In:     the declaration; the members of what came.
//! Out:    a statement whose one row is an answer: the row that was written, as JSON; and the row's names as
//!         payloads have them.
//! Never:  a column that is not declared; a value in the text: Postgres reads it as the column's type.

use serde_json::value::{RawValue, to_raw_value};

use super::Refused;
use super::members::{Members, Ordered};
use crate::profile::{Operation, TableWrite};
use crate::rest::sql::{Sql, Statement};

/// What every answer has behind its body.
const ONE: &str = "select pg_catalog.string_agg(d.row::text, ','), pg_catalog.count(*), \
     null::bigint, null::bigint, null::text from done as d";

/// What a command does, with what came for it.
///
/// # Errors
/// What is missing from the payload, or must not be in there.
pub(super) fn statement(
    write: &TableWrite,
    required: &[Box<str>],
    members: &Members<'_>,
) -> Result<Statement, Refused> {
    let version = write.version.as_ref().map(|(_, member)| &**member);
    for column in &write.others {
        let name = write.key_case.apply(column);
        if members.get(&name).is_some() && !required.contains(&name) && version != Some(&name) {
            return Err(Refused::invalid(format!("{name} cannot be set")));
        }
    }
    let name = |column: &str| (column.to_owned(), members.get(&write.key_case.apply(column)));
    let given = write.columns.iter().map(|column| name(column));
    let set: Vec<(String, &RawValue)> =
        given.filter_map(|(column, value)| Some((column, value?))).collect();
    let mut sql = Sql::new();
    match write.operation {
        Operation::Insert => {
            sql.push("with done as (insert into ");
            target(&mut sql, write);
            if set.is_empty() {
                sql.push(" default values");
            } else {
                let columns = |sql: &mut Sql, of: &str| {
                    for (place, (column, _)) in set.iter().enumerate() {
                        sql.push(if place == 0 { "" } else { ", " }).push(of).name(column);
                    }
                };
                sql.push(" (");
                columns(&mut sql, "");
                sql.push(") select ");
                columns(&mut sql, "g.");
                sql.push(" from ");
                record(&mut sql, write, &set);
                sql.push(" as g");
            }
        }
        Operation::Update => {
            if set.is_empty() {
                return Err(Refused::invalid("Nothing is to be changed"));
            }
            check_key(write, members)?;
            sql.push("with done as (update ");
            target(&mut sql, write);
            for (place, (column, _)) in set.iter().enumerate() {
                sql.push(if place == 0 { " set " } else { ", " })
                    .name(column)
                    .push(" = g.")
                    .name(column);
            }
            sql.push(" from ");
            record(&mut sql, write, &set);
            sql.push(" as g, ");
            found(&mut sql, write, members);
            versioned(&mut sql, write, members, " and ");
        }
        Operation::Delete => {
            check_key(write, members)?;
            sql.push("with done as (delete from ");
            target(&mut sql, write);
            sql.push(" using ");
            found(&mut sql, write, members);
            versioned(&mut sql, write, members, " and ");
        }
    }
    sql.push(" returning pg_catalog.to_jsonb(t.*) as row) ").push(ONE);
    Ok(sql.finish())
}

/// The row that was to be written, if the caller sees it; in the total whether it is of the version
/// that he has seen.
pub(super) fn look(write: &TableWrite, members: &Members<'_>) -> Statement {
    let mut sql = Sql::new();
    sql.push(
        "select pg_catalog.string_agg(pg_catalog.to_jsonb(t.*)::text, ','), pg_catalog.count(*), ",
    );
    sql.push("pg_catalog.count(*) filter (where true");
    versioned(&mut sql, write, members, " and ");
    sql.push("), null::bigint, null::text from ");
    target(&mut sql, write);
    sql.push(", ");
    found(&mut sql, write, members);
    sql.finish()
}

fn target(sql: &mut Sql, write: &TableWrite) {
    sql.qualified(&write.relation.schema, &write.relation.name).push(" as t");
}

/// Values as a row of the table.
fn record(sql: &mut Sql, write: &TableWrite, values: &[(String, &RawValue)]) {
    let values = Ordered(values.to_vec());
    let json = serde_json::to_string(&values).expect("it is made of JSON");
    sql.push("pg_catalog.jsonb_populate_record(null::");
    sql.qualified(&write.relation.schema, &write.relation.name).push(", ");
    sql.value(json).push("::pg_catalog.jsonb)");
}

/// The key and the version that came, as `k`, and the condition on the key.
fn found(sql: &mut Sql, write: &TableWrite, members: &Members<'_>) {
    let mut values: Vec<(String, &RawValue)> = Vec::new();
    for column in &write.key {
        if let Some(value) = members.get(&write.key_case.apply(column)) {
            values.push((column.to_string(), value));
        }
    }
    if let Some((column, member)) = &write.version
        && !write.key.contains(column)
        && let Some(value) = members.get(member)
    {
        values.push((column.to_string(), value));
    }
    record(sql, write, &values);
    sql.push(" as k where ");
    for (place, column) in write.key.iter().enumerate() {
        sql.push(if place == 0 { "t." } else { " and t." }).name(column).push(" = k.").name(column);
    }
}

/// The condition on the version, where the payload has one.
fn versioned(sql: &mut Sql, write: &TableWrite, members: &Members<'_>, before: &str) {
    if let Some((column, member)) = &write.version
        && members.get(member).is_some()
    {
        sql.push(before).push("t.").name(column).push(" is not distinct from k.").name(column);
    }
}

fn check_key(write: &TableWrite, members: &Members<'_>) -> Result<(), Refused> {
    for column in &write.key {
        let name = write.key_case.apply(column);
        if !members.has(&name) {
            return Err(Refused::invalid(format!("{name} is required")));
        }
    }
    Ok(())
}

/// A row's names as payloads have them.
pub(super) fn renamed(write: &TableWrite, row: String) -> String {
    let Ok(Ordered(members)) = serde_json::from_str(&row) else { return row };
    let named = |(name, value): (String, _)| (write.key_case.apply(&name).into_string(), value);
    let members = Ordered(members.into_iter().map(named).collect());
    to_raw_value(&members).map_or_else(|_| "null".into(), |row| row.get().to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::mapping::KeyCase;
    use crate::profile::Relation;

    fn table(operation: Operation) -> TableWrite {
        let names = |names: &[&str]| names.iter().map(|name| (*name).into()).collect();
        TableWrite {
            relation: Relation::parse(r#"app."t""x""#).unwrap(),
            operation,
            columns: names(&["step_id", "title"]),
            key: names(&["id"]),
            others: names(&["made_by", "map_id", "updated_at"]),
            key_case: KeyCase::Camel,
            version: Some(("updated_at".into(), "baseUpdatedAt".into())),
        }
    }

    fn made(operation: Operation, payload: &str) -> Result<Statement, String> {
        let payload = RawValue::from_string(payload.into()).unwrap();
        let members = Members::read(&payload).unwrap();
        let made = statement(&table(operation), &["mapId".into()], &members);
        made.map_err(|refused| refused.message.into_owned())
    }

    #[test]
    fn what_came_is_set_and_nothing_else() {
        let payload = r#"{"id":"i","stepId":1.50,"mapId":"m","baseUpdatedAt":"now","else":"'"}"#;
        let update = made(Operation::Update, payload).unwrap();
        assert!(
            update.text.contains(r#"update "app"."t""x" as t set "step_id" = g."step_id" from"#)
        );
        assert!(update.text.contains(r#"t."id" = k."id" and t."updated_at" is not distinct from"#));
        let parameters: Vec<_> = update.parameters.into_iter().flatten().collect();
        assert_eq!(parameters, [r#"{"step_id":1.50}"#, r#"{"id":"i","updated_at":"now"}"#]);
        let insert = made(Operation::Insert, r#"{"title":null}"#).unwrap();
        assert!(insert.text.contains(r#"("title") select g."title" from"#), "{}", insert.text);
        let insert = made(Operation::Insert, "{}").unwrap();
        assert!(insert.text.contains("default values"), "{}", insert.text);
        let delete = made(Operation::Delete, r#"{"id":1}"#).unwrap();
        assert!(delete.text.contains(r#"where t."id" = k."id" returning"#), "{}", delete.text);
    }

    #[test]
    fn what_is_missing_or_must_not_be_set_is_named() {
        for (operation, payload, expected) in [
            (Operation::Update, r#"{"title":"x"}"#, "id is required"),
            (Operation::Update, r#"{"id":null,"title":"x"}"#, "id is required"),
            (Operation::Update, r#"{"id":1}"#, "Nothing is to be changed"),
            (Operation::Update, r#"{"id":1,"title":"x","madeBy":"me"}"#, "madeBy cannot be set"),
            (Operation::Insert, r#"{"updatedAt":1}"#, "updatedAt cannot be set"),
            (Operation::Delete, "{}", "id is required"),
        ] {
            assert_eq!(made(operation, payload).unwrap_err(), expected, "{payload}");
        }
    }

    proptest! {
        /// Of whatever values, the text is the same, and parameters are JSON.
        #[test]
        fn no_value_is_in_the_text(
            members in proptest::collection::btree_map(
                "(id|title|stepId|mapId|baseUpdatedAt|x)", ".{0,9}", 0..6,
            ),
        ) {
            let raw = |members| {
                RawValue::from_string(serde_json::to_string(members).unwrap()).unwrap()
            };
            let same: BTreeMap<_, _> = members.keys().map(|name| (name, "v")).collect();
            let (payload, same) = (raw(&json!(members)), raw(&json!(same)));
            let (members, same) = (Members::read(&payload).unwrap(), Members::read(&same).unwrap());
            for operation in [Operation::Insert, Operation::Update, Operation::Delete] {
                let write = table(operation);
                let made = |members| statement(&write, &["mapId".into()], members).ok();
                let (ours, other) = (made(&members), made(&same));
                prop_assert_eq!(ours.is_some(), other.is_some());
                let ours = ours.into_iter().chain([look(&write, &members)]);
                for (one, two) in ours.zip(other.into_iter().chain([look(&write, &same)])) {
                    prop_assert_eq!(one.text, two.text);
                    for parameter in one.parameters.iter().flatten() {
                        prop_assert!(serde_json::from_slice::<serde_json::Value>(parameter).is_ok());
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_names_of_payloads() {
        let row = r#"{"step_id": 12345678901234567890.5, "title": null}"#.to_owned();
        let expected = r#"{"stepId":12345678901234567890.5,"title":null}"#;
        assert_eq!(renamed(&table(Operation::Insert), row), expected);
    }
}
