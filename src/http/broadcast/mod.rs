//! Broadcasts over HTTP: what servers say, and clients whose socket is not open.
//!
//! In:     requests with a token; one broadcast as a body, or several as JSON.
//! Out:    what the rooms of this server are told; 202, or why nothing was sent.
//! Never:  a part of a batch of which a message is wrong; anything to a private room before the
//!         policies let the token's claims write there; a body kept before its sender is known.
//! Source: spec of the realtime protocol, sections 4.3 and 4.4.
//!
//! A payload of one broadcast may be any JSON value and is passed on as it is. The reference server
//! wraps one that is no object as `{"_json": value}`, an accident of its parser.
//!
//! Policies see the headers of the request, without those that hold credentials: who is asking is in
//! the claims, and a token has no business in a setting, a log line or an error of Postgres.

pub mod batch;

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hashbrown::HashMap;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::task::yield_now;
use tokio::time::timeout;
use tracing::warn;

use super::body::{Incoming, READ_ON_MAX, Unread};
use super::{Gate, Service, error, message};
use crate::auth::Claims;
use crate::auth::access::{self, Access, Asker, Askers};
use crate::auth::jwt::Verifier;
use crate::config::Config;
use crate::event::broadcast::{Broadcast, Encoding, Meta, UserEvent};
use crate::hub::outbox::DirtyList;
use crate::hub::{Hub, RoomName};
use crate::session::Rates;
use crate::telemetry;
use crate::topic::Topic;
use crate::transport::admit::Admit;
use crate::transport::websocket::Room;
use batch::{Errors, INVALID, Message, TOO_LARGE, TOO_LONG, Unusable};

/// Messages of one batch between two chances for others to run on this thread.
const TURN_MESSAGES: usize = 100;

/// How long the policies of one batch may take together: each private topic is asked about once.
const CHECKS_TIME_MAX: Duration = Duration::from_secs(10);

/// Headers with credentials, which policies do not get to see.
const CREDENTIALS: [HeaderName; 5] = [
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    header::COOKIE,
    API_KEY,
    HeaderName::from_static("x-api-key"),
];

/// Header of a key or token of somebody who has not signed in.
pub(super) const API_KEY: HeaderName = HeaderName::from_static("apikey");

/// Who is one asker without a connection: a user, or whoever has this address and no user.
#[derive(Debug, PartialEq, Eq, Hash)]
enum AskerName {
    User { role: Arc<str>, subject: Arc<str> },
    Address(Option<IpAddr>),
}

/// Whoever sends a request.
struct Sender {
    claims: Claims,
    asker: Asker,
}

/// What is said over HTTP, and by whom.
pub struct Broadcasts {
    verifier: Arc<Verifier>,
    access: Arc<Access>,
    askers: Askers<AskerName>,
    hub: Arc<Hub>,
    rates: Arc<Rates>,
    events_per_second_max: usize,
    batch: batch::Limits,
    batch_bytes_max: usize,
    body_timeout: Duration,
}

impl Broadcasts {
    /// To the rooms of `hub`; `rates` are those that sockets share.
    pub fn new(
        verifier: Arc<Verifier>,
        access: Arc<Access>,
        hub: Arc<Hub>,
        rates: Arc<Rates>,
        config: &Config,
    ) -> Self {
        let limits = &config.limits;
        Self {
            verifier,
            access,
            askers: Askers::default(),
            hub,
            rates,
            events_per_second_max: limits.events_per_second_max,
            batch: batch::Limits {
                messages_max: limits.batch_messages_max,
                payload_bytes_max: limits.payload_bytes_max,
            },
            batch_bytes_max: limits.batch_bytes_max,
            body_timeout: Duration::from_millis(config.server.body_timeout_ms),
        }
    }

    /// The head of a request, and its body.
    fn take(&self, request: Request) -> (Parts, Incoming) {
        let (parts, body) = request.into_parts();
        let body = Incoming::new(body, &parts.headers, self.body_timeout);
        (parts, body)
    }

