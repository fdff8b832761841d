//! `walcast tail` as its users run it, on a whole service.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::time::timeout;

use crate::service::{ALICE, BOB, DEADLINE, Service, anon, now, token, user};

/// A running `walcast tail`.
struct Tail {
    child: Child,
    out: Option<Lines<BufReader<ChildStdout>>>,
    err: Lines<BufReader<ChildStderr>>,
    token: String,
}

impl Tail {
    fn start(url: &str, token: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_walcast"))
            .args(["tail", "--url", url])
            .args(arguments)
            .env_clear()
            .env("WALCAST_TOKEN", token)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap()).lines();
        let err = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, out: Some(out), err, token: token.to_owned() }
    }

    /// Until it listens.
    async fn on(service: &Service, token: &str, arguments: &[&str]) -> Self {
        let mut tail = Self::start(&url(service), token, arguments);
        assert_eq!(tail.told().await, "walcast: listening");
        tail
    }

    async fn line<R: AsyncRead + Unpin>(
        lines: &mut Lines<BufReader<R>>,
        token: &str,
    ) -> Option<String> {
        let line = timeout(DEADLINE, lines.next_line()).await.expect("a line in time").unwrap();
        assert!(!line.as_ref().is_some_and(|line| line.contains(token)), "the token: {line:?}");
        line
    }

    /// The next line on standard output.
    async fn printed(&mut self) -> String {
        let line = Self::line(self.out.as_mut().unwrap(), &self.token).await;
        line.expect("it goes on")
    }

    /// The next line on standard error.
    async fn told(&mut self) -> String {
        Self::line(&mut self.err, &self.token).await.expect("it goes on")
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().unwrap().to_string();
        let kill = std::process::Command::new("kill").args([name, &pid]).status();
        assert!(kill.unwrap().success());
    }

    /// How it ends, and the rest of standard error.
    async fn end(mut self) -> (Option<i32>, String) {
        let mut told = String::new();
        while let Some(line) = Self::line(&mut self.err, &self.token).await {
            told.extend([&*line, "\n"]);
        }
        let status = timeout(DEADLINE, self.child.wait()).await.expect("it ends").unwrap();
        (status.code(), told)
    }
}

fn url(service: &Service) -> String {
    format!("http://{}", service.address)
}

