//! The two small logins walcast works with, so that the big one is used for installing only.
//!
//! In:     `DATABASE_URL` to make them with, or `WALCAST_REPLICATION_URL` and `WALCAST_CHECK_URL`.
//! Out:    [`Logins`]: one with REPLICATION and nothing else; one that is a member of exactly the
//!         configured roles, and inherits from none.
//! Never:  a plain password in SQL text (the server may log it); a check login that could do more
//!         than the configured roles together.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postgres_protocol::password::scram_sha_256;
use rand::RngCore as _;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tracing::{debug, info, warn};

use super::install::{self, literal, lost_a_race, quote};
use crate::config::{Config, Secret};
use crate::db::Login;

/// Logins of instances that died are dropped when nobody is connected with them for this long
/// after they were made: an instance connects within seconds, and when a live one lost all its
/// connections and then its logins, [`Logins::ensure`] makes them again.
pub const ORPHAN_AGE: Duration = Duration::from_mins(15);

/// Connections of the replication login: the stream, its successor while the old link is dying,
/// and queries about the slot.
const REPLICATION_CONNECTIONS: usize = 6;

/// Connections of the check login besides its pools: for each role its own, with two that hold an
/// older snapshot, and one for the catalog, one for watching the server, one that ends a hung
/// check, one for the names that requests may use and one that hears when these change, and one for
/// what is declared, with their successors.
const CHECK_CONNECTIONS: usize = 17;
const CHECK_CONNECTIONS_PER_ROLE: usize = 6;

/// Connections of the check login besides the pool of requests and commands: one that ends a hung
/// statement, with its successor.
const RUN_CONNECTIONS: usize = 2;

/// Those for rows over HTTP: one that loads the names and one that is told of changes to them, with
/// their successors.
const REST_CONNECTIONS: usize = 4;

/// How long the server may take to notice that our connections are closed, and how often we look.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);
const CLOSE_PAUSE: Duration = Duration::from_millis(20);

/// How often a statement is repeated that lost a race with another instance's.
const RACES_MAX: u32 = 20;

/// Why there are no logins.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// See there.
    #[error(transparent)]
    Connect(#[from] super::Error),
    /// There is neither a login nor a way to make one.
    #[error(
        "DATABASE_URL is not set; give it, or both WALCAST_REPLICATION_URL and WALCAST_CHECK_URL"
    )]
    NotGiven,
    /// The given check login could do too much: give another.
    #[error("the login of WALCAST_CHECK_URL {problem}; make one with: {mend}")]
    TooPowerful {
        /// What it could do.
        problem: String,
        /// SQL.
        mend: String,
    },
    /// The given replication login cannot read a slot: give another.
    #[error(
        "the login of WALCAST_REPLICATION_URL has no REPLICATION; run: alter role {name} replication"
    )]
    NoReplication {
        /// The login.
        name: String,
    },
    /// A configured role stands above policies, so no login may become it.
    #[error("the role {role} is a superuser or may replicate; take it out of database.roles")]
    RoleTooPowerful {
        /// The role.
        role: String,
    },
    /// Every token would be refused.
    #[error(
        "none of the roles {roles} {problem}; {mend}, or name the roles of your tokens in \
         WALCAST_ROLES"
    )]
    NoRoles {
        /// The configured roles.
        roles: String,
        /// What is the matter with them.
        problem: &'static str,
        /// What to run.
        mend: String,
    },
    /// `DATABASE_URL` may not make logins here: make them by hand.
    #[error(
        "DATABASE_URL may not make logins ({problem}); run this as an administrator, with \
         passwords of your own, and give them as WALCAST_REPLICATION_URL and WALCAST_CHECK_URL: {mend}"
    )]
    MayNotMake {
        /// The server's words.
        problem: String,
        /// SQL.
        mend: String,
    },
    /// The check login could not make the functions it asks with.
    #[error(
        "the check login {name} may not make temporary objects, which every check is made with; \
         run: {mend}"
    )]
    NoTemporary {
        /// The login.
        name: String,
        /// SQL.
        mend: String,
    },
    /// A statement failed.
    #[error("cannot {what}")]
    Statement {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: tokio_postgres::Error,
    },
}

