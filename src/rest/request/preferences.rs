//! The `Prefer` header.

use std::borrow::Cow;

use axum::http::{HeaderMap, HeaderValue, StatusCode};

use super::media::split;
use crate::rest::Problem;
use crate::rest::statement::Count;

/// What a write returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Return {
    /// Nothing.
    #[default]
    Minimal,
    /// Where the new row is.
    HeadersOnly,
    /// The rows.
    Representation,
}

/// What an insert does about rows that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// Updates them.
    MergeDuplicates,
    /// Leaves them.
    IgnoreDuplicates,
}

/// What becomes of keys that an object of an insert does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Missing {
    /// NULL.
    #[default]
    Null,
    /// The column's default.
    Default,
}

/// Whether unknown preferences are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Handling {
    /// Ignored.
    #[default]
    Lenient,
    /// Refused.
    Strict,
}

/// How the transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Transaction {
    /// What was written stays.
    #[default]
    Commit,
    /// What was written is shown, and then undone. Whether it is honoured is a setting.
    Rollback,
}

/// The preferences there are, in the order in which PostgREST says that it applied them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the fields of `Preferences` say what they are")]
pub enum Preference {
    Resolution,
    Missing,
    Return,
    Count,
    Transaction,
    Handling,
    Timezone,
    MaxAffected,
    WaitForFeed,
}

impl Preference {
    /// In the order of `Preference-Applied`.
    const ALL: [Self; 9] = [
        Self::Resolution,
        Self::Missing,
        Self::Return,
        Self::Count,
        Self::Transaction,
        Self::Handling,
        Self::Timezone,
        Self::MaxAffected,
        Self::WaitForFeed,
    ];
}

/// What the client prefers; what it did not say is none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Preferences {
    /// `return=`
    pub returning: Option<Return>,
    /// `resolution=`
    pub resolution: Option<Resolution>,
    /// `missing=`
    pub missing: Option<Missing>,
    /// `count=`
    pub count: Option<Count>,
    /// `tx=`
    pub transaction: Option<Transaction>,
    /// `handling=`
    pub handling: Option<Handling>,
    /// `timezone=`: a name for Postgres to judge.
    pub timezone: Option<String>,
    /// `max-affected=`
    pub max_affected: Option<u64>,
    /// `wait=feed`: answer only when the write has been published.
    pub wait_for_feed: bool,
}

impl Preferences {
    /// From all `Prefer` headers. Of several values for one preference, the first that is known
    /// counts.
    ///
    /// # Errors
    /// 400 `PGRST122` for unknown values under `handling=strict`.
    pub fn parse(headers: &HeaderMap) -> Result<Self, Problem> {
        let mut found = Self::default();
        let mut unknown = Vec::new();
        for header in headers.get_all("prefer") {
            let header = String::from_utf8_lossy(header.as_bytes()).into_owned();
            for preference in split(&header, ',') {
                let preference = preference.trim();
                if !preference.is_empty() && !found.take(preference) {
                    unknown.push(preference.to_owned());
                }
            }
        }
        if found.is_strict() && !unknown.is_empty() {
            return Err(Self::invalid(&unknown.join(", ")));
        }
        Ok(found)
    }

    /// 400 `PGRST122`: what `handling=strict` does not let pass, as `timezone=Nowhere`.
    pub fn invalid(preferences: &str) -> Problem {
        let message = "Invalid preferences given with handling=strict";
        Problem::new(StatusCode::BAD_REQUEST, "PGRST122", message)
            .with_details(format!("Invalid preferences: {preferences}"))
    }

    /// Whether what cannot be honoured is refused.
    pub fn is_strict(&self) -> bool {
        self.handling == Some(Handling::Strict)
    }

    /// How many rows a write may affect. Only `handling=strict` makes a bound of it.
    pub fn affected_max(&self) -> Option<u64> {
        self.max_affected.filter(|_| self.is_strict())
    }

    /// `Preference-Applied`: those of ours that `is_honoured` says had a meaning for this request.
    pub fn applied(&self, is_honoured: impl Fn(Preference) -> bool) -> Option<HeaderValue> {
        let said: Vec<Cow<'_, str>> = Preference::ALL
            .into_iter()
            .filter(|preference| is_honoured(*preference))
            .filter_map(|preference| self.said(preference))
            .collect();
        // A name of a time zone came in a header, so it can go into one.
        if said.is_empty() {
            None
        } else {
            HeaderValue::from_bytes(said.join(", ").as_bytes()).ok()
        }
    }

