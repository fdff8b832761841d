//! Torture: writers, clients, and everything between them failing; then what came is compared with
//! what Postgres says was committed and may be seen.
//!
//! In:     `--minutes N` (default 2), `--seed S` (default 1) and `--round R` (default 0: the one to
//!         begin with), as `scripts/torture` passes them; nothing at all, as from `cargo test`: then nothing is done.
//! Out:    one line of counts; before it, on stderr, a line a round. Status 1 when a count that
//!         must be 0 is not: then the first bad events, what went wrong around them, and the seed.
//! Never:  anything but loopback; a process or a file left behind, however it ends; more than
//!         ten minutes beyond its time.
//!
//! A run is a sequence of rounds. In each, writers write and acts of the schedule happen; then
//! everything is healed, the writers pause, and each channel must have all that is its own. The
//! schedule is a function of the seed; what falls together with what is not.

#![allow(clippy::unwrap_used, reason = "a run ends where its machinery fails")]

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../it/cluster.rs"]
mod cluster;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../it/faults/judge.rs"]
mod judge;
mod garbler;
mod listener;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../it/faults/proxy.rs"]
mod proxy;
mod schedule;
mod service;
mod stream;
mod truth;
mod world;
mod writer;

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use jsonwebtoken::{EncodingKey, Header};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_postgres::Client;
use walcast::dev::StopMode;

use cluster::Cluster;
use judge::{Entry, Judge};
use listener::{Notes, now_us};
use proxy::Proxy;
use schedule::{Act, Link};
use service::{SECRET, Service};
use truth::Reader;
use writer::{Desk, Ledger, Wanted};

/// Writers at a time.
const WRITERS: u64 = 3;

/// What goes wrong in one round.
const ACTS: usize = 11;

/// How long everything may take to be well again after the last act of a round.
const RECOVERY: Duration = Duration::from_mins(2);

/// How long a process that is armed is given to come to its kill point, before something else
/// happens to it.
const FUSE: Duration = Duration::from_secs(3);

/// How long a channel may take to get what is its own once everything is well.
const ARRIVAL: Duration = Duration::from_mins(2);

/// Gaps that a channel may be told of after one dropped slot while all is well.
const GAPS_MAX: usize = 2;

/// Between two looks at what does not come to its end.
const BETWEEN_LOOKS: Duration = Duration::from_secs(5);

/// How long the whole run may take beyond its time.
const OVERTIME: Duration = Duration::from_mins(10);

/// Between looks at what has no event of its own.
const POLL: Duration = Duration::from_millis(20);

/// The database.
const DATABASE: &str = "torture";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str, default: &str| {
        let place = arguments.iter().position(|argument| argument == name);
        let value = place.and_then(|place| arguments.get(place + 1));
        value.map_or(default.to_owned(), Clone::clone)
    };
    // `cargo test` runs this too; it takes its time only when asked to.
    if !arguments.iter().any(|argument| argument == "--minutes") {
        return ExitCode::SUCCESS;
    }
    if !cfg!(feature = "kill-points") {
        eprintln!("build it with `--features kill-points`, as scripts/torture does");
        return ExitCode::FAILURE;
    }
    let (minutes, seed) = (value("--minutes", "2").parse(), value("--seed", "1").parse());
    let first = value("--round", "0").parse();
    let (Ok(minutes), Ok(seed), Ok(first)) = (minutes, seed, first) else {
        eprintln!("usage: scripts/torture [--minutes N] [--seed S] [--round R]");
        return ExitCode::from(2);
    };
    let lasts = Duration::from_secs_f64(f64::max(minutes, 0.1) * 60.0);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let run = async { timeout(lasts + OVERTIME, Run::whole(seed, first, lasts)).await };
    let run = std::panic::AssertUnwindSafe(|| runtime.block_on(run));
    match std::panic::catch_unwind(run) {
        Ok(Ok(true)) => return ExitCode::SUCCESS,
        Ok(Ok(false)) => {}
        Ok(Err(_elapsed)) => eprintln!("torture: it did not end in time"),
        Err(_panic) => eprintln!("torture: its own machinery failed"),
    }
    eprintln!("torture: repeat it with --seed {seed}");
    ExitCode::FAILURE
}

