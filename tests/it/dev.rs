//! The private Postgres of `walcast dev`: what it survives, whom it lets in, and the way from an
//! empty directory to a first change.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_postgres::NoTls;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;
use walcast::config::Config;
use walcast::db::Login;
use walcast::dev::{self, Cluster, Error, Example, StopMode};

use crate::cli::walcast;
use crate::cluster;
use crate::service::listen;

/// For anything that is not stuck, also on a busy machine.
const DEADLINE: Duration = Duration::from_mins(2);

/// A directory that goes with the test, and whatever server is left in it.
struct Home {
    path: PathBuf,
    keepers: Vec<Child>,
}

impl Home {
    fn new(name: &str) -> Self {
        Self { path: cluster::directory(name), keepers: Vec::new() }
    }

    fn options(&self) -> dev::ClusterOptions {
        dev::ClusterOptions { data_dir: self.path.clone(), ..cluster::options("unused") }
    }

    /// What `walcast dev` would have parsed.
    fn command_line(&self, port: u16, only_postgres: bool) -> dev::Options {
        let (data_dir, pg_bin) = (self.path.clone(), cluster::bin());
        dev::Options { port, data_dir, pg_bin, only_postgres, example: vec![Example::Todos] }
    }

    /// Starts the server, in a thread where blocking hurts nobody.
    async fn start(&mut self) -> Result<Cluster, Error> {
        let options = self.options();
        let cluster =
            tokio::task::spawn_blocking(move || Cluster::start(&options)).await.unwrap()?;
        self.keepers.push(cluster::keep(&cluster));
        Ok(cluster)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for keeper in &mut self.keepers {
            drop(keeper.stdin.take());
            let _ = keeper.wait();
        }
        let _ = fs::remove_dir_all(&self.path);
    }
}

async fn execute(cluster: &Cluster, sql: &str) {
    cluster::connect(&cluster.url("postgres")).await.batch_execute(sql).await.unwrap();
}

