//! One Phoenix socket: its session between the WebSocket below and the hub above.
//!
//! In:     an admitted socket ([`Endpoint`]); text and binary messages; answers to joins and checks,
//!         notices, expiries.
//! Out:    frames in the outbox; registrations in the hub; what its client says to a room.
//! Never:  a wait in a callback: what takes time runs as a task and comes back as mail.

mod endpoint;
mod format;
mod held;
mod lasting;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use hashbrown::HashMap;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;
use uuid::Uuid;

use super::deadlines::{DeadlineId, Deadlines, Expires};
use super::phoenix::{self, Version};
use super::websocket::{Peer, text_frame, text_frame_head};
use crate::auth::Claims;
use crate::auth::access::{Asker, ReadGrants};
use crate::auth::jwt::Verifier;
use crate::event::broadcast::Broadcast;
use crate::hub::outbox::{CloseReason, DirtyList, Outbox};
use crate::hub::{Comeback, Hub, Inbox, Membership, Occupancy, Replayed, Subscriber, TrackError};
use crate::join::{Entered, Joined, Joiner, Request};
use crate::session::{
    Asked, Bookmark, BookmarkName, Bookmarks, ChannelId, Frame, Grants, Input, JoinOutcome,
    JoinRequest, Limits, Message, Output, PresenceOptions, Rates, RawRef, Session, SessionId,
    Subscribed, SystemMessage,
};
use crate::telemetry;

pub use endpoint::Endpoint;
pub(super) use endpoint::{parameter, policy_headers};
use format::{encode_broadcast, format, session_started_frame};
use held::{Held, Raw};
use lasting::Lasting;

/// Refusals of one socket that may wait at once; further ones are sent without a wait.
const DELAYED_MAX: usize = 32;

/// Broadcasts that a socket makes before they are written to whoever hears them: as many as one
/// write takes. With more, each receiver's queue would grow for nothing.
const GATHERED_MAX: usize = 64;

/// How long a channel waits that asked to be told when broadcasts from the database flow.
const REPLICATION_WAIT: Duration = Duration::from_mins(1);

/// What all Phoenix sockets share.
#[derive(Debug)]
pub struct Realtime {
    /// Tokens.
    pub verifier: Arc<Verifier>,
    /// What a session may take.
    pub limits: Limits,
    /// What all sessions together may do in a second.
    pub rates: Arc<Rates>,
    /// Subscribers.
    pub hub: Arc<Hub>,
    /// Answers joins.
    pub joiner: Arc<Joiner>,
    /// When tokens expire.
    pub deadlines: Arc<Deadlines>,
    /// Joins under way.
    pub tasks: TaskTracker,
    /// Ends them.
    pub stop: CancellationToken,
    /// How long refusals of a socket wait.
    pub connect_backoff: Duration,
    /// How long refusals of a join wait.
    pub error_backoff: Duration,
    /// How far clients have come that may come back.
    pub bookmarks: Arc<Bookmarks>,
}

impl Realtime {
    /// Runs what takes time, at most until the service stops.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled_owned(work).await;
        });
    }
}

/// What comes back to a socket from elsewhere.
#[derive(Debug)]
enum Mail {
    Joined(ChannelId, Box<Joined>),
    /// None: it came to nothing, for a later one.
    Refreshed(ChannelId, Option<Result<(), String>>),
    Notice(ChannelId, String),
    Doubted(ChannelId),
    Expired(ChannelId),
    MayWrite(ChannelId, MayWrite),
    Renewed(ChannelId, Renewed),
    /// Whether broadcasts from the database flow, for who asked.
    Replication(ChannelId, bool),
    KeysFetched,
}

/// What claims may write in a private room.
#[derive(Debug, Clone, Copy)]
struct MayWrite {
    /// As the session asked.
    turn: u32,
    grants: Option<Grants>,
    /// Whether the claims of that turn of the place may also read presence, where that was asked.
    sees: Option<(u64, bool)>,
}

/// What newer claims may read in a private room.
#[derive(Debug)]
struct Renewed {
    /// Which claims.
    turn: u64,
    /// Whether they were asked about presence.
    presence: bool,
    /// How often its place had been doubted before it was asked.
    doubts: u32,
    outcome: Result<ReadGrants, String>,
    expires_at: SystemTime,
}

/// The part of a socket that others hold.
#[derive(Debug)]
struct Mailbox {
    outbox: Arc<Outbox>,
    mail: Mutex<Vec<Mail>>,
    delayed: AtomicUsize,
    first: Mutex<Option<ChannelId>>,
}

