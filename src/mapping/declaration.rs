//! A declaration's JSON → checked rules.
//!
//! In:     what `walcast.map_table` and `walcast.map_event` wrote for one table.
//! Out:    a [`Declaration`]. Columns are names here: which place they have is the table's.
//! Never:  trust in who wrote it: whoever owns a table may write its declaration by hand.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value as Json;

use super::template::{ParseTemplateError, TEMPLATES_MAX, Template};

/// Rules of one table.
const RULES_MAX: usize = 64;

/// Columns, members of a payload, values of a condition: none is a list that anybody writes.
const LIST_MAX: usize = 1600;

/// Look-ups of one rule.
const LOOKUPS_MAX: usize = 8;

/// Bytes of an event's name.
pub(super) const EVENT_BYTES_MAX: usize = 255;

/// Names that mean something of their own to Socket.IO's clients and servers.
pub const RESERVED: [&str; 6] =
    ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"];

/// What a table's changes mean.
#[derive(Debug, PartialEq, Eq)]
pub struct Declaration {
    /// Which declaration this is, in `walcast.mappings`.
    pub id: i64,
    /// The table.
    pub relation: u32,
    /// How names of columns become names in payloads.
    pub(super) key_case: KeyCase,
    /// What payloads may show; none: every column that the log carries.
    pub(super) columns: Option<Box<[Box<str>]>>,
    /// Columns whose changes alone say nothing.
    pub(super) ignore: Box<[Box<str>]>,
    /// In the order in which they are told.
    pub rules: Box<[Rule]>,
}

/// Why a declaration is not used.
#[derive(Debug, thiserror::Error)]
pub enum DeclarationError {
    /// It is not the JSON of a declaration.
    #[error("it is not the JSON of a declaration")]
    Json(#[from] serde_json::Error),
    /// A topic.
    #[error("topic {0:?}: {1}")]
    Topic(String, ParseTemplateError),
    /// Anything else, in a sentence.
    #[error("{0}")]
    Rule(String),
}

/// How names of columns become names in payloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyCase {
    /// `step_id` → `stepId`.
    Camel,
    /// `stepId` → `step_id`.
    Snake,
    /// As they are.
    AsIs,
}

impl KeyCase {
    /// The name in payloads.
    pub fn apply(self, name: &str) -> Box<str> {
        let mut out = String::with_capacity(name.len() + 4);
        match self {
            Self::AsIs => out.push_str(name),
            Self::Camel => {
                // Underscores in front are part of the name.
                let bare = name.trim_start_matches('_');
                out.push_str(&name[..name.len() - bare.len()]);
                let mut upper = false;
                for c in bare.chars() {
                    match c {
                        '_' => upper = true,
                        c if upper => {
                            out.extend(c.to_uppercase());
                            upper = false;
                        }
                        c => out.push(c),
                    }
                }
            }
            Self::Snake => {
                for c in name.chars() {
                    if c.is_uppercase() {
                        if !out.is_empty() && !out.ends_with('_') {
                            out.push('_');
                        }
                        out.extend(c.to_lowercase());
                    } else {
                        out.push(c);
                    }
                }
            }
        }
        out.into()
    }
}

/// Which operations a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Operations {
    /// New rows, and rows that come into a topic.
    pub insert: bool,
    /// Rows that stay in a topic.
    pub update: bool,
    /// Rows that are gone, and rows that leave a topic.
    pub delete: bool,
}

/// One event of a table.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name.
    pub event: Arc<str>,
    /// When.
    pub on: Operations,
    /// For updates: only if one of these changed, which later rules then leave out.
    pub(super) update_of: Option<Box<[Box<str>]>>,
    /// For updates: only if nothing but these changed.
    pub(super) alone: bool,
    /// What the new row must have.
    pub(super) when_new: Box<[Condition]>,
    /// What the old row must have had.
    pub(super) when_old: Box<[Condition]>,
    /// Where it is told.
    pub topics: Box<[Template]>,
    /// What `$row` is; none: that of the declaration.
    pub(super) columns: Option<Box<[Box<str>]>>,
    /// What it says.
    pub(super) payload: Box<[Member]>,
    /// What is read for it in other tables.
    pub(super) lookups: Box<[Lookup]>,
    /// Rows of one transaction are one event, in a list of this name.
    pub(super) aggregate: Option<Box<str>>,
    /// Whoever made the change over a connection of ours is not told there.
    pub exclude_origin: bool,
    /// It is told in public rooms, not in private ones.
    pub public: bool,
}

