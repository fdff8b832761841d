//! Running a statement as the caller: one transaction, one round trip.
//!
//! In:     claims, a statement, what must be true of its result.
//! Out:    [`Done`], after the commit; or a [`Failure`], after which nothing has changed.
//! Never:  a statement as anybody but the caller; a connection given to the next request in
//!         another state than a new one; a commit of what the caller did not allow.
//!
//! All messages of a request are sent at once and, up to the one sync behind them, answered at once:
//! begin, who the caller is (`sql/rest/settings.sql`), the statement, commit. Where something
//! fails, Postgres skips what follows, and the transaction is rolled back when the answer has gone
//! out. Only a write whose result must be looked at before it may stay takes a second round trip, and one
//! with a key a third.
//!
//! What makes the connection new again (`sql/rest/reset.sql`) comes behind the commit of a read, in
//! the same batch. A write is answered as soon as it is committed: its connection is made new again in
//! front of the next request's statements, or by the pool when there is none soon. Behind a call,
//! which may leave more, it is sent by itself, and the pool waits for it.
//!
//! Functions, triggers and policies are code of somebody else. What they do to their connection
//! ends with the transaction or with `sql/rest/reset.sql`; a connection that does not reset, or
//! keeps prepared statements that are not ours, is ended. Whoever hangs up ends his statement.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tracing::{debug, warn};

use super::pool::{
    self, Asked, Lease, PLACE, Plan, Pool, ROLLBACK, Reset, SETTINGS, SETTINGS_PLAIN, Statement,
};
use super::roles::{RoleSettings, Roles};
use super::rows::Shape;
use super::sql::{self, array_literal};
use super::statement::read::planned_rows;
use super::statement::write::put_mismatch;
use super::statement::{Answer, Form};
use super::{Problem, problem};
use crate::auth::Claims;
use crate::config;
use crate::db::Login;
use crate::db::pipeline::{self, Answers, AskError, Batch, Rows, Said, Standing};
use crate::db::pool::{Connection as _, Error as PoolError};
use crate::lsn::Lsn;
use crate::telemetry;

pub use super::pool::EVERY_PICTURE;

/// Beside the statement's own time, for everything around it: deferred constraints, the commit.
const TIME_AROUND: Duration = Duration::from_secs(5);

/// How often a request begins again: on a connection that lost what was prepared on it or that
/// ended unnoticed, without a time zone that nobody knows.
const ATTEMPTS_MAX: u32 = 3;

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
    /// What is run: its one row has the columns of [`Answer`], unless there are `rows`.
    pub statement: &'a sql::Statement,
    /// Its rows are those of the answer, to be made JSON in this form.
    pub rows: Option<Form>,
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
#[derive(Debug, Clone, PartialEq, Eq, Default)]
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
    /// Only Postgres can tell the JSON of its rows: ask for that instead.
    pub needs_json: bool,
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self { problem, is_stale: false, needs_json: false }
    }
}

/// What became of a key.
enum Claimed {
    /// It is this write's.
    Now,
    /// It was another's, which was answered with this.
    Before(Answer),
}

/// What is left to do with a connection.
#[derive(Debug, Clone, Copy)]
enum Back {
    /// Nothing.
    Now,
    /// This, before anybody has it.
    After(Reset),
    /// This, by whoever has it next.
    Owing(Reset),
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
        let lost = |error| self.lost(job, &error);
        let role = &*job.claims.role;
        let fresh = self.roles.fresh(role);
        let mut owed = lease.take_owed();
        let connection = lease.connection_mut();
        if (fresh.is_none() || job.key.is_some())
            && let Some(reset) = owed.take()
            && !connection.reset(reset).await
        {
            return Err(Missed::Connection(Problem::unavailable().into()));
        }
        let own = if let Some(own) = fresh {
            own
        } else {
            let own = self.roles.of(role, &mut connection.pipeline).await;
            own.map_err(|error| self.unasked(job, error))?
        };
        let begin = pool::begin(job.is_read_only || own.is_read_only, own.isolation);

