//! How events reach a client: one module for each protocol, and the listening socket.

pub mod admit;
pub mod deadlines;
pub mod events;
pub mod listener;
pub mod phoenix;
pub mod realtime;
pub mod socketio;
pub mod websocket;
