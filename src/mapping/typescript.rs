//! Declarations → the TypeScript types of their events.
//!
//! In:     declarations, and of each table the columns with their types.
//! Out:    one interface, from the name of an event to its payload.
//! Never:  a name or a literal that is not quoted.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Deserialize;

use super::declaration::{Declaration, Member, Rule, Source};
use super::template::Template;

/// A column as TypeScript has it.
#[derive(Debug, Clone, Deserialize)]
pub struct ColumnType {
    /// Name in the table.
    pub name: Box<str>,
    /// Type of its JSON.
    pub r#type: Box<str>,
    /// It may be null.
    pub nullable: bool,
    /// Part of the primary key.
    pub key: bool,
}

/// A mapped table.
#[derive(Debug)]
pub struct MappedTable {
    /// As people call it.
    pub name: String,
    /// What its changes mean.
    pub declaration: Declaration,
    /// Its columns.
    pub columns: Vec<ColumnType>,
}

/// An interface `Events`. `others`: the columns of tables that are looked up, by OID.
pub fn typescript(tables: &[MappedTable], others: &BTreeMap<u32, Vec<ColumnType>>) -> String {
    let mut events: BTreeMap<&str, (Vec<String>, Vec<String>)> = BTreeMap::new();
    for table in tables {
        for rule in &table.declaration.rules {
            let types = Types { table, rule, others };
            let topics: Vec<&str> = rule.topics.iter().map(Template::as_str).collect();
            let (wheres, payloads) = events.entry(&rule.event).or_default();
            let place = format!("{}, in {}", table.name, topics.join(", "));
            let payload = types.payload();
            for (list, one) in [(wheres, place), (payloads, payload)] {
                if !list.contains(&one) {
                    list.push(one);
                }
            }
        }
    }
    let mut out = String::from(
        "// Made by `walcast types` from what is declared in the database.\n\
         \n\
         /** Payloads by the names of their events. */\n\
         export interface Events {\n",
    );
    for (event, (places, payloads)) in events {
        // What a declaration says must not end the comment.
        let places = places.join("; ").replace("*/", "* /");
        let payload = payloads.join(" | ");
        writeln!(out, "  /** {places} */\n  {}: {payload};", quoted(event))
            .expect("memory takes every write");
    }
    out.push_str("}\n");
    out
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("text is always a JSON string")
}

struct Types<'a> {
    table: &'a MappedTable,
    rule: &'a Rule,
    others: &'a BTreeMap<u32, Vec<ColumnType>>,
}

/// Name, whether it may be absent, type.
type Property = (String, bool, String);

