// Presence: who is on a channel, as clients of both ages tell it and are told.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { Feed, User, VERSIONS, Wire, serve } from "./harness.mjs";

describe("presence", () => {
  let service;
  let wire;
  const users = [];
  before(async () => {
    service = await serve("");
    wire = await Wire.to(service.server);
  });
  after(async () => {
    await Promise.all(users.map((user) => user.close()));
    await wire.close();
    await service.close();
  });

  const join = async (version, topic, key, server = service.server) => {
    const user = new User(version, server);
    users.push(user);
    await user.signedIn;
    const feed = new Feed(user, topic, [], { presence: key === undefined ? {} : { key } });
    await feed.status("SUBSCRIBED");
    return feed;
  };
  /** One that only looks, of each age. */
  const watch = (topic) => Promise.all(VERSIONS.map((version) => join(version, topic)));
  const all = (feeds, presence) => Promise.all(feeds.map((feed) => feed.presence(presence)));

  for (const version of VERSIONS) {
    describe(version.name, () => {
      const topic = (name) => `${name} of ${version.name}`;

      test("who tracks is shown to those who are there and to those who come later", async () => {
        const watchers = await watch(topic("first"));
        await all(watchers, {});
        const alice = await join(version, topic("first"), "alice");
        await alice.presence({});
        assert.equal(await alice.channel.track({ at: 1, name: "älice" }), "ok");
        const there = { alice: [{ at: 1, name: "älice" }] };
        await all([alice, ...watchers], there);
        for (const feed of [alice, ...watchers]) {
          const { key, currentPresences, newPresences } = await feed.moved("join", () => true);
          assert.deepEqual([key, currentPresences], ["alice", []]);
          assert.equal(typeof newPresences[0].presence_ref, "string");
          assert.equal(feed.presences.filter(({ event }) => event === "join").length, 1);
        }
        const late = await watch(topic("first"));
        await all(late, there);
        const refs = [alice, ...watchers, ...late].map(
          (feed) => feed.channel.presenceState().alice[0].presence_ref,
        );
        assert.equal(new Set(refs).size, 1, "it is one presence for everybody");
      });

      test("several tabs with one key are one key, until the last one goes", async () => {
        const watchers = await watch(topic("tabs"));
        // Tabs of one user do not always have the same version of an app.
        const tabs = [];
        for (const [n, age] of [version, ...VERSIONS, version].entries()) {
          const tab = await join(age, topic("tabs"), "alice", n === 3 ? wire : undefined);
          assert.equal(await tab.channel.track({ tab: n }), "ok");
          tabs.push(tab);
        }
        const left = (...ns) => ({ alice: ns.map((tab) => ({ tab })) });
        await all([...tabs, ...watchers], left(0, 1, 2, 3));

        assert.equal(await tabs[0].channel.untrack(), "ok");
        await all([...tabs, ...watchers], left(1, 2, 3));
        assert.equal(await tabs[1].channel.unsubscribe(), "ok");
        await all([tabs[0], tabs[2], tabs[3], ...watchers], left(2, 3));
        wire.break();
        await all([tabs[0], tabs[2], ...watchers], left(2));
        wire.mend();
        await tabs[2].user.close();
        await all([tabs[0], ...watchers], {});

        for (const watcher of watchers) {
          const leaves = watcher.presences.filter(({ event }) => event === "leave");
          assert.deepEqual(
            leaves.map(({ key, currentPresences, leftPresences }) => [
              key,
              currentPresences.length,
              leftPresences.map(({ tab }) => tab),
            ]),
            [0, 1, 3, 2].map((tab, n) => ["alice", 3 - n, [tab]]),
          );
        }
      });

      test("tracking again replaces what was told, and the same again changes nothing", async () => {
        const watchers = await watch(topic("update"));
        const alice = await join(version, topic("update"), "alice");
        const bob = await join(version, topic("update"), "bob");
        await alice.channel.track({ typing: false });
        await all([alice, bob, ...watchers], { alice: [{ typing: false }] });
        const before = watchers.map((feed) => feed.channel.presenceState().alice[0].presence_ref);
        assert.equal(await alice.channel.track({ typing: true }), "ok");
        await all([alice, bob, ...watchers], { alice: [{ typing: true }] });
        const changed = watchers.map((feed) => feed.channel.presenceState().alice[0].presence_ref);
        changed.forEach((ref, n) => assert.notEqual(ref, before[n]));

        assert.equal(await alice.channel.track({ typing: true }), "ok");
        // Whatever that may have caused was told before this.
        assert.equal(await bob.channel.track({}), "ok");
        await all([alice, bob, ...watchers], { alice: [{ typing: true }], bob: [{}] });
        for (const [n, feed] of watchers.entries()) {
          const alices = feed.presences.filter(({ key }) => key === "alice");
          assert.deepEqual(
            alices.map(({ event }) => event),
            ["join", "join", "leave"],
          );
          assert.equal(feed.channel.presenceState().alice[0].presence_ref, changed[n]);
        }
      });

      test("who untracks is gone but still hears, and can come back", async () => {
        const watchers = await watch(topic("back"));
        const alice = await join(version, topic("back"), "alice");
        for (const round of [1, 2, 3]) {
          assert.equal(await alice.channel.track({ round }), "ok");
          await all([alice, ...watchers], { alice: [{ round }] });
          assert.equal(await alice.channel.untrack(), "ok");
          await all([alice, ...watchers], {});
        }
        assert.ok(!alice.statuses.some(({ status }) => status !== "SUBSCRIBED"));
      });

      test("a lost socket is a leave; who returns finds no trace of it, and tracks anew", async () => {
        const watchers = await watch(topic("lost"));
        const alice = await join(version, topic("lost"), "alice", wire);
        const bob = await join(version, topic("lost"), "bob");
        await alice.channel.track({ n: 1 });
        await bob.channel.track({ n: 1 });
        await all([alice, bob, ...watchers], { alice: [{ n: 1 }], bob: [{ n: 1 }] });

        const from = alice.statuses.length;
        wire.break();
        await alice.status("CHANNEL_ERROR", from);
        await all([bob, ...watchers], { bob: [{ n: 1 }] });
        await bob.channel.track({ n: 2 });
        wire.mend();
        await alice.status("SUBSCRIBED", from);
        await alice.presence({ bob: [{ n: 2 }] });
        const [own] = alice.presences.filter(({ event, key }) => event === "leave" && key === "alice");
        assert.deepEqual(own.leftPresences.map(({ n }) => n), [1], "told of its own absence");

        assert.equal(await alice.channel.track({ n: 2 }), "ok");
        await all([alice, bob, ...watchers], { alice: [{ n: 2 }], bob: [{ n: 2 }] });
      });

      test("without a key one is made up, and any text may be one", async () => {
        const watchers = await watch(topic("keys"));
        const nobody = await join(version, topic("keys"));
        await nobody.channel.track({ nobody: true });
        await nobody.moved("join", () => true);
        const [made] = Object.keys(nobody.channel.presenceState());
        assert.match(made, /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
        const keys = ["ключ 🗝", "a,b(c)\"'\\", " ", "0", "null"];
        const state = { [made]: [{ nobody: true }] };
        for (const [n, key] of keys.entries()) {
          const feed = await join(version, topic("keys"), key);
          await feed.channel.track({ n });
          state[key] = [{ n }];
        }
        await all([nobody, ...watchers], state);
      });

      test("however many come, change and go at once, all agree in the end", async () => {
        const watchers = await watch(topic("crowd"));
        const members = await Promise.all(
          Array.from({ length: 16 }, (_, n) => join(version, topic("crowd"), `member ${n % 10}`)),
        );
        await Promise.all(
          members.map(async ({ channel }, n) => {
            for (let round = 0; round < 5; round += 1) await channel.track({ n, round });
            if (n % 3 === 0) await channel.untrack();
            if (n % 3 === 1) await channel.unsubscribe();
          }),
        );
        const late = await watch(topic("crowd"));
        const there = {};
        members.forEach((_, n) => {
          if (n % 3 === 2) (there[`member ${n % 10}`] ??= []).push({ n, round: 4 });
        });
        const listening = [...members.filter((_, n) => n % 3 !== 1), ...watchers, ...late];
        await all(listening, there);
        const states = listening.map((feed) =>
          Object.entries(feed.channel.presenceState())
            .flatMap(([key, metas]) => metas.map((meta) => `${key} ${meta.presence_ref}`))
            .sort(),
        );
        for (const state of states) assert.deepEqual(state, states[0]);
      });
    });
  }
});
