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
#[derive(Clone)]
struct Tokens<'a>(&'a str);

impl<'a> Tokens<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.clone().next()
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn check(tree: &str, expected: &[(i16, Origin)]) {
        let found = origins(tree).map(BTreeMap::from_iter);
        assert_eq!(found, Some(expected.iter().copied().collect()), "{tree}");
    }

    /// `create view v as select a as ":resno", b as "x (y\", (select count(*) from t) n from t
    /// order by random()`, from version 15, shortened where nothing of the kind is left out.
    const TREE: &str = r#"({QUERY :commandType 1 :querySource 0 :canSetTag true :utilityStmt <>
        :cteList <> :rtable ({RANGETBLENTRY :alias {ALIAS :aliasname old :colnames <>} :eref
        {ALIAS :aliasname old :colnames (":resno" "x\ \(y\\" "n")} :rtekind 0 :relid 16391
        :relkind v :requiredPerms 0 :selectedCols (b) :securityQuals <>}) :jointree {FROMEXPR
        :fromlist ({RANGETBLREF :rtindex 3}) :quals <>} :targetList ({TARGETENTRY :expr {VAR :varno
        3 :varattno 1 :location 74} :resno 1 :resname :resno :ressortgroupref 0 :resorigtbl 16384
        :resorigcol 1 :resjunk false} {TARGETENTRY :expr {CONST :consttype 23 :constisnull false
        :location 9 :constvalue 4 [ 1 0 0 0 0 0 0 0 ]} :resno 2 :resname x\ \(y\\ :ressortgroupref 0
        :resorigtbl 16384 :resorigcol 2 :resjunk false} {TARGETENTRY :expr {SUBLINK :subselect {QUERY
        :commandType 1 :targetList ({TARGETENTRY :expr {AGGREF :aggfnoid 2803} :resno 1 :resname count
        :resorigtbl 16384 :resorigcol 7 :resjunk false}) :override 0} :location 109} :resno 3 :resname n
        :ressortgroupref 0 :resorigtbl 0 :resorigcol 0 :resjunk false} {TARGETENTRY :expr {FUNCEXPR
        :funcid 1598 :args <> :location 152} :resno 4 :resname <> :ressortgroupref 1 :resorigtbl 16384
        :resorigcol 3 :resjunk true}) :override 0 :onConflict <> :sortClause ({SORTGROUPCLAUSE
        :tleSortGroupRef 1}) :stmt_location 49 :stmt_len 0})"#;

    #[test]
    fn the_outermost_columns_have_origins() {
        check(TREE, &[(1, (16384, 1)), (2, (16384, 2))]);
    }

    #[test]
    fn a_query_without_columns_has_no_origins() {
        check("({QUERY :commandType 1 :targetList <> :override 0})", &[]);
        check("({QUERY :targetList ()})", &[]);
    }

    #[test]
    fn what_is_not_understood_has_none() {
        for tree in [
            "",
            "<>",
            "()",
            "({QUERY})",
            "({INSERT :targetList ()})",
            "({QUERY :targetList ()}) more",
            "({QUERY :targetList ({TARGETENTRY :resno x})})",
            "({QUERY :targetList ({TARGETENTRY :resno 99999})})",
            "({QUERY :targetList ({OTHER :resno 1})})",
            "({QUERY targetList ()})",
            "({QUERY :targetList ({TARGETENTRY :resname )})})",
        ] {
            assert_eq!(origins(tree), None, "{tree}");
        }
        for end in 0..TREE.len() {
            assert_eq!(origins(&TREE[..end]), None, "{end}");
        }
    }

    #[test]
    fn views_are_looked_through_and_circles_end() {
        let views = HashMap::from([
            (1, Origins::from([(1, (2, 5)), (2, (9, 1))])),
            (2, Origins::from([(5, (7, 3))])),
            (3, Origins::from([(1, (3, 1))])),
        ]);
        assert_eq!(resolve(&views, (1, 1)), Some((7, 3)));
        assert_eq!(resolve(&views, (1, 2)), Some((9, 1)));
        assert_eq!(resolve(&views, (1, 3)), None);
        assert_eq!(resolve(&views, (3, 1)), None);
        assert_eq!(resolve(&views, (8, 4)), Some((8, 4)));
    }

    proptest! {
        #[test]
        fn no_text_is_too_much(tree in "\\PC*") {
            let _ = origins(&tree);
        }

        #[test]
        fn nor_is_one_that_looks_like_a_tree(
            words in prop::collection::vec(
                prop::sample::select(vec![
                    "(", "{", "}", ")", "QUERY", ":targetList", "TARGETENTRY", ":resno", "1", "<>",
                    "\\", "ü", ":resorigtbl", ":x",
                ]),
                0..60,
            ),
            spaces in any::<bool>(),
        ) {
            let tree = words.join(if spaces { " " } else { "" });
            let _ = origins(&tree);
            let _ = origins(&format!("({{QUERY :targetList ({tree})}})"));
        }

        #[test]
        fn names_do_not_matter(name in "\\PC{0,12}") {
            // As outfuncs.c writes a word.
            let mut word = String::new();
            for character in name.chars() {
                if " \n\t(){}\\".contains(character) {
                    word.push('\\');
                }
                word.push(character);
            }
            if word.is_empty() {
                word = "\"\"".into();
            }
            let tree = format!(
                "({{QUERY :targetList ({{TARGETENTRY :expr {{VAR :varno 1}} :resno 1 :resname {word} \
                 :resorigtbl 5 :resorigcol 6 :resjunk false}}) :override 0}})"
            );
            prop_assert_eq!(origins(&tree), Some(Origins::from([(1, (5, 6))])));
        }
    }
}
