//! Domain events declared in SQL, on a whole service.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::cli::walcast;
use crate::events::Stream;
use crate::service::{ALICE, BOB, Service, Socket, Version, service_role, shared, user};

/// The example applications, in the order in which they are loaded.
const EXAMPLES: [&str; 6] = [
    include_str!("../../sql/examples/app.sql"),
    include_str!("../../sql/examples/story-map.sql"),
    include_str!("../../sql/examples/tasks.sql"),
    include_str!("../../sql/examples/reading.sql"),
    include_str!("../../sql/examples/wiki.sql"),
    include_str!("../../sql/examples/pages.sql"),
];

/// A socket in one private room. `service_role` may be in each.
async fn listen(service: &Service, topic: &str) -> Socket {
    let mut socket = service.connect(Version::V1, &service_role()).await;
    join(&mut socket, topic).await;
    socket
}

async fn join(socket: &mut Socket, topic: &str) {
    let payload = json!({ "config": { "private": true, "broadcast": { "self": false } } });
    let reply = socket.join(&format!("realtime:{topic}"), &payload).await;
    assert_eq!(reply["status"], "ok", "{reply}");
}

/// Topic, event and payload of the next message, which must be an event.
async fn hear(socket: &mut Socket) -> (String, String, Value) {
    let message = socket.expect("broadcast").await;
    let mut payload = message.payload;
    let event = payload["event"].as_str().unwrap().to_owned();
    (message.topic, event, payload["payload"].take())
}

/// Each statement in a transaction of its own.
async fn run_each(client: &Client, sql: &str) {
    for statement in sql.split(";\n") {
        run(client, statement).await;
    }
}

async fn run(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

#[tokio::test]
async fn a_new_row_of_a_mapped_table_is_told_in_the_private_room_of_its_topic() {
    let service = shared().await;
    let admin = service.admin().await;
    let stories = service.table("map_id text, step_id int, title text").await;
    let mut room = listen(service, "thin:1").await;
    let mut public = service.connect(Version::V1, &service_role()).await;
    let open = json!({ "config": { "broadcast": { "self": false } } });
    let reply = public.join("realtime:thin:1", &open).await;
    assert_eq!(reply["status"], "ok");
    run(
        &admin,
        &format!(
            "alter table {stories} replica identity full;
             insert into {stories} values (1, '1', 1, 'before');
             select walcast.map_table('{stories}', entity => 'story', topic => 'thin:{{map_id}}');
             insert into {stories} values (2, '1', 3, 'two');
             insert into {stories} values (3, '2', 3, 'elsewhere');"
        ),
    )
    .await;
    let (topic, event, payload) = hear(&mut room).await;
    assert_eq!((&*topic, &*event), ("realtime:thin:1", "story.created"));
    assert_eq!(payload, json!({ "id": 2, "mapId": "1", "stepId": 3, "title": "two" }));
    let origin = json!({ "sub": ALICE }).to_string();
    run(
        &admin,
        &format!(
            "begin;
             select pg_logical_emit_message(true, 'walcast.origin', '{origin}');
             update {stories} set title = 'new' where id = 2;
             delete from {stories} where id = 2;
             commit"
        ),
    )
    .await;
    let (_, event, payload) = hear(&mut room).await;
    assert_eq!((&*event, payload), ("story.updated", json!({ "id": 2, "title": "new" })));
    let (_, event, payload) = hear(&mut room).await;
    assert_eq!((&*event, &payload["id"]), ("story.deleted", &json!(2)));
    assert_eq!(payload["deletedBy"], ALICE);
    assert!(payload["deletedAt"].as_str().unwrap().ends_with('Z'), "{payload}");
    room.nothing_came().await;
    public.nothing_came().await;
}

/// A service with all examples, and a session of alice's that may do everything.
async fn applications() -> (Service, Client) {
    let service = Service::start().await;
    let admin = service.admin().await;
    for example in EXAMPLES {
        run(&admin, example).await;
    }
    let claims = json!({ "sub": ALICE, "role": "authenticated" });
    run(&admin, &format!("set request.jwt.claims = '{claims}'")).await;
    (service, admin)
}

/// Whether a value is what is expected; the text `*` stands for any.
fn matches(expected: &Value, found: &Value) -> bool {
    match (expected, found) {
        (Value::String(any), _) if any == "*" => true,
        (Value::Object(expected), Value::Object(found)) => {
            expected.len() == found.len()
                && expected
                    .iter()
                    .all(|(name, value)| found.get(name).is_some_and(|f| matches(value, f)))
        }
        (Value::Array(expected), Value::Array(found)) => {
            expected.len() == found.len()
                && expected.iter().zip(found).all(|(value, found)| matches(value, found))
        }
        (expected, found) => expected == found,
    }
}

/// The next events of a socket are these, in this order.
#[track_caller]
fn tells<'a>(
    socket: &'a mut Socket,
    expected: &'a [(&'a str, Value)],
) -> impl Future<Output = ()> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        for (event, payload) in expected {
            let (topic, found, said) = hear(socket).await;
            assert_eq!(found, *event, "{caller} {topic} {said}");
            assert!(matches(payload, &said), "{caller} {topic} {event}: {payload} is not {said}");
        }
    }
}

const MAP: &str = "00000000-0000-4000-8000-0000000000f1";
const STORY: &str = "00000000-0000-4000-8000-000000000001";
const STEP: &str = "00000000-0000-4000-8000-000000000002";
const FIRST: &str = "00000000-0000-4000-8000-000000000003";
const SECOND: &str = "00000000-0000-4000-8000-000000000004";
const COMMENT: &str = "00000000-0000-4000-8000-000000000005";

