//! The `Prefer` header.

use axum::http::{HeaderMap, HeaderValue};

use crate::rest::Problem;
use crate::rest::statement::Count;

/// What a write returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Return {
    /// Nothing.
    #[default]
    Minimal,
    /// Where the new row is.
    HeadersOnly,
    /// The rows.
    Representation,
}

/// What an insert does about rows that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// Updates them.
    MergeDuplicates,
    /// Leaves them.
    IgnoreDuplicates,
}

/// What becomes of keys that an object of an insert does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Missing {
    /// NULL.
    #[default]
    Null,
    /// The column's default.
    Default,
}

/// Whether unknown preferences are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Handling {
    /// Ignored.
    #[default]
    Lenient,
    /// Refused.
    Strict,
}

/// What the client prefers; what it did not say is none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Preferences {
    /// `return=`
    pub returning: Option<Return>,
    /// `resolution=`
    pub resolution: Option<Resolution>,
    /// `missing=`
    pub missing: Option<Missing>,
    /// `count=`
    pub count: Option<Count>,
    /// `handling=`
    pub handling: Option<Handling>,
    /// `timezone=`: a name for Postgres to judge.
    pub timezone: Option<String>,
    /// `max-affected=`
    pub max_affected: Option<u64>,
    /// `wait=feed`: answer only when the write has been published.
    pub wait_for_feed: bool,
}

impl Preferences {
    /// From all `Prefer` headers.
    ///
    /// # Errors
    /// 400 `PGRST122` for unknown values under `handling=strict`.
    pub fn parse(headers: &HeaderMap) -> Result<Self, Problem> {
        let _ = headers;
        todo!()
    }

    /// `Preference-Applied`: those of ours that `is_honoured` says had a meaning for this request.
    pub fn applied(&self) -> Option<HeaderValue> {
        todo!()
    }
}
