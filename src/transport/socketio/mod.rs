//! Socket.IO 5 on Engine.IO 4: namespaces with the manners that were declared for them.
//!
//! In:     requests of `/socket.io/`, and their sockets; broadcasts from the hub.
//! Out:    packets; places in rooms; calls of functions as the user; what a client relays to a room.
//! Never:  an event of a client that was not declared; an identity from a payload; a row change that
//!         does not come through the log.
//! Source: the published protocols of Engine.IO (revision 4) and Socket.IO (revision 5).
//!
//! A namespace is a profile of [`crate::profile`]. Its rooms are private channels, the ones that other
//! protocols join as `realtime:{topic}`: who may enter is decided by the same [`crate::join::Joiner`].
//!
//! | file | what it has |
//! |---|---|
//! | `packet`* | text ↔ packets |
//! | `engine` | sessions that poll, the way to a WebSocket, signs of life |
//! | `connection` | one connection and the namespaces it is in |
//! | `client/` | one client in a namespace: its events, and its rooms (`seats`) |
//! | `entrance` | what entering a namespace or a room asks of the database |
//! | `telling` `relays`* | what a client says to others, and when |
//! | `online` `roster` `recovery` | who is online, who is in a room, who comes back |
//! | `format`* | events → frames |

mod client;
mod connection;
mod engine;
mod entrance;
mod format;
mod online;
pub mod packet;
mod recovery;
mod relays;
mod roster;
mod telling;

use std::sync::Arc;
use std::time::Duration;

use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::realtime::{Realtime, parameter, policy_headers};
use super::websocket::text_frame;
use crate::command::Commander;
use crate::feed::Declarations;
use crate::hub::outbox::{CloseReason, Outbox};

use connection::Connection;
pub use engine::{Answer, Socket};
use engine::{Heart, Sessions};
use recovery::Recoveries;
use roster::Rosters;

/// How long a user may be without a connection, before he is gone, where it was lost and not closed.
const GRACE: Duration = Duration::from_secs(3);

/// All clients of Socket.IO.
pub struct SocketIo {
    realtime: Arc<Realtime>,
    declarations: Arc<Declarations>,
    commander: Arc<Commander>,
    /// Bytes of one message.
    message_bytes_max: usize,
    sessions: Arc<Sessions>,
    heart: Arc<Heart>,
    rosters: Rosters,
    recoveries: Recoveries,
}

impl std::fmt::Debug for SocketIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SocketIo").finish_non_exhaustive()
    }
}

/// What a connection was opened with.
#[derive(Debug)]
struct Shown {
    /// Bearer of the header `Authorization`.
    header: Option<Box<str>>,
    /// `token` of the query.
    query: Option<Box<str>>,
    /// What policies read as `request.headers`: a JSON object.
    headers: Arc<str>,
    /// The verifier's, when the connection was opened.
    epoch: u64,
}

impl SocketIo {
    /// Beside the sockets of `realtime`, with all that they share.
    pub fn new(
        realtime: Arc<Realtime>,
        declarations: Arc<Declarations>,
        commander: Arc<Commander>,
        message_bytes_max: usize,
    ) -> Arc<Self> {
        Arc::new(Self {
            realtime,
            declarations,
            commander,
            message_bytes_max,
            sessions: Arc::default(),
            heart: Arc::default(),
            rosters: Rosters::default(),
            recoveries: Recoveries::default(),
        })
    }

    /// Asks for signs of life until `stop`.
    pub fn keep_alive(&self, stop: CancellationToken) -> impl Future<Output = ()> + Send + 'static {
        let heart = Arc::clone(&self.heart);
        async move { heart.run(stop).await }
    }

    /// Bytes of one message, or of one post.
    pub fn message_bytes_max(&self) -> usize {
        self.message_bytes_max
    }

    fn shown(&self, request: &Parts) -> Shown {
        let token = parameter(request.uri.query().unwrap_or_default(), "token");
        Shown {
            header: bearer(&request.headers).map(Into::into),
            query: token.map(|token| token.into_owned().into()),
            headers: policy_headers(&request.headers),
            epoch: self.realtime.verifier.epoch(),
        }
    }

    fn connection(self: &Arc<Self>, shown: Shown, outbox: &Arc<Outbox>) -> Connection {
        self.heart.add(outbox);
        Connection::new(Arc::clone(self), shown, Arc::clone(outbox))
    }

    /// What runs on a WebSocket that began without a session; to be called with its outbox.
    pub fn open(
        self: &Arc<Self>,
        request: &Parts,
    ) -> impl FnOnce(Arc<Outbox>) -> Socket + Send + 'static {
        let (this, shown) = (Arc::clone(self), self.shown(request));
        move |outbox| {
            let id = new_id();
            let open = engine::open_packet(&id, false, this.message_bytes_max);
            // Whoever takes nothing is found out by its task.
            let _ = outbox.send(text_frame(&open));
            Socket::live(this.connection(shown, &outbox))
        }
    }

    /// The same of a WebSocket that a session which polls tries; none when there is no such session.
    pub fn upgrade(
        &self,
        session: &str,
    ) -> Option<impl FnOnce(Arc<Outbox>) -> Socket + Send + 'static + use<>> {
        let polled = self.sessions.get(session)?;
        Some(move |outbox| Socket::trial(outbox, polled))
    }

    /// A new session that polls: its first answer, and what runs it; to be called with its outbox.
    pub fn handshake(
        self: &Arc<Self>,
        request: &Parts,
    ) -> (Answer, impl FnOnce(Arc<Outbox>) -> Hosted + Send + 'static + use<>) {
        let (this, shown, id) = (Arc::clone(self), self.shown(request), new_id());
        let open = engine::open_packet(&id, true, self.message_bytes_max);
        let run = move |outbox: Arc<Outbox>| -> Hosted {
            let connection = this.connection(shown, &outbox);
            let sessions = Arc::clone(&this.sessions);
            Box::pin(engine::host(sessions, id.into(), connection, outbox))
        };
        (Answer::Packets(open), run)
    }

    /// What a session is told next.
    pub async fn poll(&self, session: &str) -> Answer {
        match self.sessions.get(session) {
            Some(polled) => polled.poll().await,
            None => Answer::UNKNOWN,
        }
    }

    /// Takes what a session posted.
    pub async fn post(&self, session: &str, body: &str) -> Answer {
        match self.sessions.get(session) {
            Some(polled) => polled.post(body).await,
            None => Answer::UNKNOWN,
        }
    }

    /// Whether there is such a session.
    pub fn has(&self, session: &str) -> bool {
        self.sessions.get(session).is_some()
    }
}

/// A session that polls, to its end.
pub type Hosted = std::pin::Pin<Box<dyn Future<Output = Option<CloseReason>> + Send>>;

/// A name that nobody guesses.
fn new_id() -> String {
    Uuid::new_v4().simple().to_string()
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
}
