//! Other processes, as far as a private server needs them: whom to run it as, which of them
//! belong to a data directory, and ending those.
//!
//! In:     /etc/passwd, /proc.
//! Never:  touches a process that is not a Postgres server in the given data directory.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How often a condition without an event is looked at: the end of a process that is not our child.
const POLL: Duration = Duration::from_millis(20);

/// An account, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Who we are.
pub(super) fn current_uid() -> u32 {
    // `/proc/self` belongs to the effective user; elsewhere a fresh temporary file tells.
    fs::metadata("/proc/self").map_or_else(|_| uid_of_a_new_file(), |metadata| metadata.uid())
}

fn uid_of_a_new_file() -> u32 {
    let path = std::env::temp_dir().join(format!("walcast-uid-{}", rand::random::<u64>()));
    let uid = fs::File::create_new(&path).and_then(|file| file.metadata()).map_or(1, |m| m.uid());
    let _ = fs::remove_file(&path);
    uid
}

/// The account for a server started by root: `postgres`, else `nobody`.
pub(super) fn ordinary_account() -> Option<Account> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    account_in(&passwd, "postgres").or_else(|| account_in(&passwd, "nobody"))
}

fn account_in(passwd: &str, name: &str) -> Option<Account> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut numbers = line.split(':').skip(2);
    let account =
        Account { uid: numbers.next()?.parse().ok()?, gid: numbers.next()?.parse().ok()? };
    (account.uid != 0).then_some(account)
}

/// A command as `account`, deaf to the caller's terminal and to `PG*` variables.
pub(super) fn command(program: &Path, account: Option<Account>) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/").stdin(Stdio::null()).process_group(0).env("LC_ALL", "C");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    if let Some(Account { uid, gid }) = account {
        command.uid(uid).gid(gid);
    }
    command
}

/// The Postgres processes that work in data directory `data`: a postmaster and its children, or
/// children whose postmaster is gone. Empty where there is no `/proc`.
pub(super) fn servers_in(data: &Path) -> Vec<u32> {
    let Ok(data) = fs::canonicalize(data) else { return Vec::new() };
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let link = |name: &str| fs::read_link(entry.path().join(name)).ok();
            // A zombie has neither link, and a shell that stands in the directory is no server.
            let program: PathBuf = link("exe")?;
            let is_server = program.file_name()?.to_str()?.starts_with("postgres");
            (is_server && link("cwd")? == data).then_some(pid)
        })
        .collect()
}

/// Kills the servers in `data` without warning, and returns once they are gone.
pub(super) fn kill_servers_in(data: &Path, deadline: Duration) -> bool {
    wait_until(deadline, || {
        let pids = servers_in(data);
        if !pids.is_empty() {
            let mut kill = Command::new("sh");
            kill.args(["-c", "kill -9 \"$@\" 2>/dev/null", "kill"]);
            kill.args(pids.iter().map(ToString::to_string)).stdin(Stdio::null());
            let _ = kill.status();
        }
        pids.is_empty()
    })
}

/// Looks until `condition` holds; false when it does not within `deadline`.
pub(super) fn wait_until(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if start.elapsed() > deadline {
            return false;
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65533:nobody:/:/bin/false\n\
                          toor:x:0:0::/:/bin/sh\nbroken:x:one:two::/:\n";

    #[test]
    fn an_account_is_found_by_its_exact_name() {
        assert_eq!(account_in(PASSWD, "nobody"), Some(Account { uid: 65534, gid: 65533 }));
        assert_eq!(account_in(PASSWD, "nobod"), None);
        assert_eq!(account_in(PASSWD, "broken"), None);
    }

    #[test]
    fn an_account_that_is_root_by_another_name_is_refused() {
        assert_eq!(account_in(PASSWD, "toor"), None);
    }

    #[test]
    fn a_directory_without_a_server_has_no_processes_to_kill() {
        assert_eq!(servers_in(&std::env::temp_dir()), Vec::<u32>::new());
        assert!(kill_servers_in(&std::env::temp_dir(), Duration::ZERO));
    }
}
