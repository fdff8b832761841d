//! The query of a request for an event stream: what is asked for.
//!
//! In:     `topics=a,b&private=true&changes=public.stories@INSERT:map_id=eq.7`, hostile or not.
//! Out:    [`Wishes`], or the sentence the client is told; the token, where one is in the query.
//! Never:  IO; whether tables and columns exist; more than a bound of anything.
//!
//! One element of `changes` is `schema.table(columns)@EVENT:filter`, of which only the table is
//! needed. Elements stand between commas, and so do the conditions of a filter: what follows a comma
//! outside parentheses and quotes belongs to the filter when its first `=` comes before its first
//! `:`, as in `id=gt.7`, and is the next element when not. Parameters may be repeated.

use std::borrow::Cow;

use percent_encoding::percent_decode;
use serde_json::json;
use serde_json::value::RawValue;

use crate::hub::segments;
use crate::session::Limits;
use crate::topic::{ParseTopicError, Topic};

/// What a stream is about.
#[derive(Debug)]
pub struct Wishes {
    /// The rooms, each once.
    pub topics: Vec<Topic>,
    /// Whether policies decide about them.
    pub private: bool,
    /// Subscriptions to row changes, as the sockets' protocol writes them.
    pub changes: Vec<Box<RawValue>>,
    /// Where the client's last stream ended, by the query.
    pub cursor: Option<String>,
}

/// The token in a query; `access_token` wins over `apikey`, which is also the key of nobody in
/// particular.
pub fn token(query: &str) -> Option<Cow<'_, str>> {
    ["access_token", "apikey"].into_iter().find_map(|wanted| {
        let mut tokens = pairs(query).filter(|(name, _)| name == wanted);
        tokens.next().and_then(|(_, value)| decoded(value)).filter(|token| !token.is_empty())
    })
}

/// What is asked for.
///
/// # Errors
/// Why it is refused.
pub fn wishes(query: &str, limits: &Limits) -> Result<Wishes, String> {
    let (topics, changes) = (Vec::new(), Vec::new());
    let mut wishes = Wishes { topics, private: false, changes, cursor: None };
    for (name, value) in pairs(query) {
        let text = || decoded(value).ok_or_else(|| format!("`{name}` is not UTF-8"));
        match &*name {
            "topic" => wishes.add_topic(&text()?, limits)?,
            "topics" => {
                for topic in text()?.split(',') {
                    wishes.add_topic(topic.trim(), limits)?;
                }
            }
            "private" => {
                wishes.private = match &*text()? {
                    "true" => true,
                    "false" => false,
                    _ => return Err("`private` must be true or false".into()),
                }
            }
            "changes" => wishes.add_changes(&text()?, limits)?,
            "cursor" | "last_event_id" => wishes.cursor = Some(text()?.into_owned()),
            _ => {}
        }
    }
    if wishes.topics.is_empty() && wishes.changes.is_empty() {
        return Err("nothing is asked for: give `changes` or `topics`".into());
    }
    Ok(wishes)
}

impl Wishes {
    fn add_topic(&mut self, name: &str, limits: &Limits) -> Result<(), String> {
        let topic = Topic::parse(&format!("realtime:{name}")).map_err(|problem| match problem {
            ParseTopicError::TooLong => "the name of a topic is too long",
            ParseTopicError::Nul => "the name of a topic contains a NUL",
            ParseTopicError::Nameless | ParseTopicError::Unmatched => "a topic has no name",
        })?;
        if self.topics.contains(&topic) {
            return Ok(());
        }
        if self.topics.len() >= limits.channels_max {
            return Err(format!("more than {} topics", limits.channels_max));
        }
        self.topics.push(topic);
        Ok(())
    }

    fn add_changes(&mut self, text: &str, limits: &Limits) -> Result<(), String> {
        let mut rest = Some(text);
        while let Some(text) = rest {
            if self.changes.len() >= limits.subscriptions_max {
                return Err(format!(
                    "more than {} elements of `changes`",
                    limits.subscriptions_max
                ));
            }
            let (change, after) = change(text).map_err(|problem| {
                format!("`changes` cannot be read: {problem}, before `{text}`")
            })?;
            self.changes.push(change);
            rest = after;
        }
        Ok(())
    }
}

