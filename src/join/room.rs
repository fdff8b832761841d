//! The room of a channel: who may enter it.
//!
//! In:     a channel that wants in, its verified claims.
//! Out:    its place in the room, or the sentence the client is told.
//! Never:  a place in a private room before the policies let the claims read there.

use std::sync::Arc;

use super::Request;
use crate::auth::Claims;
use crate::event::broadcast::Broadcast;
use crate::hub::{Entrant, Hub, Occupancy, RoomName};

/// A channel that is in its room.
#[derive(Debug)]
pub struct Entered {
    /// Its place.
    pub occupancy: Occupancy,
    /// Whether its claims let it see who is present.
    pub sees_presence: bool,
    /// Stored messages to send before live ones, oldest first, when it asked for any.
    pub stored: Option<Vec<Broadcast>>,
}

/// The door of every room.
#[derive(Debug)]
pub(super) struct Door {
    hub: Arc<Hub>,
}

impl Door {
    pub(super) fn new(hub: Arc<Hub>) -> Self {
        Self { hub }
    }

    /// Enters.
    ///
    /// # Errors
    /// `Code: text` for the client.
    pub(super) async fn enter(&self, request: &Request) -> Result<Entered, String> {
        let sub_topic = request.topic.strip_prefix("realtime:").unwrap_or(&request.topic);
        if request.private {
            return Err(format!(
                "Unauthorized: You do not have permissions to read from this Channel topic: \
                 {sub_topic}"
            ));
        }
        if request.replay.is_some() {
            return Err(
                "UnableToReplayMessages: Replay is not allowed for public channels".to_owned()
            );
        }
        let occupancy = self.hub.enter(name(request), entrant(request, &request.claims, true));
        Ok(Entered { occupancy, sees_presence: true, stored: None })
    }
}

fn name(request: &Request) -> RoomName {
    RoomName { topic: Arc::clone(&request.topic), private: request.private }
}

fn entrant(request: &Request, claims: &Claims, hears: bool) -> Entrant {
    Entrant {
        subscriber: Arc::clone(&request.subscriber),
        format: request.format,
        hears,
        expires_at: claims.expires_at,
        replays: request.replay.is_some(),
    }
}
