//! Decided changes → finished frames with their recipients.
//!
//! In:     changes, the bindings that want them, who may see what.
//! Out:    [`Delivery`]s in the order of the changes; equal frames are made once.
//! Never:  IO, a question.

use std::sync::Arc;

use bytes::Bytes;

use crate::auth::rls::{Shown, Verdict, Visibility, decide};
use crate::change::{Change, ColumnSet, Operation};
use crate::config::DeleteMode;
use crate::event::row::{self, OldColumns, RowEvent};
use crate::hub::{AudienceId, AudienceView, ClaimsId, Delivery, Interest, Recipients, Side};

/// One binding that wants a change, its filter finished.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// What it asked for.
    pub interest: Arc<Interest>,
    /// Which of its columns it may read and selected.
    pub columns: Arc<ColumnSet>,
    /// What its filter accepted.
    pub side: Side,
    /// Whether the filter accepted an update's old row too.
    pub old_matches: bool,
}

/// Rules that hold for one table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// What a DELETE shows when its old row does not decide.
    pub delete_mode: DeleteMode,
    /// Whether leaving sight is announced.
    pub announce_move_out: bool,
    /// Bytes of a record above which long values are left out.
    pub record_bytes_max: usize,
    /// Whether the table has Row Level Security on.
    pub row_security: bool,
}

/// Collects the deliveries of one batch.
#[derive(Debug, Default)]
pub(super) struct Frames {
    deliveries: Vec<Delivery>,
    /// `data` objects of the change being written.
    rendered: Vec<(Operation, OldColumns, Arc<ColumnSet>, Bytes)>,
    change: Option<u32>,
    scratch: Vec<u8>,
}

/// Operation as shown, and how much of the old row goes with it.
type Variant = (Operation, OldColumns);

impl Frames {
    /// The deliveries, in order.
    pub(super) fn finish(self) -> Vec<Delivery> {
        self.deliveries
    }

    /// Makes the frames of one change for one audience. `unrestricted`: its role sees every row,
    /// and `verdicts` is not asked. Returns how many parties are shown nothing.
    #[expect(clippy::too_many_arguments, reason = "each is one fact of the one decision made here")]
    pub(super) fn add(
        &mut self,
        number: u32,
        change: &Change,
        audience: (AudienceId, &AudienceView),
        wanted: &[Wanted],
        unrestricted: bool,
        verdicts: impl Fn(ClaimsId) -> Verdict,
        rules: Rules,
    ) -> u64 {
        let (id, view) = audience;
        if self.change != Some(number) {
            self.change = Some(number);
            self.rendered.clear();
        }
        // Few distinct outcomes, many parties: group the parties by what they are shown.
        let mut shown: Vec<(Variant, Side, Vec<ClaimsId>)> = Vec::new();
        let left = wanted.iter().any(|binding| binding.side == Side::Left);
        let mut hidden = 0;
        let mut note = |verdict: Verdict, party: Option<ClaimsId>| {
            let variant = outcome(change, verdict, rules).map(|variant| (variant, Side::Shown));
            let gone = left && verdict.old == Visibility::Yes;
            let gone = gone.then_some(((Operation::Delete, OldColumns::Key), Side::Left));
            hidden += u64::from(variant.is_none() && gone.is_none());
            for (variant, side) in variant.into_iter().chain(gone) {
                match shown.iter_mut().find(|(v, s, _)| (*v, *s) == (variant, side)) {
                    Some((_, _, parties)) => parties.extend(party),
                    None => shown.push((variant, side, party.into_iter().collect())),
                }
            }
        };
        if unrestricted {
            note(Verdict { new: Visibility::Yes, old: Visibility::Yes }, None);
        } else {
            for &(claims, _) in &view.parties {
                note(verdicts(claims), Some(claims));
            }
        }
        for ((operation, old), side, parties) in shown {
            let to =
                if unrestricted { Recipients::All } else { Recipients::Parties(parties.into()) };
            let moved_out = operation == Operation::Delete && change.operation == Operation::Update;
            let mut groups: Vec<(Arc<ColumnSet>, Vec<u32>)> = Vec::new();
            for binding in wanted.iter().filter(|binding| binding.side == side) {
                let wants_deletes =
                    binding.interest.subscription.events.contains(Operation::Delete);
                if moved_out && !(binding.old_matches && wants_deletes) {
                    continue;
                }
                let id = binding.interest.subscription.id;
                match groups.iter_mut().find(|(columns, _)| *columns == binding.columns) {
                    Some((_, ids)) => ids.push(id),
                    None => groups.push((Arc::clone(&binding.columns), vec![id])),
                }
            }
            for (columns, ids) in groups {
                let max = rules.record_bytes_max;
                let data = self.data(change, operation, old, &columns, max);
                let frame = (view.format.encode)(&view.topic, &ids, operation, &data);
                self.push(id, to.clone(), frame);
            }
        }
        hidden
    }

    /// Tells an audience that the change cannot be shown, and why.
    pub(super) fn add_error(
        &mut self,
        change: &Change,
        audience: (AudienceId, &AudienceView),
        ids: &[u32],
        to: Recipients,
        text: &str,
    ) {
        self.scratch.clear();
        row::render_error(change, text, &mut self.scratch);
        let (id, view) = audience;
        let frame = (view.format.encode)(&view.topic, ids, change.operation, &self.scratch);
        self.push(id, to, frame);
    }

    fn data(
        &mut self,
        change: &Change,
        operation: Operation,
        old: OldColumns,
        columns: &Arc<ColumnSet>,
        record_bytes_max: usize,
    ) -> Bytes {
        let known = self
            .rendered
            .iter()
            .find(|(o, shown, set, _)| (*o, *shown) == (operation, old) && *set == *columns);
        if let Some((_, _, _, data)) = known {
            return data.clone();
        }
        self.scratch.clear();
        let event = RowEvent { change, operation, columns, old, record_bytes_max };
        row::render(&event, &mut self.scratch);
        let data = Bytes::copy_from_slice(&self.scratch);
        self.rendered.push((operation, old, Arc::clone(columns), data.clone()));
        data
    }

    fn push(&mut self, audience: AudienceId, to: Recipients, frame: Bytes) {
        if let Some(last) = self.deliveries.last_mut()
            && last.audience == audience
            && matches!((&last.to, &to), (Recipients::All, Recipients::All))
        {
            last.frames.push(frame);
            return;
        }
        self.deliveries.push(Delivery { audience, to, frames: vec![frame] });
    }
}

/// What a party with this verdict is shown; none: nothing.
fn outcome(change: &Change, verdict: Verdict, rules: Rules) -> Option<Variant> {
    let image = change.old_record.as_ref().map(|(image, _)| *image);
    let (operation, shown) = decide(
        change.operation,
        image,
        verdict,
        rules.delete_mode,
        rules.announce_move_out,
        rules.row_security,
    );
    let old = match shown {
        Shown::Nothing => return None,
        Shown::All => OldColumns::All,
        Shown::NewOnly if !row::keeps_key(change) => OldColumns::None,
        Shown::NewOnly | Shown::NewAndOldKey | Shown::KeyOnly => OldColumns::Key,
    };
    Some((operation, old))
}