#[tokio::test]
async fn each_event_is_a_line_as_policies_allow_until_it_is_interrupted() {
    let service = Service::start().await;
    let table = service.owned_table("value text").await;
    let changes = format!("{table}@INSERT:value=neq.\"a,b\"");
    let arguments = ["--changes", &*changes, "--changes", &format!("{table}@DELETE")];
    let mut alice = Tail::on(&service, &user(ALICE), &arguments).await;
    let inserts = format!("{table}@INSERT");
    let arguments = ["--changes", &*inserts, "--topics", "room,other", "--json"];
    let mut bob = Tail::on(&service, &user(BOB), &arguments).await;
    let admin = service.admin().await;
    let sql = format!(
        "insert into {table} values (1, '{BOB}', 'x'), (2, '{ALICE}', 'a,b'), (3, '{ALICE}', 'y');
        delete from {table} where id = 3;
        select realtime.send('{{\"n\": 1.50}}', 'said', 'room', false);"
    );
    admin.batch_execute(&sql).await.unwrap();
    let row = format!(r#"{{"id":3,"owner":"{ALICE}","value":"y"}}"#);
    assert_eq!(alice.printed().await, format!("INSERT public.{table} {row}"));
    assert_eq!(alice.printed().await, format!("DELETE public.{table} {{\"id\":3}}"));
    let line: Value = serde_json::from_str(&bob.printed().await).unwrap();
    assert_eq!((&line["event"], &line["data"]["record"]["id"]), (&json!("INSERT"), &json!(1)));
    assert_eq!(line["id"], line["data"]["cursor"]);
    let said = bob.printed().await;
    assert!(said.starts_with(r#"{"event":"said","id":"0"#), "{said}");
    assert!(said.contains(r#""topic":"room","data":{"#) && said.contains("1.50"), "{said}");
    for (tail, signal) in [(alice, "-INT"), (bob, "-TERM")] {
        tail.signal(signal);
        assert_eq!(tail.end().await, (Some(0), String::new()));
    }
}

#[tokio::test]
async fn it_comes_back_by_itself() {
    let mut service = Service::with(|config| {
        Service::keep_all(config);
        config.server.stream_retry_ms = 100;
    })
    .await;
    let table = service.table("value text").await;
    let mut tail = Tail::on(&service, &anon(), &["--changes", &table]).await;
    for id in 1..=3 {
        let admin = service.admin().await;
        admin.batch_execute(&format!("insert into {table} values ({id}, 'x')")).await.unwrap();
        let row = format!(r#"INSERT public.{table} {{"id":{id},"value":"x"}}"#);
        assert_eq!(tail.printed().await, row);
        service.stop().await.unwrap();
        let told = tail.told().await;
        assert!(told.starts_with("walcast: server restarts; back in "), "{told}");
        let meanwhile = id + 100;
        let sql = format!("insert into {table} values ({meanwhile}, 'x')");
        admin.batch_execute(&sql).await.unwrap();
        service.start_again().await;
        loop {
            let told = tail.told().await;
            if told == "walcast: listening again" {
                break;
            }
            assert!(told.contains("; back in "), "{told}");
        }
        // Once, and nothing before it a second time.
        let row = format!(r#"INSERT public.{table} {{"id":{meanwhile},"value":"x"}}"#);
        assert_eq!(tail.printed().await, row);
        let told = tail.told().await;
        assert!(told.starts_with("walcast: caught up at 0"), "{told}");
    }
}

#[tokio::test]
async fn it_begins_where_it_is_told_to_or_says_what_is_missing() {
    let service = Service::start().await;
    let table = service.table("value text").await;
    let arguments = ["--changes", &*table, "--json"];
    let mut tail = Tail::on(&service, &anon(), &arguments).await;
    let admin = service.admin().await;
    let sql = format!("insert into {table} values (1, 'x'); insert into {table} values (2, 'x')");
    admin.batch_execute(&sql).await.unwrap();
    let first: Value = serde_json::from_str(&tail.printed().await).unwrap();
    let cursor = first["id"].as_str().unwrap();
    let since = [arguments.as_slice(), &["--since", cursor]].concat();
    let mut tail = Tail::on(&service, &anon(), &since).await;
    let second: Value = serde_json::from_str(&tail.printed().await).unwrap();
    assert_eq!(second["data"]["record"]["id"], 2);
    let foreign = format!("{}ffffffff", &cursor[..cursor.len() - 8]);
    let since = [arguments.as_slice(), &["--since", &foreign]].concat();
    let mut tail = Tail::on(&service, &anon(), &since).await;
    let told = tail.told().await;
    let begin = format!("walcast: gap: what came after {foreign}, up to ");
    assert!(told.starts_with(&begin) && told.ends_with("(another_history)"), "{told}");
}

#[tokio::test]
async fn what_no_return_would_mend_ends_it_with_the_reason() {
    let service = Service::start().await;
    let url = url(&service);
    let check = async |url: &str, token: &str, arguments: &[&str], part: &str| {
        let (code, told) = Tail::start(url, token, arguments).end().await;
        assert_eq!(code, Some(1), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(told.starts_with("walcast: ") && told.contains(part), "{told}");
    };
    let table = ["--changes", "no_such_table"];
    check(&url, &anon(), &table, "Please check Realtime is enabled").await;
    check(&url, "no-token", &table, "The token provided is not a valid JWT (401)").await;
    check(&format!("{url}/nothing"), &anon(), &table, "status 404").await;
    check("http://127.0.0.1:1", &anon(), &table, "cannot connect to 127.0.0.1:1").await;
    check("ftp://x", &anon(), &table, "is no URL of a service").await;
    let short = token(&json!({ "role": "anon", "exp": now() + 3 }));
    let mut tail = Tail::on(&service, &short, &["--topic", "a"]).await;
    assert_eq!(tail.told().await, "walcast: the token has expired");
    assert_eq!(tail.end().await, (Some(1), String::new()));
}

#[tokio::test]
async fn nobody_reads_it_any_more_and_it_ends_in_peace() {
    let service = Service::start().await;
    let table = service.table("value text").await;
    let mut tail = Tail::on(&service, &anon(), &["--changes", &table]).await;
    drop(tail.out.take());
    let admin = service.admin().await;
    admin.batch_execute(&format!("insert into {table} values (1, 'x')")).await.unwrap();
    assert_eq!(tail.end().await, (Some(0), String::new()));
}