impl Mailbox {
    fn post(&self, mail: Mail) {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner).push(mail);
        self.outbox.wake();
    }
}

impl Mailbox {
    /// Once is enough, however many rows changed.
    fn post_doubt(&self, channel: ChannelId) {
        let mut mail = self.mail.lock().unwrap_or_else(PoisonError::into_inner);
        let is_this = |mail: &Mail| matches!(mail, Mail::Doubted(of) if *of == channel);
        if !mail.iter().any(is_this) {
            mail.push(Mail::Doubted(channel));
            drop(mail);
            self.outbox.wake();
        }
    }
}

impl Expires for Mailbox {
    fn expired(&self, _channel: u64) {
        let first = *self.first.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = first {
            self.post(Mail::Expired(channel));
        }
    }
}

/// How a subscriber's notices reach its socket.
struct Notices {
    mailbox: Weak<Mailbox>,
    channel: ChannelId,
}

impl Inbox for Notices {
    fn notice(&self, message: String) {
        if let Some(mailbox) = self.mailbox.upgrade() {
            mailbox.post(Mail::Notice(self.channel, message));
        }
    }

    fn doubted(&self) {
        if let Some(mailbox) = self.mailbox.upgrade() {
            mailbox.post_doubt(self.channel);
        }
    }
}

/// A joined channel of this socket.
#[derive(Debug)]
struct Place {
    membership: Option<Arc<Membership>>,
    occupancy: Occupancy,
    grants: ReadGrants,
    /// Counts the claims; an answer about older ones is none.
    turn: u64,
    /// Looks at what newer claims may read in the room.
    renewing: Checks,
    /// Looks at its subscriptions under newer claims.
    refreshing: Checks,
    /// What its presence is known by, once it showed itself.
    key: Option<Box<str>>,
    /// Messages to send right after the answer to the join.
    stored: Vec<Broadcast>,
    /// How far its client has surely come, where it is to be known again.
    bookmark: Option<Box<Bookmark>>,
    request: Arc<Kept>,
    _counted: Counted,
}

impl Place {
    /// Whether its client asked to know who is there, or has shown itself.
    fn wants_presence(&self) -> bool {
        self.request.presence.enabled || self.key.is_some()
    }
}

/// Checks of a channel's newer claims, one at a time: of all that come while one is under way only
/// the last is checked after it, so that a client cannot fill the queue of all.
#[derive(Debug, Default)]
struct Checks {
    busy: bool,
    next: Option<Arc<Claims>>,
}

impl Checks {
    /// Whether to begin now; if not, it is for later.
    fn begin(&mut self, claims: &Arc<Claims>) -> bool {
        if self.busy {
            self.next = Some(Arc::clone(claims));
        }
        !std::mem::replace(&mut self.busy, true)
    }

    /// One has ended; what to begin then.
    fn end(&mut self) -> Option<Arc<Claims>> {
        self.busy = false;
        self.next.take()
    }
}

/// One channel in the metrics, as long as it lives.
#[derive(Debug)]
struct Counted;

impl Counted {
    fn new() -> Self {
        metrics::gauge!(telemetry::CHANNELS).increment(1);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::gauge!(telemetry::CHANNELS).decrement(1);
    }
}

/// What a refresh needs of the join.
#[derive(Debug)]
struct Kept {
    topic: Arc<str>,
    subscriber: Arc<Subscriber>,
    postgres_changes: Arc<[Box<RawValue>]>,
    legacy: bool,
    private: bool,
    replay: Option<Box<RawValue>>,
    cursor: Option<Box<str>>,
    announce_replication: bool,
    presence: PresenceOptions,
    wait: Option<Duration>,
    join_ref: Option<RawRef>,
    /// What its place is remembered by, if its client is to be known again.
    bookmark: Option<Box<BookmarkName>>,
    /// Leaves with the channel.
    asker: Asker,
}

impl Kept {
    /// What a client that comes back would have to ask for to go on here.
    fn asked(&self) -> Asked<'_> {
        let Self { topic, private, postgres_changes, legacy, .. } = self;
        Asked { topic, private: *private, postgres_changes, legacy: *legacy }
    }

    /// The same, for a join from the start.
    fn again(&self, subscriber: Arc<Subscriber>, asker: Asker) -> Self {
        Self {
            topic: Arc::clone(&self.topic),
            subscriber,
            postgres_changes: Arc::clone(&self.postgres_changes),
            legacy: self.legacy,
            private: self.private,
            replay: self.replay.clone(),
            cursor: self.cursor.clone(),
            announce_replication: self.announce_replication,
            presence: self.presence.clone(),
            wait: self.wait,
            join_ref: self.join_ref.clone(),
            bookmark: None,
            asker,
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.asker.leave();
    }
}

