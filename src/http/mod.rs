//! The routes, and who answers them.
//!
//! In:     requests; an [`Admit`] that knows who may open a socket.
//! Out:    101 and a running socket, an event stream, or a refusal as JSON; polls and posts of
//!         Socket.IO; probes and metrics; rows; what another Supabase service answers, when we stand
//!         in front of one.
//! Never:  logs a path or a query: both may hold a token.

mod body;
mod broadcast;
mod compressed;
mod cors;
mod events;
mod probes;
mod proxy;
mod rest;
mod socketio;
mod sockets;
mod unchanged;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use serde::Serialize;

use crate::transport::admit::Admit;
use crate::transport::events::Events;
use crate::transport::listener::Connections;
use crate::transport::socketio::SocketIo;

pub use broadcast::{Broadcasts, batch};
pub use cors::Origins;
pub use probes::{Health, Operations};
pub use proxy::Proxy;
pub use rest::Rows;
pub use sockets::Gate;

/// What the routes are made of.
pub struct Service<A> {
    /// Who may open a socket.
    pub admit: A,
    /// Where sockets live.
    pub connections: Arc<Connections>,
    /// Whether events flow; the text says what is missing.
    pub ready: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// All metrics in Prometheus' text form.
    pub metrics: Box<dyn Fn() -> String + Send + Sync>,
    /// From where a socket may be opened.
    pub gate: Gate,
    /// What operators and their programs ask.
    pub operations: Operations,
    /// Event streams; there are none without.
    pub events: Option<Events>,
    /// Clients of Socket.IO; there are none without.
    pub socketio: Option<Arc<SocketIo>>,
    /// What is said over HTTP; nothing can be when there is none.
    pub broadcasts: Option<Broadcasts>,
    /// Rows of the user's tables; when there are none here, the proxy may have them.
    pub rows: Option<Rows>,
    /// Who answers the paths that are not ours.
    pub proxy: Option<Proxy>,
}

/// Every route. What a gateway serves as `/realtime/v1/api` it sends on as `/api`: both are here,
/// so that none is needed.
pub fn router<A: Admit>(service: Arc<Service<A>>) -> Router {
    let cors = from_fn_with_state(Arc::clone(&service), cors::answer::<A>);
    let mut router = Router::new();
    if let Some(rows) = &service.rows {
        let mut served = Router::new()
            .route("/rest/v1", any(rest::answer::<A>))
            .route("/rest/v1/", any(rest::answer::<A>))
            .route("/rest/v1/{*path}", any(rest::answer::<A>));
        if rows.is_at_root() {
            served = served
                .route("/", any(rest::answer::<A>))
                .route("/{relation}", any(rest::answer::<A>))
                .route("/rpc/{function}", any(rest::answer::<A>));
        }
        router = router
            .merge(served.layer(from_fn(unchanged::or_not)).layer(from_fn(compressed::if_wanted)));
    }
    router
        .route("/socket/websocket", get(sockets::open::<A>))
        .route("/realtime/v1/websocket", get(sockets::open::<A>))
        .route("/events", any(events::open::<A>))
        .route("/realtime/v1/events", any(events::open::<A>))
        .route("/socket.io", any(socketio::answer::<A>))
        .route("/socket.io/", any(socketio::answer::<A>))
        .route("/healthz", get(probes::alive))
        .route("/health", get(probes::alive))
        .route("/healthcheck", get(probes::alive))
        .route("/readyz", get(probes::readiness::<A>))
        .route("/status", get(probes::status::<A>))
        .route("/metrics", get(probes::metrics::<A>))
        .route("/tenant-metrics", get(probes::metrics::<A>))
        .nest("/api", api(service.rows.is_some()))
        .nest("/realtime/v1/api", api(service.rows.is_some()))
        .layer(cors)
        .fallback(proxy::pass::<A>)
        .with_state(service)
        .layer(from_fn(with_one_host))
}

/// Refuses what names two hosts: whoever stands in front of us may have read the other one.
async fn with_one_host(request: Request, next: Next) -> Response {
    if request.headers().get_all(header::HOST).iter().nth(1).is_some() {
        let close = [(header::CONNECTION, "close")];
        return (close, error(StatusCode::BAD_REQUEST, "More than one Host")).into_response();
    }
    next.run(request).await
}

/// `has_rows`: every other path may be one of the application's own.
fn api<A: Admit>(has_rows: bool) -> Router<Arc<Service<A>>> {
    let router = Router::new();
    let router = if has_rows { router.merge(own_routes::<A>()) } else { router };
    router
        .route("/ping", get(probes::ping))
        .route("/broadcast", post(broadcast::batch::<A>))
        .route("/broadcast/{topic}/events/{event}", post(broadcast::single::<A>))
        .route("/tenants", any(probes::tenants::<A>))
        .route("/tenants/{id}", any(probes::tenant::<A>))
        .route("/tenants/{id}/health", any(probes::tenant_health::<A>))
        .route("/tenants/{id}/{*rest}", any(probes::tenant_action::<A>))
}

/// The application's own paths.
fn own_routes<A: Admit>() -> Router<Arc<Service<A>>> {
    let router = Router::new().route("/{*path}", any(rest::answer_route::<A>));
    router.layer(from_fn(unchanged::or_not)).layer(from_fn(compressed::if_wanted))
}

/// A refusal in the words of the socket's side: `{"error": text}`.
fn error(status: StatusCode, text: &str) -> Response {
    #[derive(Serialize)]
    struct Body<'a> {
        error: &'a str,
    }
    (status, axum::Json(Body { error: text })).into_response()
}

/// An answer in the words of the HTTP side: `{"message": text}`.
fn message(status: StatusCode, text: &str) -> Response {
    #[derive(Serialize)]
    struct Body<'a> {
        message: &'a str,
    }
    (status, axum::Json(Body { message: text })).into_response()
}
