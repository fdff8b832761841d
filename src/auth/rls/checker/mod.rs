//! One role's connection: asks Postgres, as each user of the role, about the images of a batch.
//!
//! In:     a [`Job`]: the batch, the questions of one role, the transactions that must be visible.
//! Out:    an [`Outcome`]: every answer, or the reason to ask again.
//! Never:  two roles on one connection (plans remember the role they were made for); an answer
//!         from a snapshot that lacks a decoded transaction, or from policies that have changed.

mod call;
mod past;
mod sheet;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, SimpleQueryMessage, Statement};

use super::history::{Held, History};
use super::statement::{Facts, Open, literal};
use super::touched::Touched;
use super::{Answer, Error, Question, Visibility};
use crate::change::Change;
use crate::db::Login;
use crate::snapshot::Snapshot;
use call::{Input, chunk_len};
use sheet::{Item, Sheet, Side, at, image_of, pairs};

/// What a role is asked about one batch.
pub(super) struct Job<'a> {
    pub(super) batch: &'a [Change],
    pub(super) questions: &'a [&'a Question],
    /// Decoded transactions that the answering snapshot must see.
    pub(super) xids: &'a [u32],
    pub(super) touched: &'a Mutex<Touched>,
    pub(super) history: &'a History,
    /// See [`super::Authorizer::of_the_past`].
    pub(super) of_the_past: bool,
    /// When a table was last forgotten; see [`super::Authorizer::forget`].
    pub(super) forgotten: &'a (dyn Fn(u32) -> u64 + Sync),
    /// For one user's policies.
    pub(super) timeout: Duration,
    /// For all of them; users not asked by then have failed.
    pub(super) deadline: Instant,
}

/// What the next attempt must do otherwise, because of how the last one ended.
#[derive(Debug, Default)]
pub(super) struct Lessons {
    /// One user in each call: in a larger one the server did not even stop when told to.
    alone: bool,
    /// Questions at which it did not stop when asked alone.
    hung: HashSet<usize>,
    /// Tables about which Postgres would not be asked: how often, and its words the last time.
    broken: HashMap<u32, (u32, String)>,
}

impl Lessons {
    /// Takes note of how asking about a table failed. The first time it may be that the catalog
    /// changed meanwhile; a table that fails again on a new connection shows nothing to anybody
    /// rather than holding back all others.
    fn learn(&mut self, table: u32, error: Error) -> Error {
        let Error::Unanswered(source) = &error else { return error };
        let database = source.downcast_ref::<tokio_postgres::Error>();
        if let Some(database) = database.and_then(tokio_postgres::Error::as_db_error) {
            let class = database.code().code().get(..2).unwrap_or_default();
            if ["0A", "22", "2F", "38", "39", "42", "54", "P0"].contains(&class) {
                let (times, message) = self.broken.entry(table).or_default();
                *times += 1;
                database.message().clone_into(message);
            }
        }
        error
    }

    fn broken(&self, table: u32) -> Option<&str> {
        self.broken.get(&table).filter(|(times, _)| *times > 1).map(|(_, message)| &**message)
    }
}

/// How an attempt ended.
pub(super) enum Outcome {
    /// One answer a question.
    Answered(Vec<Answer>),
    /// Some decoded transaction is not visible yet.
    NotVisible(Snapshot),
    /// The catalog changed while we asked: ask again.
    CatalogChanged,
    /// The role's own rights changed: ask again on a new connection.
    RoleChanged,
    /// Postgres refuses the role, for every user of it.
    Refused(String),
}

/// Why a table needs no question.
enum Rule {
    /// Answered without asking, the same for every user.
    Fixed(Visibility, Option<String>),
    /// Each row is asked about.
    Asked,
}

struct Table {
    text: String,
    facts: Facts,
    rule: Rule,
    stamp: u64,
    /// By what is left open, and whether they tell what they read.
    functions: HashMap<(Open, bool), Statement>,
    row_function: Option<Statement>,
    /// Names of all functions made, to drop them with the table.
    names: Vec<String>,
}

/// A connection that serves one role.
pub(super) struct Checker {
    client: Client,
    login: Login,
    cancel: tokio_postgres::CancelToken,
    role: Arc<str>,
    facts: Statement,
    untold: Statement,
    publications: Arc<[String]>,
    tables: HashMap<u32, Table>,
    made: u64,
}

/// What was read for each user; none: not known.
type Reads = HashMap<usize, Option<BTreeSet<u32>>>;

/// What happens once a statement has failed.
pub(super) fn unanswered(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Unanswered(error.into())
}

