//! Statements that read, run on a real Postgres as a plain role and compared with SQL by hand.

use std::error::Error;

use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use tokio_postgres::Client;
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};
use walcast::rest::Problem;
use walcast::rest::request::{self, Query};
use walcast::rest::schema::{self, Schema};
use walcast::rest::sql::Statement;
use walcast::rest::statement::read::{Reading, estimate, planned_rows, read};
use walcast::rest::statement::{Count, Form};

use crate::cluster::Database;

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
        let database = Database::create().await;
        let admin = database.client().await;
        // Roles are the cluster's: other tests of this file may make it at the same moment.
        let role = "begin; select pg_advisory_xact_lock(7010);
            do $$ begin
                if not exists (select from pg_roles where rolname = 'rest_read_role') then
                    create role rest_read_role;
                end if;
            end $$;
            commit;";
        admin.batch_execute(role).await.unwrap();
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
            parameters.iter().map(|value| value as &(dyn ToSql + Sync)).collect();
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
async fn embedded_rows() {
    let world = World::create().await;
    for (request, sql) in [
        // To one, by table, by column, by constraint; with an alias.
        (
            "projects?select=id,clients(name)&order=id",
            "select id, (select json_build_object('name', name) from clients c where c.id = client_id) clients from projects order by id",
        ),
        (
            "projects?select=id,client_id(*)&order=id",
            "select id, (select row_to_json(c) from clients c where c.id = client_id) client_id from projects order by id",
        ),
        (
            "projects?select=id,who:projects_client_id_fkey(name)&id=eq.1",
            "select 1 id, '{\"name\":\"Ada\"}'::json who",
        ),
        // To many, and to one from the other side.
        (
            "clients?select=id,projects(id,name)&projects.order=id.desc&order=id",
            "select id, (select coalesce(json_agg(json_build_object('id', p.id, 'name', p.name) order by p.id desc), '[]') from projects p where p.client_id = c.id) projects from clients c order by id",
        ),
        (
            "projects?select=id,budgets(amount)&order=id",
            "select id, (select json_build_object('amount', amount) from budgets b where b.project_id = p.id) budgets from projects p order by id",
        ),
        // Through a junction, both ways.
        (
            "projects?select=id,users(name)&users.order=name&order=id",
            "select id, (select coalesce(json_agg(json_build_object('name', u.name) order by u.name), '[]') from users u, members m where m.user_id = u.id and m.project_id = p.id) users from projects p order by id",
        ),
        (
            "users?select=name,projects!members(id)&projects.order=id&order=id",
            "select name, (select coalesce(json_agg(json_build_object('id', project_id) order by project_id), '[]') from members m where m.user_id = u.id) projects from users u order by id",
        ),
        (
            "users?select=name,members(role)&id=eq.2",
            "select 'Vic' \"name\", '[{\"role\":\"hand\"}]'::json members",
        ),
        // Of its own kind.
        (
            "tasks?select=id,parent(title)&order=id",
            "select id, (select json_build_object('title', title) from tasks p where p.id = t.parent) parent from tasks t order by id",
        ),
        (
            "tasks?select=id,children:tasks(id)&children.order=id&order=id",
            "select id, (select coalesce(json_agg(json_build_object('id', c.id) order by c.id), '[]') from tasks c where c.parent = t.id) children from tasks t order by id",
        ),
        (
            "tasks?select=id,tasks!parent(id)&tasks.order=id&id=eq.1",
            "select 1 id, '[{\"id\":2},{\"id\":3}]'::json tasks",
        ),
        // Itself through a junction.
        (
            "users?select=id,users!follows_follower_fkey(id)&users.order=id&id=eq.1",
            "select 1 id, '[{\"id\":2},{\"id\":3}]'::json users",
        ),
        // Hints.
        (
            "messages?select=id,users!sender(name)&id=eq.1",
            "select 1 id, '{\"name\":\"Uma\"}'::json users",
        ),
        (
            "messages?select=id,from:users!messages_sender_fkey(name),to:receiver(name)&order=id",
            "select id, (select json_build_object('name', name) from users u where u.id = sender) \"from\", (select json_build_object('name', name) from users u where u.id = receiver) \"to\" from messages order by id",
        ),
        // Of a view.
        (
            "open_projects?select=id,clients(name)&order=id",
            "select id, (select json_build_object('name', name) from clients c where c.id = client_id) clients from open_projects order by id",
        ),
        // Deep.
        (
            "clients?select=id,projects(id,tasks(id,parent(id)),users(name))&projects.order=id&projects.tasks.order=id&projects.users.order=name&id=eq.1",
            "select 1 id, '[{\"id\":1,\"tasks\":[{\"id\":1,\"parent\":null},{\"id\":2,\"parent\":{\"id\":1}},{\"id\":3,\"parent\":{\"id\":1}}],\"users\":[{\"name\":\"Uma\"},{\"name\":\"Vic\"}]},{\"id\":2,\"tasks\":[{\"id\":4,\"parent\":null}],\"users\":[{\"name\":\"Uma\"}]}]'::json projects",
        ),
    ] {
        world.check(request, sql).await;
    }
}

