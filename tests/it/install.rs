//! The SQL objects and the two small logins, on databases of every kind we meet.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;
use walcast::config::{Config, Secret};
use walcast::db::install::{self, Report};
use walcast::db::logins::{self, Logins};
use walcast::db::{Login, install as sql};
use walcast::upkeep::watch_powers;

use crate::cluster::Database;
use crate::service::DEADLINE;

const TIMEOUT: Duration = Duration::from_secs(10);

fn login(url: &str) -> Login {
    Login::parse(url, TIMEOUT).unwrap()
}

async fn install(database: &Database) -> Report {
    sql::install(&login(&database.url), &Config::default()).await.unwrap()
}

async fn one<T: for<'a> tokio_postgres::types::FromSql<'a>>(client: &Client, sql: &str) -> T {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

fn config(database: &Database) -> Config {
    let mut config = Config::default();
    config.database.url = Secret::new(database.url.as_str());
    config
}

/// The URL of `database` as another login.
fn url_as(database: &Database, name: &str, password: &str) -> String {
    database.url.replace("postgres://postgres@", &format!("postgres://{name}:{password}@"))
}

/// A superuser's client, and a login that may make objects in `database` and nothing else.
async fn ordinary_owner(database: &Database) -> (Client, String) {
    let client = database.client().await;
    let (user, name) = (format!("user_of_{}", database.name), &database.name);
    let sql = format!("create role {user} login; grant create on database {name} to {user}");
    client.batch_execute(&sql).await.unwrap();
    (client, user)
}

/// Every row of every catalog that says what an object is, by object. Left out is what vacuum
/// keeps there, and whether a table has ever had partitions.
async fn fingerprint(client: &Client) -> BTreeMap<String, String> {
    let rows = client
        .query(
            "select 'schema ' || nspname, nspowner::regrole || coalesce(nspacl::text, '') \
             from pg_namespace where nspname !~ '^pg_(toast|temp)' \
             union all \
             select 'relation ' || oid::regclass, (to_jsonb(c) - '{relhassubclass, relpages, \
                 reltuples, relallvisible, relfrozenxid, relminmxid}'::text[])::text \
             from pg_class as c \
             where relnamespace::regnamespace::text !~ '^pg_|information_schema' \
             union all \
             select 'column ' || attrelid::regclass || '.' || attnum, a::text \
             from pg_attribute as a join pg_class as c on c.oid = attrelid \
             where relnamespace::regnamespace::text !~ '^pg_|information_schema' \
             union all \
             select 'function ' || oid::regprocedure, p::text from pg_proc as p \
             where pronamespace::regnamespace::text !~ '^pg_|information_schema' \
             union all \
             select 'type ' || oid::regtype, t::text from pg_type as t \
             where typnamespace::regnamespace::text !~ '^pg_|information_schema' \
             union all select 'policy ' || polname || polrelid::regclass, p::text from pg_policy as p \
             union all select 'constraint ' || oid, c::text from pg_constraint as c \
             union all select 'publication ' || pubname, p::text from pg_publication as p \
             union all select 'published ' || oid, p::text from pg_publication_rel as p \
             union all select 'default acl ' || oid, d::text from pg_default_acl as d \
             union all select 'trigger ' || oid, t::text from pg_trigger as t \
             union all select 'event trigger ' || evtname, e::text from pg_event_trigger as e \
             union all select 'extension ' || extname, e::text from pg_extension as e \
             union all \
             select 'database', datacl::text || datdba::regrole from pg_database \
             where datname = current_database()",
            &[],
        )
        .await
        .unwrap();
    rows.iter()
        .map(|row| (row.get(0), row.get::<_, Option<String>>(1).unwrap_or_default()))
        .collect()
}

/// A database as the official images leave it: other owners, other products' migrations, older
/// functions, and only some of the partitions.
async fn official(database: &Database) -> Client {
    let client = database.client().await;
    let owner = format!("owner_of_{}", database.name);
    for role in ["anon", "authenticated", "service_role"] {
        let sql = format!("create role {role} nologin noinherit");
        let bypass = if role == "service_role" { " bypassrls" } else { "" };
        client.batch_execute(&format!("{sql}{bypass}")).await.ok(); // Another test may have.
    }
    client
        .batch_execute(&format!(
            "create role {owner} nologin noinherit;
             create role keeper_of_{owner} nologin;
             create schema auth;
             create table auth.schema_migrations (version text primary key);
             create table auth.users (id uuid primary key);
             create function auth.uid() returns uuid language sql stable as
                 $$ select nullif(current_setting('request.jwt.claim.sub', true), '')::uuid $$;
             alter schema auth owner to {owner};
             alter table auth.users owner to {owner};
             alter function auth.uid() owner to {owner};
             grant usage on schema auth to anon;
             create schema realtime;
             create table realtime.schema_migrations (version bigint primary key);
             create type realtime.action as enum ('INSERT', 'UPDATE', 'DELETE');
             create table realtime.messages (
                 topic text not null, extension text not null, payload jsonb, event text,
                 private boolean default false, updated_at timestamp not null default now(),
                 inserted_at timestamp not null default now(),
                 id uuid not null default gen_random_uuid(), primary key (id, inserted_at)
             ) partition by range (inserted_at);
             alter table realtime.messages enable row level security;
             alter table realtime.messages owner to {owner};
             create policy readers on realtime.messages for select to authenticated using (true);
             grant select on realtime.messages to anon;
             create function realtime.topic() returns text language sql stable as
                 $$ select 'theirs'::text $$;
             create function realtime.send(payload jsonb, event text, topic text,
                 private boolean default true) returns void language sql as $$ select $$;
             alter function realtime.send(jsonb, text, text, boolean) owner to {owner};
             alter default privileges in schema realtime grant all on tables to {owner};
             create table public.todos (id int primary key, owner uuid);
             alter table public.todos enable row level security;
             create policy mine on public.todos using (owner = auth.uid());
             create publication supabase_realtime for table public.todos;
             create function public.watch() returns event_trigger language plpgsql as
                 $$ begin end $$;
             create event trigger theirs on ddl_command_end execute function public.watch();"
        ))
        .await
        .unwrap();
    client
}

#[tokio::test]
async fn nothing_that_exists_is_touched_in_an_official_database() {
    let database = Database::create().await;
    let client = official(&database).await;
    let before = fingerprint(&client).await;
    let report = install(&database).await;
    let after = fingerprint(&client).await;
    let changed: Vec<_> =
        before.iter().filter(|(name, row)| after.get(*name) != Some(row)).collect();
    assert!(changed.is_empty(), "{changed:#?}");
    let new: Vec<_> = after.keys().filter(|name| !before.contains_key(*name)).collect();
    for name in new {
        let ours = name.contains("walcast") || name.contains("messages_2");
        let by_number = ["constraint ", "trigger "].iter().any(|kind| name.starts_with(kind));
        assert!(ours || by_number || name.contains("pg_toast"), "{name}");
    }
    let skipped = |what: &str| {
        let found = report.skipped.iter().find(|(name, _)| name.contains(what));
        found.unwrap_or_else(|| panic!("{what} is not reported: {report:#?}")).1.clone()
    };
    assert!(skipped("auth.role()").contains("another product"), "{report:#?}");
    assert!(skipped("realtime.send_binary").contains("another product"), "{report:#?}");
    assert!(skipped("supabase_realtime_messages_publication").contains("another product"));
    assert!(report.kept.contains(&"publication supabase_realtime".to_owned()));
    assert!(report.created.contains(&"event trigger walcast_ddl".to_owned()), "{report:#?}");
    let partitions: i64 = one(
        &client,
        "select count(*) from pg_inherits as i join pg_class as c on c.oid = i.inhrelid \
         where i.inhparent = 'realtime.messages'::regclass \
             and c.relowner = (select relowner from pg_class where oid = i.inhparent)",
    )
    .await;
    assert_eq!(partitions, 5, "one a day, owned like the parent");
}

#[tokio::test]
async fn a_second_installation_changes_nothing() {
    let database = Database::create().await;
    let first = install(&database).await;
    assert!(first.skipped.is_empty(), "{first:#?}");
    assert!(first.created.contains(&"publication supabase_realtime".to_owned()), "{first:#?}");
    let client = database.client().await;
    let before = fingerprint(&client).await;
    let second = install(&database).await;
    assert_eq!(second.created, Vec::<String>::new());
    assert_eq!(second.skipped, []);
    assert_eq!(fingerprint(&client).await, before);
}

#[tokio::test]
async fn installations_in_many_databases_at_once_all_succeed() {
    let mut databases = Vec::new();
    for _ in 0..5 {
        databases.push(Database::create().await);
    }
    let client = databases[0].client().await;
    // Two on the same database, too.
    let all = databases.iter().chain([&databases[0]]).map(install);
    for report in futures_util::future::join_all(all).await {
        assert!(report.skipped.is_empty(), "{report:#?}");
    }
    let roles: i64 = one(
        &client,
        "select count(*) from pg_roles where rolname in ('anon', 'authenticated') \
             and not rolcanlogin and not rolinherit and not rolbypassrls \
             or rolname = 'service_role' and rolbypassrls and not rolcanlogin",
    )
    .await;
    assert_eq!(roles, 3);
}

#[tokio::test]
async fn claims_are_read_as_policies_expect() {
    let database = Database::create().await;
    install(&database).await;
    let client = database.client().await;
    let who = "select concat_ws('|', auth.uid(), auth.role(), auth.jwt() ->> 'k')";
    assert_eq!(one::<String>(&client, who).await, "");
    let uid = "11111111-1111-1111-1111-111111111111";
    let claims = format!("{{\"sub\":\"{uid}\",\"role\":\"authenticated\",\"k\":\"v\"}}");
    let set = format!("select set_config('request.jwt.claims', '{claims}', false)");
    client.batch_execute(&set).await.unwrap();
    let expected = format!("{uid}|authenticated|v");
    assert_eq!(one::<String>(&client, who).await, expected);
    // What a connection is left with after a transaction-local setting.
    client.batch_execute("select set_config('request.jwt.claims', '', false)").await.unwrap();
    assert_eq!(one::<String>(&client, who).await, "");
    client
        .batch_execute(&format!("select set_config('request.jwt.claim.sub', '{uid}', false)"))
        .await
        .unwrap();
    assert_eq!(one::<String>(&client, "select auth.uid()::text").await, uid);
    client.batch_execute("set role anon").await.unwrap();
    assert_eq!(one::<String>(&client, "select auth.uid()::text").await, uid);
}

#[tokio::test]
async fn a_sent_message_is_stored_and_carries_its_id() {
    let database = Database::create().await;
    install(&database).await;
    let client = database.client().await;
    client
        .batch_execute(
            "create table public.t (id int primary key, name text);
             create function public.tell() returns trigger language plpgsql as $$ begin
                 perform realtime.broadcast_changes('t:' || coalesce(new.id, old.id), tg_op, tg_op,
                     tg_table_name, tg_table_schema, new, old);
                 return null; end $$;
             create trigger tell after insert or update or delete on public.t
                 for each row execute function public.tell();
             select realtime.send('{\"a\":1}', 'e', 'room', false);
             select realtime.send('{\"id\":\"mine\"}', 'e', 'kept');
             select realtime.send('[1]', 'e', 'array');
             select realtime.send_binary('\\x00ff', 'e', 'bytes');
             insert into public.t values (1, 'one');
             update public.t set name = 'two';
             delete from public.t;",
        )
        .await
        .unwrap();
    let row = "select id::text = payload ->> 'id' and not private and event = 'e' \
               and extension = 'broadcast' from realtime.messages where topic = 'room'";
    assert!(one::<bool>(&client, row).await);
    let kept = "select payload ->> 'id' from realtime.messages where topic = 'kept' and private";
    assert_eq!(one::<String>(&client, kept).await, "mine");
    let array = "select payload::text from realtime.messages where topic = 'array'";
    assert_eq!(one::<String>(&client, array).await, "[1]");
    let bytes = "select binary_payload from realtime.messages where topic = 'bytes'";
    assert_eq!(one::<Vec<u8>>(&client, bytes).await, [0, 255]);
    let changes = client
        .query(
            "select event || ' ' || (payload - 'id')::text from realtime.messages \
             where topic = 't:1' order by event",
            &[],
        )
        .await
        .unwrap();
    let changes: Vec<String> = changes.iter().map(|row| row.get(0)).collect();
    assert_eq!(
        changes,
        [
            "DELETE {\"table\": \"t\", \"record\": null, \"schema\": \"public\", \"operation\": \
             \"DELETE\", \"old_record\": {\"id\": 1, \"name\": \"two\"}}",
            "INSERT {\"table\": \"t\", \"record\": {\"id\": 1, \"name\": \"one\"}, \"schema\": \
             \"public\", \"operation\": \"INSERT\", \"old_record\": null}",
            "UPDATE {\"table\": \"t\", \"record\": {\"id\": 1, \"name\": \"two\"}, \"schema\": \
             \"public\", \"operation\": \"UPDATE\", \"old_record\": {\"id\": 1, \"name\": \"one\"}}",
        ]
    );
}

#[tokio::test]
async fn a_send_that_fails_does_not_fail_the_callers_transaction() {
    let database = Database::create().await;
    install(&database).await;
    let client = database.client().await;
    client
        .batch_execute(
            "create table public.t (id int);
             grant insert on public.t to authenticated;
             set role authenticated;
             begin;
             insert into public.t values (1);
             select realtime.send('{}', 'refused by policy', 'room');
             select realtime.send_binary('x', 'refused by policy', 'room');
             commit;
             reset role;
             begin;
             insert into public.t values (2);
             select realtime.send('{}', 'no topic', null);
             commit;",
        )
        .await
        .unwrap();
    assert_eq!(one::<i64>(&client, "select count(*) from public.t").await, 2);
    assert_eq!(one::<i64>(&client, "select count(*) from realtime.messages").await, 0);
    // A policy that allows it, and that reads the topic, lets the same call through.
    client
        .batch_execute(
            "create policy senders on realtime.messages for insert to authenticated
                 with check (realtime.topic() = 'room');
             set role authenticated;
             select realtime.send('{}', 'e', 'room');
             select realtime.send('{}', 'e', 'another');
             reset role;",
        )
        .await
        .unwrap();
    assert_eq!(one::<i64>(&client, "select count(*) from realtime.messages").await, 1);
    let level = "select realtime.broadcast_changes('t', 'e', 'INSERT', 't', 's', null, null, \
                 'STATEMENT')";
    let error = client.batch_execute(level).await.unwrap_err();
    assert!(error.as_db_error().unwrap().message().starts_with("Failed to process the row: "));
}

#[tokio::test]
async fn a_function_that_somebody_changed_stays_as_it_is() {
    let database = Database::create().await;
    install(&database).await;
    let client = database.client().await;
    client
        .batch_execute(
            "create or replace function auth.uid() returns uuid language sql stable
                 as $$ select null::uuid $$",
        )
        .await
        .unwrap();
    let report = install(&database).await;
    assert_eq!(report.skipped.len(), 1, "{report:#?}");
    assert_eq!(report.skipped[0].0, "function auth.uid()");
    let body = "select prosrc from pg_proc where oid = 'auth.uid()'::regprocedure";
    assert_eq!(one::<String>(&client, body).await, " select null::uuid ");
    // An older version of ours is brought up to date.
    client
        .batch_execute(
            "update walcast.objects set body = md5(' select null::uuid ') \
             where name = 'auth.uid()'",
        )
        .await
        .unwrap();
    let report = install(&database).await;
    assert_eq!(report.created, ["function auth.uid() (new version)"]);
    // A grant that the DBA took back stays taken.
    client.batch_execute("revoke usage on schema realtime from anon").await.unwrap();
    install(&database).await;
    let usage = "select has_schema_privilege('anon', 'realtime', 'usage')";
    assert!(!one::<bool>(&client, usage).await);
}

#[tokio::test]
async fn a_schema_of_our_name_that_is_not_ours_is_refused() {
    let database = Database::create().await;
    let (client, user) = ordinary_owner(&database).await;
    client.batch_execute("create schema walcast").await.unwrap();
    let login = login(&url_as(&database, &user, "x"));
    let error = sql::install(&login, &Config::default()).await.unwrap_err();
    assert!(matches!(&error, install::Error::Foreign { owner } if owner == "postgres"), "{error}");
}

#[tokio::test]
async fn a_superuser_does_not_trust_a_schema_that_another_made() {
    let database = Database::create().await;
    let client = database.client().await;
    let user = format!("user_of_{}", database.name);
    // Names are put into statements: this one would run as the superuser.
    client
        .batch_execute(&format!(
            "create role {user} login;
             create schema walcast authorization {user};
             create table walcast.objects (kind text, name text, body text, made_at timestamptz);
             insert into walcast.objects values
                 ('type', 'public.none; create table public.owned (id int)');
             alter table walcast.objects owner to {user};"
        ))
        .await
        .unwrap();
    let login = login(&database.url);
    let foreign = |error: &install::Error| matches!(error, install::Error::Foreign { .. });
    assert!(foreign(&sql::install(&login, &Config::default()).await.unwrap_err()));
    assert!(foreign(&sql::uninstall(&login, None).await.unwrap_err()));
    assert!(foreign(&sql::rotate_partitions(&login).await.unwrap_err()));
    let owned = "select to_regclass('public.owned') is null";
    assert!(one::<bool>(&client, owned).await);
}

#[tokio::test]
async fn an_ordinary_owner_gets_all_but_the_event_trigger() {
    let database = Database::create().await;
    install(&Database::create().await).await; // The roles, which it could not make.
    let (_, user) = ordinary_owner(&database).await;
    let report =
        sql::install(&login(&url_as(&database, &user, "x")), &Config::default()).await.unwrap();
    let skipped: Vec<_> = report.skipped.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(skipped, ["event trigger walcast_ddl", "event trigger walcast_drop"]);
    let other = login(&url_as(&Database::create().await, &user, "x"));
    let error = sql::install(&other, &Config::default()).await.unwrap_err();
    assert!(matches!(error, install::Error::Refused { .. }), "{error}");
    assert!(error.to_string().contains("grant create on database"), "{error}");
}

#[tokio::test]
async fn ddl_is_announced_in_the_log_at_its_commit() {
    let database = Database::create().await;
    install(&database).await;
    let client = database.client().await;
    let slot = format!("slot_of_{}", database.name);
    client
        .batch_execute(&format!(
            "select pg_create_logical_replication_slot('{slot}', 'test_decoding');
             create table public.t (id int primary key);
             create temp table scratch (id int);
             drop table scratch;
             comment on table public.t is 'x';
             alter table public.t enable row level security;
             create policy p on public.t using (true);
             grant select on public.t to anon;
             drop policy p on public.t;
             drop policy if exists p on public.t;"
        ))
        .await
        .unwrap();
    client.batch_execute("begin; drop table public.t; rollback").await.unwrap();
    client.batch_execute("drop table public.t").await.unwrap();
    let rows = client
        .query(
            &format!(
                "select substring(data from 'content:(.*)$') \
                 from pg_logical_slot_get_changes('{slot}', null, null) \
                 where data like '%prefix: walcast.ddl%'"
            ),
            &[],
        )
        .await
        .unwrap();
    client.batch_execute(&format!("select pg_drop_replication_slot('{slot}')")).await.unwrap();
    let mut tags: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    tags.dedup(); // A drop is announced by both triggers.
    assert_eq!(
        tags,
        ["CREATE TABLE", "ALTER TABLE", "CREATE POLICY", "GRANT", "DROP POLICY", "DROP TABLE"]
    );
}

#[tokio::test]
async fn old_partitions_of_ours_go_and_new_ones_come() {
    let database = Database::create().await;
    install(&database).await;
    let client = database.client().await;
    client
        .batch_execute(
            "create table realtime.messages_2020_01_01 partition of realtime.messages
                 for values from ('2020-01-01') to ('2020-01-02');
             insert into walcast.objects values ('partition', 'realtime.messages_2020_01_01');
             create table realtime.messages_2020_01_02 partition of realtime.messages
                 for values from ('2020-01-02') to ('2020-01-03');",
        )
        .await
        .unwrap();
    let tomorrow: String = one(
        &client,
        "select to_char(timezone('utc', now()) + interval '1 day', '\"realtime.messages_\"YYYY_MM_DD')",
    )
    .await;
    client.batch_execute(&format!("drop table {tomorrow}")).await.unwrap();
    let report = sql::rotate_partitions(&login(&database.url)).await.unwrap();
    assert_eq!(report.created, [format!("partition {tomorrow}")]);
    let left = "select to_regclass('realtime.messages_2020_01_01') is null \
                and to_regclass('realtime.messages_2020_01_02') is not null";
    assert!(one::<bool>(&client, left).await);
}

#[tokio::test]
async fn uninstalling_leaves_nothing_of_ours_and_everything_of_others() {
    let database = Database::create().await;
    let client = database.client().await;
    let before = fingerprint(&client).await;
    install(&database).await;
    let slot = format!("walcast_{}", database.name);
    client
        .batch_execute(&format!("select pg_create_logical_replication_slot('{slot}', 'pgoutput')"))
        .await
        .unwrap();
    let removal = sql::uninstall(&login(&database.url), Some(&slot)).await.unwrap();
    assert!(removal.dropped.contains(&format!("slot {slot}")), "{removal:#?}");
    assert!(removal.kept.iter().all(|(name, _)| name.starts_with("role ")), "{removal:#?}");
    assert_eq!(fingerprint(&client).await, before);
    // Again, on nothing.
    let removal = sql::uninstall(&login(&database.url), Some(&slot)).await.unwrap();
    assert_eq!(removal, sql::Removal::default());
}

#[tokio::test]
async fn uninstalling_keeps_what_somebody_uses() {
    let database = Database::create().await;
    install(&database).await;
    let client = database.client().await;
    client
        .batch_execute(
            "create table public.t (id int primary key, owner uuid);
             alter publication supabase_realtime add table public.t;
             create policy mine on public.t using (owner = auth.uid());
             create policy room on realtime.messages for select using (true);
             create function public.tell() returns trigger language plpgsql as
                 $$ begin perform realtime.send('{}', 'e', 't'); return null; end $$;",
        )
        .await
        .unwrap();
    let removal = sql::uninstall(&login(&database.url), None).await.unwrap();
    let why = |what: &str| {
        let kept = removal.kept.iter().find(|(name, _)| name.contains(what));
        kept.unwrap_or_else(|| panic!("{what} went: {removal:#?}")).1.as_str()
    };
    assert_eq!(why("publication supabase_realtime"), "it has tables that somebody added");
    assert_eq!(why("realtime.send(jsonb"), "function public.tell calls it");
    assert_eq!(why("table realtime.messages"), "realtime.messages has policies");
    assert!(why("auth.uid()").contains("other objects depend on it"), "{removal:#?}");
    assert!(removal.dropped.contains(&"event trigger walcast_ddl".to_owned()), "{removal:#?}");
    assert!(why("schema walcast").contains("uninstall again"), "{removal:#?}");
    client
        .batch_execute(
            "drop table public.t; drop function public.tell();
             drop policy room on realtime.messages;",
        )
        .await
        .unwrap();
    let removal = sql::uninstall(&login(&database.url), None).await.unwrap();
    assert!(removal.kept.iter().all(|(name, _)| name.starts_with("role ")), "{removal:#?}");
    let left = "select count(*) from pg_namespace where nspname in ('walcast', 'realtime', 'auth')";
    assert_eq!(one::<i64>(&client, left).await, 0);
}

#[tokio::test]
async fn claims_functions_are_inlined_into_policies() {
    let database = Database::create().await;
    install(&database).await;
    let client = database.client().await;
    let sql = "explain (verbose, costs off) select auth.uid(), auth.role(), auth.jwt(), \
               realtime.topic(), f from generate_series(1, 2) as f";
    let plan = client.query(sql, &[]).await.unwrap();
    let plan: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
    let plan = plan.join("\n");
    assert!(plan.contains("current_setting"), "{plan}");
    for call in ["auth.uid()", "auth.role()", "auth.jwt()", "realtime.topic()"] {
        assert!(!plan.contains(call), "{plan}");
    }
}

#[tokio::test]
async fn the_two_logins_can_do_their_work_and_nothing_else() {
    let database = Database::create().await;
    install(&database).await;
    let client = database.client().await;
    client.batch_execute("create table public.secret as select 1 as id").await.unwrap();
    let config = config(&database);
    let logins = Logins::open(&config).await.unwrap();
    assert!(logins.warnings.is_empty(), "{:?}", logins.warnings);
    let check = logins.check.connect("test").await.unwrap();
    let replication = logins.replication.connect("test").await.unwrap();
    let attributes = "select rolcanlogin and not rolsuper and not rolinherit and not rolcreaterole \
         and not rolcreatedb and not rolbypassrls and rolconnlimit between 1 and 100 \
         from pg_roles where rolname = session_user";
    assert!(one::<bool>(&check, attributes).await);
    assert!(one::<bool>(&replication, attributes).await);
    let replicates = "select rolreplication from pg_roles where rolname = session_user";
    assert!(!one::<bool>(&check, replicates).await);
    assert!(one::<bool>(&replication, replicates).await);
    for client in [&check, &replication] {
        let error = client.batch_execute("select from public.secret").await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE));
    }
    for role in ["anon", "authenticated", "service_role"] {
        check.batch_execute(&format!("set role {role}; reset role")).await.unwrap();
        let refused = replication.batch_execute(&format!("set role {role}")).await;
        assert_eq!(refused.unwrap_err().code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE));
    }
    check.batch_execute("set role postgres").await.unwrap_err();
    let name: String = one(&check, "select session_user::text").await;
    let verifier: String =
        one(&client, &format!("select rolpassword from pg_authid where rolname = '{name}'")).await;
    assert!(verifier.starts_with("SCRAM-SHA-256$4096:"), "{verifier}");
    // What was made passes what a given login must pass.
    logins::verify_check(&logins.check, &config).await.unwrap();
    logins::verify_replication(&logins.replication, &config).await.unwrap();
    let powerless = logins::verify_replication(&logins.check, &config).await.unwrap_err();
    assert!(matches!(powerless, logins::Error::NoReplication { .. }), "{powerless}");
    drop((check, replication));
    logins.close().await.unwrap();
    let left = format!("select exists (select from pg_roles where rolname = '{name}')");
    assert!(!one::<bool>(&client, &left).await);
}

