//! A change → which rules say something about it, and to which topics.
//!
//! In:     a [`Plan`] and a change of its table.
//! Out:    [`Firing`]s in the order in which they are told; what was refused.
//! Never:  anything of the old row for a topic that it was not in, or of the new one for a topic
//!         that it is not in.
//!
//! To each topic a change is what its members saw of it: a row that came into a topic is an insert
//! there, one that left it a delete, and only what stays is an update.

use super::plan::{Plan, PlannedCondition, PlannedRule};
use super::template::{FillError, Given};
use crate::change::value::{self, Type};
use crate::change::{Change, ColumnSet, OldImage, Operation, Relation, Tuple, Value};

/// What a topic's members saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The row is gone: only the old one is told of.
    Gone,
    /// It changed: both are.
    Changed,
    /// It came: only the new one is.
    Came,
}

/// A rule that says something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firing {
    /// Its number in the plan.
    pub rule: usize,
    /// What is told of.
    pub phase: Phase,
    /// Where; at least one, each once.
    pub topics: Box<[Box<str>]>,
    /// Columns that changed and that no earlier rule has told of.
    pub(super) changes: ColumnSet,
}

/// Why an event was not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// A column that it needs is not there.
    Column,
    /// A value cannot be part of a topic.
    Topic,
    /// The log does not carry the old row, or not enough of it.
    OldRow,
}

impl Refusal {
    /// For metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Column => "mapping_column",
            Self::Topic => "mapping_topic",
            Self::OldRow => "mapping_old_row",
        }
    }
}

/// What is said about a change.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Fired {
    /// In the order in which it is told.
    pub firings: Vec<Firing>,
    /// Rules that would have said something, by their number.
    pub refused: Vec<(usize, Refusal)>,
}

/// What a tuple has in a column; none where the log does not say.
pub(super) fn known(tuple: Option<&Tuple>, place: usize) -> Option<Value<'_>> {
    let tuple = tuple?;
    match tuple.get(place) {
        value @ (Value::Null | Value::Text(_)) if place < tuple.len() => Some(value),
        Value::Null | Value::Text(_) | Value::Unchanged => None,
    }
}

/// The two rows of a change, as far as they are known whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a> {
    relation: &'a Relation,
    pub(super) new: Option<&'a Tuple>,
    pub(super) old: Option<&'a Tuple>,
    /// The old row is only its key; elsewhere null means "not sent".
    key_only: bool,
}

impl<'a> Rows<'a> {
    pub(super) fn of(change: &'a Change) -> Self {
        let old = change.old_record.as_ref();
        Self {
            relation: &change.relation,
            new: change.record.as_ref(),
            old: old.map(|(_, tuple)| tuple),
            key_only: old.is_some_and(|(image, _)| *image == OldImage::Key),
        }
    }

    pub(super) fn old_value(self, place: usize) -> Option<Value<'a>> {
        let column = self.relation.columns.get(place)?;
        if self.key_only && !column.in_identity {
            return None;
        }
        known(self.old, place)
    }

    pub(super) fn new_value(self, place: usize) -> Option<Value<'a>> {
        known(self.new, place)
    }

    /// Of the row that `phase` is about.
    pub(super) fn value(self, phase: Phase, place: usize) -> Option<Value<'a>> {
        match phase {
            Phase::Gone => self.old_value(place),
            Phase::Changed | Phase::Came => self.new_value(place),
        }
    }

    pub(super) fn kind(self, place: usize) -> Option<&'a Type> {
        self.relation.columns.get(place).map(|column| &column.kind)
    }
}

/// What the rules say about a change of their table.
pub fn fire(plan: &Plan, change: &Change) -> Fired {
    let rows = Rows::of(change);
    let mut fired = Fired::default();
    match change.operation {
        Operation::Insert => {
            for (number, rule) in plan.rules.iter().enumerate().filter(|(_, rule)| rule.on.insert) {
                one(rows, (number, rule), Phase::Came, None, &mut fired);
            }
        }
        Operation::Delete => {
            for (number, rule) in plan.rules.iter().enumerate().filter(|(_, rule)| rule.on.delete) {
                one(rows, (number, rule), Phase::Gone, None, &mut fired);
            }
        }
        Operation::Update => update(plan, rows, &mut fired),
    }
    fired
}

/// A row that came or went; on an update, only in the topics that `but` does not have.
fn one(
    rows: Rows<'_>,
    (number, rule): (usize, &PlannedRule),
    phase: Phase,
    but: Option<&[Box<str>]>,
    fired: &mut Fired,
) {
    let conditions = if phase == Phase::Gone { &rule.when_old } else { &rule.when_new };
    match hold(rows, phase, conditions) {
        Some(true) => {}
        Some(false) => return,
        None => return refuse(rule, number, phase, fired),
    }
    if rule.missing.is_some() {
        return fired.refused.push((number, Refusal::Column));
    }
    let (mut topics, refusals) = topics(rows, rule, phase);
    fired.refused.extend(refusals.into_iter().map(|refusal| (number, refusal)));
    if let Some(but) = but {
        topics.retain(|topic| !but.contains(topic));
    }
    if !topics.is_empty() {
        let changes = ColumnSet::new();
        fired.firings.push(Firing { rule: number, phase, topics: topics.into(), changes });
    }
}

fn refuse(rule: &PlannedRule, number: usize, phase: Phase, fired: &mut Fired) {
    let refusal = if rule.missing.is_some() {
        Refusal::Column
    } else if phase == Phase::Came {
        Refusal::Topic
    } else {
        Refusal::OldRow
    };
    fired.refused.push((number, refusal));
}

