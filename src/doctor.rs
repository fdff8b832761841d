//! What stands between this database and a working feed, and the SQL that mends it.
//!
//! In:     settings; catalogs, over whatever login there is.
//! Out:    [`Finding`]s, worst news included; [`mend`] does what cannot hurt.
//! Never:  shows a secret; changes anything in [`examine`]; alters what users made.

use std::fmt;
use std::time::Duration;

use tokio_postgres::{Client, Row};

use crate::auth::jwt::{Refreshed, Verifier};
use crate::config::{Config, DeleteMode};
use crate::db::{self, Login, install, logins};
use crate::feed::CATALOG_AGE_MUCH;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, with a catch.
    Warn,
    /// Does not work, or is not safe.
    Red,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Red => "red",
        })
    }
}

/// What mends a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mend {
    /// SQL or a setting that a person should look at first.
    ByHand(String),
    /// [`mend`] does it: installing what is missing.
    Install,
    /// [`mend`] does it: dropping logins that nobody uses.
    DropLogins,
}

impl fmt::Display for Mend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ByHand(text) => text,
            Self::Install => "walcast migrate   (doctor --fix does it)",
            Self::DropLogins => "doctor --fix drops them",
        })
    }
}

/// One thing looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was found, in a sentence.
    pub text: String,
    /// What mends it.
    pub mend: Option<Mend>,
}

/// An inactive slot that holds back more than this, or half its budget, is worth an alarm.
const RETAINED_BYTES_MUCH: i64 = 1024 * 1024 * 1024;

/// Minor versions with the fixes that Row Level Security stands on.
///
/// Major version, first minor without CVE-2024-10976 (a plan is reused under another role: rows
/// leak), first minor without CVE-2025-8713 (statistics show values that policies hide). An older
/// way to the same leak, CVE-2023-2455, was closed before the first of these.
/// Source: postgresql.org/support/security
const SAFE_MINORS: &[(i32, i32, i32)] = &[(14, 14, 19), (15, 9, 14), (16, 5, 10), (17, 1, 6)];

/// The oldest major version with all that we use.
const MAJOR_MIN: i32 = 14;

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, text: impl Into<String>) {
        self.0.push(Finding { level: Level::Ok, text: text.into(), mend: None });
    }

    fn warn(&mut self, text: impl Into<String>, mend: impl Into<Option<Mend>>) {
        self.0.push(Finding { level: Level::Warn, text: text.into(), mend: mend.into() });
    }

    fn red(&mut self, text: impl Into<String>, mend: impl Into<Option<Mend>>) {
        self.0.push(Finding { level: Level::Red, text: text.into(), mend: mend.into() });
    }
}

fn by_hand(text: impl Into<String>) -> Mend {
    Mend::ByHand(text.into())
}

/// Looks at everything. A check that cannot be made is a finding, too.
pub async fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = Findings::default();
    tokens(config, &mut findings).await;
    let Some(client) = connect(config, &mut findings).await else { return findings.0 };
    let checked = async {
        let standby = server(&client, config, &mut findings).await?;
        if !standby {
            slots(&client, config, &mut findings).await?;
        }
        roles(&client, config, &mut findings).await?;
        private_channels(&client, config, &mut findings).await?;
        publications(&client, config, &mut findings).await?;
        tables(&client, config, &mut findings).await?;
        orphans(&client, &mut findings).await
    };
    let failed: Option<tokio_postgres::Error> = checked.await.err();
    if let Some(error) = failed {
        let text = error.as_db_error().map_or_else(|| error.to_string(), |e| e.message().into());
        findings.red(format!("a check could not be made: {text}"), None);
    }
    given_logins(config, &mut findings).await;
    findings.0
}

