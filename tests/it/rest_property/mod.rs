//! Random requests, each against the same thing written in SQL and run as the same role: rows,
//! their order, counts, what is embedded, errors; and of writes what the tables have afterwards.
//!
//! One seed, one request: a failure names it, and `WALCAST_SEED=… WALCAST_PROPERTY_CASES=1` repeats
//! it. `WALCAST_PROPERTY_CASES` is how many are tried.

mod dice;
mod hostile;
mod read;
mod world;
mod write;

use serde_json::{Value, json};
use tokio_postgres::{Client, SimpleQueryMessage};

use self::dice::Dice;
use self::world::{SCHEMA, TABLES};
use crate::rest::{Answer, Ask, ask};
use crate::service::{ALICE, BOB, Service, anon, service_role, user};

/// Requests of each kind, where nobody says how many.
const CASES: u64 = 300;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// Seeds of this run.
fn seeds() -> impl Iterator<Item = u64> {
    let first = number("WALCAST_SEED", 1);
    first..first + number("WALCAST_PROPERTY_CASES", CASES)
}

/// Somebody who asks.
struct Caller {
    role: &'static str,
    claims: Value,
    token: String,
}

fn callers() -> Vec<Caller> {
    let signed_in = |subject: &str| Caller {
        role: "authenticated",
        claims: json!({ "role": "authenticated", "sub": subject }),
        token: user(subject),
    };
    vec![
        signed_in(ALICE),
        signed_in(BOB),
        Caller { role: "anon", claims: json!({ "role": "anon" }), token: anon() },
        Caller {
            role: "service_role",
            claims: json!({ "role": "service_role" }),
            token: service_role(),
        },
    ]
}

async fn world() -> (Service, Client, Client) {
    let service = Service::with(|config| {
        config.rest.rows_max = u64::try_from(read::ROWS_MAX).unwrap();
        config.rest.pool_size = 2;
        config.server.body_timeout_ms = 3000;
    })
    .await;
    let (admin, oracle) = (service.admin().await, service.admin().await);
    admin.batch_execute(SCHEMA).await.unwrap();
    admin.batch_execute("notify pgrst, 'reload schema'").await.unwrap();
    (service, admin, oracle)
}

/// What Postgres says, or its SQLSTATE.
type Expected<T> = Result<T, String>;

fn code(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| panic!("{error}"), |error| error.code().code().to_owned())
}

/// Becomes the caller until the end of the transaction.
async fn become_caller(oracle: &Client, caller: &Caller) {
    oracle.batch_execute("begin").await.unwrap();
    let set = "select set_config('request.jwt.claims', $1, true), set_config('role', $2, true)";
    oracle.query_one(set, &[&caller.claims.to_string(), &caller.role]).await.unwrap();
}

/// What the statement gives the caller: its first row's columns, as text.
async fn asked(oracle: &Client, caller: &Caller, sql: &str) -> Expected<Vec<String>> {
    let messages = oracle.simple_query(sql).await;
    let messages = messages.map_err(|error| code(&error))?;
    let row = messages.iter().find_map(|message| {
        if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None }
    });
    let row = row.unwrap_or_else(|| panic!("a row for {}", caller.role));
    Ok((0..row.len()).map(|column| row.get(column).unwrap().to_owned()).collect())
}

/// The status of an SQLSTATE, of those that a request here can come to.
fn status(code: &str, caller: &Caller) -> u16 {
    match code {
        "42501" if caller.role == "anon" => 401,
        "42501" => 403,
        "23503" | "23505" => 409,
        "42883" => 404,
        "21000" => 500,
        _ => 400,
    }
}

fn check_problem(answer: &Answer, code: &str, caller: &Caller, about: &str) {
    assert_eq!(answer.status, status(code, caller), "{about}");
    assert_eq!(answer.problem(), (status(code, caller), code.to_owned()), "{about}");
}

/// Rows in an order that does not matter.
fn sorted(rows: &Value) -> Vec<String> {
    let mut rows: Vec<String> =
        rows.as_array().expect("an array").iter().map(Value::to_string).collect();
    rows.sort();
    rows
}

