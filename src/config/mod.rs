//! Every setting: its type, unit, default, bounds and effect.
//!
//! In:     built-in defaults, then a TOML file, then the environment, then flags; later ones win.
//! Out:    [`Config`], validated. Environment names are `WALCAST_<SECTION>_<FIELD>`, with the
//!         shorter and the official container's names besides (`environment`); a secret may
//!         also stand in a file named by `<NAME>_FILE`.
//! Never:  secrets from the command line; a setting that is accepted and then ignored.

mod bounds;
mod environment;
mod load;
mod paths;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use axum::http::Uri;
use axum::http::uri::{Authority, Scheme};
use serde::{Deserialize, Serialize};

pub use load::Loaded;

/// A value that must not reach a log: `Debug` prints `***`, and there is no `Display`.
#[derive(Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The secret itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether nothing was set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.0.is_empty() { "" } else { "***" })
    }
}

/// All settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How to reach Postgres.
    pub database: Database,
    /// The slot and what it reads.
    pub replication: Replication,
    /// How tokens are verified.
    pub jwt: Jwt,
    /// Row changes: what is shown, and how.
    pub changes: Changes,
    /// Presence: what members may show on a topic.
    pub presence: Presence,
    /// The listening socket and its clients.
    pub server: Server,
    /// What clients may take together.
    pub limits: Limits,
    /// Ordinary rows over HTTP.
    pub rest: Rest,
    /// The rest of a Supabase project behind the same URL.
    pub proxy: Proxy,
    /// What is logged, and how.
    pub log: Log,
}

/// How to reach Postgres, and as whom.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Database {
    /// Owner-like login, for installing. `DATABASE_URL`. No default.
    pub url: Secret,
    /// Login with REPLICATION and nothing else. Empty: one is made with `url` at each start.
    pub replication_url: Secret,
    /// NOINHERIT login that is a member of exactly `roles`. Empty: one is made at each start.
    pub check_url: Secret,
    /// Postgres roles that a token may name. A role outside this list is refused.
    pub roles: Vec<String>,
    /// `search_path` under which policies are evaluated: the one your API uses.
    pub search_path: String,
    /// Connections for subscription checks. Default 4, 1 to 100.
    pub pool_size: usize,
    /// Milliseconds one user's policies may take for one batch, or for one channel. Default 2000, 10 to 60000.
    pub check_timeout_ms: u64,
    /// Milliseconds all users' policies together may take for one batch; those not asked by then
    /// miss it and are told. Default 10000, 100 to 600000.
    pub batch_check_timeout_ms: u64,
    /// Milliseconds between the two snapshots of the recent past that decide who could see a row
    /// before it was deleted. Each is held for two intervals. Default 400, 50 to 5000.
    pub snapshot_interval_ms: u64,
    /// Connections for the checks of private channels; each client has one at a time. Default 4,
    /// 1 to 100.
    pub channel_pool_size: usize,
    /// Milliseconds that such a check may wait for one of them (`IncreaseConnectionPool`). Default
    /// 5000, 100 to 60000; clients wait 10 s for a join.
    pub channel_wait_timeout_ms: u64,
    /// Milliseconds to wait for a new connection. Default 5000, 100 to 60000.
    pub connect_timeout_ms: u64,
}

impl Default for Database {
    fn default() -> Self {
        Self {
            url: Secret::default(),
            replication_url: Secret::default(),
            check_url: Secret::default(),
            roles: ["anon", "authenticated", "service_role"].map(String::from).to_vec(),
            search_path: "\"$user\", public, extensions".into(),
            pool_size: 4,
            check_timeout_ms: 2000,
            batch_check_timeout_ms: 10_000,
            snapshot_interval_ms: 400,
            channel_pool_size: 4,
            channel_wait_timeout_ms: 5000,
            connect_timeout_ms: 5000,
        }
    }
}