/// Does what [`Mend`] says it does, and returns what was done and what failed.
pub async fn mend(config: &Config, findings: &[Finding]) -> Vec<Result<String, String>> {
    let mut done = Vec::new();
    let wants = |mend: &Mend| findings.iter().any(|finding| finding.mend.as_ref() == Some(mend));
    if !wants(&Mend::Install) && !wants(&Mend::DropLogins) {
        return done;
    }
    let timeout = Duration::from_millis(config.database.connect_timeout_ms);
    let login = match Login::parse(config.database.url.expose(), timeout) {
        Ok(login) if !config.database.url.is_empty() => login,
        _ => return vec![Err("DATABASE_URL is needed to mend anything".into())],
    };
    if wants(&Mend::Install) {
        match install::install(&login, config).await {
            Ok(report) => {
                done.extend(report.created.into_iter().map(|name| Ok(format!("created {name}"))));
            }
            Err(error) => done.push(Err(sentence(&error))),
        }
    }
    if wants(&Mend::DropLogins) {
        match logins::drop_orphans(&login).await {
            Ok(names) => done.extend(names.into_iter().map(|name| Ok(format!("dropped {name}")))),
            Err(error) => done.push(Err(sentence(&error))),
        }
    }
    done
}

async fn tokens(config: &Config, findings: &mut Findings) {
    let jwt = &config.jwt;
    if jwt.secret.is_empty() && jwt.jwks.is_empty() {
        return findings.red(
            "no token can be verified: neither a secret nor a key set is given",
            by_hand("set WALCAST_JWT_SECRET to the secret that signs your tokens, or WALCAST_JWKS"),
        );
    }
    let verifier = match Verifier::new(jwt, &config.database.roles) {
        Ok(verifier) => verifier,
        Err(error) => return findings.red(sentence(&error), None),
    };
    match (jwt.secret.is_empty(), jwt.jwks.is_empty()) {
        (_, true) => findings.ok("tokens are verified with the shared secret"),
        (true, false) => findings.ok("tokens are verified with the key set"),
        (false, false) => findings.ok("tokens are verified with the key set and the shared secret"),
    }
    let Some(source) = verifier.key_source() else { return };
    match verifier.refresh().await {
        Ok(Refreshed { keys, left_out: 0, .. }) => {
            findings.ok(format!("the key set at {source} has {keys} keys"));
        }
        Ok(Refreshed { keys, left_out, .. }) => findings.warn(
            format!("the key set at {source} has {keys} keys; {left_out} are broken or secret"),
            by_hand("a key set holds public keys only; a shared secret goes in WALCAST_JWT_SECRET"),
        ),
        Err(error) => findings.red(
            format!("the key set at {source} cannot be used: {}", sentence(&error)),
            by_hand("its tokens are refused until it can; WALCAST_JWKS has the URL"),
        ),
    }
}

/// As the installing login, or else as the check login.
async fn connect(config: &Config, findings: &mut Findings) -> Option<Client> {
    let settings = &config.database;
    let (name, url) = if settings.url.is_empty() {
        ("WALCAST_CHECK_URL", &settings.check_url)
    } else {
        ("DATABASE_URL", &settings.url)
    };
    if url.is_empty() {
        let mend = by_hand("set DATABASE_URL to postgres://user:password@host:port/database");
        findings.red("no database is given", mend);
        return None;
    }
    let timeout = Duration::from_millis(settings.connect_timeout_ms);
    let connected = async {
        let client = Login::parse(url.expose(), timeout)?.connect("walcast doctor").await?;
        Ok::<Client, db::Error>(client)
    };
    match connected.await {
        Ok(client) => {
            let session = "set search_path = ''; set statement_timeout = '30s'; \
                           set default_transaction_read_only = on";
            client.batch_execute(session).await.ok();
            findings.ok(format!("{name} connects"));
            Some(client)
        }
        Err(error) => {
            findings.red(format!("{name}: {}", sentence(&error)), None);
            None
        }
    }
}

