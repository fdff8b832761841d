//! Who is online: by user, told to those whom his profile names.
//!
//! In:     clients that come and go; what they say of themselves; heartbeats.
//! Out:    that a user is online, and how, once; that he is offline, after his last connection; calls of
//!         the function that writes it down.
//! Never:  a word at a heartbeat; a write for each of them.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::client::count_told;
use super::connection::Around;
use super::entrance::{Who, raw};
use super::telling::said;
use super::{GRACE, SocketIo};
use crate::command::{Given, Refused};
use crate::hub::RoomName;
use crate::hub::outbox::DirtyList;
use crate::profile::{Function, Presence, Scope};

/// A client whose user is online.
pub(super) struct Online {
    presence: Arc<Presence>,
    hearers: Arc<[RoomName]>,
    written_at: Instant,
}

/// Whether an event is about who is online.
pub(super) fn is_of(presence: &Presence, event: &str) -> bool {
    let events = [&presence.status_event, &presence.heartbeat_event];
    events.into_iter().flatten().any(|known| **known == *event)
}

fn list(who: &Who) -> String {
    format!("{}\0online", who.namespace)
}

impl Online {
    /// A client came.
    pub(super) fn come(
        who: &Arc<Who>,
        presence: &Arc<Presence>,
        hearers: Vec<RoomName>,
        around: &mut Around<'_>,
    ) -> Self {
        let online = Self {
            presence: Arc::clone(presence),
            hearers: hearers.into(),
            written_at: Instant::now(),
        };
        let status = presence.statuses.first().map_or("online", |status| &**status);
        // Whoever it is, he is counted; nobody is refused.
        let shown = json!(status).to_string().into();
        if around.shared.rosters.enter(&list(who), who.name(), shown, None) == Ok(true) {
            online.tell(who, status, &Value::Null, around);
            online.write(who, status, &Value::Null, around.shared);
        }
        online
    }

    /// What a user says of himself.
    ///
    /// Others are told; what is to be written down is given back.
    ///
    /// # Errors
    /// It is none of what he may be.
    pub(super) fn show(
        &mut self,
        who: &Arc<Who>,
        presence: &Arc<Presence>,
        payload: &Value,
        around: &mut Around<'_>,
    ) -> Result<Option<Value>, Refused> {
        self.presence = Arc::clone(presence);
        let status = payload.get(&*presence.status_member).and_then(Value::as_str);
        let known = |status: &&str| presence.statuses.iter().any(|known| **known == **status);
        let Some(status) = status.filter(known) else {
            let text = format!("{} is not valid", presence.status_member);
            return Err(Refused::new("VALIDATION_FAILED", text));
        };
        let shown = json!(status).to_string().into();
        around.shared.rosters.show(&list(who), who.name(), shown);
        self.tell(who, status, payload, around);
        self.written_at = Instant::now();
        Ok(Some(written(status, payload)))
    }

    /// A user still is there; what is to be written down, if it is time for that.
    pub(super) fn beat(&mut self, presence: &Arc<Presence>) -> Option<Value> {
        self.presence = Arc::clone(presence);
        let now = Instant::now();
        if now < self.written_at + presence.write_interval {
            return None;
        }
        self.written_at = now;
        Some(json!({ "heartbeat": true }))
    }

    /// A client went.
    pub(super) fn go(self, who: &Arc<Who>, around: &mut Around<'_>, is_lost: bool) {
        let (shared, who) = (Arc::clone(around.shared), Arc::clone(who));
        if !is_lost {
            if let Some(gone) = self.gone(&who, &shared) {
                let count = shared.realtime.hub.broadcast_to(&self.hearers, &gone, around.dirty);
                count_told(around, count);
            }
            return;
        }
        let realtime = Arc::clone(&shared.realtime);
        realtime.spawn(async move {
            tokio::time::sleep(GRACE).await;
            let mut dirty = DirtyList::default();
            if let Some(gone) = self.gone(&who, &shared) {
                shared.realtime.hub.broadcast_to(&self.hearers, &gone, &mut dirty);
            }
            dirty.flush_in_turns().await;
        });
    }

    /// One connection less; what is told if it was the last.
    fn gone(
        &self,
        who: &Arc<Who>,
        shared: &Arc<SocketIo>,
    ) -> Option<crate::event::broadcast::Broadcast> {
        if !shared.rosters.leave(&list(who), who.name()) {
            return None;
        }
        self.write(who, "offline", &Value::Null, shared);
        let event = self.presence.offline.as_ref()?;
        let scope = who.scope(&Value::Null, &who.member);
        let scope = Scope { status: Some("offline"), ..scope };
        Some(said(event, self.presence.offline_payload.render(&scope)))
    }

    fn tell(&self, who: &Who, status: &str, payload: &Value, around: &mut Around<'_>) {
        let presence = &self.presence;
        let is_offline = status == "offline" && presence.offline.is_some();
        let (event, written) = if is_offline {
            (&presence.offline, &presence.offline_payload)
        } else {
            (&presence.online, &presence.online_payload)
        };
        let Some(event) = event else { return };
        let scope = who.scope(payload, &who.member);
        let what = said(event, written.render(&Scope { status: Some(status), ..scope }));
        let hub = &around.shared.realtime.hub;
        let count = hub.broadcast_to(&self.hearers, &what, around.dirty);
        count_told(around, count);
    }

    fn write(&self, who: &Arc<Who>, status: &str, payload: &Value, shared: &Arc<SocketIo>) {
        let Some(function) = &self.presence.write else { return };
        let written = written(status, payload);
        write(Arc::clone(shared), Arc::clone(who), function.clone(), written);
    }
}

/// What is written down of how a user is.
fn written(status: &str, payload: &Value) -> Value {
    let mut written = match payload {
        Value::Object(payload) => payload.clone(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            serde_json::Map::new()
        }
    };
    written.insert("status".into(), status.into());
    written.into()
}

/// Writes down how a user is. What becomes of it is in the log: it is his state, not his request.
fn write(shared: Arc<SocketIo>, who: Arc<Who>, function: Function, payload: Value) {
    let realtime = Arc::clone(&shared.realtime);
    realtime.spawn(async move {
        let payload = raw(&payload);
        let asked = shared.commander.ask(who.caller(), &function, Given::Payload(&payload));
        if let Err(refused) = asked.await {
            tracing::warn!(
                code = &*refused.code,
                namespace = &*who.namespace,
                "presence was not written"
            );
        }
    });
}
