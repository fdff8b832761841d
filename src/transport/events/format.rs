//! What an event stream makes of events.
//!
//! In:     row changes and broadcasts, rendered; what the stream itself has to say.
//! Out:    finished blocks of `field: value` lines, the same for all who get them.
//! Never:  a line that a user's text began: names with line breaks are not written as names.
//! Source: html.spec.whatwg.org, section 9.2.6 (interpreting an event stream).
//!
//! | what | `event:` | `data:` | `id:` |
//! |---|---|---|---|
//! | row change | `INSERT`, `UPDATE`, `DELETE` | the `data` object of the sockets' protocol | its cursor |
//! | broadcast | its own name | its payload: JSON, or a `data:` URL for opaque bytes | its cursor, if it came through the log |
//! | broadcast whose name is ours or no line | `broadcast` | `{"event","payload","type"}` | the same |
//!
//! A broadcast has a field `topic:` too, which browsers pass over.

use std::borrow::Cow;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde_json::json;

use crate::cursor::Cursor;
use crate::event::broadcast::{self, Broadcast, Encoding};
use crate::hub::{Format, Shown, Word};

/// The wire format of every stream.
pub(super) const FORMAT: Format = Format {
    id: 16,
    namespace: "",
    encode: row,
    broadcast: |_, topic, what, cursor| said(topic, what, cursor),
    push: |_topic, event, payload| Event::named(event).data(payload).finish(),
    word: |_, _topic, said| word(said),
};

/// A comment: nothing but a sign of life.
pub(super) const HEARTBEAT: Bytes = Bytes::from_static(b":\n\n");

/// Names that say something of their own here, and to a browser's `EventSource`. A broadcast does
/// not get to say it.
const OURS: [&str; 10] =
    ["INSERT", "UPDATE", "DELETE", "ready", "notice", "caught_up", "gap", "close", "open", "error"];

/// What a broadcast is called that cannot be called by its name.
const BROADCAST: &str = "broadcast";

/// One event being written.
#[derive(Debug)]
pub(super) struct Event(Vec<u8>);

impl Event {
    /// An event of this name, which is one line.
    pub(super) fn named(name: &str) -> Self {
        Self(Vec::new()).field("event", name)
    }

    /// What a client shows when it comes back.
    pub(super) fn id(self, cursor: Option<Cursor>) -> Self {
        match cursor {
            Some(cursor) => self.field("id", &cursor.to_string()),
            None => self,
        }
    }

    /// What it says: each line of it a field, which the client joins again.
    pub(super) fn data(mut self, mut text: &[u8]) -> Self {
        self.0.reserve(text.len() + 16);
        loop {
            self.0.extend_from_slice(b"data: ");
            let end = text.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            self.0.extend_from_slice(&text[..end.unwrap_or(text.len())]);
            self.0.push(b'\n');
            let Some(end) = end else { return self };
            let both = text[end..].starts_with(b"\r\n");
            text = &text[end + 1 + usize::from(both)..];
        }
    }

    fn field(mut self, name: &str, value: &str) -> Self {
        for part in [name, ": ", value, "\n"] {
            self.0.extend_from_slice(part.as_bytes());
        }
        self
    }

    fn topic(self, topic: &str) -> Self {
        let topic = topic.strip_prefix("realtime:").unwrap_or(topic);
        if is_line(topic) { self.field("topic", topic) } else { self }
    }

    /// The whole of it.
    pub(super) fn finish(mut self) -> Bytes {
        self.0.push(b'\n');
        self.0.shrink_to_fit();
        self.0.into()
    }
}

/// How a stream that came back goes on.
pub(super) fn word(word: &Word) -> Bytes {
    match word {
        Word::CaughtUp(cursor) => {
            let data = json!({ "cursor": cursor.to_string() }).to_string();
            Event::named("caught_up").id(Some(*cursor)).data(data.as_bytes()).finish()
        }
        Word::Gap { from, to, reason } => gap(*from, *to, reason).id(Some(*to)).finish(),
    }
}

/// What is missing, and why: whoever hears it has to read again. It may have a place of its own.
pub(super) fn gap(from: Option<Cursor>, to: Cursor, reason: &str) -> Event {
    let from = from.map(|from| from.to_string());
    let data = json!({ "from": from, "to": to.to_string(), "reason": reason }).to_string();
    Event::named("gap").data(data.as_bytes())
}

fn row(shown: &Shown<'_>) -> Bytes {
    Event::named(shown.operation.as_str()).id(Some(shown.cursor)).data(shown.data).finish()
}

fn said(topic: &str, what: &Broadcast, cursor: Option<Cursor>) -> Option<Bytes> {
    let (event, data) = match what {
        Broadcast::Whole(payload) => match broadcast::parts(payload) {
            Some((event, Some(data))) if is_name(&event) => (event, Cow::Borrowed(data)),
            Some(_) | None => (BROADCAST.into(), Cow::Borrowed(&**payload)),
        },
        Broadcast::User(user) => {
            let name = is_name(&user.event);
            match (user.encoding, name) {
                (Encoding::Json, true) => ((&*user.event).into(), Cow::Borrowed(&*user.data)),
                (Encoding::Json, false) => (BROADCAST.into(), Cow::Owned(what.payload()?.to_vec())),
                (Encoding::Bytes, true) => {
                    ((&*user.event).into(), data_url(&user.data).into_bytes().into())
                }
                (Encoding::Bytes, false) => {
                    let payload = data_url(&user.data);
                    let whole = json!({
                        "event": user.event, "payload": payload, "type": BROADCAST,
                    });
                    (BROADCAST.into(), whole.to_string().into_bytes().into())
                }
            }
        }
    };
    Some(Event::named(&event).id(cursor).topic(topic).data(&data).finish())
}

