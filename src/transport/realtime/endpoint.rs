//! Who gets a Phoenix socket, and with what.
//!
//! In:     the head of an upgrade request.
//! Out:    a [`Socket`] for its verified token, or the refusal that the protocol knows.
//! Never:  IO; a token in a log or an error.
//! Source: spec of the realtime protocol, sections 1.2 and 1.3.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};

use super::{Connection, Realtime, Socket};
use crate::hub::outbox::Outbox;
use crate::session::{Session, SessionId};
use crate::transport::admit::{Admit, Refusal};
use crate::transport::phoenix::Version;

/// For [`Realtime`] behind the HTTP routes.
#[derive(Debug, Clone)]
pub struct Endpoint(pub Arc<Realtime>);

impl Admit for Endpoint {
    type Peer = Socket;

    fn admit(
        &self,
        request: &Parts,
    ) -> Result<impl FnOnce(Arc<Outbox>) -> Socket + Send + 'static, Refusal> {
        let query = request.uri.query().unwrap_or_default();
        let version = Version::from_vsn(parameter(query, "vsn").as_deref()).map_err(|_| {
            Refusal { status: StatusCode::FORBIDDEN, error: None, delay: Duration::ZERO }
        })?;
        let refuse = |status, error| Refusal { status, error, delay: self.0.connect_backoff };
        let id = match parameter(query, "session").map(|id| id.parse::<SessionId>()) {
            None => None,
            Some(Ok(id)) => Some(id),
            Some(Err(problem)) => {
                let text = Some(Cow::from(problem.to_string()));
                return Err(refuse(StatusCode::BAD_REQUEST, text));
            }
        };
        // Before the token is verified: a key that goes away while it is counts as gone after.
        let epoch = self.0.verifier.epoch();
        let token = connect_token(request);
        let Some(token) = token else {
            let text = Some(Cow::from("API key is missing"));
            return Err(refuse(StatusCode::UNAUTHORIZED, text));
        };
        let claims = self.0.verifier.verify(&token, SystemTime::now()).map_err(|error| {
            let status = StatusCode::from_u16(error.status());
            refuse(status.unwrap_or(StatusCode::UNAUTHORIZED), Some(error.http_text()))
        })?;
        let realtime = Arc::clone(&self.0);
        let verifier = Arc::clone(&realtime.verifier);
        let rates = Arc::clone(&realtime.rates);
        let session = Session::new(&token, Arc::new(claims), verifier, realtime.limits, rates);
        let headers = policy_headers(&request.headers);
        let of = Connection { version, session, headers, epoch, id };
        Ok(move |outbox| Socket::new(realtime, of, outbox))
    }

    async fn prepare(&self, request: &Parts) {
        let token = connect_token(request);
        if let Some(wait) = token.and_then(|token| self.0.verifier.awaited_key(&token)) {
            wait.over().await;
        }
    }
}

/// The headers of a request that policies may read: those whose names begin with `x-`, but the key.
/// A JSON object.
pub(in crate::transport) fn policy_headers(headers: &HeaderMap) -> Arc<str> {
    let mut shown = serde_json::Map::new();
    for (name, value) in headers {
        let name = name.as_str();
        if !name.starts_with("x-") || name == "x-api-key" {
            continue;
        }
        let value = String::from_utf8_lossy(value.as_bytes());
        match shown.get_mut(name) {
            Some(serde_json::Value::String(before)) => {
                before.push_str(", ");
                before.push_str(&value);
            }
            _ => {
                shown.insert(name.to_owned(), value.into());
            }
        }
    }
    serde_json::Value::Object(shown).to_string().into()
}

/// The token that a request for a socket shows; the header wins over the query.
fn connect_token(request: &Parts) -> Option<Cow<'_, str>> {
    match request.headers.get("x-api-key") {
        // Not text: no token either.
        Some(value) => Some(value.to_str().map_or("".into(), Cow::from)),
        None => parameter(request.uri.query().unwrap_or_default(), "apikey"),
    }
}

/// One parameter of a query string, percent-decoded; the first of that name.
pub(in crate::transport) fn parameter<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if key != name {
            return None;
        }
        Some(percent_encoding::percent_decode_str(value).decode_utf8_lossy())
    })
}
