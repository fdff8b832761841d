//! One subscription's parameters → [`Subscription`].
//!
//! In:     an element of `config.postgres_changes`, or the legacy topic `schema:table:filter`.
//! Out:    which tables, operations and columns, under which conditions; a stable id.
//! Never:  IO; whether table and columns exist (`subscribe` finds that out).

use std::fmt::{self, Write as _};

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::filter::{self, Condition, INSPECT_ITEMS_MAX, Inspect, inspect};
use crate::change::Operation;

/// Bytes of a schema, table or column name. Postgres keeps 63 of them; builds with more are rare.
const NAME_BYTES_MAX: usize = 255;

/// Columns in `select`: as many as a table can have.
const SELECT_MAX: usize = 1600;

/// Levels and bytes of refused parameters that an error text repeats. Only the client that sent
/// them sees it.
const INSPECT_DEPTH_MAX: usize = 8;
const INSPECT_BYTES_MAX: usize = 4096;

/// A set of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Events(u8);

impl Events {
    /// Every operation.
    pub const ALL: Self = Self(0b111);

    /// Only `operation`.
    pub const fn only(operation: Operation) -> Self {
        match operation {
            Operation::Insert => Self(0b001),
            Operation::Update => Self(0b010),
            Operation::Delete => Self(0b100),
        }
    }

    /// `INSERT`, `UPDATE`, `DELETE` in any letter case; everything else means all.
    fn parse(event: Option<&Value>) -> Self {
        let event = event.and_then(Value::as_str).unwrap_or("*");
        [Operation::Insert, Operation::Update, Operation::Delete]
            .into_iter()
            .find(|operation| event.eq_ignore_ascii_case(operation.as_str()))
            .map_or(Self::ALL, Self::only)
    }

    /// Whether `operation` is one of them.
    pub const fn contains(self, operation: Operation) -> bool {
        self.0 & Self::only(operation).0 != 0
    }

    /// The name in parameters: `*`, `INSERT`, `UPDATE` or `DELETE`.
    pub const fn as_str(self) -> &'static str {
        match self.0 {
            0b001 => "INSERT",
            0b010 => "UPDATE",
            0b100 => "DELETE",
            _ => "*",
        }
    }
}

/// A schema or table name, or all of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Name {
    /// `*`.
    Any,
    /// Exactly this name.
    Is(Box<str>),
}

impl Name {
    fn parse(text: &str) -> Self {
        if text == "*" { Self::Any } else { Self::Is(text.into()) }
    }

    /// Whether `name` is meant.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Is(own) => **own == *name,
        }
    }

    /// As it stands in parameters.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Any => "*",
            Self::Is(name) => name,
        }
    }
}

/// Why parameters were refused. The text is what the client gets to see.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubscriptionError {
    /// Not one of the combinations that name a table.
    #[error(
        "No subscription params provided. Please provide at least a `schema` or `table` to subscribe to: {0}"
    )]
    Parameters(String),
    /// The filter is malformed.
    #[error("Error parsing `filter` params: {0}")]
    Filter(#[from] filter::ParseError),
    /// `select` is a text or too long.
    #[error(
        r#"Error parsing `select` params: expected a list of column name strings, e.g. select: ["col1", "col2"]"#
    )]
    Select,
    /// `select` over more than one table.
    #[error(
        "Column selection is not supported for wildcard subscriptions. Provide an explicit schema and table name."
    )]
    SelectOfMany,
}

/// What one subscriber asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subscription {
    /// Which operations.
    pub events: Events,
    /// In which schemas.
    pub schema: Name,
    /// Which tables.
    pub table: Name,
    /// Conditions on the row; all must hold.
    pub conditions: Box<[Condition]>,
    /// Only these columns, and the primary key. `None`: every column the role may read.
    pub select: Option<Box<[String]>>,
    /// From 1 to 2³¹-1; equal for equal parameters, on every node and after a restart.
    pub id: u32,
}

