//! Writes of the REST dialect, as statements, run as the caller; Postgres is the oracle.

use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{Client, Column, Error};
use walcast::rest::Problem;
use walcast::rest::request::{Body, Missing, Query, Resolution};
use walcast::rest::schema::{self, Schema};
use walcast::rest::sql::Statement;
use walcast::rest::statement::write::{Action, Writing, write};
use walcast::rest::statement::{Answer, Count, Form};

use crate::cluster::{self, Database};

/// A database, and the picture of its schema `api`.
pub(crate) struct World {
    _database: Database,
    pub(crate) admin: Client,
    pub(crate) schema: Schema,
}

/// A parameter as the service sends it: text of whatever type Postgres infers.
#[derive(Debug)]
struct Text<'a>(&'a Option<Bytes>);

impl ToSql for Text<'_> {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        let Some(value) = self.0 else { return Ok(IsNull::Yes) };
        out.extend_from_slice(value);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}

impl World {
    /// With what `sql` makes in schema `api`, all of which the role `rest_caller` may use.
    pub(crate) async fn new(sql: &str) -> Self {
        static MADE: OnceCell<()> = OnceCell::const_new();
        let database = Database::create().await;
        let admin = database.client().await;
        cluster::roles(&MADE, "create role rest_caller nologin").await;
        let schema = "create schema api; grant usage on schema api to rest_caller;
            set search_path = api;";
        admin.batch_execute(schema).await.unwrap();
        admin.batch_execute(sql).await.unwrap();
        let grant = "grant all on all tables in schema api to rest_caller;
            grant all on all sequences in schema api to rest_caller";
        admin.batch_execute(grant).await.unwrap();
        let schema = load(&admin).await;
        Self { _database: database, admin, schema }
    }

    /// Runs in a transaction as `rest_caller`; it is committed if `is_kept`.
    pub(crate) async fn run(&self, statement: &Statement, is_kept: bool) -> Result<Answer, Error> {
        let begin = "begin; set local role rest_caller; set local search_path = api;
            set local request.jwt.claims = '{\"sub\": \"me\"}'";
        self.admin.batch_execute(begin).await.unwrap();
        let answer = self.answer(statement).await;
        let is_kept = is_kept && answer.is_ok();
        self.admin.batch_execute(if is_kept { "commit" } else { "rollback" }).await?;
        answer
    }

    async fn answer(&self, statement: &Statement) -> Result<Answer, Error> {
        let prepared = self.admin.prepare(&statement.text).await?;
        let names: Vec<&str> = prepared.columns().iter().map(Column::name).collect();
        assert_eq!(names, ["body", "page_total", "total", "inserted", "location"]);
        let values: Vec<Text<'_>> = statement.parameters.iter().map(Text).collect();
        let values: Vec<&(dyn ToSql + Sync)> =
            values.iter().map(|value| -> &(dyn ToSql + Sync) { value }).collect();
        let row = self.admin.query_one(&prepared, &values).await?;
        let number = |place: usize| {
            row.get::<_, Option<&str>>(place).map(|number| number.parse::<u64>().unwrap())
        };
        Ok(Answer {
            body: row.get(0),
            page_total: number(1).unwrap(),
            total: number(2),
            inserted: number(3),
            location: row.get(4),
        })
    }

    /// What a query returns, as Postgres' own JSON.
    pub(crate) async fn rows(&self, query: &str) -> Value {
        let query = format!("select coalesce(json_agg(s.*), '[]')::text from ({query}) as s");
        let rows: String = self.admin.query_one(&query, &[]).await.unwrap().get(0);
        serde_json::from_str(&rows).unwrap()
    }

    /// What a write is answered with, or what it is refused with.
    async fn write(&self, change: Change<'_>) -> Result<Answer, Refusal> {
        let statement = change.statement(&self.schema).map_err(Refusal::Ours)?;
        self.run(&statement, true).await.map_err(|error| Refusal::of(&error))
    }
}

/// The picture of schema `api`.
pub(crate) async fn load(admin: &Client) -> Schema {
    let path: String = admin.query_one("show search_path", &[]).await.unwrap().get(0);
    let schema = schema::load(admin, &[String::from("api")]).await.unwrap();
    admin.batch_execute(&format!("set search_path = {path}")).await.unwrap();
    schema
}

