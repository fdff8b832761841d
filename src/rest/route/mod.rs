//! Paths of an application's own that stand for a REST request, as `walcast.route()` declares them.
//! Pure.
//!
//! In:     rows of `walcast.routes`; a method and a path; claims, query and body of a request.
//! Out:    [`Found`]; the ordinary request that it stands for ([`Filled`]).
//! Never:  a value from a path or a token as anything but one whole value; a parameter or key that
//!         the route fixes from the client; a right that the target's own policies do not give.
//! Source: `sql/functions/walcast.route.sql`
//!
//! Words of a path win over `{names}`, from left to right. A route for GET answers HEAD, too.

mod target;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use bytes::Bytes;
use percent_encoding::percent_decode_str;
use serde_json::value::RawValue;

use super::Problem;
use super::request::{Body, Target, Verb};
use crate::auth::Claims;
use target::Template;

/// Where all of them are.
const PREFIX: &str = "/api/";

/// What is ours there: the first segment.
const OURS: [&str; 3] = ["ping", "broadcast", "tenants"];

/// Segments of one path: far more than anybody nests, and few enough to walk.
const SEGMENTS_MAX: usize = 32;

const METHODS: [&str; 5] = ["GET", "POST", "PATCH", "PUT", "DELETE"];

/// A key of a JSON object, and the JSON text of its value.
type Key = (Box<str>, Box<RawValue>);

/// One row, not looked at yet.
#[derive(Debug, Clone, Default)]
pub struct Declared {
    /// The client's method.
    pub method: String,
    /// `/api/stories/{id}`
    pub path: String,
    /// `PATCH /stories?id=eq.{id}`
    pub target: String,
    /// Schema, when the client names none.
    pub profile: Option<String>,
    /// `Prefer`, when the client sends none.
    pub prefer: Option<String>,
    /// `Accept`, when the client has no wish: without one it is `*/*` to many.
    pub accept: Option<String>,
    /// A JSON object whose keys win over the client's.
    pub body: Option<String>,
}

/// All that are declared.
#[derive(Debug, Default)]
pub struct Routes {
    root: Node,
}

/// A place in a path: what may come next, and what ends here.
#[derive(Debug, Default)]
struct Node {
    words: HashMap<Box<str>, Node>,
    parameter: Option<Box<Node>>,
    /// By method.
    routes: Vec<Arc<Route>>,
}

/// One of them.
#[derive(Debug)]
pub struct Route {
    method: Method,
    /// Of the segments that are no words, in order.
    names: Box<[Box<str>]>,
    template: Template,
    defaults: HeaderMap,
    /// By key; values are JSON text.
    body: Option<Box<[Key]>>,
}

/// What a path is.
#[derive(Debug)]
pub enum Found {
    /// This route, with what stands in the place of its names.
    Route(Arc<Route>, Vec<String>),
    /// Nothing with this method, but with these.
    Others(Vec<Method>),
    /// Nothing.
    Nothing,
}

/// An ordinary request in place of the client's.
#[derive(Debug)]
pub struct Filled {
    /// Its method.
    pub method: Method,
    /// Its target.
    pub target: Target,
    /// What is done with that.
    pub verb: Verb,
    /// Its query string.
    pub query: String,
    /// What its body has in addition: JSON text by key.
    keys: Option<Vec<Key>>,
}

impl Routes {
    /// From rows. Those that mean nothing are left out, and told to `refused`, as are those that
    /// another one of the same shape comes before.
    pub fn new(rows: Vec<Declared>, mut refused: impl FnMut(&Declared, &str)) -> Self {
        let mut routes = Self::default();
        for row in rows {
            if let Err(why) = routes.add(&row) {
                refused(&row, why);
            }
        }
        routes
    }

