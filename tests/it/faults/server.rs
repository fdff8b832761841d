//! What happens to Postgres: it restarts, is put back from a copy, has no connection left; tables,
//! types and passwords change. Tests are named after the rows of the fault matrix in
//! `docs/guarantees.md`.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use walcast::dev::StopMode;

use crate::cluster::{Database, cluster};
use crate::guardian::{alone, fill, reaches, says};
use crate::operations::Program;
use crate::service::{ALICE, BOB, Service, Socket, Version, anon, user};
use crate::stream::{World, all_of};

/// Everybody may see it.
const TABLE_T: &str = "
    create table t (id bigint primary key);
    grant all on t to anon, authenticated, service_role;
    alter publication supabase_realtime add table t;
";

/// Rows of their owner only.
const TABLE_OWNED: &str = "
    create table owned (id bigint primary key, owner uuid);
    grant all on owned to authenticated;
    alter table owned enable row level security;
    create policy own on owned to authenticated using (owner = (select auth.uid()));
    alter publication supabase_realtime add table owned;
";

#[tokio::test]
async fn f15_through_restarts_sockets_stay_and_every_change_comes() {
    let (cluster, database) = alone("f15", &[]).await;
    let mut program = Program::serving(&database).await;
    database.client().await.batch_execute(TABLE_T).await.unwrap();
    let mut socket = program.subscribe(&anon(), "t").await;
    for (id, read) in [(0_i64, true), (2, false), (4, true)] {
        let insert = "insert into t values ($1)";
        database.client().await.execute(insert, &[&id]).await.unwrap();
        if read {
            assert_eq!(socket.change().await["record"]["id"], id);
        }
        cluster.server.stop(StopMode::Fast).unwrap();
        if read {
            says(&mut program, "(db_unavailable)").await;
        } else {
            // Or it waits for somebody to decide that row.
            program.becomes_ready(false).await;
        }
        let rows = program.get("/rest/v1/t?select=id").await.to_ascii_lowercase();
        assert!(rows.starts_with("http/1.1 503 ") && rows.contains("\r\nretry-after: "), "{rows}");
        assert!(program.get("/healthz").await.starts_with("HTTP/1.1 200 "));
        socket.heartbeat().await;
        cluster.server.start_again().unwrap();
        program.ready().await;
        database.client().await.execute(insert, &[&(id + 1)]).await.unwrap();
        if !read {
            assert_eq!(socket.change().await["record"]["id"], id);
        }
        assert_eq!(socket.change().await["record"]["id"], id + 1);
    }
    socket.nothing_came().await;
}

