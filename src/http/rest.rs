//! Rows over HTTP: who asks, with what body, and where to what is not built here.
//!
//! In:     requests under `/rest/v1`; those for paths of the application's own, under `/api`.
//! Out:    what [`crate::rest`] answers; what another PostgREST does, for what is not implemented.
//! Never:  a body kept before its sender is known; a publishable key as a bearer's token; anything
//!         passed on for somebody whose token was refused.
//! Source: spec `rest.md` D1 and D5

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use tracing::debug;

use super::body::{Incoming, READ_ON_MAX, Unread, Upload};
use super::broadcast::{API_KEY, token};
use super::proxy::{Proxy, climbs};
use super::{Gate, Service};
use crate::auth::Claims;
use crate::auth::jwt::{TokenError, Verifier};
use crate::config::{self, Config};
use crate::rest::Problem;
use crate::rest::answer::{self, Rest};
use crate::rest::request::{Target, Verb};
use crate::rest::route::Found;
use crate::telemetry;
use crate::transport::admit::Admit;
use crate::transport::websocket::Room;

/// How far the clock of whoever signs tokens may be from ours: PostgREST's.
const SKEW: Duration = Duration::from_secs(30);

/// What keys that are no tokens begin with.
const KEY_PREFIX: &str = "sb_";

/// How often the client has asked before.
const RETRY_COUNT: HeaderName = HeaderName::from_static("x-retry-count");

/// Where this interface is, for us and for Supabase's gateway.
const PREFIX: &str = "/rest/v1";

/// Rows, and who may ask for them.
pub struct Rows {
    verifier: Arc<Verifier>,
    rest: Rest,
    /// Whoever has no token; nobody may come without one when there is none.
    anonymous: Option<Claims>,
    body_bytes_max: usize,
    body_timeout: Duration,
    at_root: bool,
    /// Who answers what we do not, and the path before its tables'.
    upstream: Option<(Proxy, String)>,
}

impl Rows {
    /// Those of `rest`, to whom `verifier` knows.
    ///
    /// # Errors
    /// When the URL of the upstream is none.
    pub fn new(
        verifier: Arc<Verifier>,
        rest: Rest,
        config: &Config,
    ) -> Result<Self, config::Error> {
        let settings = &config.rest;
        let is_role = config.database.roles.contains(&settings.anon_role);
        let upstream = if settings.upstream.is_empty() {
            None
        } else {
            let parts = settings.upstream_parts().map_err(|problem| config::Error::Invalid {
                name: "rest.upstream".into(),
                problem: problem.into(),
            });
            let (upstream, base) = parts?;
            let proxy = Proxy::new(&config::Proxy { upstream, ..config.proxy.clone() })?;
            proxy.map(|proxy| (proxy, base))
        };
        Ok(Self {
            verifier,
            rest,
            anonymous: is_role.then(|| anonymous(&settings.anon_role)),
            body_bytes_max: settings.body_bytes_max,
            body_timeout: Duration::from_millis(config.server.body_timeout_ms),
            at_root: settings.at_root,
            upstream,
        })
    }

    /// Whether the paths are served without their prefix, too.
    pub(super) fn is_at_root(&self) -> bool {
        self.at_root
    }

    async fn answer(&self, gate: &Gate, room: Arc<Room>, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let mut body = Incoming::new(body, &parts.headers, self.body_timeout);
        let mut upload = None;
        let problem = match self.serve(gate, room, &parts, &mut body, &mut upload).await {
            Ok(response) => return response,
            Err(problem) => problem,
        };
        if problem.is_not_implemented()
            && let Some((proxy, base)) = &self.upstream
        {
            let bytes = upload.as_ref().map_or_else(Bytes::new, |upload| upload.bytes.clone());
            return pass(proxy, base, parts, bytes).await;
        }
        debug!(code = &*problem.code, "a request for rows was refused");
        body.discard(self.unwanted_max()).await;
        problem.into_response()
    }

