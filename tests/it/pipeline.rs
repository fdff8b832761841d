//! The connection whose messages are answered at once, on a real server.

use std::time::Duration;

use tokio::time::timeout;
use walcast::db::Login;
use walcast::db::pipeline::{AskError, Batch, Connection, Error, Standing};

use crate::cluster::Database;
use crate::service::DEADLINE;

async fn connection(database: &Database) -> (Login, Connection) {
    let login = Login::parse(&database.url, DEADLINE).unwrap();
    let connection = Connection::open(&login, "one sync").await.unwrap();
    (login, connection)
}

#[tokio::test]
async fn steps_are_answered_together_in_their_order() {
    let (_, mut connection) = connection(&Database::create().await).await;
    let mut batch = Batch::default();
    batch.parse("both", "select $1::text, $2::int + 1 as more").unwrap();
    batch.run_described("both", [None, Some(&b"41"[..])]).unwrap();
    batch.run("both", [Some(&b""[..]), None]).unwrap();
    batch.parse("", "select from generate_series(1, 3)").unwrap();
    batch.run("", []).unwrap();
    batch.sync();
    batch.query("select 'alone'; select 'and not'").unwrap();
    connection.send(batch);
    assert_eq!(connection.owed(), 2);
    let answers = connection.answers().await.unwrap();
    assert_eq!((answers.parsed, answers.standing), (2, Standing::Idle));
    let steps = answers.whole().unwrap();
    let columns = steps[0].columns.as_deref().unwrap();
    assert_eq!(columns, [(b"text".to_vec(), 25), (b"more".to_vec(), 23)]);
    let values = |step: usize| steps[step].first().unwrap().collect::<Vec<_>>();
    assert_eq!(values(0), [None, Some(&b"42"[..])]);
    assert_eq!(values(1), [Some(&b""[..]), None]);
    assert_eq!((steps[2].len(), values(2)), (3, vec![]));
    let alone = connection.answers().await.unwrap().whole().unwrap();
    assert_eq!((alone[0].text(0), alone[1].text(0)), (Some("alone"), Some("and not")));
    assert_eq!(connection.owed(), 0);
    assert!(!connection.is_closed());
}

#[tokio::test]
async fn what_follows_a_failure_is_skipped_up_to_the_sync() {
    let (_, mut connection) = connection(&Database::create().await).await;
    connection.ask("create table t (id int)", []).await.unwrap();
    let mut batch = Batch::default();
    for text in ["begin", "insert into t values (1)", "select 1 / 0", "commit"] {
        batch.parse("", text).unwrap();
        batch.run("", []).unwrap();
    }
    batch.sync();
    batch.query("rollback; select count(*) from t").unwrap();
    connection.send(batch);
    let answers = connection.answers().await.unwrap();
    assert_eq!((answers.steps.len(), answers.standing), (2, Standing::Failed));
    let said = answers.failed.unwrap();
    assert_eq!((&*said.code, &*said.message), ("22012", "division by zero"));
    let answers = connection.answers().await.unwrap();
    assert_eq!(answers.standing, Standing::Idle);
    assert_eq!(answers.steps[1].text(0), Some("0"));
    let refused = connection.ask("select nothing", []).await.unwrap_err();
    assert!(matches!(refused, AskError::Said(said) if said.code == "42703"));
}

#[tokio::test]
async fn long_answers_and_long_questions_pass_each_other() {
    let (_, mut connection) = connection(&Database::create().await).await;
    let long = vec![b'x'; 20_000_000];
    let mut batch = Batch::default();
    for _ in 0..2 {
        batch.parse("", "select $1::text, repeat('y', 20000000)").unwrap();
        batch.run("", [Some(&*long)]).unwrap();
    }
    batch.sync();
    connection.send(batch);
    let answers = timeout(DEADLINE, connection.answers()).await.expect("no side waits").unwrap();
    let steps = answers.whole().unwrap();
    for step in &steps {
        assert_eq!(step.bytes(), 40_000_000 + 10);
        assert_eq!(step.text(0).map(str::as_bytes), Some(&*long));
    }
}

