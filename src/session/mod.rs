//! Sessions: one connection's protocol state.
//!
//! In:     decoded frames of a client, and what became of what it asked ([`Input`]), with the time.
//! Out:    messages for it, and work for the hub ([`Output`]), in order.
//! Never:  IO, a clock, bytes of a transport; a decision about rights (it asks, and waits).
//! Source: spec of the realtime protocol, sections 1.5-1.7 and 2.4-2.6.
//!
//! A channel is *joining* until [`Input::Joined`] answers its [`JoinRequest`], then *joined*.
//! Joins do not wait for each other, nor does anything else wait for them. Whatever ends a channel
//! (a leave, another join of its topic, an expired token) gives [`Output::Leave`], also while it
//! is joining; the answer to a join that ended meanwhile is dropped and gives it once more. The
//! answer to a join whose token was replaced meanwhile is dropped too, and gives
//! [`Output::JoinAgain`]: nothing is delivered by the older token after the newer was accepted.

mod bookmark;
mod join;
mod message;
mod rate;
mod room;
#[cfg(test)]
mod tests;
mod users;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::auth::Claims;
use crate::auth::jwt::{Fingerprint, TokenError, Verifier};
use crate::config;
use crate::cursor::Cursor;
use crate::event::broadcast::Broadcast;
use crate::hub::TrackError;
use crate::topic::{ParseTopicError, Topic};
use join::Wishes;
use message::json_string;
use rate::Rate;
use room::Talk;

pub use bookmark::{Asked, Bookmark, BookmarkName, Bookmarks, SessionId};
pub use join::{BroadcastOptions, JoinRequest, PresenceOptions};
pub use message::{Frame, Message, Payload, REF_BYTES_MAX, RawRef, RefTooLong, UserBroadcast};
pub use rate::Rates;
pub use room::Grants;
pub use users::UserPlace;

/// The topic of heartbeats; nothing can be joined there.
const HEARTBEAT_TOPIC: &str = "phoenix";

/// What is said to a topic that was not joined, or is no longer, is answered with this.
const UNMATCHED: &str = "unmatched topic";

/// One membership in a topic, from its join to its end. Unique in its session for ever, so what
/// arrives late for an ended one is recognised.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(u32);

impl ChannelId {
    /// Its number in the session.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Debug for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "channel {}", self.0)
    }
}

/// What one connection may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Channels at once, joining ones included.
    pub channels_max: usize,
    /// Subscriptions to row changes in one join.
    pub subscriptions_max: usize,
    /// Joins a second on one connection, and on all; more close the connection.
    pub connection_joins_per_second_max: usize,
    /// See `connection_joins_per_second_max`.
    pub joins_per_second_max: usize,
    /// Broadcasts and presence events a second on one connection, and on all; more are refused.
    pub connection_events_per_second_max: usize,
    /// See `connection_events_per_second_max`.
    pub events_per_second_max: usize,
    /// Connections that one user's channels may be on. 0: any number.
    pub connections_per_user_max: usize,
    /// Bytes of a broadcast's payload.
    pub payload_bytes_max: usize,
    /// Presence events of one channel within `presence_window`; more close it.
    pub presence_events_max: usize,
    /// See `presence_events_max`.
    pub presence_window: Duration,
    /// Whether public channels are refused.
    pub private_only: bool,
}

impl From<&config::Config> for Limits {
    fn from(config: &config::Config) -> Self {
        let (server, limits) = (&config.server, &config.limits);
        Self {
            channels_max: server.channels_per_connection_max,
            subscriptions_max: server.subscriptions_per_channel_max,
            connection_joins_per_second_max: limits.connection_joins_per_second_max,
            joins_per_second_max: limits.joins_per_second_max,
            connection_events_per_second_max: limits.connection_events_per_second_max,
            events_per_second_max: limits.events_per_second_max,
            connections_per_user_max: limits.connections_per_user_max,
            payload_bytes_max: limits.payload_bytes_max,
            presence_events_max: limits.presence_events_per_window_max,
            presence_window: Duration::from_millis(limits.presence_window_ms),
            private_only: limits.private_only,
        }
    }
}

