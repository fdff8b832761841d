//! Event streams over HTTP (Server-Sent Events): who gets one, and what runs on it.
//!
//! In:     a request for a stream, then its socket; row changes and broadcasts from the hub; notices,
//!         the token's expiry.
//! Out:    the response's head and then events without end, or a refusal; last words that say why
//!         the stream ends.
//! Never:  a byte before it is known whether all that was asked for is in force; a look at what the
//!         client sends after its request; a token in a log.
//! Source: html.spec.whatwg.org, section 9.2 (server-sent events); RFC 9112, section 6.3: a response
//!         without a length ends with its connection.
//!
//! A stream is a channel that cannot speak: it subscribes to row changes and is in rooms through the
//! same [`Joiner`], holds a place among the sockets, and its frames go the same way. The socket is
//! taken over from hyper, so that the publisher writes to it as to any other.

mod format;
mod pump;
pub mod request;

use std::borrow::Cow;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::json;

use super::deadlines::{DeadlineId, Deadlines, Expires};
use super::realtime::{Realtime, policy_headers};
use super::websocket::{End, say_goodbye};
use crate::auth::Claims;
use crate::auth::access::Asker;
use crate::auth::jwt::TokenError;
use crate::config;
use crate::cursor::Cursor;
use crate::feed::Resume;
use crate::hub::outbox::{CloseReason, Outbox};
use crate::hub::{Comeback, Hub, Inbox, Membership, Occupancy, Subscriber};
use crate::join::{Joined, Joiner, Request};
use crate::session::UserPlace;
use crate::telemetry;

use format::{Event, FORMAT};
use pump::Pump;
use request::Wishes;

/// The topic of row changes. It has no `realtime:` in front, so that nobody can join it or say
/// anything there, and it is the same for all, so that equal subscriptions share their frames.
const ROWS: &str = "events";

/// Notices that wait for the stream's task; a table that is dropped makes one for each subscription.
const NOTICES_MAX: usize = 100;

/// The token has expired: the one end that a client should not come back from as it is.
const EXPIRED: CloseReason = CloseReason::Session { code: 4401, text: "the token has expired" };

/// Rows changed that decide what it may hear.
const DOUBTED: CloseReason =
    CloseReason::Session { code: 4403, text: "what you may hear has to be decided anew" };

/// It never began.
const REFUSED: CloseReason = CloseReason::Session { code: 4400, text: "refused" };

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Why there is no stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    status: StatusCode,
    text: Cow<'static, str>,
}

impl Refused {
    /// With this status and sentence.
    pub fn new(status: StatusCode, text: impl Into<Cow<'static, str>>) -> Self {
        Self { status, text: text.into() }
    }

    fn unauthorized(error: &TokenError) -> Self {
        let status = StatusCode::from_u16(error.status());
        Self::new(status.unwrap_or(StatusCode::UNAUTHORIZED), error.http_text())
    }

    /// Of a join that came to nothing: `Code: text`.
    fn unavailable(reason: &str) -> Self {
        let (code, text) = reason.split_once(": ").unwrap_or(("", reason));
        let status = match code {
            "Unauthorized" => StatusCode::FORBIDDEN,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, text.to_owned())
    }

    /// Whether the same request may be granted later.
    fn passes(&self) -> bool {
        matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS)
    }
}

/// A stream, to its end.
pub type Running = Pin<Box<dyn Future<Output = CloseReason> + Send>>;

/// All event streams.
#[derive(Debug, Clone)]
pub struct Events {
    realtime: Arc<Realtime>,
    heartbeat: Duration,
    retry: Duration,
}

/// A request that may have a stream, if the database lets it.
#[derive(Debug)]
pub struct Admitted {
    claims: Arc<Claims>,
    wishes: Wishes,
    /// How far the client has come, as it says.
    since: Option<Box<str>>,
    /// What policies read as `request.headers`.
    headers: Arc<str>,
    /// The verifier's when the token was verified.
    epoch: u64,
    reconnects: bool,
    _user: Option<UserPlace>,
}

impl Events {
    /// Beside the sockets of `realtime`, with all that they share.
    pub fn new(realtime: Arc<Realtime>, settings: &config::Server) -> Self {
        Self {
            realtime,
            heartbeat: Duration::from_millis(settings.stream_heartbeat_ms),
            retry: Duration::from_millis(settings.stream_retry_ms),
        }
    }

    /// Whether a client comes back by itself. A browser's `EventSource` does so after a stream, and
    /// never again after any answer that is none.
    pub fn reconnects(headers: &HeaderMap) -> bool {
        headers.contains_key(LAST_EVENT_ID)
    }

