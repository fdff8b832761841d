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
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::auth::access::Access;
use crate::auth::jwt::Verifier;
use crate::auth::rls::Authorizer;
use crate::catalog::Catalog;
use crate::command::Commander;
use crate::config::{self, Config};
use crate::db::logins::Logins;
use crate::db::{Login, install};
use crate::doctor::{self, Finding, Level};
use crate::feed::{
    Declarations, Feed, Filters, Gap, History, Lookups, Publisher, Replayer, Replays, Status,
    Watches, Writes,
};
use crate::http::{Broadcasts, Gate, Health, Operations, Proxy, Rows, Service, router};
use crate::hub::Hub;
use crate::hub::outbox::CloseReason;
use crate::join::{self, Joiner};
use crate::kill;
use crate::rest::answer::{Published, Rest};
use crate::rest::run::Runner;
use crate::rest::schema::Schemas;
use crate::session::Bookmarks;
use crate::telemetry;
use crate::transport::deadlines::Deadlines;
use crate::transport::events::Events;
use crate::transport::listener::{self, Connections};
use crate::transport::realtime::{Endpoint, Realtime};
use crate::transport::socketio::SocketIo;
use crate::upkeep;

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
    let owner = owner(&config)?;
    if let Some(owner) = &owner {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            installed = Box::pin(install_objects(owner, &config)) => installed?,
        }
    }
    let logins = Logins::open(&config).await.context("cannot get the logins of this service")?;
    let logins = Arc::new(logins);
    for warning in &logins.warnings {
        warn!("{warning}");
    }
    warn_of_version(&logins.check).await;
    let result = Box::pin(serve(&config, verifier, listener, &logins, owner, shutdown)).await;
    if let Err(error) = logins.close().await {
        warn!(error = telemetry::chain(&error), "the logins of this instance were not dropped");
    }
    result
}

/// The login for installing, when there is one.
fn owner(config: &Config) -> anyhow::Result<Option<Login>> {
    let url = &config.database.url;
    if url.is_empty() {
        return Ok(None);
    }
    let timeout = Duration::from_millis(config.database.connect_timeout_ms);
    Ok(Some(Login::parse(url.expose(), timeout).context("DATABASE_URL")?))
}

