//! What a request becomes: a statement, and what is made of its result.

use axum::http::{Method, StatusCode};

use super::Request;
use crate::config;
use crate::rest::Problem;
use crate::rest::request::{
    Body, Media, Missing, Preference, Preferences, Query, Resolution, Return, Target, Verb,
    arguments as pair_arguments, pairs,
};
use crate::rest::run::Demand;
use crate::rest::schema::{Function, Relation, Returns, Schema, Volatility};
use crate::rest::sql::Statement;
use crate::rest::statement::call::{self, Arguments, Calling};
use crate::rest::statement::read::{self, Reading};
use crate::rest::statement::write::{self, Action, Writing};
use crate::rest::statement::{Answer, Count, Form};

/// A request, as far as it can be understood without a catalog.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) request: &'a Request<'a>,
    pub(super) preferences: &'a Preferences,
    pub(super) media: Media,
    pub(super) schema: &'a str,
    pub(super) body: &'a Body,
    /// Whether Postgres must make the JSON of rows.
    pub(super) needs_json: bool,
}

/// What is run, and what its result means.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) statement: Statement,
    /// The statement's rows are those of the answer, to be made JSON in this form.
    pub(super) rows: Option<Form>,
    pub(super) estimate: Option<Statement>,
    pub(super) is_read_only: bool,
    pub(super) is_call: bool,
    pub(super) demand: Demand,
    pub(super) no_such_time_zone: Option<Problem>,
    pub(super) kind: Kind,
    /// What the client gets of the rows.
    pub(super) returns: Return,
    /// Preferences that had a meaning.
    pub(super) honours: Vec<Preference>,
    count: Option<Count>,
    rows_max: Option<u64>,
}

/// What status and range depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read { offset: u64 },
    Call { offset: u64, is_void: bool },
    Insert { is_merge: bool },
    Put,
    Update,
    Delete,
}

impl Plan {
    /// How many rows there are without limit and offset, if that was asked for.
    pub(super) fn total(&self, answer: &Answer, planned: Option<u64>) -> Option<u64> {
        match self.count? {
            Count::Exact => answer.total,
            Count::Planned => planned.or(answer.total),
            Count::Estimated => match (answer.total, planned) {
                (Some(counted), Some(planned))
                    if self.rows_max.is_some_and(|most| counted > most) =>
                {
                    Some(counted.max(planned))
                }
                (counted, planned) => counted.or(planned),
            },
        }
    }
}

/// The body, where the method has one.
///
/// # Errors
/// As [`Body::parse`].
pub(super) fn body(request: &Request<'_>) -> Result<Body, Problem> {
    match request.verb {
        Verb::Insert | Verb::Put | Verb::Update | Verb::Call => {
            Body::parse(request.headers, request.body.clone())
        }
        Verb::Describe | Verb::Read | Verb::Delete | Verb::CallReading | Verb::Options => {
            Ok(Body::Empty)
        }
    }
}

/// The relation of this name.
///
/// # Errors
/// 404 `PGRST205`.
pub(super) fn relation<'p>(
    picture: &'p Schema,
    schema: &str,
    name: &str,
) -> Result<&'p Relation, Problem> {
    picture.relation(schema, name).map(|relation| &**relation).ok_or_else(|| {
        let text = format!("Could not find the table '{schema}.{name}' in the schema cache");
        let problem = Problem::new(StatusCode::NOT_FOUND, "PGRST205", text);
        let others = picture.relations.keys().filter(|(of, _)| **of == *schema);
        match read::closest(name, others.map(|(_, name)| &**name)) {
            Some(other) => {
                problem.with_hint(format!("Perhaps you meant the table '{schema}.{other}'"))
            }
            None => problem,
        }
    })
}

/// How functions of this name can be called.
///
/// # Errors
/// 404 `PGRST202`.
pub(super) fn methods(picture: &Schema, schema: &str, name: &str) -> Result<&'static str, Problem> {
    let functions = picture.functions(schema, name);
    if functions.is_empty() {
        call::choose(picture, schema, name, &[])?;
    }
    let is_volatile =
        |function: &std::sync::Arc<Function>| function.volatility == Volatility::Volatile;
    Ok(if functions.iter().all(is_volatile) { "OPTIONS,POST" } else { "OPTIONS,GET,HEAD,POST" })
}

