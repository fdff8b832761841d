//! Rows that decide who may be in which room: when they change, whoever is there is doubted.
//!
//! In:     `walcast.guards`, read whenever the catalog may have changed; what transactions did.
//! Out:    the topics whose rooms are to be looked at again ([`Hub::doubt`]).
//! Never:  a decision (the policies have it); a change that is passed over because its row does not say
//!         which topic it is about: then it is about every topic of the kind.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hashbrown::{HashMap, HashSet};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tracing::{error, info};

use super::Status;
use super::reader::{Pending, Segment, Touched};
use crate::change::{Tuple, Value};
use crate::db::{self, Login};
use crate::hub::Hub;
use crate::mapping::template::{Given, Template};
use crate::telemetry;

/// Why it is not known what to watch: hold the batch and ask again.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// No connection.
    #[error("no connection for the guards of topics")]
    Connect(#[from] db::Error),
    /// The server broke off.
    #[error("the guards of topics cannot be read")]
    Query(#[from] tokio_postgres::Error),
    /// It is silent.
    #[error("no answer about the guards of topics")]
    Silent(#[from] tokio::time::error::Elapsed),
}

/// What is watched.
#[derive(Debug)]
pub struct Watches {
    login: Login,
    timeout: Duration,
    client: tokio::sync::Mutex<Option<Client>>,
    known: Mutex<Arc<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    /// As of how many changes of the catalog; none: never asked.
    as_of: Option<u64>,
    /// Grows with each that differs from the one before.
    version: u64,
    tables: HashMap<u32, Vec<Watch>>,
}

/// What a table's rows decide.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Watch {
    template: Template,
    /// Its columns that have the template's values, in their order; none: every topic of the kind.
    columns: Box<[Box<str>]>,
}

/// Whose rooms are to be looked at again.
#[derive(Debug, Default)]
struct Doubts<'a> {
    topics: HashSet<Box<str>>,
    kinds: Vec<&'a Template>,
}

impl Watches {
    /// `timeout` bounds one question.
    pub fn new(login: Login, timeout: Duration) -> Self {
        Self { login, timeout, client: tokio::sync::Mutex::default(), known: Mutex::default() }
    }

    fn known(&self) -> Arc<Known> {
        let known = self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Arc::clone(&known)
    }

    /// Grows with what is watched.
    pub(super) fn version(&self) -> u64 {
        self.known().version
    }

    /// Whether the rows of this table are.
    pub(super) fn has(&self, oid: u32) -> bool {
        self.known().tables.contains_key(&oid)
    }

    /// Asks what is watched now, unless nothing can have changed since it was asked.
    ///
    /// # Errors
    /// Nobody knows: ask again later.
    pub(super) async fn look(&self, status: &Status) -> Result<(), Error> {
        let changes = status.catalog_changes.load(Ordering::Acquire);
        let before = self.known();
        if before.as_of == Some(changes) {
            return Ok(());
        }
        let tables = self.ask().await?;
        let is_same = tables == before.tables;
        if !is_same {
            info!(tables = tables.len(), "tables are watched for who may be in rooms");
        }
        let version = before.version + u64::from(!is_same);
        let known = Known { as_of: Some(changes), version, tables };
        *self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(known);
        Ok(())
    }

    async fn ask(&self) -> Result<HashMap<u32, Vec<Watch>>, Error> {
        let mut slot = self.client.lock().await;
        let client = match slot.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => self.login.connect("walcast guards").await?,
        };
        let asked = client.query(include_str!("../../sql/watches.sql"), &[]);
        let rows = match tokio::time::timeout(self.timeout, asked).await? {
            Ok(rows) => rows,
            // Nothing of ours is installed, or it is from before there were any.
            Err(error) if is_missing(&error) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        *slot = Some(client);
        drop(slot);
        let mut tables: HashMap<u32, Vec<Watch>> = HashMap::new();
        for row in rows {
            let (topic, oid): (String, u32) = (row.try_get(0)?, row.try_get(1)?);
            let columns: Vec<String> = row.try_get(2)?;
            match Template::parse(&topic) {
                Ok(template) => {
                    let columns = columns.into_iter().map(Into::into).collect();
                    tables.entry(oid).or_default().push(Watch { template, columns });
                }
                Err(cause) => {
                    let cause = telemetry::chain(&cause);
                    error!(topic, error = cause, "a guard's topic is not understood");
                }
            }
        }
        Ok(tables)
    }

