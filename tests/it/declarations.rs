//! What clients of Socket.IO find, declared in SQL: what is kept of it, what is refused, and when the
//! service knows.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use walcast::config::{Config, Secret};
use walcast::db::{Login, install};
use walcast::feed::{Declarations, Writes};
use walcast::profile::{Argument, Operation, Profiles, Run};

use crate::cluster::{Database, roles};
use crate::rest_schema::feed;
use crate::service::DEADLINE;

/// Functions of each shape, and a table.
const APP: &str = "
    create schema app;
    create function app.member(topic text) returns jsonb language sql as 'select ''{}''::jsonb';
    create function app.run(payload jsonb) returns jsonb language sql as 'select payload';
    create function app.nothing(payload jsonb) returns void language sql as '';
    create function app.several(payload jsonb) returns setof jsonb language sql as 'select payload';
    create function app.peers() returns setof text language sql as 'select ''a''';
    create function app.peer_list() returns text[] language sql as 'select array[''a'']';
    create function app.number() returns int language sql as 'select 1';
    create function app.fires() returns trigger language plpgsql as 'begin return new; end';
    create table app.stories (
        id uuid primary key, title text, updated_at timestamptz, size int generated always as (1) stored
    );
    create table app.keyless (title text);
    create view app.titles as select title from app.stories;
    grant usage on schema app to authenticated;
";

async fn installed() -> (Database, Client) {
    let database = Database::create().await;
    let mut config = Config::default();
    config.database.url = Secret::new(&*database.url);
    let owner = Login::parse(&database.url, Duration::from_secs(10)).unwrap();
    Box::pin(install::install(&owner, &config)).await.unwrap();
    let admin = database.client().await;
    admin.batch_execute(APP).await.unwrap();
    (database, admin)
}

/// What the call returns: whether anything changed.
async fn call(client: &Client, call: &str) -> Result<bool, (String, String)> {
    let done = client.query_one(&format!("select walcast.{call}"), &[]).await;
    done.map(|row| row.get(0)).map_err(|error| {
        let error = error.as_db_error().unwrap_or_else(|| panic!("{call}: {error:?}"));
        (error.code().code().to_owned(), error.message().to_owned())
    })
}

async fn declared(client: &Client, kind: &str, name: &str) -> Option<Value> {
    let sql = "select declaration::text from walcast.declarations where kind = $1 and name = $2";
    let row = client.query_opt(sql, &[&kind, &name]).await.unwrap();
    row.map(|row| serde_json::from_str(row.get(0)).unwrap())
}

