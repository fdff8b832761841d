//! What `sql/catalog/table.sql` returns → [`Table`].
//!
//! In:     the definition of one table as JSON.
//! Out:    a [`Table`], its types taken apart.
//! Never:  more than so many types, whatever a schema holds.

use std::collections::HashMap;

use serde::Deserialize;

use super::{Kind, QualifiedName, RowAccess, Table, TableColumn};
use crate::change::value::{NESTING_MAX, Type};
use crate::change::{ReplicaIdentity, builtin};
use crate::snapshot::Snapshot;

/// Types, those within types included, that the columns of one table are taken apart into. Beyond
/// that, values are shown as strings of their text.
const TYPE_NODES_MAX: usize = 10_000;

/// What `sql/catalog/table.sql` returns.
#[derive(Deserialize)]
pub(super) struct Definition {
    schema: Box<str>,
    name: Box<str>,
    kind: Kind,
    replica_identity: char,
    row_security: bool,
    root: Option<RootDefinition>,
    primary_key: Box<[Box<str>]>,
    columns: Vec<ColumnDefinition>,
    dropped: Vec<DroppedDefinition>,
    creator: Option<u32>,
    /// What the answer saw.
    pub(super) snapshot: String,
    types: Vec<TypeDefinition>,
    roles: Vec<RoleDefinition>,
}

#[derive(Deserialize)]
struct DroppedDefinition {
    attnum: i16,
    xid: u32,
}

#[derive(Deserialize)]
struct RootDefinition {
    oid: u32,
    #[serde(flatten)]
    name: QualifiedName,
}

#[derive(Deserialize)]
struct ColumnDefinition {
    attnum: i16,
    name: Box<str>,
    r#type: u32,
    collation: u32,
    generated: bool,
    xid: u32,
}

#[derive(Deserialize)]
struct TypeDefinition {
    oid: u32,
    name: Box<str>,
    base: Option<u32>,
    element: Option<u32>,
    delimiter: char,
    attributes: Option<Vec<AttributeDefinition>>,
}

#[derive(Deserialize)]
struct AttributeDefinition {
    name: Box<str>,
    r#type: u32,
}

#[derive(Deserialize)]
struct RoleDefinition {
    name: Box<str>,
    columns: Box<[Box<str>]>,
    policy: bool,
    bypass: bool,
}

impl Definition {
    /// The table; `seen` is what the answer saw.
    pub(super) fn into_table(self, oid: u32, seen: &Snapshot) -> Table {
        // No change can be older than its table. Ids come again: one that this answer does not see
        // is not from now.
        let creator = self.creator;
        let definer = |xid: u32| Some(xid).filter(|xid| Some(*xid) != creator && seen.sees(*xid));
        let types: HashMap<u32, &TypeDefinition> =
            self.types.iter().map(|definition| (definition.oid, definition)).collect();
        let mut nodes = TYPE_NODES_MAX;
        let columns = self.columns.into_iter().map(|column| TableColumn {
            attnum: column.attnum,
            type_oid: column.r#type,
            collation_oid: column.collation,
            type_name: types.get(&column.r#type).map_or("unknown", |found| &found.name).into(),
            kind: resolve(column.r#type, &types, 0, &mut nodes),
            name: column.name,
            generated: column.generated,
            defined_by: definer(column.xid),
        });
        let columns = columns.collect();
        let row_access = self.roles.iter().map(|role| {
            let access = match (role.bypass, role.policy) {
                (true, _) => RowAccess::All,
                (false, true) => RowAccess::ByPolicy,
                (false, false) => RowAccess::None,
            };
            (role.name.clone(), access)
        });
        Table {
            oid,
            schema: self.schema,
            name: self.name,
            kind: self.kind,
            replica_identity: u8::try_from(self.replica_identity)
                .map_or(ReplicaIdentity::Nothing, ReplicaIdentity::from_code),
            row_security: self.row_security,
            columns,
            dropped: self.dropped.iter().map(|d| (d.attnum, definer(d.xid))).collect(),
            primary_key: self.primary_key,
            partition_root_oid: self.root.as_ref().map(|root| root.oid),
            partition_root: self.root.map(|root| root.name),
            row_access: row_access.collect(),
            readable: self.roles.into_iter().map(|role| (role.name, role.columns)).collect(),
        }
    }
}

/// A type by its OID. `nodes` is how many more may be made: composites of composites can grow
/// without bound in few lines of SQL.
fn resolve(
    oid: u32,
    types: &HashMap<u32, &TypeDefinition>,
    depth: usize,
    nodes: &mut usize,
) -> Type {
    let Some(left) = nodes.checked_sub(1).filter(|_| depth < NESTING_MAX) else {
        return Type::Text;
    };
    *nodes = left;
    if let Some((_, kind)) = builtin(oid) {
        return kind;
    }
    let Some(definition) = types.get(&oid) else { return Type::Text };
    if let Some(base) = definition.base {
        return resolve(base, types, depth + 1, nodes);
    }
    if let Some(element) = definition.element {
        return Type::Array {
            element: Box::new(resolve(element, types, depth + 1, nodes)),
            delimiter: u8::try_from(definition.delimiter).unwrap_or(b','),
        };
    }
    let Some(attributes) = &definition.attributes else { return Type::Text };
    let attributes = attributes.iter().map(|attribute| {
        (attribute.name.clone(), resolve(attribute.r#type, types, depth + 1, nodes))
    });
    Type::Composite(attributes.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn composite(oid: u32, attributes: &[u32]) -> TypeDefinition {
        let attributes = attributes.iter().zip('a'..);
        TypeDefinition {
            oid,
            name: format!("type_{oid}").into(),
            base: None,
            element: None,
            delimiter: ',',
            attributes: Some(
                attributes
                    .map(|(&oid, name)| AttributeDefinition {
                        name: name.to_string().into(),
                        r#type: oid,
                    })
                    .collect(),
            ),
        }
    }

    #[test]
    fn a_schema_cannot_grow_types_without_bound() {
        // Each of 30 types holds four of the next: 4^30 values in the innermost.
        let definitions: Vec<_> =
            (0..30).map(|at| composite(20_000 + at, &[20_001 + at; 4])).collect();
        let types = definitions.iter().map(|definition| (definition.oid, definition)).collect();
        let mut nodes = TYPE_NODES_MAX;
        let kind = resolve(20_000, &types, 0, &mut nodes);
        assert!(matches!(kind, Type::Composite(_)));
        assert_eq!(nodes, 0);
    }

    #[test]
    fn a_type_that_holds_itself_ends() {
        let definition = composite(20_000, &[20_000]);
        let types = HashMap::from([(20_000, &definition)]);
        resolve(20_000, &types, 0, &mut 1000);
    }
}