/// Returns whether the server is a standby.
async fn server(
    client: &Client,
    config: &Config,
    findings: &mut Findings,
) -> Result<bool, tokio_postgres::Error> {
    let row = client.query_one(include_str!("../sql/doctor/server.sql"), &[]).await?;
    let version_text: String = row.get("version_text");
    findings.0.push(version_finding(row.get("version"), &version_text));
    let standby: bool = row.get("standby");
    if standby {
        findings.red("this server is a standby; walcast reads from the primary", None);
    }
    match row.get("wal_level") {
        "logical" => findings.ok("wal_level is logical"),
        level => findings.red(
            format!("wal_level is {level}, so row changes are not in the log"),
            by_hand("alter system set wal_level = logical;   -- then restart Postgres"),
        ),
    }
    for (column, what, setting) in [
        ("free_slots", "replication slots", "max_replication_slots"),
        ("free_senders", "WAL senders", "max_wal_senders"),
    ] {
        match row.get::<_, i32>(column) {
            free @ ..1 => findings.warn(
                format!("{free} {what} are free; a first start needs one"),
                by_hand(format!("alter system set {setting} = 20;   -- then restart Postgres")),
            ),
            free => findings.ok(format!("{free} {what} are free")),
        }
    }
    match row.get("slot_budget") {
        "-1" => findings.warn(
            "max_slot_wal_keep_size is unlimited: a slot that nobody reads can fill the disk",
            by_hand(
                "alter system set max_slot_wal_keep_size = '20GB'; select pg_reload_conf();   \
                 -- mind other slots",
            ),
        ),
        budget => findings.ok(format!("max_slot_wal_keep_size is {budget}")),
    }
    if row.get::<_, &str>("encoding") == "SQL_ASCII" {
        let text = "the database has no encoding (SQL_ASCII): values that are not UTF-8 are shown \
                    damaged";
        findings.warn(text, None);
    }
    if row.get("installed") {
        findings.ok("schema walcast is installed");
        if row.get("announces") {
            findings.ok("changes of policies and grants are announced in the log");
        } else {
            findings.warn(
                "changes of policies and grants are not announced in the log (only a superuser \
                 may create event triggers); they are noticed by polling",
                by_hand("walcast uninstall; then walcast migrate as a superuser"),
            );
        }
    } else {
        findings.warn("schema walcast is not installed", Mend::Install);
    }
    if !row.get::<_, bool>("has_uid") {
        let text = "there is no function auth.uid(), which most policies call";
        let installed: bool = row.get("installed");
        findings.warn(text, if installed { None } else { Some(Mend::Install) });
    }
    if row.get("has_messages") {
        let owner = row.get::<_, Option<String>>("messages_owner");
        let by_owner = owner.filter(|_| !config.database.url.is_empty()).map(|owner| {
            let database = &config.database.url;
            let user = Login::parse(database.expose(), Duration::from_secs(1));
            let user = user.map(|login| install::quote(login.user())).unwrap_or_default();
            let grant = format!("grant {} to {user};", install::quote(&owner));
            (owner, by_hand(format!("{grant}   -- or leave it to what made the table")))
        });
        if let Some((owner, mend)) = by_owner.clone() {
            let text = format!(
                "realtime.messages belongs to {owner}, so its partitions are not made by walcast"
            );
            findings.warn(text, mend);
        }
        let lacks = client.query_one(include_str!("../sql/lacks_partition.sql"), &[]).await?;
        if lacks.get(0) {
            findings.red(
                "realtime.messages lacks the partition of today or tomorrow, so realtime.send \
                 loses messages",
                by_owner.map_or(Mend::Install, |(_, mend)| mend),
            );
        } else {
            findings.ok("realtime.messages has its partitions for today and tomorrow");
        }
    }
    let superuser: bool = row.get("superuser");
    let given =
        !config.database.check_url.is_empty() && !config.database.replication_url.is_empty();
    if given {
        findings.ok("both logins are given");
    } else if superuser {
        findings.ok("DATABASE_URL may make the two logins");
    } else if let Ok(row) =
        client.query_one("select pg_catalog.current_database()::text", &[]).await
    {
        let database: String = row.get(0);
        findings.warn(
            "DATABASE_URL is no superuser and probably may not make the two logins",
            by_hand(format!(
                "{}   -- then set WALCAST_REPLICATION_URL and WALCAST_CHECK_URL",
                logins::recipe(&config.database.roles, &database)
            )),
        );
    }
    Ok(standby)
}

/// What this version of the server lacks of what Row Level Security stands on.
///
/// # Errors
/// The server's.
pub async fn examine_version(client: &Client) -> Result<Finding, tokio_postgres::Error> {
    let version = "select pg_catalog.current_setting('server_version_num')::int, \
                          pg_catalog.current_setting('server_version')";
    let row = client.query_one(version, &[]).await?;
    Ok(version_finding(row.try_get(0)?, row.try_get(1)?))
}

