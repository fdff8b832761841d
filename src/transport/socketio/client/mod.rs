//! One client in a namespace: its events, its rooms.
//!
//! In:     events of the client, one after another; answers from the database; doubts about its rooms.
//! Out:    acknowledgements and errors; seats taken and given up, and who is told of that; what it
//!         relays.
//! Never:  two events at once; an event that its profile does not declare; an error without a code.

mod seats;

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Arc, Weak};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use hashbrown::HashMap;
use serde_json::{Map, Value, json};

use super::SocketIo;
use super::connection::{Around, Mail, Mailbox};
use super::entrance::{self, Admitted, Who};
use super::online::{self, Online};
use super::packet::{self, Event};
use super::recovery::Lost;
use super::relays::Relays;
use super::telling::{Telling, Told};
use crate::command::{Call, Caller, Given, Outcome, Refused};
use crate::hub::outbox::CloseReason;
use crate::profile::{Command, Presence, Profile, Relay, Scope};
use crate::session::UserPlace;
use crate::telemetry;
use crate::transport::deadlines::{DeadlineId, Expires};

/// Events that wait for the one before them, and the bytes of their payloads.
const WAITING_MAX: usize = 1024;
const WAITING_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes of a payload that is shown again to who sent it, when it is refused.
const CONTEXT_BYTES_MAX: usize = 16 * 1024;

/// The token has expired: a client that has a newer one comes back with it.
const EXPIRED: CloseReason = CloseReason::Session { code: 4401, text: "the token has expired" };

/// What a client asks for, and how it is answered.
#[derive(Debug)]
pub(super) struct Asked {
    event: Box<str>,
    payload: Value,
    /// Of the payload's text.
    bytes: usize,
    ack: Option<u64>,
}

/// How a client goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// It left the namespace.
    Left,
    /// Its connection was closed.
    Closed,
    /// Its connection was lost: it may be back in a moment.
    Lost,
    /// It may no longer be there.
    Evicted,
}

pub(super) use seats::Place;

/// See the module's header.
pub(super) struct Client {
    who: Arc<Who>,
    error_event: Box<str>,
    /// Its profile as it was when it came, for when there is none any more.
    profile: Arc<Profile>,
    places: HashMap<Arc<str>, Place>,
    /// What it asked for and is not begun.
    waiting: VecDeque<Asked>,
    /// Something it asked for is under way.
    busy: bool,
    /// Its events in this second, and which one that is.
    rate: (u64, usize),
    pub(super) relays: Relays<Told>,
    /// When it comes back to what it relays.
    pub(super) awaited: Option<Instant>,
    pub(super) gathers: HashMap<Box<str>, Told>,
    online: Option<Online>,
    deadline: Option<DeadlineId>,
    _counted: Option<UserPlace>,
}

impl Client {
    /// A client that was let in: it is told so, and then what it may hear.
    pub(super) fn begin(
        admitted: Admitted,
        around: &mut Around<'_>,
    ) -> (Self, ControlFlow<CloseReason>) {
        let Admitted { who, profile, seats, hearers, counted } = admitted;
        let mailbox: Weak<Mailbox> = Arc::downgrade(around.mailbox);
        let deadlines = &around.shared.realtime.deadlines;
        let deadline = deadlines.add(who.claims.expires_at, mailbox, who.client.into());
        let mut client = Self {
            error_event: profile.error_event.clone(),
            places: HashMap::new(),
            waiting: VecDeque::new(),
            busy: false,
            rate: (0, 0),
            relays: Relays::default(),
            awaited: None,
            gathers: HashMap::new(),
            online: None,
            deadline: Some(deadline),
            profile,
            who,
            _counted: counted,
        };
        let packet = packet::connected(&client.who.namespace, &client.who.id, &client.who.private);
        let mut flow = around.send(&packet);
        let Who { private, namespace, user, .. } = &*client.who;
        let outbox = around.mailbox.outbox();
        around.shared.recoveries.enter(private, namespace, user.as_deref(), outbox);
        for seat in seats {
            // Without a word: it did not ask for these now.
            let _ = client.sit_down(around, seat);
        }
        if let Some(presence) = client.profile.presence.clone() {
            client.online = Some(Online::come(&client.who, &presence, hearers, around));
        }
        if let ControlFlow::Continue(()) = flow {
            flow = match around.mailbox.outbox().closing() {
                Some(reason) => ControlFlow::Break(reason),
                None => ControlFlow::Continue(()),
            };
        }
        (client, flow)
    }

