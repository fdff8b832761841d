//! Names of functions and tables, as Postgres prints them: `storymap.member(text)`, `"My".tasks`.
//!
//! In:     what a `regprocedure` or a `regclass` is as text when no schema is searched.
//! Out:    schema and name apart, and quoted again for a statement.
//! Never:  a part of a name as SQL: it is read, and quoted anew.

use std::fmt;

/// Bytes of a name in Postgres, with some room for those of other builds.
const NAME_BYTES_MAX: usize = 255;

/// What a function is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Argument {
    /// Nothing: `f()`.
    Nothing,
    /// A topic: `f(text)`.
    Text,
    /// A payload: `f(jsonb)`.
    Jsonb,
}

/// A table, or a view.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Relation {
    /// Its schema.
    pub schema: Box<str>,
    /// Its name in there.
    pub name: Box<str>,
}

/// A function that is called as the user.
#[derive(Clone, PartialEq, Eq)]
pub struct Function {
    /// Its schema.
    pub schema: Box<str>,
    /// Its name in there.
    pub name: Box<str>,
    /// What it is given.
    pub argument: Argument,
}

impl Relation {
    /// From the text of a `regclass`; none when it is not one with its schema.
    pub fn parse(text: &str) -> Option<Self> {
        let (schema, rest) = name(text)?;
        let (name, rest) = name(rest.strip_prefix('.')?)?;
        rest.is_empty().then_some(Self { schema, name })
    }
}

impl Function {
    /// From the text of a `regprocedure`; none when it is not one with its schema, or is given something
    /// that we do not give.
    pub fn parse(text: &str) -> Option<Self> {
        let (schema, rest) = name(text)?;
        let (name, rest) = name(rest.strip_prefix('.')?)?;
        let argument = match rest {
            "()" => Argument::Nothing,
            "(text)" => Argument::Text,
            "(jsonb)" => Argument::Jsonb,
            _ => return None,
        };
        Some(Self { schema, name, argument })
    }
}

/// The name that a text begins with, and what follows it.
fn name(text: &str) -> Option<(Box<str>, &str)> {
    let (name, rest) = if let Some(quoted) = text.strip_prefix('"') {
        let mut name = String::new();
        let mut rest = quoted;
        loop {
            let (part, after) = rest.split_once('"')?;
            name.push_str(part);
            match after.strip_prefix('"') {
                Some(after) => {
                    name.push('"');
                    rest = after;
                }
                None => break (name, after),
            }
        }
    } else {
        let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
        let end = text.find(|c| !is_part(c)).unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        (name.to_owned(), rest)
    };
    let is_name = !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.contains('\0');
    is_name.then(|| (name.into(), rest))
}

fn quoted(name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "\"{}\"", name.replace('"', "\"\""))
}

/// Quoted, for a statement.
impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        quoted(&self.schema, f)?;
        f.write_str(".")?;
        quoted(&self.name, f)
    }
}

/// Quoted, for a statement, without its argument.
impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        quoted(&self.schema, f)?;
        f.write_str(".")?;
        quoted(&self.name, f)
    }
}

impl fmt::Debug for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}({:?})", self.argument)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_read_as_postgres_prints_them() {
        for (text, expected) in [
            ("storymap.member(text)", Some(r#""storymap"."member"(Text)"#)),
            (r#""My Schema"."a""b.c"(jsonb)"#, Some(r#""My Schema"."a""b.c"(Jsonb)"#)),
            ("a.b()", Some(r#""a"."b"(Nothing)"#)),
            ("ä.$1(jsonb)", Some(r#""ä"."$1"(Jsonb)"#)),
            ("b()", None),
            ("a.b", None),
            ("a.b(int)", None),
            ("a.b(jsonb); drop table x", None),
            (r#""a.b(jsonb)"#, None),
            (".b()", None),
        ] {
            let parsed = Function::parse(text).map(|function| format!("{function:?}"));
            assert_eq!(parsed.as_deref(), expected, "{text}");
        }
        let table = Relation::parse(r#"public."t""x""#).unwrap();
        assert_eq!((&*table.name, table.to_string()), ("t\"x", r#""public"."t""x""#.to_owned()));
        assert_eq!(Relation::parse("t"), None);
    }

    proptest! {
        #[test]
        fn what_is_quoted_is_read_again(schema in "[^\0]{1,20}", name in "[a\".( ]{1,20}") {
            let relation = Relation { schema: schema.into(), name: name.into() };
            prop_assert_eq!(Relation::parse(&relation.to_string()), Some(relation));
        }

        #[test]
        fn no_text_is_a_panic(text: String) {
            let _ = (Relation::parse(&text), Function::parse(&text));
        }
    }
}