impl Subscription {
    /// Parses one element of `config.postgres_changes`.
    ///
    /// # Errors
    /// [`SubscriptionError`]: tell the client, and activate none of its channel's subscriptions.
    pub fn parse(parameters: &Value) -> Result<Self, SubscriptionError> {
        let refused = || SubscriptionError::Parameters(describe_value(parameters));
        let map = parameters.as_object().ok_or_else(refused)?;
        let select = parse_select(map.get("select"))?;
        let text = |key: &str| match map.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(refused()),
        };
        let (schema, table, filter) = match (text("schema")?, text("table")?, text("filter")?) {
            (Some(schema), Some(table), filter) => (schema, table, filter),
            (Some(schema), None, None) => (schema, "*", None),
            (None, Some(table), None) => ("public", table, None),
            (None, _, Some(_)) | (Some(_), None, Some(_)) | (None, None, None) => {
                return Err(refused());
            }
        };
        if schema.len() > NAME_BYTES_MAX || table.len() > NAME_BYTES_MAX {
            return Err(refused());
        }
        let conditions = filter::parse(filter.unwrap_or(""))?;
        let (schema, table) = (Name::parse(schema), Name::parse(table));
        if select.is_some() && (schema == Name::Any || table == Name::Any) {
            return Err(SubscriptionError::SelectOfMany);
        }
        Ok(Self::new(Events::parse(map.get("event")), schema, table, conditions, select))
    }

    /// Parses the legacy topic `schema[:table[:filter]]`, without its `realtime:` in front.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn parse_topic(topic: &str) -> Result<Self, SubscriptionError> {
        let mut map = Map::new();
        for (key, part) in ["schema", "table", "filter"].into_iter().zip(topic.splitn(3, ':')) {
            map.insert(key.into(), part.into());
        }
        Self::parse(&Value::Object(map))
    }

    fn new(
        events: Events,
        schema: Name,
        table: Name,
        conditions: Vec<Condition>,
        select: Option<Vec<String>>,
    ) -> Self {
        let (conditions, select) = (conditions.into(), select.map(Into::into));
        let mut subscription = Self { events, schema, table, conditions, select, id: 0 };
        subscription.id = subscription.hash();
        subscription
    }

    /// Whether it names more than one table, those to come included.
    pub fn is_of_many(&self) -> bool {
        self.schema == Name::Any || self.table == Name::Any
    }

    /// The same, for one of its tables only. Its id stays.
    #[must_use]
    pub fn narrowed(&self, schema: &str, table: &str) -> Self {
        Self { schema: Name::Is(schema.into()), table: Name::Is(table.into()), ..self.clone() }
    }

    /// Whether a change of this table concerns it, before any condition.
    pub fn covers(&self, schema: &str, table: &str) -> bool {
        self.schema.matches(schema) && self.table.matches(table)
    }

    /// What a client is told when no published table matches.
    pub fn no_such_table(&self) -> String {
        format!(
            "Unable to subscribe to changes with given parameters. Please check Realtime is enabled for the given connect parameters: [{self}]"
        )
    }

    /// What a client is told when the database refused: `exception` as
    /// `ERROR P0001 (raise_exception) …`.
    pub fn exception(&self, exception: &str) -> String {
        format!(
            "Unable to subscribe to changes with given parameters. An exception happened so please check your connect parameters: [{self}]. Exception: {exception}"
        )
    }

    /// 31 bits of SHA-256 over the parameters, each text with its length in front.
    fn hash(&self) -> u32 {
        let mut hash = Sha256::new();
        let mut add = |text: &str| {
            hash.update(u64::try_from(text.len()).expect("a length fits 64 bits").to_be_bytes());
            hash.update(text.as_bytes());
        };
        add(self.events.as_str());
        add(self.schema.as_str());
        add(self.table.as_str());
        for condition in &self.conditions {
            add(if condition.negated { "not" } else { "is" });
            add(condition.operator.as_str());
            add(&condition.column);
            add(&condition.value);
        }
        if let Some(select) = &self.select {
            add("select");
            let mut columns: Vec<_> = select.iter().collect();
            columns.sort_unstable();
            columns.dedup();
            for column in columns {
                add(column);
            }
        }
        let digest = hash.finalize();
        let head: [u8; 4] = digest[..4].try_into().expect("SHA-256 has 32 bytes");
        // Clients read an id of 0 as "none", and some hold it in 32 signed bits.
        (u32::from_be_bytes(head) & 0x7FFF_FFFF).max(1)
    }
}

