// What happens to a client in a long life: channels come and go, the server restarts, the network
// or the machine sleeps, the server hangs. Each time everything must be back by itself: broadcasts,
// presence and row changes. Checklist C88 to C90.

import assert from "node:assert/strict";
import { after, afterEach, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";

import { Feed, User, VERSIONS, Wire, serve, start, within } from "./harness.mjs";

const SCHEMA = `
  create table public.todos (id int primary key);
  grant select on public.todos to anon;
  alter publication supabase_realtime add table public.todos;
`;

/** Clients whose clocks run ten times as fast and more, so that half a minute is seconds. */
const HEARTBEAT_MS = 1000;
const fast = {
  heartbeatIntervalMs: HEARTBEAT_MS,
  reconnectAfterMs: (tries) => [100, 200, 500][tries - 1] ?? 1000,
};
const IDLE_MS = 5000;

/** One service with what its tests need, ended with them. */
function served(env) {
  const at = { users: [], id: 0 };
  before(async () => {
    at.service = await serve(SCHEMA, env);
    at.server = at.service.server;
    at.wire = await Wire.to(at.server);
  });
  afterEach(() => at.wire.mend());
  after(async () => {
    await Promise.all(at.users.map((user) => user.close()));
    await at.wire.close();
    await at.service.close();
  });
  at.insert = async () => {
    await at.service.database.query("insert into todos values ($1)", [++at.id]);
    return at.id;
  };
  at.signIn = async (version, server = at.server, realtime = {}) => {
    const user = new User(version, server, undefined, realtime);
    at.users.push(user);
    await user.signedIn;
    return user;
  };
  return at;
}

const open = (user, topic, key) =>
  new Feed(user, topic, [{ table: "todos" }], { presence: { key }, broadcast: { ack: true } });
const subscribed = async (user, topic, key) => {
  const feed = open(user, topic, key);
  await feed.status("SUBSCRIBED");
  return feed;
};
/** What both clients log when a heartbeat was not answered until the next one is due. */
function deafness() {
  let heard;
  const noticed = new Promise((resolve) => (heard = resolve));
  const logger = (_, message) => /^heartbeat timeout/.test(message) && heard();
  return { logger, noticed };
}
const statuses = (feed) => feed.statuses.map(({ status }) => status);
const all = (feeds, presence) => Promise.all(feeds.map((feed) => feed.presence(presence)));
/** The presence of feeds whose keys are `names`, each told as `meta`. */
const here = (names, meta) => Object.fromEntries(names.map((name) => [name, [meta]]));

let messages = 0;
/** Each of `feeds` says something, and all others hear it, once; a row reaches all, once. */
async function everythingWorks(insert, feeds) {
  for (const sender of feeds) {
    const n = ++messages;
    const is = ({ payload }) => payload.n === n;
    assert.equal(
      await sender.channel.send({ type: "broadcast", event: "e", payload: { n } }),
      "ok",
    );
    for (const feed of feeds.filter((feed) => feed !== sender)) {
      await feed.first(feed.broadcasts, 0, is, `broadcast ${n}`);
    }
    const id = await insert();
    for (const feed of feeds) {
      await feed.change((change) => change.new.id === id, `row ${id}`);
      assert.equal(feed.changes.filter((change) => change.new.id === id).length, 1);
      assert.equal(feed.broadcasts.filter(is).length, feed === sender ? 0 : 1);
    }
  }
}

describe("lifecycle", () => {
  const at = served();

  for (const version of VERSIONS) {
    test(`a channel is created anew 100 times, by ${version.name}`, async () => {
      const watcher = await subscribed(await at.signIn(version), `anew ${version.name}`, "watcher");
      const user = await at.signIn(version);
      for (let n = 0; n < 100; n += 1) {
        const feed = await subscribed(user, watcher.topic, "again");
        assert.equal(await feed.channel.track({ n }), "ok");
        assert.equal(await user.client.removeChannel(feed.channel), "ok");
        assert.deepEqual(statuses(feed), ["SUBSCRIBED", "CLOSED"]);
      }
      const last = await subscribed(user, watcher.topic, "again");
      await last.channel.track({ n: 100 });
      await all([last, watcher], { again: [{ n: 100 }] });
      await everythingWorks(at.insert, [last, watcher]);
      assert.deepEqual(statuses(last), ["SUBSCRIBED"]);
      assert.equal(user.client.getChannels().length, 1);
    });

    test(`nor does it stick without waiting for anything, by ${version.name}`, async () => {
      const topic = `hasty ${version.name}`;
      const watcher = await subscribed(await at.signIn(version), topic, "watcher");
      const user = await at.signIn(version);
      const gone = [];
      for (let n = 0; n < 100; n += 1) {
        // As a component does that is mounted, unmounted and mounted again.
        const feed = open(user, topic, `gone ${n}`);
        gone.push([feed, user.client.removeChannel(feed.channel)]);
      }
      const last = await subscribed(user, topic, "last");
      for (const [, removed] of gone) assert.equal(await removed, "ok");
      await last.channel.track({});
      await all([last, watcher], { last: [{}] });
      await everythingWorks(at.insert, [last, watcher]);
      assert.deepEqual(statuses(last), ["SUBSCRIBED"]);
      for (const [feed] of gone) {
        assert.deepEqual([statuses(feed), feed.changes, feed.broadcasts], [["CLOSED"], [], []]);
      }
    });

    test(`100 channels on one socket, all closed and opened at once, by ${version.name}`, async () => {
      const user = await at.signIn(version);
      const topics = Array.from({ length: 100 }, (_, n) => `many ${n} ${version.name}`);
      for (const round of [1, 2]) {
        const feeds = await Promise.all(topics.map((topic) => subscribed(user, topic, `${round}`)));
        const id = await at.insert();
        for (const feed of feeds) {
          await feed.change((change) => change.new.id === id);
          assert.deepEqual([feed.changes.length, statuses(feed)], [1, ["SUBSCRIBED"]]);
        }
        const removed = feeds.map((feed) => user.client.removeChannel(feed.channel));
        assert.deepEqual(new Set(await Promise.all(removed)), new Set(["ok"]));
      }
    });
  }

  for (const signal of ["SIGKILL", "SIGTERM"]) {
    test(`everything is back after the server ended by ${signal} and started again`, async () => {
      const names = VERSIONS.map((version) => version.name);
      const feeds = await Promise.all(
        VERSIONS.map(async (version) =>
          subscribed(await at.signIn(version), `until ${signal}`, version.name),
        ),
      );
      for (const feed of feeds) await feed.channel.track({ life: 1 });
      await all(feeds, here(names, { life: 1 }));
      await everythingWorks(at.insert, feeds);

      const from = feeds.map((feed) => feed.statuses.length);
      await at.server.end(signal);
      await Promise.all(feeds.map((feed, n) => feed.status("CHANNEL_ERROR", from[n])));
      await at.server.start();
      await Promise.all(feeds.map((feed, n) => feed.status("SUBSCRIBED", from[n])));
      // Presence is of the life before; an application tracks again when it is subscribed.
      await all(feeds, {});
      for (const feed of feeds) assert.equal(await feed.channel.track({ life: 2 }), "ok");
      await all(feeds, here(names, { life: 2 }));
      await everythingWorks(at.insert, feeds);
      for (const feed of feeds) assert.ok(!statuses(feed).includes("CLOSED"), "would end retries");
    });
  }

  test("a silence shorter than a heartbeat is not noticed, and nothing is missed", async () => {
    const sleepers = await Promise.all(
      VERSIONS.map(async (version) =>
        subscribed(await at.signIn(version, at.wire), "short", version.name),
      ),
    );
    const awake = await subscribed(await at.signIn(VERSIONS[0]), "short", "awake");
    at.wire.silence();
    const ids = [];
    for (let n = 0; n < 20; n += 1) {
      await awake.channel.send({ type: "broadcast", event: "e", payload: { n } });
      await awake.channel.track({ n });
      ids.push(await at.insert());
    }
    await awake.change((change) => change.new.id === ids.at(-1));
    for (const feed of sleepers) assert.deepEqual([feed.broadcasts, feed.changes], [[], []]);
    // What they say meanwhile is not lost either.
    const said = sleepers.map((feed) =>
      feed.channel.send({ type: "broadcast", event: "asleep", payload: {} }),
    );
    at.wire.mend();
    assert.deepEqual(new Set(await Promise.all(said)), new Set(["ok"]));
    for (const feed of sleepers) {
      await feed.change((change) => change.new.id === ids.at(-1));
      await feed.presence({ awake: [{ n: 19 }] });
      assert.deepEqual(feed.changes.map((change) => change.new.id), ids);
      const heard = feed.broadcasts.filter(({ event }) => event === "e");
      assert.deepEqual(heard.map(({ payload }) => payload.n), [...ids.keys()]);
      assert.deepEqual(statuses(feed), ["SUBSCRIBED"]);
    }
    for (const n of sleepers.keys()) assert.equal((await awake.broadcast(n)).event, "asleep");
  });
});

describe("sleep and wake", () => {
  const at = served({ WALCAST_SERVER_IDLE_TIMEOUT_MS: `${IDLE_MS}` });
  const names = VERSIONS.map((version) => version.name);

  const sleepers = (topic, logger) =>
    Promise.all(
      VERSIONS.map(async (version, n) => {
        const user = await at.signIn(version, at.wire, { ...fast, logger: logger?.[n] });
        return subscribed(user, topic, version.name);
      }),
    );
  const witness = async (topic) =>
    subscribed(await at.signIn(VERSIONS[0], at.server, fast), topic, "witness");
  /** Whoever comes back finds the others, no trace of itself, and can do everything again. */
  const back = async (feeds, awake, from) => {
    await Promise.all(feeds.map((feed, n) => feed.status("SUBSCRIBED", from[n])));
    await all([...feeds, awake], here(["witness"], { day: 1 }));
    for (const feed of feeds) assert.equal(await feed.channel.track({ day: 2 }), "ok");
    const expected = { ...here(names, { day: 2 }), ...here(["witness"], { day: 1 }) };
    await all([...feeds, awake], expected);
    await everythingWorks(at.insert, [...feeds, awake]);
    for (const feed of feeds) assert.ok(!statuses(feed).includes("CLOSED"), "would end retries");
    assert.deepEqual(statuses(awake), ["SUBSCRIBED"]);
  };
  const asleep = async (topic, logger) => {
    const feeds = await sleepers(topic, logger);
    const awake = await witness(topic);
    for (const feed of [...feeds, awake]) await feed.channel.track({ day: 1 });
    await all([...feeds, awake], here([...names, "witness"], { day: 1 }));
    return [feeds, awake, feeds.map((feed) => feed.statuses.length)];
  };

  test("heartbeats keep an idle socket open, and are answered", async () => {
    const beats = [];
    let enough;
    // Twice as long as the server waits for somebody who says nothing.
    const many = (2 * IDLE_MS) / HEARTBEAT_MS;
    const healthy = new Promise((resolve) => (enough = resolve));
    const heartbeatCallback = (status) => {
      beats.push(status);
      if (beats.filter((beat) => beat === "ok").length === many) enough();
    };
    const feeds = [];
    for (const version of VERSIONS) {
      const user = await at.signIn(version, at.server, { ...fast, heartbeatCallback });
      feeds.push(await subscribed(user, "idle", version.name));
    }
    await healthy;
    assert.deepEqual(new Set(beats), new Set(["sent", "ok"]));
    await everythingWorks(at.insert, feeds);
    for (const feed of feeds) assert.deepEqual(statuses(feed), ["SUBSCRIBED"]);
  });

  test("a socket that is dead without a word is given up by both ends, and all is back", async () => {
    const deaf = VERSIONS.map(deafness);
    const [feeds, awake, from] = await asleep("silence", deaf.map(({ logger }) => logger));
    at.wire.silence();
    for (const { noticed } of deaf) await within(noticed, () => "heartbeat timeout");
    await awake.presence(here(["witness"], { day: 1 }));
    const missed = await at.insert();
    await awake.change((change) => change.new.id === missed);
    at.wire.mend();
    await back(feeds, awake, from);
    for (const feed of feeds) {
      assert.ok(!feed.changes.some((change) => change.new.id === missed), "read again instead");
    }
  });

  test("a network that is gone for long is tried until it is there again", async () => {
    const [feeds, awake, from] = await asleep("gone");
    at.wire.break();
    // By their clocks half a minute: the newest tries 5 times in that, and the oldest, which never
    // waits longer than the first time, every second.
    const tried = at.wire.tried(33);
    await awake.presence(here(["witness"], { day: 1 }));
    await tried;
    for (const [n, feed] of feeds.entries()) {
      assert.deepEqual(new Set(statuses(feed).slice(from[n])), new Set(["CHANNEL_ERROR"]));
    }
    at.wire.mend();
    await back(feeds, awake, from);
  });

  test("a machine that slept finds its sockets closed, and everything is back", async (t) => {
    const topic = "machine";
    const awake = await witness(topic);
    const sleeper = fileURLToPath(new URL("sleeper.mjs", import.meta.url));
    const options = JSON.stringify({ heartbeatIntervalMs: HEARTBEAT_MS });
    const args = [sleeper, at.server.url, at.server.anonKey, topic, options];
    const machine = start(process.execPath, args, process.env);
    t.after(() => machine.kill("SIGKILL"));
    const told = (event, is) =>
      Promise.all(
        names.map((who) =>
          awake.first(
            awake.broadcasts,
            0,
            (heard) => heard.event === event && heard.payload.who === who && is(heard.payload),
            `${event} of ${who}; it said ${machine.said}`,
          ),
        ),
      );
    const ping = async (n) => {
      await awake.channel.send({ type: "broadcast", event: "ping", payload: { n } });
      await told("pong", (payload) => payload.n === n);
      const id = await at.insert();
      await told("row", (payload) => payload.id === id);
    };
    await awake.presence(here(names, { times: 1 }));
    await ping(1);

    machine.kill("SIGSTOP");
    await awake.presence({});
    const missed = await at.insert();
    await awake.change((change) => change.new.id === missed);
    machine.kill("SIGCONT");
    await awake.presence(here(names, { times: 2 }));
    await ping(2);
    const heard = awake.broadcasts.map(({ event, payload }) => [event, payload.who, payload.id]);
    assert.ok(!heard.some(([, , id]) => id === missed), "read again instead");
    assert.equal(heard.length, 2 * 2 * names.length, "everything once");
  });

  test("a server that hangs is noticed by heartbeats, and found again when it goes on", async () => {
    const deaf = VERSIONS.map(deafness);
    const feeds = await sleepers("hangs", deaf.map(({ logger }) => logger));
    for (const feed of feeds) await feed.channel.track({ life: 1 });
    await all(feeds, here(names, { life: 1 }));
    const from = feeds.map((feed) => feed.statuses.length);
    at.server.process.kill("SIGSTOP");
    try {
      for (const { noticed } of deaf) await within(noticed, () => "heartbeat timeout");
    } finally {
      at.server.process.kill("SIGCONT");
    }
    await Promise.all(feeds.map((feed, n) => feed.status("CHANNEL_ERROR", from[n])));
    await Promise.all(feeds.map((feed, n) => feed.status("SUBSCRIBED", from[n])));
    await all(feeds, {});
    for (const feed of feeds) assert.equal(await feed.channel.track({ life: 2 }), "ok");
    await all(feeds, here(names, { life: 2 }));
    await everythingWorks(at.insert, feeds);
    for (const feed of feeds) assert.ok(!statuses(feed).includes("CLOSED"), "would end retries");
  });
});
