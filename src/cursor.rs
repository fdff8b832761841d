//! Cursors: how far a client has come, in a form that it keeps and shows again.
//!
//! In:     places in the log, and the history of the log that they belong to; a client's text.
//! Out:    [`Place`] and [`Cursor`], whose text sorts as the log does.
//! Never:  authority: whoever shows a cursor gets what he may see now, wherever it came from.
//!
//! The text has a fixed width: 16 digits of the commit's LSN, 8 of the change's number in its
//! transaction, 8 of the epoch: `00000000016B3748-00000003-1f9ac02b`.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::lsn::Lsn;

/// Bytes of a cursor's text.
pub const CURSOR_BYTES: usize = 16 + 1 + 8 + 1 + 8;

/// A change's place in the log: its transaction's commit, and its number there. Orders all changes
/// as they are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Place {
    /// Where the commit record starts.
    pub commit: Lsn,
    /// Number among the row changes of the transaction, from 0.
    pub ordinal: u32,
}

impl Place {
    /// Before everything.
    pub const ZERO: Self = Self { commit: Lsn::ZERO, ordinal: 0 };

    /// After everything.
    pub const LAST: Self = Self::after(Lsn::new(u64::MAX));

    /// After every change of the transaction that commits there.
    pub const fn after(commit: Lsn) -> Self {
        Self { commit, ordinal: u32::MAX }
    }

    /// After every transaction that commits before there, and before every other.
    pub const fn before(commit: Lsn) -> Self {
        match commit.get().checked_sub(1) {
            Some(earlier) => Self::after(Lsn::new(earlier)),
            None => Self::ZERO,
        }
    }
}

/// Names one history of the log: positions of different ones do not compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Epoch(u32);

impl Epoch {
    /// Of a cluster's log on one timeline. A failover, a restore or another cluster is another.
    pub fn of(system_id: &str, timeline: u32) -> Self {
        let [a, b, c, d, ..] =
            <[u8; 32]>::from(Sha256::digest(format!("{system_id}/{timeline}").as_bytes()));
        Self(u32::from_be_bytes([a, b, c, d]))
    }
}

/// How far somebody has come: everything up to `place` is behind him.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// The last change that he has.
    pub place: Place,
    /// The log that it is a place in.
    pub epoch: Epoch,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place: Place { commit, ordinal }, epoch: Epoch(epoch) } = self;
        write!(f, "{:016X}-{ordinal:08x}-{epoch:08x}", commit.get())
    }
}

/// The text is no cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor: expected the text that came with an event")]
pub struct ParseCursorError;

impl FromStr for Cursor {
    type Err = ParseCursorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != CURSOR_BYTES {
            return Err(ParseCursorError);
        }
        let part = |digits: Option<&str>, width| {
            let digits = digits.filter(|digits| digits.len() == width).ok_or(ParseCursorError)?;
            if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(ParseCursorError);
            }
            u64::from_str_radix(digits, 16).map_err(|_| ParseCursorError)
        };
        let short = |number: u64| u32::try_from(number).map_err(|_| ParseCursorError);
        let mut parts = text.split('-');
        let commit = Lsn::new(part(parts.next(), 16)?);
        let ordinal = short(part(parts.next(), 8)?)?;
        let epoch = Epoch(short(part(parts.next(), 8)?)?);
        Ok(Self { place: Place { commit, ordinal }, epoch })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cursor(commit: u64, ordinal: u32, epoch: u32) -> Cursor {
        Cursor { place: Place { commit: Lsn::new(commit), ordinal }, epoch: Epoch(epoch) }
    }

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        let text = "00000000016B3748-00000003-1f9ac02b";
        assert_eq!(cursor(0x16B_3748, 3, 0x1f9a_c02b).to_string(), text);
        assert_eq!(text.parse(), Ok(cursor(0x16B_3748, 3, 0x1f9a_c02b)));
        assert_eq!(text.len(), CURSOR_BYTES);
    }

    #[test]
    fn what_was_never_written_is_no_cursor() {
        for text in [
            "",
            "0",
            "00000000016B3748-00000003-1f9ac02",
            "00000000016B3748-00000003-1f9ac02b0",
            "00000000016B3748-00000003+1f9ac02b",
            "00000000016B37480-0000003-1f9ac02b",
            "+0000000016B3748-00000003-1f9ac02b",
            "00000000016B3748-00000003-1f9ac0é",
            "G0000000016B3748-00000003-1f9ac02b",
            "0000000016B3748--00000003-1f9ac02b",
        ] {
            assert_eq!(text.parse::<Cursor>(), Err(ParseCursorError), "{text}");
        }
    }

    #[test]
    fn another_timeline_or_cluster_is_another_epoch() {
        let epoch = Epoch::of("7438920231231231231", 1);
        assert_eq!(epoch, Epoch::of("7438920231231231231", 1));
        assert_ne!(epoch, Epoch::of("7438920231231231231", 2));
        assert_ne!(epoch, Epoch::of("7438920231231231232", 1));
    }

    #[test]
    fn what_is_before_a_commit_is_after_every_earlier_one() {
        let commit = Lsn::new(100);
        let first = Place { commit, ordinal: 0 };
        assert!(Place::before(commit) < first && first < Place::after(commit));
        assert!(Place::after(Lsn::new(99)) <= Place::before(commit));
        assert_eq!(Place::before(Lsn::ZERO), Place::ZERO);
    }

    proptest! {
        #[test]
        fn texts_sort_as_places(a: (u64, u32), b: (u64, u32), epoch: u32) {
            let (one, other) = (cursor(a.0, a.1, epoch), cursor(b.0, b.1, epoch));
            prop_assert_eq!(one.place.cmp(&other.place), one.to_string().cmp(&other.to_string()));
            prop_assert_eq!(one.to_string().parse(), Ok(one));
        }

        #[test]
        fn no_text_is_a_panic(text: String) {
            if let Ok(cursor) = text.parse::<Cursor>() {
                prop_assert_eq!(cursor.to_string().to_lowercase(), text.to_lowercase());
            }
        }
    }
}