/// What a socket was opened with.
struct Connection {
    version: Version,
    session: Session,
    headers: Arc<str>,
    epoch: u64,
    id: Option<SessionId>,
}

/// The [`Peer`] of a Phoenix socket.
pub struct Socket {
    realtime: Arc<Realtime>,
    version: Version,
    session: Session,
    /// What policies read as `request.headers`.
    headers: Arc<str>,
    /// Its checks of private channels take turns.
    asker: Asker,
    mailbox: Arc<Mailbox>,
    joining: HashMap<ChannelId, Arc<Kept>>,
    joined: HashMap<ChannelId, Place>,
    deadline: Option<(SystemTime, DeadlineId)>,
    outputs: Vec<Output>,
    /// Whoever was told something and has not been written to.
    dirty: DirtyList,
    /// Broadcasts since they were.
    gathered: usize,
    /// The verifier's when the connection's token was verified.
    epoch: u64,
    /// Frames that wait for the key of a token.
    held: Option<Box<Held>>,
    /// Its client is to be known again.
    lasting: Option<Box<Lasting>>,
}

impl Socket {
    fn new(realtime: Arc<Realtime>, of: Connection, outbox: Arc<Outbox>) -> Self {
        let Connection { version, session, headers, epoch, id } = of;
        metrics::gauge!(telemetry::CONNECTIONS).increment(1);
        let mailbox = Arc::new(Mailbox {
            outbox,
            mail: Mutex::default(),
            delayed: AtomicUsize::new(0),
            first: Mutex::default(),
        });
        Self {
            realtime,
            version,
            session,
            headers,
            asker: Asker::default(),
            mailbox,
            joining: HashMap::new(),
            joined: HashMap::new(),
            deadline: None,
            outputs: Vec::new(),
            dirty: DirtyList::default(),
            gathered: 0,
            epoch,
            held: None,
            lasting: id.map(|id| Box::new(Lasting::new(id))),
        }
    }

    fn input(&mut self, input: Input<'_>) -> ControlFlow<CloseReason> {
        let mut outputs = std::mem::take(&mut self.outputs);
        self.session.handle(input, SystemTime::now(), &mut outputs);
        let mut flow = ControlFlow::Continue(());
        for output in outputs.drain(..) {
            flow = self.output(output);
            if flow.is_break() {
                break;
            }
        }
        if outputs.capacity() <= 8 {
            outputs.clear();
            self.outputs = outputs;
        }
        self.watch_expiry();
        flow
    }

    fn output(&mut self, output: Output) -> ControlFlow<CloseReason> {
        match output {
            Output::Send(message) => self.send(&message)?,
            Output::Beat(message) => {
                self.beat();
                self.send(&message)?;
            }
            Output::SendLater(message) => self.send_later(&message)?,
            Output::Join(request) => self.join(*request),
            Output::JoinAgain { channel, claims } => self.join_again(channel, claims),
            Output::Leave(channel) => self.leave(channel),
            Output::Forget(channel) => {
                if let Some(bookmark) = self.joined.get(&channel).and_then(|p| p.bookmark.as_ref())
                {
                    bookmark.leave();
                }
            }
            Output::Refresh { channel, claims } => self.refresh(channel, claims),
            Output::LookAgain { channel, claims } => self.renew(channel, &claims),
            Output::Replay { channel, join_ref } => self.replay(channel, join_ref.as_ref()),
            Output::Broadcast { channel, broadcast, echo } => {
                if let Some(place) = self.joined.get(&channel) {
                    let told = place.occupancy.broadcast(&broadcast, echo, &mut self.dirty);
                    self.gathered += 1;
                    metrics::counter!(telemetry::BROADCASTS).increment(1);
                    metrics::counter!(telemetry::DELIVERIES).increment(told);
                }
            }
            Output::Track { channel, reference, meta } => {
                let outcome = self.track(channel, &meta);
                self.input(Input::Tracked { channel, reference, outcome })?;
            }
            Output::Untrack { channel } => {
                if let Some(place) = self.joined.get(&channel) {
                    place.occupancy.untrack(&mut self.dirty);
                }
            }
            Output::CheckWrite { channel, claims, turn, sees } => {
                self.check_write(channel, claims, turn, sees);
            }
            Output::Disconnect { code, reason } => {
                return ControlFlow::Break(CloseReason::Session { code, text: reason });
            }
        }
        ControlFlow::Continue(())
    }

