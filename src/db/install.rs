//! The SQL objects applications rely on: made where they are missing, adopted where they exist.
//!
//! In:     an owner-like login; `migrations/`, `sql/install/`, `sql/functions/`.
//! Out:    [`Report`]: what was made, what was there already, what was left out and why.
//! Never:  alters, replaces or drops what it did not make; adds to a schema that another
//!         product's migrations keep. `walcast.objects` is the record of what it made.

use std::fmt;
use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, GenericClient};
use tracing::{debug, info, warn};

use crate::config::Config;
use crate::db::{Login, logins};

mod migrations {
    refinery::embed_migrations!("migrations");
}

/// Where refinery keeps what it ran.
const HISTORY_TABLE: &str = "walcast.migrations";

/// The advisory lock of one installation in a database: "walcast" in ASCII.
const LOCK_KEY: i64 = 0x77_61_6c_63_61_73_74;

/// How long another installation, or a lock on `realtime.messages`, is waited for.
const SESSION: &str = "set search_path = ''; set standard_conforming_strings = on; \
    set client_min_messages = warning; set lock_timeout = '15s'; set statement_timeout = '60s'";

/// How long a partition's drop may wait, and so keep those waiting who write messages.
const IN_PASSING: &str = "set lock_timeout = '300ms'";

/// How often an object is looked at again after losing a race with another installation: roles
/// belong to the cluster, and each database has a lock of its own.
const RACES_MAX: u32 = 20;

/// Partitions of `realtime.messages` that we made are dropped when they are older than this.
const KEEP_DAYS: i32 = 3;

/// Lets a check login keep requests in our schema.
pub(super) const ADD_LOGIN: &str =
    "insert into walcast.logins (name) values ($1) on conflict do nothing";

/// Why nothing, or not all, was installed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// See there.
    #[error(transparent)]
    Connect(#[from] super::Error),
    /// Another installation holds the lock: try again.
    #[error("another installation is running in this database")]
    Busy,
    /// Somebody else's schema has our name: a person must decide. A superuser must not go on:
    /// what the owner puts there would run with the superuser's rights.
    #[error(
        "schema walcast belongs to {owner}; run this as {owner}, or uninstall as {owner} before"
    )]
    Foreign {
        /// Whose it is.
        owner: String,
    },
    /// This login may not make our own schema: give a better one.
    #[error(
        "this login may not create schema walcast; run: grant create on database {database} to {user}"
    )]
    Refused {
        /// The database.
        database: String,
        /// The login.
        user: String,
    },
    /// Our tables could not be made.
    #[error("cannot migrate schema walcast")]
    Migration(#[source] Box<refinery::Error>),
    /// A statement failed.
    #[error("cannot install {what}")]
    Statement {
        /// What was being made.
        what: String,
        /// Why not.
        source: tokio_postgres::Error,
    },
}

/// What an installation did. Names are written `kind name`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    /// What was missing and is there now, and functions brought up to date.
    pub created: Vec<String>,
    /// What was there and stays as it is.
    pub kept: Vec<String>,
    /// What was left out, and why.
    pub skipped: Vec<(String, String)>,
}

/// What a removal did. Names are written `kind name`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Removal {
    /// What is gone.
    pub dropped: Vec<String>,
    /// What stays, and why.
    pub kept: Vec<(String, String)>,
}

/// What kinds of objects there are; the text is the one in `walcast.objects`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Role,
    Schema,
    Type,
    Table,
    Function,
    Publication,
    EventTrigger,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Role => "role",
            Self::Schema => "schema",
            Self::Type => "type",
            Self::Table => "table",
            Self::Function => "function",
            Self::Publication => "publication",
            Self::EventTrigger => "event trigger",
        }
    }
}

/// One thing to have.
struct Object {
    kind: Kind,
    name: String,
    sql: String,
}

impl Object {
    fn new(kind: Kind, name: impl Into<String>, sql: impl Into<String>) -> Self {
        Self { kind, name: name.into(), sql: sql.into() }
    }

    /// The schema it lives in, for those that live in one.
    fn schema(&self) -> Option<&str> {
        match self.kind {
            Kind::Type | Kind::Table | Kind::Function => self.name.split('.').next(),
            Kind::Role | Kind::Schema | Kind::Publication | Kind::EventTrigger => None,
        }
    }

    /// The text between the quotes of a function, which is what `prosrc` holds.
    fn body(&self) -> Option<&str> {
        (self.kind == Kind::Function).then(|| self.sql.split("$function$").nth(1)).flatten()
    }
}