#[tokio::test]
async fn the_server_wants_the_passwords_that_were_made() {
    let database = Database::create().await;
    install(&database).await;
    let client = database.client().await;
    let name = &database.name;
    // This test alone writes that file; its lines are about this database only.
    client
        .batch_execute(&format!(
            "create temp table hba as select row_number() over () as at, line
                 from regexp_split_to_table(pg_read_file(current_setting('hba_file')), '\\n') as line;
             insert into hba values (-2, 'local {name} postgres trust');
             insert into hba values (-1, 'local {name} all scram-sha-256');
             do $$ begin execute format('copy (select line from hba order by at) to %L',
                 current_setting('hba_file')); end $$;
             select pg_reload_conf();"
        ))
        .await
        .unwrap();
    let logins = Logins::open(&config(&database)).await.unwrap();
    let check = logins.check.connect("test").await.unwrap();
    let user: String = one(&check, "select session_user::text").await;
    let wrong = login(&database.url).with_user(&user, &Secret::new("wrong"));
    let refused = async {
        loop {
            if let Err(walcast::db::Error::Connect(error)) = wrong.connect("test").await {
                return error.code().cloned();
            }
            tokio::task::yield_now().await; // The postmaster has not read the file yet.
        }
    };
    let code = tokio::time::timeout(TIMEOUT, refused).await.unwrap();
    assert_eq!(code, Some(SqlState::INVALID_PASSWORD));
    drop(check);
    drop(logins.check.connect("test").await.unwrap());
    drop(logins.replication.connect("test").await.unwrap());
    logins.close().await.unwrap();
}

