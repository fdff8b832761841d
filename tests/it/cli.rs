//! The program as its users start it.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::Output;

use tokio::process::Command;

use crate::cluster::Database;

const SECRET: &str = "a-secret-of-thirty-two-bytes-or-more";

/// What a run printed, and how it ended.
pub(crate) struct Run {
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) code: i32,
}

/// Runs `walcast` with nothing but the given environment.
pub(crate) async fn walcast(arguments: &[&str], environment: &[(&str, &str)]) -> Run {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_walcast"))
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let run = Run { out: text(stdout), err: text(stderr), code: status.code().unwrap() };
    assert!(!run.out.contains(SECRET) && !run.err.contains(SECRET), "a secret was printed");
    run
}

#[track_caller]
fn has(text: &str, part: &str) {
    assert!(text.contains(part), "no {part:?} in:\n{text}");
}

/// The one line of an error.
#[track_caller]
fn refused(run: &Run, part: &str) {
    assert_eq!(run.code, 1, "{}", run.err);
    assert_eq!(run.err.lines().count(), 1, "{}", run.err);
    assert!(run.err.starts_with("walcast: "), "{}", run.err);
    has(&run.err, part);
}

#[tokio::test]
async fn migrate_says_what_it_made_and_what_was_there() {
    let database = Database::create().await;
    let environment = [("DATABASE_URL", database.url.as_str()), ("WALCAST_LOG", "error")];
    let first = walcast(&["migrate"], &environment).await;
    assert_eq!(first.code, 0, "{}", first.err);
    has(&first.out, "created  publication supabase_realtime\n");
    has(&first.out, "created  function auth.uid()\n");
    let second = walcast(&["migrate"], &environment).await;
    has(&second.out, "kept     publication supabase_realtime\n");
    has(&second.out, "\n0 created, ");
}

#[tokio::test]
async fn errors_say_in_one_line_what_to_do() {
    let database = Database::create().await;
    refused(&walcast(&["migrate"], &[]).await, "DATABASE_URL is not set; give it as postgres://");
    refused(
        &walcast(&["migrate"], &[("DATABASE_URL", "postgres://a:hunter2@127.0.0.1:1/x")]).await,
        "start Postgres there, or correct the host and port in DATABASE_URL",
    );
    let absent = database.url.replace(&database.name, "no_such_database");
    refused(
        &walcast(&["migrate"], &[("DATABASE_URL", &absent)]).await,
        "create that database, or correct the name in DATABASE_URL",
    );
    let run = walcast(&["serve"], &[("DATABASE_URL", &database.url)]).await;
    refused(&run, "WALCAST_JWT_SECRET: is not set; give the secret that signs your tokens");
    refused(&walcast(&["serve"], &[]).await, "DATABASE_URL: is not set; give it, or both");
    let run = walcast(&["serve", "--slot", "Bad"], &[]).await;
    refused(&run, "setting --slot: must be 1 to 63 characters of a-z, 0-9 and _");
    let run = walcast(&["migrate"], &[("WALCAST_CONFIG", "/no/such/file")]).await;
    refused(&run, "cannot read the file /no/such/file: No such file");
}

#[tokio::test]
async fn a_wrong_password_is_said_and_not_shown() {
    let url =
        scripted_server(b"SFATAL\0C28P01\0Mpassword authentication failed for user \"a\"\0\0");
    let run = walcast(&["migrate"], &[("DATABASE_URL", &url)]).await;
    refused(&run, "correct the user and password in DATABASE_URL");
    assert!(!run.err.contains("hunter2"), "{}", run.err);
}

/// A server that answers any start with one error.
fn scripted_server(fields: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://a:hunter2@{}/x", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().take(3) {
            let mut stream = stream.unwrap();
            let mut request = [0; 1024];
            let read = stream.read(&mut request).unwrap();
            if request[..read].get(4..8) == Some(&80_877_103_u32.to_be_bytes()) {
                stream.write_all(b"N").unwrap(); // No TLS here.
                assert!(stream.read(&mut request).unwrap() > 0);
            }
            let length = u32::try_from(fields.len() + 4).unwrap().to_be_bytes();
            stream.write_all(&[b"E", &length[..], fields].concat()).unwrap();
        }
    });
    url
}

