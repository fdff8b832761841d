//! What we tell the server that we have, and when.
//!
//! In:     positions received, positions published, and the time, as arguments.
//! Out:    [`Standby`]: how far the slot may move; the bytes of a status update.
//! Never:  IO, clocks; a position that was not received, or one of a transaction not published.
//! Source: postgresql.org/docs/17/protocol-replication.html (Standby status update)
//!
//! The server releases log up to the *flush* position, and at its own shutdown waits until flush
//! equals all it has sent, or, where flush is zero, until *write* does. A position held back as a
//! replay window would so block every shutdown. Hence write is what we received, flush is zero;
//! to move the slot one update carries the position and the next one zero again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{BufMut as _, BytesMut};

use crate::lsn::Lsn;

/// Parts that the replay window is kept in: the slot moves in steps of 1/64 of the window.
const STEPS: u32 = 64;

/// More requests for a reply than this within a second mean that the server waits for us before
/// it stops (it then asks thousands of times a second; in peace, every few seconds).
const REPLIES_A_SECOND_MAX: u32 = 20;

/// What a keepalive asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Answer {
    /// Nothing.
    None,
    /// A status update now.
    Status,
    /// To end the stream: the server is shutting down.
    Leave,
}

/// Our place in the log, as the server has to know it.
#[derive(Debug)]
pub(super) struct Standby {
    received: Lsn,
    /// End of the last commit received.
    commit: Lsn,
    /// A `Begin` came whose `Commit` has not.
    in_transaction: bool,
    /// The server's position when it last told it: everything before was sent to us.
    head: Lsn,
    /// End of the last commit that the caller has published.
    published: Lsn,
    /// What the slot was last told, or where it started.
    flushed: Lsn,
    /// Published commits younger than the window, thinned out. Oldest first; at most about
    /// `2 * STEPS`.
    steps: VecDeque<Step>,
    window: Duration,
    window_bytes: u64,
    /// The window is let go, because the server's disk matters more.
    shedding: bool,
    replies_since: Option<Instant>,
    replies: u32,
}

/// Some neighbouring commits of the window, taken as one.
#[derive(Debug)]
struct Step {
    first: (Lsn, Instant),
    last: (Lsn, Instant),
}

impl Standby {
    /// For a slot confirmed up to `flushed`, and a stream that continues at `published`, which is
    /// the same or later: what lies between them is as much to be replayed as what comes now.
    pub(super) fn new(
        flushed: Lsn,
        published: Lsn,
        window: Duration,
        window_bytes: u64,
        now: Instant,
    ) -> Self {
        // In as many parts as it was kept in before: as one, all of it would go at once.
        let bytes = published.bytes_since(flushed);
        let parts = (1..=u64::from(STEPS)).map(|part| {
            let bytes = u128::from(bytes) * u128::from(part) / u128::from(STEPS);
            let end = flushed.get() + u64::try_from(bytes).expect("a part of it");
            let here = (Lsn::new(end), now);
            Step { first: here, last: here }
        });
        let replayed = if bytes > 0 { parts.collect() } else { VecDeque::new() };
        Self {
            received: published.max(flushed),
            commit: published,
            in_transaction: false,
            head: Lsn::ZERO,
            published,
            flushed,
            steps: replayed,
            window,
            window_bytes,
            shedding: false,
            replies_since: None,
            replies: 0,
        }
    }

    /// Lets the window go, or keeps one again from now on.
    pub(super) fn shed(&mut self, shedding: bool) {
        self.shedding = shedding;
    }

    /// Some record at this position arrived.
    pub(super) fn receive(&mut self, lsn: Lsn) {
        self.received = self.received.max(lsn);
    }

    /// A transaction starts.
    pub(super) fn begin(&mut self) {
        self.in_transaction = true;
    }

    /// A transaction is complete up to `end`.
    pub(super) fn commit(&mut self, end: Lsn) {
        self.in_transaction = false;
        self.commit = self.commit.max(end);
        self.receive(end);
    }

    /// Whether a transaction has started and not ended.
    pub(super) fn in_transaction(&self) -> bool {
        self.in_transaction
    }

