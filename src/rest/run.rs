//! Running a statement as the caller: one transaction, one round trip.
//!
//! In:     claims, a statement, what must be true of its result.
//! Out:    [`Done`], after the commit; or a [`Failure`], after which nothing has changed.
//! Never:  a statement as anybody but the caller; a connection given to the next request in
//!         another state than a new one; a commit of what the caller did not allow.
//!
//! All messages of a request are sent at once, in order (each is sent as its future is first
//! looked at, hence `biased`): begin, who the caller is (`sql/rest/settings.sql`),
//! the statement, commit, and what makes the connection new again. The answer goes out when the
//! commit's is here. What makes it new again is in the commit's message; behind a call, which may
//! leave more, it is one of its own that the pool waits for. Where something fails, Postgres skips what
//! is in between and the commit rolls back. Only a write whose result must be looked at before it
//! may stay, and a statement that is being prepared, takes a second round trip.
//!
//! Functions, triggers and policies are code of somebody else. What they do to their connection
//! ends with the transaction or with `sql/rest/reset.sql`; a connection that does not reset, or
//! keeps prepared statements that are not ours, is ended. Whoever hangs up ends his statement.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::TryStreamExt as _;
use futures_util::future::{MaybeDone, OptionFuture, maybe_done};
use serde_json::value::RawValue;
use tokio::time::timeout;
use tokio_postgres::types::{Format, IsNull, Json, ToSql, Type, to_sql_checked};
use tokio_postgres::{Client, Row, SimpleQueryMessage, Statement};
use tracing::{debug, warn};

use super::pool::{self, Asked, Lease, Plan, Pool};
use super::roles::{RoleSettings, Roles};
use super::sql;
use super::statement::Answer;
use super::statement::read::planned_rows;
use super::statement::write::put_mismatch;
use super::{Problem, problem};
use crate::auth::Claims;
use crate::config;
use crate::db::Login;
use crate::db::pool::{Error as PoolError, Reset};
use crate::lsn::Lsn;
use crate::telemetry;

/// Beside the statement's own time, for everything around it: deferred constraints, the commit.
const TIME_AROUND: Duration = Duration::from_secs(5);

/// How often a request begins again: on a connection that lost what was prepared on it or that
/// ended unnoticed, without a time zone that nobody knows.
const ATTEMPTS_MAX: u32 = 3;

/// Where the log is when something was written before.
const ROLLBACK: &str = "rollback; select pg_catalog.pg_current_wal_insert_lsn()";

/// Where the write ended in the log. In one message: a commit that fails has no position.
const COMMIT: &str = "commit; select pg_catalog.pg_current_wal_insert_lsn()";

static RESET: LazyLock<String> = LazyLock::new(|| {
    let lines = include_str!("../../sql/rest/reset.sql").lines();
    lines.filter(|line| !line.starts_with("--")).collect::<Vec<_>>().join(" ")
});

/// One message less is more than what the rest of it costs.
static COMMIT_READING_AND_RESET: LazyLock<String> = LazyLock::new(|| format!("commit; {}", *RESET));

static COMMIT_AND_RESET: LazyLock<String> = LazyLock::new(|| format!("{COMMIT}; {}", *RESET));

/// What a function can read about the request: PostgREST's `request.*` settings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Context {
    /// The method.
    pub method: String,
    /// The path, from the relation or `/rpc` on.
    pub path: String,
    /// A JSON object of the headers.
    pub headers: String,
    /// A JSON object of the cookies.
    pub cookies: String,
}

/// What must be true of the result, or it is rolled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Demand {
    /// One row, no more and no less.
    pub is_single: bool,
    /// Rows at most.
    pub affected_max: Option<u64>,
    /// It is a PUT: no row means that the body's is another than the URL's.
    pub is_put: bool,
}

