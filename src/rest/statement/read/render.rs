//! The tree as SQL.
//!
//! In:     [`Node`]s, all their names from the catalog.
//! Out:    one `select` over them.
//! Never:  a name of the request, but for what columns of the answer are called.

use std::fmt;

use super::Source;
use super::filter::{self, Filter};
use super::resolve::{By, Limit, Node, Output, Window};
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

/// A node in a `from`.
#[derive(Debug)]
pub(super) struct Scan<'s> {
    pub(super) alias: Alias,
    pub(super) source: Source<'s>,
    /// Which of its embeddings are joined, and what they are called.
    pub(super) joins: Vec<Option<Alias>>,
}

/// Writes one statement.
#[derive(Debug)]
pub(super) struct Renderer<'s> {
    pub(super) sql: &'s mut Sql,
    /// The next alias that nothing has.
    next: u32,
}

impl<'s> Renderer<'s> {
    pub(super) fn new(sql: &'s mut Sql) -> Self {
        Self { sql, next: 1 }
    }

    /// An alias that nothing has.
    pub(super) fn alias(&mut self) -> Alias {
        let alias = Alias(self.next);
        self.next += 1;
        alias
    }

    /// `select … from … where … order by … limit …` of the target.
    pub(super) fn target(&mut self, node: &Node<'_>, source: Source<'_>, is_filtered: bool) {
        let scan = Scan { alias: Alias::TARGET, source, joins: self.joins(node) };
        self.sql.push("select");
        self.list(node, &scan, &mut List::named());
        self.from(node, &scan);
        self.join(node, &scan);
        self.sql.push(" where ");
        let filters = if is_filtered { node.filters.as_slice() } else { &[] };
        self.filters(filters, node, scan.alias);
        self.required(node, &scan);
        self.orders(node, &scan);
        self.window(node.window);
    }

    /// All rows that match, nothing of each.
    pub(super) fn matching(&mut self, node: &Node<'_>, source: Source<'_>) {
        let scan = Scan { alias: self.alias(), source, joins: Vec::new() };
        self.sql.push("select");
        self.from(node, &scan);
        self.sql.push(" where ");
        self.filters(&node.filters, node, scan.alias);
        self.required(node, &scan);
    }

    /// Rows there are without limit and offset, as text, counted up to `most`; for a `select` that
    /// aggregates the rows of the page.
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

    /// `from … as …`
    pub(super) fn from(&mut self, node: &Node<'_>, scan: &Scan<'_>) {
        self.sql.push(" from ");
        match scan.source {
            Source::Relation => self.sql.qualified(&node.relation.schema, &node.relation.name),
            Source::Named(name) => self.sql.name(name),
        };
        self.sql.push(&format!(" as {}", scan.alias));
    }

    /// What is selected.
    pub(super) fn list(&mut self, node: &Node<'_>, scan: &Scan<'_>, list: &mut List) {
        let alias = scan.alias;
        for output in &node.outputs {
            match output {
                // The relation may have columns that the picture does not know yet. What a name is
                // given to may have columns that are not the relation's.
                Output::All if scan.source == Source::Relation && !list.is_numbered => {
                    list.begin(self.sql).push(&format!("{alias}.*"));
                }
                Output::All => {
                    for column in &node.relation.columns {
                        list.begin(self.sql).push(&format!("{alias}.")).name(&column.name);
                        list.end(&column.name, self.sql);
                    }
                }
                Output::Field { place, name, cast } => {
                    list.begin(self.sql);
                    if let Some(cast) = cast {
                        self.sql.push("cast(");
                        place.render(alias, self.sql);
                        self.sql.push(" as ");
                        cast.render(self.sql);
                        self.sql.push(")");
                    } else {
                        place.render(alias, self.sql);
                    }
                    list.end(name, self.sql);
                }
                Output::Embedded(position) => self.embedded(node, *position, scan, list),
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
        empty: &str,
        node: &Node<'_>,
        alias: Alias,
    ) {
        if filters.is_empty() {
            self.sql.push(empty);
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

    /// `order by …`
    pub(super) fn orders(&mut self, node: &Node<'_>, scan: &Scan<'_>) {
        for (position, term) in node.orders.iter().enumerate() {
            self.sql.push(if position == 0 { " order by " } else { ", " });
            match &term.by {
                By::Own(place) => place.render(scan.alias, self.sql),
                By::Related { embedding, .. } => {
                    let join = scan.joins[*embedding].expect("what orders is joined");
                    self.sql.push(&format!("{join}.o{position}"));
                }
            }
            self.sql.push(if term.descending { " desc" } else { "" });
            self.sql.push(match term.nulls_first {
                Some(true) => " nulls first",
                Some(false) => " nulls last",
                None => "",
            });
        }
    }

    /// `limit … offset …`
    pub(super) fn window(&mut self, window: Window) {
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
}

/// A list of columns in the making.
#[derive(Debug)]
pub(super) struct List {
    /// How many there are so far.
    len: usize,
    /// They are called `c0`, `c1`, …, so that each name is there once.
    is_numbered: bool,
}

impl List {
    /// Its columns are called what the client calls them.
    pub(super) const fn named() -> Self {
        Self { len: 0, is_numbered: false }
    }

    /// Its columns are called by their places.
    pub(super) const fn numbered() -> Self {
        Self { len: 0, is_numbered: true }
    }

    /// Before the expression of the next column.
    pub(super) fn begin<'s>(&mut self, sql: &'s mut Sql) -> &'s mut Sql {
        sql.push(if self.len == 0 { " " } else { ", " });
        self.len += 1;
        sql
    }

    /// Behind it.
    pub(super) fn end(&self, name: &str, sql: &mut Sql) {
        sql.push(" as ");
        if self.is_numbered {
            sql.push(&format!("c{}", self.len - 1));
        } else {
            sql.name(name);
        }
    }
}
