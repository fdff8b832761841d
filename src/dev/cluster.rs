//! A private Postgres: its own data directory, socket and port, run as an ordinary user.
//!
//! In:     [`Options`]: a directory to keep everything in, and server settings.
//! Out:    [`Cluster`]: connection URLs, and start, stop and kill.
//! Never:  runs a server as root; listens beyond 127.0.0.1; lets another local user in without the
//!         password.
//!
//! Copes with whatever an earlier run left: a server that still runs is taken over, a stale
//! `postmaster.pid` is removed, a half-made data directory is made again.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use rand::Rng as _;
use rand::distr::{Alphanumeric, SampleString as _};
use sha2::{Digest as _, Sha256};

use super::binaries::Binaries;
use super::process::{self, Account};
use super::{Error, io_error};

/// What a part of a URL may contain as it is (RFC 3986, unreserved).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// `sun_path` holds 108 bytes, the last of them zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Below the range the kernel takes for outgoing connections (32768 and up on Linux), so that our
/// port is still free when we start again.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// How long a start may take; replaying WAL after a crash counts.
const START_SECONDS: &str = "300";
/// How long a stop may take before it is repeated without asking the clients.
const STOP_SECONDS: &str = "20";
/// How long processes may need to end after the signal that cannot be refused.
const KILL_DEADLINE: Duration = Duration::from_secs(30);
/// How long a server of an earlier run may take to finish what it is doing.
const SETTLE_DEADLINE: Duration = Duration::from_mins(1);
/// The data directory and the log, in our directory.
const DATA: &str = "postgres";
const LOG: &str = "log/postgres.log";
/// The settings that make the server ours; the file's name inside the data directory.
const SETTINGS_FILE: &str = "walcast.conf";

/// What kind of server is wanted.
#[derive(Debug, Clone)]
pub struct Options {
    /// Holds the data directory, socket, log, lock and secrets. Made when missing.
    pub data_dir: PathBuf,
    /// Directory of the server binaries; none: searched for.
    pub bin: Option<PathBuf>,
    /// Server settings beyond `wal_level = logical`, as in `postgresql.conf`; later ones win.
    pub settings: Vec<(String, String)>,
    /// Whether commits survive a crash of the machine. Tests go without: a crash of the server
    /// alone loses nothing either way.
    pub durable: bool,
}

impl Options {
    /// A durable server in `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self { data_dir: data_dir.into(), bin: None, settings: Vec::new(), durable: true }
    }
}

/// How a server is asked to stop; `pg_ctl`'s words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Ends clients' sessions and shuts down cleanly.
    Fast,
    /// Exits at once; the next start recovers from the WAL.
    Immediate,
}

impl StopMode {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Immediate => "immediate",
        }
    }
}

/// A running private server. Dropping it stops the server.
#[derive(Debug)]
pub struct Cluster {
    binaries: Binaries,
    account: Option<Account>,
    data: PathBuf,
    socket_dir: PathBuf,
    log: PathBuf,
    port: u16,
    password: String,
    directories: Vec<PathBuf>,
    notice: Option<String>,
    leave: bool,
    _lock: Lock,
}

impl Cluster {
    /// Makes the data directory when there is none, and starts the server.
    ///
    /// # Errors
    /// [`Error`]: what the person at the keyboard has to do; nothing keeps running.
    pub fn start(options: &Options) -> Result<Self, Error> {
        let home = private_directory(&options.data_dir)?;
        let lock = lock(&home)?;
        let account = server_account()?;
        let (server_home, notice) = server_home(&home, account)?;
        let data = server_home.join(DATA);
        let binaries = Binaries::find(options.bin.as_deref(), major_of(&data))?;
        let password = secret(&home.join("password"))?;
        let socket_dir = socket_directory(&server_home, account)?;
        directory_of(&server_home.join("log"), account)?;
        let log = server_home.join(LOG);
        let mut directories = vec![home.clone()];
        if server_home != home {
            directories.push(server_home.clone());
        }
        if !socket_dir.starts_with(&server_home) {
            directories.push(socket_dir.clone());
        }
        let mut cluster = Self {
            binaries,
            account,
            data,
            socket_dir,
            log,
            port: 0,
            password,
            directories,
            notice,
            leave: false,
            _lock: lock,
        };
        cluster.initialise(options)?;
        cluster.configure_and_start(options)?;
        Ok(cluster)
    }

