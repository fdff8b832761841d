// Row changes as applications see them: what arrives, in what shape, for which bindings.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { User, VERSIONS, installed, serve } from "./harness.mjs";

const SCHEMA = `
  create table public.todos (id int primary key, title text, done boolean default false, tags text[]);
  create table public.whole (id int primary key, title text);
  alter table public.whole replica identity full;
  create schema other;
  create table other.things (id int primary key);
  grant usage on schema other to anon;
  grant select on public.todos, public.whole, other.things to anon;
  alter publication supabase_realtime add table public.todos, public.whole, other.things;
`;

test("the clients are the ages they say they are", () => {
  assert.equal(installed("supabase-js-newest"), "2.119.0");
  assert.equal(installed("supabase-js-oldest"), "2.39.0");
});

describe("row changes", () => {
  let service;
  let id = 0;
  before(async () => {
    service = await serve(SCHEMA);
  });
  after(() => service.close());

  for (const version of VERSIONS) {
    describe(version.name, () => {
      let user;
      before(() => {
        user = new User(version, service.server);
      });
      after(() => user.close());
      const sql = (text, values) => service.database.query(text, values);

      test("an insert committed right after SUBSCRIBED arrives once, whole", async () => {
        const feed = await user.subscribe("insert", { table: "todos" });
        const row = { id: ++id, title: "milk, \"fresh\" ✓", done: false, tags: ["a", "b c"] };
        const began = Date.now();
        await sql("insert into todos values ($1, $2, $3, $4)", Object.values(row));
        const change = await feed.change((change) => change.new.id === row.id);
        assert.equal(change.eventType, "INSERT");
        assert.equal(change.schema, "public");
        assert.equal(change.table, "todos");
        assert.deepEqual(change.new, row);
        assert.deepEqual(change.old, {});
        assert.equal(change.errors, null);
        assert.match(change.commit_timestamp, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
        const committed = Date.parse(change.commit_timestamp);
        assert.ok(committed >= began - 1000 && committed <= Date.now() + 1000);
        // The next one has passed the first: there was no second copy.
        await sql("insert into todos values ($1)", [++id]);
        await feed.change((change) => change.new.id === id);
        assert.equal(feed.changes.length, 2);
      });

      test("an update carries the new row and the old key", async () => {
        const feed = await user.subscribe("update", { table: "todos", event: "UPDATE" });
        await sql("insert into todos values ($1, 'a')", [++id]);
        await sql("update todos set title = 'b', done = true where id = $1", [id]);
        const change = await feed.change((change) => change.new.id === id);
        assert.equal(change.eventType, "UPDATE");
        assert.deepEqual(change.new, { id, title: "b", done: true, tags: null });
        assert.deepEqual(change.old, { id });
        assert.equal(feed.changes.length, 1, "the insert was not asked for");
      });

      test("a delete carries the old key, or the whole row where the log has it", async () => {
        const feed = await user.subscribe(
          "delete",
          { table: "todos", event: "DELETE" },
          { table: "whole", event: "DELETE" },
        );
        await sql("insert into todos values ($1, 'a')", [++id]);
        await sql("insert into whole values ($1, 'a')", [id]);
        await sql("delete from todos where id = $1", [id]);
        await sql("delete from whole where id = $1", [id]);
        const whole = await feed.change((change) => change.table === "whole");
        const [todo] = feed.changes;
        assert.deepEqual([todo.eventType, todo.new, todo.old], ["DELETE", {}, { id }]);
        assert.deepEqual([whole.eventType, whole.new, whole.old], ["DELETE", {}, { id, title: "a" }]);
      });

      test("an update under replica identity full carries the whole old row", async () => {
        const feed = await user.subscribe("old row", { table: "whole", event: "UPDATE" });
        await sql("insert into whole values ($1, 'a')", [++id]);
        await sql("update whole set title = 'b' where id = $1", [id]);
        const change = await feed.change((change) => change.new.id === id);
        assert.deepEqual(change.old, { id, title: "a" });
        assert.deepEqual(change.new, { id, title: "b" });
      });

      test("a rolled back insert never arrives", async () => {
        const feed = await user.subscribe("rollback", { table: "todos" });
        const gone = ++id;
        await sql(`begin; insert into todos values (${gone}); rollback`);
        await sql("insert into todos values ($1)", [++id]);
        await feed.change((change) => change.new.id === id);
        assert.equal(feed.changes.length, 1);
      });

      test("a transaction of many rows arrives whole and in order", async () => {
        const feed = await user.subscribe("many", { table: "todos", event: "INSERT" });
        const from = id + 1;
        id += 2000;
        await sql("insert into todos select generate_series($1::int, $2::int)", [from, id]);
        await feed.change((change) => change.new.id === id, "last row");
        const ids = feed.changes.map((change) => change.new.id);
        assert.deepEqual(ids, Array.from({ length: 2000 }, (_, n) => from + n));
      });

      test("each binding of a channel hears its own events", async () => {
        const feed = await user.subscribe(
          "bindings",
          { table: "todos", event: "INSERT" },
          { table: "todos", event: "DELETE" },
          { table: "todos", event: "*", filter: `id=eq.${id + 1}` },
        );
        await sql("insert into todos values ($1)", [++id]);
        await sql("delete from todos where id = $1", [id]);
        await sql("insert into todos values ($1)", [++id]);
        await feed.change((change) => change.new.id === id);
        const heard = feed.changes.map(({ binding, eventType }) => `${binding} ${eventType}`);
        assert.deepEqual(heard.sort(), ["0 INSERT", "0 INSERT", "1 DELETE", "2 DELETE", "2 INSERT"]);
      });

      test("wildcards hear every table, and every schema", async () => {
        const all = await user.subscribe("all", { schema: "*" });
        const every = await user.subscribe("public", { schema: "public", table: "*" });
        const schema = await user.subscribe("schema", { schema: "other" });
        const key = ++id;
        await sql(`insert into todos values (${key}); insert into other.things values (${key})`);
        await sql("insert into whole values ($1)", [key]);
        const tables = (feed) =>
          feed.changes.map((change) => `${change.schema}.${change.table}`).sort();
        await all.change((change) => change.table === "whole");
        assert.deepEqual(tables(all), ["other.things", "public.todos", "public.whole"]);
        await every.change((change) => change.table === "whole");
        assert.deepEqual(tables(every), ["public.todos", "public.whole"]);
        await schema.change((change) => change.table === "things");
        assert.deepEqual(tables(schema), ["other.things"]);
      });

      test("a table that is published later flows to those who asked for all", async () => {
        const feed = await user.subscribe("later", { schema: "public" });
        const table = `later_${version.isNewest ? "newest" : "oldest"}`;
        await sql(`create table ${table} (id int primary key, n int);
                   grant select on ${table} to anon;
                   alter publication supabase_realtime add table ${table}`);
        await sql(`insert into ${table} values (1, 2)`);
        const change = await feed.change((change) => change.table === table);
        assert.deepEqual(change.new, { id: 1, n: 2 });
        // And to those who ask for it from now on.
        const own = await user.subscribe("later, by name", { table });
        await sql(`insert into ${table} values (2, 3)`);
        await own.change((change) => change.new.id === 2);
      });

      test("a column added later is in the next row", async () => {
        const table = `wider_${version.isNewest ? "newest" : "oldest"}`;
        await sql(`create table ${table} (id int primary key);
                   grant select on ${table} to anon;
                   alter publication supabase_realtime add table ${table}`);
        const feed = await user.subscribe("wider", { table });
        await sql(`insert into ${table} values (1)`);
        await sql(`alter table ${table} add column n int default 5`);
        await sql(`insert into ${table} values (2)`);
        const change = await feed.change((change) => change.new.id === 2);
        assert.deepEqual(change.new, { id: 2, n: 5 });
        assert.deepEqual(feed.changes[0].new, { id: 1 });
      });

      test("select keeps the chosen columns and the key", async () => {
        const feed = await user.subscribe("select", { table: "todos", select: ["title"] });
        await sql("insert into todos values ($1, 'a')", [++id]);
        const insert = await feed.change((change) => change.new.id === id);
        assert.deepEqual(insert.new, { id, title: "a" });
        await sql("update todos set done = true where id = $1", [id]);
        const update = await feed.change((change) => change.eventType === "UPDATE");
        assert.deepEqual(update.new, { id, title: "a" });
      });

      test("a table nobody published is refused in words, and the channel stays", async () => {
        const feed = await user.subscribe("unknown", { table: "does_not_exist" });
        const { message } = await feed.system(({ status }) => status === "error");
        assert.match(message, /^Unable to subscribe to changes with given parameters\./);
        assert.equal(feed.channel.state, "joined");
      });

      test("one channel made and removed a hundred times never sticks", async () => {
        // Another channel keeps the socket, as in an application.
        await user.subscribe("open", { table: "whole" });
        for (let round = 0; round < 100; round += 1) {
          const feed = await user.subscribe("again", { table: "todos" });
          if (round % 25 === 24) {
            await sql("insert into todos values ($1)", [++id]);
            await feed.change((change) => change.new.id === id);
            assert.equal(feed.changes.length, 1, "nothing from the channels before");
          }
          assert.equal(await user.client.removeChannel(feed.channel), "ok");
        }
      });
    });
  }
});