    fn frame(&self, message: &Message) -> Bytes {
        text_frame(&phoenix::encode(self.version, message))
    }

    fn send(&self, message: &Message) -> ControlFlow<CloseReason> {
        match self.mailbox.outbox.send(self.frame(message)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(reason) => ControlFlow::Break(reason),
        }
    }

    fn send_later(&self, message: &Message) -> ControlFlow<CloseReason> {
        metrics::counter!(telemetry::JOINS, telemetry::RESULT => "error").increment(1);
        let wait = self.realtime.error_backoff;
        let mailbox = &self.mailbox;
        if wait.is_zero() || mailbox.delayed.fetch_add(1, Ordering::Relaxed) >= DELAYED_MAX {
            mailbox.delayed.fetch_sub(usize::from(!wait.is_zero()), Ordering::Relaxed);
            return self.send(message);
        }
        let (mailbox, frame) = (Arc::downgrade(mailbox), self.frame(message));
        self.realtime.spawn(async move {
            tokio::time::sleep(wait).await;
            if let Some(mailbox) = mailbox.upgrade() {
                mailbox.delayed.fetch_sub(1, Ordering::Relaxed);
                // A socket that closed meanwhile needs no refusal.
                let _ = mailbox.outbox.send(frame);
            }
        });
        ControlFlow::Continue(())
    }

    fn join(&mut self, request: JoinRequest) {
        let subscriber = self.subscriber(request.channel, &request.claims);
        let kept = Kept {
            topic: request.topic.to_shared(),
            subscriber,
            postgres_changes: request.postgres_changes,
            legacy: request.legacy,
            private: request.private,
            replay: request.broadcast.replay,
            cursor: request.broadcast.cursor,
            announce_replication: request.broadcast.announce_replication,
            presence: request.presence,
            wait: request.wait,
            join_ref: request.join_ref,
            bookmark: None,
            asker: self.asker.about(),
        };
        self.begin_join(request.channel, kept, request.claims);
    }

    /// Drops what was registered for older claims, with all that was held for it.
    fn join_again(&mut self, channel: ChannelId, claims: Arc<Claims>) {
        let Some(before) = self.joining.get(&channel).map(Arc::clone) else { return };
        self.leave(channel);
        let subscriber = self.subscriber(channel, &claims);
        self.begin_join(channel, before.again(subscriber, self.asker.about()), claims);
    }

    fn subscriber(&self, channel: ChannelId, claims: &Claims) -> Arc<Subscriber> {
        let inbox = Notices { mailbox: Arc::downgrade(&self.mailbox), channel };
        let outbox = Arc::clone(&self.mailbox.outbox);
        Subscriber::new(outbox, Box::new(inbox), claims.expires_at)
    }

    fn begin_join(&mut self, channel: ChannelId, mut kept: Kept, claims: Arc<Claims>) {
        let name = self.bookmark_name(&kept, &claims);
        let bookmark = name.and_then(|name| self.realtime.bookmarks.find(&name, Instant::now()));
        kept.bookmark = name.map(Box::new);
        let kept = Arc::new(kept);
        let (joiner, mailbox) = (Arc::clone(&self.realtime.joiner), Arc::downgrade(&self.mailbox));
        let ask = Request { bookmark, ..self.request(&kept, claims) };
        self.joining.insert(channel, kept);
        self.realtime.spawn(async move {
            let outcome = joiner.join(ask).await;
            if let Some(mailbox) = mailbox.upgrade() {
                mailbox.post(Mail::Joined(channel, Box::new(outcome)));
            }
        });
    }

    fn request(&self, kept: &Kept, claims: Arc<Claims>) -> Request {
        Request {
            subscriber: Arc::clone(&kept.subscriber),
            format: format(self.version, kept.legacy),
            topic: Arc::clone(&kept.topic),
            claims,
            asker: kept.asker.clone(),
            parameters: Arc::clone(&kept.postgres_changes),
            legacy: kept.legacy,
            private: kept.private,
            replay: kept.replay.clone(),
            presence: kept.presence.enabled,
            headers: Arc::clone(&self.headers),
            cursor: kept.cursor.clone(),
            bookmark: None,
            wait: kept.wait,
            connection_id: None,
        }
    }

