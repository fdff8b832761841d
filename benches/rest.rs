//! Rows over HTTP, against pgbench running the same transactions.
//!
//! In:     `WALCAST_BENCH_SECONDS` of one round (default 3), `WALCAST_BENCH_ROUNDS` (default 3),
//!         `WALCAST_BENCH_CONNECTIONS` (default 10), of clients and of the service's pool alike.
//!         `WALCAST_BENCH_ONLY=read` does only what is called so; `WALCAST_BENCH_HOLD=30` runs that
//!         for so many seconds and measures nothing, for a profiler to look at.
//! Out:    a table of requests a second and of what each costs all processes together; one of
//!         latencies at half load; last, one JSON line of ratios: throughput is ours over
//!         pgbench's, CPU time and latency pgbench's over ours (more is better in all).
//! Needs:  the `PostgreSQL` server binaries and pgbench; starts a cluster of its own.
//!
//! pgbench's transaction is begin, role and claims, the statement, commit, each prepared. Both go
//! through the same policy of the same table, over the same kind of connection. The service
//! is there all the time, so that what it reads of the log weighs on both.

#![allow(clippy::unwrap_used, reason = "a benchmark ends where its expectation does")]

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/it/cluster.rs"]
mod cluster;
mod service;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{self, Command};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use service::{DEADLINE, Service, float, median, number, rounded, token};

/// Who asks, in every claim.
const USER: &str = "7b1a6a0e-6f0c-4a55-9d0f-0c0ffee00001";

const GROUPS: u32 = 200;
const GROUP_ROWS: u32 = 100;

const TABLES: &str = "
    create table notes (
        id bigint generated always as identity primary key,
        map_id int not null,
        user_id uuid not null
            default (current_setting('request.jwt.claims', true)::json ->> 'sub')::uuid,
        body text not null,
        created_at timestamptz not null default now()
    );
    create index on notes (map_id);
    create table inbox (like notes including all);
";

const RIGHTS: &str = "
    alter table notes enable row level security;
    alter table inbox enable row level security;
    create policy own on notes using
        (user_id = (select (current_setting('request.jwt.claims', true)::json ->> 'sub')::uuid));
    create policy own on inbox using
        (user_id = (select (current_setting('request.jwt.claims', true)::json ->> 'sub')::uuid));
    grant all on notes, inbox to authenticated;
";

/// One kind of request.
struct Scenario {
    name: &'static str,
    /// What pgbench runs; `:id` is a number from 1 to `most`.
    statement: &'static str,
    /// The same over HTTP, where the number is `{}`.
    method: &'static str,
    path: &'static str,
    headers: &'static str,
    body: &'static str,
    most: u32,
    /// How the answer begins.
    status: &'static str,
    /// How many rows it has.
    rows: usize,
}

const SCENARIOS: [Scenario; 4] = [
    Scenario {
        name: "insert",
        statement: "insert into inbox (map_id, body) values (:id, 'a note, as long as they are')",
        method: "POST",
        path: "/rest/v1/inbox",
        headers: "content-type: application/json\r\nprefer: return=minimal\r\n",
        body: r#"{"map_id":{},"body":"a note, as long as they are"}"#,
        most: GROUPS,
        status: "HTTP/1.1 201 ",
        rows: 0,
    },
    Scenario {
        name: "read",
        statement: "select * from notes where id = :id",
        method: "GET",
        path: "/rest/v1/notes?select=*&id=eq.{}",
        headers: "",
        body: "",
        most: GROUPS * GROUP_ROWS,
        status: "HTTP/1.1 200 ",
        rows: 1,
    },
    Scenario {
        name: "list",
        statement: "select * from notes where map_id = :id order by id limit 100",
        method: "GET",
        path: "/rest/v1/notes?select=*&map_id=eq.{}&order=id.asc&limit=100",
        headers: "",
        body: "",
        most: GROUPS,
        status: "HTTP/1.1 200 ",
        rows: 100,
    },
    Scenario {
        // The same, where pgbench has it made JSON, too.
        name: "list_json",
        statement: "select json_agg(s)::text from
            (select * from notes where map_id = :id order by id limit 100) as s",
        method: "GET",
        path: "/rest/v1/notes?select=*&map_id=eq.{}&order=id.asc&limit=100",
        headers: "",
        body: "",
        most: GROUPS,
        status: "HTTP/1.1 200 ",
        rows: 100,
    },
];

