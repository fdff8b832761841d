//! Who writes, and what a write is called.
//!
//! In:     claims; `X-Connection-Id`, `X-Mutation-Id`, `Idempotency-Key`.
//! Out:    [`Author`]: what the log is told, and the key that is written once.
//! Never:  one user's key for another: it belongs to role and `sub`.

use axum::http::{HeaderMap, HeaderName, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

use super::Request;
use super::plan::Asked;
use crate::change::{Origin, origin};
use crate::config;
use crate::rest::Problem;
use crate::rest::run::Key;

const CONNECTION_ID: HeaderName = HeaderName::from_static("x-connection-id");
const MUTATION_ID: HeaderName = HeaderName::from_static("x-mutation-id");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Headers that decide what is done, or how it is answered, beside method, path, query and body.
const MEANT: [&str; 5] = ["accept", "content-profile", "content-type", "prefer", "accept-profile"];

/// Who writes.
#[derive(Debug, Default)]
pub(super) struct Author {
    /// For readers of the log.
    pub(super) origin: Origin,
    /// Under which this is written once.
    pub(super) key: Option<Key>,
    /// Without the key it must not be written.
    pub(super) needs_key: bool,
}

/// Of a request that writes.
///
/// # Errors
/// 400 for an id that is empty, too long or no text, and for a key of nobody in particular.
pub(super) fn author(asked: &Asked<'_>, settings: &config::Rest) -> Result<Author, Problem> {
    let Request { claims, headers, .. } = asked.request;
    let (mutation_id, given) = (id(headers, &MUTATION_ID)?, id(headers, &IDEMPOTENCY_KEY)?);
    let needs_key = given.is_some();
    let key = given.or_else(|| mutation_id.clone());
    let is_nobody = claims.subject.is_none() && *claims.role == *settings.anon_role;
    if is_nobody && needs_key {
        let text = "An Idempotency-Key belongs to a user: send a token with a sub claim";
        return Err(refused(text));
    }
    let key = key.filter(|_| !is_nobody).map(|key| Key {
        scope: scope(&claims.role, claims.subject.as_deref()),
        key: key.into(),
        request: digest(asked),
        lifetime_ms: settings.key_lifetime_ms,
    });
    let sub = claims.subject.as_deref().filter(|_| settings.tell_author).map(Into::into);
    let origin = Origin { id: None, sub, connection_id: id(headers, &CONNECTION_ID)?, mutation_id };
    Ok(Author { origin, key, needs_key })
}

fn refused(text: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "22023", text)
}

/// One id of the client's own choice.
fn id(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Box<str>>, Problem> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text =
        value.to_str().ok().filter(|text| (1..=origin::TEXT_BYTES_MAX).contains(&text.len()));
    match text {
        Some(text) if values.next().is_none() => Ok(Some(text.into())),
        _ => {
            let most = origin::TEXT_BYTES_MAX;
            Err(refused(format!("{name} must be one text of 1 to {most} ASCII characters")))
        }
    }
}

/// Whose keys these are.
fn scope(role: &str, subject: Option<&str>) -> String {
    serde_json::json!([role, subject]).to_string()
}

/// Of everything that decides what is done. Lengths stand in front, so that no part can look like
/// the end of one and the beginning of another.
fn digest(asked: &Asked<'_>) -> String {
    let Request { method, target, query, headers, body, .. } = asked.request;
    let mut digest = Sha256::new();
    let mut add = |part: &[u8]| {
        digest.update(part.len().to_be_bytes());
        digest.update(part);
    };
    add(method.as_str().as_bytes());
    add(format!("{target:?}").as_bytes());
    add(asked.schema.as_bytes());
    add(query.as_bytes());
    for name in MEANT {
        let mut values = headers.get_all(name).iter().peekable();
        if values.peek().is_some() {
            add(name.as_bytes());
        }
        for value in values {
            add(value.as_bytes());
        }
    }
    add(body);
    URL_SAFE_NO_PAD.encode(digest.finalize())
}