impl Object {
    /// Functions that find out themselves who calls them, or do nothing that the caller could not.
    fn is_for_all(&self) -> bool {
        let for_all = [
            "begin_request",
            "end_request",
            "mappings_at",
            "look_up",
            "mapping_of",
            "check_",
            "declare",
            "undeclare",
            "map_",
            "unmap_",
            "explain_mapping",
            "events_of",
            "topic",
            "profile",
            "unprofile",
            "room",
            "unroom",
            "command",
            "uncommand",
            "relay",
            "unrelay",
            "presence",
            "unpresence",
        ];
        let name = self.name.strip_prefix("walcast.");
        name.is_some_and(|name| for_all.iter().any(|prefix| name.starts_with(prefix)))
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.name)
    }
}

/// What `sql/install/find.sql` says about one object.
struct Found {
    owner: String,
    ours: bool,
    recorded: bool,
    body: Option<String>,
    recorded_body: Option<String>,
}

/// `create role` for the roles that tokens name by default; others are the user's to make.
const ROLES: &[(&str, &str)] = &[
    ("anon", "create role anon nologin noinherit"),
    ("authenticated", "create role authenticated nologin noinherit"),
    ("service_role", "create role service_role nologin noinherit bypassrls"),
];

const TYPES: &[(&str, &str)] = &[
    (
        "realtime.action",
        "create type realtime.action as enum ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'ERROR')",
    ),
    (
        "realtime.equality_op",
        "create type realtime.equality_op as enum ('eq', 'neq', 'lt', 'lte', 'gt', 'gte', 'in', \
         'like', 'ilike', 'is', 'match', 'imatch', 'isdistinct')",
    ),
    (
        "realtime.user_defined_filter",
        "create type realtime.user_defined_filter as (column_name text, \
         op realtime.equality_op, value text, negate boolean)",
    ),
    (
        "realtime.wal_column",
        "create type realtime.wal_column as (name text, type_name text, type_oid oid, \
         value jsonb, is_pkey boolean, is_selectable boolean)",
    ),
    (
        "realtime.wal_rls",
        "create type realtime.wal_rls as (wal jsonb, is_rls_enabled boolean, \
         subscription_ids uuid[], errors text[])",
    ),
];

