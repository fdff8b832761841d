//! The room of a channel: who may enter it, stay in it and speak there.
//!
//! In:     a channel that wants in, its verified claims; later, other claims.
//! Out:    its place in the room, or the sentence the client is told.
//! Never:  a place in a private room before the policies let the claims read there; a decision that
//!         outlives the claims it was made for.
//! Source: spec of the realtime protocol, sections 1.6, 4.6 and 6.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::timeout;
use tracing::warn;

use super::Request;
use crate::auth::Claims;
use crate::auth::access::{
    self, Access, Asker, ReadGrants, Since, Stored, StoredPayload, WriteGrants,
};
use crate::auth::rls::Authorizer;
use crate::config;
use crate::cursor::Cursor;
use crate::event::broadcast::{Broadcast, Encoding, Meta, UserEvent};
use crate::feed;
use crate::hub::{Entrant, Hub, Occupancy, RoomName};
use crate::telemetry;

/// Stored messages that one join gets at most, and when it does not say how many.
const REPLAY_MAX: u32 = 25;

/// How long a join with stored messages waits for the feed to come as far as they were read. If that
/// is not enough, older ones may come live after them. Less than clients wait.
const CATCH_UP_MAX: Duration = Duration::from_secs(4);

/// A channel that is in its room.
#[derive(Debug)]
pub struct Entered {
    /// Its place.
    pub occupancy: Occupancy,
    /// What its claims let it read.
    pub grants: ReadGrants,
    /// Stored messages to send before live ones, oldest first, when it asked for any.
    pub stored: Option<Vec<Broadcast>>,
}

/// The door of every room.
#[derive(Debug)]
pub(super) struct Door {
    hub: Arc<Hub>,
    access: Arc<Access>,
    authorizer: Arc<Authorizer>,
    feed: Arc<feed::Status>,
    replay: ReplayLimits,
}

/// How many bytes one join may be given of what is stored.
#[derive(Debug, Clone, Copy)]
struct ReplayLimits {
    payload_bytes_max: usize,
    bytes_max: usize,
}

impl Door {
    pub(super) fn new(
        hub: Arc<Hub>,
        access: Arc<Access>,
        authorizer: Arc<Authorizer>,
        feed: Arc<feed::Status>,
        settings: &config::Config,
    ) -> Self {
        let replay = ReplayLimits {
            payload_bytes_max: settings.limits.payload_bytes_max,
            // It goes to the client at once, and what came live meanwhile right after it.
            bytes_max: settings.server.outbox_bytes_max / 2,
        };
        Self { hub, access, authorizer, feed, replay }
    }

    /// How far the feed came.
    pub(super) fn published(&self) -> Option<Cursor> {
        self.feed.cursor()
    }

    /// Enters.
    ///
    /// # Errors
    /// `Code: text` for the client.
    pub(super) async fn enter(&self, request: &Request) -> Result<Entered, String> {
        let since = |replay| since(replay, self.replay);
        let replay = request.replay.as_deref().map(since).transpose()?;
        if !request.private {
            if replay.is_some() {
                let problem = "Replay is not allowed for public channels";
                return Err(format!("UnableToReplayMessages: {problem}"));
            }
            let grants = ReadGrants { broadcast: true, presence: true };
            let occupancy = self.hub.enter(&name(request), entrant(request, grants));
            return Ok(Entered { occupancy, grants, stored: None });
        }
        let topic = sub_topic(request);
        let Request { asker, claims, headers, presence, .. } = request;
        let doubts = self.hub.doubts();
        let grants = self.access.read(asker, claims, topic, headers, *presence);
        let grants = grants.await.map_err(|error| refusal(&error, topic))?;
        let nothing = !grants.broadcast && !grants.presence;
        if nothing || replay.is_some() && !grants.broadcast {
            return Err(format!("Unauthorized: {}", no_permission(topic)));
        }
        // Before the store is read: what is inserted after that comes live.
        let occupancy = self.hub.enter(&name(request), entrant(request, grants));
        if self.hub.doubts() != doubts {
            occupancy.doubt();
        }
        let stored = match replay {
            None => None,
            Some(since) => {
                let problem = "UnableToReplayMessages: Realtime was unable to replay messages";
                // What was decoded while nobody was in the room must be in the store.
                let visible = self.authorizer.wait_decoded_visible().await;
                visible.map_err(|_unanswered| problem.to_owned())?;
                let stored = self.access.stored(asker, claims, topic, headers, since);
                let stored = stored.await.map_err(|error| {
                    log(&error, topic);
                    problem.to_owned()
                })?;
                // Where there are more than are replayed, those that come live are older.
                if let Some(read_at) = stored.read_at {
                    let _late = timeout(CATCH_UP_MAX, self.feed.passed(read_at)).await;
                }
                Some(stored.messages.into_iter().filter_map(broadcast).collect())
            }
        };
        Ok(Entered { occupancy, grants, stored })
    }

