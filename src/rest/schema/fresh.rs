//! The picture of now: read when it is first asked for, and again when it may have changed.
//!
//! In:     what the feed saw in the log; `NOTIFY pgrst`; the fingerprint of the catalogs, compared
//!         once a second while there are requests; names that were not found.
//! Out:    a [`Schema`] that no change made old whose commit was seen here, shared by all requests.
//! Never:  two looks at the catalogs at once; a picture that was not confirmed for longer than two
//!         intervals, whatever fails; work while nobody asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::http::StatusCode;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_postgres::Client;
use tracing::{debug, error, info, warn};

use super::Schema;
use super::load::{self, Error, Fingerprint, Loaded};
use crate::db::Login;
use crate::feed::Status;
use crate::rest::Problem;
use crate::telemetry;

/// How often the fingerprint is compared while there are requests: about the longest time that a
/// change goes unnoticed which neither the log nor a notification tells of.
const INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How often it is compared at most because names were not found.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Comparing takes at most one part in so many of the time, where catalogs are large.
const SHARE: u32 = 20;

/// A picture is confirmed for so many intervals, so that a request seldom waits for the next look.
const CONFIRMED_INTERVALS: u32 = 2;

/// How often all is read again because somebody said so; more often it is compared.
const RELOAD_INTERVAL: Duration = Duration::from_secs(1);

/// One look, reading all included. Large catalogs take seconds.
const LOOK_TIMEOUT: Duration = Duration::from_secs(20);

/// Waits after a look that failed: the first, and what doubling ends at.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The channel on which a schema is told to be read again, as with the original.
const CHANNEL: &str = "pgrst";

/// Waits between attempts to listen.
const LISTEN_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

/// How often a connection that only listens is asked whether it still does, and for how long.
const LISTEN_CHECK: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));

impl From<Error> for Problem {
    fn from(_: Error) -> Self {
        // The log has more; a client could do nothing about it.
        let message = "Could not query the database for the schema cache. Retrying.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "PGRST002", message)
    }
}

/// Where pictures come from. One of it serves all requests; its task ends with it.
pub struct Schemas {
    shared: Arc<Shared>,
    known: watch::Receiver<Known>,
    keeper: JoinHandle<()>,
}

impl std::fmt::Debug for Schemas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Schemas").finish_non_exhaustive()
    }
}

impl Drop for Schemas {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// What requests and the feed say to the keeper.
struct Shared {
    status: Arc<Status>,
    /// Notifications may have been missed so many times.
    missed: AtomicU64,
    /// Notifications that asked for everything anew.
    reloads: AtomicU64,
    /// Somebody waits for a look.
    asked: Notify,
    /// There was a request since the last look.
    used: AtomicBool,
}

impl Shared {
    fn marks(&self) -> Marks {
        Marks {
            changes: self.status.catalog_changes.load(Ordering::Acquire),
            missed: self.missed.load(Ordering::Acquire),
            reloads: self.reloads.load(Ordering::Acquire),
        }
    }
}

/// What was known of changes when a look began.
#[derive(Debug, Clone, Copy, Default)]
struct Marks {
    changes: u64,
    missed: u64,
    reloads: u64,
}

impl Marks {
    fn cover(self, others: Self) -> bool {
        self.changes >= others.changes
            && self.missed >= others.missed
            && self.reloads >= others.reloads
    }
}

/// What the keeper knows.
#[derive(Default)]
struct Known {
    picture: Option<Picture>,
    /// The last look failed.
    failure: Option<Failure>,
    /// Looks that came to an end.
    looks: u64,
}

struct Picture {
    schema: Arc<Schema>,
    marks: Marks,
    /// It was so at this time, or after it.
    as_of: Instant,
    /// Until when it is taken for current.
    until: Instant,
}

struct Failure {
    error: Arc<Error>,
    retry_at: Instant,
}

/// Which picture a request may use.
#[derive(Clone, Copy)]
struct Need {
    arrived: Instant,
    marks: Marks,
    /// Confirmed after it arrived.
    anew: bool,
}

impl Need {
    fn is_met_by(&self, picture: &Picture) -> bool {
        let confirmed =
            if self.anew { picture.as_of >= self.arrived } else { picture.until >= self.arrived };
        confirmed && picture.marks.cover(self.marks)
    }
}

impl Schemas {
    /// Starts to listen, and reads nothing yet. `status` is the feed's; `login` may do nothing but
    /// connect. Takes two connections.
    ///
    /// # Panics
    /// Outside a runtime.
    pub fn new(login: Login, schemas: &[String], status: Arc<Status>) -> Self {
        let shared = Arc::new(Shared {
            status,
            missed: AtomicU64::new(0),
            reloads: AtomicU64::new(0),
            asked: Notify::new(),
            used: AtomicBool::new(false),
        });
        let (sender, known) = watch::channel(Known::default());
        let keeper = Keeper {
            login: login.clone(),
            schemas: schemas.to_vec(),
            shared: Arc::clone(&shared),
            known: sender,
            client: None,
            fingerprint: None,
            loaded_at: None,
            unsure_until: None,
            compared_in: Duration::ZERO,
            tick: Instant::now(),
            retry: RETRY.0,
            told: String::new(),
        };
        let listening = listen(login, Arc::clone(&shared));
        let keeper = tokio::spawn(async move {
            tokio::join!(Box::pin(keeper.run()), Box::pin(listening));
        });
        Self { shared, known, keeper }
    }

