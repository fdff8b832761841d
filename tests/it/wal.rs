//! The log as a stream: what arrives, what survives a cut, what is refused.

use std::time::{Duration, Instant, SystemTime};

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use walcast::config::{Replication, Secret};
use walcast::db::Login;
use walcast::db::pipeline;
use walcast::lsn::Lsn;
use walcast::wal::pgoutput::{Message, OldKind, TupleColumn, TupleData};
use walcast::wal::{self, Batch, Error, Format, Opening, WalStream};

use crate::cluster::{self, Cluster, Database, cluster, connect};

const DEADLINE: Duration = Duration::from_mins(2);

fn login(url: &str) -> Login {
    Login::parse(url, Duration::from_secs(10)).unwrap()
}

/// A slot of this test's own, on the publication `p`.
fn settings(database: &Database) -> Replication {
    Replication {
        slot: format!("slot_{}", database.name),
        publications: vec!["p".into()],
        ..Replication::default()
    }
}

/// A database with a table `t` and a publication `p` of it.
async fn prepared() -> (Database, Client) {
    let database = Database::create().await;
    let client = database.client().await;
    client
        .batch_execute(
            "create table t (id int primary key, note text); create publication p for table t",
        )
        .await
        .unwrap();
    (database, client)
}

async fn open(database: &Database, settings: &Replication) -> WalStream {
    WalStream::open(&login(&database.url), settings, Lsn::ZERO).await.unwrap()
}

/// Frees the slot, so that the run does not keep log for it.
async fn finish(stream: WalStream, database: &Database, settings: &Replication) {
    stream.close().await;
    drop_slot(database, settings).await;
}

