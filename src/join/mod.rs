//! Joins: what a channel asked of the database, checked and registered.
//!
//! In:     subscription parameters and verified claims.
//! Out:    a place in the hub and the ids to echo, or the sentence the client is told.
//! Never:  a subscription that is active in part; an answer to the client (`transport` writes it).
//!
//! A subscriber is in the hub before its join is answered: what commits after the answer arrives.

mod room;

use std::borrow::Cow;
use std::convert::Infallible;
use std::future::pending;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout_at};
use tokio_postgres::Client;
use tracing::warn;

use crate::auth::Claims;
use crate::auth::access::{Access, Asker, ReadGrants, WriteGrants};
use crate::auth::rls::{Authorizer, ProbeError};
use crate::catalog::{Catalog, Kind, Published, RowAccess, Table};
use crate::config;
use crate::cursor::{Cursor, Place};
use crate::db::Login;
use crate::feed::{self, Resume};
use crate::hub::{
    Comeback, Format, Hub, Interest, Membership, Registration, Subscriber, Subscription,
    SubscriptionError, Turn,
};
use crate::subscribe::{self, Check, Column, Operators, Refused};
use crate::telemetry;

use room::Door;
pub use room::Entered;

/// How long a join waits for the change stream and for the database. Clients give up after 10 s.
const WAIT_MAX: Duration = Duration::from_secs(7);

/// Between two attempts of a join that may wait.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// Each subscription with the id it is echoed with.
type Parsed = Vec<(u32, Result<Subscription, SubscriptionError>)>;

