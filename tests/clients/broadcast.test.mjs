// Broadcasts: over the socket, over HTTP, between clients of both ages, and to private rooms.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { ALICE, BOB, Feed, Stage, VERSIONS } from "./harness.mjs";

const SCHEMA = `
  create policy "members hear" on realtime.messages for select to authenticated
    using (realtime.topic() like 'private%');
  create policy "alice speaks" on realtime.messages for insert to authenticated
    with check (realtime.topic() like 'private%' and auth.uid() = '${ALICE}');
`;

/** What everybody hears of an event. */
const said = (event, payload) => ({ type: "broadcast", event, payload });

describe("broadcast", () => {
  const stage = new Stage(SCHEMA);

  const signIn = (version, sub) => stage.signIn(version, sub && stage.token(sub));
  const join = async (version, topic, { sub, ...config } = {}) => {
    const user = await signIn(version, sub);
    const feed = new Feed(user, topic, [], config);
    await feed.status("SUBSCRIBED");
    return feed;
  };
  /** One listener of each age. */
  const listen = (topic) => Promise.all(VERSIONS.map((version) => join(version, topic)));
  /** A channel that is not joined: what it sends goes over HTTP. */
  const outside = async (version, topic, sub, config = {}) => {
    const user = await signIn(version, sub);
    return user.client.channel(topic, { config });
  };

  for (const version of VERSIONS) {
    describe(version.name, () => {
      const topic = (name) => `${name} of ${version.name}`;

      test("everybody else hears, and the sender if it wants to", async () => {
        const listeners = await listen(topic("room"));
        const sender = await join(version, topic("room"));
        const echo = await join(version, topic("room"), { broadcast: { self: true } });
        assert.equal(await sender.channel.send(said("first", { a: [1, "ü"] })), "ok");
        for (const feed of [...listeners, echo]) {
          assert.deepEqual(await feed.broadcast(0), said("first", { a: [1, "ü"] }));
        }
        assert.equal(await echo.channel.send(said("second", {})), "ok");
        for (const feed of [...listeners, echo]) {
          assert.deepEqual(await feed.broadcast(1), said("second", {}));
        }
        assert.deepEqual(await sender.broadcast(0), said("second", {}));
        assert.equal(sender.broadcasts.length, 1);
      });

      test("an acknowledged broadcast is answered", async () => {
        const listeners = await listen(topic("ack"));
        const sender = await join(version, topic("ack"), { broadcast: { ack: true } });
        assert.equal(await sender.channel.send(said("e", { n: 1 })), "ok");
        for (const feed of listeners) {
          assert.deepEqual(await feed.broadcast(0), said("e", { n: 1 }));
        }
      });

      test("what is sent without a join goes over HTTP", async () => {
        const listeners = await listen(topic("http"));
        for (const sub of [undefined, BOB]) {
          const channel = await outside(version, topic("http"), sub);
          assert.equal(await channel.send(said("e", { sub: sub ?? null })), "ok");
        }
        for (const feed of listeners) {
          assert.deepEqual(await feed.broadcast(0), said("e", { sub: null }));
          assert.deepEqual(await feed.broadcast(1), said("e", { sub: BOB }));
        }
      });

      test("what is no broadcast, or of nobody, is an error over HTTP", async () => {
        const [listener] = await listen(topic("errors"));
        const channel = await outside(version, topic("errors"));
        assert.equal(await channel.send({ type: "broadcast", event: "e" }), "error");
        assert.equal(await channel.send(said("e", "no object")), "error");
        const forged = await stage.signIn(version, `${stage.server.anonKey}x`);
        const nobodys = forged.client.channel(topic("errors"));
        assert.equal(await nobodys.send(said("e", {})), "error");
        assert.equal(await channel.send(said("fence", {})), "ok");
        await listener.broadcast(0);
        assert.deepEqual(listener.broadcasts, [said("fence", {})]);
      });
    });
  }

  const newest = VERSIONS.find((version) => version.isNewest);
  const oldest = VERSIONS.find((version) => !version.isNewest);

  test("bytes reach the newest as they are, and the oldest not at all", async () => {
    const heard = await join(newest, "bytes");
    const deaf = await join(oldest, "bytes");
    const sender = await join(newest, "bytes", { broadcast: { ack: true } });
    const bytes = Uint8Array.of(0, 255, 1);
    assert.equal(await sender.channel.send(said("socket", bytes.buffer)), "ok");
    const channel = await outside(newest, "bytes");
    assert.deepEqual(await channel.httpSend("http", bytes), { success: true });
    assert.equal(await sender.channel.send(said("fence", {})), "ok");
    for (const [at, event] of ["socket", "http"].entries()) {
      const message = await heard.broadcast(at);
      assert.equal(message.event, event);
      assert.deepEqual(new Uint8Array(message.payload), bytes);
    }
    await deaf.broadcast(0);
    assert.deepEqual(deaf.broadcasts, [said("fence", {})]);
  });

  // The oldest does not know private rooms: its channels are public whatever it is told.
  test("a private room hears those who may write there, and nobody else does", async () => {
    const outsiders = await listen("private");
    const config = { private: true, broadcast: { ack: true } };
    const bob = await join(newest, "private", { ...config, sub: BOB });
    const alice = await join(newest, "private", { ...config, sub: ALICE });
    assert.equal(await bob.channel.send(said("bob", {})), "error");
    assert.equal(await alice.channel.send(said("alice", {})), "ok");
    await bob.broadcast(0);
    assert.deepEqual(bob.broadcasts, [said("alice", {})]);
    assert.equal(await (await outside(newest, "private")).send(said("fence", {})), "ok");
    for (const feed of outsiders) {
      await feed.broadcast(0);
      assert.deepEqual(feed.broadcasts, [said("fence", {})]);
    }
    assert.equal(bob.broadcasts.length, 1);
  });

  test("httpSend says whether it was sent, and why not", async () => {
    const topic = "private/ü ?%";
    const listener = await join(newest, topic, { private: true, sub: BOB });
    const alice = await outside(newest, topic, ALICE, { private: true });
    const bob = await outside(newest, topic, BOB, { private: true });
    await assert.rejects(bob.httpSend("e/ü", {}), { message: "Unauthorized" });
    assert.deepEqual(await alice.httpSend("e/ü", { n: [1] }), { success: true });
    await listener.broadcast(0);
    assert.deepEqual(listener.broadcasts, [said("e/ü", { n: [1] })]);
    const forged = await stage.signIn(newest, `${stage.server.anonKey}x`);
    await assert.rejects(forged.client.channel("t").httpSend("e", {}), { message: "Unauthorized" });
  });
});
