//! What Postgres says → what a client is told.
//!
//! In:     an error of a statement, by its SQLSTATE.
//! Out:    [`Refused`]: a stable code, a plain sentence, and the request with what is added to it.
//! Never:  a message of Postgres, but of a function that says it to the client with an errcode `PTxxx`.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::members::Ordered;
use crate::rest::problem::Problem;

/// Where Postgres does not answer.
pub(super) const UNAVAILABLE: &str = "UNAVAILABLE";

/// Why nothing was done.
#[derive(Debug)]
pub struct Refused {
    /// Stable, in capitals.
    pub code: Cow<'static, str>,
    /// A sentence for people.
    pub message: Cow<'static, str>,
    /// A JSON object: of a command its payload, and what there is to add.
    pub context: Option<Box<RawValue>>,
}

impl Refused {
    /// Without a context.
    pub fn new(code: impl Into<Cow<'static, str>>, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code: code.into(), message: message.into(), context: None }
    }

    /// `VALIDATION_FAILED`: what came is not as it must be.
    pub(super) fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new("VALIDATION_FAILED", message)
    }

    /// With a member in its context.
    #[must_use]
    pub(super) fn with(mut self, name: &str, value: Option<Box<RawValue>>) -> Self {
        let Some(value) = value else { return self };
        let members = Ordered(vec![(name.to_owned(), &value)]);
        self.context = serde_json::value::to_raw_value(&members).ok();
        self
    }

    /// With the request in its context, what is there already in front of its members of these names.
    #[must_use]
    pub(super) fn about(mut self, payload: &RawValue) -> Self {
        let Ok(Ordered(sent)) = serde_json::from_str(payload.get()) else { return self };
        let own = self.context.take();
        let own = own.as_deref().map_or("{}", RawValue::get);
        let Ok(Ordered(own)) = serde_json::from_str(own) else { return self };
        let is_own = |name: &str| own.iter().any(|(own, _)| own == name);
        let mut all: Vec<_> = sent.into_iter().filter(|(name, _)| !is_own(name)).collect();
        all.extend(own.iter().map(|(name, value)| (name.clone(), *value)));
        self.context = serde_json::value::to_raw_value(&Ordered(all)).ok();
        self
    }
}

/// What a command says where something is wrong.
#[derive(Debug, Clone, Copy)]
pub(super) struct Words<'a> {
    /// The code where something unforeseen happened.
    pub(super) failed: &'a str,
    /// The text then.
    pub(super) failed_message: &'a str,
    /// The text where he may not.
    pub(super) denied: &'a str,
}

impl Default for Words<'_> {
    fn default() -> Self {
        Self {
            failed: "COMMAND_FAILED",
            failed_message: "The command failed",
            denied: "Insufficient permissions",
        }
    }
}

impl Words<'_> {
    /// Something unforeseen happened.
    pub(super) fn failed(&self) -> Refused {
        Refused::new(self.failed.to_owned(), self.failed_message.to_owned())
    }

    /// He may not.
    pub(super) fn denied(&self) -> Refused {
        Refused::new("PERMISSION_DENIED", self.denied.to_owned())
    }
}

/// Whether an SQLSTATE says that a declaration names what is not there.
pub(super) fn is_of_declaration(code: &str) -> bool {
    matches!(code, "42883" | "42P01" | "42703" | "3F000" | "42704" | "42804")
}

/// What a client is told of an error.
pub(super) fn of(problem: &Problem, words: &Words<'_>) -> Refused {
    let code = &*problem.code;
    if let Some(digits) = code.strip_prefix("PT").filter(|_| code.len() == 5) {
        return said(problem, digits, words);
    }
    let invalid = |text: &'static str| Refused::invalid(text);
    match code {
        "42501" => words.denied(),
        "23502" => invalid("A value is missing"),
        "23503" => invalid("It refers to something that does not exist, or is referred to"),
        "23505" => invalid("It exists already"),
        // A key was used for another request.
        _ if problem.status.as_u16() == 422 => invalid("mutationId was used for another request"),
        _ if code.starts_with("22") || code.starts_with("23") => invalid("A value is not valid"),
        _ if problem.is_no_keys() => unavailable(),
        "PGRST000" | "PGRST003" => unavailable(),
        _ if ["08", "53", "57P"].iter().any(|class| code.starts_with(class)) => unavailable(),
        _ => words.failed(),
    }
}

fn unavailable() -> Refused {
    Refused::new(UNAVAILABLE, "The database does not answer: try again")
}

/// Bytes of a code that a function gives.
const CODE_BYTES_MAX: usize = 64;

