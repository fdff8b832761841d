//! The oracle finds each kind of fault, and finds nothing where there is none.

use std::collections::HashSet;

use super::judge::{
    Channel, Counts, Cursor, Entry, Event, Filter, Judge, Kind, Membership, Round, Table, Truth,
    USERS, Version, Viewer,
};

/// A version of a row with id 7, of owner or team `group`.
fn version(number: i64, bucket: i32, group: i32) -> Version {
    Version { number, bucket, group, hash: u64::try_from(number).unwrap() * 10 }
}

fn truth(lsn: u64, table: Table, old: Option<Version>, new: Option<Version>) -> Truth {
    let time_us = i64::try_from(lsn).unwrap();
    Truth { lsn, ordinal: 0, time_us, table, id: 7, old, new }
}

/// Alice owns versions 1, 2 and 4; 3 is Bob's; 5 is gone with its row.
fn owned() -> Round {
    let row = |number| Some(version(number, i32::try_from(number).unwrap(), 0));
    let mut round = Round {
        truths: vec![
            truth(100, Table::Owned, None, row(1)),
            truth(200, Table::Owned, row(1), row(2)),
            truth(300, Table::Owned, row(2), row(3)),
            truth(400, Table::Owned, row(3), row(4)),
            truth(500, Table::Owned, row(4), None),
        ],
        ..Round::default()
    };
    round.owned[0] = HashSet::from([1, 2, 4]);
    round.owned[1] = HashSet::from([3]);
    round
}

fn channel(user: usize, filter: Filter) -> Channel {
    let asks = vec![(Table::Owned, filter), (Table::Team, filter)];
    Channel { name: "c".into(), viewer: Viewer::User(user), asks }
}

fn start(lsn: u64) -> Entry {
    let cursor = Some(Cursor { lsn, ordinal: u32::MAX });
    Entry::Start { cursor, resumed: false, time_us: 0 }
}

fn event(lsn: u64, kind: Kind, version: i64) -> Entry {
    Entry::Event(Event {
        time_us: i64::try_from(lsn).unwrap() + 1,
        cursor: Some(Cursor { lsn, ordinal: 0 }),
        table: Table::Owned,
        kind,
        id: 7,
        record: (kind != Kind::Delete).then(|| (version, u64::try_from(version).unwrap() * 10)),
        old_record: None,
    })
}

/// What Alice must be told.
fn told() -> Vec<Entry> {
    vec![
        start(0),
        event(100, Kind::Insert, 1),
        event(200, Kind::Update, 2),
        event(300, Kind::Delete, 0),
        event(400, Kind::Update, 4),
        event(500, Kind::Delete, 0),
    ]
}

/// The counts that are not zero of one log of Alice's.
fn judged(round: &Round, filter: Filter, log: Vec<Entry>) -> Judge {
    let mut judge = Judge::new(vec![channel(0, filter)], HashSet::new());
    judge.judge(round, &[log]);
    judge
}

fn check(log: Vec<Entry>, bad: Counts) {
    let judge = judged(&owned(), Filter::None, log);
    let (counts, accounts) = (judge.counts, &judge.accounts);
    let found = Counts { events: 0, decisions: 0, ..counts };
    assert_eq!(found, bad, "{accounts:?}");
    assert_eq!(u64::try_from(accounts.len()).unwrap(), bad.bad());
}

#[test]
fn all_that_is_to_be_seen_once_and_in_order_is_well() {
    check(told(), Counts::default());
}

#[test]
fn whoever_starts_later_is_owed_no_more_than_what_follows() {
    let mut log = told();
    log.splice(0..3, [start(200)]);
    check(log.clone(), Counts::default());
    log[0] = start(199);
    check(log, Counts { lost: 1, ..Counts::default() });
}

#[test]
fn what_did_not_come_is_lost_wherever_it_is_missing() {
    for (place, missing) in [(1..2, 1), (3..4, 1), (5..6, 1), (1..6, 5)] {
        let mut log = told();
        log.drain(place);
        check(log, Counts { lost: missing, ..Counts::default() });
    }
}

#[test]
fn what_came_to_somebody_else_was_withheld() {
    let everything = Channel {
        name: "all".into(),
        viewer: Viewer::Service,
        asks: vec![(Table::Owned, Filter::None)],
    };
    let mut judge = Judge::new(vec![channel(0, Filter::None), everything], HashSet::new());
    let mut all = told();
    all[3] = event(300, Kind::Update, 3);
    let mut log = told();
    log.remove(2);
    judge.judge(&owned(), &[log, all]);
    assert_eq!((judge.counts.withheld, judge.counts.bad()), (1, 1), "{:?}", judge.accounts);
}

