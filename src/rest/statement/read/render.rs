//! The tree as SQL.
//!
//! In:     [`Node`]s, all their names from the catalog.
//! Out:    one `select` over them.
//! Never:  a name of the request, but for what columns of the answer are called.

use std::fmt;

use super::Source;
use super::filter::{self, Filter};
use super::relationship::Link;
use super::resolve::{By, Embedding, Limit, Node, Output, Window};
use crate::rest::sql::Sql;

/// What a relation is called within a statement: `t0`, `t1`, …, the target first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Alias(u32);

impl Alias {
    /// Of the target.
    pub(super) const TARGET: Self = Self(0);
}

impl fmt::Display for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}", self.0)
    }
}

/// Writes one statement.
#[derive(Debug)]
pub(super) struct Renderer<'s> {
    sql: &'s mut Sql,
    /// The next alias that nothing has.
    next: u32,
}

impl<'s> Renderer<'s> {
    pub(super) fn new(sql: &'s mut Sql) -> Self {
        Self { sql, next: 1 }
    }

    /// An alias that nothing has.
    fn alias(&mut self) -> Alias {
        let alias = Alias(self.next);
        self.next += 1;
        alias
    }

    /// `select … from … where … order by … limit …` of the target.
    pub(super) fn target(&mut self, node: &Node<'_>, source: Source<'_>, is_filtered: bool) {
        let alias = Alias::TARGET;
        let joins = self.joins(node);
        self.sql.push("select");
        self.outputs(node, alias, source, &joins, &mut Names::Own);
        self.from(node, source, alias);
        self.join(node, alias, &joins);
        self.sql.push(" where ");
        if is_filtered {
            self.filters(&node.filters, node, alias);
        } else {
            self.sql.push("true");
        }
        self.required(node, alias, &joins);
        self.orders(node, alias, &joins);
        self.window(node.window);
    }

    /// `from … as …`
    fn from(&mut self, node: &Node<'_>, source: Source<'_>, alias: Alias) {
        self.sql.push(" from ");
        match source {
            Source::Relation => self.sql.qualified(&node.relation.schema, &node.relation.name),
            Source::Named(name) => self.sql.name(name),
        };
        self.sql.push(" as ").push(&alias.to_string());
    }

    /// What each embedding that is joined is called. The others are subqueries in the list, which
    /// Postgres runs for the rows of the page alone, after it has sorted and cut; a join is for what
    /// a subquery cannot give: several columns, an order, or rows that are left out.
    fn joins(&mut self, node: &Node<'_>) -> Vec<Option<Alias>> {
        let embeddings = node.embeddings.iter().enumerate();
        let joined = embeddings.map(|(position, embedding)| {
            let is_shown = embedding.is_shown();
            let is_joined = embedding.link.is_to_one
                && (is_shown && (embedding.is_spread || embedding.is_inner)
                    || node.orders_by(position));
            is_joined.then(|| self.alias())
        });
        joined.collect()
    }

