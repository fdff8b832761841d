//! Private channels: who may read and write is what Postgres itself says about rows of
//! `realtime.messages`, whatever the policies on it do, and nothing of the asking stays.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use walcast::auth::Claims;
use walcast::auth::access::{Access, Asker, Error, ReadGrants, WriteGrants};
use walcast::config::{self, Config};
use walcast::db::{Login, install};

use crate::cluster::Database;

/// Longer than anything here takes.
const DEADLINE: Duration = Duration::from_mins(2);
/// A member of room 1.
const A: &str = "aaaaaaaa-0000-0000-0000-000000000001";
/// A member of nothing.
const B: &str = "bbbbbbbb-0000-0000-0000-000000000002";

const NOTHING: (bool, bool) = (false, false);
const ALL: (bool, bool) = (true, true);

/// One database with our objects, its own roles, and a powerless login.
struct World {
    database: Database,
    admin: Client,
    settings: config::Database,
    login: Login,
    access: Access,
}

impl World {
    async fn new() -> Self {
        Self::with(|_| ()).await
    }

    async fn with(settle: impl FnOnce(&mut config::Database)) -> Self {
        let world = Self::bare(settle).await;
        let owner = Login::parse(&world.database.url, DEADLINE).unwrap();
        let config = Config { database: world.settings.clone(), ..Config::default() };
        install::install(&owner, &config).await.unwrap();
        world
    }

    /// Roles and the login only.
    async fn bare(settle: impl FnOnce(&mut config::Database)) -> Self {
        let database = Database::create().await;
        let admin = database.client().await;
        let name = &database.name;
        let roles = format!(
            "create role {name}_user; create role {name}_anon; create role {name}_service bypassrls;
            create role {name}_check login noinherit;
            grant {name}_user, {name}_anon, {name}_service to {name}_check;"
        );
        admin.batch_execute(&roles).await.unwrap();
        let url =
            database.url.replace("postgres://postgres@", &format!("postgres://{name}_check@"));
        let roles = ["anon", "user", "service"].map(|role| format!("{name}_{role}")).to_vec();
        let mut settings = config::Database { roles, ..config::Database::default() };
        settle(&mut settings);
        let login = Login::parse(&url, DEADLINE).unwrap();
        let access = Access::new(login.clone(), &settings);
        Self { database, admin, settings, login, access }
    }

    async fn run(&self, sql: &str) {
        let (user, anon) = (self.role("user"), self.role("anon"));
        let sql = sql.replace("<user>", &user).replace("<anon>", &anon);
        self.admin.batch_execute(&sql).await.unwrap();
    }

    fn role(&self, suffix: &str) -> String {
        format!("{}_{suffix}", self.database.name)
    }

    fn claims(&self, role: &str, subject: &str) -> Claims {
        let role = self.role(role);
        let json = json!({
            "sub": subject, "role": role, "app_metadata": { "team": "it's \\ red" }, "level": 3
        });
        claims(&role, Some(subject), &json)
    }

    async fn read(&self, claims: &Claims, topic: &str) -> Result<(bool, bool), Error> {
        let grants = self.access.read(&Asker::default(), claims, topic, "{}", true).await?;
        Ok((grants.broadcast, grants.presence))
    }

    async fn write(&self, claims: &Claims, topic: &str) -> Result<(bool, bool), Error> {
        let grants = self.access.write(&Asker::default(), claims, topic, "{}", true).await?;
        Ok((grants.broadcast, grants.presence))
    }

    /// What the superuser finds when doing by hand what a check is to find out: read, write.
    async fn truth(&self, claims: &Claims, topic: &str, headers: &str) -> [(bool, bool); 2] {
        let become_caller = "select set_config('role', $1, true),
            set_config('realtime.topic', $2, true), set_config('request.jwt.claims', $3, true),
            set_config('request.headers', $4, true), set_config('request.jwt.claim.sub', $5, true),
            set_config('request.jwt.claim.role', $1, true)";
        let subject = claims.subject.as_deref().unwrap_or_default();
        let caller: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
            [&&*claims.role, &topic, &&*claims.json, &headers, &subject];
        let insert = "insert into realtime.messages (topic, extension) values ($1, $2)";
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        for extension in ["broadcast", "presence"] {
            self.admin.batch_execute("begin").await.unwrap();
            let returning = format!("{insert} returning id::text");
            let row = self.admin.query_one(&returning, &[&topic, &extension]).await.unwrap();
            self.admin.query_one(become_caller, &caller).await.unwrap();
            let seen = "select from realtime.messages where id::text = $1";
            let seen = self.admin.query(seen, &[&row.get::<_, &str>(0)]).await.unwrap();
            readable.push(seen.len() == 1);
            self.admin.batch_execute("rollback").await.unwrap();
            self.admin.batch_execute("begin").await.unwrap();
            self.admin.query_one(become_caller, &caller).await.unwrap();
            writable.push(match self.admin.execute(insert, &[&topic, &extension]).await {
                Ok(rows) => rows == 1,
                Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => false,
                Err(error) => panic!("{error}"),
            });
            self.admin.batch_execute("rollback").await.unwrap();
        }
        [(readable[0], readable[1]), (writable[0], writable[1])]
    }

