//! All declarations → what each namespace has.
//!
//! In:     the rows of `walcast.declarations`.
//! Out:    [`Profiles`].
//! Never:  two meanings of one event in a namespace: what is declared for it goes before what is declared
//!         for all, and of two of the same the second is left out, with a word in the log.

use std::sync::Arc;

use hashbrown::HashMap;
use serde::Deserialize;
use serde_json::Value;
use tracing::error;

use super::declared::{
    Command, DeclarationError, Presence, Relay, Room, TokenPlace, event, functions, list, texts,
    topics,
};
use super::naming::Naming;
use super::routine::{Argument, Function};
use crate::telemetry;

/// What stands for every namespace that is declared.
const EVERY: &str = "*";

/// Where clients are that ask for no namespace.
const MAIN: &str = "/";

/// Namespaces, and declarations of one of them: more are left out.
const NAMESPACES_MAX: usize = 1024;
const DECLARATIONS_MAX: usize = 4096;

/// A row of `walcast.declarations`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The namespace, or `*`.
    pub namespace: Box<str>,
    /// What is declared.
    pub kind: Box<str>,
    /// Its name among those of its kind.
    pub name: Box<str>,
    /// The text of its JSON.
    pub declaration: Box<str>,
}

/// A namespace and its manners.
#[derive(Debug, Clone)]
pub struct Profile {
    /// Its name.
    pub namespace: Box<str>,
    /// Where a token may be, the first place first.
    pub token_from: Box<[TokenPlace]>,
    /// What who has none is told.
    pub token_missing: Box<str>,
    /// What who has a bad one is told.
    pub token_invalid: Box<str>,
    /// The claims that may hold the user's id.
    pub subject: Box<[Box<str>]>,
    /// The event for errors.
    pub error_event: Box<str>,
    /// What who may not do something is told.
    pub denied: Box<str>,
    /// Rooms that are joined when connecting; over id and claims, see [`super::personal`].
    pub topics: Box<[Naming]>,
    /// What is known of a user, by topic.
    pub member: Option<Function>,
    /// Events of a connection; none: as set.
    pub events_per_second: Option<u32>,
    /// Its rooms.
    pub rooms: Box<[Arc<Room>]>,
    /// Its commands, by event.
    pub commands: HashMap<Box<str>, Arc<Command>>,
    /// Its relays.
    pub relays: Box<[Arc<Relay>]>,
    /// Who is online.
    pub presence: Option<Arc<Presence>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    token_from: Option<Vec<TokenPlace>>,
    token_missing: Option<Box<str>>,
    token_invalid: Option<Box<str>>,
    subject: Option<Vec<Box<str>>>,
    error_event: Option<Box<str>>,
    denied: Option<Box<str>>,
    topics: Option<Vec<Box<str>>>,
    member: Option<Box<str>>,
    events_per_second: Option<u32>,
}

impl Profile {
    /// From its JSON, without anything in it.
    fn parse(namespace: &str, declaration: &str) -> Result<Self, DeclarationError> {
        let written: Written = serde_json::from_str(declaration)?;
        if !namespace.starts_with('/') || namespace.contains(|c: char| c == ',' || c.is_control()) {
            return Err(DeclarationError::Other("a namespace begins with /, and has no comma"));
        }
        let token_from = match written.token_from {
            Some(places) if places.is_empty() || places.len() > 3 => {
                return Err(DeclarationError::Other("a token comes from one to three places"));
            }
            Some(places) => places.into(),
            None => [TokenPlace::Auth, TokenPlace::Header].into(),
        };
        let subject = match written.subject {
            None => ["sub", "userId"].map(Into::into).into(),
            subject => list(subject)?,
        };
        if written.events_per_second == Some(0) {
            return Err(DeclarationError::Other("nobody could say anything: 0 events a second"));
        }
        Ok(Self {
            namespace: namespace.into(),
            token_from,
            token_missing: texts(written.token_missing)?
                .unwrap_or_else(|| "Authentication token missing".into()),
            token_invalid: texts(written.token_invalid)?
                .unwrap_or_else(|| "Authentication failed".into()),
            subject,
            error_event: event(written.error_event.unwrap_or_else(|| "error".into()))?,
            denied: texts(written.denied)?.unwrap_or_else(|| "Insufficient permissions".into()),
            topics: topics(written.topics)?,
            member: functions(written.member, Argument::Text)?,
            events_per_second: written.events_per_second,
            rooms: Box::default(),
            commands: HashMap::new(),
            relays: Box::default(),
            presence: None,
        })
    }

