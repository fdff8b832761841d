//! Packets of Socket.IO 5 in packets of Engine.IO 4, as text.
//!
//! In:     what a client sends: one Engine.IO packet, or a polling body of several.
//! Out:    what it means; the text of what we send.
//! Never:  binary attachments (an event here is JSON); a look into arguments.
//! Source: the published protocol documents of Engine.IO (revision 4) and Socket.IO (revision 5).

use std::borrow::Cow;

use serde_json::value::RawValue;

/// Between packets of a polling body.
pub const SEPARATOR: u8 = 0x1e;
/// Packets in one polling body.
const PACKETS_MAX: usize = 256;
/// Bytes of a namespace's name.
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes of an event's name: more than any that is declared has.
const EVENT_BYTES_MAX: usize = 4096;
/// Arguments of one event.
const ARGUMENTS_MAX: usize = 16;
/// Digits of a number by which a client asks for an answer.
const ACK_DIGITS_MAX: usize = 15;

/// What an Engine.IO packet says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine<'a> {
    /// The client goes.
    Close,
    /// Only while it tries a WebSocket; `probe`, as a rule.
    Ping(&'a str),
    /// The answer to ours.
    Pong,
    /// A Socket.IO packet.
    Message(&'a str),
    /// From here on it uses the WebSocket.
    Upgrade,
    /// Nothing.
    Noop,
}

/// A Socket.IO packet of a client.
#[derive(Debug)]
pub struct Packet<'a> {
    /// Begins with `/`.
    pub namespace: &'a str,
    /// What it says.
    pub kind: Kind<'a>,
}

/// What a packet says.
#[derive(Debug)]
pub enum Kind<'a> {
    /// What it shows to be let in; an object, if anything.
    Connect(Option<&'a RawValue>),
    /// It leaves the namespace.
    Disconnect,
    /// It says something.
    Event(Event<'a>),
    /// An answer to an event of ours; we ask for none.
    Ack,
}

/// An event of a client.
#[derive(Debug)]
pub struct Event<'a> {
    /// What it is called.
    pub name: Cow<'a, str>,
    /// JSON.
    pub arguments: Vec<&'a RawValue>,
    /// By what it wants to be answered.
    pub ack: Option<u64>,
}

/// What no client of this protocol sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// An empty packet.
    #[error("an empty packet")]
    Empty,
    /// An unknown kind of packet.
    #[error("an unknown kind of packet")]
    UnknownKind,
    /// Binary attachments are not supported: send JSON.
    #[error("binary attachments are not supported: send JSON")]
    Binary,
    /// A name that is too long.
    #[error("a name that is too long")]
    LongName,
    /// An answer's number with too many digits.
    #[error("an answer's number with too many digits")]
    LongAck,
    /// Malformed JSON.
    #[error("malformed JSON")]
    Json,
    /// An event is an array that begins with its name.
    #[error("an event is an array that begins with its name")]
    NoName,
    /// Too many arguments.
    #[error("too many arguments")]
    TooManyArguments,
    /// Too many packets at once.
    #[error("too many packets at once")]
    TooManyPackets,
}

/// The packets of a polling body.
///
/// # Errors
/// There are more than a client gathers.
pub fn packets(body: &str) -> Result<Vec<&str>, PacketError> {
    let packets = body.split(char::from(SEPARATOR)).take(PACKETS_MAX + 1).collect::<Vec<_>>();
    if packets.len() > PACKETS_MAX { Err(PacketError::TooManyPackets) } else { Ok(packets) }
}

/// # Errors
/// It is none.
pub fn engine(packet: &str) -> Result<Engine<'_>, PacketError> {
    let mut letters = packet.chars();
    let kind = letters.next().ok_or(PacketError::Empty)?;
    let rest = letters.as_str();
    match kind {
        '1' => Ok(Engine::Close),
        '2' => Ok(Engine::Ping(rest)),
        '3' => Ok(Engine::Pong),
        '4' => Ok(Engine::Message(rest)),
        '5' => Ok(Engine::Upgrade),
        '6' => Ok(Engine::Noop),
        'b' => Err(PacketError::Binary),
        _ => Err(PacketError::UnknownKind),
    }
}

/// A Socket.IO packet: `kind[/namespace,][ack][json]`.
///
/// # Errors
/// It is none that we take.
pub fn packet(text: &str) -> Result<Packet<'_>, PacketError> {
    let mut letters = text.chars();
    let kind = letters.next().ok_or(PacketError::Empty)?;
    let (namespace, rest) = namespace(letters.as_str())?;
    let kind = match kind {
        '0' => Kind::Connect(json(rest)?),
        '1' => Kind::Disconnect,
        '2' => Kind::Event(event(rest)?),
        '3' => Kind::Ack,
        '5' | '6' => return Err(PacketError::Binary),
        _ => return Err(PacketError::UnknownKind),
    };
    Ok(Packet { namespace, kind })
}

