//! walcast: committed Postgres row changes, authorised by Row Level Security, to the subscribers
//! who may see them. `ARCHITECTURE.md` has the map; each module uses only modules above it here.

pub mod config;
pub mod telemetry;
pub mod kill;
pub mod lsn;
pub mod cursor;
pub mod snapshot;
pub mod topic;
pub mod db;
pub mod wal;
pub mod change;
pub mod catalog;
pub mod auth;
pub mod event;
pub mod mapping;
pub mod profile;
pub mod hub;
pub mod subscribe;
pub mod feed;
pub mod join;
pub mod session;
pub mod rest;
pub mod command;
pub mod transport;
pub mod http;
pub mod doctor;
pub mod upkeep;
pub mod server;
pub mod dev;
