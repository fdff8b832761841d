//! Values as JSON: Postgres' own `to_jsonb` is the oracle, for every type it has.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::value::RawValue;
use tokio_postgres::{Client, SimpleQueryMessage};
use walcast::catalog::Catalog;
use walcast::change::builtin;
use walcast::change::value::{Type, render};
use walcast::db::Login;

use crate::cluster::Database;

/// JSON compared as values: numbers by their digits, objects without order, of equal keys the last.
#[derive(Debug, PartialEq)]
enum Json {
    Word(String),
    Number(String),
    String(String),
    Array(Vec<Self>),
    Object(BTreeMap<String, Self>),
}

impl Json {
    fn parse(text: &str) -> Self {
        match text.trim_start().as_bytes()[0] {
            b'"' => Self::String(serde_json::from_str(text).unwrap()),
            b'[' => {
                let items: Vec<&RawValue> = serde_json::from_str(text).unwrap();
                Self::Array(items.into_iter().map(|item| Self::parse(item.get())).collect())
            }
            b'{' => {
                let members: BTreeMap<String, &RawValue> = serde_json::from_str(text).unwrap();
                let members = members.into_iter();
                Self::Object(members.map(|(key, item)| (key, Self::parse(item.get()))).collect())
            }
            b'-' | b'0'..=b'9' => Self::Number(plain_number(text.trim())),
            _ => Self::Word(text.trim().to_owned()),
        }
    }
}

/// Without exponent and without the sign of zero: as `numeric` prints it.
fn plain_number(text: &str) -> String {
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let exponent: i64 = exponent.parse().unwrap();
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mut digits = format!("{whole}{fraction}");
    let mut point = i64::try_from(whole.len()).unwrap() + exponent;
    while point <= 0 {
        digits.insert(0, '0');
        point += 1;
    }
    let point = usize::try_from(point).unwrap();
    while digits.len() < point {
        digits.push('0');
    }
    let (whole, fraction) = digits.split_at(point);
    let whole = whole.trim_start_matches('0');
    let mut plain = String::new();
    if negative && digits.bytes().any(|digit| digit != b'0') {
        plain.push('-');
    }
    plain.push_str(if whole.is_empty() { "0" } else { whole });
    if !fraction.is_empty() {
        plain.push('.');
        plain.push_str(fraction);
    }
    plain
}

/// A database whose sessions print values as the log does.
async fn database() -> (Client, Catalog) {
    let database = Database::create().await;
    let admin = database.client().await;
    admin
        .batch_execute(
            "set timezone = 'UTC'; set datestyle = 'ISO, MDY'; set intervalstyle = 'postgres';
             set extra_float_digits = 1; set bytea_output = 'hex'; set lc_monetary = 'C';",
        )
        .await
        .unwrap();
    let login = Login::parse(&database.url, Duration::from_secs(10)).unwrap();
    (admin, Catalog::new(login, &[], &[]))
}

/// What we deliberately do otherwise than `to_jsonb`, in a whole column.
fn exception(kind: &Type, text: &str) -> Option<Json> {
    if *kind == Type::Bytea {
        return Some(Json::String(text.strip_prefix("\\x").unwrap().to_owned()));
    }
    let number = [Type::Numeric, Type::Float].contains(kind);
    (number && ["NaN", "Infinity", "-Infinity"].contains(&text)).then(|| Json::Word("null".into()))
}