    /// Whoever sends `headers` from `address`.
    async fn sender(
        &self,
        headers: &HeaderMap,
        address: Option<IpAddr>,
    ) -> Result<Sender, Refused> {
        let token = token(headers).ok_or(Refused::Unauthorized)?;
        let verified = self.verifier.verify_fresh(token, SystemTime::now()).await;
        let claims = verified.map_err(|_| Refused::Unauthorized)?;
        let name = claims.subject.as_ref().map_or(AskerName::Address(address), |subject| {
            AskerName::User { role: Arc::clone(&claims.role), subject: Arc::clone(subject) }
        });
        Ok(Sender { claims, asker: self.askers.named(name) })
    }

    /// Whether the sender may write broadcasts on a private topic.
    async fn may_write(
        &self,
        Sender { claims, asker }: &Sender,
        topic: &Topic,
        headers: &str,
    ) -> Result<bool, Refused> {
        let topic = topic.sub_topic();
        let grants = self.access.write(asker, claims, topic, headers, false).await;
        grants.map(|grants| grants.broadcast).map_err(|problem| {
            let (status, text) = undecided(&problem);
            let message = match &problem {
                access::Error::Policy { message, .. } => message,
                access::Error::Canceled
                | access::Error::MissingPartition
                | access::Error::Gone
                | access::Error::Busy
                | access::Error::Unavailable(_)
                | access::Error::Role { .. } => "",
            };
            let error = telemetry::chain(&problem);
            warn!(code = text, topic, message, error, "a broadcast was not allowed");
            Refused::Undecided(status, text)
        })
    }

