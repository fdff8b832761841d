//! Who may see a row: Postgres' own policies, evaluated on the row version that the log carries.
//!
//! In:     a batch of changes, and one [`Question`] for each distinct (role, claims) that asked.
//! Out:    one [`Answer`] each: new and old row visible, or not, or why that could not be told.
//! Never:  a row re-read by its key and taken for the one in the log; an answer from a snapshot
//!         that lacks a decoded transaction; a null for a value the log did not carry.
//! Source: postgresql.org/docs/17/ddl-rowsecurity.html
//!
//! This is the exact stage: nothing is remembered between batches but compiled policies, and those
//! are compared with the catalog before an answer is given. A faster stage replaces
//! [`Authorizer::visible_to`] and must answer the same.

mod checker;
mod decision;
mod history;
mod statement;
mod touched;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, SimpleQueryMessage};
use tracing::{error, warn};

use crate::change::{Change, Commit};
use crate::config;
use crate::db::Login;
use crate::snapshot::Snapshot;
use checker::{Checker, Job, Lessons, Outcome, unanswered};
use history::History;
use statement::literal;
use touched::Touched;

pub use decision::{Shown, decide};

/// How often a batch is asked again, when connections end or the catalog changes meanwhile, before
/// the caller is told that there is no answer.
const ATTEMPTS_MAX: usize = 5;
/// How long one call waits for a transaction to become visible, before the caller is told.
const VISIBLE_WAIT_MAX: Duration = Duration::from_secs(5);
/// First and longest pause between two looks.
const VISIBLE_PAUSE: (Duration, Duration) = (Duration::from_micros(100), Duration::from_millis(20));
/// Decoded transactions that may wait to be looked at, when nobody asks about any row. More cost
/// memory; fewer, a question to Postgres more often.
const PENDING_MAX: usize = 4096;
/// How long a transaction may stay invisible before a person should look: a synchronous standby
/// that does not answer holds back every event.
const VISIBLE_ALARM: Duration = Duration::from_secs(3);

/// What one group of subscribers asks: all that have this role and these claims.
#[derive(Debug, Clone)]
pub struct Question {
    /// Postgres role.
    pub role: Arc<str>,
    /// The token's payload, as policies read it.
    pub claims: Arc<str>,
    /// Places in the batch of the changes asked about, ascending.
    pub changes: Vec<u32>,
}

/// What one group may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// For each of the question's changes.
    pub verdicts: Vec<Verdict>,
    /// For each of them, whether the table has Row Level Security on (for anybody).
    pub row_security: Vec<bool>,
    /// The first failure in Postgres' words, for this group's users only.
    pub error: Option<String>,
}

/// Which sides of one change are visible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Verdict {
    /// The row after the change; `No` when there is none.
    pub new: Visibility,
    /// The row before the change; `No` when there is none.
    pub old: Visibility,
}

/// Whether one row version is visible to one user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Visibility {
    /// The policies say yes.
    Yes,
    /// They say yes about an old row, but perhaps only since the transaction that replaced it: that
    /// the row is gone may be told, what it held may not.
    YesNow,
    /// They say no.
    No,
    /// They say no of a deleted row now; before its transaction they may have said yes, and that
    /// cannot be asked any more. Only for who asks about the past.
    Forgotten,
    /// The log did not carry what they need.
    Unknown,
    /// They raised an error or took too long, for this user.
    Failed,
}

impl Answer {
    /// Nothing known yet.
    fn empty(question: &Question) -> Self {
        let verdict = Verdict { new: Visibility::Unknown, old: Visibility::Unknown };
        let changes = question.changes.len();
        Self { verdicts: vec![verdict; changes], row_security: vec![true; changes], error: None }
    }

    /// The same failure for everything asked.
    fn failed(question: &Question, message: &str) -> Self {
        let verdict = Verdict { new: Visibility::Failed, old: Visibility::Failed };
        let verdicts = vec![verdict; question.changes.len()];
        Self { verdicts, error: Some(message.to_owned()), ..Self::empty(question) }
    }
}

/// Why there is no answer. Nothing was decided: hold the batch and ask again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Postgres could not be reached, or failed in a way that is not about a user.
    #[error("Postgres gave no answer about who may see a row")]
    Unanswered(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A decoded transaction is not visible to new snapshots yet.
    #[error("a decoded transaction is not visible to new snapshots after {} ms", .0.as_millis())]
    NotVisible(Duration),
    /// Policies or roles changed each time we asked.
    #[error("the catalog changed during each of {ATTEMPTS_MAX} attempts")]
    CatalogChanging,
}

