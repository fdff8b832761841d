//! The oracle: what Postgres committed and would show, against what clients got.
//!
//! In:     one round: the committed changes in commit order as a slot of the oracle's own tells
//!         them ([`Truth`]), who sees which version as Postgres answers it, what each channel
//!         received ([`Entry`]).
//! Out:    [`Counts`], and an account of each of the first events that went wrong.
//! Never:  IO; anything that the service says about itself taken for true. Of its cursors it uses
//!         one thing: that they name a place in the log, which is then compared.
//!
//! A change is judged by the rights at its commit. Where a membership changed between its commit
//! and the moment the client heard of it (or of what came after it), both answers are accepted and
//! counted as [`Counts::open`].

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

/// Accounts that are kept of each kind.
const ACCOUNTS_MAX: usize = 10;

/// Users with an account of their own, in [`Viewer::User`].
pub(crate) const USERS: usize = 4;

/// Published tables that are listened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Table {
    /// Everybody sees every row.
    Open,
    /// Rows are seen by their owner: a policy about the row alone.
    Owned,
    /// Rows are seen by the members of their team: a policy that reads another table.
    Team,
}

impl Table {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Open => "open_rows",
            Self::Owned => "owned",
            Self::Team => "team_docs",
        }
    }

    pub(crate) fn of(name: &str) -> Option<Self> {
        [Self::Open, Self::Owned, Self::Team].into_iter().find(|table| table.name() == name)
    }
}

/// One version of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version {
    /// No other version of any row has it.
    pub(crate) number: i64,
    pub(crate) bucket: i32,
    /// Owner or team, by number.
    pub(crate) group: i32,
    /// Of all its columns.
    pub(crate) hash: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Insert,
    Update,
    Delete,
}

/// One committed row change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Truth {
    /// Of its commit.
    pub(crate) lsn: u64,
    /// Among the changes of its transaction.
    pub(crate) ordinal: u32,
    /// When it was committed, in microseconds since 1970.
    pub(crate) time_us: i64,
    pub(crate) table: Table,
    pub(crate) id: i64,
    pub(crate) old: Option<Version>,
    pub(crate) new: Option<Version>,
}

/// A membership that began or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Membership {
    /// In force for the changes of the round from this one on.
    pub(crate) from: usize,
    /// When it was committed, in microseconds since 1970.
    pub(crate) time_us: i64,
    pub(crate) user: usize,
    pub(crate) team: i32,
    pub(crate) member: bool,
}

/// What Postgres says of one round.
#[derive(Debug, Default)]
pub(crate) struct Round {
    pub(crate) truths: Vec<Truth>,
    pub(crate) memberships: Vec<Membership>,
    /// Versions of owned rows that each user sees, asked as that user.
    pub(crate) owned: [HashSet<i64>; USERS],
    /// The run took the slot away: a gap is what must be told.
    pub(crate) gaps_are_due: bool,
}

/// As whom a channel listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Viewer {
    /// Sees everything.
    Service,
    /// Sees open rows.
    Anon,
    User(usize),
}

/// A filter of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filter {
    None,
    BucketIs(i32),
    BucketBelow(i32),
    BucketAbove(i32),
    TeamIn(i32, i32),
}

impl Filter {
    pub(crate) fn text(self) -> Option<String> {
        match self {
            Self::None => None,
            Self::BucketIs(bucket) => Some(format!("bucket=eq.{bucket}")),
            Self::BucketBelow(bucket) => Some(format!("bucket=lt.{bucket}")),
            Self::BucketAbove(bucket) => Some(format!("bucket=gt.{bucket}")),
            Self::TeamIn(one, other) => Some(format!("team=in.({one},{other})")),
        }
    }

    pub(crate) fn accepts(self, row: &Version) -> bool {
        match self {
            Self::None => true,
            Self::BucketIs(bucket) => row.bucket == bucket,
            Self::BucketBelow(bucket) => row.bucket < bucket,
            Self::BucketAbove(bucket) => row.bucket > bucket,
            Self::TeamIn(one, other) => row.group == one || row.group == other,
        }
    }
}

