//! Which foreign keys lead from a relation to what is embedded in it.
//!
//! In:     the relation, the target as the client wrote it, perhaps a hint.
//! Out:    [`Link`]: the one way there.
//! Never:  a guess: several ways are an error that lists them.
//! Source: docs.postgrest.org/en/v12/references/api/resource_embedding.html

use axum::http::StatusCode;

use crate::rest::Problem;
use crate::rest::schema::{Relation, Schema};

/// How the related rows of one row are found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link<'a> {
    /// Where they are.
    pub(super) relation: &'a Relation,
    /// At most one for each row.
    pub(super) is_to_one: bool,
    /// Columns of the parent.
    pub(super) here: &'a [Box<str>],
    /// Columns that are equal to them: of the junction, or of the relation.
    pub(super) there: &'a [Box<str>],
    /// A table in between.
    pub(super) junction: Option<Junction<'a>>,
}

/// A table that relates rows of two others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Junction<'a> {
    /// The table.
    pub(super) relation: &'a Relation,
    /// Its columns that refer to the target.
    pub(super) here: &'a [Box<str>],
    /// The target's columns.
    pub(super) there: &'a [Box<str>],
}

/// The one way from `origin` to `target`.
///
/// # Errors
/// 400 `PGRST200` when there is none, 300 `PGRST201` when there are several.
pub(super) fn find<'a>(
    schema: &'a Schema,
    origin: &'a Relation,
    target: &str,
    hint: Option<&str>,
) -> Result<Link<'a>, Problem> {
    let _ = (schema, origin, target, hint);
    Err(Problem::new(StatusCode::BAD_REQUEST, "PGRST200", "no relationship"))
}