/// The two logins, ready to connect with.
pub struct Logins {
    /// For the slot: it reads every published row, whatever its policies say.
    pub replication: Login,
    /// For checks: it may become one of the configured roles, and is nothing by itself.
    pub check: Login,
    /// What the user should know about given logins.
    pub warnings: Vec<String>,
    made: Option<Made>,
}

/// What [`Logins::close`] drops.
struct Made {
    owner: Login,
    pair: Vec<Credentials>,
    roles: Vec<String>,
}

/// One login of ours.
struct Credentials {
    name: String,
    verifier: String,
    kind: Kind,
    connections: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Replication,
    Check,
}

impl Logins {
    /// Takes the given logins, verified, and makes the others with `DATABASE_URL`.
    ///
    /// # Errors
    /// [`Error`] says what to give or to run.
    pub async fn open(config: &Config) -> Result<Self, Error> {
        let settings = &config.database;
        let timeout = Duration::from_millis(settings.connect_timeout_ms);
        let given = |url: &Secret| -> Result<Option<Login>, super::Error> {
            if url.is_empty() { Ok(None) } else { Login::parse(url.expose(), timeout).map(Some) }
        };
        let owner = given(&settings.url)?;
        let mut replication = given(&settings.replication_url)?;
        let mut check = given(&settings.check_url)?;
        let mut warnings = Vec::new();
        if let Some(login) = &replication {
            warnings.extend(verify_replication(login, config).await?);
        }
        if let Some(login) = &check {
            warnings.extend(verify_check(login, config).await?);
        }
        let mut made = None;
        if let Some(owner) = owner
            && (replication.is_none() || check.is_none())
        {
            let client = owner.connect("walcast logins").await?;
            prepare(&client).await?;
            // Failing is no reason not to start.
            if let Err(error) = drop_orphans_with(&client).await {
                warn!(error = message(&error), "cannot look for logins of dead instances");
            }
            let roles = existing_roles(&client, &settings.roles).await?;
            let id = random_hex();
            let mut pair = Vec::new();
            if replication.is_none() {
                let password = random_password();
                let name = format!("walcast_repl_{id}");
                replication = Some(owner.with_user(&name, &password));
                let verifier = scram_sha_256(password.expose().as_bytes());
                let kind = Kind::Replication;
                pair.push(Credentials {
                    name,
                    verifier,
                    kind,
                    connections: REPLICATION_CONNECTIONS,
                });
            }
            if check.is_none() {
                let password = random_password();
                let name = format!("walcast_check_{id}");
                check = Some(owner.with_user(&name, &password));
                let verifier = scram_sha_256(password.expose().as_bytes());
                let connections = CHECK_CONNECTIONS
                    + settings.pool_size
                    + settings.channel_pool_size
                    + config.rest.pool_size
                    + RUN_CONNECTIONS
                    + if config.serves_rest() { REST_CONNECTIONS } else { 0 }
                    + settings.roles.len() * CHECK_CONNECTIONS_PER_ROLE;
                pair.push(Credentials { name, verifier, kind: Kind::Check, connections });
            }
            let ours = Made { owner, pair, roles };
            if let Err(error) = ours.make(&client).await {
                ours.drop_all(&client).await.ok();
                return Err(error);
            }
            for credentials in &ours.pair {
                info!(login = credentials.name, "login made");
            }
            made = Some(ours);
        }
        let (Some(replication), Some(check)) = (replication, check) else {
            return Err(Error::NotGiven);
        };
        Ok(Self { replication, check, warnings, made })
    }

    /// Names of the logins that are ours to keep; none when both were given.
    pub fn made(&self) -> Vec<&str> {
        let pair = self.made.iter().flat_map(|made| &made.pair);
        pair.map(|credentials| credentials.name.as_str()).collect()
    }