    /// The server says where it is, and whether it wants to hear from us.
    pub(super) fn keepalive(&mut self, head: Lsn, reply_requested: bool, now: Instant) -> Answer {
        self.receive(head);
        if !self.in_transaction {
            self.head = self.head.max(head);
        }
        if !reply_requested {
            return Answer::None;
        }
        match self.replies_since {
            Some(since) if now.saturating_duration_since(since) < Duration::from_secs(1) => {
                self.replies += 1;
            }
            Some(_) | None => (self.replies_since, self.replies) = (Some(now), 1),
        }
        if self.replies > REPLIES_A_SECOND_MAX { Answer::Leave } else { Answer::Status }
    }

    /// The caller has published all commits up to the one that ends at `end`.
    pub(super) fn publish(&mut self, end: Lsn, now: Instant) {
        // A position we never received would make the server skip what lies before it.
        let end = end.min(self.commit);
        if end <= self.published {
            return;
        }
        let before = self.published.max(self.flushed);
        self.published = end;
        if end <= self.flushed {
            return;
        }
        // The caller is asked now and then, and whoever was away may have published all of the window
        // meanwhile: in parts, or all of it would go at once. What does not fit into it goes anyway.
        let part = (self.window_bytes / u64::from(STEPS)).max(1);
        let bytes = end.bytes_since(before).min(self.window_bytes);
        for parts in (1..=bytes.saturating_sub(1) / part).rev() {
            self.keep(Lsn::new(end.get() - parts * part), now);
        }
        self.keep(end, now);
    }

    /// Keeps a published position in the window.
    fn keep(&mut self, end: Lsn, now: Instant) {
        match self.steps.back_mut() {
            Some(step)
                if now.saturating_duration_since(step.first.1) < self.window / STEPS
                    && end.bytes_since(step.first.0) < self.window_bytes / u64::from(STEPS) =>
            {
                step.last = (end, now);
            }
            Some(_) | None => self.steps.push_back(Step { first: (end, now), last: (end, now) }),
        }
    }

    /// How far the slot may move now; none when it is there already.
    ///
    /// Trails what was published by the window, by time or by bytes, whichever is less. When
    /// nothing in the window is left to replay it follows the server's own position, so that an
    /// idle database does not hold back the log its neighbours fill.
    pub(super) fn advance(&mut self, now: Instant) -> Option<Lsn> {
        let safe = self.settled();
        let mut target = self.flushed;
        while let Some(step) = self.steps.front() {
            let old = self.shedding || now.saturating_duration_since(step.last.1) >= self.window;
            if !old && safe.bytes_since(target) <= self.window_bytes {
                break;
            }
            target = target.max(step.last.0);
            self.steps.pop_front();
        }
        if self.steps.is_empty() {
            target = target.max(safe);
        }
        if target <= self.flushed {
            return None;
        }
        self.flushed = target;
        Some(target)
    }

    /// Everything that committed before this was published, or concerns nobody.
    pub(super) fn settled(&self) -> Lsn {
        let complete = !self.in_transaction && self.published >= self.commit;
        if complete { self.published.max(self.head) } else { self.published }
    }

    /// What has to be published for everything before the second position to be.
    pub(super) fn promised(&self) -> (Lsn, Lsn) {
        let owed = if self.in_transaction { Lsn::new(u64::MAX) } else { self.commit };
        (owed, self.head)
    }

    /// Furthest position received.
    pub(super) fn received(&self) -> Lsn {
        self.received
    }

    /// What the slot was last told.
    pub(super) fn flushed(&self) -> Lsn {
        self.flushed
    }