    /// The topics of these private messages, and whether the sender may write there.
    async fn grants<'m>(
        &self,
        sender: &Sender,
        messages: &'m [Message<'_>],
        headers: &HeaderMap,
    ) -> Result<HashMap<&'m Topic, bool>, Refused> {
        let mut grants = HashMap::new();
        if !messages.iter().any(|message| message.private) {
            return Ok(grants);
        }
        let headers = shown_headers(headers);
        for Message { topic, private, .. } in messages {
            if *private && !grants.contains_key(topic) {
                grants.insert(topic, self.may_write(sender, topic, &headers).await?);
            }
        }
        Ok(grants)
    }

    /// Counts so many messages, unless there are too many in this second.
    fn admit(&self, messages: usize) -> Result<(), Refused> {
        let most = self.events_per_second_max;
        if messages > most {
            return Err(Refused::TooManyMessages);
        }
        let is_admitted = self.rates.admit_events(messages, most, SystemTime::now());
        if is_admitted { Ok(()) } else { Err(Refused::TooOften) }
    }

    /// Tells a room; what it is told goes out when the list is flushed.
    fn tell(&self, room: &RoomName, broadcast: &Broadcast, dirty: &mut DirtyList) {
        let told = self.hub.broadcast(room, broadcast, dirty);
        metrics::counter!(telemetry::BROADCASTS).increment(1);
        metrics::counter!(telemetry::DELIVERIES).increment(told);
    }

    async fn send_batch(
        &self,
        sender: &Sender,
        parts: &Parts,
        body: &mut Incoming,
        room: Arc<Room>,
    ) -> Result<(), Refused> {
        let upload = body.read(self.batch_bytes_max, room).await;
        let upload = upload.map_err(|unread| unread.or_too_large(Refused::BatchTooLarge))?;
        let messages =
            batch::parse(&upload.bytes, self.batch).map_err(|unusable| match unusable {
                Unusable::Malformed => Refused::Malformed,
                Unusable::TooMany => Refused::TooManyMessages,
                Unusable::Invalid(errors) => Refused::Messages(errors),
            })?;
        self.admit(messages.len())?;
        let grants = timeout(CHECKS_TIME_MAX, self.grants(sender, &messages, &parts.headers));
        let grants = grants.await.map_err(|_| {
            let (status, text) = undecided(&access::Error::Canceled);
            Refused::Undecided(status, text)
        })??;
        still_valid(&sender.claims)?;
        let mut dirty = DirtyList::default();
        for (number, message) in (1..).zip(&messages) {
            if message.private && grants.get(&message.topic) != Some(&true) {
                continue;
            }
            let meta = Meta { id: message.id.clone(), ..Meta::default() };
            let data = upload.bytes.slice_ref(message.payload.get().as_bytes());
            let event = message.event.clone();
            let event = UserEvent { event, encoding: Encoding::Json, data, meta };
            // All versions get it as text.
            let payload = Broadcast::User(event).payload().expect("JSON is text");
            let room = RoomName { topic: message.topic.to_shared(), private: message.private };
            self.tell(&room, &Broadcast::Whole(payload), &mut dirty);
            if number % TURN_MESSAGES == 0 {
                dirty.flush();
                yield_now().await;
            }
        }
        dirty.flush();
        Ok(())
    }

    async fn send_single(
        &self,
        sender: &Sender,
        (topic, event): (String, String),
        parts: &Parts,
        body: &mut Incoming,
        room: Arc<Room>,
    ) -> Result<(), Refused> {
        let encoding = encoding(&parts.headers).ok_or(Refused::MediaType)?;
        let private = private(parts.uri.query().unwrap_or_default());
        let private = private.ok_or(Refused::Field("private", INVALID))?;
        let topic = Topic::parse(&format!("realtime:{topic}"));
        let topic = topic.map_err(|problem| Refused::Field("topic", batch::problem(problem)))?;
        let too_large = Refused::Field("payload", TOO_LARGE);
        let upload = body.read(self.batch.payload_bytes_max, room).await;
        let upload = upload.map_err(|unread| unread.or_too_large(too_large))?;
        let data = match encoding {
            Encoding::Bytes => upload.bytes.clone(),
            Encoding::Json => json_value(&upload.bytes).ok_or(Refused::Malformed)?,
        };
        self.admit(1)?;
        if private && !self.may_write(sender, &topic, &shown_headers(&parts.headers)).await? {
            return Err(Refused::Forbidden);
        }
        still_valid(&sender.claims)?;
        let event = UserEvent { event: event.into(), encoding, data, meta: Meta::default() };
        if !event.can_be_told_on(topic.as_str()) {
            return Err(Refused::Field("event", TOO_LONG));
        }
        let mut dirty = DirtyList::default();
        self.tell(
            &RoomName { topic: topic.to_shared(), private },
            &Broadcast::User(event),
            &mut dirty,
        );
        dirty.flush();
        Ok(())
    }

    /// The answer to somebody who is refused.
    async fn refuse(&self, refused: Refused, body: Incoming) -> Response {
        metrics::counter!(telemetry::BROADCAST_REQUESTS, telemetry::RESULT => "error").increment(1);
        let most = self.batch_bytes_max.max(self.batch.payload_bytes_max);
        let most = u64::try_from(most).unwrap_or(u64::MAX);
        body.discard(most.saturating_mul(READ_ON_MAX)).await;
        refused.into_response()
    }

    /// The answer to somebody whose token was good, and how much of the rate is used.
    async fn answer(&self, outcome: Result<(), Refused>, body: Incoming) -> Response {
        let mut response = match outcome {
            Ok(()) => {
                let requests = telemetry::BROADCAST_REQUESTS;
                metrics::counter!(requests, telemetry::RESULT => "ok").increment(1);
                StatusCode::ACCEPTED.into_response()
            }
            Err(refused) => self.refuse(refused, body).await,
        };
        let used = self.rates.events(SystemTime::now());
        let most = u64::try_from(self.events_per_second_max).unwrap_or(u64::MAX);
        let headers = response.headers_mut();
        headers.insert("x-rate-rolling", used.into());
        headers.insert("x-rate-limit", most.into());
        headers.insert("x-rate-limit-remaining", most.saturating_sub(used).into());
        response
    }
}