/// The replication slot and what it reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Replication {
    /// Name of the permanent slot: `a-z 0-9 _`, at most 63 bytes.
    pub slot: String,
    /// Publications to read. The first is created, empty, when it is missing.
    pub publications: Vec<String>,
    /// Publication with `realtime.messages`, whose new rows are broadcast; its tables are not
    /// shown as row changes. Created when it is missing; where it cannot be, nothing is broadcast
    /// from the database until it exists. Empty: nothing ever is. Default
    /// `supabase_realtime_messages_publication`.
    pub messages_publication: String,
    /// `wal_sender_timeout` of our connection, in milliseconds: how long a dead link holds the
    /// slot. Default 10000, 1000 to 600000.
    pub sender_timeout_ms: u64,
    /// Bytes of WAL in one batch before it is handed on. Default 256 KiB, 4 KiB to 16 MiB. A
    /// transaction of up to four times as much comes in one piece, because who may see one of its
    /// rows may depend on others. One row that is larger makes a batch of its own.
    pub batch_bytes: usize,
    /// Batches read ahead of the publisher before the socket is left to fill. Default 4, 1 to 64.
    pub batches_ahead: usize,
    /// Milliseconds that a full read-ahead may wait for the publisher. Then the connection is given
    /// up, because a server that shuts down waits for its readers. Default 30000, 1000 to 600000.
    pub stall_timeout_ms: u64,
    /// Milliseconds by which the slot's confirmed position trails what was published.
    /// Default 60000, 0 to 3600000.
    pub replay_window_ms: u64,
    /// At most this many bytes of WAL are held back by that, and at most a quarter of
    /// `wal_budget_bytes`, whichever is less. Default 64 MiB, 0 to 64 GiB.
    pub replay_window_bytes: u64,
    /// Milliseconds that creating the slot may wait for running transactions. Default 60000,
    /// 1000 to 3600000.
    pub create_timeout_ms: u64,
    /// Bytes of WAL that the slot may keep on the server's disk. From 50 % on the log warns; from
    /// 80 % on the replay window is let go and sockets that take nothing are closed (1013); at
    /// 100 % the slot is given up, see `wal_give_up`. Default 16 GiB: hours of a busy server, and
    /// less than most disks have to spare. 1 MiB to 1 PiB.
    pub wal_budget_bytes: u64,
    /// Whether a slot that is over its budget is dropped and a new one made: changes in between
    /// are lost, and everybody is told so. Otherwise it is kept, and the server's disk may fill.
    /// Default true, because a full disk stops the database of everybody, and a declared gap costs
    /// each client one more read.
    pub wal_give_up: bool,
    /// Whether the slot is copied to standbys that copy slots, so that it outlives a failover.
    /// Default true. No effect before version 17.
    pub failover: bool,
}

impl Default for Replication {
    fn default() -> Self {
        Self {
            slot: "walcast".into(),
            publications: vec!["supabase_realtime".into()],
            messages_publication: "supabase_realtime_messages_publication".into(),
            sender_timeout_ms: 10_000,
            batch_bytes: 256 * 1024,
            batches_ahead: 4,
            stall_timeout_ms: 30_000,
            replay_window_ms: 60_000,
            replay_window_bytes: 64 * 1024 * 1024,
            create_timeout_ms: 60_000,
            wal_budget_bytes: 16 * 1024 * 1024 * 1024,
            wal_give_up: true,
            failover: true,
        }
    }
}