/// Why a user may not subscribe to a table.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Postgres refuses this user, for good: pass its message on, to this user only.
    #[error("{message}")]
    Refused {
        /// SQLSTATE; empty when Postgres was not even asked.
        code: String,
        /// Postgres' words.
        message: String,
    },
    /// Postgres could not be asked: try again.
    #[error("Postgres could not be asked")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// One role's connection, when there is one.
type Slot = Arc<tokio::sync::Mutex<Option<Checker>>>;

/// Answers who may see which row, on the powerless check login.
pub struct Authorizer {
    login: Login,
    settings: config::Database,
    publications: Arc<[String]>,
    checkers: Mutex<HashMap<Arc<str>, Slot>>,
    guard: tokio::sync::Mutex<Option<Client>>,
    probes: Mutex<HashMap<Arc<str>, Vec<Client>>>,
    probe_permits: Semaphore,
    forgotten: Mutex<Forgotten>,
    pending: Mutex<Pending>,
    touched: Mutex<Touched>,
    history: Arc<History>,
    keeper: JoinHandle<()>,
    /// Asked about changes of which no snapshot from before can be had.
    of_the_past: bool,
}

/// When tables were last forgotten, in a count of its own.
#[derive(Debug)]
struct Forgotten {
    count: u64,
    all: u64,
    tables: HashMap<u32, u64>,
}

/// Decoded transactions not yet proven visible, and since when there are any.
#[derive(Debug, Default)]
struct Pending {
    xids: BTreeSet<u32>,
    since: Option<Instant>,
    alarmed: bool,
}

impl std::fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorizer").finish_non_exhaustive()
    }
}

impl Drop for Authorizer {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every holder leaves the value whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The snapshot that an answer holds.
fn snapshot_in(answer: &[SimpleQueryMessage]) -> Result<Snapshot, Error> {
    let text = answer.iter().find_map(|message| {
        if let SimpleQueryMessage::Row(row) = message { row.get(0) } else { None }
    });
    text.ok_or_else(|| unanswered("no row"))?.parse().map_err(unanswered)
}

impl Authorizer {
    /// Connects nothing yet. `login` is NOINHERIT and a member of exactly the roles in `settings`;
    /// `publications` are those that the log is read through.
    ///
    /// Call it within a tokio runtime: a task keeps snapshots of the recent past while
    /// [`Self::keep_history`] asks for them, and ends with this value.
    pub fn new(login: Login, settings: &config::Database, publications: &[String]) -> Self {
        let history = Arc::new(History::default());
        let interval = Duration::from_millis(settings.snapshot_interval_ms);
        let keeper = tokio::spawn(Arc::clone(&history).keep(login.clone(), interval));
        Self {
            login,
            settings: settings.clone(),
            publications: publications.into(),
            checkers: Mutex::default(),
            guard: tokio::sync::Mutex::default(),
            probes: Mutex::default(),
            probe_permits: Semaphore::new(settings.pool_size),
            forgotten: Mutex::new(Forgotten { count: 1, all: 1, tables: HashMap::new() }),
            pending: Mutex::default(),
            touched: Mutex::default(),
            history,
            keeper,
            of_the_past: false,
        }
    }

    /// For changes of a while ago: answers that only a snapshot from before could have given are
    /// [`Visibility::Forgotten`].
    #[must_use]
    pub fn of_the_past(mut self) -> Self {
        self.of_the_past = true;
        self
    }

    /// Whether anybody has subscribed to row changes. While so, two connections hold snapshots of
    /// the recent past; without them, a DELETE whose transaction also took away the right to see
    /// the row is told to nobody.
    pub fn keep_history(&self, wanted: bool) {
        self.history.want(wanted);
    }

    /// Returns once a snapshot of the past is held that was taken after this call.
    pub async fn history_kept(&self) {
        self.history.next().await;
    }

    /// Takes note of what transactions did and that they were decoded. Call it with every batch,
    /// in commit order, whether or not anybody asks about it.
    pub fn observe(&self, batch: &[Change]) {
        lock(&self.touched).note(batch, Instant::now());
        let mut pending = lock(&self.pending);
        pending.xids.extend(batch.iter().map(|change| change.commit.xid));
    }