/// Compares each value of each column of a table with `to_jsonb`; how many there were.
async fn check_table(admin: &Client, catalog: &Catalog, table: &str, context: &str) -> usize {
    let oid = admin.query_one("select $1::text::regclass::oid", &[&table]).await.unwrap().get(0);
    let definition = catalog.table(oid).await.unwrap().unwrap();
    let mut list = String::new();
    for column in &definition.columns {
        let name = column.name.replace('"', "\"\"");
        write!(list, ", \"{name}\", to_jsonb(\"{name}\")::text").unwrap();
    }
    // The simple protocol gives the output functions' text, which is what the log carries.
    let rows = admin.simple_query(&format!("select 1{list} from {table}")).await.unwrap();
    let mut compared = 0;
    for row in rows {
        let SimpleQueryMessage::Row(row) = row else { continue };
        for (at, column) in definition.columns.iter().enumerate() {
            let Some(text) = row.get(1 + 2 * at) else {
                assert_eq!(row.get(2 + 2 * at), None);
                continue;
            };
            let mut ours = Vec::new();
            render(&column.kind, text.as_bytes(), &mut ours);
            let ours = String::from_utf8(ours).unwrap();
            let expected = exception(&column.kind, text)
                .unwrap_or_else(|| Json::parse(row.get(2 + 2 * at).unwrap()));
            assert_eq!(
                Json::parse(&ours),
                expected,
                "{context} {table}.{} {} {:?}\ntext {text}\nours {ours}",
                column.name,
                column.type_name,
                column.kind,
            );
            compared += 1;
        }
    }
    compared
}

const HOSTILE: &[&str] = &[
    "",
    " ",
    "NULL",
    "null",
    "a",
    "\"",
    "\\",
    "\\\\",
    "'",
    "{}",
    "{",
    "}",
    "()",
    "(,)",
    ",",
    ";",
    "a,b",
    "a\"b",
    "a\\b",
    " x ",
    "\n",
    "\r\n\t",
    "\u{1}\u{8}\u{c}\u{1f}\u{7f}",
    "é",
    "\u{2028}",
    "😀",
    "\u{feff}",
    "\\u0000",
    "\\x41",
    "[0:1]={1}",
    "</script>",
    "$1",
    "%s",
    "t",
    "1e5",
    "\"\"",
    "\\\"",
    "{\"a\\\"b\"}",
    "(\"a\"\"b\")",
];

const TIMESTAMPS: &[&str] = &[
    "2024-01-02 03:04:05",
    "2024-01-02 03:04:05.6",
    "2024-02-29 23:59:59.999999",
    "infinity",
    "-infinity",
    "0044-03-15 01:02:03 BC",
    "4713-01-01 00:00:00 BC",
    "12345-01-02 03:04:05",
    "294276-12-31 23:59:59.999999",
    "1970-01-01 00:00:00",
    "0001-01-01 00:00:00",
];

const FLOATS: &[&str] = &[
    "0",
    "-0",
    "1",
    "-1.5",
    "0.1",
    "1e-5",
    "1e15",
    "1e16",
    "1e22",
    "1.5e30",
    "3.4e38",
    "1e-37",
    "NaN",
    "Infinity",
    "-Infinity",
    "123456.78",
    "16777217",
];

