//! The payload of a join: what a client asks of its channel.
//!
//! In:     JSON from a client.
//! Out:    options with their defaults, or the reason it is refused.
//! Never:  a default in place of a value of the wrong type: a mistyped `private` must not make a
//!         public channel.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{ChannelId, RawRef};
use crate::auth::Claims;
use crate::topic::Topic;

/// Bytes of all subscriptions of one join, as text. A hundred long filters fit.
const SUBSCRIPTIONS_BYTES_MAX: usize = 256 * 1024;

/// Bytes of the presence key and of the replay options, as text.
const OPTION_BYTES_MAX: usize = 4096;

/// How long a join may ask to be held until its subscriptions are in place.
const WAIT_DEFAULT: Duration = Duration::from_secs(15);
const WAIT_MAX: Duration = Duration::from_secs(20);

/// A join that the session let through: register it, then answer with [`super::Input::Joined`].
#[derive(Debug, Clone)]
pub struct JoinRequest {
    /// Names this join in everything that follows; never used twice in a session.
    pub channel: ChannelId,
    /// What is joined.
    pub topic: Topic,
    /// The client's name for this join. Fan-out frames do without it.
    pub join_ref: Option<RawRef>,
    /// Who joins.
    pub claims: Arc<Claims>,
    /// The subscriptions, each a JSON object as the client wrote it, in its order.
    pub postgres_changes: Arc<[Box<RawValue>]>,
    /// The payload had no `config`: the topic itself is the subscription, and its events are bare.
    pub legacy: bool,
    /// Whether policies decide who may join.
    pub private: bool,
    /// Options of broadcasts.
    pub broadcast: BroadcastOptions,
    /// Options of presence.
    pub presence: PresenceOptions,
    /// How long the reply may be held until the subscriptions are in place; none: as long as the
    /// server thinks right.
    pub wait: Option<Duration>,
}

/// `config.broadcast`.
#[derive(Debug, Clone, Default)]
pub struct BroadcastOptions {
    /// `ack`: each broadcast is answered.
    pub acknowledge: bool,
    /// `self`: the sender hears itself.
    pub echo: bool,
    /// `replay`: a JSON object, unchecked.
    pub replay: Option<Box<RawValue>>,
    /// `cursor`: how far the client has come, as it says.
    pub cursor: Option<Box<str>>,
    /// `replication_ready`: say when broadcasts from the database flow.
    pub announce_replication: bool,
}

/// `config.presence`.
#[derive(Debug, Clone, Default)]
pub struct PresenceOptions {
    /// `enabled`: the client wants state and diffs. Clients older than this option (of before July
    /// 2025) send only a key, whether they listen or not, and are told as they always were.
    pub enabled: bool,
    /// `key`: any JSON value but null, unchecked.
    pub key: Option<Box<RawValue>>,
}

/// What a payload said, before anything is decided about it.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    pub(super) access_token: Option<String>,
    pub(super) user_token: Option<String>,
    pub(super) postgres_changes: Vec<Box<RawValue>>,
    pub(super) legacy: bool,
    pub(super) private: bool,
    pub(super) broadcast: BroadcastOptions,
    pub(super) presence: PresenceOptions,
    pub(super) wait: Option<Duration>,
}

#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow)]
    config: Option<&'a RawValue>,
    #[serde(borrow)]
    access_token: Option<&'a RawValue>,
    #[serde(borrow)]
    user_token: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
struct Config<'a> {
    #[serde(borrow)]
    broadcast: Option<&'a RawValue>,
    #[serde(borrow)]
    presence: Option<&'a RawValue>,
    #[serde(borrow)]
    postgres_changes: Option<&'a RawValue>,
    #[serde(borrow)]
    postgres_changes_options: Option<&'a RawValue>,
    #[serde(borrow)]
    private: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
struct Broadcast<'a> {
    #[serde(borrow)]
    ack: Option<&'a RawValue>,
    #[serde(borrow, rename = "self")]
    echo: Option<&'a RawValue>,
    #[serde(borrow)]
    replay: Option<&'a RawValue>,
    #[serde(borrow)]
    cursor: Option<&'a RawValue>,
    #[serde(borrow)]
    replication_ready: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
struct Presence<'a> {
    #[serde(borrow)]
    enabled: Option<&'a RawValue>,
    #[serde(borrow)]
    key: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
struct ChangesOptions<'a> {
    #[serde(borrow)]
    wait: Option<&'a RawValue>,
    #[serde(borrow)]
    timeout: Option<&'a RawValue>,
}

type Field<'a> = Option<&'a RawValue>;

/// An object's members; nothing for null or a missing one. A member named twice is refused, since
/// readers differ on which one counts.
fn object<'a, T: Deserialize<'a>>(raw: &'a RawValue, name: &str) -> Result<T, String> {
    if !raw.get().starts_with('{') {
        return Err(format!("{name} is not an object"));
    }
    serde_json::from_str(raw.get()).map_err(|_| format!("{name} names a member twice"))
}

fn optional<'a, T: Deserialize<'a> + Default>(field: Field<'a>, name: &str) -> Result<T, String> {
    field.map_or_else(|| Ok(T::default()), |raw| object(raw, name))
}

