//! What the log does not say about a table: its key, types, partitions, and who may read what.
//!
//! In:     table OIDs, a login that may do nothing but connect, the roles a token may name.
//! Out:    [`Table`], asked once and kept until it is forgotten; [`Published`]; whether anything
//!         changed since.
//! Never:  catalogs that PUBLIC may not read; rows of the user's tables.
//! Source: `sql/catalog/`, postgresql.org/docs/17/catalogs.html

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;
use tokio_postgres::types::{Json, ToSql, Type as SqlType};
use tokio_postgres::{Client, Row, Statement};

use crate::change::value::{NESTING_MAX, Type};
use crate::change::{Column, ColumnSet, Relation, ReplicaIdentity, builtin};
use crate::db;
use crate::snapshot::Snapshot;

/// How long an answer may take. Catalog queries take milliseconds; a lock or a dead link does not
/// end by waiting.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the list of published tables is taken for current.
const PUBLISHED_FOR: Duration = Duration::from_secs(1);

/// Tables remembered. When full, all are forgotten: each costs one round trip again.
const TABLES_MAX: usize = 10_000;

/// Types, those within types included, that the columns of one table are taken apart into. Beyond
/// that, values are shown as strings of their text.
const TYPE_NODES_MAX: usize = 10_000;

/// Snapshots remembered: with their interval, how far behind changes may be and still be told from
/// definitions made since.
const SNAPSHOTS_MAX: usize = 64;

/// Snapshots nearer to each other than this are not both kept.
const SNAPSHOTS_INTERVAL: Duration = Duration::from_secs(1);

/// Transactions remembered because they changed definitions.
const DEFINERS_MAX: usize = 1024;

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

/// What kind of relation a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Kind {
    /// An ordinary table, or a partition.
    #[serde(rename = "r")]
    Table,
    /// A partitioned table: its rows are in its partitions.
    #[serde(rename = "p")]
    Partitioned,
    /// Anything else: the log has no rows of it.
    #[serde(other)]
    Other,
}

/// Whether row security lets a role see rows of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowAccess {
    /// Every row: row security is off, or never asked for this role.
    All,
    /// The rows that the policies allow; at least one permissive policy applies to the role.
    ByPolicy,
    /// None: row security is on, and no permissive policy applies to the role.
    None,
}

/// One column as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableColumn {
    /// `pg_attribute.attnum`.
    pub attnum: i16,
    /// Name.
    pub name: Box<str>,
    /// Type OID.
    pub type_oid: u32,
    /// `pg_attribute.attcollation`; 0 for types without one.
    pub collation_oid: u32,
    /// `pg_type.typname`.
    pub type_name: Box<str>,
    /// How its text becomes JSON.
    pub kind: Type,
    /// Computed by the server. The log leaves it out before version 18.
    pub generated: bool,
    /// Which transaction named it so, or changed it otherwise, last; none: before all others.
    pub defined_by: Option<u32>,
}

/// A schema and a table in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
pub struct QualifiedName {
    /// Schema.
    pub schema: Box<str>,
    /// Table.
    pub name: Box<str>,
}

/// A table as the catalog has it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// OID.
    pub oid: u32,
    /// Schema.
    pub schema: Box<str>,
    /// Name.
    pub name: Box<str>,
    /// What kind of relation it is.
    pub kind: Kind,
    /// What its old row images hold.
    pub replica_identity: ReplicaIdentity,
    /// Whether row security is enabled.
    pub row_security: bool,
    /// Columns in attribute order, generated ones too; dropped ones not.
    pub columns: Box<[TableColumn]>,
    /// Columns that are no more, and which transaction dropped them.
    pub dropped: Box<[(i16, Option<u32>)]>,
    /// Names of the primary key's columns in the key's order; empty without one.
    pub primary_key: Box<[Box<str>]>,
    /// For a partition: the topmost table it is part of.
    pub partition_root: Option<QualifiedName>,
    /// Its OID.
    pub partition_root_oid: Option<u32>,
    /// The columns each configured role may select, by role: it has the privilege, and usage of
    /// the schema. A role that does not exist is absent.
    pub readable: BTreeMap<Box<str>, Box<[Box<str>]>>,
    /// What row security has for each configured role; a role that does not exist is absent.
    pub row_access: BTreeMap<Box<str>, RowAccess>,
}

