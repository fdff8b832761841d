//! The whole service on a real slot: every kind of change, from the log to the socket.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_postgres::Client;
use walcast::config::Config;

use crate::cluster;
use crate::service::{DEADLINE, Service, Socket, Version, anon};

/// A row in it comes after all that was committed before: whoever has it has seen the rest.
const MARKS: &str = "
    create table marks (id bigint generated always as identity primary key);
    grant select on marks to anon, authenticated, service_role;
    alter publication supabase_realtime add table marks;
";

/// A service, and sockets that each watch some tables.
pub(crate) struct World {
    pub(crate) service: Service,
    pub(crate) admin: Client,
    pub(crate) sockets: Vec<Socket>,
}

/// Every change of one table.
pub(crate) fn all_of(table: &str) -> Vec<Value> {
    vec![json!({ "event": "*", "schema": "public", "table": table })]
}

/// For each of so many sockets.
pub(crate) fn nothing<const N: usize>() -> [&'static [&'static str]; N] {
    [&[]; N]
}

/// A transaction that holds a lock.
pub(crate) struct Held(Client);

impl Held {
    pub(crate) async fn release(self) {
        self.0.batch_execute("rollback").await.unwrap();
    }
}

impl World {
    /// With these objects, before anybody listens.
    pub(crate) async fn start(sql: &str) -> Self {
        Self::with(|_| (), sql).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config), sql: &str) -> Self {
        let service = Service::with(change).await;
        let admin = service.admin().await;
        admin.batch_execute(MARKS).await.unwrap();
        admin.batch_execute(sql).await.unwrap();
        Self { service, admin, sockets: Vec::new() }
    }

    /// One more socket, on these subscriptions.
    pub(crate) async fn join(&mut self, token: &str, mut parameters: Vec<Value>) {
        parameters.extend(all_of("marks"));
        let socket = self.service.subscribe(Version::V2, token, parameters.into()).await;
        self.sockets.push(socket);
    }

    /// What a subscription is refused with.
    pub(crate) async fn refused(&self, token: &str, parameters: Vec<Value>) -> String {
        let mut socket = self.service.connect(Version::V2, token).await;
        let (_, system) = socket.try_subscribe("realtime:test", parameters.into()).await;
        assert_eq!(system["status"], "error", "{system}");
        system["message"].as_str().unwrap().to_owned()
    }

    /// Runs statements, in one transaction unless they begin one.
    pub(crate) async fn run(&self, sql: &str) {
        self.admin.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Nobody can read or write the table until that is released.
    pub(crate) async fn hold(&self, table: &str) -> Held {
        let client = self.service.admin().await;
        let lock = format!("begin; lock table {table} in access exclusive mode");
        client.batch_execute(&lock).await.unwrap();
        Held(client)
    }

    /// Waits until two snapshots of the past are held that were taken after this call.
    pub(crate) async fn history_kept(&self) {
        let now = "select pg_current_xact_id()::text::int8";
        // Later snapshots see this transaction.
        self.admin.query_one(now, &[]).await.unwrap();
        let kept = "select count(*) = 2 from pg_stat_activity
            where datname = current_database() and application_name = 'walcast history'
                and state = 'idle in transaction' and xact_start > $1::text::timestamptz";
        let row = self.admin.query_one("select clock_timestamp()::text", &[]).await.unwrap();
        let since: String = row.get(0);
        self.until(kept, &since).await;
    }

    /// Waits until a check waits for a lock.
    pub(crate) async fn a_check_waits(&self) {
        let waits = "select count(*) > 0 from pg_stat_activity
            where datname = current_database() and application_name = $1
                and wait_event_type = 'Lock'";
        self.until(waits, "walcast check").await;
    }

    async fn until(&self, query: &str, parameter: &str) {
        let wait = async {
            loop {
                let row = self.admin.query_one(query, &[&parameter]).await.unwrap();
                if row.get(0) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("never: {query}"));
    }

    /// Ends every connection that decides, once one of them is at it.
    pub(crate) async fn cut_checks(&self) {
        let busy = "select count(*) > 0 from pg_stat_activity
            where datname = current_database() and application_name = $1 and state = 'active'";
        self.until(busy, "walcast check").await;
        let cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity
            where datname = current_database() and application_name in
                ('walcast check', 'walcast guard', 'walcast catalog', 'walcast history',
                    'walcast filters', 'walcast probe', 'walcast checks')";
        self.admin.query_one(cut, &[]).await.unwrap();
    }

    /// What each socket gets of these statements.
    pub(crate) async fn seen(&mut self, sql: &str) -> Vec<Vec<String>> {
        let seen = self.messages(sql).await;
        let describe = |messages: &Vec<(String, Value)>| {
            messages.iter().map(|(event, payload)| describe(event, payload)).collect()
        };
        seen.iter().map(describe).collect()
    }

    /// The `data` of the changes that each socket gets of these statements.
    pub(crate) async fn seen_data(&mut self, sql: &str) -> Vec<Vec<Value>> {
        let seen = self.messages(sql).await;
        let data = |messages: Vec<(String, Value)>| {
            let data = messages.into_iter().map(|(event, mut payload)| {
                assert_eq!(event, "postgres_changes", "{payload}");
                payload["data"].take()
            });
            data.collect()
        };
        seen.into_iter().map(data).collect()
    }

    async fn messages(&mut self, sql: &str) -> Vec<Vec<(String, Value)>> {
        self.run(sql).await;
        let mark = "insert into marks default values returning id";
        let mark: i64 = self.admin.query_one(mark, &[]).await.unwrap().get(0);
        let mut seen = Vec::new();
        for socket in &mut self.sockets {
            let mut messages = Vec::new();
            loop {
                let message = socket.next().await;
                let data = &message.payload["data"];
                if data["table"] == "marks" {
                    assert_eq!(data["record"]["id"], mark);
                    break;
                }
                messages.push((message.event, message.payload));
            }
            // What is said in words takes a way of its own.
            let rest = socket.rest().await.into_iter();
            messages.extend(rest.map(|message| (message.event, message.payload)));
            seen.push(messages);
        }
        seen
    }
}

/// `UPDATE t {…} old {…} […]`, what is null or absent left out.
fn describe(event: &str, payload: &Value) -> String {
    if event == "system" {
        let text = |name: &str| payload[name].as_str().unwrap().to_owned();
        return format!("system {}: {}", text("status"), text("message"));
    }
    assert_eq!(event, "postgres_changes", "{payload}");
    let data = &payload["data"];
    let mut text =
        format!("{} {}", data["type"].as_str().unwrap(), data["table"].as_str().unwrap());
    if data.get("record").is_some() {
        let _ = write!(text, " {}", by_name(&data["record"]));
    }
    if data.get("old_record").is_some() {
        let _ = write!(text, " old {}", by_name(&data["old_record"]));
    }
    if !data["errors"].is_null() {
        let _ = write!(text, " {}", data["errors"]);
    }
    text
}

/// An object's text, members in the order of their names.
fn by_name(object: &Value) -> String {
    let members: std::collections::BTreeMap<_, _> = object.as_object().unwrap().iter().collect();
    serde_json::to_string(&members).unwrap()
}

/// A value that is stored out of line, and so left out of an update that does not touch it.
const LARGE: &str = "(select string_agg(md5(n::text), '') from generate_series(1, 400) as n)";

const INSERT: &str = "insert into t values (1, 'a')";

/// A table that everybody may do everything with.
fn table(name: &str, columns: &str) -> String {
    format!(
        "create table {name} ({columns});
        grant all on {name} to anon, authenticated, service_role;
        alter publication supabase_realtime add table {name};"
    )
}

#[tokio::test]
async fn f31_every_replica_identity_shows_what_the_log_has_of_the_old_row() {
    let mut world = World::start(&table("t", "id int primary key, a text not null, b int")).await;
    world.join(&anon(), all_of("t")).await;
    world.seen("insert into t values (1, 'a', 0)").await;
    // By default the key, before and after.
    assert_eq!(
        world.seen("update t set b = 1; update t set id = 2; delete from t").await,
        [[
            r#"UPDATE t {"a":"a","b":1,"id":1} old {"id":1}"#,
            r#"UPDATE t {"a":"a","b":1,"id":2} old {"id":1}"#,
            r#"DELETE t old {"id":2}"#,
        ]]
    );
    world.run("alter table t replica identity full").await;
    world.seen("insert into t values (1, 'a', 0)").await;
    assert_eq!(
        world.seen("update t set b = 1; delete from t").await,
        [[
            r#"UPDATE t {"a":"a","b":1,"id":1} old {"a":"a","b":0,"id":1}"#,
            r#"DELETE t old {"a":"a","b":1,"id":1}"#,
        ]]
    );
    world.run("create unique index i on t (a); alter table t replica identity using index i").await;
    world.seen("insert into t values (1, 'a', 0)").await;
    assert_eq!(
        world.seen("update t set b = 1; update t set a = 'b'; delete from t").await,
        [[
            r#"UPDATE t {"a":"a","b":1,"id":1} old {"a":"a"}"#,
            r#"UPDATE t {"a":"b","b":1,"id":1} old {"a":"a"}"#,
            r#"DELETE t old {"a":"b"}"#,
        ]]
    );
    // Without any the application cannot change rows, and inserts go on.
    world.run("alter table t replica identity nothing").await;
    assert_eq!(
        world.seen("insert into t values (1, 'a', 0)").await,
        [[r#"INSERT t {"a":"a","b":0,"id":1}"#]]
    );
    world.admin.batch_execute("delete from t").await.unwrap_err();
}

#[tokio::test]
async fn f32_an_unchanged_large_value_is_the_old_one_or_absent() {
    let mut world = World::start(&table("t", "id int primary key, body text, n int")).await;
    world.join(&anon(), all_of("t")).await;
    world.run("alter table t alter body set storage external").await;
    world.seen(&format!("insert into t values (1, {LARGE}, 0)")).await;
    assert_eq!(
        world.seen("update t set n = 1").await,
        [[r#"UPDATE t {"id":1,"n":1} old {"id":1}"#]]
    );
    world.run("alter table t replica identity full").await;
    let seen = world.seen_data("update t set n = 2").await;
    let [change] = &seen[0][..] else { panic!("{seen:?}") };
    assert_eq!(change["record"]["body"], change["old_record"]["body"]);
    assert_eq!(change["record"]["body"].as_str().map(str::len), Some(400 * 32));
    // One that is really null says so.
    assert_eq!(
        world.seen("update t set body = null; update t set n = 3").await[0][1],
        r#"UPDATE t {"body":null,"id":1,"n":3} old {"body":null,"id":1,"n":2}"#
    );
}

#[tokio::test]
async fn f30_what_a_transaction_takes_back_or_empties_says_nothing_and_stops_nothing() {
    let sql = [table("t", "id int primary key, a text"), table("u", "id int primary key")].concat();
    let mut world = World::start(&sql).await;
    world.join(&anon(), [all_of("t"), all_of("u")].concat()).await;
    assert_eq!(world.seen(INSERT).await, [[r#"INSERT t {"a":"a","id":1}"#]]);
    assert_eq!(world.seen("truncate t, u restart identity cascade").await, nothing::<1>());
    assert_eq!(world.seen(INSERT).await, [[r#"INSERT t {"a":"a","id":1}"#]]);
    assert_eq!(world.seen("begin; delete from t; rollback").await, nothing::<1>());
    // An update that changes nothing is one; a conflict that does nothing is none.
    assert_eq!(
        world.seen("update t set a = a; insert into t values (1) on conflict do nothing").await,
        [[r#"UPDATE t {"a":"a","id":1} old {"id":1}"#]]
    );
    assert_eq!(
        world.seen("insert into u values (7); truncate u; insert into u values (8)").await,
        [[r#"INSERT u {"id":7}"#, r#"INSERT u {"id":8}"#]]
    );
}

#[tokio::test]
async fn f26_generated_columns_are_left_out_and_a_publication_narrows_columns_and_rows() {
    let narrowing = cluster::narrowing("(id, shown)", "where (n > 10)").await;
    let (columns, rows) = narrowing.unwrap_or_default();
    let mut world = World::start(&format!(
        "create table g (id int primary key, a int, twice int generated always as (a * 2) stored);
        create table l (id int primary key, shown text, hidden text);
        create table f (id int primary key, n int);
        alter table f replica identity full;
        grant select on g, l, f to anon;
        alter publication supabase_realtime add table g, l {columns}, f {rows};",
    ))
    .await;
    world.join(&anon(), [all_of("g"), all_of("l"), all_of("f")].concat()).await;
    assert_eq!(world.seen("insert into g values (1, 2)").await, [[r#"INSERT g {"a":2,"id":1}"#]]);
    if narrowing.is_none() {
        return;
    }
    let seen = world.seen("insert into l values (1, 'a', 'b'); update l set hidden = 'c'").await;
    let updated = r#"UPDATE l {"id":1,"shown":"a"} old {"id":1}"#;
    assert_eq!(seen, [[r#"INSERT l {"id":1,"shown":"a"}"#, updated]]);
    let sql = "insert into f values (1, 5); update f set n = 15; update f set n = 20;
        update f set n = 5; delete from f";
    assert_eq!(
        world.seen(sql).await,
        [[
            r#"INSERT f {"id":1,"n":15}"#,
            r#"UPDATE f {"id":1,"n":20} old {"id":1,"n":15}"#,
            r#"DELETE f old {"id":1,"n":20}"#,
        ]]
    );
    // The list grows in mid-stream.
    world.run("alter publication supabase_realtime set table marks, g, l, f").await;
    assert_eq!(
        world.seen("update l set hidden = 'd'").await,
        [[r#"UPDATE l {"hidden":"d","id":1,"shown":"a"} old {"id":1}"#]]
    );
}

/// Two partitions with their columns in different orders.
const PARTITIONED: &str = "
    create table p (id int, day int, note text, primary key (id, day)) partition by list (day);
    create table p1 partition of p for values in (1);
    create table p2 (note text, day int not null, id int not null, primary key (id, day));
    alter table p attach partition p2 for values in (2);
    grant all on p, p1, p2 to anon, authenticated, service_role;
    alter publication supabase_realtime add table p;
";

/// Everything in the schema.
fn everything() -> Vec<Value> {
    vec![json!({ "event": "*", "schema": "public" })]
}

#[tokio::test]
async fn f30_a_partitions_changes_reach_those_of_the_partition_of_the_whole_and_of_everything() {
    let mut world = World::start(PARTITIONED).await;
    for parameters in [all_of("p1"), all_of("p"), everything()] {
        world.join(&anon(), parameters).await;
    }
    let filter = json!({ "event": "*", "schema": "public", "table": "p", "filter": "note=eq.b" });
    world.join(&anon(), vec![filter]).await;
    let seen = world.seen("insert into p values (1, 1, 'a'), (2, 2, 'b'), (3, 1, 'b')").await;
    let row = |table: &str, id: i32, day: i32, note: &str| {
        format!(r#"INSERT {table} {{"day":{day},"id":{id},"note":"{note}"}}"#)
    };
    assert_eq!(seen[0], [row("p1", 1, 1, "a"), row("p1", 3, 1, "b")]);
    assert_eq!(seen[1], [row("p", 1, 1, "a"), row("p", 2, 2, "b"), row("p", 3, 1, "b")]);
    assert_eq!(seen[2], [row("p1", 1, 1, "a"), row("p2", 2, 2, "b"), row("p1", 3, 1, "b")]);
    assert_eq!(seen[3], [row("p", 2, 2, "b"), row("p", 3, 1, "b")]);
    // From one partition to the other; one of them has more in its old rows.
    world.run("alter table p2 replica identity full").await;
    let seen = world.seen("update p set day = 2 where id = 1; update p set note = 'c'").await;
    assert_eq!(
        seen[1],
        [
            r#"DELETE p old {"day":1,"id":1}"#,
            r#"INSERT p {"day":2,"id":1,"note":"a"}"#,
            r#"UPDATE p {"day":1,"id":3,"note":"c"} old {"day":1,"id":3}"#,
            r#"UPDATE p {"day":2,"id":2,"note":"c"} old {"day":2,"id":2,"note":"b"}"#,
            r#"UPDATE p {"day":2,"id":1,"note":"c"} old {"day":2,"id":1,"note":"a"}"#,
        ]
    );
    assert_eq!(seen[0].len(), 2);
    // A new partition flows at once; a detached one is no part of it any more.
    let seen = world
        .seen(
            "create table p3 partition of p for values in (3);
            grant select on p3 to anon;
            insert into p values (9, 3, 'x');",
        )
        .await;
    assert_eq!((&seen[1], &seen[2]), (&vec![row("p", 9, 3, "x")], &vec![row("p3", 9, 3, "x")]));
    world.run("alter table p detach partition p1").await;
    let seen = world.seen("insert into p1 values (4, 1, 'd')").await;
    if cluster::version(&world.admin).await >= 150_000 {
        assert_eq!(seen, nothing::<4>());
    } else {
        // That server goes on sending it, until a publication changes.
        assert_eq!((&seen[1], &seen[3]), (&vec![], &vec![]));
    }
    world.run("alter publication supabase_realtime add table p1").await;
    let seen = world.seen("insert into p1 values (5, 1, 'd')").await;
    assert_eq!((&seen[0], &seen[1]), (&vec![row("p1", 5, 1, "d")], &vec![]));
    world.run("alter table p attach partition p1 for values in (1)").await;
    let seen = world.seen("insert into p1 values (6, 1, 'e')").await;
    assert_eq!((&seen[0], &seen[1]), (&vec![row("p1", 6, 1, "e")], &vec![row("p", 6, 1, "e")]));
}

#[tokio::test]
async fn the_whole_is_decided_by_its_own_policies_and_a_partition_by_its_own() {
    let mut world = World::start(&format!(
        "{PARTITIONED}
        revoke all on p1 from anon;
        alter table p enable row level security;
        alter table p2 enable row level security;
        create policy p on p to anon using (note = 'whole');
        create policy p on p2 to anon using (note = 'part');"
    ))
    .await;
    for parameters in [all_of("p"), all_of("p1"), all_of("p2"), everything()] {
        world.join(&anon(), parameters).await;
    }
    let seen = world
        .seen(
            "insert into p values
                (1, 1, 'whole'), (2, 1, 'part'), (3, 2, 'whole'), (4, 2, 'part'), (5, 2, 'none')",
        )
        .await;
    let of = |table: &str, id: i32, day: i32, note: &str| {
        format!(r#"INSERT {table} {{"day":{day},"id":{id},"note":"{note}"}}"#)
    };
    assert_eq!(seen[0], [of("p", 1, 1, "whole"), of("p", 3, 2, "whole")]);
    let refused = r#"INSERT p1 {} ["Error 401: Unauthorized"]"#;
    let ended =
        "system error: The subscription to public.p1 ended: the primary key may not be read.";
    assert_eq!(seen[1], [refused, ended]);
    assert_eq!(seen[2], [of("p2", 4, 2, "part")]);
    assert_eq!(seen[3], [refused, refused, of("p2", 4, 2, "part").as_str()]);
}

#[tokio::test]
async fn f30_with_the_publication_naming_the_root_there_is_only_the_root() {
    let mut world = World::start(PARTITIONED).await;
    world.run("alter publication supabase_realtime set (publish_via_partition_root = true)").await;
    for parameters in [all_of("p"), everything()] {
        world.join(&anon(), parameters).await;
    }
    let refused = world.refused(&anon(), all_of("p1")).await;
    assert!(refused.contains("Please check Realtime is enabled"), "{refused}");
    let seen = world.seen("insert into p values (1, 1, 'a'), (2, 2, 'b')").await;
    let rows =
        [r#"INSERT p {"day":1,"id":1,"note":"a"}"#, r#"INSERT p {"day":2,"id":2,"note":"b"}"#];
    assert_eq!(seen, [rows, rows]);
    // And back: whoever asked for the whole goes on, whoever asked for everything gets the parts.
    world.run("alter publication supabase_realtime set (publish_via_partition_root = false)").await;
    let seen = world.seen("insert into p values (3, 1, 'c')").await;
    assert_eq!(seen[0], [r#"INSERT p {"day":1,"id":3,"note":"c"}"#]);
    assert_eq!(seen[1], [r#"INSERT p1 {"day":1,"id":3,"note":"c"}"#]);
}

#[tokio::test]
async fn f27_tables_change_their_shape_in_mid_stream() {
    let mut world = World::start(&table("t", "id int primary key, a text")).await;
    world.join(&anon(), all_of("t")).await;
    let filter = json!({ "event": "*", "schema": "public", "table": "t", "filter": "a=eq.x" });
    world.join(&anon(), vec![filter]).await;
    world.seen(INSERT).await;
    let seen = world
        .seen("alter table t add column b int default 5; insert into t values (2, 'x', 6)")
        .await;
    let added = r#"INSERT t {"a":"x","b":6,"id":2}"#;
    assert_eq!(seen, [[added], [added]]);
    // Rows on both sides of the command, in one transaction.
    let seen = world
        .seen(
            "begin;
            insert into t values (3, 'x', 7);
            alter table t alter b type text using 'n' || b;
            insert into t values (4, 'x', 'eight');
            alter table t drop column b;
            insert into t values (5, 'y');
            commit;",
        )
        .await;
    assert_eq!(seen[0].len(), 3, "{seen:?}");
    assert_eq!(seen[0][2], r#"INSERT t {"a":"y","id":5}"#);
    assert_eq!(seen[1].len(), 2, "{seen:?}");
    let seen = world
        .seen("alter table t add column c timestamptz; update t set c = 'epoch' where id = 2")
        .await;
    let updated = r#"UPDATE t {"a":"x","c":"1970-01-01T00:00:00+00:00","id":2} old {"id":2}"#;
    assert_eq!(seen, [[updated], [updated]]);
    // A filter whose column got another name is told, and the rest goes on.
    let seen = world.seen("alter table t rename a to z; insert into t values (6, 'x', null)").await;
    assert_eq!(seen[0], [r#"INSERT t {"c":null,"id":6,"z":"x"}"#]);
    assert_eq!(seen[1].len(), 1, "{seen:?}");
    assert!(seen[1][0].starts_with("system error: A filter"), "{seen:?}");
}

#[tokio::test]
async fn f29_tables_come_go_and_change_names_under_those_who_want_everything() {
    let mut world = World::start(&table("t", "id int primary key, a text")).await;
    world.join(&anon(), all_of("t")).await;
    // Its own marks would come twice.
    let socket = world.service.subscribe(Version::V2, &anon(), everything().into()).await;
    world.sockets.push(socket);
    let before = r#"INSERT t {"a":"a","id":1}"#;
    assert_eq!(world.seen(INSERT).await, [[before], [before]]);
    world.run(&table("fresh", "id int primary key")).await;
    let seen = world.seen("insert into fresh values (1)").await;
    assert_eq!(seen, [vec![], vec![r#"INSERT fresh {"id":1}"#.to_owned()]]);
    // In the very transaction that adds it.
    let sql = format!("{} insert into fresher values (1);", table("fresher", "id int primary key"));
    let seen = world.seen(&sql).await;
    assert_eq!(seen[1], [r#"INSERT fresher {"id":1}"#]);
    // Another name: whoever named the table is told so.
    let seen = world.seen("alter table t rename to u; insert into u values (2, 'b')").await;
    assert_eq!(seen[0].len(), 1, "{seen:?}");
    assert!(seen[0][0].starts_with("system error: A table was renamed"), "{seen:?}");
    assert_eq!(seen[1], [r#"INSERT u {"a":"b","id":2}"#]);
    let seen = world.seen("insert into u values (3, 'c')").await;
    assert_eq!((seen[0].len(), seen[1].len()), (0, 1), "{seen:?}");
    // Dropped and made again under the name that was asked for.
    let sql = format!(
        "drop table u; {} {INSERT}",
        table("t", "id int primary key, a text, more int default 1")
    );
    let again = r#"INSERT t {"a":"a","id":1,"more":1}"#;
    assert_eq!(world.seen(&sql).await, [[again], [again]]);
    assert_eq!(
        world
            .seen("alter publication supabase_realtime drop table t; insert into t values (2)")
            .await,
        nothing::<2>()
    );
}

#[tokio::test]
async fn f34_a_transaction_of_ten_thousand_rows_arrives_whole_and_in_order() {
    let mut world = World::start(&table("t", "id int primary key, a text")).await;
    world.join(&anon(), all_of("t")).await;
    let filter =
        json!({ "event": "*", "schema": "public", "table": "t", "filter": "id=in.(7,9999)" });
    world.join(&anon(), vec![filter]).await;
    let seen =
        world.seen("insert into t select n, 'row ' || n from generate_series(1, 10000) n").await;
    let row = |n: usize| format!(r#"INSERT t {{"a":"row {n}","id":{n}}}"#);
    let expected: Vec<String> = (1..=10_000).map(row).collect();
    assert!(seen[0] == expected, "{} of 10000", seen[0].len());
    assert_eq!(seen[1], [row(7), row(9999)]);
}
