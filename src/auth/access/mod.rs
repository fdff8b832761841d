//! Who may use a private channel: the policies of `realtime.messages`, asked by trying.
//!
//! In:     verified claims, a topic, the request's headers.
//! Out:    whether that role may read (broadcasts, presence) from the topic, or write to it.
//! Never:  a probe row that stays or is published: every transaction is rolled back; a role
//!         outside the configured list; an answer after anything at all went wrong; Postgres' own
//!         words for the client.
//! Source: supabase.com/docs/guides/realtime/authorization
//!
//! **Reading** is asked by inserting one row for each extension and then reading them back as the
//! caller. The rows must get past the policies: the first of the configured roles with BYPASSRLS
//! that may insert does that (`service_role`), so the login needs no power that it does not have
//! already. **Writing** is asked by inserting as the caller.
//!
//! Policies are code of somebody else. What it does ends with the transaction, or with the DISCARD
//! ALL after it; each probe of a write begins where the one before it began; what does not end is
//! ended (`pool`). All messages of one check are sent at once, so it costs one round trip.
//!
//! A slow policy makes its asker wait, and others only as far as the pool is full of such: each has
//! one check at a time in the pool, and one queue of all is for those that have none (`asker`).

mod asker;
mod pool;
mod stored;

use std::time::{Duration, Instant};

use futures_util::future::join;
use metrics::histogram;
use postgres_protocol::escape::escape_literal as literal;
use tokio::time::timeout;
use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use super::Claims;
use crate::config;
use crate::db::Login;
use crate::telemetry::{READ_AUTHORIZATION_SECONDS, REPLAY_SECONDS, WRITE_AUTHORIZATION_SECONDS};
use pool::{Pool, Reply, Session};

pub use asker::{Asker, Askers};
pub use stored::{Since, Store, Stored, StoredPayload};

/// How often a check is made when its connection ends: an idle one may have ended unnoticed, and
/// the role that inserts probe rows may have lost its rights since we looked.
const ATTEMPTS_MAX: usize = 2;
/// Beside the statements' own limits, for everything around them.
const PIPELINE_SLACK: Duration = Duration::from_secs(1);
/// Characters kept of what a policy raised: its author chooses how many there are.
const MESSAGE_CHARS_MAX: usize = 500;
/// Resets what a transaction's end does not: advisory locks of the session, prepared statements,
/// sequences. Alone in its message, because it cannot run in a transaction.
const RESET: &str = "discard all";

/// Why there is no answer. The caller allows nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A policy, or what it calls, failed for this caller. The client hears that it is not
    /// authorized; log it as `RlsPolicyError`.
    #[error("a policy of realtime.messages failed with SQLSTATE {code}")]
    Policy {
        /// SQLSTATE.
        code: String,
        /// Postgres' words, cut; for the log only, they may hold anything.
        message: String,
    },
    /// The policies took too long (`QueryCanceled`). Asking again may help.
    #[error("the policies of realtime.messages took too long")]
    Canceled,
    /// No partition for today (`MissingPartition`): nobody can use private channels until it is
    /// there.
    #[error("realtime.messages has no partition for today")]
    MissingPartition,
    /// Whoever asked left before the check began; nobody is to be told.
    #[error("nobody wants to know any more")]
    Gone,
    /// No connection was free in time (`IncreaseConnectionPool`).
    #[error("no connection for channel checks was free in time")]
    Busy,
    /// Postgres could not be asked (`UnableToConnectToProject`): for now, or because something is
    /// missing that the source names.
    #[error("Postgres could not be asked about a channel")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The role is not in the configured list, does not exist, or may not be set.
    #[error("role {role} does not exist or may not be used")]
    Role {
        /// Its name.
        role: String,
    },
}

/// What a role may read on a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ReadGrants {
    /// Broadcasts, replayed ones too.
    pub broadcast: bool,
    /// Presence state and diffs; false when it was not asked for.
    pub presence: bool,
}

/// What a role may write on a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct WriteGrants {
    /// Broadcasts.
    pub broadcast: bool,
    /// Presence (track); false when it was not asked for.
    pub presence: bool,
}

/// Answers who may use a private channel, on the powerless check login.
pub struct Access {
    pool: Pool,
    roles: Vec<String>,
    search_path: String,
    timeout: Duration,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").finish_non_exhaustive()
    }
}

/// Who asks about what.
struct Caller<'a> {
    asker: &'a Asker,
    claims: &'a Claims,
    topic: &'a str,
    headers: &'a str,
    extensions: &'static [&'static str],
}

