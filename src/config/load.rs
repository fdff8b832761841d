//! Where settings come from, and what they must satisfy.
//!
//! In:     a TOML file, pairs of environment names and values, pairs of setting paths and values.
//! Out:    [`Loaded`]: a validated [`Config`], and the names that were set in vain.
//! Never:  reads the process' environment itself; repeats a secret in an error.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use axum::http::{HeaderName, Uri};
use serde::Deserialize as _;
use toml::{Table, Value};

use super::{Config, Error};

/// Settings, and what was ignored on the way.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// Environment names that look like ours or the official container's and change nothing here.
    pub ignored: Vec<String>,
}

/// Environment names besides `WALCAST_<SECTION>_<NAME>`, for each setting the strongest first.
///
/// The official container's names are here so that its compose file works unchanged; `SLOT_NAME`
/// and `PUBLICATIONS` are what its older documentation calls them.
const ALIASES: &[(&str, &str)] = &[
    ("DATABASE_URL", "database.url"),
    ("WALCAST_REPLICATION_URL", "database.replication_url"),
    ("WALCAST_CHECK_URL", "database.check_url"),
    ("WALCAST_ROLES", "database.roles"),
    ("DB_POOL_SIZE", "database.pool_size"),
    ("WALCAST_SLOT", "replication.slot"),
    ("SLOT_NAME", "replication.slot"),
    ("WALCAST_PUBLICATIONS", "replication.publications"),
    ("PUBLICATIONS", "replication.publications"),
    ("API_JWT_SECRET", "jwt.secret"),
    ("SUPABASE_JWT_SECRET", "jwt.secret"),
    ("JWT_SECRET", "jwt.secret"),
    ("WALCAST_JWKS", "jwt.jwks"),
    ("API_JWT_JWKS", "jwt.jwks"),
    ("JWT_JWKS", "jwt.jwks"),
    ("WALCAST_API_KEYS", "jwt.api_keys"),
    ("JWT_CLAIM_VALIDATORS", "jwt.required_claims"),
    ("TENANT_MAX_CHANNELS_PER_CLIENT", "server.channels_per_connection_max"),
    ("TENANT_MAX_CONCURRENT_USERS", "server.connections_max"),
    ("MAX_CONNECTIONS", "server.connections_max"),
    ("MAX_HEADER_LENGTH", "server.header_bytes_max"),
    ("CONNECT_ERROR_BACKOFF_MS", "server.connect_error_backoff_ms"),
    ("SELF_HOST_TENANT_NAME", "server.tenant_name"),
    ("METRICS_JWT_SECRET", "jwt.metrics_secret"),
    ("TENANT_MAX_JOINS_PER_SECOND", "limits.joins_per_second_max"),
    ("TENANT_MAX_EVENTS_PER_SECOND", "limits.events_per_second_max"),
    ("CLIENT_PRESENCE_MAX_CALLS", "limits.presence_events_per_window_max"),
    ("CLIENT_PRESENCE_WINDOW_MS", "limits.presence_window_ms"),
    ("WALCAST_ORIGINS", "limits.origins"),
    ("UPSTREAM_SUPABASE_URL", "proxy.upstream"),
    ("CHANNEL_ERROR_BACKOFF_MS", "server.join_error_backoff_ms"),
    ("WALCAST_LOG", "log.filter"),
    ("LOG_LEVEL", "log.filter"),
    ("LOG_FORMAT", "log.format"),
];

/// Numbers of the official container that may be beyond what ours can be: the nearest that can is
/// taken, because its compose file must not stop the service.
const CLAMPED: &[&str] = &[
    "DB_POOL_SIZE",
    "MAX_CONNECTIONS",
    "MAX_HEADER_LENGTH",
    "TENANT_MAX_CHANNELS_PER_CLIENT",
    "TENANT_MAX_CONCURRENT_USERS",
    "TENANT_MAX_JOINS_PER_SECOND",
    "TENANT_MAX_EVENTS_PER_SECOND",
    "CLIENT_PRESENCE_MAX_CALLS",
    "CLIENT_PRESENCE_WINDOW_MS",
    "CONNECT_ERROR_BACKOFF_MS",
    "CHANNEL_ERROR_BACKOFF_MS",
];

/// Names that other code here reads, so they are not reported as ignored.
const READ_ELSEWHERE: &[&str] = &[
    "WALCAST_BIND",
    "WALCAST_CONFIG",
    "WALCAST_DEV_PORT",
    "WALCAST_PG_BIN",
    "WALCAST_DATA_DIR",
    "WALCAST_EXAMPLE",
    "WALCAST_BIN",
];

/// What only the official container's compose file would set, so that the rest of its names are
/// meant for it, too.
const OFFICIAL_MARKS: &[&str] = &["API_JWT_SECRET", "DB_ENC_KEY", "SEED_SELF_HOST"];

/// What the official container reads and others may read as well: listed where its marks are.
const OFFICIAL_AND_COMMON: &[&str] =
    &["APP_NAME", "DASHBOARD_PASSWORD", "DASHBOARD_USER", "REGION", "RLIMIT_NOFILE"];

/// The same, for families of names.
const OFFICIAL_PREFIXES: &[&str] = &["GEN_RPC_", "METRICS_PUSHER_", "OTEL_"];

/// What the official container reads and has no meaning here. A name is looked up in both versions
/// of IP, so `DB_IP_VERSION` has nothing to choose.
const OFFICIAL_WITHOUT_MEANING: &[&str] = &[
    "SECRET_KEY_BASE",
    "DB_ENC_KEY",
    "DB_ENC_KEY_GCM",
    "DB_ENC_WRITE_GCM",
    "DB_AFTER_CONNECT_QUERY",
    "DB_IP_VERSION",
    "ERL_AFLAGS",
    "DNS_NODES",
    "CLUSTER_STRATEGIES",
    "SEED_SELF_HOST",
    "RUN_JANITOR",
    "TENANT_MAX_BYTES_PER_SECOND",
    "WEBSOCKET_MAX_HEAP_SIZE",
    "DISABLE_HEALTHCHECK_LOGGING",
    "SECURE_CHANNELS",
    "TEMPORARY_SLOT",
    "REPLICATION_MODE",
    "REPLICATION_POLL_INTERVAL",
];

