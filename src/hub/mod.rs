//! Topics, their subscribers, and what is on its way to them.
//!
//! In:     finished frames and who may have them.
//! Out:    each frame in the outbox of each of those connections.
//! Never:  a client's JSON; waiting for a slow connection.

pub mod outbox;
