//! Thin REST: ordinary rows, read and written as the caller, in the dialect supabase-js speaks.
//!
//! In:     HTTP requests with verified claims.
//! Out:    rows as Postgres prints them, under the caller's own policies; errors with PostgREST's
//!         codes.
//! Never:  a name from a request in SQL text except through the catalog; a value except as a
//!         parameter; a role outside the configured list; anything that outlives its transaction.
//! Source: spec `rest.md`, docs.postgrest.org/en/v12
//!
//! The way of a request: [`request`] text → what is asked · [`schema`] the names it may use ·
//! [`statement`] one SQL statement and its parameters · [`run`] one transaction as the caller ·
//! [`answer`] status, headers and body. [`problem`] is what it comes to when there is none.

pub mod answer;
pub mod openapi;
mod pool;
pub mod problem;
pub mod request;
mod roles;
pub mod route;
pub mod rows;
pub mod run;
pub mod schema;
pub mod sql;
pub mod statement;

pub use problem::Problem;