    /// As [`Self::observe`], for (a part of) a transaction whether or not anybody asked for its
    /// rows: the tables it wrote to, its changes so far, and whether that is all it did.
    pub fn observe_transaction(&self, commit: Commit, tables: &[u32], changes: u32, whole: bool) {
        lock(&self.touched).note_transaction(commit, tables, changes, whole, Instant::now());
        lock(&self.pending).xids.insert(commit.xid);
    }

    /// Takes note that these transactions were decoded: every later answer is from a snapshot that
    /// sees what they did. Whether so many are waiting for that that somebody should
    /// [look](Self::look).
    pub fn observe_decoded(&self, xids: &[u32]) -> bool {
        let mut pending = lock(&self.pending);
        pending.xids.extend(xids);
        pending.xids.len() >= PENDING_MAX
    }

    /// Drops what was compiled for a table, or for all: its Relation message came again, or the
    /// catalog changed.
    pub fn forget(&self, table: Option<u32>) {
        let mut forgotten = lock(&self.forgotten);
        forgotten.count += 1;
        let count = forgotten.count;
        if let Some(table) = table {
            forgotten.tables.insert(table, count);
        } else {
            forgotten.all = count;
            forgotten.tables.clear();
        }
    }

    fn forgotten(&self, table: u32) -> u64 {
        let forgotten = lock(&self.forgotten);
        forgotten.tables.get(&table).copied().unwrap_or_default().max(forgotten.all)
    }

    /// Returns once every one of `xids`, and all decoded before, are visible to new snapshots:
    /// from then on, whoever reads finds what they did.
    ///
    /// # Errors
    /// [`Error::NotVisible`] when that takes long, [`Error::Unanswered`] when Postgres cannot be
    /// asked: call again. Nothing may be published meanwhile.
    pub async fn wait_visible(&self, xids: &[u32]) -> Result<(), Error> {
        lock(&self.pending).xids.extend(xids);
        let started = Instant::now();
        let mut pause = VISIBLE_PAUSE.0;
        while !lock(&self.pending).xids.is_empty() && !self.look().await? {
            self.pause(started, &mut pause).await?;
        }
        Ok(())
    }

    /// Returns once everything decoded before this call is visible to new snapshots. For callers
    /// of whom there may be many at once.
    ///
    /// # Errors
    /// As [`Self::wait_visible`].
    pub async fn wait_decoded_visible(&self) -> Result<(), Error> {
        let awaited: Vec<u32> = lock(&self.pending).xids.iter().copied().collect();
        let started = Instant::now();
        let mut pause = VISIBLE_PAUSE.0;
        loop {
            let is_waiting = || {
                let pending = lock(&self.pending);
                awaited.iter().any(|xid| pending.xids.contains(xid))
            };
            if !is_waiting() {
                return Ok(());
            }
            // Whoever looks, looks for all.
            if let Ok(guard) = self.guard.try_lock() {
                self.look_with(guard).await?;
                if !is_waiting() {
                    return Ok(());
                }
            }
            self.pause(started, &mut pause).await?;
        }
    }

    /// Looks once which decoded transactions new snapshots see. Whether it is all of them.
    ///
    /// # Errors
    /// [`Error::Unanswered`] when Postgres cannot be asked.
    pub async fn look(&self) -> Result<bool, Error> {
        self.look_with(self.guard.lock().await).await
    }

    async fn look_with(
        &self,
        mut guard: tokio::sync::MutexGuard<'_, Option<Client>>,
    ) -> Result<bool, Error> {
        let client = match guard.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => self.login.connect("walcast guard").await.map_err(unanswered)?,
        };
        let timeout = self.check_timeout();
        // One message there and one back: a statement to be prepared would be two of each, and
        // every change waits for this.
        let query = client.simple_query("select pg_catalog.pg_current_snapshot()::text");
        let answer = tokio::time::timeout(timeout, query).await.map_err(unanswered)?;
        let snapshot = snapshot_in(&answer.map_err(unanswered)?)?;
        *guard = Some(client);
        Ok(self.settle(&snapshot))
    }

