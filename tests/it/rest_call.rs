//! Calls of the REST dialect, as statements, run as the caller; Postgres is the oracle.

use bytes::Bytes;
use serde_json::{Value, json};
use walcast::rest::Problem;
use walcast::rest::request::{self, Body, Query};
use walcast::rest::schema::Schema;
use walcast::rest::sql::Statement;
use walcast::rest::statement::call::{Arguments, Calling, call, choose};
use walcast::rest::statement::{Answer, Count, Form};

use crate::rest_write::{Refusal, World, rows};

/// A call, before its names are looked up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) function: &'a str,
    pub(crate) query: &'a str,
    /// None: by `GET`, with arguments in the query string.
    pub(crate) body: Option<&'a str>,
    pub(crate) form: Form,
    pub(crate) count: Option<Count>,
    pub(crate) rows_max: Option<u64>,
}

fn post<'a>(function: &'a str, query: &'a str, body: &'a str) -> Call<'a> {
    let (form, count, rows_max) = (Form::Array, None, None);
    Call { function, query, body: Some(body), form, count, rows_max }
}

fn get<'a>(function: &'a str, query: &'a str) -> Call<'a> {
    Call { body: None, ..post(function, query, "") }
}

impl Call<'_> {
    pub(crate) fn statement(&self, schema: &Schema) -> Result<Statement, Problem> {
        let decoded = request::pairs(self.query)?;
        let pairs: Vec<(&str, &str)> =
            decoded.iter().map(|(name, value)| (&**name, &**value)).collect();
        let (arguments, body);
        let (names, arguments): (Vec<&str>, _) = if let Some(text) = self.body {
            body = Body::parse(&axum::http::HeaderMap::new(), Bytes::from(text.to_owned()))?;
            let names = body.keys().iter().map(String::as_str).collect();
            (names, Arguments::Body(&body))
        } else {
            arguments = request::arguments(&pairs);
            let names = arguments.iter().map(|(name, _)| *name).collect();
            (names, Arguments::Pairs(&arguments))
        };
        let function = choose(schema, "api", self.function, &names)?;
        let is_argument = |name: &str| self.body.is_none() && names.contains(&name);
        let query = Query::parse(pairs.iter().copied(), is_argument)?;
        let (form, count, rows_max) = (self.form, self.count, self.rows_max);
        call(&Calling { schema, function, arguments, query: &query, form, count, rows_max })
    }
}

impl World {
    async fn call(&self, call: Call<'_>) -> Result<Answer, Refusal> {
        let statement = call.statement(&self.schema).map_err(Refusal::Ours)?;
        self.run(&statement, true).await.map_err(|error| Refusal::of(&error))
    }

    async fn called(&self, call: Call<'_>) -> Value {
        rows(self.call(call).await)
    }
}

async fn code(world: &World, call: Call<'_>) -> String {
    String::from(world.call(call).await.unwrap_err().code())
}

const FUNCTIONS: &str = r#"
    create type mood as enum ('good', 'bad');
    create table items (id int primary key, name text, mood mood);
    create table parts (id int primary key, item_id int references items);
    insert into items select n, 'item ' || n, 'good' from generate_series(1, 5) as n;
    insert into parts values (10, 1), (11, 1), (12, 2);
    create type pair as (a int, b text);
    create function add(a int, b int default 10) returns int language sql as 'select a + b';
    create function echo(v json) returns json language sql as 'select v';
    create function echo_text(v text) returns text language sql as 'select v';
    create function moods(m mood, l int[] default '{}') returns mood[] language sql
        as 'select array_fill(m, array[cardinality(l)])';
    create function nothing(v text) returns void language plpgsql as
        $$ begin insert into items values (100, v); end $$;
    create function stable_nothing() returns void language plpgsql stable as
        $$ begin raise exception 'called' using errcode = 'PT402'; end $$;
    create function missing() returns text language sql as 'select null::text';
    create function series(top int) returns setof int language sql as
        'select n from generate_series(1, top) as n';
    create function all_items() returns setof items language sql stable as 'select * from items';
    create function item(i int) returns items language sql stable as
        'select * from items where id = i';
    create function make_pair(a int) returns pair language sql as $$ select row(a, 'b')::pair $$;
    create function tabled(n int) returns table (x int, "y y" text) language sql as
        $$ select i, 'v' || i from generate_series(1, n) as i $$;
    create function single(n int) returns table (x int) language sql as
        $$ select i from generate_series(1, n) as i $$;
    create function out_one(a int, out r int) language sql as 'select a * 2';
    create function out_two(inout a int, out r text) language sql as $$ select a, 'r' $$;
    create function recorded(a int) returns record language sql as $$ select a, 'x'::text $$;
    create function joined(sep text, variadic v text[]) returns text language sql as
        'select array_to_string(v, sep)';
    create function over(a int) returns text language sql as $$ select 'int' $$;
    create function over(a text) returns text language sql as $$ select 'text' $$;
    create function over(b date) returns text language sql as $$ select 'b' $$;
    create function whole(json) returns json language sql as 'select $1';
    create function poly(a anyelement) returns anyelement language sql as 'select a';
    create function who() returns text language sql as
        $$ select current_user || ' ' || (current_setting('request.jwt.claims')::json ->> 'sub') $$;
    create function "we""ird; --"("a b" int, "select" text default 'd') returns text language sql
        as 'select $1 || $2';
    create function count_calls() returns int language sql volatile as
        $$ insert into items select max(id) + 1, 'new' from items returning id $$;
