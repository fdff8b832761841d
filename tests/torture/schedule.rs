//! What goes wrong, and when: a function of the seed and the number of the round alone.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use walcast::kill::{POINTS, Point};

use crate::proxy::{End, Fault};
use crate::service::Arming;

/// Which link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    /// Between the service and Postgres.
    Database,
    /// Between clients and the service.
    Clients,
}

/// One thing that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// SIGKILL of the service.
    Kill,
    /// The same; the next process ends itself at a kill point.
    Arm(Arming),
    /// SIGTERM.
    Terminate,
    /// SIGSTOP, and SIGCONT after so long.
    Freeze(Duration),
    /// Postgres stops at once, and starts.
    PostgresImmediate,
    /// SIGKILL for all of Postgres, and a start.
    PostgresKill,
    /// SIGKILL for one backend: all sessions end.
    BackendKill,
    /// `pg_terminate_backend` of our walsender.
    EndWalsender,
    /// Postgres stops in good order, and starts.
    PostgresRestart,
    Checkpoint,
    /// The slot is dropped: while nobody reads it, or else under its reader. The one thing after
    /// which a gap has to be told.
    DropSlot {
        under_its_reader: bool,
    },
    /// A fault of one direction, or of both, for so long.
    Link {
        link: Link,
        up: Fault,
        down: Fault,
        lasts: Duration,
    },
    /// RST for every connection of a link.
    ResetAll(Link),
}

impl Act {
    /// Whether Postgres goes through crash recovery.
    pub(crate) const fn is_crash(self) -> bool {
        matches!(self, Self::PostgresImmediate | Self::PostgresKill | Self::BackendKill)
    }
}

/// One round in so many loses the slot.
const DROPS: u64 = 8;

/// The acts of a round, each with the pause before it. `acts` of them.
pub(crate) fn round(seed: u64, number: u64, acts: usize) -> Vec<(Duration, Act)> {
    let mixed =
        seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number.wrapping_mul(0xd1b5_4a32_d192_ed03);
    let mut random = StdRng::seed_from_u64(mixed);
    let mut acts: Vec<_> = (0..acts).map(|_| (pause(&mut random), act(&mut random))).collect();
    // Each round has a crash of the server, whatever else.
    if !acts.iter().any(|(_, act)| act.is_crash()) {
        let place = random.random_range(0..acts.len());
        acts[place].1 = crash(&mut random);
    }
    if number % DROPS == DROPS / 2 {
        let place = random.random_range(0..acts.len());
        acts[place].1 = Act::DropSlot { under_its_reader: random.random() };
    }
    acts
}

fn pause(random: &mut StdRng) -> Duration {
    milliseconds(random, 200, 2500)
}

fn milliseconds(random: &mut StdRng, from: u64, to: u64) -> Duration {
    Duration::from_millis(random.random_range(from..to))
}

fn crash(random: &mut StdRng) -> Act {
    [Act::PostgresImmediate, Act::PostgresKill, Act::BackendKill][random.random_range(0..3)]
}

fn act(random: &mut StdRng) -> Act {
    match random.random_range(0..100) {
        0..25 => Act::Kill,
        25..55 => Act::Arm(arming(random)),
        55..60 => Act::Terminate,
        60..64 => Act::Freeze(freeze(random)),
        64..70 => crash(random),
        70..73 => Act::EndWalsender,
        73..75 => Act::PostgresRestart,
        75..77 => Act::Checkpoint,
        77..86 => link(random, Link::Database),
        86..95 => link(random, Link::Clients),
        95..97 => Act::ResetAll(Link::Database),
        _ => Act::ResetAll(Link::Clients),
    }
}

/// One in eight is longer than the server waits for a sign of life.
fn freeze(random: &mut StdRng) -> Duration {
    if random.random_ratio(1, 8) {
        milliseconds(random, 11_000, 13_000)
    } else {
        milliseconds(random, 100, 3000)
    }
}

fn arming(random: &mut StdRng) -> Arming {
    let point = POINTS[random.random_range(0..POINTS.len())];
    let action = ["abort", "abort", "panic", "exit"][random.random_range(0..4)];
    // Few of these in a short life.
    let rare = [Point::OnDrain, Point::BeforeAcknowledge, Point::AfterAcknowledge];
    let pass = if rare.contains(&point) { 1 } else { random.random_range(1..15) };
    Arming { point, action, pass }
}

fn link(random: &mut StdRng, link: Link) -> Act {
    let fault = match random.random_range(0..6) {
        0 => Fault::Delay {
            least: milliseconds(random, 1, 50),
            jitter: milliseconds(random, 1, 100),
        },
        1 => Fault::Stall,
        2 => Fault::Split { bytes_max: random.random_range(1..64) },
        _ => Fault::Cut {
            at: random.random_range(0..200_000),
            end: [End::HalfClose, End::Close, End::Reset][random.random_range(0..3)],
        },
    };
    let (up, down) = match random.random_range(0..3) {
        0 => (fault, Fault::Pass),
        1 => (Fault::Pass, fault),
        _ => (fault, fault),
    };
    Act::Link { link, up, down, lasts: milliseconds(random, 300, 4000) }
}