impl Demand {
    fn check(self, answer: &Answer) -> Result<(), Problem> {
        let rows = answer.page_total;
        if self.affected_max.is_some_and(|most| rows > most) {
            return Err(Problem::too_many_affected(rows));
        }
        if self.is_put && rows == 0 {
            return Err(put_mismatch());
        }
        if self.is_single && rows != 1 {
            return Err(Problem::not_single(rows));
        }
        Ok(())
    }
}

/// Under which a write is made once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Whose key it is.
    pub scope: String,
    /// What the client called the write.
    pub key: String,
    /// Digest of all that was asked.
    pub request: String,
    /// How long its answer is kept.
    pub lifetime_ms: u64,
}

/// One statement and on whose behalf it runs.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// Who asks.
    pub claims: &'a Claims,
    /// What is run: its one row has the columns of [`Answer`].
    pub statement: &'a sql::Statement,
    /// The schema of the request.
    pub schema: &'a str,
    /// Number of the picture that the statement was made from.
    pub number: u64,
    /// Whether nothing may be written.
    pub is_read_only: bool,
    /// Whether it calls a function by name. Whoever may run statements of his own in one may do
    /// anything with the connection.
    pub is_call: bool,
    /// What functions can read.
    pub context: &'a Context,
    /// What tells how many rows the planner expects, if that is asked for.
    pub estimate: Option<&'a sql::Statement>,
    /// For times in the answer, if Postgres knows it.
    pub time_zone: Option<&'a str>,
    /// What the client is told when it does not; none: it is left out.
    pub no_such_time_zone: Option<&'a Problem>,
    /// What must be true of the result.
    pub demand: Demand,
    /// Who makes the transaction, for readers of the log: the first word of its transaction.
    pub origin: Option<&'a str>,
    /// Under which it is written once; asked again, it is answered as it was then.
    pub key: Option<&'a Key>,
}

/// What a request came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// The statement's row.
    pub answer: Answer,
    /// Where a write had ended in the log, if it was one.
    pub lsn: Option<Lsn>,
    /// Rows that the planner expects, if that was asked for.
    pub planned: Option<u64>,
    /// Whether the time zone is one.
    pub knows_time_zone: bool,
    /// Whether it was written before, under the same key, and nothing was written now.
    pub is_repeated: bool,
}

/// Why nothing was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For the client.
    pub problem: Problem,
    /// The statement names what is there no more: it may have been made from an old picture.
    pub is_stale: bool,
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self { problem, is_stale: false }
    }
}

/// What became of a key.
enum Claimed {
    /// It is this write's.
    Now,
    /// It was another's, which was answered with this.
    Before(Answer),
}

/// When a connection is as a new one again.
enum Back {
    /// It is.
    Now,
    /// When this has said so.
    After(Reset),
}

/// Why one attempt failed.
enum Missed {
    /// There is nothing to try.
    For(Failure),
    /// The connection is no good; nothing was written.
    Connection(Failure),
    /// What was prepared may have been for columns of other types; nothing was written.
    Plan(Failure),
    /// Postgres knows no such time zone.
    TimeZone,
}

/// Runs statements as whoever asks.
pub struct Runner {
    pool: Pool,
    roles: Roles,
    anon_role: String,
    extra_search_path: Vec<String>,
    statement_timeout_ms: u64,
}

impl Runner {
    /// On connections of `login`, which may become each of `roles` and nothing else.
    pub fn new(login: Login, settings: &config::Rest, roles: &[String]) -> Self {
        Self {
            pool: pool::open(login, settings),
            roles: Roles::new(roles),
            anon_role: settings.anon_role.clone(),
            extra_search_path: settings.extra_search_path.clone(),
            statement_timeout_ms: settings.statement_timeout_ms,
        }
    }