/// Everything that can happen to a session.
#[derive(Debug)]
pub enum Input<'a> {
    /// The client sent this.
    Frame(Frame<'a>),
    /// A join was answered. Frames of the channel may follow the outputs of this, none before.
    Joined {
        /// Which one.
        channel: ChannelId,
        /// How.
        outcome: JoinOutcome,
    },
    /// A joined channel's client is told something.
    System {
        /// Which one.
        channel: ChannelId,
        /// What.
        message: SystemMessage,
    },
    /// The answer to [`Output::CheckWrite`].
    MayWrite {
        /// Which channel.
        channel: ChannelId,
        /// As it was asked.
        turn: u32,
        /// What is allowed; none when that could not be found out: nothing, for now.
        grants: Option<Grants>,
    },
    /// The answer to [`Output::Track`].
    Tracked {
        /// Which channel.
        channel: ChannelId,
        /// As it was asked.
        reference: Option<RawRef>,
        /// Whether.
        outcome: Result<(), TrackError>,
    },
    /// The channel ends, for a reason that its client is told: it lost a permission.
    Shutdown {
        /// Which one.
        channel: ChannelId,
        /// A plain sentence.
        message: String,
    },
    /// The channel's token may have expired: if so, it ends.
    Expired {
        /// Which one.
        channel: ChannelId,
    },
    /// The server ends the connection: every joined channel is told.
    Disconnect {
        /// The WebSocket's close code: 1012 for a restart.
        code: u16,
        /// Its text.
        reason: &'static str,
    },
}

/// What became of a join.
#[derive(Debug, Clone)]
pub enum JoinOutcome {
    /// The channel is registered.
    Ok {
        /// One for each subscription that was asked, in its order, also when none is active.
        subscriptions: Vec<Subscribed>,
        /// Where row changes begin, when they were asked for.
        begins: Option<Cursor>,
        /// Whether stored messages follow the reply: [`Output::Replay`].
        replays: bool,
        /// What follows then.
        system: Vec<SystemMessage>,
    },
    /// It is not, and the client is told why, `Code: text`.
    Error {
        /// The reason.
        reason: String,
    },
}

/// How one subscription is acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribed {
    /// What events name it by. Never 0: clients take that for missing.
    pub id: u32,
    /// More members for the echoed object, JSON without braces, such as `"delete_mode":"drop"`.
    pub extra: Option<Cow<'static, str>>,
}

/// A `system` event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemMessage {
    /// Which part of the server speaks.
    pub extension: Extension,
    /// Whether it is good news.
    pub success: bool,
    /// A plain sentence.
    pub message: Cow<'static, str>,
}

/// The part of the server that a `system` event comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extension {
    /// The channel itself.
    System,
    /// Row changes.
    PostgresChanges,
}

impl SystemMessage {
    /// What clients wait for after asking for row changes.
    pub const fn subscribed() -> Self {
        let message = Cow::Borrowed("Subscribed to PostgreSQL");
        Self { extension: Extension::PostgresChanges, success: true, message }
    }

    /// Why row changes will not come; the channel stays.
    pub fn not_subscribed(message: impl Into<Cow<'static, str>>) -> Self {
        Self { extension: Extension::PostgresChanges, success: false, message: message.into() }
    }

    /// What clients wait for that asked when broadcasts from the database flow.
    pub const fn replication_ready() -> Self {
        let message = Cow::Borrowed("Replication connection established");
        Self { extension: Extension::System, success: true, message }
    }

    fn payload(&self, topic: &Topic) -> String {
        let extension = match self.extension {
            Extension::System => "system",
            Extension::PostgresChanges => "postgres_changes",
        };
        let status = if self.success { "ok" } else { "error" };
        let (message, channel) = (json_string(&self.message), json_string(topic.sub_topic()));
        format!(
            r#"{{"extension":"{extension}","status":"{status}","message":{message},"channel":{channel}}}"#
        )
    }
}