#[tokio::test]
async fn embedded_rows_are_filtered_ordered_and_cut() {
    let world = World::create().await;
    for (request, sql) in [
        (
            "clients?select=id,projects(id)&projects.active=is.true&projects.order=id&order=id",
            "select id, (select coalesce(json_agg(json_build_object('id', p.id) order by p.id), '[]') from projects p where p.client_id = c.id and p.active) projects from clients c order by id",
        ),
        (
            "clients?select=id,projects(id)&projects.order=id.desc&projects.limit=1&id=eq.1",
            "select 1 id, '[{\"id\":2}]'::json projects",
        ),
        (
            "clients?select=id,projects(id)&projects.order=id&projects.offset=1&id=eq.1",
            "select 1 id, '[{\"id\":2}]'::json projects",
        ),
        (
            "clients?select=id,p:projects(id)&p.or=(id.eq.1,id.eq.3)&order=id",
            "select id, (select coalesce(json_agg(json_build_object('id', p.id) order by p.id), '[]') from projects p where p.client_id = c.id and id in (1, 3)) p from clients c order by id",
        ),
        // The alias is not the only name.
        (
            "clients?select=id,p:projects(id)&projects.id=eq.1&id=eq.1",
            "select 1 id, '[{\"id\":1}]'::json p",
        ),
        (
            "projects?select=id,clients(name)&clients.name=eq.Ada&order=id",
            "select id, (select json_build_object('name', name) from clients c where c.id = client_id and name = 'Ada') clients from projects order by id",
        ),
        (
            "projects?select=id,clients(name)&clients.limit=0&id=eq.1",
            "select 1 id, null::json clients",
        ),
        // Rows without related ones are left out.
        (
            "projects?select=id,clients!inner(name)&clients.name=eq.Ada&order=id",
            "select p.id, json_build_object('name', c.name) clients from projects p join clients c on c.id = client_id where c.name = 'Ada' order by 1",
        ),
        (
            "projects?select=id,clients!inner()&clients.name=eq.Ada&order=id",
            "select p.id from projects p join clients c on c.id = client_id where c.name = 'Ada' order by 1",
        ),
        (
            "clients?select=id,projects!inner(id)&projects.id=gt.1&projects.order=id&order=id",
            "select c.id, (select json_agg(json_build_object('id', p.id) order by p.id) from projects p where p.client_id = c.id and p.id > 1) projects from clients c where exists (select from projects p where p.client_id = c.id and p.id > 1) order by 1",
        ),
        (
            "clients?select=id,projects!inner(id)&projects.offset=1&order=id",
            "select 1 id, '[{\"id\":2}]'::json projects",
        ),
        ("clients?select=id,projects!inner(id)&projects.limit=0", "select 1 where false"),
        (
            "users?select=id,projects!inner(id)&projects.name=eq.Engine&order=id",
            "select u.id, '[{\"id\":1}]'::json projects from users u where id in (1, 2) order by 1",
        ),
        (
            "clients?select=id,projects!inner(id,tasks!inner(id))&projects.tasks.title=eq.weave",
            "select 1 id, '[{\"id\":2,\"tasks\":[{\"id\":4}]}]'::json projects",
        ),
        (
            "tasks?select=id,projects!inner(id,clients!inner(id))&projects.clients.name=eq.Bob&order=id",
            "select t.id, '{\"id\":3,\"clients\":{\"id\":2}}'::json projects from tasks t where project_id = 3 order by 1",
        ),
        (
            "tasks?select=id,projects(id,clients!inner(id))&projects.clients.name=eq.Bob&order=id&id=in.(1,5)",
            "select * from (values (1, null), (5, '{\"id\":3,\"clients\":{\"id\":2}}'::json)) v(id, projects)",
        ),
        // Whether there are any.
        ("clients?select=id,projects()&projects=is.null", "select 3 id"),
        (
            "clients?select=id,projects()&projects=not.is.null&order=id",
            "select id from clients where id < 3 order by id",
        ),
        (
            "projects?select=id,clients(),budgets()&or=(clients.is.null,budgets.not.is.null)&order=id",
            "select id from projects where id in (1, 3, 4) order by id",
        ),
        (
            "clients?select=id,projects()&projects.active=is.false&projects=is.null&order=id",
            "select id from clients where id > 1 order by id",
        ),
        (
            "clients?select=id,projects(id,tasks())&projects.tasks=is.null&projects.order=id&id=lt.3&order=id",
            "select id, '[]'::json projects from clients where id < 3 order by id",
        ),
        // By what is embedded.
        (
            "projects?select=id,clients(id)&order=clients(name).desc.nullslast,id",
            "select p.id, (case when c.id is not null then json_build_object('id', c.id) end) clients from projects p left join clients c on c.id = client_id order by c.name desc nulls last, p.id",
        ),
        (
            "projects?select=id,clients()&order=clients(name).desc.nullslast,clients(data->>city),id",
            "select p.id from projects p left join clients c on c.id = client_id order by c.name desc nulls last, p.id",
        ),
        (
            "tasks?select=id,p:projects(...clients(client:name))&order=p(name),id",
            "select t.id, json_build_object('client', c.name) p from tasks t left join projects p on p.id = project_id left join clients c on c.id = client_id order by p.name, t.id",
        ),
        (
            "clients?select=id,projects(id,budgets(amount))&projects.order=budgets(amount).nullslast,id&id=eq.1",
            "select 1 id, '[{\"id\":1,\"budgets\":{\"amount\":1000.50}},{\"id\":2,\"budgets\":null}]'::json projects",
        ),
        // Spread.
        (
            "projects?select=id,...clients(client:name,data->>city)&order=id",
            "select p.id, c.name client, c.data->>'city' city from projects p left join clients c on c.id = client_id order by 1",
        ),
        (
            "projects?select=id,...clients(*)&id=eq.3",
            "select 2 id, 'Bob' \"name\", c.data, c.raw from clients c where id = 2",
        ),
        (
            "tasks?select=id,...projects(project:name,...clients(client:name,client_id:id),budgets(amount))&order=id",
            "select t.id, p.name project, c.name client, c.id client_id, (select json_build_object('amount', amount) from budgets b where b.project_id = p.id) budgets from tasks t left join projects p on p.id = project_id left join clients c on c.id = client_id order by 1",
        ),
        (
            "projects?select=id,...clients!inner(client:name)&order=clients(name).desc,id",
            "select p.id, c.name client from projects p join clients c on c.id = client_id order by c.name desc, p.id",
        ),
        ("projects?select=id,...clients(a:name,a:id)&id=eq.3", "select 3 id, 'Bob' a, 2 a"),
    ] {
        world.check(request, sql).await;
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_refused() {
    let world = World::create().await;
    for (request, expected) in [
        ("projects?select=nope", "400 42703"),
        ("projects?nope=eq.1", "400 42703"),
        ("projects?order=nope", "400 42703"),
        ("projects?select=clients(nope)", "400 42703"),
        ("projects?select=clients(id)&clients.nope=eq.1", "400 42703"),
        ("projects?select=id,clients(id)&order=clients(nope)", "400 42703"),
        ("users?select=full_name", "400 PGRST127"),
        ("clients?select=id,recent(id)", "400 PGRST127"),
        ("projects?select=lonely(id)", "400 PGRST200"),
        ("projects?select=clients!nope(id)", "400 PGRST200"),
        ("messages?select=users(id)", "300 PGRST201"),
        ("users?select=users!follows(id)", "300 PGRST201"),
        ("users?select=users(id)", "400 PGRST200"),
        ("projects?clients.id=eq.1", "400 PGRST108"),
        ("projects?clients.order=id", "400 PGRST108"),
        ("projects?clients.limit=1", "400 PGRST108"),
        ("projects?select=clients(id)&clients.tasks.id=eq.1", "400 PGRST108"),
        ("projects?order=clients(id)", "400 PGRST108"),
        ("clients?select=projects(id)&order=projects(id)", "400 PGRST118"),
        ("clients?select=...projects(id)", "400 PGRST119"),
        ("clients?select=projects(id)&projects=eq.1", "400 PGRST120"),
        ("projects?select=id::nope", "42704"),
        ("projects?select=id::text[]", "42846"),
        ("projects?id=eq.x", "22P02"),
        ("projects?id=like.x", "42883"),
        ("projects?name=is.true", "42804"),
        ("clients?raw=eq.1", "42883"),
        ("tasks?words=fts(nope).x", "42704"),
        // What Postgres says about the text of a search; its own SQL is never wrong.
        ("tasks?words=fts.a b", "42601"),
        ("projects?limit=99999999999999999999", "416 PGRST103"),
    ] {
        world.refused(request, expected).await;
    }
    world.admin.batch_execute("revoke select on clients from rest_read_role").await.unwrap();
    world.refused("projects?select=clients(id)", "42501").await;
    world.refused("clients?select=id", "42501").await;
}

#[tokio::test]
async fn several_relationships_are_listed() {
    let world = World::create().await;
    let problem = world.problem("messages?select=users(id)");
    assert_eq!(
        problem.message,
        "Could not embed because more than one relationship was found for 'messages' and 'users'"
    );
    assert_eq!(
        problem.hint.unwrap(),
        "Try changing 'users' to one of the following: 'users!messages_receiver_fkey', \
         'users!messages_sender_fkey'. Find the desired relationship in the 'details' key."
    );
    assert_eq!(
        problem.details.unwrap(),
        json!([
            {
                "cardinality": "many-to-one",
                "embedding": "messages with users",
                "relationship": "messages_receiver_fkey using messages(receiver) and users(id)",
            },
            {
                "cardinality": "many-to-one",
                "embedding": "messages with users",
                "relationship": "messages_sender_fkey using messages(sender) and users(id)",
            },
        ])
    );
    let problem = world.problem("users?select=users!follows(id)");
    assert_eq!(
        problem.hint.unwrap(),
        "Try changing 'users' to one of the following: 'users!follows_follower_fkey', \
         'users!follows_followed_fkey'. Find the desired relationship in the 'details' key."
    );
    assert_eq!(
        problem.details.unwrap()[0],
        json!({
            "cardinality": "many-to-many",
            "embedding": "users with users",
            "relationship": "follows using follows_followed_fkey(followed) and \
                             follows_follower_fkey(follower)",
        })
    );
    let problem = world.problem("projects?select=client!x(id)");
    assert_eq!(
        problem.message,
        "Could not find a relationship between 'projects' and 'client' in the schema cache"
    );
    assert_eq!(
        problem.details.unwrap(),
        "Searched for a foreign key relationship between 'projects' and 'client' using the hint \
         'x' in the schema 'public', but no matches were found."
    );
    assert_eq!(problem.hint.unwrap(), "Perhaps you meant 'clients' instead of 'client'.");
}

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
                let value: String = value.bytes().map(|byte| format!("%{byte:02x}")).collect();
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
