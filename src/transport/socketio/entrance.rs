//! What entering a namespace or a room asks of the database.
//!
//! In:     a CONNECT packet with what the connection showed; a client and the rooms it wants.
//! Out:    who the client is; seats in rooms, whose frames are held until the client was answered; or
//!         why not, in the words of the profile.
//! Never:  a seat that policies did not grant; an identity that is not in the token.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hashbrown::HashMap;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::connection::{Mailbox, Notices};
use super::format::format;
use super::recovery::Lost;
use super::{Shown, SocketIo, new_id};
use crate::auth::Claims;
use crate::auth::access::Asker;
use crate::command::{Caller, Given, Refused};
use crate::hub::{Format, RoomName, Subscriber};
use crate::join::{Joined, Request};
use crate::profile::{Function, Named, Profile, Room, Scope, TokenPlace, personal};
use crate::session::UserPlace;
use crate::topic::Topic;

/// How long a client waits until it is known what is declared.
const DECLARED_MAX: Duration = Duration::from_secs(7);

/// Topics that one user's presence is told in.
const HEARERS_MAX: usize = 10_000;

/// A client in a namespace.
#[derive(Debug)]
pub(super) struct Who {
    /// Among those of its connection.
    pub(super) client: u32,
    pub(super) namespace: Box<str>,
    /// What it is called, and calls itself when it writes.
    pub(super) id: Arc<str>,
    /// By which it comes back.
    pub(super) private: Box<str>,
    pub(super) user: Option<Box<str>>,
    pub(super) claims: Arc<Claims>,
    /// What they say.
    pub(super) json: Value,
    /// What is known of the user, by the profile's function.
    pub(super) member: Value,
    /// What policies and functions read as `request.headers`.
    pub(super) headers: Arc<str>,
    pub(super) format: Format,
    /// Where what it may hear begins.
    pub(super) begins: Box<str>,
}

impl Who {
    /// By what several connections of one user are known to be his.
    pub(super) fn name(&self) -> &str {
        self.user.as_deref().unwrap_or(&self.id)
    }

    /// What a payload about it can say.
    pub(super) fn scope<'a>(&'a self, payload: &'a Value, member: &'a Value) -> Scope<'a> {
        let base = Scope::of(self.user.as_deref());
        Scope { claims: &self.json, payload, member, ..base }
    }

    /// As which functions are called for it.
    pub(super) fn caller(&self) -> Caller<'_> {
        Caller {
            claims: &self.claims,
            subject: self.user.as_deref(),
            headers: &self.headers,
            connection_id: &self.id,
        }
    }
}

/// A client that may be in its namespace.
pub(super) struct Admitted {
    pub(super) who: Arc<Who>,
    pub(super) profile: Arc<Profile>,
    /// In the rooms that are joined with the namespace.
    pub(super) seats: Vec<Seat>,
    /// In which its user's presence is told.
    pub(super) hearers: Vec<RoomName>,
    /// Counts it among the connections of its user.
    pub(super) counted: Option<UserPlace>,
}

/// A seat in a room.
pub(super) struct Seat {
    /// None: a room that nobody joins by an event.
    pub(super) room: Option<Arc<Room>>,
    pub(super) named: Named,
    pub(super) subscriber: Arc<Subscriber>,
    pub(super) joined: Joined,
    pub(super) asker: Asker,
    /// What is known of the user there; none: what is known of him anywhere.
    pub(super) member: Option<Value>,
    /// What it was asked for with, and what was made of that.
    pub(super) payload: Value,
}

impl Drop for Seat {
    fn drop(&mut self) {
        // It may be asked for still.
        self.asker.leave();
    }
}

#[derive(Deserialize, Default)]
struct Auth<'a> {
    #[serde(borrow, default)]
    token: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pid: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    offset: Option<Cow<'a, str>>,
}

/// Who wants to be in which namespace, and is told where.
pub(super) struct Wanted {
    pub(super) client: u32,
    pub(super) namespace: Box<str>,
    pub(super) auth: Option<Box<RawValue>>,
    pub(super) mailbox: Arc<Mailbox>,
}