    /// The picture of now: what committed before, and was seen by the feed or notified of, is in
    /// it. Almost always at once; else when the catalogs were looked at.
    ///
    /// # Errors
    /// Why there is none. The next request tries again, after a pause that is told the same.
    pub async fn current(&self) -> Result<Arc<Schema>, Error> {
        let need = self.need(false);
        if !self.shared.used.load(Ordering::Relaxed) {
            self.shared.used.store(true, Ordering::Relaxed);
        }
        if let Some(picture) = &self.known.borrow().picture
            && need.is_met_by(picture)
        {
            return Ok(Arc::clone(&picture.schema));
        }
        self.wait_for(need).await
    }

    /// A newer picture than `seen`, if there is one now: for a name that was not found, or after
    /// Postgres did not find what `seen` has. Try again with it, once.
    ///
    /// However many ask, the catalogs are looked at ten times a second at most, together for all
    /// who wait; requests whose names are found do not.
    ///
    /// # Errors
    /// As [`Self::current`].
    pub async fn suspect(&self, seen: &Schema) -> Result<Option<Arc<Schema>>, Error> {
        let other = |schema: &Arc<Schema>| schema.number != seen.number;
        if let Some(newer) = Some(self.current().await?).filter(other) {
            return Ok(Some(newer));
        }
        Ok(Some(self.wait_for(self.need(true)).await?).filter(other))
    }

    fn need(&self, anew: bool) -> Need {
        // What is needed is what was known when it came, so that changes without end hold up
        // nobody for ever.
        Need { arrived: Instant::now(), marks: self.shared.marks(), anew }
    }