/// A connection on which everything that an answer could depend on is pinned.
pub(super) async fn connect(
    login: &Login,
    name: &str,
    search_path: &str,
    timeout: Duration,
) -> Result<Client, Error> {
    let client = login.connect(name).await.map_err(unanswered)?;
    let timeout_ms = timeout.as_millis().to_string();
    // A lock that is not granted is nobody's answer: it must be told from a slow policy.
    let lock_timeout_ms = (timeout.as_millis() * 3 / 4).max(1).to_string();
    // Temporary objects are searched first unless the path names them.
    let search_path = format!("{search_path}, pg_temp");
    let pinned: [(&str, &str); 12] = [
        ("search_path", &search_path),
        ("statement_timeout", &timeout_ms),
        ("lock_timeout", &lock_timeout_ms),
        ("row_security", "on"),
        ("standard_conforming_strings", "on"),
        ("datestyle", "ISO, YMD"),
        ("intervalstyle", "postgres"),
        ("extra_float_digits", "3"),
        ("bytea_output", "hex"),
        ("lc_monetary", "C"),
        ("jit", "off"),
        // The login itself may have no right to the types that its functions name.
        ("check_function_bodies", "off"),
    ];
    let set = "select pg_catalog.set_config($1, $2, false)";
    let set = client.prepare(set).await.map_err(unanswered)?;
    let set = pinned.iter().map(async |(name, value)| client.query(&set, &[name, value]).await);
    futures_util::future::try_join_all(set).await.map_err(unanswered)?;
    Ok(client)
}

/// A statement with the part that it shares with others.
fn whole(sql: &str) -> String {
    sql.replace(":logged", include_str!("../../../../sql/rls_logged.sql").trim_end())
}