impl Table {
    /// Whether a role may select a column.
    pub fn may_read(&self, role: &str, column: &str) -> bool {
        self.readable.get(role).is_some_and(|columns| columns.iter().any(|name| **name == *column))
    }

    /// The places in this table's log relation that a role may select. By name: the relation has
    /// those of this table.
    pub fn readable_in(&self, role: &str, relation: &Relation) -> ColumnSet {
        let columns = (0..).zip(&relation.columns);
        columns.filter(|(_, column)| self.may_read(role, &column.name)).map(|(at, _)| at).collect()
    }

    /// What row security has for a role; nothing for one that is not configured.
    pub fn row_access(&self, role: &str) -> RowAccess {
        self.row_access.get(role).copied().unwrap_or(RowAccess::None)
    }
}

/// What a column that cannot be told is called: no column has this name, nobody may read it.
const UNTOLD: &str = "";

impl Table {
    /// Which columns of this table, as it is now, those of a definition from the log are.
    ///
    /// Columns keep their number, not their name, and the log has no numbers. `is_before` says of
    /// a transaction whether it committed before the changes that the definition is for: a column
    /// that was defined before them had its name then. The others are told by their order, which
    /// is that of the numbers, if none of them is missing in the log. Otherwise they are not told.
    pub fn columns_of(
        &self,
        logged: &[&str],
        is_before: impl Fn(u32) -> bool,
    ) -> Box<[Option<&TableColumn>]> {
        let before = |xid: Option<u32>| xid.is_none_or(&is_before);
        let settled = |name: &str| {
            let named = self.columns.iter().find(|column| *column.name == *name)?;
            before(named.defined_by).then_some(named)
        };
        let mut found: Box<[_]> = logged.iter().map(|name| settled(name)).collect();
        let moved = self.columns.iter().filter(|column| !before(column.defined_by));
        let dropped = self.dropped.iter().filter(|(_, xid)| !before(*xid));
        let mut moved: Vec<(i16, Option<&TableColumn>)> = moved
            .map(|column| (column.attnum, Some(column)))
            .chain(dropped.map(|(attnum, _)| (*attnum, None)))
            .collect();
        moved.sort_unstable_by_key(|(attnum, _)| *attnum);
        let open: Vec<_> = found.iter_mut().filter(|found| found.is_none()).collect();
        if open.len() == moved.len() {
            for (open, (_, column)) in open.into_iter().zip(moved) {
                *open = column;
            }
        }
        found
    }
}

impl Relation {
    /// A relation as the log describes it, completed from the catalog.
    ///
    /// `columns` are flags (bit 0: part of the replica identity), name and type OID. The log's
    /// word counts for what it has. The catalog may have moved on, or lost the table: then types
    /// that every server has are known still, others are shown as text and called `unknown`; and
    /// the primary key is known only where it is the replica identity.
    pub fn from_message<'a>(
        oid: u32,
        schema: &str,
        table_name: &str,
        replica_identity: u8,
        columns: impl IntoIterator<Item = (u8, &'a str, u32)>,
        table: Option<&Table>,
    ) -> Self {
        let replica_identity = ReplicaIdentity::from_code(replica_identity);
        let columns = columns.into_iter().map(|(flags, name, type_oid)| {
            let same_type = |table: &Table| {
                let column = table.columns.iter().find(|column| column.type_oid == type_oid)?;
                Some((column.type_name.clone(), column.kind.clone()))
            };
            let (type_name, kind) = builtin(type_oid)
                .or_else(|| table.and_then(same_type))
                .unwrap_or_else(|| ("unknown".into(), Type::Text));
            let in_identity = flags & 1 == 1;
            let in_primary_key = match replica_identity {
                ReplicaIdentity::Default => in_identity,
                ReplicaIdentity::Full | ReplicaIdentity::Index | ReplicaIdentity::Nothing => {
                    table.is_some_and(|table| table.primary_key.iter().any(|key| **key == *name))
                }
            };
            let attnum = None;
            Column {
                name: name.into(),
                attnum,
                type_oid,
                type_name,
                kind,
                in_identity,
                in_primary_key,
            }
        });
        Self {
            oid,
            // On the wire, empty stands for this schema.
            schema: if schema.is_empty() { "pg_catalog" } else { schema }.into(),
            table: table_name.into(),
            replica_identity,
            columns: columns.collect(),
        }
    }
}