#[tokio::test]
async fn what_is_read_is_what_the_same_query_says_in_sql() {
    let (service, _admin, oracle) = world().await;
    let callers = callers();
    let (mut answered, mut refused, mut embedded) = (0_u64, 0_u64, 0_u64);
    for seed in seeds() {
        let mut dice = Dice::new(seed);
        let caller = dice.of(&callers);
        let is_call = dice.percent(12);
        let table = if is_call { world::named("books") } else { dice.of(TABLES) };
        let is_get = dice.percent(50);
        let (arguments, body, source) = if is_call {
            write::call(is_get, &mut dice)
        } else {
            (Vec::new(), Value::Null, table.name.to_owned())
        };
        let (mut pairs, rows) = read::target(table, &source, &mut dice);
        pairs.extend(arguments);
        let query = read::query_string(&pairs);
        let path = if is_call { "/rpc/priced".to_owned() } else { write::path(table.name) };
        let path = format!("{path}?{query}");
        let (is_counted, is_single) = (dice.percent(40), dice.percent(8));
        let is_head = !is_call && dice.percent(5);

        become_caller(&oracle, caller).await;
        let page = asked(&oracle, caller, &rows.page()).await;
        let total = match (&page, is_counted) {
            (Ok(_), true) => Some(asked(&oracle, caller, &rows.count()).await.unwrap().remove(0)),
            _ => None,
        };
        oracle.batch_execute("rollback").await.unwrap();

        let method = match (is_call && !is_get, is_head) {
            (true, _) => "POST",
            (false, true) => "HEAD",
            (false, false) => "GET",
        };
        let mut request = ask(method, &path).bearing(&caller.token);
        if method == "POST" {
            request = request.json(&body);
        }
        if is_counted {
            request = request.with("prefer", "count=exact");
        }
        if is_single {
            request = request.with("accept", "application/vnd.pgrst.object+json");
        }
        let answer = request.send(&service).await;
        let about = format!(
            "seed {seed}, {} {method} {path} (body {body}, single {is_single})\n{answer:?}\nSQL {}\n{page:?}",
            caller.role,
            rows.page()
        );
        let page = match page {
            Ok(mut page) => page.remove(0),
            Err(code) => {
                refused += 1;
                if is_head {
                    assert_eq!(answer.status, status(&code, caller), "{about}");
                } else {
                    check_problem(&answer, &code, caller, &about);
                }
                continue;
            }
        };
        answered += 1;
        let page: Value = serde_json::from_str(&page).unwrap();
        let all = page.as_array().unwrap();
        embedded += u64::from(query.contains("select") && page.to_string().contains("[{"));
        let total = total.map(|total| total.parse::<usize>().unwrap());
        if is_single && all.len() != 1 {
            if is_head {
                assert_eq!(answer.status, 406, "{about}");
            } else {
                assert_eq!(answer.problem(), (406, "PGRST116".into()), "{about}");
            }
            continue;
        }
        if let Some(total) = total.filter(|total| rows.offset > *total) {
            assert_eq!(answer.status, 416, "{about}");
            assert_eq!(answer.header("content-range"), Some(&*format!("*/{total}")), "{about}");
            continue;
        }
        let is_partial = total.is_some_and(|total| all.len() < total);
        assert_eq!(answer.status, if is_partial { 206 } else { 200 }, "{about}");
        let shown = total.map_or_else(|| "*".to_owned(), |total| total.to_string());
        let range = match all.len() {
            0 => format!("*/{shown}"),
            len => format!("{}-{}/{shown}", rows.offset, rows.offset + len - 1),
        };
        assert_eq!(answer.header("content-range"), Some(&*range), "{about}");
        if is_head {
            assert_eq!(answer.body, "", "{about}");
        } else if is_single {
            assert_eq!(answer.json(), all[0], "{about}");
        } else {
            assert_eq!(answer.json(), page, "{about}");
        }
    }
    if seeds().count() >= 100 {
        let seen = format!("{answered} answered, {refused} refused, {embedded} with related rows");
        assert!(answered > 3 * refused && refused > 5 && embedded > answered / 20, "{seen}");
        eprintln!("{seen}");
    }
}

