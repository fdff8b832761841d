//! A peer's bytes → whole messages.
//!
//! In:     bytes as they come, cut anywhere.
//! Out:    text, binary and control frames; slices of the input where it holds a whole frame.
//! Never:  IO; memory for more than has come; a message above its limit.

use crate::hub::outbox::CloseReason;

use super::{BINARY, CLOSE, PING, PONG, TEXT};

const CONTINUATION: u8 = 0x0;

/// Longest payload of a control frame.
const CONTROL_BYTES_MAX: usize = 125;

/// What the peer said.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
    Ping(&'a [u8]),
    Pong,
    Close(Option<u16>),
}

/// The state between two reads.
#[derive(Debug)]
pub(super) struct Decoder {
    message_bytes_max: usize,
    /// The first bytes of a frame whose end has not come, as they came.
    partial: Vec<u8>,
    /// `partial` was handed out, and is to be forgotten.
    partial_done: bool,
    message: Message,
}

/// The fragments of a message whose end has not come.
#[derive(Debug)]
struct Message {
    data: Vec<u8>,
    /// How much of `data` is known to be UTF-8.
    valid: usize,
    kind: Kind,
    /// `data` was handed out, and is to be forgotten.
    done: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// No message is open.
    None,
    Text,
    Binary,
}

/// A frame's first 6 to 14 bytes.
#[derive(Debug, Clone, Copy)]
struct Header {
    is_final: bool,
    opcode: u8,
    /// Bytes of the header itself.
    bytes: usize,
    /// Bytes of the payload.
    length: usize,
    mask: [u8; 4],
}

impl Decoder {
    pub(super) fn new(message_bytes_max: usize) -> Self {
        Self {
            message_bytes_max,
            partial: Vec::new(),
            partial_done: false,
            message: Message { data: Vec::new(), valid: 0, kind: Kind::None, done: false },
        }
    }