async fn count(cluster: &Cluster) -> i64 {
    let client = cluster::connect(&cluster.url("postgres")).await;
    client.query_one("select count(*) from kept", &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_private_server_survives_whatever_ends_it() {
    let mut home = Home::new("survives");
    // Half-made directories of an earlier start are no obstacle.
    fs::create_dir_all(home.path.join("postgres.unfinished/base")).unwrap();
    fs::create_dir_all(home.path.join("postgres/base")).unwrap();

    let first = home.start().await.unwrap();
    execute(&first, "create table kept as select 1 as n").await;
    let url = first.url("postgres");
    first.kill().unwrap();
    assert!(!first.is_running());
    first.start_again().unwrap();
    assert_eq!(count(&first).await, 1, "after kill -9 of the server");

    for mode in [StopMode::Fast, StopMode::Immediate] {
        first.stop(mode).unwrap();
        assert!(!first.is_running(), "{mode:?}");
        first.stop(mode).unwrap();
        first.start_again().unwrap();
        assert_eq!(count(&first).await, 1, "after a stop, {mode:?}");
    }

    // Ours was killed, its server was not: the next start takes it over.
    let before = started_at(&first).await;
    first.leave_running();
    let second = home.start().await.unwrap();
    assert_eq!(second.url("postgres"), url);
    assert_eq!(started_at(&second).await, before, "not restarted");

    // Both were killed, and the number in the lock files now is another process' of the same user.
    second.kill().unwrap();
    let mut other = second.command("/bin/sleep").arg("300").spawn().unwrap();
    for lock in [
        second.data().join("postmaster.pid"),
        second.socket_dir().join(format!(".s.PGSQL.{}.lock", second.port())),
    ] {
        let text = fs::read_to_string(&lock).unwrap();
        let (_, rest) = text.split_once('\n').unwrap();
        fs::write(&lock, format!("{}\n{rest}", other.id())).unwrap();
    }
    second.leave_running();
    let third = home.start().await.unwrap();
    assert_eq!(count(&third).await, 1, "after a reused process number");
    assert!(other.try_wait().unwrap().is_none(), "the other process is left alone");
    other.kill().unwrap();
    other.wait().unwrap();

    // Other settings: restarted with them.
    third.leave_running();
    let mut options = home.options();
    options.settings.push(("work_mem".into(), "7MB".into()));
    let fourth = Cluster::start(&options).unwrap();
    let client = cluster::connect(&fourth.url("postgres")).await;
    let work_mem: String = client.query_one("show work_mem", &[]).await.unwrap().get(0);
    assert_eq!(work_mem, "7MB");
    drop(client);

    let socket = fourth.socket_dir().join(format!(".s.PGSQL.{}", fourth.port()));
    drop(fourth);
    assert!(!socket.exists(), "dropped means stopped");
}

async fn started_at(cluster: &Cluster) -> String {
    let client = cluster::connect(&cluster.url("postgres")).await;
    let row = client.query_one("select pg_postmaster_start_time()::text", &[]).await.unwrap();
    row.get(0)
}

#[tokio::test]
async fn a_private_server_lets_only_its_owner_in() {
    let mut home = Home::new("private");
    let cluster = home.start().await.unwrap();

    let refused = home.start().await.unwrap_err();
    assert!(matches!(refused, Error::Busy { .. }), "a second start: {refused}");

    assert_eq!(fs::metadata(cluster.socket_dir()).unwrap().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(cluster.data()).unwrap().mode() & 0o777, 0o700);
    assert_ne!(fs::metadata(cluster.data()).unwrap().uid(), 0, "Postgres never runs as root");

    let with = cluster.tcp_url("postgres");
    drop(tokio_postgres::connect(&with, NoTls).await.unwrap());
    let without = format!("postgres://postgres@127.0.0.1:{}/postgres", cluster.port());
    assert!(tokio_postgres::connect(&without, NoTls).await.is_err());
    let wrong = format!("postgres://postgres:x@127.0.0.1:{}/postgres", cluster.port());
    assert!(tokio_postgres::connect(&wrong, NoTls).await.is_err());

    let client = cluster::connect(&cluster.url("postgres")).await;
    let show = async |name: &str| -> String {
        client.query_one(&format!("show {name}"), &[]).await.unwrap().get(0)
    };
    assert_eq!(show("wal_level").await, "logical");
    assert_eq!(show("listen_addresses").await, "127.0.0.1");
    assert_eq!(show("fsync").await, "off", "as these tests asked");
}

/// Both detours at once: a path too long for a socket, below a directory others cannot enter.
#[tokio::test]
async fn a_directory_postgres_cannot_use_is_replaced_by_one_it_can() {
    let mut home = Home::new("detour");
    let root = home.path.clone();
    fs::DirBuilder::new().mode(0o700).create(&root).unwrap();
    home.path = root.join("d".repeat(100)).join("it's, \"quoted\"");
    let cluster = home.start().await.unwrap();
    execute(&cluster, "create table kept ()").await;
    assert!(is_short(cluster.socket_dir()));
    if fs::metadata(cluster.data()).unwrap().uid() == fs::metadata(&root).unwrap().uid() {
        assert!(cluster.data().starts_with(&root), "our own user needs no other place");
        assert_eq!(cluster.notice(), None);
    } else {
        assert!(!cluster.data().starts_with(&root), "started as root");
        let place = cluster.data().parent().unwrap().to_str().unwrap();
        assert!(cluster.notice().unwrap().contains(place), "{:?}", cluster.notice());
    }

    // The same directory leads to the same place again.
    let data = cluster.data().to_path_buf();
    drop(cluster);
    let again = home.start().await.unwrap();
    assert_eq!(again.data(), data);
    execute(&again, "select from kept").await;
    drop(again);
    drop(home);
    let _ = fs::remove_dir_all(root);
}

fn is_short(directory: &Path) -> bool {
    directory.join(".s.PGSQL.65535").to_str().unwrap().len() <= 107
}

/// What walcast's own installation brings that the example needs.
const INSTALLED: &str = "
    create role anon nologin;
    create role authenticated nologin;
    create role service_role nologin bypassrls;
    create schema auth;
    create function auth.uid() returns uuid stable language sql as $$
        select (current_setting('request.jwt.claims', true)::jsonb ->> 'sub')::uuid
    $$;
    grant usage on schema auth to anon, authenticated, service_role;
";

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn install(config: Config) -> Result<(), Failure> {
    let client = cluster::connect(config.database.url.expose()).await;
    client.batch_execute(INSTALLED).await?;
    Ok(())
}

/// The next client and its first message.
async fn joined(listener: &TcpListener) -> Result<(WebSocketStream<TcpStream>, Value), Failure> {
    let (stream, _) = listener.accept().await?;
    let mut socket = tokio_tungstenite::accept_async(stream).await?;
    let join = serde_json::from_str(socket.next().await.unwrap()?.to_text()?)?;
    Ok((socket, join))
}

/// A stand-in for the service: refuses once, subscribes one client, announces one change, stops when the client
/// has left, and checks what the client did meanwhile.
async fn serve_once(config: Config, shutdown: CancellationToken) -> Result<(), Failure> {
    let listener = TcpListener::bind(config.server.bind).await?;
    let (mut socket, join) = joined(&listener).await?;
    // A service that starts may refuse at first; whoever asks must ask again.
    let reason = json!({ "status": "error", "response": { "reason": "starting" } });
    let refusal = json!([join[0], join[1], join[2], "phx_reply", reason]);
    socket.send(Message::text(refusal.to_string())).await?;
    drop(socket);
    let (mut socket, join) = joined(&listener).await?;
    let topic = &join[2];
    let key = DecodingKey::from_secret(config.jwt.secret.expose().as_bytes());
    let validation = Validation::new(Algorithm::HS256);
    let token = join[4]["access_token"].as_str().unwrap();
    let claims = jsonwebtoken::decode::<Value>(token, &key, &validation)?.claims;
    assert_eq!(claims["role"], "authenticated");

    let system = json!({ "extension": "postgres_changes", "status": "ok" });
    let change = json!({ "ids": [1], "data": {
        "type": "INSERT", "schema": "public", "table": "todos", "record": { "id": 1 },
    } });
    for (event, payload) in [("system", system), ("postgres_changes", change)] {
        let frame = json!([null, null, topic, event, payload]);
        socket.send(Message::text(frame.to_string())).await?;
    }
    while let Some(Ok(message)) = socket.next().await {
        if matches!(message, Message::Close(_)) {
            break;
        }
    }

    let client = cluster::connect(config.database.url.expose()).await;
    let owner = "select owner::text from public.todos where title = 'hello from walcast dev'";
    let rows = client.query(owner, &[]).await?;
    let owners: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(owners, [claims["sub"].as_str().unwrap()], "one greeting, whoever it finds there");

    // The policy is the point of the example: the other user sees nothing.
    let stranger = "begin; set local role authenticated; set local request.jwt.claims = \
                    '{\"sub\":\"00000000-0000-4000-8000-00000000000b\"}'";
    client.batch_execute(stranger).await?;
    assert!(client.query("select from public.todos", &[]).await?.is_empty());
    client.batch_execute("rollback").await?;

    let published = "select from pg_publication_tables \
                     where pubname = 'supabase_realtime' and tablename = 'todos'";
    assert_eq!(client.query(published, &[]).await?.len(), 1);
    shutdown.cancel();
    Ok(())
}

#[tokio::test]
async fn dev_goes_from_an_empty_directory_to_a_first_change_and_back() {
    let mut said = Vec::new();
    let home = Home::new("run");
    let options = home.command_line(free_port().await, false);
    let run = dev::run(&options, &mut said, CancellationToken::new(), install, serve_once);
    tokio::time::timeout(DEADLINE, Box::pin(run)).await.unwrap().unwrap();

    let text = String::from_utf8(std::mem::take(&mut said)).unwrap();
    assert!(text.starts_with("first change, "), "{text}");
    assert!(text.contains("INSERT public.todos {\"id\":1}"), "{text}");
    for needed in
        ["http://127.0.0.1:", "psql 'postgres://", "anon key ", "service_role key ", "bob "]
    {
        assert!(text.contains(needed), "{needed} in {text}");
    }

    // Again, on what is there: tokens and secret stay, the greeting is not repeated.
    let secret = fs::read_to_string(home.path.join("jwt_secret")).unwrap();
    let run = dev::run(
        &options,
        &mut said,
        CancellationToken::new(),
        async |_| Ok::<_, Failure>(()),
        async |config: Config, shutdown: CancellationToken| {
            assert_eq!(config.jwt.secret.expose(), secret);
            serve_once(config, shutdown).await
        },
    );
    tokio::time::timeout(DEADLINE, Box::pin(run)).await.unwrap().unwrap();
    assert!(!home.path.join("postgres/postmaster.pid").exists(), "Postgres is stopped");
}

/// All of it, as `walcast dev` does.
async fn install_all(config: Config) -> Result<(), Failure> {
    let login = Login::parse(config.database.url.expose(), DEADLINE)?;
    walcast::db::install::install(&login, &config).await?;
    Ok(())
}

#[tokio::test]
async fn examples_are_made_once_and_shown_with_tokens_of_their_users() {
    let mut said = Vec::new();
    let home = Home::new("examples");
    let mut options = home.command_line(free_port().await, false);
    options.example = vec![Example::StoryMap];
    let serve = async |config: Config, shutdown: CancellationToken| {
        assert_eq!(config.rest.schemas, ["public", "storymap"]);
        let client = cluster::connect(config.database.url.expose()).await;
        client.batch_execute("update storymap.story_maps set title = 'mine'").await?;
        let others = "select to_regnamespace('tasks') is null and to_regnamespace('wiki') is null";
        assert!(client.query_one(others, &[]).await?.get::<_, bool>(0));
        serve_once(config, shutdown).await
    };
    let run = dev::run(&options, &mut said, CancellationToken::new(), install_all, serve);
    tokio::time::timeout(DEADLINE, Box::pin(run)).await.unwrap().unwrap();
    let text = String::from_utf8(std::mem::take(&mut said)).unwrap();
    assert!(!text.contains("/tasks"), "{text}");

    // The others beside it, which keeps what is in it.
    options.example = vec![Example::Pages, Example::All];
    let serve = async |config: Config, shutdown: CancellationToken| {
        let schemas = ["public", "storymap", "tasks", "reading", "wiki", "pages"];
        assert_eq!(config.rest.schemas, schemas);
        let client = cluster::connect(config.database.url.expose()).await;
        let title = "select title from storymap.story_maps";
        assert_eq!(client.query_one(title, &[]).await?.get::<_, &str>(0), "mine");
        // Whoever is shown may do what is shown.
        let seen = "set role authenticated;
            set request.jwt.claims = '{\"sub\": \"00000000-0000-4000-8000-00000000000e\"}'";
        client.batch_execute(seen).await?;
        let counts = "select (select count(*) from storymap.stories), (select count(*) from storymap.steps), \
                      (select count(*) from wiki.nodes), (select count(*) from tasks.tasks)";
        let row = client.query_one(counts, &[]).await?;
        let counts: Vec<i64> = (0..4).map(|place| row.get(place)).collect();
        assert_eq!(counts, [0, 1, 1, 0], "as vera");
        client.batch_execute("set request.jwt.claims = '{\"userId\": \"vera\"}'").await?;
        let components = client.query("select from pages.components", &[]).await?;
        assert_eq!(components.len(), 1);
        drop(client);
        serve_once(config, shutdown).await
    };
    let run = dev::run(&options, &mut said, CancellationToken::new(), install_all, serve);
    tokio::time::timeout(DEADLINE, Box::pin(run)).await.unwrap().unwrap();
    let text = String::from_utf8(said).unwrap();
    let secret = fs::read_to_string(home.path.join("jwt_secret")).unwrap();
    let key = DecodingKey::from_secret(secret.as_bytes());
    for (namespace, claim, bob) in [
        ("/story-maps", "sub", "00000000-0000-4000-8000-00000000000b"),
        ("/tasks", "sub", "cbob"),
        ("/reading", "sub", "00000000-0000-4000-8000-00000000000b"),
        ("/wiki", "sub", "00000000-0000-4000-8000-00000000000b"),
        ("/pages", "userId", "bob"),
    ] {
        let (_, part) = text.split_once(&format!(":{}{namespace}\n", options.port)).unwrap();
        let (_, token) = part.split_once("_BOB=").unwrap();
        let token = token.split_whitespace().next().unwrap();
        let claims = jsonwebtoken::decode::<Value>(token, &key, &Validation::new(Algorithm::HS256));
        assert_eq!(claims.unwrap().claims[claim], bob, "{namespace}");
        assert!(part.contains(" walcast tail --url http://127.0.0.1:"), "{part}");
    }
}

#[tokio::test]
async fn an_example_that_is_not_known_is_refused_with_those_that_are() {
    type Given<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)]);
    let home = Home::new("unknown");
    let directory = home.path.to_str().unwrap();
    let given: [Given<'_>; 3] = [
        (&["dev", "--example", "chat"], &[("WALCAST_DATA_DIR", directory)]),
        (&["dev", "--example", "wiki,chat"], &[("WALCAST_DATA_DIR", directory)]),
        (&["dev"], &[("WALCAST_DATA_DIR", directory), ("WALCAST_EXAMPLE", "wiki,chat")]),
    ];
    for (arguments, environment) in given {
        let run = walcast(arguments, environment).await;
        assert_eq!(run.code, 2, "{}", run.err);
        for name in ["'chat'", "todos", "story-map", "tasks", "reading", "wiki", "pages", "all"] {
            assert!(run.err.contains(name), "{name} in {}", run.err);
        }
        assert!(!home.path.exists());
    }
}

