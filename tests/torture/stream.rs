//! A client of an event stream (SSE): what `EventSource` does, in a few lines.
//!
//! In:     a connection, what to ask for, the place of the last event.
//! Out:    what came, in the notes of its channel.
//! Never:  a block taken before its end came; a place taken that no event brought.

use std::fmt::Write as _;
use std::sync::MutexGuard;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::judge::{Filter, Table};
use crate::listener::{Note, Over, PATIENCE};
use crate::world::Shown;

/// A request and what has come of its answer.
pub(crate) struct Stream {
    socket: TcpStream,
    /// What was read and not yet taken.
    read: Vec<u8>,
}

/// One event.
#[derive(Debug, Default)]
struct Block {
    name: String,
    id: Option<String>,
    data: String,
}

impl Stream {
    pub(crate) fn new(socket: TcpStream) -> Self {
        Self { socket, read: Vec::new() }
    }

    /// Asks, and notes what comes, to the end.
    pub(crate) async fn run<'a>(
        mut self,
        asks: &[(Table, Filter)],
        token: &str,
        shown: Shown,
        note: impl Fn() -> MutexGuard<'a, Note>,
    ) -> Result<std::convert::Infallible, Over> {
        let request = request(asks, token, shown, note().cursor.as_deref());
        timeout(PATIENCE, self.socket.write_all(request.as_bytes())).await??;
        let head = self.until(b"\r\n\r\n").await?;
        let head = String::from_utf8(head).expect("a head is text");
        if !head.starts_with("HTTP/1.1 200 ") {
            note().say(head);
            return Err(Over);
        }
        let mut is_ready = false;
        loop {
            let block = self.until(b"\n\n").await?;
            let block = Block::parse(std::str::from_utf8(&block).expect("a stream is text"));
            let mut note = note();
            if is_ready {
                note.heard = Some(Instant::now());
            }
            let data = || serde_json::from_str::<Value>(&block.data).expect("JSON");
            match &*block.name {
                // A comment, or how long to wait.
                "" => {}
                "ready" => {
                    note.started(block.id.as_deref());
                    is_ready = true;
                }
                "INSERT" | "UPDATE" | "DELETE" => {
                    let data = data();
                    assert_eq!(data["type"], block.name, "an event has the name of what happened");
                    assert_eq!(data["cursor"].as_str(), block.id.as_deref(), "its id is its place");
                    note.changed(&data);
                }
                "caught_up" => note.caught_up(&block.id.expect("a place")),
                "gap" => note.gap(&data()),
                // A notice, or the end: whatever it was, the subscriptions may not be what they were.
                name => {
                    note.say(format!("{name} {}", block.data));
                    return Err(Over);
                }
            }
        }
    }

    /// Everything up to the next such mark, and the mark.
    async fn until(&mut self, mark: &[u8]) -> Result<Vec<u8>, Over> {
        let mut seen = 0;
        loop {
            let from = usize::saturating_sub(seen, mark.len());
            let place = self.read[from..].windows(mark.len()).position(|bytes| bytes == mark);
            if let Some(place) = place {
                return Ok(self.read.drain(..from + place + mark.len()).collect());
            }
            seen = self.read.len();
            self.read.reserve(16 * 1024);
            if timeout(PATIENCE, self.socket.read_buf(&mut self.read)).await?? == 0 {
                return Err(Over);
            }
        }
    }
}

fn request(asks: &[(Table, Filter)], token: &str, shown: Shown, cursor: Option<&str>) -> String {
    let changes = asks.iter().map(|(table, filter)| match filter.text() {
        Some(filter) => format!("{}:{filter}", table.name()),
        None => table.name().to_owned(),
    });
    let changes: Vec<String> = changes.collect();
    let mut request = format!("GET /events?changes={}", changes.join(","));
    if let (Shown::InQuery, Some(cursor)) = (shown, cursor) {
        write!(request, "&cursor={cursor}").unwrap();
    }
    request += " HTTP/1.1\r\nhost: torture\r\naccept: text/event-stream\r\n";
    write!(request, "authorization: Bearer {token}\r\n").unwrap();
    if let (Shown::InHeader, Some(cursor)) = (shown, cursor) {
        write!(request, "last-event-id: {cursor}\r\n").unwrap();
    }
    request + "\r\n"
}

impl Block {
    fn parse(text: &str) -> Self {
        let mut block = Self::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let (field, value) = line.split_once(':').expect("a field or a comment");
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => value.clone_into(&mut block.name),
                "id" => block.id = Some(value.to_owned()),
                "data" => {
                    assert!(block.data.is_empty(), "JSON here is one line");
                    value.clone_into(&mut block.data);
                }
                "" | "retry" => {}
                _ => panic!("no field of ours: {line:?}"),
            }
        }
        block
    }
}