/// `event: *, schema: public, table: test, filters: [{"col", "eq", "v", false}], select: nil`
impl fmt::Display for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (schema, table) = (self.schema.as_str(), self.table.as_str());
        write!(f, "event: {}, schema: {schema}, table: {table}, filters: [", self.events.as_str())?;
        for (index, condition) in self.conditions.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            if index == INSPECT_ITEMS_MAX {
                f.write_str("...")?;
                break;
            }
            f.write_str("{")?;
            inspect(f, &condition.column)?;
            write!(f, ", \"{}\", ", condition.operator.as_str())?;
            inspect(f, &condition.value)?;
            write!(f, ", {}}}", condition.negated)?;
        }
        f.write_str("], select: ")?;
        match &self.select {
            Some(select) => Inspect(select).fmt(f),
            None => f.write_str("nil"),
        }
    }
}

fn parse_select(select: Option<&Value>) -> Result<Option<Vec<String>>, SubscriptionError> {
    match select {
        Some(Value::Array(items)) => {
            let columns: Vec<String> =
                items.iter().filter_map(Value::as_str).map(String::from).collect();
            let long = columns.iter().any(|column| column.len() > NAME_BYTES_MAX);
            if columns.len() > SELECT_MAX || long {
                return Err(SubscriptionError::Select);
            }
            Ok(Some(columns).filter(|columns| !columns.is_empty()))
        }
        Some(Value::String(_)) => Err(SubscriptionError::Select),
        None | Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) => Ok(None),
    }
}

/// The refused parameters in an error text: `%{"schema" => "public"}`. Tokens are not repeated.
fn describe_value(value: &Value) -> String {
    let token = |key: &str| value.get(key).is_some();
    if ["user_token", "auth_token", "access_token"].into_iter().any(token) {
        return "<redacted>".into();
    }
    let mut text = String::new();
    write_value(&mut text, value, 0).expect("a string takes every write");
    if text.len() > INSPECT_BYTES_MAX {
        let mut end = INSPECT_BYTES_MAX;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str("...");
    }
    text
}

fn write_value(out: &mut String, value: &Value, depth: usize) -> fmt::Result {
    if depth == INSPECT_DEPTH_MAX || out.len() > INSPECT_BYTES_MAX {
        return out.write_str("...");
    }
    match value {
        Value::Null => out.write_str("nil"),
        Value::Bool(flag) => write!(out, "{flag}"),
        Value::Number(number) => write!(out, "{number}"),
        Value::String(text) => inspect(out, text),
        Value::Array(items) => {
            out.write_str("[")?;
            for (index, item) in items.iter().take(INSPECT_ITEMS_MAX).enumerate() {
                separate(out, index)?;
                write_value(out, item, depth + 1)?;
            }
            out.write_str(if items.len() > INSPECT_ITEMS_MAX { ", ...]" } else { "]" })
        }
        Value::Object(map) => {
            let mut keys: Vec<_> = map.iter().collect();
            keys.sort_unstable_by_key(|(key, _)| *key);
            out.write_str("%{")?;
            for (index, (key, item)) in keys.into_iter().take(INSPECT_ITEMS_MAX).enumerate() {
                separate(out, index)?;
                inspect(out, key)?;
                out.write_str(" => ")?;
                write_value(out, item, depth + 1)?;
            }
            out.write_str(if map.len() > INSPECT_ITEMS_MAX { ", ...}" } else { "}" })
        }
    }
}

