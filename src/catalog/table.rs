//! A table as the catalog has it, and the definitions of the log that are completed from it.
//!
//! In:     a [`Table`]; names and types of columns, as the log gives them.
//! Out:    a [`Relation`] with the names of now; what a role may select.
//! Never:  a column by a name that another one may have had.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::change::value::Type;
use crate::change::{Column, ColumnSet, Relation, ReplicaIdentity, builtin};

/// What kind of relation a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Kind {
    /// An ordinary table, or a partition.
    #[serde(rename = "r")]
    Table,
    /// A partitioned table: its rows are in its partitions.
    #[serde(rename = "p")]
    Partitioned,
    /// Anything else: the log has no rows of it.
    #[serde(other)]
    Other,
}

/// Whether row security lets a role see rows of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowAccess {
    /// Every row: row security is off, or never asked for this role.
    All,
    /// The rows that the policies allow; at least one permissive policy applies to the role.
    ByPolicy,
    /// None: row security is on, and no permissive policy applies to the role.
    None,
}

/// One column as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableColumn {
    /// `pg_attribute.attnum`.
    pub attnum: i16,
    /// Name.
    pub name: Box<str>,
    /// Type OID.
    pub type_oid: u32,
    /// `pg_attribute.attcollation`; 0 for types without one.
    pub collation_oid: u32,
    /// `pg_type.typname`.
    pub type_name: Box<str>,
    /// How its text becomes JSON.
    pub kind: Type,
    /// Computed by the server. The log leaves it out before version 18.
    pub generated: bool,
    /// Which transaction named it so, or changed it otherwise, last; none: before all others.
    pub defined_by: Option<u32>,
}

/// A schema and a table in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
pub struct QualifiedName {
    /// Schema.
    pub schema: Box<str>,
    /// Table.
    pub name: Box<str>,
}

/// A table as the catalog has it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// OID.
    pub oid: u32,
    /// Schema.
    pub schema: Box<str>,
    /// Name.
    pub name: Box<str>,
    /// What kind of relation it is.
    pub kind: Kind,
    /// What its old row images hold.
    pub replica_identity: ReplicaIdentity,
    /// Whether row security is enabled.
    pub row_security: bool,
    /// Columns in attribute order, generated ones too; dropped ones not.
    pub columns: Box<[TableColumn]>,
    /// Columns that are no more, and which transaction dropped them.
    pub dropped: Box<[(i16, Option<u32>)]>,
    /// Names of the primary key's columns in the key's order; empty without one.
    pub primary_key: Box<[Box<str>]>,
    /// For a partition: the topmost table it is part of.
    pub partition_root: Option<QualifiedName>,
    /// Its OID.
    pub partition_root_oid: Option<u32>,
    /// The columns each configured role may select, by role: it has the privilege, and usage of
    /// the schema. A role that does not exist is absent.
    pub readable: BTreeMap<Box<str>, Box<[Box<str>]>>,
    /// What row security has for each configured role; a role that does not exist is absent.
    pub row_access: BTreeMap<Box<str>, RowAccess>,
}

impl Table {
    /// Whether a role may select a column.
    pub fn may_read(&self, role: &str, column: &str) -> bool {
        self.readable.get(role).is_some_and(|columns| columns.iter().any(|name| **name == *column))
    }

    /// The places in this table's log relation that a role may select. By name: the relation has
    /// those of this table.
    pub fn readable_in(&self, role: &str, relation: &Relation) -> ColumnSet {
        let columns = (0..).zip(&relation.columns);
        columns.filter(|(_, column)| self.may_read(role, &column.name)).map(|(at, _)| at).collect()
    }

    /// What row security has for a role; nothing for one that is not configured.
    pub fn row_access(&self, role: &str) -> RowAccess {
        self.row_access.get(role).copied().unwrap_or(RowAccess::None)
    }
}

/// What a column that cannot be told is called: no column has this name, nobody may read it.
const UNTOLD: &str = "";

impl Table {
    /// Which columns of this table, as it is now, those of a definition from the log are.
    ///
    /// Columns keep their number, not their name, and the log has no numbers. `is_before` says of
    /// a transaction whether it committed before the changes that the definition is for: a column
    /// that was defined before them had its name then. The others are told by their order, which
    /// is that of the numbers, if none of them is missing in the log. Otherwise they are not told.
    pub fn columns_of(
        &self,
        logged: &[&str],
        is_before: impl Fn(u32) -> bool,
    ) -> Box<[Option<&TableColumn>]> {
        let before = |xid: Option<u32>| xid.is_none_or(&is_before);
        let settled = |name: &str| {
            let named = self.columns.iter().find(|column| *column.name == *name)?;
            before(named.defined_by).then_some(named)
        };
        let mut found: Box<[_]> = logged.iter().map(|name| settled(name)).collect();
        let moved = self.columns.iter().filter(|column| !before(column.defined_by));
        let dropped = self.dropped.iter().filter(|(_, xid)| !before(*xid));
        let mut moved: Vec<(i16, Option<&TableColumn>)> = moved
            .map(|column| (column.attnum, Some(column)))
            .chain(dropped.map(|(attnum, _)| (*attnum, None)))
            .collect();
        moved.sort_unstable_by_key(|(attnum, _)| *attnum);
        let open: Vec<_> = found.iter_mut().filter(|found| found.is_none()).collect();
        if open.len() == moved.len() {
            for (open, (_, column)) in open.into_iter().zip(moved) {
                *open = column;
            }
        }
        found
    }
}