    /// Runs it, and commits unless it only reads.
    ///
    /// # Errors
    /// [`Failure`]; nothing was written, unless the connection was lost, or the time was over, during
    /// a commit and what follows it.
    pub async fn run(&self, job: &Job<'_>) -> Result<Done, Failure> {
        let mut job = *job;
        let mut knows_time_zone = job.time_zone.is_some();
        let mut may_be_prepared = true;
        for attempt in 1.. {
            let lease = self.pool.lease().await.map_err(|error| not_leased(&error))?;
            let time = Duration::from_millis(self.statement_timeout_ms) + TIME_AROUND;
            // Given up, its statement is told to stop.
            let outcome = timeout(time, Box::pin(self.attempt(&job, lease, may_be_prepared))).await;
            match outcome.unwrap_or_else(|_| Err(Missed::For(Problem::late().into()))) {
                Ok(done) => return Ok(Done { knows_time_zone, ..done }),
                Err(Missed::TimeZone) if attempt < ATTEMPTS_MAX => {
                    if let Some(problem) = job.no_such_time_zone {
                        return Err(problem.clone().into());
                    }
                    job.time_zone = None;
                    knows_time_zone = false;
                }
                Err(Missed::Connection(_)) if attempt < ATTEMPTS_MAX => {}
                Err(Missed::Plan(_)) if attempt < ATTEMPTS_MAX => may_be_prepared = false,
                Err(Missed::For(failure) | Missed::Connection(failure) | Missed::Plan(failure)) => {
                    return Err(failure);
                }
                Err(Missed::TimeZone) => return Err(Problem::internal().into()),
            }
        }
        Err(Problem::internal().into())
    }