const FUNCTIONS: &[(&str, &str)] = &[
    ("auth.uid()", include_str!("../../sql/functions/auth.uid.sql")),
    ("auth.role()", include_str!("../../sql/functions/auth.role.sql")),
    ("auth.jwt()", include_str!("../../sql/functions/auth.jwt.sql")),
    ("realtime.topic()", include_str!("../../sql/functions/realtime.topic.sql")),
    (
        "realtime.send(jsonb, text, text, boolean)",
        include_str!("../../sql/functions/realtime.send.sql"),
    ),
    (
        "realtime.send_binary(bytea, text, text, boolean)",
        include_str!("../../sql/functions/realtime.send_binary.sql"),
    ),
    (
        "realtime.broadcast_changes(text, text, text, text, text, record, record, text)",
        include_str!("../../sql/functions/realtime.broadcast_changes.sql"),
    ),
    ("walcast.announce_ddl()", include_str!("../../sql/functions/walcast.announce_ddl.sql")),
    (
        "walcast.begin_request(text, text, text, interval)",
        include_str!("../../sql/functions/walcast.begin_request.sql"),
    ),
    (
        "walcast.end_request(text, text, text)",
        include_str!("../../sql/functions/walcast.end_request.sql"),
    ),
    (
        "walcast.route(text, text, text, text, text, text, jsonb)",
        include_str!("../../sql/functions/walcast.route.sql"),
    ),
    ("walcast.unroute(text, text)", include_str!("../../sql/functions/walcast.unroute.sql")),
    (
        "walcast.guard_call(oid, text, text[])",
        include_str!("../../sql/functions/walcast.guard_call.sql"),
    ),
    ("walcast.unguard_topic(text)", include_str!("../../sql/functions/walcast.unguard_topic.sql")),
    (
        "walcast.guard_topic(text, regclass, regproc, text, text[], name[])",
        include_str!("../../sql/functions/walcast.guard_topic.sql"),
    ),
    (
        "walcast.announce_mapping()",
        include_str!("../../sql/functions/walcast.announce_mapping.sql"),
    ),
    ("walcast.stamp_mapping()", include_str!("../../sql/functions/walcast.stamp_mapping.sql")),
    (
        "walcast.mappings_at(pg_lsn, text)",
        include_str!("../../sql/functions/walcast.mappings_at.sql"),
    ),
    (
        "walcast.look_up(bigint, integer, text, text[], jsonb)",
        include_str!("../../sql/functions/walcast.look_up.sql"),
    ),
    ("walcast.mapping_of(oid)", include_str!("../../sql/functions/walcast.mapping_of.sql")),
    (
        "walcast.check_mapping_columns(regclass, text[], text)",
        include_str!("../../sql/functions/walcast.check_mapping_columns.sql"),
    ),
    (
        "walcast.check_mapping_topic(regclass, text, text)",
        include_str!("../../sql/functions/walcast.check_mapping_topic.sql"),
    ),
    ("walcast.topic_shape(oid, text)", include_str!("../../sql/functions/walcast.topic_shape.sql")),
    (
        "walcast.topics_meet(text, text)",
        include_str!("../../sql/functions/walcast.topics_meet.sql"),
    ),
    (
        "walcast.check_mapping_collisions(regclass, jsonb)",
        include_str!("../../sql/functions/walcast.check_mapping_collisions.sql"),
    ),
    (
        "walcast.declare_mapping(regclass, jsonb)",
        include_str!("../../sql/functions/walcast.declare_mapping.sql"),
    ),
    (
        "walcast.map_table(regclass, text, text, text[], text, text[], text[], text[], text, text, text, text, text, text[], boolean)",
        include_str!("../../sql/functions/walcast.map_table.sql"),
    ),
    (
        "walcast.map_event(regclass, text, boolean, boolean, text[], boolean, boolean, jsonb, jsonb, text, text[], text[], jsonb, jsonb, text, boolean, boolean, text)",
        include_str!("../../sql/functions/walcast.map_event.sql"),
    ),
    ("walcast.unmap_table(regclass)", include_str!("../../sql/functions/walcast.unmap_table.sql")),
    (
        "walcast.unmap_event(regclass, text)",
        include_str!("../../sql/functions/walcast.unmap_event.sql"),
    ),
    (
        "walcast.explain_mapping(regclass)",
        include_str!("../../sql/functions/walcast.explain_mapping.sql"),
    ),
    (
        "walcast.announce_declaration()",
        include_str!("../../sql/functions/walcast.announce_declaration.sql"),
    ),
    (
        "walcast.check_event(text, text)",
        include_str!("../../sql/functions/walcast.check_event.sql"),
    ),
    (
        "walcast.check_topic(text, text)",
        include_str!("../../sql/functions/walcast.check_topic.sql"),
    ),
    (
        "walcast.check_personal_topics(text[], text)",
        include_str!("../../sql/functions/walcast.check_personal_topics.sql"),
    ),
    (
        "walcast.check_payload(jsonb, text)",
        include_str!("../../sql/functions/walcast.check_payload.sql"),
    ),
    (
        "walcast.check_callable(text, text, boolean, text)",
        include_str!("../../sql/functions/walcast.check_callable.sql"),
    ),
    (
        "walcast.events_of(text, text, jsonb)",
        include_str!("../../sql/functions/walcast.events_of.sql"),
    ),
    (
        "walcast.declare(text, text, text, jsonb)",
        include_str!("../../sql/functions/walcast.declare.sql"),
    ),
    (
        "walcast.undeclare(text, text, text)",
        include_str!("../../sql/functions/walcast.undeclare.sql"),
    ),
    (
        "walcast.profile(text, text[], text, text, text[], text, text, text[], text, integer)",
        include_str!("../../sql/functions/walcast.profile.sql"),
    ),
    ("walcast.unprofile(text)", include_str!("../../sql/functions/walcast.unprofile.sql")),
    (
        "walcast.room(text, text, text, text, text, jsonb, jsonb, text, jsonb, text, jsonb, boolean, text, integer, text, jsonb, text, text)",
        include_str!("../../sql/functions/walcast.room.sql"),
    ),
    ("walcast.unroom(text, text)", include_str!("../../sql/functions/walcast.unroom.sql")),
    (
        "walcast.command(text, text, text, text, text, text[], text, text, text, text, text[], text, text, text, text[])",
        include_str!("../../sql/functions/walcast.command.sql"),
    ),
    ("walcast.uncommand(text, text)", include_str!("../../sql/functions/walcast.uncommand.sql")),
    (
        "walcast.relay(text, text, text, text, jsonb, text[], interval, interval, text, text, text, jsonb, boolean, text)",
        include_str!("../../sql/functions/walcast.relay.sql"),
    ),
    ("walcast.unrelay(text, text)", include_str!("../../sql/functions/walcast.unrelay.sql")),
    (
        "walcast.presence(text, text, jsonb, text, jsonb, text[], text, text, text, text[], text, text, interval)",
        include_str!("../../sql/functions/walcast.presence.sql"),
    ),
    ("walcast.unpresence(text)", include_str!("../../sql/functions/walcast.unpresence.sql")),
];

