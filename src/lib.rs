//! walcast: committed Postgres row changes, authorised by Row Level Security, to the subscribers
//! who may see them. `ARCHITECTURE.md` has the map; each module uses only modules above it here.

pub mod config;
pub mod lsn;
pub mod db;
pub mod change;
pub mod hub;
pub mod subscribe;