    /// Processes that serve the checks now.
    async fn processes(&self) -> Vec<i32> {
        let sql = "select pid from pg_stat_activity
            where datname = $1 and application_name = 'walcast channels'";
        let rows = self.admin.query(sql, &[&self.database.name]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Returns when `count` checks wait for [`GATE`].
    async fn waiting(&self, count: i64) {
        let sql = "select count(*) from pg_locks as l
            join pg_stat_activity as a using (pid)
            where a.datname = $1 and l.locktype = 'advisory' and not l.granted";
        let waited = async {
            while self.admin.query_one(sql, &[&self.database.name]).await.unwrap().get::<_, i64>(0)
                != count
            {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, waited).await.unwrap();
    }

    async fn rows_left(&self) -> i64 {
        let count = "select count(*) from realtime.messages";
        self.admin.query_one(count, &[]).await.unwrap().get(0)
    }
}

/// A policy that waits while somebody holds lock 7 exclusively, at topic `gate` only.
const GATE: &str = "
    create function gate() returns boolean language plpgsql as $$ begin
        if realtime.topic() = 'gate' then perform pg_advisory_xact_lock_shared(7); end if;
        return true;
    end $$;
    create policy gate on realtime.messages for all using (gate())";

/// A policy that does not stop when told to, at topic `stubborn` only.
const STUBBORN: &str = "
    create function stubborn() returns boolean language plpgsql as $$ begin
        if realtime.topic() <> 'stubborn' then return true; end if;
        loop begin
            perform pg_sleep(60);
        exception when query_canceled then null;
        end; end loop;
    end $$;
    create policy stubborn on realtime.messages for all using (stubborn())";

fn claims(role: &str, subject: Option<&str>, json: &Value) -> Claims {
    Claims {
        role: role.into(),
        subject: subject.map(Arc::from),
        json: json.to_string().into(),
        expires_at: SystemTime::now() + Duration::from_hours(1),
    }
}

/// The shapes of Supabase's guide, and some that try what can differ.
const POLICIES: &[&str] = &[
    // Nobody.
    "",
    // One topic, one extension, both directions.
    "create policy r on realtime.messages for select to <user> using (
        realtime.topic() = 'room:1' and realtime.messages.extension in ('broadcast'))",
    "create policy r on realtime.messages for select to <user> using (
        (select realtime.topic()) = 'room:1' and extension in ('broadcast', 'presence'));
    create policy w on realtime.messages for insert to <user> with check (
        (select realtime.topic()) = 'room:1' and extension = 'presence')",
    // Membership, in a table with policies of its own.
    "create table members (user_id uuid, topic text);
    alter table members enable row level security;
    grant select on members to <user>, <anon>;
    insert into members values ('aaaaaaaa-0000-0000-0000-000000000001', 'room:1');
    create policy own on members for select using (user_id = auth.uid());
    create policy r on realtime.messages for select using (exists (
        select user_id from members
        where user_id = (select auth.uid()) and topic = (select realtime.topic())
            and realtime.messages.extension in ('presence')));
    create policy w on realtime.messages for insert with check (exists (
        select from members where members.topic = realtime.messages.topic))",
    // Claims.
    r"create policy r on realtime.messages for select using (
        auth.jwt() -> 'app_metadata' ->> 'team' = E'it''s \\ red'
        and (auth.jwt() ->> 'level')::int > 2
        and auth.role() = '<user>');
    create policy w on realtime.messages for insert with check (
        current_setting('request.jwt.claim.sub') = 'bbbbbbbb-0000-0000-0000-000000000002')",
    // Headers.
    "create policy r on realtime.messages for select using (
        (current_setting('request.headers')::jsonb ->> 'x-device') = 'tv');
    create policy w on realtime.messages for insert with check (
        (current_setting('request.headers')::jsonb ->> 'x-device') is null)",
    // The other columns of a probe row.
    "create policy r on realtime.messages for select using (
        private is false and event is null and payload is null and binary_payload is null);
    create policy w on realtime.messages for insert with check (
        private is false and event is null and payload is null and inserted_at is not null)",
    // Restrictive ones, and one for everything.
    "create policy everything on realtime.messages for all using (true);
    create policy narrow on realtime.messages as restrictive for select
        using (topic like 'room:%' or current_user = '<anon>');
    create policy narrow_too on realtime.messages as restrictive for insert
        with check (extension <> 'presence')",
    // Readable only where it may be written, and neither without the right to.
    "create policy everything on realtime.messages for all using (true);
    revoke insert on realtime.messages from <user>",
    // No Row Level Security at all.
    "alter table realtime.messages disable row level security",
];