async fn drop_slot(database: &Database, settings: &Replication) {
    until("the slot is free", async || {
        wal::drop_slot(&login(&database.url), &settings.slot).await.is_ok()
    })
    .await;
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn batch(stream: &mut WalStream) -> Batch {
    tokio::time::timeout(DEADLINE, stream.next_batch()).await.expect("a batch in time").unwrap()
}

async fn error(stream: &mut WalStream) -> Error {
    let failing = async {
        loop {
            if let Err(error) = stream.next_batch().await {
                return error;
            }
        }
    };
    tokio::time::timeout(DEADLINE, failing).await.expect("an error in time")
}

fn text(tuple: TupleData<'_>) -> String {
    let columns = tuple.columns().map(|column| match column.unwrap() {
        TupleColumn::Null => "null".to_owned(),
        TupleColumn::Unchanged => "unchanged".to_owned(),
        TupleColumn::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
        TupleColumn::Binary(bytes) => format!("{bytes:02x?}"),
    });
    columns.collect::<Vec<_>>().join(",")
}

fn describe(message: &Message<'_>) -> String {
    match message {
        Message::Begin(_) => "begin".into(),
        Message::Commit(_) => "commit".into(),
        Message::Origin(origin) => format!("origin {}", origin.name),
        Message::Relation(relation) => format!("relation {}.{}", relation.schema, relation.table),
        Message::Type(r#type) => format!("type {}.{}", r#type.schema, r#type.name),
        Message::Insert(insert) => format!("insert {}", text(insert.new)),
        Message::Update(update) => match update.split().unwrap() {
            (None, new) => format!("update {}", text(new)),
            (Some((OldKind::Key, old)), new) => {
                format!("update key {} to {}", text(old), text(new))
            }
            (Some((OldKind::Full, old)), new) => format!("update {} to {}", text(old), text(new)),
        },
        Message::Delete(delete) => format!("delete {:?} {}", delete.kind, text(delete.old)),
        Message::Truncate(truncate) => format!(
            "truncate {} cascade={} restart={}",
            truncate.relations().len(),
            truncate.cascade,
            truncate.restart_identity
        ),
        Message::Logical(logical) => format!(
            "logical {} {} transactional={}",
            logical.prefix,
            String::from_utf8_lossy(logical.content),
            logical.transactional
        ),
    }
}

/// Everything up to the commit of the transaction that inserts `note`, and that commit's end.
async fn up_to(stream: &mut WalStream, note: &str) -> (Vec<String>, Lsn) {
    let (mut seen, mut found) = (Vec::new(), false);
    loop {
        let batch = batch(stream).await;
        for message in batch.messages() {
            let message = message.unwrap();
            seen.push(describe(&message));
            if let Message::Insert(insert) = &message {
                found |= text(insert.new).ends_with(&format!(",{note}"));
            }
            if let (Message::Commit(commit), true) = (&message, found) {
                return (seen, commit.end_lsn);
            }
        }
    }
}

async fn insert(client: &Client, id: i32, note: &str) {
    client.execute("insert into t values ($1, $2)", &[&id, &note]).await.unwrap();
}

fn rows(seen: &[String]) -> Vec<&str> {
    seen.iter().filter_map(|line| line.strip_prefix("insert ")).collect()
}

#[tokio::test]
async fn every_kind_of_change_arrives_as_it_was_made() {
    let (database, client) = prepared().await;
    let settings = settings(&database);
    client
        .batch_execute(
            "create table f (id int, note text); alter table f replica identity full;
             alter table f alter column note set storage external;
             create type mood as enum ('fine'); create table m (id int primary key, m mood);
             alter publication p add table f, m",
        )
        .await
        .unwrap();
    let mut stream = open(&database, &settings).await;
    assert!(stream.identity().created_slot);
    client
        .batch_execute(
            "insert into t values (1, null);
             update t set note = 'x';
             update t set id = 2;
             delete from t;
             insert into f values (1, repeat('y', 3000));
             update f set id = 2;
             insert into m values (1, 'fine');
             truncate t, f restart identity cascade;
             begin; select pg_logical_emit_message(true, 'walcast.event', 'hello'); commit;
             select pg_logical_emit_message(false, 'walcast.event', 'at once');
             insert into t values (9, 'end')",
        )
        .await
        .unwrap();
    let (seen, _) = up_to(&mut stream, "end").await;
    let long = "y".repeat(3000);
    // The server may describe a relation again at any time; only the first time is for sure.
    let mut relations = std::collections::HashSet::new();
    let seen: Vec<&str> = seen
        .iter()
        .map(String::as_str)
        .filter(|line| !matches!(*line, "begin" | "commit"))
        .filter(|line| !line.starts_with("relation") || relations.insert(*line))
        .collect();
    assert_eq!(
        seen,
        [
            "relation public.t",
            "insert 1,null",
            "update 1,x",
            "update key 1,null to 2,x",
            "delete Key 2,null",
            "relation public.f",
            &format!("insert 1,{long}"),
            &format!("update 1,{long} to 2,unchanged"),
            "type public.mood",
            "relation public.m",
            "insert 1,fine",
            "truncate 2 cascade=true restart=true",
            "logical walcast.event hello transactional=true",
            "logical walcast.event at once transactional=false",
            "insert 9,end",
        ]
    );
    finish(stream, &database, &settings).await;
}

#[tokio::test]
async fn a_transaction_carries_its_place_and_time() {
    let (database, client) = prepared().await;
    let settings = settings(&database);
    let mut stream = open(&database, &settings).await;
    let before: Lsn = position(&client).await;
    client.batch_execute("begin; insert into t values (1, 'a')").await.unwrap();
    let xid: String =
        client.query_one("select pg_current_xact_id()::text", &[]).await.unwrap().get(0);
    client.batch_execute("commit").await.unwrap();
    let after = position(&client).await;
    let (mut begin, mut commit) = (None, None);
    while commit.is_none() {
        for message in batch(&mut stream).await.messages() {
            let message = message.unwrap();
            if let Message::Begin(message) = message {
                begin = Some(message);
            } else if let Message::Commit(message) = message {
                commit = Some(message);
            }
        }
    }
    let (begin, commit) = (begin.unwrap(), commit.unwrap());
    assert_eq!(begin.xid.to_string(), xid);
    assert_eq!((begin.commit_lsn, begin.time), (commit.lsn, commit.time));
    assert!(before < commit.lsn && commit.lsn < commit.end_lsn && commit.end_lsn <= after);
    let age = SystemTime::now().duration_since(commit.time).unwrap_or_default();
    assert!(age < DEADLINE, "{age:?}");
    finish(stream, &database, &settings).await;
}

async fn position(client: &Client) -> Lsn {
    let row = client.query_one("select pg_current_wal_insert_lsn()::text", &[]).await.unwrap();
    row.get::<_, &str>(0).parse().unwrap()
}

#[tokio::test]
async fn a_transaction_of_ten_thousand_rows_arrives_whole_and_in_order() {
    let (database, client) = prepared().await;
    let settings = settings(&database);
    let mut stream = open(&database, &settings).await;
    client
        .batch_execute(
            "begin; insert into t select g, repeat('x', 200) from generate_series(1, 10000) g;
             insert into t values (0, 'end'); commit",
        )
        .await
        .unwrap();
    let (seen, _) = up_to(&mut stream, "end").await;
    let ids: Vec<u32> =
        rows(&seen).iter().map(|row| row.split(',').next().unwrap().parse().unwrap()).collect();
    assert_eq!(ids, (1..=10_000).chain([0]).collect::<Vec<_>>());
    assert_eq!(seen.iter().filter(|line| *line == "begin").count(), 1);
    finish(stream, &database, &settings).await;
}

/// Set in the process that runs the next test alone.
const ALONE: &str = "WALCAST_TEST_ALONE";

/// In a process of its own, whose memory is all this test's.
#[tokio::test]
async fn a_row_of_a_hundred_megabytes_passes_and_leaves_no_trace() {
    if std::env::var_os(ALONE).is_none() {
        let name = "wal::a_row_of_a_hundred_megabytes_passes_and_leaves_no_trace";
        let alone = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(ALONE, "1")
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(DEADLINE, alone).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let (database, client) = prepared().await;
    let settings = settings(&database);
    let mut stream = open(&database, &settings).await;
    client
        .batch_execute(
            "insert into t values (1, repeat('x', 100000000));
             insert into t values (2, 'small')",
        )
        .await
        .unwrap();
    let before = memory("VmRSS");
    let mut lengths = Vec::new();
    while lengths.len() < 2 {
        for message in batch(&mut stream).await.messages() {
            if let Message::Insert(insert) = message.unwrap() {
                lengths.push(insert.new.bytes_len());
            }
        }
    }
    assert!(lengths[0] > 100_000_000 && lengths[1] < 100, "{lengths:?}");
    let (peak, after) = (memory("VmHWM") - before, memory("VmRSS") - before);
    assert!(peak < 250_000, "two and a half rows at most, not {peak} kB");
    assert!(after < 50_000, "given back, but for {after} kB");
    finish(stream, &database, &settings).await;
}

/// Memory of this process in kB, as Linux counts it.
fn memory(what: &str) -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(what)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_stalled_consumer_keeps_the_link_and_loses_nothing() {
    let (database, client) = prepared().await;
    let settings = Replication { sender_timeout_ms: 2000, ..settings(&database) };
    let mut stream = open(&database, &settings).await;
    let pid = reader_pid(&client, &settings).await.unwrap();
    client
        .batch_execute("insert into t select g, repeat('x', 500) from generate_series(1, 50000) g")
        .await
        .unwrap();
    // The stall is what is tested: twice the timeout after which the server hangs up.
    tokio::time::sleep(Duration::from_secs(4)).await;
    insert(&client, 0, "end").await;
    let (seen, _) = up_to(&mut stream, "end").await;
    assert_eq!(rows(&seen).len(), 50_001);
    assert_eq!(reader_pid(&client, &settings).await, Some(pid), "still the same connection");
    finish(stream, &database, &settings).await;
}

#[tokio::test]
async fn a_consumer_that_is_stuck_gives_up_its_connection_but_not_its_place() {
    let (database, client) = prepared().await;
    let settings = Replication {
        sender_timeout_ms: 1000,
        stall_timeout_ms: 1000,
        batch_bytes: 4096,
        ..settings(&database)
    };
    let mut stream = open(&database, &settings).await;
    client
        .batch_execute("insert into t select g, repeat('x', 500) from generate_series(1, 20000) g")
        .await
        .unwrap();
    until("the slot is free", async || reader_pid(&client, &settings).await.is_none()).await;
    let stuck = error(&mut stream).await;
    assert!(matches!(stuck, Error::Disconnected(_)), "{stuck:?}");
    insert(&client, 0, "end").await;
    let mut stream = open(&database, &settings).await;
    let (seen, _) = up_to(&mut stream, "end").await;
    assert_eq!(rows(&seen).len(), 20_001);
    finish(stream, &database, &settings).await;
}

#[tokio::test]
async fn a_transaction_comes_in_one_batch_unless_it_is_larger_than_four() {
    let (database, client) = prepared().await;
    let settings = Replication { batch_bytes: 4096, ..settings(&database) };
    let mut stream = open(&database, &settings).await;
    // While nothing is read, so that a backlog is cut into batches wherever that may be.
    let several = "do $$ begin
            for i in 1..300 loop
                insert into t select i * 100 + g, repeat('x', 500) from generate_series(1, i % 14) g;
                commit;
            end loop;
        end $$";
    client.batch_execute(several).await.unwrap();
    let large = "insert into t select g, repeat('y', 500) from generate_series(50000, 50999) g";
    client.batch_execute(large).await.unwrap();
    insert(&client, 0, "end").await;
    let (mut small, mut parts, mut ended) = (0, 0, false);
    while !ended {
        let batch = batch(&mut stream).await;
        let (mut open, mut is_part) = (0, false);
        for message in batch.messages() {
            match message.unwrap() {
                Message::Begin(_) => open += 1,
                Message::Commit(_) => open -= 1,
                Message::Insert(insert) => {
                    let note = insert.new.columns().nth(1).unwrap().unwrap();
                    let TupleColumn::Text(note) = note else { panic!("{note:?}") };
                    ended |= note == b"end";
                    is_part |= note[0] == b'y';
                    small += usize::from(note[0] == b'x');
                }
                Message::Origin(_)
                | Message::Relation(_)
                | Message::Type(_)
                | Message::Update(_)
                | Message::Delete(_)
                | Message::Truncate(_)
                | Message::Logical(_) => {}
            }
        }
        assert!(open == 0 || is_part, "{open} transactions go on after a batch");
        parts += usize::from(is_part);
    }
    assert_eq!(small, (1..=300).map(|i| i % 14).sum::<usize>());
    assert!(parts > 10, "{parts} parts of the large one");
    finish(stream, &database, &settings).await;
}

async fn reader_pid(client: &Client, settings: &Replication) -> Option<i32> {
    let sql = "select active_pid from pg_replication_slots where slot_name = $1";
    client.query_one(sql, &[&settings.slot]).await.unwrap().get(0)
}

#[tokio::test]
async fn an_idle_link_stays_up_and_the_slot_follows_its_neighbours() {
    let (database, client) = prepared().await;
    // What is published may go at once: the window is about commits, and version 14 sends some.
    let settings =
        Replication { sender_timeout_ms: 2000, replay_window_ms: 0, ..settings(&database) };
    let mut stream = open(&database, &settings).await;
    let pid = reader_pid(&client, &settings).await;
    client
        .batch_execute("create table unpublished as select generate_series(1, 10000)")
        .await
        .unwrap();
    let written = position(&client).await;
    until("the slot follows", async || {
        // Version 14 sends the empty transactions of its neighbours, too.
        let read = tokio::time::timeout(Duration::from_millis(1), stream.next_batch());
        if let Ok(batch) = read.await {
            for message in batch.unwrap().messages() {
                if let Message::Commit(commit) = message.unwrap() {
                    stream.acknowledge(commit.end_lsn);
                }
            }
        }
        stream.position().flushed >= written
    })
    .await;
    until("the server agrees", async || {
        let slot = wal::inspect(&login(&database.url), &settings.slot).await.unwrap().unwrap();
        slot.confirmed_flush_lsn >= Some(written)
    })
    .await;
    // Silence from both sides for longer than the timeout.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(reader_pid(&client, &settings).await, pid);
    assert_eq!(stream.position().head, stream.position().received);
    finish(stream, &database, &settings).await;
}

#[tokio::test]
async fn a_cut_connection_is_taken_up_where_it_was_acknowledged() {
    let (database, client) = prepared().await;
    let settings = settings(&database);
    let mut stream = open(&database, &settings).await;
    for id in 1..=100 {
        insert(&client, id, &format!("note {id}")).await;
    }
    let (_, acknowledged) = up_to(&mut stream, "note 40").await;
    stream.acknowledge(acknowledged);
    let pid = reader_pid(&client, &settings).await.unwrap();
    client.execute("select pg_terminate_backend($1)", &[&pid]).await.unwrap();
    let error = error(&mut stream).await;
    assert!(matches!(error, Error::Disconnected(_)), "{error:?}");
    insert(&client, 101, "end").await;

    // The server may still be leaving the slot.
    let mut stream = loop {
        match WalStream::open(&login(&database.url), &settings, acknowledged).await {
            Ok(stream) => break stream,
            Err(error) => assert!(matches!(error, Error::SlotBusy { .. }), "{error:?}"),
        }
    };
    assert_eq!(stream.identity().start, acknowledged);
    assert!(!stream.identity().created_slot);
    let (seen, _) = up_to(&mut stream, "end").await;
    let ids: Vec<i32> =
        rows(&seen).iter().map(|row| row.split(',').next().unwrap().parse().unwrap()).collect();
    assert_eq!(ids, (41..=101).collect::<Vec<_>>(), "each once, from the acknowledged one on");
    finish(stream, &database, &settings).await;
}

#[tokio::test]
async fn the_replay_window_is_sent_again_after_a_restart() {
    let (database, client) = prepared().await;
    let settings = settings(&database);
    let mut stream = open(&database, &settings).await;
    insert(&client, 1, "one").await;
    let (_, end) = up_to(&mut stream, "one").await;
    stream.acknowledge(end);
    stream.close().await;
    let mut stream = open(&database, &settings).await;
    assert!(stream.identity().start < end);
    let (seen, _) = up_to(&mut stream, "one").await;
    assert_eq!(rows(&seen), ["1,one"]);
    finish(stream, &database, &settings).await;
}

#[tokio::test]
async fn closing_confirms_what_is_older_than_the_window_and_frees_the_slot() {
    let (database, client) = prepared().await;
    let settings = Replication { replay_window_ms: 0, ..settings(&database) };
    let mut stream = open(&database, &settings).await;
    insert(&client, 1, "one").await;
    let (_, end) = up_to(&mut stream, "one").await;
    stream.acknowledge(end);
    stream.close().await;
    assert_eq!(reader_pid(&client, &settings).await, None, "free at once");
    let slot = wal::inspect(&login(&database.url), &settings.slot).await.unwrap().unwrap();
    assert!(slot.confirmed_flush_lsn >= Some(end), "{slot:?}");
    drop_slot(&database, &settings).await;
}

#[tokio::test]
async fn a_dropped_stream_frees_the_slot() {
    let (database, client) = prepared().await;
    let settings = settings(&database);
    drop(open(&database, &settings).await);
    until("the slot is free", async || reader_pid(&client, &settings).await.is_none()).await;
    drop_slot(&database, &settings).await;
}

#[tokio::test]
async fn a_slot_in_use_names_who_uses_it() {
    let (database, client) = prepared().await;
    let settings = settings(&database);
    let stream = open(&database, &settings).await;
    let pid = reader_pid(&client, &settings).await;
    let second = WalStream::open(&login(&database.url), &settings, Lsn::ZERO).await.unwrap_err();
    assert!(matches!(second, Error::SlotBusy { pid: found, .. } if found == pid), "{second:?}");
    let dropping = wal::drop_slot(&login(&database.url), &settings.slot).await.unwrap_err();
    assert!(matches!(dropping, Error::SlotBusy { .. }), "{dropping:?}");
    finish(stream, &database, &settings).await;
    assert!(!wal::drop_slot(&login(&database.url), &settings.slot).await.unwrap());
}

#[tokio::test]
async fn a_missing_publication_is_named_before_a_slot_is_made() {
    let database = Database::create().await;
    let settings = settings(&database);
    let error = WalStream::open(&login(&database.url), &settings, Lsn::ZERO).await.unwrap_err();
    assert!(
        matches!(&error, Error::PublicationMissing { publication } if publication == "p"),
        "{error:?}"
    );
    assert_eq!(wal::inspect(&login(&database.url), &settings.slot).await.unwrap(), None);
}

#[tokio::test]
async fn a_publication_dropped_while_reading_is_missing_and_later_a_gap() {
    let (database, client) = prepared().await;
    let settings = settings(&database);
    let mut stream = open(&database, &settings).await;
    let missing = async || {
        wal::look_for_publications(&login(&database.url), &settings).await.unwrap().missing
    };
    assert_eq!(missing().await, None);
    let before = position(&client).await;
    client.batch_execute("drop publication p").await.unwrap();
    assert_eq!(missing().await.as_deref(), Some("p"));
    insert(&client, 1, "into the gap").await;
    if cluster::version(&client).await >= 180_000 {
        // The server goes on without the row, and warns.
        until("the gap is noticed", async || stream.publication_skipped()).await;
        assert!(!stream.publication_skipped());
        client.batch_execute("create publication p for table t").await.unwrap();
        insert(&client, 2, "behind it").await;
        let seen = batch(&mut stream).await;
        let seen: Vec<_> = seen.messages().map(|message| describe(&message.unwrap())).collect();
        assert_eq!(seen, ["begin", "relation public.t", "insert 2,behind it", "commit"]);
        return finish(stream, &database, &settings).await;
    }
    let gone = error(&mut stream).await;
    assert!(matches!(gone, Error::PublicationMissing { .. }), "{gone:?}");
    client.batch_execute("create publication p for table t").await.unwrap();
    let mut stream = open(&database, &settings).await;
    let wedged = error(&mut stream).await;
    let Error::SlotWedged { lsn, .. } = wedged else { panic!("{wedged:?}") };
    assert!(before < lsn && lsn < position(&client).await, "{before} {lsn}");
    drop_slot(&database, &settings).await;
}

#[tokio::test]
async fn a_slot_that_is_not_ours_is_refused() {
    let (database, client) = prepared().await;
    let settings = settings(&database);
    let sql = "select pg_create_logical_replication_slot($1, 'test_decoding')";
    client.query(sql, &[&settings.slot]).await.unwrap();
    let error = WalStream::open(&login(&database.url), &settings, Lsn::ZERO).await.unwrap_err();
    assert!(
        matches!(&error, Error::Refused { problem, .. } if problem.contains("test_decoding")),
        "{error:?}"
    );
    drop_slot(&database, &settings).await;
}

#[tokio::test]
async fn creating_a_slot_waits_for_open_transactions_only_so_long() {
    let (database, client) = prepared().await;
    let settings = Replication { create_timeout_ms: 3000, ..settings(&database) };
    client.batch_execute("begin; insert into t values (1, 'open')").await.unwrap();
    let pid: i32 = client.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    let error = WalStream::open(&login(&database.url), &settings, Lsn::ZERO).await.unwrap_err();
    // Other tests have transactions open too: the one that blocks is one of those.
    assert!(
        matches!(&error, Error::SlotWaits { waited_ms: 3000, blockers, .. }
            if blockers.contains("pid")),
        "{error:?}, not pid {pid}"
    );
    assert_eq!(wal::inspect(&login(&database.url), &settings.slot).await.unwrap(), None);
    client.batch_execute("commit").await.unwrap();
    let stream = open(&database, &settings).await;
    finish(stream, &database, &settings).await;
}

#[tokio::test]
async fn a_login_that_may_not_replicate_is_told_how_to() {
    let (database, client) = prepared().await;
    let role = format!("plain_{}", database.name);
    client.batch_execute(&format!("create role {role} login")).await.unwrap();
    let plain = login(&database.url).with_user(&role, &Secret::default());
    let error = WalStream::open(&plain, &settings(&database), Lsn::ZERO).await.unwrap_err();
    assert!(
        matches!(&error, Error::Refused { problem, .. } if problem.contains("replication")),
        "{error:?}"
    );
    client.batch_execute(&format!("alter role {role} replication")).await.unwrap();
    let stream = WalStream::open(&plain, &settings(&database), Lsn::ZERO).await.unwrap();
    finish(stream, &database, &settings(&database)).await;
}

#[tokio::test]
async fn f46_values_do_not_depend_on_the_settings_of_database_or_role() {
    let (database, client) = prepared().await;
    let name = &database.name;
    client
        .batch_execute(&format!(
            "create table v (id int primary key, at timestamptz, i interval, f float8, b bytea, m money);
             alter publication p add table v;
             alter database {name} set datestyle = 'SQL, DMY';
             alter database {name} set timezone = 'Asia/Kathmandu';
             alter database {name} set intervalstyle = 'iso_8601';
             alter database {name} set extra_float_digits = -10;
             alter database {name} set bytea_output = 'escape'"
        ))
        .await
        .unwrap();
    let settings = settings(&database);
    let mut stream = open(&database, &settings).await;
    let sql = "insert into v values (1, '2024-01-02 03:04:05.678+00', '1 day 02:03:04', 0.1 + 0.2::float8, '\\xdead', 1.5::money);
               insert into t values (1, 'end')";
    client.batch_execute(sql).await.unwrap();
    let expected = "1,2024-01-02 03:04:05.678+00,1 day 02:03:04,0.30000000000000004,\\xdead,$1.50";
    let (seen, _) = up_to(&mut stream, "end").await;
    assert_eq!(rows(&seen)[0], expected);
    finish(stream, &database, &settings).await;

    let ordinary = login(&database.url).connect("output").await.unwrap();
    let row =
        ordinary.query_one("select concat_ws(',', id, at, i, f, b, m) from v", &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), expected);
}

#[tokio::test]
async fn the_binary_format_is_there_for_rows_that_do_not_fit_into_text() {
    let (database, client) = prepared().await;
    let settings = settings(&database);
    let (as_binary, opening) = ((Format::Binary, false), Opening::default());
    let mut stream =
        WalStream::open_as(&login(&database.url), &settings, Lsn::ZERO, as_binary, &opening)
            .await
            .unwrap();
    insert(&client, 7, "x").await;
    let (batch, mut columns) = (batch(&mut stream).await, Vec::new());
    for message in batch.messages() {
        if let Message::Insert(insert) = message.unwrap() {
            columns = insert.new.columns().map(Result::unwrap).collect();
        }
    }
    assert_eq!(columns, [TupleColumn::Binary(&[0, 0, 0, 7]), TupleColumn::Binary(b"x")]);
    finish(stream, &database, &settings).await;
}

#[tokio::test]
async fn f63_a_database_without_encoding_sends_its_bytes_as_they_are() {
    let postgres = Database::create().await;
    let name = format!("{}_ascii", postgres.name);
    postgres
        .client()
        .await
        .batch_execute(&format!(
            "create database {name} encoding 'SQL_ASCII' locale 'C' template template0"
        ))
        .await
        .unwrap();
    let database = Database {
        url: postgres.url.replace(&format!("/{}", postgres.name), &format!("/{name}")),
        name,
    };
    let client = database.client().await;
    client
        .batch_execute(
            "create table t (id int primary key, note text); create publication p for table t",
        )
        .await
        .unwrap();
    let settings = settings(&database);
    let mut stream = open(&database, &settings).await;
    client.batch_execute("insert into t values (1, E'\\xff\\xfe')").await.unwrap();
    let mut notes = Vec::new();
    while notes.is_empty() {
        for message in batch(&mut stream).await.messages() {
            if let Message::Insert(insert) = message.unwrap() {
                notes = insert.new.columns().map(|c| format!("{:?}", c.unwrap())).collect();
            }
        }
    }
    assert_eq!(notes[1], "Text([255, 254])");
    finish(stream, &database, &settings).await;
}

#[tokio::test]
async fn nobody_there_is_a_lost_connection_not_a_refusal() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let nobody = login(&format!("postgres://postgres@127.0.0.1:{closed}/postgres"));
    let error = WalStream::open(&nobody, &Replication::default(), Lsn::ZERO).await.unwrap_err();
    assert!(matches!(error, Error::Disconnected(_)), "{error:?}");
}

#[tokio::test]
async fn a_single_change_is_handed_over_at_once() {
    let (database, client) = prepared().await;
    let url = cluster().tcp_url(&database.name);
    let settings = settings(&database);
    let mut stream = WalStream::open(&login(&url), &settings, Lsn::ZERO).await.unwrap();
    insert(&client, 0, "first").await;
    up_to(&mut stream, "first").await;
    let mut whole = 0;
    for id in 1..=20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        insert(&client, id, "x").await;
        let batch = batch(&mut stream).await;
        let kinds: Vec<_> = batch.messages().map(|message| describe(&message.unwrap())).collect();
        whole += usize::from(
            kinds.first().is_some_and(|kind| kind == "begin")
                && kinds.last().is_some_and(|kind| kind == "commit"),
        );
        if kinds.last().is_none_or(|kind| kind != "commit") {
            up_to(&mut stream, "x").await;
        }
    }
    assert!(whole >= 15, "a transaction is one batch, {whole} of 20");
    finish(stream, &database, &settings).await;
}

