//! What is written, as SQL text.

use bytes::Bytes;

use super::*;
use crate::rest::request::{Embed, Field};
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

pub(super) fn object(text: &'static str, keys: &[&str]) -> Body {
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

#[test]
fn look() {
    let q = Query::default();
    let o = object("{\"id\":1,\"title\":\"a\"}", &["id", "title"]);
    let a = array("[...]", &["id", "title", "made"], 2, false);
    let mut put = Query::default();
    put.filters = vec![filter("id", Operator::Eq, "1")];
    let mut cols = Query::default();
    cols.columns = Some(vec!["id".into(), "title".into(), "made".into()]);
    println!("{}\n", render(insert(&o), &q, |_| ()));
    println!(
        "{}\n",
        render(insert(&o), &q, |w| {
            w.form = Form::Array;
            w.count = Some(Count::Exact)
        })
    );
    println!("{}\n", render(insert(&o), &q, |w| w.wants_location = true));
    println!("{}\n", render(insert(&a), &q, |_| ()));
    println!("{}\n", render(insert(&a), &cols, |_| ()));
    println!(
        "{}\n",
        render(
            Action::Insert { body: &a, missing: Missing::Default, resolution: None },
            &cols,
            |_| ()
        )
    );
    println!(
        "{}\n",
        render(
            Action::Insert { body: &o, missing: Missing::Default, resolution: None },
            &cols,
            |_| ()
        )
    );
    println!(
        "{}\n",
        render(
            Action::Insert {
                body: &o,
                missing: Missing::Default,
                resolution: Some(Resolution::MergeDuplicates)
            },
            &cols,
            |_| ()
        )
    );
    println!("{}\n", render(Action::Put { body: &o }, &put, |w| w.form = Form::Object));
    println!("{}\n", render(Action::Update { body: &o }, &put, |w| w.form = Form::Array));
    println!("{}\n", render(Action::Delete, &put, |_| ()));
    panic!();
}
