// Who sees what: row level security, roles, column privileges, and tokens that change or end.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { ALICE, BOB, Feed, User, VERSIONS, serve } from "./harness.mjs";

const SCHEMA = `
  create table public.notes (
    id int primary key, owner uuid, shared boolean not null default false, body text
  );
  alter table public.notes enable row level security;
  create policy "own or shared" on public.notes for select to authenticated
    using (shared or owner = (select auth.uid()));
  grant select on public.notes to anon, authenticated, service_role;

  create table public.salaries (id int primary key, name text, amount int);
  grant select (id, name) on public.salaries to authenticated;
  create table public.hidden (id int primary key);
  revoke all on public.hidden from public, anon, authenticated;
  alter publication supabase_realtime add table public.notes, public.salaries, public.hidden;
`;

describe("access", () => {
  let service;
  let id = 0;
  before(async () => {
    service = await serve(SCHEMA);
  });
  after(() => service.close());

  for (const version of VERSIONS) {
    describe(version.name, () => {
      const users = [];
      const signIn = (role, sub, seconds) => {
        const token = role && service.server.token(role, sub, seconds);
        const user = new User(version, service.server, token);
        users.push(user);
        return user;
      };
      after(() => Promise.all(users.map((user) => user.close())));
      const sql = (text, values) => service.database.query(text, values);
      const note = async (owner, shared = false) => {
        await sql("insert into notes values ($1, $2, $3, 'x')", [++id, owner, shared]);
        return id;
      };
      const ids = (feed) => feed.changes.map((change) => change.new.id ?? change.old.id);

      test("two users, the service and a stranger each see what their policies say", async () => {
        const alice = await signIn("authenticated", ALICE).subscribe("notes", { table: "notes" });
        const bob = await signIn("authenticated", BOB).subscribe("notes", { table: "notes" });
        const all = await signIn("service_role").subscribe("notes", { table: "notes" });
        const strangers = signIn();
        const none = await strangers.subscribe("notes", { table: "notes" });
        const salaries = await signIn("service_role").subscribe("fence", { table: "salaries" });

        const hers = await note(ALICE);
        const his = await note(BOB);
        const nobodys = await note(null);
        const shared = await note(null, true);
        await alice.change((change) => change.new.id === shared);
        await bob.change((change) => change.new.id === shared);
        await all.change((change) => change.new.id === shared);
        assert.deepEqual(ids(alice), [hers, shared]);
        assert.deepEqual(ids(bob), [his, shared]);
        assert.deepEqual(ids(all), [hers, his, nobodys, shared]);
        assert.deepEqual(ids(none), [], "no policy lets anon see anything");
        assert.deepEqual(ids(salaries), []);
      });

      test("a row that changes hands is shown to the new owner, and no longer to the old", async () => {
        const alice = await signIn("authenticated", ALICE).subscribe("moving", { table: "notes" });
        const bob = await signIn("authenticated", BOB).subscribe("moving", { table: "notes" });
        const moving = await note(ALICE);
        await sql("update notes set owner = $2, body = 'secret' where id = $1", [moving, BOB]);
        await sql("update notes set body = 'secret too' where id = $1", [moving]);
        const fence = await note(null, true);
        await alice.change((change) => change.new.id === fence);
        await bob.change((change) => change.new.id === fence);
        assert.ok(!JSON.stringify(alice.changes).includes("secret"), "alice must not read it");
        const bobs = bob.changes.filter((change) => change.new.id === moving);
        assert.deepEqual(bobs.map((change) => change.new.body), ["secret", "secret too"]);
      });

      test("a deleted row shows nothing but its key under row level security", async () => {
        const alice = await signIn("authenticated", ALICE).subscribe("gone", {
          table: "notes",
          event: "DELETE",
        });
        const gone = await note(ALICE);
        await sql("delete from notes where id = $1", [gone]);
        const change = await alice.change((change) => change.old.id === gone);
        assert.deepEqual(change.old, { id: gone });
      });

      test("columns without the privilege are left out, and tables without it say so", async () => {
        const user = signIn("authenticated", ALICE);
        const feed = await user.subscribe("salaries", { table: "salaries" });
        const hidden = await user.subscribe("hidden", { table: "hidden" });
        await sql("insert into hidden values ($1)", [++id]);
        await sql("insert into salaries values ($1, 'alice', 100)", [++id]);
        const change = await feed.change((change) => change.new.id === id);
        assert.deepEqual(change.new, { id, name: "alice" });
        for (const { new: row, old } of hidden.changes) {
          assert.deepEqual([row, old], [{}, {}], "at most an error, never a value");
        }
      });

      test("a new token takes effect on the channels that are open", async () => {
        const user = signIn("authenticated", ALICE);
        const feed = await user.subscribe("refresh", { table: "notes" });
        const hers = await note(ALICE);
        await feed.change((change) => change.new.id === hers);
        const from = feed.systems.length;
        await user.refresh(service.server.token("authenticated", BOB));
        await feed.system(({ extension, status }) => extension === "postgres_changes" && status === "ok", from);
        await note(ALICE);
        const his = await note(BOB);
        const fence = await note(null, true);
        await feed.change((change) => change.new.id === fence);
        assert.deepEqual(ids(feed), [hers, his, fence]);
        assert.ok(!feed.statuses.some(({ status }) => status === "CLOSED"));
      });

      test("a token that expires closes the channel, and others stay open", async () => {
        const user = signIn("authenticated", ALICE, 3);
        const other = await signIn("authenticated", BOB).subscribe("stays", { table: "notes" });
        const feed = await user.subscribe("expires", { table: "notes" });
        await feed.status("CLOSED");
        const { message } = await feed.system(({ status }) => status === "error");
        assert.match(message, /^Token has expired \d+ seconds? ago$/);
        const unseen = await note(ALICE, true);
        await other.change((change) => change.new.id === unseen);
        assert.ok(!ids(feed).includes(unseen));
      });

      test("a forged token is refused", async () => {
        const forged = `${service.server.token("service_role").split(".").slice(0, 2).join(".")}.AAAA`;
        const user = new User(version, service.server, forged);
        users.push(user);
        await user.signedIn;
        const feed = new Feed(user, "forged", [{ table: "notes" }]);
        const { error } = await feed.status("CHANNEL_ERROR");
        assert.match(String(error?.message), /JwtSignatureError|Failed to validate JWT signature/);
        assert.ok(!feed.statuses.some(({ status }) => status === "SUBSCRIBED"));
      });
    });
  }
});
