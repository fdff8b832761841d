//! The task of one event stream: what it does besides being written to.
//!
//! In:     signals of the connection's [`Outbox`]; bytes that nobody asked for; the time.
//! Out:    that something waits for the stream; why it ended; a sign of life now and then.
//! Never:  a look at what comes in; more of it than a bound.

use std::ops::ControlFlow;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::format::HEARTBEAT;
use crate::hub::outbox::{CloseReason, Outbox};
use crate::transport::websocket::with_scratch;

/// Reads in one turn; then others get theirs.
const READS_PER_TURN: usize = 4;

/// Bytes that a client may send after its request. A proxy's stray line is no reason to end; a
/// client that goes on has taken this for something else.
const IGNORED_BYTES_MAX: usize = 64 * 1024;

/// See the module's header.
pub(super) struct Pump<'a> {
    outbox: &'a Outbox,
    heartbeat: Option<Interval>,
    /// The socket was full, and this task has to write the rest.
    draining: bool,
    /// Bytes that came in.
    ignored: usize,
}

impl<'a> Pump<'a> {
    pub(super) const fn new(outbox: &'a Outbox) -> Self {
        Self { outbox, heartbeat: None, draining: false, ignored: 0 }
    }

    /// Gives a sign of life each time so much has passed.
    pub(super) fn beat(&mut self, every: Duration) {
        let mut interval = interval_at(Instant::now() + every, every);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.heartbeat = Some(interval);
    }

    /// Ready when the stream was woken, or at its end.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), CloseReason>> {
        match self.turn(context) {
            ControlFlow::Continue(true) => Poll::Ready(Ok(())),
            ControlFlow::Continue(false) => Poll::Pending,
            // The first reason, which may be somebody else's.
            ControlFlow::Break(reason) => Poll::Ready(Err(self.outbox.close(reason))),
        }
    }

    /// Ready at the stream's end.
    pub(super) fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<CloseReason> {
        loop {
            match self.poll(context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(reason)) => return Poll::Ready(reason),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn turn(&mut self, context: &mut Context<'_>) -> ControlFlow<CloseReason, bool> {
        let signals = self.outbox.poll_signals(context.waker());
        if signals.closing() {
            return ControlFlow::Break(CloseReason::Gone);
        }
        self.draining |= signals.blocked();
        while let Some(heartbeat) = &mut self.heartbeat
            && heartbeat.poll_tick(context).is_ready()
        {
            // What waits to be taken is a sign of life already.
            if self.outbox.queued_bytes() == 0 {
                self.outbox
                    .send(HEARTBEAT)
                    .map_or_else(ControlFlow::Break, ControlFlow::Continue)?;
            }
        }
        if self.draining
            && let Poll::Ready(drained) = self.outbox.poll_drain(context)
        {
            if drained.is_err() {
                return ControlFlow::Break(CloseReason::Gone);
            }
            self.draining = false;
        }
        with_scratch(|scratch| self.read(context, scratch))?;
        ControlFlow::Continue(signals.woken())
    }

    fn read(&mut self, context: &mut Context<'_>, scratch: &mut [u8]) -> ControlFlow<CloseReason> {
        for _ in 0..READS_PER_TURN {
            match self.outbox.poll_read(context, scratch) {
                Poll::Pending => return ControlFlow::Continue(()),
                Poll::Ready(Ok(0) | Err(_)) => return ControlFlow::Break(CloseReason::Gone),
                Poll::Ready(Ok(count)) => self.ignored = self.ignored.saturating_add(count),
            }
            if self.ignored > IGNORED_BYTES_MAX {
                return ControlFlow::Break(CloseReason::Protocol("nothing is heard here"));
            }
        }
        context.waker().wake_by_ref();
        ControlFlow::Continue(())
    }
}