/// What `asked` becomes with the names of `picture`.
///
/// # Errors
/// What the client is told.
pub(super) fn plan(
    asked: &Asked<'_>,
    picture: &Schema,
    settings: &config::Rest,
) -> Result<Plan, Problem> {
    let decoded = pairs(asked.request.query)?;
    let pairs: Vec<(&str, &str)> =
        decoded.iter().map(|(name, value)| (&**name, &**value)).collect();
    let rows_max = (settings.rows_max > 0).then_some(settings.rows_max);
    let mut plan = match asked.request.target {
        Target::Root => return Err(Problem::internal()),
        Target::Relation(name) => {
            let relation = relation(picture, asked.schema, name)?;
            let mut query = Query::parse(pairs.iter().copied(), |_| false)?;
            if asked.request.method == Method::GET {
                query.within(asked.request.headers)?;
            }
            if asked.request.verb == Verb::Read {
                reading(asked, picture, relation, &query, rows_max)?
            } else {
                writing(asked, picture, relation, &query, settings)?
            }
        }
        Target::Function(name) => calling(asked, picture, name, &pairs, rows_max)?,
    };
    let preferences = asked.preferences;
    if let (true, Some(name)) = (preferences.is_strict(), &preferences.timezone) {
        plan.no_such_time_zone = Some(Preferences::invalid(&format!("timezone={name}")));
    }
    plan.honours.push(Preference::Handling);
    if plan.count.is_some() {
        plan.honours.push(Preference::Count);
    }
    Ok(plan)
}

/// What is made of the rows that are returned.
fn form(media: Media) -> Form {
    match media {
        Media::Json | Media::OpenApi => Form::Array,
        Media::Object => Form::Object,
        Media::Csv => Form::Csv,
    }
}

fn offset(query: &Query) -> u64 {
    let of_target = query.ranges.iter().rfind(|range| range.path.is_empty());
    of_target.and_then(|range| range.what.offset).unwrap_or(0)
}

fn reading(
    asked: &Asked<'_>,
    picture: &Schema,
    relation: &Relation,
    query: &Query,
    rows_max: Option<u64>,
) -> Result<Plan, Problem> {
    let count = asked.preferences.count;
    // An answer to HEAD has no body, and none is made.
    let form = if asked.request.method == Method::HEAD { Form::None } else { form(asked.media) };
    let reading = Reading { schema: picture, relation, query, form, count, rows_max };
    let estimate = match count {
        Some(Count::Planned | Count::Estimated) => Some(read::estimate(&reading)?),
        Some(Count::Exact) | None => None,
    };
    let bare = if asked.needs_json { None } else { read::rows(&reading)? };
    let rows = bare.is_some().then_some(form);
    let statement = bare.map_or_else(|| read::read(&reading), Ok)?;
    Ok(Plan {
        statement,
        rows,
        estimate,
        is_read_only: true,
        is_call: false,
        demand: Demand { is_single: asked.media == Media::Object, ..Demand::default() },
        no_such_time_zone: None,
        kind: Kind::Read { offset: offset(query) },
        returns: Return::Representation,
        honours: Vec::new(),
        count,
        rows_max,
    })
}

