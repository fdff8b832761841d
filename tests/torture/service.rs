//! `walcast serve`, started again whenever it ends, with or without a kill point armed.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use walcast::kill::{EXIT_CODE, POINTS, Point, VARIABLE};

/// Signs every token.
pub(crate) const SECRET: &str = "a-secret-of-thirty-two-bytes-or-more";

/// How often it is looked whether the process has ended.
const POLL: Duration = Duration::from_millis(10);

/// Before the next start, when the last one ended by itself.
const PAUSE: Duration = Duration::from_millis(200);

/// Bytes of log above which it is begun anew at the end of a round.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// SIGKILL, as a status has it.
const SIGKILL: i32 = 9;

/// SIGABRT, by which an armed point may end it.
const SIGABRT: i32 = 6;

/// Ends the last process that it was told of when this process ends in whatever way.
const KEEPER: &str = "while read -r pid; do last=$pid; done; kill -KILL \"$last\"";

/// Where a kill point is armed: its name, what it does, at which pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arming {
    pub(crate) point: Point,
    pub(crate) action: &'static str,
    pub(crate) pass: u32,
}

/// The service, whichever process it is at the moment.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    database_url: String,
    pub(crate) log: PathBuf,
    state: Mutex<State>,
    stop: watch::Sender<bool>,
    /// No process is started while this is so.
    held: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    pid: Option<u32>,
    armed: Option<Arming>,
    /// For the next start.
    next: Option<Arming>,
    /// Ended by SIGKILL or by a kill point.
    kills: u64,
    /// Of them by a kill point, by name.
    points: Vec<&'static str>,
    /// Ends that nobody asked for.
    faults: Vec<String>,
    starts: u64,
}

impl Service {
    pub(crate) fn new(address: SocketAddr, database_url: String, log: PathBuf) -> Self {
        let (stop, held) = (watch::Sender::new(false), watch::Sender::new(false));
        Self { address, database_url, log, state: Mutex::default(), stop, held }
    }

    /// Runs one process after the other until [`Self::end`].
    pub(crate) async fn supervise(&self) {
        let mut keeper = Command::new("sh")
            .args(["-c", KEEPER])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let (mut stop, mut held) = (self.stop.subscribe(), self.held.subscribe());
        while !*stop.borrow_and_update() {
            let _ = held.wait_for(|held| !*held).await;
            let (mut child, armed) = self.start();
            writeln!(keeper.stdin.as_mut().expect("piped"), "{}", child.id()).unwrap();
            let status = loop {
                if let Some(status) = child.try_wait().unwrap() {
                    break status;
                }
                tokio::time::sleep(POLL).await;
            };
            self.note(status, armed);
            if !status.success() && status.signal() != Some(SIGKILL) {
                tokio::time::sleep(PAUSE).await;
            }
        }
        // The pid is nobody's any more, or another's.
        writeln!(keeper.stdin.as_mut().expect("piped"), "0").unwrap();
        let _ = keeper.kill();
        let _ = keeper.wait();
    }

    fn start(&self) -> (Child, Option<Arming>) {
        let log = File::options().append(true).create(true).open(&self.log).unwrap();
        let filter = std::env::var("WALCAST_TEST_LOG").unwrap_or_else(|_| "info".into());
        // A long run outlives the next build.
        let built = || env!("CARGO_BIN_EXE_walcast").into();
        let mut command = Command::new(std::env::var_os("WALCAST_BIN").unwrap_or_else(built));
        command
            .arg("serve")
            .env_clear()
            .env("DATABASE_URL", &self.database_url)
            .env("WALCAST_JWT_SECRET", SECRET)
            .env("WALCAST_SLOT", "torture")
            .env("WALCAST_BIND", self.address.to_string())
            .env("WALCAST_LOG", filter)
            // A client may be away for longer than a minute while everything else is down, too. By
            // bytes it is less than the default, so that the slot moves every few rounds.
            .env("WALCAST_REPLICATION_REPLAY_WINDOW_MS", "600000")
            .env("WALCAST_REPLICATION_REPLAY_WINDOW_BYTES", "33554432")
            // A server that is to stop waits for us, and we for its answers.
            .env("WALCAST_REPLICATION_STALL_TIMEOUT_MS", "5000")
            .env("WALCAST_SERVER_JOIN_ERROR_BACKOFF_MS", "0")
            .env("WALCAST_SERVER_CONNECT_ERROR_BACKOFF_MS", "0")
            // As often as clients of sockets ask for one.
            .env("WALCAST_SERVER_STREAM_HEARTBEAT_MS", "1000")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let mut state = self.state.lock().unwrap();
        let armed = state.next.take();
        if let Some(Arming { point, action, pass }) = armed {
            command.env(VARIABLE, format!("{}:{action}:{pass}", point.name()));
        }
        let child = command.spawn().unwrap();
        (state.pid, state.armed) = (Some(child.id()), armed);
        state.starts += 1;
        (child, armed)
    }

