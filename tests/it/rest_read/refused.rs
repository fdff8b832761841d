//! What is wrong, and what is said about it.

use serde_json::json;

use super::World;

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
        ("projects?select=due::int", "42846"),
        ("projects?id=eq.x", "22P02"),
        ("projects?id=like.x", "42883"),
        ("projects?name=is.true", "42804"),
        ("clients?raw=eq.1", "42883"),
        ("tasks?words=fts(nope).x", "42704"),
        // What Postgres says about the text of a search; its own SQL is never wrong.
        ("tasks?words=fts.a b", "42601"),
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
