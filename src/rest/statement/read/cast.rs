//! The type of a `::cast`, as SQL text that can be nothing but a type's name.
//!
//! In:     the word behind `::` in a select list.
//! Out:    SQL's own words for its own types, a quoted name for all others; whether there is such a
//!         type is for Postgres to say (42704).
//! Never:  a character of the request outside quotes.

use crate::rest::Problem;
use crate::rest::sql::Sql;

/// Names that SQL's grammar gives a meaning of its own, which they lose inside quotes.
const OWN: [&str; 31] = [
    "bigint",
    "bit",
    "bit varying",
    "boolean",
    "char",
    "char varying",
    "character",
    "character varying",
    "dec",
    "decimal",
    "double precision",
    "float",
    "int",
    "integer",
    "interval",
    "national char",
    "national char varying",
    "national character",
    "national character varying",
    "nchar",
    "nchar varying",
    "numeric",
    "real",
    "smallint",
    "time",
    "time with time zone",
    "time without time zone",
    "timestamp",
    "timestamp with time zone",
    "timestamp without time zone",
    "varchar",
];

/// Bytes of a type's name, with its schema: two names as long as Postgres keeps them.
const NAME_BYTES_MAX: usize = 128;

/// A type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cast {
    name: Name,
    is_array: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    /// As the grammar has it.
    Own(&'static str),
    /// Schema, if given, and name.
    Quoted(Option<String>, String),
}

impl Cast {
    /// Reads the word behind `::`. As in SQL, letters are folded to lower case.
    ///
    /// # Errors
    /// 400 `PGRST100` for what cannot be the name of a type.
    pub(super) fn parse(text: &str) -> Result<Self, Problem> {
        let expected = || {
            Problem::query(
                "select parameter",
                "a cast takes the name of a type, such as text or int[]",
            )
        };
        if text.len() > NAME_BYTES_MAX {
            return Err(expected());
        }
        let (text, is_array) = match text.trim().strip_suffix("[]") {
            Some(element) => (element, true),
            None => (text, false),
        };
        let is_part = |part: &str| {
            !part.is_empty()
                && part.chars().all(|character| {
                    character.is_ascii_alphanumeric() || matches!(character, '_' | ' ' | '$')
                })
        };
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let text = words.join(" ").to_ascii_lowercase();
        let (schema, name) = match text.split_once('.') {
            Some((schema, name)) => (Some(schema), name),
            None => (None, &*text),
        };
        if !is_part(name) || schema.is_some_and(|schema| !is_part(schema)) {
            return Err(expected());
        }
        let own = OWN.into_iter().find(|own| schema.is_none() && *own == name);
        let name =
            own.map_or_else(|| Name::Quoted(schema.map(str::to_owned), name.to_owned()), Name::Own);
        Ok(Self { name, is_array })
    }

    /// Writes it.
    pub(super) fn render(&self, sql: &mut Sql) {
        match &self.name {
            Name::Own(own) => sql.push(own),
            Name::Quoted(Some(schema), name) => sql.qualified(schema, name),
            Name::Quoted(None, name) => sql.name(name),
        };
        if self.is_array {
            sql.push("[]");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, expected: &str) {
        let rendered = Cast::parse(text).map(|cast| {
            let mut sql = Sql::new();
            cast.render(&mut sql);
            sql.finish().text
        });
        assert_eq!(rendered.as_deref().unwrap_or("refused"), expected, "{text}");
    }

    #[test]
    fn sql_words_stay_and_other_names_are_quoted() {
        check("int", "int");
        check(" Double   Precision ", "double precision");
        check("int[]", "int[]");
        check("timestamptz", r#""timestamptz""#);
        check("Mood[]", r#""mood"[]"#);
        check("app.mood", r#""app"."mood""#);
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in ["", "[]", ".", "a.", ".a", "a.b.c", "int)", "a\"b", "a;b", "int[][]", "a\0"] {
            check(text, "refused");
        }
        check(&"a".repeat(NAME_BYTES_MAX + 1), "refused");
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_becomes_words_and_quotes(text in ".*") {
            if let Ok(cast) = Cast::parse(&text) {
                let mut sql = Sql::new();
                cast.render(&mut sql);
                let text = sql.finish().text;
                let outside: String = text.split('"').step_by(2).collect();
                prop_assert!(outside.chars().all(|c| c.is_ascii_lowercase() || " .[]".contains(c)));
            }
        }
    }
}
