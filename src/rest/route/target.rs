//! What a route stands for: `PATCH /stories?id=eq.{id}`.

use axum::http::{Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use serde_json::value::to_raw_value;

use super::Key;
use crate::auth::Claims;
use crate::rest::Problem;
use crate::rest::request::{Target, Verb, arguments, pairs};

/// A request with holes.
#[derive(Debug)]
pub(super) struct Template {
    pub(super) method: Method,
    pub(super) target: Target,
    pub(super) verb: Verb,
    pairs: Box<[Pair]>,
}

/// One parameter of its query string.
#[derive(Debug)]
struct Pair {
    name: Box<str>,
    /// The value, or what stands before its hole.
    text: Box<str>,
    hole: Option<Hole>,
    /// Of a function: it is called with this.
    is_argument: bool,
}

/// What is filled in.
#[derive(Debug)]
enum Hole {
    /// A segment of the path.
    Name(Box<str>),
    /// A claim: names of keys, from the outermost in.
    Claim(Box<[Box<str>]>),
}

/// A template without holes.
pub(super) struct Whole {
    pub(super) query: String,
    /// Arguments of a function that takes them from the body: JSON text by name.
    pub(super) arguments: Vec<Key>,
}

impl Template {
    /// Reads it; `names` are what a path can fill in.
    pub(super) fn parse(text: &str, names: &[Box<str>]) -> Result<Self, &'static str> {
        let (method, place) = text.split_once(' ').ok_or("its target has no method")?;
        let known = super::METHODS.contains(&method);
        let method = Method::from_bytes(method.as_bytes()).ok().filter(|_| known);
        let method = method.ok_or("the method of its target is none")?;
        let (path, query) = place.split_once('?').unwrap_or((place, ""));
        if !path.starts_with('/') || path.contains(['{', '}']) {
            return Err("its target has no path of its own");
        }
        let target = Target::parse(path).map_err(|_| "the path of its target names nothing")?;
        let verb = target.verb(&method).map_err(|_| "its target has no such method")?;
        if verb == Verb::Describe {
            return Err("its target is nothing that has rows");
        }
        let calls = matches!(target, Target::Function(_));
        let mut found = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            found.push(Pair::parse(pair, names, calls)?);
        }
        Ok(Self { method, target, verb, pairs: found.into() })
    }

    /// Whether the client may not say this.
    pub(super) fn fixes(&self, name: &str) -> bool {
        self.pairs.iter().any(|pair| *pair.name == *name)
    }

    /// With all holes filled.
    pub(super) fn fill<'v>(
        &self,
        value: impl Fn(&str) -> Option<&'v str>,
        claims: &Claims,
        is_anonymous: bool,
    ) -> Result<Whole, Problem> {
        let mut whole = Whole { query: String::new(), arguments: Vec::new() };
        // Read once, and only where it is asked for.
        let mut told = None;
        for pair in &self.pairs {
            let filled = match &pair.hole {
                None => String::new(),
                Some(Hole::Name(name)) => value(name).ok_or_else(Problem::internal)?.to_owned(),
                Some(Hole::Claim(path)) => {
                    let told = told.get_or_insert_with(|| {
                        serde_json::from_str(&claims.json).unwrap_or(Value::Null)
                    });
                    claim(told, path).ok_or_else(|| missing(path, is_anonymous))?
                }
            };
            let text = format!("{}{filled}", pair.text);
            if pair.is_argument && self.verb == Verb::Call {
                let text = to_raw_value(&text).map_err(|_| Problem::internal())?;
                whole.arguments.push((pair.name.clone(), text));
                continue;
            }
            // Else the function would be called without it, and its result filtered.
            if pair.is_argument && pair.hole.is_some() && arguments(&[("", &text)]).is_empty() {
                let message = format!("The value of {} cannot be given to a function", pair.name);
                return Err(Problem::new(StatusCode::BAD_REQUEST, "PGRST100", message));
            }
            if !whole.query.is_empty() {
                whole.query.push('&');
            }
            whole.query.extend(utf8_percent_encode(&pair.name, NON_ALPHANUMERIC));
            whole.query.push('=');
            whole.query.extend(utf8_percent_encode(&text, NON_ALPHANUMERIC));
        }
        Ok(whole)
    }
}

