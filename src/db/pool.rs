//! Connections of one login, lent one request at a time, and the end of those that do not answer.
//!
//! In:     a login, how many at once, what is asked of each when it is new.
//! Out:    a [`Lease`]: a connection that nobody else has, in the state of a new one.
//! Never:  a connection back in the pool while anything runs on it, or before it was reset; more
//!         connections than the size, those that are being ended included.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{CancelToken, Client};
use tracing::{debug, warn};

use super::Login;

/// How long a statement that was told to stop may take to do so, before its process is ended.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a process may take to end, before its connection no longer counts against the pool.
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may take to be in the state of a new one again, before it is ended.
const RESET_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// None was free in time.
    #[error("no connection of the pool was free in time")]
    Busy,
    /// None could be made.
    #[error(transparent)]
    Connect(#[from] super::Error),
    /// A new one did not answer what is asked of each.
    #[error("a new connection gave no answer")]
    Open(#[source] tokio_postgres::Error),
    /// The same, in time.
    #[error("a new connection gave no answer in time")]
    Timeout,
}

/// What is asked of a new connection.
pub type Opening<T> = Pin<Box<dyn Future<Output = Result<T, tokio_postgres::Error>> + Send>>;

/// What ends with whether a connection is in the state of a new one.
pub type Reset = Pin<Box<dyn Future<Output = bool> + Send>>;

/// One connection.
struct Session<T> {
    client: Arc<Client>,
    cancel: CancelToken,
    /// Which process serves it; a number is used again, but not with the same start.
    process: (i32, String),
    uses: u32,
    state: T,
}

/// What a use has until its connection is free again, or gone.
#[derive(Debug, Default)]
struct Permits {
    /// A place of the pool.
    _place: Option<OwnedSemaphorePermit>,
    /// Whatever else it was given.
    held: Option<OwnedSemaphorePermit>,
}

/// A connection in use, and one place of the pool. Dropped before it is given back, also with the
/// future that uses it, the connection is ended, and its place is free once it has.
pub struct Lease<T: Send + 'static> {
    session: Option<Session<T>>,
    permits: Permits,
    inbox: mpsc::Sender<Left<T>>,
    idle: Idle<T>,
    uses_max: u32,
}

/// A connection whose user has gone.
enum Left<T> {
    /// Something may still run on it.
    Abandoned(Session<T>, Permits),
    /// It is being reset.
    Returning(Session<T>, Permits, Reset),
}

impl<T: Send + 'static> Lease<T> {
    /// The connection.
    pub fn client(&self) -> &Arc<Client> {
        &self.session.as_ref().expect("it is taken only by what consumes the lease").client
    }

    /// What is known about it.
    pub fn state(&self) -> &T {
        &self.session.as_ref().expect("it is taken only by what consumes the lease").state
    }

    /// The same, to be changed.
    pub fn state_mut(&mut self) -> &mut T {
        &mut self.session.as_mut().expect("it is taken only by what consumes the lease").state
    }

    /// Keeps a permit of the user's until the connection is free again, or gone.
    pub fn hold(&mut self, permit: OwnedSemaphorePermit) {
        self.permits.held = Some(permit);
    }

    /// Gives it back at once: nothing runs on it, and it was reset.
    pub fn give_back_reset(mut self) {
        let Some(session) = &mut self.session else { return };
        session.uses += 1;
        if session.uses >= self.uses_max || session.client.is_closed() {
            // Dropped, it is ended.
            return;
        }
        if let Some(session) = self.session.take() {
            lock(&self.idle).push(session);
        }
        // Whoever waits for its place finds it there.
        drop(std::mem::take(&mut self.permits));
    }

    /// Gives it back once `reset` has ended, if it says that nothing is left of this use.
    pub fn give_back(mut self, reset: Reset) {
        let Some(session) = self.session.take() else { return };
        // There is room for every place of the pool. Without a keeper everything ends anyway.
        let _ =
            self.inbox.try_send(Left::Returning(session, std::mem::take(&mut self.permits), reset));
    }
}

impl<T: Send + 'static> Drop for Lease<T> {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        if session.client.is_closed() {
            return;
        }
        let _ = self.inbox.try_send(Left::Abandoned(session, std::mem::take(&mut self.permits)));
    }
}

/// The connections of one login.
pub struct Pool<T: Send + 'static> {
    login: Login,
    name: &'static str,
    wait: Duration,
    open: Box<dyn Fn(Arc<Client>) -> Opening<T> + Send + Sync>,
    places: Arc<Semaphore>,
    idle: Idle<T>,
    uses_max: u32,
    inbox: mpsc::Sender<Left<T>>,
    keeper: JoinHandle<()>,
}

type Idle<T> = Arc<Mutex<Vec<Session<T>>>>;

impl<T: Send + 'static> Drop for Pool<T> {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// How a pool is kept.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Connections at once.
    pub connections: usize,
    /// How long to wait for one.
    pub wait: Duration,
    /// Uses of one connection before a new one takes its place: what no reset undoes, such as the
    /// variables of a procedural language, does not stay for good. Fewer cost a login each; more
    /// keep such things longer.
    pub uses_max: u32,
}

