//! Related rows.

use super::World;

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
        // Nothing at all is shown.
        ("projects?select=clients()&clients=not.is.null", "select from projects where id < 4"),
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