impl Pair {
    fn parse(pair: &str, names: &[Box<str>], calls: bool) -> Result<Self, &'static str> {
        let (name, value) = pair.split_once('=').ok_or("a parameter of its target has no value")?;
        if name.contains(['{', '}']) {
            return Err("a name in its target is not its own");
        }
        let (text, hole) = match value.find(['{', '}']) {
            None => (value, None),
            Some(start) => {
                let (text, hole) = value.split_at(start);
                if !text.is_empty() && !text.ends_with('.') {
                    return Err("a value in its target is not a whole one");
                }
                (text, Some(Hole::parse(hole, names)?))
            }
        };
        // As the query string of a request, which it is a part of one day.
        let unreadable = |_| "its target cannot be read";
        let text = format!("{name}={text}");
        let decoded = pairs(&text).map_err(unreadable)?;
        let [(name, text)] = &*decoded else { return Err("its target cannot be read") };
        let is_argument = calls && !arguments(&[(name, text)]).is_empty();
        // Behind a point there is no argument, whatever fills it.
        let is_argument = is_argument && (hole.is_none() || text.is_empty());
        Ok(Self { name: (&**name).into(), text: (&**text).into(), hole, is_argument })
    }
}

impl Hole {
    fn parse(text: &str, names: &[Box<str>]) -> Result<Self, &'static str> {
        let inside = text.strip_prefix('{').and_then(|text| text.strip_suffix('}'));
        let inside = inside.ok_or("a value in its target is not a whole one")?;
        if let Some(path) = inside.strip_prefix("claims.") {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
            let keys: Vec<Box<str>> = path.split('.').map(Box::from).collect();
            if keys.iter().any(|key| key.is_empty() || !key.chars().all(is_plain)) {
                return Err("a claim in its target has no such name");
            }
            return Ok(Self::Claim(keys.into()));
        }
        if !names.iter().any(|name| **name == *inside) {
            return Err("its target has a name that its path does not have");
        }
        Ok(Self::Name(inside.into()))
    }
}

/// `{name}`: the name.
pub(super) fn parameter(segment: &str) -> Option<&str> {
    let name = segment.strip_prefix('{')?.strip_suffix('}')?;
    let mut characters = name.chars();
    let first = characters.next().is_some_and(|c| c.is_ascii_lowercase() || c == '_');
    let rest = characters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    (first && rest).then_some(name)
}

/// Whether it can be a part of a path as it is.
pub(super) fn is_word(segment: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._~-".contains(c);
    segment.chars().all(is_plain) && !segment.trim_matches('.').is_empty()
}

/// Refuses a client's query that says what is not the client's to say.
pub(super) fn check_own(query: &str, is_fixed: impl Fn(&str) -> bool) -> Result<(), Problem> {
    for (name, _) in pairs(query)? {
        if is_fixed(&name) {
            let message = format!("The parameter {name} is set by this path");
            return Err(Problem::new(StatusCode::BAD_REQUEST, "PGRST100", message));
        }
    }
    Ok(())
}

/// A claim that is text or a number.
fn claim(claims: &Value, path: &[Box<str>]) -> Option<String> {
    let found = path.iter().try_fold(claims, |value, key| value.as_object()?.get(&**key))?;
    match found {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Nobody has signed in: 401. Whoever did has another token than is needed: 403.
fn missing(path: &[Box<str>], is_anonymous: bool) -> Problem {
    let name = path.join(".");
    let (status, message) = if is_anonymous {
        (StatusCode::UNAUTHORIZED, format!("A token with the claim {name} is needed"))
    } else {
        (StatusCode::FORBIDDEN, format!("The token has no claim {name}"))
    };
    Problem::new(status, "42501", message)
}
