//! Decided changes → finished frames with their recipients.
//!
//! In:     changes, the bindings that want them, who may see what; what is said to rooms between.
//! Out:    [`Outgoing`] in the order of the changes; equal frames are made once.
//! Never:  IO, a question.

use std::sync::Arc;

use bytes::Bytes;

use super::domain::Told;
use super::messages::Message;
use crate::auth::rls::{Shown, Verdict, Visibility, decide};
use crate::change::{Change, ColumnSet, Operation};
use crate::config::DeleteMode;
use crate::cursor::{Cursor, Epoch, Place};
use crate::event::broadcast::Broadcast;
use crate::event::row::{self, OldColumns, RowEvent};
use crate::hub::{
    self, AudienceId, AudienceView, ClaimsId, Delivery, Interest, Outgoing, Recipients, Side,
};

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
    /// Of the log that the changes are from.
    epoch: Epoch,
    /// They are shown again, to those that come back.
    replayed: bool,
    outgoing: Vec<Outgoing>,
    /// `data` objects of the change being written.
    rendered: Vec<(Operation, OldColumns, Arc<ColumnSet>, Bytes)>,
    change: Option<u32>,
    scratch: Vec<u8>,
}

/// Operation as shown, and how much of the old row goes with it.
type Variant = (Operation, OldColumns);

impl Frames {
    /// Nothing yet, of changes in the log of this epoch; whether it is shown again, to those that
    /// come back.
    pub(super) fn new(epoch: Epoch, replayed: bool) -> Self {
        Self { epoch, replayed, ..Self::default() }
    }

    /// What goes out, in order.
    pub(super) fn finish(self) -> Vec<Outgoing> {
        self.outgoing
    }

    /// Says something to a room, after everything that was added before.
    pub(super) fn say(&mut self, message: &Message) {
        let cursor = Cursor { place: message.place(), epoch: self.epoch };
        let mut what = message.what.clone();
        if let Broadcast::User(user) = &mut what {
            user.meta.replayed = self.replayed;
        }
        self.outgoing.push(Outgoing::Said(message.room.clone(), what, cursor));
    }