/// A channel: who, and what of which table. One subscription a table at most.
#[derive(Debug, Clone)]
pub(crate) struct Channel {
    pub(crate) name: String,
    pub(crate) viewer: Viewer,
    pub(crate) asks: Vec<(Table, Filter)>,
}

/// A cursor's place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cursor {
    pub(crate) lsn: u64,
    pub(crate) ordinal: u32,
}

impl Cursor {
    /// `<16 hex digits>-<8>-<8 of the epoch>`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (lsn, ordinal) = (parts.next()?, parts.next()?);
        let cursor = Self {
            lsn: u64::from_str_radix(lsn, 16).ok()?,
            ordinal: u32::from_str_radix(ordinal, 16).ok()?,
        };
        (lsn.len() == 16 && ordinal.len() == 8 && parts.next()?.len() == 8).then_some(cursor)
    }
}

/// What a client was told of one change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// When it came, in microseconds since 1970.
    pub(crate) time_us: i64,
    pub(crate) cursor: Option<Cursor>,
    pub(crate) table: Table,
    pub(crate) kind: Kind,
    pub(crate) id: i64,
    /// Version and hash of the record.
    pub(crate) record: Option<(i64, u64)>,
    /// The same of the old record, when it is more than a key.
    pub(crate) old_record: Option<(i64, u64)>,
}

/// What happened to one channel, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Joined: where the subscription starts, and whether it goes on where it was.
    Start {
        cursor: Option<Cursor>,
        resumed: bool,
        time_us: i64,
    },
    Event(Event),
    /// Everything before this was replayed.
    CaughtUp {
        cursor: Cursor,
    },
    /// Changes are missing up to here.
    Gap {
        to: Option<Cursor>,
        reason: String,
    },
}

/// What went wrong, and how much there was.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Events received.
    pub(crate) events: u64,
    pub(crate) lost: u64,
    pub(crate) repeated: u64,
    pub(crate) misordered: u64,
    pub(crate) leaked: u64,
    pub(crate) withheld: u64,
    /// Another row, another operation or another place in the log than was committed.
    pub(crate) wrong: u64,
    /// Gaps that were told, and had to be.
    pub(crate) gaps: u64,
    /// Decisions for which rights changed between commit and delivery.
    pub(crate) open: u64,
    /// Decisions in all.
    pub(crate) decisions: u64,
}

impl Counts {
    pub(crate) fn bad(&self) -> u64 {
        self.lost + self.repeated + self.misordered + self.leaked + self.withheld + self.wrong
    }

    /// How much of what was decided could be decided either way.
    pub(crate) fn open_percent(&self) -> f64 {
        let [open, decisions] = [self.open, self.decisions]
            .map(|count| f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
        if decisions > 0.0 { 100.0 * open / decisions } else { 0.0 }
    }
}

/// Users and their teams.
pub(crate) type Members = HashSet<(usize, i32)>;

/// Which users see a version.
type SeenBy = HashMap<i64, [bool; USERS]>;

/// The oracle over all rounds.
#[derive(Debug)]
pub(crate) struct Judge {
    channels: Vec<State>,
    /// Who is in which team, at the end of the last round.
    members: Members,
    /// Users that see the live version of an owned row, of earlier rounds.
    owned: SeenBy,
    /// Versions up to this one are of earlier rounds.
    version_before: i64,
    pub(crate) counts: Counts,
    pub(crate) accounts: Vec<String>,
}

#[derive(Debug)]
struct State {
    channel: Channel,
    /// Whether it is known from where on the channel must have everything.
    anchored: bool,
}

/// Possible outcomes of one change for one channel, a bit each.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Outcomes(u8);

impl Outcomes {
    fn bit(outcome: Option<Kind>) -> u8 {
        match outcome {
            None => 1,
            Some(Kind::Insert) => 2,
            Some(Kind::Update) => 4,
            Some(Kind::Delete) => 8,
        }
    }

    fn add(&mut self, outcome: Option<Kind>) {
        self.0 |= Self::bit(outcome);
    }

    fn allows(self, kind: Kind) -> bool {
        self.0 & Self::bit(Some(kind)) != 0
    }

    fn must_come(self) -> bool {
        self.0 & Self::bit(None) == 0
    }

    fn never_comes(self) -> bool {
        self.0 == Self::bit(None)
    }