fn version_finding(number: i32, text: &str) -> Finding {
    let (major, minor) = (number / 10_000, number % 10_000);
    let found = |level: Level, text: String, mend: Option<String>| Finding {
        level,
        text,
        mend: mend.map(Mend::ByHand),
    };
    if major < MAJOR_MIN {
        let text = format!("Postgres {text} is older than {MAJOR_MIN}");
        return found(Level::Red, text, Some("upgrade Postgres".into()));
    }
    let known = SAFE_MINORS.iter().find(|(safe, _, _)| *safe == major);
    let upgrade = |minor: i32| Some(format!("upgrade to {major}.{minor} or later"));
    match known {
        Some(&(_, plans, statistics)) if minor < plans => found(
            Level::Red,
            format!("Postgres {text} may show rows to the wrong role (CVE-2024-10976)"),
            upgrade(statistics),
        ),
        Some(&(_, _, statistics)) if minor < statistics => found(
            Level::Warn,
            format!("Postgres {text} lacks a fix about Row Level Security (CVE-2025-8713)"),
            upgrade(statistics),
        ),
        _ => found(Level::Ok, format!("Postgres {text}"), None),
    }
}

async fn slots(
    client: &Client,
    config: &Config,
    findings: &mut Findings,
) -> Result<(), tokio_postgres::Error> {
    let name = &config.replication.slot;
    let rows = client.query(include_str!("../sql/doctor/slots.sql"), &[name]).await?;
    match rows.iter().find(|row| row.get("ours")) {
        None => findings.ok(format!("slot {name} is not there yet; the first start makes it")),
        Some(row) => our_slot(name, row, config, findings),
    }
    for row in rows.iter().filter(|row| !row.get::<_, bool>("ours")) {
        let name: String = row.get("name");
        let retained = megabytes(row.get("retained_bytes"));
        let drop = format!("select pg_drop_replication_slot('{name}');");
        let text = format!("slot {name} is read by nobody and holds back {retained} of WAL");
        findings.warn(text, by_hand(format!("{drop}   -- unless another walcast will come back")));
    }
    Ok(())
}

fn our_slot(name: &str, row: &Row, config: &Config, findings: &mut Findings) {
    let drop = format!("select pg_drop_replication_slot('{name}');");
    let plugin: Option<String> = row.get("plugin");
    if plugin.as_deref() != Some("pgoutput") || row.get("temporary") {
        let plugin = plugin.unwrap_or_else(|| "none, it is physical".into());
        let text = format!("slot {name} is not ours: its plugin is {plugin}");
        findings.red(text, by_hand("set WALCAST_SLOT to a name that is free"));
        return;
    }
    if !row.get::<_, bool>("here") {
        let text = format!("slot {name} belongs to another database");
        findings.red(text, by_hand("set WALCAST_SLOT to a name that is free"));
        return;
    }
    let retained: Option<i64> = row.get("retained_bytes");
    let budget = i64::try_from(config.replication.wal_budget_bytes).unwrap_or(i64::MAX);
    let shown = format!("{} (budget {})", megabytes(retained), megabytes(Some(budget)));
    let used = retained.map_or(0, |bytes| bytes.saturating_mul(100) / budget.max(1));
    let active: bool = row.get("active");
    match row.get::<_, Option<&str>>("wal_status") {
        Some("lost") => findings.red(
            format!("slot {name} is lost: it fell behind max_slot_wal_keep_size"),
            by_hand(format!("{drop}   -- walcast does it by itself, and tells clients")),
        ),
        Some("unreserved") => findings.red(
            format!("slot {name} is about to be lost: it holds back {shown} of WAL"),
            by_hand("start walcast, or raise max_slot_wal_keep_size"),
        ),
        _ if active && used >= 50 => findings.warn(
            format!("slot {name} is being read and holds back {shown} of WAL: {used} %"),
            by_hand(if config.replication.wal_give_up {
                "at 100 % walcast gives it up and tells clients to read again; look for what is \
                 slow, or raise wal_budget_bytes"
            } else {
                "wal_give_up is off, so the server's disk may fill; look for what is slow"
            }),
        ),
        _ if active => {
            findings.ok(format!("slot {name} is being read and holds back {shown} of WAL"));
        }
        _ => {
            let much = used >= 50 || retained.is_some_and(|bytes| bytes > RETAINED_BYTES_MUCH);
            let text = format!("slot {name} is read by nobody and holds back {shown} of WAL");
            let mend = by_hand(format!("start walcast, or give it up: {drop}"));
            if much { findings.red(text, mend) } else { findings.warn(text, mend) }
        }
    }
    let age: Option<i32> = row.get("catalog_age");
    match age {
        Some(age) if age >= CATALOG_AGE_MUCH => findings.warn(
            format!(
                "slot {name} holds back vacuum of the catalogs by {age} transactions (catalog_xmin)"
            ),
            by_hand(
                "look for an old transaction: select pid, xact_start, state from \
                 pg_stat_activity where xact_start is not null order by xact_start;",
            ),
        ),
        Some(_) | None => {}
    }
    let failover: Option<bool> = row.get("failover");
    if failover.is_some_and(|failover| failover != config.replication.failover) {
        let text = if config.replication.failover {
            "is not copied to standbys, so it ends with its server; the next connection alters it"
        } else {
            "is copied to standbys, against the settings; the next connection alters it"
        };
        findings.warn(format!("slot {name} {text}"), None);
    }
}

