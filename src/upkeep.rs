//! What must be done now and then while the service runs.
//!
//! In:     the parts that need it; a word to stop.
//! Out:    caches forgotten in time, logins that exist, partitions for the coming days, gauges.
//! Never:  anything in the way of a change, but for a slot that would fill the server's disk; an
//!         error that ends the service.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::auth::rls::Authorizer;
use crate::catalog::Catalog;
use crate::config;
use crate::db::logins::{self, Logins};
use crate::db::{self, Login, install};
use crate::feed::{Budget, CATALOG_AGE_MUCH, Pressure, SlotState, Status};
use crate::hub::Hub;
use crate::telemetry;
use crate::transport::listener::Connections;

/// How often the catalog's fingerprint is compared: the longest time that a change of roles or
/// functions goes unnoticed. Table definitions, grants and policies are noticed in the log itself.
const CATALOG_INTERVAL: Duration = Duration::from_secs(1);

/// How often the server is asked for our logins and our slot: about the longest time that a login
/// somebody dropped stays away.
/// A slot grows by what the server writes meanwhile, and a missing publication is said that late.
const SERVER_INTERVAL: Duration = Duration::from_secs(1);

/// How often slots that nobody reads are looked for: while one of them is not certain, and else.
const ORPHANS_INTERVAL: (Duration, Duration) = (Duration::from_secs(5), Duration::from_mins(1));

/// How often the powers of the check login are looked at.
pub const POWERS_INTERVAL: Duration = Duration::from_mins(1);

/// How long a socket must have taken nothing to be closed for the sake of the server's disk.
const STALLED_MIN: Duration = Duration::from_secs(1);

/// How long such an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How often metrics are brought up to date.
const METRICS_INTERVAL: Duration = Duration::from_secs(1);

/// How often partitions are made and dropped: there are always those of the next three days.
const PARTITIONS_INTERVAL: Duration = Duration::from_hours(1);

/// How often keys of writes that are over are forgotten, and declarations that nobody needs any more.
/// A key that is over counts for nothing.
const OLD_INTERVAL: Duration = Duration::from_mins(10);

/// How long a declaration stays after it was replaced, though no slot needs it: those of a standby, which
/// may become the primary, may be behind.
const MAPPINGS_AGE: Duration = Duration::from_hours(7 * 24);

/// How long they are left alone after an attempt that came to nothing, and after one that did.
const PARTITIONS_PAUSE: (Duration, Duration) = (Duration::from_mins(1), Duration::from_secs(1));

/// Forgets what was cached when the catalog changed in a way the log does not tell.
pub async fn watch_catalog(
    catalog: Arc<Catalog>,
    authorizer: Arc<Authorizer>,
    hub: Arc<Hub>,
    shutdown: CancellationToken,
) {
    let mut tick = interval(CATALOG_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = tick.tick() => {}
        }
        let listening = hub.subscribers() > 0;
        authorizer.keep_history(listening);
        if !listening {
            continue;
        }
        match catalog.changed().await {
            Ok(false) => {}
            Ok(true) => {
                debug!("the catalog changed");
                authorizer.forget(None);
            }
            Err(error) => debug!(error = telemetry::chain(&error), "the catalog cannot be read"),
        }
    }
}

/// What the watch over the server is about.
pub struct Watched {
    /// The logins that are made again, and whose check login asks.
    pub logins: Arc<Logins>,
    /// The slot, its publications and its budget.
    pub replication: config::Replication,
    /// What the feed is told, and what it tells of the slot.
    pub status: Arc<Status>,
    /// The sockets.
    pub connections: Arc<Connections>,
    /// Told when `realtime.messages` lacks a partition.
    pub lacking: Arc<Notify>,
}