impl Types<'_> {
    fn payload(&self) -> String {
        let mut properties: Vec<Property> = Vec::new();
        let set = |member: &Member| match member {
            Member::Set(name, _) => Some(name.to_string()),
            Member::Spread(_) => None,
        };
        let named: Vec<String> = self.rule.payload.iter().filter_map(set).collect();
        for member in &self.rule.payload {
            match member {
                Member::Spread(source) => {
                    for property in self.columns(source) {
                        if named.contains(&property.0) {
                            continue;
                        }
                        match properties.iter_mut().find(|known| known.0 == property.0) {
                            Some(known) => known.1 &= property.1,
                            None => properties.push(property),
                        }
                    }
                }
                Member::Set(name, sources) => {
                    let types: Vec<(String, bool)> = sources.iter().map(|s| self.one(s)).collect();
                    let nullable = types.iter().all(|(_, nullable)| *nullable);
                    let mut union: Vec<String> = Vec::new();
                    for (one, _) in types {
                        if !union.contains(&one) && one != "null" {
                            union.push(one);
                        }
                    }
                    if nullable {
                        union.push("null".into());
                    }
                    // Who hears of a row for the first time is not told what it was.
                    let old = |source: &Source| matches!(source, Source::Old(_));
                    let absent = self.rule.on.insert && sources.iter().all(old);
                    properties.push((name.to_string(), absent, union.join(" | ")));
                }
            }
        }
        let row = object(&properties);
        match &self.rule.aggregate {
            Some(name) => object(&[(name.to_string(), false, format!("Array<{row}>"))]),
            None => row,
        }
    }

    fn property(&self, column: &ColumnType, absent: bool) -> Property {
        let name = self.table.declaration.key_case.apply(&column.name);
        (name.into(), absent, full(column))
    }

    fn selected(&self) -> impl Iterator<Item = &ColumnType> {
        let selected = self.rule.columns.as_ref().or(self.table.declaration.columns.as_ref());
        self.table.columns.iter().filter(move |column| {
            selected.is_none_or(|names| names.iter().any(|name| **name == *column.name))
        })
    }

    /// The properties that a source stands for.
    fn columns(&self, source: &Source) -> Vec<Property> {
        match source {
            Source::Row => self.selected().map(|column| self.property(column, false)).collect(),
            Source::Changes => {
                let ignore = &self.table.declaration.ignore;
                let counted =
                    |column: &&ColumnType| !ignore.iter().any(|name| **name == *column.name);
                let changed = self.selected().filter(counted);
                changed.map(|column| self.property(column, true)).collect()
            }
            Source::Key => {
                let key = self.table.columns.iter().filter(|column| column.key);
                key.map(|column| self.property(column, false)).collect()
            }
            Source::Column(name) => {
                let column = self.table.columns.iter().find(|column| column.name == *name);
                column.map(|column| self.property(column, false)).into_iter().collect()
            }
            Source::Old(_)
            | Source::Actor
            | Source::Mutation
            | Source::Time
            | Source::Operation
            | Source::Table
            | Source::Constant(_)
            | Source::Looked(..) => Vec::new(),
        }
    }

    /// A source's type without null, and whether it may be null.
    fn one(&self, source: &Source) -> (String, bool) {
        let unknown = || ("unknown".to_owned(), false);
        match source {
            Source::Column(name) | Source::Old(name) => {
                let column = self.table.columns.iter().find(|column| column.name == *name);
                column.map_or_else(unknown, |c| (c.r#type.to_string(), c.nullable))
            }
            Source::Row | Source::Changes | Source::Key => (object(&self.columns(source)), false),
            Source::Actor | Source::Mutation => ("string".into(), true),
            Source::Time => ("string".into(), false),
            Source::Operation => {
                let seen = [
                    (self.rule.on.insert, "\"INSERT\""),
                    (self.rule.on.update, "\"UPDATE\""),
                    (self.rule.on.delete, "\"DELETE\""),
                ];
                let seen: Vec<&str> =
                    seen.into_iter().filter(|(on, _)| *on).map(|(_, name)| name).collect();
                (seen.join(" | "), false)
            }
            Source::Table => (quoted(&self.table.name), false),
            Source::Constant(json) if &**json == "null" => ("null".into(), true),
            Source::Constant(json) => (json.to_string(), false),
            Source::Looked(lookup, column) => {
                let looked = self.rule.lookups.get(*lookup);
                let found = looked.and_then(|lookup| {
                    let name = lookup.columns.get(*column)?;
                    self.others.get(&lookup.relation)?.iter().find(|c| c.name == *name)
                });
                (found.map_or_else(|| "unknown".into(), |c| c.r#type.to_string()), true)
            }
        }
    }
}

fn full(column: &ColumnType) -> String {
    let null = if column.nullable { " | null" } else { "" };
    format!("{}{null}", column.r#type)
}

fn object(properties: &[Property]) -> String {
    let property = |(name, absent, kind): &Property| {
        format!("{}{}: {kind}", quoted(name), if *absent { "?" } else { "" })
    };
    let properties: Vec<String> = properties.iter().map(property).collect();
    if properties.is_empty() { "{}".into() } else { format!("{{ {} }}", properties.join("; ")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_has_the_type_of_its_payload() {
        let column = |name: &str, kind: &str, nullable, key| ColumnType {
            name: name.into(),
            r#type: kind.into(),
            nullable,
            key,
        };
        let declaration = json!({
            "topics": ["map:{map_id}"], "ignore": ["updated_by"], "rules": [
                {
                    "event": "story.updated", "on": ["update"],
                    "payload": { "...": ["$key", "$changes", "updated_by"], "was": "old.step_id" },
                },
                {
                    "event": "said \"so\"", "on": ["insert"], "aggregate": "all",
                    "payload": {
                        "by": ["$actor", "updated_by"], "none": { "value": null }, "at": "$time",
                        "what": "$operation",
                    },
                },
            ],
        });
        let table = MappedTable {
            name: "public.stories */".into(),
            declaration: Declaration::parse(1, 10, &declaration.to_string()).unwrap(),
            columns: vec![
                column("id", "number", false, true),
                column("step_id", "string", true, false),
                column("updated_by", "string", false, false),
            ],
        };
        let found = typescript(&[table], &BTreeMap::new());
        let expected = r#"export interface Events {
  /** public.stories * /, in map:{map_id} */
  "said \"so\"": { "all": Array<{ "at": string; "by": string; "none": null; "what": "INSERT" }> };
  /** public.stories * /, in map:{map_id} */
  "story.updated": { "id": number; "stepId"?: string | null; "updatedBy": string; "was": string | null };
}
"#;
        assert!(found.ends_with(expected), "{found}");
    }
}