#[tokio::test]
async fn a_story_map_says_what_its_declarations_say() {
    let (service, admin) = applications().await;
    run(
        &admin,
        &format!(
            "insert into storymap.profiles values ('{ALICE}', 'Alice', null, 'a.png'), ('{BOB}', 'Bob', null, null);
             insert into storymap.story_maps (id, title) values ('{MAP}', 'one');
             insert into storymap.steps (id, map_id, name) values ('{STEP}', '{MAP}', 'step');
             insert into storymap.releases (id, map_id, name, sort_order)
                 values ('{FIRST}', '{MAP}', 'r1', 0), ('{SECOND}', '{MAP}', 'r2', 1);"
        ),
    )
    .await;
    service.read_all().await;
    let topic = format!("map:{MAP}");
    let mut room = listen(&service, &topic).await;
    // The policies on realtime.messages are the door.
    let mut stranger = service.connect(Version::V1, &user(BOB)).await;
    let payload = json!({ "config": { "private": true } });
    let reply = stranger.join(&format!("realtime:{topic}"), &payload).await;
    assert_eq!(reply["status"], "error", "{reply}");
    let mut member = service.connect(Version::V1, &user(ALICE)).await;
    join(&mut member, &topic).await;
    run_each(
        &admin,
        &format!(
            "insert into storymap.stories (id, map_id, step_id, release_id, title)
                 values ('{STORY}', '{MAP}', '{STEP}', '{FIRST}', 'story');
             update storymap.stories set title = 'new' where id = '{STORY}';
             select storymap.move_story('{STORY}', '{STEP}', '{SECOND}', 3);
             update storymap.stories set title = 'both', sort_order = 4 where id = '{STORY}';
             update storymap.stories set updated_by = null where id = '{STORY}';
             select storymap.reorder_releases('{MAP}', '{{{SECOND},{FIRST}}}');
             update storymap.releases set name = 'r', sort_order = 7 where id = '{FIRST}';
             insert into storymap.comments (id, story_id, content) values ('{COMMENT}', '{STORY}', 'hi');
             delete from storymap.comments;
             insert into storymap.collaborators values ('{MAP}', '{BOB}', 'viewer');
             update storymap.collaborators set role = 'editor';
             delete from storymap.collaborators;
             delete from storymap.releases where id = '{SECOND}';
             delete from storymap.stories;
             update storymap.story_maps set title = 'two';"
        ),
    )
    .await;
    let moved = |release: Value, order: i32| {
        let by = json!({ "updatedAt": "*", "updatedBy": ALICE });
        json!({
            "id": STORY, "stepId": STEP, "releaseId": release, "sortOrder": order,
            "updatedAt": by["updatedAt"], "updatedBy": by["updatedBy"],
        })
    };
    let updated =
        |title: &str| json!({ "id": STORY, "title": title, "updatedAt": "*", "updatedBy": ALICE });
    let expected = [
        (
            "story.created",
            json!({
                "id": STORY, "stepId": STEP, "releaseId": FIRST, "title": "story", "description": "",
                "sortOrder": 0, "status": "NOT_READY", "size": null, "createdAt": "*",
                "createdBy": ALICE,
            }),
        ),
        ("story.updated", updated("new")),
        ("story.moved", moved(SECOND.into(), 3)),
        ("story.moved", moved(SECOND.into(), 4)),
        ("story.updated", updated("both")),
        (
            "releases.reordered",
            json!({ "updates": [
                { "id": SECOND, "sortOrder": 0 }, { "id": FIRST, "sortOrder": 1 },
            ] }),
        ),
        (
            "release.updated",
            json!({ "id": FIRST, "name": "r", "sortOrder": 7, "updatedAt": "*", "updatedBy": ALICE }),
        ),
        (
            "comment.created",
            json!({
                "id": COMMENT, "storyId": STORY, "content": "hi", "author": "Alice",
                "authorId": ALICE, "avatarUrl": "a.png", "createdAt": "*",
            }),
        ),
        ("comment.deleted", json!({ "id": COMMENT, "storyId": STORY })),
        ("collaborator.added", json!({ "userId": BOB, "role": "viewer" })),
        (
            "collaborator.role_changed",
            json!({ "userId": BOB, "role": "editor", "previousRole": "viewer" }),
        ),
        ("collaborator.removed", json!({ "userId": BOB, "role": "editor" })),
        ("release.deleted", json!({ "id": SECOND, "deletedBy": ALICE, "deletedAt": "*" })),
        ("story.moved", moved(Value::Null, 4)),
        ("story.deleted", json!({ "id": STORY, "deletedBy": ALICE, "deletedAt": "*" })),
        ("map.updated", json!({ "id": MAP, "title": "two", "updatedAt": "*" })),
    ];
    // The order of two rows of one statement is the server's.
    for socket in [&mut room, &mut member] {
        for (event, payload) in &expected {
            let (_, found, mut said) = hear(socket).await;
            if *event == "releases.reordered" {
                let rows = said["updates"].as_array_mut().unwrap();
                rows.sort_by_key(|update| update["sortOrder"].as_i64());
            }
            assert_eq!(found, *event, "{said}");
            assert!(matches(payload, &said), "{event}: {payload} is not {said}");
        }
        socket.nothing_came().await;
    }
}

