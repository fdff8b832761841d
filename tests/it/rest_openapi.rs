//! The description of what can be asked for: that it is whole, true, and only what the caller may
//! know.

use std::collections::BTreeSet;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::rest::{Answer, ask};
use crate::service::{ALICE, Service, anon, service_role, user};

/// What `scripts/schemathesis` asks about, too.
const RICH: &str = include_str!("../openapi/rich.sql");

async fn world(change: impl FnOnce(&mut walcast::config::Config)) -> (Service, Client) {
    let service = Service::with(change).await;
    let admin = service.admin().await;
    admin.batch_execute(RICH).await.unwrap();
    (service, admin)
}

async fn described(service: &Service, token: &str) -> Value {
    let answer = ask("GET", "/").bearing(token).send(service).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// All `$ref`s.
fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                match value.as_str().filter(|_| name == "$ref") {
                    Some(place) => found.push(place),
                    None => references(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| references(value, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// What a place in it stands for.
fn followed<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value.get("$ref").and_then(Value::as_str) {
        Some(place) => document.pointer(&place[1..]).unwrap_or_else(|| panic!("no {place}")),
        None => value,
    }
}

/// Path, method and operation.
fn operations(document: &Value) -> impl Iterator<Item = (&str, &str, &Value)> {
    document["paths"].as_object().unwrap().iter().flat_map(|(path, item)| {
        let item = item.as_object().unwrap();
        item.iter().map(move |(method, operation)| (&**path, &**method, operation))
    })
}

#[tokio::test]
async fn only_configured_roles_are_told() {
    let (service, _admin) = world(|_| ()).await;
    let status = async |token: &str| ask("GET", "/").bearing(token).send(&service).await;
    assert_eq!(status(&anon()).await.problem(), (401, "42501".into()));
    assert_eq!(status(&user(ALICE)).await.problem(), (403, "42501".into()));
    let accepted = async |accept: &str| -> Answer {
        let ask = ask("GET", "").bearing(&service_role());
        ask.with("accept", accept).send(&service).await
    };
    for (accept, kind) in [
        ("*/*", "application/json; charset=utf-8"),
        ("application/json", "application/json; charset=utf-8"),
        ("application/openapi+json", "application/openapi+json; charset=utf-8"),
    ] {
        let answer = accepted(accept).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(kind)), "{accept}");
        assert_eq!(answer.json()["openapi"], "3.1.0");
    }
    assert_eq!(accepted("text/csv").await.problem(), (406, "PGRST107".into()));
    let head = ask("HEAD", "/").bearing(&service_role()).send(&service).await;
    assert_eq!((head.status, &*head.body), (200, ""));
}

#[tokio::test]
async fn a_description_is_whole() {
    let (service, _admin) = world(|_| ()).await;
    let document = described(&service, &service_role()).await;
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 100, "{}", found.len());
    for place in found {
        assert!(document.pointer(&place[1..]).is_some(), "{place} is nowhere");
    }
    // What component names and path templates are made of.
    for components in document["components"].as_object().unwrap().values() {
        for name in components.as_object().unwrap().keys() {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            assert!(!name.is_empty() && name.chars().all(is_plain), "{name}");
        }
    }
    let mut ids = BTreeSet::new();
    for (path, method, operation) in operations(&document) {
        assert!(path.starts_with('/') && !path.contains(['{', '}', ' ', '?']), "{path}");
        assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{method} {path}");
        let mut names = BTreeSet::new();
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let parameter = followed(&document, parameter);
            let (name, place) = (&parameter["name"], &parameter["in"]);
            assert!(matches!(place.as_str(), Some("query" | "header")), "{parameter}");
            assert!(names.insert((name.as_str(), place.as_str())), "{method} {path} {name}");
        }
        assert!(operation["responses"]["default"].is_object(), "{method} {path}");
    }
}

