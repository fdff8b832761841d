//! Broadcasts from the database, on a whole service.
//!
//! Tests that carry the number of a checklist's item (C42 to C46) in their name are about it.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tokio_postgres::Client;
use walcast::doctor::{self, Level};

use crate::cluster::Database;

use crate::service::{
    ALICE, DEADLINE, Service, Socket, VERSIONS, Version, anon, service_role, shared, user,
};

const PUBLICATION: &str = "supabase_realtime_messages_publication";

/// A topic of a test's own, as SQL has it.
fn topic(name: &str) -> String {
    format!("messages {name}")
}

/// A socket of its own that hears a public topic.
async fn listen(service: &Service, version: Version, topic: &str) -> Socket {
    let mut socket = service.connect(version, &anon()).await;
    join(&mut socket, topic).await;
    socket
}

async fn join(socket: &mut Socket, topic: &str) {
    let payload = json!({ "config": { "broadcast": { "self": false } } });
    let reply = socket.join(&format!("realtime:{topic}"), &payload).await;
    assert_eq!(reply["status"], "ok", "{reply}");
}

async fn join_private(socket: &mut Socket, topic: &str, broadcast: &Value) {
    let payload = json!({ "config": { "private": true, "broadcast": broadcast } });
    let reply = socket.join(&format!("realtime:{topic}"), &payload).await;
    assert_eq!(reply["status"], "ok", "{reply}");
}

/// Sends a JSON payload to a public topic.
async fn send(client: &Client, payload: &Value, event: &str, topic: &str) {
    let sql = "select realtime.send($1::text::jsonb, $2, $3, false)";
    client.execute(sql, &[&payload.to_string(), &event, &topic]).await.unwrap();
}

/// A plain insert; its id.
async fn store(client: &Client, topic: &str, extension: &str, payload: &str) -> String {
    let sql = "insert into realtime.messages (topic, extension, event, private, payload) \
               values ($1, $2, 'e', false, $3::text::jsonb) returning id::text";
    client.query_one(sql, &[&topic, &extension, &payload]).await.unwrap().get(0)
}

/// Event, payload and id of the next message, which must be a broadcast of a stored one.
async fn hear(socket: &mut Socket) -> (String, Value, String) {
    let message = socket.expect("broadcast").await;
    assert_eq!((message.join_ref, message.reference), (Value::Null, Value::Null));
    let mut payload = message.payload;
    match socket.version {
        Version::V1 => assert_eq!(payload["type"], "broadcast"),
        Version::V2 => assert_eq!(payload["kind"], 4),
    }
    let event = payload["event"].as_str().unwrap().to_owned();
    let id = payload["meta"]["id"].as_str().unwrap().to_owned();
    let cursor = payload["meta"]["cursor"].as_str().unwrap();
    assert!(cursor.parse::<walcast::cursor::Cursor>().is_ok(), "{cursor}");
    assert_eq!(payload["meta"], json!({ "id": id, "cursor": cursor }));
    (event, payload["payload"].take(), id)
}

/// The number that each of the next messages is about.
async fn numbers(socket: &mut Socket, count: i64) {
    for number in 0..count {
        let (_, payload, _) = hear(socket).await;
        assert_eq!(payload["n"], number);
    }
}

#[tokio::test]
async fn c42_what_is_sent_comes_when_it_commits_and_not_otherwise() {
    let service = shared().await;
    let mut admin = service.admin().await;
    for version in VERSIONS {
        let topic = topic(&format!("c42 {version:?}"));
        let mut socket = listen(service, version, &topic).await;
        let transaction = admin.transaction().await.unwrap();
        let gone = "select realtime.send('{\"gone\": 1}', 'e', $1, false)";
        transaction.execute(gone, &[&topic]).await.unwrap();
        transaction.rollback().await.unwrap();
        send(&admin, &json!({ "a": [1, "ü"] }), "say \"hi\"", &topic).await;
        let (event, payload, id) = hear(&mut socket).await;
        assert_eq!(event, "say \"hi\"");
        assert_eq!(payload, json!({ "a": [1, "ü"], "id": id }));
        send(&admin, &json!({ "id": "mine" }), "e", &topic).await;
        let (_, payload, id) = hear(&mut socket).await;
        assert_eq!(payload, json!({ "id": "mine" }));
        let stored = "select id::text from realtime.messages where topic = $1 order by inserted_at";
        let stored = admin.query(stored, &[&topic]).await.unwrap();
        assert_eq!(stored.last().unwrap().get::<_, &str>(0), id);
        socket.nothing_came().await;
    }
}