/// How tokens are verified.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Jwt {
    /// Shared secret for HS256, HS384 and HS512, at least 32 bytes. `WALCAST_JWT_SECRET`.
    pub secret: Secret,
    /// Key set for asymmetric tokens: the JSON itself, the path of a file that holds it, or the
    /// URL it is fetched from, again and again. `WALCAST_JWKS`.
    pub jwks: String,
    /// PEM file of the authorities that may vouch for the URL's host. Default empty: those of the
    /// machine.
    pub jwks_root_cert: String,
    /// Whether the URL may be `http://` also to another machine. Default false: whoever is between
    /// could put a key of its own into the set, and sign any token.
    pub jwks_plain_http: bool,
    /// Milliseconds after which the set is fetched again, sooner if its `max-age` says so: the
    /// longest time that a key taken out of it is still accepted. Default 600000, 10000 to
    /// 86400000.
    pub jwks_refresh_interval_ms: u64,
    /// Milliseconds between two fetches at least, whatever asks for them: a token that names an
    /// unknown key, a fetch that failed, a `max-age`. Only the tries at the start, until the first
    /// set is there, come faster. Default 30000, 1000 to 3600000.
    pub jwks_pause_ms: u64,
    /// Milliseconds one fetch may take, redirects included. Default 5000, 100 to 60000.
    pub jwks_timeout_ms: u64,
    /// Milliseconds that a set is used after its last good fetch; then tokens are refused until
    /// one succeeds. Default 86400000, 60000 to 2592000000.
    pub jwks_age_max_ms: u64,
    /// Milliseconds that a new socket or join waits for a fetch under way when its token names an
    /// unknown key. Default 2000, 0 to 8000.
    pub jwks_wait_ms: u64,
    /// Keys that are no tokens and stand for a role, as a JSON object:
    /// `{"sb_publishable_…": "anon"}`. Each begins with `sb_` and has at least 32 bytes.
    /// `required_claims` is not asked of them. `WALCAST_API_KEYS`.
    pub api_keys: Secret,
    /// Secret of the tokens that may read metrics, at least 32 bytes. Empty: everybody may who
    /// reaches the port. `METRICS_JWT_SECRET`.
    pub metrics_secret: Secret,
    /// Claims that must have exactly these values, as JSON. `JWT_CLAIM_VALIDATORS`.
    pub required_claims: BTreeMap<String, serde_json::Value>,
}

impl Default for Jwt {
    fn default() -> Self {
        Self {
            secret: Secret::default(),
            jwks: String::new(),
            jwks_root_cert: String::new(),
            jwks_plain_http: false,
            jwks_refresh_interval_ms: 600_000,
            jwks_pause_ms: 30_000,
            jwks_timeout_ms: 5_000,
            jwks_age_max_ms: 86_400_000,
            jwks_wait_ms: 2_000,
            api_keys: Secret::default(),
            metrics_secret: Secret::default(),
            required_claims: BTreeMap::new(),
        }
    }
}

/// What a DELETE shows when the old row is not enough to decide who could see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum DeleteMode {
    /// Only what is decided exactly is shown: the table needs `replica identity full` or an
    /// identity index over the columns its policies use.
    Full,
    /// The primary key, to every subscriber for whom a policy could be true.
    #[default]
    PkCompat,
    /// Nothing.
    Drop,
}

impl DeleteMode {
    /// The name in settings and in the subscribe reply.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::PkCompat => "pk_compat",
            Self::Drop => "drop",
        }
    }
}

/// Row changes: what is shown, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Changes {
    /// What a DELETE shows when its old row does not decide who could see it.
    pub delete_mode: DeleteMode,
    /// The same for single tables, by `schema.table`.
    pub delete_mode_by_table: BTreeMap<String, DeleteMode>,
    /// Whether a row that an update moves out of sight is announced as a DELETE of its key to
    /// those who could see it before. Default true.
    pub announce_move_out: bool,
    /// Bytes of one row's values above which long ones are left out (`Error 413`). Default 1 MiB,
    /// 1 KiB to 256 MiB.
    pub record_bytes_max: usize,
}

impl Changes {
    /// What a DELETE of this table shows when its old row does not decide.
    pub fn delete_mode_of(&self, schema: &str, table: &str) -> DeleteMode {
        if self.delete_mode_by_table.is_empty() {
            return self.delete_mode;
        }
        let name = format!("{schema}.{table}");
        self.delete_mode_by_table.get(&name).copied().unwrap_or(self.delete_mode)
    }
}

impl Default for Changes {
    fn default() -> Self {
        Self {
            delete_mode: DeleteMode::default(),
            delete_mode_by_table: BTreeMap::new(),
            announce_move_out: true,
            record_bytes_max: 1024 * 1024,
        }
    }
}

