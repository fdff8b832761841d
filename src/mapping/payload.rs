//! A firing rule → the JSON of its payload.
//!
//! In:     the change, the rule, and what was looked up for it.
//! Out:    one JSON object.
//! Never:  a column that was not declared; null for a value that the log does not carry, which is
//!         absent.

use super::fire::{Firing, Phase, Rows};
use super::plan::{Plan, PlannedMember, PlannedRule, PlannedSource};
use crate::change::{Change, Operation, Value, value};
use crate::event::row;

/// The columns of a row that was looked up, each as JSON, in the order of the look-up's columns;
/// none: there is no such row.
pub type Looked = Option<Box<[Box<str>]>>;

/// The key of what a rule looks up: one text a column; none when one of them is null, and then
/// there is nothing to look up.
pub(super) fn key(rows: Rows<'_>, phase: Phase, places: &[usize]) -> Option<Box<[Box<str>]>> {
    let text = |place: &usize| match rows.value(phase, *place) {
        Some(Value::Text(text)) => std::str::from_utf8(text).ok().map(Into::into),
        Some(Value::Null | Value::Unchanged) | None => None,
    };
    places.iter().map(text).collect()
}

impl Plan {
    /// What a firing rule looks up: for each of its look-ups the key, if it has one.
    pub fn keys(&self, change: &Change, firing: &Firing) -> Vec<Option<Box<[Box<str>]>>> {
        let rows = Rows::of(change);
        let Some(rule) = self.rules.get(firing.rule) else { return Vec::new() };
        rule.lookups.iter().map(|lookup| key(rows, firing.phase, &lookup.key)).collect()
    }
}