#[tokio::test]
async fn no_secret_can_be_given_as_an_argument() {
    for flag in ["--database-url", "--jwt-secret", "--secret", "--password"] {
        let run = walcast(&["serve", flag, "x"], &[]).await;
        assert_eq!(run.code, 2, "{flag}");
    }
}

#[tokio::test]
async fn a_minted_token_is_explained_as_accepted() {
    let environment = [("WALCAST_JWT_SECRET", SECRET)];
    let arguments =
        ["token", "--role", "authenticated", "--sub", "alice", "--claim", "n=1", "--expires", "2h"];
    let minted = walcast(&arguments, &environment).await;
    assert_eq!(minted.code, 0, "{}", minted.err);
    let token = minted.out.trim();
    let run = walcast(&["token", "--check", token], &environment).await;
    assert_eq!(run.code, 0, "{}", run.out);
    has(&run.out, "signature: verifies (HS256)\n");
    has(&run.out, "expires: in ");
    assert!(run.out.ends_with("\naccepted\n"), "{}", run.out);
    let other = [("JWT_SECRET", "another-secret-of-thirty-two-bytes-or-more")];
    let run = walcast(&["token", "--check", token], &other).await;
    assert_eq!(run.code, 1);
    assert!(run.out.ends_with("\nrefused\n"), "{}", run.out);
    refused(&walcast(&["token", "--role", "postgres"], &environment).await, "role postgres is not");
    refused(&walcast(&["token", "--role", "anon"], &[]).await, "WALCAST_JWT_SECRET is not set");
}

#[tokio::test]
async fn healthcheck_asks_the_port_we_listen_on() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let server = std::thread::spawn(move || {
        for answer in ["200 OK", "503 Service Unavailable"] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 256];
            let read = stream.read(&mut request).unwrap();
            assert!(request[..read].starts_with(b"GET /healthz HTTP/1.1\r\n"));
            write!(stream, "HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n").unwrap();
        }
    });
    // Bound to every address, it is asked over loopback.
    let environment = [("PORT", port.as_str()), ("WALCAST_BIND", "0.0.0.0")];
    assert_eq!(walcast(&["healthcheck"], &environment).await.code, 0);
    refused(&walcast(&["healthcheck"], &environment).await, "not healthy: HTTP/1.1 503");
    server.join().unwrap();
    refused(&walcast(&["healthcheck"], &environment).await, "nothing healthy at 127.0.0.1:");
}

#[tokio::test]
async fn doctor_finds_what_is_missing_and_fixes_it() {
    let database = Database::create().await;
    let environment = [
        ("DATABASE_URL", database.url.as_str()),
        ("WALCAST_JWT_SECRET", SECRET),
        ("WALCAST_SLOTT", "typing error"),
    ];
    let before = walcast(&["doctor"], &environment).await;
    assert_eq!(before.code, 1, "{}", before.out);
    has(&before.out, "red   publication supabase_realtime does not exist\n");
    has(&before.out, "warn  schema walcast is not installed\n");
    has(&before.out, "ok    wal_level is logical\n");
    has(&before.out, "warn  WALCAST_SLOTT is set and has no meaning here\n");
    has(&before.out, "warn  max_slot_wal_keep_size is unlimited");
    let client = database.client().await;
    let untouched = "select to_regnamespace('walcast') is null";
    assert!(client.query_one(untouched, &[]).await.unwrap().get::<_, bool>(0));
    let after = walcast(&["doctor", "--fix"], &environment).await;
    assert_eq!(after.code, 0, "{}{}", after.out, after.err);
    has(&after.out, "fixed created publication supabase_realtime\n");
    has(&after.out, "warn  publication supabase_realtime has no tables, so nothing is published\n");
    has(&after.out, ", 0 red\n");
}

