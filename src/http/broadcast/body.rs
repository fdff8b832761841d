//! The body of a request, as far as it is welcome.
//!
//! In:     a body as it comes.
//! Out:    all of its bytes, and their part of the room that unfinished messages have.
//! Never:  more bytes kept than allowed; memory for what a header only promises; an endless wait.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::time::timeout;

use crate::transport::websocket::{Room, Share};

/// How many times too large a body may be and still be read to its end. Clients that are still
/// sending when they are answered take that for a broken connection, and never see the answer.
const READ_ON_MAX: u64 = 4;

/// Why there is no body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unread {
    /// It is larger than allowed.
    TooLarge,
    /// It did not come in time.
    Late,
    /// All requests together hold too much.
    Crowded,
    /// The connection ended in the middle of it.
    Broken,
}

/// A body, and its part of the room.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) bytes: Bytes,
    _share: Share,
}

/// Reads all of `body`, of at most `max` bytes, within `time`.
pub(super) async fn read(
    body: Body,
    max: usize,
    time: Duration,
    room: Arc<Room>,
) -> Result<Upload, Unread> {
    timeout(time, collect(body, max, Share::of(room))).await.unwrap_or(Err(Unread::Late))
}

async fn collect(body: Body, max: usize, mut share: Share) -> Result<Upload, Unread> {
    let readable = u64::try_from(max).unwrap_or(u64::MAX).saturating_mul(READ_ON_MAX);
    if body.size_hint().lower() > readable {
        return Err(Unread::TooLarge);
    }
    let mut pieces = body.into_data_stream();
    let (mut bytes, mut came) = (Vec::new(), 0_u64);
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|_| Unread::Broken)?;
        came = came.saturating_add(u64::try_from(piece.len()).unwrap_or(u64::MAX));
        if came > readable {
            return Err(Unread::TooLarge);
        }
        let length = usize::try_from(came).unwrap_or(usize::MAX);
        if length > max {
            bytes = Vec::new();
            share.hold(0);
            continue;
        }
        if length > bytes.capacity() {
            let capacity = length.max(bytes.capacity().saturating_mul(2)).min(max);
            if !share.hold(capacity) {
                return Err(Unread::Crowded);
            }
            bytes.reserve_exact(capacity - bytes.len());
        }
        bytes.extend_from_slice(&piece);
    }
    if usize::try_from(came).is_ok_and(|came| came <= max) {
        Ok(Upload { bytes: bytes.into(), _share: share })
    } else {
        Err(Unread::TooLarge)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use futures_util::stream;

    use super::*;

    const TIME: Duration = Duration::from_mins(1);

    fn in_pieces(pieces: &[&'static str]) -> Body {
        let pieces: Vec<_> =
            pieces.iter().map(|piece| Ok::<_, io::Error>(Bytes::from(*piece))).collect();
        Body::from_stream(stream::iter(pieces))
    }

    async fn outcome(body: Body, max: usize, room: &Arc<Room>) -> Result<Bytes, Unread> {
        read(body, max, TIME, Arc::clone(room)).await.map(|upload| upload.bytes)
    }

    #[tokio::test]
    async fn a_body_comes_whole_or_not_at_all() {
        let room = Arc::new(Room::new(100));
        for body in [in_pieces(&["ab", "", "c"]), Body::from("abc")] {
            assert_eq!(outcome(body, 3, &room).await, Ok(Bytes::from("abc")));
        }
        assert_eq!(outcome(Body::empty(), 3, &room).await, Ok(Bytes::new()));
        for body in [in_pieces(&["ab", "cd"]), Body::from("abcd"), Body::from("x".repeat(13))] {
            assert_eq!(outcome(body, 3, &room).await, Err(Unread::TooLarge));
        }
        let endless = stream::repeat_with(|| Ok::<_, io::Error>(Bytes::from("x")));
        assert_eq!(outcome(Body::from_stream(endless), 3, &room).await, Err(Unread::TooLarge));
        let broken = stream::iter([Ok(Bytes::from("x")), Err(io::Error::other("gone"))]);
        assert_eq!(outcome(Body::from_stream(broken), 3, &room).await, Err(Unread::Broken));
        assert_eq!(room.used(), 0);
    }

    #[tokio::test]
    async fn bodies_share_their_room_until_they_are_dropped() {
        let room = Arc::new(Room::new(5));
        let first = read(Body::from("abc"), 10, TIME, Arc::clone(&room)).await.unwrap();
        assert_eq!(outcome(Body::from("def"), 10, &room).await, Err(Unread::Crowded));
        drop(first);
        assert_eq!(outcome(Body::from("def"), 10, &room).await, Ok(Bytes::from("def")));
    }

    #[tokio::test]
    async fn a_body_that_does_not_end_is_given_up() {
        let room = Arc::new(Room::new(5));
        let first = stream::iter([Ok::<_, io::Error>(Bytes::from("x"))]);
        let body = Body::from_stream(first.chain(stream::pending()));
        let late = read(body, 3, Duration::from_millis(1), Arc::clone(&room)).await;
        assert_eq!(late.map(|upload| upload.bytes), Err(Unread::Late));
        assert_eq!(room.used(), 0);
    }
}
