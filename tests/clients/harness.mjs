// What the client tests share: a database, a walcast that serves it, tokens, and the official
// clients at two ages. A wait has an event and a deadline; nothing sleeps for a guess.

import { spawn } from "node:child_process";
import { createHmac, randomBytes } from "node:crypto";
import { createRequire } from "node:module";
import { connect, createServer } from "node:net";
import { after, before } from "node:test";
import { clearTimeout, setTimeout } from "node:timers";
import { fileURLToPath } from "node:url";

import pg from "pg";
import * as newest from "supabase-js-newest";
import * as oldest from "supabase-js-oldest";
import WebSocket from "ws";

const require = createRequire(import.meta.url);

// A closed client leaves timers of up to 10 s behind. They change nothing any more, and must not keep
// a finished test file running; our own deadlines, and open sockets, still do.
globalThis.setTimeout = (...of) => setTimeout(...of).unref();

/** The server under test. */
export const BIN =
  process.env.WALCAST_BIN ?? fileURLToPath(new URL("../../target/debug/walcast", import.meta.url));

/** Longest wait for anything; a reconnecting client pauses 1, 2, 5 and 10 s between attempts. */
export const DEADLINE_MS = 120_000;

export const ALICE = "00000000-0000-4000-8000-00000000000a";
export const BOB = "00000000-0000-4000-8000-00000000000b";

// ---------------------------------------------------------------------------------- processes

const children = new Set();

process.on("exit", () => {
  for (const child of children) child.kill(child.lastSignal);
});
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => process.exit(1));

/**
 * Starts a program of ours, and keeps the end of what it says for the message of a failure.
 * `lastSignal` is what it gets when we end first.
 */
export function start(program, args, env, lastSignal = "SIGKILL") {
  const child = spawn(program, args, { env, stdio: ["ignore", "pipe", "pipe"] });
  children.add(child);
  child.lastSignal = lastSignal;
  child.said = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8");
    stream.on("data", (text) => {
      child.said = (child.said + text).slice(-20_000);
      child.emit("said");
    });
  }
  child.ended = new Promise((resolve, reject) => {
    child.once("error", (error) => {
      children.delete(child);
      reject(new Error(`cannot start ${program}: ${error.message}`));
    });
    child.once("exit", (code, signal) => {
      children.delete(child);
      resolve({ code, signal });
    });
  });
  child.ended.catch(() => {});
  return child;
}

