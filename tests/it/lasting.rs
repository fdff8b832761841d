//! Clients that know nothing of cursors and name a session in their URL: what they missed comes,
//! however they came to miss it, and nothing of it to anybody else.

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::service::{
    ALICE, BOB, DEADLINE, Service, Socket, VERSIONS, Version, anon, shared, token, user,
};

const TOPIC: &str = "realtime:test";

fn all_of(table: &str) -> Value {
    json!([{ "event": "*", "schema": "public", "table": table }])
}

/// An id that no other test has.
fn session() -> String {
    uuid::Uuid::new_v4().to_string()
}

async fn open(service: &Service, version: Version, token: &str, session: &str) -> Socket {
    let vsn = version.vsn();
    let path = format!("/realtime/v1/websocket?session={session}&apikey={token}&vsn={vsn}");
    Socket::open(version, &service.url(&path), &[]).await.expect("a socket")
}

/// Joins as stock clients do.
async fn join(socket: &mut Socket, parameters: Value) {
    let reply = socket.join(TOPIC, &json!({ "config": { "postgres_changes": parameters } })).await;
    assert_eq!(reply["status"], "ok", "{reply}");
    let system = socket.expect("system").await;
    assert_eq!(system.payload["message"], "Subscribed to PostgreSQL");
}

/// Opens a socket and joins on all of a table.
async fn come(service: &Service, token: &str, session: &str, table: &str) -> Socket {
    let mut socket = open(service, Version::V2, token, session).await;
    join(&mut socket, all_of(table)).await;
    socket
}

/// What comes up to the next word: each row's id, and that word.
async fn replayed(socket: &mut Socket) -> (Vec<i64>, Value) {
    let mut rows = Vec::new();
    loop {
        let next = timeout(DEADLINE, socket.next()).await.unwrap();
        match &*next.event {
            "postgres_changes" => rows.push(id(&next.payload["data"])),
            "system" => return (rows, next.payload),
            other => panic!("{other}: {}", next.payload),
        }
    }
}

/// What comes until the past is over, and up to this row: what was not read before comes live.
async fn up_to(socket: &mut Socket, last: i64) -> (Vec<i64>, Value) {
    let (mut rows, word) = replayed(socket).await;
    while rows.last() != Some(&last) {
        rows.push(id(&socket.change().await));
    }
    (rows, word)
}

async fn begins(socket: &mut Socket) {
    let (rows, word) = replayed(socket).await;
    assert_eq!((rows.len(), &word["kind"]), (0, &json!("session_started")), "{word}");
    assert_eq!((&word["status"], &word["channel"]), (&json!("ok"), &json!("test")));
}

fn id(data: &Value) -> i64 {
    let record = data.get("record").unwrap_or(&data["old_record"]);
    record["id"].as_i64().unwrap_or_else(|| panic!("{data}"))
}

