//! Clients that lost their connection and come back: which rooms they were in.
//!
//! In:     connections, by the private name that their clients were told; what each had when it was
//!         lost.
//! Out:    the same, once, to the same user in the same namespace; a connection whose client is back
//!         before it was noticed to be lost, closed.
//! Never:  rights: whoever comes back is asked about like anybody; more of the lost than a bound.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use serde_json::Value;
use tokio::sync::Notify;

use crate::hub::outbox::{CloseReason, Outbox};

/// How long somebody may be away.
const AWAY_MAX: Duration = Duration::from_mins(2);

/// How many are remembered; of more, those who left first are forgotten.
const LOST_MAX: usize = 10_000;

/// How long the connection of a client that is back already may take to close.
const CLOSING_MAX: Duration = Duration::from_secs(2);

/// Its client has another connection.
const REPLACED: CloseReason =
    CloseReason::Session { code: 4409, text: "another connection came in its place" };

/// What a connection had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) namespace: Box<str>,
    pub(super) user: Option<Box<str>>,
    /// What it was called.
    pub(super) id: Arc<str>,
    /// Full topics of its rooms, and what it joined them with.
    pub(super) rooms: Vec<(Arc<str>, Value)>,
    /// What its client has everything up to, if it was told of nothing since it came.
    pub(super) begins: Box<str>,
}

/// Those who may come back.
#[derive(Debug, Default)]
pub(super) struct Recoveries {
    inner: Mutex<Inner>,
    /// One was lost.
    lost: Notify,
}

#[derive(Debug)]
struct Live {
    namespace: Box<str>,
    user: Option<Box<str>>,
    outbox: Weak<Outbox>,
}

#[derive(Debug, Default)]
struct Inner {
    live: HashMap<Box<str>, Live>,
    lost: HashMap<Box<str>, (Instant, Lost)>,
    /// Names in the order in which they were lost.
    order: VecDeque<(Instant, Box<str>)>,
}

impl Recoveries {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client has this connection.
    pub(super) fn enter(
        &self,
        name: &str,
        namespace: &str,
        user: Option<&str>,
        outbox: &Arc<Outbox>,
    ) {
        let (namespace, user) = (namespace.into(), user.map(Into::into));
        let live = Live { namespace, user, outbox: Arc::downgrade(outbox) };
        self.inner().live.insert(name.into(), live);
    }

    /// It left, and is not coming back.
    pub(super) fn leave(&self, name: &str) {
        self.inner().live.remove(name);
    }

    /// Remembers one that is lost.
    pub(super) fn remember(&self, name: &str, lost: Lost, now: Instant) {
        {
            let mut inner = self.inner();
            inner.live.remove(name);
            inner.forget(now, LOST_MAX - 1);
            inner.order.push_back((now, name.into()));
            inner.lost.insert(name.into(), (now, lost));
        }
        self.lost.notify_waiters();
    }

    /// The same as [`Self::take`]; of a connection that is not known to be lost, once it is closed.
    pub(super) async fn take_over(
        &self,
        name: &str,
        namespace: &str,
        user: Option<&str>,
    ) -> Option<Lost> {
        let closing = async {
            loop {
                let told = self.lost.notified();
                let mut told = std::pin::pin!(told);
                told.as_mut().enable();
                if let Some(lost) = self.take(name, namespace, user, Instant::now()) {
                    return Some(lost);
                }
                let outbox = {
                    let inner = self.inner();
                    let live = inner.live.get(name)?;
                    if *live.namespace != *namespace || live.user.as_deref() != user {
                        return None;
                    }
                    live.outbox.upgrade()
                };
                outbox?.close(REPLACED);
                told.await;
            }
        };
        tokio::time::timeout(CLOSING_MAX, closing).await.ok().flatten()
    }

    /// What a client that shows this name had, unless it was somebody else's.
    fn take(&self, name: &str, namespace: &str, user: Option<&str>, now: Instant) -> Option<Lost> {
        let mut inner = self.inner();
        inner.forget(now, LOST_MAX);
        let (_, lost) = inner.lost.get(name)?;
        if *lost.namespace != *namespace || lost.user.as_deref() != user {
            return None;
        }
        inner.lost.remove(name).map(|(_, lost)| lost)
    }
}

impl Inner {
    fn forget(&mut self, now: Instant, most: usize) {
        while let Some((at, name)) = self.order.front()
            && (self.order.len() > most || now.saturating_duration_since(*at) > AWAY_MAX)
        {
            // It may have come back, and be lost again.
            if self.lost.get(name).is_some_and(|(of, _)| of == at) {
                self.lost.remove(name);
            }
            self.order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(user: &str) -> Lost {
        Lost {
            namespace: "/a".into(),
            user: Some(user.into()),
            id: "id".into(),
            rooms: vec![("realtime:map:1".into(), Value::Null)],
            begins: "b".into(),
        }
    }

    #[test]
    fn who_comes_back_has_it_once_and_nobody_else_has() {
        let (recoveries, now) = (Recoveries::default(), Instant::now());
        recoveries.remember("x", lost("u"), now);
        assert_eq!(recoveries.take("x", "/a", Some("other"), now), None);
        assert_eq!(recoveries.take("x", "/b", Some("u"), now), None);
        assert_eq!(recoveries.take("x", "/a", Some("u"), now), Some(lost("u")));
        assert_eq!(recoveries.take("x", "/a", Some("u"), now), None);
    }

    #[test]
    fn the_lost_are_bounded_in_time_and_number() {
        let (recoveries, now) = (Recoveries::default(), Instant::now());
        recoveries.remember("x", lost("u"), now);
        assert_eq!(recoveries.take("x", "/a", Some("u"), now + AWAY_MAX * 2), None);
        for number in 0..=LOST_MAX {
            recoveries.remember(&number.to_string(), lost("u"), now);
        }
        assert_eq!(recoveries.take("0", "/a", Some("u"), now), None);
        assert_eq!(recoveries.take("1", "/a", Some("u"), now), Some(lost("u")));
        let inner = recoveries.inner();
        assert!(inner.lost.len() < LOST_MAX && inner.order.len() <= LOST_MAX);
    }
}