#[tokio::test]
async fn tasks_are_told_once_a_connection_and_follow_their_project() {
    let (service, admin) = applications().await;
    run(
        &admin,
        "set request.jwt.claims = '{\"sub\": \"u1\", \"role\": \"authenticated\"}';
         insert into tasks.users values ('u1', 'a@x', 'A'), ('u2', 'b@x', 'B');
         insert into tasks.workspaces values ('w1', 'w', 'u1');
         insert into tasks.workspace_members values ('w1', 'u1', 'owner');
         insert into tasks.projects values ('p1', 'w1', 'one'), ('p2', 'w1', 'two');",
    )
    .await;
    service.read_all().await;
    let mut both = listen(&service, "task:t1").await;
    join(&mut both, "project:p1").await;
    let mut project = listen(&service, "project:p1").await;
    let mut other = listen(&service, "project:p2").await;
    let mut workspace = listen(&service, "workspace:w1").await;
    let mut receiver = listen(&service, "user:u2").await;
    run_each(
        &admin,
        "insert into tasks.tasks (id, project_id, title) values ('t1', 'p1', 'task');
         update tasks.tasks set title = 'new' where id = 't1';
         update tasks.tasks set status = 'DONE' where id = 't1';
         update tasks.tasks set assignee_id = 'u2' where id = 't1';
         insert into tasks.comments (id, task_id, body) values ('c1', 't1', 'hi');
         update tasks.comments set body = 'ho';
         delete from tasks.comments;
         update tasks.tasks set project_id = 'p2' where id = 't1';
         delete from tasks.tasks;
         update tasks.notifications set read_at = now();",
    )
    .await;
    let of = |more: Value| {
        let mut payload = json!({
            "taskId": "t1", "projectId": "p1", "workspaceId": "w1", "task": "*", "userId": "u1",
            "timestamp": "*",
        });
        payload.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
        payload
    };
    let created = ("task:created", of(json!({})));
    let renamed = ("task:updated", of(json!({ "changes": { "title": "new" } })));
    let done = ("task:moved", of(json!({ "from": "TODO", "to": "DONE" })));
    let assigned = ("task:updated", of(json!({ "changes": { "assigneeId": "u2" } })));
    let comment = |event, comment: Value| {
        let by = json!({
            "commentId": "c1", "taskId": "t1", "comment": comment, "userId": "u1", "timestamp": "*",
        });
        (event, by)
    };
    let gone = ("task:deleted", of(json!({ "task": null })));
    let followed =
        ("task:updated", of(json!({ "projectId": "p2", "changes": { "projectId": "p2" } })));
    tells(
        &mut both,
        &[
            created.clone(),
            renamed.clone(),
            done.clone(),
            assigned.clone(),
            comment("comment:created", "*".into()),
            comment("comment:updated", "*".into()),
            comment("comment:deleted", Value::Null),
            gone.clone(),
            followed,
            ("task:deleted", of(json!({ "projectId": "p2", "task": null }))),
        ],
    )
    .await;
    tells(&mut project, &[created, renamed, done, assigned, gone]).await;
    tells(
        &mut other,
        &[
            ("task:created", of(json!({ "projectId": "p2" }))),
            ("task:deleted", of(json!({ "projectId": "p2", "task": null }))),
        ],
    )
    .await;
    // Whose membership changes has every room looked at again, and what is said meanwhile waits there: two rooms
    // have no order then.
    run_each(
        &admin,
        "insert into tasks.workspace_members values ('w1', 'u2');
         update tasks.workspace_members set role = 'admin' where user_id = 'u2';
         delete from tasks.workspace_members where user_id = 'u2';
         insert into tasks.workspace_invitations values ('i1', 'w1', 'c@x');
         update tasks.workspace_invitations set status = 'revoked';",
    )
    .await;
    let member = |event, more: Value| {
        let mut payload = json!({ "workspaceId": "w1", "userId": "u2", "timestamp": "*" });
        payload.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
        (event, payload)
    };
    let activities = vec![("activity:created", "*".into()); 6];
    let mut expected: Vec<(&str, Value)> = activities;
    expected.extend([
        member("member:joined", json!({ "role": "member" })),
        member("member:role_changed", json!({ "role": "admin", "previousRole": "member" })),
        member("member:left", json!({ "role": "admin" })),
        ("invitation:created", "*".into()),
        ("invitation:updated", "*".into()),
    ]);
    tells(&mut workspace, &expected).await;
    let notification = json!({
        "id": "*", "userId": "u2", "type": "task.assigned", "data": "*", "readAt": "*",
        "createdAt": "*",
    });
    tells(
        &mut receiver,
        &[("notification:created", notification.clone()), ("notification:read", notification)],
    )
    .await;
    for socket in [&mut both, &mut project, &mut other, &mut workspace, &mut receiver] {
        socket.nothing_came().await;
    }
}