    /// That of clients that ask for no namespace, where none is declared: any room, by its topic.
    fn plain() -> Self {
        let places = [TokenPlace::Auth, TokenPlace::Header, TokenPlace::Query];
        Self {
            token_from: places.into(),
            rooms: [Arc::new(Room::plain())].into(),
            ..Self::parse(MAIN, "{}").expect("what is absent has a default")
        }
    }

    /// The user's id, as claims have it.
    pub fn subject_of(&self, claims: &Value) -> Option<Box<str>> {
        self.subject.iter().find_map(|path| {
            let found = path.split('.').try_fold(claims, |value, member| value.get(member));
            match found? {
                Value::String(text) if !text.is_empty() => Some(text.as_str().into()),
                Value::Number(number) if !number.is_f64() => Some(number.to_string().into()),
                Value::Null
                | Value::Bool(_)
                | Value::Number(_)
                | Value::String(_)
                | Value::Array(_)
                | Value::Object(_) => None,
            }
        })
    }

    /// Which rooms an event joins.
    pub fn rooms_joined_by(&self, event: &str) -> impl Iterator<Item = &Arc<Room>> {
        self.rooms.iter().filter(move |room| room.join_event.as_deref() == Some(event))
    }

    /// Which rooms an event leaves.
    pub fn rooms_left_by(&self, event: &str) -> impl Iterator<Item = &Arc<Room>> {
        self.rooms.iter().filter(move |room| room.leave_event.as_deref() == Some(event))
    }

    /// What an event relays.
    pub fn relay_of(&self, event: &str) -> Option<&Arc<Relay>> {
        self.relays.iter().find(|relay| *relay.event == *event)
    }

    /// What an event stops.
    pub fn relay_stopped_by(&self, event: &str) -> Option<&Arc<Relay>> {
        self.relays.iter().find(|relay| relay.stop_event.as_deref() == Some(event))
    }

    /// The room that a topic is one of; the first that is declared.
    pub fn room_of(&self, topic: &crate::topic::Topic) -> Option<&Arc<Room>> {
        self.rooms.iter().find(|room| room.naming.values(topic).is_some())
    }
}

/// Every namespace.
#[derive(Debug, Clone)]
pub struct Profiles {
    known: HashMap<Box<str>, Arc<Profile>>,
}

impl Default for Profiles {
    /// Nothing is declared.
    fn default() -> Self {
        Self::new(&[])
    }
}

/// Whose an event is in a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    /// Rooms share theirs.
    Room,
    /// Nobody else has it.
    Alone,
}

const TAKEN: DeclarationError = DeclarationError::Other("its event means something else already");

#[derive(Default)]
struct Taken(HashMap<Box<str>, Claim>);

impl Taken {
    /// Takes these events.
    ///
    /// # Errors
    /// One of them is somebody else's; then none is taken.
    fn claim<'a>(
        &mut self,
        events: impl IntoIterator<Item = Option<&'a Box<str>>>,
        how: Claim,
    ) -> Result<(), DeclarationError> {
        let events: Vec<_> = events.into_iter().flatten().collect();
        let shared = (Claim::Room, Claim::Room);
        for (place, event) in events.iter().enumerate() {
            let is_again = how == Claim::Alone && events[..place].contains(event);
            if is_again || self.0.get(*event).is_some_and(|known| (*known, how) != shared) {
                return Err(TAKEN);
            }
        }
        self.0.extend(events.into_iter().map(|event| (event.clone(), how)));
        Ok(())
    }
}

impl Profiles {
    /// From all rows. What is not understood is left out and logged; where that is the profile, its
    /// namespace is refused.
    pub fn new(rows: &[Row]) -> Self {
        let mut known = HashMap::new();
        let profiles = rows.iter().filter(|row| &*row.kind == "profile");
        let mut has_main = false;
        for row in profiles {
            has_main |= &*row.namespace == MAIN;
            if known.len() >= NAMESPACES_MAX {
                error!(
                    namespace = &*row.namespace,
                    "more namespaces than are served: it is refused"
                );
                continue;
            }
            match Profile::parse(&row.namespace, &row.declaration) {
                Ok(profile) => {
                    known.insert(row.namespace.clone(), profile);
                }
                Err(error) => {
                    let error = telemetry::chain(&error);
                    let namespace = &*row.namespace;
                    error!(
                        namespace,
                        error, "a profile is not understood: its namespace is refused"
                    );
                }
            }
        }
        if !has_main {
            known.insert(MAIN.into(), Profile::plain());
        }
        let fill = |(namespace, mut profile): (Box<str>, Profile)| {
            let is_plain = !has_main && &*namespace == MAIN;
            profile.fill(rows, is_plain);
            (namespace, Arc::new(profile))
        };
        Self { known: known.into_iter().map(fill).collect() }
    }

