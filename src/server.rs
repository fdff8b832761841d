//! The service: builds the parts, owns the tasks, stops them together.
//!
//! In:     a validated [`Config`] and a token that says when to stop.
//! Out:    a running service; its end, and why.
//! Never:  a task nobody owns; a listening socket before it is certain that changes are kept.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::auth::jwt::Verifier;
use crate::auth::rls::Authorizer;
use crate::catalog::Catalog;
use crate::config::Config;
use crate::db::logins::Logins;
use crate::db::{Login, install};
use crate::doctor::{self, Finding, Level};
use crate::feed::{Feed, Filters, Status};
use crate::http::{Service, router};
use crate::hub::Hub;
use crate::join::Joiner;
use crate::telemetry;
use crate::transport::deadlines::Deadlines;
use crate::transport::listener::{self, Connections};
use crate::transport::realtime::{Endpoint, Realtime};

/// How often the catalog's fingerprint is compared: the longest time that a change of roles or
/// functions goes unnoticed. Table definitions, grants and policies are noticed in the log itself.
const CATALOG_INTERVAL: Duration = Duration::from_secs(1);

/// How often metrics are brought up to date.
const METRICS_INTERVAL: Duration = Duration::from_secs(1);

/// Runs until `shutdown` or until something fails that no waiting heals.
///
/// # Errors
/// What failed, with the sentence that says what to do.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let listener = TcpListener::bind(config.server.bind)
        .await
        .with_context(|| format!("cannot listen on {}", config.server.bind))?;
    run_on(listener, config, shutdown).await
}

/// As [`run`], on a socket that is bound already; `server.bind` is not looked at.
///
/// # Errors
/// As [`run`].
pub async fn run_on(
    listener: TcpListener,
    config: Config,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let verifier = Arc::new(Verifier::new(&config.jwt, &config.database.roles)?);
    install_objects(&config).await?;
    let logins = Logins::open(&config).await.context("cannot get the logins of this service")?;
    for warning in &logins.warnings {
        warn!("{warning}");
    }
    warn_of_version(&logins.check).await;
    let result = serve(&config, verifier, listener, &logins, shutdown).await;
    if let Err(error) = logins.close().await {
        warn!(error = telemetry::chain(&error), "the logins of this instance were not dropped");
    }
    result
}

async fn install_objects(config: &Config) -> anyhow::Result<()> {
    if config.database.url.is_empty() {
        return Ok(());
    }
    let timeout = Duration::from_millis(config.database.connect_timeout_ms);
    let owner = Login::parse(config.database.url.expose(), timeout)?;
    let report = install::install(&owner, config).await.context("cannot install")?;
    for (what, why) in &report.skipped {
        warn!(what, why, "not installed");
    }
    info!(
        created = report.created.len(),
        kept = report.kept.len(),
        "database objects are in place"
    );
    Ok(())
}

/// Row Level Security is as good as the server's: old minor versions are named at each start.
async fn warn_of_version(login: &Login) {
    let examined = async {
        let client = login.connect("walcast version").await?;
        Ok::<_, anyhow::Error>(doctor::examine_version(&client).await?)
    };
    match examined.await {
        Ok(Finding { level: Level::Ok, .. }) => {}
        Ok(Finding { level: Level::Warn | Level::Red, text, mend }) => {
            let mend = mend.map(|mend| mend.to_string()).unwrap_or_default();
            warn!(mend, "{text}");
        }
        // Whatever it is, the feed meets it too, and says so until it heals.
        Err(error) => debug!(error = format!("{error:#}"), "the server's version is not known"),
    }
}

