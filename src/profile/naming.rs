//! The values in a payload → the topic of a room.
//!
//! In:     a template as it was declared; what a client sent, or his claims.
//! Out:    a topic with the values in it.
//! Never:  a topic that another value could have led to: a value with a separator in it is refused, as in the
//!         topics of mappings.

use std::borrow::Cow;

use regex::{Regex, RegexBuilder};
use serde_json::Value;

use crate::mapping::template::{Given, ParseTemplateError, Template};
use crate::topic::Topic;

/// Bytes that a pattern may take when it is compiled. Those for ids take some hundred.
const PATTERN_BYTES_MAX: usize = 256 * 1024;

/// What is wrong with what a client sent: a sentence about one of its members.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{member} is not valid")]
pub struct Invalid {
    /// The member.
    pub member: Box<str>,
}

impl Invalid {
    pub(super) fn of(member: &str) -> Self {
        Self { member: member.into() }
    }
}

/// The values in a topic, by name.
pub type Values = Box<[(Box<str>, Box<str>)]>;

/// A topic and the values in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The topic, as supabase-js would join it.
    pub topic: Topic,
    /// What `topic.mapId` is in a payload.
    pub values: Values,
}

/// How a payload names a room.
#[derive(Debug, Clone)]
pub struct Naming(Kind);

#[derive(Debug, Clone)]
enum Kind {
    /// By the values of a template, each with what it must match.
    Template(Template, Box<[(Box<str>, Option<Regex>)]>),
    /// By its name: the member `topic`.
    Any,
}

/// Why something is no naming.
#[derive(Debug, thiserror::Error)]
pub enum NamingError {
    /// The template.
    #[error(transparent)]
    Template(#[from] ParseTemplateError),
    /// A pattern is not one, or too much of one.
    #[error("the pattern of {0} is not a regular expression")]
    Pattern(Box<str>, #[source] Box<regex::Error>),
    /// A pattern is of a value that the topic does not have.
    #[error("there is a pattern of {0}, which is not in the topic")]
    Unknown(Box<str>),
}

impl Naming {
    /// Of a template, with patterns of its values.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse<'a>(
        template: &str,
        patterns: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, NamingError> {
        let template = Template::parse(template)?;
        let mut values: Box<[(Box<str>, Option<Regex>)]> =
            template.columns().map(|name| (name.into(), None)).collect();
        for (name, pattern) in patterns {
            let built = RegexBuilder::new(pattern).size_limit(PATTERN_BYTES_MAX).build();
            let built =
                built.map_err(|error| NamingError::Pattern(name.into(), Box::new(error)))?;
            let mut known = values.iter_mut().filter(|(known, _)| **known == *name).peekable();
            if known.peek().is_none() {
                return Err(NamingError::Unknown(name.into()));
            }
            known.for_each(|(_, pattern)| *pattern = Some(built.clone()));
        }
        Ok(Self(Kind::Template(template, values)))
    }

    /// Rooms of any name.
    pub(super) fn any() -> Self {
        Self(Kind::Any)
    }

    /// The template; none where rooms have any name.
    pub fn template(&self) -> Option<&Template> {
        match &self.0 {
            Kind::Template(template, _) => Some(template),
            Kind::Any => None,
        }
    }

    /// The room that a payload names; none when one of its values is not there, or null.
    ///
    /// # Errors
    /// A value is there that leads nowhere.
    pub fn of(&self, payload: &Value) -> Result<Option<Named>, Invalid> {
        self.with(|name| payload.get(name).map(Cow::Borrowed))
    }

    fn with<'a>(
        &self,
        find: impl Fn(&str) -> Option<Cow<'a, Value>>,
    ) -> Result<Option<Named>, Invalid> {
        match &self.0 {
            Kind::Any => {
                let Some(value) = find("topic") else { return Ok(None) };
                let name = match value.as_ref() {
                    Value::String(name) => name,
                    Value::Null => return Ok(None),
                    Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                        return Err(Invalid::of("topic"));
                    }
                };
                let topic =
                    Topic::parse(&format!("realtime:{name}")).map_err(|_| Invalid::of("topic"))?;
                let values = [("topic".into(), name.as_str().into())].into();
                Ok(Some(Named { topic, values }))
            }
            Kind::Template(template, known) => {
                let mut values = Vec::with_capacity(known.len());
                let mut missing = false;
                for (name, pattern) in known {
                    let Some(value) = find(name) else {
                        missing = true;
                        continue;
                    };
                    let text: Box<str> = match value.as_ref() {
                        Value::String(text) => text.as_str().into(),
                        Value::Number(number) if !number.is_f64() => number.to_string().into(),
                        Value::Null => {
                            missing = true;
                            continue;
                        }
                        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                            return Err(Invalid::of(name));
                        }
                    };
                    if pattern.as_ref().is_some_and(|pattern| !pattern.is_match(&text)) {
                        return Err(Invalid::of(name));
                    }
                    values.push((name.clone(), text));
                }
                if missing {
                    return Ok(None);
                }
                let given = values.iter().map(|(_, text)| Given::Text(Cow::Borrowed(&**text)));
                let name = match template.fill(given) {
                    Ok(Some(name)) => name,
                    Ok(None) => return Ok(None),
                    Err(_) => {
                        let first = values.first().map_or("topic", |(name, _)| name);
                        let wrong = values.iter().find(|(_, text)| !Self::is_safe(template, text));
                        return Err(Invalid::of(wrong.map_or(first, |(name, _)| name)));
                    }
                };
                let topic =
                    Topic::parse(&format!("realtime:{name}")).map_err(|_| Invalid::of("topic"))?;
                Ok(Some(Named { topic, values: values.into() }))
            }
        }
    }

    /// The values of a topic that was named this way; none when it was not.
    pub fn values(&self, topic: &Topic) -> Option<Values> {
        match &self.0 {
            Kind::Any => Some([("topic".into(), topic.sub_topic().into())].into()),
            Kind::Template(template, known) => {
                let values = template.values(topic.sub_topic())?;
                let named = known.iter().zip(values).map(|((name, pattern), value)| {
                    let fits = pattern.as_ref().is_none_or(|pattern| pattern.is_match(value));
                    fits.then(|| (name.clone(), value.into()))
                });
                named.collect()
            }
        }
    }

    fn is_safe(template: &Template, text: &str) -> bool {
        let all = template.columns().map(|_| Given::Text(Cow::Borrowed(text)));
        template.fill(all).is_ok()
    }
}

