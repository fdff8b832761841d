//! Whatever is asked, the text of a statement has words of ours, names in quotes, and parameters.
//!
//! [`check`] needs no database and nothing of this test's crate: the fuzz target `rest_statement`
//! calls it, too, with whatever libFuzzer comes up with.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use walcast::rest::Problem;
use walcast::rest::request::{self, Body, Missing, Query, Resolution};
use walcast::rest::schema::{
    Argument, Column, ForeignKey, Function, Relation, Returns, Schema, Volatility,
};
use walcast::rest::sql::{PARAMETERS_MAX, Statement};
use walcast::rest::statement::call::{Arguments, Calling, call, choose};
use walcast::rest::statement::read::{Reading, estimate, read};
use walcast::rest::statement::write::{Action, Writing, write};
use walcast::rest::statement::{Count, Form};

/// All words that a statement may have outside quotes. Who adds one to the statements adds it here.
const WORDS: &str = "
    a and any all array_agg as asc bigint body by c case cast coalesce conflict convert_to count cross
    default delete desc distinct do e else encode end excluded exists explain f false first format
    from generate_series in inserted insert int4 int8 integer into is j join json json_agg
    json_array_elements json_to_record json_to_recordset jsonb k keys last lateral left like ilike
    limit location match materialized min n not nothing null nullif nulls o offset on operator or
    order ordinality p page_total pg_catalog q r regconfig regexp_replace regexp_split_to_table
    returning row_to_json s select set set_config current_setting source string_agg text
    to_json to_jsonb to_tsquery to_tsvector plainto_tsquery phraseto_tsquery websearch_to_tsquery
    total true unknown update upper using values variadic when then where with x E";

/// What is in single quotes.
const TEXTS: &[&str] = &[
    "",
    "0",
    "[]",
    "null",
    "eq.",
    "is.null",
    "UTF8",
    "hex",
    "(..)",
    "%\\\\1",
    "g",
    "^[A-Za-z0-9_.~-]?$",
    "walcast.rest_merged",
];

/// Types whose names are words of the grammar.
const TYPES: &str = "
    bigint bit varying boolean char character dec decimal double precision float int integer
    interval national nchar numeric real smallint time with without zone timestamp varchar text
    date json jsonb tsvector";

static SCHEMA: LazyLock<Schema> = LazyLock::new(schema);

static KNOWN: LazyLock<HashSet<&str>> = LazyLock::new(|| {
    let words = WORDS.split_ascii_whitespace().chain(TYPES.split_ascii_whitespace());
    words.collect()
});

fn column(attnum: i16, name: &str, type_sql: &str) -> Column {
    Column {
        attnum,
        name: name.into(),
        type_sql: type_sql.into(),
        base_type: type_sql.into(),
        category: if type_sql.ends_with("[]") { 'A' } else { 'U' },
        nullable: true,
        default: (attnum % 2 == 0).then(|| "null".into()),
        ..Column::default()
    }
}

fn relation(oid: u32, name: &str, columns: &[(&str, &str)], key: &[&str]) -> Arc<Relation> {
    let columns = columns.iter().zip(1..).map(|((name, kind), at)| column(at, name, kind));
    Arc::new(Relation {
        oid,
        schema: "api".into(),
        name: name.into(),
        columns: columns.collect(),
        primary_key: key.iter().map(|name| (*name).into()).collect(),
        insertable: true,
        updatable: true,
        deletable: true,
        ..Relation::default()
    })
}

fn key(name: &str, from: u32, column: &str, to: u32, in_primary_key: bool) -> Arc<ForeignKey> {
    Arc::new(ForeignKey {
        name: name.into(),
        from,
        from_columns: [column.into()].into(),
        to,
        to_columns: ["id".into()].into(),
        one_to_one: false,
        in_primary_key,
    })
}