#[test]
fn what_came_twice_is_repeated_also_over_connections_and_rounds() {
    let mut log = told();
    let cursor = Some(Cursor { lsn: 500, ordinal: 0 });
    log.push(Entry::Start { cursor, resumed: true, time_us: 600 });
    log.push(event(500, Kind::Delete, 0));
    check(log, Counts { repeated: 1, ..Counts::default() });
    let mut judge = judged(&owned(), Filter::None, told());
    judge.judge(&Round::default(), &[vec![event(400, Kind::Update, 4)]]);
    assert_eq!((judge.counts.repeated, judge.counts.bad()), (1, 1), "{:?}", judge.accounts);
}

#[test]
fn what_came_late_is_misordered_and_not_lost() {
    let mut log = told();
    log.swap(1, 2);
    // The cursors do not rise, and the row is late.
    check(log, Counts { misordered: 2, ..Counts::default() });
}

#[test]
fn what_was_not_to_be_seen_is_leaked() {
    let mut log = told();
    log[3] = event(300, Kind::Update, 3);
    // Instead of the end of the row, which may be told.
    check(log, Counts { wrong: 1, ..Counts::default() });
    let bob = |log| {
        let mut judge = Judge::new(vec![channel(1, Filter::None)], HashSet::new());
        judge.judge(&owned(), &[log]);
        judge.counts
    };
    let mut log = vec![start(0), event(300, Kind::Update, 3), event(400, Kind::Delete, 0)];
    assert_eq!(bob(log.clone()).bad(), 0);
    log.push(event(500, Kind::Delete, 0));
    let counts = bob(log.clone());
    assert_eq!((counts.leaked, counts.bad()), (1, 1));
    log.pop();
    log.insert(1, event(200, Kind::Update, 2));
    let counts = bob(log);
    assert_eq!((counts.leaked, counts.bad()), (1, 1));
}

#[test]
fn an_old_row_that_was_not_to_be_seen_is_leaked() {
    let mut log = told();
    let Entry::Event(last) = &mut log[4] else { panic!() };
    last.old_record = Some((3, 30));
    check(log.clone(), Counts { leaked: 1, ..Counts::default() });
    let Entry::Event(second) = &mut log[2] else { panic!() };
    second.old_record = Some((1, 10));
    let Entry::Event(last) = &mut log[4] else { panic!() };
    last.old_record = None;
    check(log, Counts::default());
}

#[test]
fn what_was_never_committed_is_leaked() {
    let mut log = told();
    log.push(event(600, Kind::Insert, 99));
    check(log, Counts { leaked: 1, ..Counts::default() });
}

#[test]
fn another_row_or_another_place_is_wrong() {
    let mut log = told();
    let Entry::Event(first) = &mut log[1] else { panic!() };
    first.record = Some((1, 11));
    check(log, Counts { wrong: 1, ..Counts::default() });
    let mut log = told();
    let Entry::Event(first) = &mut log[1] else { panic!() };
    first.cursor = Some(Cursor { lsn: 99, ordinal: 0 });
    check(log, Counts { wrong: 1, ..Counts::default() });
}

#[test]
fn a_gap_is_told_or_it_is_a_loss() {
    let gap = Entry::Gap { to: Some(Cursor { lsn: 300, ordinal: 0 }), reason: "r".into() };
    let mut log = told();
    log.splice(2..4, [gap]);
    let mut round = owned();
    round.gaps_are_due = true;
    let judge = judged(&round, Filter::None, log.clone());
    assert_eq!((judge.counts.gaps, judge.counts.bad()), (1, 0), "{:?}", judge.accounts);
    // The gap itself, and the two changes in it.
    check(log, Counts { lost: 3, ..Counts::default() });
}

#[test]
fn caught_up_means_that_all_before_it_came() {
    let caught_up = Entry::CaughtUp { cursor: Cursor { lsn: 300, ordinal: 0 } };
    let mut log = told();
    log.insert(4, caught_up.clone());
    check(log.clone(), Counts::default());
    // One that comes after it all the same is late.
    log.swap(3, 4);
    check(log.clone(), Counts { misordered: 1, ..Counts::default() });
    log.remove(4);
    check(log, Counts { lost: 1, ..Counts::default() });
}