/// Appends the payload of an event. `looked`: what was found, look-up by look-up.
pub fn render(plan: &Plan, change: &Change, firing: &Firing, looked: &[Looked], out: &mut Vec<u8>) {
    let Some(rule) = plan.rules.get(firing.rule) else { return };
    let rows = Rows::of(change);
    let writer = Writer { plan, rule, change, rows, firing, looked };
    out.push(b'{');
    // Named members first know which names are taken: a name comes once.
    let mut taken: Vec<&str> = rule
        .payload
        .iter()
        .filter_map(|member| match member {
            PlannedMember::Set(name, _) => Some(&**name),
            PlannedMember::Spread(_) => None,
        })
        .collect();
    let mut first = true;
    for member in &rule.payload {
        match member {
            PlannedMember::Spread(source) => {
                for (place, name) in writer.columns(source) {
                    if !taken.contains(&name) && writer.column(name, place, &mut first, out) {
                        taken.push(name);
                    }
                }
            }
            PlannedMember::Set(name, sources) => {
                let start = (out.len(), first);
                separate(&mut first, out);
                value::string(name.as_bytes(), out);
                out.push(b':');
                if !writer.first_of(sources, out) {
                    out.truncate(start.0);
                    first = start.1;
                }
            }
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

struct Writer<'a> {
    plan: &'a Plan,
    rule: &'a PlannedRule,
    change: &'a Change,
    rows: Rows<'a>,
    firing: &'a Firing,
    looked: &'a [Looked],
}

impl<'a> Writer<'a> {
    /// The columns that a source stands for, when it is spread or an object of its own.
    fn columns(&self, source: &'a PlannedSource) -> Vec<(usize, &'a str)> {
        let named = |(place, name): &'a (usize, Box<str>)| (*place, &**name);
        match source {
            PlannedSource::Row => self.rule.columns.iter().map(named).collect(),
            PlannedSource::Changes => {
                let changed = |(place, _): &(usize, &str)| {
                    self.firing.changes.contains(*place) && self.plan.counted.contains(*place)
                };
                self.rule.columns.iter().map(named).filter(changed).collect()
            }
            PlannedSource::Key => self.plan.key.iter().map(named).collect(),
            PlannedSource::Column(place, name) => vec![(*place, name)],
            PlannedSource::Old(_)
            | PlannedSource::Actor
            | PlannedSource::Mutation
            | PlannedSource::Time
            | PlannedSource::Operation
            | PlannedSource::Table
            | PlannedSource::Constant(_)
            | PlannedSource::Looked(..) => Vec::new(),
        }
    }

    /// Appends a column as a member; false when the log does not have it.
    fn column(&self, name: &str, place: usize, first: &mut bool, out: &mut Vec<u8>) -> bool {
        let Some(value) = self.rows.value(self.firing.phase, place) else { return false };
        separate(first, out);
        value::string(name.as_bytes(), out);
        out.push(b':');
        self.value(place, value, out);
        true
    }

    fn value(&self, place: usize, value: Value<'_>, out: &mut Vec<u8>) {
        match (value, self.rows.kind(place)) {
            (Value::Text(text), Some(kind)) => value::render(kind, text, out),
            (Value::Null | Value::Unchanged, _) | (Value::Text(_), None) => {
                out.extend_from_slice(b"null");
            }
        }
    }

    /// Appends the first of these that is not null, or null; false when the log has none of them.
    fn first_of(&self, sources: &[PlannedSource], out: &mut Vec<u8>) -> bool {
        let mut any = false;
        let start = out.len();
        for source in sources {
            out.truncate(start);
            any |= self.one(source, out);
            if out.len() > start && &out[start..] != b"null" {
                return true;
            }
        }
        if any && out.len() == start {
            out.extend_from_slice(b"null");
        }
        any
    }

    /// Appends a value; false, and nothing, when there is none to append.
    fn one(&self, source: &PlannedSource, out: &mut Vec<u8>) -> bool {
        let origin = self.change.origin.as_ref();
        let text = |text: Option<&str>, out: &mut Vec<u8>| {
            match text {
                Some(text) => value::string(text.as_bytes(), out),
                None => out.extend_from_slice(b"null"),
            }
            true
        };
        match source {
            PlannedSource::Column(place, _) => match self.rows.value(self.firing.phase, *place) {
                Some(value) => {
                    self.value(*place, value, out);
                    true
                }
                None => false,
            },
            PlannedSource::Old(place) => {
                // A room that the row has just come to knows nothing of what it was.
                let old = match self.firing.phase {
                    Phase::Gone | Phase::Changed => self.rows.old_value(*place),
                    Phase::Came => None,
                };
                match old {
                    Some(value) => {
                        self.value(*place, value, out);
                        true
                    }
                    None => false,
                }
            }
            PlannedSource::Row | PlannedSource::Changes | PlannedSource::Key => {
                out.push(b'{');
                let mut first = true;
                for (place, name) in self.columns(source) {
                    self.column(name, place, &mut first, out);
                }
                out.push(b'}');
                true
            }
            PlannedSource::Actor => text(origin.and_then(|origin| origin.sub.as_deref()), out),
            PlannedSource::Mutation => {
                text(origin.and_then(|origin| origin.mutation_id.as_deref()), out)
            }
            PlannedSource::Time => {
                row::timestamp(self.change.commit.time, out);
                true
            }
            PlannedSource::Operation => {
                let seen = match self.firing.phase {
                    Phase::Gone => Operation::Delete,
                    Phase::Changed => Operation::Update,
                    Phase::Came => Operation::Insert,
                };
                text(Some(seen.as_str()), out)
            }
            PlannedSource::Table => text(Some(&self.plan.table), out),
            PlannedSource::Constant(json) => {
                out.extend_from_slice(json.as_bytes());
                true
            }
            PlannedSource::Looked(lookup, column) => {
                let found = self.looked.get(*lookup).and_then(Option::as_ref);
                match found.and_then(|columns| columns.get(*column)) {
                    Some(json) => out.extend_from_slice(json.as_bytes()),
                    None => out.extend_from_slice(b"null"),
                }
                true
            }
        }
    }
}