/// Settings whose value must not be repeated; each may also be given as `<NAME>_FILE`.
const SECRETS: &[&str] = &[
    "database.url",
    "database.replication_url",
    "database.check_url",
    "jwt.secret",
    "jwt.metrics_secret",
    "jwt.api_keys",
];

/// Least and greatest value of every number. A test keeps this list complete.
const BOUNDS: &[(&str, i64, i64)] = &[
    ("database.pool_size", 1, 100),
    ("database.check_timeout_ms", 10, 60_000),
    ("database.batch_check_timeout_ms", 100, 600_000),
    ("database.snapshot_interval_ms", 50, 5_000),
    ("database.channel_pool_size", 1, 100),
    ("database.channel_wait_timeout_ms", 100, 60_000),
    ("database.connect_timeout_ms", 100, 60_000),
    ("replication.sender_timeout_ms", 1_000, 600_000),
    ("replication.batch_bytes", 4 * 1024, 16 * 1024 * 1024),
    ("replication.batches_ahead", 1, 64),
    ("replication.stall_timeout_ms", 1_000, 600_000),
    ("replication.replay_window_ms", 0, 3_600_000),
    ("replication.replay_window_bytes", 0, 64 * 1024 * 1024 * 1024),
    ("replication.create_timeout_ms", 1_000, 3_600_000),
    ("jwt.jwks_refresh_interval_ms", 10_000, 86_400_000),
    ("jwt.jwks_pause_ms", 1_000, 3_600_000),
    ("jwt.jwks_timeout_ms", 100, 60_000),
    ("jwt.jwks_age_max_ms", 60_000, 2_592_000_000),
    ("jwt.jwks_wait_ms", 0, 8_000),
    ("changes.record_bytes_max", 1024, 256 * 1024 * 1024),
    ("presence.meta_bytes_max", 256, 1024 * 1024),
    ("presence.meta_keys_max", 1, 100_000),
    ("presence.key_bytes_max", 64, 64 * 1024),
    ("presence.members_max", 1, 10_000_000),
    ("presence.topic_bytes_max", 64 * 1024, 1024 * 1024 * 1024),
    ("presence.bytes_max", 64 * 1024, 64 * 1024 * 1024 * 1024),
    ("presence.diff_interval_max_ms", 0, 10_000),
    ("server.connections_max", 1, 10_000_000),
    ("server.http_connections_max", 1, 1_000_000),
    ("server.channels_per_connection_max", 1, 100_000),
    ("server.subscriptions_per_channel_max", 1, 10_000),
    ("server.frame_bytes_max", 1024, 64 * 1024 * 1024),
    ("server.unfinished_bytes_max", 1024, 64 * 1024 * 1024 * 1024),
    ("server.outbox_bytes_max", 64 * 1024, 1024 * 1024 * 1024),
    ("server.header_bytes_max", HEADER_BYTES_MIN, 1024 * 1024),
    ("server.header_timeout_ms", 100, 120_000),
    ("server.body_timeout_ms", 100, 600_000),
    ("server.idle_timeout_ms", 1_000, 3_600_000),
    ("server.connect_error_backoff_ms", 0, 8_000),
    ("server.join_error_backoff_ms", 0, 8_000),
    ("server.drain_timeout_ms", 0, 60_000),
    ("limits.joins_per_second_max", 1, 10_000_000),
    ("limits.connection_joins_per_second_max", 1, 10_000_000),
    ("limits.events_per_second_max", 1, 100_000_000),
    ("limits.connection_events_per_second_max", 1, 100_000_000),
    ("limits.presence_events_per_window_max", 1, 1_000_000),
    ("limits.presence_window_ms", 100, 3_600_000),
    ("limits.payload_bytes_max", 1024, 64 * 1024 * 1024),
    ("limits.batch_messages_max", 1, 1_000_000),
    ("limits.batch_bytes_max", 1024, 64 * 1024 * 1024),
    ("limits.connections_per_ip_max", 0, 10_000_000),
    ("limits.connections_per_user_max", 0, 10_000_000),
    ("proxy.requests_max", 1, 100_000),
    ("proxy.connect_timeout_ms", 100, 60_000),
    ("proxy.silence_max_ms", 1_000, 3_600_000),
];

/// Less than this does not hold a large token and its cookies. The official container's 4096 is
/// therefore read as this.
const HEADER_BYTES_MIN: i64 = 16 * 1024;

/// What an HS256 key must have at least (RFC 7518, section 3.2).
const SECRET_BYTES_MIN: usize = 32;

/// What a name in Postgres may have at most.
const IDENTIFIER_BYTES_MAX: usize = 63;

