//! The catalog as an ordinary login sees it.

use std::time::Duration;

use tokio::sync::OnceCell;
use tokio_postgres::{Client, SimpleQueryMessage};
use walcast::catalog::{Catalog, Kind, QualifiedName, RowAccess, Table};
use walcast::change::value::Type;
use walcast::change::{Relation, ReplicaIdentity};
use walcast::db::Login;

use crate::cluster::{self, Database, cluster};

const ROLES: [&str; 5] = ["cat_anon", "cat_user", "cat_loose", "cat_admin", "cat_no_such_role"];

/// A database with a few roles and a login that may do nothing.
async fn database() -> (Client, Catalog) {
    static MADE: OnceCell<()> = OnceCell::const_new();
    let database = Database::create().await;
    let admin = database.client().await;
    let roles = "create role cat_anon;
        create role cat_group;
        create role cat_user in role cat_group;
        create role cat_loose noinherit in role cat_group;
        create role cat_admin bypassrls;
        create role cat_login login noinherit;";
    cluster::roles(&MADE, roles).await;
    (admin, catalog(&database))
}

fn catalog(database: &Database) -> Catalog {
    let url = database.url.replace("postgres@", "cat_login@");
    let login = Login::parse(&url, Duration::from_secs(10)).unwrap();
    Catalog::new(login, &ROLES.map(String::from), &["cat_a".into(), "cat_b".into(), "nope".into()])
}

async fn oid(admin: &Client, table: &str) -> u32 {
    admin.query_one("select $1::text::regclass::oid", &[&table]).await.unwrap().get(0)
}

async fn table(admin: &Client, catalog: &Catalog, name: &str) -> std::sync::Arc<Table> {
    catalog.table(oid(admin, name).await).await.unwrap().unwrap()
}

fn names(columns: &[Box<str>]) -> Vec<&str> {
    columns.iter().map(|name| &**name).collect()
}