    async fn serve(
        &self,
        gate: &Gate,
        room: Arc<Room>,
        parts: &Parts,
        body: &mut Incoming,
        upload: &mut Option<Upload>,
    ) -> Result<Response, Problem> {
        let Parts { method, headers, uri, .. } = parts;
        if !gate.origins.admit(headers) {
            return Err(foreign());
        }
        let target = Target::parse(uri.path())?;
        let verb = target.verb(method)?;
        if verb == Verb::Options {
            return self.rest.options(&target, headers).await;
        }
        let claims = self.sender(headers).await?;
        if let Verb::Insert | Verb::Put | Verb::Update | Verb::Call = verb {
            let whole = body.read(self.body_bytes_max, room).await.map_err(unread)?;
            *upload = Some(whole);
        }
        let body = upload.as_ref().map_or_else(Bytes::new, |upload| upload.bytes.clone());
        let query = uri.query().unwrap_or_default();
        let request = answer::Request {
            claims: &claims,
            method,
            target: &target,
            verb,
            query,
            headers,
            body,
        };
        Box::pin(self.rest.answer(&request)).await
    }

    async fn answer_route(&self, gate: &Gate, room: Arc<Room>, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let mut body = Incoming::new(body, &parts.headers, self.body_timeout);
        let response = self.serve_route(gate, room, &parts, &mut body).await;
        let response = response.unwrap_or_else(|problem| {
            debug!(code = &*problem.code, "a request for rows was refused");
            problem.into_response()
        });
        if !response.status().is_success() {
            body.discard(self.unwanted_max()).await;
        }
        response
    }

    /// As an ordinary request: the one that the path stands for.
    async fn serve_route(
        &self,
        gate: &Gate,
        room: Arc<Room>,
        parts: &Parts,
        body: &mut Incoming,
    ) -> Result<Response, Problem> {
        let Parts { method, headers, uri, .. } = parts;
        if !gate.origins.admit(headers) {
            return Err(foreign());
        }
        let path = uri.path().trim_start_matches('/');
        let (route, values) = match self.rest.route(method, path).await? {
            Found::Route(route, values) => (route, values),
            Found::Others(others) => {
                let allowed = others.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
                let allowed = HeaderValue::from_str(&allowed).expect("made of methods");
                let allowed = [(header::ALLOW, allowed)];
                if *method == Method::OPTIONS {
                    return Ok((StatusCode::OK, allowed).into_response());
                }
                return Ok((allowed, Problem::method(method)).into_response());
            }
            Found::Nothing => return Err(Problem::path()),
        };
        let claims = self.sender(headers).await?;
        let query = uri.query().unwrap_or_default();
        let is_anonymous = self.rest.is_anonymous(&claims);
        let mut filled = route.fill(method, &values, &claims, is_anonymous, query)?;
        let mut headers = route.headers(headers);
        // Held for as long as the request takes, as its bytes are.
        let upload = if filled.takes_body() {
            Some(body.read(self.body_bytes_max, room).await.map_err(unread)?)
        } else {
            None
        };
        let sent = upload.as_ref().map_or_else(Bytes::new, |upload| upload.bytes.clone());
        let body = filled.body(&mut headers, sent)?;
        let request = answer::Request {
            claims: &claims,
            method: &filled.method,
            target: &filled.target,
            verb: filled.verb,
            query: &filled.query,
            headers: &headers,
            body,
        };
        Box::pin(self.rest.answer(&request)).await
    }

    /// Bytes of a body that is read only so that its sender hears why it is refused.
    fn unwanted_max(&self) -> u64 {
        u64::try_from(self.body_bytes_max).unwrap_or(u64::MAX).saturating_mul(READ_ON_MAX)
    }

    /// The claims of whoever sends `headers`.
    async fn sender(&self, headers: &HeaderMap) -> Result<Claims, Problem> {
        let token = token(headers).ok_or_else(|| Problem::token(&TokenError::Malformed))?;
        if token.is_empty() {
            return self.anonymous.clone().ok_or_else(Problem::anonymous);
        }
        // Clients send the key in both places until somebody signs in. Alone, it is no token.
        let is_key = |key: &HeaderMap| key.get(API_KEY).is_some_and(|key| *key == *token);
        if token.starts_with(KEY_PREFIX) && !is_key(headers) {
            return Err(Problem::token(&TokenError::Malformed));
        }
        let now = SystemTime::now();
        let claims = self.verifier.verify_fresh(token, now - SKEW).await;
        let claims = claims.map_err(|error| Problem::token(&error))?;
        check_times(&claims, now)?;
        Ok(claims)
    }
}

/// Who has no token.
fn anonymous(role: &str) -> Claims {
    Claims {
        role: role.into(),
        subject: None,
        json: serde_json::json!({ "role": role }).to_string().into(),
        // Longer than any request takes.
        expires_at: UNIX_EPOCH + Duration::from_secs(u64::from(u32::MAX) * 8),
    }
}

