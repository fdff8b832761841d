//! How events reach a client: one module for each protocol, and the listening socket.

pub mod listener;
pub mod phoenix;
pub mod websocket;