#[tokio::test]
async fn what_is_declared_is_what_the_service_reads() {
    let (database, admin) = installed().await;
    for sql in [
        "profile('/a', token_from => '{auth,query}', member => 'app.member(text)',
            topics => '{\"user:{sub}\",\"tenant:{claims.app.tenant}\",activity}', events_per_second => 7)",
        "room('map:{mapId}', namespace => '/a', join_event => 'map.join', leave_event => 'map.leave',
            joined_event => 'map.joined', joined_payload => '{\"users\": \"$users\", \"none\": {\"value\": null}}',
            user_payload => '{\"id\": \"$sub\", \"name\": [\"member.name\", \"claims.email\"]}',
            user_joined => 'user.joined', user_left => 'user.left', announce_self => true, capacity => 5,
            denied => 'no', pattern => '{\"mapId\": \"^[0-9a-f-]{36}$\"}', on_join => 'app.run',
            on_leave => 'app.nothing(jsonb)', member => 'app.member')",
        "command('story.go', 'app.run(jsonb)', namespace => '/a', required => '{id}', reply_event => 'gone')",
        "command('story.update', table_name => 'app.stories', operation => 'update', columns => '{title}',
            version => 'updated_at', version_member => 'baseUpdatedAt', namespace => '/a', denied => 'no')",
        "relay('drag', 'dragging', 'map:{mapId}', namespace => '/a', key => '{id}', min_interval => '100 ms',
            expires => '3 s', stop_event => 'drop', stopped => 'dropped', gather => 'users', echo => true)",
        "presence('/a', online => 'on', offline => 'off', topics => '{presence}',
            topics_function => 'app.peers()', status_event => 'status', write => 'app.run(jsonb)',
            heartbeat_event => 'beat', write_interval => '20 s')",
        "relay('typing', 'typing', 'map:{mapId}')",
    ] {
        assert_eq!(call(&admin, sql).await, Ok(true), "{sql}");
        assert_eq!(call(&admin, sql).await, Ok(false), "{sql}");
    }
    assert_eq!(declared(&admin, "room", "map:{mapId}").await.unwrap()["on_join"], "app.run(jsonb)");

    let profiles = read(&database).await;
    let profile = profiles.get("/a").unwrap();
    assert_eq!((profile.token_from.len(), profile.topics.len()), (2, 3));
    assert_eq!(profile.events_per_second, Some(7));
    assert_eq!(profile.member.as_ref().unwrap().argument, Argument::Text);
    let room = profile.rooms_joined_by("map.join").next().unwrap();
    assert_eq!(
        (room.capacity, room.announce_self, room.denied.as_deref()),
        (Some(5), true, Some("no"))
    );
    assert_eq!(room.on_leave.as_ref().unwrap().to_string(), r#""app"."nothing""#);
    assert!(room.topic(&json!({ "mapId": "1" })).is_err());
    assert!(room.joined_payload.as_ref().is_some_and(|payload| {
        payload.render(&walcast::profile::Scope::of(None)) == r#"{"none":null}"#
    }));
    let Run::Table(write) = &profile.commands["story.update"].run else { panic!("no table") };
    assert_eq!((write.operation, &*write.columns), (Operation::Update, &["title".into()][..]));
    assert_eq!(
        (&*write.key, &*write.others),
        (&["id".into()][..], &["updated_at".into(), "size".into()][..])
    );
    assert_eq!(write.version, Some(("updated_at".into(), "baseUpdatedAt".into())));
    assert!(matches!(profile.commands["story.go"].run, Run::Function(_, false)));
    let relay = profile.relay_stopped_by("drop").unwrap();
    assert_eq!(relay.min_interval, Some(Duration::from_millis(100)));
    assert_eq!(relay.expires, Some(Duration::from_secs(3)));
    assert!(profile.relay_of("typing").is_some(), "what is declared for all");
    let presence = profile.presence.as_ref().unwrap();
    assert_eq!(presence.write_interval, Duration::from_secs(20));
    assert_eq!(presence.topics_function.as_ref().unwrap().argument, Argument::Nothing);
}

/// What the service's powerless login reads.
async fn read(database: &Database) -> Arc<Profiles> {
    let name = format!("declarations_{}", database.name);
    let admin = database.client().await;
    admin
        .batch_execute(&format!("drop role if exists {name}; create role {name} login noinherit"))
        .await
        .unwrap();
    let url = database.url.replace("postgres@", &format!("{name}@"));
    let login = Login::parse(&url, Duration::from_mins(1)).unwrap();
    let declarations = Declarations::new(login, Duration::from_mins(1), Arc::default());
    assert!(declarations.now().is_none());
    let stop = CancellationToken::new();
    let profiles = tokio::select! {
        () = declarations.run(stop) => panic!("it ended"),
        profiles = timeout(DEADLINE, declarations.read()) => profiles.unwrap(),
    };
    admin.batch_execute(&format!("drop role {name}")).await.unwrap();
    profiles
}

#[tokio::test]
async fn without_our_objects_there_is_the_plain_profile() {
    let database = Database::create().await;
    let profiles = read(&database).await;
    assert_eq!(profiles.iter().map(|profile| &*profile.namespace).collect::<Vec<_>>(), ["/"]);
}

#[tokio::test]
async fn what_is_taken_away_is_gone() {
    let (_database, admin) = installed().await;
    for (made, gone) in [
        ("room('a:{x}')", "unroom('a:{x}')"),
        ("command('go', 'app.run')", "uncommand('go')"),
        ("relay('typing', 'typing', 'a:{x}')", "unrelay('typing')"),
        ("presence(online => 'on')", "unpresence()"),
        ("profile('/a')", "unprofile('/a')"),
    ] {
        call(&admin, made).await.unwrap();
        assert_eq!(call(&admin, gone).await, Ok(true), "{gone}");
        assert_eq!(call(&admin, gone).await, Ok(false), "{gone}");
    }
    call(&admin, "profile('/a')").await.unwrap();
    call(&admin, "relay('typing', 'typing', 'a:{x}', namespace => '/a')").await.unwrap();
    call(&admin, "relay('all', 'all', 'a:{x}')").await.unwrap();
    call(&admin, "unprofile('/a')").await.unwrap();
    assert_eq!(declared(&admin, "relay", "typing").await, None);
    assert!(declared(&admin, "relay", "all").await.is_some());
    assert_eq!(call(&admin, "unprofile('*')").await, Ok(false));
}

