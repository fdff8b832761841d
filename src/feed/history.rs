//! The last of the log that was read, in the form it came in: for whoever comes back.
//!
//! In:     batches with what has to be known to read them again.
//! Out:    [`Picture`]s: everything that is kept now, from a place that is told.
//! Never:  more bytes than the replay window; a hole between what is kept; IO.
//!
//! Postgres keeps the same window for us: the slot's confirmed position trails by it. After a restart
//! it is sent again, and read into the history as if it came for the first time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hashbrown::HashMap;

use super::reader::{Definition, Reader, Start};
use crate::cursor::{Cursor, Epoch, Place};
use crate::lsn::Lsn;
use crate::wal::Batch;

/// Transactions that are remembered because they changed the catalog before all that is kept.
const DEFINERS_MAX: usize = 1024;

/// What an entry costs beyond its bytes.
const ENTRY_OVERHEAD: usize = 512;

/// A batch that was read.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) batch: Batch,
    /// The transaction that it begins in.
    start: Start,
    /// Tables defined in it.
    defined: Box<[Arc<Definition>]>,
    /// Transactions in it that said that they changed the catalog.
    definers: Box<[u32]>,
    /// It is the first one of a connection: the server says everything anew from here.
    pub(super) fresh: bool,
    /// Only its first transaction counts; what follows came again over another connection.
    pub(super) one_transaction: bool,
    /// The last place in it.
    pub(super) ends: Place,
    committed_at: SystemTime,
    read_at: Instant,
}

impl Entry {
    fn cost(&self) -> usize {
        self.batch.bytes_len() + ENTRY_OVERHEAD
    }
}

/// What is read into the history, in the order of the log.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) batch: Batch,
    pub(super) start: Start,
    pub(super) defined: Box<[Arc<Definition>]>,
    pub(super) definers: Box<[u32]>,
    pub(super) one_transaction: bool,
    pub(super) ends: Place,
    /// When its last transaction was committed.
    pub(super) committed_at: SystemTime,
}

#[derive(Debug, Default)]
struct Ring {
    epoch: Epoch,
    /// Everything after it is kept; none before the first connection.
    begins: Option<Place>,
    /// The last place read.
    ends: Place,
    /// What commits before is from before this process, and was not all read until it was passed.
    live_from: Lsn,
    /// Every transaction before this one had ended before all that is kept.
    horizon: Option<u32>,
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    /// Tables as they were defined where the first entry begins.
    defined: HashMap<u32, Arc<Definition>>,
    /// Transactions before that which changed the catalog, oldest first; not all of them.
    definers: VecDeque<u32>,
    /// The next entry is the first of a connection.
    fresh: bool,
}

/// The last of the log that was read.
#[derive(Debug)]
pub struct History {
    ring: Mutex<Ring>,
    bytes_max: usize,
    age_max: Duration,
}

/// All that is kept at one moment.
#[derive(Debug)]
pub(super) struct Picture {
    pub(super) epoch: Epoch,
    /// Everything after it is here.
    pub(super) begins: Place,
    /// The last place here.
    pub(super) ends: Place,
    /// See [`History::attach`].
    pub(super) live_from: Lsn,
    /// See [`History::attach`].
    pub(super) horizon: Option<u32>,
    pub(super) entries: Vec<Arc<Entry>>,
    defined: HashMap<u32, Arc<Definition>>,
    definers: Vec<u32>,
}

impl History {
    /// Nothing yet. Keeps at most so many bytes, and nothing older than `age_max`.
    pub fn new(bytes_max: usize, age_max: Duration) -> Self {
        Self { ring: Mutex::default(), bytes_max, age_max }
    }

    /// A connection begins. Everything after `begins` will be read, and what is kept goes on,
    /// unless `anew`. What commits before `live_from` was there before; every transaction before
    /// `horizon` had ended before anything that will be read.
    pub(super) fn attach(
        &self,
        epoch: Epoch,
        begins: Place,
        live_from: Lsn,
        horizon: Option<u32>,
        anew: bool,
    ) {
        let mut ring = self.lock();
        if anew || ring.begins.is_none() || ring.epoch != epoch {
            let ends = begins;
            let begins = Some(begins);
            *ring = Ring { epoch, begins, ends, live_from, horizon, ..Ring::default() };
        }
        ring.fresh = true;
    }

    /// Something after the last place was not sent: what is kept begins after that.
    pub(super) fn interrupt(&self) {
        let mut ring = self.lock();
        while ring.drop_first() {}
        ring.begins = ring.begins.map(|_| ring.ends);
    }

