//! Columns, filters, order, ranges; the forms of an answer.

use serde_json::json;
use tokio_postgres::types::ToSql;
use walcast::rest::statement::Form;

use super::World;

#[tokio::test]
async fn columns_filters_order_and_ranges() {
    let world = World::create().await;
    for (request, sql) in [
        ("projects", "select * from projects"),
        (
            "projects?select=id,title:name&order=id.desc",
            "select id, name title from projects order by id desc",
        ),
        (
            "projects?select=id&id=gte.2&id=lt.4&order=id",
            "select id from projects where id >= 2 and id < 4 order by id",
        ),
        (
            "projects?select=id,due::text&order=due.desc.nullslast,id",
            "select id, due::text from projects order by due desc nulls last, id",
        ),
        (
            "projects?select=id&order=due.nullsfirst&limit=2&offset=1",
            "select id from projects order by due nulls first limit 2 offset 1",
        ),
        (
            "projects?select=id&name=in.(Engine,\"Lo\\om\",Boat)&order=id",
            "select id from projects where name in ('Engine', 'Loom', 'Boat') order by id",
        ),
        ("clients?select=id&name=in.(\"Cy, \\\"the\\\" \\\\ one\")", "select 3 id"),
        ("projects?select=id&name=in.()", "select id from projects where false"),
        (
            "projects?select=id&name=not.in.(Engine)&order=id",
            "select id from projects where name <> 'Engine' order by id",
        ),
        (
            "projects?select=id&active=is.true",
            "select id from projects where active is true order by id",
        ),
        (
            "projects?select=id&active=not.is.true&order=id",
            "select id from projects where active is not true order by id",
        ),
        ("projects?select=id&active=is.unknown", "select id from projects where active is null"),
        ("projects?select=id&client_id=is.null", "select id from projects where client_id is null"),
        (
            "projects?select=id&client_id=isdistinct.1&order=id",
            "select id from projects where client_id is distinct from 1 order by id",
        ),
        (
            "projects?select=id&name=like.*o*&order=id",
            "select id from projects where name like '%o%' order by id",
        ),
        ("projects?select=id&name=ilike.B*", "select id from projects where name ilike 'b%'"),
        (
            "projects?select=id&name=like(any).{E*,L*}&order=id",
            "select id from projects where name like any ('{E%,L%}') order by id",
        ),
        ("projects?select=id&name=imatch.^e", "select id from projects where name ~* '^e'"),
        (
            "projects?select=id&tags=cs.{x}&order=id",
            "select id from projects where tags @> '{x}' order by id",
        ),
        (
            "projects?select=id&tags=cd.{x,y}&order=id",
            "select id from projects where tags <@ '{x,y}' order by id",
        ),
        (
            "projects?select=id&tags=ov.{y,z}&order=id",
            "select id from projects where tags && '{y,z}' order by id",
        ),
        (
            "projects?select=id&or=(id.eq.1,and(name.eq.Boat,client_id.eq.2),not.and(id.lt.4,id.gt.0))&order=id",
            "select id from projects where id = 1 or (name = 'Boat' and client_id = 2) or not (id < 4 and id > 0) order by id",
        ),
        (
            "projects?select=id&not.or=(id.eq.1,id.eq.2)&order=id",
            "select id from projects where not (id = 1 or id = 2) order by id",
        ),
        (
            "tasks?select=id&words=fts(english).draw&order=id",
            "select id from tasks where words @@ to_tsquery('english', 'draw') order by id",
        ),
        (
            "tasks?select=id&words=wfts(english).draw -cat&order=id",
            "select id from tasks where words @@ websearch_to_tsquery('english', 'draw -cat') order by id",
        ),
        (
            "tasks?select=id&title=plfts(english).plan&order=id",
            "select id from tasks where to_tsvector('english', title) @@ plainto_tsquery('english', 'plan') order by id",
        ),
        (
            "tasks?select=id&title=not.phfts(english).draw a cat&order=id",
            "select id from tasks where not to_tsvector('english', title) @@ phraseto_tsquery('english', 'draw a cat') order by id",
        ),
        (
            "clients?select=id,data->>city,data->tags->0,d:data->deep->x->-1&order=id",
            "select id, data->>'city' city, data->'tags'->0 tags, data->'deep'->'x'->-1 d from clients order by id",
        ),
        ("clients?select=raw->z,raw&id=eq.1", "select raw->'z' z, raw from clients where id = 1"),
        (
            "projects?select=tags->0&id=eq.1",
            "select to_jsonb(tags)->0 tags from projects where id = 1",
        ),
        ("clients?select=id&data->>city=eq.Paris", "select 2 id"),
        ("clients?select=id&data->size=gt.9", "select id from clients where data->'size' > '9'"),
        ("clients?select=id&data=cs.{\"city\":\"Paris\"}", "select 2 id"),
        (
            "clients?select=id&order=data->>city.desc.nullslast",
            "select id from clients order by data->>'city' desc nulls last",
        ),
        ("users?select=id&\"odd \\\"name\\\"\"=eq.7", "select 1 id"),
    ] {
        world.check(request, sql).await;
    }
}

#[tokio::test]
async fn numbers_come_as_postgres_prints_them() {
    let world = World::create().await;
    let statement = world.statement("budgets?project_id=eq.1", Form::Object, None).unwrap();
    let parameters: Vec<&(dyn ToSql + Sync)> = vec![];
    let text = statement.text.replace("$1", "1");
    let row = world.reader.query_one(&text, &parameters).await.unwrap();
    assert_eq!(row.get::<_, &str>("body"), r#"{"project_id":1,"amount":1000.50}"#);
}

#[tokio::test]
async fn the_forms_of_an_answer() {
    let world = World::create().await;
    let answer = async |request: &str, form| {
        let statement = world.statement(request, form, None).unwrap();
        world.answer(&statement).await.unwrap()
    };
    let one = answer("users?select=id,name&id=eq.1", Form::Object).await;
    assert_eq!((one.body, one.page_total), (Some(json!({"id": 1, "name": "Uma"})), 1));
    let none = answer("users?id=eq.9", Form::Object).await;
    assert_eq!((none.body, none.page_total), (None, 0));
    let several = answer("users?select=id", Form::Object).await;
    assert_eq!(several.page_total, 3);
    let empty = answer("users?id=eq.9", Form::Array).await;
    assert_eq!((empty.body, empty.page_total), (Some(json!([])), 0));
}