#[tokio::test]
async fn what_is_described_can_be_asked_for() {
    let (service, _admin) = world(|_| ()).await;
    let document = described(&service, &service_role()).await;
    let token = service_role();
    let get = async |path: &str| ask("GET", path).bearing(&token).send(&service).await;
    let mut asked = 0;
    for (path, method, operation) in operations(&document) {
        let options = ask("OPTIONS", path).bearing(&token).send(&service).await;
        let allowed = options.header("allow").unwrap().to_ascii_lowercase();
        assert!(allowed.split(',').any(|it| it == method), "{path} {method}: {allowed}");
        if method != "get" || path.starts_with("/rpc/") || path == "/" {
            continue;
        }
        // Any column by its name, however it is called.
        for parameter in operation["parameters"].as_array().unwrap() {
            let parameter = followed(&document, parameter);
            let pattern = parameter["schema"]["pattern"].as_str().unwrap_or_default();
            if pattern.contains("eq|neq") {
                let name = parameter["name"].as_str().unwrap();
                let name = utf8_percent_encode(name, NON_ALPHANUMERIC);
                let answer = get(&format!("{path}?{name}=not.is.null&limit=1")).await;
                assert_eq!(answer.status, 200, "{path} {name}: {answer:?}");
                asked += 1;
            }
        }
    }
    assert!(asked > 60, "{asked}");
    assert_eq!(get("/strange%20name?%22limit%22=eq.1").await.status, 200);
}

#[tokio::test]
async fn columns_are_told_as_they_are() {
    let (service, _admin) = world(|_| ()).await;
    let document = described(&service, &service_role()).await;
    let schemas = &document["components"]["schemas"];
    let part = &schemas["everything.part"];
    assert_eq!(part["title"], "Something of everything");
    assert_eq!(part["description"], "A column of each kind there is.");
    let get = &document["paths"]["/everything"]["get"];
    assert_eq!(get["summary"], "Something of everything");
    for (name, expected) in [
        (
            "i4",
            json!({ "type": "integer", "format": "int32", "minimum": i32::MIN,
                "maximum": i32::MAX, "default": 7 }),
        ),
        ("f8", json!({ "type": ["number", "null"], "format": "double", "default": -1.5 })),
        ("yes", json!({ "type": "boolean", "default": true })),
        ("t", json!({ "type": ["string", "null"], "description": "Text of any kind" })),
        ("v", json!({ "type": ["string", "null"], "maxLength": 8, "default": "it's" })),
        ("c", json!({ "type": ["string", "null"], "maxLength": 3 })),
        ("d", json!({ "type": ["string", "null"], "maxLength": 12 })),
        ("u", json!({ "type": ["string", "null"], "format": "uuid" })),
        ("j", json!({})),
        ("at", json!({ "type": "string", "format": "date-time" })),
        (
            "feeling",
            json!({ "type": ["string", "null"], "format": "public.mood", "default": "glad",
                "enum": ["glad", "sad", "it's \"so, so\"", null] }),
        ),
        ("words", json!({ "type": ["array", "null"], "items": { "type": "string" } })),
        ("two", json!({ "type": ["object", "null"] })),
    ] {
        assert_eq!(part["properties"][name], expected, "{name}");
    }
    assert_eq!(part["properties"]["double"]["readOnly"], true);
    assert_eq!(
        schemas["everything"],
        json!({ "allOf": [{ "$ref": "#/components/schemas/everything.part" }],
            "required": ["id", "i4", "yes", "b", "at"] })
    );
    assert_eq!(schemas["visits.insert"]["required"], json!(["person", "country", "city", "days"]));
    assert_eq!(schemas["everything.insert"].get("required"), None);
    let boss = schemas["people.part"]["properties"]["boss"]["description"].as_str().unwrap();
    assert!(boss.contains("<fk table='people' column='id'/>"), "{boss}");
    let id = schemas["people.part"]["properties"]["id"]["description"].as_str().unwrap();
    assert!(id.contains("<pk/>"), "{id}");
    // Neither what cannot be written to, nor the parts of a whole.
    let paths = &document["paths"];
    let methods = |path: &str| paths[path].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(methods("/counted"), ["get"]);
    assert_eq!(methods("/adults"), ["get", "post", "put", "patch", "delete"]);
    assert_eq!(methods("/keyless"), ["get", "post", "patch", "delete"]);
    assert!(paths.get("/parted").is_some() && paths.get("/parted_a").is_none());
}

