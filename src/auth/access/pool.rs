//! Connections of the check login on which probes run, one at a time for each asker.
//!
//! In:     how many at once, how long to wait for one; who asks.
//! Out:    a [`Lease`]: a connection that nobody else has, in the state of a new one.
//! Never:  more than one check of an asker, those that are being ended included.

use std::convert::Infallible;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::types::{ToSql, Type};

use super::{Asker, Error};
use crate::config;
use crate::db::pool::{self, Plain, Size};
use crate::db::{self, Login};

/// Checks on one connection before a new one takes its place: what a policy may leave in a
/// process, such as the variables of a procedural language, does not stay for good. Fewer cost a
/// login each; more keep such things longer.
const USES_MAX: u32 = 1000;

/// What is known about one connection.
pub(super) struct Session {
    connection: Plain,
    /// Whether there was a table `realtime.messages`.
    pub(super) found: bool,
    /// The role that inserts probe rows past the policies, if one may.
    pub(super) prober: Option<String>,
}

/// What a message was answered with.
pub(super) type Reply = Result<Vec<SimpleQueryMessage>, tokio_postgres::Error>;

impl Session {
    async fn open(login: Login, roles: Vec<String>) -> Result<Self, pool::Error> {
        let connection = Plain::open(&login, "walcast channels").await?;
        let sql = include_str!("../../../sql/access/prober.sql");
        let parameters: [(&(dyn ToSql + Sync), Type); 2] =
            [(&roles, Type::TEXT_ARRAY), (&false, Type::BOOL)];
        let row = connection.client().query_typed_one(sql, &parameters).await;
        let row = row.and_then(|row| Ok((row.try_get("found")?, row.try_get("prober")?)));
        let (found, prober) = row.map_err(|error| pool::Error::Open(error.into()))?;
        Ok(Self { connection, found, prober })
    }

    /// Sends all messages at once, and returns what each was answered with. The server goes
    /// through them in order; one that fails stops at its first error, the next ones begin.
    pub(super) async fn pipeline(&self, messages: &[String]) -> Vec<Reply> {
        let client = self.connection.client();
        join_all(messages.iter().map(|message| client.simple_query(message))).await
    }
}

impl pool::Connection for Session {
    /// A check resets it itself.
    type Reset = Infallible;

    fn process(&self) -> &(i32, String) {
        self.connection.process()
    }

    fn is_closed(&mut self) -> bool {
        self.connection.is_closed()
    }

    async fn cancel(&self, login: &Login) -> Result<(), db::Error> {
        self.connection.cancel(login).await
    }

    async fn settle(&mut self) {
        self.connection.settle().await;
    }

    async fn reset(&mut self, reset: Infallible) -> bool {
        match reset {}
    }
}

/// A connection in use, its place of the pool and its asker's turn. Dropped before
/// [`Self::give_back`], also with the future that uses it, the connection is ended, and both are
/// free once it has.
pub(super) struct Lease(pool::Lease<Session>);

impl Lease {
    pub(super) fn session(&self) -> &Session {
        self.0.connection()
    }

    /// For a connection on which nothing runs and that was reset.
    pub(super) fn give_back(self) {
        // Whether there is a table is asked when a connection is new.
        if self.session().found {
            self.0.give_back_reset();
        }
    }
}

/// The connections of one login.
pub(super) struct Pool {
    connections: pool::Pool<Session>,
    wait: Duration,
}

impl Pool {
    /// Connects nothing yet.
    pub(super) fn new(login: Login, settings: &config::Database) -> Self {
        let wait = Duration::from_millis(settings.channel_wait_timeout_ms);
        let size = Size { connections: settings.channel_pool_size, wait, uses_max: USES_MAX };
        let roles = settings.roles.clone();
        let open = move |login| -> pool::Opening<Session> {
            Box::pin(Session::open(login, roles.clone()))
        };
        Self { connections: pool::Pool::new(login, size, open), wait }
    }

    /// A connection in the state of a new one, when it is this asker's turn.
    ///
    /// # Errors
    /// [`Error::Busy`] when none is free in time, [`Error::Gone`] when nobody wants it any more,
    /// [`Error::Unavailable`] when none can be made.
    pub(super) async fn lease(&self, asker: &Asker) -> Result<Lease, Error> {
        let deadline = Instant::now() + self.wait;
        let leasing = async {
            // The turn first: whoever waits for its own stands in nobody's way.
            let turn = timeout_at(deadline, asker.turn()).await.map_err(|_| Error::Busy)?;
            let turn = turn.ok_or_else(|| Error::Unavailable("the turns are over".into()))?;
            let lease = self.connections.lease_until(deadline).await;
            let mut lease = lease.map_err(|error| match error {
                pool::Error::Busy => Error::Busy,
                pool::Error::Connect(_) | pool::Error::Open(_) | pool::Error::Timeout => {
                    Error::Unavailable(error.into())
                }
            })?;
            lease.hold(turn);
            Ok(Lease(lease))
        };
        tokio::select! {
            // Also when it is its turn just then.
            biased;
            () = asker.gone() => Err(Error::Gone),
            lease = leasing => lease,
        }
    }
}
