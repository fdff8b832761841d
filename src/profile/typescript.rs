//! Profiles → the TypeScript types of what clients send and hear in each namespace.
//!
//! In:     [`Profiles`]; of each table that a command writes, the columns with their types.
//! Out:    one interface by namespace, with what `Socket` of socket.io-client takes. The events of
//!         mappings are in `Events`, see [`crate::mapping::typescript`].
//! Never:  a name or a literal that is not quoted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use hashbrown::HashMap;

use super::declared::{Command, Operation, Presence, Relay, Room, Run, TableWrite};
use super::namespaces::{Profile, Profiles};
use super::naming::Naming;
use super::payload::{Member, Payload, Root, Source};
use super::routine::Relation;
use crate::mapping::ColumnType;

/// What is the same for all of them.
const SHARED: &str = r#"
/** What comes beside a payload; the cursor is that of an event of the log. */
export interface About { cursor?: string; [more: string]: unknown }
/** An error, as an event or in an answer. */
export interface Failure { code: string; message: string; context?: unknown }
/** What is acknowledged. */
export type Answer<Data> = { ok: true; data: Data; cursor?: string } | { ok: false; error: Failure };
/** An event that a client sends. */
export type Sends<Payload, Data> = (payload: Payload, answer?: (answer: Answer<Data>) => void) => void;
/** An event that a client hears. */
export type Hears<Payload> = (payload: Payload, about: About, cursor?: string) => void;
/** For socket.io-client: `const socket: Socket<Hear<"/name">, Send<"/name">> = io(...)`. */
export type Send<Name extends keyof Namespaces> = Namespaces[Name]["send"];
export type Hear<Name extends keyof Namespaces> = Namespaces[Name]["hear"] & { [Event in keyof Events]: Hears<Events[Event]> };
"#;

/// Members of an object: name → type, and whether it may be absent.
type Members = BTreeMap<String, (BTreeSet<String>, bool)>;

/// Events: name → types of the payload, and of the answer's data.
type EventTypes = BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)>;

/// An interface `Namespaces`. `tables`: the columns of those that commands write.
pub fn typescript(profiles: &Profiles, tables: &HashMap<Relation, Vec<ColumnType>>) -> String {
    let mut out = String::from(SHARED);
    out.push_str("/** What is sent and heard in each namespace, beside `Events`. */\n");
    out.push_str("export interface Namespaces {\n");
    let profiles: BTreeMap<&str, &Profile> =
        profiles.iter().map(|profile| (&*profile.namespace, &**profile)).collect();
    for (namespace, profile) in profiles {
        let mut types = Types { tables, send: EventTypes::new(), hear: EventTypes::new() };
        types.profile(profile);
        let _ = writeln!(out, "  {}: {{\n    send: {{", quoted(namespace));
        for (event, (payloads, data)) in &types.send {
            let (payload, data) = (union(payloads), union(data));
            let _ = writeln!(out, "      {}: Sends<{payload}, {data}>;", quoted(event));
        }
        out.push_str("    };\n    hear: {\n");
        for (event, (payloads, _)) in &types.hear {
            let _ = writeln!(out, "      {}: Hears<{}>;", quoted(event), union(payloads));
        }
        out.push_str("    };\n  };\n");
    }
    out.push_str("}\n");
    out
}

struct Types<'a> {
    tables: &'a HashMap<Relation, Vec<ColumnType>>,
    send: EventTypes,
    hear: EventTypes,
}

/// What `$users` and `$status` are.
#[derive(Clone, Copy, Default)]
struct Place<'a> {
    users: Option<&'a Payload>,
    statuses: &'a [Box<str>],
}