    pub(super) fn who(&self) -> &Arc<Who> {
        &self.who
    }

    pub(super) fn place(&self, topic: &str) -> Option<&Place> {
        self.places.get(topic)
    }

    /// Its rooms, and what it joined them with.
    fn rooms(&self) -> Vec<(Arc<str>, Value)> {
        let rooms = self.places.iter();
        rooms.map(|(topic, place)| (Arc::clone(topic), place.payload.clone())).collect()
    }

    /// What is declared for it now.
    fn profile(&mut self, shared: &SocketIo) -> Arc<Profile> {
        let known = shared.declarations.now();
        if let Some(profile) = known.as_ref().and_then(|known| known.get(&self.who.namespace)) {
            self.profile = Arc::clone(profile);
        }
        Arc::clone(&self.profile)
    }

    // ------------------------------------------------------------------------------ what it says

    /// Takes an event of the client.
    pub(super) fn event(
        &mut self,
        around: &mut Around<'_>,
        event: &Event<'_>,
    ) -> ControlFlow<CloseReason> {
        let asked = Asked {
            event: (&*event.name).into(),
            payload: Value::Null,
            bytes: event.arguments.first().map_or(0, |first| first.get().len()),
            ack: event.ack,
        };
        if !self.is_in_time(around) || self.is_behind(asked.bytes) {
            let refused = Refused::new("RATE_LIMITED", "Too many events: slow down");
            return self.refuse(around, &asked, refused);
        }
        let payload = match event.arguments.first().map(|first| first.get()) {
            None | Some("null") => Ok(Value::Object(Map::new())),
            Some(text) if text.len() > around.shared.realtime.limits.payload_bytes_max => {
                Err("The payload is too large")
            }
            Some(text) => match serde_json::from_str(text) {
                Ok(Value::Object(object)) => Ok(Value::Object(object)),
                Ok(_) | Err(_) => Err("The payload is an object"),
            },
        };
        match payload {
            Ok(payload) => {
                let asked = Asked { payload, ..asked };
                if self.busy {
                    self.waiting.push_back(asked);
                    return ControlFlow::Continue(());
                }
                self.take(around, asked)
            }
            Err(text) => self.refuse(around, &asked, Refused::new("VALIDATION_FAILED", text)),
        }
    }

    /// Whether too much waits already.
    fn is_behind(&self, bytes: usize) -> bool {
        let waiting: usize = self.waiting.iter().map(|asked| asked.bytes).sum();
        self.waiting.len() >= WAITING_MAX
            || !self.waiting.is_empty() && waiting.saturating_add(bytes) > WAITING_BYTES_MAX
    }

    /// Whether it may say one thing more in this second, as all together may.
    fn is_in_time(&mut self, around: &Around<'_>) -> bool {
        let now = SystemTime::now();
        let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if self.rate.0 != second {
            self.rate = (second, 0);
        }
        self.rate.1 += 1;
        let realtime = &around.shared.realtime;
        let own = self.profile.events_per_second.and_then(|most| usize::try_from(most).ok());
        let own = own.unwrap_or(realtime.limits.connection_events_per_second_max);
        self.rate.1 <= own
            && realtime.rates.admit_events(1, realtime.limits.events_per_second_max, now)
    }

    /// Goes on with what waited.
    fn go_on(&mut self, around: &mut Around<'_>) -> ControlFlow<CloseReason> {
        self.busy = false;
        while !self.busy
            && let Some(asked) = self.waiting.pop_front()
        {
            self.take(around, asked)?;
        }
        ControlFlow::Continue(())
    }