    fn is_open(self) -> bool {
        self.0.count_ones() > 1
    }
}

/// Whether a version may be seen: as far as is certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Yes,
    No,
    /// Rights changed meanwhile.
    Either,
}

impl Seen {
    fn possible(self) -> &'static [bool] {
        match self {
            Self::Yes => &[true],
            Self::No => &[false],
            Self::Either => &[true, false],
        }
    }

    fn of(seen: bool) -> Self {
        if seen { Self::Yes } else { Self::No }
    }
}

/// One round under judgement.
struct Court<'a> {
    round: &'a Round,
    members: &'a Members,
    earlier: &'a SeenBy,
    by_version: HashMap<i64, usize>,
    by_row: HashMap<(Table, i64), Vec<usize>>,
    /// By user and team.
    memberships: HashMap<(usize, i32), Vec<Membership>>,
}

/// An event that should have come and did not, so far.
struct Missing {
    channel: usize,
    truth: usize,
    why: String,
}

impl Judge {
    pub(crate) fn new(channels: Vec<Channel>, members: Members) -> Self {
        let state = |channel| State { channel, anchored: false };
        Self {
            channels: channels.into_iter().map(state).collect(),
            members,
            owned: HashMap::new(),
            version_before: 0,
            counts: Counts::default(),
            accounts: Vec::new(),
        }
    }

    /// Who is in which team, as of the rounds that were judged.
    pub(crate) fn members(&self) -> &Members {
        &self.members
    }

    /// Judges a round; `logs` by channel. Everything committed in it must have come by now.
    pub(crate) fn judge(&mut self, round: &Round, logs: &[Vec<Entry>]) {
        let (members, earlier) =
            (std::mem::take(&mut self.members), std::mem::take(&mut self.owned));
        let court = Court::new(round, &members, &earlier);
        let mut missing = Vec::new();
        // By truth: whether anybody got it.
        let mut got = vec![false; round.truths.len()];
        for (number, log) in logs.iter().enumerate() {
            self.judge_channel(&court, number, log, &mut missing, &mut got);
        }
        for Missing { channel, truth, why } in missing {
            let by_policy = round.truths[truth].table != Table::Open
                && self.channels[channel].channel.viewer != Viewer::Service;
            let counter = if by_policy && got[truth] {
                &mut self.counts.withheld
            } else {
                &mut self.counts.lost
            };
            *counter += 1;
            let name = if by_policy && got[truth] { "withheld" } else { "lost" };
            let text = format!("{} {why}", court.describe(truth));
            self.account(name, channel, &text);
        }
        let (next_members, next_owned) = court.carry_over();
        let versions = round.truths.iter().filter_map(|truth| truth.new.map(|new| new.number));
        self.version_before = versions.max().unwrap_or(0).max(self.version_before);
        (self.members, self.owned) = (next_members, next_owned);
    }

    fn account(&mut self, kind: &str, channel: usize, text: &str) {
        let same = |account: &&String| account.starts_with(kind);
        if self.accounts.iter().filter(same).count() < ACCOUNTS_MAX {
            let Channel { name, viewer, .. } = &self.channels[channel].channel;
            self.accounts.push(format!("{kind}: channel {name} as {viewer:?}: {text}"));
        }
    }

