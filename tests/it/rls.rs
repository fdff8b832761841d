//! Who may see a row, on a real Postgres. The numbered cases are those of the project's list of
//! adversarial situations: moves, deletes, policies of every shape, incomplete images.

use std::sync::Arc;
use std::time::{Duration, Instant};

use walcast::auth::rls::{Error, ProbeError, Question, Shown};
use walcast::change::{Change, OldImage, Operation, Tuple, Value};
use walcast::config::DeleteMode;

use crate::cluster;
use crate::rls_world::{A, B, C, Failed, No, Unknown, World, Yes, YesNow, claims, question, shown};

const NOTHING: Shown = Shown::Nothing;

#[tokio::test]
async fn case_01_a_row_moved_before_it_is_looked_at_shows_each_version_to_its_own_readers() {
    let world = World::notes().await;
    let mut changes = world.insert("notes", "values (1, 1, null, 'map 1 secret')").await;
    changes.extend(world.update("notes", "map_id = 2, body = 'clean'", "id = 1").await);
    let shown = world.shown(&changes, &[A, B, C]).await;
    assert_eq!(shown[0], [(Operation::Insert, Shown::All), (Operation::Delete, Shown::KeyOnly)]);
    assert_eq!(shown[1], [(Operation::Insert, NOTHING), (Operation::Update, Shown::NewOnly)]);
    assert_eq!(shown[2], [(Operation::Insert, NOTHING), (Operation::Update, NOTHING)]);
}

#[tokio::test]
async fn case_02_03_a_row_deleted_before_it_is_looked_at_was_still_inserted() {
    let world = World::notes().await;
    let mut changes = world.insert("notes", "values (1, 1, null, 'x')").await;
    changes.extend(world.delete("notes", "id = 1").await);
    let shown = world.shown(&changes, &[A, B]).await;
    assert_eq!(shown[0], [(Operation::Insert, Shown::All), (Operation::Delete, Shown::KeyOnly)]);
    assert_eq!(shown[1], [(Operation::Insert, NOTHING), (Operation::Delete, NOTHING)]);
}

#[tokio::test]
async fn case_04_a_move_shows_no_old_values_to_those_it_comes_to() {
    let world = World::notes().await;
    world.insert("notes", "values (1, 1, null, 'x')").await;
    let changes = world.update("notes", "map_id = 2", "id = 1").await;
    let shown = world.shown(&changes, &[A, B]).await;
    assert_eq!(
        shown,
        [[(Operation::Delete, Shown::KeyOnly)], [(Operation::Update, Shown::NewOnly)]]
    );
}

#[tokio::test]
async fn case_06_an_old_key_is_told_only_to_those_who_saw_the_old_row() {
    let world = with_history().await;
    world.run(&format!("insert into map_members values (2, '{A}')")).await;
    world.insert("notes", "values (1, 1, null, 'x')").await;
    let changes = world.update("notes", "id = 9, map_id = 2", "id = 1").await;
    let shown = world.shown(&changes, &[A, B]).await;
    assert_eq!(shown, [[(Operation::Update, Shown::All)], [(Operation::Update, Shown::NewOnly)]]);
}

#[tokio::test]
async fn case_07_a_delete_with_a_full_image_goes_to_those_who_saw_the_row() {
    let world = World::notes().await;
    world.insert("notes", "values (1, 1, null, 'x')").await;
    let changes = world.delete("notes", "id = 1").await;
    assert_eq!(world.old_of(&changes, [A, B, C]).await, [Yes, No, No]);
}

#[tokio::test]
async fn case_08_a_delete_with_only_its_key_follows_the_mode() {
    let world = World::notes().await;
    world.run("alter table notes replica identity default").await;
    world.insert("notes", "values (1, 1, null, 'x')").await;
    let changes = world.delete("notes", "id = 1").await;
    let answers = world.ask(&changes, &[A, B]).await;
    for answer in &answers {
        assert_eq!(answer.verdicts[0].old, Unknown);
        let told = |mode| shown(&changes, answer, mode)[0].1;
        assert_eq!(told(DeleteMode::PkCompat), Shown::KeyOnly);
        assert_eq!(told(DeleteMode::Full), NOTHING);
        assert_eq!(told(DeleteMode::Drop), NOTHING);
    }
    world.run(&format!("alter policy members on notes to {}", world.user)).await;
    let anon = world.ask_as(&world.anon, &changes).await;
    assert_eq!(anon.verdicts[0].old, No, "a role without a policy is never told");
}

#[tokio::test]
async fn a_delete_with_only_its_key_is_refused_by_what_the_key_does_decide() {
    let world = World::notes().await;
    world
        .run(
            "alter table notes replica identity default;
            create policy narrow on notes as restrictive for select using (id < 100);
            create policy anybody on notes for select using (id = 5);",
        )
        .await;
    world.insert("notes", "values (1, 1, null, ''), (5, 1, null, ''), (100, 1, null, '')").await;
    let changes = world.delete("notes", "true").await;
    let answer = world.ask(&changes, &[B]).await.remove(0);
    let old: Vec<_> = answer.verdicts.iter().map(|verdict| verdict.old).collect();
    assert_eq!(old, [Unknown, Yes, No]);
}

#[tokio::test]
async fn case_09_an_identity_index_over_the_policy_columns_decides_a_delete() {
    let world = World::notes().await;
    world
        .run(
            "alter table notes alter map_id set not null;
            create unique index notes_identity on notes (id, map_id);
            alter table notes replica identity using index notes_identity;",
        )
        .await;
    world.insert("notes", "values (1, 1, null, 'x')").await;
    let changes = world.delete("notes", "id = 1").await;
    assert_eq!(changes[0].old_record.as_ref().unwrap().0, OldImage::Key);
    assert_eq!(world.old_of(&changes, [A, B]).await, [Yes, No]);
}

#[tokio::test]
async fn case_10_without_an_old_image_the_old_row_is_unknown() {
    let world = World::notes().await;
    world.run("alter table notes replica identity default").await;
    world.insert("notes", "values (1, 1, null, 'x')").await;
    let changes = world.update("notes", "body = 'y'", "id = 1").await;
    assert!(changes[0].old_record.is_none());
    let answers = world.ask(&changes, &[A, B]).await;
    assert_eq!((answers[0].verdicts[0].old, answers[0].verdicts[0].new), (Unknown, Yes));
    assert_eq!((answers[1].verdicts[0].old, answers[1].verdicts[0].new), (Unknown, No));
    assert_eq!(shown(&changes, &answers[0], DeleteMode::Full)[0].1, Shown::NewOnly);
    assert_eq!(shown(&changes, &answers[1], DeleteMode::PkCompat)[0].1, NOTHING);
}

/// A world whose snapshots of the past stay as long as the test needs them.
///
/// The log tells of every table.
async fn with_history() -> World {
    let world = World::with(|settings| settings.snapshot_interval_ms = 60_000).await;
    world.create_notes().await;
    world.run("create publication published for table maps, map_members, notes").await;
    world
}

async fn take_history(world: &World) {
    let taken = world.authorizer.history_kept();
    world.authorizer.keep_history(true);
    tokio::time::timeout(Duration::from_secs(20), taken).await.unwrap();
}