    fn take(&mut self, around: &mut Around<'_>, asked: Asked) -> ControlFlow<CloseReason> {
        let profile = self.profile(around.shared);
        let event = &*asked.event;
        let joins: Vec<_> = profile.rooms_joined_by(event).map(Arc::clone).collect();
        let leaves: Vec<_> = profile.rooms_left_by(event).map(Arc::clone).collect();
        if !joins.is_empty() {
            self.join(around, asked, joins)
        } else if !leaves.is_empty() {
            self.leave(around, asked, &leaves)
        } else if let Some(command) = profile.commands.get(event) {
            self.command(around, asked, Arc::clone(command))
        } else if let Some(relay) = profile.relay_of(event) {
            let relay = Arc::clone(relay);
            self.relay(around, &asked, &relay)
        } else if let Some(relay) = profile.relay_stopped_by(event) {
            let relay = Arc::clone(relay);
            self.stop_relay(around, &asked, &relay)
        } else if let Some(presence) = profile.presence.as_ref().filter(|p| online::is_of(p, event))
        {
            let presence = Arc::clone(presence);
            self.show(around, asked, &presence)
        } else {
            let shown: String = event.chars().take(100).collect();
            let text = format!("There is no event {shown:?} here");
            self.refuse(around, &asked, Refused::new("UNKNOWN_EVENT", text))
        }
    }

    fn show(
        &mut self,
        around: &mut Around<'_>,
        asked: Asked,
        presence: &Arc<Presence>,
    ) -> ControlFlow<CloseReason> {
        let Some(online) = &mut self.online else {
            let refused = Refused::new("UNAVAILABLE", "Presence was declared after you came");
            return self.refuse(around, &asked, refused);
        };
        let written = if presence.heartbeat_event.as_deref() == Some(&*asked.event) {
            Ok(online.beat(presence))
        } else {
            online.show(&self.who, presence, &asked.payload, around)
        };
        let (written, function) = match written {
            Ok(written) => (written, presence.write.clone()),
            Err(refused) => return self.refuse(around, &asked, refused),
        };
        let (Some(written), Some(function)) = (written, function) else {
            return self.done(around, &asked, None, None);
        };
        // One after the other, as everything that it asks for.
        self.busy = true;
        let who = Arc::clone(&self.who);
        around.ask(|shared| {
            Box::pin(async move {
                let written = entrance::raw(&written);
                let writing =
                    shared.commander.ask(who.caller(), &function, Given::Payload(&written));
                Mail::Settled(who.client, asked, writing.await.map(drop))
            })
        });
        ControlFlow::Continue(())
    }

    // -------------------------------------------------------------------------- how it is answered

    fn acknowledge(
        &self,
        around: &Around<'_>,
        asked: &Asked,
        answer: &[u8],
    ) -> ControlFlow<CloseReason> {
        match asked.ack {
            Some(ack) => around.send(&packet::ack_text(&self.who.namespace, ack, answer)),
            None => ControlFlow::Continue(()),
        }
    }