#[tokio::test]
async fn reading_wiki_and_pages_say_what_their_declarations_say() {
    let (service, admin) = applications().await;
    let mut presence = listen(&service, "presence").await;
    let mut activity = listen(&service, "activity").await;
    let mut own = listen(&service, &format!("user:{ALICE}")).await;
    let mut reading = listen(&service, "room:book club").await;
    let mut kb = listen(&service, &format!("kb:{MAP}")).await;
    let mut entity = listen(&service, "entity:page:e1").await;
    let mut component = listen(&service, "component:c1").await;
    join(&mut component, "entity:page:e1").await;
    run_each(
        &admin,
        &format!(
            "insert into reading.user_presence (user_id, status) values ('{ALICE}', 'online');
             update reading.user_presence set is_typing = true;
             update reading.user_presence set status = 'away', device_type = 'mobile';
             insert into reading.activity_stream (id, activity_type) values ('{FIRST}', 'follow');
             insert into reading.activity_stream (id, activity_type, is_public) values ('{SECOND}', 'like', false);
             update reading.activity_stream set metadata = '{{\"a\": 1}}' where id = '{FIRST}';
             update reading.activity_stream set is_public = false where id = '{FIRST}';
             delete from reading.activity_stream where id = '{SECOND}';
             insert into reading.activity_stream (id, activity_type) values ('{STEP}', 'follow');
             delete from reading.activity_stream where id = '{STEP}';
             select reading.join_session('book club');
             select reading.leave_session(id) from reading.collaboration_sessions;
             select reading.join_session('book club');
             delete from reading.session_participants;
             update reading.collaboration_sessions set status = 'ended';
             insert into wiki.knowledge_bases (id, name) values ('{MAP}', 'kb');
             insert into wiki.nodes (id, kb_id, title) values ('{FIRST}', '{MAP}', 'a'), ('{SECOND}', '{MAP}', 'b');
             update wiki.nodes set title = 'c' where id = '{FIRST}';
             insert into wiki.edges (id, kb_id, source_id, target_id, relation)
                 values ('{STEP}', '{MAP}', '{FIRST}', '{SECOND}', 'of');
             update wiki.edges set relation = 'in';
             delete from wiki.edges;
             insert into wiki.kb_members values ('{MAP}', '{BOB}');
             insert into pages.entities values ('page', 'e1');
             insert into pages.components (id, entity_type, entity_id) values ('c1', 'page', 'e1');
             update pages.components set props = '{{\"x\": 1}}';
             insert into pages.nested_components (id, component_id, row_id) values ('n1', 'c1', 'r1');
             update pages.nested_components set position = 2;
             delete from pages.nested_components;
             delete from pages.components;"
        ),
    )
    .await;
    let at = |status: &str, device: &str| {
        json!({
            "userId": ALICE, "status": status, "deviceType": device, "lastSeenAt": "*",
            "timestamp": "*",
        })
    };
    tells(
        &mut presence,
        &[("presence:update", at("online", "web")), ("presence:update", at("away", "mobile"))],
    )
    .await;
    let new = json!({ "userId": ALICE, "activity": "*", "timestamp": "*" });
    tells(
        &mut activity,
        &[
            ("activity:new", new.clone()),
            ("activity:removed", json!({ "id": FIRST })),
            ("activity:new", new.clone()),
            ("activity:removed", json!({ "id": STEP })),
        ],
    )
    .await;
    tells(&mut own, &[("activity:new", new), ("activity:removed", json!({ "id": SECOND }))]).await;
    let who = json!({ "userId": ALICE, "roomName": "book club", "timestamp": "*" });
    let session = json!({ "sessionId": "*" });
    let (joined, left) = (("collab:user_joined", who.clone()), ("collab:user_left", who));
    tells(&mut reading, &[joined.clone(), left.clone(), joined, left, ("collab:ended", session)])
        .await;
    tells(
        &mut kb,
        &[
            ("node.created", "*".into()),
            ("node.created", "*".into()),
            (
                "node.updated",
                json!({
                    "id": FIRST, "title": "c", "version": 2, "updatedAt": "*", "updatedBy": ALICE,
                }),
            ),
            ("edge.created", "*".into()),
            ("edge.deleted", json!({ "id": STEP, "deletedBy": ALICE, "deletedAt": "*" })),
            ("member.joined", json!({ "userId": BOB, "role": "reader" })),
        ],
    )
    .await;
    let created = json!({
        "componentId": "c1", "entityType": "page", "entityId": "e1", "component": "*",
        "createdBy": ALICE, "timestamp": "*",
    });
    let updated = json!({
        "componentId": "c1", "updates": { "props": { "x": 1 } }, "updatedBy": ALICE,
        "timestamp": "*",
    });
    let deleted = json!({ "componentId": "c1", "deletedBy": ALICE, "timestamp": "*" });
    let nested = |more: Value| {
        let mut payload = json!({ "componentId": "c1", "rowId": "r1" });
        payload.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
        payload
    };
    let (created, updated, deleted) = (
        ("component:created", created),
        ("component:updated", updated),
        ("component:deleted", deleted),
    );
    tells(&mut entity, &[created.clone(), updated.clone(), deleted.clone()]).await;
    tells(
        &mut component,
        &[
            created,
            updated,
            (
                "component:nested-created",
                nested(json!({ "nestedComponent": "*", "createdBy": ALICE })),
            ),
            (
                "component:nested-updated",
                nested(json!({
                    "nestedComponentId": "n1", "updates": { "position": 2 }, "updatedBy": ALICE,
                    "timestamp": "*",
                })),
            ),
            (
                "component:nested-deleted",
                nested(json!({ "nestedComponentId": "n1", "deletedBy": ALICE })),
            ),
            deleted,
        ],
    )
    .await;
    for socket in
        [&mut presence, &mut activity, &mut own, &mut reading, &mut kb, &mut entity, &mut component]
    {
        socket.nothing_came().await;
    }
}

/// The events of a table as SQL computes them from what triggers saw. `$1` the table, `$2` whether
/// moves are told of apart, `$3` whether changes of the flag are.
const ORACLE: &str = "
    with seen as (
        select l.n, l.op, l.old, l.new,
            case when l.old ->> 'k' ~ '^[a-z]+$' then l.old ->> 'k' end as was,
            case when l.new ->> 'k' ~ '^[a-z]+$' then l.new ->> 'k' end as is_in,
            coalesce((
                select jsonb_object_agg(m.key, m.value)
                from jsonb_each(l.new) as m (key, value)
                where l.op = 'UPDATE' and l.old -> m.key <> m.value and m.key <> 'version'
            ), '{}') as changed
        from mapping_log as l where l.t = $1
    ), told as (
        select n, 1 as phase, 0 as nth, was as k, 'row.deleted' as event,
            jsonb_build_object('id', old -> 'id', 'deleted_by', null) as payload
        from seen
        where op = 'DELETE' or op = 'UPDATE' and is_in is distinct from was
        union all
        select n, 2, 1, is_in, 'row.moved',
            jsonb_build_object('id', new -> 'id', 'a', new -> 'a', 'was', old -> 'a')
        from seen
        where $2 and op = 'UPDATE' and was = is_in and changed ? 'a'
        union all
        select n, 2, 2, is_in, 'row.flagged', jsonb_build_object('id', new -> 'id')
        from seen
        where $3 and op = 'UPDATE' and was = is_in and old -> 'flag' = 'false' and new -> 'flag' = 'true'
        union all
        select n, 2, 3, is_in, 'row.updated',
            (changed - case when $2 then 'a' else '' end - case when $3 and old -> 'flag' = 'false' then 'flag' else '' end)
            || jsonb_build_object('id', new -> 'id', 'version', new -> 'version')
        from seen
        where op = 'UPDATE' and was = is_in
            and (changed - case when $2 then 'a' else '' end - case when $3 and old -> 'flag' = 'false' then 'flag' else '' end) <> '{}'
        union all
        select n, 3, 0, is_in, 'row.created', new
        from seen
        where op = 'INSERT' or op = 'UPDATE' and is_in is distinct from was
        union all
        select n, 3, -1, is_in, 'row.flagged', jsonb_build_object('id', new -> 'id')
        from seen
        where $3 and op = 'INSERT' and new -> 'flag' = 'true'
            or $3 and op = 'UPDATE' and is_in is distinct from was and new -> 'flag' = 'true'
    )
    select k, event, payload::text from told where k is not null order by n, phase, nth";

