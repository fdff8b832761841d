//! How it stands with the slot, in words that stay, and how much WAL it may keep.
//!
//! In:     what became of attempts to read it; how many bytes it keeps.
//! Out:    [`SlotState`] with its code; [`Pressure`]: what is to be done about the server's disk.
//! Never:  IO; a level that flickers while the number stands still.

/// Where the slot is in its life. The codes are for programs: they stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SlotState {
    /// Nothing was found out yet.
    #[default]
    Connecting,
    /// It is read.
    Attached,
    /// The server cannot be reached, or ended the connection.
    Unreachable,
    /// The server does not let the login in.
    LoginRefused,
    /// Somebody else reads it: we take over when he ends.
    Standby,
    /// It is being created, which waits for open transactions (of the whole cluster).
    WaitingForSnapshot,
    /// A publication that must exist does not.
    PublicationMissing,
    /// It cannot get past a place in the log.
    Wedged,
    /// It was dropped, or the server gave it up: a new one follows.
    Lost,
    /// It kept too much WAL and is being given up: a new one follows.
    GivingUp,
    /// A row does not fit into text: it is passed in binary.
    RowTooLarge,
}

impl SlotState {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Connecting,
        Self::Attached,
        Self::Unreachable,
        Self::LoginRefused,
        Self::Standby,
        Self::WaitingForSnapshot,
        Self::PublicationMissing,
        Self::Wedged,
        Self::Lost,
        Self::GivingUp,
        Self::RowTooLarge,
    ];

    /// Its name in `/readyz`, logs and metrics.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Attached => "attached",
            Self::Unreachable => "db_unavailable",
            Self::LoginRefused => "login_refused",
            Self::Standby => "standby",
            Self::WaitingForSnapshot => "waiting_for_snapshot",
            Self::PublicationMissing => "publication_missing",
            Self::Wedged => "slot_wedged",
            Self::Lost => "slot_lost",
            Self::GivingUp => "wal_budget",
            Self::RowTooLarge => "row_too_large",
        }
    }
}

/// What the WAL that the slot keeps calls for. Each level includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Pressure {
    /// Nothing.
    #[default]
    None,
    /// Say so: half of it is used.
    Warn,
    /// Let go of the replay window and of sockets that take nothing: 80 % are used.
    Shed,
    /// Give the slot up: all of it is used.
    GiveUp,
}

impl Pressure {
    /// Its name in logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Warn => "warn",
            Self::Shed => "shed",
            Self::GiveUp => "give_up",
        }
    }

    /// As a gauge shows it: 0 to 3.
    pub const fn level(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Warn => 1,
            Self::Shed => 2,
            Self::GiveUp => 3,
        }
    }

    /// Percent of the budget from which on it holds.
    const fn percent(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Warn => 50,
            Self::Shed => 80,
            Self::GiveUp => 100,
        }
    }
}

/// Transactions that the slot may hold back vacuum of the catalogs by before the log says so. The
/// server itself begins to worry at two hundred million (`autovacuum_freeze_max_age`).
pub const CATALOG_AGE_MUCH: i32 = 20_000_000;

/// Percent that the use must fall below a level before the level is left, so that a slot that
/// stands at one does not fill the log.
const HYSTERESIS_PERCENT: u64 = 5;

/// How much WAL the slot may keep.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// `replication.wal_budget_bytes`.
    bytes: u64,
    pressure: Pressure,
}

impl Budget {
    /// Nothing is used yet.
    pub fn new(bytes: u64) -> Self {
        Self { bytes, pressure: Pressure::None }
    }

    /// The budget itself.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What is to be done now that the slot keeps so much. `server_limit`: what the server lets it
    /// keep, where it has a limit. Where that is less, warning and shedding go by it; giving up
    /// never does: there the server does it itself.
    pub fn look(&mut self, retained: u64, server_limit: Option<u64>) -> Pressure {
        let limit = server_limit.map_or(self.bytes, |limit| limit.min(self.bytes));
        let percent = |of: u64| retained.saturating_mul(100) / of.max(1);
        let reached = |level: Pressure| {
            let of = if level == Pressure::GiveUp { self.bytes } else { limit };
            let slack = if level <= self.pressure { HYSTERESIS_PERCENT } else { 0 };
            percent(of) >= level.percent().saturating_sub(slack)
        };
        let levels = [Pressure::GiveUp, Pressure::Shed, Pressure::Warn];
        self.pressure = levels.into_iter().find(|level| reached(*level)).unwrap_or_default();
        self.pressure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_levels_are_those_that_the_settings_promise() {
        for (retained, pressure) in [
            (0, Pressure::None),
            (499, Pressure::None),
            (500, Pressure::Warn),
            (799, Pressure::Warn),
            (800, Pressure::Shed),
            (999, Pressure::Shed),
            (1000, Pressure::GiveUp),
            (u64::MAX, Pressure::GiveUp),
        ] {
            assert_eq!(Budget::new(1000).look(retained, None), pressure, "{retained}");
        }
    }

    #[test]
    fn a_level_is_left_only_well_below_it() {
        let mut budget = Budget::new(1000);
        assert_eq!(budget.look(800, None), Pressure::Shed);
        assert_eq!(budget.look(760, None), Pressure::Shed);
        assert_eq!(budget.look(740, None), Pressure::Warn);
        assert_eq!(budget.look(760, None), Pressure::Warn, "and entered only at it");
        assert_eq!(budget.look(440, None), Pressure::None);
    }

    #[test]
    fn a_server_that_allows_less_is_warned_of_and_gives_up_by_itself() {
        let mut budget = Budget::new(1000);
        assert_eq!(budget.look(50, Some(100)), Pressure::Warn);
        assert_eq!(budget.look(99, Some(100)), Pressure::Shed);
        assert_eq!(budget.look(500, Some(100)), Pressure::Shed);
        assert_eq!(budget.look(1000, Some(100)), Pressure::GiveUp);
        assert_eq!(Budget::new(1000).look(500, Some(u64::MAX)), Pressure::Warn);
    }

    #[test]
    fn codes_are_told_apart() {
        let codes: std::collections::BTreeSet<_> =
            SlotState::ALL.iter().map(|state| state.code()).collect();
        assert_eq!(codes.len(), SlotState::ALL.len());
    }
}
