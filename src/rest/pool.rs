//! The connections that requests run on, each with the statements it has prepared.
//!
//! In:     the login that may do nothing but become one of the configured roles.
//! Out:    leases; a [`Plan`] for each statement.
//! Never:  a plan made for one role run by another: names were looked up with that role's rights;
//!         more statements kept than [`PREPARED_MAX`].

use std::hash::BuildHasher as _;
use std::sync::LazyLock;
use std::time::Duration;

use hashbrown::{DefaultHashBuilder, Equivalent, HashMap, HashSet};
use tracing::debug;

use super::roles::Isolation;
use super::rows::Shape;
use crate::config;
use crate::db::pipeline::{self, Answers, Batch, Standing};
use crate::db::pool::{self, Size};
use crate::db::{self, Login};
use crate::telemetry;

/// Statements that one connection keeps. Each costs the server some 50 KiB; fewer and an app with
/// many kinds of requests has them planned again.
const PREPARED_MAX: usize = 200;
/// A longer text is planned each time: whoever sends those sends no two alike.
const PREPARED_BYTES_MAX: usize = 32 * 1024;
/// Statements that were seen once.
const SEEN_MAX: usize = 1000;
/// Requests on one connection.
const USES_MAX: u32 = 20_000;

/// Of no picture in particular: its parameters have types that nothing changes. Pictures count from 1.
pub const EVERY_PICTURE: u64 = 0;

/// The pool of one service.
pub(super) type Pool = pool::Pool<Connection>;
/// One connection of it.
pub(super) type Lease = pool::Lease<Connection>;

/// Connects nothing yet.
pub(super) fn open(login: Login, settings: &config::Rest) -> Pool {
    let size = Size {
        connections: settings.pool_size,
        wait: Duration::from_millis(settings.wait_timeout_ms),
        uses_max: USES_MAX,
    };
    Pool::new(login, size, |login| Box::pin(Connection::open(login)))
}

/// A file of `sql/`, on one line and without its comments.
fn bare(file: &str) -> String {
    let lines = file.lines().filter(|line| !line.starts_with("--"));
    lines.collect::<Vec<_>>().join(" ")
}

/// `sql/rest/reset.sql`
static RESET: LazyLock<String> = LazyLock::new(|| bare(include_str!("../../sql/rest/reset.sql")));

/// With `sql/rest/prepared.sql` behind it: as text, because what a function prepared may have our
/// names.
static RESET_AND_ASK: LazyLock<String> =
    LazyLock::new(|| format!("{} {}", *RESET, bare(include_str!("../../sql/rest/prepared.sql"))));

/// What makes a connection new again, statement by statement.
static RESETS: LazyLock<Vec<(String, String)>> = LazyLock::new(|| {
    let statements = RESET.split(';').map(str::trim).filter(|statement| !statement.is_empty());
    let named = statements.enumerate();
    named.map(|(place, text)| (format!("reset{place}"), text.to_owned())).collect()
});

/// How transactions begin: name, statement, whether it only reads, isolation.
const BEGINS: [(&str, &str, bool, Option<Isolation>); 8] = {
    use Isolation::{ReadCommitted, RepeatableRead, Serializable};
    [
        ("begin0", "begin read only", true, None),
        ("begin1", "begin isolation level read committed read only", true, Some(ReadCommitted)),
        ("begin2", "begin isolation level repeatable read read only", true, Some(RepeatableRead)),
        ("begin3", "begin isolation level serializable read only", true, Some(Serializable)),
        ("begin4", "begin read write", false, None),
        ("begin5", "begin isolation level read committed read write", false, Some(ReadCommitted)),
        ("begin6", "begin isolation level repeatable read read write", false, Some(RepeatableRead)),
        ("begin7", "begin isolation level serializable read write", false, Some(Serializable)),
    ]
};

/// What else each connection has prepared from its beginning.
const OWN: [(&str, &str); 6] = [
    (SETTINGS, include_str!("../../sql/rest/settings.sql")),
    (SETTINGS_PLAIN, include_str!("../../sql/rest/settings_plain.sql")),
    (ROLLBACK, "rollback"),
    // Whatever the last transaction left as the way to begin.
    (RENEW, "begin isolation level read committed read write not deferrable"),
    (COMMIT, "commit"),
    (PLACE, PLACE_SQL),
];