/// A room of a user's own: a template over who he is (`{sub}`) and his claims (`{claims.x}`), such as
/// `user:{sub}`; none when he does not have such a claim, or it leads nowhere.
pub fn personal(naming: &Naming, sub: Option<&str>, claims: &Value) -> Option<Named> {
    let named = naming.with(|name| match name.strip_prefix("claims.") {
        Some(path) => {
            path.split('.').try_fold(claims, |value, member| value.get(member)).map(Cow::Borrowed)
        }
        None if name == "sub" => sub.map(|sub| Cow::Owned(Value::String(sub.to_owned()))),
        None => None,
    });
    named.ok().flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(template: &str, payload: &Value, expected: Result<Option<&str>, &str>) {
        let naming = Naming::parse(template, [("mapId", "^[0-9a-f-]+$")])
            .or_else(|_| Naming::parse(template, []))
            .unwrap();
        let named = naming.of(payload);
        let topic = named.as_ref().map(|named| named.as_ref().map(|named| named.topic.sub_topic()));
        assert_eq!(topic, expected.map_err(Invalid::of).as_ref().copied());
        if let Ok(Some(named)) = named {
            assert_eq!(naming.values(&named.topic), Some(named.values));
        }
    }

    #[test]
    fn values_of_a_payload_name_a_room() {
        check("map:{mapId}", &json!({ "mapId": "7b-1" }), Ok(Some("map:7b-1")));
        check("task:{id}", &json!({ "id": 12 }), Ok(Some("task:12")));
        check("presence", &json!({}), Ok(Some("presence")));
        check("e:{type}:{id}", &json!({ "type": "page", "id": "1" }), Ok(Some("e:page:1")));
    }

    #[test]
    fn what_is_not_there_names_none() {
        check("map:{mapId}", &json!({ "other": 1 }), Ok(None));
        check("map:{mapId}", &json!({ "mapId": null }), Ok(None));
        check("map:{mapId}", &json!("text"), Ok(None));
        check("e:{type}:{id}", &json!({ "type": "page" }), Ok(None));
    }

    #[test]
    fn what_leads_elsewhere_is_refused_by_its_name() {
        check("map:{mapId}", &json!({ "mapId": "X" }), Err("mapId"));
        check("map:{mapId}", &json!({ "mapId": "" }), Err("mapId"));
        for wrong in [json!("a:b"), json!("*"), json!("a/b"), json!(""), json!([]), json!(1.5)] {
            check("task:{id}", &json!({ "id": wrong }), Err("id"));
        }
        check("task:{id}", &json!({ "id": "x".repeat(300) }), Err("id"));
        check("e:{type}:{id}", &json!({ "type": "page", "id": "a:b" }), Err("id"));
    }

    #[test]
    fn rooms_of_any_name_are_named_by_their_topic() {
        let any = Naming::any();
        let named = any.of(&json!({ "topic": "map:1" })).unwrap().unwrap();
        assert_eq!(named.topic.as_str(), "realtime:map:1");
        assert_eq!(any.of(&json!({})), Ok(None));
        for wrong in [json!(""), json!(1), json!("a\0"), json!("x".repeat(5000))] {
            assert_eq!(any.of(&json!({ "topic": wrong })), Err(Invalid::of("topic")));
        }
    }

    #[test]
    fn a_room_of_ones_own_is_named_by_who_one_is() {
        let naming = Naming::parse("user:{sub}", []).unwrap();
        let claims = json!({ "app": { "tenant": "t1" }, "sub": "forged" });
        let named = personal(&naming, Some("u1"), &claims).unwrap();
        assert_eq!(named.topic.sub_topic(), "user:u1");
        assert_eq!(personal(&naming, None, &claims), None);
        assert_eq!(personal(&naming, Some("a:b"), &claims), None);
        let naming = Naming::parse("tenant:{claims.app.tenant}", []).unwrap();
        assert_eq!(personal(&naming, None, &claims).unwrap().topic.sub_topic(), "tenant:t1");
        assert_eq!(personal(&naming, None, &json!({})), None);
        let naming = Naming::parse("x:{other}", []).unwrap();
        assert_eq!(personal(&naming, Some("u1"), &claims), None);
    }

    #[test]
    fn patterns_are_checked_when_they_are_declared() {
        let wrong = |patterns: &[(&str, &str)]| {
            Naming::parse("map:{id}", patterns.iter().copied()).unwrap_err().to_string()
        };
        assert!(wrong(&[("id", "(")]).contains("pattern of id"));
        assert!(wrong(&[("id", "((a{100}){100}){100}")]).contains("pattern of id"));
        assert!(wrong(&[("mapId", "^a$")]).contains("not in the topic"));
    }

    proptest! {
        #[test]
        fn no_payload_is_a_panic(id: String, other: String) {
            let naming = Naming::parse("e:{type}:{id}", []).unwrap();
            let payload = json!({ "type": other, "id": id });
            if let Ok(Some(named)) = naming.of(&payload) {
                prop_assert_eq!(naming.values(&named.topic), Some(named.values));
            }
        }
    }
}