#[tokio::test]
async fn c43_bytes_come_as_bytes_and_to_version_2_alone() {
    let service = shared().await;
    let admin = service.admin().await;
    let topic = topic("c43");
    let mut new = listen(service, Version::V2, &topic).await;
    let mut old = listen(service, Version::V1, &topic).await;
    let sql = "select realtime.send_binary($1, 'e', $2, false)";
    for bytes in [&[0_u8, 255, 1, 92, 120][..], b""] {
        admin.execute(sql, &[&bytes, &topic]).await.unwrap();
        let payload = new.expect("broadcast").await.payload;
        assert_eq!(payload["binary"], json!(bytes));
        assert!(payload["meta"]["id"].is_string(), "{payload}");
    }
    send(&admin, &json!({}), "after", &topic).await;
    assert_eq!(hear(&mut old).await.0, "after");
    assert_eq!(hear(&mut new).await.0, "after");
}

#[tokio::test]
async fn c44_a_trigger_tells_the_private_room_what_happened_to_its_row() {
    let service = shared().await;
    let admin = service.admin().await;
    for version in VERSIONS {
        let topic = topic(&format!("c44 {version:?}"));
        let mut public = listen(service, version, &topic).await;
        let mut private = service.connect(version, &service_role()).await;
        join_private(&mut private, &topic, &json!({})).await;
        let table = format!("c44_{version:?}").to_lowercase();
        let sql = format!(
            "create table {table} (id int primary key, note text);
             create function {table}_tell() returns trigger language plpgsql as $$
             begin
                 perform realtime.broadcast_changes(
                     '{topic}', tg_op, tg_op, tg_table_name, tg_table_schema, new, old
                 );
                 return null;
             end $$;
             create trigger tell after insert or update or delete on {table}
                 for each row execute function {table}_tell();
             insert into {table} values (1, 'a');
             update {table} set note = 'b';
             delete from {table};"
        );
        admin.batch_execute(&sql).await.unwrap();
        let row = |note: &str| json!({ "id": 1, "note": note });
        for (operation, record, old_record) in [
            ("INSERT", row("a"), Value::Null),
            ("UPDATE", row("b"), row("a")),
            ("DELETE", Value::Null, row("b")),
        ] {
            let (event, payload, id) = hear(&mut private).await;
            let expected = json!({
                "schema": "public", "table": table, "operation": operation, "record": record,
                "old_record": old_record, "id": id,
            });
            assert_eq!((&*event, payload), (operation, expected));
        }
        send(&admin, &json!({}), "public", &topic).await;
        assert_eq!(hear(&mut public).await.0, "public", "and nothing before it");
        private.nothing_came().await;
    }
}

#[tokio::test]
async fn what_is_stored_during_a_replay_is_neither_lost_nor_repeated() {
    let service = shared().await;
    let admin = service.admin().await;
    let topic = &topic("replay");
    let sql = "select realtime.send(jsonb_build_object('n', $1::int), 'e', $2, true)";
    let mut sockets = Vec::new();
    let writing = async {
        for n in 0..400 {
            admin.execute(sql, &[&n, topic]).await.unwrap();
        }
    };
    let joining = async {
        for _ in 0..8 {
            let mut socket = service.connect(Version::V2, &service_role()).await;
            let replay = json!({ "replay": { "since": 0, "limit": 25 } });
            join_private(&mut socket, topic, &replay).await;
            sockets.push(socket);
        }
    };
    tokio::join!(writing, joining);
    admin.execute(sql, &[&400, topic]).await.unwrap();
    for mut socket in sockets {
        let mut all = Vec::new();
        while all.last() != Some(&400) {
            let message = socket.expect("broadcast").await.payload;
            all.push(message["payload"]["n"].as_i64().unwrap());
        }
        assert!(all.iter().copied().eq(all[0]..=400), "{all:?}");
        socket.nothing_came().await;
    }
}

