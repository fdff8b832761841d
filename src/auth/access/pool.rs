//! Connections of the check login on which probes run, and the end of those that do not answer.
//!
//! In:     how many at once, how long to wait for one; who asks.
//! Out:    a [`Lease`]: a connection that nobody else has, in the state of a new one.
//! Never:  a connection back in the pool while anything runs on it; more connections than the
//!         setting, those that are being ended included.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{CancelToken, Client, SimpleQueryMessage};
use tracing::{debug, warn};

use super::{Asker, Error};
use crate::config;
use crate::db::Login;

/// Checks on one connection before a new one takes its place: what a policy may leave in a
/// process, such as the variables of a procedural language, does not stay for good. Fewer cost a
/// login each; more keep such things longer.
const USES_MAX: u32 = 1000;
/// How long a statement that was told to stop may take to do so, before its process is ended.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a process may take to end, before its connection no longer counts against the pool.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// One connection of the check login.
pub(super) struct Session {
    client: Client,
    cancel: CancelToken,
    /// Which process serves it; a number is used again, but not with the same start.
    process: (i32, String),
    uses: u32,
    /// Whether there was a table `realtime.messages`.
    pub(super) found: bool,
    /// The role that inserts probe rows past the policies, if one may.
    pub(super) prober: Option<String>,
}

/// What a message was answered with.
pub(super) type Reply = Result<Vec<SimpleQueryMessage>, tokio_postgres::Error>;

impl Session {
    async fn connect(login: &Login, roles: &[String]) -> Result<Self, Error> {
        let unavailable = |error: tokio_postgres::Error| Error::Unavailable(error.into());
        let client = login.connect("walcast channels").await;
        let client = client.map_err(|error| Error::Unavailable(error.into()))?;
        let sql = include_str!("../../../sql/access/prober.sql");
        let roles = roles.to_vec();
        // One message there and one back, as everything on these connections.
        let parameters: [(&(dyn ToSql + Sync), Type); 2] =
            [(&roles, Type::TEXT_ARRAY), (&false, Type::BOOL)];
        let answer = timeout(login.timeout(), client.query_typed(sql, &parameters)).await;
        let rows = answer.map_err(|error| Error::Unavailable(error.into()))?;
        let rows = rows.map_err(unavailable)?;
        let row = rows.first().ok_or_else(|| Error::Unavailable("no row".into()))?;
        let process = (
            row.try_get("pid").map_err(unavailable)?,
            row.try_get("started").map_err(unavailable)?,
        );
        let found = row.try_get("found").map_err(unavailable)?;
        let prober = row.try_get("prober").map_err(unavailable)?;
        let cancel = client.cancel_token();
        Ok(Self { client, cancel, process, uses: 0, found, prober })
    }

    /// Sends all messages at once, and returns what each was answered with. The server goes
    /// through them in order; one that fails stops at its first error, the next ones begin.
    pub(super) async fn pipeline(&self, messages: &[String]) -> Vec<Reply> {
        join_all(messages.iter().map(|message| self.client.simple_query(message))).await
    }
}

/// A connection in use, its place of the pool and its asker's turn. Dropped before [`Self::give_back`], also with
/// the future that uses it, the connection is ended, and both are free once it has.
pub(super) struct Lease {
    session: Option<Session>,
    permits: Option<Permits>,
    idle: Arc<Mutex<Vec<Session>>>,
    abandoned: mpsc::Sender<Abandoned>,
}

/// What a check has while it runs.
struct Permits {
    _turn: OwnedSemaphorePermit,
    _place: OwnedSemaphorePermit,
}

/// A connection nobody waits for, on which something may still run.
struct Abandoned {
    session: Session,
    /// Until it is gone.
    _permits: Option<Permits>,
}

impl Lease {
    pub(super) fn session(&self) -> &Session {
        self.session.as_ref().expect("it is taken only by what consumes the lease")
    }

    /// For a connection on which nothing runs and that was reset.
    pub(super) fn give_back(mut self) {
        let Some(mut session) = self.session.take() else { return };
        session.uses += 1;
        if session.uses < USES_MAX && session.found && !session.client.is_closed() {
            lock(&self.idle).push(session);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        if session.client.is_closed() {
            return;
        }
        // There is room for every place of the pool. Without a reaper everything ends anyway.
        let _ = self.abandoned.try_send(Abandoned { session, _permits: self.permits.take() });
    }
}

/// The connections of one login.
pub(super) struct Pool {
    login: Login,
    roles: Vec<String>,
    wait: Duration,
    places: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<Session>>>,
    abandoned: mpsc::Sender<Abandoned>,
    reaper: JoinHandle<()>,
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.reaper.abort();
    }
}