/// What a session wants done, in this order.
#[derive(Debug, Clone)]
pub enum Output {
    /// Send this.
    Send(Message),
    /// Send this answer to a heartbeat: its client has got all that was sent before the last one.
    Beat(Message),
    /// Send this refusal after a while, so that a client in a retry loop is slowed. What follows
    /// does not wait for it.
    SendLater(Message),
    /// Register a channel, answer with [`Input::Joined`].
    Join(Box<JoinRequest>),
    /// The join was answered for claims that are no longer in force, and nobody is told: forget what
    /// was registered, and register the channel again, answer with [`Input::Joined`].
    JoinAgain {
        /// Which channel.
        channel: ChannelId,
        /// The newer claims.
        claims: Arc<Claims>,
    },
    /// Forget a channel, or stop registering it. May come twice.
    Leave(ChannelId),
    /// The client wants no more of a channel, and begins anew if it comes back. [`Self::Leave`]
    /// follows.
    Forget(ChannelId),
    /// A joined channel has new claims: check and decide with them from now on.
    Refresh {
        /// Which one.
        channel: ChannelId,
        /// The new claims.
        claims: Arc<Claims>,
    },
    /// Send the stored messages that the join asked for.
    Replay {
        /// Which channel.
        channel: ChannelId,
        /// What the frames name.
        join_ref: Option<RawRef>,
    },
    /// Tell the channel's room.
    Broadcast {
        /// Which channel.
        channel: ChannelId,
        /// What.
        broadcast: Broadcast,
        /// Whether the channel hears it too.
        echo: bool,
    },
    /// Make the channel present in its room, answer with [`Input::Tracked`].
    Track {
        /// Which channel.
        channel: ChannelId,
        /// To be given back.
        reference: Option<RawRef>,
        /// What it says of itself, a JSON object.
        meta: Box<RawValue>,
    },
    /// Take the channel's presence back.
    Untrack {
        /// Which channel.
        channel: ChannelId,
    },
    /// Find out what these claims may write on a private topic, answer with [`Input::MayWrite`].
    CheckWrite {
        /// Which channel.
        channel: ChannelId,
        /// Whose right.
        claims: Arc<Claims>,
        /// To be given back.
        turn: u32,
        /// Find out too whether they may read presence, before the answer: the channel did not ask
        /// for it when it joined, and is about to show itself.
        sees: bool,
    },
    /// Close the connection and forget all its channels, after what was sent before.
    Disconnect {
        /// The WebSocket's close code.
        code: u16,
        /// Its text.
        reason: &'static str,
    },
}

/// What is still needed to answer a join.
struct Joining {
    reference: Option<RawRef>,
    postgres_changes: Arc<[Box<RawValue>]>,
    /// Newer claims came after the request went out: its answer is for older ones.
    outdated: bool,
}

/// Whether it was asked if a private channel may read presence. From then on it is asked for each
/// of its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sight {
    /// With the join, or with the first track.
    Asked,
    /// Its client did not want to know, and has not shown itself.
    Unasked,
}

struct Channel {
    id: ChannelId,
    topic: Topic,
    join_ref: Option<RawRef>,
    claims: Arc<Claims>,
    token: Fingerprint,
    joining: Option<Box<Joining>>,
    private: bool,
    acknowledge: bool,
    echo: bool,
    sight: Sight,
    talk: Option<Box<Talk>>,
}

/// One connection's protocol state.
pub struct Session {
    claims: Arc<Claims>,
    token: Fingerprint,
    verifier: Arc<Verifier>,
    limits: Limits,
    /// Channels that ever were.
    channels_made: u32,
    /// In the order of their joins. A search walks it: clients have a few, a thousand at most.
    channels: Vec<Channel>,
    joins: Rate,
    events: Rate,
    rates: Arc<Rates>,
    /// Users for whom this connection counts; only kept where they are limited.
    users: Vec<UserPlace>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("channels", &self.channels.len()).finish_non_exhaustive()
    }
}

/// Seconds that claims are past their expiry; none while they are valid.
fn expired(claims: &Claims, now: SystemTime) -> Option<TokenError> {
    let since = now.duration_since(claims.expires_at).ok()?;
    Some(TokenError::Expired { seconds: since.as_secs() })
}

impl Session {
    /// A session for a connection that `token` opened, verified as `claims`.
    pub fn new(
        token: &str,
        claims: Arc<Claims>,
        verifier: Arc<Verifier>,
        limits: Limits,
        rates: Arc<Rates>,
    ) -> Self {
        let token = Fingerprint::of(token);
        Self {
            claims,
            token,
            verifier,
            limits,
            channels_made: 0,
            channels: Vec::new(),
            joins: Rate::default(),
            events: Rate::default(),
            rates,
            users: Vec::new(),
        }
    }