fn main() {
    // `cargo test --benches` also runs this; it measures only when asked to.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run());
}

async fn run() {
    let database = cluster::Database::create().await;
    let client = database.client().await;
    let connections = number("WALCAST_BENCH_CONNECTIONS", 10);
    let pool = connections.to_string();
    let service = Service::start_with(&database.name, &[("PGRST_DB_POOL", &pool)]);
    client.batch_execute(TABLES).await.unwrap();
    let fill = "insert into notes (map_id, user_id, body)
        select 1 + n / $1, ($2::text)::uuid, 'note ' || n || ', about as long as they are'
        from generate_series(0, $3 - 1) as n";
    let (groups, rows) = (i32::try_from(GROUP_ROWS).unwrap(), GROUPS * GROUP_ROWS);
    client.execute(fill, &[&groups, &USER, &i32::try_from(rows).unwrap()]).await.unwrap();
    client.batch_execute(RIGHTS).await.unwrap();
    client.batch_execute("vacuum analyze").await.unwrap();

    let bench = Bench {
        address: service.address,
        url: cluster::cluster().tcp_url(&database.name),
        connections: usize::try_from(connections).unwrap(),
        claims: format!(r#"{{"role": "authenticated", "sub": "{USER}"}}"#),
        token: token(json!({ "role": "authenticated", "sub": USER })),
    };
    // All of it waits, and nothing else here has to go on meanwhile.
    tokio::task::block_in_place(|| bench.run());
    drop(service);
}

/// What every round needs.
struct Bench {
    address: SocketAddr,
    /// Of the database.
    url: String,
    connections: usize,
    /// For pgbench.
    claims: String,
    /// The same, signed.
    token: String,
}

/// One round.
struct Round {
    /// Transactions a second.
    rate: f64,
    /// CPU seconds a transaction, of all processes together.
    cpu_seconds: f64,
    /// What each took, since it was due.
    times: Vec<Duration>,
}

impl Bench {
    fn run(&self) {
        let only = std::env::var("WALCAST_BENCH_ONLY").ok();
        let is_asked = |it: &&Scenario| only.as_deref().is_none_or(|only| only == it.name);
        let scenarios: Vec<&Scenario> = SCENARIOS.iter().filter(is_asked).collect();
        let hold = number("WALCAST_BENCH_HOLD", 0);
        if hold > 0 {
            for scenario in scenarios {
                let round = self.ours(scenario, Duration::from_secs(hold.into()), None);
                println!("{}: {:.0} a second", scenario.name, round.rate);
            }
            return;
        }
        let rounds = number("WALCAST_BENCH_ROUNDS", 3);
        let time = Duration::from_secs(number("WALCAST_BENCH_SECONDS", 3).into());
        println!(
            "{} connections, {rounds} rounds of {} s (median)\n",
            self.connections,
            time.as_secs()
        );
        println!(
            "{:<10} {:>11} {:>11} {:>6} {:>14} {:>14} {:>6}",
            "", "pgbench/s", "walcast/s", "ratio", "pgbench CPU us", "walcast CPU us", "ratio"
        );
        let mut ratios = serde_json::Map::new();
        let mut halves = Vec::new();
        for scenario in &scenarios {
            // The first of each fills caches.
            self.theirs(scenario, Duration::from_secs(1), None);
            self.ours(scenario, Duration::from_secs(1), None);
            let (mut theirs, mut ours) = (Vec::new(), Vec::new());
            for _ in 0..rounds {
                theirs.push(self.theirs(scenario, time, None));
                ours.push(self.ours(scenario, time, None));
            }
            let [rate, our_rate] =
                [&theirs, &ours].map(|rounds| middle(rounds.iter().map(|round| round.rate)));
            let [cpu, our_cpu] =
                [&theirs, &ours].map(|rounds| middle(rounds.iter().map(|round| round.cpu_seconds)));
            println!(
                "{:<10} {rate:>11.0} {our_rate:>11.0} {:>6.2} {:>14.1} {:>14.1} {:>6.2}",
                scenario.name,
                our_rate / rate,
                cpu * 1e6,
                our_cpu * 1e6,
                cpu / our_cpu,
            );
            ratios.insert(format!("{}_throughput", scenario.name), rounded(our_rate / rate));
            ratios.insert(format!("{}_cpu", scenario.name), rounded(cpu / our_cpu));
            halves.push(our_rate.min(rate) / 2.0);
        }
        println!("\nmilliseconds at half of what the slower one does in a second");
        println!(
            "{:<10} {:>8} {:>12} {:>12} {:>12} {:>12} {:>6}",
            "", "rate", "pgbench p50", "walcast p50", "pgbench p99", "walcast p99", "ratio"
        );
        for (scenario, rate) in scenarios.iter().zip(halves) {
            let (mut theirs, mut ours) = (Vec::new(), Vec::new());
            for _ in 0..rounds {
                theirs.push(self.theirs(scenario, time, Some(rate)));
                ours.push(self.ours(scenario, time, Some(rate)));
            }
            let [half, our_half, most, our_most] =
                [(&theirs, 50), (&ours, 50), (&theirs, 99), (&ours, 99)].map(
                    |(rounds, percent)| {
                        middle(rounds.iter().map(|round| percentile(&round.times, percent)))
                    },
                );
            println!(
                "{:<10} {rate:>8.0} {half:>12.3} {our_half:>12.3} {most:>12.3} {our_most:>12.3} {:>6.2}",
                scenario.name,
                most / our_most,
            );
            ratios.insert(format!("{}_p99", scenario.name), rounded(most / our_most));
        }
        println!("\n{}", json!({ "scenario": "rest", "ratios": ratios }));
    }

    /// A round of pgbench. Only at a given rate does it say what each transaction took.
    fn theirs(&self, scenario: &Scenario, time: Duration, rate: Option<f64>) -> Round {
        let directory = cluster::directory("bench");
        fs::create_dir_all(&directory).unwrap();
        let script = directory.join("script");
        let text = format!(
            "\\set id random(1, {})\nbegin;\nselect set_config('role', 'authenticated', true), \
             set_config('request.jwt.claims', :claims, true);\n{};\ncommit;\n",
            scenario.most, scenario.statement
        );
        fs::write(&script, text).unwrap();
        let mut pgbench = Command::new(cluster::cluster().server.bin().join("pgbench"));
        pgbench.args(["--no-vacuum", "--protocol=prepared", "--jobs=1"]);
        pgbench.arg(format!("--client={}", self.connections));
        pgbench.arg(format!("--time={}", time.as_secs()));
        pgbench.arg(format!("--define=claims={}", self.claims));
        pgbench.arg("--file").arg(&script);
        if let Some(rate) = rate {
            pgbench.args([format!("--rate={rate}"), "--log".into()]);
        }
        pgbench.arg(&self.url).current_dir(&directory);
        let cpu = cpu_seconds();
        let output = pgbench.output().unwrap();
        let cpu = cpu_seconds() - cpu;
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "pgbench: {said}{errors}");
        let number = |name: &str| {
            let line = said.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse::<f64>().unwrap()
        };
        let count = number("number of transactions actually processed:");
        let mut times = Vec::new();
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("pgbench_log"))
            {
                let log = fs::read_to_string(&path).unwrap();
                // The third is its time in microseconds, since it was due.
                let micros = log.lines().map(|line| line.split_whitespace().nth(2).unwrap());
                times.extend(micros.map(|it| Duration::from_micros(it.parse().unwrap())));
            }
        }
        fs::remove_dir_all(&directory).unwrap();
        Round { rate: number("tps ="), cpu_seconds: cpu / count, times }
    }

    /// The same over HTTP: one connection a thread, one request at a time on each.
    fn ours(&self, scenario: &Scenario, time: Duration, rate: Option<f64>) -> Round {
        let connect = || Connection::open(self.address, &self.token, scenario);
        let connections: Vec<Connection> = (0..self.connections).map(|_| connect()).collect();
        let (cpu, start) = (cpu_seconds(), Instant::now());
        let due = Mutex::new(start);
        let end = start + time;
        let next = || match rate {
            None => Instant::now(),
            Some(rate) => {
                // As pgbench has it: whoever is free takes the next one of a Poisson process.
                let unit: f64 = rand::random();
                let wait = Duration::from_secs_f64(-(1.0 - unit).ln() / rate);
                let mine = {
                    let mut due = due.lock().unwrap();
                    *due += wait;
                    *due
                };
                thread::sleep(mine.saturating_duration_since(Instant::now()));
                mine
            }
        };
        let times = thread::scope(|scope| {
            let threads: Vec<_> = connections
                .into_iter()
                .map(|mut connection| {
                    scope.spawn(move || {
                        let mut times = Vec::new();
                        loop {
                            let due = next();
                            if due >= end {
                                return times;
                            }
                            connection.ask(scenario);
                            times.push(due.elapsed());
                        }
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        let count = float(u64::try_from(times.len()).unwrap());
        Round {
            rate: count / start.elapsed().as_secs_f64(),
            cpu_seconds: (cpu_seconds() - cpu) / count,
            times,
        }
    }
}

/// One that is kept alive, with as little work for a request as can be.
struct Connection {
    stream: TcpStream,
    /// The request without its number, in parts.
    line: [String; 2],
    body: Option<[&'static str; 2]>,
    request: Vec<u8>,
    response: Vec<u8>,
}

impl Connection {
    /// Its first answer has what it should have.
    fn open(address: SocketAddr, token: &str, scenario: &Scenario) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let rest = format!(
            " HTTP/1.1\r\nhost: x\r\napikey: {token}\r\nauthorization: Bearer {token}\r\n{}",
            scenario.headers
        );
        let (before, after) = scenario.path.split_once("{}").unwrap_or((scenario.path, ""));
        let body = scenario.body.split_once("{}").map(|(before, after)| [before, after]);
        let line = [format!("{} {before}", scenario.method), format!("{after}{rest}")];
        let (request, response) = (Vec::new(), vec![0; 64 * 1024]);
        let mut connection = Self { stream, line, body, request, response };
        let rows = connection.ask(scenario).matches("\"user_id\":").count();
        assert_eq!(rows, scenario.rows, "rows of {}", scenario.name);
        connection
    }

    /// One request; the body of its answer.
    fn ask(&mut self, scenario: &Scenario) -> &str {
        let Self { stream, line: [before, after], body, request, response } = self;
        let number = rand::random_range(1..=scenario.most);
        request.clear();
        match body {
            None => write!(request, "{before}{number}{after}\r\n").unwrap(),
            Some([start, end]) => {
                let length = start.len() + end.len() + number.to_string().len();
                let head = format!("{before}{after}content-length: {length}\r\n\r\n");
                write!(request, "{head}{start}{number}{end}").unwrap();
            }
        }
        stream.write_all(request).unwrap();
        let mut came = 0;
        let head = loop {
            let read = stream.read(&mut response[came..]).unwrap();
            assert!(read > 0, "the service hung up");
            came += read;
            if let Some(end) = response[..came].windows(4).position(|it| it == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let text = std::str::from_utf8(&response[..head]).unwrap();
        assert!(text.starts_with(scenario.status), "{text}");
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
        let end = head + length.map_or(0, |length| length.parse::<usize>().unwrap());
        if came < end {
            stream.read_exact(&mut response[came..end]).unwrap();
        }
        std::str::from_utf8(&response[head..end]).unwrap()
    }
}

/// CPU time of this process, the server and all they started, so far, in hundredths of a second.
fn cpu_seconds() -> f64 {
    let postmaster = cluster::cluster().server.data().join("postmaster.pid");
    let postmaster = fs::read_to_string(postmaster).unwrap();
    let mut ours = vec![process::id(), postmaster.lines().next().unwrap().parse().unwrap()];
    let mut others: Vec<(u32, u32, f64)> = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let Some(id) = entry.unwrap().file_name().to_str().and_then(|id| id.parse().ok()) else {
            continue;
        };
        // It may have ended meanwhile.
        let Ok(stat) = fs::read_to_string(format!("/proc/{id}/stat")) else { continue };
        // The second field is in parentheses and may hold anything; the fourth is the parent, 14 to
        // 17 are its own time and that of children that have ended.
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let times = fields[11..15].iter().map(|field| field.parse::<f64>().unwrap() / 100.0);
        others.push((id, fields[1].parse().unwrap(), times.sum()));
    }
    let mut sum = 0.0;
    while let Some(one) = ours.pop() {
        others.retain(|(id, parent, time)| {
            if *id == one {
                sum += time;
            } else if *parent == one && !ours.contains(id) {
                ours.push(*id);
            }
            *id != one
        });
    }
    sum
}

fn middle(figures: impl Iterator<Item = f64>) -> f64 {
    median(&mut figures.collect::<Vec<_>>())
}

/// In milliseconds.
fn percentile(times: &[Duration], percent: usize) -> f64 {
    let mut times = times.to_vec();
    times.sort();
    times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3
}
