//! The test run's Postgres: one cluster for all tests of the process, one database for each.
//!
//! A shell holds the cluster: when this process ends in any way, its standard input closes, and it
//! stops the server and removes the directory.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio_postgres::{Client, NoTls};
use walcast::dev;

/// How long a slot may stay active after its walsender was told to go.
const SLOT_DEADLINE: Duration = Duration::from_secs(10);

/// The server of this test run.
pub(crate) struct Cluster {
    /// Itself: its URLs, its directories.
    pub(crate) server: dev::Cluster,
    _keeper: Child,
}

/// One test's database. When it goes, so do the slots in it; a slot left behind would hold back
/// every other test's WAL.
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
        let admin = connect(&cluster.server.url("postgres")).await;
        admin.batch_execute(&format!("create database {name}")).await.unwrap();
        let url = cluster.server.url(&name);
        Self { name, url }
    }

    /// A connection as the superuser.
    pub(crate) async fn client(&self) -> Client {
        connect(&self.url).await
    }
}

impl Cluster {
    /// One more server, with settings of its own. Ends when dropped.
    pub(crate) fn start(name: &str, settings: &[(&str, &str)]) -> Self {
        let mut options = options(name);
        let own = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        options.settings.extend(own);
        let server = dev::Cluster::start(&options).unwrap();
        let keeper = keep(&server);
        Self { server, _keeper: keeper }
    }

    /// A URL of the superuser, over the Unix socket.
    pub(crate) fn url(&self, database: &str) -> String {
        self.server.url(database)
    }

    /// A URL of the superuser, over TCP, without TLS.
    pub(crate) fn tcp_url(&self, database: &str) -> String {
        self.server.tcp_url(database)
    }

    /// Puts a file into the data directory, for the server's eyes only.
    pub(crate) fn write(&self, file: &str, content: &[u8]) {
        use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
        let path = self.server.data().join(file);
        let owner = std::fs::metadata(self.server.data()).unwrap();
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // A runtime of its own: the test's is the one that drops us.
        let (url, name) = (cluster().server.url("postgres"), self.name.clone());
        let work = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                tokio::time::timeout(SLOT_DEADLINE, drop_slots(&url, &name)).await
            })?;
            std::io::Result::Ok(())
        });
        let done = work.join();
        if !std::thread::panicking() {
            assert!(matches!(done, Ok(Ok(()))), "the slots of {} stay: {done:?}", self.name);
        }
    }
}

/// Ends whoever reads a slot of database `name`, and drops it; a reader may come back in between.
async fn drop_slots(url: &str, name: &str) {
    let admin = connect(url).await;
    let slots = "select slot_name::text, active_pid from pg_replication_slots where database = $1";
    loop {
        let slots = admin.query(slots, &[&name]).await.unwrap();
        if slots.is_empty() {
            return;
        }
        for slot in slots {
            let (slot, reader) = (slot.get::<_, String>(0), slot.get::<_, Option<i32>>(1));
            if let Some(reader) = reader {
                // Waits until that process is gone, at most this long.
                let end = "select pg_terminate_backend($1, 1000)";
                admin.execute(end, &[&reader]).await.unwrap();
            }
            let _ = admin.execute("select pg_drop_replication_slot($1)", &[&slot]).await;
        }
    }
}

/// A plain connection; its task ends with the client.
pub(crate) async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Makes the roles of a file's tests, which are the cluster's and so made once in a run. No lock of
/// Postgres does: an advisory lock is a database's.
pub(crate) async fn roles(made: &OnceCell<()>, sql: &str) {
    let run = async || {
        let admin = connect(&cluster().url("postgres")).await;
        admin.batch_execute(sql).await.unwrap();
    };
    made.get_or_init(run).await;
}

/// `server_version_num`, such as 150018: servers differ, and so does what a test may expect.
pub(crate) async fn version(client: &Client) -> i32 {
    let version = "select current_setting('server_version_num')::int";
    client.query_one(version, &[]).await.unwrap().get(0)
}

/// What a publication may say of a table to leave columns and rows out; nothing before version 15,
/// which cannot.
pub(crate) async fn narrowing<'a>(columns: &'a str, rows: &'a str) -> Option<(&'a str, &'a str)> {
    let client = connect(&cluster().url("postgres")).await;
    (version(&client).await >= 150_000).then_some((columns, rows))
}

/// Starts the server at the first call.
pub(crate) fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::start("all", &[]))
}

/// A directory for one cluster of this run, in a place every user can reach.
pub(crate) fn directory(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("walcast-it-{}-{name}", std::process::id()))
}

/// The server binaries that `scripts/matrix` chose; none: whatever is found.
pub(crate) fn bin() -> Option<PathBuf> {
    std::env::var_os("WALCAST_PG_BIN").filter(|bin| !bin.is_empty()).map(PathBuf::from)
}

/// Settings under which many tests at once do not run out of anything.
pub(crate) fn options(name: &str) -> dev::ClusterOptions {
    let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    dev::ClusterOptions {
        bin: bin(),
        durable: false,
        settings: vec![
            setting("max_connections", "400"),
            setting("max_wal_senders", "100"),
            setting("max_replication_slots", "100"),
            setting("max_wal_size", "8GB"),
        ],
        ..dev::ClusterOptions::new(directory(name))
    }
}

/// Reads its standard input until this process is gone, then stops the server at once and removes
/// the directories. SIGQUIT is an immediate stop; the count bounds the wait where nobody reaps.
const KEEPER: &str = r#"
read -r _
read -r pid <"$0/postmaster.pid" && kill -QUIT "$pid"
left=100
while [ "$left" -gt 0 ] && kill -0 "$pid"; do
    sleep 0.1
    left=$((left - 1))
done
rm -rf "$@"
"#;

/// What ends `server` when this process ends, in whatever way.
pub(crate) fn keep(server: &dev::Cluster) -> Child {
    let mut keeper = Command::new("sh");
    keeper.args(["-c", KEEPER]).arg(server.data()).args(server.directories());
    // It outlives us by what removing takes: nobody who reads what we print is to wait for that.
    keeper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    keeper.process_group(0).spawn().unwrap()
}