/// Everything in the order it must be made. `publication` is the one that users fill, `messages` the
/// one of messages, if there is to be any.
fn objects(roles: &[String], publication: &str, messages: &str) -> Vec<Object> {
    let mut all = Vec::new();
    for (name, sql) in ROLES {
        if roles.iter().any(|role| role == name) {
            all.push(Object::new(Kind::Role, *name, *sql));
        }
    }
    for schema in ["auth", "realtime"] {
        all.push(Object::new(Kind::Schema, schema, format!("create schema {schema}")));
    }
    for (name, sql) in TYPES {
        all.push(Object::new(Kind::Type, *name, *sql));
    }
    all.push(Object::new(
        Kind::Table,
        "realtime.messages",
        include_str!("../../sql/install/realtime.messages.sql"),
    ));
    for (name, sql) in FUNCTIONS {
        all.push(Object::new(Kind::Function, *name, *sql));
    }
    all.push(Object::new(
        Kind::Publication,
        publication,
        format!("create publication {}", quote(publication)),
    ));
    if !messages.is_empty() && messages != publication {
        let sql = format!("create publication {} for table realtime.messages", quote(messages));
        all.push(Object::new(Kind::Publication, messages, sql));
    }
    for (name, event) in [("walcast_ddl", "ddl_command_end"), ("walcast_drop", "sql_drop")] {
        let sql = format!(
            "create event trigger {name} on {event} execute function walcast.announce_ddl()"
        );
        all.push(Object::new(Kind::EventTrigger, name, sql));
    }
    all
}

/// Makes what is missing. Safe to run at every start, by any number of processes at once.
///
/// # Errors
/// [`Error`]; what was made before stays and is completed by the next run.
pub async fn install(login: &Login, config: &Config) -> Result<Report, Error> {
    let mut client = login.connect("walcast migrate").await?;
    prepare(&client).await?;
    let mut report = Report::default();
    own_schema(&client, &mut report).await?;
    let mut runner = migrations::migrations::runner();
    runner.set_migration_table_name(HISTORY_TABLE);
    let migrated = Box::pin(runner.run_async(&mut client))
        .await
        .map_err(|error| Error::Migration(Box::new(error)))?;
    for migration in migrated.applied_migrations() {
        report.created.push(format!("migration {migration}"));
        let revoke = format!("revoke all on table {HISTORY_TABLE} from public");
        client.batch_execute(&revoke).await.map_err(failed("schema walcast"))?;
    }
    let publications = &config.replication.publications;
    let first = publications.first().map_or("supabase_realtime", String::as_str);
    let messages = config.replication.messages_publication.as_str();
    for object in objects(&config.database.roles, first, messages) {
        have(&mut client, &object, messages, &mut report).await?;
    }
    missing(&client, config, &mut report).await?;
    for grant in grants(&client, &config.database.roles).await? {
        give(&mut client, &grant, &mut report).await?;
    }
    if let Ok(check) = Login::parse(config.database.check_url.expose(), login.timeout()) {
        client.execute(ADD_LOGIN, &[&check.user()]).await.map_err(failed("walcast.logins"))?;
    }
    partitions(&mut client, &mut report).await?;
    for name in &report.created {
        info!(name, "created");
    }
    for (name, why) in &report.skipped {
        warn!(name, why, "not created");
    }
    Ok(report)
}

/// Forgets the keys of writes that were made `lifetime` ago or earlier; how many.
///
/// # Errors
/// [`Error`]; call again later.
pub async fn forget_keys(login: &Login, lifetime: Duration) -> Result<u64, Error> {
    let client = login.connect("walcast keys").await?;
    client.batch_execute(SESSION).await.map_err(failed("session settings"))?;
    if !own_schema_exists(&client).await? {
        return Ok(0);
    }
    let sql = "delete from walcast.requests as r \
               where r.made_at < pg_catalog.now() - $1::float8 * interval '1 second'";
    client.execute(sql, &[&lifetime.as_secs_f64()]).await.map_err(failed("walcast.requests"))
}

/// Forgets versions of declarations that were replaced `age` ago or earlier and that no slot can still
/// need, and those of tables that are gone; how many.
///
/// # Errors
/// [`Error`]; call again later.
pub async fn forget_mappings(login: &Login, age: Duration) -> Result<u64, Error> {
    let client = login.connect("walcast old declarations").await?;
    client.batch_execute(SESSION).await.map_err(failed("session settings"))?;
    if !own_schema_exists(&client).await? {
        return Ok(0);
    }
    let sql = include_str!("../../sql/install/old_mappings.sql");
    client.execute(sql, &[&age.as_secs_f64()]).await.map_err(failed("walcast.mappings"))
}

