//! One client in a namespace: its events, its rooms.
//!
//! In:     events of the client, one after another; answers from the database; doubts about its rooms.
//! Out:    acknowledgements and errors; seats taken and given up, and who is told of that; what it
//!         relays.
//! Never:  two events at once; an event that its profile does not declare; an error without a code.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Arc, Weak};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use hashbrown::HashMap;
use serde_json::{Map, Value, json};

use super::connection::{Around, Mail, Mailbox, Renewed};
use super::entrance::{self, Admitted, Came, Seat, Who};
use super::online::{self, Online};
use super::packet::{self, Event};
use super::recovery::Lost;
use super::relays::Relays;
use super::telling::{Telling, Told, said};
use super::{GRACE, SocketIo};
use crate::auth::access::{Asker, ReadGrants};
use crate::command::{Call, Caller, Given, Outcome, Refused};
use crate::hub::outbox::{CloseReason, DirtyList};
use crate::hub::{Comeback, Occupancy, RoomName, Subscriber};
use crate::profile::{Command, Function, Named, Payload, Presence, Profile, Relay, Room, Scope};
use crate::session::UserPlace;
use crate::telemetry;
use crate::transport::deadlines::{DeadlineId, Expires};

/// Events that wait for the one before them.
const WAITING_MAX: usize = 1024;

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

/// A seat that is taken.
pub(super) struct Place {
    pub(super) room: Option<Arc<Room>>,
    pub(super) named: Named,
    pub(super) subscriber: Arc<Subscriber>,
    pub(super) occupancy: Occupancy,
    pub(super) member: Option<Value>,
    grants: ReadGrants,
    pub(super) asker: Asker,
    /// What it may hear is being looked at; and whether once more after that.
    renewing: Option<bool>,
    /// What it joined with.
    payload: Value,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.asker.leave();
    }
}

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
    _user: Option<UserPlace>,
}

