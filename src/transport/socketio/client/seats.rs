//! The rooms of a client: seats taken and given up.
//!
//! In:     events that join or leave; seats that the database granted; doubts about them.
//! Out:    what the client is answered; who comes and goes, told to the others; functions that are to
//!         know when a user has left.
//! Never:  a frame before the answer to the join; a seat beyond a room's capacity.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::{Asked, Client, Ending, count_told};
use crate::auth::access::{Asker, ReadGrants};
use crate::command::{Given, Refused};
use crate::hub::outbox::{CloseReason, DirtyList};
use crate::hub::{Comeback, Occupancy, RoomName, Subscriber};
use crate::profile::{Function, Named, Payload, Room, Scope};
use crate::telemetry;
use crate::transport::socketio::connection::{Around, Mail, Renewed};
use crate::transport::socketio::entrance::{self, Came, Seat, Who};
use crate::transport::socketio::telling::said;
use crate::transport::socketio::{GRACE, SocketIo};

/// A seat that is taken.
pub(in crate::transport::socketio) struct Place {
    pub(in crate::transport::socketio) room: Option<Arc<Room>>,
    pub(in crate::transport::socketio) named: Named,
    subscriber: Arc<Subscriber>,
    pub(in crate::transport::socketio) occupancy: Occupancy,
    pub(in crate::transport::socketio) member: Option<Value>,
    grants: ReadGrants,
    asker: Asker,
    /// What it may hear is being looked at; and whether once more after that.
    renewing: Option<bool>,
    /// What it joined with.
    pub(super) payload: Value,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.asker.leave();
    }
}

impl Client {
    pub(super) fn join(
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

    pub(super) fn came(
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
        self.sit_down_asked(around, seat, Some(payload)).inspect_err(|_| {
            metrics::counter!(telemetry::JOINS, telemetry::RESULT => "error").increment(1);
        })?;
        let told = self.told_of_joining(around, &topic, payload);
        Ok(told.map(|(_, payload)| payload))
    }

    /// Takes a seat without a word to the client.
    pub(super) fn sit_down(
        &mut self,
        around: &mut Around<'_>,
        seat: Seat,
    ) -> Result<(), Option<Refused>> {
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

    /// The list of those who are in a room.
    fn list(&self, topic: &str) -> String {
        format!("{}\0room\0{topic}", self.who.namespace)
    }

    pub(super) fn leave(
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
                Mail::Settled(who.client, asked, outcome)
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
    pub(super) fn part(
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

    /// What it may hear in a room is to be found out anew.
    pub(super) fn doubted(&mut self, around: &mut Around<'_>, topic: &Arc<str>) {
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

    pub(super) fn renewed(
        &mut self,
        around: &mut Around<'_>,
        topic: &Arc<str>,
        renewed: &Renewed,
    ) -> ControlFlow<CloseReason> {
        let Some(place) = self.places.get_mut(topic) else { return ControlFlow::Continue(()) };
        let again = place.renewing.take().unwrap_or_default();
        match &renewed.outcome {
            _ if again => self.doubted(around, topic),
            Ok(grants) if grants.broadcast => {
                place.grants = *grants;
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
}

/// A room that a user has left with his last connection.
pub(super) struct Parted {
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
    pub(super) async fn tell_nobody(&self, shared: &SocketIo, who: &Who) {
        if let Err(refused) = self.tell(shared, who).await {
            let (code, namespace) = (&*refused.code, &*who.namespace);
            tracing::warn!(code, namespace, "what is to be done when a room is left was not");
        }
    }
}