/// More are stored than a replay shows while the stream is held up: the older ones, which come
/// live, are not told after the newer ones.
#[tokio::test]
async fn what_is_older_than_a_replay_and_comes_live_comes_before_it() {
    let service = Service::start().await;
    let (admin, mut holder) = (service.admin().await, service.admin().await);
    let sql = "create table public.latch (id int primary key);
         create table public.held (id int primary key);
         alter table public.held enable row level security;
         create policy p on public.held using (not exists (select from public.latch));
         grant select on public.latch, public.held to authenticated;
         alter publication supabase_realtime add table public.held;";
    admin.batch_execute(sql).await.unwrap();
    let mut watcher = service.connect(Version::V2, &user(ALICE)).await;
    let held = json!([{ "event": "INSERT", "schema": "public", "table": "held" }]);
    watcher.subscribe("realtime:held", held).await;
    let topic = &topic("older");
    // Whether Alice sees the row is not answered before the lock is gone.
    let lock = holder.transaction().await.unwrap();
    lock.batch_execute("lock table public.latch in access exclusive mode").await.unwrap();
    admin.batch_execute("insert into public.held values (1)").await.unwrap();
    until(&admin, "wait_event_type = 'Lock' and wait_event = 'relation'", || async {}).await;
    let numbers = std::cell::Cell::new(0);
    let send = || async {
        let n = numbers.replace(numbers.get() + 1);
        let sql = "select realtime.send(jsonb_build_object('n', $1::int), 'e', $2, true)";
        admin.execute(sql, &[&n, topic]).await.unwrap();
    };
    for _ in 0..40 {
        send().await;
    }
    let mut socket = service.connect(Version::V2, &service_role()).await;
    let joining = tokio::spawn({
        let topic = topic.clone();
        async move {
            let replay = json!({ "replay": { "since": 0 } });
            join_private(&mut socket, &topic, &replay).await;
            socket
        }
    });
    // Nothing of that has come live when the store is read.
    let read = "query like '%pg_current_wal_flush_lsn%' and state = 'idle'";
    until(&admin, read, send).await;
    lock.commit().await.unwrap();
    send().await;
    let mut socket = joining.await.unwrap();
    for n in 0..numbers.get() {
        assert_eq!(socket.expect("broadcast").await.payload["payload"]["n"], n);
    }
    socket.nothing_came().await;
}

/// Waits until a connection of this database is doing what `condition` says of
/// `pg_stat_activity`, and meanwhile does something else.
async fn until(client: &Client, condition: &str, mut meanwhile: impl AsyncFnMut()) {
    let sql = format!(
        "select count(*) from pg_stat_activity where datname = current_database() \
         and pid <> pg_backend_pid() and {condition}"
    );
    let found = async {
        while client.query_one(&sql, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            meanwhile().await;
        }
    };
    tokio::time::timeout(DEADLINE, found).await.unwrap();
}

#[tokio::test]
async fn c45_without_a_policy_nothing_is_stored_and_the_transaction_lives() {
    let service = shared().await;
    let mut admin = service.admin().await;
    let topic = topic("c45");
    let mut socket = listen(service, Version::V2, &topic).await;
    admin.batch_execute("create table c45 (id int); grant all on c45 to anon").await.unwrap();
    let transaction = admin.transaction().await.unwrap();
    let sql = format!(
        "set local role anon;
         insert into c45 values (1);
         select realtime.send('{{}}', 'e', '{topic}', false);
         select realtime.send_binary('x', 'e', '{topic}', false);"
    );
    transaction.batch_execute(&sql).await.unwrap();
    let refused = "insert into realtime.messages (topic, extension) values ('x', 'broadcast')";
    transaction.commit().await.unwrap();
    let rows = admin.query("select from c45", &[]).await.unwrap();
    assert_eq!(rows.len(), 1, "the rest of the transaction is there");
    let transaction = admin.transaction().await.unwrap();
    transaction.batch_execute("set local role anon").await.unwrap();
    let error = transaction.batch_execute(refused).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "42501");
    drop(transaction);
    send(&admin, &json!({}), "after", &topic).await;
    assert_eq!(hear(&mut socket).await.0, "after", "and nothing before it");
}

#[tokio::test]
async fn c46_who_asks_is_told_that_the_stream_is_there() {
    let service = shared().await;
    for version in VERSIONS {
        let mut socket = service.connect(version, &anon()).await;
        let topic = format!("realtime:{}", topic("c46"));
        let payload = json!({ "config": { "broadcast": { "replication_ready": true } } });
        assert_eq!(socket.join(&topic, &payload).await["status"], "ok");
        let system = socket.expect("system").await.payload;
        assert_eq!(system["status"], "ok", "{system}");
        assert_eq!(system["message"], "Replication connection established");
    }
}

#[tokio::test]
async fn any_new_row_is_broadcast_and_nothing_else_is() {
    let service = shared().await;
    let admin = service.admin().await;
    let topic = topic("any");
    let mut socket = listen(service, Version::V2, &topic).await;
    let mut expected = Vec::new();
    for (extension, payload) in
        [("broadcast", "[1, 2]"), ("presence", "null"), ("of my own", "\"text\"")]
    {
        let id = store(&admin, &topic, extension, payload).await;
        expected.push((payload.parse::<Value>().unwrap(), id));
    }
    // Without one of these, a row says nothing.
    for columns in [
        "event, private, payload) values ($1, 'broadcast', null, false, '{}')",
        "event, private, payload) values ($1, 'broadcast', 'e', null, '{}')",
        "event, private, payload) values ($1, 'broadcast', 'e', false, null)",
        "event, private, payload) values ($1, 'broadcast', 'e', true, '{}')",
    ] {
        let sql = format!("insert into realtime.messages (topic, extension, {columns}");
        admin.execute(&sql, &[&topic]).await.unwrap();
    }
    let update = "update realtime.messages set payload = '7' where topic = $1";
    admin.execute(update, &[&topic]).await.unwrap();
    admin.execute("delete from realtime.messages where topic = $1", &[&topic]).await.unwrap();
    send(&admin, &json!({}), "after", &topic).await;
    for (payload, id) in expected {
        assert_eq!(hear(&mut socket).await, ("e".into(), payload, id));
    }
    assert_eq!(hear(&mut socket).await.0, "after");
    socket.nothing_came().await;
}

