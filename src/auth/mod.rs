//! Who is asking: verified claims and the Postgres role they name.
//!
//! In:     tokens (`jwt`), rows and their audience (`rls`), private channels (`access`).
//! Out:    [`Claims`]; who may see a row, who may read and write on a private topic.
//! Never:  a role outside the configured list.

pub mod access;
pub mod jwks;
pub mod jwt;
pub mod rls;

use std::sync::Arc;
use std::time::SystemTime;

/// The content of a verified token.
///
/// Equal `role` and `json` mean equal rights, so checks are shared between such subscribers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Claims {
    /// The Postgres role to decide as; one of the configured list.
    pub role: Arc<str>,
    /// The `sub` claim, or `userId` where there is none, when it is a string.
    pub subject: Option<Arc<str>>,
    /// The whole payload as JSON, what policies read as `request.jwt.claims`.
    pub json: Arc<str>,
    /// Nothing is delivered at or after this moment.
    pub expires_at: SystemTime,
}