impl Relation {
    /// A relation as the log describes it, completed from the catalog.
    ///
    /// `columns` are flags (bit 0: part of the replica identity), name and type OID. The log's
    /// word counts for what it has. The catalog may have moved on, or lost the table: then types
    /// that every server has are known still, others are shown as text and called `unknown`; and
    /// the primary key is known only where it is the replica identity.
    pub fn from_message<'a>(
        oid: u32,
        schema: &str,
        table_name: &str,
        replica_identity: u8,
        columns: impl IntoIterator<Item = (u8, &'a str, u32)>,
        table: Option<&Table>,
    ) -> Self {
        let replica_identity = ReplicaIdentity::from_code(replica_identity);
        let columns = columns.into_iter().map(|(flags, name, type_oid)| {
            let same_type = |table: &Table| {
                let column = table.columns.iter().find(|column| column.type_oid == type_oid)?;
                Some((column.type_name.clone(), column.kind.clone()))
            };
            let (type_name, kind) = builtin(type_oid)
                .or_else(|| table.and_then(same_type))
                .unwrap_or_else(|| ("unknown".into(), Type::Text));
            let in_identity = flags & 1 == 1;
            let in_primary_key = match replica_identity {
                ReplicaIdentity::Default => in_identity,
                ReplicaIdentity::Full | ReplicaIdentity::Index | ReplicaIdentity::Nothing => {
                    table.is_some_and(|table| table.primary_key.iter().any(|key| **key == *name))
                }
            };
            let attnum = None;
            Column {
                name: name.into(),
                attnum,
                type_oid,
                type_name,
                kind,
                in_identity,
                in_primary_key,
            }
        });
        Self {
            oid,
            // On the wire, empty stands for this schema.
            schema: if schema.is_empty() { "pg_catalog" } else { schema }.into(),
            table: table_name.into(),
            replica_identity,
            columns: columns.collect(),
        }
    }
}

impl Relation {
    /// The same with each column called what it is called now, and its number; `columns` are those
    /// of [`Table::columns_of`]. One that cannot be told is nobody's to read.
    #[must_use]
    pub fn named(mut self, columns: &[Option<&TableColumn>], table: &Table) -> Self {
        let places = self.columns.iter_mut().zip(columns);
        for (logged, now) in places {
            logged.name = now.map_or(UNTOLD, |now| &now.name).into();
            logged.attnum = now.map(|now| now.attnum);
            if self.replica_identity != ReplicaIdentity::Default {
                logged.in_primary_key = table.primary_key.contains(&logged.name);
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_told_by_name_or_by_order_or_not_at_all() {
        let column = |attnum: i16, name: &str, defined_by| TableColumn {
            attnum,
            name: name.into(),
            type_oid: 25,
            collation_oid: 100,
            type_name: "text".into(),
            kind: Type::Text,
            generated: false,
            defined_by,
        };
        let check = |columns: &[TableColumn], dropped: &[(i16, Option<u32>)], logged: &[&str]| {
            let table = Table {
                oid: 1,
                schema: "public".into(),
                name: "t".into(),
                kind: Kind::Table,
                replica_identity: ReplicaIdentity::Default,
                row_security: false,
                columns: columns.into(),
                dropped: dropped.into(),
                primary_key: Box::default(),
                partition_root: None,
                partition_root_oid: None,
                readable: BTreeMap::new(),
                row_access: BTreeMap::new(),
            };
            let found = table.columns_of(logged, |xid| xid < 100);
            found.iter().map(|found| found.map(|column| column.attnum)).collect::<Vec<_>>()
        };
        let (id, a, b) =
            (column(1, "id", None), column(2, "a", Some(100)), column(3, "b", Some(99)));
        let all = [id.clone(), a.clone(), b.clone()];
        assert_eq!(check(&all, &[], &["id", "a", "b"]), [Some(1), Some(2), Some(3)]);
        assert_eq!(check(&all, &[], &["id", "x", "b"]), [Some(1), Some(2), Some(3)], "renamed");
        assert_eq!(check(&all, &[], &["id", "b"]), [Some(1), Some(3)], "added");
        let swapped = [id.clone(), a, column(3, "b", Some(100))];
        assert_eq!(check(&swapped, &[], &["id", "b", "a"]), [Some(1), Some(2), Some(3)]);
        assert_eq!(check(&swapped, &[], &["id", "b"]), [Some(1), None], "which of them?");
        let gone = [id, column(4, "a", Some(100))];
        assert_eq!(check(&gone, &[(2, Some(100))], &["id", "a"]), [Some(1), None]);
        assert_eq!(check(&gone, &[(2, Some(99))], &["id", "a"]), [Some(1), Some(4)]);
        assert_eq!(check(&gone, &[(2, Some(100))], &["id", "a", "c"]), [Some(1), None, Some(4)]);
    }

    #[test]
    fn without_the_catalog_the_log_is_believed() {
        let columns = [(1, "id", 20), (0, "mood", 99_999), (0, "tags", 1009)];
        let relation = Relation::from_message(7, "", "t", b'd', columns, None);
        assert_eq!(&*relation.schema, "pg_catalog");
        let shown: Vec<_> = relation
            .columns
            .iter()
            .map(|c| (&*c.name, &*c.type_name, c.in_identity, c.in_primary_key))
            .collect();
        assert_eq!(
            shown,
            [
                ("id", "int8", true, true),
                ("mood", "unknown", false, false),
                ("tags", "_text", false, false)
            ]
        );
        let full = Relation::from_message(7, "", "t", b'f', [(1, "id", 20)], None);
        assert!(full.columns[0].in_identity && !full.columns[0].in_primary_key);
    }
}
