//! Which foreign keys lead from a relation to what is embedded in it.
//!
//! In:     the relation, the target as the client wrote it, perhaps a hint.
//! Out:    [`Link`]: the one way there.
//! Never:  a guess: several ways are an error that lists them.
//! Source: `docs.postgrest.org/en/v12/references/api/resource_embedding.html`

use std::sync::Arc;

use axum::http::StatusCode;
use serde_json::json;

use super::field::is_row_of;
use super::similar::closest;
use crate::rest::Problem;
use crate::rest::schema::{ForeignKey, Relation, Returns, Schema};

/// How the related rows of one row are found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link<'a> {
    /// Where they are.
    pub(super) relation: &'a Relation,
    /// At most one for each row.
    pub(super) is_to_one: bool,
    /// Columns of the parent.
    pub(super) here: &'a [Box<str>],
    /// Columns that are equal to them: of the junction, or of the relation.
    pub(super) there: &'a [Box<str>],
    /// A table in between.
    pub(super) junction: Option<Junction<'a>>,
}

/// A table that relates rows of two others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Junction<'a> {
    /// The table.
    pub(super) relation: &'a Relation,
    /// Its columns that refer to the target.
    pub(super) here: &'a [Box<str>],
    /// The target's columns.
    pub(super) there: &'a [Box<str>],
}

/// The one way from `origin` to `target`.
///
/// # Errors
/// 400 `PGRST200` when there is none, 300 `PGRST201` when there are several.
pub(super) fn find<'a>(
    schema: &'a Schema,
    origin: &'a Relation,
    target: &str,
    hint: Option<&str>,
) -> Result<Link<'a>, Problem> {
    let ways = ways(schema, origin);
    let mut matching = ways.iter().filter(|way| way.is_meant(origin, target, hint));
    match (matching.next(), matching.next()) {
        (Some(way), None) => Ok(way.link()),
        (Some(_), Some(_)) => {
            let matching = ways.iter().filter(|way| way.is_meant(origin, target, hint));
            Err(ambiguous(origin, target, &matching.collect::<Vec<_>>()))
        }
        (None, _) if is_computed(schema, origin, target) => {
            Err(Problem::not_implemented("computed relationships"))
        }
        (None, _) => Err(none(schema, origin, target, hint, &ways)),
    }
}

/// One way from a relation to another.
#[derive(Debug, Clone, Copy)]
struct Way<'a> {
    /// Where it leads.
    to: &'a Relation,
    by: By<'a>,
}

#[derive(Debug, Clone, Copy)]
enum By<'a> {
    /// The origin refers to the target.
    Reference(&'a ForeignKey),
    /// The target refers to the origin.
    Referrers(&'a ForeignKey),
    /// A table refers to both: to the origin with the first key, to the target with the second.
    Junction(&'a Relation, &'a ForeignKey, &'a ForeignKey),
}

/// All ways from a relation to others of its schema.
fn ways<'a>(schema: &'a Schema, origin: &Relation) -> Vec<Way<'a>> {
    let relation = |oid: u32| schema.by_oid.get(&oid).map(Arc::as_ref);
    let mut ways = Vec::new();
    for key in schema.foreign_keys_of(origin.oid) {
        if key.from == origin.oid {
            ways.extend(relation(key.to).map(|to| Way { to, by: By::Reference(key) }));
        }
        if key.to != origin.oid {
            continue;
        }
        let Some(from) = relation(key.from) else { continue };
        ways.push(Way { to: from, by: By::Referrers(key) });
        if !key.in_primary_key {
            continue;
        }
        for other in schema.foreign_keys_of(from.oid) {
            if other.from == from.oid && other.in_primary_key && !Arc::ptr_eq(other, key) {
                let by = By::Junction(from, key, other);
                ways.extend(relation(other.to).map(|to| Way { to, by }));
            }
        }
    }
    ways.retain(|way| way.to.schema == origin.schema);
    ways
}

impl<'a> Way<'a> {
    /// Whether this is what the client wrote. A target is the name of a relation, or of a foreign
    /// key or its one column on our side; a hint is a foreign key, a column on either side, or a
    /// junction. A relation that refers to itself: by its name the rows that refer to this one, by
    /// the name of the column the row that this one refers to.
    fn is_meant(&self, origin: &Relation, target: &str, hint: Option<&str>) -> bool {
        let is_self = self.to.oid == origin.oid;
        let is_name = *self.to.name == *target;
        let is = |columns: &[Box<str>], name: &str| matches!(columns, [one] if **one == *name);
        match (self.by, hint) {
            (By::Reference(key), None) => {
                let is_key = *key.name == *target && !is_self;
                let is_column = is(&key.from_columns, target);
                is_name && !is_self || (is_key || is_column) && !self.to.is_view
            }
            (By::Referrers(key), None) => {
                is_name || *key.name == *target && !is_self && !self.to.is_view
            }
            (By::Junction(..), None) => is_name && !is_self,
            (By::Reference(key), Some(hint)) => {
                let is_column = is(&key.from_columns, hint) || is(&key.to_columns, hint);
                is_name && !is_self && (*key.name == *hint || is_column)
            }
            (By::Referrers(key), Some(hint)) => {
                let is_theirs = is(&key.from_columns, hint);
                let is_ours = is(&key.to_columns, hint) && !is_self;
                is_name && (*key.name == *hint || is_theirs || is_ours)
            }
            (By::Junction(junction, _, key), Some(hint)) => {
                is_name && (*junction.name == *hint || *key.name == *hint)
            }
        }
    }

