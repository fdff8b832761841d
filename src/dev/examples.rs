//! The example applications that `walcast dev --example` starts with, beside the table of `example`.
//!
//! In:     which; a database walcast is installed in; a [`Signer`].
//! Out:    their schemas, declarations and first rows, all of one or nothing of it; who may be tried, with tokens.
//! Never:  changes an application that is there already.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;

use tokio_postgres::Client;

use super::Error;
use super::example::{ALICE, BOB, Signer, User};

/// What all of them share.
const SHARED: &str = include_str!("../../sql/examples/app.sql");
/// A user who may only look on, where there are such.
const VERA: &str = "00000000-0000-4000-8000-00000000000e";

/// What to start with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Example {
    /// A table under Row Level Security
    Todos,
    /// User story mapping
    StoryMap,
    /// Workspaces with task boards
    Tasks,
    /// Social reading
    Reading,
    /// A knowledge graph
    Wiki,
    /// Pages of components
    Pages,
    /// All of these
    All,
}

/// One of the five.
#[derive(Debug)]
pub(super) struct Application {
    /// As it is asked for.
    name: &'static str,
    /// Where its tables are; that it exists says that all of it does.
    pub(super) schema: &'static str,
    sql: &'static str,
    rows: &'static str,
    /// Its namespace of Socket.IO.
    namespace: &'static str,
    /// The claim that names its users.
    claim: Claim,
    /// Name, id and what he is.
    users: [(&'static str, &'static str, &'static str); 3],
    /// What joins a room: the event and its payload.
    join: (&'static str, &'static str),
    /// What makes the room hear something.
    write: Write,
    /// What to hear with `walcast tail`.
    topic: &'static str,
}

#[derive(Debug, Clone, Copy)]
enum Claim {
    Sub,
    UserId,
}

/// A change to try.
#[derive(Debug)]
enum Write {
    /// An event of Socket.IO and its payload.
    Event(&'static str, &'static str),
    /// A method, a table and a row.
    Row(&'static str, &'static str, &'static str),
}

const PEOPLE: [(&str, &str); 3] = [("alice", ALICE), ("bob", BOB), ("vera", VERA)];

const fn people(
    alice: &'static str,
    bob: &'static str,
    vera: &'static str,
) -> [(&'static str, &'static str, &'static str); 3] {
    let [(a, alice_id), (b, bob_id), (v, vera_id)] = PEOPLE;
    [(a, alice_id, alice), (b, bob_id, bob), (v, vera_id, vera)]
}

/// In the order in which they are made and shown.
const APPLICATIONS: [(Example, Application); 5] = [
    (
        Example::StoryMap,
        Application {
            name: "story-map",
            schema: "storymap",
            sql: include_str!("../../sql/examples/story-map.sql"),
            rows: include_str!("../../sql/examples/rows/story-map.sql"),
            namespace: "/story-maps",
            claim: Claim::Sub,
            users: people("creator", "editor", "viewer"),
            join: ("map.join", r#"{"mapId":"00000000-0000-4000-8000-0000000000f1"}"#),
            write: Write::Event(
                "story.create",
                r#"{"mapId":"00000000-0000-4000-8000-0000000000f1","title":"A story"}"#,
            ),
            topic: "map:00000000-0000-4000-8000-0000000000f1",
        },
    ),
    (
        Example::Tasks,
        Application {
            name: "tasks",
            schema: "tasks",
            sql: include_str!("../../sql/examples/tasks.sql"),
            rows: include_str!("../../sql/examples/rows/tasks.sql"),
            namespace: "/tasks",
            claim: Claim::Sub,
            users: [
                ("alice", "calice", "owner"),
                ("bob", "cbob", "member"),
                ("vera", "cvera", "viewer"),
            ],
            join: (
                "room:join",
                r#"{"workspaceId":"cworkspace","projectId":"cproject","taskId":"ctask"}"#,
            ),
            write: Write::Row("PATCH", "tasks?id=eq.ctask", r#"{"status":"DONE"}"#),
            topic: "project:cproject",
        },
    ),
    (
        Example::Reading,
        Application {
            name: "reading",
            schema: "reading",
            sql: include_str!("../../sql/examples/reading.sql"),
            rows: include_str!("../../sql/examples/rows/reading.sql"),
            namespace: "/reading",
            claim: Claim::Sub,
            users: people("reader", "reader", "reader"),
            join: ("collab:join", r#"{"roomName":"book club"}"#),
            write: Write::Event("activity:new", r#"{"activity":{"activity_type":"post_created"}}"#),
            topic: "activity",
        },
    ),
    (
        Example::Wiki,
        Application {
            name: "wiki",
            schema: "wiki",
            sql: include_str!("../../sql/examples/wiki.sql"),
            rows: include_str!("../../sql/examples/rows/wiki.sql"),
            namespace: "/wiki",
            claim: Claim::Sub,
            users: people("admin", "writer", "reader"),
            join: ("kb.join", r#"{"kbId":"00000000-0000-4000-8000-0000000000f4"}"#),
            write: Write::Event(
                "node.create",
                r#"{"kbId":"00000000-0000-4000-8000-0000000000f4","title":"Another page"}"#,
            ),
            topic: "kb:00000000-0000-4000-8000-0000000000f4",
        },
    ),
    (
        Example::Pages,
        Application {
            name: "pages",
            schema: "pages",
            sql: include_str!("../../sql/examples/pages.sql"),
            rows: include_str!("../../sql/examples/rows/pages.sql"),
            namespace: "/pages",
            claim: Claim::UserId,
            users: [
                ("alice", "alice", "admin"),
                ("bob", "bob", "editor"),
                ("vera", "vera", "viewer"),
            ],
            join: (
                "component:subscribe",
                r#"{"componentId":"component-1","entityType":"page","entityId":"page-1"}"#,
            ),
            write: Write::Event(
                "component:update",
                r#"{"componentId":"component-1","updates":{"props":{"text":"good day"}}}"#,
            ),
            topic: "component:component-1",
        },
    ),
];

/// Those that are asked for, each once.
pub(super) fn chosen(examples: &[Example]) -> Vec<&'static Application> {
    let asked: BTreeSet<&Example> = examples.iter().collect();
    let is_asked = |example| asked.contains(example) || asked.contains(&Example::All);
    let of = |(example, application)| is_asked(example).then_some(application);
    APPLICATIONS
        .iter()
        .map(|(example, application)| (example, application))
        .filter_map(of)
        .collect()
}

/// Makes those that are missing.
pub(super) async fn create(client: &mut Client, wanted: &[&Application]) -> Result<(), Error> {
    if wanted.is_empty() {
        return Ok(());
    }
    make(client, "app", &[SHARED]).await?;
    for application in wanted {
        make(client, application.schema, &[application.sql, application.rows]).await?;
    }
    Ok(())
}

/// Runs scripts that make a schema, unless it is there.
async fn make(client: &mut Client, schema: &str, scripts: &[&str]) -> Result<(), Error> {
    let all = client.transaction().await.map_err(Error::Example)?;
    let is_there = "select pg_catalog.to_regnamespace($1) is not null";
    let row = all.query_one(is_there, &[&schema]).await.map_err(Error::Example)?;
    if row.try_get(0).map_err(Error::Example)? {
        return Ok(());
    }
    for script in scripts {
        all.batch_execute(script).await.map_err(Error::Example)?;
    }
    all.commit().await.map_err(Error::Example)
}

/// How to try them, ready to paste.
pub(super) fn banner(
    bind: SocketAddr,
    wanted: &[&Application],
    signer: &Signer<'_>,
) -> Result<String, Error> {
    let mut text = String::new();
    if !wanted.is_empty() {
        text.push_str(
            "Each application: a token for each user, then how to listen with socket.io-client (npm install \
             socket.io-client),\nor without it, and how to make something happen.\n\n",
        );
    }
    for application in wanted {
        application.describe(bind, signer, &mut text)?;
    }
    Ok(text)
}

impl Application {
    fn describe(
        &self,
        bind: SocketAddr,
        signer: &Signer<'_>,
        text: &mut String,
    ) -> Result<(), Error> {
        let Self { name, namespace, topic, join: (join, room), .. } = self;
        let url = format!("http://{bind}{namespace}");
        let _ = writeln!(text, "{name:<17} {url}");
        let variable = |user: &str| format!("{name}_{user}").replace('-', "_").to_uppercase();
        for (user, id, is) in self.users {
            let email = format!("{user}@example.com");
            let who = match self.claim {
                Claim::Sub => User::Sub(id, &email),
                Claim::UserId => User::UserId(id, &email),
            };
            let token = signer.token("authenticated", Some(who))?;
            let _ = writeln!(text, "  {}={token}   # {is}", variable(user));
        }
        let [(hears, ..), (writes, ..), _] = self.users;
        let (hears, writes) = (variable(hears), variable(writes));
        let _ = write!(
            text,
            r#"
  TOKEN=${hears} node -e 'const auth = {{ token: process.env.TOKEN }};
  const socket = require("socket.io-client").io("{url}", {{ auth }});
  socket.onAny((event, payload) => console.log(event, payload));
  socket.on("connect", () => socket.emit("{join}", {room}, console.log))'

  WALCAST_TOKEN=${hears} walcast tail --url http://{bind} --private --topic {topic}

"#,
        );
        let _ = match self.write {
            Write::Event(event, payload) => writeln!(
                text,
                r#"  TOKEN=${writes} node -e 'const auth = {{ token: process.env.TOKEN }};
  const socket = require("socket.io-client").io("{url}", {{ auth }});
  socket.emit("{event}", {payload}, (answer) => {{ console.log(answer); socket.close() }})'
"#,
            ),
            Write::Row(method, target, row) => writeln!(
                text,
                r#"  curl -X {method} "http://{bind}/rest/v1/{target}" -H "authorization: Bearer ${writes}" \
    -H "content-profile: {}" -H "content-type: application/json" -d '{row}'
"#,
                self.schema,
            ),
        };
        Ok(())
    }
}
