//! How far this process has come in the log, across connections.
//!
//! In:     what each connection found of the server and the slot.
//! Out:    where to resume, what is owed to nobody, whether changes are missing.
//! Never:  IO.

use crate::cursor::Place;
use crate::lsn::Lsn;
use crate::wal::{Format, Identity};

/// How far this process has come, across connections.
#[derive(Debug, Default)]
pub(super) struct Course {
    /// Commits before this were made before this process listened.
    pub(super) live_from: Option<Lsn>,
    /// End of the last transaction that is completely published.
    pub(super) committed: Lsn,
    /// How far we moved the slot: beyond `committed` where there was nothing to publish.
    pub(super) flushed: Lsn,
    /// Last published change of an incomplete one.
    pub(super) within: Option<Place>,
    /// Text, but for a stretch that the server cannot print.
    pub(super) format: Format,
    /// The publication of messages did not exist at this place: go on without it.
    pub(super) without_messages: bool,
    /// Why the slot was given up that these positions are of; the next one is a gap.
    pub(super) given_up: Option<&'static str>,
    /// System identifier and timeline of the log that these positions are of.
    pub(super) history: Option<(String, u32)>,
}

impl Course {
    /// Takes note of what a new connection found. Some: why changes are missing between what was
    /// published and what comes now.
    pub(super) fn attach(&mut self, identity: &Identity) -> Option<&'static str> {
        let history = (identity.system_id.clone(), identity.timeline);
        let before = self.history.replace(history.clone());
        let given_up = self.given_up.take();
        let Some(before) = before else {
            self.live_from = Some(identity.head);
            return given_up;
        };
        let reason = if before != history {
            "another_history"
        } else if identity.created_slot {
            // Nobody here gave it up.
            given_up.unwrap_or("slot_dropped")
        } else if identity.start > self.committed.max(self.flushed) {
            // Somebody else read on meanwhile, or moved it.
            "slot_moved"
        } else if identity.head < self.committed {
            // What was read is always on the server's disk: this is a copy from before. What it
            // writes now would pass for what is known already.
            "log_went_back"
        } else {
            return None;
        };
        // Positions of before say nothing about this log.
        self.live_from = Some(identity.start);
        (self.committed, self.flushed, self.within) = (identity.start, identity.start, None);
        Some(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITHIN: Place = Place { commit: Lsn::new(160), ordinal: 3 };

    fn identity(timeline: u32, start: u64, created_slot: bool) -> Identity {
        Identity {
            system_id: "7".into(),
            timeline,
            server_version: 150_018,
            head: Lsn::new(1000),
            start: Lsn::new(start),
            created_slot,
            messages: true,
            catalog_xmin: None,
        }
    }

    #[test]
    fn the_first_attachment_owes_nobody_the_past() {
        let mut course = Course::default();
        assert_eq!(course.attach(&identity(1, 10, true)), None);
        assert_eq!((course.live_from, course.committed), (Some(Lsn::new(1000)), Lsn::ZERO));
    }

    #[test]
    fn a_reconnect_goes_on_where_it_was() {
        let mut course = Course::default();
        course.attach(&identity(1, 10, false));
        (course.committed, course.within) = (Lsn::new(150), Some(WITHIN));
        assert_eq!(course.attach(&identity(1, 150, false)), None);
        assert_eq!(course.live_from, Some(Lsn::new(1000)));
        assert_eq!((course.committed, course.within), (Lsn::new(150), Some(WITHIN)));
    }

    #[test]
    fn a_slot_that_was_given_up_is_a_gap_with_its_reason_even_for_a_new_process() {
        let mut course = Course { given_up: Some("wal_removed"), ..Course::default() };
        assert_eq!(course.attach(&identity(1, 10, true)), Some("wal_removed"));
        course.given_up = Some("wal_budget");
        assert_eq!(course.attach(&identity(1, 170, true)), Some("wal_budget"));
        assert_eq!(course.attach(&identity(1, 180, true)), Some("slot_dropped"), "said once");
    }

    #[test]
    fn a_slot_that_followed_an_idle_log_is_no_gap() {
        let mut course = Course::default();
        course.attach(&identity(1, 10, false));
        (course.committed, course.flushed) = (Lsn::new(150), Lsn::new(165));
        assert_eq!(course.attach(&identity(1, 165, false)), None);
    }

    #[test]
    fn f38_a_log_that_ends_before_what_was_read_is_another_one() {
        let mut course = Course::default();
        course.attach(&identity(1, 10, false));
        course.committed = Lsn::new(1000);
        assert_eq!(course.attach(&identity(1, 90, false)), None, "the slot alone went back");
        course.committed = Lsn::new(1001);
        assert_eq!(course.attach(&identity(1, 90, false)), Some("log_went_back"));
        assert_eq!((course.live_from, course.committed), (Some(Lsn::new(90)), Lsn::new(90)));
        assert_eq!(course.attach(&identity(1, 90, false)), None, "said once");
    }

    #[test]
    fn a_new_slot_or_another_history_is_a_gap_and_starts_afresh() {
        for (found, reason) in [
            (identity(1, 170, false), "slot_moved"),
            (identity(1, 170, true), "slot_dropped"),
            (identity(2, 170, false), "another_history"),
        ] {
            let mut course = Course::default();
            course.attach(&identity(1, 10, false));
            (course.committed, course.within) = (Lsn::new(150), Some(WITHIN));
            assert_eq!(course.attach(&found), Some(reason));
            assert_eq!(course.live_from, Some(Lsn::new(170)));
            assert_eq!((course.committed, course.within), (Lsn::new(170), None));
        }
    }
}