/// Lets a client into a namespace.
///
/// # Errors
/// What it is told.
pub(super) async fn admit(
    shared: &SocketIo,
    shown: &Shown,
    wanted: Wanted,
) -> Result<Admitted, Cow<'static, str>> {
    let Wanted { client, namespace, auth, mailbox } = wanted;
    let known = tokio::time::timeout(DECLARED_MAX, shared.declarations.read()).await;
    let Ok(known) = known else { return Err("This service is starting: try again".into()) };
    let profile = known.get(&namespace).map(Arc::clone);
    let (Some(profile), Some(format)) = (profile, format(&namespace)) else {
        return Err("Invalid namespace".into());
    };
    let auth = auth.as_deref().map_or("{}", RawValue::get);
    let auth: Auth<'_> = serde_json::from_str(auth).unwrap_or_default();
    let places = profile.token_from.iter().map(|place| match place {
        TokenPlace::Auth => auth.token.as_deref(),
        TokenPlace::Header => shown.header.as_deref(),
        TokenPlace::Query => shown.query.as_deref(),
    });
    let token = places.flatten().find(|token| !token.is_empty());
    let Some(token) = token else { return Err(profile.token_missing.clone().into_string().into()) };
    let invalid = || Cow::from(profile.token_invalid.clone().into_string());
    let verified = shared.realtime.verifier.verify_fresh(token, SystemTime::now()).await;
    let claims = Arc::new(verified.map_err(|_| invalid())?);
    let json: Value = serde_json::from_str(&claims.json).map_err(|_| invalid())?;
    let user = profile.subject_of(&json);
    let counted = place_of_user(shared, user.as_deref())?;
    let lost = match auth.pid.as_deref() {
        Some(private) => shared.recoveries.take_over(private, &namespace, user.as_deref()).await,
        None => None,
    };
    let id = lost.as_ref().map_or_else(|| new_id().into(), |lost| Arc::clone(&lost.id));
    let (private, begins) = match &lost {
        // What it has heard of the past by its next loss, its offset says.
        Some(lost) => (auth.pid.as_deref().unwrap_or_default().into(), since(lost, &auth).into()),
        None => (new_id().into(), shared.realtime.hub.read_to().to_string().into()),
    };
    let mut who = Who {
        client,
        namespace,
        headers: with_connection(&shown.headers, &id),
        id,
        private,
        user,
        json,
        member: Value::Null,
        format,
        begins,
        claims,
    };
    if let Some(function) = &profile.member {
        who.member = ask(shared, &who, function, "").await.map_err(|refused| refused.message)?;
    }
    let hearers = hearers(shared, &who, &profile).await.map_err(|refused| refused.message)?;
    let (seats, is_whole) =
        first_seats(shared, &who, &profile, lost.as_ref(), &auth, &mailbox).await;
    if !is_whole {
        // By another name it is told that it is not what it was: it joins its rooms anew.
        who.private = new_id().into();
    }
    let who = Arc::new(who);
    if who.claims.expires_at <= SystemTime::now() {
        return Err(invalid());
    }
    Ok(Admitted { who, profile, seats, hearers, counted })
}

/// How far a client that comes back has come.
fn since<'a>(lost: &'a Lost, auth: &'a Auth<'_>) -> &'a str {
    auth.offset.as_deref().unwrap_or(&lost.begins)
}

fn place_of_user(
    shared: &SocketIo,
    user: Option<&str>,
) -> Result<Option<UserPlace>, Cow<'static, str>> {
    let most = shared.realtime.limits.connections_per_user_max;
    let Some(user) = user.filter(|_| most > 0) else { return Ok(None) };
    let place = shared.realtime.rates.enter(&user.into(), most);
    place.map(Some).ok_or_else(|| "Too many connections of this user".into())
}

/// The rooms that come with a namespace, and those that a client was in before it was lost; whether it
/// has all of those again.
async fn first_seats(
    shared: &SocketIo,
    who: &Who,
    profile: &Profile,
    lost: Option<&Lost>,
    auth: &Auth<'_>,
    mailbox: &Arc<Mailbox>,
) -> (Vec<Seat>, bool) {
    let since = lost.map(|lost| since(lost, auth));
    let named = profile.topics.iter();
    let mut rooms: Vec<(Option<Arc<Room>>, Named)> = named
        .filter_map(|naming| personal(naming, who.user.as_deref(), &who.json))
        .map(|named| (None, named))
        .collect();
    let mut payloads = HashMap::new();
    for (topic, payload) in lost.into_iter().flat_map(|lost| &lost.rooms) {
        let Ok(topic) = Topic::parse(topic) else { continue };
        if let Some(room) = profile.room_of(&topic)
            && let Some(values) = room.naming.values(&topic)
        {
            payloads.insert(topic.to_shared(), payload.clone());
            rooms.push((Some(Arc::clone(room)), Named { topic, values }));
        }
    }
    let mut seats = Vec::with_capacity(rooms.len());
    let mut is_whole = true;
    for (room, named) in rooms {
        let comes_back = room.is_some();
        let payload = payloads.remove(&named.topic.to_shared()).unwrap_or_default();
        match seat_again(shared, (who, profile), room, named, since, mailbox).await {
            Ok(mut seat) => {
                seat.payload = payload;
                seats.push(seat);
            }
            // Who may not be there is not there; he is told when he asks for it.
            Err(_) => is_whole &= !comes_back,
        }
    }
    (seats, is_whole)
}