    async fn attempt(
        &self,
        job: &Job<'_>,
        mut lease: Lease,
        may_be_prepared: bool,
    ) -> Result<Done, Missed> {
        let client = Arc::clone(lease.client());
        let role = &*job.claims.role;
        let own = self.roles.of(role, &client).await.map_err(|error| self.missed(job, &error))?;
        let begin = begin(job, &own);
        let is_plain = own.names.is_empty();
        let state = lease.state();
        let settings = if is_plain { &state.settings_plain } else { &state.settings }.clone();
        let left = job.is_call.then(|| lease.state().left.clone());
        let timeout_ms = self.timeout_ms(&own, lease.state().statement_timeout_ms).to_string();
        let search_path = self.search_path(job.schema);
        let context = job.context;
        let parameters: [&(dyn ToSql + Sync); 12] = [
            &search_path,
            &timeout_ms,
            &job.time_zone,
            &context.method,
            &context.path,
            &context.headers,
            &context.cookies,
            &&*job.claims.json,
            &role,
            &job.origin,
            &own.names,
            &own.values,
        ];
        let parameters = if is_plain { &parameters[..10] } else { &parameters };
        let begin = match job.key {
            None => Some(client.batch_execute(begin)),
            Some(key) => match self.claim(job, &client, begin, key).await {
                Ok(Claimed::Now) => None,
                other => {
                    let (ended, reset) =
                        followed(client.simple_query(ROLLBACK), reset(&client, left)).await;
                    let outcome = other.map(|claimed| Done {
                        answer: match claimed {
                            Claimed::Now => Answer::default(),
                            Claimed::Before(answer) => answer,
                        },
                        lsn: ended.as_ref().ok().and_then(|messages| position(messages)),
                        planned: None,
                        knows_time_zone: false,
                        is_repeated: true,
                    });
                    return give_back(lease, outcome, ended.is_ok(), Back::After(reset));
                }
            },
        };
        let opening = async {
            let (started, set) = tokio::join!(
                biased;
                OptionFuture::from(begin),
                client.execute_raw(&settings, parameters.iter().copied())
            );
            started.transpose().map_err(|error| self.missed(job, &error))?;
            set.map_err(|error| match (job.time_zone, error.as_db_error()) {
                (Some(_), Some(said)) if is_time_zone(said.code().code(), said.message()) => {
                    Missed::TimeZone
                }
                _ => self.missed(job, &error),
            })
        };
        let mut opening = OptionFuture::from(Some(Box::pin(opening)));

        let text = &*job.statement.text;
        let asked = Asked { role, schema: job.schema, text };
        let mut plan = if may_be_prepared {
            lease.state_mut().prepared.plan(job.number, asked)
        } else {
            Plan::Once
        };
        let was_prepared = matches!(plan, Plan::Prepared(_));
        if matches!(plan, Plan::Prepare) {
            let prepare = client.prepare(text);
            let (opened, prepared) = tokio::join!(biased; &mut opening, prepare);
            opening = OptionFuture::from(None);
            let prepared = prepared.map_err(|error| self.missed(job, &error));
            match opened.transpose().and(prepared) {
                Ok(statement) => {
                    lease.state_mut().prepared.keep(job.number, asked, statement.clone());
                    plan = Plan::Prepared(statement);
                }
                Err(missed) => {
                    let work = client.simple_query("rollback");
                    let (rolled_back, reset) = followed(work, reset(&client, left)).await;
                    return give_back(lease, Err(missed), rolled_back.is_ok(), Back::After(reset));
                }
            }
        }
        let main = async {
            let rows = match &plan {
                Plan::Prepared(statement) => {
                    client.query_raw(statement, job.statement.parameters.iter().map(Text)).await?
                }
                Plan::Prepare | Plan::Once => {
                    let parameters = job.statement.parameters.iter();
                    let typed = parameters.map(|value| (Text(value), Type::UNKNOWN));
                    client.query_typed_raw(text, typed).await?
                }
            };
            rows.try_collect::<Vec<Row>>().await
        };
        let estimate = OptionFuture::from(job.estimate.map(|estimate| async {
            let parameters = estimate.parameters.iter();
            let typed = parameters.map(|value| (Text(value), Type::UNKNOWN));
            let rows = client.query_typed_raw(&estimate.text, typed).await?;
            rows.try_collect::<Vec<Row>>().await
        }));
        let looks_first =
            !job.is_read_only && (job.demand != Demand::default() || job.key.is_some());
        let (outcome, ended, reset) = if looks_first {
            let (opened, rows) = tokio::join!(biased; opening, main);
            let outcome = self.outcome(job, opened.transpose(), rows);
            let end = if outcome.is_ok() { COMMIT } else { "rollback" };
            let kept = OptionFuture::from(
                job.key
                    .zip(outcome.as_ref().ok())
                    .map(|(key, done)| keep(&client, key, role, &done.answer)),
            );
            let work = async { tokio::join!(biased; kept, client.simple_query(end)) };
            let ((kept, ended), reset) = followed(work, reset(&client, left)).await;
            let kept = kept.transpose().map_err(|error| self.missed(job, &error));
            let ended = ended.map(|messages| position(&messages));
            (outcome.and_then(|done| kept.map(|_| done)), ended, Back::After(reset))
        } else {
            let (opened, rows, plan, ended, reset) = if left.is_some() {
                let commit = client.simple_query(if job.is_read_only { "commit" } else { COMMIT });
                let work = async { tokio::join!(biased; opening, main, estimate, commit) };
                let ((opened, rows, plan, ended), reset) =
                    followed(work, reset(&client, left)).await;
                (opened, rows, plan, ended.map(|messages| position(&messages)), Back::After(reset))
            } else {
                let end =
                    if job.is_read_only { &COMMIT_READING_AND_RESET } else { &COMMIT_AND_RESET };
                let commit = commit_and_reset(&client, end);
                let (opened, rows, plan, (ended, back)) =
                    tokio::join!(biased; opening, main, estimate, commit);
                (opened, rows, plan, ended, back)
            };
            let outcome = self.outcome(job, opened.transpose(), rows);
            let outcome = outcome.and_then(|done| {
                let plan = plan.transpose().map_err(|error| self.missed(job, &error))?;
                Ok(Done { planned: plan.as_deref().and_then(planned), ..done })
            });
            (outcome, ended, reset)
        };
        let outcome = outcome.and_then(|done| match &ended {
            Ok(lsn) => Ok(Done { lsn: *lsn, ..done }),
            Err(error) => Err(self.missed(job, error)),
        });
        let outcome = outcome.map_err(|missed| match missed {
            // What a function raises is not about its caller's plan.
            Missed::For(failure)
                if was_prepared
                    && !job.is_call
                    && problem::is_about_types(&failure.problem.code) =>
            {
                lease.state_mut().prepared.forget(asked);
                Missed::Plan(failure)
            }
            Missed::For(_) | Missed::Connection(_) | Missed::Plan(_) | Missed::TimeZone => missed,
        });
        let is_alive = ended.as_ref().map_or_else(|error| error.as_db_error().is_some(), |_| true);
        give_back(lease, outcome, is_alive, reset)
    }

