//! Commands: an event of a client that writes, as the caller, in one transaction.
//!
//! In:     a declared command and the payload that came for it; who sends it.
//! Out:    [`Outcome`]: data and the place of its commit in the log, or a code and a sentence.
//! Never:  a right that the caller does not have; a name in SQL text but from a declaration, quoted; words of
//!         Postgres to a client, which may quote rows, but those that a function says to him with `PTxxx`;
//!         anything written by what is refused.
//!
//! | file | from | to |
//! |---|---|---|
//! | `table` | a declared row's operation and a payload | one statement |
//! | `refused` | what Postgres says | a code and a sentence |
//! | `members` | the text of a payload | its members, as they are written |

mod members;
mod refused;
mod table;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::auth::Claims;
use crate::change::{Origin, origin};
use crate::config;
use crate::cursor::Cursor;
use crate::feed::{Status, Write, Writes};
use crate::profile::{Command, Function, Operation, Run, TableWrite};
use crate::rest::problem::Problem;
use crate::rest::run::{Context, Demand, Done, EVERY_PICTURE, Failure, Job, Key, Runner};
use crate::rest::sql::{Sql, Statement};
use crate::telemetry;

pub use refused::Refused;

use members::Members;
use refused::Words;

/// How often a command is run that another transaction was in the way of.
const ATTEMPTS_MAX: u32 = 3;

/// The member of a payload under which it is written once.
const MUTATION_ID: &str = "mutationId";

/// Rows were demanded to be one, and are not.
const NOT_SINGLE: &str = "PGRST116";

/// It was to change nothing, and does.
const READ_ONLY: &str = "25006";

/// Others were in the way: a conflict of snapshots, a circle of locks.
const IN_THE_WAY: [&str; 2] = ["40001", "40P01"];

/// A command that came.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Who sends it.
    pub claims: &'a Claims,
    /// Where.
    pub namespace: &'a str,
    /// The headers of his handshake, a JSON object, for `request.headers`.
    pub headers: &'a str,
    /// What his connection is called, in the origin of the transaction and as `x-connection-id`.
    pub connection_id: &'a str,
    /// What is declared for it.
    pub command: &'a Command,
    /// What came with it.
    pub payload: &'a RawValue,
    /// His id, as the profile finds it in his claims.
    pub subject: Option<&'a str>,
    /// What the profile says where he may not.
    pub denied: &'a str,
}

/// Who a function is called as.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// His claims.
    pub claims: &'a Claims,
    /// As in [`Call`].
    pub headers: &'a str,
    /// As in [`Call`].
    pub connection_id: &'a str,
    /// As in [`Call`].
    pub subject: Option<&'a str>,
}