impl Relation {
    /// The same with each column called what it is called now, and its number; `columns` are those
    /// of [`Table::columns_of`]. One that cannot be told is nobody's to read.
    #[must_use]
    pub fn named(mut self, columns: &[Option<&TableColumn>], table: &Table) -> Self {
        let places = self.columns.iter_mut().zip(columns);
        for (logged, now) in places {
            logged.name = now.map_or(UNTOLD, |now| &now.name).into();
            logged.attnum = now.map(|now| now.attnum);
            if self.replica_identity != ReplicaIdentity::Default {
                logged.in_primary_key = table.primary_key.contains(&logged.name);
            }
        }
        self
    }
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

/// What is known of the order of definitions and changes.
#[derive(Default)]
struct Past {
    /// What our answers saw, oldest first, none of them much younger than the one before.
    snapshots: VecDeque<(Instant, Snapshot)>,
    /// Transactions that changed definitions and were decoded.
    definers: VecDeque<u32>,
}

impl Past {
    fn keep(&mut self, snapshot: Snapshot) {
        let (now, count) = (Instant::now(), self.snapshots.len());
        let last_but_one = count.checked_sub(2).and_then(|place| self.snapshots.get(place));
        if last_but_one.is_some_and(|(at, _)| now.duration_since(*at) < SNAPSHOTS_INTERVAL) {
            self.snapshots.pop_back();
        } else if count >= SNAPSHOTS_MAX {
            self.snapshots.pop_front();
        }
        self.snapshots.push_back((now, snapshot));
    }

    fn is_before(&self, xid: u32, changes: &[u32]) -> bool {
        let between = |snapshot: &Snapshot| {
            snapshot.has_ended(xid) && !changes.iter().any(|change| snapshot.sees(*change))
        };
        self.definers.contains(&xid) || self.snapshots.iter().any(|(_, snapshot)| between(snapshot))
    }
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
        let mut known = self.known();
        for xid in xids {
            if known.past.definers.len() >= DEFINERS_MAX {
                known.past.definers.pop_front();
            }
            known.past.definers.push_back(*xid);
        }
    }