    fn judge_channel(
        &mut self,
        court: &Court<'_>,
        number: usize,
        log: &[Entry],
        missing: &mut Vec<Missing>,
        got: &mut [bool],
    ) {
        let truths = &court.round.truths;
        let channel = self.channels[number].channel.clone();
        // Everything before this was dealt with.
        let mut next = 0;
        let mut anchored = self.channels[number].anchored;
        // Without a cursor: what is committed from here on is the channel's own.
        let mut joined_us = i64::MIN;
        let mut received: HashSet<usize> = HashSet::new();
        let mut own_missing: Vec<Missing> = Vec::new();
        let mut last_cursor: Option<Cursor> = None;
        let mut since = String::from("since the round began");
        for (place, entry) in log.iter().enumerate() {
            // Whoever hears of something later was not decided about before that.
            let decided_by = log[place..].iter().find_map(|entry| match entry {
                Entry::Event(event) => Some(event.time_us),
                Entry::Start { .. } | Entry::CaughtUp { .. } | Entry::Gap { .. } => None,
            });
            if !matches!(entry, Entry::Event(_)) {
                since = format!("after {entry:?}, before that {:?}", log[..place].last());
            }
            match entry {
                Entry::Start { cursor, resumed, time_us } => {
                    last_cursor = None;
                    if *resumed && anchored {
                        continue;
                    }
                    (anchored, joined_us) = (cursor.is_some(), *time_us);
                    if let Some(cursor) = cursor {
                        next = court.after(*cursor).max(next);
                    }
                }
                Entry::CaughtUp { cursor } => {
                    let to = court.after(*cursor);
                    if anchored && to > next {
                        self.skip(court, &channel, (next, to), decided_by, &mut |truth| {
                            own_missing.push(Missing {
                                channel: number,
                                truth,
                                why: format!("was not replayed before caught_up, {since}"),
                            });
                        });
                        next = to;
                    }
                    if !anchored {
                        (anchored, next) = (true, to.max(next));
                    }
                }
                Entry::Gap { to, reason } => {
                    let to = to.map_or(truths.len(), |to| court.after(to));
                    if court.round.gaps_are_due {
                        self.counts.gaps += 1;
                    } else {
                        self.counts.lost += 1;
                        let text = format!("a gap was told without need: {reason}, {since}");
                        self.account("lost", number, &text);
                    }
                    if !court.round.gaps_are_due && anchored && to > next {
                        self.skip(court, &channel, (next, to), decided_by, &mut |truth| {
                            let why = format!("is in a gap without need, {since}");
                            own_missing.push(Missing { channel: number, truth, why });
                        });
                    }
                    (anchored, next) = (true, to.max(next));
                }
                Entry::Event(event) => {
                    self.counts.events += 1;
                    if let Some(cursor) = event.cursor
                        && last_cursor.replace(cursor).is_some_and(|last| last >= cursor)
                    {
                        self.counts.misordered += 1;
                        let text =
                            format!("cursors do not rise: {cursor:?} after one as late, {since}");
                        self.account("misordered", number, &text);
                    }
                    let Some(index) = court.find(event, next, &channel) else {
                        let version = event.record.map_or(0, |(version, _)| version);
                        if event.record.is_some() && version <= self.version_before {
                            self.counts.repeated += 1;
                            let text = format!("{event:?} is of an earlier round, {since}");
                            self.account("repeated", number, &text);
                        } else {
                            self.counts.leaked += 1;
                            let text = format!("{event:?} was never committed, {since}");
                            self.account("leaked", number, &text);
                        }
                        continue;
                    };
                    got[index] = true;
                    if received.contains(&index) {
                        self.counts.repeated += 1;
                        let text = format!("{} came again, {since}", court.describe(index));
                        self.account("repeated", number, &text);
                        continue;
                    }
                    received.insert(index);
                    if index < next {
                        if let Some(at) = own_missing.iter().position(|m| m.truth == index) {
                            own_missing.remove(at);
                            self.counts.misordered += 1;
                            let text = format!("{} came late, {since}", court.describe(index));
                            self.account("misordered", number, &text);
                        } else {
                            self.counts.repeated += 1;
                            let text = format!(
                                "{} is from before its cursor, or was not to be seen, {since}",
                                court.describe(index)
                            );
                            self.account("repeated", number, &text);
                        }
                    } else {
                        if anchored {
                            let came = court.describe(index);
                            self.skip(
                                court,
                                &channel,
                                (next, index),
                                Some(event.time_us),
                                &mut |truth| {
                                    let why = format!("did not come before {came}, {since}");
                                    own_missing.push(Missing { channel: number, truth, why });
                                },
                            );
                        }
                        anchored |= truths[index].time_us > joined_us;
                        next = index + 1;
                    }
                    self.examine(court, &channel, number, event, index, &since);
                }
            }
        }
        if anchored {
            self.skip(court, &channel, (next, truths.len()), None, &mut |truth| {
                let why = format!("had not come when the round ended, {since}");
                own_missing.push(Missing { channel: number, truth, why });
            });
        }
        missing.append(&mut own_missing);
        self.channels[number].anchored = anchored;
    }

