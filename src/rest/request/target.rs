//! Path, method and profile: what a request is about, what is done with it, and in which schema.

use axum::http::{HeaderMap, Method, StatusCode};
use percent_encoding::percent_decode_str;

use crate::rest::Problem;

/// Where Supabase has this interface. Its gateway takes it away before it passes requests on.
const PREFIX: [&str; 2] = ["rest", "v1"];

/// What a path names. The names are the client's, not looked up yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// `/`: the interface itself.
    Root,
    /// `/{table}`
    Relation(String),
    /// `/rpc/{function}`
    Function(String),
}

/// What is done with the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// GET, HEAD on the root: says what there is.
    Describe,
    /// GET, HEAD on a relation.
    Read,
    /// POST on a relation.
    Insert,
    /// PUT on a relation.
    Put,
    /// PATCH on a relation.
    Update,
    /// DELETE on a relation.
    Delete,
    /// GET, HEAD on a function: it may change nothing.
    CallReading,
    /// POST on a function.
    Call,
    /// OPTIONS on anything.
    Options,
}

impl Verb {
    /// Whether its transaction is read-only.
    pub fn is_read_only(self) -> bool {
        match self {
            Self::Describe | Self::Read | Self::CallReading | Self::Options => true,
            Self::Insert | Self::Put | Self::Update | Self::Delete | Self::Call => false,
        }
    }
}

impl Target {
    /// From a path, percent-encoded as it came, with `/rest/v1` in front or without.
    ///
    /// # Errors
    /// 404 `PGRST125` for any other path.
    pub fn parse(path: &str) -> Result<Self, Problem> {
        let path = path.strip_prefix('/').unwrap_or(path);
        let mut segments = path.split('/').map(segment).collect::<Option<Vec<_>>>();
        if let Some(segments) = &mut segments
            && segments.starts_with(&PREFIX.map(str::to_owned))
        {
            segments.drain(..PREFIX.len());
        }
        match segments.as_deref() {
            Some([]) => Ok(Self::Root),
            Some([root]) if root.is_empty() => Ok(Self::Root),
            Some([relation]) => Ok(Self::Relation(relation.clone())),
            Some([rpc, function]) if rpc == "rpc" && !function.is_empty() => {
                Ok(Self::Function(function.clone()))
            }
            Some(_) | None => Err(Problem::path()),
        }
    }

    /// What a method means here.
    ///
    /// # Errors
    /// 405 `PGRST101` for a function, `PGRST117` for anything else.
    pub fn verb(&self, method: &Method) -> Result<Verb, Problem> {
        let verb = match (self, method.as_str()) {
            (_, "OPTIONS") => Verb::Options,
            (Self::Root, "GET" | "HEAD") => Verb::Describe,
            (Self::Relation(_), "GET" | "HEAD") => Verb::Read,
            (Self::Relation(_), "POST") => Verb::Insert,
            (Self::Relation(_), "PUT") => Verb::Put,
            (Self::Relation(_), "PATCH") => Verb::Update,
            (Self::Relation(_), "DELETE") => Verb::Delete,
            (Self::Function(_), "GET" | "HEAD") => Verb::CallReading,
            (Self::Function(_), "POST") => Verb::Call,
            (Self::Function(_), other) => {
                let message = format!("Cannot use the {other} method on RPC");
                return Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, "PGRST101", message));
            }
            (Self::Root | Self::Relation(_), _) => return Err(Problem::method(method)),
        };
        Ok(verb)
    }

    /// What the path names, if it names something.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Root => None,
            Self::Relation(name) | Self::Function(name) => Some(name),
        }
    }
}

/// A part of a path, decoded; none when it is nothing that could have a name in Postgres.
fn segment(encoded: &str) -> Option<String> {
    let decoded = percent_decode_str(encoded).decode_utf8().ok()?;
    (!decoded.contains('\0')).then(|| decoded.into_owned())
}

