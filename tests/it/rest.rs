//! Rows over HTTP, on a whole service: who runs what, what is left behind, and what is answered.
//!
//! What statements do with names, filters and values is in `rest_read.rs` and `rest_write.rs`.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_postgres::Client;

use crate::service::{
    ALICE, BOB, DEADLINE, SECRET, Service, anon, now, service_role, sign, token, user,
};

/// What the service answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn parse(response: &[u8]) -> Self {
        // What is compressed is no text.
        let response = String::from_utf8_lossy(response);
        let (head, body) = response.split_once("\r\n\r\n").expect("a whole head");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head: head.into(), body: body.into() }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|it| it.1)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }

    /// Status and code of a problem, which has all four keys.
    pub(crate) fn problem(&self) -> (u16, String) {
        let body = self.json();
        for key in ["code", "message", "details", "hint"] {
            assert!(body.get(key).is_some(), "{key}: {self:?}");
        }
        (self.status, body["code"].as_str().unwrap().to_owned())
    }
}

/// One request in the making.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    method: &'static str,
    path: String,
    headers: Vec<(String, String)>,
    body: String,
}

pub(crate) fn ask(method: &'static str, path: &str) -> Ask {
    Ask { method, path: format!("/rest/v1{path}"), headers: Vec::new(), body: String::new() }
}

/// As [`ask`], of any path.
pub(crate) fn ask_at(method: &'static str, path: &str) -> Ask {
    Ask { path: path.into(), ..ask(method, "") }
}

impl Ask {
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(crate) fn bearing(self, token: &str) -> Self {
        self.with("authorization", &format!("Bearer {token}"))
    }

    pub(crate) fn json(mut self, body: &Value) -> Self {
        self.body = body.to_string();
        self.with("content-type", "application/json")
    }

    /// With this body of this type.
    pub(crate) fn text(self, kind: &str, body: &str) -> Self {
        self.bytes_of(body).with("content-type", kind)
    }

    /// With this body, whatever it is.
    pub(crate) fn bytes_of(mut self, body: &str) -> Self {
        self.body = body.into();
        self
    }

    fn bytes(&self) -> String {
        let Self { method, path, headers, body } = self;
        let mut text = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
        for (name, value) in headers {
            text.extend([name, ": ", value, "\r\n"]);
        }
        text.extend(["content-length: ", &body.len().to_string(), "\r\n\r\n", body]);
        text
    }

    pub(crate) async fn send(&self, service: &Service) -> Answer {
        let mut stream = TcpStream::connect(service.address).await.unwrap();
        stream.write_all(self.bytes().as_bytes()).await.unwrap();
        let mut response = Vec::new();
        let read = timeout(DEADLINE, stream.read_to_end(&mut response)).await;
        read.expect("an answer in time").unwrap();
        Answer::parse(&response)
    }
}

const SCHEMA: &str = "
    create table todos (
        id bigint primary key, owner uuid, title text not null, rank int default 7,
        unique (title), check (rank < 100));
    alter table todos enable row level security;
    create policy own on todos to authenticated
        using (owner = (select auth.uid())) with check (owner = (select auth.uid()));
    create policy everything on todos to service_role using (true) with check (true);
    grant all on todos to authenticated, service_role;
    create table open (id bigint primary key, name text);
    grant all on open to anon, authenticated, service_role;
    create table parts (id bigint primary key, todo bigint references todos);
    grant all on parts to service_role;
    create function who() returns json language sql stable as $$
        select json_build_object(
            'role', current_user, 'claims', current_setting('request.jwt.claims')::json,
            'method', current_setting('request.method'), 'path', current_setting('request.path'),
            'header', current_setting('request.headers')::json ->> 'x-tenant',
            'cookie', current_setting('request.cookies')::json ->> 'session',
            'search_path', current_setting('search_path'),
            'read_only', current_setting('transaction_read_only'),
            'isolation', current_setting('transaction_isolation'),
            'timeout', current_setting('statement_timeout'),
            'work_mem', current_setting('work_mem'),
            'zone', current_setting('TimeZone')) $$;
    create function nothing() returns void language sql as 'select';
    create function fail(code text) returns int language plpgsql as $$ begin
        raise exception 'told' using errcode = code, detail = 'the detail', hint = 'the hint';
    end $$;
    create function wait(seconds float8) returns int language sql as $$
        select pg_sleep(seconds); select 1 $$;
    create function numbers(n int) returns setof int language sql stable as
        'select generate_series(1, n)';
";

/// A service with these tables, and rows of two users.
async fn world() -> Service {
    world_with(|_| ()).await
}

async fn world_with(change: impl FnOnce(&mut walcast::config::Config)) -> Service {
    let service = Service::with(change).await;
    let admin = service.admin().await;
    admin.batch_execute(SCHEMA).await.unwrap();
    let rows = format!(
        "insert into todos values (1, '{ALICE}', 'one', 1), (2, '{ALICE}', 'two', 2),
            (3, '{BOB}', 'three', 3);
         insert into open values (1, 'a'), (2, 'b'), (3, 'c');
         notify pgrst, 'reload schema';"
    );
    admin.batch_execute(&rows).await.unwrap();
    service
}

