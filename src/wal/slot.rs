//! The replication slot: make it, look at it, refuse what would lose changes, drop it.
//!
//! In:     a replication connection, and the settings' slot and publications.
//! Out:    [`Slot`] and [`Identity`], or the [`Error`] that names what a person must do.
//! Never:  a slot made before its publication; a lost slot replaced without the caller's word.
//! Source: postgresql.org/docs/17/view-pg-replication-slots.html, …/protocol-replication.html

use std::time::Duration;

use postgres_protocol::escape::escape_literal;
use tokio::time::Instant;
use tracing::{info, warn};

use super::connection::{Connection, POOLER, QueryError, Row, ServerError, refused};
use super::{Error, Opening};
use crate::config::Replication;
use crate::db::Login;
use crate::lsn::Lsn;

/// The plugin that turns the log into messages: part of every server.
const PLUGIN: &str = "pgoutput";

/// How often a slot that cannot be made yet says what it waits for; also how soon.
const WAITING_REPORT: Duration = Duration::from_secs(1);

/// How long whoever reads a slot that is to be replaced may take to let it go.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Which server and which history this is. Positions of another history mean nothing here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Unique to the cluster since `initdb`.
    pub system_id: String,
    /// Grows with each promotion of a standby or recovery to a point in time.
    pub timeline: u32,
    /// `server_version_num`, such as 150018.
    pub server_version: u32,
    /// End of the log when we connected.
    pub head: Lsn,
    /// Where the stream starts: transactions committed before are not sent. Later than the
    /// position asked for when the slot had moved past it (a gap); earlier when this server's log
    /// does not reach that far (another history, such as an older backup).
    pub start: Lsn,
    /// The slot did not exist and starts here: earlier changes are not to be had.
    pub created_slot: bool,
    /// The stream carries the publication of messages, too.
    pub messages: bool,
    /// Every transaction with a lower id had ended before anything that the stream carries.
    pub catalog_xmin: Option<u32>,
}

/// A slot as `pg_replication_slots` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Name.
    pub name: String,
    /// Output plugin; none for a physical slot.
    pub plugin: Option<String>,
    /// Database it decodes.
    pub database: Option<String>,
    /// Whose connection reads it.
    pub active_pid: Option<i32>,
    /// Gone with its connection.
    pub temporary: bool,
    /// Sends prepared transactions before they commit.
    pub two_phase: bool,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Oldest log it keeps.
    pub restart_lsn: Option<Lsn>,
    /// What it was last told.
    pub confirmed_flush_lsn: Option<Lsn>,
    /// The oldest transaction whose rows of the catalog it may need.
    pub catalog_xmin: Option<u32>,
    /// Log it keeps, in bytes.
    pub retained_bytes: Option<u64>,
    /// Log that may still be written before it is lost; none where the server sets no limit.
    pub safe_wal_bytes: Option<i64>,
    /// Copied to standbys; none before version 17.
    pub failover: Option<bool>,
    /// Why it is lost, such as `wal_removed`; none before version 17.
    pub invalidation: Option<String>,
}

impl Slot {
    /// Whether it is one that this program makes, for this database; not whose reader it has.
    pub fn is_ours(&self, database: &str) -> bool {
        matches!(
            check(self, database),
            Ok(()) | Err(Error::SlotBusy { .. } | Error::SlotLost { .. })
        )
    }

    /// Why it is lost, in a word that stays: as the server says it, from version 17 on.
    pub fn loss(&self) -> &'static str {
        match self.invalidation.as_deref() {
            // Before 17 nothing else befalls a slot of a primary.
            None | Some("wal_removed") => "wal_removed",
            Some("rows_removed") => "rows_removed",
            Some("wal_level_insufficient") => "wal_level_insufficient",
            Some("idle_timeout") => "idle_timeout",
            Some(_) => "slot_invalidated",
        }
    }
}

