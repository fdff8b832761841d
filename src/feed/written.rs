//! Whoever waits until what was written is published.
//!
//! In:     ids that writers put into their transaction's origin.
//! Out:    where that transaction is in the log, once its changes are out.
//! Never:  an entry that outlives its waiter.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::cursor::Cursor;
use crate::lsn::Lsn;

/// Where a transaction is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Where its commit record ends.
    pub end: Lsn,
    /// Everything up to it, and all of it, is behind whoever has this.
    pub cursor: Cursor,
}

type Waiting = HashMap<Box<str>, oneshot::Sender<Written>>;

/// Writes that somebody waits for.
#[derive(Debug, Clone, Default)]
pub struct Writes(Arc<Mutex<Waiting>>);

/// One write that will be published, or will not: then nothing comes.
#[derive(Debug)]
pub struct Write {
    id: Box<str>,
    published: oneshot::Receiver<Written>,
    writes: Writes,
}

impl Writes {
    /// Expects a write. To be called before it is made, with its id in the origin.
    pub fn expect(&self) -> Write {
        let id: Box<str> = Uuid::new_v4().simple().to_string().into();
        let (sender, published) = oneshot::channel();
        self.lock().insert(id.clone(), sender);
        Write { id, published, writes: self.clone() }
    }

    /// The transaction with this id, which is there, is out.
    pub(super) fn published(&self, id: &str, written: Written) {
        let waiting = self.lock().remove(id);
        if let Some(waiting) = waiting {
            // It may have stopped to wait.
            let _ = waiting.send(written);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Every holder leaves the map whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write {
    /// For the origin of its transaction.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where its transaction is in the log, once its changes are with their subscribers' outboxes.
    /// Waits for ever when it was rolled back: bound it.
    pub async fn published(&mut self) -> Written {
        match (&mut self.published).await {
            Ok(written) => written,
            // Only by being dropped does an entry leave the map without a word.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        self.writes.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cursor::{Epoch, Place};

    #[tokio::test]
    async fn a_waiter_is_told_and_leaves_nothing_behind() {
        let writes = Writes::default();
        let (mut heard, dropped) = (writes.expect(), writes.expect());
        assert_ne!(heard.id(), dropped.id());
        let cursor = Cursor { place: Place::after(Lsn::new(6)), epoch: Epoch::default() };
        let written = Written { end: Lsn::new(7), cursor };
        writes.published("nobody", written);
        let id = heard.id().to_owned();
        writes.published(&id, written);
        assert_eq!(heard.published().await, written);
        drop(dropped);
        assert!(writes.lock().is_empty());
    }
}
