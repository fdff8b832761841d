//! What is asked, with every name looked up: the tree that is rendered.
//!
//! In:     a [`Query`], the relation it is about, the [`Schema`].
//! Out:    [`Node`]: the target, or one embedding, with all that was said about it.
//! Never:  a part of the request left out in silence: what is about nothing is refused.

use axum::http::StatusCode;

use super::cast::Cast;
use super::field::Place;
use super::filter::{Filter, Scope};
use super::relationship::{self, Link};
use crate::rest::Problem;
use crate::rest::request::{At, Condition, Embed, Item, Order, Query, Range};
use crate::rest::schema::{Relation, Schema};

/// Rows of one relation: which of them, what of each.
#[derive(Debug)]
pub(super) struct Node<'a> {
    pub(super) relation: &'a Relation,
    /// In the order of the `select` list.
    pub(super) outputs: Vec<Output<'a>>,
    /// All must hold.
    pub(super) filters: Vec<Filter<'a>>,
    pub(super) orders: Vec<Term<'a>>,
    pub(super) window: Window,
    pub(super) embeddings: Vec<Embedding<'a>>,
}

impl<'a> Node<'a> {
    /// Whether its rows are ordered by what is embedded there.
    pub(super) fn orders_by(&self, position: usize) -> bool {
        self.orders.iter().any(|term| match term.by {
            By::Own(_) => false,
            By::Related { embedding, .. } => embedding == position,
        })
    }

    /// What its columns are called in an answer, in order.
    pub(super) fn names(&self) -> Vec<&'a str> {
        let mut names = Vec::with_capacity(self.outputs.len());
        for output in &self.outputs {
            match output {
                Output::All => {
                    names.extend(self.relation.columns.iter().map(|column| &*column.name));
                }
                Output::Field { name, .. } => names.push(name),
                Output::Embedded(position) => {
                    let embedding = &self.embeddings[*position];
                    if embedding.is_shown() && embedding.is_spread {
                        names.extend(embedding.node.names());
                    } else if embedding.is_shown() {
                        names.push(embedding.name);
                    }
                }
            }
        }
        names
    }
}

/// One item of a `select` list.
#[derive(Debug)]
pub(super) enum Output<'a> {
    /// All columns.
    All,
    /// A column, or something inside one.
    Field { place: Place<'a>, name: &'a str, cast: Option<Cast> },
    /// One of the embeddings.
    Embedded(usize),
}

/// Related rows.
#[derive(Debug)]
pub(super) struct Embedding<'a> {
    /// What the client calls it.
    pub(super) name: &'a str,
    pub(super) node: Node<'a>,
    /// How its rows are found.
    pub(super) link: Link<'a>,
    /// Rows of the parent without related ones are left out.
    pub(super) is_inner: bool,
    /// Its outputs become the parent's.
    pub(super) is_spread: bool,
}

impl Embedding<'_> {
    /// Whether there is anything of it in the answer.
    pub(super) fn is_shown(&self) -> bool {
        !self.node.outputs.is_empty()
            && self.node.outputs.iter().any(|output| match output {
                Output::All | Output::Field { .. } => true,
                Output::Embedded(embedding) => self.node.embeddings[*embedding].is_shown(),
            })
    }
}

/// One term of an order.
#[derive(Debug)]
pub(super) struct Term<'a> {
    pub(super) by: By<'a>,
    pub(super) descending: bool,
    pub(super) nulls_first: Option<bool>,
}

/// By what rows are ordered.
#[derive(Debug)]
pub(super) enum By<'a> {
    /// Something of their own.
    Own(Place<'a>),
    /// Something of the one row that is embedded.
    Related { embedding: usize, place: Place<'a> },
}

/// Which of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Window {
    pub(super) limit: Option<Limit>,
    pub(super) offset: Option<u64>,
}

/// Rows at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    /// As asked, if that is less than is allowed: a parameter.
    Asked(u64),
    /// As the settings have it: the same for every request, so part of the text.
    Allowed(u64),
}

impl Limit {
    pub(super) const fn rows(self) -> u64 {
        match self {
            Self::Asked(rows) | Self::Allowed(rows) => rows,
        }
    }
}

