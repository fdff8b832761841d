//! What is written, as SQL text.

use bytes::Bytes;

use super::*;
use crate::rest::request::Field;
use crate::rest::schema::Column;

fn column(attnum: i16, name: &str, type_sql: &str, default: Option<&str>) -> Column {
    Column {
        attnum,
        name: name.into(),
        type_sql: type_sql.into(),
        base_type: type_sql.into(),
        category: 'U',
        default: default.map(Into::into),
        ..Column::default()
    }
}

/// `api.stories (id, title, made)`, keyed by `id`.
fn stories() -> Relation {
    Relation {
        oid: 1,
        schema: "api".into(),
        name: "stories".into(),
        columns: [
            column(1, "id", "integer", Some("nextval('api.stories_id_seq'::regclass)")),
            column(2, "title", "text", None),
            column(3, "made", "date", Some("now()")),
        ]
        .into(),
        primary_key: ["id".into()].into(),
        ..Relation::default()
    }
}

fn object(text: &'static str, keys: &[&str]) -> Body {
    let keys = keys.iter().map(|key| String::from(*key)).collect();
    Body::Object { text: Bytes::from_static(text.as_bytes()), keys }
}

fn array(text: &'static str, keys: &[&str], len: usize, is_uniform: bool) -> Body {
    let keys = keys.iter().map(|key| String::from(*key)).collect();
    Body::Array { text: Bytes::from_static(text.as_bytes()), keys, len, is_uniform }
}

fn filter(column: &str, operator: Operator, value: &str) -> At<Condition> {
    let field = Field { name: column.into(), path: Vec::new() };
    let test = Test::Compare { operator, quantifier: None, value: value.into() };
    At { path: Vec::new(), what: Condition::Test { field, test } }
}

fn insert(body: &Body) -> Action<'_> {
    Action::Insert { body, missing: Missing::Null, resolution: None }
}

fn render(action: Action<'_>, query: &Query, change: impl Fn(&mut Writing<'_>)) -> String {
    let (schema, relation) = (Schema::default(), stories());
    let mut writing = Writing {
        schema: &schema,
        relation: &relation,
        query,
        action,
        form: Form::None,
        count: None,
        wants_location: false,
    };
    change(&mut writing);
    match write(&writing) {
        Ok(statement) => {
            let parameters = statement.parameters.iter();
            let parameters: Vec<_> = parameters
                .map(|value| String::from_utf8_lossy(value.as_deref().unwrap()).into_owned())
                .collect();
            format!("{} -- {}", statement.text, parameters.join(", "))
        }
        Err(problem) => {
            format!("{} {} {}", problem.status.as_u16(), problem.code, problem.message)
        }
    }
}

#[track_caller]
fn check(action: Action<'_>, query: &Query, expected: &str) {
    assert_eq!(render(action, query, |_| ()), expected);
}

/// The part that writes, without what it returns.
#[track_caller]
fn check_source(action: Action<'_>, query: &Query, expected: &str) {
    let text = render(action, query, |_| ());
    let source = text.split(" returning ").next().unwrap();
    assert_eq!(source.strip_prefix("with source as ("), Some(expected));
}

fn list(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| String::from(*name)).collect()
}

#[test]
fn a_minimal_insert_returns_nothing_that_must_be_read() {
    check(
        insert(&object("{…}", &["id", "title"])),
        &Query::default(),
        r#"with source as (insert into "api"."stories" as t0 ("id", "title") select r."id", r."title" from pg_catalog.json_to_record($1::pg_catalog.json) as r("id" integer, "title" text) returning 1) select null::pg_catalog.text as body, pg_catalog.count(*)::pg_catalog.text as page_total, null::pg_catalog.text as total, pg_catalog.count(*)::pg_catalog.text as inserted, null::pg_catalog.text as location from source -- {…}"#,
    );
}