#[tokio::test]
async fn a_fast_shutdown_does_not_wait_for_a_held_back_slot() {
    let cluster = Cluster::start("stop", &[]);
    let url = cluster.url("postgres");
    let client = connect(&url).await;
    client
        .batch_execute("create table t (id int, note text); create publication p for table t")
        .await
        .unwrap();
    let settings = Replication { publications: vec!["p".into()], ..Replication::default() };
    let mut stream = WalStream::open(&login(&url), &settings, Lsn::ZERO).await.unwrap();
    insert(&client, 1, "held back").await;
    let (_, end) = up_to(&mut stream, "held back").await;
    stream.acknowledge(end);
    let stopping = tokio::task::spawn_blocking(move || {
        let stopped = cluster.server.stop(walcast::dev::StopMode::Fast).is_ok();
        (cluster, stopped)
    });
    let ended = error(&mut stream).await;
    assert!(matches!(ended, Error::Disconnected(_)), "{ended:?}");
    assert!(stream.position().flushed < end, "the window was held back all the while");
    assert!(stopping.await.unwrap().1, "pg_ctl stop -m fast within 20 s");
}

/// A directory that goes with the test.
struct Directory(std::path::PathBuf);

impl Directory {
    fn create() -> Self {
        let path = std::env::temp_dir().join(format!("walcast-tls-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// Runs openssl in a directory of this test.
fn openssl(directory: &std::path::Path, arguments: &str) {
    let output = std::process::Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// All kinds of connection: the ordinary one, the one that is answered once, and the one that
/// replicates.
async fn try_login(url: &str) -> Result<(), String> {
    let login = Login::parse(url, Duration::from_secs(10)).map_err(|error| error.to_string())?;
    let replicating = wal::inspect(&login, "none").await;
    let ordinary = login.connect("test").await;
    assert_eq!(replicating.is_ok(), ordinary.is_ok(), "{url}: {replicating:?}, {ordinary:?}");
    let sql = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    let answered_once = pipeline::Connection::open(&login, "test").await;
    assert_eq!(replicating.is_ok(), answered_once.is_ok(), "{url}: {answered_once:?}");
    if let Ok(mut connection) = answered_once {
        let rows = connection.ask(sql, []).await.unwrap();
        let encrypted = if url.contains("sslmode=disable") { "f" } else { "t" };
        assert_eq!(rows.text(0), Some(encrypted), "{url}");
        connection.cancel(&login).await.unwrap();
    }
    if let Ok(client) = ordinary {
        let encrypted: bool = client.query_one(sql, &[]).await.unwrap().get(0);
        assert_eq!(encrypted, !url.contains("sslmode=disable"), "{url}");
    }
    replicating.map(|_| ()).map_err(|error| format!("{error:?}"))
}

#[tokio::test]
async fn servers_and_passwords_are_proved_as_the_url_demands() {
    let cluster = Cluster::start("tls", &[]);
    let kept = Directory::create();
    let directory = &kept.0;
    for name in ["ca", "other"] {
        openssl(
            directory,
            &format!(
                "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name} -keyout {name}.key \
                 -out {name}.pem -addext keyUsage=critical,keyCertSign"
            )
            .replace("  ", ""),
        );
    }
    std::fs::write(directory.join("san"), "subjectAltName=DNS:localhost,IP:127.0.0.1").unwrap();
    openssl(directory, "req -newkey rsa:2048 -nodes -subj /CN=leaf -keyout leaf.key -out leaf.csr");
    openssl(
        directory,
        "x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -sha384 \
         -extfile san -out leaf.pem"
            .replace("  ", "")
            .as_str(),
    );
    for (file, source) in [("server.crt", "leaf.pem"), ("server.key", "leaf.key")] {
        cluster.write(file, &std::fs::read(directory.join(source)).unwrap());
    }
    cluster.write(
        "pg_hba.conf",
        b"local all postgres trust\n\
          host all scram 127.0.0.1/32 scram-sha-256\n\
          host all md5 127.0.0.1/32 md5\n\
          host all clear 127.0.0.1/32 password\n\
          hostssl all open 127.0.0.1/32 trust\n",
    );
    let admin = connect(&cluster.url("postgres")).await;
    admin
        .batch_execute(
            "create role scram login replication password 'sÉcret';
             create role clear login replication password 'sÉcret';
             create role open login replication;
             set password_encryption = md5;
             create role md5 login replication password 'sÉcret';",
        )
        .await
        .unwrap();
    admin.batch_execute("alter system set ssl = on").await.unwrap();
    admin.execute("select pg_reload_conf()", &[]).await.unwrap();
    let port = cluster.server.port();
    let url = |user: &str, host: &str, parameters: &str| {
        format!("postgres://{user}@{host}:{port}/postgres?{parameters}")
    };
    until("the server has TLS", async || {
        let login = login(&url("open", "127.0.0.1", "sslmode=require"));
        login.connect("probe").await.is_ok()
    })
    .await;
    let (ca, other) = (directory.join("ca.pem"), directory.join("other.pem"));
    let (ca, other) = (ca.display(), other.display());
    let secret = "s%C3%89cret";

    // A name that the certificate is not for.
    let (elsewhere, address) = ("db.example", "hostaddr=127.0.0.1");

    for (url, expected) in [
        // Who the server is.
        (url("open", "127.0.0.1", ""), None),
        (url("open", "127.0.0.1", "sslmode=require"), None),
        (url("open", "127.0.0.1", &format!("sslmode=verify-full&sslrootcert={ca}")), None),
        (url("open", "localhost", &format!("sslmode=verify-full&sslrootcert={ca}")), None),
        (url("open", elsewhere, &format!("{address}&sslmode=verify-ca&sslrootcert={ca}")), None),
        (
            url("open", elsewhere, &format!("{address}&sslmode=verify-full&sslrootcert={ca}")),
            Some("trust"),
        ),
        (
            url("open", "localhost", &format!("sslmode=verify-full&sslrootcert={other}")),
            Some("trust"),
        ),
        (url("open", "localhost", &format!("sslmode=require&sslrootcert={other}")), Some("trust")),
        (url("open", "localhost", "sslmode=verify-full"), Some("trust")),
        (url("open", "127.0.0.1", "sslmode=disable"), Some("pg_hba")),
        // Who we are.
        (url(&format!("scram:{secret}"), "localhost", "sslmode=require"), None),
        (
            url(&format!("scram:{secret}"), "localhost", "sslmode=require&channel_binding=require"),
            None,
        ),
        (
            url(&format!("scram:{secret}"), "localhost", "sslmode=require&channel_binding=disable"),
            None,
        ),
        (url(&format!("scram:{secret}"), "localhost", "sslmode=disable"), None),
        (
            url(&format!("scram:{secret}"), "localhost", "sslmode=disable&channel_binding=require"),
            Some("channel_binding"),
        ),
        (url("scram:wrong", "localhost", "sslmode=require"), Some("password")),
        (url("scram", "localhost", "sslmode=require"), Some("password")),
        (url(&format!("md5:{secret}"), "localhost", "sslmode=disable"), None),
        (url("md5:wrong", "localhost", "sslmode=require"), Some("password")),
        (
            url(&format!("md5:{secret}"), "localhost", "sslmode=require&channel_binding=require"),
            Some("channel_binding"),
        ),
        (url(&format!("clear:{secret}"), "localhost", "sslmode=require"), None),
    ] {
        match (try_login(&url).await, expected) {
            (Ok(()), None) => {}
            (Err(error), Some(expected)) => assert!(error.contains(expected), "{url}: {error}"),
            (result, _) => panic!("{url}: {result:?}"),
        }
    }
    // The password never leaves in clear text over a bare socket.
    let clear = login(&url(&format!("clear:{secret}"), "localhost", "sslmode=disable"));
    let error = wal::inspect(&clear, "none").await.unwrap_err();
    assert!(matches!(&error, Error::Refused { problem, .. } if problem.contains("clear text")));

    // The stream itself, over TLS.
    admin
        .batch_execute("create table t (id int, note text); create publication p for table t")
        .await
        .unwrap();
    let settings = Replication { publications: vec!["p".into()], ..Replication::default() };
    let full = url(
        &format!("scram:{secret}"),
        "localhost",
        &format!("sslmode=verify-full&sslrootcert={ca}"),
    );
    let mut stream = WalStream::open(&login(&full), &settings, Lsn::ZERO).await.unwrap();
    admin
        .batch_execute("insert into t select g, repeat('x', 1000) from generate_series(1, 5000) g; insert into t values (0, 'end')")
        .await
        .unwrap();
    let (seen, _) = up_to(&mut stream, "end").await;
    assert_eq!(rows(&seen).len(), 5001);
    stream.close().await;

    // A certificate that is its own authority, as `openssl req -x509` makes it.
    for (file, source) in [("server.crt", "other.pem"), ("server.key", "other.key")] {
        cluster.write(file, &std::fs::read(directory.join(source)).unwrap());
    }
    admin.execute("select pg_reload_conf()", &[]).await.unwrap();
    until("the other certificate is served", async || {
        let login =
            login(&url("open", "localhost", &format!("sslmode=verify-ca&sslrootcert={other}")));
        login.connect("probe").await.is_ok()
    })
    .await;
    let output = std::process::Command::new("openssl")
        .args(["x509", "-in", "other.pem", "-noout", "-fingerprint", "-sha256"])
        .current_dir(directory)
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let fingerprint = printed.trim().split('=').nth(1).unwrap();
    let pinned = |pin: &str| {
        url("open", "localhost", &format!("sslmode=require&sslfingerprint=sha256:{pin}"))
    };
    try_login(&pinned(fingerprint)).await.unwrap();
    try_login(&url("open", "localhost", &format!("sslmode=verify-ca&sslrootcert={other}")))
        .await
        .unwrap();
    let wrong = fingerprint.replace(|digit: char| digit.is_ascii_hexdigit(), "0");
    assert!(try_login(&pinned(&wrong)).await.unwrap_err().contains("trust"));
    // A server that takes nothing but TLS is told to give up over TLS, too.
    let login = login(&pinned(fingerprint));
    let busy = login.connect("busy").await.unwrap();
    let sleeping = busy.batch_execute("select pg_sleep(600)");
    let cancelling = until("the query is cancelled", async || {
        login.cancel(&busy.cancel_token()).await.unwrap();
        let idle = "select count(*) from pg_stat_activity where application_name = 'busy' \
                    and state = 'idle'";
        admin.query_one(idle, &[]).await.unwrap().get::<_, i64>(0) == 1
    });
    let (slept, ()) = tokio::join!(sleeping, cancelling);
    assert_eq!(slept.unwrap_err().code(), Some(&SqlState::QUERY_CANCELED));
    let other_name = format!("sslmode=verify-full&sslrootcert={other}");
    assert!(try_login(&url("open", "localhost", &other_name)).await.unwrap_err().contains("trust"));
}

/// Passes bytes between a client and the test cluster until told to stop, then holds both
/// connections open and passes nothing: what a firewall that forgot us looks like.
async fn wire(database: &Database) -> (String, tokio::sync::watch::Sender<bool>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (cut, is_cut) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut is_cut = is_cut.clone();
            tokio::spawn(async move {
                let server = ("127.0.0.1", cluster().server.port());
                let mut far = tokio::net::TcpStream::connect(server).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    () = async { is_cut.wait_for(|cut| *cut).await.map_or((), drop) } => {}
                }
                // Both stay open until the test ends.
                std::future::pending::<()>().await;
            });
        }
    });
    let direct = cluster().tcp_url(&database.name);
    let url = direct.replacen(&format!(":{}/", cluster().server.port()), &format!(":{port}/"), 1);
    (url, cut)
}

#[tokio::test]
async fn f49_a_link_that_falls_silent_is_given_up() {
    let (database, client) = prepared().await;
    let settings = Replication { sender_timeout_ms: 1000, ..settings(&database) };
    let (url, cut) = wire(&database).await;
    let mut stream = WalStream::open(&login(&url), &settings, Lsn::ZERO).await.unwrap();
    insert(&client, 1, "before").await;
    up_to(&mut stream, "before").await;
    cut.send(true).unwrap();
    let start = Instant::now();
    let silent = error(&mut stream).await;
    assert!(matches!(&silent, Error::Disconnected(_)), "{silent:?}");
    assert!(start.elapsed() < DEADLINE / 4, "{:?}", start.elapsed());
    // The server gives the slot up by itself, after the timeout we asked for.
    let mut stream = loop {
        match WalStream::open(&login(&database.url), &settings, Lsn::ZERO).await {
            Ok(stream) => break stream,
            Err(Error::SlotBusy { .. }) if start.elapsed() < DEADLINE => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => panic!("{error:?}"),
        }
    };
    up_to(&mut stream, "before").await;
    finish(stream, &database, &settings).await;
}

/// A server that says this to whoever connects, whatever they say.
async fn saying(bytes: &'static [u8]) -> Login {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut request = [0; 1024];
            socket.write_all(bytes).await.ok();
            // Whatever the client says, until it hangs up.
            while socket.read(&mut request).await.is_ok_and(|read| read > 0) {}
        }
    });
    login(&format!("postgres://me:secret@127.0.0.1:{port}/db?sslmode=disable"))
}

