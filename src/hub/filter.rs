//! The `filter` text of a subscription → conditions, not yet tied to any table.
//!
//! In:     `id=eq.7,name=not.like."a%"`, as supabase-js writes it.
//! Out:    [`Condition`]s, all of which must hold.
//! Never:  IO; knowledge of columns and types (`subscribe` checks those).
//! Source: `Supabase` Realtime's documented filter grammar; its error texts are part of it.

use std::fmt;

/// Bytes of one filter. Long enough for an `in` list of 100 quoted 150-byte values; a client that
/// needs more is asking the wrong way.
pub const FILTER_BYTES_MAX: usize = 16 * 1024;

/// Conditions in one filter. More would make one subscriber's filter cost like many.
pub const CONDITIONS_MAX: usize = 100;

/// How a column's value is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operator {
    /// `=`
    Eq,
    /// `<>`
    Neq,
    /// `<`
    Lt,
    /// `<=`
    Lte,
    /// `>`
    Gt,
    /// `>=`
    Gte,
    /// `= any (list)`
    In,
    /// `like`, SQL wildcards
    Like,
    /// `ilike`, SQL wildcards
    ILike,
    /// `is null`, `is true`, `is false`, `is unknown`
    Is,
    /// `~`, POSIX regular expression
    Match,
    /// `~*`, POSIX regular expression
    IMatch,
    /// `is distinct from`
    IsDistinct,
}

impl Operator {
    /// Every operator.
    pub const ALL: [Self; 13] = [
        Self::Eq,
        Self::Neq,
        Self::Lt,
        Self::Lte,
        Self::Gt,
        Self::Gte,
        Self::In,
        Self::Like,
        Self::ILike,
        Self::Is,
        Self::Match,
        Self::IMatch,
        Self::IsDistinct,
    ];

    /// The word in a filter.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Eq => "eq",
            Self::Neq => "neq",
            Self::Lt => "lt",
            Self::Lte => "lte",
            Self::Gt => "gt",
            Self::Gte => "gte",
            Self::In => "in",
            Self::Like => "like",
            Self::ILike => "ilike",
            Self::Is => "is",
            Self::Match => "match",
            Self::IMatch => "imatch",
            Self::IsDistinct => "isdistinct",
        }
    }

    /// From the word in a filter, which is case-sensitive.
    fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|operator| operator.as_str() == word)
    }
}

/// One comparison as the client wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Condition {
    /// Column name, exactly as in the catalog.
    pub column: Box<str>,
    /// The comparison.
    pub operator: Operator,
    /// Written with `not.`.
    pub negated: bool,
    /// What to compare with. For [`Operator::In`] an array literal in braces.
    pub value: Box<str>,
}

/// Why a filter was refused. Its text follows ``Error parsing `filter` params: ``.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Two commas in a row, or one at an end.
    #[error("filter must not contain empty segments (check for extra commas)")]
    EmptySegment,
    /// `in` without its parentheses.
    #[error("`in` filter value must be wrapped by parentheses")]
    Parentheses,
    /// Not `column=operator.value`: the parts that were understood.
    #[error("{}", Inspect(.0))]
    Parts(Vec<String>),
    /// Longer than [`FILTER_BYTES_MAX`].
    #[error("filter must not be longer than {FILTER_BYTES_MAX} bytes")]
    TooLong,
    /// More than [`CONDITIONS_MAX`].
    #[error("filter must not have more than {CONDITIONS_MAX} conditions")]
    TooMany,
}

/// Parses a filter. An empty or blank text has no conditions.
///
/// # Errors
/// [`ParseError`], whose text the client gets to see.
pub fn parse(text: &str) -> Result<Vec<Condition>, ParseError> {
    if text.len() > FILTER_BYTES_MAX {
        return Err(ParseError::TooLong);
    }
    let text = text.trim();
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let segments = segments(text);
    if segments.len() > CONDITIONS_MAX {
        return Err(ParseError::TooMany);
    }
    segments.into_iter().map(|segment| parse_condition(segment.trim())).collect()
}

