//! Who asks, so that nobody takes the places of others.
//!
//! In:     a connection; or, for what has none, a name to be known by.
//! Out:    [`Asker`]: its checks run one after the other; what it no longer wants does not begin.
//! Never:  a turn given on before the check that had it has ended, one that was abandoned included.

use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use hashbrown::HashMap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Checks of one asker that have a place of the pool, or are next for one. All askers with a check
/// to make stand in one queue once, so whoever asks for much waits for itself. With two, half as
/// many askers whose policies are slow would hold the whole pool.
const TURNS: usize = 1;

/// Named askers at which those that ask nothing any more are first looked for.
const SWEEP_MIN: usize = 64;

/// Somebody who asks, about one thing it wants to know. Clones are the same.
#[derive(Debug, Clone)]
pub struct Asker {
    turns: Arc<Semaphore>,
    gone: CancellationToken,
}

impl Default for Asker {
    fn default() -> Self {
        Self { turns: Arc::new(Semaphore::new(TURNS)), gone: CancellationToken::new() }
    }
}

impl Asker {
    /// The same asker about something that it can lose interest in by itself.
    #[must_use]
    pub fn about(&self) -> Self {
        Self { turns: Arc::clone(&self.turns), gone: CancellationToken::new() }
    }

    /// Nobody wants to know any more: checks that have not begun end with [`super::Error::Gone`].
    /// Those that have run on, because to end one costs its connection.
    pub fn leave(&self) {
        self.gone.cancel();
    }

    /// Waits until it may have a place.
    pub(super) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        // It is never closed.
        Arc::clone(&self.turns).acquire_owned().await.ok()
    }

    /// Returns when it leaves.
    pub(super) async fn gone(&self) {
        self.gone.cancelled().await;
    }
}

/// Askers without a connection: those of one name are the same one, as long as one of them asks.
#[derive(Debug)]
pub struct Askers<N>(Mutex<Named<N>>);

#[derive(Debug)]
struct Named<N> {
    turns: HashMap<N, Weak<Semaphore>>,
    /// At so many, those that are nobody's are taken out.
    sweep_at: usize,
}

impl<N> Default for Askers<N> {
    fn default() -> Self {
        Self(Mutex::new(Named { turns: HashMap::new(), sweep_at: SWEEP_MIN }))
    }
}

impl<N: Eq + Hash> Askers<N> {
    /// The asker of this name. At most twice as many names are kept as ask at once.
    pub fn named(&self, name: N) -> Asker {
        // Every holder leaves the value whole.
        let mut named = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turns) = named.turns.get(&name).and_then(Weak::upgrade) {
            return Asker { turns, gone: CancellationToken::new() };
        }
        if named.turns.len() >= named.sweep_at {
            named.turns.retain(|_, turns| turns.strong_count() > 0);
            named.sweep_at = (named.turns.len() * 2).max(SWEEP_MIN);
        }
        let asker = Asker::default();
        named.turns.insert(name, Arc::downgrade(&asker.turns));
        asker
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_asker_while_it_asks() {
        let askers = Askers::default();
        let first = askers.named("a");
        assert!(Arc::ptr_eq(&first.turns, &askers.named("a").turns));
        assert!(!Arc::ptr_eq(&first.turns, &askers.named("b").turns));
    }

    #[test]
    fn names_of_those_that_ask_no_more_are_forgotten() {
        let askers = Askers::default();
        let kept = askers.named(0);
        for name in 1..10_000 {
            askers.named(name);
        }
        let names = askers.0.lock().unwrap().turns.len();
        assert!(names <= SWEEP_MIN, "{names}");
        assert!(Arc::ptr_eq(&kept.turns, &askers.named(0).turns));
    }

    #[test]
    fn an_asker_that_leaves_one_thing_stays_with_the_others() {
        let connection = Asker::default();
        let (left, kept) = (connection.about(), connection.about());
        left.leave();
        let gone =
            [&left, &left.clone(), &kept, &connection].map(|asker| asker.gone.is_cancelled());
        assert_eq!(gone, [true, true, false, false]);
        assert!(Arc::ptr_eq(&left.turns, &kept.turns));
    }
}