    /// Who asks for a stream, and of what. `header` is the token of the request's headers: empty
    /// when there is none, none when it is unreadable.
    ///
    /// # Errors
    /// What to answer.
    pub async fn admit(&self, request: &Parts, header: Option<&str>) -> Result<Admitted, Refused> {
        let Realtime { verifier, limits, rates, .. } = &*self.realtime;
        let query = request.uri.query().unwrap_or_default();
        // Before the token is verified: a key that goes away while it is counts as gone after.
        let epoch = verifier.epoch();
        let header = header.ok_or_else(|| Refused::unauthorized(&TokenError::Malformed))?;
        let token = if header.is_empty() { request::token(query) } else { Some(header.into()) };
        let token = token.ok_or_else(|| Refused::unauthorized(&TokenError::Missing))?;
        let claims = verifier.verify_fresh(&token, SystemTime::now()).await;
        let claims = claims.map_err(|error| Refused::unauthorized(&error))?;
        let wishes = request::wishes(query, limits)
            .map_err(|problem| Refused::new(StatusCode::BAD_REQUEST, problem))?;
        if limits.private_only && !wishes.private && !wishes.topics.is_empty() {
            let text = "This project only allows private channels";
            return Err(Refused::new(StatusCode::FORBIDDEN, text));
        }
        let crowded = |text: &'static str| Refused::new(StatusCode::TOO_MANY_REQUESTS, text);
        let most = limits.connections_per_user_max;
        let user = match claims.subject.as_ref().filter(|_| most > 0) {
            Some(subject) => {
                let place = rates.enter(subject, most);
                Some(place.ok_or_else(|| crowded("Too many connected users"))?)
            }
            None => None,
        };
        let joins = wishes.topics.len() + usize::from(!wishes.changes.is_empty());
        let now = SystemTime::now();
        if !(0..joins).all(|_| rates.admit_join(limits.joins_per_second_max, now)) {
            return Err(crowded("Too many joins per second"));
        }
        let (claims, headers) = (Arc::new(claims), policy_headers(&request.headers));
        let reconnects = Self::reconnects(&request.headers);
        // What a client says when it comes back is newer than the URL it comes back to.
        let told =
            request.headers.get(LAST_EVENT_ID).map(|id| String::from_utf8_lossy(id.as_bytes()));
        let since = told.as_deref().or(wishes.cursor.as_deref());
        let since = since.filter(|since| !since.is_empty()).map(Into::into);
        Ok(Admitted { claims, wishes, since, headers, epoch, reconnects, _user: user })
    }

