//! The JSON of one declaration → its checked type.
//!
//! In:     what `walcast.room`, `walcast.command` and their like wrote.
//! Out:    a [`Room`], [`Command`], [`Relay`] or [`Presence`].
//! Never:  trust in who wrote it: a row may be written by hand.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::naming::{Invalid, Named, Naming, NamingError};
use super::payload::{Payload, PayloadError};
use super::routine::{Argument, Function, Relation};
use crate::mapping::{KeyCase, event_name_problem};

/// Members of a list that somebody writes by hand.
pub(super) const LIST_MAX: usize = 256;

/// Columns of a table.
const COLUMNS_MAX: usize = 1600;

/// Bytes of a text that goes to clients, or of a member's name.
pub(super) const TEXT_BYTES_MAX: usize = 1000;

/// Bytes of what tells one relayed thing from another.
const KEY_BYTES_MAX: usize = 1024;

/// Why a declaration is not used.
#[derive(Debug, thiserror::Error)]
pub enum DeclarationError {
    /// It is not the JSON of a declaration.
    #[error("it is not the JSON of a declaration")]
    Json(#[from] serde_json::Error),
    /// A topic.
    #[error("its topic")]
    Topic(#[from] NamingError),
    /// A payload.
    #[error("a payload")]
    Payload(#[from] PayloadError),
    /// The name of an event.
    #[error("the event {0:?}: {1}")]
    Event(Box<str>, &'static str),
    /// The name of a function, or what it is given.
    #[error("{0:?} is no function with its schema, given {1}")]
    Function(Box<str>, &'static str),
    /// Anything else, in a sentence.
    #[error("{0}")]
    Other(&'static str),
}

/// Where a client's token may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenPlace {
    /// `auth.token` of the CONNECT packet.
    Auth,
    /// The header `Authorization`.
    Header,
    /// `token` in the query of the handshake.
    Query,
}

/// Rooms of one kind, and how they are joined.
#[derive(Debug, Clone)]
pub struct Room {
    /// Its topic, over the payload of the verbs.
    pub naming: Naming,
    /// The event that joins.
    pub join_event: Option<Box<str>>,
    /// The event that leaves.
    pub leave_event: Option<Box<str>>,
    /// Told to who joined.
    pub joined_event: Option<Box<str>>,
    /// What that says; also the `data` of the acknowledgement.
    pub joined_payload: Option<Payload>,
    /// One of `$users`.
    pub user_payload: Payload,
    /// Told to the others at the first connection of a user.
    pub user_joined: Option<Box<str>>,
    /// What that says.
    pub user_joined_payload: Payload,
    /// Told to the others at the end of his last one.
    pub user_left: Option<Box<str>>,
    /// What that says.
    pub user_left_payload: Payload,
    /// Who joins is told of himself too.
    pub announce_self: bool,
    /// What is known of a user here; none: as in the profile.
    pub member: Option<Function>,
    /// Distinct users.
    pub capacity: Option<u32>,
    /// What who may not enter is told.
    pub denied: Option<Box<str>>,
    /// Called before the policies are asked.
    pub on_join: Option<Function>,
    /// Called when the last connection of a user has left.
    pub on_leave: Option<Function>,
}

impl Room {
    /// The room that a payload names; none when not all of its values are in there.
    ///
    /// # Errors
    /// A value leads nowhere, or does not match its pattern.
    pub fn topic(&self, payload: &Value) -> Result<Option<Named>, Invalid> {
        self.naming.of(payload)
    }

    /// Rooms of any name, without announcements.
    pub(super) fn plain() -> Self {
        Self {
            naming: Naming::any(),
            join_event: Some("join".into()),
            leave_event: Some("leave".into()),
            joined_event: None,
            joined_payload: None,
            user_payload: Payload::user(),
            user_joined: None,
            user_joined_payload: Payload::user(),
            user_left: None,
            user_left_payload: Payload::user(),
            announce_self: false,
            member: None,
            capacity: None,
            denied: None,
            on_join: None,
            on_leave: None,
        }
    }
}

/// An event of a client that writes.
#[derive(Debug, Clone)]
pub struct Command {
    /// The event.
    pub event: Box<str>,
    /// What it does.
    pub run: Run,
    /// Its result goes to the caller as this event too.
    pub reply_event: Option<Box<str>>,
    /// What must be in the payload and not null.
    pub required: Box<[Box<str>]>,
    /// The code where Postgres says something unforeseen.
    pub failed: Box<str>,
    /// The text then.
    pub failed_message: Box<str>,
    /// The text of `PERMISSION_DENIED`; none: the profile's.
    pub denied: Option<Box<str>>,
}

/// What a command does.
#[derive(Debug, Clone)]
pub enum Run {
    /// Calls a function with the payload; whether it was declared to change nothing.
    Function(Function, bool),
    /// Writes one row.
    Table(TableWrite),
}

/// A row that a command writes.
#[derive(Debug, Clone)]
pub struct TableWrite {
    /// Whose.
    pub relation: Relation,
    /// How.
    pub operation: Operation,
    /// What a client may set.
    pub columns: Box<[Box<str>]>,
    /// What finds a row: the primary key.
    pub key: Box<[Box<str>]>,
    /// What there is beside these, and a client may not set.
    pub others: Box<[Box<str>]>,
    /// How names of columns become names in payloads.
    pub key_case: KeyCase,
    /// The column that tells versions apart, and the member of the payload with what the client has seen.
    pub version: Option<(Box<str>, Box<str>)>,
}

/// What is done to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// A new one.
    Insert,
    /// One by its primary key.
    Update,
    /// Likewise.
    Delete,
}

/// An event of a client that is told to a room, and not kept.
#[derive(Debug, Clone)]
pub struct Relay {
    /// The event.
    pub event: Box<str>,
    /// What the room is told.
    pub told: Box<str>,
    /// Which room, over the payload.
    pub naming: Naming,
    /// What it says.
    pub payload: Payload,
    /// Members of the payload that tell one thing from another.
    pub key: Box<[Box<str>]>,
    /// Between two of a connection about one thing; the last one is kept and sent.
    pub min_interval: Option<Duration>,
    /// Without another one it counts as stopped.
    pub expires: Option<Duration>,
    /// The event that stops it.
    pub stop_event: Option<Box<str>>,
    /// A member of the payload of `event` that is false to stop it.
    pub active_member: Option<Box<str>>,
    /// Told when it stopped.
    pub stopped: Option<Box<str>>,
    /// What that says.
    pub stopped_payload: Payload,
    /// Who sent it hears it too.
    pub echo: bool,
    /// It tells who has it active, and each change of that.
    pub gathers_users: bool,
}

impl Relay {
    /// What a payload is about: the same text for the same thing.
    ///
    /// # Errors
    /// It is too much.
    pub fn key(&self, payload: &Value) -> Result<Box<str>, Invalid> {
        let mut text = String::new();
        for member in &self.key {
            text.push_str(&payload.get(&**member).unwrap_or(&Value::Null).to_string());
            text.push('\u{1f}');
            if text.len() > KEY_BYTES_MAX {
                return Err(Invalid::of(member));
            }
        }
        Ok(text.into())
    }
}

/// Who is online, user by user.
#[derive(Debug, Clone)]
pub struct Presence {
    /// Told when somebody comes, or has another status.
    pub online: Option<Box<str>>,
    /// What that says.
    pub online_payload: Payload,
    /// Told when his last connection is gone.
    pub offline: Option<Box<str>>,
    /// What that says.
    pub offline_payload: Payload,
    /// Rooms that hear it; over his id and claims, see [`super::personal`].
    pub topics: Box<[Naming]>,
    /// Which others hear it: called as the user.
    pub topics_function: Option<Function>,
    /// The event that sets the status.
    pub status_event: Option<Box<str>>,
    /// The member of its payload with the status.
    pub status_member: Box<str>,
    /// Those that there are. The first is that of who comes.
    pub statuses: Box<[Box<str>]>,
    /// Called as the user with each status; none: it is only remembered.
    pub write: Option<Function>,
    /// The event that says that somebody still is there.
    pub heartbeat_event: Option<Box<str>>,
    /// Between two writes because of heartbeats.
    pub write_interval: Duration,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRoom {
    join_event: Option<Box<str>>,
    leave_event: Option<Box<str>>,
    joined_event: Option<Box<str>>,
    joined_payload: Option<Value>,
    user_payload: Option<Value>,
    user_joined: Option<Box<str>>,
    user_joined_payload: Option<Value>,
    user_left: Option<Box<str>>,
    user_left_payload: Option<Value>,
    announce_self: Option<bool>,
    member: Option<Box<str>>,
    capacity: Option<u32>,
    denied: Option<Box<str>>,
    pattern: Option<BTreeMap<Box<str>, Box<str>>>,
    on_join: Option<Box<str>>,
    on_leave: Option<Box<str>>,
}

impl Room {
    /// From its JSON.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(template: &str, declaration: &str) -> Result<Self, DeclarationError> {
        let written: WrittenRoom = serde_json::from_str(declaration)?;
        let patterns = written.pattern.unwrap_or_default();
        let patterns = patterns.iter().map(|(name, pattern)| (&**name, &**pattern));
        if written.capacity == Some(0) {
            return Err(DeclarationError::Other("nobody could enter: its capacity is 0"));
        }
        Ok(Self {
            naming: Naming::parse(template, patterns)?,
            join_event: events(written.join_event)?,
            leave_event: events(written.leave_event)?,
            joined_event: events(written.joined_event)?,
            joined_payload: written.joined_payload.as_ref().map(Payload::parse).transpose()?,
            user_payload: payload(written.user_payload.as_ref(), Payload::user)?,
            user_joined: events(written.user_joined)?,
            user_joined_payload: payload(written.user_joined_payload.as_ref(), Payload::user)?,
            user_left: events(written.user_left)?,
            user_left_payload: payload(written.user_left_payload.as_ref(), Payload::user)?,
            announce_self: written.announce_self.unwrap_or(false),
            member: functions(written.member, Argument::Text)?,
            capacity: written.capacity,
            denied: texts(written.denied)?,
            on_join: functions(written.on_join, Argument::Jsonb)?,
            on_leave: functions(written.on_leave, Argument::Jsonb)?,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenCommand {
    function: Option<Box<str>>,
    is_stable: Option<bool>,
    table: Option<Box<str>>,
    operation: Option<Operation>,
    columns: Option<Vec<Box<str>>>,
    key: Option<Vec<Box<str>>>,
    others: Option<Vec<Box<str>>>,
    key_case: Option<KeyCase>,
    version: Option<Box<str>>,
    version_member: Option<Box<str>>,
    reply_event: Option<Box<str>>,
    required: Option<Vec<Box<str>>>,
    failed: Option<Box<str>>,
    failed_message: Option<Box<str>>,
    denied: Option<Box<str>>,
}

impl Command {
    /// From its JSON.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(name: &str, declaration: &str) -> Result<Self, DeclarationError> {
        let written: WrittenCommand = serde_json::from_str(declaration)?;
        let run = match (written.function, written.table) {
            (Some(function), None) => Run::Function(
                function_of(function, Argument::Jsonb)?,
                written.is_stable.unwrap_or(false),
            ),
            (None, Some(table)) => {
                let relation = Relation::parse(&table);
                let key_case = written.key_case.unwrap_or(KeyCase::Camel);
                let version = written.version.map(|column| {
                    let member = written.version_member.unwrap_or_else(|| key_case.apply(&column));
                    (column, member)
                });
                let operation = written
                    .operation
                    .ok_or(DeclarationError::Other("it does not say what is done"))?;
                let key = list(written.key)?;
                if key.is_empty() && operation != Operation::Insert {
                    return Err(DeclarationError::Other("it does not say what finds a row"));
                }
                Run::Table(TableWrite {
                    relation: relation
                        .ok_or(DeclarationError::Other("its table is not one with its schema"))?,
                    operation,
                    columns: list(written.columns)?,
                    key,
                    others: texts_of(written.others)?,
                    key_case,
                    version,
                })
            }
            (Some(_), Some(_)) | (None, None) => {
                return Err(DeclarationError::Other("it has either a function or a table"));
            }
        };
        Ok(Self {
            event: event(name.into())?,
            run,
            reply_event: events(written.reply_event)?,
            required: list(written.required)?,
            failed: texts(written.failed)?.unwrap_or_else(|| "COMMAND_FAILED".into()),
            failed_message: texts(written.failed_message)?
                .unwrap_or_else(|| "The command failed".into()),
            denied: texts(written.denied)?,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRelay {
    told: Box<str>,
    topic: Box<str>,
    payload: Option<Value>,
    key: Option<Vec<Box<str>>>,
    min_interval_ms: Option<u32>,
    expires_ms: Option<u32>,
    stop_event: Option<Box<str>>,
    active_member: Option<Box<str>>,
    stopped: Option<Box<str>>,
    stopped_payload: Option<Value>,
    echo: Option<bool>,
    gather: Option<Gather>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Gather {
    Users,
}

impl Relay {
    /// From its JSON.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(name: &str, declaration: &str) -> Result<Self, DeclarationError> {
        let written: WrittenRelay = serde_json::from_str(declaration)?;
        Ok(Self {
            event: event(name.into())?,
            told: event(written.told)?,
            naming: Naming::parse(&written.topic, [])?,
            payload: payload(written.payload.as_ref(), Payload::sent)?,
            key: list(written.key)?,
            min_interval: milliseconds(written.min_interval_ms),
            expires: milliseconds(written.expires_ms),
            stop_event: events(written.stop_event)?,
            active_member: texts(written.active_member)?,
            stopped: events(written.stopped)?,
            stopped_payload: payload(written.stopped_payload.as_ref(), Payload::user)?,
            echo: written.echo.unwrap_or(false),
            gathers_users: matches!(written.gather, Some(Gather::Users)),
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenPresence {
    online: Option<Box<str>>,
    online_payload: Option<Value>,
    offline: Option<Box<str>>,
    offline_payload: Option<Value>,
    topics: Option<Vec<Box<str>>>,
    topics_function: Option<Box<str>>,
    status_event: Option<Box<str>>,
    status_member: Option<Box<str>>,
    statuses: Option<Vec<Box<str>>>,
    write: Option<Box<str>>,
    heartbeat_event: Option<Box<str>>,
    write_interval_ms: Option<u32>,
}

impl Presence {
    /// From its JSON.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(declaration: &str) -> Result<Self, DeclarationError> {
        let written: WrittenPresence = serde_json::from_str(declaration)?;
        let statuses = match list(written.statuses)? {
            none if none.is_empty() => ["online", "away", "offline"].map(Into::into).into(),
            statuses => statuses,
        };
        Ok(Self {
            online: events(written.online)?,
            online_payload: payload(written.online_payload.as_ref(), Payload::user)?,
            offline: events(written.offline)?,
            offline_payload: payload(written.offline_payload.as_ref(), Payload::user)?,
            topics: topics(written.topics)?,
            topics_function: functions(written.topics_function, Argument::Nothing)?,
            status_event: events(written.status_event)?,
            status_member: texts(written.status_member)?.unwrap_or_else(|| "status".into()),
            statuses,
            write: functions(written.write, Argument::Jsonb)?,
            heartbeat_event: events(written.heartbeat_event)?,
            write_interval: Duration::from_millis(u64::from(
                written.write_interval_ms.unwrap_or(15_000),
            )),
        })
    }
}

pub(super) fn event(name: Box<str>) -> Result<Box<str>, DeclarationError> {
    match event_name_problem(&name) {
        Some(problem) => Err(DeclarationError::Event(name, problem)),
        None => Ok(name),
    }
}

fn events(name: Option<Box<str>>) -> Result<Option<Box<str>>, DeclarationError> {
    name.map(event).transpose()
}

pub(super) fn texts(text: Option<Box<str>>) -> Result<Option<Box<str>>, DeclarationError> {
    match text {
        Some(text) if text.is_empty() || text.len() > TEXT_BYTES_MAX => {
            Err(DeclarationError::Other("a text has 1 to 1000 bytes"))
        }
        text => Ok(text),
    }
}

/// Names of columns, of which a table may have many.
fn texts_of(written: Option<Vec<Box<str>>>) -> Result<Box<[Box<str>]>, DeclarationError> {
    let written = written.unwrap_or_default();
    if written.len() > COLUMNS_MAX {
        return Err(DeclarationError::Other("no table has more than 1600 columns"));
    }
    written.into_iter().map(|text| texts(Some(text)).map(Option::unwrap_or_default)).collect()
}

pub(super) fn list(written: Option<Vec<Box<str>>>) -> Result<Box<[Box<str>]>, DeclarationError> {
    let written = written.unwrap_or_default();
    if written.len() > LIST_MAX {
        return Err(DeclarationError::Other("a list has at most 256 members"));
    }
    written.into_iter().map(|text| texts(Some(text)).map(Option::unwrap_or_default)).collect()
}

/// Rooms of a user's own.
pub(super) fn topics(written: Option<Vec<Box<str>>>) -> Result<Box<[Naming]>, DeclarationError> {
    let written = list(written)?;
    written.iter().map(|template| Ok(Naming::parse(template, [])?)).collect()
}

fn payload(written: Option<&Value>, without: fn() -> Payload) -> Result<Payload, PayloadError> {
    written.map_or_else(|| Ok(without()), Payload::parse)
}

pub(super) fn functions(
    text: Option<Box<str>>,
    argument: Argument,
) -> Result<Option<Function>, DeclarationError> {
    text.map(|text| function_of(text, argument)).transpose()
}

fn function_of(text: Box<str>, argument: Argument) -> Result<Function, DeclarationError> {
    match Function::parse(&text) {
        Some(function) if function.argument == argument => Ok(function),
        Some(_) | None => Err(DeclarationError::Function(
            text,
            match argument {
                Argument::Nothing => "nothing",
                Argument::Text => "text",
                Argument::Jsonb => "jsonb",
            },
        )),
    }
}

fn milliseconds(written: Option<u32>) -> Option<Duration> {
    written.filter(|written| *written > 0).map(|written| Duration::from_millis(written.into()))
}