/// Presence: what members may show on a topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Presence {
    /// Bytes of the JSON that one channel tracks; a larger one closes the channel. Default 64 KiB,
    /// 256 to 1 MiB.
    pub meta_bytes_max: usize,
    /// Names in that object; with more it is refused. Default 1000, 1 to 100000.
    pub meta_keys_max: usize,
    /// Bytes of a channel's presence key. Default 1024, 64 to 64 KiB.
    pub key_bytes_max: usize,
    /// Channels that track something on one topic; more are refused. Default 100000, 1 to
    /// 10000000.
    pub members_max: usize,
    /// Bytes of the state of one topic, which every channel is sent that joins it; what does not
    /// fit is refused. Default 16 MiB, 64 KiB to 1 GiB.
    pub topic_bytes_max: usize,
    /// Bytes tracked on all topics together, with 256 more for each channel; what does not fit is
    /// refused. They take up to three times as much memory. Default 256 MiB, 64 KiB to 64 GiB.
    pub bytes_max: usize,
    /// Milliseconds between two diffs of a large topic at most: 0.05 for each receiver, if there
    /// are more than 32. Default 200, 0 to 10000. With 0 each change is a diff of its own.
    pub diff_interval_max_ms: u64,
}

impl Default for Presence {
    fn default() -> Self {
        Self {
            meta_bytes_max: 64 * 1024,
            meta_keys_max: 1000,
            key_bytes_max: 1024,
            members_max: 100_000,
            topic_bytes_max: 16 * 1024 * 1024,
            bytes_max: 256 * 1024 * 1024,
            diff_interval_max_ms: 200,
        }
    }
}

/// The listening socket and its clients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Address to listen on. Default `127.0.0.1:4000`.
    pub bind: SocketAddr,
    /// Sockets at once; more get 503. Default 100000, 1 to 10000000.
    pub connections_max: usize,
    /// Connections at once that are not sockets, or not yet; more get 503. Default 10000, 1 to
    /// 1000000. Each can hold `header_bytes_max`.
    pub http_connections_max: usize,
    /// Channels on one socket. Default 1000, 1 to 100000.
    pub channels_per_connection_max: usize,
    /// Subscriptions to row changes in one join; a join with more is refused. Default 100, 1 to
    /// 10000.
    pub subscriptions_per_channel_max: usize,
    /// Bytes of one incoming frame or message; a larger one closes the socket with 1009.
    /// Default 5000000, 1 KiB to 64 MiB.
    pub frame_bytes_max: usize,
    /// Bytes of messages that have begun to come and not ended, over all sockets, and of broadcasts
    /// over HTTP that are not answered; beyond it the socket that asks for more is closed with
    /// 1013, the request gets 429. Default 256 MiB, at least `frame_bytes_max`.
    pub unfinished_bytes_max: usize,
    /// Bytes queued for one slow client before it is closed. Default 16 MiB, 64 KiB to 1 GiB. One
    /// frame that is larger still passes when nothing else is queued.
    pub outbox_bytes_max: usize,
    /// Bytes of the request line and headers. Default 64 KiB, 16 KiB to 1 MiB.
    pub header_bytes_max: usize,
    /// Milliseconds a client may take to send its request. Default 10000, 100 to 120000.
    pub header_timeout_ms: u64,
    /// Milliseconds the body of a broadcast over HTTP may take to come; then 408. Default 30000,
    /// 100 to 600000.
    pub body_timeout_ms: u64,
    /// Milliseconds without anything coming in before a socket is closed with 1000, and without
    /// anything being taken before the kernel gives a connection up. Default 60000, 1000 to
    /// 3600000.
    pub idle_timeout_ms: u64,
    /// Milliseconds between two comments on an event stream over HTTP, by which both ends notice
    /// that the other is gone. Default 15000, 100 to 600000.
    pub stream_heartbeat_ms: u64,
    /// Milliseconds that an event stream's client is told to wait before it comes back; each is
    /// told up to half more or less, so that not all come at once. Default 2000, 100 to 600000.
    pub stream_retry_ms: u64,
    /// How far clients have come that name a `session` in their URL: one a channel, of all of them.
    /// If there are more, those go first whose client has been away for longest, and it begins anew
    /// when it comes back. Each takes some 400 bytes. Default 100000, 0 to 10000000.
    pub session_places_max: usize,
    /// Milliseconds for which that is remembered of a client that is away. What happened meanwhile
    /// is there for as long as `replication.replay_window_ms` says; whoever is away for longer than
    /// that is told what he missed. Default 3600000, 0 to 86400000.
    pub session_lifetime_ms: u64,
    /// Milliseconds before a refused socket is answered, for the same reason. Default 500, 0 to
    /// 8000.
    pub connect_error_backoff_ms: u64,
    /// Milliseconds before a failed join is answered, so that clients in a retry loop are slowed.
    /// Default 500, 0 to 8000: it must stay well below the clients' 10 s.
    pub join_error_backoff_ms: u64,
    /// Milliseconds that a stop may take to say goodbye to clients. Default 5000, 0 to 60000.
    pub drain_timeout_ms: u64,
    /// What `/api/tenants` calls this service. `SELF_HOST_TENANT_NAME`. Default `realtime-dev`.
    pub tenant_name: String,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from(([127, 0, 0, 1], 4000)),
            connections_max: 100_000,
            http_connections_max: 10_000,
            channels_per_connection_max: 1000,
            subscriptions_per_channel_max: 100,
            frame_bytes_max: 5_000_000,
            unfinished_bytes_max: 256 * 1024 * 1024,
            outbox_bytes_max: 16 * 1024 * 1024,
            header_bytes_max: 64 * 1024,
            header_timeout_ms: 10_000,
            body_timeout_ms: 30_000,
            idle_timeout_ms: 60_000,
            stream_heartbeat_ms: 15_000,
            stream_retry_ms: 2_000,
            session_places_max: 100_000,
            session_lifetime_ms: 3_600_000,
            connect_error_backoff_ms: 500,
            join_error_backoff_ms: 500,
            drain_timeout_ms: 5_000,
            tenant_name: "realtime-dev".into(),
        }
    }
}