    async fn wait_for(&self, need: Need) -> Result<Arc<Schema>, Error> {
        let mut known = self.known.clone();
        let before = known.borrow().looks;
        loop {
            {
                let known = known.borrow_and_update();
                match (&known.picture, &known.failure) {
                    (Some(picture), _) if need.is_met_by(picture) => {
                        return Ok(Arc::clone(&picture.schema));
                    }
                    (_, Some(failure))
                        if known.looks > before || failure.retry_at > need.arrived =>
                    {
                        return Err(Error::Again(Arc::clone(&failure.error)));
                    }
                    _ => {}
                }
            }
            self.shared.asked.notify_one();
            known.changed().await.map_err(|_| Error::Stopped)?;
        }
    }
}

/// Looks at the catalogs, for all.
struct Keeper {
    login: Login,
    schemas: Vec<String>,
    shared: Arc<Shared>,
    known: watch::Sender<Known>,
    client: Option<Client>,
    /// Of the picture that is known; none: it is to be read again.
    fingerprint: Option<Fingerprint>,
    loaded_at: Option<Instant>,
    /// When to read again what could not be read for sure.
    unsure_until: Option<Instant>,
    /// How long it takes to compare. One that took longer counts as twice the one before at most:
    /// whatever held it up once is not the size of the catalogs.
    compared_in: Duration,
    /// When to compare without being asked.
    tick: Instant,
    /// The pause after the next failure.
    retry: Duration,
    /// The last failure that the log has.
    told: String,
}

impl Keeper {
    async fn run(mut self) {
        loop {
            tokio::select! {
                () = self.shared.asked.notified() => {}
                () = sleep_until(self.tick) => {
                    // What nobody asked for is not kept current.
                    if !self.shared.used.swap(false, Ordering::Relaxed) {
                        self.tick = Instant::now() + self.interval();
                        continue;
                    }
                }
            }
            self.pause().await;
            self.look().await;
        }
    }

    fn interval(&self) -> Duration {
        (self.compared_in * SHARE).clamp(INTERVAL.0, INTERVAL.1)
    }

    /// Returns when the next look is due: at once after a change.
    async fn pause(&self) {
        loop {
            let now = Instant::now();
            let due = {
                let known = self.known.borrow();
                let need = Need { arrived: now, marks: self.shared.marks(), anew: false };
                match (&known.failure, &known.picture) {
                    (Some(failure), _) => failure.retry_at,
                    (None, Some(picture)) if need.is_met_by(picture) => {
                        picture.as_of + (self.compared_in * SHARE).clamp(PAUSE.0, PAUSE.1)
                    }
                    (None, _) => now,
                }
            };
            if due <= now {
                return;
            }
            tokio::select! {
                () = sleep_until(due) => {}
                () = self.shared.asked.notified() => {}
            }
        }
    }

    async fn look(&mut self) {
        let (as_of, marks) = (Instant::now(), self.shared.marks());
        let is_told = self.known.borrow().picture.as_ref().is_some_and(|picture| {
            picture.marks.reloads != marks.reloads
                && self.loaded_at.is_none_or(|at| at.elapsed() >= RELOAD_INTERVAL)
        });
        if is_told || self.unsure_until.is_some_and(|until| until <= as_of) {
            self.fingerprint = None;
        }
        let looked = timeout(LOOK_TIMEOUT, Box::pin(self.look_once())).await;
        match looked.unwrap_or(Err(Error::Timeout)) {
            Ok(loaded) => self.confirm(loaded, as_of, marks),
            Err(error) => self.fail(error),
        }
        self.tick = Instant::now() + self.interval();
    }

    fn confirm(&mut self, loaded: Option<Loaded>, as_of: Instant, marks: Marks) {
        let mut schema = None;
        if let Some(Loaded { schema: mut read, fingerprint, is_sure, has_routes }) = loaded {
            if !has_routes && let Some(picture) = &self.known.borrow().picture {
                read.routes = Arc::clone(&picture.schema.routes);
            }
            let (relations, functions) = (read.by_oid.len(), read.functions.len());
            let took_ms = as_of.elapsed().as_millis();
            debug!(number = read.number, relations, functions, took_ms, "the schema was read");
            self.fingerprint = Some(fingerprint);
            self.loaded_at = Some(as_of);
            // Whoever alters a view may take hours.
            let pause = (as_of.elapsed() * SHARE).clamp(INTERVAL.0, INTERVAL.1);
            self.unsure_until = (!is_sure).then(|| as_of + pause);
            schema = Some(Arc::new(read));
        }
        let until = as_of + self.interval() * CONFIRMED_INTERVALS;
        self.known.send_modify(|known| {
            let schema = schema.or_else(|| known.picture.take().map(|picture| picture.schema));
            known.picture = schema.map(|schema| Picture { schema, marks, as_of, until });
            known.failure = None;
            known.looks += 1;
        });
        self.retry = RETRY.0;
        if !std::mem::take(&mut self.told).is_empty() {
            info!("the schema can be read again");
        }
    }

