//! What happens to the process: it is killed, told to stop, frozen, short of descriptors, without a
//! log. Tests are named after the rows of the fault matrix in `docs/guarantees.md`.

use std::fs;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use socket2::SockRef;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::cluster::Database;
use crate::operations::{POLL, Program, environment, until};
use crate::service::{
    ALICE, DEADLINE, SECRET, Socket, Version, anon, now, service_role, token, user,
};
use crate::stream::all_of;

/// Everybody may see it.
const TABLE_T: &str = "
    create table t (id bigint primary key);
    grant all on t to anon, authenticated, service_role;
    alter publication supabase_realtime add table t;
";

/// Times that a process ends in tests that would go on for ever; more of it: `WALCAST_TEST_ENDS`.
fn ends() -> usize {
    let more = std::env::var("WALCAST_TEST_ENDS").ok();
    more.and_then(|more| more.parse().ok()).unwrap_or(3)
}

async fn insert(client: &Client, id: i64) {
    client.execute("insert into t values ($1)", &[&id]).await.unwrap();
}

/// A service on a database with the table in it.
async fn serving(variables: &[(&str, &str)]) -> (Database, Client, Program) {
    let database = Database::create().await;
    let client = database.client().await;
    let mut program = Program::start(&[&environment(&database), variables].concat());
    program.ready().await;
    client.batch_execute(TABLE_T).await.unwrap();
    (database, client, program)
}

async fn open(address: SocketAddr, token: &str) -> Socket {
    let url = format!("ws://{address}/realtime/v1/websocket?apikey={token}&vsn=2.0.0");
    Socket::open(Version::V2, &url, &[]).await.unwrap()
}

/// Writes one row after the other until it is told to stop; the last one.
async fn write(client: Client, stop: CancellationToken) -> i64 {
    let mut id = 0;
    while !stop.is_cancelled() {
        id += 1;
        insert(&client, id).await;
    }
    id
}

/// What a client has that comes back with its cursor, time and again: ids, in the order in which
/// they came.
#[derive(Default)]
struct Returning {
    cursor: Option<Value>,
    seen: Vec<i64>,
}

impl Returning {
    /// Reads so many rows; it is cut off or not.
    async fn read(&mut self, address: SocketAddr, count: usize) -> Socket {
        let mut socket = open(address, &anon()).await;
        let mut all = all_of("t");
        if let Some(cursor) = &self.cursor {
            all[0]["cursor"] = cursor.clone();
        }
        let payload = json!({ "config": { "postgres_changes": all } });
        let reply = socket.join("realtime:test", &payload).await;
        assert_eq!(reply["status"], "ok", "{reply}");
        self.cursor.get_or_insert_with(|| reply["response"]["cursor"].clone());
        let enough = self.seen.len() + count;
        while self.seen.len() < enough {
            self.take(&mut socket).await;
        }
        socket
    }

    async fn take(&mut self, socket: &mut Socket) {
        let mut next = socket.next().await;
        if next.event == "postgres_changes" {
            let data = &mut next.payload["data"];
            self.seen.push(data["record"]["id"].as_i64().unwrap());
            self.cursor = Some(data["cursor"].take());
        } else {
            assert_ne!(next.payload["kind"], "gap", "{}", next.payload);
        }
    }

    async fn up_to(&mut self, socket: &mut Socket, last: i64) {
        while self.seen.last() != Some(&last) {
            self.take(socket).await;
        }
    }
}

/// A writer that never rests, a client that comes back with its cursor, and a service that ends in
/// between: what came is every row from the first one on, once each.
async fn ended_time_and_again(end: impl AsyncFn(Program)) {
    let window = [
        ("WALCAST_REPLICATION_REPLAY_WINDOW_MS", "3600000"),
        ("WALCAST_REPLICATION_REPLAY_WINDOW_BYTES", "4294967296"),
    ];
    let (database, client, mut program) = serving(&window).await;
    let variables = [&environment(&database), &window[..]].concat();
    let mut returning = Returning::default();
    let first = program.address().await;
    drop(returning.read(first, 0).await);
    let stop = CancellationToken::new();
    let writing = tokio::spawn(write(client, stop.clone()));
    for _ in 0..ends() {
        let address = program.address().await;
        let socket = returning.read(address, 50).await;
        end(program).await;
        drop(socket);
        program = Program::start(&variables);
        program.ready().await;
    }
    stop.cancel();
    let last = writing.await.unwrap();
    let address = program.address().await;
    let mut socket = returning.read(address, 0).await;
    returning.up_to(&mut socket, last).await;
    let from = returning.seen[0];
    assert_eq!(returning.seen, (from..=last).collect::<Vec<_>>());
    assert_eq!(from, 1);
}