"#;

#[tokio::test]
async fn a_function_returns_what_its_body_says() {
    let world = World::new(FUNCTIONS).await;
    let w = &world;
    assert_eq!(w.called(post("add", "", r#"{"a": 1}"#)).await, json!(11));
    assert_eq!(w.called(post("add", "", r#"{"b": 2, "a": 1}"#)).await, json!(3));
    assert_eq!(w.called(post("echo_text", "", r#"{"v": "\"'\\ä"}"#)).await, json!("\"'\\ä"));
    assert_eq!(w.called(post("missing", "", "")).await, Value::Null);
    assert_eq!(w.called(post("who", "", "{}")).await, json!("rest_caller me"));
    let moods = r#"{"m": "bad", "l": [1, 2]}"#;
    assert_eq!(w.called(post("moods", "", moods)).await, json!(["bad", "bad"]));
    // JSON stays as it was written.
    let exact = r#"{"v": {"b" : 1.50, "a": 12345678901234567890.10} }"#;
    let answer = world.call(post("echo", "", exact)).await.unwrap();
    assert_eq!(answer.body.as_deref(), Some(r#"{"b" : 1.50, "a": 12345678901234567890.10}"#));
    assert_eq!((answer.page_total, answer.total, answer.inserted), (1, None, None));
    let odd = r#"{"a b": 1, "select": "x"}"#;
    assert_eq!(w.called(post("we\"ird; --", "", odd)).await, json!("1x"));
    let many = r#"{"sep": "-", "v": ["a", "b"]}"#;
    assert_eq!(w.called(post("joined", "", many)).await, json!("a-b"));
    assert_eq!(w.called(post("over", "", r#"{"b": null}"#)).await, json!("b"));
    // Once, whatever is made of it.
    let mut counted = post("count_calls", "", "");
    counted.count = Some(Count::Exact);
    assert_eq!(w.called(counted).await, json!(6));
    assert_eq!(w.rows("select max(id) from items").await, json!([{"max": 6}]));
}

#[tokio::test]
async fn a_function_that_returns_nothing_is_called_nevertheless() {
    let world = World::new(FUNCTIONS).await;
    for form in [Form::Array, Form::Object, Form::None] {
        let mut call = post("nothing", "", r#"{"v": "x"}"#);
        call.form = form;
        let answer = world.call(call).await.unwrap();
        assert_eq!(answer, Answer { page_total: 1, ..Answer::default() });
        world.admin.batch_execute("delete from items where id = 100").await.unwrap();
        let mut call = post("stable_nothing", "", "");
        call.form = form;
        assert_eq!(code(&world, call).await, "PT402");
    }
    let mut call = post("count_calls", "", "");
    call.form = Form::None;
    assert_eq!(world.call(call).await.unwrap().body, None);
    assert_eq!(world.rows("select max(id) from items").await, json!([{"max": 6}]));
}

#[tokio::test]
async fn a_set_is_an_array_and_a_row_an_object() {
    let world = World::new(FUNCTIONS).await;
    let w = &world;
    assert_eq!(w.called(post("series", "", r#"{"top": 3}"#)).await, json!([1, 2, 3]));
    assert_eq!(w.called(post("series", "", r#"{"top": 0}"#)).await, json!([]));
    let all = w.rows("select * from items").await;
    assert_eq!(w.called(post("all_items", "", "")).await, all);
    assert_eq!(w.called(post("item", "", r#"{"i": 1}"#)).await, all[0]);
    let none = json!({"id": null, "name": null, "mood": null});
    assert_eq!(w.called(post("item", "", r#"{"i": 77}"#)).await, none);
    let pair = post("make_pair", "", r#"{"a": 1}"#);
    assert_eq!(w.called(pair).await, json!({"a": 1, "b": "b"}));
    let tabled = post("tabled", "", r#"{"n": 2}"#);
    let expected = json!([{"x": 1, "y y": "v1"}, {"x": 2, "y y": "v2"}]);
    assert_eq!(w.called(tabled).await, expected);
    let single = post("single", "", r#"{"n": 1}"#);
    assert_eq!(w.called(single).await, json!([{"x": 1}]));
    assert_eq!(w.called(post("out_one", "", r#"{"a": 2}"#)).await, json!({"r": 4}));
    let two = post("out_two", "", r#"{"a": 2}"#);
    assert_eq!(w.called(two).await, json!({"a": 2, "r": "r"}));
    let recorded = w.called(post("recorded", "", r#"{"a": 2}"#)).await;
    assert_eq!(recorded.as_object().unwrap().len(), 2);
    // A single object is asked for.
    let mut one = post("all_items", "id=eq.2&select=name", "");
    one.form = Form::Object;
    assert_eq!(w.called(one).await, json!({"name": "item 2"}));
    one.query = "select=name";
    assert_eq!(w.call(one).await.unwrap().page_total, 5);
}

#[tokio::test]
async fn rows_of_a_function_are_queried_like_those_of_a_table() {
    let world = World::new(FUNCTIONS).await;
    let w = &world;
    let query = "select=n:name,id&id=gt.1&order=id.desc&limit=2&offset=1";
    let mut call = post("all_items", query, "");
    call.count = Some(Count::Planned);
    let answer = w.call(call).await.unwrap();
    assert_eq!((answer.page_total, answer.total), (2, Some(4)));
    assert_eq!(rows(Ok(answer)), json!([{"n": "item 4", "id": 4}, {"n": "item 3", "id": 3}]));
    (call.rows_max, call.query) = (Some(3), "select=id");
    let answer = w.call(call).await.unwrap();
    assert_eq!((answer.page_total, answer.total), (3, Some(5)));
    let related = get("all_items", "select=id,parts(id)&id=lte.2&order=id");
    let expected = json!([
        {"id": 1, "parts": [{"id": 10}, {"id": 11}]}, {"id": 2, "parts": [{"id": 12}]}
    ]);
    assert_eq!(w.called(related).await, expected);
    let tabled = get("tabled", "n=5&x=in.(2,3)&select=\"y y\"&order=x.desc");
    assert_eq!(w.called(tabled).await, json!([{"y y": "v3"}, {"y y": "v2"}]));
    let mut series = get("series", "top=9&limit=2&offset=3&select=*,*");
    series.count = Some(Count::Exact);
    let answer = w.call(series).await.unwrap();
    assert_eq!((answer.page_total, answer.total), (2, Some(9)));
    assert_eq!(rows(Ok(answer)), json!([4, 5]));
    assert_eq!(w.called(get("series", "top=4&order=series.desc&series=gt.2")).await, json!([4, 3]));
    let moods = get("moods", "m=bad&l={1,2}&moods->>1=eq.bad");
    assert_eq!(w.called(moods).await, json!(["bad", "bad"]));
    assert_eq!(code(w, get("series", "top=4&select=nope")).await, "42703");
    assert_eq!(code(w, get("series", "top=4&select=a:series")).await, "PGRST127");
    assert_eq!(code(w, get("tabled", "n=4&select=nope")).await, "42703");
    assert_eq!(code(w, get("all_items", "nope=eq.1")).await, "42703");
}

#[tokio::test]
async fn arguments_in_a_query_string_are_read_as_their_types() {
    let world = World::new(FUNCTIONS).await;
    let w = &world;
    assert_eq!(w.called(get("add", "a=1&b=2")).await, json!(3));
    assert_eq!(w.called(get("add", "a=1&a=5")).await, json!(15));
    assert_eq!(w.called(get("moods", "m=bad&l={1,2,3}")).await, json!(["bad", "bad", "bad"]));
    assert_eq!(w.called(get("echo", "v={\"a\":[1.0]}")).await, json!({"a": [1.0]}));
    assert_eq!(w.called(get("echo_text", "v=%27%3B--")).await, json!("';--"));
    assert_eq!(w.called(get("joined", "sep=-&v={a,b}")).await, json!("a-b"));
    assert_eq!(w.called(get("joined", "sep=-&v=a%22%5C,&v=b")).await, json!("a\"\\,-b"));
    assert_eq!(w.called(get("we\"ird; --", "a%20b=1")).await, json!("1d"));
    assert_eq!(code(w, get("add", "a=x")).await, "22P02");
    assert_eq!(code(w, get("moods", "m=ugly")).await, "22P02");
    assert_eq!(code(w, get("joined", "sep=-&v=a")).await, "22P02");
}

#[tokio::test]
async fn what_cannot_be_called_is_told_why() {
    let world = World::new(FUNCTIONS).await;
    let w = &world;
    assert_eq!(code(w, post("over", "", r#"{"a": 1}"#)).await, "PGRST203");
    assert_eq!(code(w, post("add", "", r#"{"b": 1}"#)).await, "PGRST202");
    assert_eq!(code(w, post("nope", "", "")).await, "PGRST202");
    assert_eq!(code(w, post("whole", "", r#"{"a": 1}"#)).await, "PGRST127");
    assert_eq!(code(w, post("poly", "", r#"{"a": 1}"#)).await, "PGRST127");
    assert_eq!(code(w, get("poly", "a=1")).await, "PGRST127");
    assert_eq!(code(w, post("who", "", "[]")).await, "PGRST102");
    assert_eq!(code(w, post("who", "", "1")).await, "PGRST102");
    assert_eq!(code(w, post("add", "", r#"{"a": "x"}"#)).await, "22P02");
    let revoke = "revoke execute on function add from public";
    world.admin.batch_execute(revoke).await.unwrap();
    assert_eq!(code(w, post("add", "", r#"{"a": 1}"#)).await, "42501");
}