/// What clients may take together. Row changes are never dropped by a rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Joins a second, of all clients together. Default 100000, 1 to 10000000.
    pub joins_per_second_max: usize,
    /// Joins a second of one connection; more close it with 1001. Default 5000, 1 to 10000000.
    pub connection_joins_per_second_max: usize,
    /// Broadcasts and presence messages a second that clients may send, all together. Default
    /// 1000000, 1 to 100000000.
    pub events_per_second_max: usize,
    /// The same of one connection; more are refused, and their sender told. Default 10000, 1 to
    /// 100000000.
    pub connection_events_per_second_max: usize,
    /// Presence messages of one client on one channel in `presence_window_ms`. Default 1000, 1 to
    /// 1000000.
    pub presence_events_per_window_max: usize,
    /// Milliseconds over which those are counted. Default 30000, 100 to 3600000.
    pub presence_window_ms: u64,
    /// Bytes of one broadcast's payload. Default 3000000, 1 KiB to 64 MiB.
    pub payload_bytes_max: usize,
    /// Messages in one HTTP request to broadcast; with more it gets 429, and none is sent. Default
    /// 10000, 1 to 1000000.
    pub batch_messages_max: usize,
    /// Bytes of such a request, all its messages together; with more it gets 413. Default 8000000,
    /// 1 KiB to 64 MiB.
    pub batch_bytes_max: usize,
    /// Whether every channel must be private. Default false.
    pub private_only: bool,
    /// Sockets of one address (of one /64 in IPv6); more get 429. 0: as many as it likes, because
    /// behind a proxy without `address_header` all clients have one address. Default 0, 0 to
    /// 10000000.
    pub connections_per_ip_max: usize,
    /// Sockets of one user (the `sub` of a token). 0: as many as it likes. Default 0, 0 to
    /// 10000000.
    pub connections_per_user_max: usize,
    /// Header in which a proxy in front of walcast names the client, such as `x-forwarded-for`:
    /// its last entry counts. Name one only if every client comes through that proxy, because
    /// others could claim any address. Default none.
    pub address_header: String,
    /// Web origins (`https://app.example`) that may open sockets and read answers; empty: all.
    /// Clients that are no browser send none, and are not held up.
    pub origins: Vec<String>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            joins_per_second_max: 100_000,
            connection_joins_per_second_max: 5_000,
            events_per_second_max: 1_000_000,
            connection_events_per_second_max: 10_000,
            presence_events_per_window_max: 1000,
            presence_window_ms: 30_000,
            payload_bytes_max: 3_000_000,
            batch_messages_max: 10_000,
            batch_bytes_max: 8_000_000,
            private_only: false,
            connections_per_ip_max: 0,
            connections_per_user_max: 0,
            address_header: String::new(),
            origins: Vec::new(),
        }
    }
}