#[tokio::test]
async fn a_connection_is_granted_where_the_public_has_none_and_taken_back() {
    let database = Database::create().await;
    install(&database).await;
    let client = database.client().await;
    let name = &database.name;
    client.batch_execute(&format!("revoke connect on database {name} from public")).await.unwrap();
    let logins = Logins::open(&config(&database)).await.unwrap();
    let check = logins.check.connect("test").await.unwrap();
    let login: String = one(&check, "select session_user::text").await;
    drop(check);
    logins.close().await.unwrap();
    let left = format!("select exists (select from pg_roles where rolname = '{login}')");
    assert!(!one::<bool>(&client, &left).await);
}

#[tokio::test]
async fn logins_that_somebody_dropped_come_back_with_their_passwords() {
    let database = Database::create().await;
    install(&database).await;
    let client = database.client().await;
    let logins = Logins::open(&config(&database)).await.unwrap();
    let name: String =
        one(&logins.check.connect("test").await.unwrap(), "select session_user::text").await;
    let verifier = format!("select rolpassword from pg_authid where rolname = '{name}'");
    let before: String = one(&client, &verifier).await;
    client.batch_execute(&format!("drop role {name}")).await.unwrap();
    assert!(logins.check.connect("test").await.is_err());
    logins.ensure().await.unwrap();
    logins.ensure().await.unwrap();
    assert_eq!(one::<String>(&client, &verifier).await, before);
    logins.check.connect("test").await.unwrap();
    logins.close().await.unwrap();
}

