//! One picture from the catalogs: a read-only transaction with one snapshot, a query a kind.
//!
//! In:     a connection whose login may do nothing, the exposed schemas.
//! Out:    a [`Schema`] and the [`Fingerprint`] of what it was made from.
//! Never:  rows of the user's tables; a lock that is waited for; more than the bounds here; a
//!         picture of which a part is missing.
//! Source: `sql/rest/`, postgresql.org/docs/17/catalogs.html

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::join_all;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSqlOwned, ToSql, Type};
use tokio_postgres::{Client, Row};
use tracing::{debug, error, warn};

use super::views::{self, Origin, Origins};
use super::{Argument, Column, ForeignKey, Function, Relation, Returns, Schema, Volatility};
use crate::db;
use crate::rest::route::{Declared, Routes};
use crate::telemetry;

/// Rows that are read of one kind: what a picture may grow to. Beyond this there is none, and the
/// log says so; with fewer, large databases would be left out, with more, one could fill the
/// memory of this process.
const RELATIONS_MAX: usize = 20_000;
const COLUMNS_MAX: usize = 400_000;
const TYPES_MAX: usize = 200_000;
const CONSTRAINTS_MAX: usize = 200_000;
const FUNCTIONS_MAX: usize = 20_000;

/// Foreign keys, those included that views have from their tables.
const FOREIGN_KEYS_MAX: usize = 200_000;

/// The definition of one view, and all together, in bytes: a view beyond has no foreign keys. A
/// usual one has 5 to 50 kB.
const VIEW_BYTES_MAX: i64 = 1 << 20;
const VIEWS_BYTES_MAX: i64 = 64 << 20;

/// Paths of an application's own, and the bytes of one with what it stands for.
const ROUTES_MAX: usize = 2_000;
const ROUTE_BYTES_MAX: i64 = 20_000;

/// Combinations of columns by which one view is an end of one foreign key, when it shows columns
/// more than once.
const COMBINATIONS_MAX: usize = 8;

/// How often a picture is tried again that somebody changed while it was read.
const ATTEMPTS_MAX: u32 = 3;

/// Domains that stand on domains.
const DOMAINS_MAX: usize = 64;

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no connection: ask again later.
    #[error("cannot connect to read the catalog")]
    Connect(#[source] db::Error),
    /// The server refused or broke off: ask again later.
    #[error("the catalog cannot be read")]
    Query(#[source] tokio_postgres::Error),
    /// No answer in time; the connection was given up.
    #[error("the catalog did not answer in time")]
    Timeout,
    /// There is more than a picture may have: a person must act.
    #[error("the exposed schemas have more than {max} {what}; expose fewer schemas")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        max: usize,
    },
    /// The catalog changed while it was read, each time: ask again.
    #[error("the catalog changed while it was read")]
    Moving,
    /// As somebody else was told a moment ago.
    #[error("the schema cannot be read for now")]
    Again(#[source] Arc<Error>),
    /// This process is about to end.
    #[error("the schema is no longer read")]
    Stopped,
}

/// What a picture was made from, as numbers: others after anything changed that could change it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fingerprint {
    catalog: i64,
    /// None: they cannot be read for now.
    routes: Option<i64>,
}

impl Fingerprint {
    /// Whether nothing changed since `before`, as far as that can be told.
    pub(super) fn is_as(self, before: Self) -> bool {
        self.catalog == before.catalog && (self.routes.is_none() || self.routes == before.routes)
    }
}

/// A picture, and what it was made from.
pub(super) struct Loaded {
    pub(super) schema: Schema,
    pub(super) fingerprint: Fingerprint,
    /// False: what can be written to could not be asked just now; worth reading again later.
    pub(super) is_sure: bool,
    /// False: the routes could not be read just now; those of before are still true.
    pub(super) has_routes: bool,
}

/// Reads a picture of `schemas` over `client`, whose search path is empty meanwhile.
///
/// # Errors
/// [`Error`]; the connection must not be used any more.
pub async fn load(client: &Client, schemas: &[String]) -> Result<Schema, Error> {
    Ok(read(client, schemas).await?.schema)
}

