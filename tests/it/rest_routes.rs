//! Paths of an application's own, declared in SQL: seed 002's presence, and whoever wants more of
//! a path than it says.

use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_postgres::Client;

use crate::rest::{Answer, Ask, ask_at};
use crate::service::{ALICE, BOB, DEADLINE, SECRET, Service, now, sign, user};

const SCHEMA: &str = "
    create schema reading;
    grant usage on schema reading to anon, authenticated;
    create type reading.presence_status as enum ('online', 'away', 'offline');
    create table reading.user_presence (
        user_id uuid primary key,
        status reading.presence_status not null default 'offline',
        device_type text not null default 'web',
        last_seen_at timestamptz not null default now());
    alter table reading.user_presence enable row level security;
    grant select, insert, update, delete on reading.user_presence to authenticated;
    create policy up_r on reading.user_presence for select to authenticated using (true);
    create policy up_u on reading.user_presence for update to authenticated
        using (user_id = auth.uid()) with check (user_id = auth.uid());
    create policy up_d on reading.user_presence for delete to authenticated
        using (user_id = auth.uid());
    create table reading.notes (
        id text primary key, owner text not null, n int not null default 0,
        org text not null default '');
    grant select, insert, update, delete on reading.notes to anon, authenticated;
    create function reading.note(id text default 'a', lim int default 5)
        returns setof reading.notes language sql stable as
        'select * from reading.notes as n where n.id = note.id order by n.id limit lim';
    create function reading.move(id text, n int default 1) returns text language sql as
        'update reading.notes set n = move.n where notes.id = move.id;
         select format(''%s/%s'', id, n)';

    select walcast.route('GET', '/api/presence', 'GET /user_presence?user_id=eq.{claims.sub}',
        profile => 'reading', accept => 'application/vnd.pgrst.object+json');
    select walcast.route('PATCH', '/api/presence', 'PATCH /user_presence?user_id=eq.{claims.sub}',
        profile => 'reading', prefer => 'return=representation',
        accept => 'application/vnd.pgrst.object+json');
    select walcast.route('DELETE', '/api/presence', 'PATCH /user_presence?user_id=eq.{claims.sub}',
        profile => 'reading', body => '{\"status\": \"offline\"}');
    select walcast.route('GET', '/api/presence/online', 'GET /user_presence?status=eq.online\
&select=user_id,status,device_type,last_seen_at&order=last_seen_at.desc', profile => 'reading');
    select walcast.route('GET', '/api/notes/{id}', 'GET /notes?id=eq.{id}&select=id,n',
        profile => 'reading');
    select walcast.route('GET', '/api/mine', 'GET /notes?owner=eq.{claims.app_metadata.name}\
&order=id&select=id', profile => 'reading');
    select walcast.route('POST', '/api/notes', 'POST /notes',
        profile => 'reading', prefer => 'return=representation', body => '{\"owner\": \"route\"}');
    select walcast.route('GET', '/api/call/{id}', 'GET /rpc/note?id={id}', profile => 'reading');
    select walcast.route('POST', '/api/move/{id}', 'POST /rpc/move?id={id}', profile => 'reading');
";

async fn world() -> (Service, Client) {
    let schemas = vec!["public".to_owned(), "reading".into()];
    let service = Service::with(|config| config.rest.schemas = schemas).await;
    let admin = service.admin().await;
    admin.batch_execute(SCHEMA).await.unwrap();
    let rows = format!(
        "insert into reading.user_presence values
            ('{ALICE}', 'online', 'web', '2026-01-01T10:00Z'),
            ('{BOB}', 'online', 'mobile', '2026-01-01T11:00Z'),
            (gen_random_uuid(), 'away', 'web', '2026-01-01T12:00Z');
         insert into reading.notes values
            ('a', 'one', 1), ('b,c', 'two', 2), ('x)\"(', 'a.b(,\")', 3), ('eq.a', 'one', 4),
            ('a/b', 'two', 5), ('ü %', 'two', 6);"
    );
    admin.batch_execute(&rows).await.unwrap();
    (service, admin)
}

/// Of a user whose name is this.
fn named(name: &Value) -> String {
    let claims = json!({
        "role": "authenticated", "sub": ALICE, "exp": now() + 60, "app_metadata": { "name": name },
    });
    sign(&claims, SECRET)
}

