//! Row changes on a whole service, from the statement to the frame.
//!
//! Each test carries the number of the checklist's item (C57 to C79) in its name.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::service::{
    ALICE, BOB, DEADLINE, SECRET, Service, Socket, VERSIONS, Version, anon, now, service_role,
    shared, sign, token, user,
};

/// How long may pass until deliveries follow new claims.
const REFRESH: Duration = Duration::from_secs(20);

const TOPIC: &str = "realtime:test";

/// Everything about one table of schema `public`.
fn all_of(table: &str) -> Value {
    json!([{ "event": "*", "schema": "public", "table": table }])
}

async fn run(admin: &Client, sql: &str) {
    admin.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// A payload without what tells where in the log it stands, which it must have.
fn without_cursor(mut payload: Value) -> Value {
    let cursor = payload["data"].as_object_mut().unwrap().remove("cursor");
    assert!(cursor.is_some_and(|cursor| cursor.as_str().is_some_and(|text| text.len() == 34)));
    payload
}

/// The message of the `system` event that refuses these parameters.
async fn refusal(socket: &mut Socket, parameters: Value) -> String {
    let (_, system) = socket.try_subscribe(TOPIC, parameters).await;
    assert_eq!(system["status"], "error", "{system}");
    assert_eq!(system["extension"], "postgres_changes");
    assert_eq!(system["channel"], "test");
    leave(socket).await;
    system["message"].as_str().unwrap().to_owned()
}

/// Leaves the one channel; that it is joined is part of what is asserted.
async fn leave(socket: &mut Socket) {
    let reference = socket.reference();
    socket.send(&Value::Null, &reference, TOPIC, "phx_leave", &json!({})).await;
    assert_eq!(socket.reply(&reference).await.payload["status"], "ok");
    socket.expect("phx_close").await;
}

#[tokio::test]
async fn c57_the_join_reply_echoes_each_element_with_an_id() {
    let service = shared().await;
    let t = service.table("value text").await;
    for version in VERSIONS {
        let asked = json!([
            { "event": "INSERT", "schema": "public", "table": t, "filter": "id=gt.5" },
            { "event": "*", "schema": "public", "table": t },
            { "event": "insert", "schema": "public", "table": t, "filter": "id=gt.5",
              "select": ["id"], "unknown": { "a": [1, 2.50] } },
            { "event": "*", "schema": "public" },
            { "table": t },
            { "event": "*", "schema": "public", "table": t },
        ]);
        let mut socket = service.connect(version, &anon()).await;
        let payload = json!({ "config": { "postgres_changes": asked } });
        let reply = socket.join(TOPIC, &payload).await;
        assert_eq!(reply["status"], "ok", "{reply}");
        let mut echo = reply["response"]["postgres_changes"].clone();
        let mut ids = Vec::new();
        for element in echo.as_array_mut().unwrap() {
            let members = element.as_object_mut().unwrap();
            let id = members.remove("id").unwrap();
            ids.push(id.as_u64().unwrap_or_else(|| panic!("an id that is no integer: {id}")));
            let mode = members.remove("delete_mode");
            assert!(mode.is_none_or(|mode| mode == "pk_compat"));
        }
        assert_eq!(echo, asked, "untouched and in order");
        assert!(ids.iter().all(|id| (1..1 << 31).contains(id)), "{ids:?}");
        assert_eq!(ids[1], ids[5], "identical parameters");
        let others = [ids[0], ids[1], ids[2], ids[3]];
        assert!((1..4).all(|at| !others[..at].contains(&others[at])), "{ids:?}");
        assert_eq!(socket.expect("system").await.payload["status"], "ok");

        let again = service.connect(version, &anon()).await.subscribe(TOPIC, asked).await;
        assert_eq!(again, ids, "the same on every socket");
    }
}

#[tokio::test]
async fn c58_c59_what_commits_after_the_join_reply_is_delivered_once() {
    let service = shared().await;
    let admin = service.admin().await;
    let t = service.table("value text").await;
    let mut id = 0_i64;
    for version in VERSIONS {
        for _ in 0..10 {
            let mut socket = service.connect(version, &anon()).await;
            let payload = json!({ "config": { "postgres_changes": all_of(&t) } });
            let reply = socket.join(TOPIC, &payload).await;
            // C59: nothing but the reply was waited for.
            run(&admin, &format!("insert into {t} values ({}), ({})", id + 1, id + 2)).await;
            assert_eq!(reply["status"], "ok");
            let system = socket.expect("system").await;
            assert_eq!(
                system.payload,
                json!({
                    "extension": "postgres_changes", "status": "ok",
                    "message": "Subscribed to PostgreSQL", "channel": "test",
                })
            );
            for expected in [id + 1, id + 2] {
                assert_eq!(socket.change().await["record"]["id"], expected);
            }
            // C58, and exactly once: the next one follows at once.
            id += 3;
            run(&admin, &format!("insert into {t} values ({id})")).await;
            assert_eq!(socket.change().await["record"]["id"], id);
            socket.nothing_came().await;
        }
    }
}

#[tokio::test]
async fn an_event_says_who_wrote_when_the_first_word_of_its_transaction_did() {
    let service = shared().await;
    let admin = service.admin().await;
    let t = service.table("value text").await;
    let mut socket = service.connect(Version::V2, &anon()).await;
    socket.subscribe(TOPIC, all_of(&t)).await;
    let said = |sub: &str| {
        format!("select pg_logical_emit_message(true, 'walcast.origin', '{{\"sub\":\"{sub}\"}}')")
    };
    let (ann, bob) = (said("ann"), said("bob"));
    run(&admin, &format!("{ann}; {bob}; insert into {t} values (1)")).await;
    run(&admin, &format!("insert into {t} values (2); {bob}; insert into {t} values (3)")).await;
    assert_eq!(socket.change().await["origin"], json!({ "sub": "ann" }));
    for id in [2, 3] {
        let change = socket.change().await;
        assert_eq!((&change["record"]["id"], change.get("origin")), (&json!(id), None));
    }
}

#[tokio::test]
async fn c60_c74_the_shape_of_an_event_and_a_row_of_many_types() {
    let service = shared().await;
    let admin = service.admin().await;
    run(&admin, "create type mood as enum ('sad', 'ok')").await;
    run(&admin, "create type pair as (a int, b text)").await;
    run(&admin, "create domain percent as numeric check (value <= 100)").await;
    let t = service
        .table(
            "small int2, big int8, amount numeric, odd float8, flag bool, doc json, docb jsonb,
            tags text[], grid int[][], state mood, one uuid, bytes bytea, at timestamptz,
            day date, fixed char(5), short varchar(9), share percent, couple pair, empty text",
        )
        .await;
    let columns = [
        ("id", "int8"),
        ("small", "int2"),
        ("big", "int8"),
        ("amount", "numeric"),
        ("odd", "float8"),
        ("flag", "bool"),
        ("doc", "json"),
        ("docb", "jsonb"),
        ("tags", "_text"),
        ("grid", "_int4"),
        ("state", "mood"),
        ("one", "uuid"),
        ("bytes", "bytea"),
        ("at", "timestamptz"),
        ("day", "date"),
        ("fixed", "bpchar"),
        ("short", "varchar"),
        ("share", "percent"),
        ("couple", "pair"),
        ("empty", "text"),
    ];
    let columns: Vec<Value> =
        columns.iter().map(|(name, kind)| json!({ "name": name, "type": kind })).collect();
    let row = r#"{"id":1,"small":-2,"big":9007199254740993,"amount":10.500,"odd":null,"flag":true,
        "doc":{"b":1,"a":[null]},"docb":{"a":"é"},"tags":["x","y z",null],"grid":[[1,2],[3,4]],
        "state":"ok","one":"00000000-0000-4000-8000-00000000000a","bytes":"0102ff",
        "at":"2026-01-02T03:04:05.678+00:00","day":"2026-01-02","fixed":"ab   ","short":"v",
        "share":99.9,"couple":{"a":7,"b":"q"},"empty":null}"#;
    let row: Value = serde_json::from_str(row).unwrap();
    for version in VERSIONS {
        let mut socket = service.connect(version, &anon()).await;
        let ids = socket.subscribe(TOPIC, all_of(&t)).await;
        let before = std::time::SystemTime::now();
        let insert = format!(
            "insert into {t} values (1, -2, 9007199254740993, 10.500, 'NaN', true,
                '{{\"b\":1,\"a\":[null]}}', '{{\"a\":\"é\"}}', array['x', 'y z', null],
                '{{{{1,2}},{{3,4}}}}', 'ok', '{ALICE}', '\\x0102ff',
                '2026-01-02 04:04:05.678+01', '2026-01-02', 'ab', 'v', 99.9, row(7, 'q'), null)"
        );
        run(&admin, &insert).await;
        let message = socket.expect("postgres_changes").await;
        assert_eq!(message.topic, TOPIC);
        assert_eq!((&message.reference, &message.join_ref), (&Value::Null, &Value::Null));
        let payload = message.payload;
        assert_eq!(payload["ids"], json!(ids));
        assert_eq!(payload.as_object().unwrap().len(), 2, "{payload}");
        let data = &payload["data"];
        assert_eq!(data["type"], "INSERT");
        assert_eq!(data["schema"], "public");
        assert_eq!(data["table"], t.as_str());
        assert_eq!(data["columns"], json!(columns));
        assert_eq!(data["record"], row);
        assert_eq!(data["errors"], Value::Null);
        assert_eq!(data.get("old_record"), None);
        let at = data["commit_timestamp"].as_str().unwrap();
        assert!(at.len() == 24 && at.ends_with('Z') && at.as_bytes()[19] == b'.', "{at}");
        let sql = "select abs(extract(epoch from $1::text::timestamptz)::float8 - $2)";
        let since = before.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let apart: f64 = admin.query_one(sql, &[&at, &since]).await.unwrap().get(0);
        assert!(apart < 10.0, "{at} is {apart} s away");

        run(&admin, &format!("update {t} set small = 3 where id = 1")).await;
        let update = socket.change().await;
        assert_eq!((&update["type"], &update["record"]["small"]), (&json!("UPDATE"), &json!(3)));
        assert_eq!(update["old_record"], json!({ "id": 1 }));
        assert_eq!(update["columns"], json!(columns));
        run(&admin, &format!("delete from {t}")).await;
        let delete = socket.change().await;
        assert_eq!((&delete["type"], &delete["errors"]), (&json!("DELETE"), &Value::Null));
        assert_eq!(delete["old_record"], json!({ "id": 1 }));
        assert_eq!(delete.get("record"), None);
    }
}

