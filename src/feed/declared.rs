//! What is declared where a stream begins.
//!
//! In:     the position that the stream begins at; `walcast.mappings`, through its function.
//! Out:    [`Rules`]. What is declared later comes in the stream.
//! Never:  a start without them: what a table means would be lost without a word.

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio_postgres::error::SqlState;
use tracing::{error, info, warn};

use crate::db::{self, Login};
use crate::mapping::{Declaration, Key, Rules};
use crate::telemetry;
use crate::wal::Identity;

/// Why it is not known. Connect again.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// No connection.
    #[error("no connection for declarations")]
    Connect(#[from] db::Error),
    /// The server broke off.
    #[error("the declarations cannot be read")]
    Query(#[from] tokio_postgres::Error),
    /// It is silent.
    #[error("no answer about declarations")]
    Silent(#[from] tokio::time::error::Elapsed),
    /// It is not what our function says.
    #[error("the declarations are not understood")]
    Malformed(#[from] serde_json::Error),
}

#[derive(Deserialize)]
struct Answer<'a> {
    key: Option<String>,
    #[serde(borrow)]
    mappings: Vec<Mapping<'a>>,
}

#[derive(Deserialize)]
struct Mapping<'a> {
    id: i64,
    relation: u32,
    #[serde(borrow)]
    declaration: &'a RawValue,
}

/// What is in force where a stream with this identity begins.
///
/// # Errors
/// Nobody knows: connect again.
pub(super) async fn at_start(login: &Login, identity: &Identity) -> Result<Rules, Error> {
    const ASK: &str = "select walcast.mappings_at($1::text::pg_catalog.pg_lsn, $2)::text";
    let client = login.connect("walcast declarations").await?;
    let start = identity.start.to_string();
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&start, &identity.system_id];
    let asked = client.query_one(ASK, &parameters);
    let row = match tokio::time::timeout(login.timeout(), asked).await? {
        Ok(row) => row,
        Err(error) if is_not_installed(&error) => {
            let error = telemetry::chain(&error);
            warn!(error, "no domain events: walcast.mappings cannot be read; run walcast migrate");
            return Ok(Rules::default());
        }
        Err(error) => return Err(error.into()),
    };
    let text: String = row.try_get(0)?;
    let Answer { key, mappings } = serde_json::from_str(&text)?;
    let mut declarations = Vec::with_capacity(mappings.len());
    for Mapping { id, relation, declaration } in mappings {
        match Declaration::parse(id, relation, declaration.get()) {
            Ok(declaration) => declarations.push(declaration),
            Err(cause) => {
                let cause = telemetry::chain(&cause);
                error!(id, relation, error = cause, "a declaration is not understood: no events");
            }
        }
    }
    if !declarations.is_empty() {
        info!(tables = declarations.len(), "domain events are declared");
    }
    Ok(Rules::new(key.as_deref().map(Key::new), declarations))
}

/// Whether there is nothing to ask: somebody else's database, or an older version of ours.
fn is_not_installed(error: &tokio_postgres::Error) -> bool {
    let missing = [
        SqlState::UNDEFINED_FUNCTION,
        SqlState::INVALID_SCHEMA_NAME,
        SqlState::INSUFFICIENT_PRIVILEGE,
    ];
    error.code().is_some_and(|code| missing.contains(code))
}