/// Makes the day partitions of `realtime.messages` that are missing, yesterday to three days
/// ahead, and drops ours that are older than three days. To be called once a day at least.
///
/// Whoever writes messages waits for neither: one that is in use is dropped another time.
///
/// # Errors
/// [`Error`]; call again later.
pub async fn rotate_partitions(login: &Login) -> Result<Report, Error> {
    let mut client = login.connect("walcast partitions").await?;
    prepare(&client).await?;
    let mut report = Report::default();
    if !own_schema_exists(&client).await? {
        let why = "schema walcast is not installed".to_owned();
        report.skipped.push(("partitions of realtime.messages".into(), why));
        return Ok(report);
    }
    partitions(&mut client, &mut report).await?;
    let old = client
        .query(include_str!("../../sql/install/old_partitions.sql"), &[&KEEP_DAYS])
        .await
        .map_err(failed("partitions"))?;
    client.batch_execute(IN_PASSING).await.map_err(failed("session settings"))?;
    for row in old {
        let name: String = row.get(0);
        let sql = format!(
            "drop table if exists {name}; \
             delete from walcast.objects where kind = 'partition' and name = {}",
            literal(&name)
        );
        match client.batch_execute(&sql).await {
            Ok(()) => {}
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                debug!(name, "in use; dropped another time");
            }
            Err(error) => return Err(failed(&name)(error)),
        }
    }
    Ok(report)
}

/// Removes what [`install`] made and nothing depends on, and, when asked, the slot. Roles stay:
/// they belong to the whole cluster.
///
/// # Errors
/// [`Error`]; run it again after mending the cause.
pub async fn uninstall(login: &Login, slot: Option<&str>) -> Result<Removal, Error> {
    let client = login.connect("walcast uninstall").await?;
    prepare(&client).await?;
    let mut removal = Removal::default();
    if let Some(slot) = slot {
        drop_slot(&client, slot, &mut removal).await?;
    }
    for (name, kept) in logins::drop_unused(&client).await.map_err(failed("logins"))? {
        match kept {
            None => removal.dropped.push(format!("login {name}")),
            Some(why) => removal.kept.push((format!("login {name}"), why)),
        }
    }
    if !own_schema_exists(&client).await? {
        return Ok(removal);
    }
    let rows = client
        .query(include_str!("../../sql/install/removable.sql"), &[])
        .await
        .map_err(failed("objects"))?;
    let mut remains = false;
    for row in rows {
        let (kind, name): (String, String) = (row.get(0), row.get(1));
        let (sql, why): (Option<String>, Option<String>) = (row.get(2), row.get(3));
        let what = format!("{kind} {name}");
        let why = match (sql, why) {
            (_, Some(why)) => why,
            (None, None) => continue,
            (Some(sql), None) => match client.batch_execute(&sql).await {
                Ok(()) => {
                    let forget = "delete from walcast.objects where kind = $1 and name = $2";
                    client.execute(forget, &[&kind, &name]).await.map_err(failed(&what))?;
                    removal.dropped.push(what);
                    continue;
                }
                Err(error) => {
                    // A statement of several ends its own transaction only when it succeeds.
                    client.batch_execute("rollback").await.map_err(failed(&what))?;
                    sentence(&error)
                }
            },
        };
        // Roles are the cluster's. A partition with messages is like its neighbours, which
        // somebody else made: whoever keeps those drops it in its time.
        remains |= kind != Kind::Role.as_str() && kind != "partition";
        removal.kept.push((what, why));
    }
    if remains {
        let why = "it records what stays; uninstall again when nothing uses that".into();
        removal.kept.push(("schema walcast".into(), why));
        return Ok(removal);
    }
    let own = format!(
        "drop table walcast.requests, walcast.routes, walcast.mappings, walcast.guards, \
         walcast.declarations, walcast.secrets, walcast.logins, walcast.objects, {HISTORY_TABLE}; \
         drop schema walcast"
    );
    match client.batch_execute(&own).await {
        Ok(()) => removal.dropped.push("schema walcast".into()),
        Err(error) => removal.kept.push(("schema walcast".into(), sentence(&error))),
    }
    Ok(removal)
}

async fn drop_slot(client: &Client, slot: &str, removal: &mut Removal) -> Result<(), Error> {
    let what = format!("slot {slot}");
    let found = client
        .query_opt(
            "select s.active_pid, s.database is not distinct from pg_catalog.current_database() \
             from pg_catalog.pg_replication_slots as s where s.slot_name = $1",
            &[&slot],
        )
        .await
        .map_err(failed(&what))?;
    let Some(row) = found else { return Ok(()) };
    if let Some(pid) = row.get::<_, Option<i32>>(0) {
        removal.kept.push((what, format!("it is in use by process {pid}; stop walcast first")));
        return Ok(());
    }
    if !row.get::<_, bool>(1) {
        removal.kept.push((what, "it belongs to another database".into()));
        return Ok(());
    }
    match client.execute("select pg_catalog.pg_drop_replication_slot($1)", &[&slot]).await {
        Ok(_) => removal.dropped.push(what),
        Err(error) => removal.kept.push((what, sentence(&error))),
    }
    Ok(())
}