impl Config {
    /// Defaults, then the file, then the environment, then flags; later ones win.
    ///
    /// An empty environment value counts as not set, because compose files write
    /// `NAME: ${NAME:-}`. Flags are pairs of a setting's path (`server.bind`) and its text.
    ///
    /// # Errors
    /// [`Error`] names the file's line, or the setting as the user wrote it.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Result<Loaded, Error> {
        let mut settings = Settings::default();
        if let Some(path) = file {
            settings.read_file(path)?;
        }
        let environment: BTreeMap<String, String> =
            environment.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        settings.read_environment(&environment)?;
        for (path, text) in flags {
            let name = format!("--{}", path.rsplit('.').next().unwrap_or(path));
            settings.set_text(path, &name, &text)?;
        }
        let config = settings.finish()?;
        let ignored = ignored(&environment);
        Ok(Loaded { config, ignored })
    }

    /// Whether every value is within its bounds.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the setting's path.
    pub fn validate(&self) -> Result<(), Error> {
        self.validate_as(&|path| path.to_owned())
    }

    /// Whether there is enough to serve: a way into Postgres, and a way to verify tokens.
    ///
    /// # Errors
    /// [`Error::Invalid`] with what to set.
    pub fn validate_for_serving(&self) -> Result<(), Error> {
        let database = &self.database;
        if database.url.is_empty()
            && (database.replication_url.is_empty() || database.check_url.is_empty())
        {
            return Err(invalid(
                "DATABASE_URL",
                "is not set; give it, or both WALCAST_REPLICATION_URL and WALCAST_CHECK_URL",
            ));
        }
        if self.jwt.secret.is_empty() && self.jwt.jwks.is_empty() {
            return Err(invalid(
                "WALCAST_JWT_SECRET",
                "is not set; give the secret that signs your tokens, or WALCAST_JWKS",
            ));
        }
        Ok(())
    }

    /// `validate`, with each path turned into the name the user wrote.
    fn validate_as(&self, name: &dyn Fn(&str) -> String) -> Result<(), Error> {
        let mut printable = self.clone();
        printable.jwt.required_claims.clear(); // JSON null has no TOML form.
        let values = Table::try_from(printable).map_err(|_| {
            invalid("settings", "hold a number beyond 9223372036854775807, or text that is no text")
        })?;
        for &(path, least, most) in BOUNDS {
            let Some(value) = get(&values, path).and_then(Value::as_integer) else { continue };
            if value < least || value > most {
                let problem = format!("is {value}; it must be {least} to {most}");
                return Err(invalid(name(path), problem));
            }
        }
        let slot = &self.replication.slot;
        let slot_byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if slot.is_empty() || slot.len() > IDENTIFIER_BYTES_MAX || !slot.bytes().all(slot_byte) {
            let problem = "must be 1 to 63 characters of a-z, 0-9 and _";
            return Err(invalid(name("replication.slot"), problem));
        }
        names(&self.replication.publications, &name("replication.publications"))?;
        let messages = &self.replication.messages_publication;
        if messages.len() > IDENTIFIER_BYTES_MAX || messages.contains('\0') {
            let problem = "must be a name of 1 to 63 bytes, or empty";
            return Err(invalid(name("replication.messages_publication"), problem));
        }
        names(&self.database.roles, &name("database.roles"))?;
        for role in &self.database.roles {
            if role.starts_with("pg_") || role == "none" || role == "public" {
                let problem = format!("{role} is not a role that a token may name");
                return Err(invalid(name("database.roles"), problem));
            }
        }
        let secrets =
            [("jwt.secret", &self.jwt.secret), ("jwt.metrics_secret", &self.jwt.metrics_secret)];
        for (path, secret) in secrets {
            let length = secret.expose().len();
            if length != 0 && length < SECRET_BYTES_MIN {
                let problem =
                    format!("has {length} bytes; it must have {SECRET_BYTES_MIN} at least");
                return Err(invalid(name(path), problem));
            }
        }
        for origin in &self.limits.origins {
            if !is_origin(origin) {
                let problem = "must hold origins such as https://app.example, without a path";
                return Err(invalid(name("limits.origins"), problem));
            }
        }
        let header = &self.limits.address_header;
        if !header.is_empty() && header.parse::<HeaderName>().is_err() {
            return Err(invalid(name("limits.address_header"), "must be a header's name"));
        }
        if !self.proxy.upstream.is_empty()
            && let Err(problem) = self.proxy.upstream_parts()
        {
            return Err(invalid(name("proxy.upstream"), problem));
        }
        for table in self.changes.delete_mode_by_table.keys() {
            if !table.contains('.') {
                let problem = format!("{table} must be written schema.table");
                return Err(invalid(name("changes.delete_mode_by_table"), problem));
            }
        }
        for path in SECRETS.iter().filter(|path| path.starts_with("database.")) {
            let url = match *path {
                "database.url" => &self.database.url,
                "database.replication_url" => &self.database.replication_url,
                _ => &self.database.check_url,
            };
            let scheme = ["postgres://", "postgresql://"];
            if !url.is_empty() && !scheme.iter().any(|s| url.expose().starts_with(s)) {
                let problem = "must be written postgres://user:password@host:port/database";
                return Err(invalid(name(path), problem));
            }
        }
        Ok(())
    }
}

/// Values by path, and what the user called each of them.
#[derive(Default)]
struct Settings {
    values: Table,
    names: BTreeMap<String, String>,
}