#[test]
fn filters_decide_like_sight() {
    // Buckets are as versions: the row leaves with its third.
    let log = vec![start(0), event(100, Kind::Insert, 1), event(200, Kind::Delete, 0)];
    let judge = judged(&owned(), Filter::BucketIs(1), log);
    assert_eq!(judge.counts.bad(), 0, "{:?}", judge.accounts);
    let log = vec![start(0), event(200, Kind::Update, 2), event(300, Kind::Delete, 0)];
    let judge = judged(&owned(), Filter::BucketIs(2), log.clone());
    assert_eq!(judge.counts.bad(), 0, "{:?}", judge.accounts);
    let judge = judged(&owned(), Filter::BucketIs(1), log);
    assert_eq!((judge.counts.lost, judge.counts.leaked), (1, 1), "{:?}", judge.accounts);
}

#[test]
fn a_membership_opens_the_answer_only_between_commit_and_delivery() {
    // Alice leaves team 2 at 150, and comes back at 250.
    let row = |number| Some(version(number, 0, 2));
    let change = |from, time_us, member| Membership { from, time_us, user: 0, team: 2, member };
    let round = Round {
        truths: vec![
            truth(100, Table::Team, None, row(1)),
            truth(200, Table::Team, row(1), row(2)),
            truth(300, Table::Team, row(2), row(3)),
        ],
        memberships: vec![change(1, 150, false), change(2, 250, true)],
        ..Round::default()
    };
    let of_team = |lsn: u64, kind, number, time_us| {
        let Entry::Event(event) = event(lsn, kind, number) else { panic!() };
        Entry::Event(Event { table: Table::Team, time_us, ..event })
    };
    let judged = |log: Vec<Entry>| {
        let members = HashSet::from([(0, 2)]);
        let mut judge = Judge::new(vec![channel(0, Filter::None)], members.clone());
        judge.judge(&round, &[log]);
        assert_eq!(*judge.members(), members);
        (judge.counts.lost, judge.counts.leaked, judge.counts.open)
    };
    let (first, last) = (of_team(100, Kind::Insert, 1, 120), of_team(300, Kind::Update, 3, 320));
    let second = |time_us| of_team(200, Kind::Update, 2, time_us);
    assert_eq!(judged(vec![start(0), first.clone(), last.clone()]), (0, 0, 1));
    // Told before she came back: nobody could have known that she would.
    assert_eq!(judged(vec![start(0), first.clone(), second(240), last.clone()]), (0, 1, 0));
    assert_eq!(judged(vec![start(0), first, second(260), last.clone()]), (0, 0, 1));
    // The first may be missing where the next was decided after she had left; the last may not.
    assert_eq!(judged(vec![start(0), last]), (0, 0, 2));
    let first = of_team(100, Kind::Insert, 1, 120);
    assert_eq!(judged(vec![start(0), first]), (1, 0, 1));
}

#[test]
fn what_was_seen_of_an_earlier_round_may_be_told_to_end() {
    let row = |number| Some(version(number, 0, 0));
    let mut first =
        Round { truths: vec![truth(100, Table::Owned, None, row(1))], ..Round::default() };
    first.owned[0] = HashSet::from([1]);
    let second = Round { truths: vec![truth(200, Table::Owned, row(1), None)], ..Round::default() };
    let mut judge =
        Judge::new((0..USERS).map(|user| channel(user, Filter::None)).collect(), HashSet::new());
    let mut logs = vec![vec![start(0)]; USERS];
    logs[0].push(event(100, Kind::Insert, 1));
    judge.judge(&first, &logs);
    let mut logs = vec![Vec::new(); USERS];
    logs[0].push(event(200, Kind::Delete, 0));
    judge.judge(&second, &logs);
    assert_eq!(judge.counts.bad(), 0, "{:?}", judge.accounts);
    logs[1].push(event(200, Kind::Delete, 0));
    let mut again = Judge::new(vec![channel(1, Filter::None)], HashSet::new());
    again.judge(&first, &[vec![start(0)]]);
    again.judge(&second, &logs[1..2]);
    assert_eq!(again.counts.leaked, 1);
}

#[test]
fn cursors_are_read_as_they_are_written() {
    let cursor = Cursor::parse("0000000001A2B3C4-0000000f-89abcdef");
    assert_eq!(cursor, Some(Cursor { lsn: 0x01A2_B3C4, ordinal: 15 }));
    for text in ["", "1-2-3", "0000000001A2B3C4-0000000f", "x000000001A2B3C4-0000000f-89abcdef"] {
        assert_eq!(Cursor::parse(text), None, "{text}");
    }
}
