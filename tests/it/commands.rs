//! Events of clients that write: as the caller, once, and with the place of the commit.

use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use walcast::auth::Claims;
use walcast::command::{Call, Caller, Commander, Given, Outcome};
use walcast::config;
use walcast::db::logins::Logins;
use walcast::feed::{Declarations, Writes};
use walcast::profile::{Function, Profile};
use walcast::rest::run::Runner;

use crate::cluster::Database;
use crate::rest_schema::feed;
use crate::service::{ALICE, BOB, DEADLINE};

/// Stories: who made one sees it and changes it; others see those that are shared.
const APP: &str = r#"
    create schema app;
    create table app.stories (
        id uuid primary key default gen_random_uuid(), map_id text not null default 'm1', title text not null,
        size numeric check (size >= 0), shared boolean not null default false,
        made_by uuid not null default auth.uid(), updated_at timestamptz not null default clock_timestamp()
    );
    alter publication supabase_realtime add table app.stories;
    create table app.notes (title text unique);
    create sequence app.attempts;
    grant usage on schema app to authenticated;
    grant usage on sequence app.attempts to authenticated;
    grant select, insert, update, delete on app.stories, app.notes to authenticated;
    alter table app.stories enable row level security;
    create policy seen on app.stories for select to authenticated using (made_by = auth.uid() or shared);
    create policy made on app.stories for insert to authenticated with check (made_by = auth.uid());
    create policy changed on app.stories for update to authenticated using (made_by = auth.uid());
    create policy gone on app.stories for delete to authenticated using (made_by = auth.uid());
    create function app.touch() returns trigger language plpgsql as $$ begin
        new.updated_at := clock_timestamp(); return new; end $$;
    create trigger touch before update on app.stories for each row execute function app.touch();

    create function app.who(payload jsonb) returns jsonb language sql stable as $$
        select jsonb_build_object('user', auth.uid(), 'role', current_user, 'payload', payload,
            'connection', current_setting('request.headers')::jsonb ->> 'x-connection-id') $$;
    create function app.add(payload jsonb) returns jsonb language plpgsql as $$
        declare made uuid; begin
            insert into app.stories (title) values (payload ->> 'title') returning id into made;
            return jsonb_build_object('id', made, 'xid', pg_current_xact_id()::text);
        end $$;
    create function app.fail(payload jsonb) returns jsonb language plpgsql as $$ begin
        insert into app.notes values (payload ->> 'title');
        raise exception using errcode = payload ->> 'errcode', message = coalesce(payload ->> 'message', 'secret'),
            detail = coalesce(payload ->> 'detail', '');
    end $$;
    create function app.nothing(payload jsonb) returns void language plpgsql as 'begin end';
    create function app.row(payload jsonb, out a int, out b text) language sql as $$ select 1, 'x' $$;
    create function app.later(payload jsonb) returns text language plpgsql as $$ begin
        if nextval('app.attempts') < 3 then raise sqlstate '40001'; end if;
        insert into app.notes values ('later');
        return current_setting('request.jwt.claims');
    end $$;
    create function app.member(topic text) returns jsonb language sql stable as $$
        select jsonb_build_object('topic', topic, 'user', auth.uid()) $$;
    create function app.peers() returns setof text language sql as $$ select 'user:' || auth.uid() $$;
    create function app.none() returns text[] language sql as $$ select array[]::text[] $$;
    create function app.enter(jsonb) returns jsonb language plpgsql as $$ begin
        if $1 ->> 'key' is distinct from 'open' then
            raise sqlstate 'PT403' using message = 'Wrong key', detail = '{"key": false}', hint = 'ACCESS_DENIED';
        end if;
        insert into app.stories (title) values ('entered');
        return '{"room": "r1"}';
    end $$;

    select walcast.profile('/a', denied => 'Not for you');
    select walcast.command('who', 'app.who', namespace => '/a', required => '{id}');
    select walcast.command('add', 'app.add', namespace => '/a');
    select walcast.command('fail', 'app.fail', namespace => '/a', failed => 'FAIL_FAILED', failed_message => 'No luck');
    select walcast.command('nothing', 'app.nothing', namespace => '/a');
    select walcast.command('row', 'app.row', namespace => '/a');
    select walcast.command('later', 'app.later', namespace => '/a');
    select walcast.command('create', table_name => 'app.stories', operation => 'insert',
        columns => '{title,size,shared}', ignores => '{map_id}', namespace => '/a');
    select walcast.command('update', table_name => 'app.stories', operation => 'update',
        columns => '{title,size,made_by}', version => 'updated_at', version_member => 'baseUpdatedAt',
        required => '{id,mapId}', denied => 'Not yours', namespace => '/a');
    select walcast.command('delete', table_name => 'app.stories', operation => 'delete', version => 'updated_at',
        namespace => '/a');
    select walcast.command('note', table_name => 'app.notes', operation => 'insert', columns => '{title}',
        namespace => '/a');
