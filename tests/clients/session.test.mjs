// Clients that know nothing of cursors, and one parameter in their URL: what they missed comes by
// itself when they come back.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, afterEach, before, describe, test } from "node:test";

import { ALICE, BOB, User, VERSIONS, Wire, serve, within } from "./harness.mjs";

const SCHEMA = `
  create table public.notes (id int primary key, owner uuid);
  alter table public.notes enable row level security;
  create policy own on public.notes for select to authenticated using (owner = auth.uid());
  grant select on public.notes to authenticated;
  alter publication supabase_realtime add table public.notes;
`;

/**
 * Clients that notice soon that nobody answers. 2.39 leaves a channel for good that is still joining
 * when it would try again, so that a join must have time.
 */
const options = { heartbeatIntervalMs: 1000, reconnectAfterMs: () => 5000 };

describe("sessions", () => {
  const users = [];
  let service;
  let wire;
  let id = 0;
  before(async () => {
    service = await serve(SCHEMA, { WALCAST_SERVER_IDLE_TIMEOUT_MS: "5000" });
    wire = await Wire.to(service.server);
  });
  afterEach(() => wire.mend());
  after(async () => {
    await Promise.all(users.map((user) => user.close()));
    await wire.close();
    await service.close();
  });
  const insert = async (owner = ALICE) => {
    await service.database.query("insert into notes values ($1, $2)", [++id, owner]);
    return id;
  };
  /** Somebody at a client with a session of its own; `said` is called with what the client logs. */
  const signIn = async (version, sub, said = () => {}) => {
    const token = service.server.token("authenticated", sub);
    const logger = (_, message) => said(message);
    const params = { session: randomUUID() };
    const user = new User(version, wire, token, { ...options, logger, params });
    users.push(user);
    await user.signedIn;
    return user;
  };
  /** Resolves as soon as `user` has logged what `pattern` matches, so many times from now. */
  const logs = (heard, pattern, times) => {
    let left = times;
    const often = new Promise((resolve) => {
      heard.add((message) => pattern.test(message) && --left === 0 && resolve());
    });
    return within(often, () => `${pattern}, ${left} of ${times} times`);
  };
  /** One user at each version of the client, with a channel. */
  const everybody = (topic) =>
    Promise.all(
      VERSIONS.map(async (version) => {
        const heard = new Set();
        const user = await signIn(version, ALICE, (message) => {
          for (const hear of heard) hear(message);
        });
        const feed = await user.subscribe(`${topic} ${version.name}`, { table: "notes" });
        await feed.system((word) => word.kind === "session_started");
        return Object.assign(feed, { logged: heard });
      }),
    );
  const row = (feed, id) => feed.change((change) => change.new.id === id, `row ${id}`);
  const ids = (feed) => feed.changes.map((change) => change.new.id);
  /** Every row came, each for the first time in its order. */
  const missedNothing = async (feed, expected) => {
    await row(feed, expected.at(-1));
    assert.deepEqual([...new Set(ids(feed))], expected, `${ids(feed)}`);
  };

  test("what was written while the network was gone comes after it, in order", async () => {
    const feeds = await everybody("cut");
    const stranger = await signIn(VERSIONS[0], BOB);
    const theirs = await stranger.subscribe("cut stranger", { table: "notes" });
    const expected = [await insert(), await insert()];
    for (const feed of feeds) await missedNothing(feed, expected);
    for (let round = 0; round < 2; round += 1) {
      const from = feeds.map((feed) => feed.statuses.length);
      wire.break();
      await Promise.all(feeds.map((feed, n) => feed.status("CHANNEL_ERROR", from[n])));
      for (let n = 0; n < 20; n += 1) expected.push(await insert());
      await insert(BOB);
      wire.mend();
      await Promise.all(feeds.map((feed, n) => feed.status("SUBSCRIBED", from[n])));
      expected.push(await insert());
      for (const feed of feeds) await missedNothing(feed, expected);
    }
    for (const feed of feeds) {
      const kinds = new Set(feed.systems.map(({ kind }) => kind));
      assert.deepEqual(kinds, new Set([undefined, "session_started", "caught_up"]));
    }
    assert.ok(theirs.changes.every((change) => change.new.owner === BOB));
  });

  test("nor is anything missed of a socket that is dead without a word", async () => {
    const feeds = await everybody("silent");
    const expected = [await insert()];
    for (const feed of feeds) await missedNothing(feed, expected);
    const from = feeds.map((feed) => feed.statuses.length);
    wire.silence();
    const deaf = feeds.map((feed) => logs(feed.logged, /^heartbeat timeout/, 1));
    for (let n = 0; n < 20; n += 1) expected.push(await insert());
    await Promise.all(deaf);
    wire.mend();
    await Promise.all(feeds.map((feed, n) => feed.status("SUBSCRIBED", from[n])));
    expected.push(await insert());
    for (const feed of feeds) await missedNothing(feed, expected);
  });

  test("what a client has long had does not come again", async () => {
    const feeds = await everybody("long had");
    const first = await insert();
    for (const feed of feeds) await row(feed, first);
    // When this one comes, the first is behind whatever the server answers.
    const second = await insert();
    for (const feed of feeds) await row(feed, second);
    await Promise.all(feeds.map((feed) => logs(feed.logged, /phoenix phx_reply/, 3)));
    const from = feeds.map((feed) => feed.statuses.length);
    wire.break();
    await Promise.all(feeds.map((feed, n) => feed.status("CHANNEL_ERROR", from[n])));
    const third = await insert();
    wire.mend();
    for (const feed of feeds) {
      await missedNothing(feed, [first, second, third]);
      assert.equal(ids(feed).filter((id) => id === first).length, 1, `${ids(feed)}`);
    }
  });
});