/// A seat that nobody asked for now.
async fn seat_again(
    shared: &SocketIo,
    (who, profile): (&Who, &Profile),
    room: Option<Arc<Room>>,
    named: Named,
    since: Option<&str>,
    mailbox: &Arc<Mailbox>,
) -> Result<Seat, Refused> {
    let mut seat = enter(shared, who, named, since, mailbox).await?;
    let function = room.as_ref().and_then(|room| room.member.as_ref());
    if let Some(function) = function.or(profile.member.as_ref()) {
        seat.member = Some(ask(shared, who, function, seat.named.topic.sub_topic()).await?);
    }
    seat.room = room;
    Ok(seat)
}

/// Which rooms hear of a user's presence.
async fn hearers(
    shared: &SocketIo,
    who: &Who,
    profile: &Profile,
) -> Result<Vec<RoomName>, Refused> {
    let Some(presence) = &profile.presence else { return Ok(Vec::new()) };
    let named = presence.topics.iter();
    let named = named.filter_map(|naming| personal(naming, who.user.as_deref(), &who.json));
    let mut topics: Vec<Arc<str>> = named.map(|named| named.topic.to_shared()).collect();
    if let Some(function) = &presence.topics_function {
        let told = shared.commander.ask(who.caller(), function, Given::Nothing).await?;
        let told: Vec<Value> = match serde_json::from_str(told.get()) {
            Ok(Value::Array(several)) => several,
            Ok(one) => vec![one],
            Err(_) => Vec::new(),
        };
        let told = told.iter().filter_map(Value::as_str).take(HEARERS_MAX);
        let told = told.filter_map(|name| Topic::parse(&format!("realtime:{name}")).ok());
        topics.extend(told.map(|topic| topic.to_shared()));
    }
    topics.sort_unstable();
    topics.dedup();
    Ok(topics.into_iter().map(|topic| RoomName { topic, private: true }).collect())
}

/// What a function says about a user in a room.
async fn ask(
    shared: &SocketIo,
    who: &Who,
    function: &Function,
    topic: &str,
) -> Result<Value, Refused> {
    let told = shared.commander.ask(who.caller(), function, Given::Topic(topic)).await?;
    Ok(serde_json::from_str(told.get()).unwrap_or(Value::Null))
}

/// What became of one room that a client asked for.
pub(super) enum Came {
    /// It has a seat there now.
    New(Box<Seat>),
    /// It had one.
    Again(Arc<str>),
    Refused(Refused),
}

/// Takes a client into every room that an event of it names.
pub(super) async fn join(
    shared: &SocketIo,
    (who, profile): (&Arc<Who>, &Profile),
    rooms: &[Arc<Room>],
    there: &[Arc<str>],
    payload: &Value,
    mailbox: &Arc<Mailbox>,
) -> Vec<Came> {
    let since = match payload.get("since") {
        None | Some(Value::Null) => None,
        Some(Value::String(since)) => Some(&**since),
        Some(_) => {
            let refused = Refused::new("VALIDATION_FAILED", "since is not valid");
            return vec![Came::Refused(refused)];
        }
    };
    let mut came = Vec::with_capacity(rooms.len());
    for room in rooms {
        match join_one(shared, (who, profile), room, there, payload, since, mailbox).await {
            Ok(Some(one)) => came.push(one),
            Ok(None) => {}
            Err(refused) => came.push(Came::Refused(refused)),
        }
    }
    if came.is_empty() {
        let message = "None of the rooms of this event is named in it";
        came.push(Came::Refused(Refused::new("VALIDATION_FAILED", message)));
    }
    came
}

