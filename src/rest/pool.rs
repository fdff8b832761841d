//! The connections that requests run on, each with the statements it has prepared.
//!
//! In:     the login that may do nothing but become one of the configured roles.
//! Out:    leases; a [`Plan`] for each statement.
//! Never:  a plan made for one role run by another: names were looked up with that role's rights;
//!         more statements kept than [`PREPARED_MAX`].

use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::{DefaultHashBuilder, Equivalent, HashMap, HashSet};
use tokio_postgres::{Client, Statement};

use crate::config;
use crate::db::Login;
use crate::db::pool::{self, Size};

/// Statements that one connection keeps. Each costs the server some 50 KiB; fewer and an app with
/// many kinds of requests has them planned again.
const PREPARED_MAX: usize = 200;
/// A longer text is planned each time: whoever sends those sends no two alike.
const PREPARED_BYTES_MAX: usize = 32 * 1024;
/// Statements that were seen once.
const SEEN_MAX: usize = 1000;
/// Requests on one connection.
const USES_MAX: u32 = 20_000;

/// The pool of one service.
pub(super) type Pool = pool::Pool<State>;
/// One connection of it.
pub(super) type Lease = pool::Lease<State>;

/// Connects nothing yet.
pub(super) fn open(login: Login, settings: &config::Rest) -> Pool {
    let size = Size {
        connections: settings.pool_size,
        wait: Duration::from_millis(settings.wait_timeout_ms),
        uses_max: USES_MAX,
    };
    Pool::new(login, "walcast rest", size, |client| Box::pin(State::ask(client)))
}

/// What is known about one connection.
pub(super) struct State {
    /// `sql/rest/settings.sql`
    pub(super) settings: Statement,
    /// `sql/rest/settings_plain.sql`
    pub(super) settings_plain: Statement,
    /// `sql/rest/prepared.sql`
    pub(super) left: Statement,
    /// `statement_timeout` of a new connection, in milliseconds; 0 for none.
    pub(super) statement_timeout_ms: u64,
    /// What the rest was prepared for.
    pub(super) prepared: Prepared,
}

impl State {
    async fn ask(client: Arc<Client>) -> Result<Self, tokio_postgres::Error> {
        let (settings, settings_plain, left, row) = tokio::try_join!(
            client.prepare(include_str!("../../sql/rest/settings.sql")),
            client.prepare(include_str!("../../sql/rest/settings_plain.sql")),
            client.prepare(include_str!("../../sql/rest/prepared.sql")),
            client.query_typed_one(include_str!("../../sql/rest/open.sql"), &[]),
        )?;
        let statement_timeout_ms = row.try_get::<_, &str>(0)?.parse().unwrap_or(0);
        let prepared = Prepared::default();
        Ok(Self { settings, settings_plain, left, statement_timeout_ms, prepared })
    }
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
            seen: HashSet::new(),
            hasher: DefaultHashBuilder::default(),
            clock: 0,
        }
    }
}

impl<S: Clone> Prepared<S> {
    /// How to run `asked`, which was made from the picture with this number.
    pub(super) fn plan(&mut self, number: u64, asked: Asked<'_>) -> Plan<S> {
        if number > self.number {
            // Parameters got their types from columns that may have others now.
            self.number = number;
            self.statements.clear();
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

    /// Keeps what was prepared.
    pub(super) fn keep(&mut self, number: u64, asked: Asked<'_>, statement: S) {
        if number != self.number {
            return;
        }
        if self.statements.len() >= PREPARED_MAX {
            let oldest = self.statements.values().map(|(_, used)| *used).min();
            self.statements.retain(|_, (_, used)| Some(*used) != oldest);
        }
        let key =
            Key { role: asked.role.into(), schema: asked.schema.into(), text: asked.text.into() };
        self.statements.insert(key, (statement, self.clock));
    }

    /// Forgets one that does not run any more.
    pub(super) fn forget(&mut self, asked: Asked<'_>) {
        self.statements.remove(&asked);
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