    /// The list of what is selected.
    fn outputs(
        &mut self,
        node: &Node<'_>,
        alias: Alias,
        source: Source<'_>,
        joins: &[Option<Alias>],
        names: &mut Names,
    ) {
        let mut separator = " ";
        for output in &node.outputs {
            match output {
                // The relation may have columns that the picture does not know yet. What a name is
                // given to may have columns that are not the relation's.
                Output::All if source == Source::Relation && *names == Names::Own => {
                    self.sql.push(separator).push(&alias.to_string()).push(".*");
                    separator = ", ";
                }
                Output::All => {
                    for column in &node.relation.columns {
                        self.sql.push(separator).push(&alias.to_string()).push(".");
                        self.sql.name(&column.name);
                        names.give(&column.name, self.sql);
                        separator = ", ";
                    }
                }
                Output::Field { place, name, cast } => {
                    self.sql.push(separator);
                    if let Some(cast) = cast {
                        self.sql.push("cast(");
                        place.render(alias, self.sql);
                        self.sql.push(" as ");
                        cast.render(self.sql);
                        self.sql.push(")");
                    } else {
                        place.render(alias, self.sql);
                    }
                    names.give(name, self.sql);
                    separator = ", ";
                }
                Output::Embedded(position) => {
                    let embedding = &node.embeddings[*position];
                    if !embedding.is_shown() {
                        continue;
                    }
                    match joins[*position] {
                        Some(join) if embedding.is_spread => {
                            for (column, name) in embedding.node.names().into_iter().enumerate() {
                                self.sql.push(separator).push(&join.to_string()).push(".");
                                self.sql.push(&numbered(column));
                                names.give(name, self.sql);
                                separator = ", ";
                            }
                        }
                        Some(join) => {
                            self.sql.push(separator);
                            if node.orders_by(*position) {
                                self.sql.push(&join.to_string()).push(".j");
                            } else {
                                self.sql.push("pg_catalog.row_to_json(").push(&join.to_string());
                                self.sql.push(".*)");
                            }
                            names.give(embedding.name, self.sql);
                            separator = ", ";
                        }
                        None => {
                            self.sql.push(separator);
                            self.subquery(embedding, alias);
                            names.give(embedding.name, self.sql);
                            separator = ", ";
                        }
                    }
                }
            }
        }
    }

    /// The related rows of one row as JSON: an array, or the one row or NULL.
    fn subquery(&mut self, embedding: &Embedding<'_>, parent: Alias) {
        self.sql.push(if embedding.link.is_to_one {
            "(select pg_catalog.row_to_json(r.*) from ("
        } else {
            "(select coalesce(pg_catalog.json_agg(r.*), '[]') from ("
        });
        let Embedding { node, link, .. } = embedding;
        let alias = self.alias();
        let joins = self.joins(node);
        self.sql.push("select");
        self.outputs(node, alias, Source::Relation, &joins, &mut Names::Own);
        self.related(node, link, alias, parent, &joins);
        self.orders(node, alias, &joins);
        self.window(node.window);
        if link.is_to_one && node.window.limit.is_none() {
            // A key of a view may say that there is one where there are more.
            self.sql.push(" limit 1");
        }
        self.sql.push(") as r)");
    }

    /// `left join lateral (…) as … on true` for each embedding that is joined.
    fn join(&mut self, node: &Node<'_>, parent: Alias, joins: &[Option<Alias>]) {
        for (position, (embedding, join)) in node.embeddings.iter().zip(joins).enumerate() {
            let Some(join) = join else { continue };
            self.sql.push(if embedding.is_inner { " join" } else { " left join" });
            self.sql.push(" lateral (select");
            let Embedding { node: inner, link, .. } = embedding;
            let alias = self.alias();
            let joins = self.joins(inner);
            let is_ordering = node.orders_by(position);
            let is_row = is_ordering && !embedding.is_spread && embedding.is_shown();
            if is_row {
                self.sql.push(" (select pg_catalog.row_to_json(r.*) from (select");
            }
            let mut names = if embedding.is_spread { Names::Numbered(0) } else { Names::Own };
            if embedding.is_shown() {
                self.outputs(inner, alias, Source::Relation, &joins, &mut names);
            }
            if is_row {
                self.sql.push(") as r) as j");
            }
            if is_ordering {
                let mut separator = if embedding.is_shown() { ", " } else { " " };
                for (term, order) in node.orders.iter().enumerate() {
                    if let By::Related { embedding, place } = &order.by
                        && *embedding == position
                    {
                        self.sql.push(separator);
                        place.render(alias, self.sql);
                        self.sql.push(&format!(" as o{term}"));
                        separator = ", ";
                    }
                }
            }
            self.related(inner, link, alias, parent, &joins);
            self.window(inner.window);
            self.sql.push(") as ").push(&join.to_string()).push(" on true");
        }
    }

