//! Random requests.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use walcast::rest::statement::{Count, Form};

use super::World;

/// Requests in which names and values are in place, wrong, or not names at all.
fn requests() -> impl Strategy<Value = String> {
    let odd = || "[ -~é\u{1F600}]{0,12}";
    let column = || {
        prop_oneof![
            20 => Just("id".to_owned()),
            12 => select(vec!["name", "data", "tags", "title", "due"]).prop_map(str::to_owned),
            1 => odd().prop_map(|name| format!("\"{name}\"")),
        ]
    };
    let field = move || {
        let step = (
            select(vec!["->", "->>"]),
            prop_oneof![
                Just("0".to_owned()),
                Just("-2".to_owned()),
                Just("city".to_owned()),
                odd().prop_map(|key| format!("\"{key}\"")),
            ],
        );
        (column(), vec(step, 0..3)).prop_map(|(column, steps)| {
            steps.into_iter().fold(column, |field, (arrow, to)| field + arrow + &to)
        })
    };
    let cast = prop_oneof![
        8 => Just(String::new()),
        2 => select(vec!["::text", "::int", "::numeric", "::jsonb", "::char", "::bit varying", "::timestamptz", "::int[]", "::record", "::anyelement", "::cstring", "::regclass", "::void"]).prop_map(str::to_owned),
        1 => odd().prop_map(|name| format!("::{name}")),
    ];
    let alias = || {
        prop_oneof![
            4 => Just(String::new()),
            1 => odd().prop_map(|name| format!("\"{name}\":")),
        ]
    };
    let item = (alias(), field(), cast).prop_map(|(alias, field, cast)| alias + &field + &cast);
    let leaf = prop_oneof![3 => item.boxed(), 1 => Just("*".to_owned())];
    let item = leaf.prop_recursive(3, 12, 3, move |inner| {
        let target = select(vec![
            "clients",
            "projects",
            "tasks",
            "users",
            "client_id",
            "parent",
            "budgets",
            "members",
            "users!members",
            "clients!projects_client_id_fkey",
            "tasks!parent",
        ]);
        let mark = select(vec!["", "!inner", "!left"]);
        let spread = select(vec!["", "", "..."]);
        (spread, target, mark, vec(inner, 0..4)).prop_map(|(spread, target, mark, items)| {
            format!("{spread}{target}{mark}({})", items.join(","))
        })
    });
    let operator = select(vec![
        "eq",
        "neq",
        "gt",
        "gte",
        "lt",
        "lte",
        "like",
        "ilike",
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
        "plfts(english)",
        "phfts",
        "wfts",
        "in",
        "is",
        "eq(any)",
        "like(all)",
        "not.eq",
        "not.in",
    ]);
    let value = prop_oneof![
        select(vec!["1", "null", "true", "{a}", "(1,2)", "(\"a\",b)", "[1,2]", "a*", "{}", "()"])
            .prop_map(str::to_owned),
        odd().prop_map(String::from),
    ];
    let path = || select(vec!["", "", "", "clients.", "projects.", "projects.tasks.", "parent."]);
    let filter = (
        path(),
        prop_oneof![6 => field().boxed(), 1 => Just("clients".to_owned())],
        operator,
        value,
    )
        .prop_map(|(path, field, operator, value)| format!("{path}{field}={operator}.{value}"));
    let order = (path(), vec((field(), select(vec!["", ".desc", ".asc.nullsfirst"])), 1..3))
        .prop_map(|(path, fields)| {
            let fields: Vec<String> = fields.into_iter().map(|(field, how)| field + how).collect();
            format!("{path}order={}", fields.join(","))
        });
    let by_related = Just("order=clients(name),parent(title).desc".to_owned());
    let range = (
        path(),
        select(vec!["limit", "offset"]),
        select(vec!["0", "1", "18446744073709551615", "7"]),
    )
        .prop_map(|(path, what, rows)| format!("{path}{what}={rows}"));
    let other =
        prop_oneof![4 => filter.boxed(), 1 => order.boxed(), 1 => range.boxed(), 1 => by_related];
    let relation = select(vec!["clients", "projects", "tasks", "users", "open_projects"]);
    (relation, vec(item, 0..5), vec(other, 0..3)).prop_map(|(relation, items, others)| {
        let encode = |text: &str| {
            text.replace('%', "%25").replace('&', "%26").replace('+', "%2B").replace('#', "%23")
        };
        let asked = format!("{relation}?select={}", encode(&items.join(",")));
        others.iter().fold(asked, |asked, other| asked + "&" + &encode(other))
    })
}

/// Whatever is asked, the SQL is well-formed and names what there is.
#[tokio::test]
async fn f83_no_request_makes_sql_that_postgres_cannot_read() {
    let world = World::create().await;
    let mut runner = TestRunner::default();
    let strategy = requests();
    let (mut answered, mut refused) = (0, 0);
    for _ in 0..2500 {
        let request = strategy.new_tree(&mut runner).unwrap().current();
        let count = Some(Count::Exact);
        let Ok(statement) = world.statement(&request, Form::Array, count) else { continue };
        match world.answer(&statement).await {
            Ok(_) => answered += 1,
            Err(code) => {
                refused += 1;
                // The text of a search and of a path have a syntax of their own.
                let is_search = request.contains("fts");
                let is_known = match code.as_str() {
                    "42601" => is_search,
                    // Operators, functions and types that do not fit each other.
                    "42883" | "42804" | "42846" | "42704" | "42725" | "0A000" => true,
                    // A cast to regclass looks for a relation.
                    "42P01" | "42602" => request.contains("regclass"),
                    code => code.starts_with("22"),
                };
                assert!(is_known, "{code}: {request}\n{}", statement.text);
            }
        }
    }
    assert!(answered > 100 && refused > 10, "{answered} answered, {refused} refused");
}
