//! Socket.IO's own server, of the version whose client the tests use.
//!
//! In:     a topic and an event; how many messages its room is told.
//! Out:    a process that is measured as `walcast serve` is.
//! Needs:  `node` and `npm`, and once, to install what `tests/clients` locks, a registry.
//! Never:  anything but loopback, the registry aside.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use super::Process;

/// It runs while this is held.
pub(crate) struct Node {
    child: Child,
    input: ChildStdin,
    /// Its process.
    pub(crate) process: Process,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

impl Node {
    /// Starts it; none where there is no `node`, which is said.
    pub(crate) fn start(topic: &str, event: &str, note_bytes: usize) -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let packages = root.join("tests/clients");
        if !packages.join("node_modules/socket.io/package.json").exists() {
            let arguments = ["ci", "--no-progress", "--loglevel=error"];
            let install = Command::new("npm").args(arguments).current_dir(&packages).status();
            assert!(install.is_ok_and(|status| status.success()), "npm ci in tests/clients failed");
        }
        let started = Command::new("node")
            .arg(root.join("benches/service/room.mjs"))
            .args([topic, event, &note_bytes.to_string()])
            .env("NODE_ENV", "production")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = match started {
            Ok(child) => child,
            Err(error) => {
                println!("no comparison with Socket.IO's own server: node: {error}");
                return None;
            }
        };
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port.trim().parse().unwrap()));
        let input = child.stdin.take().unwrap();
        let process = Process(child.id());
        Some(Self { child, input, process, address })
    }

    /// Has it tell its room so many messages.
    pub(crate) fn publish(&mut self, messages: usize) {
        writeln!(self.input, "{messages}").unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
