//! Which subscriptions to one relation want a change, without walking all of them.
//!
//! In:     predicates, each with a key and the operations it is for; row images.
//! Out:    the keys whose predicate matches, or may match when Postgres says so.
//! Never:  IO; who may see the row.
//!
//! Each predicate hangs at one place: under every value of one equality condition, under "this
//! column is null", among the unconditional ones, or among the rest. A change looks at one value
//! of each column that has equality conditions, at the unconditional ones, and tests the rest.

use std::collections::HashMap;
use std::hash::Hash;

use super::datum::{Datum, Kind};
use super::predicate::{Anchor, Image, Match, Predicate};
use super::subscription::Events;
use crate::change::{Operation, Tuple, Value};

/// Predicates over one relation's tuples, by what they compare with.
#[derive(Debug)]
pub struct TableIndex<K> {
    entries: Vec<Option<Entry<K>>>,
    free: Vec<usize>,
    by_key: HashMap<K, usize>,
    columns: Vec<ColumnIndex>,
    unconditional: Bucket,
    rest: Bucket,
}

#[derive(Debug)]
struct Entry<K> {
    key: K,
    events: Events,
    predicate: Predicate,
    /// The condition whose bucket this entry is in.
    anchor: Option<usize>,
}

/// One column's equality conditions.
#[derive(Debug)]
struct ColumnIndex {
    column: usize,
    in_identity: bool,
    kind: Option<Kind>,
    values: HashMap<Datum<'static>, Bucket>,
    null: Bucket,
}

/// Entries by number; removal needs no search.
#[derive(Debug, Default)]
struct Bucket {
    entries: Vec<usize>,
    places: HashMap<usize, usize>,
}

impl Bucket {
    fn insert(&mut self, entry: usize) {
        if !self.places.contains_key(&entry) {
            self.places.insert(entry, self.entries.len());
            self.entries.push(entry);
        }
    }

    fn remove(&mut self, entry: usize) {
        let Some(place) = self.places.remove(&entry) else { return };
        self.entries.swap_remove(place);
        if let Some(moved) = self.entries.get(place) {
            self.places.insert(*moved, place);
        }
    }

    fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl<K> Default for TableIndex<K> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            columns: Vec::new(),
            unconditional: Bucket::default(),
            rest: Bucket::default(),
        }
    }
}

