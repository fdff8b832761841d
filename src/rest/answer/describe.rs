//! The answer to whoever asks what there is.

use axum::body::Body as Stream;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::{PREFERENCE_APPLIED, Request, Rest, context};
use crate::rest::Problem;
use crate::rest::openapi::Privileges;
use crate::rest::request::{Media, Preference, Preferences};
use crate::rest::run::{Demand, Job};

impl Rest {
    /// What there is, for those who may know.
    pub(super) async fn describe(
        &self,
        request: &Request<'_>,
        preferences: &Preferences,
        media: Media,
        schema: &str,
    ) -> Result<Response, Problem> {
        let claims = request.claims;
        if !self.settings.openapi_roles.iter().any(|role| **role == *claims.role) {
            let status = if self.is_anonymous(claims) {
                StatusCode::UNAUTHORIZED
            } else {
                StatusCode::FORBIDDEN
            };
            let message = "The description of this interface is not for this role";
            return Err(Problem::new(status, "42501", message));
        }
        if !matches!(media, Media::OpenApi | Media::Json) {
            let message = "None of these media types are available: application/openapi+json";
            return Err(Problem::new(StatusCode::NOT_ACCEPTABLE, "PGRST107", message));
        }
        let picture = self.schemas.current().await?;
        let (statement, context) = (Privileges::statement(schema), context::context(request));
        let job = Job {
            claims,
            statement: &statement,
            rows: None,
            schema,
            number: picture.number,
            is_read_only: true,
            is_call: false,
            context: &context,
            estimate: None,
            time_zone: None,
            no_such_time_zone: None,
            demand: Demand::default(),
            origin: None,
            key: None,
        };
        let done = self.runner.run(&job).await.map_err(|failure| failure.problem)?;
        let privileges = done.answer.body.ok_or_else(Problem::internal)?;
        let document = self.documents.get(&picture, schema, privileges).await?;
        let mut headers = HeaderMap::new();
        let kind = HeaderValue::from_static(media.content_type());
        headers.insert(header::CONTENT_TYPE, kind);
        if let Some(applied) = preferences.applied(|it| it == Preference::Handling) {
            headers.insert(PREFERENCE_APPLIED, applied);
        }
        let is_head = *request.method == Method::HEAD;
        let body = if is_head { Stream::empty() } else { Stream::from(document) };
        Ok((headers, body).into_response())
    }
}