/// `a` and `b` refer to each other, `ab` to both; names that want to get out of their quotes.
fn schema() -> Schema {
    let relations = [
        relation(
            1,
            "a",
            &[
                ("id", "integer"),
                ("b", "integer"),
                ("doc", "jsonb"),
                ("raw", "json"),
                ("t", "tsvector"),
            ],
            &["id"],
        ),
        relation(
            2,
            "b",
            &[("id", "integer"), ("na\"me; --", "text"), ("list", "integer[]"), ("day", "date")],
            &["id"],
        ),
        relation(3, "ab", &[("a", "integer"), ("b", "integer")], &["a", "b"]),
    ];
    let keys = [
        key("to_b", 1, "b", 2, false),
        key("ab_a", 3, "a", 1, true),
        key("ab_b", 3, "b", 2, true),
        key("self", 2, "id", 2, false),
    ];
    let argument = |name: &str, type_sql: &str| Argument {
        name: name.into(),
        type_sql: type_sql.into(),
        base_type: type_sql.into(),
        category: 'U',
        has_default: true,
        is_variadic: false,
    };
    let function = |name: &str, returns: Returns| {
        let function = Function {
            oid: 9,
            schema: "api".into(),
            name: name.into(),
            comment: None,
            arguments: [argument("x", "integer"), argument("y\"'", "jsonb")].into(),
            returns_set: matches!(returns, Returns::Row { .. }),
            returns,
            volatility: Volatility::Stable,
        };
        (("api".into(), name.into()), vec![Arc::new(function)])
    };
    let rows = Returns::Row { relation: 1, columns: relations[0].columns.clone() };
    let scalar = Returns::Scalar { type_sql: "integer".into(), base_type: "integer".into() };
    let mut schema = Schema {
        functions: [function("f", rows), function("g", scalar), function("h", Returns::Void)]
            .into(),
        ..Schema::default()
    };
    for relation in relations {
        let name = (relation.schema.clone(), relation.name.clone());
        schema.by_oid.insert(relation.oid, Arc::clone(&relation));
        schema.relations.insert(name, relation);
    }
    for key in keys {
        for oid in HashSet::from([key.from, key.to]) {
            schema.foreign_keys.entry(oid).or_default().push(Arc::clone(&key));
        }
    }
    schema
}

/// Builds what the bytes ask for: two bytes of choices, a query string up to the first line feed, a
/// body. What is refused is the client's fault, and what is built is sound.
///
/// # Panics
/// When it is not.
pub(crate) fn check(bytes: &[u8]) {
    let [how, what, text @ ..] = bytes else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let (query, body) = text.split_once('\n').unwrap_or((text, ""));
    match statements(*how, *what, query, body) {
        Ok(statements) => statements.iter().for_each(check_statement),
        Err(problem) => {
            assert!(problem.status.as_u16() / 100 == 4 || problem.status == 300, "{problem:?}");
        }
    }
}

fn statements(how: u8, what: u8, query: &str, body: &str) -> Result<Vec<Statement>, Problem> {
    let schema = &*SCHEMA;
    let of = |names: &[&'static str]| names[usize::from(what) % names.len()];
    let form = [Form::Array, Form::Object, Form::None][usize::from(what / 64) % 3];
    let count = [None, Some(Count::Exact), Some(Count::Estimated), Some(Count::Planned)]
        [usize::from(what / 16) % 4];
    let rows_max = (how & 128 == 0).then_some(1000);
    let parse = |body: &str| {
        Body::parse(&axum::http::HeaderMap::new(), Bytes::copy_from_slice(body.as_bytes()))
    };
    let relation = || schema.relation("api", of(&["a", "b", "ab"])).expect("it stands above");
    let action = how % 8;
    if action < 2 {
        let query = &Query::from_text(query)?;
        let reading = Reading { schema, relation: relation(), query, form, count, rows_max };
        return Ok(vec![read(&reading)?, estimate(&reading)?]);
    }
    if action < 6 {
        let query = &Query::from_text(query)?;
        let body = &parse(body)?;
        let missing = if how & 32 == 0 { Missing::Null } else { Missing::Default };
        let resolution =
            [None, Some(Resolution::MergeDuplicates), Some(Resolution::IgnoreDuplicates)]
                [usize::from(how / 64) % 3];
        let action = match action {
            2 => Action::Insert { body, missing, resolution },
            3 => Action::Put { body },
            4 => Action::Update { body },
            _ => Action::Delete,
        };
        let wants_location = how & 16 != 0;
        let relation = relation();
        let writing = Writing { schema, relation, query, action, form, count, wants_location };
        return Ok(vec![write(&writing)?]);
    }
    let pairs = request::pairs(query)?;
    let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (&**name, &**value)).collect();
    let said = request::arguments(&pairs);
    let parsed = parse(body);
    let (names, arguments): (Vec<&str>, _) = if action == 6 {
        (said.iter().map(|(name, _)| *name).collect(), Arguments::Pairs(&said))
    } else {
        let body = parsed.as_ref().map_err(Clone::clone)?;
        (body.keys().iter().map(String::as_str).collect(), Arguments::Body(body))
    };
    let function = choose(schema, "api", of(&["f", "g", "h"]), &names)?;
    let is_argument =
        |name: &str| action == 6 && function.arguments.iter().any(|it| *it.name == *name);
    let query = &Query::parse(pairs.iter().copied(), is_argument)?;
    let calling = Calling { schema, function, arguments, query, form, count, rows_max };
    Ok(vec![call(&calling)?])
}

