//! What operators, container probes, scrapers and the official container's neighbours ask.
//!
//! In:     requests, some with a bearer token.
//! Out:    health, readiness, metrics, and the one tenant there is.
//! Never:  a setting changed by a request; a secret in an answer.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Service, error, message};
use crate::auth::jwt::{TokenError, Verifier};
use crate::transport::admit::Admit;

/// What is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Health {
    /// Postgres answers.
    pub db_connected: bool,
    /// The replication slot is attached.
    pub replication_connected: bool,
}

/// What operators and their programs ask.
pub struct Operations {
    /// What is well now.
    pub health: Box<dyn Fn() -> Health + Send + Sync>,
    /// Whose tokens may ask about tenants; nobody's when there is none.
    pub bearers: Option<Arc<Verifier>>,
    /// Whose tokens may read metrics; everybody may when there is none.
    pub metrics_bearers: Option<Verifier>,
    /// The one tenant there is, as the official API shows one.
    pub tenant: Value,
}

impl Default for Operations {
    /// Nothing is known to be well, and nobody may ask about tenants.
    fn default() -> Self {
        let unknown = Health { db_connected: false, replication_connected: false };
        Self {
            health: Box::new(move || unknown),
            bearers: None,
            metrics_bearers: None,
            tenant: Value::Null,
        }
    }
}

/// Whether the request has a token that one of our keys signed and that has not expired. A role is
/// not asked for: programs that probe have none.
fn is_signed(verifier: &Verifier, headers: &HeaderMap) -> bool {
    let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = token.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    let Some(token) = token else { return false };
    // The signature and the expiry are checked before what the last two miss.
    matches!(
        verifier.verify(token, SystemTime::now()),
        Ok(_) | Err(TokenError::FieldsMissing | TokenError::Role)
    )
}

/// The process runs.
pub(super) async fn alive() -> &'static str {
    "ok"
}

/// The same, in the official API's words.
pub(super) async fn ping() -> Response {
    message(StatusCode::OK, "Success")
}

/// Whether events flow.
pub(super) async fn readiness<A: Admit>(State(service): State<Arc<Service<A>>>) -> Response {
    match (service.ready)() {
        Ok(()) => "ready".into_response(),
        Err(missing) => error(StatusCode::SERVICE_UNAVAILABLE, &missing),
    }
}

/// The same for people: always an answer, and the version with it.
pub(super) async fn status<A: Admit>(State(service): State<Arc<Service<A>>>) -> Response {
    let missing = (service.ready)().err();
    axum::Json(json!({
        "status": if missing.is_none() { "ready" } else { "not ready" },
        "missing": missing,
        "version": env!("CARGO_PKG_VERSION"),
    }))
    .into_response()
}

/// All metrics.
pub(super) async fn metrics<A: Admit>(
    State(service): State<Arc<Service<A>>>,
    headers: HeaderMap,
) -> Response {
    let bearers = service.operations.metrics_bearers.as_ref();
    if bearers.is_some_and(|verifier| !is_signed(verifier, &headers)) {
        return StatusCode::FORBIDDEN.into_response();
    }
    let kind = (header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
    ([kind], (service.metrics)()).into_response()
}

/// What keeps a request about tenants from being answered.
fn refusal<A>(service: &Service<A>, method: &Method, headers: &HeaderMap) -> Option<Response> {
    let admitted = service.operations.bearers.as_ref().is_some_and(|it| is_signed(it, headers));
    if !admitted {
        return Some(StatusCode::FORBIDDEN.into_response());
    }
    if [Method::GET, Method::HEAD].contains(method) {
        return None;
    }
    let text = "This server has one tenant, made of its settings: change those and restart it";
    let mut response = message(StatusCode::METHOD_NOT_ALLOWED, text);
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    Some(response)
}

fn data(value: &impl Serialize) -> Response {
    #[derive(Serialize)]
    struct Body<'a, T> {
        data: &'a T,
    }
    axum::Json(Body { data: value }).into_response()
}

/// All tenants: one.
pub(super) async fn tenants<A: Admit>(
    State(service): State<Arc<Service<A>>>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    refusal(&service, &method, &headers).unwrap_or_else(|| data(&[&service.operations.tenant]))
}

/// The one tenant, by whatever name.
pub(super) async fn tenant<A: Admit>(
    State(service): State<Arc<Service<A>>>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    refusal(&service, &method, &headers).unwrap_or_else(|| data(&service.operations.tenant))
}

/// What the official compose file probes. It is 200 also while the database is away: the process
/// waits for it, and restarting would not bring it back. `healthy` tells.
pub(super) async fn tenant_health<A: Admit>(
    State(service): State<Arc<Service<A>>>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    if let Some(refusal) = refusal(&service, &method, &headers) {
        return refusal;
    }
    let Health { db_connected, replication_connected } = (service.operations.health)();
    data(&json!({
        "healthy": (service.ready)().is_ok(),
        "db_connected": db_connected,
        "replication_connected": replication_connected,
        "connected_cluster": service.connections.sockets(),
        "region": "local",
        "node": "walcast",
    }))
}

/// What is done to a tenant there (reload, shutdown), and not here.
pub(super) async fn tenant_action<A: Admit>(
    State(service): State<Arc<Service<A>>>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    refusal(&service, &method, &headers)
        .unwrap_or_else(|| message(StatusCode::NOT_FOUND, "not found"))
}
