//! What a client is told when there is no answer: `{code, message, details, hint}` and a status.
//!
//! In:     what went wrong, here or in Postgres.
//! Out:    [`Problem`]: always all four keys.
//! Never:  SQL text, names of our logins, or an empty 404, which supabase-js takes for success.
//! Source: docs.postgrest.org/en/v12/references/errors.html

use std::borrow::Cow;

use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::auth::jwt::TokenError;
use crate::db::pipeline::Said;

/// What a client of a database that is away is told to wait.
/// `feature_not_supported`
const NO_KEYS: &str = "0A000";

const RETRY_SECONDS: HeaderValue = HeaderValue::from_static("1");

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

    /// 501: there is no place to keep keys.
    pub fn no_keys() -> Self {
        let text = "Keys of writes cannot be kept in this database";
        Self::new(StatusCode::NOT_IMPLEMENTED, NO_KEYS, text)
            .with_hint("Run walcast migrate as the owner of the database.")
    }

    /// Whether it is [`Self::no_keys`].
    pub fn is_no_keys(&self) -> bool {
        self.status == StatusCode::NOT_IMPLEMENTED && self.code == NO_KEYS
    }

    /// 422: the same key, and not the same request.
    pub fn key_of_another() -> Self {
        let text = "This key was used for another request";
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "22023", text)
            .with_hint("Use a new Idempotency-Key or X-Mutation-Id for each write.")
    }

    /// Whether this is about a feature that somebody else may have.
    pub fn is_not_implemented(&self) -> bool {
        self.code == "PGRST127"
    }
}

impl Problem {
    /// What Postgres says. `is_anonymous`: nobody has signed in, so that more could be allowed to
    /// somebody who does.
    pub fn postgres(said: &Said, is_anonymous: bool) -> Self {
        Self {
            status: status(&said.code, &said.message, is_anonymous),
            code: said.code.clone().into(),
            message: said.message.clone(),
            details: said.detail.clone().map(Into::into),
            hint: said.hint.clone(),
        }
    }

    /// Why a token is refused.
    pub fn token(error: &TokenError) -> Self {
        let (status, code, message): (_, _, Cow<'static, str>) = match error {
            TokenError::Missing => return Self::anonymous(),
            TokenError::Malformed => (401, "PGRST301", "The token is not a valid JWT".into()),
            TokenError::Signature => (401, "PGRST301", "JWT cryptographic operation failed".into()),
            TokenError::Signer { .. } => {
                (401, "PGRST301", "No suitable key was found to decode the JWT".into())
            }
            TokenError::Expired { .. } => (401, "PGRST303", "JWT expired".into()),
            TokenError::FieldsMissing => {
                (401, "PGRST303", "The JWT claims role and exp are required".into())
            }
            TokenError::Claim { name } => {
                (401, "PGRST303", format!("The JWT claim {name} is not valid").into())
            }
            TokenError::Role => (403, "42501", "The role of the JWT is not allowed".into()),
        };
        let status = StatusCode::from_u16(status).expect("it stands above");
        Self::new(status, code, message)
    }

    /// 401 `PGRST302`: there is no token, and nothing is for everybody.
    pub fn anonymous() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "PGRST302", "Anonymous access is disabled")
    }

    /// 406 `PGRST116`: one row was asked for, and there are others or none.
    pub fn not_single(rows: u64) -> Self {
        let text = "Cannot coerce the result to a single JSON object";
        Self::new(StatusCode::NOT_ACCEPTABLE, "PGRST116", text)
            .with_details(format!("The result contains {rows} rows"))
    }

    /// 400 `PGRST124`: more rows would change than the client allows.
    pub fn too_many_affected(rows: u64) -> Self {
        let text = "Query result exceeds max-affected preference constraint";
        Self::new(StatusCode::BAD_REQUEST, "PGRST124", text)
            .with_details(format!("The query affects {rows} rows"))
    }

    /// 404 `PGRST125`: there is nothing at this path.
    pub fn path() -> Self {
        Self::new(StatusCode::NOT_FOUND, "PGRST125", "Invalid path specified in request URL")
    }

    /// 405 `PGRST117`: nothing is done with this method.
    pub fn method(method: &Method) -> Self {
        let text = format!("Unsupported HTTP method: {method}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "PGRST117", text)
    }

    /// 416 `PGRST103`: what is asked for begins behind the end.
    pub fn out_of_range(offset: u64, total: u64) -> Self {
        let text = "Requested range not satisfiable";
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "PGRST103", text).with_details(format!(
            "An offset of {offset} was requested, but there are only {total} rows."
        ))
    }

    /// 503 `PGRST000`: Postgres cannot be reached. Why is for the log only.
    pub fn unavailable() -> Self {
        let text = "Database connection error. Retrying the connection.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "PGRST000", text)
    }

    /// 504 `PGRST003`: all connections are in use.
    pub fn busy() -> Self {
        let text = "Timed out acquiring connection from connection pool.";
        Self::new(StatusCode::GATEWAY_TIMEOUT, "PGRST003", text)
    }

    /// 500: it took too long, though its statement did not.
    pub fn late() -> Self {
        let text = "canceling statement due to statement timeout";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "57014", text)
    }

    /// 500: an answer of our own statements is not what it must be.
    pub fn internal() -> Self {
        let text = "The answer of the database could not be read";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "PGRSTX00", text)
    }

    /// 400 21000: every row would change.
    pub fn unfiltered(verb: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "21000", format!("{verb} requires a WHERE clause"))
    }

    /// `WWW-Authenticate`, where a token is missing or no good.
    fn challenge(&self) -> Option<HeaderValue> {
        match (&*self.code, self.status) {
            ("PGRST302" | "42501", StatusCode::UNAUTHORIZED) => {
                Some(HeaderValue::from_static("Bearer"))
            }
            ("PGRST301" | "PGRST303", _) => {
                let text = self.message.replace(['"', '\\'], "'");
                let text = format!("Bearer error=\"invalid_token\", error_description=\"{text}\"");
                HeaderValue::from_str(&text).ok()
            }
            _ => None,
        }
    }
}

