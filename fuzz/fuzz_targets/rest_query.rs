//! Query strings of the REST interface, as they stand in a URL.
//!
//! Nothing may panic, and what is refused is the client's fault. `cargo test` runs the same entry
//! on near misses (`no_query_string_panics`).

#![no_main]

use libfuzzer_sys::fuzz_target;
use walcast::rest::request::Query;

fuzz_target!(|text: &str| {
    if let Err(problem) = Query::from_text(text) {
        assert!(problem.status.is_client_error(), "{problem:?}");
    }
});
