//! Two snapshots of the recent past, for asking who could see a row before its transaction.
//!
//! In:     whether anybody listens.
//! Out:    exported snapshots a fraction of a second old, which a check imports.
//! Never:  a snapshot old enough to hold vacuum back noticeably: each lives two intervals.
//!
//! Why: a transaction that deletes a room deletes its memberships first. Asked afterwards, nobody
//! could see the messages it deleted, and nobody would be told.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_postgres::{Client, SimpleQueryMessage};
use tracing::debug;

use crate::db::Login;
use crate::snapshot::Snapshot;

/// One exported snapshot.
#[derive(Debug, Clone)]
pub(super) struct Held {
    /// For `set transaction snapshot`.
    pub(super) id: String,
    /// What it sees.
    pub(super) snapshot: Snapshot,
}

/// The snapshots held now.
#[derive(Debug)]
pub(super) struct History {
    held: Mutex<[Option<Held>; 2]>,
    wanted: watch::Sender<bool>,
    changed: watch::Sender<u64>,
}

impl Default for History {
    fn default() -> Self {
        Self {
            held: Mutex::default(),
            wanted: watch::Sender::new(false),
            changed: watch::Sender::new(0),
        }
    }
}

impl History {
    /// Whether snapshots are to be held from now on.
    pub(super) fn want(&self, wanted: bool) {
        self.wanted.send_if_modified(|now| std::mem::replace(now, wanted) != wanted);
    }

    /// The newest one that does not see `xid`, if there is one.
    pub(super) fn before(&self, xid: u32) -> Option<Held> {
        let held = self.lock();
        let older = held.iter().flatten().filter(|held| !held.snapshot.sees(xid));
        older.max_by_key(|held| held.snapshot.reach()).cloned()
    }

    /// Returns once a snapshot is held that was taken after this call.
    pub(super) async fn next(&self) {
        let mut changed = self.changed.subscribe();
        // The sender lives as long as `self`: there is always a next one to wait for.
        let _ = changed.changed().await;
    }

    fn put(&self, place: usize, value: Option<Held>) {
        let taken = value.is_some();
        if let Some(held) = self.lock().get_mut(place) {
            *held = value;
        }
        if taken {
            self.changed.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    fn lock(&self) -> MutexGuard<'_, [Option<Held>; 2]> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a new snapshot each `interval`, in turn, while they are wanted. Ends with the task.
    pub(super) async fn keep(self: Arc<Self>, login: Login, interval: Duration) {
        let mut wanted = self.wanted.subscribe();
        let mut clients: [Option<Client>; 2] = [None, None];
        for place in [0, 1].into_iter().cycle() {
            if !*wanted.borrow_and_update() {
                for place in [0, 1] {
                    self.put(place, None);
                }
                clients = [None, None];
                if wanted.wait_for(|wanted| *wanted).await.is_err() {
                    return;
                }
            }
            self.put(place, None);
            let client = clients.get_mut(place).and_then(Option::take);
            let taken = tokio::time::timeout(interval * 4, take(&login, client)).await;
            if let Ok(Some((client, held))) = taken {
                self.put(place, Some(held));
                if let Some(slot) = clients.get_mut(place) {
                    *slot = Some(client);
                }
            } else {
                debug!("no snapshot of the past could be taken");
            }
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                _ = wanted.wait_for(|wanted| !*wanted) => {}
            }
        }
    }
}

async fn take(login: &Login, client: Option<Client>) -> Option<(Client, Held)> {
    let client = match client.filter(|client| !client.is_closed()) {
        Some(client) => client,
        None => login.connect("walcast history").await.ok()?,
    };
    let messages = client
        .simple_query(
            "rollback;
            begin isolation level repeatable read read only;
            select pg_catalog.pg_export_snapshot(), pg_catalog.pg_current_snapshot()::text",
        )
        .await
        .ok()?;
    let row = messages.iter().find_map(|message| {
        if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None }
    })?;
    let held = Held { id: row.get(0)?.to_owned(), snapshot: row.get(1)?.parse().ok()? };
    Some((client, held))
}