/// The namespace in front, `/` if there is none, without a query behind it.
fn namespace(text: &str) -> Result<(&str, &str), PacketError> {
    if !text.starts_with('/') {
        return Ok(("/", text));
    }
    let (name, rest) = text.split_once(',').unwrap_or((text, ""));
    let name = name.split_once('?').map_or(name, |(name, _query)| name);
    if name.len() > NAME_BYTES_MAX { Err(PacketError::LongName) } else { Ok((name, rest)) }
}

fn json(text: &str) -> Result<Option<&RawValue>, PacketError> {
    if text.is_empty() {
        return Ok(None);
    }
    serde_json::from_str(text).map(Some).map_err(|_| PacketError::Json)
}

fn event(text: &str) -> Result<Event<'_>, PacketError> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    if digits > ACK_DIGITS_MAX {
        return Err(PacketError::LongAck);
    }
    let (ack, text) = text.split_at(digits);
    let array: Vec<&RawValue> = serde_json::from_str(text).map_err(|_| PacketError::Json)?;
    let (name, arguments) = array.split_first().ok_or(PacketError::NoName)?;
    let name: Cow<'_, str> = text_of(name).ok_or(PacketError::NoName)?;
    if name.len() > EVENT_BYTES_MAX {
        return Err(PacketError::LongName);
    }
    if arguments.len() > ARGUMENTS_MAX {
        return Err(PacketError::TooManyArguments);
    }
    Ok(Event { name, arguments: arguments.to_vec(), ack: ack.parse().ok() })
}

/// The text of a JSON string.
pub fn text_of(value: &RawValue) -> Option<Cow<'_, str>> {
    #[derive(serde::Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    serde_json::from_str::<Text<'_>>(value.get()).ok().map(|text| text.0)
}

/// What stands between the kind of a packet of ours and its content.
fn head(text: &mut Vec<u8>, kind: u8, namespace: &str) {
    text.extend([b'4', kind]);
    if namespace != "/" {
        text.extend(namespace.as_bytes());
        text.push(b',');
    }
}

/// That a namespace was entered: the names of the connection, `private` for who comes back.
pub fn connected(namespace: &str, sid: &str, private: &str) -> Vec<u8> {
    let mut text = Vec::with_capacity(128);
    head(&mut text, b'0', namespace);
    text.extend(serde_json::json!({ "sid": sid, "pid": private }).to_string().as_bytes());
    text
}

/// That it was not, and why.
pub fn refused(namespace: &str, message: &str) -> Vec<u8> {
    let mut text = Vec::with_capacity(128);
    head(&mut text, b'4', namespace);
    text.extend(serde_json::json!({ "message": message }).to_string().as_bytes());
    text
}

/// An event; each argument is JSON.
pub fn event_text(namespace: &str, name: &str, arguments: &[&[u8]]) -> Vec<u8> {
    let name = serde_json::to_string(name).expect("text is always a JSON string");
    let length: usize = arguments.iter().map(|argument| argument.len() + 1).sum();
    let mut text = Vec::with_capacity(namespace.len() + name.len() + length + 8);
    head(&mut text, b'2', namespace);
    text.push(b'[');
    text.extend(name.as_bytes());
    for argument in arguments {
        text.push(b',');
        text.extend(*argument);
    }
    text.push(b']');
    text
}