        if let Some(key) = job.key {
            match self.claim(job, connection, begin, key).await {
                Ok(Claimed::Now) => {}
                Ok(Claimed::Before(answer)) => {
                    let mut batch = Batch::default();
                    batch.run(ROLLBACK, []).map_err(lost)?;
                    batch.run(PLACE, []).map_err(lost)?;
                    batch.sync();
                    pool::push_reset(&mut batch, false).map_err(lost)?;
                    connection.pipeline.send(batch);
                    let answers = connection.pipeline.answers().await.map_err(lost)?;
                    let lsn = answers.steps.get(1).and_then(position);
                    let done = Done { answer, lsn, is_repeated: true, ..Done::default() };
                    return give_back(lease, Ok(done), Back::After(Reset::Sent));
                }
                Err(missed) => {
                    let reset = Reset::Again { standing: Standing::Failed, asks: false };
                    return give_back(lease, Err(missed), Back::After(reset));
                }
            }
        }

        let text = &*job.statement.text;
        let asked = Asked { role, schema: job.schema, text };
        let plan =
            if may_be_prepared { connection.prepared.plan(job.number, asked) } else { Plan::Once };
        let mut batch = Batch::default();
        for statement in connection.prepared.take_gone() {
            batch.close(&statement.name).map_err(lost)?;
        }
        let mut steps = 0;
        if owed.is_some() {
            steps += pool::push_renewal(&mut batch).map_err(lost)?;
        }
        let renewed = steps;
        if job.key.is_none() {
            batch.run(begin, []).map_err(lost)?;
            steps += 1;
        }
        self.push_settings(&mut batch, job, &own, connection.statement_timeout_ms).map_err(lost)?;
        let mut at = Steps { settings: steps, main: steps + 1, commit: steps + 2 };
        let was_prepared = matches!(plan, Plan::Prepared(_));
        let name: Arc<str> = match &plan {
            Plan::Prepared(statement) => Arc::clone(&statement.name),
            Plan::Prepare => connection.prepared.name().into(),
            Plan::Once => "".into(),
        };
        let mut shape = match &plan {
            Plan::Prepared(statement) => statement.shape.clone(),
            Plan::Prepare | Plan::Once => {
                batch.parse(&name, text).map_err(lost)?;
                None
            }
        };
        let is_described = job.rows.is_some() && shape.is_none();
        let parameters = job.statement.parameters.iter().map(Option::as_deref);
        if is_described {
            batch.run_described(&name, parameters).map_err(lost)?;
        } else {
            batch.run(&name, parameters).map_err(lost)?;
        }

        let looks_first =
            !job.is_read_only && (job.demand != Demand::default() || job.key.is_some());
        let is_new_at_once = job.is_read_only && !job.is_call;
        if let Some(estimate) = job.estimate.filter(|_| !looks_first) {
            batch.parse("", &estimate.text).map_err(lost)?;
            let parameters = estimate.parameters.iter().map(Option::as_deref);
            batch.run("", parameters).map_err(lost)?;
            at.commit += 1;
        }
        if !looks_first {
            push_commit(&mut batch, job).map_err(lost)?;
        }
        if is_new_at_once {
            pool::push_resets(&mut batch).map_err(lost)?;
        }
        batch.sync();
        if !looks_first && job.is_call {
            pool::push_reset(&mut batch, true).map_err(lost)?;
        }
        connection.pipeline.send(batch);
        let answers = connection.pipeline.answers().await.map_err(lost)?;