    fn leave(&mut self, channel: ChannelId) {
        // A join under way finds nobody waiting, and its membership ends with its mail.
        self.joining.remove(&channel);
        if let Some(Place { membership: Some(membership), .. }) = self.joined.remove(&channel) {
            self.realtime.hub.leave(&membership);
        }
    }

    fn refresh(&mut self, channel: ChannelId, claims: Arc<Claims>) {
        self.rename_bookmark(channel, &claims);
        self.renew(channel, &claims);
        self.subscribe_again(channel, claims);
    }

    /// Puts a channel's subscriptions to row changes under other claims.
    fn subscribe_again(&mut self, channel: ChannelId, claims: Arc<Claims>) {
        let Some(place) = self.joined.get_mut(&channel) else { return };
        let Some(membership) = place.membership.clone() else { return };
        // Also when it is for later: what is under way is for older claims.
        let turn = membership.begin_refresh();
        self.realtime.hub.stand_in(&membership, turn, &claims);
        if !place.refreshing.begin(&claims) {
            return;
        }
        let kept = Arc::clone(&place.request);
        let request = self.request(&kept, claims);
        let (joiner, mailbox) = (Arc::clone(&self.realtime.joiner), Arc::downgrade(&self.mailbox));
        self.realtime.spawn(async move {
            let refreshed = joiner.refresh(&membership, turn, request).await;
            if let Some(mailbox) = mailbox.upgrade() {
                mailbox.post(Mail::Refreshed(channel, refreshed));
            }
        });
    }

    fn refreshed(
        &mut self,
        channel: ChannelId,
        refreshed: Option<Result<(), String>>,
    ) -> ControlFlow<CloseReason> {
        let next = self.joined.get_mut(&channel).and_then(|place| place.refreshing.end());
        if let Some(claims) = next {
            self.subscribe_again(channel, claims);
            return ControlFlow::Continue(());
        }
        let Some(refreshed) = refreshed else { return ControlFlow::Continue(()) };
        let message = match refreshed {
            Ok(()) => SystemMessage::subscribed(),
            Err(problem) => SystemMessage::not_subscribed(problem),
        };
        self.input(Input::System { channel, message })
    }

    /// Puts a channel's place in its room under other claims: at once where policies have no say.
    fn renew(&mut self, channel: ChannelId, claims: &Arc<Claims>) {
        let Some(place) = self.joined.get_mut(&channel) else { return };
        place.turn += 1;
        if !place.request.private {
            place.occupancy.renew(true, claims.expires_at, 0, &mut self.dirty);
            return;
        }
        place.occupancy.await_renewal();
        self.look_again(channel, claims);
    }

    /// Finds out what other claims may read in a private room.
    fn look_again(&mut self, channel: ChannelId, claims: &Arc<Claims>) {
        let Some(place) = self.joined.get_mut(&channel) else { return };
        if !place.renewing.begin(claims) {
            return;
        }
        let (turn, before, kept) = (place.turn, place.grants, Arc::clone(&place.request));
        let doubts = place.occupancy.doubts();
        let (expires_at, presence) = (claims.expires_at, place.wants_presence());
        let request = Request { presence, ..self.request(&kept, Arc::clone(claims)) };
        let (joiner, mailbox) = (Arc::clone(&self.realtime.joiner), Arc::downgrade(&self.mailbox));
        self.realtime.spawn(async move {
            let outcome = joiner.renew(&request, before).await;
            if let Some(mailbox) = mailbox.upgrade() {
                let renewed = Renewed { turn, presence, doubts, outcome, expires_at };
                mailbox.post(Mail::Renewed(channel, renewed));
            }
        });
    }

    fn renewed(&mut self, channel: ChannelId, renewed: Renewed) -> ControlFlow<CloseReason> {
        let Renewed { turn, presence, doubts, outcome, expires_at } = renewed;
        let next = self.joined.get_mut(&channel).and_then(|place| place.renewing.end());
        if let Some(claims) = next {
            self.look_again(channel, &claims);
            return ControlFlow::Continue(());
        }
        let place = self.joined.get_mut(&channel).filter(|place| place.turn == turn);
        match (place, outcome) {
            (None, _) => ControlFlow::Continue(()),
            (Some(_), Err(message)) => self.input(Input::Shutdown { channel, message }),
            (Some(place), Ok(grants)) => {
                place.grants.broadcast = grants.broadcast;
                // If not asked, a first track may have found it out meanwhile for these claims.
                if presence {
                    place.grants.presence = grants.presence;
                }
                place.occupancy.renew(grants.broadcast, expires_at, doubts, &mut self.dirty);
                if place.wants_presence() {
                    self.watch(channel);
                }
                ControlFlow::Continue(())
            }
        }
    }