/** Rejects `waiting` after the deadline with a message that says what was waited for. */
export function within(waiting, what, ms = DEADLINE_MS) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no ${what()} within ${ms} ms`)), ms);
  });
  return Promise.race([waiting, late]).finally(() => clearTimeout(timer));
}

/** Resolves with what `pattern` matches in the output of `child`. */
export function says(child, pattern, ms = DEADLINE_MS) {
  const heard = new Promise((resolve, reject) => {
    const look = () => {
      const match = pattern.exec(child.said);
      if (match) resolve(match);
    };
    child.on("said", look);
    look();
    child.ended.then(
      ({ code, signal }) => reject(new Error(`ended with ${code ?? signal}: ${child.said}`)),
      reject,
    );
  });
  return within(heard, () => `${pattern} from ${child.spawnfile}: ${child.said}`, ms);
}

/** A free port below those the kernel gives to outgoing connections. */
async function freePort() {
  for (;;) {
    const port = 10_000 + (randomBytes(2).readUInt16BE() % 10_000);
    const free = await new Promise((resolve) => {
      const server = createServer();
      server.once("error", () => resolve(false));
      server.listen(port, "127.0.0.1", () => server.close(() => resolve(true)));
    });
    if (free) return port;
  }
}

// ----------------------------------------------------------------------------------- database

/** One database on the run's server (`run.mjs` starts that and names it in the environment). */
export class Database {
  static async create() {
    const cluster = process.env.WALCAST_TEST_DATABASE_URL;
    if (!cluster) throw new Error("WALCAST_TEST_DATABASE_URL is not set; start with: node run.mjs");
    const name = `clients_${randomBytes(6).toString("hex")}`;
    const admin = new pg.Client({ connectionString: cluster });
    await admin.connect();
    await admin.query(`create database ${name}`);
    const url = new URL(cluster);
    url.pathname = `/${name}`;
    const client = new pg.Client({ connectionString: url.href });
    // When the cluster goes first, that is no failure of a test.
    for (const connection of [admin, client]) connection.on("error", () => {});
    await client.connect();
    return new Database(name, url.href, admin, client);
  }

  constructor(name, url, admin, client) {
    Object.assign(this, { name, url, admin, client });
  }

  /** Runs one statement with parameters, or several without; returns the rows. */
  async query(sql, values) {
    const result = await this.client.query(sql, values);
    return Array.isArray(result) ? result.at(-1).rows : result.rows;
  }

  async drop() {
    await this.client.end();
    const slots = await this.admin.query(
      "select slot_name, active_pid from pg_replication_slots where database = $1",
      [this.name],
    );
    for (const { slot_name, active_pid } of slots.rows) {
      if (active_pid) await this.admin.query("select pg_terminate_backend($1, 5000)", [active_pid]);
      await this.admin.query("select pg_drop_replication_slot($1)", [slot_name]);
    }
    await this.admin.query(`drop database ${this.name} with (force)`);
    await this.admin.end();
  }
}

// ------------------------------------------------------------------------------------- server

/** A walcast on one database, reachable at one URL however often it is restarted. */
export class Server {
  static async start(database, env) {
    const server = new Server(database, await freePort(), randomBytes(24).toString("hex"), env);
    await server.start();
    return server;
  }

  constructor(database, port, secret, env) {
    Object.assign(this, { database, secret, port, env, url: `http://127.0.0.1:${port}` });
    this.anonKey = this.token("anon");
  }

  /** Resolves once it is ready: it listens, and reads the slot. */
  async start() {
    this.process = start(BIN, ["serve"], {
      PATH: process.env.PATH,
      DATABASE_URL: this.database.url,
      WALCAST_JWT_SECRET: this.secret,
      WALCAST_BIND: `127.0.0.1:${this.port}`,
      // Names of slots are the cluster's, and other tests share it.
      WALCAST_SLOT: `walcast_${this.database.name}`,
      // Nothing is withheld because the machine is slow.
      WALCAST_DATABASE_CHECK_TIMEOUT_MS: "60000",
      WALCAST_DATABASE_BATCH_CHECK_TIMEOUT_MS: "120000",
      WALCAST_DATABASE_CHANNEL_WAIT_TIMEOUT_MS: "60000",
      WALCAST_LOG: process.env.WALCAST_LOG ?? "info",
      RUST_BACKTRACE: "1",
      ...this.env,
    });
    const ready = async () => {
      for (;;) {
        try {
          const answer = await fetch(`${this.url}/readyz`);
          if (answer.ok) return;
        } catch {
          // Not listening yet.
        }
        // There is no event to wait for in another process' start; knock again soon.
        await new Promise((resolve) => setTimeout(resolve, 25));
        if (this.process.exitCode !== null || this.process.signalCode !== null) return;
      }
    };
    const ended = this.process.ended.then(({ code, signal }) => {
      throw new Error(`walcast ended with ${code ?? signal}:\n${this.process.said}`);
    });
    ended.catch(() => {});
    await within(Promise.race([ready(), ended]), () => `ready walcast:\n${this.process.said}`);
  }

  /** Sends `signal` and resolves when the process has ended. */
  async end(signal) {
    this.process.kill(signal);
    return within(this.process.ended, () => `end after ${signal}`);
  }

  /** A token for `role`, and for `sub` if given, that expires in `seconds`. */
  token(role, sub, seconds) {
    return this.sign({ role, ...(sub && { sub }) }, seconds);
  }

  /** A token with these claims, of ours unless it is signed with another secret. */
  sign(claims, seconds = 3600, secret = this.secret) {
    const now = Math.floor(Date.now() / 1000);
    const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
    const head = part({ alg: "HS256", typ: "JWT" });
    const body = `${head}.${part({ ...claims, iat: now, exp: now + seconds })}`;
    return `${body}.${createHmac("sha256", secret).update(body).digest("base64url")}`;
  }
}

/**
 * A database and a server for the tests of one file; `sql` runs once roles and publication exist,
 * `env` are settings of the server.
 */
export async function serve(sql, env = {}) {
  const database = await Database.create();
  const server = await Server.start(database, env);
  await database.query(sql);
  return {
    database,
    server,
    async close() {
      const { code, signal } = await server.end("SIGTERM");
      await database.drop();
      if (code !== 0) throw new Error(`walcast ended with ${code ?? signal}:\n${server.process.said}`);
    },
  };
}

