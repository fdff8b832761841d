//! The tree as SQL.
//!
//! In:     [`Node`]s, all their names from the catalog.
//! Out:    one `select` over them.
//! Never:  a name of the request, but for what columns of the answer are called.

use std::fmt;

use super::Source;
use super::filter::{self, Filter};
use super::resolve::{By, Limit, Node, Output, Term, Window};
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
        self.sql.push("select");
        self.outputs(node, alias, source);
        self.from(node, source, alias);
        if is_filtered {
            self.sql.push(" where ");
            self.filters(&node.filters, node, alias);
        }
        self.orders(&node.orders, alias);
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

    /// The list of what is selected.
    fn outputs(&mut self, node: &Node<'_>, alias: Alias, source: Source<'_>) {
        let mut separator = " ";
        for output in &node.outputs {
            match output {
                // The relation may have columns that the picture does not know yet. What a name is
                // given to may have columns that are not the relation's.
                Output::All if source == Source::Relation => {
                    self.sql.push(separator).push(&alias.to_string()).push(".*");
                    separator = ", ";
                }
                Output::All => {
                    for column in &node.relation.columns {
                        self.sql.push(separator).push(&alias.to_string()).push(".");
                        self.sql.name(&column.name);
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
                    self.sql.push(" as ").name(name);
                    separator = ", ";
                }
                Output::Embedded(_) => {}
            }
        }
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
            Filter::Related { .. } => {}
        }
    }

    fn orders(&mut self, orders: &[Term<'_>], alias: Alias) {
        for (position, term) in orders.iter().enumerate() {
            self.sql.push(if position == 0 { " order by " } else { ", " });
            match &term.by {
                By::Own(place) => place.render(alias, self.sql),
                By::Related { .. } => {}
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
    }
}