    fn check_write(&self, channel: ChannelId, claims: Arc<Claims>, turn: u32, sees: bool) {
        let Some(place) = self.joined.get(&channel) else { return };
        // Not the request itself: while somebody has it, the channel has not left.
        let Kept { topic, asker, .. } = &*place.request;
        let (topic, asker, claims_turn) = (Arc::clone(topic), asker.clone(), place.turn);
        let headers = Arc::clone(&self.headers);
        let (joiner, mailbox) = (Arc::clone(&self.realtime.joiner), Arc::downgrade(&self.mailbox));
        self.realtime.spawn(async move {
            let topic = topic.strip_prefix("realtime:").unwrap_or(&topic);
            let (write, read) = if sees {
                joiner.may_write_and_see(&asker, &claims, topic, &headers).await.unzip()
            } else {
                (joiner.may_write(&asker, &claims, topic, &headers).await, None)
            };
            let grants = write.map(|g| Grants { broadcast: g.broadcast, presence: g.presence });
            let sees = read.map(|read| (claims_turn, read.presence));
            if let Some(mailbox) = mailbox.upgrade() {
                mailbox.post(Mail::MayWrite(channel, MayWrite { turn, grants, sees }));
            }
        });
    }

    fn may_write(&mut self, channel: ChannelId, answer: MayWrite) -> ControlFlow<CloseReason> {
        let MayWrite { turn, grants, sees } = answer;
        // For the track that waits for this, which is declined if it may not be written.
        if let Some(place) = self.joined.get_mut(&channel)
            && let Some((claims_turn, presence)) = sees
            && place.turn == claims_turn
            && grants.is_some_and(|grants| grants.presence)
        {
            place.grants.presence = presence;
        }
        self.input(Input::MayWrite { channel, turn, grants })
    }

    fn joined(&mut self, channel: ChannelId, joined: Joined) -> ControlFlow<CloseReason> {
        let Some(request) = self.joining.get(&channel).map(Arc::clone) else {
            return ControlFlow::Continue(());
        };
        let Joined { subscriptions, membership, asked, begins, resume, .. } = joined;
        let Joined { entered, problem, unavailable, starts, .. } = joined;
        let membership = membership.map(Arc::new);
        let joining = Arc::clone(&request);
        let replicates = *self.realtime.joiner.readiness().borrow();
        let outcome = if let Some(Entered { occupancy, grants, stored }) = entered
            && unavailable.is_none()
        {
            let mut system = match problem {
                Some(problem) => vec![SystemMessage::not_subscribed(problem)],
                None if !asked => Vec::new(),
                None => vec![SystemMessage::subscribed()],
            };
            if request.announce_replication && replicates {
                system.push(SystemMessage::replication_ready());
            }
            let bookmark = starts.zip(request.bookmark.as_deref()).map(|(starts, name)| {
                Box::new(self.realtime.bookmarks.open(*name, starts, Instant::now()))
            });
            let replays = stored.is_some();
            let stored = stored.unwrap_or_default();
            let membership = membership.clone();
            let place = Place {
                membership,
                occupancy,
                grants,
                turn: 0,
                renewing: Checks::default(),
                refreshing: Checks::default(),
                key: None,
                stored,
                bookmark,
                request,
                _counted: Counted::new(),
            };
            self.joined.insert(channel, place);
            let acknowledged = |(id, extra)| Subscribed { id, extra };
            let subscriptions = subscriptions.into_iter().map(acknowledged).collect();
            JoinOutcome::Ok { subscriptions, begins, replays, system }
        } else {
            let reason = unavailable.unwrap_or_else(|| "Unknown Error on Channel".into());
            JoinOutcome::Error { reason }
        };
        let flow = self.input(Input::Joined { channel, outcome });
        if self.joining.get(&channel).is_some_and(|now| Arc::ptr_eq(now, &joining)) {
            self.joining.remove(&channel);
        }
        // The reply is in the outbox: what was held may follow it.
        if let Some(place) = self.joined.get(&channel) {
            metrics::counter!(telemetry::JOINS, telemetry::RESULT => "ok").increment(1);
            if let Some(starts) = starts
                && joining.bookmark.is_some()
                && resume.is_none()
            {
                let frame = session_started_frame(self.version, &joining.topic, starts);
                // Whoever takes no more has nothing to be told.
                let _ = self.mailbox.outbox.send(frame);
            }
            joining.subscriber.go_live();
            if let Some(resume) = resume {
                let rooms = [&place.occupancy];
                let channel = Comeback::new(&joining.subscriber, membership.as_ref(), rooms);
                self.realtime.joiner.resume(channel, resume);
            }
            if joining.presence.enabled {
                self.watch(channel);
            }
            if joining.announce_replication && !replicates {
                self.announce_replication(channel);
            }
        }
        flow
    }

