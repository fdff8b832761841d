//! Rows whose JSON is made here, byte for byte against what Postgres makes of them.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio_postgres::Client;

use crate::rest::ask;
use crate::service::Service;

/// Types, and values of them; each value is a row.
const TYPES: [(&str, &[&str]); 46] = [
    ("boolean", &["true", "false"]),
    ("smallint", &["-32768", "0"]),
    ("integer", &["1", "-7"]),
    ("bigint", &["9223372036854775807"]),
    ("numeric", &["1.50", "-0", "NaN", "Infinity", "-Infinity", "0.000000000000000001", "1e40"]),
    ("numeric(6,2)", &["7"]),
    ("real", &["1.1", "1e-30", "NaN", "-infinity", "-0"]),
    ("double precision", &["0.1", "1e300", "1e-300", "infinity", "nan", "-0"]),
    ("money", &["-12.30"]),
    ("text", &["", "a\"b\\c\u{1}\u{1f}\n\r\t\u{8}\u{c}/\u{7f}é😀\u{2028}", "null", "{}"]),
    ("varchar(20)", &["x"]),
    ("char(3)", &["a"]),
    ("\"char\"", &["b", "\""]),
    ("name", &["n"]),
    ("bytea", &["\\x00ff", "\\x"]),
    ("date", &["2024-02-29", "0044-03-15 BC", "12345-06-07", "infinity", "-infinity"]),
    ("time", &["01:02:03.4", "24:00"]),
    ("timetz", &["01:02:03+05:30"]),
    ("timestamp", &["2024-02-29 01:02:03.456", "0044-03-15 00:00 BC", "infinity", "12345-01-01"]),
    (
        "timestamptz",
        &["2024-07-01 00:00+00", "1890-01-01 12:00+00", "0044-03-15 00:00+00 BC", "-infinity"],
    ),
    ("interval", &["1 year -2 days 03:00:00.5", "-1 month"]),
    ("uuid", &["7b1a6a0e-6f0c-4a55-9d0f-0c0ffee00001"]),
    ("inet", &["10.0.0.1/8"]),
    ("cidr", &["10.0.0.0/8"]),
    ("macaddr", &["08:00:2b:01:02:03"]),
    ("bit(3)", &["101"]),
    ("varbit", &["1"]),
    ("point", &["(1,2.5)"]),
    ("box", &["(1,2),(3,4)"]),
    ("json", &["{\"b\" :  1,\n\"a\":[null ]}", "\"x\\u0041\"", "1.0"]),
    ("jsonb", &["{\"b\":  1, \"a\":[null ]}", "null"]),
    ("xml", &["<a b=\"c\">\n</a>"]),
    ("tsvector", &["'fat' 'c''at':3"]),
    ("tsquery", &["fat & !rat"]),
    ("int4range", &["[3,8)", "empty"]),
    ("tstzrange", &["[2024-01-01 00:00+00,)"]),
    ("oid", &["4294967295"]),
    ("regclass", &["pg_class"]),
    ("pg_lsn", &["1/16B3748"]),
    ("integer[]", &["{}", "{1,NULL,3}", "{{1,2},{3,4}}", "[0:1]={5,6}"]),
    ("numeric[]", &["{1.50,NaN,NULL}"]),
    ("double precision[]", &["{0.1,Infinity,1e300}"]),
    ("boolean[]", &["{t,f,NULL}"]),
    ("text[]", &["{}", "{a,\"NULL\",NULL,\"b \\\" \\\\ ,{}\",\"\",é}"]),
    ("box[]", &["{(1,2),(3,4);(5,6),(7,8)}"]),
    ("uuid[]", &["{7b1a6a0e-6f0c-4a55-9d0f-0c0ffee00001}"]),
];