#[tokio::test]
async fn what_is_too_large_reaches_nobody_and_the_rest_goes_on() {
    let service = Service::with(|config| config.limits.payload_bytes_max = 2000).await;
    let admin = service.admin().await;
    let topic = topic("large");
    let mut socket = listen(&service, Version::V2, &topic).await;
    let text = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2));
    for (size, said) in [(2000, true), (2001, false), (3_000_000, false), (1999, true)] {
        let id = store(&admin, &topic, "broadcast", &text(size)).await;
        if said {
            assert_eq!(hear(&mut socket).await.2, id);
        }
    }
    let sql = "select realtime.send_binary($1, $2, $3, false)";
    for (size, event) in [(2001, "large"), (2000, "fits")] {
        let bytes = vec![7_u8; size];
        admin.execute(sql, &[&bytes, &event, &topic]).await.unwrap();
    }
    let heard = socket.expect("broadcast").await.payload;
    assert_eq!(heard["event"], "fits");
    assert_eq!(heard["binary"].as_array().unwrap().len(), 2000);
    socket.nothing_came().await;
}

#[tokio::test]
async fn messages_and_row_changes_come_in_the_order_of_their_commits() {
    let service = shared().await;
    let mut admin = service.admin().await;
    let t = service.table("n int").await;
    for version in VERSIONS {
        let topic = topic(&format!("order {version:?}"));
        let mut socket = service.connect(version, &service_role()).await;
        let all = json!([{ "event": "*", "schema": "public", "table": t }]);
        socket.subscribe("realtime:rows", all).await;
        join(&mut socket, &topic).await;
        admin.batch_execute(&format!("delete from {t}")).await.unwrap();
        socket.rest().await;
        let say = format!(
            "select realtime.send(jsonb_build_object('n', $1::int), 'e', '{topic}', false)"
        );
        let insert = format!("insert into {t} values ($1, $2)");
        for round in 0..20_i64 {
            let transaction = admin.transaction().await.unwrap();
            for step in 0..4_i64 {
                let n = i32::try_from(round * 8 + step * 2).unwrap();
                transaction.execute(&insert, &[&i64::from(n), &n]).await.unwrap();
                transaction.execute(&say, &[&(n + 1)]).await.unwrap();
            }
            transaction.commit().await.unwrap();
        }
        let mut heard = Vec::new();
        while heard.len() < 160 {
            let message = socket.next().await;
            match &*message.event {
                "postgres_changes" if message.payload["data"]["type"] == "INSERT" => {
                    heard.push(message.payload["data"]["record"]["n"].as_i64().unwrap());
                }
                "broadcast" => heard.push(message.payload["payload"]["n"].as_i64().unwrap()),
                _ => assert_eq!(message.payload["data"]["type"], "DELETE", "{message:?}"),
            }
        }
        assert!(heard.iter().copied().eq(0..160), "{heard:?}");
    }
}

#[tokio::test]
async fn ten_thousand_messages_of_one_transaction_come_once_and_in_order() {
    let service = shared().await;
    let admin = service.admin().await;
    let topic = topic("many");
    let mut socket = listen(service, Version::V2, &topic).await;
    let sql = "select realtime.send(jsonb_build_object('n', n), 'e', $1, false) \
               from generate_series(0, 9999) as n";
    admin.execute(sql, &[&topic]).await.unwrap();
    numbers(&mut socket, 10_000).await;
    socket.nothing_came().await;
}

#[tokio::test]
async fn a_lost_connection_to_the_server_loses_nothing_and_repeats_nothing() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let topic = topic("cut");
    let mut socket = listen(&service, Version::V2, &topic).await;
    let cut = "select pg_terminate_backend(pid) from pg_stat_replication as r \
               join pg_replication_slots as s on s.active_pid = r.pid where s.slot_name = $1";
    let slot = &service.config.replication.slot;
    for n in 0..300 {
        send(&admin, &json!({ "n": n }), "e", &topic).await;
        if n % 100 == 50 {
            admin.execute(cut, &[slot]).await.unwrap();
        }
    }
    numbers(&mut socket, 300).await;
    socket.nothing_came().await;
}