impl Window {
    fn new(range: Range, rows_max: Option<u64>) -> Self {
        let limit = match (range.limit, rows_max) {
            (Some(limit), rows_max) => {
                Some(Limit::Asked(rows_max.map_or(limit, |rows| rows.min(limit))))
            }
            (None, Some(rows)) => Some(Limit::Allowed(rows)),
            (None, None) => None,
        };
        Self { limit, offset: range.offset.filter(|&offset| offset > 0) }
    }
}

/// Embeddings in one request. Each is a join or a subquery to plan; what people write has less than
/// ten, and a request line would hold thousands.
const EMBEDDINGS_MAX: usize = 100;

/// Columns of one list, with those that its rows are ordered by: a row of Postgres has 1,664 at
/// most, of which joins take some.
const COLUMNS_MAX: usize = 1_500;

/// Looks up all names of a query.
///
/// # Errors
/// As [`super::read`].
pub(super) fn resolve<'a>(
    schema: &'a Schema,
    relation: &'a Relation,
    query: &'a Query,
    rows_max: Option<u64>,
) -> Result<Node<'a>, Problem> {
    if count(&query.select) > EMBEDDINGS_MAX {
        let expected = format!("at most {EMBEDDINGS_MAX} embedded resources");
        return Err(Problem::query("select parameter", expected));
    }
    let select = &query.select;
    let resolver = Resolver {
        schema,
        filters: &placed(select, &query.filters)?,
        orders: &placed(select, &query.orders)?,
        ranges: &placed(select, &query.ranges)?,
        rows_max,
    };
    let mut node = resolver.node(relation, select, &mut Vec::new())?;
    if select.is_empty() {
        node.outputs.push(Output::All);
    }
    Ok(node)
}

/// Something that was said, with the place of the embedding it is about: positions among the
/// embeddings of each level.
type Placed<'a, T> = (Vec<usize>, &'a T);

/// Looks up what everything is about.
///
/// # Errors
/// 400 `PGRST108`.
fn placed<'a, T>(items: &[Item], all: &'a [At<T>]) -> Result<Vec<Placed<'a, T>>, Problem> {
    all.iter().map(|at| Ok((place(items, &at.path)?, &at.what))).collect()
}

/// What was said about this place.
fn at<'a, 'b, T>(
    all: &'b [Placed<'a, T>],
    place: &'b [usize],
) -> impl Iterator<Item = &'a T> + use<'a, 'b, T> {
    all.iter().filter(move |(at, _)| at == place).map(|(_, what)| *what)
}

/// Where a path leads: to the first embedding with this alias, or this target.
///
/// # Errors
/// 400 `PGRST108`.
fn place(items: &[Item], path: &[String]) -> Result<Vec<usize>, Problem> {
    let mut items = items;
    let mut place = Vec::with_capacity(path.len());
    for name in path {
        let embeds: Vec<&Embed> = items
            .iter()
            .filter_map(|item| match item {
                Item::Embed(embed) => Some(embed),
                Item::All | Item::Field { .. } => None,
            })
            .collect();
        let position = embeds
            .iter()
            .position(|embed| embed.name() == name)
            .or_else(|| embeds.iter().position(|embed| embed.target == *name))
            .ok_or_else(|| not_embedded(name))?;
        items = &embeds[position].items;
        place.push(position);
    }
    Ok(place)
}

/// How many embeddings there are, at any depth.
fn count(items: &[Item]) -> usize {
    let below = items.iter().map(|item| match item {
        Item::All | Item::Field { .. } => 0,
        Item::Embed(embed) => 1 + count(&embed.items),
    });
    below.sum()
}

fn not_embedded(name: &str) -> Problem {
    let message = format!("'{name}' is not an embedded resource in this request");
    Problem::new(StatusCode::BAD_REQUEST, "PGRST108", message)
        .with_hint(format!("Verify that '{name}' is included in the 'select' query parameter."))
}

fn related_order(origin: &str, target: &str) -> Problem {
    let message = format!("A related order on '{target}' is not possible");
    Problem::new(StatusCode::BAD_REQUEST, "PGRST118", message).with_details(format!(
        "'{origin}' and '{target}' do not form a many-to-one or one-to-one relationship"
    ))
}

fn spread_many(origin: &str, target: &str) -> Problem {
    let message = format!("A spread operation on '{target}' is not possible");
    Problem::new(StatusCode::BAD_REQUEST, "PGRST119", message).with_details(format!(
        "'{origin}' and '{target}' do not form a many-to-one or one-to-one relationship"
    ))
}

