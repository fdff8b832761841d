//! A set of columns of one relation, by their places in its tuples.
//!
//! In:     places, from 0.
//! Out:    [`ColumnSet`]: equal sets are equal values with equal hashes, however they were made.
//! Never:  names (the relation has them); memory of its own for tables of up to 64 columns.

/// Places that a set can hold. A tuple on the wire counts its columns in 16 bits.
const PLACES_MAX: usize = 1 << 16;

/// A set of column places.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ColumnSet {
    /// Places 0 to 63, one bit each.
    first: u64,
    /// The others, 64 a word; the last word is never zero.
    rest: Box<[u64]>,
}

impl ColumnSet {
    /// No column.
    pub fn new() -> Self {
        Self::default()
    }

    /// The places below `count`: every column of a relation with that many.
    pub fn all(count: usize) -> Self {
        (0..count).collect()
    }

    /// Adds a place. One that no tuple can have is left out.
    pub fn insert(&mut self, place: usize) {
        let bit = 1_u64 << (place % 64);
        match (place / 64).checked_sub(1) {
            None => self.first |= bit,
            Some(_) if place >= PLACES_MAX => {}
            Some(word) => {
                if self.rest.len() <= word {
                    let mut words = std::mem::take(&mut self.rest).into_vec();
                    words.resize(word + 1, 0);
                    self.rest = words.into();
                }
                if let Some(word) = self.rest.get_mut(word) {
                    *word |= bit;
                }
            }
        }
    }

    /// Whether a place is in the set.
    pub fn contains(&self, place: usize) -> bool {
        self.word(place / 64) >> (place % 64) & 1 == 1
    }

    /// Whether no place is.
    pub fn is_empty(&self) -> bool {
        self.first == 0 && self.rest.is_empty()
    }

    /// How many places are.
    pub fn len(&self) -> usize {
        self.words().map(|word| usize::try_from(word.count_ones()).unwrap_or(0)).sum()
    }

    /// The places in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.words().enumerate().flat_map(|(at, mut word)| {
            std::iter::from_fn(move || {
                let bit = usize::try_from(word.trailing_zeros()).ok().filter(|&bit| bit < 64)?;
                word &= word - 1;
                Some(at * 64 + bit)
            })
        })
    }

    /// The places in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.combined(other, |a, b| a & b)
    }

    /// The places in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.combined(other, |a, b| a | b)
    }

    /// The places in this one that are not in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.combined(other, |a, b| a & !b)
    }

    /// Whether `other` has every place of this one.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.words().enumerate().all(|(at, word)| word & !other.word(at) == 0)
    }

    fn words(&self) -> impl Iterator<Item = u64> {
        std::iter::once(self.first).chain(self.rest.iter().copied())
    }

    fn word(&self, at: usize) -> u64 {
        match at.checked_sub(1) {
            None => self.first,
            Some(at) => self.rest.get(at).copied().unwrap_or(0),
        }
    }

    fn combined(&self, other: &Self, of: impl Fn(u64, u64) -> u64) -> Self {
        let first = of(self.first, other.first);
        let count = self.rest.len().max(other.rest.len());
        if count == 0 {
            return Self { first, rest: Box::default() };
        }
        let mut rest: Vec<u64> = (1..=count).map(|at| of(self.word(at), other.word(at))).collect();
        while rest.last() == Some(&0) {
            rest.pop();
        }
        Self { first, rest: rest.into() }
    }
}

impl FromIterator<usize> for ColumnSet {
    fn from_iter<I: IntoIterator<Item = usize>>(places: I) -> Self {
        let mut set = Self::new();
        set.extend(places);
        set
    }
}

impl Extend<usize> for ColumnSet {
    fn extend<I: IntoIterator<Item = usize>>(&mut self, places: I) {
        for place in places {
            self.insert(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn places() -> impl Strategy<Value = BTreeSet<usize>> {
        prop::collection::btree_set(prop_oneof![0..70_usize, 0..1700_usize], 0..12)
    }

    fn set(places: &BTreeSet<usize>) -> ColumnSet {
        places.iter().copied().collect()
    }

    proptest! {
        #[test]
        fn a_set_is_what_a_plain_set_of_numbers_is(a in places(), b in places()) {
            let (x, y) = (set(&a), set(&b));
            prop_assert_eq!(x.iter().collect::<BTreeSet<_>>(), a.clone());
            prop_assert_eq!(x.len(), a.len());
            prop_assert_eq!(x.is_empty(), a.is_empty());
            prop_assert_eq!(x == y, a == b);
            prop_assert_eq!(x.is_subset(&y), a.is_subset(&b));
            prop_assert_eq!(x.intersection(&y), set(&a.intersection(&b).copied().collect()));
            prop_assert_eq!(x.union(&y), set(&a.union(&b).copied().collect()));
            prop_assert_eq!(x.difference(&y), set(&a.difference(&b).copied().collect()));
            for place in 0..1701 {
                prop_assert_eq!(x.contains(place), a.contains(&place));
            }
        }
    }

    #[test]
    fn a_place_that_no_tuple_has_is_left_out() {
        let mut set = ColumnSet::new();
        set.insert(usize::MAX);
        set.insert(PLACES_MAX);
        assert!(set.is_empty());
        assert_eq!(ColumnSet::all(usize::from(u16::MAX) + 1).len(), PLACES_MAX);
    }
}
