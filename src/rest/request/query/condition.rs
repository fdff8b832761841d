//! `eq.1`, `(a.eq.1,or(b.gt.2,c.is.null))` → [`Condition`]s.

use super::Cursor;
use crate::rest::Problem;
use crate::rest::request::{Condition, Field, Is, Operator, Quantifier, Search, Test};

/// Trees inside each other: a level of our stack and of Postgres' each.
const DEPTH_MAX: usize = 32;

/// Operators with one operand, and whether they can be followed by `(any)` or `(all)`.
const OPERATORS: [(&str, Operator, bool); 19] = [
    ("eq", Operator::Eq, true),
    ("neq", Operator::Neq, false),
    ("gt", Operator::Gt, true),
    ("gte", Operator::Gte, true),
    ("lt", Operator::Lt, true),
    ("lte", Operator::Lte, true),
    ("like", Operator::Like, true),
    ("ilike", Operator::ILike, true),
    ("match", Operator::Match, true),
    ("imatch", Operator::IMatch, true),
    ("isdistinct", Operator::IsDistinct, false),
    ("cs", Operator::Contains, false),
    ("cd", Operator::ContainedIn, false),
    ("ov", Operator::Overlaps, false),
    ("sl", Operator::StrictlyLeft, false),
    ("sr", Operator::StrictlyRight, false),
    ("nxr", Operator::NotRightOf, false),
    ("nxl", Operator::NotLeftOf, false),
    ("adj", Operator::Adjacent, false),
];

/// Functions that read a text search query.
const SEARCHES: [(&str, Search); 4] = [
    ("fts", Search::Query),
    ("plfts", Search::Plain),
    ("phfts", Search::Phrase),
    ("wfts", Search::Web),
];

/// What `is.` can be followed by, in any case.
const IS: [(&str, Is); 5] = [
    ("null", Is::Null),
    ("not_null", Is::NotNull),
    ("true", Is::True),
    ("false", Is::False),
    ("unknown", Is::Unknown),
];

/// Where a test stands: what ends its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Alone in a parameter: the end does.
    Alone,
    /// In a tree: a comma or a closing parenthesis does.
    Tree,
}

/// The value of a filter, `not.eq.1`: whether it is negated, and the test.
pub(super) fn test(text: &str) -> Result<(bool, Test), Problem> {
    let mut cursor = Cursor::new("filter", text);
    let operation = operation(&mut cursor, Place::Alone)?;
    cursor.end("end of input")?;
    Ok(operation)
}

/// A test of a field.
pub(super) fn about(field: Field, (is_negated, test): (bool, Test)) -> Condition {
    let test = Condition::Test { field, test };
    if is_negated { Condition::Not(Box::new(test)) } else { test }
}

/// The value of `and=`, `or=`, `not.and=`, `not.or=`.
pub(super) fn tree(is_negated: bool, is_or: bool, text: &str) -> Result<Condition, Problem> {
    // Columns of errors count from the operator, which stands in the name of the parameter.
    let operator = if is_or { "or" } else { "and" };
    let shift = operator.len() + if is_negated { "not.".len() } else { 0 };
    let mut cursor = Cursor::new("logic tree", text).shifted(shift);
    let conditions = branches(&mut cursor, 1)?;
    cursor.end("end of input")?;
    Ok(joined(is_negated, is_or, conditions))
}

/// `(a.eq.1,or(…))`
fn branches(cursor: &mut Cursor<'_>, depth: usize) -> Result<Vec<Condition>, Problem> {
    if depth > DEPTH_MAX {
        let details = format!("trees inside each other more than {DEPTH_MAX} deep");
        return Err(cursor.problem(details));
    }
    cursor.space();
    cursor.expect("(")?;
    let mut conditions = Vec::new();
    loop {
        conditions.push(branch(cursor, depth)?);
        cursor.space();
        if cursor.eat(",") {
            continue;
        }
        if cursor.eat(")") {
            return Ok(conditions);
        }
        return Err(cursor.expected("\",\" or \")\""));
    }
}

/// One branch: a tree, or a test.
fn branch(cursor: &mut Cursor<'_>, depth: usize) -> Result<Condition, Problem> {
    cursor.space();
    if let Some((is_negated, is_or, after)) = inner_tree(*cursor) {
        *cursor = after;
        let conditions = branches(cursor, depth + 1)?;
        return Ok(joined(is_negated, is_or, conditions));
    }
    let start = *cursor;
    let Ok(field) = cursor.field() else {
        let expected = "field name (* or [a..z0..9_$]), negation operator (not) or logic operator \
                        (and, or)";
        return Err(start.expected(expected));
    };
    if !cursor.eat(".") {
        return Err(cursor.expected("delimiter (.)"));
    }
    Ok(about(field, operation(cursor, Place::Tree)?))
}

/// The tree whose operator comes next, if one does: whether it is negated, whether it is an `or`,
/// and where its branches begin. Columns may have these names too: only the parenthesis tells.
fn inner_tree(mut cursor: Cursor<'_>) -> Option<(bool, bool, Cursor<'_>)> {
    let is_negated = cursor.eat("not.");
    let is_or = match cursor.run(|c| c.is_ascii_lowercase()) {
        "and" => false,
        "or" => true,
        _ => return None,
    };
    cursor.space();
    (cursor.peek() == Some('(')).then_some((is_negated, is_or, cursor))
}