#[tokio::test]
async fn logins_of_dead_instances_are_dropped_at_the_next_start() {
    let database = Database::create().await;
    install(&database).await;
    let client = database.client().await;
    let config = config(&database);
    let dead = Logins::open(&config).await.unwrap();
    let live = Logins::open(&config).await.unwrap();
    let name =
        |client: Client| async move { one::<String>(&client, "select session_user::text").await };
    let dead_check = name(dead.check.connect("test").await.unwrap()).await;
    let dead_replication = name(dead.replication.connect("test").await.unwrap()).await;
    let live_check = name(live.check.connect("test").await.unwrap()).await;
    let keeps = live.replication.connect("test").await.unwrap(); // One of the pair suffices.
    let age = |login: String, database: &str| {
        format!("comment on role {login} is 'walcast login for {database}, made 1000'")
    };
    for login in [&dead_check, &live_check] {
        client.batch_execute(&age(login.clone(), &database.name)).await.unwrap();
    }
    // Of a database that is gone.
    client.batch_execute(&age(dead_replication.clone(), "dropped, long ago")).await.unwrap();
    wait_until_gone(&client, &dead_check).await;
    wait_until_gone(&client, &dead_replication).await;
    let next = Logins::open(&config).await.unwrap();
    let exists =
        |name: &str| format!("select exists (select from pg_roles where rolname = '{name}')");
    assert!(!one::<bool>(&client, &exists(&dead_check)).await);
    assert!(!one::<bool>(&client, &exists(&dead_replication)).await);
    assert!(one::<bool>(&client, &exists(&live_check)).await);
    drop(keeps);
    next.close().await.unwrap();
    live.close().await.unwrap();
}

