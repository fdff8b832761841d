// Private channels: who is let in and who is not, what a new token changes, and replay. The oldest
// client cannot ask for one, whatever its caller says; it is the stranger here.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { ALICE, BOB, Feed, Stage, VERSIONS } from "./harness.mjs";

// Who may do what says the token, as `sub`: Alice does everything, Bob reads, Carol sees who is
// there, and Dave nothing.
const CAROL = "00000000-0000-4000-8000-00000000000c";
const DAVE = "00000000-0000-4000-8000-00000000000d";
const SCHEMA = `
  create table public.members (person uuid, topic text, primary key (person, topic));
  grant select on public.members to authenticated;
  create policy hears on realtime.messages for select to authenticated using (
    realtime.topic() like 'room %' and realtime.messages.extension = 'broadcast'
    and auth.uid() in ('${ALICE}', '${BOB}')
  );
  create policy sees on realtime.messages for select to authenticated using (
    realtime.topic() like 'room %' and realtime.messages.extension = 'presence'
    and auth.uid() in ('${ALICE}', '${CAROL}')
  );
  create policy writes on realtime.messages for insert to authenticated with check (
    realtime.topic() like 'room %' and auth.uid() = '${ALICE}'
  );
  create policy "members of a club" on realtime.messages for all to authenticated using (
    exists (
      select from public.members
      where members.person = auth.uid() and members.topic = realtime.topic()
    )
  );
`;

const newest = VERSIONS.find((version) => version.isNewest);
const oldest = VERSIONS.find((version) => !version.isNewest);
const said = (event, payload = {}) => ({ type: "broadcast", event, payload });

