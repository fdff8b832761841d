//! What clients of Socket.IO find: read when it may have changed.
//!
//! In:     `walcast.declarations`, at the beginning and whenever the catalog may have changed, of which a
//!         declaration leaves a mark in the log.
//! Out:    [`Profiles`], those of now.
//! Never:  a question while nothing changes; profiles that nobody declared because nobody could ask.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Status;
use crate::db::{self, Login};
use crate::profile::{Profiles, Row};
use crate::telemetry;

/// Rows that are read.
const ROWS_MAX: i64 = 20_000;

/// Bytes of one declaration: a payload's members and some texts.
const DECLARATION_BYTES_MAX: i32 = 100_000;

/// Waits until it is asked again: the first, and what doubling ends at.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Why it is not known what is declared: ask again.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// No connection.
    #[error("no connection for the profiles")]
    Connect(#[from] db::Error),
    /// The server broke off, or does not let us read them.
    #[error("walcast.declarations cannot be read")]
    Query(#[from] tokio_postgres::Error),
    /// It is silent.
    #[error("no answer about the profiles")]
    Silent(#[from] tokio::time::error::Elapsed),
}

/// What is declared.
#[derive(Debug)]
pub struct Declarations {
    login: Login,
    timeout: Duration,
    status: Arc<Status>,
    known: watch::Sender<Option<Arc<Profiles>>>,
}

impl Declarations {
    /// Nothing is known before [`Self::run`]. `timeout` bounds one question; `status` is that of the
    /// feed of the same database.
    pub fn new(login: Login, timeout: Duration, status: Arc<Status>) -> Self {
        Self { login, timeout, status, known: watch::Sender::default() }
    }

    /// What is declared now; none before it was read.
    pub fn now(&self) -> Option<Arc<Profiles>> {
        self.known.borrow().clone()
    }

    /// What is declared now, once it was read.
    pub async fn read(&self) -> Arc<Profiles> {
        let mut known = self.known.subscribe();
        let known = known.wait_for(Option::is_some).await;
        let known = known.ok().and_then(|known| known.clone());
        known.expect("we hold the sender, and waited for it")
    }

    /// Keeps it true until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        // Whoever stops may leave a question unanswered.
        let _ = stop.run_until_cancelled(self.follow()).await;
    }

    async fn follow(&self) {
        let mut client = None;
        let mut before: Option<Vec<Row>> = None;
        let mut pause = RETRY.0;
        loop {
            let changes = self.status.changes_of_catalog();
            match self.ask(&mut client).await {
                Ok(rows) => {
                    pause = RETRY.0;
                    if before.as_ref() != Some(&rows) {
                        let profiles = Profiles::new(&rows);
                        if before.is_some() || !rows.is_empty() {
                            info!(declarations = rows.len(), "profiles are declared");
                        }
                        self.known.send_replace(Some(Arc::new(profiles)));
                        before = Some(rows);
                    }
                    self.status.catalog_changed(changes).await;
                }
                Err(error) => {
                    warn!(error = telemetry::chain(&error), "what is declared is not known");
                    client = None;
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY.1);
                }
            }
        }
    }

    async fn ask(&self, slot: &mut Option<Client>) -> Result<Vec<Row>, Error> {
        let client = match slot.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => self.login.connect("walcast profiles").await?,
        };
        let limits: [&(dyn ToSql + Sync); 2] = [&ROWS_MAX, &DECLARATION_BYTES_MAX];
        let asked = client.query(include_str!("../../sql/declarations.sql"), &limits);
        let rows = match tokio::time::timeout(self.timeout, asked).await? {
            Ok(rows) => rows,
            // Nothing of ours is installed, or it is from before there were any.
            Err(error) if is_missing(&error) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        *slot = Some(client);
        let text = |row: &tokio_postgres::Row, place| {
            row.try_get::<_, String>(place).map(String::into_boxed_str)
        };
        let rows = rows.iter().map(|row| {
            Ok(Row {
                namespace: text(row, 0)?,
                kind: text(row, 1)?,
                name: text(row, 2)?,
                declaration: text(row, 3)?,
            })
        });
        rows.collect()
    }
}

fn is_missing(error: &tokio_postgres::Error) -> bool {
    let missing = [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME];
    error.code().is_some_and(|code| missing.contains(code))
}
