//! When a key set is fetched, and what becomes of the one before.
//!
//! In:     a source; the word that a token named an unknown key; time.
//! Out:    the key set replaced as a whole; who waits for that, woken.
//! Never:  two fetches at once, or sooner after another than the settings allow, whatever is asked;
//!         a good set given up for an answer that is of no use; a set used beyond its age.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::header::HeaderValue;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{debug, error, info, warn};

use super::Fingerprint;
use super::keys::{Keys, fetched_set};
use crate::auth::jwks::{self, Source};
use crate::config;
use crate::telemetry;

/// Who may wait for one fetch; more are answered at once. Each may hold a request of 64 KiB, or
/// frames of 256 KiB.
const WAITING_MAX: usize = 1024;

/// Pause after the first failure when there never was a set; it doubles up to that of the settings.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Why there is no new key set.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// There is no answer.
    #[error(transparent)]
    Fetch(#[from] jwks::Error),
    /// There is one, of no use as a key set.
    #[error("what it answers is no key set to use: {0}")]
    Unusable(&'static str),
}

/// What a fetch changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Refreshed {
    /// Keys in the set now.
    pub keys: usize,
    /// Keys that are new in it.
    pub added: usize,
    /// Keys that are not in it any more.
    pub removed: usize,
    /// Keys of the answer that are broken, or secrets.
    pub left_out: usize,
}

/// Somebody waits for a fetch. Dropping it gives the place to another.
pub struct KeyWait {
    rounds: watch::Receiver<u64>,
    deadline: Instant,
    _place: OwnedSemaphorePermit,
}

impl fmt::Debug for KeyWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyWait").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

impl KeyWait {
    /// Until the fetch is over, or took too long to be waited for.
    pub async fn over(mut self) {
        // Either way the token is verified with what there is.
        let _ = timeout_at(self.deadline, self.rounds.changed()).await;
    }
}

/// How often, how long.
#[derive(Debug, Clone, Copy)]
struct Timing {
    /// Between two fetches when nothing happens.
    interval: Duration,
    /// Between two fetches at least.
    pause: Duration,
    /// How old a set may get.
    age_max: Duration,
    /// How long a token waits.
    wait: Duration,
}

/// What was fetched.
struct Loaded {
    at: Instant,
    /// Of the body.
    fingerprint: Fingerprint,
    etag: Option<HeaderValue>,
}

struct Progress {
    /// [`Rotation::run`] runs, so that a wait has an end.
    kept: bool,
    fetching: bool,
    /// A token named an unknown key since the last fetch began.
    wanted: bool,
    /// When the last fetch began.
    began: Option<Instant>,
    /// When the next one is due if nobody wants one.
    next: Instant,
    /// In a row.
    failures: u32,
    loaded: Option<Loaded>,
}

impl Progress {
    fn due(&self, pause: Duration) -> Instant {
        match self.began {
            Some(began) if self.wanted => self.next.min(began + pause),
            _ => self.next,
        }
    }
}

/// Keeps the key set of a URL.
pub(super) struct Rotation {
    source: Source,
    timing: Timing,
    progress: Mutex<Progress>,
    /// Counts fetches that are over.
    rounds: watch::Sender<u64>,
    /// `wanted` became true.
    wanted: Notify,
    /// Held by the fetch under way.
    turn: tokio::sync::Mutex<()>,
    waiting: Arc<Semaphore>,
    /// How often a key was taken away.
    epoch: AtomicU64,
}

impl Rotation {
    pub(super) fn new(url: &str, settings: &config::Jwt) -> Result<Self, config::Error> {
        let interval = Duration::from_millis(settings.jwks_refresh_interval_ms);
        Ok(Self {
            source: Source::new(url, settings)?,
            timing: Timing {
                interval,
                pause: Duration::from_millis(settings.jwks_pause_ms).min(interval),
                age_max: Duration::from_millis(settings.jwks_age_max_ms),
                wait: Duration::from_millis(settings.jwks_wait_ms),
            },
            progress: Mutex::new(Progress {
                kept: false,
                fetching: false,
                wanted: false,
                began: None,
                next: Instant::now(),
                failures: 0,
                loaded: None,
            }),
            rounds: watch::Sender::new(0),
            wanted: Notify::new(),
            turn: tokio::sync::Mutex::default(),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
            epoch: AtomicU64::new(0),
        })
    }