/// Why nothing was sent.
#[derive(Debug)]
enum Refused {
    /// The page's origin is not on the list.
    Origin,
    /// There is no token, or it is no good, or no longer.
    Unauthorized,
    /// The policies do not let the sender write there.
    Forbidden,
    /// The path is no text.
    Path,
    /// The body is not JSON.
    Malformed,
    /// The connection ended before the body.
    Broken,
    Late,
    BatchTooLarge,
    MediaType,
    /// Messages of a batch.
    Messages(Errors),
    /// A field of a single broadcast.
    Field(&'static str, &'static str),
    TooOften,
    TooManyMessages,
    /// Other requests hold too much.
    Crowded,
    /// The policies gave no answer.
    Undecided(StatusCode, &'static str),
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let retry = matches!(self, Self::TooOften | Self::Crowded);
        let mut response = match self {
            Self::Origin => message(StatusCode::FORBIDDEN, "Origin is not allowed"),
            Self::Unauthorized => message(StatusCode::UNAUTHORIZED, "Unauthorized"),
            Self::Forbidden => message(StatusCode::FORBIDDEN, "Unauthorized"),
            Self::Path => message(StatusCode::BAD_REQUEST, "The path is not UTF-8"),
            Self::Malformed => message(StatusCode::BAD_REQUEST, "The body is not valid JSON"),
            Self::Broken => message(StatusCode::BAD_REQUEST, "The body is not complete"),
            Self::Late => message(StatusCode::REQUEST_TIMEOUT, "The body did not come in time"),
            Self::BatchTooLarge => {
                message(StatusCode::PAYLOAD_TOO_LARGE, "The body is too large, send it in parts")
            }
            Self::MediaType => error(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "Unsupported Media Type. Use application/json or application/octet-stream",
            ),
            Self::Messages(errors) => {
                (StatusCode::UNPROCESSABLE_ENTITY, axum::Json(errors)).into_response()
            }
            Self::Field(name, text) => {
                let errors = json!({ "errors": { name: [text] } });
                (StatusCode::UNPROCESSABLE_ENTITY, axum::Json(errors)).into_response()
            }
            Self::TooOften => {
                message(StatusCode::TOO_MANY_REQUESTS, "You have exceeded your rate limit")
            }
            Self::TooManyMessages => message(
                StatusCode::TOO_MANY_REQUESTS,
                "Too many messages to broadcast, please reduce the batch size",
            ),
            Self::Crowded => message(StatusCode::TOO_MANY_REQUESTS, "Too many requests"),
            Self::Undecided(status, text) => message(status, text),
        };
        if retry {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// What the sender is told when the policies gave no answer.
fn undecided(error: &access::Error) -> (StatusCode, &'static str) {
    match error {
        access::Error::Policy { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "RLS policy error"),
        access::Error::Canceled => (StatusCode::UNPROCESSABLE_ENTITY, "Query canceled"),
        access::Error::MissingPartition => {
            (StatusCode::UNPROCESSABLE_ENTITY, "Missing messages partition")
        }
        access::Error::Busy => (StatusCode::TOO_MANY_REQUESTS, "Connection pool exhausted"),
        access::Error::Unavailable(_) | access::Error::Gone => {
            (StatusCode::UNPROCESSABLE_ENTITY, "Tenant database unavailable")
        }
        access::Error::Role { .. } => {
            (StatusCode::INTERNAL_SERVER_ERROR, "Unable to authorize broadcast")
        }
    }
}

/// Several broadcasts, all of them or none. Those to private rooms in which the sender may not
/// write are left out, which it is not told; when that cannot be found out, nothing is sent.
pub(super) async fn batch<A: Admit>(
    State(service): State<Arc<Service<A>>>,
    request: Request,
) -> Response {
    let Some(own) = &service.broadcasts else { return StatusCode::NOT_FOUND.into_response() };
    let (parts, mut body) = own.take(request);
    let sender = match sender(&service.gate, own, &parts).await {
        Ok(sender) => sender,
        Err(refused) => return own.refuse(refused, body).await,
    };
    let room = service.connections.unfinished();
    let outcome = Box::pin(own.send_batch(&sender, &parts, &mut body, room)).await;
    own.answer(outcome, body).await
}

/// One broadcast; the body is its payload.
pub(super) async fn single<A: Admit>(
    State(service): State<Arc<Service<A>>>,
    names: Result<Path<(String, String)>, PathRejection>,
    request: Request,
) -> Response {
    let Some(own) = &service.broadcasts else { return StatusCode::NOT_FOUND.into_response() };
    let (parts, mut body) = own.take(request);
    let sender = match sender(&service.gate, own, &parts).await {
        Ok(sender) => sender,
        Err(refused) => return own.refuse(refused, body).await,
    };
    let outcome = match names {
        Ok(Path(names)) => {
            let room = service.connections.unfinished();
            Box::pin(own.send_single(&sender, names, &parts, &mut body, room)).await
        }
        Err(_) => Err(Refused::Path),
    };
    own.answer(outcome, body).await
}

async fn sender(gate: &Gate, own: &Broadcasts, parts: &Parts) -> Result<Sender, Refused> {
    if !gate.origins.admit(&parts.headers) {
        return Err(Refused::Origin);
    }
    own.sender(&parts.headers, gate.address(parts)).await
}

impl Unread {
    fn or_too_large(self, too_large: Refused) -> Refused {
        match self {
            Self::TooLarge => too_large,
            Self::Late => Refused::Late,
            Self::Crowded => Refused::Crowded,
            Self::Broken => Refused::Broken,
        }
    }
}

/// The token may have expired while the body came and the policies were asked.
fn still_valid(claims: &Claims) -> Result<(), Refused> {
    if claims.expires_at > SystemTime::now() { Ok(()) } else { Err(Refused::Unauthorized) }
}

/// The token of a request. A bearer's wins; who names another scheme, or two of them, has none.
pub(super) fn token(headers: &HeaderMap) -> Option<&str> {
    let one = |name: &HeaderName| {
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (None, _) => Some(""),
            (Some(value), None) => value.to_str().ok(),
            (Some(_), Some(_)) => None,
        }
    };
    let mut words = one(&header::AUTHORIZATION)?.split_ascii_whitespace();
    match (words.next(), words.next(), words.next()) {
        // Clients without a user send an empty one.
        (None, ..) => one(&API_KEY),
        (Some(scheme), Some(token), None) if scheme.eq_ignore_ascii_case("bearer") => Some(token),
        _ => None,
    }
}

/// What the body of a single broadcast is.
fn encoding(headers: &HeaderMap) -> Option<Encoding> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Some(Encoding::Json) };
    let kind = value.to_str().ok()?.split(';').next().unwrap_or_default().trim();
    if kind.is_empty() || kind.eq_ignore_ascii_case("application/json") {
        Some(Encoding::Json)
    } else {
        kind.eq_ignore_ascii_case("application/octet-stream").then_some(Encoding::Bytes)
    }
}