#[tokio::test]
async fn what_only_claims_to_be_postgres_is_refused() {
    for (bytes, expected) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "not a Postgres server"),
        (b"R\xFF\xFF\xFF\xFF", "not a Postgres server"),
        (b"R\0\0\0\x03", "not the replication protocol"),
        (b"Q\0\0\0\x05\0", "not the replication protocol"),
        // It takes the login for proved before it has proved itself.
        (b"R\0\0\0\x17\0\0\0\x0ASCRAM-SHA-256\0\0R\0\0\0\x08\0\0\0\0", "without proving"),
        (b"R\0\0\0\x17\0\0\0\x0ASCRAM-SHA-255\0\0", "do not speak"),
        (b"R\0\0\0\x08\0\0\0\x07", "do not speak"),
        (b"R\0\0\0\x08\0\0\0\x03", "clear text"),
        (b"E\0\0\0\x35SFATAL\0C08P01\0Munsupported startup parameter: r\0\0", "connection pooler"),
        // Logged in, no standby, and then it does not know the replication grammar.
        (
            b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05ID\0\0\0\x0B\0\x01\0\0\0\x01fZ\0\0\0\x05I\
              E\0\0\0\x21SERROR\0C42601\0Msyntax error\0\0Z\0\0\0\x05I",
            "connection pooler",
        ),
    ] {
        let (login, settings) = (saying(bytes).await, Replication::default());
        let opening = WalStream::open(&login, &settings, Lsn::ZERO);
        let error = tokio::time::timeout(DEADLINE, opening).await.unwrap().unwrap_err();
        assert!(!matches!(error, Error::Disconnected(_)), "{error:?}");
        assert!(error.to_string().contains(expected), "{}: {error}", bytes.escape_ascii());
    }
}
