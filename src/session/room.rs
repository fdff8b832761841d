//! What a client says to its room: broadcasts, and its presence.
//!
//! In:     pushes of a joined or joining channel; whether its claims may write there.
//! Out:    work for the hub, and the answers to the pushes, in their order.
//! Never:  a push passed on before the claims in force were found to allow it.
//! Source: spec of the realtime protocol, sections 4.1, 4.2, 5.3 and 6.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::message::{Message, Payload, RawRef, UserBroadcast};
use super::{ChannelId, Output, Refusal, Session, Sight, UNMATCHED};
use crate::event::broadcast::{Broadcast, Encoding, Meta, UserEvent};
use crate::hub::TrackError;

/// What surrounds a user's payload in a text frame is not counted, up to this.
const ENVELOPE_BYTES: usize = 500;

/// Pushes of one channel that may wait for its join, or for the check of its right to write.
const WAITING_MAX: usize = 100;

/// Bytes of all waiting pushes of a connection. One that is larger still may wait alone.
const WAITING_BYTES_MAX: usize = 1024 * 1024;

/// What claims allow on a private topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grants {
    /// Broadcasts.
    pub broadcast: bool,
    /// Presence.
    pub presence: bool,
}

/// A channel's dealings with its room. Made with its first push; most channels only listen.
#[derive(Debug, Default)]
pub(super) struct Talk {
    /// What the claims in force may write, once that is known.
    grants: Option<Grants>,
    /// A check is under way, perhaps of older claims. The next one waits for it.
    asking: bool,
    /// Whether presence may be read is part of that check.
    seeking: bool,
    /// Counts the claims; an answer about older ones is none.
    turn: u32,
    /// The leave that waits for the pushes before it.
    leaving: Option<Leave>,
    waiting: VecDeque<(Option<RawRef>, Said)>,
    waiting_bytes: usize,
    presence: Window,
}

/// A leave, to be answered.
#[derive(Debug)]
struct Leave {
    reference: Option<RawRef>,
}

/// A push that was understood.
#[derive(Debug)]
enum Said {
    Broadcast(Broadcast),
    Track(Box<RawValue>),
    Untrack,
}

impl Said {
    fn bytes(&self) -> usize {
        match self {
            Self::Broadcast(Broadcast::Whole(data)) => data.len(),
            Self::Broadcast(Broadcast::User(user)) => user.event.len() + user.data.len(),
            Self::Track(meta) => meta.get().len(),
            Self::Untrack => 0,
        }
    }
}

/// Events within a fixed stretch of time.
#[derive(Debug, Default, Clone, Copy)]
struct Window {
    began: Option<SystemTime>,
    events: usize,
}

impl Window {
    /// Counts one; false when there were `most` in this stretch already.
    fn admit(&mut self, most: usize, length: Duration, now: SystemTime) -> bool {
        let fresh = self.began.is_none_or(|began| {
            // A clock that was set back begins a new stretch.
            now.duration_since(began).map_or(true, |since| since >= length)
        });
        if fresh {
            *self = Self { began: Some(now), events: 0 };
        }
        self.events = self.events.saturating_add(1);
        self.events <= most
    }
}

