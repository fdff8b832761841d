//! The bytes of a replication stream: what is whole is found however the rest is cut, and no
//! position is told that the server did not name.

use walcast::lsn::Lsn;
use walcast::wal::{ServerError, Survey};

/// Where the slot stands.
const START: Lsn = Lsn::new(100);

/// The whole input is what has come so far.
pub fn check(bytes: &[u8]) {
    let survey = match Survey::of(bytes, START) {
        Ok(survey) => survey,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let reference = read(bytes);
    assert_eq!(survey.batch.bytes_len(), reference.whole);
    assert_eq!(survey.batch.bytes()[..], bytes[..reference.whole]);
    assert_eq!(survey.carried, reference.carried);
    assert_eq!(survey.received, reference.named.iter().copied().fold(START, Lsn::max));
    assert!(survey.movable <= survey.received);
    if reference.in_transaction {
        assert!(survey.movable <= reference.committed.max(reference.told), "moved into a row");
    }
    assert_eq!(survey.control.as_ref().map(|(tag, _)| *tag), reference.control);
    if let Some((_, Some(error))) = &survey.control {
        told(error, bytes.len());
    }
    // Those that can be decoded come in order, up to the first that cannot.
    let messages: Vec<_> = survey.batch.messages().collect();
    let good = messages.iter().filter(|message| message.is_ok()).count();
    assert!(good == survey.carried || (good < survey.carried && messages.len() == good + 1));

    // Cut anywhere, nothing else is found.
    let cut = reference.whole / 2;
    let part = Survey::of(&bytes[..cut], START).expect("the beginning of what can be read");
    assert!(part.batch.bytes_len() <= cut && part.control.is_none());
    assert!(part.received <= survey.received && part.carried <= survey.carried);
    let rest = Survey::of(&bytes[part.batch.bytes_len()..], part.received);
    let rest = rest.expect("the end of what can be read");
    assert_eq!(part.batch.bytes_len() + rest.batch.bytes_len(), reference.whole);
    assert_eq!(rest.received, survey.received);
}

/// What a server says is repeated, and not more.
fn told(error: &ServerError, bytes: usize) {
    let text = error.to_string();
    assert!(text.contains(&error.message) && text.contains(&error.code));
    assert!(text.len() <= 3 * bytes + 64, "{text}");
}

struct Reference {
    whole: usize,
    carried: usize,
    /// Every position received.
    named: Vec<Lsn>,
    /// End of the last commit.
    committed: Lsn,
    /// The last position that the server told outside of a transaction.
    told: Lsn,
    in_transaction: bool,
    control: Option<u8>,
}

/// The same, read with no more than the manual. Only for what `Survey` could read.
fn read(bytes: &[u8]) -> Reference {
    let number = |bytes: &[u8], at: usize| {
        Lsn::new(u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes")))
    };
    let mut found = Reference {
        whole: 0,
        carried: 0,
        named: Vec::new(),
        committed: START,
        told: START,
        in_transaction: false,
        control: None,
    };
    while let Some(&[tag, a, b, c, d]) = bytes[found.whole..].first_chunk::<5>() {
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).expect("32 bits");
        let Some(message) = bytes.get(found.whole + 5..=found.whole + length) else { break };
        if tag != b'd' {
            found.control = Some(tag);
            break;
        }
        found.named.push(number(message, 1));
        if message[0] == b'w' {
            found.carried += 1;
            match message[25] {
                b'B' => found.in_transaction = true,
                b'C' => {
                    let end = number(message, 25 + 10);
                    found.named.push(end);
                    found.committed = found.committed.max(end);
                    found.in_transaction = false;
                }
                _ => {}
            }
        } else if !found.in_transaction {
            found.told = found.told.max(number(message, 1));
        }
        found.whole += length + 1;
    }
    found
}