/// Reads what server this is, and refuses one that cannot decode its log.
pub(super) async fn identify(connection: &mut Connection) -> Result<Identity, Error> {
    let rows = connection.query("IDENTIFY_SYSTEM").await.map_err(|error| match error {
        QueryError::Server(error) if error.code == "42601" => {
            Error::Refused { problem: POOLER.to_owned(), source: Some(Box::new(error)) }
        }
        QueryError::Server(_) | QueryError::Connection(_) => error.into(),
    })?;
    let mut system = Fields::of_one(rows)?;
    let settings = connection
        .query(
            "select pg_catalog.current_setting('server_version_num'), \
             pg_catalog.current_setting('wal_level')",
        )
        .await?;
    let mut settings = Fields::of_one(settings)?;
    let identity = Identity {
        system_id: system.text()?,
        timeline: system.parsed()?,
        head: system.parsed()?,
        server_version: settings.parsed()?,
        start: Lsn::ZERO,
        catalog_xmin: None,
        created_slot: false,
        messages: false,
    };
    check_wal_level(&settings.text()?)?;
    Ok(identity)
}

fn check_wal_level(wal_level: &str) -> Result<(), Error> {
    if wal_level == "logical" {
        return Ok(());
    }
    Err(refused(&format!(
        "the server writes its log with wal_level = {wal_level}: run \
         `alter system set wal_level = logical` and restart Postgres"
    )))
}

/// Refuses to go on when a publication is missing, now: made later, it would be missing for good
/// at the positions in between.
pub(super) async fn check_publications(
    connection: &mut Connection,
    publications: &[String],
) -> Result<(), Error> {
    for publication in publications {
        if !has_publication(connection, publication).await? {
            return Err(Error::PublicationMissing { publication: publication.clone() });
        }
    }
    if publications.is_empty() {
        return Err(refused("no publication is set: name at least one in `publications`"));
    }
    Ok(())
}

/// Whether there is such a publication now.
pub(super) async fn has_publication(
    connection: &mut Connection,
    name: &str,
) -> Result<bool, Error> {
    let name = escape_literal(name);
    let find = format!("select from pg_catalog.pg_publication where pubname = {name}");
    Ok(!connection.query(&find).await?.is_empty())
}

/// What a look at the publications found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publications {
    /// The first of those that must exist and does not.
    pub missing: Option<String>,
    /// Whether the publication of messages exists.
    pub messages: bool,
}

/// Which of the settings' publications exist now.
///
/// # Errors
/// When the server cannot be asked.
pub async fn look_for_publications(
    login: &Login,
    settings: &Replication,
) -> Result<Publications, Box<dyn std::error::Error + Send + Sync>> {
    const LOOK: &str = "select \
         (select w.name from pg_catalog.unnest($1::text[]) as w (name) \
         where not exists \
             (select from pg_catalog.pg_publication as p where p.pubname = w.name) limit 1), \
         exists (select from pg_catalog.pg_publication as p where p.pubname = $2::text)";
    let client = login.connect("walcast publication check").await?;
    let publications: [&(dyn tokio_postgres::types::ToSql + Sync); 2] =
        [&settings.publications, &settings.messages_publication];
    let asked = client.query_one(LOOK, &publications);
    let row = tokio::time::timeout(login.timeout(), asked).await??;
    Ok(Publications { missing: row.try_get(0)?, messages: row.try_get(1)? })
}