async fn answer(service: &Service, ask: Ask) -> Answer {
    ask.bearing(&user(ALICE)).send(service).await
}

#[tokio::test]
async fn a_presence_is_read_changed_and_ended_by_its_owner() {
    let (service, admin) = world().await;
    let own = answer(&service, ask_at("GET", "/api/presence")).await;
    assert_eq!(own.status, 200, "{own:?}");
    assert_eq!((&own.json()["user_id"], &own.json()["status"]), (&json!(ALICE), &json!("online")));

    let away = json!({ "status": "away", "device_type": "mobile" });
    let changed = answer(&service, ask_at("PATCH", "/api/presence").json(&away)).await;
    assert_eq!((changed.status, &changed.json()["status"]), (200, &json!("away")), "{changed:?}");
    assert!(changed.header("feed-lsn").is_some());
    // Whoever it says it is, it is the token's.
    let forged = json!({ "status": "away", "user_id": BOB });
    let forged = answer(&service, ask_at("PATCH", "/api/presence").json(&forged)).await;
    assert_eq!(forged.problem(), (403, "42501".into()));
    let wrong = json!({ "status": "gone" });
    let wrong = answer(&service, ask_at("PATCH", "/api/presence").json(&wrong)).await;
    assert_eq!(wrong.problem(), (400, "22P02".into()));

    let online = answer(&service, ask_at("GET", "/api/presence/online")).await;
    let only = json!([{ "user_id": BOB, "status": "online", "device_type": "mobile",
        "last_seen_at": "2026-01-01T11:00:00+00:00" }]);
    assert_eq!((online.status, online.json()), (200, only));

    // The body says what DELETE means here, whatever else the client sends.
    let end = ask_at("DELETE", "/api/presence").json(&json!({ "status": "online" }));
    let ended = answer(&service, end).await;
    assert_eq!((ended.status, &*ended.body), (204, ""));
    let sql = "select user_id::text, status::text from reading.user_presence \
               where device_type = 'mobile' order by 1";
    let rows = admin.query(sql, &[]).await.unwrap();
    let rows: Vec<(&str, &str)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let mut expected = [(ALICE, "offline"), (BOB, "online")];
    expected.sort_unstable();
    assert_eq!(rows, expected);
}

#[tokio::test]
async fn without_a_token_there_is_no_presence() {
    let (service, _admin) = world().await;
    for (method, path) in [
        ("GET", "/api/presence"),
        ("PATCH", "/api/presence"),
        ("DELETE", "/api/presence"),
        ("GET", "/api/presence/online"),
    ] {
        let ask = ask_at(method, path);
        let ask = if method == "PATCH" { ask.json(&json!({ "status": "away" })) } else { ask };
        let refused = ask.send(&service).await;
        assert_eq!(refused.problem(), (401, "42501".into()), "{method} {path}");
        assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    }
    let expired = sign(&json!({ "role": "authenticated", "exp": now() - 60 }), SECRET);
    let refused = ask_at("GET", "/api/presence").bearing(&expired).send(&service).await;
    assert_eq!(refused.problem(), (401, "PGRST303".into()));
    let nameless = sign(&json!({ "role": "authenticated", "exp": now() + 60 }), SECRET);
    let refused = ask_at("GET", "/api/presence").bearing(&nameless).send(&service).await;
    assert_eq!(refused.problem(), (403, "42501".into()));
}

