//! Who sees what, from the log to the sockets of several users.
//!
//! The numbered cases are those of the study of Row Level Security that the authoriser stands on;
//! `rls.rs` asks the authoriser itself, here the whole service answers.

use serde_json::{Value, json};

use crate::cluster;
use crate::service::{ALICE, BOB, anon, service_role, user};
use crate::stream::{Held, World, all_of, nothing};

/// A member of nothing.
const CAROL: &str = "00000000-0000-4000-8000-00000000000c";

/// Notes are seen by the members of their map: Alice is in map 1, Bob in map 2.
fn notes() -> String {
    format!(
        "create table maps (id int primary key);
        create table map_members (
            map_id int references maps on delete cascade,
            user_id uuid,
            primary key (map_id, user_id)
        );
        create table notes (
            id int primary key,
            map_id int references maps on delete cascade,
            body text
        );
        alter table notes replica identity full;
        alter table notes enable row level security;
        create policy members on notes to authenticated using (
            map_id in (select m.map_id from map_members as m where m.user_id = auth.uid())
        );
        grant all on maps, map_members, notes to anon, authenticated, service_role;
        insert into maps values (1), (2);
        insert into map_members values (1, '{ALICE}'), (2, '{BOB}');
        alter publication supabase_realtime add table maps, map_members, notes;"
    )
}

/// Alice, Bob, Carol, somebody without a token of their own, and the service, all on the notes.
async fn world() -> World {
    let mut world = World::start(&notes()).await;
    for token in [user(ALICE), user(BOB), user(CAROL), anon(), service_role()] {
        world.join(&token, all_of("notes")).await;
    }
    world
}

/// What Alice, Bob, Carol, anon and the service get.
async fn check(world: &mut World, sql: &str, expected: [&[&str]; 5]) {
    let seen = world.seen(sql).await;
    assert_eq!(seen, expected, "{sql}");
}

const INSERTED: &str = r#"INSERT notes {"body":"a","id":10,"map_id":1}"#;