#[tokio::test]
async fn a_table_is_described_as_it_is() {
    let (admin, catalog) = database().await;
    admin
        .batch_execute(
            r#"create schema "odd ""schema";
               create type mood as enum ('a', 'b');
               create domain positive as int check (value > 0);
               create domain more_positive as positive;
               create type pair as (x more_positive, "y ""q" mood[]);
               create table "odd ""schema"."odd 'table" (
                   b text, gone int, "a b" int8, g int generated always as (1) stored,
                   p pair, d more_positive[], m mood, primary key ("a b", b) include (m)
               );
               alter table "odd ""schema"."odd 'table" drop column gone, replica identity full;"#,
        )
        .await
        .unwrap();
    let table = table(&admin, &catalog, r#""odd ""schema"."odd 'table""#).await;
    assert_eq!((&*table.schema, &*table.name), ("odd \"schema", "odd 'table"));
    assert_eq!((table.kind, table.replica_identity), (Kind::Table, ReplicaIdentity::Full));
    assert!(!table.row_security);
    assert_eq!(table.partition_root, None);
    assert_eq!(names(&table.primary_key), ["a b", "b"]);
    let columns: Vec<_> =
        table.columns.iter().map(|c| (c.attnum, &*c.name, &*c.type_name, c.generated)).collect();
    assert_eq!(
        columns,
        [
            (1, "b", "text", false),
            (3, "a b", "int8", false),
            (4, "g", "int4", true),
            (5, "p", "pair", false),
            (6, "d", "_more_positive", false),
            (7, "m", "mood", false),
        ]
    );
    let array = |element| Type::Array { element: Box::new(element), delimiter: b',' };
    let pair = [("x".into(), Type::Integer), ("y \"q".into(), array(Type::Text))];
    assert_eq!(table.columns[3].kind, Type::Composite(pair.into()));
    assert_eq!(table.columns[4].kind, array(Type::Integer));
    assert_eq!(table.columns[5].kind, Type::Text);

    // The log has the columns that are stored, and knows nothing of the key under full identity.
    let logged = table.columns.iter().filter(|column| !column.generated);
    let relation = Relation::from_message(
        table.oid,
        &table.schema,
        &table.name,
        b'f',
        logged.map(|column| (1, &*column.name, column.type_oid)),
        Some(&table),
    );
    let columns: Vec<_> =
        relation.columns.iter().map(|c| (&*c.name, &*c.type_name, c.in_primary_key)).collect();
    assert_eq!(
        columns,
        [
            ("b", "text", true),
            ("a b", "int8", true),
            ("p", "pair", false),
            ("d", "_more_positive", false),
            ("m", "mood", false)
        ]
    );
    assert_eq!(relation.columns[2].kind, table.columns[3].kind);
}

#[tokio::test]
async fn a_dropped_table_is_none_and_a_forgotten_one_is_asked_for_again() {
    let (admin, catalog) = database().await;
    admin.batch_execute("create table t (id int primary key)").await.unwrap();
    let oid = oid(&admin, "t").await;
    assert_eq!(catalog.table(oid).await.unwrap().unwrap().columns.len(), 1);
    admin.batch_execute("alter table t add column b text").await.unwrap();
    assert_eq!(catalog.table(oid).await.unwrap().unwrap().columns.len(), 1);
    catalog.forget(oid);
    assert_eq!(catalog.table(oid).await.unwrap().unwrap().columns.len(), 2);
    admin.batch_execute("drop table t").await.unwrap();
    catalog.forget(oid);
    assert_eq!(catalog.table(oid).await.unwrap(), None);
}

#[tokio::test]
async fn readable_columns_are_those_the_role_may_select() {
    let (admin, catalog) = database().await;
    admin
        .batch_execute(
            r#"create table t (id int primary key, open text, "se cret" text);
               grant select (id, open) on t to cat_anon;
               grant select on t to cat_group;
               create schema closed;
               create table closed.t (id int primary key);
               grant select on closed.t to public;
               grant usage on schema closed to cat_user;"#,
        )
        .await
        .unwrap();
    let open = table(&admin, &catalog, "t").await;
    assert_eq!(names(&open.readable["cat_anon"]), ["id", "open"]);
    assert_eq!(names(&open.readable["cat_user"]), ["id", "open", "se cret"]);
    assert_eq!(names(&open.readable["cat_admin"]), [""; 0]);
    assert!(!open.readable.contains_key("cat_no_such_role"));
    assert!(open.may_read("cat_anon", "open"));
    assert!(!open.may_read("cat_anon", "se cret"));
    assert!(!open.may_read("cat_no_such_role", "id"));
    let closed = table(&admin, &catalog, "closed.t").await;
    assert!(closed.may_read("cat_user", "id"));
    assert!(!closed.may_read("cat_anon", "id"), "without usage of the schema");

    // Whoever selects is told the same.
    for (table, sql_name) in [(&open, "public.t"), (&closed, "closed.t")] {
        for role in ["cat_anon", "cat_user", "cat_loose", "cat_admin"] {
            for column in &table.columns {
                let select = format!("select \"{}\" from {sql_name}", column.name);
                let sql = format!("begin; set local role {role}; {select}; commit");
                let allowed = admin.batch_execute(&sql).await.is_ok();
                admin.batch_execute("rollback").await.unwrap();
                assert_eq!(table.may_read(role, &column.name), allowed, "{role}: {select}");
            }
        }
    }

    let columns = [(1, "id", 23), (0, "se cret", 25), (0, "renamed", 25)];
    let relation = Relation::from_message(open.oid, "public", "t", b'd', columns, Some(&open));
    assert_eq!(open.readable_in("cat_anon", &relation).iter().collect::<Vec<_>>(), [0]);
    assert_eq!(open.readable_in("cat_user", &relation).iter().collect::<Vec<_>>(), [0, 1]);
    assert!(open.readable_in("cat_no_such_role", &relation).is_empty());
}

#[tokio::test]
async fn row_access_is_what_postgres_makes_of_policies_roles_and_owners() {
    use RowAccess::{All, ByPolicy, None};
    let (admin, catalog) = database().await;
    let access = async |expected: [RowAccess; 4]| {
        let oid = oid(&admin, "t").await;
        catalog.forget(oid);
        let table = catalog.table(oid).await.unwrap().unwrap();
        let roles = ["cat_anon", "cat_user", "cat_loose", "cat_admin"];
        assert_eq!(roles.map(|role| table.row_access(role)), expected);
        for role in roles {
            let sql = format!("set role {role}; select row_security_active('t'); reset role");
            let active = admin.simple_query(&sql).await.unwrap();
            let active = active.iter().find_map(|message| {
                if let SimpleQueryMessage::Row(row) = message { row.get(0) } else { Option::None }
            });
            assert_eq!(
                active,
                Some(if table.row_access(role) == All { "f" } else { "t" }),
                "{role}"
            );
        }
        assert_eq!(table.row_access("cat_no_such_role"), RowAccess::None);
    };
    let run = async |sql: &str| admin.batch_execute(sql).await.unwrap();
    run("create table t (id int primary key); create policy p on t using (true)").await;
    access([All, All, All, All]).await; // row security is off
    run("alter table t enable row level security").await;
    access([ByPolicy, ByPolicy, ByPolicy, All]).await;
    run("drop policy p on t").await;
    access([None, None, None, All]).await;
    run("create policy p on t as restrictive using (true)").await;
    access([None, None, None, All]).await;
    run("create policy q on t for insert with check (true)").await;
    run("create policy r on t for update using (true)").await;
    run("create policy s on t for all with check (true)").await;
    access([None, None, None, All]).await;
    run("create policy u on t for select to cat_group using (true)").await;
    access([None, ByPolicy, None, All]).await;
    run("alter table t owner to cat_anon").await;
    access([All, ByPolicy, None, All]).await;
    run("alter table t force row level security").await;
    access([None, ByPolicy, None, All]).await;
    run("alter table t owner to postgres").await;
}

#[tokio::test]
async fn a_partition_knows_its_root() {
    let (admin, catalog) = database().await;
    admin
        .batch_execute(
            "create schema parts;
             create table whole (id int, at date) partition by range (at);
             create table parts.year partition of whole for values from ('2026-01-01')
                 to ('2027-01-01') partition by list (id);
             create table parts.leaf partition of parts.year default;",
        )
        .await
        .unwrap();
    let root = Some(QualifiedName { schema: "public".into(), name: "whole".into() });
    let whole = table(&admin, &catalog, "whole").await;
    assert_eq!((whole.kind, &whole.partition_root), (Kind::Partitioned, &None));
    let year = table(&admin, &catalog, "parts.year").await;
    assert_eq!((year.kind, &year.partition_root), (Kind::Partitioned, &root));
    let leaf = table(&admin, &catalog, "parts.leaf").await;
    assert_eq!((leaf.kind, &leaf.partition_root), (Kind::Table, &root));
}

#[tokio::test]
async fn published_tables_are_those_of_our_publications_each_once() {
    let (admin, catalog) = database().await;
    let has_lists = cluster::version(&admin).await >= 150_000;
    let columns = if has_lists { "(id)" } else { "" };
    let rest_of_s = if has_lists { "tables in schema s" } else { "s.d" };
    admin
        .batch_execute(&format!(
            "create schema s;
             create table a (id int primary key); create table b (id int primary key);
             create table c (id int primary key, x text); create table s.d (id int primary key);
             create publication cat_a for table a, c {columns};
             create publication other for table b;",
        ))
        .await
        .unwrap();
    let list = async || {
        let published = catalog.published_now().await.unwrap();
        for table in &*published {
            assert_eq!(table.oid, oid(&admin, &format!("{}.{}", table.schema, table.name)).await);
        }
        published.iter().map(|t| format!("{}.{}", t.schema, t.name)).collect::<Vec<_>>()
    };
    let asked = std::time::Instant::now();
    assert_eq!(list().await, ["public.a", "public.c"]);
    let more = format!("create publication cat_b for table a, {rest_of_s}");
    admin.batch_execute(&more).await.unwrap();
    let lately = catalog.published().await.unwrap().len();
    assert!(lately == 2 || asked.elapsed() >= Duration::from_secs(1), "asked again at once");
    assert_eq!(list().await, ["public.a", "public.c", "s.d"]);
    assert_eq!(catalog.published().await.unwrap().len(), 3);
}

#[tokio::test]
async fn every_change_of_what_may_be_read_is_noticed() {
    // A cluster's roles are seen from each database, so other tests could disturb the quiet part.
    let database = Database::create().await;
    let admin = database.client().await;
    let name = &database.name;
    admin
        .batch_execute(&format!(
            "create role {name}_login login;
             create table t (id int primary key, x text);
             create function f() returns int language sql return 1;
             create view v as select 1 as x;
             create type pair as (a int);
             create domain d as int;
             create table whole (id int) partition by list (id);
             create table part (id int);"
        ))
        .await
        .unwrap();
    let url = database.url.replace("postgres@", &format!("{name}_login@"));
    let login = Login::parse(&url, Duration::from_secs(10)).unwrap();
    let catalog = Catalog::new(login, &[format!("{name}_role")], &[]);
    let oid = oid(&admin, "t").await;
    let before = catalog.table(oid).await.unwrap().unwrap();
    assert!(before.readable.is_empty());
    for statement in [
        format!("create role {name}_role"),
        format!("grant {name}_role to {name}_login"),
        format!("revoke {name}_role from {name}_login"),
        format!("alter role {name}_role bypassrls"),
        format!("alter role {name}_role set search_path to public"),
        format!("alter database {name} set app.x to 'y'"),
        format!("grant select on t to {name}_role"),
        format!("grant select (x) on t to {name}_role"),
        format!("revoke select (x) on t from {name}_role"),
        format!("grant create on schema public to {name}_role"),
        "alter table t enable row level security".into(),
        "alter table t force row level security".into(),
        "create policy p on t using (true)".into(),
        "alter policy p on t using (false)".into(),
        "drop policy p on t".into(),
        "create or replace function f() returns int language sql return 2".into(),
        "alter function f() security definer".into(),
        "drop function f()".into(),
        "create or replace view v as select 2 as x".into(),
        "alter type pair add attribute b int".into(),
        "alter domain d rename to e".into(),
        "alter table whole attach partition part default".into(),
        "alter table t rename to u".into(),
        format!("drop owned by {name}_role"),
        format!("drop role {name}_role"),
    ] {
        catalog.table(oid).await.unwrap();
        catalog.changed().await.unwrap();
        admin.batch_execute(&statement).await.unwrap();
        assert!(catalog.changed().await.unwrap(), "not noticed: {statement}");
    }
    assert_eq!(&*catalog.table(oid).await.unwrap().unwrap().name, "u");
}

#[tokio::test]
async fn rows_and_temporary_objects_change_nothing() {
    let (admin, catalog) = database().await;
    admin.batch_execute("create table t (id int primary key, x text)").await.unwrap();
    // Other tests may change roles at any moment; that a quiet pair of calls exists is enough.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        catalog.changed().await.unwrap();
        admin
            .batch_execute(
                "insert into t values (1, 'a') on conflict (id) do update set x = t.x || 'b';
                 create temporary table scratch (a int);
                 create or replace temporary view seen as select 1 as x;
                 drop table scratch; drop view seen; analyze t;",
            )
            .await
            .unwrap();
        if !catalog.changed().await.unwrap() {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "something always seems to have changed");
    }
}