    /// A namespace; none: there is none.
    pub fn get(&self, namespace: &str) -> Option<&Arc<Profile>> {
        self.known.get(namespace)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Profile>> {
        self.known.values()
    }
}

impl Profile {
    fn fill(&mut self, rows: &[Row], is_plain: bool) {
        let own = rows.iter().filter(|row| row.namespace == self.namespace);
        // The plain profile is not declared.
        let every = rows.iter().filter(|row| &*row.namespace == EVERY && !is_plain);
        let is_own = |row: &Row| {
            rows.iter().any(|other| {
                (&other.namespace, &other.kind, &other.name)
                    == (&self.namespace, &row.kind, &row.name)
            })
        };
        let rows: Vec<&Row> = own.chain(every.filter(|row| !is_own(row))).collect();
        if rows.len() > DECLARATIONS_MAX {
            let namespace = &*self.namespace;
            error!(namespace, "more declarations than are read: the last ones are left out");
        }
        let mut taken = Taken::default();
        let mut rooms = std::mem::take(&mut self.rooms).into_vec();
        for room in &rooms {
            let events = [room.join_event.clone(), room.leave_event.clone()];
            taken.0.extend(events.into_iter().flatten().map(|event| (event, Claim::Room)));
        }
        let mut relays = Vec::new();
        for row in rows.into_iter().take(DECLARATIONS_MAX) {
            let done = match &*row.kind {
                "room" => Room::parse(&row.name, &row.declaration).and_then(|room| {
                    let events = [room.join_event.as_ref(), room.leave_event.as_ref()];
                    taken.claim(events, Claim::Room)?;
                    rooms.push(Arc::new(room));
                    Ok(())
                }),
                "command" => Command::parse(&row.name, &row.declaration).and_then(|command| {
                    taken.claim([Some(&command.event)], Claim::Alone)?;
                    self.commands.insert(row.name.clone(), Arc::new(command));
                    Ok(())
                }),
                "relay" => Relay::parse(&row.name, &row.declaration).and_then(|relay| {
                    let events = [Some(&relay.event), relay.stop_event.as_ref()];
                    taken.claim(events, Claim::Alone)?;
                    relays.push(Arc::new(relay));
                    Ok(())
                }),
                "presence" if self.presence.is_some() => Err(TAKEN),
                "presence" => Presence::parse(&row.declaration).and_then(|presence| {
                    let status = presence.status_event.as_ref();
                    taken.claim([status, presence.heartbeat_event.as_ref()], Claim::Alone)?;
                    self.presence = Some(Arc::new(presence));
                    Ok(())
                }),
                "profile" => Ok(()),
                _ => Err(DeclarationError::Other("there is no such kind")),
            };
            if let Err(error) = done {
                let error = telemetry::chain(&error);
                let (namespace, kind, name) = (&*self.namespace, &*row.kind, &*row.name);
                error!(namespace, kind, name, error, "a declaration is left out");
            }
        }
        self.rooms = rooms.into();
        self.relays = relays.into();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use serde_json::json;

    use super::super::{Operation, Run};
    use super::*;

    fn row(namespace: &str, kind: &str, name: &str, declaration: &Value) -> Row {
        Row {
            namespace: namespace.into(),
            kind: kind.into(),
            name: name.into(),
            declaration: declaration.to_string().into(),
        }
    }

    fn profile(rows: &[Row]) -> Arc<Profile> {
        let profile = [row("/a", "profile", "", &json!({}))];
        Arc::clone(Profiles::new(&[&profile, rows].concat()).get("/a").unwrap())
    }

    #[test]
    fn without_declarations_there_is_the_plain_profile() {
        let profiles = Profiles::default();
        assert_eq!(profiles.iter().count(), 1);
        let plain = profiles.get("/").unwrap();
        assert_eq!(*plain.token_from, [TokenPlace::Auth, TokenPlace::Header, TokenPlace::Query]);
        let room = plain.rooms_joined_by("join").next().unwrap();
        let named = room.topic(&json!({ "topic": "map:1" })).unwrap().unwrap();
        assert_eq!(named.topic.as_str(), "realtime:map:1");
        assert_eq!(plain.rooms_left_by("leave").count(), 1);
        assert!(profiles.get("/other").is_none());
    }

    #[test]
    fn a_profile_has_its_defaults_and_what_is_declared() {
        let rows = [
            row("/a", "profile", "", &json!({})),
            row(
                "/b",
                "profile",
                "",
                &json!({
                    "token_from": ["query"], "token_missing": "none", "subject": ["app.user", "sub"],
                    "error_event": "connection:error", "topics": ["user:{sub}", "activity"],
                    "member": "tasks.member(text)", "events_per_second": 5,
                }),
            ),
        ];
        let profiles = Profiles::new(&rows);
        let a = profiles.get("/a").unwrap();
        assert_eq!(*a.token_from, [TokenPlace::Auth, TokenPlace::Header]);
        assert_eq!((&*a.token_missing, &*a.error_event), ("Authentication token missing", "error"));
        assert_eq!((&*a.denied, a.events_per_second), ("Insufficient permissions", None));
        let claims = json!({ "sub": "s", "userId": "u" });
        assert_eq!(a.subject_of(&claims).as_deref(), Some("s"));
        assert_eq!(a.subject_of(&json!({ "userId": 7 })).as_deref(), Some("7"));
        assert_eq!(a.subject_of(&json!({ "sub": {} })), None);
        let b = profiles.get("/b").unwrap();
        assert_eq!((&*b.token_missing, b.topics.len()), ("none", 2));
        assert_eq!(b.subject_of(&json!({ "app": { "user": "x" } })).as_deref(), Some("x"));
        assert_eq!(b.member.as_ref().unwrap().to_string(), r#""tasks"."member""#);
        assert!(profiles.get("/").is_some());
    }

    #[test]
    fn a_profile_that_is_not_understood_refuses_its_namespace() {
        for wrong in [
            json!({ "token_from": ["cookie"] }),
            json!({ "token_from": [] }),
            json!({ "error_event": "disconnect" }),
            json!({ "topics": ["a,b"] }),
            json!({ "member": "member(text)" }),
            json!({ "events_per_second": 0 }),
            json!({ "else": 1 }),
            json!([]),
        ] {
            let profiles = Profiles::new(&[row("/", "profile", "", &wrong)]);
            assert!(profiles.get("/").is_none(), "{wrong}");
        }
        assert!(Profiles::new(&[row("a", "profile", "", &json!({}))]).get("a").is_none());
    }

    #[test]
    fn what_is_declared_for_all_is_in_each_and_what_is_declared_for_one_goes_before() {
        let relay = |told: &str| json!({ "told": told, "topic": "map:{id}" });
        let rows = [
            row("/a", "profile", "", &json!({})),
            row("/b", "profile", "", &json!({})),
            row("*", "relay", "typing", &relay("all")),
            row("/b", "relay", "typing", &relay("own")),
            row("*", "command", "go", &json!({ "function": "app.go(jsonb)" })),
            row("/b", "room", "go:{id}", &json!({ "join_event": "go" })),
        ];
        let profiles = Profiles::new(&rows);
        let told = |namespace| {
            let profile = profiles.get(namespace).unwrap();
            profile.relay_of("typing").map(|relay| relay.told.to_string())
        };
        assert_eq!((told("/a").as_deref(), told("/b").as_deref()), (Some("all"), Some("own")));
        assert_eq!(told("/"), None);
        assert!(profiles.get("/a").unwrap().commands.contains_key("go"));
        assert!(!profiles.get("/b").unwrap().commands.contains_key("go"));
    }

    #[test]
    fn an_event_means_one_thing_but_rooms_share_theirs() {
        let command = json!({ "function": "app.go(jsonb)" });
        let relay = json!({ "told": "b", "topic": "x", "stop_event": "stop" });
        let profile = profile(&[
            row("/a", "room", "a:{id}", &json!({ "join_event": "join", "leave_event": "leave" })),
            row("/a", "room", "b:{no}", &json!({ "join_event": "join", "leave_event": "leave" })),
            row("/a", "command", "join", &command),
            row("/a", "command", "stop", &command),
            row("/a", "relay", "one", &relay),
            row("/a", "relay", "two", &json!({ "told": "b", "topic": "x", "stop_event": "two" })),
            row("/a", "presence", "", &json!({ "status_event": "leave" })),
        ]);
        assert_eq!(profile.rooms_joined_by("join").count(), 2);
        assert_eq!(profile.commands.keys().map(|key| &**key).collect::<Vec<_>>(), ["stop"]);
        assert!(profile.relays.is_empty() && profile.presence.is_none());
    }

    #[test]
    fn rooms_commands_relays_and_presence_are_read() {
        let profile = profile(&[
            row(
                "/a",
                "room",
                "map:{mapId}",
                &json!({
                    "join_event": "map.join", "joined_event": "map.joined", "capacity": 5,
                    "joined_payload": { "users": "$users" }, "pattern": { "mapId": "^[0-9]+$" },
                    "on_join": "app.enter(jsonb)", "announce_self": true, "denied": "no",
                }),
            ),
            row(
                "/a",
                "command",
                "story.update",
                &json!({
                    "table": "app.stories", "operation": "update", "columns": ["title"],
                    "key": ["id"], "others": ["made_by"], "version": "updated_at", "required": ["id"], "failed": "UPDATE_FAILED",
                }),
            ),
            row(
                "/a",
                "relay",
                "drag",
                &json!({
                    "told": "dragging", "topic": "map:{mapId}", "key": ["a", "b"],
                    "min_interval_ms": 100, "gather": "users",
                }),
            ),
            row(
                "/a",
                "presence",
                "",
                &json!({ "online": "on", "topics_function": "app.peers()", "heartbeat_event": "h" }),
            ),
        ]);
        let room = profile.rooms_joined_by("map.join").next().unwrap();
        assert_eq!((room.capacity, room.announce_self), (Some(5), true));
        assert_eq!(
            room.topic(&json!({ "mapId": "x" })).unwrap_err().to_string(),
            "mapId is not valid"
        );
        let topic = room.topic(&json!({ "mapId": 12 })).unwrap().unwrap().topic;
        assert!(profile.room_of(&topic).is_some());
        let command = &profile.commands["story.update"];
        assert_eq!(
            (&*command.failed, &*command.failed_message),
            ("UPDATE_FAILED", "The command failed")
        );
        let Run::Table(write) = &command.run else { panic!("{command:?}") };
        assert_eq!(write.operation, Operation::Update);
        assert_eq!(write.version, Some(("updated_at".into(), "updatedAt".into())));
        let relay = profile.relay_of("drag").unwrap();
        assert_eq!(relay.min_interval, Some(Duration::from_millis(100)));
        assert!(relay.gathers_users);
        let key = |payload: Value| relay.key(&payload);
        assert_ne!(key(json!({ "a": 1, "b": 2 })), key(json!({ "a": 1, "b": "2" })));
        assert_eq!(key(json!({ "a": 1, "c": 2 })), key(json!({ "a": 1 })));
        assert!(key(json!({ "a": "x".repeat(2000) })).is_err());
        let presence = profile.presence.as_ref().unwrap();
        assert_eq!(presence.statuses.len(), 3);
        assert_eq!(presence.write_interval, Duration::from_secs(15));
    }

    #[test]
    fn what_is_not_understood_is_left_out_alone() {
        let good = json!({ "told": "b", "topic": "x" });
        let profile = profile(&[
            row("/a", "relay", "good", &good),
            row("/a", "relay", "disconnect", &good),
            row(
                "/a",
                "relay",
                "bad",
                &json!({ "told": "b", "topic": "x", "payload": { "a": "$row" } }),
            ),
            row("/a", "room", "{x}", &json!({})),
            row("/a", "room", "x:{y}", &json!({ "pattern": { "y": "(" } })),
            row("/a", "room", "x:{z}", &json!({ "capacity": 0 })),
            row("/a", "command", "a", &json!({})),
            row("/a", "command", "b", &json!({ "function": "f.g(text)" })),
            row("/a", "command", "c", &json!({ "table": "t", "operation": "insert" })),
            row("/a", "command", "e", &json!({ "table": "s.t", "operation": "update" })),
            row("/a", "command", "d", &json!({ "table": "s.t", "operation": "truncate" })),
            row("/a", "presence", "", &json!({ "statuses": [""] })),
            row("/a", "other", "", &json!({})),
        ]);
        assert_eq!(profile.relays.len(), 1);
        assert!(profile.rooms.is_empty() && profile.commands.is_empty());
        assert!(profile.presence.is_none());
    }

    proptest! {
        #[test]
        fn no_row_is_a_panic(
            kind in "(profile|room|command|relay|presence)", name: String, declaration: String,
        ) {
            let rows = [
                row("/a", "profile", "", &json!({})),
                Row { namespace: "/a".into(), kind: kind.into(), name: name.into(), declaration: declaration.into() },
            ];
            let _ = Profiles::new(&rows);
        }
    }
}
