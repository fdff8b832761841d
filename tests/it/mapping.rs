//! Domain events declared in SQL, on a whole service.

use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::service::{ALICE, Service, Socket, Version, service_role, shared};

/// Lets `service_role` read every topic, as a policy of the application's own would.
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
