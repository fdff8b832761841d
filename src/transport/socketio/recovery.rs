//! Clients that lost their connection and come back: which rooms they were in.
//!
//! In:     what a connection had when it was lost, by the private name that its client was told.
//! Out:    the same, once, to the same user in the same namespace.
//! Never:  rights: whoever comes back is asked about like anybody; more of the lost than a bound.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hashbrown::HashMap;

/// How long somebody may be away.
const AWAY_MAX: Duration = Duration::from_mins(2);

/// How many are remembered; of more, those who left first are forgotten.
const LOST_MAX: usize = 10_000;

/// What a connection had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) namespace: Box<str>,
    pub(super) user: Option<Box<str>>,
    /// Full topics.
    pub(super) topics: Vec<Arc<str>>,
    /// What its client has everything up to, if it was told of nothing since it came.
    pub(super) begins: Box<str>,
}

/// Those who may come back.
#[derive(Debug, Default)]
pub(super) struct Recoveries(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    lost: HashMap<Box<str>, (Instant, Lost)>,
    /// Names in the order in which they were lost.
    order: VecDeque<(Instant, Box<str>)>,
}

impl Recoveries {
    /// Remembers one.
    pub(super) fn remember(&self, name: &str, lost: Lost, now: Instant) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.forget(now, LOST_MAX - 1);
        inner.order.push_back((now, name.into()));
        inner.lost.insert(name.into(), (now, lost));
    }

    /// What a client that shows this name had, unless it was somebody else's.
    pub(super) fn take(
        &self,
        name: &str,
        namespace: &str,
        user: Option<&str>,
        now: Instant,
    ) -> Option<Lost> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
            topics: vec!["realtime:map:1".into()],
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
        let inner = recoveries.0.lock().unwrap();
        assert!(inner.lost.len() < LOST_MAX && inner.order.len() <= LOST_MAX);
    }
}