    /// What other claims may read in the room of a channel that is there.
    ///
    /// # Errors
    /// Why the channel has to go, in a sentence for the client.
    pub(super) async fn renew(
        &self,
        request: &Request,
        before: ReadGrants,
    ) -> Result<ReadGrants, String> {
        let topic = sub_topic(request);
        let Request { asker, claims, headers, presence, .. } = request;
        let grants = self.access.read(asker, claims, topic, headers, *presence);
        let grants = grants.await.map_err(|error| {
            let text = refusal(&error, topic);
            text.split_once(": ").map_or(text.clone(), |(_code, text)| text.to_owned())
        })?;
        if !grants.broadcast && !grants.presence {
            return Err(no_permission(topic));
        }
        if before.broadcast && !grants.broadcast || before.presence && !grants.presence {
            let lost = "You no longer have permission to read from this Channel topic";
            return Err(format!("{lost}: {topic}"));
        }
        Ok(grants)
    }

    /// What claims may write in a private room; none when that could not be found out.
    pub(super) async fn may_write(
        &self,
        asker: &Asker,
        claims: &Claims,
        topic: &str,
        headers: &str,
    ) -> Option<WriteGrants> {
        let grants = self.access.write(asker, claims, topic, headers, true).await;
        grants.inspect_err(|error| log(error, topic)).ok()
    }

    /// The same, and whether they may read presence there.
    pub(super) async fn may_write_and_see(
        &self,
        asker: &Asker,
        claims: &Claims,
        topic: &str,
        headers: &str,
    ) -> Option<(WriteGrants, ReadGrants)> {
        let grants = self.access.write_and_see(asker, claims, topic, headers).await;
        grants.inspect_err(|error| log(error, topic)).ok()
    }
}

fn sub_topic(request: &Request) -> &str {
    request.topic.strip_prefix("realtime:").unwrap_or(&request.topic)
}

fn name(request: &Request) -> RoomName {
    RoomName { topic: Arc::clone(&request.topic), private: request.private }
}

fn entrant(request: &Request, grants: ReadGrants) -> Entrant {
    Entrant {
        subscriber: Arc::clone(&request.subscriber),
        format: request.format,
        hears: grants.broadcast,
        expires_at: request.claims.expires_at,
        replays: request.replay.is_some(),
        connection_id: request.connection_id.clone(),
    }
}

fn no_permission(topic: &str) -> String {
    format!("You do not have permissions to read from this Channel topic: {topic}")
}

fn log(error: &access::Error, topic: &str) {
    let (code, message) = match error {
        // As often as a client likes, and nothing is wrong.
        access::Error::Gone => return,
        access::Error::Policy { message, .. } => ("RlsPolicyError", &**message),
        access::Error::Canceled => ("QueryCanceled", ""),
        access::Error::MissingPartition => ("MissingPartition", ""),
        access::Error::Busy => ("IncreaseConnectionPool", ""),
        access::Error::Unavailable(_) => ("UnableToConnectToProject", ""),
        access::Error::Role { .. } => ("Unauthorized", ""),
    };
    warn!(code, topic, message, error = telemetry::chain(error), "a channel was not allowed");
}

