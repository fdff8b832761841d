//! Which columns of a view are columns of a table, unchanged. Pure.
//!
//! In:     the query of a view as Postgres stores it (`pg_node_tree`).
//! Out:    [`Origin`]s of its columns; through views of views, the table's.
//! Never:  a guess: a tree that is not understood has no origins; a panic, whatever the text is.
//! Source: postgres `src/backend/nodes/outfuncs.c`, `markTargetListOrigin` in
//!         `src/backend/parser/parse_target.c`

use std::collections::HashMap;

/// Views that stand on views: how many times they are looked through.
const DEPTH_MAX: usize = 64;

/// A column of a relation: the relation's OID, and the column's number.
pub(super) type Origin = (u32, i16);

/// The origins of a view's columns, by their numbers there.
pub(super) type Origins = HashMap<i16, Origin>;

/// Reads the outermost target list of a stored query. None when it is not such a query.
pub(super) fn origins(tree: &str) -> Option<Origins> {
    let mut tokens = Tokens(tree);
    // A rule has a list of queries; that of a view has one.
    expect(&mut tokens, "(")?;
    expect(&mut tokens, "{")?;
    expect(&mut tokens, "QUERY")?;
    let mut found = None;
    loop {
        match tokens.next()? {
            "}" => break,
            ":targetList" => found = Some(target_list(&mut tokens)?),
            name if name.starts_with(':') => skip(&mut tokens)?,
            _ => return None,
        }
    }
    expect(&mut tokens, ")")?;
    if tokens.next().is_none() { found } else { None }
}

/// Where a column comes from in the end. None: from a place that was not told.
pub(super) fn resolve(views: &HashMap<u32, Origins>, column: Origin) -> Option<Origin> {
    let mut at = column;
    for _ in 0..DEPTH_MAX {
        let Some(view) = views.get(&at.0) else { return Some(at) };
        at = *view.get(&at.1)?;
    }
    None
}

fn target_list(tokens: &mut Tokens<'_>) -> Option<Origins> {
    let mut found = Origins::new();
    match tokens.next()? {
        "<>" => return Some(found),
        "(" => {}
        _ => return None,
    }
    loop {
        match tokens.next()? {
            ")" => return Some(found),
            "{" => {}
            _ => return None,
        }
        expect(tokens, "TARGETENTRY")?;
        let (mut number, mut relation, mut column, mut junk) = (0_i16, 0_u32, 0_i16, false);
        loop {
            match tokens.next()? {
                "}" => break,
                ":resno" => number = tokens.next()?.parse().ok()?,
                ":resorigtbl" => relation = tokens.next()?.parse().ok()?,
                ":resorigcol" => column = tokens.next()?.parse().ok()?,
                ":resjunk" => junk = tokens.next()? == "true",
                name if name.starts_with(':') => skip(tokens)?,
                _ => return None,
            }
        }
        if !junk && number > 0 && relation != 0 && column > 0 {
            found.insert(number, (relation, column));
        }
    }
}

fn expect(tokens: &mut Tokens<'_>, token: &str) -> Option<()> {
    (tokens.next()? == token).then_some(())
}

/// Leaves out the value of a field: a word, a node, a list; words up to the next field.
fn skip(tokens: &mut Tokens<'_>) -> Option<()> {
    let mut depth = 0_usize;
    let mut first = true;
    loop {
        // Some values have more than one word (`:constvalue 4 [ 1 0 0 0 ]`); what comes first is
        // never a field, whatever it looks like.
        if depth == 0 && !first && tokens.peek().is_none_or(|next| next == "}" || is_field(next)) {
            return Some(());
        }
        match tokens.next()? {
            "(" | "{" => depth += 1,
            ")" | "}" => depth = depth.checked_sub(1)?,
            _ => {}
        }
        first = false;
    }
}

fn is_field(token: &str) -> bool {
    token.starts_with(':')
}

/// Words and brackets. A backslash takes the meaning from the next character.
#[derive(Clone, Copy)]
struct Tokens<'a>(&'a str);

impl<'a> Tokens<'a> {
    fn peek(&self) -> Option<&'a str> {
        let mut ahead = *self;
        ahead.next()
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let rest = self.0.trim_start_matches([' ', '\n', '\t']);
        let bytes = rest.as_bytes();
        let end = match bytes.first()? {
            b'(' | b')' | b'{' | b'}' => 1,
            _ => {
                let mut end = 0;
                while let Some(byte) = bytes.get(end) {
                    match byte {
                        b'\\' => end += 1,
                        b' ' | b'\n' | b'\t' | b'(' | b')' | b'{' | b'}' => break,
                        _ => {}
                    }
                    end += 1;
                }
                end
            }
        };
        // After an escape the end may be beyond the text, or within a character.
        let end = (end..=rest.len()).find(|at| rest.is_char_boundary(*at)).unwrap_or(rest.len());
        let (token, rest) = rest.split_at(end);
        self.0 = rest;
        Some(token)
    }
}