/// `sql/rest/settings.sql`
pub(super) const SETTINGS: &str = "settings";
/// `sql/rest/settings_plain.sql`
pub(super) const SETTINGS_PLAIN: &str = "settings_plain";
/// The begin of the transaction in which a connection is made new again.
const RENEW: &str = "renew";
/// Its end.
const COMMIT: &str = "commit";
/// The end of a transaction that does not stay.
pub(super) const ROLLBACK: &str = "rollback";
/// Where the log ends.
pub(super) const PLACE: &str = "place";
pub(super) const PLACE_SQL: &str = "select pg_catalog.pg_current_wal_insert_lsn()";

/// The statement that begins such a transaction.
pub(super) fn begin(is_read_only: bool, isolation: Option<Isolation>) -> &'static str {
    let is_it =
        |it: &&(&str, &str, bool, Option<Isolation>)| (it.2, it.3) == (is_read_only, isolation);
    BEGINS.iter().find(is_it).map_or(BEGINS[0].0, |it| it.0)
}

/// One connection.
pub(super) struct Connection {
    /// What is sent and answered.
    pub(super) pipeline: pipeline::Connection,
    /// `statement_timeout` of a new connection, in milliseconds; 0 for none.
    pub(super) statement_timeout_ms: u64,
    /// What the rest was prepared for.
    pub(super) prepared: Prepared,
}

impl Connection {
    async fn open(login: Login) -> Result<Self, pool::Error> {
        let mut pipeline = pipeline::Connection::open(&login, "walcast rest").await?;
        let failed = |error: pipeline::Error| pool::Error::Open(error.into());
        let mut batch = Batch::default();
        let resets = RESETS.iter().map(|(name, text)| (name.as_str(), text.as_str()));
        let begins = BEGINS.iter().map(|(name, text, ..)| (*name, *text));
        for (name, text) in begins.chain(OWN).chain(resets) {
            batch.parse(name, text).map_err(failed)?;
        }
        batch.parse("", include_str!("../../sql/rest/open.sql")).map_err(failed)?;
        batch.run("", []).map_err(failed)?;
        batch.sync();
        pipeline.send(batch);
        let answers = pipeline.answers().await.map_err(failed)?;
        if let Some(said) = answers.failed {
            return Err(pool::Error::Open(said.into()));
        }
        let timeout = answers.steps.first().and_then(|rows| rows.text(0)?.parse().ok());
        let statement_timeout_ms = timeout.unwrap_or(0);
        Ok(Self { pipeline, statement_timeout_ms, prepared: Prepared::default() })
    }
}

/// Steps that make a connection new again, behind everything else.
pub(super) fn push_resets(batch: &mut Batch) -> Result<(), pipeline::Error> {
    RESETS.iter().try_for_each(|(name, _)| batch.run(name, []))
}

/// The same in front of everything else, in a transaction of its own; how many steps they are.
pub(super) fn push_renewal(batch: &mut Batch) -> Result<usize, pipeline::Error> {
    batch.run(RENEW, [])?;
    push_resets(batch)?;
    batch.run(COMMIT, [])?;
    Ok(RESETS.len() + 2)
}

/// The same behind a sync, to be answered by itself. With `asks`, also whether functions left
/// prepared statements of their own.
pub(super) fn push_reset(batch: &mut Batch, asks: bool) -> Result<(), pipeline::Error> {
    batch.query(if asks { &RESET_AND_ASK } else { &RESET })
}

/// What is left to do until a connection is as a new one again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reset {
    /// It was sent: wait for the answers.
    Sent,
    /// Nothing was, or what was could not be done in a transaction that had failed.
    Again {
        /// How it stands.
        standing: Standing,
        /// Whether to ask for prepared statements of functions.
        asks: bool,
    },
}

impl pool::Connection for Connection {
    type Reset = Reset;

    fn process(&self) -> &(i32, String) {
        self.pipeline.process()
    }

    fn is_closed(&mut self) -> bool {
        self.pipeline.is_closed()
    }

    async fn cancel(&self, login: &Login) -> Result<(), db::Error> {
        self.pipeline.cancel(login).await
    }

    async fn settle(&mut self) {
        self.pipeline.settle().await;
    }

    async fn reset(&mut self, reset: Reset) -> bool {
        match self.renew(reset).await {
            Ok(is_new) => is_new,
            Err(error) => {
                debug!(error = telemetry::chain(&error), "a connection could not be reset");
                false
            }
        }
    }
}

