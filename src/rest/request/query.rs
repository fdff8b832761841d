//! The query string → [`Query`].

use super::{At, Condition, Query};
use crate::rest::Problem;

impl Query {
    /// Reads decoded pairs. Names of `arguments` are left out: they are what a function is called
    /// with.
    ///
    /// # Errors
    /// 400 `PGRST100` naming the part that cannot be read and what was expected there.
    pub fn parse<'a>(
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
        is_argument: impl Fn(&str) -> bool,
    ) -> Result<Self, Problem> {
        let _ = (pairs.into_iter().count(), is_argument(""));
        todo!()
    }
}

/// One filter, `path.column=operator.value`.
///
/// # Errors
/// 400 `PGRST100`.
pub fn filter(name: &str, value: &str) -> Result<At<Condition>, Problem> {
    let _ = (name, value);
    todo!()
}