/// A column has one of these values.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) column: Box<str>,
    /// JSON, as the column's value is shown.
    pub(super) any_of: Box<[Json]>,
}

/// One part of a payload.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Member {
    /// The members of what this is, each under its own name.
    Spread(Source),
    /// The first of these that is not null.
    Set(Box<str>, Box<[Source]>),
}

/// Where a value comes from.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A column of the row: of the new one, or of the old one where there is no new one.
    Column(Box<str>),
    /// A column of the old row.
    Old(Box<str>),
    /// An object of the columns.
    Row,
    /// An object of the columns that changed.
    Changes,
    /// An object of the primary key.
    Key,
    /// Who made the change.
    Actor,
    /// What he calls it.
    Mutation,
    /// When it was committed.
    Time,
    /// `INSERT`, `UPDATE` or `DELETE`, as the room sees it.
    Operation,
    /// The table's name.
    Table,
    /// JSON.
    Constant(Box<str>),
    /// A column of what was looked up: which look-up, which of its columns.
    Looked(usize, usize),
}

/// A row of another table, by its key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Lookup {
    pub(super) name: Box<str>,
    /// The other table's OID. What is read is up to `walcast.look_up`.
    pub(super) relation: u32,
    /// The column of this table for each column of the key.
    pub(super) key: Box<[Box<str>]>,
    /// What is shown of it.
    pub(super) columns: Box<[Box<str>]>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default = "camel")]
    key_case: KeyCase,
    columns: Option<Vec<Box<str>>>,
    #[serde(default)]
    ignore: Vec<Box<str>>,
    #[serde(default)]
    topics: Vec<String>,
    #[serde(default)]
    public: bool,
    rules: Vec<WrittenRule>,
    /// What `walcast.map_table` was called with, for when it is called again.
    #[serde(default, rename = "settings")]
    _settings: Json,
}