#[tokio::test]
async fn c61_each_binding_gets_its_events() {
    let service = shared().await;
    let admin = service.admin().await;
    let t = service.table("value text").await;
    for version in VERSIONS {
        let element = |event: &str| json!({ "event": event, "schema": "public", "table": t });
        let events = ["INSERT", "insert", "UpDaTe", "DELETE", "*"];
        let parameters = json!(events.map(element));
        let mut socket = service.connect(version, &anon()).await;
        let ids = socket.subscribe(TOPIC, parameters).await;
        let mut only_inserts =
            service.subscribe(version, &anon(), json!([element("INSERT")])).await;
        run(&admin, &format!("insert into {t} values (1)")).await;
        run(&admin, &format!("update {t} set value = 'x'")).await;
        run(&admin, &format!("delete from {t}")).await;
        run(&admin, &format!("truncate {t}")).await;
        run(&admin, &format!("insert into {t} values (2)")).await;
        let mut got = Vec::new();
        for _ in 0..4 {
            let payload = socket.expect("postgres_changes").await.payload;
            let mut names = Vec::new();
            for id in payload["ids"].as_array().unwrap() {
                let id = id.as_u64().unwrap();
                let matched = ids.iter().zip(events).filter(|(known, _)| **known == id);
                names.extend(matched.map(|(_, event)| event));
            }
            names.sort_unstable();
            names.dedup();
            got.push((payload["data"]["type"].as_str().unwrap().to_owned(), names));
        }
        let insert = ("INSERT".to_owned(), vec!["*", "INSERT", "insert"]);
        let update = ("UPDATE".to_owned(), vec!["*", "UpDaTe"]);
        let delete = ("DELETE".to_owned(), vec!["*", "DELETE"]);
        assert_eq!(got, [insert.clone(), update, delete, insert]);
        for id in [1, 2] {
            assert_eq!(only_inserts.change().await["record"]["id"], id);
        }
        run(&admin, &format!("truncate {t}")).await;
    }
}

#[tokio::test]
async fn c62_wildcards_and_tables_published_later() {
    let service = Service::start().await;
    let admin = service.admin().await;
    run(
        &admin,
        "create schema other; grant usage on schema other to anon;
        create table other.one (id int primary key);
        create table other.two (id int primary key);
        create table public.one (id int primary key);
        create table public.later (id int primary key);
        grant all on other.one, other.two, public.one, public.later to anon;
        alter publication supabase_realtime add table other.one, other.two, public.one",
    )
    .await;
    let insert = "truncate other.one, other.two, public.one;
        insert into other.one values (1);
        insert into other.two values (2);
        insert into public.one values (3)";
    for version in VERSIONS {
        let mut sockets = Vec::new();
        for (parameters, expected) in [
            (json!({ "schema": "other" }), vec!["other.one", "other.two"]),
            (json!({ "schema": "other", "table": "*" }), vec!["other.one", "other.two"]),
            (json!({ "table": "one" }), vec!["public.one"]),
            (json!({ "schema": "*", "table": "one" }), vec!["other.one", "public.one"]),
            (json!({ "schema": "*" }), vec!["other.one", "other.two", "public.one"]),
            (json!({ "schema": "*", "table": "*", "filter": "id=gt.2" }), vec!["public.one"]),
            // Names are names: no pattern matches them.
            (json!({ "schema": "o%", "table": "*" }), vec![]),
        ] {
            let socket = service.subscribe(version, &anon(), json!([parameters])).await;
            sockets.push((parameters, expected, socket));
        }
        run(&admin, insert).await;
        for (parameters, expected, socket) in &mut sockets {
            let mut seen = Vec::new();
            for _ in 0..expected.len() {
                let change = socket.change().await;
                seen.push(format!(
                    "{}.{}",
                    change["schema"].as_str().unwrap(),
                    change["table"].as_str().unwrap()
                ));
            }
            assert_eq!(seen, *expected, "{parameters}");
            socket.nothing_came().await;
        }
        // A table that comes into the publication flows to those who wait, without a new join.
        run(
            &admin,
            "alter publication supabase_realtime add table public.later;
            insert into public.later values (9)",
        )
        .await;
        for (parameters, _, socket) in &mut sockets[4..5] {
            assert_eq!(socket.change().await["record"], json!({ "id": 9 }), "{parameters}");
        }
        run(
            &admin,
            "alter publication supabase_realtime drop table public.later;
            insert into public.later values (10); insert into other.two values (11);
            truncate public.later",
        )
        .await;
        assert_eq!(sockets[4].2.change().await["record"]["id"], 11, "it stopped as well");
    }
}

