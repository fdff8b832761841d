//! Events: what a change is to those who asked, encoded once for all who get the same bytes.
//!
//! In:     a [`Change`](crate::change::Change), and what of it may be shown.
//! Out:    the JSON of its row-change event ([`row`]).
//! Never:  IO; deciding who may see it (`auth::rls`), or who gets it (`hub`).

pub mod row;