/// Whether each of the caller's extensions is allowed, in their order.
type Allowed = Vec<bool>;

/// How one attempt ended without an answer.
enum Failure {
    /// It would end so again.
    Final(Error),
    /// It may be the connection's fault: not to be used again.
    Connection(Box<dyn std::error::Error + Send + Sync>),
}

#[derive(Clone, Copy)]
enum Direction {
    Read,
    Write,
}

#[derive(Clone, Copy)]
enum Question {
    May(Direction),
    /// What the caller may write, and whether it may read presence.
    WriteAndSee,
    Stored(Since),
}

enum Answer {
    May(Allowed),
    WriteAndSee { write: Allowed, presence: bool },
    Stored(Store),
}

impl Answer {
    fn allowed(self) -> Allowed {
        match self {
            Self::May(allowed) | Self::WriteAndSee { write: allowed, .. } => allowed,
            Self::Stored(_) => Vec::new(),
        }
    }
}

impl Access {
    /// Connects nothing yet. `login` is NOINHERIT and a member of exactly the roles in `settings`.
    ///
    /// Call it within a tokio runtime: a task ends connections that do not answer, and ends with
    /// this value.
    pub fn new(login: Login, settings: &config::Database) -> Self {
        Self {
            pool: Pool::new(login, settings),
            roles: settings.roles.clone(),
            // Temporary objects are searched first unless the path names them.
            search_path: format!("{}, pg_temp", settings.search_path),
            timeout: Duration::from_millis(settings.check_timeout_ms),
        }
    }

    /// What the role of `claims` may read on `topic` now. `headers` is a JSON object, for
    /// `request.headers`; `presence` says whether presence is asked about too.
    ///
    /// A future that is dropped leaves nothing behind.
    ///
    /// # Errors
    /// [`Error`]: nothing is allowed.
    pub async fn read(
        &self,
        asker: &Asker,
        claims: &Claims,
        topic: &str,
        headers: &str,
        presence: bool,
    ) -> Result<ReadGrants, Error> {
        let started = Instant::now();
        let caller = Caller { asker, claims, topic, headers, extensions: extensions(presence) };
        let allowed = Box::pin(self.ask(&caller, Question::May(Direction::Read))).await;
        histogram!(READ_AUTHORIZATION_SECONDS).record(started.elapsed());
        let (broadcast, presence) = pair(&allowed?.allowed());
        Ok(ReadGrants { broadcast, presence })
    }

    /// As [`Self::read`], for what it may write.
    ///
    /// An insert that nothing refuses and that inserts nothing, because a trigger or a rule takes
    /// its row away, is not allowed: no policy was asked.
    ///
    /// # Errors
    /// [`Error`]: nothing is allowed.
    pub async fn write(
        &self,
        asker: &Asker,
        claims: &Claims,
        topic: &str,
        headers: &str,
        presence: bool,
    ) -> Result<WriteGrants, Error> {
        let started = Instant::now();
        let caller = Caller { asker, claims, topic, headers, extensions: extensions(presence) };
        let allowed = Box::pin(self.ask(&caller, Question::May(Direction::Write))).await;
        histogram!(WRITE_AUTHORIZATION_SECONDS).record(started.elapsed());
        let (broadcast, presence) = pair(&allowed?.allowed());
        Ok(WriteGrants { broadcast, presence })
    }

    /// As [`Self::write`] about both, and whether it may read presence: one check, for who shows
    /// itself and did not ask before who is there.
    ///
    /// # Errors
    /// [`Error`]: nothing is allowed, whichever of the two went wrong.
    pub async fn write_and_see(
        &self,
        asker: &Asker,
        claims: &Claims,
        topic: &str,
        headers: &str,
    ) -> Result<(WriteGrants, ReadGrants), Error> {
        let started = Instant::now();
        let caller = Caller { asker, claims, topic, headers, extensions: extensions(true) };
        let answer = Box::pin(self.ask(&caller, Question::WriteAndSee)).await;
        histogram!(WRITE_AUTHORIZATION_SECONDS).record(started.elapsed());
        let answer = answer?;
        let sees = matches!(answer, Answer::WriteAndSee { presence: true, .. });
        let (broadcast, presence) = pair(&answer.allowed());
        let read = ReadGrants { broadcast: false, presence: sees };
        Ok((WriteGrants { broadcast, presence }, read))
    }

