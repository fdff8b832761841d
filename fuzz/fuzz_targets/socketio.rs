//! See `walcast_fuzz::socketio`.

#![no_main]

#[path = "../allocation.rs"]
mod allocation;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| allocation::bounded(
    walcast_fuzz::socketio::check,
    bytes
));
