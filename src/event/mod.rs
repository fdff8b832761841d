//! Events: what a change is to those who asked, encoded once for all who get the same bytes.
//!
//! In:     a [`Change`](crate::change::Change), and what of it may be shown; what somebody says.
//! Out:    the JSON of its row-change event ([`row`]), of a broadcast ([`broadcast`]).
//! Never:  IO; deciding who may see it (`auth::rls`), or who gets it (`hub`).

pub mod broadcast;
pub mod row;
