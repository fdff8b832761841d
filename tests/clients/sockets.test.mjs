// How Socket.IO is spoken: transports and their changes, several namespaces on one connection, and
// what becomes of a connection that is cut. What is said there is the example applications'.

import assert from "node:assert/strict";
import { after, describe, test } from "node:test";

import { Wire } from "./harness.mjs";
import { Applications, CURSOR, having, uuid } from "./socket.mjs";
import { board, wiki } from "./worlds.mjs";

describe("Socket.IO", () => {
  const stage = new Applications("/wiki");
  const sql = (text, values) => stage.query(text, values);
  const { member, world, rename, join, fence, versions } = wiki(stage);
  const tasks = board(stage);
  const wires = [];
  after(() => Promise.all(wires.map((wire) => wire.close())));
  const wireTo = async () => {
    const wire = await Wire.to(stage.server);
    wires.push(wire);
    return wire;
  };
  const range = (first, last) => Array.from({ length: last - first + 1 }, (_, n) => first + n);

  for (const transports of [["websocket"], ["polling"]]) {
    test(`who is cut off by ${transports} is recovered, and told what he missed, once`, async () => {
      const { ann, kbId, nodeId } = await world();
      const wire = await wireTo();
      const tab = await join(ann, kbId, { url: wire.url, transports });
      await fence(nodeId, tab);
      const { id } = tab;
      for (let round = 1; round <= 2; round += 1) {
        const from = tab.mark;
        wire.break();
        await tab.next("(disconnect)", undefined, from);
        for (const title of ["a", "b", "c"]) await rename(nodeId, `${title} ${round}`);
        wire.mend();
        await tab.opened(from);
        assert.equal(tab.socket.recovered, true);
        assert.equal(tab.id, id);
        // Its rooms are as they were.
        await fence(nodeId, tab);
        assert.deepEqual(versions(tab), range(2, 2 + 4 * round));
      }
      assert.deepEqual(tab.all("error"), []);
    });
  }

  test("who was removed while he was cut off is not in the room again", async () => {
    const { ben, own, eve, kbId, nodeId } = await world();
    await member(own.kbId, ben, "reader");
    const wire = await wireTo();
    const tab = await join(ben, kbId, { url: wire.url });
    await tab.done("kb.join", { kbId: own.kbId });
    await fence(nodeId, tab);
    const watcher = await join(eve, own.kbId);
    const from = tab.mark;
    wire.break();
    await tab.next("(disconnect)", undefined, from);
    await sql("delete from wiki.kb_members where kb_id = $1 and user_id = $2", [kbId, ben.sub]);
    await rename(nodeId, "secret");
    await fence(own.nodeId, watcher);
    wire.mend();
    await tab.opened(from);
    if (!tab.socket.recovered) await tab.done("kb.join", { kbId: own.kbId });
    await rename(nodeId, "secret, too");
    await fence(own.nodeId, tab, watcher);
    assert.ok(!tab.all("node.updated").some(({ title }) => title.startsWith("secret")));
    await tab.denied("kb.join", { kbId }, "ACCESS_DENIED");
  });

  test("a service that restarts is found again, and tells what was written meanwhile", async () => {
    const { ann, kbId, nodeId } = await world();
    const tab = await join(ann, kbId);
    await fence(nodeId, tab);
    for (const signal of ["SIGTERM", "SIGKILL"]) {
      const from = tab.mark;
      const { cursor: since } = tab.heard.findLast(({ event }) => event === "node.updated");
      await stage.server.end(signal);
      const { reason } = await tab.next("(disconnect)", undefined, from);
      assert.match(reason, /^transport (close|error)$/, "the client comes back by itself");
      await rename(nodeId, `without ${signal}`);
      await stage.server.start();
      await tab.opened(from);
      if (!tab.socket.recovered) await tab.done("kb.join", { kbId, since });
      await fence(nodeId, tab);
    }
    assert.deepEqual(versions(tab), range(2, 6));
  });

  test("who asks for more than is remembered is told that there is a gap", async () => {
    const { ann, kbId, nodeId } = await world();
    const tab = await join(ann, kbId);
    await fence(nodeId, tab);
    const { cursor } = await tab.next("node.updated");
    const [, ordinal, epoch] = cursor.split("-");
    const other = epoch === "00000000" ? "00000001" : "00000000";
    const lost = {
      history_expired: `0000000000000001-${ordinal}-${epoch}`,
      another_history: `${cursor.slice(0, 25)}-${other}`,
      malformed_cursor: "yesterday",
    };
    for (const [reason, since] of Object.entries(lost)) {
      const late = await stage.open(ann);
      await late.done("kb.join", { kbId, since });
      const { code, context } = await late.payload("gap");
      assert.equal(code, "GAP");
      having(context, { topic: `kb:${kbId}`, to: CURSOR, reason });
      await late.next("caught_up");
      await fence(nodeId, late);
    }
    for (const since of [7, {}, [cursor]]) {
      const late = await stage.open(ann);
      const { ok } = await late.ask("kb.join", { kbId, since });
      if (ok) await late.next("gap");
    }
  });

  test("joining again is answered again, and heard once", async () => {
    const { ann, kbId, nodeId } = await world();
    const [tab, watcher] = [await join(ann, kbId), await join(ann, kbId)];
    await fence(nodeId, tab);
    const { cursor: since } = await tab.next("node.updated");
    for (const payload of [{ kbId }, { kbId, since }, { kbId }]) await tab.done("kb.join", payload);
    await fence(nodeId, tab);
    assert.deepEqual(versions(tab), [2, 3]);
    await tab.done("kb.leave", { kbId });
    await rename(nodeId, "unheard");
    await watcher.next("node.updated", ({ title }) => title === "unheard");
    await tab.done("kb.join", { kbId });
    await fence(nodeId, tab);
    assert.deepEqual(versions(tab), [2, 3, 5]);
  });

  test("by polling alone everything is there: joins, writes, events in order, errors, a farewell", async () => {
    const { ann, ben, kbId, nodeId } = await world();
    const watcher = await join(ben, kbId);
    const tab = await join(ann, kbId, { transports: ["polling"] });
    const { data } = await tab.done("node.create", { kbId, title: "By polling" });
    assert.equal((await watcher.payload("node.created")).id, data.id);
    await tab.denied("node.create", { kbId }, "VALIDATION_FAILED");
    for (let n = 0; n < 100; n += 1) await rename(nodeId, `title ${n}`);
    await fence(nodeId, tab, watcher);
    assert.deepEqual(versions(tab), range(2, 102));
    const from = watcher.mark;
    tab.close();
    await watcher.next("presence.leave", ({ userId }) => userId === ann.sub, from);
  });

  test("clients that change to WebSocket while much is written miss nothing and hear nothing twice", async () => {
    const { ann, kbId, nodeId } = await world();
    let writing = true;
    const writer = (async () => {
      let count = 0;
      for (; writing; count += 1) await rename(nodeId, `title ${count}`);
      return count;
    })();
    const tabs = await Promise.all(
      range(1, 10).map(async () => {
        const tab = stage.tab(ann, { transports: ["polling", "websocket"] });
        const upgraded = new Promise((resolve) => tab.socket.io.engine.once("upgrade", resolve));
        await tab.opened();
        await tab.done("kb.join", { kbId });
        await upgraded;
        // And for some time more.
        for (let n = 0, from = tab.mark; n < 10; n += 1, from = tab.mark) {
          await tab.next("node.updated", undefined, from);
        }
        return tab;
      }),
    );
    writing = false;
    const count = await writer;
    await fence(nodeId, ...tabs);
    for (const tab of tabs) {
      const heard = versions(tab);
      assert.deepEqual(heard, range(heard[0], count + 2));
      assert.equal(tab.socket.io.engine.transport.name, "websocket");
      assert.deepEqual(tab.all("(disconnect)"), []);
    }
  });

  test("several namespaces share a connection, and one that is refused or left disturbs no other", async () => {
    const { ann, kbId, nodeId } = await world();
    const { taskId, ben } = await tasks.world();
    const wire = await wireTo();
    const shared = { url: wire.url, forceNew: false };
    const first = await join(ann, kbId, shared);
    const second = await stage.open(ben, { ...shared, namespace: "/tasks" });
    const plain = await stage.open(ann, { ...shared, namespace: "/" });
    assert.ok(first.socket.io === second.socket.io && first.socket.io === plain.socket.io);
    assert.equal(new Set([first.id, second.id, plain.id]).size, 3);
    await second.done("room:join", { taskId });
    await plain.done("join", { topic: `kb:${kbId}` });
    const refusals = { "/nowhere": "Invalid namespace", "/pages": "Authentication error: Invalid token" };
    for (const [namespace, message] of Object.entries(refusals)) {
      const options = { ...shared, namespace, auth: { token: "nonsense" } };
      assert.equal(await stage.refusal(options), message);
    }
    await fence(nodeId, first, plain);
    await tasks.fence(taskId, second);
    assert.deepEqual([first.all("task:updated"), second.all("node.updated")], [[], []]);
    plain.close();
    await fence(nodeId, first);
    await tasks.fence(taskId, second);
    assert.equal(plain.all("node.updated").length, 1);

    // All of them come back with the connection.
    const [from, since] = [first.mark, second.mark];
    wire.break();
    await first.next("(disconnect)", undefined, from);
    await rename(nodeId, "meanwhile");
    await tasks.rename(taskId, "meanwhile");
    wire.mend();
    await Promise.all([first.opened(from), second.opened(since)]);
    await fence(nodeId, first);
    await tasks.fence(taskId, second);
    assert.deepEqual(versions(first), [2, 3, 4, 5]);
    assert.equal(second.all("task:updated").length, 4);
  });

  test("who is removed is told, by polling too, and may come back when he may", async () => {
    const { ann, ben, kbId, nodeId } = await world();
    const watcher = await join(ann, kbId);
    const tab = await join(ben, kbId, { transports: ["polling"] });
    await sql("delete from wiki.kb_members where kb_id = $1 and user_id = $2", [kbId, ben.sub]);
    const { context } = await tab.payload("error", ({ code }) => code === "ACCESS_REVOKED");
    assert.equal(context.topic, `kb:${kbId}`);
    await rename(nodeId, "secret");
    await watcher.next("node.updated");
    await tab.denied("kb.join", { kbId }, "ACCESS_DENIED");
    await member(kbId, ben, "reader");
    await tab.done("kb.join", { kbId });
    await fence(nodeId, tab);
    assert.deepEqual(versions(tab), [3]);
    await tab.denied("node.update", { id: nodeId, kbId, title: "x", version: 3 }, "PERMISSION_DENIED");
  });

  test("the token's own words are the user, whatever else is in the handshake", async () => {
    const { eve, ann, kbId } = await world();
    const token = stage.pass(eve);
    const lies = { sub: ann.sub, userId: ann.sub, role: "service_role", claims: ann, topic: `kb:${kbId}` };
    const tab = stage.tab(undefined, { auth: { ...lies, token }, query: lies });
    await tab.opened();
    await tab.denied("kb.join", { kbId, ...lies }, "ACCESS_DENIED");
    await tab.denied("node.create", { kbId, title: "x" }, "PERMISSION_DENIED");
  });

  test("a write that is under way when the connection is cut is done once, under its name", async () => {
    const { ann, kbId } = await world();
    const wire = await wireTo();
    const options = { url: wire.url, retries: 5, ackTimeout: 30_000 };
    const tab = await join(ann, kbId, options);
    const waiting = [];
    for (let n = 0; n < 5; n += 1) {
      waiting.push(tab.ask("node.create", { kbId, title: `node ${n}`, mutationId: uuid() }));
    }
    await tab.next("node.created");
    const from = tab.mark;
    wire.break();
    await tab.next("(disconnect)", undefined, from);
    wire.mend();
    const answers = await Promise.all(waiting);
    for (const answer of answers) assert.equal(answer.ok, true, JSON.stringify(answer));
    const rows = await sql("select title from wiki.nodes where kb_id = $1 and title like 'node %' order by 1", [kbId]);
    assert.deepEqual(rows.map(({ title }) => title), range(0, 4).map((n) => `node ${n}`));
  });
});