    fn outcome(
        &self,
        job: &Job<'_>,
        opened: Result<Option<u64>, Missed>,
        rows: Result<Vec<Row>, tokio_postgres::Error>,
    ) -> Result<Done, Missed> {
        opened?;
        let rows = rows.map_err(|error| self.missed(job, &error))?;
        let answer = answer(&rows).ok_or_else(|| {
            warn!(rows = rows.len(), "a statement of ours did not return its one row");
            Missed::For(Problem::internal().into())
        })?;
        let checked = job.demand.check(&answer);
        checked.map_err(|problem| Missed::For(problem.into()))?;
        Ok(Done { answer, lsn: None, planned: None, knows_time_zone: false, is_repeated: false })
    }

    /// Begins, and makes the key this transaction's. Waits for another one that has it.
    async fn claim(
        &self,
        job: &Job<'_>,
        client: &Client,
        begin: &str,
        key: &Key,
    ) -> Result<Claimed, Missed> {
        let lifetime = i64::try_from(key.lifetime_ms).unwrap_or(i64::MAX);
        let parameters: [(&(dyn ToSql + Sync), Type); 4] = [
            (&key.scope, Type::TEXT),
            (&key.key, Type::TEXT),
            (&key.request, Type::TEXT),
            (&lifetime, Type::INT8),
        ];
        let sql = include_str!("../../sql/rest/begin_key.sql");
        let (started, row) = tokio::join!(
            biased;
            client.batch_execute(begin),
            client.query_typed_one(sql, &parameters)
        );
        started.map_err(|error| self.missed(job, &error))?;
        let row =
            row.map_err(|error| match error.as_db_error().map(|said| said.code().code()) {
                // No such schema or function, or not for this login.
                Some("3F000" | "42883" | "42501") => Missed::For(Problem::no_keys().into()),
                _ => self.missed(job, &error),
            })?;
        let column = |error: tokio_postgres::Error| self.missed(job, &error);
        if row.try_get(0).map_err(column)? {
            return Ok(Claimed::Now);
        }
        if !row.try_get::<_, bool>(1).map_err(column)? {
            return Err(Missed::For(Problem::key_of_another().into()));
        }
        let answer: Option<&str> = row.try_get(2).map_err(column)?;
        let answer = answer.and_then(|answer| serde_json::from_str(answer).ok());
        answer.map(Claimed::Before).ok_or_else(|| {
            warn!("what a key was answered with cannot be read");
            Missed::For(Problem::internal().into())
        })
    }

    /// What an error means.
    fn missed(&self, job: &Job<'_>, error: &tokio_postgres::Error) -> Missed {
        let Some(said) = error.as_db_error() else {
            if error.is_closed() || std::error::Error::source(error).is_some_and(is_io) {
                debug!(error = telemetry::chain(error), "a connection ended during a request");
            } else {
                warn!(error = telemetry::chain(error), "a request failed");
            }
            let failure = Problem::unavailable().into();
            // Of a write that was sent it is not known what became of it.
            return if job.is_read_only {
                Missed::Connection(failure)
            } else {
                Missed::For(failure)
            };
        };
        let code = said.code().code();
        let problem = Problem::postgres(said, *job.claims.role == *self.anon_role);
        let failure = Failure { is_stale: problem::is_stale(code), problem };
        match code {
            // Functions may take our prepared statements away, or their names.
            "26000" | "42P05" => Missed::Connection(failure),
            _ => Missed::For(failure),
        }
    }

