//! The SQL of each shape, on a schema made by hand.

use std::sync::Arc;

use super::*;
use crate::rest::request::{
    At, Condition, Embed, Field, Is, Item, Key, Operator, Order, Quantifier, Range, Search, Step,
    Test,
};
use crate::rest::schema::{Column, ForeignKey};

/// A relation of `public`: columns as `name type`, the first ones being the key.
fn relation(oid: u32, name: &str, columns: &[(&str, &str)], key: &[&str]) -> Arc<Relation> {
    let columns = columns.iter().map(|(name, base_type)| Column {
        name: (*name).into(),
        base_type: (*base_type).into(),
        type_sql: (*base_type).into(),
        ..Column::default()
    });
    Arc::new(Relation {
        oid,
        schema: "public".into(),
        name: name.into(),
        columns: columns.collect(),
        primary_key: key.iter().map(|name| (*name).into()).collect(),
        ..Relation::default()
    })
}

/// Clients have projects, projects have tasks; users are assigned to projects; tasks have a parent.
fn schema() -> Schema {
    let relations = [
        relation(1, "clients", &[("id", "int4"), ("name", "text"), ("data", "jsonb")], &["id"]),
        relation(
            2,
            "projects",
            &[("id", "int4"), ("name", "text"), ("client_id", "int4"), ("tags", "_text")],
            &["id"],
        ),
        relation(3, "users", &[("id", "int4"), ("name", "text")], &["id"]),
        relation(
            4,
            "assigned",
            &[("user_id", "int4"), ("project_id", "int4")],
            &["user_id", "project_id"],
        ),
        relation(
            5,
            "tasks",
            &[("id", "int4"), ("project_id", "int4"), ("parent", "int4"), ("words", "tsvector")],
            &["id"],
        ),
    ];
    let key = |name: &str, from: u32, column: &str, to: u32, in_primary_key| ForeignKey {
        name: name.into(),
        from,
        from_columns: [column.into()].into(),
        to,
        to_columns: ["id".into()].into(),
        one_to_one: false,
        in_primary_key,
    };
    let keys = [
        key("projects_client_id_fkey", 2, "client_id", 1, false),
        key("assigned_user_id_fkey", 4, "user_id", 3, true),
        key("assigned_project_id_fkey", 4, "project_id", 2, true),
        key("tasks_project_id_fkey", 5, "project_id", 2, false),
        key("tasks_parent_fkey", 5, "parent", 5, false),
    ];
    let mut schema = Schema::default();
    for relation in relations {
        schema.by_oid.insert(relation.oid, Arc::clone(&relation));
        let name = (relation.schema.clone(), relation.name.clone());
        schema.relations.insert(name, relation);
    }
    for key in keys.map(Arc::new) {
        schema.foreign_keys.entry(key.from).or_default().push(Arc::clone(&key));
        if key.to != key.from {
            schema.foreign_keys.entry(key.to).or_default().push(key);
        }
    }
    schema
}

fn field(name: &str) -> Field {
    Field { name: name.to_owned(), path: Vec::new() }
}

fn column(name: &str) -> Item {
    Item::Field { field: field(name), alias: None, cast: None }
}

fn here<T>(what: T) -> At<T> {
    At { path: Vec::new(), what }
}

fn test(name: &str, test: Test) -> Condition {
    Condition::Test { field: field(name), test }
}

fn eq(name: &str, value: &str) -> Condition {
    let value = value.to_owned();
    test(name, Test::Compare { operator: Operator::Eq, quantifier: None, value })
}