impl Settings {
    fn read_file(&mut self, path: &Path) -> Result<(), Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let refuse = |error: &toml::de::Error| {
            let start = error.span().map_or(0, |span| span.start).min(text.len());
            let before = text.as_bytes().get(..start).unwrap_or_default();
            let line = before.split(|&b| b == b'\n').count();
            let written = text.lines().nth(line - 1).unwrap_or_default();
            let secret = ["url", "secret", "api_keys"].iter().any(|word| written.contains(word));
            let problem =
                if secret { "this value is not text".into() } else { error.message().into() };
            Error::Parse { path: path.to_owned(), line, problem }
        };
        toml::from_str::<Config>(&text).map_err(|error| refuse(&error))?;
        self.values = text.parse().map_err(|error| refuse(&error))?;
        Ok(())
    }

    fn read_environment(&mut self, environment: &BTreeMap<String, String>) -> Result<(), Error> {
        for path in paths() {
            for name in names_of(&path) {
                if let Some(text) = environment.get(&name) {
                    self.set_text(&path, &name, text)?;
                    break;
                }
                if !SECRETS.contains(&path.as_str()) {
                    continue;
                }
                let name = format!("{name}_FILE");
                if let Some(file) = environment.get(&name) {
                    let file = Path::new(file);
                    let text = std::fs::read_to_string(file)
                        .map_err(|source| Error::Read { path: file.to_owned(), source })?;
                    self.set_text(&path, &name, text.trim_end_matches(['\r', '\n']))?;
                    break;
                }
            }
        }
        if !self.names.contains_key("database.url")
            && let Some(host) = environment.get("DB_HOST")
        {
            let url = official_url(host, environment)?;
            self.set_text("database.url", "DB_HOST", &url)?;
        }
        self.read_bind(environment)?;
        if !self.names.contains_key("log.format")
            && get(&self.values, "log.format").is_none()
            && is_official(environment)
        {
            self.set_text("log.format", "LOG_FORMAT", "supabase")?;
        }
        if let Some(suffix) = environment.get("SLOT_NAME_SUFFIX") {
            let base = get(&self.values, "replication.slot").and_then(Value::as_str);
            let slot = format!("{}_{suffix}", base.unwrap_or(&Config::default().replication.slot));
            self.set_text("replication.slot", "SLOT_NAME_SUFFIX", &slot)?;
        }
        Ok(())
    }

    /// `WALCAST_BIND` may leave the port to `PORT`, so that an image can set the address alone.
    fn read_bind(&mut self, environment: &BTreeMap<String, String>) -> Result<(), Error> {
        let default = get(&self.values, "server.bind").and_then(Value::as_str).map(str::to_owned);
        let mut bind = match default.as_deref().map(str::parse) {
            Some(Ok(address)) => address,
            _ => Config::default().server.bind,
        };
        if let Some(port) = environment.get("PORT") {
            let problem = "must be a port, 0 to 65535";
            bind.set_port(port.trim().parse().map_err(|_| invalid("PORT", problem))?);
            self.set_text("server.bind", "PORT", &bind.to_string())?;
        }
        if let Some(text) = environment.get("WALCAST_BIND") {
            let address = text.trim().trim_start_matches('[').trim_end_matches(']');
            if let Ok(address) = address.parse() {
                bind.set_ip(address);
                self.set_text("server.bind", "WALCAST_BIND", &bind.to_string())?;
            } else {
                self.set_text("server.bind", "WALCAST_BIND", text)?;
                bind = text.parse().unwrap_or(bind);
            }
        }
        let Some(version) = environment.get("REALTIME_IP_VERSION") else { return Ok(()) };
        // It chooses a version of "every address" or of "this machine", never one for the other.
        let address = match version.trim().to_ascii_lowercase().as_str() {
            "ipv6" if bind.ip() == Ipv4Addr::UNSPECIFIED => Ipv6Addr::UNSPECIFIED.into(),
            "ipv6" if bind.ip() == Ipv4Addr::LOCALHOST => Ipv6Addr::LOCALHOST.into(),
            "ipv4" if bind.ip() == Ipv6Addr::UNSPECIFIED => Ipv4Addr::UNSPECIFIED.into(),
            "ipv4" if bind.ip() == Ipv6Addr::LOCALHOST => Ipv4Addr::LOCALHOST.into(),
            _ => bind.ip(),
        };
        if address == bind.ip() {
            return Ok(());
        }
        bind.set_ip(address);
        self.set_text("server.bind", "REALTIME_IP_VERSION", &bind.to_string())
    }

    /// Reads `text` as the kind of value that the setting has.
    fn set_text(&mut self, path: &str, name: &str, text: &str) -> Result<(), Error> {
        let defaults = defaults();
        let Some(default) = get(&defaults, path) else {
            return Err(invalid(name, "is not a setting"));
        };
        let value = match default {
            Value::Integer(_) => {
                let number = text.trim().parse::<i64>();
                let number = number.map_err(|_| invalid(name, "must be a whole number"))?;
                let bounds = BOUNDS.iter().find(|(bounded, _, _)| *bounded == path);
                let bounds = bounds.filter(|_| CLAMPED.contains(&name));
                let clamp = |&(_, least, most): &(_, i64, i64)| number.clamp(least, most);
                Value::Integer(bounds.map_or(number, clamp))
            }
            Value::Boolean(_) => Value::Boolean(boolean(name, text)?),
            Value::Array(_) => list(name, text)?,
            Value::Table(_) => {
                let json: serde_json::Map<String, serde_json::Value> =
                    serde_json::from_str(text)
                        .map_err(|_| invalid(name, "must be a JSON object"))?;
                let table = Table::try_from(json)
                    .map_err(|_| invalid(name, "must be a JSON object without null"))?;
                Value::Table(table)
            }
            Value::String(_) | Value::Float(_) | Value::Datetime(_) => Value::String(text.into()),
        };
        self.put(path, name, value)
    }

    /// Sets one value, checked by the type of its field.
    fn put(&mut self, path: &str, name: &str, value: Value) -> Result<(), Error> {
        let (section, field) = path.split_once('.').unwrap_or(("", path));
        let mut alone = Table::new();
        alone.insert(
            section.into(),
            Value::Table(Table::from_iter([(field.into(), value.clone())])),
        );
        if let Err(error) = Config::deserialize(Value::Table(alone)) {
            let secret = SECRETS.contains(&path);
            return Err(invalid(name, if secret { "is malformed" } else { error.message() }));
        }
        let section = self.values.entry(section).or_insert_with(|| Value::Table(Table::new()));
        if let Value::Table(section) = section {
            section.insert(field.into(), value);
        }
        self.names.insert(path.into(), name.into());
        Ok(())
    }

    fn finish(self) -> Result<Config, Error> {
        let config = Config::deserialize(Value::Table(self.values))
            .map_err(|error| invalid("settings", error.message()))?;
        config.validate_as(&|path| self.names.get(path).map_or(path, String::as_str).to_owned())?;
        Ok(config)
    }
}

fn invalid(name: impl Into<String>, problem: impl Into<String>) -> Error {
    Error::Invalid { name: name.into(), problem: problem.into() }
}

/// The defaults as a tree; secrets are empty in it.
fn defaults() -> Table {
    Table::try_from(Config::default()).expect("the defaults have a TOML form")
}

fn get<'a>(values: &'a Table, path: &str) -> Option<&'a Value> {
    let (section, field) = path.split_once('.')?;
    values.get(section)?.as_table()?.get(field)
}

/// Every setting as `section.field`.
fn paths() -> Vec<String> {
    let mut paths = Vec::new();
    for (section, fields) in &defaults() {
        for field in fields.as_table().into_iter().flat_map(Table::keys) {
            paths.push(format!("{section}.{field}"));
        }
    }
    paths
}

