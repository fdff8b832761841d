//! One parameter of the query string, read from its start to its end.

use axum::http::StatusCode;

use crate::rest::Problem;
use crate::rest::request::{Field, Key, Step};

/// Steps into JSON that one column can be followed by. Each is a level of the expression that
/// Postgres has to take apart; far more of them than any document is deep would exhaust its stack.
const STEPS_MAX: usize = 100;

/// Characters of a parameter that an error repeats: enough to find it.
const QUOTED_CHARACTERS_MAX: usize = 200;

/// Where the reading stands. It is copied to look ahead.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor<'a> {
    /// What is read, for errors: `filter`.
    part: &'static str,
    /// All of it.
    text: &'a str,
    /// Bytes read.
    at: usize,
    /// Characters that count as read before the first.
    shift: usize,
}

impl<'a> Cursor<'a> {
    /// At the start of `text`, which is a `part` of the query string.
    pub(super) fn new(part: &'static str, text: &'a str) -> Self {
        Self { part, text, at: 0, shift: 0 }
    }

    /// The same, with columns in errors counted as if `shift` characters stood in front.
    pub(super) fn shifted(mut self, shift: usize) -> Self {
        self.shift = shift;
        self
    }

    /// What is not read yet.
    pub(super) fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// The next character.
    pub(super) fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    /// Reads `token` if it comes next.
    pub(super) fn eat(&mut self, token: &str) -> bool {
        let is_next = self.rest().starts_with(token);
        if is_next {
            self.at += token.len();
        }
        is_next
    }

    /// Reads `token`.
    pub(super) fn expect(&mut self, token: &str) -> Result<(), Problem> {
        if self.eat(token) { Ok(()) } else { Err(self.expected(&format!("{token:?}"))) }
    }

    /// Reads what comes next as long as the characters are such.
    pub(super) fn run(&mut self, is_such: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let length = rest.find(|c| !is_such(c)).unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }

