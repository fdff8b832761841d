use std::time::UNIX_EPOCH;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::rest::request::pairs;

fn declared(method: &str, path: &str, target: &str) -> Declared {
    let (method, path, target) = (method.into(), path.into(), target.into());
    Declared { method, path, target, ..Declared::default() }
}

fn routes(rows: &[(&str, &str, &str)]) -> Routes {
    let rows = rows.iter().map(|(method, path, target)| declared(method, path, target)).collect();
    Routes::new(rows, |row, why| panic!("{row:?}: {why}"))
}

fn claims(json: &serde_json::Value) -> Claims {
    Claims {
        role: "authenticated".into(),
        subject: None,
        json: json.to_string().into(),
        expires_at: UNIX_EPOCH,
    }
}

/// What `path` becomes for whoever has these claims.
fn filled(
    routes: &Routes,
    method: &str,
    path: &str,
    query: &str,
    told: &serde_json::Value,
) -> Result<Filled, Problem> {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let Found::Route(route, values) = routes.find(&method, path) else {
        panic!("no {method} {path}");
    };
    route.fill(&method, &values, &claims(told), false, query)
}

fn decoded(query: &str) -> Vec<(String, String)> {
    let pairs = pairs(query).unwrap();
    pairs.into_iter().map(|(name, value)| (name.into_owned(), value.into_owned())).collect()
}