    fn add(&mut self, row: &Declared) -> Result<(), &'static str> {
        let path = row.path.strip_prefix(PREFIX).ok_or("its path does not begin with /api/")?;
        let segments: Vec<&str> = path.split('/').collect();
        if segments.len() > SEGMENTS_MAX {
            return Err("its path is too long");
        }
        let mut names: Vec<Box<str>> = Vec::new();
        let mut node = &mut self.root;
        for (place, segment) in segments.into_iter().enumerate() {
            node = if let Some(name) = target::parameter(segment) {
                if names.iter().any(|known| **known == *name) {
                    return Err("its path has a name twice");
                }
                names.push(name.into());
                node.parameter.get_or_insert_default()
            } else if !target::is_word(segment) || (place == 0 && OURS.contains(&segment)) {
                return Err("its path cannot be one");
            } else {
                node.words.entry(segment.into()).or_default()
            };
        }
        let route = Route::new(row, names)?;
        if node.routes.iter().any(|known| known.method == route.method) {
            return Err("there is another one of the same shape");
        }
        node.routes.push(Arc::new(route));
        Ok(())
    }

    /// What `path`, what comes behind `/api/`, is for `method`.
    pub fn find(&self, method: &Method, path: &str) -> Found {
        let mut segments = Vec::new();
        for segment in path.split('/') {
            if segments.len() >= SEGMENTS_MAX {
                return Found::Nothing;
            }
            // What is no text is no word, and no value that anything could be compared with.
            let Ok(segment) = percent_decode_str(segment).decode_utf8() else {
                return Found::Nothing;
            };
            segments.push(segment);
        }
        let mut others = Vec::new();
        let mut values = Vec::new();
        match self.root.find(method, &segments, &mut values, &mut others) {
            Some(route) => Found::Route(route, values),
            None if others.is_empty() => Found::Nothing,
            None => {
                others.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
                others.dedup();
                Found::Others(others)
            }
        }
    }
}

impl Node {
    /// Each node is looked at once at most: what leads to it is one path.
    fn find(
        &self,
        method: &Method,
        segments: &[Cow<'_, str>],
        values: &mut Vec<String>,
        others: &mut Vec<Method>,
    ) -> Option<Arc<Route>> {
        let Some((first, rest)) = segments.split_first() else {
            let found = self.routes.iter().find(|route| route.answers(method));
            if found.is_none() {
                let known = [Method::HEAD]
                    .into_iter()
                    .chain(self.routes.iter().map(|route| route.method.clone()));
                others.extend(
                    known.filter(|known| self.routes.iter().any(|route| route.answers(known))),
                );
            }
            return found.map(Arc::clone);
        };
        if let Some(node) = self.words.get(&**first)
            && let Some(found) = node.find(method, rest, values, others)
        {
            return Some(found);
        }
        let node = self.parameter.as_ref().filter(|_| !first.is_empty())?;
        values.push(first.clone().into_owned());
        let found = node.find(method, rest, values, others);
        if found.is_none() {
            values.pop();
        }
        found
    }
}

impl Route {
    fn new(row: &Declared, names: Vec<Box<str>>) -> Result<Self, &'static str> {
        let known = METHODS.contains(&row.method.as_str());
        let method = Method::from_bytes(row.method.as_bytes()).ok().filter(|_| known);
        let template = Template::parse(&row.target, &names)?;
        let profile = match template.method.as_str() {
            "GET" => "accept-profile",
            _ => "content-profile",
        };
        let mut defaults = HeaderMap::new();
        for (name, value) in [
            (HeaderName::from_static(profile), &row.profile),
            (HeaderName::from_static("prefer"), &row.prefer),
            (header::ACCEPT, &row.accept),
        ] {
            if let Some(value) = value {
                let value = HeaderValue::from_str(value).map_err(|_| "a header is not plain")?;
                defaults.insert(name, value);
            }
        }
        let body = row.body.as_deref().map(|body| object(body).ok_or("its body is no object"));
        let body = body.transpose()?;
        if body.is_some() && !takes_body(template.verb) {
            return Err("its target takes no body");
        }
        let method = method.ok_or("its method is none")?;
        Ok(Self { method, names: names.into(), template, defaults, body: body.map(Into::into) })
    }

    fn answers(&self, method: &Method) -> bool {
        self.method == *method
            || *method == Method::HEAD
                && self.method == Method::GET
                && self.template.method == Method::GET
    }

