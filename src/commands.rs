//! One function a command.
//!
//! In:     arguments; settings from `--config`, the environment and flags.
//! Out:    what was asked for on standard output, the log on standard error, an exit code: 0, 1
//!         when the command failed or found something red, 2 for malformed arguments.
//! Never:  a secret of the service from an argument; a secret printed.

mod advice;
mod healthcheck;
mod tail;
mod token;
mod types;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use tokio_util::sync::CancellationToken;
use walcast::config::{Config, Loaded};
use walcast::db::{Login, install};
use walcast::doctor::{self, Level};
use walcast::{dev, server, telemetry, wal};

pub(crate) use advice::explained;
pub(crate) use healthcheck::called_by_another_name;

/// Committed Postgres row changes, authorised by Row Level Security, to the WebSocket clients you
/// already use. Secrets and the database come from the environment (`DATABASE_URL`,
/// `WALCAST_JWT_SECRET`) or from the settings file, never from arguments.
#[derive(Parser)]
#[command(name = "walcast", version)]
pub(crate) struct Arguments {
    /// Settings file (TOML); config.example.toml has every setting.
    #[arg(long, value_name = "FILE", env = "WALCAST_CONFIG", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the service.
    Serve(ServeFlags),
    /// Run a private Postgres with an example and the service on it.
    Dev(dev::Options),
    /// Install or adopt the SQL objects, nothing else.
    Migrate,
    /// Check the database and the settings; exit 1 if anything is red.
    Doctor {
        /// Do what cannot hurt: install what is missing, drop logins of dead instances.
        #[arg(long)]
        fix: bool,
    },
    /// Look after the replication slot.
    #[command(subcommand)]
    Slot(Slot),
    /// Make a token, or explain one.
    Token(token::Flags),
    /// Print row changes and broadcasts of a running service, a line each.
    Tail(tail::Flags),
    /// Print the TypeScript types of the events that are declared for tables.
    Types,
    /// Remove what walcast made and nothing uses.
    Uninstall {
        /// Drop the replication slot, too; without this, WAL piles up behind it.
        #[arg(long)]
        drop_slot: bool,
    },
    /// Exit 0 when the service on this machine is healthy; for container probes.
    Healthcheck,
}

#[derive(Subcommand)]
enum Slot {
    /// Give up what the slot still holds and make a new one that starts now: the way out of a slot
    /// that is wedged. Whoever serves goes on from there, and tells every client to read again.
    Replace,
}

#[derive(Args)]
struct ServeFlags {
    /// Address to listen on.
    #[arg(long, value_name = "ADDRESS")]
    bind: Option<String>,
    /// Name of the replication slot.
    #[arg(long, value_name = "NAME")]
    slot: Option<String>,
    /// Publications to read, between commas.
    #[arg(long, value_name = "NAMES")]
    publications: Option<String>,
}

/// Runs one command.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let load = |flags: Vec<(&'static str, String)>| {
        let environment = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        Config::load(arguments.config.as_deref(), environment, flags)
    };
    match arguments.command {
        Command::Serve(flags) => serve(load(flags.settings())?),
        Command::Dev(options) => private(&load(Vec::new())?, &options),
        Command::Migrate => migrate(load(Vec::new())?),
        Command::Doctor { fix } => doctor(load(Vec::new())?, fix),
        Command::Slot(Slot::Replace) => replace_slot(load(Vec::new())?),
        Command::Token(flags) => token::run(&flags, &load(Vec::new())?.config, SystemTime::now()),
        Command::Tail(flags) => follow(flags),
        Command::Types => {
            let login = owner(&load(Vec::new())?.config)?;
            runtime()?.block_on(types::print(&login))
        }
        Command::Uninstall { drop_slot } => uninstall(load(Vec::new())?, drop_slot),
        Command::Healthcheck => healthcheck::ask(load(Vec::new())?.config.server.bind),
    }
}

impl ServeFlags {
    fn settings(self) -> Vec<(&'static str, String)> {
        let flags = [
            ("server.bind", self.bind),
            ("replication.slot", self.slot),
            ("replication.publications", self.publications),
        ];
        flags.into_iter().filter_map(|(path, text)| Some((path, text?))).collect()
    }
}

fn serve(loaded: Loaded) -> anyhow::Result<ExitCode> {
    loaded.config.validate_for_serving()?;
    let _logging = start_logging(&loaded)?;
    let shutdown = CancellationToken::new();
    runtime()?.block_on(async {
        let ending = stop_on_signal(shutdown.clone())?;
        let result = Box::pin(server::run(loaded.config, shutdown)).await;
        ending.abort();
        result
    })?;
    Ok(ExitCode::SUCCESS)
}