/// Waits until the server has ended the sessions of a login.
async fn wait_until_gone(client: &Client, login: &str) {
    let gone = async {
        let sql = format!("select exists (select from pg_stat_activity where usename = '{login}')");
        while one::<bool>(client, &sql).await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TIMEOUT, gone).await.unwrap();
}

#[tokio::test]
async fn f88_a_check_login_that_could_do_too_much_is_refused() {
    let database = Database::create().await;
    install(&database).await;
    let client = database.client().await;
    let base = format!("l_{}", database.name);
    let other = format!("o_{}", database.name);
    client
        .batch_execute(&format!(
            "create role {other} nologin;
             create role {base}_fine login noinherit; grant anon, authenticated to {base}_fine;
             create role {base}_super login superuser noinherit;
             create role {base}_bypass login bypassrls noinherit;
             create role {base}_repl login replication noinherit;
             create role {base}_creator login createrole noinherit;
             create role {base}_member login noinherit; grant anon, {other} to {base}_member;
             create role {base}_files login noinherit; grant pg_read_server_files to {base}_files;
             create role {base}_inherits login inherit; grant anon to {base}_inherits;
             create role {base}_owner login noinherit; grant anon to {base}_owner;
             create table public.owned (id int primary key);
             alter table public.owned owner to {base}_owner;
             alter publication supabase_realtime add table public.owned;"
        ))
        .await
        .unwrap();
    let config = config(&database);
    let verify = |suffix: &str| {
        let login = login(&url_as(&database, &format!("{base}_{suffix}"), "x"));
        let config = config.clone();
        async move { logins::verify_check(&login, &config).await }
    };
    let warnings = verify("fine").await.unwrap();
    assert!(
        warnings.iter().any(|text| text.contains("may not become service_role")),
        "{warnings:?}"
    );
    for (suffix, problem) in [
        ("super", "is a superuser"),
        ("bypass", "has BYPASSRLS"),
        ("repl", "may replicate"),
        ("creator", "may create roles"),
        ("member", "is a member of other roles"),
        ("files", "is a member of other roles: pg_read_server_files"),
        ("inherits", "inherits the rights of its roles"),
        ("owner", "owns published tables: public.owned"),
    ] {
        let error = verify(suffix).await.unwrap_err().to_string();
        assert!(error.contains(problem), "{suffix}: {error}");
        assert!(error.contains("create role walcast_check login noinherit"), "{error}");
    }
    client
        .batch_execute(&format!("drop table public.owned; drop role {base}_super"))
        .await
        .unwrap();
}