/// Everything that runs.
struct Run {
    seed: u64,
    cluster: Arc<Cluster>,
    service: Arc<Service>,
    database_link: Arc<Proxy>,
    client_link: Arc<Proxy>,
    desk: Arc<Desk>,
    notes: Arc<Notes>,
    listeners: JoinSet<()>,
    garbler: JoinSet<()>,
    writers: JoinSet<()>,
    supervisor: JoinSet<()>,
    judge: Judge,
    reader: Reader,
    crashes: u64,
    /// The slot was dropped in this round.
    gaps_are_due: bool,
    /// After the last act of this round, until all was well, and from then on until every channel
    /// was current.
    recovered: (Duration, Duration),
    /// What happened in this round, with times.
    story: Vec<String>,
    /// What no count says, and must not be.
    faults: Vec<String>,
}

impl Run {
    async fn whole(seed: u64, first: u64, lasts: Duration) -> bool {
        let began = Instant::now();
        let mut run = Self::start(seed).await;
        let mut rounds = 0;
        // A round that has begun may end a minute late.
        while began.elapsed() < lasts && run.is_clean() {
            run.round(first + rounds).await;
            rounds += 1;
            let counts = run.judge.counts;
            eprintln!(
                "round {rounds} at {} s: kills {}, crashes {}, events {}, bad {}; well after \
                 {:.1} s, and current after {:.1} s",
                began.elapsed().as_secs(),
                run.service.kills(),
                run.crashes,
                counts.events,
                counts.bad(),
                run.recovered.0.as_secs_f64(),
                run.recovered.1.as_secs_f64()
            );
        }
        run.report(rounds, began.elapsed());
        let clean = run.is_clean();
        run.end().await;
        clean
    }

    async fn start(seed: u64) -> Self {
        let settings = [("checkpoint_timeout", "30s"), ("max_connections", "200")];
        let cluster = tokio::task::spawn_blocking(move || Cluster::start("torture", &settings));
        let cluster = Arc::new(cluster.await.unwrap());
        let admin = cluster::connect(&cluster.url("postgres")).await;
        admin.batch_execute(&format!("create database {DATABASE}")).await.unwrap();
        let to_database = SocketAddr::from((Ipv4Addr::LOCALHOST, cluster.server.port()));
        let database_link = Arc::new(Proxy::start(to_database, seed).await);
        let url = cluster.tcp_url(DATABASE).replace(
            &format!(":{}/", cluster.server.port()),
            &format!(":{}/", database_link.address.port()),
        );
        let address = free_address().await;
        let log = cluster.server.directories()[0].join("walcast.log");
        let service = Arc::new(Service::new(address, url, log));
        let client_link = Arc::new(Proxy::start(address, seed ^ 1).await);
        let mut supervisor = JoinSet::new();
        let supervised = Arc::clone(&service);
        supervisor.spawn(async move { supervised.supervise().await });
        let (clients, channels) = world::listeners();
        let desk = Arc::new(Desk {
            wanted: tokio::sync::watch::Sender::new(Wanted::Pause),
            parked: AtomicUsize::new(0),
            ledger: Ledger::default().into(),
            pace_ms: 12,
        });
        let notes = Arc::new(Notes::new(channels.len()));
        let judge = Judge::new(channels.clone(), world::members());
        let mut run = Self {
            seed,
            cluster,
            service,
            database_link,
            client_link,
            desk,
            notes,
            listeners: JoinSet::new(),
            garbler: JoinSet::new(),
            writers: JoinSet::new(),
            supervisor,
            judge,
            reader: Reader::default(),
            crashes: 0,
            gaps_are_due: false,
            recovered: Default::default(),
            story: Vec::new(),
            faults: Vec::new(),
        };
        run.ready().await;
        let admin = run.admin().await;
        admin.batch_execute(&world::schema()).await.unwrap();
        let slot = "select pg_create_logical_replication_slot($1, 'pgoutput')";
        admin.query_one(slot, &[&world::TRUTH]).await.unwrap();
        for (number, client) in (0..).zip(clients) {
            let (channels, notes) = (channels.clone(), Arc::clone(&run.notes));
            let (token, address) = (token(&client.claims), run.client_link.address);
            let seed = seed.wrapping_add(1000 + number);
            run.listeners.spawn(async move {
                listener::listen(client, &channels, token, address, seed, &notes).await;
            });
        }
        let garbled = Proxy::start(run.service.address, seed ^ 2).await;
        garbled.set(proxy::Direction::Up, proxy::Fault::Flip { one_in: 400 });
        run.garbler.spawn(async move {
            let _until_the_end = &garbled;
            garbler::talk(garbled.address, token(&world::anybody())).await;
        });
        for number in 0..WRITERS {
            let (url, desk) = (run.cluster.url(DATABASE), Arc::clone(&run.desk));
            let seed = seed.wrapping_add(2000 + number);
            run.writers.spawn(async move { writer::write(url, seed, &desk).await });
        }
        run.joined().await;
        run
    }