/// The environment names of one setting, the strongest first.
fn names_of(path: &str) -> impl Iterator<Item = String> {
    let own = format!("WALCAST_{}", path.replace('.', "_").to_uppercase());
    let aliases = ALIASES.iter().filter(move |(_, aliased)| *aliased == path);
    let mut names = vec![own];
    names.extend(aliases.map(|(name, _)| (*name).to_owned()));
    names.into_iter()
}

/// `true`, `yes`, `on`, `1` and their opposites, in any case.
fn boolean(name: &str, text: &str) -> Result<bool, Error> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" | "t" | "y" => Ok(true),
        "false" | "no" | "off" | "0" | "f" | "n" => Ok(false),
        _ => Err(invalid(name, "must be true or false")),
    }
}

/// Names between commas, or a JSON array of them.
fn list(name: &str, text: &str) -> Result<Value, Error> {
    let names: Vec<String> = if text.trim_start().starts_with('[') {
        serde_json::from_str(text).map_err(|_| invalid(name, "must be a JSON array of names"))?
    } else {
        text.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
    };
    Ok(Value::Array(names.into_iter().map(Value::String).collect()))
}

/// A list of Postgres names: some, each once, each possible.
fn names(list: &[String], name: &str) -> Result<(), Error> {
    if list.is_empty() {
        return Err(invalid(name, "must name at least one"));
    }
    let mut seen = BTreeSet::new();
    for item in list {
        if item.is_empty() || item.len() > IDENTIFIER_BYTES_MAX || item.contains('\0') {
            return Err(invalid(name, "must hold names of 1 to 63 bytes"));
        }
        if !seen.insert(item) {
            return Err(invalid(name, format!("names {item} twice")));
        }
    }
    Ok(())
}

/// The official container's `DB_*` set as one URL.
fn official_url(host: &str, environment: &BTreeMap<String, String>) -> Result<String, Error> {
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let of = |name: &str, default: &str| {
        environment.get(name).map_or_else(|| default.to_owned(), Clone::clone)
    };
    // An IPv6 address keeps its colons inside brackets; names and socket directories are encoded.
    let host = if host.contains(':') {
        format!("[{}]", host.trim_matches(['[', ']']))
    } else {
        utf8_percent_encode(host, percent_encoding::CONTROLS).to_string().replace('/', "%2F")
    };
    let port = of("DB_PORT", "5432");
    let port: u16 =
        port.trim().parse().map_err(|_| invalid("DB_PORT", "must be a port, 1 to 65535"))?;
    let mut password = match (environment.get("DB_PASSWORD"), environment.get("DB_PASSWORD_FILE")) {
        (None, Some(file)) => {
            let file = Path::new(file);
            let text = std::fs::read_to_string(file)
                .map_err(|source| Error::Read { path: file.to_owned(), source })?;
            text.trim_end_matches(['\r', '\n']).to_owned()
        }
        (given, _) => given.cloned().unwrap_or_default(),
    };
    if !password.is_empty() {
        password = format!(":{}", encode(&password));
    }
    let user = encode(&of("DB_USER", "postgres"));
    let name = encode(&of("DB_NAME", "postgres"));
    let mut url = format!("postgres://{user}{password}@{host}:{port}/{name}");
    if boolean("DB_SSL", &of("DB_SSL", "false"))? {
        match environment.get("DB_SSL_CA_CERT") {
            Some(file) => {
                url.push_str("?sslmode=verify-full&sslrootcert=");
                url.push_str(&encode(file));
            }
            None => url.push_str("?sslmode=require"),
        }
    }
    Ok(url)
}

/// Whether this is the environment of the official container's compose file.
fn is_official(environment: &BTreeMap<String, String>) -> bool {
    environment.contains_key("DB_HOST")
        && OFFICIAL_MARKS.iter().any(|name| environment.contains_key(*name))
}

/// Whether this is how a browser writes where a page is from.
fn is_origin(text: &str) -> bool {
    let Ok(uri) = text.parse::<Uri>() else { return false };
    uri.scheme().is_some()
        && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
        && matches!(uri.path(), "" | "/")
        && uri.query().is_none()
}