fn writing(
    asked: &Asked<'_>,
    picture: &Schema,
    relation: &Relation,
    query: &Query,
    settings: &config::Rest,
) -> Result<Plan, Problem> {
    let Asked { preferences, body, .. } = *asked;
    let mut honours = vec![Preference::Return];
    let missing = preferences.missing.unwrap_or(Missing::Null);
    let (action, kind) = match asked.request.verb {
        Verb::Insert => {
            let has_key = !relation.primary_key.is_empty() || query.on_conflict.is_some();
            let resolution = preferences.resolution.filter(|_| has_key);
            if resolution.is_some() {
                honours.push(Preference::Resolution);
            }
            honours.push(Preference::Missing);
            let is_merge = resolution == Some(Resolution::MergeDuplicates);
            (Action::Insert { body, missing, resolution }, Kind::Insert { is_merge })
        }
        Verb::Put => (Action::Put { body }, Kind::Put),
        Verb::Update => (Action::Update { body }, Kind::Update),
        Verb::Delete => (Action::Delete, Kind::Delete),
        Verb::Describe | Verb::Read | Verb::CallReading | Verb::Call | Verb::Options => {
            return Err(Problem::internal());
        }
    };
    let is_filtered = query.filters.iter().any(|filter| filter.path.is_empty());
    let affected_max = match kind {
        Kind::Update | Kind::Delete => {
            if !is_filtered && !settings.unfiltered_writes {
                let verb = if kind == Kind::Update { "UPDATE" } else { "DELETE" };
                return Err(Problem::unfiltered(verb));
            }
            preferences.affected_max()
        }
        Kind::Read { .. } | Kind::Call { .. } | Kind::Insert { .. } | Kind::Put => None,
    };
    if affected_max.is_some() {
        honours.push(Preference::MaxAffected);
    }
    let returns = preferences.returning.unwrap_or_default();
    let form = if returns == Return::Representation { form(asked.media) } else { Form::None };
    let wants_location = returns == Return::HeadersOnly && asked.request.verb == Verb::Insert;
    let count = preferences.count;
    let writing = Writing { schema: picture, relation, query, action, form, count, wants_location };
    Ok(Plan {
        statement: write::write(&writing)?,
        rows: None,
        estimate: None,
        is_read_only: false,
        is_call: false,
        demand: Demand {
            is_single: asked.media == Media::Object,
            affected_max,
            is_put: asked.request.verb == Verb::Put,
        },
        no_such_time_zone: None,
        kind,
        returns,
        honours,
        count,
        rows_max: None,
    })
}

fn calling(
    asked: &Asked<'_>,
    picture: &Schema,
    name: &str,
    pairs: &[(&str, &str)],
    rows_max: Option<u64>,
) -> Result<Plan, Problem> {
    let Asked { request, preferences, media, body, schema, .. } = *asked;
    let said = pair_arguments(pairs);
    let (function, arguments) = if request.verb == Verb::CallReading {
        let names: Vec<&str> = said.iter().map(|(name, _)| *name).collect();
        (call::choose(picture, schema, name, &names)?, Arguments::Pairs(&said))
    } else {
        let keys: Vec<&str> = match body {
            Body::Empty => Vec::new(),
            Body::Object { keys, .. } => keys.iter().map(String::as_str).collect(),
            Body::Array { .. } | Body::Other(_) => {
                return Err(Problem::not_implemented("arguments that are not a JSON object"));
            }
        };
        (call::choose(picture, schema, name, &keys)?, Arguments::Body(body))
    };
    let is_argument = |name: &str| {
        request.verb == Verb::CallReading
            && function.arguments.iter().any(|argument| !name.is_empty() && *argument.name == *name)
    };
    let mut query = Query::parse(pairs.iter().copied(), is_argument)?;
    if request.method == Method::GET {
        query.within(request.headers)?;
    }
    let is_void = function.returns == Returns::Void;
    let is_minimal =
        preferences.returning == Some(Return::Minimal) && request.method == Method::POST;
    let returns = if is_minimal { Return::Minimal } else { Return::Representation };
    let form = if is_minimal || request.method == Method::HEAD { Form::None } else { form(media) };
    let affected_max = preferences.affected_max().filter(|_| function.returns_set);
    let mut honours = Vec::new();
    if is_minimal {
        honours.push(Preference::Return);
    }
    if affected_max.is_some() {
        honours.push(Preference::MaxAffected);
    }
    let count = preferences.count;
    let calling =
        Calling { schema: picture, function, arguments, query: &query, form, count, rows_max };
    Ok(Plan {
        statement: call::call(&calling)?,
        rows: None,
        estimate: None,
        is_read_only: request.verb == Verb::CallReading
            || function.volatility != Volatility::Volatile,
        is_call: true,
        demand: Demand {
            is_single: media == Media::Object && function.returns_set,
            affected_max,
            ..Demand::default()
        },
        no_such_time_zone: None,
        kind: Kind::Call { offset: offset(&query), is_void },
        returns,
        honours,
        count,
        rows_max,
    })
}
