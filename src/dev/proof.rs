//! A subscriber of our own: joins, waits, and returns the first change, so that `walcast dev` shows
//! one arriving before anything else is installed.
//!
//! In:     the address of a server that is starting, and a token.
//! Out:    the event as it came over the socket.
//! Never:  used outside `walcast dev`; applications bring their own client.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::{self, Message};

use super::Error;

/// A server that starts has no event for us to wait on; we knock.
const KNOCK: Duration = Duration::from_millis(50);
/// Channel we join: `realtime:` and a name of our own.
const TOPIC: &str = "realtime:walcast-dev";

/// Joins as the user of `token`, lets `write` commit a change to `public.todos` once the server
/// says it is subscribed, and returns the payload of the first row change that arrives.
///
/// Tries again until the change is written: a server that starts may refuse at first.
///
/// # Errors
/// Why it did not arrive within `deadline`.
pub(super) async fn first_change<W>(
    server: SocketAddr,
    token: &str,
    write: W,
    deadline: Duration,
) -> Result<Value, Error>
where
    W: Future<Output = Result<(), Error>>,
{
    let end = Instant::now() + deadline;
    let mut write = Some(write);
    let mut last = Error::Proof("the server does not answer".into());
    loop {
        match tokio::time::timeout_at(end, listen(server, token, &mut write)).await {
            Ok(Ok(payload)) => return Ok(payload),
            Ok(Err(error)) if write.is_none() => return Err(error),
            Ok(Err(error)) => last = error,
            Err(_) if write.is_none() => {
                return Err(Error::Proof(format!("none within {} s", deadline.as_secs())));
            }
            Err(_) => return Err(last),
        }
        tokio::time::sleep(KNOCK).await;
    }
}

async fn listen<W>(server: SocketAddr, token: &str, write: &mut Option<W>) -> Result<Value, Error>
where
    W: Future<Output = Result<(), Error>>,
{
    let stream = TcpStream::connect(server).await.map_err(|error| lost(&error.into()))?;
    let url = format!("ws://{server}/realtime/v1/websocket?apikey={token}&vsn=2.0.0");
    let (mut socket, _) =
        tokio_tungstenite::client_async(url, stream).await.map_err(|error| lost(&error))?;
    let join = json!(["1", "1", TOPIC, "phx_join", {
        "config": {
            "broadcast": { "ack": false, "self": false },
            "presence": { "key": "", "enabled": false },
            "postgres_changes": [{ "event": "*", "schema": "public", "table": "todos" }],
            "private": false,
        },
        "access_token": token,
    }]);
    socket.send(Message::text(join.to_string())).await.map_err(|error| lost(&error))?;
    while let Some(message) = socket.next().await {
        let Message::Text(text) = message.map_err(|error| lost(&error))? else { continue };
        match heard(&text) {
            Heard::Subscribed => {
                if let Some(write) = write.take() {
                    write.await?;
                }
            }
            Heard::Change(payload) => {
                // Said goodbye or not: the server copes with either.
                let _ = socket.close(None).await;
                return Ok(payload);
            }
            Heard::Refused(reason) => return Err(Error::Proof(reason)),
            Heard::Other => {}
        }
    }
    Err(Error::Proof("the server closed the socket".into()))
}

#[derive(Debug, PartialEq)]
enum Heard {
    Subscribed,
    Change(Value),
    Refused(String),
    Other,
}

/// One text frame, `[join_ref, ref, topic, event, payload]`.
fn heard(text: &str) -> Heard {
    let Ok(Value::Array(parts)) = serde_json::from_str::<Value>(text) else { return Heard::Other };
    let [_, _, topic, event, payload] = parts.as_slice() else { return Heard::Other };
    if topic != TOPIC {
        return Heard::Other;
    }
    let status = payload.get("status").and_then(Value::as_str);
    match (event.as_str(), status) {
        (Some("postgres_changes"), _) => Heard::Change(payload.clone()),
        (Some("system"), Some("ok")) if payload["extension"] == "postgres_changes" => {
            Heard::Subscribed
        }
        (Some("system" | "phx_reply"), Some("error")) => {
            let reason = payload.get("message").or_else(|| payload["response"].get("reason"));
            Heard::Refused(reason.and_then(Value::as_str).unwrap_or("no reason given").to_owned())
        }
        _ => Heard::Other,
    }
}

fn lost(error: &tungstenite::Error) -> Error {
    Error::Proof(format!("the WebSocket failed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(frame: &str, expected: &Heard) {
        assert_eq!(&heard(frame), expected, "{frame}");
    }

    #[test]
    fn frames_of_a_join_are_told_apart() {
        check(
            r#"["1","1","realtime:walcast-dev","phx_reply",{"status":"ok","response":{}}]"#,
            &Heard::Other,
        );
        check(
            r#"[null,null,"realtime:walcast-dev","system",{"extension":"postgres_changes","status":"ok"}]"#,
            &Heard::Subscribed,
        );
        check(
            r#"[null,null,"realtime:walcast-dev","postgres_changes",{"ids":[1]}]"#,
            &Heard::Change(json!({ "ids": [1] })),
        );
        check(
            r#"["1","1","realtime:walcast-dev","phx_reply",{"status":"error","response":{"reason":"no"}}]"#,
            &Heard::Refused("no".into()),
        );
        check(
            r#"[null,null,"realtime:walcast-dev","system",{"extension":"postgres_changes","status":"error","message":"no table"}]"#,
            &Heard::Refused("no table".into()),
        );
    }

    #[test]
    fn a_frame_of_another_shape_is_passed_over() {
        for frame in
            ["", "{", "[]", "[1,2]", "{}", r#"["1","1","realtime:other","postgres_changes",{}]"#]
        {
            check(frame, &Heard::Other);
        }
    }
}