/// Pins the session, and takes the lock; it is held until the connection ends.
async fn prepare(client: &Client) -> Result<(), Error> {
    client.batch_execute(SESSION).await.map_err(failed("session settings"))?;
    let locked = client.execute("select pg_catalog.pg_advisory_lock($1)", &[&LOCK_KEY]).await;
    locked.map_err(|error| match error.code() {
        Some(&SqlState::LOCK_NOT_AVAILABLE) => Error::Busy,
        _ => failed("the lock")(error),
    })?;
    Ok(())
}

/// Whether there is a schema `walcast`; an error when it is not ours.
async fn own_schema_exists(client: &Client) -> Result<bool, Error> {
    let row = client
        .query_opt(
            "select o.rolname::text, \
                    o.rolname = current_user \
                    or o.rolsuper and me.rolsuper \
                    or not me.rolsuper and pg_catalog.pg_has_role(o.oid, 'usage') \
             from pg_catalog.pg_namespace as n \
             join pg_catalog.pg_roles as o on o.oid = n.nspowner \
             join pg_catalog.pg_roles as me on me.rolname = current_user \
             where n.nspname = 'walcast'",
            &[],
        )
        .await
        .map_err(failed("schema walcast"))?;
    match row {
        None => Ok(false),
        Some(row) if row.get(1) => Ok(true),
        Some(row) => Err(Error::Foreign { owner: row.get(0) }),
    }
}

/// Makes schema `walcast` unless it is there.
async fn own_schema(client: &Client, report: &mut Report) -> Result<(), Error> {
    if own_schema_exists(client).await? {
        return Ok(());
    }
    match client.batch_execute("create schema walcast").await {
        Ok(()) => report.created.push("schema walcast".into()),
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            let names = "select pg_catalog.quote_ident(pg_catalog.current_database()), \
                         pg_catalog.quote_ident(current_user)";
            let row = client.query_one(names, &[]).await.map_err(failed("schema walcast"))?;
            return Err(Error::Refused { database: row.get(0), user: row.get(1) });
        }
        Err(error) => return Err(failed("schema walcast")(error)),
    }
    Ok(())
}

/// Makes one object unless it exists, or is not ours to make.
async fn have(
    client: &mut Client,
    object: &Object,
    messages: &str,
    report: &mut Report,
) -> Result<(), Error> {
    for _ in 0..RACES_MAX {
        let found = find(client, object.kind, &object.name).await?;
        let replaces = match found {
            None => {
                if let Some(why) = closed(client, object, messages).await? {
                    report.skipped.push((object.to_string(), why));
                    return Ok(());
                }
                false
            }
            Some(found) => {
                let stale = stale(client, object, &found).await?;
                if found.recorded && stale && !found.ours {
                    let why = format!("an older version belongs to {}", found.owner);
                    report.skipped.push((object.to_string(), why));
                    return Ok(());
                }
                if found.recorded && stale && found.body != found.recorded_body {
                    let why = "somebody changed it since; drop it to get ours".into();
                    report.skipped.push((object.to_string(), why));
                    return Ok(());
                }
                if !(found.recorded && stale) {
                    report.kept.push(object.to_string());
                    return Ok(());
                }
                true
            }
        };
        match make(client, object).await {
            Ok(()) => {
                let verb = if replaces { " (new version)" } else { "" };
                report.created.push(format!("{object}{verb}"));
                return Ok(());
            }
            Err(error) if lost_a_race(&error) => {}
            Err(error) if refused(&error) => {
                report.skipped.push((object.to_string(), sentence(&error)));
                return Ok(());
            }
            Err(error) => return Err(failed(&object.to_string())(error)),
        }
    }
    let why = "another installation kept changing it; run migrate again".into();
    report.skipped.push((object.to_string(), why));
    Ok(())
}

/// Creates one object and its record, both or neither.
async fn make(client: &mut Client, object: &Object) -> Result<(), tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(&object.sql).await?;
    if object.kind == Kind::Function && object.schema() == Some("walcast") && !object.is_for_all() {
        let revoke = format!("revoke all on function {} from public", object.name);
        transaction.batch_execute(&revoke).await?;
    }
    record(&transaction, object.kind.as_str(), &object.name, object.body()).await?;
    transaction.commit().await
}