#[tokio::test]
async fn f88_a_check_login_that_is_given_too_much_while_it_is_used_is_noticed() {
    let database = Database::create().await;
    install(&database).await;
    let client = database.client().await;
    let name = format!("l_{}_later", database.name);
    let make = format!(
        "create role {name} login noinherit; grant anon, authenticated, service_role to {name}"
    );
    client.batch_execute(&make).await.unwrap();
    let (shutdown, every) = (CancellationToken::new(), Duration::from_millis(20));
    for (give, problem) in [
        ("alter role {} superuser", "is a superuser"),
        ("alter role {} bypassrls", "has BYPASSRLS"),
        ("grant pg_read_all_data to {}", "is a member of other roles"),
    ] {
        let check = login(&url_as(&database, &name, "x"));
        let watching = watch_powers(check, config(&database), every, shutdown.clone());
        let watching = tokio::spawn(watching);
        // It is well, and nobody says otherwise.
        let looked = "select count(*) > 0 from pg_stat_activity where usename = $1";
        let seen = async {
            while !client.query_one(looked, &[&name]).await.unwrap().get::<_, bool>(0) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, seen).await.unwrap();
        assert!(!watching.is_finished());
        client.batch_execute(&give.replace("{}", &name)).await.unwrap();
        let error = tokio::time::timeout(DEADLINE, watching).await.unwrap().unwrap().unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
        let take = format!(
            "alter role {name} nosuperuser nobypassrls; revoke pg_read_all_data from {name}"
        );
        client.batch_execute(&take).await.unwrap();
    }
    shutdown.cancel();
}