#[tokio::test]
async fn what_is_wrong_is_refused_and_named() {
    let (_database, admin) = installed().await;
    call(&admin, "profile('/a')").await.unwrap();
    for (sql, code, named) in [
        ("profile('a')", "22023", "is no namespace"),
        ("profile('/a,b')", "22023", "is no namespace"),
        ("profile(null)", "22023", "name the namespace"),
        ("profile('*')", "22023", "name the namespace"),
        ("profile('/b', token_from => '{cookie}')", "22023", "token_from"),
        ("profile('/b', token_from => '{}')", "22023", "token_from"),
        ("profile('/b', subject => '{}')", "22023", "subject"),
        ("profile('/b', error_event => 'disconnect')", "22023", "error_event"),
        ("profile('/b', token_missing => '')", "22023", "token_missing"),
        ("profile('/b', topics => '{\"user:{id}\"}')", "22023", "names id"),
        ("profile('/b', topics => '{\"user{sub}\"}')", "22023", "ambiguous"),
        ("profile('/b', member => 'app.run')", "42883", "no function app.run(text)"),
        ("profile('/b', member => 'app.run(jsonb)')", "42883", "given text"),
        ("profile('/b', member => 'member')", "42883", "no function member(text)"),
        ("profile('/b', events_per_second => 0)", "22023", "events_per_second"),
        ("room('a:{x', '/a')", "22023", "brace"),
        ("room('a,b', '/a')", "22023", "comma"),
        ("room('a:{x}', '/b')", "22023", "no profile /b"),
        ("room('a:{x}', '/a', join_event => '')", "22023", "join_event"),
        ("room('a:{x}', '/a', joined_payload => '[]')", "22023", "joined_payload"),
        ("room('a:{x}', '/a', user_payload => '{\"a\": \"name\"}')", "22023", "\"name\""),
        ("room('a:{x}', '/a', user_payload => '{\"a\": []}')", "22023", "sources"),
        ("room('a:{x}', '/a', user_payload => '{\"a\": {\"b\": 1}}')", "22023", "no source"),
        ("room('a:{x}', '/a', capacity => 0)", "22023", "capacity"),
        ("room('a:{x}', '/a', pattern => '{\"y\": \"a\"}')", "22023", "'y'"),
        ("room('a:{x}', '/a', pattern => '{\"x\": \"(\"}')", "2201B", "regular expression"),
        ("room('a:{x}', '/a', on_join => 'app.several')", "42804", "one value"),
        ("command('connect', 'app.run', namespace => '/a')", "22023", "'connect'"),
        ("command('go', namespace => '/a')", "22023", "either a function or a table"),
        ("command('go', 'app.nowhere', namespace => '/a')", "42883", "app.nowhere(jsonb)"),
        ("command('go', 'app.several', namespace => '/a')", "42804", "one value"),
        ("command('go', 'app.run', columns => '{a}', namespace => '/a')", "22023", "columns"),
        ("command('go', 'app.run', required => '{\"\"}', namespace => '/a')", "22023", "requires"),
        (
            "command('go', table_name => 'app.nowhere', operation => 'insert')",
            "42P01",
            "app.nowhere",
        ),
        ("command('go', table_name => 'app.titles', operation => 'insert')", "42809", "no table"),
        (
            "command('go', table_name => 'app.stories', operation => 'truncate')",
            "22023",
            "operation",
        ),
        (
            "command('go', table_name => 'app.stories', operation => 'insert')",
            "22023",
            "which columns",
        ),
        (
            "command('go', table_name => 'app.stories', operation => 'insert', columns => '{other}')",
            "42703",
            "other",
        ),
        (
            "command('go', table_name => 'app.stories', operation => 'insert', columns => '{size}')",
            "42703",
            "generated",
        ),
        (
            "command('go', table_name => 'app.stories', operation => 'delete', columns => '{title}')",
            "22023",
            "sets no columns",
        ),
        (
            "command('go', table_name => 'app.keyless', operation => 'delete')",
            "42830",
            "no primary key",
        ),
        (
            "command('go', table_name => 'app.stories', operation => 'delete', version => 'nothing')",
            "42703",
            "nothing",
        ),
        (
            "command('go', table_name => 'app.stories', operation => 'delete', version_member => 'x')",
            "22023",
            "no version",
        ),
        ("relay('a', 'disconnecting', 'a:{x}')", "22023", "disconnecting"),
        ("relay('a', 'b', '{x}')", "22023", "ambiguous"),
        ("relay('a', 'b', 'a:{x}', payload => '{\"a\": \"$row\"}')", "22023", "$row"),
        ("relay('a', 'b', 'a:{x}', gather => 'all')", "22023", "gather"),
        ("relay('a', 'b', 'a:{x}', min_interval => '-1 s')", "22023", "min_interval"),
        ("relay('a', 'b', 'a:{x}', expires => '2 days')", "22023", "expires"),
        ("relay('a', 'b', 'a:{x}', stop_event => 'a')", "22023", "stops itself"),
        ("presence(offline => 'off')", "22023", "tells nothing"),
        ("presence(topics => '{\"user:{id}\"}')", "22023", "names id"),
        (
            "presence(online => 'on', topics_function => 'app.number')",
            "42804",
            "neither setof text nor text[]",
        ),
        ("presence(online => 'on', statuses => '{}')", "22023", "statuses"),
        ("presence(online => 'on', write_interval => '0')", "22023", "write_interval"),
        (
            "presence(online => 'on', status_event => 'a', heartbeat_event => 'a')",
            "22023",
            "the same",
        ),
    ] {
        let (found, message) = call(&admin, sql).await.expect_err(sql);
        assert_eq!(found, code, "{sql}: {message}");
        assert!(message.contains(named), "{sql}: {message}");
    }
    assert_eq!(
        call(&admin, "presence(online => 'on', topics_function => 'app.peer_list')").await,
        Ok(true)
    );
}