    fn fail(&mut self, error: Error) {
        let text = telemetry::chain(&error);
        if self.told != text {
            if let Error::TooMany { .. } = error {
                error!(error = text, "requests for rows are refused");
            } else {
                warn!(error = text, "the schema cannot be read for now");
            }
            self.told = text;
        }
        let failure = Failure { error: Arc::new(error), retry_at: Instant::now() + self.retry };
        self.retry = (self.retry * 2).min(RETRY.1);
        self.known.send_modify(|known| {
            known.failure = Some(failure);
            known.looks += 1;
        });
    }

    /// A new picture, or none when that of before is still true. A connection that was lost
    /// meanwhile is made again.
    async fn look_once(&mut self) -> Result<Option<Loaded>, Error> {
        if let Some(client) = self.client.take().filter(|client| !client.is_closed()) {
            match self.look_over(&client).await {
                Err(Error::Query(error)) if client.is_closed() => {
                    debug!(error = telemetry::chain(&error), "the connection was lost");
                }
                result => {
                    self.client = result.is_ok().then_some(client);
                    return result;
                }
            }
        }
        let client = self.login.connect("walcast schema").await.map_err(Error::Connect)?;
        let settings = "set search_path = ''; set jit = off; set statement_timeout = '10s'; \
            set lock_timeout = '100ms'";
        client.batch_execute(settings).await.map_err(Error::Query)?;
        let result = self.look_over(&client).await?;
        self.client = Some(client);
        Ok(result)
    }

    async fn look_over(&mut self, client: &Client) -> Result<Option<Loaded>, Error> {
        if let Some(known) = self.fingerprint {
            let began = Instant::now();
            let now = load::fingerprint(client).await?;
            let took = began.elapsed();
            let before = self.compared_in;
            self.compared_in = if before.is_zero() { took } else { took.min(before * 2) };
            if now.is_as(known) {
                return Ok(None);
            }
        }
        load::read(client, &self.schemas).await.map(Some)
    }
}

/// Hears notifications for as long as it is polled.
async fn listen(login: Login, shared: Arc<Shared>) {
    let mut wait = LISTEN_RETRY.0;
    loop {
        let (alive, ended) = oneshot::channel::<()>();
        let told = Arc::clone(&shared);
        let heard = move |payload: &str| {
            // Kept until the connection ends.
            let _ = &alive;
            if matches!(payload, "" | "reload schema") {
                told.reloads.fetch_add(1, Ordering::Release);
            }
        };
        let connected = async {
            let client = login.connect_listening("walcast listen", heard).await;
            let client = client.map_err(Error::Connect)?;
            client.batch_execute(&format!("listen {CHANNEL}")).await.map_err(Error::Query)?;
            Ok::<_, Error>(client)
        };
        match timeout(LISTEN_CHECK.1, connected).await.unwrap_or(Err(Error::Timeout)) {
            Ok(client) => {
                // Whatever was said before was not heard.
                shared.missed.fetch_add(1, Ordering::Release);
                wait = LISTEN_RETRY.0;
                until_lost(&client, ended).await;
            }
            Err(error) => {
                debug!(error = telemetry::chain(&error), "notifications are not heard for now");
            }
        }
        sleep(wait).await;
        wait = (wait * 2).min(LISTEN_RETRY.1);
    }
}

async fn until_lost(client: &Client, mut ended: oneshot::Receiver<()>) {
    loop {
        tokio::select! {
            _ = &mut ended => return,
            () = sleep(LISTEN_CHECK.0) => {}
        }
        let answer = timeout(LISTEN_CHECK.1, client.batch_execute("")).await;
        if !matches!(answer, Ok(Ok(()))) {
            return;
        }
    }
}