/// Who answers `/rest/v1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum RestService {
    /// We do, unless `proxy.upstream` is set: then it is passed through.
    #[default]
    Auto,
    /// We do.
    On,
    /// We do not.
    Off,
}

/// Ordinary rows over HTTP, under `/rest/v1`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rest {
    /// Whether it is served here. Default `auto`: unless `proxy.upstream` is set.
    pub serve: RestService,
    /// Whether the same paths are served without `/rest/v1`, too, as a gateway that takes it off
    /// asks for them. Our own paths (`/status`, `/metrics` and their like) stay ours. Default false.
    pub at_root: bool,
    /// Schemas whose relations and functions are served; the first is what is meant when a request
    /// names none. `PGRST_DB_SCHEMAS`. Default `public`.
    pub schemas: Vec<String>,
    /// Schemas that the `search_path` has behind the request's own, for operators, types and
    /// functions of extensions. `PGRST_DB_EXTRA_SEARCH_PATH`. Default `public`, `extensions`.
    pub extra_search_path: Vec<String>,
    /// Role of requests without a token; one of `database.roles`. Empty, or not one of them: such
    /// requests get 401. `PGRST_DB_ANON_ROLE`. Default `anon`.
    pub anon_role: String,
    /// Rows of one answer; more are left out, which `Content-Range` shows. 0: as many as there
    /// are. `PGRST_DB_MAX_ROWS`. Default 1000, 0 to 100000000.
    pub rows_max: u64,
    /// Connections, each of which runs one request at a time. `PGRST_DB_POOL`. Default 10, 1 to
    /// 1000.
    pub pool_size: usize,
    /// Milliseconds that a request may wait for one of them; then 504. Default 10000, 10 to 60000.
    pub wait_timeout_ms: u64,
    /// Milliseconds that one statement may take; a lower `statement_timeout` of its role is kept.
    /// Default 8000, 10 to 3600000.
    pub statement_timeout_ms: u64,
    /// Bytes of one request's body; with more it gets 413. Default 8000000, 1 KiB to 64 MiB.
    pub body_bytes_max: usize,
    /// Whether PATCH and DELETE without a filter change every row. Default false: they get 400.
    pub unfiltered_writes: bool,
    /// Whether events of rows that were written here carry the `sub` of whoever wrote them, for
    /// everybody who sees the row. Default true.
    pub tell_author: bool,
    /// Milliseconds that the answer to a write with an `Idempotency-Key` is kept. Default 86400000
    /// (a day), 1000 to 2592000000 (30 days).
    pub key_lifetime_ms: u64,
    /// Milliseconds that `Prefer: wait=feed`, and the answer to a command of Socket.IO, wait until the
    /// write has been published; then it is answered all the same, without saying that it was, or
    /// where. Default 5000, 1 to 60000.
    pub feed_wait_timeout_ms: u64,
    /// Roles that are told what is served, as an `OpenAPI` document. Default `service_role`.
    pub openapi_roles: Vec<String>,
    /// A `PostgREST` that gets the requests for what is not implemented here, such as
    /// `http://rest:3000`. Empty: they get 400. `REST_UPSTREAM`.
    pub upstream: String,
}

impl Default for Rest {
    fn default() -> Self {
        Self {
            serve: RestService::default(),
            at_root: false,
            schemas: vec!["public".into()],
            extra_search_path: vec!["public".into(), "extensions".into()],
            anon_role: "anon".into(),
            rows_max: 1000,
            pool_size: 10,
            wait_timeout_ms: 10_000,
            statement_timeout_ms: 8_000,
            body_bytes_max: 8_000_000,
            unfiltered_writes: false,
            tell_author: true,
            key_lifetime_ms: 86_400_000,
            feed_wait_timeout_ms: 5_000,
            openapi_roles: vec!["service_role".into()],
            upstream: String::new(),
        }
    }
}

