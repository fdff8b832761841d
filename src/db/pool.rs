//! Connections of one login, lent one request at a time, and the end of those that do not answer.
//!
//! In:     a login, how many at once, what is asked of each when it is new.
//! Out:    a [`Lease`]: a connection that nobody else has, in the state of a new one, or with what is
//!         left to do for that.
//! Never:  a connection back in the pool while anything runs on it, or left there for long before it
//!         was reset; more connections than the size, those that are being ended included.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
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

/// How long a connection may be idle before it is reset, if whoever has it next may do that. Shorter
/// and under load more are reset by themselves, which costs each a round trip; longer and what a
/// transaction left, such as a lock, stays that long.
const OWING_MAX: Duration = Duration::from_millis(20);

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
    Open(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The same, in time.
    #[error("a new connection gave no answer in time")]
    Timeout,
}

/// A connection that is made, and what is asked of it first.
pub type Opening<C> = Pin<Box<dyn Future<Output = Result<C, Error>> + Send>>;

/// What a pool can keep.
pub trait Connection: Send + Sync + 'static {
    /// What is left to do until it is in the state of a new one.
    type Reset: Send;

    /// Which process serves it; a number is used again, but not with the same start.
    fn process(&self) -> &(i32, String);

    /// Whether nothing can be asked on it any more.
    fn is_closed(&mut self) -> bool;

    /// Asks the server to give up what runs on it.
    fn cancel(&self, login: &Login) -> impl Future<Output = Result<(), super::Error>> + Send;

    /// Ends when nothing runs on it any more.
    fn settle(&mut self) -> impl Future<Output = ()> + Send;

    /// Whether it is in the state of a new one, when it is known.
    fn reset(&mut self, reset: Self::Reset) -> impl Future<Output = bool> + Send;
}

/// A connection of `tokio-postgres`, for pools whose users reset it themselves.
pub struct Plain {
    client: Arc<Client>,
    cancel: CancelToken,
    process: (i32, String),
}

impl Plain {
    /// A new one, called `name` in `pg_stat_activity`.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn open(login: &Login, name: &str) -> Result<Self, Error> {
        const PROCESS: &str = "select a.pid, a.backend_start::text \
                               from pg_catalog.pg_stat_activity as a \
                               where a.pid = pg_catalog.pg_backend_pid()";
        let client = Arc::new(login.connect(name).await?);
        let row = client.query_typed_one(PROCESS, &[]).await;
        let process = row.and_then(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
        let process = process.map_err(|error| Error::Open(error.into()))?;
        let cancel = client.cancel_token();
        Ok(Self { client, cancel, process })
    }

    /// What asks on it.
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// See [`Connection::process`].
    pub fn process(&self) -> &(i32, String) {
        &self.process
    }

    /// See [`Connection::is_closed`].
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// See [`Connection::cancel`].
    ///
    /// # Errors
    /// When the server cannot be reached a second time.
    pub async fn cancel(&self, login: &Login) -> Result<(), super::Error> {
        login.cancel(&self.cancel).await
    }

    /// See [`Connection::settle`].
    pub async fn settle(&self) {
        // Answered with an error, or not any more: it is over either way.
        let _ = self.client.batch_execute("rollback").await;
    }
}

/// One connection.
struct Session<C: Connection> {
    connection: C,
    uses: u32,
    /// What is left to do until it is in the state of a new one, and since when.
    owed: Option<(C::Reset, Instant)>,
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
pub struct Lease<C: Connection> {
    session: Option<Session<C>>,
    permits: Permits,
    inbox: mpsc::Sender<Left<C>>,
    idle: Idle<C>,
    owing: Arc<Notify>,
    uses_max: u32,
}

/// A connection whose user has gone.
enum Left<C: Connection> {
    /// Something may still run on it.
    Abandoned(Session<C>, Permits),
    /// It is being reset.
    Returning(Session<C>, Permits, C::Reset),
}

impl<C: Connection> Lease<C> {
    /// The connection.
    pub fn connection(&self) -> &C {
        &self.session.as_ref().expect("it is taken only by what consumes the lease").connection
    }

    /// The same, to be used.
    pub fn connection_mut(&mut self) -> &mut C {
        &mut self.session.as_mut().expect("it is taken only by what consumes the lease").connection
    }

