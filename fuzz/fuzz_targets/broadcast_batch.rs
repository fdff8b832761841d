//! See `walcast_fuzz::broadcast_batch`.

#![no_main]

#[path = "../allocation.rs"]
mod allocation;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| allocation::bounded(
    walcast_fuzz::broadcast_batch::check,
    bytes
));