async fn run(service: &Service, sql: &str) {
    service.admin().await.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Waits until everything up to a change was published, and not only handed over.
async fn published(service: &Service, table: &str, change: &Value) {
    let cursor = change["cursor"].as_str().unwrap();
    let wait = async {
        loop {
            let answer = service.request(&format!("/rest/v1/{table}?select=id&limit=1")).await;
            let feed = answer.lines().find_map(|line| line.strip_prefix("feed-cursor: "));
            if feed.is_some_and(|feed| feed >= cursor) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    timeout(DEADLINE, wait).await.expect("published in time");
}

#[tokio::test]
async fn whoever_names_his_session_is_sent_what_he_missed() {
    let service = shared().await;
    let t = service.table("value text").await;
    for version in VERSIONS {
        run(service, &format!("truncate {t}")).await;
        let id_of_client = session();
        let mut socket = open(service, version, &anon(), &id_of_client).await;
        join(&mut socket, all_of(&t)).await;
        begins(&mut socket).await;
        run(service, &format!("insert into {t} values (1)")).await;
        assert_eq!(id(&socket.change().await), 1);
        drop(socket);
        run(service, &format!("insert into {t} values (2), (3)")).await;
        for _ in 0..2 {
            let mut socket = open(service, version, &anon(), &id_of_client).await;
            join(&mut socket, all_of(&t)).await;
            // What it got was never proven to have arrived.
            let (rows, word) = up_to(&mut socket, 3).await;
            assert_eq!((rows, &word["kind"]), (vec![1, 2, 3], &json!("caught_up")));
        }
        let mut socket = open(service, version, &anon(), &id_of_client).await;
        join(&mut socket, all_of(&t)).await;
        up_to(&mut socket, 3).await;
        run(service, &format!("insert into {t} values (4)")).await;
        assert_eq!(id(&socket.change().await), 4);
        socket.nothing_came().await;
    }
}

#[tokio::test]
async fn a_second_heartbeat_proves_what_came_before_the_answer_to_the_first() {
    let service = shared().await;
    let t = service.table("value text").await;
    for (proofs, again) in [(0, &[1, 2][..]), (1, &[1, 2]), (2, &[])] {
        run(service, &format!("truncate {t}")).await;
        let client = session();
        let mut socket = come(service, &anon(), &client, &t).await;
        begins(&mut socket).await;
        run(service, &format!("insert into {t} values (1), (2)")).await;
        socket.change().await;
        published(service, &t, &socket.change().await).await;
        for _ in 0..proofs {
            socket.heartbeat().await;
        }
        drop(socket);
        run(service, &format!("insert into {t} values (3)")).await;
        let mut socket = come(service, &anon(), &client, &t).await;
        let (rows, word) = up_to(&mut socket, 3).await;
        assert_eq!(rows, [again, &[3]].concat(), "{proofs}");
        assert_eq!(word["kind"], "caught_up");
    }
}

#[tokio::test]
async fn what_waits_for_its_place_is_not_taken_for_received() {
    let service = shared().await;
    let t = service.table("value text").await;
    let client = session();
    let mut socket = come(service, &anon(), &client, &t).await;
    begins(&mut socket).await;
    drop(socket);
    run(service, &format!("insert into {t} select generate_series(1, 3000)")).await;
    // While the past is shown, everything since is behind it.
    let mut socket = open(service, Version::V2, &anon(), &client).await;
    let payload = json!({ "config": { "postgres_changes": all_of(&t) } });
    socket.send_join(TOPIC, &payload).await;
    for _ in 0..3 {
        socket.heartbeat().await;
    }
    let came = socket.rest().await;
    let rows = came.iter().filter(|message| message.event == "postgres_changes");
    let mut seen: Vec<i64> = rows.map(|message| id(&message.payload["data"])).collect();
    drop(socket);
    run(service, &format!("insert into {t} values (3001)")).await;
    let mut socket = come(service, &anon(), &client, &t).await;
    let (rows, word) = up_to(&mut socket, 3001).await;
    assert_eq!(word["kind"], "caught_up");
    assert!(rows.is_sorted(), "{rows:?}");
    seen.extend(rows);
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, (1..=3001).collect::<Vec<i64>>());
}

#[tokio::test]
async fn an_id_is_nothing_to_anybody_else() {
    let service = shared().await;
    let t = service.owned_table("note text").await;
    let client = session();
    let mut socket = come(service, &user(ALICE), &client, &t).await;
    begins(&mut socket).await;
    drop(socket);
    let row = format!("insert into {t} (id, owner) values (1, '{ALICE}'), (2, '{BOB}')");
    run(service, &row).await;
    let of_alice = json!({ "role": "service_role", "sub": ALICE });
    for other in [user(BOB), anon(), token(&of_alice), token(&json!({ "role": "authenticated" }))] {
        let mut socket = come(service, &other, &client, &t).await;
        begins(&mut socket).await;
    }
    // Nor to herself, where she asks for something else.
    let mut socket = open(service, Version::V2, &user(ALICE), &client).await;
    let inserts = json!([{ "event": "INSERT", "schema": "public", "table": t }]);
    join(&mut socket, inserts).await;
    begins(&mut socket).await;
    // A newer token is no other user. Her rights are those of now.
    let newer = token(&json!({ "role": "authenticated", "sub": ALICE, "iat": 1 }));
    let mut socket = come(service, &newer, &client, &t).await;
    assert_eq!(up_to(&mut socket, 1).await.0, [1]);
    drop(socket);
    run(service, &format!("drop policy own on {t}")).await;
    let mut socket = come(service, &newer, &client, &t).await;
    let (rows, word) = replayed(&mut socket).await;
    assert_eq!((rows.len(), &word["kind"]), (0, &json!("caught_up")));
}

#[tokio::test]
async fn a_channel_that_became_another_users_is_taken_up_by_each_where_he_was() {
    let service = shared().await;
    let t = service.owned_table("note text").await;
    let client = session();
    let mut socket = come(service, &user(ALICE), &client, &t).await;
    begins(&mut socket).await;
    let reference = socket.reference();
    let payload = json!({ "access_token": user(BOB) });
    socket.send(&Value::Null, &reference, TOPIC, "access_token", &payload).await;
    assert_eq!(socket.expect("system").await.payload["message"], "Subscribed to PostgreSQL");
    run(service, &format!("insert into {t} (id, owner) values (1, '{ALICE}'), (2, '{BOB}')")).await;
    let row = socket.change().await;
    assert_eq!(id(&row), 2);
    published(service, &t, &row).await;
    socket.heartbeat().await;
    socket.heartbeat().await;
    drop(socket);
    let mut socket = come(service, &user(BOB), &client, &t).await;
    let (rows, word) = replayed(&mut socket).await;
    assert_eq!((rows.len(), &word["kind"]), (0, &json!("caught_up")), "{rows:?}");
    let mut socket = come(service, &user(ALICE), &client, &t).await;
    assert_eq!(up_to(&mut socket, 1).await.0, [1]);
}

#[tokio::test]
async fn of_two_clients_with_one_id_neither_misses_anything() {
    let service = shared().await;
    let t = service.table("value text").await;
    let client = session();
    let mut slow = come(service, &anon(), &client, &t).await;
    begins(&mut slow).await;
    let mut fast = come(service, &anon(), &client, &t).await;
    assert_eq!(replayed(&mut fast).await.1["kind"], "caught_up");
    run(service, &format!("insert into {t} values (1)")).await;
    published(service, &t, &fast.change().await).await;
    fast.heartbeat().await;
    fast.heartbeat().await;
    drop(slow);
    // It may be either of them.
    let mut back = come(service, &anon(), &client, &t).await;
    let (rows, word) = up_to(&mut back, 1).await;
    assert_eq!((rows, &word["kind"]), (vec![1], &json!("caught_up")));
}

#[tokio::test]
async fn whoever_leaves_begins_anew_and_whoever_gave_up_on_a_join_does_not() {
    let service = shared().await;
    let t = service.table("value text").await;
    for knows in [true, false] {
        run(service, &format!("truncate {t}")).await;
        let client = session();
        let mut socket = come(service, &anon(), &client, &t).await;
        begins(&mut socket).await;
        run(service, &format!("insert into {t} values (1)")).await;
        let change = socket.change().await;
        if knows {
            published(service, &t, &change).await;
            socket.heartbeat().await;
            socket.heartbeat().await;
        }
        let reference = socket.reference();
        socket.send(&Value::Null, &reference, TOPIC, "phx_leave", &json!({})).await;
        socket.reply(&reference).await;
        socket.expect("phx_close").await;
        join(&mut socket, all_of(&t)).await;
        if knows {
            begins(&mut socket).await;
        } else {
            assert_eq!(up_to(&mut socket, 1).await.0, [1]);
        }
    }
}

#[tokio::test]
async fn a_cursor_counts_more_than_what_the_server_remembers() {
    let service = shared().await;
    let t = service.table("value text").await;
    let client = session();
    let mut socket = come(service, &anon(), &client, &t).await;
    begins(&mut socket).await;
    run(service, &format!("insert into {t} values (1), (2)")).await;
    let cursor = socket.change().await["cursor"].take();
    drop(socket);
    let mut socket = open(service, Version::V2, &anon(), &client).await;
    let from = json!([{ "event": "*", "schema": "public", "table": t, "cursor": cursor }]);
    join(&mut socket, from).await;
    assert_eq!(up_to(&mut socket, 2).await.0, [2]);
}

#[tokio::test]
async fn after_a_restart_a_session_begins_anew_and_says_so() {
    let mut service = Service::start().await;
    let t = service.table("value text").await;
    let client = session();
    let mut socket = come(&service, &anon(), &client, &t).await;
    begins(&mut socket).await;
    service.stop().await.unwrap();
    service.start_again().await;
    let mut socket = come(&service, &anon(), &client, &t).await;
    begins(&mut socket).await;
    run(&service, &format!("insert into {t} values (1)")).await;
    assert_eq!(id(&socket.change().await), 1);
    // Or if nothing is to be remembered.
    let service = Service::with(|config| config.server.session_places_max = 0).await;
    let t = service.table("value text").await;
    for _ in 0..2 {
        begins(&mut come(&service, &anon(), &client, &t).await).await;
    }
}

#[tokio::test]
async fn what_is_no_longer_kept_is_a_gap_for_a_session_too() {
    let service = Service::with(|config| {
        config.replication.replay_window_bytes = 16 * 1024;
    })
    .await;
    let t = service.table("value text").await;
    let client = session();
    let mut socket = come(&service, &anon(), &client, &t).await;
    begins(&mut socket).await;
    drop(socket);
    let mut witness = service.subscribe(Version::V2, &anon(), all_of(&t)).await;
    for _ in 0..3 {
        run(&service, &format!("insert into {t} select i, repeat('x', 1000) from generate_series(1, 10) as i; truncate {t}")).await;
    }
    for _ in 0..30 {
        witness.change().await;
    }
    let mut socket = come(&service, &anon(), &client, &t).await;
    let (_, gap) = replayed(&mut socket).await;
    assert_eq!((&gap["kind"], &gap["reason"]), (&json!("gap"), &json!("history_expired")));
    assert_eq!(up_to_word(&mut socket).await, "caught_up");
}

async fn up_to_word(socket: &mut Socket) -> String {
    replayed(socket).await.1["kind"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn what_is_no_id_is_refused() {
    let service = shared().await;
    for bad in [String::new(), "short".into(), "x".repeat(129), "sixteen%20or%20more".into()] {
        let token = anon();
        let path = format!("/realtime/v1/websocket?apikey={token}&vsn=2.0.0&session={bad}");
        let refused = Socket::open(Version::V2, &service.url(&path), &[]).await.err();
        let (status, body) = refused.expect("no socket");
        assert_eq!(status, 400, "{bad}");
        assert!(body.contains("session is not") && !body.contains("sixteen"), "{body}");
    }
}