// ------------------------------------------------------------------------------------ network

/** A way to a server that a test can break; to a client it is the server. */
export class Wire {
  static async to(server) {
    const wire = new Wire(server);
    await new Promise((resolve) => wire.listener.listen(0, "127.0.0.1", resolve));
    wire.url = `http://127.0.0.1:${wire.listener.address().port}`;
    return wire;
  }

  constructor(server) {
    Object.assign(this, { anonKey: server.anonKey, silent: false, broken: false, ends: new Set() });
    this.refused = 0;
    this.listener = createServer({ allowHalfOpen: true }, (near) => {
      if (this.broken) {
        this.refused += 1;
        near.resetAndDestroy();
        this.listener.emit("refused");
        return;
      }
      const far = connect({ port: server.port, host: "127.0.0.1", allowHalfOpen: true });
      this.#carry(near, far);
      this.#carry(far, near);
    });
  }

  #carry(from, to) {
    this.ends.add(from);
    from.on("data", (bytes) => to.write(bytes));
    from.on("end", () => to.end());
    // However one side went, the other one sees it go.
    from.on("error", () => to.destroy());
    from.on("close", () => {
      this.ends.delete(from);
      if (from.errored || this.broken) to.destroy();
    });
    if (this.silent) from.pause();
  }

  /** From now on nothing arrives, in either direction, and nobody is told; `mend` delivers it. */
  silence() {
    this.silent = true;
    for (const end of this.ends) end.pause();
  }

  /** Every connection is reset, and new ones too, until `mend`. */
  break() {
    Object.assign(this, { broken: true, refused: 0 });
    for (const end of this.ends) end.resetAndDestroy();
  }

  /** Resolves when `times` connections were refused since it broke. */
  tried(times) {
    const often = new Promise((resolve) => {
      this.listener.on("refused", () => this.refused >= times && resolve());
    });
    return within(often, () => `${times} attempts; there were ${this.refused}`);
  }

  mend() {
    Object.assign(this, { silent: false, broken: false });
    for (const end of this.ends) end.resume();
  }

  close() {
    this.break();
    return new Promise((resolve) => this.listener.close(resolve));
  }
}

// ------------------------------------------------------------------------------------ clients

/** The ages under test, with the version of realtime-js that each brings. */
export const VERSIONS = [
  { name: "supabase-js 2.119.0", createClient: newest.createClient, isNewest: true },
  { name: "supabase-js 2.39.0", createClient: oldest.createClient, isNewest: false },
];

/** One user at one client. */
export class User {
  /**
   * `token` is what the user signed in with; without one the visitor is anonymous. `server` may be a
   * wire to it; `realtime` are options of the client's socket.
   */
  constructor(version, server, token, realtime = {}) {
    this.version = version;
    this.token = token ?? server.anonKey;
    this.client = version.createClient(server.url, server.anonKey, {
      ...(version.isNewest && { accessToken: async () => this.token }),
      auth: { persistSession: false, autoRefreshToken: false, detectSessionInUrl: false },
      realtime: {
        // Node before 22 has no WebSocket of its own; 2.39 brings one.
        ...(version.isNewest && { transport: globalThis.WebSocket ?? WebSocket }),
        ...realtime,
      },
    });
    // The newest asks its callback for the token; until it has the answer it joins with the key.
    this.signedIn = this.refresh(this.token);
  }

  /** As signing in again does: the new token goes to every channel. */
  async refresh(token) {
    this.token = token;
    await this.client.realtime.setAuth(...(this.version.isNewest ? [] : [token]));
  }

  /** A channel with these `postgres_changes` bindings, subscribed. */
  async subscribe(topic, ...bindings) {
    await this.signedIn;
    const feed = new Feed(this, topic, bindings);
    await feed.status("SUBSCRIBED");
    return feed;
  }

  async close() {
    await this.client.removeAllChannels();
    this.client.realtime.disconnect();
  }
}

/** What a suite is about: a service as in `serve`, and who comes to it. Both end with the suite. */
export class Stage {
  /** Call it where the suite is described. */
  constructor(schema, env) {
    this.users = [];
    before(async () => {
      this.service = await serve(schema, env);
    });
    after(async () => {
      await Promise.all(this.users.map((user) => user.close()));
      await this.service?.close();
    });
  }

  get server() {
    return this.service.server;
  }

  query(text, values) {
    return this.service.database.query(text, values);
  }