    /// How many channels there are, joining ones included.
    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// The channel whose token expires first, and when: [`Input::Expired`] is due then.
    pub fn next_expiry(&self) -> Option<(ChannelId, SystemTime)> {
        self.channels
            .iter()
            .map(|channel| (channel.id, channel.claims.expires_at))
            .min_by_key(|(_, expires_at)| *expires_at)
    }

    /// Takes one input and appends what is to be done.
    pub fn handle(&mut self, input: Input<'_>, now: SystemTime, outputs: &mut Vec<Output>) {
        match input {
            Input::Frame(frame) => self.frame(frame, now, outputs),
            Input::Joined { channel, outcome } => self.joined(channel, outcome, now, outputs),
            Input::System { channel, message } => {
                if let Some(channel) = self.joined_channel(channel) {
                    outputs.push(Output::Send(channel.system(&message)));
                }
            }
            Input::MayWrite { channel, turn, grants } => {
                self.may_write(channel, turn, grants, outputs);
            }
            Input::Tracked { channel, reference, outcome } => {
                self.tracked(channel, reference, outcome, outputs);
            }
            Input::Shutdown { channel, message } => {
                if let Some(at) = self.position(channel) {
                    self.shut_down(at, &Refusal::Said(message), outputs);
                }
            }
            Input::Expired { channel } => {
                if let Some(at) = self.position(channel)
                    && let Some(error) = expired(&self.channels[at].claims, now)
                {
                    self.shut_down(at, &Refusal::Token(error), outputs);
                }
            }
            Input::Disconnect { code, reason } => {
                for channel in self.channels.drain(..).filter(|channel| channel.joining.is_none()) {
                    let payload = r#"{"extension":"system","status":"ok","message":"Server requested disconnect"}"#;
                    let topic = channel.topic.to_shared();
                    let push = Message::push(channel.join_ref, topic, "system", payload);
                    outputs.push(Output::Send(push));
                }
                outputs.push(Output::Disconnect { code, reason });
            }
        }
    }

    fn position(&self, id: ChannelId) -> Option<usize> {
        self.channels.iter().position(|channel| channel.id == id)
    }

    fn joined_channel(&self, id: ChannelId) -> Option<&Channel> {
        self.channels.iter().find(|channel| channel.id == id && channel.joining.is_none())
    }

    fn frame(&mut self, frame: Frame<'_>, now: SystemTime, outputs: &mut Vec<Output>) {
        let Frame { join_ref, reference, topic, event, payload } = frame;
        if topic == HEARTBEAT_TOPIC && event == "heartbeat" {
            outputs.push(Output::Beat(Message::done(None, reference, topic.into())));
            return;
        }
        if event == "phx_join" {
            self.join((join_ref, reference), &topic, payload, now, outputs);
            return;
        }
        let Some(at) = self.channels.iter().position(|channel| channel.topic.as_str() == topic)
        else {
            outputs.push(Output::Send(if event == "phx_leave" {
                Message::done(join_ref, reference, topic.into())
            } else {
                Message::refusal(None, reference, topic.into(), UNMATCHED)
            }));
            return;
        };
        match &*event {
            "phx_leave" => self.leave(at, (join_ref, reference), outputs),
            "access_token" => self.refresh(at, payload, now, outputs),
            "broadcast" => self.broadcast(at, reference, payload, now, outputs),
            "presence" => self.presence(at, reference, payload, now, outputs),
            _unknown => {}
        }
    }

