//! `Prefer` and `Accept`: what is said to have been applied, asked for again, means the same.

use axum::http::{HeaderMap, HeaderValue, header};
use walcast::rest::request::{Media, Preferences};

/// The first byte chooses the header (`a`: `Accept`); each line of the rest is one.
pub fn check(bytes: &[u8]) {
    let Some((&selector, content)) = bytes.split_first() else { return };
    let name = if selector == b'a' { header::ACCEPT.as_str() } else { "prefer" };
    let mut headers = HeaderMap::new();
    for line in content.split(|byte| *byte == b'\n').take(64) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(name, value);
        }
    }
    if selector == b'a' { accept(&mut headers) } else { prefer(&headers) }
}

fn accept(headers: &mut HeaderMap) {
    let chosen = Media::choose(headers);
    match &chosen {
        Ok(media) => {
            // What we say we send can be asked for.
            let mut again = HeaderMap::new();
            again.insert(header::ACCEPT, HeaderValue::from_static(media.content_type()));
            assert_eq!(Media::choose(&again).ok(), Some(*media));
        }
        Err(problem) => {
            let status = problem.status;
            assert!(status.is_client_error() || problem.is_not_implemented(), "{problem:?}");
        }
    }
    // Who also takes anything is never refused.
    headers.append(header::ACCEPT, HeaderValue::from_static("*/*;q=0.001"));
    let anything = Media::choose(headers).expect("anything can be sent");
    if let Ok(media) = chosen {
        assert!(anything == media || anything == Media::Json);
    }
}

fn prefer(headers: &HeaderMap) {
    let preferences = match Preferences::parse(headers) {
        Ok(preferences) => preferences,
        Err(problem) => {
            assert!(problem.status.is_client_error(), "{problem:?}");
            return;
        }
    };
    let expected = Preferences { max_affected: preferences.affected_max(), ..preferences.clone() };
    let Some(applied) = preferences.applied(|_| true) else {
        assert_eq!(expected, Preferences::default());
        return;
    };
    let mut again = HeaderMap::new();
    again.insert("prefer", applied.clone());
    assert_eq!(Preferences::parse(&again).ok(), Some(expected), "{applied:?}");
}