#[tokio::test]
async fn every_documented_policy_is_answered_as_postgres_does() {
    let mut counts = [0; 2];
    for policies in POLICIES {
        let world = World::new().await;
        world.run(policies).await;
        for (role, subject) in [("user", A), ("user", B), ("anon", A), ("service", B)] {
            let claims = world.claims(role, subject);
            for topic in ["room:1", "room:2", r"'\' -- $1"] {
                for headers in ["{}", r#"{"x-device":"tv","x-quoted":"it's \\"}"#] {
                    let [read, write] = world.truth(&claims, topic, headers).await;
                    let asked = world
                        .access
                        .read(&Asker::default(), &claims, topic, headers, true)
                        .await
                        .unwrap();
                    let place = format!("{role} {subject} {topic} {headers}: {policies}");
                    assert_eq!((asked.broadcast, asked.presence), read, "read: {place}");
                    let asked = world
                        .access
                        .write(&Asker::default(), &claims, topic, headers, true)
                        .await
                        .unwrap();
                    assert_eq!((asked.broadcast, asked.presence), write, "write: {place}");
                    let both = world
                        .access
                        .write_and_see(&Asker::default(), &claims, topic, headers)
                        .await
                        .unwrap();
                    assert_eq!(both.0, asked, "write of both: {place}");
                    assert_eq!(
                        both.1,
                        ReadGrants { broadcast: false, presence: read.1 },
                        "{place}"
                    );
                    for allowed in [read.0, read.1, write.0, write.1] {
                        counts[usize::from(allowed)] += 1;
                    }
                }
            }
        }
        assert_eq!(world.rows_left().await, 0);
        assert_eq!(world.processes().await.len(), 1, "one connection serves them in turn");
    }
    assert!(counts.iter().all(|count| *count > 100), "{counts:?}");
}

#[tokio::test]
async fn without_a_policy_only_a_role_above_them_may_do_anything() {
    let world = World::new().await;
    for (role, expected) in [("user", NOTHING), ("anon", NOTHING), ("service", ALL)] {
        let claims = world.claims(role, A);
        assert_eq!(world.read(&claims, "room").await.unwrap(), expected, "{role}");
        assert_eq!(world.write(&claims, "room").await.unwrap(), expected, "{role}");
    }
}

#[tokio::test]
async fn presence_is_not_allowed_unless_it_was_asked_about() {
    let world = World::new().await;
    let claims = world.claims("service", A);
    let read = world.access.read(&Asker::default(), &claims, "room", "{}", false).await.unwrap();
    assert_eq!(read, ReadGrants { broadcast: true, presence: false });
    let write = world.access.write(&Asker::default(), &claims, "room", "{}", false).await.unwrap();
    assert_eq!(write, WriteGrants { broadcast: true, presence: false });
}

#[tokio::test]
async fn a_policy_that_fails_is_told_from_one_that_says_no() {
    let world = World::new().await;
    world
        .run(
            "create function fail(code text) returns boolean language plpgsql as $$ begin
                raise exception 'secret' using errcode = code;
            end $$;
            create policy r on realtime.messages for select using (fail('P0001'));
            create policy w on realtime.messages for insert with check (fail(realtime.topic()))",
        )
        .await;
    let claims = world.claims("user", A);
    let error = world.read(&claims, "room").await.unwrap_err();
    assert!(!error.to_string().contains("secret"), "{error}");
    assert!(
        matches!(&error, Error::Policy { code, message } if code == "P0001" && message == "secret"),
        "{error:?}"
    );
    let error = world.write(&claims, "22012").await.unwrap_err();
    assert!(matches!(&error, Error::Policy { code, .. } if code == "22012"), "{error:?}");
    assert_eq!(world.write(&claims, "42501").await.unwrap(), NOTHING);
    // A check constraint is not a missing partition.
    world.run("drop policy w on realtime.messages").await;
    world
        .run(
            "alter table realtime.messages add constraint named check (topic <> 'bad');
            create policy w on realtime.messages for insert with check (true)",
        )
        .await;
    let error = world.write(&claims, "bad").await.unwrap_err();
    assert!(matches!(&error, Error::Policy { code, .. } if code == "23514"), "{error:?}");
    assert_eq!(world.write(&claims, "good").await.unwrap(), ALL);
    let error = world.read(&claims, "nul\0l").await.unwrap_err();
    assert!(matches!(error, Error::Policy { .. }), "{error:?}");
}