  /** A token of the user `sub`. */
  token(sub, seconds) {
    return this.server.token("authenticated", sub, seconds);
  }

  /** Somebody who has signed in with `token`, or an anonymous visitor. */
  async signIn(version, token) {
    const user = new User(version, this.server, token);
    this.users.push(user);
    await user.signedIn;
    return user;
  }
}

/**
 * Everything one channel has heard, in order, and waits for more. Who is present it hears only with
 * `config.presence`, because listening is what makes a client ask for it.
 */
export class Feed {
  /** `heard` is called with the feed, one of its lists, and what was added to it. */
  constructor(user, topic, bindings, config = {}, heard = () => {}) {
    Object.assign(this, { user, topic, heard, waiting: new Set() });
    Object.assign(this, { statuses: [], changes: [], systems: [], broadcasts: [], presences: [] });
    this.channel = user.client.channel(topic, { config });
    bindings.forEach((binding, index) =>
      this.channel.on("postgres_changes", { event: "*", schema: "public", ...binding }, (change) =>
        this.#heard(this.changes, { binding: index, ...change }),
      ),
    );
    this.channel.on("broadcast", { event: "*" }, (message) =>
      this.#heard(this.broadcasts, message),
    );
    for (const event of config.presence ? ["sync", "join", "leave"] : []) {
      this.channel.on("presence", { event }, (presence) => {
        // A state that changes later is of no use for a comparison.
        this.#heard(this.presences, structuredClone({ event, ...presence }));
      });
    }
    this.channel.on("system", {}, (message) => this.#heard(this.systems, message));
    this.channel.subscribe((status, error) => this.#heard(this.statuses, { status, error }));
  }

  #heard(list, item) {
    list.push(item);
    this.heard(this, list, item);
    for (const look of [...this.waiting]) look();
  }

  /** The first item of `list`, from index `from`, for which `is` holds. */
  async first(list, from, is, what) {
    let look;
    const found = new Promise((resolve) => {
      look = () => {
        const item = list.slice(from).find(is);
        if (item) resolve(item);
      };
      this.waiting.add(look);
      look();
    });
    const heard = () =>
      `${what} on ${this.topic} of ${this.user.version.name}; heard ${JSON.stringify(
        {
          statuses: this.statuses,
          changes: this.changes,
          systems: this.systems,
          broadcasts: this.broadcasts,
          presences: this.presences,
        },
        (_, value) => (value instanceof Error ? value.message : value),
      )}`;
    return within(found, heard).finally(() => this.waiting.delete(look));
  }

  /** Waits for a status; `from` skips those heard before. */
  status(status, from = 0) {
    return this.first(this.statuses, from, (item) => item.status === status, `status ${status}`);
  }

  /** Waits for a change for which `is` holds. */
  change(is, what = "such change") {
    return this.first(this.changes, 0, is, what);
  }

  /** Waits for the broadcast at index `at` of those heard. */
  broadcast(at) {
    return this.first(this.broadcasts, at, () => true, `broadcast ${at}`);
  }

  /** Who is present as the client has it, without refs: metas by key. */
  present() {
    const metas = (list) => list.map(({ presence_ref: _, ...meta }) => meta);
    const state = Object.entries(this.channel.presenceState());
    return Object.fromEntries(state.map(([key, list]) => [key, metas(list)]));
  }

  /** Waits until exactly these are present; keys and metas in any order. */
  presence(expected) {
    const sorted = (state) =>
      JSON.stringify(
        Object.entries(state)
          .map(([key, metas]) => [key, metas.map((meta) => JSON.stringify(meta)).sort()])
          .sort(([a], [b]) => (a < b ? -1 : 1)),
      );
    const wanted = sorted(expected);
    // With the last thing heard; an empty state is also what a client starts with.
    const is = (_, at, heard) => at + 1 === heard.length && sorted(this.present()) === wanted;
    return this.first(this.presences, 0, is, `presence ${JSON.stringify(expected)}`);
  }

  /** Waits for a join or a leave; `from` skips those heard before. */
  moved(event, is, from = 0) {
    return this.first(this.presences, from, (item) => item.event === event && is(item), event);
  }

  /** Waits for a `system` message; `from` skips those heard before. */
  system(is, from = 0) {
    return this.first(this.systems, from, is, "such system message");
  }
}

/** Where `require` finds the version a client says it is; a test compares it with the name. */
export function installed(name) {
  return require(`${name}/package.json`).version;
}