async fn install_objects(owner: &Login, config: &Config) -> anyhow::Result<()> {
    let report = match install::install(owner, config).await {
        Ok(report) => report,
        // What is needed may be there all the same; if it is not, that is said when it is missed.
        Err(error @ (install::Error::Foreign { .. } | install::Error::Refused { .. })) => {
            warn!(error = telemetry::chain(&error), "nothing is installed");
            return Ok(());
        }
        Err(error) => return Err(error).context("cannot install"),
    };
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
    logins: &Arc<Logins>,
    owner: Option<Login>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let metrics = telemetry::record_metrics().ok();
    let hub = Arc::new(Hub::new(config.presence.clone()));
    let publications = &config.replication.publications;
    let new_catalog = || {
        Catalog::new(logins.check.clone(), &config.database.roles, publications)
            .beside_messages(&config.replication.messages_publication)
    };
    let new_authorizer = || Authorizer::new(logins.check.clone(), &config.database, publications);
    let (catalog, authorizer) = (Arc::new(new_catalog()), Arc::new(new_authorizer()));
    let replays = Arc::new(Replays::default());
    let status = Arc::new(Status::default());
    let history_bytes = usize::try_from(config.replication.replay_window()).unwrap_or(usize::MAX);
    let history_age = Duration::from_millis(config.replication.replay_window_ms);
    let history = Arc::new(History::new(history_bytes, history_age));
    let (ready, is_ready) = watch::channel(false);
    let access = Arc::new(Access::new(logins.check.clone(), &config.database));
    let joiner = Arc::new(Joiner::new(
        Arc::clone(&hub),
        Arc::clone(&catalog),
        Arc::clone(&authorizer),
        Arc::clone(&access),
        logins.check.clone(),
        config,
        join::Stream {
            status: Arc::clone(&status),
            ready: is_ready.clone(),
            replays: Arc::clone(&replays),
            history: Arc::clone(&history),
        },
    ));
    let check_timeout = Duration::from_millis(config.database.check_timeout_ms);
    let replayer = Replayer {
        replays: Arc::clone(&replays),
        history: Arc::clone(&history),
        hub: Arc::clone(&hub),
        feed: Arc::clone(&status),
        catalog: Arc::clone(&catalog),
        publisher: Publisher {
            changes: config.changes.clone(),
            payload_bytes_max: config.limits.payload_bytes_max,
            catalog: Arc::new(new_catalog()),
            authorizer: Arc::new(new_authorizer().of_the_past()),
            filters: Filters::new(logins.check.clone(), check_timeout),
            lookups: Lookups::new(logins.check.clone(), check_timeout),
            watches: None,
            hub: Arc::default(),
            status: Arc::default(),
        },
    };
    let per_client = config.limits.connections_per_ip_max;
    let connections = Connections::with_client_limit(&config.server, per_client);
    let everybody = Arc::clone(&connections);
    let writes = Writes::default();
    let feed = Feed {
        login: logins.replication.clone(),
        replication: config.replication.clone(),
        publisher: Publisher {
            changes: config.changes.clone(),
            payload_bytes_max: config.limits.payload_bytes_max,
            catalog: Arc::clone(&catalog),
            authorizer: Arc::clone(&authorizer),
            filters: Filters::new(logins.check.clone(), check_timeout),
            lookups: Lookups::new(logins.check.clone(), check_timeout),
            watches: Some(Watches::new(logins.check.clone(), check_timeout)),
            hub: Arc::clone(&hub),
            status: Arc::clone(&status),
        },
        history,
        status: Arc::clone(&status),
        ready,
        writes: writes.clone(),
        // Told to reconnect, clients subscribe again, and then read what they show.
        gap: Gap(Box::new(move || everybody.close_all(CloseReason::Shutdown))),
    };
    let declarations = Arc::new(Declarations::new(
        logins.check.clone(),
        Duration::from_millis(config.database.connect_timeout_ms),
        Arc::clone(&status),
    ));
    let deadlines = Arc::new(Deadlines::default());
    let (tasks, stop_joins) = (TaskTracker::new(), CancellationToken::new());
    let operations = operations(config, &verifier, &status)?;
    let (keys, of_old_keys) = (Arc::clone(&verifier), Arc::clone(&connections));
    let rates = Arc::default();
    let (tokens, rooms) = (Arc::clone(&verifier), Arc::clone(&hub));
    let broadcasts = Broadcasts::new(tokens, access, rooms, Arc::clone(&rates), config);
    let runner = Runner::new(logins.check.clone(), &config.rest, &config.database.roles);
    let runner = Arc::new(runner);
    let rows = if config.serves_rest() {
        let runner = Arc::clone(&runner);
        let schemas =
            Arc::new(Schemas::new(logins.check.clone(), &config.rest.schemas, Arc::clone(&status)));
        let published = Published { writes: writes.clone(), status: Arc::clone(&status) };
        let rest = Rest::new(runner, schemas, published, &config.rest);
        Some(Rows::new(Arc::clone(&verifier), rest, config)?)
    } else {
        None
    };
    let commander =
        Commander::new(Arc::clone(&runner), writes.clone(), Arc::clone(&status), &config.rest);
    let commander = Arc::new(commander);
    let realtime = Realtime {
        verifier,
        limits: config.into(),
        rates,
        hub: Arc::clone(&hub),
        joiner,
        deadlines: Arc::clone(&deadlines),
        tasks: tasks.clone(),
        stop: stop_joins.clone(),
        connect_backoff: Duration::from_millis(config.server.connect_error_backoff_ms),
        error_backoff: Duration::from_millis(config.server.join_error_backoff_ms),
        bookmarks: Arc::new(Bookmarks::new(&config.server, history_age)),
    };
    let realtime = Arc::new(realtime);
    let socketio = SocketIo::new(
        Arc::clone(&realtime),
        Arc::clone(&declarations),
        commander,
        config.server.frame_bytes_max,
    );
    let (attached, rendering) = (Arc::clone(&status), metrics.clone());
    let service = Service {
        events: Some(Events::new(Arc::clone(&realtime), &config.server)),
        socketio: Some(Arc::clone(&socketio)),
        admit: Endpoint(realtime),
        connections: Arc::clone(&connections),
        ready: Box::new(move || readiness(&attached)),
        metrics: Box::new(move || {
            let rendered = rendering.as_ref().map(PrometheusHandle::render);
            telemetry::with_official_names(rendered.unwrap_or_default())
        }),
        gate: Gate::new(&config.limits),
        operations,
        broadcasts: Some(broadcasts),
        rows,
        proxy: Proxy::new(&config.proxy)?,
    };
    let address = listener.local_addr().context("the listening socket has no address")?;
    let router = router(Arc::new(service));

    let mut running: JoinSet<(&'static str, anyhow::Result<()>)> = JoinSet::new();
    // The feed outlives the sockets, so that what committed before the stop still goes out.
    let (stop_serving, stop_feed) = (CancellationToken::new(), CancellationToken::new());
    let token = stop_feed.clone();
    running.spawn(async move { ("feed", feed.run(token).await.map_err(Into::into)) });
    let alive = socketio.keep_alive(stop_feed.clone());
    running.spawn(async move {
        alive.await;
        ("signs of life", Ok(()))
    });
    let token = stop_feed.clone();
    running.spawn(async move {
        replayer.run(token).await;
        ("replays", Ok(()))
    });
    let token = stop_feed.clone();
    running.spawn(async move {
        declarations.run(token).await;
        ("profiles", Ok(()))
    });
    let token = stop_feed.clone();
    let watcher = upkeep::watch_catalog(catalog, authorizer, Arc::clone(&hub), token);
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
    let lacking = Arc::new(Notify::new());
    let about = upkeep::Watched {
        logins: Arc::clone(logins),
        replication: config.replication.clone(),
        status: Arc::clone(&status),
        connections: Arc::clone(&connections),
        lacking: Arc::clone(&lacking),
    };
    let watcher = upkeep::watch_server(about, token);
    running.spawn(async move {
        watcher.await;
        ("server watch", Ok(()))
    });
    let token = stop_feed.clone();
    let (login, settings) = (logins.check.clone(), config.clone());
    let powers = upkeep::watch_powers(login, settings, upkeep::POWERS_INTERVAL, token);
    running.spawn(async move { ("check login", powers.await.map_err(Into::into)) });
    if let Some(owner) = owner.clone() {
        let lifetime = Duration::from_millis(config.rest.key_lifetime_ms);
        let old = upkeep::forget_old(owner, lifetime, stop_feed.clone());
        running.spawn(async move {
            old.await;
            ("what is old", Ok(()))
        });
    }
    let partitions = upkeep::rotate_partitions(owner, lacking, stop_feed.clone());
    running.spawn(async move {
        partitions.await;
        ("partitions", Ok(()))
    });
    let token = stop_feed.clone();
    running.spawn(async move {
        // Told to reconnect, clients show their tokens again.
        keys.keep_fresh(token, || of_old_keys.close_all(CloseReason::Shutdown)).await;
        ("key set", Ok(()))
    });
    let updates = upkeep::update_metrics(metrics, hub, status, stop_feed.clone());
    running.spawn(async move {
        updates.await;
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
    kill::point(kill::Point::OnDrain);
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
    stop_joins.cancel();
    tasks.close();
    tasks.wait().await;
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

/// What operators are told.
fn operations(
    config: &Config,
    verifier: &Arc<Verifier>,
    status: &Arc<Status>,
) -> anyhow::Result<Operations> {
    let secret = &config.jwt.metrics_secret;
    let metrics_bearers = if secret.is_empty() {
        None
    } else {
        let keys = config::Jwt { secret: secret.clone(), ..config::Jwt::default() };
        Some(Verifier::new(&keys, &[])?)
    };
    let status = Arc::clone(status);
    let (name, server, limits) = (&config.server.tenant_name, &config.server, &config.limits);
    let tenant = serde_json::json!({
        "id": name,
        "external_id": name,
        "name": name,
        "suspend": false,
        "private_only": limits.private_only,
        "max_concurrent_users": server.connections_max,
        "max_channels_per_client": server.channels_per_connection_max,
        "max_events_per_second": limits.events_per_second_max,
        "max_joins_per_second": limits.joins_per_second_max,
        "max_payload_size_in_kb": limits.payload_bytes_max / 1000,
        "extensions": [],
    });
    Ok(Operations {
        health: Box::new(move || {
            let attached = status.attached.load(Ordering::Relaxed);
            // Whoever streams the log answers, whatever the last question met.
            let answers = attached || status.answers.load(Ordering::Relaxed);
            Health { db_connected: answers, replication_connected: attached }
        }),
        bearers: Some(Arc::clone(verifier)),
        metrics_bearers,
        tenant,
    })
}

fn readiness(status: &Status) -> Result<(), String> {
    if !status.attached.load(Ordering::Relaxed) {
        let (state, why) = status.slot();
        // A code for programs, a sentence for people.
        let why = if why.is_empty() { why } else { format!(": {why}") };
        let code = state.code();
        return Err(format!("no replication slot is attached ({code}){why}"));
    }
    if status.held.load(Ordering::Relaxed) {
        return Err("changes are held until Postgres answers".into());
    }
    Ok(())
}