/// Why a push is refused, whatever its channel.
enum Unusable {
    /// In words.
    Because(&'static str),
    /// The reply has no content.
    Silently,
    /// The reply's response is the bare text that clients know.
    TooLarge,
    /// There is nothing to do.
    Nothing,
}

impl Session {
    /// A `broadcast` push.
    pub(super) fn broadcast(
        &mut self,
        at: usize,
        reference: Option<RawRef>,
        payload: Payload<'_>,
        now: SystemTime,
        outputs: &mut Vec<Output>,
    ) {
        let acknowledge = self.channels[at].acknowledge;
        match broadcast(payload, self.limits.payload_bytes_max) {
            Ok(broadcast) if self.admit_event(now) => {
                self.say(at, reference, Said::Broadcast(broadcast), outputs);
            }
            Ok(_) if acknowledge => {
                let channel = &self.channels[at];
                outputs.push(channel.refuse(reference, "Too many messages per second"));
            }
            Err(Unusable::TooLarge) if acknowledge => {
                let channel = &self.channels[at];
                let topic = channel.topic.to_shared();
                let join_ref = channel.join_ref.clone();
                let reply =
                    Message::error(join_ref, reference, topic, r#""payload_size_exceeded""#);
                outputs.push(Output::Send(reply));
            }
            Err(Unusable::Because(reason)) => {
                outputs.push(self.channels[at].refuse(reference, reason));
            }
            Ok(_) | Err(Unusable::TooLarge | Unusable::Silently | Unusable::Nothing) => {}
        }
    }

    /// Whether one more push is within what this connection, and all of them, may send.
    fn admit_event(&mut self, now: SystemTime) -> bool {
        self.events.admit(self.limits.connection_events_per_second_max, now)
            && self.rates.events.admit(self.limits.events_per_second_max, now)
    }

    /// A `presence` push.
    pub(super) fn presence(
        &mut self,
        at: usize,
        reference: Option<RawRef>,
        payload: Payload<'_>,
        now: SystemTime,
        outputs: &mut Vec<Output>,
    ) {
        let said = match presence(payload) {
            Ok(said) => said,
            Err(problem) => {
                let channel = &self.channels[at];
                outputs.push(match problem {
                    Unusable::Because(reason) => channel.refuse(reference, reason),
                    Unusable::Nothing => Output::Send(channel.done(reference)),
                    Unusable::Silently | Unusable::TooLarge => channel.decline(reference),
                });
                return;
            }
        };
        if !self.admit_event(now) {
            outputs.push(self.channels[at].refuse(reference, "Too many messages per second"));
            return;
        }
        let limits = self.limits;
        let (most, length) = (limits.presence_events_max, limits.presence_window);
        if !self.channels[at].talk().presence.admit(most, length, now) {
            let refusal = Refusal::Limit(
                "ClientPresenceRateLimitReached",
                "Client presence rate limit exceeded".into(),
            );
            self.shut_down(at, &refusal, outputs);
            return;
        }
        self.say(at, reference, said, outputs);
    }

    /// Does what was said, or keeps it until it is known whether it may be done.
    fn say(&mut self, at: usize, reference: Option<RawRef>, said: Said, outputs: &mut Vec<Output>) {
        let channel = &mut self.channels[at];
        let joining = channel.joining.is_some();
        if !joining && !channel.private {
            outputs.extend(channel.act(reference, said));
            return;
        }
        let talk = channel.talk();
        if talk.leaving.is_some() {
            outputs.push(channel.refuse(reference, UNMATCHED));
            return;
        }
        if !joining
            && talk.waiting.is_empty()
            && let Some(grants) = talk.grants
            && !channel.must_seek(grants, &said)
        {
            outputs.extend(channel.act_if(grants, reference, said));
            return;
        }
        let bytes = said.bytes();
        let waiting: usize = self.channels.iter().map(super::Channel::waiting_bytes).sum();
        let channel = &mut self.channels[at];
        let talk = channel.talk();
        let full =
            talk.waiting.len() >= WAITING_MAX || waiting > 0 && waiting + bytes > WAITING_BYTES_MAX;
        if full {
            let reason = "Too many messages wait for this channel";
            outputs.push(channel.refuse(reference, reason));
            return;
        }
        talk.waiting_bytes += bytes;
        talk.waiting.push_back((reference, said));
        if !joining {
            self.ask(at, outputs);
        }
    }

    /// Asks whether the claims may write, unless that is under way.
    fn ask(&mut self, at: usize, outputs: &mut Vec<Output>) {
        let channel = &mut self.channels[at];
        let talk = channel.talk.get_or_insert_default();
        if !std::mem::replace(&mut talk.asking, true) {
            let tracks = talk.waiting.iter().any(|(_, said)| matches!(said, Said::Track(_)));
            talk.seeking = tracks && channel.sight == Sight::Unasked;
            let (turn, sees) = (talk.turn, talk.seeking);
            let claims = std::sync::Arc::clone(&channel.claims);
            outputs.push(Output::CheckWrite { channel: channel.id, claims, turn, sees });
        }
    }

    /// The channel has joined: what it said before may be done now.
    pub(super) fn begin_talk(&mut self, at: usize, outputs: &mut Vec<Output>) {
        let channel = &mut self.channels[at];
        let private = channel.private;
        let Some(talk) = channel.talk.as_mut().filter(|talk| !talk.waiting.is_empty()) else {
            return;
        };
        if private {
            self.ask(at, outputs);
            return;
        }
        talk.waiting_bytes = 0;
        for (reference, said) in std::mem::take(&mut talk.waiting) {
            outputs.extend(channel.act(reference, said));
        }
    }

    /// The claims changed: what they may write is not known any more.
    pub(super) fn forget_grants(&mut self, at: usize, outputs: &mut Vec<Output>) {
        let joining = self.channels[at].joining.is_some();
        let Some(talk) = &mut self.channels[at].talk else { return };
        talk.turn = talk.turn.wrapping_add(1);
        talk.grants = None;
        if !joining && !talk.waiting.is_empty() {
            self.ask(at, outputs);
        }
    }

    /// What the claims of that turn may write; none when that could not be found out.
    pub(super) fn may_write(
        &mut self,
        id: ChannelId,
        turn: u32,
        grants: Option<Grants>,
        outputs: &mut Vec<Output>,
    ) {
        let Some(at) = self.position(id) else { return };
        let channel = &mut self.channels[at];
        let Some(talk) = &mut channel.talk else { return };
        talk.asking = false;
        let sought = std::mem::take(&mut talk.seeking);
        if talk.turn != turn {
            if !talk.waiting.is_empty() {
                self.ask(at, outputs);
            }
            return;
        }
        talk.grants = grants;
        let grants = grants.unwrap_or(Grants { broadcast: false, presence: false });
        let mut waiting = std::mem::take(&mut talk.waiting);
        // Who may not show itself is shown nobody: that is for the claims that let it.
        if sought && grants.presence {
            channel.sight = Sight::Asked;
        }
        while let Some((reference, said)) = waiting.pop_front() {
            if channel.must_seek(grants, &said) {
                // It was said after that check began.
                waiting.push_front((reference, said));
                break;
            }
            outputs.extend(channel.act_if(grants, reference, said));
        }
        let talk = channel.talk();
        talk.waiting_bytes = waiting.iter().map(|(_, said)| said.bytes()).sum();
        talk.waiting = waiting;
        if !talk.waiting.is_empty() {
            self.ask(at, outputs);
        } else if let Some(Leave { reference }) = talk.leaving.take() {
            self.end(at, reference, outputs);
        }
    }

    /// What became of [`Output::Track`].
    pub(super) fn tracked(
        &mut self,
        id: ChannelId,
        reference: Option<RawRef>,
        outcome: Result<(), TrackError>,
        outputs: &mut Vec<Output>,
    ) {
        let Some(at) = self.position(id) else { return };
        match outcome {
            Ok(()) => outputs.push(Output::Send(self.channels[at].done(reference))),
            Err(error) if error.closes_channel() => {
                let refusal = Refusal::Limit("UnableToTrackPresence", error.to_string());
                self.shut_down(at, &refusal, outputs);
            }
            Err(error) => {
                outputs.push(self.channels[at].refuse(reference, &error.to_string()));
            }
        }
    }
}

impl super::Channel {
    fn talk(&mut self) -> &mut Talk {
        self.talk.get_or_insert_default()
    }