    fn join(
        &mut self,
        (join_ref, reference): (Option<RawRef>, Option<RawRef>),
        name: &str,
        payload: Payload<'_>,
        now: SystemTime,
        outputs: &mut Vec<Output>,
    ) {
        let refuse = |outputs: &mut Vec<Output>, join_ref, reference, reason: &str| {
            let refusal = Message::refusal(join_ref, reference, name.into(), reason);
            outputs.push(Output::SendLater(refusal));
        };
        let topic = match Topic::parse(name) {
            Ok(topic) => topic,
            Err(ParseTopicError::Unmatched) => {
                let refusal = Message::refusal(None, reference, name.into(), UNMATCHED);
                outputs.push(Output::Send(refusal));
                return;
            }
            Err(ParseTopicError::TooLong) => {
                // At once: as many as may wait would take as much memory as their names are long.
                let reason = "TopicNameTooLong: The topic name is too long";
                let refusal = Message::refusal(join_ref, reference, name.into(), reason);
                outputs.push(Output::Send(refusal));
                return;
            }
            Err(error) => {
                let reason = match error {
                    ParseTopicError::Nul => "TopicNameInvalid: The topic name contains a NUL",
                    ParseTopicError::Nameless
                    | ParseTopicError::TooLong
                    | ParseTopicError::Unmatched => {
                        "TopicNameRequired: You must provide a topic name"
                    }
                };
                refuse(outputs, join_ref, reference, reason);
                return;
            }
        };
        if !self.joins.admit(self.limits.connection_joins_per_second_max, now)
            || !self.rates.joins.admit(self.limits.joins_per_second_max, now)
        {
            let reason = "ClientJoinRateLimitReached: Too many joins per second";
            let refusal = Message::refusal(join_ref, reference, name.into(), reason);
            outputs.push(Output::Send(refusal));
            outputs.push(Output::Disconnect { code: 1001, reason: "too many joins" });
            return;
        }
        if let Some(at) = self.channels.iter().position(|channel| channel.topic == topic) {
            let mut old = self.channels.remove(at);
            outputs.push(Output::Leave(old.id));
            old.answer_waiting(outputs);
            outputs.push(Output::Send(Message::close(old.join_ref, old.topic.to_shared())));
        }
        match self.admit(payload, now) {
            Ok((id, claims, token, wishes)) => {
                let postgres_changes: Arc<[_]> = wishes.postgres_changes.into();
                let manners = (wishes.private, wishes.broadcast.acknowledge, wishes.broadcast.echo);
                let sight = if wishes.presence.enabled { Sight::Asked } else { Sight::Unasked };
                let joining = Joining {
                    reference,
                    postgres_changes: Arc::clone(&postgres_changes),
                    outdated: false,
                };
                outputs.push(Output::Join(Box::new(JoinRequest {
                    channel: id,
                    topic: topic.clone(),
                    join_ref: join_ref.clone(),
                    claims: Arc::clone(&claims),
                    postgres_changes,
                    legacy: wishes.legacy,
                    private: wishes.private,
                    broadcast: wishes.broadcast,
                    presence: wishes.presence,
                    wait: wishes.wait,
                })));
                let joining = Some(Box::new(joining));
                let (private, acknowledge, echo) = manners;
                // Most connections have one channel or two: no room is kept for more.
                self.channels.reserve_exact(usize::from(self.channels.len() < 2));
                self.channels.push(Channel {
                    id,
                    topic,
                    join_ref,
                    claims,
                    token,
                    joining,
                    private,
                    acknowledge,
                    echo,
                    sight,
                    talk: None,
                });
            }
            Err(reason) => refuse(outputs, join_ref, reference, &reason),
        }
    }

    /// Whether a join goes on to the hub. The order of the checks is the reference server's.
    fn admit(
        &mut self,
        payload: Payload<'_>,
        now: SystemTime,
    ) -> Result<(ChannelId, Arc<Claims>, Fingerprint, Wishes), String> {
        let wishes = match payload {
            Payload::Json(payload) => Wishes::parse(payload, self.limits.subscriptions_max),
            Payload::Bytes(_) | Payload::Broadcast(_) => Err("the payload is not JSON".into()),
        };
        let wishes = wishes.map_err(|problem| format!("InvalidJoinPayload: {problem}"))?;
        if self.limits.private_only && !wishes.private {
            return Err("PrivateOnly: This project only allows private channels".into());
        }
        let number = self.channels_made.checked_add(1);
        let (true, Some(number)) = (self.channels.len() < self.limits.channels_max, number) else {
            return Err("ChannelRateLimitReached: Too many channels".into());
        };
        let (claims, token) = match wishes.token() {
            Some(token) => self.verify(token, now),
            None => {
                expired(&self.claims, now).map_or(Ok((Arc::clone(&self.claims), self.token)), Err)
            }
        }
        .map_err(|error| error.reason())?;
        if !self.counts_for(&claims) {
            return Err("ConnectionRateLimitReached: Too many connected users".into());
        }
        self.channels_made = number;
        Ok((ChannelId(number), claims, token, wishes))
    }