/// All that can be written, as text.
async fn state(client: &Client) -> String {
    let tables = TABLES.iter().filter(|table| table.is_written).map(|table| {
        let name = table.name;
        format!("(select json_agg(t order by t::text) from {name} as t)")
    });
    let tables: Vec<String> = tables.collect();
    let sql = format!("select json_build_array({})::text", tables.join(", "));
    client.query_one(&sql, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn what_is_written_is_what_the_same_statement_writes_in_sql() {
    let (service, admin, oracle) = world().await;
    let callers = callers();
    let kept: Vec<_> =
        TABLES.iter().filter(|table| table.is_written).map(|table| table.name).collect();
    for name in &kept {
        admin.batch_execute(&format!("create table kept_{name} as table {name}")).await.unwrap();
    }
    let names = kept.join(", ");
    let restore: Vec<String> =
        kept.iter().map(|name| format!("insert into {name} table kept_{name};")).collect();
    let restore = format!("truncate {names}; {}", restore.join(" "));
    let (mut written, mut refused) = (0_u64, 0_u64);
    for seed in seeds() {
        let mut dice = Dice::new(seed);
        // Some who may, and some who may not.
        let caller = &callers[*dice.of(&[0, 0, 1, 2, 3, 3, 3])];
        // A value of another type is an error for whoever may not write there at all, too; which of
        // the two is told depends on when the value is read.
        dice.may_err &= caller.role == "service_role";
        let change = write::any(&mut dice);
        let is_single = change.is_returned && dice.percent(8);
        let is_counted = dice.percent(20);

        let before = state(&oracle).await;
        become_caller(&oracle, caller).await;
        let outcome = asked(&oracle, caller, &change.sql).await;
        let after = if outcome.is_ok() {
            oracle.batch_execute("reset role").await.unwrap();
            state(&oracle).await
        } else {
            before.clone()
        };
        oracle.batch_execute("rollback").await.unwrap();

        let path =
            format!("{}?{}", write::path(change.table.name), read::query_string(&change.pairs));
        let mut prefer = change.prefer.clone();
        prefer.extend(is_counted.then_some("count=exact"));
        let mut request: Ask =
            ask(change.method, &path).bearing(&caller.token).with("prefer", &prefer.join(", "));
        if let Some(body) = &change.body {
            request = request.json(body);
        }
        if is_single {
            request = request.with("accept", "application/vnd.pgrst.object+json");
        }
        let answer = request.send(&service).await;
        let about = format!(
            "seed {seed}, {} {} {path} {prefer:?} (single {is_single}) {}\n{answer:?}\nSQL {}\n{outcome:?}",
            caller.role,
            change.method,
            change.body.clone().unwrap_or_default(),
            change.sql
        );
        let now = state(&oracle).await;
        let (rows, affected) = match outcome {
            Ok(columns) => (columns[0].clone(), columns[1].parse::<usize>().unwrap()),
            Err(code) => {
                refused += 1;
                check_problem(&answer, &code, caller, &about);
                assert_eq!(now, before, "{about}");
                continue;
            }
        };
        if is_single && affected != 1 {
            assert_eq!(answer.problem(), (406, "PGRST116".into()), "{about}");
            assert_eq!(now, before, "{about}");
            continue;
        }
        written += 1;
        assert_eq!(now, after, "{about}");
        assert!(change.statuses.contains(&answer.status), "{about}");
        if change.is_returned {
            let rows: Value = serde_json::from_str(&rows).unwrap();
            let answered = if is_single { json!([answer.json()]) } else { answer.json() };
            assert_eq!(sorted(&answered), sorted(&rows), "{about}");
        } else {
            assert_eq!(answer.body, "", "{about}");
        }
        if is_counted && change.method != "PUT" {
            let range = answer.header("content-range").expect("a range");
            assert!(range.ends_with(&format!("/{affected}")), "{range}: {about}");
        }
        if written % 20 == 0 {
            admin.batch_execute(&restore).await.unwrap();
        }
    }
    if seeds().count() >= 100 {
        let seen = format!("{written} written, {refused} refused");
        assert!(written > refused / 2 && refused > 5, "{seen}");
        eprintln!("{seen}");
    }
}