    /// The least of what the role, the login and the settings allow.
    fn timeout_ms(&self, role: &RoleSettings, login: u64) -> u64 {
        let own = role.statement_timeout_ms.unwrap_or(login);
        if own == 0 { self.statement_timeout_ms } else { own.min(self.statement_timeout_ms) }
    }

    /// `"schema", "extra"`
    fn search_path(&self, schema: &str) -> String {
        let others = self.extra_search_path.iter().map(String::as_str);
        let schemas = std::iter::once(schema).chain(others.filter(|other| *other != schema));
        let quoted = schemas.map(|name| format!("\"{}\"", name.replace('"', "\"\"")));
        quoted.collect::<Vec<_>>().join(", ")
    }
}

/// Why there is no connection.
fn not_leased(error: &PoolError) -> Failure {
    let server = match error {
        PoolError::Busy => return Problem::busy().into(),
        PoolError::Connect(crate::db::Error::Connect(error)) | PoolError::Open(error) => {
            error.as_db_error()
        }
        PoolError::Connect(_) | PoolError::Timeout => None,
    };
    warn!(error = telemetry::chain(error), "no connection for a request");
    // What the server says to a login is not for its users, but for which kind of trouble it is.
    let mut problem = Problem::unavailable();
    if let Some(error) = server.filter(|error| error.code().code().starts_with("53")) {
        problem.code = error.code().code().to_owned().into();
    }
    problem.into()
}

/// Gives the connection back, unless it is the problem.
fn give_back<T>(
    lease: Lease,
    outcome: Result<T, Missed>,
    is_alive: bool,
    back: Back,
) -> Result<T, Missed> {
    if is_alive && !matches!(outcome, Err(Missed::Connection(_))) {
        match back {
            Back::Now => lease.give_back_reset(),
            Back::After(reset) => lease.give_back(reset),
        }
    }
    outcome
}

