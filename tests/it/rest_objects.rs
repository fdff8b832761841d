//! What walcast keeps in the database for REST: keys of requests, and routes.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use walcast::config::{Config, Secret};
use walcast::db::logins::Logins;
use walcast::db::{Login, install};

use crate::cluster::Database;

async fn installed() -> (Database, Client, Config) {
    let database = Database::create().await;
    let mut config = Config::default();
    config.database.url = Secret::new(database.url.as_str());
    let login = Login::parse(&database.url, Duration::from_secs(10)).unwrap();
    install::install(&login, &config).await.unwrap();
    let client = database.client().await;
    (database, client, config)
}

const BEGIN: &str = "select is_new, is_same, answer \
    from walcast.begin_request($1, $2, $3, interval '1 day')";

async fn begin(client: &Client, key: &str, request: &str) -> (bool, bool, Option<String>) {
    let row = client.query_one(BEGIN, &[&"user a", &key, &request]).await.unwrap();
    (row.get(0), row.get(1), row.get(2))
}

#[tokio::test]
async fn a_key_belongs_to_the_first_write_that_commits_with_it() {
    let (database, first, _config) = installed().await;
    first.batch_execute("insert into walcast.logins values ('postgres')").await.unwrap();
    let second = database.client().await;
    assert_eq!(begin(&first, "rolled back", "x").await, (true, true, None));
    first.batch_execute("delete from walcast.requests; begin").await.unwrap();
    assert_eq!(begin(&first, "k", "write").await, (true, true, None));
    // The second waits for the first one's end, and is told its answer.
    let waiting = begin(&second, "k", "write");
    let watcher = database.client().await;
    let ending = async {
        // It waits by itself: the server says so.
        let waits = "select exists (select from pg_stat_activity \
                     where datname = current_database() and wait_event_type = 'Lock')";
        while !watcher.query_one(waits, &[]).await.unwrap().get::<_, bool>(0) {}
        let end = "select walcast.end_request('user a', 'k', 'done')";
        first.batch_execute(end).await.unwrap();
        first.batch_execute("commit").await.unwrap();
    };
    let (told, ()) = tokio::join!(waiting, ending);
    assert_eq!(told, (false, true, Some("done".into())));
    assert_eq!(begin(&second, "k", "another").await, (false, false, Some("done".into())));
    // Somebody else's key is another one, and so is one that is over.
    let row = second.query_one(BEGIN, &[&"user b", &"k", &"write"]).await.unwrap();
    assert!(row.get::<_, bool>(0));
    let age = "update walcast.requests set made_at = made_at - interval '2 days'";
    second.batch_execute(age).await.unwrap();
    assert_eq!(begin(&second, "k", "write").await, (true, true, None));
}

#[tokio::test]
async fn keys_that_are_over_are_forgotten() {
    let (database, client, _config) = installed().await;
    client
        .batch_execute(
            "insert into walcast.requests (scope, key, request, made_at) values \
             ('a', 'old', '', now() - interval '61 seconds'), ('a', 'new', '', now())",
        )
        .await
        .unwrap();
    let owner = Login::parse(&database.url, Duration::from_secs(10)).unwrap();
    let minute = Duration::from_mins(1);
    assert_eq!(install::forget_keys(&owner, minute).await.unwrap(), 1);
    let left = client.query_one("select key from walcast.requests", &[]).await.unwrap();
    assert_eq!(left.get::<_, String>(0), "new");
    client.batch_execute("drop schema walcast cascade").await.unwrap();
    assert_eq!(install::forget_keys(&owner, minute).await.unwrap(), 0);
}

#[tokio::test]
async fn only_the_check_login_may_use_keys_and_it_can_be_dropped() {
    let (_database, client, config) = installed().await;
    let logins = Logins::open(&config).await.unwrap();
    let check = logins.check.connect("walcast test").await.unwrap();
    assert_eq!(begin(&check, "k", "x").await, (true, true, None));
    check.query("select * from walcast.routes", &[]).await.unwrap();
    let refused = check.query("select * from walcast.requests", &[]).await.unwrap_err();
    assert_eq!(refused.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE));
    check.batch_execute("set role service_role").await.unwrap();
    let refused = check.query(BEGIN, &[&"user a", &"k", &"x"]).await.unwrap_err();
    assert_eq!(refused.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE));
    let name = logins.check.user().to_owned();
    drop(check);
    logins.close().await.unwrap();
    let left = "select count(*) from pg_roles where rolname = $1";
    assert_eq!(client.query_one(left, &[&name]).await.unwrap().get::<_, i64>(0), 0);
}

#[tokio::test]
async fn a_given_check_login_may_use_keys_after_migrate() {
    let (database, client, mut config) = installed().await;
    let user = format!("check_of_{}", database.name);
    client.batch_execute(&format!("create role {user} login password 'x'")).await.unwrap();
    let url = database.url.replace("postgres://postgres@", &format!("postgres://{user}:x@"));
    config.database.check_url = Secret::new(url.as_str());
    let owner = Login::parse(&database.url, Duration::from_secs(10)).unwrap();
    install::install(&owner, &config).await.unwrap();
    let check = Login::parse(&url, Duration::from_secs(10)).unwrap();
    let check = check.connect("walcast test").await.unwrap();
    assert_eq!(begin(&check, "k", "x").await, (true, true, None));
}

#[tokio::test]
async fn a_route_is_declared_once_and_nothing_else_passes() {
    let (_database, client, _config) = installed().await;
    let route = async |method: &str, path: &str, target: &str| {
        client.execute("select walcast.route($1, $2, $3)", &[&method, &path, &target]).await
    };
    for (method, path, target) in [
        ("GET", "/api/presence", "GET /user_presence?user_id=eq.{claims.sub}"),
        ("GET", "/api/presence", "GET /user_presence?user_id=eq.{claims.sub}&limit=1"),
        ("PATCH", "/api/stories/{id}", "PATCH /stories?id=eq.{id}&select=*"),
        ("POST", "/api/stories/{id}/move", "POST /rpc/move_story?story={id}"),
    ] {
        route(method, path, target).await.unwrap();
    }
    let rows = client.query("select * from walcast.routes", &[]).await.unwrap();
    assert_eq!(rows.len(), 3);
    for (method, path, target) in [
        ("get", "/api/a", "GET /t"),
        ("HEAD", "/api/a", "GET /t"),
        ("GET", "/rest/v1/a", "GET /t"),
        ("GET", "/api/tenants/a", "GET /t"),
        ("GET", "/api/a/../b?c", "GET /t"),
        ("GET", "/api/a{id}", "GET /t"),
        ("GET", "/api/a", "/t"),
        ("GET", "/api/a", "GET /t/u/v"),
        ("GET", "/api/{id}", "GET /{id}"),
        ("GET", "/api/{id}", "GET /t?or=(a.eq.{id},b.eq.1)"),
        ("GET", "/api/{id}", "GET /t?a=in.({id})"),
        ("GET", "/api/{id}", "GET /t?{id}=eq.1"),
        ("GET", "/api/{id}", "GET /t?a=eq.x{id}"),
        ("GET", "/api/{id}", "GET /t?a=eq.{id}x"),
    ] {
        let refused = route(method, path, target).await.unwrap_err();
        let problem = refused.as_db_error().expect("an answer of Postgres");
        assert_eq!(problem.code().code(), "22023", "{method} {path} {target}");
    }
    let gone = "select walcast.unroute('GET', '/api/presence')";
    assert!(client.query_one(gone, &[]).await.unwrap().get::<_, bool>(0));
    assert!(!client.query_one(gone, &[]).await.unwrap().get::<_, bool>(0));
}