#[tokio::test]
async fn f28_types_change_in_mid_stream_and_values_are_shown_by_them() {
    let mut world = World::start(
        "create type mood as enum ('sad');
        create domain short as text check (length(value) < 9);
        create table t (id int primary key, m mood, s short);
        grant all on t to anon;
        alter publication supabase_realtime add table t;",
    )
    .await;
    world.join(&anon(), all_of("t")).await;
    let sad = r#"INSERT t {"id":1,"m":"sad","s":"abc"}"#;
    assert_eq!(world.seen("insert into t values (1, 'sad', 'abc')").await, [[sad]]);
    for (change, insert, expected) in [
        // A value that did not exist when the subscription began.
        (
            "alter type mood add value 'happy'",
            "insert into t values (2, 'happy', 'abc')",
            r#"INSERT t {"id":2,"m":"happy","s":"abc"}"#,
        ),
        (
            "alter type mood rename value 'sad' to 'blue'; alter type mood rename to feeling",
            "insert into t values (3, 'blue', 'abc')",
            r#"INSERT t {"id":3,"m":"blue","s":"abc"}"#,
        ),
        (
            "alter table t alter s type int using length(s)",
            "insert into t values (4, 'blue', 7)",
            r#"INSERT t {"id":4,"m":"blue","s":7}"#,
        ),
        (
            "alter table t alter m type text; drop type feeling",
            "insert into t values (5, 'any', 8)",
            r#"INSERT t {"id":5,"m":"any","s":8}"#,
        ),
        (
            "create type pair as (a int, b text); alter table t drop m, add p pair",
            "insert into t values (6, 8, (1, 'x'))",
            r#"INSERT t {"id":6,"p":{"a":1,"b":"x"},"s":8}"#,
        ),
        (
            "alter type pair add attribute c bool",
            "insert into t values (7, 8, (1, 'x', true))",
            r#"INSERT t {"id":7,"p":{"a":1,"b":"x","c":true},"s":8}"#,
        ),
    ] {
        world.run(change).await;
        assert_eq!(world.seen(insert).await, [[expected]], "{change}");
    }
    // Rows on both sides of a change, in one transaction: each comes, with the values it has.
    let seen = world
        .seen_data(
            "begin;
            insert into t values (8, 9, null);
            alter table t alter s type text using 'n' || s;
            insert into t values (9, 'ten', null);
            commit",
        )
        .await;
    let [before, after] = &seen[0][..] else { panic!("{seen:?}") };
    assert_eq!((&before["record"]["id"], &after["record"]["id"]), (&json!(8), &json!(9)));
    assert_eq!(after["record"]["s"], "ten");
    let of_before = &before["record"]["s"];
    assert!(of_before.is_null() || *of_before == 9 || *of_before == "9", "{before}");
}

