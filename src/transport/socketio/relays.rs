//! What a connection relays: how often at most, the last of it, and that it ends.
//!
//! In:     events to be told, by what they are about; the time.
//! Out:    which of them are told now, or later; what is told when they end.
//! Never:  IO; more that is under way than a bound.

use std::time::{Duration, Instant};

use hashbrown::HashMap;

/// How much of one connection may be under way.
const ACTIVE_MAX: usize = 256;

/// What is under way, by what it is about. `T` is something to be told.
#[derive(Debug)]
pub(super) struct Relays<T> {
    active: HashMap<Box<str>, Active<T>>,
}

#[derive(Debug)]
struct Active<T> {
    sent_at: Instant,
    interval: Duration,
    /// The last one, that came too early.
    pending: Option<T>,
    /// When it counts as over if nothing more comes.
    ends_at: Option<Instant>,
    /// What is told then.
    end: Option<T>,
}

/// How an event is relayed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    /// Between two of them.
    pub(super) interval: Duration,
    /// Without another one it is over.
    pub(super) expires: Option<Duration>,
}

/// There is too much under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooMany;

impl<T> Default for Relays<T> {
    fn default() -> Self {
        Self { active: HashMap::new() }
    }
}

impl<T> Relays<T> {
    /// Something to be told; given back when now is the time. `end`: what is told when it is over.
    ///
    /// # Errors
    /// There is too much under way already.
    pub(super) fn say(
        &mut self,
        about: &str,
        manner: Manner,
        what: T,
        end: Option<T>,
        now: Instant,
    ) -> Result<Option<T>, TooMany> {
        let Manner { interval, expires } = manner;
        let ends_at = expires.map(|after| now + after);
        if let Some(active) = self.active.get_mut(about) {
            (active.ends_at, active.end, active.interval) = (ends_at, end, interval);
            if now < active.sent_at + interval {
                active.pending = Some(what);
                return Ok(None);
            }
            (active.sent_at, active.pending) = (now, None);
            return Ok(Some(what));
        }
        if interval.is_zero() && ends_at.is_none() && end.is_none() {
            return Ok(Some(what));
        }
        if self.active.len() >= ACTIVE_MAX {
            return Err(TooMany);
        }
        let active = Active { sent_at: now, interval, pending: None, ends_at, end };
        self.active.insert(about.into(), active);
        Ok(Some(what))
    }

    /// It is over: what was left to be told, and then its end.
    pub(super) fn stop(&mut self, about: &str) -> Vec<T> {
        let stopped = self.active.remove(about).into_iter();
        stopped.flat_map(|active| [active.pending, active.end].into_iter().flatten()).collect()
    }

    /// Everything that these are about is over.
    pub(super) fn stop_all(&mut self, is_over: impl Fn(&str) -> bool) -> Vec<T> {
        let over: Vec<Box<str>> =
            self.active.keys().filter(|about| is_over(about)).cloned().collect();
        over.iter().flat_map(|about| self.stop(about)).collect()
    }

    /// When there is something to do next.
    pub(super) fn due_at(&self) -> Option<Instant> {
        let due = |active: &Active<T>| {
            // One that has nothing left to say is forgotten when it may speak again.
            let speaks = (active.pending.is_some() || active.end.is_none())
                .then_some(active.sent_at + active.interval);
            [speaks, active.ends_at].into_iter().flatten().min()
        };
        self.active.values().filter_map(due).min()
    }