#[tokio::test]
async fn doctor_judges_tables_by_what_their_changes_need() {
    let database = Database::create().await;
    let environment = [("DATABASE_URL", database.url.as_str()), ("WALCAST_JWT_SECRET", SECRET)];
    assert_eq!(walcast(&["migrate"], &environment).await.code, 0);
    let client = database.client().await;
    client
        .batch_execute(
            "create table public.keyless (id int);
             create table public.fine (id int primary key, owner uuid);
             create table public.covered (id int, owner uuid not null, primary key (id, owner));
             create table public.complete (id int primary key, owner uuid);
             create table public.\"Short\" (id int primary key, owner uuid);
             create table public.blind (id int primary key);
             create schema hidden;
             create table hidden.open (id int primary key);
             alter table public.complete replica identity full;
             grant select on public.keyless, public.fine, public.covered, public.complete,
                 public.\"Short\", hidden.open to authenticated;",
        )
        .await
        .unwrap();
    for table in ["fine", "covered", "complete", "\"Short\"", "keyless"] {
        let column = if table == "fine" { "id is not null" } else { "true" };
        let column = if ["covered", "complete", "\"Short\""].contains(&table) {
            "owner = auth.uid()"
        } else {
            column
        };
        client
            .batch_execute(&format!(
                "alter table public.{table} enable row level security;
                 create policy p on public.{table} for select using ({column})"
            ))
            .await
            .unwrap();
    }
    client
        .batch_execute(
            "alter table public.blind enable row level security;
             alter publication supabase_realtime add table public.keyless, public.fine,
                 public.covered, public.complete, public.\"Short\", public.blind, hidden.open",
        )
        .await
        .unwrap();
    let run = walcast(&["doctor"], &environment).await;
    assert_eq!(run.code, 1, "{}", run.out);
    has(&run.out, "red   table public.keyless has no replica identity");
    for fine in ["fine", "covered", "complete"] {
        has(&run.out, &format!("ok    table public.{fine}\n"));
    }
    has(&run.out, "warn  table public.\"Short\": policies read owner, which the log does not hold");
    has(&run.out, "alter table public.\"Short\" replica identity full;");
    has(&run.out, "warn  table public.blind: none of the roles may select from it");
    has(&run.out, "warn  table public.blind has Row Level Security and no policy");
    has(&run.out, "warn  table hidden.open: authenticated may not use its schema");
    has(&run.out, "grant usage on schema \"hidden\" to \"authenticated\";");
    has(&run.out, "warn  table hidden.open has no Row Level Security: authenticated see every row");
    client.batch_execute("drop table public.keyless").await.unwrap();
    assert_eq!(walcast(&["doctor"], &environment).await.code, 0);
}

#[tokio::test]
async fn doctor_tells_the_state_of_the_slot_and_of_others_like_it() {
    let database = Database::create().await;
    let (slot, old) =
        (format!("walcast_{}", database.name), format!("walcast_o_{}", database.name));
    let environment = [
        ("DATABASE_URL", database.url.as_str()),
        ("WALCAST_JWT_SECRET", SECRET),
        ("WALCAST_SLOT", slot.as_str()),
    ];
    assert_eq!(walcast(&["migrate"], &environment).await.code, 0);
    has(
        &walcast(&["doctor"], &environment).await.out,
        "is not there yet; the first start makes it",
    );
    let client = database.client().await;
    let create = format!(
        "select pg_create_logical_replication_slot('{slot}', 'test_decoding'); \
         select pg_create_logical_replication_slot('{old}', 'pgoutput')"
    );
    client.batch_execute(&create).await.unwrap();
    let run = walcast(&["doctor"], &environment).await;
    assert_eq!(run.code, 1, "{}", run.out);
    has(&run.out, &format!("red   slot {slot} is not ours: its plugin is test_decoding\n"));
    has(&run.out, &format!("warn  slot {old} is read by nobody and holds back "));
    let recreate = format!(
        "select pg_drop_replication_slot('{slot}'); select pg_drop_replication_slot('{old}'); \
         select pg_create_logical_replication_slot('{slot}', 'pgoutput')"
    );
    client.batch_execute(&recreate).await.unwrap();
    let run = walcast(&["doctor"], &environment).await;
    has(&run.out, &format!("warn  slot {slot} is read by nobody and holds back "));
    assert_eq!(run.code, 0, "{}", run.out);
    let run = walcast(&["uninstall", "--drop-slot"], &environment).await;
    assert_eq!(run.code, 0, "{}", run.err);
    has(&run.out, &format!("dropped  slot {slot}\n"));
    has(&run.out, "dropped  schema walcast\n");
    let run = walcast(&["uninstall", "--drop-slot"], &environment).await;
    has(&run.out, "nothing of walcast is installed here\n");
}