/// Its quotes and parentheses end, its words are known, and each parameter is there once.
fn check_statement(statement: &Statement) {
    let Statement { text, parameters } = statement;
    assert!(parameters.len() <= PARAMETERS_MAX && parameters.iter().all(Option::is_some));
    let (mut rest, mut depth, mut numbers) = (&**text, 0_usize, vec![0_u8; parameters.len()]);
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' => {
                let length = quoted(rest, '"').unwrap_or_else(|| panic!("an open name in {text}"));
                assert!(length > 2 && !rest[..length].contains('\0'), "no name in {text}");
                length
            }
            '\'' => {
                let length = quoted(rest, '\'').unwrap_or_else(|| panic!("an open text in {text}"));
                let inner = &rest[1..length - 1];
                assert!(TEXTS.contains(&inner), "{inner:?} in {text}");
                length
            }
            '$' => {
                let digits = run(&rest[1..], |c| c.is_ascii_digit());
                let number: usize = rest[1..=digits].parse().expect("a parameter's number");
                let seen = number.checked_sub(1).and_then(|place| numbers.get_mut(place));
                *seen.unwrap_or_else(|| panic!("${number} in {text}")) += 1;
                digits + 1
            }
            'a'..='z' | 'A'..='Z' | '_' => {
                let length = run(rest, |c| c.is_ascii_alphanumeric() || c == '_');
                let word = &rest[..length];
                let digits = word.trim_start_matches(['t', 'c', 'o']);
                let is_alias = word.len() == digits.len() + 1
                    && !digits.is_empty()
                    && digits.bytes().all(|byte| byte.is_ascii_digit());
                assert!(is_alias || KNOWN.contains(word), "{word} in {text}");
                length
            }
            '(' => {
                depth += 1;
                1
            }
            ')' => {
                depth = depth.checked_sub(1).unwrap_or_else(|| panic!("a parenthesis in {text}"));
                1
            }
            '-' => {
                assert!(!rest.starts_with("--"), "a comment in {text}");
                1
            }
            ' '
            | ','
            | '.'
            | ':'
            | '['
            | ']'
            | '*'
            | '='
            | '<'
            | '>'
            | '@'
            | '&'
            | '~'
            | '|'
            | '?'
            | '+'
            | '0'..='9' => 1,
            other => panic!("{other:?} in {text}"),
        };
        rest = &rest[length..];
    }
    assert_eq!(depth, 0, "{text}");
    assert!(numbers.iter().all(|&times| times == 1), "{numbers:?} of {text}");
}

/// Bytes of what is in quotes, with them; a doubled quote is none.
fn quoted(text: &str, quote: char) -> Option<usize> {
    let mut characters = text.char_indices().skip(1).peekable();
    while let Some((at, character)) = characters.next() {
        if character != quote {
            continue;
        }
        match characters.peek() {
            Some((_, next)) if *next == quote => {
                characters.next();
            }
            _ => return Some(at + 1),
        }
    }
    None
}