        let has_run = answers.steps.get(at.main);
        if is_described && let Some(columns) = has_run.and_then(|rows| rows.columns.as_deref()) {
            shape = Shape::of(columns).map(Arc::new);
        }
        let is_kept = match plan {
            Plan::Prepare => answers.parsed > 0,
            Plan::Prepared(_) => is_described,
            Plan::Once => false,
        };
        if is_kept {
            let statement = Statement { name, shape: shape.clone() };
            connection.prepared.keep(job.number, asked, statement);
        }
        let outcome = match (&answers.failed, has_run) {
            (_, Some(rows)) => outcome(job, rows, shape.as_deref()),
            // Nothing of the request was looked at.
            (Some(_), None) if answers.steps.len() < renewed => {
                Err(Missed::Connection(Problem::unavailable().into()))
            }
            (Some(said), None) => match job.time_zone {
                Some(_) if answers.steps.len() == at.settings && is_time_zone(said) => {
                    Err(Missed::TimeZone)
                }
                _ => Err(self.said(job, said)),
            },
            (None, None) => {
                warn!(steps = answers.steps.len(), "a statement was not answered");
                Err(Missed::For(Problem::internal().into()))
            }
        };
        let (outcome, back) = if looks_first {
            match outcome {
                Ok(done) => self.stay(job, connection, done).await?,
                Err(missed) => {
                    let reset = Reset::Again { standing: answers.standing, asks: job.is_call };
                    (Err(missed), Back::After(reset))
                }
            }
        } else {
            let outcome = outcome.and_then(|done| self.ended(job, &answers, at.commit, done));
            let planned = match job.estimate {
                Some(_) => answers.steps.get(at.main + 1).and_then(planned),
                None => None,
            };
            let back = if is_new_at_once && answers.failed.is_none() {
                Back::Now
            } else {
                back(job, &answers)
            };
            (outcome.map(|done| Done { planned, ..done }), back)
        };
        let outcome = outcome.map_err(|missed| match missed {
            // What a function raises is not about its caller's plan.
            Missed::For(failure)
                if was_prepared
                    && !job.is_call
                    && problem::is_about_types(&failure.problem.code) =>
            {
                lease.connection_mut().prepared.forget(asked);
                Missed::Plan(failure)
            }
            Missed::For(_) | Missed::Connection(_) | Missed::Plan(_) | Missed::TimeZone => missed,
        });
        give_back(lease, outcome, back)
    }

    /// Makes the transaction the caller's.
    fn push_settings(
        &self,
        batch: &mut Batch,
        job: &Job<'_>,
        own: &RoleSettings,
        login_timeout_ms: u64,
    ) -> Result<(), pipeline::Error> {
        let search_path = self.search_path(job.schema);
        let timeout_ms = self.timeout_ms(own, login_timeout_ms).to_string();
        let Context { method, path, headers, cookies } = job.context;
        let parameters = [
            Some(&*search_path),
            Some(&timeout_ms),
            job.time_zone,
            Some(method),
            Some(path),
            Some(headers),
            Some(cookies),
            Some(&job.claims.json),
            Some(&job.claims.role),
            job.origin,
        ];
        let parameters = parameters.into_iter().map(|text| text.map(str::as_bytes));
        if own.names.is_empty() {
            return batch.run(SETTINGS_PLAIN, parameters);
        }
        let [names, values] = [&own.names, &own.values].map(|texts| array_literal(texts));
        let lists = [Some(names.as_bytes()), Some(values.as_bytes())];
        batch.run(SETTINGS, parameters.chain(lists))
    }

    /// Commits what was looked at, and keeps what a key was answered with.
    async fn stay(
        &self,
        job: &Job<'_>,
        connection: &mut pool::Connection,
        done: Done,
    ) -> Result<(Result<Done, Missed>, Back), Missed> {
        let lost = |error| self.lost(job, &error);
        let mut batch = Batch::default();
        let mut commit = 0;
        if let Some(key) = job.key {
            commit += push_keep(&mut batch, key, &job.claims.role, &done.answer).map_err(lost)?;
        }
        push_commit(&mut batch, job).map_err(lost)?;
        batch.sync();
        if job.is_call {
            pool::push_reset(&mut batch, true).map_err(lost)?;
        }
        connection.pipeline.send(batch);
        let answers = connection.pipeline.answers().await.map_err(lost)?;
        Ok((self.ended(job, &answers, commit, done), back(job, &answers)))
    }

    /// What was done, if it was committed by this step.
    fn ended(
        &self,
        job: &Job<'_>,
        answers: &Answers,
        commit: usize,
        done: Done,
    ) -> Result<Done, Missed> {
        if answers.steps.len() > commit {
            let lsn = if job.is_read_only { None } else { answers.steps.get(commit + 1) };
            return Ok(Done { lsn: lsn.and_then(position), ..done });
        }
        if let Some(said) = &answers.failed {
            return Err(self.said(job, said));
        }
        warn!(steps = answers.steps.len(), "a commit was not answered");
        Err(Missed::For(Problem::internal().into()))
    }

    /// Begins, and makes the key this transaction's. Waits for another one that has it.
    async fn claim(
        &self,
        job: &Job<'_>,
        connection: &mut pool::Connection,
        begin: &str,
        key: &Key,
    ) -> Result<Claimed, Missed> {
        let lost = |error| self.lost(job, &error);
        let lifetime = i64::try_from(key.lifetime_ms).unwrap_or(i64::MAX).to_string();
        let parameters = [&key.scope, &key.key, &key.request, &lifetime];
        let mut batch = Batch::default();
        batch.run(begin, []).map_err(lost)?;
        batch.parse("", include_str!("../../sql/rest/begin_key.sql")).map_err(lost)?;
        batch.run("", parameters.map(|text| Some(text.as_bytes()))).map_err(lost)?;
        batch.sync();
        connection.pipeline.send(batch);
        let answers = connection.pipeline.answers().await.map_err(lost)?;
        let steps = answers.whole().map_err(|said| match &*said.code {
            // No such schema or function, or not for this login.
            "3F000" | "42883" | "42501" => Missed::For(Problem::no_keys().into()),
            _ => self.said(job, &said),
        })?;
        let told = steps.get(1);
        let is = |column| told.and_then(|rows| rows.text(column)) == Some("t");
        if is(0) {
            return Ok(Claimed::Now);
        }
        if !is(1) {
            return Err(Missed::For(Problem::key_of_another().into()));
        }
        let answer = told.and_then(|rows| serde_json::from_str(rows.text(2)?).ok());
        answer.map(Claimed::Before).ok_or_else(|| {
            warn!("what a key was answered with cannot be read");
            Missed::For(Problem::internal().into())
        })
    }

    /// What an error of Postgres means.
    fn said(&self, job: &Job<'_>, said: &Said) -> Missed {
        let code = &*said.code;
        let problem = Problem::postgres(said, *job.claims.role == *self.anon_role);
        let failure = Failure { is_stale: problem::is_stale(code), problem, needs_json: false };
        match code {
            // Functions may take our prepared statements away, or their names.
            "26000" | "42P05" => Missed::Connection(failure),
            _ => Missed::For(failure),
        }
    }

    /// What the end of a connection means.
    fn lost(&self, job: &Job<'_>, error: &pipeline::Error) -> Missed {
        match error {
            pipeline::Error::Lost(_) => {
                debug!(error = telemetry::chain(error), "a connection ended during a request");
            }
            pipeline::Error::TooLong => {
                let said = Said {
                    code: "54000".into(),
                    message: "the answer is too long".into(),
                    ..Said::default()
                };
                return self.said(job, &said);
            }
            pipeline::Error::Malformed(_) | pipeline::Error::Unsendable(_) => {
                warn!(error = telemetry::chain(error), "a request failed");
            }
        }
        let failure = Problem::unavailable().into();
        // Of a write that was sent it is not known what became of it.
        if job.is_read_only { Missed::Connection(failure) } else { Missed::For(failure) }
    }

    fn unasked(&self, job: &Job<'_>, error: AskError) -> Missed {
        match error {
            AskError::Said(said) => self.said(job, &said),
            AskError::Connection(error) => self.lost(job, &error),
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

/// Where the answers of steps are.
#[derive(Debug, Clone, Copy)]
struct Steps {
    settings: usize,
    main: usize,
    commit: usize,
}

/// Commits and, of a write, asks where it ended in the log: a commit that fails has no position.
fn push_commit(batch: &mut Batch, job: &Job<'_>) -> Result<(), pipeline::Error> {
    // Not prepared: what ran in between may have taken the names away. That of the place only a
    // function that is called takes.
    batch.parse("", "commit")?;
    batch.run("", [])?;
    if job.is_read_only {
        return Ok(());
    }
    if !job.is_call {
        return batch.run(PLACE, []);
    }
    batch.parse("", pool::PLACE_SQL)?;
    batch.run("", [])
}

/// Why there is no connection.
fn not_leased(error: &PoolError) -> Failure {
    let server = match error {
        PoolError::Busy => return Problem::busy().into(),
        PoolError::Connect(crate::db::Error::Connect(error)) => error.as_db_error(),
        PoolError::Connect(_) | PoolError::Open(_) | PoolError::Timeout => None,
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
fn give_back<T>(lease: Lease, outcome: Result<T, Missed>, back: Back) -> Result<T, Missed> {
    if !matches!(outcome, Err(Missed::Connection(_))) {
        match back {
            Back::Now => lease.give_back_reset(),
            Back::After(reset) => lease.give_back(reset),
            Back::Owing(reset) => lease.give_back_owing(reset),
        }
    }
    outcome
}

/// What is left to do behind answers after which the connection is not as a new one.
fn back(job: &Job<'_>, answers: &Answers) -> Back {
    let again = Reset::Again { standing: answers.standing, asks: job.is_call };
    match answers.failed {
        Some(_) => Back::After(again),
        None if job.is_call => Back::After(Reset::Sent),
        None => Back::Owing(again),
    }
}

/// Whether it is the time zone that is wrong.
fn is_time_zone(said: &Said) -> bool {
    said.code == "22023" && said.message.contains("\"TimeZone\"")
}

/// Keeps what a key was answered with; in how many steps. Only the login itself may; what runs at
/// the commit is the caller's again.
fn push_keep(
    batch: &mut Batch,
    key: &Key,
    role: &str,
    answer: &Answer,
) -> Result<usize, pipeline::Error> {
    let answer = serde_json::to_string(answer).expect("its fields are texts and numbers");
    batch.parse("", "set local role none")?;
    batch.run("", [])?;
    batch.parse("", include_str!("../../sql/rest/end_key.sql"))?;
    batch.run("", [&key.scope, &key.key, &answer].map(|text| Some(text.as_bytes())))?;
    batch.parse("", "select pg_catalog.set_config('role', $1, true)")?;
    batch.run("", [Some(role.as_bytes())])?;
    Ok(3)
}

/// What the rows of a statement come to, if they are as demanded.
fn outcome(job: &Job<'_>, rows: &Rows, shape: Option<&Shape>) -> Result<Done, Missed> {
    let answer = match job.rows {
        None => answer(rows).ok_or_else(|| {
            warn!(rows = rows.len(), "a statement of ours did not return its one row");
            Missed::For(Problem::internal().into())
        }),
        Some(form) => shape.and_then(|shape| shaped(form, shape, rows)).ok_or_else(|| {
            debug!("rows are to be made JSON by the server");
            let failure = Failure::from(Problem::internal());
            Missed::For(Failure { needs_json: true, ..failure })
        }),
    }?;
    let checked = job.demand.check(&answer);
    checked.map_err(|problem| Missed::For(problem.into()))?;
    Ok(Done { answer, ..Done::default() })
}

/// The one row of a statement.
fn answer(rows: &Rows) -> Option<Answer> {
    if rows.len() != 1 {
        return None;
    }
    let mut row = rows.first()?;
    let mut text = || {
        let value = row.next()?;
        value.map(|bytes| std::str::from_utf8(bytes).map(str::to_owned)).transpose().ok()
    };
    let body = text()?;
    let mut number = || match text()? {
        None => Some(None),
        Some(digits) => digits.parse::<u64>().ok().map(Some),
    };
    let (page_total, total, inserted) = (number()?.unwrap_or(0), number()?, number()?);
    Some(Answer { body, page_total, total, inserted, location: text()? })
}

/// The answer that rows are, if their JSON is certain.
fn shaped(form: Form, shape: &Shape, rows: &Rows) -> Option<Answer> {
    let body = match form {
        Form::Array => Some(shape.array(rows)?),
        Form::Object => match rows.first() {
            None => None,
            Some(row) => Some(shape.object(row)?),
        },
        Form::Csv | Form::None => return None,
    };
    let page_total = u64::try_from(rows.len()).unwrap_or(u64::MAX);
    Some(Answer { body, page_total, ..Answer::default() })
}

/// The planner's guess.
fn planned(rows: &Rows) -> Option<u64> {
    planned_rows(rows.text(0)?)
}

/// The position behind a commit.
fn position(rows: &Rows) -> Option<Lsn> {
    rows.text(0)?.parse().ok()
}