/// Input of each built-in type; `None` for those that have none, so that no column can hold them.
fn samples(type_name: &str) -> Option<Vec<&'static str>> {
    let mut samples: Vec<&str> = match type_name {
        "pg_node_tree"
        | "pg_ndistinct"
        | "pg_dependencies"
        | "pg_mcv_list"
        | "gtsvector"
        | "pg_brin_bloom_summary"
        | "pg_brin_minmax_multi_summary" => return None,
        "bool" => vec!["t", "f"],
        "bytea" => vec!["", "\\x00", "\\x0102ff", "\\xdeadbeef5c22", "abc"],
        "char" => vec!["", "a", "\"", "\\", ",", " ", "{"],
        "text" | "varchar" | "bpchar" | "refcursor" | "name" => HOSTILE.to_vec(),
        "int2" => vec!["0", "-1", "32767", "-32768"],
        "int4" => vec!["0", "-1", "2147483647", "-2147483648"],
        "int8" => {
            vec!["0", "-1", "9007199254740993", "9223372036854775807", "-9223372036854775808"]
        }
        "int2vector" => vec!["", "1", "1 2 -3"],
        "oidvector" => vec!["", "1", "1 2 4294967295"],
        "oid" | "xid" | "cid" => vec!["0", "42", "4294967295"],
        "xid8" => vec!["0", "18446744073709551615"],
        "tid" => vec!["(0,0)", "(42,7)"],
        "regproc" => vec!["boolin", "-", "99999"],
        "regprocedure" => vec!["abs(numeric)", "-"],
        "regoper" => vec!["||/", "0"],
        "regoperator" => vec!["+(integer,integer)", "0"],
        "regclass" => vec!["pg_class", "\"odd \"\"table\"", "-"],
        "regtype" => vec!["int4", "text[]", "character varying", "-"],
        "regrole" => vec!["postgres", "-"],
        "regnamespace" => vec!["pg_catalog", "-"],
        "regconfig" => vec!["english", "simple"],
        "regdictionary" => vec!["simple"],
        "regcollation" => vec!["\"C\"", "\"POSIX\""],
        "json" => vec![
            "null",
            "true",
            "1",
            "-0",
            "-0.0",
            "1e400",
            "1E5",
            "1.50e1",
            "12345678901234567890.10",
            "\"a\"",
            "\"\\u00e9\\n\\\"\"",
            "[]",
            "{}",
            " [ 1 ,\n\t2 ]\r\n",
            "{\"a\":1,\"a\":2}",
            "{\"b\":{\"c\":[1,null,\"\\\\\"]},\"a\":\"}\"}",
            "\"NULL\"",
            "\"{}\"",
            "[[[[[[[[[]]]]]]]]]",
        ],
        "jsonb" => vec![
            "null",
            "true",
            "1",
            "-0.0",
            "1e40",
            "12345678901234567890.10",
            "\"a\"",
            "\"\\u00e9\\n\\\"\"",
            "[]",
            "{}",
            "[1, {\"a\": null}]",
            "{\"b\":{\"c\":[1]},\"a\":\"}\"}",
            "\"NULL\"",
            "\"\"",
            "[[[[[[[[[]]]]]]]]]",
        ],
        "jsonpath" => vec!["$", "$.\"a b\"[*] ? (@ > 1)"],
        "xml" => vec!["<a b=\"c\">&amp;\n</a>", "text"],
        "point" => vec!["(1,2)", "(-1e300,NaN)"],
        "lseg" => vec!["[(1,2),(3,4)]"],
        "path" => vec!["[(1,2),(3,4)]", "((1,2),(3,4))"],
        "box" => vec!["(3,4),(1,2)", "(0,0),(0,0)"],
        "polygon" => vec!["((1,2),(3,4),(5,6))"],
        "line" => vec!["{1,2,3}"],
        "circle" => vec!["<(1,2),3>"],
        "cidr" => vec!["10.0.0.0/8", "::/0"],
        "inet" => vec!["10.1.2.3", "10.1.2.3/8", "::1"],
        "macaddr" => vec!["08:00:2b:01:02:03"],
        "macaddr8" => vec!["08:00:2b:01:02:03:04:05"],
        "float4" => FLOATS.to_vec(),
        "float8" => vec!["1e300", "-1.7976931348623157e308", "5e-324", "0.30000000000000004"],
        "numeric" => vec![
            "0",
            "-1",
            "1.50",
            "0.000",
            "-0.0",
            "12345678901234567890.123456789",
            "1e30",
            "1e-30",
            "NaN",
            "Infinity",
            "-Infinity",
        ],
        "money" => vec!["0", "-12.5", "1234567.89"],
        "aclitem" => vec!["postgres=arwdDxt/postgres", "=r/postgres"],
        "date" => vec!["2024-02-29", "infinity", "-infinity", "0044-03-15 BC", "12345-01-02"],
        "time" => vec!["00:00", "24:00", "03:04:05.000001"],
        "timetz" => vec!["13:14:15.5+02", "00:00-11:30", "01:02:03+02:30:15"],
        "timestamp" | "timestamptz" => TIMESTAMPS.to_vec(),
        "interval" => vec!["0", "1 year 2 mons -3 days 04:05:06.7", "-1 day", "178956970 years"],
        "bit" => vec!["1", "0"],
        "varbit" => vec!["", "1", "10110"],
        "uuid" => {
            vec!["00000000-0000-0000-0000-000000000000", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"]
        }
        "pg_lsn" => vec!["0/0", "16/B374D848"],
        "txid_snapshot" | "pg_snapshot" => vec!["1:1:", "1:5:2,3"],
        "tsvector" => vec!["", "'a b':1A 'c''d':2,3 e"],
        "tsquery" => vec!["", "'a b' & !'c''d' | e:*"],
        "int4range" | "int8range" => vec!["empty", "[1,5)", "(,)", "(,3)"],
        "numrange" => vec!["empty", "[1.50,2.5]", "(,)"],
        "tsrange" | "tstzrange" => {
            vec!["empty", "[2024-01-01,infinity]", "(,\"2024-01-01 01:02:03\")"]
        }
        "daterange" => vec!["empty", "[2024-01-01,2024-02-01)"],
        "int4multirange" | "int8multirange" => vec!["{}", "{[1,5),[7,)}"],
        "nummultirange" => vec!["{}", "{[1.5,2],(3,)}"],
        "tsmultirange" | "tstzmultirange" => vec!["{}", "{[2024-01-01,\"2024-01-02 01:00\"]}"],
        "datemultirange" => vec!["{}", "{[2024-01-01,2024-02-01)}"],
        unknown => panic!("the server has a type that this test has no samples of: {unknown}"),
    };
    if type_name == "float8" {
        samples.extend_from_slice(FLOATS);
    }
    Some(samples)
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[tokio::test]
async fn every_built_in_type_is_rendered_as_to_jsonb_does() {
    let (admin, catalog) = database().await;
    admin.batch_execute("create table \"odd \"\"table\" ()").await.unwrap();
    let types = admin
        .query(
            "select typname::text, typarray <> 0 from pg_type
             where typtype in ('b', 'r', 'm') and typnamespace = 'pg_catalog'::regnamespace
                 and typoutput <> 'array_out'::regproc
             order by oid",
            &[],
        )
        .await
        .unwrap();
    assert!(types.len() > 70);
    let mut compared = 0;
    for row in types {
        let (name, has_array): (&str, bool) = (row.get(0), row.get(1));
        let Some(samples) = samples(name) else { continue };
        assert!(has_array, "{name}");
        let (kind, table) = (format!("pg_catalog.\"{name}\""), format!("\"of_{name}\""));
        let rows = samples.iter().map(|text| format!("({}::{kind})", literal(text)));
        let rows = rows.collect::<Vec<_>>().join(",\n");
        let all = samples.iter().map(|text| format!("{}::{kind}", literal(text)));
        let all = all.collect::<Vec<_>>().join(", ");
        let sql = format!(
            "create domain dom_{name} as {kind};
             create domain dom_arr_{name} as {kind}[];
             create type inner_{name} as (v {kind}, \"a, \"\"b\\\" {kind}[], n {kind});
             create type outer_{name} as (i inner_{name}, a inner_{name}[], d dom_{name});
             create table {table} (
                 v {kind}, one {kind}[], bounds {kind}[], two {kind}[], d dom_{name},
                 da dom_{name}[], ad dom_arr_{name}, ada dom_arr_{name}[],
                 i inner_{name}, ia inner_{name}[], o outer_{name}, oa outer_{name}[]
             );
             insert into {table} (v) values {rows};
             update {table} set
                 one = array[v, null, v], two = array[[v, null], [null, v]], d = v,
                 da = array[v, null]::dom_{name}[], ad = array[v, null], i = row(v, array[v, null], null);
             update {table} set bounds[-1:1] = one;
             update {table} set ada = array[ad, null::dom_arr_{name}], ia = array[i, null],
                 o = row(i, array[i, null], d);
             update {table} set oa = array[o, null, o];
             insert into {table} (one) values ('{{}}'), (array[{all}]::{kind}[]);
             insert into {table} (ia) select array_agg(i) from {table};
             insert into {table} default values;",
        );
        admin.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{name}: {error:?}\n{sql}"));
        compared += check_table(&admin, &catalog, &table, "").await;
    }
    assert!(compared > 3000, "{compared}");
}

#[tokio::test]
async fn the_built_in_types_are_the_servers() {
    let (admin, catalog) = database().await;
    let rows = admin
        .query(
            "select t.oid, t.typname::text, t.typarray, coalesce(a.typname::text, ''), t.typdelim
             from pg_type as t left join pg_type as a on a.oid = t.typarray
             where t.typtype in ('b', 'r', 'm') and t.oid < 10000
                 and t.typoutput <> 'array_out'::regproc",
            &[],
        )
        .await
        .unwrap();
    for row in &rows {
        let (oid, name, array, array_name): (u32, &str, u32, &str) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        let (our_name, kind) = builtin(oid).unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(&*our_name, name);
        if array == 0 {
            continue;
        }
        let delimiter = u8::try_from(row.get::<_, i8>(4)).unwrap();
        let expected = Type::Array { element: Box::new(kind), delimiter };
        assert_eq!(builtin(array), Some((array_name.into(), expected)));
    }
    assert!(rows.len() > 70);
    // Domains of the information schema and row types of catalogs are looked up.
    admin
        .batch_execute(
            "create table t (n information_schema.cardinal_number, r pg_catalog.pg_namespace);
             insert into t select 5, n from pg_namespace as n",
        )
        .await
        .unwrap();
    assert!(check_table(&admin, &catalog, "t", "").await > 3);
}

#[tokio::test]
async fn types_of_extensions_and_users_are_strings_unless_they_have_parts() {
    let (admin, catalog) = database().await;
    admin
        .batch_execute(
            r#"create type mood as enum ('', 'NULL', 'a "b"', 'c,d');
               create type span as range (subtype = float8);
               create table base (id int, gone text, mood mood);
               alter table base drop column gone;
               create table t (m mood, ma mood[], s span, sa span[], sm span_multirange, b base,
                   ba base[], c char(5), ca char(5)[], v varchar(3)[], t timestamptz(0)[], x bit(3));
               insert into t values ('', '{"",NULL,"NULL","a \"b\"","c,d"}', '[1,2)', '{"[1,2)",empty}',
                   '{[1,2),[3,4)}', row(1, 'NULL'), array[row(1, 'NULL')::base, row(null, '')::base],
                   'ab', '{ab,"c d"}', '{abc}', '{now,infinity}', '101');"#,
        )
        .await
        .unwrap();
    assert_eq!(check_table(&admin, &catalog, "t", "").await, 12);
}

#[tokio::test]
async fn a_composite_that_changed_since_is_shown_as_its_text() {
    let (admin, catalog) = database().await;
    admin
        .batch_execute(
            "create type pair as (a int, b text); create table t (p pair, pa pair[]);
             insert into t values (row(1, 'x'), array[row(1, 'x')::pair])",
        )
        .await
        .unwrap();
    let oid = admin.query_one("select 't'::regclass::oid", &[]).await.unwrap().get(0);
    let before = catalog.table(oid).await.unwrap().unwrap();
    admin.batch_execute("alter type pair add attribute c int").await.unwrap();
    let rendered = |kind: &Type, text: &str| {
        let mut out = Vec::new();
        render(kind, text.as_bytes(), &mut out);
        String::from_utf8(out).unwrap()
    };
    let row =
        admin.query_one("select format('%s', p), format('%s', pa) from t", &[]).await.unwrap();
    assert_eq!(rendered(&before.columns[0].kind, row.get(0)), r#""(1,x,)""#);
    assert_eq!(rendered(&before.columns[1].kind, row.get(1)), r#"["(1,x,)"]"#);
    assert!(catalog.changed().await.unwrap());
    assert_eq!(check_table(&admin, &catalog, "t", "").await, 2);
}

#[tokio::test]
async fn offsets_of_any_time_zone_are_complete() {
    let (admin, catalog) = database().await;
    admin.batch_execute("create table t (v timestamptz, a timestamptz[])").await.unwrap();
    for timestamp in TIMESTAMPS {
        let insert = format!(
            "insert into t select v, array[v, null] from (select '{timestamp}'::timestamptz) as s (v)"
        );
        admin.batch_execute(&insert).await.unwrap();
    }
    for zone in ["UTC", "Asia/Kolkata", "America/New_York", "Europe/Amsterdam", "Africa/Monrovia"] {
        admin.batch_execute(&format!("set timezone = '{zone}'")).await.unwrap();
        assert_eq!(check_table(&admin, &catalog, "t", zone).await, 2 * TIMESTAMPS.len());
    }
}

/// A type made at random, and how to make values of it.
enum Shape {
    Scalar(&'static str),
    Array(Box<Self>),
    Composite(String, Vec<Self>),
    Domain(String, Box<Self>),
}

impl Shape {
    /// Scalars whose values of [`samples`] can be put together at random.
    const SCALARS: [&'static str; 16] = [
        "bool",
        "int4",
        "int8",
        "numeric",
        "float8",
        "text",
        "bytea",
        "json",
        "jsonb",
        "timestamp",
        "timestamptz",
        "box",
        "uuid",
        "int2vector",
        "numrange",
        "name",
    ];

    fn random(random: &mut StdRng, depth: u32, ddl: &mut Vec<String>) -> Self {
        if depth == 0 || random.random_bool(0.25) {
            return Self::Scalar(Self::SCALARS.choose(random).unwrap());
        }
        match random.random_range(0..3) {
            0 => {
                let element = Self::random(random, depth - 1, ddl);
                match element {
                    // Postgres has no arrays of arrays, other than in dimensions.
                    Self::Array(_) => element,
                    Self::Scalar(_) | Self::Composite(..) | Self::Domain(..) => {
                        Self::Array(Box::new(element))
                    }
                }
            }
            1 => {
                let attributes: Vec<_> = (0..random.random_range(0..4))
                    .map(|_| Self::random(random, depth - 1, ddl))
                    .collect();
                let name = format!("random_{}", ddl.len());
                let list = attributes.iter().enumerate();
                let list = list.map(|(at, shape)| format!("\"a \\{at}\"\"\" {}", shape.name()));
                let list = list.collect::<Vec<_>>().join(", ");
                ddl.push(format!("create type {name} as ({list})"));
                Self::Composite(name, attributes)
            }
            _ => {
                let base = Self::random(random, depth - 1, ddl);
                let name = format!("random_{}", ddl.len());
                ddl.push(format!("create domain {name} as {}", base.name()));
                Self::Domain(name, Box::new(base))
            }
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Scalar(name) => format!("pg_catalog.\"{name}\""),
            Self::Array(element) => format!("{}[]", element.name()),
            Self::Composite(name, _) | Self::Domain(name, _) => name.clone(),
        }
    }

    /// An SQL expression of this type.
    fn value(&self, random: &mut StdRng) -> String {
        if random.random_bool(0.1) {
            return format!("null::{}", self.name());
        }
        match self {
            Self::Scalar("text") => format!("{}::text", literal(&random_text(random))),
            Self::Scalar("int8") => format!("'{}'::int8", random.random::<i64>()),
            Self::Scalar("float8") if random.random_bool(0.5) => {
                let number = f64::from_bits(random.random());
                // 400 bytes of numeric are enough: to_jsonb writes it out.
                format!("'{number:e}'::float8")
            }
            Self::Scalar("numeric") if random.random_bool(0.5) => {
                let (whole, fraction): (i128, u64) = (random.random(), random.random());
                format!("'{whole}.{fraction}'::numeric")
            }
            Self::Scalar("timestamptz") if random.random_bool(0.5) => {
                let micros =
                    random.random_range(-200_000_000_000_000_000..8_000_000_000_000_000_000_i64);
                // In parts: version 14 reads no field of an interval beyond 32 bits or so.
                let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
                let (days, seconds) = (seconds / 86_400, seconds % 86_400);
                format!("('epoch'::timestamptz + '{days} days {seconds} s {micros} us'::interval)")
            }
            Self::Scalar(name) => {
                let samples = samples(name).unwrap();
                let text = samples.choose(random).unwrap();
                format!("{}::pg_catalog.\"{name}\"", literal(text))
            }
            Self::Array(element) => {
                let length = random.random_range(0..4);
                let row = |random: &mut StdRng| {
                    let items = (0..length).map(|_| element.value(random)).collect::<Vec<_>>();
                    format!("array[{}]", items.join(", "))
                };
                if random.random_bool(0.3) && length > 0 {
                    let rows = (0..random.random_range(1..4)).map(|_| row(random));
                    return format!(
                        "array[{}]::{}",
                        rows.collect::<Vec<_>>().join(", "),
                        self.name()
                    );
                }
                format!("{}::{}", row(random), self.name())
            }
            Self::Composite(name, attributes) => {
                let items = attributes.iter().map(|shape| shape.value(random));
                format!("row({})::{name}", items.collect::<Vec<_>>().join(", "))
            }
            Self::Domain(name, base) => format!("({})::{name}", base.value(random)),
        }
    }
}

/// Text out of the characters that mean something to one of the formats on its way.
fn random_text(random: &mut StdRng) -> String {
    let alphabet: Vec<char> =
        "\"\\'{}()[],;:= \n\r\t\u{1}aNULnu0-+.éß\u{2028}😀/%".chars().collect();
    (0..random.random_range(0..12)).map(|_| *alphabet.choose(random).unwrap()).collect()
}

#[tokio::test]
async fn random_values_of_random_types_are_rendered_as_to_jsonb_does() {
    let seed = std::env::var("WALCAST_TEST_SEED").map_or(20_261_121, |seed| seed.parse().unwrap());
    let mut random = StdRng::seed_from_u64(seed);
    let (admin, catalog) = database().await;
    let (mut compared, mut kinds) = (0, BTreeSet::new());
    let mut ddl: Vec<String> = Vec::new();
    for table in 0..40 {
        let made = ddl.len();
        let columns: Vec<_> = (0..6).map(|_| Shape::random(&mut random, 4, &mut ddl)).collect();
        let list = columns.iter().enumerate();
        let list = list.map(|(at, shape)| format!("c{at} {}", shape.name()));
        let list = list.collect::<Vec<_>>().join(", ");
        let mut sql = ddl[made..].join(";\n");
        write!(sql, ";\ncreate table random_table_{table} ({list});\n").unwrap();
        for _ in 0..12 {
            let values = columns.iter().map(|shape| shape.value(&mut random));
            let values = values.collect::<Vec<_>>().join(", ");
            writeln!(sql, "insert into random_table_{table} values ({values});").unwrap();
        }
        let context = format!("seed {seed}");
        admin
            .batch_execute(&sql)
            .await
            .unwrap_or_else(|error| panic!("{context}: {error:?}\n{sql}"));
        let name = format!("random_table_{table}");
        compared += check_table(&admin, &catalog, &name, &context).await;
        kinds.extend(columns.iter().map(std::mem::discriminant).map(|d| format!("{d:?}")));
    }
    assert!(compared > 1500 && kinds.len() == 4, "{compared} {kinds:?}");
}