/// Names that were set in vain: typing errors of ours, and official ones without meaning.
fn ignored(environment: &BTreeMap<String, String>) -> Vec<String> {
    let mut known: BTreeSet<String> = READ_ELSEWHERE.iter().map(|name| (*name).into()).collect();
    for path in paths() {
        for name in names_of(&path) {
            if SECRETS.contains(&path.as_str()) {
                known.insert(format!("{name}_FILE"));
            }
            known.insert(name);
        }
    }
    let official = is_official(environment);
    let vain = |name: &&String| {
        (name.starts_with("WALCAST_") && !known.contains(*name))
            || OFFICIAL_WITHOUT_MEANING.contains(&name.as_str())
            || official
                && (OFFICIAL_AND_COMMON.contains(&name.as_str())
                    || OFFICIAL_PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
    };
    environment.keys().filter(vain).cloned().collect()
}

#[cfg(test)]
mod tests {
    use std::ops::Deref;
    use std::path::PathBuf;

    use super::*;

    const SECRET: &str = "a-secret-of-thirty-two-bytes-or-more";

    fn load(environment: &[(&str, &str)]) -> Result<Config, Error> {
        Ok(loaded(environment)?.config)
    }

    fn loaded(environment: &[(&str, &str)]) -> Result<Loaded, Error> {
        let pairs = environment.iter().map(|&(name, value)| (name.into(), value.into()));
        Config::load(None, pairs, [])
    }

    /// The refusal of one pair must start with the name that was written.
    fn refused(name: &str, value: &str) -> String {
        let error = load(&[(name, value)]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("setting {name}: ")), "{name}={value}: {error}");
        error
    }

    /// A file that goes with its value.
    struct File(PathBuf);

    impl Drop for File {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    impl Deref for File {
        type Target = Path;

        fn deref(&self) -> &Path {
            &self.0
        }
    }

    fn file(text: &str) -> File {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "walcast-config-{}-{}.toml",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        File(path)
    }

    #[test]
    fn nothing_set_gives_the_defaults() {
        assert_eq!(load(&[]).unwrap(), Config::default());
    }

    #[test]
    fn the_example_file_is_the_defaults_and_names_every_setting() {
        let text = include_str!("../../config.example.toml");
        assert_eq!(toml::from_str::<Config>(text).unwrap(), Config::default());
        let written: Table = text.parse().unwrap();
        for path in paths() {
            assert!(get(&written, &path).is_some(), "config.example.toml lacks {path}");
        }
    }

    #[test]
    fn later_sources_win() {
        let path = file("[server]\nbind = \"127.0.0.1:1\"\n[replication]\nslot = \"file\"\n");
        let environment = [("WALCAST_SLOT".into(), "environment".into())];
        let config = Config::load(Some(&path), environment.clone(), []).unwrap().config;
        assert_eq!(config.replication.slot, "environment");
        assert_eq!(config.server.bind.port(), 1);
        let flags = [("replication.slot", "flag".into())];
        let config = Config::load(Some(&path), environment, flags).unwrap().config;
        assert_eq!(config.replication.slot, "flag");
    }

    #[test]
    fn every_setting_has_an_environment_name() {
        for path in paths() {
            let name = format!("WALCAST_{}", path.replace('.', "_").to_uppercase());
            let text = match get(&defaults(), &path).unwrap() {
                Value::Integer(number) => number.to_string(),
                Value::Boolean(value) => value.to_string(),
                Value::Array(_) if path == "limits.origins" => {
                    "https://a.example,http://b:1".into()
                }
                Value::Array(_) => "one,two".into(),
                Value::Table(_) => "{\"public.t\":\"drop\"}".into(),
                Value::String(_) if path == "proxy.upstream" => "https://ref.supabase.co".into(),
                Value::String(_) if path == "limits.address_header" => "x-forwarded-for".into(),
                Value::String(text) if text.is_empty() => format!("postgres://{SECRET}"),
                Value::String(text) => text.clone(),
                Value::Float(_) | Value::Datetime(_) => panic!("{path} has an unknown kind"),
            };
            let loaded =
                loaded(&[(&name, &text)]).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(loaded.ignored.is_empty(), "{name}");
        }
    }

    #[test]
    fn every_number_has_bounds_and_they_hold() {
        for path in paths() {
            let Some(default) = get(&defaults(), &path).and_then(Value::as_integer) else {
                continue;
            };
            let name = format!("WALCAST_{}", path.replace('.', "_").to_uppercase());
            let bounds = BOUNDS.iter().find(|(bounded, _, _)| *bounded == path);
            let &(_, least, most) = bounds.unwrap_or_else(|| panic!("{path} has no bounds"));
            assert!(least <= default && default <= most, "{path}");
            refused(&name, &(most + 1).to_string());
            refused(&name, &(least - 1).to_string());
            load(&[(&name, &most.to_string())]).unwrap();
            load(&[(&name, &least.to_string())]).unwrap();
        }
        assert!(BOUNDS.iter().all(|(path, _, _)| get(&defaults(), path).is_some()));
    }

    #[test]
    fn every_alias_leads_to_a_setting() {
        for (name, path) in ALIASES {
            assert!(get(&defaults(), path).is_some(), "{name}");
        }
    }

    #[test]
    fn the_official_compose_file_works_unchanged() {
        let loaded = loaded(&[
            ("PORT", "4000"),
            ("DB_HOST", "db"),
            ("DB_PORT", "5432"),
            ("DB_USER", "supabase_admin"),
            ("DB_PASSWORD", "p@ss/w:rd?"),
            ("DB_NAME", "postgres"),
            ("DB_AFTER_CONNECT_QUERY", "SET search_path TO _realtime"),
            ("DB_ENC_KEY", "supabaserealtime"),
            ("API_JWT_SECRET", SECRET),
            ("API_JWT_JWKS", ""),
            ("SECRET_KEY_BASE", "x"),
            ("MAX_HEADER_LENGTH", "4096"),
            ("SLOT_NAME_SUFFIX", ""),
            ("METRICS_JWT_SECRET", SECRET),
            ("DNS_NODES", "''"),
            ("RLIMIT_NOFILE", "10000"),
            ("APP_NAME", "realtime"),
            ("SEED_SELF_HOST", "True"),
            ("OTEL_SDK_DISABLED", "perhaps"),
        ])
        .unwrap();
        let config = &loaded.config;
        assert_eq!(
            config.database.url.expose(),
            "postgres://supabase%5Fadmin:p%40ss%2Fw%3Ard%3F@db:5432/postgres"
        );
        assert_eq!(config.jwt.secret.expose(), SECRET);
        assert_eq!(config.jwt.jwks, "");
        assert_eq!(config.server.header_bytes_max, 16 * 1024);
        assert_eq!(config.replication.slot, "walcast");
        assert_eq!(config.jwt.metrics_secret.expose(), SECRET);
        assert_eq!(config.log.format, crate::config::LogFormat::Supabase);
        let ignored = [
            "APP_NAME",
            "DB_AFTER_CONNECT_QUERY",
            "DB_ENC_KEY",
            "DNS_NODES",
            "OTEL_SDK_DISABLED",
            "RLIMIT_NOFILE",
            "SECRET_KEY_BASE",
            "SEED_SELF_HOST",
        ];
        assert_eq!(loaded.ignored, ignored);
        config.validate_for_serving().unwrap();
    }

    #[test]
    fn limits_of_the_official_container_are_ours() {
        let config = load(&[
            ("TENANT_MAX_CHANNELS_PER_CLIENT", "100"),
            ("TENANT_MAX_CONCURRENT_USERS", "200"),
            ("TENANT_MAX_EVENTS_PER_SECOND", "300"),
            ("TENANT_MAX_JOINS_PER_SECOND", "400"),
            ("CLIENT_PRESENCE_MAX_CALLS", "5"),
            ("CLIENT_PRESENCE_WINDOW_MS", "30001"),
            ("CONNECT_ERROR_BACKOFF_MS", "2000"),
            ("CHANNEL_ERROR_BACKOFF_MS", "5000"),
            ("SELF_HOST_TENANT_NAME", "mine"),
            ("UPSTREAM_SUPABASE_URL", "https://ref.supabase.co/"),
        ])
        .unwrap();
        assert_eq!(config.server.channels_per_connection_max, 100);
        assert_eq!(config.server.connections_max, 200);
        assert_eq!(config.limits.events_per_second_max, 300);
        assert_eq!(config.limits.joins_per_second_max, 400);
        assert_eq!(config.limits.presence_events_per_window_max, 5);
        assert_eq!(config.limits.presence_window_ms, 30_001);
        assert_eq!(config.server.connect_error_backoff_ms, 2000);
        assert_eq!(config.server.join_error_backoff_ms, 5000);
        assert_eq!(config.server.tenant_name, "mine");
        assert_eq!(config.proxy.upstream_parts().unwrap().1.as_str(), "ref.supabase.co");
        // Beyond our bounds, the nearest value is taken; our own names are refused.
        let wait = |name| load(&[(name, "60000")]);
        assert_eq!(wait("CHANNEL_ERROR_BACKOFF_MS").unwrap().server.join_error_backoff_ms, 8000);
        assert!(wait("WALCAST_SERVER_JOIN_ERROR_BACKOFF_MS").is_err());
    }

    #[test]
    fn the_log_is_official_where_the_environment_is() {
        use crate::config::LogFormat;
        let format = |pairs: &[(&str, &str)]| load(pairs).unwrap().log.format;
        let official = [("DB_HOST", "db"), ("API_JWT_SECRET", SECRET)];
        assert_eq!(format(&official), LogFormat::Supabase);
        assert_eq!(format(&[official[0], official[1], ("LOG_FORMAT", "json")]), LogFormat::Json);
        assert_eq!(format(&official[..1]), LogFormat::Text);
        assert_eq!(format(&official[1..]), LogFormat::Text);
        assert_eq!(format(&[("LOG_FORMAT", "supabase")]), LogFormat::Supabase);
        // Names that others use as well mean nothing to us unless all of them are the container's.
        assert_eq!(loaded(&[("APP_NAME", "shop"), ("REGION", "x")]).unwrap().ignored, [""; 0]);
    }

    #[test]
    fn tls_of_the_official_names_reaches_the_url() {
        let url = |ssl: &str, ca: &str| {
            let pairs = [("DB_HOST", "::1"), ("DB_SSL", ssl), ("DB_SSL_CA_CERT", ca)];
            load(&pairs).unwrap().database.url.expose().to_owned()
        };
        assert_eq!(url("False", ""), "postgres://postgres@[::1]:5432/postgres");
        assert_eq!(url("True", ""), "postgres://postgres@[::1]:5432/postgres?sslmode=require");
        assert_eq!(
            url("1", "/ca.pem"),
            "postgres://postgres@[::1]:5432/postgres?sslmode=verify-full&sslrootcert=%2Fca%2Epem"
        );
        assert_eq!(
            load(&[("DB_HOST", "/run/pg")]).unwrap().database.url.expose(),
            "postgres://postgres@%2Frun%2Fpg:5432/postgres"
        );
        let error = load(&[("DB_HOST", "a"), ("DB_SSL", "perhaps")]).unwrap_err().to_string();
        assert!(error.starts_with("setting DB_SSL: "), "{error}");
        let error = load(&[("DB_HOST", "a"), ("DB_PORT", "x")]).unwrap_err().to_string();
        assert!(error.starts_with("setting DB_PORT: "), "{error}");
    }

    #[test]
    fn the_stronger_name_wins() {
        let secrets = |strong: &'static str, weak: &'static str| {
            let other = "another-secret-of-thirty-two-bytes-or-more";
            let config = load(&[(strong, SECRET), (weak, other)]).unwrap();
            assert_eq!(config.jwt.secret.expose(), SECRET, "{strong} over {weak}");
        };
        secrets("WALCAST_JWT_SECRET", "API_JWT_SECRET");
        secrets("API_JWT_SECRET", "SUPABASE_JWT_SECRET");
        secrets("SUPABASE_JWT_SECRET", "JWT_SECRET");
        let config = load(&[("DATABASE_URL", "postgres://a@b/c"), ("DB_HOST", "x")]).unwrap();
        assert_eq!(config.database.url.expose(), "postgres://a@b/c");
    }

    #[test]
    fn the_address_and_the_port_may_come_apart() {
        let bind = |pairs: &[(&str, &str)]| load(pairs).unwrap().server.bind.to_string();
        assert_eq!(bind(&[("PORT", "4001")]), "127.0.0.1:4001");
        assert_eq!(bind(&[("WALCAST_BIND", "0.0.0.0")]), "0.0.0.0:4000");
        assert_eq!(bind(&[("WALCAST_BIND", "[::]"), ("PORT", "5")]), "[::]:5");
        assert_eq!(bind(&[("WALCAST_BIND", "0.0.0.0:9"), ("PORT", "5")]), "0.0.0.0:9");
        let version = |bind, version| {
            let pairs = [("WALCAST_BIND", bind), ("REALTIME_IP_VERSION", version), ("PORT", "5")];
            load(&pairs).unwrap().server.bind.to_string()
        };
        assert_eq!(version("0.0.0.0", "IPv6"), "[::]:5");
        assert_eq!(version("::", "ipv4"), "0.0.0.0:5");
        assert_eq!(version("127.0.0.1", "ipv6"), "[::1]:5");
        assert_eq!(version("192.0.2.1", "ipv6"), "192.0.2.1:5");
        assert_eq!(version("0.0.0.0:7", "ipv6"), "[::]:7");
        assert_eq!(version("0.0.0.0", "whatever"), "0.0.0.0:5");
        refused("PORT", "70000");
        refused("WALCAST_BIND", "localhost:4000");
    }

    #[test]
    fn lists_maps_and_suffixes_are_read() {
        let config = load(&[
            ("PUBLICATIONS", "[\"a\", \"b\"]"),
            ("WALCAST_ROLES", "anon, authenticated"),
            ("JWT_CLAIM_VALIDATORS", "{\"iss\":\"me\",\"level\":2}"),
            ("SLOT_NAME_SUFFIX", "blue"),
            ("TENANT_MAX_CHANNELS_PER_CLIENT", "7"),
        ])
        .unwrap();
        assert_eq!(config.replication.publications, ["a", "b"]);
        assert_eq!(config.database.roles, ["anon", "authenticated"]);
        assert_eq!(config.jwt.required_claims["iss"], "me");
        assert_eq!(config.jwt.required_claims["level"], 2);
        assert_eq!(config.replication.slot, "walcast_blue");
        assert_eq!(config.server.channels_per_connection_max, 7);
    }

    #[test]
    fn a_secret_may_stand_in_a_file() {
        let path = file(&format!("{SECRET}\n"));
        let config = load(&[("WALCAST_JWT_SECRET_FILE", path.to_str().unwrap())]).unwrap();
        assert_eq!(config.jwt.secret.expose(), SECRET);
        let missing = load(&[("DATABASE_URL_FILE", "/nowhere/at/all")]).unwrap_err();
        assert!(matches!(missing, Error::Read { .. }));
    }

    #[test]
    fn wrong_values_are_refused_by_the_name_that_was_written() {
        refused("JWT_SECRET", "short");
        refused("WALCAST_SLOT", "Upper-Case");
        refused("SLOT_NAME_SUFFIX", "a-b");
        refused("WALCAST_SLOT", &"x".repeat(64));
        refused("WALCAST_PUBLICATIONS", " , ");
        refused("WALCAST_PUBLICATIONS", "a,a");
        refused("WALCAST_ROLES", "pg_read_all_data");
        refused("WALCAST_SERVER_IDLE_TIMEOUT_MS", "soon");
        refused("JWT_CLAIM_VALIDATORS", "[]");
        refused("JWT_CLAIM_VALIDATORS", "{\"a\":null}");
        refused("WALCAST_CHANGES_DELETE_MODE", "sometimes");
        refused("WALCAST_CHANGES_DELETE_MODE_BY_TABLE", "{\"t\":\"drop\"}");
        refused("WALCAST_CHANGES_ANNOUNCE_MOVE_OUT", "maybe");
        refused("WALCAST_LOG_FORMAT", "xml");
        refused("METRICS_JWT_SECRET", "short");
        refused("WALCAST_ORIGINS", "app.example");
        refused("WALCAST_ORIGINS", "https://app.example/path");
        refused("WALCAST_LIMITS_ADDRESS_HEADER", "x forwarded");
        refused("UPSTREAM_SUPABASE_URL", "ref.supabase.co");
        refused("UPSTREAM_SUPABASE_URL", "https://ref.supabase.co/rest/v1");
        refused("UPSTREAM_SUPABASE_URL", "https://user:password@ref.supabase.co");
    }

    #[test]
    fn no_error_repeats_a_secret() {
        let keys = load(&[("WALCAST_API_KEYS", "{\"sb_secret_hunter2\":\"anon\"}")]).unwrap();
        assert!(!format!("{keys:?}").contains("hunter2"));
        for name in ["DATABASE_URL", "WALCAST_CHECK_URL", "WALCAST_REPLICATION_URL", "JWT_SECRET"] {
            let error = refused(name, "hunter2");
            assert!(!error.contains("hunter2"), "{error}");
        }
        for text in [
            "[jwt]\nsecret = 987654321\n",
            "[database]\nurl = [\"hunter2\"]\n",
            "[jwt]\napi_keys = 987654321\n",
        ] {
            let error = Config::load(Some(&file(text)), [], []).unwrap_err().to_string();
            assert!(error.contains("line 2"), "{error}");
            assert!(!error.contains("987654321") && !error.contains("hunter2"), "{error}");
        }
        let shown = format!("{:?}", load(&[("JWT_SECRET", SECRET)]).unwrap());
        assert!(!shown.contains(SECRET));
    }

    #[test]
    fn a_file_error_names_the_line() {
        let path = file("[server]\n\nidle_timeout = 5\n");
        let error = Config::load(Some(&path), [], []).unwrap_err().to_string();
        assert!(error.contains("line 3") && error.contains("idle_timeout"), "{error}");
        let path = file("[server]\nidle_timeout_ms = 5\n");
        let error = Config::load(Some(&path), [], []).unwrap_err().to_string();
        assert!(error.starts_with("setting server.idle_timeout_ms: is 5"), "{error}");
    }

    #[test]
    fn serving_needs_a_database_and_a_key() {
        let problem = |pairs: &[(&str, &str)]| {
            load(pairs).unwrap().validate_for_serving().unwrap_err().to_string()
        };
        assert!(problem(&[]).contains("DATABASE_URL"));
        assert!(problem(&[("WALCAST_CHECK_URL", "postgres://a")]).contains("DATABASE_URL"));
        assert!(problem(&[("DATABASE_URL", "postgres://a")]).contains("WALCAST_JWT_SECRET"));
        let pairs = [
            ("WALCAST_CHECK_URL", "postgres://a"),
            ("WALCAST_REPLICATION_URL", "postgres://b"),
            ("WALCAST_JWKS", "{\"keys\":[]}"),
        ];
        load(&pairs).unwrap().validate_for_serving().unwrap();
    }

    #[test]
    fn unknown_names_of_ours_are_reported_not_refused() {
        // A Kubernetes service called walcast puts such names into every pod.
        let loaded = loaded(&[("WALCAST_SLOTT", "x"), ("WALCAST_PORT", "tcp://10.0.0.1:4000")]);
        assert_eq!(loaded.unwrap().ignored, ["WALCAST_PORT", "WALCAST_SLOTT"]);
    }
}