impl<K: Copy + Eq + Hash> TableIndex<K> {
    /// Number of predicates.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether nobody asks for this table.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// Adds a predicate; one that was there under the same key is replaced.
    pub fn insert(&mut self, key: K, events: Events, predicate: Predicate) {
        self.remove(key);
        let number = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() - 1
        });
        let anchor = match predicate.anchor() {
            None => {
                let unconditional = predicate.is_unconditional();
                let bucket = if unconditional { &mut self.unconditional } else { &mut self.rest };
                bucket.insert(number);
                None
            }
            Some((index, column, anchor)) => {
                let in_identity = predicate.is_in_identity(index);
                self.column(column, in_identity).insert(number, &anchor);
                Some(index)
            }
        };
        self.by_key.insert(key, number);
        self.entries[number] = Some(Entry { key, events, predicate, anchor });
    }

    /// Takes a predicate out; a key that is not there is no matter.
    pub fn remove(&mut self, key: K) {
        let Some(number) = self.by_key.remove(&key) else { return };
        self.free.push(number);
        let Some(entry) = self.entries[number].take() else { return };
        match entry.predicate.anchor() {
            None => {
                self.unconditional.remove(number);
                self.rest.remove(number);
            }
            Some((_, column, anchor)) => {
                if let Some(index) = self.columns.iter_mut().find(|index| index.column == column) {
                    index.remove(number, &anchor);
                }
                self.columns.retain(|index| !index.is_empty());
            }
        }
    }

    /// The predicate under a key, for its questions.
    pub fn predicate(&self, key: K) -> Option<&Predicate> {
        let number = *self.by_key.get(&key)?;
        self.entries[number].as_ref().map(|entry| &entry.predicate)
    }

    /// Appends each key whose predicate is for `operation` and matches this image, or may match:
    /// never [`Match::No`], each key once, in no particular order.
    pub fn candidates(
        &self,
        operation: Operation,
        tuple: &Tuple,
        image: Image,
        out: &mut Vec<(K, Match)>,
    ) {
        let mut visit = |bucket: &Bucket, known: bool| {
            for number in &bucket.entries {
                let Some(entry) = &self.entries[*number] else { continue };
                if !entry.events.contains(operation) {
                    continue;
                }
                let known = entry.anchor.filter(|_| known);
                match entry.predicate.matches_besides(tuple, image, known) {
                    Match::No => {}
                    found @ (Match::Yes | Match::Ask) => out.push((entry.key, found)),
                }
            }
        };
        visit(&self.unconditional, true);
        visit(&self.rest, false);
        for index in &self.columns {
            if image == Image::Key && !index.in_identity {
                continue;
            }
            match tuple.get(index.column) {
                Value::Unchanged => {}
                Value::Null => visit(&index.null, true),
                Value::Text(text) => match index.kind.map(|kind| kind.read(text)) {
                    None => {}
                    Some(Some(datum)) => {
                        if let Some(bucket) = index.values.get(&datum) {
                            visit(bucket, true);
                        }
                    }
                    // Not as this type is ever written: each says for itself that it must ask.
                    Some(None) => {
                        let mut all = Bucket::default();
                        let buckets = index.values.values();
                        buckets.flat_map(|b| &b.entries).for_each(|number| all.insert(*number));
                        visit(&all, false);
                    }
                },
            }
        }
    }

    fn column(&mut self, column: usize, in_identity: bool) -> &mut ColumnIndex {
        let place = self.columns.iter().position(|index| index.column == column);
        let place = place.unwrap_or_else(|| {
            self.columns.push(ColumnIndex {
                column,
                in_identity,
                kind: None,
                values: HashMap::new(),
                null: Bucket::default(),
            });
            self.columns.len() - 1
        });
        &mut self.columns[place]
    }
}

impl ColumnIndex {
    fn insert(&mut self, entry: usize, anchor: &Anchor<'_>) {
        match anchor {
            Anchor::Null => self.null.insert(entry),
            Anchor::Values(kind, values) => {
                // A column has one type, and a type one kind that has datums at all.
                self.kind = Some(*kind);
                for value in *values {
                    self.values.entry(value.clone()).or_default().insert(entry);
                }
            }
        }
    }

