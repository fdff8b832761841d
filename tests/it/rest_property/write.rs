//! What is written: one choice, as a request and as SQL.

use serde_json::{Map, Value};

use super::dice::{Dice, encoded, literal, quoted};
use super::read::{self, Pairs};
use super::world::{Column, TABLES, Table};

/// A write.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) method: &'static str,
    pub(super) table: &'static Table,
    pub(super) pairs: Pairs,
    pub(super) body: Option<Value>,
    pub(super) prefer: Vec<&'static str>,
    /// Two columns: the rows as an array, and how many were affected.
    pub(super) sql: String,
    pub(super) is_returned: bool,
    /// The status of a success.
    pub(super) statuses: &'static [u16],
}

pub(super) fn any(dice: &mut Dice) -> Write {
    let tables: Vec<&'static Table> = TABLES.iter().filter(|table| table.is_written).collect();
    let table = *dice.of(&tables);
    let is_returned = dice.percent(60);
    let (mut pairs, returned) = if is_returned {
        read::written_rows(table, dice)
    } else {
        (Vec::new(), read::written_rows(table, dice).1)
    };
    let mut prefer = vec![if is_returned { "return=representation" } else { "return=minimal" }];
    let kind = dice.below(10);
    let (method, body, sql, statuses): (_, _, _, &[u16]) = match kind {
        0..=4 => {
            let (body, sql) = insert(table, &mut pairs, &mut prefer, dice);
            ("POST", Some(body), sql, &[200, 201])
        }
        5..=7 => {
            let (filters, rows) = read::only_filters(table, dice);
            pairs.extend(filters);
            let columns = some(table, dice);
            // A wrong value is noticed only where there is a row to change; a literal always is.
            dice.may_err = false;
            let (row, values) = row(&columns, false, dice);
            let sets: Vec<String> = columns
                .iter()
                .zip(values)
                .map(|((name, _), value)| format!("{} = {value}", quoted(name)))
                .collect();
            let (sets, conditions) = (sets.join(", "), rows.conditions());
            let sql = format!("update {} as t set {sets} where {conditions}", table.name);
            ("PATCH", Some(row), sql, if is_returned { &[200] } else { &[204] })
        }
        8 => {
            let (filters, rows) = read::only_filters(table, dice);
            pairs.extend(filters);
            let sql = format!("delete from {} as t where {}", table.name, rows.conditions());
            ("DELETE", None, sql, if is_returned { &[200] } else { &[204] })
        }
        _ => {
            let (body, sql) = put(table, &mut pairs, dice);
            ("PUT", Some(body), sql, if is_returned { &[200, 201] } else { &[204] })
        }
    };
    let sql = if is_returned {
        format!(
            "with w as ({sql} returning {}) {}",
            returning(table, &pairs),
            returned.of_written()
        )
    } else {
        // Nothing is returned, so that no right to read is needed.
        format!("with w as ({sql} returning 1) select '[]', count(*)::text from w")
    };
    Write { method, table, pairs, body, prefer, sql, is_returned, statuses }
}

/// The columns that the answer has.
fn returning(table: &Table, pairs: &Pairs) -> String {
    let select = pairs.iter().find(|(name, _)| name == "select").map(|(_, list)| list.as_str());
    let is_named = |column: &str| match select {
        None => true,
        Some(list) => list.split(',').any(|item| {
            let item =
                item.rsplit_once(':').filter(|_| !item.contains("::")).map_or(item, |it| it.1);
            let item = item
                .split_once(':')
                .map_or(item, |(_, rest)| if rest.starts_with(':') { item } else { rest });
            let item = item.split("->").next().unwrap_or(item).split("::").next().unwrap_or(item);
            item.trim_matches('"').replace("\\\"", "\"") == column
        }),
    };
    let columns = table.columns.iter().filter(|(name, _)| is_named(name));
    let columns: Vec<String> = columns.map(|(name, _)| quoted(name)).collect();
    if columns.is_empty() { "no_such".into() } else { columns.join(", ") }
}

/// Some of the columns; always the key.
fn some(table: &Table, dice: &mut Dice) -> Vec<Column> {
    let is_key = |name: &str| table.key.contains(&name);
    let mut columns: Vec<Column> = table
        .columns
        .iter()
        .filter(|(name, _)| !is_key(name) && dice.percent(55))
        .copied()
        .collect();
    if columns.is_empty() || dice.percent(5) {
        columns.extend(table.columns.iter().find(|(name, _)| is_key(name)));
    }
    columns
}

/// One object, and its values in SQL; some members are left out, if they may be.
fn row(columns: &[Column], may_miss: bool, dice: &mut Dice) -> (Value, Vec<String>) {
    let mut object = Map::new();
    let mut values = Vec::new();
    for (name, kind) in columns {
        if may_miss && dice.percent(30) {
            values.push("default".into());
            continue;
        }
        let (value, sql) = dice.json(*kind);
        object.insert((*name).to_owned(), value);
        values.push(sql);
    }
    (Value::Object(object), values)
}

