//! What is embedded, as SQL.
//!
//! In:     [`Embedding`]s, their parents in a `from`.
//! Out:    subqueries in the parent's list, joins beside it, conditions on it.
//! Never:  more rows of the parent than it has, and fewer only where that was asked for.
//!
//! Most embeddings are subqueries in the list. Postgres runs them for the rows of the page alone,
//! after it has sorted and cut; joined, they would be looked up for every row that is sorted. A join
//! is for what a subquery cannot give: several columns (spread), something to order by, or, where
//! the one related row is demanded, having found it already. Whether there are any rows at all is
//! asked with `exists`, which Postgres makes a semi-join or an anti-join of.

use super::Source;
use super::relationship::Link;
use super::render::{Alias, List, Renderer, Scan};
use super::resolve::{By, Embedding, Node};

impl Renderer<'_> {
    /// What each embedding that is joined is called.
    pub(super) fn joins(&mut self, node: &Node<'_>) -> Vec<Option<Alias>> {
        let embeddings = node.embeddings.iter().enumerate();
        let joins = embeddings.map(|(position, embedding)| {
            let is_needed = embedding.is_spread || embedding.is_inner;
            let is_joined = embedding.link.is_to_one
                && (is_needed && embedding.is_shown() || node.orders_by(position));
            is_joined.then(|| self.alias())
        });
        joins.collect()
    }

    /// An embedding in the list of its parent.
    pub(super) fn embedded(
        &mut self,
        node: &Node<'_>,
        position: usize,
        scan: &Scan<'_>,
        list: &mut List,
    ) {
        let embedding = &node.embeddings[position];
        if !embedding.is_shown() {
            return;
        }
        let Some(join) = scan.joins[position] else {
            list.begin(self.sql);
            self.subquery(embedding, scan.alias);
            list.end(embedding.name, self.sql);
            return;
        };
        if embedding.is_spread {
            for (column, name) in embedding.node.names().into_iter().enumerate() {
                list.begin(self.sql).push(&format!("{join}.c{column}"));
                list.end(name, self.sql);
            }
        } else if node.orders_by(position) {
            list.begin(self.sql).push(&format!("{join}.j"));
            list.end(embedding.name, self.sql);
        } else {
            list.begin(self.sql).push(&format!("pg_catalog.row_to_json({join}.*)"));
            list.end(embedding.name, self.sql);
        }
    }

    /// The related rows of one row as JSON: an array, or the one row or NULL.
    fn subquery(&mut self, embedding: &Embedding<'_>, parent: Alias) {
        let Embedding { node, link, .. } = embedding;
        self.sql.push(if link.is_to_one {
            "(select pg_catalog.row_to_json(r.*) from (select"
        } else {
            "(select coalesce(pg_catalog.json_agg(r.*), '[]') from (select"
        });
        let scan = self.scan(node);
        self.list(node, &scan, &mut List::named());
        self.related(node, link, &scan, parent);
        self.orders(node, &scan);
        self.window(node.window);
        if link.is_to_one && node.window.limit.is_none() {
            // A key of a view may say that there is one where there are more.
            self.sql.push(" limit 1");
        }
        self.sql.push(") as r)");
    }

    /// `left join lateral (…) as … on true` for each embedding that is joined.
    pub(super) fn join(&mut self, node: &Node<'_>, scan: &Scan<'_>) {
        for (position, embedding) in node.embeddings.iter().enumerate() {
            let Some(join) = scan.joins.get(position).copied().flatten() else { continue };
            self.sql.push(if embedding.is_inner { " join" } else { " left join" });
            self.sql.push(" lateral (select");
            self.joined_list(node, position, scan.alias);
            self.sql.push(&format!(") as {join} on true"));
        }
    }

    /// What the join of an embedding selects, and from where: what is shown of it (as `j` where
    /// there is more than that), and what the parent is ordered by (as `o`, with the place in that
    /// order).
    fn joined_list(&mut self, parent: &Node<'_>, position: usize, alias: Alias) {
        let Embedding { node, link, is_spread, .. } = &parent.embeddings[position];
        let is_shown = parent.embeddings[position].is_shown();
        let is_ordering = parent.orders_by(position);
        let scan = self.scan(node);
        let mut list = if *is_spread { List::numbered() } else { List::named() };
        if is_shown && is_ordering && !is_spread {
            list.begin(self.sql).push("(select pg_catalog.row_to_json(r.*) from (select");
            self.list(node, &scan, &mut List::named());
            self.sql.push(") as r) as j");
        } else if is_shown {
            self.list(node, &scan, &mut list);
        }
        for (term, order) in parent.orders.iter().enumerate() {
            match &order.by {
                By::Related { embedding, place } if *embedding == position => {
                    list.begin(self.sql);
                    place.render(scan.alias, self.sql);
                    self.sql.push(&format!(" as o{term}"));
                }
                By::Related { .. } | By::Own(_) => {}
            }
        }
        self.related(node, link, &scan, alias);
        self.window(node.window);
    }

    /// Whether a row of `parent` has related rows.
    pub(super) fn exists(&mut self, embedding: &Embedding<'_>, parent: Alias) {
        let Embedding { node, link, .. } = embedding;
        let scan = Scan { alias: self.alias(), source: Source::Relation, joins: Vec::new() };
        self.sql.push("exists (select");
        self.related(node, link, &scan, parent);
        // A limit of one or more says nothing about whether there are any.
        let is_none = node.window.limit.is_some_and(|limit| limit.rows() == 0);
        if is_none || node.window.offset.is_some() {
            self.window(node.window);
        }
        self.sql.push(")");
    }

    /// That there are related rows, for each embedding that demands it and is not joined.
    pub(super) fn required(&mut self, node: &Node<'_>, scan: &Scan<'_>) {
        for (position, embedding) in node.embeddings.iter().enumerate() {
            let is_joined = scan.joins.get(position).is_some_and(Option::is_some);
            if embedding.is_inner && !is_joined {
                self.sql.push(" and ");
                self.exists(embedding, scan.alias);
            }
        }
    }

    fn scan(&mut self, node: &Node<'_>) -> Scan<'static> {
        Scan { alias: self.alias(), source: Source::Relation, joins: self.joins(node) }
    }

    /// `from … where …` of the rows related to one of `parent`.
    fn related(&mut self, node: &Node<'_>, link: &Link<'_>, scan: &Scan<'_>, parent: Alias) {
        self.from(node, scan);
        let between = link.junction.map(|junction| (junction, self.alias()));
        if let Some((junction, alias)) = &between {
            self.sql.push(" cross join ");
            self.sql.qualified(&junction.relation.schema, &junction.relation.name);
            self.sql.push(&format!(" as {alias}"));
        }
        self.join(node, scan);
        self.sql.push(" where ");
        let there = between.map_or(scan.alias, |(_, alias)| alias);
        self.equal(there, link.there, parent, link.here);
        if let Some((junction, alias)) = between {
            self.sql.push(" and ");
            self.equal(scan.alias, junction.there, alias, junction.here);
        }
        if !node.filters.is_empty() {
            self.sql.push(" and ");
            self.filters(&node.filters, node, scan.alias);
        }
        self.required(node, scan);
    }

    /// Columns of one relation are equal to those of another.
    fn equal(&mut self, one: Alias, columns: &[Box<str>], other: Alias, others: &[Box<str>]) {
        for (position, (column, same)) in columns.iter().zip(others).enumerate() {
            self.sql.push(if position == 0 { "" } else { " and " });
            self.sql.push(&format!("{one}.")).name(column).push(" = ");
            self.sql.push(&format!("{other}.")).name(same);
        }
    }
}
