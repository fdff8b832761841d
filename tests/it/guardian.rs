//! The slot and the server's disk: what holds WAL back, what is said of it, what is done about it.
//! Tests are named after the rows of the fault matrix.

use std::time::{Duration, Instant};

use tokio::process::Command;
use tokio::time::timeout;
use tokio_postgres::Client;

use crate::cluster::{self, Cluster, Database, connect};
use crate::operations::{POLL, Program, environment, until};
use crate::service::{ALICE, DEADLINE, Service, Version, anon, user};
use crate::stream::all_of;

/// Everybody may see it.
const TABLE_T: &str = "
    create table t (id bigint primary key);
    grant select on t to anon;
    alter publication supabase_realtime add table t;
";

/// Decided by reading another table: whoever locks that one holds its changes.
const TABLE_HELD: &str = "
    create table doors (open bool);
    insert into doors values (true);
    create table held (id bigint primary key);
    grant select on doors, held to authenticated;
    alter table held enable row level security;
    create policy p on held to authenticated using (exists (select from doors where open));
    alter publication supabase_realtime add table held;
";

/// Another 16 MB of log, for nothing.
pub(crate) async fn fill(client: &Client, segments: usize) {
    for _ in 0..segments {
        client.query_one("select pg_current_xact_id()::text", &[]).await.unwrap();
        client.query_one("select pg_switch_wal()::text", &[]).await.unwrap();
    }
    client.batch_execute("checkpoint").await.unwrap();
}

/// A server of its own, whose log no other test fills, and a database there.
pub(crate) async fn alone(name: &str, settings: &[(&str, &str)]) -> (Cluster, Database) {
    let cluster = Cluster::start(name, settings);
    let admin = connect(&cluster.url("postgres")).await;
    admin.batch_execute("create database guarded").await.unwrap();
    let url = cluster.url("guarded");
    (cluster, Database { name: "guarded".into(), url })
}

/// Waits until `/readyz` has this in it.
pub(crate) async fn says(program: &mut Program, part: &str) -> String {
    let mut last = String::new();
    let wait = async {
        loop {
            last = program.get("/readyz").await;
            if last.contains(part) {
                return;
            }
            tokio::time::sleep(POLL).await;
        }
    };
    let found = timeout(DEADLINE, wait).await;
    assert!(found.is_ok(), "no {part:?} in time: {last}");
    last
}

/// Waits until a metric is at least this.
pub(crate) async fn reaches(program: &mut Program, name: &str, least: f64) {
    let wait = async {
        while program.metric(name).await < least {
            tokio::time::sleep(POLL).await;
        }
    };
    timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{name} stays below {least}"));
}