/// The statement without what is the same in all: from `from (` on, and its parameters.
fn check(relation: &str, query: &Query, expected: &str) {
    let schema = schema();
    let relation = schema.relation("public", relation).unwrap();
    let mut sql = Sql::new();
    let result = Selection::resolve(&schema, relation, query, Some(1000))
        .map(|selection| selection.render(Source::Relation, true, &mut sql));
    let text = match result {
        Ok(()) => {
            let statement = sql.finish();
            let values = statement
                .parameters
                .iter()
                .map(|value| String::from_utf8(value.as_ref().unwrap().to_vec()).unwrap());
            let values: Vec<String> = values.collect();
            format!("{} {values:?}", statement.text)
        }
        Err(problem) => format!("{} {problem}", problem.status.as_u16()),
    };
    assert_eq!(text, expected);
}

#[test]
fn all_columns_of_the_rows_that_match() {
    let query = Query { filters: vec![here(eq("id", "1"))], ..Query::default() };
    check(
        "projects",
        &query,
        r#"select t0.* from "public"."projects" as t0 where (t0."id" = $1) limit 1000 ["1"]"#,
    );
}

#[test]
fn some_columns_some_rows_in_an_order() {
    let order = |name, descending, nulls_first| Order {
        relation: None,
        field: field(name),
        descending,
        nulls_first,
    };
    let query = Query {
        select: vec![
            column("id"),
            Item::Field {
                field: field("name"),
                alias: Some("title".to_owned()),
                cast: Some("text".to_owned()),
            },
        ],
        orders: vec![here(vec![order("name", true, Some(false)), order("id", false, None)])],
        ranges: vec![
            here(Range { limit: Some(5000), offset: None }),
            here(Range { limit: None, offset: Some(20) }),
        ],
        ..Query::default()
    };
    check(
        "projects",
        &query,
        r#"select t0."id" as "id", cast(t0."name" as "text") as "title" from "public"."projects" as t0 where true order by t0."name" desc nulls last, t0."id" limit $1::bigint offset $2::bigint ["1000", "20"]"#,
    );
}

#[test]
fn steps_into_json() {
    let step = |as_text, to| Step { as_text, to };
    let path = vec![
        step(false, Key::Name("a".to_owned())),
        step(false, Key::Index(-1)),
        step(true, Key::Name("b".to_owned())),
    ];
    let inside = |name: &str| Field { name: name.to_owned(), path: path.clone() };
    let query = Query {
        select: vec![Item::Field { field: inside("data"), alias: None, cast: None }],
        ..Query::default()
    };
    check(
        "clients",
        &query,
        r#"select (t0."data" -> $1::pg_catalog.text -> $2::integer ->> $3::pg_catalog.text) as "b" from "public"."clients" as t0 where true limit 1000 ["a", "-1", "b"]"#,
    );
    let index = Field { name: "tags".to_owned(), path: vec![step(false, Key::Index(0))] };
    let query = Query {
        select: vec![Item::Field { field: index, alias: None, cast: None }],
        ..Query::default()
    };
    check(
        "projects",
        &query,
        r#"select (pg_catalog.to_jsonb(t0."tags") -> $1::integer) as "tags" from "public"."projects" as t0 where true limit 1000 ["0"]"#,
    );
}

#[test]
fn a_tree_of_conditions() {
    let query = Query {
        select: vec![column("id")],
        filters: vec![
            here(Condition::Or(vec![
                eq("id", "1"),
                Condition::And(vec![
                    test("name", Test::In(vec!["a".to_owned(), "b".to_owned()])),
                    Condition::Not(Box::new(test("client_id", Test::Is(Is::Null)))),
                ]),
            ])),
            here(test(
                "name",
                Test::Compare {
                    operator: Operator::Like,
                    quantifier: Some(Quantifier::All),
                    value: "{a%,%b}".to_owned(),
                },
            )),
        ],
        ..Query::default()
    };
    check(
        "projects",
        &query,
        r#"select t0."id" as "id" from "public"."projects" as t0 where ((t0."id" = $1) or ((t0."name" = any ($2)) and (not (t0."client_id" is null)))) and (t0."name" like all ($3)) limit 1000 ["1", "{\"a\",\"b\"}", "{a%,%b}"]"#,
    );
}