    /// What is to be told by now, in the order in which it is due.
    pub(super) fn due(&mut self, now: Instant) -> Vec<T> {
        let mut told = Vec::new();
        self.active.retain(|_, active| {
            let may_speak = now >= active.sent_at + active.interval;
            if active.ends_at.is_some_and(|ends_at| now >= ends_at) {
                told.extend(
                    active.pending.take().map(|what| (active.sent_at + active.interval, what)),
                );
                told.extend(active.end.take().map(|what| (active.ends_at.unwrap_or(now), what)));
                return false;
            }
            if may_speak && let Some(pending) = active.pending.take() {
                told.push((active.sent_at + active.interval, pending));
                active.sent_at = now;
                return true;
            }
            !may_speak || active.end.is_some() || active.ends_at.is_some()
        });
        told.sort_by_key(|(at, _)| *at);
        told.into_iter().map(|(_, what)| what).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENTH: Manner = Manner { interval: Duration::from_millis(100), expires: None };
    const TYPING: Manner =
        Manner { interval: Duration::ZERO, expires: Some(Duration::from_secs(3)) };

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn the_first_and_the_last_of_many_are_told() {
        let (mut relays, start) = (Relays::default(), Instant::now());
        let mut told = Vec::new();
        for step in 0..50u64 {
            let now = start + ms(step * 20);
            told.extend(relays.due(now));
            told.extend(relays.say("card", TENTH, step, None, now).unwrap());
        }
        assert_eq!(relays.due_at(), Some(start + ms(1000)));
        told.extend(relays.due(start + ms(1000)));
        assert_eq!((told.first(), told.last()), (Some(&0), Some(&49)));
        assert!(told.len() <= 11 && told.is_sorted(), "{told:?}");
        assert_eq!(relays.due(start + ms(1100)), [0u64; 0]);
        assert_eq!(relays.due_at(), None);
    }

    #[test]
    fn what_is_about_something_else_is_told_at_once() {
        let (mut relays, now) = (Relays::default(), Instant::now());
        assert_eq!(relays.say("a", TENTH, 1, None, now), Ok(Some(1)));
        assert_eq!(relays.say("b", TENTH, 2, None, now), Ok(Some(2)));
        assert_eq!(relays.say("a", TENTH, 3, None, now), Ok(None));
        assert_eq!(relays.stop("a"), [3]);
        assert_eq!(relays.say("a", TENTH, 4, None, now), Ok(Some(4)));
    }

    #[test]
    fn what_goes_silent_ends() {
        let (mut relays, start) = (Relays::default(), Instant::now());
        assert_eq!(relays.say("a", TYPING, "on", Some("off"), start), Ok(Some("on")));
        assert_eq!(relays.say("a", TYPING, "on", Some("off"), start + ms(2000)), Ok(Some("on")));
        assert!(relays.due(start + ms(4999)).is_empty());
        assert_eq!(relays.due_at(), Some(start + ms(5000)));
        assert_eq!(relays.due(start + ms(5000)), ["off"]);
        assert!(relays.stop("a").is_empty());
    }

    #[test]
    fn what_is_stopped_ends_once() {
        let (mut relays, now) = (Relays::default(), Instant::now());
        for about in ["room1/a", "room1/b", "room2/a"] {
            assert_eq!(relays.say(about, TYPING, "on", Some("off"), now), Ok(Some("on")));
        }
        assert_eq!(relays.stop("room1/a"), ["off"]);
        assert!(relays.stop("room1/a").is_empty());
        assert_eq!(relays.stop_all(|about| about.starts_with("room1")), ["off"]);
        assert_eq!(relays.stop_all(|_| true), ["off"]);
        assert_eq!(relays.due_at(), None);
    }

    #[test]
    fn not_too_much_is_under_way() {
        let (mut relays, now) = (Relays::default(), Instant::now());
        for number in 0..ACTIVE_MAX {
            assert!(relays.say(&number.to_string(), TENTH, (), None, now).is_ok());
        }
        assert_eq!(relays.say("one more", TENTH, (), None, now), Err(TooMany));
        assert!(relays.say("0", TENTH, (), None, now).is_ok());
        assert!(relays.due(now + ms(100)).len() <= 1);
        assert_eq!(relays.say("one more", TENTH, (), None, now + ms(300)), Ok(Some(())));
    }
}
