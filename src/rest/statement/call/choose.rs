//! Which of the functions of one name a request means.
//!
//! In:     a name, the names of what it is called with.
//! Out:    the one [`Function`] that takes exactly these, or why there is none.
//! Never:  a choice by type: what a value is, Postgres finds out.
//! Source: docs.postgrest.org/en/v12/references/api/functions.html, section "Overloaded functions"

use std::sync::Arc;

use axum::http::StatusCode;

use crate::rest::Problem;
use crate::rest::schema::{Argument, Function, Schema};
use crate::rest::statement::read::similar;

/// Arguments named to the client at most: as many as a function of Postgres can have.
const NAMED_MAX: usize = 100;

/// The function of this name that takes arguments of these names.
///
/// # Errors
/// 404 `PGRST202` when there is none, 300 `PGRST203` when several do, 400 `PGRST127` when there is
/// only one that takes the whole body.
pub fn choose<'a>(
    schema: &'a Schema,
    schema_name: &str,
    name: &str,
    arguments: &[&str],
) -> Result<&'a Function, Problem> {
    let overloads = schema.functions(schema_name, name);
    let fitting: Vec<&Arc<Function>> =
        overloads.iter().filter(|function| takes(function, arguments)).collect();
    match fitting.as_slice() {
        [one] => Ok(one),
        [] if overloads.iter().any(|function| takes_whole_body(function)) => {
            Err(Problem::not_implemented("functions with a single unnamed parameter"))
        }
        [] => Err(unknown(schema, schema_name, name, arguments)),
        several => Err(ambiguous(several)),
    }
}

/// The argument of this name.
pub(super) fn argument<'a>(function: &'a Function, name: &str) -> Option<&'a Argument> {
    function.arguments.iter().find(|argument| !name.is_empty() && &*argument.name == name)
}

/// Whether a call with these names, and no others, can be made.
fn takes(function: &Function, names: &[&str]) -> bool {
    let is_given = |argument: &Argument| {
        argument.has_default || (!argument.name.is_empty() && names.contains(&&*argument.name))
    };
    names.iter().all(|name| argument(function, name).is_some())
        && function.arguments.iter().all(is_given)
}

/// Whether its only argument has no name and is of a type that PostgREST fills with the body.
fn takes_whole_body(function: &Function) -> bool {
    let [only] = &*function.arguments else { return false };
    only.name.is_empty() && matches!(&*only.base_type, "json" | "jsonb" | "text" | "bytea" | "xml")
}

fn ambiguous(candidates: &[&Arc<Function>]) -> Problem {
    let described: Vec<String> = candidates.iter().map(|function| describe(function)).collect();
    let message =
        format!("Could not choose the best candidate function between: {}", described.join(", "));
    Problem::new(StatusCode::MULTIPLE_CHOICES, "PGRST203", message).with_hint(
        "Try renaming the parameters or the function itself in the database so function \
         overloading can be resolved",
    )
}

/// `schema.name(a => integer, b => text)`
fn describe(function: &Function) -> String {
    let arguments = function.arguments.iter();
    let arguments: Vec<String> =
        arguments.map(|argument| format!("{} => {}", argument.name, argument.type_sql)).collect();
    format!("{}.{}({})", function.schema, function.name, arguments.join(", "))
}

fn unknown(schema: &Schema, schema_name: &str, name: &str, arguments: &[&str]) -> Problem {
    let mut once: Vec<&str> = Vec::new();
    for argument in arguments {
        if once.len() == NAMED_MAX {
            break;
        }
        if !once.contains(argument) {
            once.push(argument);
        }
    }
    let names = once.join(", ");
    let (called, searched) = match once.as_slice() {
        [] => (String::from(" without parameters"), String::from(" without parameters")),
        [_] => (format!("({names})"), format!(" with parameter {names}")),
        _ => (format!("({names})"), format!(" with parameters {names}")),
    };
    let message =
        format!("Could not find the function {schema_name}.{name}{called} in the schema cache");
    let details = format!(
        "Searched for the function {schema_name}.{name}{searched}, but no matches were found in \
         the schema cache."
    );
    let problem = Problem::new(StatusCode::NOT_FOUND, "PGRST202", message).with_details(details);
    match closest(schema, schema_name, name, &once) {
        Some(closest) => {
            problem.with_hint(format!("Perhaps you meant to call the function {closest}"))
        }
        None => problem,
    }
}

