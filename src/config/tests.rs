//! Settings as they are written, and the configuration that comes of it.

use std::ops::Deref;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::bounds::BOUNDS;
use super::environment::ALIASES;
use super::paths::{defaults, get, paths};
use super::{Config, Error, Loaded};

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
            Value::Array(_) if path == "limits.origins" => "https://a.example,http://b:1".into(),
            Value::Array(_) => "one,two".into(),
            Value::Table(_) => "{\"public.t\":\"drop\"}".into(),
            Value::String(_) if path.ends_with(".upstream") => "https://ref.supabase.co".into(),
            Value::String(_) if path == "limits.address_header" => "x-forwarded-for".into(),
            Value::String(text) if text.is_empty() => format!("postgres://{SECRET}"),
            Value::String(text) => text.clone(),
            Value::Float(_) | Value::Datetime(_) => panic!("{path} has an unknown kind"),
        };
        let loaded = loaded(&[(&name, &text)]).unwrap_or_else(|error| panic!("{name}: {error}"));
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
fn rows_are_served_here_unless_they_are_passed_through() {
    let serves = |pairs: &[(&str, &str)]| load(pairs).unwrap().serves_rest();
    let upstream = ("UPSTREAM_SUPABASE_URL", "https://ref.supabase.co");
    assert!(serves(&[]));
    assert!(!serves(&[upstream]));
    assert!(serves(&[upstream, ("WALCAST_REST_SERVE", "on")]));
    assert!(!serves(&[("WALCAST_REST_SERVE", "off")]));
}

#[test]
fn names_of_postgrest_are_understood() {
    let config = load(&[
        ("PGRST_DB_SCHEMAS", "api, public"),
        ("PGRST_DB_EXTRA_SEARCH_PATH", "public"),
        ("PGRST_DB_MAX_ROWS", "10"),
        ("PGRST_DB_POOL", "3"),
        ("PGRST_DB_ANON_ROLE", "web"),
        ("REST_UPSTREAM", "https://ref.supabase.co/rest/v1/"),
    ]);
    let rest = config.unwrap().rest;
    assert_eq!(rest.schemas, ["api", "public"]);
    assert_eq!(rest.extra_search_path, ["public"]);
    assert_eq!((rest.rows_max, rest.pool_size, &*rest.anon_role), (10, 3, "web"));
    let parts = rest.upstream_parts().unwrap();
    assert_eq!(parts, ("https://ref.supabase.co".into(), "/rest/v1".into()));
    let rest = crate::config::Rest { upstream: "http://rest:3000".into(), ..rest };
    assert_eq!(rest.upstream_parts().unwrap(), ("http://rest:3000".into(), String::new()));
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
    refused("PGRST_DB_SCHEMAS", "public,pg_catalog");
    refused("PGRST_DB_SCHEMAS", "a,a");
    refused("REST_UPSTREAM", "rest:3000");
    refused("REST_UPSTREAM", "http://user@rest:3000");
    refused("REST_UPSTREAM", "http://rest:3000/?a=b");
    refused("WALCAST_REST_SERVE", "perhaps");
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