async fn record(
    client: &impl GenericClient,
    kind: &str,
    name: &str,
    body: Option<&str>,
) -> Result<(), tokio_postgres::Error> {
    let sql = "insert into walcast.objects (kind, name, body) \
               values ($1, $2, pg_catalog.md5($3::text)) \
               on conflict (kind, name) do update set body = excluded.body";
    client.execute(sql, &[&kind, &name, &body]).await?;
    Ok(())
}

async fn find(client: &Client, kind: Kind, name: &str) -> Result<Option<Found>, Error> {
    let row = client
        .query_opt(include_str!("../../sql/install/find.sql"), &[&kind.as_str(), &name])
        .await
        .map_err(failed(name))?;
    Ok(row.map(|row| Found {
        owner: row.get(0),
        ours: row.get(1),
        recorded: row.get(2),
        body: row.get(3),
        recorded_body: row.get(4),
    }))
}

/// Whether a function's text is not the one in our file.
async fn stale(client: &Client, object: &Object, found: &Found) -> Result<bool, Error> {
    let Some(body) = object.body() else { return Ok(false) };
    let row = client
        .query_one("select pg_catalog.md5($1::text)", &[&body])
        .await
        .map_err(failed(&object.name))?;
    Ok(found.body.as_deref() != Some(row.get(0)))
}

/// Why we may not add to the schema that the object belongs in; `None` when we may.
///
/// A schema is open to us when we made it, or when it is this login's own and no other product
/// keeps its migrations in it (their next version would trip over what we added).
/// The publication of messages goes with its table.
async fn closed(client: &Client, object: &Object, messages: &str) -> Result<Option<String>, Error> {
    let of_messages = object.kind == Kind::Publication && object.name == messages;
    let schema = if of_messages { Some("realtime") } else { object.schema() };
    let Some(schema) = schema.filter(|schema| *schema != "walcast") else { return Ok(None) };
    let Some(found) = find(client, Kind::Schema, schema).await? else {
        return Ok(Some(format!("there is no schema {schema}")));
    };
    if found.recorded {
        return Ok(None);
    }
    let row = client
        .query_one(
            "select pg_catalog.pg_get_userbyid(n.nspowner) = current_user, \
                    exists (select from pg_catalog.pg_class as c \
                        where c.relnamespace = n.oid and c.relname = 'schema_migrations') \
             from pg_catalog.pg_namespace as n where n.nspname = $1",
            &[&schema],
        )
        .await
        .map_err(failed(schema))?;
    if row.get(1) {
        return Ok(Some(format!("schema {schema} is kept by another product's migrations")));
    }
    if !row.get::<_, bool>(0) {
        return Ok(Some(format!("schema {schema} belongs to {}", found.owner)));
    }
    Ok(None)
}

/// Names what the settings mention and only the user can make.
async fn missing(client: &Client, config: &Config, report: &mut Report) -> Result<(), Error> {
    for role in &config.database.roles {
        let standard = ROLES.iter().any(|(name, _)| name == role);
        if !standard && find(client, Kind::Role, role).await?.is_none() {
            let why = format!("make it with: create role {} nologin noinherit", quote(role));
            report.skipped.push((format!("role {role}"), why));
        }
    }
    for publication in config.replication.publications.iter().skip(1) {
        if find(client, Kind::Publication, publication).await?.is_none() {
            let why = format!("make it with: create publication {}", quote(publication));
            report.skipped.push((format!("publication {publication}"), why));
        }
    }
    Ok(())
}

/// One privilege, given once: a later revoke by the DBA holds.
struct Grant {
    name: String,
    sql: String,
}

/// The grants on what we made, for those roles that exist.
async fn grants(client: &Client, roles: &[String]) -> Result<Vec<Grant>, Error> {
    let mut all = Vec::new();
    let mut grant = |role: &str, on: &str, sql: String| {
        all.push(Grant { name: format!("{on} to {role}"), sql });
    };
    let recorded = |kind, name| async move {
        let found = find(client, kind, name).await?;
        Ok::<bool, Error>(found.is_some_and(|found| found.recorded))
    };
    let auth = recorded(Kind::Schema, "auth").await?;
    let realtime = recorded(Kind::Schema, "realtime").await?;
    let messages = recorded(Kind::Table, "realtime.messages").await?;
    for role in roles {
        if find(client, Kind::Role, role).await?.is_none() {
            continue;
        }
        let to = quote(role);
        if auth {
            grant(role, "schema auth", format!("grant usage on schema auth to {to}"));
        }
        if realtime {
            grant(role, "schema realtime", format!("grant usage on schema realtime to {to}"));
        }
        if messages {
            let sql = format!("grant select, insert, update on realtime.messages to {to}");
            grant(role, "table realtime.messages", sql);
        }
    }
    // What the platform's own two administrators have there.
    for role in ["postgres", "dashboard_user"] {
        if !realtime || find(client, Kind::Role, role).await?.is_none() {
            continue;
        }
        let sql = format!(
            "grant usage on schema realtime to {role} with grant option; \
             grant all on all tables in schema realtime to {role}; \
             grant all on all functions in schema realtime to {role}; \
             alter default privileges in schema realtime grant all on tables to {role}; \
             alter default privileges in schema realtime grant all on sequences to {role}; \
             alter default privileges in schema realtime grant all on functions to {role}"
        );
        grant(role, "schema realtime and its contents", sql);
    }
    Ok(all)
}

