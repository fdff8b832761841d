//! Clients: each a socket that joins its channels, or an event stream (`stream`), that notes all it
//! gets, and comes back from wherever it was when it is cut off.

use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{SinkExt as _, StreamExt as _};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::judge::{Channel, Cursor, Entry, Event, Kind, Table};
use crate::stream::Stream;
use crate::world::{self, Client, Way};

/// How long a connection or an answer may take before the client tries anew.
pub(crate) const PATIENCE: Duration = Duration::from_secs(6);

/// Between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// What all clients note, by channel.
#[derive(Debug)]
pub(crate) struct Notes(Vec<Mutex<Note>>);

#[derive(Debug, Default)]
pub(crate) struct Note {
    /// What came in this round.
    pub(crate) log: Vec<Entry>,
    /// Where to go on, as the service wrote it.
    pub(crate) cursor: Option<String>,
    /// When the service was last heard on a connection on which the channel is joined.
    pub(crate) heard: Option<Instant>,
    /// Words of the service that are no row changes, the last of them.
    pub(crate) said: Vec<String>,
    /// Connections that joined, of all rounds.
    pub(crate) joins: u64,
    /// Of them those that went on where they were.
    pub(crate) resumes: u64,
}

/// Sentences kept of what the service says.
const SAID_MAX: usize = 20;

impl Note {
    /// The channel is in force, from `cursor` on.
    pub(crate) fn started(&mut self, cursor: Option<&str>) {
        let resumed = self.cursor.is_some();
        self.joins += 1;
        self.resumes += u64::from(resumed);
        self.heard = Some(Instant::now());
        let parsed = cursor.and_then(Cursor::parse);
        self.log.push(Entry::Start { cursor: parsed, resumed, time_us: now_us() });
        if !resumed {
            self.cursor = cursor.map(str::to_owned);
        }
    }

    /// Everything up to there was replayed.
    pub(crate) fn caught_up(&mut self, cursor: &str) {
        self.log.push(Entry::CaughtUp { cursor: Cursor::parse(cursor).expect("a cursor") });
        self.cursor = Some(cursor.to_owned());
    }

    /// Something is missing.
    pub(crate) fn gap(&mut self, said: &Value) {
        let to = said["to"].as_str();
        let reason = said["reason"].to_string();
        self.log.push(Entry::Gap { to: to.and_then(Cursor::parse), reason });
        self.cursor = to.map(str::to_owned);
    }

    /// A row changed.
    pub(crate) fn changed(&mut self, data: &Value) {
        if let Some(cursor) = data["cursor"].as_str() {
            self.cursor = Some(cursor.to_owned());
        }
        self.log.push(Entry::Event(event(data)));
    }

    /// Something that is no row change was said.
    pub(crate) fn say(&mut self, text: String) {
        if self.said.len() == SAID_MAX {
            self.said.remove(0);
        }
        self.said.push(text);
    }
}

impl Notes {
    pub(crate) fn new(channels: usize) -> Self {
        Self((0..channels).map(|_| Mutex::default()).collect())
    }

    pub(crate) fn of(&self, channel: usize) -> std::sync::MutexGuard<'_, Note> {
        self.0[channel].lock().unwrap()
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }
}

/// Microseconds since 1970.
pub(crate) fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_micros()).unwrap()
}

/// Why a connection is over.
pub(crate) struct Over;

impl From<Error> for Over {
    fn from(_: Error) -> Self {
        Self
    }
}

impl From<io::Error> for Over {
    fn from(_: io::Error) -> Self {
        Self
    }
}

impl From<tokio::time::error::Elapsed> for Over {
    fn from(_: tokio::time::error::Elapsed) -> Self {
        Self
    }
}