#[tokio::test]
async fn after_a_restart_who_comes_back_hears_what_is_new_and_nothing_twice() {
    let mut service = Service::start().await;
    let admin = service.admin().await;
    let topic = topic("restart");
    let mut socket = listen(&service, Version::V2, &topic).await;
    send(&admin, &json!({ "n": 0 }), "e", &topic).await;
    numbers(&mut socket, 1).await;
    service.stop().await.unwrap();
    send(&admin, &json!({ "n": "while it was down" }), "e", &topic).await;
    service.start_again().await;
    let mut socket = listen(&service, Version::V2, &topic).await;
    send(&admin, &json!({ "n": 0 }), "e", &topic).await;
    numbers(&mut socket, 1).await;
    socket.nothing_came().await;
}

#[tokio::test]
async fn stored_messages_are_no_row_changes_unless_the_user_publishes_them() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let t = service.table("n int").await;
    let topic = topic("wildcard");
    let mut socket = service.connect(Version::V2, &service_role()).await;
    let all = json!([{ "event": "*", "schema": "*" }, { "event": "*", "schema": "realtime" }]);
    let payload = json!({ "config": { "postgres_changes": all } });
    let reply = socket.join("realtime:all", &payload).await;
    assert_eq!(reply["status"], "ok", "{reply}");
    socket.expect("system").await;
    socket.rest().await;
    join(&mut socket, &topic).await;
    send(&admin, &json!({ "n": 0 }), "e", &topic).await;
    numbers(&mut socket, 1).await;
    admin.batch_execute(&format!("insert into {t} values (1, 1)")).await.unwrap();
    assert_eq!(socket.change().await["table"], t);
    socket.nothing_came().await;
    // In both publications: a row change, and said once.
    let publish = "alter publication supabase_realtime add table realtime.messages";
    admin.batch_execute(publish).await.unwrap();
    send(&admin, &json!({ "n": 1 }), "e", &topic).await;
    let (mut said, mut tables) = (0, BTreeSet::new());
    while said < 1 || tables.is_empty() {
        let message = socket.next().await;
        match &*message.event {
            "broadcast" => said += 1,
            "postgres_changes" => {
                tables.insert(message.payload["data"]["table"].as_str().unwrap().to_owned());
            }
            other => panic!("{other}"),
        }
    }
    assert!(tables.iter().all(|table| table.starts_with("messages")), "{tables:?}");
    let more = socket.rest().await;
    assert!(more.iter().all(|message| message.event != "broadcast"), "{more:?}");
}

#[tokio::test]
async fn a_publication_that_comes_later_is_noticed_and_one_that_goes_stops_nothing() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let t = service.table("n int").await;
    let topic = topic("later");
    let mut socket = service.connect(Version::V2, &service_role()).await;
    let all = json!([{ "event": "INSERT", "schema": "public", "table": t }]);
    socket.subscribe("realtime:rows", all).await;
    join(&mut socket, &topic).await;
    admin.batch_execute(&format!("drop publication {PUBLICATION}")).await.unwrap();
    send(&admin, &json!({ "n": "unheard" }), "e", &topic).await;
    admin.batch_execute(&format!("insert into {t} values (1, 1)")).await.unwrap();
    assert_eq!(socket.change().await["record"]["id"], 1);
    let create = format!("create publication {PUBLICATION} for table realtime.messages");
    admin.batch_execute(&create).await.unwrap();
    // Until it is read, messages are not heard.
    let heard = async {
        for n in 2_i64.. {
            send(&admin, &json!({}), "e", &topic).await;
            admin.execute(&format!("insert into {t} values ($1, 1)"), &[&n]).await.unwrap();
            let mut said = false;
            loop {
                let message = socket.next().await;
                said |= message.event == "broadcast";
                if message.event == "postgres_changes" {
                    assert_eq!(message.payload["data"]["record"]["id"], n);
                    break;
                }
            }
            if said {
                break;
            }
        }
    };
    tokio::time::timeout(DEADLINE, heard).await.expect("noticed in time");
}

/// Sends numbered messages until one of them is heard.
async fn until_heard(client: &Client, socket: &mut Socket, topic: &str) {
    let heard = async {
        for n in 0.. {
            send(client, &json!({ "n": n }), "again", topic).await;
            if socket.rest().await.iter().any(|message| message.event == "broadcast") {
                break;
            }
        }
    };
    tokio::time::timeout(DEADLINE, heard).await.expect("heard in time");
}

