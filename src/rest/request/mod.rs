//! What a request asks for, before any name is looked up. Pure.
//!
//! In:     method, path, query pairs, headers.
//! Out:    [`Query`], and its parts as they were meant.
//! Never:  a decision that needs the catalog; unbounded depth or length.
//! Source: spec `rest.md` D1 to D4, docs.postgrest.org/en/v12/references/api

mod body;
mod media;
mod page;
mod pairs;
mod preferences;
mod query;
mod target;

pub use body::Body;
pub use media::Media;
pub use pairs::{Pairs, arguments, pairs};
pub use preferences::{
    Handling, Missing, Preference, Preferences, Resolution, Return, Transaction,
};
pub use query::filter;
pub use target::{Target, Verb, profile};

/// What the query string says about the target and what is embedded in it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Query {
    /// `select=`; empty means `*`.
    pub select: Vec<Item>,
    /// Filters, each with the embedding it is about. All must hold.
    pub filters: Vec<At<Condition>>,
    /// `order=`, the last for each embedding counts.
    pub orders: Vec<At<Vec<Order>>>,
    /// `limit=` and `offset=`.
    pub ranges: Vec<At<Range>>,
    /// `columns=` of a write.
    pub columns: Option<Vec<String>>,
    /// `on_conflict=` of an upsert.
    pub on_conflict: Option<Vec<String>>,
}

/// Something said about an embedding: the names (or aliases) that lead there, none for the target.
#[derive(Debug, Clone, PartialEq)]
pub struct At<T> {
    /// From the target down.
    pub path: Vec<String>,
    /// What was said.
    pub what: T,
}

/// One item of a `select` list.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// `*`
    All,
    /// A column, or something inside one.
    Field {
        /// Which.
        field: Field,
        /// `alias:` in front.
        alias: Option<String>,
        /// `::type` behind.
        cast: Option<String>,
    },
    /// Related rows.
    Embed(Embed),
}

/// `alias:target!hint!inner(items)`, or `...target(items)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Embed {
    /// Relation, or foreign key column.
    pub target: String,
    /// `alias:` in front.
    pub alias: Option<String>,
    /// `!hint`: a constraint, column or junction.
    pub hint: Option<String>,
    /// `!inner`: rows without related ones are left out.
    pub inner: bool,
    /// `...`: its columns become the parent's.
    pub spread: bool,
    /// Its own list; empty embeds nothing, but still filters.
    pub items: Vec<Item>,
}

impl Embed {
    /// What the client calls it: the alias, or the target.
    pub fn name(&self) -> &str {
        self.alias.as_deref().unwrap_or(&self.target)
    }
}

/// `column->key->>0`
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Field {
    /// Column name.
    pub name: String,
    /// Steps into its JSON.
    pub path: Vec<Step>,
}

/// One step into JSON.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Step {
    /// `->>`: the result is text.
    pub as_text: bool,
    /// Where to.
    pub to: Key,
}

/// Key or place.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    /// Of an object.
    Name(String),
    /// In an array; counted from its end when negative.
    Index(i32),
}

/// A tree of tests.
#[derive(Debug, Clone, PartialEq)]
pub enum Condition {
    /// All hold.
    And(Vec<Condition>),
    /// One holds.
    Or(Vec<Condition>),
    /// It does not hold.
    Not(Box<Condition>),
    /// One comparison.
    Test {
        /// What is compared: a column, or the name of an embedding (`is.null`, `not.is.null`).
        field: Field,
        /// How, and with what.
        test: Test,
    },
}

/// One comparison. Values are text, for Postgres to read as the column's type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    /// `eq.value` and its like; with a quantifier the value is a list `{a,b}`.
    Compare {
        /// How.
        operator: Operator,
        /// `(any)` or `(all)`.
        quantifier: Option<Quantifier>,
        /// With what.
        value: String,
    },
    /// `in.(a,b)`
    In(Vec<String>),
    /// `is.null` and its like.
    Is(Is),
    /// `fts(config).query` and its like.
    Search {
        /// Which function reads the query.
        kind: Search,
        /// Text search configuration.
        config: Option<String>,
        /// The query.
        value: String,
    },
}

/// Operators with one operand on either side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is named as in the query string; the table is in rest.md")]
pub enum Operator {
    Eq,
    Neq,
    Gt,
    Gte,
    Lt,
    Lte,
    Like,
    ILike,
    Match,
    IMatch,
    IsDistinct,
    Contains,
    ContainedIn,
    Overlaps,
    StrictlyLeft,
    StrictlyRight,
    NotRightOf,
    NotLeftOf,
    Adjacent,
}

/// Of a list of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Quantifier {
    /// One of them.
    Any,
    /// Each.
    All,
}

/// What `is.` can be followed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "SQL's own words")]
pub enum Is {
    Null,
    NotNull,
    True,
    False,
    Unknown,
}

/// What reads a text search query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Search {
    /// `fts`: `to_tsquery`
    Query,
    /// `plfts`: `plainto_tsquery`
    Plain,
    /// `phfts`: `phraseto_tsquery`
    Phrase,
    /// `wfts`: `websearch_to_tsquery`
    Web,
}

/// One term of an `order` list.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    /// `relation(column)`: by a column of a to-one embedding.
    pub relation: Option<String>,
    /// By what.
    pub field: Field,
    /// `.desc`
    pub descending: bool,
    /// `.nullsfirst`, `.nullslast`
    pub nulls_first: Option<bool>,
}

/// Which of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Range {
    /// Rows at most.
    pub limit: Option<u64>,
    /// Rows left out in front.
    pub offset: Option<u64>,
}