#[tokio::test]
async fn random_writes_are_told_as_sql_computes_it() {
    let service = shared().await;
    let admin = service.admin().await;
    let mut writer = service.admin().await;
    run(
        &admin,
        "create table mapping_log (n bigserial primary key, t text, op text, old jsonb, new jsonb);
         create function mapping_note() returns trigger language plpgsql as $$
         begin
             insert into mapping_log (t, op, old, new)
             values (tg_table_name, tg_op, to_jsonb(old), to_jsonb(new));
             return null;
         end $$;",
    )
    .await;
    for case in 0..6_u32 {
        let seed: u64 = rand::random();
        let mut random = StdRng::seed_from_u64(seed);
        let (moved, flagged) = (random.random_bool(0.5), random.random_bool(0.5));
        let table =
            service.table("k text, a int, b text, flag bool not null, version int default 0").await;
        run(
            &admin,
            &format!(
                "alter table {table} replica identity full;
                 alter table {table} alter b set storage external;
                 create trigger note after insert or update or delete on {table}
                     for each row execute function mapping_note();
                 select walcast.map_table('{table}', entity => 'row', topic => 'random {case}:{{k}}',
                     key_case => 'as_is')"
            ),
        )
        .await;
        if moved {
            let sql = format!(
                "select walcast.map_event('{table}', 'row.moved', on_update_of => '{{a}}',
                     payload => '{{\"...\": \"$key\", \"a\": \"a\", \"was\": \"old.a\"}}')"
            );
            run(&admin, &sql).await;
        }
        if flagged {
            let sql = format!(
                "select walcast.map_event('{table}', 'row.flagged', on_insert => true,
                     on_update_of => '{{flag}}', when_old => '{{\"flag\": false}}',
                     when_new => '{{\"flag\": true}}', columns => '{{id}}')"
            );
            run(&admin, &sql).await;
        }
        let mut rooms: BTreeMap<&str, Socket> = BTreeMap::new();
        for k in ["x", "y", "x:y"] {
            rooms.insert(k, listen(service, &format!("random {case}:{k}")).await);
        }
        for _ in 0..25 {
            let transaction = writer.transaction().await.unwrap();
            for _ in 0..random.random_range(1..4) {
                let id = random.random_range(0..4);
                let k = ["'x'", "'y'", "'x:y'", "null", "'x'"][random.random_range(0..5)];
                let a = random.random_range(0..3);
                let b = ["'p'", "null", "repeat('toast', 1000)"][random.random_range(0..3)];
                let flag = random.random_bool(0.5);
                let sql = match random.random_range(0..8) {
                    0..3 => format!(
                        "insert into {table} values ({id}, {k}, {a}, {b}, {flag})
                         on conflict (id) do update set k = {k}, a = {a}, flag = {flag}"
                    ),
                    3 => format!("update {table} set a = {a} where id = {id}"),
                    4 => format!("update {table} set b = {b}, flag = {flag} where id = {id}"),
                    5 => format!("update {table} set k = {k}, b = {b}"),
                    6 => format!("update {table} set version = version + 1"),
                    _ => format!("delete from {table} where id = {id}"),
                };
                transaction.execute(&sql, &[]).await.unwrap();
            }
            if random.random_bool(0.8) {
                transaction.commit().await.unwrap();
            } else {
                transaction.rollback().await.unwrap();
            }
        }
        run(
            &admin,
            &format!(
                "delete from {table};
                 insert into {table} values (100, 'x', 0, 'end', false), (101, 'y', 0, 'end', false);"
            ),
        )
        .await;
        let mut expected: BTreeMap<String, Vec<(String, Value)>> = BTreeMap::new();
        for row in admin.query(ORACLE, &[&table, &moved, &flagged]).await.unwrap() {
            let (k, event, payload): (String, String, &str) = (row.get(0), row.get(1), row.get(2));
            let payload = serde_json::from_str(payload).unwrap();
            expected.entry(k).or_default().push((event, payload));
        }
        for k in ["x", "y"] {
            let socket = rooms.get_mut(k).unwrap();
            let expected = &expected[k];
            for (number, (event, payload)) in expected.iter().enumerate() {
                let (_, found, mut said) = hear(socket).await;
                if let Some(said) = said.as_object_mut().filter(|_| found == "row.deleted") {
                    assert!(said.remove("deleted_at").is_some());
                }
                assert_eq!(
                    (&found, &said),
                    (event, payload),
                    "seed {seed}, moved {moved}, flagged {flagged}, {k}, event {number}"
                );
            }
        }
        for socket in rooms.values_mut() {
            socket.nothing_came().await;
        }
    }
}