#[tokio::test]
async fn case_01_04_a_row_is_shown_to_the_members_of_its_map_and_leaves_with_a_delete() {
    let mut world = world().await;
    let all: [&[&str]; 5] = [&[INSERTED], &[], &[], &[], &[INSERTED]];
    check(&mut world, "insert into notes values (10, 1, 'a')", all).await;
    let moved: [&[&str]; 5] = [
        &[r#"DELETE notes old {"id":10}"#],
        &[r#"UPDATE notes {"body":"a","id":10,"map_id":2} old {"id":10}"#],
        &[],
        &[],
        &[r#"UPDATE notes {"body":"a","id":10,"map_id":2} old {"body":"a","id":10,"map_id":1}"#],
    ];
    check(&mut world, "update notes set map_id = 2 where id = 10", moved).await;
}

#[tokio::test]
async fn case_02_03_what_was_overtaken_before_it_was_looked_at_is_shown_as_it_was() {
    let mut world = world().await;
    // Nobody can decide while the members are locked, so that all of it is decided afterwards.
    let held = world.hold("map_members").await;
    world.run("insert into notes values (10, 1, 'a')").await;
    world.run("update notes set map_id = 2, body = 'b' where id = 10").await;
    world.run("insert into notes values (11, 1, 'c')").await;
    world.run("delete from notes where id = 11").await;
    held.release().await;
    let expected: [&[&str]; 5] = [
        &[
            INSERTED,
            r#"DELETE notes old {"id":10}"#,
            r#"INSERT notes {"body":"c","id":11,"map_id":1}"#,
            r#"DELETE notes old {"id":11}"#,
        ],
        &[r#"UPDATE notes {"body":"b","id":10,"map_id":2} old {"id":10}"#],
        &[],
        &[],
        &[
            INSERTED,
            r#"UPDATE notes {"body":"b","id":10,"map_id":2} old {"body":"a","id":10,"map_id":1}"#,
            r#"INSERT notes {"body":"c","id":11,"map_id":1}"#,
            r#"DELETE notes old {"id":11}"#,
        ],
    ];
    check(&mut world, "select", expected).await;
}

#[tokio::test]
async fn case_06_07_an_old_key_and_a_delete_are_for_those_who_saw_the_row() {
    let mut world = world().await;
    world.seen("insert into notes values (10, 1, 'a')").await;
    let update =
        r#"UPDATE notes {"body":"a","id":20,"map_id":1} old {"body":"a","id":10,"map_id":1}"#;
    let expected: [&[&str]; 5] = [&[update], &[], &[], &[], &[update]];
    check(&mut world, "update notes set id = 20", expected).await;
    let expected: [&[&str]; 5] = [
        &[r#"DELETE notes old {"id":20}"#],
        &[r#"UPDATE notes {"body":"a","id":30,"map_id":2} old {}"#],
        &[],
        &[],
        &[r#"UPDATE notes {"body":"a","id":30,"map_id":2} old {"body":"a","id":20,"map_id":1}"#],
    ];
    check(&mut world, "update notes set id = 30, map_id = 2", expected).await;
    let deleted: &[&str] = &[r#"DELETE notes old {"id":30}"#];
    check(&mut world, "delete from notes", [&[], deleted, &[], &[], deleted]).await;
}

#[tokio::test]
async fn case_08_10_with_the_default_identity_a_delete_is_a_key_for_whom_a_policy_could_be_true() {
    let mut world = world().await;
    world.seen("alter table notes replica identity default").await;
    world.seen("insert into notes values (10, 1, 'a')").await;
    let update = r#"UPDATE notes {"body":"b","id":10,"map_id":1} old {"id":10}"#;
    let expected: [&[&str]; 5] = [&[update], &[], &[], &[], &[update]];
    check(&mut world, "update notes set body = 'b'", expected).await;
    let key: &[&str] = &[r#"DELETE notes old {"id":10}"#];
    // No policy names anon's role: whatever the row held, anon never saw it.
    check(&mut world, "delete from notes", [key, key, key, &[], key]).await;
}

#[tokio::test]
async fn case_09_an_identity_index_over_the_policys_column_decides_a_delete() {
    let mut world = world().await;
    world
        .seen(
            "alter table notes alter map_id set not null;
            create unique index by_map on notes (id, map_id);
            alter table notes replica identity using index by_map;",
        )
        .await;
    world.seen("insert into notes values (10, 1, 'a')").await;
    let key: &[&str] = &[r#"DELETE notes old {"id":10}"#];
    check(&mut world, "delete from notes", [key, &[], &[], &[], key]).await;
}

#[tokio::test]
async fn case_11_a_cascade_tells_those_who_saw_the_row_before_it() {
    let mut world = world().await;
    world.seen("insert into notes values (10, 1, 'a')").await;
    world.history_kept().await;
    let key: &[&str] = &[r#"DELETE notes old {"id":10}"#];
    check(&mut world, "delete from maps where id = 1", [key, &[], &[], &[], key]).await;
}

#[tokio::test]
async fn case_12_14_a_transaction_is_decided_as_a_whole_and_without_what_it_took_back() {
    let mut world = world().await;
    let expected: [&[&str]; 5] = [&[INSERTED], &[], &[INSERTED], &[], &[INSERTED]];
    let sql = format!(
        "begin;
        insert into notes values (10, 1, 'a');
        insert into map_members values (1, '{CAROL}');
        savepoint s;
        insert into notes values (11, 1, 'never');
        insert into map_members values (1, '{BOB}');
        rollback to s;
        commit;"
    );
    check(&mut world, &sql, expected).await;
    let sql = "begin; savepoint s; insert into notes values (12, 2, 'b'); release s; commit;";
    let inserted: &[&str] = &[r#"INSERT notes {"body":"b","id":12,"map_id":2}"#];
    check(&mut world, sql, [&[], inserted, &[], &[], inserted]).await;
    check(&mut world, "begin; insert into notes values (13, 2, 'b'); rollback;", nothing()).await;
}

#[tokio::test]
async fn case_15_a_truncate_says_nothing_and_what_follows_is_decided_without_what_it_took() {
    let mut world = world().await;
    world.seen("insert into notes values (10, 1, 'a')").await;
    check(&mut world, "truncate notes", nothing()).await;
    let all: [&[&str]; 5] = [&[INSERTED], &[], &[], &[], &[INSERTED]];
    check(&mut world, "insert into notes values (10, 1, 'a')", all).await;
    check(&mut world, "truncate map_members", nothing()).await;
    let service: &[&str] = &[r#"INSERT notes {"body":"b","id":11,"map_id":1}"#];
    let expected: [&[&str]; 5] = [&[], &[], &[], &[], service];
    check(&mut world, "insert into notes values (11, 1, 'b')", expected).await;
}

#[tokio::test]
async fn case_16_a_large_transaction_goes_to_those_who_may_see_it_in_order() {
    let mut world = world().await;
    let seen = world
        .seen("insert into notes select n, 1 + n % 2, 'row ' || n from generate_series(1, 10000) n")
        .await;
    let of = |map: usize| -> Vec<String> {
        let rows = (1..=10_000).filter(|n| 1 + n % 2 == map);
        rows.map(|n| format!(r#"INSERT notes {{"body":"row {n}","id":{n},"map_id":{map}}}"#))
            .collect()
    };
    assert!(seen[0] == of(1), "{} of 5000", seen[0].len());
    assert!(seen[1] == of(2), "{} of 5000", seen[1].len());
    assert_eq!((seen[2].len(), seen[3].len(), seen[4].len()), (0, 0, 10_000));
}

#[tokio::test]
async fn case_26_43_44_47_policies_count_from_their_place_in_the_log() {
    let mut world = world().await;
    let sql = "insert into notes values (10, 1, 'a')";
    let service: [&[&str]; 5] = [&[], &[], &[], &[], &[INSERTED]];
    // 44: both rows in front of nobody but the new policy's users.
    world.seen("alter policy members on notes using (false)").await;
    check(&mut world, sql, service).await;
    world.seen("delete from notes").await;
    // 26, 43: without any, nobody but who bypasses them.
    world.seen("drop policy members on notes").await;
    check(&mut world, sql, service).await;
    let deleted: [&[&str]; 5] = [&[], &[], &[], &[], &[r#"DELETE notes old {"id":10}"#]];
    check(&mut world, "delete from notes", deleted).await;
    world.seen("create policy everybody on notes to anon using (map_id = 1)").await;
    check(&mut world, sql, [&[], &[], &[], &[INSERTED], &[INSERTED]]).await;
    world.seen("delete from notes").await;
    // 47: and off, and on again.
    world.seen("alter table notes disable row level security").await;
    check(&mut world, sql, [&[INSERTED]; 5]).await;
    let whole: &[&str] = &[r#"DELETE notes old {"body":"a","id":10,"map_id":1}"#];
    check(&mut world, "delete from notes", [whole; 5]).await;
    world.seen("alter table notes enable row level security, force row level security").await;
    check(&mut world, sql, [&[], &[], &[], &[INSERTED], &[INSERTED]]).await;
}

#[tokio::test]
async fn case_44_a_policy_and_the_rows_around_it_in_one_transaction() {
    let mut world = world().await;
    // The newer policy counts for a row committed together with it.
    let sql = "begin;
        insert into notes values (10, 1, 'a');
        alter policy members on notes using (map_id = 2);
        insert into notes values (11, 2, 'b');
        commit;";
    let second: &str = r#"INSERT notes {"body":"b","id":11,"map_id":2}"#;
    let expected: [&[&str]; 5] = [&[second], &[second], &[second], &[], &[INSERTED, second]];
    check(&mut world, sql, expected).await;
}

#[tokio::test]
async fn case_32_a_policy_that_raises_for_one_user_withholds_from_that_user_alone() {
    let mut world = World::start(&notes()).await;
    // Nobody can be refused at the door for a policy that is not there yet.
    world.run("alter policy members on notes using (true)").await;
    let odd = json!({ "role": "authenticated", "sub": "user_2abc" });
    for token in [user(ALICE), crate::service::token(&odd), user(CAROL)] {
        world.join(&token, all_of("notes")).await;
    }
    world
        .seen(
            "alter policy members on notes
                using (map_id = 1 and (auth.jwt() ->> 'sub')::uuid is not null)",
        )
        .await;
    let seen = world.seen("insert into notes values (10, 1, 'a')").await;
    assert_eq!((&*seen[0], &*seen[2]), (&[INSERTED.to_owned()][..], &[INSERTED.to_owned()][..]));
    assert_eq!(seen[1].len(), 1, "{seen:?}");
    assert!(seen[1][0].starts_with("system error: A change was withheld"), "{seen:?}");
    // Told once in a while, not with each row; the others go on.
    let seen = world.seen("insert into notes values (11, 1, 'b')").await;
    assert_eq!(seen.iter().map(Vec::len).collect::<Vec<_>>(), [1, 0, 1], "{seen:?}");
}

#[tokio::test]
async fn case_34_58_what_can_never_be_shown_is_refused_at_the_door() {
    let world = World::start(
        "create table a (id int primary key);
        create table b (id int primary key);
        alter table a enable row level security;
        alter table b enable row level security;
        create policy p on a using (true or exists (select from b));
        create policy p on b using (exists (select from a));
        grant select on a, b to authenticated;
        create table closed (id int primary key, body text);
        alter publication supabase_realtime add table a, b, closed;",
    )
    .await;
    let refused = world.refused(&user(ALICE), all_of("a")).await;
    assert!(refused.contains("infinite recursion detected in policy for relation"), "{refused}");
    assert!(!refused.contains("Subscribed"), "{refused}");
}

#[tokio::test]
async fn case_55_a_policy_that_sleeps_withholds_from_its_own_user_alone() {
    let mut world = World::with(
        |config| config.database.check_timeout_ms = 1500,
        &format!(
            "{}
            create function slow(id text) returns boolean language plpgsql stable as $$
                begin
                    if id = '{BOB}' then perform pg_sleep(30); end if;
                    return true;
                end
            $$;",
            notes()
        ),
    )
    .await;
    for token in [user(ALICE), user(BOB), user(CAROL)] {
        world.join(&token, all_of("notes")).await;
    }
    world.seen("alter policy members on notes using (slow(auth.uid()::text))").await;
    let seen = world.seen("insert into notes values (10, 1, 'a')").await;
    assert_eq!((&*seen[0], &*seen[2]), (&[INSERTED.to_owned()][..], &[INSERTED.to_owned()][..]));
    assert_eq!(seen[1].len(), 1, "{seen:?}");
    assert!(seen[1][0].starts_with("system error: A change was withheld"), "{seen:?}");
}

#[tokio::test]
async fn case_57_58_only_granted_columns_are_shown_and_a_hidden_key_shows_nothing_else() {
    let mut world = World::start(
        "create table t (id int primary key, open text, hidden text);
        grant select (id, open) on t to authenticated;
        grant select on t to service_role;
        alter table t replica identity full;
        alter publication supabase_realtime add table t;",
    )
    .await;
    world.join(&user(ALICE), all_of("t")).await;
    world.join(&service_role(), all_of("t")).await;
    let seen = world.seen("insert into t values (1, 'a', 'b')").await;
    let whole = r#"INSERT t {"hidden":"b","id":1,"open":"a"}"#;
    assert_eq!(seen, [[r#"INSERT t {"id":1,"open":"a"}"#], [whole]]);
    let seen = world.seen("grant select (hidden) on t to authenticated; update t set id = 2").await;
    let whole = r#"UPDATE t {"hidden":"b","id":2,"open":"a"} old {"hidden":"b","id":1,"open":"a"}"#;
    assert_eq!(seen, [[whole], [whole]]);
    let seen =
        world.seen("revoke select (open) on t from authenticated; update t set id = 3").await;
    assert_eq!(seen[0], [r#"UPDATE t {"hidden":"b","id":3} old {"hidden":"b","id":2}"#]);
    let seen = world.seen("revoke select (id) on t from authenticated; update t set id = 4").await;
    let ended =
        "system error: The subscription to public.t ended: the primary key may not be read.";
    assert_eq!(seen[0], [r#"UPDATE t {} old {} ["Error 401: Unauthorized"]"#, ended]);
    let seen = world.seen("revoke all on t from authenticated; delete from t").await;
    assert_eq!(seen[0], Vec::<String>::new(), "it has ended");
}

/// A world where Alice may read two columns of a table, and see the rows that she owns. The feed
/// is at a change before that table's first; what follows is looked at only when the returned lock
/// is released, after `sql`.
async fn with_unread(sql: &str) -> (World, Held) {
    let mut world = World::start(&format!(
        "{}
        create table t (id int primary key, open text, hidden text, owner uuid, editor uuid);
        alter table t enable row level security;
        create policy own on t to authenticated using (owner = auth.uid());
        grant select (id, open) on t to authenticated;
        grant select on t to service_role;
        alter publication supabase_realtime add table t;",
        notes()
    ))
    .await;
    for token in [user(ALICE), user(BOB), service_role()] {
        world.join(&token, [all_of("t"), all_of("notes")].concat()).await;
    }
    let held = world.hold("map_members").await;
    // The first change waits for a policy that cannot be asked. The second, behind a mark in the
    // same transaction, is not looked at before.
    world
        .run(&format!(
            "insert into notes values (10, 1, 'first');
            alter table t add column more int;
            insert into t values (1, 'shown', 'secret', '{ALICE}', '{BOB}')"
        ))
        .await;
    world.a_check_waits().await;
    world.run(sql).await;
    (world, held)
}

/// Two columns of that table take each other's name.
fn swap(one: &str, other: &str) -> String {
    format!(
        "begin;
        alter table t rename {one} to middle;
        alter table t rename {other} to {one};
        alter table t rename middle to {other};
        commit"
    )
}

#[tokio::test]
async fn columns_that_swap_their_names_keep_who_may_read_them() {
    let (mut world, held) = with_unread(&swap("open", "hidden")).await;
    held.release().await;
    let seen = world.seen("insert into t values (2, 'secret too', 'shown too', null, null)").await;
    // What was granted is called `hidden` now.
    assert_eq!(seen[0][1..], [r#"INSERT t {"hidden":"shown","id":1}"#]);
    let service = r#"INSERT t {"editor":"B","hidden":"shown","id":1,"more":null,"open":"secret","owner":"A"}"#;
    let service = service.replace("\"A\"", &format!("{ALICE:?}"));
    assert_eq!(seen[2][1], service.replace("\"B\"", &format!("{BOB:?}")));
}

#[tokio::test]
async fn a_column_that_takes_the_name_of_a_dropped_one_shows_none_of_its_values() {
    let replace = "begin;
        alter table t drop open;
        alter table t rename hidden to open;
        alter table t add hidden text;
        grant select (hidden) on t to authenticated;
        commit";
    let (mut world, held) = with_unread(replace).await;
    held.release().await;
    let new = format!("insert into t values (2, 'secret', '{ALICE}', null, null, 'shown')");
    let seen = world.seen(&new).await;
    // Which column was which cannot be told of the first one; of the second it can.
    assert_eq!(
        seen[0][1..],
        [r#"INSERT t {"id":1}"#, r#"INSERT t {"hidden":"shown","id":2}"#],
        "{seen:?}"
    );
}

#[tokio::test]
async fn columns_that_swap_their_names_keep_what_the_policy_sees_in_them() {
    let (mut world, held) = with_unread(&swap("owner", "editor")).await;
    held.release().await;
    let seen = world.seen("select").await;
    assert_eq!(seen[0][1..], [r#"INSERT t {"id":1,"open":"shown"}"#]);
    assert_eq!(seen[1], Vec::<String>::new(), "the policy follows its column");
}

#[tokio::test]
async fn case_58_a_hidden_key_is_no_news_of_rows_that_one_may_not_see() {
    let mut world = world().await;
    world
        .seen(
            "revoke select on notes from authenticated;
            grant select (map_id) on notes to authenticated",
        )
        .await;
    let seen = world.seen("insert into notes values (10, 1, 'a')").await;
    let ended =
        "system error: The subscription to public.notes ended: the primary key may not be read.";
    assert_eq!(seen[0], [r#"INSERT notes {} ["Error 401: Unauthorized"]"#, ended]);
    assert_eq!((&*seen[1], &*seen[2]), (&[ended.to_owned()][..], &[ended.to_owned()][..]));
    assert_eq!(seen[3], Vec::<String>::new());
}

#[tokio::test]
async fn case_59_a_filter_on_a_column_that_was_revoked_ends() {
    let mut world = World::start(
        "create table t (id int primary key, secret text);
        grant select on t to authenticated, service_role;
        alter publication supabase_realtime add table t;",
    )
    .await;
    let filter = json!({
        "event": "*", "schema": "public", "table": "t", "filter": "secret=eq.x"
    });
    world.join(&user(ALICE), vec![filter.clone()]).await;
    world.join(&user(ALICE), all_of("t")).await;
    world.join(&service_role(), vec![filter]).await;
    let shown = r#"INSERT t {"id":1,"secret":"x"}"#;
    assert_eq!(world.seen("insert into t values (1, 'x')").await, [[shown], [shown], [shown]]);
    world
        .seen("revoke select on t from authenticated; grant select (id) on t to authenticated")
        .await;
    let seen = world.seen("insert into t values (2, 'x')").await;
    assert_eq!(seen[0].len(), 1, "{seen:?}");
    assert!(seen[0][0].starts_with("system error: "), "{seen:?}");
    assert!(seen[0][0].contains("secret"), "{seen:?}");
    assert_eq!(seen[1], [r#"INSERT t {"id":2}"#]);
    assert_eq!(seen[2], [r#"INSERT t {"id":2,"secret":"x"}"#]);
    // Neither what matches nor what does not can be told from what comes.
    let seen = world.seen("insert into t values (3, 'x'); insert into t values (4, 'y')").await;
    assert_eq!(seen[0], Vec::<String>::new());
}

/// A value that is stored out of line, and so left out of an update that does not touch it.
const LARGE: &str = "(select string_agg(md5(n::text), '') from generate_series(1, 400) as n)";

#[tokio::test]
async fn case_62_63_an_unchanged_large_value_decides_and_is_never_null() {
    let mut world = World::start(
        "create table docs (id int primary key, body text, n int);
        alter table docs enable row level security;
        create policy p on docs to authenticated using (body like 'c4%' and auth.uid() is not null);
        grant all on docs to authenticated, service_role;
        alter publication supabase_realtime add table docs;",
    )
    .await;
    world.join(&user(ALICE), all_of("docs")).await;
    world.join(&service_role(), all_of("docs")).await;
    world.run("alter table docs alter body set storage external").await;
    world.seen(&format!("insert into docs values (1, {LARGE}, 0), (2, 'd' || {LARGE}, 0)")).await;
    // The default identity: found in the table, absent from the record.
    let seen = world.seen("update docs set n = 1").await;
    let first = r#"UPDATE docs {"id":1,"n":1} old {"id":1}"#;
    let second = r#"UPDATE docs {"id":2,"n":1} old {"id":2}"#;
    assert_eq!(seen[0], [first]);
    assert_eq!(seen[1], [first, second]);
    // The full identity: taken from the old row.
    world.run("alter table docs replica identity full").await;
    let seen = world.seen_data("update docs set n = 2").await;
    assert_eq!(seen[0].len(), 1);
    for row in ["record", "old_record"] {
        let body = seen[0][0][row]["body"].as_str().unwrap();
        assert!(body.starts_with("c4") && body.len() == 400 * 32, "{row}");
    }
    assert_eq!(seen[1].len(), 2);
    // A filter looks at it too, and is not fooled by its absence.
    let filter =
        |text: &str| json!({ "event": "*", "schema": "public", "table": "docs", "filter": text });
    let mut filtered = vec![filter("body=is.null"), filter("body=like.d%")];
    world.join(&service_role(), vec![filtered.remove(0)]).await;
    world.join(&service_role(), vec![filtered.remove(0)]).await;
    let seen = world.seen_data("update docs set n = 3").await;
    assert_eq!((seen[2].len(), seen[3].len()), (0, 1));
    world.run("alter table docs replica identity default").await;
    let seen = world.seen_data("update docs set n = 4").await;
    assert_eq!(seen[2].len(), 0, "not sent is not null");
}

#[tokio::test]
async fn case_64_65_66_generated_columns_column_lists_and_row_filters() {
    let narrowing = cluster::narrowing("(id, shown)", "where (n > 10)").await;
    let (columns, rows) = narrowing.unwrap_or_default();
    let mut world = World::start(&format!(
        "create table g (id int primary key, a int, g int generated always as (a * 2) stored);
        alter table g enable row level security;
        create policy p on g to authenticated using (g is distinct from 60);
        create table l (id int primary key, shown text, owner uuid);
        alter table l enable row level security;
        create policy p on l to authenticated using (owner = auth.uid());
        create table f (id int primary key, n int);
        alter table f replica identity full;
        grant all on g, l, f to authenticated, service_role;
        alter publication supabase_realtime add table g, l {columns}, f {rows};",
    ))
    .await;
    let everything = || [all_of("g"), all_of("l"), all_of("f")].concat();
    world.join(&user(ALICE), everything()).await;
    world.join(&service_role(), everything()).await;
    // 64: the log has no generated columns, and that is not null.
    let seen = world.seen("insert into g values (1, 30), (2, 31)").await;
    assert_eq!(seen[0], [r#"INSERT g {"a":31,"id":2}"#]);
    assert_eq!(seen[1].len(), 2);
    if narrowing.is_none() {
        return;
    }
    // 65: a column that only the policy needs is looked up; only published ones are shown.
    let sql = format!("insert into l values (1, 'a', '{ALICE}'), (2, 'b', '{BOB}')");
    let seen = world.seen(&sql).await;
    let (mine, other) = (r#"INSERT l {"id":1,"shown":"a"}"#, r#"INSERT l {"id":2,"shown":"b"}"#);
    assert_eq!(seen[0], [mine]);
    assert_eq!(seen[1], [mine, other]);
    // 66: crossing the publication's filter is an INSERT or a DELETE.
    assert_eq!(world.seen("insert into f values (1, 5)").await, [[""; 0], [""; 0]]);
    let entered = r#"INSERT f {"id":1,"n":15}"#;
    assert_eq!(world.seen("update f set n = 15").await, [[entered], [entered]]);
    let left = r#"DELETE f old {"id":1,"n":15}"#;
    assert_eq!(world.seen("update f set n = 5").await, [[left], [left]]);
}

#[tokio::test]
async fn a_policy_on_a_partitioned_table_of_members_counts_its_partitions() {
    let mut world = World::start(
        "create table members (map_id int, user_id uuid, primary key (map_id, user_id))
            partition by list (map_id);
        create table members_1 partition of members for values in (1);
        create table notes (id int primary key, map_id int, body text);
        alter table notes replica identity full;
        alter table notes enable row level security;
        create policy members on notes to authenticated using (
            exists (
                select from members as m
                where m.map_id = notes.map_id and m.user_id = auth.uid()
            )
        );
        grant all on members, notes to authenticated, service_role;
        insert into notes values (10, 1, 'secret');
        alter publication supabase_realtime add table notes, members;",
    )
    .await;
    world.join(&user(ALICE), all_of("notes")).await;
    world.history_kept().await;
    // Let in by the same transaction that overwrites the row: the old values are from before.
    let seen = world
        .seen(&format!(
            "begin;
            insert into members values (1, '{ALICE}');
            update notes set body = 'open';
            commit;"
        ))
        .await;
    assert_eq!(seen[0], [r#"UPDATE notes {"body":"open","id":10,"map_id":1} old {"id":10}"#]);
}

#[tokio::test]
async fn nobody_is_shown_what_is_decided_while_the_checks_are_cut_off() {
    let mut world = world().await;
    let held = world.hold("map_members").await;
    world.run("insert into notes values (10, 1, 'a')").await;
    // Again and again, in the middle of a question.
    for _ in 0..3 {
        world.cut_checks().await;
    }
    held.release().await;
    let all: [&[&str]; 5] = [&[INSERTED], &[], &[], &[], &[INSERTED]];
    check(&mut world, "select", all).await;
    let ids: Value = world.seen_data("insert into notes values (11, 2, 'b')").await[1][0]["record"]
        ["id"]
        .clone();
    assert_eq!(ids, 11);
}
