//! What a client says to others in its rooms, and does not keep.
//!
//! In:     events that are relayed, of a client that has a seat and may speak there; the time.
//! Out:    broadcasts: at most so often, the last one always, and that they end.
//! Never:  who somebody is by what he sent; a word in a room that the client is not in (any more).

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::client::{Client, count_told};
use super::connection::{Around, Mail};
use super::relays::{Manner, TooMany};
use crate::command::Refused;
use crate::event::broadcast::{Broadcast, Encoding, Meta, UserEvent};
use crate::profile::{Relay, Scope};

/// Something to be told in a room.
#[derive(Debug, Clone)]
pub(super) struct Told {
    topic: Arc<str>,
    what: Broadcast,
    /// Who says it hears it too.
    echo: bool,
    /// The list of those who have it active, which is told instead.
    gathers: Option<Box<Gathers>>,
}

/// Of a relay that tells who has it active.
#[derive(Debug, Clone)]
struct Gathers {
    relay: Arc<Relay>,
    list: Box<str>,
    payload: Value,
}

/// A client that says something.
pub(super) struct Telling<'a, 'b> {
    pub(super) client: &'a mut Client,
    pub(super) around: &'a mut Around<'b>,
}

impl Telling<'_, '_> {
    /// Relays an event to a room that the client may speak in.
    ///
    /// # Errors
    /// It is not told.
    pub(super) fn say(
        &mut self,
        relay: &Arc<Relay>,
        topic: &Arc<str>,
        payload: &Value,
    ) -> Result<(), Refused> {
        let about = about(relay, topic, payload)
            .ok_or_else(|| Refused::new("VALIDATION_FAILED", "What it is about is too long"))?;
        let stops = relay.active_member.as_ref().is_some_and(|member| {
            matches!(payload.get(&**member), None | Some(Value::Bool(false) | Value::Null))
        });
        if stops {
            self.end(&about);
            return Ok(());
        }
        if relay.gathers_users {
            self.gather(relay, topic, payload, about);
            return Ok(());
        }
        let Some(told) = self.rendered(relay, topic, payload, false) else { return Ok(()) };
        let end = self.rendered(relay, topic, payload, true);
        let manner = Manner {
            interval: relay.min_interval.unwrap_or(Duration::ZERO),
            expires: relay.expires,
        };
        let now = self.client.relays.say(&about, manner, told, end, Instant::now());
        let now =
            now.map_err(|TooMany| Refused::new("RATE_LIMITED", "Too much of this is under way"))?;
        if let Some(told) = now {
            self.tell(&told);
        }
        self.come_back();
        Ok(())
    }

    /// Ends what an event is about.
    pub(super) fn stop(&mut self, relay: &Arc<Relay>, topic: &Arc<str>, payload: &Value) {
        if let Some(about) = about(relay, topic, payload) {
            self.end(&about);
        }
    }

    /// Ends everything in a room.
    pub(super) fn stop_all(&mut self, topic: &str) {
        let start = format!("{topic}\0");
        for told in self.client.relays.stop_all(|about| about.starts_with(&start)) {
            self.tell(&told);
        }
        let gathered: Vec<Box<str>> =
            self.client.gathers.keys().filter(|about| about.starts_with(&start)).cloned().collect();
        for about in gathered {
            self.end(&about);
        }
    }

    /// Tells what is due by now.
    pub(super) fn due(&mut self) {
        self.client.awaited = None;
        for told in self.client.relays.due(Instant::now()) {
            self.tell(&told);
        }
        self.come_back();
    }

    fn end(&mut self, about: &str) {
        for told in self.client.relays.stop(about) {
            self.tell(&told);
        }
        if let Some(told) = self.client.gathers.remove(about)
            && let Some(gathers) = &told.gathers
            && self.around.shared.rosters.leave(&gathers.list, self.client.who().name())
        {
            self.tell(&told);
        }
    }