/// As [`load`].
pub(super) async fn read(client: &Client, schemas: &[String]) -> Result<Loaded, Error> {
    for _ in 0..ATTEMPTS_MAX {
        match read_once(client, schemas).await {
            Err(Error::Moving) => debug!("the catalog changed while it was read"),
            result => return result,
        }
    }
    Err(Error::Moving)
}

/// The fingerprint of now.
pub(super) async fn fingerprint(client: &Client) -> Result<Fingerprint, Error> {
    let rows = client.query_typed(include_str!("../../../sql/rest/fingerprint.sql"), &[]).await;
    let (catalog, has_routes) = fingerprint_of(&rows.map_err(Error::Query)?)?;
    let routes = if has_routes { routes_fingerprint(client).await? } else { Some(0) };
    Ok(Fingerprint { catalog, routes })
}

/// That of the catalogs, and whether there are routes that we may read.
fn fingerprint_of(rows: &[Row]) -> Result<(i64, bool), Error> {
    let row = rows.first().ok_or(Error::Moving)?;
    Ok((get(row, "fingerprint")?, get(row, "has_routes")?))
}

/// None: they cannot be read for now.
async fn routes_fingerprint(client: &Client) -> Result<Option<i64>, Error> {
    let sql = include_str!("../../../sql/rest/routes_fingerprint.sql");
    match client.query_typed(sql, &[]).await {
        Ok(rows) => rows.first().map(|row| get(row, "fingerprint")).transpose(),
        Err(error) if error.as_db_error().is_some() => {
            debug!(%error, "it is not known whether the routes changed");
            Ok(None)
        }
        Err(error) => Err(Error::Query(error)),
    }
}