#[tokio::test]
async fn f01_killed_time_and_again_nothing_is_lost_or_repeated_for_who_comes_back() {
    ended_time_and_again(async |program| program.kill().await).await;
}

#[tokio::test]
async fn f04_stopped_time_and_again_nothing_is_lost_or_repeated_for_who_comes_back() {
    ended_time_and_again(async |program| {
        program.terminate();
        assert_eq!(program.end().await.0, 0);
    })
    .await;
}

#[tokio::test]
async fn f05_a_second_sigterm_ends_it_at_once_and_leaves_the_slot_free() {
    // Nothing else would end it in time.
    let patient = [
        ("WALCAST_SERVER_DRAIN_TIMEOUT_MS", "60000"),
        ("WALCAST_REST_STATEMENT_TIMEOUT_MS", "3600000"),
    ];
    let (_database, client, mut program) = serving(&patient).await;
    // One that takes no transaction number: nobody else waits for its end.
    let slow = "create function slow() returns text language sql stable
            as 'select pg_sleep(3600)::text';
        grant execute on function slow() to anon; notify pgrst, 'reload schema'";
    client.batch_execute(slow).await.unwrap();
    let mut asking = TcpStream::connect(program.address().await).await.unwrap();
    let head = format!(
        "POST /rest/v1/rpc/slow HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}",
        anon()
    );
    asking.write_all(head.as_bytes()).await.unwrap();
    let sleeps = "select count(*) > 0 from pg_stat_activity
        where datname = current_database() and wait_event = 'PgSleep'";
    until(&client, sleeps).await;
    program.terminate();
    program.line("stopping").await;
    program.terminate();
    assert_eq!(program.end().await.0, 130);
    let free = "select not active from pg_replication_slots where slot_name = current_database()";
    until(&client, free).await;
    let end = "select pg_terminate_backend(pid, 60000) from pg_stat_activity
        where datname = current_database() and wait_event = 'PgSleep'";
    client.query(end, &[]).await.unwrap();
}

/// Until the clock on the wall is past this second.
async fn past(second: u64) {
    while SystemTime::now() <= UNIX_EPOCH + Duration::from_secs(second) {
        tokio::time::sleep(POLL).await;
    }
}

#[tokio::test]
async fn f06_a_process_that_was_frozen_goes_on_with_every_row_and_no_token_that_expired_meanwhile()
{
    let (_database, client, mut program) = serving(&[]).await;
    let address = program.address().await;
    let mut socket = open(address, &anon()).await;
    socket.subscribe("realtime:test", all_of("t").into()).await;
    let expires = now() + 4;
    let brief = token(&json!({ "role": "anon", "exp": expires }));
    let url = format!("ws://{address}/realtime/v1/websocket?apikey={brief}&vsn=2.0.0");
    // On a slow machine it may have expired already: then it hears nothing in the first place.
    let mut brief = Socket::open(Version::V2, &url, &[]).await.ok();
    if let Some(brief) = &mut brief {
        brief
            .join("realtime:test", &json!({ "config": { "postgres_changes": all_of("t") } }))
            .await;
    }
    program.signal("STOP");
    for id in 0..20 {
        insert(&client, id).await;
    }
    // It is found without its connections, too.
    let cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity
        where datname = current_database() and application_name like 'walcast%'";
    client.query_one(cut, &[]).await.unwrap();
    past(expires).await;
    program.signal("CONT");
    for id in 0..20 {
        assert_eq!(socket.change().await["record"]["id"], id);
    }
    socket.nothing_came().await;
    if let Some(brief) = &mut brief {
        let late = brief.rest().await;
        assert!(late.iter().all(|message| message.event != "postgres_changes"), "{late:?}");
    }
}

