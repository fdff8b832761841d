//! What `alter role … set …` says of the configured roles: requests run under it, as a login of
//! that role would.
//!
//! In:     the catalogs, through any connection of the pool.
//! Out:    [`RoleSettings`] of one role, a few seconds old at most while requests come in.
//! Never:  a setting that only a superuser may make; a request under no settings because they could
//!         not be read.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use super::sql::array_literal;
use crate::db::pipeline::{AskError, Connection};

/// How old they may be. Changing a role tells nobody.
const AGE_MAX: Duration = Duration::from_secs(5);

/// Of one role.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct RoleSettings {
    /// Names and values of all but `statement_timeout`, in two lists as they are sent.
    pub(super) names: Vec<String>,
    pub(super) values: Vec<String>,
    /// `statement_timeout` in milliseconds; 0 for none at all.
    pub(super) statement_timeout_ms: Option<u64>,
    /// `default_transaction_isolation`: has a meaning only as a transaction begins.
    pub(super) isolation: Option<Isolation>,
    /// `default_transaction_read_only`, for the same reason.
    pub(super) is_read_only: bool,
}

/// How much a transaction sees of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Isolation {
    ReadCommitted,
    RepeatableRead,
    Serializable,
}

impl Isolation {
    fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "read uncommitted" | "read committed" => Some(Self::ReadCommitted),
            "repeatable read" => Some(Self::RepeatableRead),
            "serializable" => Some(Self::Serializable),
            _ => None,
        }
    }
}

impl RoleSettings {
    fn add(&mut self, name: String, value: String) {
        match name.as_str() {
            "statement_timeout" => {
                // Every request sets it anyway, to this at most.
                self.statement_timeout_ms = milliseconds(&value);
                return;
            }
            "default_transaction_isolation" => self.isolation = Isolation::parse(&value),
            "default_transaction_read_only" => self.is_read_only = is_on(&value),
            _ => {}
        }
        if let Some(place) = self.names.iter().position(|known| *known == name) {
            self.values[place] = value;
        } else {
            self.names.push(name);
            self.values.push(value);
        }
    }
}

type All = HashMap<String, Arc<RoleSettings>>;

/// Of all roles.
pub(super) struct Roles {
    names: Vec<String>,
    known: Mutex<Option<(Arc<All>, Instant)>>,
    /// Who reads them now.
    reading: tokio::sync::Mutex<()>,
}

impl Roles {
    pub(super) fn new(names: &[String]) -> Self {
        Self {
            names: names.to_vec(),
            known: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
        }
    }

    /// The settings of `role`, if they are new enough.
    pub(super) fn fresh(&self, role: &str) -> Option<Arc<RoleSettings>> {
        let (all, is_fresh) = self.known()?;
        is_fresh.then(|| all.get(role).map_or_else(Arc::default, Arc::clone))
    }

    /// The settings of `role`; where they are too old, one request reads them for all.
    pub(super) async fn of(
        &self,
        role: &str,
        connection: &mut Connection,
    ) -> Result<Arc<RoleSettings>, AskError> {
        let all = match self.known() {
            Some((all, true)) => all,
            Some((old, false)) => match self.reading.try_lock() {
                Ok(_turn) => self.read(connection).await?,
                Err(_) => old,
            },
            None => {
                let _turn = self.reading.lock().await;
                match self.known() {
                    Some((all, _)) => all,
                    None => self.read(connection).await?,
                }
            }
        };
        Ok(all.get(role).map_or_else(Arc::default, Arc::clone))
    }

    /// What is known, and whether it is new enough.
    fn known(&self) -> Option<(Arc<All>, bool)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref().map(|(all, since)| (Arc::clone(all), since.elapsed() < AGE_MAX))
    }

    async fn read(&self, connection: &mut Connection) -> Result<Arc<All>, AskError> {
        let asked = Instant::now();
        let sql = include_str!("../../sql/rest/role_settings.sql");
        let roles = array_literal(&self.names);
        let rows = connection.ask(sql, [Some(roles.as_bytes())]).await?;
        let mut all: HashMap<String, RoleSettings> = HashMap::new();
        for row in rows.iter() {
            let text = |value: Option<&[u8]>| {
                String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
            };
            let mut values = row.map(text);
            let (Some(role), Some(name), Some(value)) =
                (values.next(), values.next(), values.next())
            else {
                continue;
            };
            all.entry(role).or_default().add(name, value);
        }
        let all = all.into_iter().map(|(role, settings)| (role, Arc::new(settings)));
        let all: Arc<All> = Arc::new(all.collect());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some((Arc::clone(&all), asked));
        Ok(all)
    }
}

/// A time as a setting may say it: a number with or without a unit, milliseconds where there is none.
/// None when it is not understood.
fn milliseconds(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let microseconds: f64 = match unit.trim() {
        "us" => 1.0,
        "" | "ms" => 1e3,
        "s" => 1e6,
        "min" => 60e6,
        "h" => 3600e6,
        "d" => 86_400e6,
        _ => return None,
    };
    let number: f64 = number.parse().ok()?;
    let time = Duration::try_from_secs_f64(number * microseconds / 1e6).ok()?;
    let rounded = time.as_micros().saturating_add(500) / 1000;
    u64::try_from(rounded).ok()
}

/// A boolean as a setting may say it: also the beginning of a word.
fn is_on(text: &str) -> bool {
    let text = text.trim().to_ascii_lowercase();
    !text.is_empty()
        && (text == "on" || text == "1" || "true".starts_with(&text) || "yes".starts_with(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_postgres_reads_them() {
        for (text, expected) in [
            ("8s", Some(8000)),
            ("3000", Some(3000)),
            (" 2 min ", Some(120_000)),
            ("1.5s", Some(1500)),
            ("250ms", Some(250)),
            ("700us", Some(1)),
            ("1h", Some(3_600_000)),
            ("0", Some(0)),
            ("soon", None),
            ("-1", None),
            ("", None),
        ] {
            assert_eq!(milliseconds(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_said_later_counts() {
        let mut settings = RoleSettings::default();
        settings.add("statement_timeout".into(), "8s".into());
        settings.add("work_mem".into(), "1MB".into());
        settings.add("statement_timeout".into(), "3s".into());
        assert_eq!(settings.statement_timeout_ms, Some(3000));
        settings.add("work_mem".into(), "2MB".into());
        settings.add("lock_timeout".into(), "1s".into());
        assert_eq!(settings.names, ["work_mem", "lock_timeout"]);
        assert_eq!(settings.values, ["2MB", "1s"]);
        settings.add("default_transaction_read_only".into(), "tru".into());
        settings.add("default_transaction_isolation".into(), "Repeatable Read".into());
        assert!(settings.is_read_only);
        assert_eq!(settings.isolation, Some(Isolation::RepeatableRead));
    }
}
