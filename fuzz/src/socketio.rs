//! Packets of Engine.IO and Socket.IO: what was read, written again as clients write it, is the same;
//! what is sent can be read.

use serde_json::Value;
use walcast::transport::socketio::packet::{
    Engine, Event, Kind, Packet, SEPARATOR, ack_text, engine, event_text, packet, packets,
};

/// A polling body, or one packet.
pub fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(all) = packets(text) else {
        assert!(bytes.split(|byte| *byte == SEPARATOR).count() > 200);
        return;
    };
    assert_eq!(all.join("\u{1e}"), text);
    for one in all {
        if let Ok(Engine::Message(said)) = engine(one) {
            assert_eq!(format!("4{said}"), one);
            message(said);
        }
    }
}

fn message(text: &str) {
    let Ok(Packet { namespace, kind }) = packet(text) else { return };
    assert!(namespace.starts_with('/') && namespace.len() <= 255, "{namespace:?}");
    let within = if namespace == "/" { String::new() } else { format!("{namespace},") };
    match kind {
        Kind::Connect(auth) => {
            let auth = auth.map_or("", |auth| auth.get());
            let again = format!("0{within}{auth}");
            let Ok(Packet { namespace: same, kind: Kind::Connect(read) }) = packet(&again) else {
                panic!("{again}")
            };
            assert_eq!((same, read.map_or("", |read| read.get())), (namespace, auth));
        }
        Kind::Event(event) => said(namespace, &within, &event),
        Kind::Disconnect | Kind::Ack => {}
    }
}

fn said(namespace: &str, within: &str, event: &Event<'_>) {
    let Event { name, arguments, ack } = event;
    let texts: Vec<&[u8]> = arguments.iter().map(|value| value.get().as_bytes()).collect();
    let sent = event_text(namespace, name, &texts);
    let sent = std::str::from_utf8(&sent).expect("packets are UTF-8");
    let rest = sent.strip_prefix('4').expect("it is a message");
    let Ok(Packet { namespace: same, kind: Kind::Event(read) }) = packet(rest) else {
        panic!("{sent}")
    };
    assert_eq!((same, &read.name, read.ack), (namespace, name, None));
    let values = |event: &Event<'_>| -> Vec<String> {
        event.arguments.iter().map(|value| value.get().to_owned()).collect()
    };
    assert_eq!(values(&read), values(event));
    if let Some(ack) = ack {
        let answer = ack_text(namespace, *ack, b"{}");
        let expected = format!("43{within}{ack}[{{}}]");
        assert_eq!(answer, expected.as_bytes());
    }
    // A reader that knows only JSON takes it for the same.
    let array = rest.strip_prefix('2').and_then(|rest| rest.strip_prefix(within));
    let array = array.expect("it begins with its namespace");
    if let Ok(Value::Array(array)) = serde_json::from_str(array) {
        assert_eq!(array.first().and_then(Value::as_str), Some(&**name));
        assert_eq!(array.len(), arguments.len() + 1);
    }
}
