//! Kill points: named places at which a test has the process end, in the worst moments.
//!
//! In:     `WALCAST_KILL_POINT`, read once, in builds with the feature `kill-points` alone.
//! Out:    the end of the process (or of the task, when it panics) at the chosen pass.
//! Never:  anything at all in other builds: [`point`] is empty there, and a release cannot have it.

#[cfg(all(feature = "kill-points", not(debug_assertions)))]
compile_error!("kill-points is for debug builds: a release must not be able to end itself");

/// Arms one point: `name:action:pass`, such as `after_decode:abort:3`. Actions are `abort`
/// (SIGABRT, nothing is cleaned up), `panic` and `exit` (status [`EXIT_CODE`]).
pub const VARIABLE: &str = "WALCAST_KILL_POINT";

/// How `exit` ends the process; nothing else here ends with it.
pub const EXIT_CODE: i32 = 86;

/// A place at which the process can be made to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// A batch of the log was decoded, nobody could be shown it again.
    BeforeHistory,
    /// It is in the history, nobody was shown it.
    AfterDecode,
    /// Changes are to be decided by Row Level Security.
    BeforeCheck,
    /// They are decided, nobody has heard of it.
    AfterCheck,
    /// Frames are made, no connection has any.
    BeforeFanOut,
    /// One connection was written to, others were not.
    MidFanOut,
    /// Everybody was written to, the position is not noted.
    AfterFanOut,
    /// The slot is to be moved.
    BeforeAcknowledge,
    /// The server was told to move the slot.
    AfterAcknowledge,
    /// Channels that came back are to be shown a batch that they missed.
    OnResume,
    /// The service was asked to stop, and sockets are to be closed.
    OnDrain,
}

/// All of them.
pub const POINTS: [Point; 11] = [
    Point::BeforeHistory,
    Point::AfterDecode,
    Point::BeforeCheck,
    Point::AfterCheck,
    Point::BeforeFanOut,
    Point::MidFanOut,
    Point::AfterFanOut,
    Point::BeforeAcknowledge,
    Point::AfterAcknowledge,
    Point::OnResume,
    Point::OnDrain,
];

impl Point {
    /// The name in [`VARIABLE`].
    pub const fn name(self) -> &'static str {
        match self {
            Self::BeforeHistory => "before_history",
            Self::AfterDecode => "after_decode",
            Self::BeforeCheck => "before_check",
            Self::AfterCheck => "after_check",
            Self::BeforeFanOut => "before_fan_out",
            Self::MidFanOut => "mid_fan_out",
            Self::AfterFanOut => "after_fan_out",
            Self::BeforeAcknowledge => "before_acknowledge",
            Self::AfterAcknowledge => "after_acknowledge",
            Self::OnResume => "on_resume",
            Self::OnDrain => "on_drain",
        }
    }
}

#[cfg(feature = "kill-points")]
pub use armed::point;

/// Nothing.
#[cfg(not(feature = "kill-points"))]
#[inline]
pub const fn point(_: Point) {}

#[cfg(feature = "kill-points")]
mod armed {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::{EXIT_CODE, POINTS, Point, VARIABLE};

    /// What was armed. A mistake there ends the process at the first point: a test that arms
    /// nothing would prove nothing.
    static ARMED: LazyLock<Option<Armed>> = LazyLock::new(|| {
        let text = std::env::var(VARIABLE).ok()?;
        Some(Armed::parse(&text).unwrap_or_else(|| panic!("{VARIABLE} is not understood: {text}")))
    });

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Action {
        Abort,
        Panic,
        Exit,
    }

    #[derive(Debug)]
    struct Armed {
        point: Point,
        action: Action,
        /// Passes up to and with the one that ends it.
        left: AtomicU32,
    }

    impl Armed {
        fn parse(text: &str) -> Option<Self> {
            let mut parts = text.split(':');
            let name = parts.next()?;
            let point = POINTS.into_iter().find(|point| point.name() == name)?;
            let action = match parts.next()? {
                "abort" => Action::Abort,
                "panic" => Action::Panic,
                "exit" => Action::Exit,
                _ => return None,
            };
            let left = parts.next()?.parse().ok().filter(|left| *left > 0)?;
            parts.next().is_none().then_some(Self { point, action, left: AtomicU32::new(left) })
        }

        /// What to do at this point, if this is the pass.
        fn pass(&self, point: Point) -> Option<Action> {
            let due = point == self.point
                && self
                    .left
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                    == Ok(1);
            due.then_some(self.action)
        }
    }

    /// Ends the process here, if this is the point and the pass that were armed.
    pub fn point(point: Point) {
        match ARMED.as_ref().and_then(|armed| armed.pass(point)) {
            None => {}
            Some(Action::Abort) => std::process::abort(),
            Some(Action::Panic) => panic!("kill point {}", point.name()),
            Some(Action::Exit) => std::process::exit(EXIT_CODE),
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_point_is_due_at_its_pass_and_never_again() {
            let armed = Armed::parse("mid_fan_out:exit:2").unwrap();
            assert_eq!(armed.pass(Point::AfterFanOut), None);
            assert_eq!(armed.pass(Point::MidFanOut), None);
            assert_eq!(armed.pass(Point::MidFanOut), Some(Action::Exit));
            assert_eq!(armed.pass(Point::MidFanOut), None);
        }

        #[test]
        fn every_point_has_a_name_of_its_own_and_others_arm_nothing() {
            for point in POINTS {
                let armed = Armed::parse(&format!("{}:abort:1", point.name())).unwrap();
                assert_eq!((armed.point, armed.action), (point, Action::Abort));
            }
            for text in ["", "mid_fan_out", "mid_fan_out:abort", "mid_fan_out:stop:1", "x:abort:1"]
            {
                assert!(Armed::parse(text).is_none(), "{text}");
            }
            for text in ["mid_fan_out:abort:0", "mid_fan_out:abort:-1", "mid_fan_out:abort:1:2"] {
                assert!(Armed::parse(text).is_none(), "{text}");
            }
        }
    }
}
