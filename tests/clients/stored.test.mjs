// Broadcasts from the database: what SQL and triggers store in realtime.messages, as clients of both
// ages hear it.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { ALICE, BOB, Feed, Stage, VERSIONS } from "./harness.mjs";

const SCHEMA = `
  create table public.orders (id int primary key, owner uuid not null, total numeric);
  create function public.tell_owner() returns trigger language plpgsql security definer as $$
  begin
    perform realtime.broadcast_changes(
      'orders of ' || coalesce(new.owner, old.owner), tg_op, tg_op, tg_table_name, tg_table_schema,
      new, old
    );
    return null;
  end $$;
  create trigger tell_owner after insert or update or delete on public.orders
    for each row execute function public.tell_owner();
  create policy "own orders" on realtime.messages for select to authenticated
    using (realtime.topic() = 'orders of ' || auth.uid());
`;

describe("broadcasts from the database", () => {
  const stage = new Stage(SCHEMA);

  const sql = (text, values) => stage.query(text, values);
  const newest = VERSIONS.find((version) => version.isNewest);
  const join = async (version, topic, sub, config) => {
    const user = await stage.signIn(version, sub && stage.token(sub));
    const feed = new Feed(user, topic, [], config);
    await feed.status("SUBSCRIBED");
    return feed;
  };
  const everybody = (topic) => Promise.all(VERSIONS.map((version) => join(version, topic)));

  test("realtime.send reaches a public channel, in the order of the commits", async () => {
    const feeds = await everybody("news");
    await sql("select realtime.send($1, 'first', 'news', false)", [{ n: [1, "ü"] }]);
    await sql(`begin; select realtime.send('{"n": 0}', 'undone', 'news', false); rollback`);
    await sql("select realtime.send($1, 'second', 'news', false)", [{ id: "own", n: 2 }]);
    await sql("select realtime.send($1, 'elsewhere', 'other', false)", [{}]);
    await sql("select realtime.send($1, 'private', 'news', true)", [{}]);
    await sql("select realtime.send($1, 'fence', 'news', false)", [{}]);
    for (const feed of feeds) {
      await feed.broadcast(2);
      const [first, second, fence] = feed.broadcasts;
      assert.equal(feed.broadcasts.length, 3);
      assert.equal(first.payload.id, first.meta.id);
      assert.deepEqual([first.event, first.payload.n], ["first", [1, "ü"]]);
      assert.deepEqual([second.event, second.payload], ["second", { id: "own", n: 2 }]);
      assert.equal(fence.event, "fence");
    }
    const ids = feeds.map((feed) => feed.broadcasts.map(({ meta }) => meta.id));
    assert.deepEqual(ids[0], ids[1], "the same message has the same id for everybody");
  });

  test("realtime.send_binary reaches the newest as bytes, and the oldest not at all", async () => {
    const feeds = await everybody("bytes");
    await sql("select realtime.send_binary('\\x00ff01', 'bytes', 'bytes', false)");
    await sql("select realtime.send('{}', 'fence', 'bytes', false)");
    for (const feed of feeds) {
      const { isNewest } = feed.user.version;
      await feed.broadcast(isNewest ? 1 : 0);
      const events = feed.broadcasts.map(({ event }) => event);
      assert.deepEqual(events, isNewest ? ["bytes", "fence"] : ["fence"]);
      if (isNewest) {
        const [{ payload, meta }] = feed.broadcasts;
        assert.deepEqual(new Uint8Array(payload), Uint8Array.of(0, 255, 1));
        assert.equal(typeof meta.id, "string");
      }
    }
  });

  test("a trigger tells the owner of a row what became of it, and nobody else", async () => {
    const topic = `orders of ${ALICE}`;
    const alice = await join(newest, topic, ALICE, { private: true });
    const bob = await join(newest, `orders of ${BOB}`, BOB, { private: true });
    const outsiders = await everybody(topic);
    await sql("insert into orders values (1, $1, 9.50)", [ALICE]);
    await sql("update orders set total = 10 where id = 1");
    await sql("insert into orders values (2, $1, 1)", [BOB]);
    await sql("delete from orders where id = 1");
    await alice.broadcast(2);
    await bob.broadcast(0);
    const order = (total) => ({ id: 1, owner: ALICE, total });
    const told = ({ event, payload: { id: _, ...payload } }) => ({ event, ...payload });
    const at = { schema: "public", table: "orders" };
    assert.deepEqual(alice.broadcasts.map(told), [
      { event: "INSERT", operation: "INSERT", ...at, record: order(9.5), old_record: null },
      { event: "UPDATE", operation: "UPDATE", ...at, record: order(10), old_record: order(9.5) },
      { event: "DELETE", operation: "DELETE", ...at, record: null, old_record: order(10) },
    ]);
    assert.deepEqual(bob.broadcasts.map(({ payload }) => payload.record.id), [2]);
    await sql("select realtime.send('{}', 'fence', $1, false)", [topic]);
    for (const feed of outsiders) {
      await feed.broadcast(0);
      assert.deepEqual(feed.broadcasts.map(({ event }) => event), ["fence"]);
    }
  });

  test("a client that asks is told when broadcasts from the database flow", async () => {
    const feed = await join(newest, "ready", undefined, { broadcast: { replication_ready: true } });
    const { message, status } = await feed.system(({ extension }) => extension === "system");
    assert.deepEqual([message, status], ["Replication connection established", "ok"]);
    await sql("select realtime.send('{}', 'e', 'ready', false)");
    await feed.broadcast(0);
  });

  test("what was heard before a restart is not told again after it", async () => {
    const feeds = await everybody("away");
    await sql("select realtime.send($1, 'before', 'away', false)", [{}]);
    for (const feed of feeds) await feed.broadcast(0);
    const from = feeds.map((feed) => feed.statuses.length);
    await stage.server.end("SIGKILL");
    await stage.server.start();
    await Promise.all(feeds.map((feed, n) => feed.status("SUBSCRIBED", from[n])));
    await sql("select realtime.send($1, 'after', 'away', false)", [{}]);
    for (const feed of feeds) {
      await feed.broadcast(1);
      assert.deepEqual(feed.broadcasts.map(({ event }) => event), ["before", "after"]);
    }
  });
});
