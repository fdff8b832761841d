//! Who may enter the rooms of a kind of topic, said in one line of SQL.

use serde_json::{Value, json};

use crate::events::Stream;
use crate::service::{ALICE, BOB, Service, Socket, Version, anon, user};

/// Maps with members, of whom some may edit.
const MAPS: &str = "
    create table maps (id uuid primary key, owner uuid not null);
    create table members (
        map_id uuid references maps on delete cascade, member uuid, edits boolean, primary key (map_id, member)
    );
    grant all on maps, members to authenticated;
    alter table maps enable row level security;
    create function is_in(map uuid) returns boolean language sql stable security definer as $$
        select exists (select from members as m where m.map_id = map and m.member = auth.uid()) $$;
    create function edits(map uuid) returns boolean language sql stable security definer as $$
        select exists (select from members as m where m.map_id = map and m.member = auth.uid() and m.edits) $$;
    create policy mine on maps to authenticated using (owner = auth.uid() or is_in(id));
    alter publication supabase_realtime add table maps, members;
";

const MAP: &str = "11111111-1111-4111-8111-111111111111";
const OTHER: &str = "22222222-2222-4222-8222-222222222222";

async fn start() -> Service {
    let service = Service::start().await;
    let admin = service.admin().await;
    admin.batch_execute(MAPS).await.unwrap();
    let rows = format!(
        "insert into maps values ('{MAP}', '{ALICE}'), ('{OTHER}', '{ALICE}');
         insert into members values ('{MAP}', '{BOB}', false)"
    );
    admin.batch_execute(&rows).await.unwrap();
    service
}

async fn guard(service: &Service, arguments: &str) -> Result<(), String> {
    let sql = format!("select walcast.guard_topic({arguments})");
    let told = service.admin().await.batch_execute(&sql).await;
    told.map_err(|error| error.as_db_error().unwrap().message().to_owned())
}

/// Joins a private channel; the answer's status, or its reason.
async fn join(socket: &mut Socket, topic: &str) -> Result<Value, String> {
    let config = json!({ "config": { "private": true, "broadcast": { "ack": true } } });
    let join_ref = socket.send_join(&format!("realtime:{topic}"), &config).await;
    let reply = socket.reply(&join_ref).await.payload;
    match reply["status"].as_str() {
        Some("ok") => Ok(join_ref),
        _ => Err(reply["response"]["reason"].as_str().unwrap().to_owned()),
    }
}

async fn says(socket: &mut Socket, join_ref: &Value, topic: &str) -> Value {
    let reference = socket.reference();
    let payload = json!({ "type": "broadcast", "event": "hi", "payload": {} });
    socket.send(join_ref, &reference, &format!("realtime:{topic}"), "broadcast", &payload).await;
    socket.reply(&reference).await.payload["status"].clone()
}

#[tokio::test]
async fn who_sees_the_row_enters_its_room_and_nobody_else() {
    let service = start().await;
    guard(&service, "'map:{id}', reads => 'maps'").await.unwrap();
    let mut alice = service.connect(Version::V2, &user(ALICE)).await;
    let mut bob = service.connect(Version::V2, &user(BOB)).await;
    join(&mut alice, &format!("map:{MAP}")).await.unwrap();
    join(&mut alice, &format!("map:{OTHER}")).await.unwrap();
    guard(&service, "'v1.(é)+:{id}', reads => 'maps'").await.unwrap();
    join(&mut alice, &format!("v1.(é)+:{MAP}")).await.unwrap();
    join(&mut alice, &format!("v1x(é)+:{MAP}")).await.unwrap_err();
    join(&mut alice, &format!("v1.é:{MAP}")).await.unwrap_err();
    let room = join(&mut bob, &format!("map:{MAP}")).await.unwrap();
    assert_eq!(says(&mut bob, &room, &format!("map:{MAP}")).await, "ok");
    for topic in [
        format!("map:{OTHER}"),
        format!("map:{MAP}:x"),
        format!("xmap:{MAP}"),
        format!("map:{MAP}{MAP}"),
        format!("map:{}", &MAP[1..]),
        "map:".to_owned(),
        "map:{id}".to_owned(),
        "map:' or true or '".to_owned(),
    ] {
        let refused = join(&mut bob, &topic).await.unwrap_err();
        assert!(refused.starts_with("Unauthorized: "), "{topic}: {refused}");
    }
    let mut nobody = service.connect(Version::V2, &anon()).await;
    join(&mut nobody, &format!("map:{MAP}")).await.unwrap_err();
}

