//! What a person can do about an error, said in the same line.

use std::error::Error;
use std::io;

use tokio_postgres::error::SqlState;

/// The error with its causes, and what to do about it when that is known.
pub(crate) fn explained(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let advice = error.chain().find_map(advice);
    advice.map_or_else(|| text.clone(), |advice| format!("{text}; {advice}"))
}

fn advice(error: &(dyn Error + 'static)) -> Option<&'static str> {
    if let Some(error) = error.downcast_ref::<tokio_postgres::Error>() {
        if let Some(code) = error.code() {
            return by_code(code);
        }
        let text = error.to_string();
        if text.contains("password missing") {
            return Some(
                "put the password into DATABASE_URL: postgres://user:password@host/database",
            );
        }
        if let Some(cause) = error.source().and_then(|cause| cause.downcast_ref::<io::Error>()) {
            return by_kind(cause.kind());
        }
        if text.contains("TLS") {
            return Some(
                "the server and DATABASE_URL disagree about TLS: see its sslmode parameter",
            );
        }
    }
    if let Some(walcast::wal::Error::SlotBusy { .. }) = error.downcast_ref() {
        return Some("stop who reads it, and try again");
    }
    if let Some(walcast::wal::Error::SlotLost { .. }) = error.downcast_ref() {
        return Some("drop it with `select pg_drop_replication_slot(…)`; a start makes a new one");
    }
    let taken = error.downcast_ref::<io::Error>().map(io::Error::kind);
    if taken == Some(io::ErrorKind::AddrInUse) {
        return Some("stop what listens there, or set WALCAST_BIND to another address");
    }
    let text = error.to_string();
    if text.starts_with("Postgres did not answer within") {
        return Some(UNREACHABLE);
    }
    None
}

const UNREACHABLE: &str = "check the host, the port and the firewall between here and there";

fn by_kind(kind: io::ErrorKind) -> Option<&'static str> {
    if [io::ErrorKind::ConnectionRefused, io::ErrorKind::NotFound].contains(&kind) {
        return Some("start Postgres there, or correct the host and port in DATABASE_URL");
    }
    if [io::ErrorKind::TimedOut, io::ErrorKind::HostUnreachable].contains(&kind) {
        return Some(UNREACHABLE);
    }
    // What a name lookup fails with has no kind of its own.
    (kind.to_string() == "uncategorized error").then_some("correct the host name in DATABASE_URL")
}

fn by_code(code: &SqlState) -> Option<&'static str> {
    let known = [
        (&SqlState::INVALID_PASSWORD, "correct the user and password in DATABASE_URL"),
        (
            &SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
            "correct the user in DATABASE_URL, or let it in with a line in pg_hba.conf",
        ),
        (
            &SqlState::INVALID_CATALOG_NAME,
            "create that database, or correct the name in DATABASE_URL",
        ),
        (&SqlState::TOO_MANY_CONNECTIONS, "raise max_connections, or close other connections"),
        (&SqlState::CANNOT_CONNECT_NOW, "Postgres is starting or stopping: try again"),
        (&SqlState::INSUFFICIENT_PRIVILEGE, "walcast doctor shows what this login lacks"),
        (
            &SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            "walcast doctor shows what the server lacks (wal_level, slots)",
        ),
        (&SqlState::READ_ONLY_SQL_TRANSACTION, "give the primary, not a standby"),
    ];
    known.into_iter().find(|(known, _)| *known == code).map(|(_, advice)| advice)
}