    /// As the superuser over the Unix socket, without a password.
    pub fn url(&self, database: &str) -> String {
        use std::os::unix::ffi::OsStrExt as _;
        let host = percent_encode(self.socket_dir.as_os_str().as_bytes(), ESCAPED);
        let database = percent_encode(database.as_bytes(), ESCAPED);
        format!("postgres://postgres@{host}:{}/{database}", self.port)
    }

    /// As the superuser over TCP, with its password: treat it as a secret.
    pub fn tcp_url(&self, database: &str) -> String {
        let database = percent_encode(database.as_bytes(), ESCAPED);
        format!("postgres://postgres:{}@127.0.0.1:{}/{database}", self.password, self.port)
    }

    /// The port on 127.0.0.1, and the number in the socket's name.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where the server's Unix socket is.
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// Where the server's binaries are.
    pub fn bin(&self) -> &Path {
        &self.binaries.bin
    }

    /// The server's own directory (`PGDATA`).
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Every directory this cluster uses: remove them all to leave nothing behind.
    pub fn directories(&self) -> &[PathBuf] {
        &self.directories
    }

    /// Something the user did not ask for and should know, such as another data directory.
    pub fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }

    /// Another program of this installation, ready to run as the server's user.
    pub fn command(&self, program: &str) -> Command {
        process::command(&self.binaries.bin.join(program), self.account)
    }

    /// Starts the server after [`Cluster::stop`] or [`Cluster::kill`], on the same port and data.
    ///
    /// # Errors
    /// [`Error::Command`] with what the server said.
    pub fn start_again(&self) -> Result<(), Error> {
        self.remove_what_a_crash_left()?;
        // `pg_ctl` hands both paths to a shell; relative ones have nothing for it to expand.
        let mut command = self.command("pg_ctl");
        command.current_dir(self.data.parent().expect("the data directory is below ours"));
        command.args(["-w", "-t", START_SECONDS, "-D", DATA, "-l", LOG, "start"]);
        self.run(command).map(drop)
    }

    /// Stops the server; nothing to do when it does not run.
    ///
    /// # Errors
    /// [`Error::Command`] when it still runs.
    pub fn stop(&self, mode: StopMode) -> Result<(), Error> {
        if !self.is_running() {
            return Ok(());
        }
        let mut command = self.command("pg_ctl");
        command.args(["-w", "-t", STOP_SECONDS, "-m", mode.as_str(), "-D"]).arg(&self.data);
        command.arg("stop");
        self.run(command).map(drop)
    }

    /// Ends the postmaster and all its children with SIGKILL, as the kernel does when memory runs
    /// out.
    ///
    /// # Errors
    /// [`Error::Survived`] when some would not end.
    pub fn kill(&self) -> Result<(), Error> {
        if process::kill_servers_in(&self.data, KILL_DEADLINE) {
            Ok(())
        } else {
            Err(Error::Survived { data: self.data.clone() })
        }
    }

    /// Gives up this cluster with its server running, as a killed process does.
    pub fn leave_running(mut self) {
        self.leave = true;
    }

    /// Whether the server lets clients in.
    pub fn is_running(&self) -> bool {
        UnixStream::connect(socket_path(&self.socket_dir, self.port)).is_ok()
    }

    /// `initdb` into a directory of another name, renamed when it is complete, so that a directory
    /// with the right name always holds a whole cluster.
    fn initialise(&self, options: &Options) -> Result<(), Error> {
        if self.data.join("PG_VERSION").exists() {
            return Ok(());
        }
        let unfinished = self.data.with_file_name("postgres.unfinished");
        remove_directory(&unfinished)?;
        remove_directory(&self.data)?;
        directory_of(&unfinished, self.account)?;
        let password_file = self.log.with_file_name("password");
        write_private(&password_file, &self.password, self.account)?;
        // C.UTF-8 knows letters beyond ASCII and is always there with glibc; C is everywhere.
        let made = self.initdb(&unfinished, &password_file, "C.UTF-8", options).or_else(|_| {
            remove_directory(&unfinished)?;
            directory_of(&unfinished, self.account)?;
            self.initdb(&unfinished, &password_file, "C", options)
        });
        fs::remove_file(&password_file).map_err(io_error("remove", &password_file))?;
        made?;
        let main = unfinished.join("postgresql.conf");
        let mut file = File::options().append(true).open(&main).map_err(io_error("open", &main))?;
        writeln!(file, "include '{SETTINGS_FILE}'").map_err(io_error("write", &main))?;
        file.sync_all().map_err(io_error("write", &main))?;
        fs::rename(&unfinished, &self.data).map_err(io_error("rename", &unfinished))
    }

    fn initdb(
        &self,
        data: &Path,
        password_file: &Path,
        locale: &str,
        options: &Options,
    ) -> Result<(), Error> {
        let mut command = self.command("initdb");
        command.args(["--username=postgres", "--encoding=UTF8", "--locale", locale]);
        command.args(["--auth-local=trust", "--auth-host=scram-sha-256", "--pwfile"]);
        command.arg(password_file);
        if !options.durable {
            command.arg("--no-sync");
        }
        command.arg("-D").arg(data);
        self.run(command).map(drop)
    }

    /// Takes over a server that runs with these very settings, else (re)starts it with them.
    fn configure_and_start(&mut self, options: &Options) -> Result<(), Error> {
        let path = self.data.join(SETTINGS_FILE);
        let before = fs::read_to_string(&path).unwrap_or_default();
        if let Some(port) = port_in(&before) {
            self.port = port;
            process::wait_until(SETTLE_DEADLINE, || self.is_settled());
            if self.is_running() {
                if before == self.settings(options) {
                    return Ok(());
                }
                self.stop(StopMode::Fast).or_else(|_| self.stop(StopMode::Immediate))?;
            }
        }
        // The port may be taken between our look and the server's.
        let mut last = None;
        for _ in 0..3 {
            if self.port == 0 || TcpListener::bind(("127.0.0.1", self.port)).is_err() {
                self.port = free_port()?;
            }
            write_private(&path, &self.settings(options), self.account)?;
            match self.start_again() {
                Ok(()) => return Ok(()),
                Err(error) => last = Some(error),
            }
            if TcpListener::bind(("127.0.0.1", self.port)).is_ok() {
                break;
            }
        }
        Err(last.expect("the loop ran"))
    }

    fn settings(&self, options: &Options) -> String {
        let mut settings = vec![
            ("port".to_owned(), self.port.to_string()),
            ("listen_addresses".into(), "127.0.0.1".into()),
            ("unix_socket_directories".into(), list_item(&self.socket_dir.to_string_lossy())),
            ("wal_level".into(), "logical".into()),
            ("password_encryption".into(), "scram-sha-256".into()),
            ("fsync".into(), if options.durable { "on" } else { "off" }.into()),
        ];
        settings.extend(options.settings.iter().cloned());
        let line = |(name, value): &(String, String)| {
            format!("{name} = '{}'\n", value.replace('\'', "''").replace('\\', "\\\\"))
        };
        "# Written by walcast at each start; put your own in postgresql.conf, below the include.\n"
            .to_owned()
            + &settings.iter().map(line).collect::<String>()
    }

    /// After a crash: ends orphaned children, and removes lock files that name a process which is
    /// not this server. Postgres itself would take any process with that number, or a zombie, for
    /// a running server and refuse to start.
    fn remove_what_a_crash_left(&self) -> Result<(), Error> {
        if !Path::new("/proc/self").exists() || self.is_running() {
            return Ok(());
        }
        self.kill()?;
        let mut socket_lock = socket_path(&self.socket_dir, self.port).into_os_string();
        socket_lock.push(".lock");
        for stale in [self.pid_file(), PathBuf::from(socket_lock)] {
            match fs::remove_file(&stale) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("remove", &stale)(error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    fn pid_file(&self) -> PathBuf {
        self.data.join("postmaster.pid")
    }

    /// Whether a server that listens is also through with starting or stopping; its eighth line
    /// says so.
    fn is_settled(&self) -> bool {
        !self.is_running()
            || fs::read_to_string(self.pid_file())
                .is_ok_and(|text| text.lines().nth(7).is_some_and(|line| line.trim() == "ready"))
    }

    fn run(&self, mut command: Command) -> Result<Output, Error> {
        let program = command.get_program().to_owned();
        let output = command.output().map_err(io_error("run", Path::new(&program)))?;
        if output.status.success() {
            return Ok(output);
        }
        let mut said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if program.to_string_lossy().ends_with("pg_ctl") {
            said.push('\n');
            said.push_str(&last_lines(&self.log, 5));
        }
        Err(Error::Command { program: PathBuf::from(program), said })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.leave && self.stop(StopMode::Fast).is_err() {
            let _ = self.stop(StopMode::Immediate);
        }
    }
}

/// As root: the account for the server, since Postgres refuses root.
fn server_account() -> Result<Option<Account>, Error> {
    if process::current_uid() != 0 {
        return Ok(None);
    }
    process::ordinary_account().map(Some).ok_or(Error::NoOrdinaryUser)
}

/// Where the server's own files go: `home`, unless the server's user cannot get there, such as
/// below /root; then a directory in /var/tmp whose name follows from `home`.
fn server_home(home: &Path, account: Option<Account>) -> Result<(PathBuf, Option<String>), Error> {
    let Some(account) = account else { return Ok((home.to_path_buf(), None)) };
    let probe = home.join("log");
    directory_of(&probe, Some(account))?;
    let mut command = process::command(Path::new("/bin/sh"), Some(account));
    command.args(["-c", "cd \"$1\" && test -w .", "sh"]).arg(&probe);
    if command.output().map_err(io_error("run", Path::new("/bin/sh")))?.status.success() {
        return Ok((home.to_path_buf(), None));
    }
    fs::remove_dir(&probe).map_err(io_error("remove", &probe))?;
    let elsewhere = PathBuf::from("/var/tmp").join(short_name(home));
    let made = owned_directory(&elsewhere, 0, 0o755)?;
    let notice = format!(
        "{} cannot be reached by the user that runs Postgres; its files are in {}",
        home.display(),
        made.display()
    );
    Ok((made, Some(notice)))
}

/// The socket's directory: whoever gets in is superuser, so only the server's user does.
fn socket_directory(server_home: &Path, account: Option<Account>) -> Result<PathBuf, Error> {
    let usual = server_home.join("socket");
    let is_short = socket_path(&usual, u16::MAX).as_os_str().len() <= SOCKET_PATH_BYTES_MAX;
    // A settings file is text.
    if is_short && usual.to_str().is_some() {
        return directory_of(&usual, account);
    }
    directory_of(&Path::new("/tmp").join(short_name(server_home)), account)
}

fn socket_path(directory: &Path, port: u16) -> PathBuf {
    directory.join(format!(".s.PGSQL.{port}"))
}

/// One value of a setting that is a list; unquoted, a comma would end it.
fn list_item(value: &str) -> String {
    format!("\"{}\"", value.replace('"', "\"\""))
}

/// The same short name for the same path, another for any other.
fn short_name(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let digest = Sha256::digest(path.as_os_str().as_bytes());
    digest.iter().take(8).fold(String::from("walcast-"), |name, byte| format!("{name}{byte:02x}"))
}

/// `path`, made when missing, absolute. Others may pass through (the server's user must when we are
/// root) but what is secret in it is private by its own mode.
fn private_directory(path: &Path) -> Result<PathBuf, Error> {
    fs::create_dir_all(path).map_err(io_error("make", path))?;
    fs::canonicalize(path).map_err(io_error("find", path))
}

/// `path` with mode 0700, owned by `account`, or by us.
fn directory_of(path: &Path, account: Option<Account>) -> Result<PathBuf, Error> {
    let Some(account) = account else {
        return owned_directory(path, process::current_uid(), 0o700);
    };
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => std::os::unix::fs::chown(path, Some(account.uid), Some(account.gid))
            .map_err(io_error("chown", path))?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(io_error("make", path)(error)),
    }
    owned_directory(path, account.uid, 0o700)
}

/// `path`, made with `mode` when missing. In a directory where anybody may write, somebody else's
/// is not taken.
fn owned_directory(path: &Path, uid: u32, mode: u32) -> Result<PathBuf, Error> {
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(io_error("make", path)(error));
        }
        Ok(()) | Err(_) => {}
    }
    let metadata = fs::symlink_metadata(path).map_err(io_error("look at", path))?;
    if !metadata.is_dir() || metadata.uid() != uid || metadata.mode() & 0o777 & !mode != 0 {
        return Err(Error::NotOurs { path: path.to_path_buf() });
    }
    Ok(path.to_path_buf())
}

