//! Rules and a table's columns → where to look in its tuples.
//!
//! In:     a [`Declaration`] and the [`Relation`] as of a change.
//! Out:    a [`Plan`], good for as long as both stay.
//! Never:  a guess: an event that needs a column which is not there is not made.

use std::sync::Arc;

use serde_json::Value as Json;

use super::declaration::{Condition, Declaration, KeyCase, Member, Operations, Rule, Source};
use super::template::Template;
use crate::change::{ColumnSet, Relation};

/// A table's rules, with places instead of names.
#[derive(Debug)]
pub struct Plan {
    /// In the declaration's order.
    pub rules: Box<[PlannedRule]>,
    /// Columns whose changes count.
    pub(super) counted: ColumnSet,
    /// The primary key.
    pub(super) key: Box<[(usize, Box<str>)]>,
    /// The table's name.
    pub(super) table: Box<str>,
}

/// One rule.
#[derive(Debug)]
pub struct PlannedRule {
    /// Name of the event.
    pub event: Arc<str>,
    /// When.
    pub(super) on: Operations,
    /// A column that it needs and the table does not have: it says nothing.
    pub missing: Option<Box<str>>,
    pub(super) update_of: Option<ColumnSet>,
    pub(super) alone: bool,
    pub(super) when_new: Box<[PlannedCondition]>,
    pub(super) when_old: Box<[PlannedCondition]>,
    pub(super) topics: Box<[(Template, Box<[usize]>)]>,
    /// What `$row` and `$changes` may show, with their names in payloads.
    pub(super) columns: Box<[(usize, Box<str>)]>,
    pub(super) payload: Box<[PlannedMember]>,
    /// What is looked up.
    pub lookups: Box<[LookupPlan]>,
    /// Rows of one transaction are one event, in a list of this name.
    pub aggregate: Option<Box<str>>,
    /// See [`Rule::exclude_origin`].
    pub exclude_origin: bool,
    /// See [`Rule::public`].
    pub public: bool,
}

/// What is read in another table.
#[derive(Debug)]
pub struct LookupPlan {
    /// Its name in the rule.
    pub name: Box<str>,
    /// The places of the key's values here.
    pub(super) key: Box<[usize]>,
    /// What is shown of it.
    pub columns: Box<[Box<str>]>,
}

#[derive(Debug)]
pub(super) struct PlannedCondition {
    pub(super) place: usize,
    pub(super) any_of: Box<[Json]>,
}

#[derive(Debug)]
pub(super) enum PlannedMember {
    Spread(PlannedSource),
    Set(Box<str>, Box<[PlannedSource]>),
}

#[derive(Debug)]
pub(super) enum PlannedSource {
    /// With its name, for when it is spread.
    Column(usize, Box<str>),
    Old(usize),
    Row,
    Changes,
    Key,
    Actor,
    Mutation,
    Time,
    Operation,
    Table,
    Constant(Box<str>),
    Looked(usize, usize),
}

/// Looks names up, and remembers the first that is not there.
struct Columns<'a> {
    relation: &'a Relation,
    case: KeyCase,
    missing: Option<Box<str>>,
}

impl Columns<'_> {
    fn place(&mut self, name: &str) -> usize {
        self.relation.column(name).unwrap_or_else(|| {
            self.missing.get_or_insert_with(|| name.into());
            usize::MAX
        })
    }

    fn named(&mut self, name: &str) -> (usize, Box<str>) {
        (self.place(name), self.case.apply(name))
    }

    fn conditions(&mut self, conditions: &[Condition]) -> Box<[PlannedCondition]> {
        let plan = |condition: &Condition| PlannedCondition {
            place: self.place(&condition.column),
            any_of: condition.any_of.clone(),
        };
        conditions.iter().map(plan).collect()
    }

    fn source(&mut self, source: &Source) -> PlannedSource {
        match source {
            Source::Column(name) => {
                let (place, name) = self.named(name);
                PlannedSource::Column(place, name)
            }
            Source::Old(name) => PlannedSource::Old(self.place(name)),
            Source::Row => PlannedSource::Row,
            Source::Changes => PlannedSource::Changes,
            Source::Key => PlannedSource::Key,
            Source::Actor => PlannedSource::Actor,
            Source::Mutation => PlannedSource::Mutation,
            Source::Time => PlannedSource::Time,
            Source::Operation => PlannedSource::Operation,
            Source::Table => PlannedSource::Table,
            Source::Constant(json) => PlannedSource::Constant(json.clone()),
            Source::Looked(lookup, column) => PlannedSource::Looked(*lookup, *column),
        }
    }
}

impl Plan {
    /// For one definition of the table.
    pub fn new(declaration: &Declaration, relation: &Relation) -> Self {
        let case = declaration.key_case;
        let all = || {
            let columns = (0_usize..).zip(&relation.columns);
            // A column without a name cannot be told from others.
            columns.filter(|(_, column)| !column.name.is_empty())
        };
        let ignored = |name: &str| declaration.ignore.iter().any(|ignored| **ignored == *name);
        let shown = |name: &str| {
            declaration.columns.as_ref().is_none_or(|columns| columns.iter().any(|c| **c == *name))
        };
        let counted = all().filter(|(_, column)| shown(&column.name) && !ignored(&column.name));
        let counted = counted.map(|(place, _)| place).collect();
        let key = all().filter(|(_, column)| column.in_primary_key);
        let key = key.map(|(place, column)| (place, case.apply(&column.name))).collect();
        let rule = |rule: &Rule| {
            let mut columns = Columns { relation, case, missing: None };
            let selected = rule.columns.as_ref().or(declaration.columns.as_ref());
            let row = match selected {
                Some(names) => names.iter().map(|name| columns.named(name)).collect(),
                None => all().map(|(place, c)| (place, case.apply(&c.name))).collect(),
            };
            let topics = rule.topics.iter().map(|template| {
                (template.clone(), template.columns().map(|name| columns.place(name)).collect())
            });
            let topics = topics.collect();
            let update_of = rule.update_of.as_ref();
            let update_of =
                update_of.map(|names| names.iter().map(|name| columns.place(name)).collect());
            let when_new = columns.conditions(&rule.when_new);
            let when_old = columns.conditions(&rule.when_old);
            let payload = rule.payload.iter().map(|member| match member {
                Member::Spread(source) => PlannedMember::Spread(columns.source(source)),
                Member::Set(name, sources) => {
                    let sources = sources.iter().map(|source| columns.source(source)).collect();
                    PlannedMember::Set(name.clone(), sources)
                }
            });
            let payload = payload.collect();
            let lookups = rule.lookups.iter().map(|lookup| LookupPlan {
                name: lookup.name.clone(),
                key: lookup.key.iter().map(|name| columns.place(name)).collect(),
                columns: lookup.columns.clone(),
            });
            let lookups = lookups.collect();
            PlannedRule {
                event: Arc::clone(&rule.event),
                on: rule.on,
                missing: columns.missing,
                update_of,
                alone: rule.alone,
                when_new,
                when_old,
                topics,
                columns: row,
                payload,
                lookups,
                aggregate: rule.aggregate.clone(),
                exclude_origin: rule.exclude_origin,
                public: rule.public,
            }
        };
        let rules = declaration.rules.iter().map(rule).collect();
        Self { rules, counted, key, table: relation.table.clone() }
    }
}