    /// Takes in one preference, `name=value`; false when it is none that we know.
    fn take(&mut self, preference: &str) -> bool {
        // What follows a semicolon is about the preference; no parameter of any is defined.
        let preference = split(preference, ';')[0];
        let Some((name, value)) = preference.split_once('=') else { return false };
        let (name, value) = (name.trim(), value.trim());
        let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
        match name.to_ascii_lowercase().as_str() {
            "return" => first(
                &mut self.returning,
                match value {
                    "minimal" => Some(Return::Minimal),
                    "headers-only" => Some(Return::HeadersOnly),
                    "representation" => Some(Return::Representation),
                    _ => None,
                },
            ),
            "resolution" => first(
                &mut self.resolution,
                match value {
                    "merge-duplicates" => Some(Resolution::MergeDuplicates),
                    "ignore-duplicates" => Some(Resolution::IgnoreDuplicates),
                    _ => None,
                },
            ),
            "missing" => first(
                &mut self.missing,
                match value {
                    "null" => Some(Missing::Null),
                    "default" => Some(Missing::Default),
                    _ => None,
                },
            ),
            "count" => first(
                &mut self.count,
                match value {
                    "exact" => Some(Count::Exact),
                    "planned" => Some(Count::Planned),
                    "estimated" => Some(Count::Estimated),
                    _ => None,
                },
            ),
            "tx" => first(
                &mut self.transaction,
                match value {
                    "commit" => Some(Transaction::Commit),
                    "rollback" => Some(Transaction::Rollback),
                    _ => None,
                },
            ),
            "handling" => first(
                &mut self.handling,
                match value {
                    "lenient" => Some(Handling::Lenient),
                    "strict" => Some(Handling::Strict),
                    _ => None,
                },
            ),
            "timezone" => {
                // No name has a quote in it, and one that had could not be told again.
                let is_name = !value.is_empty() && !value.contains(['\0', '"', '\\']);
                first(&mut self.timezone, is_name.then(|| value.to_owned()))
            }
            "max-affected" => first(&mut self.max_affected, value.parse().ok()),
            "wait" if value == "feed" => {
                self.wait_for_feed = true;
                true
            }
            _ => false,
        }
    }

    /// A preference as the client said it, or could have.
    fn said(&self, preference: Preference) -> Option<Cow<'static, str>> {
        let said = match preference {
            Preference::Resolution => match self.resolution? {
                Resolution::MergeDuplicates => "resolution=merge-duplicates",
                Resolution::IgnoreDuplicates => "resolution=ignore-duplicates",
            },
            Preference::Missing => match self.missing? {
                Missing::Null => "missing=null",
                Missing::Default => "missing=default",
            },
            Preference::Return => match self.returning? {
                Return::Minimal => "return=minimal",
                Return::HeadersOnly => "return=headers-only",
                Return::Representation => "return=representation",
            },
            Preference::Count => match self.count? {
                Count::Exact => "count=exact",
                Count::Planned => "count=planned",
                Count::Estimated => "count=estimated",
            },
            Preference::Transaction => match self.transaction? {
                Transaction::Commit => "tx=commit",
                Transaction::Rollback => "tx=rollback",
            },
            Preference::Handling => match self.handling? {
                Handling::Lenient => "handling=lenient",
                Handling::Strict => "handling=strict",
            },
            Preference::Timezone => {
                let name = self.timezone.as_deref()?;
                // `EST5EDT,M3.2.0,M11.1.0` is a name, too.
                let is_token = name == name.trim() && !name.contains([',', ';']);
                let quote = if is_token { "" } else { "\"" };
                return Some(format!("timezone={quote}{name}{quote}").into());
            }
            Preference::MaxAffected => {
                return self.affected_max().map(|rows| format!("max-affected={rows}").into());
            }
            Preference::WaitForFeed if self.wait_for_feed => "wait=feed",
            Preference::WaitForFeed => return None,
        };
        Some(Cow::Borrowed(said))
    }
}