/// A name that can be quoted: SQL has none that is empty.
///
/// # Errors
/// 400 `PGRST100`.
fn output_name(name: &str) -> Result<&str, Problem> {
    if name.is_empty() || name.contains('\0') {
        return Err(Problem::query("select parameter", "an alias of at least one character"));
    }
    Ok(name)
}

/// What all places of the tree share.
#[derive(Debug, Clone, Copy)]
struct Resolver<'a, 'b> {
    schema: &'a Schema,
    filters: &'b [Placed<'a, Condition>],
    orders: &'b [Placed<'a, Vec<Order>>],
    ranges: &'b [Placed<'a, Range>],
    rows_max: Option<u64>,
}

impl<'a> Resolver<'a, '_> {
    /// The rows of one relation, at one place of the tree.
    fn node(
        self,
        relation: &'a Relation,
        items: &'a [Item],
        place: &mut Vec<usize>,
    ) -> Result<Node<'a>, Problem> {
        let mut outputs = Vec::with_capacity(items.len());
        let mut embeddings: Vec<Embedding<'a>> = Vec::new();
        for item in items {
            outputs.push(match item {
                Item::All => Output::All,
                Item::Field { field, alias, cast } => {
                    let place = Place::find(Some(self.schema), relation, field)?;
                    let name = alias.as_deref().unwrap_or_else(|| place.output_name());
                    let cast = cast.as_deref().map(Cast::parse).transpose()?;
                    Output::Field { place, name: output_name(name)?, cast }
                }
                Item::Embed(embed) => {
                    place.push(embeddings.len());
                    embeddings.push(self.embedding(relation, embed, place)?);
                    place.pop();
                    Output::Embedded(embeddings.len() - 1)
                }
            });
        }
        let names: Vec<&str> = embeddings.iter().map(|embedding| embedding.name).collect();
        let scope = Scope { schema: Some(self.schema), relation, embeddings: &names };
        let filters = at(self.filters, place).map(|condition| Filter::resolve(scope, condition));
        let filters = filters.collect::<Result<_, _>>()?;
        let orders = at(self.orders, place).last().map_or(&[][..], Vec::as_slice);
        let orders = orders.iter().map(|order| self.term(relation, order, &embeddings));
        let orders = orders.collect::<Result<_, _>>()?;
        let range = at(self.ranges, place).fold(Range::default(), |range, next| Range {
            limit: next.limit.or(range.limit),
            offset: next.offset.or(range.offset),
        });
        let window = Window::new(range, self.rows_max);
        let node = Node { relation, outputs, filters, orders, window, embeddings };
        if node.names().len() + node.orders.len() > COLUMNS_MAX {
            let expected = format!("at most {COLUMNS_MAX} columns, with those of the order");
            return Err(Problem::query("select parameter", expected));
        }
        Ok(node)
    }

    fn embedding(
        self,
        parent: &'a Relation,
        embed: &'a Embed,
        place: &mut Vec<usize>,
    ) -> Result<Embedding<'a>, Problem> {
        let name = output_name(embed.name())?;
        let link = relationship::find(self.schema, parent, &embed.target, embed.hint.as_deref())?;
        if embed.spread && !link.is_to_one {
            return Err(spread_many(&parent.name, name));
        }
        let mut node = self.node(link.relation, &embed.items, place)?;
        if link.is_to_one {
            // There is one at most, unless none at all is wanted.
            node.window.limit =
                node.window.limit.filter(|limit| limit.rows() == 0).map(|_| Limit::Allowed(0));
        }
        Ok(Embedding { name, node, link, is_inner: embed.inner, is_spread: embed.spread })
    }

    fn term(
        self,
        relation: &'a Relation,
        order: &'a Order,
        embeddings: &[Embedding<'a>],
    ) -> Result<Term<'a>, Problem> {
        let by = match &order.relation {
            None => By::Own(Place::find(Some(self.schema), relation, &order.field)?),
            Some(name) => {
                let mut among = embeddings.iter();
                let embedding = among.position(|embedding| embedding.name == name);
                let embedding = embedding.ok_or_else(|| not_embedded(name))?;
                let Embedding { node, link, .. } = &embeddings[embedding];
                if !link.is_to_one {
                    return Err(related_order(&relation.name, name));
                }
                let place = Place::find(Some(self.schema), node.relation, &order.field)?;
                By::Related { embedding, place }
            }
        };
        Ok(Term { by, descending: order.descending, nulls_first: order.nulls_first })
    }
}
