//! Answers under construction, and the images they are about.
//!
//! In:     a [`Job`]; visibilities by question, change and side.
//! Out:    one answer a question; which row a change has on which side.
//! Never:  IO.

use super::super::statement::{Image, Source};
use super::super::{Answer, Verdict, Visibility};
use super::Job;
use crate::change::{Change, OldImage, Operation, Tuple};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    New,
    Old,
}

/// Answers under construction: verdicts by question and place.
pub(super) struct Sheet<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) answers: Vec<Answer>,
    pub(super) subjects: Vec<String>,
}

impl Sheet<'_> {
    fn verdict(&mut self, question: usize, change: u32) -> Option<&mut Verdict> {
        let place = self.job.questions.get(question)?.changes.binary_search(&change).ok()?;
        self.answers.get_mut(question)?.verdicts.get_mut(place)
    }

    pub(super) fn get(&self, question: usize, change: u32) -> Option<Verdict> {
        let place = self.job.questions.get(question)?.changes.binary_search(&change).ok()?;
        self.answers.get(question)?.verdicts.get(place).copied()
    }

    pub(super) fn set(&mut self, question: usize, change: u32, side: Side, visibility: Visibility) {
        if let Some(verdict) = self.verdict(question, change) {
            match side {
                Side::New => verdict.new = visibility,
                Side::Old => verdict.old = visibility,
            }
        }
    }

    pub(super) fn set_row_security(&mut self, question: usize, change: u32, on: bool) {
        let Some(asked) = self.job.questions.get(question) else { return };
        let Ok(place) = asked.changes.binary_search(&change) else { return };
        let answer = self.answers.get_mut(question);
        if let Some(slot) = answer.and_then(|answer| answer.row_security.get_mut(place)) {
            *slot = on;
        }
    }

    pub(super) fn fail(&mut self, question: usize, message: &str) {
        if let Some(answer) = self.answers.get_mut(question) {
            answer.error.get_or_insert_with(|| message.to_owned());
        }
    }
}

/// One image to ask about, and where its answer goes.
pub(super) struct Item {
    pub(super) change: u32,
    pub(super) side: Side,
    pub(super) image: Image,
}

pub(super) fn pairs(users: &[usize], changes: &[u32]) -> impl Iterator<Item = (usize, u32)> {
    users.iter().flat_map(|user| changes.iter().map(|change| (*user, *change)))
}

pub(super) fn at(batch: &[Change], change: u32) -> Option<&Change> {
    batch.get(usize::try_from(change).ok()?)
}

/// The row on one side of a change, if that side has one; it may be one of which the log says
/// nothing.
pub(super) fn image_of(change: &Change, side: Side) -> Option<(Option<Tuple>, Source)> {
    match (side, change.operation) {
        (Side::New, Operation::Insert | Operation::Update) => {
            let record = change.record.as_ref()?;
            let record = match &change.old_record {
                Some((OldImage::Full, old)) => record.filled_from(old),
                Some((OldImage::Key, _)) | None => record.clone(),
            };
            Some((Some(record), Source::New))
        }
        (Side::Old, Operation::Update | Operation::Delete) => Some(match &change.old_record {
            Some((image, old)) => (Some(old.clone()), Source::Old(*image)),
            None => (None, Source::Old(OldImage::Key)),
        }),
        (Side::New, Operation::Delete) | (Side::Old, Operation::Insert) => None,
    }
}
