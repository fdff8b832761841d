//! From a request whose sender is known to its answer.
//!
//! In:     method, path, query, headers, body; claims.
//! Out:    status, headers and body as PostgREST has them.
//! Never:  a 404 without a body, which supabase-js takes for success; a part of a request that is
//!         neither honoured nor ignored by the book.
//! Source: spec `rest.md` D1 to D4, docs.postgrest.org/en/v12/references/api

mod author;
mod context;
mod describe;
mod plan;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body as Stream;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio::time::timeout;

use super::Problem;
use super::openapi::Documents;
use super::request::{Media, Preference, Preferences, Return, Target, Verb, profile};
use super::route::Found;
use super::run::{Done, Failure, Job, Runner};
use super::schema::Schemas;
use crate::auth::Claims;
use crate::config;
use crate::feed::{Status, Write, Writes};
use crate::lsn::Lsn;
use author::Author;
use plan::Plan;

/// Where a write ended in the log.
const FEED_LSN: HeaderName = HeaderName::from_static("feed-lsn");

/// Of what was read: everything up to this place of the feed is in it.
const FEED_CURSOR: HeaderName = HeaderName::from_static("feed-cursor");
/// The write was made before, under the same key.
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// One request.
#[derive(Debug)]
pub struct Request<'a> {
    /// Who sends it.
    pub claims: &'a Claims,
    /// Method.
    pub method: &'a Method,
    /// What its path names.
    pub target: &'a Target,
    /// What is done with that.
    pub verb: Verb,
    /// The query string as it came.
    pub query: &'a str,
    /// All headers.
    pub headers: &'a HeaderMap,
    /// The whole body; empty where none is looked at.
    pub body: Bytes,
}

/// Answers requests.
pub struct Rest {
    runner: Arc<Runner>,
    schemas: Arc<Schemas>,
    published: Published,
    documents: Documents,
    settings: config::Rest,
}

/// What is known of writes that come back through the log.
pub struct Published {
    /// Those that somebody waits for.
    pub writes: Writes,
    /// How far the feed is.
    pub status: Arc<Status>,
}

impl Rest {
    /// Runs statements with `runner`, made of the names in `schemas`.
    pub fn new(
        runner: Arc<Runner>,
        schemas: Arc<Schemas>,
        published: Published,
        settings: &config::Rest,
    ) -> Self {
        let (documents, settings) = (Documents::default(), settings.clone());
        Self { runner, schemas, published, documents, settings }
    }

    /// The answer.
    ///
    /// # Errors
    /// What the client is told instead; nothing was written.
    pub async fn answer(&self, request: &Request<'_>) -> Result<Response, Problem> {
        let preferences = Preferences::parse(request.headers)?;
        let media = Media::choose(request.headers)?;
        let schema = profile(request.method, request.headers, &self.settings.schemas)?;
        if request.verb == Verb::Describe {
            return self.describe(request, &preferences, media, schema).await;
        }
        if media == Media::OpenApi {
            let message = "None of these media types are available: application/openapi+json";
            return Err(Problem::new(StatusCode::NOT_ACCEPTABLE, "PGRST107", message));
        }
        let body = plan::body(request)?;
        let context = context::context(request);
        let mut asked = plan::Asked {
            request,
            preferences: &preferences,
            media,
            schema,
            body: &body,
            needs_json: false,
        };
        let mut author = if request.verb.is_read_only() {
            Author::default()
        } else {
            author::author(&asked, &self.settings)?
        };
        // Before anything is read: what is published by now is in the snapshot.
        let cursor = self.published.status.cursor();
        let mut picture = self.schemas.current().await?;
        let first = picture.number;
        loop {
            let outcome = match plan::plan(&asked, &picture, &self.settings) {
                Ok(plan) => {
                    let waits = preferences.wait_for_feed && !plan.is_read_only;
                    let write = waits.then(|| self.published.writes.expect());
                    author.origin.id = write.as_ref().map(|write| write.id().into());
                    // Also of nobody who says nothing: the first word is the writer's, so that
                    // what runs within his transaction cannot speak for him.
                    let origin = (!plan.is_read_only).then(|| author.origin.to_message());
                    let job = Job {
                        claims: request.claims,
                        statement: &plan.statement,
                        rows: plan.rows,
                        schema,
                        number: picture.number,
                        is_read_only: plan.is_read_only,
                        is_call: plan.is_call,
                        context: &context,
                        estimate: plan.estimate.as_ref(),
                        time_zone: preferences.timezone.as_deref(),
                        no_such_time_zone: plan.no_such_time_zone.as_ref(),
                        demand: plan.demand,
                        origin: origin.as_deref(),
                        key: author.key.as_ref().filter(|_| !plan.is_read_only),
                    };
                    let done = self.runner.run(&job).await;
                    done.map(|done| (plan, done, write))
                }
                Err(problem) => {
                    let is_stale = is_about_names(&problem);
                    Err(Failure { problem, is_stale, needs_json: false })
                }
            };
            let failure = match outcome {
                Ok((mut plan, mut done, write)) => {
                    if let Some(place) = self.published(&done, write).await {
                        done.lsn = Some(place);
                        plan.honours.push(Preference::WaitForFeed);
                    }
                    let is_read_only = plan.is_read_only;
                    let mut response = respond(&asked, &plan, done);
                    if let Some(cursor) = cursor.filter(|_| is_read_only)
                        && let Ok(cursor) = HeaderValue::from_str(&cursor.to_string())
                    {
                        response.headers_mut().insert(FEED_CURSOR, cursor);
                    }
                    return Ok(response);
                }
                Err(failure) => failure,
            };
            if failure.problem.is_no_keys() && !author.needs_key && author.key.is_some() {
                author.key = None;
                continue;
            }
            if failure.needs_json && !asked.needs_json {
                asked.needs_json = true;
                continue;
            }
            if !failure.is_stale || picture.number != first {
                return Err(failure.problem);
            }
            // Names may have changed since the picture was taken. Nothing was written.
            match self.schemas.suspect(&picture).await? {
                Some(newer) => picture = newer,
                None => return Err(failure.problem),
            }
        }
    }

