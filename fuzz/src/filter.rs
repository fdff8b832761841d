//! Filters of `postgres_changes`: conditions that were read, written again, are the same; each is
//! the same alone and among others; what is refused is told in a text of bounded length.

use serde_json::Value;
use walcast::hub::{CONDITIONS_MAX, Condition, FILTER_BYTES_MAX, Operator, Subscription, parse};

/// The whole input is a filter, a legacy topic, or (from `{` on) an element of a join's list.
pub fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if text.starts_with('{')
        && let Ok(parameters) = serde_json::from_str::<Value>(text)
    {
        subscription(&Subscription::parse(&parameters), text);
        assert_same(&Subscription::parse(&parameters), &Subscription::parse(&parameters));
        return;
    }
    subscription(&Subscription::parse_topic(text), text);
    let conditions = match parse(text) {
        Ok(conditions) => conditions,
        Err(error) => {
            // Each character takes four at most, each part its quotes.
            assert!(error.to_string().len() <= 8 * text.len() + 128, "{error}");
            return;
        }
    };
    assert!(conditions.len() <= CONDITIONS_MAX && text.len() <= FILTER_BYTES_MAX);
    assert!(conditions.is_empty() == text.trim().is_empty());
    // A column that nobody has, and that hides where a condition ends.
    let hides = |condition: &Condition| condition.column.contains(['"', '(', ')', ',']);
    if conditions.iter().any(hides) {
        return;
    }
    let written: Vec<_> = conditions.iter().map(write).collect();
    for (condition, text) in conditions.iter().zip(&written) {
        assert_eq!(parse(text).as_deref(), Ok(std::slice::from_ref(condition)), "{text}");
    }
    let written = written.join(",");
    if written.len() <= FILTER_BYTES_MAX {
        assert_eq!(parse(&written), Ok(conditions), "{written}");
    }
}

fn write(condition: &Condition) -> String {
    let Condition { column, operator, negated, value } = condition;
    let not = if *negated { "not." } else { "" };
    let value = if *operator == Operator::In {
        format!("({})", &value[1..value.len() - 1])
    } else {
        format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
    };
    format!("{column}={not}{}.{value}", operator.as_str())
}

type Read = Result<Subscription, walcast::hub::SubscriptionError>;

fn subscription(read: &Read, text: &str) {
    match read {
        Ok(subscription) => {
            assert!((1..=0x7FFF_FFFF).contains(&subscription.id));
            assert!(subscription.conditions.len() <= CONDITIONS_MAX);
            assert!(!subscription.to_string().is_empty());
        }
        Err(error) => assert!(error.to_string().len() <= 16 * text.len() + 512, "{error}"),
    }
}

fn assert_same(one: &Read, other: &Read) {
    let ids = [one, other].map(|read| read.as_ref().ok().map(|subscription| subscription.id));
    assert_eq!(ids[0], ids[1]);
}