/// Conditions as one.
fn joined(is_negated: bool, is_or: bool, conditions: Vec<Condition>) -> Condition {
    let tree = if is_or { Condition::Or(conditions) } else { Condition::And(conditions) };
    if is_negated { Condition::Not(Box::new(tree)) } else { tree }
}

/// `not.eq.1` and its like: whether it is negated, and the test.
fn operation(cursor: &mut Cursor<'_>, place: Place) -> Result<(bool, Test), Problem> {
    let start = *cursor;
    let is_negated = cursor.eat("not.");
    let unknown = |at: Cursor<'_>| {
        let expected = "operator (eq, gt, ...)";
        let expected =
            if is_negated { expected.to_owned() } else { format!("\"not\" or {expected}") };
        at.expected(&expected)
    };
    let begin = if is_negated { *cursor } else { start };
    let word = cursor.run(|c| c.is_ascii_lowercase());
    let test = if word == "in" && cursor.eat(".") {
        Test::In(list(cursor)?)
    } else if word == "is" && cursor.eat(".") {
        Test::Is(is(cursor, place)?)
    } else if let Some((_, kind)) = SEARCHES.iter().find(|(name, _)| *name == word) {
        let config = if cursor.eat("(") {
            let config = cursor.identifier()?;
            cursor.expect(")")?;
            Some(config)
        } else {
            None
        };
        if !cursor.eat(".") {
            return Err(unknown(*cursor));
        }
        Test::Search { kind: *kind, config, value: value(cursor, place)? }
    } else if let Some((_, operator, can_quantify)) =
        OPERATORS.iter().find(|(name, _, _)| *name == word)
    {
        let quantifier = if *can_quantify && cursor.eat("(any)") {
            Some(Quantifier::Any)
        } else if *can_quantify && cursor.eat("(all)") {
            Some(Quantifier::All)
        } else {
            None
        };
        if !cursor.eat(".") {
            return Err(unknown(*cursor));
        }
        let mut value = value(cursor, place)?;
        // `%` is tedious in a URL, so the dialect has `*` for it; there is no way to say `*` itself.
        if matches!(operator, Operator::Like | Operator::ILike) {
            value = value.replace('*', "%");
        }
        Test::Compare { operator: *operator, quantifier, value }
    } else {
        return Err(unknown(begin));
    };
    Ok((is_negated, test))
}

/// What follows `is.`.
fn is(cursor: &mut Cursor<'_>, place: Place) -> Result<Is, Problem> {
    let start = *cursor;
    let word = cursor.run(|c| c.is_ascii_alphabetic() || c == '_');
    let found = IS.iter().find(|(name, _)| name.eq_ignore_ascii_case(word));
    cursor.space();
    let is_ended = match place {
        Place::Alone => cursor.rest().is_empty(),
        Place::Tree => cursor.is_at_end_of_item(),
    };
    match found {
        Some((_, is)) if is_ended => Ok(*is),
        _ => Err(start.expected("isVal: (null, not_null, true, false, unknown)")),
    }
}

/// `(a,"b,c")`; `()` is empty.
fn list(cursor: &mut Cursor<'_>) -> Result<Vec<String>, Problem> {
    cursor.space();
    cursor.expect("(")?;
    let mut values = Vec::new();
    if cursor.eat(")") {
        return Ok(values);
    }
    loop {
        values.push(quoted(cursor).unwrap_or_else(|| plain(cursor)));
        if cursor.eat(",") {
            continue;
        }
        if cursor.eat(")") {
            cursor.space();
            return Ok(values);
        }
        return Err(cursor.expected("\",\" or \")\""));
    }
}

/// The value of a test.
fn value(cursor: &mut Cursor<'_>, place: Place) -> Result<String, Problem> {
    match place {
        Place::Alone => Ok(cursor.remainder().to_owned()),
        Place::Tree if cursor.peek() == Some('{') => braced(cursor),
        Place::Tree => Ok(quoted(cursor).unwrap_or_else(|| plain(cursor))),
    }
}

/// A value in double quotes, if that is all of it: `"a"b` is just a text with quotes in it.
fn quoted(cursor: &mut Cursor<'_>) -> Option<String> {
    if cursor.peek() != Some('"') {
        return None;
    }
    let mut ahead = *cursor;
    let value = ahead.quoted().ok()?;
    ahead.space();
    if !ahead.is_at_end_of_item() {
        return None;
    }
    *cursor = ahead;
    Some(value)
}

/// An array literal or a JSON object, with its commas and parentheses. What begins with a brace and
/// is neither has to be quoted: to look for its end again at every brace would be quadratic.
fn braced(cursor: &mut Cursor<'_>) -> Result<String, Problem> {
    let rest = cursor.rest();
    let mut depth = 0_usize;
    loop {
        match cursor.peek() {
            Some('{') => {
                depth += 1;
                cursor.eat("{");
            }
            Some('}') => {
                depth -= 1;
                cursor.eat("}");
            }
            Some('"') => {
                cursor.quoted()?;
            }
            Some(_) => {
                cursor.run(|c| !matches!(c, '{' | '}' | '"'));
            }
            None => return Err(cursor.expected("\"}\"")),
        }
        if depth == 0 {
            break;
        }
    }
    let length = rest.len() - cursor.rest().len();
    cursor.space();
    if cursor.is_at_end_of_item() {
        Ok(rest[..length].to_owned())
    } else {
        Err(cursor.expected("\",\" or \")\""))
    }
}

/// A value up to a comma or a closing parenthesis.
fn plain(cursor: &mut Cursor<'_>) -> String {
    cursor.run(|c| !matches!(c, ',' | ')')).to_owned()
}