    /// What the application made of a path of its own: what comes behind `/api/`.
    ///
    /// # Errors
    /// When that cannot be known for now.
    pub async fn route(&self, method: &Method, path: &str) -> Result<Found, Problem> {
        let picture = self.schemas.current().await?;
        match picture.routes.find(method, path) {
            found @ Found::Route(..) => Ok(found),
            other @ (Found::Others(_) | Found::Nothing) => {
                // It may have been declared a moment ago.
                let newer = self.schemas.suspect(&picture).await?;
                Ok(newer.map_or(other, |newer| newer.routes.find(method, path)))
            }
        }
    }

    /// Whether nobody has signed in, so that more could be allowed to somebody who does.
    pub fn is_anonymous(&self, claims: &Claims) -> bool {
        *claims.role == *self.settings.anon_role
    }

    /// Where a write ended in the log, once it is published; none when it is not in time.
    async fn published(&self, done: &Done, write: Option<Write>) -> Option<Lsn> {
        let mut write = write?;
        let time = Duration::from_millis(self.settings.feed_wait_timeout_ms);
        if done.is_repeated {
            let place = done.lsn?;
            return timeout(time, self.published.status.passed(place)).await.ok().map(|()| place);
        }
        timeout(time, write.published()).await.ok().map(|written| written.end)
    }

    /// The answer to OPTIONS that is no browser's question: what can be done.
    ///
    /// # Errors
    /// 404 for what there is not.
    pub async fn options(&self, target: &Target, headers: &HeaderMap) -> Result<Response, Problem> {
        let schema = profile(&Method::OPTIONS, headers, &self.settings.schemas)?;
        let picture = self.schemas.current().await?;
        let allowed = match target {
            Target::Root => "OPTIONS,GET,HEAD".to_owned(),
            Target::Relation(name) => {
                let relation = plan::relation(&picture, schema, name)?;
                let mut allowed = "OPTIONS,GET,HEAD".to_owned();
                for (method, is_possible) in [
                    (",POST", relation.insertable),
                    (",PUT", relation.insertable && relation.updatable),
                    (",PATCH", relation.updatable),
                    (",DELETE", relation.deletable),
                ] {
                    if is_possible {
                        allowed.push_str(method);
                    }
                }
                allowed
            }
            Target::Function(name) => plan::methods(&picture, schema, name)?.to_owned(),
        };
        let allowed = HeaderValue::from_str(&allowed).expect("it is made of methods");
        Ok((StatusCode::OK, [(header::ALLOW, allowed)]).into_response())
    }
}

/// Whether a problem may be one of an old picture.
fn is_about_names(problem: &Problem) -> bool {
    matches!(
        &*problem.code,
        "42703" | "PGRST200" | "PGRST201" | "PGRST202" | "PGRST203" | "PGRST204" | "PGRST205"
    )
}