/// Listens until the task is ended.
pub(crate) async fn listen(
    client: Client,
    channels: &[Channel],
    token: String,
    address: SocketAddr,
    seed: u64,
    notes: &Notes,
) {
    let mut random = StdRng::seed_from_u64(seed);
    loop {
        if let Ok(Ok(stream)) = timeout(PATIENCE, TcpStream::connect(address)).await {
            match client.way {
                Way::Socket { version } => {
                    let url = format!(
                        "ws://{address}/realtime/v1/websocket?apikey={token}&vsn={version}"
                    );
                    let opened = tokio_tungstenite::client_async(url, stream);
                    if let Ok(Ok((stream, _))) = timeout(PATIENCE, opened).await {
                        let mut connection = Connection {
                            client: &client,
                            is_first_version: version == "1.0.0",
                            channels,
                            notes,
                            stream,
                            next: 1,
                        };
                        let Err(Over) = connection.run(&mut random).await;
                    }
                }
                Way::Stream { cursor } => {
                    let channel = client.channels[0];
                    let (asks, note) = (&channels[channel].asks, || notes.of(channel));
                    let Err(Over) = Stream::new(stream).run(asks, &token, cursor, note).await;
                }
            }
        }
        for &channel in &client.channels {
            notes.of(channel).heard = None;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(20..400))).await;
    }
}

struct Connection<'a> {
    client: &'a Client,
    is_first_version: bool,
    channels: &'a [Channel],
    notes: &'a Notes,
    stream: WebSocketStream<TcpStream>,
    next: u64,
}

/// One message of the service.
struct Received {
    reference: Option<String>,
    topic: String,
    event: String,
    payload: Value,
}