/// Makes our logins again when somebody dropped them, keeps the slot within its budget, and says
/// what is missing.
pub async fn watch_server(watched: Watched, shutdown: CancellationToken) {
    let mut tick = interval(SERVER_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut client = None;
    let mut guardian = Guardian::new(&watched);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = tick.tick() => {}
        }
        let looking = timeout(ANSWER_TIMEOUT, look(&watched, &mut client));
        let looked = looking.await;
        watched.status.answers.store(matches!(looked, Ok(Ok(_))), Ordering::Relaxed);
        let missing = match looked {
            Ok(Ok(seen)) => {
                watched.status.seen(seen.current_lsn);
                guardian.keep_to_budget(&seen);
                if seen.lacks_publication {
                    watched.status.misses_publication();
                }
                if seen.lacks_partition {
                    watched.lacking.notify_one();
                }
                !seen.has_logins
            }
            Ok(Err(error)) => {
                debug!(error = telemetry::chain(&error), "the server cannot be watched");
                client = None;
                error.is_refusal()
            }
            Err(_elapsed) => {
                client = None;
                false
            }
        };
        guardian.look_for_orphans(&mut client).await;
        let logins = &watched.logins;
        // Somebody may have changed one login after the other was put right.
        let missing = watched.status.refused.swap(false, Ordering::Relaxed) || missing;
        if missing && !logins.made().is_empty() {
            match logins.ensure().await {
                Ok(()) => info!("logins that were dropped or changed are made again"),
                Err(error) => {
                    let error = telemetry::chain(&error);
                    warn!(
                        error,
                        "logins that were dropped or changed cannot be made again for now"
                    );
                }
            }
        }
    }
}

/// Looks every so often whether the check login can do more than checks need: somebody may have
/// given it more since the start, when that was refused.
///
/// # Errors
/// When it can: policies would no longer stand between users and rows, so nothing may be asked
/// with it any more.
pub async fn watch_powers(
    check: Login,
    config: config::Config,
    every: Duration,
    shutdown: CancellationToken,
) -> Result<(), logins::Error> {
    let mut tick = interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            _ = tick.tick() => {}
        }
        match timeout(ANSWER_TIMEOUT, logins::verify_check(&check, &config)).await {
            Ok(Err(error @ logins::Error::TooPowerful { .. })) => return Err(error),
            // It can do less, or nobody answers: who needs it says so.
            Ok(Err(error)) => {
                debug!(error = telemetry::chain(&error), "the check login cannot be looked at");
            }
            Ok(Ok(_)) | Err(_) => {}
        }
    }
}

/// Stands between the slot and the server's disk.
struct Guardian<'a> {
    watched: &'a Watched,
    budget: Budget,
    pressure: Pressure,
    /// Whether the age of the slot's catalog rows was said.
    aged: bool,
    orphans_due: Instant,
    /// Those seen at the last look, and whether they were told: one that is only between two
    /// readers is none.
    orphans: BTreeMap<String, bool>,
}

impl<'a> Guardian<'a> {
    fn new(watched: &'a Watched) -> Self {
        Self {
            watched,
            budget: Budget::new(watched.replication.wal_budget_bytes),
            pressure: Pressure::None,
            aged: false,
            orphans_due: Instant::now(),
            orphans: BTreeMap::new(),
        }
    }

    /// Shows what the slot keeps, and does what it calls for.
    fn keep_to_budget(&mut self, seen: &Seen) {
        let slot = self.watched.replication.slot.as_str();
        let budget_bytes = self.budget.bytes();
        gauge(telemetry::WAL_BUDGET_BYTES, i64::try_from(budget_bytes).unwrap_or(i64::MAX));
        gauge(telemetry::WAL_RETAINED_BYTES, seen.retained_bytes.unwrap_or(0));
        gauge(telemetry::SLOT_LAG_BYTES, seen.confirmed_lag_bytes.unwrap_or(0));
        if let Some(safe) = seen.safe_bytes {
            gauge(telemetry::SLOT_SAFE_BYTES, safe);
        }
        let catalog_age = seen.catalog_age.unwrap_or(0);
        metrics::gauge!(telemetry::SLOT_CATALOG_AGE).set(f64::from(catalog_age));
        let aged = catalog_age >= CATALOG_AGE_MUCH;
        if aged && !self.aged {
            let code = "catalog_xmin_age";
            warn!(
                code,
                slot,
                catalog_age,
                "the slot, or the oldest open transaction, holds back vacuum of the catalogs"
            );
        }
        self.aged = aged;

        let retained_bytes = u64::try_from(seen.retained_bytes.unwrap_or(0)).unwrap_or(0);
        // What it keeps, and what it may keep beyond that.
        let limit = seen.safe_bytes.map(|safe| retained_bytes.saturating_add_signed(safe));
        let pressure = self.budget.look(retained_bytes, limit);
        metrics::gauge!(telemetry::WAL_PRESSURE).set(f64::from(pressure.level()));
        let before = std::mem::replace(&mut self.pressure, pressure);
        if pressure != before {
            let (code, confirmed_lag_bytes) = ("wal_budget", seen.confirmed_lag_bytes);
            let (level, server_limit_bytes) = (pressure.name(), limit);
            if pressure > before {
                warn!(
                    code,
                    level,
                    slot,
                    retained_bytes,
                    confirmed_lag_bytes,
                    budget_bytes,
                    server_limit_bytes,
                    "the slot keeps much of the WAL it may keep"
                );
            } else {
                info!(code, level, slot, retained_bytes, budget_bytes, "the slot keeps less WAL");
            }
        }
        let status = &self.watched.status;
        status.shed(pressure >= Pressure::Shed);
        if pressure >= Pressure::Shed {
            let closed = self.watched.connections.close_stalled(STALLED_MIN);
            if closed > 0 {
                warn!(code = "wal_budget", closed, "sockets that take nothing were closed");
            }
        }
        let over = pressure >= Pressure::GiveUp;
        let may = self.watched.replication.wal_give_up;
        if over && before < pressure && !may {
            error!(
                code = "wal_budget",
                slot,
                retained_bytes,
                budget_bytes,
                "the slot keeps more WAL than its budget, and wal_give_up is off: the server's disk \
                 may fill"
            );
        }
        status.give_up(over && may);
    }