impl Checker {
    pub(super) async fn connect(
        login: &Login,
        role: Arc<str>,
        publications: Arc<[String]>,
        search_path: &str,
        timeout: Duration,
    ) -> Result<Self, Error> {
        let client = connect(login, "walcast check", search_path, timeout).await?;
        let facts = whole(include_str!("../../../../sql/rls_table.sql"));
        let facts = client.prepare_typed(&facts, &[Type::OID, Type::TEXT_ARRAY]);
        let facts = facts.await.map_err(unanswered)?;
        let untold = whole(include_str!("../../../../sql/rls_untold.sql"));
        let untold = client.prepare_typed(&untold, &[Type::OID_ARRAY, Type::TEXT_ARRAY]);
        let untold = untold.await.map_err(unanswered)?;
        let cancel = client.cancel_token();
        let (login, tables) = (login.clone(), HashMap::new());
        Ok(Self { client, login, cancel, role, facts, untold, publications, tables, made: 0 })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Asks all of a job's questions in one snapshot.
    ///
    /// # Errors
    /// No answer from Postgres: drop this connection and ask again.
    pub(super) async fn ask(
        &mut self,
        job: &Job<'_>,
        lessons: &mut Lessons,
    ) -> Result<Outcome, Error> {
        let mut groups: BTreeMap<(u32, Vec<u32>), Vec<usize>> = BTreeMap::new();
        for (number, question) in job.questions.iter().enumerate() {
            let mut by_table: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
            for &change in &question.changes {
                if let Some(table) = at(job.batch, change).map(|change| change.relation.oid) {
                    by_table.entry(table).or_default().push(change);
                }
            }
            for (table, changes) in by_table {
                groups.entry((table, changes)).or_default().push(number);
            }
        }
        let tables: BTreeSet<u32> = groups.keys().map(|(table, _)| *table).collect();
        for &table in &tables {
            match self.compile(table, (job.forgotten)(table)).await? {
                Ok(()) => {}
                Err(outcome) => return Ok(outcome),
            }
        }
        let mut sheet = Sheet {
            job,
            answers: job.questions.iter().map(|question| Answer::empty(question)).collect(),
            subjects: job.questions.iter().map(|question| subject(&question.claims)).collect(),
        };
        let mut rounds = Vec::new();
        for ((table, changes), users) in groups {
            if let Some(message) = lessons.broken(table) {
                for (user, change) in pairs(&users, &changes) {
                    sheet.set(user, change, Side::New, Visibility::Failed);
                    sheet.set(user, change, Side::Old, Visibility::Failed);
                    sheet.fail(user, message);
                }
            } else if let Some(items) = self.fixed_or_items(&mut sheet, table, &changes, &users) {
                let made = self.make_functions(table, &items).await;
                made.map_err(|error| lessons.learn(table, error))?;
                rounds.push((table, items, users));
            }
        }
        if !rounds.is_empty() {
            let snapshot = match self.begin(None).await? {
                Ok(snapshot) => snapshot,
                Err(refused) => return Ok(refused),
            };
            if !job.xids.iter().all(|xid| snapshot.sees(*xid)) {
                self.end().await?;
                return Ok(Outcome::NotVisible(snapshot));
            }
            for (table, items, users) in &rounds {
                let asked = async {
                    let all: Vec<&Item> = items.iter().collect();
                    self.ask_images(&mut sheet, lessons, *table, &all, users, false).await?;
                    self.find_undecided(&mut sheet, lessons, *table, items, users).await
                };
                asked.await.map_err(|error| lessons.learn(*table, error))?;
            }
            for (table, items, users) in &rounds {
                let asked =
                    self.ask_the_past(&mut sheet, lessons, *table, items, users, &snapshot).await;
                asked.map_err(|error| lessons.learn(*table, error))?;
            }
        }
        match self.verify(&tables, job.xids).await? {
            Some(outcome) => Ok(outcome),
            None => Ok(Outcome::Answered(sheet.answers)),
        }
    }

    /// Begins a read-only transaction as the role, in a new snapshot or in an imported one; an
    /// open one is given up.
    async fn begin(&self, import: Option<&Held>) -> Result<Result<Snapshot, Outcome>, Error> {
        let import = import.map_or(String::new(), |held| {
            format!("set transaction snapshot {};", literal(&held.id))
        });
        let begin = format!(
            "rollback;
            begin isolation level repeatable read read only;
            {import}
            select pg_catalog.set_config('role', {}, true);
            select current_user, pg_catalog.pg_current_snapshot()::text",
            literal(&self.role)
        );
        let messages = match self.client.simple_query(&begin).await {
            Ok(messages) => messages,
            Err(error) => {
                let code = error.code().cloned();
                let message = error.as_db_error().map(|error| error.message().to_owned());
                // Which of the statements it was is told by what only `set role` answers with.
                let refused = code.is_some_and(|code| {
                    code == SqlState::INSUFFICIENT_PRIVILEGE
                        || (import.is_empty() && code == SqlState::INVALID_PARAMETER_VALUE)
                });
                let Some(message) = message.filter(|_| refused) else {
                    return Err(unanswered(error));
                };
                self.end().await?;
                return Ok(Err(Outcome::Refused(message)));
            }
        };
        let last = messages.iter().rev().find_map(|message| {
            let SimpleQueryMessage::Row(row) = message else { return None };
            Some((row.get(0)?, row.get(1)?))
        });
        let (role, snapshot) = last.unwrap_or_default();
        if role != &*self.role {
            self.end().await?;
            return Ok(Err(Outcome::Refused("the role could not be set".into())));
        }
        Ok(Ok(snapshot.parse().map_err(unanswered)?))
    }

    async fn end(&self) -> Result<(), Error> {
        self.client.batch_execute("rollback").await.map_err(unanswered)
    }

    async fn read_facts(&self, table: u32) -> Result<Option<String>, Error> {
        let parameters: [&(dyn ToSql + Sync); 2] = [&table, &&*self.publications];
        let row = self.client.query_opt(&self.facts, &parameters).await.map_err(unanswered)?;
        row.map(|row| row.try_get(0).map_err(unanswered)).transpose()
    }

    /// Reads a table's policies, unless that was done since the table was last forgotten.
    async fn compile(&mut self, table: u32, stamp: u64) -> Result<Result<(), Outcome>, Error> {
        if self.tables.get(&table).is_some_and(|known| known.stamp >= stamp) {
            return Ok(Ok(()));
        }
        if let Err(refused) = self.begin(None).await? {
            return Ok(Err(refused));
        }
        let text = self.read_facts(table).await?;
        self.end().await?;
        if let Some(known) = self.tables.get_mut(&table)
            && text.as_ref() == Some(&known.text)
        {
            known.stamp = stamp;
            return Ok(Ok(()));
        }
        self.drop_table(table).await?;
        let Some(text) = text else {
            let facts = Facts::default();
            let rule = Rule::Fixed(Visibility::Failed, Some("the table does not exist".into()));
            self.tables.insert(table, Table::new(String::new(), facts, rule, stamp));
            return Ok(Ok(()));
        };
        let facts: Facts = serde_json::from_str(&text).map_err(unanswered)?;
        let rule = if !facts.readable {
            let message = format!("permission denied for table {}", facts.name);
            Rule::Fixed(Visibility::Failed, Some(message))
        } else if !facts.active {
            Rule::Fixed(Visibility::Yes, None)
        } else if facts.nobody() {
            Rule::Fixed(Visibility::No, None)
        } else {
            Rule::Asked
        };
        self.tables.insert(table, Table::new(text, facts, rule, stamp));
        Ok(Ok(()))
    }

    async fn drop_table(&mut self, table: u32) -> Result<(), Error> {
        let names = self.tables.remove(&table).map(|table| table.names).unwrap_or_default();
        for name in names {
            let drop = format!("drop function pg_temp.{name}");
            self.client.batch_execute(&drop).await.map_err(unanswered)?;
        }
        Ok(())
    }

    /// Compares what was compiled with the catalog as it is now. Everything the checks could have
    /// used was in the catalog before this reads it.
    async fn verify(
        &mut self,
        tables: &BTreeSet<u32>,
        xids: &[u32],
    ) -> Result<Option<Outcome>, Error> {
        let snapshot = match self.begin(None).await? {
            Ok(snapshot) => snapshot,
            Err(refused) => return Ok(Some(refused)),
        };
        if !xids.iter().all(|xid| snapshot.sees(*xid)) {
            self.end().await?;
            return Ok(Some(Outcome::NotVisible(snapshot)));
        }
        // Sent together, answered in order.
        let read = tables.iter().map(|table| self.read_facts(*table));
        let read = futures_util::future::try_join_all(read);
        let (read, ended) = futures_util::future::join(read, self.end()).await;
        ended?;
        let mut changed = None;
        for (table, now) in tables.iter().zip(read?) {
            let now = now.unwrap_or_default();
            let Some(known) = self.tables.get_mut(table) else { continue };
            if now != known.text {
                // Read anew at the next attempt.
                known.stamp = 0;
                let role = serde_json::from_str::<Facts>(&now).map(|facts| facts.role);
                let same_role = role.is_ok_and(|role| role == known.facts.role);
                changed = match changed {
                    Some(Outcome::RoleChanged) => changed,
                    _ if same_role => Some(Outcome::CatalogChanged),
                    _ => Some(Outcome::RoleChanged),
                };
            }
        }
        Ok(changed)
    }

    /// Writes the answers that need no asking; the images of those that do.
    fn fixed_or_items(
        &self,
        sheet: &mut Sheet<'_>,
        table: u32,
        changes: &[u32],
        users: &[usize],
    ) -> Option<Vec<Item>> {
        let table = self.tables.get(&table)?;
        for (user, change) in pairs(users, changes) {
            sheet.set_row_security(user, change, table.facts.row_security);
        }
        let mut items = Vec::new();
        for &number in changes {
            let Some(change) = at(sheet.job.batch, number) else { continue };
            for side in [Side::New, Side::Old] {
                let Some((tuple, source)) = image_of(change, side) else {
                    // There is no such row: nobody sees it.
                    for &user in users {
                        sheet.set(user, number, side, Visibility::No);
                    }
                    continue;
                };
                match &table.rule {
                    Rule::Fixed(visibility, message) => {
                        for &user in users {
                            sheet.set(user, number, side, *visibility);
                            if let Some(message) = message {
                                sheet.fail(user, message);
                            }
                        }
                    }
                    Rule::Asked => {
                        let image = table.facts.image(&change.relation, tuple.as_ref(), source);
                        items.push(Item { change: number, side, image });
                    }
                }
            }
        }
        (!items.is_empty()).then_some(items)
    }

    /// Makes the functions these images need, where they are not made yet.
    async fn make_functions(&mut self, table: u32, items: &[Item]) -> Result<(), Error> {
        let Some(known) = self.tables.get(&table) else { return Ok(()) };
        let mut missing: Vec<Option<(Open, bool)>> = Vec::new();
        if known.row_function.is_none() {
            missing.push(None);
        }
        for item in items {
            let traced = item.side == Side::Old && known.facts.reads_hidden();
            for traced in [false, true].into_iter().filter(|t| traced || !*t) {
                let function = (item.image.open.clone(), traced);
                if known.asks(&function.0)
                    && !known.functions.contains_key(&function)
                    && !missing.iter().flatten().any(|other| *other == function)
                {
                    missing.push(Some(function));
                }
            }
        }
        for function in missing {
            self.made += 1;
            let name = format!("walcast_check_{}", self.made);
            let Some(known) = self.tables.get_mut(&table) else { return Ok(()) };
            let (text, parameters) = match &function {
                Some((open, traced)) => {
                    (known.facts.image_function(&name, open, *traced), "$4::text[]")
                }
                None => (known.facts.row_function(&name), "$4::boolean[], $5::text[]"),
            };
            self.client.batch_execute(&text).await.map_err(unanswered)?;
            known.names.push(name.clone());
            let call = format!(
                "select walcast_seen, walcast_failed, walcast_code, walcast_message, walcast_tables
                from pg_temp.{name}($1::text, $2::text[], $3::text[], {parameters})"
            );
            let statement = self.client.prepare(&call).await.map_err(unanswered)?;
            match function {
                Some(function) => drop(known.functions.insert(function, statement)),
                None => known.row_function = Some(statement),
            }
        }
        Ok(())
    }

    /// Asks each user about each image, as far as policies decide it. `traced`: tells what was
    /// read for each user, where that is known.
    async fn ask_images(
        &self,
        sheet: &mut Sheet<'_>,
        lessons: &mut Lessons,
        table: u32,
        items: &[&Item],
        users: &[usize],
        traced: bool,
    ) -> Result<Reads, Error> {
        let mut reads: Reads =
            users.iter().map(|user| (*user, traced.then(BTreeSet::new))).collect();
        let Some(table) = self.tables.get(&table) else { return Ok(Reads::new()) };
        let mut kinds: BTreeMap<&Open, Vec<&Item>> = BTreeMap::new();
        for &item in items {
            kinds.entry(&item.image.open).or_default().push(item);
        }
        for (open, items) in kinds {
            let Some(statement) = table.functions.get(&(open.clone(), traced)) else {
                for item in items {
                    for &user in users {
                        sheet.set(user, item.change, item.side, Visibility::Unknown);
                    }
                }
                continue;
            };
            let mut rest = items.as_slice();
            while !rest.is_empty() {
                let (chunk, later) = rest.split_at(chunk_len(rest));
                rest = later;
                let literals: Vec<&str> =
                    chunk.iter().map(|item| item.image.literal.as_str()).collect();
                let input = Input::Images(&literals);
                for (user, seen) in self.call(sheet, lessons, statement, &input, users).await? {
                    for (place, item) in chunk.iter().enumerate() {
                        sheet.set(user, item.change, item.side, seen.at(place));
                    }
                    if let Some(message) = &seen.message {
                        sheet.fail(user, message);
                    }
                    if let Some(read) = reads.get_mut(&user) {
                        match (&mut *read, seen.tables) {
                            (Some(read), Some(tables)) => read.extend(tables),
                            (Some(_), None) => *read = None,
                            (None, _) => {}
                        }
                    }
                }
            }
        }
        Ok(reads)
    }

    /// New rows that their image leaves undecided are looked for in the table: a user who sees
    /// this very version there sees it; a newer version has an event of its own.
    async fn find_undecided(
        &self,
        sheet: &mut Sheet<'_>,
        lessons: &mut Lessons,
        table: u32,
        items: &[Item],
        users: &[usize],
    ) -> Result<(), Error> {
        let Some(table) = self.tables.get(&table) else { return Ok(()) };
        let Some(statement) = &table.row_function else { return Ok(()) };
        for item in items.iter().filter(|item| item.side == Side::New) {
            let undecided: Vec<usize> = users
                .iter()
                .copied()
                .filter(|user| {
                    let verdict = sheet.get(*user, item.change);
                    verdict.is_some_and(|verdict| verdict.new == Visibility::Unknown)
                })
                .collect();
            if undecided.is_empty() || !table.facts.can_find(&item.image.known) {
                continue;
            }
            let Some(change) = at(sheet.job.batch, item.change) else { continue };
            let Some((Some(tuple), _)) = image_of(change, Side::New) else { continue };
            let values = table.facts.texts(&change.relation, &tuple);
            let input = Input::Rows { known: &item.image.known, values: &values, rows: 1 };
            for (user, seen) in self.call(sheet, lessons, statement, &input, &undecided).await? {
                sheet.set(user, item.change, Side::New, seen.at(0));
                if let Some(message) = &seen.message {
                    sheet.fail(user, message);
                }
            }
        }
        Ok(())
    }
}

impl Table {
    fn new(text: String, facts: Facts, rule: Rule, stamp: u64) -> Self {
        let functions = HashMap::new();
        Self { text, facts, rule, stamp, functions, row_function: None, names: Vec::new() }
    }

    /// Whether an image that leaves these policies open is worth asking about: some are not.
    fn asks(&self, open: &[bool]) -> bool {
        matches!(self.rule, Rule::Asked) && !open.iter().all(|open| *open)
    }
}

/// The `sub` claim as older helpers read it; empty when there is none.
pub(super) fn subject(claims: &str) -> String {
    let claims: Option<serde_json::Value> = serde_json::from_str(claims).ok();
    let subject = claims.as_ref().and_then(|claims| claims.get("sub")?.as_str());
    subject.unwrap_or_default().to_owned()
}