const fn camel() -> KeyCase {
    KeyCase::Camel
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRule {
    event: String,
    on: Vec<WrittenOperation>,
    update_of: Option<Vec<Box<str>>>,
    #[serde(default)]
    alone: bool,
    #[serde(default)]
    when_new: BTreeMap<Box<str>, Json>,
    #[serde(default)]
    when_old: BTreeMap<Box<str>, Json>,
    topics: Option<Vec<String>>,
    columns: Option<Vec<Box<str>>>,
    payload: BTreeMap<Box<str>, Json>,
    #[serde(default)]
    lookup: BTreeMap<Box<str>, WrittenLookup>,
    aggregate: Option<Box<str>>,
    #[serde(default)]
    exclude_origin: bool,
    public: Option<bool>,
    /// Made by `walcast.map_table`.
    #[serde(default, rename = "default")]
    _default: bool,
    /// What it is called when it is declared again.
    #[serde(default, rename = "name")]
    _name: String,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum WrittenOperation {
    Insert,
    Update,
    Delete,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenLookup {
    relation: u32,
    /// Column of the other table → column of this one.
    on: BTreeMap<Box<str>, Box<str>>,
}

impl Declaration {
    /// From its JSON.
    ///
    /// # Errors
    /// What is wrong with it: it is not to be used.
    pub fn parse(id: i64, relation: u32, json: &str) -> Result<Self, DeclarationError> {
        let written: Written = serde_json::from_str(json)?;
        let Written { key_case, columns, ignore, topics, public, rules, _settings } = written;
        if rules.len() > RULES_MAX {
            return Err(rule(format!("a table has at most {RULES_MAX} events")));
        }
        let rules: Result<_, _> =
            rules.into_iter().map(|rule| Rule::check(rule, &topics, public)).collect();
        let columns = columns.map(Into::into);
        Ok(Self { id, relation, key_case, columns, ignore: ignore.into(), rules: rules? })
    }

    /// Whether rows of one transaction are gathered for one event.
    pub fn gathers(&self) -> bool {
        self.rules.iter().any(|rule| rule.aggregate.is_some())
    }
}

/// Why a name cannot be that of an event; none: it can.
pub fn event_name_problem(event: &str) -> Option<&'static str> {
    if event.is_empty() || event.len() > EVENT_BYTES_MAX || event.chars().any(char::is_control) {
        Some("its name has 1 to 255 bytes, and no control character")
    } else if RESERVED.contains(&event) {
        Some("clients keep this name for themselves")
    } else {
        None
    }
}

fn rule(text: impl Into<String>) -> DeclarationError {
    DeclarationError::Rule(text.into())
}

impl Rule {
    fn check(
        written: WrittenRule,
        topics: &[String],
        public: bool,
    ) -> Result<Self, DeclarationError> {
        let event = written.event;
        let of = |problem: &str| rule(format!("event {event:?}: {problem}"));
        if let Some(problem) = event_name_problem(&event) {
            return Err(of(problem));
        }
        let topics = written.topics.as_deref().unwrap_or(topics);
        if topics.is_empty() || topics.len() > TEMPLATES_MAX {
            return Err(of("it needs a topic, and has at most 8"));
        }
        let parse = |text: &String| {
            Template::parse(text).map_err(|error| DeclarationError::Topic(text.clone(), error))
        };
        let topics: Box<[Template]> = topics.iter().map(parse).collect::<Result<_, _>>()?;
        let has = |operation| written.on.contains(&operation);
        let on = Operations {
            insert: has(WrittenOperation::Insert),
            update: has(WrittenOperation::Update),
            delete: has(WrittenOperation::Delete),
        };
        if on == Operations::default() {
            return Err(of("it is about no operation"));
        }
        if written.payload.len() > LIST_MAX || written.lookup.len() > LOOKUPS_MAX {
            return Err(of("it says too much"));
        }
        let mut lookups: Vec<Lookup> = Vec::new();
        for (name, lookup) in written.lookup {
            if lookup.on.is_empty() {
                return Err(of("a look-up needs a key"));
            }
            let key = lookup.on.into_values().collect();
            let (relation, columns) = (lookup.relation, Box::default());
            lookups.push(Lookup { name, relation, key, columns });
        }
        let mut payload = Vec::new();
        for (name, source) in written.payload {
            if &*name == "..." {
                for source in sources(source, &mut lookups).map_err(|text| of(&text))? {
                    payload.push(Member::Spread(source));
                }
            } else {
                let sources = sources(source, &mut lookups).map_err(|text| of(&text))?;
                payload.push(Member::Set(name, sources));
            }
        }
        let spreads = |member: &Member| match member {
            Member::Spread(source) => {
                matches!(source, Source::Row | Source::Changes | Source::Key | Source::Column(_))
            }
            Member::Set(..) => true,
        };
        if !payload.iter().all(spreads) {
            return Err(of("\"...\" takes $row, $changes, $key and columns"));
        }
        if written.aggregate.is_some() && !lookups.is_empty() {
            return Err(of("what is gathered is not looked up"));
        }
        Ok(Self {
            on,
            update_of: written.update_of.map(Into::into),
            alone: written.alone,
            when_new: conditions(written.when_new),
            when_old: conditions(written.when_old),
            topics,
            columns: written.columns.map(Into::into),
            payload: payload.into(),
            lookups: lookups.into(),
            aggregate: written.aggregate,
            exclude_origin: written.exclude_origin,
            public: written.public.unwrap_or(public),
            event: event.into(),
        })
    }
}

fn conditions(written: BTreeMap<Box<str>, Json>) -> Box<[Condition]> {
    let condition = |(column, value)| {
        let any_of = match value {
            Json::Array(values) => values.into(),
            value @ (Json::Null
            | Json::Bool(_)
            | Json::Number(_)
            | Json::String(_)
            | Json::Object(_)) => [value].into(),
        };
        Condition { column, any_of }
    };
    written.into_iter().map(condition).collect()
}

/// What a member of a payload is made of.
fn sources(written: Json, lookups: &mut [Lookup]) -> Result<Box<[Source]>, String> {
    match written {
        Json::Array(several) if several.is_empty() || several.len() > LIST_MAX => {
            Err("a list in a payload has at least one source".into())
        }
        Json::Array(several) => several.into_iter().map(|one| source(one, lookups)).collect(),
        one
        @ (Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Object(_)) => {
            Ok([source(one, lookups)?].into())
        }
    }
}

fn source(written: Json, lookups: &mut [Lookup]) -> Result<Source, String> {
    let text = match written {
        Json::String(text) => text,
        Json::Object(object) => {
            let mut members = object.into_iter();
            return match (members.next(), members.next()) {
                (Some((name, value)), None) if name == "value" => {
                    Ok(Source::Constant(value.to_string().into()))
                }
                _ => Err("an object in a payload is {\"value\": …}".into()),
            };
        }
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::Array(_) => {
            return Err("a source is text, or {\"value\": …}".into());
        }
    };
    Ok(match &*text {
        "$row" => Source::Row,
        "$changes" => Source::Changes,
        "$key" => Source::Key,
        "$actor" => Source::Actor,
        "$mutation" => Source::Mutation,
        "$time" => Source::Time,
        "$operation" => Source::Operation,
        "$table" => Source::Table,
        unknown if unknown.starts_with('$') => {
            return Err(format!("{unknown} is no source"));
        }
        column => {
            if let Some((name, column)) = column.split_once('.') {
                if let Some(place) = lookups.iter().position(|lookup| *lookup.name == *name) {
                    let lookup = &mut lookups[place];
                    let known = lookup.columns.iter().position(|known| **known == *column);
                    let number = known.unwrap_or_else(|| {
                        let mut columns = std::mem::take(&mut lookup.columns).into_vec();
                        columns.push(column.into());
                        lookup.columns = columns.into();
                        lookup.columns.len() - 1
                    });
                    return Ok(Source::Looked(place, number));
                }
                if name == "old" {
                    return Ok(Source::Old(column.into()));
                }
                if name == "new" {
                    return Ok(Source::Column(column.into()));
                }
            }
            Source::Column(column.into())
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(declaration: &Json) -> Result<Declaration, DeclarationError> {
        Declaration::parse(7, 10, &declaration.to_string())
    }

    fn with_rule(rule: &Json) -> Result<Declaration, DeclarationError> {
        parse(&json!({ "topics": ["map:{map_id}"], "rules": [rule] }))
    }

    #[test]
    fn names_take_their_case() {
        for (case, name, expected) in [
            (KeyCase::Camel, "step_id", "stepId"),
            (KeyCase::Camel, "_a__b_c_", "_aBC"),
            (KeyCase::Camel, "stepId", "stepId"),
            (KeyCase::Snake, "stepId", "step_id"),
            (KeyCase::Snake, "Step_Id", "step_id"),
            (KeyCase::AsIs, "Step_Id", "Step_Id"),
        ] {
            assert_eq!(&*case.apply(name), expected, "{case:?} {name}");
        }
    }

    #[test]
    fn a_rule_takes_what_the_table_has_unless_it_says_otherwise() {
        let rule = json!({
            "event": "story.moved", "on": ["update"], "update_of": ["step_id"],
            "payload": {
                "...": ["$key", "$changes"], "by": ["$actor", "updated_by"],
                "was": "old.step_id", "author": "who.name", "again": "who.name",
                "none": { "value": null },
            },
            "lookup": { "who": { "relation": 20, "on": { "id": "author_id" } } },
        });
        let declaration = with_rule(&rule).unwrap();
        let rule = &declaration.rules[0];
        assert_eq!(rule.topics[0].as_str(), "map:{map_id}");
        assert!(!rule.public && !rule.exclude_origin && !declaration.gathers());
        assert_eq!(*rule.lookups[0].columns, ["name".into()]);
        let by = [Source::Actor, Source::Column("updated_by".into())];
        assert!(rule.payload.contains(&Member::Set("by".into(), by.into())));
        assert!(rule.payload.contains(&Member::Spread(Source::Changes)));
        let again = Member::Set("again".into(), [Source::Looked(0, 0)].into());
        assert!(rule.payload.contains(&again));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (rule, expected) in [
            (json!({ "event": "", "on": ["insert"], "payload": {} }), "255 bytes"),
            (json!({ "event": "connect", "on": ["insert"], "payload": {} }), "keep this name"),
            (json!({ "event": "e", "on": [], "payload": {} }), "no operation"),
            (json!({ "event": "e", "on": ["insert"], "payload": {}, "topics": [] }), "a topic"),
            (
                json!({ "event": "e", "on": ["insert"], "payload": {}, "topics": ["a{x}"] }),
                "separator",
            ),
            (json!({ "event": "e", "on": ["insert"], "payload": { "a": "$nobody" } }), "$nobody"),
            (json!({ "event": "e", "on": ["insert"], "payload": { "a": 1 } }), "is text"),
            (json!({ "event": "e", "on": ["insert"], "payload": { "a": [] } }), "at least one"),
            (json!({ "event": "e", "on": ["insert"], "payload": { "...": "$actor" } }), "takes"),
            (json!({ "event": "e", "on": ["truncate"], "payload": {} }), "not the JSON"),
            (json!({ "event": "e", "on": ["insert"], "payload": {}, "else": 1 }), "not the JSON"),
        ] {
            let error = with_rule(&rule).unwrap_err().to_string();
            assert!(error.contains(expected), "{rule} {error}");
        }
    }
}
