//! Long answers, compressed for those who take that.
//!
//! In:     requests for rows with `Accept-Encoding`.
//! Out:    the same answers in gzip, where that is worth it.
//! Never:  a body that is still on its way; work for a whole turn of a thread that others wait for.
//! Source: RFC 9110, sections 8.4 and 12.5.3. A library for this passes over every answer with a
//!         `Content-Range`, which here says which rows there are, and not which bytes.

use std::io::{self, Write as _};

use axum::body::{Body, HttpBody as _, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;

/// Bytes of an answer that gains anything.
const BYTES_MIN: u64 = 1024;

/// Bytes that are compressed at once: about a millisecond's.
const AT_ONCE_BYTES_MAX: usize = 128 * 1024;

/// Compresses what is answered, if it is long and the client takes gzip.
pub(super) async fn if_wanted(request: Request, next: Next) -> Response {
    let wanted = takes_gzip(request.headers());
    let response = next.run(request).await;
    let is_long = response.body().size_hint().exact().is_some_and(|bytes| bytes >= BYTES_MIN);
    if !is_long || response.headers().contains_key(header::CONTENT_ENCODING) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    parts.headers.append(header::VARY, HeaderValue::from_static("accept-encoding"));
    if !wanted {
        return Response::from_parts(parts, body);
    }
    let Ok(bytes) = to_bytes(body, usize::MAX).await else {
        return Response::from_parts(parts, Body::empty());
    };
    let plain = bytes.clone();
    let compressed = if bytes.len() <= AT_ONCE_BYTES_MAX {
        gzip(&bytes)
    } else {
        let work = tokio::task::spawn_blocking(move || gzip(&bytes));
        work.await.unwrap_or_else(|error| Err(io::Error::other(error)))
    };
    // Whatever keeps it from being compressed does not keep it from being sent.
    let Ok(compressed) = compressed else {
        return Response::from_parts(parts, Body::from(plain));
    };
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    Response::from_parts(parts, Body::from(compressed))
}

fn gzip(bytes: &[u8]) -> io::Result<Bytes> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::fast());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?.into())
}

/// Whether a client takes gzip: by its name or as anything, unless it says that it does not.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    let mut by_name = None;
    let mut as_any = None;
    for part in texts.flat_map(|text| text.split(',')) {
        let (name, weight) = part.split_once(';').unwrap_or((part, ""));
        let refused = weight
            .trim()
            .strip_prefix("q=")
            .is_some_and(|weight| weight.trim().parse::<f32>().is_ok_and(|weight| weight <= 0.0));
        match name.trim() {
            "gzip" | "x-gzip" => by_name = Some(!refused),
            "*" => as_any = Some(!refused),
            _ => {}
        }
    }
    by_name.or(as_any).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[track_caller]
    fn check(accepts: &[&'static str], expected: bool) {
        let mut headers = HeaderMap::new();
        for value in accepts {
            headers.append(header::ACCEPT_ENCODING, HeaderValue::from_static(value));
        }
        assert_eq!(takes_gzip(&headers), expected, "{accepts:?}");
    }

    #[test]
    fn a_client_says_what_it_takes() {
        check(&[], false);
        check(&["gzip, deflate"], true);
        check(&["deflate", "gzip;q=0.5"], true);
        check(&["gzip;q=0"], false);
        check(&["gzip; q=0.0, *"], false);
        check(&["*"], true);
        check(&["br, identity"], false);
    }

    #[test]
    fn what_is_compressed_is_the_same() {
        let text = "rows and rows and rows ".repeat(100);
        let compressed = gzip(text.as_bytes()).unwrap();
        assert!(compressed.len() < text.len() / 5);
        let mut again = String::new();
        flate2::read::GzDecoder::new(&*compressed).read_to_string(&mut again).unwrap();
        assert_eq!(again, text);
    }
}