/// A size a person can read.
fn megabytes(bytes: Option<i64>) -> String {
    bytes.map_or_else(|| "an unknown amount".into(), |bytes| format!("{} MB", bytes >> 20))
}

async fn roles(
    client: &Client,
    config: &Config,
    findings: &mut Findings,
) -> Result<(), tokio_postgres::Error> {
    let wanted = &config.database.roles;
    let rows = client.query(include_str!("../sql/doctor/roles.sql"), &[wanted]).await?;
    for role in wanted {
        let standard = ["anon", "authenticated", "service_role"].contains(&role.as_str());
        match rows.iter().find(|row| row.get::<_, &str>("name") == role.as_str()) {
            None => {
                let sql = format!("create role {} nologin noinherit;", install::quote(role));
                let mend = if standard { Mend::Install } else { by_hand(sql) };
                findings.red(format!("role {role} does not exist"), mend);
            }
            Some(row) if row.get("above") => findings.red(
                format!("role {role} stands above policies; no token may name it"),
                by_hand("take it out of WALCAST_ROLES"),
            ),
            Some(row) if role == "service_role" && !row.get::<_, bool>("bypass_rls") => findings
                .warn(
                    "role service_role is bound by policies; applications expect that it is not",
                    by_hand("alter role service_role bypassrls;"),
                ),
            Some(_) => findings.ok(format!("role {role} exists")),
        }
    }
    Ok(())
}

/// Whether there is a role that inserts the rows by which private channels are decided.
async fn private_channels(
    client: &Client,
    config: &Config,
    findings: &mut Findings,
) -> Result<(), tokio_postgres::Error> {
    let wanted = &config.database.roles;
    // Whoever installs need not be a member of what the check login will be one of.
    let installs = !config.database.url.is_empty();
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [wanted, &installs];
    let row = client.query_one(include_str!("../sql/access/prober.sql"), &parameters).await?;
    if !row.get::<_, bool>("found") {
        return Ok(());
    }
    if let Some(role) = row.get::<_, Option<String>>("prober") {
        findings.ok(format!("private channels are decided with rows that {role} inserts"));
        return Ok(());
    }
    let rows = client.query(include_str!("../sql/doctor/roles.sql"), &[wanted]).await?;
    let free = rows.iter().find(|row| row.get("bypass_rls") && !row.get::<_, bool>("above"));
    let role = free.map_or("service_role", |row| row.get("name"));
    // Never one that users are: it will see everything.
    let power = match (free, rows.iter().any(|row| row.get::<_, &str>("name") == role)) {
        (Some(_), _) => "",
        (None, true) => "alter role service_role bypassrls; ",
        (None, false) => "create role service_role nologin noinherit bypassrls; ",
    };
    let sql_name = install::quote(role);
    let listed = if wanted.iter().any(|known| known == role) {
        ""
    } else {
        "   -- and add it to WALCAST_ROLES"
    };
    findings.red(
        "none of the roles may insert into realtime.messages whatever its policies say \
         (BYPASSRLS), so private channels are answered to nobody",
        by_hand(format!(
            "{power}grant usage on schema realtime to {sql_name}; grant insert on \
             realtime.messages to {sql_name};{listed}"
        )),
    );
    Ok(())
}

