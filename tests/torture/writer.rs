//! Writers: transactions of every kind, as fast as they may, and what became of each.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::watch;
use tokio_postgres::{Client, NoTls};

use crate::judge::USERS;
use crate::world::{self, BUCKETS, FIXED, HAMMERED, IDS, TEAMS};

/// Between attempts to connect.
const RECONNECT: Duration = Duration::from_millis(50);

/// How long a statement may take before its connection is given up.
const STATEMENT: Duration = Duration::from_secs(20);

/// What writers are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    Write,
    Pause,
    End,
}

/// What all writers share.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) wanted: watch::Sender<Wanted>,
    /// Writers that write nothing now, and have no transaction open.
    pub(crate) parked: AtomicUsize,
    pub(crate) ledger: Mutex<Ledger>,
    /// Milliseconds between two transactions of one writer, at most.
    pub(crate) pace_ms: u64,
}

/// The transactions whose commit Postgres has confirmed.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Those of this round with rows in them. (A number of one that was rolled back proves nothing:
    /// after a crash the server may use it again.)
    pub(crate) committed: HashSet<u32>,
    /// Of all rounds.
    pub(crate) commits: u64,
}

/// One statement, and whether its rows stay if the transaction does.
struct Statement {
    sql: String,
    stays: bool,
}

fn stays(sql: String) -> Statement {
    Statement { sql, stays: true }
}

fn passing(sql: impl Into<String>) -> Statement {
    Statement { sql: sql.into(), stays: false }
}

/// Until the desk says that it is over.
pub(crate) async fn write(url: String, seed: u64, desk: &Desk) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut wanted = desk.wanted.subscribe();
    loop {
        let Ok((client, connection)) = tokio_postgres::connect(&url, NoTls).await else {
            tokio::time::sleep(RECONNECT).await;
            if park(&mut wanted, desk).await == Wanted::End {
                return;
            }
            continue;
        };
        let driver = tokio::spawn(connection);
        while !client.is_closed() {
            if park(&mut wanted, desk).await == Wanted::End {
                return;
            }
            let (statements, commits) = transaction(&mut random);
            let done = tokio::time::timeout(STATEMENT, run(&client, &statements, commits, desk));
            if done.await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(random.random_range(0..=desk.pace_ms))).await;
        }
        drop(client);
        driver.abort();
    }
}

/// Waits while there is a pause.
async fn park(wanted: &mut watch::Receiver<Wanted>, desk: &Desk) -> Wanted {
    if *wanted.borrow_and_update() == Wanted::Pause {
        desk.parked.fetch_add(1, Ordering::SeqCst);
        let _ = wanted.wait_for(|wanted| *wanted != Wanted::Pause).await;
        desk.parked.fetch_sub(1, Ordering::SeqCst);
    }
    *wanted.borrow()
}

async fn run(client: &Client, statements: &[Statement], commits: bool, desk: &Desk) {
    let begun = client.batch_execute("begin").await;
    let xid = client.query_one("select pg_current_xact_id()::text", &[]).await;
    let (Ok(()), Ok(xid)) = (begun, xid) else { return };
    let xid: u64 = xid.get::<_, &str>(0).parse().unwrap();
    let xid = u32::try_from(xid & u64::from(u32::MAX)).unwrap();
    let mut rows = 0;
    for Statement { sql, stays } in statements {
        match client.execute(sql, &[]).await {
            Ok(count) if *stays => rows += count,
            Ok(_) => {}
            Err(error) => {
                // A deadlock is one way of many; whatever it was, nothing of it may be seen.
                let expected = error.is_closed()
                    || error.code().is_none_or(|code| {
                        ["40P01", "40001", "23505", "57P01", "57P02", "57P03", "25P02"]
                            .contains(&code.code())
                    });
                assert!(expected, "{sql}: {error:?}");
                let _ = client.batch_execute("rollback").await;
                return;
            }
        }
    }
    let ended = client.batch_execute(if commits { "commit" } else { "rollback" }).await;
    if commits && ended.is_ok() {
        let mut ledger = desk.ledger.lock().unwrap();
        ledger.commits += 1;
        if rows > 0 {
            ledger.committed.insert(xid);
        }
    }
}