impl Connection {
    /// Makes it new again; whether it is.
    pub(super) async fn renew(&mut self, reset: Reset) -> Result<bool, pipeline::Error> {
        if let Reset::Again { standing, asks } = reset {
            while self.pipeline.owed() > 0 {
                self.pipeline.answers().await?;
            }
            let mut batch = Batch::default();
            if standing != Standing::Idle {
                batch.query("rollback")?;
            }
            push_reset(&mut batch, asks)?;
            self.pipeline.send(batch);
        }
        let mut is_new = true;
        while self.pipeline.owed() > 0 {
            let Answers { steps, failed, standing, .. } = self.pipeline.answers().await?;
            if let Some(said) = failed {
                debug!(error = telemetry::chain(&said), "a connection could not be reset");
                is_new = false;
            }
            // What is asked comes last.
            let is_left = steps.last().is_some_and(|last| last.text(0) == Some("t"));
            is_new &= standing == Standing::Idle && !is_left;
        }
        Ok(is_new)
    }
}

/// A statement that was prepared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Statement {
    /// Its name.
    pub(super) name: std::sync::Arc<str>,
    /// Its columns, where rows are made JSON here.
    pub(super) shape: Option<std::sync::Arc<Shape>>,
}

/// What a statement is kept under.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    role: Box<str>,
    schema: Box<str>,
    text: Box<str>,
}

/// The same, borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Asked<'a> {
    /// Who runs it.
    pub(super) role: &'a str,
    /// The first schema of the `search_path`.
    pub(super) schema: &'a str,
    /// SQL.
    pub(super) text: &'a str,
}

impl Equivalent<Key> for Asked<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        *self.role == *key.role && *self.schema == *key.schema && *self.text == *key.text
    }
}

/// How a statement is to be run.
#[derive(Debug)]
pub(super) enum Plan<S> {
    /// It was prepared.
    Prepared(S),
    /// It comes again and again: prepare it.
    Prepare,
    /// In one go.
    Once,
}

/// Statements that one connection has prepared, the least recently used of which go first.
pub(super) struct Prepared<S = Statement> {
    /// The picture of the catalog they were made from.
    number: u64,
    statements: HashMap<Key, (S, u64)>,
    /// What the server may forget.
    gone: Vec<S>,
    /// Statements so far: each has a name of its own.
    names: u64,
    /// Hashes of statements that came once.
    seen: HashSet<u64>,
    hasher: DefaultHashBuilder,
    clock: u64,
}

impl<S> Default for Prepared<S> {
    fn default() -> Self {
        Self {
            number: 0,
            statements: HashMap::new(),
            gone: Vec::new(),
            names: 0,
            seen: HashSet::new(),
            hasher: DefaultHashBuilder::default(),
            clock: 0,
        }
    }
}

impl<S: Clone> Prepared<S> {
    /// How to run `asked`, which was made from the picture with this number.
    pub(super) fn plan(&mut self, number: u64, asked: Asked<'_>) -> Plan<S> {
        let number = self.of(number);
        if number > self.number {
            // Parameters got their types from columns that may have others now.
            self.number = number;
            self.gone.extend(self.statements.drain().map(|(_, (statement, _))| statement));
            self.seen.clear();
        }
        if number < self.number || asked.text.len() > PREPARED_BYTES_MAX {
            return Plan::Once;
        }
        self.clock += 1;
        if let Some((statement, used)) = self.statements.get_mut(&asked) {
            *used = self.clock;
            return Plan::Prepared(statement.clone());
        }
        if self.seen.remove(&self.hasher.hash_one(asked)) {
            return Plan::Prepare;
        }
        if self.seen.len() >= SEEN_MAX {
            self.seen.clear();
        }
        self.seen.insert(self.hasher.hash_one(asked));
        Plan::Once
    }

    /// A statement that names the types of all its parameters is of every picture.
    fn of(&self, number: u64) -> u64 {
        if number == EVERY_PICTURE { self.number } else { number }
    }