    /// What runs on the socket of an admitted request; it gets the headers that its answer needs
    /// besides its own, and how long it may take to say goodbye.
    pub fn start(
        &self,
        admitted: Admitted,
    ) -> impl FnOnce(HeaderMap, Arc<Outbox>, Duration) -> Running + Send + 'static {
        let events = self.clone();
        move |headers, outbox, grace| {
            // In a box: an idle stream's task is small, and this is not.
            Box::pin(async move { events.run(admitted, headers, outbox, grace).await })
        }
    }

    /// How long a refusal waits, so that a client in a retry loop is slowed.
    pub fn delay(&self, refused: &Refused) -> Duration {
        match refused.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.realtime.connect_backoff,
            _ => Duration::ZERO,
        }
    }

    /// What is answered instead of a stream: JSON, but to a client that would take any such answer
    /// for the last one, and that had better come back.
    pub fn refusal(&self, refused: &Refused, reconnects: bool) -> (StatusCode, HeaderMap, Bytes) {
        let Refused { status, text } = refused;
        let mut headers = HeaderMap::new();
        if refused.passes() && reconnects {
            stream_headers(&mut headers);
            let mut body = self.retry_line().into_bytes();
            body.extend_from_slice(&closing("unavailable", text));
            return (StatusCode::OK, headers, body.into());
        }
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if refused.passes() {
            let seconds = self.retry.as_millis().div_ceil(1000);
            let seconds = HeaderValue::from(u64::try_from(seconds).unwrap_or(u64::MAX));
            headers.insert(header::RETRY_AFTER, seconds);
        }
        (*status, headers, json!({ "error": text }).to_string().into())
    }

    /// How long a client waits before it comes back: not all the same, or they would all come at
    /// once.
    fn retry_line(&self) -> String {
        let half = u64::try_from(self.retry.as_millis()).unwrap_or(u64::MAX) / 2;
        format!("retry: {}\n\n", half + rand::random_range(0..=half.saturating_mul(2)))
    }

    async fn run(
        self,
        admitted: Admitted,
        headers: HeaderMap,
        outbox: Arc<Outbox>,
        grace: Duration,
    ) -> CloseReason {
        let end = End { outbox: Arc::clone(&outbox) };
        let (reason, words) = self.speak(admitted, headers, &outbox).await;
        // Every subscription is gone, so that nothing comes after these.
        if let Some(words) = words.filter(|_| reason != CloseReason::Gone) {
            end.outbox.push_last(words);
            Box::pin(say_goodbye(&end.outbox, reason, grace)).await;
        }
        reason
    }

    /// Runs a stream to its end; why it ends, and what is still to be said.
    async fn speak(
        &self,
        admitted: Admitted,
        mut headers: HeaderMap,
        outbox: &Arc<Outbox>,
    ) -> (CloseReason, Option<Bytes>) {
        let Admitted { claims, wishes, since, headers: shown, epoch, reconnects, .. } = &admitted;
        let (epoch, reconnects) = (*epoch, *reconnects);
        let mailbox = Arc::new(Mailbox { outbox: Arc::clone(outbox), mail: Mutex::default() });
        let mut pump = Pump::new(outbox);
        let joining = async {
            let channel = self.join(claims, wishes, since.as_deref(), shown, &mailbox).await?;
            // A key that went away meanwhile takes its tokens with it.
            if epoch != self.realtime.verifier.epoch() {
                return Err(Refused::unauthorized(&TokenError::Signature));
            }
            if claims.expires_at <= SystemTime::now() {
                return Err(Refused::unauthorized(&TokenError::Expired { seconds: 0 }));
            }
            Ok(channel)
        };
        let joined = tokio::select! {
            biased;
            reason = poll_fn(|context| pump.poll_end(context)) => Err(reason),
            joined = Box::pin(joining) => Ok(joined),
        };
        let mut channel = match joined {
            Ok(Ok(channel)) => channel,
            Ok(Err(refused)) => {
                metrics::counter!(telemetry::JOINS, telemetry::RESULT => "error").increment(1);
                let wait = tokio::time::sleep(self.realtime.error_backoff);
                let reason = tokio::select! {
                    reason = poll_fn(|context| pump.poll_end(context)) => reason,
                    () = wait => outbox.close(REFUSED),
                };
                return (reason, Some(self.answer(&refused, reconnects, &headers)));
            }
            Err(reason) => {
                return (reason, Some(self.answer(&not_begun(), reconnects, &headers)));
            }
        };
        let instead = self.answer(&not_begun(), reconnects, &headers);
        stream_headers(&mut headers);
        let mut first = head(StatusCode::OK, &headers);
        drop(headers);
        first.extend_from_slice(self.retry_line().as_bytes());
        first.extend_from_slice(&channel.ready);
        pump.beat(self.heartbeat);
        let deadlines = &self.realtime.deadlines;
        let mut deadline = Deadline::new(deadlines, &mailbox, claims.expires_at);
        if let Err(reason) = outbox.send(first.into()) {
            return (reason, Some(instead));
        }
        drop(instead);
        channel.subscriber.go_live();
        if let Some(resume) = channel.resume.take() {
            let Channel { subscriber, membership, rooms, .. } = &channel;
            let back = Comeback::new(subscriber, membership.as_ref(), rooms);
            self.realtime.joiner.resume(back, resume);
        }
        let mut flow = Ok(());
        let reason = loop {
            // Before the first wait too: something may have come during the join.
            flow = flow.and_then(|()| mailbox.deliver(&mut deadline));
            if let Err(reason) = flow {
                break outbox.close(reason);
            }
            flow = poll_fn(|context| pump.poll(context)).await;
        };
        drop(channel);
        (reason, goodbye(reason))
    }

    /// Asks for all that a stream is about. It has all of it, or nothing.
    async fn join(
        &self,
        claims: &Arc<Claims>,
        wishes: &Wishes,
        since: Option<&str>,
        headers: &Arc<str>,
        mailbox: &Arc<Mailbox>,
    ) -> Result<Channel, Refused> {
        let inbox = Box::new(Notices(Arc::downgrade(mailbox)));
        let outbox = Arc::clone(&mailbox.outbox);
        // One for all: what is held until the answer stays in its order.
        let subscriber = Subscriber::new(outbox, inbox, claims.expires_at);
        let asker = Leaving(Asker::default());
        let request = |topic| Request {
            subscriber: Arc::clone(&subscriber),
            format: FORMAT,
            topic,
            claims: Arc::clone(claims),
            asker: asker.0.clone(),
            parameters: [].into(),
            legacy: false,
            private: false,
            replay: None,
            presence: false,
            headers: Arc::clone(headers),
            // All that it asks for is behind the same place, and waits for the same word.
            cursor: since.map(Into::into),
            bookmark: None,
            wait: None,
            connection_id: None,
        };
        let Wishes { topics, private, changes, .. } = wishes;
        let joiner: &Joiner = &self.realtime.joiner;
        let rows = async {
            if changes.is_empty() {
                return None;
            }
            let rows = Request { parameters: changes.as_slice().into(), ..request(ROWS.into()) };
            Some(joiner.join(rows).await)
        };
        let rooms = topics.iter().map(|topic| {
            let room = request(topic.to_shared());
            joiner.join(Request { private: *private, ..room })
        });
        let (rows, rooms) = tokio::join!(rows, join_all(rooms));
        let joins = rooms.len() + usize::from(rows.is_some());
        let mut channel = Channel {
            hub: Arc::clone(&self.realtime.hub),
            subscriber,
            membership: None,
            resume: None,
            rooms: Vec::new(),
            ready: Bytes::new(),
            _counted: Counted::new(joins),
        };
        let mut begins = None;
        if let Some(rows) = rows {
            begins = rows.begins;
            channel.take(rows)?;
            // It need not be in the room of that topic, where nothing is ever said.
            channel.rooms.clear();
        }
        for room in rooms {
            begins = begins.or(room.starts);
            channel.take(room)?;
        }
        channel.ready = self.ready(since, begins);
        let joins = u64::try_from(joins).unwrap_or(u64::MAX);
        metrics::counter!(telemetry::JOINS, telemetry::RESULT => "ok").increment(joins);
        Ok(channel)
    }

    /// The first event: where the stream begins.
    fn ready(&self, since: Option<&str>, begins: Option<Cursor>) -> Bytes {
        let now = self.realtime.hub.read_to();
        let from = since.and_then(|since| since.parse().ok());
        let data = json!({ "cursor": begins.unwrap_or(now).to_string() }).to_string();
        // A place that the client never named is none that it may come back with, before it is told
        // what it missed up to there.
        let at = if since.is_some() { from } else { Some(begins.unwrap_or(now)) };
        Event::named("ready").id(at).data(data.as_bytes()).finish()
    }

    /// The whole answer to a request that is refused when it has the socket.
    fn answer(&self, refused: &Refused, reconnects: bool, others: &HeaderMap) -> Bytes {
        let (status, mut headers, body) = self.refusal(refused, reconnects);
        for (name, value) in others {
            headers.append(name, value.clone());
        }
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        let mut answer = head(status, &headers);
        answer.extend_from_slice(&body);
        answer.into()
    }
}

