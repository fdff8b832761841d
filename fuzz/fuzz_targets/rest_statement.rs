//! Anything that can be asked of a fixed schema, as one statement.
//!
//! What is built has no word of the request outside quotes and parameters; what is refused is the
//! client's fault. `cargo test` runs the same entry on near misses.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/it/rest_statement.rs"]
mod rest_statement;

fuzz_target!(|bytes: &[u8]| rest_statement::check(bytes));