/// The answer to an event, a JSON value.
pub fn ack_text(namespace: &str, ack: u64, answer: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(namespace.len() + answer.len() + 24);
    head(&mut text, b'3', namespace);
    text.extend(ack.to_string().as_bytes());
    text.push(b'[');
    text.extend(answer);
    text.push(b']');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Packet<'_> {
        packet(text).unwrap()
    }

    fn event_of(text: &str) -> (String, String, Vec<String>, Option<u64>) {
        let Packet { namespace, kind: Kind::Event(event) } = parsed(text) else {
            panic!("no event: {text}")
        };
        let arguments = event.arguments.iter().map(|value| value.get().to_owned()).collect();
        (namespace.to_owned(), event.name.into_owned(), arguments, event.ack)
    }

    #[test]
    fn an_engine_packet_is_known_by_its_first_letter() {
        assert_eq!(engine("2probe"), Ok(Engine::Ping("probe")));
        assert_eq!(engine("3"), Ok(Engine::Pong));
        assert_eq!(engine("42[\"a\"]"), Ok(Engine::Message("2[\"a\"]")));
        assert_eq!(engine("5"), Ok(Engine::Upgrade));
        assert_eq!(engine("1"), Ok(Engine::Close));
        assert_eq!(engine("6"), Ok(Engine::Noop));
        assert_eq!(engine(""), Err(PacketError::Empty));
        assert_eq!(engine("bAQID"), Err(PacketError::Binary));
        assert_eq!(engine("é"), Err(PacketError::UnknownKind));
    }

    #[test]
    fn a_polling_body_is_split_and_bounded() {
        assert_eq!(packets("2\u{1e}42[\"a\"]").unwrap(), ["2", "42[\"a\"]"]);
        let many = "2\u{1e}".repeat(PACKETS_MAX);
        assert_eq!(packets(&many), Err(PacketError::TooManyPackets));
        assert_eq!(packets(many.trim_end_matches('\u{1e}')).unwrap().len(), PACKETS_MAX);
    }

    #[test]
    fn a_namespace_stands_in_front_or_is_the_root() {
        assert_eq!(parsed("0").namespace, "/");
        assert_eq!(parsed("0{\"token\":\"x\"}").namespace, "/");
        assert_eq!(parsed("0/story-maps,").namespace, "/story-maps");
        assert_eq!(parsed("0/story-maps").namespace, "/story-maps");
        assert_eq!(parsed("0/story-maps?token=x,{\"a\":1}").namespace, "/story-maps");
        let Kind::Connect(Some(auth)) = parsed("0/a,{\"token\":\"x\"}").kind else { panic!() };
        assert_eq!(auth.get(), "{\"token\":\"x\"}");
        assert!(matches!(parsed("0/a,").kind, Kind::Connect(None)));
        assert!(matches!(parsed("1/a,").kind, Kind::Disconnect));
        let long = format!("0/{},", "x".repeat(NAME_BYTES_MAX));
        assert_eq!(packet(&long).unwrap_err(), PacketError::LongName);
    }

    #[test]
    fn an_event_has_a_name_arguments_and_maybe_a_number() {
        let none: Vec<String> = Vec::new();
        assert_eq!(event_of("2[\"a\"]"), ("/".into(), "a".into(), none, None));
        assert_eq!(
            event_of("2/x,17[\"a\\n\", {\"b\": 1} ,null]"),
            ("/x".into(), "a\n".into(), vec!["{\"b\": 1}".into(), "null".into()], Some(17))
        );
        assert!(matches!(parsed("3/x,1[]").kind, Kind::Ack));
    }

    #[test]
    fn what_is_no_event_is_refused() {
        for (text, problem) in [
            ("", PacketError::Empty),
            ("9", PacketError::UnknownKind),
            ("4{}", PacketError::UnknownKind),
            ("2", PacketError::Json),
            ("2[]", PacketError::NoName),
            ("2[1]", PacketError::NoName),
            ("2{\"a\":1}", PacketError::Json),
            ("2[\"a\"", PacketError::Json),
            ("2[\"a\"]x", PacketError::Json),
            ("21234567890123456[\"a\"]", PacketError::LongAck),
            ("51-[\"a\",{\"_placeholder\":true,\"num\":0}]", PacketError::Binary),
            ("0{", PacketError::Json),
        ] {
            assert_eq!(packet(text).unwrap_err(), problem, "{text}");
        }
        let many = format!("2[\"a\"{}]", ",1".repeat(ARGUMENTS_MAX + 1));
        assert_eq!(packet(&many).unwrap_err(), PacketError::TooManyArguments);
        let long = format!("2[\"{}\"]", "x".repeat(EVENT_BYTES_MAX + 1));
        assert_eq!(packet(&long).unwrap_err(), PacketError::LongName);
    }

    #[test]
    fn ours_are_written_as_clients_read_them() {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        assert_eq!(text(connected("/", "s", "p")), "40{\"sid\":\"s\",\"pid\":\"p\"}");
        assert_eq!(text(refused("/a", "no")), "44/a,{\"message\":\"no\"}");
        assert_eq!(text(event_text("/a", "x\"y", &[b"1", b"{}"])), "42/a,[\"x\\\"y\",1,{}]");
        assert_eq!(text(event_text("/", "x", &[])), "42[\"x\"]");
        assert_eq!(text(ack_text("/a", 7, b"{\"ok\":true}")), "43/a,7[{\"ok\":true}]");
    }
}