#[tokio::test]
async fn a_database_closed_to_public_is_opened_for_our_logins_alone() {
    let database = Database::create().await;
    install(&database).await;
    let client = database.client().await;
    let name = &database.name;
    client.batch_execute(&format!("revoke all on database {name} from public")).await.unwrap();
    let logins = Logins::open(&config(&database)).await.unwrap();
    let check = logins.check.connect("test").await.unwrap();
    check.batch_execute("create function pg_temp.f() returns int return 1").await.unwrap();
    let replication = logins.replication.connect("test").await.unwrap();
    let refused = replication.batch_execute("create temporary table t ()").await.unwrap_err();
    assert_eq!(refused.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE));
    let user: String = one(&check, "select session_user::text").await;
    drop((check, replication));
    wait_until_gone(&client, &user).await;
    logins.close().await.unwrap();
    let grants = format!(
        "select count(*) from pg_database, aclexplode(datacl) \
         where datname = '{name}' and grantee <> datdba"
    );
    assert_eq!(one::<i64>(&client, &grants).await, 0);
}

#[tokio::test]
async fn a_check_login_without_temporary_objects_is_refused_with_the_grant() {
    let database = Database::create().await;
    install(&database).await;
    let client = database.client().await;
    let name = &database.name;
    client
        .batch_execute(&format!(
            "create role {name}_poor login noinherit;
             grant anon, authenticated, service_role to {name}_poor;
             revoke temporary on database {name} from public"
        ))
        .await
        .unwrap();
    let mut config = config(&database);
    config.database.check_url = Secret::new(url_as(&database, &format!("{name}_poor"), "x"));
    let Err(error) = Logins::open(&config).await else { panic!("opened") };
    let grant = format!("grant temporary on database {name} to {name}_poor");
    assert!(error.to_string().contains(&grant), "{error}");
    let findings = walcast::doctor::examine(&config).await;
    let red = |finding: &&walcast::doctor::Finding| finding.level == walcast::doctor::Level::Red;
    assert!(findings.iter().filter(red).any(|f| f.text.contains(&grant)), "{findings:?}");
    client.batch_execute(&grant).await.unwrap();
    Logins::open(&config).await.unwrap().close().await.unwrap();
}