/// Cuts a filter at the commas outside parentheses and quotes. Every byte that decides is ASCII, so a cut
/// never falls inside a character.
pub fn segments(text: &str) -> Vec<&str> {
    let mut segments = Vec::new();
    let (mut start, mut depth, mut quoted, mut escaped, mut previous) =
        (0, 0_usize, false, false, 0_u8);
    for (at, byte) in text.bytes().enumerate() {
        if quoted {
            if escaped {
                escaped = false;
            } else if byte == b'\\' {
                escaped = true;
            } else if byte == b'"' {
                quoted = false;
            }
        } else {
            match byte {
                b'"' if matches!(previous, b'.' | b'(' | b',') => quoted = true,
                b'(' => depth += 1,
                b')' => depth = depth.saturating_sub(1),
                b',' if depth == 0 => {
                    segments.push(&text[start..at]);
                    start = at + 1;
                    // What opened before a cut does not reach into the next segment.
                    previous = 0;
                    continue;
                }
                _ => {}
            }
        }
        previous = byte;
    }
    segments.push(&text[start..]);
    segments
}

fn parse_condition(segment: &str) -> Result<Condition, ParseError> {
    if segment.is_empty() {
        return Err(ParseError::EmptySegment);
    }
    let parts = |parts: &[&str]| ParseError::Parts(parts.iter().map(ToString::to_string).collect());
    let (column, rest) = segment.split_once('=').ok_or_else(|| parts(&[segment]))?;
    let (negated, rest) = match rest.strip_prefix("not.") {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let (word, value) = rest.split_once('.').ok_or_else(|| parts(&[rest]))?;
    let operator = Operator::parse(word).ok_or_else(|| parts(&[word, value]))?;
    let value = if operator == Operator::In {
        let inside = value.strip_prefix('(').and_then(|value| value.strip_suffix(')'));
        format!("{{{}}}", inside.ok_or(ParseError::Parentheses)?).into()
    } else {
        unquote(value).unwrap_or_else(|| value.into())
    };
    Ok(Condition { column: column.into(), operator, negated, value })
}

/// The content of a value that is one well-formed quoted text; anything else is literal.
fn unquote(value: &str) -> Option<Box<str>> {
    let mut content = String::with_capacity(value.len());
    let mut characters = value.strip_prefix('"')?.chars();
    loop {
        match characters.next()? {
            '"' => return characters.as_str().is_empty().then(|| content.into()),
            '\\' => content.push(characters.next()?),
            character => content.push(character),
        }
    }
}

/// Writes texts the way the reference server's clients are used to see them: `["foo", "hey"]`.
pub(super) struct Inspect<'a>(pub(super) &'a [String]);

impl fmt::Display for Inspect<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (index, text) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            if index == INSPECT_ITEMS_MAX {
                return f.write_str("...]");
            }
            inspect(f, text)?;
        }
        f.write_str("]")
    }
}

/// Items of one list or map that an error text shows: the reference server's own limit.
pub(super) const INSPECT_ITEMS_MAX: usize = 50;

/// Characters of one text that an error text shows: the reference server's own limit.
const INSPECT_TEXT_MAX: usize = 4096;