#[tokio::test]
async fn a_publication_younger_than_the_slots_place_is_taken_up_when_that_is_behind() {
    let mut service = Service::start().await;
    let admin = service.admin().await;
    let t = service.table("n int").await;
    let topic = topic("younger");
    service.stop().await.unwrap();
    let sql = format!(
        "drop publication {PUBLICATION};
         insert into {t} values (1, 1);
         create publication {PUBLICATION} for table realtime.messages;"
    );
    admin.batch_execute(&sql).await.unwrap();
    service.start_again().await;
    let mut socket = service.connect(Version::V2, &service_role()).await;
    let all = json!([{ "event": "INSERT", "schema": "public", "table": t }]);
    socket.subscribe("realtime:rows", all).await;
    join(&mut socket, &topic).await;
    admin.batch_execute(&format!("insert into {t} values (2, 2)")).await.unwrap();
    let change = loop {
        let message = socket.next().await;
        if message.event == "postgres_changes" {
            break message;
        }
    };
    assert_eq!(change.payload["data"]["record"]["id"], 2);
    until_heard(&admin, &mut socket, &topic).await;
}

#[tokio::test]
async fn partitions_are_known_by_what_they_are_part_of() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let topic = topic("by hand");
    let mut socket = listen(&service, Version::V2, &topic).await;
    // One that looks the same and is none, published by the user; one of another name and schema.
    let sql = "create table public.messages_2026_01_01 (like realtime.messages including all);
         alter publication supabase_realtime add table public.messages_2026_01_01;
         create schema elsewhere;
         create table elsewhere.old partition of realtime.messages
             for values from ('2000-01-01') to ('2001-01-01');";
    admin.batch_execute(sql).await.unwrap();
    let insert = |table: &str, n: i64| {
        format!(
            "insert into {table} (topic, extension, event, private, payload, inserted_at) \
             values ('{topic}', 'broadcast', 'e', false, '{{\"n\": {n}}}', '2000-06-01')"
        )
    };
    for (table, n) in [("public.messages_2026_01_01", 7), ("realtime.messages", 0)] {
        admin.batch_execute(&insert(table, n)).await.unwrap();
    }
    numbers(&mut socket, 1).await;
    socket.nothing_came().await;
}

#[tokio::test]
async fn a_message_that_is_moved_to_another_day_is_not_said_again() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let topic = topic("moved");
    let mut socket = listen(&service, Version::V2, &topic).await;
    // Partitions by a name that does not tell, and a table that only looks like one.
    let sql = "create schema elsewhere;
         create table elsewhere.old partition of realtime.messages
             for values from ('2000-01-01') to ('2001-01-01');
         create table public.waiting (like realtime.messages including all);
         alter publication supabase_realtime add table public.waiting;";
    admin.batch_execute(sql).await.unwrap();
    let update = |to: &str| {
        format!("update realtime.messages set inserted_at = {to} where topic = '{topic}'")
    };
    let columns = "topic, extension, payload, event, private, inserted_at, id";
    for n in 0..4 {
        send(&admin, &json!({ "n": n }), "e", &topic).await;
    }
    numbers(&mut socket, 4).await;
    for to in
        ["inserted_at + interval '1 day'", "timestamp '2000-06-01'", "now() at time zone 'utc'"]
    {
        assert_eq!(admin.execute(&update(to), &[]).await.unwrap(), 4, "{to}");
    }
    send(&admin, &json!({ "n": 4 }), "e", &topic).await;
    assert_eq!(hear(&mut socket).await.1["n"], 4, "and nothing before it");
    // Taken out and stored again where it was, or come from a table of the user's own: new.
    let again = format!(
        "with gone as (delete from realtime.messages where topic = '{topic}' returning *)
         insert into public.waiting ({columns}) select {columns} from gone;
         with due as (delete from public.waiting returning *)
         insert into realtime.messages ({columns}) select {columns} from due
         order by payload -> 'n';
         update realtime.messages set payload = payload where topic = '{topic}';"
    );
    admin.batch_execute(&again).await.unwrap();
    send(&admin, &json!({ "n": 5 }), "e", &topic).await;
    numbers(&mut socket, 6).await;
    socket.nothing_came().await;
}

#[tokio::test]
async fn a_publication_by_the_partitioned_table_serves_as_well() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let topic = topic("by root");
    let mut socket = listen(&service, Version::V2, &topic).await;
    let sql = format!("alter publication {PUBLICATION} set (publish_via_partition_root = true)");
    admin.batch_execute(&sql).await.unwrap();
    for n in 0..3 {
        send(&admin, &json!({ "n": n }), "e", &topic).await;
    }
    numbers(&mut socket, 3).await;
    socket.nothing_came().await;
}