    /// The stored broadcasts of a private topic that the role of `claims` sees, oldest first.
    /// Whether it may read there at all is to be asked before.
    ///
    /// # Errors
    /// [`Error`]: nothing is known.
    pub async fn stored(
        &self,
        asker: &Asker,
        claims: &Claims,
        topic: &str,
        headers: &str,
        since: Since,
    ) -> Result<Store, Error> {
        let started = Instant::now();
        let caller = Caller { asker, claims, topic, headers, extensions: &[] };
        let answer = Box::pin(self.ask(&caller, Question::Stored(since))).await;
        histogram!(REPLAY_SECONDS).record(started.elapsed());
        match answer? {
            Answer::Stored(stored) => Ok(stored),
            Answer::May(_) | Answer::WriteAndSee { .. } => {
                Ok(Store { messages: Vec::new(), read_at: None })
            }
        }
    }

    async fn ask(&self, caller: &Caller<'_>, question: Question) -> Result<Answer, Error> {
        let role = &*caller.claims.role;
        // `none` in the list would be the login itself.
        if role == "none" || !self.roles.iter().any(|allowed| allowed == role) {
            return Err(Error::Role { role: role.to_owned() });
        }
        // In the claims it is escaped; the subject is as it was meant.
        let subject = caller.claims.subject.as_deref().unwrap_or_default();
        let texts = [caller.topic, caller.headers, &caller.claims.json, subject];
        if texts.iter().any(|text| text.contains('\0')) {
            let message = "a null character cannot be given to Postgres".into();
            return Err(Error::Policy {
                code: SqlState::CHARACTER_NOT_IN_REPERTOIRE.code().into(),
                message,
            });
        }
        let checks = match question {
            Question::May(_) | Question::Stored(_) => 1,
            Question::WriteAndSee => 2,
        };
        // The caller's policies, and as much again for what is not theirs.
        let limit = self.timeout * 2 * checks + PIPELINE_SLACK;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let lease = self.pool.lease(caller.asker).await?;
            let asked = async {
                let session = lease.session();
                match question {
                    Question::May(direction) => {
                        let (allowed, reset) = match direction {
                            Direction::Read => self.read_on(session, caller).await,
                            Direction::Write => self.write_on(session, caller).await,
                        };
                        (allowed.map(Answer::May), reset)
                    }
                    Question::WriteAndSee => {
                        let Caller { asker, claims, topic, headers, .. } = *caller;
                        let reader =
                            Caller { asker, claims, topic, headers, extensions: &["presence"] };
                        // Each sends all it has when it is first polled: the second one follows
                        // the reset of the first, in the same round trip.
                        let (seen, written) =
                            join(self.read_on(session, &reader), self.write_on(session, caller))
                                .await;
                        let ((seen, seen_reset), (write, reset)) = (seen, written);
                        let answer = write.and_then(|write| {
                            let presence = seen?.first().copied().unwrap_or(false);
                            Ok(Answer::WriteAndSee { write, presence })
                        });
                        (answer, seen_reset && reset)
                    }
                    Question::Stored(since) => {
                        let (stored, reset) = self.stored_on(session, caller, since).await;
                        (stored.map(Answer::Stored), reset)
                    }
                }
            };
            let Ok((answer, reset)) = timeout(limit, asked).await else {
                return Err(Error::Canceled);
            };
            let answer = match answer {
                // Whoever can do this to a connection may have done more.
                Ok(_) if !reset => Err(Failure::Connection("it could not be reset".into())),
                answer => answer,
            };
            match answer {
                Ok(answer) => {
                    lease.give_back();
                    return Ok(answer);
                }
                Err(Failure::Final(error)) => {
                    if reset {
                        lease.give_back();
                    }
                    return Err(error);
                }
                Err(Failure::Connection(error)) if attempt >= ATTEMPTS_MAX => {
                    return Err(Error::Unavailable(error));
                }
                Err(Failure::Connection(_)) => {}
            }
        }
    }

    /// The answer, and whether the connection is as new.
    async fn read_on(
        &self,
        session: &Session,
        caller: &Caller<'_>,
    ) -> (Result<Allowed, Failure>, bool) {
        let Some(prober) = &session.prober else {
            let missing = if session.found {
                "none of the roles in database.roles has BYPASSRLS and may insert into \
                 realtime.messages, as service_role should"
            } else {
                "there is no table realtime.messages; run: walcast migrate"
            };
            let error = Failure::Final(Error::Unavailable(missing.into()));
            // Nothing was sent. It is not kept, so that the next check looks again.
            return (Err(error), false);
        };
        let ids: Vec<String> =
            caller.extensions.iter().map(|_| Uuid::new_v4().to_string()).collect();
        let rows = ids
            .iter()
            .zip(caller.extensions)
            .map(|(id, extension)| format!("('{id}', {}, '{extension}')", literal(caller.topic)));
        let rows = rows.collect::<Vec<_>>().join(", ");
        let quoted: Vec<String> = ids.iter().map(|id| format!("'{id}'")).collect();
        let messages = [
            format!(
                "{};
                select pg_catalog.set_config('role', {}, true);
                insert into realtime.messages (id, topic, extension) values {rows}",
                self.begin(),
                literal(prober),
            ),
            become_caller(caller),
            format!(
                "select m.id from realtime.messages as m where m.id in ({})",
                quoted.join(", ")
            ),
            "rollback".to_owned(),
            RESET.to_owned(),
        ];
        let replies = session.pipeline(&messages).await;
        let reset = is_reset(&replies);
        let Ok([inserted, became, seen, _, _]) = <[Reply; 5]>::try_from(replies) else {
            return (Err(Failure::Connection("replies are missing".into())), false);
        };
        let answer = || {
            inserted.map_err(|error| match error.code() {
                // The prober's rights have changed since we looked, or the table has gone.
                Some(
                    &(SqlState::INSUFFICIENT_PRIVILEGE
                    | SqlState::INVALID_PARAMETER_VALUE
                    | SqlState::UNDEFINED_TABLE
                    | SqlState::INVALID_SCHEMA_NAME),
                ) => Failure::Connection(error.into()),
                // A server that only reads; no policy has run yet, and a trigger is no better.
                Some(&(SqlState::READ_ONLY_SQL_TRANSACTION | SqlState::FEATURE_NOT_SUPPORTED)) => {
                    Failure::Final(Error::Unavailable(error.into()))
                }
                _ => failure(error),
            })?;
            is_caller(became, caller)?;
            let seen = seen.map_err(failure)?;
            let visible = |id: &String| {
                seen.iter().any(|message| {
                    let SimpleQueryMessage::Row(row) = message else { return false };
                    row.get(0) == Some(id)
                })
            };
            Ok(ids.iter().map(visible).collect())
        };
        (answer(), reset)
    }

    /// The answer, and whether the connection is as new.
    async fn write_on(
        &self,
        session: &Session,
        caller: &Caller<'_>,
    ) -> (Result<Allowed, Failure>, bool) {
        // Going back comes first: it takes away what the probe before has set, and without a
        // transaction it fails, so that nothing can be inserted for good.
        let probes = caller.extensions.iter().map(|extension| {
            format!(
                "rollback to savepoint walcast_probe;
                insert into realtime.messages (topic, extension) values ({}, '{extension}')",
                literal(caller.topic)
            )
        });
        let begin = format!("{}; {}; savepoint walcast_probe", self.begin(), become_caller(caller));
        let messages: Vec<String> =
            [begin].into_iter().chain(probes).chain(["rollback".into(), RESET.into()]).collect();
        let mut replies = session.pipeline(&messages).await;
        let reset = is_reset(&replies);
        replies.truncate(messages.len() - 2);
        let mut replies = replies.into_iter();
        let answer = || {
            let became = replies.next().ok_or_else(|| Failure::Connection("no reply".into()))?;
            is_caller(became, caller)?;
            replies.map(inserted).collect()
        };
        (answer(), reset)
    }

    /// Begins a transaction in which everything that an answer could depend on is pinned.
    fn begin(&self) -> String {
        let timeout_ms = self.timeout.as_millis().to_string();
        // A lock that is not granted must not look like a slow policy to whoever reads the log.
        let lock_timeout_ms = (self.timeout.as_millis() * 3 / 4).max(1).to_string();
        let settings = [
            ("search_path", &*self.search_path),
            ("statement_timeout", &timeout_ms),
            ("lock_timeout", &lock_timeout_ms),
            ("row_security", "on"),
            ("client_min_messages", "error"),
            ("jit", "off"),
        ];
        let begin = "begin isolation level read committed read write";
        format!("{begin}; {}", set_local(&settings))
    }
}