/// What the sockets' protocol does not look at: whether the token is from the future.
fn check_times(claims: &Claims, now: SystemTime) -> Result<(), Problem> {
    #[derive(Deserialize)]
    struct Times {
        nbf: Option<f64>,
        iat: Option<f64>,
    }
    let refused = |text: &str| Problem::new(StatusCode::UNAUTHORIZED, "PGRST303", text);
    let times: Times = serde_json::from_str(&claims.json)
        .map_err(|_| refused("The JWT claims nbf and iat must be numbers"))?;
    let latest = (now + SKEW).duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    if times.nbf.is_some_and(|start| start > latest) {
        return Err(refused("JWT not yet valid"));
    }
    if times.iat.is_some_and(|issued| issued > latest) {
        return Err(refused("JWT issued at future"));
    }
    Ok(())
}

/// Of a page that may not talk to us.
fn foreign() -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "42501", "Origin is not allowed")
}

fn unread(unread: Unread) -> Problem {
    let (status, text) = match unread {
        Unread::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "The body is too large"),
        Unread::Late => (StatusCode::REQUEST_TIMEOUT, "The body did not come in time"),
        Unread::Crowded => (StatusCode::SERVICE_UNAVAILABLE, "Too many requests"),
        Unread::Broken => (StatusCode::BAD_REQUEST, "The body is not complete"),
    };
    Problem::new(status, "PGRST102", text)
}

/// What `proxy` answers; its tables are below `base`.
async fn pass(proxy: &Proxy, base: &str, mut parts: Parts, body: Bytes) -> Response {
    let path = parts.uri.path();
    if climbs(path) {
        return StatusCode::BAD_REQUEST.into_response();
    }
    let path = path.strip_prefix(PREFIX).unwrap_or(path);
    let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let place = format!("{base}{path}{query}");
    let place = if place.starts_with('/') { place } else { format!("/{place}") };
    let Ok(place) = place.parse::<PathAndQuery>() else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    parts.uri = Uri::from(place);
    parts.headers.remove(header::TRANSFER_ENCODING);
    parts.headers.remove(header::CONTENT_LENGTH);
    proxy.pass(Request::from_parts(parts, Body::from(body))).await
}

/// Answers everything under `/rest/v1`.
pub(super) async fn answer<A: Admit>(
    State(service): State<Arc<Service<A>>>,
    request: Request,
) -> Response {
    let Some(own) = &service.rows else { return StatusCode::NOT_FOUND.into_response() };
    let begun = Instant::now();
    note_retry(&request);
    let room = service.connections.unfinished();
    told(begun, own.answer(&service.gate, room, request).await)
}

/// Answers the application's own paths under `/api`.
pub(super) async fn answer_route<A: Admit>(
    State(service): State<Arc<Service<A>>>,
    request: Request,
) -> Response {
    let Some(own) = &service.rows else { return StatusCode::NOT_FOUND.into_response() };
    let begun = Instant::now();
    note_retry(&request);
    let room = service.connections.unfinished();
    told(begun, own.answer_route(&service.gate, room, request).await)
}

fn note_retry(request: &Request) {
    if let Some(retries) = request.headers().get(RETRY_COUNT).and_then(|it| it.to_str().ok()) {
        debug!(retries, "a client asks again");
    }
}

/// Counts an answer.
fn told(begun: Instant, response: Response) -> Response {
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    let result = if is_error { "error" } else { "ok" };
    metrics::counter!(telemetry::REST_REQUESTS, telemetry::RESULT => result).increment(1);
    metrics::histogram!(telemetry::REST_SECONDS).record(begun.elapsed());
    debug!(status = status.as_u16(), "a request for rows was answered");
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(json: &str) -> Claims {
        Claims { json: json.into(), ..anonymous("anon") }
    }

    #[test]
    fn a_token_from_the_future_is_refused() {
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        let problem = |json: &str| check_times(&claims(json), now).err().map(|it| it.message);
        for json in [r#"{"nbf":1030,"iat":1030.0}"#, "{}", r#"{"nbf":null}"#] {
            assert_eq!(problem(json), None, "{json}");
        }
        assert_eq!(problem(r#"{"nbf":1031}"#).unwrap(), "JWT not yet valid");
        assert_eq!(problem(r#"{"iat":1031}"#).unwrap(), "JWT issued at future");
        assert!(problem(r#"{"nbf":"soon"}"#).is_some());
    }
}
