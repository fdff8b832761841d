// Seed 002, social reading: who is online, what people read, sessions in which they read together. The
// numbers are those of its scenarios.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { Applications, TIME, exactly, having, id, uuid } from "./socket.mjs";

describe("reading", () => {
  const stage = new Applications("/reading");
  const sql = (text, values) => stage.query(text, values);

  /** Somebody nobody has seen before. */
  const person = () => ({ sub: uuid() });
  const of = (user) => (payload) => payload.userId === user.sub;
  const send = async (user, method, path, body) => {
    const answer = await stage.fetch(user, path, { method, body });
    const text = await answer.text();
    return { status: answer.status, body: text && JSON.parse(text) };
  };
  /** Everybody has heard all that came before. */
  const fence = async (...tabs) => {
    const key = uuid();
    await sql("insert into reading.activity_stream (id, user_id, activity_type) values ($1, $2, 'like')", [
      key,
      uuid(),
    ]);
    for (const tab of tabs) await tab.next("activity:new", ({ activity }) => activity.id === key);
  };
  const percentile = (times, percent) => {
    const sorted = [...times].sort((one, other) => one - other);
    return sorted[Math.ceil((sorted.length * percent) / 100) - 1].toFixed(1);
  };

  test("002-1: without a token nobody is let in, and the token says who it is", async () => {
    assert.equal(await stage.refusal({}), "Missing authentication token");
    const [a, b] = [person(), person()];
    const watcher = await stage.open(b);
    const token = stage.pass(a);
    const tab = stage.tab(undefined, { auth: { token, userId: b.sub } });
    await tab.opened();
    await watcher.next("presence:update", of(a));
    tab.say("typing:indicator", { userId: b.sub, isTyping: true, location: "book" });
    having(await watcher.payload("typing:indicator"), { userId: a.sub, isTyping: true });
  });

  test("002-2: presence is a row as well, which is read and written over HTTP", async () => {
    const [a, b] = [person(), person()];
    const watcher = await stage.open(b);
    const feed = await stage.listen(b, `user:${b.sub}`, {
      bindings: [{ schema: "reading", table: "user_presence", filter: `user_id=eq.${a.sub}` }],
    });
    const tab = await stage.open(a);
    await watcher.next("presence:update", of(a));
    const changed = { status: "away", device_type: "mobile" };
    assert.equal((await send(a, "PATCH", "/api/presence", changed)).status, 200);
    const away = await watcher.payload("presence:update", (said) => of(a)(said) && said.status === "away");
    having(away, { deviceType: "mobile", timestamp: TIME });
    await feed.change(({ new: record }) => record.status === "away" && record.device_type === "mobile");
    having((await send(a, "GET", "/api/presence")).body, { user_id: a.sub, ...changed });
    const from = watcher.mark;
    assert.equal((await send(a, "DELETE", "/api/presence")).status, 204);
    const offline = await watcher.payload("presence:update", of(a), from);
    assert.equal(offline.status, "offline");
    for (const method of ["GET", "PATCH", "DELETE"]) {
      const body = method === "PATCH" ? changed : undefined;
      assert.equal((await send(undefined, method, "/api/presence", body)).status, 401, method);
    }
    assert.ok(tab.socket.connected);
  });

  test("002-3: one is online once however many tabs he has, and his heartbeats are nobody's news", async () => {
    const [a, b] = [person(), person()];
    const watcher = await stage.open(b);
    const told = () => watcher.all("presence:update").filter(of(a));
    const tabs = [await stage.open(a)];
    assert.equal((await watcher.payload("presence:update", of(a))).status, "online");
    tabs.push(await stage.open(a));
    for (let n = 0; n < 20; n += 1) tabs[n % 2].say("heartbeat", {});
    // What each has sent before is done when it is answered.
    for (const tab of tabs) await tab.ask("heartbeat", {});
    await fence(watcher, ...tabs);
    assert.equal(told().length, 1);
    tabs[0].close();
    await fence(watcher, tabs[1]);
    assert.equal(told().length, 1);
    tabs[1].close();
    const offline = await watcher.payload("presence:update", (said) => of(a)(said) && said.status === "offline");
    exactly(offline, {
      userId: a.sub,
      status: "offline",
      timestamp: TIME,
      deviceType: "web",
      lastSeenAt: TIME,
    });
    const rows = await sql("select status from reading.user_presence where user_id = $1", [a.sub]);
    assert.deepEqual(rows, [{ status: "offline" }]);
    await fence(watcher);
    assert.equal(told().length, 2);
  });

  test("002-4: what one does in public everybody is told, what is private he alone", async () => {
    const [a, b] = [person(), person()];
    const [owner, other] = [await stage.open(a), await stage.open(b)];
    const bodies = [true, false].map((is_public) => ({ activity_type: "book_started", metadata: {}, is_public }));
    for (const body of bodies) assert.equal((await send(a, "POST", "/api/activity", body)).status, 201);
    await fence(owner, other);
    const mine = owner.all("activity:new").filter(of(a));
    assert.deepEqual(mine.map(({ activity }) => activity.isPublic), [true, false]);
    exactly(mine[0], { userId: a.sub, activity: Object, timestamp: TIME });
    having(mine[0].activity, { userId: a.sub, activityType: "book_started", metadata: {} });
    const his = other.all("activity:new").filter(of(a));
    assert.deepEqual(his, [mine[0]]);
    const feed = async (user) => {
      const { body } = await send(user, "GET", "/api/activity");
      return body.filter(({ user_id }) => user_id === a.sub).length;
    };
    assert.deepEqual([await feed(a), await feed(b)], [2, 1]);
  });

  test("002-5: an activity that a client tells is a row of his own, whoever he says he is", async () => {
    const [a, b] = [person(), person()];
    const [owner, other] = [await stage.open(a), await stage.open(b)];
    const forged = { user_id: b.sub, userId: b.sub, activity_type: "like", activityType: "like", metadata: { n: 1 } };
    await owner.done("activity:new", { activity: forged, userId: b.sub });
    await fence(owner, other);
    for (const tab of [owner, other]) {
      const told = tab.all("activity:new").filter(({ activity }) => activity.metadata.n === 1);
      assert.equal(told.length, 1);
      assert.equal(told[0].userId, a.sub);
      const rows = await sql("select user_id from reading.activity_stream where id = $1", [told[0].activity.id]);
      assert.deepEqual(rows, [{ user_id: a.sub }]);
    }
  });

  test("002-6: a session is joined by its room's name and left by its id, and both are told", async () => {
    const [a, b] = [person(), person()];
    const roomName = id("room");
    const { status, body } = await send(b, "POST", "/api/collaboration/join", { roomName });
    assert.equal(status, 200);
    const sessionId = body.id ?? body.sessionId;
    const host = await stage.open(b);
    await host.done("collab:join", { roomName });
    const guest = await stage.open(a);
    await guest.done("collab:join", { roomName });
    for (const tab of [host, guest]) {
      const joined = await tab.payload("collab:user_joined", of(a));
      exactly(joined, { userId: a.sub, roomName, timestamp: TIME });
    }
    await guest.done("collab:leave", { sessionId });
    exactly(await host.payload("collab:user_left"), { userId: a.sub, roomName, timestamp: TIME });
    const rows = await sql(
      "select is_active, left_at is not null as has_left from reading.session_participants " +
        "where session_id = $1 and user_id = $2",
      [sessionId, a.sub],
    );
    assert.deepEqual(rows, [{ is_active: false, has_left: true }]);
    assert.ok(!guest.all("error").some(({ code }) => code === "ACCESS_REVOKED"), "he knows");
    // Over HTTP alike.
    const from = host.mark;
    await guest.done("collab:join", { roomName });
    await host.next("collab:user_joined", of(a), from);
    const left = await send(a, "POST", "/api/collaboration/leave", { sessionId });
    assert.ok([200, 204].includes(left.status), `${left.status}`);
    await host.next("collab:user_left", of(a), from);
  });

  test("002-7: edits reach everybody in the session, in order, and none comes from outside", async () => {
    const [a, b, c] = [person(), person(), person()];
    const roomName = id("room");
    const tabs = [];
    for (const user of [a, b]) {
      const tab = await stage.open(user);
      await tab.done("collab:join", { roomName });
      tabs.push(tab);
    }
    const outsider = await stage.open(c);
    outsider.say("collab:edit", { roomName, operation: { at: -1 }, cursorPosition: 0 });
    await outsider.next("error", ({ code }) => code === "ACCESS_DENIED");
    for (let n = 0; n < 20; n += 1) {
      tabs[0].say("collab:edit", { roomName, operation: { at: n }, cursorPosition: n, userId: b.sub });
    }
    for (const tab of tabs) {
      await tab.next("collab:edit", ({ operation }) => operation.at === 19);
      const edits = tab.all("collab:edit");
      assert.deepEqual(edits.map(({ operation }) => operation.at), Array.from({ length: 20 }, (_, n) => n));
      exactly(edits[7], { userId: a.sub, operation: { at: 7 }, cursorPosition: 7, timestamp: TIME });
    }
    await fence(outsider);
    assert.deepEqual(outsider.all("collab:edit"), []);
  });

  test("002-8: who is said to type is said to have stopped when he falls silent", async () => {
    const [a, b] = [person(), person()];
    const [typist, watcher] = [await stage.open(a), await stage.open(b)];
    typist.say("typing:indicator", { isTyping: true, location: "chapter 1" });
    const typing = await watcher.payload("typing:indicator", of(a));
    having(typing, { isTyping: true, location: "chapter 1", timestamp: TIME });
    const is = (said) => of(a)(said) && said.isTyping === false;
    having(await watcher.payload("typing:indicator", is), { location: "chapter 1" });
    const from = watcher.mark;
    typist.say("typing:indicator", { isTyping: true, location: "chapter 2" });
    await watcher.next("typing:indicator", of(a), from);
    typist.say("typing:indicator", { isTyping: false, location: "chapter 2" });
    await watcher.next("typing:indicator", is, from);
  });

  test("002-9: who is online is a list, newest first", async () => {
    const people = [person(), person(), person(), person()];
    const at = (n) => new Date(Date.now() + n * 60_000).toISOString();
    for (const [n, status] of [[2, "online"], [3, "online"], [1, "away"], [4, "online"]]) {
      const { sub } = people[n - 1];
      await sql("insert into reading.user_presence (user_id, status, last_seen_at) values ($1, $2, $3)", [
        sub,
        status,
        at(n),
      ]);
    }
    const { status, body } = await send(person(), "GET", "/api/presence/online");
    assert.equal(status, 200);
    const ours = body.filter(({ user_id }) => people.some(({ sub }) => sub === user_id));
    assert.deepEqual(ours.map(({ user_id }) => user_id), [3, 2, 1].map((n) => people[n].sub));
    for (const row of body) {
      exactly(row, { user_id: String, status: "online", device_type: String, last_seen_at: TIME });
    }
  });

  test("002-10: what is committed is heard, a hundred times", async (t) => {
    const begun = performance.now();
    const tab = await stage.open(person());
    t.diagnostic(`connected after ${(performance.now() - begun).toFixed(1)} ms (wanted: less than 500)`);
    const heard = new Map();
    tab.socket.on("activity:new", ({ activity }) => heard.set(activity.id, performance.now()));
    const delays = [];
    for (let n = 0; n < 100; n += 1) {
      const key = uuid();
      await sql("insert into reading.activity_stream (id, user_id, activity_type) values ($1, $2, 'like')", [
        key,
        uuid(),
      ]);
      const committed = performance.now();
      await tab.next("activity:new", ({ activity }) => activity.id === key);
      delays.push(Math.max(0, heard.get(key) - committed));
    }
    assert.equal(tab.all("activity:new").length, 100);
    t.diagnostic(`p95 from commit to client ${percentile(delays, 95)} ms (wanted: less than 100)`);
  });

  test("002-11: what the tables do not take is no activity and nobody's news", async () => {
    const a = person();
    const tab = await stage.open(a);
    for (const wrong of [
      { activity_type: "like", metadata: "text" },
      { activity_type: "like", metadata: { long: "x".repeat(9000) } },
      { activity_type: "nonsense", metadata: {} },
    ]) {
      assert.equal((await send(a, "POST", "/api/activity", wrong)).status, 400, JSON.stringify(wrong).slice(0, 80));
    }
    assert.equal((await send(a, "PATCH", "/api/presence", { status: "nowhere" })).status, 400);
    await tab.denied("activity:new", { activity: { activity_type: "nonsense" } }, "VALIDATION_FAILED");
    await fence(tab);
    assert.deepEqual(tab.all("activity:new").filter(of(a)), []);
  });

  test("002-12: participants are present in the session with supabase-js, and others are not let in", async () => {
    const [a, b] = [person(), person()];
    const roomName = id("room");
    await send(a, "POST", "/api/collaboration/join", { roomName });
    const feed = await stage.listen(a, `room:${roomName}`, { presence: { key: a.sub } });
    assert.equal(await feed.channel.track({ page: 7 }), "ok");
    await feed.presence({ [a.sub]: [{ page: 7 }] });
    const outsider = await stage.channel(b, `room:${roomName}`);
    assert.match((await outsider.status("CHANNEL_ERROR")).error.message, /Unauthorized/);
  });
});
