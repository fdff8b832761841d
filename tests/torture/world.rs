//! What is written to and listened to: tables, policies, users, channels.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use serde_json::{Value, json};

use crate::judge::{Channel, Filter, Members, Table, USERS, Version, Viewer};

/// Teams are numbered from 0.
pub(crate) const TEAMS: i32 = 4;

/// Buckets are numbered from 0; filters go by them.
pub(crate) const BUCKETS: i32 = 8;

/// Rows of each table have ids from 1 to this one, so that writers meet, and the disk is bounded.
pub(crate) const IDS: i64 = 1500;

/// The row that all writers hammer.
pub(crate) const HAMMERED: i64 = 1;

/// From here on ids are of the rows that end a round, one a channel.
pub(crate) const LAST_IDS: i64 = 1_000_000;

/// The publication of the oracle's own slot, and the slot.
pub(crate) const TRUTH: &str = "torture_truth";

/// `sub` of a user.
pub(crate) fn subject(user: usize) -> String {
    format!("00000000-0000-4000-8000-{user:012}")
}

/// The number of a user, by `sub`.
pub(crate) fn user_of(subject: &str) -> Option<usize> {
    (0..USERS).find(|user| self::subject(*user) == subject)
}

/// The one membership that never ends, so that there is always somebody who must hear.
pub(crate) const FIXED: (usize, i32) = (0, 0);

/// Who is a member of what at the beginning.
pub(crate) fn members() -> Members {
    let all = (0..USERS).flat_map(|user| (0..TEAMS).map(move |team| (user, team)));
    all.filter(|(user, team)| i32::try_from(*user).is_ok_and(|user| (user + team) % 2 == 0))
        .collect()
}

/// Tables, policies, and the shadow of each version of a row, written in the same transaction and
/// under the same policies: whoever may see the version there may see it anywhere.
pub(crate) fn schema() -> String {
    let mut parts = vec![String::from(
        "create sequence versions cache 1;
        create table open_rows (id bigint primary key, version bigint, bucket int, body text);
        create table owned (id bigint primary key, version bigint, bucket int, owner uuid, body text);
        create table team_docs (id bigint primary key, version bigint, bucket int, team int, body text);
        create table members (member uuid, team int, primary key (member, team));
        create table owned_versions (version bigint primary key, owner uuid);
        create table team_versions (version bigint primary key, team int);
        create function own_version() returns trigger language plpgsql as $$
            begin new.version := nextval('public.versions'); return new; end $$;
        create function shadow_owned() returns trigger language plpgsql as $$
            begin insert into public.owned_versions values (new.version, new.owner); return null; end $$;
        create function shadow_team() returns trigger language plpgsql as $$
            begin insert into public.team_versions values (new.version, new.team); return null; end $$;
        create trigger shadow after insert or update on owned
            for each row execute function shadow_owned();
        create trigger shadow after insert or update on team_docs
            for each row execute function shadow_team();
        alter table members enable row level security;
        create policy own on members to authenticated using (member = (select auth.uid()));
        grant select on members to authenticated, service_role;
        grant select on open_rows to anon;",
    )];
    for table in ["open_rows", "owned", "team_docs"] {
        parts.push(format!(
            "create trigger own_version before insert or update on {table}
                for each row execute function own_version();
            alter table {table} replica identity full;
            grant select on {table} to authenticated, service_role;"
        ));
    }
    for table in ["owned", "owned_versions"] {
        parts.push(format!(
            "alter table {table} enable row level security;
            create policy own on {table} to authenticated using (owner = (select auth.uid()));
            grant select on {table} to authenticated;"
        ));
    }
    for table in ["team_docs", "team_versions"] {
        parts.push(format!(
            "alter table {table} enable row level security;
            create policy team on {table} to authenticated using (
                team in (select m.team from members as m where m.member = (select auth.uid())));
            grant select on {table} to authenticated;"
        ));
    }
    for (user, team) in members() {
        parts.push(format!("insert into members values ('{}', {team});", subject(user)));
    }
    parts.push(format!(
        "create publication {TRUTH} for table open_rows, owned, team_docs, members;
        alter publication supabase_realtime add table open_rows, owned, team_docs, members;"
    ));
    parts.concat()
}

/// How a client listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// A socket, in this version of the protocol.
    Socket { version: &'static str },
    /// An event stream (SSE), of one channel.
    Stream { cursor: Shown },
}

/// Where a stream's client shows how far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    /// In `Last-Event-ID`, as browsers do.
    InHeader,
    InQuery,
}

/// A client, with its channels.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) way: Way,
    pub(crate) claims: Value,
    /// By number, in [`channels`].
    pub(crate) channels: Vec<usize>,
}

/// How, who, and what each channel asks for.
type Wish = (Way, (Viewer, Value), Vec<Vec<(Table, Filter)>>);

/// The claims of a client whose word is not counted.
pub(crate) fn anybody() -> Value {
    json!({ "role": "authenticated", "sub": subject(0) })
}