/// Writes one text in double quotes, escaped.
pub(super) fn inspect(f: &mut impl fmt::Write, text: &str) -> fmt::Result {
    f.write_char('"')?;
    let mut characters = text.chars().peekable();
    let mut written = 0;
    while let Some(character) = characters.next() {
        if written == INSPECT_TEXT_MAX {
            return f.write_str("\" <> ...");
        }
        written += 1;
        match character {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '#' if characters.peek() == Some(&'{') => f.write_str("\\#")?,
            '\u{7}' => f.write_str("\\a")?,
            '\u{8}' => f.write_str("\\b")?,
            '\t' => f.write_str("\\t")?,
            '\n' => f.write_str("\\n")?,
            '\u{b}' => f.write_str("\\v")?,
            '\u{c}' => f.write_str("\\f")?,
            '\r' => f.write_str("\\r")?,
            '\u{1b}' => f.write_str("\\e")?,
            '\0' => f.write_str("\\0")?,
            '\u{7f}' => f.write_str("\\d")?,
            character if u32::from(character) < 0x20 => {
                write!(f, "\\x{:02X}", u32::from(character))?;
            }
            character => f.write_char(character)?,
        }
    }
    f.write_char('"')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(filter: &str, expected: &str) {
        let found = match parse(filter) {
            Ok(conditions) => conditions
                .iter()
                .map(|c| {
                    let not = if c.negated { "not " } else { "" };
                    format!("{}|{not}{}|{}", c.column, c.operator.as_str(), c.value)
                })
                .collect::<Vec<_>>()
                .join(" & "),
            Err(error) => format!("error: {error}"),
        };
        assert_eq!(found, expected, "{filter}");
    }

    #[test]
    fn each_operator_with_and_without_not() {
        for operator in Operator::ALL {
            let word = operator.as_str();
            let (value, expected) =
                if operator == Operator::In { ("(v)", "{v}") } else { ("v", "v") };
            check(&format!("c={word}.{value}"), &format!("c|{word}|{expected}"));
            check(&format!("c=not.{word}.{value}"), &format!("c|not {word}|{expected}"));
        }
    }

    #[test]
    fn an_empty_filter_has_no_conditions() {
        check("", "");
        check(" \t ", "");
    }

    #[test]
    fn segments_are_trimmed_and_all_count() {
        check(" id=gt.0 , id=lt.100 ", "id|gt|0 & id|lt|100");
        check("id =eq.1", "id |eq|1");
        check("=eq.1", "|eq|1");
        check("a=eq.b=c", "a|eq|b=c");
        check("a=eq.1.5", "a|eq|1.5");
        check("a=eq.", "a|eq|");
    }

    #[test]
    fn quotes_and_parentheses_protect_commas() {
        check(r#"a=eq."x,y",b=eq.1"#, "a|eq|x,y & b|eq|1");
        check(r#"a=eq."x\"\\,y""#, r#"a|eq|x"\,y"#);
        check("a=eq.(x,y)", "a|eq|(x,y)");
        check(r#"a=in.("x,y",z),b=eq.1"#, r#"a|in|{"x,y",z} & b|eq|1"#);
        check(r#"a=in.(x)y")"#, r#"a|in|{x)y"}"#);
        check(r#"a=in.("x)",y)"#, r#"a|in|{"x)",y}"#);
        check("a=in.()", "a|in|{}");
        check("a=eq.x),b=eq.1", "a|eq|x) & b|eq|1");
    }

    #[test]
    fn a_quote_elsewhere_is_literal() {
        check(r#"a=eq.x"y,b=eq.1"#, r#"a|eq|x"y & b|eq|1"#);
        check(r#"a=eq."x"y"#, r#"a|eq|"x"y"#);
        check(r#"a=eq."x,b=eq.1"#, r#"a|eq|"x,b=eq.1"#);
        check(r#"a=eq."x\""#, r#"a|eq|"x\""#);
        check(r#"a=eq."""#, "a|eq|");
        check(r#"a=eq.x,"b=eq.1"#, r#"a|eq|x & "b|eq|1"#);
        check("a=eq.%41+\\n", "a|eq|%41+\\n");
    }

    #[test]
    fn error_texts() {
        let empty = "error: filter must not contain empty segments (check for extra commas)";
        check("a=eq.1,", empty);
        check(",a=eq.1", empty);
        check("a=eq.1,,b=eq.1", empty);
        check("undefined", r#"error: ["undefined"]"#);
        check("c=foo.hey", r#"error: ["foo", "hey"]"#);
        check("c=not.foo.hey", r#"error: ["foo", "hey"]"#);
        check("c=EQ.hey", r#"error: ["EQ", "hey"]"#);
        check("c=eq", r#"error: ["eq"]"#);
        check("c=not.eq", r#"error: ["eq"]"#);
        check("c=", r#"error: [""]"#);
        check("a\"\n#{x}", r#"error: ["a\"\n\#{x}"]"#);
        let parentheses = "error: `in` filter value must be wrapped by parentheses";
        check("c=in.1,2", parentheses);
        check("c=in.(1", parentheses);
        check("c=in.(", parentheses);
    }

    #[test]
    fn a_filter_is_bounded() {
        assert_eq!(parse(&"x".repeat(FILTER_BYTES_MAX + 1)), Err(ParseError::TooLong));
        let many = vec!["a=eq.1"; CONDITIONS_MAX];
        assert_eq!(parse(&many.join(",")).unwrap().len(), CONDITIONS_MAX);
        assert_eq!(parse(&(many.join(",") + ",a=eq.1")), Err(ParseError::TooMany));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,60}", noisy in r#"[a=.,()"\\ noti]{0,40}"#) {
            let _ = parse(&text).map_err(|error| error.to_string());
            let _ = parse(&noisy).map_err(|error| error.to_string());
        }

        /// What supabase-js' filter builder writes is read back as what the caller meant.
        #[test]
        fn a_quoted_value_is_read_back(value in r#"[a-z,()"\\ é=.]{0,30}"#) {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let conditions = parse(&format!("a=eq.\"{quoted}\",b=gt.1")).unwrap();
            prop_assert_eq!(&*conditions[0].value, value.as_str());
            prop_assert_eq!(conditions.len(), 2);
        }
    }
}