    /// Whether this connection is one of those that the user of these claims may have.
    fn counts_for(&mut self, claims: &Claims) -> bool {
        let most = self.limits.connections_per_user_max;
        let Some(subject) = claims.subject.as_ref().filter(|_| most > 0) else { return true };
        if self.users.iter().any(|place| place.is_of(subject)) {
            return true;
        }
        let place = self.rates.users.enter(subject, most);
        let entered = place.is_some();
        self.users.extend(place);
        entered
    }

    /// Verifies a token; one that this connection already uses is not verified again, and its
    /// claims are shared.
    fn verify(
        &self,
        token: &str,
        now: SystemTime,
    ) -> Result<(Arc<Claims>, Fingerprint), TokenError> {
        let fingerprint = Fingerprint::of(token);
        let claims = std::iter::once((&self.token, &self.claims))
            .chain(self.channels.iter().map(|channel| (&channel.token, &channel.claims)))
            .find_map(|(known, claims)| (*known == fingerprint).then_some(claims));
        let claims = match claims {
            Some(claims) => Arc::clone(claims),
            None => Arc::new(self.verifier.verify(token, now)?),
        };
        expired(&claims, now).map_or(Ok((claims, fingerprint)), Err)
    }

    fn joined(
        &mut self,
        id: ChannelId,
        outcome: JoinOutcome,
        now: SystemTime,
        outputs: &mut Vec<Output>,
    ) {
        let Some(at) = self.position(id) else {
            outputs.push(Output::Leave(id));
            return;
        };
        let channel = &mut self.channels[at];
        let Some(mut joining) = channel.joining.take() else { return };
        if std::mem::take(&mut joining.outdated) {
            // One at a time, however many came meanwhile.
            channel.joining = Some(joining);
            let claims = Arc::clone(&channel.claims);
            outputs.push(Output::JoinAgain { channel: id, claims });
            return;
        }
        let answer = match outcome {
            JoinOutcome::Error { reason } => Err(reason),
            JoinOutcome::Ok { subscriptions, begins, replays, system } => {
                let problem = if subscriptions.len() == joining.postgres_changes.len() {
                    expired(&channel.claims, now).map(|error| error.reason())
                } else {
                    Some("Unknown Error on Channel".into())
                };
                match problem {
                    None => Ok((subscriptions, begins, replays, system)),
                    Some(reason) => {
                        outputs.push(Output::Leave(id));
                        Err(reason)
                    }
                }
            }
        };
        match answer {
            Ok((subscriptions, begins, replays, system)) => {
                let response = acknowledgement(&joining.postgres_changes, &subscriptions, begins);
                let topic = channel.topic.to_shared();
                let join_ref = channel.join_ref.clone();
                let reply = Message::reply(join_ref, joining.reference, topic, &response);
                outputs.push(Output::Send(reply));
                if replays {
                    let join_ref = channel.join_ref.clone();
                    outputs.push(Output::Replay { channel: id, join_ref });
                }
                let system = system.iter().map(|message| Output::Send(channel.system(message)));
                outputs.extend(system);
                self.begin_talk(at, outputs);
            }
            Err(reason) => {
                let mut channel = self.channels.remove(at);
                channel.answer_waiting(outputs);
                outputs.push(channel.refused(joining.reference, &reason));
            }
        }
    }

    fn leave(
        &mut self,
        at: usize,
        (join_ref, reference): (Option<RawRef>, Option<RawRef>),
        outputs: &mut Vec<Output>,
    ) {
        // A client that gave up on a join leaves it after it has joined again.
        let current = &self.channels[at].join_ref;
        if join_ref.is_some() && current.is_some() && join_ref != *current {
            return;
        }
        if !self.channels[at].leaves_later(reference.as_ref()) {
            self.end(at, reference, outputs);
        }
    }

    /// Ends a channel because its client wants it.
    fn end(&mut self, at: usize, reference: Option<RawRef>, outputs: &mut Vec<Output>) {
        let mut channel = self.channels.remove(at);
        outputs.push(Output::Forget(channel.id));
        outputs.push(Output::Leave(channel.id));
        channel.answer_waiting(outputs);
        let topic = channel.topic.to_shared();
        let reply = Message::done(channel.join_ref.clone(), reference, Arc::clone(&topic));
        outputs.push(Output::Send(reply));
        outputs.push(Output::Send(Message::close(channel.join_ref, topic)));
    }