#[tokio::test]
async fn case_11_a_cascade_tells_those_who_were_members_before_it() {
    let world = with_history().await;
    world.insert("notes", "values (1, 1, null, 'x'), (2, 2, null, 'y')").await;
    take_history(&world).await;
    let mut writer = world.begin().await;
    writer.expect_delete("map_members", "map_id = 1").await;
    writer.expect_delete("notes", "map_id = 1").await;
    writer.delete("maps", "id = 1").await;
    let changes: Vec<Change> = writer.commit().await;
    let note: Vec<Change> =
        changes.iter().filter(|change| &*change.relation.table == "notes").cloned().collect();
    world.authorizer.observe(&changes);
    assert_eq!(world.old_of(&note, [A, B, C]).await, [Yes, No, No]);
}

#[tokio::test]
async fn a_cascade_does_not_tell_those_who_had_left_before_it() {
    let world = with_history().await;
    world.insert("notes", "values (1, 1, null, 'x')").await;
    take_history(&world).await;
    // The held snapshot still sees A as a member.
    let mut changes = world.delete("map_members", "map_id = 1").await;
    let mut writer = world.begin().await;
    writer.expect_delete("notes", "map_id = 1").await;
    writer.delete("maps", "id = 1").await;
    changes.extend(writer.commit().await);
    let answer = world.ask(&changes, &[A]).await.remove(0);
    let place = changes.iter().position(|change| &*change.relation.table == "notes").unwrap();
    assert_eq!(answer.verdicts[place].old, No);
}

#[tokio::test]
async fn a_delete_is_told_although_the_policy_looks_the_row_up_by_its_key() {
    let world = with_history().await;
    world
        .run(
            "create function can_see(note int) returns boolean
            language sql stable security definer as $$
                select exists (
                    select from notes as n join map_members as m using (map_id)
                    where n.id = note and m.user_id = auth.uid()
                )
            $$",
        )
        .await;
    world.policy("can_see(id)").await;
    world.insert("notes", "values (1, 1, null, 'x')").await;
    take_history(&world).await;
    let changes = world.delete("notes", "id = 1").await;
    assert_eq!(world.old_of(&changes, [A, B]).await, [Yes, No]);
}

#[tokio::test]
async fn old_values_are_kept_from_those_who_were_let_in_by_the_same_transaction() {
    let world = with_history().await;
    world.insert("notes", "values (1, 1, null, 'before')").await;
    take_history(&world).await;
    let mut writer = world.begin().await;
    writer.insert("map_members", &format!("values (1, '{C}')")).await;
    writer.update("notes", "body = 'after'", "id = 1").await;
    let changes = writer.commit().await;
    let shown = world.shown(&changes, &[A, C]).await;
    assert_eq!(shown[0][1], (Operation::Update, Shown::All));
    assert_eq!(shown[1][1], (Operation::Update, Shown::NewOnly));
}

/// Ways for a policy to read the members, and whether the log tells of every table then.
const MEMBERSHIPS: [(&str, &str); 5] = [
    ("map_id in (select m.map_id from map_members as m where m.user_id = auth.uid())", "notes"),
    ("map_id in (select my_maps())", "map_members, notes"),
    ("is_member(map_id)", "map_members, notes"),
    ("map_id = any (atomic_maps())", "map_members, notes"),
    ("map_id in (select map_id from my_memberships)", "map_members, notes"),
];

/// A world with that policy and exactly these tables published.
async fn with_membership((condition, published): (&str, &str)) -> World {
    let world = with_history().await;
    world
        .run(
            "create function my_maps() returns setof int
            language sql stable security definer as $$
                select map_id from map_members where user_id = auth.uid()
            $$;
            create function is_member(map int) returns boolean
            language plpgsql stable security definer as $$
                begin
                    return exists (
                        select from map_members where map_id = map and user_id = auth.uid()
                    );
                end
            $$;
            create function atomic_maps() returns int[]
            language sql stable security definer
            begin atomic
                select array(select map_id from map_members where user_id = auth.uid());
            end;
            create view my_memberships as select * from map_members where user_id = auth.uid();
            grant select on my_memberships to public;",
        )
        .await;
    world.policy(condition).await;
    world.run(&format!("alter publication published set table {published}")).await;
    world
}

/// Without what the log does not carry.
fn logged(changes: Vec<Change>, published: &str) -> Vec<Change> {
    let carried = |change: &Change| published.split(", ").any(|t| t == &*change.relation.table);
    changes.into_iter().filter(carried).collect()
}

#[tokio::test]
async fn old_values_are_kept_from_those_let_in_by_what_the_log_does_not_tell() {
    for membership in MEMBERSHIPS {
        let world = with_membership(membership).await;
        world.insert("notes", "values (1, 1, null, 'before'), (2, 2, null, 'other')").await;
        take_history(&world).await;
        let mut writer = world.begin().await;
        writer.insert("map_members", &format!("values (1, '{C}')")).await;
        writer.update("notes", "body = 'after'", "id = 1").await;
        // C comes to see the old version alone: its key is nothing to C either.
        writer.update("notes", "map_id = 2", "id = 1").await;
        let changes = logged(writer.commit().await, membership.1);
        let place = changes.iter().position(|c| c.operation == Operation::Update).unwrap();
        let shown = world.shown(&changes, &[A, C]).await;
        assert_eq!(shown[0][place], (Operation::Update, Shown::All), "{membership:?}");
        assert_eq!(shown[1][place], (Operation::Update, Shown::NewOnly), "{membership:?}");
        assert_eq!(shown[1][place + 1].1, NOTHING, "{membership:?}");
    }
}

#[tokio::test]
async fn old_values_written_while_one_was_out_are_kept_from_who_comes_back() {
    for membership in MEMBERSHIPS {
        let world = with_membership(membership).await;
        world.insert("notes", "values (1, 1, null, 'before')").await;
        take_history(&world).await;
        // The held snapshot sees A as a member, as does every one after the last transaction.
        let mut changes = world.delete("map_members", "map_id = 1").await;
        changes.extend(world.update("notes", "body = 'secret'", "id = 1").await);
        let mut writer = world.begin().await;
        writer.insert("map_members", &format!("values (1, '{A}')")).await;
        writer.update("notes", "body = 'after'", "id = 1").await;
        changes.extend(writer.commit().await);
        let changes = logged(changes, membership.1);
        let shown = world.shown(&changes, &[A]).await.remove(0);
        assert_eq!(shown.last(), Some(&(Operation::Update, Shown::NewAndOldKey)), "{membership:?}");
    }
}

#[tokio::test]
async fn several_old_rows_are_looked_for_at_once() {
    let world = with_membership(MEMBERSHIPS[0]).await;
    world.insert("notes", "values (1, 1, null, 'x'), (2, 2, null, null), (3, 1, null, null)").await;
    take_history(&world).await;
    let mut changes = world.update("notes", "body = 'y'", "id = 1").await;
    let mut writer = world.begin().await;
    for id in [1, 2, 3] {
        writer.update("notes", "body = 'z'", &format!("id = {id}")).await;
    }
    changes.extend(writer.commit().await);
    let answers = world.ask(&changes, &[A, B]).await;
    let old = |user: usize| answers[user].verdicts.iter().map(|v| v.old).collect::<Vec<_>>();
    // The second version of the first row is younger than the snapshot.
    assert_eq!(old(0), [Yes, YesNow, No, Yes]);
    assert_eq!(old(1), [No, No, Yes, No]);
}