    /// It is done; `data` is JSON.
    fn done(
        &self,
        around: &Around<'_>,
        asked: &Asked,
        data: Option<&str>,
        cursor: Option<&str>,
    ) -> ControlFlow<CloseReason> {
        let data = data.unwrap_or("null");
        let answer = match cursor {
            Some(cursor) => format!(r#"{{"ok":true,"data":{data},"cursor":"{cursor}"}}"#),
            None => format!(r#"{{"ok":true,"data":{data}}}"#),
        };
        self.acknowledge(around, asked, answer.as_bytes())
    }

    /// It is not; the client hears why, twice if it wants to be answered.
    fn refuse(
        &self,
        around: &Around<'_>,
        asked: &Asked,
        refused: Refused,
    ) -> ControlFlow<CloseReason> {
        let Refused { code, message, context: more } = refused;
        let mut context = match &asked.payload {
            Value::Object(payload) if asked.bytes <= CONTEXT_BYTES_MAX => payload.clone(),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_)
            | Value::Object(_) => Map::new(),
        };
        context.insert("event".into(), (&*asked.event).into());
        if let Some(Value::Object(more)) =
            more.and_then(|more| serde_json::from_str(more.get()).ok())
            && (asked.bytes <= CONTEXT_BYTES_MAX || more.len() <= 2)
        {
            context.extend(more);
        }
        let error = json!({ "code": code, "message": message, "context": context });
        self.tell(around, &self.error_event, &error)?;
        let answer = json!({ "ok": false, "error": error }).to_string();
        self.acknowledge(around, asked, answer.as_bytes())
    }

    /// Tells it something.
    fn tell(&self, around: &Around<'_>, event: &str, payload: &Value) -> ControlFlow<CloseReason> {
        self.tell_text(around, event, &payload.to_string())
    }

    fn tell_text(
        &self,
        around: &Around<'_>,
        event: &str,
        payload: &str,
    ) -> ControlFlow<CloseReason> {
        let arguments: [&[u8]; 2] = [payload.as_bytes(), b"{}"];
        around.send(&packet::event_text(&self.who.namespace, event, &arguments))
    }

    /// A payload about this client in a room.
    pub(super) fn scoped<T>(
        &self,
        place: &Place,
        payload: &Value,
        render: impl FnOnce(&Scope<'_>) -> T,
    ) -> T {
        let member = place.member.as_ref().unwrap_or(&self.who.member);
        let scope = self.who.scope(payload, member);
        let topic = place.named.topic.sub_topic();
        render(&Scope { topic, values: &place.named.values, ..scope })
    }

    /// Goes; what it had is remembered, unless it left.
    pub(super) fn ends(mut self, around: &mut Around<'_>, ending: Ending) {
        if let Some(deadline) = self.deadline.take() {
            around.shared.realtime.deadlines.remove(deadline);
        }
        let topics: Vec<Arc<str>> = self.places.keys().map(Arc::clone).collect();
        if ending == Ending::Left {
            around.shared.recoveries.leave(&self.who.private);
        } else {
            let lost = Lost {
                namespace: self.who.namespace.clone(),
                user: self.who.user.clone(),
                id: Arc::clone(&self.who.id),
                rooms: self.rooms(),
                begins: self.who.begins.clone(),
            };
            around.shared.recoveries.remember(&self.who.private, lost, Instant::now());
        }
        for topic in &topics {
            if let Some(parted) = self.part(around, topic, ending, None) {
                let (shared, who) = (Arc::clone(around.shared), Arc::clone(&self.who));
                let later = async move { parted.tell_nobody(&shared, &who).await };
                around.shared.realtime.spawn(later);
            }
        }
        if let Some(online) = self.online.take() {
            online.go(&self.who, around, ending == Ending::Lost);
        }
    }

    // --------------------------------------------------------------------------------- commands

    fn command(
        &mut self,
        around: &mut Around<'_>,
        asked: Asked,
        command: Arc<Command>,
    ) -> ControlFlow<CloseReason> {
        self.busy = true;
        let (who, denied) = (Arc::clone(&self.who), self.profile.denied.clone());
        around.ask(|shared| {
            Box::pin(async move {
                let payload = entrance::raw(&asked.payload);
                let Caller { claims, headers, connection_id, subject } = who.caller();
                let outcome = shared.commander.run(Call {
                    claims,
                    namespace: &who.namespace,
                    headers,
                    connection_id,
                    command: &command,
                    payload: &payload,
                    subject,
                    denied: &denied,
                });
                let outcome = outcome.await;
                Mail::Answered(who.client, asked, command.reply_event.clone(), outcome)
            })
        });
        ControlFlow::Continue(())
    }

    fn answered(
        &mut self,
        around: &mut Around<'_>,
        asked: &Asked,
        reply: Option<&str>,
        outcome: Outcome,
    ) -> ControlFlow<CloseReason> {
        match outcome {
            Outcome::Done { data, cursor } => {
                if let Some(event) = reply {
                    self.tell_text(around, event, data.get())?;
                }
                let cursor = cursor.map(|cursor| cursor.to_string());
                self.done(around, asked, Some(data.get()), cursor.as_deref())
            }
            Outcome::Refused(refused) => self.refuse(around, asked, refused),
        }
    }

    // ------------------------------------------------------------------------------------ relays

    fn relay(
        &mut self,
        around: &mut Around<'_>,
        asked: &Asked,
        relay: &Arc<Relay>,
    ) -> ControlFlow<CloseReason> {
        let topic = match relay.naming.of(&asked.payload) {
            Ok(Some(named)) => named.topic.to_shared(),
            Ok(None) => {
                let text = "The room is not named in it";
                return self.refuse(around, asked, Refused::new("VALIDATION_FAILED", text));
            }
            Err(problem) => {
                let refused = Refused::new("VALIDATION_FAILED", problem.to_string());
                return self.refuse(around, asked, refused);
            }
        };
        // Its declaration lets whoever is in the room say this there. What may be broadcast in other
        // words, as anybody, the room's policies say.
        if !self.places.contains_key(&topic) {
            let refused = Refused::new("ACCESS_DENIED", "You are not in this room");
            return self.refuse(around, asked, refused);
        }
        let told = Telling { client: self, around }.say(relay, &topic, &asked.payload);
        match told {
            Ok(()) => self.done(around, asked, None, None),
            Err(refused) => self.refuse(around, asked, refused),
        }
    }

    fn stop_relay(
        &mut self,
        around: &mut Around<'_>,
        asked: &Asked,
        relay: &Arc<Relay>,
    ) -> ControlFlow<CloseReason> {
        let named = relay.naming.of(&asked.payload);
        if let Ok(Some(named)) = named {
            let topic = named.topic.to_shared();
            Telling { client: self, around }.stop(relay, &topic, &asked.payload);
            return self.done(around, asked, None, None);
        }
        let text = "The room is not named in it";
        self.refuse(around, asked, Refused::new("VALIDATION_FAILED", text))
    }

    fn stop_relays_in(&mut self, around: &mut Around<'_>, topic: &str) {
        Telling { client: self, around }.stop_all(topic);
    }

    // -------------------------------------------------------------------------- what comes back

    pub(super) fn delivered(
        &mut self,
        around: &mut Around<'_>,
        mail: Mail,
    ) -> ControlFlow<CloseReason> {
        match mail {
            Mail::Came(_, asked, came) => {
                self.came(around, &asked, came)?;
                self.go_on(around)
            }
            Mail::Settled(_, asked, outcome) => {
                match outcome {
                    Ok(()) => self.done(around, &asked, None, None)?,
                    Err(refused) => self.refuse(around, &asked, refused)?,
                }
                self.go_on(around)
            }
            Mail::Answered(_, asked, reply, outcome) => {
                self.answered(around, &asked, reply.as_deref(), outcome)?;
                self.go_on(around)
            }
            Mail::Doubted(_, topic) => {
                self.doubted(around, &topic);
                ControlFlow::Continue(())
            }
            Mail::Renewed(_, topic, renewed) => self.renewed(around, &topic, &renewed),
            Mail::Expired(_) => self.expired(around),
            Mail::Tick(_) => {
                Telling { client: self, around }.due();
                ControlFlow::Continue(())
            }
            Mail::Admitted(..) => ControlFlow::Continue(()),
        }
    }

    fn expired(&mut self, around: &mut Around<'_>) -> ControlFlow<CloseReason> {
        let at = self.who.claims.expires_at;
        if at > SystemTime::now() {
            // The clock was set back since.
            let mailbox: Weak<Mailbox> = Arc::downgrade(around.mailbox);
            let mailbox: Weak<dyn Expires> = mailbox;
            let deadlines = &around.shared.realtime.deadlines;
            self.deadline = Some(deadlines.add(at, mailbox, self.who.client.into()));
            return ControlFlow::Continue(());
        }
        let error = json!({ "code": "TOKEN_EXPIRED", "message": "The token has expired" });
        self.tell(around, &self.error_event, &error)?;
        ControlFlow::Break(EXPIRED)
    }
}

pub(super) fn count_told(around: &mut Around<'_>, deliveries: u64) {
    *around.gathered += 1;
    metrics::counter!(telemetry::BROADCASTS).increment(1);
    metrics::counter!(telemetry::DELIVERIES).increment(deliveries);
}