#[tokio::test]
async fn f29_another_table_by_an_old_name_is_decided_by_its_own_rights() {
    let open = "create table t (id int primary key, a text, b text);
        grant all on t to anon;
        alter publication supabase_realtime add table t;";
    let mut world = World::start(open).await;
    world.join(&anon(), all_of("t")).await;
    let insert = "insert into t values (1, 'a', 'b'), (11, 'a', 'b')";
    assert_eq!(world.seen(insert).await[0].len(), 2);
    let narrow = "drop table t;
        create table t (id int primary key, a text, b text);
        alter table t enable row level security;
        create policy p on t to anon using (id > 10);
        grant select (id, a) on t to anon;
        alter publication supabase_realtime add table t;";
    world.run(narrow).await;
    assert_eq!(world.seen(insert).await, [[r#"INSERT t {"a":"a","id":11}"#]]);
    // And in the very transaction that makes it, behind rows of the one that goes.
    let swap = format!("begin; insert into t values (12, 'a', 'b'); {narrow} {insert}; commit");
    let seen = world.seen(&swap).await;
    assert!(seen[0].iter().all(|row| !row.contains(r#""b""#) && !row.contains(r#""id":1}"#)));
    assert_eq!(seen[0].last().unwrap(), r#"INSERT t {"a":"a","id":11}"#, "{seen:?}");
}

#[tokio::test]
async fn f33_of_savepoints_prepared_and_aborted_transactions_only_what_was_committed_comes() {
    // So little that what is taken back was spilled to disk before.
    let settings = [("max_prepared_transactions", "10"), ("logical_decoding_work_mem", "64kB")];
    let (_cluster, database) = alone("f33", &settings).await;
    let service = Service::on(database, |_| ()).await;
    let admin = service.admin().await;
    admin.batch_execute(TABLE_T).await.unwrap();
    let mut socket = service.subscribe(Version::V2, &anon(), all_of("t").into()).await;
    for sql in [
        "begin; insert into t values (1); savepoint a; insert into t values (2);
            rollback to a; insert into t values (3); savepoint b; insert into t values (4);
            release b; commit",
        "do $$ begin
            insert into t values (5);
            begin insert into t values (6); raise 'x'; exception when others then end;
            insert into t values (7);
        end $$",
        "begin; insert into t values (10); prepare transaction 'kept'",
        "begin; insert into t values (11); prepare transaction 'dropped'",
        "insert into t values (8)",
        "commit prepared 'kept'",
        "rollback prepared 'dropped'",
        "begin; insert into t select generate_series(1000, 6000); rollback",
        "begin; savepoint a; insert into t select generate_series(1000, 6000); rollback to a;
            insert into t values (12); commit",
        "insert into t values (13)",
    ] {
        admin.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    for id in [1, 3, 4, 5, 7, 8, 10, 12, 13] {
        assert_eq!(socket.change().await["record"]["id"], id);
    }
    socket.nothing_came().await;
}

#[tokio::test]
async fn f35_thousands_of_small_transactions_and_subtransactions_pass_through_little_memory() {
    let service = Service::with(|config| {
        config.replication.batches_ahead = 1;
        config.replication.batch_bytes = 4096;
    })
    .await;
    let admin = service.admin().await;
    admin.batch_execute(TABLE_T).await.unwrap();
    let mut socket = service.subscribe(Version::V2, &anon(), all_of("t").into()).await;
    for sql in [
        "do $$ begin
            for i in 1..2000 loop insert into t values (i); commit; end loop;
        end $$",
        "do $$ begin
            for i in 2001..4000 loop
                begin insert into t values (i); exception when others then end;
            end loop;
        end $$",
    ] {
        admin.batch_execute(sql).await.unwrap();
    }
    for id in 1..=4000 {
        assert_eq!(socket.change().await["record"]["id"], id);
    }
}

/// Copies a directory with all that belongs to its files.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

#[tokio::test]
async fn f38_a_server_put_back_from_a_copy_is_a_gap_and_what_it_writes_then_comes() {
    let (cluster, database) = alone("f38", &[]).await;
    let mut program = Program::serving(&database).await;
    let client = database.client().await;
    client.batch_execute(TABLE_T).await.unwrap();
    let data = cluster.server.data();
    let (spare, lost) = (data.with_file_name("spare"), data.with_file_name("lost"));
    drop(client);
    cluster.server.stop(StopMode::Fast).unwrap();
    copy(data, &spare);
    cluster.server.start_again().unwrap();
    program.ready().await;
    let mut socket = program.subscribe(&anon(), "t").await;
    let client = database.client().await;
    client.batch_execute("insert into t values (1)").await.unwrap();
    fill(&client, 3).await;
    client.batch_execute("insert into t values (2)").await.unwrap();
    assert_eq!(socket.change().await["record"]["id"], 1);
    let newest = socket.change().await;
    assert_eq!(newest["record"]["id"], 2);
    drop(client);
    cluster.server.stop(StopMode::Immediate).unwrap();
    std::fs::rename(data, &lost).unwrap();
    std::fs::rename(&spare, data).unwrap();
    cluster.server.start_again().unwrap();
    let told = socket.expect("system").await;
    assert!(told.payload["message"].as_str().unwrap().contains("Some changes were lost"));
    assert_eq!(socket.closed().await, Some(1012));
    program.ready().await;
    reaches(&mut program, "walcast_gaps_total{reason=\"log_went_back\"}", 1.0).await;
    // What is written now has places in the log that were read before.
    let mut socket = program.subscribe(&anon(), "t").await;
    let client = database.client().await;
    client.batch_execute("insert into t values (3)").await.unwrap();
    assert_eq!(socket.change().await["record"]["id"], 3);
    // Whoever comes back from what is lost is told so.
    let mut all = all_of("t");
    all[0]["cursor"] = newest["cursor"].clone();
    let url = format!(
        "ws://{}/realtime/v1/websocket?apikey={}&vsn=2.0.0",
        program.address().await,
        anon()
    );
    let mut late = Socket::open(Version::V2, &url, &[]).await.unwrap();
    let payload = json!({ "config": { "postgres_changes": all } });
    assert_eq!(late.join("realtime:test", &payload).await["status"], "ok");
    late.expect("system").await;
    let gap = late.expect("system").await.payload;
    assert_eq!((&gap["kind"], &gap["reason"]), (&json!("gap"), &json!("ahead_of_the_log")));
    std::fs::remove_dir_all(lost).unwrap();
}

fn private() -> Value {
    json!({ "config": { "private": true } })
}

#[tokio::test]
async fn f42_without_a_connection_nobody_is_refused_and_nothing_is_lost() {
    let service = Service::with(|config| {
        config.database.channel_wait_timeout_ms = 500;
        config.database.connect_timeout_ms = 2000;
    })
    .await;
    let admin = service.admin().await;
    admin.batch_execute(TABLE_OWNED).await.unwrap();
    let policy =
        "create policy hears on realtime.messages for select to authenticated using (true)";
    admin.batch_execute(policy).await.unwrap();
    let mut alice = service.subscribe(Version::V2, &user(ALICE), all_of("owned").into()).await;
    let insert = async |id: i64| {
        let sql = format!("insert into owned values ({id}, '{ALICE}')");
        admin.batch_execute(&sql).await.unwrap();
    };
    insert(1).await;
    assert_eq!(alice.change().await["record"]["id"], 1);
    let name = &service.database.name;
    // "too many connections" (53300), for everybody but superusers; the stream goes on.
    let none = format!(
        "alter database {name} connection limit 0;
        select pg_terminate_backend(pid, 60000) from pg_stat_activity
        where datname = '{name}' and application_name like 'walcast %'
            and application_name <> 'walcast replication'"
    );
    admin.batch_execute(&none).await.unwrap();
    insert(2).await;
    let mut bob = service.connect(Version::V2, &user(BOB)).await;
    let reply = bob.join("realtime:room", &private()).await;
    let reason = reply["response"]["reason"].as_str().unwrap();
    assert_eq!(reply["status"], "error");
    assert!(!reason.contains("Unauthorized"), "{reason}");
    alice.nothing_came().await;
    let some = format!("alter database {name} connection limit -1");
    admin.batch_execute(&some).await.unwrap();
    assert_eq!(alice.change().await["record"]["id"], 2);
    let mut reply = bob.join("realtime:room", &private()).await;
    while reply["status"] != "ok" {
        let reason = reply["response"]["reason"].as_str().unwrap();
        assert!(!reason.contains("Unauthorized"), "{reason}");
        reply = bob.join("realtime:room", &private()).await;
    }
}

#[tokio::test]
async fn f47_logins_whose_passwords_somebody_changed_get_theirs_back() {
    let database = Database::create().await;
    // Over TCP, where passwords are asked for.
    let url = cluster().tcp_url(&database.name);
    let mut program = Program::start(&[("DATABASE_URL", &*url), ("WALCAST_SLOT", &*database.name)]);
    program.ready().await;
    let client = database.client().await;
    client.batch_execute(TABLE_OWNED).await.unwrap();
    let mut socket = program.subscribe(&user(ALICE), "owned").await;
    let insert = format!("insert into owned values ($1, '{ALICE}')");
    client.execute(&insert, &[&1_i64]).await.unwrap();
    assert_eq!(socket.change().await["record"]["id"], 1);
    let ours = "select rolname::text from pg_roles where rolname like 'walcast%' and \
                shobj_description(oid, 'pg_authid') like '% for ' || current_database() || ',%'";
    let logins = client.query(ours, &[]).await.unwrap();
    assert_eq!(logins.len(), 2);
    for login in &logins {
        let login: &str = login.get(0);
        let change = format!(
            "alter role {login} password 'another' connection limit 1;
            select pg_terminate_backend(pid, 60000) from pg_stat_activity
            where usename = '{login}'"
        );
        client.batch_execute(&change).await.unwrap();
    }
    client.execute(&insert, &[&2_i64]).await.unwrap();
    assert_eq!(socket.change().await["record"]["id"], 2);
    program.ready().await;
}