/// No JSON text begins as this does.
fn data_url(bytes: &[u8]) -> String {
    let mut url = String::from("data:application/octet-stream;base64,");
    BASE64_STANDARD.encode_string(bytes, &mut url);
    url
}

fn is_line(text: &str) -> bool {
    !text.contains(['\n', '\r'])
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text != BROADCAST && is_line(text) && !OURS.contains(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Operation;
    use crate::event::broadcast::{Meta, UserEvent};

    const CURSOR: &str = "00000000016B3748-00000003-1f9ac02b";

    fn cursor() -> Cursor {
        CURSOR.parse().unwrap()
    }

    fn text(block: &Bytes) -> &str {
        std::str::from_utf8(block).unwrap()
    }

    fn user(event: &str, encoding: Encoding, data: &'static [u8]) -> Broadcast {
        let (event, data, meta) = (event.into(), Bytes::from_static(data), Meta::default());
        Broadcast::User(UserEvent { event, encoding, data, meta })
    }

    fn check(what: &Broadcast, cursor: Option<Cursor>, expected: &str) {
        let block = said("realtime:room", what, cursor).unwrap();
        assert_eq!(text(&block), expected);
    }

    #[test]
    fn a_row_change_has_its_operation_its_cursor_and_its_data() {
        let data = br#"{"record":{"id":1}}"#;
        let (topic, ids) = ("events", &[7][..]);
        let shown = Shown { topic, ids, operation: Operation::Update, data, cursor: cursor() };
        let expected =
            format!("event: UPDATE\nid: {CURSOR}\ndata: {{\"record\":{{\"id\":1}}}}\n\n");
        assert_eq!(text(&row(&shown)), expected);
    }

    #[test]
    fn every_kind_of_line_break_in_data_begins_a_data_line() {
        let block = Event::named("e").data(b"a\nb\r\nc\rd\n").finish();
        let expected = "event: e\ndata: a\ndata: b\ndata: c\ndata: d\ndata: \n\n";
        assert_eq!(text(&block), expected);
        assert_eq!(text(&Event::named("e").data(b"").finish()), "event: e\ndata: \n\n");
    }

    #[test]
    fn a_broadcast_is_called_by_its_name() {
        let expected = "event: moved\ntopic: room\ndata: {\"a\": 1}\n\n";
        check(&user("moved", Encoding::Json, br#"{"a": 1}"#), None, expected);
        let whole = br#"{"type":"broadcast","event":"moved","payload":{"a": 1}}"#;
        check(&Broadcast::Whole(Bytes::from_static(whole)), None, expected);
        let stored = format!("event: moved\nid: {CURSOR}\ntopic: room\ndata: 7\n\n");
        check(&user("moved", Encoding::Json, b"7"), Some(cursor()), &stored);
    }

    #[test]
    fn who_came_back_is_told_how_it_goes_on_and_from_where() {
        let (cursor, to) = (cursor(), "00000000016B3749-00000000-1f9ac02b");
        let caught_up =
            format!("event: caught_up\nid: {CURSOR}\ndata: {{\"cursor\":\"{CURSOR}\"}}\n\n");
        assert_eq!(text(&word(&Word::CaughtUp(cursor))), caught_up);
        let lost = Word::Gap { from: Some(cursor), to: to.parse().unwrap(), reason: "x" };
        let data = format!(r#"{{"from":"{CURSOR}","to":"{to}","reason":"x"}}"#);
        assert_eq!(text(&word(&lost)), format!("event: gap\ndata: {data}\nid: {to}\n\n"));
    }

    #[test]
    fn opaque_bytes_are_a_data_url() {
        let url = "data: data:application/octet-stream;base64,AP8=";
        check(
            &user("e", Encoding::Bytes, b"\x00\xff"),
            None,
            &format!("event: e\ntopic: room\n{url}\n\n"),
        );
    }

    #[test]
    fn no_broadcast_passes_for_something_else() {
        for name in ["INSERT", "close", "ready", "error", "", "broadcast", "a\nevent: INSERT", "\r"]
        {
            let json = said("realtime:room", &user(name, Encoding::Json, b"{}"), None).unwrap();
            let bytes = said("realtime:room", &user(name, Encoding::Bytes, b"x"), None).unwrap();
            for block in [json, bytes] {
                let rest =
                    text(&block).strip_prefix("event: broadcast\ntopic: room\ndata: ").unwrap();
                let object: serde_json::Value = serde_json::from_str(rest.trim_end()).unwrap();
                assert_eq!(object["event"], name);
                assert_eq!(rest.lines().count(), 2, "{rest}");
            }
        }
        for odd in [&br#"{"type":"broadcast"}"#[..], br#"{"event":7,"payload":1}"#] {
            let block = said("t", &Broadcast::Whole(Bytes::from_static(odd)), None).unwrap();
            assert!(text(&block).starts_with("event: broadcast\n"), "{block:?}");
        }
        let block = said("realtime:a\nid: 1", &user("e", Encoding::Json, b"1"), None).unwrap();
        assert_eq!(text(&block), "event: e\ndata: 1\n\n");
    }
}