/// What may have been meant: the function of this name whose arguments differ least, or the one
/// whose name does.
fn closest(schema: &Schema, schema_name: &str, name: &str, arguments: &[&str]) -> Option<String> {
    let overloads = schema.functions(schema_name, name);
    let by_arguments = overloads.iter().min_by_key(|function| difference(function, arguments));
    if let Some(function) = by_arguments {
        let names: Vec<&str> = function.arguments.iter().map(|argument| &*argument.name).collect();
        return Some(format!("{schema_name}.{name}({})", names.join(", ")));
    }
    let names = schema.functions.keys().filter(|(schema, _)| &**schema == schema_name);
    let nearest = similar::closest(name, names.map(|(_, name)| &**name))?;
    Some(format!("{schema_name}.{nearest}"))
}

/// How many names are given and not taken, or needed and not given.
fn difference(function: &Function, names: &[&str]) -> usize {
    let surplus = names.iter().filter(|name| argument(function, name).is_none()).count();
    let lacking = function
        .arguments
        .iter()
        .filter(|argument| !argument.has_default && !names.contains(&&*argument.name));
    surplus + lacking.count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rest::schema::{Returns, Volatility};

    fn function(name: &str, arguments: &[&str]) -> Arc<Function> {
        let argument = |described: &&str| {
            let (name, rest) = described.split_once(':').unwrap();
            Argument {
                name: name.into(),
                type_sql: rest.trim_end_matches('?').into(),
                base_type: rest.trim_end_matches('?').into(),
                category: 'U',
                has_default: rest.ends_with('?'),
                is_variadic: false,
            }
        };
        Arc::new(Function {
            oid: 0,
            schema: "api".into(),
            name: name.into(),
            comment: None,
            arguments: arguments.iter().map(argument).collect(),
            returns: Returns::Void,
            returns_set: false,
            volatility: Volatility::Volatile,
        })
    }

    fn schema() -> Schema {
        let functions = [
            function("add", &["a:integer", "b:integer?"]),
            function("twice", &["a:integer"]),
            function("twice", &["a:text"]),
            function("twice", &["b:text"]),
            function("whole", &[":json"]),
            function("nothing", &[]),
        ];
        let mut schema = Schema::default();
        for function in functions {
            let key = (function.schema.clone(), function.name.clone());
            schema.functions.entry(key).or_default().push(function);
        }
        schema
    }

    #[track_caller]
    fn check(name: &str, arguments: &[&str], expected: &str) {
        let schema = schema();
        let found = match choose(&schema, "api", name, arguments) {
            Ok(function) => describe(function),
            Err(problem) => {
                let details = problem.details.unwrap_or_default();
                let hint = problem.hint.unwrap_or_default();
                format!("{} {} | {} | {}", problem.code, problem.message, details, hint)
            }
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn a_function_is_found_by_the_names_of_its_arguments() {
        check("add", &["a"], "api.add(a => integer, b => integer)");
        check("add", &["b", "a"], "api.add(a => integer, b => integer)");
        check("twice", &["b"], "api.twice(b => text)");
        check("nothing", &[], "api.nothing()");
    }

    #[test]
    fn several_that_fit_are_named() {
        check(
            "twice",
            &["a"],
            "PGRST203 Could not choose the best candidate function between: \
             api.twice(a => integer), api.twice(a => text) | null | Try renaming the parameters or \
             the function itself in the database so function overloading can be resolved",
        );
    }

    #[test]
    fn none_that_fits_is_a_404_that_says_what_was_searched_for() {
        check(
            "add",
            &["a", "c"],
            "PGRST202 Could not find the function api.add(a, c) in the schema cache | \"Searched \
             for the function api.add with parameters a, c, but no matches were found in the \
             schema cache.\" | Perhaps you meant to call the function api.add(a, b)",
        );
        check(
            "zap",
            &[],
            "PGRST202 Could not find the function api.zap without parameters in the schema cache | \
             \"Searched for the function api.zap without parameters, but no matches were found in \
             the schema cache.\" | ",
        );
        check(
            "nothnig",
            &["x", "x"],
            "PGRST202 Could not find the function api.nothnig(x) in the schema cache | \"Searched \
             for the function api.nothnig with parameter x, but no matches were found in the \
             schema cache.\" | Perhaps you meant to call the function api.nothing",
        );
    }

    #[test]
    fn no_more_is_named_than_a_function_could_take() {
        let names: Vec<String> = (0..200_000).map(|number| format!("a{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let problem = choose(&schema(), "api", "add", &names).unwrap_err();
        assert!(problem.message.contains(", a99) in the schema cache"), "{}", problem.message);
    }

    #[test]
    fn an_argument_without_a_name_cannot_be_given() {
        let unnamed = "PGRST127 Feature not implemented | \"functions with a single unnamed \
                       parameter\" | ";
        check("whole", &[], unnamed);
        check("whole", &[""], unnamed);
    }
}