#[test]
fn words_win_over_names() {
    let routes = routes(&[
        ("GET", "/api/stories/{id}", "GET /a?id=eq.{id}"),
        ("GET", "/api/stories/mine", "GET /b"),
        ("GET", "/api/stories/mine/{part}", "GET /c?id=eq.{part}"),
        ("GET", "/api/{kind}/{id}/first", "GET /d?id=eq.{id}&kind=eq.{kind}"),
        ("PATCH", "/api/stories/{story}", "PATCH /e?id=eq.{story}"),
    ]);
    let find = |method: Method, path: &str| match routes.find(&method, path) {
        Found::Route(route, values) => {
            format!("{} {values:?}", route.template.target.name().unwrap())
        }
        Found::Others(others) => others.iter().map(Method::as_str).collect::<Vec<_>>().join(","),
        Found::Nothing => "-".into(),
    };
    for (path, expected) in [
        ("stories/7", r#"a ["7"]"#),
        ("stories/mine", "b []"),
        ("stories/m%69ne", "b []"),
        ("stories/mine/x", r#"c ["x"]"#),
        // The word leads nowhere.
        ("stories/mine/first", r#"c ["first"]"#),
        ("stories/1/first", r#"d ["stories", "1"]"#),
        ("other/1/first", r#"d ["other", "1"]"#),
        ("stories/a%2Fb", r#"a ["a/b"]"#),
        ("stories", "-"),
        ("stories/", "-"),
        ("stories/7/", "-"),
        ("stories/%ff", "-"),
        ("", "-"),
    ] {
        assert_eq!(find(Method::GET, path), expected, "{path}");
    }
    assert_eq!(find(Method::HEAD, "stories/7"), r#"a ["7"]"#);
    assert_eq!(find(Method::PATCH, "stories/mine"), r#"e ["mine"]"#);
    assert_eq!(find(Method::DELETE, "stories/mine"), "GET,HEAD,PATCH");
    assert_eq!(find(Method::GET, &"a/".repeat(1000)), "-");
}

#[test]
fn what_means_nothing_is_left_out() {
    for (method, path, target) in [
        ("HEAD", "/api/a", "GET /t"),
        ("get", "/api/a", "GET /t"),
        ("GET", "/rest/v1/a", "GET /t"),
        ("GET", "/api/", "GET /t"),
        ("GET", "/api/ping", "GET /t"),
        ("GET", "/api/tenants/a", "GET /t"),
        ("GET", "/api/..", "GET /t"),
        ("GET", "/api/a b", "GET /t"),
        ("GET", "/api/a{id}", "GET /t"),
        ("GET", "/api/{id}/{id}", "GET /t?a=eq.{id}"),
        ("GET", "/api/{ID}", "GET /t"),
        ("GET", "/api/a", ""),
        ("GET", "/api/a", "GET"),
        ("GET", "/api/a", "GET t"),
        ("GET", "/api/a", "GET /"),
        ("GET", "/api/a", "HEAD /t"),
        ("GET", "/api/a", "OPTIONS /t"),
        ("GET", "/api/a", "GET /t/u/v"),
        ("GET", "/api/a", "DELETE /rpc/f"),
        ("GET", "/api/{id}", "GET /{id}"),
        ("GET", "/api/a", "GET /t?a=eq.{id}"),
        ("GET", "/api/{id}", "GET /t?a=eq.{id}x"),
        ("GET", "/api/{id}", "GET /t?a=eq.x{id}"),
        ("GET", "/api/{id}", "GET /t?a=in.({id})"),
        ("GET", "/api/{id}", "GET /t?or=(a.eq.{id},b.eq.1)"),
        ("GET", "/api/{id}", "GET /t?{id}=eq.1"),
        ("GET", "/api/{id}", "GET /t?a=eq.{id}.{id}"),
        ("GET", "/api/a", "GET /t?a=eq.{claims.}"),
        ("GET", "/api/a", "GET /t?a=eq.{claims.a..b}"),
        ("GET", "/api/a", "GET /t?a=%00"),
        ("GET", "/api/a", "GET /t?a"),
    ] {
        let mut refused = 0;
        Routes::new(vec![declared(method, path, target)], |_, _| refused += 1);
        assert_eq!(refused, 1, "{method} {path} {target}");
    }
    let mut refused = Vec::new();
    let body = |target: &str, body: &str| Declared {
        body: Some(body.into()),
        ..declared("POST", &format!("/api/a{}", body.len()), target)
    };
    let rows = vec![
        declared("GET", "/api/{a}/b", "GET /t?a=eq.{a}"),
        declared("GET", "/api/{x}/b", "GET /t?a=eq.{x}"),
        body("GET /t", "{}"),
        body("POST /t", "[1]"),
        Declared { prefer: Some("a\nb".into()), ..declared("GET", "/api/c", "GET /t") },
    ];
    Routes::new(rows, |_, why| refused.push(why.to_owned()));
    let expected = [
        "there is another one of the same shape",
        "its target takes no body",
        "its body is no object",
        "a header is not plain",
    ];
    assert_eq!(refused, expected);
}

#[test]
fn holes_take_whole_values() {
    let routes = routes(&[
        ("GET", "/api/a/{id}", "GET /t?id=eq.{id}&select=a,b&o=eq.{claims.app_metadata.org}"),
        ("GET", "/api/n", "GET /t?id=eq.{claims.number}"),
    ]);
    let told = json!({ "app_metadata": { "org": "x&y=z)" }, "number": 7 });
    let filled_query = |path: &str, query: &str| {
        decoded(&filled(&routes, "GET", path, query, &told).unwrap().query)
    };
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(
        filled_query("a/1%262%3D3,(%22%2B%25", "limit=1&x=eq.2"),
        [
            pair("id", "eq.1&2=3,(\"+%"),
            pair("select", "a,b"),
            pair("o", "eq.x&y=z)"),
            pair("limit", "1"),
            pair("x", "eq.2"),
        ]
    );
    assert_eq!(filled_query("n", ""), [pair("id", "eq.7")]);
}

#[test]
fn what_the_route_says_is_not_the_clients_to_say() {
    let row = Declared {
        body: Some(r#"{"owner":1}"#.into()),
        ..declared("POST", "/api/a/{id}", "POST /t?select=a&data->>k=eq.{id}")
    };
    let routes = Routes::new(vec![row], |_, why| panic!("{why}"));
    for query in ["select=b", "sel%65ct=b", "columns=a", "data-%3E%3Ek=eq.1", "a=eq.1&select="] {
        let problem = filled(&routes, "POST", "a/1", query, &json!({})).unwrap_err();
        assert_eq!((problem.status.as_u16(), &*problem.code), (400, "PGRST100"), "{query}");
    }
    assert!(filled(&routes, "POST", "a/1", "%00=1", &json!({})).is_err());
    assert!(filled(&routes, "POST", "a/1", "select", &json!({})).is_ok());
}

#[test]
fn a_missing_claim_is_refused() {
    let routes = routes(&[("GET", "/api/a", "GET /t?id=eq.{claims.a.b}")]);
    let Found::Route(route, values) = routes.find(&Method::GET, "a") else { panic!() };
    for told in [
        json!({}),
        json!({ "a": "b" }),
        json!({ "a": { "b": null } }),
        json!({ "a": { "b": true } }),
        json!({ "a": { "b": { "c": 1 } } }),
        json!({ "a.b": "x" }),
        json!({ "a": [{ "b": "x" }] }),
    ] {
        for (is_anonymous, status) in [(true, 401), (false, 403)] {
            let claims = claims(&told);
            let problem = route.fill(&Method::GET, &values, &claims, is_anonymous, "").unwrap_err();
            assert_eq!((problem.status.as_u16(), &*problem.code), (status, "42501"), "{told}");
        }
    }
    let told = json!({ "a": { "b": "" } });
    assert_eq!(decoded(&filled(&routes, "GET", "a", "", &told).unwrap().query)[0].1, "eq.");
}

#[test]
fn functions_are_called_with_what_is_filled_in() {
    let routes = routes(&[
        ("GET", "/api/a/{id}", "GET /rpc/f?id={id}&n=2&b=eq.{id}"),
        ("POST", "/api/a/{id}", "POST /rpc/f?id={id}&n=2&b=eq.{id}&select=x"),
    ]);
    let get = filled(&routes, "GET", "a/x%201", "", &json!({})).unwrap();
    assert_eq!(get.query, "id=x%201&n=2&b=eq%2Ex%201");
    let problem = filled(&routes, "GET", "a/eq.1", "", &json!({})).unwrap_err();
    assert_eq!(problem.status.as_u16(), 400);
    let mut post = filled(&routes, "POST", "a/eq.1", "", &json!({})).unwrap();
    assert_eq!(decoded(&post.query)[0], ("b".to_owned(), "eq.eq.1".to_owned()));
    let body = post.body(&mut HeaderMap::new(), r#"{"id":5,"z":1.50}"#.into()).unwrap();
    assert_eq!(body, r#"{"z":1.50,"id":"eq.1","n":"2"}"#);
}

#[test]
fn keys_of_the_route_win() {
    let row = |body: &str| Declared {
        body: Some(body.into()),
        ..declared("POST", "/api/a", "PATCH /t?id=eq.1")
    };
    let check = |body: &str, content_type: &'static str, sent: &str| {
        let routes = Routes::new(vec![row(body)], |_, why| panic!("{why}"));
        let mut filled = filled(&routes, "POST", "a", "", &json!({})).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        let body = filled.body(&mut headers, Bytes::from(sent.to_owned()));
        body.map(|body| String::from_utf8(body.to_vec()).unwrap())
            .map_err(|problem| problem.code.into_owned())
    };
    let own = r#"{"owner":"me","n":1e400}"#;
    let json = "application/json";
    let plain = Ok(r#"{"n":1e400,"owner":"me"}"#.to_owned());
    assert_eq!(check(own, json, ""), plain);
    assert_eq!(check(own, json, r#"{"ow\u006eer":"you","owner":null}"#), plain);
    let more = r#"{"a\"":12345678901234567890123,"n":1e400,"owner":"me"}"#;
    assert_eq!(check(own, json, r#"{"a\"":12345678901234567890123}"#), Ok(more.to_owned()));
    for sent in [r#"[{"a":1}]"#, "[]", "1", "null", "{", r#"{"a":1}x"#] {
        assert_eq!(check(own, json, sent), Err("PGRST102".into()), "{sent}");
    }
    assert_eq!(check(own, "text/csv", "owner\nyou\n"), Err("PGRST102".into()));
}

#[test]
fn a_route_has_headers_for_those_who_send_none() {
    let row = Declared {
        profile: Some("reading".into()),
        prefer: Some("return=representation".into()),
        accept: Some("application/vnd.pgrst.object+json".into()),
        ..declared("GET", "/api/a", "PATCH /t?id=eq.1")
    };
    let routes = Routes::new(vec![row], |_, why| panic!("{why}"));
    let Found::Route(route, _) = routes.find(&Method::GET, "a") else { panic!() };
    let sent = |pairs: &[(&'static str, &'static str)]| {
        let pairs = pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        route.headers(&pairs.collect())
    };
    let headers = sent(&[("accept", "application/json, text/plain, */*"), ("prefer", "tx=commit")]);
    assert_eq!(headers["content-profile"], "reading");
    assert_eq!(headers["prefer"], "tx=commit");
    assert_eq!(headers["accept"], "application/vnd.pgrst.object+json");
    assert_eq!(sent(&[])["accept"], "application/vnd.pgrst.object+json");
    assert_eq!(sent(&[("accept", "text/csv")])["accept"], "text/csv");
    // A target that reads is about another header; a HEAD is answered where GET is read.
    let Found::Others(others) = routes.find(&Method::HEAD, "a") else { panic!() };
    assert_eq!(others, [Method::GET]);
}

proptest! {
    #[test]
    fn a_value_stays_one_value(value in "\\PC{1,40}", claim in "\\PC{0,40}") {
        let routes = routes(&[("GET", "/api/{id}", "GET /t?id=eq.{id}&o=eq.{claims.sub}")]);
        let path: String =
            percent_encoding::utf8_percent_encode(&value, percent_encoding::NON_ALPHANUMERIC).collect();
        let filled = filled(&routes, "GET", &path, "", &json!({ "sub": claim })).unwrap();
        let expected = [("id".to_owned(), format!("eq.{value}")), ("o".into(), format!("eq.{claim}"))];
        prop_assert_eq!(decoded(&filled.query), expected);
    }

    #[test]
    fn no_row_and_no_path_is_too_much(
        method in "(GET|POST|\\PC{0,5})",
        path in "(/api/)?(\\PC{0,20}|([a-z{}/._-]){0,20})",
        target in "((GET|POST|PUT) /)?([a-z{}/._?&=-]|%[0-9a-f]{2}|\\PC){0,30}",
        body in prop::option::of("\\PC{0,20}"),
        asked in "(\\PC|/|%[0-9a-f]{2}){0,30}",
    ) {
        let rows = vec![Declared { body, ..declared(&method, &path, &target) }];
        let routes = Routes::new(rows, |_, _| ());
        if let Found::Route(route, values) = routes.find(&Method::GET, &asked) {
            let _ = route.fill(&Method::GET, &values, &claims(&json!({})), true, "a=b");
        }
    }
}