async fn give(client: &mut Client, grant: &Grant, report: &mut Report) -> Result<(), Error> {
    let what = format!("grant {}", grant.name);
    let done = "select exists (select from walcast.objects where kind = 'grant' and name = $1)";
    let given: bool = client.query_one(done, &[&grant.name]).await.map_err(failed(&what))?.get(0);
    if given {
        report.kept.push(what);
        return Ok(());
    }
    let given = async {
        let transaction = client.transaction().await?;
        transaction.batch_execute(&grant.sql).await?;
        record(&transaction, "grant", &grant.name, None).await?;
        transaction.commit().await
    };
    match given.await {
        Ok(()) => report.created.push(what),
        Err(error) if refused(&error) || lost_a_race(&error) => {
            report.skipped.push((what, sentence(&error)));
        }
        Err(error) => return Err(failed(&what)(error)),
    }
    Ok(())
}

/// Makes the missing day partitions, owned like their parent.
async fn partitions(client: &mut Client, report: &mut Report) -> Result<(), Error> {
    let missing = client
        .query(include_str!("../../sql/install/missing_partitions.sql"), &[])
        .await
        .map_err(failed("partitions"))?;
    for row in missing {
        let (name, sql): (String, String) = (row.get(0), row.get(1));
        if let Some(why) = row.get(2) {
            report.skipped.push(("partitions of realtime.messages".into(), why));
            return Ok(());
        }
        let what = format!("partition {name}");
        let made = async {
            let transaction = client.transaction().await?;
            transaction.batch_execute(&sql).await?;
            record(&transaction, "partition", &name, None).await?;
            transaction.commit().await
        };
        match made.await {
            Ok(()) => report.created.push(what),
            // A lock that a long transaction holds, or an overlap with a partition that somebody
            // made by hand, must not stop the service.
            Err(error) => report.skipped.push((what, sentence(&error))),
        }
    }
    Ok(())
}

fn failed(what: &str) -> impl FnOnce(tokio_postgres::Error) -> Error {
    let what = what.to_owned();
    move |source| Error::Statement { what, source }
}

/// Whether somebody else made the same thing at the same moment.
pub(super) fn lost_a_race(error: &tokio_postgres::Error) -> bool {
    let Some(database) = error.as_db_error() else { return false };
    let duplicate = [
        SqlState::DUPLICATE_OBJECT,
        SqlState::UNIQUE_VIOLATION,
        SqlState::DUPLICATE_TABLE,
        SqlState::DUPLICATE_FUNCTION,
        SqlState::DUPLICATE_SCHEMA,
    ];
    duplicate.contains(database.code())
        || (*database.code() == SqlState::INTERNAL_ERROR
            && database.message().contains("concurrently"))
}

/// Whether this login is not allowed to, or this server does not let anybody.
fn refused(error: &tokio_postgres::Error) -> bool {
    let refusals = [SqlState::INSUFFICIENT_PRIVILEGE, SqlState::FEATURE_NOT_SUPPORTED];
    error.code().is_some_and(|code| refusals.contains(code))
}

/// The server's own words, without its error code.
fn sentence(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
}

/// An identifier for SQL text.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text constant for SQL text.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts_are_quoted() {
        assert_eq!(quote("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("it's"), "'it''s'");
    }

    #[test]
    fn every_function_has_a_body_and_cannot_be_captured_by_a_search_path() {
        for (name, sql) in FUNCTIONS {
            let object = Object::new(Kind::Function, *name, *sql);
            assert!(object.body().is_some_and(|body| body.len() > 10), "{name}");
            let pinned = sql.contains("set search_path = ''");
            let inlined = sql.contains("the planner") && sql.contains("pg_catalog.current_setting");
            assert!(pinned != inlined, "{name}");
            assert!(sql.contains("create or replace function"), "{name}");
        }
    }
}
