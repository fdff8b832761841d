//! SQL text with its parameters, put together so that neither can become the other. Pure.
//!
//! In:     our own words; names from the catalog; values from requests.
//! Out:    [`Statement`].
//! Never:  a value in the text.

use std::fmt::Write as _;

use bytes::Bytes;

/// One statement, ready to be prepared and bound.
///
/// Its parameters have no declared types: Postgres infers them from where they stand, as it does
/// for a quoted literal, and reads the text as that type. All are sent in text format.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Statement {
    /// With `$1` and so on.
    pub text: String,
    /// In that order; none is NULL.
    pub parameters: Vec<Option<Bytes>>,
}

/// Parameters of one statement: what the protocol can count.
pub const PARAMETERS_MAX: usize = 65_535;

/// A statement in the making.
#[derive(Debug, Default)]
pub struct Sql {
    statement: Statement,
}

impl Sql {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Our own words, or text from the catalog that is SQL already (`type_sql`).
    pub fn push(&mut self, text: &str) -> &mut Self {
        self.statement.text.push_str(text);
        self
    }

    /// A name, quoted.
    pub fn name(&mut self, name: &str) -> &mut Self {
        self.statement.text.push('"');
        for character in name.chars() {
            if character == '"' {
                self.statement.text.push('"');
            }
            self.statement.text.push(character);
        }
        self.statement.text.push('"');
        self
    }

    /// `"schema"."name"`
    pub fn qualified(&mut self, schema: &str, name: &str) -> &mut Self {
        self.name(schema).push(".").name(name)
    }

    /// A value as the next parameter. Give it a type (`::text`) where Postgres could not infer one.
    pub fn value(&mut self, value: impl Into<Bytes>) -> &mut Self {
        self.statement.parameters.push(Some(value.into()));
        let number = self.statement.parameters.len();
        write!(self.statement.text, "${number}").expect("a string takes everything");
        self
    }

    /// How many parameters there are so far.
    pub fn parameters(&self) -> usize {
        self.statement.parameters.len()
    }

    /// The whole.
    pub fn finish(self) -> Statement {
        self.statement
    }
}

/// `{"a","b"}`: every element quoted, so that none is NULL or another array.
pub fn array_literal(values: &[String]) -> String {
    let bytes = values.iter().map(|value| value.len() + 3).sum::<usize>();
    let mut literal = String::with_capacity(bytes + 2);
    literal.push('{');
    for (position, value) in values.iter().enumerate() {
        literal.push_str(if position == 0 { "\"" } else { ",\"" });
        for character in value.chars() {
            if matches!(character, '"' | '\\') {
                literal.push('\\');
            }
            literal.push(character);
        }
        literal.push('"');
    }
    literal.push('}');
    literal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_and_values_are_parameters() {
        let mut sql = Sql::new();
        sql.push("select ").qualified("a\"b", "c").push(" = ").value("'; drop").push(", ");
        sql.value(String::from("x"));
        let statement = sql.finish();
        assert_eq!(statement.text, r#"select "a""b"."c" = $1, $2"#);
        assert_eq!(statement.parameters, [Some(Bytes::from("'; drop")), Some(Bytes::from("x"))]);
    }

    #[test]
    fn elements_of_a_list_are_quoted() {
        let values = ["a", "b,c", "NULL", "", r#"q"\"#].map(str::to_owned);
        assert_eq!(array_literal(&values), r#"{"a","b,c","NULL","","q\"\\"}"#);
        assert_eq!(array_literal(&[]), "{}");
    }
}