fn update(plan: &Plan, rows: Rows<'_>, fired: &mut Fired) {
    let whole = rows.old.is_some() && !rows.key_only;
    let changed: Option<ColumnSet> = whole.then(|| {
        let places = 0..rows.relation.columns.len();
        places.filter(|place| differs(rows, *place)).collect()
    });
    let rules = || plan.rules.iter().enumerate();
    // Where the row was, and where it is. Without the old row it is where it was, for all we know.
    let before = |rule: &PlannedRule| {
        if whole { topics(rows, rule, Phase::Gone).0 } else { topics(rows, rule, Phase::Changed).0 }
    };
    for (number, rule) in rules().filter(|(_, rule)| rule.on.delete && whole) {
        let after = topics(rows, rule, Phase::Changed).0;
        if rule.missing.is_some() || before(rule).iter().any(|topic| !after.contains(topic)) {
            moved(rows, (number, rule), Phase::Gone, &after, fired);
        }
    }
    let mut told = ColumnSet::new();
    for (number, rule) in rules().filter(|(_, rule)| rule.on.update) {
        let hit = match (&changed, &rule.update_of) {
            (Some(changed), Some(of)) => {
                let others = changed.intersection(&plan.counted).difference(of);
                let hit = !changed.intersection(of).is_empty();
                hit && (!rule.alone || others.is_empty())
            }
            (Some(changed), None) => {
                !changed.intersection(&plan.counted).difference(&told).is_empty()
            }
            (None, Some(_)) => {
                fired.refused.push((number, Refusal::OldRow));
                continue;
            }
            (None, None) => true,
        };
        if !hit {
            continue;
        }
        match (hold(rows, Phase::Changed, &rule.when_new), hold(rows, Phase::Gone, &rule.when_old))
        {
            (Some(true), Some(true)) => {}
            (Some(false), _) | (_, Some(false)) => continue,
            (None, _) | (_, None) => {
                refuse(rule, number, Phase::Changed, fired);
                continue;
            }
        }
        if rule.missing.is_some() {
            fired.refused.push((number, Refusal::Column));
            continue;
        }
        let (mut topics, refusals) = topics(rows, rule, Phase::Changed);
        fired.refused.extend(refusals.into_iter().map(|refusal| (number, refusal)));
        let before = before(rule);
        topics.retain(|topic| before.contains(topic));
        if topics.is_empty() {
            continue;
        }
        let untold = match &changed {
            Some(changed) => changed.difference(&told),
            None => ColumnSet::all(rows.relation.columns.len()),
        };
        if let Some(of) = &rule.update_of {
            told = told.union(of);
        }
        let topics = topics.into();
        let phase = Phase::Changed;
        fired.firings.push(Firing { rule: number, phase, topics, changes: untold });
    }
    for (number, rule) in rules().filter(|(_, rule)| rule.on.insert && whole) {
        let before = before(rule);
        let now = topics(rows, rule, Phase::Came).0;
        if now.iter().any(|topic| !before.contains(topic)) {
            moved(rows, (number, rule), Phase::Came, &before, fired);
        }
    }
}

/// A row that moved between topics. What could not be told of it is not counted twice.
fn moved(
    rows: Rows<'_>,
    rule: (usize, &PlannedRule),
    phase: Phase,
    but: &[Box<str>],
    fired: &mut Fired,
) {
    if rule.1.missing.is_none() {
        let refused = fired.refused.len();
        one(rows, rule, phase, Some(but), fired);
        fired.refused.truncate(refused);
    }
}

/// Whether a column has another value now. What the log did not repeat has not.
fn differs(rows: Rows<'_>, place: usize) -> bool {
    match (known(rows.old, place), known(rows.new, place)) {
        (Some(old), Some(new)) => old != new,
        (Some(_) | None, None) | (None, Some(_)) => false,
    }
}

/// Whether all conditions hold; none where that is not known.
fn hold(rows: Rows<'_>, phase: Phase, conditions: &[PlannedCondition]) -> Option<bool> {
    let mut all = true;
    for PlannedCondition { place, any_of } in conditions {
        let shown = match rows.value(phase, *place)? {
            Value::Null => serde_json::Value::Null,
            Value::Text(text) => {
                let mut json = Vec::with_capacity(text.len() + 2);
                value::render(rows.kind(*place)?, text, &mut json);
                serde_json::from_slice(&json).ok()?
            }
            Value::Unchanged => return None,
        };
        all &= any_of.contains(&shown);
    }
    Some(all)
}

/// The topics of a row, each once, and why it lacks others.
fn topics(rows: Rows<'_>, rule: &PlannedRule, phase: Phase) -> (Vec<Box<str>>, Vec<Refusal>) {
    let (mut topics, mut refusals) = (Vec::new(), Vec::new());
    for (template, places) in &rule.topics {
        let values = places.iter().map(|place| match rows.value(phase, *place) {
            Some(Value::Text(text)) => {
                // What is not UTF-8 has a character that no value may have.
                std::str::from_utf8(text)
                    .map_or(Given::Text("*".into()), |text| Given::Text(text.into()))
            }
            Some(Value::Null) => Given::Null,
            Some(Value::Unchanged) | None => Given::Unknown,
        });
        match template.fill(values) {
            Ok(Some(topic)) if !topics.contains(&topic) => topics.push(topic),
            Ok(_) => {}
            Err(FillError::Unknown) if phase == Phase::Gone => refusals.push(Refusal::OldRow),
            Err(FillError::Unsafe | FillError::Unknown) => refusals.push(Refusal::Topic),
        }
    }
    (topics, refusals)
}