/// Of these Postgres makes the JSON.
const LEFT: [(&str, &[&str]); 10] = [
    ("mood", &["happy \"x\""]),
    ("pair", &["(1,\"a\"\"b\")"]),
    ("positive", &["7"]),
    ("special", &["(1)"]),
    ("json[]", &["{\"{\\\"a\\\" : 1}\"}"]),
    ("date[]", &["{2024-02-29}"]),
    ("timestamptz[]", &["{2024-07-01 00:00+00}"]),
    ("int2vector", &["1 2"]),
    ("oidvector", &["1 2"]),
    ("mood[]", &["{\"happy \\\"x\\\"\"}"]),
];

/// Our settings for text, which are none of `json_agg`'s business but for these.
async fn admin(service: &Service) -> Client {
    let admin = service.admin().await;
    let settings = "set TimeZone = 'UTC'; set IntervalStyle = 'postgres'; set bytea_output = 'hex';
        set lc_monetary = 'C'; set extra_float_digits = 1; set xmlbinary = 'base64'";
    admin.batch_execute(settings).await.unwrap();
    admin
}

/// What `json_agg` makes of these rows.
async fn aggregated(admin: &Client, rows: &str) -> String {
    let sql = format!("select coalesce(json_agg(s.*), '[]')::text from ({rows}) as s");
    admin.query_one(&sql, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn values_of_every_type_are_as_postgres_writes_them() {
    let service = Service::start().await;
    let admin = admin(&service).await;
    let types = "create type mood as enum ('happy \"x\"'); create type pair as (a int, b text);
        create domain positive as int check (value > 0);
        create type special as (a int);
        create function special_json(special) returns json language sql immutable as
            $$ select '{\"so\": \"it is\"}'::json $$;
        create cast (special as json) with function special_json(special);";
    admin.batch_execute(types).await.unwrap();
    let all: Vec<_> = TYPES.iter().chain(&LEFT).collect();
    for (number, (kind, values)) in all.iter().enumerate() {
        let table = format!(
            "create table every{number} (id int primary key, \"v\"\"\t é\" {kind});
            grant select on every{number} to anon; insert into every{number} values (0, null)"
        );
        admin.batch_execute(&table).await.unwrap();
        for (id, value) in (1..).zip(values.iter()) {
            let literal = value.replace('\'', "''");
            let row = format!("insert into every{number} values ({id}, '{literal}')");
            admin.batch_execute(&row).await.unwrap();
        }
    }
    admin.batch_execute("notify pgrst, 'reload schema'").await.unwrap();
    for (number, (kind, _)) in all.iter().enumerate() {
        for zone in ["UTC", "Asia/Kolkata", "America/St_Johns"] {
            admin.batch_execute(&format!("set TimeZone = '{zone}'")).await.unwrap();
            let rows = format!("select * from every{number} order by id");
            let expected = aggregated(&admin, &rows).await;
            let path = format!("/every{number}?order=id");
            let asked = ask("GET", &path).with("prefer", &format!("timezone={zone}"));
            assert_eq!(asked.send(&service).await.body, expected, "{kind} in {zone}");
        }
    }
}

#[tokio::test]
async fn any_text_is_as_postgres_writes_it() {
    let service = Service::start().await;
    let admin = admin(&service).await;
    let table = "create table texts (id int primary key, a text, b text[], c jsonb);
        grant select on texts to anon";
    admin.batch_execute(table).await.unwrap();
    let mut random = StdRng::seed_from_u64(4);
    let mut text = move || {
        let length = random.random_range(0..12);
        let characters = (0..length).map(|_| match random.random_range(0..4) {
            0 => char::from(random.random_range(1..0x80_u8)),
            1 => *['"', '\\', '{', '}', ',', '\n', ' '].get(random.random_range(0..7)).unwrap(),
            2 => random.random_range('\u{80}'..'\u{2100}'),
            _ => random.random_range('\u{e000}'..'\u{10ffff}'),
        });
        characters.collect::<String>()
    };
    for id in 0..200 {
        let list = vec![Some(text()), None, Some(text())];
        let row = "insert into texts values ($1, $2, $3, to_jsonb($4::text))";
        admin.execute(row, &[&id, &text(), &list, &text()]).await.unwrap();
    }
    admin.batch_execute("notify pgrst, 'reload schema'").await.unwrap();
    let expected = aggregated(&admin, "select * from texts order by id").await;
    // Asked for the first time, for the second, when it is prepared, and from then on.
    for _ in 0..4 {
        assert_eq!(ask("GET", "/texts?order=id").send(&service).await.body, expected);
    }
}

#[tokio::test]
async fn columns_are_called_and_counted_as_they_were_asked_for() {
    let service = Service::start().await;
    let admin = admin(&service).await;
    let table = "create table named (id int primary key, \"a \"\"b\" text);
        insert into named values (1, 'x'), (2, null), (3, 'z'); grant select on named to anon;
        notify pgrst, 'reload schema'";
    admin.batch_execute(table).await.unwrap();
    for (query, rows) in [
        ("select=id,id&order=id", "select id, id from named order by id"),
        (
            "select=x:id,%22a%20%5C%22b%22&order=id.desc",
            "select id as x, \"a \"\"b\" from named order by id desc",
        ),
        ("select=id&id=gt.2", "select id from named where id > 2"),
        ("select=id&id=gt.7", "select id from named where id > 7"),
        ("limit=1&offset=1&order=id", "select * from named order by id limit 1 offset 1"),
    ] {
        let answer = ask("GET", &format!("/named?{query}")).send(&service).await;
        assert_eq!(answer.body, aggregated(&admin, rows).await, "{query}");
        assert_eq!(answer.status, 200);
    }
    let object = |query: &str| {
        ask("GET", &format!("/named?{query}")).with("accept", "application/vnd.pgrst.object+json")
    };
    let one = object("id=eq.1").send(&service).await;
    assert_eq!((one.status, &*one.body), (200, "{\"id\":1,\"a \\\"b\":\"x\"}"));
    for (query, rows) in [("id=gt.1", 2), ("id=gt.7", 0)] {
        let answer = object(query).send(&service).await;
        assert_eq!(answer.problem(), (406, "PGRST116".into()));
        assert_eq!(answer.json()["details"], format!("The result contains {rows} rows"));
    }
    for (prefer, range) in [("", "0-1/*"), ("count=exact", "0-1/3"), ("count=planned", "0-1/")] {
        let answer = ask("GET", "/named?limit=2").with("prefer", prefer).send(&service).await;
        let told = answer.header("content-range").unwrap();
        assert!(told.starts_with(range), "{prefer}: {told}");
    }
}

/// What a policy sets, and what a role has, changes how times are written as text.
#[tokio::test]
async fn times_are_as_postgres_writes_them_whatever_is_set() {
    let service = Service::start().await;
    let admin = admin(&service).await;
    let table = "create table times (style text, d date, t timestamp, z timestamptz);
        alter table times enable row level security;
        create function styled(style text) returns boolean language sql volatile as
            $$ select set_config('DateStyle', style, true) = style $$;
        create policy styled on times using (styled(style)); grant select on times to anon;";
    admin.batch_execute(table).await.unwrap();
    for style in ["ISO, DMY", "SQL, DMY", "SQL, MDY", "Postgres, DMY", "German, DMY"] {
        let rows = format!(
            "truncate times; insert into times values
            ('{style}', '2024-02-03', '2024-02-03 04:05:06', '2024-02-03 04:05:06+00'),
            ('{style}', '0001-02-03 BC', 'infinity', '-infinity'); notify pgrst, 'reload schema'"
        );
        admin.batch_execute(&rows).await.unwrap();
        let expected = aggregated(&admin, "select * from times").await;
        for _ in 0..3 {
            let answer = ask("GET", "/times").send(&service).await;
            assert_eq!((answer.status, answer.body), (200, expected.clone()), "{style}");
        }
    }
}
