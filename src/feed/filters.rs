//! Filters that only Postgres can finish, asked on the powerless login.
//!
//! In:     predicates that said "ask", with the row images they looked at.
//! Out:    whether each accepts its row.
//! Never:  a yes without Postgres' own.

use std::time::Duration;

use tokio_postgres::Client;

use crate::change::{Change, OldImage, Tuple};
use crate::db::{self, Login};
use crate::hub::{Image, Predicate, Side};
use crate::subscribe::{self, Answer, Operators};

/// Timeouts of one statement that the server may be silent beyond what its questions may take.
const SILENCE: u32 = 3;

/// Why no filter was decided: hold the batch and ask again.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// No connection.
    #[error("no connection for filters")]
    Connect(#[from] db::Error),
    /// The server refused or broke off.
    #[error("a filter could not be asked")]
    Ask(#[from] subscribe::Error),
    /// The session could not be prepared.
    #[error("a session for filters could not be prepared")]
    Prepare(#[from] tokio_postgres::Error),
    /// The server is silent, though it should have stopped by itself.
    #[error("no answer about filters")]
    Silent(#[from] tokio::time::error::Elapsed),
}

/// A predicate, if it is still there, and the row image it looked at.
pub(super) type Asked<'a> = (Option<Predicate>, Option<(&'a Tuple, Image)>);

/// Asks Postgres about filters.
#[derive(Debug)]
pub struct Filters {
    login: Login,
    timeout: Duration,
    operators: Operators,
    client: tokio::sync::Mutex<Option<Client>>,
}

/// The row image a filter looked at, and what it carries.
pub(super) fn image(change: &Change, side: Side) -> Option<(&Tuple, Image)> {
    let old = change.old_record.as_ref().map(|(image, tuple)| match image {
        OldImage::Full => (tuple, Image::Whole),
        OldImage::Key => (tuple, Image::Key),
    });
    match side {
        Side::Shown => change.record.as_ref().map(|record| (record, Image::Whole)).or(old),
        Side::Left => old,
    }
}

impl Filters {
    /// `timeout` bounds one round of questions; a pattern can be written to run for hours.
    pub fn new(login: Login, timeout: Duration) -> Self {
        let (operators, client) = (Operators::default(), tokio::sync::Mutex::default());
        Self { login, timeout, operators, client }
    }

    /// One answer for each predicate. A predicate that is gone accepts nothing; one of which a
    /// comparison failed or took too long has failed.
    pub(super) async fn ask(&self, asked: &[Asked<'_>]) -> Result<Vec<Answer>, Error> {
        let mut questions = Vec::new();
        let mut counts = Vec::with_capacity(asked.len());
        for (predicate, image) in asked {
            let (Some(predicate), Some((tuple, image))) = (predicate, image) else {
                counts.push(None);
                continue;
            };
            let before = questions.len();
            questions.extend(predicate.questions(tuple, *image));
            counts.push(Some(questions.len() - before));
        }
        let mut slot = self.client.lock().await;
        let idle = slot.take().filter(|client| !client.is_closed());
        let client = if let Some(client) = idle {
            client
        } else {
            let client = self.login.connect("walcast filters").await?;
            let timeout = self.timeout.as_millis();
            client.batch_execute(&format!("set statement_timeout = {timeout}")).await?;
            client
        };
        // All in one statement, or each in one of its own: the server ends each in time.
        let each = u32::try_from(questions.len()).unwrap_or(u32::MAX).saturating_add(SILENCE);
        let limit = self.timeout.saturating_mul(each);
        let answers = subscribe::ask(&client, &self.operators, &questions);
        let answers = tokio::time::timeout(limit, answers).await??;
        *slot = Some(client);
        let mut answers = answers.into_iter();
        let mut all = |count: Option<usize>| {
            let Some(count) = count else { return Answer::No };
            let mut result = Answer::Yes;
            // Each must be taken, whatever the first ones say.
            for answer in answers.by_ref().take(count) {
                result = match (result, answer) {
                    (Answer::No, _) | (_, Answer::No) => Answer::No,
                    (Answer::Failed, _) | (_, Answer::Failed) => Answer::Failed,
                    (Answer::Yes, Answer::Yes) => Answer::Yes,
                };
            }
            result
        };
        Ok(counts.into_iter().map(&mut all).collect())
    }
}