#[tokio::test]
async fn where_logins_may_not_be_made_the_error_says_how_to_make_them() {
    let database = Database::create().await;
    install(&database).await;
    let client = database.client().await;
    let user = format!("user_of_{}", database.name);
    client.batch_execute(&format!("create role {user} login createrole")).await.unwrap();
    let mut config = config(&database);
    config.database.url = Secret::new(url_as(&database, &user, "hunter2"));
    let Err(error) = Logins::open(&config).await else { panic!("made with too little") };
    let text = error.to_string();
    assert!(text.contains("create role walcast_repl login replication"), "{text}");
    assert!(text.contains("WALCAST_CHECK_URL") && !text.contains("hunter2"), "{text}");
    let made = format!("select count(*) from pg_auth_members where grantor = '{user}'::regrole");
    assert_eq!(one::<i64>(&client, &made).await, 0);
    // Given by hand they are taken as they are.
    client
        .batch_execute(&format!(
            "create role {user}_r login replication noinherit;
             create role {user}_c login noinherit;
             grant anon, authenticated, service_role to {user}_c"
        ))
        .await
        .unwrap();
    config.database.replication_url = Secret::new(url_as(&database, &format!("{user}_r"), "x"));
    config.database.check_url = Secret::new(url_as(&database, &format!("{user}_c"), "x"));
    config.database.url = Secret::default();
    let logins = Logins::open(&config).await.unwrap();
    assert!(logins.warnings.is_empty(), "{:?}", logins.warnings);
    logins.close().await.unwrap();
    let exists = format!("select exists (select from pg_roles where rolname = '{user}_c')");
    assert!(one::<bool>(&client, &exists).await);
}

#[tokio::test]
async fn an_ordinary_administrator_makes_logins_where_the_server_lets_it() {
    let database = Database::create().await;
    let client = database.client().await;
    let user = format!("admin_of_{}", database.name);
    let role = format!("web_of_{}", database.name);
    client
        .batch_execute(&format!("create role {user} login createrole replication"))
        .await
        .unwrap();
    let mut config = config(&database);
    config.database.url = Secret::new(url_as(&database, &user, "x"));
    config.database.roles = vec![role.clone()];
    let administrator = crate::cluster::connect(config.database.url.expose()).await;
    administrator.batch_execute(&format!("create role {role} nologin")).await.unwrap();
    let version: i32 = one(&client, "select current_setting('server_version_num')::int").await;
    match Logins::open(&config).await {
        // Before 16 only a superuser gives REPLICATION.
        Err(error) => {
            assert!(version < 160_000, "{error}");
            assert!(matches!(error, logins::Error::MayNotMake { .. }), "{error}");
        }
        Ok(logins) => {
            assert!(version >= 160_000);
            logins::verify_check(&logins.check, &config).await.unwrap();
            let check = logins.check.connect("test").await.unwrap();
            check.batch_execute(&format!("set role {role}")).await.unwrap();
            drop(check);
            logins.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_role_above_policies_is_never_given_to_the_check_login() {
    let database = Database::create().await;
    install(&database).await;
    let mut config = config(&database);
    config.database.roles.push("postgres".into());
    let Err(error) = Logins::open(&config).await else { panic!("postgres was taken") };
    assert!(matches!(&error, logins::Error::RoleTooPowerful { role } if role == "postgres"));
}