    /// This client has it active from now on, and nothing else of this relay.
    fn gather(&mut self, relay: &Arc<Relay>, topic: &Arc<str>, payload: &Value, about: Box<str>) {
        if self.client.gathers.contains_key(&about) {
            return;
        }
        let is_of_relay = |told: &Told| {
            told.gathers.as_ref().is_some_and(|gathers| gathers.relay.event == relay.event)
        };
        let others: Vec<Box<str>> = self
            .client
            .gathers
            .iter()
            .filter(|(_, told)| is_of_relay(told))
            .map(|(about, _)| about.clone())
            .collect();
        for other in others {
            self.end(&other);
        }
        let Some(place) = self.client.place(topic) else { return };
        let shown = match &place.room {
            Some(room) => {
                self.client.scoped(place, payload, |scope| room.user_payload.render(scope))
            }
            None => serde_json::json!({ "userId": self.client.who().name() }).to_string(),
        };
        let list: Box<str> = format!("{}\0gathered\0{about}", self.client.who().namespace).into();
        let rosters = &self.around.shared.rosters;
        let first = rosters.enter(&list, self.client.who().name(), shown.into(), None);
        let gathers = Gathers { relay: Arc::clone(relay), list, payload: payload.clone() };
        let told = Told {
            topic: Arc::clone(topic),
            what: Broadcast::Whole(bytes::Bytes::new()),
            echo: relay.echo,
            gathers: Some(Box::new(gathers)),
        };
        if first == Ok(true) {
            self.tell(&told);
        }
        self.client.gathers.insert(about, told);
    }

    /// What a relay tells of an event, or of its end, if it tells that.
    fn rendered(
        &self,
        relay: &Relay,
        topic: &Arc<str>,
        payload: &Value,
        is_end: bool,
    ) -> Option<Told> {
        let place = self.client.place(topic)?;
        let (event, written) = if is_end {
            (relay.stopped.as_ref()?, &relay.stopped_payload)
        } else {
            (&relay.told, &relay.payload)
        };
        let text = self.client.scoped(place, payload, |scope| written.render(scope));
        let what = said(event, text);
        Some(Told { topic: Arc::clone(topic), what, echo: relay.echo, gathers: None })
    }

    fn tell(&mut self, told: &Told) {
        let Some(place) = self.client.place(&told.topic) else { return };
        let gathered = told.gathers.as_ref().map(|gathers| {
            let users = self.around.shared.rosters.users(&gathers.list);
            let render = |scope: &Scope<'_>| {
                gathers.relay.payload.render(&Scope { users: Some(&users), ..*scope })
            };
            let text = self.client.scoped(place, &gathers.payload, render);
            said(&gathers.relay.told, text)
        });
        let what = gathered.as_ref().unwrap_or(&told.what);
        let count = place.occupancy.broadcast(what, told.echo, self.around.dirty);
        count_told(self.around, count);
    }

    /// Has itself called when something is due.
    fn come_back(&mut self) {
        let Some(due_at) = self.client.relays.due_at() else { return };
        if self.client.awaited.is_some_and(|awaited| awaited <= due_at) {
            return;
        }
        self.client.awaited = Some(due_at);
        let client = self.client.who().client;
        self.around.ask(|_shared| {
            Box::pin(async move {
                tokio::time::sleep_until(due_at.into()).await;
                Mail::Tick(client)
            })
        });
    }
}

/// An event as a broadcast; its payload is the text of a JSON object.
pub(super) fn said(event: &str, payload: String) -> Broadcast {
    let (event, data) = (event.into(), payload.into());
    Broadcast::User(UserEvent { event, encoding: Encoding::Json, data, meta: Meta::default() })
}

/// By what an event and its end know each other: the room first.
fn about(relay: &Relay, topic: &str, payload: &Value) -> Option<Box<str>> {
    let key = relay.key(payload).ok()?;
    Some(format!("{topic}\0{}\0{key}", relay.event).into())
}