    fn link(&self) -> Link<'a> {
        let relation = self.to;
        match self.by {
            By::Reference(key) => Link {
                relation,
                is_to_one: true,
                here: &key.from_columns,
                there: &key.to_columns,
                junction: None,
            },
            By::Referrers(key) => Link {
                relation,
                is_to_one: key.one_to_one,
                here: &key.to_columns,
                there: &key.from_columns,
                junction: None,
            },
            By::Junction(junction, near, far) => Link {
                relation,
                is_to_one: false,
                here: &near.to_columns,
                there: &near.from_columns,
                junction: Some(Junction {
                    relation: junction,
                    here: &far.from_columns,
                    there: &far.to_columns,
                }),
            },
        }
    }

    /// What a list of several ways says of this one.
    fn described(&self, origin: &Relation) -> serde_json::Value {
        let with = |name: &str, columns: &[Box<str>]| format!("{name}({})", columns.join(", "));
        let (cardinality, relationship) = match self.by {
            By::Reference(key) => {
                let many = if key.one_to_one { "one-to-one" } else { "many-to-one" };
                let from = with(&origin.name, &key.from_columns);
                let to = with(&self.to.name, &key.to_columns);
                (many, format!("{} using {from} and {to}", key.name))
            }
            By::Referrers(key) => {
                let many = if key.one_to_one { "one-to-one" } else { "one-to-many" };
                let to = with(&origin.name, &key.to_columns);
                let from = with(&self.to.name, &key.from_columns);
                (many, format!("{} using {to} and {from}", key.name))
            }
            By::Junction(junction, near, far) => {
                let near = with(&near.name, &near.from_columns);
                let far = with(&far.name, &far.from_columns);
                ("many-to-many", format!("{} using {near} and {far}", junction.name))
            }
        };
        json!({
            "cardinality": cardinality,
            "embedding": format!("{} with {}", origin.name, self.to.name),
            "relationship": relationship,
        })
    }

    /// The hint that means this way; a junction that leads twice to the same relation is told apart
    /// by its keys.
    fn hint(&self, is_twice: bool) -> String {
        let hint = match self.by {
            By::Reference(key) | By::Referrers(key) => &key.name,
            By::Junction(_, _, key) if is_twice => &key.name,
            By::Junction(junction, _, _) => &junction.name,
        };
        format!("'{}!{hint}'", self.to.name)
    }

    /// The junction that it goes through.
    fn junction(&self) -> Option<u32> {
        match self.by {
            By::Reference(_) | By::Referrers(_) => None,
            By::Junction(junction, _, _) => Some(junction.oid),
        }
    }
}

fn ambiguous(origin: &Relation, target: &str, ways: &[&Way<'_>]) -> Problem {
    let hint = |way: &&Way<'_>| {
        let junction = way.junction();
        let same = ways.iter().filter(|other| other.junction() == junction);
        way.hint(junction.is_some() && same.count() > 1)
    };
    let hints: Vec<String> = ways.iter().map(hint).collect();
    let details: Vec<_> = ways.iter().map(|way| way.described(origin)).collect();
    let message = format!(
        "Could not embed because more than one relationship was found for '{}' and '{target}'",
        origin.name
    );
    Problem::new(StatusCode::MULTIPLE_CHOICES, "PGRST201", message).with_details(details).with_hint(
        format!(
            "Try changing '{target}' to one of the following: {}. Find the desired relationship in \
             the 'details' key.",
            hints.join(", ")
        ),
    )
}

fn none(
    schema: &Schema,
    origin: &Relation,
    target: &str,
    hint: Option<&str>,
    ways: &[Way<'_>],
) -> Problem {
    let message = format!(
        "Could not find a relationship between '{}' and '{target}' in the schema cache",
        origin.name
    );
    let using = hint.map(|hint| format!(" using the hint '{hint}'")).unwrap_or_default();
    let details = format!(
        "Searched for a foreign key relationship between '{}' and '{target}'{using} in the schema \
         '{}', but no matches were found.",
        origin.name, origin.schema
    );
    let problem = Problem::new(StatusCode::BAD_REQUEST, "PGRST200", message).with_details(details);
    // The origin itself may be mistaken: a table without any relationship beside one that has some.
    let (meant, instead) = if ways.is_empty() {
        let related = schema.relations.values().filter(|relation| {
            relation.schema == origin.schema && !schema.foreign_keys_of(relation.oid).is_empty()
        });
        (closest(&origin.name, related.map(|relation| &*relation.name)), &*origin.name)
    } else {
        (closest(target, ways.iter().map(|way| &*way.to.name)), target)
    };
    match meant {
        Some(meant) => {
            problem.with_hint(format!("Perhaps you meant '{meant}' instead of '{instead}'."))
        }
        None => problem,
    }
}

/// Whether a function of this name computes the relationship.
fn is_computed(schema: &Schema, origin: &Relation, target: &str) -> bool {
    schema.functions(&origin.schema, target).iter().any(|function| {
        let is_rows = function.returns_set || matches!(function.returns, Returns::Row { .. });
        let takes_row = matches!(&*function.arguments, [one] if is_row_of(&one.type_sql, origin));
        takes_row && is_rows
    })
}