    /// Strikes off what `snapshot` sees. Whether nothing is left.
    fn settle(&self, snapshot: &Snapshot) -> bool {
        let mut pending = lock(&self.pending);
        pending.xids.retain(|xid| !snapshot.sees(*xid));
        if pending.xids.is_empty() {
            if pending.alarmed {
                warn!("every decoded transaction is visible again");
            }
            (pending.since, pending.alarmed) = (None, false);
            return true;
        }
        let since = *pending.since.get_or_insert_with(Instant::now);
        if since.elapsed() > VISIBLE_ALARM && !pending.alarmed {
            pending.alarmed = true;
            error!(
                transactions = pending.xids.len(),
                "events are held: a committed transaction is not visible; \
                 does a synchronous standby answer?"
            );
        }
        false
    }

    async fn pause(&self, started: Instant, pause: &mut Duration) -> Result<(), Error> {
        if started.elapsed() >= VISIBLE_WAIT_MAX {
            return Err(Error::NotVisible(started.elapsed()));
        }
        tokio::time::sleep(*pause).await;
        *pause = (*pause * 2).min(VISIBLE_PAUSE.1);
        Ok(())
    }

    /// Decides, for each question, which rows of `batch` its users may see: as Postgres would
    /// answer them, in one snapshot that sees every decoded transaction.
    ///
    /// A policy that fails for one user is that user's failure alone. Roles are asked side by
    /// side, each on its own connection; users of a role in turn.
    ///
    /// # Errors
    /// No answer: nothing was decided, for nobody. Hold the batch and ask again.
    pub async fn visible_to(
        &self,
        batch: &[Change],
        questions: &[Question],
    ) -> Result<Vec<Answer>, Error> {
        self.observe(batch);
        let mut by_role: HashMap<&Arc<str>, Vec<usize>> = HashMap::new();
        let mut answers: Vec<Answer> = Vec::with_capacity(questions.len());
        for (place, question) in questions.iter().enumerate() {
            answers.push(Answer::empty(question));
            by_role.entry(&question.role).or_default().push(place);
        }
        let roles = by_role.into_iter().map(async |(role, places)| {
            let asked: Vec<&Question> =
                places.iter().filter_map(|place| questions.get(*place)).collect();
            let answers = Box::pin(self.ask_role(role, batch, &asked)).await?;
            Ok::<_, Error>((places, answers))
        });
        for (places, role_answers) in futures_util::future::try_join_all(roles).await? {
            for (place, answer) in places.into_iter().zip(role_answers) {
                if let Some(slot) = answers.get_mut(place) {
                    *slot = answer;
                }
            }
        }
        Ok(answers)
    }

    async fn ask_role(
        &self,
        role: &Arc<str>,
        batch: &[Change],
        questions: &[&Question],
    ) -> Result<Vec<Answer>, Error> {
        if !self.allows(role) {
            let refuse = |question: &&Question| Answer::failed(question, "the role is not allowed");
            return Ok(questions.iter().map(refuse).collect());
        }
        let slot = Arc::clone(lock(&self.checkers).entry(Arc::clone(role)).or_default());
        let mut slot = slot.lock().await;
        let started = Instant::now();
        let mut pause = VISIBLE_PAUSE.0;
        let mut lessons = Lessons::default();
        let mut attempt = 0;
        loop {
            // Out of the slot while it works: a call that is dropped midway ends the connection.
            let idle = slot.take().filter(|checker| !checker.is_closed());
            let mut checker = if let Some(checker) = idle {
                checker
            } else {
                let path = &self.settings.search_path;
                let timeout = self.check_timeout();
                let publications = Arc::clone(&self.publications);
                Checker::connect(&self.login, Arc::clone(role), publications, path, timeout).await?
            };
            let xids: Vec<u32> = lock(&self.pending).xids.iter().copied().collect();
            let job = Job {
                batch,
                questions,
                xids: &xids,
                touched: &self.touched,
                history: &self.history,
                forgotten: &|table| self.forgotten(table),
                of_the_past: self.of_the_past,
                timeout: self.check_timeout(),
                deadline: started + Duration::from_millis(self.settings.batch_check_timeout_ms),
            };
            let again = match Box::pin(checker.ask(&job, &mut lessons)).await {
                Ok(Outcome::Answered(answers)) => {
                    *slot = Some(checker);
                    // The answering snapshot saw them all.
                    lock(&self.pending).xids.retain(|xid| xids.binary_search(xid).is_err());
                    return Ok(answers);
                }
                Ok(Outcome::Refused(message)) => {
                    *slot = Some(checker);
                    let refuse = |question: &&Question| Answer::failed(question, &message);
                    return Ok(questions.iter().map(refuse).collect());
                }
                Ok(Outcome::NotVisible(snapshot)) => {
                    *slot = Some(checker);
                    self.settle(&snapshot);
                    self.pause(started, &mut pause).await?;
                    continue;
                }
                Ok(Outcome::CatalogChanged) => {
                    *slot = Some(checker);
                    Error::CatalogChanging
                }
                Ok(Outcome::RoleChanged) => Error::CatalogChanging,
                Err(error) => {
                    warn!(%role, error = %source_of(&error), "a check got no answer");
                    error
                }
            };
            attempt += 1;
            if attempt >= ATTEMPTS_MAX {
                return Err(again);
            }
        }
    }

