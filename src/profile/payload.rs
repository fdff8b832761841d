//! A projection and what is known → the JSON of a payload.
//!
//! In:     members with their sources, as they were declared; a [`Scope`].
//! Out:    one JSON object.
//! Never:  null for what is not there, which is left out; identity from what a client sent, unless the
//!         declaration takes it from there.

use std::time::SystemTime;

use serde_json::{Map, Value};

use crate::event::row;

/// Members of one payload.
const MEMBERS_MAX: usize = 256;

/// Sources of one member.
const SOURCES_MAX: usize = 16;

/// Steps of a path.
const STEPS_MAX: usize = 16;

/// What a payload is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Payload {
    pub(super) members: Box<[(Member, Box<[Source]>)]>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Member {
    /// The members of each of these, under their own names.
    Spread,
    /// The first of these that is there.
    Set(Box<str>),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Source {
    Path(Root, Box<[Box<str>]>),
    Sub,
    Time,
    Topic,
    Users,
    Status,
    Constant(Value),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Root {
    Payload,
    Topic,
    Member,
    Claims,
}

/// Why something is no payload: a sentence for whoever declared it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PayloadError(Box<str>);

/// What is known when a payload is written.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// Who it is about.
    pub sub: Option<&'a str>,
    /// What his token says.
    pub claims: &'a Value,
    /// What he sent.
    pub payload: &'a Value,
    /// Where it is told; empty: nowhere in particular.
    pub topic: &'a str,
    /// The values in there.
    pub values: &'a [(Box<str>, Box<str>)],
    /// What the function `member` says of him.
    pub member: &'a Value,
    /// Who is there: the text of a JSON array.
    pub users: Option<&'a str>,
    /// How he is.
    pub status: Option<&'a str>,
}

impl Scope<'_> {
    /// Nothing but who it is about.
    pub fn of(sub: Option<&str>) -> Scope<'_> {
        const NULL: &Value = &Value::Null;
        Scope {
            sub,
            claims: NULL,
            payload: NULL,
            topic: "",
            values: &[],
            member: NULL,
            users: None,
            status: None,
        }
    }
}

impl Payload {
    /// From its JSON.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(written: &Value) -> Result<Self, PayloadError> {
        let wrong = |text: String| Err(PayloadError(text.into()));
        let Value::Object(written) = written else {
            return wrong("a payload is an object".into());
        };
        if written.len() > MEMBERS_MAX {
            return wrong(format!("a payload has at most {MEMBERS_MAX} members"));
        }
        let member = |(name, value): (&String, &Value)| {
            let several: Box<[Source]> = match value {
                Value::Array(several) if several.is_empty() || several.len() > SOURCES_MAX => {
                    let text = format!("{name:?} has 1 to {SOURCES_MAX} sources");
                    return Err(PayloadError(text.into()));
                }
                Value::Array(several) => several.iter().map(source).collect::<Result<_, _>>()?,
                one @ (Value::Null
                | Value::Bool(_)
                | Value::Number(_)
                | Value::String(_)
                | Value::Object(_)) => [source(one)?].into(),
            };
            let member =
                if name == "..." { Member::Spread } else { Member::Set(name.as_str().into()) };
            Ok((member, several))
        };
        Ok(Self { members: written.iter().map(member).collect::<Result<_, _>>()? })
    }

    /// Without any members.
    pub fn empty() -> Self {
        Self { members: Box::default() }
    }

    /// The user's id as `userId`, where nothing else was declared.
    pub(super) fn user() -> Self {
        let set = Member::Set("userId".into());
        Self { members: [(set, [Source::Sub].into())].into() }
    }

    /// What he sent, and his id as `userId`, where nothing else was declared.
    pub(super) fn sent() -> Self {
        let set = Member::Set("userId".into());
        let all = Source::Path(Root::Payload, Box::default());
        Self { members: [(set, [Source::Sub].into()), (Member::Spread, [all].into())].into() }
    }

    /// The text of a JSON object.
    pub fn render(&self, scope: &Scope<'_>) -> String {
        let mut out = String::from("{");
        // Named members first know which names are taken: a name comes once.
        let named = |(member, _): &(Member, _)| match member {
            Member::Set(name) => Some(name.to_string()),
            Member::Spread => None,
        };
        let mut taken: Vec<String> = self.members.iter().filter_map(named).collect();
        for (member, sources) in &self.members {
            match member {
                Member::Set(name) => {
                    let mut found = None;
                    for source in sources {
                        match source.find(scope) {
                            Some(value) if value == "null" => {
                                found.get_or_insert(value);
                            }
                            Some(value) => {
                                found = Some(value);
                                break;
                            }
                            None => {}
                        }
                    }
                    if let Some(value) = found {
                        append(&mut out, name, &value);
                    }
                }
                Member::Spread => {
                    for source in sources {
                        for (name, value) in source.members(scope) {
                            if !taken.contains(&name) {
                                append(&mut out, &name, &value);
                                taken.push(name);
                            }
                        }
                    }
                }
            }
        }
        out.push('}');
        out
    }
}