async fn publications(
    client: &Client,
    config: &Config,
    findings: &mut Findings,
) -> Result<(), tokio_postgres::Error> {
    let wanted = &config.replication.publications;
    let rows = client.query(include_str!("../sql/doctor/publications.sql"), &[wanted]).await?;
    for (at, name) in wanted.iter().enumerate() {
        let sql = install::quote(name);
        let Some(row) = rows.iter().find(|row| row.get::<_, &str>("name") == name.as_str()) else {
            let mend =
                if at == 0 { Mend::Install } else { by_hand(format!("create publication {sql};")) };
            findings.red(format!("publication {name} does not exist"), mend);
            continue;
        };
        let tables: i64 = row.get("tables");
        if row.get("partial") {
            findings.warn(
                format!("publication {name} leaves out inserts, updates or deletes"),
                by_hand(format!(
                    "alter publication {sql} set (publish = 'insert, update, delete, truncate');"
                )),
            );
        }
        if row.get("all_tables") {
            findings.warn(
                format!(
                    "publication {name} has all tables, those with secrets included; name tables \
                     instead"
                ),
                by_hand(format!("drop publication {sql}; create publication {sql} for table …;")),
            );
        } else if tables == 0 {
            findings.warn(
                format!("publication {name} has no tables, so nothing is published"),
                by_hand(format!("alter publication {sql} add table public.your_table;")),
            );
        } else {
            findings.ok(format!("publication {name} has {tables} tables"));
        }
    }
    messages_publication(client, config, findings).await
}

/// Without it, row changes flow all the same.
async fn messages_publication(
    client: &Client,
    config: &Config,
    findings: &mut Findings,
) -> Result<(), tokio_postgres::Error> {
    let name = &config.replication.messages_publication;
    if name.is_empty() {
        findings.ok("nothing is broadcast from the database: no publication is set for that");
        return Ok(());
    }
    let sql = install::quote(name);
    let row = client.query_opt(include_str!("../sql/doctor/messages.sql"), &[name]).await?;
    let Some(row) = row else {
        findings.warn(
            format!("publication {name} does not exist, so nothing is broadcast from the database"),
            by_hand(format!("create publication {sql} for table realtime.messages;")),
        );
        return Ok(());
    };
    if row.get("has_messages") {
        findings.ok(format!("publication {name} has realtime.messages"));
    } else {
        findings.warn(
            format!(
                "publication {name} lacks realtime.messages or its inserts, so nothing is \
                 broadcast from the database"
            ),
            by_hand(format!("alter publication {sql} add table realtime.messages;")),
        );
    }
    let others: Vec<String> = row.get("others");
    if !others.is_empty() {
        findings.warn(
            format!("publication {name} has tables that are read in vain: {}", others.join(", ")),
            by_hand(format!("alter publication {sql} drop table …;")),
        );
    }
    Ok(())
}

async fn tables(
    client: &Client,
    config: &Config,
    findings: &mut Findings,
) -> Result<(), tokio_postgres::Error> {
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 2] =
        [&config.replication.publications, &config.database.roles];
    let rows = client.query(include_str!("../sql/doctor/tables.sql"), &parameters).await?;
    for row in rows {
        let before = findings.0.len();
        let name: String = row.get("name");
        table(&name, &row, config, findings);
        if findings.0.len() == before {
            findings.ok(format!("table {name}"));
        }
    }
    Ok(())
}