    /// What a channel did not get of a stretch: allowed, or missing.
    fn skip(
        &mut self,
        court: &Court<'_>,
        channel: &Channel,
        (from, to): (usize, usize),
        decided_by: Option<i64>,
        miss: &mut dyn FnMut(usize),
    ) {
        for truth in from..to {
            let outcomes = court.outcomes(channel, truth, decided_by);
            self.counts.decisions += 1;
            self.counts.open += u64::from(outcomes.is_open());
            if outcomes.must_come() {
                miss(truth);
            }
        }
    }

    /// Looks at what one event says of the change that it is about.
    fn examine(
        &mut self,
        court: &Court<'_>,
        channel: &Channel,
        number: usize,
        event: &Event,
        index: usize,
        since: &str,
    ) {
        let truth = &court.round.truths[index];
        let outcomes = court.outcomes(channel, index, Some(event.time_us));
        self.counts.decisions += 1;
        self.counts.open += u64::from(outcomes.is_open());
        let mut bad = |count: fn(&mut Counts) -> &mut u64, kind: &str, what: &str| {
            *count(&mut self.counts) += 1;
            let text = format!("{} {what}: {event:?}, {since}", court.describe(index));
            self.account(kind, number, &text);
        };
        if outcomes.never_comes() {
            return bad(|counts| &mut counts.leaked, "leaked", "may not be seen");
        }
        if !outcomes.allows(event.kind) {
            return bad(|counts| &mut counts.wrong, "wrong", "came as another operation");
        }
        if event
            .cursor
            .is_some_and(|cursor| (cursor.lsn, cursor.ordinal) != (truth.lsn, truth.ordinal))
        {
            bad(|counts| &mut counts.wrong, "wrong", "has the cursor of another place");
        }
        let told = truth.new.map(|new| (new.number, new.hash));
        if event.record.is_some() && event.record != told {
            bad(|counts| &mut counts.wrong, "wrong", "came with other columns");
        }
        if let Some(shown) = event.old_record {
            let old = truth.old;
            if old.map(|old| (old.number, old.hash)) != Some(shown) {
                bad(|counts| &mut counts.wrong, "wrong", "came with another old row");
            }
            let seen = old.map_or(Seen::No, |old| {
                court.seen(channel.viewer, truth.table, &old, index, Some(event.time_us))
            });
            if seen == Seen::No {
                bad(
                    |counts| &mut counts.leaked,
                    "leaked",
                    "shows an old row that was not to be seen",
                );
            } else if event.kind == Kind::Delete && truth.table != Table::Open {
                bad(
                    |counts| &mut counts.wrong,
                    "wrong",
                    "shows more of a deleted row than its key",
                );
            }
        }
    }
}

impl<'a> Court<'a> {
    fn new(round: &'a Round, members: &'a Members, earlier: &'a SeenBy) -> Self {
        let mut by_version = HashMap::new();
        let mut by_row: HashMap<_, Vec<usize>> = HashMap::new();
        for (index, truth) in round.truths.iter().enumerate() {
            if let Some(new) = truth.new {
                by_version.insert(new.number, index);
            }
            by_row.entry((truth.table, truth.id)).or_default().push(index);
        }
        let mut memberships: HashMap<_, Vec<Membership>> = HashMap::new();
        for change in &round.memberships {
            memberships.entry((change.user, change.team)).or_default().push(*change);
        }
        Self { round, members, earlier, by_version, by_row, memberships }
    }

    /// The first change behind a place in the log.
    fn after(&self, cursor: Cursor) -> usize {
        let is_before = |truth: &Truth| (truth.lsn, truth.ordinal) <= (cursor.lsn, cursor.ordinal);
        self.round.truths.partition_point(is_before)
    }

    /// The change that an event is about.
    fn find(&self, event: &Event, next: usize, channel: &Channel) -> Option<usize> {
        if let Some((version, _)) = event.record {
            let index = *self.by_version.get(&version)?;
            let truth = &self.round.truths[index];
            return ((truth.table, truth.id) == (event.table, event.id)).then_some(index);
        }
        // A deleted row has no version: it is the next one that may be told so.
        let could_be = |index: &&usize| {
            let truth = &self.round.truths[**index];
            truth.old.is_some()
                && match event.cursor {
                    Some(cursor) => (cursor.lsn, cursor.ordinal) == (truth.lsn, truth.ordinal),
                    None => {
                        self.outcomes(channel, **index, Some(event.time_us)).allows(Kind::Delete)
                    }
                }
        };
        let of_row = self.by_row.get(&(event.table, event.id))?;
        let later = of_row.iter().filter(|index| **index >= next).find(could_be);
        later.or_else(|| of_row.iter().rev().find(could_be)).copied()
    }

