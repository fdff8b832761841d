//! Requests for an event stream: who gets one.
//!
//! In:     `GET /events` with a token in a header or in the query.
//! Out:    a connection that [`Events`] takes over, or a refusal.
//! Never:  keeps a refused request while it waits; a token or a query in a log.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::time::sleep;

use super::broadcast::token;
use super::{Service, error, rest};
use crate::transport::admit::Admit;
use crate::transport::events::{Events, Refused};
use crate::transport::listener::Takeover;

const STREAM: &str = "text/event-stream";

/// Answers a request for an event stream. Where rows are served at the root, a table may have this
/// path too: there, only who asks for a stream gets one.
pub(super) async fn open<A: Admit>(
    State(service): State<Arc<Service<A>>>,
    request: Request,
) -> Response {
    let at_root = service.rows.as_ref().is_some_and(super::Rows::is_at_root);
    if at_root && request.uri().path() == "/events" && !accepts_stream(request.headers()) {
        return rest::answer::<A>(State(service), request).await;
    }
    let Some(events) = &service.events else { return StatusCode::NOT_FOUND.into_response() };
    if request.method() != Method::GET {
        let allowed = [(header::ALLOW, HeaderValue::from_static("GET"))];
        return (allowed, error(StatusCode::METHOD_NOT_ALLOWED, "Only GET is possible here"))
            .into_response();
    }
    let reconnects = Events::reconnects(request.headers());
    match admit(&service, events, request).await {
        Ok(takeover) => {
            let mut response = Response::default();
            response.extensions_mut().insert(takeover);
            response
        }
        Err(refused) => {
            sleep(events.delay(&refused)).await;
            let (status, headers, body) = events.refusal(&refused, reconnects);
            (status, headers, body).into_response()
        }
    }
}

/// Who asks, and whether there is room; the request is gone when this has answered.
async fn admit<A: Admit>(
    service: &Service<A>,
    events: &Events,
    request: Request,
) -> Result<Takeover, Refused> {
    let (parts, _body) = request.into_parts();
    if !service.gate.origins.admit(&parts.headers) {
        return Err(Refused::new(StatusCode::FORBIDDEN, "Origin is not allowed"));
    }
    let crowded = || Refused::new(StatusCode::SERVICE_UNAVAILABLE, "Too many connections");
    let place = service.connections.reserve().ok_or_else(crowded)?;
    let crowded = || Refused::new(StatusCode::TOO_MANY_REQUESTS, "Too many connected users");
    let place = place.of(service.gate.address(&parts)).ok_or_else(crowded)?;
    let admitted = events.admit(&parts, token(&parts.headers)).await?;
    let start = events.start(admitted);
    Ok(Takeover::new(move |headers, stream| {
        place.attend(stream, |outbox, grace| start(headers, outbox, grace));
    }))
}

fn accepts_stream(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted
        .flat_map(|value| value.split(','))
        .any(|kind| kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(STREAM))
}
