//! What stands between the parts, and fails: links and processes that end in the worst moments.
//! The tools for it, and the oracle of the torture run, are tested here too.

#[allow(dead_code, reason = "the torture run uses more of it")]
pub(crate) mod judge;
pub(crate) mod proxy;

mod failover;
mod handover;
mod judged;
#[cfg(feature = "kill-points")]
mod killed;
mod links;
mod peers;
mod process;
mod resumed;
mod server;