#[tokio::test]
async fn a_newest_comes_first_and_a_client_may_ask_for_less() {
    let (service, _admin) = world().await;
    let ids = async |query: &str| {
        let found = answer(&service, ask_at("GET", &format!("/api/presence/online{query}"))).await;
        assert_eq!(found.status, 200, "{found:?}");
        let rows = found.json();
        let rows = rows.as_array().unwrap();
        rows.iter().map(|row| row["user_id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ids("").await, [BOB, ALICE]);
    assert_eq!(ids("?limit=1").await, [BOB]);
    assert_eq!(ids("?device_type=eq.web").await, [ALICE]);
    for query in ["?select=*", "?order=user_id", "?status=neq.online", "?%73elect=*"] {
        let path = format!("/api/presence/online{query}");
        let refused = answer(&service, ask_at("GET", &path)).await;
        assert_eq!(refused.problem(), (400, "PGRST100".into()), "{query}");
    }
    // With conditions of any kind there are only fewer.
    assert_eq!(ids("?or=(status.eq.away,status.eq.online)").await, [BOB, ALICE]);
}

#[tokio::test]
async fn a_segment_is_a_value_whatever_it_looks_like() {
    let (service, _admin) = world().await;
    let one = async |path: &str| answer(&service, ask_at("GET", path)).await;
    for (segment, expected) in [
        ("a", json!([{ "id": "a", "n": 1 }])),
        ("b,c", json!([{ "id": "b,c", "n": 2 }])),
        ("b%2Cc", json!([{ "id": "b,c", "n": 2 }])),
        ("x)%22(", json!([{ "id": "x)\"(", "n": 3 }])),
        ("eq.a", json!([{ "id": "eq.a", "n": 4 }])),
        ("a%2Fb", json!([{ "id": "a/b", "n": 5 }])),
        ("%C3%BC%20%25", json!([{ "id": "ü %", "n": 6 }])),
        ("neq.a", json!([])),
        ("a%26id=neq.a", json!([])),
        ("a%26or=(n.gt.0)", json!([])),
        ("a&or=(n.gt.0)", json!([])),
        ("a'%20or%20''='", json!([])),
        ("*", json!([])),
        ("a+b", json!([])),
        ("..", json!([])),
        ("null", json!([])),
    ] {
        let found = one(&format!("/api/notes/{segment}")).await;
        assert_eq!((found.status, found.json()), (200, expected), "{segment}");
    }
    let refused = one("/api/notes/%00").await;
    assert_eq!(refused.problem(), (400, "PGRST100".into()));
    for path in ["/api/notes/", "/api/notes/%ff", "/api/notes/a/b", "/api/none"] {
        assert_eq!(one(path).await.problem(), (404, "PGRST125".into()), "{path}");
    }
    // What is ours stays ours.
    assert_eq!(one("/api/ping").await.status, 200);
    assert_eq!(one("/api/broadcast").await.status, 405);
}

#[tokio::test]
async fn a_claim_is_a_value_whatever_it_looks_like() {
    let (service, _admin) = world().await;
    for (name, expected) in [
        (json!("one"), Ok(json!([{ "id": "a" }, { "id": "eq.a" }]))),
        (json!("a.b(,\")"), Ok(json!([{ "id": "x)\"(" }]))),
        (json!("one&or=(n.gt.0)"), Ok(json!([]))),
        (json!("neq.one"), Ok(json!([]))),
        (json!(7), Ok(json!([]))),
        (json!(""), Ok(json!([]))),
        (json!("\0"), Err((400, "PGRST100".to_owned()))),
        (json!(null), Err((403, "42501".into()))),
        (json!(["one"]), Err((403, "42501".into()))),
        (json!(true), Err((403, "42501".into()))),
    ] {
        let found = ask_at("GET", "/api/mine").bearing(&named(&name)).send(&service).await;
        match expected {
            Ok(rows) => assert_eq!((found.status, found.json()), (200, rows), "{name}"),
            Err(problem) => assert_eq!(found.problem(), problem, "{name}"),
        }
    }
}

#[tokio::test]
async fn keys_of_a_route_are_not_the_clients() {
    let (service, admin) = world().await;
    let sent = json!({ "id": "new", "owner": "me", "n": 5 });
    let made = answer(&service, ask_at("POST", "/api/notes").json(&sent)).await;
    let expected = json!([{ "id": "new", "owner": "route", "n": 5, "org": "" }]);
    assert_eq!((made.status, made.json()), (201, expected));
    for (query, sent) in [
        ("", json!([{ "id": "x", "owner": "me" }])),
        ("", json!("x")),
        ("?columns=id", json!({ "id": "x", "owner": "me" })),
    ] {
        let ask = ask_at("POST", &format!("/api/notes{query}")).json(&sent);
        assert_eq!(answer(&service, ask).await.status, 400, "{query} {sent}");
    }
    let ask = ask_at("POST", "/api/notes").text("text/csv", "id,owner\nx,me");
    assert_eq!(answer(&service, ask).await.problem(), (400, "PGRST102".into()));
    let row = admin.query_one("select count(*) from reading.notes where owner = 'me'", &[]).await;
    assert_eq!(row.unwrap().get::<_, i64>(0), 0);
}

#[tokio::test]
async fn functions_have_paths_too() {
    let (service, _admin) = world().await;
    let call = async |path: &str| answer(&service, ask_at("GET", path)).await;
    let found = call("/api/call/b,c").await;
    assert_eq!((found.status, &found.json()[0]["n"]), (200, &json!(2)), "{found:?}");
    // Not the default with a filter.
    assert_eq!(call("/api/call/eq.a").await.problem(), (400, "PGRST100".into()));
    assert_eq!(call("/api/call/a?id=b").await.problem(), (400, "PGRST100".into()));
    assert_eq!(call("/api/call/a?lim=0").await.json(), json!([]));
    for (segment, expected) in [("a", "a/9"), ("eq.a", "eq.a/9"), ("%22,%22n%22:1", "\",\"n\":1/9")]
    {
        let ask = ask_at("POST", &format!("/api/move/{segment}"));
        let moved = answer(&service, ask.json(&json!({ "n": 9, "id": "z" }))).await;
        assert_eq!((moved.status, moved.json()), (200, json!(expected)), "{moved:?}");
    }
    let moved = answer(&service, ask_at("POST", "/api/move/a")).await;
    assert_eq!((moved.status, moved.json()), (200, json!("a/1")));
}

#[tokio::test]
async fn a_path_answers_the_methods_it_has() {
    let (service, _admin) = world().await;
    let refused = answer(&service, ask_at("PUT", "/api/presence")).await;
    assert_eq!(refused.problem(), (405, "PGRST117".into()));
    assert_eq!(refused.header("allow"), Some("DELETE, GET, HEAD, PATCH"));
    let told = answer(&service, ask_at("OPTIONS", "/api/notes/a")).await;
    assert_eq!((told.status, told.header("allow")), (200, Some("GET, HEAD")));
    let head = answer(&service, ask_at("HEAD", "/api/notes/a")).await;
    assert_eq!((head.status, &*head.body), (200, ""));
    assert_eq!(head.header("content-range"), Some("0-0/*"));
    // Where a gateway would have them.
    let found = answer(&service, ask_at("GET", "/realtime/v1/api/notes/a")).await;
    assert_eq!(found.status, 200);
    let preflight = ask_at("OPTIONS", "/api/presence")
        .with("origin", "https://app.example")
        .with("access-control-request-method", "PATCH");
    assert_eq!(answer(&service, preflight).await.status, 204);
}

#[tokio::test]
async fn a_route_is_there_when_it_was_declared_and_gone_when_taken_back() {
    let (service, admin) = world().await;
    let status = async || answer(&service, ask_at("GET", "/api/late")).await.status;
    let until = async |expected: u16| {
        let wait = async { while status().await != expected {} };
        timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{expected} in time"));
    };
    assert_eq!(status().await, 404);
    let declare = "select walcast.route('GET', '/api/late', 'GET /notes', profile => 'reading')";
    admin.batch_execute(declare).await.unwrap();
    assert_eq!(status().await, 200);
    // Without a word to anybody.
    let update = "update walcast.routes set target = 'GET /none' where path = '/api/late'";
    admin.batch_execute(update).await.unwrap();
    until(404).await;
    admin
        .batch_execute(
            "update walcast.routes set target = 'GET /notes'
                         where path = '/api/late'",
        )
        .await
        .unwrap();
    until(200).await;
    admin.batch_execute("delete from walcast.routes where path = '/api/late'").await.unwrap();
    until(404).await;
    // A row that means nothing takes no other with it; nor does a table that nobody can read.
    let wrong = "insert into walcast.routes (method, path, target) values
        ('GET', '/api/wrong', 'GET /t?a=eq.{x}'), ('GET', '/api/late', 'GET /notes')";
    admin.batch_execute(wrong).await.unwrap();
    admin
        .batch_execute("update walcast.routes set profile = 'reading' where path = '/api/late'")
        .await
        .unwrap();
    until(200).await;
    let gone = answer(&service, ask_at("GET", "/api/wrong")).await;
    assert_eq!(gone.problem(), (404, "PGRST125".into()));
    admin.batch_execute("begin; lock table walcast.routes; notify pgrst").await.unwrap();
    assert_eq!(status().await, 200);
    admin.batch_execute("commit").await.unwrap();
    admin.batch_execute("drop table walcast.routes; notify pgrst").await.unwrap();
    until(404).await;
    let rows = answer(&service, ask_at("GET", "/rest/v1/notes").with("accept-profile", "reading"));
    assert_eq!(rows.await.status, 200);
}