impl Types<'_> {
    fn profile(&mut self, profile: &Profile) {
        self.hears(Some(&profile.error_event), "Failure");
        self.hears(Some("gap"), "Failure");
        self.hears(Some("caught_up"), r#"{ "cursor": string; "topic": string }"#);
        self.rooms(profile);
        for (event, command) in &profile.commands {
            self.command(event, command);
        }
        for relay in &profile.relays {
            let room = relay.naming.template().and_then(|template| {
                let same = |room: &&Room| {
                    room.naming.template().is_some_and(|known| known.as_str() == template.as_str())
                };
                profile.rooms.iter().map(|room| &**room).find(same)
            });
            self.relay(relay, room);
        }
        if let Some(presence) = &profile.presence {
            self.presence(presence);
        }
    }

    fn hears(&mut self, event: Option<&str>, payload: &str) {
        if let Some(event) = event {
            self.hear.entry(event.to_owned()).or_default().0.insert(payload.to_owned());
        }
    }

    fn sends(&mut self, event: &str, payload: String, data: String) {
        let (payloads, answers) = self.send.entry(event.to_owned()).or_default();
        payloads.insert(payload);
        answers.insert(data);
    }

    fn rooms(&mut self, profile: &Profile) {
        for room in &profile.rooms {
            let place = Place { users: Some(&room.user_payload), statuses: &[] };
            let joined = room.joined_payload.as_ref().map(|payload| object(payload, place));
            if let Some(joined) = &joined {
                self.hears(room.joined_event.as_deref(), joined);
            }
            self.hears(room.user_joined.as_deref(), &object(&room.user_joined_payload, place));
            self.hears(room.user_left.as_deref(), &object(&room.user_left_payload, place));
            for (event, joins) in [(&room.join_event, true), (&room.leave_event, false)] {
                let Some(event) = event else { continue };
                let mut members = Members::new();
                // A function may know the room by something else.
                let is_free = room.on_join.is_some() || room.on_leave.is_some();
                values(&mut members, &room.naming, is_free);
                if joins {
                    let string = BTreeSet::from(["string".to_owned()]);
                    members.insert("since".into(), (string, true));
                }
                let data = joined.clone().filter(|_| joins).unwrap_or_else(|| "null".into());
                self.sends(event, written(&members, is_free), data);
            }
        }
    }

    fn command(&mut self, event: &str, command: &Command) {
        let mut members = Members::new();
        let data = match &command.run {
            Run::Function(..) => "unknown".to_owned(),
            Run::Table(write) => self.table(write, &mut members),
        };
        for name in &command.required {
            let unknown = || (BTreeSet::from(["unknown".to_owned()]), false);
            members.entry(name.to_string()).or_insert_with(unknown).1 = false;
        }
        members.insert("mutationId".into(), (BTreeSet::from(["string".to_owned()]), true));
        self.hears(command.reply_event.as_deref(), &data);
        self.sends(event, written(&members, true), data);
    }

    /// What a payload has of a table's columns; gives the type of its row.
    fn table(&self, write: &TableWrite, members: &mut Members) -> String {
        let Some(columns) = self.tables.get(&write.relation) else {
            return "unknown".into();
        };
        let kind = |column: &ColumnType| {
            let null = column.nullable.then(|| "null".to_owned());
            null.into_iter().chain([column.r#type.to_string()]).collect::<BTreeSet<_>>()
        };
        let is_insert = write.operation == Operation::Insert;
        for column in columns {
            let is_key = column.key && !is_insert;
            if is_key || write.columns.iter().any(|name| **name == *column.name) {
                let name = write.key_case.apply(&column.name);
                members.insert(name.into(), (kind(column), !is_key));
            }
            if let Some((version, member)) = &write.version
                && **version == *column.name
            {
                members.insert(member.to_string(), (kind(column), true));
            }
        }
        let row = columns
            .iter()
            .map(|column| (write.key_case.apply(&column.name).into(), (kind(column), false)));
        written(&row.collect(), false)
    }

    fn relay(&mut self, relay: &Relay, room: Option<&Room>) {
        let place = Place { users: room.map(|room| &room.user_payload), statuses: &[] };
        self.hears(Some(&relay.told), &object(&relay.payload, place));
        self.hears(relay.stopped.as_deref(), &object(&relay.stopped_payload, place));
        let mut members = Members::new();
        let mut add = |name: &str, kind: &str| {
            let kind = BTreeSet::from([kind.to_owned()]);
            members.entry(name.to_owned()).or_insert((kind, true));
        };
        if let Some(member) = &relay.active_member {
            add(member, "boolean");
        }
        for name in &relay.key {
            add(name, "unknown");
        }
        for name in relay.payload.sent_members().chain(relay.stopped_payload.sent_members()) {
            add(name, "unknown");
        }
        values(&mut members, &relay.naming, false);
        let is_free = relay.payload.takes_all();
        for event in [Some(&relay.event), relay.stop_event.as_ref()].into_iter().flatten() {
            self.sends(event, written(&members, is_free), "null".into());
        }
    }

    fn presence(&mut self, presence: &Presence) {
        let place = Place { users: None, statuses: &presence.statuses };
        self.hears(presence.online.as_deref(), &object(&presence.online_payload, place));
        self.hears(presence.offline.as_deref(), &object(&presence.offline_payload, place));
        if let Some(event) = &presence.status_event {
            let statuses = presence.statuses.iter().map(|status| quoted(status)).collect();
            let members = Members::from([(presence.status_member.to_string(), (statuses, false))]);
            self.sends(event, written(&members, presence.write.is_some()), "null".into());
        }
        if let Some(event) = &presence.heartbeat_event {
            self.sends(event, "unknown".into(), "null".into());
        }
    }
}

impl Payload {
    /// Members of what a client sent that it names.
    fn sent_members(&self) -> impl Iterator<Item = &str> {
        let sources = self.members.iter().flat_map(|(_, sources)| sources);
        sources.filter_map(|source| match source {
            Source::Path(Root::Payload, steps) => steps.first().map(|name| &**name),
            Source::Path(Root::Topic | Root::Member | Root::Claims, _)
            | Source::Sub
            | Source::Time
            | Source::Topic
            | Source::Users
            | Source::Status
            | Source::Constant(_) => None,
        })
    }

    /// Whether it has what a client sent, whatever that is.
    fn takes_all(&self) -> bool {
        let mut sources = self.members.iter().flat_map(|(_, sources)| sources);
        sources
            .any(|source| matches!(source, Source::Path(Root::Payload, steps) if steps.is_empty()))
    }
}

/// The values of a topic's name.
fn values(members: &mut Members, naming: &Naming, is_optional: bool) {
    let template = naming.template();
    let names: Vec<&str> = template.map_or_else(|| vec!["topic"], |t| t.columns().collect());
    for name in names {
        let kinds = ["number", "string"].map(str::to_owned).into();
        members.insert(name.to_owned(), (kinds, is_optional));
    }
}

fn object(payload: &Payload, place: Place<'_>) -> String {
    let mut members = Members::new();
    let mut is_open = false;
    for (member, sources) in &payload.members {
        match member {
            Member::Spread => is_open = true,
            Member::Set(name) => {
                let known: Vec<(String, bool)> =
                    sources.iter().map(|source| one(source, place)).collect();
                let is_absent = known.iter().all(|(_, is_absent)| *is_absent);
                let kinds = known.into_iter().map(|(kind, _)| kind).collect();
                members.insert(name.to_string(), (kinds, is_absent));
            }
        }
    }
    written(&members, is_open)
}

/// A source's type, and whether it may be absent.
fn one(source: &Source, place: Place<'_>) -> (String, bool) {
    match source {
        Source::Path(Root::Topic, steps) if steps.len() == 1 => ("string".into(), false),
        Source::Path(Root::Topic, _) => ("Record<string, string>".into(), false),
        Source::Path(Root::Payload | Root::Member | Root::Claims, _) => ("unknown".into(), true),
        Source::Sub | Source::Time | Source::Topic => ("string".into(), false),
        Source::Users => {
            let user = place.users.map(|user| object(user, Place::default()));
            let user = user.unwrap_or_else(|| r#"{ "userId": string }"#.into());
            (format!("Array<{user}>"), false)
        }
        Source::Status if place.statuses.is_empty() => ("string".into(), false),
        Source::Status => {
            (union(&place.statuses.iter().map(|status| quoted(status)).collect()), false)
        }
        Source::Constant(value) => (value.to_string(), false),
    }
}

/// Types, or what says nothing if one of them does.
fn union(kinds: &BTreeSet<String>) -> String {
    if kinds.is_empty() || kinds.contains("unknown") {
        return "unknown".into();
    }
    // Null stands last.
    let (null, others): (Vec<&String>, Vec<&String>) =
        kinds.iter().partition(|kind| **kind == "null");
    let kinds: Vec<&str> = others.into_iter().chain(null).map(String::as_str).collect();
    kinds.join(" | ")
}

fn written(members: &Members, is_open: bool) -> String {
    let mut properties: Vec<String> = Vec::with_capacity(members.len());
    for (name, (kinds, is_absent)) in members {
        let absent = if *is_absent { "?" } else { "" };
        properties.push(format!("{}{absent}: {}", quoted(name), union(kinds)));
    }
    if is_open {
        properties.push("[more: string]: unknown".into());
    }
    if properties.is_empty() { "{}".into() } else { format!("{{ {} }}", properties.join("; ")) }
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("text is always a JSON string")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Row;

    #[test]
    fn a_namespace_has_the_types_of_what_is_declared_in_it() {
        let rows = [
            ("profile", "", "{}"),
            (
                "room",
                "map:{mapId}",
                r#"{"join_event": "map.join", "joined_event": "map.joined", "user_left": "user \"left\"",
                    "joined_payload": {"mapId": "topic.mapId", "users": "$users", "role": "member.role"},
                    "user_payload": {"id": "$sub"}}"#,
            ),
            (
                "command",
                "story.update",
                r#"{"table": "s.stories", "operation": "update", "key": ["id"], "columns": ["step_id"], "required": ["id", "why"],
                    "version": "v", "version_member": "seen"}"#,
            ),
            (
                "command",
                "map.sync",
                r#"{"function": "s.sync(jsonb)", "reply_event": "map.synced"}"#,
            ),
            (
                "relay",
                "drag",
                r#"{"told": "dragging", "topic": "map:{mapId}", "payload": {"story": "payload.storyId", "on": {"value": true}},
                    "stop_event": "drop", "stopped": "dropped", "stopped_payload": {"by": ["member.name", "$sub"]}}"#,
            ),
            (
                "presence",
                "",
                r#"{"online": "online", "online_payload": {"status": "$status"}, "status_event": "status", "statuses": ["on", "off"]}"#,
            ),
        ];
        let rows = rows.map(|(kind, name, declaration)| Row {
            namespace: "/maps".into(),
            kind: kind.into(),
            name: name.into(),
            declaration: declaration.into(),
        });
        let column = |name: &str, kind: &str, nullable, key| ColumnType {
            name: name.into(),
            r#type: kind.into(),
            nullable,
            key,
        };
        let columns = vec![
            column("id", "string", false, true),
            column("step_id", "string", true, false),
            column("v", "number", false, false),
        ];
        let tables = HashMap::from([(Relation::parse("s.stories").unwrap(), columns)]);
        let found = typescript(&Profiles::new(&rows), &tables);
        let expected = r#"  "/maps": {
    send: {
      "drag": Sends<{ "mapId": number | string; "storyId"?: unknown }, null>;
      "drop": Sends<{ "mapId": number | string; "storyId"?: unknown }, null>;
      "map.join": Sends<{ "mapId": number | string; "since"?: string }, { "mapId": string; "role"?: unknown; "users": Array<{ "id": string }> }>;
      "map.sync": Sends<{ "mutationId"?: string; [more: string]: unknown }, unknown>;
      "status": Sends<{ "status": "off" | "on" }, null>;
      "story.update": Sends<{ "id": string; "mutationId"?: string; "seen"?: number; "stepId"?: string | null; "why": unknown; [more: string]: unknown }, { "id": string; "stepId": string | null; "v": number }>;
    };
    hear: {
      "caught_up": Hears<{ "cursor": string; "topic": string }>;
      "dragging": Hears<{ "on": true; "story"?: unknown }>;
      "dropped": Hears<{ "by": unknown }>;
      "error": Hears<Failure>;
      "gap": Hears<Failure>;
      "map.joined": Hears<{ "mapId": string; "role"?: unknown; "users": Array<{ "id": string }> }>;
      "map.synced": Hears<unknown>;
      "online": Hears<{ "status": "off" | "on" }>;
      "user \"left\"": Hears<{ "userId": string }>;
    };
  };
}
"#;
        assert!(found.ends_with(expected), "{found}");
    }
}
