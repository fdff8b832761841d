//! How many rows there are, and that Postgres finds them well.

use serde_json::Value;
use walcast::rest::statement::read::{Reading, estimate, planned_rows};
use walcast::rest::statement::{Count, Form};

use super::{Answer, Text, World};

#[tokio::test]
async fn rows_are_counted() {
    let world = World::create().await;
    let exact = Some(Count::Exact);
    for (request, page_total, total) in [
        ("projects?select=id", 4, 4),
        ("projects?select=id&limit=2", 2, 4),
        ("projects?select=id&limit=4", 4, 4),
        ("projects?select=id&limit=0", 0, 4),
        ("projects?select=id&limit=3&offset=2", 2, 4),
        ("projects?select=id&offset=9", 0, 4),
        ("projects?select=id&active=is.true&limit=1", 1, 2),
        ("projects?select=id,clients!inner(id)&clients.name=eq.Ada&limit=1", 1, 2),
        ("clients?select=id,projects!inner(id)&projects.limit=1&limit=1", 1, 2),
        ("clients?select=id,projects()&projects=is.null", 1, 1),
        ("many?select=id", 1000, 2500),
        ("many?select=id&limit=2000&offset=1600", 900, 2500),
        ("many?select=id&limit=2000", 1000, 2500),
    ] {
        let statement = world.statement(request, Form::None, exact).unwrap();
        let answer = world.answer(&statement).await;
        assert_eq!(answer, Ok(Answer { body: None, page_total, total: Some(total) }), "{request}");
    }
}

#[tokio::test]
async fn rows_are_estimated() {
    let world = World::create().await;
    let estimated = Some(Count::Estimated);
    for (request, total) in [("projects", 4), ("many?id=lte.900&limit=1", 900), ("many", 1001)] {
        let statement = world.statement(request, Form::None, estimated).unwrap();
        assert_eq!(world.answer(&statement).await.unwrap().total, Some(total), "{request}");
    }
    let statement = world.statement("many", Form::None, Some(Count::Planned)).unwrap();
    assert_eq!(world.answer(&statement).await.unwrap().total, None);
    let statement = world.with("many?n=eq.3&select=id", |query, relation| {
        let (form, count, rows_max) = (Form::Array, Some(Count::Planned), Some(1000));
        estimate(&Reading { schema: &world.schema, relation, query, form, count, rows_max })
    });
    let statement = statement.unwrap();
    let value = Text(&statement.parameters[0]);
    let plan: Value = world.reader.query_one(&statement.text, &[&value]).await.unwrap().get(0);
    let rows = planned_rows(&plan.to_string()).unwrap();
    assert!((340..=375).contains(&rows), "{rows} of about 357");
}

/// Requests of one shape are one statement, so that it is prepared once.
#[tokio::test]
async fn the_text_depends_on_the_shape_alone() {
    let world = World::create().await;
    let text = |request: &str| world.statement(request, Form::Array, None).unwrap().text;
    assert_eq!(
        text("projects?select=id,tasks(id)&id=in.(1,2)&limit=1&offset=3&tasks.limit=2"),
        text("projects?select=id,tasks(id)&id=in.(9)&limit=5000&offset=7&tasks.limit=3"),
    );
}

#[tokio::test]
async fn keys_are_looked_up_and_pages_cut_first() {
    let world = World::create().await;
    let plan = async |request: &str| {
        let statement = world.statement(request, Form::Array, None).unwrap();
        let mut text = statement.text;
        for (position, value) in statement.parameters.iter().enumerate().rev() {
            let value = std::str::from_utf8(value.as_ref().unwrap()).unwrap();
            text = text.replace(&format!("${}", position + 1), &format!("'{value}'"));
        }
        let sql = format!("explain (costs off) {text}");
        let rows = world.admin.query(&sql, &[]).await.unwrap();
        let lines: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        lines.join("\n")
    };
    let by_key = plan("many?id=eq.7").await;
    assert!(by_key.contains("Index Scan using many_pkey"), "{by_key}");
    let by_keys = plan("many?id=in.(7,8)").await;
    assert!(by_keys.contains("many_pkey"), "{by_keys}");
    // What is embedded is looked up for the rows of the page, which are sorted and cut before.
    let sorted = plan("tasks?select=id,projects(id),children:tasks(id)&order=title&limit=3").await;
    let (cut, looked_up) = (sorted.find("Limit"), sorted.find("SubPlan"));
    assert!(cut < looked_up && sorted.find("Sort") < looked_up, "{sorted}");
    let result = sorted.find("Result").unwrap();
    assert!(result < sorted.find("Sort").unwrap(), "{sorted}");
}