#[tokio::test]
async fn who_may_speak_is_said_apart() {
    let service = start().await;
    guard(&service, "'map:{id}', reads => 'maps', sends => 'public.edits'").await.unwrap();
    guard(&service, "'quiet.{id}', allows => 'public.is_in', sends => 'nobody'").await.unwrap();
    let mut bob = service.connect(Version::V1, &user(BOB)).await;
    let (map, quiet) = (format!("map:{MAP}"), format!("quiet.{MAP}"));
    let room = join(&mut bob, &map).await.unwrap();
    let silent = join(&mut bob, &quiet).await.unwrap();
    assert_eq!(says(&mut bob, &room, &map).await, "error");
    assert_eq!(says(&mut bob, &silent, &quiet).await, "error");
    service.admin().await.batch_execute("update members set edits = true").await.unwrap();
    let mut again = service.connect(Version::V1, &user(BOB)).await;
    let room = join(&mut again, &map).await.unwrap();
    assert_eq!(says(&mut again, &room, &map).await, "ok");
}

#[tokio::test]
async fn a_guard_is_replaced_and_taken_away_with_its_policies() {
    let service = start().await;
    let admin = service.admin().await;
    let policies = "select count(*) from pg_policies where policyname like 'walcast_guard_%'";
    guard(&service, "'map:{id}', reads => 'maps'").await.unwrap();
    guard(&service, "'map:{id}', reads => 'maps', sends => 'nobody'").await.unwrap();
    assert_eq!(admin.query_one(policies, &[]).await.unwrap().get::<_, i64>(0), 1);
    admin.batch_execute("select walcast.unguard_topic('map:{id}')").await.unwrap();
    assert_eq!(admin.query_one(policies, &[]).await.unwrap().get::<_, i64>(0), 0);
    admin.batch_execute("select walcast.unguard_topic('map:{id}')").await.unwrap_err();
    let mut alice = service.connect(Version::V2, &user(ALICE)).await;
    join(&mut alice, &format!("map:{MAP}")).await.unwrap_err();
}

#[tokio::test]
async fn a_guard_that_cannot_hold_is_refused_with_what_is_wrong() {
    let service = start().await;
    let admin = service.admin().await;
    admin.batch_execute("create table hidden (id int primary key)").await.unwrap();
    for (arguments, problem) in [
        ("'', reads => 'maps'", "1 to 246 bytes"),
        ("'map:{id}'", "either reads, a table, or allows"),
        (
            "'map:{id}', reads => 'maps', allows => 'public.is_in'",
            "either reads, a table, or allows",
        ),
        ("'map:{nope}', reads => 'maps'", "maps has no column nope"),
        ("'map{id}', reads => 'maps'", "not a whole one"),
        ("'map:{id}x', reads => 'maps'", "not a whole one"),
        ("'map:{id}{owner}', reads => 'maps'", "not a whole one"),
        ("'map:{id', reads => 'maps'", "not a whole one"),
        ("'map,:{id}', reads => 'maps'", "a comma, an asterisk"),
        ("'map:{id}', reads => 'hidden'", "authenticated may not select from public.hidden"),
        ("'map:{id}', allows => 'public.does_nothing'", "does not exist"),
        ("'map:{a}:{b}', allows => 'public.is_in'", "no boolean function of the topic's 2"),
        ("'map:{id}', reads => 'maps', sends => 'somebody'", "neither readers nor nobody"),
        ("'map:{id}', reads => 'maps', watches => '{nowhere}'", "no table 'nowhere' to watch"),
        ("'map:{id}', reads => 'maps', watches => '{public.members(nope)}'", "has no column nope"),
        (
            "'map:{id}', reads => 'maps', watches => '{\"public.members(map_id, member)\"}'",
            "names 2",
        ),
    ] {
        let refused = guard(&service, arguments).await.unwrap_err();
        assert!(refused.contains(problem), "{arguments}: {refused}");
    }
    let kept = "select (select count(*) from walcast.guards) + (select count(*) from pg_policies \
        where policyname like 'walcast_guard_%')";
    assert_eq!(admin.query_one(kept, &[]).await.unwrap().get::<_, i64>(0), 0);
    admin.batch_execute("set role authenticated").await.unwrap();
    let sql = "select walcast.guard_topic('map:{id}', reads => 'maps')";
    admin.batch_execute(sql).await.expect_err("who owns nothing guards nothing");
}

