//! Stored messages of a private channel, for whoever joins late.
//!
//! In:     a caller that may read broadcasts on the topic; since when, how many.
//! Out:    the newest messages, oldest first, that the caller's own policies let it see.
//! Never:  a message past the policies: they are read as the caller; more bytes than asked for.

use postgres_protocol::escape::escape_literal as literal;
use tokio_postgres::SimpleQueryMessage;

use super::pool::{Reply, Session};
use super::{Access, Caller, Failure, RESET, become_caller, failure, is_caller, is_reset};
use crate::lsn::Lsn;

/// Asked as the login itself, after the messages: transactions that they belong to are in the log
/// before this.
const READ_AT: &str = "select pg_catalog.pg_current_wal_flush_lsn()";

/// A row of `realtime.messages`, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its id.
    pub id: String,
    /// The event's name.
    pub event: String,
    /// What it says.
    pub payload: StoredPayload,
    /// When it was inserted.
    pub at: String,
}

/// What is stored on a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    /// Messages, oldest first.
    pub messages: Vec<Stored>,
    /// Where the log ended when they had been read: whatever was found, and older ones that were
    /// not, committed before. None when the server does not say.
    pub read_at: Option<Lsn>,
}

/// What a stored message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredPayload {
    /// JSON text.
    Json(String),
    /// Hexadecimal digits of opaque bytes.
    Hex(String),
}

/// Which messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Since {
    /// Milliseconds since 1970, of the time they were inserted; these and later ones.
    pub milliseconds: i64,
    /// The newest so many.
    pub limit: u32,
    /// Bytes of one payload; larger ones are left out.
    pub payload_bytes_max: usize,
    /// Bytes of all payloads; older ones are left out.
    pub bytes_max: usize,
}

impl Access {
    pub(super) async fn stored_on(
        &self,
        session: &Session,
        caller: &Caller<'_>,
        since: Since,
    ) -> (Result<Store, Failure>, bool) {
        let begin = self.begin().replace("read write", "read only");
        // The order of one instant's messages, those of one transaction, is that of their rows.
        // How large one is, is asked of the newest only: it has to be read as a whole for that.
        let select = format!(
            "select t.id, t.event, t.payload, pg_catalog.encode(t.binary_payload, 'hex'), t.at
            from (
            select s.*, pg_catalog.sum(s.bytes) over (order by s.at desc, s.place desc) as total
            from (
            select l.*, coalesce(pg_catalog.octet_length(l.payload),
                pg_catalog.octet_length(l.binary_payload)) as bytes
            from (
            select m.id, m.event, m.payload::text as payload, m.binary_payload,
                m.inserted_at as at, m.ctid as place
            from realtime.messages as m
            where m.topic = {} and m.private and m.extension = 'broadcast'
                and m.event is not null and (m.payload is null) <> (m.binary_payload is null)
                and m.inserted_at >= pg_catalog.to_timestamp({}::float8 / 1000) at time zone 'utc'
                and m.inserted_at < (now() at time zone 'utc') + interval '1 minute'
            order by m.inserted_at desc, m.ctid desc
            limit {}
            ) as l
            ) as s
            where s.bytes <= {}
            ) as t
            where t.total <= {}
            order by t.at desc, t.place desc",
            literal(caller.topic),
            since.milliseconds,
            since.limit,
            since.payload_bytes_max,
            since.bytes_max,
        );
        let messages = [
            format!("{begin}; {}", become_caller(caller)),
            select,
            "rollback".into(),
            RESET.into(),
            READ_AT.into(),
        ];
        let mut replies = session.pipeline(&messages).await;
        let read_at = replies.pop().and_then(read_at);
        let reset = is_reset(&replies);
        let Ok([became, rows, _, _]) = <[Reply; 4]>::try_from(replies) else {
            return (Err(Failure::Connection("replies are missing".into())), false);
        };
        let answer = || {
            is_caller(became, caller)?;
            let mut messages: Vec<Stored> = rows.map_err(failure)?.iter().filter_map(row).collect();
            messages.reverse();
            Ok(Store { messages, read_at })
        };
        (answer(), reset)
    }
}

fn row(message: &SimpleQueryMessage) -> Option<Stored> {
    let SimpleQueryMessage::Row(row) = message else { return None };
    let text = |column: usize| row.get(column).map(str::to_owned);
    let payload = match (text(2), text(3)) {
        (Some(json), None) => StoredPayload::Json(json),
        (None, Some(hex)) => StoredPayload::Hex(hex),
        (None, None) | (Some(_), Some(_)) => return None,
    };
    Some(Stored { id: text(0)?, event: text(1)?, payload, at: text(4)? })
}

fn read_at(reply: Reply) -> Option<Lsn> {
    let messages = reply.ok()?;
    messages.iter().find_map(|message| {
        let SimpleQueryMessage::Row(row) = message else { return None };
        row.get(0)?.parse().ok()
    })
}