    /// Whether its transactions did anything that decides who may be in rooms.
    pub(super) fn concern(&self, segment: &Segment) -> bool {
        let known = self.known();
        if known.tables.is_empty() {
            return false;
        }
        !segment.listening
            || segment.transactions.iter().any(|touched| {
                touched.overflowed
                    || touched.tables.iter().any(|oid| known.tables.contains_key(oid))
            })
    }

    /// Has everybody asked about anew whom what these transactions did may concern. They are visible to
    /// new snapshots.
    pub(super) fn doubt(&self, segment: &Segment, hub: &Hub) {
        let known = self.known();
        if known.tables.is_empty() {
            return;
        }
        let mut doubts = known.doubts(&segment.transactions, &segment.changes);
        if !segment.listening {
            // Nobody was in any room when it was read, so nobody knows what it did.
            let watches = known.tables.values().flatten();
            doubts.kinds.extend(watches.map(|watch| &watch.template));
        }
        if doubts.topics.is_empty() && doubts.kinds.is_empty() {
            return;
        }
        let is_meant = |topic: &str| {
            doubts.topics.contains(topic)
                || doubts.kinds.iter().any(|kind| kind.values(topic).is_some())
        };
        let asked = hub.doubt(is_meant);
        metrics::counter!(telemetry::DOUBTED).increment(u64::try_from(asked).unwrap_or(u64::MAX));
    }
}

impl Known {
    fn doubts(&self, transactions: &[Touched], changes: &[Pending]) -> Doubts<'_> {
        let mut doubts = Doubts::default();
        for touched in transactions {
            // Of too many tables not all are known.
            let all: Box<[u32]>;
            let tables = if touched.overflowed {
                all = self.tables.keys().copied().collect();
                &all
            } else {
                &touched.tables
            };
            for (oid, watches) in tables.iter().filter_map(|oid| self.tables.get_key_value(oid)) {
                let is_one = |change: &&Pending| {
                    change.definition.oid == *oid && change.commit.lsn == touched.commit.lsn
                };
                let mut rows = changes.iter().filter(is_one).peekable();
                // Emptied, or its rows were not kept because nobody watched them when they were read.
                if touched.truncated || rows.peek().is_none() {
                    doubts.kinds.extend(watches.iter().map(|watch| &watch.template));
                    continue;
                }
                for (row, watch) in rows.flat_map(|row| watches.iter().map(move |w| (row, w))) {
                    watch.doubt(row, &mut doubts);
                }
            }
        }
        doubts
    }
}

impl Watch {
    fn doubt<'a>(&'a self, row: &Pending, doubts: &mut Doubts<'a>) {
        if doubts.kinds.contains(&&self.template) {
            return;
        }
        let old = row.old_record.as_ref().map(|(_, old)| old);
        for image in [row.record.as_ref(), old].into_iter().flatten() {
            match self.topic(row, image, old) {
                Some(topic) => doubts.topics.extend([topic]),
                None => return doubts.kinds.push(&self.template),
            }
        }
    }

    /// The topic that a row is about; none when it does not say.
    fn topic(&self, row: &Pending, image: &Tuple, old: Option<&Tuple>) -> Option<Box<str>> {
        if self.columns.is_empty() && self.template.columns().next().is_some() {
            return None;
        }
        let place = |column: &str| {
            row.definition.columns.iter().position(|defined| *defined.name == *column)
        };
        let value = |column: &str| {
            let at = place(column);
            let unchanged = |at| old.map_or(Value::Unchanged, |old| old.get(at));
            match at.map(|at| (at, image.get(at))) {
                Some((_, Value::Text(text))) => Given::Text(String::from_utf8_lossy(text)),
                Some((at, Value::Unchanged)) => match unchanged(at) {
                    Value::Text(text) => {
                        Given::Text(Cow::Owned(String::from_utf8_lossy(text).into_owned()))
                    }
                    Value::Null | Value::Unchanged => Given::Unknown,
                },
                // In a key-only image it may not have been sent.
                Some((_, Value::Null)) | None => Given::Unknown,
            }
        };
        self.template.fill(self.columns.iter().map(|column| value(column))).ok().flatten()
    }
}

fn is_missing(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| {
        [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME, SqlState::INSUFFICIENT_PRIVILEGE]
            .contains(code)
    })
}