/// True, false, or either as text in any letter case; false when missing.
fn boolean(field: Field<'_>, name: &str) -> Result<bool, String> {
    let Some(raw) = field else { return Ok(false) };
    match raw.get() {
        "true" => Ok(true),
        "false" => Ok(false),
        text if text.eq_ignore_ascii_case(r#""true""#) => Ok(true),
        text if text.eq_ignore_ascii_case(r#""false""#) => Ok(false),
        _ => Err(format!("{name} is not a boolean")),
    }
}

fn bounded(field: Field<'_>, name: &str) -> Result<Option<Box<RawValue>>, String> {
    match field {
        Some(raw) if raw.get().len() > OPTION_BYTES_MAX => {
            Err(format!("{name} has more than {OPTION_BYTES_MAX} bytes"))
        }
        field => Ok(field.map(ToOwned::to_owned)),
    }
}

/// A string; anything else counts as not given, as clients send null or worse.
fn text(field: Field<'_>) -> Option<String> {
    field.and_then(|raw| serde_json::from_str(raw.get()).ok())
}

fn wait(options: &ChangesOptions<'_>) -> Result<Option<Duration>, String> {
    if !boolean(options.wait, "postgres_changes_options.wait")? {
        return Ok(None);
    }
    let Some(raw) = options.timeout else { return Ok(Some(WAIT_DEFAULT)) };
    let problem = || "postgres_changes_options.timeout is not a positive number".to_owned();
    let milliseconds: f64 = serde_json::from_str(raw.get()).map_err(|_| problem())?;
    if milliseconds.is_nan() || milliseconds < 0.0 {
        return Err(problem());
    }
    let asked = Duration::try_from_secs_f64(milliseconds / 1000.0).unwrap_or(WAIT_MAX);
    Ok(Some(asked.min(WAIT_MAX)))
}

impl Wishes {
    /// From the payload of a join.
    ///
    /// # Errors
    /// What is wrong with it, for the client.
    pub(super) fn parse(payload: &RawValue, subscriptions_max: usize) -> Result<Self, String> {
        if payload.get() == "null" {
            return Ok(Self { legacy: true, ..Self::default() });
        }
        let payload: Payload<'_> = object(payload, "the payload")?;
        let tokens = Self {
            access_token: text(payload.access_token),
            user_token: text(payload.user_token),
            ..Self::default()
        };
        let Some(config) = payload.config else { return Ok(Self { legacy: true, ..tokens }) };
        let config: Config<'_> = object(config, "config")?;
        let broadcast: Broadcast<'_> = optional(config.broadcast, "broadcast")?;
        let presence: Presence<'_> = optional(config.presence, "presence")?;
        let enabled = match presence.enabled {
            None => config.presence.is_some(),
            given => boolean(given, "presence.enabled")?,
        };
        let options = optional(config.postgres_changes_options, "postgres_changes_options")?;
        if broadcast.replay.is_some_and(|replay| !replay.get().starts_with('{')) {
            return Err("broadcast.replay is not an object".into());
        }
        Ok(Self {
            postgres_changes: subscriptions(config.postgres_changes, subscriptions_max)?,
            private: boolean(config.private, "private")?,
            broadcast: BroadcastOptions {
                acknowledge: boolean(broadcast.ack, "broadcast.ack")?,
                echo: boolean(broadcast.echo, "broadcast.self")?,
                replay: bounded(broadcast.replay, "broadcast.replay")?,
                // What is no text is no cursor either, which the client is told like that.
                cursor: bounded(broadcast.cursor, "broadcast.cursor")?
                    .filter(|cursor| cursor.get() != "null")
                    .map(|cursor| text(Some(&*cursor)).unwrap_or_default().into()),
                announce_replication: boolean(
                    broadcast.replication_ready,
                    "broadcast.replication_ready",
                )?,
            },
            presence: PresenceOptions { enabled, key: bounded(presence.key, "presence.key")? },
            wait: wait(&options)?,
            ..tokens
        })
    }

    /// The token that governs the channel, when it is not the connection's own.
    ///
    /// `user_token` is the older name and wins; a key that is no JWT (`sb_…`), under the newer
    /// name or as the one picked, stands for the connection's token.
    pub(super) fn token(&self) -> Option<&str> {
        let opaque = |token: &str| token.starts_with("sb_");
        if self.access_token.as_deref().is_some_and(opaque) {
            return None;
        }
        let picked = self.user_token.as_deref().or(self.access_token.as_deref());
        picked.filter(|token| !opaque(token))
    }
}

/// The list's objects, nulls left out.
fn subscriptions(field: Field<'_>, most: usize) -> Result<Vec<Box<RawValue>>, String> {
    let Some(raw) = field else { return Ok(Vec::new()) };
    if !raw.get().starts_with('[') {
        return Err("postgres_changes is not a list".into());
    }
    if raw.get().len() > SUBSCRIPTIONS_BYTES_MAX {
        return Err(format!("postgres_changes has more than {SUBSCRIPTIONS_BYTES_MAX} bytes"));
    }
    let list = Subscriptions(most).deserialize(&mut serde_json::Deserializer::from_str(raw.get()));
    let list = list.map_err(|_| format!("postgres_changes has more than {most} elements"))?;
    if list.iter().any(|element| !element.get().starts_with('{')) {
        return Err("an element of postgres_changes is not an object".into());
    }
    Ok(list.into_iter().map(ToOwned::to_owned).collect())
}

/// At most so many elements, so that a long list is refused before it takes memory.
struct Subscriptions(usize);

impl<'de> DeserializeSeed<'de> for Subscriptions {
    type Value = Vec<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Subscriptions {
    type Value = Vec<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {} elements", self.0)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut elements = Vec::new();
        while elements.len() < self.0 {
            match list.next_element::<Option<&'de RawValue>>()? {
                Some(Some(element)) => elements.push(element),
                Some(None) => {}
                None => return Ok(elements),
            }
        }
        match list.next_element::<IgnoredAny>()? {
            Some(_) => Err(de::Error::custom("too many elements")),
            None => Ok(elements),
        }
    }
}