    /// The request that it stands for: of whoever has `claims`, with `values` in the place of its
    /// names, and what the client's own `query` adds.
    ///
    /// # Errors
    /// 401 or 403 when a claim is missing; 400 for what the client may not say, or that would
    /// become something else than a value.
    pub fn fill(
        &self,
        method: &Method,
        values: &[String],
        claims: &Claims,
        is_anonymous: bool,
        query: &str,
    ) -> Result<Filled, Problem> {
        let value = |name: &str| {
            let place = self.names.iter().position(|known| **known == *name);
            place.and_then(|place| values.get(place)).map(String::as_str)
        };
        let filled = self.template.fill(value, claims, is_anonymous)?;
        let mut text = filled.query;
        target::check_own(query, |name| {
            self.template.fixes(name) || name == "columns" && self.body.is_some()
        })?;
        if !query.is_empty() {
            if !text.is_empty() {
                text.push('&');
            }
            text.push_str(query);
        }
        let mut keys = self.body.as_deref().map(<[_]>::to_vec);
        if !filled.arguments.is_empty() {
            let keys = keys.get_or_insert_default();
            keys.retain(|(name, _)| !filled.arguments.iter().any(|(own, _)| own == name));
            keys.extend(filled.arguments);
        }
        let is_head = *method == Method::HEAD;
        Ok(Filled {
            method: if is_head { Method::HEAD } else { self.template.method.clone() },
            target: self.template.target.clone(),
            verb: self.template.verb,
            query: text,
            keys,
        })
    }

    /// The client's headers, with the route's own where it sends none.
    pub fn headers(&self, sent: &HeaderMap) -> HeaderMap {
        let mut headers = sent.clone();
        for (name, value) in &self.defaults {
            let is_any = |value: &HeaderValue| {
                let text = value.to_str().unwrap_or_default();
                text.split(',').any(|kind| kind.trim().starts_with("*/*"))
            };
            let is_said = match *name {
                header::ACCEPT => sent.contains_key(name) && !sent.get_all(name).iter().any(is_any),
                _ => sent.contains_key(name),
            };
            if !is_said {
                headers.insert(name.clone(), value.clone());
            }
        }
        headers
    }
}

impl Filled {
    /// Whether it has a body.
    pub fn takes_body(&self) -> bool {
        takes_body(self.verb)
    }

    /// The body, with the keys of the route. Headers that were about the client's change with it.
    ///
    /// # Errors
    /// 400 `PGRST102` when there are such keys, and the client's body is no JSON object.
    pub fn body(&mut self, headers: &mut HeaderMap, sent: Bytes) -> Result<Bytes, Problem> {
        let Some(keys) = self.keys.take() else { return Ok(sent) };
        let parsed = Body::parse(headers, sent)?;
        let text = match &parsed {
            Body::Empty => Some("{}"),
            Body::Object { text, .. } => std::str::from_utf8(text).ok(),
            Body::Array { .. } | Body::Other(_) => None,
        };
        let object = text.and_then(object);
        let mut object = object.ok_or_else(|| Problem::body("The body must be a JSON object"))?;
        // The last of a name counts; so that nobody has to know that, there is one.
        object.retain(|(name, _)| !keys.iter().any(|(own, _)| own == name));
        object.extend(keys);
        headers.remove(header::CONTENT_LENGTH);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let mut text = String::from("{");
        for (place, (name, value)) in object.iter().enumerate() {
            if place > 0 {
                text.push(',');
            }
            text.push_str(&serde_json::Value::from(&**name).to_string());
            text.push(':');
            text.push_str(value.get());
        }
        text.push('}');
        Ok(text.into())
    }
}

fn takes_body(verb: Verb) -> bool {
    match verb {
        Verb::Insert | Verb::Put | Verb::Update | Verb::Call => true,
        Verb::Describe | Verb::Read | Verb::Delete | Verb::CallReading | Verb::Options => false,
    }
}

/// The keys of a JSON object, each once, their values as they are written.
fn object(text: &str) -> Option<Vec<Key>> {
    let object: HashMap<String, Box<RawValue>> = serde_json::from_str(text).ok()?;
    let mut object: Vec<Key> =
        object.into_iter().map(|(name, value)| (name.into_boxed_str(), value)).collect();
    object.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    Some(object)
}

#[cfg(test)]
mod tests;