    /// Takes bytes from `input`; says how many, and what they completed. Uses at least one, and
    /// all of them when it returns `None` because more must come.
    ///
    /// # Errors
    /// Why the connection must be closed; the decoder is not used after that.
    pub(super) fn next<'a>(
        &'a mut self,
        input: &'a mut [u8],
    ) -> Result<(usize, Option<Incoming<'a>>), CloseReason> {
        self.rest();
        if self.partial.is_empty() {
            let header = self.header(input)?;
            let Some((header, total)) = header.filter(|(_, total)| *total <= input.len()) else {
                let wanted = header.map_or(input.len(), |(_, total)| total);
                append(&mut self.partial, input, wanted);
                return Ok((input.len(), None));
            };
            let payload = &mut input[header.bytes..total];
            unmask(payload, header.mask);
            return Ok((total, self.message.take(header, payload)?));
        }
        let mut used = 0;
        let (header, total) = loop {
            // First the two bytes that say how long the header is, then the header, then the rest.
            let header = self.header(&self.partial)?;
            let wanted = match header {
                Some((header, total)) if total <= self.partial.len() => break (header, total),
                Some((_, total)) => total,
                None => header_bytes(&self.partial),
            };
            if used == input.len() {
                return Ok((used, None));
            }
            let count = (wanted - self.partial.len()).min(input.len() - used);
            append(&mut self.partial, &input[used..used + count], wanted);
            used += count;
        };
        self.partial_done = true;
        let payload = &mut self.partial[header.bytes..total];
        unmask(payload, header.mask);
        Ok((used, self.message.take(header, payload)?))
    }

    /// Forgets what was handed out, and gives its memory back.
    pub(super) fn rest(&mut self) {
        if self.partial_done {
            self.partial = Vec::new();
            self.partial_done = false;
        }
        if self.message.done {
            self.message.data = Vec::new();
            self.message.valid = 0;
            self.message.done = false;
        }
    }

    /// Memory held for messages that are not complete.
    pub(super) fn held_bytes(&self) -> usize {
        self.partial.capacity() + self.message.data.capacity()
    }

    /// The header at the start of `bytes`, and the length of its whole frame; `None` when more
    /// must come. Refuses as soon as it can.
    fn header(&self, bytes: &[u8]) -> Result<Option<(Header, usize)>, CloseReason> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        let (is_final, opcode) = (first & 0x80 != 0, first & 0x0F);
        if first & 0x70 != 0 {
            return Err(CloseReason::Protocol("reserved bit set"));
        }
        let is_control = opcode & 0x8 != 0;
        match opcode {
            CLOSE | PING | PONG => {
                if !is_final {
                    return Err(CloseReason::Protocol("fragmented control frame"));
                }
            }
            CONTINUATION => {
                if self.message.kind == Kind::None {
                    return Err(CloseReason::Protocol("continuation of nothing"));
                }
            }
            TEXT | BINARY => {
                if self.message.kind != Kind::None {
                    return Err(CloseReason::Protocol("message within a message"));
                }
            }
            _ => return Err(CloseReason::Protocol("reserved opcode")),
        }
        let Some(&second) = bytes.get(1) else { return Ok(None) };
        if second & 0x80 == 0 {
            return Err(CloseReason::Protocol("frame without mask"));
        }
        let short = second & 0x7F;
        if is_control && usize::from(short) > CONTROL_BYTES_MAX {
            return Err(CloseReason::Protocol("control frame too long"));
        }
        let length = match short {
            126 => match bytes.get(2..4).and_then(|length| length.try_into().ok()) {
                Some(length) => u64::from(u16::from_be_bytes(length)),
                None => return Ok(None),
            },
            127 => match bytes.get(2..10).and_then(|length| length.try_into().ok()) {
                Some(length) => u64::from_be_bytes(length),
                None => return Ok(None),
            },
            short => u64::from(short),
        };
        let shortest = match length {
            0..=125 => 0..=125,
            126..=0xFFFF => 126..=126,
            _ => 127..=127,
        };
        if length >> 63 != 0 || !shortest.contains(&short) {
            return Err(CloseReason::Protocol("malformed length"));
        }
        let length = usize::try_from(length).map_err(|_| CloseReason::TooBig)?;
        if !is_control {
            let room = self.message_bytes_max.saturating_sub(self.message.data.len());
            if length > room {
                return Err(CloseReason::TooBig);
            }
        }
        let header_bytes = header_bytes(bytes);
        let mask = bytes.get(header_bytes - 4..header_bytes).and_then(|mask| mask.try_into().ok());
        let Some(mask) = mask else { return Ok(None) };
        let header = Header { is_final, opcode, bytes: header_bytes, length, mask };
        Ok(Some((header, header_bytes + header.length)))
    }
}

impl Message {
    fn take<'a>(
        &'a mut self,
        header: Header,
        payload: &'a [u8],
    ) -> Result<Option<Incoming<'a>>, CloseReason> {
        let kind = match header.opcode {
            PING => return Ok(Some(Incoming::Ping(payload))),
            PONG => return Ok(Some(Incoming::Pong)),
            CLOSE => return close_code(payload).map(|code| Some(Incoming::Close(code))),
            CONTINUATION => self.kind,
            TEXT => Kind::Text,
            _ => Kind::Binary,
        };
        if header.is_final && self.kind == Kind::None {
            return match kind {
                Kind::Text => std::str::from_utf8(payload)
                    .map(|text| Some(Incoming::Text(text)))
                    .map_err(|_| CloseReason::InvalidUtf8),
                Kind::Binary | Kind::None => Ok(Some(Incoming::Binary(payload))),
            };
        }
        self.kind = kind;
        let whole = self.data.len() + payload.len();
        append(&mut self.data, payload, if header.is_final { whole } else { usize::MAX });
        if kind == Kind::Text {
            self.check_utf8(header.is_final)?;
        }
        if !header.is_final {
            return Ok(None);
        }
        self.kind = Kind::None;
        self.done = true;
        Ok(Some(match kind {
            Kind::Text => Incoming::Text(
                std::str::from_utf8(&self.data).map_err(|_| CloseReason::InvalidUtf8)?,
            ),
            Kind::Binary | Kind::None => Incoming::Binary(&self.data),
        }))
    }

    /// Refuses bad text at the fragment that spoils it, not at the end of the message.
    fn check_utf8(&mut self, is_final: bool) -> Result<(), CloseReason> {
        match std::str::from_utf8(&self.data[self.valid..]) {
            Ok(text) => self.valid += text.len(),
            // The start of a character whose end is in the next fragment.
            Err(error) if error.error_len().is_none() && !is_final => {
                self.valid += error.valid_up_to();
            }
            Err(_) => return Err(CloseReason::InvalidUtf8),
        }
        Ok(())
    }
}

