// Seed 004, a page editor: components and what is nested in them. The numbers are those of its
// scenarios; users are named by the claim `userId`.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { data } from "./rest.mjs";
import { Applications, TIME, exactly, having, id } from "./socket.mjs";

describe("pages", () => {
  const stage = new Applications("/pages");
  const sql = (text, values) => stage.query(text, values);

  const person = (name) => {
    const userId = id(name);
    return { userId, email: `${userId}@example.org` };
  };

  /** A page of Ann's with a component; Ed edits it and Vic looks. Eve has one of her own. */
  const world = async () => {
    const [ann, ed, vic, eve] = ["ann", "ed", "vic", "eve"].map(person);
    const [page, own] = [await entity(ann), await entity(eve)];
    for (const [user, role] of [[ed, "editor"], [vic, "viewer"]]) {
      await sql("insert into pages.entity_members values ('page', $1, $2, $3)", [page.entityId, user.userId, role]);
    }
    await stage.settle();
    return { ...page, own, ann, ed, vic, eve };
  };
  const entity = async ({ userId }) => {
    const [entityId, componentId] = [id("page-"), id("c-")];
    await sql("insert into pages.entities values ('page', $1, 'Page', $2)", [entityId, userId]);
    await sql(
      `insert into pages.components (id, entity_type, entity_id, props) values ($1, 'page', $2, '{"n": 0}')`,
      [componentId, entityId],
    );
    return { entityType: "page", entityId, componentId };
  };
  const join = async (user, rooms, options) => {
    const tab = await stage.open(user, options);
    await tab.done("component:subscribe", rooms);
    return tab;
  };
  /** Whoever is in the component's room, or its entity's, has heard all that came before. */
  let fences = 0;
  const fence = async (componentId, ...tabs) => {
    const position = ++fences + 1000;
    await sql("update pages.components set position = $2 where id = $1", [componentId, position]);
    for (const tab of tabs) await tab.next("component:updated", ({ updates }) => updates.position === position);
  };
  /** What was told but by fences. */
  const updates = (tab) =>
    tab.all("component:updated").filter(({ updates }) => !(updates.position > 1000));

  test("004-1: a token comes in auth or in a header, and who has none is told so", async () => {
    const { ann } = await world();
    assert.equal(await stage.refusal({}), "Authentication error: No token provided");
    for (const token of ["nonsense", stage.pass(ann, -60)]) {
      assert.equal(await stage.refusal({ auth: { token } }), "Authentication error: Invalid token");
    }
    for (const transports of [["websocket"], ["polling"]]) {
      const extraHeaders = { authorization: `Bearer ${stage.pass(ann)}` };
      await stage.tab(undefined, { extraHeaders, transports }).opened();
    }
  });

  test("004-2: who subscribes is told to all who have, himself too, by component or by entity", async () => {
    const { componentId, entityId, ann, ed } = await world();
    const a = await join(ann, { componentId });
    const first = await a.payload("component:user-joined");
    having(first, { userId: ann.userId, userEmail: ann.email });
    const e = await join(ed, { componentId });
    for (const tab of [a, e]) {
      const joined = await tab.payload("component:user-joined", ({ userId }) => userId === ed.userId);
      assert.equal(joined.userEmail, ed.email);
    }
    const page = await join(ann, { entityType: "page", entityId });
    having(await page.payload("component:user-joined"), { userId: ann.userId });
    const both = await join(ed, { entityType: "page", entityId, componentId });
    await fence(componentId, a, e, page, both);
    assert.equal(both.all("component:updated").length, 1);
  });

  test("004-3: a write over HTTP is told once to whoever is in both rooms", async () => {
    const { componentId, entityId, ann, ed } = await world();
    const a = await join(ann, { componentId, entityType: "page", entityId });
    const rows = stage.rows(ed, "pages").from("components");
    await data(rows.update({ props: { n: 1 } }).eq("id", componentId));
    await fence(componentId, a);
    const told = updates(a);
    assert.equal(told.length, 1);
    exactly(told[0], { componentId, updates: { props: { n: 1 } }, updatedBy: ed.userId, timestamp: TIME });
  });

  test("004-4: an update is saved, and told to others", async () => {
    const { componentId, ann, ed } = await world();
    const [a, e] = [await join(ann, { componentId }), await join(ed, { componentId })];
    await e.done("component:update", { componentId, updates: { props: { n: 2 } } });
    await fence(componentId, a, e);
    exactly(updates(a)[0], { componentId, updates: { props: { n: 2 } }, updatedBy: ed.userId, timestamp: TIME });
    assert.deepEqual(updates(e), []);
    const rows = await sql("select props from pages.components where id = $1", [componentId]);
    assert.deepEqual(rows, [{ props: { n: 2 } }]);
  });

  test("004-5: nested components come, change and go", async () => {
    const { componentId, ann, ed } = await world();
    const [a, e] = [await join(ann, { componentId }), await join(ed, { componentId })];
    const row = { componentId, rowId: "row-1" };
    const nestedComponent = { kind: "image", props: { src: "a.png" } };
    await e.done("component:nested-create", { ...row, nestedComponent });
    for (const tab of [a, e]) {
      const created = await tab.payload("component:nested-created");
      exactly(created, { ...row, nestedComponent: Object, createdBy: ed.userId });
      having(created.nestedComponent, nestedComponent);
    }
    const nestedComponentId = e.all("component:nested-created")[0].nestedComponent.id;
    const about = { ...row, nestedComponentId };
    await e.done("component:nested-update", { ...about, updates: { props: { src: "b.png" } } });
    const updated = await a.payload("component:nested-updated");
    const changes = { updates: { props: { src: "b.png" } }, updatedBy: ed.userId, timestamp: TIME };
    exactly(updated, { ...about, ...changes });
    await e.done("component:nested-delete", about);
    for (const tab of [a, e]) {
      exactly(await tab.payload("component:nested-deleted"), { ...about, deletedBy: ed.userId });
    }
    assert.deepEqual(e.all("component:nested-updated"), []);
  });

  test("004-6: components that come and go are told on their page", async () => {
    const { entityId, ann, ed } = await world();
    const page = await join(ann, { entityType: "page", entityId });
    const componentId = id("c-");
    const rows = () => stage.rows(ed, "pages").from("components");
    await data(rows().insert({ id: componentId, entity_type: "page", entity_id: entityId, kind: "text" }));
    await data(rows().delete().eq("id", componentId));
    const created = await page.payload("component:created");
    const about = { componentId, entityType: "page", entityId, createdBy: ed.userId, timestamp: TIME };
    exactly(created, { ...about, component: Object });
    having(created.component, { id: componentId, kind: "text", entityId });
    exactly(await page.payload("component:deleted"), { componentId, deletedBy: ed.userId, timestamp: TIME });
  });

  test("004-7: who types and where his cursor is, others are told, and where it ends for certain", async () => {
    const { componentId, entityId, ann, ed } = await world();
    const rooms = { componentId, entityType: "page", entityId };
    const [a, e] = [await join(ann, rooms), await join(ed, rooms)];
    e.say("component:typing", { componentId, userId: ann.userId });
    const typing = await a.payload("component:typing");
    having(typing, { componentId, userId: ed.userId, userEmail: ed.email });
    const began = performance.now();
    for (let x = 1; x <= 50; x += 1) {
      e.say("component:cursor", { ...rooms, position: { x } });
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    const last = await a.payload("component:cursor", ({ position }) => position.x === 50);
    exactly(last, { componentId, userId: ed.userId, userEmail: ed.email, position: { x: 50 } });
    const told = a.all("component:cursor").map(({ position }) => position.x);
    // One each 100 ms: the first at once, and the last.
    const most = (performance.now() - began) / 100 + 2;
    assert.ok(told.length >= 2 && told.length <= most, `${told.length} of at most ${most}`);
    assert.deepEqual(told, [...told].sort((one, other) => one - other));
    await fence(componentId, e);
    assert.deepEqual([...e.all("component:cursor"), ...e.all("component:typing")], []);
  });

  test("004-8: who has another tab has not left", async () => {
    const { componentId, ann, ed } = await world();
    const a = await join(ann, { componentId });
    const tabs = [await join(ed, { componentId }), await join(ed, { componentId })];
    await tabs[0].done("component:unsubscribe", { componentId });
    await fence(componentId, a, tabs[1]);
    assert.deepEqual(a.all("component:user-left"), []);
    tabs[1].close();
    having(await a.payload("component:user-left"), { userId: ed.userId });
    await fence(componentId, a);
    assert.equal(a.all("component:user-left").length, 1);
    assert.equal(tabs[0].all("component:updated").length, 0);
  });

  test("004-9: strangers are not let in, viewers write nothing, and nobody moves a component", async () => {
    const { componentId, entityId, own, ann, ed, vic, eve } = await world();
    const a = await join(ann, { componentId });
    const stranger = await join(eve, { componentId: own.componentId });
    await stranger.denied("component:subscribe", { componentId }, "ACCESS_DENIED");
    await stranger.denied("component:subscribe", { entityType: "page", entityId }, "ACCESS_DENIED");
    const viewer = await join(vic, { componentId });
    await viewer.denied("component:update", { componentId, updates: { props: {} } }, "PERMISSION_DENIED");
    const editor = await join(ed, { componentId });
    for (const updates of [{ id: "x" }, { entity_id: own.entityId }, { entityId: own.entityId }, { created_by: "x" }]) {
      const answer = await editor.ask("component:update", { componentId, updates });
      assert.equal(answer.ok, false, JSON.stringify(updates));
      assert.ok(["PERMISSION_DENIED", "VALIDATION_FAILED"].includes(answer.error.code), answer.error.code);
    }
    await fence(componentId, a, viewer, editor);
    await fence(own.componentId, stranger);
    assert.deepEqual([updates(a), updates(stranger)], [[], []]);
    assert.equal(stranger.all("component:updated").length, 1);
    const rows = await sql("select entity_id, props from pages.components where id = $1", [componentId]);
    assert.deepEqual(rows, [{ entity_id: entityId, props: { n: 0 } }]);
  });

  test("004-10: of two who write at once, both end where the row does", async () => {
    const { componentId, ann, ed } = await world();
    const tabs = [await join(ann, { componentId }), await join(ed, { componentId })];
    const feed = await stage.listen(ann, `component:${componentId}`);
    const answers = await Promise.all(
      tabs.map((tab, n) => tab.done("component:update", { componentId, updates: { props: { n: n + 1 } } })),
    );
    await fence(componentId, ...tabs);
    const [{ props }] = await sql("select props from pages.components where id = $1", [componentId]);
    for (const [n, tab] of tabs.entries()) {
      // Each knows his own write by its answer, and the other's by its event; the later one counts.
      const [other] = tab.heard.filter(({ payload }) => payload?.updates?.props);
      assert.equal(other.payload.updates.props.n, 2 - n);
      const last = other.cursor > answers[n].cursor ? other.payload.updates.props : { n: n + 1 };
      assert.deepEqual(last, props);
    }
    await feed.broadcast(1);
    assert.deepEqual(feed.broadcasts[1].payload.updates.props, props);
  });

  test("004-11: who polls is told that nothing changed, until something has", async () => {
    const { componentId, entityId, ann, ed } = await world();
    const a = await join(ann, { componentId });
    const path = `/rest/v1/components?entity_type=eq.page&entity_id=eq.${entityId}`;
    const ask = (etag) =>
      stage.fetch(ann, path, {
        headers: { "accept-profile": "pages", ...(etag && { "if-none-match": etag }) },
      });
    const first = await ask();
    assert.equal(first.status, 200);
    const [row] = await first.json();
    assert.equal(row.id, componentId);
    const etag = first.headers.get("etag");
    assert.ok(etag);
    const same = await ask(etag);
    assert.deepEqual([same.status, await same.text()], [304, ""]);
    const rows = stage.rows(ed, "pages").from("components");
    await data(rows.update({ props: { n: 3 } }).eq("id", componentId));
    await a.next("component:updated");
    const changed = await ask(etag);
    assert.equal(changed.status, 200);
    assert.deepEqual((await changed.json())[0].props, { n: 3 });
    assert.notEqual(changed.headers.get("etag"), etag);
  });

  test("004-12: supabase-js hears the rows, those that go too, and a stranger none", async () => {
    const { entityId, own, ed, vic, eve } = await world();
    const bindings = [{ schema: "pages", table: "components" }];
    const viewer = await stage.listen(vic, `user:${vic.userId}`, { bindings });
    const stranger = await stage.listen(eve, `user:${eve.userId}`, { bindings });
    const key = id("c-");
    const rows = () => stage.rows(ed, "pages").from("components");
    await data(rows().insert({ id: key, entity_type: "page", entity_id: entityId, props: { n: 1 } }));
    await data(rows().update({ props: { n: 2 } }).eq("id", key));
    await data(rows().delete().eq("id", key));
    const inserted = await viewer.change(({ eventType }) => eventType === "INSERT");
    having(inserted.new, { id: key, entity_id: entityId, props: { n: 1 } });
    const updated = await viewer.change(({ eventType }) => eventType === "UPDATE");
    having(updated.new, { id: key, props: { n: 2 } });
    const deleted = await viewer.change(({ eventType }) => eventType === "DELETE");
    // Its key, as Supabase has it for tables with policies; the event has what it means.
    assert.deepEqual(deleted.old, { id: key });
    await sql("update pages.components set position = 1 where id = $1", [own.componentId]);
    await stranger.change(({ eventType, new: record }) => eventType === "UPDATE" && record.id === own.componentId);
    assert.equal(stranger.changes.length, 1);
    assert.equal(viewer.changes.length, 3);
  });

  test("004-13: what is large is delivered, and compressed for who reads it over HTTP", async () => {
    const { componentId, entityId, ann, ed } = await world();
    const [a, e] = [await join(ann, { componentId }), await join(ed, { componentId }, { transports: ["polling"] })];
    const text = "walcast ".repeat(37_500);
    await e.done("component:update", { componentId, updates: { props: { text } } });
    const { updates } = await a.payload("component:updated");
    assert.equal(updates.props.text, text);
    const path = `/rest/v1/components?entity_id=eq.${entityId}`;
    const headers = { "accept-profile": "pages", "accept-encoding": "gzip" };
    const answer = await stage.fetch(ann, path, { headers });
    assert.equal(answer.headers.get("content-encoding"), "gzip");
    assert.equal((await answer.json())[0].props.text, text);
    const plain = await stage.fetch(ann, path, { headers: { ...headers, "accept-encoding": "identity" } });
    assert.equal(plain.headers.get("content-encoding"), null);
  });
});
