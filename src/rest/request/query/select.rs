//! `select=` → [`Item`]s.

use super::Cursor;
use crate::rest::Problem;
use crate::rest::request::{Embed, Field, Item};

/// Embeddings inside each other. Each is a subquery inside the last, and a level of our own stack;
/// real ones have three or four.
const DEPTH_MAX: usize = 16;

/// Embeddings of one request, however arranged: each is a join for the planner.
const EMBEDS_MAX: usize = 100;

/// Items of one request. A row of Postgres has 1,664 columns at most, of which ordering and
/// joining take some.
const ITEMS_MAX: usize = 1_000;

/// What may follow an item.
const END: &str = "\",\", \")\" or end of input";

/// The whole parameter.
pub(super) fn items(text: &str) -> Result<Vec<Item>, Problem> {
    let mut reader = Reader { cursor: Cursor::new("select parameter", text), items: 0, embeds: 0 };
    let items = reader.list(0)?;
    reader.cursor.end("\",\" or end of input")?;
    Ok(items)
}

/// Reads, and counts what it has read.
struct Reader<'a> {
    cursor: Cursor<'a>,
    items: usize,
    embeds: usize,
}

impl Reader<'_> {
    /// Items up to the end of the list, which is not read.
    fn list(&mut self, depth: usize) -> Result<Vec<Item>, Problem> {
        let mut items = Vec::new();
        self.cursor.space();
        let is_empty = if depth == 0 {
            self.cursor.rest().is_empty()
        } else {
            self.cursor.peek() == Some(')')
        };
        if is_empty {
            return Ok(items);
        }
        loop {
            if self.items == ITEMS_MAX {
                return Err(self.cursor.problem(format!("more than {ITEMS_MAX} items")));
            }
            self.items += 1;
            items.push(self.item(depth)?);
            self.cursor.space();
            if !self.cursor.eat(",") {
                return Ok(items);
            }
        }
    }

    fn item(&mut self, depth: usize) -> Result<Item, Problem> {
        self.cursor.space();
        if self.cursor.eat("...") {
            let target = self.cursor.name()?;
            return self.embed(target, None, true, depth);
        }
        if self.cursor.eat("*") {
            self.cursor.space();
            return if self.cursor.is_at_end_of_item() {
                Ok(Item::All)
            } else {
                Err(self.cursor.expected(END))
            };
        }
        let mut start = self.cursor;
        let mut name = self.cursor.name()?;
        let mut alias = None;
        if self.cursor.peek() == Some(':') && !self.cursor.rest().starts_with("::") {
            self.cursor.eat(":");
            self.cursor.space();
            start = self.cursor;
            alias = Some(std::mem::replace(&mut name, self.cursor.name()?));
        }
        if start.eat("count()") {
            return Err(Problem::not_implemented("aggregate functions"));
        }
        if matches!(self.cursor.peek(), Some('!' | '(')) {
            return self.embed(name, alias, false, depth);
        }
        let path = self.cursor.steps()?;
        let cast = if self.cursor.eat("::") { Some(self.cursor.identifier()?) } else { None };
        let mut ahead = self.cursor;
        if ahead.eat(".") && is_aggregate(&mut ahead) {
            return Err(Problem::not_implemented("aggregate functions"));
        }
        self.cursor.space();
        if !self.cursor.is_at_end_of_item() {
            let expected = "letter, digit, \"-\", \"->>\", \"->\", \"::\", \".\", \")\", \",\" or end of input";
            return Err(self.cursor.expected(expected));
        }
        let field = Field { name, path };
        Ok(Item::Field { field, alias, cast })
    }

    /// What follows the name of a relation: `!hint!inner(items)`.
    fn embed(
        &mut self,
        target: String,
        alias: Option<String>,
        spread: bool,
        depth: usize,
    ) -> Result<Item, Problem> {
        if depth == DEPTH_MAX {
            let details = format!("embeddings inside each other more than {DEPTH_MAX} deep");
            return Err(self.cursor.problem(details));
        }
        if self.embeds == EMBEDS_MAX {
            return Err(self.cursor.problem(format!("more than {EMBEDS_MAX} embeddings")));
        }
        self.embeds += 1;
        let mut hint = None;
        let mut is_inner = None;
        while self.cursor.eat("!") {
            let start = self.cursor;
            let is_quoted = self.cursor.peek() == Some('"');
            let word = self.cursor.name()?;
            let is_twice = match word.as_str() {
                "inner" if !is_quoted => is_inner.replace(true).is_some(),
                "left" if !is_quoted => is_inner.replace(false).is_some(),
                _ => hint.replace(word).is_some(),
            };
            if is_twice {
                return Err(start.problem("one hint and one of inner and left at most".to_owned()));
            }
        }
        self.cursor.expect("(")?;
        let items = self.list(depth + 1)?;
        if !self.cursor.eat(")") {
            return Err(self.cursor.expected("\",\" or \")\""));
        }
        self.cursor.space();
        if !self.cursor.is_at_end_of_item() {
            return Err(self.cursor.expected(END));
        }
        let inner = is_inner.unwrap_or_default();
        Ok(Item::Embed(Embed { target, alias, hint, inner, spread, items }))
    }
}

/// `sum()` and its like.
fn is_aggregate(cursor: &mut Cursor<'_>) -> bool {
    let function = cursor.run(|c| c.is_ascii_lowercase());
    matches!(function, "sum" | "avg" | "count" | "max" | "min") && cursor.eat("()")
}
