//! Two processes and one slot: the second waits, and goes on where the first one ended.

use tokio::sync::watch;
use tokio_postgres::Client;

use super::resumed::Resumed;
use crate::cluster::Database;
use crate::operations::{Program, environment};
use crate::service::anon;

const TABLE: &str = "
    create table t (id bigint primary key);
    grant select on t to anon;
    alter publication supabase_realtime add table t;
";

/// Rows that are written before the first process ends, at least, and after the second one serves.
const ROWS: i64 = 20;

/// Writes rows until it is told not to; the number of the last one.
async fn write(client: Client, ends: watch::Receiver<bool>, written: watch::Sender<i64>) -> i64 {
    let mut id = 0;
    while !*ends.borrow() {
        id += 1;
        client.execute("insert into t values ($1)", &[&id]).await.unwrap();
        written.send_replace(id);
    }
    id
}

/// Two processes, of which the second takes over when the first one ends in this way, while rows are
/// written all the time.
async fn hand_over(end: impl AsyncFnOnce(Program)) {
    let database = Database::create().await;
    let client = database.client().await;
    // However long it takes here.
    let mut variables = environment(&database).to_vec();
    variables.push(("WALCAST_REPLICATION_REPLAY_WINDOW_MS", "3600000"));
    let mut first = Program::start(&variables);
    first.ready().await;
    client.batch_execute(TABLE).await.unwrap();
    let mut second = Program::start(&variables);
    second.line("is being read by another connection").await;
    let waiting = second.get("/readyz").await;
    assert!(waiting.starts_with("HTTP/1.1 503 "), "{waiting}");
    let mut channel = Resumed::join(first.address().await, &anon(), "t", None).await;
    let ((ends, told), (wrote, mut written)) = (watch::channel(false), watch::channel(0));
    let writer = tokio::spawn(write(database.client().await, told, wrote));
    channel.until(ROWS).await;
    let slots = "select count(*) from pg_replication_slots where database = current_database()";
    let slots: i64 = client.query_one(slots, &[]).await.unwrap().get(0);
    assert_eq!(slots, 1, "whoever waits makes no slot of his own");
    end(first).await;
    channel.end().await;
    second.ready().await;
    let cursor = channel.cursor.clone();
    let mut after = Resumed::join(second.address().await, &anon(), "t", Some(&cursor)).await;
    let more = *written.borrow_and_update() + ROWS;
    written.wait_for(|last| *last >= more).await.unwrap();
    ends.send_replace(true);
    let last = writer.await.unwrap();
    after.until(last).await;
    let came = [channel.ids, after.ids].concat();
    assert_eq!(came, (1..=last).collect::<Vec<_>>(), "each once, in order");
    second.terminate();
    assert_eq!(second.end().await.0, 0);
}

#[tokio::test]
async fn f07_an_upgrade_hands_the_slot_over_and_a_client_goes_on_without_a_gap() {
    hand_over(async |first| {
        first.terminate();
        assert_eq!(first.end().await.0, 0);
    })
    .await;
}

#[tokio::test]
async fn f19_who_waits_for_the_slot_makes_none_and_takes_over_from_who_was_killed() {
    hand_over(async |first| drop(first)).await;
}
