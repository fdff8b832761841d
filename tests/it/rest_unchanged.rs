//! What a client has already is not sent again, and what is long comes compressed.

use serde_json::json;

use crate::rest::ask;
use crate::service::{Service, service_role};

const SCHEMA: &str = "
    create table open (id bigint primary key, name text);
    grant all on open to anon, authenticated, service_role;
    insert into open values (1, 'a'), (2, 'b');
    notify pgrst, 'reload schema';";

async fn world() -> Service {
    let service = Service::start().await;
    service.admin().await.batch_execute(SCHEMA).await.unwrap();
    service
}

#[tokio::test]
async fn an_answer_that_the_client_has_is_not_sent_again_until_it_changes() {
    let service = world().await;
    let read = ask("GET", "/open?order=id");
    let first = read.send(&service).await;
    let tag = first.header("etag").unwrap().to_owned();
    assert_eq!(first.status, 200);
    for known in [tag.clone(), format!("\"other\", {tag}"), tag.replace("W/", ""), "*".into()] {
        let again = read.clone().with("if-none-match", &known).send(&service).await;
        assert_eq!((again.status, again.header("etag")), (304, Some(&*tag)), "{known}");
        assert_eq!(again.body, "");
    }
    let other = read.clone().with("if-none-match", "\"other\"").send(&service).await;
    assert_eq!((other.status, other.json()), (200, first.json()));
    let changed = ask("PATCH", "/open?id=eq.1").json(&json!({ "name": "c" })).send(&service).await;
    assert_eq!((changed.status, changed.header("etag")), (204, None));
    let after = read.with("if-none-match", &tag).send(&service).await;
    assert_eq!((after.status, after.json()[0]["name"].clone()), (200, json!("c")));
    assert_ne!(after.header("etag"), Some(&*tag));
}

#[tokio::test]
async fn another_caller_has_another_answer() {
    let service = world().await;
    let admin = service.admin().await;
    let policy = "alter table open enable row level security;
        create policy one on open for select to anon using (id = 1)";
    admin.batch_execute(policy).await.unwrap();
    let read = ask("GET", "/open");
    let own = read.send(&service).await;
    let tag = own.header("etag").unwrap().to_owned();
    let all = read.bearing(&service_role()).with("if-none-match", &tag).send(&service).await;
    assert_eq!((all.status, all.json().as_array().unwrap().len()), (200, 2));
}

#[tokio::test]
async fn a_long_answer_is_compressed_for_whoever_takes_that() {
    let service = world().await;
    let more = "insert into open select n, 'a name that is like all the others' \
                from generate_series(10, 200) as n";
    service.admin().await.batch_execute(more).await.unwrap();
    let encoding = async |path: &str, accepts: &str| {
        let answer = ask("GET", path).with("accept-encoding", accepts).send(&service).await;
        assert_eq!(answer.status, 200, "{path}");
        answer.header("content-encoding").map(str::to_owned)
    };
    assert_eq!(encoding("/open", "gzip, deflate").await.as_deref(), Some("gzip"));
    assert_eq!(encoding("/open", "identity").await, None);
    assert_eq!(encoding("/open?id=eq.1", "gzip").await, None);
}
