//! The types every server has, by OID, so that nobody asks for them.
//!
//! In:     a type OID from the log.
//! Out:    its name and how its text becomes JSON.
//! Never:  types that a database may define for itself.
//! Source: `pg_type.dat` of Postgres; compared with the server's `pg_type` by
//!         `tests/it/values.rs`. These OIDs never change between versions.

use super::value::Type;

/// What stands in the table for a [`Type`].
#[derive(Clone, Copy)]
enum Kind {
    Bool,
    Integer,
    Numeric,
    Float,
    Json,
    Bytea,
    Timestamp,
    TimestampTz,
    IntegerVector,
    TextVector,
    Text,
}

use Kind::{
    Bool, Bytea, Float, Integer, IntegerVector, Json, Numeric, Text, TextVector, Timestamp,
    TimestampTz,
};

/// OID, OID of the array of it (0: none), name, kind; by ascending OID.
#[rustfmt::skip]
const TYPES: &[(u32, u32, &str, Kind)] = &[
    (16, 1000, "bool", Bool),
    (17, 1001, "bytea", Bytea),
    (18, 1002, "char", Text),
    (19, 1003, "name", Text),
    (20, 1016, "int8", Integer),
    (21, 1005, "int2", Integer),
    (22, 1006, "int2vector", IntegerVector),
    (23, 1007, "int4", Integer),
    (24, 1008, "regproc", Text),
    (25, 1009, "text", Text),
    (26, 1028, "oid", Text),
    (27, 1010, "tid", Text),
    (28, 1011, "xid", Text),
    (29, 1012, "cid", Text),
    (30, 1013, "oidvector", TextVector),
    (114, 199, "json", Json),
    (142, 143, "xml", Text),
    (194, 0, "pg_node_tree", Text),
    (600, 1017, "point", Text),
    (601, 1018, "lseg", Text),
    (602, 1019, "path", Text),
    (603, 1020, "box", Text),
    (604, 1027, "polygon", Text),
    (628, 629, "line", Text),
    (650, 651, "cidr", Text),
    (700, 1021, "float4", Float),
    (701, 1022, "float8", Float),
    (718, 719, "circle", Text),
    (774, 775, "macaddr8", Text),
    (790, 791, "money", Text),
    (829, 1040, "macaddr", Text),
    (869, 1041, "inet", Text),
    (1033, 1034, "aclitem", Text),
    (1042, 1014, "bpchar", Text),
    (1043, 1015, "varchar", Text),
    (1082, 1182, "date", Text),
    (1083, 1183, "time", Text),
    (1114, 1115, "timestamp", Timestamp),
    (1184, 1185, "timestamptz", TimestampTz),
    (1186, 1187, "interval", Text),
    (1266, 1270, "timetz", Text),
    (1560, 1561, "bit", Text),
    (1562, 1563, "varbit", Text),
    (1700, 1231, "numeric", Numeric),
    (1790, 2201, "refcursor", Text),
    (2202, 2207, "regprocedure", Text),
    (2203, 2208, "regoper", Text),
    (2204, 2209, "regoperator", Text),
    (2205, 2210, "regclass", Text),
    (2206, 2211, "regtype", Text),
    (2950, 2951, "uuid", Text),
    (2970, 2949, "txid_snapshot", Text),
    (3220, 3221, "pg_lsn", Text),
    (3361, 0, "pg_ndistinct", Text),
    (3402, 0, "pg_dependencies", Text),
    (3614, 3643, "tsvector", Text),
    (3615, 3645, "tsquery", Text),
    (3642, 3644, "gtsvector", Text),
    (3734, 3735, "regconfig", Text),
    (3769, 3770, "regdictionary", Text),
    (3802, 3807, "jsonb", Json),
    (3904, 3905, "int4range", Text),
    (3906, 3907, "numrange", Text),
    (3908, 3909, "tsrange", Text),
    (3910, 3911, "tstzrange", Text),
    (3912, 3913, "daterange", Text),
    (3926, 3927, "int8range", Text),
    (4072, 4073, "jsonpath", Text),
    (4089, 4090, "regnamespace", Text),
    (4096, 4097, "regrole", Text),
    (4191, 4192, "regcollation", Text),
    (4451, 6150, "int4multirange", Text),
    (4532, 6151, "nummultirange", Text),
    (4533, 6152, "tsmultirange", Text),
    (4534, 6153, "tstzmultirange", Text),
    (4535, 6155, "datemultirange", Text),
    (4536, 6157, "int8multirange", Text),
    (4600, 0, "pg_brin_bloom_summary", Text),
    (4601, 0, "pg_brin_minmax_multi_summary", Text),
    (5017, 0, "pg_mcv_list", Text),
    (5038, 5039, "pg_snapshot", Text),
    (5069, 271, "xid8", Text),
];

/// The only built-in type whose arrays are not separated by commas.
const BOX: u32 = 603;

/// `pg_type.typname` of a built-in type or array, and how its text becomes JSON.
///
/// `None` for what a database defines for itself, for domains of `information_schema` and for row
/// types of catalogs.
pub fn builtin(oid: u32) -> Option<(Box<str>, Type)> {
    if oid == 0 {
        return None;
    }
    if let Ok(at) = TYPES.binary_search_by_key(&oid, |row| row.0) {
        let (_, _, name, kind) = TYPES.get(at)?;
        return Some(((*name).into(), kind.rendering()));
    }
    let (element, _, name, kind) = TYPES.iter().find(|row| row.1 == oid)?;
    let delimiter = if *element == BOX { b';' } else { b',' };
    Some((
        format!("_{name}").into(),
        Type::Array { element: Box::new(kind.rendering()), delimiter },
    ))
}

impl Kind {
    fn rendering(self) -> Type {
        match self {
            Self::Bool => Type::Bool,
            Self::Integer => Type::Integer,
            Self::Numeric => Type::Numeric,
            Self::Float => Type::Float,
            Self::Json => Type::Json,
            Self::Bytea => Type::Bytea,
            Self::Timestamp => Type::Timestamp,
            Self::TimestampTz => Type::TimestampTz,
            Self::IntegerVector => Type::Vector(Box::new(Type::Integer)),
            Self::TextVector => Type::Vector(Box::new(Type::Text)),
            Self::Text => Type::Text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_can_be_searched() {
        assert!(TYPES.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn types_are_found_by_their_oid() {
        assert_eq!(builtin(23), Some(("int4".into(), Type::Integer)));
        let boxes = Type::Array { element: Box::new(Type::Text), delimiter: b';' };
        assert_eq!(builtin(1020), Some(("_box".into(), boxes)));
        assert_eq!(builtin(0), None);
        assert_eq!(builtin(16_384), None);
    }
}