#[tokio::test]
async fn an_event_belongs_to_one_declaration_of_a_namespace() {
    let (_database, admin) = installed().await;
    for sql in [
        "profile('/a')",
        "profile('/b')",
        "room('a:{x}', '/a', join_event => 'join')",
        "room('b:{y}', '/a', join_event => 'join')",
        "command('go', 'app.run')",
        "relay('typing', 'typing', 'a:{x}', stop_event => 'stop', namespace => '/b')",
        // That of one namespace goes before that of all.
        "command('go', 'app.nothing', namespace => '/a')",
    ] {
        call(&admin, sql).await.unwrap();
    }
    for (sql, owner) in [
        ("command('join', 'app.run', namespace => '/a')", "room"),
        ("command('join', 'app.run')", "room"),
        ("room('c:{x}', '/a', leave_event => 'go')", "command"),
        ("relay('a', 'b', 'a:{x}', stop_event => 'stop', namespace => '/b')", "relay"),
        ("presence('/b', 'on', status_event => 'stop')", "relay"),
        ("presence('/a', 'on', heartbeat_event => 'go')", "command"),
    ] {
        let (code, message) = call(&admin, sql).await.expect_err(sql);
        assert_eq!(code, "22023", "{message}");
        assert!(message.contains("something else already"), "{message}");
        assert!(message.contains(owner), "{message}");
    }
    assert_eq!(call(&admin, "command('stop', 'app.run', namespace => '/a')").await, Ok(true));
}

