//! What it costs to decide who may see a row, against Postgres evaluating the same condition.
//!
//! In:     `WALCAST_BENCH_USERS` (default `1,10,100,1000`), `WALCAST_BENCH_MS` (default 300): how long
//!         each measurement is repeated, three times at least.
//! Out:    a table of microseconds for each change and distinct user, medians; last, one JSON line
//!         of ratios: the bare cost over ours. The bare cost is one call of a plpgsql loop over the
//!         users that sets their claims and evaluates the policy's condition on the rows: no
//!         transaction, no snapshot, no comparison with the catalog, no errors kept apart.
//! Needs:  the `PostgreSQL` server binaries; starts a cluster of its own.

#![allow(clippy::unwrap_used, reason = "a benchmark ends where its expectation does")]

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/it/cluster.rs"]
mod cluster;
#[allow(dead_code, unused_imports, reason = "the tests use more of it")]
#[path = "../tests/it/rls_world.rs"]
mod rls_world;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio_postgres::Client;
use walcast::auth::rls::{Question, Visibility};
use walcast::change::Change;

use rls_world::World;

/// Rows in one batch.
const BATCHES: [u32; 2] = [1, 100];

/// A measurement is repeated at least this often.
const ROUNDS_MIN: usize = 3;

/// Members of the map that the rows are in: those with even numbers.
const MEMBERS: u32 = 500;

/// One policy, in its table.
struct Policy {
    name: &'static str,
    condition: &'static str,
    /// How many of the first `users` see a row.
    seen_by: fn(u32) -> u32,
}

const POLICIES: [Policy; 3] = [
    Policy { name: "owner", condition: "auth.uid() = user_id", seen_by: |users| users.min(1) },
    Policy {
        name: "membership",
        condition: "map_id in (select m.map_id from public.map_members as m
            where m.user_id = auth.uid())",
        seen_by: |users| users.div_ceil(2).min(MEMBERS),
    },
    Policy {
        name: "function",
        condition: "public.is_member(map_id)",
        seen_by: |users| users.div_ceil(2).min(MEMBERS),
    },
];

fn main() {
    // `cargo test --benches` also runs this; it measures only when asked to.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run());
}

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

async fn run() {
    let users = setting("WALCAST_BENCH_USERS", "1,10,100,1000");
    let users: Vec<u32> = users.split(',').map(|users| users.trim().parse().unwrap()).collect();
    let time = Duration::from_millis(setting("WALCAST_BENCH_MS", "300").parse().unwrap());
    println!("microseconds for each change and distinct user (median)\n");
    println!(
        "{:<12} {:>5} {:>6} {:>10} {:>10} {:>7}",
        "policy", "rows", "users", "bare loop", "walcast", "ratio"
    );
    let world = World::with(|settings| {
        settings.check_timeout_ms = 60_000;
        settings.batch_check_timeout_ms = 300_000;
    })
    .await;
    prepare(&world).await;
    let bare = as_the_user(&world).await;
    let mut ratios = serde_json::Map::new();
    for policy in &POLICIES {
        world.policy(policy.condition).await;
        for rows in BATCHES {
            let changes = insert(&world, rows).await;
            make_loop(&world, policy).await;
            for &count in &users {
                let claims: Vec<String> = (0..count).map(claims).collect();
                let seen = i64::from((policy.seen_by)(count)) * i64::from(rows);
                let theirs = measure(time, async || {
                    let text: Vec<&str> = claims.iter().map(String::as_str).collect();
                    let (first, last) = range(&changes);
                    let call = "select bench.seen($1, $2, $3)";
                    let row = bare.query_one(call, &[&text, &first, &last]).await.unwrap();
                    assert_eq!(row.get::<_, i64>(0), seen);
                });
                let theirs = theirs.await;
                let questions: Vec<_> =
                    claims.iter().map(|claims| question(&world, claims, rows)).collect();
                let ours = measure(time, async || {
                    let answers = world.authorizer.visible_to(&changes, &questions).await.unwrap();
                    let verdicts = answers.iter().flat_map(|answer| &answer.verdicts);
                    let visible = verdicts.filter(|verdict| verdict.new == Visibility::Yes);
                    assert_eq!(i64::try_from(visible.count()).unwrap(), seen);
                });
                let ours = ours.await;
                let each =
                    |time: Duration| time.as_secs_f64() * 1e6 / f64::from(count) / f64::from(rows);
                let (theirs, ours) = (each(theirs), each(ours));
                let ratio = theirs / ours;
                println!(
                    "{:<12} {rows:>5} {count:>6} {theirs:>10.2} {ours:>10.2} {ratio:>7.2}",
                    policy.name
                );
                let key = format!("{}_{rows}_rows_{count}_users", policy.name);
                ratios.insert(key, ((ratio * 100.0).round() / 100.0).into());
            }
        }
    }
    println!("\n{}", json!({ "scenario": "rls", "ratios": ratios }));
}

