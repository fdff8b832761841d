//! Values that events take from other tables, asked on the powerless login.
//!
//! In:     which look-up of which declaration, and the keys.
//! Out:    for each key the row's columns as JSON; none where there is no such row.
//! Never:  a name in SQL: `walcast.look_up` reads what the declaration names, if whoever owns the
//!         mapped table owns the other one too.
//!
//! Read when the transaction of the change is visible: what is found is of then, or newer.

use std::time::Duration;

use hashbrown::HashMap;
use serde_json::value::RawValue;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::db::{self, Login};
use crate::mapping::Looked;
use crate::telemetry;

/// Keys of one question. More are asked for after it.
const KEYS_MAX: usize = 1000;

/// One look-up of one rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Lookup {
    /// Which declaration.
    pub declaration: i64,
    /// Number of the rule there.
    pub rule: usize,
    /// Name of the look-up there.
    pub name: Box<str>,
    /// What is read.
    pub columns: Box<[Box<str>]>,
}

/// A key's values, as text.
pub(super) type Key = Box<[Box<str>]>;

/// Why nothing was looked up: hold the batch and ask again.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// No connection.
    #[error("no connection for look-ups")]
    Connect(#[from] db::Error),
    /// The server broke off.
    #[error("a look-up was not answered")]
    Query(#[from] tokio_postgres::Error),
    /// The server is silent, though it should have stopped by itself.
    #[error("no answer about look-ups")]
    Silent(#[from] tokio::time::error::Elapsed),
}

/// Asks Postgres about other tables.
#[derive(Debug)]
pub struct Lookups {
    login: Login,
    timeout: Duration,
    client: tokio::sync::Mutex<Option<Client>>,
}

impl Lookups {
    /// `timeout` bounds one question.
    pub fn new(login: Login, timeout: Duration) -> Self {
        Self { login, timeout, client: tokio::sync::Mutex::default() }
    }

    /// What there is for each key. A look-up that fails finds nothing, and is counted.
    ///
    /// # Errors
    /// There was no answer: ask again later.
    pub(super) async fn find(
        &self,
        wanted: HashMap<Lookup, Vec<Key>>,
    ) -> Result<HashMap<Lookup, HashMap<Key, Looked>>, Error> {
        let mut found = HashMap::with_capacity(wanted.len());
        if wanted.is_empty() {
            return Ok(found);
        }
        let mut slot = self.client.lock().await;
        let idle = slot.take().filter(|client| !client.is_closed());
        let client = if let Some(client) = idle {
            client
        } else {
            let client = self.login.connect("walcast look-ups").await?;
            let timeout = self.timeout.as_millis();
            client.batch_execute(&format!("set statement_timeout = {timeout}")).await?;
            client
        };
        for (lookup, keys) in wanted {
            let mut rows = HashMap::with_capacity(keys.len());
            for keys in keys.chunks(KEYS_MAX) {
                // The server ends it in time; beyond that it is silent.
                let asked = ask(&client, &lookup, keys);
                let answered = tokio::time::timeout(self.timeout.saturating_mul(3), asked).await?;
                match answered {
                    Ok(answers) => rows.extend(keys.iter().cloned().zip(answers)),
                    Err(error) if is_refusal(&error) => {
                        let reason = telemetry::REASON;
                        metrics::counter!(telemetry::WITHHELD, reason => "mapping_lookup")
                            .increment(1);
                        let (declaration, name) = (lookup.declaration, &lookup.name);
                        let error = telemetry::chain(&error);
                        tracing::warn!(declaration, %name, error, "a look-up finds nothing");
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            found.insert(lookup, rows);
        }
        *slot = Some(client);
        Ok(found)
    }
}

/// Whether the server has looked, and will not answer another time either.
fn is_refusal(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| {
        let ended =
            [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN, SqlState::CANNOT_CONNECT_NOW];
        !ended.contains(code) && !code.code().starts_with("08")
    })
}

async fn ask(
    client: &Client,
    lookup: &Lookup,
    keys: &[Key],
) -> Result<Vec<Looked>, tokio_postgres::Error> {
    const ASK: &str = "select walcast.look_up($1, $2, $3, $4, $5::text::jsonb)::text";
    let json = serde_json::to_string(keys).expect("texts are always JSON");
    let rule = i32::try_from(lookup.rule).unwrap_or(i32::MAX);
    let columns: Vec<&str> = lookup.columns.iter().map(|column| &**column).collect();
    let name = &*lookup.name;
    let row = client.query_one(ASK, &[&lookup.declaration, &rule, &name, &columns, &json]).await?;
    let text: Option<String> = row.try_get(0)?;
    let text = text.unwrap_or_else(|| "[]".to_owned());
    let answers: Vec<Option<Vec<&RawValue>>> = serde_json::from_str(&text).unwrap_or_default();
    let mut answers = answers.into_iter();
    let next = |_| {
        let columns = answers.next().flatten()?;
        Some(columns.into_iter().map(|column| column.get().into()).collect())
    };
    Ok(keys.iter().map(next).collect())
}
