//! A stream's bytes → where its messages end, and what they say of our position.
//!
//! In:     bytes of a started stream, cut anywhere; the [`Standby`] that keeps our position.
//! Out:    the messages in front that are whole, or what follows them.
//! Never:  IO; a message longer than Postgres can build; a byte of one that is not there yet.
//! Source: postgresql.org/docs/17/protocol-replication.html, protocol-message-formats.html

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::connection::{ServerError, frame_header};
use super::pgoutput::{DecodeError, Input};
use super::standby::{Answer, Standby};
use super::{Batch, Error};
use crate::lsn::Lsn;

/// Postgres builds no message larger than 1 GiB; the headers come on top.
const FRAME_BYTES_MAX: usize = (1 << 30) + 64;

/// What stands at the start of a stream's bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<'a> {
    /// A whole `CopyData`: its body, and its bytes with the header.
    CopyData(&'a [u8], usize),
    /// The start of a message; so many bytes are missing, as far as that is known (else 0).
    Part(usize),
    /// A whole message beside the stream.
    Control,
}

/// Looks at the first message.
pub(super) fn first(bytes: &[u8]) -> Result<Found<'_>, Error> {
    let Some((tag, length)) = frame_header(bytes)? else { return Ok(Found::Part(0)) };
    if length > FRAME_BYTES_MAX {
        return Err(Error::Malformed(DecodeError::Length));
    }
    let Some(body) = bytes.get(5..=length) else {
        return Ok(Found::Part(length + 1 - bytes.len()));
    };
    Ok(if tag == b'd' { Found::CopyData(body, length + 1) } else { Found::Control })
}

/// Notes what one `CopyData` message says of our position. True when it carries a message.
pub(super) fn copy_data(
    standby: &mut Standby,
    message: &[u8],
    answer: &mut Answer,
) -> Result<bool, DecodeError> {
    let mut input = Input(message);
    match input.u8()? {
        b'w' => {
            standby.receive(input.lsn()?);
            input.take(16)?; // the same position again, and the server's clock
            match input.u8()? {
                b'B' => standby.begin(),
                b'C' => {
                    input.take(9)?; // flags and the record's start
                    standby.commit(input.lsn()?);
                }
                _row_or_other => {}
            }
            Ok(true)
        }
        b'k' => {
            let head = input.lsn()?;
            input.take(8)?; // the server's clock
            let reply_requested = input.u8()? != 0;
            *answer = standby.keepalive(head, reply_requested, Instant::now()).max(*answer);
            Ok(false)
        }
        tag => Err(DecodeError::Tag { what: "stream", tag }),
    }
}

/// What bytes of a stream hold, read as the stream's own reader reads them.
#[derive(Debug, Clone)]
pub struct Survey {
    /// The whole messages in front.
    pub batch: Batch,
    /// How many of those carry a logical replication message.
    pub carried: usize,
    /// Furthest position received.
    pub received: Lsn,
    /// How far the slot may move when all that can be published was.
    pub movable: Lsn,
    /// What the server says beside the stream, when that follows and is whole: its tag, and its
    /// text if it is an error or a notice.
    pub control: Option<(u8, Option<ServerError>)>,
}

impl Survey {
    /// Of a stream whose slot is confirmed up to `start`.
    ///
    /// # Errors
    /// The first thing that is no message of a stream.
    pub fn of(bytes: &[u8], start: Lsn) -> Result<Self, Error> {
        let now = Instant::now();
        let mut standby = Standby::new(start, start, Duration::ZERO, 0, now);
        let (mut answer, mut scanned, mut carried) = (Answer::None, 0, 0);
        let control = loop {
            match first(&bytes[scanned..])? {
                Found::CopyData(message, length) => {
                    carried += usize::from(copy_data(&mut standby, message, &mut answer)?);
                    scanned += length;
                }
                Found::Control => {
                    let tag = bytes[scanned];
                    let said = match (tag, frame_header(&bytes[scanned..])?) {
                        (b'E' | b'N', Some((_, length))) => {
                            let body = bytes.get(scanned + 5..=scanned + length);
                            Some(ServerError::parse(body.ok_or(DecodeError::Short)?)?)
                        }
                        (_, _) => None,
                    };
                    break Some((tag, said));
                }
                Found::Part(_) => break None,
            }
        };
        standby.publish(Lsn::new(u64::MAX), now);
        Ok(Self {
            batch: Batch { bytes: Bytes::copy_from_slice(&bytes[..scanned]) },
            carried,
            received: standby.received(),
            movable: standby.advance(now).unwrap_or(standby.flushed()),
            control,
        })
    }
}