    fn remove(&mut self, entry: usize, anchor: &Anchor<'_>) {
        match anchor {
            Anchor::Null => self.null.remove(entry),
            Anchor::Values(_, values) => {
                for value in *values {
                    if let Some(bucket) = self.values.get_mut(value) {
                        bucket.remove(entry);
                        if bucket.is_empty() {
                            self.values.remove(value);
                        }
                    }
                }
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.values.is_empty() && self.null.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::filter::Operator;
    use super::super::predicate::tests::{bound, list, relation};
    use super::super::predicate::{Bound, Is, Operand};
    use super::*;

    const INT: u32 = 23;
    const TEXT: u32 = 25;
    const BOOL: u32 = 16;
    const JSONB: u32 = 3802;
    const TYPES: [u32; 4] = [INT, TEXT, BOOL, JSONB];

    fn any_bound() -> impl Strategy<Value = Bound> {
        let value = "[0-3]".prop_map(|text| Operand::Value(text.into()));
        let element = proptest::option::weighted(0.8, "[0-3]");
        let elements = proptest::collection::vec(element, 0..4)
            .prop_map(|elements| list(&elements.iter().map(Option::as_deref).collect::<Vec<_>>()));
        let comparison = prop_oneof![
            3 => value.clone().prop_map(|value| (Operator::Eq, value)),
            1 => value.clone().prop_map(|value| (Operator::Neq, value)),
            1 => value.clone().prop_map(|value| (Operator::Lt, value)),
            1 => value.clone().prop_map(|value| (Operator::Like, value)),
            1 => value.prop_map(|value| (Operator::IsDistinct, value)),
            2 => elements.prop_map(|elements| (Operator::In, elements)),
            1 => Just((Operator::Is, Operand::Is(Is::Null))),
        ];
        let boolean = prop_oneof![
            Just(Operand::Is(Is::Null)),
            Just(Operand::Is(Is::True)),
            Just(Operand::Is(Is::False)),
            Just(Operand::Is(Is::Unknown)),
        ]
        .prop_map(|is| (Operator::Is, is));
        (0..4_usize, comparison, boolean, any::<bool>()).prop_map(
            |(column, comparison, boolean, negated)| {
                let (operator, operand) = if column == 2 { boolean } else { comparison };
                bound(column, TYPES[column], operator, negated, operand)
            },
        )
    }

    /// A value of the kind, or what no type writes, a null, or one that was not sent.
    fn any_value(column: usize) -> impl Strategy<Value = Option<Option<String>>> {
        let text = if column == 2 { "[tf]" } else { "[0-3]" };
        prop_oneof![
            6 => text.prop_map(|text| Some(Some(text))),
            1 => Just(Some(Some("odd".to_owned()))),
            2 => Just(Some(None)),
            1 => Just(None),
        ]
    }

    fn any_events() -> impl Strategy<Value = Events> {
        prop_oneof![
            Just(Events::ALL),
            Just(Events::only(Operation::Insert)),
            Just(Events::only(Operation::Delete)),
        ]
    }

    proptest! {
        #[test]
        fn finds_what_testing_each_predicate_finds(
            filters in proptest::collection::vec(
                (0..8_u32, any_events(), proptest::collection::vec(any_bound(), 0..3)), 0..12),
            removed in proptest::collection::vec(0..8_u32, 0..4),
            values in (any_value(0), any_value(1), any_value(2), any_value(3)),
            whole in any::<bool>(),
        ) {
            let relation = relation(&TYPES);
            let mut index = TableIndex::default();
            let mut model = HashMap::new();
            for (key, events, bounds) in filters {
                let predicate = Predicate::compile(&bounds, &relation).unwrap();
                index.insert(key, events, predicate.clone());
                model.insert(key, (events, predicate));
            }
            for key in removed {
                index.remove(key);
                model.remove(&key);
            }
            let values = [values.0, values.1, values.2, values.3];
            let tuple = Tuple::copied(values.iter().map(|value| match value {
                None => Value::Unchanged,
                Some(None) => Value::Null,
                Some(Some(text)) => Value::Text(text.as_bytes()),
            }));
            let image = if whole { Image::Whole } else { Image::Key };
            let mut found = Vec::new();
            index.candidates(Operation::Insert, &tuple, image, &mut found);
            found.sort_unstable_by_key(|(key, _)| *key);
            let mut expected: Vec<_> = model
                .iter()
                .filter(|(_, (events, _))| events.contains(Operation::Insert))
                .map(|(key, (_, predicate))| (*key, predicate.matches(&tuple, image)))
                .filter(|(_, found)| *found != Match::No)
                .collect();
            expected.sort_unstable_by_key(|(key, _)| *key);
            prop_assert_eq!(found, expected);
            prop_assert_eq!(index.len(), model.len());
            for key in model.keys() {
                index.remove(*key);
            }
            prop_assert!(index.is_empty() && index.columns.is_empty());
            prop_assert!(index.rest.is_empty() && index.unconditional.is_empty());
        }
    }

    #[test]
    fn equality_filters_are_looked_up_not_walked() {
        let relation = relation(&TYPES);
        let mut index = TableIndex::default();
        for key in 0..10_000_u32 {
            let user = bound(0, INT, Operator::Eq, false, Operand::Value(key.to_string().into()));
            index.insert(key, Events::ALL, Predicate::compile(&[user], &relation).unwrap());
        }
        assert_eq!((index.rest.entries.len(), index.columns.len()), (0, 1));
        assert!(index.columns[0].values.values().all(|bucket| bucket.entries.len() == 1));
        let tuple = Tuple::copied([Value::Text(b"7"), Value::Null, Value::Null, Value::Null]);
        let mut found = Vec::new();
        index.candidates(Operation::Update, &tuple, Image::Whole, &mut found);
        assert_eq!(found, [(7, Match::Yes)]);
    }
}
