//! Channels that come back with a cursor: what they missed, once each and in order, or one gap.

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::service::{
    ALICE, BOB, DEADLINE, Service, Socket, VERSIONS, Version, anon, shared, user,
};

const TOPIC: &str = "realtime:test";

/// Everything about a table, from a cursor on.
fn from(table: &str, cursor: &str) -> Value {
    json!([{ "event": "*", "schema": "public", "table": table, "cursor": cursor }])
}

fn all_of(table: &str) -> Value {
    json!([{ "event": "*", "schema": "public", "table": table }])
}

/// Joins, and returns the cursor where the subscription begins.
async fn join(socket: &mut Socket, parameters: Value) -> String {
    let reply = socket.join(TOPIC, &json!({ "config": { "postgres_changes": parameters } })).await;
    assert_eq!(reply["status"], "ok", "{reply}");
    let system = socket.expect("system").await;
    assert_eq!(system.payload["message"], "Subscribed to PostgreSQL");
    reply["response"]["cursor"].as_str().unwrap().to_owned()
}

/// What comes up to the word that the past is over: each row's id, with its cursor; and that word.
async fn replayed(socket: &mut Socket) -> (Vec<(i64, String)>, Value) {
    let mut rows = Vec::new();
    loop {
        let next = timeout(DEADLINE, socket.next()).await.unwrap();
        match &*next.event {
            "postgres_changes" => {
                let data = &next.payload["data"];
                rows.push((id(data), text(&data["cursor"])));
            }
            "system" => return (rows, next.payload),
            other => panic!("{other}: {}", next.payload),
        }
    }
}

/// What comes until the past is over, and at least so many rows: what was not read before comes live.
async fn at_least(socket: &mut Socket, count: usize) -> (Vec<(i64, String)>, Value) {
    let (mut rows, word) = replayed(socket).await;
    while rows.len() < count {
        let data = socket.change().await;
        assert!(text(&data["cursor"]) > text(&word["cursor"]));
        rows.push((id(&data), text(&data["cursor"])));
    }
    (rows, word)
}

