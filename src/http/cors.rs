//! What browsers ask before they let a page of another origin talk to us.
//!
//! In:     requests with an `Origin`; the allow-list of the settings.
//! Out:    answers to preflights; the CORS headers of every other answer.
//! Never:  a decision by a cookie: tokens come in a header, in the query or in a packet.
//! Source: fetch.spec.whatwg.org, section 3.2 (CORS protocol)

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Service;
use crate::transport::admit::Admit;

/// How long a browser may remember an answer: Chromium's longest.
const MAX_AGE_SECONDS: HeaderValue = HeaderValue::from_static("7200");

/// What may be asked for when the browser does not say what it wants.
const HEADERS: HeaderValue = HeaderValue::from_static(
    "authorization, x-client-info, apikey, x-api-key, content-type, accept, prefer, \
     accept-profile, content-profile, range, range-unit, x-retry-count, x-connection-id, \
     x-mutation-id, idempotency-key, traceparent, tracestate, baggage",
);

/// Readable by a page: how much of a rate is left; which rows of how many an answer has, where a
/// row is and when it was written.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "x-rate-rolling, x-rate-limit, x-rate-limit-remaining, content-range, preference-applied, \
     location, content-location, feed-lsn, feed-cursor, idempotent-replayed, retry-after, www-authenticate, etag",
);

const METHODS: HeaderValue =
    HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");

/// Which pages may talk to us.
#[derive(Debug, Clone, Default)]
pub struct Origins(Vec<HeaderValue>);

impl Origins {
    /// Those of `limits.origins`; none: every page may.
    pub fn new(origins: &[String]) -> Self {
        let value = |origin: &String| {
            let origin = origin.trim_end_matches('/').to_ascii_lowercase();
            HeaderValue::from_str(&origin).ok()
        };
        Self(origins.iter().filter_map(value).collect())
    }

    /// Whether the page that sent these headers may talk to us. What is no page sends no origin.
    pub(super) fn admit(&self, headers: &HeaderMap) -> bool {
        if self.0.is_empty() {
            return true;
        }
        // A browser sends one; whoever sends more is nobody's page.
        let mut sent = headers.get_all(header::ORIGIN).iter();
        sent.all(|origin| {
            let origin = origin.as_bytes();
            self.0.iter().any(|allowed| allowed.as_bytes().eq_ignore_ascii_case(origin))
        })
    }
}

/// Answers preflights, and adds to other answers what lets the page read them.
pub(super) async fn answer<A: Admit>(
    State(service): State<Arc<Service<A>>>,
    request: Request,
    next: Next,
) -> Response {
    let Some(origin) = request.headers().get(header::ORIGIN).cloned() else {
        return next.run(request).await;
    };
    let origins = &service.gate.origins;
    let admitted = origins.admit(request.headers());
    let wanted = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let is_preflight = request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = match (is_preflight, admitted) {
        (false, _) => next.run(request).await,
        (true, true) => StatusCode::NO_CONTENT.into_response(),
        (true, false) => StatusCode::FORBIDDEN.into_response(),
    };
    let headers = response.headers_mut();
    if !origins.0.is_empty() {
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
    }
    if !admitted {
        return response;
    }
    let any = HeaderValue::from_static("*");
    let allowed = if origins.0.is_empty() { any.clone() } else { origin };
    // A page that polls may ask with credentials, of which we have none. It may where it is named.
    if allowed != any {
        let yes = HeaderValue::from_static("true");
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
    }
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    if is_preflight {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.unwrap_or(HEADERS));
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE_SECONDS);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(list: &[&str], sent: &[&'static str]) -> bool {
        let origins = Origins::new(&list.iter().map(ToString::to_string).collect::<Vec<_>>());
        let mut headers = HeaderMap::new();
        for origin in sent {
            headers.append(header::ORIGIN, HeaderValue::from_static(origin));
        }
        origins.admit(&headers)
    }

    #[test]
    fn an_empty_list_admits_every_page() {
        assert!(admits(&[], &["https://a.example"]));
        assert!(admits(&[], &[]));
    }

    #[test]
    fn a_list_admits_its_pages_and_what_is_no_page() {
        let list = ["https://App.example/", "http://localhost:3000"];
        assert!(admits(&list, &["https://app.example"]));
        assert!(admits(&list, &["http://localhost:3000"]));
        assert!(admits(&list, &[]));
        for origin in
            ["https://app.example.evil.example", "http://app.example", "null", "", "https://app"]
        {
            assert!(!admits(&list, &[origin]), "{origin}");
        }
        assert!(!admits(&list, &["https://app.example", "https://evil.example"]));
    }
}