    async fn admin(&self) -> Client {
        cluster::connect(&self.cluster.url(DATABASE)).await
    }

    fn is_clean(&self) -> bool {
        self.judge.counts.bad() == 0 && self.faults.is_empty()
    }

    fn tell(&mut self, what: &str) {
        self.story.push(format!("{} {what}", now_us()));
    }

    async fn round(&mut self, number: u64) {
        self.story.clear();
        self.desk.wanted.send_replace(Wanted::Write);
        let mut healing = JoinSet::new();
        for (pause, act) in schedule::round(self.seed, number, ACTS) {
            tokio::time::sleep(pause).await;
            self.tell(&format!("{act:?}"));
            self.act(act, &mut healing).await;
        }
        while healing.join_next().await.is_some() {}
        self.database_link.heal();
        self.client_link.heal();
        self.tell("all is healed");
        let healed = Instant::now();
        if self.service.is_armed() {
            self.service.kill(None);
        }
        self.ready().await;
        self.joined().await;
        self.pause_writers().await;
        // A point may be armed only now, or be passed just before it was looked at.
        self.ready().await;
        self.joined().await;
        self.tell("all is well, and nobody writes");
        let well = healed.elapsed();
        self.arrived().await;
        self.recovered = (well, healed.elapsed().saturating_sub(well));
        self.judge().await;
    }

    async fn act(&mut self, act: Act, healing: &mut JoinSet<()>) {
        match act {
            Act::Kill => self.service.kill(None),
            Act::Arm(arming) => {
                let starts = self.service.starts();
                self.service.kill(Some(arming));
                if arming.point == walcast::kill::Point::OnDrain {
                    // It has to be there to be asked.
                    self.wait(RECOVERY, "ready to drain", Self::is_ready).await;
                    self.service.signal("TERM");
                }
                let until = Instant::now() + FUSE;
                // The one that was killed, the one that was armed, the one after it.
                while self.service.starts() < starts + 2 && Instant::now() < until {
                    tokio::time::sleep(POLL).await;
                }
            }
            Act::Terminate => {
                self.service.signal("TERM");
            }
            Act::Freeze(lasts) => {
                let service = Arc::clone(&self.service);
                service.signal("STOP");
                healing.spawn(async move {
                    tokio::time::sleep(lasts).await;
                    service.signal("CONT");
                });
            }
            Act::PostgresImmediate => {
                self.crashes += 1;
                self.server(|cluster| cluster.server.stop(StopMode::Immediate).unwrap()).await;
            }
            Act::PostgresKill => {
                self.crashes += 1;
                self.server(|cluster| cluster.server.kill().unwrap()).await;
            }
            Act::PostgresRestart => {
                self.server(|cluster| {
                    // It waits for its walsenders, and they for whoever may be frozen just now.
                    if cluster.server.stop(StopMode::Fast).is_err() {
                        cluster.server.stop(StopMode::Immediate).unwrap();
                    }
                })
                .await;
            }
            Act::BackendKill => {
                let admin = self.admin().await;
                let any = "select pid from pg_stat_activity where backend_type in \
                           ('client backend', 'walsender') and pid <> pg_backend_pid() \
                           order by random() limit 1";
                if let Ok(Some(row)) = admin.query_opt(any, &[]).await {
                    let pid = row.get::<_, i32>(0);
                    if service::signal(u32::try_from(pid).unwrap(), "KILL") {
                        self.crashes += 1;
                    }
                }
                // The server lets nobody in until it has recovered.
                self.reachable().await;
            }
            Act::EndWalsender => {
                let end = "select pg_terminate_backend(active_pid) from pg_replication_slots \
                           where slot_name = 'torture' and active_pid is not null";
                let _ = self.admin().await.query(end, &[]).await;
            }
            Act::Checkpoint => {
                let _ = self.admin().await.batch_execute("checkpoint").await;
            }
            Act::DropSlot { under_its_reader } => {
                self.gaps_are_due = true;
                if !under_its_reader {
                    self.service.hold();
                }
                self.drop_slot().await;
                self.service.release();
            }
            Act::Link { link, up, down, lasts } => {
                let proxy = Arc::clone(self.link(link));
                proxy.set(proxy::Direction::Up, up);
                proxy.set(proxy::Direction::Down, down);
                healing.spawn(async move {
                    tokio::time::sleep(lasts).await;
                    proxy.heal();
                });
            }
            Act::ResetAll(link) => self.link(link).reset_all(),
        }
    }

