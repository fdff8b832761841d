//! Answers that a client has already: told by a tag, not sent again.
//!
//! In:     requests for rows, with `If-None-Match` if the client has an answer of before.
//! Out:    an `ETag` with each whole answer; 304 when it is the one that the client has.
//! Never:  an answer that was not computed for this very caller; a body that is still on its way kept.
//! Source: RFC 9110, sections 8.8.3 and 13.1.2.

use axum::body::{Body, HttpBody as _, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

/// Tags what is answered to a GET, and leaves out what the client has.
pub(super) async fn or_not(request: Request, next: Next) -> Response {
    let wanted = (request.method() == Method::GET).then(|| known(request.headers()));
    let response = next.run(request).await;
    let Some(known) = wanted else { return response };
    let whole = response.body().size_hint().exact();
    if response.status() != StatusCode::OK
        || response.headers().contains_key(header::ETAG)
        || whole.is_none()
    {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let Ok(bytes) = to_bytes(body, usize::MAX).await else {
        return Response::from_parts(parts, Body::empty());
    };
    let tag = tag(&bytes, parts.headers.get(header::CONTENT_RANGE));
    let has_it = known.iter().any(|known| known == "*" || *known == tag);
    if let Ok(tag) = HeaderValue::from_str(&format!("W/{tag}")) {
        parts.headers.insert(header::ETAG, tag);
    }
    if has_it {
        parts.status = StatusCode::NOT_MODIFIED;
        parts.headers.remove(header::CONTENT_TYPE);
        parts.headers.remove(header::CONTENT_LENGTH);
        return Response::from_parts(parts, Body::empty());
    }
    Response::from_parts(parts, Body::from(bytes))
}

/// The tags that a client has, without their marks of weakness: what is compressed on its way is the
/// same answer.
fn known(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(header::IF_NONE_MATCH).iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    let tags = texts.flat_map(|text| text.split(','));
    tags.map(|tag| tag.trim().trim_start_matches("W/").to_owned()).collect()
}

/// Of an answer: its bytes, and of which rows of how many they are.
fn tag(bytes: &[u8], range: Option<&HeaderValue>) -> String {
    let mut digest = Sha256::new();
    digest.update(range.map_or(&b""[..], HeaderValue::as_bytes));
    digest.update([0]);
    digest.update(bytes);
    let digest = digest.finalize();
    format!("\"{}\"", BASE64_URL_SAFE_NO_PAD.encode(&digest[..16]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_bytes_and_other_ranges_have_other_tags() {
        let range = HeaderValue::from_static("0-1/*");
        assert_eq!(tag(b"[]", None), tag(b"[]", None));
        assert_ne!(tag(b"[]", None), tag(b"[1]", None));
        assert_ne!(tag(b"[]", None), tag(b"[]", Some(&range)));
    }

    #[test]
    fn a_client_names_its_tags_in_one_or_several_headers() {
        let mut headers = HeaderMap::new();
        headers.append(header::IF_NONE_MATCH, HeaderValue::from_static(r#"W/"a", "b""#));
        headers.append(header::IF_NONE_MATCH, HeaderValue::from_static("*"));
        assert_eq!(known(&headers), [r#""a""#, r#""b""#, "*"]);
        assert!(known(&HeaderMap::new()).is_empty());
    }
}