#[tokio::test]
async fn what_cannot_be_declared_is_refused_with_what_is_at_fault() {
    let service = shared().await;
    let admin = service.admin().await;
    let full = service.table("map_id text, n numeric, at timestamptz").await;
    let plain = service.table("map_id text").await;
    run(
        &admin,
        &format!(
            "alter table {full} replica identity full;
             create table unlisted_{full} (id int primary key);
             create view seen_{full} as select * from {full};"
        ),
    )
    .await;
    let mapped = |call: &str| {
        format!("select walcast.{}", call.replace("{t}", &full).replace("{p}", &plain))
    };
    for (call, expected) in [
        ("map_table('{t}', entity => 'e')", "no topic"),
        ("map_table('{t}', entity => 'e', topic => 'm:{nothing}')", "column nothing"),
        ("map_table('{t}', entity => 'e', topic => 'm:{map_id}{id}b')", "'m:{map_id}{id}b'"),
        ("map_table('{t}', entity => 'e', topic => 'm{map_id}')", "ambiguous"),
        ("map_table('{t}', entity => 'e', topic => 'm:{map_id')", "brace"),
        ("map_table('{t}', entity => 'e', topic => 'm,n')", "comma"),
        ("map_table('{t}', entity => 'e', topic => repeat('x', 247))", "246 bytes"),
        ("map_table('{t}', entity => 'e', topic => 'm:{n}')", "column n in topic"),
        ("map_table('{t}', entity => 'e', topic => 'm:{at}')", "column at in topic"),
        ("map_table('{t}', entity => 'e', topic => 'm', columns => '{id,gone}')", "column gone"),
        ("map_table('{t}', entity => 'e', topic => 'm', ignore => '{gone}')", "column gone"),
        ("map_table('{t}', entity => 'e', topic => 'm', key_case => 'kebab')", "kebab"),
        ("map_table('{t}', entity => 'e', topic => 'm', exclude_origin => '{all}')", "'all'"),
        ("map_table('{t}', entity => repeat('e', 250), topic => 'm')", "255 bytes"),
        ("map_table('{p}', entity => 'e', topic => 'm')", "old row"),
        ("map_table('seen_{t}', entity => 'e', topic => 'm')", "no table"),
        ("map_event('{t}', 'disconnect', on_insert => true, topic => 'm')", "'disconnect'"),
        ("map_event('{t}', 'e', topic => 'm')", "no operation"),
        ("map_event('{t}', 'e', on_insert => true)", "topics"),
        ("map_event('{t}', 'e', on_update_of => '{gone}', topic => 'm')", "column gone"),
        (
            "map_event('{t}', 'e', on_insert => true, topic => 'm', when_new => '{\"gone\": 1}')",
            "column gone",
        ),
        (
            "map_event('{t}', 'e', on_insert => true, topic => 'm', payload => '{\"a\": \"old.gone\"}')",
            "column gone",
        ),
        (
            "map_event('{t}', 'e', on_insert => true, topic => 'm', payload => '{\"a\": \"$me\"}')",
            "$me",
        ),
        (
            "map_event('{t}', 'e', on_insert => true, topic => 'm', payload => '{\"a\": 1}')",
            "neither text",
        ),
        (
            "map_event('{t}', 'e', on_insert => true, topic => 'm', payload => '{\"...\": \"$actor\"}')",
            "takes",
        ),
        ("map_event('{t}', 'e', on_insert => true, topic => 'm', payload => '[]')", "objects"),
        ("map_event('{t}', 'e', on_insert => true, topic => 'm', alone => true)", "alone"),
        (
            "map_event('{t}', 'e', on_insert => true, topic => 'm', lookup => '{\"l\": {\"from\": \"public.{p}\", \"on\": {\"map_id\": \"map_id\"}}}')",
            "unique index",
        ),
        (
            "map_event('{t}', 'e', on_insert => true, topic => 'm', lookup => '{\"l\": {\"from\": \"public.{p}\", \"on\": {\"id\": \"gone\"}}}')",
            "column gone",
        ),
        (
            "map_event('{t}', 'e', on_insert => true, topic => 'm', payload => '{\"a\": \"l.gone\"}', lookup => '{\"l\": {\"from\": \"public.{p}\", \"on\": {\"id\": \"id\"}}}')",
            "column gone",
        ),
    ] {
        let error = admin.execute(&mapped(call), &[]).await.expect_err(call);
        let error = error.as_db_error().unwrap().message().to_owned();
        assert!(error.contains(expected), "{call}: {error}");
    }
    let none = "select count(*) from walcast.mappings where relation = $1::text::regclass";
    let count: i64 = admin.query_one(none, &[&full]).await.unwrap().get(0);
    assert_eq!(count, 0);
}

#[tokio::test]
async fn only_who_owns_a_table_declares_what_its_changes_mean() {
    let service = shared().await;
    let admin = service.admin().await;
    let table = service.table("k text").await;
    let own = service.table("k text").await;
    let owner = format!("declarer_of_{}", service.database.name);
    run(
        &admin,
        &format!(
            "create role {owner}; alter table {own} owner to {owner};
             grant create on schema public to {owner};"
        ),
    )
    .await;
    let mut room = listen(service, "owners:1").await;
    let session = service.admin().await;
    run(&session, &format!("set session authorization {owner}")).await;
    let rule = json!({ "event": "e", "on": ["insert"], "payload": { "...": "$row" } });
    let declaration = json!({ "topics": ["owners:{k}"], "rules": [rule] });
    let body = json!({ "id": 1, "relation": 1, "declaration": declaration }).to_string();
    let forged = json!({ "mac": "0".repeat(64), "body": body });
    for refused in [
        format!(
            "select walcast.map_event('{table}', 'e', on_insert => true, topic => 'owners:{{k}}')"
        ),
        format!(
            "insert into walcast.mappings (relation, declaration)
             values ('{table}'::regclass, '{declaration}')"
        ),
        "select * from walcast.secrets".into(),
        "select walcast.mappings_at('0/0', '')".into(),
        "select walcast.look_up(1, 0, 'l', '{a}', '[]')".into(),
        format!("update walcast.mappings set declaration = '{declaration}'"),
        format!(
            "select walcast.map_event('{own}', 'e', on_insert => true, topic => 'owners:{{k}}',
                 lookup => '{{\"l\": {{\"from\": \"public.{table}\", \"on\": {{\"id\": \"id\"}}}}}}')"
        ),
    ] {
        let error = session.execute(&refused, &[]).await.expect_err(&refused);
        assert_eq!(error.code().unwrap().code(), "42501", "{refused}: {error:?}");
    }
    // Anybody may write into the log; nobody believes it.
    let oid: u32 =
        admin.query_one("select $1::text::regclass::oid", &[&table]).await.unwrap().get(0);
    let forged =
        forged.to_string().replace("\\\"relation\\\":1", &format!("\\\"relation\\\":{oid}"));
    let emit = "select pg_logical_emit_message(true, 'walcast.mapping', $1)";
    session.execute(emit, &[&forged]).await.unwrap();
    run(&admin, &format!("insert into {table} values (1, '1')")).await;
    run(
        &session,
        &format!(
            "select walcast.map_event('{own}', 'own', on_insert => true, topic => 'owners:{{k}}');
             insert into {own} values (2, '1');"
        ),
    )
    .await;
    let (_, event, payload) = hear(&mut room).await;
    assert_eq!((&*event, payload), ("own", json!({ "id": 2, "k": "1" })));
    room.nothing_came().await;
    run(&admin, &format!("drop owned by {owner}; drop role {owner}")).await;
}