/// What is active then, and what each echo says besides.
type Checked = (Arc<[Interest]>, Vec<Option<Cow<'static, str>>>);

/// A join or a refresh.
#[derive(Debug)]
pub struct Request {
    /// Whom frames go to.
    pub subscriber: Arc<Subscriber>,
    /// How its frames are written.
    pub format: Format,
    /// The full topic.
    pub topic: Arc<str>,
    /// Whose rights decide.
    pub claims: Arc<Claims>,
    /// Whose turn it is when policies are asked about the room; it leaves with the channel.
    pub asker: Asker,
    /// Elements of `config.postgres_changes`.
    pub parameters: Arc<[Box<RawValue>]>,
    /// The topic itself is the subscription.
    pub legacy: bool,
    /// Whether policies decide who may be in the room.
    pub private: bool,
    /// `config.broadcast.replay`.
    pub replay: Option<Box<RawValue>>,
    /// Whether it wants to know who is there: it asked when it joined
    /// (`config.presence.enabled`), or has shown itself since.
    pub presence: bool,
    /// What policies read as `request.headers`, a JSON object.
    pub headers: Arc<str>,
    /// How far the client has come, as it says, in all that it asks for. Each element of
    /// `parameters` may say it too (`cursor`): the oldest counts.
    pub cursor: Option<Box<str>>,
    /// How far the server knows it to have come, if it says nothing itself.
    pub bookmark: Option<Cursor>,
    /// The client joins only if its row changes are in force, and waits so long for that.
    pub wait: Option<Duration>,
    /// What its client calls the connection when it writes, so as not to hear of its own writes.
    pub connection_id: Option<Arc<str>>,
}

/// What became of a join.
#[derive(Debug, Default)]
pub struct Joined {
    /// For each element that was asked, in order: the id its events carry, and members to add to
    /// its echo.
    pub subscriptions: Vec<(u32, Option<Cow<'static, str>>)>,
    /// The place in the hub, when row changes were asked for; outside when they were refused.
    pub membership: Option<Membership>,
    /// Whether row changes were asked for, so that the client is told what became of that.
    pub asked: bool,
    /// The place in the room, unless the channel is not joined.
    pub entered: Option<Entered>,
    /// Where its row changes begin, when they were asked for.
    pub begins: Option<Cursor>,
    /// Where what comes through the log begins, unless the channel is not joined.
    pub starts: Option<Cursor>,
    /// Set when it comes back: [`Joiner::resume`] is to be called once the join was answered.
    pub resume: Option<Resume>,
    /// Why nothing is subscribed, though the channel is joined.
    pub problem: Option<String>,
    /// Why the channel is not joined: `Code: text`. The client tries again.
    pub unavailable: Option<String>,
}

/// Why subscriptions were not checked or not accepted.
enum Problem {
    /// Final: the client is told.
    Refused(String),
    /// The database did not answer: the client tries again.
    Unavailable,
}

/// What joins have to know of the feed.
#[derive(Debug, Clone)]
pub struct Stream {
    /// How far it came.
    pub status: Arc<feed::Status>,
    /// Whether changes flow.
    pub ready: watch::Receiver<bool>,
    /// Those that come back.
    pub replays: Arc<feed::Replays>,
    /// What they missed.
    pub history: Arc<feed::History>,
}

/// Checks and registers.
#[derive(Debug)]
pub struct Joiner {
    hub: Arc<Hub>,
    door: Door,
    catalog: Arc<Catalog>,
    authorizer: Arc<Authorizer>,
    login: Login,
    operators: Operators,
    /// Idle connections for checks, and how many there may be in all.
    idle: Mutex<Vec<Client>>,
    connections: Semaphore,
    check_timeout_ms: u64,
    changes: config::Changes,
    ready: watch::Receiver<bool>,
    replays: Arc<feed::Replays>,
    history: Arc<feed::History>,
    status: Arc<feed::Status>,
}

impl Joiner {
    /// `login` may do nothing but check.
    pub fn new(
        hub: Arc<Hub>,
        catalog: Arc<Catalog>,
        authorizer: Arc<Authorizer>,
        access: Arc<Access>,
        login: Login,
        settings: &config::Config,
        stream: Stream,
    ) -> Self {
        let Stream { status, ready, replays, history } = stream;
        Self {
            door: Door::new(
                Arc::clone(&hub),
                access,
                Arc::clone(&authorizer),
                Arc::clone(&status),
                settings,
            ),
            hub,
            catalog,
            authorizer,
            login,
            operators: Operators::default(),
            idle: Mutex::default(),
            connections: Semaphore::new(settings.database.pool_size),
            check_timeout_ms: settings.database.check_timeout_ms,
            changes: settings.changes.clone(),
            ready,
            replays,
            history,
            status,
        }
    }

    /// Registers a channel. Takes seconds at most.
    pub async fn join(&self, mut request: Request) -> Joined {
        let deadline = Instant::now() + request.wait.unwrap_or(WAIT_MAX);
        let resume = resume(&request).or_else(|| self.since(&request));
        let from = resume.as_ref().map(|resume| resume.from);
        // What is no cursor has everything to miss, and nothing to be shown twice.
        let place = from.map(|from| from.map_or(Place::LAST, |from| from.place));
        if let Some(place) = place {
            // What it claims to have counts only where it is behind.
            request.subscriber.come_back(place.min(self.hub.read_to().place));
            // They are in the log too.
            request.replay = request.replay.filter(|_| !request.private);
        }
        let entering = timeout_at(deadline, self.door.enter(&request)).await;
        match entering.unwrap_or_else(|_elapsed| Err(self.unavailable())) {
            Err(reason) => Joined { unavailable: Some(reason), ..Joined::default() },
            Ok(entered) => {
                let now = self.hub.read_to();
                let joined = self.subscribe(request, deadline, place).await;
                let begins = joined.begins.map(|begins| from.flatten().unwrap_or(begins));
                let starts = from.flatten().or(begins).unwrap_or(now);
                let (entered, starts) = (Some(entered), Some(starts));
                Joined { entered, begins, starts, resume, ..joined }
            }
        }
    }

    /// How a channel comes back that wants what was said since some time, in a room where changes of
    /// tables are told: those are in no store, but in the log, as what is stored is.
    fn since(&self, request: &Request) -> Option<Resume> {
        let topic = request.topic.strip_prefix("realtime:").unwrap_or(&request.topic);
        let (milliseconds, limit) = room::wanted(request.replay.as_deref()?)?;
        if !request.private || !self.status.maps(topic) {
            return None;
        }
        let from = self.history.before(UNIX_EPOCH + Duration::from_millis(milliseconds))?;
        let (format, topic) = (request.format, Arc::clone(&request.topic));
        Some(Resume { from: Some(from), format, topic, newest: Some(limit) })
    }

    /// What other claims may read in a private room.
    ///
    /// # Errors
    /// Why the channel has to go, in a sentence for the client.
    pub async fn renew(&self, request: &Request, before: ReadGrants) -> Result<ReadGrants, String> {
        let renewed = timeout_at(Instant::now() + WAIT_MAX, self.door.renew(request, before));
        let late = "Realtime was unable to connect to the project database";
        renewed.await.unwrap_or_else(|_elapsed| Err(late.into()))
    }

    /// What claims may write on a private topic (without `realtime:`); none when that could not
    /// be found out.
    pub async fn may_write(
        &self,
        asker: &Asker,
        claims: &Claims,
        topic: &str,
        headers: &str,
    ) -> Option<WriteGrants> {
        let grants = self.door.may_write(asker, claims, topic, headers);
        timeout_at(Instant::now() + WAIT_MAX, grants).await.ok().flatten()
    }

    /// As [`Self::may_write`], and whether they may read presence there: for a channel that shows
    /// itself and did not ask for presence when it joined.
    pub async fn may_write_and_see(
        &self,
        asker: &Asker,
        claims: &Claims,
        topic: &str,
        headers: &str,
    ) -> Option<(WriteGrants, ReadGrants)> {
        let grants = self.door.may_write_and_see(asker, claims, topic, headers);
        timeout_at(Instant::now() + WAIT_MAX, grants).await.ok().flatten()
    }

    /// Shows a channel that came back what it missed: its join was answered.
    pub fn resume(&self, channel: Comeback, resume: Resume) {
        self.replays.begin(channel, resume);
    }

    /// Row changes up to there were handed to whoever is to have them. None before the first
    /// connection to the log.
    pub fn published(&self) -> Option<Cursor> {
        self.door.published()
    }

    /// Whether changes flow.
    pub fn readiness(&self) -> watch::Receiver<bool> {
        self.ready.clone()
    }

    /// `place`: of a channel that comes back, up to where it has everything.
    async fn subscribe(&self, request: Request, deadline: Instant, place: Option<Place>) -> Joined {
        let (parsed, wait) = (parse(&request), request.wait);
        let mut joined = Joined::default();
        if parsed.is_empty() {
            return joined;
        }
        // A legacy join asked by its topic; there is no element to echo.
        if !request.legacy {
            joined.subscriptions = parsed.iter().map(|(id, _)| (*id, None)).collect();
        }
        joined.asked = true;
        let interests = timeout_at(deadline, self.interests_of(&request, parsed));
        match interests.await.unwrap_or(Err(Problem::Unavailable)) {
            Ok((interests, modes)) => {
                for ((_, extra), mode) in joined.subscriptions.iter_mut().zip(modes) {
                    *extra = mode;
                }
                // From now on somebody may be owed the deletion of a row that he could see before.
                self.authorizer.keep_history(true);
                let membership = self.hub.join_from(registration(request, interests), place);
                let begins = Cursor { place: membership.begins(), ..self.hub.read_to() };
                joined.begins = Some(begins);
                // What was decoded before this channel was there, but cannot be read yet, would be
                // missing both in what the client fetches after the answer and in what it is sent.
                match timeout_at(deadline, self.authorizer.wait_decoded_visible()).await {
                    Ok(Ok(())) => joined.membership = Some(membership),
                    Ok(Err(_)) | Err(_) => joined.unavailable = Some(self.not_subscribed(wait)),
                }
            }
            Err(Problem::Refused(text)) if wait.is_some() => {
                joined.unavailable = Some(format!("RealtimeDisabledForConfiguration: {text}"));
            }
            Err(Problem::Refused(text)) => {
                joined.membership = Some(self.hub.outside(request.subscriber));
                joined.problem = Some(text);
            }
            Err(Problem::Unavailable) => joined.unavailable = Some(self.not_subscribed(wait)),
        }
        joined
    }

    /// What a channel asked for, checked; again and again while the client wants to wait.
    async fn interests_of(&self, request: &Request, parsed: Parsed) -> Result<Checked, Problem> {
        loop {
            match self.interests(&request.claims, parsed.clone()).await {
                Err(Problem::Unavailable) if request.wait.is_some() => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                checked => return checked,
            }
        }
    }

    fn not_subscribed(&self, wait: Option<Duration>) -> String {
        wait.map_or_else(
            || self.unavailable(),
            |wait| {
                format!(
                    "PostgresChangesSubscribeTimeout: Timed out after {}ms waiting for the \
                     postgres_changes subscription",
                    wait.as_millis()
                )
            },
        )
    }

    /// Puts a channel under new claims, its subscriptions checked again. None: a later refresh
    /// has begun, or the channel is gone, and there is nothing to say.
    ///
    /// # Errors
    /// What the client is told; the channel gets no more row changes until the next refresh.
    pub async fn refresh(
        &self,
        membership: &Arc<Membership>,
        turn: Turn,
        request: Request,
    ) -> Option<Result<(), String>> {
        let claims = Arc::clone(&request.claims);
        let standing_in = async {
            tokio::time::sleep(membership.until_stand_in()).await;
            self.hub.stand_in(membership, turn, &claims);
            pending::<Infallible>().await
        };
        tokio::select! {
            biased;
            never = standing_in => match never {},
            refreshed = self.refresh_until_answered(membership, turn, request) => refreshed,
        }
    }

    async fn refresh_until_answered(
        &self,
        membership: &Arc<Membership>,
        turn: Turn,
        request: Request,
    ) -> Option<Result<(), String>> {
        let parsed = parse(&request);
        let mut wait = Duration::from_millis(100);
        loop {
            let checked = self.interests(&request.claims, parsed.clone());
            let checked = tokio::time::timeout(WAIT_MAX, checked).await;
            if !membership.is_awaiting(turn) {
                return None;
            }
            match checked.unwrap_or(Err(Problem::Unavailable)) {
                Ok((interests, _)) => {
                    self.hub.refresh(membership, turn, registration(request, interests));
                    return Some(Ok(()));
                }
                Err(Problem::Refused(text)) => {
                    self.hub.suspend(membership, turn);
                    return Some(Err(text));
                }
                // Until the answer is known the old claims hold, at most to their own expiry; what
                // comes then waits.
                Err(Problem::Unavailable) => tokio::time::sleep(wait).await,
            }
            wait = (wait * 2).min(Duration::from_secs(5));
        }
    }

    fn unavailable(&self) -> String {
        if *self.ready.borrow() {
            "UnableToConnectToProject: Realtime was unable to connect to the project database"
                .into()
        } else {
            "InitializingProjectConnection: Connecting to the project database".into()
        }
    }

    async fn interests(&self, claims: &Arc<Claims>, parsed: Parsed) -> Result<Checked, Problem> {
        let mut ready = self.ready.clone();
        ready.wait_for(|ready| *ready).await.map_err(|_| Problem::Unavailable)?;
        let mut interests = Vec::with_capacity(parsed.len());
        let mut modes = Vec::with_capacity(parsed.len());
        for (_, subscription) in parsed {
            let subscription = subscription.map_err(|error| Problem::Refused(error.to_string()))?;
            let tables = self.tables(&subscription).await?;
            modes.push(self.delete_mode(&tables));
            if subscription.conditions.is_empty() && subscription.is_of_many() {
                let conditions = Box::default();
                interests.push(Interest { subscription, conditions, partitioned: false });
                continue;
            }
            for published in &tables {
                interests.push(self.check(claims, &subscription, published).await?);
            }
        }
        Ok((interests.into(), modes))
    }

    /// The published tables that a subscription is about.
    async fn tables(&self, subscription: &Subscription) -> Result<Vec<Published>, Problem> {
        let of = |published: &[Published]| -> Vec<Published> {
            // Whoever wants every table gets the partitions under their own names.
            let of_many = subscription.is_of_many();
            let covered = published.iter().filter(|p| {
                subscription.covers(&p.schema, &p.name) && !(of_many && p.by_partition)
            });
            covered.cloned().collect()
        };
        let mut tables = of(&self.catalog.published().await.map_err(unavailable)?);
        if tables.is_empty() {
            tables = of(&self.catalog.published_now().await.map_err(unavailable)?);
        }
        if tables.is_empty() && !subscription.is_of_many() {
            return Err(Problem::Refused(subscription.no_such_table()));
        }
        Ok(tables)
    }

    fn delete_mode(&self, tables: &[Published]) -> Option<Cow<'static, str>> {
        let [table] = tables else { return None };
        let mode = self.changes.delete_mode_of(&table.schema, &table.name);
        Some(format!(r#""delete_mode":"{}""#, mode.as_str()).into())
    }

    async fn check(
        &self,
        claims: &Arc<Claims>,
        subscription: &Subscription,
        published: &Published,
    ) -> Result<Interest, Problem> {
        let known = self.catalog.table(published.oid).await.map_err(unavailable)?;
        let checked = self.check_against(known.clone(), claims, subscription, published).await;
        let Err(Problem::Refused(text)) = checked else { return checked };
        // What is known may be a moment old, and a refusal is final.
        let now = self.catalog.table_now(published.oid).await.map_err(unavailable)?;
        if now == known {
            return Err(Problem::Refused(text));
        }
        self.check_against(now, claims, subscription, published).await
    }

    async fn check_against(
        &self,
        table: Option<Arc<Table>>,
        claims: &Arc<Claims>,
        subscription: &Subscription,
        published: &Published,
    ) -> Result<Interest, Problem> {
        let refused =
            |refused: &Refused| Problem::Refused(subscription.exception(&refused.to_string()));
        let Some(table) = table else {
            return Err(Problem::Refused(subscription.no_such_table()));
        };
        if !table.readable.contains_key(&*claims.role) {
            return Err(refused(&Refused::no_such_role(&claims.role)));
        }
        let readable = readable(&table, &claims.role);
        let select = subscription.select.as_deref();
        let check = subscribe::check(&subscription.conditions, select, &readable);
        let conditions = match check.map_err(|error| refused(&error))? {
            Check::Settled(conditions) => conditions,
            Check::Unsettled(unsettled) => {
                let _permit = self.connections.acquire().await.map_err(unavailable)?;
                let client = self.client().await?;
                let settled = unsettled.finish(&client, &self.operators).await;
                match settled {
                    Ok(conditions) => {
                        self.give_back(client);
                        conditions
                    }
                    Err(subscribe::Error::Refused(error)) => {
                        self.give_back(client);
                        return Err(refused(&error));
                    }
                    Err(error @ subscribe::Error::Postgres(_)) => return Err(unavailable(error)),
                }
            }
        };
        if table.row_access(&claims.role) == RowAccess::ByPolicy {
            let probed = self.authorizer.probe(&claims.role, &claims.json, table.oid).await;
            match probed {
                Ok(()) => {}
                Err(ProbeError::Refused { code, message }) => {
                    let text = format!("ERROR {code} {message}");
                    return Err(Problem::Refused(subscription.exception(&text)));
                }
                Err(error @ ProbeError::Unavailable(_)) => return Err(unavailable(error)),
            }
        }
        // A wildcard with conditions becomes one interest for each table.
        let subscription = subscription.narrowed(&published.schema, &published.name);
        let partitioned = table.kind == Kind::Partitioned;
        Ok(Interest { subscription, conditions, partitioned })
    }

    async fn client(&self) -> Result<Client, Problem> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(client) = idle.filter(|client| !client.is_closed()) {
            return Ok(client);
        }
        let client = self.login.connect("walcast checks").await.map_err(unavailable)?;
        let timeout = format!("set statement_timeout = {}", self.check_timeout_ms);
        client.batch_execute(&timeout).await.map_err(unavailable)?;
        Ok(client)
    }

    fn give_back(&self, client: Client) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(client);
    }
}

fn unavailable(error: impl std::error::Error + 'static) -> Problem {
    let error = telemetry::chain(&error);
    warn!(error, "a subscription could not be checked");
    Problem::Unavailable
}

/// Each subscription with the id it is echoed with, parsed or not.
fn parse(request: &Request) -> Parsed {
    if request.legacy {
        let topic = request.topic.strip_prefix("realtime:").unwrap_or(&request.topic);
        let parsed = Subscription::parse_topic(topic);
        return vec![(parsed.as_ref().map_or(1, |subscription| subscription.id), parsed)];
    }
    let element = |text: &RawValue| {
        let value: Value = serde_json::from_str(text.get()).unwrap_or(Value::Null);
        match Subscription::parse(&value) {
            Ok(subscription) => (subscription.id, Ok(subscription)),
            Err(error) => (id_of_text(text.get()), Err(error)),
        }
    };
    request.parameters.iter().map(|text| element(text)).collect()
}

/// How a channel comes back, if it does.
fn resume(request: &Request) -> Option<Resume> {
    #[derive(serde::Deserialize)]
    struct Element<'a> {
        #[serde(borrow)]
        cursor: Option<&'a RawValue>,
    }
    let text = |raw: &RawValue| serde_json::from_str(raw.get()).unwrap_or_default();
    let of_element = |element: &RawValue| {
        let element: Option<Element<'_>> = serde_json::from_str(element.get()).ok();
        element.and_then(|element| element.cursor).map(text)
    };
    let elements = request.parameters.iter().filter_map(|element| of_element(element));
    let texts: Vec<String> = elements.chain(request.cursor.as_deref().map(Into::into)).collect();
    let (format, topic) = (request.format, Arc::clone(&request.topic));
    if texts.is_empty() {
        return request.bookmark.map(|from| Resume {
            from: Some(from),
            format,
            topic,
            newest: None,
        });
    }
    let cursors: Result<Vec<Cursor>, _> = texts.iter().map(|text| text.parse()).collect();
    let oldest = cursors.unwrap_or_default().into_iter().reduce(|one, other| {
        // Those of two logs do not compare; none of the first is of this one then, or of the second.
        if one.epoch != other.epoch || one.place < other.place { one } else { other }
    });
    Some(Resume { from: oldest, format, topic, newest: None })
}

/// An id for parameters that are none: never 0, below 2^31, the same for the same text.
fn id_of_text(text: &str) -> u32 {
    let [a, b, c, d, ..] = <[u8; 32]>::from(Sha256::digest(text));
    (u32::from_be_bytes([a, b, c, d]) >> 1).max(1)
}

fn registration(request: Request, interests: Arc<[Interest]>) -> Registration {
    let Request { subscriber, format, topic, claims, .. } = request;
    Registration { subscriber, format, topic, claims, interests }
}

fn readable<'a>(table: &'a Table, role: &str) -> Vec<Column<'a>> {
    let columns = table.columns.iter().filter(|column| table.may_read(role, &column.name));
    let column = |column: &'a crate::catalog::TableColumn| Column {
        name: &column.name,
        type_oid: column.type_oid,
        collation_oid: column.collation_oid,
    };
    columns.map(column).collect()
}