#[test]
fn text_search_of_text_and_of_a_tsvector() {
    let search = |name: &str, config: Option<&str>| {
        here(test(
            name,
            Test::Search {
                kind: Search::Web,
                config: config.map(str::to_owned),
                value: "x".to_owned(),
            },
        ))
    };
    let select = vec![column("id")];
    let query =
        Query { select, filters: vec![search("words", Some("english"))], ..Query::default() };
    check(
        "tasks",
        &query,
        r#"select t0."id" as "id" from "public"."tasks" as t0 where (t0."words" @@ pg_catalog.websearch_to_tsquery($1::pg_catalog.regconfig, $2::pg_catalog.text)) limit 1000 ["english", "x"]"#,
    );
    let query = Query { filters: vec![search("name", None)], ..query };
    check(
        "projects",
        &query,
        r#"select t0."id" as "id" from "public"."projects" as t0 where (pg_catalog.to_tsvector(t0."name") @@ pg_catalog.websearch_to_tsquery($1::pg_catalog.text)) limit 1000 ["x"]"#,
    );
}

#[test]
fn unknown_columns_are_named() {
    let missing = "400 42703: column projects.nope does not exist";
    let query = Query { select: vec![column("nope")], ..Query::default() };
    check("projects", &query, missing);
    let query = Query { filters: vec![here(eq("nope", "1"))], ..Query::default() };
    check("projects", &query, missing);
    let order =
        Order { relation: None, field: field("nope"), descending: false, nulls_first: None };
    let query = Query { orders: vec![here(vec![order])], ..Query::default() };
    check("projects", &query, missing);
}

#[test]
fn a_name_that_sql_cannot_quote_is_refused() {
    let alias = |alias: &str| Query {
        select: vec![Item::Field { field: field("id"), alias: Some(alias.to_owned()), cast: None }],
        ..Query::default()
    };
    let refused = "400 PGRST100: failed to parse select parameter";
    check("projects", &alias(""), refused);
    check("projects", &alias("a\0b"), refused);
}

#[test]
fn what_is_about_no_embedding_is_refused() {
    let query = Query {
        filters: vec![At { path: vec!["clients".to_owned()], what: eq("id", "1") }],
        ..Query::default()
    };
    let expected = "400 PGRST108: 'clients' is not an embedded resource in this request";
    check("projects", &query, expected);
}

fn embed(target: &str, items: Vec<Item>) -> Embed {
    Embed { target: target.to_owned(), alias: None, hint: None, inner: false, spread: false, items }
}

fn at<T>(path: &str, what: T) -> At<T> {
    At { path: path.split('.').map(str::to_owned).collect(), what }
}

fn by(relation: Option<&str>, column: &str) -> Order {
    let relation = relation.map(str::to_owned);
    Order { relation, field: field(column), descending: false, nulls_first: None }
}

#[test]
fn what_is_embedded_is_a_subquery_of_the_list() {
    let select = vec![column("id"), Item::Embed(embed("clients", vec![column("name")]))];
    check(
        "projects",
        &Query { select, ..Query::default() },
        r#"select t0."id" as "id", (select pg_catalog.row_to_json(r.*) from (select t1."name" as "name" from "public"."clients" as t1 where t1."id" = t0."client_id" limit 1) as r) as "clients" from "public"."projects" as t0 where true limit 1000 []"#,
    );
    let users = Embed { alias: Some("team".to_owned()), ..embed("users", vec![Item::All]) };
    let query = Query {
        select: vec![Item::Embed(users)],
        filters: vec![at("team", eq("name", "Uma"))],
        orders: vec![at("team", vec![by(None, "name")])],
        ranges: vec![at("team", Range { limit: Some(3), offset: None })],
        ..Query::default()
    };
    check(
        "projects",
        &query,
        r#"select (select coalesce(pg_catalog.json_agg(r.*), '[]') from (select t1.* from "public"."users" as t1 cross join "public"."assigned" as t2 where t2."project_id" = t0."id" and t1."id" = t2."user_id" and (t1."name" = $1) order by t1."name" limit $2::bigint) as r) as "team" from "public"."projects" as t0 where true limit 1000 ["Uma", "3"]"#,
    );
}