impl Rest {
    /// Where `upstream` is: its origin, and the path before those of its tables.
    ///
    /// # Errors
    /// What it must be.
    pub(crate) fn upstream_parts(&self) -> Result<(String, String), &'static str> {
        let problem = "must be written http://host:port, or https://host/path";
        let uri: Uri = self.upstream.parse().map_err(|_| problem)?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(problem);
        };
        if uri.query().is_some() {
            return Err(problem);
        }
        let origin = format!("{scheme}://{authority}");
        let proxy = Proxy { upstream: origin.clone(), ..Proxy::default() };
        proxy.upstream_parts().map_err(|_| problem)?;
        Ok((origin, uri.path().trim_end_matches('/').to_owned()))
    }
}

/// The rest of a Supabase project behind the same URL: `/auth/v1`, `/rest/v1`, `/storage/v1`,
/// `/functions/v1` and `/graphql/v1` are passed through; `/rest/v1` unless `rest.serve` says
/// otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Proxy {
    /// Where they are, such as `https://ref.supabase.co`. Empty: nowhere.
    /// `UPSTREAM_SUPABASE_URL`.
    pub upstream: String,
    /// Requests passed through at once; more get 503. Default 1024, 1 to 100000.
    pub requests_max: usize,
    /// Milliseconds to wait for a connection. Default 10000, 100 to 60000.
    pub connect_timeout_ms: u64,
    /// Milliseconds without a byte in either direction before a request is given up: 504 while
    /// there is no answer, a cut body afterwards. Default 300000, 1000 to 3600000.
    pub silence_max_ms: u64,
}

impl Default for Proxy {
    fn default() -> Self {
        Self {
            upstream: String::new(),
            requests_max: 1024,
            connect_timeout_ms: 10_000,
            silence_max_ms: 300_000,
        }
    }
}

impl Proxy {
    /// Scheme and authority of `upstream`.
    ///
    /// # Errors
    /// What it must be.
    pub(crate) fn upstream_parts(&self) -> Result<(Scheme, Authority), &'static str> {
        let problem = "must be written https://host or http://host:port, without a path";
        let uri: Uri = self.upstream.parse().map_err(|_| problem)?;
        let is_bare = matches!(uri.path(), "" | "/") && uri.query().is_none();
        let parts = uri.into_parts();
        match (parts.scheme, parts.authority) {
            (Some(scheme), Some(authority))
                if is_bare
                    && (scheme == Scheme::HTTP || scheme == Scheme::HTTPS)
                    && !authority.as_str().contains('@') =>
            {
                Ok((scheme, authority))
            }
            _ => Err(problem),
        }
    }
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One readable line an event.
    #[default]
    Text,
    /// One JSON object an event.
    Json,
    /// `HH:MM:SS.mmm [level] text`, in UTC, as the official container writes: Studio's log page
    /// reads it. The default where the official container's environment is found.
    Supabase,
}

/// What is logged, and how. Lines go to standard error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`, also by module: `info,walcast::wal=debug`.
    /// `WALCAST_LOG`. Default `info`.
    pub filter: String,
    /// `text`, `json` or `supabase`. `LOG_FORMAT`. Default `text`.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".into(), format: LogFormat::default() }
    }
}

/// Why settings were refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("cannot read the file {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not valid. No part of its text is repeated here: it may hold secrets.
    #[error("the settings file {path}, line {line}: {problem}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
        /// Why.
        problem: String,
    },
    /// One value is out of its bounds or malformed.
    #[error("setting {name}: {problem}")]
    Invalid {
        /// The setting's name as the user wrote it.
        name: String,
        /// What is wrong and what would be right.
        problem: String,
    },
}

impl Config {
    /// Whether `/rest/v1` is answered here.
    pub fn serves_rest(&self) -> bool {
        match self.rest.serve {
            RestService::Auto => self.proxy.upstream.is_empty(),
            RestService::On => true,
            RestService::Off => false,
        }
    }
}

fn invalid(name: impl Into<String>, problem: impl Into<String>) -> Error {
    Error::Invalid { name: name.into(), problem: problem.into() }
}

impl Replication {
    /// The replay window in bytes: what the budget leaves of it.
    pub fn replay_window(&self) -> u64 {
        self.replay_window_bytes.min(self.wal_budget_bytes / 4)
    }

    /// `sender_timeout_ms` as a duration.
    pub fn sender_timeout(&self) -> Duration {
        Duration::from_millis(self.sender_timeout_ms)
    }
}