    /// Shows who is present, beginning with those who are.
    fn watch(&mut self, channel: ChannelId) {
        let Some(place) = self.joined.get(&channel).filter(|place| place.grants.presence) else {
            return;
        };
        let Kept { topic, join_ref, .. } = &*place.request;
        let (version, join_ref) = (self.version, join_ref.as_ref());
        let begin = |rest_bytes| {
            let head = phoenix::encode_push_head(version, join_ref, topic, "presence_state");
            text_frame_head(&head, rest_bytes)
        };
        place.occupancy.watch(phoenix::end(version), begin, &mut self.dirty);
    }

    fn track(&mut self, channel: ChannelId, meta: &RawValue) -> Result<(), TrackError> {
        // A client that shows itself wants to know who else is there. Diffs without a state would
        // only fill its memory.
        self.watch(channel);
        let Some(place) = self.joined.get_mut(&channel) else { return Ok(()) };
        let request = &place.request;
        let key = place.key.get_or_insert_with(|| presence_key(request.presence.key.as_deref()));
        place.occupancy.track(key, meta.get(), &mut self.dirty)
    }

    /// Sends the stored messages a join asked for; what came meanwhile follows.
    fn replay(&mut self, channel: ChannelId, join_ref: Option<&RawRef>) {
        let Some(place) = self.joined.get_mut(&channel) else { return };
        let topic = &place.request.topic;
        let frame = |broadcast: &Broadcast| match broadcast.payload() {
            // Text names the join; binary frames have no room for it.
            Some(payload) => {
                let (version, event) = (self.version, "broadcast");
                let text = phoenix::encode_push(version, join_ref, topic, event, &payload);
                Some(text_frame(&text))
            }
            None => encode_broadcast(self.version, topic, broadcast, None),
        };
        let stored = std::mem::take(&mut place.stored);
        let replayed = |stored: &Broadcast| {
            let (id, at) = (stored.id()?.into(), stored.stored_at().map(Into::into));
            Some(Replayed { id, at, frame: frame(stored) })
        };
        let stored = stored.iter().filter_map(replayed).collect();
        // The reply is in the outbox: they follow it.
        place.request.subscriber.go_live();
        place.occupancy.replay(stored);
    }

    /// Says that changes flow when they do.
    fn announce_replication(&self, channel: ChannelId) {
        let mut ready = self.realtime.joiner.readiness();
        let mailbox = Arc::downgrade(&self.mailbox);
        self.realtime.spawn(async move {
            let waiting = tokio::time::timeout(REPLICATION_WAIT, ready.wait_for(|ready| *ready));
            let ready = matches!(waiting.await, Ok(Ok(_)));
            if let Some(mailbox) = mailbox.upgrade() {
                mailbox.post(Mail::Replication(channel, ready));
            }
        });
    }

    fn watch_expiry(&mut self) {
        let next = self.session.next_expiry();
        let due = next.map(|(_, at)| at);
        if self.deadline.map(|(at, _)| at) != due {
            if let Some((_, id)) = self.deadline.take() {
                self.realtime.deadlines.remove(id);
            }
            if let Some(at) = due {
                let mailbox: Weak<Mailbox> = Arc::downgrade(&self.mailbox);
                let id = self.realtime.deadlines.add(at, mailbox, 0);
                self.deadline = Some((at, id));
            }
        }
        let mut first = self.mailbox.first.lock().unwrap_or_else(PoisonError::into_inner);
        *first = next.map(|(channel, _)| channel);
    }

    fn arrived(&mut self, raw: Raw<'_>) -> ControlFlow<CloseReason> {
        // Whoever came in by a key that is gone was told to go, unless that was just before.
        if self.epoch != self.realtime.verifier.epoch() {
            return ControlFlow::Break(CloseReason::Shutdown);
        }
        match raw.decode(self.version) {
            Ok(frame) if self.must_wait(&frame) => self.hold(frame, raw),
            Ok(frame) => self.input(Input::Frame(frame)),
            Err(error) => {
                debug!(%error, "malformed frame dropped");
                ControlFlow::Continue(())
            }
        }
    }