async fn join_one(
    shared: &SocketIo,
    (who, profile): (&Arc<Who>, &Profile),
    room: &Arc<Room>,
    there: &[Arc<str>],
    payload: &Value,
    since: Option<&str>,
    mailbox: &Arc<Mailbox>,
) -> Result<Option<Came>, Refused> {
    let invalid =
        |problem: crate::profile::Invalid| Refused::new("VALIDATION_FAILED", problem.to_string());
    // What the function commits is for who joins, too: he hears what came after this.
    let begins = room.on_join.is_some().then(|| shared.realtime.hub.read_to().to_string());
    let since = since.or(begins.as_deref());
    let merged = match &room.on_join {
        Some(function) => prepared(shared, who, function, payload).await?,
        None => payload.clone(),
    };
    let Some(named) = room.topic(&merged).map_err(invalid)? else { return Ok(None) };
    let topic = named.topic.to_shared();
    if there.contains(&topic) {
        return Ok(Some(Came::Again(topic)));
    }
    let mut seat = enter(shared, who, named, since, mailbox).await.map_err(|mut refused| {
        if refused.code == "ACCESS_DENIED"
            && let Some(denied) = &room.denied
        {
            refused.message = denied.clone().into_string().into();
        }
        refused
    })?;
    if let Some(function) = room.member.as_ref().or(profile.member.as_ref()) {
        seat.member = Some(ask(shared, who, function, seat.named.topic.sub_topic()).await?);
    }
    seat.room = Some(Arc::clone(room));
    seat.payload = merged;
    Ok(Some(Came::New(Box::new(seat))))
}

/// A payload with what a function made of it.
async fn prepared(
    shared: &SocketIo,
    who: &Who,
    function: &Function,
    payload: &Value,
) -> Result<Value, Refused> {
    let sent = raw(payload);
    let told = shared.commander.ask(who.caller(), function, Given::Payload(&sent)).await?;
    let mut merged = payload.clone();
    if let (Value::Object(merged), Ok(Value::Object(more))) =
        (&mut merged, serde_json::from_str(told.get()))
    {
        merged.extend(more);
    }
    Ok(merged)
}

/// A seat in a room, if its policies let the client hear there.
async fn enter(
    shared: &SocketIo,
    who: &Who,
    named: Named,
    since: Option<&str>,
    mailbox: &Arc<Mailbox>,
) -> Result<Seat, Refused> {
    let topic = named.topic.to_shared();
    let inbox = Box::new(Notices::new(mailbox, who.client, Arc::clone(&topic)));
    let outbox = Arc::clone(mailbox.outbox());
    let subscriber = Subscriber::new(outbox, inbox, who.claims.expires_at);
    let mut seat = Seat {
        room: None,
        named,
        subscriber,
        joined: Joined::default(),
        asker: mailbox.asker().about(),
        member: None,
        payload: Value::Null,
    };
    let request = request(who, &topic, &seat.subscriber, &seat.asker);
    let cursor = since.map(Into::into);
    let joined = shared.realtime.joiner.join(Request { cursor, ..request }).await;
    if let Some(reason) = &joined.unavailable {
        return Err(refusal(reason, seat.named.topic.sub_topic()));
    }
    if joined.entered.as_ref().is_none_or(|entered| !entered.grants.broadcast) {
        return Err(refusal("Unauthorized: ", seat.named.topic.sub_topic()));
    }
    seat.joined = joined;
    Ok(seat)
}

/// A join without a cursor, or the same again under other rights.
pub(super) fn request(
    who: &Who,
    topic: &Arc<str>,
    subscriber: &Arc<Subscriber>,
    asker: &Asker,
) -> Request {
    Request {
        subscriber: Arc::clone(subscriber),
        format: who.format,
        topic: Arc::clone(topic),
        claims: Arc::clone(&who.claims),
        asker: asker.clone(),
        parameters: [].into(),
        legacy: false,
        private: true,
        replay: None,
        presence: false,
        headers: Arc::clone(&who.headers),
        cursor: None,
        bookmark: None,
        wait: None,
        connection_id: Some(Arc::clone(&who.id)),
    }
}

/// Why a room was not entered.
fn refusal(reason: &str, topic: &str) -> Refused {
    let (code, _) = reason.split_once(": ").unwrap_or((reason, ""));
    let refused = match code {
        "Unauthorized" => Refused::new("ACCESS_DENIED", "Access denied"),
        _ => Refused::new("UNAVAILABLE", "This cannot be decided now: try again"),
    };
    about(refused, topic)
}

/// A refusal that names the room.
pub(super) fn about(refused: Refused, topic: &str) -> Refused {
    Refused { context: Some(raw(&serde_json::json!({ "topic": topic }))), ..refused }
}

/// JSON as its text.
pub(super) fn raw(value: &Value) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).expect("JSON is always JSON")
}

/// The headers that policies may read, with the name of the connection.
fn with_connection(headers: &str, id: &str) -> Arc<str> {
    let mut headers: Value = serde_json::from_str(headers).unwrap_or_default();
    if let Value::Object(headers) = &mut headers {
        headers.insert("x-connection-id".into(), id.into());
    }
    headers.to_string().into()
}
