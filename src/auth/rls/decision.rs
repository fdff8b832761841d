//! What a verdict shows: operation, old image and mode → what is sent.
//!
//! In:     one change's operation and images, one user's [`Verdict`] on them, the table's mode.
//! Out:    the operation to announce and how much of the rows goes with it.
//! Never:  IO; old values without a proven yes on the old row.

use super::{Verdict, Visibility};
use crate::change::{OldImage, Operation};
use crate::config::DeleteMode;

/// How much of a change one user gets. Column privileges cut the records further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shown {
    /// Not sent at all.
    Nothing,
    /// The record and the old record, as far as the log has them.
    All,
    /// An UPDATE's new record. The old record is reduced to the primary key, and left out when
    /// the update changed the key.
    NewOnly,
    /// An UPDATE's new record. The old record is reduced to the primary key, changed or not.
    NewAndOldKey,
    /// The primary key of the old row: a DELETE, or a row that moved out of sight.
    KeyOnly,
}

/// Decides what one user is sent of one change.
///
/// `row_security` is whether the table has Row Level Security on: where it has not, a DELETE
/// carries the whole old image.
#[must_use]
pub fn decide(
    operation: Operation,
    old_image: Option<OldImage>,
    verdict: Verdict,
    mode: DeleteMode,
    announce_move_out: bool,
    row_security: bool,
) -> (Operation, Shown) {
    use Visibility::{Failed, Forgotten, No, Unknown, Yes, YesNow};
    let shown = match operation {
        Operation::Insert => match verdict.new {
            Yes => Shown::All,
            YesNow | No | Forgotten | Unknown | Failed => Shown::Nothing,
        },
        Operation::Update => match (verdict.old, verdict.new) {
            (Yes, Yes) => Shown::All,
            (No | Forgotten | Failed, Yes) => Shown::NewOnly,
            (YesNow, Yes) => Shown::NewAndOldKey,
            (Unknown, Yes) => match (old_image, mode) {
                // The old key is announced like a deleted row's.
                (Some(_), DeleteMode::PkCompat) => Shown::NewAndOldKey,
                (Some(_), DeleteMode::Full | DeleteMode::Drop) | (None, _) => Shown::NewOnly,
            },
            (Yes | YesNow, No) if announce_move_out => return (Operation::Delete, Shown::KeyOnly),
            // A new row that is not decided says nothing, not even that the old one is gone.
            (
                Yes | YesNow | No | Forgotten | Unknown | Failed,
                YesNow | No | Forgotten | Unknown | Failed,
            ) => Shown::Nothing,
        },
        Operation::Delete => match (verdict.old, mode) {
            (Yes, _) if row_security => Shown::KeyOnly,
            (Yes, _) => Shown::All,
            (Unknown, DeleteMode::PkCompat) if old_image.is_some() => Shown::KeyOnly,
            (
                YesNow | No | Forgotten | Unknown | Failed,
                DeleteMode::PkCompat | DeleteMode::Full | DeleteMode::Drop,
            ) => Shown::Nothing,
        },
    };
    (operation, shown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Visibility::{Failed, No, Unknown, Yes, YesNow};

    const UNDECIDED: [Visibility; 3] = [No, Unknown, Failed];

    fn update(old: Visibility, new: Visibility) -> (Operation, Shown) {
        let verdict = Verdict { new, old };
        decide(Operation::Update, Some(OldImage::Full), verdict, DeleteMode::Full, true, true)
    }

    fn delete(old: Visibility, mode: DeleteMode, row_security: bool) -> Shown {
        let verdict = Verdict { new: No, old };
        decide(Operation::Delete, Some(OldImage::Key), verdict, mode, true, row_security).1
    }

    #[test]
    fn an_insert_is_shown_to_whoever_sees_the_new_row() {
        let insert = |new| {
            let verdict = Verdict { new, old: No };
            decide(Operation::Insert, None, verdict, DeleteMode::PkCompat, true, true)
        };
        assert_eq!(insert(Yes), (Operation::Insert, Shown::All));
        for new in UNDECIDED {
            assert_eq!(insert(new).1, Shown::Nothing, "{new:?}");
        }
    }

    #[test]
    fn seen_before_and_after_is_an_update_with_both_records() {
        assert_eq!(update(Yes, Yes), (Operation::Update, Shown::All));
    }

    #[test]
    fn a_row_that_comes_into_sight_never_brings_its_old_values() {
        assert_eq!(update(No, Yes), (Operation::Update, Shown::NewOnly));
        assert_eq!(update(Failed, Yes), (Operation::Update, Shown::NewOnly));
    }

    #[test]
    fn a_row_that_moves_out_of_sight_is_a_delete_of_its_key() {
        assert_eq!(update(Yes, No), (Operation::Delete, Shown::KeyOnly));
    }

    #[test]
    fn who_may_have_come_by_the_same_transaction_is_told_no_old_values() {
        assert_eq!(update(YesNow, Yes), (Operation::Update, Shown::NewAndOldKey));
        assert_eq!(update(YesNow, No), (Operation::Delete, Shown::KeyOnly));
        for new in [Unknown, Failed] {
            assert_eq!(update(YesNow, new).1, Shown::Nothing);
        }
    }

    #[test]
    fn moving_out_is_silent_where_that_is_set() {
        let verdict = Verdict { new: No, old: Yes };
        let old = Some(OldImage::Full);
        let (_, shown) = decide(Operation::Update, old, verdict, DeleteMode::Full, false, true);
        assert_eq!(shown, Shown::Nothing);
    }

    #[test]
    fn never_seen_is_never_told() {
        assert_eq!(update(No, No).1, Shown::Nothing);
    }

    #[test]
    fn an_undecided_new_row_shows_nothing() {
        for old in [Yes, No, Unknown, Failed] {
            for new in [Unknown, Failed] {
                assert_eq!(update(old, new).1, Shown::Nothing, "{old:?} {new:?}");
            }
            let expected = if old == Yes { Shown::KeyOnly } else { Shown::Nothing };
            assert_eq!(update(old, No).1, expected, "{old:?}");
        }
    }

    #[test]
    fn an_unknown_old_row_gives_at_most_its_key() {
        let decide = |old_image, mode| {
            let verdict = Verdict { new: Yes, old: Unknown };
            decide(Operation::Update, old_image, verdict, mode, true, true)
        };
        for mode in [DeleteMode::PkCompat, DeleteMode::Full, DeleteMode::Drop] {
            assert_eq!(decide(None, mode), (Operation::Update, Shown::NewOnly));
        }
        let key = Some(OldImage::Key);
        assert_eq!(decide(key, DeleteMode::PkCompat).1, Shown::NewAndOldKey);
        assert_eq!(decide(key, DeleteMode::Full).1, Shown::NewOnly);
        assert_eq!(decide(key, DeleteMode::Drop).1, Shown::NewOnly);
    }

    #[test]
    fn a_delete_goes_to_whoever_saw_the_old_row_as_a_key() {
        for mode in [DeleteMode::PkCompat, DeleteMode::Full, DeleteMode::Drop] {
            assert_eq!(delete(Yes, mode, true), Shown::KeyOnly);
            assert_eq!(delete(No, mode, true), Shown::Nothing);
            assert_eq!(delete(Failed, mode, true), Shown::Nothing);
        }
    }

    #[test]
    fn an_undecidable_delete_follows_the_mode() {
        assert_eq!(delete(Unknown, DeleteMode::PkCompat, true), Shown::KeyOnly);
        assert_eq!(delete(Unknown, DeleteMode::Full, true), Shown::Nothing);
        assert_eq!(delete(Unknown, DeleteMode::Drop, true), Shown::Nothing);
        let verdict = Verdict { new: No, old: Unknown };
        let (_, shown) = decide(Operation::Delete, None, verdict, DeleteMode::PkCompat, true, true);
        assert_eq!(shown, Shown::Nothing, "there is no key to show");
    }

    #[test]
    fn without_row_security_a_delete_carries_the_old_image() {
        assert_eq!(delete(Yes, DeleteMode::PkCompat, false), Shown::All);
    }
}