/// The median time; the first call, which makes plans and connections, does not count.
async fn measure(time: Duration, mut call: impl AsyncFnMut()) -> Duration {
    call().await;
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < ROUNDS_MIN || start.elapsed() < time {
        let began = Instant::now();
        call().await;
        times.push(began.elapsed());
    }
    times.sort();
    times[times.len() / 2]
}

fn subject(number: u32) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

/// Some 450 bytes, as a token of a signed-in user has them.
fn claims(number: u32) -> String {
    json!({
        "sub": subject(number), "role": "authenticated", "aud": "authenticated",
        "iss": "https://abcdefghijklmnop.example/auth/v1", "iat": 1_700_000_000, "exp": 1_900_000_000,
        "email": format!("somebody.{number}@some-organisation.example"), "phone": "",
        "app_metadata": { "provider": "email", "providers": ["email"] },
        "user_metadata": { "name": "Somebody Ordinary", "avatar": "https://pictures.example/1.png" },
        "aal": "aal1", "amr": [{ "method": "password", "timestamp": 1_700_000_000 }],
        "session_id": subject(number), "is_anonymous": false
    })
    .to_string()
}

fn question(world: &World, claims: &str, rows: u32) -> Question {
    Question { role: Arc::clone(&world.user), claims: claims.into(), changes: (0..rows).collect() }
}

/// 200,000 memberships, of which the map in question has some; policies on that table, too.
async fn prepare(world: &World) {
    world.create_notes().await;
    world
        .run(&format!(
            "truncate map_members, notes, maps;
            insert into maps select generate_series(1, 2000);
            insert into map_members
                select 1, ('00000000-0000-4000-8000-' || lpad((2 * g)::text, 12, '0'))::uuid
                from generate_series(0, {MEMBERS} - 1) as g;
            insert into map_members
                select 2 + g % 1999, ('00000000-0000-4000-9000-' || lpad(g::text, 12, '0'))::uuid
                from generate_series(1, 200000) as g;
            create index on map_members (user_id);
            alter table map_members enable row level security;
            create policy own on map_members using (user_id = auth.uid());
            create function is_member(map int) returns boolean
                language sql stable security definer set search_path = '' as
                $$ select exists (select from public.map_members as m
                    where m.map_id = map and m.user_id = auth.uid()) $$;
            create schema bench;
            grant usage on schema bench to public;
            analyze;"
        ))
        .await;
}

/// A transaction of this many rows in map 1, all owned by the first user.
async fn insert(world: &World, rows: u32) -> Vec<Change> {
    world.run("truncate notes").await;
    let owner = subject(0);
    let values =
        format!("select g, 1, '{owner}', repeat('x', 100) from generate_series(1, {rows}) as g");
    world.insert("notes", &values).await
}

/// First and last key.
fn range(changes: &[Change]) -> (i32, i32) {
    (1, changes.len().try_into().unwrap())
}

/// The check login as the role, for good.
async fn as_the_user(world: &World) -> Client {
    let name = &world.database.name;
    let url =
        world.database.url.replace("postgres://postgres@", &format!("postgres://{name}_check@"));
    let client = cluster::connect(&url).await;
    let become_user = format!("set jit = off; set role {}", world.user);
    client.batch_execute(&become_user).await.unwrap();
    client
}

/// How many of the rows from $2 to $3 the users with the claims of $1 see.
async fn make_loop(world: &World, policy: &Policy) {
    let condition = policy.condition;
    world
        .run(&format!(
            "create or replace function bench.rows(first int, last int) returns public.notes[]
                language sql stable security definer as
                $$ select array_agg(n order by n.id) from public.notes as n
                    where n.id between first and last $$;
            create or replace function bench.seen(claims text[], first int, last int)
                returns bigint language plpgsql stable as $$
            declare
                images public.notes[] := bench.rows(first, last);
                one text;
                total bigint := 0;
                here bigint;
            begin
                foreach one in array claims loop
                    perform pg_catalog.set_config('request.jwt.claims', one, true);
                    select count(*) into here from unnest(images) as notes where {condition};
                    total := total + here;
                end loop;
                return total;
            end $$;"
        ))
        .await;
}