    /// Keeps what was prepared.
    pub(super) fn keep(&mut self, number: u64, asked: Asked<'_>, statement: S) {
        if self.of(number) != self.number {
            self.gone.push(statement);
            return;
        }
        if self.statements.len() >= PREPARED_MAX {
            let oldest = self.statements.values().map(|(_, used)| *used).min();
            let old = self.statements.extract_if(|_, (_, used)| Some(*used) == oldest);
            self.gone.extend(old.map(|(_, (statement, _))| statement));
        }
        let key =
            Key { role: asked.role.into(), schema: asked.schema.into(), text: asked.text.into() };
        self.statements.insert(key, (statement, self.clock));
    }

    /// Forgets one that does not run any more.
    pub(super) fn forget(&mut self, asked: Asked<'_>) {
        self.gone.extend(self.statements.remove(&asked).map(|(statement, _)| statement));
    }

    /// A name that no other statement of this connection has, or had.
    pub(super) fn name(&mut self) -> String {
        self.names += 1;
        format!("s{}", self.names)
    }

    /// What the server may forget, since this was last asked.
    pub(super) fn take_gone(&mut self) -> impl Iterator<Item = S> {
        self.gone.drain(..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked<'a>(role: &'a str, text: &'a str) -> Asked<'a> {
        Asked { role, schema: "public", text }
    }

    fn kind(prepared: &mut Prepared<u32>, number: u64, asked: Asked<'_>) -> String {
        format!("{:?}", prepared.plan(number, asked))
    }

    #[test]
    fn a_statement_is_prepared_when_it_comes_again() {
        let mut prepared = Prepared::default();
        assert_eq!(kind(&mut prepared, 1, asked("a", "x")), "Once");
        assert_eq!(kind(&mut prepared, 1, asked("a", "y")), "Once");
        assert_eq!(kind(&mut prepared, 1, asked("a", "x")), "Prepare");
        prepared.keep(1, asked("a", "x"), 7);
        assert_eq!(kind(&mut prepared, 1, asked("a", "x")), "Prepared(7)");
        prepared.forget(asked("a", "x"));
        assert_eq!(kind(&mut prepared, 1, asked("a", "x")), "Once");
        assert_eq!(prepared.take_gone().collect::<Vec<_>>(), [7]);
    }

    #[test]
    fn no_role_runs_what_was_planned_for_another() {
        let mut prepared = Prepared::default();
        prepared.plan(1, asked("a", "x"));
        prepared.keep(1, asked("a", "x"), 7);
        assert_eq!(kind(&mut prepared, 1, asked("b", "x")), "Once");
        let elsewhere = Asked { schema: "other", ..asked("a", "x") };
        assert_eq!(kind(&mut prepared, 1, elsewhere), "Once");
    }

    #[test]
    fn nothing_outlives_the_picture_it_was_made_from() {
        let mut prepared = Prepared::default();
        prepared.plan(1, asked("a", "x"));
        prepared.keep(1, asked("a", "x"), 7);
        assert_eq!(kind(&mut prepared, 2, asked("a", "x")), "Once");
        // A request that began before has the older one.
        assert_eq!(kind(&mut prepared, 1, asked("a", "x")), "Once");
        prepared.keep(1, asked("a", "x"), 8);
        assert_eq!(kind(&mut prepared, 2, asked("a", "x")), "Prepare");
        assert_eq!(prepared.take_gone().collect::<Vec<_>>(), [7, 8]);
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_oldest_goes() {
        let mut prepared = Prepared::default();
        let texts: Vec<String> = (0..=PREPARED_MAX).map(|number| number.to_string()).collect();
        for text in &texts {
            prepared.plan(1, asked("a", text));
            prepared.keep(1, asked("a", text), 7);
            assert!(
                matches!(prepared.plan(1, asked("a", &texts[1])), Plan::Prepared(_))
                    || *text == "0"
            );
        }
        assert_eq!(prepared.statements.len(), PREPARED_MAX);
        assert_eq!(prepared.take_gone().count(), 1);
        assert!(!matches!(prepared.plan(1, asked("a", &texts[0])), Plan::Prepared(_)));
        for number in 0..3 * SEEN_MAX {
            prepared.plan(1, asked("b", &number.to_string()));
        }
        assert!(prepared.seen.len() <= SEEN_MAX);
        let long = "x".repeat(PREPARED_BYTES_MAX + 1);
        assert_eq!(kind(&mut prepared, 1, asked("a", &long)), "Once");
        assert_eq!(kind(&mut prepared, 1, asked("a", &long)), "Once");
    }
}
