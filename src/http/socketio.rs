//! Requests of Socket.IO clients: handshakes, polls, posts and sockets at one path.
//!
//! In:     `/socket.io/?EIO=4&transport=…[&sid=…]`.
//! Out:    answers of Engine.IO; 101 and a running socket.
//! Never:  decides by a token (namespaces do); a session for a page that may not talk to us; more of a
//!         body than a message may have.
//! Source: the published protocol of Engine.IO, revision 4.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::Service;
use super::body::{Incoming, READ_ON_MAX, Unread};
use super::sockets::{handshake_refusal, switching_protocols};
use crate::transport::admit::Admit;
use crate::transport::socketio::{Answer, SocketIo};
use crate::transport::websocket;

/// How long a post may take to come.
const POST_TIMEOUT: Duration = Duration::from_secs(30);

/// Of the protocol's answers.
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=UTF-8");

/// What a request asks for, by its query.
struct Wanted<'a> {
    transport: Option<&'a str>,
    session: Option<&'a str>,
}

/// Answers a request of a Socket.IO client.
pub(super) async fn answer<A: Admit>(
    State(service): State<Arc<Service<A>>>,
    request: Request,
) -> Response {
    let Some(socketio) = service.socketio.as_ref().map(Arc::clone) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if !service.gate.origins.admit(request.headers()) {
        return super::error(StatusCode::FORBIDDEN, "Origin is not allowed");
    }
    if request.method() == Method::OPTIONS {
        return StatusCode::NO_CONTENT.into_response();
    }
    let query = request.uri().query().unwrap_or_default().to_owned();
    let value = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find_map(|(key, value)| (key == name).then_some(value))
    };
    if value("EIO") != Some("4") {
        return response(Answer::VERSION);
    }
    let wanted = Wanted { transport: value("transport"), session: value("sid") };
    match (wanted.transport, request.method()) {
        (Some("websocket"), &Method::GET) => open(&service, &socketio, wanted.session, request),
        // Only browsers without cross-origin requests ever wanted scripts instead.
        (Some("polling"), _) if value("j").is_some() => response(Answer::BAD),
        (Some("polling"), &Method::GET) => match wanted.session {
            Some(session) => response(socketio.poll(session).await),
            None => begin(&service, &socketio, request),
        },
        (Some("polling"), &Method::POST) => match wanted.session {
            Some(session) => response(post(&service, &socketio, session, request).await),
            None => response(Answer::Refused(2, "Bad handshake method")),
        },
        (Some("polling" | "websocket"), _) => response(Answer::BAD),
        (Some(_) | None, _) => response(Answer::TRANSPORT),
    }
}

/// A new session that polls.
fn begin<A: Admit>(service: &Service<A>, socketio: &Arc<SocketIo>, request: Request) -> Response {
    let (parts, _body) = request.into_parts();
    let Some(place) = service.connections.reserve() else { return crowded() };
    let Some(place) = place.of(service.gate.address(&parts)) else { return crowded_out() };
    let (answer, run) = socketio.handshake(&parts);
    place.host(run);
    response(answer)
}

/// A WebSocket: a session of its own, or the way on of one that polls.
fn open<A: Admit>(
    service: &Service<A>,
    socketio: &Arc<SocketIo>,
    session: Option<&str>,
    request: Request,
) -> Response {
    let (parts, _body) = request.into_parts();
    let accepted = websocket::accept_handshake(&parts.method, parts.version, &parts.headers);
    let accept = match accepted {
        Ok(accept) => accept,
        Err(problem) => return handshake_refusal(problem),
    };
    let Some(place) = service.connections.reserve() else { return crowded() };
    let Some(place) = place.of(service.gate.address(&parts)) else { return crowded_out() };
    if let Some(session) = session {
        let Some(start) = socketio.upgrade(session) else { return response(Answer::UNKNOWN) };
        place.upgrade(upgraded(parts), start);
    } else {
        let start = socketio.open(&parts);
        place.upgrade(upgraded(parts), start);
    }
    switching_protocols(&accept)
}

fn upgraded(parts: Parts) -> hyper::upgrade::OnUpgrade {
    hyper::upgrade::on(Request::from_parts(parts, ()))
}

async fn post<A: Admit>(
    service: &Service<A>,
    socketio: &SocketIo,
    session: &str,
    request: Request,
) -> Answer {
    // Nobody's body is read.
    if !socketio.has(session) {
        return Answer::UNKNOWN;
    }
    let (parts, body) = request.into_parts();
    let max = socketio.message_bytes_max();
    let mut body = Incoming::new(body, &parts.headers, POST_TIMEOUT);
    match body.read(max, service.connections.unfinished()).await {
        Ok(upload) => match std::str::from_utf8(&upload.bytes) {
            Ok(text) => socketio.post(session, text).await,
            Err(_) => Answer::BAD,
        },
        Err(Unread::TooLarge) => {
            let max = u64::try_from(max).unwrap_or(u64::MAX);
            body.discard(max.saturating_mul(READ_ON_MAX)).await;
            Answer::TooLarge
        }
        Err(Unread::Late | Unread::Crowded | Unread::Broken) => Answer::BAD,
    }
}

fn crowded() -> Response {
    super::error(StatusCode::SERVICE_UNAVAILABLE, "Too many connections")
}

fn crowded_out() -> Response {
    super::error(StatusCode::TOO_MANY_REQUESTS, "Too many connected users")
}

fn response(answer: Answer) -> Response {
    const NO_STORE: (HeaderName, HeaderValue) =
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let text = [(header::CONTENT_TYPE, TEXT), NO_STORE];
    match answer {
        Answer::Packets(packets) => (text, packets).into_response(),
        Answer::Taken => (text, "ok").into_response(),
        Answer::TooLarge => StatusCode::PAYLOAD_TOO_LARGE.into_response(),
        Answer::Refused(code, message) => {
            let body = serde_json::json!({ "code": code, "message": message });
            (StatusCode::BAD_REQUEST, [NO_STORE], axum::Json(body)).into_response()
        }
    }
}