"#;

struct World {
    commander: Arc<Commander>,
    profile: Arc<Profile>,
    admin: Client,
    stop: CancellationToken,
    logins: Logins,
    database: Database,
}

impl World {
    async fn start() -> Self {
        let database = Database::create().await;
        let (stop, writes) = (CancellationToken::new(), Writes::default());
        let (status, logins) = feed(&database, writes.clone(), &stop).await;
        let admin = database.client().await;
        admin.batch_execute(APP).await.unwrap();
        let settings = config::Rest {
            statement_timeout_ms: 60_000,
            wait_timeout_ms: 60_000,
            feed_wait_timeout_ms: 60_000,
            ..config::Rest::default()
        };
        let roles = config::Config::default().database.roles;
        let runner = Arc::new(Runner::new(logins.check.clone(), &settings, &roles));
        let timely = Duration::from_mins(1);
        let declarations = Declarations::new(logins.check.clone(), timely, Arc::clone(&status));
        let profiles = tokio::select! {
            () = declarations.run(stop.clone()) => panic!("it ended"),
            profiles = timeout(DEADLINE, declarations.read()) => profiles.unwrap(),
        };
        let profile = Arc::clone(profiles.get("/a").unwrap());
        let commander = Arc::new(Commander::new(runner, writes, status, &settings));
        Self { commander, profile, admin, stop, logins, database }
    }

    /// What the client is told.
    async fn send(&self, user: &str, event: &str, payload: &Value) -> Value {
        self.send_text(user, event, &payload.to_string()).await
    }

    async fn send_text(&self, user: &str, event: &str, payload: &str) -> Value {
        let claims = claims(user);
        let payload = RawValue::from_string(payload.to_owned()).unwrap();
        let call = Call {
            claims: &claims,
            namespace: "/a",
            headers: r#"{"x-connection-id":"forged"}"#,
            connection_id: "c1",
            command: &self.profile.commands[event],
            payload: &payload,
            subject: claims.subject.as_deref(),
            denied: &self.profile.denied,
        };
        match timeout(DEADLINE, self.commander.run(call)).await.expect("an answer in time") {
            Outcome::Done { data, cursor } => json!({
                "ok": true, "data": parsed(&data), "cursor": cursor.map(|cursor| cursor.to_string()),
            }),
            Outcome::Refused(refused) => json!({
                "code": refused.code, "message": refused.message,
                "context": refused.context.as_deref().map(parsed),
            }),
        }
    }

    async fn ask(&self, function: &str, given: Given<'_>) -> Result<Value, Value> {
        let claims = claims(ALICE);
        let caller = Caller {
            claims: &claims,
            headers: "{}",
            connection_id: "c1",
            subject: claims.subject.as_deref(),
        };
        let function = Function::parse(function).unwrap();
        let asked = self.commander.ask(caller, &function, given);
        let answer = timeout(DEADLINE, asked).await.expect("an answer in time");
        answer.map(|answer| parsed(&answer)).map_err(|refused| {
            json!({
                "code": refused.code, "message": refused.message,
                "context": refused.context.as_deref().map(parsed),
            })
        })
    }