impl<T: Send + 'static> Pool<T> {
    /// Connects nothing yet. `name` is what its connections are called in `pg_stat_activity`;
    /// `open` is what each is asked first.
    pub fn new(
        login: Login,
        name: &'static str,
        size: Size,
        open: impl Fn(Arc<Client>) -> Opening<T> + Send + Sync + 'static,
    ) -> Self {
        let (inbox, left) = mpsc::channel(size.connections.max(1));
        let idle: Idle<T> = Arc::default();
        let kept = keep(login.clone(), left, Arc::clone(&idle), size.uses_max);
        Self {
            login,
            name,
            wait: size.wait,
            open: Box::new(open),
            places: Arc::new(Semaphore::new(size.connections)),
            idle,
            uses_max: size.uses_max,
            inbox,
            keeper: tokio::spawn(kept),
        }
    }

    /// A connection in the state of a new one.
    ///
    /// # Errors
    /// [`Error::Busy`] when none is free in time, others when none can be made.
    pub async fn lease(&self) -> Result<Lease<T>, Error> {
        self.lease_until(Instant::now() + self.wait).await
    }

    /// The same, waiting until then.
    ///
    /// # Errors
    /// As [`Self::lease`].
    pub async fn lease_until(&self, deadline: Instant) -> Result<Lease<T>, Error> {
        let place = timeout_at(deadline, Arc::clone(&self.places).acquire_owned()).await;
        let place = place.map_err(|_| Error::Busy)?;
        let place = place.expect("the semaphore is never closed");
        let session = loop {
            let idle = lock(&self.idle).pop();
            match idle {
                Some(session) if session.client.is_closed() => {}
                Some(session) => break session,
                None => break self.connect().await?,
            }
        };
        let permits = Permits { _place: Some(place), held: None };
        Ok(Lease {
            session: Some(session),
            permits,
            inbox: self.inbox.clone(),
            idle: Arc::clone(&self.idle),
            uses_max: self.uses_max,
        })
    }

    async fn connect(&self) -> Result<Session<T>, Error> {
        const PROCESS: &str = "select a.pid, a.backend_start::text \
                               from pg_catalog.pg_stat_activity as a \
                               where a.pid = pg_catalog.pg_backend_pid()";
        let client = Arc::new(self.login.connect(self.name).await?);
        let opening = (self.open)(Arc::clone(&client));
        let asked = async { tokio::try_join!(client.query_typed_one(PROCESS, &[]), opening) };
        let answer = timeout(self.login.timeout(), asked).await.map_err(|_| Error::Timeout)?;
        let (row, state) = answer.map_err(Error::Open)?;
        let process = row.try_get(0).and_then(|pid| Ok((pid, row.try_get(1)?)));
        let process = process.map_err(Error::Open)?;
        let cancel = client.cancel_token();
        Ok(Session { client, cancel, process, uses: 0, state })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every holder leaves the value whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes connections back, and ends those that nobody waits for: told to stop, then ended by force,
/// which functions cannot catch. No more than the pool has places, because each keeps its own.
async fn keep<T: Send + 'static>(
    login: Login,
    mut left: mpsc::Receiver<Left<T>>,
    idle: Idle<T>,
    uses_max: u32,
) {
    // One at a time, so that the login needs one connection more and no second pool.
    let executioner = tokio::sync::Mutex::new(());
    futures_util::stream::poll_fn(|context| left.poll_recv(context))
        .for_each_concurrent(None, async |left| {
            let (session, _permits) = match left {
                Left::Abandoned(session, permits) => (session, permits),
                Left::Returning(mut session, permits, reset) => {
                    let is_reset = timeout(RESET_TIMEOUT, reset).await;
                    session.uses += 1;
                    if session.client.is_closed() {
                        return;
                    }
                    if is_reset == Ok(true) && session.uses < uses_max {
                        lock(&idle).push(session);
                        drop(permits);
                        return;
                    }
                    (session, permits)
                }
            };
            let Session { client, cancel, process, .. } = session;
            if let Err(error) = login.cancel(&cancel).await {
                debug!(%error, "a statement that nobody waits for could not be told to stop");
            }
            if timeout(CANCEL_TIMEOUT, client.batch_execute("rollback")).await.is_err() {
                let _turn = executioner.lock().await;
                terminate(&login, &client, &process).await;
            }
        })
        .await;
}

async fn terminate(login: &Login, hung: &Client, (pid, started): &(i32, String)) {
    warn!(pid, "a statement did not stop when told to; its process is ended");
    let ended = async {
        let client = login.connect("walcast end").await?;
        // Its own login's processes are its to end. The second argument waits for it.
        let sql = "select pg_catalog.pg_terminate_backend(a.pid) \
                   from pg_catalog.pg_stat_activity as a \
                   where a.pid = $1 and a.backend_start::text = $2";
        let parameters: [(&(dyn ToSql + Sync), Type); 2] =
            [(pid, Type::INT4), (started, Type::TEXT)];
        client.query_typed(sql, &parameters).await?;
        // Answered with an error, or not any more: it is over either way.
        let _ = hung.batch_execute("rollback").await;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
    };
    match timeout(END_TIMEOUT, ended).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(pid, error, "the process could not be ended"),
        Err(_) => warn!(pid, "the process did not end in time"),
    }
}
