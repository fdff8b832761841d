//! Requests of somebody who means no good: each has its status and code, none is our fault, and
//! none gets further than its role.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::dice::{Dice, encoded};
use super::{callers, read, seeds, world, write};
use crate::rest::{Answer, ask};
use crate::service::{ALICE, DEADLINE, Service, anon, service_role, token, user};

/// What no request may be answered with: SQL that Postgres cannot read, parameters without a type,
/// a protocol that is not kept, statements that are lost, and what Postgres calls its own fault.
const FAULTS: &[&str] = &[
    "42601", "42P18", "42P02", "42702", "42712", "42P09", "42803", "08P01", "26000", "25P02",
    "34000", "XX000", "XX001", "XX002",
];

/// Words of our statements, which nobody else would say.
const OURS: &[&str] = &["with source", "json_agg", "page_total", "array_agg", "as t0", "t0.\""];

/// Names and values.
type Headers<'a> = Vec<(&'a str, &'a str)>;

/// Looks at any answer.
fn check_answer(answer: &Answer, asked: &str, about: &str) {
    assert!(answer.status < 500, "{about}\n{answer:?}");
    if answer.status < 300 || answer.body.is_empty() {
        return;
    }
    let (_, code) = answer.problem();
    let message = answer.json()["message"].as_str().unwrap_or_default().to_owned();
    // The text of a query of the text search can have a syntax error, which is not one of SQL.
    let is_in_value = code == "42601" && message.contains("tsquery");
    assert!(!FAULTS.contains(&&*code) || is_in_value, "{about}\n{answer:?}");
    for word in OURS {
        assert!(!answer.body.contains(word) || asked.contains(word), "{word}: {about}\n{answer:?}");
    }
}

/// Notes an answer that is not as documented; below 300 there is no code.
fn judge(answer: &Answer, expected: (u16, &str), about: &str, wrong: &mut Vec<String>) {
    let found = if answer.status < 300 || !answer.body.starts_with('{') {
        (answer.status, String::new())
    } else {
        answer.problem()
    };
    if found == (expected.0, expected.1.to_owned()) {
        check_answer(answer, "", about);
    } else {
        wrong.push(format!("{about}: {expected:?}, not {answer:?}"));
    }
}

/// Sends bytes as they are.
async fn send(service: &Service, bytes: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(service.address).await.unwrap();
    // Whoever is refused early may find the connection closed while he still writes.
    let _ = stream.write_all(bytes).await;
    let mut response = Vec::new();
    let read = timeout(DEADLINE, stream.read_to_end(&mut response)).await;
    let _ = read
        .unwrap_or_else(|_| panic!("no answer to {:?}", String::from_utf8_lossy(bytes).get(300..)));
    assert!(!response.is_empty(), "no answer to {:?}", String::from_utf8_lossy(bytes).get(..300));
    Answer::parse(&response)
}

/// A character here and there, a piece of something else, an end too early.
fn mutated(text: &str, dice: &mut Dice) -> String {
    const PIECES: &[&str] = &[
        "\"",
        "'",
        "(",
        ")",
        ",",
        ".",
        "->",
        "->>",
        "::",
        "*",
        "\\",
        ";--",
        "{",
        "}",
        "not.",
        "or",
        "and",
        "in.",
        "is.",
        "fts(1).",
        "fts(english).",
        "!inner",
        "...",
        "$1",
        "null",
        "%",
        "\u{0}",
        "ü",
        "\t",
        "99999999999999999999",
        "-1",
        "0",
        "select",
        "count()",
        "id",
        "::regclass",
        "::int[]",
        "(any)",
        "(all)",
        "eq.",
        "cs.",
        "\u{ffff}",
        "&",
        "=",
        "order",
        "books",
        "::\"char\"",
        "::record",
        "  ",
    ];
    let mut characters: Vec<char> = text.chars().collect();
    for _ in 0..=dice.below(3) {
        let at = dice.below(characters.len() + 1);
        match dice.below(4) {
            0 if at < characters.len() => {
                characters.remove(at);
            }
            1 => characters.truncate(at.max(characters.len() / 2)),
            2 if at < characters.len() => {
                let from = dice.below(at + 1);
                let piece: Vec<char> = characters[from..at].iter().take(20).copied().collect();
                characters.splice(at..at, piece);
            }
            _ => {
                let piece = *dice.of(PIECES);
                characters.splice(at..at, piece.chars());
            }
        }
    }
    characters.into_iter().collect()
}