    /// The log is read anew from an earlier place: no transaction was decoded before.
    pub fn forget_definers(&self) {
        self.known().past.definers.clear();
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
    /// [`Relation`] too) may be out of date. The first call compares with the time of the first
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
            let table = include_str!("../sql/catalog/table.sql");
            let table = client.prepare_typed(table, &[SqlType::OID, SqlType::TEXT_ARRAY]).await?;
            let published = include_str!("../sql/catalog/published.sql");
            let published = client.prepare_typed(published, &[SqlType::TEXT_ARRAY]).await?;
            let beside = include_str!("../sql/catalog/beside.sql");
            let beside =
                client.prepare_typed(beside, &[SqlType::TEXT_ARRAY, SqlType::TEXT]).await?;
            let fingerprint =
                client.prepare(include_str!("../sql/catalog/fingerprint.sql")).await?;
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

/// What `sql/catalog/table.sql` returns.
#[derive(Deserialize)]
struct Definition {
    schema: Box<str>,
    name: Box<str>,
    kind: Kind,
    replica_identity: char,
    row_security: bool,
    root: Option<RootDefinition>,
    primary_key: Box<[Box<str>]>,
    columns: Vec<ColumnDefinition>,
    dropped: Vec<DroppedDefinition>,
    creator: Option<u32>,
    snapshot: String,
    types: Vec<TypeDefinition>,
    roles: Vec<RoleDefinition>,
}

#[derive(Deserialize)]
struct DroppedDefinition {
    attnum: i16,
    xid: u32,
}

#[derive(Deserialize)]
struct RootDefinition {
    oid: u32,
    #[serde(flatten)]
    name: QualifiedName,
}

#[derive(Deserialize)]
struct ColumnDefinition {
    attnum: i16,
    name: Box<str>,
    r#type: u32,
    collation: u32,
    generated: bool,
    xid: u32,
}

#[derive(Deserialize)]
struct TypeDefinition {
    oid: u32,
    name: Box<str>,
    base: Option<u32>,
    element: Option<u32>,
    delimiter: char,
    attributes: Option<Vec<AttributeDefinition>>,
}

#[derive(Deserialize)]
struct AttributeDefinition {
    name: Box<str>,
    r#type: u32,
}

#[derive(Deserialize)]
struct RoleDefinition {
    name: Box<str>,
    columns: Box<[Box<str>]>,
    policy: bool,
    bypass: bool,
}

impl Definition {
    fn into_table(self, oid: u32, seen: &Snapshot) -> Table {
        // No change can be older than its table. Ids come again: one that this answer does not see
        // is not from now.
        let creator = self.creator;
        let definer = |xid: u32| Some(xid).filter(|xid| Some(*xid) != creator && seen.sees(*xid));
        let types: HashMap<u32, &TypeDefinition> =
            self.types.iter().map(|definition| (definition.oid, definition)).collect();
        let mut nodes = TYPE_NODES_MAX;
        let columns = self.columns.into_iter().map(|column| TableColumn {
            attnum: column.attnum,
            type_oid: column.r#type,
            collation_oid: column.collation,
            type_name: types.get(&column.r#type).map_or("unknown", |found| &found.name).into(),
            kind: resolve(column.r#type, &types, 0, &mut nodes),
            name: column.name,
            generated: column.generated,
            defined_by: definer(column.xid),
        });
        let columns = columns.collect();
        let row_access = self.roles.iter().map(|role| {
            let access = match (role.bypass, role.policy) {
                (true, _) => RowAccess::All,
                (false, true) => RowAccess::ByPolicy,
                (false, false) => RowAccess::None,
            };
            (role.name.clone(), access)
        });
        Table {
            oid,
            schema: self.schema,
            name: self.name,
            kind: self.kind,
            replica_identity: u8::try_from(self.replica_identity)
                .map_or(ReplicaIdentity::Nothing, ReplicaIdentity::from_code),
            row_security: self.row_security,
            columns,
            dropped: self.dropped.iter().map(|d| (d.attnum, definer(d.xid))).collect(),
            primary_key: self.primary_key,
            partition_root_oid: self.root.as_ref().map(|root| root.oid),
            partition_root: self.root.map(|root| root.name),
            row_access: row_access.collect(),
            readable: self.roles.into_iter().map(|role| (role.name, role.columns)).collect(),
        }
    }
}

/// A type by its OID. `nodes` is how many more may be made: composites of composites can grow
/// without bound in few lines of SQL.
fn resolve(
    oid: u32,
    types: &HashMap<u32, &TypeDefinition>,
    depth: usize,
    nodes: &mut usize,
) -> Type {
    let Some(left) = nodes.checked_sub(1).filter(|_| depth < NESTING_MAX) else {
        return Type::Text;
    };
    *nodes = left;
    if let Some((_, kind)) = builtin(oid) {
        return kind;
    }
    let Some(definition) = types.get(&oid) else { return Type::Text };
    if let Some(base) = definition.base {
        return resolve(base, types, depth + 1, nodes);
    }
    if let Some(element) = definition.element {
        return Type::Array {
            element: Box::new(resolve(element, types, depth + 1, nodes)),
            delimiter: u8::try_from(definition.delimiter).unwrap_or(b','),
        };
    }
    let Some(attributes) = &definition.attributes else { return Type::Text };
    let attributes = attributes.iter().map(|attribute| {
        (attribute.name.clone(), resolve(attribute.r#type, types, depth + 1, nodes))
    });
    Type::Composite(attributes.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn composite(oid: u32, attributes: &[u32]) -> TypeDefinition {
        let attributes = attributes.iter().zip('a'..);
        TypeDefinition {
            oid,
            name: format!("type_{oid}").into(),
            base: None,
            element: None,
            delimiter: ',',
            attributes: Some(
                attributes
                    .map(|(&oid, name)| AttributeDefinition {
                        name: name.to_string().into(),
                        r#type: oid,
                    })
                    .collect(),
            ),
        }
    }

    #[test]
    fn columns_are_told_by_name_or_by_order_or_not_at_all() {
        let column = |attnum: i16, name: &str, defined_by| TableColumn {
            attnum,
            name: name.into(),
            type_oid: 25,
            collation_oid: 100,
            type_name: "text".into(),
            kind: Type::Text,
            generated: false,
            defined_by,
        };
        let check = |columns: &[TableColumn], dropped: &[(i16, Option<u32>)], logged: &[&str]| {
            let table = Table {
                oid: 1,
                schema: "public".into(),
                name: "t".into(),
                kind: Kind::Table,
                replica_identity: ReplicaIdentity::Default,
                row_security: false,
                columns: columns.into(),
                dropped: dropped.into(),
                primary_key: Box::default(),
                partition_root: None,
                partition_root_oid: None,
                readable: BTreeMap::new(),
                row_access: BTreeMap::new(),
            };
            let found = table.columns_of(logged, |xid| xid < 100);
            found.iter().map(|found| found.map(|column| column.attnum)).collect::<Vec<_>>()
        };
        let (id, a, b) =
            (column(1, "id", None), column(2, "a", Some(100)), column(3, "b", Some(99)));
        let all = [id.clone(), a.clone(), b.clone()];
        assert_eq!(check(&all, &[], &["id", "a", "b"]), [Some(1), Some(2), Some(3)]);
        assert_eq!(check(&all, &[], &["id", "x", "b"]), [Some(1), Some(2), Some(3)], "renamed");
        assert_eq!(check(&all, &[], &["id", "b"]), [Some(1), Some(3)], "added");
        let swapped = [id.clone(), a, column(3, "b", Some(100))];
        assert_eq!(check(&swapped, &[], &["id", "b", "a"]), [Some(1), Some(2), Some(3)]);
        assert_eq!(check(&swapped, &[], &["id", "b"]), [Some(1), None], "which of them?");
        let gone = [id, column(4, "a", Some(100))];
        assert_eq!(check(&gone, &[(2, Some(100))], &["id", "a"]), [Some(1), None]);
        assert_eq!(check(&gone, &[(2, Some(99))], &["id", "a"]), [Some(1), Some(4)]);
        assert_eq!(check(&gone, &[(2, Some(100))], &["id", "a", "c"]), [Some(1), None, Some(4)]);
    }

    #[test]
    fn a_schema_cannot_grow_types_without_bound() {
        // Each of 30 types holds four of the next: 4^30 values in the innermost.
        let definitions: Vec<_> =
            (0..30).map(|at| composite(20_000 + at, &[20_001 + at; 4])).collect();
        let types = definitions.iter().map(|definition| (definition.oid, definition)).collect();
        let mut nodes = TYPE_NODES_MAX;
        let kind = resolve(20_000, &types, 0, &mut nodes);
        assert!(matches!(kind, Type::Composite(_)));
        assert_eq!(nodes, 0);
    }

    #[test]
    fn a_type_that_holds_itself_ends() {
        let definition = composite(20_000, &[20_000]);
        let types = HashMap::from([(20_000, &definition)]);
        resolve(20_000, &types, 0, &mut 1000);
    }

    #[test]
    fn without_the_catalog_the_log_is_believed() {
        let columns = [(1, "id", 20), (0, "mood", 99_999), (0, "tags", 1009)];
        let relation = Relation::from_message(7, "", "t", b'd', columns, None);
        assert_eq!(&*relation.schema, "pg_catalog");
        let shown: Vec<_> = relation
            .columns
            .iter()
            .map(|c| (&*c.name, &*c.type_name, c.in_identity, c.in_primary_key))
            .collect();
        assert_eq!(
            shown,
            [
                ("id", "int8", true, true),
                ("mood", "unknown", false, false),
                ("tags", "_text", false, false)
            ]
        );
        let full = Relation::from_message(7, "", "t", b'f', [(1, "id", 20)], None);
        assert!(full.columns[0].in_identity && !full.columns[0].in_primary_key);
    }
}
