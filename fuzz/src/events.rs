//! Queries of event streams: what was read, each element written alone with every name in quotes,
//! reads the same; what is refused is told in a text of bounded length.

use serde_json::Value;
use walcast::config::Config;
use walcast::session::Limits;
use walcast::transport::events::request::{Wishes, token, wishes};

/// The whole input is a query, and an element of `changes`.
pub fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let limits = Limits::from(&Config::default());
    if let Some(token) = token(text) {
        assert!(!token.is_empty() && token.len() <= text.len());
    }
    query(text, &limits);
    query(&format!("changes={}", encoded(text)), &limits);
}

fn query(text: &str, limits: &Limits) {
    let read = match wishes(text, limits) {
        Ok(read) => read,
        Err(problem) => {
            assert!(problem.len() <= text.len() + 256, "{problem}");
            return;
        }
    };
    assert!(read.topics.len() <= limits.channels_max);
    assert!(read.changes.len() <= limits.subscriptions_max);
    assert!(!read.topics.is_empty() || !read.changes.is_empty());
    if !read.changes.is_empty() {
        let elements: Vec<String> = values(&read).iter().map(write).collect();
        let alone = elements.iter().map(|element| format!("changes={}", encoded(element)));
        let again = alone.collect::<Vec<_>>().join("&");
        assert_eq!(values(&wishes(&again, limits).expect(&again)), values(&read), "{elements:?}");
    }
}

fn values(wishes: &Wishes) -> Vec<Value> {
    wishes.changes.iter().map(|raw| serde_json::from_str(raw.get()).unwrap()).collect()
}

fn write(element: &Value) -> String {
    let quoted = |name: &Value| format!("\"{}\"", name.as_str().unwrap().replace('"', "\"\""));
    let mut text = format!("{}.{}", quoted(&element["schema"]), quoted(&element["table"]));
    if let Some(columns) = element["select"].as_array() {
        let columns: Vec<String> = columns.iter().map(quoted).collect();
        text.extend(["(", &columns.join(","), ")"]);
    }
    text.extend(["@", element["event"].as_str().unwrap()]);
    if let Some(filter) = element["filter"].as_str() {
        text.extend([":", filter]);
    }
    text
}

fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |encoded, byte| encoded + &format!("%{byte:02X}"))
}
