//! One function called for some users: how much at once, and what came of it.
//!
//! In:     a prepared statement, images or rows, users.
//! Out:    [`Seen`] for each user; one whose policies take too long has failed.
//! Never:  one user's slowness or error as another's answer.

use std::time::{Duration, Instant};

use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};

use super::super::{Error, Visibility};
use super::sheet::{Item, Sheet};
use super::{Checker, Lessons, unanswered};
use crate::change::Value;

/// Images in one call: bounds a call's memory and how much one failure takes down.
pub(super) const IMAGES_PER_CALL: usize = 500;
/// Bytes of images in one call, unless one image alone is larger.
pub(super) const IMAGE_BYTES_PER_CALL: usize = 1024 * 1024;
/// Users in one call: bounds how many wait behind one whose policies take long.
const USERS_PER_CALL: usize = 200;

/// What a function is called with beside the users.
pub(super) enum Input<'a> {
    Images(&'a [&'a str]),
    /// Rows one after the other, column by column.
    Rows {
        known: &'a [bool],
        values: &'a [Option<&'a str>],
        rows: usize,
    },
}

/// What one user's call gave.
pub(super) struct Seen {
    /// Relations that were read for it, when that was asked and nothing failed.
    pub(super) tables: Option<Vec<u32>>,
    /// For each image; a null is an image that could not be used. None when all have failed.
    images: Option<Vec<Option<bool>>>,
    /// Images on which the policies raised an error, counted from 1.
    failed: Vec<i32>,
    /// The first error.
    pub(super) message: Option<String>,
}

impl Seen {
    fn failed(message: &str) -> Self {
        Self { tables: None, images: None, failed: Vec::new(), message: Some(message.to_owned()) }
    }

    pub(super) fn at(&self, place: usize) -> Visibility {
        let Some(images) = &self.images else { return Visibility::Failed };
        if self.failed.iter().any(|failed| usize::try_from(*failed) == Ok(place + 1)) {
            return Visibility::Failed;
        }
        match images.get(place) {
            Some(Some(true)) => Visibility::Yes,
            Some(Some(false)) => Visibility::No,
            Some(None) | None => Visibility::Unknown,
        }
    }
}

impl Checker {
    /// Calls a function for users in turn; a user whose policies take longer than the timeout has
    /// failed, and the others go on behind it.
    pub(super) async fn call(
        &self,
        sheet: &Sheet<'_>,
        lessons: &mut Lessons,
        statement: &Statement,
        input: &Input<'_>,
        users: &[usize],
    ) -> Result<Vec<(usize, Seen)>, Error> {
        const SLOW: &str = "the policies of this table take too long";
        let job = sheet.job;
        let mut seen = Vec::with_capacity(users.len());
        let mut rest = users;
        while let Some(&first) = rest.first() {
            if lessons.hung.contains(&first) || Instant::now() >= job.deadline {
                seen.push((first, Seen::failed(SLOW)));
                rest = rest.get(1..).unwrap_or_default();
                continue;
            }
            let most = if lessons.alone { 1 } else { USERS_PER_CALL };
            let asked = rest.iter().take(most).take_while(|user| !lessons.hung.contains(*user));
            let asked: Vec<usize> = asked.copied().collect();
            let claims: Vec<&str> = asked
                .iter()
                .filter_map(|user| job.questions.get(*user).map(|question| &*question.claims))
                .collect();
            let subjects: Vec<&str> =
                asked.iter().filter_map(|user| sheet.subjects.get(*user).map(|s| &**s)).collect();
            let role = &*self.role;
            let users: [&(dyn ToSql + Sync); 3] = [&role, &claims, &subjects];
            let mut parameters = users.to_vec();
            match input {
                Input::Images(images) => parameters.push(images),
                Input::Rows { known, values, .. } => {
                    parameters.push(known);
                    parameters.push(values);
                }
            }
            // The server stops by itself at its timeout; twice that means it did not.
            let limit = job.timeout * 2 + Duration::from_secs(1);
            let query = self.client.query(statement, &parameters);
            let rows = match tokio::time::timeout(limit, query).await {
                Ok(rows) => rows.map_err(unanswered)?,
                Err(elapsed) => {
                    if asked.len() == 1 {
                        lessons.hung.insert(first);
                    }
                    lessons.alone = true;
                    let _ = self.login.cancel(&self.cancel).await;
                    return Err(unanswered(elapsed));
                }
            };
            let mut answered = 0;
            let images = match input {
                Input::Images(images) => images.len(),
                Input::Rows { rows, .. } => *rows,
            };
            for (user, row) in asked.iter().zip(&rows) {
                let Some(one) = read(row, images)? else {
                    // The timeout struck here. Only whoever had all of it to itself has failed.
                    break;
                };
                seen.push((*user, one));
                answered += 1;
            }
            if answered == 0 {
                seen.push((first, Seen::failed(SLOW)));
                answered = 1;
            }
            rest = rest.get(answered..).unwrap_or_default();
        }
        Ok(seen)
    }
}

/// One user's row; `None` when the statement's timeout struck.
fn read(row: &Row, images: usize) -> Result<Option<Seen>, Error> {
    let code: Option<&str> = row.try_get(2).map_err(unanswered)?;
    if code == Some(SqlState::QUERY_CANCELED.code()) {
        return Ok(None);
    }
    let seen: Option<Vec<Option<bool>>> = row.try_get(0).map_err(unanswered)?;
    Ok(Some(Seen {
        tables: row.try_get(4).map_err(unanswered)?,
        // Any other number of answers would belong to other images.
        images: seen.filter(|seen| seen.len() == images),
        failed: row.try_get(1).map_err(unanswered)?,
        message: row.try_get(3).map_err(unanswered)?,
    }))
}

pub(super) fn value_len(value: Value<'_>) -> usize {
    if let Value::Text(text) = value { text.len() } else { 0 }
}

/// How many of these go into one call.
pub(super) fn chunk_len(items: &[&Item]) -> usize {
    let mut bytes = 0_usize;
    let fits = items.iter().take(IMAGES_PER_CALL).take_while(|item| {
        bytes = bytes.saturating_add(item.image.literal.len());
        bytes <= IMAGE_BYTES_PER_CALL
    });
    fits.count().max(1)
}
