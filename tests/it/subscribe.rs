//! Every check a subscription passes, and the text its client gets to see.

use serde_json::json;
use tokio_postgres::Client;
use walcast::hub::Subscription;
use walcast::subscribe::{Check, Column, Error, Operators, Refused, check};

use crate::cluster::{self, Database};

struct Fixture {
    client: Client,
    operators: Operators,
    columns: Vec<(String, u32, u32)>,
}

impl Fixture {
    /// A table with a column of each kind; `secret` is not readable.
    async fn create() -> Self {
        let client = Database::create().await.client().await;
        let table = "set statement_timeout = '20s';
            create domain positive as int check (value > 0);
            create type mood as enum ('sad', 'ok');
            create collation folding (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
            create table t (
                id int primary key, big int8, uid uuid, name text, code varchar(4), pad char(4),
                flag bool, doc json, at timestamptz, tags int[], p positive, mood mood, bin bytea,
                folded text collate folding, xml xml, num numeric, \"o\"\"dd\" text, secret text)";
        client.batch_execute(table).await.unwrap();
        let columns = client
            .query(
                "select attname::text, atttypid, attcollation from pg_attribute
                 where attrelid = 't'::regclass and attnum > 0 and attname <> 'secret'",
                &[],
            )
            .await
            .unwrap();
        let columns = columns.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
        Self { client, operators: Operators::default(), columns }
    }

    fn begin(&self, subscription: &Subscription) -> Result<Check, Refused> {
        let columns: Vec<_> = self
            .columns
            .iter()
            .map(|(name, type_oid, collation_oid)| Column {
                name,
                type_oid: *type_oid,
                collation_oid: *collation_oid,
            })
            .collect();
        check(&subscription.conditions, subscription.select.as_deref(), &columns)
    }

    /// `ok`, or the exception in the error text.
    async fn outcome(&self, subscription: &Subscription) -> String {
        let refused = match self.begin(subscription) {
            Ok(Check::Settled(_)) => return "ok".into(),
            Err(refused) => refused,
            Ok(Check::Unsettled(unsettled)) => {
                match unsettled.finish(&self.client, &self.operators).await {
                    Ok(_) => return "ok".into(),
                    Err(Error::Refused(refused)) => refused,
                    Err(error) => panic!("{error:?}"),
                }
            }
        };
        refused.to_string()
    }

    async fn check(&self, filter: &str, expected: &str) {
        let subscription = subscription(filter);
        assert_eq!(self.outcome(&subscription).await, expected, "{filter}");
    }
}

fn subscription(filter: &str) -> Subscription {
    Subscription::parse(&json!({"schema": "public", "table": "t", "filter": filter})).unwrap()
}

#[tokio::test]
async fn columns_must_exist_and_be_readable() {
    let fixture = Fixture::create().await;
    for column in ["nope", "secret", "ID", "id ", "", "id\"; drop table t; --"] {
        let expected = format!("ERROR P0001 (raise_exception) invalid column for filter {column}");
        fixture.check(&format!("{column}=eq.1"), &expected).await;
    }
    fixture.check("o\"dd=eq.1", "ok").await;
}

#[tokio::test]
async fn values_must_be_of_the_columns_type() {
    let fixture = Fixture::create().await;
    for (filter, expected) in [
        ("id=eq.7", "ok"),
        ("id=eq. 7 ", "ok"),
        (
            "id=eq.x",
            r#"22P02 (invalid_text_representation) invalid input syntax for type integer: "x""#,
        ),
        (
            "uid=eq.x",
            r#"22P02 (invalid_text_representation) invalid input syntax for type uuid: "x""#,
        ),
        (
            "uid=isdistinct.x",
            r#"22P02 (invalid_text_representation) invalid input syntax for type uuid: "x""#,
        ),
        (
            "uid=in.(6f9619ff-8b86-d011-b42d-00c04fc964ff,x)",
            r#"22P02 (invalid_text_representation) invalid input syntax for type uuid: "x""#,
        ),
        ("uid=eq.6F9619FF8B86D011B42D00C04FC964FF", "ok"),
        (
            "id=eq.2147483648",
            r#"22003 (numeric_value_out_of_range) value "2147483648" is out of range for type integer"#,
        ),
        (
            "at=gt.2024-02-30",
            r#"22008 (datetime_field_overflow) date/time field value out of range: "2024-02-30""#,
        ),
        (
            "at=gt.soon",
            r#"22007 (invalid_datetime_format) invalid input syntax for type timestamp with time zone: "soon""#,
        ),
        ("at=gt.2024-02-29T00:00:00Z", "ok"),
        (
            "mood=eq.happy",
            r#"22P02 (invalid_text_representation) invalid input value for enum mood: "happy""#,
        ),
        ("mood=lt.ok", "ok"),
        (
            "p=eq.0",
            r#"23514 (check_violation) value for domain positive violates check constraint "positive_check""#,
        ),
        ("p=eq.5", "ok"),
        ("id=in.(1,x", "never parsed"),
        ("id=in.({1)", r#"22P02 (invalid_text_representation) malformed array literal: "{{1}""#),
        ("id=in.({1,2},{3,4})", "ok"),
        ("id=in.(1,NULL)", "ok"),
        ("tags=eq.{1}", "ok"),
        ("name=eq.", "ok"),
        ("code=eq.longer than four", "ok"),
    ] {
        if expected == "never parsed" {
            continue;
        }
        let expected = if expected == "ok" { expected.into() } else { format!("ERROR {expected}") };
        fixture.check(filter, &expected).await;
    }
    let nul = fixture.outcome(&subscription("name=eq.a\0b")).await;
    assert!(nul.starts_with("ERROR 22021 (character_not_in_repertoire)"), "{nul}");
}

#[tokio::test]
async fn f86_lists_have_at_most_100_values() {
    let fixture = Fixture::create().await;
    let too_many = "ERROR P0001 (raise_exception) too many values for `in` filter. Maximum 100";
    let list = |value: &str, count: usize| vec![value; count].join(",");
    fixture.check(&format!("id=in.({})", list("1", 100)), "ok").await;
    fixture.check(&format!("id=in.({})", list("1", 101)), too_many).await;
    fixture.check(&format!("id=in.({})", list("\"1\"", 100)), "ok").await;
    fixture.check(&format!("id=in.({})", list("\"1\"", 101)), too_many).await;
    fixture.check(&format!("mood=in.({})", list("ok", 101)), too_many).await;
    fixture.check("id=in.()", "ok").await;
    fixture.check("mood=in.()", "ok").await;
}

#[tokio::test]
async fn is_takes_four_words_and_mostly_booleans() {
    let fixture = Fixture::create().await;
    let word = "ERROR P0001 (raise_exception) invalid value for is filter: must be null, true, false, or unknown";
    for value in ["NULL", "not null", "", "1"] {
        fixture.check(&format!("flag=is.{value}"), word).await;
    }
    for value in ["null", "true", "false", "unknown"] {
        fixture.check(&format!("flag=not.is.{value}"), "ok").await;
    }
    fixture.check("doc=is.null", "ok").await;
    let boolean = |value: &str, got: &str| {
        format!(
            "ERROR P0001 (raise_exception) is {value} filter requires a boolean column, got {got}"
        )
    };
    fixture.check("name=is.true", &boolean("true", "text")).await;
    fixture.check("code=is.unknown", &boolean("unknown", "character varying")).await;
    fixture.check("id=is.false", &boolean("false", "integer")).await;
}

#[tokio::test]
async fn patterns_need_text() {
    let fixture = Fixture::create().await;
    let text = |word: &str, got: &str| {
        format!(
            "ERROR P0001 (raise_exception) operator {word} requires a text-compatible column type, got {got}"
        )
    };
    for word in ["like", "ilike", "match", "imatch"] {
        for column in ["name", "code", "pad", "o\"dd"] {
            fixture.check(&format!("{column}={word}.a"), "ok").await;
        }
        for (column, type_name) in [
            ("id", "integer"),
            ("uid", "uuid"),
            ("doc", "json"),
            ("mood", "mood"),
            ("tags", "integer[]"),
        ] {
            fixture.check(&format!("{column}={word}.a"), &text(word, type_name)).await;
        }
    }
    let escape =
        "ERROR 22025 (invalid_escape_sequence) LIKE pattern must not end with escape character";
    fixture.check("name=like.a\\", escape).await;
    fixture.check("folded=ilike.a\\\\\\", escape).await;
    fixture.check("name=like.a\\\\", "ok").await;
    fixture.check("bin=like.a", "ok").await;
    fixture.check("bin=ilike.a", &text("ilike", "bytea")).await;
}

#[tokio::test]
async fn regular_expressions_must_be_valid() {
    let fixture = Fixture::create().await;
    for word in ["match", "imatch"] {
        let expected = format!(
            "ERROR P0001 (raise_exception) invalid regular expression for {word} filter: invalid regular expression: parentheses () not balanced"
        );
        fixture.check(&format!("name={word}.\"(\""), &expected).await;
    }
    fixture.check("name=match.\"^(a|b)+$\"", "ok").await;
}

#[tokio::test]
async fn operators_must_exist_for_the_type() {
    let fixture = Fixture::create().await;
    let none = |word: &str, column: &str, type_name: &str, symbol: &str| {
        format!(
            "ERROR P0001 (raise_exception) operator {word} is not supported on column {column} of type {type_name}: operator does not exist: {type_name} {symbol} {type_name}"
        )
    };
    fixture.check("doc=eq.{}", &none("eq", "doc", "json", "=")).await;
    fixture.check("doc=isdistinct.{}", &none("isdistinct", "doc", "json", "=")).await;
    fixture.check("xml=gt.<a/>", &none("gt", "xml", "xml", ">")).await;
    let outcome = fixture.outcome(&subscription("tags=in.({1})")).await;
    assert!(outcome.contains("operator in is not supported on column tags of type integer[]"));
    let folded = fixture.outcome(&subscription("folded=like.a%")).await;
    if cluster::version(&fixture.client).await >= 180_000 {
        assert_eq!(folded, "ok");
    } else {
        let refused = "nondeterministic collations are not supported for LIKE";
        assert!(folded.contains(refused), "{folded}");
    }
}

#[tokio::test]
async fn select_columns_must_be_readable() {
    let fixture = Fixture::create().await;
    let select = |columns: serde_json::Value| {
        Subscription::parse(&json!({"schema": "public", "table": "t", "select": columns})).unwrap()
    };
    assert_eq!(fixture.outcome(&select(json!(["id", "name"]))).await, "ok");
    for column in ["nope", "secret"] {
        assert_eq!(
            fixture.outcome(&select(json!(["id", column]))).await,
            format!("ERROR P0001 (raise_exception) invalid column for select {column}")
        );
    }
}

#[tokio::test]
async fn the_first_bad_condition_is_told() {
    let fixture = Fixture::create().await;
    fixture
        .check(
            "name=match.a,at=gt.soon,mood=eq.happy",
            r#"ERROR 22007 (invalid_datetime_format) invalid input syntax for type timestamp with time zone: "soon""#,
        )
        .await;
}

#[tokio::test]
async fn the_whole_text_a_client_sees() {
    let fixture = Fixture::create().await;
    let subscription = subscription("nope=eq.v");
    let outcome = fixture.outcome(&subscription).await;
    assert_eq!(
        subscription.exception(&outcome),
        r#"Unable to subscribe to changes with given parameters. An exception happened so please check your connect parameters: [event: *, schema: public, table: t, filters: [{"nope", "eq", "v", false}], select: nil]. Exception: ERROR P0001 (raise_exception) invalid column for filter nope"#
    );
    assert_eq!(
        subscription.no_such_table(),
        r#"Unable to subscribe to changes with given parameters. Please check Realtime is enabled for the given connect parameters: [event: *, schema: public, table: t, filters: [{"nope", "eq", "v", false}], select: nil]"#
    );
    assert_eq!(
        Refused::no_such_role("x").to_string(),
        r#"ERROR 42704 (undefined_object) role "x" does not exist"#
    );
}

#[tokio::test]
async fn ordinary_filters_cost_no_round_trip() {
    let fixture = Fixture::create().await;
    for filter in [
        "id=eq.7",
        "big=gt.-5,name=neq.x",
        "uid=eq.6F9619FF-8B86-D011-B42D-00C04FC964FF",
        "uid=in.(6f9619ff-8b86-d011-b42d-00c04fc964ff)",
        "name=in.(a, b c)",
        "name=ilike.A%",
        "flag=eq.true",
        "flag=is.null",
        "num=lte.1.50",
        "",
    ] {
        let check = fixture.begin(&subscription(filter)).unwrap();
        assert!(matches!(check, Check::Settled(_)), "{filter}");
    }
    for filter in ["id=eq.007", "name=match.a", "mood=eq.ok", "folded=eq.a", "name=in.(\"a\")"] {
        let check = fixture.begin(&subscription(filter)).unwrap();
        assert!(matches!(check, Check::Unsettled(_)), "{filter}");
    }
}

#[tokio::test]
async fn a_lost_connection_is_no_refusal() {
    let fixture = Fixture::create().await;
    let pid: i32 = fixture.client.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    let Ok(Check::Unsettled(unsettled)) = fixture.begin(&subscription("mood=eq.ok")) else {
        panic!("an enum's label is for Postgres to check");
    };
    let _ = fixture.client.execute("select pg_terminate_backend($1)", &[&pid]).await;
    let result = unsettled.finish(&fixture.client, &fixture.operators).await;
    assert!(matches!(result, Err(Error::Postgres(_))), "{result:?}");
}
