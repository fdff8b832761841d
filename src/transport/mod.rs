//! Transports: bytes of a connection ↔ what sessions understand.

pub mod phoenix;