#[test]
fn what_is_returned_is_what_is_asked_for_and_the_key_of_a_location() {
    let query = Query::from_text("select=made,name:title").unwrap();
    let body = object("{…}", &["title"]);
    let text = render(insert(&body), &query, |writing| writing.form = Form::Array);
    assert!(text.contains(r#" returning "title", "made") select"#), "{text}");
    assert!(
        text.contains(r#"(select t0."made" as "made", t0."title" as "name" from "source" as t0"#),
        "{text}"
    );
    let text = render(insert(&body), &query, |writing| writing.wants_location = true);
    assert!(text.contains(r#" returning "id") select null::pg_catalog.text as body"#), "{text}");
    assert!(text.ends_with(" as location from source -- {…}, id="), "{text}");
}

#[test]
fn the_same_text_serves_any_number_of_rows() {
    let query = Query::default();
    let expected = r#"insert into "api"."stories" as t0 ("title") select r."title" from pg_catalog.json_to_recordset($1::pg_catalog.json) as r("title" text)"#;
    check_source(insert(&array("[…]", &["title"], 2, true)), &query, expected);
    check_source(insert(&array("[…]", &["title"], 900, true)), &query, expected);
    let expected = r#"insert into "api"."stories" as t0 select from pg_catalog.generate_series(1, $1::pg_catalog.int4)"#;
    check_source(insert(&array("[{},{}]", &[], 2, true)), &query, expected);
}

#[test]
fn a_default_is_evaluated_only_for_rows_that_need_it() {
    let body = array("[…]", &["id", "title"], 2, false);
    let insert = Action::Insert { body: &body, missing: Missing::Default, resolution: None };
    let query = Query { columns: Some(list(&["id", "title", "made"])), ..Query::default() };
    // No row has `made`: Postgres fills it in.
    check_source(
        insert,
        &query,
        r#"insert into "api"."stories" as t0 ("id", "title") select case when k.keys operator(pg_catalog.?) $1::pg_catalog.text then (select x."id" from pg_catalog.json_to_record(e.o) as x("id" integer)) else (nextval('api.stories_id_seq'::regclass))::integer end, r."title" from pg_catalog.json_array_elements($2::pg_catalog.json) as e(o), lateral (select e.o::pg_catalog.jsonb) as k(keys), lateral pg_catalog.json_to_record(e.o) as r("title" text)"#,
    );
}

#[test]
fn an_upsert_sets_what_is_given() {
    let body = object("{…}", &["id", "title"]);
    let upsert = |resolution| Action::Insert {
        body: &body,
        missing: Missing::Null,
        resolution: Some(resolution),
    };
    let insert = r#"insert into "api"."stories" as t0 ("id", "title") select r."id", r."title" from pg_catalog.json_to_record($1::pg_catalog.json) as r("id" integer, "title" text)"#;
    let merge = r#" on conflict ("id") do update set "id" = excluded."id", "title" = excluded."title" where pg_catalog.set_config('walcast.rest_merged', (coalesce(nullif(pg_catalog.current_setting('walcast.rest_merged', true), ''), '0')::pg_catalog.int8 + 1)::pg_catalog.text, true) is not null"#;
    let query = Query::default();
    check_source(upsert(Resolution::MergeDuplicates), &query, &format!("{insert}{merge}"));
    let query = Query { on_conflict: Some(list(&["title", "made"])), ..Query::default() };
    let ignore = r#" on conflict ("title", "made") do nothing"#;
    check_source(upsert(Resolution::IgnoreDuplicates), &query, &format!("{insert}{ignore}"));
    let query = Query { filters: vec![filter("id", Operator::Eq, "1")], ..Query::default() };
    let only = r#" where r."id" = $2"#;
    check_source(Action::Put { body: &body }, &query, &format!("{insert}{only}{merge}"));
}

#[test]
fn updates_and_deletes_name_their_rows() {
    let query = Query { filters: vec![filter("title", Operator::Gt, "1")], ..Query::default() };
    let body = object("{…}", &["made"]);
    check_source(
        Action::Update { body: &body },
        &query,
        r#"update "api"."stories" as t0 set ("made") = (select r."made" from pg_catalog.json_to_record($1::pg_catalog.json) as r("made" date)) where (t0."title" > $2)"#,
    );
    let expected = r#"delete from "api"."stories" as t0 where (t0."title" > $1)"#;
    check_source(Action::Delete, &query, expected);
}

#[test]
fn no_row_is_no_write() {
    let query = Query::default();
    let nothing = "select '[]'::pg_catalog.text as body, '0'::pg_catalog.text as page_total, null::pg_catalog.text as total, '0'::pg_catalog.text as inserted, null::pg_catalog.text as location -- ";
    let body = array("[]", &[], 0, true);
    assert_eq!(render(insert(&body), &query, |writing| writing.form = Form::Array), nothing);
    check(
        Action::Update { body: &object("{}", &[]) },
        &query,
        "select null::pg_catalog.text as body, '0'::pg_catalog.text as page_total, null::pg_catalog.text as total, null::pg_catalog.text as inserted, null::pg_catalog.text as location -- ",
    );
}

#[test]
fn rows_of_different_shapes_need_columns() {
    let body = array("[…]", &["id", "title"], 2, false);
    check(insert(&body), &Query::default(), "400 PGRST102 All object keys must match");
    let query = Query { columns: Some(list(&["id"])), ..Query::default() };
    let expected = r#"insert into "api"."stories" as t0 ("id") select r."id" from pg_catalog.json_to_recordset($1::pg_catalog.json) as r("id" integer)"#;
    check_source(insert(&body), &query, expected);
}