    fn describe(&self, index: usize) -> String {
        let Truth { lsn, ordinal, time_us, table, id, old, new } = &self.round.truths[index];
        let mut text = String::new();
        let (high, low) = (lsn >> 32, lsn & 0xffff_ffff);
        write!(text, "{} id {id} at {high:X}/{low:X} ordinal {ordinal}, {time_us}", table.name())
            .unwrap();
        for (name, version) in [("old", old), ("new", new)] {
            if let Some(Version { number, bucket, group, .. }) = version {
                write!(text, " {name} (version {number}, bucket {bucket}, group {group})").unwrap();
            }
        }
        text
    }

    /// Whether a viewer may see this version as part of this change.
    fn seen(
        &self,
        viewer: Viewer,
        table: Table,
        version: &Version,
        truth: usize,
        decided_by: Option<i64>,
    ) -> Seen {
        let Viewer::User(user) = viewer else {
            return Seen::of(viewer == Viewer::Service || table == Table::Open);
        };
        match table {
            Table::Open => Seen::Yes,
            Table::Owned => Seen::of(match self.earlier.get(&version.number) {
                Some(seen) => seen[user],
                None => self.round.owned[user].contains(&version.number),
            }),
            Table::Team => {
                let mut now = self.members.contains(&(user, version.group));
                let changes = self.memberships.get(&(user, version.group));
                for change in changes.into_iter().flatten() {
                    if change.from <= truth {
                        now = change.member;
                    } else if change.member != now
                        && decided_by.is_none_or(|time_us| time_us >= change.time_us)
                    {
                        return Seen::Either;
                    }
                }
                Seen::of(now)
            }
        }
    }

    /// What a channel may be told of a change. None for `decided_by`: at any time.
    fn outcomes(&self, channel: &Channel, index: usize, decided_by: Option<i64>) -> Outcomes {
        let truth = &self.round.truths[index];
        let mut outcomes = Outcomes::default();
        let Some((_, filter)) = channel.asks.iter().find(|(table, _)| *table == truth.table) else {
            outcomes.add(None);
            return outcomes;
        };
        let side = |version: &Option<Version>| match version {
            Some(version) => {
                let seen = self.seen(channel.viewer, truth.table, version, index, decided_by);
                (filter.accepts(version), seen)
            }
            None => (false, Seen::No),
        };
        let ((old_fits, old_seen), (new_fits, new_seen)) = (side(&truth.old), side(&truth.new));
        for &sees_old in old_seen.possible() {
            for &sees_new in new_seen.possible() {
                outcomes.add(match (&truth.old, &truth.new) {
                    (None, Some(_)) => (new_fits && sees_new).then_some(Kind::Insert),
                    (Some(_), Some(_)) if new_fits && sees_new => Some(Kind::Update),
                    // Gone, out of sight, or out of the filter.
                    (Some(_), _) => (old_fits && sees_old).then_some(Kind::Delete),
                    (None, None) => None,
                });
            }
        }
        outcomes
    }

    /// Who is a member at the end, and who sees the versions that are still there then.
    fn carry_over(&self) -> (Members, SeenBy) {
        let mut members = self.members.clone();
        for Membership { user, team, member, .. } in &self.round.memberships {
            if *member {
                members.insert((*user, *team));
            } else {
                members.remove(&(*user, *team));
            }
        }
        let mut owned = self.earlier.clone();
        for truth in self.round.truths.iter().filter(|truth| truth.table == Table::Owned) {
            if let Some(old) = truth.old {
                owned.remove(&old.number);
            }
            if let Some(new) = truth.new {
                let seen = |user: usize| self.round.owned[user].contains(&new.number);
                owned.insert(new.number, std::array::from_fn(seen));
            }
        }
        (members, owned)
    }
}
