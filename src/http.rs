//! The routes, and who answers them.
//!
//! In:     requests; an [`Admit`] that knows who may open a socket.
//! Out:    101 and a running socket, or a refusal as JSON; probes and metrics.
//! Never:  logs a path or a query: both may hold a token.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Serialize;
use tokio::time::sleep;

use crate::transport::admit::{Admit, Refusal};
use crate::transport::listener::Connections;
use crate::transport::websocket::{self, HandshakeError};

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self.error {
            Some(text) => error(self.status, &text),
            None => self.status.into_response(),
        }
    }
}

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
}

/// Every route.
pub fn router<A: Admit>(service: Arc<Service<A>>) -> Router {
    Router::new()
        .route("/socket/websocket", get(open_socket::<A>))
        .route("/realtime/v1/websocket", get(open_socket::<A>))
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(readiness::<A>))
        .route("/metrics", get(metrics::<A>))
        .with_state(service)
}

async fn open_socket<A: Admit>(
    State(service): State<Arc<Service<A>>>,
    request: Request,
) -> Response {
    let (mut parts, _body) = request.into_parts();
    let accept = match websocket::accept_handshake(&parts.method, parts.version, &parts.headers) {
        Ok(accept) => accept,
        Err(problem) => return handshake_refusal(problem),
    };
    let Some(place) = service.connections.reserve() else {
        return error(StatusCode::SERVICE_UNAVAILABLE, "Too many connections");
    };
    service.admit.prepare(&parts).await;
    let refusal = match service.admit.admit(&parts) {
        Ok(start) => {
            place.upgrade(hyper::upgrade::on(Request::from_parts(parts, ())), start);
            return switching_protocols(&accept);
        }
        Err(refusal) => refusal,
    };
    drop(place);
    // The request may hold a token, and waits with its connection: keep neither.
    parts.headers.clear();
    drop(parts);
    sleep(refusal.delay).await;
    refusal.into_response()
}

fn switching_protocols(accept: &str) -> Response {
    let headers = [
        (header::CONNECTION, "Upgrade"),
        (header::UPGRADE, "websocket"),
        (header::SEC_WEBSOCKET_ACCEPT, accept),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

fn handshake_refusal(problem: HandshakeError) -> Response {
    let status = match problem {
        HandshakeError::NotAnUpgrade | HandshakeError::WrongVersion => StatusCode::UPGRADE_REQUIRED,
        HandshakeError::Malformed => StatusCode::BAD_REQUEST,
    };
    let mut response = error(status, &problem.to_string());
    let headers = response.headers_mut();
    if status == StatusCode::UPGRADE_REQUIRED {
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    response
}

fn error(status: StatusCode, text: &str) -> Response {
    #[derive(Serialize)]
    struct Body<'a> {
        error: &'a str,
    }
    (status, axum::Json(Body { error: text })).into_response()
}

async fn readiness<A: Admit>(State(service): State<Arc<Service<A>>>) -> Response {
    match (service.ready)() {
        Ok(()) => "ready".into_response(),
        Err(missing) => error(StatusCode::SERVICE_UNAVAILABLE, &missing),
    }
}

async fn metrics<A: Admit>(State(service): State<Arc<Service<A>>>) -> Response {
    let kind = (header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
    ([kind], (service.metrics)()).into_response()
}