    /// `from … where …` of the rows related to one of `parent`.
    fn related(
        &mut self,
        node: &Node<'_>,
        link: &Link<'_>,
        alias: Alias,
        parent: Alias,
        joins: &[Option<Alias>],
    ) {
        self.from(node, Source::Relation, alias);
        let junction = link.junction.map(|junction| (junction, self.alias()));
        if let Some((junction, between)) = &junction {
            self.sql.push(" cross join ");
            self.sql.qualified(&junction.relation.schema, &junction.relation.name);
            self.sql.push(" as ").push(&between.to_string());
        }
        self.join(node, alias, joins);
        self.sql.push(" where ");
        let there = junction.map_or(alias, |(_, between)| between);
        self.equal(there, link.there, parent, link.here);
        if let Some((junction, between)) = &junction {
            self.sql.push(" and ");
            self.equal(alias, junction.there, *between, junction.here);
        }
        if !node.filters.is_empty() {
            self.sql.push(" and ");
            self.filters(&node.filters, node, alias);
        }
        self.required(node, alias, joins);
    }

    /// Columns of one relation are equal to those of another.
    fn equal(&mut self, one: Alias, columns: &[Box<str>], other: Alias, others: &[Box<str>]) {
        for (position, (column, same)) in columns.iter().zip(others).enumerate() {
            self.sql.push(if position == 0 { "" } else { " and " });
            self.sql.push(&one.to_string()).push(".").name(column).push(" = ");
            self.sql.push(&other.to_string()).push(".").name(same);
        }
    }

    /// That there are related rows, for each embedding that demands it and is not joined.
    fn required(&mut self, node: &Node<'_>, alias: Alias, joins: &[Option<Alias>]) {
        for (position, embedding) in node.embeddings.iter().enumerate() {
            let is_joined = joins.get(position).is_some_and(Option::is_some);
            if embedding.is_inner && !is_joined {
                self.sql.push(" and ");
                self.exists(embedding, alias);
            }
        }
    }

    /// Whether a row of `parent` has related rows.
    fn exists(&mut self, embedding: &Embedding<'_>, parent: Alias) {
        let Embedding { node, link, .. } = embedding;
        let alias = self.alias();
        self.sql.push("exists (select");
        self.related(node, link, alias, parent, &[]);
        // A limit of one or more says nothing about whether there are any.
        let is_none = node.window.limit.is_some_and(|limit| limit.rows() == 0);
        if is_none || node.window.offset.is_some() {
            self.window(node.window);
        }
        self.sql.push(")");
    }