/// What a client is told when there is no answer: `Code: text`.
fn refusal(error: &access::Error, topic: &str) -> String {
    log(error, topic);
    match error {
        access::Error::Policy { .. } | access::Error::Role { .. } => {
            format!("Unauthorized: {}", no_permission(topic))
        }
        access::Error::Canceled => {
            "QueryCanceled: Query was cancelled, please try again".to_owned()
        }
        access::Error::MissingPartition => {
            "MissingPartition: Realtime was unable to find the expected messages partition"
                .to_owned()
        }
        access::Error::Busy => {
            "IncreaseConnectionPool: Please increase your connection pool size".to_owned()
        }
        // Nobody hears it after `Gone`.
        access::Error::Unavailable(_) | access::Error::Gone => {
            "UnableToConnectToProject: Realtime was unable to connect to the project database"
                .to_owned()
        }
    }
}

#[derive(Deserialize)]
struct Replay {
    since: i64,
    limit: Option<i64>,
}

/// The time of the last millisecond of year 9999: Postgres takes it, and nothing is as new.
const SINCE_MAX: i64 = 253_402_300_799_999;

/// From when on a join wants what was said, in milliseconds since 1970, and how much of it at most;
/// none when it does not, or not in a way that can be understood.
pub(super) fn wanted(replay: &RawValue) -> Option<(u64, usize)> {
    let limits = ReplayLimits { payload_bytes_max: 0, bytes_max: 0 };
    let since = since(replay, limits).ok()?;
    Some((since.milliseconds.try_into().ok()?, since.limit.try_into().ok()?))
}

fn since(replay: &RawValue, limits: ReplayLimits) -> Result<Since, String> {
    let replay: Option<Replay> = serde_json::from_str(replay.get()).ok();
    let valid = replay.filter(|replay| (0..=SINCE_MAX).contains(&replay.since));
    let Some(Replay { since, limit }) = valid else {
        return Err("UnableToReplayMessages: Replay params are not valid".to_owned());
    };
    let limit = limit.unwrap_or(REPLAY_MAX.into()).clamp(1, REPLAY_MAX.into());
    let limit = u32::try_from(limit).unwrap_or(REPLAY_MAX);
    let ReplayLimits { payload_bytes_max, bytes_max } = limits;
    Ok(Since { milliseconds: since, limit, payload_bytes_max, bytes_max })
}

/// A stored message as it is told; none when its bytes are none.
fn broadcast(stored: Stored) -> Option<Broadcast> {
    let Stored { id, event, payload, at } = stored;
    let (encoding, data) = match payload {
        StoredPayload::Json(json) => (Encoding::Json, json.into_bytes().into()),
        StoredPayload::Hex(hex) => (Encoding::Bytes, unhex(&hex)?),
    };
    let (id, stored_at) = (Some(id.into()), Some(at.into()));
    let meta = Meta { id, replayed: true, stored_at, ..Meta::default() };
    Some(Broadcast::User(UserEvent { event: event.into(), encoding, data, meta }))
}

fn unhex(hex: &str) -> Option<Bytes> {
    let digits = hex.as_bytes().chunks_exact(2);
    let byte = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(pair, 16).ok()
    };
    digits.map(byte).collect::<Option<Vec<u8>>>().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replay_options_are_checked_and_bounded() {
        let (payload_bytes_max, bytes_max) = (10, 20);
        let limits = ReplayLimits { payload_bytes_max, bytes_max };
        let parse = |text: &str| since(&RawValue::from_string(text.into()).unwrap(), limits);
        let since =
            |milliseconds, limit| Ok(Since { milliseconds, limit, payload_bytes_max, bytes_max });
        assert_eq!(parse(r#"{"since":1}"#), since(1, 25));
        assert_eq!(parse(r#"{"since":1700000000000,"limit":1000}"#), since(1_700_000_000_000, 25));
        assert_eq!(parse(r#"{"since":0,"limit":-3}"#), since(0, 1));
        for bad in
            ["{}", r#"{"since":"1"}"#, r#"{"since":1.5}"#, r#"{"since":-1}"#, r#"{"since":1e300}"#]
        {
            assert!(parse(bad).unwrap_err().ends_with("Replay params are not valid"), "{bad}");
        }
    }

    #[test]
    fn hexadecimal_digits_are_bytes() {
        assert_eq!(unhex("00ff1a").as_deref(), Some(&[0, 255, 26][..]));
        assert_eq!(unhex("zz"), None);
    }
}