#[tokio::test]
async fn dev_stops_postgres_when_the_service_fails() {
    let mut said = Vec::new();
    let home = Home::new("fails");
    let options = home.command_line(free_port().await, false);
    let run = dev::run(&options, &mut said, CancellationToken::new(), install, async |_, _| {
        Err::<(), Failure>("no luck".into())
    });
    let error = tokio::time::timeout(DEADLINE, run).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Serve(_)), "{error}");
    assert!(!home.path.join("postgres/postmaster.pid").exists());
}

#[tokio::test]
async fn dev_says_that_its_port_is_taken_before_it_makes_anything() {
    let mut said = Vec::new();
    let home = Home::new("taken");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = home.command_line(listener.local_addr().unwrap().port(), false);
    let never = async |_, _| Ok::<_, Failure>(());
    let error =
        dev::run(&options, &mut said, CancellationToken::new(), install, never).await.unwrap_err();
    assert!(matches!(error, Error::PortTaken(_)), "{error}");
    assert!(!home.path.exists());
}

#[tokio::test]
async fn only_postgres_serves_until_it_is_told_to_stop() {
    let mut said = Vec::new();
    let home = Home::new("only");
    let options = home.command_line(1, true);
    let shutdown = CancellationToken::new();
    shutdown.cancel();
    let never = async |_, _| Err::<(), Failure>("not asked for".into());
    dev::run(&options, &mut said, shutdown, install, never).await.unwrap();
    let text = String::from_utf8(said).unwrap();
    assert!(text.starts_with("DATABASE_URL=postgres://postgres:"), "{text}");
    assert!(home.path.join("postgres/PG_VERSION").exists());
    assert!(!home.path.join("postgres/postmaster.pid").exists());
}

async fn free_port() -> u16 {
    listen().await.local_addr().unwrap().port()
}

/// A process that ends in the ordinary way takes the run's cluster with it.
#[test]
fn a_keeper_removes_the_server_when_its_pipe_closes() {
    let options = cluster::options("kept");
    let server = Cluster::start(&options).unwrap();
    let socket = server.socket_dir().join(format!(".s.PGSQL.{}", server.port()));
    assert!(socket.exists());
    let mut keeper = cluster::keep(&server);
    server.leave_running();
    drop(keeper.stdin.take());
    keeper.wait().unwrap();
    assert!(!options.data_dir.exists());
    let left = Command::new("sh")
        .args(["-c", "ps -ef | grep -c \"[p]ostgres.*$0\""])
        .arg(&options.data_dir)
        .stderr(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&left.stdout).trim(), "0");
}
