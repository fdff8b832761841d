//! What Postgres itself says: committed changes in commit order from a slot of our own, read by
//! its SQL functions; what each user may see, asked as that user.
//!
//! The messages of pgoutput are read here by a few lines of our own, so that nothing of what is
//! tested takes part in the proof.

use std::collections::{HashMap, HashSet};

use tokio_postgres::Client;

use crate::judge::{Members, Membership, Round, Table, Truth, USERS, Version};
use crate::world::{self, TRUTH};

/// Microseconds from 1970 to 2000, where Postgres begins to count.
const EPOCH_US: i64 = 946_684_800_000_000;

/// The slot's reader, over all rounds.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    relations: HashMap<u32, String>,
    /// Commit of the last transaction taken: after a crash the slot tells some again.
    last_lsn: u64,
    /// Versions up to this one were asked about.
    last_version: i64,
    /// Transactions taken in this round.
    pub(crate) xids: HashSet<u32>,
}

/// Values of a row, as text.
type Row = Vec<Option<String>>;

struct Message<'a>(&'a [u8]);

impl<'a> Message<'a> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (head, rest) = self.0.split_first_chunk::<N>().expect("a whole message");
        self.0 = rest;
        *head
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take())
    }

    fn text(&mut self) -> &'a str {
        let end = self.0.iter().position(|byte| *byte == 0).expect("an end of the name");
        let (name, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        std::str::from_utf8(name).expect("UTF-8")
    }

    /// Values of a row; an unchanged one is taken from the old row.
    fn tuple(&mut self, old: Option<&[Option<String>]>) -> Row {
        let count = u16::from_be_bytes(self.take());
        (0..usize::from(count))
            .map(|place| match self.take() {
                [b'n'] => None,
                [b'u'] => old.expect("replica identity full")[place].clone(),
                [b't'] => {
                    let length = usize::try_from(self.u32()).unwrap();
                    let (value, rest) = self.0.split_at(length);
                    self.0 = rest;
                    Some(String::from_utf8(value.to_vec()).expect("UTF-8"))
                }
                [kind] => panic!("a value of kind {kind}"),
            })
            .collect()
    }
}

impl Reader {
    /// Everything committed since the last round.
    pub(crate) async fn round(&mut self, admin: &Client) -> Round {
        let mut round = Round::default();
        self.xids.clear();
        let read = "select data from pg_logical_slot_get_binary_changes($1, null, null, \
                    'proto_version', '1', 'publication_names', $2)";
        let rows = admin.query(read, &[&TRUTH, &TRUTH]).await.unwrap();
        let (mut lsn, mut time_us, mut ordinal, mut again) = (0, 0, 0, false);
        for row in &rows {
            let data: &[u8] = row.get(0);
            let mut message = Message(data);
            match message.take() {
                [b'B'] => {
                    lsn = message.u64();
                    time_us = i64::from_be_bytes(message.take()) + EPOCH_US;
                    ordinal = 0;
                    again = lsn <= self.last_lsn;
                    if !again {
                        self.xids.insert(message.u32());
                    }
                }
                [b'C'] => self.last_lsn = self.last_lsn.max(lsn),
                [b'R'] => {
                    let oid = message.u32();
                    let (_schema, name) = (message.text(), message.text());
                    self.relations.insert(oid, name.to_owned());
                }
                [kind @ (b'I' | b'U' | b'D')] => {
                    let table = self.relations[&message.u32()].clone();
                    let old = match message.0.first() {
                        Some(b'O' | b'K') => {
                            message.take::<1>();
                            Some(message.tuple(None))
                        }
                        _ => None,
                    };
                    let new = (kind != b'D').then(|| {
                        message.take::<1>();
                        message.tuple(old.as_deref())
                    });
                    let place = ordinal;
                    ordinal += 1;
                    if !again {
                        take(&mut round, &table, (lsn, place, time_us), old.as_ref(), new.as_ref());
                    }
                }
                _ => {}
            }
        }
        self.ask(admin, &mut round).await;
        round
    }