/// What a function is given.
#[derive(Debug, Clone, Copy)]
pub enum Given<'a> {
    /// Nothing: it returns topics, which come as one list.
    Nothing,
    /// A topic, or an empty text.
    Topic(&'a str),
    /// A JSON value. Its function may write, so that the transaction says whose it is.
    Payload(&'a RawValue),
}

/// What became of a command.
#[derive(Debug)]
pub enum Outcome {
    /// It is committed.
    Done {
        /// What the function returned, or the row.
        data: Box<RawValue>,
        /// Everything up to the commit, and all of it, is behind whoever has this; none where it did not
        /// become known in time, or the answer is that of an earlier time.
        cursor: Option<Cursor>,
    },
    /// Nothing was written, unless the connection to Postgres was lost while it was.
    Refused(Refused),
}

/// Runs commands.
pub struct Commander {
    runner: Arc<Runner>,
    writes: Writes,
    status: Arc<Status>,
    settings: config::Rest,
}

/// What Postgres came to.
struct Came {
    body: Option<String>,
    cursor: Option<Cursor>,
}

impl Commander {
    /// On the connections of `runner`; `writes` and `status` are the feed's.
    pub fn new(
        runner: Arc<Runner>,
        writes: Writes,
        status: Arc<Status>,
        settings: &config::Rest,
    ) -> Self {
        Self { runner, writes, status, settings: settings.clone() }
    }

    /// Runs a command, and waits until it is known where in the log it is.
    pub async fn run(&self, call: Call<'_>) -> Outcome {
        let begun = Instant::now();
        let outcome = self.command(&call).await;
        let result = match &outcome {
            Ok(_) => "ok",
            Err(refused) if refused.code == refused::UNAVAILABLE => "unavailable",
            Err(_) => "refused",
        };
        metrics::counter!(telemetry::COMMANDS, telemetry::RESULT => result).increment(1);
        metrics::histogram!(telemetry::COMMAND_SECONDS).record(begun.elapsed());
        match outcome {
            Ok(done) => done,
            Err(refused) => {
                debug!(event = &*call.command.event, code = &*refused.code, "a command is refused");
                Outcome::Refused(refused.about(call.payload))
            }
        }
    }

    async fn command(&self, call: &Call<'_>) -> Result<Outcome, Refused> {
        let command = call.command;
        let members = Members::read(call.payload)?;
        for member in &command.required {
            if !members.has(member) {
                return Err(Refused::invalid(format!("{member} is required")));
            }
        }
        let mutation_id = mutation_id(&members)?;
        let (statement, table) = match &command.run {
            Run::Function(function, _) => (call_of(function, Given::Payload(call.payload)), None),
            Run::Table(write) => {
                (table::statement(write, &command.required, &members)?, Some(write))
            }
        };
        let words = Words {
            failed: &command.failed,
            failed_message: &command.failed_message,
            denied: command.denied.as_deref().unwrap_or(call.denied),
        };
        let schema = match &command.run {
            Run::Function(function, _) => &function.schema,
            Run::Table(write) => &write.relation.schema,
        };
        let context = Context {
            method: "POST".into(),
            path: format!("{}/{}", call.namespace.trim_end_matches('/'), command.event),
            headers: headers(call.headers, call.connection_id, mutation_id.as_deref()),
            cookies: "{}".into(),
        };
        let origin = self.origin(call.subject, call.connection_id, mutation_id.as_deref());
        let key = call.subject.and(mutation_id.as_deref()).map(|id| self.key(call, id));
        let by_key = table
            .is_some_and(|write| matches!(write.operation, Operation::Update | Operation::Delete));
        let job = Job {
            claims: call.claims,
            statement: &statement,
            rows: None,
            schema,
            number: EVERY_PICTURE,
            is_read_only: matches!(command.run, Run::Function(_, true)),
            is_call: table.is_none(),
            context: &context,
            estimate: None,
            time_zone: None,
            no_such_time_zone: None,
            demand: Demand { is_single: by_key, ..Demand::default() },
            origin: None,
            key: key.as_ref(),
        };
        let came = match self.write(job, origin).await {
            Ok(came) => came,
            Err(failure) => {
                return Err(match table {
                    Some(write) if by_key && failure.problem.code == NOT_SINGLE => {
                        self.untouched(&job, write, &members, &words).await
                    }
                    _ => refuse(&failure.problem, &words, &command.event),
                });
            }
        };
        let body = came.body.unwrap_or_else(|| "null".into());
        let body = match table {
            Some(write) => table::renamed(write, body),
            None => body,
        };
        let data = RawValue::from_string(body).map_err(|_| words.failed())?;
        Ok(Outcome::Done { data, cursor: came.cursor })
    }

    /// Runs it until nobody is in the way any more.
    async fn write(&self, mut job: Job<'_>, origin: Origin) -> Result<Came, Failure> {
        let key = job.key;
        for attempt in 1.. {
            job.key = key.filter(|_| !job.is_read_only);
            let outcome = if job.is_read_only {
                // Before it reads: what is published by now is in its snapshot.
                let cursor = self.status.cursor();
                self.runner.run(&job).await.map(|done| Came { body: done.answer.body, cursor })
            } else {
                let mut write = self.writes.expect();
                let message = Origin { id: Some(write.id().into()), ..origin.clone() }.to_message();
                let job = Job { origin: Some(&message), ..job };
                match self.runner.run(&job).await {
                    Ok(Done { answer, is_repeated: true, .. }) => {
                        Ok(Came { body: answer.body, cursor: None })
                    }
                    Ok(done) => {
                        let cursor = self.place(&mut write).await;
                        Ok(Came { body: done.answer.body, cursor })
                    }
                    Err(failure) => Err(failure),
                }
            };
            match outcome {
                Err(failure) if job.is_read_only && failure.problem.code == READ_ONLY => {
                    job.is_read_only = false;
                }
                Err(failure)
                    if attempt < ATTEMPTS_MAX && IN_THE_WAY.contains(&&*failure.problem.code) => {}
                outcome => return outcome,
            }
        }
        unreachable!("attempts are counted from 1, and end at the last one")
    }

    /// Where it was committed, unless that takes too long: the feed is milliseconds behind, or does not
    /// read at all.
    async fn place(&self, write: &mut Write) -> Option<Cursor> {
        if !self.status.attached.load(Ordering::Relaxed) {
            return None;
        }
        let time = Duration::from_millis(self.settings.feed_wait_timeout_ms);
        timeout(time, write.published()).await.ok().map(|written| written.cursor)
    }

    /// Why a row that was to be written was not: looked at again, as the caller.
    async fn untouched(
        &self,
        job: &Job<'_>,
        write: &TableWrite,
        members: &Members<'_>,
        words: &Words<'_>,
    ) -> Refused {
        let statement = table::look(write, members);
        let look = Job {
            statement: &statement,
            is_read_only: true,
            demand: Demand::default(),
            origin: None,
            key: None,
            ..*job
        };
        let answer = match self.runner.run(&look).await {
            Ok(done) => done.answer,
            Err(failure) => return refused::of(&failure.problem, words),
        };
        match (answer.page_total, answer.body) {
            (0, _) => Refused::new("NOT_FOUND", "Not found"),
            (1, Some(row)) if answer.total == Some(0) => {
                let current = RawValue::from_string(table::renamed(write, row)).ok();
                Refused::new("STALE_UPDATE", "It was changed by somebody else meanwhile")
                    .with("current", current)
            }
            (1, _) => words.denied(),
            _ => words.failed(),
        }
    }

    /// Calls a function as the caller: what is known of him, what he enters with, his status.
    ///
    /// # Errors
    /// Why it has no answer; nothing was written. The context is what the function says, if it does.
    pub async fn ask(
        &self,
        caller: Caller<'_>,
        function: &Function,
        given: Given<'_>,
    ) -> Result<Box<RawValue>, Refused> {
        let statement = call_of(function, given);
        let context = Context {
            method: "POST".into(),
            path: format!("/{}", function.name),
            headers: headers(caller.headers, caller.connection_id, None),
            cookies: "{}".into(),
        };
        let origin = match given {
            Given::Payload(_) => {
                Some(self.origin(caller.subject, caller.connection_id, None).to_message())
            }
            // Without a word in the log it costs no write there.
            Given::Nothing | Given::Topic(_) => None,
        };
        let job = Job {
            claims: caller.claims,
            statement: &statement,
            rows: None,
            schema: &function.schema,
            number: EVERY_PICTURE,
            is_read_only: false,
            is_call: true,
            context: &context,
            estimate: None,
            time_zone: None,
            no_such_time_zone: None,
            demand: Demand::default(),
            origin: origin.as_deref(),
            key: None,
        };
        let words = Words::default();
        for attempt in 1.. {
            match self.runner.run(&job).await {
                Ok(done) => {
                    let body = done.answer.body.unwrap_or_else(|| "null".into());
                    let body = match given {
                        Given::Nothing => topics(&body),
                        Given::Topic(_) | Given::Payload(_) => body,
                    };
                    return RawValue::from_string(body).map_err(|_| words.failed());
                }
                Err(failure)
                    if attempt < ATTEMPTS_MAX && IN_THE_WAY.contains(&&*failure.problem.code) => {}
                Err(failure) => return Err(refuse(&failure.problem, &words, &function.name)),
            }
        }
        unreachable!("attempts are counted from 1, and end at the last one")
    }

    fn origin(&self, subject: Option<&str>, connection: &str, mutation: Option<&str>) -> Origin {
        Origin {
            id: None,
            sub: subject.filter(|_| self.settings.tell_author).map(Into::into),
            connection_id: (!connection.is_empty()).then(|| connection.into()),
            mutation_id: mutation.map(Into::into),
        }
    }

    fn key(&self, call: &Call<'_>, id: &str) -> Key {
        let Call { claims, namespace, command, payload, subject, .. } = call;
        let mut digest = Sha256::new();
        digest.update(payload.get().as_bytes());
        Key {
            scope: serde_json::json!([&*claims.role, subject, namespace, command.event])
                .to_string(),
            key: id.to_owned(),
            request: URL_SAFE_NO_PAD.encode(digest.finalize()),
            lifetime_ms: self.settings.key_lifetime_ms,
        }
    }
}

/// What the client is told, with a word to the operator where a declaration is wrong.
fn refuse(problem: &Problem, words: &Words<'_>, name: &str) -> Refused {
    let code = &*problem.code;
    if refused::is_of_declaration(code) {
        warn!(name, code, "what is declared cannot be run");
    }
    refused::of(problem, words)
}

/// What the client calls this write.
fn mutation_id(members: &Members<'_>) -> Result<Option<String>, Refused> {
    if !members.has(MUTATION_ID) {
        return Ok(None);
    }
    let text: Option<String> = members.read_as(MUTATION_ID);
    let is_one = |text: &String| {
        (1..=origin::TEXT_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
    };
    match text.filter(is_one) {
        Some(text) => Ok(Some(text)),
        None => Err(Refused::invalid(format!("{MUTATION_ID} is not valid"))),
    }
}

/// `request.headers` with the connection and the mutation in them.
fn headers(given: &str, connection_id: &str, mutation_id: Option<&str>) -> String {
    let mut headers: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(given).unwrap_or_default();
    headers.insert("x-connection-id".into(), connection_id.into());
    match mutation_id {
        Some(id) => headers.insert("x-mutation-id".into(), id.into()),
        None => headers.remove("x-mutation-id"),
    };
    serde_json::Value::Object(headers).to_string()
}

/// The texts of a list, or of a list of lists, as one list.
fn topics(rows: &str) -> String {
    let rows: Vec<serde_json::Value> = serde_json::from_str(rows).unwrap_or_default();
    let several = rows.into_iter().flat_map(|row| match row {
        serde_json::Value::Array(several) => several,
        one @ (serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::String(_)
        | serde_json::Value::Object(_)) => vec![one],
    });
    serde_json::Value::Array(several.filter(serde_json::Value::is_string).collect()).to_string()
}

/// A call of a function, as one row of an answer.
fn call_of(function: &Function, given: Given<'_>) -> Statement {
    const REST: &str = ", 1::bigint, null::bigint, null::bigint, null::text from ";
    let mut sql = Sql::new();
    match given {
        Given::Nothing => {
            sql.push("select coalesce(pg_catalog.jsonb_agg(c.r), '[]')::text").push(REST);
            sql.qualified(&function.schema, &function.name).push("() as c (r)");
        }
        Given::Topic(_) | Given::Payload(_) => {
            // Fenced: what is volatile, and what only says that it is not, is called once.
            sql.push("select case when pg_catalog.pg_typeof(c.r) <> 'pg_catalog.void'::pg_catalog.regtype ");
            sql.push("then pg_catalog.to_jsonb(c.r)::text end").push(REST).push("(select ");
            sql.qualified(&function.schema, &function.name).push("(");
            match given {
                Given::Payload(payload) => {
                    sql.value(payload.get().to_owned()).push("::pg_catalog.jsonb");
                }
                Given::Topic(topic) => {
                    sql.value(topic.to_owned()).push("::text");
                }
                Given::Nothing => {}
            }
            sql.push(") as r offset 0) as c");
        }
    }
    sql.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_functions_are_quoted_and_what_they_are_given_is_a_parameter() {
        let function = Function::parse(r#""My app"."a""b"(jsonb)"#).unwrap();
        let payload = RawValue::from_string(r#"{"a":"'; drop"}"#.into()).unwrap();
        let statement = call_of(&function, Given::Payload(&payload));
        assert!(
            statement.text.contains(r#""My app"."a""b"($1::pg_catalog.jsonb)"#),
            "{statement:?}"
        );
        assert_eq!(statement.parameters.len(), 1);
        let statement = call_of(&function, Given::Nothing);
        assert!(statement.text.ends_with(r#""My app"."a""b"() as c (r)"#), "{statement:?}");
    }

    #[test]
    fn headers_have_the_connection_that_is_ours() {
        let made =
            headers(r#"{"x-connection-id":"forged","x-mutation-id":"x","a":"b"}"#, "c1", None);
        assert_eq!(made, r#"{"x-connection-id":"c1","a":"b"}"#);
        assert_eq!(
            headers("nonsense", "c1", Some("m")),
            r#"{"x-connection-id":"c1","x-mutation-id":"m"}"#
        );
    }

    #[test]
    fn topics_are_one_list_whatever_returned_them() {
        assert_eq!(topics(r#"["a", null, "b"]"#), r#"["a","b"]"#);
        assert_eq!(topics(r#"[["a", "b"]]"#), r#"["a","b"]"#);
        assert_eq!(topics("[[]]"), "[]");
        assert_eq!(topics("[null]"), "[]");
    }

    #[test]
    fn a_mutation_id_is_a_short_text() {
        let id = |payload: &str| {
            let payload = RawValue::from_string(payload.into()).unwrap();
            mutation_id(&Members::read(&payload).unwrap()).map_err(|refused| refused.code)
        };
        assert_eq!(id("{}"), Ok(None));
        assert_eq!(id(r#"{"mutationId":null}"#), Ok(None));
        assert_eq!(id(r#"{"mutationId":"m"}"#), Ok(Some("m".into())));
        let long = format!(r#"{{"mutationId":"{}"}}"#, "x".repeat(256));
        for wrong in
            [r#"{"mutationId":""}"#, r#"{"mutationId":1}"#, r#"{"mutationId":"\n"}"#, &long]
        {
            assert_eq!(id(wrong), Err("VALIDATION_FAILED".into()), "{wrong}");
        }
    }
}