/// Runs `walcast slot replace`: whether it did, and what it said.
async fn replace(environment: &[(&str, &str)]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_walcast"))
        .args(["slot", "replace"])
        .env_clear()
        .envs(environment.iter().copied())
        .output();
    let output = timeout(DEADLINE, output).await.unwrap().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

/// Ends whoever reads the slot and drops it, faster than anybody comes back.
async fn drop_under(client: &Client, slot: &str) {
    let sql = format!(
        "do $$ begin
            for i in 1..1000 loop
                perform pg_terminate_backend(active_pid, 1000) from pg_replication_slots
                where slot_name = '{slot}' and active_pid is not null;
                begin
                    perform pg_drop_replication_slot('{slot}');
                    return;
                exception when object_in_use then null;
                end;
            end loop;
        end $$"
    );
    client.batch_execute(&sql).await.unwrap();
}

#[tokio::test]
async fn f18_a_walsender_that_is_ended_is_followed_by_another_and_nothing_is_lost() {
    let service = Service::start().await;
    let admin = service.admin().await;
    admin.batch_execute(TABLE_T).await.unwrap();
    let mut socket = service.subscribe(Version::V2, &anon(), all_of("t").into()).await;
    let end = "select count(pg_terminate_backend(active_pid)) from pg_replication_slots
        where slot_name = $1 and active_pid is not null";
    for id in 0..20_i64 {
        admin.query_one(end, &[&service.database.name]).await.unwrap();
        admin.execute("insert into t values ($1)", &[&id]).await.unwrap();
        assert_eq!(socket.change().await["record"]["id"], id);
    }
}

#[tokio::test]
async fn f19_a_second_instance_stands_by_and_follows_within_two_seconds() {
    let database = Database::create().await;
    let first = Program::serving(&database).await;
    let mut second = Program::start(&environment(&database));
    says(&mut second, "(standby): slot").await;
    reaches(&mut second, "walcast_slot_state{state=\"standby\"}", 1.0).await;
    // Long enough for its pauses to have grown.
    let mut pause_ms = String::new();
    for _ in 0..8 {
        let line = second.line("code=\"standby\"").await;
        let (_, after) = line.split_once("retry_in_ms=").unwrap();
        pause_ms = after.split(' ').next().unwrap().to_owned();
    }
    assert_eq!(pause_ms, "1000");
    first.terminate();
    assert_eq!(first.end().await.0, 0);
    second.ready().await;
    let slots = "select count(*) = 1 from pg_replication_slots where database = current_database()";
    until(&database.client().await, slots).await;
}

#[tokio::test]
async fn f21_a_slot_that_somebody_drops_is_a_gap_for_everybody_once() {
    let database = Database::create().await;
    let mut program = Program::serving(&database).await;
    let client = database.client().await;
    client.batch_execute(TABLE_T).await.unwrap();
    let mut sockets = Vec::new();
    for _ in 0..5 {
        sockets.push(program.subscribe(&anon(), "t").await);
    }
    drop_under(&client, &database.name).await;
    for mut socket in sockets {
        let told = socket.expect("system").await;
        let text = told.payload["message"].as_str().unwrap();
        assert!(text.contains("Some changes were lost"), "{text}");
        assert_eq!(socket.closed().await, Some(1012));
    }
    program.ready().await;
    let gaps = program.metric("walcast_gaps_total{reason=\"slot_dropped\"}").await;
    assert!((gaps - 1.0).abs() < 0.1, "{gaps}");
}

#[tokio::test]
async fn f22_a_slot_that_the_server_gave_up_is_replaced_and_says_why() {
    let (_cluster, database) = alone("f22", &[("max_slot_wal_keep_size", "16MB")]).await;
    let program = Program::serving(&database).await;
    program.terminate();
    assert_eq!(program.end().await.0, 0);
    let client = database.client().await;
    fill(&client, 4).await;
    until(&client, "select wal_status = 'lost' from pg_replication_slots").await;
    let mut program = Program::start(&environment(&database));
    program.line("the lost slot was dropped").await;
    program.ready().await;
    reaches(&mut program, "walcast_gaps_total{reason=\"wal_removed\"}", 1.0).await;
    client.batch_execute(TABLE_T).await.unwrap();
    let mut socket = program.subscribe(&anon(), "t").await;
    client.batch_execute("insert into t values (1)").await.unwrap();
    assert_eq!(socket.change().await["record"]["id"], 1);
}

#[tokio::test]
async fn f23_a_slot_over_its_budget_warns_sheds_and_is_given_up_before_the_disk_is() {
    let (_cluster, database) = alone("f23", &[]).await;
    let budget = (64 << 20).to_string();
    let mut variables = environment(&database).to_vec();
    variables.push(("WALCAST_REPLICATION_WAL_BUDGET_BYTES", &budget));
    variables.push(("WALCAST_REPLICATION_CREATE_TIMEOUT_MS", "2000"));
    variables.push(("WALCAST_DATABASE_CHECK_TIMEOUT_MS", "2000"));
    let mut program = Program::start(&variables);
    program.ready().await;
    let client = database.client().await;
    client.batch_execute(TABLE_HELD).await.unwrap();
    let mut socket = program.subscribe(&user(ALICE), "held").await;
    // Whoever is to be asked does not answer: nothing is published any more.
    let lock = database.client().await;
    lock.batch_execute("begin; lock table doors in access exclusive mode").await.unwrap();
    client.batch_execute("insert into held values (1)").await.unwrap();
    program.line("changes are held until Postgres answers").await;
    fill(&client, 3).await;
    let warned = program.line("the slot keeps much of the WAL it may keep").await;
    assert!(warned.contains("code=\"wal_budget\" level=\"warn\""), "{warned}");
    reaches(&mut program, "walcast_wal_pressure", 1.0).await;
    assert!((program.metric("walcast_wal_budget_bytes").await - 67_108_864.0).abs() < 1.0);
    fill(&client, 2).await;
    program.line("the slot was given up, because it kept more WAL than its budget").await;
    // The lock's transaction is open: the new slot waits for it, and goes on trying.
    says(&mut program, "(waiting_for_snapshot): creating the slot waits for open").await;
    program.line("could not be created within 2000 ms").await;
    lock.batch_execute("commit").await.unwrap();
    socket.expect("system").await;
    assert_eq!(socket.closed().await, Some(1012), "and was told");
    program.ready().await;
    reaches(&mut program, "walcast_gaps_total{reason=\"wal_budget\"}", 1.0).await;
    let held = "select pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) < 16 << 20
        from pg_replication_slots";
    until(&client, held).await;
    let mut socket = program.subscribe(&user(ALICE), "held").await;
    client.batch_execute("insert into held values (2)").await.unwrap();
    assert_eq!(socket.change().await["record"]["id"], 2);
}

#[tokio::test]
async fn f23_a_slot_that_may_not_be_given_up_is_kept_and_said() {
    let (_cluster, database) = alone("f23-kept", &[]).await;
    let budget = (32 << 20).to_string();
    let mut variables = environment(&database).to_vec();
    variables.push(("WALCAST_REPLICATION_WAL_BUDGET_BYTES", &budget));
    variables.push(("WALCAST_REPLICATION_WAL_GIVE_UP", "false"));
    variables.push(("WALCAST_DATABASE_CHECK_TIMEOUT_MS", "2000"));
    let mut program = Program::start(&variables);
    program.ready().await;
    let client = database.client().await;
    client.batch_execute(TABLE_HELD).await.unwrap();
    let mut socket = program.subscribe(&user(ALICE), "held").await;
    let lock = database.client().await;
    lock.batch_execute("begin; lock table doors in access exclusive mode").await.unwrap();
    client.batch_execute("insert into held values (1)").await.unwrap();
    program.line("changes are held until Postgres answers").await;
    fill(&client, 4).await;
    program.line("wal_give_up is off").await;
    lock.batch_execute("commit").await.unwrap();
    assert_eq!(socket.change().await["record"]["id"], 1);
}

#[tokio::test]
async fn f24_an_idle_slot_follows_the_log_of_others_but_never_past_what_is_held() {
    let (_cluster, database) = alone("f24", &[]).await;
    let service = Service::on(database, |config| config.replication.replay_window_ms = 0).await;
    let admin = service.admin().await;
    admin.batch_execute(TABLE_HELD).await.unwrap();
    // Nobody writes to a published table.
    fill(&admin, 4).await;
    let near = "select pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn) < 1 << 20
        from pg_replication_slots where slot_name = 'guarded'";
    until(&admin, near).await;
    let mut socket = service.subscribe(Version::V2, &user(ALICE), all_of("held").into()).await;
    let lock = service.admin().await;
    lock.batch_execute("begin; lock table doors in access exclusive mode").await.unwrap();
    let before = "select pg_current_wal_lsn()::text";
    let before: String = admin.query_one(before, &[]).await.unwrap().get(0);
    admin.batch_execute("insert into held values (1)").await.unwrap();
    fill(&admin, 4).await;
    // All of it was received, and said to be.
    let received = "select pg_wal_lsn_diff(pg_current_wal_lsn(), write_lsn) < 1 << 20
        from pg_stat_replication where application_name = 'walcast replication'";
    until(&admin, received).await;
    let kept = format!(
        "select confirmed_flush_lsn <= '{before}' from pg_replication_slots
        where slot_name = 'guarded'"
    );
    assert!(admin.query_one(&kept, &[]).await.unwrap().get::<_, bool>(0), "not yet published");
    lock.batch_execute("commit").await.unwrap();
    assert_eq!(socket.change().await["record"]["id"], 1);
}

#[tokio::test]
async fn f25_a_publication_that_was_away_wedges_the_slot_until_it_is_replaced() {
    let database = Database::create().await;
    let mut program = Program::serving(&database).await;
    let client = database.client().await;
    client.batch_execute(TABLE_T).await.unwrap();
    let mut socket = program.subscribe(&anon(), "t").await;
    // Without the marks in the log: whoever may not make event triggers has none.
    client.batch_execute("set session_replication_role = replica").await.unwrap();
    client.batch_execute("drop publication supabase_realtime").await.unwrap();
    let dropped = Instant::now();
    says(&mut program, "(publication_missing): publication supabase_realtime").await;
    // At a look of its own it would be after a minute.
    assert!(dropped.elapsed() < Duration::from_secs(40), "{:?}", dropped.elapsed());
    client.batch_execute("insert into t values (1)").await.unwrap();
    client.batch_execute("create publication supabase_realtime for table t").await.unwrap();
    if cluster::version(&client).await >= 180_000 {
        // That server passes the place, and walcast says what it cost.
        return reaches(&mut program, "walcast_gaps_total{reason=\"publication_missing\"}", 1.0)
            .await;
    }
    let wedged = says(&mut program, "(slot_wedged): slot").await;
    assert!(wedged.contains("is wedged at 0/"), "{wedged}");
    program.line("a person must act, or the WAL budget will").await;
    // It tries, but not as fast as it can.
    let first = Instant::now();
    for _ in 0..2 {
        program.line("code=\"slot_wedged\"").await;
    }
    assert!(first.elapsed() > Duration::from_secs(1), "{:?}", first.elapsed());
    let (done, said) = replace(&environment(&database)).await;
    assert!(done && said.contains("dropped with all it held, and made anew"), "{said}");
    let told = socket.expect("system").await;
    assert!(told.payload["message"].as_str().unwrap().contains("Some changes were lost"));
    assert_eq!(socket.closed().await, Some(1012));
    program.ready().await;
    let mut socket = program.subscribe(&anon(), "t").await;
    client.batch_execute("insert into t values (2)").await.unwrap();
    assert_eq!(socket.change().await["record"]["id"], 2);
    // One that is read is not replaced.
    let (done, said) = replace(&environment(&database)).await;
    assert!(!done && said.contains("stop who reads it, and try again"), "{said}");
}

#[tokio::test]
async fn f25_a_slot_is_not_replaced_while_the_publication_is_away() {
    let database = Database::create().await;
    let (done, said) = replace(&environment(&database)).await;
    assert!(!done && said.contains("publication supabase_realtime does not exist"), "{said}");
}

#[tokio::test]
async fn f44_a_slot_that_cannot_be_created_yet_says_so_at_once_and_leaves_nothing_behind() {
    let (_cluster, database) = alone("f44", &[]).await;
    let client = database.client().await;
    let open = database.client().await;
    open.batch_execute("begin; create table never (id int)").await.unwrap();
    let mut program = Program::start(&environment(&database));
    program.line("creating the slot waits for open transactions").await;
    let waiting = says(&mut program, "(waiting_for_snapshot)").await;
    assert!(waiting.contains("(pid ") && waiting.contains("in database guarded"), "{waiting}");
    program.terminate();
    assert_eq!(program.end().await.0, 0);
    // The server was told: nobody waits any more for the transaction to end.
    let waits = "select count(*) = 0 from pg_stat_activity where backend_type = 'walsender'";
    until(&client, waits).await;
    open.batch_execute("rollback").await.unwrap();
    until(&client, "select count(*) = 0 from pg_replication_slots").await;
}

#[tokio::test]
async fn f45_an_old_transaction_shows_in_the_age_of_what_the_slot_holds() {
    let (_cluster, database) = alone("f45", &[]).await;
    let mut program = Program::serving(&database).await;
    let client = database.client().await;
    let open = database.client().await;
    open.batch_execute("begin; create table never (id int)").await.unwrap();
    let burn = "do $$ begin for i in 1..3000 loop perform pg_current_xact_id(); commit; end loop;
        end $$";
    client.batch_execute(burn).await.unwrap();
    reaches(&mut program, "walcast_slot_catalog_xmin_age", 3000.0).await;
}

#[tokio::test]
async fn slots_that_look_like_ours_and_are_read_by_nobody_are_said() {
    let database = Database::create().await;
    let client = database.client().await;
    let old = format!("{}_old", database.name);
    let create = "select pg_create_logical_replication_slot($1, 'pgoutput')";
    client.query_one(create, &[&old]).await.unwrap();
    let mut program = Program::serving(&database).await;
    let said = program.line("code=\"orphan_slot\"").await;
    assert!(said.contains(&old), "{said}");
    reaches(&mut program, "walcast_orphan_slots", 1.0).await;
}

#[tokio::test]
async fn a_slot_is_copied_to_standbys_as_the_setting_says() {
    let database = Database::create().await;
    let client = database.client().await;
    if cluster::version(&client).await < 170_000 {
        return;
    }
    let is = |failover: bool| {
        format!(
            "select count(*) = 1 from pg_replication_slots
            where database = current_database() and failover = {failover}"
        )
    };
    let mut service = Service::on(database, |config| config.replication.failover = false).await;
    until(&client, &is(false)).await;
    service.stop().await.unwrap();
    service.config.replication.failover = true;
    service.start_again().await;
    until(&client, &is(true)).await;
}