#[tokio::test]
async fn doctor_refuses_given_logins_that_can_do_too_much_or_too_little() {
    let database = Database::create().await;
    let owner = [("DATABASE_URL", database.url.as_str())];
    assert_eq!(walcast(&["migrate"], &owner).await.code, 0);
    let client = database.client().await;
    let weak = format!("weak_{}", database.name);
    client.batch_execute(&format!("create role {weak} login noinherit")).await.unwrap();
    let weak = database.url.replace("postgres://postgres@", &format!("postgres://{weak}:hunter2@"));
    let environment = [
        ("WALCAST_CHECK_URL", database.url.as_str()),
        ("WALCAST_REPLICATION_URL", weak.as_str()),
        ("WALCAST_JWT_SECRET", SECRET),
    ];
    let run = walcast(&["doctor"], &environment).await;
    assert_eq!(run.code, 1, "{}", run.out);
    has(
        &run.out,
        "red   the login of WALCAST_CHECK_URL is a superuser; make one with: create role",
    );
    has(&run.out, "red   the login of WALCAST_REPLICATION_URL has no REPLICATION; run: alter role");
    assert!(!run.out.contains("hunter2"), "{}", run.out);
    // Nothing can be mended without the installing login, and that is said.
    let weak = [("WALCAST_CHECK_URL", weak.as_str()), ("WALCAST_SLOT", "walcast_none")];
    client.batch_execute("drop publication supabase_realtime").await.unwrap();
    let run = walcast(&["doctor", "--fix"], &weak).await;
    has(&run.out, "not fixed: DATABASE_URL is needed to mend anything\n");
    assert_eq!(run.code, 1);
}

#[tokio::test]
async fn doctor_drops_logins_of_instances_that_are_gone_and_no_others() {
    let database = Database::create().await;
    let environment = [("DATABASE_URL", database.url.as_str()), ("WALCAST_JWT_SECRET", SECRET)];
    assert_eq!(walcast(&["migrate"], &environment).await.code, 0);
    let client = database.client().await;
    let number: u32 = database.name.rsplit('_').next().unwrap().parse().unwrap();
    let dead = format!("walcast_check_dead{number:08x}");
    let human = format!("walcast_check_by_hand_{}", database.name);
    client
        .batch_execute(&format!(
            "create role {dead} login; create role {human} login;
             comment on role {dead} is 'walcast login for {name}, made 1000';
             comment on role {human} is 'walcast login for {name}, made 1000'",
            name = database.name
        ))
        .await
        .unwrap();
    let run = walcast(&["doctor"], &environment).await;
    has(&run.out, &format!("warn  logins of instances that are gone: {dead}\n"));
    let run = walcast(&["doctor", "--fix"], &environment).await;
    has(&run.out, &format!("fixed dropped {dead}\n"));
    assert!(!run.out.contains("warn  logins of instances"), "{}", run.out);
    let left = "select count(*) from pg_roles where rolname = any($1)";
    let left = client.query_one(left, &[&vec![&dead, &human]]).await.unwrap();
    assert_eq!(left.get::<_, i64>(0), 1);
}