fn run(text: &str, is_such: impl Fn(char) -> bool) -> usize {
    text.find(|c| !is_such(c)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pieces that are put together to near misses.
    const PIECES: &[&str] = &[
        "select=",
        "&",
        "id",
        "b",
        "doc",
        "raw",
        "t",
        "list",
        "day",
        "*",
        ",",
        "(",
        ")",
        "a(",
        "b!inner(",
        "...b(",
        "ab(",
        "x:",
        "::text",
        "::double precision",
        "->",
        "->>",
        "->0",
        "\"",
        "\"na\\\"me; --\"",
        "=eq.",
        "=in.(",
        "=not.",
        "=is.null",
        "=fts(english).",
        "=cs.{",
        "=like(any).{",
        "order=",
        ".desc",
        ".nullslast",
        "limit=",
        "offset=",
        "1",
        "99999999999999999999",
        "or=(",
        "and=(",
        "not.",
        "b.id=eq.1",
        "columns=",
        "on_conflict=",
        "x=",
        "y\"'=",
        "%22",
        "%27",
        "%00",
        "%3B",
        "'",
        ";",
        "--",
        "$1",
        "\\",
        "\n",
        "{\"id\": ",
        "{\"a\":1,\"b\":2}",
        "[{\"id\":1},{\"doc\":2}]",
        "}",
        "[",
        "]",
        "null",
        "ü",
    ];

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_text_of_a_request_is_outside_quotes_and_parameters(
            how in any::<[u8; 2]>(),
            pieces in proptest::collection::vec(proptest::sample::select(PIECES), 0..12),
        ) {
            check(&[&how[..], pieces.concat().as_bytes()].concat());
        }
    }

    #[test]
    fn what_is_usual_is_built_and_sound() {
        let mut built = 0;
        for (how, text) in [
            (
                0,
                "select=id,doc->a->>b,x:raw,b!to_b(id,\"na\\\"me; --\"),ab!inner(b(*))&id=eq.1&order=b(day).desc,id",
            ),
            (
                0,
                "select=...b!to_b(n:\"na\\\"me; --\"::varchar)&or=(id.in.(1,2),not.and(doc.cs.{},t.fts(english).x))",
            ),
            (
                128,
                "select=b!ab(list)&b.list=ov.{1}&b.limit=1&limit=3&offset=2&b=not.is.null&id=eq(any).{1}",
            ),
            (2, "select=id&columns=id,doc\n[{\"id\":1},{\"doc\":2}]"),
            (2 + 64 + 32 + 16, "on_conflict=id\n[{\"id\":1,\"b\":2},{\"id\":1,\"b\":2}]"),
            (3, "id=eq.1\n{\"id\":1}"),
            (4, "id=gt.1&select=id,b!to_b(id)\n{\"id\":1,\"doc\":{}}"),
            (5, "id=lt.1&select=id"),
            (6, "x=1&id=gte.1&select=id,b!ab(id)"),
            (7, "select=id\n{\"x\":1,\"y\\\"'\":2}"),
        ] {
            for what in [0_u8, 16, 48, 64, 128] {
                // The first relation and the first function, whatever the form.
                let what = what + (3 - what % 3) % 3;
                let (query, body) = text.split_once('\n').unwrap_or((text, ""));
                match statements(how, what, query, body) {
                    Ok(statements) => {
                        built += 1;
                        statements.iter().for_each(check_statement);
                    }
                    Err(problem) => panic!("{how} {text}: {problem:?}"),
                }
            }
        }
        assert_eq!(built, 50);
    }

    #[test]
    fn a_statement_that_is_not_sound_is_noticed() {
        for (text, parameters) in [
            ("select $1", 0),
            ("select $1, $1", 1),
            ("select", 1),
            ("select evil", 0),
            ("select 'evil'", 0),
            ("select \"a", 0),
            ("select \"\"", 0),
            ("select (", 0),
            ("select ))((", 0),
            ("select -- 1", 0),
            ("select 1; select 1", 0),
            ("select /* */", 0),
        ] {
            let parameters = vec![Some(Bytes::from_static(b"x")); parameters];
            let statement = Statement { text: text.into(), parameters };
            let outcome = std::panic::catch_unwind(|| check_statement(&statement));
            assert!(outcome.is_err(), "{text}");
        }
    }
}