    /// What each user sees of the versions of this round, in Postgres' own words.
    async fn ask(&mut self, admin: &Client, round: &mut Round) {
        for user in 0..USERS {
            let claims = format!(r#"{{"role":"authenticated","sub":"{}"}}"#, world::subject(user));
            let become_user = format!(
                "begin; set local role authenticated; set local request.jwt.claims = '{claims}'"
            );
            admin.batch_execute(&become_user).await.unwrap();
            let visible = "select version from owned_versions where version > $1";
            for row in admin.query(visible, &[&self.last_version]).await.unwrap() {
                round.owned[user].insert(row.get(0));
            }
            admin.batch_execute("rollback").await.unwrap();
        }
        let versions = round.truths.iter().filter_map(|truth| truth.new.map(|new| new.number));
        self.last_version = versions.max().unwrap_or(0).max(self.last_version);
    }

    /// Checks the oracle itself: what it takes for the members is what Postgres goes by.
    pub(crate) async fn confirm(&self, admin: &Client, members: &Members) {
        for user in 0..USERS {
            let claims = format!(r#"{{"role":"authenticated","sub":"{}"}}"#, world::subject(user));
            let become_user = format!(
                "begin; set local role authenticated; set local request.jwt.claims = '{claims}'"
            );
            admin.batch_execute(&become_user).await.unwrap();
            let teams = "select distinct team from team_versions where team is not null";
            let seen = admin.query(teams, &[]).await.unwrap();
            admin.batch_execute("rollback").await.unwrap();
            let mut seen: Vec<i32> = seen.iter().map(|row| row.get(0)).collect();
            let all = admin.query(teams, &[]).await.unwrap();
            let all = all.iter().map(|row| row.get(0));
            let mut ours: Vec<i32> = all.filter(|team| members.contains(&(user, *team))).collect();
            seen.sort_unstable();
            ours.sort_unstable();
            assert_eq!(seen, ours, "the oracle is wrong about the teams of user {user}");
        }
        // Versions are asked about once.
        admin.batch_execute("truncate owned_versions, team_versions").await.unwrap();
    }
}

fn take(
    round: &mut Round,
    table: &str,
    (lsn, ordinal, time_us): (u64, u32, i64),
    old: Option<&Row>,
    new: Option<&Row>,
) {
    if table == "members" {
        let row = old.or(new).expect("a row");
        let text = |place: usize| row[place].as_deref().expect("a key");
        round.memberships.push(Membership {
            from: round.truths.len(),
            time_us,
            user: world::user_of(text(0)).expect("a user of ours"),
            team: text(1).parse().unwrap(),
            member: new.is_some(),
        });
        return;
    }
    let table = Table::of(table).expect("a table of ours");
    let id = |row: &Row| row[0].as_deref().unwrap().parse().unwrap();
    round.truths.push(Truth {
        lsn,
        ordinal,
        time_us,
        table,
        id: old.or(new).map(id).expect("a row"),
        old: old.map(|row| version(table, row)),
        new: new.map(|row| version(table, row)),
    });
}

fn version(table: Table, row: &[Option<String>]) -> Version {
    let text = |place: usize| row[place].as_deref().unwrap_or_default();
    let (group_text, body) = match table {
        Table::Open => ("", text(3)),
        Table::Owned | Table::Team => (text(3), text(4)),
    };
    let group = match table {
        Table::Open => 0,
        Table::Owned => world::user_of(group_text).map_or(-1, |user| i32::try_from(user).unwrap()),
        Table::Team => group_text.parse().unwrap_or(-1),
    };
    let (id, bucket): (i64, i64) = (text(0).parse().unwrap(), text(2).parse().unwrap());
    Version {
        number: text(1).parse().unwrap(),
        bucket: i32::try_from(bucket).unwrap(),
        group,
        hash: world::hash(id, bucket, group_text, body),
    }
}