/// `walcast dev`. The settings it serves with are its own; only logging is the user's.
fn private(loaded: &Loaded, options: &dev::Options) -> anyhow::Result<ExitCode> {
    let _logging = start_logging(loaded)?;
    let shutdown = CancellationToken::new();
    runtime()?.block_on(async {
        let ending = stop_on_signal(shutdown.clone())?;
        let install = async |config: Config| {
            install::install(&owner(&config)?, &config).await?;
            anyhow::Ok(())
        };
        let serve = async |config, shutdown| Box::pin(server::run(config, shutdown)).await;
        let mut out = std::io::stdout();
        let result = Box::pin(dev::run(options, &mut out, shutdown, install, serve)).await;
        ending.abort();
        anyhow::Ok(result?)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn follow(flags: tail::Flags) -> anyhow::Result<ExitCode> {
    let shutdown = CancellationToken::new();
    runtime()?.block_on(async {
        let ending = stop_on_signal(shutdown.clone())?;
        let result = Box::pin(tail::run(flags, shutdown)).await;
        ending.abort();
        result
    })
}

fn migrate(loaded: Loaded) -> anyhow::Result<ExitCode> {
    let _logging = start_logging(&loaded)?;
    let config = loaded.config;
    let login = owner(&config)?;
    let report = runtime()?.block_on(Box::pin(install::install(&login, &config)))?;
    let mut out = std::io::stdout().lock();
    for name in &report.created {
        writeln!(out, "created  {name}")?;
    }
    for name in &report.kept {
        writeln!(out, "kept     {name}")?;
    }
    for (name, why) in &report.skipped {
        writeln!(out, "skipped  {name}: {why}")?;
    }
    writeln!(
        out,
        "{} created, {} kept, {} skipped",
        report.created.len(),
        report.kept.len(),
        report.skipped.len()
    )?;
    Ok(ExitCode::SUCCESS)
}

fn doctor(loaded: Loaded, fix: bool) -> anyhow::Result<ExitCode> {
    let Loaded { config, ignored } = loaded;
    let runtime = runtime()?;
    let mut out = std::io::stdout().lock();
    let mut findings = runtime.block_on(Box::pin(doctor::examine(&config)));
    let mut failed = false;
    if fix {
        for done in runtime.block_on(Box::pin(doctor::mend(&config, &findings))) {
            match done {
                Ok(text) => writeln!(out, "fixed {text}")?,
                Err(text) => {
                    failed = true;
                    writeln!(out, "not fixed: {text}")?;
                }
            }
        }
        findings = runtime.block_on(Box::pin(doctor::examine(&config)));
    }
    for name in ignored {
        let text = format!("{name} is set and has no meaning here");
        findings.push(doctor::Finding { level: Level::Warn, text, mend: None });
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let red = count(Level::Red);
    for finding in &findings {
        writeln!(out, "{:<5} {}", finding.level, finding.text)?;
        if let Some(mend) = &finding.mend {
            writeln!(out, "      {mend}")?;
        }
    }
    writeln!(out, "{} ok, {} warnings, {red} red", count(Level::Ok), count(Level::Warn))?;
    Ok(if red > 0 || failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn replace_slot(loaded: Loaded) -> anyhow::Result<ExitCode> {
    let _logging = start_logging(&loaded)?;
    let config = loaded.config;
    let given = &config.database.replication_url;
    let login = if given.is_empty() {
        owner(&config)?
    } else {
        let timeout = Duration::from_millis(config.database.connect_timeout_ms);
        Login::parse(given.expose(), timeout).context("WALCAST_REPLICATION_URL")?
    };
    let existed = runtime()?.block_on(wal::replace(&login, &config.replication))?;
    let (name, mut out) = (&config.replication.slot, std::io::stdout().lock());
    let dropped = if existed { "dropped with all it held, and " } else { "" };
    writeln!(out, "slot {name}: {dropped}made anew; it holds what commits from now on")?;
    Ok(ExitCode::SUCCESS)
}

fn uninstall(loaded: Loaded, drop_slot: bool) -> anyhow::Result<ExitCode> {
    let _logging = start_logging(&loaded)?;
    let config = loaded.config;
    let login = owner(&config)?;
    let slot = drop_slot.then_some(config.replication.slot.as_str());
    let removal = runtime()?.block_on(Box::pin(install::uninstall(&login, slot)))?;
    let mut out = std::io::stdout().lock();
    for name in &removal.dropped {
        writeln!(out, "dropped  {name}")?;
    }
    for (name, why) in &removal.kept {
        writeln!(out, "kept     {name}: {why}")?;
    }
    if removal.dropped.is_empty() && removal.kept.is_empty() {
        writeln!(out, "nothing of walcast is installed here")?;
    }
    // A slot that stays is the one thing that can hurt later.
    let slot_stays = removal.kept.iter().any(|(name, _)| name.starts_with("slot "));
    Ok(if slot_stays { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The installing login.
fn owner(config: &Config) -> anyhow::Result<Login> {
    let url = &config.database.url;
    if url.is_empty() {
        bail!("DATABASE_URL is not set; give it as postgres://user:password@host:port/database");
    }
    let timeout = Duration::from_millis(config.database.connect_timeout_ms);
    Login::parse(url.expose(), timeout).context("DATABASE_URL")
}

fn start_logging(loaded: &Loaded) -> anyhow::Result<telemetry::Logging> {
    let logging = telemetry::init(&loaded.config.log)?;
    if !loaded.ignored.is_empty() {
        let names = loaded.ignored.join(" ");
        tracing::warn!(names, "environment names without meaning here are ignored");
    }
    Ok(logging)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

/// Cancels `shutdown` at the first Ctrl-C or SIGTERM; a second one ends the process at once.
fn stop_on_signal(shutdown: CancellationToken) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    Ok(tokio::spawn(async move {
        for first in [true, false] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if first {
                tracing::info!("stopping");
                shutdown.cancel();
            } else {
                std::process::exit(130);
            }
        }
    }))
}