fn id(data: &Value) -> i64 {
    let record = data.get("record").unwrap_or(&data["old_record"]);
    record["id"].as_i64().unwrap_or_else(|| panic!("{data}"))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

fn ids(rows: &[(i64, String)]) -> Vec<i64> {
    rows.iter().map(|(id, _)| *id).collect()
}

async fn run(service: &Service, sql: &str) {
    service.admin().await.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

#[tokio::test]
async fn every_event_has_a_cursor_that_sorts_as_they_come() {
    let service = shared().await;
    let t = service.table("value text").await;
    for version in VERSIONS {
        let mut socket = service.connect(version, &anon()).await;
        let mut last = join(&mut socket, all_of(&t)).await;
        run(
            service,
            &format!("truncate {t}; insert into {t} values (1), (2); update {t} set value = 'x'"),
        )
        .await;
        run(service, &format!("delete from {t}")).await;
        for _ in 0..6 {
            let cursor = text(&socket.change().await["cursor"]);
            assert!(cursor > last, "{cursor} after {last}");
            last = cursor;
        }
    }
}

#[tokio::test]
async fn whoever_comes_back_is_sent_what_he_missed_and_goes_on() {
    let service = shared().await;
    let t = service.table("value text").await;
    for version in VERSIONS {
        run(service, &format!("truncate {t}")).await;
        let mut socket = service.connect(version, &anon()).await;
        join(&mut socket, all_of(&t)).await;
        run(service, &format!("insert into {t} values (1), (2), (3)")).await;
        let first = socket.change().await;
        drop(socket);
        // In the middle of a transaction, and what comes while nobody is there.
        run(service, &format!("insert into {t} values (4); insert into {t} values (5)")).await;
        let mut socket = service.connect(version, &anon()).await;
        let cursor = text(&first["cursor"]);
        let begins = join(&mut socket, from(&t, &cursor)).await;
        assert_eq!(begins, cursor);
        let (rows, word) = at_least(&mut socket, 4).await;
        assert_eq!(ids(&rows), [2, 3, 4, 5]);
        assert!(rows.iter().zip(&rows[1..]).all(|((_, one), (_, next))| one < next), "{rows:?}");
        assert_eq!((&word["kind"], &word["status"]), (&json!("caught_up"), &json!("ok")));
        assert!(text(&word["cursor"]) >= rows[1].1);
        run(service, &format!("insert into {t} values (6)")).await;
        assert_eq!(id(&socket.change().await), 6);
        socket.nothing_came().await;
    }
}

#[tokio::test]
async fn a_subscription_can_be_taken_up_where_it_began() {
    let service = shared().await;
    let t = service.table("value text").await;
    let mut socket = service.connect(Version::V2, &anon()).await;
    let begins = join(&mut socket, all_of(&t)).await;
    drop(socket);
    run(service, &format!("insert into {t} values (1)")).await;
    let mut socket = service.connect(Version::V2, &anon()).await;
    join(&mut socket, from(&t, &begins)).await;
    let (rows, word) = at_least(&mut socket, 1).await;
    assert_eq!((ids(&rows), &word["kind"]), (vec![1], &json!("caught_up")));
    let last = rows[0].1.clone().max(text(&word["cursor"]));
    let mut again = service.connect(Version::V2, &anon()).await;
    join(&mut again, from(&t, &last)).await;
    let (rows, word) = replayed(&mut again).await;
    assert_eq!((ids(&rows), &word["kind"]), (vec![], &json!("caught_up")));
}

#[tokio::test]
async fn the_past_is_shown_as_one_may_see_it_now() {
    let service = shared().await;
    let t = service.owned_table("note text").await;
    run(service, &format!("alter table {t} replica identity full")).await;
    let mut socket = service.connect(Version::V2, &user(ALICE)).await;
    let begins = join(&mut socket, all_of(&t)).await;
    run(
        service,
        &format!("insert into {t} (id, owner) values (1, '{ALICE}'), (2, '{BOB}'), (3, '{ALICE}'); update {t} set note = 'x'; delete from {t} where id in (1, 2)"),
    )
    .await;
    let live: Vec<(String, i64)> = events(&mut socket, 5).await;
    assert_eq!(live.len(), 5, "{live:?}");
    for (who, cursor) in [(ALICE, begins.clone()), (BOB, begins)] {
        let mut socket = service.connect(Version::V2, &user(who)).await;
        join(&mut socket, from(&t, &cursor)).await;
        let (rows, word) = replayed(&mut socket).await;
        assert_eq!(word["kind"], "caught_up");
        let expected: &[i64] = if who == ALICE { &[1, 3, 1, 3, 1] } else { &[2, 2, 2] };
        assert_eq!(ids(&rows), expected, "{who}");
    }
}

async fn events(socket: &mut Socket, count: usize) -> Vec<(String, i64)> {
    let mut events = Vec::new();
    for _ in 0..count {
        let data = socket.change().await;
        events.push((text(&data["type"]), id(&data)));
    }
    events
}

#[tokio::test]
async fn f55_a_cursor_that_is_none_or_of_another_log_or_of_the_future_is_one_gap() {
    let service = shared().await;
    let t = service.table("value text").await;
    let mut socket = service.connect(Version::V2, &anon()).await;
    let begins = join(&mut socket, all_of(&t)).await;
    let (place, epoch) = begins.rsplit_once('-').unwrap();
    let other = if epoch.starts_with('0') { "1" } else { "0" };
    for (cursor, reason) in [
        ("x".repeat(10_000), "malformed_cursor"),
        (String::new(), "malformed_cursor"),
        (format!("{place}-{other}{}", &epoch[1..]), "another_history"),
        (format!("FFFFFFFFFFFFFFFF-ffffffff-{epoch}"), "ahead_of_the_log"),
        (format!("{:016X}-00000000-{epoch}", 0), "history_expired"),
    ] {
        let mut socket = service.connect(Version::V2, &anon()).await;
        join(&mut socket, from(&t, &cursor)).await;
        let (rows, gap) = replayed(&mut socket).await;
        assert_eq!((ids(&rows), &gap["kind"]), (vec![], &json!("gap")), "{gap}");
        assert_eq!((&gap["reason"], &gap["status"]), (&json!(reason), &json!("error")));
        let (rows, word) = replayed(&mut socket).await;
        assert_eq!((ids(&rows), &word["kind"]), (vec![], &json!("caught_up")));
        run(service, &format!("insert into {t} values (1); delete from {t}")).await;
        socket.change().await;
        // From where it goes on, nothing is missing.
        let mut again = service.connect(Version::V2, &anon()).await;
        join(&mut again, from(&t, &text(&gap["to"]))).await;
        let (rows, word) = replayed(&mut again).await;
        assert_eq!((rows.len(), &word["kind"]), (2, &json!("caught_up")), "{gap}");
    }
}

#[tokio::test]
async fn what_is_no_longer_kept_is_a_gap() {
    let service = Service::with(|config| {
        config.replication.replay_window_bytes = 16 * 1024;
    })
    .await;
    let t = service.table("value text").await;
    let mut socket = service.connect(Version::V2, &anon()).await;
    let begins = join(&mut socket, all_of(&t)).await;
    for _ in 0..3 {
        run(&service, &format!("insert into {t} select i, repeat('x', 1000) from generate_series(1, 10) as i; truncate {t}")).await;
    }
    let mut last = String::new();
    for _ in 0..30 {
        last = text(&socket.change().await["cursor"]);
    }
    let mut late = service.connect(Version::V2, &anon()).await;
    join(&mut late, from(&t, &begins)).await;
    let (_, gap) = replayed(&mut late).await;
    assert_eq!((&gap["reason"], &gap["from"]), (&json!("history_expired"), &json!(begins)));
    assert!(text(&gap["to"]) >= last);
    // The newest is still there.
    let mut late = service.connect(Version::V2, &anon()).await;
    join(&mut late, from(&t, &last)).await;
    assert_eq!(replayed(&mut late).await.1["kind"], "caught_up");
}

#[tokio::test]
async fn after_a_restart_the_past_is_read_again_from_the_server() {
    let mut service = Service::with(Service::keep_all).await;
    let t = service.table("value text").await;
    let mut socket = service.connect(Version::V2, &anon()).await;
    join(&mut socket, all_of(&t)).await;
    run(&service, &format!("insert into {t} values (1), (2)")).await;
    let cursor = text(&socket.change().await["cursor"]);
    service.stop().await.unwrap();
    run(&service, &format!("insert into {t} values (3)")).await;
    service.start_again().await;
    let mut socket = service.connect(Version::V2, &anon()).await;
    join(&mut socket, from(&t, &cursor)).await;
    let (rows, word) = replayed(&mut socket).await;
    assert_eq!((ids(&rows), &word["kind"]), (vec![2, 3], &json!("caught_up")));
    run(&service, &format!("insert into {t} values (4)")).await;
    assert_eq!(id(&socket.change().await), 4);
    // Whoever comes without a cursor is owed nothing of it.
    let mut new = service.connect(Version::V2, &anon()).await;
    join(&mut new, all_of(&t)).await;
    new.nothing_came().await;
}

#[tokio::test]
async fn many_that_come_back_while_others_write_miss_nothing() {
    let service = shared().await;
    let t = service.table("value text").await;
    let mut socket = service.connect(Version::V2, &anon()).await;
    let begins = join(&mut socket, all_of(&t)).await;
    let admin = service.admin().await;
    run(service, &format!("create sequence {t}_ids")).await;
    let statement =
        format!("insert into {t} values (nextval('{t}_ids'), 'x'), (nextval('{t}_ids'), 'y')");
    let writing = async {
        for _ in 0..300 {
            admin.batch_execute(&statement).await.unwrap();
        }
    };
    let returning = async {
        let mut cursor = begins.clone();
        let mut seen = Vec::new();
        // Off and on, in the middle of what is written.
        while seen.len() < 600 {
            let mut socket = service.connect(Version::V2, &anon()).await;
            join(&mut socket, from(&t, &cursor)).await;
            let mut taken = 0;
            while taken < 40 && seen.len() < 600 {
                let next = timeout(DEADLINE, socket.next()).await.unwrap();
                match &*next.event {
                    "postgres_changes" => {
                        let data = &next.payload["data"];
                        assert!(text(&data["cursor"]) > cursor, "once, and in order");
                        cursor = text(&data["cursor"]);
                        seen.push(id(data));
                        taken += 1;
                    }
                    "system" => assert_eq!(next.payload["kind"], "caught_up", "{}", next.payload),
                    other => panic!("{other}"),
                }
            }
        }
        seen
    };
    let ((), seen) = tokio::join!(writing, returning);
    assert_eq!(seen, (1..=600).collect::<Vec<i64>>());
}

#[tokio::test]
async fn a_token_that_is_replaced_while_the_past_is_shown_loses_nothing() {
    let service = shared().await;
    let t = service.owned_table("note text").await;
    let mut socket = service.connect(Version::V2, &user(ALICE)).await;
    let begins = join(&mut socket, all_of(&t)).await;
    run(
        service,
        &format!(
            "insert into {t} (id, owner) select i, '{ALICE}' from generate_series(1, 5000) as i"
        ),
    )
    .await;
    drop(socket);
    let mut socket = service.connect(Version::V2, &user(ALICE)).await;
    join(&mut socket, from(&t, &begins)).await;
    let (mut seen, mut caught_up) = (Vec::new(), 0);
    while seen.len() < 5000 || caught_up == 0 {
        if seen.len() % 1000 == 10 {
            let reference = socket.reference();
            let token = json!({ "access_token": user(ALICE) });
            socket.send(&Value::Null, &reference, TOPIC, "access_token", &token).await;
        }
        let next = timeout(DEADLINE, socket.next()).await.unwrap();
        if next.event == "postgres_changes" {
            seen.push(id(&next.payload["data"]));
        }
        caught_up += usize::from(next.payload["kind"] == "caught_up");
    }
    assert_eq!(seen, (1..=5000).collect::<Vec<i64>>());
    assert_eq!(caught_up, 1);
}

/// A table whose rows the members of their room see, and the table of members: Alice, of room 1.
async fn rooms_with_alice(service: &Service) -> (String, String) {
    let t = service.table("room int").await;
    let members = format!("{t}_members");
    let sql = format!(
        "create table {members} (room int, member uuid, primary key (room, member));
        grant select on {members} to authenticated;
        alter publication supabase_realtime add table {members};
        alter table {t} replica identity full;
        alter table {t} enable row level security;
        create policy members on {t} to authenticated using (exists (
            select from {members} as m where m.room = {t}.room and m.member = auth.uid()));
        insert into {members} values (1, '{ALICE}')"
    );
    run(service, &sql).await;
    (t, members)
}

#[tokio::test]
async fn who_saw_a_row_before_its_transaction_changed_that_too_is_told_of_a_gap() {
    let service = shared().await;
    let (t, members) = rooms_with_alice(service).await;
    run(service, &format!("insert into {t} values (1, 1), (2, 1)")).await;
    let mut socket = service.connect(Version::V2, &user(ALICE)).await;
    let begins = join(&mut socket, all_of(&t)).await;
    run(service, &format!("delete from {t} where id = 1")).await;
    // Decided while she is a member.
    let first = socket.change().await;
    assert_eq!(id(&first), 1);
    run(service, &format!("begin; delete from {t}; delete from {members}; commit")).await;
    // What was not read when she comes back would be live, not past.
    service.read_all().await;
    for _ in 0..2 {
        let mut socket = service.connect(Version::V2, &user(ALICE)).await;
        join(&mut socket, from(&t, &begins)).await;
        // As of now nobody is a member, and the first deletion was nobody's doing but its own.
        let (rows, gap) = replayed(&mut socket).await;
        assert!(rows.is_empty(), "{gap}");
        assert_eq!((&gap["kind"], &gap["reason"]), (&json!("gap"), &json!("undecided")));
        assert!(text(&gap["from"]) >= text(&first["cursor"]) && gap["to"] != gap["from"]);
        assert_eq!(replayed(&mut socket).await.1["kind"], "caught_up");
    }
}

#[tokio::test]
async fn a_transaction_that_deletes_rows_alone_is_a_gap_for_nobody() {
    let service = shared().await;
    let (t, _members) = rooms_with_alice(service).await;
    let mut socket = service.connect(Version::V2, &user(ALICE)).await;
    join(&mut socket, all_of(&t)).await;
    run(service, &format!("insert into {t} values (1, 1), (2, 1), (3, 2)")).await;
    socket.change().await;
    let begins = text(&socket.change().await["cursor"]);
    run(service, &format!("delete from {t} where id < 3")).await;
    assert_eq!([id(&socket.change().await), id(&socket.change().await)], [1, 2]);
    for (who, seen) in [(ALICE, &[1, 2][..]), (BOB, &[])] {
        let mut socket = service.connect(Version::V2, &user(who)).await;
        join(&mut socket, from(&t, &begins)).await;
        let (rows, word) = replayed(&mut socket).await;
        assert_eq!(ids(&rows), seen);
        assert_eq!(word["kind"], "caught_up", "{word}");
    }
}

#[tokio::test]
async fn columns_are_known_after_a_restart_though_some_were_dropped_before() {
    let mut service = Service::with(Service::keep_all).await;
    let t = service.owned_table("gone text, note text, other text").await;
    run(&service, &format!("alter table {t} drop gone; alter table {t} rename other to more"))
        .await;
    let mut socket = service.connect(Version::V2, &user(ALICE)).await;
    let begins = join(&mut socket, all_of(&t)).await;
    run(&service, &format!("insert into {t} values (1, '{ALICE}', 'a', 'b')")).await;
    let live = socket.change().await["record"].take();
    assert_eq!(live, json!({ "id": 1, "owner": ALICE, "note": "a", "more": "b" }));
    service.stop().await.unwrap();
    service.start_again().await;
    let mut socket = service.connect(Version::V2, &user(ALICE)).await;
    join(&mut socket, from(&t, &begins)).await;
    assert_eq!(socket.change().await["record"], live);
}

#[tokio::test]
async fn a_list_and_the_changes_after_it_have_no_hole_between_them() {
    let service = shared().await;
    let t = service.table("value text").await;
    let admin = service.admin().await;
    let statement = format!("insert into {t} values (nextval('{t}_ids'))");
    run(service, &format!("create sequence {t}_ids")).await;
    let writing = async {
        for _ in 0..100 {
            admin.batch_execute(&statement).await.unwrap();
        }
    };
    let reading = async {
        let request = service.request(&format!("/rest/v1/{t}?select=id&order=id")).await;
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        let cursor = head.lines().find_map(|line| line.strip_prefix("feed-cursor: "));
        let rows: Vec<Value> = serde_json::from_str(body).unwrap();
        let mut seen: Vec<i64> = rows.iter().map(id_of).collect();
        let mut socket = service.connect(Version::V2, &anon()).await;
        join(&mut socket, from(&t, cursor.expect("where the list stands"))).await;
        while !(1..=100).all(|id| seen.contains(&id)) {
            let next = socket.next().await;
            if next.event == "postgres_changes" {
                seen.push(id(&next.payload["data"]));
            } else {
                assert_ne!(next.payload["kind"], "gap", "{}", next.payload);
            }
        }
    };
    tokio::join!(writing, reading);
}

fn id_of(row: &Value) -> i64 {
    row["id"].as_i64().unwrap()
}
