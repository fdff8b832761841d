//! Positions in the write-ahead log.
//!
//! In:     the server's 64-bit numbers and its `X/Y` text.
//! Out:    [`Lsn`], ordered as the log is.
//! Never:  IO; arithmetic that could wrap.
//! Source: postgresql.org/docs/17/datatype-pg-lsn.html

use std::fmt;
use std::str::FromStr;

/// A byte position in the write-ahead log; `Lsn::ZERO` is "none yet".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(u64);

impl Lsn {
    /// Before every record: what the server calls an invalid LSN.
    pub const ZERO: Self = Self(0);

    /// From the 64-bit number of the wire format.
    pub const fn new(position: u64) -> Self {
        Self(position)
    }

    /// The 64-bit number of the wire format.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Bytes of log from `earlier` to here; 0 when `earlier` is later.
    pub const fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text was not two hexadecimal halves around a slash.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not an LSN: expected two hexadecimal numbers around a slash, such as 0/16B3748")]
pub struct ParseLsnError;

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let half = |digits: &str| {
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(ParseLsnError);
            }
            u32::from_str_radix(digits, 16).map_err(|_| ParseLsnError)
        };
        let (high, low) = text.split_once('/').ok_or(ParseLsnError)?;
        Ok(Self((u64::from(half(high)?) << 32) | u64::from(half(low)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_number_agree() {
        let lsn: Lsn = "16/B374D848".parse().unwrap();
        assert_eq!(lsn.get(), 0x16_B374_D848);
        assert_eq!(lsn.to_string(), "16/B374D848");
    }

    #[test]
    fn what_the_server_never_writes_is_refused() {
        for text in ["", "/", "1", "1/", "/1", "G/1", "1/123456789", "+1/1", "1/1/1"] {
            assert_eq!(text.parse::<Lsn>(), Err(ParseLsnError), "{text}");
        }
    }
}