fn remove_directory(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", path)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Held as long as we live; the kernel releases it however we end.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough: a process that another thread starts just now has a copy
        // of it, until it becomes what it was started as.
        let _ = self.0.unlock();
    }
}

/// One start at a time for each directory.
fn lock(home: &Path) -> Result<Lock, Error> {
    let path = home.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(io_error("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => Err(Error::Busy { data_dir: home.to_path_buf() }),
        Err(TryLockError::Error(error)) => Err(io_error("lock", &path)(error)),
    }
}

/// The random secret kept in `path`: 40 letters and digits, made when missing.
pub(super) fn secret(path: &Path) -> Result<String, Error> {
    match fs::read_to_string(path) {
        Ok(kept) if kept.len() >= 32 => return Ok(kept),
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("read", path)(error));
        }
        Ok(_) | Err(_) => {}
    }
    let made = Alphanumeric.sample_string(&mut rand::rng(), 40);
    let unfinished = path.with_extension("unfinished");
    write_private(&unfinished, &made, None)?;
    fs::rename(&unfinished, path).map_err(io_error("rename", &unfinished))?;
    Ok(made)
}

fn write_private(path: &Path, text: &str, account: Option<Account>) -> Result<(), Error> {
    let _ = fs::remove_file(path);
    let mut options = File::options();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(io_error("make", path))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(io_error("write", path))?;
    if let Some(Account { uid, gid }) = account {
        std::os::unix::fs::fchown(&file, Some(uid), Some(gid)).map_err(io_error("chown", path))?;
    }
    Ok(())
}