    /// Keeps a permit of the user's until the connection is free again, or gone.
    pub fn hold(&mut self, permit: OwnedSemaphorePermit) {
        self.permits.held = Some(permit);
    }

    /// What must be done before anything else, if the last user left that.
    pub fn take_owed(&mut self) -> Option<C::Reset> {
        Some(self.session.as_mut()?.owed.take()?.0)
    }

    /// Gives it back at once: nothing runs on it, and it was reset.
    pub fn give_back_reset(mut self) {
        let Some(session) = &mut self.session else { return };
        session.uses += 1;
        if session.uses >= self.uses_max || session.owed.is_some() || session.connection.is_closed()
        {
            // Dropped, it is ended.
            return;
        }
        if let Some(session) = self.session.take() {
            lock(&self.idle).push(session);
        }
        // Whoever waits for its place finds it there.
        drop(std::mem::take(&mut self.permits));
    }

    /// Gives it back at once: nothing runs on it, and `reset` is what its next user does first. If
    /// there is none soon, that is done without one.
    pub fn give_back_owing(mut self, reset: C::Reset) {
        let Some(session) = &mut self.session else { return };
        if session.uses + 1 >= self.uses_max {
            return self.give_back(reset);
        }
        session.uses += 1;
        session.owed = Some((reset, Instant::now()));
        if let Some(session) = self.session.take() {
            lock(&self.idle).push(session);
        }
        self.owing.notify_one();
        drop(std::mem::take(&mut self.permits));
    }

    /// Gives it back once `reset` has ended, if it says that nothing is left of this use.
    pub fn give_back(mut self, reset: C::Reset) {
        let Some(session) = self.session.take() else { return };
        // There is room for every place of the pool. Without a keeper everything ends anyway.
        let _ =
            self.inbox.try_send(Left::Returning(session, std::mem::take(&mut self.permits), reset));
    }
}

impl<C: Connection> Drop for Lease<C> {
    fn drop(&mut self) {
        let Some(mut session) = self.session.take() else { return };
        if session.connection.is_closed() {
            return;
        }
        let _ = self.inbox.try_send(Left::Abandoned(session, std::mem::take(&mut self.permits)));
    }
}

/// The connections of one login.
pub struct Pool<C: Connection> {
    login: Login,
    wait: Duration,
    open: Box<dyn Fn(Login) -> Opening<C> + Send + Sync>,
    places: Arc<Semaphore>,
    idle: Idle<C>,
    owing: Arc<Notify>,
    uses_max: u32,
    inbox: mpsc::Sender<Left<C>>,
    keeper: JoinHandle<()>,
}

type Idle<C> = Arc<Mutex<Vec<Session<C>>>>;

impl<C: Connection> Drop for Pool<C> {
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

impl<C: Connection> Pool<C> {
    /// Connects nothing yet. `open` makes a connection, and asks it what is to be known of it.
    pub fn new(
        login: Login,
        size: Size,
        open: impl Fn(Login) -> Opening<C> + Send + Sync + 'static,
    ) -> Self {
        let (inbox, left) = mpsc::channel(size.connections.max(1));
        let idle: Idle<C> = Arc::default();
        let places = Arc::new(Semaphore::new(size.connections));
        let owing = Arc::<Notify>::default();
        let kept = keep(login.clone(), left, Arc::clone(&idle), size.uses_max);
        let looked_after =
            look_after(Arc::clone(&idle), Arc::clone(&places), Arc::clone(&owing), inbox.clone());
        let kept = async { tokio::join!(kept, looked_after) };
        Self {
            login,
            wait: size.wait,
            open: Box::new(open),
            places,
            idle,
            owing,
            uses_max: size.uses_max,
            inbox,
            keeper: tokio::spawn(async move {
                kept.await;
            }),
        }
    }

    /// A connection in the state of a new one, once [`Lease::take_owed`] is done.
    ///
    /// # Errors
    /// [`Error::Busy`] when none is free in time, others when none can be made.
    pub async fn lease(&self) -> Result<Lease<C>, Error> {
        self.lease_until(Instant::now() + self.wait).await
    }