/// The slot, if there is one.
pub(super) async fn find(connection: &mut Connection, name: &str) -> Result<Option<Slot>, Error> {
    let rows = connection
        .query(&format!(
            "select s.plugin, s.database, s.active_pid, s.temporary, s.two_phase, s.wal_status, \
             s.restart_lsn, s.confirmed_flush_lsn, s.catalog_xmin, \
             pg_catalog.pg_wal_lsn_diff(case when pg_catalog.pg_is_in_recovery() \
             then pg_catalog.pg_last_wal_replay_lsn() else pg_catalog.pg_current_wal_lsn() end, \
             s.restart_lsn)::bigint, s.safe_wal_size, \
             pg_catalog.to_jsonb(s) operator(pg_catalog.->>) 'failover', \
             pg_catalog.to_jsonb(s) operator(pg_catalog.->>) 'invalidation_reason' \
             from pg_catalog.pg_replication_slots as s where s.slot_name = {}",
            escape_literal(name)
        ))
        .await?;
    let Some(row) = rows.into_iter().next() else { return Ok(None) };
    let mut fields = Fields(row.into_iter());
    Ok(Some(Slot {
        name: name.to_owned(),
        plugin: fields.optional()?,
        database: fields.optional()?,
        active_pid: fields.optional()?,
        temporary: fields.text()? == "t",
        two_phase: fields.text()? == "t",
        wal_status: fields.optional()?,
        restart_lsn: fields.optional()?,
        confirmed_flush_lsn: fields.optional()?,
        catalog_xmin: fields.optional()?,
        retained_bytes: fields.optional::<i64>()?.and_then(|bytes| u64::try_from(bytes).ok()),
        safe_wal_bytes: fields.optional()?,
        failover: fields.optional()?,
        invalidation: fields.optional()?,
    }))
}

/// Looks at a slot without touching it.
///
/// # Errors
/// When the server cannot be asked.
pub async fn inspect(login: &Login, name: &str) -> Result<Option<Slot>, Error> {
    let mut connection = Connection::open(login, login.timeout()).await?;
    let slot = find(&mut connection, name).await;
    connection.terminate().await;
    slot
}

/// Drops a slot, and with it the claim to every change it still held. Whether there was one.
///
/// # Errors
/// [`Error::SlotBusy`] while somebody reads it; otherwise when the server cannot be asked.
pub async fn drop_slot(login: &Login, name: &str) -> Result<bool, Error> {
    let mut connection = Connection::open(login, login.timeout()).await?;
    let dropped = connection.query(&format!("DROP_REPLICATION_SLOT {}", quoted(name))).await;
    let result = match dropped {
        Ok(_) => Ok(true),
        Err(QueryError::Server(error)) if error.code == "42704" => Ok(false),
        Err(QueryError::Server(error)) if error.code == "55006" => {
            Err(busy(&mut connection, name).await)
        }
        Err(error) => Err(error.into()),
    };
    connection.terminate().await;
    result
}

/// Who reads the slot now.
pub(super) async fn busy(connection: &mut Connection, name: &str) -> Error {
    match find(connection, name).await {
        Ok(slot) => {
            Error::SlotBusy { slot: name.into(), pid: slot.and_then(|slot| slot.active_pid) }
        }
        Err(error) => error,
    }
}

/// Refuses a slot that is not ours, or that has lost what it should hold.
pub(super) fn check(slot: &Slot, database: &str) -> Result<(), Error> {
    let name = &slot.name;
    match &slot.plugin {
        Some(plugin) if plugin == PLUGIN => {}
        Some(plugin) => {
            return Err(refused(&format!(
                "slot {name} uses the plugin {plugin}, not {PLUGIN}: choose another slot name"
            )));
        }
        None => {
            return Err(refused(&format!(
                "slot {name} is a physical slot: choose another slot name"
            )));
        }
    }
    if slot.database.as_deref() != Some(database) {
        return Err(refused(&format!(
            "slot {name} belongs to the database {}, not {database}: choose another slot name",
            slot.database.as_deref().unwrap_or("?")
        )));
    }
    if slot.temporary {
        return Err(refused(&format!(
            "slot {name} is temporary, of another connection: choose another slot name"
        )));
    }
    if slot.two_phase {
        return Err(refused(&format!(
            "slot {name} sends transactions before they commit (two_phase): drop it or choose \
             another slot name"
        )));
    }
    if slot.wal_status.as_deref() == Some("lost") {
        let reason = match slot.invalidation.as_deref() {
            None | Some("wal_removed") => {
                "the server removed log that it still needed (max_slot_wal_keep_size)".into()
            }
            Some(reason) => format!("the server invalidated it ({reason})"),
        };
        return Err(Error::SlotLost { slot: name.clone(), reason });
    }
    if slot.active_pid.is_some() {
        return Err(Error::SlotBusy { slot: name.clone(), pid: slot.active_pid });
    }
    Ok(())
}