/// One element, and what follows the comma after it.
fn change(text: &str) -> Result<(Box<RawValue>, Option<&str>), &'static str> {
    let (first, rest) = name(text)?;
    let (schema, table, rest) = match rest.strip_prefix('.') {
        Some(rest) => {
            let (table, rest) = name(rest)?;
            (first, table, rest)
        }
        None => ("public".into(), first, rest),
    };
    let (columns, rest) = match rest.strip_prefix('(') {
        Some(rest) => columns(rest).map(|(columns, rest)| (Some(columns), rest))?,
        None => (None, rest),
    };
    let (event, rest) = match rest.strip_prefix('@') {
        Some(rest) => event(rest)?,
        None => ("*", rest),
    };
    let (filter, rest) = match rest.strip_prefix(':') {
        Some(rest) => {
            let (filter, rest) = rest.split_at(filter_bytes(rest));
            (Some(filter), rest)
        }
        None => (None, rest.trim()),
    };
    let rest = match rest.strip_prefix(',') {
        Some(rest) => Some(rest),
        None if rest.is_empty() => None,
        None => return Err("expected `,`, `(`, `@` or `:` after the name of a table"),
    };
    let mut parameters = json!({ "event": event, "schema": schema, "table": table });
    if let Some(filter) = filter {
        parameters["filter"] = filter.into();
    }
    if let Some(columns) = columns {
        parameters["select"] = columns.into();
    }
    let parameters = RawValue::from_string(parameters.to_string());
    Ok((parameters.map_err(|_| "it is no text")?, rest))
}