    /// Tells rooms of an event, after everything that was added before.
    pub(super) fn tell(&mut self, told: &Told) {
        let Told { rooms, what, except, place, reached } = told;
        let cursor = Cursor { place: *reached, epoch: self.epoch };
        let (rooms, what, except) = (rooms.clone(), what.clone(), except.clone());
        self.outgoing.push(Outgoing::Told(hub::Told {
            rooms,
            what,
            except,
            place: *place,
            cursor,
        }));
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
            let gone = left && matches!(verdict.old, Visibility::Yes | Visibility::YesNow);
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
                let (place, topic) = (change.place(), &*view.topic);
                let cursor = Cursor { place, epoch: self.epoch };
                let shown = hub::Shown { topic, ids: &ids, operation, data: &data, cursor };
                self.push(id, to.clone(), place, (view.format.encode)(&shown));
            }
        }
        hidden
    }

    /// Tells whoever of an audience sees the new row that it cannot be shown, and why. To others
    /// even that would tell that there is one.
    pub(super) fn add_error(
        &mut self,
        change: &Change,
        audience: (AudienceId, &AudienceView),
        ids: &[u32],
        unrestricted: bool,
        verdicts: impl Fn(ClaimsId) -> Verdict,
        text: &str,
    ) {
        let (id, view) = audience;
        let to = if unrestricted {
            Recipients::All
        } else {
            let parties = view.parties.iter().map(|(claims, _)| *claims);
            Recipients::Parties(
                parties.filter(|claims| verdicts(*claims).new == Visibility::Yes).collect(),
            )
        };
        if ids.is_empty() || matches!(&to, Recipients::Parties(parties) if parties.is_empty()) {
            return;
        }
        self.scratch.clear();
        row::render_error(change, self.epoch, text, &mut self.scratch);
        let (place, data) = (change.place(), &self.scratch);
        let cursor = Cursor { place, epoch: self.epoch };
        let (topic, operation) = (&*view.topic, change.operation);
        let shown = hub::Shown { topic, ids, operation, data, cursor };
        let frame = (view.format.encode)(&shown);
        self.push(id, to, place, frame);
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
        let event =
            RowEvent { change, operation, columns, old, record_bytes_max, epoch: self.epoch };
        row::render(&event, &mut self.scratch);
        let data = Bytes::copy_from_slice(&self.scratch);
        self.rendered.push((operation, old, Arc::clone(columns), data.clone()));
        data
    }

    fn push(&mut self, audience: AudienceId, to: Recipients, place: Place, frame: Bytes) {
        if let Some(Outgoing::Rows(last)) = self.outgoing.last_mut()
            && last.audience == audience
            && matches!((&last.to, &to), (Recipients::All, Recipients::All))
        {
            last.push(place, frame);
            return;
        }
        self.outgoing.push(Outgoing::Rows(Delivery::new(audience, to, place, frame)));
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

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use serde_json::{Value as Json, json};

    use super::*;
    use crate::change::value::Type;
    use crate::change::{Column, Commit, OldImage, Relation, ReplicaIdentity, Tuple, Value};
    use crate::hub::{Format, Subscription};
    use crate::lsn::Lsn;

    const A: ClaimsId = ClaimsId::of(1);
    const B: ClaimsId = ClaimsId::of(2);
    const C: ClaimsId = ClaimsId::of(3);

    const YES: Verdict = Verdict { new: Visibility::Yes, old: Visibility::Yes };
    const NEW: Verdict = Verdict { new: Visibility::Yes, old: Visibility::No };
    const OLD: Verdict = Verdict { new: Visibility::No, old: Visibility::Yes };
    const NO: Verdict = Verdict { new: Visibility::No, old: Visibility::No };
    const FAILED: Verdict = Verdict { new: Visibility::Failed, old: Visibility::Failed };

    const RULES: Rules = Rules {
        delete_mode: DeleteMode::PkCompat,
        announce_move_out: true,
        record_bytes_max: 1_000_000,
        row_security: true,
    };

    /// `(id primary key, note)` with `replica identity full`.
    fn change(operation: Operation, old: Option<&str>, new: Option<&str>) -> Change {
        let column = |name: &str, in_primary_key| Column {
            name: name.into(),
            attnum: None,
            type_oid: 25,
            type_name: "text".into(),
            kind: Type::Text,
            in_identity: true,
            in_primary_key,
        };
        let relation = Relation {
            oid: 1,
            schema: "public".into(),
            table: "t".into(),
            replica_identity: ReplicaIdentity::Full,
            columns: [column("id", true), column("note", false)].into(),
        };
        let tuple = |note: &str| Tuple::copied([Value::Text(b"7"), Value::Text(note.as_bytes())]);
        Change {
            operation,
            relation: Arc::new(relation),
            record: new.map(tuple),
            old_record: old.map(|note| (OldImage::Full, tuple(note))),
            commit: Commit { xid: 1, lsn: Lsn::new(1), time: SystemTime::UNIX_EPOCH },
            ordinal: 0,
            origin: None,
        }
    }

    fn view(parties: &[ClaimsId]) -> AudienceView {
        let encode = |shown: &hub::Shown<'_>| {
            let data: Json = serde_json::from_slice(shown.data).unwrap();
            Bytes::from(json!({"ids": shown.ids, "data": data}).to_string())
        };
        AudienceView {
            format: Format {
                id: 1,
                namespace: "",
                encode,
                broadcast: |_, _, _, _| None,
                push: |_, _, _| Bytes::new(),
                word: |_, _, _| Bytes::new(),
            },
            topic: "realtime:t".into(),
            role: "authenticated".into(),
            parties: parties.iter().map(|id| (*id, Arc::from("{}"))).collect(),
        }
    }

    fn wanted(event: &str, columns: &[usize], side: Side, old_matches: bool) -> Wanted {
        let subscription = json!({"event": event, "schema": "public", "table": "t"});
        let subscription = Subscription::parse(&subscription).unwrap();
        let interest =
            Arc::new(Interest { subscription, conditions: Box::default(), partitioned: false });
        let columns = Arc::new(columns.iter().copied().collect());
        Wanted { interest, columns, side, old_matches }
    }

    fn all() -> Wanted {
        wanted("*", &[0, 1], Side::Shown, true)
    }

    /// Who gets which operation, record and old record, in order.
    fn check(
        change: &Change,
        verdicts: &[(ClaimsId, Verdict)],
        wanted: &[Wanted],
        expected: &[(&[ClaimsId], &str, Json, Json)],
    ) {
        let mut frames = Frames::default();
        let parties: Vec<ClaimsId> = verdicts.iter().map(|(id, _)| *id).collect();
        let verdict = |claims| verdicts.iter().find(|(id, _)| *id == claims).unwrap().1;
        let view = view(&parties);
        frames.add(0, change, (AudienceId::of(9), &view), wanted, false, verdict, RULES);
        let found = rows(frames).into_iter().flat_map(|delivery| {
            assert_eq!(delivery.audience, AudienceId::of(9));
            let frames = delivery.frames().to_vec().into_iter();
            let Recipients::Parties(parties) = delivery.to else { panic!("not for all") };
            frames.map(move |frame| (parties.clone(), frame))
        });
        let found: Vec<_> = found
            .map(|(parties, frame)| {
                let frame: Json = serde_json::from_slice(&frame).unwrap();
                let data = &frame["data"];
                let operation = data["type"].as_str().unwrap().to_owned();
                let record = |name| data.get(name).cloned().unwrap_or(Json::Null);
                (parties.to_vec(), operation, record("record"), record("old_record"))
            })
            .collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|(parties, operation, record, old)| {
                (parties.to_vec(), (*operation).to_owned(), record.clone(), old.clone())
            })
            .collect();
        assert_eq!(found, expected);
    }

    fn rows(frames: Frames) -> Vec<Delivery> {
        let rows = frames.finish().into_iter().map(|outgoing| match outgoing {
            Outgoing::Rows(delivery) => delivery,
            said @ (Outgoing::Said(..) | Outgoing::Told(_)) => panic!("{said:?}"),
        });
        rows.collect()
    }

    fn row(note: &str) -> Json {
        json!({"id": "7", "note": note})
    }

    fn key() -> Json {
        json!({"id": "7"})
    }

    #[test]
    fn an_insert_goes_to_those_who_see_it_and_to_nobody_else() {
        let insert = change(Operation::Insert, None, Some("new"));
        let verdicts = [(A, NEW), (B, NO), (C, FAILED)];
        check(&insert, &verdicts, &[all()], &[(&[A], "INSERT", row("new"), Json::Null)]);
        check(&insert, &[(A, NO), (B, FAILED)], &[all()], &[]);
    }

    #[test]
    fn an_update_shows_each_party_what_it_saw_before_and_sees_now() {
        let update = change(Operation::Update, Some("old"), Some("new"));
        let verdicts = [(A, YES), (B, NEW), (C, OLD)];
        check(
            &update,
            &verdicts,
            &[all()],
            &[
                (&[A], "UPDATE", row("new"), row("old")),
                (&[B], "UPDATE", row("new"), key()),
                (&[C], "DELETE", Json::Null, key()),
            ],
        );
    }

    #[test]
    fn a_delete_is_a_key_for_those_who_saw_the_row() {
        let delete = change(Operation::Delete, Some("old"), None);
        let verdicts = [(A, OLD), (B, NO), (C, FAILED)];
        check(&delete, &verdicts, &[all()], &[(&[A], "DELETE", Json::Null, key())]);
    }

    #[test]
    fn leaving_sight_is_told_only_to_who_listens_for_deletions_and_wanted_the_old_row() {
        let update = change(Operation::Update, Some("old"), Some("new"));
        for binding in [
            wanted("UPDATE", &[0, 1], Side::Shown, false),
            wanted("*", &[0, 1], Side::Shown, false),
        ] {
            check(&update, &[(A, OLD)], &[binding], &[]);
        }
    }

    #[test]
    fn a_row_that_leaves_a_filter_is_a_deleted_key_for_who_saw_it() {
        let update = change(Operation::Update, Some("old"), Some("new"));
        let left = wanted("*", &[0, 1], Side::Left, true);
        let verdicts = [(A, YES), (B, NEW), (C, OLD)];
        check(&update, &verdicts, &[left], &[(&[A, C], "DELETE", Json::Null, key())]);
    }

    #[test]
    fn columns_that_may_not_be_read_are_in_no_record() {
        let update = change(Operation::Update, Some("old"), Some("new"));
        let cut = wanted("*", &[0], Side::Shown, true);
        check(
            &update,
            &[(A, YES)],
            &[cut, all()],
            &[(&[A], "UPDATE", key(), key()), (&[A], "UPDATE", row("new"), row("old"))],
        );
    }

    #[test]
    fn what_everybody_sees_goes_to_everybody_in_one_piece() {
        let mut frames = Frames::default();
        let insert = change(Operation::Insert, None, Some("new"));
        let view = view(&[A, B]);
        let never = |_| panic!("nobody is asked");
        for number in 0..2 {
            let audience = (AudienceId::of(9), &view);
            frames.add(number, &insert, audience, &[all()], true, never, RULES);
        }
        let deliveries = rows(frames);
        assert_eq!(deliveries.len(), 1);
        assert!(matches!(deliveries[0].to, Recipients::All));
        assert_eq!(deliveries[0].frames().len(), 2);
    }

    #[test]
    fn an_error_is_told_only_to_who_sees_the_row() {
        let insert = change(Operation::Insert, None, Some("new"));
        let view = view(&[A, B, C]);
        let tell = |verdicts: &dyn Fn(ClaimsId) -> Verdict| {
            let mut frames = Frames::default();
            let audience = (AudienceId::of(9), &view);
            frames.add_error(&insert, audience, &[1], false, verdicts, "Error 401: Unauthorized");
            rows(frames)
        };
        let told = tell(&|claims| if claims == B { NEW } else { FAILED });
        let [delivery] = &told[..] else { panic!("{told:?}") };
        assert!(matches!(&delivery.to, Recipients::Parties(parties) if **parties == [B]));
        assert!(tell(&|_| NO).is_empty());
    }

    #[test]
    fn without_row_security_a_deleted_row_is_shown_whole() {
        let delete = change(Operation::Delete, Some("old"), None);
        let mut plain = RULES;
        plain.row_security = false;
        let mut frames = Frames::default();
        let view = view(&[A]);
        let audience = (AudienceId::of(9), &view);
        frames.add(0, &delete, audience, &[all()], true, |_| YES, plain);
        let delivery = rows(frames).remove(0);
        let frame: Json = serde_json::from_slice(&delivery.frames()[0]).unwrap();
        assert_eq!(frame["data"]["old_record"], row("old"));
    }
}
