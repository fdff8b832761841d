//! The name of a parameter → what the parameter is about.

use super::Cursor;
use crate::rest::Problem;
use crate::rest::request::{At, Field};

/// Names that an embedding can stand in front of.
const EMBEDDABLE: [&str; 5] = ["order", "limit", "offset", "and", "or"];

/// Names of parameters that are about the whole request.
const WHOLE: [&str; 3] = ["select", "columns", "on_conflict"];

/// What a parameter says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Key {
    /// `select`
    Select,
    /// `columns`
    Columns,
    /// `on_conflict`
    OnConflict,
    /// `order`
    Order,
    /// `limit`
    Limit,
    /// `offset`
    Offset,
    /// `and`, `or`, `not.and`, `not.or`
    Tree {
        /// `not.`
        is_negated: bool,
        /// `or`
        is_or: bool,
    },
    /// A filter.
    Field(Field),
}

/// Whether the name is the dialect's own, so that nothing else can be called that.
pub(super) fn is_reserved(name: &str) -> bool {
    WHOLE.contains(&name) || name.rsplit('.').next().is_some_and(|last| EMBEDDABLE.contains(&last))
}

/// Reads the name of a parameter. Quoted names are never the dialect's own.
pub(super) fn key(name: &str) -> Result<At<Key>, Problem> {
    let whole = |what| Ok(At { path: Vec::new(), what });
    match name {
        "select" => return whole(Key::Select),
        "columns" => return whole(Key::Columns),
        "on_conflict" => return whole(Key::OnConflict),
        _ => {}
    }
    let mut cursor = Cursor::new(if is_reserved(name) { "logic path" } else { "tree path" }, name);
    let mut names: Vec<(String, bool)> = Vec::new();
    loop {
        let is_quoted = cursor.peek() == Some('"');
        names.push((cursor.name()?, is_quoted));
        if !cursor.eat(".") {
            break;
        }
    }
    let steps = cursor.steps()?;
    cursor.end("delimiter (.), \"->>\", \"->\" or end of input")?;
    let (last, is_quoted) = names.pop().expect("the loop reads a name before it ends");
    let is_tree = |name: &str| matches!(name, "and" | "or");
    let what = match last.as_str() {
        "order" if !is_quoted && steps.is_empty() => Key::Order,
        "limit" if !is_quoted && steps.is_empty() => Key::Limit,
        "offset" if !is_quoted && steps.is_empty() => Key::Offset,
        operator if is_tree(operator) && !is_quoted && steps.is_empty() => {
            let is_or = operator == "or";
            let before = names.len();
            names.retain(|(name, is_quoted)| name != "not" || *is_quoted);
            Key::Tree { is_negated: names.len() < before, is_or }
        }
        _ => Key::Field(Field { name: last, path: steps }),
    };
    Ok(At { path: names.into_iter().map(|(name, _)| name).collect(), what })
}