#[tokio::test]
async fn a_role_without_the_right_to_the_table_is_refused() {
    let world = World::new().await;
    world.run("create policy everything on realtime.messages for all using (true)").await;
    let claims = world.claims("user", A);
    assert_eq!(world.read(&claims, "room").await.unwrap(), ALL);
    world.run("revoke select, insert on realtime.messages from <user>").await;
    let error = world.read(&claims, "room").await.unwrap_err();
    assert!(matches!(&error, Error::Policy { code, .. } if code == "42501"), "{error:?}");
    assert_eq!(world.write(&claims, "room").await.unwrap(), NOTHING);
}

#[tokio::test]
async fn only_a_listed_role_that_the_login_may_become_is_asked() {
    let world = World::with(|settings| {
        let gone = settings.roles[0].replace("_anon", "_gone");
        let other = settings.roles[0].replace("_anon", "_other");
        settings.roles.extend([gone, other]);
    })
    .await;
    let name = &world.database.name;
    world.run(&format!("create role {name}_other; create role {name}_unlisted")).await;
    world.run(&format!("grant {name}_unlisted to {name}_check")).await;
    world.run("alter table realtime.messages disable row level security").await;
    for role in ["gone", "other", "unlisted"] {
        let claims = world.claims(role, A);
        for error in [world.read(&claims, "room").await, world.write(&claims, "room").await] {
            let error = error.unwrap_err();
            assert!(matches!(error, Error::Role { .. }), "{role}: {error:?}");
        }
    }
    let mut none = world.claims("user", A);
    none.role = "none".into();
    assert!(matches!(world.read(&none, "room").await, Err(Error::Role { .. })));
    assert_eq!(world.read(&world.claims("user", A), "room").await.unwrap(), ALL);
}

#[tokio::test]
async fn a_missing_partition_is_named() {
    let world = World::new().await;
    let days = "select inhrelid::regclass::text from pg_inherits
        where inhparent = 'realtime.messages'::regclass";
    for row in world.admin.query(days, &[]).await.unwrap() {
        world.run(&format!("drop table {}", row.get::<_, &str>(0))).await;
    }
    let claims = world.claims("service", A);
    assert!(matches!(world.read(&claims, "room").await, Err(Error::MissingPartition)));
    assert!(matches!(world.write(&claims, "room").await, Err(Error::MissingPartition)));
    let owner = Login::parse(&world.database.url, DEADLINE).unwrap();
    install::rotate_partitions(&owner).await.unwrap();
    assert_eq!(world.read(&claims, "room").await.unwrap(), ALL);
}

#[tokio::test]
async fn slow_policies_are_cut_and_leave_the_connection_usable() {
    let world = World::with(|settings| settings.check_timeout_ms = 1000).await;
    world
        .run(
            "create function slow() returns boolean language plpgsql as $$ begin
                if realtime.topic() = 'slow' then perform pg_sleep(60); end if;
                return true;
            end $$;
            create policy slow on realtime.messages for all using (slow())",
        )
        .await;
    let claims = world.claims("user", A);
    assert_eq!(world.read(&claims, "fast").await.unwrap(), ALL);
    let before = world.processes().await;
    assert!(matches!(world.read(&claims, "slow").await, Err(Error::Canceled)));
    assert!(matches!(world.write(&claims, "slow").await, Err(Error::Canceled)));
    assert_eq!(world.write(&claims, "fast").await.unwrap(), ALL);
    assert_eq!(world.processes().await, before);
}

#[tokio::test]
async fn a_policy_that_cannot_be_cancelled_is_ended_with_its_process() {
    let world = World::with(|settings| {
        settings.check_timeout_ms = 1000;
        settings.channel_pool_size = 1;
        settings.channel_wait_timeout_ms = 60_000;
    })
    .await;
    world.run(STUBBORN).await;
    let claims = world.claims("user", A);
    let started = Instant::now();
    assert!(matches!(world.read(&claims, "stubborn").await, Err(Error::Canceled)));
    assert!(started.elapsed() < DEADLINE / 4, "{:?}", started.elapsed());
    let hung = world.processes().await;
    assert_eq!(hung.len(), 1);
    // Its place is free only when it is gone.
    assert_eq!(world.read(&claims, "room").await.unwrap(), ALL);
    assert!(!world.processes().await.contains(&hung[0]));
}

#[tokio::test]
async fn a_check_that_nobody_waits_for_gives_its_place_back_and_not_its_connection() {
    let world = World::with(|settings| {
        settings.channel_pool_size = 1;
        settings.check_timeout_ms = 60_000;
    })
    .await;
    world.run(GATE).await;
    let claims = world.claims("user", A);
    world.run("select pg_advisory_lock(7)").await;
    let mut dropped = Box::pin(world.read(&claims, "gate"));
    tokio::select! {
        answer = &mut dropped => panic!("{answer:?}"),
        () = world.waiting(1) => {}
    }
    let left = world.processes().await;
    drop(dropped);
    let next = timeout(DEADLINE, world.read(&claims, "room")).await;
    assert_eq!(next.unwrap().unwrap(), ALL, "while the lock is still held");
    let now = world.processes().await;
    assert!(!now.contains(&left[0]), "{now:?} {left:?}");
    world.run("select pg_advisory_unlock(7)").await;
}

