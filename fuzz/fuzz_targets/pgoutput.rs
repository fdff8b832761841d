//! See `walcast_fuzz::pgoutput`.

#![no_main]

#[path = "../allocation.rs"]
mod allocation;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| allocation::bounded(
    walcast_fuzz::pgoutput::check,
    bytes
));