/// Why a statement was not made, or what Postgres says about it.
#[derive(Debug, PartialEq)]
pub(crate) enum Refusal {
    Ours(Problem),
    Postgres { code: String, message: String },
}

impl Refusal {
    pub(crate) fn of(error: &Error) -> Self {
        let error = error.as_db_error().unwrap_or_else(|| panic!("{error:?}"));
        Self::Postgres { code: error.code().code().into(), message: error.message().into() }
    }

    /// The code that a client would see.
    pub(crate) fn code(&self) -> &str {
        match self {
            Self::Ours(problem) => &problem.code,
            Self::Postgres { code, .. } => code,
        }
    }
}

/// A write, before its names are looked up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change<'a> {
    pub(crate) verb: &'a str,
    pub(crate) relation: &'a str,
    pub(crate) query: &'a str,
    pub(crate) body: &'a str,
    pub(crate) missing: Missing,
    pub(crate) resolution: Option<Resolution>,
    pub(crate) form: Form,
    pub(crate) count: Option<Count>,
    pub(crate) wants_location: bool,
}

fn change<'a>(verb: &'a str, relation: &'a str, query: &'a str, body: &'a str) -> Change<'a> {
    Change {
        verb,
        relation,
        query,
        body,
        missing: Missing::Null,
        resolution: None,
        form: Form::Array,
        count: None,
        wants_location: false,
    }
}

impl Change<'_> {
    pub(crate) fn statement(&self, schema: &Schema) -> Result<Statement, Problem> {
        let query = Query::from_text(self.query)?;
        let body = Body::parse(&axum::http::HeaderMap::new(), Bytes::from(self.body.to_owned()))?;
        let (missing, resolution) = (self.missing, self.resolution);
        let action = match self.verb {
            "POST" => Action::Insert { body: &body, missing, resolution },
            "PUT" => Action::Put { body: &body },
            "PATCH" => Action::Update { body: &body },
            "DELETE" => Action::Delete,
            other => panic!("no {other}"),
        };
        write(&Writing {
            schema,
            relation: schema.relation("api", self.relation).expect("a relation"),
            query: &query,
            action,
            form: self.form,
            count: self.count,
            wants_location: self.wants_location,
        })
    }
}

/// The rows of an answer.
pub(crate) fn rows(answer: Result<Answer, Refusal>) -> Value {
    let body = answer.unwrap().body.expect("a body");
    serde_json::from_str(&body).unwrap()
}

fn code(answer: Result<Answer, Refusal>) -> String {
    String::from(answer.unwrap_err().code())
}

const STORIES: &str = "create table stories (
        id int generated by default as identity primary key,
        title text not null default 'untitled',
        points numeric,
        tags text[],
        extra jsonb,
        raw json
    );";