    /// Says which slots look like ours and are read by nobody.
    async fn look_for_orphans(&mut self, idle: &mut Option<Client>) {
        if self.orphans_due > Instant::now() {
            return;
        }
        let Some(client) = idle else { return };
        let slot = &self.watched.replication.slot;
        let sql = include_str!("../sql/orphan_slots.sql");
        let asked: [&(dyn ToSql + Sync); 1] = [slot];
        let asking = timeout(ANSWER_TIMEOUT, client.query(sql, &asked));
        let Ok(Ok(rows)) = asking.await else { return };
        gauge(telemetry::ORPHAN_SLOTS, i64::try_from(rows.len()).unwrap_or(i64::MAX));
        let worst = rows.first().and_then(|row| row.get::<_, Option<i64>>("retained_bytes"));
        gauge(telemetry::ORPHAN_RETAINED_BYTES, worst.unwrap_or(0));
        let before = std::mem::take(&mut self.orphans);
        let mut unsure = false;
        for row in rows {
            let (name, retained_bytes) = (row.get::<_, String>("name"), row.get("retained_bytes"));
            let told = match before.get(&name) {
                None => false,
                Some(true) => true,
                Some(false) => {
                    let retained_bytes: Option<i64> = retained_bytes;
                    warn!(
                        code = "orphan_slot",
                        slot = name,
                        retained_bytes,
                        "a slot named like ours is read by nobody and holds back WAL: drop it with \
                         pg_drop_replication_slot, unless its reader comes back"
                    );
                    true
                }
            };
            unsure |= !told;
            self.orphans.insert(name, told);
        }
        let pause = if unsure { ORPHANS_INTERVAL.0 } else { ORPHANS_INTERVAL.1 };
        self.orphans_due = Instant::now() + pause;
    }
}

/// Sets a gauge to a whole number.
fn gauge(name: &'static str, value: i64) {
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    #[expect(clippy::as_conversions, reason = "there is no other way to a float")]
    metrics::gauge!(name).set(value as f64);
}

/// What [`look`] found.
struct Seen {
    has_logins: bool,
    current_lsn: u64,
    retained_bytes: Option<i64>,
    confirmed_lag_bytes: Option<i64>,
    safe_bytes: Option<i64>,
    catalog_age: Option<i32>,
    lacks_publication: bool,
    lacks_partition: bool,
}

/// Why it found nothing.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Connect(#[from] db::Error),
    #[error("the server did not answer")]
    Query(#[from] tokio_postgres::Error),
}

impl Error {
    /// Whether the server does not let our login in.
    fn is_refusal(&self) -> bool {
        let Self::Connect(db::Error::Connect(error)) = self else { return false };
        error.code().is_some_and(|code| code.code().starts_with("28"))
    }
}

