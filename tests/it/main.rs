//! Behaviour on real parts: a private Postgres for the whole run, a database for each test.

#![allow(clippy::unwrap_used, reason = "a test ends where its expectation does")]

mod access;
mod catalog;
mod broadcast;
mod changes;
mod cli;
mod cluster;
mod commands;
mod crash;
mod declarations;
mod dev;
mod dropin;
mod faults;
mod events;
mod fuzzing;
mod guards;
mod hostile;
mod install;
mod keys;
mod lasting;
mod layers;
mod mapping;
mod messages;
mod operations;
mod pipeline;
mod presence;
mod private;
mod protocol;
mod rest_author;
mod rest_objects;
mod rest_openapi;
mod rest_routes;
mod rest_rows;
mod rest_call;
mod rest_schema;
mod rest_syntax;
mod resume;
mod resume_rooms;
mod rest;
mod rest_unchanged;
mod rest_write;
mod rest_property;
mod rest_statement;
mod rls;
mod rls_differential;
mod rls_world;
mod rls_stream;
mod rest_read;
mod service;
mod stream;
mod sockets;
mod spine;
mod tail;
mod values;
mod wal;
mod filter;
mod guarantees;
mod guardian;
mod http_broadcast;
mod subscribe;

#[tokio::test]
async fn a_database_of_its_own_for_each_test() {
    let database = cluster::Database::create().await;
    let row = database.client().await.query_one("select current_database()", &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), database.name);
}
