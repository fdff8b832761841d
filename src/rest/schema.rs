//! The names a request may use: relations, their columns and foreign keys, functions.
//!
//! In:     the catalogs, through a login that may do nothing but connect.
//! Out:    [`Schema`], one consistent picture, shared until the next one.
//! Never:  rows of the user's tables; names of schemas that are not exposed, except as the type of
//!         a column.

use std::collections::HashMap;
use std::sync::Arc;

/// A picture of the exposed schemas.
#[derive(Debug, Default)]
pub struct Schema {
    /// Relations by schema and name.
    pub relations: HashMap<(Box<str>, Box<str>), Arc<Relation>>,
    /// Relations by OID, for both ends of a foreign key.
    pub by_oid: HashMap<u32, Arc<Relation>>,
    /// Functions by schema and name: all that share it.
    pub functions: HashMap<(Box<str>, Box<str>), Vec<Arc<Function>>>,
    /// Foreign keys between relations of exposed schemas, by the OID of either end (one that
    /// refers to its own table is there once).
    pub foreign_keys: HashMap<u32, Vec<Arc<ForeignKey>>>,
}

impl Schema {
    /// A relation by name.
    pub fn relation(&self, schema: &str, name: &str) -> Option<&Arc<Relation>> {
        // A borrowed pair is no key of a map with owned pairs.
        self.relations.get(&(schema.into(), name.into()))
    }

    /// The functions of one name.
    pub fn functions(&self, schema: &str, name: &str) -> &[Arc<Function>] {
        self.functions.get(&(schema.into(), name.into())).map_or(&[], Vec::as_slice)
    }

    /// Foreign keys that start or end at a relation.
    pub fn foreign_keys_of(&self, relation: u32) -> &[Arc<ForeignKey>] {
        self.foreign_keys.get(&relation).map_or(&[], Vec::as_slice)
    }
}

/// A table, view, materialised view or foreign table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Relation {
    /// OID.
    pub oid: u32,
    /// Schema.
    pub schema: Box<str>,
    /// Name.
    pub name: Box<str>,
    /// A view, or a materialised one.
    pub is_view: bool,
    /// `COMMENT ON`.
    pub comment: Option<Box<str>>,
    /// In attribute order.
    pub columns: Box<[Column]>,
    /// Names of the primary key's columns, in its order; empty without one.
    pub primary_key: Box<[Box<str>]>,
    /// Whether it takes INSERT, UPDATE, DELETE at all (`pg_relation_is_updatable`).
    pub insertable: bool,
    /// See `insertable`.
    pub updatable: bool,
    /// See `insertable`.
    pub deletable: bool,
}

impl Relation {
    /// A column by name.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| &*column.name == name)
    }
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Column {
    /// `pg_attribute.attnum`.
    pub attnum: i16,
    /// Name.
    pub name: Box<str>,
    /// Its type as SQL text, schema-qualified and quoted where needed (`format_type` under an
    /// empty search path): safe to put into a statement.
    pub type_sql: Box<str>,
    /// Type OID.
    pub type_oid: u32,
    /// The type below its domains: `json`, `jsonb`, `text`, `tsvector`, ….
    pub base_type: Box<str>,
    /// `pg_type.typcategory` of that type: `A` array, `C` composite, ….
    pub category: char,
    /// Takes NULL.
    pub nullable: bool,
    /// Default expression as SQL text from the catalog.
    pub default: Option<Box<str>>,
    /// `GENERATED ALWAYS AS`: cannot be written.
    pub generated: bool,
    /// Labels, for an enum.
    pub enum_values: Box<[Box<str>]>,
    /// `character varying(n)`.
    pub max_length: Option<i32>,
    /// `COMMENT ON`.
    pub comment: Option<Box<str>>,
}

/// A foreign key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignKey {
    /// Constraint name.
    pub name: Box<str>,
    /// OID of the relation that has the constraint.
    pub from: u32,
    /// Its columns.
    pub from_columns: Box<[Box<str>]>,
    /// OID of the relation it refers to.
    pub to: u32,
    /// The columns there, in the same order.
    pub to_columns: Box<[Box<str>]>,
    /// Whether `from_columns` are unique: at most one row refers to another.
    pub one_to_one: bool,
    /// Whether `from_columns` are all in the primary key of `from`: what makes a junction.
    pub in_primary_key: bool,
}

/// A function that a request may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// OID.
    pub oid: u32,
    /// Schema.
    pub schema: Box<str>,
    /// Name.
    pub name: Box<str>,
    /// `COMMENT ON`.
    pub comment: Option<Box<str>>,
    /// What it takes: IN, INOUT and VARIADIC arguments in order.
    pub arguments: Box<[Argument]>,
    /// What it gives.
    pub returns: Returns,
    /// `RETURNS SETOF` or `TABLE`.
    pub returns_set: bool,
    /// How it may depend on, or change, what is outside.
    pub volatility: Volatility,
}

/// One argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argument {
    /// Name; empty when it has none.
    pub name: Box<str>,
    /// As [`Column::type_sql`].
    pub type_sql: Box<str>,
    /// As [`Column::base_type`].
    pub base_type: Box<str>,
    /// As [`Column::category`].
    pub category: char,
    /// May be left out.
    pub has_default: bool,
    /// `VARIADIC`
    pub is_variadic: bool,
}

/// What one call, or each row of it, is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Returns {
    /// Nothing.
    Void,
    /// One value of a type that is no row.
    Scalar {
        /// As [`Column::type_sql`].
        type_sql: Box<str>,
        /// As [`Column::base_type`].
        base_type: Box<str>,
    },
    /// A row of a relation, exposed or not; related rows can be embedded if it is exposed.
    Row {
        /// OID of the relation; of the composite type's `typrelid` otherwise.
        relation: u32,
        /// Its columns.
        columns: Box<[Column]>,
    },
    /// `TABLE`, or OUT arguments.
    Table {
        /// Their names and types.
        columns: Box<[Column]>,
    },
    /// `record`: nothing is known about its columns.
    Record,
}

/// `pg_proc.provolatile`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volatility {
    /// Changes nothing, depends on its arguments.
    Immutable,
    /// Changes nothing.
    Stable,
    /// May change anything.
    Volatile,
}
