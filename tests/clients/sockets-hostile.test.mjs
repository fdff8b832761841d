// What Socket.IO's clients are not supposed to send: each is refused with a code, or its sender's
// connection ends; nothing reaches a room that it does not belong to, and nobody else notices.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import WebSocket from "ws";

import { within } from "./harness.mjs";
import { Applications, having, id } from "./socket.mjs";
import { board } from "./worlds.mjs";

const ERROR = "connection:error";
/** Of one frame, and of one request's body. */
const FRAME_BYTES_MAX = 65_536;

describe("what no client should send", () => {
  const stage = new Applications("/tasks", { WALCAST_SERVER_FRAME_BYTES_MAX: `${FRAME_BYTES_MAX}` });
  const sql = (text, values) => stage.query(text, values);
  const { person, world, rename, join, fence, post } = board(stage);

  /** A WebSocket that speaks Engine.IO by hand. */
  class Raw {
    constructor(path = "/socket.io/?EIO=4&transport=websocket") {
      this.said = [];
      this.waiting = new Set();
      this.socket = new WebSocket(`${stage.server.url.replace("http", "ws")}${path}`);
      stage.users.push({ close: () => this.socket.terminate() });
      this.socket.on("message", (bytes, isBinary) => this.#hear(isBinary ? bytes : bytes.toString()));
      this.socket.on("close", (code) => this.#hear({ code }));
      this.socket.on("error", () => {});
    }

    #hear(item) {
      this.said.push(item);
      for (const look of [...this.waiting]) look();
    }

    /** The first that it hears from `from` on such that `is` holds; its end is `{ code }`. */
    next(is, from = 0) {
      const heard = new Promise((resolve) => {
        const look = () => {
          const found = this.said.slice(from).find(is);
          if (found === undefined) return;
          this.waiting.delete(look);
          resolve(found);
        };
        this.waiting.add(look);
        look();
      });
      return within(heard, () => `such frame among ${JSON.stringify(this.said)}`);
    }

    static async open(claims) {
      const raw = new Raw();
      await raw.next((text) => text[0] === "0");
      if (claims) {
        raw.socket.send(`40/tasks,${JSON.stringify({ token: stage.pass(claims) })}`);
        await raw.next((text) => String(text).startsWith("40/tasks,"));
      }
      return raw;
    }

    /** Whether the service still listens to it; else it has ended. */
    async lives(taskId) {
      const from = this.said.length;
      this.socket.send(`42/tasks,77["room:join",{"taskId":"${taskId}"}]`);
      const answer = await this.next(
        (text) => typeof text.code === "number" || String(text).startsWith("43/tasks,77["),
        from,
      );
      return typeof answer === "string";
    }
  }
  const isEnd = (item) => typeof item.code === "number";

  test("events that nobody declared are refused by name, whatever the name", async () => {
    const { taskId, ann, ben } = await world();
    const [a, b] = [await join(ann, { taskId }), await join(ben, { taskId })];
    for (const event of ["nothing", "constructor", "__proto__", "toString", "", "*", "task:updated", "x".repeat(255)]) {
      await b.denied(event, { taskId, toString: 1 }, "UNKNOWN_EVENT", ERROR);
    }
    // Without an answer asked for it is told alike.
    const from = b.mark;
    b.say("task:deleted", { taskId });
    await b.next(ERROR, ({ code }) => code === "UNKNOWN_EVENT", from);
    await fence(taskId, a, b);
    assert.deepEqual(a.names().filter((name) => name.startsWith("task:")), ["task:updated"]);
    assert.ok(b.socket.connected);
  });

  test("ids that are none lead into no room, neither one's own nor another's", async () => {
    const { taskId, projectId, workspaceId, ann, ben, eve } = await world();
    const a = await join(ann, { taskId, projectId, workspaceId });
    const b = await stage.open(ben);
    const odd = [
      "*", "", " ", ",", ":", "/", "{id}", `${taskId}:`, `${taskId},${projectId}`, `${taskId}/x`, ` ${taskId}`,
      `${taskId}\u0000`, `${taskId}\n`, taskId.toUpperCase(), "\ud800", "%", "_", "..", "x".repeat(5000),
      0, 1e308, true, [], [taskId], {}, { taskId }, [null],
    ];
    for (const value of odd) {
      for (const name of ["taskId", "projectId", "workspaceId"]) {
        const answer = await b.ask("room:join", { [name]: value });
        const what = `${name} ${JSON.stringify(value)}`;
        assert.equal(answer.ok, false, what);
        assert.ok(["VALIDATION_FAILED", "ACCESS_DENIED", "RATE_LIMITED"].includes(answer.error.code), what);
        if (answer.error.code === "RATE_LIMITED") await new Promise((resolve) => setTimeout(resolve, 100));
      }
    }
    for (const rooms of [undefined, null, [], "", taskId, 7, {}, { taskid: taskId }, { topic: `task:${taskId}` }]) {
      const answer = await b.ask("room:join", rooms);
      assert.equal(answer.ok, false, JSON.stringify(rooms));
    }
    await fence(taskId, a);
    await post(ben, b);
    assert.deepEqual(b.names().filter((name) => /^(task|activity|comment):/.test(name)), []);

    const plain = await stage.open(eve, { namespace: "/" });
    for (const topic of ["*", "", "task:*", `task:${taskId}`, `user:${ann.sub}`, `project:${projectId}`, "x".repeat(5000), [], [""], null, {}, 7]) {
      const answer = await plain.ask("join", { topic });
      assert.equal(answer.ok, false, JSON.stringify(topic));
    }
    for (const payload of [{}, { topics: [] }, { topics: [`task:${taskId}`] }, [], null, "task"]) {
      assert.equal((await plain.ask("join", payload)).ok, false, JSON.stringify(payload));
    }
    await fence(taskId, a);
    assert.deepEqual(plain.names().filter((name) => name !== "error"), []);
  });

  test("rows whose ids hold separators are told in no other's room", async () => {
    const ann = { userId: id("ann") };
    const entityId = id("page-");
    const componentId = id("c-");
    await sql("insert into pages.entities values ('page', $1, 'Page', $2)", [entityId, ann.userId]);
    const add = (key) =>
      sql("insert into pages.components (id, entity_type, entity_id) values ($1, 'page', $2)", [key, entityId]);
    await add(componentId);
    const tab = await stage.open(ann, { namespace: "/pages" });
    await tab.done("component:subscribe", { componentId });
    const odd = [`${componentId}:x`, `x,component:${componentId}`, "*", `${componentId}/`, `{${componentId}}`, `${componentId}\n`];
    for (const key of odd) {
      await add(key);
      await sql("update pages.components set props = $2 where id = $1", [key, JSON.stringify({ key })]);
      await sql("delete from pages.components where id = $1", [key]);
    }
    await sql("update pages.components set position = 7 where id = $1", [componentId]);
    await tab.next("component:updated");
    assert.deepEqual(tab.names().filter((name) => !name.includes("user-")), ["component:updated"]);
    assert.equal(tab.all("component:updated")[0].componentId, componentId);
  });

  test("who names somebody else in what he sends is still himself", async () => {
    const { taskId, ann, ben, eve } = await world();
    const [a, b] = [await join(ann, { taskId }), await join(ben, { taskId })];
    const lies = { userId: eve.sub, sub: eve.sub, email: eve.email, userName: "Eve", user: eve, status: "gone" };
    b.say("typing:start", { taskId, ...lies });
    const typing = await a.payload("typing:user_typing");
    assert.equal(typing.userId, ben.sub);
    assert.ok(!JSON.stringify(typing).includes(eve.sub));
    b.say("presence:viewing", { taskId, users: [eve], ...lies });
    const { users } = await a.payload("presence:users_viewing");
    assert.deepEqual(users, [{ userId: ben.sub, email: ben.email }]);
    b.say("presence:update", { ...lies, status: "away" });
    having(await a.payload("presence:user_online", ({ status }) => status === "away"), { userId: ben.sub });
  });

  test("who shares nothing with anybody is shown to nobody, and sees nobody", async () => {
    const { taskId, ann } = await world();
    const a = await join(ann, { taskId });
    const loner = await person("lone");
    const tabs = [await stage.open(loner), await stage.open(loner)];
    tabs[0].say("presence:update", { status: "away" });
    await post(loner, tabs[0]);
    for (const tab of tabs) tab.close();
    const other = await join(await person("other"));
    await post(ann, a);
    const heard = [a, other].flatMap((tab) => tab.heard.map(({ payload }) => payload?.userId));
    assert.ok(!heard.includes(loner.sub));
    const seen = tabs[0].heard.map(({ payload }) => payload?.userId).filter(Boolean);
    assert.deepEqual(seen.filter((sub) => sub !== loner.sub), []);
  });

  for (const transports of [["websocket"], ["polling"]]) {
    test(`what is too large ends its sender's connection, by ${transports}`, async () => {
      const { taskId, ann, ben } = await world();
      const a = await join(ann, { taskId });
      const b = await join(ben, { taskId }, { transports });
      const from = b.mark;
      b.say("typing:start", { taskId, text: "x".repeat(2 * FRAME_BYTES_MAX) });
      const { reason } = await b.next("(disconnect)", undefined, from);
      assert.match(reason, /^transport (close|error)$/);
      await b.opened(from);
      if (!b.socket.recovered) await b.done("room:join", { taskId });
      await fence(taskId, a, b);
      assert.deepEqual(a.all("typing:user_typing"), []);
      // As large as may be.
      const text = "x".repeat(FRAME_BYTES_MAX - 500);
      b.say("typing:start", { taskId, text });
      await a.next("typing:user_typing");
    });
  }

  test("bytes and endless names are refused, or end their sender's connection and no other", async () => {
    const { taskId, ann, ben } = await world();
    const [a, b] = [await join(ann, { taskId }), await join(ben, { taskId })];
    for (const [event, payload] of [
      ["room:join", Buffer.from("x")],
      ["room:join", { taskId, bytes: Buffer.from("x") }],
      ["typing:start", [new Uint8Array(3)]],
      ["x".repeat(4000), { taskId }],
    ]) {
      const from = b.mark;
      const answer = await b.ask(event, payload).catch(() => undefined);
      if (answer) {
        assert.equal(answer.ok, false);
        continue;
      }
      await b.opened(from);
      if (!b.socket.recovered) await b.done("room:join", { taskId });
    }
    await fence(taskId, a, b);
    assert.deepEqual(a.all("(disconnect)"), []);
    assert.deepEqual(a.all("typing:user_typing"), []);
  });

  test("frames that are no packets end nobody else's connection", async () => {
    const { taskId, ann, eve, own } = await world();
    const a = await join(ann, { taskId });
    const nested = (depth) => `${"[".repeat(depth)}${"]".repeat(depth)}`;
    const broken = [
      "", " ", "0", '0{"sid":"x"}', "1x", "2", "2probe", "3", "3probe", "5", "6", "7", "8", "9", "b", "bAAA=", "x", "é",
      "4", "49", "4x", "40", "40/", "40/nowhere", "40/nowhere,", '40/tasks', "40/tasks,", "40/tasks,{", '40/tasks,"x"',
      "40/tasks,[]", '40/tasks,{"token":7}', '40/tasks,{"token":"x","pid":"x","offset":"x"}', "40/tasks,{}",
      "42", "42/", "42/,", "42/tasks", "42/tasks,", "42/tasks,x", "42/tasks,{}", "42/tasks,[]", "42/tasks,[7]", "42/tasks,[null]",
      "42/tasks,[[]]", '42/tasks,["connect"]', '42/tasks,["disconnect"]', '42/tasks,["room:join"]', '42/tasks,["room:join"',
      '42/tasks,["room:join",{"taskId":"x"}', '42/tasks,["room:join",{}]]', '42/tasks,99999999999999999999["room:join",{}]',
      '42/tasks,-1["room:join",{}]', '42/tasks,1.5["room:join",{}]', '42/tasks,1["\\ud800",{}]', '42/tasks,1["\\u0000",{}]',
      '42["join",{"topic":"x"}]', '42/wiki,["kb.join",{}]', '42/tasks,["room:join",{"taskId":"x"},{"taskId":"y"},"z",1,2,3]',
      '42/tasks,["room:join",{"taskId":1,"taskId":2}]', `42/tasks,1["room:join",${nested(2000)}]`, `42/tasks,1${nested(20_000)}`,
      "43", "43/tasks,", "43/tasks,1", "43/tasks,1[]", "43/tasks,x[]", "44", '44/tasks,"x"', "45", "45-", "451-", '451-["x"]',
      '451-/tasks,["room:join",{"_placeholder":true,"num":0}]', '459999999999-/tasks,["x"]', '45-1-/tasks,["x"]', '461-/tasks,1[]',
      '450-/tasks,["room:join",{}]', "41", "41/nowhere", "41/nowhere,", `42/${"x".repeat(9000)},["x"]`, `40/${"x".repeat(9000)},`,
      "\u0000", "4\u0000", "42/tasks,\u001e", "4\u001e4", Buffer.from([]), Buffer.from([0, 1, 2]), Buffer.from([0xff]), Buffer.alloc(1000),
    ];
    let ended = 0;
    for (const frame of broken) {
      const raw = await Raw.open(eve);
      raw.socket.send(frame);
      if (!(await raw.lives(own.taskId))) ended += 1;
      raw.socket.terminate();
    }
    assert.ok(ended > 0 && ended < broken.length, `${ended} of ${broken.length}`);
    // Without so much as a handshake of Socket.IO's.
    for (const frame of ['42["join",{"topic":"x"}]', '42/tasks,["room:join",{}]', "41/tasks,", "43/tasks,1[]"]) {
      const raw = await Raw.open();
      raw.socket.send(frame);
      raw.socket.send(`40/tasks,${JSON.stringify({ token: stage.pass(eve) })}`);
      await raw.next((text) => isEnd(text) || String(text).startsWith("40/tasks,"));
      raw.socket.terminate();
    }
    await fence(taskId, a);
    assert.deepEqual(a.all("(disconnect)"), []);
    assert.equal((await stage.fetch(undefined, "/readyz")).status, 200);
  });

  test("what no client would ask for is refused as Engine.IO says", async () => {
    const ask = async (query, { method = "GET", body } = {}) => {
      const answer = await fetch(`${stage.server.url}/socket.io/?${query}`, { method, body });
      const text = await answer.text();
      return [answer.status, answer.status === 400 && text.startsWith("{") ? JSON.parse(text).code : text];
    };
    assert.deepEqual(await ask("EIO=4&transport=pigeon"), [400, 0]);
    assert.deepEqual(await ask("EIO=4"), [400, 0]);
    assert.deepEqual(await ask("EIO=4&transport=polling&sid=nobody"), [400, 1]);
    assert.deepEqual(await ask("EIO=4&transport=polling&sid=nobody", { method: "POST", body: "40" }), [400, 1]);
    assert.deepEqual(await ask("EIO=4&transport=polling", { method: "POST", body: "40" }), [400, 2]);
    assert.deepEqual(await ask("EIO=3&transport=polling"), [400, 5]);
    const [status] = await ask("EIO=4&transport=polling", { method: "DELETE" });
    assert.ok(status >= 400 && status < 500, `${status}`);
    for (const path of [
      "/socket.io/?EIO=4&transport=websocket&sid=nobody",
      "/socket.io/?EIO=3&transport=websocket",
      "/socket.io/?EIO=4&transport=pigeon",
    ]) {
      const raw = new Raw(path);
      await raw.next(isEnd);
    }
  });

  test("bodies that are no packets end that connection alone", async () => {
    const { taskId, ann, eve } = await world();
    const a = await join(ann, { taskId }, { transports: ["polling"] });
    const broken = [
      "", "x", "9", "4", "42", "42/tasks", "42\u001e", "\u001e\u001e\u001e", "40/tasks,{\u001e42", "b", "bé", "b====", "0", "6",
      "1", "3", "1:4", "4:42[]", '451-/tasks,["x"]', `42["${"x".repeat(FRAME_BYTES_MAX)}"]`, "4".repeat(20_000), "6\u001e".repeat(10_000),
      "40\u001e".repeat(5000), Buffer.from([0xff, 0xfe]), Buffer.alloc(FRAME_BYTES_MAX + 1),
    ];
    for (const body of broken) {
      const url = `${stage.server.url}/socket.io/?EIO=4&transport=polling`;
      const { sid } = JSON.parse((await (await fetch(url)).text()).slice(1));
      const post = (body) => fetch(`${url}&sid=${sid}`, { method: "POST", body });
      await (await post(`40/tasks,${JSON.stringify({ token: stage.pass(eve) })}`)).text();
      const answer = await post(body);
      const text = await answer.text();
      const what = `${JSON.stringify(String(body).slice(0, 60))}: ${answer.status} ${text}`;
      assert.ok(answer.status === 200 || (answer.status >= 400 && answer.status < 500), what);
      // Whether it ended or not, it is answered.
      const after = await fetch(`${url}&sid=${sid}`);
      await after.text();
      assert.ok([200, 400].includes(after.status), what);
    }
    // Two that ask at once are one too many.
    const url = `${stage.server.url}/socket.io/?EIO=4&transport=polling`;
    const { sid } = JSON.parse((await (await fetch(url)).text()).slice(1));
    const both = [fetch(`${url}&sid=${sid}`), fetch(`${url}&sid=${sid}`)];
    const statuses = (await Promise.all(both)).map(({ status }) => status);
    assert.ok(statuses.includes(400), `${statuses}`);
    await fence(taskId, a);
    assert.deepEqual(a.all("(disconnect)"), []);
  });

  test("an upgrade that is not finished, or is another's, takes nothing from the connection", async () => {
    const { taskId, ann } = await world();
    const a = await join(ann, { taskId }, { transports: ["polling"] });
    const { id: sid } = a.socket.io.engine;
    const path = `/socket.io/?EIO=4&transport=websocket&sid=${encodeURIComponent(sid)}`;
    for (const frame of [undefined, "2probe", "2", "x", "40/tasks,", Buffer.from([1])]) {
      const raw = new Raw(path);
      await new Promise((resolve) => raw.socket.once("open", resolve).once("close", resolve));
      if (frame !== undefined) raw.socket.send(frame);
      if (frame === "2probe") await raw.next((text) => isEnd(text) || text === "3probe");
      raw.socket.terminate();
      await raw.next(isEnd);
      await fence(taskId, a);
    }
    assert.deepEqual(a.all("(disconnect)"), []);
  });

  test("a table that loses a column, or goes, takes no other's events with it", async () => {
    const { taskId, ann } = await world();
    const a = await join(ann, { taskId });
    await sql(`
      create table public.notes (id int primary key, task_id text, body text);
      alter table public.notes replica identity full;
      alter publication supabase_realtime add table public.notes;
      select walcast.map_table('public.notes', entity => 'note', topic => 'task:{task_id}', columns => '{id,body}');
    `);
    const note = (key) => sql("insert into public.notes values ($1, $2)", [key, taskId]);
    await sql("insert into public.notes values (1, $1, 'one')", [taskId]);
    assert.deepEqual(await a.payload("note.created"), { id: 1, body: "one" });
    await sql("alter table public.notes drop column body");
    await note(2);
    await fence(taskId, a);
    await rename(taskId, "still");
    await sql("drop table public.notes");
    await fence(taskId, a);
    assert.ok(a.all("note.created").length <= 2);
    assert.deepEqual(a.all("(disconnect)"), []);
  });
});