/// A name, in double quotes where it has other characters in it, and the rest.
fn name(text: &str) -> Result<(Cow<'_, str>, &str), &'static str> {
    let text = text.trim_start();
    if let Some(quoted) = text.strip_prefix('"') {
        let mut name = String::new();
        let mut rest = quoted;
        loop {
            let (part, after) = rest.split_once('"').ok_or("a quoted name has no end")?;
            name.push_str(part);
            match after.strip_prefix('"') {
                Some(after) => {
                    name.push('"');
                    rest = after;
                }
                None if name.is_empty() => return Err("a name is empty"),
                None => return Ok((name.into(), after)),
            }
        }
    }
    let end = text.find(['.', ',', '(', ')', '@', ':', '"']).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let name = name.trim_end();
    if name.is_empty() { Err("expected a name") } else { Ok((name.into(), rest)) }
}

/// The names up to the closing parenthesis, and the rest.
fn columns(text: &str) -> Result<(Vec<Cow<'_, str>>, &str), &'static str> {
    let (mut columns, mut text) = (Vec::new(), text);
    loop {
        let (column, rest) = name(text)?;
        columns.push(column);
        let rest = rest.trim_start();
        if let Some(rest) = rest.strip_prefix(')') {
            return Ok((columns, rest));
        }
        text = rest.strip_prefix(',').ok_or("expected `,` or `)` after the name of a column")?;
    }
}

fn event(text: &str) -> Result<(&'static str, &str), &'static str> {
    let (word, rest) = text.split_at(text.find([':', ',']).unwrap_or(text.len()));
    let known = ["INSERT", "UPDATE", "DELETE", "*"].into_iter();
    let event = known.into_iter().find(|event| word.trim().eq_ignore_ascii_case(event));
    Ok((event.ok_or("an event is INSERT, UPDATE, DELETE or *")?, rest))
}

/// How much of the text is the filter that it begins with.
fn filter_bytes(text: &str) -> usize {
    let mut bytes = 0;
    for (number, segment) in segments(text).into_iter().enumerate() {
        if number > 0 {
            let is_next = match (segment.find('='), segment.find(':')) {
                (Some(equals), Some(colon)) => colon < equals,
                (equals, _) => equals.is_none(),
            };
            if is_next {
                break;
            }
            // The comma before it.
            bytes += 1;
        }
        bytes += segment.len();
    }
    bytes
}

/// Names, decoded, with values that are not.
fn pairs(query: &str) -> impl Iterator<Item = (Cow<'_, str>, &str)> {
    query.split('&').filter_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        Some((decoded(name)?, value))
    })
}

/// `+` is a space, `%41` an A; none where that is no UTF-8.
fn decoded(text: &str) -> Option<Cow<'_, str>> {
    if text.contains('+') {
        let text = text.replace('+', " ");
        return Some(percent_decode(text.as_bytes()).decode_utf8().ok()?.into_owned().into());
    }
    percent_decode(text.as_bytes()).decode_utf8().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::config::Config;

    fn limits() -> Limits {
        Limits { channels_max: 3, subscriptions_max: 3, ..Limits::from(&Config::default()) }
    }

    fn changes(text: &str) -> Result<Vec<Value>, String> {
        let query = format!(
            "changes={}",
            percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC)
        );
        let wishes = wishes(&query, &limits())?;
        Ok(wishes.changes.iter().map(|raw| serde_json::from_str(raw.get()).unwrap()).collect())
    }

    /// Each element as `event schema.table [columns] filter`.
    fn check(text: &str, expected: &[&str]) {
        let found: Vec<String> = changes(text)
            .unwrap_or_else(|problem| panic!("{text}: {problem}"))
            .iter()
            .map(|it| {
                let text = |name: &str| it[name].as_str().unwrap_or("-").to_owned();
                let select =
                    if it["select"].is_null() { "-".into() } else { it["select"].to_string() };
                format!(
                    "{} {}.{} {select} {}",
                    text("event"),
                    text("schema"),
                    text("table"),
                    text("filter")
                )
            })
            .collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn elements_of_every_form() {
        check("stories", &["* public.stories - -"]);
        check("app.stories", &["* app.stories - -"]);
        check("app.*", &["* app.* - -"]);
        check("*.*", &["* *.* - -"]);
        check("stories@insert", &["INSERT public.stories - -"]);
        check("stories:map_id=eq.7", &["* public.stories - map_id=eq.7"]);
        check(
            "public.stories(id, title)@UPDATE:map_id=eq.7",
            &[r#"UPDATE public.stories ["id","title"] map_id=eq.7"#],
        );
        check(r#""My.schema"."a""b":x=eq.1"#, &[r#"* My.schema.a"b - x=eq.1"#]);
    }

    #[test]
    fn a_comma_separates_elements_or_conditions() {
        check("a,b", &["* public.a - -", "* public.b - -"]);
        check("a:x=gt.1,x=lt.9,b", &["* public.a - x=gt.1,x=lt.9", "* public.b - -"]);
        check(
            "a:x=in.(1,2),b.c:y=eq.t:z,d@DELETE",
            &["* public.a - x=in.(1,2)", "* b.c - y=eq.t:z", "DELETE public.d - -"],
        );
        check(r#"a:x=eq."p,q:r",b"#, &[r#"* public.a - x=eq."p,q:r""#, "* public.b - -"]);
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        for (text, part) in [
            ("", "expected a name"),
            ("a,", "expected a name"),
            ("a..b", "expected a name"),
            ("a.b.c", "expected `,`"),
            ("a@TRUNCATE", "an event is"),
            ("a(id", "expected `,` or `)`"),
            ("a()", "expected a name"),
            (r#""a"#, "has no end"),
            (r#""""#, "is empty"),
            ("a,b,c,d", "more than 3"),
        ] {
            let problem = changes(text).unwrap_err();
            assert!(problem.contains(part), "{text}: {problem}");
        }
    }

    #[test]
    fn topics_are_counted_once_and_bounded() {
        let topics = |query: &str| {
            let wishes = wishes(query, &limits())?;
            Ok::<_, String>(
                wishes.topics.iter().map(|it| it.sub_topic().to_owned()).collect::<Vec<_>>(),
            )
        };
        assert_eq!(topics("topics=a,b,a&topics=b").unwrap(), ["a", "b"]);
        assert_eq!(topics("topics=a%2Cb+c&topic=d%2Ce").unwrap(), ["a", "b c", "d,e"]);
        assert!(topics("topics=a,b,c,d").unwrap_err().contains("more than 3"));
        assert!(topics("topics=a,").unwrap_err().contains("no name"));
        assert!(topics("apikey=x").unwrap_err().contains("nothing is asked for"));
        assert!(topics("topics=%ff").unwrap_err().contains("UTF-8"));
        assert!(topics("topics=a&private=yes").unwrap_err().contains("private"));
        assert!(wishes("topics=a&private=true", &limits()).unwrap().private);
        let resumed = wishes("topics=a&cursor=x&last_event_id=y", &limits()).unwrap();
        assert_eq!(resumed.cursor.as_deref(), Some("y"));
    }

    #[test]
    fn the_token_of_a_user_wins_over_the_key() {
        assert_eq!(token("apikey=k&access_token=t").as_deref(), Some("t"));
        assert_eq!(token("apikey=k&access_token=").as_deref(), Some("k"));
        assert_eq!(token("topics=a"), None);
    }

    proptest! {
        #[test]
        fn no_query_panics(query in ".{0,80}", noisy in r#"[a.,()"@:=* ]{0,40}"#) {
            let _ = wishes(&query, &limits());
            let _ = token(&query);
            let _ = changes(&noisy);
        }
    }
}
