//! Statements that read, run on a real Postgres as a plain role and compared with SQL by hand.

mod counts;
mod embedded;
mod random;
mod refused;
mod rows;
mod values;

use std::error::Error;

use bytes::{Bytes, BytesMut};
use serde_json::Value;
use tokio::sync::OnceCell;
use tokio_postgres::Client;
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};
use walcast::rest::Problem;
use walcast::rest::request::{self, Query};
use walcast::rest::schema::{self, Schema};
use walcast::rest::sql::Statement;
use walcast::rest::statement::read::{Reading, read};
use walcast::rest::statement::{Count, Form};

use crate::cluster::{self, Database};

/// Clients have projects, projects have tasks and members; tasks have a parent; a project has at
/// most one budget. Names are such as people give them, and such as they should not.
const WORLD: &str = r#"
    create table clients (id int primary key, name text not null, data jsonb, raw json);
    create table projects (
        id int primary key, name text not null, client_id int references clients,
        tags text[] not null default '{}', due date, active boolean
    );
    create table users (id int primary key, name text not null, "odd ""name""" int);
    create table members (
        user_id int references users, project_id int references projects, role text,
        primary key (user_id, project_id)
    );
    create table tasks (
        id int primary key, project_id int references projects, parent int references tasks,
        title text not null, words tsvector generated always as (to_tsvector('english', title)) stored
    );
    create table budgets (project_id int primary key references projects, amount numeric not null);
    create table messages (
        id int primary key,
        sender int constraint messages_sender_fkey references users,
        receiver int constraint messages_receiver_fkey references users,
        body text
    );
    create table follows (
        follower int constraint follows_follower_fkey references users,
        followed int constraint follows_followed_fkey references users,
        primary key (follower, followed)
    );
    create table lonely (id int primary key);
    create view open_projects as select id, name, client_id from projects where active;
    create table many (id int primary key, n int);
    create function full_name(users) returns text language sql stable as $$ select $1.name $$;
    create function recent(clients) returns setof projects language sql stable
        as $$ select * from projects where client_id = $1.id $$;

    insert into clients values
        (1, 'Ada', '{"city": "London", "tags": ["a", "b"], "size": 10, "deep": {"x": [1, 2]}}', '{"z":1.50}'),
        (2, 'Bob', '{"city": "Paris", "tags": [], "size": 9}', null),
        (3, 'Cy, "the" \ one', null, null);
    insert into projects values
        (1, 'Engine', 1, '{x,y}', '2026-01-01', true), (2, 'Loom', 1, '{y}', '2026-06-01', false),
        (3, 'Boat', 2, '{}', null, null), (4, 'Orphan', null, '{x,z}', '2025-01-01', true);
    insert into users values (1, 'Uma', 7), (2, 'Vic', null), (3, 'Wen', 9);
    insert into members values (1, 1, 'lead'), (2, 1, 'hand'), (1, 2, 'hand'), (3, 3, 'lead');
    insert into tasks values
        (1, 1, null, 'draw the plans'), (2, 1, 1, 'draw a cat'), (3, 1, 1, 'build it'),
        (4, 2, null, 'weave'), (5, 3, null, 'caulk'), (6, 3, 5, 'paint'), (7, 3, 6, 'launch');
    insert into budgets values (1, 1000.50), (3, 20);
    insert into messages values (1, 1, 2, 'hi'), (2, 2, 1, 'ho'), (3, 3, null, 'hm');
    insert into follows values (1, 2), (2, 1), (3, 1);
    insert into many select n, n % 7 from generate_series(1, 2500) n;
    analyze many;
    grant select on all tables in schema public to rest_read_role;
"#;

/// A database, its picture, and a connection as a plain role.
struct World {
    schema: Schema,
    reader: Client,
    admin: Client,
    _database: Database,
}

impl World {
    async fn create() -> Self {
        Self::of(WORLD).await
    }

    async fn of(sql: &str) -> Self {
        static MADE: OnceCell<()> = OnceCell::const_new();
        let database = Database::create().await;
        let admin = database.client().await;
        cluster::roles(&MADE, "create role rest_read_role").await;
        admin.batch_execute(sql).await.unwrap();
        let schema = schema::load(&admin, &["public".to_owned()]).await.unwrap();
        let reader = database.client().await;
        reader.batch_execute("set role rest_read_role").await.unwrap();
        Self { schema, reader, admin, _database: database }
    }

    fn statement(
        &self,
        request: &str,
        form: Form,
        count: Option<Count>,
    ) -> Result<Statement, Problem> {
        self.with(request, |query, relation| {
            let rows_max = Some(1000);
            read(&Reading { schema: &self.schema, relation, query, form, count, rows_max })
        })
    }

    fn with<T>(
        &self,
        request: &str,
        then: impl FnOnce(&Query, &schema::Relation) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        let (name, query) = request.split_once('?').unwrap_or((request, ""));
        let relation = self.schema.relation("public", name).unwrap_or_else(|| panic!("no {name}"));
        let pairs = request::pairs(query)?;
        let pairs = pairs.iter().map(|(name, value)| (&**name, &**value));
        then(&Query::parse(pairs, |_| false)?, relation)
    }

    /// Body, rows of the page, rows in all.
    async fn answer(&self, statement: &Statement) -> Result<Answer, String> {
        let parameters = statement.parameters.iter().map(Text);
        let parameters: Vec<Text<'_>> = parameters.collect();
        let parameters: Vec<&(dyn ToSql + Sync)> =
            parameters.iter().map(|value| -> &(dyn ToSql + Sync) { value }).collect();
        let row = match self.reader.query_one(&statement.text, &parameters).await {
            Ok(row) => row,
            Err(error) => {
                let code = error.code().map(|code| code.code().to_owned());
                return Err(code.unwrap_or_else(|| format!("{error}: {}", statement.text)));
            }
        };
        let body: Option<&str> = row.get("body");
        Ok(Answer {
            body: body.map(|body| serde_json::from_str(body).unwrap()),
            page_total: row.get::<_, &str>("page_total").parse().unwrap(),
            total: row.get::<_, Option<&str>>("total").map(|total| total.parse().unwrap()),
        })
    }

    /// The body of `GET /request`, or what was wrong: `status code`, or an SQLSTATE.
    async fn get(&self, request: &str) -> Result<Value, String> {
        let statement = self.statement(request, Form::Array, None);
        let statement =
            statement.map_err(|problem| format!("{} {}", problem.status.as_u16(), problem.code))?;
        Ok(self.answer(&statement).await?.body.unwrap())
    }

    /// The answer to `request` is the JSON that `sql` gives.
    async fn check(&self, request: &str, sql: &str) {
        let sql = format!("select coalesce(json_agg(x), '[]') from ({sql}) x");
        let expected: Value = self.admin.query_one(&sql, &[]).await.unwrap().get(0);
        assert_eq!(self.get(request).await, Ok(expected), "{request}");
    }

    /// The request is refused.
    async fn refused(&self, request: &str, expected: &str) {
        assert_eq!(self.get(request).await, Err(expected.to_owned()), "{request}");
    }

    fn problem(&self, request: &str) -> Problem {
        self.statement(request, Form::Array, None).unwrap_err()
    }
}

#[derive(Debug, PartialEq)]
struct Answer {
    body: Option<Value>,
    page_total: u64,
    total: Option<u64>,
}

/// A parameter as text, of whatever type Postgres inferred.
#[derive(Debug)]
struct Text<'a>(&'a Option<Bytes>);

impl ToSql for Text<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.extend_from_slice(self.0.as_ref().unwrap());
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