    /// Makes our logins again, with the same passwords, when somebody dropped or changed them: to be
    /// called after the server refused one of them, or does not know it.
    ///
    /// # Errors
    /// [`Error`]; try again later.
    pub async fn ensure(&self) -> Result<(), Error> {
        let Some(made) = &self.made else { return Ok(()) };
        let client = made.owner.connect("walcast logins").await?;
        prepare(&client).await?;
        made.make(&client).await?;
        // Connections of the dropped login may do nothing any more, and would not notice.
        let ended = client
            .execute(
                "select pg_catalog.pg_terminate_backend(a.pid) \
                 from pg_catalog.pg_stat_activity as a \
                 where a.datname = pg_catalog.current_database() \
                     and a.application_name like 'walcast %' \
                     and not exists (select from pg_catalog.pg_roles as r where r.oid = a.usesysid)",
                &[],
            )
            .await;
        if let Err(error) = ended {
            warn!(error = message(&error), "connections of dropped logins stay until they end");
        }
        Ok(())
    }

    /// Drops our logins. Their connections must be closed before.
    ///
    /// # Errors
    /// [`Error`]; the next start of any instance drops what stays.
    pub async fn close(&self) -> Result<(), Error> {
        let Some(made) = &self.made else { return Ok(()) };
        let client = made.owner.connect("walcast logins").await?;
        prepare(&client).await?;
        made.drop_all(&client).await
    }
}

impl Made {
    async fn make(&self, client: &Client) -> Result<(), Error> {
        for credentials in &self.pair {
            self.make_one(client, credentials).await?;
        }
        Ok(())
    }

    /// All of one login in one transaction, so that none is left without its comment.
    async fn make_one(&self, client: &Client, credentials: &Credentials) -> Result<(), Error> {
        let name = quote(&credentials.name);
        let kind = match credentials.kind {
            Kind::Replication => "replication noinherit",
            Kind::Check => "noinherit",
        };
        let exists = "select exists (select from pg_catalog.pg_roles where rolname = $1)";
        let row = client.query_one(exists, &[&credentials.name]).await;
        // One that is there may have got another password, or lost what it needs.
        let verb =
            if row.map_err(failed("look for our logins"))?.get(0) { "alter" } else { "create" };
        let mut statements = vec![format!(
            "begin; {verb} role {name} login {kind} connection limit {} password {}",
            credentials.connections,
            literal(&credentials.verifier),
        )];
        let row = client
            .query_one(
                "select pg_catalog.current_database()::text, \
                        pg_catalog.current_setting('server_version_num')::int >= 160000",
                &[],
            )
            .await
            .map_err(failed("make logins"))?;
        let (database, grants_have_options): (String, bool) = (row.get(0), row.get(1));
        if credentials.kind == Kind::Check {
            let options = if grants_have_options { " with inherit false, set true" } else { "" };
            let grant = |role: &String| format!("grant {} to {name}{options}", quote(role));
            statements.extend(self.roles.iter().map(grant));
        }
        let made_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let comment = format!("walcast login for {database}, made {made_at}");
        statements.push(format!("comment on role {name} is {}; commit", literal(&comment)));
        if let Err(error) = retried(client, &statements.join("; ")).await {
            client.batch_execute("rollback").await.ok();
            return Err(if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
                let problem = message(&error);
                Error::MayNotMake { problem, mend: recipe(&self.roles, &database) }
            } else {
                failed("make logins")(error)
            });
        }
        self.grant_on_database(client, credentials, &database).await?;
        if credentials.kind == Kind::Check
            && let Err(error) = client.execute(install::ADD_LOGIN, &[&credentials.name]).await
        {
            // Not installed, or by somebody else: what needs it says so when it is asked for.
            debug!(error = message(&error), "the check login is not in walcast.logins");
        }
        Ok(())
    }

    /// What PUBLIC has unless somebody took it away. A grant must be taken back before the login
    /// can go, so none is made where none is needed.
    async fn grant_on_database(
        &self,
        client: &Client,
        credentials: &Credentials,
        database: &str,
    ) -> Result<(), Error> {
        const HAS: &str = "select pg_catalog.has_database_privilege($1, $2, $3)";
        let rights: &[&str] = match credentials.kind {
            Kind::Replication => &["connect"],
            Kind::Check => &["connect", "temporary"],
        };
        let name = &credentials.name;
        for right in rights {
            let has = async || -> Result<bool, Error> {
                let row = client.query_one(HAS, &[name, &database, right]).await;
                Ok(row.map_err(failed("make logins"))?.get(0))
            };
            if has().await? {
                continue;
            }
            let grant = format!("grant {right} on database {} to {}", quote(database), quote(name));
            match retried(client, &grant).await {
                // Without the right to grant there is a warning only.
                Ok(()) if has().await? => {}
                Err(error) if error.code() != Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                    return Err(failed("let our logins connect")(error));
                }
                Ok(()) | Err(_) => {
                    let problem = format!("it may not grant {right} on this database");
                    return Err(Error::MayNotMake { problem, mend: recipe(&self.roles, database) });
                }
            }
        }
        Ok(())
    }

    async fn drop_all(&self, client: &Client) -> Result<(), Error> {
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        let mut result = Ok(());
        for credentials in &self.pair {
            let dropped = loop {
                match drop_login(client, &credentials.name).await {
                    // The functions of a check go with its connection, a moment after our end.
                    Err(error)
                        if error.code() == Some(&SqlState::DEPENDENT_OBJECTS_STILL_EXIST)
                            && Instant::now() < deadline =>
                    {
                        tokio::time::sleep(CLOSE_PAUSE).await;
                    }
                    dropped => break dropped,
                }
            };
            match dropped {
                Ok(()) => info!(login = credentials.name, "login dropped"),
                Err(source) => result = Err(failed("drop our logins")(source)),
            }
        }
        result
    }
}