fn extensions(presence: bool) -> &'static [&'static str] {
    if presence { &["broadcast", "presence"] } else { &["broadcast"] }
}

/// Broadcast and presence. What was not asked about is not allowed.
fn pair(allowed: &Allowed) -> (bool, bool) {
    let at = |place: usize| allowed.get(place).copied().unwrap_or(false);
    (at(0), at(1))
}

fn set_local(settings: &[(&str, &str)]) -> String {
    let set = |(name, value): &(&str, &str)| {
        format!("pg_catalog.set_config({}, {}, true)", literal(name), literal(value))
    };
    format!("select {}", settings.iter().map(set).collect::<Vec<_>>().join(", "))
}

/// Becomes the caller; its last row says who one is then.
fn become_caller(caller: &Caller<'_>) -> String {
    let claims = caller.claims;
    let settings = set_local(&[
        ("realtime.topic", caller.topic),
        ("request.jwt.claims", &claims.json),
        ("request.jwt.claim.sub", claims.subject.as_deref().unwrap_or_default()),
        ("request.jwt.claim.role", &claims.role),
        ("request.headers", caller.headers),
        ("role", &claims.role),
    ]);
    format!("{settings}; select current_user")
}

/// Whether we became the caller.
fn is_caller(reply: Reply, caller: &Caller<'_>) -> Result<(), Failure> {
    let role = &*caller.claims.role;
    let refused = || Failure::Final(Error::Role { role: role.to_owned() });
    let messages = reply.map_err(|error| {
        let roles = [SqlState::INSUFFICIENT_PRIVILEGE, SqlState::INVALID_PARAMETER_VALUE];
        if error.code().is_some_and(|code| roles.contains(code)) {
            return refused();
        }
        // No policy has run yet: a server that only reads, or that refuses all.
        let failed = failure(error);
        let Failure::Final(Error::Policy { code, message }) = failed else { return failed };
        Failure::Final(Error::Unavailable(format!("{message} ({code})").into()))
    })?;
    let last = messages.iter().rev().find_map(|message| {
        let SimpleQueryMessage::Row(row) = message else { return None };
        row.get(0)
    });
    if last == Some(role) { Ok(()) } else { Err(refused()) }
}

