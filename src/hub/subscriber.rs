//! One subscriber: a channel's place in the hub, and what it may still be sent.
//!
//! In:     finished frames, in commit order.
//! Out:    the connection's outbox; before the join is answered, a held list.
//! Never:  a row change at or after `expires_at`; a frame before the join reply, or after it left.
//!
//! A *stand-in* holds for a channel what its newer claims are shown after the older ones expired,
//! until it is known whether they may subscribe.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::outbox::{Outbox, Waiting, joined};

/// How a channel learns what is not a frame.
pub trait Inbox: Send + Sync {
    /// Something about this channel that its client is told in words.
    fn notice(&self, message: String);
}

const PENDING: u8 = 0;
const LIVE: u8 = 1;
const GONE: u8 = 2;

/// A session on a topic.
pub struct Subscriber {
    outbox: Arc<Outbox>,
    inbox: Box<dyn Inbox>,
    state: AtomicU8,
    held: Mutex<Waiting<()>>,
    /// Row changes before are not for it. Seconds since 1970.
    begins_at: u64,
    /// Seconds since 1970.
    expires_at: AtomicU64,
}

/// A stand-in has nobody to tell: the channel itself is told the same.
struct Deaf;

impl Inbox for Deaf {
    fn notice(&self, _message: String) {}
}

impl fmt::Debug for Subscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscriber").finish_non_exhaustive()
    }
}

pub(super) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Subscriber {
    /// A channel whose join is not answered yet: frames are held until it is.
    pub fn new(outbox: Arc<Outbox>, inbox: Box<dyn Inbox>, expires_at: SystemTime) -> Arc<Self> {
        Arc::new(Self {
            held: Mutex::new(Waiting::new(Arc::clone(&outbox))),
            outbox,
            inbox,
            state: AtomicU8::new(PENDING),
            begins_at: 0,
            expires_at: AtomicU64::new(unix_seconds(expires_at)),
        })
    }

    /// Holds for this channel what claims that are valid until then are shown, from the moment that
    /// the claims in force expire.
    pub(super) fn stand_in(&self, expires_at: SystemTime) -> Arc<Self> {
        let outbox = Arc::clone(&self.outbox);
        Arc::new(Self {
            held: Mutex::new(Waiting::new(Arc::clone(&outbox))),
            outbox,
            inbox: Box::new(Deaf),
            state: AtomicU8::new(PENDING),
            begins_at: self.expires_at.load(Ordering::Relaxed),
            expires_at: AtomicU64::new(unix_seconds(expires_at)),
        })
    }

    /// How long the claims that row changes are decided by are still valid.
    pub(super) fn valid_for(&self) -> Duration {
        let expires_at = Duration::from_secs(self.expires_at.load(Ordering::Relaxed));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        expires_at.saturating_sub(now)
    }

    /// What a stand-in holds. It holds nothing more.
    pub(super) fn relieve(&self) -> Vec<Bytes> {
        let mut held = self.held();
        self.state.store(GONE, Ordering::Release);
        held.take().into_iter().map(|((), frame)| frame).collect()
    }

    /// The connection to flush after frames were offered.
    pub(super) fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    pub(super) fn expire_at(&self, time: SystemTime) {
        self.expires_at.store(unix_seconds(time), Ordering::Relaxed);
    }

    /// Tells the client something in words.
    pub(super) fn notice(&self, message: String) {
        self.inbox.notice(message);
    }

    /// [`Self::offer`], unless the claims that row changes are decided by have expired. `now` is
    /// in seconds since 1970.
    pub(super) fn offer_valid(&self, frames: &[Bytes], now: u64) -> bool {
        let valid = self.begins_at..self.expires_at.load(Ordering::Relaxed);
        valid.contains(&now) && self.offer(frames)
    }

    /// Queues frames; true when the outbox was empty before and wants a flush. Whoever offers holds
    /// the lock of the list that it found the subscriber in, and so does whoever takes it off that
    /// list: nothing comes after that.
    pub(super) fn offer(&self, frames: &[Bytes]) -> bool {
        if self.state.load(Ordering::Acquire) == LIVE {
            return self.outbox.offer_many(frames).unwrap_or(false);
        }
        let mut held = self.held();
        // It may have changed before the list was ours.
        match self.state.load(Ordering::Acquire) {
            LIVE => self.outbox.offer_many(frames).unwrap_or(false),
            PENDING => {
                for frame in frames {
                    held.push((), frame.clone());
                }
                false
            }
            _gone => false,
        }
    }

    /// [`Self::offer`] for one frame in two parts, the second one shared with others.
    pub(super) fn offer_parts(&self, first: Bytes, rest: &Bytes) -> bool {
        if self.state.load(Ordering::Acquire) == LIVE {
            return self.outbox.offer_parts(first, rest).unwrap_or(false);
        }
        self.offer(&[joined(&first, rest)])
    }

    /// The join was answered: what was held follows, then live frames.
    pub fn go_live(&self) {
        let mut held = self.held();
        if self.state.load(Ordering::Acquire) != PENDING {
            return;
        }
        let frames: Vec<Bytes> = held.take().into_iter().map(|((), frame)| frame).collect();
        if !frames.is_empty() && self.outbox.offer_many(&frames).unwrap_or(false) {
            self.outbox.flush();
        }
        self.state.store(LIVE, Ordering::Release);
    }

    /// Nothing more is sent.
    pub(super) fn leave(&self) {
        let mut held = self.held();
        self.state.store(GONE, Ordering::Release);
        held.clear();
    }

    fn held(&self) -> MutexGuard<'_, Waiting<()>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What waits for the join's answer.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> Vec<Bytes> {
        self.held().frames().cloned().collect()
    }
}
