//! Rooms that are come back to: what the database said in them meanwhile, once each and in order, to
//! whoever may hear it now.

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::service::{
    ALICE, BOB, DEADLINE, Received, Service, Socket, VERSIONS, Version, anon, shared, token, user,
};

fn topic(name: &str) -> String {
    format!("come back {name} {}", uuid::Uuid::new_v4())
}

/// Says numbers to a room, each in a transaction of its own.
async fn say(service: &Service, topic: &str, private: bool, numbers: std::ops::Range<i64>) {
    let admin = service.admin().await;
    let sql = "select realtime.send(jsonb_build_object('n', $1::bigint), 'e', $2, $3)";
    for n in numbers {
        admin.execute(sql, &[&n, &topic, &private]).await.unwrap();
    }
}

async fn run(service: &Service, sql: &str) {
    service.admin().await.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// A channel's config with a cursor, if there is one.
fn config(private: bool, cursor: Option<&str>) -> Value {
    let broadcast = cursor.map_or(json!({}), |cursor| json!({ "cursor": cursor }));
    json!({ "config": { "private": private, "broadcast": broadcast } })
}

async fn join(socket: &mut Socket, topic: &str, config: &Value) {
    let reply = socket.join(&format!("realtime:{topic}"), config).await;
    assert_eq!(reply["status"], "ok", "{reply}");
}

/// A socket of its own in a public room.
async fn enter(service: &Service, version: Version, topic: &str, cursor: Option<&str>) -> Socket {
    let mut socket = service.connect(version, &anon()).await;
    join(&mut socket, topic, &config(false, cursor)).await;
    socket
}

fn number(message: &Received) -> i64 {
    let payload = &message.payload["payload"];
    payload["n"].as_i64().unwrap_or_else(|| panic!("{message:?}"))
}

fn cursor(message: &Received) -> String {
    let cursor = message.payload["meta"]["cursor"].as_str();
    cursor.unwrap_or_else(|| panic!("{message:?}")).to_owned()
}

/// The numbers of the broadcasts that come until there is a word, and the word.
async fn replayed(socket: &mut Socket) -> (Vec<i64>, Value) {
    let mut said = Vec::new();
    loop {
        let next = timeout(DEADLINE, socket.next()).await.unwrap();
        match &*next.event {
            "broadcast" => said.push(number(&next)),
            "system" => return (said, next.payload),
            other => panic!("{other}: {}", next.payload),
        }
    }
}

/// The same, and what comes then, up to this number.
async fn up_to(socket: &mut Socket, last: i64) -> (Vec<i64>, Value) {
    let (mut said, word) = replayed(socket).await;
    assert_eq!(word["kind"], "caught_up", "{word}");
    while said.last() != Some(&last) {
        said.push(number(&socket.expect("broadcast").await));
    }
    (said, word)
}

#[tokio::test]
async fn what_was_said_meanwhile_comes_once_and_in_order() {
    let service = shared().await;
    for version in VERSIONS {
        let topic = topic("public");
        let mut socket = enter(service, version, &topic, None).await;
        say(service, &topic, false, 1..4).await;
        let first = socket.expect("broadcast").await;
        assert_eq!(number(&first), 1);
        let second = socket.expect("broadcast").await;
        assert!(cursor(&second) > cursor(&first));
        assert_eq!(second.payload["meta"].as_object().unwrap().len(), 2, "{second:?}");
        drop(socket);
        say(service, &topic, false, 4..6).await;
        let mut socket = enter(service, version, &topic, Some(&cursor(&first))).await;
        let (said, word) = up_to(&mut socket, 5).await;
        assert_eq!((said, &word["kind"]), (vec![2, 3, 4, 5], &json!("caught_up")));
        say(service, &topic, false, 6..7).await;
        assert_eq!(number(&socket.expect("broadcast").await), 6);
        socket.nothing_came().await;
    }
}

#[tokio::test]
async fn what_clients_say_is_in_no_log_and_no_gap() {
    let service = shared().await;
    let topic = topic("spoken");
    let mut socket = enter(service, Version::V2, &topic, None).await;
    say(service, &topic, false, 1..2).await;
    let first = socket.expect("broadcast").await;
    drop(socket);
    let mut speaker = enter(service, Version::V2, &topic, None).await;
    let push = async |speaker: &mut Socket, n: i64| {
        let said = json!({ "type": "broadcast", "event": "e", "payload": { "n": n } });
        let reference = speaker.reference();
        let topic = format!("realtime:{topic}");
        speaker.send(&Value::Null, &reference, &topic, "broadcast", &said).await;
        // It was taken in once this is answered.
        speaker.heartbeat().await;
    };
    push(&mut speaker, 100).await;
    let mut socket = enter(service, Version::V2, &topic, Some(&cursor(&first))).await;
    let (said, word) = replayed(&mut socket).await;
    assert_eq!((said, &word["kind"]), (vec![], &json!("caught_up")));
    push(&mut speaker, 101).await;
    let heard = socket.expect("broadcast").await;
    assert_eq!((number(&heard), &heard.payload["meta"]["cursor"]), (101, &Value::Null));
}

#[tokio::test]
async fn rows_and_what_is_said_between_them_come_in_one_order() {
    let service = shared().await;
    let t = service.table("value text").await;
    let topic = topic("both");
    let both = async |n: i64| {
        let row = format!("insert into {t} values ({n}); ");
        let said = format!("select realtime.send('{{\"n\":{n}}}', 'e', '{topic}', false);");
        run(service, &[row, said].concat()).await;
    };
    let changes = |cursor: Option<&str>| {
        let mut element = json!({ "event": "*", "schema": "public", "table": t });
        if let Some(cursor) = cursor {
            element["cursor"] = cursor.into();
        }
        json!({ "config": { "postgres_changes": [element] } })
    };
    let mut socket = service.connect(Version::V2, &anon()).await;
    let reply = socket.join(&format!("realtime:{topic}"), &changes(None)).await;
    let begins = reply["response"]["cursor"].as_str().unwrap().to_owned();
    drop(socket);
    for n in 1..50 {
        both(n).await;
    }
    let mut socket = service.connect(Version::V2, &anon()).await;
    join(&mut socket, &topic, &changes(Some(&begins))).await;
    socket.expect("system").await;
    both(50).await;
    let (mut heard, mut words) = (Vec::new(), 0);
    while heard.len() < 100 {
        let next = timeout(DEADLINE, socket.next()).await.unwrap();
        match &*next.event {
            "broadcast" => heard.push(("said", number(&next))),
            "postgres_changes" => {
                heard.push(("row", next.payload["data"]["record"]["id"].as_i64().unwrap()));
            }
            "system" => {
                assert_eq!(next.payload["kind"], "caught_up");
                words += 1;
            }
            other => panic!("{other}"),
        }
    }
    let expected: Vec<_> = (1..=50).flat_map(|n| [("row", n), ("said", n)]).collect();
    assert_eq!(heard, expected);
    if words == 0 {
        assert_eq!(socket.expect("system").await.payload["kind"], "caught_up");
    }
    socket.nothing_came().await;
}

#[tokio::test]
async fn a_private_room_tells_its_past_to_whoever_may_hear_it_now() {
    let service = Service::start().await;
    run(
        &service,
        "create table members (who uuid, what text);
        grant select on members to authenticated;
        create policy members on realtime.messages for select to authenticated using (exists (
            select from public.members where who = auth.uid() and what = extension))",
    )
    .await;
    let admit = format!(
        "insert into members values ('{ALICE}', 'broadcast'), ('{ALICE}', 'presence'), \
         ('{BOB}', 'presence')"
    );
    run(&service, &admit).await;
    let topic = topic("private");
    let open = async |token: &str, cursor: Option<&str>| {
        let mut socket = service.connect(Version::V2, token).await;
        let mut config = config(true, cursor);
        config["config"]["presence"] = json!({ "enabled": true });
        let reply = socket.join(&format!("realtime:{topic}"), &config).await;
        (socket, reply)
    };
    let (mut alice, reply) = open(&user(ALICE), None).await;
    assert_eq!(reply["status"], "ok", "{reply}");
    alice.expect("presence_state").await;
    // A public room of the name is another one.
    say(&service, &topic, false, 100..101).await;
    say(&service, &topic, true, 1..4).await;
    let first = alice.expect("broadcast").await;
    assert_eq!(number(&first), 1);
    let from = cursor(&first);
    drop(alice);
    let silent = |message: &Received| {
        assert_eq!(message.event, "presence_state", "{message:?}");
    };
    let (mut alice, _) = open(&user(ALICE), Some(&from)).await;
    silent(&alice.next().await);
    let (said, word) = up_to(&mut alice, 3).await;
    assert_eq!((said, &word["kind"]), (vec![2, 3], &json!("caught_up")));
    // Whoever may only see who is there hears nothing of the past either.
    let (mut bob, _) = open(&user(BOB), Some(&from)).await;
    silent(&bob.next().await);
    let (said, word) = replayed(&mut bob).await;
    assert_eq!((said, &word["kind"]), (vec![], &json!("caught_up")));
    for other in [anon(), token(&json!({ "role": "authenticated" }))] {
        let (_, reply) = open(&other, Some(&from)).await;
        assert_eq!(reply["status"], "error", "{reply}");
    }
    run(&service, &format!("delete from members where who = '{ALICE}'")).await;
    let (_, reply) = open(&user(ALICE), Some(&from)).await;
    assert_eq!(reply["status"], "error", "{reply}");
}

#[tokio::test]
async fn a_token_that_is_replaced_while_the_past_is_told_loses_nothing() {
    let service = shared().await;
    for private in [false, true] {
        let topic = topic("refreshed");
        if private {
            let policy = format!(
                "create policy \"{topic}\" on realtime.messages for select to authenticated \
                 using (realtime.topic() = '{topic}')"
            );
            run(service, &policy).await;
        }
        let mut socket = service.connect(Version::V2, &user(ALICE)).await;
        join(&mut socket, &topic, &config(private, None)).await;
        say(service, &topic, private, 0..1).await;
        let begins = cursor(&socket.expect("broadcast").await);
        drop(socket);
        let sql = format!(
            "do $$ begin for i in 1..2000 loop \
             perform realtime.send(jsonb_build_object('n', i), 'e', '{topic}', {private}); \
             end loop; end $$"
        );
        run(service, &sql).await;
        let mut socket = service.connect(Version::V2, &user(ALICE)).await;
        join(&mut socket, &topic, &config(private, Some(&begins))).await;
        let (mut heard, mut words) = (Vec::new(), 0);
        while heard.len() < 2000 || words == 0 {
            if heard.len() % 500 == 10 {
                let reference = socket.reference();
                let newer = json!({ "access_token": user(ALICE) });
                let topic = format!("realtime:{topic}");
                socket.send(&Value::Null, &reference, &topic, "access_token", &newer).await;
            }
            let next = timeout(DEADLINE, socket.next()).await.unwrap();
            match &*next.event {
                "broadcast" => heard.push(number(&next)),
                "system" => {
                    assert_eq!(next.payload["kind"], "caught_up", "{}", next.payload);
                    words += 1;
                }
                other => panic!("{other}"),
            }
        }
        assert_eq!(heard, (1..=2000).collect::<Vec<i64>>(), "{private}");
        assert_eq!(words, 1);
    }
}

#[tokio::test]
async fn what_a_room_cannot_be_told_any_more_is_one_gap() {
    let service = shared().await;
    let topic = topic("gap");
    for bad in [json!("nonsense"), json!(""), json!(7)] {
        let mut socket = service.connect(Version::V2, &anon()).await;
        let config = json!({ "config": { "broadcast": { "cursor": bad } } });
        join(&mut socket, &topic, &config).await;
        let (said, gap) = replayed(&mut socket).await;
        assert_eq!((said.len(), &gap["kind"]), (0, &json!("gap")), "{gap}");
        assert_eq!(gap["reason"], "malformed_cursor");
        assert_eq!(replayed(&mut socket).await.1["kind"], "caught_up");
        say(service, &topic, false, 1..2).await;
        assert_eq!(number(&socket.expect("broadcast").await), 1);
        // From where it goes on, nothing is missing.
        let to = gap["to"].as_str().unwrap();
        let mut again = enter(service, Version::V2, &topic, Some(to)).await;
        assert_eq!(up_to(&mut again, 1).await.0, [1]);
    }
    // No cursor is none.
    let mut socket = service.connect(Version::V2, &anon()).await;
    join(&mut socket, &topic, &json!({ "config": { "broadcast": { "cursor": null } } })).await;
    socket.nothing_came().await;
}

#[tokio::test]
async fn a_session_finds_its_rooms_too_and_after_a_restart_a_cursor_does() {
    let mut service = Service::with(Service::keep_all).await;
    let topic = topic("session");
    let client = uuid::Uuid::new_v4();
    let come = async |service: &Service| {
        let path = format!("/realtime/v1/websocket?session={client}&apikey={}&vsn=2.0.0", anon());
        let mut socket = Socket::open(Version::V2, &service.url(&path), &[]).await.unwrap();
        join(&mut socket, &topic, &config(false, None)).await;
        socket
    };
    let mut socket = come(&service).await;
    assert_eq!(replayed(&mut socket).await.1["kind"], "session_started");
    drop(socket);
    say(&service, &topic, false, 1..3).await;
    let mut socket = come(&service).await;
    let (said, word) = up_to(&mut socket, 2).await;
    assert_eq!((said, &word["kind"]), (vec![1, 2], &json!("caught_up")));
    say(&service, &topic, false, 3..5).await;
    let third = socket.expect("broadcast").await;
    // The fourth is published after the third was: the answers are behind that.
    assert_eq!(number(&socket.expect("broadcast").await), 4);
    socket.heartbeat().await;
    socket.heartbeat().await;
    drop(socket);
    say(&service, &topic, false, 5..6).await;
    let mut socket = come(&service).await;
    let (said, _) = up_to(&mut socket, 5).await;
    assert!(said == [4, 5] || said == [5], "{said:?}");
    drop(socket);
    service.stop().await.unwrap();
    say(&service, &topic, false, 6..7).await;
    service.start_again().await;
    let mut socket = enter(&service, Version::V2, &topic, Some(&cursor(&third))).await;
    let (said, word) = up_to(&mut socket, 6).await;
    assert_eq!((said, &word["kind"]), (vec![4, 5, 6], &json!("caught_up")));
}