fn begin(job: &Job<'_>, role: &RoleSettings) -> &'static str {
    // All of them, so that no text is put together for each request.
    use super::roles::Isolation::{ReadCommitted, RepeatableRead, Serializable};
    match (job.is_read_only || role.is_read_only, role.isolation) {
        (true, None) => "begin read only",
        (true, Some(ReadCommitted)) => "begin isolation level read committed read only",
        (true, Some(RepeatableRead)) => "begin isolation level repeatable read read only",
        (true, Some(Serializable)) => "begin isolation level serializable read only",
        (false, None) => "begin read write",
        (false, Some(ReadCommitted)) => "begin isolation level read committed read write",
        (false, Some(RepeatableRead)) => "begin isolation level repeatable read read write",
        (false, Some(Serializable)) => "begin isolation level serializable read write",
    }
}

fn is_io(error: &(dyn std::error::Error + 'static)) -> bool {
    error.is::<std::io::Error>()
}

/// Whether it is the time zone that is wrong.
fn is_time_zone(code: &str, message: &str) -> bool {
    code == "22023" && message.contains("\"TimeZone\"")
}

/// Commits and resets in one message, `text`: where a write ended in the log.
async fn commit_and_reset(
    client: &Arc<Client>,
    text: &str,
) -> (Result<Option<Lsn>, tokio_postgres::Error>, Back) {
    let (mut is_over, mut lsn) = (false, None);
    let run = async {
        let mut messages = pin!(client.simple_query_raw(text).await?);
        while let Some(message) = messages.try_next().await? {
            // The first of it is the commit's.
            is_over |= matches!(message, SimpleQueryMessage::CommandComplete(_));
            lsn = lsn.or_else(|| position(std::slice::from_ref(&message)));
        }
        Ok(())
    };
    match run.await {
        Ok(()) => (Ok(lsn), Back::Now),
        Err(error) if is_over => {
            debug!(error = telemetry::chain(&error), "a connection could not be reset");
            (Ok(lsn), Back::After(Box::pin(std::future::ready(false))))
        }
        // Postgres left out what came after the commit that failed.
        Err(error) => (Err(error), Back::After(reset(client, None))),
    }
}

/// Puts the connection into the state of a new one; whether nothing is left. `left` asks for
/// prepared statements of functions.
fn reset(client: &Arc<Client>, left: Option<Statement>) -> Reset {
    let client = Arc::clone(client);
    Box::pin(async move {
        let look = OptionFuture::from(left.as_ref().map(|left| client.query_one(left, &[])));
        let (cleaned, looked) = tokio::join!(biased; client.batch_execute(&RESET), look);
        let looked = looked.transpose().and_then(|row| row.map(|row| row.try_get(0)).transpose());
        match (cleaned, looked) {
            (Ok(()), Ok(is_left)) => is_left != Some(true),
            (Err(error), _) | (_, Err(error)) => {
                debug!(error = telemetry::chain(&error), "a connection could not be reset");
                false
            }
        }
    })
}

/// What `work` gives, with the messages of `reset` sent behind its own.
async fn followed<F: Future>(work: F, reset: Reset) -> (F::Output, Reset) {
    let mut work = pin!(work);
    let mut reset = Box::pin(maybe_done(reset));
    let mut is_sent = false;
    let output = poll_fn(|context| {
        let output = work.as_mut().poll(context);
        if !is_sent {
            // Its first look sends; that it is not through is no wonder.
            let _ = reset.as_mut().poll(context);
            is_sent = true;
        }
        output
    })
    .await;
    let remaining = Box::pin(async move {
        reset.as_mut().await;
        MaybeDone::take_output(reset.as_mut()).unwrap_or(false)
    });
    (output, remaining)
}

/// Keeps what a key was answered with. Only the login itself may; what runs at the commit is the
/// caller's again.
async fn keep(
    client: &Client,
    key: &Key,
    role: &str,
    answer: &Answer,
) -> Result<(), tokio_postgres::Error> {
    let answer = serde_json::to_string(answer).expect("its fields are texts and numbers");
    let parameters: [(&(dyn ToSql + Sync), Type); 3] =
        [(&key.scope, Type::TEXT), (&key.key, Type::TEXT), (&answer, Type::TEXT)];
    let set_role: [(&(dyn ToSql + Sync), Type); 1] = [(&role, Type::TEXT)];
    let sql = include_str!("../../sql/rest/end_key.sql");
    let (left, kept, returned) = tokio::join!(
        biased;
        client.batch_execute("set local role none"),
        client.query_typed(sql, &parameters),
        client.query_typed("select pg_catalog.set_config('role', $1, true)", &set_role)
    );
    left?;
    kept?;
    returned.map(drop)
}

/// The one row of a statement.
fn answer(rows: &[Row]) -> Option<Answer> {
    let [row] = rows else { return None };
    let text = |column| row.try_get::<_, Option<&str>>(column).ok();
    let number = |column| match text(column)? {
        None => Some(None),
        Some(digits) => digits.parse::<u64>().ok().map(Some),
    };
    Some(Answer {
        body: text(0)?.map(str::to_owned),
        page_total: number(1)?.unwrap_or(0),
        total: number(2)?,
        inserted: number(3)?,
        location: text(4)?.map(str::to_owned),
    })
}

/// The planner's guess.
fn planned(rows: &[Row]) -> Option<u64> {
    let plan: Json<&RawValue> = rows.first()?.try_get(0).ok()?;
    planned_rows(plan.0.get())
}

/// The position behind a commit.
fn position(messages: &[SimpleQueryMessage]) -> Option<Lsn> {
    messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
        SimpleQueryMessage::CommandComplete(_) | SimpleQueryMessage::RowDescription(_) | _ => None,
    })
}

/// A value as text, for Postgres to read as whatever type it stands for.
#[derive(Debug)]
struct Text<'a>(&'a Option<Bytes>);

impl ToSql for Text<'_> {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self.0 {
            None => Ok(IsNull::Yes),
            Some(bytes) => {
                out.put_slice(bytes);
                Ok(IsNull::No)
            }
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}