    /// Whether a token of this frame names a key that is being fetched, or a frame before it on
    /// its topic waits for one. If so, the wait is under way.
    fn must_wait(&mut self, frame: &Frame<'_>) -> bool {
        let verifier = &self.realtime.verifier;
        if self.held.as_ref().is_some_and(|held| held.has(&frame.topic)) {
            return true;
        }
        if !verifier.rotates() {
            return false;
        }
        let Some(wait) = held::tokens(frame).find_map(|token| verifier.awaited_key(&token)) else {
            return false;
        };
        if self.held.is_none() {
            self.held = Some(Box::default());
            let mailbox = Arc::downgrade(&self.mailbox);
            self.realtime.spawn(async move {
                wait.over().await;
                if let Some(mailbox) = mailbox.upgrade() {
                    mailbox.post(Mail::KeysFetched);
                }
            });
        }
        true
    }

    fn hold(&mut self, frame: Frame<'_>, raw: Raw<'_>) -> ControlFlow<CloseReason> {
        if let Some(Ok(())) = self.held.as_mut().map(|held| held.push(&frame.topic, raw)) {
            return ControlFlow::Continue(());
        }
        // Too much to wait: all of it is answered with the keys there are.
        self.release()?;
        self.input(Input::Frame(frame))
    }

    /// Takes what was held as if it came now.
    fn release(&mut self) -> ControlFlow<CloseReason> {
        let Some(held) = self.held.take() else { return ControlFlow::Continue(()) };
        for raw in held.frames() {
            // It was decoded before.
            if let Ok(frame) = raw.decode(self.version) {
                self.input(Input::Frame(frame))?;
            }
        }
        ControlFlow::Continue(())
    }
}

impl Peer for Socket {
    fn text(&mut self, text: &str) -> ControlFlow<CloseReason> {
        self.arrived(Raw::Text(text))
    }

    fn binary(&mut self, data: &[u8]) -> ControlFlow<CloseReason> {
        self.arrived(Raw::Binary(data))
    }

    fn woken(&mut self) -> ControlFlow<CloseReason> {
        let mail = {
            let mut mail = self.mailbox.mail.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *mail)
        };
        for mail in mail {
            match mail {
                Mail::Joined(channel, joined) => self.joined(channel, *joined)?,
                Mail::Refreshed(channel, refreshed) => self.refreshed(channel, refreshed)?,
                Mail::Notice(channel, problem) => {
                    let message = SystemMessage::not_subscribed(problem);
                    self.input(Input::System { channel, message })?;
                }
                Mail::Doubted(channel) => self.input(Input::Doubted { channel })?,
                Mail::MayWrite(channel, answer) => self.may_write(channel, answer)?,
                Mail::Renewed(channel, renewed) => self.renewed(channel, renewed)?,
                Mail::Replication(channel, true) => {
                    let message = SystemMessage::replication_ready();
                    self.input(Input::System { channel, message })?;
                }
                Mail::Replication(channel, false) => {
                    let message = "Replication connection was not established in time".into();
                    self.input(Input::Shutdown { channel, message })?;
                }
                Mail::Expired(channel) => {
                    // It was called; if the clock was set back since, it has to be set again.
                    self.deadline = None;
                    self.input(Input::Expired { channel })?;
                }
                Mail::KeysFetched => self.release()?,
            }
        }
        ControlFlow::Continue(())
    }

    fn is_full(&self) -> bool {
        self.gathered >= GATHERED_MAX
    }

    fn settle(&mut self, until: Instant) -> bool {
        self.gathered = 0;
        self.dirty.flush_until(until)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        metrics::gauge!(telemetry::CONNECTIONS).decrement(1);
        // A refresh under way may hold a membership for longer.
        for membership in self.joined.values().filter_map(|place| place.membership.as_ref()) {
            self.realtime.hub.leave(membership);
        }
        if let Some((_, id)) = self.deadline.take() {
            self.realtime.deadlines.remove(id);
        }
    }
}

/// The name a client chose for itself: its text, or the JSON of anything else. A random one when it
/// chose none.
fn presence_key(chosen: Option<&RawValue>) -> Box<str> {
    let chosen = chosen.map_or("\"\"", RawValue::get);
    let text: Option<String> = serde_json::from_str(chosen).ok();
    let key = text.unwrap_or_else(|| chosen.to_owned());
    if key.is_empty() { Uuid::new_v4().to_string().into() } else { key.into() }
}
