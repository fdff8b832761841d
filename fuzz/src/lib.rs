//! What each fuzz target checks: bytes in, a panic when something that must hold does not.
//!
//! The targets in `fuzz_targets/` give these functions to libFuzzer; `tests/it/fuzzing.rs` runs
//! them on the corpus and on mutations of it, with any compiler.

pub mod broadcast_batch;
pub mod cursor;
pub mod events;
pub mod filter;
pub mod framing;
pub mod jwt;
pub mod origin;
pub mod pgoutput;
pub mod phoenix;
pub mod rest_body;
pub mod rest_headers;
pub mod rest_query;
pub mod socketio;
pub mod topic;
pub mod values;

/// Fails by a panic.
pub type Check = fn(&[u8]);

/// Every target by its name: that of its file, its corpus and its dictionary.
pub const TARGETS: [(&str, Check); 15] = [
    ("broadcast_batch", broadcast_batch::check),
    ("cursor", cursor::check),
    ("events", events::check),
    ("filter", filter::check),
    ("framing", framing::check),
    ("jwt", jwt::check),
    ("origin", origin::check),
    ("pgoutput", pgoutput::check),
    ("phoenix", phoenix::check),
    ("rest_body", rest_body::check),
    ("rest_headers", rest_headers::check),
    ("rest_query", rest_query::check),
    ("socketio", socketio::check),
    ("topic", topic::check),
    ("values", values::check),
];