#[tokio::test]
async fn no_more_checks_run_at_once_than_the_setting_says() {
    let world = World::with(|settings| {
        settings.channel_pool_size = 2;
        settings.channel_wait_timeout_ms = 300;
        settings.check_timeout_ms = 60_000;
    })
    .await;
    world.run(GATE).await;
    let claims = world.claims("user", A);
    world.run("select pg_advisory_lock(7)").await;
    let checks = futures_util::future::join_all((0..6).map(async |_| {
        let answer = world.read(&claims, "gate").await;
        if matches!(answer, Err(Error::Busy)) {
            // Two are in there, and nobody else gets in.
            assert_eq!(world.processes().await.len(), 2);
        }
        answer
    }));
    let opened = async {
        world.waiting(2).await;
        // The others give up while these two wait.
        while !matches!(world.read(&claims, "room").await, Err(Error::Busy)) {}
        world.run("select pg_advisory_unlock(7)").await;
    };
    let (answers, ()) = timeout(DEADLINE, async { tokio::join!(checks, opened) }).await.unwrap();
    let allowed = answers.iter().filter(|answer| matches!(answer, Ok(ALL))).count();
    let busy = answers.iter().filter(|answer| matches!(answer, Err(Error::Busy))).count();
    assert_eq!((allowed, busy), (2, 4), "{answers:?}");
}

#[tokio::test]
async fn who_asks_for_much_waits_for_itself_and_not_others_for_it() {
    let world = World::with(|settings| {
        settings.channel_pool_size = 2;
        settings.check_timeout_ms = 60_000;
        settings.channel_wait_timeout_ms = 60_000;
    })
    .await;
    world.run(GATE).await;
    let (claims, many) = (world.claims("user", A), Asker::default());
    world.run("select pg_advisory_lock(7)").await;
    let greedy = futures_util::future::join_all((0..6).map(async |_| {
        world.access.read(&many.about(), &claims, "gate", "{}", true).await.unwrap()
    }));
    let others = async {
        world.waiting(1).await;
        for _ in 0..3 {
            assert_eq!(world.read(&claims, "room").await.unwrap(), ALL);
        }
        world.waiting(1).await;
        world.run("select pg_advisory_unlock(7)").await;
    };
    let (answers, ()) = timeout(DEADLINE, async { tokio::join!(greedy, others) }).await.unwrap();
    let all = ReadGrants { broadcast: true, presence: true };
    assert_eq!(answers, [all; 6], "one after the other, all of them");
}

#[tokio::test]
async fn an_abandoned_check_has_its_askers_turn_until_it_has_ended() {
    let world = World::with(|settings| {
        settings.channel_pool_size = 2;
        settings.check_timeout_ms = 60_000;
        settings.channel_wait_timeout_ms = 60_000;
    })
    .await;
    world.run(STUBBORN).await;
    let (claims, asker) = (world.claims("user", A), Asker::default());
    let mut abandoned = Box::pin(world.access.read(&asker, &claims, "stubborn", "{}", true));
    let sleeps = "select count(*) from pg_stat_activity
        where datname = $1 and wait_event = 'PgSleep'";
    let begun = async {
        let name = &world.database.name;
        while world.admin.query_one(sleeps, &[name]).await.unwrap().get::<_, i64>(0) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        answer = &mut abandoned => panic!("{answer:?}"),
        begun = timeout(DEADLINE, begun) => begun.unwrap(),
    }
    let hung = world.processes().await;
    assert_eq!(hung.len(), 1);
    drop(abandoned);
    let mut next = Box::pin(world.access.read(&asker, &claims, "room", "{}", true));
    // It would be answered first: its connection is the one that is there.
    tokio::select! {
        biased;
        answer = &mut next => panic!("{answer:?}"),
        other = world.read(&claims, "room") => assert_eq!(other.unwrap(), ALL),
    }
    assert!(timeout(DEADLINE, next).await.unwrap().is_ok());
    assert!(!world.processes().await.contains(&hung[0]));
}