    async fn one<T: for<'a> tokio_postgres::types::FromSql<'a>>(&self, sql: &str) -> T {
        self.admin.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// A new story; its id.
    async fn story(&self, maker: &str, shared: bool) -> String {
        let sql = format!(
            "insert into app.stories (title, made_by, shared) values ('one', '{maker}', {shared})
            returning id::text"
        );
        self.one(&sql).await
    }

    async fn stop(self) {
        self.stop.cancel();
        drop(self.commander);
        self.logins.close().await.unwrap();
        drop(self.database);
    }
}

fn claims(user: &str) -> Claims {
    Claims {
        role: "authenticated".into(),
        subject: Some(user.into()),
        json: json!({ "role": "authenticated", "sub": user }).to_string().into(),
        expires_at: std::time::SystemTime::now() + Duration::from_hours(1),
    }
}

fn parsed(text: &RawValue) -> Value {
    serde_json::from_str(text.get()).unwrap()
}

#[tokio::test]
async fn a_function_is_called_as_the_user_with_what_he_sent() {
    let world = World::start().await;
    let payload = json!({ "id": 1, "deep": { "n": [null, 1.5, "ü"] } });
    let answer = world.send(ALICE, "who", &payload).await;
    let expected =
        json!({ "user": ALICE, "role": "authenticated", "payload": payload, "connection": "c1" });
    assert_eq!((&answer["ok"], &answer["data"]), (&json!(true), &expected));
    assert!(answer["cursor"].is_string(), "what a reader has seen: {answer}");
    // Whatever numbers there are, they come as they were sent.
    let big = r#"{"id":12345678901234567890.000000000000000001}"#;
    let answer = world.send_text(ALICE, "who", big).await;
    assert_eq!(answer["ok"], true, "{answer}");
    assert_eq!(world.send(BOB, "nothing", &json!({})).await["data"], Value::Null);
    assert_eq!(world.send(BOB, "row", &json!({})).await["data"], json!({ "a": 1, "b": "x" }));
    world.stop().await;
}

#[tokio::test]
async fn the_cursor_is_of_the_commit_and_its_author_is_in_the_log() {
    let world = World::start().await;
    let slot = format!("{}_peek", world.database.name);
    let make = format!("select pg_create_logical_replication_slot('{slot}', 'pgoutput')");
    world.admin.execute(&make, &[]).await.unwrap();
    let answer = world.send(ALICE, "add", &json!({ "title": "x", "mutationId": "m1" })).await;
    let (xid, cursor) =
        (answer["data"]["xid"].as_str().unwrap(), answer["cursor"].as_str().unwrap());
    let options =
        "'proto_version', '1', 'publication_names', 'supabase_realtime', 'messages', 'true'";
    let peek = format!(
        "select data from pg_logical_slot_peek_binary_changes('{slot}', null, null, {options})"
    );
    let rows = world.admin.query(&peek, &[]).await.unwrap();
    let messages: Vec<Vec<u8>> = rows.iter().map(|row| row.get(0)).collect();
    // Begin: where the commit record starts, the time, the transaction.
    let begun = messages.iter().position(|message| {
        message[0] == b'B'
            && u32::from_be_bytes(message[17..21].try_into().unwrap()).to_string() == xid
    });
    let begun = begun.expect("the transaction is in the log");
    let commit = u64::from_be_bytes(messages[begun][1..9].try_into().unwrap());
    assert!(cursor.starts_with(&format!("{commit:016X}-")), "{commit:X} {cursor}");
    let first = String::from_utf8_lossy(&messages[begun + 1]).into_owned();
    assert!(first.starts_with('M') && first.contains("walcast.origin"), "{first}");
    let said = first.find('{').map(|start| serde_json::from_str::<Value>(&first[start..]).unwrap());
    let said = said.unwrap();
    assert_eq!((&said["sub"], &said["connection_id"]), (&json!(ALICE), &json!("c1")));
    assert_eq!(said["mutation_id"], "m1");
    world.stop().await;
}

#[tokio::test]
async fn each_error_has_its_code_and_leaves_nothing() {
    let world = World::start().await;
    for (errcode, code, message) in [
        ("42501", "PERMISSION_DENIED", "Not for you"),
        ("PT403", "PERMISSION_DENIED", "secret"),
        ("PT404", "NOT_FOUND", "secret"),
        ("PT409", "STALE_UPDATE", "secret"),
        ("PT400", "VALIDATION_FAILED", "secret"),
        ("22023", "VALIDATION_FAILED", "A value is not valid"),
        ("23514", "VALIDATION_FAILED", "A value is not valid"),
        ("P0001", "FAIL_FAILED", "No luck"),
        ("XX000", "FAIL_FAILED", "No luck"),
        ("PT418", "FAIL_FAILED", "secret"),
        ("40001", "FAIL_FAILED", "No luck"),
    ] {
        let payload =
            json!({ "errcode": errcode, "detail": "{\"current\": {\"v\": 2}}", "title": "t" });
        let answer = world.send(ALICE, "fail", &payload).await;
        assert_eq!(
            (&answer["code"], &answer["message"]),
            (&json!(code), &json!(message)),
            "{errcode}"
        );
        let mut context = payload.clone();
        if errcode.starts_with("PT") {
            context["current"] = json!({ "v": 2 });
        }
        assert_eq!(answer["context"], context, "{errcode}");
    }
    assert_eq!(world.one::<i64>("select count(*) from app.notes").await, 0);
    world.stop().await;
}

#[tokio::test]
async fn what_is_no_payload_of_the_command_is_refused_before_anything_runs() {
    let world = World::start().await;
    let id = world.story(ALICE, false).await;
    for (event, payload, message) in [
        ("who", "{}", "id is required"),
        ("who", r#"{"id":null}"#, "id is required"),
        ("who", "[]", "The payload is not an object"),
        ("who", "\"x\"", "The payload is not an object"),
        ("who", r#"{"id":"\u0000"}"#, "A value is not valid"),
        ("who", r#"{"id":1,"mutationId":7}"#, "mutationId is not valid"),
        ("create", r#"{"title":"a","madeBy":"b"}"#, "madeBy cannot be set"),
        ("create", r#"{"title":null}"#, "A value is missing"),
        ("create", r#"{"title":"a","size":-1}"#, "A value is not valid"),
        ("create", r#"{"title":"a","size":"many"}"#, "A value is not valid"),
        ("update", r#"{"id":"x","mapId":1,"title":"a"}"#, "A value is not valid"),
        ("delete", "{}", "id is required"),
    ] {
        let answer = world.send_text(ALICE, event, payload).await;
        assert_eq!(answer["code"], "VALIDATION_FAILED", "{event} {payload} {answer}");
        assert_eq!(answer["message"], message, "{event} {payload}");
    }
    let answer = world.send(ALICE, "update", &json!({ "id": id, "mapId": "m" })).await;
    assert_eq!(answer["message"], "Nothing is to be changed");
    let title = json!({ "title": "same" });
    assert_eq!(world.send(ALICE, "note", &title).await["ok"], true);
    assert_eq!(world.send(ALICE, "note", &title).await["message"], "It exists already");
    world.stop().await;
}

#[tokio::test]
async fn a_row_is_written_as_declared_and_comes_back() {
    let world = World::start().await;
    let ignored = json!({ "title": "a", "size": 2.50, "else": 1, "mapId": "m2" });
    let made = world.send(ALICE, "create", &ignored).await;
    let row = &made["data"];
    assert_eq!(
        (&row["title"], &row["madeBy"], &row["mapId"]),
        (&json!("a"), &json!(ALICE), &json!("m1"))
    );
    assert!(made["cursor"].is_string(), "{made}");
    let (id, seen) = (row["id"].clone(), row["updatedAt"].clone());
    let change =
        json!({ "id": id, "mapId": "m1", "title": "b", "size": null, "baseUpdatedAt": seen });
    let changed = world.send(ALICE, "update", &change).await;
    assert_eq!((&changed["data"]["title"], &changed["data"]["size"]), (&json!("b"), &Value::Null));
    // The version that he has seen is not the row's any more.
    let stale = world.send(ALICE, "update", &change).await;
    assert_eq!(stale["code"], "STALE_UPDATE", "{stale}");
    assert_eq!(stale["context"]["current"], changed["data"]);
    assert_eq!((&stale["context"]["id"], &stale["context"]["title"]), (&id, &json!("b")));
    let stale = world.send(ALICE, "delete", &json!({ "id": id, "updatedAt": seen })).await;
    assert_eq!(stale["code"], "STALE_UPDATE", "{stale}");
    // Without a version the last one wins.
    let change = json!({ "id": id, "mapId": "m1", "title": "c" });
    assert_eq!(world.send(ALICE, "update", &change).await["data"]["title"], "c");
    let gone = world.send(ALICE, "delete", &json!({ "id": id })).await;
    assert_eq!(gone["data"]["title"], "c");
    assert_eq!(world.send(ALICE, "update", &change).await["code"], "NOT_FOUND");
    world.stop().await;
}

/// Each user, each row, each operation: Postgres, asked as that user, says what must happen.
#[tokio::test]
async fn row_level_security_decides_as_it_does_without_us() {
    let world = World::start().await;
    let oracle = world.database.client().await;
    for maker in [ALICE, BOB] {
        for shared in [false, true] {
            for user in [ALICE, BOB] {
                for (event, operation) in [
                    ("update", "update app.stories set title = 'x' where id = $1::text::uuid"),
                    ("delete", "delete from app.stories where id = $1::text::uuid"),
                    // To give it away is up to the policy too.
                    (
                        "update",
                        "update app.stories set made_by = '00000000-0000-4000-8000-0000000000ff' where id = $1::text::uuid",
                    ),
                ] {
                    let id = world.story(maker, shared).await;
                    let as_user = format!(
                        "begin; set local role authenticated;
                        set local request.jwt.claims = '{}'",
                        json!({ "role": "authenticated", "sub": user })
                    );
                    oracle.batch_execute(&as_user).await.unwrap();
                    let seen = "select count(*) from app.stories where id = $1::text::uuid";
                    let is_seen =
                        oracle.query_one(seen, &[&id]).await.unwrap().get::<_, i64>(0) == 1;
                    let touched = oracle.execute(operation, &[&id]).await;
                    oracle.batch_execute("rollback").await.unwrap();
                    let expected = match touched {
                        Ok(1) => json!(true),
                        Ok(_) if is_seen => json!("PERMISSION_DENIED"),
                        Ok(_) => json!("NOT_FOUND"),
                        Err(error) => {
                            assert_eq!(error.code().unwrap().code(), "42501");
                            json!("PERMISSION_DENIED")
                        }
                    };
                    let mut payload = json!({ "id": id, "mapId": "m1" });
                    if operation.contains("made_by") {
                        payload["madeBy"] = "00000000-0000-4000-8000-0000000000ff".into();
                    } else {
                        payload["title"] = "x".into();
                    }
                    let answer = world.send(user, event, &payload).await;
                    let found = answer.get("ok").unwrap_or(&answer["code"]);
                    assert_eq!(*found, expected, "{operation} {maker} {shared} {user}: {answer}");
                    if expected == "PERMISSION_DENIED" {
                        let text = if event == "update" { "Not yours" } else { "Not for you" };
                        assert_eq!(answer["message"], text);
                    }
                }
            }
        }
    }
    world.stop().await;
}

#[tokio::test]
async fn the_same_mutation_is_written_once() {
    let world = World::start().await;
    let payload = json!({ "title": "once", "mutationId": "m1" });
    let sends = (0..8).map(|_| world.send(ALICE, "add", &payload));
    let answers = futures_util::future::join_all(sends).await;
    assert!(answers.iter().all(|answer| answer["data"] == answers[0]["data"]), "{answers:?}");
    assert_eq!(
        answers.iter().filter(|answer| answer["cursor"].is_string()).count(),
        1,
        "{answers:?}"
    );
    let again = world.send(ALICE, "add", &payload).await;
    assert_eq!(again["data"], answers[0]["data"]);
    let count = "select count(*) from app.stories where title = 'once'";
    assert_eq!(world.one::<i64>(count).await, 1);
    // It is this user's, and this event's, and of this payload.
    assert_eq!(world.send(BOB, "add", &payload).await["ok"], true);
    assert_eq!(world.send(ALICE, "create", &payload).await["ok"], true);
    assert_eq!(world.one::<i64>(count).await, 3);
    let other = json!({ "title": "other", "mutationId": "m1" });
    let refused = world.send(ALICE, "add", &other).await;
    assert_eq!(refused["code"], "VALIDATION_FAILED", "{refused}");
    // What was refused is not kept: it may be asked again.
    let id = world.story(ALICE, false).await;
    let change = json!({ "id": id, "mapId": "m", "title": "x", "size": -1, "mutationId": "m2" });
    for _ in 0..2 {
        assert_eq!(world.send(ALICE, "update", &change).await["code"], "VALIDATION_FAILED");
    }
    let gone = json!({ "id": ALICE, "mapId": "m", "title": "x", "mutationId": "m3" });
    assert_eq!(world.send(ALICE, "update", &gone).await["code"], "NOT_FOUND");
    world.story(ALICE, false).await;
    world
        .admin
        .batch_execute(&format!("update app.stories set id = '{ALICE}' where id = '{id}'"))
        .await
        .unwrap();
    assert_eq!(world.send(ALICE, "update", &gone).await["data"]["title"], "x");
    assert_eq!(world.send(ALICE, "update", &gone).await["data"]["title"], "x");
    world.stop().await;
}

#[tokio::test]
async fn whoever_was_in_the_way_is_waited_for() {
    let world = World::start().await;
    let answer = world.send(ALICE, "later", &json!({})).await;
    assert_eq!(answer["ok"], true, "{answer}");
    assert_eq!(world.one::<i64>("select count(*) from app.notes").await, 1);
    world.stop().await;
}

#[tokio::test]
async fn a_function_that_was_stable_and_writes_now_is_called_again() {
    let world = World::start().await;
    let replace = "create or replace function app.who(payload jsonb) returns jsonb language plpgsql as $$ begin
        insert into app.notes values ('written'); return '1'; end $$";
    world.admin.batch_execute(replace).await.unwrap();
    let answer = world.send(ALICE, "who", &json!({ "id": 1, "mutationId": "m" })).await;
    assert_eq!(answer["data"], 1, "{answer}");
    assert_eq!(world.send(ALICE, "who", &json!({ "id": 1, "mutationId": "m" })).await["data"], 1);
    assert_eq!(world.one::<i64>("select count(*) from app.notes").await, 1);
    world.admin.batch_execute("drop function app.who(jsonb)").await.unwrap();
    assert_eq!(world.send(ALICE, "who", &json!({ "id": 1 })).await["code"], "COMMAND_FAILED");
    world.stop().await;
}

#[tokio::test]
async fn functions_are_asked_as_the_user() {
    let world = World::start().await;
    let member = world.ask("app.member(text)", Given::Topic("map:'1")).await;
    assert_eq!(member, Ok(json!({ "topic": "map:'1", "user": ALICE })));
    let peers = world.ask("app.peers()", Given::Nothing).await;
    assert_eq!(peers, Ok(json!([format!("user:{ALICE}")])));
    assert_eq!(world.ask("app.none()", Given::Nothing).await, Ok(json!([])));
    let key = |key: &str| RawValue::from_string(json!({ "key": key }).to_string()).unwrap();
    let open = key("open");
    let entered = world.ask("app.enter(jsonb)", Given::Payload(&open)).await;
    assert_eq!(entered, Ok(json!({ "room": "r1" })));
    let by = "select made_by::text from app.stories where title = 'entered'";
    assert_eq!(world.one::<String>(by).await, ALICE);
    let shut = key("shut");
    let refused = world.ask("app.enter(jsonb)", Given::Payload(&shut)).await;
    let expected =
        json!({ "code": "ACCESS_DENIED", "message": "Wrong key", "context": { "key": false } });
    assert_eq!(refused, Err(expected));
    let refused = world.ask("app.nowhere(text)", Given::Topic("")).await.unwrap_err();
    assert_eq!(refused["code"], "COMMAND_FAILED");
    world.stop().await;
}
