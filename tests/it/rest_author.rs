//! Who wrote comes back through the feed, and what was asked twice is written once.

use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::rest::{Answer, Ask, ask};
use crate::service::{ALICE, BOB, Service, Socket, Version, anon, service_role, user};

const TOPIC: &str = "realtime:test";

const SCHEMA: &str = "
    create table notes (id bigint generated always as identity primary key, body text unique);
    alter publication supabase_realtime add table notes;
    grant all on notes to anon, authenticated, service_role;
    create function forge() returns void language plpgsql as $$ begin
        perform pg_logical_emit_message(true, 'walcast.origin', '{\"sub\":\"forged\"}');
        insert into notes (body) values ('forged');
    end $$;
    create table children (
        id bigint primary key, parent bigint references notes deferrable initially deferred);
    grant all on children to authenticated;
    create function late() returns trigger language plpgsql as $$ begin
        perform 1 from notes; return null;
    end $$;
    create constraint trigger late after insert on children deferrable initially deferred
        for each row execute function late();
    notify pgrst, 'reload schema';";

async fn world(change: impl FnOnce(&mut walcast::config::Config)) -> (Service, Client) {
    let service = Service::with(change).await;
    let admin = service.admin().await;
    admin.batch_execute(SCHEMA).await.unwrap();
    (service, admin)
}

async fn listener(service: &Service) -> Socket {
    let mut socket = service.connect(Version::V2, &service_role()).await;
    let all = json!([{ "event": "*", "schema": "public", "table": "notes" }]);
    socket.subscribe(TOPIC, all).await;
    socket
}

fn note(body: &str) -> Ask {
    ask("POST", "/notes").json(&json!({ "body": body }))
}

