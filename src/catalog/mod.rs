//! What the log does not say about a table: its key, types, partitions, and who may read what.
//!
//! In:     table OIDs, a login that may do nothing but connect, the roles a token may name.
//! Out:    [`Table`], asked once and kept until it is forgotten; [`Published`]; whether anything
//!         changed since.
//! Never:  catalogs that PUBLIC may not read; rows of the user's tables.
//! Source: `sql/catalog/`, postgresql.org/docs/17/catalogs.html

mod definition;
mod past;
mod table;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::types::{Json, ToSql, Type as SqlType};
use tokio_postgres::{Client, Row, Statement};

use crate::db;
use crate::snapshot::Snapshot;
use definition::Definition;
use past::Past;

pub use table::{Kind, QualifiedName, RowAccess, Table, TableColumn};

/// How long an answer may take. Catalog queries take milliseconds; a lock or a dead link does not
/// end by waiting.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the list of published tables is taken for current.
const PUBLISHED_FOR: Duration = Duration::from_secs(1);

/// Tables remembered. When full, all are forgotten: each costs one round trip again.
const TABLES_MAX: usize = 10_000;

/// Why the catalog gave no answer. Ask again later, and decide nothing meanwhile.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no connection.
    #[error("cannot reach the catalog")]
    Connect(#[source] db::Error),
    /// The server refused or broke off.
    #[error("the catalog query failed")]
    Query(#[source] tokio_postgres::Error),
    /// What the server says it saw is not a snapshot.
    #[error("the server's snapshot is none: {0}")]
    Snapshot(String),
    /// No answer in time; the connection was given up.
    #[error("the catalog did not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Timeout,
}

/// A table in one of our publications.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// OID.
    pub oid: u32,
    /// Schema.
    pub schema: Box<str>,
    /// Name.
    pub name: Box<str>,
    /// A partitioned table whose changes come under the names of its partitions.
    pub by_partition: bool,
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog").finish_non_exhaustive()
    }
}

/// The catalog, asked over one connection of its own.
pub struct Catalog {
    login: db::Login,
    roles: Vec<String>,
    publications: Vec<String>,
    /// Publication that is read for broadcasts alone; empty: none.
    messages_publication: String,
    /// Made at the first question and remade when lost. Questions wait for each other here.
    connection: tokio::sync::Mutex<Option<Connection>>,
    known: Mutex<Known>,
}

/// What was answered, as far as it still holds.
#[derive(Default)]
struct Known {
    tables: HashMap<u32, Arc<Table>>,
    published: Option<(Instant, Arc<[Published]>)>,
    beside: Option<Arc<HashSet<u32>>>,
    fingerprint: Option<i64>,
    /// Counts what was forgotten, so that an answer on its way meanwhile is not remembered.
    forgotten: u64,
    past: Past,
}

struct Connection {
    client: Client,
    table: Statement,
    published: Statement,
    beside: Statement,
    fingerprint: Statement,
}

impl Catalog {
    /// Asks as `login` about the tables of `publications`, and about what each of `roles` may do.
    pub fn new(login: db::Login, roles: &[String], publications: &[String]) -> Self {
        Self {
            login,
            roles: roles.to_vec(),
            publications: publications.to_vec(),
            messages_publication: String::new(),
            connection: tokio::sync::Mutex::default(),
            known: Mutex::default(),
        }
    }

    /// The slot carries this publication too, but its tables are not shown as row changes.
    #[must_use]
    pub fn beside_messages(mut self, publication: &str) -> Self {
        publication.clone_into(&mut self.messages_publication);
        self
    }

    /// A table by its OID; `None` when it was dropped meanwhile.
    ///
    /// # Errors
    /// Any [`Error`]: ask again later.
    pub async fn table(&self, oid: u32) -> Result<Option<Arc<Table>>, Error> {
        if let Some(table) = self.known().tables.get(&oid) {
            return Ok(Some(Arc::clone(table)));
        }
        let mut connection = self.connection.lock().await;
        let forgotten = {
            let known = self.known();
            if let Some(table) = known.tables.get(&oid) {
                return Ok(Some(Arc::clone(table))); // somebody else had asked
            }
            known.forgotten
        };
        self.ask_table(&mut connection, oid, forgotten).await
    }

    /// As [`Self::table`], as of now, whatever is known.
    ///
    /// # Errors
    /// Any [`Error`]: ask again later.
    pub async fn table_now(&self, oid: u32) -> Result<Option<Arc<Table>>, Error> {
        let mut connection = self.connection.lock().await;
        let forgotten = self.known().forgotten;
        self.ask_table(&mut connection, oid, forgotten).await
    }