/// Makes the permanent slot. Waits for every transaction of the cluster that is open now.
pub(super) async fn create(
    connection: &mut Connection,
    login: &Login,
    settings: &Replication,
    server_version: u32,
    opening: &Opening,
) -> Result<(), Error> {
    let name = &settings.slot;
    check_name(name)?;
    let failover = settings.failover && server_version >= 170_000;
    let options = |failover| options(server_version, failover);
    let created = create_once(connection, login, settings, options(failover), opening).await;
    let created = match created {
        // A standby cannot make a slot that is copied to standbys.
        Err(QueryError::Server(error)) if failover && error.code == "0A000" => {
            create_once(connection, login, settings, options(false), opening).await
        }
        other => other,
    };
    let error = match created {
        Ok(()) => {
            info!(slot = %name, "slot created");
            return Ok(());
        }
        Err(QueryError::Connection(error)) => return Err(error),
        Err(QueryError::Server(error)) => error,
    };
    let problem = match error.code.as_str() {
        // Another node was faster: the slot is there, and theirs for now.
        "42710" => return Err(busy(connection, name).await),
        "53400" => "all replication slots are in use: raise max_replication_slots or drop one",
        "42501" => "the login may not create a slot: run `alter role … replication`",
        "55000" => "the server cannot decode its log: set wal_level = logical and restart it",
        _ => return Err(QueryError::Server(error).into()),
    };
    Err(Error::Refused { problem: problem.to_owned(), source: Some(Box::new(error)) })
}

fn options(server_version: u32, failover: bool) -> &'static str {
    match (server_version, failover) {
        (..150_000, _) => "NOEXPORT_SNAPSHOT",
        (_, false) => "(SNAPSHOT 'nothing')",
        (_, true) => "(SNAPSHOT 'nothing', FAILOVER)",
    }
}

/// Brings the slot's failover property in line with the setting, where there is one.
pub(super) async fn keep_failover(
    connection: &mut Connection,
    settings: &Replication,
    found: &Slot,
) -> Result<(), Error> {
    let name = &settings.slot;
    if found.failover.is_none_or(|failover| failover == settings.failover) {
        return Ok(());
    }
    let alter = format!("ALTER_REPLICATION_SLOT {} (FAILOVER {})", quoted(name), settings.failover);
    match connection.query(&alter).await {
        Ok(_) => info!(slot = %name, failover = settings.failover, "slot altered"),
        // It works without, too; it may only not outlive its server.
        Err(QueryError::Server(error)) => warn!(slot = %name, %error, "slot not altered"),
        Err(QueryError::Connection(error)) => return Err(error),
    }
    Ok(())
}

/// Drops the slot, and with it the claim to every change it still held, and makes a new one that
/// starts now. Whether there was one. Whoever reads it has some seconds to let it go: a service that
/// tries in vain has it for a moment a second.
///
/// # Errors
/// [`Error::SlotBusy`] while somebody reads it; [`Error::PublicationMissing`], because the new slot
/// would be wedged like the old one; otherwise as when a slot is made.
pub async fn replace(login: &Login, settings: &Replication) -> Result<bool, Error> {
    let mut connection = Connection::open(login, login.timeout()).await?;
    let replaced = replace_with(&mut connection, login, settings).await;
    connection.terminate().await;
    replaced
}

