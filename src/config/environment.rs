//! Names in the environment: ours, and those of the official container.
//!
//! In:     pairs of names and values.
//! Out:    which setting a name means; what several names say together; names set in vain.
//! Never:  reads the process' environment itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::paths::{SECRETS, paths};
use super::{Error, invalid};

/// Environment names besides `WALCAST_<SECTION>_<NAME>`, for each setting the strongest first.
///
/// The official container's names are here so that its compose file works unchanged; `SLOT_NAME`
/// and `PUBLICATIONS` are what its older documentation calls them.
pub(super) const ALIASES: &[(&str, &str)] = &[
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
    ("PGRST_DB_SCHEMAS", "rest.schemas"),
    ("PGRST_DB_EXTRA_SEARCH_PATH", "rest.extra_search_path"),
    ("PGRST_DB_ANON_ROLE", "rest.anon_role"),
    ("PGRST_DB_MAX_ROWS", "rest.rows_max"),
    ("PGRST_DB_POOL", "rest.pool_size"),
    ("REST_UPSTREAM", "rest.upstream"),
    ("UPSTREAM_SUPABASE_URL", "proxy.upstream"),
    ("CHANNEL_ERROR_BACKOFF_MS", "server.join_error_backoff_ms"),
    ("WALCAST_LOG", "log.filter"),
    ("LOG_LEVEL", "log.filter"),
    ("LOG_FORMAT", "log.format"),
];

/// Numbers of the official container that may be beyond what ours can be: the nearest that can is
/// taken, because its compose file must not stop the service.
pub(super) const CLAMPED: &[&str] = &[
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
    #[cfg(feature = "kill-points")]
    "WALCAST_KILL_POINT",
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

/// The environment names of one setting, the strongest first.
pub(super) fn names_of(path: &str) -> impl Iterator<Item = String> {
    let own = format!("WALCAST_{}", path.replace('.', "_").to_uppercase());
    let aliases = ALIASES.iter().filter(move |(_, aliased)| *aliased == path);
    let mut names = vec![own];
    names.extend(aliases.map(|(name, _)| (*name).to_owned()));
    names.into_iter()
}

/// The official container's `DB_*` set as one URL.
pub(super) fn official_url(
    host: &str,
    environment: &BTreeMap<String, String>,
) -> Result<String, Error> {
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
pub(super) fn is_official(environment: &BTreeMap<String, String>) -> bool {
    environment.contains_key("DB_HOST")
        && OFFICIAL_MARKS.iter().any(|name| environment.contains_key(*name))
}

/// Names that were set in vain: typing errors of ours, and official ones without meaning.
pub(super) fn ignored(environment: &BTreeMap<String, String>) -> Vec<String> {
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

/// `true`, `yes`, `on`, `1` and their opposites, in any case.
pub(super) fn boolean(name: &str, text: &str) -> Result<bool, Error> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" | "t" | "y" => Ok(true),
        "false" | "no" | "off" | "0" | "f" | "n" => Ok(false),
        _ => Err(invalid(name, "must be true or false")),
    }
}