/// The answer to what was done.
fn respond(asked: &plan::Asked<'_>, plan: &Plan, done: Done) -> Response {
    let (answer, preferences) = (&done.answer, asked.preferences);
    let rows = answer.page_total;
    let total = plan.total(answer, done.planned);
    let mut headers = HeaderMap::new();
    let has_body = plan.returns == Return::Representation;
    let (status, range) = match plan.kind {
        plan::Kind::Read { offset } => {
            if let Some(total) = total.filter(|total| offset > *total) {
                return out_of_range(offset, total);
            }
            let status = if total.is_some_and(|total| rows < total) {
                StatusCode::PARTIAL_CONTENT
            } else {
                StatusCode::OK
            };
            (status, Some(content_range(offset, rows, total)))
        }
        plan::Kind::Call { offset, is_void } => {
            if let Some(total) = total.filter(|total| offset > *total) {
                return out_of_range(offset, total);
            }
            let status = if is_void || !has_body {
                StatusCode::NO_CONTENT
            } else if total.is_some_and(|total| rows < total) {
                StatusCode::PARTIAL_CONTENT
            } else {
                StatusCode::OK
            };
            (status, Some(content_range(offset, rows, total)))
        }
        plan::Kind::Insert { is_merge } => {
            let nothing_new = is_merge && answer.inserted == Some(0);
            let status = if nothing_new { StatusCode::OK } else { StatusCode::CREATED };
            (status, Some(content_range(0, 0, total)))
        }
        plan::Kind::Put => {
            let is_new = answer.inserted.is_some_and(|inserted| inserted > 0);
            let status = match (has_body, is_new) {
                (false, _) => StatusCode::NO_CONTENT,
                (true, false) => StatusCode::OK,
                (true, true) => StatusCode::CREATED,
            };
            (status, None)
        }
        plan::Kind::Update => (has_body_status(has_body), Some(content_range(0, rows, total))),
        plan::Kind::Delete => (has_body_status(has_body), Some(content_range(0, 0, total))),
    };
    if let Some(range) = range {
        headers.insert(header::CONTENT_RANGE, range);
    }
    let applied = preferences.applied(|preference| {
        plan.honours.contains(&preference)
            || preference == Preference::Timezone && done.knows_time_zone
    });
    if let Some(applied) = applied {
        headers.insert(PREFERENCE_APPLIED, applied);
    }
    if let (Some(row), Some(name)) = (&answer.location, asked.request.target.name())
        && let Ok(place) = HeaderValue::from_str(&format!("/{}?{row}", context::encoded(name)))
    {
        headers.insert(header::LOCATION, place);
    }
    if let Some(lsn) = done.lsn
        && let Ok(position) = HeaderValue::from_str(&lsn.to_string())
    {
        headers.insert(FEED_LSN, position);
    }
    if done.is_repeated {
        headers.insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    }
    let body = if has_body && status != StatusCode::NO_CONTENT {
        let kind = HeaderValue::from_static(asked.media.content_type());
        headers.insert(header::CONTENT_TYPE, kind);
        match done.answer.body {
            Some(body) => Stream::from(body),
            None => Stream::from("null"),
        }
    } else {
        Stream::empty()
    };
    (status, headers, body).into_response()
}

fn has_body_status(has_body: bool) -> StatusCode {
    if has_body { StatusCode::OK } else { StatusCode::NO_CONTENT }
}

fn out_of_range(offset: u64, total: u64) -> Response {
    let mut response = Problem::out_of_range(offset, total).into_response();
    response.headers_mut().insert(header::CONTENT_RANGE, content_range(0, 0, Some(total)));
    response
}

/// `0-24/3573`: which rows of how many.
fn content_range(offset: u64, rows: u64, total: Option<u64>) -> HeaderValue {
    let total = total.map_or_else(|| "*".to_owned(), |total| total.to_string());
    let text = if rows == 0 {
        format!("*/{total}")
    } else {
        format!("{offset}-{}/{total}", offset.saturating_add(rows - 1))
    };
    HeaderValue::from_str(&text).expect("digits and signs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_says_which_rows_of_how_many() {
        for (offset, rows, total, expected) in [
            (0, 25, Some(3573), "0-24/3573"),
            (0, 25, None, "0-24/*"),
            (10, 1, Some(11), "10-10/11"),
            (0, 0, Some(0), "*/0"),
            (5, 0, None, "*/*"),
            (u64::MAX, 2, None, "18446744073709551615-18446744073709551615/*"),
        ] {
            assert_eq!(content_range(offset, rows, total), expected);
        }
    }
}
