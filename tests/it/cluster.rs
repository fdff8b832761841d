//! The test run's Postgres: one cluster for all tests of the process, one database for each; and
//! clusters of their own for tests that stop the server or change how it lets people in.
//!
//! A shell holds the cluster: when this process ends in any way, its standard input closes, and it
//! stops the server and removes the directory.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio_postgres::{Client, NoTls};

/// The server of this test run.
pub(crate) struct Cluster {
    /// Where its Unix socket is.
    pub(crate) socket_dir: PathBuf,
    /// Its TCP port on 127.0.0.1, and the number in its socket's name.
    pub(crate) port: u16,
    /// Its data directory.
    pub(crate) data: PathBuf,
    _keeper: Child,
}

/// One test's database. Dropped with the cluster; a slot must be dropped by the test that made it.
pub(crate) struct Database {
    /// Its name, unique in the run.
    pub(crate) name: String,
    /// As the superuser, over the Unix socket.
    pub(crate) url: String,
}

impl Database {
    /// A new, empty database.
    pub(crate) async fn create() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let cluster = cluster();
        let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let admin = connect(&cluster.url("postgres")).await;
        admin.batch_execute(&format!("create database {name}")).await.unwrap();
        let url = cluster.url(&name);
        Self { name, url }
    }

    /// A connection as the superuser.
    pub(crate) async fn client(&self) -> Client {
        connect(&self.url).await
    }
}

impl Cluster {
    /// One more server, with settings of its own. Ends when dropped.
    pub(crate) fn start(name: &str, settings: &[&str]) -> Self {
        start(&format!("-{name}"), settings)
    }

    /// Stops the server as an administrator would. Whether it did within the deadline.
    pub(crate) fn stop_fast(&self, deadline: std::time::Duration) -> bool {
        let mut command = Command::new(server_binaries().join("pg_ctl"));
        if let Some((uid, gid)) = ordinary_user() {
            command.uid(uid).gid(gid);
        }
        command.current_dir("/").args(["-w", "-m", "fast", "-t"]);
        command.arg(deadline.as_secs().to_string()).arg("-D").arg(&self.data).arg("stop");
        command.output().unwrap().status.success()
    }

    /// Puts a file into the data directory, for the server's eyes only.
    pub(crate) fn write(&self, file: &str, content: &[u8]) {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.data.join(file);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        if let Some((uid, gid)) = ordinary_user() {
            std::os::unix::fs::chown(&path, Some(uid), Some(gid)).unwrap();
        }
    }

    /// A URL of the superuser, over the Unix socket.
    pub(crate) fn url(&self, database: &str) -> String {
        let host = self.socket_dir.to_str().unwrap().replace('/', "%2F");
        format!("postgres://postgres@{host}:{}/{database}", self.port)
    }
}

/// A plain connection; its task ends with the client.
pub(crate) async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Starts the server at the first call.
pub(crate) fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| start("", &[]))
}

fn start(suffix: &str, own_settings: &[&str]) -> Cluster {
    let bin = server_binaries();
    let directory = std::env::temp_dir().join(format!("walcast-it-{}{suffix}", std::process::id()));
    let (data, socket_dir) = (directory.join("data"), directory.join("socket"));
    fs::create_dir_all(&socket_dir).unwrap();
    let owner = ordinary_user();
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::chown(&directory, Some(uid), Some(gid)).unwrap();
        std::os::unix::fs::chown(&socket_dir, Some(uid), Some(gid)).unwrap();
    }
    let command = |program: &str| {
        let mut command = Command::new(bin.join(program));
        command.current_dir(&directory).stdin(Stdio::null());
        if let Some((uid, gid)) = owner {
            command.uid(uid).gid(gid);
        }
        command
    };
    let initdb = command("initdb")
        .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-sync"])
        .args(["--locale=C.UTF-8", "-D"])
        .arg(&data)
        .output()
        .unwrap();
    assert!(initdb.status.success(), "initdb: {}", String::from_utf8_lossy(&initdb.stderr));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut settings = vec![
        format!("unix_socket_directories='{}'", socket_dir.display()),
        format!("port={port}"),
        "listen_addresses='127.0.0.1'".into(),
        "wal_level=logical".into(),
        "fsync=off".into(),
        "max_connections=400".into(),
        "max_wal_senders=100".into(),
        "max_replication_slots=100".into(),
        "max_wal_size=8GB".into(),
    ];
    settings.extend(own_settings.iter().map(ToString::to_string));
    fs::write(data.join("postgresql.auto.conf"), settings.join("\n")).unwrap();
    let started = command("pg_ctl")
        .args(["-w", "-D"])
        .arg(&data)
        .arg("-l")
        .arg(data.join("log"))
        .arg("start")
        .output()
        .unwrap();
    assert!(started.status.success(), "pg_ctl start: {}", String::from_utf8_lossy(&started.stderr));
    let mut keeper = Command::new("sh");
    keeper
        .args(["-c", "read -r _; \"$0\" -D \"$1\" -m immediate stop >/dev/null; rm -rf \"$2\""])
        .arg(bin.join("pg_ctl"))
        .args([&data, &directory])
        .stdin(Stdio::piped())
        .process_group(0);
    if let Some((uid, gid)) = owner {
        keeper.uid(uid).gid(gid);
    }
    Cluster { socket_dir, port, data, _keeper: keeper.spawn().unwrap() }
}

/// The newest installed server.
pub(crate) fn server_binaries() -> PathBuf {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    found.sort();
    found.pop().expect("a PostgreSQL server under /usr/lib/postgresql (./scripts/test installs it)")
}

/// As root: the user and group to run the server as, since Postgres refuses root.
fn ordinary_user() -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt as _;
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let id = |user: &str| {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(user))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    id("postgres").or_else(|| id("nobody"))
}