async fn replace_with(
    connection: &mut Connection,
    login: &Login,
    settings: &Replication,
) -> Result<bool, Error> {
    let identity = identify(connection).await?;
    check_publications(connection, &settings.publications).await?;
    let deadline = Instant::now() + BUSY_TIMEOUT;
    let existed = loop {
        let Some(slot) = find(connection, &settings.slot).await? else { break false };
        match check(&slot, login.dbname()) {
            Ok(()) | Err(Error::SlotLost { .. }) => {}
            Err(Error::SlotBusy { .. }) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
            Err(error) => return Err(error),
        }
        let drop = format!("DROP_REPLICATION_SLOT {}", quoted(&settings.slot));
        match connection.query(&drop).await {
            Ok(_) => break true,
            Err(QueryError::Server(error)) if error.code == "42704" => break false,
            Err(QueryError::Server(error)) if error.code == "55006" => {}
            Err(error) => return Err(error.into()),
        }
    };
    let opening = Opening::default();
    create(connection, login, settings, identity.server_version, &opening).await?;
    Ok(existed)
}

async fn create_once(
    connection: &mut Connection,
    login: &Login,
    settings: &Replication,
    options: &str,
    opening: &Opening,
) -> Result<(), QueryError> {
    let name = quoted(&settings.slot);
    let command = format!("CREATE_REPLICATION_SLOT {name} LOGICAL {PLUGIN} {options}");
    let (process_id, canceller) = (connection.process_id(), connection.canceller());
    let deadline = Instant::now() + Duration::from_millis(settings.create_timeout_ms);
    let mut creating = std::pin::pin!(connection.query_for_long(&command));
    let mut blockers = String::new();
    opening.begin(canceller.clone());
    loop {
        let report = deadline.min(Instant::now() + WAITING_REPORT);
        match tokio::time::timeout_at(report, &mut creating).await {
            Ok(created) => {
                opening.end();
                return created.map(|_rows| ());
            }
            Err(_elapsed) if Instant::now() < deadline => {}
            Err(_elapsed) => break,
        }
        opening.waits_for(&blockers);
        blockers = tokio::time::timeout_at(deadline, blocking(login, process_id))
            .await
            .unwrap_or_default();
        opening.waits_for(&blockers);
        warn!(slot = %settings.slot, %blockers, "creating the slot waits for open transactions");
    }
    canceller.cancel().await?;
    // Not left behind half made: the server answers the cancellation, or the slot is there.
    let answer = tokio::time::timeout(login.timeout(), creating).await;
    opening.end();
    match answer {
        Ok(Ok(_rows)) => Ok(()),
        Ok(Err(QueryError::Server(error))) if error.code == "57014" => {
            let (slot, waited_ms) = (settings.slot.clone(), settings.create_timeout_ms);
            Err(QueryError::Connection(Error::SlotWaits { slot, waited_ms, blockers }))
        }
        Ok(Err(error)) => Err(error),
        Err(_elapsed) => Err(Error::Disconnected(std::io::ErrorKind::TimedOut.into()).into()),
    }
}

/// Whom the server process waits for, as `" (pid 1 of role a in database b, …)"`; empty where it
/// cannot be told.
async fn blocking(login: &Login, process_id: i32) -> String {
    // A prepared transaction has process 0.
    const BLOCKERS: &str = "select b.pid, a.usename::text, a.datname::text \
         from pg_catalog.unnest(pg_catalog.pg_blocking_pids($1)) as b (pid) \
         left join pg_catalog.pg_stat_activity as a on a.pid = b.pid order by b.pid limit 5";
    let Ok(client) = login.connect("walcast slot check").await else { return String::new() };
    let Ok(rows) = client.query(BLOCKERS, &[&process_id]).await else { return String::new() };
    let named: Vec<String> = rows
        .iter()
        .map(|row| match row.try_get::<_, i32>(0) {
            Ok(0) => "a prepared transaction".to_owned(),
            Ok(pid) => format!(
                "pid {pid} of role {} in database {}",
                row.try_get::<_, &str>(1).unwrap_or("?"),
                row.try_get::<_, &str>(2).unwrap_or("?")
            ),
            Err(_) => "?".to_owned(),
        })
        .collect();
    if named.is_empty() { String::new() } else { format!(" ({})", named.join(", ")) }
}

