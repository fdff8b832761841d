//! Who may open a socket, and what runs on it.
//!
//! In:     the head of an upgrade request.
//! Out:    the [`Peer`] of the socket, or a [`Refusal`] for `http` to answer with.
//! Never:  IO of its own.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use axum::http::request::Parts;

use super::websocket::Peer;
use crate::hub::outbox::Outbox;

/// Decides on a request for a socket before it is answered, and makes the session it will run.
pub trait Admit: Send + Sync + 'static {
    /// What runs on the socket.
    type Peer: Peer + 'static;

    /// Waits for what is needed to decide on `request` and is on its way; some seconds at most.
    fn prepare(&self, _request: &Parts) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// Who is asking, and may they? Path, query, headers and the peer's address
    /// (`ConnectInfo<SocketAddr>` in the extensions) are in `request`. The closure is called once
    /// the socket is open, with its outbox.
    ///
    /// # Errors
    /// What to answer instead of 101.
    fn admit(
        &self,
        request: &Parts,
    ) -> Result<impl FnOnce(Arc<Outbox>) -> Self::Peer + Send + 'static, Refusal>;
}

/// Why a request gets no socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Status of the response.
    pub status: StatusCode,
    /// The text of `{"error": text}`; the body is empty when there is none.
    pub error: Option<Cow<'static, str>>,
    /// How long the answer waits, so that a client in a retry loop is slowed.
    pub delay: Duration,
}