    fn refresh(
        &mut self,
        at: usize,
        payload: Payload<'_>,
        now: SystemTime,
        outputs: &mut Vec<Output>,
    ) {
        let Some(token) = access_token(payload) else { return };
        if token.starts_with("sb_") || Fingerprint::of(&token) == self.channels[at].token {
            return;
        }
        match self.verify(&token, now) {
            Ok((claims, fingerprint)) => {
                let channel = &mut self.channels[at];
                channel.claims = Arc::clone(&claims);
                channel.token = fingerprint;
                if let Some(joining) = &mut channel.joining {
                    joining.outdated = true;
                } else {
                    outputs.push(Output::Refresh { channel: channel.id, claims });
                }
                self.forget_grants(at, outputs);
            }
            Err(error) => self.shut_down(at, &Refusal::Token(error), outputs),
        }
    }

    /// Ends a channel and says why: to a joining one as the answer to its join.
    fn shut_down(&mut self, at: usize, refusal: &Refusal, outputs: &mut Vec<Output>) {
        let mut channel = self.channels.remove(at);
        outputs.push(Output::Leave(channel.id));
        channel.answer_waiting(outputs);
        if let Some(joining) = channel.joining.take() {
            outputs.push(channel.refused(joining.reference, &refusal.reason()));
            return;
        }
        let message = SystemMessage {
            extension: Extension::System,
            success: false,
            message: refusal.message(),
        };
        outputs.push(Output::Send(channel.system(&message)));
        let topic = channel.topic.to_shared();
        outputs.push(Output::Send(Message::close(channel.join_ref, topic)));
    }
}

/// Why a channel ends against its client's will.
enum Refusal {
    Token(TokenError),
    Said(String),
    /// Code and text.
    Limit(&'static str, String),
}

impl Refusal {
    fn reason(&self) -> String {
        match self {
            Self::Token(error) => error.reason(),
            Self::Said(message) => format!("Unauthorized: {message}"),
            Self::Limit(code, text) => format!("{code}: {text}"),
        }
    }

    fn message(&self) -> Cow<'static, str> {
        match self {
            Self::Token(error) => error.message(),
            Self::Said(message) => message.clone().into(),
            Self::Limit(_, text) => text.clone().into(),
        }
    }
}

impl Channel {
    fn system(&self, message: &SystemMessage) -> Message {
        let payload = message.payload(&self.topic);
        Message::push(self.join_ref.clone(), self.topic.to_shared(), "system", payload)
    }

    fn refused(self, reference: Option<RawRef>, reason: &str) -> Output {
        let topic = self.topic.to_shared();
        Output::SendLater(Message::refusal(self.join_ref, reference, topic, reason))
    }
}

#[derive(Deserialize)]
struct AccessToken<'a> {
    #[serde(borrow)]
    access_token: Option<Cow<'a, str>>,
}

/// The token of an `access_token` event; none for null, another type or no such member.
fn access_token(payload: Payload<'_>) -> Option<Cow<'_, str>> {
    let Payload::Json(payload) = payload else { return None };
    if !payload.get().starts_with('{') {
        return None;
    }
    serde_json::from_str::<AccessToken<'_>>(payload.get()).ok()?.access_token
}

/// The response to a join: each subscription as the client wrote it, with its id at the end, where
/// it wins over an `id` of the client's own.
fn acknowledgement(
    asked: &[Box<RawValue>],
    subscribed: &[Subscribed],
    begins: Option<Cursor>,
) -> String {
    let mut json = String::from(r#"{"postgres_changes":["#);
    for (number, (asked, subscribed)) in asked.iter().zip(subscribed).enumerate() {
        let members = asked.get().strip_suffix('}').unwrap_or("{");
        if number > 0 {
            json.push(',');
        }
        json.push_str(members);
        if !members.trim_start_matches('{').trim().is_empty() {
            json.push(',');
        }
        if let Some(extra) = &subscribed.extra {
            json.push_str(extra);
            json.push(',');
        }
        json.push_str(r#""id":"#);
        json.push_str(&subscribed.id.to_string());
        json.push('}');
    }
    json.push(']');
    if let Some(begins) = begins.filter(|_| !subscribed.is_empty()) {
        json.push_str(r#","cursor":""#);
        json.push_str(&begins.to_string());
        json.push('"');
    }
    json.push('}');
    json
}
