//! An event stream's bytes → its events.
//!
//! In:     bytes as they come, cut anywhere.
//! Out:    whole events; what the stream said about coming back; where it stands.
//! Never:  more of one event than a bound.
//! Source: html.spec.whatwg.org, section 9.2.6.

/// Bytes of one event. The largest row that is shown has far less.
const EVENT_BYTES_MAX: usize = 256 * 1024 * 1024;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Event {
    /// Its name.
    pub(super) name: String,
    /// Its room, where it is from one.
    pub(super) topic: Option<String>,
    /// Its own place, where it has one.
    pub(super) id: Option<String>,
    /// What it says.
    pub(super) data: String,
}

/// The event has more bytes than this program takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event has more than {EVENT_BYTES_MAX} bytes")]
pub(super) struct TooLarge;

/// What has come of a stream.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// The line that has not ended.
    line: Vec<u8>,
    /// The last byte was a carriage return: a line feed after it ends nothing more.
    returned: bool,
    event: Event,
    has_data: bool,
    bytes: usize,
    /// Milliseconds that the stream told us to wait before we come back.
    pub(super) retry_ms: Option<u64>,
    /// The last place that it named.
    pub(super) last_id: Option<String>,
}

impl Blocks {
    /// Takes what has come; gives the events that it completes.
    pub(super) fn take(&mut self, mut bytes: &[u8]) -> Result<Vec<Event>, TooLarge> {
        let mut events = Vec::new();
        while let Some(first) = bytes.first() {
            if std::mem::take(&mut self.returned) && *first == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let end = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let part = &bytes[..end.unwrap_or(bytes.len())];
            self.bytes = self.bytes.saturating_add(part.len());
            if self.bytes > EVENT_BYTES_MAX {
                return Err(TooLarge);
            }
            self.line.extend_from_slice(part);
            let Some(end) = end else { break };
            self.returned = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            let line = std::mem::take(&mut self.line);
            events.extend(self.end_line(&String::from_utf8_lossy(&line)));
        }
        Ok(events)
    }

    fn end_line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            self.bytes = 0;
            let event = std::mem::take(&mut self.event);
            if let Some(id) = &event.id {
                self.last_id = Some(id.clone());
            }
            return std::mem::take(&mut self.has_data).then_some(event);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event.name),
            "topic" => self.event.topic = Some(value.to_owned()),
            "id" if !value.contains('\0') => self.event.id = Some(value.to_owned()),
            "retry" => self.retry_ms = value.parse().ok().or(self.retry_ms),
            "data" => {
                if self.has_data {
                    self.event.data.push('\n');
                }
                self.has_data = true;
                self.event.data.push_str(value);
            }
            // A comment, or a field of another time.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAM: &str = ":\n\nretry: 700\n\nevent: ready\nid: 1\ndata: {}\n\n\
        event: e\ntopic: a: b\ndata: x\ndata:  y\r\ndata\rnew: field\n\nid: 2\n\nevent: cut\ndata: no";

    fn whole() -> Vec<Event> {
        let event = |name: &str, topic: Option<&str>, id: Option<&str>, data: &str| Event {
            name: name.into(),
            topic: topic.map(Into::into),
            id: id.map(Into::into),
            data: data.into(),
        };
        vec![event("ready", None, Some("1"), "{}"), event("e", Some("a: b"), None, "x\n y\n")]
    }

    #[test]
    fn events_are_whole_and_the_last_place_is_kept() {
        let mut blocks = Blocks::default();
        assert_eq!(blocks.take(STREAM.as_bytes()).unwrap(), whole());
        assert_eq!(blocks.retry_ms, Some(700));
        assert_eq!(blocks.last_id.as_deref(), Some("2"));
    }

    proptest! {
        #[test]
        fn a_stream_says_the_same_wherever_it_is_cut(cuts in prop::collection::vec(0..STREAM.len(), 0..9)) {
            let mut cuts = cuts;
            cuts.sort_unstable();
            cuts.push(STREAM.len());
            let (mut blocks, mut events, mut from) = (Blocks::default(), Vec::new(), 0);
            for cut in cuts {
                events.extend(blocks.take(&STREAM.as_bytes()[from..cut]).unwrap());
                from = cut;
            }
            prop_assert_eq!(events, whole());
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = Blocks::default().take(&bytes);
        }
    }
}
