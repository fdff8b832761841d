// What is written over HTTP comes back through the feed: to whom, from whom, and by when.

import assert from "node:assert/strict";
import { describe } from "node:test";

import WebSocket from "ws";

import { ALICE, User } from "./harness.mjs";
import { Rows, data, everywhere, last, problem } from "./rest.mjs";

const SCHEMA = `
  create table public.notes (
    id bigint generated always as identity primary key, owner uuid default auth.uid(), title text unique,
    rank int default 7, data jsonb
  );
  alter table public.notes enable row level security;
  create policy own on public.notes for all to authenticated
    using (owner = (select auth.uid())) with check (owner = (select auth.uid()));
  grant select, insert, update, delete on public.notes to authenticated, service_role;
  create function public.add_note(title text) returns bigint language sql as
    'insert into public.notes (title) values (add_note.title) returning id';
  alter publication supabase_realtime add table public.notes;
`;

/** A way to the server that keeps the frames it brought: clients show only parts of them. */
class Seen extends WebSocket {
  static frames = [];

  constructor(...of) {
    super(...of);
    this.on("message", (bytes, isBinary) => {
      if (!isBinary) Seen.frames.push(JSON.parse(bytes.toString()));
    });
  }

  /** What an event said of the row with this id, whichever protocol it came in. */
  static change(id) {
    const payloads = Seen.frames.map((frame) => (Array.isArray(frame) ? frame[4] : frame.payload));
    return payloads.find((payload) => payload.data?.record?.id === id)?.data;
  }
}

describe("the feed of what is written over HTTP", () => {
  const stage = new Rows(SCHEMA);
  let next = 0;
  const title = () => `title ${++next}`;
  const listen = async (version) => {
    const user = new User(version, stage.server, stage.token(ALICE), { transport: Seen });
    stage.users.push(user);
    return user.subscribe(`notes ${version.name} ${++next}`, { table: "notes" });
  };

  everywhere("each write arrives once, in order, at those who may see it", async (version) => {
    const alice = stage.visitor(version, "alice");
    const feed = await listen(version);
    const note = { title: title(), data: { n: [1, null] } };
    const [row] = await data(alice.from("notes").insert(note).select());
    assert.match(last(alice).headers.get("feed-lsn"), /^[0-9A-F]+\/[0-9A-F]+$/);
    const inserted = await feed.change((change) => change.new.id === row.id);
    assert.deepEqual([inserted.eventType, inserted.new], ["INSERT", row]);
    // What Bob writes is not for her, and what was undone is for nobody.
    await data(stage.visitor(version, "bob").from("notes").insert({ title: title() }));
    const undone = [{ title: title() }, { title: title() }];
    await problem(alice.from("notes").insert(undone).select().single(), 406, "PGRST116");
    await data(alice.from("notes").update({ rank: 8 }).eq("id", row.id));
    await data(alice.from("notes").upsert({ title: note.title, rank: 9 }, { onConflict: "title" }), 200);
    await data(alice.from("notes").delete().eq("id", row.id));
    await feed.change((change) => change.eventType === "DELETE");
    assert.deepEqual(
      feed.changes.map(({ eventType, new: { rank } }) => [eventType, rank]),
      [["INSERT", 7], ["UPDATE", 8], ["UPDATE", 9], ["DELETE", undefined]],
    );
  });

  everywhere("an event says who wrote, and what he called it", async (version) => {
    const feed = await listen(version);
    const named = stage.visit(version, "alice", { headers: { "X-Connection-Id": "tab 1" } });
    const written = async (asked) => {
      const { id } = await data(asked);
      await feed.change((change) => change.new.id === id);
      return Seen.change(id).origin;
    };
    const insert = (client) => client.from("notes").insert({ title: title() }).select("id").single();
    const id = `mutation ${title()}`;
    assert.deepEqual(await written(insert(named).setHeader("X-Mutation-Id", id)), {
      sub: ALICE,
      connection_id: "tab 1",
      mutation_id: id,
    });
    assert.deepEqual(await written(insert(stage.visitor(version, "alice"))), { sub: ALICE });
    // It came without a name, and is Alice's row all the same.
    const service = stage.visitor(version, "service").from("notes");
    const anonymous = service.insert({ title: title(), owner: ALICE }).select("id").single();
    assert.equal(await written(anonymous), undefined);
    const called = await data(named.rpc("add_note", { title: title() }));
    await feed.change((change) => change.new.id === called);
    assert.deepEqual(Seen.change(called).origin, { sub: ALICE, connection_id: "tab 1" });
  });

  everywhere("a write with a name happens once, however often it is sent", async (version) => {
    const alice = stage.visitor(version, "alice");
    const [key, note] = [`key ${title()}`, { title: title() }];
    const insert = (header, row = note) =>
      alice.from("notes").insert(row).select().setHeader(header, key);
    const first = await data(insert("Idempotency-Key"), 201);
    for (const header of ["Idempotency-Key", "X-Mutation-Id"]) {
      assert.deepEqual(await data(insert(header), 201), first);
      assert.equal(last(alice).headers.get("idempotent-replayed"), "true");
    }
    await problem(insert("Idempotency-Key", { title: title() }), 422, "22023");
    // Without it, or under Bob's, it is another write.
    await problem(alice.from("notes").insert(note), 409, "23505");
    const bob = stage.visitor(version, "bob").from("notes").insert(note);
    await problem(bob.setHeader("Idempotency-Key", key), 409, "23505");
    assert.equal((await stage.rows("select * from notes where title = $1", [note.title])).length, 1);
  });

  everywhere("an answer can wait until its write is on its way to the others", async (version) => {
    const feed = await listen(version);
    const client = stage.visit(version, "alice", { headers: { Prefer: "wait=feed" } });
    for (let n = 0; n < 5; n += 1) {
      const row = await data(client.from("notes").insert({ title: title() }).select("id").single(), 201);
      assert.match(last(client).headers.get("preference-applied"), /wait=feed/);
      assert.match(last(client).headers.get("feed-lsn"), /\//);
      await feed.change((change) => change.new.id === row.id);
    }
    await data(client.from("notes").select().limit(1), 200);
    assert.doesNotMatch(last(client).headers.get("preference-applied") ?? "", /wait/);
  });
});
