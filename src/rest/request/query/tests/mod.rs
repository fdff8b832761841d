mod properties;
mod written;

use super::*;
use crate::rest::request::Test;

/// The query of one parameter.
fn one(name: &str, value: &str) -> Result<Query, Problem> {
    Query::parse([(name, value)], |_| false)
}

/// Message and details of a refusal.
fn refused(name: &str, value: &str) -> String {
    let problem = one(name, value).expect_err(value);
    assert_eq!((problem.status.as_u16(), &*problem.code), (400, "PGRST100"), "{name}={value}");
    format!("{} {}", problem.message, problem.details.unwrap().as_str().unwrap())
}

fn select(text: &str) -> String {
    written::items(&one("select", text).expect(text).select)
}

/// That it reads as `expected`, and `expected` as itself.
fn check_select(text: &str, expected: &str) {
    assert_eq!(select(text), expected, "{text}");
    assert_eq!(select(expected), expected);
}

#[test]
fn a_select_list_is_read() {
    check_select("", "");
    check_select("*", "*");
    check_select(" id , name ", "\"id\",\"name\"");
    check_select("a:id::text,b::double precision", "\"a\":\"id\"::text,\"b\"::double precision");
    check_select(
        "first name,kebab-case,ä,1st,$",
        "\"first name\",\"kebab-case\",\"ä\",\"1st\",\"$\"",
    );
    check_select(r#""a,b(c)","d\"e\\""#, r#""a,b(c)","d\"e\\""#);
    check_select("d->a->>b", "\"d\"->\"a\"->>\"b\"");
    check_select("d->0->>-1", "\"d\"->0->>-1");
    check_select("d->12a,d->>a b-c", "\"d\"->\"12a\",\"d\"->>\"a b-c\"");
    check_select(
        r#"d->"0"->"a.b",x:d->!@#$%^&*_a::int"#,
        r#""d"->"0"->"a.b","x":"d"->"!@#$%^&*_a"::int"#,
    );
    check_select("a-b->c", "\"a-b\"->\"c\"");
    check_select("a:\tb\n,c", "\"a\":\"b\",\"c\"");
    check_select("alias:\"x\"", "\"alias\":\"x\"");
}

#[test]
fn embeddings_are_read() {
    check_select("rel()", "\"rel\"()");
    check_select("id,rel( * )", "\"id\",\"rel\"(*)");
    check_select("rel (a)", "\"rel\"(\"a\")");
    check_select("x:rel!hint!inner(a),b", "\"x\":\"rel\"!\"hint\"!inner(\"a\"),\"b\"");
    check_select("rel!inner!hint(a)", "\"rel\"!\"hint\"!inner(\"a\")");
    check_select("rel!left(a)", "\"rel\"(\"a\")");
    check_select("rel!\"inner\"(a)", "\"rel\"!\"inner\"(\"a\")");
    check_select("rel!innermost(a)", "\"rel\"!\"innermost\"(\"a\")");
    check_select("...rel!hint(a,...b(*))", "...\"rel\"!\"hint\"(\"a\",...\"b\"(*))");
    check_select("a(b(c(d->0)))", "\"a\"(\"b\"(\"c\"(\"d\"->0)))");
    check_select("count,counts(a),\"count\"(a)", "\"count\",\"counts\"(\"a\"),\"count\"(\"a\")");
}

#[test]
fn what_is_no_select_list_is_refused() {
    for text in [
        ",",
        "a,",
        ",a",
        "a,,b",
        "a)",
        "(a)",
        "a b:c:d",
        ":a",
        "a:",
        "a:*",
        "*a",
        "a::",
        "a.b",
        "a->",
        "a->>",
        "a->--1",
        "a->-1x",
        "a->99999999999",
        "a(b",
        "a(b))",
        "a(b,)",
        "a(,)",
        "a!x",
        "a!x!y(b)",
        "a!inner!left(b)",
        "a->b(c)",
        "a(b)c",
        "a::b(c)",
        "....a(b)",
        "...a",
        "x:...a(b)",
        "\"a",
        "\"a\"b",
        "\"\\",
        "a;b",
        "a(b)!inner",
        "a::varchar(5)",
        "a::int[]",
        "a::\"x\"",
        "\"a\\\"",
        "a::b::c",
        "a.sum",
        "a.other()",
        "a'b",
        "a->b->",
        "-a",
        "a-",
        "\"a\".",
    ] {
        refused("select", text);
    }
}

#[test]
fn an_error_says_where_and_what_was_expected() {
    let parts = [
        (
            refused("select", "id,clients(name[])"),
            r#""failed to parse select parameter (id,clients(name[]))" (line 1, column 16) unexpected "[" expecting letter, digit, "-", "->>", "->", "::", ".", ")", "," or end of input"#,
        ),
        (
            refused("a.b", "noop.0"),
            r#""failed to parse filter (noop.0)" (line 1, column 1) unexpected "n" expecting "not" or operator (eq, gt, ...)"#,
        ),
        (
            refused("or", "()"),
            r#""failed to parse logic tree (())" (line 1, column 4) unexpected ")" expecting field name (* or [a..z0..9_$]), negation operator (not) or logic operator (and, or)"#,
        ),
        (
            refused("order", "id.ac"),
            r#""failed to parse order (id.ac)" (line 1, column 4) unexpected "a" expecting "asc", "desc", "nullsfirst" or "nullslast""#,
        ),
        (
            refused(":", "eq.1"),
            r#""failed to parse tree path (:)" (line 1, column 1) unexpected ":" expecting field name (* or [a..z0..9_$])"#,
        ),
        (
            refused("columns", "ä,"),
            r#""failed to parse columns parameter (ä,)" (line 1, column 3) unexpected end of input expecting field name (* or [a..z0..9_$])"#,
        ),
    ];
    for (found, expected) in parts {
        assert_eq!(found, expected);
    }
    let long = refused("a", &"x".repeat(60_000));
    assert!(long.len() < 400, "{}", long.len());
}

#[test]
fn aggregates_are_not_there() {
    for text in
        ["count()", "x:count()", "a.sum()", "a->b.max()", "a::int.avg()::text", "r(count())"]
    {
        assert!(one("select", text).unwrap_err().is_not_implemented(), "{text}");
    }
}

#[test]
fn depth_and_number_of_embeddings_are_bounded() {
    let nested = |depth: usize| format!("{}a{}", "r(".repeat(depth), ")".repeat(depth));
    assert!(one("select", &nested(16)).is_ok());
    refused("select", &nested(17));
    refused("select", &"r(".repeat(30_000));
    assert!(one("select", &vec!["r()"; 100].join(",")).is_ok());
    refused("select", &vec!["r()"; 101].join(","));
    assert!(one("select", &vec!["a"; 1_000].join(",")).is_ok());
    refused("select", &vec!["a"; 1_001].join(","));
    assert!(one("select", &format!("a{}", "->b".repeat(100))).is_ok());
    refused("select", &format!("a{}", "->b".repeat(101)));
}

fn check_filter(name: &str, value: &str, expected: &str) {
    let query = one(name, value).unwrap_or_else(|problem| panic!("{name}={value}: {problem}"));
    assert_eq!(query.filters.len(), 1);
    let (name, value) = written::filter(&query.filters[0]);
    assert_eq!(format!("{name}={value}"), expected);
    // Alone, as for a route.
    assert_eq!(filter(&name, &value).unwrap(), query.filters[0]);
}

#[test]
fn every_operator_is_read() {
    for operator in [
        "eq",
        "neq",
        "gt",
        "gte",
        "lt",
        "lte",
        "match",
        "imatch",
        "isdistinct",
        "cs",
        "cd",
        "ov",
        "sl",
        "sr",
        "nxr",
        "nxl",
        "adj",
        "fts",
        "plfts",
        "phfts",
        "wfts",
        "fts(english)",
        "plfts(a b)",
        "like",
        "ilike",
        "eq(any)",
        "gt(all)",
        "gte(any)",
        "lt(any)",
        "lte(all)",
        "like(all)",
        "ilike(any)",
        "match(any)",
        "imatch(all)",
    ] {
        check_filter("a", &format!("{operator}.x.y"), &format!("\"a\"={operator}.x.y"));
        check_filter("a", &format!("not.{operator}."), &format!("\"a\"=not.{operator}."));
        let tree = format!("(\"a\".{operator}.\"x.y\",\"b\".not.{operator}.\"\")");
        check_filter("or", &tree, &format!("or={tree}"));
    }
    for value in ["null", "not_null", "true", "false", "unknown"] {
        check_filter("a", &format!("is.{value}"), &format!("\"a\"=is.{value}"));
        check_filter(
            "a",
            &format!("not.is.{}", value.to_uppercase()),
            &format!("\"a\"=not.is.{value}"),
        );
    }
}

#[test]
fn a_star_of_like_is_a_percent_sign() {
    check_filter("a", "like.*a*", "\"a\"=like.%a%");
    check_filter("a", "ilike.a%*", "\"a\"=ilike.a%%");
    check_filter("a", "like(any).{*a,b*}", "\"a\"=like(any).{%a,b%}");
    check_filter("and", "(a.like.\"*\",b.match.*)", "and=(\"a\".like.\"%\",\"b\".match.\"*\")");
    check_filter("a", "match.*", "\"a\"=match.*");
    check_filter("a", "eq.*", "\"a\"=eq.*");
}

#[test]
fn names_of_filters_are_paths_to_a_field() {
    check_filter("a->b->>0", "eq.1", "\"a\"->\"b\"->>0=eq.1");
    check_filter("r.s.a", "eq.1", "\"r\".\"s\".\"a\"=eq.1");
    check_filter("\"r.s\".\"a b\"", "eq.1", "\"r.s\".\"a b\"=eq.1");
    check_filter("first name", "eq.1", "\"first name\"=eq.1");
    check_filter("\"order\"", "eq.1", "\"order\"=eq.1");
    check_filter("r.\"or\"", "eq.1", "\"r\".\"or\"=eq.1");
    check_filter("r.select", "eq.1", "\"r\".\"select\"=eq.1");
    check_filter("not", "eq.1", "\"not\"=eq.1");
    for name in
        ["", ".", "a.", ".a", "a..b", "a->", "a->b.c", "a(b)", "a,b", "a:b", "\"a", "a->b c->", "*"]
    {
        refused(name, "eq.1");
    }
}

#[test]
fn a_list_of_values_is_read() {
    let list = |value: &str| {
        let query = one("a", value).unwrap();
        let Condition::Test { test: Test::In(values), .. } = &query.filters[0].what else {
            panic!("{value}");
        };
        values.join("|")
    };
    assert_eq!(list("in.(1,2)"), "1|2");
    assert_eq!(list("in. (1) "), "1");
    assert_eq!(list(r#"in.("a,b","c)","d\"e\\f",g)"#), "a,b|c)|d\"e\\f|g");
    assert_eq!(list(r#"in.(a"b,"c"d,{1})"#), "a\"b|\"c\"d|{1}");
    assert_eq!(list("in.(a, b)"), "a| b");
    assert_eq!(list("in.(,)"), "|");
    for (value, len) in [("in.()", 0), ("in.(\"\")", 1), ("in.(,)", 2), ("in.( )", 1)] {
        let Condition::Test { test: Test::In(values), .. } =
            one("a", value).unwrap().filters.remove(0).what
        else {
            panic!("{value}");
        };
        assert_eq!(values.len(), len, "{value}");
    }
}

#[test]
fn what_is_no_filter_is_refused() {
    for value in [
        "",
        "1",
        "eq",
        ".",
        "not",
        "not.",
        "not.not.eq.1",
        "noteq.1",
        "Eq.1",
        "eq1.2",
        "eq(.1",
        "eq().1",
        "eq(some).1",
        "neq(any).1",
        "cs(any).{}",
        "isdistinct(any).1",
        "in",
        "in.",
        "in.1",
        "in.(1",
        "in.1,2",
        "in.(1)x",
        "in(any).(1)",
        "is.",
        "is.nil",
        "is.nullx",
        "is.null.x",
        "is(any).null",
        "fts().a",
        "fts(.a",
        "fts(a.b).c",
        "fts(\"a\").b",
        "plfts",
        "wfts(a)",
        "and(a.eq.1)",
        "equals.1",
    ] {
        refused("a", value);
    }
}

#[test]
fn trees_are_read() {
    check_filter("or", "(a.eq.1,b.gt.2)", "or=(\"a\".eq.\"1\",\"b\".gt.\"2\")");
    check_filter("not.or", "(a.eq.1)", "not.or=(\"a\".eq.\"1\")");
    check_filter("r.s.and", "(a.eq.1)", "\"r\".\"s\".and=(\"a\".eq.\"1\")");
    check_filter("r.not.and", "(a.eq.1)", "\"r\".not.and=(\"a\".eq.\"1\")");
    check_filter("not.r.and", "(a.eq.1)", "\"r\".not.and=(\"a\".eq.\"1\")");
    check_filter("\"not\".and", "(a.eq.1)", "\"not\".and=(\"a\".eq.\"1\")");
    check_filter(
        "and",
        "( not.or ( id.in.( 1,2 ) , id.eq.3 ) , and(a.is.null ,b.not.is.true))",
        "and=(not.or(\"id\".in.(\" 1\",\"2 \"),\"id\".eq.\"3 \"),and(\"a\".is.null,\"b\".not.is.true))",
    );
    // Columns may have the names of operators.
    check_filter(
        "and",
        "(or.eq.1,and.not.in.(2),not.eq.3,not.is.null)",
        "and=(\"or\".eq.\"1\",\"and\".not.in.(\"2\"),\"not\".eq.\"3\",\"not\".is.null)",
    );
    check_filter(
        "or",
        "(a->b->>c.eq.1,\"x.y\".eq.1)",
        "or=(\"a\"->\"b\"->>\"c\".eq.\"1\",\"x.y\".eq.\"1\")",
    );
}

#[test]
fn values_in_trees_end_where_they_should() {
    let values = |text: &str| {
        let query = one("and", text).unwrap_or_else(|problem| panic!("{text}: {problem}"));
        let Condition::And(conditions) = &query.filters[0].what else { panic!("{text}") };
        let value = |condition: &Condition| {
            let Condition::Test { test: Test::Compare { value, .. }, .. } = condition else {
                panic!("{condition:?}");
            };
            value.clone()
        };
        conditions.iter().map(value).collect::<Vec<_>>().join("|")
    };
    assert_eq!(values("(a.eq.1.5,b.eq.x y)"), "1.5|x y");
    assert_eq!(values(r#"(a.eq."x,y)",b.eq."\"\\")"#), r#"x,y)|"\"#);
    assert_eq!(values(r#"(a.eq."x" ,b.eq.x"y,c.eq."x"y)"#), r#"x|x"y|"x"y"#);
    assert_eq!(values("(a.cs.{1,2},b.cd.{},c.ov.{{1,2},{3,4}} )"), "{1,2}|{}|{{1,2},{3,4}}");
    assert_eq!(values(r#"(a.cs.{"x":"},)\"{"},b.eq.1)"#), r#"{"x":"},)\"{"}|1"#);
    assert_eq!(values("(a.eq.,b.eq.)"), "|");
    assert_eq!(values("(a.eq.(1)"), "(1");
    assert_eq!(values("(a.eq.x{1)"), "x{1");
}

#[test]
fn what_is_no_tree_is_refused() {
    for text in [
        "",
        "()",
        "(",
        "(a.eq.1",
        "a.eq.1",
        "(a.eq.1))",
        "(a.eq.1)x",
        "(a.eq.1)and(b.eq.1)",
        "(a.eq.1,)",
        "(,a.eq.1)",
        "(a)",
        "(a.1)",
        "(a.b.eq.1)",
        "(or)",
        "(or())",
        "(not(a.eq.1))",
        "(xor(a.eq.1))",
        "(not.xor(a.eq.1))",
        "(a.in.1,2)",
        "(a.in.(1)x)",
        "(a.is.nullx)",
        "(a.eq.{1)",
        "(a.eq.{1}x)",
        "(a.eq.{\"}))",
        "(.eq.1)",
        "(a.noop.1)",
        "({a}.eq.1)",
        "(a.eq.1",
        "(not.not.or(a.eq.1))",
    ] {
        refused("or", text);
    }
    refused("not.not", "(a.eq.1)");
    refused("or->a", "(a.eq.1)");
}

#[test]
fn depth_of_trees_is_bounded() {
    // The outermost tree is one of them.
    let nested = |depth: usize| format!("{}(a.eq.1{}", "(and".repeat(depth - 1), ")".repeat(depth));
    assert!(one("or", &nested(32)).is_ok());
    refused("or", &nested(33));
    refused("or", &"(or".repeat(20_000));
    refused("or", &"(not.and".repeat(8_000));
}

#[test]
fn reading_takes_time_that_is_linear() {
    // Each of these made a look ahead that found nothing run to the end, again and again.
    let began = std::time::Instant::now();
    for unit in [
        "a.eq.{,",
        "a.eq.\",",
        "a.in.(\",",
        "a.eq.{\"",
        "a.eq.{\"\\",
        "a.in.({,",
        "not.and ",
        "a->\"",
        "\"a\\",
    ] {
        let text = format!("({}", unit.repeat(60_000 / unit.len()));
        let _ = one("or", &text);
        let _ = one("select", &text);
        let _ = one("order", &text);
        let _ = one("a", &format!("in.{text}"));
    }
    let elapsed = began.elapsed();
    assert!(elapsed < std::time::Duration::from_secs(10), "{elapsed:?}");
}

#[test]
fn orders_are_read() {
    let check = |text: &str, expected: &str| {
        let query = one("order", text).unwrap_or_else(|problem| panic!("{text}: {problem}"));
        assert_eq!(written::orders(&query.orders[0].what), expected);
        assert_eq!(one("order", expected).unwrap(), query, "{text}");
    };
    check("a", "\"a\"");
    check("a.asc,b.desc", "\"a\",\"b\".desc");
    check(" a.desc.nullslast , b.nullsfirst ", "\"a\".desc.nullslast,\"b\".nullsfirst");
    check("a->b->>0.desc,\"x.y\".asc.nullslast", "\"a\"->\"b\"->>0.desc,\"x.y\".nullslast");
    check(
        "r(a).desc,r(a->b).nullsfirst,c",
        "\"r\"(\"a\").desc,\"r\"(\"a\"->\"b\").nullsfirst,\"c\"",
    );
    for text in [
        "",
        ",",
        "a,",
        "a.",
        "a.descc",
        "a.up",
        "a.asc.desc",
        "a.nullsfirst.desc",
        "a.asc.asc",
        "a b.c.d",
        "a.desc.nullslasttt",
        "a.nullslast.nullsfirst",
        "r()",
        "r(a,b)",
        "r(a",
        "r(a)b",
        "r(s(a))",
        "a->b(c)",
        "*",
        "a.desc nullslast",
        "a::int",
        "a.ASC",
    ] {
        refused("order", text);
    }
    assert!(one("order", &vec!["a"; 100].join(",")).is_ok());
    refused("order", &vec!["a"; 101].join(","));
}

#[test]
fn columns_are_kept_once() {
    let query = Query::parse(
        [
            ("columns", "\"a\", b ,\"c,d\",a"),
            ("on_conflict", "b,a"),
            ("columns", "x"),
            ("on_conflict", "x"),
        ],
        |_| false,
    );
    let query = query.unwrap();
    assert_eq!(query.columns.unwrap(), ["a", "b", "c,d"]);
    assert_eq!(query.on_conflict.unwrap(), ["b", "a"]);
    for text in ["", ",", "a,", "a.b", "a->b", "a(b)", "*", "\"a"] {
        refused("columns", text);
        refused("on_conflict", text);
    }
    let many: Vec<String> = (0..1_601).map(|number| format!("c{number}")).collect();
    assert!(one("columns", &many[1..].join(",")).is_ok());
    refused("columns", &many.join(","));
}

#[test]
fn limits_and_offsets_are_read() {
    let check = |pairs: &[(&str, &str)], expected: &[(&str, Option<u64>, Option<u64>)]| {
        let query = Query::parse(pairs.iter().copied(), |_| false).unwrap();
        let found: Vec<_> = query
            .ranges
            .iter()
            .map(|range| (range.path.join("."), range.what.limit, range.what.offset))
            .collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|(path, limit, offset)| ((*path).to_owned(), *limit, *offset))
            .collect();
        assert_eq!(found, expected, "{pairs:?}");
    };
    check(&[("limit", "0"), ("offset", "5")], &[("", Some(0), Some(5))]);
    check(&[("limit", "1"), ("limit", "2")], &[("", Some(2), None)]);
    check(
        &[("r.offset", "1"), ("limit", "3"), ("r.limit", "2"), ("r.s.limit", "4")],
        &[("r", Some(2), Some(1)), ("", Some(3), None), ("r.s", Some(4), None)],
    );
    check(&[("limit", "-0"), ("offset", " 7 ")], &[("", Some(0), Some(7))]);
    check(&[("limit", "99999999999999999999999")], &[("", Some(9_223_372_036_854_775_807), None)]);
    for value in ["", "undefined", "NaN", "1.5", "-", "0x10", "-x", "١"] {
        check(&[("limit", value), ("offset", value)], &[]);
    }
    for (name, word) in [("limit", "Limit"), ("offset", "Offset"), ("r.limit", "Limit")] {
        let problem = one(name, "-1").unwrap_err();
        assert_eq!((problem.status.as_u16(), &*problem.code), (416, "PGRST103"));
        assert_eq!(problem.message, "Requested range not satisfiable");
        let details = format!("{word} should be greater than or equal to zero.");
        assert_eq!(problem.details.unwrap(), details.as_str());
    }
}

#[test]
fn all_parameters_together() {
    let query = Query::from_text(
        "select=id,r(*)&id=gte.1&id=lt.5&r.name=like.a*&order=a&order=b.desc&r.order=c&limit=2&apikey",
    )
    .unwrap();
    assert_eq!(written::items(&query.select), "\"id\",\"r\"(*)");
    let filters: Vec<_> = query.filters.iter().map(written::filter).collect();
    let filters: Vec<_> = filters.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(filters, ["\"id\"=gte.1", "\"id\"=lt.5", "\"r\".\"name\"=like.a%"]);
    let orders: Vec<_> = query
        .orders
        .iter()
        .map(|order| (order.path.join("."), written::orders(&order.what)))
        .collect();
    let expected = [(String::new(), "\"b\".desc".to_owned()), ("r".to_owned(), "\"c\"".to_owned())];
    assert_eq!(orders, expected);
    assert_eq!(query.ranges[0].what.limit, Some(2));
    let twice = Query::from_text("select=a&select=b").unwrap();
    assert_eq!(written::items(&twice.select), "\"a\"");
    assert_eq!(Query::from_text("").unwrap(), Query::default());
}

#[test]
fn arguments_are_left_out() {
    let pairs = [("a", "1"), ("a", "eq.1"), ("b", "eq.2"), ("weird)name", "x"), ("limit", "1")];
    let is_argument = |name: &str| ["a", "weird)name", "limit"].contains(&name);
    let query = Query::parse(pairs, is_argument).unwrap();
    let filters: Vec<_> = query.filters.iter().map(written::filter).collect();
    let filter = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(filters, [filter("\"a\"", "eq.1"), filter("\"b\"", "eq.2")]);
    assert_eq!(query.ranges[0].what.limit, Some(1));
    assert!(Query::parse([("a", "1")], |_| false).is_err());
}

#[test]
fn nul_and_endless_parameters_are_refused() {
    for (name, value) in [("a\0", "eq.1"), ("a", "eq.\0"), ("select", "\"\0\"")] {
        assert_eq!(one(name, value).unwrap_err().code, "PGRST100");
        assert_eq!(filter(name, value).unwrap_err().code, "PGRST100");
    }
    let long = "x".repeat(70_000);
    assert_eq!(one("a", &format!("eq.{long}")).unwrap_err().status.as_u16(), 414);
}

#[test]
fn a_filter_alone_is_no_other_parameter() {
    for name in ["select", "columns", "on_conflict", "order", "r.limit", "offset"] {
        assert!(filter(name, "eq.1").is_err(), "{name}");
    }
}