    /// Drops the service's slot, whoever reads it, faster than he comes back.
    async fn drop_slot(&mut self) {
        let drop = "do $$ begin
                for i in 1..1000 loop
                    perform pg_terminate_backend(active_pid, 1000) from pg_replication_slots
                    where slot_name = 'torture' and active_pid is not null;
                    begin
                        perform pg_drop_replication_slot('torture');
                        return;
                    exception when object_in_use then null; when undefined_object then return;
                    end;
                end loop;
                raise 'the slot is never free';
            end $$";
        if let Err(error) = self.admin().await.batch_execute(drop).await {
            self.faults.push(format!("the slot was not dropped: {error:?}"));
        }
    }

    fn link(&self, link: Link) -> &Arc<Proxy> {
        match link {
            Link::Database => &self.database_link,
            Link::Clients => &self.client_link,
        }
    }

    /// Does something to the server, and starts it.
    async fn server(&self, what: impl FnOnce(&Cluster) + Send + 'static) {
        let cluster = Arc::clone(&self.cluster);
        tokio::task::spawn_blocking(move || {
            what(&cluster);
            cluster.server.start_again().unwrap();
        })
        .await
        .unwrap();
    }

    async fn reachable(&self) {
        let url = self.cluster.url(DATABASE);
        let reached = async {
            loop {
                if let Ok((client, connection)) =
                    tokio_postgres::connect(&url, tokio_postgres::NoTls).await
                {
                    let driver = tokio::spawn(connection);
                    let answers = client.batch_execute("select").await.is_ok();
                    driver.abort();
                    if answers {
                        return;
                    }
                }
                tokio::time::sleep(POLL).await;
            }
        };
        timeout(RECOVERY, reached).await.expect("the server comes back");
    }

    async fn is_ready(&self) -> bool {
        self.service.is_ready().await
    }

    async fn ready(&mut self) {
        self.reachable().await;
        self.wait(RECOVERY, "the service ready", Self::is_ready).await;
    }

    /// Waits until every channel is joined on a connection that lives.
    async fn joined(&mut self) {
        let since = Instant::now();
        self.wait(RECOVERY, "every channel joined", async |run: &Self| {
            let heard = |channel: usize| run.notes.of(channel).heard;
            (0..run.notes.count()).all(|channel| heard(channel).is_some_and(|heard| heard >= since))
        })
        .await;
    }