/// All that a stream has in the hub; dropping it leaves.
struct Channel {
    hub: Arc<Hub>,
    subscriber: Arc<Subscriber>,
    membership: Option<Arc<Membership>>,
    /// To be begun when the answer is out.
    resume: Option<Resume>,
    rooms: Vec<Occupancy>,
    /// The first event.
    ready: Bytes,
    _counted: Counted,
}

impl Drop for Channel {
    fn drop(&mut self) {
        // A replay under way may hold it for longer.
        if let Some(membership) = &self.membership {
            self.hub.leave(membership);
        }
    }
}

impl Channel {
    /// Keeps what a join came to.
    fn take(&mut self, joined: Joined) -> Result<(), Refused> {
        let Joined { membership, entered, problem, unavailable, resume, .. } = joined;
        self.resume = self.resume.take().or(resume);
        if let Some(reason) = unavailable {
            return Err(Refused::unavailable(&reason));
        }
        if let Some(problem) = problem {
            return Err(Refused::new(StatusCode::BAD_REQUEST, problem));
        }
        self.membership = membership.map(Arc::new).or(self.membership.take());
        self.rooms.extend(entered.map(|entered| entered.occupancy));
        Ok(())
    }
}

/// A stream in the metrics, as long as it lives.
struct Counted(f64);

impl Counted {
    fn new(channels: usize) -> Self {
        let channels = u32::try_from(channels).map_or(f64::from(u32::MAX), f64::from);
        metrics::gauge!(telemetry::CONNECTIONS).increment(1);
        metrics::gauge!(telemetry::CHANNELS).increment(channels);
        Self(channels)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::gauge!(telemetry::CONNECTIONS).decrement(1);
        metrics::gauge!(telemetry::CHANNELS).decrement(self.0);
    }
}