fn separate(out: &mut String, index: usize) -> fmt::Result {
    if index > 0 { out.write_str(", ") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn check(parameters: &Value, expected: &str) {
        let found = match Subscription::parse(parameters) {
            Ok(subscription) => subscription.to_string(),
            Err(error) => format!("error: {error}"),
        };
        assert_eq!(found, expected, "{parameters}");
    }

    const NONE: &str = "error: No subscription params provided. Please provide at least a `schema` or `table` to subscribe to: ";

    #[test]
    fn the_four_combinations_that_name_tables() {
        check(
            &json!({"event": "*", "schema": "public", "table": "test", "filter": "col=eq.v"}),
            r#"event: *, schema: public, table: test, filters: [{"col", "eq", "v", false}], select: nil"#,
        );
        check(
            &json!({"schema": "s", "table": "t", "filter": "c=not.in.(a,b)", "select": ["x", 1, "y"]}),
            r#"event: *, schema: s, table: t, filters: [{"c", "in", "{a,b}", true}], select: ["x", "y"]"#,
        );
        check(
            &json!({"schema": "s", "table": "t"}),
            "event: *, schema: s, table: t, filters: [], select: nil",
        );
        check(&json!({"schema": "s"}), "event: *, schema: s, table: *, filters: [], select: nil");
        check(
            &json!({"table": "t"}),
            "event: *, schema: public, table: t, filters: [], select: nil",
        );
    }

    #[test]
    fn every_other_combination_is_shown_back() {
        check(&json!({}), &format!("{NONE}%{{}}"));
        check(&json!("t"), &format!("{NONE}\"t\""));
        check(
            &json!({"table": "t", "filter": "a=eq.1"}),
            &format!(r#"{NONE}%{{"filter" => "a=eq.1", "table" => "t"}}"#),
        );
        check(
            &json!({"schema": "s", "filter": null, "table": "t"}),
            &format!(r#"{NONE}%{{"filter" => nil, "schema" => "s", "table" => "t"}}"#),
        );
        check(
            &json!({"schema": 1, "event": ["a", {"b": true}, 1.5]}),
            &format!(r#"{NONE}%{{"event" => ["a", %{{"b" => true}}, 1.5], "schema" => 1}}"#),
        );
        check(&json!({"user_token": "secret"}), &format!("{NONE}<redacted>"));
        check(&json!({"access_token": "secret"}), &format!("{NONE}<redacted>"));
    }

    #[test]
    fn an_error_text_stays_short() {
        let huge = json!({"a": vec!["x".repeat(1000); 60], "b": vec![vec![0; 100]; 100]});
        let error = Subscription::parse(&huge).unwrap_err().to_string();
        assert!(error.len() < 5000, "{}", error.len());
        let mut deep = json!(1);
        for _ in 0..100 {
            deep = json!([deep]);
        }
        check(&json!({"a": deep}), &format!(r#"{NONE}%{{"a" => [[[[[[[...]]]]]]]}}"#));
    }

    #[test]
    fn select_rules() {
        check(
            &json!({"schema": "s", "table": "t", "select": "a,b"}),
            r#"error: Error parsing `select` params: expected a list of column name strings, e.g. select: ["col1", "col2"]"#,
        );
        let wildcard = "error: Column selection is not supported for wildcard subscriptions. Provide an explicit schema and table name.";
        check(&json!({"schema": "*", "table": "t", "select": ["a"]}), wildcard);
        check(&json!({"schema": "s", "table": "*", "select": ["a"]}), wildcard);
        check(&json!({"schema": "s", "select": ["a"]}), wildcard);
        for none in [json!([]), json!([1, null]), json!(null), json!({})] {
            check(
                &json!({"schema": "s", "table": "t", "select": none}),
                "event: *, schema: s, table: t, filters: [], select: nil",
            );
        }
    }

    #[test]
    fn filter_errors_have_their_prefix() {
        check(
            &json!({"schema": "s", "table": "t", "filter": "undefined"}),
            r#"error: Error parsing `filter` params: ["undefined"]"#,
        );
    }

    #[test]
    fn events_in_any_case_and_everything_else_is_all() {
        for (event, expected) in [
            ("insert", "INSERT"),
            ("UPDATE", "UPDATE"),
            ("DeLeTe", "DELETE"),
            ("*", "*"),
            ("x", "*"),
        ] {
            let subscription =
                Subscription::parse(&json!({"schema": "s", "event": event})).unwrap();
            assert_eq!(subscription.events.as_str(), expected);
        }
        let inserts = Events::only(Operation::Insert);
        assert!(inserts.contains(Operation::Insert) && !inserts.contains(Operation::Update));
        assert!(Events::ALL.contains(Operation::Delete));
    }

    #[test]
    fn names_match_exactly_and_a_star_matches_all() {
        let covers = |parameters: Value, schema: &str, table: &str| {
            Subscription::parse(&parameters).unwrap().covers(schema, table)
        };
        assert!(covers(json!({"schema": "s", "table": "a_b"}), "s", "a_b"));
        assert!(!covers(json!({"schema": "s", "table": "a_b"}), "s", "axb"));
        assert!(!covers(json!({"schema": "s", "table": "%"}), "s", "t"));
        assert!(!covers(json!({"schema": "s", "table": "T"}), "s", "t"));
        assert!(covers(json!({"schema": "*", "table": "t"}), "any", "t"));
        assert!(covers(json!({"schema": "s"}), "s", "any"));
        assert!(!covers(json!({"schema": "s"}), "other", "any"));
    }

    #[test]
    fn legacy_topics() {
        let topic = |topic: &str| Subscription::parse_topic(topic).map(|s| s.to_string());
        let expected = |filters: &str, table: &str| {
            Ok(format!(
                "event: *, schema: public, table: {table}, filters: [{filters}], select: nil"
            ))
        };
        assert_eq!(topic("public"), expected("", "*"));
        assert_eq!(topic("public:t"), expected("", "t"));
        assert_eq!(topic("public:t:at=eq.10:30"), expected(r#"{"at", "eq", "10:30", false}"#, "t"));
        assert!(topic("public:t:bad").is_err());
    }

    #[test]
    fn ids_are_stable_and_depend_on_every_parameter() {
        let id = |parameters: Value| Subscription::parse(&parameters).unwrap().id;
        let base = id(json!({"event": "*", "schema": "s", "table": "t", "filter": "a=eq.1"}));
        // A change of this number changes every client's ids at an upgrade.
        assert_eq!(base, 216_874_681);
        assert_eq!(
            base,
            id(json!({"filter": "a=eq.1", "table": "t", "schema": "s", "event": "*"}))
        );
        for other in [
            json!({"event": "INSERT", "schema": "s", "table": "t", "filter": "a=eq.1"}),
            json!({"schema": "st", "table": "", "filter": "a=eq.1"}),
            json!({"schema": "s", "table": "t", "filter": "a=eq.2"}),
            json!({"schema": "s", "table": "t", "filter": "a=not.eq.1"}),
            json!({"schema": "s", "table": "t", "filter": "a=eq.1", "select": ["a"]}),
            json!({"schema": "s", "table": "t"}),
        ] {
            assert_ne!(id(other.clone()), base, "{other}");
        }
        let select = |columns: Value| id(json!({"schema": "s", "table": "t", "select": columns}));
        assert_eq!(select(json!(["a", "b"])), select(json!(["b", "a", "a"])));
    }

    proptest! {
        #[test]
        fn ids_are_positive_31_bit_numbers(schema in ".{0,9}", table in ".{0,9}") {
            let id = Subscription::parse(&json!({"schema": schema, "table": table})).unwrap().id;
            prop_assert!((1..=0x7FFF_FFFF).contains(&id));
        }

        #[test]
        fn no_topic_panics(topic in ".{0,40}") {
            let _ = Subscription::parse_topic(&topic).map_err(|error| error.to_string());
        }
    }
}