#[tokio::test]
async fn who_is_removed_hears_nothing_from_then_on_and_is_told() {
    let service = start().await;
    guard(&service, "'map:{id}', reads => 'maps', watches => '{public.members(map_id)}'")
        .await
        .unwrap();
    let (map, other) = (format!("map:{MAP}"), format!("map:{OTHER}"));
    let admin = service.admin().await;
    let add = format!("insert into members values ('{OTHER}', '{BOB}', false)");
    admin.batch_execute(&add).await.unwrap();
    let mut alice = service.connect(Version::V2, &user(ALICE)).await;
    let mut bob = service.connect(Version::V2, &user(BOB)).await;
    join(&mut alice, &map).await.unwrap();
    join(&mut bob, &map).await.unwrap();
    join(&mut bob, &other).await.unwrap();
    let send = |id: u32, topic: &str| {
        format!("select realtime.send('{{\"n\": {id}}}', 'said', '{topic}', true)")
    };
    admin.batch_execute(&send(1, &map)).await.unwrap();
    for socket in [&mut alice, &mut bob] {
        assert_eq!(socket.expect("broadcast").await.payload["payload"]["n"], 1);
    }
    let remove = format!("delete from members where map_id = '{MAP}' and member = '{BOB}'");
    admin.batch_execute(&remove).await.unwrap();
    admin.batch_execute(&send(2, &map)).await.unwrap();
    admin.batch_execute(&send(3, &other)).await.unwrap();
    assert_eq!(alice.expect("broadcast").await.payload["payload"]["n"], 2);
    // He hears the other room, and of this one that he has to go.
    let (mut heard, mut told) = (false, false);
    while !heard || !told {
        let frame = bob.next().await;
        match frame.event.as_str() {
            "broadcast" => {
                assert_eq!(
                    (frame.topic.as_str(), &frame.payload["payload"]["n"]),
                    (&*format!("realtime:{other}"), &json!(3))
                );
                heard = true;
            }
            "phx_close" => {
                assert_eq!(frame.topic, format!("realtime:{map}"));
                told = true;
            }
            _ => assert_ne!(frame.payload["payload"]["n"], 2),
        }
    }
    join(&mut bob, &map).await.unwrap_err();
}

#[tokio::test]
async fn an_event_stream_in_such_a_room_ends_and_comes_back_if_it_may() {
    let service = start().await;
    guard(&service, "'map:{id}', reads => 'maps', watches => '{public.members(map_id)}'")
        .await
        .unwrap();
    let query = format!("topics=map:{MAP}&private=true");
    let admin = service.admin().await;
    let mut streams = Vec::new();
    for who in [ALICE, BOB] {
        let bearer = format!("Bearer {}", user(who));
        let mut stream = Stream::ask(&service, &query, &[("authorization", &bearer)]).await;
        let cursor = stream.expect("ready").await.id.unwrap();
        streams.push((who, stream, cursor));
    }
    let change = format!(
        "delete from members where map_id = '{MAP}' and member = '{BOB}';
         select realtime.send('{{\"n\": 1}}', 'said', 'map:{MAP}', true)"
    );
    admin.batch_execute(&change).await.unwrap();
    for (who, mut stream, cursor) in streams {
        let close = stream.expect("close").await;
        assert_eq!(close.json()["reason"], "rights_changed");
        let back = format!("{query}&cursor={cursor}");
        let bearer = format!("Bearer {}", user(who));
        let mut back = Stream::ask(&service, &back, &[("authorization", &bearer)]).await;
        if who == BOB {
            assert_eq!(back.status, 403);
        } else {
            back.expect("ready").await;
            assert_eq!(back.expect("said").await.json()["n"], 1);
        }
    }
}

/// What a mapped table tells is for whoever may be in the room when it was committed.
#[tokio::test]
async fn events_declared_in_sql_are_for_those_whom_the_guard_lets_in() {
    let service = start().await;
    guard(&service, "'map:{id}', reads => 'maps', watches => '{public.members(map_id)}'")
        .await
        .unwrap();
    let admin = service.admin().await;
    let declare = "create table stories (id int primary key, map_id uuid not null, title text);
        alter table stories replica identity full;
        alter publication supabase_realtime add table stories;
        select walcast.map_table('stories', entity => 'story', topic => 'map:{map_id}')";
    admin.batch_execute(declare).await.unwrap();
    let map = format!("map:{MAP}");
    let mut alice = service.connect(Version::V2, &user(ALICE)).await;
    let mut bob = service.connect(Version::V2, &user(BOB)).await;
    join(&mut alice, &map).await.unwrap();
    join(&mut bob, &map).await.unwrap();
    let add = format!("insert into stories values (1, '{MAP}', 'for both')");
    admin.batch_execute(&add).await.unwrap();
    let remove = format!(
        "begin; delete from members where member = '{BOB}';
         insert into stories values (2, '{MAP}', 'for her'); commit"
    );
    admin.batch_execute(&remove).await.unwrap();
    let told = async |socket: &mut Socket| {
        let said = socket.expect("broadcast").await.payload;
        assert_eq!(said["event"], "story.created");
        said["payload"]["id"].clone()
    };
    assert_eq!((told(&mut alice).await, told(&mut alice).await), (json!(1), json!(2)));
    loop {
        let frame = bob.next().await;
        assert_ne!(frame.payload["payload"]["id"], 2);
        if frame.event == "phx_close" {
            break;
        }
    }
}