fn insert(
    table: &'static Table,
    pairs: &mut Pairs,
    prefer: &mut Vec<&'static str>,
    dice: &mut Dice,
) -> (Value, String) {
    let mut columns = some(table, dice);
    columns.retain(|(name, _)| !table.key.contains(name));
    let keys: Vec<Column> =
        table.columns.iter().filter(|(name, _)| table.key.contains(name)).copied().collect();
    let is_merge = dice.percent(25);
    let is_ignore = !is_merge && dice.percent(15);
    // A column that no row has is not named, and takes no right to be written; in SQL it does.
    let misses = table.name != "guarded" && dice.percent(30);
    let count = 1 + dice.below(3);
    let (mut rows, mut values) = (Vec::new(), Vec::new());
    let all: Vec<Column> = keys.iter().chain(&columns).copied().collect();
    for _ in 0..count {
        let (mut key, mut line) = (Map::new(), Vec::new());
        for (name, _) in &keys {
            // Some are there already, most are not.
            let number =
                if dice.percent(35) { 1 + dice.below(6) } else { 1000 + dice.below(100_000) };
            let number = if keys.len() > 1 && number > 999 { 1 + dice.below(9) } else { number };
            key.insert((*name).to_owned(), number.into());
            line.push(number.to_string());
        }
        let (object, own) = row(&columns, misses, dice);
        key.extend(object.as_object().cloned().unwrap_or_default());
        line.extend(own);
        rows.push(Value::Object(key));
        values.push(format!("({})", line.join(", ")));
    }
    if misses {
        prefer.push("missing=default");
    }
    if misses || dice.percent(20) {
        let names: Vec<String> = all.iter().map(|(name, _)| in_list(name)).collect();
        pairs.push(("columns".into(), names.join(",")));
    }
    let names: Vec<String> = all.iter().map(|(name, _)| quoted(name)).collect();
    let mut sql = format!(
        "insert into {} as t ({}) values {}",
        table.name,
        names.join(", "),
        values.join(", ")
    );
    if is_merge || is_ignore {
        prefer.push(if is_merge {
            "resolution=merge-duplicates"
        } else {
            "resolution=ignore-duplicates"
        });
        let mut conflict: Vec<&str> = table.key.to_vec();
        if table.name == "tags" && dice.percent(40) {
            conflict = vec!["label"];
            pairs.push(("on_conflict".into(), "label".into()));
        }
        sql.extend([" on conflict (", &conflict.join(", "), ") do "]);
        if is_merge {
            let sets: Vec<String> =
                names.iter().map(|name| format!("{name} = excluded.{name}")).collect();
            sql.extend(["update set ", &sets.join(", ")]);
        } else {
            sql.push_str("nothing");
        }
    }
    let is_array = rows.len() > 1 || dice.percent(30);
    let body = if is_array { Value::Array(rows) } else { rows.remove(0) };
    (body, sql)
}

fn put(table: &'static Table, pairs: &mut Pairs, dice: &mut Dice) -> (Value, String) {
    let mut columns = some(table, dice);
    columns.retain(|(name, _)| !table.key.contains(name));
    let (mut object, mut values) = row(&columns, false, dice);
    let mut names: Vec<String> = columns.iter().map(|(name, _)| quoted(name)).collect();
    for name in table.key {
        let number = 1 + dice.below(12);
        object[*name] = number.into();
        pairs.push(((*name).to_owned(), format!("eq.{number}")));
        names.push(quoted(name));
        values.push(number.to_string());
    }
    let sets: Vec<String> = names.iter().map(|name| format!("{name} = excluded.{name}")).collect();
    let sql = format!(
        "insert into {} as t ({}) values ({}) on conflict ({}) do update set {}",
        table.name,
        names.join(", "),
        values.join(", "),
        table.key.join(", "),
        sets.join(", ")
    );
    (object, sql)
}

fn in_list(name: &str) -> String {
    format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""))
}

/// A call of `priced`: its URL's pairs or its body, and what stands for it in SQL.
pub(super) fn call(is_get: bool, dice: &mut Dice) -> (Pairs, Value, String) {
    let low = *dice.of(&["0", "10.5", "20"]);
    let high = dice.percent(60).then(|| *dice.of(&["12", "25", "1000"]));
    let mut pairs = Vec::new();
    let mut body = Map::new();
    let mut sql = format!("priced({}", literal(low));
    for (name, value) in [("low", Some(low)), ("high", high)] {
        let Some(value) = value else { continue };
        if is_get {
            pairs.push((name.to_owned(), value.to_owned()));
        } else {
            body.insert(name.to_owned(), value.into());
        }
    }
    if let Some(high) = high {
        sql.extend([", ", &literal(high)]);
    }
    sql.push(')');
    (pairs, Value::Object(body), sql)
}

/// The path of a relation.
pub(super) fn path(name: &str) -> String {
    format!("/{}", encoded(name))
}