impl Connection<'_> {
    async fn run(&mut self, random: &mut StdRng) -> Result<std::convert::Infallible, Over> {
        // By channel: the reference of a join without an answer so far.
        let mut asked: Vec<(usize, String)> = Vec::new();
        for &channel in &self.client.channels {
            asked.push((channel, self.join(channel).await?));
        }
        let began = Instant::now();
        let mut heard = began;
        let mut ticks = tokio::time::interval(HEARTBEAT);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let message = tokio::select! {
                message = self.stream.next() => message.ok_or(Over)??,
                _ = ticks.tick() => {
                    let joins_late = !asked.is_empty() && began.elapsed() > PATIENCE;
                    if heard.elapsed() > PATIENCE || joins_late {
                        return Err(Over);
                    }
                    self.send(None, "phoenix", "heartbeat", &json!({})).await?;
                    continue;
                }
            };
            heard = Instant::now();
            let received = match message {
                Message::Text(text) => self.read(&text),
                Message::Close(_) => return Err(Over),
                Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {
                    continue;
                }
            };
            let joined = |channel: &usize| !asked.iter().any(|(waiting, _)| waiting == channel);
            for channel in self.client.channels.iter().filter(|channel| joined(channel)) {
                self.notes.of(*channel).heard = Some(heard);
            }
            let of_topic = self.client.channels.iter().find(|channel| {
                received.topic.strip_prefix("realtime:") == Some(&*self.channels[**channel].name)
            });
            let Some(&channel) = of_topic else { continue };
            match &*received.event {
                "phx_reply" => {
                    let Some(place) = asked
                        .iter()
                        .position(|(_, reference)| received.reference.as_ref() == Some(reference))
                    else {
                        continue;
                    };
                    asked.remove(place);
                    if received.payload["status"] == "ok" {
                        let cursor = received.payload["response"]["cursor"].as_str();
                        self.notes.of(channel).started(cursor);
                    } else {
                        self.notes.of(channel).say(received.payload.to_string());
                        let pause = Duration::from_millis(random.random_range(50..300));
                        tokio::time::sleep(pause).await;
                        asked.push((channel, self.join(channel).await?));
                    }
                }
                "postgres_changes" => {
                    self.notes.of(channel).changed(&received.payload["data"]);
                }
                "system" => self.told(channel, &received.payload)?,
                "phx_close" | "phx_error" => return Err(Over),
                _ => {}
            }
        }
    }

    /// Asks to join, and to go on where the channel was; the reference of the answer.
    async fn join(&mut self, channel: usize) -> Result<String, Over> {
        let cursor = self.notes.of(channel).cursor.clone();
        let asks = self.channels[channel].asks.iter().map(|(table, filter)| {
            let mut ask = json!({ "event": "*", "schema": "public", "table": table.name() });
            if let Some(filter) = filter.text() {
                ask["filter"] = filter.into();
            }
            if let Some(cursor) = &cursor {
                ask["cursor"] = cursor.clone().into();
            }
            ask
        });
        let asks: Vec<Value> = asks.collect();
        let topic = format!("realtime:{}", self.channels[channel].name);
        let payload = json!({ "config": { "postgres_changes": asks } });
        let reference = self.next.to_string();
        self.send(Some(&reference), &topic, "phx_join", &payload).await?;
        Ok(reference)
    }

    async fn send(
        &mut self,
        join_ref: Option<&str>,
        topic: &str,
        event: &str,
        payload: &Value,
    ) -> Result<(), Over> {
        let reference = self.next.to_string();
        self.next += 1;
        let frame = if self.is_first_version {
            json!({
                "topic": topic, "event": event, "payload": payload, "ref": reference,
                "join_ref": join_ref,
            })
        } else {
            json!([join_ref, reference, topic, event, payload])
        };
        Ok(timeout(PATIENCE, self.stream.send(Message::text(frame.to_string()))).await??)
    }

    fn read(&self, text: &str) -> Received {
        let mut value: Value = serde_json::from_str(text).expect("JSON");
        let string = |value: &Value| value.as_str().map(str::to_owned);
        if self.is_first_version {
            Received {
                reference: string(&value["ref"]),
                topic: string(&value["topic"]).unwrap_or_default(),
                event: string(&value["event"]).unwrap_or_default(),
                payload: value["payload"].take(),
            }
        } else {
            Received {
                reference: string(&value[1]),
                topic: string(&value[2]).unwrap_or_default(),
                event: string(&value[3]).unwrap_or_default(),
                payload: value[4].take(),
            }
        }
    }

    fn told(&self, channel: usize, payload: &Value) -> Result<(), Over> {
        let mut note = self.notes.of(channel);
        match payload["kind"].as_str() {
            Some("caught_up") => {
                if let Some(cursor) = payload["cursor"].as_str() {
                    note.caught_up(cursor);
                }
                Ok(())
            }
            Some("gap") => {
                note.gap(payload);
                Ok(())
            }
            _ if payload["status"] == "ok" => Ok(()),
            _ => {
                note.say(payload.to_string());
                // Whatever it was, the subscription may not be what it was.
                Err(Over)
            }
        }
    }
}

fn event(data: &Value) -> Event {
    let table = data["table"].as_str().and_then(Table::of).expect("a table of ours");
    let kind = match data["type"].as_str() {
        Some("INSERT") => Kind::Insert,
        Some("UPDATE") => Kind::Update,
        Some("DELETE") => Kind::Delete,
        other => panic!("{other:?} in {data}"),
    };
    let whole = |row: &Value| {
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                value.to_string()
            }
        };
        let group = match table {
            Table::Open => String::new(),
            Table::Owned => text(&row["owner"]),
            Table::Team => text(&row["team"]),
        };
        let (id, bucket) = (row["id"].as_i64()?, row["bucket"].as_i64()?);
        let hash = world::hash(id, bucket, &group, &text(&row["body"]));
        Some((row["version"].as_i64()?, hash))
    };
    let row = if kind == Kind::Delete { &data["old_record"] } else { &data["record"] };
    Event {
        time_us: now_us(),
        cursor: data["cursor"].as_str().map(|text| Cursor::parse(text).expect("a cursor")),
        table,
        kind,
        id: row["id"].as_i64().unwrap_or(-1),
        record: if kind == Kind::Delete { None } else { Some(whole(row).unwrap_or((-1, 0))) },
        old_record: whole(&data["old_record"]),
    }
}