describe("private channels", () => {
  const stage = new Stage(SCHEMA);

  const sql = (text, values) => stage.query(text, values);
  const token = (sub, seconds) => stage.token(sub, seconds);
  const ask = async (topic, sub, { version = newest, bindings = [], ...config } = {}) => {
    const user = await stage.signIn(version, sub && token(sub));
    return new Feed(user, topic, bindings, { private: true, broadcast: { ack: true }, ...config });
  };
  const join = async (topic, sub, config) => {
    const feed = await ask(topic, sub, config);
    await feed.status("SUBSCRIBED");
    return feed;
  };
  const refused = (topic) =>
    `Unauthorized: You do not have permissions to read from this Channel topic: ${topic}`;
  const events = (feed) => feed.broadcasts.map(({ event }) => event);

  test("members are let in and hear each other, and others are told why not", async () => {
    const alice = await join("room 1", ALICE);
    const bob = await join("room 1", BOB);
    const strangers = [await ask("room 1", DAVE), await ask("room 1"), await ask("hall", ALICE)];
    for (const feed of strangers) {
      const { error } = await feed.status("CHANNEL_ERROR");
      assert.equal(error.message, refused(feed.topic));
    }
    assert.equal(await alice.channel.send(said("hello", { n: 1 })), "ok");
    await bob.broadcast(0);
    assert.deepEqual(bob.broadcasts, [said("hello", { n: 1 })]);
    for (const feed of strangers) {
      assert.equal(feed.broadcasts.length, 0);
      assert.ok(!feed.statuses.some(({ status }) => status === "SUBSCRIBED"));
    }
    // The refusals were about channels, not about sockets.
    const other = await strangers[0].user.subscribe("a public channel");
    assert.deepEqual(other.statuses.map(({ status }) => status), ["SUBSCRIBED"]);
  });

  test("who may not write is told, and nobody hears it", async () => {
    const alice = await join("room 2", ALICE);
    const bob = await join("room 2", BOB);
    assert.equal(await bob.channel.send(said("by bob")), "error");
    assert.equal(await bob.channel.track({ at: 1 }), "error");
    assert.equal(await alice.channel.send(said("by alice")), "ok");
    await bob.broadcast(0);
    assert.deepEqual([events(alice), events(bob)], [[], ["by alice"]]);
  });

  test("the oldest asks for a private channel and is in the public one of that name", async () => {
    const alice = await join("room 3", ALICE, { presence: { key: "alice" } });
    const old = await join("room 3", ALICE, { version: oldest, presence: { key: "old" } });
    await alice.channel.track({ private: true });
    await alice.presence({ alice: [{ private: true }] });
    assert.equal(await alice.channel.send(said("private")), "ok");
    assert.equal(await old.channel.send(said("public")), "ok");
    await old.channel.track({ private: false });
    await old.presence({ old: [{ private: false }] });
    const bob = await join("room 3", BOB);
    assert.equal(await alice.channel.send(said("fence")), "ok");
    await bob.broadcast(0);
    assert.deepEqual([events(old), events(alice)], [[], []]);
    assert.deepEqual(alice.present(), { alice: [{ private: true }] });
  });

  test("a client that was refused gets in by itself once it may", async () => {
    const feed = await ask("club", DAVE);
    await feed.status("CHANNEL_ERROR");
    await sql("insert into members values ($1, 'club')", [DAVE]);
    await feed.status("SUBSCRIBED");
    assert.equal(await feed.channel.send(said("at last")), "ok");
  });

  test("presence is shown to those who may see it, on the channel or instead of it", async () => {
    const key = (name) => ({ presence: { key: name } });
    const alice = await join("room 4", ALICE, key("alice"));
    const bob = await join("room 4", BOB, key("bob"));
    const carol = await join("room 4", CAROL, key("carol"));
    await alice.presence({});
    assert.equal(await alice.channel.track({ at: "desk" }), "ok");
    assert.equal(await carol.channel.track({ at: "door" }), "error", "she may only look");
    const tab = await join("room 4", ALICE, key("alice"));
    assert.equal(await tab.channel.track({ at: "phone" }), "ok");
    const both = { alice: [{ at: "desk" }, { at: "phone" }] };
    for (const feed of [alice, carol, tab]) await feed.presence(both);

    assert.equal(await alice.channel.send(said("to those who hear")), "ok");
    await bob.broadcast(0);
    await tab.user.close();
    for (const feed of [alice, carol]) await feed.presence({ alice: [{ at: "desk" }] });
    assert.deepEqual(events(carol), [], "she may not hear");
    assert.deepEqual([bob.present(), bob.presences], [{}, []], "he may not see");
  });

  test("a token with fewer rights, same channel: reading stays, writing ends", async () => {
    const alice = await join("room 5", ALICE);
    const bob = await join("room 5", BOB);
    assert.equal(await alice.channel.send(said("before")), "ok");
    await alice.user.refresh(token(BOB));
    assert.equal(await alice.channel.send(said("after")), "error");
    const other = await join("room 5", ALICE);
    assert.equal(await other.channel.send(said("fence")), "ok");
    await alice.broadcast(0);
    await bob.broadcast(1);
    assert.deepEqual([events(alice), events(bob)], [["fence"], ["before", "fence"]]);
    // And back: what was found out under a token is not remembered longer than that.
    await alice.user.refresh(token(ALICE, 1800));
    assert.equal(await alice.channel.send(said("again")), "ok");
    await bob.broadcast(2);
    assert.deepEqual(alice.statuses.map(({ status }) => status), ["SUBSCRIBED"]);
  });

  test("a token that may not read ends the channel, and only that one", async () => {
    const alice = await join("room 6", ALICE, { presence: { key: "alice" } });
    const open = await alice.user.subscribe("open to all");
    const watcher = await join("room 6", CAROL, { presence: {} });
    const bob = await join("room 6", BOB);
    await alice.channel.track({});
    await watcher.presence({ alice: [{}] });
    await alice.user.refresh(token(DAVE));
    await alice.status("CLOSED");
    assert.equal(
      (await alice.system(({ status }) => status === "error")).message,
      refused("room 6").replace("Unauthorized: ", ""),
    );
    await watcher.presence({});
    const other = await join("room 6", ALICE);
    assert.equal(await other.channel.send(said("unheard")), "ok");
    await bob.broadcast(0);
    assert.deepEqual(events(alice), []);
    assert.deepEqual(open.statuses.map(({ status }) => status), ["SUBSCRIBED"]);
    // Signed in again, she opens it anew.
    await alice.user.refresh(token(ALICE, 1800));
    const again = new Feed(alice.user, "room 6", [], { private: true });
    await again.status("SUBSCRIBED");
  });

  test("a token that expires ends the channel; one refreshed in time does not", async () => {
    const user = await stage.signIn(newest, token(BOB, 3));
    const other = await stage.signIn(newest, token(BOB, 3));
    const rooms = [];
    for (const one of [user, other]) {
      const feed = new Feed(one, "room 7", [], { private: true });
      await feed.status("SUBSCRIBED");
      rooms.push(feed);
    }
    await other.refresh(token(BOB));
    await rooms[0].status("CLOSED");
    const { message } = await rooms[0].system(({ status }) => status === "error");
    assert.match(message, /^Token has expired \d+ seconds? ago$/);
    const alice = await join("room 7", ALICE);
    assert.equal(await alice.channel.send(said("afterwards")), "ok");
    await rooms[1].broadcast(0);
    assert.deepEqual(events(rooms[0]), []);
  });

  describe("replay", () => {
    const store = (topic, n, name = "stored", isPrivate = true) =>
      sql("select realtime.send($1, $2, $3, $4)", [{ n }, name, topic, isPrivate]);
    const numbers = (feed) => feed.broadcasts.map(({ payload }) => payload.n);
    const since = async () => {
      const [{ now }] = await sql("select (extract(epoch from clock_timestamp()) * 1000)::float8 as now");
      return Math.floor(now);
    };

    test("what was stored since then comes first, oldest first, and then what is live", async () => {
      const before = await since();
      for (const n of [1, 2, 3, 4]) await store("room 8", n);
      await store("room 8", 99, "public", false);
      await store("room 80", 98);
      const replay = { since: before, limit: 3 };
      const bob = await join("room 8", BOB, { broadcast: { replay } });
      await bob.broadcast(2);
      await store("room 8", 5);
      const alice = await join("room 8", ALICE);
      await bob.broadcast(3);
      assert.equal(await alice.channel.send(said("live", { n: 6 })), "ok");
      await bob.broadcast(4);
      assert.deepEqual(numbers(bob), [2, 3, 4, 5, 6]);
      const ids = new Set();
      for (const { meta, payload } of bob.broadcasts.slice(0, 3)) {
        assert.deepEqual([meta.replayed, payload.id], [true, meta.id]);
        ids.add(meta.id);
      }
      assert.equal(ids.size, 3);
      const [stored, live] = bob.broadcasts.slice(3);
      // What came through the log has a place there.
      const { cursor, ...meta } = stored.meta;
      assert.deepEqual([meta, live.meta], [{ id: stored.payload.id }, undefined]);
      assert.match(cursor, /^[0-9A-F]{16}-[0-9a-f]{8}-[0-9a-f]{8}$/);
    });

    test("nothing is replayed twice or left out while it is being written", async () => {
      const before = await since();
      const writer = (async () => {
        for (let n = 0; n < 20; n += 1) await store("room 9", n);
      })();
      const replay = { since: before, limit: 25 };
      const feeds = await Promise.all(
        Array.from({ length: 6 }, () => join("room 9", BOB, { broadcast: { replay } })),
      );
      await writer;
      for (const feed of feeds) {
        await feed.broadcast(19);
        assert.deepEqual(numbers(feed), Array.from({ length: 20 }, (_, n) => n));
      }
    });

    test("it is for those who may hear, and wants to know since when", async () => {
      const before = await since();
      await store("room 10", 1);
      const replay = { since: before };
      const carol = await ask("room 10", CAROL, { broadcast: { replay }, presence: {} });
      const { error } = await carol.status("CHANNEL_ERROR");
      assert.equal(error.message, refused("room 10"));
      const odd = await ask("room 10", BOB, { broadcast: { replay: { limit: 1 } } });
      assert.equal(
        (await odd.status("CHANNEL_ERROR")).error.message,
        "UnableToReplayMessages: Replay params are not valid",
      );
      assert.deepEqual([carol.broadcasts, odd.broadcasts], [[], []]);
      assert.throws(
        () => odd.user.client.channel("public", { config: { broadcast: { replay } } }),
        /tried to use replay on public channel/,
      );
    });

    test("a client that comes back is told again what it may have missed", async () => {
      const before = await since();
      await store("room 11", 1);
      const bob = await join("room 11", BOB, { broadcast: { replay: { since: before } } });
      await bob.broadcast(0);
      await stage.server.end("SIGTERM");
      await store("room 11", 2);
      await stage.server.start();
      await bob.broadcast(2);
      assert.deepEqual(numbers(bob), [1, 1, 2]);
      await store("room 11", 3);
      await bob.broadcast(3);
      assert.deepEqual(numbers(bob), [1, 1, 2, 3]);
    });
  });
});
