//! Topic templates: `map:{map_id}` and a row's values → the topic of a room.
//!
//! In:     a template as it was declared; the values of a row.
//! Out:    a topic, and back again the values in it.
//! Never:  a topic that another row's values, or another reading of it, could have given: a value
//!         with a separator in it has no topic.

use std::borrow::Cow;

/// Bytes of a topic: clients allow 255 with the `realtime:` in front.
pub const TOPIC_BYTES_MAX: usize = 246;

/// Templates of one rule.
pub const TEMPLATES_MAX: usize = 8;

/// What may stand between a word and a value. `-` and `_` are part of values.
const SEPARATORS: &str = ":./|;@~+=!";

/// What no value may have in it, whatever the template: the separators that every application uses,
/// what separates topics in a query, and what means anything to somebody who matches topics.
const NEVER: &str = ":/,*{}";

/// A template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    text: Box<str>,
    parts: Box<[Part]>,
    /// What a value may not have in it, beside [`NEVER`].
    separators: Box<str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Word(Box<str>),
    Column(Box<str>),
}

/// Why a text is no template. Each is a sentence for whoever declared it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseTemplateError {
    /// Nothing, or too much.
    #[error("a topic has 1 to {TOPIC_BYTES_MAX} bytes")]
    Length,
    /// A brace without its other.
    #[error("a brace is not part of a {{column}}")]
    Brace,
    /// Something that no topic may contain.
    #[error("a topic contains no comma, no asterisk and no control character")]
    Character,
    /// A placeholder at the beginning, or beside another, or beside a letter.
    #[error("a {{column}} stands behind a separator such as : and before another one or the end")]
    Ambiguous,
}

/// What a row has in a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given<'a> {
    /// Its text.
    Text(Cow<'a, str>),
    /// Null: the row has no such topic.
    Null,
    /// The log does not say.
    Unknown,
}

/// Why a row has no topic though it should have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FillError {
    /// The log does not carry a value.
    Unknown,
    /// A value is empty, too long, or has something in it that could lead to another room.
    Unsafe,
}