fn check_name(name: &str) -> Result<(), Error> {
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if (1..=63).contains(&name.len()) && name.bytes().all(known) {
        return Ok(());
    }
    Err(refused("a slot name has 1 to 63 characters out of a-z, 0-9 and _"))
}

/// The command that starts the stream.
pub(super) fn start_command(
    settings: &Replication,
    start: Lsn,
    binary: bool,
    messages: bool,
) -> String {
    let mut publications: Vec<&String> = settings.publications.iter().collect();
    if messages && !publications.contains(&&settings.messages_publication) {
        publications.push(&settings.messages_publication);
    }
    let publications: Vec<String> = publications.into_iter().map(|name| quoted(name)).collect();
    // The replication grammar has plain literals only: a quote is doubled, nothing else is special.
    let publications = publications.join(",").replace('\'', "''");
    let binary = if binary { ", binary 'true'" } else { "" };
    format!(
        "START_REPLICATION SLOT {} LOGICAL {start} (proto_version '1', \
         publication_names '{publications}', messages 'true'{binary})",
        quoted(&settings.slot)
    )
}

/// What the server's refusal to start, or to go on, means for the caller.
pub(super) async fn stream_error(
    connection: &mut Connection,
    settings: &Replication,
    error: ServerError,
) -> Error {
    let slot = settings.slot.clone();
    match error.code.as_str() {
        "55006" => busy(connection, &slot).await,
        "42704" if names_messages(settings, &error.message) => Error::MessagesMissing,
        // The plugin looks a publication up in the catalog as it was at that place in the log.
        "42704" => match check_publications(connection, &settings.publications).await {
            Err(missing @ Error::PublicationMissing { .. }) => missing,
            Ok(()) | Err(_) => match find(connection, &slot).await {
                Ok(None) => Error::SlotLost { slot, reason: "it was dropped".into() },
                Ok(Some(found)) => {
                    let stands = found.confirmed_flush_lsn.unwrap_or(Lsn::ZERO);
                    Error::SlotWedged { slot, lsn: error.place.unwrap_or(stands) }
                }
                Err(error) => error,
            },
        },
        // Log removed, slot invalidated.
        "58P01" | "55000" => Error::SlotLost { slot, reason: error.message },
        // A row whose text would be larger than the server can build (1 GB).
        "54000" => Error::RowTooLarge(error),
        "XX000" if error.message.contains("invalid memory alloc request size") => {
            Error::RowTooLarge(error)
        }
        "0A000" | "42601" | "22023" => Error::Refused {
            problem: "the server does not take our replication options: it is older than 14, or \
                      not the server it seems"
                .into(),
            source: Some(Box::new(error)),
        },
        "42501" => Error::Refused {
            problem: "the login may not replicate: run `alter role … replication`".into(),
            source: Some(Box::new(error)),
        },
        _ => QueryError::Server(error).into(),
    }
}

/// Whether the server speaks of the publication of messages, and of none that must exist.
pub(super) fn names_messages(settings: &Replication, message: &str) -> bool {
    let Replication { publications, messages_publication: messages, .. } = settings;
    if messages.is_empty() || publications.contains(messages) {
        return false;
    }
    // The text is in the server's language, and one name may be a part of another.
    let named = publications.iter().chain([messages]).filter(|name| message.contains(*name));
    named.max_by_key(|name| name.len()) == Some(messages)
}

pub(super) fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// The columns of one row, taken in order.
struct Fields(std::vec::IntoIter<Option<String>>);

impl Fields {
    fn of_one(rows: Vec<Row>) -> Result<Self, Error> {
        let row = rows.into_iter().next().ok_or_else(Self::wrong)?;
        Ok(Self(row.into_iter()))
    }

    fn wrong() -> Error {
        refused("the server's answer is not one of Postgres")
    }

    fn text(&mut self) -> Result<String, Error> {
        self.0.next().flatten().ok_or_else(Self::wrong)
    }

