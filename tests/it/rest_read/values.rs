//! Values of all types under all operators.

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use walcast::rest::statement::Form;

use super::World;

/// What a value is compared as must be what a quoted literal would be.
#[tokio::test]
async fn values_are_read_as_quoted_literals() {
    const TYPES: [&str; 36] = [
        "smallint",
        "integer",
        "bigint",
        "numeric",
        "real",
        "double precision",
        "money",
        "boolean",
        "text",
        "varchar(20)",
        "char(3)",
        "name",
        "bytea",
        "date",
        "time",
        "timetz",
        "timestamp",
        "timestamptz",
        "interval",
        "uuid",
        "inet",
        "macaddr",
        "bit(3)",
        "point",
        "box",
        "json",
        "jsonb",
        "xml",
        "tsvector",
        "int4range",
        "int4multirange",
        "integer[]",
        "text[]",
        "mood",
        "pair",
        "positive",
    ];
    const OPERATORS: [(&str, &str); 26] = [
        ("eq.", "= "),
        ("neq.", "<> "),
        ("gt.", "> "),
        ("gte.", ">= "),
        ("lt.", "< "),
        ("lte.", "<= "),
        ("like.", "like "),
        ("ilike.", "ilike "),
        ("match.", "~ "),
        ("imatch.", "~* "),
        ("isdistinct.", "is distinct from "),
        ("cs.", "@> "),
        ("cd.", "<@ "),
        ("ov.", "&& "),
        ("sl.", "<< "),
        ("sr.", ">> "),
        ("nxr.", "&< "),
        ("nxl.", "&> "),
        ("adj.", "-|- "),
        ("eq(any).", "= any "),
        ("gt(all).", "> all "),
        ("like(any).", "like any "),
        ("is.true", "is true"),
        ("is.null", "is null"),
        ("is.unknown", "is unknown"),
        ("is.not_null", "is not null"),
    ];
    const VALUES: [&str; 9] =
        ["1", "a", "{1}", "[1,2)", "{\"a\": 1}", "2026-01-01", "(1,2)", "", "ok"];
    let columns: Vec<String> =
        (0..).zip(TYPES).map(|(number, name): (u32, _)| format!("c{number} {name}")).collect();
    let world = World::of(&format!(
        "create type mood as enum ('ok', 'bad');
         create type pair as (a int, b text);
         create domain positive as int check (value > 0);
         create table t ({});
         insert into t default values;
         insert into t (c0, c1, c2, c3, c8, c25, c26, c29, c31, c32, c33, c34, c35) values
            (1, 1, 1, 1, 'a', '1', '1', '[1,2)', '{{1}}', '{{1}}', 'ok', '(1,2)', 1);
         grant select on t to rest_read_role;",
        columns.join(", ")
    ))
    .await;
    let mut compared = 0_u32;
    for number in 0..TYPES.len() {
        for (word, operator) in OPERATORS {
            for value in VALUES {
                let is_test = operator.starts_with("is ") && !word.ends_with('.');
                let literal = match operator {
                    _ if is_test => String::new(),
                    _ if operator.ends_with("any ") || operator.ends_with("all ") => {
                        format!("('{value}')")
                    }
                    _ => format!("'{value}'"),
                };
                let sql = format!("select count(*) from t where c{number} {operator}{literal}");
                let expected = match world.reader.query_one(&sql, &[]).await {
                    Ok(row) => Ok(u64::try_from(row.get::<_, i64>(0)).unwrap()),
                    Err(error) => Err(error.code().unwrap().code().to_owned()),
                };
                let value = if is_test { "" } else { value };
                let value = percent_encode(value.as_bytes(), NON_ALPHANUMERIC);
                let request = format!("t?select=c1&c{number}={word}{value}");
                let statement = world.statement(&request, Form::None, None).unwrap();
                let answer = world.answer(&statement).await.map(|answer| answer.page_total);
                match (&answer, &expected) {
                    (Ok(answer), Ok(expected)) => {
                        assert_eq!(answer, expected, "{request} as {sql}");
                        compared += 1;
                    }
                    // What is wrong with the operator is found before what is wrong with the value.
                    (Err(code), Err(expected)) => {
                        let is_of_value = expected.starts_with("22") && code.starts_with("42");
                        assert!(code == expected || is_of_value, "{request} as {sql}: {code}");
                    }
                    (answer, expected) => panic!("{request} as {sql}: {answer:?}, {expected:?}"),
                }
                if is_test {
                    break;
                }
            }
        }
    }
    assert!(compared > 500, "{compared} comparisons had an answer");
}