    /// Whether a push that these grants allow has to wait until it is known whether presence may be
    /// read: a first track goes with it.
    fn must_seek(&self, grants: Grants, said: &Said) -> bool {
        match said {
            Said::Track(_) => grants.presence && self.sight == Sight::Unasked,
            Said::Broadcast(_) | Said::Untrack => false,
        }
    }

    fn waiting_bytes(&self) -> usize {
        self.talk.as_ref().map_or(0, |talk| talk.waiting_bytes)
    }

    /// Whether a leave has to wait for pushes whose right is being checked. If so, it does: what
    /// a client says before it leaves is said.
    pub(super) fn leaves_later(&mut self, reference: Option<&RawRef>) -> bool {
        let joining = self.joining.is_some();
        let Some(talk) = &mut self.talk else { return false };
        // Whoever asks twice does not want to wait.
        let later = !joining && !talk.waiting.is_empty() && talk.leaving.is_none();
        if later {
            talk.leaving = Some(Leave { reference: reference.cloned() });
        }
        later
    }

    /// Answers what still waited when the channel ended.
    pub(super) fn answer_waiting(&mut self, outputs: &mut Vec<Output>) {
        let Some(mut talk) = self.talk.take() else { return };
        for (reference, said) in std::mem::take(&mut talk.waiting) {
            match said {
                Said::Broadcast(_) if !self.acknowledge => {}
                Said::Broadcast(_) | Said::Track(_) | Said::Untrack => {
                    outputs.push(self.refuse(reference, UNMATCHED));
                }
            }
        }
        if let Some(Leave { reference }) = talk.leaving.take() {
            outputs.push(Output::Send(self.done(reference)));
        }
    }

