//! The body of a request, as far as it is welcome.
//!
//! In:     a body as it comes.
//! Out:    all of its bytes, and their part of the room that unfinished messages have.
//! Never:  more bytes kept than allowed; memory for what a header only promises; an endless wait.
//!
//! A client that is still sending when it is answered takes that for a broken connection, and may
//! never see the answer. So what is not wanted is read to its end too, within bounds, and dropped.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, HttpBody as _};
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::time::{Instant, timeout_at};

use crate::transport::websocket::{Room, Share};

/// How many times as large as any that is wanted a body may be, and still be read to its end
/// before its sender is told that it is refused.
pub(super) const READ_ON_MAX: u64 = 4;

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

/// A body that may still be on its way.
pub(super) struct Incoming {
    pieces: BodyDataStream,
    /// Bytes that its head promises.
    promised: u64,
    came: u64,
    deadline: Instant,
    /// Its sender waits for a word before it begins, and has got none.
    waits: bool,
}

impl Incoming {
    /// The body of a request with these headers; it has `time` to come.
    pub(super) fn new(body: Body, headers: &HeaderMap, time: Duration) -> Self {
        Self {
            promised: body.size_hint().lower(),
            pieces: body.into_data_stream(),
            came: 0,
            deadline: Instant::now() + time,
            waits: headers.contains_key(header::EXPECT),
        }
    }

    /// All of it, if it has at most `max` bytes.
    pub(super) async fn read(&mut self, max: usize, room: Arc<Room>) -> Result<Upload, Unread> {
        if usize::try_from(self.promised).map_or(true, |promised| promised > max) {
            return Err(Unread::TooLarge);
        }
        let deadline = self.deadline;
        timeout_at(deadline, self.collect(max, room)).await.unwrap_or(Err(Unread::Late))
    }

    async fn collect(&mut self, max: usize, room: Arc<Room>) -> Result<Upload, Unread> {
        let mut share = Share::of(room);
        let mut bytes = Vec::new();
        while let Some(piece) = self.next().await? {
            let length = bytes.len().saturating_add(piece.len());
            if length > max {
                return Err(Unread::TooLarge);
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
        Ok(Upload { bytes: bytes.into(), _share: share })
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Unread> {
        self.waits = false;
        let piece = self.pieces.next().await.transpose().map_err(|_| Unread::Broken)?;
        let length = piece.as_ref().map_or(0, Bytes::len);
        self.came = self.came.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        Ok(piece)
    }

    /// Drops the rest of it, unless it has more than `max` bytes in all.
    pub(super) async fn discard(mut self, max: u64) {
        if self.waits || self.promised > max {
            return;
        }
        let deadline = self.deadline;
        let rest = async { while self.came <= max && matches!(self.next().await, Ok(Some(_))) {} };
        // Whoever takes longer is answered anyway.
        let _ = timeout_at(deadline, rest).await;
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::stream;

    use super::*;

    const TIME: Duration = Duration::from_mins(1);

    fn in_pieces(pieces: &[&'static str]) -> Body {
        let pieces: Vec<_> =
            pieces.iter().map(|piece| Ok::<_, io::Error>(Bytes::from(*piece))).collect();
        Body::from_stream(stream::iter(pieces))
    }

    fn incoming(body: Body) -> Incoming {
        Incoming::new(body, &HeaderMap::new(), TIME)
    }

    async fn outcome(body: Body, max: usize, room: &Arc<Room>) -> Result<Bytes, Unread> {
        incoming(body).read(max, Arc::clone(room)).await.map(|upload| upload.bytes)
    }

    /// Counts the pieces that were taken of a body without an end.
    fn endless(taken: &Arc<AtomicUsize>) -> Body {
        let taken = Arc::clone(taken);
        Body::from_stream(stream::repeat_with(move || {
            taken.fetch_add(1, Ordering::Relaxed);
            Ok::<_, io::Error>(Bytes::from("x"))
        }))
    }

    #[tokio::test]
    async fn a_body_comes_whole_or_not_at_all() {
        let room = Arc::new(Room::new(100));
        for body in [in_pieces(&["ab", "", "c"]), Body::from("abc")] {
            assert_eq!(outcome(body, 3, &room).await, Ok(Bytes::from("abc")));
        }
        assert_eq!(outcome(Body::empty(), 3, &room).await, Ok(Bytes::new()));
        for body in [in_pieces(&["ab", "cd"]), Body::from("abcd"), endless(&Arc::default())] {
            assert_eq!(outcome(body, 3, &room).await, Err(Unread::TooLarge));
        }
        let broken = stream::iter([Ok(Bytes::from("x")), Err(io::Error::other("gone"))]);
        assert_eq!(outcome(Body::from_stream(broken), 3, &room).await, Err(Unread::Broken));
        assert_eq!(room.used(), 0);
    }

    #[tokio::test]
    async fn bodies_share_their_room_until_they_are_dropped() {
        let room = Arc::new(Room::new(5));
        let first = incoming(Body::from("abc")).read(10, Arc::clone(&room)).await.unwrap();
        assert_eq!(outcome(Body::from("def"), 10, &room).await, Err(Unread::Crowded));
        drop(first);
        assert_eq!(outcome(Body::from("def"), 10, &room).await, Ok(Bytes::from("def")));
    }

    #[tokio::test]
    async fn a_body_that_does_not_end_is_given_up() {
        let room = Arc::new(Room::new(5));
        let first = stream::iter([Ok::<_, io::Error>(Bytes::from("x"))]);
        let body = Body::from_stream(first.chain(stream::pending()));
        let mut body = Incoming::new(body, &HeaderMap::new(), Duration::from_millis(1));
        let late = body.read(3, Arc::clone(&room)).await;
        assert_eq!(late.map(|upload| upload.bytes), Err(Unread::Late));
        assert_eq!(room.used(), 0);
        body.discard(100).await;
    }

    #[tokio::test]
    async fn what_is_not_wanted_is_dropped_up_to_a_bound() {
        let taken = Arc::default();
        incoming(endless(&taken)).discard(7).await;
        assert_eq!(taken.load(Ordering::Relaxed), 8);
        let mut body = incoming(endless(&taken));
        let too_large = body.read(3, Arc::new(Room::new(5))).await;
        assert_eq!(too_large.map(|upload| upload.bytes), Err(Unread::TooLarge));
        body.discard(7).await;
        assert_eq!(taken.load(Ordering::Relaxed), 16);
        // Whoever waits to be asked is not asked.
        let headers = HeaderMap::from_iter([(header::EXPECT, "100-continue".parse().unwrap())]);
        Incoming::new(endless(&taken), &headers, TIME).discard(7).await;
        assert_eq!(taken.load(Ordering::Relaxed), 16);
    }
}
