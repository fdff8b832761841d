// What the tests of rows over HTTP share: who asks, with clients of both ages, and Postgres as the
// oracle: the same question in SQL, asked as the same role with the same claims.

import assert from "node:assert/strict";
import { test } from "node:test";

import WebSocket from "ws";

import { ALICE, BOB, Stage, VERSIONS } from "./harness.mjs";

/** Who asks, by name. */
export const CALLERS = {
  anon: { role: "anon" },
  alice: { role: "authenticated", sub: ALICE },
  bob: { role: "authenticated", sub: BOB },
  service: { role: "service_role" },
};

/** A suite about rows: a service, and callers at clients of both ages. */
export class Rows extends Stage {
  #visitors = new Map();

  /** The same client each time for one of `CALLERS`. */
  visitor(version, name) {
    const key = `${version.name} ${name}`;
    if (!this.#visitors.has(key)) this.#visitors.set(key, this.visit(version, name));
    return this.#visitors.get(key);
  }

  /**
   * A new client in the hands of one of `CALLERS`, or with a token of its own; `answers` of it has
   * what the network saw of each request.
   */
  visit(version, name, { headers, schema, token, key } = {}) {
    const { role, sub } = CALLERS[name];
    // A service comes with its key, a user with the public one and a token.
    key ??= role === "service_role" ? this.server.token(role) : this.server.anonKey;
    token ??= sub && this.token(sub);
    const answers = [];
    const client = version.createClient(this.server.url, key, {
      ...(version.isNewest && token && { accessToken: async () => token }),
      ...(schema && { db: { schema } }),
      auth: { persistSession: false, autoRefreshToken: false, detectSessionInUrl: false },
      realtime: version.isNewest ? { transport: globalThis.WebSocket ?? WebSocket } : {},
      global: {
        headers: {
          ...headers,
          ...(!version.isNewest && token && { Authorization: `Bearer ${token}` }),
        },
        fetch: async (url, init) => {
          const answer = await fetch(url, init);
          const { pathname, search } = new URL(url);
          answers.push({
            method: init.method,
            path: pathname + search,
            sent: new Headers(init.headers),
            status: answer.status,
            headers: answer.headers,
          });
          return answer;
        },
      },
    });
    return Object.assign(client, { answers });
  }

  /** What the rows of `sql` are to one of `CALLERS`, as JSON; nothing that it does stays. */
  async as(name, sql) {
    const { role, sub } = CALLERS[name];
    const claims = JSON.stringify({ role, ...(sub && { sub }) });
    // In one message, which is one transaction.
    const { client } = this.service.database;
    try {
      const results = await client.query(`
        begin; select set_config('request.jwt.claims', '${claims}', true); set local role ${role};
        select coalesce(json_agg(q), '[]')::text as rows from (${sql}) as q
      `);
      return JSON.parse(results.at(-1).rows[0].rows);
    } finally {
      await client.query("rollback");
    }
  }

  /** The rows of `sql` as they are, whoever looks. */
  async rows(sql, values = []) {
    const text = `select coalesce(json_agg(q), '[]')::text as rows from (${sql}) as q`;
    const [{ rows }] = await this.query(text, values);
    return JSON.parse(rows);
  }
}

/** The last answer that this client had. */
export function last(client) {
  return client.answers.at(-1);
}

/** What came back: it was no error, and has this status if one is given. */
export async function data(asked, status) {
  const { data, error, status: got } = await asked;
  assert.equal(error, null, `${JSON.stringify(error)} (${got})`);
  if (status) assert.equal(got, status);
  return data;
}

/** The error: with this status and code, and all four keys. */
export async function problem(asked, status, code) {
  const { data, error, status: got, count } = await asked;
  assert.ok(error, `an error, not ${JSON.stringify(data)}`);
  const seen = `${got} ${error.code}: ${error.message} | ${JSON.stringify(error.details)}`;
  assert.deepEqual([got, error.code], [status, code], seen);
  for (const key of ["code", "message", "details", "hint"]) assert.ok(key in error, `${key}: ${seen}`);
  assert.equal(typeof error.message, "string");
  assert.equal(data, null);
  assert.equal(count, null);
  return error;
}

/** One test for each client; `body` gets the version. */
export function everywhere(name, body) {
  for (const version of VERSIONS) test(`${name} (${version.name})`, () => body(version));
}