fn append(out: &mut String, name: &str, value: &str) {
    if out.len() > 1 {
        out.push(',');
    }
    out.push_str(&Value::String(name.to_owned()).to_string());
    out.push(':');
    out.push_str(value);
}

fn source(written: &Value) -> Result<Source, PayloadError> {
    let wrong = |text: String| Err(PayloadError(text.into()));
    let text = match written {
        Value::String(text) => text,
        Value::Object(object) => {
            let mut members = object.iter();
            return match (members.next(), members.next()) {
                (Some((name, value)), None) if name == "value" => {
                    Ok(Source::Constant(value.clone()))
                }
                _ => wrong("an object in a payload is {\"value\": …}".into()),
            };
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
            return wrong("a source is text, or {\"value\": …}".into());
        }
    };
    Ok(match text.as_str() {
        "$sub" => Source::Sub,
        "$time" => Source::Time,
        "$topic" => Source::Topic,
        "$users" => Source::Users,
        "$status" => Source::Status,
        path => {
            let mut steps = path.split('.');
            let root = match steps.next() {
                Some("payload") => Root::Payload,
                Some("topic") => Root::Topic,
                Some("member") => Root::Member,
                Some("claims") => Root::Claims,
                _ => {
                    return wrong(format!(
                        "{path} is no source: those are payload.…, topic.…, member.…, claims.…, $sub, \
                         $time, $topic, $users and $status"
                    ));
                }
            };
            let steps: Box<[Box<str>]> = steps.map(Into::into).collect();
            if steps.len() > STEPS_MAX || steps.iter().any(|step| step.is_empty()) {
                return wrong(format!("{path} is no path"));
            }
            Source::Path(root, steps)
        }
    })
}

