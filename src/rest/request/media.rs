//! `Accept`: in which form the answer is wanted.

use axum::http::HeaderMap;

use crate::rest::Problem;

/// What we can produce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Media {
    /// `application/json`, `application/vnd.pgrst.array+json`, `*/*`
    #[default]
    Json,
    /// `application/vnd.pgrst.object+json`: exactly one row, not in an array.
    Object,
    /// `text/csv`
    Csv,
    /// `application/openapi+json`, for the root.
    OpenApi,
}

impl Media {
    /// The best of what `Accept` asks for, in its order of preference.
    ///
    /// # Errors
    /// 406 `PGRST107` when none of it can be produced; `PGRST127` for what PostgREST could.
    pub fn choose(headers: &HeaderMap) -> Result<Self, Problem> {
        let _ = headers;
        todo!()
    }
}