fn table(name: &str, row: &Row, config: &Config, findings: &mut Findings) {
    let list = |column: &str| row.get::<_, Vec<String>>(column);
    let row_security: bool = row.get("row_security");
    let plain: String = row.get("plain");
    if !row.get::<_, bool>("keyed") {
        findings.red(
            format!("table {name} has no replica identity: updates and deletes of it fail"),
            by_hand(format!(
                "alter table {name} add primary key (…);   -- or: alter table {name} replica \
                 identity full;"
            )),
        );
    } else if row_security && !row.get::<_, bool>("complete") {
        let uncovered = list("uncovered");
        let mode = config.changes.delete_mode_by_table.get(&plain);
        let mode = mode.copied().unwrap_or(config.changes.delete_mode);
        if !uncovered.is_empty() {
            let columns = uncovered.join(", ");
            let shown = match mode {
                DeleteMode::PkCompat => "only the key of a deleted row, to all who might see it",
                DeleteMode::Full | DeleteMode::Drop => "no deletes",
            };
            findings.warn(
                format!(
                    "table {name}: policies read {columns}, which the log does not hold of a \
                     deleted row; mode {} shows {shown}",
                    mode.as_str()
                ),
                by_hand(format!("alter table {name} replica identity full;")),
            );
        }
    }
    let readers = list("readers");
    if readers.is_empty() {
        findings.warn(
            format!("table {name}: none of the roles may select from it, so nobody sees it"),
            by_hand(format!("grant select on {name} to authenticated;")),
        );
    }
    let blocked = list("blocked");
    if let (false, Some(schema)) = (blocked.is_empty(), plain.split('.').next()) {
        findings.warn(
            format!("table {name}: {} may not use its schema", blocked.join(", ")),
            by_hand(format!(
                "grant usage on schema {} to {};",
                install::quote(schema),
                blocked.iter().map(|role| install::quote(role)).collect::<Vec<_>>().join(", ")
            )),
        );
    }
    let owners = list("owners");
    if row_security && !owners.is_empty() {
        findings.warn(
            format!("table {name}: policies do not bind its owner {}", owners.join(", ")),
            by_hand(format!("alter table {name} force row level security;")),
        );
    }
    if row_security && row.get::<_, i64>("policies") == 0 {
        findings.warn(
            format!("table {name} has Row Level Security and no policy, so users see nothing"),
            by_hand(format!(
                "create policy readers on {name} for select to authenticated using (…);"
            )),
        );
    }
    let open = readers.iter().any(|role| role != "service_role");
    if !row_security && open {
        findings.warn(
            format!("table {name} has no Row Level Security: {} see every row", readers.join(", ")),
            by_hand(format!("alter table {name} enable row level security;   -- and add policies")),
        );
    }
}

async fn orphans(client: &Client, findings: &mut Findings) -> Result<(), tokio_postgres::Error> {
    let unused = logins::unused(client, logins::ORPHAN_AGE).await?;
    let dead: Vec<_> =
        unused.into_iter().filter(|(_, connected)| !connected).map(|(name, _)| name).collect();
    if !dead.is_empty() {
        let text = format!("logins of instances that are gone: {}", dead.join(", "));
        findings.warn(text, Mend::DropLogins);
    }
    Ok(())
}

/// What was given in `WALCAST_CHECK_URL` and `WALCAST_REPLICATION_URL`.
async fn given_logins(config: &Config, findings: &mut Findings) {
    let timeout = Duration::from_millis(config.database.connect_timeout_ms);
    for (name, url) in [
        ("WALCAST_CHECK_URL", &config.database.check_url),
        ("WALCAST_REPLICATION_URL", &config.database.replication_url),
    ] {
        if url.is_empty() {
            continue;
        }
        let verified = async {
            let login = Login::parse(url.expose(), timeout)?;
            if name == "WALCAST_CHECK_URL" {
                logins::verify_check(&login, config).await
            } else {
                logins::verify_replication(&login, config).await
            }
        };
        match verified.await {
            Ok(warnings) if warnings.is_empty() => {
                findings.ok(format!("the login of {name} can do what it must, and no more"));
            }
            Ok(warnings) => warnings.into_iter().for_each(|text| findings.warn(text, None)),
            Err(error) => findings.red(sentence(&error), None),
        }
    }
}

/// An error and its causes in one line.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(number: i32) -> Level {
        version_finding(number, "x").level
    }

    #[test]
    fn minor_versions_without_the_fixes_are_named() {
        assert_eq!(level(130_022), Level::Red);
        assert_eq!(level(150_008), Level::Red);
        assert_eq!(level(150_009), Level::Warn);
        assert_eq!(level(150_014), Level::Ok);
        assert_eq!(level(170_000), Level::Red);
        assert_eq!(level(170_006), Level::Ok);
        assert_eq!(level(180_000), Level::Ok);
    }
}