/// Everybody who listens, and on what.
pub(crate) fn listeners() -> (Vec<Client>, Vec<Channel>) {
    use Filter::{BucketAbove, BucketBelow, BucketIs, None, TeamIn};
    use Table::{Open, Owned, Team};
    let user = |user: usize| {
        (Viewer::User(user), json!({ "role": "authenticated", "sub": subject(user) }))
    };
    let service = (Viewer::Service, json!({ "role": "service_role" }));
    let anon = (Viewer::Anon, json!({ "role": "anon" }));
    let everything = vec![(Open, None), (Owned, None), (Team, None)];
    let (v1, v2) = (Way::Socket { version: "1.0.0" }, Way::Socket { version: "2.0.0" });
    let by_header = Way::Stream { cursor: Shown::InHeader };
    let by_query = Way::Stream { cursor: Shown::InQuery };
    let wanted: Vec<Wish> = vec![
        (v2, service, vec![everything.clone()]),
        (v2, anon.clone(), vec![vec![(Open, BucketIs(3))]]),
        (v1, anon.clone(), vec![vec![(Open, BucketAbove(5))]]),
        (v2, user(0), vec![everything.clone()]),
        (v2, user(1), vec![vec![(Owned, None), (Team, None)]]),
        (v1, user(2), vec![vec![(Owned, BucketBelow(4)), (Team, None)]]),
        (v2, user(3), vec![vec![(Owned, BucketIs(1)), (Team, TeamIn(1, 2))]]),
        (v2, user(0), vec![vec![(Owned, None)], vec![(Team, BucketAbove(3))]]),
        (by_header, user(1), vec![everything]),
        (by_query, user(2), vec![vec![(Owned, BucketBelow(4)), (Team, TeamIn(0, 1))]]),
        (by_header, anon, vec![vec![(Open, BucketIs(3))]]),
    ];
    let (mut clients, mut channels) = (Vec::new(), Vec::new());
    for (way, (viewer, claims), topics) in wanted {
        let first = channels.len();
        for asks in topics {
            channels.push(Channel { name: format!("c{}", channels.len()), viewer, asks });
        }
        clients.push(Client { way, claims, channels: (first..channels.len()).collect() });
    }
    (clients, channels)
}

/// A row that ends a round for one channel.
#[derive(Debug)]
pub(crate) struct LastRow {
    table: Table,
    row: Version,
    /// Whose channel it is for.
    of: (String, Viewer),
    /// Writes it, and returns its version.
    pub(crate) insert: String,
}

impl LastRow {
    fn of(number: usize, channel: &Channel) -> Self {
        let (table, filter) = channel.asks[0];
        let bucket = match filter {
            Filter::None | Filter::TeamIn(..) => 0,
            Filter::BucketIs(bucket) => bucket,
            Filter::BucketBelow(bucket) => bucket - 1,
            Filter::BucketAbove(bucket) => bucket + 1,
        };
        let id = LAST_IDS + i64::try_from(number).expect("few channels");
        let (column, value) = match (table, channel.viewer) {
            (Table::Open, _) => ("", String::new()),
            (Table::Owned, Viewer::User(user)) => (", owner", format!(", '{}'", subject(user))),
            (Table::Owned, _) => (", owner", String::from(", null")),
            (Table::Team, _) => (", team", format!(", {}", FIXED.1)),
        };
        let insert = format!(
            "insert into {} (id, bucket, body{column}) values ({id}, {bucket}, 'last'{value})
            on conflict (id) do update set body = excluded.body returning version",
            table.name()
        );
        let row = Version { number: 0, bucket, group: FIXED.1, hash: 0 };
        Self { table, row, of: (channel.name.clone(), channel.viewer), insert }
    }

    /// Whether that is certain: of a team's rows it depends on what the writers did.
    pub(crate) fn must_be_shown_to(&self, channel: &Channel) -> bool {
        let asks =
            |(table, filter): &(Table, Filter)| *table == self.table && filter.accepts(&self.row);
        let (of, owner) = &self.of;
        channel.asks.iter().any(asks)
            && (channel.viewer == Viewer::Service
                || match self.table {
                    Table::Open => true,
                    Table::Owned => channel.viewer == *owner,
                    Table::Team => channel.name == *of,
                })
    }
}

/// The last rows of a round in the order in which they are written: those first of which it is
/// uncertain who else is shown them, so that whoever has the last that he must be shown has all.
pub(crate) fn last_rows(channels: &[Channel]) -> Vec<LastRow> {
    let mut rows: Vec<_> = (0..).zip(channels).map(|(at, of)| LastRow::of(at, of)).collect();
    rows.sort_by_key(|row| match row.table {
        Table::Team => 0,
        Table::Owned | Table::Open => 1,
    });
    rows
}

/// Of the columns of a row, as text, without its version.
pub(crate) fn hash(id: i64, bucket: i64, group: &str, body: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (id, bucket, group, body).hash(&mut hasher);
    hasher.finish()
}