#[test]
fn what_must_be_there_is_joined_if_it_is_one() {
    let inner = |target: &str| Embed { inner: true, ..embed(target, vec![column("id")]) };
    let query = Query {
        select: vec![Item::Embed(inner("clients")), Item::Embed(inner("tasks"))],
        filters: vec![at("clients", eq("name", "Ada"))],
        ..Query::default()
    };
    check(
        "projects",
        &query,
        r#"select pg_catalog.row_to_json(t1.*) as "clients", (select coalesce(pg_catalog.json_agg(r.*), '[]') from (select t2."id" as "id" from "public"."tasks" as t2 where t2."project_id" = t0."id" limit 1000) as r) as "tasks" from "public"."projects" as t0 join lateral (select t3."id" as "id" from "public"."clients" as t3 where t3."id" = t0."client_id" and (t3."name" = $1)) as t1 on true where true and exists (select from "public"."tasks" as t4 where t4."project_id" = t0."id") limit 1000 ["Ada"]"#,
    );
}

#[test]
fn an_order_by_what_is_embedded_needs_its_column() {
    let query = Query {
        select: vec![Item::Embed(embed("clients", vec![column("id")]))],
        orders: vec![here(vec![by(None, "name"), by(Some("clients"), "name")])],
        ..Query::default()
    };
    check(
        "projects",
        &query,
        r#"select t1.j as "clients" from "public"."projects" as t0 left join lateral (select (select pg_catalog.row_to_json(r.*) from (select t2."id" as "id") as r) as j, t2."name" as o1 from "public"."clients" as t2 where t2."id" = t0."client_id") as t1 on true where true order by t0."name", t1.o1 limit 1000 []"#,
    );
}

#[test]
fn what_is_spread_has_columns_of_its_own() {
    let clients = Embed { spread: true, ..embed("clients", vec![column("name")]) };
    let projects =
        Embed { spread: true, ..embed("projects", vec![column("id"), Item::Embed(clients)]) };
    check(
        "tasks",
        &Query { select: vec![Item::Embed(projects)], ..Query::default() },
        r#"select t1.c0 as "id", t1.c1 as "name" from "public"."tasks" as t0 left join lateral (select t2."id" as c0, t3.c0 as c1 from "public"."projects" as t2 left join lateral (select t4."name" as c0 from "public"."clients" as t4 where t4."id" = t2."client_id") as t3 on true where t2."id" = t0."project_id") as t1 on true where true limit 1000 []"#,
    );
}

#[test]
fn nothing_of_an_empty_embedding_but_whether_it_is_there() {
    let query = Query {
        select: vec![column("id"), Item::Embed(embed("tasks", Vec::new()))],
        filters: vec![here(Condition::Or(vec![
            test("tasks", Test::Is(Is::Null)),
            test("tasks", Test::Is(Is::NotNull)),
        ]))],
        ..Query::default()
    };
    check(
        "projects",
        &query,
        r#"select t0."id" as "id" from "public"."projects" as t0 where ((not exists (select from "public"."tasks" as t1 where t1."project_id" = t0."id")) or (exists (select from "public"."tasks" as t2 where t2."project_id" = t0."id"))) limit 1000 []"#,
    );
}