    /// All the rest.
    pub(super) fn remainder(&mut self) -> &'a str {
        self.run(|_| true)
    }

    /// Reads over white space.
    pub(super) fn space(&mut self) {
        self.run(is_space);
    }

    /// Whether the item ends here: at a comma, a closing parenthesis, or the end.
    pub(super) fn is_at_end_of_item(&self) -> bool {
        matches!(self.peek(), None | Some(',' | ')'))
    }

    /// Nothing but white space may be left.
    pub(super) fn end(&mut self, expected: &str) -> Result<(), Problem> {
        self.space();
        if self.rest().is_empty() { Ok(()) } else { Err(self.expected(expected)) }
    }

    /// The error that something else comes next.
    pub(super) fn expected(&self, expected: &str) -> Problem {
        let found = match self.peek() {
            Some(character) => format!("{:?}", character.to_string()),
            None => "end of input".to_owned(),
        };
        self.problem(format!("unexpected {found} expecting {expected}"))
    }

    /// The error that something is wrong here.
    pub(super) fn problem(&self, details: String) -> Problem {
        let mut text: String = self.text.chars().take(QUOTED_CHARACTERS_MAX).collect();
        if text.len() < self.text.len() {
            text.push('…');
        }
        let column = self.text[..self.at].chars().count() + self.shift + 1;
        let part = self.part;
        let message = format!("\"failed to parse {part} ({text})\" (line 1, column {column})");
        Problem::new(StatusCode::BAD_REQUEST, "PGRST100", message).with_details(details)
    }

    /// A name: letters, digits, `_`, `$`, spaces inside, dashes that are no arrows; or anything
    /// in double quotes.
    pub(super) fn name(&mut self) -> Result<String, Problem> {
        self.space();
        if self.peek() == Some('"') {
            let name = self.quoted()?;
            self.space();
            return Ok(name);
        }
        let start = *self;
        let name = self.dashed(is_of_identifier).trim();
        if name.is_empty() {
            return Err(start.expected("field name (* or [a..z0..9_$])"));
        }
        Ok(name.to_owned())
    }

    /// A name without quotes or dashes, of a type or a text search configuration.
    pub(super) fn identifier(&mut self) -> Result<String, Problem> {
        let start = *self;
        let name = self.run(is_of_identifier).trim();
        if name.is_empty() { Err(start.expected("letter or digit")) } else { Ok(name.to_owned()) }
    }

    /// Such characters, and dashes between them that do not begin an arrow.
    fn dashed(&mut self, is_such: impl Fn(char) -> bool) -> &'a str {
        let start = self.at;
        if self.run(&is_such).is_empty() {
            return "";
        }
        while let Some(after) = self.rest().strip_prefix('-') {
            if !after.starts_with(&is_such) {
                break;
            }
            self.at += 1;
            self.run(&is_such);
        }
        &self.text[start..self.at]
    }

    /// What stands in double quotes; a backslash takes the next character as it is.
    pub(super) fn quoted(&mut self) -> Result<String, Problem> {
        self.expect("\"")?;
        let mut value = String::new();
        let mut characters = self.rest().char_indices();
        while let Some((place, character)) = characters.next() {
            match character {
                '"' => {
                    self.at += place + 1;
                    return Ok(value);
                }
                '\\' => match characters.next() {
                    Some((_, escaped)) => value.push(escaped),
                    None => break,
                },
                other => value.push(other),
            }
        }
        self.at = self.text.len();
        Err(self.expected("\"\\\"\""))
    }

    /// A column and the steps into its JSON.
    pub(super) fn field(&mut self) -> Result<Field, Problem> {
        let name = self.name()?;
        let path = self.steps()?;
        self.space();
        Ok(Field { name, path })
    }

    /// `->a->>b`, or nothing.
    pub(super) fn steps(&mut self) -> Result<Vec<Step>, Problem> {
        let mut steps = Vec::new();
        loop {
            let as_text = self.eat("->>");
            if !as_text && !self.eat("->") {
                return Ok(steps);
            }
            if steps.len() == STEPS_MAX {
                return Err(self.problem(format!("more than {STEPS_MAX} steps into JSON")));
            }
            steps.push(Step { as_text, to: self.key()? });
        }
    }

    /// Where one step goes.
    fn key(&mut self) -> Result<Key, Problem> {
        if self.peek() == Some('"') {
            return self.quoted().map(Key::Name);
        }
        if let Some(index) = self.index()? {
            return Ok(Key::Index(index));
        }
        let start = *self;
        let key = self.dashed(is_of_key).trim();
        if key.is_empty() {
            return Err(start.expected("any non reserved character different from: .,>()"));
        }
        Ok(Key::Name(key.to_owned()))
    }

    /// A whole number that is all of the step; what only begins like one is a key.
    fn index(&mut self) -> Result<Option<i32>, Problem> {
        let mut ahead = *self;
        let is_negative = ahead.eat("-");
        if ahead.run(|c| c.is_ascii_digit()).is_empty() {
            return if is_negative { Err(ahead.expected("digit")) } else { Ok(None) };
        }
        let number = &self.text[self.at..ahead.at];
        let is_whole = ahead.rest().starts_with("->")
            || matches!(ahead.peek(), None | Some(':' | '.' | ',' | ')' | ' ' | '\t'));
        if !is_whole {
            let expected = "digit, \"->\", \"::\", \".\", \",\" or end of input";
            return if is_negative { Err(ahead.expected(expected)) } else { Ok(None) };
        }
        let index = number.parse().map_err(|_| self.problem("index out of range".to_owned()))?;
        *self = ahead;
        Ok(Some(index))
    }
}

/// White space between the parts of a parameter.
fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\r' | '\n')
}

/// What names are made of when they are not quoted.
fn is_of_identifier(character: char) -> bool {
    character.is_alphanumeric() || matches!(character, '_' | '$' | ' ')
}

/// What keys of JSON objects are made of when they are not quoted.
fn is_of_key(character: char) -> bool {
    !matches!(character, '(' | '-' | ':' | '.' | ',' | '>' | ')')
}