    /// A status update: what was received, and, to move the slot, how far.
    pub(super) fn status(&self, flush: Option<Lsn>, request_reply: bool) -> BytesMut {
        let mut body = BytesMut::with_capacity(34);
        body.put_u8(b'r');
        body.put_u64(self.received.get());
        body.put_u64(flush.unwrap_or(Lsn::ZERO).get());
        body.put_u64(0); // applied: we keep no copy that a query could read
        body.put_i64(0); // our clock: the server only shows it
        body.put_u8(u8::from(request_reply));
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_mins(1);

    fn standby(window_bytes: u64) -> (Standby, Instant) {
        let (slot, now) = (Lsn::new(100), Instant::now());
        (Standby::new(slot, slot, WINDOW, window_bytes, now), now)
    }

    fn transaction(standby: &mut Standby, end: u64) {
        standby.begin();
        standby.commit(Lsn::new(end));
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn the_slot_trails_by_the_window() {
        let (mut standby, start) = standby(1 << 30);
        transaction(&mut standby, 200);
        standby.publish(Lsn::new(200), start);
        transaction(&mut standby, 300);
        standby.publish(Lsn::new(300), after(start, 30));
        assert_eq!(standby.advance(after(start, 59)), None);
        assert_eq!(standby.advance(after(start, 60)), Some(Lsn::new(200)));
        assert_eq!(standby.advance(after(start, 61)), None);
        assert_eq!(standby.advance(after(start, 90)), Some(Lsn::new(300)));
    }

    #[test]
    fn the_slot_never_holds_more_than_its_bytes() {
        let (mut standby, start) = standby(1000);
        for end in (200..5000).step_by(100) {
            transaction(&mut standby, end);
            standby.publish(Lsn::new(end), start);
            standby.advance(start);
            assert!(end - standby.flushed().get() <= 1000, "{end} {:?}", standby.flushed());
        }
        assert!(standby.flushed() < Lsn::new(4900), "some of the window is kept");
    }

    #[test]
    fn a_window_that_is_let_go_holds_nothing_back() {
        let (mut standby, start) = standby(1 << 30);
        transaction(&mut standby, 200);
        standby.publish(Lsn::new(200), start);
        transaction(&mut standby, 300);
        assert_eq!(standby.advance(start), None);
        standby.shed(true);
        assert_eq!(standby.advance(start), Some(Lsn::new(200)), "what was published, no more");
        standby.publish(Lsn::new(300), start);
        standby.shed(false);
        assert_eq!(standby.advance(start), None, "and there is a window again");
    }

    #[test]
    fn a_neighbours_log_counts_too() {
        let (mut standby, start) = standby(1000);
        transaction(&mut standby, 200);
        standby.publish(Lsn::new(200), start);
        standby.keepalive(Lsn::new(900), false, start);
        assert_eq!(standby.advance(start), None);
        standby.keepalive(Lsn::new(5000), false, start);
        assert_eq!(standby.advance(start), Some(Lsn::new(5000)));
    }

    #[test]
    fn an_idle_stream_follows_the_server() {
        let (mut standby, start) = standby(1 << 30);
        standby.keepalive(Lsn::new(700), false, start);
        assert_eq!(standby.advance(start), Some(Lsn::new(700)));
        transaction(&mut standby, 800);
        standby.keepalive(Lsn::new(900), false, start);
        assert_eq!(standby.advance(start), None, "a commit is received but not published");
        standby.publish(Lsn::new(800), start);
        assert_eq!(standby.advance(after(start, 1)), None, "it may have to be replayed");
        assert_eq!(standby.advance(after(start, 60)), Some(Lsn::new(900)));
    }

    #[test]
    fn a_new_connection_keeps_the_window_of_the_last_one() {
        let start = Instant::now();
        let mut standby = Standby::new(Lsn::new(100), Lsn::new(500), WINDOW, 1 << 30, start);
        standby.keepalive(Lsn::new(700), false, start);
        assert_eq!(standby.advance(after(start, 59)), None);
        assert_eq!(standby.advance(after(start, 60)), Some(Lsn::new(700)));
    }

    #[test]
    fn a_new_connection_lets_go_of_no_more_than_has_no_room() {
        let start = Instant::now();
        let mut standby = Standby::new(Lsn::new(1000), Lsn::new(7400), WINDOW, 6400, start);
        transaction(&mut standby, 7500);
        standby.publish(Lsn::new(7500), start);
        assert_eq!(standby.advance(start), Some(Lsn::new(1100)));
    }

    /// A new process has all of the window sent again, and publishes it between two looks.
    #[test]
    fn what_was_published_at_once_is_let_go_of_in_parts() {
        let (mut standby, start) = standby(6400);
        for end in (110..=6400).step_by(10) {
            transaction(&mut standby, end);
        }
        standby.publish(Lsn::new(6400), start);
        assert_eq!(standby.advance(start), None, "it fits into the window");
        transaction(&mut standby, 6620);
        standby.publish(Lsn::new(6620), start);
        assert_eq!(standby.advance(start), Some(Lsn::new(300)));
        assert!(standby.steps.len() <= 2 * 64 + 1);
    }

    #[test]
    fn more_than_the_window_published_at_once_leaves_a_window() {
        let (mut standby, start) = standby(6400);
        transaction(&mut standby, 1 << 40);
        standby.publish(Lsn::new(1 << 40), start);
        let kept = standby.advance(start).map(|flush| (1 << 40) - flush.get());
        assert!(kept.is_some_and(|kept| (6200..=6400).contains(&kept)), "{kept:?}");
        assert!(standby.steps.len() <= 2 * 64 + 1);
    }

    #[test]
    fn a_position_within_a_transaction_is_not_adopted() {
        let (mut standby, start) = standby(1 << 30);
        standby.begin();
        standby.keepalive(Lsn::new(900), false, start);
        assert_eq!(standby.advance(after(start, 100)), None);
        standby.commit(Lsn::new(950));
        standby.publish(Lsn::new(950), start);
        assert_eq!(standby.advance(after(start, 100)), Some(Lsn::new(950)));
    }

    #[test]
    fn nothing_unreceived_is_ever_confirmed() {
        let (mut standby, start) = standby(0);
        transaction(&mut standby, 200);
        standby.publish(Lsn::new(1 << 40), start);
        assert_eq!(standby.advance(after(start, 100)), Some(Lsn::new(200)));
    }

    #[test]
    fn positions_never_move_back() {
        let (mut standby, start) = standby(0);
        transaction(&mut standby, 300);
        standby.publish(Lsn::new(300), start);
        assert_eq!(standby.advance(start), Some(Lsn::new(300)));
        transaction(&mut standby, 200);
        standby.publish(Lsn::new(200), start);
        standby.keepalive(Lsn::new(10), false, start);
        assert_eq!(standby.advance(after(start, 100)), None);
        assert_eq!(standby.received(), Lsn::new(300));
    }

    #[test]
    fn a_busy_window_is_kept_in_few_steps() {
        let (mut standby, start) = standby(1 << 40);
        for millis in 0..120_000 {
            let end = 1000 + millis * 10;
            transaction(&mut standby, end);
            standby.publish(Lsn::new(end), start + Duration::from_millis(millis));
            if millis % 100 == 0 {
                standby.advance(start + Duration::from_millis(millis));
            }
            assert!(standby.steps.len() <= 2 * 64 + 1);
        }
        let behind = standby.received().bytes_since(standby.flushed());
        assert!((600_000..=620_000).contains(&behind), "a window and a step, not {behind}");
    }

    #[test]
    fn flush_is_zero_unless_the_slot_moves() {
        let (mut standby, _) = standby(0);
        standby.receive(Lsn::new(0x0102));
        let status = standby.status(None, false);
        assert_eq!(status.len(), 34);
        assert_eq!(&status[..17], b"r\0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\0\0");
        let status = standby.status(Some(Lsn::new(0x0101)), true);
        assert_eq!(&status[9..17], b"\0\0\0\0\0\0\x01\x01");
        assert_eq!(status[33], 1);
    }

    #[test]
    fn a_storm_of_keepalives_means_the_server_is_stopping() {
        let (mut standby, start) = standby(0);
        for _ in 0..20 {
            assert_eq!(standby.keepalive(Lsn::new(1), true, start), Answer::Status);
        }
        assert_eq!(standby.keepalive(Lsn::new(1), false, start), Answer::None);
        assert_eq!(standby.keepalive(Lsn::new(1), true, start), Answer::Leave);
        assert_eq!(standby.keepalive(Lsn::new(1), true, after(start, 2)), Answer::Status);
    }
}