    /// Fetches a table; it is remembered unless something was forgotten since `forgotten`.
    async fn ask_table(
        &self,
        connection: &mut Option<Connection>,
        oid: u32,
        forgotten: u64,
    ) -> Result<Option<Arc<Table>>, Error> {
        let parameters: [&(dyn ToSql + Sync); 2] = [&oid, &self.roles];
        let rows = self.ask(connection, |c| &c.table, &parameters).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let Json(definition) = row.try_get::<_, Json<Definition>>(0).map_err(Error::Query)?;
        let seen: Snapshot = definition
            .snapshot
            .parse()
            .map_err(|_| Error::Snapshot(definition.snapshot.clone()))?;
        let table = Arc::new(definition.into_table(oid, &seen));
        let mut known = self.known();
        known.past.keep(seen);
        if let Some(same) = known.tables.get(&oid).filter(|known| **known == table) {
            return Ok(Some(Arc::clone(same))); // what was made of it stays good
        }
        if known.forgotten == forgotten {
            if known.tables.len() >= TABLES_MAX {
                known.tables.clear();
            }
            known.tables.insert(oid, Arc::clone(&table));
        }
        Ok(Some(table))
    }

    /// Takes note of transactions that changed definitions: the log has what they changed before
    /// whatever is asked about from now on.
    pub fn observe_definers(&self, xids: &[u32]) {
        self.known().past.observe(xids);
    }

    /// The log is read anew from an earlier place: no transaction was decoded before.
    pub fn forget_definers(&self) {
        self.known().past.forget();
    }

    /// The log is read from where every transaction before `horizon` had ended.
    pub fn begin_after(&self, horizon: Option<u32>) {
        self.known().past.begin_after(horizon);
    }

    /// Reads the log again that `other` reads: knows which definitions it saw, and when.
    pub fn look_back(&self, other: &Self) {
        let mut before = Past::default();
        before.share(&other.known().past);
        self.known().past.share(&before);
    }

    /// Whether the transaction `xid` certainly committed before every one of `changes`, or before
    /// these wrote to a table that it defined: that is locked against them.
    pub fn is_before(&self, xid: u32, changes: &[u32]) -> bool {
        self.known().past.is_before(xid, changes)
    }

    /// Asks again about a table, because the log says that it changed.
    pub fn forget(&self, oid: u32) {
        let mut known = self.known();
        known.tables.remove(&oid);
        known.beside = None;
        known.forgotten = known.forgotten.wrapping_add(1);
    }

    /// Asks again about every table, because the catalog changed in a way that no table tells.
    pub fn forget_all(&self) {
        let mut known = self.known();
        known.tables.clear();
        known.published = None;
        known.beside = None;
        known.forgotten = known.forgotten.wrapping_add(1);
    }

    /// Grows whenever something is forgotten: what was made of earlier answers may not hold.
    pub fn forgotten(&self) -> u64 {
        self.known().forgotten
    }

    /// The tables in our publications, as of at most a second ago, by OID.
    ///
    /// # Errors
    /// Any [`Error`]: ask again later.
    pub async fn published(&self) -> Result<Arc<[Published]>, Error> {
        if let Some(published) = self.recently_published() {
            return Ok(published);
        }
        let mut connection = self.connection.lock().await;
        if let Some(published) = self.recently_published() {
            return Ok(published); // somebody else had asked
        }
        self.ask_published(&mut connection).await
    }

    /// The tables in our publications now, by OID.
    ///
    /// # Errors
    /// Any [`Error`]: ask again later.
    pub async fn published_now(&self) -> Result<Arc<[Published]>, Error> {
        let mut connection = self.connection.lock().await;
        self.ask_published(&mut connection).await
    }

    /// The tables whose changes the slot carries for broadcasts alone: they are not to be shown.
    ///
    /// # Errors
    /// Any [`Error`]: ask again later.
    pub async fn beside(&self) -> Result<Arc<HashSet<u32>>, Error> {
        if self.messages_publication.is_empty() {
            return Ok(Arc::default());
        }
        if let Some(beside) = &self.known().beside {
            return Ok(Arc::clone(beside));
        }
        let mut connection = self.connection.lock().await;
        let forgotten = self.known().forgotten;
        let parameters: [&(dyn ToSql + Sync); 2] = [&self.publications, &self.messages_publication];
        let rows = self.ask(&mut connection, |c| &c.beside, &parameters).await?;
        let beside = rows.iter().map(|row| row.try_get(0)).collect::<Result<HashSet<u32>, _>>();
        let beside = Arc::new(beside.map_err(Error::Query)?);
        let mut known = self.known();
        if known.forgotten == forgotten {
            known.beside = Some(Arc::clone(&beside));
        }
        Ok(beside)
    }

