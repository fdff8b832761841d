//! `walcast dev`: a private Postgres, an example schema, keys, and the service on top of them.
//!
//! In:     [`Options`]; how to install and how to serve, from above.
//! Out:    a working system at one URL, with the lines to try it; one change shown arriving.
//! Never:  touches a Postgres that it did not make. Tests use its [`Cluster`] too.

mod binaries;
mod cluster;
mod example;
mod examples;
mod process;
mod proof;

pub use cluster::{Cluster, Options as ClusterOptions, StopMode};
pub use examples::Example;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Secret};
use crate::db::Login;
use example::{Signer, Tokens};

/// Longest wait for the first change; it takes well under a second once the server listens.
const PROOF_DEADLINE: Duration = Duration::from_mins(1);
/// For a server on the same machine that we just started.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The database everything happens in, as in Supabase.
const DATABASE: &str = "postgres";

/// What `walcast dev` takes from the command line.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Port on 127.0.0.1 to serve at.
    #[arg(long, env = "WALCAST_DEV_PORT", default_value_t = 4000,
          value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Directory that keeps the private Postgres, its log and the secrets.
    #[arg(long, env = "WALCAST_DATA_DIR", default_value = ".walcast")]
    pub data_dir: PathBuf,
    /// Directory of the Postgres server binaries. Default: searched for.
    #[arg(long, env = "WALCAST_PG_BIN")]
    pub pg_bin: Option<PathBuf>,
    /// Start nothing but the private Postgres, and print its URL.
    #[arg(long)]
    pub only_postgres: bool,
    /// What to start with; several between commas, or in one flag each. What is there already stays as it is.
    #[arg(
        long,
        env = "WALCAST_EXAMPLE",
        value_name = "NAME",
        value_enum,
        value_delimiter = ',',
        default_value = "todos"
    )]
    pub example: Vec<Example>,
}

