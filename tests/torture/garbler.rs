//! A client whose every four-hundredth byte is damaged on its way: its handshakes, tokens, frames and
//! joins. Nothing that it gets is counted; it is there to trouble the service, and so the others.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{Error, Message};

/// How long it waits for anything.
const PATIENCE: Duration = Duration::from_millis(300);

/// Messages on one connection.
const MESSAGES: u32 = 50;

/// Until its task is ended.
pub(crate) async fn talk(address: SocketAddr, token: String) {
    loop {
        let _ = timeout(PATIENCE * MESSAGES, connection(address, &token)).await;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Between two connections.
const PAUSE: Duration = Duration::from_millis(200);

async fn connection(address: SocketAddr, token: &str) -> Result<(), Error> {
    let url = format!("ws://{address}/realtime/v1/websocket?apikey={token}&vsn=2.0.0");
    let stream = TcpStream::connect(address).await?;
    let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await?;
    for number in 0..MESSAGES {
        let all = json!([{ "event": "*", "schema": "public", "table": "owned", "filter": "bucket=gt.1" }]);
        let config = json!({ "postgres_changes": all, "presence": { "enabled": true } });
        let topic = format!("realtime:garbled-{}", number % 5);
        let said = json!({ "type": "broadcast", "event": "move", "payload": { "x": number } });
        let message = match number % 5 {
            0 | 1 => {
                json!(["1", "1", topic, "phx_join", { "config": config, "access_token": token }])
            }
            2 => json!(["1", "2", topic, "broadcast", said]),
            3 => json!(["1", "3", topic, "access_token", { "access_token": token }]),
            _ => json!([null, "4", "phoenix", "heartbeat", {}]),
        };
        socket.send(Message::text(message.to_string())).await?;
        while let Ok(Some(received)) = timeout(PATIENCE / 30, socket.next()).await {
            received?;
        }
    }
    Ok(())
}