impl Client {
    /// A client that was let in: it is told so, and then what it may hear.
    pub(super) fn begin(
        admitted: Admitted,
        around: &mut Around<'_>,
    ) -> (Self, ControlFlow<CloseReason>) {
        let Admitted { who, profile, seats, hearers, _user } = admitted;
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
            _user,
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
        if !self.is_in_time(around) || self.waiting.len() >= WAITING_MAX {
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
            self.relay(around, asked, &relay)
        } else if let Some(relay) = profile.relay_stopped_by(event) {
            let relay = Arc::clone(relay);
            self.stop_relay(around, asked, &relay)
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
        let shown = if presence.heartbeat_event.as_deref() == Some(&*asked.event) {
            online.beat(&self.who, presence, around);
            Ok(())
        } else {
            online.show(&self.who, presence, &asked.payload, around)
        };
        match shown {
            Ok(()) => self.done(around, &asked, None, None),
            Err(refused) => self.refuse(around, &asked, refused),
        }
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
            _ => Map::new(),
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

    // --------------------------------------------------------------------------------- its rooms

    fn join(
        &mut self,
        around: &mut Around<'_>,
        asked: Asked,
        rooms: Vec<Arc<Room>>,
    ) -> ControlFlow<CloseReason> {
        let realtime = &around.shared.realtime;
        let (limits, now) = (&realtime.limits, SystemTime::now());
        let is_crowded = self.places.len() + rooms.len() > limits.channels_max;
        if is_crowded || !realtime.rates.admit_join(limits.joins_per_second_max, now) {
            let text = if is_crowded { "Too many rooms" } else { "Too many joins: slow down" };
            return self.refuse(around, &asked, Refused::new("RATE_LIMITED", text));
        }
        self.busy = true;
        let there: Vec<Arc<str>> = self.places.keys().map(Arc::clone).collect();
        let (who, mailbox) = (Arc::clone(&self.who), Arc::clone(around.mailbox));
        let profile = Arc::clone(&self.profile);
        around.ask(|shared| {
            Box::pin(async move {
                let Asked { payload, .. } = &asked;
                let whose = (&who, &*profile);
                let came = entrance::join(&shared, whose, &rooms, &there, payload, &mailbox).await;
                Mail::Came(who.client, asked, came)
            })
        });
        ControlFlow::Continue(())
    }

    fn came(
        &mut self,
        around: &mut Around<'_>,
        asked: &Asked,
        came: Vec<Came>,
    ) -> ControlFlow<CloseReason> {
        let mut data = None;
        let mut refusals = Vec::new();
        let mut joined = false;
        for one in came {
            let topic = match one {
                Came::New(seat) => {
                    let topic = seat.named.topic.to_shared();
                    match self.seat(around, *seat, &asked.payload) {
                        Ok(told) => data = data.or(told),
                        Err(Some(refused)) => {
                            refusals.push(refused);
                            continue;
                        }
                        Err(None) => return ControlFlow::Break(CloseReason::Gone),
                    }
                    topic
                }
                Came::Again(topic) => {
                    let told = self.told_of_joining(around, &topic, &asked.payload);
                    if let Some((event, payload)) = told {
                        self.tell_text(around, &event, &payload)?;
                        data = data.or(Some(payload));
                    }
                    topic
                }
                Came::Refused(refused) => {
                    refusals.push(refused);
                    continue;
                }
            };
            joined |= self.places.contains_key(&topic);
        }
        let mut refusals = refusals.into_iter();
        if joined {
            let cursor = around.shared.realtime.hub.read_to().to_string();
            self.done(around, asked, data.as_deref(), Some(&cursor))?;
        } else if let Some(first) = refusals.next() {
            self.refuse(around, asked, first)?;
        }
        for refused in refusals {
            let (event, payload) = (asked.event.clone(), asked.payload.clone());
            let unanswered = Asked { event, payload, ack: None, ..*asked };
            self.refuse(around, &unanswered, refused)?;
        }
        ControlFlow::Continue(())
    }

    /// Takes a seat that was asked for, and says so to whoever is to know; what it is answered.
    ///
    /// # Errors
    /// There is no room for it; or nobody to tell.
    fn seat(
        &mut self,
        around: &mut Around<'_>,
        seat: Seat,
        payload: &Value,
    ) -> Result<Option<String>, Option<Refused>> {
        let topic = seat.named.topic.to_shared();
        self.sit_down_asked(around, seat, Some(payload)).map_err(|refused| {
            metrics::counter!(telemetry::JOINS, telemetry::RESULT => "error").increment(1);
            refused
        })?;
        let told = self.told_of_joining(around, &topic, payload);
        Ok(told.map(|(_, payload)| payload))
    }

    /// Takes a seat without a word to the client.
    fn sit_down(&mut self, around: &mut Around<'_>, seat: Seat) -> Result<(), Option<Refused>> {
        self.sit_down_asked(around, seat, None)
    }

    fn sit_down_asked(
        &mut self,
        around: &mut Around<'_>,
        mut seat: Seat,
        asked: Option<&Value>,
    ) -> Result<(), Option<Refused>> {
        let topic = seat.named.topic.to_shared();
        if self.places.contains_key(&topic) {
            return Ok(());
        }
        let Some(entered) = seat.joined.entered.take() else { return Err(None) };
        let resume = seat.joined.resume.take();
        let room = seat.room.take();
        let place = Place {
            room: room.clone(),
            named: Named {
                topic: seat.named.topic.clone(),
                values: std::mem::take(&mut seat.named.values),
            },
            subscriber: Arc::clone(&seat.subscriber),
            occupancy: entered.occupancy,
            member: seat.member.take(),
            grants: entered.grants,
            asker: std::mem::take(&mut seat.asker),
            renewing: None,
            payload: std::mem::take(&mut seat.payload),
        };
        let mut first = false;
        if let Some(room) = &room {
            let shown = self.scoped(&place, &Value::Null, |scope| room.user_payload.render(scope));
            let capacity = room.capacity.and_then(|most| usize::try_from(most).ok());
            let list = self.list(&topic);
            let entered =
                around.shared.rosters.enter(&list, self.who.name(), shown.into(), capacity);
            first = entered.map_err(|_full| {
                let text = "There is no room for another user here";
                Some(entrance::about(
                    Refused::new("ROOM_FULL", text),
                    place.named.topic.sub_topic(),
                ))
            })?;
        }
        metrics::counter!(telemetry::JOINS, telemetry::RESULT => "ok").increment(1);
        metrics::gauge!(telemetry::CHANNELS).increment(1);
        let subscriber = Arc::clone(&place.subscriber);
        self.places.insert(Arc::clone(&topic), place);
        // The answer goes out before what is held for it.
        if let Some(payload) = asked
            && let Some((event, told)) = self.told_of_joining(around, &topic, payload)
            && self.tell_text(around, &event, &told).is_break()
        {
            return Err(None);
        }
        subscriber.go_live();
        if let Some(place) = self.places.get(&topic) {
            if let Some(resume) = resume {
                let rooms = [&place.occupancy];
                let channel = Comeback::new(&place.subscriber, None, rooms);
                around.shared.realtime.joiner.resume(channel, resume);
            }
            if let Some(room) = room.filter(|_| first)
                && let Some(event) = &room.user_joined
            {
                let null = Value::Null;
                let payload = asked.unwrap_or(&null);
                let text =
                    self.scoped(place, payload, |scope| room.user_joined_payload.render(scope));
                let told = said(event, text);
                let count = place.occupancy.broadcast(&told, room.announce_self, around.dirty);
                count_told(around, count);
            }
        }
        // It may have been doubted before it could be told.
        if self.places.get(&topic).is_some_and(|place| place.occupancy.doubts() > 0) {
            self.doubted(around, &topic);
        }
        Ok(())
    }

    /// What who joined is told, and by which event.
    fn told_of_joining(
        &self,
        around: &Around<'_>,
        topic: &str,
        payload: &Value,
    ) -> Option<(Box<str>, String)> {
        let place = self.places.get(topic)?;
        let room = place.room.as_ref()?;
        let (event, told) = (room.joined_event.as_ref()?, room.joined_payload.as_ref());
        let empty = Payload::empty();
        let told = told.unwrap_or(&empty);
        let users = around.shared.rosters.users(&self.list(topic));
        let text = self
            .scoped(place, payload, |scope| told.render(&Scope { users: Some(&users), ..*scope }));
        Some((event.clone(), text))
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

    /// The list of those who are in a room.
    fn list(&self, topic: &str) -> String {
        format!("{}\0room\0{topic}", self.who.namespace)
    }

    fn leave(
        &mut self,
        around: &mut Around<'_>,
        asked: Asked,
        rooms: &[Arc<Room>],
    ) -> ControlFlow<CloseReason> {
        let mut topics = Vec::new();
        for room in rooms {
            match room.topic(&asked.payload) {
                Ok(Some(named)) => topics.push(named.topic.to_shared()),
                Ok(None) => topics.extend(self.joined_with(room, &asked.payload)),
                Err(problem) => {
                    let refused = Refused::new("VALIDATION_FAILED", problem.to_string());
                    return self.refuse(around, &asked, refused);
                }
            }
        }
        if topics.is_empty() {
            let text = "None of the rooms of this event is named in it";
            return self.refuse(around, &asked, Refused::new("VALIDATION_FAILED", text));
        }
        let parted: Vec<Parted> = topics
            .iter()
            .filter_map(|topic| self.part(around, topic, Ending::Left, Some(&asked.payload)))
            .collect();
        if parted.is_empty() {
            return self.done(around, &asked, None, None);
        }
        self.busy = true;
        let who = Arc::clone(&self.who);
        around.ask(|shared| {
            Box::pin(async move {
                let mut outcome = Ok(());
                for parted in parted {
                    outcome = outcome.and(parted.tell(&shared, &who).await);
                }
                Mail::Left(who.client, asked, outcome)
            })
        });
        ControlFlow::Continue(())
    }

    /// Its rooms of this kind that it joined with what a payload has.
    fn joined_with(&self, room: &Arc<Room>, payload: &Value) -> Vec<Arc<str>> {
        let is_one = |place: &&Place| {
            let same = place.room.as_ref().is_some_and(|own| own.join_event == room.join_event);
            let (Value::Object(asked), Value::Object(joined)) = (payload, &place.payload) else {
                return false;
            };
            let mut common =
                asked.iter().filter_map(|(name, value)| Some((value, joined.get(name)?)));
            let first = common.next();
            same && first.is_some_and(|(a, b)| a == b) && common.all(|(a, b)| a == b)
        };
        self.places.values().filter(is_one).map(|place| place.named.topic.to_shared()).collect()
    }

    /// Gives up a seat, and says so to whoever is to know. What is to be done besides, if it was the
    /// user's last one; of a connection that was lost, that is done later.
    fn part(
        &mut self,
        around: &mut Around<'_>,
        topic: &Arc<str>,
        ending: Ending,
        payload: Option<&Value>,
    ) -> Option<Parted> {
        if !self.places.contains_key(topic) {
            return None;
        }
        self.stop_relays_in(around, topic);
        let mut place = self.places.remove(topic)?;
        metrics::gauge!(telemetry::CHANNELS).decrement(1);
        let room = place.room.clone()?;
        let told = room.user_left.as_ref().map(|event| {
            let text =
                self.scoped(&place, &Value::Null, |scope| room.user_left_payload.render(scope));
            said(event, text)
        });
        let mut written = std::mem::take(&mut place.payload);
        drop(place);
        if let (Value::Object(written), Some(Value::Object(more))) = (&mut written, payload) {
            written.extend(more.clone());
        }
        let parted = room.on_leave.clone().filter(|_| ending != Ending::Evicted);
        let parted = parted.map(|function| Parted { function, payload: written });
        let (list, user) = (self.list(topic), Box::<str>::from(self.who.name()));
        let name = RoomName { topic: Arc::clone(topic), private: true };
        if ending == Ending::Lost {
            let (shared, who) = (Arc::clone(around.shared), Arc::clone(&self.who));
            let later = async move {
                tokio::time::sleep(GRACE).await;
                if !shared.rosters.leave(&list, &user) {
                    return;
                }
                let mut dirty = DirtyList::default();
                if let Some(told) = &told {
                    let count = shared.realtime.hub.broadcast(&name, told, &mut dirty);
                    metrics::counter!(telemetry::DELIVERIES).increment(count);
                }
                dirty.flush_in_turns().await;
                if let Some(parted) = parted {
                    parted.tell_nobody(&shared, &who).await;
                }
            };
            around.shared.realtime.spawn(later);
            return None;
        }
        if !around.shared.rosters.leave(&list, &user) {
            return None;
        }
        if let Some(told) = &told {
            let count = around.shared.realtime.hub.broadcast(&name, told, around.dirty);
            count_told(around, count);
        }
        parted
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
                topics: topics.clone(),
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
        asked: Asked,
        relay: &Arc<Relay>,
    ) -> ControlFlow<CloseReason> {
        let topic = match relay.naming.of(&asked.payload) {
            Ok(Some(named)) => named.topic.to_shared(),
            Ok(None) => {
                let text = "The room is not named in it";
                return self.refuse(around, &asked, Refused::new("VALIDATION_FAILED", text));
            }
            Err(problem) => {
                let refused = Refused::new("VALIDATION_FAILED", problem.to_string());
                return self.refuse(around, &asked, refused);
            }
        };
        // Its declaration lets whoever is in the room say this there. What may be broadcast in other
        // words, as anybody, the room's policies say.
        if !self.places.contains_key(&topic) {
            let refused = Refused::new("ACCESS_DENIED", "You are not in this room");
            return self.refuse(around, &asked, refused);
        }
        let told = Telling { client: self, around }.say(relay, &topic, &asked.payload);
        match told {
            Ok(()) => self.done(around, &asked, None, None),
            Err(refused) => self.refuse(around, &asked, refused),
        }
    }

    fn stop_relay(
        &mut self,
        around: &mut Around<'_>,
        asked: Asked,
        relay: &Arc<Relay>,
    ) -> ControlFlow<CloseReason> {
        let named = relay.naming.of(&asked.payload);
        if let Ok(Some(named)) = named {
            let topic = named.topic.to_shared();
            Telling { client: self, around }.stop(relay, &topic, &asked.payload);
            return self.done(around, &asked, None, None);
        }
        let text = "The room is not named in it";
        self.refuse(around, &asked, Refused::new("VALIDATION_FAILED", text))
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
            Mail::Left(_, asked, outcome) => {
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
            Mail::Renewed(_, topic, renewed) => self.renewed(around, &topic, renewed),
            Mail::Expired(_) => self.expired(around),
            Mail::Tick(_) => {
                Telling { client: self, around }.due();
                ControlFlow::Continue(())
            }
            Mail::Admitted(..) => ControlFlow::Continue(()),
        }
    }

    /// What it may hear in a room is to be found out anew.
    fn doubted(&mut self, around: &mut Around<'_>, topic: &Arc<str>) {
        let Some(place) = self.places.get_mut(topic) else { return };
        if let Some(again) = &mut place.renewing {
            *again = true;
            return;
        }
        place.renewing = Some(false);
        let request = entrance::request(&self.who, topic, &place.subscriber, &place.asker);
        let (before, doubts) = (place.grants, place.occupancy.doubts());
        let (client, topic) = (self.who.client, Arc::clone(topic));
        around.ask(|shared| {
            Box::pin(async move {
                let outcome = shared.realtime.joiner.renew(&request, before).await;
                Mail::Renewed(client, topic, Renewed { doubts, outcome })
            })
        });
    }

    fn renewed(
        &mut self,
        around: &mut Around<'_>,
        topic: &Arc<str>,
        renewed: Renewed,
    ) -> ControlFlow<CloseReason> {
        let Some(place) = self.places.get_mut(topic) else { return ControlFlow::Continue(()) };
        let again = place.renewing.take().unwrap_or_default();
        match renewed.outcome {
            _ if again => self.doubted(around, topic),
            Ok(grants) if grants.broadcast => {
                place.grants = grants;
                let expires_at = self.who.claims.expires_at;
                place.occupancy.renew(true, expires_at, renewed.doubts, around.dirty);
            }
            Ok(_) | Err(_) => {
                let name = topic.strip_prefix("realtime:").unwrap_or(topic);
                let context = json!({ "topic": name });
                let error = json!({
                    "code": "ACCESS_REVOKED",
                    "message": "You may no longer be in this room",
                    "context": context,
                });
                self.part(around, topic, Ending::Evicted, None);
                self.tell(around, &self.error_event, &error)?;
            }
        }
        ControlFlow::Continue(())
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

/// A room that a user has left with his last connection.
struct Parted {
    function: Function,
    payload: Value,
}

impl Parted {
    /// Calls the function that is to know.
    async fn tell(&self, shared: &SocketIo, who: &Who) -> Result<(), Refused> {
        let payload = entrance::raw(&self.payload);
        let asked = shared.commander.ask(who.caller(), &self.function, Given::Payload(&payload));
        asked.await.map(drop)
    }

    /// The same, where nobody waits for what becomes of it.
    async fn tell_nobody(&self, shared: &SocketIo, who: &Who) {
        if let Err(refused) = self.tell(shared, who).await {
            let (code, namespace) = (&*refused.code, &*who.namespace);
            tracing::warn!(code, namespace, "what is to be done when a room is left was not");
        }
    }
}
