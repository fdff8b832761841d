//! When channels end because their token does.
//!
//! In:     (moment, channel) pairs, as many as there are channels.
//! Out:    a call for each whose moment has come.
//! Never:  a timer of its own for each channel.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The longest sleep, so that a clock that was set forward is noticed.
const SLEEP_MAX: Duration = Duration::from_secs(30);

/// Somebody who is told that a moment has come.
pub trait Expires: Send + Sync {
    /// The token of channel `channel` may have expired; the receiver looks at its own clock.
    fn expired(&self, channel: u64);
}

type Key = (SystemTime, u64);

/// All deadlines of this process.
#[derive(Default)]
pub struct Deadlines {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    due: BTreeMap<Key, (Weak<dyn Expires>, u64)>,
    next: u64,
}

/// Names one deadline, to take it back.
#[derive(Debug, Clone, Copy)]
pub struct DeadlineId(Key);

impl std::fmt::Debug for Deadlines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Deadlines({})", self.lock().due.len())
    }
}

impl Deadlines {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `receiver.expired(channel)` at `at` or soon after.
    pub fn add(&self, at: SystemTime, receiver: Weak<dyn Expires>, channel: u64) -> DeadlineId {
        let mut state = self.lock();
        state.next += 1;
        let key = (at, state.next);
        let first = state.due.first_key_value().is_none_or(|(first, _)| key < *first);
        state.due.insert(key, (receiver, channel));
        drop(state);
        if first {
            self.changed.notify_one();
        }
        DeadlineId(key)
    }

    /// Takes a deadline back. One that was already called is no error.
    pub fn remove(&self, id: DeadlineId) {
        self.lock().due.remove(&id.0);
    }

    /// Calls what is due and says how long nothing else is.
    fn call(&self, now: SystemTime) -> Duration {
        loop {
            let mut state = self.lock();
            let Some(entry) = state.due.first_entry() else { return SLEEP_MAX };
            match entry.key().0.duration_since(now) {
                Ok(ahead) if !ahead.is_zero() => return ahead.min(SLEEP_MAX),
                Ok(_) | Err(_) => {}
            }
            let (receiver, channel) = entry.remove();
            drop(state);
            if let Some(receiver) = receiver.upgrade() {
                receiver.expired(channel);
            }
        }
    }

    /// Runs until `shutdown`.
    pub async fn run(&self, shutdown: CancellationToken) {
        loop {
            let wait = self.call(SystemTime::now());
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.changed.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Default)]
    struct Called(Mutex<Vec<u64>>);

    impl Expires for Called {
        fn expired(&self, channel: u64) {
            self.0.lock().unwrap().push(channel);
        }
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn what_is_due_is_called_in_order_and_the_rest_waits() {
        let (deadlines, called) = (Deadlines::default(), Arc::new(Called::default()));
        let weak = || -> Weak<dyn Expires> { Arc::<Called>::downgrade(&called) };
        deadlines.add(at(20), weak(), 2);
        deadlines.add(at(10), weak(), 1);
        let taken_back = deadlines.add(at(15), weak(), 9);
        deadlines.add(at(25), weak(), 3);
        deadlines.remove(taken_back);
        assert_eq!(deadlines.call(at(20)), Duration::from_secs(5));
        assert_eq!(*called.0.lock().unwrap(), [1, 2]);
    }

    #[test]
    fn a_receiver_that_is_gone_is_skipped() {
        let deadlines = Deadlines::default();
        let called: Arc<dyn Expires> = Arc::new(Called::default());
        deadlines.add(at(10), Arc::downgrade(&called), 1);
        drop(called);
        assert_eq!(deadlines.call(at(10)), SLEEP_MAX);
    }
}