    fn parsed<T: std::str::FromStr>(&mut self) -> Result<T, Error> {
        self.text()?.parse().map_err(|_| Self::wrong())
    }

    fn optional<T: std::str::FromStr>(&mut self) -> Result<Option<T>, Error> {
        match self.0.next() {
            None => Err(Self::wrong()),
            Some(None) => Ok(None),
            Some(Some(text)) => text.parse().map(Some).map_err(|_| Self::wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot() -> Slot {
        Slot {
            name: "walcast".into(),
            plugin: Some("pgoutput".into()),
            database: Some("app".into()),
            active_pid: None,
            temporary: false,
            two_phase: false,
            wal_status: Some("reserved".into()),
            restart_lsn: None,
            confirmed_flush_lsn: None,
            catalog_xmin: None,
            retained_bytes: None,
            safe_wal_bytes: None,
            failover: None,
            invalidation: None,
        }
    }

    #[test]
    fn only_our_own_healthy_slot_is_used() {
        assert!(check(&slot(), "app").is_ok());
        let refused = [
            Slot { plugin: Some("wal2json".into()), ..slot() },
            Slot { plugin: None, ..slot() },
            Slot { database: Some("other".into()), ..slot() },
            Slot { temporary: true, ..slot() },
            Slot { two_phase: true, ..slot() },
        ];
        for slot in refused {
            assert!(matches!(check(&slot, "app"), Err(Error::Refused { .. })), "{slot:?}");
        }
        let lost = Slot { wal_status: Some("lost".into()), ..slot() };
        assert!(matches!(check(&lost, "app"), Err(Error::SlotLost { .. })));
        let busy = Slot { active_pid: Some(7), ..slot() };
        assert!(matches!(check(&busy, "app"), Err(Error::SlotBusy { pid: Some(7), .. })));
    }

    #[test]
    fn a_log_that_cannot_be_decoded_says_which_setting() {
        let error = check_wal_level("replica").unwrap_err().to_string();
        assert!(error.contains("alter system set wal_level = logical"), "{error}");
        assert!(check_wal_level("logical").is_ok());
    }

    #[test]
    fn names_are_quoted_twice_over() {
        let settings = Replication {
            slot: "s".into(),
            publications: vec!["plain".into(), "o'dd\"one".into()],
            ..Replication::default()
        };
        assert_eq!(
            start_command(&settings, Lsn::new(0x1_0000_0002), false, false),
            "START_REPLICATION SLOT \"s\" LOGICAL 1/2 (proto_version '1', \
             publication_names '\"plain\",\"o''dd\"\"one\"', messages 'true')"
        );
        assert!(start_command(&settings, Lsn::ZERO, true, false).ends_with("binary 'true')"));
        let messages = "\"o''dd\"\"one\",\"supabase_realtime_messages_publication\"'";
        assert!(start_command(&settings, Lsn::ZERO, false, true).contains(messages));
    }

    #[test]
    fn a_missing_publication_of_messages_is_told_from_those_that_must_exist() {
        let mut settings = Replication::default();
        let missing = |name: &str| format!("publication \"{name}\" does not exist");
        assert!(names_messages(&settings, &missing("supabase_realtime_messages_publication")));
        assert!(!names_messages(&settings, &missing("supabase_realtime")));
        settings.publications.push("not_supabase_realtime_messages_publication".into());
        assert!(!names_messages(&settings, &missing(&settings.publications[1])));
        settings.publications.push("supabase_realtime_messages_publication".into());
        assert!(!names_messages(&settings, &missing("supabase_realtime_messages_publication")));
        settings.messages_publication.clear();
        assert!(!names_messages(&settings, &missing("")));
    }

    #[test]
    fn a_slot_name_that_the_server_would_refuse_is_refused_first() {
        for name in ["", "Upper", "with space", "quote\"", &"x".repeat(64)] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert!(check_name("walcast_2").is_ok());
    }
}
