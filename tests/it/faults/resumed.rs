//! A channel that goes on with a cursor, for tests in which more than one server or process takes part.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::service::{DEADLINE, Socket, Version};

/// A channel about one table, whose rows have an `id` and are only inserted.
pub(super) struct Resumed {
    socket: Socket,
    /// Where it begins, and then the place of the last row.
    pub(super) cursor: String,
    /// The rows that came.
    pub(super) ids: Vec<i64>,
}

impl Resumed {
    /// Joins, and goes on from a cursor if there is one.
    pub(super) async fn join(
        address: SocketAddr,
        token: &str,
        table: &str,
        cursor: Option<&str>,
    ) -> Self {
        let url = format!("ws://{address}/realtime/v1/websocket?apikey={token}&vsn=2.0.0");
        let mut socket = Socket::open(Version::V2, &url, &[]).await.unwrap();
        let mut all = json!({ "event": "INSERT", "schema": "public", "table": table });
        if let Some(cursor) = cursor {
            all["cursor"] = cursor.into();
        }
        let payload = json!({ "config": { "postgres_changes": [all] } });
        let reply = socket.join("realtime:test", &payload).await;
        assert_eq!(reply["status"], "ok", "{reply}");
        let subscribed = socket.expect("system").await;
        assert_eq!(subscribed.payload["message"], "Subscribed to PostgreSQL");
        let begins = reply["response"]["cursor"].as_str().expect("where it begins").to_owned();
        Self { socket, cursor: begins, ids: Vec::new() }
    }

    /// Takes the next row, or the word that comes instead. None at the end of the socket, and its
    /// code.
    async fn next(&mut self) -> Result<Option<Value>, Option<u16>> {
        let next = timeout(DEADLINE, self.socket.try_next()).await.expect("something in time")?;
        match &*next.event {
            "postgres_changes" => {
                let data = &next.payload["data"];
                let cursor = data["cursor"].as_str().expect("a place");
                assert!(*cursor > *self.cursor, "{cursor} after {}", self.cursor);
                cursor.clone_into(&mut self.cursor);
                self.ids.push(data["record"]["id"].as_i64().expect("a row"));
                Ok(None)
            }
            "system" => Ok(Some(next.payload)),
            other => panic!("{other}: {}", next.payload),
        }
    }

    /// Takes rows until this one came.
    pub(super) async fn until(&mut self, id: i64) {
        while self.ids.last().is_none_or(|last| *last < id) {
            let word = self.next().await.expect("the socket goes on");
            assert!(word.is_none_or(|word| word["kind"] == "caught_up"));
        }
    }

    /// The next word; the rows before it are taken.
    pub(super) async fn word(&mut self) -> Value {
        loop {
            if let Some(word) = self.next().await.expect("the socket goes on") {
                return word;
            }
        }
    }

    /// Takes what comes to the end; the code that the socket was closed with, if it was.
    pub(super) async fn end(&mut self) -> Option<u16> {
        loop {
            if let Err(code) = self.next().await {
                return code;
            }
        }
    }
}