/// Why there is no private Postgres, or nothing on top of it. The text is for the person at the
/// keyboard.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Install a server or name its directory.
    #[error(
        "no PostgreSQL server programs (initdb, pg_ctl, postgres) {}; \
         install them (Debian: apt-get install postgresql) or name their directory with --pg-bin",
        named.as_ref().map_or("found".into(), |bin| format!("in {}", bin.display()))
    )]
    NoBinaries {
        /// Where we were told to look, if so.
        named: Option<PathBuf>,
    },
    /// Install the other version or remove the data directory.
    #[error("the data directory needs PostgreSQL {needed}, found only {found}")]
    WrongVersion {
        /// The first version found.
        found: u32,
        /// The data directory's.
        needed: u32,
    },
    /// Stop the other one or take another directory.
    #[error("another walcast uses {}", data_dir.display())]
    Busy {
        /// The directory.
        data_dir: PathBuf,
    },
    /// Look at it; remove it if it is of no use.
    #[error("{} belongs to somebody else or is open to others", path.display())]
    NotOurs {
        /// The directory.
        path: PathBuf,
    },
    /// Make one of these accounts, or do not start as root.
    #[error("Postgres refuses to run as root, and there is no user postgres or nobody")]
    NoOrdinaryUser,
    /// Every port we tried is taken.
    #[error("no free port on 127.0.0.1")]
    NoPort,
    /// Take another port.
    #[error("port {0} on 127.0.0.1 is taken; choose another with --port")]
    PortTaken(u16),
    /// A program of the server failed; what it said follows.
    #[error("{} failed: {said}", program.display())]
    Command {
        /// Which.
        program: PathBuf,
        /// Its error output, and for the server the end of its log.
        said: String,
    },
    /// Processes did not end on SIGKILL: the machine is in trouble.
    #[error("server processes in {} do not end", data.display())]
    Survived {
        /// The data directory.
        data: PathBuf,
    },
    /// The file system said no.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// The verb.
        doing: &'static str,
        /// Of what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The private server does not let us in.
    #[error("cannot connect to the private Postgres")]
    Connect(#[source] crate::db::Error),
    /// The example schema does not apply.
    #[error("cannot create the example schema")]
    Example(#[source] tokio_postgres::Error),
    /// A token could not be signed.
    #[error("cannot sign a token")]
    Token(#[source] jsonwebtoken::errors::Error),
    /// Installing walcast's SQL objects failed.
    #[error("cannot install into the private Postgres")]
    Install(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The service ended.
    #[error("the service stopped")]
    Serve(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Our own subscriber did not get its change.
    #[error("no change arrived: {0}")]
    Proof(String),
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { doing, path, source }
}

/// Where to tell the user things.
pub type Output<'a> = &'a mut (dyn io::Write + Send);

/// Runs everything until `shutdown`: Postgres, then `install` (walcast's SQL objects), the example
/// schema, then `serve`. Returns when Postgres has stopped.
///
/// # Errors
/// The first thing that failed; nothing is left running.
pub async fn run<I, S, E>(
    options: &Options,
    out: Output<'_>,
    shutdown: CancellationToken,
    install: I,
    serve: S,
) -> Result<(), Error>
where
    I: AsyncFnOnce(Config) -> Result<(), E>,
    S: AsyncFnOnce(Config, CancellationToken) -> Result<(), E>,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if !options.only_postgres && TcpListener::bind(("127.0.0.1", options.port)).is_err() {
        return Err(Error::PortTaken(options.port));
    }
    let mut wanted = ClusterOptions::new(&options.data_dir);
    wanted.bin.clone_from(&options.pg_bin);
    let cluster = blocking(move || Cluster::start(&wanted)).await?;
    if let Some(notice) = cluster.notice() {
        say(out, &format!("{notice}\n"));
    }
    let result = if options.only_postgres {
        say(out, &format!("DATABASE_URL={}\n", cluster.tcp_url(DATABASE)));
        shutdown.cancelled().await;
        Ok(())
    } else {
        serve_on(&cluster, options, out, shutdown, install, serve).await
    };
    blocking(move || drop(cluster)).await;
    result
}

async fn serve_on<I, S, E>(
    cluster: &Cluster,
    options: &Options,
    out: Output<'_>,
    shutdown: CancellationToken,
    install: I,
    serve: S,
) -> Result<(), Error>
where
    I: AsyncFnOnce(Config) -> Result<(), E>,
    S: AsyncFnOnce(Config, CancellationToken) -> Result<(), E>,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let secret = cluster::secret(&options.data_dir.join("jwt_secret"))?;
    let signer = Signer::new(&secret, SystemTime::now());
    let tokens = Tokens::mint(&signer)?;
    let wanted = examples::chosen(&options.example);
    let tries =
        examples::banner(SocketAddr::from(([127, 0, 0, 1], options.port)), &wanted, &signer)?;
    let mut config = Config::default();
    config.database.url = Secret::new(cluster.url(DATABASE));
    config.jwt.secret = Secret::new(secret.clone());
    config.rest.schemas.extend(wanted.iter().map(|application| application.schema.to_owned()));
    config.server.bind = SocketAddr::from(([127, 0, 0, 1], options.port));
    let bind = config.server.bind;

    install(config.clone()).await.map_err(|error| Error::Install(error.into()))?;
    let login = Login::parse(&cluster.url(DATABASE), CONNECT_TIMEOUT).map_err(Error::Connect)?;
    let mut client = login.connect("walcast dev").await.map_err(Error::Connect)?;
    example::create(&client).await?;
    examples::create(&mut client, &wanted).await?;

    let started = Instant::now();
    let mut serving = pin!(serve(config, shutdown));
    let greet = example::greet(&client);
    let proof = pin!(proof::first_change(bind, &tokens.alice, greet, PROOF_DEADLINE));
    tokio::select! {
        ended = &mut serving => return ended.map_err(|error| Error::Serve(error.into())),
        proved = proof => match proved {
            Ok(payload) => say(out, &arrival(&payload, started.elapsed())),
            Err(error) => say(out, &format!("{error}\n\n")),
        },
    }
    say(out, &banner(bind, cluster, &tokens));
    say(out, &tries);
    say(out, "Ctrl-C stops the service and its Postgres.\n");
    serving.await.map_err(|error| Error::Serve(error.into()))
}

/// The first change, on lines a person can read.
fn arrival(payload: &Value, took: Duration) -> String {
    let data = &payload["data"];
    format!(
        "first change, {} ms after the service was started:\n  {} {}.{} {}\n\n",
        took.as_millis(),
        data["type"].as_str().unwrap_or("?"),
        data["schema"].as_str().unwrap_or("?"),
        data["table"].as_str().unwrap_or("?"),
        data["record"],
    )
}

/// Everything one needs to try it, ready to paste.
fn banner(bind: SocketAddr, cluster: &Cluster, tokens: &Tokens) -> String {
    let Tokens { anon, service_role, alice, bob } = tokens;
    let socket_url = cluster.url(DATABASE);
    let tcp_url = cluster.tcp_url(DATABASE);
    let alice_id = example::ALICE;
    format!(
        "\
walcast serves    http://{bind}
database          psql '{socket_url}'
  over TCP        {tcp_url}
anon key          {anon}
service_role key  {service_role}
alice             {alice}
bob               {bob}

Watch as alice, with supabase-js (npm install @supabase/supabase-js ws):

  node -e 'const {{ createClient }} = require(\"@supabase/supabase-js\");
  createClient(\"http://{bind}\", \"{alice}\", {{ realtime: {{ transport: require(\"ws\") }} }})
    .channel(\"try\").on(\"postgres_changes\", {{ event: \"*\", schema: \"public\", table: \"todos\" }}, (change) => console.log(change))
    .subscribe((status) => console.log(status))'

then change a row of hers (bob, watching, sees nothing):

  psql '{socket_url}' -c \"insert into todos (owner, title) values ('{alice_id}', 'milk')\"

"
    )
}

/// A reader that has gone is no reason to stop.
fn say(out: Output<'_>, text: &str) {
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Runs what waits for processes and files away from the threads that serve.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}