    /// Whether this user can SELECT from the table at all: finds recursive policies and missing
    /// privileges, also on the tables that policies read, before the first event.
    ///
    /// # Errors
    /// [`ProbeError::Refused`] with Postgres' message: refuse or end the subscription.
    pub async fn probe(
        &self,
        role: &Arc<str>,
        claims: &str,
        table_oid: u32,
    ) -> Result<(), ProbeError> {
        let unavailable = |error: tokio_postgres::Error| ProbeError::Unavailable(error.into());
        if !self.allows(role) {
            let message = format!("role {role} is not allowed");
            return Err(ProbeError::Refused { code: String::new(), message });
        }
        let _permit = self
            .probe_permits
            .acquire()
            .await
            .map_err(|error| ProbeError::Unavailable(error.into()))?;
        let idle = lock(&self.probes).get_mut(role).and_then(Vec::pop);
        let client = if let Some(client) = idle.filter(|client| !client.is_closed()) {
            client
        } else {
            let path = &self.settings.search_path;
            let connecting =
                checker::connect(&self.login, "walcast probe", path, self.check_timeout());
            connecting.await.map_err(|error| ProbeError::Unavailable(error.into()))?
        };
        let row = client
            .query_opt(
                "select pg_catalog.format('%I.%I', n.nspname, c.relname)
                from pg_catalog.pg_class as c
                join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
                where c.oid = $1",
                &[&table_oid],
            )
            .await
            .map_err(unavailable)?;
        let Some(row) = row else {
            let message = String::from("the table does not exist");
            return Err(ProbeError::Refused { code: "42P01".into(), message });
        };
        let table: &str = row.try_get(0).map_err(unavailable)?;
        let settings = [
            ("role", &**role),
            ("request.jwt.claims", claims),
            ("request.jwt.claim.sub", &checker::subject(claims)),
            ("request.jwt.claim.role", role),
        ];
        let settings = settings.map(|(name, value)| {
            format!("pg_catalog.set_config({}, {}, true)", literal(name), literal(value))
        });
        let probe = format!(
            "begin isolation level repeatable read read only;
            select {};
            select from {table} limit 0;
            rollback",
            settings.join(", ")
        );
        let limit = self.check_timeout() * 2 + Duration::from_secs(1);
        let probed = tokio::time::timeout(limit, client.batch_execute(&probe)).await;
        let answer = match probed.map_err(|error| ProbeError::Unavailable(error.into()))? {
            Ok(()) => Ok(()),
            Err(error) => match error.as_db_error() {
                None => return Err(unavailable(error)),
                Some(refused) => {
                    let code = refused.code().code().to_owned();
                    let message = refused.message().to_owned();
                    client.batch_execute("rollback").await.map_err(unavailable)?;
                    // Locks, resources, a server that stops: not this user's fault.
                    if ["53", "55", "57P", "58", "40"].iter().any(|class| code.starts_with(class)) {
                        Err(ProbeError::Unavailable(message.into()))
                    } else {
                        Err(ProbeError::Refused { code, message })
                    }
                }
            },
        };
        lock(&self.probes).entry(Arc::clone(role)).or_default().push(client);
        answer
    }

    fn allows(&self, role: &str) -> bool {
        // `none` in the list would be the login itself.
        role != "none" && self.settings.roles.iter().any(|allowed| allowed == role)
    }

    fn check_timeout(&self) -> Duration {
        Duration::from_millis(self.settings.check_timeout_ms)
    }
}

fn source_of(error: &Error) -> String {
    match error {
        Error::Unanswered(source) => source.to_string(),
        Error::NotVisible(_) | Error::CatalogChanging => error.to_string(),
    }
}
