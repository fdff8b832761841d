//! What a namespace makes of events.
//!
//! In:     broadcasts, rendered; how a client that came back goes on.
//! Out:    finished WebSocket frames, the same for all who get them.
//! Never:  anything about one receiver; a name that the client keeps for itself.
//!
//! An event that came through the log has two arguments behind its payload: what there is to say
//! about it (`{"cursor": …}`), and its cursor alone. The last one is what the official client shows
//! when it comes back by itself, if it is a text: so every other event ends with an object.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use serde_json::json;

use super::packet;
use crate::cursor::Cursor;
use crate::event::broadcast::{self, Broadcast, Encoding};
use crate::hub::{Format, Word};
use crate::mapping::RESERVED;
use crate::transport::websocket::text_frame;

/// Numbers of formats from here on are namespaces'.
const FIRST: u8 = 32;

/// What a broadcast is called that has a name which clients keep for what happens to them: it does not
/// get to say that. Its argument is an object with the name.
const BROADCAST: &str = "broadcast";

/// How a client is told that it has heard what it missed.
const CAUGHT_UP: &str = "caught_up";

/// The wire format of a namespace; none when there are too many of them in one process.
pub(super) fn format(namespace: &str) -> Option<Format> {
    static KNOWN: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let at = known.iter().position(|name| *name == namespace);
    let at = at.unwrap_or(known.len());
    let id = FIRST.checked_add(u8::try_from(at).ok()?)?;
    if at == known.len() {
        // Declared by the database's owner, and kept: there are as many as that.
        known.push(Box::leak(Box::from(namespace)));
    }
    let namespace = known[at];
    drop(known);
    Some(Format {
        id,
        namespace,
        encode: |_shown| Bytes::new(),
        broadcast: |namespace, _topic, what, cursor| said(namespace, what, cursor),
        push: |_topic, _event, _payload| Bytes::new(),
        word,
    })
}

fn word(namespace: &str, topic: &str, word: &Word) -> Bytes {
    let topic = topic.strip_prefix("realtime:").unwrap_or(topic);
    match word {
        Word::CaughtUp(cursor) => {
            let told = json!({ "cursor": cursor.to_string(), "topic": topic }).to_string();
            event(namespace, CAUGHT_UP, &[told.as_bytes(), b"{}"])
        }
        Word::Gap { from, to, reason } => {
            let from = from.map(|from| from.to_string());
            let to = to.to_string();
            let context = json!({ "topic": topic, "from": from, "to": to, "reason": reason });
            let message = "Some of what happened cannot be told any more: read it again";
            let told = json!({ "code": "GAP", "message": message, "context": context }).to_string();
            event(namespace, "gap", &[told.as_bytes(), b"{}"])
        }
    }
}

/// One event as a frame; its arguments are JSON.
pub(super) fn event(namespace: &str, name: &str, arguments: &[&[u8]]) -> Bytes {
    text_frame(&packet::event_text(namespace, name, arguments))
}

fn said(namespace: &str, what: &Broadcast, cursor: Option<Cursor>) -> Option<Bytes> {
    let (name, payload, meta) = match what {
        Broadcast::Whole(whole) => match broadcast::parts(whole) {
            Some((name, payload)) => (name, payload.unwrap_or(b"null"), None),
            None => (Cow::Borrowed(BROADCAST), &**whole, None),
        },
        Broadcast::User(user) => match user.encoding {
            Encoding::Json => (Cow::Borrowed(&*user.event), &*user.data, user.meta.to_json(cursor)),
            // There are no attachments here.
            Encoding::Bytes => return None,
        },
    };
    let meta = meta.unwrap_or_else(|| "{}".to_owned());
    let cursor = cursor.map(|cursor| format!("\"{cursor}\""));
    let cursor = cursor.as_ref().map(String::as_bytes);
    let renamed = RESERVED.contains(&&*name).then(|| {
        let payload = String::from_utf8_lossy(payload);
        let name = serde_json::to_string(&name).unwrap_or_default();
        format!(r#"{{"event":{name},"payload":{payload},"type":"broadcast"}}"#)
    });
    let (name, payload) = match &renamed {
        Some(whole) => (BROADCAST, whole.as_bytes()),
        None => (&*name, payload),
    };
    let arguments = [Some(payload), Some(meta.as_bytes()), cursor];
    let arguments: Vec<&[u8]> = arguments.into_iter().flatten().collect();
    Some(event(namespace, name, &arguments))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::broadcast::{Meta, UserEvent};

    const CURSOR: &str = "00000000016B3748-00000003-1f9ac02b";

    fn text(frame: &Bytes) -> &str {
        let head = match frame[1] {
            126 => 4,
            _ => 2,
        };
        std::str::from_utf8(&frame[head..]).unwrap()
    }

    fn user(event: &str, data: &'static str) -> Broadcast {
        let (event, encoding, data) =
            (event.into(), Encoding::Json, Bytes::from_static(data.as_bytes()));
        Broadcast::User(UserEvent { event, encoding, data, meta: Meta::default() })
    }

    #[test]
    fn an_event_of_the_log_ends_with_its_cursor_and_others_with_an_object() {
        let frame = said("/a", &user("moved", "{\"id\":1}"), CURSOR.parse().ok()).unwrap();
        let expected = format!(r#"42/a,["moved",{{"id":1}},{{"cursor":"{CURSOR}"}},"{CURSOR}"]"#);
        assert_eq!(text(&frame), expected);
        let frame = said("/", &user("typing", "\"text\""), None).unwrap();
        assert_eq!(text(&frame), r#"42["typing","text",{}]"#);
        let whole = Broadcast::Whole(Bytes::from_static(br#"{"type":"broadcast","event":"e"}"#));
        assert_eq!(text(&said("/", &whole, None).unwrap()), r#"42["e",null,{}]"#);
    }

    #[test]
    fn nobody_says_what_only_the_client_says() {
        for name in RESERVED {
            let frame = said("/", &user(name, "1"), None).unwrap();
            let expected = format!(
                r#"42["broadcast",{{"event":"{name}","payload":1,"type":"broadcast"}},{{}}]"#
            );
            assert_eq!(text(&frame), expected);
        }
        let odd = Broadcast::Whole(Bytes::from_static(br#"{"event":7}"#));
        assert_eq!(text(&said("/", &odd, None).unwrap()), r#"42["broadcast",{"event":7},{}]"#);
    }

    #[test]
    fn namespaces_have_formats_of_their_own() {
        let (one, other) = (format("/one").unwrap(), format("/other").unwrap());
        assert_ne!(one.id, other.id);
        assert_eq!(format("/one").unwrap().id, one.id);
        assert_eq!((one.namespace, other.namespace), ("/one", "/other"));
    }
}