#[tokio::test]
async fn a_missing_partition_costs_a_warning_and_is_made_again() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let topic = topic("midnight");
    let mut socket = listen(&service, Version::V2, &topic).await;
    let partitions = "select inhrelid::regclass::text from pg_inherits \
                      where inhparent = 'realtime.messages'::regclass";
    for row in admin.query(partitions, &[]).await.unwrap() {
        let drop = format!("drop table {}", row.get::<_, &str>(0));
        admin.batch_execute(&drop).await.unwrap();
    }
    until_heard(&admin, &mut socket, &topic).await;
    let made = async { while admin.query(partitions, &[]).await.unwrap().len() < 5 {} };
    tokio::time::timeout(DEADLINE, made).await.expect("all of them in time");
}

#[tokio::test]
async fn who_writes_messages_does_not_hold_up_new_partitions_nor_wait_for_old_ones() {
    let service = Service::start().await;
    let (mut writer, admin) = (service.admin().await, service.admin().await);
    let sql = "create table realtime.messages_2020_01_01 partition of realtime.messages
             for values from ('2020-01-01') to ('2020-01-02');
         insert into walcast.objects values ('partition', 'realtime.messages_2020_01_01');";
    admin.batch_execute(sql).await.unwrap();
    let tomorrow = "select to_char(timezone('utc', now()) + interval '1 day', \
                    '\"realtime.messages_\"YYYY_MM_DD')";
    let tomorrow: String = admin.query_one(tomorrow, &[]).await.unwrap().get(0);
    admin.batch_execute(&format!("drop table {tomorrow}")).await.unwrap();
    let transaction = writer.transaction().await.unwrap();
    let send = "select realtime.send('{}', 'e', 'x', false)";
    transaction.batch_execute(send).await.unwrap();
    let login = walcast::db::Login::parse(&service.database.url, DEADLINE).unwrap();
    let rotated = walcast::db::install::rotate_partitions(&login).await.unwrap();
    assert_eq!(rotated.skipped, []);
    let exists = "select to_regclass($1) is not null";
    let exists =
        async |name: &str| -> bool { admin.query_one(exists, &[&name]).await.unwrap().get(0) };
    assert!(exists(&tomorrow).await);
    assert!(exists("realtime.messages_2020_01_01").await, "it is in use");
    transaction.commit().await.unwrap();
    walcast::db::install::rotate_partitions(&login).await.unwrap();
    assert!(!exists("realtime.messages_2020_01_01").await);
}

/// What the official service leaves, with owners of their own.
async fn adopted() -> (Database, String) {
    let database = Database::create().await;
    let client = database.client().await;
    let owner = format!("messages_owner_of_{}", database.name);
    let sql = format!(
        "create role {owner} nologin;
         create schema realtime;
         create table realtime.schema_migrations (version bigint primary key);
         create table realtime.messages (
             topic text not null, extension text not null, payload jsonb, event text,
             private boolean default false, updated_at timestamp not null default now(),
             inserted_at timestamp not null default now(),
             id uuid not null default gen_random_uuid(), binary_payload bytea,
             primary key (id, inserted_at)
         ) partition by range (inserted_at);
         alter table realtime.messages owner to {owner};
         create publication {PUBLICATION} for table realtime.messages;
         grant create on database {} to {owner};
         alter publication {PUBLICATION} owner to {owner};
         alter schema realtime owner to {owner};",
        database.name
    );
    client.batch_execute(&sql).await.unwrap();
    (database, owner)
}

#[tokio::test]
async fn what_somebody_else_set_up_is_read_as_it_is() {
    let (database, owner) = adopted().await;
    let service = Service::on(database, |_| ()).await;
    let admin = service.admin().await;
    let topic = topic("adopted");
    let mut socket = listen(&service, Version::V2, &topic).await;
    let id = store(&admin, &topic, "broadcast", "[]").await;
    assert_eq!(hear(&mut socket).await, ("e".into(), json!([]), id));
    let owners = "select pubowner::regrole::text from pg_publication where pubname = $1";
    let row = admin.query_one(owners, &[&PUBLICATION]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), owner);
}

#[tokio::test]
async fn a_publication_that_was_never_there_is_read_from_when_it_is_made() {
    let (database, _) = adopted().await;
    let admin = database.client().await;
    admin.batch_execute(&format!("drop publication {PUBLICATION}")).await.unwrap();
    let service = Service::on(database, |_| ()).await;
    let topic = topic("never there");
    let mut socket = listen(&service, Version::V2, &topic).await;
    store(&admin, &topic, "broadcast", "[]").await;
    let create = format!("create publication {PUBLICATION} for table realtime.messages");
    admin.batch_execute(&create).await.unwrap();
    let heard = async {
        let mut ids = Vec::new();
        loop {
            ids.push(store(&admin, &topic, "broadcast", "[]").await);
            if let Some(first) = socket.rest().await.first() {
                return ids.contains(&first.payload["meta"]["id"].as_str().unwrap().to_owned());
            }
        }
    };
    let heard = tokio::time::timeout(DEADLINE, heard).await;
    assert!(heard.expect("read in time"), "nothing from before it");
}

