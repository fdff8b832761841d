// What the tests of Socket.IO share: the example applications in one database, and tabs, which are
// connections of the official client that keep all that they hear. That nothing came shows only once
// something later has: whoever says so waits for that first.

import assert from "node:assert/strict";
import { randomBytes, randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { before } from "node:test";

import WebSocket from "ws";

// Before the client, which takes the timers that it finds.
import { Feed, Stage, VERSIONS, within } from "./harness.mjs";
import { io } from "socket.io-client";

export const newest = VERSIONS.find((version) => version.isNewest);

/** The text of a cursor: it sorts as the log does. */
export const CURSOR = /^[0-9A-F]{16}-[0-9a-f]{8}-[0-9a-f]{8}$/;

/** The text of a time in an event. */
export const TIME = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$/;

/** An id as the tables of tasks and pages have them. */
export const id = (prefix) => `${prefix}${randomBytes(8).toString("hex")}`;

export const uuid = randomUUID;

const EXAMPLES = ["app", "story-map", "tasks", "reading", "wiki", "pages"];
const SCHEMAS = ["public", "storymap", "tasks", "reading", "wiki", "pages"];

const example = (name) =>
  readFileSync(new URL(`../../sql/examples/${name}.sql`, import.meta.url), "utf8");

/** A suite about the example applications, whose tabs are in one of their namespaces. */
export class Applications extends Stage {
  /** Call it where the suite is described; `env` are settings of the server. */
  constructor(namespace, env) {
    super(EXAMPLES.map(example).join("\n"), { PGRST_DB_SCHEMAS: SCHEMAS.join(","), ...env });
    this.namespace = namespace;
    before(() => within(this.#declared(), () => `namespace ${namespace}`));
  }

  /** What is declared is known a moment after its commit; no client is told when. */
  async #declared() {
    for (;;) {
      const tab = this.tab({ sub: uuid() });
      const { event, message } = await tab.next(/^\((connect|connect_error)\)$/);
      await tab.close();
      if (event === "(connect)" || message !== "Invalid namespace") return;
      await new Promise((resolve) => setTimeout(resolve, 25));
    }
  }

  /** A token with these claims, of an ordinary user. */
  pass(claims, seconds) {
    return this.server.sign({ role: "authenticated", ...claims }, seconds);
  }

  /** A connection of the user with these claims, which opens; `options` are the client's. */
  tab(claims, { url = this.server.url, namespace = this.namespace, ...options } = {}) {
    const auth = claims ? { token: this.pass(claims) } : {};
    const tab = new Tab(`${url}${namespace}`, { auth, ...options });
    this.users.push(tab);
    return tab;
  }

  /** The same, once it is open. */
  async open(claims, options) {
    const tab = this.tab(claims, options);
    await tab.opened();
    return tab;
  }

  /** Resolves once all that is committed by now has been told: whoever joins later hears none of it. */
  async settle() {
    const sub = uuid();
    const watcher = await this.open({ sub }, { namespace: "/" });
    await watcher.done("join", { topic: `user:${sub}` });
    await this.query("select realtime.send('{}', 'settled', $1, true)", [`user:${sub}`]);
    await watcher.next("settled");
    watcher.close();
  }

  /** Why a connection with these options is refused. */
  async refusal(options) {
    const tab = this.tab(undefined, options);
    const { event, message } = await tab.next(/^\((connect|connect_error)\)$/);
    assert.equal(event, "(connect_error)");
    await tab.close();
    return message;
  }

  /** What `sql` gives the user with these claims, in a transaction of his own. */
  async as(claims, sql, values) {
    const { client } = this.service.database;
    await client.query("begin");
    try {
      const text = JSON.stringify({ role: "authenticated", ...claims });
      await client.query("select set_config('request.jwt.claims', $1, true)", [text]);
      await client.query("set local role authenticated");
      const { rows } = await client.query(sql, values);
      await client.query("commit");
      return rows;
    } catch (error) {
      await client.query("rollback");
      throw error;
    }
  }

  /** supabase-js for the rows of one schema, in the hands of the user with these claims. */
  rows(claims, schema, headers = {}) {
    const token = this.pass(claims);
    return newest.createClient(this.server.url, this.server.anonKey, {
      accessToken: async () => token,
      db: { schema },
      global: { headers },
      realtime: { transport: globalThis.WebSocket ?? WebSocket },
    });
  }

  /** A private channel of supabase-js, whether or not he is let in. */
  async channel(claims, topic, { bindings = [], ...config } = {}) {
    const user = await this.signIn(newest, this.pass(claims));
    return new Feed(user, topic, bindings, { private: true, broadcast: { ack: true }, ...config });
  }

  /** The same, once he is in, and all that it asked for has begun. */
  async listen(claims, topic, config) {
    const feed = await this.channel(claims, topic, config);
    await feed.status("SUBSCRIBED");
    const begun = ({ extension, status }) => extension === "postgres_changes" && status === "ok";
    if (config?.bindings) await feed.system(begun);
    return feed;
  }

  /** An answer over plain HTTP; with a body it is sent as JSON. */
  async fetch(claims, path, { body, headers, ...init } = {}) {
    return fetch(`${this.server.url}${path}`, {
      ...init,
      headers: {
        ...(claims && { authorization: `Bearer ${this.pass(claims)}` }),
        ...(body !== undefined && { "content-type": "application/json" }),
        ...headers,
      },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  }
}

/** One connection to one namespace, all that it has heard, and waits for more. */
export class Tab {
  constructor(url, options = {}) {
    Object.assign(this, { heard: [], waiting: new Set() });
    this.socket = io(url, {
      transports: ["websocket"],
      forceNew: true,
      // A test waits for what comes after an outage; the outage itself is short.
      reconnectionDelay: 20,
      reconnectionDelayMax: 200,
      ...options,
    });
    // The connection's own life, in parentheses: no event can have such a name.
    this.socket.on("connect", () => this.#hear({ event: "(connect)" }));
    this.socket.on("disconnect", (reason) => this.#hear({ event: "(disconnect)", reason }));
    this.socket.on("connect_error", ({ message }) =>
      this.#hear({ event: "(connect_error)", message }),
    );
    this.socket.onAny((event, ...args) =>
      this.#hear({ event, payload: args[0], cursor: args[1]?.cursor, args }),
    );
  }

  #hear(item) {
    this.heard.push(item);
    for (const look of [...this.waiting]) look();
  }

  /** Its id, which is that of the connection a write may name. */
  get id() {
    return this.socket.id;
  }

  /** How much has been heard by now, for `from`. */
  get mark() {
    return this.heard.length;
  }

  /**
   * What is heard first, from the item with the number `from` on, of this name (a pattern may stand
   * for several) and such that `is` holds for its payload.
   */
  async next(event, is = () => true, from = 0) {
    const named = event instanceof RegExp ? (item) => event.test(item.event) : (item) => item.event === event;
    let look;
    const found = new Promise((resolve) => {
      look = () => {
        const item = this.heard.slice(from).find((item) => named(item) && is(item.payload, item));
        if (item) resolve(item);
      };
      this.waiting.add(look);
      look();
    });
    const what = () => {
      const heard = this.heard.map(({ event, args, ...rest }) =>
        JSON.stringify([event, ...(args ?? [rest])]),
      );
      return `${event}; heard ${heard.join(", ")}`;
    };
    return within(found, what).finally(() => this.waiting.delete(look));
  }

  /** The payload of the next one. */
  async payload(event, is, from) {
    return (await this.next(event, is, from)).payload;
  }

  /** The payloads of all of this name so far, from the item with the number `from` on. */
  all(event, from = 0) {
    return this.heard.slice(from).flatMap((item) => (item.event === event ? [item.payload] : []));
  }

  /** The names of all events so far but those of the connection, from that number on. */
  names(from = 0) {
    return this.heard.slice(from).flatMap(({ event }) => (event.startsWith("(") ? [] : [event]));
  }

  /** Resolves once it is open; `from` skips earlier times. */
  opened(from = 0) {
    return this.next("(connect)", undefined, from);
  }

  /** What the server answers. */
  ask(event, ...payload) {
    return within(this.socket.emitWithAck(event, ...payload), () => `answer to ${event}`);
  }

  /** The answer's data; it is done. */
  async done(event, payload) {
    const answer = await this.ask(event, payload);
    assert.equal(answer?.ok, true, `${event}: ${JSON.stringify(answer)}`);
    return answer;
  }

  /** The error that it is refused with, which is the error event, too. */
  async denied(event, payload, code, errors = "error") {
    const from = this.mark;
    const answer = await this.ask(event, payload);
    assert.equal(answer?.ok, false, `${event}: ${JSON.stringify(answer)}`);
    assert.equal(answer.error.code, code, JSON.stringify(answer));
    assert.equal(typeof answer.error.message, "string");
    const told = await this.payload(errors, (payload) => payload.code === code, from);
    assert.deepEqual(told, answer.error);
    return answer.error;
  }

  /** Says it and waits for no answer. */
  say(event, ...payload) {
    this.socket.emit(event, ...payload);
  }

  close() {
    this.socket.disconnect();
  }
}

/** Whether a value has these members, and no others; a pattern stands for a text, a type for any of it. */
export function exactly(value, expected) {
  assert.deepEqual(Object.keys(value ?? {}).sort(), Object.keys(expected).sort(), JSON.stringify(value));
  having(value, expected);
}

/** Whether a value has these members, at least. */
export function having(value, expected) {
  for (const [name, wanted] of Object.entries(expected)) {
    const found = value?.[name];
    const what = `${name} of ${JSON.stringify(value)}`;
    if (wanted instanceof RegExp) assert.match(String(found), wanted, what);
    else if (typeof wanted === "function") assert.equal(typeof found, wanted.name.toLowerCase(), what);
    else assert.deepEqual(found, wanted, what);
  }
}

/** The 16 digits of the commit in a cursor. */
export function commit(cursor) {
  assert.match(cursor, CURSOR);
  return cursor.slice(0, 16);
}
