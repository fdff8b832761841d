//! What must be done now and then while the service runs.
//!
//! In:     the parts that need it; a word to stop.
//! Out:    caches forgotten in time, logins that exist, partitions for the coming days, gauges.
//! Never:  anything in the way of a change; an error that ends the service.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::auth::rls::Authorizer;
use crate::catalog::Catalog;
use crate::db::logins::Logins;
use crate::db::{self, Login, install};
use crate::feed::Status;
use crate::hub::Hub;
use crate::telemetry;

/// How often the catalog's fingerprint is compared: the longest time that a change of roles or
/// functions goes unnoticed. Table definitions, grants and policies are noticed in the log itself.
const CATALOG_INTERVAL: Duration = Duration::from_secs(1);

/// How often the server is asked for our logins and our slot: about the longest time that a login
/// somebody dropped stays away.
const SERVER_INTERVAL: Duration = Duration::from_secs(2);

/// How long such an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How often metrics are brought up to date.
const METRICS_INTERVAL: Duration = Duration::from_secs(1);

/// How often partitions are made and dropped: there are always those of the next three days.
const PARTITIONS_INTERVAL: Duration = Duration::from_hours(1);

/// How often keys of writes that are over are forgotten. One that is over counts for nothing.
const KEYS_INTERVAL: Duration = Duration::from_mins(10);

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

/// Makes our logins again when somebody dropped them, measures the slot, and says when
/// `realtime.messages` is `lacking` a partition.
pub async fn watch_server(
    logins: Arc<Logins>,
    slot: String,
    status: Arc<Status>,
    lacking: Arc<Notify>,
    shutdown: CancellationToken,
) {
    let mut tick = interval(SERVER_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut client = None;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = tick.tick() => {}
        }
        let looking = timeout(ANSWER_TIMEOUT, look(&logins, &slot, &mut client));
        let looked = looking.await;
        status.answers.store(matches!(looked, Ok(Ok(_))), Ordering::Relaxed);
        let missing = match looked {
            Ok(Ok(seen)) => {
                status.seen(seen.current_lsn);
                #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
                #[expect(clippy::as_conversions, reason = "there is no other way to a float")]
                let retained = seen.retained_bytes.unwrap_or(0) as f64;
                metrics::gauge!(telemetry::WAL_RETAINED_BYTES).set(retained);
                if seen.lacks_partition {
                    lacking.notify_one();
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
        if missing && !logins.made().is_empty() {
            match logins.ensure().await {
                Ok(()) => info!("logins that were dropped are made again"),
                Err(error) => {
                    let error = telemetry::chain(&error);
                    warn!(error, "logins that were dropped cannot be made again for now");
                }
            }
        }
    }
}

/// What [`look`] found.
struct Seen {
    has_logins: bool,
    current_lsn: u64,
    retained_bytes: Option<i64>,
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

async fn look(logins: &Logins, slot: &str, idle: &mut Option<Client>) -> Result<Seen, Error> {
    let client = match idle.take().filter(|client| !client.is_closed()) {
        Some(client) => client,
        None => logins.check.connect("walcast watch").await?,
    };
    let made = logins.made();
    let sql = include_str!("../sql/watch_server.sql");
    let row = client.query_one(sql, &[&slot, &made]).await?;
    let lacks = client.query_one(include_str!("../sql/lacks_partition.sql"), &[]).await?;
    *idle = Some(client);
    Ok(Seen {
        has_logins: row.get::<_, i64>("logins") == i64::try_from(made.len()).unwrap_or(0),
        current_lsn: u64::try_from(row.get::<_, i64>("current_lsn")).unwrap_or(0),
        retained_bytes: row.get("retained_bytes"),
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

/// Forgets what writes with a key were answered with, `lifetime` after they were made.
pub async fn forget_keys(owner: Login, lifetime: Duration, shutdown: CancellationToken) {
    let mut tick = interval(KEYS_INTERVAL);
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
        if let Some(recorder) = &recorder {
            recorder.run_upkeep();
        }
    }
}