#[tokio::test]
async fn a_check_that_nobody_wants_any_more_does_not_begin() {
    let world = World::with(|settings| {
        settings.channel_pool_size = 1;
        settings.check_timeout_ms = 60_000;
        settings.channel_wait_timeout_ms = 60_000;
    })
    .await;
    world.run(GATE).await;
    let (claims, connection) = (world.claims("user", A), Asker::default());
    world.run("select pg_advisory_lock(7)").await;
    let [runs, own, other] = [connection.about(), connection.about(), Asker::default()];
    let ask = async |asker: &Asker| world.access.read(asker, &claims, "gate", "{}", true).await;
    let leaving = async {
        world.waiting(1).await;
        for asker in [&runs, &own, &other] {
            asker.leave();
        }
    };
    let all = futures_util::future::join(
        async {
            let answer = ask(&runs).await;
            (answer, world.processes().await)
        },
        async {
            let ((), own, other) = tokio::join!(leaving, ask(&own), ask(&other));
            for answer in [own, other] {
                assert!(matches!(answer, Err(Error::Gone)), "{answer:?}");
            }
            // Both heard before the one that runs was let go.
            let left = world.processes().await;
            world.run("select pg_advisory_unlock(7)").await;
            left
        },
    );
    let (process, left) = timeout(DEADLINE, all).await.unwrap();
    // That one ran to its end, which spares its connection.
    let (answer, processes) = process;
    assert!(answer.unwrap().broadcast);
    assert_eq!(processes, left);
    assert!(matches!(ask(&own).await, Err(Error::Gone)), "also when a place is free");
}

#[tokio::test]
async fn an_idle_connection_that_ended_is_replaced() {
    let world = World::new().await;
    let claims = world.claims("service", A);
    assert_eq!(world.read(&claims, "room").await.unwrap(), ALL);
    let before = world.processes().await;
    for pid in &before {
        world.run(&format!("select pg_terminate_backend({pid})")).await;
    }
    assert_eq!(world.read(&claims, "room").await.unwrap(), ALL);
    assert_ne!(world.processes().await, before);
}

#[tokio::test]
async fn without_a_server_there_is_no_answer() {
    let world = World::new().await;
    let login = world.login.with_dbname("no_such_database");
    let access = Access::new(login, &world.settings);
    let claims = world.claims("service", A);
    let error = access.read(&Asker::default(), &claims, "room", "{}", true).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
    let bare = World::bare(|_| ()).await;
    let error = bare.read(&bare.claims("service", A), "room").await.unwrap_err();
    let Error::Unavailable(source) = error else { panic!("{error:?}") };
    assert!(source.to_string().contains("no table realtime.messages"), "{source}");
    // As soon as it is there, it is used.
    let owner = Login::parse(&bare.database.url, DEADLINE).unwrap();
    let config = Config { database: bare.settings.clone(), ..Config::default() };
    install::install(&owner, &config).await.unwrap();
    assert_eq!(bare.read(&bare.claims("service", A), "room").await.unwrap(), ALL);
}

#[tokio::test]
async fn somebody_elses_table_is_enough() {
    let world = World::bare(|_| ()).await;
    let name = &world.database.name;
    world
        .run(&format!(
            "create role {name}_owner;
            create schema realtime authorization {name}_owner;
            set role {name}_owner;
            create table realtime.messages (
                topic text not null, extension text not null, payload jsonb, event text,
                private boolean default false, id uuid not null default gen_random_uuid(),
                primary key (id), constraint named check (topic <> 'bad'));
            alter table realtime.messages enable row level security;
            alter table realtime.messages force row level security;
            grant usage on schema realtime to <user>, <anon>, {name}_service;
            grant select, insert on realtime.messages to <user>, <anon>, {name}_service;
            create policy r on realtime.messages for select to <user>
                using (current_setting('realtime.topic') = 'room' and extension = 'presence');
            reset role"
        ))
        .await;
    let claims = world.claims("user", A);
    assert_eq!(world.read(&claims, "room").await.unwrap(), (false, true));
    assert_eq!(world.write(&claims, "room").await.unwrap(), NOTHING);
    assert_eq!(world.read(&claims, "other").await.unwrap(), NOTHING);
    // Nothing is wrong with its partitions when it has none.
    let error = world.read(&claims, "bad").await.unwrap_err();
    assert!(matches!(&error, Error::Policy { code, .. } if code == "23514"), "{error:?}");
}

#[tokio::test]
async fn where_no_role_has_bypassrls_one_that_a_policy_lets_insert_anything_will_do() {
    let world = World::new().await;
    let service = world.role("service");
    world.run(&format!("alter role {service} nobypassrls")).await;
    world
        .run(
            "create policy r on realtime.messages for select to <user> using (topic = 'room');
            create policy not_this on realtime.messages for insert to <anon> with check (1 > 0)",
        )
        .await;
    let claims = world.claims("user", A);
    let error = world.read(&claims, "room").await.unwrap_err();
    let Error::Unavailable(source) = error else { panic!("{error:?}") };
    assert!(source.to_string().contains("BYPASSRLS"), "{source}");
    world
        .run(&format!(
            "create policy service on realtime.messages for all to {service} using (true)"
        ))
        .await;
    assert_eq!(world.read(&claims, "room").await.unwrap(), ALL);
    assert_eq!(world.read(&claims, "other").await.unwrap(), NOTHING);
    // It loses that right while a connection knows it as the one who may.
    world.run("drop policy service on realtime.messages").await;
    let error = world.read(&claims, "room").await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
}