/// What a transaction does, and whether it commits in the end.
fn transaction(random: &mut StdRng) -> (Vec<Statement>, bool) {
    let statements = match random.random_range(0..100) {
        0..40 => vec![stays(one(random))],
        40..50 => {
            let rows = random.random_range(3..20);
            vec![stays(many(random, rows))]
        }
        50..51 => vec![stays(many(random, 300))],
        51..60 => (0..random.random_range(2..6)).map(|_| stays(one(random))).collect(),
        60..68 => vec![
            stays(one(random)),
            passing("savepoint s"),
            passing(one(random)),
            passing(one(random)),
            passing("rollback to savepoint s"),
            stays(one(random)),
        ],
        68..74 => {
            return (vec![passing(one(random)), passing(many(random, 5))], false);
        }
        74..82 => hammer(random),
        82..95 => vec![stays(moved(random))],
        // Few: for all that is under way, both answers are then right.
        95 if random.random_ratio(1, 30) => vec![stays(membership(random))],
        _ => vec![stays(many(random, 4)), stays(moved(random)), stays(one(random))],
    };
    (statements, true)
}

fn body(random: &mut StdRng) -> String {
    let length = if random.random_ratio(1, 50) { 5000 } else { random.random_range(0..120) };
    (0..length).map(|_| char::from(random.random_range(b'a'..=b'z'))).collect()
}

fn group(random: &mut StdRng, table: &str) -> (&'static str, String) {
    match table {
        "owned" => ("owner", format!("'{}'", world::subject(random.random_range(0..USERS)))),
        "team_docs" => ("team", random.random_range(0..TEAMS).to_string()),
        _ => ("bucket", random.random_range(0..BUCKETS).to_string()),
    }
}

fn table(random: &mut StdRng) -> &'static str {
    ["open_rows", "owned", "team_docs"][random.random_range(0..3)]
}

fn id(random: &mut StdRng) -> i64 {
    random.random_range(HAMMERED + 1..=IDS)
}

/// One row inserted, updated or deleted, if it is there or not as it must be.
fn one(random: &mut StdRng) -> String {
    let (table, id, body) = (table(random), id(random), body(random));
    let bucket = random.random_range(0..BUCKETS);
    match random.random_range(0..10) {
        0..5 => insert(random, table, id, &body),
        5..8 => format!("update {table} set body = '{body}' where id = {id}"),
        8 => format!("update {table} set bucket = {bucket} where id = {id}"),
        _ => format!("delete from {table} where id = {id}"),
    }
}

fn insert(random: &mut StdRng, table: &str, id: i64, body: &str) -> String {
    let bucket = random.random_range(0..BUCKETS);
    if table == "open_rows" {
        return format!(
            "insert into {table} (id, bucket, body) values ({id}, {bucket}, '{body}')
            on conflict (id) do update set body = excluded.body"
        );
    }
    let (column, value) = group(random, table);
    format!(
        "insert into {table} (id, bucket, {column}, body) values ({id}, {bucket}, {value}, '{body}')
        on conflict (id) do update set body = excluded.body"
    )
}

fn many(random: &mut StdRng, rows: i64) -> String {
    let (table, first) = (table(random), id(random));
    let body: String = body(random).chars().take(200).collect();
    let last = first + rows;
    match random.random_range(0..4) {
        0 => format!("update {table} set body = '{body}' where id between {first} and {last}"),
        1 if rows < 50 => format!("delete from {table} where id between {first} and {last}"),
        _ => {
            let last = last.min(IDS);
            let (column, value) = group(random, table);
            let (column, value) = if column == "bucket" {
                (String::new(), String::new())
            } else {
                (format!(", {column}"), format!(", {value}"))
            };
            format!(
                "insert into {table} (id, bucket, body{column})
                select i, i % {BUCKETS}, '{body}'{value} from generate_series({first}, {last}) as i
                on conflict (id) do nothing"
            )
        }
    }
}

/// Many versions of one row, one after the other.
fn hammer(random: &mut StdRng) -> Vec<Statement> {
    let table = table(random);
    let mut statements = Vec::new();
    for _ in 0..random.random_range(3..12) {
        let body = body(random);
        statements.push(stays(match random.random_range(0..6) {
            0 => format!("delete from {table} where id = {HAMMERED}"),
            1 | 2 => insert(random, table, HAMMERED, &body),
            _ => format!("update {table} set body = '{body}' where id = {HAMMERED}"),
        }));
    }
    statements
}

/// Rows that move out of one's sight and into another's.
fn moved(random: &mut StdRng) -> String {
    let table = table(random);
    let first = id(random);
    let last = first + random.random_range(0..4);
    let (column, value) = group(random, table);
    format!("update {table} set {column} = {value} where id between {first} and {last}")
}

fn membership(random: &mut StdRng) -> String {
    let (mut user, team) = (random.random_range(0..USERS), random.random_range(0..TEAMS));
    if (user, team) == FIXED {
        user += 1;
    }
    let member = world::subject(user);
    if random.random() {
        format!("insert into members values ('{member}', {team}) on conflict do nothing")
    } else {
        format!("delete from members where member = '{member}' and team = {team}")
    }
}