#[tokio::test]
async fn doctor_without_a_database_says_so() {
    let run = walcast(&["doctor"], &[]).await;
    assert_eq!(run.code, 1);
    has(&run.out, "red   no database is given\n");
    has(&run.out, "red   no token can be verified");
    let run = walcast(&["doctor"], &[("DATABASE_URL", "postgres://a:hunter2@127.0.0.1:1/x")]).await;
    has(&run.out, "red   DATABASE_URL: cannot connect to Postgres");
    assert!(!run.out.contains("hunter2"), "{}", run.out);
}

#[tokio::test]
async fn doctor_names_what_is_wrong_with_roles_publications_and_partitions() {
    let (database, other) = (Database::create().await, Database::create().await);
    let owner = [("DATABASE_URL", database.url.as_str())];
    assert_eq!(walcast(&["migrate"], &owner).await.code, 0);
    let (client, name) = (database.client().await, &database.name);
    let partition = client
        .query_one("select 'messages_' || to_char(now() at time zone 'utc', 'YYYY_MM_DD')", &[])
        .await
        .unwrap();
    let sql = format!(
        "create role above_{name} superuser; create role plain_{name} login;
         create table public.p (id int primary key);
         alter table public.p owner to plain_{name};
         alter table public.p enable row level security;
         create publication partial_p for table public.p with (publish = 'insert');
         create publication all_p for all tables;
         drop table realtime.{};
         drop event trigger walcast_ddl; drop event trigger walcast_drop;
         drop function auth.uid() cascade;",
        partition.get::<_, &str>(0)
    );
    client.batch_execute(&sql).await.unwrap();
    let slot = "select pg_create_logical_replication_slot($1, 'pgoutput')";
    let foreign = format!("foreign_{name}");
    other.client().await.query(slot, &[&foreign]).await.unwrap();
    let roles = format!("authenticated,above_{name},absent_{name},plain_{name}");
    let environment = [
        ("DATABASE_URL", database.url.as_str()),
        ("WALCAST_JWT_SECRET", SECRET),
        ("WALCAST_ROLES", &roles),
        ("WALCAST_PUBLICATIONS", "supabase_realtime,partial_p,all_p,absent_p"),
        ("WALCAST_SLOT", &foreign),
    ];
    let run = walcast(&["doctor"], &environment).await;
    assert_eq!(run.code, 1, "{}", run.out);
    for line in [
        &*format!("red   role above_{name} stands above policies; no token may name it\n"),
        &*format!("red   role absent_{name} does not exist\n"),
        "warn  publication partial_p leaves out inserts, updates or deletes\n",
        "warn  publication all_p has all tables, those with secrets included",
        "red   publication absent_p does not exist\n",
        &*format!("warn  table public.p: policies do not bind its owner plain_{name}\n"),
        "red   realtime.messages lacks the partition of today or tomorrow",
        "warn  changes of policies and grants are not announced in the log",
        "warn  there is no function auth.uid(), which most policies call\n",
        &*format!("red   slot {foreign} belongs to another database\n"),
        "ok    tokens are verified with the shared secret\n",
    ] {
        has(&run.out, line);
    }
    // As somebody with less power.
    let plain = database.url.replace("postgres://postgres@", &format!("postgres://plain_{name}@"));
    let run = walcast(&["doctor"], &[("DATABASE_URL", &plain)]).await;
    has(&run.out, "warn  DATABASE_URL is no superuser and probably may not make the two logins\n");
    has(&run.out, "create role walcast_repl login replication noinherit");
}

#[tokio::test]
async fn doctor_warns_of_a_database_without_an_encoding() {
    let database = Database::create().await;
    let name = format!("ascii_{}", database.name);
    let sql = format!(
        "create database {name} template template0 encoding 'SQL_ASCII' lc_collate 'C' \
         lc_ctype 'C'"
    );
    database.client().await.batch_execute(&sql).await.unwrap();
    let url = crate::cluster::cluster().url(&name);
    let run = walcast(&["doctor"], &[("DATABASE_URL", &url)]).await;
    has(&run.out, "warn  the database has no encoding (SQL_ASCII)");
}