#[tokio::test]
async fn functions_are_told_as_they_are_called() {
    let (service, _admin) = world(|_| ()).await;
    let document = described(&service, &service_role()).await;
    let paths = &document["paths"];
    let body = |name: &str| {
        let content = &paths[format!("/rpc/{name}")]["post"]["requestBody"]["content"];
        content["application/json"]["schema"].clone()
    };
    assert_eq!(body("divide")["required"], json!(["a", "b"]));
    assert_eq!(body("add")["anyOf"][0]["required"], json!(["a"]));
    assert_eq!(body("many").get("required"), None);
    let answer = |name: &str, status: &str| {
        paths[format!("/rpc/{name}")]["post"]["responses"][status].clone()
    };
    let rows = answer("everybody", "200")["content"]["application/json"]["schema"].clone();
    assert_eq!(
        rows,
        json!({ "type": "array", "items": { "$ref": "#/components/schemas/people.part" } })
    );
    assert_eq!(answer("nothing", "200"), Value::Null);
    assert!(answer("nothing", "204").is_object());
    assert!(paths["/rpc/renamed"].get("get").is_none(), "it writes");
    let parameters = paths["/rpc/divide"]["get"]["parameters"].as_array().unwrap();
    let a = parameters.iter().find(|parameter| parameter["name"] == "a").unwrap();
    assert_eq!((&a["required"], &a["schema"]["type"]), (&json!(true), &json!("integer")));
}

#[tokio::test]
async fn the_caller_is_told_what_he_may_use_as_of_now() {
    let roles = vec!["anon".to_owned(), "authenticated".into()];
    let (service, admin) = world(|config| config.rest.openapi_roles = roles).await;
    let made = "
        revoke all on all tables in schema public from authenticated;
        revoke execute on all functions in schema public from public;
        grant select (id, name), update (name) on people to authenticated;
        grant insert (country, city, size), delete on places to authenticated;
        grant execute on function divide to authenticated";
    admin.batch_execute(made).await.unwrap();
    let token = user(ALICE);
    let paths = async || {
        let document = described(&service, &token).await;
        let paths: Vec<String> = document["paths"].as_object().unwrap().keys().cloned().collect();
        (paths, document)
    };
    let (seen, document) = paths().await;
    assert_eq!(seen, ["/", "/people", "/places", "/rpc/divide"]);
    let people = &document["paths"]["/people"];
    let methods: Vec<&String> = people.as_object().unwrap().keys().collect();
    assert_eq!(methods, ["get", "patch"]);
    let text = document.to_string();
    for secret in ["boss", "born", "everything", "visits", "keyless"] {
        assert!(!text.contains(secret), "{secret}");
    }
    let schemas = &document["components"]["schemas"];
    assert_eq!(schemas["people.part"]["properties"]["id"]["readOnly"], true);
    let places: Vec<&String> = document["paths"]["/places"].as_object().unwrap().keys().collect();
    assert_eq!(places, ["post", "delete"]);
    assert_eq!(schemas["places.part"]["properties"]["city"]["writeOnly"], true);
    assert_eq!(schemas["places.insert"]["required"], json!(["country", "city"]));
    // Everybody else has other rights.
    let others = described(&service, &anon()).await;
    assert!(others["paths"].get("/everything").is_some());
    assert!(others["paths"].get("/rpc/divide").is_none());

    admin.batch_execute("grant select on keyless to authenticated").await.unwrap();
    assert_eq!(paths().await.0, ["/", "/keyless", "/people", "/places", "/rpc/divide"]);
    let change =
        "alter table keyless add column fresh int; revoke all on people from authenticated;
                  notify pgrst";
    admin.batch_execute(change).await.unwrap();
    let (seen, document) = paths().await;
    assert_eq!(seen, ["/", "/keyless", "/places", "/rpc/divide"]);
    let keyless = &document["components"]["schemas"]["keyless.part"]["properties"];
    assert_eq!(keyless["fresh"]["type"], json!(["integer", "null"]));
    admin.batch_execute("revoke usage on schema public from public, authenticated").await.unwrap();
    assert_eq!(paths().await.0, ["/"]);
}

#[tokio::test]
async fn another_schema_is_described_where_it_is_asked_for() {
    let schemas = vec!["public".to_owned(), "other".into()];
    let service = Service::with(|config| config.rest.schemas = schemas).await;
    let admin = service.admin().await;
    let make = "create schema other; grant usage on schema other to service_role;
                create table other.things (id int); grant select on other.things to service_role;
                notify pgrst";
    admin.batch_execute(make).await.unwrap();
    let other = ask("GET", "/").bearing(&service_role()).with("accept-profile", "other");
    let document = other.send(&service).await.json();
    assert!(document["paths"].get("/things").is_some(), "{document}");
    let public = described(&service, &service_role()).await;
    assert!(public["paths"].get("/things").is_none());
    let none = ask("GET", "/").bearing(&service_role()).with("accept-profile", "none");
    assert_eq!(none.send(&service).await.problem(), (406, "PGRST106".into()));
}
