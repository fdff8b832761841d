// Event streams, by the `EventSource` of browsers as npm has it.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { EventSource } from "eventsource";

import { ALICE, BOB, serve, within } from "./harness.mjs";
import { Stream } from "./stream.mjs";

const SCHEMA = `
  create table public.notes (id int primary key, owner uuid, body text);
  alter table public.notes enable row level security;
  create policy own on public.notes to authenticated using (owner = (select auth.uid()));
  grant all on public.notes to authenticated;
  alter publication supabase_realtime add table public.notes;
`;

describe("event streams", () => {
  let service;
  before(async () => {
    service = await serve(SCHEMA, { WALCAST_SERVER_STREAM_RETRY_MS: "100" });
  });
  after(() => service.close());
  const streams = [];
  const open = async (token, parameters, names, options) => {
    const stream = new Stream(service.server, token, parameters, names, options);
    streams.push(stream);
    await stream.next("ready");
    return stream;
  };
  after(() => streams.forEach((stream) => stream.source.close()));
  const insert = (id, owner, body) =>
    service.database.query("insert into notes values ($1, $2, $3)", [id, owner, body]);

  test("each user is told of his rows", async () => {
    const names = ["INSERT", "UPDATE", "DELETE"];
    const parameters = { changes: "public.notes(id,body)@INSERT:body=in.(a,b),notes@DELETE" };
    const [alice, bob] = await Promise.all(
      [ALICE, BOB].map((user) =>
        open(service.server.token("authenticated", user), parameters, names),
      ),
    );
    await insert(1, ALICE, "a");
    await insert(2, BOB, "c");
    await insert(3, BOB, "b");
    const row = (event) => JSON.parse(event.data).record;
    assert.deepEqual(row(await alice.next("INSERT")), { id: 1, body: "a" });
    const told = await bob.next("INSERT");
    assert.deepEqual(row(told), { id: 3, body: "b" });
    assert.equal(told.lastEventId, JSON.parse(told.data).cursor);
    assert.deepEqual(alice.of("INSERT").length, 1);
  });

  test("rooms are heard by the names of their events", async () => {
    const stream = await open(service.server.anonKey, { topics: "a,b" }, ["moved", "bytes"]);
    const say = (topic, event, type, body) =>
      fetch(`${service.server.url}/api/broadcast/${topic}/events/${event}`, {
        method: "POST",
        headers: { authorization: `Bearer ${service.server.anonKey}`, "content-type": type },
        body,
      });
    assert.equal((await say("a", "moved", "application/json", '{\n"x": "ü"\n}')).status, 202);
    assert.deepEqual(JSON.parse((await stream.next("moved")).data), { x: "ü" });
    await say("b", "bytes", "application/octet-stream", new Uint8Array([0, 255]));
    const url = (await stream.next("bytes")).data;
    const bytes = new Uint8Array(await (await fetch(url)).arrayBuffer());
    assert.deepEqual([...bytes], [0, 255]);
  });

  test("a token in a header is as good, where the client can send one", async () => {
    const token = service.server.token("authenticated", ALICE);
    const withToken = (url, init) =>
      fetch(url, { ...init, headers: { ...init.headers, authorization: `Bearer ${token}` } });
    const options = { fetch: withToken };
    const stream = await open("", { changes: "notes" }, ["INSERT"], options);
    await insert(10, ALICE, "z");
    assert.equal(JSON.parse((await stream.next("INSERT")).data).record.id, 10);
  });

  test("a server that restarts is found again by the client itself", async () => {
    const token = service.server.token("authenticated", ALICE);
    const stream = await open(token, { changes: "notes" }, ["INSERT"]);
    await insert(20, ALICE, "before");
    await stream.next("INSERT");
    for (const signal of ["SIGTERM", "SIGKILL"]) {
      const from = stream.events.length;
      await service.server.end(signal);
      await stream.next("error", from);
      await insert(signal === "SIGTERM" ? 21 : 22, ALICE, "meanwhile");
      await service.server.start();
      await stream.next("caught_up", from);
    }
    await insert(23, ALICE, "after");
    const rows = () => stream.of("INSERT").map((event) => JSON.parse(event.data).record.id);
    await within(
      (async () => {
        while (!rows().includes(23)) await stream.next("INSERT", stream.events.length);
      })(),
      () => `row 23 among ${rows()}`,
    );
    assert.deepEqual(rows(), [20, 21, 22, 23]);
    assert.deepEqual(stream.of("gap"), []);
  });

  test("an expired token ends it for good", async () => {
    const token = service.server.token("authenticated", ALICE, 3);
    const stream = await open(token, { changes: "notes" }, []);
    const close = await stream.next("close");
    assert.equal(JSON.parse(close.data).reason, "token_expired");
    const refused = (async () => {
      for (let from = 0; ; from = stream.events.length) {
        const error = await stream.next("error", from);
        if (error.code === 401) return;
      }
    })();
    await within(refused, () => "a refusal");
    assert.equal(stream.source.readyState, EventSource.CLOSED);
  });
});