#[tokio::test]
async fn a_row_is_stored_as_postgres_reads_its_json() {
    let world = World::new(STORIES).await;
    let body = r#"{"title": "ä\"\\", "points": 12345678901234567890.000000000000000000010,
        "tags": ["a", null, "b,c"], "extra": {"a": [1, 1e400]}, "raw": {"b" : 1.50, "a": 2} }"#;
    let answer = world.write(change("POST", "stories", "", body)).await.unwrap();
    let (total, inserted) = (answer.page_total, answer.inserted);
    assert_eq!((total, inserted, answer.total, answer.location), (1, Some(1), None, None));
    // As Postgres prints it, every digit there.
    let expected = "select json_agg(s)::text from stories as s";
    let expected: String = world.admin.query_one(expected, &[]).await.unwrap().get(0);
    assert_eq!(answer.body.as_deref(), Some(expected.as_str()));
    assert!(expected.contains("12345678901234567890.000000000000000000010"), "{expected}");
    assert!(expected.contains(r#"{"b" : 1.50, "a": 2}"#), "{expected}");
}

#[tokio::test]
async fn many_rows_are_stored_in_their_order() {
    let world = World::new(STORIES).await;
    let body = r#"[{"title": "b"}, {"title": "a"}, {"title": "c"}]"#;
    let mut many = change("POST", "stories", "select=id,title&order=title.desc", body);
    many.count = Some(Count::Exact);
    let answer = world.write(many).await.unwrap();
    assert_eq!((answer.page_total, answer.total, answer.inserted), (3, Some(3), Some(3)));
    let expected = json!([
        {"id": 3, "title": "c"}, {"id": 1, "title": "b"}, {"id": 2, "title": "a"}
    ]);
    assert_eq!(rows(Ok(answer)), expected);
    // A limit says nothing about what was written.
    let limited = change("POST", "stories", "select=id&limit=1&offset=1", body);
    assert_eq!(rows(world.write(limited).await), json!([{"id": 4}, {"id": 5}, {"id": 6}]));
}

#[tokio::test]
async fn keys_that_are_missing_are_null_or_the_columns_default_row_by_row() {
    let world = World::new(&format!(
        "create domain short as varchar(3) not null default 'dom';
        create sequence calls;
        create function counted() returns int language sql as $$ select nextval('calls') $$;
        create table filled (
            id serial primary key, a short default 'col', b int default counted(), c text,
            d timestamptz default now(), e varchar(10) default current_date,
            g int generated always as (1) stored, \"we\"\"ird\" int[] default '{{1}}'
        );
        {STORIES}"
    ))
    .await;
    let body =
        r#"[{"id": 7, "a": "x"}, {"b": 1, "c": "y", "e": "z"}, {"b": null, "we\"ird": [2]}]"#;
    let columns = r#"select=id,a,b,c,"we\"ird"&columns="id","a","b","c","we\"ird","e""#;
    let mut insert = change("POST", "filled", columns, body);
    assert_eq!(code(world.write(insert).await), "23502");
    insert.missing = Missing::Default;
    let expected = json!([
        {"id": 7, "a": "x", "b": 1, "c": null, "we\"ird": [1]},
        {"id": 1, "a": "col", "b": 1, "c": "y", "we\"ird": [1]},
        {"id": 2, "a": "col", "b": null, "c": null, "we\"ird": [2]},
    ]);
    assert_eq!(rows(world.write(insert).await), expected);
    let calls = world.rows("select last_value, is_called from calls").await;
    assert_eq!(calls, json!([{"last_value": 1, "is_called": true}]), "evaluated only where needed");

    // What no row has, and what an object does not have, is Postgres' own business.
    let mut one = change("POST", "filled", "columns=id,a,b&select=id,a,b", r#"{"b": 5}"#);
    one.missing = Missing::Default;
    assert_eq!(rows(world.write(one).await), json!([{"id": 3, "a": "col", "b": 5}]));
    let mut none = change("POST", "filled", "columns=a,b&select=a,b", "[{}, {}]");
    none.missing = Missing::Default;
    let expected = json!([{"a": "col", "b": 2}, {"a": "col", "b": 3}]);
    assert_eq!(rows(world.write(none).await), expected);
    // An identity column draws its number, too.
    let body = r#"[{"title": "a"}, {"id": 100}, {"title": "c"}]"#;
    let mut identity = change("POST", "stories", "columns=id,title&select=id,title", body);
    identity.missing = Missing::Default;
    let expected = json!([
        {"id": 1, "title": "a"}, {"id": 100, "title": "untitled"}, {"id": 2, "title": "c"}
    ]);
    assert_eq!(rows(world.write(identity).await), expected);
}

#[tokio::test]
async fn columns_say_which_keys_are_written() {
    let world = World::new(STORIES).await;
    let body = r#"[{"title": "a", "points": 1, "nope": 2}, {"title": "b"}]"#;
    let insert = change("POST", "stories", "columns=title,points,title&select=title,points", body);
    let expected = json!([{"title": "a", "points": 1}, {"title": "b", "points": null}]);
    assert_eq!(rows(world.write(insert).await), expected);
    let update = change(
        "PATCH",
        "stories",
        "id=eq.2&columns=points&select=title,points",
        r#"{"title": "no", "points": 3}"#,
    );
    assert_eq!(rows(world.write(update).await), json!([{"title": "b", "points": 3}]));
}

#[tokio::test]
async fn nothing_given_is_all_defaults_and_no_rows_are_no_write() {
    let world = World::new(STORIES).await;
    world.admin.batch_execute("revoke all on stories from rest_caller").await.unwrap();
    let empty = change("POST", "stories", "select=id,title", "{}");
    assert_eq!(code(world.write(empty).await), "42501");
    // It does not come to a question of rights.
    let mut none = change("POST", "stories", "select=id", "[]");
    none.count = Some(Count::Exact);
    let answer = world.write(none).await.unwrap();
    assert_eq!(answer.body.as_deref(), Some("[]"));
    assert_eq!((answer.page_total, answer.total, answer.inserted), (0, Some(0), Some(0)));
    let update = change("PATCH", "stories", "id=eq.1", "{}");
    assert_eq!(rows(world.write(update).await), json!([]));
    let update = change("PATCH", "stories", "id=eq.1", "[]");
    assert_eq!(rows(world.write(update).await), json!([]));

    world.admin.batch_execute("grant all on stories to rest_caller").await.unwrap();
    assert_eq!(rows(world.write(empty).await), json!([{"id": 1, "title": "untitled"}]));
    let two = change("POST", "stories", "select=id", "[{}, {}]");
    assert_eq!(rows(world.write(two).await), json!([{"id": 2}, {"id": 3}]));
    let mut merge = change("POST", "stories", "select=id", "{}");
    merge.resolution = Some(Resolution::MergeDuplicates);
    let answer = world.write(merge).await.unwrap();
    assert_eq!((answer.inserted, rows(Ok(answer))), (Some(1), json!([{"id": 4}])));
}

#[tokio::test]
async fn bodies_that_are_no_rows_are_refused() {
    let world = World::new(STORIES).await;
    for verb in ["POST", "PATCH"] {
        for body in ["", "1", "null", "[1]", r#"[{"id": 1}, {"title": "a"}]"#] {
            assert_eq!(code(world.write(change(verb, "stories", "", body)).await), "PGRST102");
        }
    }
    let two = r#"[{"title": "a"}, {"title": "b"}]"#;
    assert_eq!(code(world.write(change("PATCH", "stories", "id=eq.1", two)).await), "PGRST102");
    let unknown = world.write(change("POST", "stories", "", r#"{"nope": 1}"#)).await;
    let Err(Refusal::Ours(problem)) = unknown else { panic!("{unknown:?}") };
    assert_eq!((problem.status.as_u16(), &*problem.code), (400, "PGRST204"));
    let message = "Could not find the 'nope' column of 'stories' in the schema cache";
    assert_eq!(problem.message, message);
    let check = async |change, expected| assert_eq!(code(world.write(change).await), expected);
    check(change("POST", "stories", "columns=nope", "{}"), "PGRST204").await;
    check(change("PATCH", "stories", "", r#"{"nope": 1}"#), "PGRST204").await;
    check(change("PATCH", "stories", "nope=eq.1", "{}"), "42703").await;
    check(change("POST", "stories", "select=nope", "{}"), "42703").await;
    check(change("DELETE", "stories", "nope=eq.1", ""), "42703").await;
    check(change("DELETE", "stories", "id=eq.1&limit=1", ""), "PGRST127").await;
    check(change("PATCH", "stories", "id=eq.1&offset=1", r#"{"id": 1}"#), "PGRST127").await;
    // The rest is for Postgres to say.
    check(change("POST", "stories", "", r#"{"id": "x"}"#), "22P02").await;
    check(change("POST", "stories", "", r#"{"title": null}"#), "23502").await;
    check(change("POST", "stories", "", r#"{"title": "\u0000"}"#), "22P05").await;
    check(change("POST", "stories", "", r#"{"points": [1]}"#), "22P02").await;
    check(change("PATCH", "stories", "id=eq.x", r#"{"id": 1}"#), "22P02").await;
}

#[tokio::test]
async fn an_upsert_tells_what_is_new() {
    let world = World::new(&format!(
        "{STORIES}
        create table places (a int, b text, c int, d int unique, primary key (a, b));
        create table keyless (a int); create table excluded (id int primary key, excluded int);
        create table parts (id int primary key, a int) partition by range (id);
        create table parts_low partition of parts for values from (0) to (10);
        create table parts_high partition of parts for values from (10) to (20);
        create view shown as select id, title from stories;"
    ))
    .await;
    let upsert = async |relation: &str, query: &str, body: &str, resolution| {
        let mut upsert = change("POST", relation, query, body);
        upsert.resolution = Some(resolution);
        let answer = world.write(upsert).await?;
        Ok::<_, Refusal>((answer.inserted.unwrap(), rows(Ok(answer))))
    };
    let (merge, ignore) = (Resolution::MergeDuplicates, Resolution::IgnoreDuplicates);

    let two = r#"[{"a": 1, "b": "x", "c": 1}, {"a": 2, "b": "x", "c": 2}]"#;
    let expected = json!([{"a": 1, "c": 1}, {"a": 2, "c": 2}]);
    assert_eq!(upsert("places", "select=a,c", two, merge).await, Ok((2, expected)));
    let two = r#"[{"a": 1, "b": "x", "c": 7}, {"a": 1, "b": "y", "c": 8}]"#;
    let expected = json!([{"a": 1, "b": "x", "c": 7}, {"a": 1, "b": "y", "c": 8}]);
    assert_eq!(upsert("places", "select=a,b,c", two, merge).await, Ok((1, expected.clone())));
    assert_eq!(upsert("places", "select=a,b,c", two, merge).await, Ok((0, expected)));
    let three = r#"[{"a": 1, "b": "x", "c": 9}, {"a": 3, "b": "x", "c": 9}]"#;
    assert_eq!(upsert("places", "select=a", three, ignore).await, Ok((1, json!([{"a": 3}]))));
    let kept = world.rows("select c from places where a = 1 and b = 'x'").await;
    assert_eq!(kept, json!([{"c": 7}]));

    let other = "on_conflict=d&select=a,b,d";
    let one = r#"{"a": 5, "b": "d", "d": 5}"#;
    let again = r#"{"a": 6, "b": "d", "d": 5}"#;
    assert_eq!(upsert("places", other, one, merge).await.unwrap().0, 1);
    let expected = json!([{"a": 6, "b": "d", "d": 5}]);
    assert_eq!(upsert("places", other, again, merge).await, Ok((0, expected)));

    let none = upsert("places", "on_conflict=c", one, merge).await;
    assert_eq!(none.unwrap_err().code(), "42P10");
    let Err(Refusal::Ours(problem)) = upsert("places", "on_conflict=x", one, merge).await else {
        panic!("an unknown column");
    };
    assert_eq!((&*problem.code, &*problem.message), ("42703", r#"column "x" does not exist"#));
    let twice = upsert("places", "", r#"[{"a": 1, "b": "z"}, {"a": 1, "b": "z"}]"#, merge).await;
    assert_eq!(twice.unwrap_err().code(), "21000");

    // Without a key there is nothing to conflict with.
    let twice = r#"[{"a": 1}, {"a": 1}]"#;
    let expected = json!([{"a": 1}, {"a": 1}]);
    assert_eq!(upsert("keyless", "", twice, merge).await, Ok((2, expected)));
    for (expected, value) in [(1, 1), (0, 2)] {
        let body = format!(r#"{{"id": 1, "excluded": {value}}}"#);
        let rows = json!([{"id": 1, "excluded": value}]);
        assert_eq!(upsert("excluded", "", &body, merge).await, Ok((expected, rows)));
        let body = format!(r#"[{{"id": 1, "a": {value}}}, {{"id": 1{value}, "a": 2}}]"#);
        assert_eq!(upsert("parts", "", &body, merge).await.unwrap().0, expected + 1);
        let body = format!(r#"{{"id": 1, "title": "{value}"}}"#);
        assert_eq!(upsert("shown", "", &body, merge).await.unwrap().0, expected);
    }
}

#[tokio::test]
async fn a_put_writes_the_row_that_its_url_names() {
    let world = World::new(
        "create table places (a int, b text, c int, primary key (a, b)); create table keyless ()",
    )
    .await;
    let put = async |query: &str, body: &str| {
        let answer = world.write(change("PUT", "places", query, body)).await?;
        Ok::<_, Refusal>((answer.page_total, answer.inserted.unwrap(), rows(Ok(answer))))
    };
    let body = |value| format!(r#"{{"a": 1, "b": "x", "c": {value}}}"#);
    for (inserted, value) in [(1, 3), (0, 4)] {
        let expected = json!([{"a": 1, "b": "x", "c": value}]);
        assert_eq!(put("a=eq.1&b=eq.x", &body(value)).await, Ok((1, inserted, expected)));
    }
    let array = format!("[{}]", body(5));
    assert_eq!(put("b=eq.x&a=eq.01&select=c", &array).await, Ok((1, 0, json!([{"c": 5}]))));
    // The body is about another row: nothing is written.
    assert_eq!(put("a=eq.1&b=eq.y", &body(6)).await, Ok((0, 0, json!([]))));
    let check = async |query: &str, body: &str, expected: (u16, &str)| {
        let Err(Refusal::Ours(problem)) = put(query, body).await else { panic!("{query}") };
        assert_eq!((problem.status.as_u16(), &*problem.code), expected, "{query}");
    };
    check("a=eq.1&b=eq.x", r#"{"a": 1, "c": 6}"#, (400, "PGRST115")).await;
    check("a=eq.1&b=eq.x", &format!("[{}, {}]", body(6), body(7)), (400, "PGRST115")).await;
    check("a=eq.1&b=eq.x", "[]", (400, "PGRST115")).await;
    for query in [
        "",
        "a=eq.1",
        "a=eq.1&b=eq.x&c=eq.1",
        "a=eq.1&b=gt.x",
        "a=eq.1&b=not.eq.x",
        "a=eq(any).{1}&b=eq.x",
        "a=eq.1&b->x=eq.1",
        "a=eq.1&b=eq.x&or=(a.eq.1,a.eq.2)",
    ] {
        check(query, &body(6), (405, "PGRST105")).await;
    }
    check("a=eq.1&b=eq.x&limit=1", &body(6), (400, "PGRST114")).await;
    let keyless = world.write(change("PUT", "keyless", "", "{}")).await;
    assert_eq!(code(keyless), "PGRST105");
    assert_eq!(world.rows("select c from places").await, json!([{"c": 5}]));
}

/// Notes that their owners may read and change, and hidden ones that only may be written.
const NOTES: &str = "create table notes (id int primary key, owner text, body text);
    alter table notes enable row level security;
    create policy own on notes for all to rest_caller
        using (owner = current_setting('request.jwt.claims')::json->>'sub');
    insert into notes values (1, 'me', 'a'), (2, 'me', 'b'), (3, 'you', 'c');";

#[tokio::test]
async fn what_the_policies_hide_is_not_changed() {
    let world = World::new(NOTES).await;
    let all = world.rows("select * from notes order by id").await;
    let mut update = change("PATCH", "notes", "id=eq.3", r#"{"body": "x"}"#);
    update.count = Some(Count::Exact);
    let answer = world.write(update).await.unwrap();
    assert_eq!((answer.page_total, answer.total, answer.inserted), (0, Some(0), None));
    assert_eq!(rows(Ok(answer)), json!([]));
    assert_eq!(rows(world.write(change("DELETE", "notes", "id=eq.3", "")).await), json!([]));
    let given = change("PATCH", "notes", "id=eq.1", r#"{"owner": "you"}"#);
    assert_eq!(code(world.write(given).await), "42501");
    let planted = change("POST", "notes", "", r#"{"id": 4, "owner": "you"}"#);
    assert_eq!(code(world.write(planted).await), "42501");
    let mut merge = change("POST", "notes", "", r#"{"id": 3, "owner": "me"}"#);
    merge.resolution = Some(Resolution::MergeDuplicates);
    assert_eq!(code(world.write(merge).await), "42501");
    assert_eq!(world.rows("select * from notes order by id").await, all);

    let query = "id=gte.1&or=(body.eq.a,body.eq.c)&select=body,owner";
    let update = change("PATCH", "notes", query, r#"{"body": "x"}"#);
    assert_eq!(rows(world.write(update).await), json!([{"body": "x", "owner": "me"}]));
    let mut delete = change("DELETE", "notes", "owner=in.(me,you)&select=id&order=id.desc", "");
    delete.count = Some(Count::Exact);
    let answer = world.write(delete).await.unwrap();
    assert_eq!((answer.page_total, answer.total), (2, Some(2)));
    assert_eq!(rows(Ok(answer)), json!([{"id": 2}, {"id": 1}]));
    let left = world.rows("select * from notes").await;
    assert_eq!(left, json!([{"id": 3, "owner": "you", "body": "c"}]));
}

#[tokio::test]
async fn a_write_needs_no_more_rights_than_what_it_returns() {
    let world = World::new(
        "create table letters (id int primary key, body text, read boolean default false)",
    )
    .await;
    let grant = "revoke all on letters from rest_caller;
        grant insert, delete on letters to rest_caller;
        grant update (read, body) on letters to rest_caller";
    world.admin.batch_execute(grant).await.unwrap();
    let minimal = |verb, query, body| {
        let mut minimal = change(verb, "letters", query, body);
        (minimal.form, minimal.count) = (Form::None, Some(Count::Exact));
        minimal
    };
    let insert = minimal("POST", "", r#"[{"id": 1}, {"id": 2}]"#);
    let answer = world.write(insert).await.unwrap();
    assert_eq!((answer.body, answer.page_total, answer.total), (None, 2, Some(2)));
    let update = minimal("PATCH", "", r#"{"read": true, "body": "seen"}"#);
    assert_eq!(world.write(update).await.unwrap().page_total, 2);
    assert_eq!(code(world.write(minimal("DELETE", "id=eq.1", "")).await), "42501");
    let returned = change("POST", "letters", "select=id", r#"{"id": 3}"#);
    assert_eq!(code(world.write(returned).await), "42501");

    world.admin.batch_execute("grant select (id) on letters to rest_caller").await.unwrap();
    assert_eq!(rows(world.write(returned).await), json!([{"id": 3}]));
    let order = change("DELETE", "letters", "id=eq.3&select=id&order=body", "");
    assert_eq!(code(world.write(order).await), "42501");
    assert_eq!(code(world.write(change("POST", "letters", "", r#"{"id": 4}"#)).await), "42501");
    // A merge asks Postgres for the right to read its key, and nothing for the count.
    let grant = "grant update on letters to rest_caller";
    world.admin.batch_execute(grant).await.unwrap();
    let mut merge = minimal("POST", "", r#"[{"id": 3, "read": true}, {"id": 5, "read": true}]"#);
    merge.resolution = Some(Resolution::MergeDuplicates);
    let answer = world.write(merge).await;
    let expected = Answer { page_total: 2, total: Some(2), inserted: Some(1), ..Answer::default() };
    // Postgres wants the right to read what `excluded` names, too.
    assert_eq!(answer.unwrap_err().code(), "42501");
    world.admin.batch_execute("grant select (read) on letters to rest_caller").await.unwrap();
    assert_eq!(world.write(merge).await, Ok(expected));
    assert_eq!(world.write(minimal("DELETE", "id=eq.1", "")).await.unwrap().page_total, 1);
}

#[tokio::test]
async fn a_new_row_is_named_by_its_key() {
    let world = World::new(
        "create table one (id int generated always as identity primary key, a int);
        create table \"two&\" (\"a b\" text, \"é\" date, primary key (\"é\", \"a b\"));
        create table flagged (ok boolean primary key); create table keyless (a int)",
    )
    .await;
    let check = async |relation: &str, body: &str, expected: Option<&str>| {
        let mut insert = change("POST", relation, "", body);
        (insert.form, insert.wants_location) = (Form::None, true);
        let answer = world.write(insert).await.unwrap();
        assert_eq!((answer.location.as_deref(), answer.body), (expected, None), "{body}");
    };
    check("one", r#"{"a": 1}"#, Some("id=eq.1")).await;
    check("one", r#"[{"a": 1}]"#, Some("id=eq.2")).await;
    check("one", r#"[{"a": 1}, {"a": 2}]"#, None).await;
    check("one", "[]", None).await;
    check("keyless", r#"{"a": 1}"#, None).await;
    check("flagged", r#"{"ok": true}"#, Some("ok=eq.true")).await;
    let body = r#"{"a b": "x.y-z_~ &=%\n'\\ü€🙂", "é": "2026-02-03"}"#;
    let expected = "%C3%A9=eq.2026-02-03&a%20b=eq.x.y-z_~%20%26%3D%25%0A%27%5C%C3%BC%E2%82%AC\
                    %F0%9F%99%82";
    check("two&", body, Some(expected)).await;
    check("two&", r#"{"a b": "", "é": "2026-02-03"}"#, Some("%C3%A9=eq.2026-02-03&a%20b=eq."))
        .await;
    let mut both = change("POST", "one", "select=a", r#"{"a": 7}"#);
    both.wants_location = true;
    let answer = world.write(both).await.unwrap();
    assert_eq!(answer.location.as_deref(), Some("id=eq.5"));
    assert_eq!(rows(Ok(answer)), json!([{"a": 7}]));
}

#[tokio::test]
async fn views_are_written_through_their_triggers() {
    let world = World::new(
        "create table items (id int primary key, name text);
        create view shown as select id, upper(name) as name from items;
        create function instead() returns trigger language plpgsql security definer
            set search_path = api as $$ begin
            if tg_op = 'INSERT' then
                insert into items values (new.id, lower(new.name));
            elsif tg_op = 'UPDATE' then
                update items set name = lower(new.name) where id = old.id;
            else
                delete from items where id = old.id;
                return old;
            end if;
            return new;
        end $$;
        create trigger instead instead of insert or update or delete on shown
            for each row execute function instead();",
    )
    .await;
    let insert = change("POST", "shown", "", r#"[{"id": 1, "name": "A"}, {"id": 2, "name": "B"}]"#);
    let expected = json!([{"id": 1, "name": "A"}, {"id": 2, "name": "B"}]);
    assert_eq!(rows(world.write(insert).await), expected);
    let update = change("PATCH", "shown", "id=eq.2", r#"{"name": "C"}"#);
    assert_eq!(rows(world.write(update).await), json!([{"id": 2, "name": "C"}]));
    let delete = change("DELETE", "shown", "id=eq.1&select=name", "");
    assert_eq!(rows(world.write(delete).await), json!([{"name": "A"}]));
    assert_eq!(world.rows("select * from items").await, json!([{"id": 2, "name": "c"}]));
}

#[tokio::test]
async fn no_name_is_too_odd() {
    let names =
        ["source", "s", "r", "t0", "excluded", "e", "k", "x", "p", "we\"i;rd--", "select", "$1"];
    let table = |name: &&str| {
        let quoted = format!("\"{}\"", name.replace('"', "\"\""));
        format!(
            "create table {quoted} ({quoted} int primary key default 7, other text default 'o');"
        )
    };
    let world = World::new(&names.iter().map(table).collect::<String>()).await;
    for name in names {
        let key = serde_json::to_string(name).unwrap();
        let filter = name.replace('"', "\\\"");
        let filter = format!("\"{filter}\"=eq.1");
        let body = format!(r#"{{{key}: 1, "other": "a"}}"#);
        let row = |other: &str| json!([{name: 1, "other": other}]);
        let mut insert = change("POST", name, "", &body);
        insert.wants_location = true;
        assert_eq!(rows(world.write(insert).await), row("a"), "{name}");
        insert.resolution = Some(Resolution::MergeDuplicates);
        assert_eq!(rows(world.write(insert).await), row("a"), "{name}");
        assert_eq!(rows(world.write(change("PUT", name, &filter, &body)).await), row("a"));
        let update = change("PATCH", name, &filter, r#"{"other": "b"}"#);
        assert_eq!(rows(world.write(update).await), row("b"), "{name}");
        assert_eq!(rows(world.write(change("DELETE", name, &filter, "")).await), row("b"));
        let body = format!(r#"[{{{key}: 1}}, {{"other": "b"}}]"#);
        let columns = name.replace('"', "\\\"");
        let columns = format!("columns=\"{columns}\",other");
        let mut filled = change("POST", name, &columns, &body);
        filled.missing = Missing::Default;
        let expected = json!([{name: 1, "other": "o"}, {name: 7, "other": "b"}]);
        assert_eq!(rows(world.write(filled).await), expected, "{name}");
    }
}

#[tokio::test]
async fn what_was_written_is_shown_with_what_is_related() {
    let world = World::new(
        "create table clients (id int primary key, name text);
        create table projects (id int primary key, client_id int references clients, name text);
        insert into clients values (1, 'one');",
    )
    .await;
    let body = r#"[{"id": 1, "client_id": 1}, {"id": 2, "client_id": null}]"#;
    let insert = change("POST", "projects", "select=id,clients(name)&order=id", body);
    let expected = json!([{"id": 1, "clients": {"name": "one"}}, {"id": 2, "clients": null}]);
    assert_eq!(rows(world.write(insert).await), expected);
    let query = "id=gt.0&select=clients!inner(id)&order=id";
    let mut update = change("PATCH", "projects", query, r#"{"name": "x"}"#);
    update.count = Some(Count::Exact);
    let answer = world.write(update).await.unwrap();
    // Both were changed, one is shown.
    assert_eq!((answer.page_total, answer.total), (2, Some(2)));
    assert_eq!(rows(Ok(answer)), json!([{"clients": {"id": 1}}]));
    let shown = change(
        "PATCH",
        "projects",
        "clients.name=eq.two&id=eq.1&select=id,clients(id)",
        r#"{"name": "y"}"#,
    );
    assert_eq!(rows(world.write(shown).await), json!([{"id": 1, "clients": null}]));
    let unknown = change("POST", "projects", "select=nope(*)", body);
    assert_eq!(code(world.write(unknown).await), "PGRST200");
}