#[test]
fn rows_of_another_source_have_the_columns_that_are_read() {
    let schema = schema();
    let relation = schema.relation("public", "projects").unwrap();
    let query = Query {
        select: vec![column("name"), Item::Embed(embed("clients", vec![column("id")]))],
        filters: vec![here(eq("tags", "{a}"))],
        orders: vec![here(vec![by(None, "id")])],
        ..Query::default()
    };
    let selection = Selection::resolve(&schema, relation, &query, None).unwrap();
    assert_eq!(selection.columns(), ["id", "name", "client_id"]);
    let mut sql = Sql::new();
    selection.render(Source::Named("source"), false, &mut sql);
    assert_eq!(
        sql.finish().text,
        r#"select t0."name" as "name", (select pg_catalog.row_to_json(r.*) from (select t1."id" as "id" from "public"."clients" as t1 where t1."id" = t0."client_id" limit 1) as r) as "clients" from "source" as t0 where true order by t0."id""#
    );
    let all = Query::default();
    let selection = Selection::resolve(&schema, relation, &all, None).unwrap();
    assert_eq!(selection.columns(), ["id", "name", "client_id", "tags"]);
    let mut sql = Sql::new();
    selection.render(Source::Named("source"), false, &mut sql);
    assert!(sql.finish().text.starts_with(r#"select t0."id" as "id", t0."name" as "name","#));
}

#[test]
fn a_condition_alone() {
    let schema = schema();
    let relation = schema.relation("public", "projects").unwrap();
    let mut sql = Sql::new();
    condition(relation, &Query::default(), &mut sql).unwrap();
    sql.push(" / ");
    let filters = vec![here(eq("id", "1")), here(eq("name", "a"))];
    condition(relation, &Query { filters, ..Query::default() }, &mut sql).unwrap();
    assert_eq!(sql.finish().text, r#"true / (t0."id" = $1) and (t0."name" = $2)"#);
}

#[test]
fn more_embeddings_than_allowed_are_refused() {
    let select = vec![Item::Embed(embed("clients", Vec::new())); 101];
    let expected = "400 PGRST100: failed to parse select parameter";
    check("projects", &Query { select, ..Query::default() }, expected);
}

/// The whole statement.
fn whole(query: &Query, form: Form, count: Option<Count>) -> String {
    let schema = schema();
    let relation = schema.relation("public", "users").unwrap();
    let rows_max = Some(1000);
    let reading = Reading { schema: &schema, relation, query, form, count, rows_max };
    read(&reading).unwrap().text
}

#[test]
fn the_row_of_the_answer() {
    assert_eq!(
        whole(&Query::default(), Form::Array, None),
        "select coalesce(pg_catalog.json_agg(s.*), '[]')::pg_catalog.text as body, \
         pg_catalog.count(*)::pg_catalog.text as page_total, null::pg_catalog.text as total, \
         null::pg_catalog.text as inserted, null::pg_catalog.text as location from (select t0.* \
         from \"public\".\"users\" as t0 where true limit 1000) as s"
    );
    assert!(whole(&Query::default(), Form::Object, None).starts_with(
        "select (pg_catalog.array_agg(pg_catalog.row_to_json(s.*)))[1]::pg_catalog.text as body"
    ));
    let counted = whole(&Query::default(), Form::None, Some(Count::Exact));
    assert!(counted.contains(
        "(case when pg_catalog.count(*) < 1000 then pg_catalog.count(*) else (select \
         pg_catalog.count(*) from (select from \"public\".\"users\" as t1 where true) as c) \
         end)::pg_catalog.text as total"
    ));
    let estimated = whole(&Query::default(), Form::None, Some(Count::Estimated));
    assert!(estimated.contains("where true limit 1001) as c"));
    let planned = whole(&Query::default(), Form::None, Some(Count::Planned));
    assert!(planned.contains("null::pg_catalog.text as total"));
}

#[test]
fn a_plan_tells_its_rows() {
    assert_eq!(planned_rows(r#"[{"Plan": {"Node Type": "Seq Scan", "Plan Rows": 42}}]"#), Some(42));
    assert_eq!(planned_rows("[]"), None);
    assert_eq!(planned_rows("x"), None);
}