impl Template {
    /// From its text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, ParseTemplateError> {
        if text.is_empty() || text.len() > TOPIC_BYTES_MAX {
            return Err(ParseTemplateError::Length);
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('{') {
                let (column, after) = after.split_once('}').ok_or(ParseTemplateError::Brace)?;
                if column.is_empty() || column.contains('{') {
                    return Err(ParseTemplateError::Brace);
                }
                parts.push(Part::Column(column.into()));
                rest = after;
            } else {
                let end = rest.find('{').unwrap_or(rest.len());
                let (word, after) = rest.split_at(end);
                if word.contains('}') {
                    return Err(ParseTemplateError::Brace);
                }
                if word.contains([',', '*']) || word.chars().any(char::is_control) {
                    return Err(ParseTemplateError::Character);
                }
                parts.push(Part::Word(word.into()));
                rest = after;
            }
        }
        let separates = |part: Option<&Part>, end: fn(&str) -> Option<char>| match part {
            Some(Part::Word(word)) => end(word).is_some_and(|end| SEPARATORS.contains(end)),
            Some(Part::Column(_)) | None => false,
        };
        for (place, part) in parts.iter().enumerate() {
            let Part::Column(_) = part else { continue };
            let before = place.checked_sub(1).and_then(|before| parts.get(before));
            let after = parts.get(place + 1);
            let ends = |word: &str| word.chars().next_back();
            let begins = |word: &str| word.chars().next();
            if !separates(before, ends) || after.is_some() && !separates(after, begins) {
                return Err(ParseTemplateError::Ambiguous);
            }
        }
        let words = parts.iter().filter_map(|part| match part {
            Part::Word(word) => Some(&**word),
            Part::Column(_) => None,
        });
        let separators: String =
            words.flat_map(str::chars).filter(|c| SEPARATORS.contains(*c)).collect();
        Ok(Self { text: text.into(), parts: parts.into(), separators: separators.into() })
    }

    /// As it was declared.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The columns that it names, in order.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Column(column) => Some(&**column),
            Part::Word(_) => None,
        })
    }

    /// The topic of a row with these values, in the order of [`Self::columns`]; none for a row that
    /// has none, because a value is null.
    ///
    /// # Errors
    /// Why it cannot be told.
    pub fn fill<'a>(
        &self,
        values: impl IntoIterator<Item = Given<'a>>,
    ) -> Result<Option<Box<str>>, FillError> {
        let mut topic = String::with_capacity(self.text.len() + 32);
        let mut values = values.into_iter();
        for part in &self.parts {
            match part {
                Part::Word(word) => topic.push_str(word),
                Part::Column(_) => match values.next() {
                    Some(Given::Text(text)) if self.is_safe(&text) => topic.push_str(&text),
                    Some(Given::Text(_)) => return Err(FillError::Unsafe),
                    Some(Given::Null) => return Ok(None),
                    Some(Given::Unknown) | None => return Err(FillError::Unknown),
                },
            }
            if topic.len() > TOPIC_BYTES_MAX {
                return Err(FillError::Unsafe);
            }
        }
        Ok(Some(topic.into()))
    }

    /// The values in a topic, in the order of [`Self::columns`]; none when it is not one of this
    /// template's.
    pub fn values<'a>(&self, topic: &'a str) -> Option<Vec<&'a str>> {
        let mut values = Vec::new();
        let mut rest = topic;
        let mut parts = self.parts.iter().peekable();
        while let Some(part) = parts.next() {
            match part {
                Part::Word(word) => rest = rest.strip_prefix(&**word)?,
                Part::Column(_) => {
                    // No value has the first character of what follows it in it.
                    let end = match parts.peek() {
                        Some(Part::Word(word)) => rest.find(&**word)?,
                        Some(Part::Column(_)) | None => rest.len(),
                    };
                    let (value, after) = rest.split_at(end);
                    if !self.is_safe(value) {
                        return None;
                    }
                    values.push(value);
                    rest = after;
                }
            }
        }
        (rest.is_empty() && topic.len() <= TOPIC_BYTES_MAX).then_some(values)
    }

    /// Whether a value can be told from what is around it, here and in other templates.
    fn is_safe(&self, value: &str) -> bool {
        !value.is_empty()
            && !value
                .chars()
                .any(|c| c.is_control() || NEVER.contains(c) || self.separators.contains(c))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn given(values: &[&str]) -> Vec<Given<'static>> {
        values.iter().map(|value| Given::Text(Cow::Owned((*value).to_owned()))).collect()
    }

    #[track_caller]
    fn check(template: &str, values: &[&str], expected: Result<&str, FillError>) {
        let template = Template::parse(template).unwrap();
        let filled = template.fill(given(values));
        assert_eq!(filled, expected.map(|topic| Some(topic.into())));
        if let Ok(topic) = expected {
            assert_eq!(template.values(topic).as_deref(), Some(values));
        }
    }

    #[test]
    fn values_take_the_place_of_their_columns() {
        check("presence", &[], Ok("presence"));
        check("map:{map_id}", &["7b-1_x"], Ok("map:7b-1_x"));
        check("entity:{type}:{id}", &["page", "p 1.2"], Ok("entity:page:p 1.2"));
        check("a.{x}.b", &["ü"], Ok("a.ü.b"));
    }

    #[test]
    fn a_value_that_could_lead_elsewhere_leads_nowhere() {
        for value in ["", "a:b", "*", "a,b", "{x}", "a\nb", "a/b", "\u{85}"] {
            check("map:{map_id}", &[value], Err(FillError::Unsafe));
        }
        check("entity:{type}:{id}", &["page:1", "2"], Err(FillError::Unsafe));
        check("a.{x}", &["b.c"], Err(FillError::Unsafe));
        check("map:{map_id}", &[&"x".repeat(TOPIC_BYTES_MAX)], Err(FillError::Unsafe));
        let longest = "x".repeat(TOPIC_BYTES_MAX - 4);
        check("map:{map_id}", &[&longest], Ok(&format!("map:{longest}")));
    }

    #[test]
    fn null_is_no_topic_and_unknown_is_not_null() {
        let template = Template::parse("map:{map_id}").unwrap();
        assert_eq!(template.fill([Given::Null]), Ok(None));
        assert_eq!(template.fill([Given::Unknown]), Err(FillError::Unknown));
        assert_eq!(template.fill([]), Err(FillError::Unknown));
    }

    #[test]
    fn ambiguous_and_broken_templates_are_refused() {
        for (text, expected) in [
            ("", ParseTemplateError::Length),
            ("map:{", ParseTemplateError::Brace),
            ("map:{}", ParseTemplateError::Brace),
            ("map:}", ParseTemplateError::Brace),
            ("map:{a{b}", ParseTemplateError::Brace),
            ("a,b", ParseTemplateError::Character),
            ("a:*", ParseTemplateError::Character),
            ("a\n", ParseTemplateError::Character),
            ("{a}", ParseTemplateError::Ambiguous),
            ("{a}:b", ParseTemplateError::Ambiguous),
            ("a{x}", ParseTemplateError::Ambiguous),
            ("a-{x}", ParseTemplateError::Ambiguous),
            ("a:{x}{y}b", ParseTemplateError::Ambiguous),
            ("a:{x}b{y}", ParseTemplateError::Ambiguous),
            ("a:{x}-{y}", ParseTemplateError::Ambiguous),
        ] {
            assert_eq!(Template::parse(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn what_another_template_made_is_not_read_as_this_ones() {
        let template = Template::parse("entity:{type}:{id}").unwrap();
        for topic in ["entity:page", "entity:page:", "entity::1", "entity:a:b:c", "map:1", ""] {
            assert_eq!(template.values(topic), None, "{topic}");
        }
    }

    proptest! {
        #[test]
        fn equal_topics_are_of_equal_values(
            (template, one, other) in prop_oneof![
                Just(("a:{x}:{y}", 2)), Just(("a:{x}", 1)), Just(("a.{x}.{y}/{z}", 3)),
            ].prop_flat_map(|(template, count)| {
                let values = || proptest::collection::vec("[ab:./*,{}ü -]{0,4}", count);
                (Just(template), values(), values())
            })
        ) {
            let template = Template::parse(template).unwrap();
            let fill = |values: &[String]| {
                template.fill(values.iter().map(|value| Given::Text(Cow::Borrowed(value))))
            };
            if let (Ok(Some(first)), Ok(Some(second))) = (fill(&one), fill(&other)) {
                prop_assert_eq!(first == second, one == other);
                let read: Vec<String> =
                    template.values(&first).unwrap().into_iter().map(Into::into).collect();
                prop_assert_eq!(read, one);
            }
        }

        #[test]
        fn two_templates_never_share_a_room_by_a_value(
            x in "[ab:./|]{1,4}", y in "[ab:./|]{1,4}", z in "[ab:./|]{1,4}",
        ) {
            let one = Template::parse("room:{x}").unwrap();
            let two = Template::parse("room:{y}:{z}").unwrap();
            let given = |text: &str| Given::Text(Cow::Owned(text.to_owned()));
            if let (Ok(first), Ok(second)) = (one.fill([given(&x)]), two.fill([given(&y), given(&z)])) {
                prop_assert_ne!(first, second);
            }
        }

        #[test]
        fn no_text_is_a_panic(template: String, topic: String) {
            if let Ok(template) = Template::parse(&template)
                && let Some(values) = template.values(&topic)
            {
                let filled = template.fill(values.into_iter().map(|v| Given::Text(v.into())));
                prop_assert_eq!(filled, Ok(Some(topic.into())));
            }
        }
    }
}