/// Asks what may fail, so that the rest does not: the routes and their fingerprint.
async fn read_routes(client: &Client) -> Result<Option<(Vec<Declared>, i64)>, Error> {
    client.batch_execute("savepoint routes").await.map_err(Error::Query)?;
    let limit = i64::try_from(ROUTES_MAX.saturating_add(1)).unwrap_or(i64::MAX);
    let parameters: [Parameter<'_>; 2] = [(&limit, Type::INT8), (&ROUTE_BYTES_MAX, Type::INT8)];
    let rows = client.query_typed(include_str!("../../../sql/rest/routes.sql"), &parameters).await;
    let fingerprint = if rows.is_ok() { routes_fingerprint(client).await? } else { None };
    let error = match (rows, fingerprint) {
        (Ok(mut rows), Some(fingerprint)) => {
            if rows.len() > ROUTES_MAX {
                error!(max = ROUTES_MAX, "there are too many routes: the last ones are not served");
                rows.truncate(ROUTES_MAX);
            }
            let rows = rows.iter().map(read_route).collect::<Result<_, _>>()?;
            return Ok(Some((rows, fingerprint)));
        }
        (Err(error), _) if error.as_db_error().is_none() => return Err(Error::Query(error)),
        (rows, _) => rows.err(),
    };
    warn!(error = error.map(|error| telemetry::chain(&error)), "the routes cannot be read for now");
    client.batch_execute("rollback to routes").await.map_err(Error::Query)?;
    Ok(None)
}

fn read_route(row: &Row) -> Result<Declared, Error> {
    let optional = |name| get::<Option<String>>(row, name);
    Ok(Declared {
        method: get(row, "method")?,
        path: get(row, "path")?,
        target: optional("target")?.unwrap_or_default(),
        profile: optional("profile")?,
        prefer: optional("prefer")?,
        accept: optional("accept")?,
        body: optional("body")?,
    })
}

fn routes(rows: Vec<Declared>) -> Routes {
    Routes::new(rows, |row, why| {
        // Our own function lets none of these in, but for a name that the path does not have.
        warn!(method = row.method, path = row.path, why, "a route is not served");
    })
}

async fn read_once(client: &Client, schemas: &[String]) -> Result<Loaded, Error> {
    // `local`: whatever the connection is used for otherwise, it is as it was.
    const BEGIN: &str = "begin isolation level repeatable read, read only; \
        set local search_path = ''; set local jit = off; set local lock_timeout = '100ms'; \
        set local statement_timeout = '10s'";
    client.batch_execute(BEGIN).await.map_err(Error::Query)?;
    let limit = |max: usize| i64::try_from(max.saturating_add(1)).unwrap_or(i64::MAX);
    let (relations, columns) = (limit(RELATIONS_MAX), limit(COLUMNS_MAX));
    let (types, constraints) = (limit(TYPES_MAX), limit(CONSTRAINTS_MAX));
    let functions = limit(FUNCTIONS_MAX);
    let exposed: Parameter<'_> = (&schemas, Type::TEXT_ARRAY);
    let bytes: [Parameter<'_>; 2] = [(&VIEW_BYTES_MAX, Type::INT8), (&VIEWS_BYTES_MAX, Type::INT8)];
    let queries: [(&str, &[Parameter<'_>]); 7] = [
        (include_str!("../../../sql/rest/fingerprint.sql"), &[]),
        (include_str!("../../../sql/rest/types.sql"), &[(&types, Type::INT8)]),
        (
            include_str!("../../../sql/rest/relations.sql"),
            &[exposed.clone(), (&relations, Type::INT8)],
        ),
        (include_str!("../../../sql/rest/columns.sql"), &[exposed.clone(), (&columns, Type::INT8)]),
        (include_str!("../../../sql/rest/constraints.sql"), &[(&constraints, Type::INT8)]),
        (
            include_str!("../../../sql/rest/views.sql"),
            &[exposed.clone(), bytes[0].clone(), bytes[1].clone()],
        ),
        (
            include_str!("../../../sql/rest/functions.sql"),
            &[exposed.clone(), (&functions, Type::INT8)],
        ),
    ];
    // All are sent at once; the server goes through them in order.
    let answers =
        join_all(queries.iter().map(|(sql, parameters)| client.query_typed(sql, parameters))).await;
    let mut rows = Vec::with_capacity(queries.len());
    for answer in answers {
        rows.push(answer.map_err(Error::Query)?);
    }
    let [fingerprint, types, relations, columns, constraints, views, functions] =
        <[Vec<Row>; 7]>::try_from(rows).expect("an answer for each query");
    let (catalog, has_routes) = fingerprint_of(&fingerprint)?;
    let (writable, is_sure) = read_writable(client, schemas).await?;
    let declared = if has_routes { read_routes(client).await? } else { Some((Vec::new(), 0)) };
    client.batch_execute("commit").await.map_err(Error::Query)?;
    let (declared, routes_fingerprint) = declared.unzip();
    let fingerprint = Fingerprint { catalog, routes: routes_fingerprint };
    let types = read_types(&within(types, TYPES_MAX, "types")?)?;
    let columns = read_columns(&within(columns, COLUMNS_MAX, "columns")?, &types)?;
    let constraints = within(constraints, CONSTRAINTS_MAX, "constraints")?;
    let constraints =
        constraints.iter().map(read_constraint).collect::<Result<Vec<Constraint>, _>>()?;
    let relations = within(relations, RELATIONS_MAX, "relations")?;
    let mut relations = relations
        .iter()
        .map(|row| read_relation(row, &columns, &writable))
        .collect::<Result<HashMap<_, _>, Error>>()?;
    let trees = views.iter().map(|row| {
        let tree: &str = row.try_get("tree").map_err(Error::Query)?;
        // What is not understood hides what is behind it.
        Ok((get(row, "view")?, views::origins(tree).unwrap_or_default()))
    });
    let shown = Shown::new(&trees.collect::<Result<_, Error>>()?, &relations);
    give_primary_keys(&mut relations, &constraints, &shown);
    let foreign_keys = foreign_keys(&relations, &constraints, &shown)?;
    let functions = within(functions, FUNCTIONS_MAX, "functions")?;
    let functions = functions
        .iter()
        .map(|row| read_function(row, &types, &columns))
        .collect::<Result<_, _>>()?;
    let mut schema = assemble(relations, foreign_keys, functions);
    let has_routes = declared.is_some();
    schema.routes = Arc::new(routes(declared.unwrap_or_default()));
    Ok(Loaded { schema, fingerprint, is_sure: is_sure && has_routes, has_routes })
}

type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

fn get<T: FromSqlOwned>(row: &Row, name: &str) -> Result<T, Error> {
    row.try_get(name).map_err(Error::Query)
}

fn text(row: &Row, name: &str) -> Result<Box<str>, Error> {
    row.try_get::<_, &str>(name).map(Box::from).map_err(Error::Query)
}

fn optional_text(row: &Row, name: &str) -> Result<Option<Box<str>>, Error> {
    row.try_get::<_, Option<&str>>(name).map(|text| text.map(Box::from)).map_err(Error::Query)
}

fn character(row: &Row, name: &str) -> Result<char, Error> {
    let text: &str = row.try_get(name).map_err(Error::Query)?;
    Ok(text.chars().next().unwrap_or(' '))
}

fn within(rows: Vec<Row>, max: usize, what: &'static str) -> Result<Vec<Row>, Error> {
    if rows.len() > max { Err(Error::TooMany { what, max }) } else { Ok(rows) }
}

/// What views and foreign tables take: INSERT, UPDATE, DELETE.
type Writable = HashMap<u32, [bool; 3]>;

/// Asks what may fail, so that the rest does not. False: it is worth asking again.
async fn read_writable(client: &Client, schemas: &[String]) -> Result<(Writable, bool), Error> {
    let sql = include_str!("../../../sql/rest/writable.sql");
    client.batch_execute("savepoint writable").await.map_err(Error::Query)?;
    match client.query_typed(sql, &[(&schemas, Type::TEXT_ARRAY)]).await {
        Ok(rows) => {
            let events = |row: &Row| {
                let events = [get(row, "inserts")?, get(row, "updates")?, get(row, "deletes")?];
                Ok((get(row, "oid")?, events))
            };
            Ok((rows.iter().map(events).collect::<Result<_, Error>>()?, true))
        }
        Err(error) => {
            // Somebody may be altering a table for longer than we wait.
            let locked = [SqlState::LOCK_NOT_AVAILABLE, SqlState::QUERY_CANCELED];
            let passes = error.code().is_some_and(|code| locked.contains(code));
            debug!(%error, "it is not known which views can be written to");
            client.batch_execute("rollback to writable").await.map_err(Error::Query)?;
            Ok((Writable::new(), !passes))
        }
    }
}

/// A type as columns and arguments tell it.
struct Told {
    type_sql: Box<str>,
    kind: char,
    category: char,
    base: u32,
    modifier: i32,
    required: bool,
    relation: u32,
    default: Option<Box<str>>,
    labels: Box<[Box<str>]>,
}

struct Types(HashMap<u32, Told>);

impl Types {
    fn get(&self, oid: u32) -> Result<&Told, Error> {
        // A type that is gone since has no name; whatever uses it is gone as well.
        self.0.get(&oid).ok_or(Error::Moving)
    }

    /// The type and the domains it is made of, outermost first; the last is no domain.
    fn layers(&self, oid: u32) -> Result<Vec<&Told>, Error> {
        let mut layers = vec![self.get(oid)?];
        while let Some(domain) = layers.last().filter(|told| told.kind == 'd') {
            if layers.len() > DOMAINS_MAX {
                return Err(Error::TooMany { what: "domains on one another", max: DOMAINS_MAX });
            }
            layers.push(self.get(domain.base)?);
        }
        Ok(layers)
    }

    /// The type below its domains.
    fn base(&self, oid: u32) -> Result<&Told, Error> {
        Ok(self.layers(oid)?.pop().expect("layers has its argument"))
    }
}

fn read_types(rows: &[Row]) -> Result<Types, Error> {
    let types = rows.iter().map(|row| {
        let labels: Option<Vec<String>> = get(row, "labels")?;
        let type_sql = text(row, "type_sql")?;
        // What `format_type` says of a type that was dropped after the snapshot.
        if type_sql.starts_with("???") {
            return Err(Error::Moving);
        }
        let told = Told {
            type_sql,
            kind: character(row, "kind")?,
            category: character(row, "category")?,
            base: get(row, "base")?,
            modifier: get(row, "modifier")?,
            required: get(row, "required")?,
            relation: get(row, "relation")?,
            default: optional_text(row, "default_sql")?,
            labels: labels.unwrap_or_default().into_iter().map(String::into).collect(),
        };
        Ok((get(row, "oid")?, told))
    });
    Ok(Types(types.collect::<Result<_, Error>>()?))
}

/// By relation, in attribute order.
type Columns = HashMap<u32, Vec<Column>>;

fn read_columns(rows: &[Row], types: &Types) -> Result<Columns, Error> {
    let mut columns = Columns::new();
    for row in rows {
        let type_oid = get(row, "type")?;
        let layers = types.layers(type_oid)?;
        let base = *layers.last().expect("layers has its argument");
        let own: i32 = get(row, "modifier")?;
        let modifiers = std::iter::once(own).chain(layers.iter().map(|told| told.modifier));
        let limited = matches!(&*base.type_sql, "character varying" | "bpchar");
        let length = modifiers.filter(|modifier| limited && *modifier > 4).map(|it| it - 4).min();
        let required: bool = get(row, "required")?;
        let inherited = || layers.iter().find_map(|told| told.default.clone());
        let generated = get(row, "generated")?;
        let own = optional_text(row, "default_sql")?;
        let column = Column {
            attnum: get(row, "attnum")?,
            name: text(row, "name")?,
            type_sql: layers.first().map_or_else(Box::default, |told| told.type_sql.clone()),
            type_oid,
            base_type: base.type_sql.clone(),
            category: base.category,
            nullable: !required && !layers.iter().any(|told| told.required),
            default: if generated { None } else { own.or_else(inherited) },
            generated,
            enum_values: base.labels.clone(),
            max_length: length,
            comment: optional_text(row, "comment")?,
        };
        columns.entry(get(row, "relation")?).or_default().push(column);
    }
    Ok(columns)
}

fn read_relation(
    row: &Row,
    columns: &Columns,
    writable: &Writable,
) -> Result<(u32, Relation), Error> {
    let oid = get(row, "oid")?;
    let kind = character(row, "kind")?;
    let [insertable, updatable, deletable] = match kind {
        'm' => [false; 3],
        'v' | 'f' => writable.get(&oid).copied().unwrap_or([true; 3]),
        _ => [true; 3],
    };
    let relation = Relation {
        oid,
        schema: text(row, "schema")?,
        name: text(row, "name")?,
        is_view: matches!(kind, 'v' | 'm'),
        is_partition: get(row, "is_partition")?,
        comment: optional_text(row, "comment")?,
        columns: columns.get(&oid).cloned().unwrap_or_default().into(),
        primary_key: Box::default(),
        insertable,
        updatable,
        deletable,
    };
    Ok((oid, relation))
}

/// A key of any schema, by column numbers.
struct Constraint {
    name: Box<str>,
    kind: char,
    relation: u32,
    columns: Vec<i16>,
    target: u32,
    target_columns: Vec<i16>,
}

fn read_constraint(row: &Row) -> Result<Constraint, Error> {
    let target_columns: Option<Vec<i16>> = get(row, "target_columns")?;
    Ok(Constraint {
        name: text(row, "name")?,
        kind: character(row, "kind")?,
        relation: get(row, "relation")?,
        columns: get(row, "columns")?,
        target: get(row, "target")?,
        target_columns: target_columns.unwrap_or_default(),
    })
}

type Relations = HashMap<u32, Relation>;

/// The columns of a view, by the columns of a table that they are.
type Places = HashMap<i16, Vec<i16>>;

/// Which columns of which tables the exposed views show: views by table, in the order of their OIDs.
#[derive(Default)]
struct Shown(HashMap<u32, Vec<(u32, Places)>>);

impl Shown {
    fn new(views: &HashMap<u32, Origins>, relations: &Relations) -> Self {
        let mut all = Self::default();
        let exposed: BTreeSet<u32> =
            relations.values().filter(|relation| relation.is_view).map(|view| view.oid).collect();
        for view in exposed {
            let Some(origins) = views.get(&view) else { continue };
            let numbers: BTreeSet<i16> = origins.keys().copied().collect();
            let mut tables: HashMap<u32, Places> = HashMap::new();
            for number in numbers {
                let Some((table, column)): Option<Origin> = views::resolve(views, (view, number))
                else {
                    continue;
                };
                tables.entry(table).or_default().entry(column).or_default().push(number);
            }
            for (table, columns) in tables {
                all.0.entry(table).or_default().push((view, columns));
            }
        }
        all
    }

    /// Views that show all of a table's `columns`, with the numbers these have there. A view that
    /// shows a column twice comes as often.
    fn views(&self, table: u32, columns: &[i16]) -> Vec<(u32, Vec<i16>)> {
        let mut found = Vec::new();
        for (view, shown) in self.0.get(&table).into_iter().flatten() {
            let Some(places) =
                columns.iter().map(|column| shown.get(column)).collect::<Option<Vec<_>>>()
            else {
                continue;
            };
            let mut combinations: Vec<Vec<i16>> = vec![Vec::new()];
            for place in places {
                combinations = combinations
                    .iter()
                    .flat_map(|start| {
                        place.iter().map(move |next| {
                            start.iter().copied().chain(std::iter::once(*next)).collect()
                        })
                    })
                    .take(COMBINATIONS_MAX)
                    .collect();
            }
            found.extend(combinations.into_iter().map(|columns| (*view, columns)));
        }
        found
    }
}

/// The names of columns; none when one is gone.
fn names(relation: &Relation, numbers: &[i16]) -> Option<Box<[Box<str>]>> {
    let name = |number: &i16| {
        // In attribute order, but dropped ones leave gaps.
        let place = relation.columns.binary_search_by_key(number, |column| column.attnum).ok()?;
        Some(relation.columns.get(place)?.name.clone())
    };
    numbers.iter().map(name).collect()
}

fn give_primary_keys(relations: &mut Relations, constraints: &[Constraint], shown: &Shown) {
    for key in constraints.iter().filter(|key| key.kind == 'p') {
        if let Some(table) = relations.get_mut(&key.relation) {
            table.primary_key = names(table, &key.columns).unwrap_or_default();
        }
        let mut given = HashSet::new();
        for (view, columns) in shown.views(key.relation, &key.columns) {
            // The first of those that show it more than once is enough.
            if !given.insert(view) {
                continue;
            }
            let Some(view) = relations.get_mut(&view) else { continue };
            let more = names(view, &columns).unwrap_or_default();
            let mut all = std::mem::take(&mut view.primary_key).into_vec();
            all.extend(more);
            view.primary_key = all.into();
        }
    }
}

fn foreign_keys(
    relations: &Relations,
    constraints: &[Constraint],
    shown: &Shown,
) -> Result<Vec<ForeignKey>, Error> {
    let sorted = |columns: &[i16]| {
        let mut columns = columns.to_vec();
        columns.sort_unstable();
        columns
    };
    let unique: HashSet<(u32, Vec<i16>)> = constraints
        .iter()
        .filter(|key| matches!(key.kind, 'p' | 'u'))
        .map(|key| (key.relation, sorted(&key.columns)))
        .collect();
    let mut found = Vec::new();
    for key in constraints.iter().filter(|key| key.kind == 'f') {
        let one_to_one = unique.contains(&(key.relation, sorted(&key.columns)));
        let ends = |table: u32, columns: &[i16]| {
            let mut ends = shown.views(table, columns);
            ends.insert(0, (table, columns.to_vec()));
            let named = ends.into_iter().filter_map(|(relation, columns)| {
                let relation = relations.get(&relation)?;
                Some((relation, names(relation, &columns)?))
            });
            named.collect::<Vec<_>>()
        };
        let targets = ends(key.target, &key.target_columns);
        if targets.is_empty() {
            continue;
        }
        for (from, from_columns) in ends(key.relation, &key.columns) {
            for (to, to_columns) in &targets {
                if found.len() >= FOREIGN_KEYS_MAX {
                    let what = "foreign keys, those of views included";
                    return Err(Error::TooMany { what, max: FOREIGN_KEYS_MAX });
                }
                found.push(ForeignKey {
                    name: key.name.clone(),
                    from: from.oid,
                    in_primary_key: from_columns.iter().all(|it| from.primary_key.contains(it)),
                    from_columns: from_columns.clone(),
                    to: to.oid,
                    to_columns: to_columns.clone(),
                    one_to_one,
                });
            }
        }
    }
    Ok(found)
}

fn read_function(row: &Row, types: &Types, columns: &Columns) -> Result<Function, Error> {
    let inputs: Vec<u32> = get(row, "inputs")?;
    let all: Option<Vec<u32>> = get(row, "types")?;
    let modes: Option<Vec<String>> = get(row, "modes")?;
    let names: Vec<String> = get::<Option<_>>(row, "names")?.unwrap_or_default();
    let defaults = usize::try_from(get::<i16>(row, "defaults")?).unwrap_or(0);
    let variadic: bool = get(row, "variadic")?;
    let all = all.unwrap_or_else(|| inputs.clone());
    let modes = modes.unwrap_or_default();
    let (mut arguments, mut results) = (Vec::new(), Vec::new());
    let mut has_named_result = false;
    for (place, type_oid) in all.iter().enumerate() {
        let mode = modes.get(place).map_or("i", String::as_str);
        let name: Box<str> = names.get(place).map_or("", String::as_str).into();
        let (told, base) = (types.get(*type_oid)?, types.base(*type_oid)?);
        if matches!(mode, "o" | "b" | "t") {
            has_named_result |= !name.is_empty();
            results.push(Column {
                attnum: i16::try_from(results.len() + 1).unwrap_or(i16::MAX),
                // As Postgres calls it in rows.
                name: if name.is_empty() {
                    format!("column{}", results.len() + 1).into()
                } else {
                    name.clone()
                },
                type_sql: told.type_sql.clone(),
                type_oid: *type_oid,
                base_type: base.type_sql.clone(),
                category: base.category,
                nullable: true,
                enum_values: base.labels.clone(),
                ..Column::default()
            });
        }
        if matches!(mode, "i" | "b" | "v") {
            arguments.push(Argument {
                name,
                type_sql: told.type_sql.clone(),
                base_type: base.type_sql.clone(),
                category: base.category,
                has_default: arguments.len() + defaults >= inputs.len(),
                is_variadic: variadic && arguments.len() + 1 == inputs.len(),
            });
        }
    }
    let result: u32 = get(row, "result")?;
    let (told, base) = (types.get(result)?, types.base(result)?);
    // A single result without a name is a value.
    let is_row = results.len() > 1 || (results.len() == 1 && has_named_result);
    let row_columns = columns.get(&base.relation).filter(|_| base.kind == 'c');
    let returns = if &*told.type_sql == "void" {
        Returns::Void
    } else if let Some(columns) = row_columns {
        Returns::Row { relation: base.relation, columns: columns.as_slice().into() }
    } else if is_row {
        Returns::Table { columns: results.into() }
    } else if &*told.type_sql == "record" {
        Returns::Record
    } else {
        Returns::Scalar { type_sql: told.type_sql.clone(), base_type: base.type_sql.clone() }
    };
    Ok(Function {
        oid: get(row, "oid")?,
        schema: text(row, "schema")?,
        name: text(row, "name")?,
        comment: optional_text(row, "comment")?,
        arguments: arguments.into(),
        returns,
        returns_set: get(row, "returns_set")?,
        volatility: match character(row, "volatility")? {
            'i' => Volatility::Immutable,
            's' => Volatility::Stable,
            _ => Volatility::Volatile,
        },
    })
}

fn assemble(
    relations: Relations,
    foreign_keys: Vec<ForeignKey>,
    functions: Vec<Function>,
) -> Schema {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let mut schema = Schema { number, ..Schema::default() };
    for relation in relations.into_values() {
        let relation = Arc::new(relation);
        let name = (relation.schema.clone(), relation.name.clone());
        schema.by_oid.insert(relation.oid, Arc::clone(&relation));
        schema.relations.insert(name, relation);
    }
    for key in foreign_keys {
        let key = Arc::new(key);
        if key.to != key.from {
            schema.foreign_keys.entry(key.to).or_default().push(Arc::clone(&key));
        }
        schema.foreign_keys.entry(key.from).or_default().push(key);
    }
    for function in functions.into_iter().filter(is_callable) {
        let name = (function.schema.clone(), function.name.clone());
        schema.functions.entry(name).or_default().push(Arc::new(function));
    }
    schema
}

/// Whether all arguments can be named, or the only one takes a whole body or a row: what is called
/// for a row is a column of it.
fn is_callable(function: &Function) -> bool {
    let takes_body = |argument: &Argument| {
        matches!(&*argument.type_sql, "json" | "jsonb" | "text" | "bytea" | "xml")
    };
    match &*function.arguments {
        [only] if only.name.is_empty() => takes_body(only) || only.category == 'C',
        all => all.iter().all(|argument| !argument.name.is_empty()),
    }
}