/// The schema a request is about: what `Content-Profile` (of writes and calls) or `Accept-Profile`
/// (of the others) says, or the first of those that are exposed.
///
/// # Errors
/// 406 `PGRST106` for one that is not exposed.
pub fn profile<'a, S: AsRef<str>>(
    method: &Method,
    headers: &HeaderMap,
    exposed: &'a [S],
) -> Result<&'a str, Problem> {
    let header = match method.as_str() {
        "POST" | "PATCH" | "PUT" | "DELETE" => "content-profile",
        _ => "accept-profile",
    };
    let mut asked = headers.get_all(header).iter();
    let unknown = |name: &str| {
        let names: Vec<&str> = exposed.iter().map(AsRef::as_ref).collect();
        Problem::new(StatusCode::NOT_ACCEPTABLE, "PGRST106", format!("Invalid schema: {name}"))
            .with_hint(format!("Only the following schemas are exposed: {}", names.join(", ")))
    };
    let Some(first) = asked.next() else {
        return exposed.first().map(AsRef::as_ref).ok_or_else(|| unknown(""));
    };
    let name = String::from_utf8_lossy(first.as_bytes());
    // Two that differ cannot both be meant.
    if let Some(other) = asked.find(|other| *other != first) {
        let other = String::from_utf8_lossy(other.as_bytes());
        return Err(unknown(&format!("{name}, {other}")));
    }
    let found = exposed.iter().map(AsRef::as_ref).find(|schema| *schema == name);
    found.ok_or_else(|| unknown(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_a_relation_a_function_or_the_root() {
        let relation = |name: &str| Some(Target::Relation(name.to_owned()));
        let function = |name: &str| Some(Target::Function(name.to_owned()));
        for (path, expected) in [
            ("/rest/v1/todos", relation("todos")),
            ("/todos", relation("todos")),
            ("todos", relation("todos")),
            ("/rest", relation("rest")),
            ("/rpc", relation("rpc")),
            ("/rest/v1/rest", relation("rest")),
            ("/rest/v1/a%20b%22c", relation("a b\"c")),
            ("/rest/v1/a%2Fb", relation("a/b")),
            ("/rest/v1/a+b", relation("a+b")),
            ("/rest/v1/rpc/add", function("add")),
            ("/rpc/add", function("add")),
            ("/rpc/%C3%A4", function("ä")),
            ("/rest/v1/", Some(Target::Root)),
            ("/rest/v1", Some(Target::Root)),
            ("/", Some(Target::Root)),
            ("", Some(Target::Root)),
            ("/rest/v1/todos/", None),
            ("/rest/v1/todos/1", None),
            ("/rest/v1/rpc/", None),
            ("/rest/v1/rpc/a/b", None),
            ("/rest/v2/todos", None),
            ("//todos", None),
            ("/rest/v1/rest/v1/todos", None),
            ("/rest/v1/%00", None),
            ("/rest/v1/%ff", None),
        ] {
            assert_eq!(Target::parse(path).ok(), expected, "{path}");
        }
        let problem = Target::parse("/a/b/c").unwrap_err();
        assert_eq!((problem.status.as_u16(), &*problem.code), (404, "PGRST125"));
    }

    #[test]
    fn a_method_means_something_or_is_refused() {
        let check = |path: &str, method: &str, expected: Result<Verb, &str>| {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let verb = Target::parse(path).unwrap().verb(&method);
            let found = verb.map_err(|problem| {
                assert_eq!(problem.status, StatusCode::METHOD_NOT_ALLOWED);
                problem.to_string()
            });
            assert_eq!(found, expected.map_err(str::to_owned), "{method} {path}");
        };
        check("/a", "GET", Ok(Verb::Read));
        check("/a", "HEAD", Ok(Verb::Read));
        check("/a", "POST", Ok(Verb::Insert));
        check("/a", "PUT", Ok(Verb::Put));
        check("/a", "PATCH", Ok(Verb::Update));
        check("/a", "DELETE", Ok(Verb::Delete));
        check("/a", "OPTIONS", Ok(Verb::Options));
        check("/a", "TRACE", Err("PGRST117: Unsupported HTTP method: TRACE"));
        check("/a", "get", Err("PGRST117: Unsupported HTTP method: get"));
        check("/rpc/a", "GET", Ok(Verb::CallReading));
        check("/rpc/a", "HEAD", Ok(Verb::CallReading));
        check("/rpc/a", "POST", Ok(Verb::Call));
        check("/rpc/a", "PATCH", Err("PGRST101: Cannot use the PATCH method on RPC"));
        check("/", "GET", Ok(Verb::Describe));
        check("/", "POST", Err("PGRST117: Unsupported HTTP method: POST"));
    }

    #[test]
    fn a_schema_is_one_of_those_exposed() {
        let exposed = ["public", "other"];
        let asked = |method: Method, headers: &[(&'static str, &'static str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(*name, value.parse().unwrap());
            }
            profile(&method, &map, &exposed).map(str::to_owned)
        };
        let (accept, content) = ("accept-profile", "content-profile");
        assert_eq!(asked(Method::GET, &[]).unwrap(), "public");
        assert_eq!(asked(Method::GET, &[(accept, "other")]).unwrap(), "other");
        assert_eq!(asked(Method::HEAD, &[(accept, "other"), (accept, "other")]).unwrap(), "other");
        assert_eq!(asked(Method::GET, &[(content, "other")]).unwrap(), "public");
        for method in [Method::POST, Method::PATCH, Method::PUT, Method::DELETE] {
            let headers = [(accept, "secret"), (content, "other")];
            assert_eq!(asked(method, &headers).unwrap(), "other");
        }
        let problem = asked(Method::GET, &[(accept, "secret")]).unwrap_err();
        assert_eq!(problem.status, StatusCode::NOT_ACCEPTABLE);
        assert_eq!(problem.to_string(), "PGRST106: Invalid schema: secret");
        let hint = "Only the following schemas are exposed: public, other";
        assert_eq!(problem.hint.as_deref(), Some(hint));
        assert!(asked(Method::GET, &[(accept, "public"), (accept, "other")]).is_err());
        assert!(asked(Method::POST, &[(content, "")]).is_err());
        assert!(profile(&Method::GET, &HeaderMap::new(), &[""; 0]).is_err());
    }
}