/// Takes back what it asked of policies, when it is no longer wanted.
struct Leaving(Asker);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// What comes to a stream from elsewhere.
#[derive(Debug)]
enum Mail {
    /// Something that its client is told in words.
    Notice(String),
    /// The token may have expired.
    Due,
    /// Rows changed that decide who may be in one of its rooms.
    Doubted,
}

/// The part of a stream that others hold.
#[derive(Debug)]
struct Mailbox {
    outbox: Arc<Outbox>,
    mail: Mutex<Vec<Mail>>,
}

impl Mailbox {
    fn mail(&self) -> MutexGuard<'_, Vec<Mail>> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn post(&self, mail: Mail) {
        {
            let mut waiting = self.mail();
            if waiting.len() >= NOTICES_MAX && matches!(mail, Mail::Notice(_) | Mail::Doubted) {
                return;
            }
            waiting.push(mail);
        }
        self.outbox.wake();
    }

    /// Tells the client what has come.
    fn deliver(&self, deadline: &mut Deadline) -> Result<(), CloseReason> {
        let mail = std::mem::take(&mut *self.mail());
        for mail in mail {
            match mail {
                Mail::Notice(text) => {
                    let data = json!({ "message": text }).to_string();
                    self.outbox.send(Event::named("notice").data(data.as_bytes()).finish())?;
                }
                Mail::Due if deadline.at <= SystemTime::now() => return Err(EXPIRED),
                // The clock was set back since.
                Mail::Due => deadline.set(),
                // It comes back with how far it has come, and is asked about then.
                Mail::Doubted => return Err(DOUBTED),
            }
        }
        Ok(())
    }
}

impl Expires for Mailbox {
    fn expired(&self, _channel: u64) {
        self.post(Mail::Due);
    }
}

/// How a subscriber's notices reach its stream.
struct Notices(Weak<Mailbox>);

impl Inbox for Notices {
    fn notice(&self, message: String) {
        if let Some(mailbox) = self.0.upgrade() {
            mailbox.post(Mail::Notice(message));
        }
    }

    fn doubted(&self) {
        if let Some(mailbox) = self.0.upgrade() {
            mailbox.post(Mail::Doubted);
        }
    }
}

/// When a stream's token expires; dropping it takes it back.
struct Deadline {
    deadlines: Arc<Deadlines>,
    mailbox: Weak<Mailbox>,
    at: SystemTime,
    id: DeadlineId,
}

impl Deadline {
    fn new(deadlines: &Arc<Deadlines>, mailbox: &Arc<Mailbox>, at: SystemTime) -> Self {
        let mailbox = Arc::downgrade(mailbox);
        let id = deadlines.add(at, Weak::<Mailbox>::clone(&mailbox), 0);
        Self { deadlines: Arc::clone(deadlines), mailbox, at, id }
    }

    /// It was called before its time.
    fn set(&mut self) {
        self.id = self.deadlines.add(self.at, Weak::<Mailbox>::clone(&self.mailbox), 0);
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.deadlines.remove(self.id);
    }
}

/// Of a connection that ends before its stream has begun.
fn not_begun() -> Refused {
    Refused::new(StatusCode::SERVICE_UNAVAILABLE, "The stream ended before it began")
}

/// The last event of a stream; none when there is nobody to read it.
fn goodbye(reason: CloseReason) -> Option<Bytes> {
    let (_, text) = reason.code_and_text()?;
    let code = if reason == EXPIRED {
        "token_expired"
    } else if reason == DOUBTED {
        "rights_changed"
    } else {
        reason.label()
    };
    Some(closing(code, text))
}

fn closing(reason: &str, message: &str) -> Bytes {
    let data = json!({ "reason": reason, "message": message }).to_string();
    Event::named("close").data(data.as_bytes()).finish()
}

fn stream_headers(headers: &mut HeaderMap) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx would gather what is to be told at once.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
}

/// The head of a response that ends with its connection.
fn head(status: StatusCode, headers: &HeaderMap) -> Vec<u8> {
    let date = httpdate::fmt_http_date(SystemTime::now());
    let reason = status.canonical_reason().unwrap_or_default();
    let mut head =
        format!("HTTP/1.1 {} {reason}\r\ndate: {date}\r\nconnection: close\r\n", status.as_u16())
            .into_bytes();
    for (name, value) in headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    head.extend_from_slice(b"\r\n");
    head
}