async fn serve(
    config: &Config,
    verifier: Arc<Verifier>,
    listener: TcpListener,
    logins: &Logins,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let metrics = telemetry::record_metrics().ok();
    let hub = Arc::new(Hub::default());
    let publications = &config.replication.publications;
    let catalog = Catalog::new(logins.check.clone(), &config.database.roles, publications);
    let catalog = Arc::new(catalog);
    let authorizer = Arc::new(Authorizer::new(logins.check.clone(), &config.database));
    let status = Arc::new(Status::default());
    let (ready, is_ready) = watch::channel(false);
    let joiner = Arc::new(Joiner::new(
        Arc::clone(&hub),
        Arc::clone(&catalog),
        Arc::clone(&authorizer),
        logins.check.clone(),
        config,
        is_ready.clone(),
    ));
    let check_timeout = Duration::from_millis(config.database.check_timeout_ms);
    let filters = Filters::new(logins.check.clone(), check_timeout);
    let feed = Feed {
        login: logins.replication.clone(),
        replication: config.replication.clone(),
        changes: config.changes.clone(),
        catalog: Arc::clone(&catalog),
        authorizer: Arc::clone(&authorizer),
        filters,
        hub: Arc::clone(&hub),
        status: Arc::clone(&status),
        ready,
    };
    let deadlines = Arc::new(Deadlines::default());
    let tasks = TaskTracker::new();
    let connections = Connections::new(&config.server);
    let realtime = Realtime {
        verifier,
        limits: (&config.server).into(),
        hub: Arc::clone(&hub),
        joiner,
        deadlines: Arc::clone(&deadlines),
        tasks: tasks.clone(),
        error_backoff: Duration::from_millis(config.server.join_error_backoff_ms),
    };
    let attached = Arc::clone(&status);
    let service = Service {
        admit: Endpoint(Arc::new(realtime)),
        connections: Arc::clone(&connections),
        ready: Box::new(move || readiness(&attached)),
        metrics: Box::new(move || {
            metrics.as_ref().map(PrometheusHandle::render).unwrap_or_default()
        }),
    };
    let address = listener.local_addr().context("the listening socket has no address")?;
    let router = router(Arc::new(service));

    let mut running: JoinSet<(&'static str, anyhow::Result<()>)> = JoinSet::new();
    // The feed outlives the sockets, so that what committed before the stop still goes out.
    let (stop_serving, stop_feed) = (CancellationToken::new(), CancellationToken::new());
    let token = stop_feed.clone();
    running.spawn(async move { ("feed", feed.run(token).await.map_err(Into::into)) });
    let token = stop_feed.clone();
    let watcher = watch_catalog(catalog, authorizer, Arc::clone(&hub), token);
    running.spawn(async move {
        watcher.await;
        ("catalog watch", Ok(()))
    });
    let token = stop_feed.clone();
    running.spawn(async move {
        deadlines.run(token).await;
        ("deadlines", Ok(()))
    });
    let token = stop_feed.clone();
    running.spawn(async move {
        update_metrics(hub, status, token).await;
        ("metrics", Ok(()))
    });
    let token = stop_serving.clone();
    let serving = listener::serve(listener, router, connections, token);
    running.spawn(async move { ("sockets", serving.await.map_err(Into::into)) });
    info!(%address, "listening");

    let first = tokio::select! {
        () = shutdown.cancelled() => None,
        ended = running.join_next() => ended,
    };
    stop_serving.cancel();
    let mut result = Ok(());
    if let Some(ended) = first {
        result = Err(task_error(ended));
        stop_feed.cancel();
    }
    let drain = Duration::from_millis(config.server.drain_timeout_ms) + Duration::from_secs(5);
    let stopped = tokio::time::timeout(drain, async {
        while let Some(ended) = running.join_next().await {
            if let Ok(("sockets", _)) = ended {
                stop_feed.cancel();
            }
        }
    });
    if stopped.await.is_err() {
        warn!("some tasks did not stop in time and are aborted");
        running.shutdown().await;
    }
    tasks.close();
    debug!("stopped");
    if result.is_ok() {
        info!("stopped");
    }
    result
}

fn task_error(
    ended: Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>,
) -> anyhow::Error {
    match ended {
        Ok((name, Err(error))) => error.context(format!("{name} ended")),
        Ok((name, Ok(()))) => anyhow::anyhow!("{name} ended before its time"),
        Err(error) => anyhow::Error::new(error).context("a task panicked"),
    }
}

fn readiness(status: &Status) -> Result<(), String> {
    if !status.attached.load(Ordering::Relaxed) {
        return Err("no replication slot is attached".into());
    }
    if status.held.load(Ordering::Relaxed) {
        return Err("changes are held until Postgres answers".into());
    }
    Ok(())
}

/// Forgets what was cached when the catalog changed in a way the log does not tell.
async fn watch_catalog(
    catalog: Arc<Catalog>,
    authorizer: Arc<Authorizer>,
    hub: Arc<Hub>,
    shutdown: CancellationToken,
) {
    let mut tick = tokio::time::interval(CATALOG_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
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

async fn update_metrics(hub: Arc<Hub>, status: Arc<Status>, shutdown: CancellationToken) {
    let mut tick = tokio::time::interval(METRICS_INTERVAL);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = tick.tick() => {}
        }
        let count = u32::try_from(hub.subscribers()).unwrap_or(u32::MAX);
        metrics::gauge!(telemetry::SUBSCRIPTIONS).set(f64::from(count));
        let head = status.head.load(Ordering::Relaxed);
        let lag = head.saturating_sub(status.published.load(Ordering::Relaxed));
        metrics::gauge!(telemetry::WAL_LAG_BYTES)
            .set(f64::from(u32::try_from(lag).unwrap_or(u32::MAX)));
    }
}