    /// Notes a fault when it does not become true in time, and how it stands then.
    async fn wait(&mut self, most: Duration, what: &str, is_so: impl AsyncFn(&Self) -> bool) {
        let until = Instant::now() + most;
        while !is_so(self).await {
            if Instant::now() > until {
                let at = self.service.starts();
                self.faults.push(format!("not {what} within {most:?}, at start {at}"));
                for pause in [Duration::ZERO, BETWEEN_LOOKS] {
                    tokio::time::sleep(pause).await;
                    self.look().await;
                }
                return;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Takes down how the service and its connections stand.
    async fn look(&mut self) {
        self.tell("how it stands:");
        let ready = self.service.get("/readyz").await.unwrap_or_default();
        let metrics = self.service.get("/metrics").await.unwrap_or_default();
        let lines = ready.lines().last().into_iter().chain(metrics.lines());
        let told = |line: &&str| !line.starts_with('#') && !line.contains("quantile=");
        self.story.extend(lines.filter(told).map(str::to_owned));
        self.story.extend(self.service.threads());
        for (channel, note) in (0..self.notes.count()).map(|at| (at, self.notes.of(at))) {
            let (count, last) = (note.log.len(), note.log.last());
            self.story.push(format!("c{channel}: {count} entries, the last {last:?}"));
        }
        let ask = "select concat_ws(' ', pid, usename, application_name, state, wait_event,
                now() - state_change, left(query, 60)) from pg_stat_activity
                where datname is not null
            union all select concat_ws(' ', slot_name, restart_lsn, confirmed_flush_lsn,
                pg_current_wal_lsn()) from pg_replication_slots";
        let url = self.cluster.url(DATABASE);
        let asked = async {
            let (client, connection) =
                tokio_postgres::connect(&url, tokio_postgres::NoTls).await.ok()?;
            let driver = tokio::spawn(connection);
            let rows = client.query(ask, &[]).await.ok();
            driver.abort();
            rows
        };
        let rows = timeout(BETWEEN_LOOKS, asked).await.ok().flatten().unwrap_or_default();
        self.story.extend(rows.iter().map(|row| row.get::<_, String>(0)));
    }

    async fn pause_writers(&mut self) {
        self.desk.wanted.send_replace(Wanted::Pause);
        let writers = usize::try_from(WRITERS).unwrap();
        self.wait(RECOVERY, "every writer pausing", async |run: &Self| {
            run.desk.parked.load(Ordering::SeqCst) == writers
        })
        .await;
    }

    /// Writes last rows, and waits until each channel has the last one that it must be shown.
    async fn arrived(&mut self) {
        let admin = self.admin().await;
        let (_, channels) = world::listeners();
        let rows = world::last_rows(&channels);
        // Who is told of a gap only now may have it reach over the rows: they are written again.
        for _ in 0..=GAPS_MAX * channels.len() {
            let entries: Vec<usize> =
                (0..channels.len()).map(|channel| self.notes.of(channel).log.len()).collect();
            let mut versions: Vec<i64> = Vec::new();
            for row in &rows {
                versions.push(admin.query_one(&row.insert, &[]).await.unwrap().get(0));
            }
            let awaited: Vec<i64> = channels
                .iter()
                .map(|channel| {
                    let shown = rows.iter().rposition(|row| row.must_be_shown_to(channel));
                    versions[shown.expect("its own row")]
                })
                .collect();
            let has_come = |run: &Self, channel: usize| {
                run.notes.of(channel).log.iter().rev().any(|entry| match entry {
                    Entry::Event(event) => {
                        event.record.is_some_and(|(came, _)| came == awaited[channel])
                    }
                    Entry::Start { .. } | Entry::CaughtUp { .. } | Entry::Gap { .. } => false,
                })
            };
            let all_came = |run: &Self| (0..awaited.len()).all(|channel| has_come(run, channel));
            let gap_came = |run: &Self| {
                let is_gap = |entry: &Entry| matches!(entry, Entry::Gap { .. });
                let since = |channel: usize| run.notes.of(channel).log[entries[channel]..].to_vec();
                run.gaps_are_due
                    && (0..awaited.len()).any(|channel| since(channel).iter().any(is_gap))
            };
            self.wait(ARRIVAL, "every channel current", async |run: &Self| {
                all_came(run) || gap_came(run)
            })
            .await;
            if all_came(self) || !gap_came(self) {
                return;
            }
        }
        self.faults.push("gaps without end".into());
    }

    async fn judge(&mut self) {
        let admin = self.admin().await;
        let mut round = self.reader.round(&admin).await;
        round.gaps_are_due = std::mem::take(&mut self.gaps_are_due);
        let logs: Vec<Vec<Entry>> = (0..self.notes.count())
            .map(|channel| std::mem::take(&mut self.notes.of(channel).log))
            .collect();
        self.judge.judge(&round, &logs);
        self.reader.confirm(&admin, self.judge.members()).await;
        // What the writers know must be what the log says, or the proof proves nothing.
        let mut ledger = self.desk.ledger.lock().unwrap();
        let unknown = ledger.committed.difference(&self.reader.xids).count();
        ledger.committed.clear();
        drop(ledger);
        if unknown > 0 {
            self.faults.push(format!("the oracle's slot misses {unknown} commits"));
        }
        self.faults.extend(self.service.take_faults());
        if !self.listeners.is_empty()
            && let Some(ended) = self.listeners.try_join_next()
        {
            self.faults.push(format!("a client ended: {ended:?}"));
        }
        if let Some(ended) = self.writers.try_join_next() {
            self.faults.push(format!("a writer ended: {ended:?}"));
        }
        if let Some(ended) = self.supervisor.try_join_next() {
            self.faults.push(format!("the supervisor ended: {ended:?}"));
        }
    }

    fn report(&self, rounds: u64, lasted: Duration) {
        let counts = self.judge.counts;
        if !self.is_clean() {
            eprintln!("what happened in the last round, in microseconds since 1970:");
            self.story.iter().for_each(|line| eprintln!("  {line}"));
            for (channel, said) in (0..self.notes.count()).flat_map(|channel| {
                self.notes.of(channel).said.clone().into_iter().map(move |s| (channel, s))
            }) {
                eprintln!("  channel c{channel} was told: {said}");
            }
            self.judge.accounts.iter().for_each(|account| eprintln!("{account}"));
            self.faults.iter().for_each(|fault| eprintln!("fault: {fault}"));
            let kept = std::env::temp_dir().join(format!("walcast-torture-{}.log", self.seed));
            let _ = std::fs::copy(&self.service.log, &kept);
            eprintln!("the service's log is {}; its end:", kept.display());
            eprintln!("{}", service::tail(&self.service.log, 40));
        }
        let joins: (u64, u64) = (0..self.notes.count())
            .map(|channel| {
                let note = self.notes.of(channel);
                (note.joins, note.resumes)
            })
            .fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
        eprintln!(
            "kill points that ended it: {}; joins {}, of them resumed {}; decisions {}, of them \
             open because rights changed meanwhile {} ({:.2} %)",
            self.service.points(),
            joins.0,
            joins.1,
            counts.decisions,
            counts.open,
            counts.open_percent()
        );
        println!(
            "torture: seed {}, {} s, rounds {rounds}, kills {}, crashes {}, commits {}, events {}, \
             lost {}, repeated {}, misordered {}, leaked {}, withheld {}, wrong {}, gaps {}, faults {}",
            self.seed,
            lasted.as_secs(),
            self.service.kills(),
            self.crashes,
            self.desk.ledger.lock().unwrap().commits,
            counts.events,
            counts.lost,
            counts.repeated,
            counts.misordered,
            counts.leaked,
            counts.withheld,
            counts.wrong,
            counts.gaps,
            self.faults.len()
        );
    }

    async fn end(mut self) {
        self.desk.wanted.send_replace(Wanted::End);
        self.listeners.shutdown().await;
        self.garbler.shutdown().await;
        self.service.end();
        while self.supervisor.join_next().await.is_some() {}
        self.writers.shutdown().await;
        // Its keeper stops the server and removes the directory.
        let cluster = self.cluster;
        tokio::task::spawn_blocking(move || drop(cluster)).await.unwrap();
    }
}

/// Where the service listens, each time it is started. On Linux that is a host of the loopback network
/// that nobody else uses: another's connection could take the port while the service is down.
async fn free_address() -> SocketAddr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    for host in [Ipv4Addr::new(127, 77, high, low), Ipv4Addr::LOCALHOST] {
        if let Ok(listener) = tokio::net::TcpListener::bind((host, 0)).await {
            return listener.local_addr().unwrap();
        }
    }
    panic!("nobody can listen on loopback");
}

/// A token of a day.
fn token(claims: &serde_json::Value) -> String {
    let mut claims = claims.clone();
    claims["exp"] = (now_us() / 1_000_000 + 86_400).into();
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&Header::default(), &claims, &key).unwrap()
}