    /// The same, waiting until then.
    ///
    /// # Errors
    /// As [`Self::lease`].
    pub async fn lease_until(&self, deadline: Instant) -> Result<Lease<C>, Error> {
        let place = timeout_at(deadline, Arc::clone(&self.places).acquire_owned()).await;
        let place = place.map_err(|_| Error::Busy)?;
        let place = place.expect("the semaphore is never closed");
        let session = loop {
            let idle = lock(&self.idle).pop();
            match idle {
                Some(mut session) => {
                    if !session.connection.is_closed() {
                        break session;
                    }
                }
                None => break self.connect().await?,
            }
        };
        let permits = Permits { _place: Some(place), held: None };
        Ok(Lease {
            session: Some(session),
            permits,
            inbox: self.inbox.clone(),
            idle: Arc::clone(&self.idle),
            owing: Arc::clone(&self.owing),
            uses_max: self.uses_max,
        })
    }

    async fn connect(&self) -> Result<Session<C>, Error> {
        // Connecting has a deadline of its own.
        let time = self.login.timeout() * 2;
        let opened = timeout(time, (self.open)(self.login.clone())).await;
        let connection = opened.map_err(|_| Error::Timeout)??;
        Ok(Session { connection, uses: 0, owed: None })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every holder leaves the value whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has those reset that nobody took in time to do it.
async fn look_after<C: Connection>(
    idle: Idle<C>,
    places: Arc<Semaphore>,
    owing: Arc<Notify>,
    inbox: mpsc::Sender<Left<C>>,
) {
    loop {
        owing.notified().await;
        let mut is_owing = true;
        while is_owing {
            sleep(OWING_MAX).await;
            let mut overdue = Vec::new();
            {
                let mut idle = lock(&idle);
                let is_late = |session: &Session<C>| {
                    session.owed.as_ref().is_some_and(|(_, since)| since.elapsed() >= OWING_MAX)
                };
                while let Some(at) = idle.iter().position(is_late)
                    // Whoever has the last place is about to take it.
                    && let Ok(place) = Arc::clone(&places).try_acquire_owned()
                {
                    overdue.push((idle.swap_remove(at), place));
                }
                is_owing = idle.iter().any(|session| session.owed.is_some());
            }
            for (mut session, place) in overdue {
                let Some((reset, _)) = session.owed.take() else { continue };
                let permits = Permits { _place: Some(place), held: None };
                // There is room for every place of the pool.
                let _ = inbox.try_send(Left::Returning(session, permits, reset));
            }
        }
    }
}

/// Takes connections back, and ends those that nobody waits for: told to stop, then ended by force,
/// which functions cannot catch. No more than the pool has places, because each keeps its own.
async fn keep<C: Connection>(
    login: Login,
    mut left: mpsc::Receiver<Left<C>>,
    idle: Idle<C>,
    uses_max: u32,
) {
    // One at a time, so that the login needs one connection more and no second pool.
    let executioner = tokio::sync::Mutex::new(());
    futures_util::stream::poll_fn(|context| left.poll_recv(context))
        .for_each_concurrent(None, async |left| {
            let (session, _permits) = match left {
                Left::Abandoned(session, permits) => (session, permits),
                Left::Returning(mut session, permits, reset) => {
                    let is_reset = timeout(RESET_TIMEOUT, session.connection.reset(reset)).await;
                    session.uses += 1;
                    if session.connection.is_closed() {
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
            let mut connection = session.connection;
            if let Err(error) = connection.cancel(&login).await {
                debug!(%error, "a statement that nobody waits for could not be told to stop");
            }
            if timeout(CANCEL_TIMEOUT, connection.settle()).await.is_err() {
                let _turn = executioner.lock().await;
                terminate(&login, &mut connection).await;
            }
        })
        .await;
}

async fn terminate<C: Connection>(login: &Login, hung: &mut C) {
    let (pid, started) = hung.process().clone();
    warn!(pid, "a statement did not stop when told to; its process is ended");
    let ended = async {
        let client = login.connect("walcast end").await?;
        // Its own login's processes are its to end. The second argument waits for it.
        let sql = "select pg_catalog.pg_terminate_backend(a.pid) \
                   from pg_catalog.pg_stat_activity as a \
                   where a.pid = $1 and a.backend_start::text = $2";
        let parameters: [(&(dyn ToSql + Sync), Type); 2] =
            [(&pid, Type::INT4), (&started, Type::TEXT)];
        client.query_typed(sql, &parameters).await?;
        hung.settle().await;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
    };
    match timeout(END_TIMEOUT, ended).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(pid, error, "the process could not be ended"),
        Err(_) => warn!(pid, "the process did not end in time"),
    }
}