async fn count(admin: &Client, of: &str) -> i64 {
    admin.query_one(&format!("select count(*) from {of}"), &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn everybody_reads_as_himself() {
    let service = world().await;
    let titles = async |token: &str| {
        let answer = ask("GET", "/todos?select=title&order=id").bearing(token).send(&service).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/json; charset=utf-8"));
        answer.json()
    };
    assert_eq!(titles(&user(ALICE)).await, json!([{ "title": "one" }, { "title": "two" }]));
    assert_eq!(titles(&user(BOB)).await, json!([{ "title": "three" }]));
    assert_eq!(titles(&service_role()).await.as_array().unwrap().len(), 3);
    // The same statement, prepared by now, for each of them again.
    for _ in 0..3 {
        assert_eq!(titles(&user(BOB)).await, json!([{ "title": "three" }]));
        assert_eq!(titles(&user(ALICE)).await.as_array().unwrap().len(), 2);
    }
}

#[tokio::test]
async fn nobody_in_particular_is_the_anonymous_role() {
    let service = world().await;
    let key = anon();
    let read = ask("GET", "/open?id=eq.1");
    for ask in [read.clone(), read.clone().with("apikey", &key), read.clone().bearing(&key)] {
        let answer = ask.send(&service).await;
        assert_eq!((answer.status, answer.json()), (200, json!([{ "id": 1, "name": "a" }])));
    }
    let answer = ask("GET", "/todos").send(&service).await;
    assert_eq!(answer.problem(), (401, "42501".into()));
    assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    let answer = ask("GET", "/parts").bearing(&user(ALICE)).send(&service).await;
    assert_eq!(answer.problem(), (403, "42501".into()));
    assert_eq!(answer.json()["message"], "permission denied for table parts");
}

#[tokio::test]
async fn whose_token_is_no_good_is_told_why() {
    let key = "sb_publishable_0123456789abcdef0123456789abcdef";
    let service = world_with(|config| {
        config.jwt.api_keys = walcast::config::Secret::new(json!({ key: "anon" }).to_string());
    })
    .await;
    let claims = |more: &Value| {
        let mut claims = json!({ "role": "authenticated", "sub": ALICE, "exp": now() + 60 });
        for (name, value) in more.as_object().unwrap() {
            claims[name] = value.clone();
        }
        sign(&claims, SECRET)
    };
    for (token, expected) in [
        ("nonsense".to_owned(), (401, "PGRST301")),
        (sign(&json!({ "role": "anon", "exp": now() + 60 }), &"x".repeat(40)), (401, "PGRST301")),
        (claims(&json!({ "exp": now() - 40 })), (401, "PGRST303")),
        (claims(&json!({ "nbf": now() + 60 })), (401, "PGRST303")),
        (claims(&json!({ "iat": now() + 60 })), (401, "PGRST303")),
        (token(&json!({ "role": "postgres" })), (403, "42501")),
        (key.to_owned(), (401, "PGRST301")),
    ] {
        let answer = ask("GET", "/open").bearing(&token).send(&service).await;
        assert_eq!(answer.problem(), (expected.0, expected.1.into()), "{token}");
        let challenge = answer.header("www-authenticate");
        assert_eq!(challenge.is_some(), expected.0 == 401, "{challenge:?}");
    }
    // Clocks differ a little; a key may be sent as supabase-js does until somebody signs in.
    for ask in [
        ask("GET", "/open").bearing(&claims(&json!({ "exp": now() - 5, "nbf": now() + 5 }))),
        ask("GET", "/open").bearing(key).with("apikey", key),
        ask("GET", "/open").with("apikey", key),
    ] {
        assert_eq!(ask.send(&service).await.status, 200, "{ask:?}");
    }
}

#[tokio::test]
async fn without_an_anonymous_role_a_token_is_needed() {
    let service = world_with(|config| config.rest.anon_role = String::new()).await;
    let answer = ask("GET", "/open").send(&service).await;
    assert_eq!(answer.problem(), (401, "PGRST302".into()));
    assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    let answer = ask("GET", "/open").bearing(&anon()).send(&service).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn functions_see_who_asks_and_how() {
    let service = world_with(|config| config.rest.statement_timeout_ms = 60_000).await;
    let admin = service.admin().await;
    let name = &service.database.name;
    let own = format!(
        "alter role authenticated in database \"{name}\" set work_mem = '1234kB';
         alter role authenticated in database \"{name}\" set statement_timeout = '9s';
         alter role authenticated in database \"{name}\"
            set default_transaction_isolation = 'repeatable read';
         alter role authenticated in database \"{name}\" set session_replication_role = 'local'"
    );
    admin.batch_execute(&own).await.unwrap();
    let answer = ask("GET", "/rpc/who")
        .bearing(&user(ALICE))
        .with("x-tenant", "seven")
        .with("cookie", "session=s1; other=2")
        .send(&service)
        .await;
    let seen = answer.json();
    for (name, expected) in [
        ("role", json!("authenticated")),
        ("method", json!("GET")),
        ("path", json!("/rpc/who")),
        ("header", json!("seven")),
        ("cookie", json!("s1")),
        ("search_path", json!("\"public\", \"extensions\"")),
        ("read_only", json!("on")),
        ("isolation", json!("repeatable read")),
        ("timeout", json!("9s")),
        ("work_mem", json!("1234kB")),
    ] {
        assert_eq!(seen[name], expected, "{name}: {seen}");
    }
    assert_eq!(seen["claims"]["sub"], ALICE);
    // The settings of one role are not another's.
    let seen = ask("POST", "/rpc/who").send(&service).await.json();
    assert_eq!(seen["role"], "anon");
    assert_eq!(seen["claims"], json!({ "role": "anon" }));
    assert_eq!((&seen["method"], &seen["timeout"]), (&json!("POST"), &json!("1min")));
    assert_ne!(seen["work_mem"], "1234kB");
    // A function that is stable cannot write, whatever the method.
    assert_eq!(seen["read_only"], "on");
}

#[tokio::test]
async fn what_takes_too_long_is_ended() {
    let service = world_with(|config| {
        config.rest.statement_timeout_ms = 1500;
        config.rest.pool_size = 1;
    })
    .await;
    let answer = ask("POST", "/rpc/wait").json(&json!({ "seconds": 60 })).send(&service).await;
    assert_eq!(answer.problem(), (500, "57014".into()));
    assert_eq!(ask("GET", "/open").send(&service).await.status, 200);
}

#[tokio::test]
async fn whoever_hangs_up_ends_his_statement() {
    let service = world_with(|config| {
        config.rest.statement_timeout_ms = 600_000;
        config.rest.pool_size = 1;
    })
    .await;
    let admin = service.admin().await;
    let request = ask("POST", "/rpc/wait").json(&json!({ "seconds": 600 }));
    let mut stream = TcpStream::connect(service.address).await.unwrap();
    stream.write_all(request.bytes().as_bytes()).await.unwrap();
    let sleeping = "pg_stat_activity where datname = current_database() \
                    and application_name = 'walcast rest' and wait_event = 'PgSleep'";
    let until = async |expected: i64| {
        let wait = async {
            while count(&admin, sleeping).await != expected {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{expected} sleep in time"));
    };
    until(1).await;
    drop(stream);
    until(0).await;
    // The only place of the pool is free again.
    assert_eq!(ask("GET", "/open").send(&service).await.status, 200);
}

#[tokio::test]
async fn f42_whoever_finds_no_connection_in_time_is_told() {
    let service = world_with(|config| {
        config.rest.pool_size = 1;
        config.rest.wait_timeout_ms = 1500;
        config.rest.statement_timeout_ms = 600_000;
    })
    .await;
    let admin = service.admin().await;
    let holder = admin.batch_execute("begin; lock table open in access exclusive mode");
    holder.await.unwrap();
    let mut blocked = TcpStream::connect(service.address).await.unwrap();
    blocked.write_all(ask("GET", "/open").bytes().as_bytes()).await.unwrap();
    let watcher = service.admin().await;
    let waiting = "pg_stat_activity where datname = current_database() \
                   and application_name = 'walcast rest' and wait_event_type = 'Lock'";
    let wait = async {
        while count(&watcher, waiting).await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, wait).await.expect("it waits for the lock");
    let answer = ask("GET", "/todos").bearing(&user(ALICE)).send(&service).await;
    assert_eq!(answer.problem(), (504, "PGRST003".into()));
    admin.batch_execute("rollback").await.unwrap();
    let mut response = Vec::new();
    timeout(DEADLINE, blocked.read_to_end(&mut response)).await.unwrap().unwrap();
    assert_eq!(Answer::parse(&response).status, 200);
}

/// Functions that leave something behind, as far as a function can.
const LITTER: &str = "
    create function become(name text) returns text language sql as
        $$ select set_config('role', name, false) $$;
    create function claim(claims text) returns text language sql as
        $$ select set_config('request.jwt.claims', claims, false) $$;
    create function shadow() returns void language plpgsql as $$ begin
        create temp table open (id bigint, name text);
        insert into open values (666, 'evil');
    end $$;
    create function characterise() returns void language plpgsql as $$ begin
        execute 'set session characteristics as transaction isolation level serializable';
        perform set_config('statement_timeout', '77777', false);
        perform set_config('search_path', 'nowhere', false);
        perform set_config('my.secret', 'left', false);
        perform set_config('TimeZone', 'Asia/Tokyo', false);
        perform pg_advisory_lock(4711);
        execute 'listen litter';
        execute 'declare litter cursor with hold for select 1';
    end $$;
    create function forget() returns void language plpgsql as
        $$ begin execute 'deallocate all'; end $$;
    create function occupy() returns void language plpgsql as
        $$ begin execute 'prepare mine as select 1'; end $$;
    create function state() returns json language sql volatile as $$
        select json_build_object(
            'pid', pg_backend_pid(), 'role', current_user,
            'isolation', current_setting('transaction_isolation'),
            'timeout', current_setting('statement_timeout'),
            'secret', coalesce(current_setting('my.secret', true), ''),
            'zone', current_setting('TimeZone'),
            'locks', (select count(*) from pg_locks
                where locktype = 'advisory' and pid = pg_backend_pid()),
            'listens', (select count(*) from pg_listening_channels()),
            'cursors', (select count(*) from pg_cursors where name = 'litter'),
            'statements', (select count(*) from pg_prepared_statements where from_sql),
            'claims', current_setting('request.jwt.claims')::json) $$;
    create sequence steps; grant usage on steps to anon;
    create function step() returns bigint language sql as $$ select nextval('steps') $$;
    create function last_step() returns bigint language sql as $$ select lastval() $$;
";

#[tokio::test]
async fn f89_nothing_that_a_function_leaves_reaches_the_next_request() {
    let service = world_with(|config| config.rest.pool_size = 1).await;
    let admin = service.admin().await;
    admin.batch_execute(LITTER).await.unwrap();
    let name = &service.database.name;
    admin.batch_execute(&format!("grant temporary on database \"{name}\" to anon")).await.unwrap();
    let state = async || ask("POST", "/rpc/state").send(&service).await.json();
    let call = async |function: &str, arguments: &Value| {
        let answer = ask("POST", function).json(arguments).send(&service).await;
        assert!(answer.status < 300, "{function}: {answer:?}");
    };
    let clean = state().await;
    assert_eq!(clean["role"], "anon");
    let dirty = [
        ("/rpc/become", json!({ "name": "service_role" })),
        ("/rpc/claim", json!({ "claims": json!({ "sub": ALICE }).to_string() })),
        ("/rpc/shadow", json!({})),
        ("/rpc/characterise", json!({})),
        ("/rpc/step", json!({})),
    ];
    for (function, arguments) in &dirty {
        call(function, arguments).await;
        // Also the process is the same.
        assert_eq!(state().await, clean, "{function}");
        let answer = ask("GET", "/open?id=eq.666").send(&service).await;
        assert_eq!((answer.status, answer.json()), (200, json!([])), "{function}");
        let answer = ask("GET", "/todos").send(&service).await;
        assert_eq!(answer.problem(), (401, "42501".into()), "{function}");
    }
    let answer = ask("POST", "/rpc/last_step").send(&service).await;
    assert_eq!(answer.problem().1, "55000", "no sequence was used in a new session");
    // What is prepared cannot be told from ours; the process ends with it.
    call("/rpc/occupy", &json!({})).await;
    let after = state().await;
    assert_eq!(after["statements"], 0);
    assert_ne!(after["pid"], clean["pid"]);
    // Ours are gone: all is prepared again, and nobody notices.
    for _ in 0..3 {
        assert_eq!(ask("GET", "/open?id=eq.1").send(&service).await.status, 200);
    }
    call("/rpc/forget", &json!({})).await;
    for _ in 0..3 {
        assert_eq!(ask("GET", "/open?id=eq.1").send(&service).await.status, 200);
    }
}

/// What runs in a write that calls nothing, and a write that fails as it commits.
const TRAP: &str = "
    create table traps (id bigint primary key,
        todo bigint references traps deferrable initially deferred);
    grant select, insert on traps to anon;
    create function spring() returns trigger language plpgsql as $$ begin
        perform shadow();
        perform characterise();
        return new;
    end $$;
    create trigger spring before insert on traps for each row execute function spring();
";

#[tokio::test]
async fn nothing_that_a_trigger_leaves_reaches_the_next_request() {
    let service = world_with(|config| config.rest.pool_size = 1).await;
    let admin = service.admin().await;
    admin.batch_execute(LITTER).await.unwrap();
    admin.batch_execute(TRAP).await.unwrap();
    let name = &service.database.name;
    admin.batch_execute(&format!("grant temporary on database \"{name}\" to anon")).await.unwrap();
    let state = async || ask("POST", "/rpc/state").send(&service).await.json();
    let clean = state().await;
    for (trap, status) in [
        (json!({ "id": 1, "todo": 1 }), 201),
        (json!({ "id": 2, "todo": 999 }), 409),
        (json!({ "id": 1, "todo": 1 }), 409),
    ] {
        let answer = ask("POST", "/traps").json(&trap).send(&service).await;
        assert_eq!(answer.status, status, "{trap}: {answer:?}");
        // Also the process is the same.
        assert_eq!(state().await, clean, "{trap}");
        let answer = ask("GET", "/open?id=eq.666").send(&service).await;
        assert_eq!((answer.status, answer.json()), (200, json!([])), "{trap}");
    }
}

#[tokio::test]
async fn what_a_write_leaves_ends_though_nobody_asks_again() {
    let service = world_with(|config| config.rest.pool_size = 1).await;
    let admin = service.admin().await;
    admin.batch_execute(LITTER).await.unwrap();
    admin.batch_execute(TRAP).await.unwrap();
    let name = &service.database.name;
    admin.batch_execute(&format!("grant temporary on database \"{name}\" to anon")).await.unwrap();
    let left = "pg_locks where locktype = 'advisory' and objid = 4711 and database =
        (select oid from pg_database where datname = current_database())";
    for id in 1..=3 {
        let answer = ask("POST", "/traps").json(&json!({ "id": id })).send(&service).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        let wait = async {
            while count(&admin, left).await > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(DEADLINE, wait).await.expect("the lock is given up");
    }
    let used = "pg_stat_activity where application_name = 'walcast rest'
        and datname = current_database()";
    assert_eq!(count(&admin, used).await, 1);
}

#[tokio::test]
async fn a_connection_that_ended_is_replaced() {
    let service = world_with(|config| config.rest.pool_size = 2).await;
    let admin = service.admin().await;
    for _ in 0..3 {
        assert_eq!(ask("GET", "/open").send(&service).await.status, 200);
        let end = "select pg_terminate_backend(pid, 5000) from pg_stat_activity \
                   where application_name = 'walcast rest' and datname = current_database()";
        assert!(!admin.query(end, &[]).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_write_is_answered_as_it_was_made() {
    let service = world().await;
    let admin = service.admin().await;
    let me = user(ALICE);
    let new = |id: i64| json!({ "id": id, "owner": ALICE, "title": format!("t{id}") });
    let send = async |ask: Ask| ask.bearing(&me).send(&service).await;

    let answer = send(ask("POST", "/todos").json(&new(10))).await;
    assert_eq!((answer.status, &*answer.body), (201, ""), "{answer:?}");
    assert_eq!(answer.header("content-range"), Some("*/*"));
    assert_eq!(answer.header("content-type"), None);
    let position = answer.header("feed-lsn").expect("where it ended");
    let is_past = "select $1::text::pg_lsn <= pg_current_wal_insert_lsn() \
                   and $1::text::pg_lsn > '0/0'";
    assert!(admin.query_one(is_past, &[&position]).await.unwrap().get::<_, bool>(0));

    let returning = |ask: Ask| ask.with("prefer", "return=representation, count=exact");
    let answer = send(returning(ask("POST", "/todos?select=id,rank").json(&new(11)))).await;
    assert_eq!((answer.status, answer.json()), (201, json!([{ "id": 11, "rank": 7 }])));
    assert_eq!(answer.header("content-range"), Some("*/1"));
    assert_eq!(answer.header("preference-applied"), Some("return=representation, count=exact"));

    let answer = send(ask("POST", "/todos").json(&new(12)).with("prefer", "return=headers-only"));
    let answer = answer.await;
    assert_eq!((answer.status, &*answer.body), (201, ""));
    assert_eq!(answer.header("location"), Some("/todos?id=eq.12"));

    let change = json!({ "rank": 5 });
    let answer = send(ask("PATCH", "/todos?id=eq.10").json(&change)).await;
    assert_eq!((answer.status, &*answer.body), (204, ""));
    assert_eq!(answer.header("content-range"), Some("0-0/*"));
    let answer =
        send(returning(ask("PATCH", "/todos?id=in.(10,11)&select=id").json(&change))).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json().as_array().unwrap().len(), 2);
    assert_eq!(answer.header("content-range"), Some("0-1/2"));
    // Rows of others are not there.
    let answer = send(returning(ask("PATCH", "/todos?id=eq.3&select=id").json(&change))).await;
    assert_eq!((answer.status, answer.json()), (200, json!([])));

    let merge = |ask: Ask| ask.with("prefer", "resolution=merge-duplicates");
    let answer = send(merge(ask("POST", "/todos").json(&new(10)))).await;
    assert_eq!(
        (answer.status, answer.header("preference-applied")),
        (200, Some("resolution=merge-duplicates"))
    );
    let answer = send(merge(ask("POST", "/todos").json(&new(13)))).await;
    assert_eq!(answer.status, 201);

    let answer = send(ask("PUT", "/todos?id=eq.14").json(&new(14))).await;
    assert_eq!((answer.status, &*answer.body), (204, ""), "{answer:?}");
    let answer = send(ask("PUT", "/todos?id=eq.15").json(&new(14))).await;
    assert_eq!(answer.problem(), (400, "PGRST115".into()));

    let answer = send(ask("DELETE", "/todos?id=eq.10")).await;
    assert_eq!((answer.status, &*answer.body), (204, ""));
    let answer = send(returning(ask("DELETE", "/todos?id=gte.11&select=id&order=id"))).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-range"), Some("*/4"));
    assert_eq!(count(&admin, "todos").await, 3);
}

#[tokio::test]
async fn a_write_that_is_not_as_demanded_leaves_no_trace() {
    let service = world().await;
    let admin = service.admin().await;
    let me = user(ALICE);
    let changed = "todos where rank = 50";
    let all = |ask: Ask| ask.json(&json!({ "rank": 50 })).bearing(&me);
    let object = "application/vnd.pgrst.object+json";
    for _ in 0..3 {
        let answer = all(ask("PATCH", "/todos?id=gte.1"))
            .with("accept", object)
            .with("prefer", "return=representation")
            .send(&service)
            .await;
        assert_eq!(answer.problem(), (406, "PGRST116".into()));
        assert_eq!(answer.json()["details"], "The result contains 2 rows");
        let answer = all(ask("PATCH", "/todos?id=gte.1"))
            .with("prefer", "handling=strict, max-affected=1")
            .send(&service)
            .await;
        assert_eq!(answer.problem(), (400, "PGRST124".into()));
        assert_eq!(count(&admin, changed).await, 0);
    }
    let answer = all(ask("PATCH", "/todos?id=eq.1&select=id,rank"))
        .with("accept", object)
        .with("prefer", "return=representation, handling=strict, max-affected=1")
        .send(&service)
        .await;
    assert_eq!((answer.status, answer.json()), (200, json!({ "id": 1, "rank": 50 })));
    assert_eq!(
        answer.header("preference-applied"),
        Some("return=representation, handling=strict, max-affected=1")
    );
    assert_eq!(answer.header("content-type"), Some(&*format!("{object}; charset=utf-8")));
    assert_eq!(count(&admin, changed).await, 1);
    // Without `strict` it is no demand.
    let answer = all(ask("PATCH", "/todos?id=gte.1")).with("prefer", "max-affected=1");
    assert_eq!(answer.send(&service).await.status, 204);
    assert_eq!(count(&admin, changed).await, 2);
}

#[tokio::test]
async fn writes_without_a_filter_are_refused() {
    let service = world().await;
    let me = service_role();
    for (method, verb) in [("PATCH", "UPDATE"), ("DELETE", "DELETE")] {
        let asked = ask(method, "/open?select=id").json(&json!({ "name": "x" })).bearing(&me);
        let answer = asked.send(&service).await;
        assert_eq!(answer.problem(), (400, "21000".into()));
        assert_eq!(answer.json()["message"], format!("{verb} requires a WHERE clause"));
    }
    let admin = service.admin().await;
    assert_eq!(count(&admin, "open where name <> 'x'").await, 3);
    let service = world_with(|config| config.rest.unfiltered_writes = true).await;
    let answer = ask("DELETE", "/open").bearing(&me).send(&service).await;
    assert_eq!(answer.status, 204);
    assert_eq!(count(&service.admin().await, "open").await, 0);
}

#[tokio::test]
async fn errors_of_postgres_have_their_status() {
    let service = world().await;
    let me = user(ALICE);
    let insert = |row: Value| ask("POST", "/todos").json(&row).bearing(&me);
    let mine = |more: Value| {
        let mut row = json!({ "id": 20, "owner": ALICE, "title": "new" });
        for (name, value) in more.as_object().unwrap() {
            row[name] = value.clone();
        }
        row
    };
    for (row, status, code) in [
        (mine(json!({ "id": 1 })), 409, "23505"),
        (mine(json!({ "title": null })), 400, "23502"),
        (mine(json!({ "rank": 1000 })), 400, "23514"),
        (mine(json!({ "rank": "many" })), 400, "22P02"),
        (mine(json!({ "owner": BOB })), 403, "42501"),
        (mine(json!({ "nothing": 1 })), 400, "PGRST204"),
        (mine(json!({ "title": "a\u{0}b" })), 400, "22P05"),
    ] {
        let answer = insert(row.clone()).send(&service).await;
        assert_eq!(answer.problem(), (status, code.into()), "{row}: {answer:?}");
    }
    // Under policies, Postgres does not quote the row.
    let answer = ask("POST", "/open").json(&json!({ "id": 1 })).send(&service).await;
    assert_eq!(answer.json()["details"], "Key (id)=(1) already exists.");
    let part = json!({ "id": 1, "todo": 999 });
    let answer = ask("POST", "/parts").json(&part).bearing(&service_role()).send(&service).await;
    assert_eq!(answer.problem(), (409, "23503".into()));
    for (code, status) in [
        ("P0001", 400),
        ("PT402", 402),
        ("PT404", 404),
        ("P0002", 500),
        ("57014", 500),
        ("53300", 503),
        ("40001", 500),
        ("28000", 403),
        ("12345", 400),
    ] {
        let answer = ask("POST", "/rpc/fail").json(&json!({ "code": code })).send(&service).await;
        assert_eq!(answer.problem(), (status, code.into()), "{answer:?}");
        let body = answer.json();
        assert_eq!(
            (&body["message"], &body["details"], &body["hint"]),
            (&json!("told"), &json!("the detail"), &json!("the hint"))
        );
        assert_eq!(answer.header("retry-after").is_some(), status == 503);
    }
    for (asked, status, code) in [
        (ask("GET", "/nowhere"), 404, "PGRST205"),
        (ask("GET", "/rpc/nowhere"), 404, "PGRST202"),
        (ask("GET", "/a/b/c"), 404, "PGRST125"),
        (ask("GET", "/open?nothing=eq.1"), 400, "42703"),
        (ask("GET", "/open?select=nothing"), 400, "42703"),
        (ask("GET", "/open?id=eq.x"), 400, "22P02"),
        (ask("GET", "/open?id=is"), 400, "PGRST100"),
        (ask("DELETE", "/rpc/who"), 405, "PGRST101"),
        (ask("TRACE", "/open"), 405, "PGRST117"),
        (ask("GET", "/rpc/step"), 404, "PGRST202"),
        (ask("GET", "/rpc/fail?code=25006"), 405, "25006"),
        (ask("GET", "/open").with("accept-profile", "secret"), 406, "PGRST106"),
        (ask("GET", "/open").with("accept", "image/png"), 406, "PGRST107"),
        (ask("GET", "/open").with("accept", "application/vnd.pgrst.object+json"), 406, "PGRST116"),
        (ask("GET", "/open").with("prefer", "handling=strict, count=much"), 400, "PGRST122"),
        (ask("POST", "/open").json(&json!("x")), 400, "PGRST102"),
        (ask("GET", "/"), 401, "42501"),
    ] {
        let answer = asked.send(&service).await;
        assert_eq!(answer.problem(), (status, code.into()), "{asked:?}: {answer:?}");
    }
}

#[tokio::test]
async fn what_fails_as_it_commits_was_not_written() {
    let service = world().await;
    let admin = service.admin().await;
    let defer = "alter table parts alter constraint parts_todo_fkey deferrable initially deferred";
    admin.batch_execute(defer).await.unwrap();
    let part = json!({ "id": 1, "todo": 999 });
    for prefer in ["return=minimal", "return=representation, handling=strict, max-affected=5"] {
        let answer = ask("POST", "/parts")
            .json(&part)
            .bearing(&service_role())
            .with("prefer", prefer)
            .send(&service)
            .await;
        assert_eq!(answer.problem(), (409, "23503".into()));
        assert_eq!(answer.header("feed-lsn"), None);
        assert_eq!(count(&admin, "parts").await, 0);
    }
}

#[tokio::test]
async fn a_page_says_which_rows_of_how_many_it_has() {
    let service = world_with(|config| config.rest.rows_max = 2).await;
    let page = async |method, query: &str, prefer: &str| {
        let asked = ask(method, &format!("/open?order=id{query}"));
        let asked = if prefer.is_empty() { asked } else { asked.with("prefer", prefer) };
        asked.send(&service).await
    };
    for (query, prefer, status, range) in [
        ("", "", 200, "0-1/*"),
        ("&limit=1", "", 200, "0-0/*"),
        ("&limit=1&offset=1", "count=exact", 206, "1-1/3"),
        ("", "count=exact", 206, "0-1/3"),
        ("&id=lt.3", "count=exact", 200, "0-1/2"),
        ("&id=eq.9", "count=exact", 200, "*/0"),
        ("&offset=9", "", 200, "*/*"),
        ("&offset=9", "count=exact", 416, "*/3"),
    ] {
        for method in ["GET", "HEAD"] {
            let answer = page(method, query, prefer).await;
            assert_eq!(answer.status, status, "{query} {prefer}: {answer:?}");
            assert_eq!(answer.header("content-range"), Some(range), "{query} {prefer}");
            if method == "HEAD" {
                assert_eq!(answer.body, "");
            } else if status == 416 {
                assert_eq!(answer.problem().1, "PGRST103");
            } else {
                answer.json();
            }
            assert!(answer.header("content-type").unwrap().starts_with("application/json"));
        }
    }
    service.admin().await.batch_execute("analyze open").await.unwrap();
    for prefer in ["count=planned", "count=estimated"] {
        let answer = page("GET", "", prefer).await;
        assert_eq!(answer.header("content-range"), Some("0-1/3"), "{prefer}: {answer:?}");
        assert_eq!(answer.header("preference-applied"), Some(prefer));
    }
}

#[tokio::test]
async fn functions_are_called_and_their_rows_are_pages() {
    let service = world().await;
    let answer = ask("POST", "/rpc/nothing").send(&service).await;
    assert_eq!((answer.status, &*answer.body), (204, ""));
    assert!(answer.header("feed-lsn").is_some());
    let answer = ask("GET", "/rpc/numbers?n=3").with("prefer", "count=exact").send(&service).await;
    assert_eq!((answer.status, answer.json()), (200, json!([1, 2, 3])));
    assert_eq!(answer.header("content-range"), Some("0-2/3"));
    assert_eq!(answer.header("feed-lsn"), None);
    let numbers = ask("POST", "/rpc/numbers?limit=1&offset=1").json(&json!({ "n": 3 }));
    let answer = numbers.with("prefer", "count=exact").send(&service).await;
    assert_eq!((answer.status, answer.json()), (206, json!([2])));
    let numbers = ask("POST", "/rpc/numbers").json(&json!({ "n": 3 }));
    let answer = numbers.with("prefer", "return=minimal, count=exact").send(&service).await;
    assert_eq!((answer.status, &*answer.body), (204, ""));
    assert_eq!(answer.header("content-range"), Some("0-2/3"));
    let answer = ask("HEAD", "/rpc/numbers?n=3").send(&service).await;
    assert_eq!((answer.status, &*answer.body), (200, ""));
    let one = ask("GET", "/rpc/numbers?n=2").with("accept", "application/vnd.pgrst.object+json");
    assert_eq!(one.send(&service).await.problem(), (406, "PGRST116".into()));
}

#[tokio::test]
async fn times_are_told_in_the_zone_that_is_preferred() {
    let service = world().await;
    let zone =
        async |prefer: &str| ask("GET", "/rpc/who").with("prefer", prefer).send(&service).await;
    let answer = zone("timezone=Asia/Tokyo").await;
    assert_eq!(answer.json()["zone"], "Asia/Tokyo");
    assert_eq!(answer.header("preference-applied"), Some("timezone=Asia/Tokyo"));
    let answer = zone("timezone=Nowhere/Else").await;
    assert_eq!(answer.json()["zone"], "UTC");
    assert_eq!(answer.header("preference-applied"), None);
    let answer = zone("handling=strict, timezone=Nowhere/Else").await;
    assert_eq!(answer.problem(), (400, "PGRST122".into()));
    assert_eq!(answer.json()["details"], "Invalid preferences: timezone=Nowhere/Else");
}

#[tokio::test]
async fn a_new_shape_is_used_as_soon_as_it_is_there() {
    let service = world().await;
    let admin = service.admin().await;
    let read = async |query: &str| ask("GET", &format!("/open?{query}")).send(&service).await;
    for _ in 0..3 {
        assert_eq!(read("id=eq.1").await.json(), json!([{ "id": 1, "name": "a" }]));
    }
    let change = "alter table open alter id type text using 'n' || id; notify pgrst";
    admin.batch_execute(change).await.unwrap();
    assert_eq!(read("id=eq.n1").await.json(), json!([{ "id": "n1", "name": "a" }]));
    admin.batch_execute("alter table open rename name to title").await.unwrap();
    assert_eq!(read("title=eq.b").await.json(), json!([{ "id": "n2", "title": "b" }]));
    assert_eq!(read("name=eq.b").await.problem(), (400, "42703".into()));
    admin.batch_execute("create table fresh (id int); grant all on fresh to anon").await.unwrap();
    assert_eq!(ask("GET", "/fresh").send(&service).await.json(), json!([]));
    admin.batch_execute("drop table fresh").await.unwrap();
    assert_eq!(ask("GET", "/fresh").send(&service).await.status, 404);
}

#[tokio::test]
async fn bodies_are_bounded() {
    let service = world_with(|config| config.rest.body_bytes_max = 1024).await;
    let row = |length: usize| json!({ "id": 9, "name": "x".repeat(length) });
    let send = async |row: Value| ask("POST", "/open").json(&row).send(&service).await;
    assert_eq!(send(row(2000)).await.problem(), (413, "PGRST102".into()));
    assert_eq!(send(row(500)).await.status, 201);
}

#[tokio::test]
async fn pages_of_other_origins_may_ask_and_read() {
    let service = world().await;
    let answer = ask("OPTIONS", "/open")
        .with("origin", "https://app.example")
        .with("access-control-request-method", "PATCH")
        .with("access-control-request-headers", "prefer,content-profile")
        .send(&service)
        .await;
    assert_eq!(answer.status, 204);
    let methods = answer.header("access-control-allow-methods").unwrap();
    for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] {
        assert!(methods.contains(method), "{methods}");
    }
    let allowed = answer.header("access-control-allow-headers");
    assert_eq!(allowed, Some("prefer,content-profile"));
    let answer = ask("GET", "/open").with("origin", "https://app.example").send(&service).await;
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    let exposed = answer.header("access-control-expose-headers").unwrap();
    for header in ["content-range", "preference-applied", "location", "feed-lsn"] {
        assert!(exposed.contains(header), "{exposed}");
    }
    // No browser asks.
    let answer = ask("OPTIONS", "/open").send(&service).await;
    assert_eq!(answer.header("allow"), Some("OPTIONS,GET,HEAD,POST,PUT,PATCH,DELETE"));
    let answer = ask("OPTIONS", "/rpc/who").send(&service).await;
    assert_eq!(answer.header("allow"), Some("OPTIONS,GET,HEAD,POST"));
    let service = world_with(|config| {
        config.limits.origins = vec!["https://app.example".into()];
    })
    .await;
    let answer = ask("GET", "/open").with("origin", "https://evil.example").send(&service).await;
    assert_eq!(answer.problem().0, 403);
}

/// A server that answers everything with what it was asked.
async fn mirror() -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut asked = vec![0; 64 * 1024];
            let length = stream.read(&mut asked).await.unwrap();
            let body = String::from_utf8_lossy(&asked[..length]).into_owned();
            let head = format!(
                "HTTP/1.1 299 Mirrored\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        }
    });
    (url, task)
}

#[tokio::test]
async fn what_is_not_built_is_passed_on_where_somebody_has_it() {
    let service = world().await;
    let csv = ask("GET", "/open?select=id").with("accept", "application/geo+json");
    let answer = csv.send(&service).await;
    assert_eq!(answer.problem(), (400, "PGRST127".into()));
    let (url, task) = mirror().await;
    let service = world_with(|config| config.rest.upstream = format!("{url}/base/")).await;
    let answer = csv.send(&service).await;
    assert_eq!(answer.status, 299);
    assert!(answer.body.starts_with("GET /base/open?select=id HTTP/1.1\r\n"), "{}", answer.body);
    // The body has been read by then, and is there all the same.
    let insert = ask("POST", "/open").json(&json!({ "id": 7 }));
    let answer = insert.with("accept", "application/geo+json").send(&service).await;
    assert_eq!(answer.status, 299);
    assert!(answer.body.starts_with("POST /base/open HTTP/1.1\r\n"), "{}", answer.body);
    assert!(answer.body.ends_with(r#"{"id":7}"#), "{}", answer.body);
    assert_eq!(count(&service.admin().await, "open").await, 3);
    // What is built stays here, and so does whoever has no good token.
    assert_eq!(ask("GET", "/open").send(&service).await.status, 200);
    assert_eq!(csv.clone().bearing("nonsense").send(&service).await.status, 401);
    task.abort();
}

#[tokio::test]
async fn rows_are_served_here_or_passed_through_as_the_settings_say() {
    use walcast::config::RestService;
    let (url, task) = mirror().await;
    let with = async |serve, upstream: &str| {
        Service::with(|config| {
            config.rest.serve = serve;
            config.proxy.upstream = upstream.into();
        })
        .await
    };
    let status = async |service: &Service| ask("GET", "/nowhere").send(service).await.status;
    assert_eq!(status(&with(RestService::Auto, &url).await).await, 299);
    assert_eq!(status(&with(RestService::On, &url).await).await, 404);
    let off = with(RestService::Off, "").await;
    let answer = ask("GET", "/nowhere").send(&off).await;
    assert_eq!(answer.status, 404);
    assert_ne!(answer.body, "", "supabase-js takes an empty 404 for success");
    task.abort();
}

#[tokio::test]
async fn a_gateway_may_take_the_prefix_away() {
    let service = world_with(|config| config.rest.at_root = true).await;
    let mut asked = ask("GET", "/open?id=eq.1");
    asked.path = "/open?id=eq.1".into();
    assert_eq!(asked.send(&service).await.json(), json!([{ "id": 1, "name": "a" }]));
    asked.path = "/rpc/numbers?n=1".into();
    assert_eq!(asked.send(&service).await.json(), json!([1]));
    asked.path = "/healthz".into();
    assert_eq!(asked.send(&service).await.status, 200);
    let service = world().await;
    asked.path = "/open?id=eq.1".into();
    assert_eq!(asked.send(&service).await.status, 404);
}

#[tokio::test]
async fn many_at_once_are_each_themselves() {
    let service = world_with(|config| config.rest.pool_size = 3).await;
    let (alice, bob) = (user(ALICE), user(BOB));
    let tasks = (0..60).map(async |number| {
        let (token, expected) = if number % 2 == 0 { (&alice, 2) } else { (&bob, 1) };
        let answer = ask("GET", "/todos?select=id").bearing(token).send(&service).await;
        assert_eq!(answer.json().as_array().unwrap().len(), expected);
    });
    futures_util::future::join_all(tasks).await;
    // No more connections than the setting says.
    let admin = service.admin().await;
    let own = "pg_stat_activity where application_name = 'walcast rest' \
               and datname = current_database()";
    assert!(count(&admin, own).await <= 3);
}