    /// Takes what was read.
    pub(super) fn push(&self, read: Read) {
        let Read { batch, start, defined, definers, one_transaction, ends, committed_at } = read;
        let mut ring = self.lock();
        let now = Instant::now();
        let fresh = std::mem::take(&mut ring.fresh);
        ring.ends = ring.ends.max(ends);
        let (ends, batch) = (ring.ends, batch.copied());
        let read_at = now;
        let entry = Entry {
            batch,
            start,
            defined,
            definers,
            fresh,
            one_transaction,
            ends,
            committed_at,
            read_at,
        };
        ring.bytes += entry.cost();
        ring.entries.push_back(Arc::new(entry));
        let is_old = |entry: &Arc<Entry>| now.duration_since(entry.read_at) > self.age_max;
        while ring.bytes > self.bytes_max || ring.entries.front().is_some_and(is_old) {
            if !ring.drop_first() {
                break;
            }
        }
    }

    /// What is kept now; none before the first connection.
    pub(super) fn picture(&self) -> Option<Picture> {
        let ring = self.lock();
        Some(Picture {
            epoch: ring.epoch,
            begins: ring.begins?,
            ends: ring.ends,
            live_from: ring.live_from,
            horizon: ring.horizon,
            entries: ring.entries.iter().cloned().collect(),
            defined: ring.defined.clone(),
            definers: ring.definers.iter().copied().collect(),
        })
    }

    /// A place before everything that is kept and was committed at `time` or later; with it may come
    /// what was read together with that. None before the first connection.
    pub fn before(&self, time: SystemTime) -> Option<Cursor> {
        let ring = self.lock();
        let older = ring.entries.iter().take_while(|entry| entry.committed_at < time).last();
        let begins = ring.begins?;
        let place = older.map_or(begins, |entry| entry.ends.max(begins));
        Some(Cursor { place, epoch: ring.epoch })
    }

    /// The log that is read now.
    pub fn epoch(&self) -> Epoch {
        self.lock().epoch
    }

    /// Bytes that are kept.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        // Every holder leaves the ring whole.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    /// Whether there was one.
    fn drop_first(&mut self) -> bool {
        let Some(first) = self.entries.pop_front() else { return false };
        self.bytes -= first.cost();
        self.begins = self.begins.max(Some(first.ends));
        define(&mut self.defined, &first);
        self.definers.extend(&first.definers);
        let too_many = self.definers.len().saturating_sub(DEFINERS_MAX);
        self.definers.drain(..too_many);
        true
    }
}

fn define(defined: &mut HashMap<u32, Arc<Definition>>, entry: &Entry) {
    if entry.fresh {
        defined.clear();
    }
    for definition in &entry.defined {
        defined.insert(definition.oid, Arc::clone(definition));
    }
}

impl Picture {
    /// The number of the first entry with anything after `place`, and a reader that is ready for
    /// it. Nothing up to `place` is read from it.
    pub(super) fn reader_after(&self, place: Place, payload_bytes_max: usize) -> (usize, Reader) {
        let mut first = self.entries.iter().take_while(|entry| entry.ends <= place).count();
        // What is gathered from a transaction is gathered from its beginning.
        while self.entries.get(first).is_some_and(|entry| entry.start.gathers()) && first > 0 {
            first -= 1;
        }
        let mut defined = self.defined.clone();
        for entry in &self.entries[..first] {
            define(&mut defined, entry);
        }
        let (start, defined) = match self.entries.get(first) {
            Some(entry) if entry.fresh => (entry.start.clone(), HashMap::new()),
            Some(entry) => (entry.start.clone(), defined),
            None => (Start::default(), HashMap::new()),
        };
        (first, Reader::again(start, defined.into_values(), place, payload_bytes_max))
    }

    /// Transactions that changed the catalog before the entry of this number.
    pub(super) fn definers_before(&self, number: usize) -> Vec<u32> {
        let entries = self.entries[..number].iter().flat_map(|entry| &entry.definers);
        self.definers.iter().chain(entries).copied().collect()
    }

    /// A reader for `entry`, the first one of a connection, of which nothing up to `place` is read.
    pub(super) fn fresh_reader(entry: &Entry, place: Place, payload_bytes_max: usize) -> Reader {
        Reader::again(entry.start.clone(), std::iter::empty(), place, payload_bytes_max)
    }
}