    fn done(&self, reference: Option<RawRef>) -> Message {
        Message::done(self.join_ref.clone(), reference, self.topic.to_shared())
    }

    fn refuse(&self, reference: Option<RawRef>, reason: &str) -> Output {
        let topic = self.topic.to_shared();
        Output::Send(Message::refusal(self.join_ref.clone(), reference, topic, reason))
    }

    /// An error without words.
    fn decline(&self, reference: Option<RawRef>) -> Output {
        let topic = self.topic.to_shared();
        Output::Send(Message::error(self.join_ref.clone(), reference, topic, "{}"))
    }

    fn act(&self, reference: Option<RawRef>, said: Said) -> impl Iterator<Item = Output> + use<> {
        let (output, answered) = match said {
            Said::Broadcast(broadcast) => {
                let echo = self.echo;
                (Output::Broadcast { channel: self.id, broadcast, echo }, self.acknowledge)
            }
            Said::Track(meta) => {
                let reference = reference.clone();
                (Output::Track { channel: self.id, reference, meta }, false)
            }
            Said::Untrack => (Output::Untrack { channel: self.id }, true),
        };
        let reply = answered.then(|| Output::Send(self.done(reference)));
        std::iter::once(output).chain(reply)
    }

    fn act_if(
        &self,
        grants: Grants,
        reference: Option<RawRef>,
        said: Said,
    ) -> impl Iterator<Item = Output> + use<> {
        let (acts, refusal) = match said {
            Said::Broadcast(_) if !grants.broadcast => {
                (None, self.acknowledge.then(|| self.refuse(reference, "Unauthorized")))
            }
            Said::Track(_) if !grants.presence => (None, Some(self.decline(reference))),
            said @ (Said::Broadcast(_) | Said::Track(_) | Said::Untrack) => {
                (Some(self.act(reference, said)), None)
            }
        };
        acts.into_iter().flatten().chain(refusal)
    }
}

fn broadcast(payload: Payload<'_>, bytes_max: usize) -> Result<Broadcast, Unusable> {
    match payload {
        Payload::Json(payload) if !payload.get().starts_with('{') => {
            Err(Unusable::Because("Broadcast payload must be a map"))
        }
        Payload::Json(payload) if payload.get().len() > bytes_max + ENVELOPE_BYTES => {
            Err(Unusable::TooLarge)
        }
        Payload::Json(payload) => {
            Ok(Broadcast::Whole(Bytes::copy_from_slice(payload.get().as_bytes())))
        }
        Payload::Broadcast(UserBroadcast { event, encoding, data, meta: _ }) => {
            if data.len() > bytes_max {
                return Err(Unusable::TooLarge);
            }
            // Receivers would fail to read it.
            if encoding == Encoding::Json && !is_json(data) {
                return Err(Unusable::Because("Broadcast payload is not valid JSON"));
            }
            let data = Bytes::copy_from_slice(data);
            let (event, meta) = (event.into(), Meta::default());
            Ok(Broadcast::User(UserEvent { event, encoding, data, meta }))
        }
        Payload::Bytes(_) => Err(Unusable::Because("Broadcast payload is not JSON")),
    }
}

#[derive(Deserialize)]
struct Presence<'a> {
    #[serde(borrow)]
    event: Option<Cow<'a, str>>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
}

fn presence(payload: Payload<'_>) -> Result<Said, Unusable> {
    let Payload::Json(payload) = payload else { return Err(Unusable::Silently) };
    if !payload.get().starts_with('{') {
        return Err(Unusable::Silently);
    }
    let Presence { event, payload } =
        serde_json::from_str(payload.get()).map_err(|_| Unusable::Silently)?;
    let Some(event) = event else { return Err(Unusable::Nothing) };
    if event.eq_ignore_ascii_case("untrack") {
        return Ok(Said::Untrack);
    }
    if !event.eq_ignore_ascii_case("track") {
        return Err(Unusable::Silently);
    }
    match payload {
        None => Ok(Said::Track(RawValue::from_string("{}".into()).expect("it is JSON"))),
        Some(meta) if meta.get().starts_with('{') => Ok(Said::Track(meta.to_owned())),
        Some(_) => Err(Unusable::Because("Presence track payload must be a map")),
    }
}

/// Skipping over a value does not look at its text, hence the first step.
fn is_json(data: &[u8]) -> bool {
    let text = std::str::from_utf8(data);
    text.is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok())
}
