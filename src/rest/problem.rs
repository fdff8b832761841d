//! What a client is told when there is no answer: `{code, message, details, hint}` and a status.
//!
//! In:     what went wrong, here or in Postgres.
//! Out:    [`Problem`]: always all four keys.
//! Never:  SQL text, names of our logins, or an empty 404, which supabase-js takes for success.
//! Source: docs.postgrest.org/en/v12/references/errors.html

use std::borrow::Cow;

use axum::http::StatusCode;

/// One error as the client sees it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Problem {
    /// HTTP status.
    pub status: StatusCode,
    /// `PGRST…`, or the SQLSTATE.
    pub code: Cow<'static, str>,
    /// What happened.
    pub message: String,
    /// More about it. JSON, because some are lists.
    pub details: Option<serde_json::Value>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Problem {
    /// Without details and hint.
    pub fn new(
        status: StatusCode,
        code: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> Self {
        Self { status, code: code.into(), message: message.into(), details: None, hint: None }
    }

    /// With these details.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<serde_json::Value>) -> Self {
        self.details = Some(details.into());
        self
    }

    /// With this hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// 400 `PGRST100`: a part of the query string cannot be read.
    pub fn query(part: &str, expected: impl Into<String>) -> Self {
        let message = format!("failed to parse {part}");
        Self::new(StatusCode::BAD_REQUEST, "PGRST100", message).with_details(expected.into())
    }

    /// 400 `PGRST102`: the body cannot be read.
    pub fn body(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "PGRST102", message)
    }

    /// 400 `PGRST127`: a feature that is not implemented, named in `details`.
    pub fn not_implemented(feature: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "PGRST127", "Feature not implemented")
            .with_details(feature)
    }

    /// Whether this is about a feature that somebody else may have.
    pub fn is_not_implemented(&self) -> bool {
        self.code == "PGRST127"
    }
}