/// What a policy may try, as statements of a PL/pgSQL function that runs as the caller.
const ATTACKS: &[&str] = &[
    "perform set_config('role', '<service>', true);",
    "perform set_config('role', '<service>', false);",
    "perform set_config('role', '<user>', false);",
    "reset role;",
    "reset all;",
    "set session authorization default;",
    "set local role <service>;",
    "perform set_config('request.jwt.claims', '{\"sub\":\"admin\"}', false);",
    "perform set_config('request.jwt.claim.sub', 'admin', false);
    perform set_config('realtime.topic', 'admin', false);
    perform set_config('request.headers', '{\"x-admin\":\"1\"}', false);",
    "perform set_config('row_security', 'off', false);",
    "perform set_config('search_path', 'evil', false);",
    "perform set_config('standard_conforming_strings', 'off', false);
    perform set_config('backslash_quote', 'on', false);",
    "perform set_config('statement_timeout', '1', false);",
    "perform set_config('session_replication_role', 'replica', false);",
    "perform set_config('default_transaction_read_only', 'on', false);",
    "perform set_config('transaction_read_only', 'on', false);",
    "perform pg_advisory_lock(11);",
    "perform pg_try_advisory_lock(11); perform pg_try_advisory_lock(11);",
    "execute 'prepare stolen as select 1';",
    "execute 'listen evil'; perform pg_notify('evil', 'x');",
    "execute 'deallocate all';",
    "execute 'create temp table messages as select 1 as id';",
    "execute 'create temp table messages (topic text, extension text) on commit preserve rows';",
    "execute 'declare kept cursor with hold for select 1';",
    "perform setseed(0.5); perform nextval('evil_sequence');",
    "execute 'commit';",
    "execute 'rollback';",
    "execute 'rollback to savepoint walcast_probe';",
    "execute 'release savepoint walcast_probe';",
    "execute 'discard all';",
    "call evil_commit();",
    "insert into evil_log values ('x');",
    "perform pg_terminate_backend(pg_backend_pid());",
    "perform pg_cancel_backend(pg_backend_pid());",
    "raise exception 'x' using errcode = '57P01';",
    "raise exception 'x' using errcode = '42501';",
    "raise exception 'x' using errcode = '22023';",
    "execute 'drop policy evil on realtime.messages';",
];

/// The policy itself: at topic `evil` it attacks and says yes.
const ATTACK: &str = "
    create or replace function evil() returns boolean language plpgsql as $$ begin
        if current_setting('realtime.topic', true) = 'evil' then
            <attack>
            return true;
        end if;
        return clean();
    end $$;";

/// At any other topic it says yes to the anonymous role, where all is as on a new connection.
const EVIL: &str = "
    create sequence evil_sequence;
    create table evil_log (entry text);
    grant all on evil_sequence, evil_log to public;
    create procedure evil_commit() language plpgsql as $$ begin commit; end $$;
    create function clean() returns boolean language sql as $$
        select session_user <> current_user
            and current_user = '<anon>'
            and current_setting('role') = '<anon>'
            and current_setting('request.jwt.claims')::jsonb ->> 'sub' = 'victim'
            and current_setting('request.jwt.claim.sub') = 'victim'
            and current_setting('request.headers') = '{}'
            and current_setting('row_security') = 'on'
            and current_setting('search_path') ~ 'public'
            and current_setting('standard_conforming_strings') = 'on'
            and current_setting('backslash_quote') = 'safe_encoding'
            and current_setting('statement_timeout') = '2s'
            and current_setting('default_transaction_read_only') = 'off'
            and current_setting('transaction_read_only') = 'off'
            and not exists (select from pg_prepared_statements)
            and not exists (select from pg_listening_channels())
            and not exists (select from pg_cursors)
            and not exists (
                select from pg_locks where pid = pg_backend_pid() and locktype = 'advisory')
            and not exists (select from pg_class where relnamespace = pg_my_temp_schema())
    $$;
    create policy evil on realtime.messages for select using (evil());
    create policy evil_too on realtime.messages for insert with check (
        case when topic = 'evil' and extension = 'presence' then current_user = '<service>'
        else evil() end)";