    fn note(&self, status: ExitStatus, armed: Option<Arming>) {
        let mut state = self.state.lock().unwrap();
        (state.pid, state.armed) = (None, None);
        match (status.signal(), status.code()) {
            (Some(SIGKILL), _) => state.kills += 1,
            (Some(SIGABRT), _) | (None, Some(EXIT_CODE)) if armed.is_some() => {
                state.kills += 1;
                state.points.push(armed.expect("is some").point.name());
            }
            // A panic of a task ends it with the first, one of the main task with the other.
            (None, Some(1 | 101)) if armed.is_some_and(|armed| armed.action == "panic") => {
                state.kills += 1;
                state.points.push(armed.expect("is some").point.name());
            }
            // Asked to stop; or it found no server at its start, and said so.
            (None, Some(0 | 1)) => {}
            (signal, code) => {
                state.faults.push(format!("it ended with code {code:?}, signal {signal:?}"));
            }
        }
    }

    /// Sends a signal by name; false when there is no process now.
    pub(crate) fn signal(&self, name: &str) -> bool {
        let state = self.state.lock().unwrap();
        // Nobody else reaps it: while it is noted here, the number is its own.
        state.pid.is_some_and(|pid| signal(pid, name))
    }

    /// Ends the process; the next one has this armed.
    pub(crate) fn kill(&self, next: Option<Arming>) {
        self.state.lock().unwrap().next = next;
        self.signal("KILL");
    }

    /// Ends the process, and keeps the next one from starting until [`Self::release`].
    pub(crate) fn hold(&self) {
        self.held.send_replace(true);
        self.signal("CONT");
        self.kill(None);
    }

    /// Lets the next process start.
    pub(crate) fn release(&self) {
        self.held.send_replace(false);
    }

    /// Starts so far.
    pub(crate) fn starts(&self) -> u64 {
        self.state.lock().unwrap().starts
    }

    /// Whether a point is armed that was not passed so far.
    pub(crate) fn is_armed(&self) -> bool {
        let state = self.state.lock().unwrap();
        state.armed.is_some() || state.next.is_some()
    }

    /// Whether clients are served and changes flow.
    pub(crate) async fn is_ready(&self) -> bool {
        self.get("/readyz").await.is_some_and(|answer| answer.starts_with("HTTP/1.1 200 "))
    }

    /// The answer to a request, if it comes soon.
    pub(crate) async fn get(&self, path: &str) -> Option<String> {
        let asked = async {
            let mut stream = TcpStream::connect(self.address).await.ok()?;
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.ok()?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.ok()?;
            String::from_utf8(answer).ok()
        };
        timeout(Duration::from_secs(2), asked).await.ok().flatten()
    }

    /// Its threads: name, state, and ticks that they ran for and in the kernel. Nothing where that
    /// cannot be told.
    pub(crate) fn threads(&self) -> Vec<String> {
        let pid = self.state.lock().unwrap().pid;
        let tasks = pid.and_then(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok());
        let stats = tasks.into_iter().flatten().filter_map(|task| {
            let stat = fs::read_to_string(task.ok()?.path().join("stat")).ok()?;
            let (name, rest) = stat.rsplit_once(')')?;
            let field = |place: usize| rest.split_whitespace().nth(place).unwrap_or_default();
            Some(format!("{name}) {} {} {}", field(0), field(11), field(12)))
        });
        stats.collect()
    }

    pub(crate) fn kills(&self) -> u64 {
        self.state.lock().unwrap().kills
    }

    /// How often each kill point ended it.
    pub(crate) fn points(&self) -> String {
        let state = self.state.lock().unwrap();
        let count = |name: &str| state.points.iter().filter(|point| **point == name).count();
        let points = POINTS.map(Point::name);
        let texts = points.map(|name| format!("{name} {}", count(name)));
        texts.join(", ")
    }

    /// Ends that nobody asked for, and panics in the log that no kill point was; the log is begun
    /// anew when it has become long.
    pub(crate) fn take_faults(&self) -> Vec<String> {
        let mut faults = std::mem::take(&mut self.state.lock().unwrap().faults);
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            let armed = |next: &&str| next.contains("kill point");
            if line.contains("panicked at") && !lines.peek().is_some_and(armed) {
                let what = lines.peek().copied().unwrap_or_default();
                faults.push(format!("it panicked: {line}: {what}"));
            }
        }
        if text.len() > usize::try_from(LOG_BYTES_MAX).unwrap() && faults.is_empty() {
            let _ = File::options().write(true).open(&self.log).and_then(|file| file.set_len(0));
        }
        faults
    }

    /// Ends the process, and no other follows.
    pub(crate) fn end(&self) {
        self.stop.send_replace(true);
        self.release();
        self.signal("CONT");
        self.signal("KILL");
    }
}

/// Sends a signal to a process by its number.
pub(crate) fn signal(pid: u32, name: &str) -> bool {
    let sent = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).output();
    sent.is_ok_and(|output| output.status.success())
}

/// The end of a file, for an account.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