#[tokio::test]
async fn doctor_says_who_must_look_after_messages() {
    let (database, owner) = adopted().await;
    let client = database.client().await;
    let user = format!("messages_user_of_{}", database.name);
    let sql =
        format!("create role {user} login; grant create on database {} to {user}", database.name);
    client.batch_execute(&sql).await.unwrap();
    let mut config = walcast::config::Config::default();
    let url = database.url.replace("postgres://postgres@", &format!("postgres://{user}:x@"));
    config.database.url = walcast::config::Secret::new(url);
    let found = async || doctor::examine(&config).await;
    let findings = found().await;
    let about = |findings: &[doctor::Finding], what: &str| {
        let found = findings.iter().find(|finding| finding.text.contains(what));
        let found = found.unwrap_or_else(|| panic!("{what}: {findings:#?}"));
        (found.level, found.mend.as_ref().map(ToString::to_string).unwrap_or_default())
    };
    let (level, mend) = about(&findings, &format!("belongs to {owner}"));
    assert_eq!(level, Level::Warn);
    assert!(mend.contains(&owner) && mend.contains(&user), "{mend}");
    assert_eq!(about(&findings, "lacks the partition").0, Level::Red);
    assert_eq!(
        about(&findings, &format!("publication {PUBLICATION} has")).0,
        Level::Ok,
        "{findings:#?}"
    );
    client.batch_execute("create table other (id int primary key)").await.unwrap();
    let add = format!("alter publication {PUBLICATION} add table other");
    client.batch_execute(&add).await.unwrap();
    assert_eq!(about(&found().await, "read in vain: public.other").0, Level::Warn);
    client.batch_execute(&format!("drop publication {PUBLICATION}")).await.unwrap();
    let (level, mend) = about(&found().await, "so nothing is broadcast from the database");
    assert_eq!(level, Level::Warn);
    assert!(mend.contains("create publication"), "{mend}");
    config.replication.messages_publication.clear();
    let findings = doctor::examine(&config).await;
    assert_eq!(about(&findings, "no publication is set for that").0, Level::Ok);
}

#[tokio::test]
async fn doctor_says_when_private_channels_cannot_be_decided() {
    let database = Database::create().await;
    let client = database.client().await;
    let [user, service] = ["user", "service"].map(|role| format!("{}_{role}", database.name));
    let sql = format!("create role {user}; create role {service}");
    client.batch_execute(&sql).await.unwrap();
    let mut config = walcast::config::Config::default();
    config.database.url = walcast::config::Secret::new(database.url.clone());
    config.database.roles = vec![user.clone(), service.clone()];
    let found = async |config: &walcast::config::Config| {
        let findings = doctor::examine(config).await;
        let about = findings.into_iter().find(|finding| finding.text.contains("private channels"));
        about.map(|finding| (finding.level, finding.mend.map(|mend| mend.to_string())))
    };
    assert_eq!(found(&config).await, None, "there is no table yet");
    let owner = walcast::db::Login::parse(&database.url, DEADLINE).unwrap();
    walcast::db::install::install(&owner, &config).await.unwrap();
    let (level, mend) = found(&config).await.unwrap();
    assert_eq!(level, Level::Red);
    let mend = mend.unwrap();
    // Not one of those that users may be, though they may insert.
    assert!(mend.contains("role service_role ") && mend.contains("WALCAST_ROLES"), "{mend}");
    assert!(!mend.contains(&service), "{mend}");
    let above = format!("alter role {service} bypassrls");
    client.batch_execute(&above).await.unwrap();
    assert_eq!(found(&config).await, Some((Level::Ok, None)));
    let revoke = format!(
        "revoke insert on realtime.messages from {service};
         revoke usage on schema realtime from {service}"
    );
    client.batch_execute(&revoke).await.unwrap();
    let (level, mend) = found(&config).await.unwrap();
    assert_eq!(level, Level::Red);
    client.batch_execute(&mend.unwrap()).await.unwrap();
    assert_eq!(found(&config).await, Some((Level::Ok, None)), "what it says mends it");
    // As the check login, which must also be a member.
    let check = format!("{}_check", database.name);
    let sql = format!("create role {check} login noinherit; grant {user} to {check}");
    client.batch_execute(&sql).await.unwrap();
    let url = database.url.replace("postgres://postgres@", &format!("postgres://{check}@"));
    config.database.url = walcast::config::Secret::default();
    config.database.check_url = walcast::config::Secret::new(url);
    assert_eq!(found(&config).await.unwrap().0, Level::Red);
    client.batch_execute(&format!("grant {service} to {check}")).await.unwrap();
    assert_eq!(found(&config).await, Some((Level::Ok, None)));
}
