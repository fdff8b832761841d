//! What settings must satisfy.
//!
//! In:     a [`Config`].
//! Out:    whether it can be, and the first setting that cannot.
//! Never:  a secret in an error.

use std::collections::BTreeSet;

use axum::http::{HeaderName, Uri};
use toml::{Table, Value};

use super::paths::{SECRETS, get};
use super::{Config, Error, invalid};

/// Least and greatest value of every number. A test keeps this list complete.
pub(super) const BOUNDS: &[(&str, i64, i64)] = &[
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
    ("replication.wal_budget_bytes", 1024 * 1024, 1024 * 1024 * 1024 * 1024 * 1024),
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
    ("server.stream_heartbeat_ms", 100, 600_000),
    ("server.stream_retry_ms", 100, 600_000),
    ("server.session_places_max", 0, 10_000_000),
    ("server.session_lifetime_ms", 0, 86_400_000),
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
    ("rest.rows_max", 0, 100_000_000),
    ("rest.pool_size", 1, 1_000),
    ("rest.wait_timeout_ms", 10, 60_000),
    ("rest.statement_timeout_ms", 10, 3_600_000),
    ("rest.body_bytes_max", 1024, 64 * 1024 * 1024),
    ("rest.key_lifetime_ms", 1_000, 2_592_000_000),
    ("rest.feed_wait_timeout_ms", 1, 60_000),
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
    pub(super) fn validate_as(&self, name: &dyn Fn(&str) -> String) -> Result<(), Error> {
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
        names(&self.rest.schemas, &name("rest.schemas"))?;
        for schema in &self.rest.schemas {
            if schema.starts_with("pg_") || schema == "information_schema" {
                let problem = format!("{schema} is not a schema that can be served");
                return Err(invalid(name("rest.schemas"), problem));
            }
        }
        if !self.rest.extra_search_path.is_empty() {
            names(&self.rest.extra_search_path, &name("rest.extra_search_path"))?;
        }
        if !self.rest.openapi_roles.is_empty() {
            names(&self.rest.openapi_roles, &name("rest.openapi_roles"))?;
        }
        if !self.rest.upstream.is_empty()
            && let Err(problem) = self.rest.upstream_parts()
        {
            return Err(invalid(name("rest.upstream"), problem));
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

/// Whether this is how a browser writes where a page is from.
fn is_origin(text: &str) -> bool {
    let Ok(uri) = text.parse::<Uri>() else { return false };
    uri.scheme().is_some()
        && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
        && matches!(uri.path(), "" | "/")
        && uri.query().is_none()
}