/// Keeps the first value that was known; false for one that is not.
fn first<T>(place: &mut Option<T>, value: Option<T>) -> bool {
    let is_known = value.is_some();
    if place.is_none() {
        *place = value;
    }
    is_known
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(headers: &[&'static str]) -> Result<Preferences, Problem> {
        let mut map = HeaderMap::new();
        for value in headers {
            map.append("prefer", value.parse().unwrap());
        }
        Preferences::parse(&map)
    }

    #[test]
    fn one_header_or_many_in_any_order() {
        let expected = Preferences {
            returning: Some(Return::Representation),
            resolution: Some(Resolution::MergeDuplicates),
            missing: Some(Missing::Default),
            count: Some(Count::Exact),
            transaction: Some(Transaction::Rollback),
            handling: Some(Handling::Strict),
            timezone: Some("Europe/Berlin".to_owned()),
            max_affected: Some(5),
            wait_for_feed: true,
        };
        let one = "count=exact,return=representation ,  resolution=merge-duplicates, wait=feed,\
                   missing=default,tx=rollback,handling=strict,timezone=Europe/Berlin,max-affected=5";
        assert_eq!(parse(&[one]).unwrap(), expected);
        let many = [
            "max-affected=5, timezone=\"Europe/Berlin\"",
            "handling=strict",
            "tx=rollback; why=not",
            "Missing = default, wait=feed",
            "resolution=merge-duplicates",
            "return=representation,,count=exact",
        ];
        assert_eq!(parse(&many).unwrap(), expected);
        assert_eq!(parse(&[]).unwrap(), Preferences::default());
    }

    #[test]
    fn the_first_known_value_counts() {
        let preferences = parse(&["count=many, count=planned", "count=exact"]).unwrap();
        assert_eq!(preferences.count, Some(Count::Planned));
        assert_eq!(parse(&["max-affected=-1,max-affected=2"]).unwrap().max_affected, Some(2));
        assert_eq!(parse(&["timezone=,timezone=UTC"]).unwrap().timezone.unwrap(), "UTC");
    }

    #[test]
    fn a_time_zone_is_told_so_that_it_can_be_read_again() {
        let check = |said: &'static str, expected: Option<&str>| {
            let applied = parse(&[said]).unwrap().applied(|_| true);
            assert_eq!(applied.as_ref().map(|applied| applied.to_str().unwrap()), expected);
        };
        let rule = r#"timezone="EST5EDT,M3.2.0,M11.1.0""#;
        check(rule, Some(rule));
        check(r#"timezone="UTC""#, Some("timezone=UTC"));
        check(r#"timezone=" a;b ""#, Some(r#"timezone=" a;b ""#));
        for no_name in [r#"timezone=a"b""#, r#"timezone=""""#, r#"timezone="a\"b""#] {
            check(no_name, None);
        }
    }

    #[test]
    fn what_is_unknown_is_ignored_unless_handling_is_strict() {
        assert_eq!(parse(&["anything, respond-async, wait=10"]).unwrap(), Preferences::default());
        assert!(parse(&["anything", "handling=lenient, handling=strict"]).is_ok());
        for headers in
            [["handling=strict, some", "count=many"], ["some,count=many", "handling=strict"]]
        {
            let problem = parse(&headers).unwrap_err();
            assert_eq!((problem.status.as_u16(), &*problem.code), (400, "PGRST122"));
            assert_eq!(problem.message, "Invalid preferences given with handling=strict");
            assert_eq!(problem.details.unwrap(), "Invalid preferences: some, count=many");
        }
        assert!(parse(&["handling=strict, max-affected=x"]).is_err());
    }

    #[test]
    fn the_answer_says_what_was_honoured() {
        let all = "wait=feed, max-affected=3, timezone=UTC, handling=strict, tx=rollback, \
                   count=exact, return=minimal, missing=null, resolution=ignore-duplicates";
        let preferences = parse(&[all]).unwrap();
        let applied = preferences.applied(|_| true).unwrap();
        assert_eq!(
            applied,
            "resolution=ignore-duplicates, missing=null, return=minimal, count=exact, tx=rollback, \
             handling=strict, timezone=UTC, max-affected=3, wait=feed"
        );
        let applied = preferences.applied(|preference| preference == Preference::Count).unwrap();
        assert_eq!(applied, "count=exact");
        assert_eq!(preferences.applied(|_| false), None);
        let lenient = parse(&["max-affected=3"]).unwrap();
        assert_eq!((lenient.affected_max(), lenient.applied(|_| true)), (None, None));
    }
}