/// Filters, and what each means in SQL.
const FILTERS: &[(&str, &str)] = &[
    ("n=eq.5", "n = 5"),
    ("n=neq.5", "n <> 5"),
    ("n=lt.5", "n < 5"),
    ("n=lte.5", "n <= 5"),
    ("n=gt.5", "n > 5"),
    ("n=gte.5", "n >= 5"),
    ("n=in.(1,5,9)", "n in (1, 5, 9)"),
    ("value=like.a%", "value like 'a%'"),
    ("value=ilike.A_c%", "value ilike 'A_c%'"),
    ("value=match.^[ab]", "value ~ '^[ab]'"),
    ("value=imatch.^[AB]", "value ~* '^[AB]'"),
    ("value=is.null", "value is null"),
    ("flag=is.true", "flag is true"),
    ("flag=is.false", "flag is false"),
    ("flag=is.unknown", "flag is unknown"),
    ("value=isdistinct.abc", "value is distinct from 'abc'"),
    ("n=not.eq.5", "not (n = 5)"),
    ("n=not.neq.5", "not (n <> 5)"),
    ("n=not.lt.5", "not (n < 5)"),
    ("n=not.lte.5", "not (n <= 5)"),
    ("n=not.gt.5", "not (n > 5)"),
    ("n=not.gte.5", "not (n >= 5)"),
    ("n=not.in.(1,5,9)", "not (n in (1, 5, 9))"),
    ("value=not.like.a%", "not (value like 'a%')"),
    ("value=not.ilike.A_c%", "not (value ilike 'A_c%')"),
    ("value=not.match.^[ab]", "not (value ~ '^[ab]')"),
    ("value=not.imatch.^[AB]", "not (value ~* '^[AB]')"),
    ("value=not.is.null", "value is not null"),
    ("flag=not.is.true", "flag is not true"),
    ("value=not.isdistinct.abc", "value is not distinct from 'abc'"),
    // Conjunctions, blanks, quotes.
    ("n=gt.1,value=like.a%", "n > 1 and value like 'a%'"),
    (" n=gt.1 , n=lt.9 , value=not.is.null ", "n > 1 and n < 9 and value is not null"),
    (r#"value=eq."x,y""#, "value = 'x,y'"),
    (r#"value=eq."(p)",n=eq.5"#, "value = '(p)' and n = 5"),
    (r#"value=eq."say \"hi\"""#, r#"value = 'say "hi"'"#),
    (r#"value=eq."back\\slash""#, r"value = 'back\slash'"),
    (
        r#"value=in.("x,y",abc,"say \"hi\"","back\\slash")"#,
        r#"value in ('x,y', 'abc', 'say "hi"', 'back\slash')"#,
    ),
    ("value=in.()", "false"),
    ("value=eq.", "value = ''"),
    ("value=eq.a=b.c", "value = 'a=b.c'"),
    ("", "true"),
    ("  ", "true"),
    ("kind=eq.b", "kind = 'b'"),
    ("kind=gt.a", "kind > 'a'"),
    ("at=gte.2026-01-02T00:00:00Z", "at >= '2026-01-02T00:00:00Z'"),
    ("amount=eq.1.50", "amount = 1.5"),
    (
        "one=in.(00000000-0000-4000-8000-00000000000a)",
        "one = '00000000-0000-4000-8000-00000000000a'",
    ),
];

/// Rows with every value that a filter above looks for, and nulls.
const ROWS: &[&str] = &[
    "5, 'abc', true, 'a', '2026-01-01', 1.50, '00000000-0000-4000-8000-00000000000a'",
    "4, 'ABCD', false, 'b', '2026-01-02 00:00:00+00', 1.5, null",
    "6, 'b', null, 'c', '2026-01-03', 2, '00000000-0000-4000-8000-00000000000b'",
    "1, 'x,y', true, null, null, null, null",
    "9, '(p)', true, 'a', null, null, null",
    "5, '(p)', true, 'b', null, null, null",
    r#"7, 'say "hi"', true, 'b', null, null, null"#,
    r"7, 'back\slash', true, 'b', null, null, null",
    "2, '', false, 'b', null, null, null",
    "3, 'a=b.c', false, 'b', null, null, null",
    "null, null, null, null, null, null, null",
];

#[tokio::test]
async fn c63_c64_every_operator_decides_as_postgres_does() {
    let service = shared().await;
    let admin = service.admin().await;
    run(&admin, "create type c63_kind as enum ('b', 'a', 'c')").await;
    let t = service
        .table(
            "n int, value text, flag bool, kind c63_kind, at timestamptz, amount numeric, one uuid",
        )
        .await;
    // What each row must match, from Postgres.
    let mut expected = Vec::new();
    for (row, id) in ROWS.iter().zip(1_i64..) {
        run(&admin, &format!("insert into {t} values ({id}, {row})")).await;
        let mut matches = Vec::new();
        for (filter, sql) in FILTERS {
            let ask = format!("select count(*) from {t} where id = {id} and ({sql})");
            if admin.query_one(&ask, &[]).await.unwrap().get::<_, i64>(0) == 1 {
                matches.push(*filter);
            }
        }
        matches.sort_unstable();
        expected.push(matches);
    }
    for (filter, _) in FILTERS {
        let matched = expected.iter().filter(|matches| matches.contains(filter)).count();
        let always = filter.trim().is_empty();
        let never = *filter == "value=in.()";
        assert!(never || matched > 0, "{filter} is not tried on a match");
        assert!(always || matched < ROWS.len(), "{filter} is not tried on a mismatch");
    }
    let element = |(filter, _): &(&str, &str)| json!({ "event": "*", "schema": "public", "table": t, "filter": filter });
    let parameters = Value::Array(FILTERS.iter().map(element).collect());
    for version in VERSIONS {
        run(&admin, &format!("truncate {t}")).await;
        let mut socket = service.connect(version, &anon()).await;
        let ids = socket.subscribe(TOPIC, parameters.clone()).await;
        let mut names: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
        for (id, (filter, _)) in ids.iter().zip(FILTERS) {
            names.entry(*id).or_default().push(filter);
        }
        for (row, id) in ROWS.iter().zip(1_i64..) {
            run(&admin, &format!("insert into {t} values ({id}, {row})")).await;
        }
        run(&admin, &format!("update {t} set id = id + 100")).await;
        for round in ["insert", "update"] {
            for (row, matches) in ROWS.iter().zip(&expected) {
                let payload = socket.expect("postgres_changes").await.payload;
                let mut got: Vec<&str> = Vec::new();
                for id in payload["ids"].as_array().unwrap() {
                    got.extend(&names[&id.as_u64().unwrap()]);
                }
                got.sort_unstable();
                got.dedup();
                assert_eq!(got, *matches, "{round} of {row}");
            }
        }
        socket.nothing_came().await;
    }
}

#[tokio::test]
async fn c65_c66_bad_parameters_are_told_and_the_channel_stays() {
    let service = shared().await;
    let admin = service.admin().await;
    let t = service.table("value text, one uuid, flag bool").await;
    for version in VERSIONS {
        let mut socket = service.connect(version, &anon()).await;
        let with = |filter: &str| json!([{ "event": "*", "schema": "public", "table": t, "filter": filter }]);
        assert_eq!(
            refusal(&mut socket, with("nix=eq.v")).await,
            format!(
                "Unable to subscribe to changes with given parameters. An exception happened so \
                 please check your connect parameters: [event: *, schema: public, table: {t}, \
                 filters: [{{\"nix\", \"eq\", \"v\", false}}], select: nil]. Exception: ERROR \
                 P0001 (raise_exception) invalid column for filter nix"
            )
        );
        assert_eq!(
            refusal(&mut socket, all_of("doesnotexist")).await,
            "Unable to subscribe to changes with given parameters. Please check Realtime is \
             enabled for the given connect parameters: [event: *, schema: public, table: \
             doesnotexist, filters: [], select: nil]"
        );
        let hundred = vec!["1"; 101].join(",");
        for (filter, expected) in [
            ("undefined", r#"Error parsing `filter` params: ["undefined"]"#),
            ("value=foo.hey", r#"Error parsing `filter` params: ["foo", "hey"]"#),
            (
                "value=eq.a,,value=eq.b",
                "Error parsing `filter` params: filter must not contain empty segments (check for extra commas)",
            ),
            (
                "id=in.1,2",
                "Error parsing `filter` params: `in` filter value must be wrapped by parentheses",
            ),
            ("id=eq.seven", "ERROR 22P02 (invalid_text_representation)"),
            ("one=eq.not-a-uuid", "ERROR 22P02 (invalid_text_representation)"),
            (&format!("id=in.({hundred})"), "too many values for `in` filter. Maximum 100"),
            (
                "value=is.maybe",
                "invalid value for is filter: must be null, true, false, or unknown",
            ),
            ("value=is.true", "is true filter requires a boolean column, got text"),
            ("id=like.1%", "operator like requires a text-compatible column type, got bigint"),
            ("value=match.(", "invalid regular expression for match filter"),
        ] {
            let message = refusal(&mut socket, with(filter)).await;
            assert!(message.contains(expected), "{filter}: {message}");
        }
        for parameters in [
            json!([{ "event": "*" }]),
            json!([{ "event": "*", "schema": "public", "filter": "id=eq.1" }]),
            json!([{ "event": "*", "schema": "public", "table": 7 }]),
        ] {
            let message = refusal(&mut socket, parameters).await;
            let start = "No subscription params provided. Please provide at least a `schema` or \
                         `table` to subscribe to: ";
            assert!(message.starts_with(start), "{message}");
        }
        // All or nothing: beside a bad one, a good one is not active either.
        let mut both = all_of(&t);
        both.as_array_mut().unwrap().extend(all_of("doesnotexist").as_array().unwrap().clone());
        let (ids, system) = socket.try_subscribe(TOPIC, both).await;
        assert_eq!((ids.len(), &system["status"]), (2, &json!("error")));
        socket.subscribe("realtime:other", all_of(&t)).await;
        run(&admin, &format!("truncate {t}; insert into {t} values (1), (2)")).await;
        for id in [1, 2] {
            let message = socket.expect("postgres_changes").await;
            assert_eq!(message.topic, "realtime:other");
            assert_eq!(message.payload["data"]["record"]["id"], id);
        }
    }
}

#[tokio::test]
async fn c67_select_narrows_the_columns() {
    let service = shared().await;
    let admin = service.admin().await;
    let t = service.table("value text, details text, secret text").await;
    run(&admin, &format!("alter table {t} replica identity full")).await;
    for version in VERSIONS {
        run(&admin, &format!("truncate {t}")).await;
        let element = |select: Value| json!({ "event": "*", "schema": "public", "table": t, "select": select });
        let mut socket = service.connect(version, &anon()).await;
        let parameters = json!([element(json!(["value"])), element(json!(["id", "details"]))]);
        let ids = socket.subscribe(TOPIC, parameters).await;
        run(&admin, &format!("insert into {t} values (1, 'v', 'd', 's')")).await;
        run(&admin, &format!("update {t} set secret = 'other'")).await;
        run(&admin, &format!("delete from {t}")).await;
        let mut frames = Vec::new();
        for _ in 0..6 {
            frames.push(socket.expect("postgres_changes").await.payload);
        }
        for (at, chosen) in [("value", "v"), ("details", "d")].into_iter().enumerate() {
            let mine: Vec<&Value> =
                frames.iter().filter(|frame| frame["ids"] == json!([ids[at]])).collect();
            assert_eq!(mine.len(), 3, "one for each change: {frames:?}");
            let row = json!({ "id": 1, chosen.0: chosen.1 });
            for frame in mine {
                let data = &frame["data"];
                let names: Vec<_> =
                    data["columns"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
                assert_eq!(names, ["id", chosen.0]);
                for image in ["record", "old_record"] {
                    let shown = data.get(image).is_none_or(|image| *image == row);
                    assert!(shown, "{data}");
                }
            }
        }
        leave(&mut socket).await;
        let message = refusal(&mut socket, json!([element(json!("value"))])).await;
        assert!(message.starts_with("Error parsing `select` params: expected a list"), "{message}");
        let wildcard = json!([{ "schema": "public", "table": "*", "select": ["id"] }]);
        let message = refusal(&mut socket, wildcard).await;
        assert!(message.starts_with("Column selection is not supported for wildcard"), "{message}");
        let message = refusal(&mut socket, json!([element(json!(["nix"]))])).await;
        assert!(message.ends_with("invalid column for select nix"), "{message}");
        // Members that are no text are dropped; nothing left means everything.
        socket.subscribe(TOPIC, json!([element(json!([1, null]))])).await;
        run(&admin, &format!("insert into {t} values (2, 'v', 'd', 's')")).await;
        assert_eq!(socket.change().await["record"]["secret"], "s");
    }
}

#[tokio::test]
async fn c68_c69_old_rows_by_replica_identity() {
    let service = shared().await;
    let admin = service.admin().await;
    let (default, full) = (service.table("value text").await, service.table("value text").await);
    run(&admin, &format!("alter table {full} replica identity full")).await;
    for version in VERSIONS {
        for (t, is_full) in [(&default, false), (&full, true)] {
            let by = |filter: &str| json!({ "event": "DELETE", "schema": "public", "table": t, "filter": filter });
            let mut all = service.subscribe(version, &anon(), all_of(t)).await;
            run(&admin, &format!("insert into {t} values (1, 'a')")).await;
            run(&admin, &format!("update {t} set value = 'b'")).await;
            run(&admin, &format!("update {t} set id = 2")).await;
            run(&admin, &format!("update {t} set id = 1")).await;
            all.change().await;
            let whole = |id: i64, value: &str| {
                if is_full { json!({ "id": id, "value": value }) } else { json!({ "id": id }) }
            };
            for old in [whole(1, "a"), whole(1, "b"), whole(2, "b")] {
                let update = all.change().await;
                assert_eq!((&update["type"], &update["old_record"]), (&json!("UPDATE"), &old));
            }
            // C69: filters on a DELETE see what the old image holds.
            let mut by_key = service.subscribe(version, &anon(), json!([by("id=eq.1")])).await;
            let mut by_value = service.subscribe(version, &anon(), json!([by("value=eq.b")])).await;
            run(&admin, &format!("delete from {t}")).await;
            for socket in [&mut all, &mut by_key] {
                let delete = socket.change().await;
                assert_eq!(delete["type"], "DELETE");
                assert_eq!(delete["old_record"], whole(1, "b"));
            }
            if is_full {
                assert_eq!(by_value.change().await["old_record"], whole(1, "b"));
            }
            by_value.nothing_came().await;
        }
    }
}

#[tokio::test]
async fn c69_c70_row_level_security_decides_who_hears_what() {
    let service = shared().await;
    let admin = service.admin().await;
    let full = service.owned_table("value text").await;
    let default = service.owned_table("value text").await;
    run(&admin, &format!("alter table {full} replica identity full")).await;
    for version in VERSIONS {
        for (t, is_full) in [(&full, true), (&default, false)] {
            let mut alice = service.subscribe(version, &user(ALICE), all_of(t)).await;
            let mut bob = service.subscribe(version, &user(BOB), all_of(t)).await;
            let mut nobody = service.subscribe(version, &anon(), all_of(t)).await;
            let mut everything = service.subscribe(version, &service_role(), all_of(t)).await;
            let insert = format!(
                "insert into {t} values (1, '{ALICE}', 'hers'), (2, '{BOB}', 'his'), (3, null, '')"
            );
            run(&admin, &insert).await;
            for id in [1, 2, 3] {
                assert_eq!(everything.change().await["record"]["id"], id);
            }
            assert_eq!(alice.change().await["record"]["value"], "hers");
            assert_eq!(bob.change().await["record"]["value"], "his");

            // An update moves alice's row to bob: he sees it come, and nothing of what it was.
            run(&admin, &format!("update {t} set owner = '{BOB}', value = 'new' where id = 1"))
                .await;
            let update = everything.change().await;
            assert_eq!(
                (&update["type"], &update["record"]["value"]),
                (&json!("UPDATE"), &json!("new"))
            );
            let update = bob.change().await;
            assert_eq!(
                (&update["type"], &update["record"]["value"]),
                (&json!("UPDATE"), &json!("new"))
            );
            let old = &update["old_record"];
            assert!(old.get("value").is_none() && old.get("owner").is_none(), "{old}");
            // She gets no UPDATE. With a full old image it is certain that she saw the row, so she
            // is told that it has gone.
            if is_full {
                let gone = alice.change().await;
                assert_eq!(
                    (&gone["type"], &gone["old_record"]),
                    (&json!("DELETE"), &json!({ "id": 1 }))
                );
                assert_eq!(gone.get("record"), None);
            }
            // C69: under RLS a DELETE shows the key, whatever the identity.
            run(&admin, &format!("delete from {t} where id = 2")).await;
            let delete = bob.change().await;
            assert_eq!(
                (&delete["type"], &delete["old_record"]),
                (&json!("DELETE"), &json!({ "id": 2 }))
            );
            let last =
                format!("insert into {t} values (4, '{ALICE}', 'last'), (5, '{BOB}', 'last')");
            run(&admin, &last).await;
            if is_full {
                // The old row is known, so it is also known that it was never hers.
                assert_eq!(alice.change().await["record"]["id"], 4);
                assert_eq!(bob.change().await["record"]["id"], 5);
            } else {
                let mut change = alice.change().await;
                if change["type"] == "DELETE" {
                    assert_eq!(change["old_record"], json!({ "id": 2 }));
                    change = alice.change().await;
                }
                assert_eq!(
                    (&change["type"], &change["record"]["id"]),
                    (&json!("INSERT"), &json!(4))
                );
                assert_eq!(bob.change().await["record"]["id"], 5);
            }
            for socket in [&mut alice, &mut bob, &mut nobody] {
                socket.nothing_came().await;
            }
            run(&admin, &format!("truncate {t}")).await;
        }
    }
}

#[tokio::test]
async fn c71_column_privileges() {
    let service = shared().await;
    let admin = service.admin().await;
    let (some, keyless) =
        (service.table("value text, secret text").await, service.table("value text").await);
    for (t, columns) in [(&some, "id, value"), (&keyless, "value")] {
        run(
            &admin,
            &format!("revoke all on {t} from anon; grant select ({columns}) on {t} to anon"),
        )
        .await;
        run(&admin, &format!("alter table {t} replica identity full")).await;
    }
    for version in VERSIONS {
        let mut socket = service.subscribe(version, &anon(), all_of(&some)).await;
        run(&admin, &format!("truncate {some}; insert into {some} values (1, 'v', 's')")).await;
        run(&admin, &format!("update {some} set secret = 't'")).await;
        run(&admin, &format!("delete from {some}")).await;
        let visible = json!({ "id": 1, "value": "v" });
        for operation in ["INSERT", "UPDATE", "DELETE"] {
            let change = socket.change().await;
            assert_eq!(change["type"], operation);
            let columns = change["columns"].as_array().unwrap();
            assert_eq!(columns.len(), 2, "{change}");
            for image in ["record", "old_record"] {
                assert!(change.get(image).is_none_or(|image| *image == visible), "{change}");
            }
        }
        leave(&mut socket).await;
        let filter = json!([{ "schema": "public", "table": some, "filter": "secret=eq.s" }]);
        let message = refusal(&mut socket, filter).await;
        assert!(message.ends_with("invalid column for filter secret"), "{message}");

        let ids = socket.subscribe(TOPIC, all_of(&keyless)).await;
        run(&admin, &format!("truncate {keyless}; insert into {keyless} values (1, 'v')")).await;
        assert_eq!(
            without_cursor(unauthorised(&mut socket).await),
            json!({ "ids": ids, "data": {
                "schema": "public", "table": keyless, "type": "INSERT", "commit_timestamp": null,
                "columns": [], "record": {}, "errors": ["Error 401: Unauthorized"],
            } })
        );
        // A grant counts for those who subscribe again.
        run(&admin, &format!("grant select on {keyless} to anon")).await;
        leave(&mut socket).await;
        socket.subscribe(TOPIC, all_of(&keyless)).await;
        run(&admin, &format!("insert into {keyless} values (2, 'v')")).await;
        assert_eq!(socket.change().await["record"], json!({ "id": 2, "value": "v" }));
        run(
            &admin,
            &format!(
                "revoke select on {keyless} from anon; grant select (value) on {keyless} to anon"
            ),
        )
        .await;
    }
}

/// The event that says no more than that something happened, and the word that the subscription
/// ended with it, in either order.
async fn unauthorised(socket: &mut Socket) -> Value {
    let mut messages = [socket.next().await, socket.next().await];
    messages.sort_by(|a, b| a.event.cmp(&b.event));
    let [event, system] = messages;
    assert_eq!((&*event.event, &*system.event), ("postgres_changes", "system"));
    assert_eq!(system.payload["status"], "error");
    let message = system.payload["message"].as_str().unwrap();
    assert!(message.ends_with(" ended: the primary key may not be read."), "{message}");
    event.payload
}

#[tokio::test]
async fn c72_a_table_without_a_primary_key() {
    let service = shared().await;
    let admin = service.admin().await;
    run(
        &admin,
        "create table c72 (value text); alter table c72 replica identity full;
        grant all on c72 to anon; alter publication supabase_realtime add table c72",
    )
    .await;
    for version in VERSIONS {
        let mut socket = service.connect(version, &anon()).await;
        let ids = socket.subscribe(TOPIC, all_of("c72")).await;
        run(&admin, "insert into c72 values ('v')").await;
        let payload = socket.expect("postgres_changes").await.payload;
        assert_eq!(
            without_cursor(payload),
            json!({ "ids": ids, "data": {
                "schema": "public", "table": "c72", "type": "INSERT", "commit_timestamp": null,
                "columns": [], "record": {}, "errors": ["Error 400: Bad Request, no primary key"],
            } })
        );
        run(&admin, "update c72 set value = 'w'").await;
        let update = socket.change().await;
        assert_eq!(update["errors"], json!(["Error 400: Bad Request, no primary key"]));
        run(&admin, "delete from c72").await;
        assert_eq!(socket.change().await["type"], "DELETE");
    }
}

#[tokio::test]
async fn c73_a_row_that_is_too_large_loses_its_long_values() {
    let service = shared().await;
    let admin = service.admin().await;
    let t = service.table("value text, long text, short text").await;
    run(&admin, &format!("alter table {t} replica identity full")).await;
    for version in VERSIONS {
        let mut socket = service.subscribe(version, &anon(), all_of(&t)).await;
        run(
            &admin,
            &format!("insert into {t} values (1, 'v', repeat('x', 1100000), repeat('y', 60))"),
        )
        .await;
        run(&admin, &format!("update {t} set value = 'w'")).await;
        run(&admin, &format!("insert into {t} values (2, 'v', 'l', 's'); truncate {t}")).await;
        let short = "y".repeat(60);
        for (operation, value) in [("INSERT", "v"), ("UPDATE", "w")] {
            let change = socket.change().await;
            assert_eq!(change["type"], operation);
            let text = change.to_string();
            let start = text.get(..500).unwrap_or(&text);
            assert_eq!(change["errors"], json!(["Error 413: Payload Too Large"]), "{start}");
            assert_eq!(change["record"], json!({ "id": 1, "value": value, "short": short }));
            assert_eq!(change["columns"].as_array().unwrap().len(), 4);
        }
        let next = socket.change().await;
        assert_eq!((&next["errors"], &next["record"]["long"]), (&Value::Null, &json!("l")));
    }
}

#[tokio::test]
async fn c75_unchanged_long_values() {
    let service = shared().await;
    let admin = service.admin().await;
    let (default, full) = (
        service.table("value text, long text").await,
        service.table("value text, long text").await,
    );
    run(&admin, &format!("alter table {full} replica identity full")).await;
    let long = "x".repeat(9_000);
    for t in [&default, &full] {
        run(&admin, &format!("alter table {t} alter long set storage external")).await;
    }
    for version in VERSIONS {
        for (t, is_full) in [(&default, false), (&full, true)] {
            let mut socket = service.subscribe(version, &anon(), all_of(t)).await;
            let on_long =
                json!([{ "schema": "public", "table": t, "filter": format!("long=eq.{long}") }]);
            let mut filtered = service.subscribe(version, &anon(), on_long).await;
            run(
                &admin,
                &format!("truncate {t}; insert into {t} values (1, 'v', repeat('x', 9000))"),
            )
            .await;
            run(&admin, &format!("update {t} set value = 'w'")).await;
            run(&admin, &format!("update {t} set value = 'z', long = repeat('x', 9000) || ''"))
                .await;
            assert_eq!(socket.change().await["record"]["long"], long.as_str());
            assert_eq!(filtered.change().await["record"]["value"], "v");
            let update = socket.change().await;
            assert_eq!(update["record"]["value"], "w");
            let shown = update["record"].get("long");
            assert_eq!(shown, is_full.then_some(&json!(long)), "absent, not null");
            assert_eq!(update["columns"].as_array().unwrap().len(), 3);
            assert_eq!(socket.change().await["record"]["long"], long.as_str());
            // A value that the log does not carry fulfils no filter; one that it carries does.
            if is_full {
                assert_eq!(filtered.change().await["record"]["value"], "w");
            }
            assert_eq!(filtered.change().await["record"]["value"], "z");
        }
    }
}

/// Sends an `access_token` event; it is never replied to.
async fn refresh(socket: &mut Socket, token: &Value) {
    let reference = socket.reference();
    let payload = json!({ "access_token": token });
    socket.send(&Value::Null, &reference, TOPIC, "access_token", &payload).await;
}

#[tokio::test]
async fn c76_a_refreshed_token_decides_from_then_on() {
    let service = shared().await;
    let admin = service.admin().await;
    let t = service.owned_table("value text").await;
    let mut id = 0_i64;
    for version in VERSIONS {
        let alice = user(ALICE);
        let mut everything = service.subscribe(version, &service_role(), all_of(&t)).await;
        let mut socket = service.subscribe(version, &alice, all_of(&t)).await;
        // A row of each, published when this returns.
        let mut insert = async || {
            id += 2;
            let rows = format!("({}, '{ALICE}', 'hers'), ({id}, '{BOB}', 'his')", id - 1);
            run(&admin, &format!("insert into {t} values {rows}")).await;
            for value in ["hers", "his"] {
                assert_eq!(everything.change().await["record"]["value"], value);
            }
        };
        insert().await;
        assert_eq!(socket.change().await["record"]["value"], "hers");
        // These change nothing.
        for token in [json!(alice), json!("sb_publishable_x"), Value::Null, json!(7)] {
            refresh(&mut socket, &token).await;
        }
        socket.nothing_came().await;

        let refreshed = Instant::now();
        refresh(&mut socket, &json!(user(BOB))).await;
        let system = socket.expect("system").await.payload;
        assert_eq!(system["message"], "Subscribed to PostgreSQL");
        assert!(refreshed.elapsed() < REFRESH, "{:?}", refreshed.elapsed());
        insert().await;
        assert_eq!(socket.change().await["record"]["value"], "his");
        // Also to another role.
        refresh(&mut socket, &json!(service_role())).await;
        socket.expect("system").await;
        insert().await;
        for value in ["hers", "his"] {
            assert_eq!(socket.change().await["record"]["value"], value);
        }
        // A bad one ends the channel, with a word about why.
        let expired = sign(&json!({ "role": "anon", "exp": now() - 7 }), SECRET);
        for (token, start) in [
            (expired, "Token has expired "),
            (String::new(), "The token provided is not a valid JWT"),
        ] {
            refresh(&mut socket, &json!(token)).await;
            let system = socket.expect("system").await.payload;
            let kind = (&system["extension"], &system["status"]);
            assert_eq!(kind, (&json!("system"), &json!("error")));
            let message = system["message"].as_str().unwrap();
            assert!(message.starts_with(start), "{message}");
            socket.expect("phx_close").await;
            insert().await;
            socket.nothing_came().await;
            socket.subscribe(TOPIC, all_of(&t)).await;
        }
    }
}

/// The newer token cannot be checked before the older one has expired.
#[tokio::test]
async fn what_changes_between_two_tokens_is_decided_by_the_newer_one() {
    let service = shared().await;
    let (admin, mut holder) = (service.admin().await, service.admin().await);
    let t = service.owned_table("value text").await;
    let mut everything = service.subscribe(Version::V2, &service_role(), all_of(&t)).await;
    for (round, refused) in [(0, false), (2, true)] {
        let locked = service.owned_table("value text").await;
        let expiry = now() + 3;
        let short = json!({ "role": "authenticated", "sub": ALICE, "exp": expiry });
        let both = json!([all_of(&t)[0], all_of(&locked)[0]]);
        let mut socket = service.subscribe(Version::V2, &sign(&short, SECRET), both).await;
        let lock = holder.transaction().await.unwrap();
        lock.batch_execute(&format!("lock table {locked} in access exclusive mode")).await.unwrap();
        refresh(&mut socket, &json!(user(ALICE))).await;
        while now() <= expiry {
            socket.heartbeat().await;
        }
        let rows = format!("({}, '{ALICE}', 'hers'), ({}, '{BOB}', 'his')", round + 1, round + 2);
        run(&admin, &format!("insert into {t} values {rows}")).await;
        for value in ["hers", "his"] {
            assert_eq!(everything.change().await["record"]["value"], value);
        }
        socket.nothing_came().await;
        if refused {
            lock.batch_execute(&format!("drop table {locked}")).await.unwrap();
        }
        lock.commit().await.unwrap();
        if !refused {
            assert_eq!(socket.change().await["record"]["value"], "hers");
        }
        let system = socket.expect("system").await.payload;
        assert_eq!(system["status"], if refused { "error" } else { "ok" }, "{system}");
        socket.nothing_came().await;
    }
}

#[tokio::test]
async fn c77_one_bad_subscription_or_policy_costs_nobody_else_anything() {
    let service = shared().await;
    let admin = service.admin().await;
    let t = service.table("owner uuid, doc json, level int").await;
    run(
        &admin,
        &format!(
            "alter table {t} enable row level security;
            create policy own on {t} to authenticated using (
                owner = (current_setting('request.jwt.claims', true)::jsonb ->> 'sub')::uuid
                and 1 / (level - coalesce((current_setting('request.jwt.claims', true)::jsonb ->> 'level')::int, -1)) < 9
            );
            alter table {t} add value text"
        ),
    )
    .await;
    let mut id = 0_i64;
    for version in VERSIONS {
        let mut alice = service.subscribe(version, &user(ALICE), all_of(&t)).await;
        // Her policy divides by zero on rows of level 3. A notice is not repeated for a while to the
        // same claims, so each round has its own.
        let round = version.vsn();
        let poisoned = json!({ "role": "authenticated", "sub": ALICE, "level": 3, "round": round });
        let poisoned = token(&poisoned);
        let mut poisoned = service.subscribe(version, &poisoned, all_of(&t)).await;
        // A subject that is no uuid, and a filter on a type without an equality.
        let nameless =
            token(&json!({ "role": "authenticated", "sub": format!("no uuid {round}") }));
        let mut nameless = service.connect(version, &nameless).await;
        let (_, told) = nameless.try_subscribe(TOPIC, all_of(&t)).await;
        let mut odd = service.connect(version, &user(ALICE)).await;
        let on_json = json!([{ "schema": "public", "table": t, "filter": "doc=eq.{}" }]);
        let message = refusal(&mut odd, on_json).await;
        assert!(message.contains("operator eq is not supported"), "{message}");

        for level in [1, 3, 1] {
            id += 1;
            let insert = format!("insert into {t} values ({id}, '{ALICE}', '{{}}', {level}, 'v')");
            run(&admin, &insert).await;
        }
        for at in [id - 2, id - 1, id] {
            assert_eq!(alice.change().await["record"]["id"], at);
        }
        // Only the row in question is withheld, and its subscriber is told.
        assert_eq!(poisoned.change().await["record"]["id"], id - 2);
        let mut told_poisoned = false;
        let mut last = poisoned.next().await;
        if last.event == "system" {
            assert_eq!(last.payload["status"], "error");
            told_poisoned = true;
            last = poisoned.next().await;
        }
        assert_eq!(last.payload["data"]["record"]["id"], id, "{last:?}");
        if !told_poisoned {
            assert_eq!(poisoned.expect("system").await.payload["status"], "error");
        }
        // Whether it was found at the join or at the first row, he was told, and got nothing.
        let at_join = told["status"] == "error";
        if !at_join {
            assert_eq!(nameless.expect("system").await.payload["status"], "error");
        }
        nameless.nothing_came().await;
    }
}

#[tokio::test]
async fn c78_a_large_transaction_arrives_whole_in_order_and_at_once() {
    const ROWS: usize = 10_000;
    let service = Service::start().await;
    let admin = service.admin().await;
    let open = service.table("value text").await;
    let owned = service.owned_table("value text").await;
    run(&admin, &format!("insert into {open} values (0); insert into {owned} values (0)")).await;
    service.read_all().await;
    let mut both = all_of(&open);
    both.as_array_mut().unwrap().push(all_of(&owned)[0].clone());
    for (version, round) in VERSIONS.into_iter().zip(0_usize..) {
        let mut socket = service.subscribe(version, &user(ALICE), both.clone()).await;
        let mut other = service.subscribe(version, &anon(), all_of(&open)).await;
        let first = round * ROWS + 1;
        let last = first + ROWS - 1;
        let whose = format!("case when g % 2 = 0 then '{ALICE}'::uuid else '{BOB}' end");
        let insert = format!(
            "begin;
            update {open} set value = 'before {round}' where id = 0;
            insert into {open} select g, 'v' from generate_series({first}, {last}) as g;
            insert into {owned} select g, {whose}, 'v' from generate_series({first}, {last}) as g;
            update {open} set value = 'after {round}' where id = 0;
            commit;"
        );
        run(&admin, &insert).await;
        run(&admin, &format!("update {open} set value = 'next {round}' where id = 0")).await;
        let committed = Instant::now();
        let read = async |socket: &mut Socket, sees_owned: bool| {
            let update = async |socket: &mut Socket, value: &str| {
                let change = socket.change().await;
                let value = json!(format!("{value} {round}"));
                assert_eq!(
                    (&change["type"], &change["record"]["value"]),
                    (&json!("UPDATE"), &value)
                );
            };
            update(socket, "before").await;
            for id in first..=last {
                let change = socket.change().await;
                assert_eq!((&change["table"], &change["record"]["id"]), (&json!(open), &json!(id)));
            }
            for id in (first..=last).filter(|id| sees_owned && id % 2 == 0) {
                let change = socket.change().await;
                assert_eq!(
                    (&change["table"], &change["record"]["id"]),
                    (&json!(owned), &json!(id))
                );
            }
            update(socket, "after").await;
            update(socket, "next").await;
            socket.nothing_came().await;
        };
        tokio::join!(read(&mut socket, true), read(&mut other, false));
        assert!(committed.elapsed() < DEADLINE / 2, "{:?}", committed.elapsed());
    }
}

/// Ends every connection that the service has to this database; how many there were.
async fn cut(admin: &Client) -> i64 {
    let sql = "select count(pg_terminate_backend(pid)) from pg_stat_activity
        where datname = current_database() and usename like 'walcast%'";
    admin.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn c79_nothing_is_lost_while_the_database_cannot_be_reached() {
    const OUTAGE: Duration = Duration::from_secs(5);
    let service = Service::start().await;
    let admin = service.admin().await;
    let writer = service.admin().await;
    let open = service.table("value text").await;
    let owned = service.owned_table("value text").await;
    let mut sockets = Vec::new();
    for version in VERSIONS {
        sockets.push(service.subscribe(version, &anon(), all_of(&open)).await);
        sockets.push(service.subscribe(version, &user(ALICE), all_of(&owned)).await);
    }
    let until = Instant::now() + OUTAGE;
    let write = async {
        let mut id = 0_i64;
        while Instant::now() < until {
            id += 1;
            let mut insert = String::new();
            write!(insert, "begin; insert into {open} values ({id}, 'v');").unwrap();
            write!(insert, "insert into {owned} values ({id}, '{ALICE}', 'v'); commit").unwrap();
            run(&writer, &insert).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        id
    };
    let interrupt = async {
        let mut ended = 0;
        while Instant::now() < until {
            ended += cut(&admin).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        ended
    };
    let (last, ended) = tokio::join!(write, interrupt);
    assert!(ended > 1, "connections came back and were cut again: {ended}");
    for socket in &mut sockets {
        for id in 1..=last {
            assert_eq!(socket.change().await["record"]["id"], id, "of {last}");
        }
        socket.nothing_came().await;
    }
}

/// Ends when the check of a row waits in `pg_sleep`.
async fn a_check_sleeps(admin: &Client) {
    let sql = "select count(*) from pg_stat_activity
        where datname = current_database() and wait_event = 'PgSleep'";
    let until = Instant::now() + DEADLINE;
    while admin.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 0 {
        assert!(Instant::now() < until, "no check sleeps");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whoever comes into the place of somebody who left while a row was being decided must not get
/// what was decided for the other.
#[tokio::test]
async fn a_decision_for_somebody_who_left_reaches_nobody_else() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let t = service.owned_table("value text").await;
    // The answer about alice takes a second.
    run(
        &admin,
        &format!(
            "create function slow(value text) returns bool language plpgsql as $$ begin
                if value = 'slow' and auth.uid() = '{ALICE}' then perform pg_sleep(1); end if;
                return true;
            end $$;
            alter policy own on {t} using (owner = auth.uid() and slow(value))"
        ),
    )
    .await;
    for version in VERSIONS {
        for others_stay in [true, false] {
            let bystander = token(&json!({ "role": "authenticated" }));
            let bystander = service.subscribe(version, &bystander, all_of(&t)).await;
            if !others_stay {
                drop(bystander);
            }
            let mut alice = service.subscribe(version, &user(ALICE), all_of(&t)).await;
            run(&admin, &format!("insert into {t} values (1, '{ALICE}', 'slow')")).await;
            a_check_sleeps(&admin).await;
            leave(&mut alice).await;
            let mut bob = service.subscribe(version, &user(BOB), all_of(&t)).await;
            run(&admin, &format!("insert into {t} values (2, '{BOB}', 'his')")).await;
            assert_eq!(bob.change().await["record"]["value"], "his");
            run(&admin, &format!("truncate {t}")).await;
        }
    }
}

/// A filter is a question about the row: whoever may no longer read its column gets no answers.
#[tokio::test]
async fn c71_a_filter_on_a_column_that_was_revoked_answers_nothing() {
    let service = shared().await;
    let admin = service.admin().await;
    let t = service.table("value text, secret text").await;
    for version in VERSIONS {
        // The grant counts for a join that follows at once.
        run(&admin, &format!("truncate {t}; grant select on {t} to anon")).await;
        let parameters = json!([
            { "schema": "public", "table": t, "filter": "secret=eq.s" },
            { "schema": "public", "table": t, "filter": "value=eq.v" },
        ]);
        let mut socket = service.connect(version, &anon()).await;
        let ids = socket.subscribe(TOPIC, parameters).await;
        run(&admin, &format!("insert into {t} values (1, 'v', 's')")).await;
        let payload = socket.expect("postgres_changes").await.payload;
        assert_eq!(payload["ids"].as_array().unwrap().len(), 2, "{payload}");
        run(
            &admin,
            &format!("revoke select on {t} from anon; grant select (id, value) on {t} to anon"),
        )
        .await;
        run(&admin, &format!("insert into {t} values (2, 'v', 's'), (3, 'w', 's')")).await;
        run(&admin, &format!("insert into {t} values (4, 'v', 't')")).await;
        let mut told = Vec::new();
        let mut seen = Vec::new();
        while seen.len() < 2 {
            let message = socket.next().await;
            if message.event == "system" {
                told.push(message.payload["message"].as_str().unwrap().to_owned());
                continue;
            }
            assert_eq!(message.payload["ids"], json!([ids[1]]), "{message:?}");
            seen.push(message.payload["data"]["record"].clone());
        }
        assert_eq!(seen, [json!({ "id": 2, "value": "v" }), json!({ "id": 4, "value": "v" })]);
        // What is said in words takes a way of its own, and may come after.
        let rest = socket.rest().await.into_iter();
        told.extend(rest.map(|m| m.payload["message"].as_str().unwrap().to_owned()));
        let text = "ended: column secret, which it filters by, may not be read.";
        assert!(told.len() == 1 && told[0].ends_with(text), "{told:?}");
    }
}

#[tokio::test]
async fn c71_without_any_privilege_only_that_something_happened_is_told() {
    let service = shared().await;
    let admin = service.admin().await;
    let t = service.table("value text").await;
    run(&admin, &format!("alter table {t} replica identity full; revoke all on {t} from anon"))
        .await;
    for version in VERSIONS {
        let mut socket = service.subscribe(version, &anon(), all_of(&t)).await;
        run(&admin, &format!("insert into {t} values (1, 'v')")).await;
        let insert = unauthorised(&mut socket).await;
        assert_eq!(insert["data"]["errors"], json!(["Error 401: Unauthorized"]));
        assert_eq!(insert["data"]["record"], json!({}));
        let mut socket = service.subscribe(version, &anon(), all_of(&t)).await;
        run(&admin, &format!("delete from {t}")).await;
        let delete = socket.change().await;
        assert_eq!((&delete["columns"], &delete["old_record"]), (&json!([]), &json!({})));
    }
}

/// Tables change while they are listened to.
#[tokio::test]
async fn f27_tables_may_change_shape_in_mid_stream() {
    let service = shared().await;
    let admin = service.admin().await;
    for version in VERSIONS {
        let t = service.table("value text, gone text").await;
        let mut socket = service.subscribe(version, &anon(), all_of(&t)).await;
        let on_value = json!([{ "schema": "public", "table": t, "filter": "value=eq.v" }]);
        let mut filtered = service.subscribe(version, &anon(), on_value).await;
        // Old and new shapes in one transaction, rows of each as they were written.
        run(
            &admin,
            &format!(
                "begin;
                insert into {t} values (1, 'v', 'g');
                alter table {t} add more int default 7;
                insert into {t} values (2, 'v', 'g');
                alter table {t} drop gone;
                insert into {t} values (3, 'v', 8);
                alter table {t} alter more type text;
                insert into {t} values (4, 'v', 'nine');
                commit"
            ),
        )
        .await;
        for socket in [&mut socket, &mut filtered] {
            let rows = [
                json!({ "id": 1, "value": "v" }),
                json!({ "id": 2, "value": "v", "more": 7 }),
                // Of two columns that one transaction changed these rows have one; which it is
                // cannot always be told. It is there as it was written, or not at all.
                json!({ "id": 3, "value": "v" }),
                json!({ "id": 4, "value": "v" }),
            ];
            for row in rows {
                let change = socket.change().await;
                assert_eq!(change["record"]["id"], row["id"]);
                for (name, value) in row.as_object().unwrap() {
                    assert_eq!(change["record"][name], *value, "{name} of {change}");
                }
                let more = &change["record"]["more"];
                assert!(more.is_null() || *more == 7 || *more == 8 || *more == "nine", "{change}");
            }
        }
        // A filter whose column is gone cannot be decided: its subscriber is told, the others go on.
        run(&admin, &format!("alter table {t} rename value to other")).await;
        run(&admin, &format!("insert into {t} values (5, 'v', 'x')")).await;
        assert_eq!(socket.change().await["record"]["other"], "v");
        let system = filtered.expect("system").await.payload;
        assert_eq!(system["status"], "error", "{system}");
        // Another table by that name is the same subscription's again.
        run(
            &admin,
            &format!(
                "drop table {t};
                create table {t} (id int primary key, value text);
                grant all on {t} to anon;
                alter publication supabase_realtime add table {t};
                insert into {t} values (6, 'v')"
            ),
        )
        .await;
        for socket in [&mut socket, &mut filtered] {
            assert_eq!(socket.change().await["record"], json!({ "id": 6, "value": "v" }));
        }
    }
}

#[tokio::test]
async fn partitions_are_published_as_the_publication_says() {
    for (via_root, expected) in [(true, "parted"), (false, "parted_one")] {
        let service = Service::start().await;
        let admin = service.admin().await;
        run(
            &admin,
            &format!(
                "create table parted (id int, owner uuid, primary key (id)) partition by range (id);
                create table parted_one partition of parted for values from (0) to (10);
                create table parted_two partition of parted for values from (10) to (20);
                grant all on parted, parted_one, parted_two to authenticated;
                alter table parted enable row level security;
                alter table parted_one enable row level security;
                alter table parted_two enable row level security;
                create policy own on parted to authenticated using (owner = auth.uid());
                create policy own on parted_one to authenticated using (owner = auth.uid());
                create policy own on parted_two to authenticated using (owner = auth.uid());
                alter publication supabase_realtime set (publish_via_partition_root = {via_root});
                alter publication supabase_realtime add table parted"
            ),
        )
        .await;
        for version in VERSIONS {
            let parameters = json!([{ "event": "*", "schema": "public", "table": expected }]);
            let mut socket = service.subscribe(version, &user(ALICE), parameters).await;
            run(
                &admin,
                &format!("insert into parted values (1, '{BOB}'), (2, '{ALICE}'), (12, '{BOB}')"),
            )
            .await;
            let change = socket.change().await;
            assert_eq!((&change["table"], &change["record"]["id"]), (&json!(expected), &json!(2)));
            run(&admin, &format!("update parted set owner = '{BOB}'; truncate parted")).await;
            run(&admin, &format!("insert into parted values (3, '{ALICE}')")).await;
            let change = socket.change().await;
            assert_eq!((&change["type"], &change["record"]["id"]), (&json!("INSERT"), &json!(3)));
            run(&admin, "truncate parted").await;
        }
    }
}

#[tokio::test]
async fn a_publication_that_was_missing_for_a_while_is_a_gap_that_everybody_is_told_of() {
    let mut service = Service::start().await;
    let admin = service.admin().await;
    let t = service.table("value text").await;
    let mut socket = service.subscribe(Version::V2, &anon(), all_of(&t)).await;
    run(&admin, "drop publication supabase_realtime").await;
    run(&admin, &format!("insert into {t} values (1, 'lost')")).await;
    // The server ends the stream here, or, from version 18 on, goes on without the row.
    let attached = async || service.request("/readyz").await.starts_with("HTTP/1.1 200 ");
    let detached = async {
        while attached().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, detached).await.expect("the stream is given up");
    run(&admin, &format!("create publication supabase_realtime for table {t}")).await;
    if crate::cluster::version(&admin).await < 180_000 {
        // The slot can never pass that place: a person must give it up (`guardian.rs`, F25).
        let wedged = async {
            while !service.request("/readyz").await.contains("slot_wedged") {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(DEADLINE, wedged).await.expect("the slot is said to be wedged");
        service.stop().await.unwrap();
        return;
    }
    // A gap ends every socket, so that its client subscribes and reads again.
    let code = loop {
        match socket.try_next().await {
            Ok(told) => assert_eq!(told.event, "system", "{told:?}"),
            Err(code) => break code,
        }
    };
    assert_eq!(code, Some(1012));
    let again = async {
        while !attached().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, again).await.expect("the stream goes on");
    // Each time the server passes the place, everybody is told; then rows arrive as before.
    let seen = async {
        for id in 2_i64.. {
            let mut socket = service.subscribe(Version::V2, &anon(), all_of(&t)).await;
            run(&admin, &format!("insert into {t} values ({id}, 'seen')")).await;
            while let Ok(next) = socket.try_next().await {
                if next.event == "postgres_changes" {
                    return;
                }
            }
        }
    };
    tokio::time::timeout(DEADLINE, seen).await.expect("rows arrive again");
}

#[tokio::test]
async fn a_client_that_waits_joins_only_with_its_row_changes_in_force() {
    let service = Service::start().await;
    let t = service.table("value text").await;
    let join = |table: &str, timeout: u64| {
        json!({ "config": {
            "postgres_changes": [{ "event": "*", "schema": "public", "table": table }],
            "postgres_changes_options": { "wait": true, "timeout": timeout },
        } })
    };
    for version in VERSIONS {
        let mut socket = service.connect(version, &anon()).await;
        let reply = socket.join("realtime:a", &join(&t, 5000)).await;
        assert_eq!(reply["status"], "ok", "{reply}");
        assert_eq!(socket.expect("system").await.payload["status"], "ok");
        let reply = socket.join("realtime:b", &join("missing", 5000)).await;
        let reason = reply["response"]["reason"].as_str().unwrap();
        assert!(reason.starts_with("RealtimeDisabledForConfiguration: Unable to"), "{reason}");
    }
    let admin = service.admin().await;
    let name = &service.database.name;
    admin.batch_execute(&format!("alter database {name} connection limit 0")).await.unwrap();
    let kill = "select pg_terminate_backend(pid) from pg_stat_activity
                where datname = current_database() and pid <> pg_backend_pid()";
    admin.execute(kill, &[]).await.unwrap();
    let mut socket = service.connect(Version::V2, &anon()).await;
    let reply = socket.join("realtime:c", &join("unknown", 700)).await;
    let expected = "PostgresChangesSubscribeTimeout: Timed out after 700ms waiting for the \
                    postgres_changes subscription";
    assert_eq!(reply["response"]["reason"], expected);
    // What passes within the time is waited for.
    let reference = socket.send_join("realtime:d", &join(&t, 20000)).await;
    admin.batch_execute(&format!("alter database {name} connection limit -1")).await.unwrap();
    assert_eq!(socket.reply(&reference).await.payload["status"], "ok");
}
