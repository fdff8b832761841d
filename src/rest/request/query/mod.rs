//! The query string → [`Query`].
//!
//! In:     decoded names and values.
//! Out:    what they ask for, or 400 `PGRST100` with the place that cannot be read.
//! Never:  recursion or lists without a bound; time that is not linear in the text; anything left
//!         unread: what follows the end of a filter is an error, not a filter less.

mod condition;
mod cursor;
mod key;
mod order;
mod select;
#[cfg(test)]
mod tests;

use axum::http::{HeaderMap, StatusCode};

use self::cursor::Cursor;
use self::key::Key;
use super::{At, Condition, Query, Range, page, pairs};
use crate::rest::Problem;

impl Query {
    /// Reads decoded pairs. A pair of a name that `is_argument` and of a value that is no operator
    /// with its operand is left out: the function is called with it ([`super::arguments`]).
    ///
    /// # Errors
    /// 400 `PGRST100` naming the part that cannot be read and what was expected there.
    pub fn parse<'a>(
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
        is_argument: impl Fn(&str) -> bool,
    ) -> Result<Self, Problem> {
        let mut query = Self::default();
        let mut limit = pairs::Limit::default();
        let mut has_select = false;
        for (name, value) in pairs {
            limit.admit(name, value)?;
            if !key::is_reserved(name) && is_argument(name) && condition::test(value).is_err() {
                continue;
            }
            let At { path, what } = key::key(name)?;
            match what {
                // Of parameters that are there once, the first counts.
                Key::Select if has_select => {}
                Key::Select => {
                    has_select = true;
                    query.select = select::items(value)?;
                }
                Key::Columns if query.columns.is_some() => {}
                Key::Columns => query.columns = Some(order::columns("columns parameter", value)?),
                Key::OnConflict if query.on_conflict.is_some() => {}
                Key::OnConflict => {
                    query.on_conflict = Some(order::columns("on_conflict parameter", value)?);
                }
                Key::Order => *entry(&mut query.orders, path) = order::orders(value)?,
                Key::Limit => entry(&mut query.ranges, path).limit = rows("Limit", value)?,
                Key::Offset => entry(&mut query.ranges, path).offset = rows("Offset", value)?,
                Key::Tree { is_negated, is_or } => {
                    let what = condition::tree(is_negated, is_or, value)?;
                    query.filters.push(At { path, what });
                }
                Key::Field(field) => {
                    let what = condition::about(field, condition::test(value)?);
                    query.filters.push(At { path, what });
                }
            }
        }
        query.ranges.retain(|range| range.what != Range::default());
        Ok(query)
    }

    /// Leaves of the target's rows those that a `Range` header names, too.
    ///
    /// # Errors
    /// 416 `PGRST103` for a range that ends before it begins.
    pub fn within(&mut self, headers: &HeaderMap) -> Result<(), Problem> {
        page::within(entry(&mut self.ranges, Vec::new()), headers)?;
        self.ranges.retain(|range| range.what != Range::default());
        Ok(())
    }

    /// Reads a query string as it stands in the URL, without its question mark.
    ///
    /// # Errors
    /// As [`Query::parse`] and [`super::pairs`].
    pub fn from_text(text: &str) -> Result<Self, Problem> {
        let pairs = pairs::pairs(text)?;
        Self::parse(pairs.iter().map(|(name, value)| (&**name, &**value)), |_| false)
    }
}

/// One filter, `path.column=operator.value`.
///
/// # Errors
/// 400 `PGRST100`.
pub fn filter(name: &str, value: &str) -> Result<At<Condition>, Problem> {
    pairs::Limit::default().admit(name, value)?;
    let At { path, what } = key::key(name)?;
    let what = match what {
        Key::Field(field) => condition::about(field, condition::test(value)?),
        Key::Tree { is_negated, is_or } => condition::tree(is_negated, is_or, value)?,
        Key::Select | Key::Columns | Key::OnConflict | Key::Order | Key::Limit | Key::Offset => {
            return Err(Cursor::new("tree path", name).expected("the name of a column"));
        }
    };
    Ok(At { path, what })
}

/// Whether a value is an operator with its operand, so that its pair is a filter.
pub(super) fn is_filter(value: &str) -> bool {
    condition::test(value).is_ok()
}

/// Whether a pair of this name says something about the request, and is never an argument.
pub(super) fn is_reserved(name: &str) -> bool {
    key::is_reserved(name)
}

/// What was said about an embedding, to be said again: the last counts.
fn entry<T: Default>(list: &mut Vec<At<T>>, path: Vec<String>) -> &mut T {
    let place = list.iter().position(|at| at.path == path).unwrap_or_else(|| {
        list.push(At { path, what: T::default() });
        list.len() - 1
    });
    &mut list[place].what
}

/// A number of rows. What is no number at all is as good as not said, as in PostgREST: client
/// code that sends `limit=undefined` runs there.
fn rows(name: &str, value: &str) -> Result<Option<u64>, Problem> {
    let value = value.trim();
    let (is_negative, digits) = match value.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, value),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    if is_negative && digits.bytes().any(|byte| byte != b'0') {
        let details = format!("{name} should be greater than or equal to zero.");
        let message = "Requested range not satisfiable";
        return Err(Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, "PGRST103", message)
            .with_details(details));
    }
    // A number that Postgres cannot count to is no bound either.
    let greatest = u64::try_from(i64::MAX).expect("it is positive");
    Ok(Some(digits.parse().unwrap_or(greatest).min(greatest)))
}