fn text(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

impl Source {
    /// Its JSON; none when it is not there.
    fn find(&self, scope: &Scope<'_>) -> Option<String> {
        match self {
            Self::Path(root, steps) => {
                let start = match root {
                    Root::Payload => scope.payload,
                    Root::Member => scope.member,
                    Root::Claims => scope.claims,
                    Root::Topic => {
                        return match &**steps {
                            [] => {
                                let pair = |(name, value): &(Box<str>, Box<str>)| {
                                    (name.to_string(), Value::String(value.to_string()))
                                };
                                let all: Map<_, _> = scope.values.iter().map(pair).collect();
                                Some(Value::Object(all).to_string())
                            }
                            [name] => {
                                let known = scope.values.iter().find(|(known, _)| known == name);
                                known.map(|(_, value)| text(value))
                            }
                            _ => None,
                        };
                    }
                };
                let found = steps.iter().try_fold(start, |value, step| value.get(&**step));
                found.map(ToString::to_string)
            }
            Self::Sub => scope.sub.map(text),
            Self::Time => {
                let mut out = Vec::new();
                row::timestamp(SystemTime::now(), &mut out);
                String::from_utf8(out).ok()
            }
            Self::Topic => (!scope.topic.is_empty()).then(|| text(scope.topic)),
            Self::Users => scope.users.map(str::to_owned),
            Self::Status => scope.status.map(text),
            Self::Constant(value) => Some(value.to_string()),
        }
    }

    /// What it has to spread.
    fn members(&self, scope: &Scope<'_>) -> Vec<(String, String)> {
        let object = match self {
            Self::Path(Root::Topic, steps) if steps.is_empty() => {
                let pair = |(name, value): &(Box<str>, Box<str>)| (name.to_string(), text(value));
                return scope.values.iter().map(pair).collect();
            }
            Self::Path(root, steps) => {
                let start = match root {
                    Root::Payload => scope.payload,
                    Root::Member => scope.member,
                    Root::Claims => scope.claims,
                    Root::Topic => return Vec::new(),
                };
                steps.iter().try_fold(start, |value, step| value.get(&**step))
            }
            Self::Constant(value) => Some(value),
            Self::Sub | Self::Time | Self::Topic | Self::Users | Self::Status => None,
        };
        let object = object.and_then(Value::as_object).into_iter().flatten();
        object.map(|(name, value)| (name.clone(), value.to_string())).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn render(payload: &Value) -> Value {
        let values: [(Box<str>, Box<str>); 1] = [("mapId".into(), "m1".into())];
        let scope = Scope {
            claims: &json!({ "email": "a@b", "app": { "tenant": 7 } }),
            payload: &json!({ "x": 1, "none": null, "userId": "forged", "deep": { "y": [1] } }),
            topic: "map:m1",
            values: &values,
            member: &json!({ "name": "Ann", "role": "editor" }),
            users: Some(r#"[{"id":"u1"}]"#),
            status: Some("away"),
            ..Scope::of(Some("u1"))
        };
        let rendered = Payload::parse(payload).unwrap().render(&scope);
        serde_json::from_str(&rendered).unwrap()
    }

    #[test]
    fn each_source_gives_what_it_is() {
        let payload = json!({
            "mapId": "topic.mapId", "name": "member.name", "mail": "claims.email",
            "tenant": "claims.app.tenant", "x": "payload.x", "y": "payload.deep.y", "id": "$sub",
            "room": "$topic", "users": "$users", "status": "$status", "fix": { "value": [null] },
        });
        let expected = json!({
            "mapId": "m1", "name": "Ann", "mail": "a@b", "tenant": 7, "x": 1, "y": [1],
            "id": "u1", "room": "map:m1", "users": [{ "id": "u1" }], "status": "away", "fix": [null],
        });
        assert_eq!(render(&payload), expected);
    }

    #[test]
    fn what_is_not_there_is_left_out_and_the_first_that_is_there_counts() {
        let payload = json!({
            "a": "payload.nothing", "b": ["payload.nothing", "payload.none", "member.name"],
            "c": ["payload.nothing", "payload.none"], "d": "topic.other", "e": "topic.mapId.x",
        });
        assert_eq!(render(&payload), json!({ "b": "Ann", "c": null }));
    }

    #[test]
    fn a_spread_does_not_take_the_place_of_a_named_member() {
        let payload = json!({ "...": ["payload", "member", "topic"], "userId": "$sub" });
        let expected = json!({
            "x": 1, "none": null, "deep": { "y": [1] }, "name": "Ann", "role": "editor",
            "mapId": "m1", "userId": "u1",
        });
        assert_eq!(render(&payload), expected);
        assert_eq!(render(&json!({ "...": ["$sub", "payload.x"] })), json!({}));
    }

    #[test]
    fn the_time_is_in_milliseconds() {
        let rendered = render(&json!({ "at": "$time" }));
        let at = rendered["at"].as_str().unwrap();
        assert_eq!((at.len(), &at[10..11], &at[19..20], &at[23..]), (24, "T", ".", "Z"), "{at}");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (payload, expected) in [
            (json!([]), "an object"),
            (json!({ "a": "name" }), "name is no source"),
            (json!({ "a": "$row" }), "$row is no source"),
            (json!({ "a": 1 }), "is text"),
            (json!({ "a": [] }), "sources"),
            (json!({ "a": { "b": 1 } }), "{\"value\""),
            (json!({ "a": "payload..x" }), "no path"),
        ] {
            let error = Payload::parse(&payload).unwrap_err().to_string();
            assert!(error.contains(expected), "{payload} {error}");
        }
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::String),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
                proptest::collection::btree_map("[a-d\"\\\\]{0,2}", inner, 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    fn source_text() -> impl Strategy<Value = Value> {
        prop_oneof![
            "(payload|topic|member|claims)(\\.[a-d]){0,2}".prop_map(Value::String),
            "\\$(sub|time|topic|users|status)".prop_map(Value::String),
            json_value().prop_map(|value| json!({ "value": value })),
        ]
    }

    proptest! {
        #[test]
        fn what_is_rendered_is_json_with_each_name_once(
            members in proptest::collection::btree_map(
                prop_oneof![Just("...".to_owned()), "[a-d\"\\\\]{0,2}"],
                prop_oneof![
                    source_text(),
                    proptest::collection::vec(source_text(), 1..4).prop_map(Value::Array),
                ],
                0..5,
            ),
            payload in json_value(), claims in json_value(), member in json_value(),
            sub: Option<String>, status: Option<String>, value: String,
        ) {
            let declared = Value::Object(members.into_iter().collect());
            let declared = Payload::parse(&declared).unwrap();
            let values: [(Box<str>, Box<str>); 1] = [("a".into(), value.into())];
            let scope = Scope {
                sub: sub.as_deref(), claims: &claims, payload: &payload, topic: "t", values: &values,
                member: &member, users: Some("[]"), status: status.as_deref(),
            };
            let rendered = declared.render(&scope);
            let read: Value = serde_json::from_str(&rendered).unwrap();
            // Nothing is lost when it is read: no name came twice.
            prop_assert_eq!(read.to_string(), rendered);
        }

        #[test]
        fn no_declaration_is_a_panic(declared in json_value()) {
            if let Ok(payload) = Payload::parse(&declared) {
                let rendered = payload.render(&Scope::of(None));
                prop_assert!(serde_json::from_str::<Value>(&rendered).is_ok());
            }
        }
    }
}