async fn bodies(admin: &Client) -> Vec<String> {
    let rows = admin.query("select body from notes order by id", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

fn replayed(answer: &Answer) -> bool {
    answer.header("idempotent-replayed") == Some("true")
}

#[tokio::test]
async fn a_row_written_here_comes_back_with_its_author() {
    let (service, _admin) = world(|_| ()).await;
    let mut socket = listener(&service).await;
    let named = note("a").with("x-connection-id", "c-1").with("x-mutation-id", "m-1");
    assert_eq!(named.bearing(&user(ALICE)).send(&service).await.status, 201);
    let expected = json!({ "sub": ALICE, "connection_id": "c-1", "mutation_id": "m-1" });
    assert_eq!(socket.change().await["origin"], expected);
    // Whoever has no name says nothing, and nobody says it for him.
    assert_eq!(note("b").bearing(&anon()).send(&service).await.status, 201);
    assert_eq!(socket.change().await.get("origin"), None);
    let forged = ask("POST", "/rpc/forge").bearing(&anon()).send(&service).await;
    assert_eq!(forged.status, 204, "{forged:?}");
    assert_eq!(socket.change().await.get("origin"), None);
    let forged = ask("POST", "/rpc/forge").bearing(&user(BOB)).send(&service).await;
    assert_eq!(forged.problem(), (409, "23505".into()), "it is there already");
    for (name, value) in [("x-mutation-id", ""), ("x-connection-id", &*"x".repeat(256))] {
        let answer = note("c").with(name, value).bearing(&user(ALICE)).send(&service).await;
        assert_eq!(answer.problem(), (400, "22023".into()), "{name}");
    }
}

#[tokio::test]
async fn who_wrote_is_kept_back_where_the_settings_say_so() {
    let (service, _admin) = world(|config| config.rest.tell_author = false).await;
    let mut socket = listener(&service).await;
    let named = note("a").with("x-mutation-id", "m-1");
    assert_eq!(named.bearing(&user(ALICE)).send(&service).await.status, 201);
    assert_eq!(socket.change().await["origin"], json!({ "mutation_id": "m-1" }));
}

#[tokio::test]
async fn the_same_key_writes_once_and_is_answered_the_same() {
    let (service, admin) = world(|_| ()).await;
    let keyed = |body: &str, name: &str| {
        note(body).with(name, "k-1").with("prefer", "return=representation")
    };
    let send = async |ask: Ask, token: &str| ask.bearing(token).send(&service).await;
    let (alice, bob) = (user(ALICE), user(BOB));
    let first = send(keyed("a", "idempotency-key"), &alice).await;
    assert_eq!((first.status, replayed(&first)), (201, false), "{first:?}");
    for name in ["idempotency-key", "x-mutation-id"] {
        let again = send(keyed("a", name), &alice).await;
        assert_eq!((again.status, &*again.body), (201, &*first.body), "{again:?}");
        assert!(replayed(&again) && again.header("feed-lsn").is_some());
    }
    let other = send(keyed("b", "idempotency-key"), &alice).await;
    assert_eq!(other.problem(), (422, "22023".into()));
    // Somebody else's key is another key, and one that came to nothing is free.
    let taken = send(keyed("a", "idempotency-key"), &bob).await;
    assert_eq!(taken.problem(), (409, "23505".into()));
    assert_eq!(send(keyed("b", "idempotency-key"), &bob).await.status, 201);
    assert_eq!(send(keyed("c", "idempotency-key"), &service_role()).await.status, 201);
    assert_eq!(bodies(&admin).await, ["a", "b", "c"]);
    let nobody = send(keyed("d", "idempotency-key"), &anon()).await;
    assert_eq!(nobody.problem(), (400, "22023".into()));
    for _ in 0..2 {
        // His id is told, and is no key.
        let body = format!("d{}", bodies(&admin).await.len());
        assert_eq!(send(keyed(&body, "x-mutation-id"), &anon()).await.status, 201);
    }
    assert_eq!(bodies(&admin).await.len(), 5);
    let old = "update walcast.requests set made_at = made_at - interval '2 days'";
    admin.batch_execute(old).await.unwrap();
    let over = send(keyed("e", "idempotency-key"), &alice).await;
    assert_eq!((over.status, replayed(&over)), (201, false));
}

#[tokio::test]
async fn a_key_that_is_asked_for_many_times_at_once_writes_once() {
    let (service, admin) = world(|_| ()).await;
    let token = user(ALICE);
    let sent = (0..8).map(|_| note("a").with("idempotency-key", "k").bearing(&token));
    let answers =
        futures_util::future::join_all(sent.map(async |ask: Ask| ask.send(&service).await)).await;
    assert!(answers.iter().all(|answer| answer.status == 201), "{answers:?}");
    assert_eq!(answers.iter().filter(|answer| !replayed(answer)).count(), 1);
    assert_eq!(bodies(&admin).await, ["a"]);
}

#[tokio::test]
async fn what_runs_at_the_commit_of_a_keyed_write_runs_as_the_caller() {
    let (service, _admin) = world(|_| ()).await;
    let child = |id: i64, parent: i64| {
        let row = json!({ "id": id, "parent": parent });
        ask("POST", "/children").json(&row).with("idempotency-key", &id.to_string())
    };
    assert_eq!(note("a").bearing(&user(ALICE)).send(&service).await.status, 201);
    let written = child(1, 1).bearing(&user(ALICE)).send(&service).await;
    assert_eq!(written.status, 201, "{written:?}");
    for _ in 0..2 {
        // What failed as it committed was not written, and its key was not kept.
        let refused = child(2, 77).bearing(&user(ALICE)).send(&service).await;
        assert_eq!(refused.problem(), (409, "23503".into()));
    }
}

#[tokio::test]
async fn without_a_place_for_keys_only_who_needs_one_is_refused() {
    let (service, admin) = world(|_| ()).await;
    admin.batch_execute("drop function walcast.end_request, walcast.begin_request").await.unwrap();
    let token = user(ALICE);
    let needs = note("a").with("idempotency-key", "k").bearing(&token).send(&service).await;
    assert_eq!(needs.problem(), (501, "0A000".into()));
    let tells = note("a").with("x-mutation-id", "k").bearing(&token).send(&service).await;
    assert_eq!(tells.status, 201, "{tells:?}");
    assert_eq!(bodies(&admin).await, ["a"]);
}

#[tokio::test]
async fn a_write_is_answered_when_it_is_published_if_that_is_preferred() {
    let (service, admin) = world(|config| config.rest.feed_wait_timeout_ms = 60_000).await;
    let mut socket = listener(&service).await;
    let waiting = |body: &str| note(body).with("prefer", "wait=feed").bearing(&user(ALICE));
    for number in 0..20 {
        let answer = waiting(&format!("w{number}")).send(&service).await;
        assert_eq!(answer.header("preference-applied"), Some("wait=feed"), "{answer:?}");
        let position = answer.header("feed-lsn").unwrap();
        let is_past = "select $1::text::pg_lsn <= pg_current_wal_flush_lsn()";
        assert!(admin.query_one(is_past, &[&position]).await.unwrap().get::<_, bool>(0));
        // It is on its way already: nothing else is.
        assert_eq!(socket.change().await["record"]["body"], json!(format!("w{number}")));
    }
    let again = waiting("w20").with("idempotency-key", "k");
    assert_eq!(again.send(&service).await.status, 201);
    let again = waiting("w20").with("idempotency-key", "k").send(&service).await;
    assert!(replayed(&again));
    assert_eq!(again.header("preference-applied"), Some("wait=feed"));
    // A reader has nothing to wait for.
    let read: Value = ask("GET", "/notes?select=body&limit=1")
        .with("prefer", "wait=feed")
        .bearing(&user(ALICE))
        .send(&service)
        .await
        .json();
    assert_eq!(read, json!([{ "body": "w0" }]));
}