    pub(super) fn source(&self) -> String {
        self.source.to_string()
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A token named an unknown key: the set is fetched as soon as it may be. What to wait for,
    /// when that is now.
    pub(super) fn want(&self) -> Option<KeyWait> {
        let mut progress = self.progress();
        if !progress.kept {
            return None;
        }
        if !progress.fetching && !progress.wanted {
            progress.wanted = true;
            self.wanted.notify_one();
        }
        let now = Instant::now();
        if !progress.fetching && progress.due(self.timing.pause) > now {
            return None;
        }
        let place = Arc::clone(&self.waiting).try_acquire_owned().ok()?;
        let deadline = now + self.timing.wait;
        // Under the lock: the fetch that ends next is one that this receiver has not seen.
        Some(KeyWait { rounds: self.rounds.subscribe(), deadline, _place: place })
    }

    /// Fetches whenever it is due, for ever.
    pub(super) async fn run(&self, keys: &Keys, removed: impl Fn()) {
        let _kept = Kept::new(self);
        let mut well = false;
        loop {
            self.until_due().await;
            let epoch = self.epoch();
            let outcome = self.refresh(keys).await;
            let source = &self.source;
            match &outcome {
                Ok(Refreshed { keys, added, removed, left_out }) => {
                    if !well || added + removed > 0 {
                        info!(%source, keys, added, removed, left_out, "key set fetched");
                    } else {
                        debug!(%source, keys, "key set is as before");
                    }
                    if *left_out > 0 && (!well || added + removed > 0) {
                        warn!(%source, left_out, "keys of the key set are broken or secret; not used");
                    }
                }
                Err(error) if self.epoch() != epoch => {
                    let error = telemetry::chain(error);
                    error!(%source, error, "key set is too old; its tokens are refused from now on");
                }
                Err(error) => {
                    let (error, keys) = (telemetry::chain(error), keys.set().len());
                    warn!(%source, error, keys, "cannot fetch the key set; going on with what there is");
                }
            }
            well = outcome.is_ok();
            if self.epoch() != epoch {
                info!(%source, "keys are gone; connections have to show their tokens again");
                removed();
            }
        }
    }

    async fn until_due(&self) {
        loop {
            let due = self.progress().due(self.timing.pause);
            tokio::select! {
                () = sleep_until(due) => return,
                () = self.wanted.notified() => {}
            }
        }
    }

    /// Fetches now.
    pub(super) async fn refresh(&self, keys: &Keys) -> Result<Refreshed, RefreshError> {
        let _turn = self.turn.lock().await;
        let etag = {
            let mut progress = self.progress();
            progress.fetching = true;
            progress.wanted = false;
            progress.began = Some(Instant::now());
            progress.loaded.as_ref().and_then(|loaded| loaded.etag.clone())
        };
        let _round = Round(self);
        let outcome = match self.source.fetch(etag.as_ref()).await {
            Ok(answer) => self.take(keys, answer),
            Err(error) => Err(error.into()),
        };
        if outcome.is_err() {
            self.failed(keys);
        }
        let result = if outcome.is_ok() { "ok" } else { "error" };
        metrics::counter!(telemetry::KEY_SET_FETCHES, telemetry::RESULT => result).increment(1);
        outcome
    }

    fn take(&self, keys: &Keys, answer: jwks::Answer) -> Result<Refreshed, RefreshError> {
        let jwks::Answer { body, etag, fresh_for } = answer;
        let fingerprint = body.as_deref().map(Fingerprint::of_bytes);
        let known = self.progress().loaded.as_ref().map(|loaded| loaded.fingerprint);
        let mut refreshed = Refreshed { keys: keys.set().len(), ..Refreshed::default() };
        if let Some(body) = body
            && fingerprint != known
        {
            let fetched = fetched_set(&body).map_err(RefreshError::Unusable)?;
            refreshed.left_out = fetched.left_out;
            refreshed.keys = fetched.keys.len();
            let before = keys.replace(fetched.keys);
            let now = keys.set();
            refreshed.added = now.iter().filter(|key| !key.is_in(&before)).count();
            refreshed.removed = before.iter().filter(|key| !key.is_in(&now)).count();
        }
        if refreshed.removed > 0 {
            self.epoch.fetch_add(1, Ordering::SeqCst);
        }
        let mut progress = self.progress();
        let now = Instant::now();
        let before = progress.loaded.take().and_then(|loaded| loaded.etag);
        // An answer without a body need not repeat the name of the one we have.
        let etag = if fingerprint.is_some() { etag } else { etag.or(before) };
        progress.loaded =
            fingerprint.or(known).map(|fingerprint| Loaded { at: now, fingerprint, etag });
        progress.failures = 0;
        let Timing { interval, pause, .. } = self.timing;
        progress.next = now + fresh_for.unwrap_or(interval).clamp(pause, interval);
        drop(progress);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        metrics::gauge!(telemetry::KEY_SET_FETCHED).set(since.as_secs_f64());
        report_keys(refreshed.keys);
        Ok(refreshed)
    }

    fn failed(&self, keys: &Keys) {
        let mut progress = self.progress();
        let Timing { pause, age_max, .. } = self.timing;
        let now = Instant::now();
        let tries = progress.failures.min(16);
        progress.failures = tries + 1;
        progress.next = now
            + match &progress.loaded {
                Some(_) => pause,
                None => pause.min(FIRST_PAUSE * 2_u32.pow(tries)),
            };
        let stale = progress.loaded.as_ref().is_some_and(|loaded| now - loaded.at > age_max);
        if stale {
            progress.loaded = None;
            drop(progress);
            keys.replace(Vec::new());
            self.epoch.fetch_add(1, Ordering::SeqCst);
            report_keys(0);
        }
    }
}

fn report_keys(keys: usize) {
    let keys = u32::try_from(keys).unwrap_or(u32::MAX);
    metrics::gauge!(telemetry::KEY_SET_KEYS).set(f64::from(keys));
}

/// As long as this lives, a wait has an end.
struct Kept<'a>(&'a Rotation);

impl<'a> Kept<'a> {
    fn new(rotation: &'a Rotation) -> Self {
        rotation.progress().kept = true;
        Self(rotation)
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        self.0.progress().kept = false;
    }
}

/// A fetch; over when dropped, however that comes.
struct Round<'a>(&'a Rotation);

impl Drop for Round<'_> {
    fn drop(&mut self) {
        self.0.progress().fetching = false;
        self.0.rounds.send_modify(|round| *round += 1);
    }
}