#[tokio::test]
async fn a_declaration_is_in_force_from_its_place_on_and_after_a_restart() {
    let mut service = Service::start().await;
    let admin = service.admin().await;
    let table = service.table("k text, v text").await;
    let map = |event: &str| {
        format!(
            "select walcast.map_event('{table}', '{event}', name => 'n', on_insert => true,
                 topic => 'restart:{{k}}', columns => '{{v}}')"
        )
    };
    let mut room = listen(&service, "restart:1").await;
    run(
        &admin,
        &format!(
            "begin; insert into {table} values (1, '1', 'before'); {};
             insert into {table} values (2, '1', 'within'); commit;
             begin; {}; insert into {table} values (3, '1', 'rolled back'); rollback;
             insert into {table} values (4, '1', 'after'); {};
             insert into {table} values (5, '1', 'renamed');",
            map("one"),
            map("two"),
            map("three")
        ),
    )
    .await;
    let said = |v: &str| json!({ "v": v });
    let expected = [("one", said("within")), ("one", said("after")), ("three", said("renamed"))];
    tells(&mut room, &expected).await;
    let same: bool = admin.query_one(&map("three"), &[]).await.unwrap().get(0);
    assert!(!same, "what is in force already is not declared again");
    service.stop().await.unwrap();
    run(&admin, &format!("{}; insert into {table} values (6, '1', 'asleep')", map("four"))).await;
    service.start_again().await;
    let mut room = listen(&service, "restart:1").await;
    run(&admin, &format!("insert into {table} values (7, '1', 'awake')")).await;
    loop {
        let (_, event, payload) = hear(&mut room).await;
        assert_eq!(event, "four");
        if payload == said("awake") {
            break;
        }
        assert_eq!(payload, said("asleep"));
    }
    run(
        &admin,
        &format!(
            "select walcast.unmap_table('{table}'); insert into {table} values (8, '1', 'un')"
        ),
    )
    .await;
    let all = json!([{ "event": "*", "schema": "public", "table": table }]);
    let mut other = service.subscribe(Version::V1, &service_role(), all).await;
    run(&admin, &format!("insert into {table} values (9, '1', 'mark')")).await;
    other.change().await;
    room.nothing_came().await;
    service.stop().await.unwrap();
}

#[tokio::test]
async fn bad_rows_and_lost_columns_say_nothing_and_the_stream_goes_on() {
    let mut service = Service::with(|config| config.limits.payload_bytes_max = 2000).await;
    let admin = service.admin().await;
    let (lossy, good) = (service.table("k text, v text").await, service.table("k text").await);
    run(
        &admin,
        &format!(
            "alter table {lossy} replica identity full; alter table {good} replica identity full;
             select walcast.map_table('{lossy}', entity => 'lossy', topic => 'bad:{{k}}', columns => '{{id,v}}');
             select walcast.map_table('{good}', entity => 'good', topic => 'bad:{{k}}');"
        ),
    )
    .await;
    let mut room = listen(&service, "bad:1").await;
    let mut wild = listen(&service, "bad:1:2").await;
    run(
        &admin,
        &format!(
            "insert into {lossy} values (1, '1:2', 'separator'), (2, '*', 'wild'), (3, '', 'empty'),
                 (4, null, 'null'), (5, '1', repeat('large', 1000)), (6, '1', 'fine');
             alter table {lossy} drop column v;
             insert into {lossy} values (7, '1');
             drop table {lossy};
             insert into {good} values (1, '1');"
        ),
    )
    .await;
    let (_, event, payload) = hear(&mut room).await;
    assert_eq!((&*event, payload), ("lossy.created", json!({ "id": 6, "v": "fine" })));
    let (_, event, _) = hear(&mut room).await;
    assert_eq!(event, "good.created");
    for socket in [&mut room, &mut wild] {
        socket.nothing_came().await;
    }
    service.stop().await.unwrap();
}

#[tokio::test]
async fn an_event_stream_hears_events_with_their_names_and_goes_on_behind_them() {
    let service = shared().await;
    let admin = service.admin().await;
    let table = service.table("k text, v text").await;
    run(
        &admin,
        &format!(
            "select walcast.map_event('{table}', 'node.created', on_insert => true, topic => 'sse:{{k}}',
                 columns => '{{id,v}}')"
        ),
    )
    .await;
    let query = "topics=sse:1,sse:2&private=true";
    let mut stream = Stream::open(service, &service_role(), query).await;
    run(&admin, &format!("insert into {table} values (1, '1', 'a'), (2, '3', 'b'), (3, '2', 'c')"))
        .await;
    for (id, v) in [(1, "a"), (3, "c")] {
        let event = stream.next().await;
        assert_eq!(event.name, "node.created");
        assert_eq!(event.json(), json!({ "id": id, "v": v }));
    }
}