/// Bytes of the header that `bytes` begins with, as far as its first two say.
fn header_bytes(bytes: &[u8]) -> usize {
    match bytes.get(1).map(|second| second & 0x7F) {
        None => 2,
        Some(126) => 8,
        Some(127) => 14,
        Some(_) => 6,
    }
}

/// Appends, growing by doubling but never beyond `wanted`.
fn append(to: &mut Vec<u8>, bytes: &[u8], wanted: usize) {
    let needed = to.len() + bytes.len();
    if needed > to.capacity() {
        let target = needed.max(to.len().saturating_mul(2)).min(wanted.max(needed));
        to.reserve_exact(target - to.len());
    }
    to.extend_from_slice(bytes);
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip([a, b, c, d, a, b, c]) {
        *byte ^= mask;
    }
}

/// RFC 6455, 7.4: the codes that may stand in a Close frame.
fn close_code(payload: &[u8]) -> Result<Option<u16>, CloseReason> {
    let Some((code, text)) = payload.split_first_chunk() else {
        return if payload.is_empty() {
            Ok(None)
        } else {
            Err(CloseReason::Protocol("malformed close"))
        };
    };
    let code = u16::from_be_bytes(*code);
    match code {
        1000..=1003 | 1007..=1014 | 3000..=4999 => {}
        _ => return Err(CloseReason::Protocol("close code not allowed")),
    }
    std::str::from_utf8(text).map_err(|_| CloseReason::InvalidUtf8)?;
    Ok(Some(code))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];

    /// A client's frame.
    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            length @ 0..=125 => frame.push(0x80 | u8::try_from(length).unwrap()),
            length @ 126..=0xFFFF => {
                frame.push(0xFE);
                frame.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
            length => {
                frame.push(0xFF);
                frame.extend(u64::try_from(length).unwrap().to_be_bytes());
            }
        }
        frame.extend(MASK);
        frame.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ MASK[at % 4]));
        frame
    }

    /// What `bytes` decode to when they come in pieces of `piece` bytes.
    fn decode(bytes: &[u8], piece: usize, max: usize) -> Vec<String> {
        let mut decoder = Decoder::new(max);
        let mut seen = Vec::new();
        for piece in bytes.chunks(piece.max(1)) {
            let mut piece = piece.to_vec();
            let mut at = 0;
            while at < piece.len() {
                match decoder.next(&mut piece[at..]) {
                    Ok((used, incoming)) => {
                        assert!(used > 0);
                        at += used;
                        if let Some(incoming) = incoming {
                            seen.push(format!("{incoming:?}"));
                        }
                    }
                    Err(reason) => {
                        seen.push(format!("{reason:?}"));
                        return seen;
                    }
                }
            }
            decoder.rest();
            assert!(decoder.held_bytes() <= bytes.len() * 2 + 28);
        }
        seen
    }

    /// The same in one piece, byte by byte, and in odd pieces.
    fn check(frames: &[Vec<u8>], expected: &[&str]) {
        let bytes = frames.concat();
        for piece in [bytes.len(), 1, 2, 3, 7, 1000] {
            assert_eq!(decode(&bytes, piece, 1_000_000), expected, "in pieces of {piece}");
        }
    }

    #[test]
    fn messages_of_every_length_class() {
        check(&[masked(0x81, b"")], &[r#"Text("")"#]);
        check(&[masked(0x81, "grüße".as_bytes())], &[r#"Text("grüße")"#]);
        check(&[masked(0x82, &[1, 2, 3])], &["Binary([1, 2, 3])"]);
        for length in [125, 126, 127, 65_535, 65_536, 65_537] {
            let text = "x".repeat(length);
            check(&[masked(0x81, text.as_bytes())], &[&format!("Text({text:?})")]);
        }
    }

    #[test]
    fn fragments_are_joined_around_control_frames() {
        check(
            &[
                masked(0x01, b"one "),
                masked(0x89, b"ping"),
                masked(0x00, b""),
                masked(0x00, b"two "),
                masked(0x8A, b"unasked"),
                masked(0x80, b"three"),
                masked(0x81, b"next"),
            ],
            &["Ping([112, 105, 110, 103])", "Pong", r#"Text("one two three")"#, r#"Text("next")"#],
        );
        check(&[masked(0x02, &[0xFF]), masked(0x80, &[0xFE])], &["Binary([255, 254])"]);
        check(&[masked(0x01, b""), masked(0x80, b"")], &[r#"Text("")"#]);
    }

    #[test]
    fn a_character_may_be_cut_but_not_spoiled() {
        let (first, second) = "κόσμε".as_bytes().split_at(3);
        check(&[masked(0x01, first), masked(0x80, second)], &[r#"Text("κόσμε")"#]);
        check(&[masked(0x81, &[0xED, 0xA0, 0x80])], &["InvalidUtf8"]); // a surrogate
        check(&[masked(0x81, &[0xF4, 0x90, 0x80, 0x80])], &["InvalidUtf8"]); // above U+10FFFF
        check(&[masked(0x81, &[0xC0, 0xAF])], &["InvalidUtf8"]); // overlong
        check(&[masked(0x81, first)], &["InvalidUtf8"]); // cut at the end of the message
        check(&[masked(0x01, first), masked(0x80, b"")], &["InvalidUtf8"]);
        // At the first fragment that cannot become text, not at the end.
        check(&[masked(0x01, first), masked(0x00, b"x"), masked(0x00, b"y")], &["InvalidUtf8"]);
    }

    #[test]
    fn every_breach_of_the_framing_is_named() {
        for bit in [0x40, 0x20, 0x10] {
            check(&[masked(0x81 | bit, b"x")], &[r#"Protocol("reserved bit set")"#]);
        }
        for opcode in [3, 4, 5, 6, 7, 0xB, 0xC, 0xD, 0xE, 0xF] {
            check(&[masked(0x80 | opcode, b"")], &[r#"Protocol("reserved opcode")"#]);
        }
        check(&[vec![0x81, 0x01, b'x']], &[r#"Protocol("frame without mask")"#]);
        check(&[masked(0x09, b"")], &[r#"Protocol("fragmented control frame")"#]);
        check(&[masked(0x89, &[0; 126])], &[r#"Protocol("control frame too long")"#]);
        check(&[masked(0x80, b"x")], &[r#"Protocol("continuation of nothing")"#]);
        check(
            &[masked(0x01, b"x"), masked(0x81, b"y")],
            &[r#"Protocol("message within a message")"#],
        );
        check(
            &[masked(0x81, b"x"), masked(0x80, b"y")],
            &[r#"Text("x")"#, r#"Protocol("continuation of nothing")"#],
        );
        // Lengths: 2^63, and those that a shorter form would hold.
        for length in [1 << 63, u64::MAX, 5, 0xFFFF] {
            let frame = [&[0x82, 0xFF][..], &length.to_be_bytes(), &MASK].concat();
            check(&[frame], &[r#"Protocol("malformed length")"#]);
        }
        check(&[vec![0x82, 0xFE, 0, 125, 0, 0, 0, 0]], &[r#"Protocol("malformed length")"#]);
    }

    #[test]
    fn a_close_frame_has_a_proper_code_and_text() {
        check(&[masked(0x88, b"")], &["Close(None)"]);
        check(&[masked(0x88, &[0])], &[r#"Protocol("malformed close")"#]);
        for code in [1000, 1001, 1002, 1003, 1007, 1011, 1014, 3000, 4999] {
            let payload = [&u16::to_be_bytes(code)[..], b"bye"].concat();
            check(&[masked(0x88, &payload)], &[&format!("Close(Some({code}))")]);
        }
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535] {
            check(
                &[masked(0x88, &u16::to_be_bytes(code))],
                &[r#"Protocol("close code not allowed")"#],
            );
        }
        check(&[masked(0x88, &[3, 0xE8, 0xFF])], &["InvalidUtf8"]);
    }

    #[test]
    fn a_message_above_the_limit_is_refused_before_it_comes() {
        assert_eq!(decode(&masked(0x82, &[0; 100])[..6], 100, 99), ["TooBig"]);
        assert_eq!(decode(&masked(0x81, &[b'x'; 10]), 100, 10).len(), 1);
        let huge = [&[0x82, 0xFF][..], &(u64::MAX >> 1).to_be_bytes()].concat();
        assert_eq!(decode(&huge, 100, usize::MAX / 4), ["TooBig"]);
        let fragments = [masked(0x02, &[0; 60]), masked(0x00, &[0; 40]), masked(0x00, &[0; 1])];
        assert_eq!(decode(&fragments.concat(), 100, 100), ["TooBig"]);
        // A control frame is not part of the message.
        let fragments = [masked(0x02, &[0; 100]), masked(0x89, b"ping"), masked(0x80, &[])];
        assert_eq!(decode(&fragments.concat(), 100, 100).len(), 2);
    }

    #[test]
    fn an_announced_length_takes_no_memory() {
        let mut decoder = Decoder::new(5_000_000);
        let mut head = masked(0x82, &vec![0; 4_000_000])[..20].to_vec();
        assert_eq!(decoder.next(&mut head), Ok((20, None)));
        assert!(decoder.held_bytes() < 100);
        for _ in 0..10 {
            decoder.next(&mut [0; 100]).unwrap();
        }
        assert!(decoder.held_bytes() < 2100);
    }

    #[test]
    fn a_complete_message_leaves_no_memory_behind() {
        let frames = [masked(0x01, &[b'x'; 5000]), masked(0x80, &[b'y'; 5000])].concat();
        let mut decoder = Decoder::new(1_000_000);
        for byte in frames {
            decoder.next(&mut [byte]).unwrap();
        }
        decoder.rest();
        assert_eq!(decoder.held_bytes(), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_alike_however_they_are_cut(
            bytes in prop::collection::vec(any::<u8>(), 1..300),
            piece in 1_usize..50,
        ) {
            prop_assert_eq!(decode(&bytes, piece, 200), decode(&bytes, bytes.len(), 200));
        }

        #[test]
        fn frames_with_one_byte_changed_decode_alike_however_they_are_cut(
            payloads in prop::collection::vec(
                (prop::sample::select(vec![0x01, 0x00, 0x80, 0x81, 0x82, 0x89, 0x8A]),
                 prop::collection::vec(any::<u8>(), 0..200)), 1..8),
            at in any::<prop::sample::Index>(),
            with in any::<u8>(),
            piece in 1_usize..50,
        ) {
            let mut bytes: Vec<u8> =
                payloads.iter().flat_map(|(first, payload)| masked(*first, payload)).collect();
            let at = at.index(bytes.len());
            bytes[at] = with;
            prop_assert_eq!(decode(&bytes, piece, 500), decode(&bytes, bytes.len(), 500));
        }
    }
}