#[tokio::test]
async fn f89_nothing_that_a_policy_does_reaches_the_next_check() {
    let world = World::with(|settings| settings.channel_pool_size = 1).await;
    let service = world.role("service");
    world.run(&ATTACK.replace("<attack>", "null;")).await;
    world.run(&EVIL.replace("<service>", &service)).await;
    let json = json!({ "sub": "victim", "role": world.role("anon") });
    let victim = claims(&world.role("anon"), Some("victim"), &json);
    let attacker = world.claims("user", A);
    let mut went_through = 0;
    for attack in ATTACKS {
        let attack = attack.replace("<service>", &service);
        world.run(&ATTACK.replace("<attack>", &attack)).await;
        for _ in 0..2 {
            let read = world.read(&attacker, "evil").await;
            went_through += i32::from(read.is_ok());
            assert_eq!(world.read(&victim, "victim").await.unwrap(), ALL, "{attack}: {read:?}");
            assert_eq!(world.write(&victim, "victim").await.unwrap(), ALL, "{attack}: {read:?}");
            let write = world.write(&attacker, "evil").await;
            // The first probe of a write does not change who makes the second.
            assert!(!matches!(write, Ok((_, true))), "{attack}: {write:?}");
            assert_eq!(world.read(&victim, "victim").await.unwrap(), ALL, "{attack}: {write:?}");
            assert_eq!(world.write(&victim, "victim").await.unwrap(), ALL, "{attack}: {write:?}");
            assert_eq!(world.read(&attacker, "victim").await.unwrap(), NOTHING, "{attack}");
            assert_eq!(world.write(&attacker, "victim").await.unwrap(), NOTHING, "{attack}");
        }
        let log = "select count(*) from evil_log";
        let logged: i64 = world.admin.query_one(log, &[]).await.unwrap().get(0);
        assert_eq!((world.rows_left().await, logged), (0, 0), "{attack}");
    }
    assert!(went_through > 20, "the attacks themselves fail: {went_through}");
}

#[tokio::test]
async fn triggers_on_the_table_leave_nothing_and_answer_for_nobody() {
    let world = World::new().await;
    world
        .run(
            "create table seen (topic text);
            grant all on seen to public;
            create function note() returns trigger language plpgsql as $$ begin
                insert into seen values (new.topic);
                perform set_config('role', 'none', false);
                if new.topic = 'taken' then return null; end if;
                return new;
            end $$;
            create trigger note before insert on realtime.messages
                for each row execute function note();
            create policy r on realtime.messages for select using (
                current_user = '<user>' and session_user <> current_user);
            create policy w on realtime.messages for insert with check (true)",
        )
        .await;
    let claims = world.claims("user", A);
    assert_eq!(world.read(&claims, "room").await.unwrap(), ALL);
    assert_eq!(world.read(&world.claims("anon", A), "room").await.unwrap(), NOTHING);
    assert_eq!(world.write(&claims, "taken").await.unwrap(), NOTHING);
    assert_eq!(world.read(&claims, "taken").await.unwrap(), NOTHING);
    let seen: i64 = world.admin.query_one("select count(*) from seen", &[]).await.unwrap().get(0);
    assert_eq!((world.rows_left().await, seen), (0, 0));
}

#[tokio::test]
async fn probe_rows_are_never_decoded() {
    let world = World::new().await;
    world.run("create policy everything on realtime.messages for all using (true)").await;
    let slot = format!("{}_probes", world.database.name);
    let create = "select pg_create_logical_replication_slot($1, 'pgoutput')";
    world.admin.query_one(create, &[&slot]).await.unwrap();
    for role in ["user", "service"] {
        let claims = world.claims(role, A);
        assert_eq!(world.read(&claims, "room").await.unwrap(), ALL);
        assert_eq!(world.write(&claims, "room").await.unwrap(), ALL);
    }
    world.run("insert into realtime.messages (topic, extension) values ('real', 'x')").await;
    let decoded = "select chr(get_byte(data, 0)) from pg_logical_slot_get_binary_changes($1,
        null, null, 'proto_version', '1',
        'publication_names', 'supabase_realtime_messages_publication')";
    let rows = world.admin.query(decoded, &[&slot]).await.unwrap();
    let kinds: String = rows.iter().map(|row| row.get::<_, &str>(0)).collect();
    assert_eq!(kinds, "BRIC", "one transaction with one row: the real one");
    assert_eq!(world.rows_left().await, 1);
}

#[tokio::test]
async fn a_check_costs_one_connection_and_no_prepared_statements() {
    let world = World::new().await;
    let claims = world.claims("service", A);
    for _ in 0..20 {
        assert_eq!(world.read(&claims, "room").await.unwrap(), ALL);
        assert_eq!(world.write(&claims, "room").await.unwrap(), ALL);
    }
    let pid = world.processes().await;
    assert_eq!(pid.len(), 1);
    drop(world.access);
    let idle = "select count(*) from pg_stat_activity where pid = $1";
    let ended = async {
        while world.admin.query_one(idle, &[&pid[0]]).await.unwrap().get::<_, i64>(0) > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, ended).await.unwrap();
}