#[tokio::test]
async fn only_who_owns_the_database_declares() {
    static MADE: OnceCell<()> = OnceCell::const_new();
    let (database, admin) = installed().await;
    roles(&MADE, "create role declarations_nobody; create role declarations_owner").await;
    call(&admin, "profile('/a')").await.unwrap();
    admin.batch_execute("set role declarations_nobody").await.unwrap();
    let (code, _) = call(&admin, "profile('/b')").await.unwrap_err();
    assert_eq!(code, "42501");
    assert_eq!(call(&admin, "unprofile('/a')").await, Ok(false));
    let insert = "insert into walcast.declarations values ('/b', 'profile', '', '{}')";
    admin.batch_execute(insert).await.unwrap_err();
    admin
        .batch_execute("reset role; update walcast.declarations set made_by = made_by")
        .await
        .unwrap();
    let give = format!("alter database {} owner to declarations_owner", database.name);
    admin.batch_execute(&give).await.unwrap();
    admin.batch_execute("set role declarations_owner").await.unwrap();
    assert_eq!(call(&admin, "profile('/b')").await, Ok(true));
    assert_eq!(call(&admin, "unprofile('/a')").await, Ok(true));
    let back = format!("reset role; alter database {} owner to current_user", database.name);
    admin.batch_execute(&back).await.unwrap();
}