async fn look(watched: &Watched, idle: &mut Option<Client>) -> Result<Seen, Error> {
    let Watched { logins, replication, .. } = watched;
    let client = match idle.take().filter(|client| !client.is_closed()) {
        Some(client) => client,
        None => logins.check.connect("walcast watch").await?,
    };
    let made = logins.made();
    let sql = include_str!("../sql/watch_server.sql");
    let asked: [&(dyn ToSql + Sync); 3] = [&replication.slot, &made, &replication.publications];
    let row = client.query_one(sql, &asked).await?;
    let lacks = client.query_one(include_str!("../sql/lacks_partition.sql"), &[]).await?;
    *idle = Some(client);
    Ok(Seen {
        has_logins: row.get::<_, i64>("logins") == i64::try_from(made.len()).unwrap_or(0),
        current_lsn: u64::try_from(row.get::<_, i64>("current_lsn")).unwrap_or(0),
        retained_bytes: row.get("retained_bytes"),
        confirmed_lag_bytes: row.get("confirmed_lag_bytes"),
        safe_bytes: row.get("safe_bytes"),
        catalog_age: row.get("catalog_age"),
        lacks_publication: row.get("missing"),
        lacks_partition: lacks.get(0),
    })
}

/// Makes and drops day partitions of `realtime.messages`: at once, every hour, and when one is
/// found `lacking`. What stands in the way is said once.
pub async fn rotate_partitions(
    owner: Option<Login>,
    lacking: Arc<Notify>,
    shutdown: CancellationToken,
) {
    let mut tick = interval(PARTITIONS_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = String::new();
    loop {
        let Some(owner) = &owner else {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = lacking.notified() => {}
            }
            tell_once(&mut told, "there is no DATABASE_URL to make them with".into());
            continue;
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = tick.tick() => {}
            () = lacking.notified() => {}
        }
        let why = match install::rotate_partitions(owner).await {
            Ok(report) => {
                for name in &report.created {
                    info!(name, "created");
                }
                let why = report.skipped.iter().map(|(what, why)| format!("{what}: {why}"));
                why.collect::<Vec<_>>().join("; ")
            }
            Err(error) => telemetry::chain(&error),
        };
        tell_once(&mut told, why);
        let pause = if told.is_empty() { PARTITIONS_PAUSE.1 } else { PARTITIONS_PAUSE.0 };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Forgets what writes with a key were answered with, `lifetime` after they were made, and what was
/// declared before anything that can still be read.
pub async fn forget_old(owner: Login, lifetime: Duration, shutdown: CancellationToken) {
    let mut tick = interval(OLD_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = tick.tick() => {}
        }
        match install::forget_keys(&owner, lifetime).await {
            Ok(forgotten) => debug!(forgotten, "keys of writes are over"),
            Err(error) => debug!(error = telemetry::chain(&error), "old keys are not forgotten"),
        }
        match install::forget_mappings(&owner, MAPPINGS_AGE).await {
            Ok(forgotten) => debug!(forgotten, "old declarations are forgotten"),
            Err(error) => {
                debug!(error = telemetry::chain(&error), "old declarations are not forgotten");
            }
        }
    }
}

/// Says why partitions are not looked after, unless that was the last word; empty: they are.
fn tell_once(told: &mut String, why: String) {
    if *told != why {
        if !why.is_empty() {
            warn!(why, "the partitions of realtime.messages are not looked after");
        }
        *told = why;
    }
}

/// Brings gauges up to date, and histograms in order.
pub async fn update_metrics(
    recorder: Option<PrometheusHandle>,
    hub: Arc<Hub>,
    status: Arc<Status>,
    shutdown: CancellationToken,
) {
    let mut tick = interval(METRICS_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = tick.tick() => {}
        }
        let count = u32::try_from(hub.subscribers()).unwrap_or(u32::MAX);
        metrics::gauge!(telemetry::SUBSCRIPTIONS).set(f64::from(count));
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        #[expect(clippy::as_conversions, reason = "there is no other way to a float")]
        metrics::gauge!(telemetry::WAL_LAG_BYTES).set(status.lag_bytes() as f64);
        let now = status.slot().0;
        for state in SlotState::ALL {
            let is_in = f64::from(u8::from(state == now));
            metrics::gauge!(telemetry::SLOT_STATE, telemetry::STATE => state.code()).set(is_in);
        }
        if let Some(recorder) = &recorder {
            recorder.run_upkeep();
        }
    }
}