#[tokio::test]
async fn a_delete_is_not_told_to_those_who_had_left_unheard() {
    for membership in MEMBERSHIPS {
        let world = with_membership(membership).await;
        world.insert("notes", "values (1, 1, null, 'x')").await;
        take_history(&world).await;
        // The held snapshot still sees A as a member.
        let mut changes = world.delete("map_members", "map_id = 1").await;
        changes.extend(world.delete("notes", "id = 1").await);
        let changes = logged(changes, membership.1);
        let answer = world.ask(&changes, &[A]).await.remove(0);
        assert_eq!(answer.verdicts.last().unwrap().old, No, "{membership:?}");
    }
}

#[tokio::test]
async fn functions_that_only_read_the_claims_leave_an_update_its_old_values() {
    let world = with_history().await;
    world
        .run(
            "create function me() returns uuid language sql stable as $$
                -- Who's asking.
                SELECT coalesce(
                    nullif(current_setting('request.jwt.claim.sub', true), ''),
                    (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')
                )::uuid
            $$",
        )
        .await;
    for condition in ["user_id = auth.uid()", "user_id = me()", "user_id = (select auth.uid())"] {
        world.policy(condition).await;
        world.run("truncate notes").await;
        world.insert("notes", &format!("values (1, 1, '{A}', 'x')")).await;
        // There is no snapshot of the past, and none is needed.
        let changes = world.update("notes", "body = 'y'", "id = 1").await;
        let shown = world.shown(&changes, &[A]).await;
        assert_eq!(shown[0][0], (Operation::Update, Shown::All), "{condition}");
    }
}

#[tokio::test]
async fn case_12_a_membership_of_the_same_transaction_counts() {
    let world = World::notes().await;
    let mut writer = world.begin().await;
    writer.insert("notes", "values (1, 1, null, 'x')").await;
    writer.insert("map_members", &format!("values (1, '{C}')")).await;
    let changes = writer.commit().await;
    assert_eq!(world.new_of(&changes[..1], [A, B, C]).await, [Yes, No, Yes]);
}

#[tokio::test]
async fn case_14_the_row_version_is_recognised_under_a_savepoint() {
    let world = World::notes().await;
    world.run("alter table notes add twice int generated always as (map_id * 2) stored").await;
    world.policy("twice = 2 and auth.uid() is not null").await;
    let mut writer = world.begin().await;
    // The row's xmin is the subtransaction's id, not the one in the log.
    writer.run("savepoint s").await;
    writer.insert("notes", "values (1, 1, null, 'x')").await;
    let changes = writer.commit().await;
    assert_eq!(world.new_of(&changes, [A]).await, [Yes]);
}

#[tokio::test]
async fn case_15_after_a_truncate_of_the_members_nobody_sees_anything() {
    let world = World::notes().await;
    let before = world.insert("notes", "values (1, 1, null, 'x')").await;
    assert_eq!(world.new_of(&before, [A]).await, [Yes]);
    world.run("truncate map_members").await;
    let after = world.insert("notes", "values (2, 1, null, 'x')").await;
    assert_eq!(world.new_of(&after, [A]).await, [No]);
}

#[tokio::test]
async fn case_16_a_large_transaction_is_asked_about_in_pieces() {
    let world = World::notes().await;
    let changes = world
        .insert(
            "notes",
            "select i, 1 + i % 2, null, repeat('x', 1000) from generate_series(1, 3000) i",
        )
        .await;
    let answers = world.ask(&changes, &[A, B, C]).await;
    for (place, _) in changes.iter().enumerate() {
        // The first row has id 1, so map 2.
        let expected = if place % 2 == 0 { [No, Yes, No] } else { [Yes, No, No] };
        let seen = [0, 1, 2].map(|user: usize| answers[user].verdicts[place].new);
        assert_eq!(seen, expected, "{place}");
    }
}

#[tokio::test]
async fn case_17_19_25_a_revoked_or_granted_membership_counts_from_then_on() {
    let world = World::notes().await;
    world.run(&format!("delete from map_members where user_id = '{A}'")).await;
    world.run(&format!("insert into map_members values (1, '{B}')")).await;
    let changes = world.insert("notes", "values (1, 1, null, 'x')").await;
    assert_eq!(world.new_of(&changes, [A, B]).await, [No, Yes]);
}

#[tokio::test]
async fn case_26_without_a_policy_only_bypassing_roles_see_rows() {
    let world = World::notes().await;
    world.run("drop policy members on notes").await;
    let changes = world.insert("notes", "values (1, 1, null, 'x')").await;
    assert_eq!(world.new_of(&changes, [A]).await, [No]);
    assert_eq!(world.ask_as(&world.service, &changes).await.verdicts[0].new, Yes);
}

#[tokio::test]
async fn case_27_28_restrictive_or_check_only_policies_let_nobody_in() {
    let world = World::notes().await;
    world
        .run("drop policy members on notes; create policy r on notes as restrictive using (true)")
        .await;
    let changes = world.insert("notes", "values (1, 1, null, 'x')").await;
    assert_eq!(world.new_of(&changes, [A]).await, [No]);
    world.run("drop policy r on notes; create policy c on notes for all with check (true)").await;
    assert_eq!(world.new_of(&changes, [A]).await, [No], "{}", world.user);
}

#[tokio::test]
async fn case_29_permissive_and_restrictive_policies_of_several_roles_combine() {
    let world = World::notes().await;
    let (user, anon) = (&world.user, &world.anon);
    world
        .run(&format!(
            "create policy pub on notes for select to {anon} using (body = 'public');
            create policy own on notes for all to {user} using (user_id = auth.uid());
            create policy short on notes as restrictive for select to {user} using (id < 10);"
        ))
        .await;
    let changes = world
        .insert(
            "notes",
            &format!("values (1, 2, '{A}', ''), (2, 1, null, ''), (30, 1, '{A}', 'public')"),
        )
        .await;
    for (role, place) in [user, anon].into_iter().flat_map(|role| (0..3).map(move |p| (role, p))) {
        let answer = world.ask_as(role, &changes).await;
        let id = ["1", "2", "30"][place];
        let of = format!("id = {id}");
        let native = world.selects(role, &claims(role, A), "notes", &of).await.unwrap();
        let expected = if native { Yes } else { No };
        assert_eq!(answer.verdicts[place].new, expected, "{role} {id}");
    }
}

#[tokio::test]
async fn case_30_a_policy_of_a_group_applies_to_members_that_inherit() {
    let world = World::notes().await;
    let (user, anon, name) = (&world.user, &world.anon, &world.database.name);
    world
        .run(&format!(
            "create role {name}_group;
            -- First: from version 16 on each grant keeps what was the default when it was made.
            alter role {anon} noinherit;
            grant {name}_group to {user}, {anon};
            drop policy members on notes;
            create policy g on notes for select to {name}_group using (true);"
        ))
        .await;
    let changes = world.insert("notes", "values (1, 1, null, 'x')").await;
    assert_eq!(world.ask_as(user, &changes).await.verdicts[0].new, Yes);
    assert_eq!(world.ask_as(anon, &changes).await.verdicts[0].new, No);
    if cluster::version(&world.admin).await >= 160_000 {
        world.run(&format!("grant {name}_group to {user} with inherit false")).await;
        assert_eq!(world.ask_as(user, &changes).await.verdicts[0].new, No);
        world.run(&format!("grant {name}_group to {anon} with inherit true")).await;
        assert_eq!(world.ask_as(anon, &changes).await.verdicts[0].new, Yes);
    }
}

#[tokio::test]
async fn case_31_null_is_not_visible() {
    let world = World::notes().await;
    world.policy("user_id = auth.uid()").await;
    let changes = world.insert("notes", "values (1, 1, null, 'x')").await;
    assert_eq!(world.new_of(&changes, [A]).await, [No]);
}

#[tokio::test]
async fn case_32_a_policy_that_raises_for_one_user_fails_for_that_user_alone() {
    let world = World::notes().await;
    let changes = world.insert("notes", "values (1, 1, null, 'x')").await;
    let answers = world.ask(&changes, &["not-a-uuid", A, C, B]).await;
    let new: Vec<_> = answers.iter().map(|answer| answer.verdicts[0].new).collect();
    assert_eq!(new, [Failed, Yes, No, No]);
    assert!(answers[0].error.as_ref().unwrap().contains("invalid input syntax for type uuid"));
    assert!(answers[1..].iter().all(|answer| answer.error.is_none()));
    assert_eq!(shown(&changes, &answers[0], DeleteMode::PkCompat)[0].1, NOTHING);
}

#[tokio::test]
async fn a_row_on_which_a_policy_raises_withholds_no_other_row() {
    let world = World::notes().await;
    world.policy("body::int > 1 and auth.uid() is not null").await;
    let changes = world
        .insert("notes", "values (1, 1, null, 'x'), (2, 1, null, '0'), (3, 1, null, '5')")
        .await;
    for answer in world.ask(&changes, &[A, B]).await {
        let new: Vec<_> = answer.verdicts.iter().map(|verdict| verdict.new).collect();
        assert_eq!(new, [Failed, No, Yes]);
        assert_eq!(answer.error.as_deref(), Some("invalid input syntax for type integer: \"x\""));
    }
}

fn refusal(result: Result<(), ProbeError>) -> String {
    match result {
        Err(ProbeError::Refused { message, .. }) => message,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn case_34_recursive_policies_are_refused_at_the_door() {
    let world = World::notes().await;
    world
        .run(
            "alter table map_members enable row level security;
            create policy m on map_members using (exists (select from notes where map_id = 1));
            create policy always on notes for select using (true);",
        )
        .await;
    let oid = world.relation("notes").await.oid;
    let claims = claims(&world.user, A);
    let message = refusal(world.authorizer.probe(&world.user, &claims, oid).await);
    assert_eq!(message, "infinite recursion detected in policy for relation \"notes\"");
}

#[tokio::test]
async fn case_35_36_time_and_foreign_settings_are_read_when_asked() {
    let world = World::notes().await;
    let changes = world.insert("notes", "values (1, 1, null, 'x')").await;
    world.policy("now() > '2020-01-01' and current_setting('app.x', true) is null").await;
    assert_eq!(world.new_of(&changes, [A]).await, [Yes]);
    world.policy("now() < '2020-01-01'").await;
    assert_eq!(world.new_of(&changes, [A]).await, [No]);
}

#[tokio::test]
async fn case_37_current_user_is_the_subscribers_role() {
    let world = World::notes().await;
    world.policy(&format!("current_user = '{}'", world.user)).await;
    let changes = world.insert("notes", "values (1, 1, null, 'x')").await;
    assert_eq!(world.ask_as(&world.user, &changes).await.verdicts[0].new, Yes);
    assert_eq!(world.ask_as(&world.anon, &changes).await.verdicts[0].new, No);
}

#[tokio::test]
async fn case_38_a_system_column_is_looked_up_in_the_table() {
    let world = World::notes().await;
    world.policy("tableoid = 'notes'::regclass and map_id = 1").await;
    let first = world.insert("notes", "values (1, 1, null, 'x'), (2, 2, null, 'y')").await;
    let answer = world.ask(&first, &[A]).await.remove(0);
    assert_eq!((answer.verdicts[0].new, answer.verdicts[1].new), (Yes, No));
    let newer = world.update("notes", "body = 'z'", "id = 1").await;
    assert_eq!(world.new_of(&first[..1], [A]).await, [No], "a newer version has its own event");
    assert_eq!(world.new_of(&newer, [A]).await, [Yes]);
    assert_eq!(world.old_of(&newer, [A]).await, [Unknown]);
}

#[tokio::test]
async fn case_39_a_function_of_the_whole_row_gets_the_image() {
    let world = World::notes().await;
    world
        .run(
            "create function open(n notes) returns boolean language plpgsql stable as
            $$ begin return n.body = 'open' and n.map_id = 1; end $$",
        )
        .await;
    world.policy("open(notes)").await;
    let changes = world.insert("notes", "values (1, 1, null, 'open'), (2, 1, null, 'shut')").await;
    world.run("update notes set body = 'changed since'").await;
    let answer = world.ask(&changes, &[A]).await.remove(0);
    assert_eq!((answer.verdicts[0].new, answer.verdicts[1].new), (Yes, No));
}

#[tokio::test]
async fn case_40_not_in_with_nulls_has_three_values() {
    let world = World::notes().await;
    world.run("create table banned (map_id int); insert into banned values (2)").await;
    world.policy("map_id not in (select b.map_id from banned as b)").await;
    let changes = world.insert("notes", "values (1, 1, null, 'x')").await;
    assert_eq!(world.new_of(&changes, [A]).await, [Yes]);
    world.run("insert into banned values (null)").await;
    assert_eq!(world.new_of(&changes, [A]).await, [No]);
}

#[tokio::test]
async fn case_41_owners_bypass_unless_forced() {
    let world = World::notes().await;
    world
        .run(&format!(
            "grant usage, create on schema public to {0}; alter table notes owner to {0}",
            world.user
        ))
        .await;
    let changes = world.insert("notes", "values (1, 2, null, 'x')").await;
    assert_eq!(world.new_of(&changes, [A]).await, [Yes]);
    world.run("alter table notes force row level security").await;
    assert_eq!(world.new_of(&changes, [A]).await, [No]);
}

#[tokio::test]
async fn case_42_43_service_sees_all_and_anon_without_a_policy_nothing() {
    let world = World::notes().await;
    world.run(&format!("alter policy members on notes to {}", world.user)).await;
    world.insert("notes", "values (1, 1, null, 'x')").await;
    let changes = world.delete("notes", "id = 1").await;
    let service = world.ask_as(&world.service, &changes).await;
    assert_eq!(service.verdicts[0].old, Yes);
    assert_eq!(shown(&changes, &service, DeleteMode::PkCompat)[0].1, Shown::KeyOnly);
    let anon = world.ask_as(&world.anon, &changes).await;
    assert_eq!(anon.verdicts[0].old, No);
    assert!(anon.error.is_none());
}

#[tokio::test]
async fn case_44_a_changed_policy_counts_at_once_without_being_told() {
    let world = World::notes().await;
    let changes = world.insert("notes", "values (1, 1, null, 'x')").await;
    assert_eq!(world.new_of(&changes, [A, B]).await, [Yes, No]);
    world.run("alter policy members on notes using (auth.uid() is not null and map_id = 7)").await;
    assert_eq!(world.new_of(&changes, [A, B]).await, [No, No]);
    world.authorizer.forget(Some(changes[0].relation.oid));
    world.authorizer.forget(None);
    assert_eq!(world.new_of(&changes, [A, B]).await, [No, No]);
}

#[tokio::test]
async fn case_45_46_inner_policies_and_functions_count_at_once() {
    let world = World::notes().await;
    world
        .run(
            "create function is_member(map int) returns boolean language plpgsql stable as
            $$ begin
                return exists (select from map_members where map_id = map and user_id = auth.uid());
            end $$",
        )
        .await;
    world.policy("is_member(map_id)").await;
    let changes = world.insert("notes", "values (1, 1, null, 'x')").await;
    assert_eq!(world.new_of(&changes, [A, B]).await, [Yes, No]);
    world.run("alter table map_members enable row level security").await;
    assert_eq!(world.new_of(&changes, [A, B]).await, [No, No]);
    world.run("create policy m on map_members using (true)").await;
    assert_eq!(world.new_of(&changes, [A, B]).await, [Yes, No]);
    world
        .run(
            "create or replace function is_member(map int) returns boolean
            language plpgsql stable as $$ begin return false; end $$",
        )
        .await;
    assert_eq!(world.new_of(&changes, [A, B]).await, [No, No]);
}

#[tokio::test]
async fn case_47_row_security_switched_on_and_off() {
    let world = World::notes().await;
    let changes = world.insert("notes", "values (1, 2, null, 'x')").await;
    assert_eq!(world.new_of(&changes, [A]).await, [No]);
    world.run("alter table notes disable row level security").await;
    let answer = world.ask(&changes, &[A]).await.remove(0);
    assert_eq!((answer.verdicts[0].new, answer.row_security[0]), (Yes, false));
    world.run("alter table notes enable row level security").await;
    assert_eq!(world.new_of(&changes, [A]).await, [No]);
}

#[tokio::test]
async fn case_48_a_changed_membership_or_attribute_of_the_role_counts_at_once() {
    let world = World::notes().await;
    world.run("alter table map_members enable row level security").await;
    let changes = world.insert("notes", "values (1, 1, null, 'x')").await;
    assert_eq!(world.new_of(&changes, [A]).await, [No], "members are hidden by their own RLS");
    world.run(&format!("alter role {} bypassrls", world.user)).await;
    assert_eq!(world.new_of(&changes, [B]).await, [Yes]);
    world.run(&format!("alter role {} nobypassrls", world.user)).await;
    assert_eq!(world.new_of(&changes, [A]).await, [No]);
}

#[tokio::test]
async fn case_50_a_function_without_a_path_runs_under_the_apis() {
    let world = World::with(|settings| settings.search_path = "public, extra".into()).await;
    world.create_notes().await;
    // What the names mean depends on the path: each schema has its own answer.
    world
        .run(
            "create schema extra;
            create schema other;
            grant usage on schema extra, other to public;
            create function extra.allows(map int) returns boolean language sql as
                $$ select map = 1 $$;
            create function other.allows(map int) returns boolean language sql as
                $$ select true $$;
            create function public.may_read(map int) returns boolean language plpgsql stable as
                $$ begin return allows(map); end $$",
        )
        .await;
    world.policy("may_read(map_id)").await;
    let changes = world.insert("notes", "values (1, 1, null, 'x'), (2, 2, null, 'y')").await;
    let answer = world.ask(&changes, &[C]).await.remove(0);
    assert_eq!((answer.verdicts[0].new, answer.verdicts[1].new), (Yes, No));
}

#[tokio::test]
async fn case_51_membership_functions_of_every_kind_decide_alike() {
    let world = World::notes().await;
    let member = "select exists (select from public.map_members as m
        where m.map_id = map and m.user_id = auth.uid())";
    let functions = [
        format!("language sql stable as $$ {member} $$"),
        format!("language sql stable begin atomic {member}; end"),
        format!("language plpgsql stable as $$ begin return ({member}); end $$"),
        "language plpgsql stable as $$ declare found boolean; begin
            execute format('select exists (select from %I where map_id = $1 and user_id = $2)',
                'map_members') into found using map, auth.uid();
            return found; end $$"
            .to_owned(),
    ];
    let changes = world.insert("notes", "values (1, 1, null, 'x')").await;
    for (number, body) in functions.iter().enumerate() {
        for (kind, name) in [("", "plain"), ("security definer", "definer")] {
            let name = format!("{name}_{number}");
            let create = format!("create function {name}(map int) returns boolean {kind} {body}");
            world.run(&create).await;
            world.policy(&format!("{name}(map_id)")).await;
            assert_eq!(world.new_of(&changes, [A, B, C]).await, [Yes, No, No], "{create}");
        }
    }
}

#[tokio::test]
async fn case_52_a_definer_who_is_bound_by_policies_sees_with_them() {
    let world = World::notes().await;
    let owner = format!("{}_definer", world.database.name);
    world
        .run(&format!(
            "create role {owner};
            grant usage on schema public, auth to {owner};
            grant select on map_members to {owner};
            alter table map_members enable row level security;
            create policy to_the_definer on map_members to {owner} using (map_id = 1);
            create function is_member(map int) returns boolean
                language sql stable security definer as
                $$ select exists (select from map_members
                    where map_id = map and user_id = auth.uid()) $$;
            alter function is_member owner to {owner};"
        ))
        .await;
    world.policy("is_member(map_id)").await;
    let changes = world.insert("notes", "values (1, 1, null, 'x'), (2, 2, null, 'y')").await;
    let answers = world.ask(&changes, &[A, B]).await;
    let new = |user: usize, change: usize| answers[user].verdicts[change].new;
    // A is a member of map 1; B of map 2, which the definer does not see.
    assert_eq!([new(0, 0), new(0, 1), new(1, 0), new(1, 1)], [Yes, No, No, No]);
    world.run("drop policy to_the_definer on map_members").await;
    assert_eq!(world.new_of(&changes[..1], [A, B]).await, [No, No]);
}

#[tokio::test]
async fn case_53_views_in_a_policy_read_as_their_definer_or_their_caller() {
    let world = World::notes().await;
    world
        .run(
            "alter table map_members enable row level security;
            create policy nobody on map_members using (false);
            create view memberships as select * from map_members;",
        )
        .await;
    world.policy("map_id in (select map_id from memberships where user_id = auth.uid())").await;
    let changes = world.insert("notes", "values (1, 1, null, 'x')").await;
    // The view's owner is a superuser, whom no policy binds.
    assert_eq!(world.new_of(&changes, [A, B]).await, [Yes, No]);
    if cluster::version(&world.admin).await < 150_000 {
        return; // No view reads as its caller there.
    }
    world.run("alter view memberships set (security_invoker = true)").await;
    assert_eq!(world.new_of(&changes, [A, B]).await, [No, No]);
    world.run("alter policy nobody on map_members using (user_id = auth.uid())").await;
    assert_eq!(world.new_of(&changes, [A, B]).await, [Yes, No]);
}

#[tokio::test]
async fn case_55_a_sleeping_policy_withholds_only_its_own_user() {
    let world = World::with(|settings| settings.check_timeout_ms = 1500).await;
    world.create_notes().await;
    world
        .policy(&format!("case when auth.uid() = '{B}' then pg_sleep(60) is null else true end"))
        .await;
    let changes = world.insert("notes", "values (1, 1, null, 'x')").await;
    let started = Instant::now();
    let answers = world.ask(&changes, &[A, B, C]).await;
    let new: Vec<_> = answers.iter().map(|answer| answer.verdicts[0].new).collect();
    assert_eq!(new, [Yes, Failed, Yes]);
    assert_eq!(answers[1].error.as_deref(), Some("the policies of this table take too long"));
    assert!(started.elapsed() < Duration::from_secs(40));
}

#[tokio::test]
async fn f41_a_policy_that_does_not_stop_when_told_to_withholds_only_its_own_user() {
    let world = World::with(|settings| settings.check_timeout_ms = 1000).await;
    world.create_notes().await;
    world
        .run(
            "create function stubborn() returns boolean language plpgsql as $$
            begin
                for i in 1 .. 100 loop
                    begin
                        perform pg_sleep(0.2);
                    exception when query_canceled then null;
                    end;
                end loop;
                return true;
            end $$",
        )
        .await;
    world.policy(&format!("case when auth.uid() = '{B}' then stubborn() else true end")).await;
    let changes = world.insert("notes", "values (1, 1, null, 'x')").await;
    let answers = world.ask(&changes, &[A, B, C]).await;
    let new: Vec<_> = answers.iter().map(|answer| answer.verdicts[0].new).collect();
    assert_eq!(new, [Yes, Failed, Yes]);
}

#[tokio::test]
async fn all_policies_together_have_a_time_limit_too() {
    let world = World::with(|settings| {
        settings.check_timeout_ms = 100;
        settings.batch_check_timeout_ms = 300;
    })
    .await;
    world.create_notes().await;
    world.policy("pg_sleep(60) is null").await;
    let changes = world.insert("notes", "values (1, 1, null, 'x')").await;
    let started = Instant::now();
    let subjects: Vec<String> =
        (0..300).map(|number| format!("00000000-0000-0000-0000-{number:012}")).collect();
    let subjects: Vec<&str> = subjects.iter().map(String::as_str).collect();
    let answers = world.ask(&changes, &subjects).await;
    assert!(answers.iter().all(|answer| answer.verdicts[0].new == Failed));
    // One by one it would be half a minute.
    assert!(started.elapsed() < Duration::from_secs(25));
}

#[tokio::test]
async fn f41_a_lock_that_is_not_granted_is_no_answer_rather_than_a_no() {
    let world = World::with(|settings| settings.check_timeout_ms = 1000).await;
    world.create_notes().await;
    let changes = world.insert("notes", "values (1, 1, null, 'x')").await;
    world.run("begin; lock table map_members in access exclusive mode").await;
    let questions = [question(&world.user, A, &changes)];
    let held = world.authorizer.visible_to(&changes, &questions).await;
    assert!(matches!(held, Err(Error::Unanswered(_))), "{held:?}");
    world.run("rollback").await;
    assert_eq!(world.new_of(&changes, [A]).await, [Yes]);
}

#[tokio::test]
async fn case_58_61_a_table_that_may_not_be_read_is_refused_with_postgres_words() {
    let world = World::notes().await;
    world.run(&format!("revoke all on map_members from {}", world.user)).await;
    let oid = world.relation("notes").await.oid;
    let claims = claims(&world.user, A);
    let probe = async || world.authorizer.probe(&world.user, &claims, oid).await;
    assert_eq!(refusal(probe().await), "permission denied for table map_members");
    world.run(&format!("grant select on map_members to {}", world.user)).await;
    probe().await.unwrap();
    let changes = world.insert("notes", "values (1, 1, null, 'x')").await;
    world.run(&format!("revoke all on notes from {}", world.user)).await;
    assert_eq!(refusal(probe().await), "permission denied for table notes");
    let answer = world.ask(&changes, &[A]).await.remove(0);
    assert_eq!(answer.verdicts[0].new, Failed);
    assert_eq!(answer.error.as_deref(), Some("permission denied for table public.notes"));
}

#[tokio::test]
async fn case_60_a_policy_may_read_columns_that_the_user_may_not() {
    let world = World::notes().await;
    world
        .run(&format!(
            "revoke all on notes from {0}; grant select (id, body) on notes to {0}",
            world.user
        ))
        .await;
    let changes = world.insert("notes", "values (1, 1, null, 'x')").await;
    assert_eq!(world.new_of(&changes, [A, B]).await, [Yes, No]);
}

#[tokio::test]
async fn case_61a_claims_are_always_there() {
    let world = World::notes().await;
    world
        .policy("(current_setting('request.jwt.claims', true)::jsonb ->> 'sub') = user_id::text")
        .await;
    let changes = world.insert("notes", &format!("values (1, 1, '{A}', 'x')")).await;
    assert_eq!(world.new_of(&changes, [A, B]).await, [Yes, No]);
    let oid = changes[0].relation.oid;
    for role in [&world.user, &world.anon] {
        world.authorizer.probe(role, &claims(role, A), oid).await.unwrap();
    }
}

/// The change with one column of its new image marked as left alone by the update.
fn unchanged(change: &Change, column: &str) -> Change {
    let place = change.relation.column(column).unwrap();
    let record = change.record.as_ref().unwrap();
    let values = record.values().enumerate();
    let values: Vec<_> =
        values.map(|(at, value)| if at == place { Value::Unchanged } else { value }).collect();
    Change { record: Some(Tuple::copied(values)), ..change.clone() }
}

#[tokio::test]
async fn case_62_an_unchanged_large_value_comes_from_the_old_image_or_the_table() {
    let world = World::notes().await;
    world.policy("body is null or body like 'open%'").await;
    world.insert("notes", "values (1, 1, null, 'open'), (2, 1, null, 'shut')").await;
    let mut full = world.update("notes", "map_id = 2", "id = 1").await;
    full.extend(world.update("notes", "map_id = 2", "id = 2").await);
    let full: Vec<_> = full.iter().map(|change| unchanged(change, "body")).collect();
    let answer = world.ask(&full, &[A]).await.remove(0);
    assert_eq!((answer.verdicts[0].new, answer.verdicts[1].new), (Yes, No));
    world.run("alter table notes replica identity default").await;
    let mut bare = world.update("notes", "map_id = 1", "id = 1").await;
    bare.extend(world.update("notes", "map_id = 1", "id = 2").await);
    let bare: Vec<_> = bare.iter().map(|change| unchanged(change, "body")).collect();
    let answer = world.ask(&bare, &[A]).await.remove(0);
    assert_eq!((answer.verdicts[0].new, answer.verdicts[1].new), (Yes, No));
    world.run("update notes set map_id = 2").await;
    let answer = world.ask(&bare, &[A]).await.remove(0);
    assert_eq!((answer.verdicts[0].new, answer.verdicts[1].new), (No, No), "newer versions exist");
}

#[tokio::test]
async fn case_64_a_generated_column_is_never_taken_for_null() {
    let world = World::notes().await;
    world.run("alter table notes add g int generated always as (map_id * 60) stored").await;
    world.policy("g is distinct from 60").await;
    let changes = world.insert("notes", "values (1, 1, null, 'x'), (2, 2, null, 'y')").await;
    let answer = world.ask(&changes, &[A]).await.remove(0);
    assert_eq!((answer.verdicts[0].new, answer.verdicts[1].new), (No, Yes));
    let deleted = world.delete("notes", "true").await;
    let answer = world.ask(&deleted, &[A]).await.remove(0);
    assert_eq!((answer.verdicts[0].old, answer.verdicts[1].old), (Unknown, Unknown));
}

#[tokio::test]
async fn case_65_a_column_list_that_omits_a_policy_column_leaves_it_to_the_table() {
    let world = World::notes().await;
    let changes = world.insert("notes", "values (1, 1, null, 'x'), (2, 2, null, 'y')").await;
    let without = |change: &Change| {
        let mut relation = (*change.relation).clone();
        relation.columns =
            relation.columns.iter().filter(|c| &*c.name != "map_id").cloned().collect();
        let values: Vec<_> = change
            .record
            .as_ref()
            .unwrap()
            .values()
            .enumerate()
            .filter(|(at, _)| *at != 1)
            .collect();
        let record = Some(Tuple::copied(values.into_iter().map(|(_, value)| value)));
        Change { relation: Arc::new(relation), record, ..change.clone() }
    };
    let changes: Vec<_> = changes.iter().map(without).collect();
    let answer = world.ask(&changes, &[A]).await.remove(0);
    assert_eq!((answer.verdicts[0].new, answer.verdicts[1].new), (Yes, No));
    world.delete("notes", "true").await;
    assert_eq!(world.new_of(&changes[..1], [A]).await, [No]);
}

#[tokio::test]
async fn case_68_images_older_than_the_table_are_read_by_name() {
    let world = World::notes().await;
    let changes = world.insert("notes", "values (1, 1, null, 'x'), (2, 2, null, 'y')").await;
    world
        .run(
            "alter table notes drop user_id;
            alter table notes add level int default 5;",
        )
        .await;
    let seen = async || {
        let answer = world.ask(&changes, &[A]).await.remove(0);
        (answer.verdicts[0].new, answer.verdicts[1].new)
    };
    assert_eq!(seen().await, (Yes, No));
    world.policy("level = 5 and map_id = 1").await;
    assert_eq!(seen().await, (Yes, No), "level is looked up in the table");
    world.policy("map_id = 1").await;
    world
        .run(
            "drop policy members on notes;
            alter table notes drop constraint notes_map_id_fkey;
            alter table notes alter map_id type text using 'm' || map_id;",
        )
        .await;
    world.run("create policy members on notes using (map_id = 'm1')").await;
    assert_eq!(seen().await, (Yes, No), "the type is another one now");
}

#[tokio::test]
async fn case_69_an_image_that_the_type_refuses_now_is_undecided() {
    let world = World::notes().await;
    world
        .run(
            "create domain word as text;
            alter table notes drop body, add body word;",
        )
        .await;
    let changes = world.insert("notes", "values (1, 1, null, 'bad'), (2, 1, null, 'fine')").await;
    world.delete("notes", "id = 1").await;
    world.run("alter domain word add check (value <> 'bad')").await;
    let answer = world.ask(&changes, &[A]).await.remove(0);
    assert_eq!((answer.verdicts[0].new, answer.verdicts[1].new), (No, Yes));
    assert!(answer.error.is_none());
}

#[tokio::test]
async fn case_70_the_servers_date_style_misreads_nothing() {
    let world = World::notes().await;
    world.run("alter table notes add day date").await;
    world
        .run(&format!("alter role {}_check set datestyle = 'SQL, DMY'", world.database.name))
        .await;
    world.policy("day = '2024-03-02'").await;
    let changes = world.insert("notes", "values (1, 1, null, 'x', '2024-03-02')").await;
    assert_eq!(world.new_of(&changes, [A]).await, [Yes]);
}

#[tokio::test]
async fn case_72_odd_names_are_quoted() {
    let world = World::empty().await;
    let (user, name) = (&world.user, &world.database.name);
    world
        .run(&format!(
            r#"create schema "odd "" schema";
            grant usage on schema "odd "" schema" to {user};
            create table "odd "" schema"."$walcast$ 'table" (
                "Primary key" int primary key,
                "weird ""col" text,
                "select" int,
                walcast_rows int,
                walcast_seen int
            );
            alter table "odd "" schema"."$walcast$ 'table" enable row level security;
            create policy "p '" on "odd "" schema"."$walcast$ 'table"
                using ("weird ""col" = 'it''s \ "fine"' and "select" = 1
                    and walcast_rows = 2 and walcast_seen = 3);
            grant select on "odd "" schema"."$walcast$ 'table" to {user};
            create role "{name}-web ""x""" ;
            "#
        ))
        .await;
    let table = r#""odd "" schema"."$walcast$ 'table""#;
    let changes = world
        .insert(table, r#"values (1, 'it''s \ "fine"', 1, 2, 3), (2, 'other', 1, 2, 3)"#)
        .await;
    let answer = world.ask(&changes, &[A]).await.remove(0);
    assert_eq!((answer.verdicts[0].new, answer.verdicts[1].new), (Yes, No), "{:?}", answer.error);
    world.authorizer.probe(user, &claims(user, A), changes[0].relation.oid).await.unwrap();
}

#[tokio::test]
async fn case_81_claims_of_every_shape_reach_the_policy() {
    let world = World::notes().await;
    world.policy("auth.jwt() -> 'orgs' ? map_id::text").await;
    let changes = world.insert("notes", "values (1, 1, null, 'x')").await;
    let question = |claims: &str| Question {
        role: Arc::clone(&world.user),
        claims: claims.into(),
        changes: vec![0],
    };
    let questions = [
        question(r#"{"orgs":["1","2"],"sub":null}"#),
        question(r#"{"orgs":["2"],"name":"\"quoted\\ 'ü' \u0001"}"#),
        question("{}"),
        question("not json"),
    ];
    let answers = world.authorizer.visible_to(&changes, &questions).await.unwrap();
    let new: Vec<_> = answers.iter().map(|answer| answer.verdicts[0].new).collect();
    assert_eq!(new, [Yes, No, No, Failed]);
}

#[tokio::test]
async fn case_84_a_role_outside_the_list_is_never_set() {
    let world = World::with(|settings| settings.roles.push("not_there_at_all".into())).await;
    world.create_notes().await;
    let changes = world.insert("notes", "values (1, 1, null, 'x')").await;
    for role in ["postgres", "none", "", "not_there_at_all"] {
        let answer = world.ask_as(&Arc::from(role), &changes).await;
        assert_eq!(answer.verdicts[0].new, Failed, "{role}");
        assert!(answer.error.is_some());
        refusal(world.authorizer.probe(&Arc::from(role), "{}", changes[0].relation.oid).await);
    }
    assert_eq!(world.new_of(&changes, [A]).await, [Yes]);
}

#[tokio::test]
async fn case_88_a_lost_connection_is_asked_again_from_the_start() {
    let world = World::notes().await;
    let changes = world.insert("notes", "values (1, 1, null, 'x')").await;
    assert_eq!(world.new_of(&changes, [A]).await, [Yes]);
    let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity
        where usename = $1 || '_check'";
    let ended = world.admin.query_one(end, &[&world.database.name]).await.unwrap();
    assert!(ended.get::<_, i64>(0) > 0);
    assert_eq!(world.new_of(&changes, [A, B]).await, [Yes, No]);
}

#[tokio::test]
async fn m12_a_policy_that_switches_role_reaches_no_other_user() {
    let world = World::notes().await;
    world
        .run(&format!(
            "create function escape() returns boolean language plpgsql as $$
            begin
                if auth.uid() = '{A}' then
                    perform set_config('role', '{}', true);
                    perform set_config('app.tenant', 'stolen', true);
                end if;
                return true;
            end $$",
            world.service
        ))
        .await;
    world
        .policy("escape() and current_setting('app.tenant', true) is distinct from 'stolen'")
        .await;
    let changes = world.insert("notes", "values (1, 1, null, 'x'), (2, 1, null, 'y')").await;
    let answers = world.ask(&changes, &[B, A, C]).await;
    let new: Vec<_> = answers.iter().map(|answer| answer.verdicts[0].new).collect();
    assert_eq!(new, [Yes, Failed, Yes]);
    assert_eq!(answers[1].error.as_deref(), Some("a policy of this table changed the role"));
}

#[tokio::test]
async fn a_policy_that_writes_fails_for_its_user() {
    let world = World::notes().await;
    world
        .run(
            "create table audit (who uuid);
            create function log() returns boolean language plpgsql security definer as
            $$ begin insert into audit values (auth.uid()); return true; end $$",
        )
        .await;
    world.policy("log()").await;
    let changes = world.insert("notes", "values (1, 1, null, 'x')").await;
    let answer = world.ask(&changes, &[A]).await.remove(0);
    assert_eq!(answer.verdicts[0].new, Failed);
    assert!(answer.error.unwrap().contains("read-only transaction"));
}

#[tokio::test]
async fn a_function_that_wrongly_calls_itself_immutable_does_not_carry_one_users_claims_to_the_next()
 {
    let world = World::notes().await;
    world
        .run(
            "create function me() returns uuid language sql immutable as
            $$ select (current_setting('request.jwt.claims', true)::jsonb ->> 'sub')::uuid $$",
        )
        .await;
    world.policy("user_id = me()").await;
    let changes = world.insert("notes", &format!("values (1, 1, '{A}', 'x')")).await;
    let many = [B, B, B, B, B, B, B, B, A, C, A];
    let expected = [No, No, No, No, No, No, No, No, Yes, No, Yes];
    assert_eq!(world.new_of(&changes, many).await, expected);
}

#[tokio::test]
async fn a_name_that_comes_to_shadow_a_builtin_changes_no_policy() {
    let world = World::notes().await;
    world.run("alter table notes add viewers uuid[]").await;
    world.policy("cardinality(viewers) = 99").await;
    let changes = world.insert("notes", "values (1, 1, null, 'x', '{}')").await;
    assert_eq!(world.new_of(&changes, [A]).await, [No]);
    world
        .run(
            "create function public.cardinality(uuid[]) returns int language sql immutable as
            $$ select 99 $$",
        )
        .await;
    assert_eq!(world.new_of(&changes, [A]).await, [No]);
    // Plans are made anew; the text they are made from must have been printed anew too.
    world.run("analyze notes; alter table map_members add extra int").await;
    assert_eq!(world.new_of(&changes, [A]).await, [No]);
}

/// Returns once such a connection has taken a snapshot while the transaction was still open.
async fn has_looked(world: &World, application: &str, open: &[Change]) {
    let looked = "select from pg_stat_activity as looking, pg_stat_activity as writing
        where looking.application_name = $1 and looking.datname = current_database()
            and looking.query like '%pg_current_snapshot%'
            and looking.query_start > writing.xact_start
            and writing.backend_xid = $2::text::xid
        limit 1";
    let xid = open[0].commit.xid.to_string();
    while world.admin.query_opt(looked, &[&application, &xid]).await.unwrap().is_none() {}
}

#[tokio::test]
async fn f39_nothing_is_answered_before_the_transaction_is_visible() {
    let world = World::notes().await;
    let mut writer = world.begin().await;
    writer.insert("notes", "values (1, 1, null, 'x')").await;
    let (changes, client) = writer.prepare().await;
    let xids = [changes[0].commit.xid];
    let mut waiting = Box::pin(world.authorizer.wait_visible(&xids));
    let mut asking = Box::pin(world.new_of(&changes, [A]));
    tokio::select! {
        done = &mut waiting => panic!("not committed yet: {done:?}"),
        seen = &mut asking => panic!("not committed yet: {seen:?}"),
        () = has_looked(&world, "walcast guard", &changes) => {}
    }
    tokio::select! {
        done = &mut waiting => panic!("not committed yet: {done:?}"),
        seen = &mut asking => panic!("not committed yet: {seen:?}"),
        () = has_looked(&world, "walcast check", &changes) => {}
    }
    client.batch_execute("commit").await.unwrap();
    waiting.await.unwrap();
    assert_eq!(asking.await, [Yes]);
}

#[tokio::test]
async fn f39_a_transaction_that_never_becomes_visible_is_held_and_said() {
    let world = World::notes().await;
    let mut writer = world.begin().await;
    writer.insert("notes", "values (1, 1, null, 'x')").await;
    let (changes, client) = writer.prepare().await;
    let held = world.authorizer.wait_visible(&[changes[0].commit.xid]).await;
    assert!(matches!(held, Err(Error::NotVisible(_))), "{held:?}");
    client.batch_execute("commit").await.unwrap();
    world.authorizer.wait_visible(&[]).await.unwrap();
}

#[tokio::test]
async fn an_unrelated_decoded_transaction_is_waited_for_as_well() {
    let world = World::notes().await;
    let mut revoke = world.begin().await;
    revoke.delete("map_members", "map_id = 1").await;
    let (revoked, client) = revoke.prepare().await;
    let changes = world.insert("notes", "values (1, 1, null, 'x')").await;
    // Its commit record comes first in the log, its visibility later.
    world.authorizer.observe(&revoked);
    let mut asking = Box::pin(world.new_of(&changes, [A]));
    tokio::select! {
        seen = &mut asking => panic!("the revoke is not visible yet: {seen:?}"),
        () = has_looked(&world, "walcast check", &revoked) => {}
    }
    client.batch_execute("commit").await.unwrap();
    assert_eq!(asking.await, [No]);
}

#[tokio::test]
async fn users_may_ask_about_different_changes_of_one_batch() {
    let world = World::notes().await;
    let changes =
        world.insert("notes", "values (1, 1, null, ''), (2, 2, null, ''), (3, 1, null, '')").await;
    let ask = |subject, changes: &[u32]| Question {
        role: Arc::clone(&world.user),
        claims: claims(&world.user, subject),
        changes: changes.to_vec(),
    };
    let questions = [ask(A, &[0, 2]), ask(A, &[1]), ask(B, &[1, 2]), ask(B, &[]), ask(C, &[0])];
    let answers = world.authorizer.visible_to(&changes, &questions).await.unwrap();
    let new: Vec<Vec<_>> = answers
        .iter()
        .map(|answer| answer.verdicts.iter().map(|verdict| verdict.new).collect())
        .collect();
    assert_eq!(new, [vec![Yes, Yes], vec![No], vec![Yes, No], vec![], vec![No]]);
}

#[tokio::test]
async fn a_dropped_table_shows_nothing() {
    let world = World::notes().await;
    let changes = world.insert("notes", "values (1, 1, null, 'x')").await;
    world.run("drop table notes").await;
    let answer = world.ask(&changes, &[A]).await.remove(0);
    assert_eq!(answer.verdicts[0].new, Failed);
    assert_eq!(answer.error.as_deref(), Some("the table does not exist"));
}
