//! Rows of one transaction → one event for each rule and its topics.
//!
//! In:     rendered payloads of rules that gather, in commit order.
//! Out:    [`Group`]s, when the transaction ends or when one is full.
//! Never:  more than [`Limits`] of a transaction, however large it is: what is full is told, and
//!         another event follows.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::change::{Commit, Origin};

/// How much is gathered.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Rows of one event.
    pub rows_max: usize,
    /// Bytes of one event's rows.
    pub group_bytes_max: usize,
    /// Bytes of all events of the transaction that are being gathered.
    pub bytes_max: usize,
}

/// Bytes that a group costs beside its rows.
const GROUP_OVERHEAD: usize = 256;

/// One event in the making.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Of which declaration.
    pub declaration: i64,
    /// Number of the rule there.
    pub rule: usize,
    /// Name of the event.
    pub event: Arc<str>,
    /// Where it is told.
    pub topics: Box<[Box<str>]>,
    /// In public rooms.
    pub public: bool,
    /// Not where the change was made.
    pub exclude_origin: bool,
    /// Who made it.
    pub origin: Option<Arc<Origin>>,
    /// Name of the list.
    pub name: Box<str>,
    /// Which of the transaction's this is.
    number: u64,
    rows: usize,
    /// JSON values with commas between.
    items: Vec<u8>,
}

impl Group {
    /// Nothing yet.
    #[expect(clippy::too_many_arguments, reason = "each is one fact of the event")]
    pub fn new(
        declaration: i64,
        rule: usize,
        event: Arc<str>,
        topics: Box<[Box<str>]>,
        public: bool,
        exclude_origin: bool,
        origin: Option<Arc<Origin>>,
        name: Box<str>,
    ) -> Self {
        Self {
            declaration,
            rule,
            event,
            topics,
            public,
            exclude_origin,
            origin,
            name,
            number: 0,
            rows: 0,
            items: Vec::new(),
        }
    }

    fn kind(&self) -> Kind {
        (self.declaration, self.rule, self.topics.clone())
    }

    /// The payload.
    pub fn payload(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.items.len() + self.name.len() + 8);
        out.push(b'{');
        crate::change::value::string(self.name.as_bytes(), &mut out);
        out.extend_from_slice(b":[");
        out.extend_from_slice(&self.items);
        out.extend_from_slice(b"]}");
        out
    }

    fn cost(&self) -> usize {
        let topics: usize = self.topics.iter().map(|topic| topic.len()).sum();
        self.items.len() + topics + GROUP_OVERHEAD
    }
}

/// Which rows make one event: of one rule, for the same topics.
type Kind = (i64, usize, Box<[Box<str>]>);

/// What a transaction has said so far.
#[derive(Debug, Clone, Default)]
pub struct Gathered {
    /// Which one.
    commit: Option<Commit>,
    groups: HashMap<Kind, Group>,
    bytes: usize,
    /// Groups so far.
    made: u64,
}

impl Gathered {
    /// The transaction that is being gathered.
    pub const fn commit(&self) -> Option<Commit> {
        self.commit
    }

    /// Ends the transaction: what it said, in the order in which it began to.
    pub fn take(&mut self) -> Vec<Group> {
        self.commit = None;
        self.made = 0;
        self.take_groups()
    }

    fn take_groups(&mut self) -> Vec<Group> {
        self.bytes = 0;
        let mut groups: Vec<Group> = self.groups.drain().map(|(_, group)| group).collect();
        groups.sort_unstable_by_key(|group| group.number);
        groups
    }

    /// Adds a row of transaction `commit`, of which nothing is gathered but itself. `group` is what
    /// it begins if it is the first of its kind. What is full now is returned.
    pub fn add(&mut self, commit: Commit, group: Group, item: &[u8], limits: Limits) -> Vec<Group> {
        self.commit = Some(commit);
        let kind = group.kind();
        let known = self.groups.entry(kind.clone()).or_insert_with(|| {
            self.made += 1;
            self.bytes += group.cost();
            Group { number: self.made, ..group }
        });
        let mut full = Vec::new();
        if known.items.len() + item.len() > limits.group_bytes_max && known.rows > 0 {
            self.bytes -= known.items.len();
            let next = Group { rows: 0, items: Vec::new(), ..known.clone() };
            full.push(std::mem::replace(known, next));
        }
        if known.rows > 0 {
            known.items.push(b',');
            self.bytes += 1;
        }
        known.items.extend_from_slice(item);
        known.rows += 1;
        self.bytes += item.len();
        if known.rows >= limits.rows_max {
            self.bytes -= known.cost();
            full.extend(self.groups.remove(&kind));
        }
        if self.bytes > limits.bytes_max {
            full.append(&mut self.take_groups());
        }
        full
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::lsn::Lsn;

    const LIMITS: Limits = Limits { rows_max: 3, group_bytes_max: 100, bytes_max: 10_000 };

    fn commit() -> Commit {
        Commit { xid: 1, lsn: Lsn::new(1), time: SystemTime::UNIX_EPOCH }
    }

    fn group(topic: &str) -> Group {
        let topics = [topic.into()].into();
        Group::new(1, 0, "reordered".into(), topics, false, true, None, "updates".into())
    }

    fn texts(groups: &[Group]) -> Vec<String> {
        let text = |group: &Group| {
            format!("{} {}", group.topics[0], String::from_utf8(group.payload()).unwrap())
        };
        groups.iter().map(text).collect()
    }

    #[test]
    fn rows_of_one_rule_and_topic_are_one_event() {
        let mut gathered = Gathered::default();
        for (topic, item) in [("b", "1"), ("a", "2"), ("b", "3")] {
            assert!(gathered.add(commit(), group(topic), item.as_bytes(), LIMITS).is_empty());
        }
        assert_eq!(gathered.commit(), Some(commit()));
        let told = texts(&gathered.take());
        assert_eq!(told, [r#"b {"updates":[1,3]}"#, r#"a {"updates":[2]}"#]);
        assert!(gathered.take().is_empty() && gathered.commit().is_none());
    }

    #[test]
    fn what_is_full_is_told_and_another_follows() {
        let mut gathered = Gathered::default();
        let mut told = Vec::new();
        for item in ["1", "2", "3", "4"] {
            told.extend(texts(&gathered.add(commit(), group("a"), item.as_bytes(), LIMITS)));
        }
        told.extend(texts(&gathered.take()));
        assert_eq!(told, [r#"a {"updates":[1,2,3]}"#, r#"a {"updates":[4]}"#]);
        let long = "9".repeat(60);
        assert!(gathered.add(commit(), group("a"), long.as_bytes(), LIMITS).is_empty());
        assert_eq!(gathered.add(commit(), group("a"), long.as_bytes(), LIMITS).len(), 1);
        let small = Limits { bytes_max: 600, ..LIMITS };
        let all = gathered.add(commit(), group("b"), long.as_bytes(), small);
        assert_eq!(all.iter().map(|group| &*group.topics[0]).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((gathered.bytes, gathered.groups.len()), (0, 0));
    }
}