/// Drops every login that a walcast made here and nobody is connected with, for `uninstall`. The
/// reason why one stays is its second part.
pub(super) async fn drop_unused(
    client: &Client,
) -> Result<Vec<(String, Option<String>)>, tokio_postgres::Error> {
    let mut done = Vec::new();
    for (name, connected) in unused(client, Duration::ZERO).await? {
        let kept = if connected {
            Some("it is connected; stop walcast first".into())
        } else {
            drop_login(client, &name).await.err().map(|error| message(&error))
        };
        done.push((name, kept));
    }
    Ok(done)
}

/// Drops what dead instances left, and returns the names.
///
/// # Errors
/// [`Error`] when they cannot be looked for; one that cannot be dropped is logged and left.
pub async fn drop_orphans(owner: &Login) -> Result<Vec<String>, Error> {
    let client = owner.connect("walcast logins").await?;
    prepare(&client).await?;
    drop_orphans_with(&client).await.map_err(failed("look for logins of dead instances"))
}

async fn drop_orphans_with(client: &Client) -> Result<Vec<String>, tokio_postgres::Error> {
    let mut dropped = Vec::new();
    for (name, connected) in unused(client, ORPHAN_AGE).await? {
        if connected {
            continue;
        }
        match drop_login(client, &name).await {
            Ok(()) => {
                info!(login = name, "login of a dead instance dropped");
                dropped.push(name);
            }
            Err(error) => warn!(login = name, error = message(&error), "login kept"),
        }
    }
    Ok(dropped)
}

