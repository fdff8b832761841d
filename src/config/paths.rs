//! Settings as paths: `section.field`.
//!
//! In:     the defaults.
//! Out:    which settings there are, of which kind, and which are secret.
//! Never:  a value that somebody set.

use toml::{Table, Value};

use super::Config;

/// Settings whose value must not be repeated; each may also be given as `<NAME>_FILE`.
pub(super) const SECRETS: &[&str] = &[
    "database.url",
    "database.replication_url",
    "database.check_url",
    "jwt.secret",
    "jwt.metrics_secret",
    "jwt.api_keys",
];

/// The defaults as a tree; secrets are empty in it.
pub(super) fn defaults() -> Table {
    Table::try_from(Config::default()).expect("the defaults have a TOML form")
}

pub(super) fn get<'a>(values: &'a Table, path: &str) -> Option<&'a Value> {
    let (section, field) = path.split_once('.')?;
    values.get(section)?.as_table()?.get(field)
}

/// Every setting as `section.field`.
pub(super) fn paths() -> Vec<String> {
    let mut paths = Vec::new();
    for (section, fields) in &defaults() {
        for field in fields.as_table().into_iter().flat_map(Table::keys) {
            paths.push(format!("{section}.{field}"));
        }
    }
    paths
}