#[tokio::test]
async fn f09_without_descriptors_who_is_there_is_served_and_others_wait() {
    let database = Database::create().await;
    let client = database.client().await;
    let mut command = Command::new("sh");
    command.args(["-c", r#"ulimit -n 100 && exec "$0" serve"#, env!("CARGO_BIN_EXE_walcast")]);
    command.env_clear().env("PATH", "/usr/bin:/bin");
    let mut variables = environment(&database).to_vec();
    variables.push(("WALCAST_SERVER_HEADER_TIMEOUT_MS", "120000"));
    let mut program = Program::spawn(command, &variables);
    program.ready().await;
    client.batch_execute(TABLE_T).await.unwrap();
    let mut socket = program.subscribe(&anon(), "t").await;
    insert(&client, 1).await;
    assert_eq!(socket.change().await["record"]["id"], 1);
    let address = program.address().await;
    let mut crowd = Vec::new();
    for _ in 0..150 {
        crowd.push(TcpStream::connect(address).await.unwrap());
    }
    program.line("cannot accept a connection").await;
    for id in 2..10 {
        insert(&client, id).await;
        assert_eq!(socket.change().await["record"]["id"], id);
    }
    // Whoever comes now waits until there is room, and is answered then.
    let mut waiting = TcpStream::connect(address).await.unwrap();
    let request = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    waiting.write_all(request).await.unwrap();
    drop(crowd);
    let mut answer = Vec::new();
    timeout(DEADLINE, waiting.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    assert!(program.is_ready().await);
}

#[tokio::test]
async fn f10_a_log_that_cannot_be_written_stops_nothing() {
    let (_database, client, mut program) = serving(&[("WALCAST_LOG", "trace")]).await;
    program.address().await;
    let program = program.without_log();
    let mut socket = open(program.address, &anon()).await;
    socket.subscribe("realtime:test", all_of("t").into()).await;
    for id in 0..20 {
        insert(&client, id).await;
        assert_eq!(socket.change().await["record"]["id"], id);
    }
}

#[tokio::test]
async fn f10_a_log_that_nobody_reads_stops_nothing() {
    let database = Database::create().await;
    let client = database.client().await;
    let (near, far) = UnixStream::pair().unwrap();
    // As little room as the kernel lets anybody have.
    SockRef::from(&far).set_send_buffer_size(1).unwrap();
    near.set_nonblocking(true).unwrap();
    let mut lines = BufReader::new(tokio::net::UnixStream::from_std(near).unwrap()).lines();
    let _program = Command::new(env!("CARGO_BIN_EXE_walcast"))
        .arg("serve")
        .env_clear()
        .envs([("WALCAST_BIND", "127.0.0.1:0"), ("WALCAST_JWT_SECRET", SECRET)])
        .envs(environment(&database))
        .env("WALCAST_LOG", "trace")
        .stdin(Stdio::null())
        .stderr(OwnedFd::from(far))
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let listening = async {
        loop {
            let line = lines.next_line().await.unwrap().expect("it goes on");
            if let Some((_, address)) = line.split_once("listening address=") {
                return address.parse::<SocketAddr>().unwrap();
            }
        }
    };
    let address = timeout(DEADLINE, listening).await.expect("it listens");
    // Nobody reads on. What was installed by then is what a table needs.
    client.batch_execute(TABLE_T).await.unwrap();
    let mut socket = open(address, &anon()).await;
    let payload = json!({ "config": { "postgres_changes": all_of("t") } });
    while socket.join("realtime:test", &payload).await["status"] != "ok" {
        tokio::time::sleep(POLL).await;
    }
    for id in 0..200 {
        // What opens and ends is logged.
        open(address, &anon()).await.heartbeat().await;
        insert(&client, id).await;
        loop {
            let message = socket.next().await;
            if message.event == "postgres_changes" {
                assert_eq!(message.payload["data"]["record"]["id"], id);
                break;
            }
        }
    }
}

/// The files that a process has open to write into.
fn written_by(pid: u32) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let path = entry.unwrap().path();
        // One that was closed meanwhile is none.
        let Ok(file) = fs::read_link(&path) else { continue };
        let number = path.file_name().unwrap().to_str().unwrap();
        let Ok(info) = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")) else { continue };
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        let flags = u32::from_str_radix(flags.trim(), 8).unwrap();
        // Neither O_WRONLY nor O_RDWR; sockets and pipes have no path.
        if flags & 3 != 0 && file.starts_with("/") && !file.starts_with("/dev") {
            found.push(file);
        }
    }
    found
}

#[tokio::test]
async fn f11_it_writes_no_file_of_its_own_that_could_be_lost() {
    let (_database, client, mut program) = serving(&[]).await;
    let mut socket = program.subscribe(&anon(), "t").await;
    insert(&client, 1).await;
    socket.change().await;
    let found = written_by(program.pid());
    assert!(found.is_empty(), "{found:?}");
    // It would have been seen.
    let mine = std::env::temp_dir().join(format!("walcast-f11-{}", std::process::id()));
    let _file = fs::File::create(&mine).unwrap();
    assert!(written_by(std::process::id()).contains(&mine));
    fs::remove_file(mine).unwrap();
}

#[tokio::test]
async fn f13_a_process_that_gets_little_time_loses_nobody() {
    const FROZEN: Duration = Duration::from_millis(250);
    // Only as long as it is frozen is it late, whatever the machine does besides.
    let patient = [("WALCAST_REPLICATION_SENDER_TIMEOUT_MS", "600000")];
    let (_database, client, mut program) = serving(&patient).await;
    let mut sockets = Vec::new();
    for _ in 0..10 {
        sockets.push(program.subscribe(&anon(), "t").await);
    }
    for id in 0..10 {
        program.signal("STOP");
        insert(&client, id).await;
        tokio::time::sleep(FROZEN).await;
        program.signal("CONT");
        for socket in &mut sockets {
            socket.heartbeat().await;
        }
    }
    for socket in &mut sockets {
        for id in 0..10 {
            assert_eq!(socket.change().await["record"]["id"], id);
        }
    }
    // The link to the server did not break either.
    assert!((program.metric("walcast_wal_connects_total").await - 1.0).abs() < 0.1);
}

#[tokio::test]
async fn f14_what_we_keep_in_the_database_may_be_gone_at_the_next_start() {
    let (database, client, program) = serving(&[]).await;
    program.terminate();
    assert_eq!(program.end().await.0, 0);
    client.batch_execute("drop schema walcast cascade").await.unwrap();
    let mut program = Program::serving(&database).await;
    let mut socket = program.subscribe(&anon(), "t").await;
    insert(&client, 1).await;
    assert_eq!(socket.change().await["record"]["id"], 1);
    // And while it runs.
    client.batch_execute("drop schema walcast cascade").await.unwrap();
    insert(&client, 2).await;
    assert_eq!(socket.change().await["record"]["id"], 2);
    let mut late = program.subscribe(&anon(), "t").await;
    insert(&client, 3).await;
    for socket in [&mut socket, &mut late] {
        assert_eq!(socket.change().await["record"]["id"], 3);
    }
}

#[tokio::test]
async fn f20_a_reader_that_is_gone_without_a_word_loses_the_slot_and_publishes_nothing_more() {
    let (database, client, mut first) = serving(&[]).await;
    let mut of_first = first.subscribe(&service_role(), "t").await;
    insert(&client, 1).await;
    assert_eq!(of_first.change().await["record"]["id"], 1);
    let mut second = Program::start(&environment(&database));
    second.line("code=\"standby\"").await;
    first.signal("STOP");
    second.ready().await;
    let mut of_second = second.subscribe(&user(ALICE), "t").await;
    insert(&client, 2).await;
    assert_eq!(of_second.change().await["record"]["id"], 2);
    // The first one wakes up and finds that it is no longer the one.
    first.signal("CONT");
    first.line("code=\"standby\"").await;
    of_first.nothing_came().await;
    insert(&client, 3).await;
    assert_eq!(of_second.change().await["record"]["id"], 3);
    of_first.nothing_came().await;
    assert!(!first.is_ready().await && second.is_ready().await);
}