#[tokio::test]
async fn a_declaration_is_known_when_it_is_committed() {
    let database = Database::create().await;
    let stop = CancellationToken::new();
    let (status, logins) = feed(&database, Writes::default(), &stop).await;
    let admin = database.client().await;
    let timely = Duration::from_mins(1);
    let declarations = Arc::new(Declarations::new(logins.check.clone(), timely, status));
    let (following, token) = (Arc::clone(&declarations), stop.clone());
    let task = tokio::spawn(async move { following.run(token).await });
    timeout(DEADLINE, declarations.read()).await.unwrap();
    let until = async |is: &dyn Fn(&Profiles) -> bool| {
        let wait = async {
            while !declarations.now().is_some_and(|profiles| is(&profiles)) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(DEADLINE, wait).await.expect("it is known");
    };
    admin.batch_execute("begin; select walcast.profile('/a')").await.unwrap();
    assert!(declarations.now().unwrap().get("/a").is_none());
    admin.batch_execute("commit").await.unwrap();
    until(&|profiles| profiles.get("/a").is_some()).await;
    admin.batch_execute("select walcast.profile('/a', denied => 'no')").await.unwrap();
    until(&|profiles| profiles.get("/a").is_some_and(|profile| &*profile.denied == "no")).await;
    admin.batch_execute("truncate walcast.declarations").await.unwrap();
    until(&|profiles| profiles.get("/a").is_none()).await;
    // Its connection may end: it is made again when there is something to ask.
    let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity
        where application_name = 'walcast profiles' and datname = current_database()";
    assert_eq!(admin.query_one(end, &[]).await.unwrap().get::<_, i64>(0), 1);
    admin.batch_execute("select walcast.profile('/b')").await.unwrap();
    until(&|profiles| profiles.get("/b").is_some()).await;
    stop.cancel();
    timeout(DEADLINE, task).await.unwrap().unwrap();
    logins.close().await.unwrap();
}

#[tokio::test]
async fn a_row_that_somebody_wrote_by_hand_is_read_with_care() {
    let (database, admin) = installed().await;
    admin
        .batch_execute(
            "insert into walcast.declarations (namespace, kind, name, declaration) values
                ('/', 'profile', '', '{\"error_event\": \"disconnect\"}'),
                ('/a', 'profile', '', '{}'),
                ('/a', 'relay', 'a', '[]'),
                ('/a', 'relay', 'b', '{\"told\": \"b\", \"topic\": \"b:{x}\"}'),
                ('/b', 'profile', '', pg_catalog.to_jsonb(repeat('x', 200000)))",
        )
        .await
        .unwrap();
    let profiles = read(&database).await;
    assert!(profiles.get("/").is_none() && profiles.get("/b").is_none());
    let profile = profiles.get("/a").unwrap();
    assert!(profile.relay_of("a").is_none() && profile.relay_of("b").is_some());
}

#[tokio::test]
async fn topics_of_two_templates_never_are_one_room() {
    let (_database, admin) = installed().await;
    admin
        .batch_execute(
            "create type app.mood as enum ('sad', 'all');
             create table app.t (k text, v text, n int, u uuid, m app.mood);
             create table app.o (k text, v text, n int, u uuid, m app.mood);
             create publication all_of_it for table app.t, app.o;",
        )
        .await
        .unwrap();
    let map = async |table: &str, topic: &str| {
        let sql = format!("map_event('app.{table}', 'e', on_insert => true, topic => '{topic}')");
        call(&admin, &sql).await
    };
    for (one, other, meet) in [
        // The same kind of topic, whatever the columns are called.
        ("a:{k}", "a:{v}", false),
        ("a:{k}", "a:{n}", false),
        ("a:{k}:{v}", "a:{v}:{k}", false),
        ("a:{k}", "b:{k}", false),
        ("a:{k}", "a", false),
        ("a:{k}", "a:{k}:{v}", false),
        ("a:{k}", "a/{k}", false),
        ("room:presence", "room:{k}", true),
        ("a:x:{k}", "a:{k}:{v}", true),
        ("a:{k}:x", "a:y:{k}", true),
        // A value has no separator of its template in it.
        ("a.{k}", "a.b.c", false),
        ("a.{k}", "a.b", true),
        ("a:{k}", "a:b.c", true),
        ("a:v.{k}", "a:{k}", true),
        ("a:v.{k}", "a:w.{k}", false),
        ("a:v.{k}", "a:v.{k}.x", true),
        // Nor anything that its type does not allow.
        ("a:{n}", "a:all", false),
        ("a:{n}", "a:17", true),
        ("a:{u}", "a:all", false),
        ("a:{m}", "a:all", true),
        ("a:{m}", "a:glad", false),
        ("a:{u}:x", "a:{n}:{k}", false),
        ("a:{k}:x", "a:{n}:{k}", true),
    ] {
        for (one, other) in [(one, other), (other, one)] {
            map("t", one).await.unwrap();
            match map("o", other).await {
                Ok(_) => assert!(!meet, "{one} {other}"),
                Err((code, message)) => {
                    assert!(meet, "{one} {other}: {message}");
                    assert_eq!(code, "22023", "{message}");
                    assert!(
                        message.contains("ambiguous") && message.contains("app.t"),
                        "{message}"
                    );
                }
            }
            admin
                .batch_execute("select walcast.unmap_table('app.t'), walcast.unmap_table('app.o')")
                .await
                .unwrap();
        }
    }
    let both = "map_event('app.t', 'e', on_insert => true, topics => '{\"a:{k}\",\"a:all\"}')";
    assert!(call(&admin, both).await.unwrap_err().1.contains("ambiguous"));
}

#[tokio::test]
async fn old_declarations_go_when_no_slot_can_need_them() {
    let (database, admin) = installed().await;
    admin
        .batch_execute("create table app.t (k text); create publication of_t for table app.t")
        .await
        .unwrap();
    let declare = async |event: &str| {
        let sql = format!(
            "map_event('app.t', '{event}', name => 'n', on_insert => true, topic => 'a:{{k}}')"
        );
        call(&admin, &sql).await.unwrap();
    };
    let owner = Login::parse(&database.url, Duration::from_mins(1)).unwrap();
    let forget = async |age: Duration| install::forget_mappings(&owner, age).await.unwrap();
    declare("first").await;
    declare("one").await;
    let slot = database.name.clone();
    let make = format!("select pg_create_logical_replication_slot('{slot}', 'pgoutput')");
    admin.execute(&make, &[]).await.unwrap();
    declare("two").await;
    declare("three").await;
    assert_eq!(forget(Duration::from_hours(1)).await, 0, "they are new");
    // Who begins at the slot's place begins with `one`.
    assert_eq!(forget(Duration::ZERO).await, 1);
    admin.execute(&format!("select pg_drop_replication_slot('{slot}')"), &[]).await.unwrap();
    assert_eq!(forget(Duration::from_hours(1)).await, 0);
    assert_eq!(forget(Duration::ZERO).await, 2);
    let left = "select string_agg(r ->> 'event', ' ') from walcast.mappings as m,
        jsonb_array_elements(m.declaration -> 'rules') as r";
    assert_eq!(admin.query_one(left, &[]).await.unwrap().get::<_, String>(0), "three");
    admin.batch_execute("drop table app.t").await.unwrap();
    assert_eq!(forget(Duration::from_hours(1)).await, 0);
    assert_eq!(forget(Duration::ZERO).await, 1);
}
