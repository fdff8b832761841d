//! The whole way, from a commit to a frame, where rights and time do not keep still.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use walcast::config::{Config, Secret};

use crate::cluster::{self, Cluster};
use crate::service::{self, ALICE, BOB, DEADLINE, SECRET, Service, Socket, Version, anon, user};

fn all(table: &str) -> Value {
    json!([{ "event": "*", "schema": "public", "table": table }])
}

/// A row that everybody sees, in a table of its own: what comes before it came before.
async fn marker(service: &Service) -> String {
    let table = service.table("note text").await;
    service
        .admin()
        .await
        .batch_execute(&format!("insert into {table} values (1, 'x')"))
        .await
        .unwrap();
    table
}

/// The `system` message that comes next.
async fn told(socket: &mut Socket) -> String {
    let message = socket.expect("system").await;
    assert_eq!(message.payload["status"], "error", "{message:?}");
    message.payload["message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_filter_on_a_column_that_may_no_longer_be_read_ends_the_subscription() {
    let service = service::shared().await;
    let admin = service.admin().await;
    let t = service.table("secret text, note text").await;
    let grant =
        format!("revoke select on {t} from anon; grant select (id, note, secret) on {t} to anon");
    admin.batch_execute(&grant).await.unwrap();
    let filtered =
        json!([{ "event": "*", "schema": "public", "table": t, "filter": "secret=eq.guess" }]);
    let mut socket = service.subscribe(Version::V2, &anon(), filtered).await;
    admin.batch_execute(&format!("insert into {t} values (1, 'guess', 'a')")).await.unwrap();
    assert_eq!(socket.change().await["record"]["secret"], "guess");
    let revoke = format!(
        "revoke select (secret) on {t} from anon; insert into {t} values (2, 'guess', 'b')"
    );
    admin.batch_execute(&revoke).await.unwrap();
    let text = told(&mut socket).await;
    assert!(text.contains("secret") && text.contains("ended"), "{text}");
    let more = format!("insert into {t} values (3, 'guess', 'c'), (4, 'other', 'd')");
    admin.batch_execute(&more).await.unwrap();
    let everything = all(&t);
    socket.subscribe("realtime:other", everything).await;
    admin.batch_execute(&format!("insert into {t} values (5, 'guess', 'e')")).await.unwrap();
    // The new one may hear of what came just before it.
    let record = loop {
        let next = socket.expect("postgres_changes").await;
        assert_eq!(next.topic, "realtime:other", "the ended subscription is silent");
        let record = &next.payload["data"]["record"];
        if record["id"] == 5 {
            break record.clone();
        }
    };
    assert_eq!(record, json!({ "id": 5, "note": "e" }));
}

#[tokio::test]
async fn a_filter_that_takes_too_long_ends_and_holds_back_nobody_for_long() {
    let service = Service::with(|config| config.database.check_timeout_ms = 1500).await;
    let admin = service.admin().await;
    let t = service.table("note text").await;
    // Back references make the server try every way to divide the text.
    let pattern = r"^(a+)(a+)(a+)(a+)\4\3\2\1b?c?$";
    let slow = json!([{
        "event": "*", "schema": "public", "table": t, "filter": format!("note=match.{pattern}")
    }]);
    let patterns = json!([{
        "event": "*", "schema": "public", "table": t, "filter": "note=match.^a"
    }]);
    let mut hostile = service.subscribe(Version::V2, &anon(), slow).await;
    let mut other = service.subscribe(Version::V2, &anon(), patterns).await;
    for id in 1..=20 {
        let insert = format!("insert into {t} values ({id}, repeat('a', 5000))");
        admin.batch_execute(&insert).await.unwrap();
    }
    for id in 1..=20 {
        assert_eq!(other.change().await["record"]["id"], id);
    }
    assert!(told(&mut hostile).await.contains("too long"));
    hostile.nothing_came().await;
}

#[tokio::test]
async fn a_row_that_leaves_a_filter_only_postgres_can_answer_is_told() {
    let service = service::shared().await;
    let admin = service.admin().await;
    let t = service.table("note text").await;
    admin.batch_execute(&format!("alter table {t} replica identity full")).await.unwrap();
    let filtered =
        json!([{ "event": "*", "schema": "public", "table": t, "filter": "note=match.^a" }]);
    let mut socket = service.subscribe(Version::V2, &anon(), filtered).await;
    let work = format!(
        "insert into {t} values (1, 'ab'); update {t} set note = 'ac'; update {t} set note = 'b';
        update {t} set note = 'c'; update {t} set note = 'ad'"
    );
    admin.batch_execute(&work).await.unwrap();
    for (operation, note) in [("INSERT", "ab"), ("UPDATE", "ac"), ("DELETE", ""), ("UPDATE", "ad")]
    {
        let change = socket.change().await;
        assert_eq!(change["type"], operation, "{change}");
        if operation != "DELETE" {
            assert_eq!(change["record"]["note"], note);
        }
    }
    socket.nothing_came().await;
}

#[tokio::test]
async fn f43_what_a_policy_says_as_it_fails_is_not_told() {
    let service = service::shared().await;
    let admin = service.admin().await;
    let t = service.table("owner text, note text").await;
    let protect = format!(
        "alter table {t} enable row level security;
        create policy own on {t} to authenticated using (owner::uuid = (select auth.uid()));"
    );
    admin.batch_execute(&protect).await.unwrap();
    let mut socket = service.subscribe(Version::V2, &user(ALICE), all(&t)).await;
    let insert = format!("insert into {t} values (1, 'a-secret-name', 'x')");
    admin.batch_execute(&insert).await.unwrap();
    let text = told(&mut socket).await;
    assert!(text.contains("withheld") && !text.contains("a-secret-name"), "{text}");
    admin.batch_execute(&format!("insert into {t} values (2, '{ALICE}', 'mine')")).await.unwrap();
    assert_eq!(socket.change().await["record"]["note"], "mine");
}

#[tokio::test]
async fn an_unreadable_key_is_told_once_and_only_to_who_sees_the_row() {
    let service = service::shared().await;
    let admin = service.admin().await;
    let t = service.owned_table("note text").await;
    let mut alice = service.subscribe(Version::V2, &user(ALICE), all(&t)).await;
    let mut bob = service.subscribe(Version::V2, &user(BOB), all(&t)).await;
    let revoke = format!(
        "revoke select on {t} from authenticated; grant select (owner, note) on {t} to authenticated;
        insert into {t} values (1, '{ALICE}', 'x')"
    );
    admin.batch_execute(&revoke).await.unwrap();
    let change = alice.change().await;
    assert_eq!(change["errors"], json!(["Error 401: Unauthorized"]));
    assert_eq!(change["record"], json!({}));
    for socket in [&mut alice, &mut bob] {
        assert!(told(socket).await.contains("primary key"));
    }
    admin.batch_execute(&format!("insert into {t} values (2, '{ALICE}', 'y')")).await.unwrap();
    for socket in [&mut alice, &mut bob] {
        let marker = marker(service).await;
        socket.subscribe("realtime:marker", all(&marker)).await;
        admin.batch_execute(&format!("insert into {marker} values (2, 'y')")).await.unwrap();
        assert_eq!(socket.expect("postgres_changes").await.topic, "realtime:marker");
    }
}

#[tokio::test]
async fn a_channel_whose_subscription_was_refused_gets_it_with_better_claims() {
    let service = service::shared().await;
    let admin = service.admin().await;
    let t = service.table("secret text").await;
    admin.batch_execute(&format!("revoke select (secret), select on {t} from anon")).await.unwrap();
    admin.batch_execute(&format!("grant select (id) on {t} to anon")).await.unwrap();
    let filtered =
        json!([{ "event": "*", "schema": "public", "table": t, "filter": "secret=eq.x" }]);
    let mut socket = service.connect(Version::V2, &anon()).await;
    let (_, system) = socket.try_subscribe("realtime:test", filtered).await;
    assert_eq!(system["status"], "error", "{system}");
    for (role, status) in [("authenticated", "ok"), ("anon", "error"), ("authenticated", "ok")] {
        let token = service::token(&json!({ "role": role, "sub": ALICE, "n": status }));
        let refresh = json!({ "access_token": token });
        let reference = socket.reference();
        socket.send(&json!("1"), &reference, "realtime:test", "access_token", &refresh).await;
        let system = socket.expect("system").await;
        assert_eq!(system.payload["status"], status, "{role}: {system:?}");
    }
    admin.batch_execute(&format!("insert into {t} values (1, 'x')")).await.unwrap();
    assert_eq!(socket.change().await["record"], json!({ "id": 1, "secret": "x" }));
}

/// Notes that the members of their map may see.
async fn notes(service: &Service) -> (String, String) {
    let members = service.table("map int, member uuid").await;
    let notes = service.table("map int, body text").await;
    let protect = format!(
        "alter table {notes} replica identity full;
        alter table {notes} enable row level security;
        create policy member on {notes} to authenticated using (exists (
            select from {members} as m where m.map = {notes}.map and m.member = (select auth.uid())
        ));"
    );
    service.admin().await.batch_execute(&protect).await.unwrap();
    (notes, members)
}

#[tokio::test]
async fn who_comes_in_by_a_transaction_sees_no_old_values_of_it_however_it_is_cut() {
    // Batches end after every few rows.
    let service = Service::with(|config| config.replication.batch_bytes = 4096).await;
    let (notes, members) = notes(&service).await;
    let filler = service.table("text text").await;
    let mut admin = service.admin().await;
    let set_up = format!(
        "insert into {members} values (1, 1, '{ALICE}'); insert into {notes} values (1, 1, 'before')"
    );
    admin.batch_execute(&set_up).await.unwrap();
    let mut alice = service.subscribe(Version::V2, &user(ALICE), all(&notes)).await;
    let mut bob = service.subscribe(Version::V2, &user(BOB), all(&notes)).await;
    let transaction = admin.transaction().await.unwrap();
    let update = format!("update {notes} set body = 'after' where id = 1");
    transaction.batch_execute(&update).await.unwrap();
    let fill =
        format!("insert into {filler} select n, repeat('x', 500) from generate_series(1, 500) n");
    transaction.batch_execute(&fill).await.unwrap();
    let invite = format!("insert into {members} values (2, 1, '{BOB}')");
    transaction.batch_execute(&invite).await.unwrap();
    transaction.commit().await.unwrap();
    for (socket, who) in [(&mut alice, "alice"), (&mut bob, "bob")] {
        let change = socket.change().await;
        assert_eq!(change["record"]["body"], "after", "{who}");
        if who == "bob" {
            assert_eq!(change["old_record"], json!({ "id": 1 }), "{who}");
        }
    }
}

/// Waits until as many sessions as given wait for a standby.
async fn wait_for_standby(admin: &Client, sessions: i64) {
    let waiting = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
    let wait = async {
        while admin.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) < sessions {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.expect("a session that waits");
}

/// A server whose commits can be made to wait for a standby that never comes. A commit that waits is
/// in the log and not visible.
#[tokio::test]
async fn f39_what_is_in_the_log_but_not_visible_yet_holds_back_what_depends_on_it() {
    // From its start, or a commit may come between a reload and the moment when the server heeds it.
    let settings = [("synchronous_standby_names", "nobody"), ("synchronous_commit", "local")];
    let cluster = Cluster::start("standby", &settings);
    let url = cluster.url("postgres");
    let mut config = Config::default();
    config.database.url = Secret::new(&*url);
    config.jwt.secret = Secret::new(SECRET);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(walcast::server::run_on(listener, config, shutdown.clone()));
    let admin = cluster::connect(&url).await;
    let set_up = format!(
        "create table members (map int, member uuid, primary key (map, member));
        create table notes (id int primary key, map int);
        create table late (id int primary key);
        grant all on members, notes, late to authenticated;
        alter table notes enable row level security;
        create policy member on notes to authenticated using (exists (
            select from members as m where m.map = notes.map and m.member = (select auth.uid())
        ));
        insert into members values (1, '{ALICE}'), (2, '{ALICE}');
        alter publication supabase_realtime add table members, notes, late;"
    );
    let wait = async {
        // All or nothing; roles and publication come with the service.
        while admin.batch_execute(&set_up).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.expect("a service");
    let token = user(ALICE);
    let socket = format!("ws://{address}/realtime/v1/websocket?apikey={token}&vsn=2.0.0");
    let mut alice = Socket::open(Version::V2, &socket, &[]).await.unwrap();
    alice.subscribe("realtime:notes", all("notes")).await;

    // Every table is described: what follows is nothing but rows.
    let seen = "insert into late values (0); insert into members values (2, gen_random_uuid())";
    admin.batch_execute(seen).await.unwrap();
    admin.batch_execute("insert into notes values (0, 2)").await.unwrap();
    assert_eq!(alice.change().await["record"]["id"], 0);

    let writer = cluster::connect(&url).await;
    writer.batch_execute("set synchronous_commit = on").await.unwrap();
    let revoke = tokio::spawn(async move {
        writer.batch_execute("delete from members where map = 1; insert into late values (1)").await
    });
    wait_for_standby(&admin, 1).await;
    // Alice is no member of map 1 any more, though nobody can see that yet.
    admin.batch_execute("insert into notes values (1, 1)").await.unwrap();
    // Who joins now must find the row of the waiting transaction: by reading, or as a change.
    let mut other = Socket::open(Version::V2, &socket, &[]).await.unwrap();
    let payload = json!({ "config": { "postgres_changes": all("late") } });
    let join = other.send_join("realtime:late", &payload).await;
    for _ in 0..50 {
        alice.nothing_came().await;
        other.nothing_came().await;
    }
    admin.batch_execute("alter system set synchronous_standby_names = ''").await.unwrap();
    admin.batch_execute("select pg_reload_conf()").await.unwrap();
    revoke.await.unwrap().unwrap();
    assert_eq!(other.reply(&join).await.payload["status"], "ok");
    let late = admin.query("select from late where id = 1", &[]).await.unwrap();
    assert_eq!(late.len(), 1);
    admin.batch_execute("insert into notes values (2, 2)").await.unwrap();
    let change = alice.change().await;
    assert_eq!(change["record"]["id"], 2, "the first note came after the membership had ended");
    shutdown.cancel();
    running.await.unwrap().unwrap();
}
