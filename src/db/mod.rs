//! Postgres as an ordinary client: logins, TLS, and the SQL objects walcast installs.
//!
//! In:     connection URLs, the files under `sql/` and `migrations/`.
//! Out:    [`Login`]: connections with every output setting pinned; what [`install`] made.
//! Never:  replication (`wal` speaks that itself); altering objects it does not own.

pub mod install;
mod login;
pub mod pipeline;
pub mod pool;
pub mod socket;
pub mod tls;
pub mod logins;

pub use login::{Endpoint, Error, Login, OUTPUT_SETTINGS};
