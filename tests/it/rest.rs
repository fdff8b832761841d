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
    fn parse(response: &[u8]) -> Self {
        let response = std::str::from_utf8(response).unwrap();
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