#[tokio::test]
async fn a_lost_connection_is_made_again() {
    let (admin, catalog) = database().await;
    admin.batch_execute("create table t (id int primary key)").await.unwrap();
    let oid = oid(&admin, "t").await;
    catalog.table(oid).await.unwrap();
    for _ in 0..3 {
        let killed = admin
            .query(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity
                 where application_name = 'walcast catalog' and datname = current_database()",
                &[],
            )
            .await
            .unwrap();
        assert_eq!(killed.len(), 1);
        catalog.forget(oid);
        assert!(catalog.table(oid).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn an_answer_that_was_forgotten_on_its_way_is_not_remembered() {
    let database = Database::create().await;
    let (admin, blocker) = (database.client().await, database.client().await);
    admin.batch_execute("create table t (id int primary key)").await.unwrap();
    let oid = oid(&admin, "t").await;
    let login = Login::parse(&database.url, Duration::from_secs(10)).unwrap();
    let catalog = Catalog::new(login, &[], &[]);
    catalog.table(oid).await.unwrap();
    catalog.forget(oid);
    blocker.batch_execute("begin; lock table pg_policy in access exclusive mode").await.unwrap();
    let forgotten = async {
        let waiting = "select from pg_locks where not granted and relation = 'pg_policy'::regclass";
        let deadline = tokio::time::Instant::now() + Duration::from_secs(8);
        while admin.query(waiting, &[]).await.unwrap().is_empty() {
            assert!(tokio::time::Instant::now() < deadline, "the question did not reach the lock");
        }
        catalog.forget(oid);
        blocker.batch_execute("commit").await.unwrap();
    };
    let (answer, ()) = tokio::join!(catalog.table(oid), forgotten);
    assert_eq!(answer.unwrap().unwrap().columns.len(), 1);
    admin.batch_execute("alter table t add column b text").await.unwrap();
    assert_eq!(catalog.table(oid).await.unwrap().unwrap().columns.len(), 2);
}

#[tokio::test]
async fn whoever_stops_waiting_leaves_the_catalog_usable() {
    let (admin, catalog) = database().await;
    admin.batch_execute("create table t (id int primary key)").await.unwrap();
    let oid = oid(&admin, "t").await;
    for _ in 0..20 {
        catalog.forget(oid);
        let _ = tokio::time::timeout(Duration::ZERO, catalog.table(oid)).await;
        assert_eq!(&*catalog.table(oid).await.unwrap().unwrap().name, "t");
        let _ = tokio::time::timeout(Duration::from_millis(1), catalog.changed()).await;
        catalog.changed().await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_an_error_and_no_answer() {
    cluster();
    let login = Login::parse("postgres://u@127.0.0.1:1/x", Duration::from_secs(1)).unwrap();
    let catalog = Catalog::new(login, &[], &[]);
    assert!(catalog.table(1).await.is_err());
    assert!(catalog.published().await.is_err());
    assert!(catalog.changed().await.is_err());
}