impl Pool {
    /// Connects nothing yet.
    pub(super) fn new(login: Login, settings: &config::Database) -> Self {
        let size = settings.channel_pool_size;
        let (abandoned, inbox) = mpsc::channel(size.max(1));
        let reaper = tokio::spawn(reap(login.clone(), inbox));
        Self {
            login,
            roles: settings.roles.clone(),
            wait: Duration::from_millis(settings.channel_wait_timeout_ms),
            places: Arc::new(Semaphore::new(size)),
            idle: Arc::default(),
            abandoned,
            reaper,
        }
    }

    /// A connection in the state of a new one, when it is this asker's turn.
    ///
    /// # Errors
    /// [`Error::Busy`] when none is free in time, [`Error::Gone`] when nobody wants it any more,
    /// [`Error::Unavailable`] when none can be made.
    pub(super) async fn lease(&self, asker: &Asker) -> Result<Lease, Error> {
        let permits = tokio::select! {
            // Also when it is its turn just then.
            biased;
            () = asker.gone() => return Err(Error::Gone),
            permits = timeout(self.wait, self.permits(asker)) => permits,
        };
        let permits = permits.map_err(|_| Error::Busy)??;
        let session = loop {
            let idle = lock(&self.idle).pop();
            match idle {
                Some(session) if session.client.is_closed() => {}
                Some(session) => break session,
                None => break Session::connect(&self.login, &self.roles).await?,
            }
        };
        Ok(Lease {
            session: Some(session),
            permits: Some(permits),
            idle: Arc::clone(&self.idle),
            abandoned: self.abandoned.clone(),
        })
    }

    /// The turn first: whoever waits for its own stands in nobody's way.
    async fn permits(&self, asker: &Asker) -> Result<Permits, Error> {
        let closed = || Error::Unavailable("the pool is closed".into());
        let turn = asker.turn().await.ok_or_else(closed)?;
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| closed())?;
        Ok(Permits { _turn: turn, _place: place })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every holder leaves the value whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends abandoned connections, each on its own: told to stop, then ended by force, which policies
/// cannot catch. No more than the pool has places, because each keeps its own.
async fn reap(login: Login, mut abandoned: mpsc::Receiver<Abandoned>) {
    // One at a time, so that the login needs one connection more and no second pool.
    let executioner = tokio::sync::Mutex::new(());
    futures_util::stream::poll_fn(|context| abandoned.poll_recv(context))
        .for_each_concurrent(None, async |abandoned| {
            let session = &abandoned.session;
            if let Err(error) = login.cancel(&session.cancel).await {
                debug!(%error, "a check that nobody waits for could not be told to stop");
            }
            let stopped = timeout(CANCEL_TIMEOUT, session.client.batch_execute("rollback")).await;
            if stopped.is_err() {
                let _turn = executioner.lock().await;
                terminate(&login, session).await;
            }
        })
        .await;
}

async fn terminate(login: &Login, session: &Session) {
    let (pid, started) = &session.process;
    warn!(pid, "a check on realtime.messages did not stop when told to; its process is ended");
    let ended = async {
        let client = login.connect("walcast channels end").await?;
        // Its own login's processes are its to end. The second argument waits for it.
        let sql = "select pg_catalog.pg_terminate_backend(a.pid) \
                   from pg_catalog.pg_stat_activity as a \
                   where a.pid = $1 and a.backend_start::text = $2";
        let parameters: [(&(dyn ToSql + Sync), Type); 2] =
            [(pid, Type::INT4), (started, Type::TEXT)];
        client.query_typed(sql, &parameters).await?;
        // Answered with an error, or not any more: it is over either way.
        let _ = session.client.batch_execute("rollback").await;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
    };
    match timeout(END_TIMEOUT, ended).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(pid, error, "the process of a check could not be ended"),
        Err(_) => warn!(pid, "the process of a check did not end in time"),
    }
}