/// The status of an SQLSTATE, as the table in `rest.md` D5 has it.
fn status(code: &str, message: &str, is_anonymous: bool) -> StatusCode {
    let number = match code {
        "23503" | "23505" => 409,
        "25006" => 405,
        // What the safeupdate library of Supabase's images says.
        "21000" if message.ends_with("requires a WHERE clause") => 400,
        "42883" | "42P01" => 404,
        "21000" | "42P17" | "53400" => 500,
        "42501" if is_anonymous => 401,
        "42501" => 403,
        "57P01" | "57P02" | "57P03" => 503,
        "P0001" => 400,
        _ if code.starts_with("PT") => {
            let status = code.get(2..).and_then(|digits| digits.parse().ok());
            // What is below 200 is no end of an answer.
            status.filter(|status| (200..600).contains(status)).unwrap_or(500)
        }
        _ => match code.get(..2).unwrap_or_default() {
            "08" | "53" => 503,
            "0L" | "0P" | "28" => 403,
            "09" | "25" | "2D" | "38" | "39" | "3B" | "40" | "54" | "55" | "57" | "58" | "F0"
            | "HV" | "P0" | "XX" => 500,
            _ => 400,
        },
    };
    StatusCode::from_u16(number).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// Whether an SQLSTATE may mean that a statement was made from an old picture of the catalog.
pub(super) fn is_stale(code: &str) -> bool {
    matches!(code, "42P01" | "42703" | "42883" | "42704" | "0A000" | "3F000")
}

/// Whether an SQLSTATE may mean that a parameter had another type when its statement was prepared:
/// its text cannot be read as that type, or it does not fit where it stands.
pub(super) fn is_about_types(code: &str) -> bool {
    code.starts_with("22") || matches!(code, "42883" | "42804" | "42725" | "42846" | "0A000")
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body<'a> {
            code: &'a str,
            details: &'a Option<serde_json::Value>,
            hint: &'a Option<String>,
            message: &'a str,
        }
        let body = Body {
            code: &self.code,
            details: &self.details,
            hint: &self.hint,
            message: &self.message,
        };
        let body = serde_json::to_vec(&body).expect("it has no maps with other keys than text");
        let kind = HeaderValue::from_static("application/json; charset=utf-8");
        let mut response = (self.status, [(header::CONTENT_TYPE, kind)], body).into_response();
        let headers = response.headers_mut();
        if let Some(challenge) = self.challenge() {
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, RETRY_SECONDS);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sqlstate_has_its_status() {
        for (code, expected) in [
            ("23505", 409),
            ("23503", 409),
            ("23502", 400),
            ("23514", 400),
            ("22P02", 400),
            ("22021", 400),
            ("42703", 400),
            ("42P01", 404),
            ("42883", 404),
            ("42P17", 500),
            ("25006", 405),
            ("25P02", 500),
            ("P0001", 400),
            ("P0002", 500),
            ("08006", 503),
            ("53300", 503),
            ("53400", 500),
            ("57014", 500),
            ("57P01", 503),
            ("40001", 500),
            ("55P03", 500),
            ("38000", 500),
            ("XX000", 500),
            ("0LP01", 403),
            ("0P000", 403),
            ("28000", 403),
            ("PT402", 402),
            ("PT200", 200),
            ("PT404", 404),
            ("PT100", 500),
            ("PT9x9", 500),
            ("PTxyz", 500),
            ("PGRST", 400),
            ("12345", 400),
        ] {
            assert_eq!(status(code, "", false).as_u16(), expected, "{code}");
        }
        assert_eq!(status("42501", "", true), StatusCode::UNAUTHORIZED);
        assert_eq!(status("42501", "", false), StatusCode::FORBIDDEN);
        assert_eq!(status("21000", "DELETE requires a WHERE clause", false).as_u16(), 400);
        assert_eq!(status("21000", "more than one row returned", false).as_u16(), 500);
    }

    #[tokio::test]
    async fn every_answer_has_all_four_keys() {
        let response = Problem::query("select", "a name").into_response();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        let body = axum::body::to_bytes(response.into_body(), 1000).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let expected = serde_json::json!({
            "code": "PGRST100", "message": "failed to parse select", "details": "a name",
            "hint": null,
        });
        assert_eq!(body, expected);
    }

    #[test]
    fn whoever_needs_a_better_token_is_told() {
        let challenge = |problem: Problem| {
            let response = problem.into_response();
            let value = response.headers().get(header::WWW_AUTHENTICATE);
            value.map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(challenge(Problem::anonymous()).unwrap(), "Bearer");
        let expired = Problem::token(&TokenError::Expired { seconds: 1 });
        assert_eq!(
            challenge(expired).unwrap(),
            "Bearer error=\"invalid_token\", error_description=\"JWT expired\""
        );
        assert_eq!(challenge(Problem::token(&TokenError::Role)), None);
        assert_eq!(challenge(Problem::busy()), None);
        let claim = TokenError::Claim { name: "a\"\\b".into() };
        assert!(challenge(Problem::token(&claim)).unwrap().ends_with("claim a''b is not valid\""));
        let away = Problem::unavailable().into_response();
        assert_eq!(away.headers()[header::RETRY_AFTER], "1");
    }
}