/// The one JSON value that a body is, without the white space around it. No body is `{}`.
fn json_value(body: &Bytes) -> Option<Bytes> {
    if body.is_empty() {
        return Some(Bytes::from_static(b"{}"));
    }
    let value: &RawValue = serde_json::from_slice(body).ok()?;
    Some(body.slice_ref(value.get().as_bytes()))
}

/// Whether the room is private; none when that is said in a way that is not understood, or in two:
/// what was meant to be private must not be told to a public room.
fn private(query: &str) -> Option<bool> {
    let mut said = None;
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decoded(name);
        if name.starts_with("private[") {
            return None;
        }
        if name == "private" {
            let value = batch::boolean(&decoded(value))?;
            if said.is_some_and(|before| before != value) {
                return None;
            }
            said = Some(value);
        }
    }
    Some(said.unwrap_or(false))
}

fn decoded(text: &str) -> Cow<'_, str> {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy()
}

/// The headers as policies see them: a JSON object; values of one name joined, credentials and what
/// is no text left out.
fn shown_headers(headers: &HeaderMap) -> String {
    let mut shown = serde_json::Map::new();
    for name in headers.keys().filter(|name| !CREDENTIALS.contains(name)) {
        let values = headers.get_all(name).iter();
        let texts: Option<Vec<&str>> =
            values.map(|value| std::str::from_utf8(value.as_bytes()).ok()).collect();
        if let Some(texts) = texts {
            shown.insert(name.as_str().to_owned(), texts.join(", ").into());
        }
    }
    serde_json::Value::Object(shown).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_bearers_token_wins_over_the_key() {
        let check = |list: &[_], expected: Option<&str>| {
            assert_eq!(token(&headers(list)), expected, "{list:?}");
        };
        check(&[("authorization", "bEARER  a"), ("apikey", "k")], Some("a"));
        check(&[("apikey", "k")], Some("k"));
        check(&[("authorization", ""), ("apikey", "k")], Some("k"));
        check(&[], Some(""));
        for value in ["Bearer", "Basic a", "Bearer a b", "a"] {
            check(&[("authorization", value), ("apikey", "k")], None);
        }
        check(&[("authorization", "Bearer a"), ("authorization", "Bearer a")], None);
        check(&[("apikey", "k"), ("apikey", "l")], None);
    }

    #[test]
    fn the_type_of_a_body_says_what_it_is() {
        let check = |value, expected| {
            assert_eq!(encoding(&headers(&[("content-type", value)])), expected, "{value}");
        };
        assert_eq!(encoding(&HeaderMap::new()), Some(Encoding::Json));
        check("", Some(Encoding::Json));
        check("Application/JSON ; charset=utf-8", Some(Encoding::Json));
        check("application/octet-stream", Some(Encoding::Bytes));
        check("text/plain", None);
        check("application/jsonx", None);
        check("application/x-www-form-urlencoded", None);
    }

    #[test]
    fn a_body_is_one_json_value_of_any_kind() {
        let check = |body: &'static [u8], expected: Option<&[u8]>| {
            assert_eq!(json_value(&Bytes::from_static(body)).as_deref(), expected, "{body:?}");
        };
        check(b"", Some(b"{}"));
        check(b" {\"a\": 1}\n", Some(b"{\"a\": 1}"));
        check(b"[1]", Some(b"[1]"));
        check(b" null ", Some(b"null"));
        for body in [&b" "[..], b"{", b"{} {}", b"\"\xff\"", b"nul"] {
            check(body, None);
        }
    }

    #[test]
    fn a_query_that_is_not_clear_about_private_is_refused() {
        for query in ["", "apikey=private&vsn=2.0.0", "private=false", "Private=true"] {
            assert_eq!(private(query), Some(false), "{query}");
        }
        for query in ["private=true", "a=b&private=TRUE&private=true", "%70rivate=tr%75e"] {
            assert_eq!(private(query), Some(true), "{query}");
        }
        for query in ["private", "private=", "private=1", "private=true&private=false"] {
            assert_eq!(private(query), None, "{query}");
        }
        for query in ["private=+true", "private[]=true", "private%5B%5D=true", "private=%ff"] {
            assert_eq!(private(query), None, "{query}");
        }
    }

    #[test]
    fn policies_see_headers_without_credentials() {
        let mut sent = headers(&[
            ("authorization", "Bearer a"),
            ("apikey", "k"),
            ("x-api-key", "k"),
            ("cookie", "c"),
            ("x-tenant", "one"),
            ("x-tenant", "two \"2\""),
            ("user-agent", "curl"),
        ]);
        sent.insert("x-bytes", HeaderValue::from_bytes(b"\xff").unwrap());
        sent.insert("x-text", HeaderValue::from_bytes("ü".as_bytes()).unwrap());
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&shown_headers(&sent)).unwrap(),
            serde_json::json!({ "x-tenant": "one, two \"2\"", "user-agent": "curl", "x-text": "ü" })
        );
    }
}