fn major_of(data: &Path) -> Option<u32> {
    fs::read_to_string(data.join("PG_VERSION")).ok()?.trim().parse().ok()
}

fn port_in(settings: &str) -> Option<u16> {
    settings
        .lines()
        .find_map(|line| line.strip_prefix("port = '")?.strip_suffix('\'')?.parse().ok())
}

fn free_port() -> Result<u16, Error> {
    let mut random = rand::rng();
    (0..200)
        .map(|_| random.random_range(PORTS))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .ok_or(Error::NoPort)
}

fn last_lines(path: &Path, count: usize) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_free_when_its_holder_is_gone_though_a_copy_of_the_lock_lives() {
        let home = std::env::temp_dir().join(format!("walcast-lock-{}", std::process::id()));
        fs::create_dir_all(&home).unwrap();
        let first = lock(&home).unwrap();
        let _copy = first.0.try_clone().unwrap();
        assert!(matches!(lock(&home), Err(Error::Busy { .. })));
        drop(first);
        lock(&home).unwrap();
        fs::remove_dir_all(&home).unwrap();
    }

    #[test]
    fn the_port_of_an_earlier_run_is_read_back() {
        assert_eq!(port_in("# x\nport = '20017'\nlisten_addresses = '127.0.0.1'\n"), Some(20_017));
        assert_eq!(port_in("port = '99999'\n"), None);
        assert_eq!(port_in(""), None);
    }

    #[test]
    fn a_secret_is_made_once_kept_and_private() {
        let path = std::env::temp_dir().join(format!("walcast-secret-{}", rand::random::<u64>()));
        let made = secret(&path).unwrap();
        assert_eq!(made.len(), 40);
        assert_eq!(secret(&path).unwrap(), made);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        fs::write(&path, "cut").unwrap();
        assert_ne!(secret(&path).unwrap(), "cut");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_directory_open_to_others_is_not_taken() {
        use std::os::unix::fs::PermissionsExt as _;
        let path = std::env::temp_dir().join(format!("walcast-open-{}", rand::random::<u64>()));
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        let refused = owned_directory(&path, process::current_uid(), 0o700);
        fs::remove_dir(&path).unwrap();
        assert!(matches!(refused, Err(Error::NotOurs { .. })), "{refused:?}");
    }

    #[test]
    fn a_link_is_not_taken_for_a_directory() {
        let path = std::env::temp_dir().join(format!("walcast-link-{}", rand::random::<u64>()));
        std::os::unix::fs::symlink("/tmp", &path).unwrap();
        let refused = owned_directory(&path, process::current_uid(), 0o700);
        fs::remove_file(&path).unwrap();
        assert!(matches!(refused, Err(Error::NotOurs { .. })), "{refused:?}");
    }
}