/// What a function says to the client: its own words, the code that is its HINT, and those of its DETAIL
/// that are an object.
fn said(problem: &Problem, digits: &str, words: &Words<'_>) -> Refused {
    let (code, without): (Cow<'static, str>, &str) = match digits {
        "400" => ("VALIDATION_FAILED".into(), "A value is not valid"),
        "401" | "403" => ("PERMISSION_DENIED".into(), words.denied),
        "404" => ("NOT_FOUND".into(), "Not found"),
        "409" => ("STALE_UPDATE".into(), "It was changed by somebody else meanwhile"),
        _ => (words.failed.to_owned().into(), words.failed_message),
    };
    let is_code = |hint: &&str| {
        let is_part = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
        (1..=CODE_BYTES_MAX).contains(&hint.len())
            && hint.starts_with(|c: char| c.is_ascii_uppercase())
            && hint.bytes().all(is_part)
    };
    let own = problem.hint.as_deref().filter(is_code);
    let code = own.map_or(code, |own| own.to_owned().into());
    // Without a message Postgres repeats the code.
    let is_told = !problem.message.is_empty() && *problem.message != *problem.code;
    let message = if is_told { &*problem.message } else { without };
    let mut refused = Refused::new(code, message.to_owned());
    let detail = problem.details.as_ref().and_then(serde_json::Value::as_str);
    if let Some(detail) = detail
        && serde_json::from_str::<Ordered<'_>>(detail).is_ok()
    {
        refused.context = RawValue::from_string(detail.to_owned()).ok();
    }
    refused
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    const WORDS: Words<'static> =
        Words { failed: "UPDATE_FAILED", failed_message: "no luck", denied: "not you" };

    fn problem(code: &'static str) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, code, "secret words").with_details(r#"{"a":1}"#)
    }

    #[test]
    fn each_sqlstate_has_its_code_and_no_words_of_postgres() {
        for (code, expected, message) in [
            ("42501", "PERMISSION_DENIED", "not you"),
            ("22P02", "VALIDATION_FAILED", "A value is not valid"),
            ("23514", "VALIDATION_FAILED", "A value is not valid"),
            ("23505", "VALIDATION_FAILED", "It exists already"),
            ("P0001", "UPDATE_FAILED", "no luck"),
            ("XX000", "UPDATE_FAILED", "no luck"),
            ("57014", "UPDATE_FAILED", "no luck"),
            ("PT4", "UPDATE_FAILED", "no luck"),
            ("57P01", "UNAVAILABLE", "The database does not answer: try again"),
            ("53300", "UNAVAILABLE", "The database does not answer: try again"),
            ("PGRST003", "UNAVAILABLE", "The database does not answer: try again"),
        ] {
            let refused = of(&problem(code), &WORDS);
            assert_eq!((&*refused.code, &*refused.message), (expected, message), "{code}");
            assert!(refused.context.is_none());
        }
        let refused = of(&Problem::key_of_another(), &WORDS);
        assert_eq!(refused.code, "VALIDATION_FAILED");
    }

    #[test]
    fn what_a_function_says_is_told() {
        for (code, expected) in [
            ("PT400", "VALIDATION_FAILED"),
            ("PT403", "PERMISSION_DENIED"),
            ("PT404", "NOT_FOUND"),
            ("PT409", "STALE_UPDATE"),
            ("PT418", "UPDATE_FAILED"),
        ] {
            let refused = of(&problem(code), &WORDS);
            assert_eq!((&*refused.code, &*refused.message), (expected, "secret words"), "{code}");
            assert_eq!(refused.context.unwrap().get(), r#"{"a":1}"#);
            let bare = Problem::new(StatusCode::BAD_REQUEST, code, code).with_details("plain");
            let refused = of(&bare, &WORDS);
            assert!(refused.message != code && refused.context.is_none(), "{refused:?}");
        }
    }

    #[test]
    fn a_function_gives_a_code_of_its_own_in_its_hint() {
        for (code, hint, expected) in [
            ("PT403", "ACCESS_DENIED", "ACCESS_DENIED"),
            ("PT429", "ROOM_FULL2", "ROOM_FULL2"),
            ("PT403", "Ask the owner", "PERMISSION_DENIED"),
            ("PT404", "_X", "NOT_FOUND"),
            ("PT404", "X-Y", "NOT_FOUND"),
            ("PT404", "", "NOT_FOUND"),
            ("42501", "ACCESS_DENIED", "PERMISSION_DENIED"),
            ("P0001", "ACCESS_DENIED", "UPDATE_FAILED"),
        ] {
            let refused = of(&problem(code).with_hint(hint), &WORDS);
            assert_eq!(refused.code, expected, "{code} {hint}");
        }
        let long = problem("PT404").with_hint("X".repeat(CODE_BYTES_MAX + 1));
        assert_eq!(of(&long, &WORDS).code, "NOT_FOUND");
    }

    #[test]
    fn the_context_is_the_request_with_what_is_added() {
        let payload = |text: &str| RawValue::from_string(text.into()).unwrap();
        let refused =
            of(&problem("PT409"), &WORDS).about(&payload(r#"{"id":1,"a":"mine","z":[]}"#));
        assert_eq!(refused.context.unwrap().get(), r#"{"id":1,"z":[],"a":1}"#);
        let refused = Refused::invalid("x").about(&payload(r#"{"id":1}"#));
        assert_eq!(refused.context.unwrap().get(), r#"{"id":1}"#);
        let refused = of(&problem("PT409"), &WORDS).about(&payload("[1]"));
        assert_eq!(refused.context.unwrap().get(), r#"{"a":1}"#);
        assert!(Refused::invalid("x").about(&payload("1")).context.is_none());
    }
}