#[tokio::test]
async fn what_a_large_transaction_gathers_is_told_in_pieces_and_nothing_is_left_out() {
    let service = shared().await;
    let admin = service.admin().await;
    let table = service.table("k text, n int, v text").await;
    run(
        &admin,
        &format!(
            "alter table {table} replica identity full;
             insert into {table} select i, case when i % 2 = 0 then 'even' else 'odd' end, i, repeat('x', 200)
                 from generate_series(1, 5000) as i;
             select walcast.map_event('{table}', 'reordered', on_update_of => '{{n}}', alone => true,
                 topic => 'large:{{k}}', columns => '{{id,n}}', aggregate => 'updates')"
        ),
    )
    .await;
    let mut room = listen(service, "large:even").await;
    run(
        &admin,
        &format!(
            "update {table} set n = n + 1;
             update {table} set n = 0, v = 'not alone' where id = 2;
             update {table} set n = 0 where id = 4;"
        ),
    )
    .await;
    let (mut told, mut events) = (BTreeMap::new(), 0);
    while told.get(&4) != Some(&0) {
        let (_, event, payload) = hear(&mut room).await;
        assert_eq!(event, "reordered");
        let updates = payload["updates"].as_array().unwrap();
        assert!(updates.len() <= 1000);
        events += 1;
        for update in updates {
            told.insert(update["id"].as_i64().unwrap(), update["n"].as_i64().unwrap());
        }
    }
    assert_eq!((told.len(), events), (2500, 3), "2501 rows, at most 1000 a piece");
    assert!(told.iter().all(|(id, n)| *id == 4 || *n == id + 1));
    room.nothing_came().await;
}

#[tokio::test]
async fn explain_says_in_words_what_a_table_tells() {
    let service = shared().await;
    let admin = service.admin().await;
    let table = service.table("k text, v text, updated_by text").await;
    let explain = async || {
        let sql = format!("select walcast.explain_mapping('{table}')");
        let lines = admin.query(&sql, &[]).await.unwrap();
        lines.iter().map(|line| line.get::<_, String>(0)).collect::<Vec<_>>().join("\n")
    };
    assert!(explain().await.ends_with("no events are declared."));
    run(
        &admin,
        &format!(
            "alter table {table} replica identity full;
             select walcast.map_table('{table}', entity => 'row', topic => 'x:{{k}}');
             select walcast.map_event('{table}', 'row.moved', on_update_of => '{{v}}', exclude_origin => true,
                 topic => 'open', public => true)"
        ),
    )
    .await;
    let words = explain().await;
    for expected in [
        "4 event(s)",
        "whatever the policies and column privileges",
        "An update that changes nothing but updated_by says nothing.",
        "row.moved: when one of v changes.",
        "to PUBLIC (anybody may join) rooms open, but not to the connection that made the change",
        "row.created: when a row is inserted or comes into the topic.",
        "row.deleted: when a row is deleted or leaves the topic.",
        "to private rooms x:{k}",
    ] {
        assert!(words.contains(expected), "{expected} is not in: {words}");
    }
    let order = words.find("row.moved").unwrap() < words.find("row.created").unwrap();
    assert!(order, "{words}");
    run(&admin, &format!("select walcast.unmap_event('{table}', 'row.moved')")).await;
    assert!(!explain().await.contains("row.moved"));
}

#[tokio::test]
async fn the_types_of_the_examples_events_are_printed() {
    let (service, _admin) = applications().await;
    let run = walcast(&["types"], &[("DATABASE_URL", &service.database.url)]).await;
    assert_eq!(run.code, 0, "{}", run.err);
    for expected in [
        "/** storymap.stories, in map:{map_id} */\n  \"story.moved\": { \"id\": string; \"stepId\": string | null;",
        "\"status\"?: \"NOT_READY\" | \"READY\" | \"IN_PROGRESS\" | \"DONE\"",
        "\"releases.reordered\": { \"updates\": Array<{ \"id\": string; \"sortOrder\": number }> };",
        "\"author\": string | null;",
        "\"task\": null;",
        "  \"/story-maps\": {\n    send: {\n",
        "\"story.update\": Sends<{ \"baseUpdatedAt\"?: string; \"description\"?: string; \"id\": string; ",
        "\"presence:users_viewing\": Hears<{ \"taskId\": string; \"users\": Array<{ \"email\"?: unknown; \"userId\": string }> }>",
        "\"connection:error\": Hears<Failure>;",
    ] {
        assert!(run.out.contains(expected), "{expected} is not in: {}", run.out);
    }
}

#[tokio::test]
async fn who_comes_back_hears_what_was_declared_then_and_all_events_of_a_change() {
    let service = Service::with(Service::keep_all).await;
    let admin = service.admin().await;
    let table = service.table("k text, a int, b int").await;
    run(
        &admin,
        &format!(
            "alter table {table} replica identity full;
             select walcast.map_table('{table}', entity => 'row', topic => 'back:{{k}}');
             select walcast.map_event('{table}', 'row.moved', on_update_of => '{{a}}', columns => '{{id}}');"
        ),
    )
    .await;
    let mut room = listen(&service, "back:1").await;
    run(&admin, &format!("insert into {table} values (1, '1', 0, 0)")).await;
    let created = room.expect("broadcast").await.payload["meta"]["cursor"].take();
    drop(room);
    run_each(
        &admin,
        &format!(
            "update {table} set a = 1, b = 1;
             select walcast.unmap_table('{table}');
             update {table} set a = 2"
        ),
    )
    .await;
    service.read_all().await;
    let back = async |cursor: &Value| {
        let mut socket = service.connect(Version::V1, &service_role()).await;
        let config = json!({ "private": true, "broadcast": { "cursor": cursor } });
        let reply = socket.join("realtime:back:1", &json!({ "config": config })).await;
        assert_eq!(reply["status"], "ok", "{reply}");
        let mut heard = Vec::new();
        loop {
            let message = socket.next().await;
            match &*message.event {
                "broadcast" => {
                    let event = message.payload["event"].as_str().unwrap().to_owned();
                    heard.push((event, message.payload["meta"]["cursor"].clone()));
                }
                "system" => {
                    assert!(message.payload.to_string().contains("caught_up"), "{message:?}");
                    return heard;
                }
                _ => panic!("{message:?}"),
            }
        }
    };
    let names = |heard: &[(String, Value)]| {
        heard.iter().map(|(event, _)| event.clone()).collect::<Vec<_>>()
    };
    let heard = back(&created).await;
    assert_eq!(names(&heard), ["row.moved", "row.updated"]);
    assert_eq!(
        names(&back(&heard[0].1).await),
        ["row.moved", "row.updated"],
        "rather twice than not"
    );
    assert!(back(&heard[1].1).await.is_empty());
}