    /// All of these conditions, `true` without any.
    pub(super) fn filters(&mut self, filters: &[Filter<'_>], node: &Node<'_>, alias: Alias) {
        self.joined(filters, " and ", "true", node, alias);
    }

    /// Conditions with a word in between, each in parentheses.
    fn joined(
        &mut self,
        filters: &[Filter<'_>],
        word: &str,
        none: &str,
        node: &Node<'_>,
        alias: Alias,
    ) {
        if filters.is_empty() {
            self.sql.push(none);
        }
        for (position, filter) in filters.iter().enumerate() {
            self.sql.push(if position == 0 { "" } else { word }).push("(");
            self.filter(filter, node, alias);
            self.sql.push(")");
        }
    }

    fn filter(&mut self, filter: &Filter<'_>, node: &Node<'_>, alias: Alias) {
        match filter {
            Filter::All(filters) => self.joined(filters, " and ", "true", node, alias),
            Filter::Any(filters) => self.joined(filters, " or ", "false", node, alias),
            Filter::Not(filter) => {
                self.sql.push("not (");
                self.filter(filter, node, alias);
                self.sql.push(")");
            }
            Filter::Compare(place, test) => filter::compare(place, test, alias, self.sql),
            Filter::Related { embedding, is_present } => {
                self.sql.push(if *is_present { "" } else { "not " });
                self.exists(&node.embeddings[*embedding], alias);
            }
        }
    }

    fn orders(&mut self, node: &Node<'_>, alias: Alias, joins: &[Option<Alias>]) {
        for (position, term) in node.orders.iter().enumerate() {
            self.sql.push(if position == 0 { " order by " } else { ", " });
            match &term.by {
                By::Own(place) => place.render(alias, self.sql),
                By::Related { embedding, .. } => {
                    let join = joins[*embedding].expect("what orders is joined");
                    self.sql.push(&format!("{join}.o{position}"));
                }
            }
            self.sql.push(if term.descending { " desc" } else { "" });
            match term.nulls_first {
                Some(true) => self.sql.push(" nulls first"),
                Some(false) => self.sql.push(" nulls last"),
                None => self.sql,
            };
        }
    }

    /// `limit … offset …`
    fn window(&mut self, window: Window) {
        if let Some(limit) = window.limit {
            self.sql.push(" limit ");
            self.limit(limit);
        }
        if let Some(offset) = window.offset {
            self.sql.push(" offset ");
            self.number(offset);
        }
    }

    fn limit(&mut self, limit: Limit) {
        match limit {
            Limit::Asked(rows) => self.number(rows),
            Limit::Allowed(rows) => {
                self.sql.push(&rows.to_string());
            }
        }
    }

    /// A number of rows as a parameter; more than Postgres can count is the most it can.
    fn number(&mut self, rows: u64) {
        let rows = i64::try_from(rows).unwrap_or(i64::MAX);
        self.sql.value(rows.to_string()).push("::bigint");
    }

    /// Rows there are without limit and offset, as text; `rows` are those of the page.
    pub(super) fn total(&mut self, node: &Node<'_>, source: Source<'_>, most: Option<u64>) {
        let Window { limit, offset } = node.window;
        if limit.is_none() && offset.is_none() {
            self.sql.push("pg_catalog.count(*)::pg_catalog.text");
            return;
        }
        // A page that is not full says how many there are, and nothing is counted a second time:
        // Postgres runs such a subquery only when its value is asked for.
        self.sql.push("(case when ");
        if let Some(limit) = limit {
            self.sql.push("pg_catalog.count(*) < ");
            self.limit(limit);
        }
        if limit.is_some() && offset.is_some() {
            self.sql.push(" and ");
        }
        if offset.is_some() {
            self.sql.push("pg_catalog.count(*) > 0");
        }
        self.sql.push(" then pg_catalog.count(*)");
        if let Some(offset) = offset {
            self.sql.push(" + ");
            self.number(offset);
        }
        self.sql.push(" else (select pg_catalog.count(*) from (");
        self.matching(node, source);
        if let Some(rows) = most {
            self.sql.push(" limit ").push(&rows.to_string());
        }
        self.sql.push(") as c) end)::pg_catalog.text");
    }

    /// All rows that match, nothing of each.
    pub(super) fn matching(&mut self, node: &Node<'_>, source: Source<'_>) {
        let alias = self.alias();
        self.sql.push("select");
        self.from(node, source, alias);
        self.sql.push(" where ");
        self.filters(&node.filters, node, alias);
        self.required(node, alias, &[]);
    }
}

/// What columns of a list are called.
#[derive(Debug, PartialEq, Eq)]
enum Names {
    /// As the client knows them.
    Own,
    /// By their place, so that each name is there once; this many so far.
    Numbered(usize),
}

impl Names {
    /// Writes the name of the column whose expression was just written.
    fn give(&mut self, name: &str, sql: &mut Sql) {
        sql.push(" as ");
        match self {
            Self::Own => sql.name(name),
            Self::Numbered(next) => {
                *next += 1;
                sql.push(&numbered(*next - 1))
            }
        };
    }
}

/// The name of a column that has its place as name.
fn numbered(place: usize) -> String {
    format!("c{place}")
}
