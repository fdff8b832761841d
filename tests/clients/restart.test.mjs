// The server goes and comes back; clients notice and return by themselves.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { User, VERSIONS, serve } from "./harness.mjs";

const SCHEMA = `
  create table public.todos (id int primary key);
  grant select on public.todos to anon;
  alter publication supabase_realtime add table public.todos;
`;

describe("restarts", () => {
  let service;
  let users;
  let id = 0;
  before(async () => {
    service = await serve(SCHEMA);
    users = VERSIONS.map((version) => new User(version, service.server));
  });
  after(async () => {
    await Promise.all(users.map((user) => user.close()));
    await service.close();
  });
  const insert = async () => {
    await service.database.query("insert into todos values ($1)", [++id]);
    return id;
  };

  for (const signal of ["SIGKILL", "SIGTERM"]) {
    test(`clients subscribe again by themselves after ${signal}`, async () => {
      const feeds = await Promise.all(
        users.map((user) => user.subscribe(`until ${signal}`, { table: "todos" })),
      );
      const before = await insert();
      for (const feed of feeds) await feed.change((change) => change.new.id === before);

      const from = feeds.map((feed) => feed.statuses.length);
      const { code } = await service.server.end(signal);
      if (signal === "SIGTERM") assert.equal(code, 0, service.server.process.said);
      await Promise.all(feeds.map((feed, n) => feed.status("CHANNEL_ERROR", from[n])));
      // Nobody is there to hear this one live; the slot keeps it, and the server must cope.
      const meanwhile = await insert();
      await service.server.start();
      await Promise.all(feeds.map((feed, n) => feed.status("SUBSCRIBED", from[n])));

      const afterwards = await insert();
      for (const feed of feeds) {
        await feed.change((change) => change.new.id === afterwards);
        const heard = feed.changes.map((change) => change.new.id);
        assert.equal(heard.filter((id) => id === before).length, 1, "not delivered again");
        assert.equal(heard.filter((id) => id === afterwards).length, 1);
        assert.ok(heard.filter((id) => id === meanwhile).length <= 1);
        assert.ok(!feed.statuses.some(({ status }) => status === "CLOSED"), "would end retries");
      }
    });
  }

  test("clients do not notice that the database cut every connection, and miss nothing", async () => {
    const feeds = await Promise.all(
      users.map((user) => user.subscribe("database", { table: "todos" })),
    );
    const from = id + 1;
    for (let round = 0; round < 5; round += 1) {
      await insert();
      await service.database.query(`
        select pg_terminate_backend(pid, 5000) from pg_stat_activity
        where datname = current_database() and pid <> pg_backend_pid()`);
      await insert();
    }
    const expected = Array.from({ length: id + 1 - from }, (_, n) => from + n);
    for (const feed of feeds) {
      await feed.change((change) => change.new.id === id, "last row");
      assert.deepEqual(feed.changes.map((change) => change.new.id), expected);
      assert.deepEqual(feed.statuses.map(({ status }) => status), ["SUBSCRIBED"]);
    }
  });

  test("clients that wait for a server find it when it starts", async () => {
    await service.server.end("SIGTERM");
    const late = VERSIONS.map((version) => new User(version, service.server));
    const feeds = late.map((user) => user.subscribe("late", { table: "todos" }));
    await service.server.start();
    await Promise.all(feeds);
    await Promise.all(late.map((user) => user.close()));
  });
});
