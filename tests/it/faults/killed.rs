//! The binary, ended at each kill point.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_tungstenite::tungstenite::{Error, Message};
use walcast::kill::{EXIT_CODE, POINTS, Point, VARIABLE};

use crate::cluster::Database;
use crate::operations::{Program, environment};
use crate::service::{ALICE, DEADLINE, SECRET, user};

/// Rows of their owner, so that each is asked about.
const TABLE: &str = "
    create table owned (id bigint generated always as identity primary key, owner uuid);
    grant select on owned to authenticated;
    alter table owned enable row level security;
    create policy own on owned to authenticated using (owner = (select auth.uid()));
    alter publication supabase_realtime add table owned;
";

/// Between two attempts, and between two rows.
const PAUSE: Duration = Duration::from_millis(20);

async fn insert(client: &Client) -> i64 {
    let insert = format!("insert into owned (owner) values ('{ALICE}') returning id");
    client.query_one(&insert, &[]).await.unwrap().get(0)
}

/// Comes back and subscribes for as long as there is anybody to subscribe to. `again`: always from
/// where it was first, after each row that it gets.
async fn subscribe(address: SocketAddr, again: bool) {
    let mut cursor = None;
    loop {
        let _ = listen(address, &mut cursor, again).await;
        tokio::time::sleep(PAUSE).await;
    }
}

async fn listen(address: SocketAddr, cursor: &mut Option<Value>, again: bool) -> Result<(), Error> {
    let token = user(ALICE);
    let url = format!("ws://{address}/realtime/v1/websocket?apikey={token}&vsn=2.0.0");
    let stream = TcpStream::connect(address).await?;
    let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await?;
    let mut all = json!({ "event": "*", "schema": "public", "table": "owned" });
    if let Some(cursor) = cursor {
        all["cursor"] = cursor.clone();
    }
    let payload = json!({ "config": { "postgres_changes": [all] } });
    let join = json!(["1", "1", "realtime:test", "phx_join", payload]);
    socket.send(Message::text(join.to_string())).await?;
    while let Some(message) = socket.next().await {
        let message = message?;
        let Ok(frame) = serde_json::from_str::<Value>(message.to_text()?) else { continue };
        let begun = &frame[4]["response"]["cursor"];
        if again && begun.is_string() {
            cursor.get_or_insert_with(|| begun.clone());
        }
        if frame[4]["status"] == "error" || (again && frame[3] == "postgres_changes") {
            break;
        }
    }
    Ok(())
}

async fn is_ready(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(address).await else { return false };
    let request = b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let mut answer = Vec::new();
    let asked = async {
        stream.write_all(request).await?;
        stream.read_to_end(&mut answer).await
    };
    asked.await.is_ok() && answer.starts_with(b"HTTP/1.1 200 ")
}

/// Runs the binary with this armed, and does what leads it there, until it has ended.
async fn end_at(database: &Database, client: &Client, point: Point, action: &str) -> ExitStatus {
    let any = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = any.local_addr().unwrap();
    drop(any);
    // The slot is moved as soon as something was published, or there is something to come back to.
    let moves = [Point::BeforeAcknowledge, Point::AfterAcknowledge].contains(&point);
    let window_ms = if moves { "0" } else { "60000" };
    let mut child = Command::new(env!("CARGO_BIN_EXE_walcast"))
        .arg("serve")
        .env_clear()
        .envs(environment(database))
        .env("WALCAST_BIND", address.to_string())
        .env("WALCAST_JWT_SECRET", SECRET)
        .env("WALCAST_LOG", "off")
        .env("WALCAST_REPLICATION_REPLAY_WINDOW_MS", window_ms)
        .env("WALCAST_SERVER_JOIN_ERROR_BACKOFF_MS", "0")
        .env(VARIABLE, format!("{}:{action}:1", point.name()))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // Two of them, or nobody is left to write to after the first.
    let again = point == Point::OnResume;
    let mut sockets = JoinSet::from_iter([subscribe(address, again), subscribe(address, again)]);
    let mut asked_to_stop = false;
    let ended = async {
        loop {
            tokio::select! {
                status = child.wait() => return status.unwrap(),
                () = tokio::time::sleep(PAUSE) => { insert(client).await; }
            }
            if point == Point::OnDrain
                && is_ready(address).await
                && let Some(pid) = child.id().filter(|_| !asked_to_stop)
            {
                let asked = Command::new("kill").args(["-TERM", &pid.to_string()]).status().await;
                asked_to_stop = asked.unwrap().success();
            }
        }
    };
    let ended = timeout(DEADLINE, ended).await;
    sockets.shutdown().await;
    ended.unwrap_or_else(|_| panic!("it never came to {point:?}"))
}

/// A database with the table in it.
async fn prepared() -> (Database, Client) {
    let database = Database::create().await;
    let client = database.client().await;
    let program = Program::serving(&database).await;
    client.batch_execute(TABLE).await.unwrap();
    program.terminate();
    assert_eq!(program.end().await.0, 0);
    (database, client)
}

#[tokio::test]
async fn f01_every_kill_point_ends_the_process_and_the_next_one_serves() {
    let (database, client) = prepared().await;
    for point in POINTS {
        let status = end_at(&database, &client, point, "exit").await;
        assert_eq!(status.code(), Some(EXIT_CODE), "{point:?}");
    }
    let mut program = Program::serving(&database).await;
    let mut socket = program.subscribe(&user(ALICE), "owned").await;
    let id = insert(&client).await;
    assert_eq!(socket.change().await["record"]["id"], id);
}

#[tokio::test]
async fn f03_a_panic_in_the_feed_ends_the_process_instead_of_leaving_sockets_without_events() {
    let (database, client) = prepared().await;
    for point in [Point::AfterDecode, Point::BeforeCheck, Point::MidFanOut] {
        let status = end_at(&database, &client, point, "panic").await;
        assert_eq!(status.code(), Some(1), "{point:?}");
    }
}

#[tokio::test]
async fn what_is_armed_by_mistake_ends_the_process_with_its_name() {
    let database = Database::create().await;
    let mut variables = environment(&database).to_vec();
    variables.push((VARIABLE, "after_lunch:exit:1"));
    let mut program = Program::start(&variables);
    program.line("WALCAST_KILL_POINT is not understood: after_lunch:exit:1").await;
}