#[tokio::test]
async fn whoever_does_not_wait_leaves_nothing_to_the_next() {
    let database = Database::create().await;
    let (login, mut connection) = connection(&database).await;
    let mut batch = Batch::default();
    batch.parse("", "select pg_sleep(600)").unwrap();
    batch.run("", []).unwrap();
    batch.sync();
    connection.send(batch);
    assert!(timeout(Duration::from_millis(1), connection.answers()).await.is_err());
    assert!(matches!(connection.answers().await, Err(Error::Lost(_))));
    // It has not ended: whoever wants it gone must say so.
    assert!(!connection.is_closed());
    // What has not begun cannot be told to stop.
    let admin = database.client().await;
    let sleeps = "select from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database()";
    let begun = async { while admin.query(sleeps, &[]).await.unwrap().is_empty() {} };
    timeout(DEADLINE, begun).await.expect("it sleeps");
    connection.cancel(&login).await.unwrap();
    timeout(DEADLINE, connection.settle()).await.expect("it stops when told to");
    assert_eq!(connection.owed(), 0);
    assert!(connection.is_closed());
}

#[tokio::test]
async fn what_was_not_sent_when_nobody_waits_any_more_does_not_run() {
    let database = Database::create().await;
    let (_, mut connection) = connection(&database).await;
    connection.ask("create table t (v text)", []).await.unwrap();
    let mut batch = Batch::default();
    // More than the kernel takes at once.
    let long = vec![b'x'; 50_000_000];
    batch.parse("", "insert into t values ($1)").unwrap();
    batch.run("", [Some(&*long)]).unwrap();
    batch.sync();
    connection.send(batch);
    {
        let mut answers = std::pin::pin!(connection.answers());
        let first = std::future::poll_fn(|context| {
            std::task::Poll::Ready(answers.as_mut().poll(context).is_pending())
        });
        assert!(first.await);
    }
    timeout(DEADLINE, connection.settle()).await.expect("the server hears that there is no more");
    assert!(connection.is_closed());
    let count = "select count(*) from t";
    let rows: i64 = database.client().await.query_one(count, &[]).await.unwrap().get(0);
    assert_eq!(rows, 0);
}

#[tokio::test]
async fn an_end_shows_before_anything_is_asked() {
    let database = Database::create().await;
    let (_, mut connection) = connection(&database).await;
    let (pid, started) = connection.process().clone();
    let admin = database.client().await;
    let named = "select backend_start::text, application_name from pg_stat_activity where pid = $1";
    let row = admin.query_one(named, &[&pid]).await.unwrap();
    assert_eq!((row.get::<_, &str>(0), row.get::<_, &str>(1)), (&*started, "one sync"));
    assert!(!connection.is_closed());
    // What is said between answers is no end.
    connection.ask("listen news", []).await.unwrap();
    admin.batch_execute("notify news").await.unwrap();
    assert!(!connection.is_closed());
    admin.query("select pg_terminate_backend($1, 5000)", &[&pid]).await.unwrap();
    let shown = async {
        while !connection.is_closed() {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, shown).await.expect("it shows");
    assert!(connection.answers().await.is_err());
}

#[tokio::test]
async fn f90_what_can_be_no_message_is_not_sent() {
    let (_, mut connection) = connection(&Database::create().await).await;
    let refused = connection.ask("select '\0'", []).await.unwrap_err();
    assert!(matches!(refused, AskError::Connection(Error::Unsendable(_))), "{refused:?}");
    assert_eq!(connection.ask("select 1", []).await.unwrap().text(0), Some("1"));
}

#[tokio::test]
async fn a_server_of_another_kind_is_passed_over() {
    let database = Database::create().await;
    for (kind, is_wanted) in [("read-write", true), ("read-only", false), ("any", true)] {
        let sign = if database.url.contains('?') { '&' } else { '?' };
        let url = format!("{}{sign}target_session_attrs={kind}", database.url);
        let login = Login::parse(&url, DEADLINE).unwrap();
        let opened = Connection::open(&login, "kind").await;
        assert_eq!(opened.is_ok(), is_wanted, "{kind}: {opened:?}");
    }
}