/// Whether an insert as the caller went through.
fn inserted(reply: Reply) -> Result<bool, Failure> {
    match reply {
        Ok(messages) => {
            let rows = messages.iter().rev().find_map(|message| {
                let SimpleQueryMessage::CommandComplete(rows) = message else { return None };
                Some(*rows)
            });
            Ok(rows == Some(1))
        }
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Ok(false),
        Err(error) => Err(failure(error)),
    }
}

/// Whether the last two messages, the transaction's end and the reset, did what they are for.
fn is_reset(replies: &[Reply]) -> bool {
    matches!(replies, [.., Ok(_), Ok(_)])
}

/// What an error means that a policy may have caused.
fn failure(error: tokio_postgres::Error) -> Failure {
    let Some(database) = error.as_db_error() else { return Failure::Connection(error.into()) };
    let code = database.code();
    // A row that no partition takes; a constraint that refuses it has a name.
    if *code == SqlState::CHECK_VIOLATION
        && database.constraint().is_none()
        && database.schema() == Some("realtime")
        && database.table() == Some("messages")
    {
        return Failure::Final(Error::MissingPartition);
    }
    if [SqlState::QUERY_CANCELED, SqlState::LOCK_NOT_AVAILABLE].contains(code) {
        return Failure::Final(Error::Canceled);
    }
    let code = code.code();
    // A connection or a server that ends; a transaction that was in another's way.
    if ["08", "40", "57P"].iter().any(|class| code.starts_with(class)) {
        return Failure::Connection(error.into());
    }
    // Resources, files, a server that only reads: not this caller's fault.
    if ["53", "58"].iter().any(|class| code.starts_with(class)) {
        return Failure::Final(Error::Unavailable(error.into()));
    }
    let message = database.message().chars().take(MESSAGE_CHARS_MAX).collect();
    Failure::Final(Error::Policy { code: code.to_owned(), message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_mean_the_same_whatever_a_policy_has_set() {
        assert_eq!(set_local(&[("a", "it's")]), "select pg_catalog.set_config('a', 'it''s', true)");
        let with_backslash = set_local(&[("a", r"\'; commit; --")]);
        assert!(with_backslash.contains(r" E'\\''; commit; --'"), "{with_backslash}");
    }

    #[test]
    fn what_was_not_asked_about_is_not_allowed() {
        assert_eq!(pair(&vec![true]), (true, false));
        assert_eq!(pair(&vec![]), (false, false));
        assert_eq!(pair(&vec![false, true]), (false, true));
    }
}