    /// Whether policies, functions, grants, composite types, roles, memberships or settings changed
    /// since the last call; if so, every table was forgotten, and what was made of them (each
    /// [`crate::change::Relation`] too) may be out of date. The first call compares with the time of the first
    /// question. Costs the server a millisecond or a few; sees changes as they commit.
    ///
    /// # Errors
    /// Any [`Error`]: what is remembered may be out of date, ask again soon.
    pub async fn changed(&self) -> Result<bool, Error> {
        let mut connection = self.connection.lock().await;
        let rows = self.ask(&mut connection, |c| &c.fingerprint, &[]).await?;
        let now = fingerprint(&rows).map_err(Error::Query)?;
        let snapshot: Option<&str> =
            rows.first().map(|row| row.try_get(1)).transpose().map_err(Error::Query)?;
        let mut known = self.known();
        if let Some(seen) = snapshot.and_then(|text| text.parse().ok()) {
            known.past.keep(seen);
        }
        let before = known.fingerprint.replace(now);
        let changed = before.is_none_or(|before| before != now);
        if changed {
            known.tables.clear();
            known.published = None;
            known.beside = None;
            known.forgotten = known.forgotten.wrapping_add(1);
        }
        Ok(changed)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("no code panics while it holds this lock")
    }

    fn recently_published(&self) -> Option<Arc<[Published]>> {
        let known = self.known();
        let (asked, published) = known.published.as_ref()?;
        (asked.elapsed() < PUBLISHED_FOR).then(|| Arc::clone(published))
    }

    async fn ask_published(
        &self,
        connection: &mut Option<Connection>,
    ) -> Result<Arc<[Published]>, Error> {
        let asked = Instant::now();
        let rows = self.ask(connection, |c| &c.published, &[&self.publications]).await?;
        let published = rows.iter().map(|row| {
            let (oid, schema, name) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            Ok(Published { oid, schema, name, by_partition: row.try_get(3)? })
        });
        let published: Arc<[Published]> =
            published.collect::<Result<_, _>>().map_err(Error::Query)?;
        self.known().published = Some((asked, Arc::clone(&published)));
        Ok(published)
    }

    /// Runs one statement, once more when the first attempt fails: a connection may have been
    /// lost while nobody used it, a role dropped while its privileges were read.
    async fn ask(
        &self,
        connection: &mut Option<Connection>,
        statement: fn(&Connection) -> &Statement,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        let mut attempts = 2;
        loop {
            attempts -= 1;
            let current = match connection.take() {
                Some(current) if !current.client.is_closed() => current,
                Some(_) | None => tokio::time::timeout(2 * ANSWER_TIMEOUT, self.connect())
                    .await
                    .map_err(|_| Error::Timeout)??,
            };
            // Taken out until the answer is here: whoever stops waiting leaves no connection
            // behind that is busy with an old question.
            let answer = current.client.query(statement(&current), parameters);
            match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
                Err(_) => return Err(Error::Timeout),
                Ok(Ok(rows)) => {
                    *connection = Some(current);
                    return Ok(rows);
                }
                Ok(Err(error)) => {
                    if !current.client.is_closed() {
                        *connection = Some(current);
                    }
                    if attempts == 0 {
                        return Err(Error::Query(error));
                    }
                }
            }
        }
    }

    async fn connect(&self) -> Result<Connection, Error> {
        let client = self.login.connect("walcast catalog").await.map_err(Error::Connect)?;
        let prepared = async {
            // Compiling these plans takes a hundred times as long as running them. No schema that
            // somebody may create operators in is searched.
            let settings = "set jit = off; set statement_timeout = '10s'; set search_path = ''";
            client.batch_execute(settings).await?;
            let table = include_str!("../../sql/catalog/table.sql");
            let table = client.prepare_typed(table, &[SqlType::OID, SqlType::TEXT_ARRAY]).await?;
            let published = include_str!("../../sql/catalog/published.sql");
            let published = client.prepare_typed(published, &[SqlType::TEXT_ARRAY]).await?;
            let beside = include_str!("../../sql/catalog/beside.sql");
            let beside =
                client.prepare_typed(beside, &[SqlType::TEXT_ARRAY, SqlType::TEXT]).await?;
            let fingerprint =
                client.prepare(include_str!("../../sql/catalog/fingerprint.sql")).await?;
            Ok((table, published, beside, fingerprint))
        };
        let (table, published, beside, statement) = prepared.await.map_err(Error::Query)?;
        if self.known().fingerprint.is_none() {
            // Before the first answer that is remembered, so that no change after it is missed.
            let rows = client.query(&statement, &[]).await.map_err(Error::Query)?;
            self.known().fingerprint = Some(fingerprint(&rows).map_err(Error::Query)?);
        }
        Ok(Connection { client, table, published, beside, fingerprint: statement })
    }
}

fn fingerprint(rows: &[Row]) -> Result<i64, tokio_postgres::Error> {
    rows.first().map_or(Ok(0), |row| row.try_get(0))
}