/// The logins made for this database at least `age` ago, and whether one of the pair is connected.
///
/// # Errors
/// The server's.
pub async fn unused(
    client: &Client,
    age: Duration,
) -> Result<Vec<(String, bool)>, tokio_postgres::Error> {
    let age = i32::try_from(age.as_secs()).unwrap_or(i32::MAX);
    let sql = include_str!("../../sql/install/unused_logins.sql");
    let rows = client.query(sql, &[&age]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

async fn drop_login(client: &Client, name: &str) -> Result<(), tokio_postgres::Error> {
    let found = client
        .query_opt(
            "select pg_catalog.quote_ident(pg_catalog.current_database()), exists ( \
                 select from pg_catalog.pg_database as d, \
                     pg_catalog.aclexplode(d.datacl) as a \
                 where d.datname = pg_catalog.current_database() and a.grantee = r.oid) \
             from pg_catalog.pg_roles as r where r.rolname = $1",
            &[&name],
        )
        .await?;
    let Some(row) = found else { return Ok(()) };
    // Without our schema there is nothing to take it out of.
    client.execute("delete from walcast.logins where name = $1", &[&name]).await.ok();
    let name = quote(name);
    if row.get(1) {
        let database: String = row.get(0);
        retried(client, &format!("revoke all on database {database} from {name}")).await?;
    }
    retried(client, &format!("drop role if exists {name}")).await
}

/// Repeats a statement that met another instance's: role changes touch the same catalog rows.
async fn retried(client: &Client, sql: &str) -> Result<(), tokio_postgres::Error> {
    let mut races = 0;
    loop {
        match client.batch_execute(sql).await {
            Err(error) if lost_a_race(&error) && races < RACES_MAX => {
                races += 1;
                if sql.starts_with("begin") {
                    client.batch_execute("rollback").await?;
                }
            }
            result => return result,
        }
    }
}

/// Bounds for a connection that alters roles.
async fn prepare(client: &Client) -> Result<(), Error> {
    client
        .batch_execute(
            "set search_path = ''; set standard_conforming_strings = on; \
             set client_min_messages = warning; \
             set lock_timeout = '15s'; set statement_timeout = '60s'",
        )
        .await
        .map_err(failed("prepare the session"))
}

/// Those of the configured roles that exist.
async fn existing_roles(client: &Client, roles: &[String]) -> Result<Vec<String>, Error> {
    let rows = client
        .query(
            "select r.rolname::text, r.rolsuper or r.rolreplication or r.rolcreaterole \
             from pg_catalog.pg_roles as r where r.rolname = any($1) order by 1",
            &[&roles],
        )
        .await
        .map_err(failed("look for the configured roles"))?;
    if let Some(row) = rows.iter().find(|row| row.get(1)) {
        return Err(Error::RoleTooPowerful { role: row.get(0) });
    }
    let found: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    if found.is_empty() {
        return Err(Error::NoRoles {
            roles: roles.join(", "),
            problem: "exists",
            mend: "make them with: walcast migrate, as an administrator".into(),
        });
    }
    for role in roles.iter().filter(|role| !found.contains(role)) {
        warn!(role, "configured role does not exist; its tokens are refused");
    }
    Ok(found)
}

/// Whether the login may do checks: it must be nothing but the configured roles.
///
/// # Errors
/// [`Error::TooPowerful`] names the first power too many.
pub async fn verify_check(login: &Login, config: &Config) -> Result<Vec<String>, Error> {
    let roles = &config.database.roles;
    let row = powers(login, config).await?;
    let list = |column: &str| row.get::<_, Vec<String>>(column).join(", ");
    let mut problem = None;
    for (attribute, text) in [
        ("superuser", "is a superuser"),
        ("bypass_rls", "has BYPASSRLS"),
        ("replication", "may replicate"),
        ("create_role", "may create roles"),
    ] {
        if row.get(attribute) {
            problem.get_or_insert_with(|| text.to_owned());
        }
    }
    for (column, text) in [
        ("owned", "owns published tables"),
        ("others", "is a member of other roles"),
        ("dangerous", "could become a role that stands above policies"),
        ("inherits", "inherits the rights of its roles; it must be NOINHERIT"),
    ] {
        let names = list(column);
        if !names.is_empty() {
            problem.get_or_insert_with(|| format!("{text}: {names}"));
        }
    }
    if let Some(problem) = problem {
        return Err(Error::TooPowerful { problem, mend: check_recipe(roles) });
    }
    if !row.get::<_, bool>("temporary") {
        let (name, database): (String, String) = (row.get("name"), row.get("database"));
        let mend = format!("grant temporary on database {database} to {name};");
        return Err(Error::NoTemporary { name, mend });
    }
    let mut warnings = Vec::new();
    if row.get("create_db") {
        warnings.push("the login of WALCAST_CHECK_URL may create databases".into());
    }
    let missing = list("missing");
    if row.get::<_, i64>("usable") == 0 {
        return Err(Error::NoRoles {
            roles: roles.join(", "),
            problem: "is one that the login of WALCAST_CHECK_URL may become",
            mend: format!(
                "run: grant {} to {}",
                roles.iter().map(|role| quote(role)).collect::<Vec<_>>().join(", "),
                row.get::<_, &str>("name"),
            ),
        });
    }
    if !missing.is_empty() {
        warnings.push(format!(
            "the login of WALCAST_CHECK_URL may not become {missing}; their tokens are refused"
        ));
    }
    Ok(warnings)
}

/// Whether the login may read a slot, and what it could do besides.
///
/// # Errors
/// [`Error::NoReplication`] when it may not.
pub async fn verify_replication(login: &Login, config: &Config) -> Result<Vec<String>, Error> {
    let row = powers(login, config).await?;
    let superuser: bool = row.get("superuser");
    if !superuser && !row.get::<_, bool>("replication") {
        return Err(Error::NoReplication { name: row.get("name") });
    }
    let mut warnings = Vec::new();
    if superuser {
        warnings.push(
            "the login of WALCAST_REPLICATION_URL is a superuser; it needs no more than \
             LOGIN REPLICATION"
                .into(),
        );
    }
    Ok(warnings)
}

async fn powers(login: &Login, config: &Config) -> Result<tokio_postgres::Row, Error> {
    let client = login.connect("walcast logins").await?;
    let sql = include_str!("../../sql/install/login_powers.sql");
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 2] =
        [&config.database.roles, &config.replication.publications];
    client.query_one(sql, &parameters).await.map_err(failed("look at a login"))
}

/// SQL that makes both logins, for an administrator.
pub fn recipe(roles: &[String], database: &str) -> String {
    let (check, database) = (check_recipe(roles), quote(database));
    format!(
        "create role walcast_repl login replication noinherit password '…'; {check} \
         grant connect on database {database} to walcast_repl, walcast_check; \
         grant temporary on database {database} to walcast_check;"
    )
}

fn check_recipe(roles: &[String]) -> String {
    let roles: Vec<String> = roles.iter().map(|role| quote(role)).collect();
    format!(
        "create role walcast_check login noinherit password '…'; grant {} to walcast_check;",
        roles.join(", ")
    )
}

/// 48 random bits, to tell instances apart.
fn random_hex() -> String {
    format!("{:012x}", rand::rng().next_u64() >> 16)
}

/// 256 random bits as text.
fn random_password() -> Secret {
    let mut bytes = [0_u8; 32];
    rand::rng().fill_bytes(&mut bytes);
    Secret::new(URL_SAFE_NO_PAD.encode(bytes))
}

fn failed(what: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Error {
    move |source| Error::Statement { what, source }
}

fn message(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_passwords_differ() {
        assert!(format!("walcast_check_{}", random_hex()).len() < 63);
        assert_ne!(random_password().expose(), random_password().expose());
        assert_eq!(random_password().expose().len(), 43);
    }

    #[test]
    fn the_recipe_quotes_names() {
        let sql = recipe(&["anon".into(), "odd\"role".into()], "My db");
        assert!(sql.contains("grant \"anon\", \"odd\"\"role\" to walcast_check"), "{sql}");
        assert!(sql.contains("on database \"My db\""), "{sql}");
    }
}
