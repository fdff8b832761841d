// Seed 000, story maps: users who edit one map together. The numbers are those of its scenarios.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { ALICE, BOB } from "./harness.mjs";
import { Applications, CURSOR, TIME, exactly, having, uuid } from "./socket.mjs";
import { data } from "./rest.mjs";

const alice = { sub: ALICE };
const bob = { sub: BOB };
const vera = { sub: "00000000-0000-4000-8000-0000000000fe" };
const mallory = { sub: "00000000-0000-4000-8000-0000000000ba" };
/** Who is nothing but there. */
const guests = Array.from({ length: 4 }, (_, n) => ({ sub: `00000000-0000-4000-8000-0000000000c${n}` }));

describe("story maps", () => {
  const stage = new Applications("/story-maps");
  const sql = (text, values) => stage.query(text, values);

  const people = { Alice: alice, Bob: bob, Vera: vera, Mallory: mallory };
  guests.forEach((guest, n) => (people[`Guest ${n}`] = guest));
  const profiles = async () => {
    for (const [name, { sub }] of Object.entries(people)) {
      await sql(
        `insert into storymap.profiles values ($1, $2, $3, $4) on conflict do nothing`,
        [sub, name, `${name.toLowerCase()}@example.org`, `https://example.org/${sub}.png`],
      );
    }
  };

  /** A map of Alice's, an hour old, with a step, a release and a story; Bob edits, Vera looks. */
  const world = async (more = []) => {
    await profiles();
    const map = { mapId: uuid(), stepId: uuid(), releaseId: uuid(), storyId: uuid() };
    const { mapId, stepId, releaseId, storyId } = map;
    await sql("insert into storymap.story_maps (id, title, created_by) values ($1, 'Shop', $2)", [mapId, ALICE]);
    for (const [user, role] of [[bob, "editor"], [vera, "viewer"], ...more.map((user) => [user, "viewer"])]) {
      await sql("insert into storymap.collaborators values ($1, $2, $3)", [mapId, user.sub, role]);
    }
    const old = "now() - interval '1 hour'";
    for (const [table, key] of [["steps", stepId], ["releases", releaseId]]) {
      await sql(
        `insert into storymap.${table} (id, map_id, name, updated_at) values ($1, $2, 'First', ${old})`,
        [key, mapId],
      );
    }
    await story(map, storyId, "Pay");
    await stage.settle();
    return map;
  };
  const story = ({ mapId, stepId, releaseId }, key, title) =>
    sql(
      `insert into storymap.stories (id, map_id, step_id, release_id, title, updated_at)
       values ($1, $2, $3, $4, $5, now() - interval '1 hour')`,
      [key, mapId, stepId, releaseId, title],
    );
  const rename = (storyId, title) =>
    sql("update storymap.stories set title = $2 where id = $1", [storyId, title]);
  const join = async ({ mapId }, user, options) => {
    const tab = await stage.open(user, options);
    await tab.done("map.join", { mapId });
    return tab;
  };
  /** A change that everybody in the map hears, after all that came before. */
  let fences = 0;
  const fence = async ({ storyId }, ...tabs) => {
    const title = `fence ${++fences}`;
    await rename(storyId, title);
    for (const tab of tabs) await tab.next("story.updated", (payload) => payload.title === title);
  };

  test("000-1: who has no valid token in auth is not let in, and told why", async () => {
    const missing = "Authentication token missing";
    const failed = "Authentication failed";
    const good = stage.pass(alice);
    const forged = stage.server.sign({ role: "authenticated", ...alice }, 3600, "x".repeat(48));
    assert.equal(await stage.refusal({}), missing);
    assert.equal(await stage.refusal({ auth: { token: "" } }), missing);
    assert.equal(await stage.refusal({ auth: { token: "nonsense" } }), failed);
    assert.equal(await stage.refusal({ auth: { token: forged } }), failed);
    assert.equal(await stage.refusal({ auth: { token: stage.pass(alice, -60) } }), failed);
    assert.equal(await stage.refusal({ query: { token: good } }), missing);
    await stage.open(alice);
  });

  test("000-2: who is in the map is told by user, however many tabs he has", async () => {
    const map = await world();
    const a = await stage.open(alice);
    await a.done("map.join", { mapId: map.mapId });
    const [{ payload: first }] = [await a.next("map.joined")];
    assert.deepEqual(first, { mapId: map.mapId, connectedUsers: [{ id: ALICE, name: "Alice", role: "admin" }] });
    const tabs = [await stage.open(bob), await stage.open(bob)];
    for (const tab of tabs) {
      const { data } = await tab.done("map.join", { mapId: map.mapId });
      const { payload } = await tab.next("map.joined");
      assert.deepEqual(payload, data);
      const users = [...payload.connectedUsers].sort((one, other) => (one.name < other.name ? -1 : 1));
      assert.equal(payload.mapId, map.mapId);
      assert.deepEqual(users, [
        { id: ALICE, name: "Alice", role: "admin" },
        { id: BOB, name: "Bob", role: "editor" },
      ]);
    }
    assert.deepEqual(await a.payload("user.joined"), { userId: BOB, userName: "Bob" });
    tabs[0].close();
    await fence(map, a, tabs[1]);
    assert.equal(a.all("user.joined").length, 1);
    await tabs[1].done("map.leave", { mapId: map.mapId });
    assert.deepEqual(await a.payload("user.left"), { userId: BOB });
    await fence(map, a);
    assert.deepEqual(a.all("user.left"), [{ userId: BOB }]);
    // In again, and gone with the connection.
    await tabs[1].done("map.join", { mapId: map.mapId });
    await a.next("user.joined", undefined, a.mark - 1);
    const from = a.mark;
    tabs[1].close();
    assert.deepEqual(await a.payload("user.left", undefined, from), { userId: BOB });
  });

  test("000-3: a stranger is refused, and hears nothing of the map", async () => {
    const map = await world();
    const own = { mapId: uuid(), stepId: null, releaseId: null, storyId: uuid() };
    await sql("insert into storymap.story_maps (id, title, created_by) values ($1, 'Own', $2)", [
      own.mapId,
      mallory.sub,
    ]);
    await story(own, own.storyId, "Own");
    const a = await join(map, alice);
    const stranger = await join(own, mallory);
    const { message } = await stranger.denied("map.join", { mapId: map.mapId }, "ACCESS_DENIED");
    assert.equal(message, "Access denied to this map");
    await rename(map.storyId, "secret");
    await a.next("story.updated", ({ title }) => title === "secret");
    await fence(own, stranger);
    assert.equal(stranger.all("story.updated").length, 1);
    assert.deepEqual(a.all("user.joined"), []);
  });

  test("000-4: a map has room for five users, with as many tabs as they like", async () => {
    const map = await world(guests);
    const tabs = [];
    for (const user of [alice, bob, vera, guests[0], guests[1]]) tabs.push(await join(map, user));
    const sixth = await stage.open(guests[2]);
    await sixth.denied("map.join", { mapId: map.mapId }, "ROOM_FULL");
    const second = await join(map, bob);
    await sixth.denied("map.join", { mapId: map.mapId }, "ROOM_FULL");
    // A tab less is not a user less.
    await second.done("map.leave", { mapId: map.mapId });
    await sixth.denied("map.join", { mapId: map.mapId }, "ROOM_FULL");
    await tabs[4].done("map.leave", { mapId: map.mapId });
    await sixth.done("map.join", { mapId: map.mapId });
    await fence(map, sixth, tabs[0]);
    assert.deepEqual(tabs[4].all("story.updated"), []);
  });

  test("000-5: a story that an editor makes comes to everybody, him too, from the log", async () => {
    const map = await world();
    const { mapId, stepId, releaseId } = map;
    const [a, b] = [await join(map, alice), await join(map, bob)];
    const asked = { mapId, stepId, releaseId, title: "Search", description: "by name" };
    const answer = await b.done("story.create", asked);
    assert.match(answer.cursor, CURSOR);
    const told = await Promise.all([a, b].map((tab) => tab.payload("story.created")));
    assert.deepEqual(told[0], told[1]);
    exactly(told[0], {
      id: String,
      stepId,
      releaseId,
      title: "Search",
      description: "by name",
      sortOrder: 0,
      status: "NOT_READY",
      size: null,
      createdAt: TIME,
      createdBy: BOB,
    });
    assert.equal(answer.data.id, told[0].id);
    const rows = await sql("select title, created_by from storymap.stories where id = $1", [told[0].id]);
    assert.deepEqual(rows, [{ title: "Search", created_by: BOB }]);
    // Not everybody's word is a story.
    for (const wrong of [{ ...asked, title: undefined }, { ...asked, stepId: "no id" }, { ...asked, mapId: null }]) {
      await b.denied("story.create", wrong, "VALIDATION_FAILED");
    }
  });

  test("000-6: a write over HTTP is told to all tabs but the one that it names", async () => {
    const map = await world();
    const [a, tab, other] = [await join(map, alice), await join(map, bob), await join(map, bob)];
    const rows = stage.rows(bob, "storymap", { "x-connection-id": tab.id });
    await data(rows.from("stories").update({ title: "By HTTP" }).eq("id", map.storyId));
    for (const heard of [a, other]) {
      const updated = await heard.payload("story.updated");
      exactly(updated, { id: map.storyId, title: "By HTTP", updatedAt: TIME, updatedBy: BOB });
    }
    await fence(map, a, tab, other);
    assert.equal(tab.all("story.updated").length, 1);
    assert.equal(other.all("story.updated").length, 2);
  });

  test("000-7: a story that moves is told as that, and what else changed after it", async () => {
    const map = await world();
    const stepId = uuid();
    await sql("insert into storymap.steps (id, map_id, name) values ($1, $2, 'Second')", [stepId, map.mapId]);
    const [a, b] = [await join(map, alice), await join(map, bob)];
    await b.done("story.move", {
      id: map.storyId,
      mapId: map.mapId,
      fromStepId: map.stepId,
      fromReleaseId: map.releaseId,
      toStepId: stepId,
      toReleaseId: map.releaseId,
      newSortOrder: 3,
    });
    const moved = { id: map.storyId, stepId, releaseId: map.releaseId, sortOrder: 3 };
    exactly(await a.payload("story.moved"), { ...moved, updatedAt: TIME, updatedBy: BOB });
    const from = a.mark;
    await sql("update storymap.stories set title = 'Both', sort_order = 4 where id = $1", [map.storyId]);
    const updated = await a.payload("story.updated", undefined, from);
    exactly(updated, { id: map.storyId, title: "Both", updatedAt: TIME, updatedBy: null });
    assert.deepEqual(a.names(from), ["story.moved", "story.updated"]);
    exactly(a.all("story.moved", from)[0], { ...moved, sortOrder: 4, updatedAt: TIME, updatedBy: null });
    assert.equal(a.all("story.updated").length, 1);
    await b.next("story.updated");
    assert.equal(b.all("story.moved").length, 1, "who moved it knows");
    // Nowhere in particular.
    await b.done("story.move", { id: map.storyId, mapId: map.mapId, toStepId: null, toReleaseId: null });
    const away = await a.payload("story.moved", ({ stepId }) => stepId === null);
    having(away, { releaseId: null, sortOrder: 4 });
  });

  test("000-8: who only looks cannot write, by whichever way, and nobody hears of it", async () => {
    const map = await world();
    const [a, v] = [await join(map, alice), await join(map, vera)];
    const asked = { id: map.storyId, mapId: map.mapId, title: "mine" };
    const { message } = await v.denied("story.update", asked, "PERMISSION_DENIED");
    assert.equal(message, "Insufficient permissions");
    for (const [event, payload] of [
      ["story.delete", { id: map.storyId, mapId: map.mapId }],
      ["story.move", { id: map.storyId, mapId: map.mapId, toStepId: null, toReleaseId: null }],
      ["story.create", { ...map, title: "mine" }],
      ["release.delete", { id: map.releaseId, mapId: map.mapId }],
      ["releases.reorder", { mapId: map.mapId, releaseIds: [map.releaseId] }],
    ]) {
      await v.denied(event, payload, "PERMISSION_DENIED");
    }
    const rows = stage.rows(vera, "storymap");
    const update = rows.from("stories").update({ title: "mine" }).eq("id", map.storyId).select();
    assert.deepEqual(await data(update), []);
    await fence(map, a, v);
    assert.deepEqual(a.names().filter((name) => !/^(map|user)\./.test(name)), ["story.updated"]);
  });

  test("000-9: a deletion wins, and whoever comes later is told that there is nothing", async () => {
    const map = await world();
    const storyId = uuid();
    await story(map, storyId, "Gone");
    await stage.settle();
    const [a, b] = [await join(map, alice), await join(map, bob)];
    await a.done("story.delete", { id: storyId, mapId: map.mapId });
    for (const tab of [a, b]) {
      const deleted = await tab.payload("story.deleted");
      exactly(deleted, { id: storyId, deletedBy: ALICE, deletedAt: TIME });
    }
    const late = { id: storyId, mapId: map.mapId, title: "late" };
    const { context } = await b.denied("story.update", late, "NOT_FOUND");
    having(context, late);
    await fence(map, a, b);
    for (const tab of [a, b]) {
      const names = tab.names().filter((name) => name.startsWith("story."));
      assert.deepEqual(names, ["story.deleted", "story.updated"]);
    }
  });

  test("000-10: the last writer wins, unless he says what he has seen, and it is old", async () => {
    const map = await world();
    const [a, b] = [await join(map, alice), await join(map, bob)];
    const asked = { id: map.storyId, mapId: map.mapId };
    await a.done("story.update", { ...asked, title: "one" });
    const { updatedAt } = await b.payload("story.updated", ({ title }) => title === "one");
    await b.done("story.update", { ...asked, title: "two" });
    await a.next("story.updated", ({ title }) => title === "two");
    const stale = { ...asked, title: "three", baseUpdatedAt: updatedAt };
    const { context } = await a.denied("story.update", stale, "STALE_UPDATE");
    assert.equal(context.current.title, "two");
    // With what is true now it is done.
    const { updatedAt: now } = await a.payload("story.updated", ({ title }) => title === "two");
    await a.done("story.update", { ...asked, title: "three", baseUpdatedAt: now });
    await b.next("story.updated", ({ title }) => title === "three");
    assert.deepEqual(b.all("story.updated").map(({ title }) => title), ["one", "three"]);
  });

  test("000-11: the stories of a release that is deleted are told to be nowhere", async () => {
    const map = await world();
    const [a, b] = [await join(map, alice), await join(map, bob)];
    const from = b.mark;
    await a.done("release.delete", { id: map.releaseId, mapId: map.mapId });
    const moved = await b.payload("story.moved");
    having(moved, { id: map.storyId, stepId: map.stepId, releaseId: null });
    assert.deepEqual(b.names(from), ["release.deleted", "story.moved"]);
    exactly(b.all("release.deleted")[0], { id: map.releaseId, deletedBy: ALICE, deletedAt: TIME });
    assert.equal((await a.payload("release.deleted")).id, map.releaseId);
  });

  test("000-12: a new order is one event, however many rows it takes", async () => {
    const map = await world();
    const releases = [];
    for (const n of [0, 1, 2]) {
      releases.push(uuid());
      await sql("insert into storymap.releases (id, map_id, name, sort_order) values ($1, $2, $3, $4)", [
        releases[n],
        map.mapId,
        `R${n + 1}`,
        n,
      ]);
    }
    await stage.settle();
    const [r1, r2, r3] = releases;
    const [a, b] = [await join(map, alice), await join(map, bob)];
    const from = b.mark;
    await a.done("releases.reorder", { mapId: map.mapId, releaseIds: [r3, r1, r2] });
    await fence(map, a, b);
    assert.deepEqual(b.names(from), ["releases.reordered", "story.updated"]);
    const [{ updates }] = b.all("releases.reordered");
    assert.deepEqual(
      [...updates].sort((one, other) => one.sortOrder - other.sortOrder),
      [r3, r1, r2].map((id, sortOrder) => ({ id, sortOrder })),
    );
    assert.deepEqual(a.all("releases.reordered"), [], "who did it knows");
  });

  test("000-13: who was away asks for what he missed, and strangers for nothing", async () => {
    const map = await world();
    const { mapId } = map;
    const gone = uuid();
    await story(map, gone, "Gone soon");
    const b = await join(map, bob);
    await b.done("map.sync", { mapId });
    const whole = await b.payload("map.synced");
    assert.deepEqual(whole.stories.map(({ id }) => id).sort(), [map.storyId, gone].sort());
    assert.deepEqual([whole.steps.length, whole.releases.length], [1, 1]);
    b.close();
    await sql("update storymap.steps set name = 'Renamed' where id = $1", [map.stepId]);
    await sql("delete from storymap.stories where id = $1", [gone]);
    const fresh = uuid();
    await sql("insert into storymap.stories (id, map_id, title) values ($1, $2, 'New')", [fresh, mapId]);
    const from = b.mark;
    b.socket.connect();
    await b.opened(from);
    await b.done("map.join", { mapId });
    await b.done("map.sync", { mapId, lastSyncTimestamp: whole.serverTimestamp });
    const missed = await b.payload("map.synced", undefined, from);
    assert.deepEqual(missed.stories.map(({ id, title }) => [id, title]), [[fresh, "New"]]);
    assert.deepEqual(missed.steps.map(({ id, name }) => [id, name]), [[map.stepId, "Renamed"]]);
    assert.deepEqual([missed.releases, missed.deleted], [[], { stories: [gone] }]);
    assert.match(missed.serverTimestamp, TIME);
    const stranger = await stage.open(mallory);
    await stranger.denied("map.sync", { mapId }, "ACCESS_DENIED");
    assert.deepEqual(stranger.all("map.synced"), []);
  });

  test("000-14: who only looks may comment, and what is dragged is shown to others, not too often", async () => {
    const map = await world();
    const [a, v] = [await join(map, alice), await join(map, vera)];
    const { mapId, storyId } = map;
    await v.done("comment.create", { storyId, mapId, content: "Nice" });
    const created = await a.payload("comment.created");
    exactly(created, {
      id: String,
      storyId,
      content: "Nice",
      author: "Vera",
      authorId: vera.sub,
      avatarUrl: `https://example.org/${vera.sub}.png`,
      createdAt: TIME,
    });
    await v.done("comment.delete", { id: created.id, storyId, mapId });
    assert.deepEqual(await a.payload("comment.deleted"), { id: created.id, storyId });

    const began = performance.now();
    for (let n = 0; n < 50; n += 1) {
      v.say("story.drag.start", { storyId, mapId, userId: ALICE, userName: "Alice" });
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    assert.deepEqual(await a.payload("story.dragging"), { storyId, userId: vera.sub, userName: "Vera" });
    await fence(map, a, v);
    const dragged = a.all("story.dragging").length;
    // One each 100 ms: the first at once, and the last.
    const most = (performance.now() - began) / 100 + 2;
    assert.ok(dragged <= most, `${dragged} of at most ${most}`);
    assert.deepEqual(v.all("story.dragging"), []);
  });

  test("000-15: supabase-js hears it in the same room, and who is removed is out of both", async () => {
    const [map, other] = [await world(), await world()];
    const bindings = [{ schema: "storymap", table: "stories", filter: `map_id=eq.${map.mapId}` }];
    const topic = `map:${map.mapId}`;
    const stranger = await stage.channel(mallory, topic);
    assert.match((await stranger.status("CHANNEL_ERROR")).error.message, /Unauthorized/);
    const a = await join(map, alice);
    const b = await join(map, bob);
    await b.done("map.join", { mapId: other.mapId });
    const feed = await stage.listen(bob, topic, { bindings });
    const still = await stage.listen(bob, `map:${other.mapId}`);

    await rename(map.storyId, "Twice");
    const { event, payload, meta } = await feed.broadcast(0);
    assert.equal(event, "story.updated");
    exactly(payload, { id: map.storyId, title: "Twice", updatedAt: TIME, updatedBy: null });
    const change = await feed.change(({ new: record }) => record.title === "Twice");
    having(change.new, { id: map.storyId, map_id: map.mapId });
    const same = await b.next("story.updated");
    assert.deepEqual([same.payload, same.cursor], [payload, meta.cursor]);

    await sql("delete from storymap.collaborators where map_id = $1 and user_id = $2", [map.mapId, BOB]);
    const revoked = await b.payload("error", ({ code }) => code === "ACCESS_REVOKED");
    assert.equal(revoked.context.topic, topic);
    await feed.status("CLOSED");
    assert.deepEqual(await a.payload("user.left"), { userId: BOB });
    await rename(map.storyId, "secret");
    await fence(other, b);
    await still.broadcast(0);
    assert.ok(!b.all("story.updated").some(({ title }) => title === "secret"));
    assert.ok(!feed.broadcasts.some(({ payload }) => payload.title === "secret"));
    assert.ok(!feed.changes.some(({ new: record }) => record.title === "secret"));
    assert.deepEqual(stranger.broadcasts, []);
    await b.denied("map.join", { mapId: map.mapId }, "ACCESS_DENIED");
    await a.next("story.updated", ({ title }) => title === "secret");
  });

  test("a client of the plain namespace is in the same rooms", async () => {
    const map = await world();
    const tab = await stage.open(alice, { namespace: "/" });
    const { cursor } = await tab.done("join", { topic: `map:${map.mapId}` });
    assert.match(cursor, CURSOR);
    await rename(map.storyId, "Plain");
    exactly(await tab.payload("story.updated"), {
      id: map.storyId,
      title: "Plain",
      updatedAt: TIME,
      updatedBy: null,
    });
    const stranger = await stage.open(mallory, { namespace: "/" });
    await stranger.denied("join", { topic: `map:${map.mapId}` }, "ACCESS_DENIED");
    await tab.done("leave", { topic: `map:${map.mapId}` });
  });
});
