//! Arguments → config → tracing → server → exit code.

fn main() {}