#[tokio::test]
async fn f83_no_near_miss_is_our_fault() {
    const PREFER: &[&str] = &[
        "count=exact",
        "count=planned",
        "count=estimated",
        "return=representation",
        "return=minimal",
        "return=headers-only",
        "missing=default",
        "resolution=merge-duplicates",
        "tx=rollback",
        "handling=strict",
        "handling=lenient",
        "timezone=Nowhere",
        "timezone=",
        "max-affected=0",
        "max-affected=-1",
        "max-affected=x",
        "wait=feed",
        "params=single-object",
        ",,;=",
        "count=",
    ];
    const ACCEPT: &[&str] = &[
        "*/*",
        "application/json",
        "text/csv",
        "application/vnd.pgrst.object+json",
        "image/png",
        "application/vnd.pgrst.plan+json",
        "application/json;q=0",
        ";;",
        "application/openapi+json",
    ];
    let (service, admin, _) = world().await;
    let callers = callers();
    let statements = "select count(*) from pg_stat_activity
        where datname = current_database() and application_name = 'walcast rest'";
    let (mut answered, mut refused) = (0_u64, 0_u64);
    for seed in seeds() {
        let mut dice = Dice::new(seed ^ 0x5eed);
        let caller = dice.of(&callers);
        let is_write = dice.percent(35);
        let (mut method, table, pairs, body) = if is_write {
            let change = write::any(&mut dice);
            let body = change.body.as_ref().map(Value::to_string).unwrap_or_default();
            (change.method, change.table.name, change.pairs, body)
        } else {
            let table = dice.of(world::TABLES);
            ("GET", table.name, read::target(table, table.name, &mut dice).0, String::new())
        };
        if dice.percent(10) {
            method =
                *dice.of(&["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]);
        }
        let mut path = write::path(table);
        if dice.percent(8) {
            path = format!("/{}", encoded(&mutated(table, &mut dice)));
        } else if dice.percent(10) {
            path = "/rpc/priced".into();
        }
        let pairs: Vec<String> = pairs
            .iter()
            .map(|(name, value)| {
                let name = if dice.percent(4) { mutated(name, &mut dice) } else { name.clone() };
                let value =
                    if dice.percent(12) { mutated(value, &mut dice) } else { value.clone() };
                format!("{}={}", encoded(&name), encoded(&value))
            })
            .collect();
        let mut query = pairs.join("&");
        if dice.percent(5) {
            query = query.replace('%', "%%");
        }
        let body = if dice.percent(15) { mutated(&body, &mut dice) } else { body };
        let mut request = ask(method, &format!("{path}?{query}")).bearing(&caller.token);
        if dice.percent(20) {
            let prefer =
                [*dice.of(PREFER), *dice.of(PREFER)].join(if dice.percent(90) { ", " } else { "" });
            request = request.with("prefer", &prefer);
        }
        if dice.percent(8) {
            let accept = *dice.of(ACCEPT);
            request = request.with("accept", accept);
        }
        if dice.percent(4) {
            let profile = *dice.of(&["public", "pg_catalog", "auth", ""]);
            request = request.with("accept-profile", profile);
        }
        let kind = match dice.below(40) {
            0 => "text/csv",
            1 => "application/x-www-form-urlencoded",
            2 => *dice.of(&["image/png", ";", "text/plain", "application/json; charset=x"]),
            _ => "application/json",
        };
        request = request.text(kind, &body);
        let answer = request.send(&service).await;
        check_answer(
            &answer,
            &format!("{query}{body}"),
            &format!("seed {seed}, {} {request:?}", caller.role),
        );
        if answer.status < 300 {
            answered += 1;
        } else {
            refused += 1;
        }
    }
    // Nothing of it has ended a connection or left one behind.
    let connections: i64 = admin.query_one(statements, &[]).await.unwrap().get(0);
    assert!(connections <= 2, "{connections}");
    assert!(answered > 20 || seeds().count() < 100, "{answered} answered, {refused} refused");
}

#[tokio::test]
async fn bad_input_has_its_documented_status_and_code() {
    let (service, _, _) = world().await;
    let deep = |levels: usize| format!("{}id.eq.1{}", "or(".repeat(levels), ")".repeat(levels));
    let many = |item: &str, times: usize| vec![item; times].join(",");
    let select_deep = format!("{}id{}", "categories(".repeat(20), ")".repeat(20));
    let steps = format!("prefs{}", "->a".repeat(101));
    let cases: Vec<(&str, String, (u16, &str))> = vec![
        ("GET", "/nothing".into(), (404, "PGRST205")),
        ("GET", "/bo%00ks".into(), (404, "PGRST125")),
        ("GET", "/pg_class".into(), (404, "PGRST205")),
        ("GET", "/public.books".into(), (404, "PGRST205")),
        ("GET", "/books/1".into(), (404, "PGRST125")),
        ("GET", "/books?no=eq.1".into(), (400, "42703")),
        ("GET", "/books?select=no".into(), (400, "42703")),
        ("GET", "/books?order=no".into(), (400, "42703")),
        ("GET", "/books?id=equals.1".into(), (400, "PGRST100")),
        ("GET", "/books?id=1".into(), (400, "PGRST100")),
        ("GET", "/books?id=eq.one".into(), (400, "22P02")),
        ("GET", "/books?id=eq.99999999999".into(), (400, "22003")),
        ("GET", "/books?title=eq.%00".into(), (400, "PGRST100")),
        ("GET", "/books?title=eq.%ff".into(), (400, "PGRST100")),
        ("GET", "/books?or=(id.eq.1".into(), (400, "PGRST100")),
        ("GET", "/books?or=id.eq.1".into(), (400, "PGRST100")),
        ("GET", format!("/books?or=({})", deep(31)), (200, "")),
        ("GET", format!("/books?or=({})", deep(32)), (400, "PGRST100")),
        ("GET", format!("/categories?select={select_deep}"), (400, "PGRST100")),
        ("GET", format!("/authors?select={steps}").replace('>', "%3E"), (400, "PGRST100")),
        ("GET", format!("/books?select={}", many("*", 1000)), (400, "PGRST100")),
        ("GET", format!("/books?select={}", many("id", 1001)), (400, "PGRST100")),
        ("GET", format!("/categories?select={}", many("categories(id)", 101)), (400, "PGRST100")),
        ("GET", format!("/books?order={}", many("raw-%3E%3Ea", 2000)), (400, "PGRST100")),
        ("GET", format!("/books?id=in.({})", many("1", 20_000)), (200, "")),
        ("GET", format!("/books?or=({})", many("id.eq.1", 6_000)), (200, "")),
        ("GET", format!("/books?{}", vec!["id=eq.1"; 1001].join("&")), (414, "PGRST100")),
        ("GET", format!("/books?title=eq.{}", "x".repeat(60_000)), (200, "")),
        ("GET", "/books?words=fts(1).cat".into(), (400, "42704")),
        ("GET", "/books?words=fts(nowhere).cat".into(), (400, "42704")),
        ("GET", "/books?title=match.(".into(), (400, "2201B")),
        ("GET", "/books?title=like.%5C".into(), (400, "22025")),
        ("GET", "/books?select=id::no_such_type".into(), (400, "42704")),
        ("GET", "/books?select=title::regclass".into(), (404, "42P01")),
        ("GET", "/books?select=id::int)%20from%20books--".into(), (400, "PGRST100")),
        ("GET", "/books?limit=-1".into(), (416, "PGRST103")),
        ("GET", "/books?offset=-1".into(), (416, "PGRST103")),
        ("GET", "/books?limit=18446744073709551616".into(), (200, "")),
        ("GET", "/books?offset=18446744073709551616".into(), (200, "")),
        ("GET", "/books?select=authors(*)".into(), (300, "PGRST201")),
        ("GET", "/books?select=kinds(*)".into(), (400, "PGRST200")),
        ("GET", "/books?authors.id=eq.1".into(), (400, "PGRST108")),
        ("GET", "/books?select=...reviews(*)".into(), (400, "PGRST119")),
        ("GET", "/books?select=id,reviews(id)&order=reviews(id)".into(), (400, "PGRST118")),
        ("GET", "/books?select=id,reviews(id)&reviews=eq.1".into(), (400, "PGRST120")),
        ("GET", "/rpc/nothing".into(), (404, "PGRST202")),
        ("GET", "/rpc/priced?low=x".into(), (400, "22P02")),
        ("GET", "/rpc/priced?no=1".into(), (404, "PGRST202")),
        ("GET", "/rpc/pg_sleep?seconds=1".into(), (404, "PGRST202")),
        ("GET", "/rpc/set_config".into(), (404, "PGRST202")),
        ("PATCH", "/rpc/priced?low=1".into(), (405, "PGRST101")),
        ("TRACE", "/books".into(), (405, "PGRST117")),
        ("DELETE", "/kinds".into(), (400, "21000")),
        ("DELETE", "/kinds?id=eq.1&limit=1".into(), (400, "PGRST127")),
    ];
    let mut wrong = Vec::new();
    for (method, path, expected) in cases {
        let about = format!("{method} {}", path.get(..120).unwrap_or(&path));
        let answer = ask(method, &path).bearing(&service_role()).send(&service).await;
        judge(&answer, expected, &about, &mut wrong);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn f62_bad_bodies_and_headers_have_their_status_and_code() {
    let (service, _, _) = world().await;
    let all: Vec<String> = (0..3000).map(|number| format!("\"c{number}\":1")).collect();
    let deep = |levels: usize| {
        format!("{{\"id\":1,\"doc\":{}{}}}", "[".repeat(levels), "]".repeat(levels))
    };
    let rows: Vec<Value> = (0..20_000)
        .map(|id| json!({ "id": id + 1_000_000, "name": "x", "flag": true, "mood": "ok" }))
        .collect();
    let bodies: Vec<(&str, &str, String, (u16, &str))> = vec![
        ("POST", "/kinds", "{".into(), (400, "PGRST102")),
        ("POST", "/kinds", String::new(), (400, "PGRST102")),
        ("POST", "/kinds", "1".into(), (400, "PGRST102")),
        ("POST", "/kinds", "[1]".into(), (400, "PGRST102")),
        ("POST", "/kinds", "{\"id\":1}{".into(), (400, "PGRST102")),
        ("POST", "/kinds", "{\"no\":1}".into(), (400, "PGRST204")),
        ("POST", "/kinds", format!("{{{}}}", all.join(",")), (400, "PGRST204")),
        ("POST", "/kinds", "[{\"id\":1},{\"name\":1}]".into(), (400, "PGRST102")),
        ("POST", "/kinds", "{\"id\":70,\"name\":\"\\u0000\"}".into(), (400, "22P05")),
        ("POST", "/kinds", "{\"id\":1e400}".into(), (400, "22P02")),
        ("POST", "/kinds", "{\"id\":71,\"email\":\"none\"}".into(), (400, "23514")),
        ("POST", "/kinds", "{\"id\":72,\"mood\":\"none\"}".into(), (400, "22P02")),
        ("POST", "/kinds", "{\"id\":73,\"price\":123456789}".into(), (400, "22003")),
        ("POST", "/kinds", deep(200), (400, "PGRST102")),
        ("POST", "/kinds", Value::Array(rows).to_string(), (201, "")),
        ("POST", "/kinds?columns=no", "{\"id\":1}".into(), (400, "PGRST204")),
        ("POST", "/kinds?on_conflict=no", "{\"id\":1}".into(), (400, "42703")),
        ("PUT", "/kinds?id=eq.1", "{\"id\":2}".into(), (400, "PGRST115")),
        ("PUT", "/kinds", "{\"id\":2}".into(), (405, "PGRST105")),
        ("PATCH", "/kinds?id=eq.1", "[{\"id\":1},{\"id\":2}]".into(), (400, "PGRST102")),
        ("PATCH", "/loud?id=eq.1", "{\"title\":\"x\"}".into(), (400, "0A000")),
        ("POST", "/stock", "{\"id\":90,\"room\":9,\"pos\":9}".into(), (409, "23503")),
        ("POST", "/tags", "{\"id\":90,\"label\":\"l1\"}".into(), (409, "23505")),
        ("POST", "/rpc/priced", "[]".into(), (400, "PGRST127")),
        ("POST", "/rpc/priced", "{\"low\":{}}".into(), (400, "22P02")),
    ];
    let mut wrong = Vec::new();
    for (method, path, body, expected) in bodies {
        let about = format!("{method} {path} {}", body.get(..100).unwrap_or(&body));
        let request = ask(method, path).bearing(&service_role()).text("application/json", &body);
        let answer = request.with("prefer", "resolution=none").send(&service).await;
        judge(&answer, expected, &about, &mut wrong);
    }
    let headers: Vec<(&str, Headers, (u16, &str))> = vec![
        ("GET", vec![("accept", "image/png")], (406, "PGRST107")),
        ("GET", vec![("accept", "text/csv")], (400, "PGRST127")),
        ("GET", vec![("accept-profile", "auth")], (406, "PGRST106")),
        ("GET", vec![("accept-profile", "pg_catalog")], (406, "PGRST106")),
        ("GET", vec![("accept-profile", "public; drop table books")], (406, "PGRST106")),
        ("GET", vec![("prefer", "handling=strict, nothing=1")], (400, "PGRST122")),
        ("GET", vec![("prefer", "handling=strict, timezone=Nowhere")], (400, "PGRST122")),
        ("GET", vec![("prefer", "timezone=Nowhere; x")], (200, "")),
        ("POST", vec![("content-type", "image/png")], (400, "PGRST102")),
        (
            "POST",
            vec![("content-type", "application/json"), ("content-type", "text/csv")],
            (400, "PGRST102"),
        ),
        ("POST", vec![("content-profile", "auth")], (406, "PGRST106")),
        ("GET", vec![("authorization", "Bearer x.y.z")], (401, "PGRST301")),
        ("GET", vec![("authorization", "Basic x")], (401, "PGRST301")),
    ];
    for (method, headers, expected) in headers {
        let mut request = ask(method, "/kinds");
        if headers.iter().all(|(name, _)| *name != "authorization") {
            request = request.bearing(&service_role());
        }
        for (name, value) in &headers {
            request = request.with(name, value);
        }
        request = if method == "POST" { request.bytes_of("{\"id\": 500}") } else { request };
        let answer = request.send(&service).await;
        judge(&answer, expected, &format!("{headers:?}"), &mut wrong);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn f67_a_message_that_lies_about_itself_is_refused_and_harms_nobody() {
    let (service, _, _) = world().await;
    let head = format!(
        "POST /rest/v1/kinds HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nconnection: close\r\n",
        service_role()
    );
    let cases = [
        ("content-length: 4294967296\r\n\r\n", Some(413)),
        ("content-length: 18446744073709551615\r\n\r\n", None),
        ("content-length: 99999999999999999999999\r\n\r\n", None),
        ("content-length: -1\r\n\r\n", None),
        ("content-length: 2\r\ncontent-length: 3\r\n\r\n{}x", None),
        ("transfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n{}", None),
        ("transfer-encoding: chunked\r\n\r\nzz\r\n{}", None),
        ("x: a\0b\r\ncontent-length: 2\r\n\r\n{}", None),
    ];
    for (rest, expected) in cases {
        let answer = send(&service, format!("{head}{rest}").as_bytes()).await;
        assert!((400..500).contains(&answer.status), "{rest:?}: {answer:?}");
        assert!(expected.is_none_or(|status| answer.status == status), "{rest:?}: {answer:?}");
    }
    // What functions could read about a request is as large as its head may be, and no larger.
    let cookie = format!("session={}", "x".repeat(30_000));
    let answer =
        ask("GET", "/books?limit=1").bearing(&anon()).with("cookie", &cookie).send(&service).await;
    check_answer(&answer, "", "a large cookie");
    let large = format!(
        "GET /rest/v1/books HTTP/1.1\r\nhost: x\r\nx-large: {}\r\n\r\n",
        "x".repeat(2_000_000)
    );
    let answer = send(&service, large.as_bytes()).await;
    assert_eq!(answer.status, 431, "{answer:?}");
    let answer = ask("GET", "/books?limit=1").bearing(&anon()).send(&service).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn nobody_gets_further_than_his_role() {
    let (service, admin, _) = world().await;
    admin
        .batch_execute(
            "create schema vault;
            create table vault.secrets (id int primary key, book_id int references public.books);
            insert into vault.secrets values (1, 1);
            grant usage on schema vault to public;
            grant all on vault.secrets to anon, authenticated, service_role;
            create function vault.open_all() returns int language sql as 'select 1';
            notify pgrst, 'reload schema';",
        )
        .await
        .unwrap();
    let (alice, nobody) = (user(ALICE), anon());
    let claims = |claims: Value| token(&claims);
    let cases: Vec<(&str, &str, String, (u16, &str))> = vec![
        // Roles that are not to be had.
        ("GET", "/books", claims(json!({ "role": "postgres" })), (403, "42501")),
        ("GET", "/books", claims(json!({ "role": "walcast_rest" })), (403, "42501")),
        ("GET", "/books", claims(json!({ "role": "service_role\0" })), (403, "42501")),
        ("GET", "/books", claims(json!({ "role": "anon, service_role" })), (403, "42501")),
        ("GET", "/books", claims(json!({ "role": ["service_role"] })), (403, "42501")),
        // Schemas that are not served, also behind a foreign key.
        ("GET", "/secrets", alice.clone(), (404, "PGRST205")),
        ("GET", "/vault.secrets", alice.clone(), (404, "PGRST205")),
        ("GET", "/books?select=secrets(*)", alice.clone(), (400, "PGRST200")),
        ("GET", "/rpc/open_all", alice.clone(), (404, "PGRST202")),
        ("GET", "/rpc/vault.open_all", alice.clone(), (404, "PGRST202")),
        // Columns without a grant: not shown, and not asked about.
        ("GET", "/guarded", alice.clone(), (403, "42501")),
        ("GET", "/guarded?select=hidden", alice.clone(), (403, "42501")),
        ("GET", "/guarded?select=id&hidden=eq.h1", alice.clone(), (403, "42501")),
        ("GET", "/guarded?select=id&hidden=is.null", alice.clone(), (403, "42501")),
        ("GET", "/guarded?select=id&or=(hidden.like.*,id.eq.1)", alice.clone(), (403, "42501")),
        ("GET", "/guarded?select=id&order=hidden", alice.clone(), (403, "42501")),
        ("GET", "/guarded?select=id&hidden=in.()", alice.clone(), (403, "42501")),
        ("GET", "/guarded?select=id", nobody.clone(), (401, "42501")),
        ("HEAD", "/guarded?select=id&hidden=eq.h1", alice.clone(), (403, "")),
        ("DELETE", "/guarded?hidden=eq.h1", alice.clone(), (403, "42501")),
        ("DELETE", "/books?id=eq.1", alice.clone(), (403, "42501")),
    ];
    let mut wrong = Vec::new();
    for (method, path, token, expected) in cases {
        let answer = ask(method, path).bearing(&token).send(&service).await;
        let about = format!("{method} {path}");
        if method == "HEAD" {
            assert_eq!(answer.status, expected.0, "{about}: {answer:?}");
            continue;
        }
        judge(&answer, expected, &about, &mut wrong);
        assert!(!answer.body.contains("vault.s") || path.contains("vault"), "{about}: {answer:?}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let answer =
        ask("GET", "/guarded?select=id,shown&id=eq.1").bearing(&alice).send(&service).await;
    assert_eq!((answer.status, answer.json()), (200, json!([{ "id": 1, "shown": "s1" }])));
    // Headers that other programs would believe.
    for (name, value) in [
        ("role", "service_role"),
        ("x-role", "service_role"),
        ("request.jwt.claims", "{\"role\":\"service_role\"}"),
        ("x-connection-id", "'; set role postgres; --"),
        ("x-mutation-id", "$1"),
        ("cookie", "role=service_role; request.jwt.claims=x"),
    ] {
        let answer = ask("PATCH", "/guarded?id=eq.1")
            .bearing(&alice)
            .json(&json!({ "hidden": "mine" }))
            .with(name, value)
            .send(&service)
            .await;
        assert_eq!(answer.problem().1, "42501", "{name}: {answer:?}");
    }
}

/// Counts with the words `planned` and `estimated` are the planner's, who knows how many rows
/// there are in the whole table, as in PostgREST; but he is told the policies, too.
#[tokio::test]
async fn an_estimate_names_no_row_that_is_hidden() {
    let (service, admin, _) = world().await;
    admin.batch_execute("analyze").await.unwrap();
    let count = async |path: &str, how: &str| {
        let answer = ask("GET", path)
            .bearing(&user(ALICE))
            .with("prefer", &format!("count={how}"))
            .send(&service)
            .await;
        let range = answer.header("content-range").unwrap_or_default().to_owned();
        range.split_once('/').map(|(_, total)| total.to_owned()).unwrap_or_default()
    };
    // Up to the row limit an estimate is a count of what the caller sees.
    let exact = count("/authors?select=id", "exact").await;
    assert_eq!(exact, "6");
    assert_eq!(count("/authors?select=id", "estimated").await, exact);
    // A row that he cannot see is as good as none.
    assert_eq!(count("/authors?select=id&id=eq.3", "estimated").await, "0");
    let planned = count("/authors?select=id&id=eq.3", "planned").await;
    assert_eq!(planned, count("/authors?select=id&id=eq.4", "planned").await, "seen or not");
}

#[tokio::test]
async fn f83_what_differs_in_values_alone_is_one_statement() {
    let service = Service::with(|config| config.rest.pool_size = 1).await;
    let admin = service.admin().await;
    let sql = format!(
        "{}; create function kept() returns bigint language sql volatile as
            $$ select count(*) from pg_prepared_statements where statement like '%kinds%' $$;
        notify pgrst, 'reload schema'",
        world::SCHEMA
    );
    admin.batch_execute(&sql).await.unwrap();
    let kept =
        async || ask("POST", "/rpc/kept").bearing(&service_role()).send(&service).await.json();
    for round in 1..=12_usize {
        let values = vec!["'; select 1 --"; round].join("\",\"");
        let path =
            format!("/kinds?name=in.(\"{values}\")&id=gt.{round}&limit={round}&offset={round}");
        let path = encoded(&path)
            .replace("%2F", "/")
            .replace("%3F", "?")
            .replace("%3D", "=")
            .replace("%26", "&");
        let answer = ask("GET", &path).bearing(&service_role()).send(&service).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let rows: Vec<Value> =
            (0..round).map(|id| json!({ "id": 900 + id, "name": values })).collect();
        let answer = ask("POST", "/kinds?on_conflict=id")
            .bearing(&service_role())
            .json(&Value::Array(rows))
            .with("prefer", "resolution=merge-duplicates")
            .send(&service)
            .await;
        assert!(answer.status < 300, "{answer:?}");
    }
    assert_eq!(kept().await, 2);
}
