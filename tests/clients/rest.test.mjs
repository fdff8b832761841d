// Rows over HTTP around what is read and written: who may ask, what the headers say, every kind of
// trouble, and what the clients make of it.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { ALICE, BOB, VERSIONS, within } from "./harness.mjs";
import { CALLERS, Rows, data, everywhere, last, problem } from "./rest.mjs";

const PUBLISHABLE = "sb_publishable_0123456789abcdef0123456789abcdef";
const SECRET_KEY = "sb_secret_0123456789abcdef0123456789abcdef";
const newest = VERSIONS.find(({ isNewest }) => isNewest);

const SCHEMA = `
  create table public.notes (id int primary key, owner uuid, title text, at timestamptz);
  alter table public.notes enable row level security;
  create policy own on public.notes to authenticated using (owner = auth.uid()) with check (owner = auth.uid());
  grant all on public.notes to authenticated, service_role;
  insert into public.notes values
    (1, '${ALICE}', 'of alice', '2026-01-01 12:00:00+00'), (2, '${BOB}', 'of bob', null);
  create table public.open (id int primary key, name text);
  grant all on public.open to anon, authenticated, service_role;
  insert into public.open values (1, 'one');
  create table public.looped (id int primary key);
  alter table public.looped enable row level security;
  create policy looped on public.looped using (exists (select from public.looped));
  grant select on public.looped to anon;
  create function public.trouble(code text) returns int language plpgsql as $$ begin
    raise exception 'told' using errcode = code, detail = 'the detail', hint = 'the hint';
  end $$;
  create function public.plain_trouble() returns int language plpgsql as $$ begin
    raise 'plainly % told', 1;
  end $$;
  create function public.who() returns json language sql stable as
    $$ select json_build_object('role', current_user, 'sub', auth.uid()) $$;
  create function public.slow(seconds float8) returns int language sql as
    'select pg_sleep(seconds); select 1';
  create table public.queue (id int primary key);
  grant select, insert on public.queue to anon;
`;

describe("rows over HTTP", () => {
  const stage = new Rows(SCHEMA, {
    WALCAST_API_KEYS: JSON.stringify({ [PUBLISHABLE]: "anon", [SECRET_KEY]: "service_role" }),
    WALCAST_REST_STATEMENT_TIMEOUT_MS: "2000",
    WALCAST_REST_BODY_BYTES_MAX: "100000",
    WALCAST_REST_AT_ROOT: "true",
  });
  const as = (version, caller) => stage.visitor(version, caller);
  const raw = (method, path, headers = {}, body) =>
    fetch(`${stage.server.url}/rest/v1${path}`, { method, headers, body });

  everywhere("everybody is who his token says he is", async (version) => {
    for (const [name, { role, sub = null }] of Object.entries(CALLERS)) {
      assert.deepEqual(await data(as(version, name).rpc("who")), { role, sub }, name);
    }
    // A session that the client was given, as its own sign-in would.
    if (!version.isNewest) return;
    const visitor = stage.visit(version, "anon");
    const session = { access_token: stage.token(BOB), refresh_token: "none" };
    const { error } = await visitor.auth.setSession(session);
    // There is no auth service here to ask who that is.
    assert.ok(error);
    assert.equal((await data(visitor.rpc("who"))).role, "anon");
  });

  everywhere("keys that are no tokens are the roles they were given", async (version) => {
    const who = (key) => stage.visit(version, "anon", { key }).rpc("who");
    assert.equal((await data(who(PUBLISHABLE))).role, "anon");
    assert.equal((await data(who(SECRET_KEY))).role, "service_role");
    await problem(who("sb_publishable_of_somebody_else"), 401, "PGRST301");
    // With a user's token the key is only a key.
    const alice = stage.visit(version, "alice", { key: PUBLISHABLE });
    assert.deepEqual(await data(alice.rpc("who")), { role: "authenticated", sub: ALICE });
    const alone = await raw("GET", "/open", { Authorization: `Bearer ${PUBLISHABLE}` });
    assert.deepEqual([alone.status, (await alone.json()).code], [401, "PGRST301"]);
  });

  everywhere("whose token is no good is told why", async (version) => {
    const forged = stage.token(ALICE).replace(/[^.]+$/, "AAAA");
    for (const [token, status, code] of [
      ["nonsense", 401, "PGRST301"],
      [forged, 401, "PGRST301"],
      [stage.token(ALICE, -60), 401, "PGRST303"],
      [stage.server.token("postgres"), 403, "42501"],
    ]) {
      const client = stage.visit(version, "alice", { token });
      await problem(client.from("open").select(), status, code);
      const challenge = last(client).headers.get("www-authenticate");
      assert.equal(challenge?.startsWith("Bearer") ?? false, status === 401, code);
    }
    // Clocks differ a little.
    await data(stage.visit(version, "alice", { token: stage.token(ALICE, -10) }).from("open").select());
  });

  everywhere("who may not is told to sign in, or that he may not", async (version) => {
    await problem(as(version, "anon").from("notes").select(), 401, "42501");
    assert.equal(last(as(version, "anon")).headers.get("www-authenticate"), "Bearer");
    const error = await problem(as(version, "alice").from("queue").select(), 403, "42501");
    assert.equal(error.message, "permission denied for table queue");
    assert.equal(last(as(version, "alice")).headers.get("www-authenticate"), null);
  });

  everywhere("what Postgres reports has its status, and all of its words", async (version) => {
    const client = as(version, "anon");
    for (const [code, status] of [
      ["P0001", 400], ["PT400", 400], ["PT402", 402], ["PT404", 404], ["PT503", 503], ["P0002", 500],
      ["12345", 400], ["22023", 400], ["23503", 409], ["23505", 409], ["23502", 400], ["23514", 400],
      ["42501", 401], ["42703", 400], ["42883", 404], ["42P01", 404], ["42P17", 500], ["25006", 405],
      ["25001", 500], ["0L000", 403], ["0P000", 403], ["28000", 403], ["08006", 503], ["53100", 503],
      ["53300", 503], ["53400", 500], ["57014", 500], ["40001", 500], ["40P01", 500], ["55P03", 500],
      ["38000", 500], ["XX000", 500], ["21000", 500],
    ]) {
      const error = await problem(client.rpc("trouble", { code }), status, code);
      const { message, details, hint } = error;
      assert.deepEqual([message, details, hint], ["told", "the detail", "the hint"], code);
      assert.equal(last(client).headers.get("retry-after") !== null, status === 503, code);
    }
    const plain = await problem(client.rpc("plain_trouble"), 400, "P0001");
    assert.deepEqual([plain.message, plain.details, plain.hint], ["plainly 1 told", null, null]);
    await problem(client.from("looped").select(), 500, "42P17");
  });

  everywhere("what is not there is never taken for success", async (version) => {
    const client = as(version, "anon");
    for (const [asked, code] of [
      [client.from("nothing").select(), "PGRST205"],
      [client.from("nothing").select().single(), "PGRST205"],
      [client.from("nothing").insert({ a: 1 }), "PGRST205"],
      [client.from("nothing").update({ a: 1 }).eq("a", 1), "PGRST205"],
      [client.from("nothing").delete().eq("a", 1), "PGRST205"],
      [client.rpc("nothing"), "PGRST202"],
      [client.rpc("nothing", {}, { get: true }), "PGRST202"],
      [client.from("open/further").select(), "PGRST125"],
      [client.rpc("trouble", { code: "PT404" }), "PT404"],
    ]) {
      await problem(asked, 404, code);
      assert.match(last(client).headers.get("content-type"), /^application\/json/);
    }
    // HEAD has no body whatever happens: the client takes this 404 for success.
    const head = await client.from("nothing").select("*", { head: true, count: "exact" });
    assert.deepEqual([last(client).status, head.data, head.count], [404, null, null]);
    const refused = await client.from("notes").select("*", { head: true });
    assert.deepEqual([refused.status, refused.error !== null, refused.data], [401, true, null]);
  });

  test("each verb is for what it is for", async () => {
    for (const [method, path, status, code] of [
      ["PUT", "/rpc/who", 405, "PGRST101"],
      ["DELETE", "/rpc/who", 405, "PGRST101"],
      ["PATCH", "/rpc/who", 405, "PGRST101"],
      ["PROPFIND", "/open", 405, "PGRST117"],
      ["POST", "/", 405, "PGRST117"],
      ["GET", "/open/1", 404, "PGRST125"],
      ["GET", "/rpc/who/1", 404, "PGRST125"],
    ]) {
      const answer = await raw(method, path, {});
      const body = await answer.json();
      assert.deepEqual([answer.status, body.code], [status, code], `${method} ${path}`);
      assert.deepEqual(Object.keys(body).sort(), ["code", "details", "hint", "message"]);
    }
    const options = await raw("OPTIONS", "/open");
    assert.deepEqual([options.status, await options.text()], [200, ""]);
    assert.match(options.headers.get("allow"), /GET.*HEAD.*POST.*PATCH.*DELETE/);
  });

  everywhere("preferences are honoured, or refused when that is preferred", async (version) => {
    const client = as(version, "alice");
    const prefer = (text) => client.from("notes").select("at").setHeader("Prefer", text);
    assert.deepEqual(await data(prefer("timezone=Asia/Tokyo")), [{ at: "2026-01-01T21:00:00+09:00" }]);
    assert.equal(last(client).headers.get("preference-applied"), "timezone=Asia/Tokyo");
    assert.deepEqual(await data(prefer("timezone=Nowhere, odd=1")), [{ at: "2026-01-01T12:00:00+00:00" }]);
    assert.equal(last(client).headers.get("preference-applied"), null);
    const strict = "handling=strict, ";
    assert.match((await problem(prefer(`${strict}odd=1`), 400, "PGRST122")).details, /odd=1/);
    await problem(prefer(`${strict}timezone=Nowhere`), 400, "PGRST122");
    await data(prefer(`${strict}count=exact, timezone=UTC`), 200);
    assert.equal(last(client).headers.get("preference-applied"), "count=exact, handling=strict, timezone=UTC");
    // Whether a write is only tried is for the server to allow.
    const id = version.isNewest ? 101 : 102;
    const tried = client.from("notes").insert({ id, owner: ALICE }).select("id").rollback();
    assert.deepEqual(await data(tried, 201), [{ id }]);
    assert.doesNotMatch(last(client).headers.get("preference-applied"), /tx/);
    assert.deepEqual(await data(client.from("notes").delete().eq("id", id).select("id")), [{ id }]);
  });

  everywhere("a page of another origin may send what the client sends, and read what it needs", async (version) => {
    const client = as(version, "alice");
    await data(client.from("notes").select("*", { count: "exact" }));
    await data(client.from("notes").update({ title: "of alice" }).eq("id", 1).select());
    const names = new Set(["traceparent", "x-retry-count", "range"]);
    for (const { sent } of client.answers) sent.forEach((_, name) => names.add(name));
    const preflight = await raw("OPTIONS", "/notes", {
      Origin: "https://app.example",
      "Access-Control-Request-Method": "PATCH",
      "Access-Control-Request-Headers": [...names].join(","),
    });
    assert.ok([200, 204].includes(preflight.status));
    const allowed = (name) => preflight.headers.get(name).toLowerCase().split(/, ?/);
    assert.ok(["*", "https://app.example"].includes(preflight.headers.get("access-control-allow-origin")));
    for (const name of names) assert.ok(allowed("access-control-allow-headers").includes(name), name);
    for (const method of ["get", "head", "post", "patch", "delete"]) {
      assert.ok(allowed("access-control-allow-methods").includes(method), method);
    }
    assert.ok(Number(preflight.headers.get("access-control-max-age")) > 0);
    for (const [path, status] of [["/open", 200], ["/nothing", 404]]) {
      const answer = await raw("GET", path, { Origin: "https://app.example" });
      assert.equal(answer.status, status);
      assert.ok(answer.headers.get("access-control-allow-origin"));
      const exposed = answer.headers.get("access-control-expose-headers").toLowerCase().split(/, ?/);
      for (const name of ["content-range", "preference-applied"]) assert.ok(exposed.includes(name), name);
    }
  });

  everywhere("the shape of now is served as soon as it is there", async (version) => {
    const client = as(version, "service");
    const table = version.isNewest ? "fresh_a" : "fresh_b";
    const from = () => client.from(table);
    await problem(from().select(), 404, "PGRST205");
    const begin = (sql) => stage.query(sql.replaceAll("fresh", table));
    await begin("create table public.fresh (id int primary key, a text); grant all on public.fresh to service_role");
    assert.deepEqual(await data(from().insert({ id: 1, a: "x" }).select()), [{ id: 1, a: "x" }]);
    await begin("alter table public.fresh add b int default 5");
    assert.deepEqual(await data(from().select("b")), [{ b: 5 }]);
    assert.deepEqual(await data(from().select()), [{ id: 1, a: "x", b: 5 }]);
    assert.deepEqual(await data(from().update({ b: 6 }).eq("b", 5).select("b")), [{ b: 6 }]);
    await begin("alter table public.fresh rename a to c");
    assert.deepEqual(await data(from().select("c").eq("c", "x")), [{ c: "x" }]);
    await problem(from().select("a"), 400, "42703");
    await begin("create table public.fresh_parts (id int primary key, of int references public.fresh); " +
      "grant all on public.fresh_parts to service_role; insert into public.fresh_parts values (1, 1)");
    assert.deepEqual(await data(from().select(`id,${table}_parts(id)`)), [{ id: 1, [`${table}_parts`]: [{ id: 1 }] }]);
    await begin("create function public.fresh_call(a int) returns int language sql as 'select a'");
    assert.equal(await data(client.rpc(`${table}_call`, { a: 1 })), 1);
    await begin("drop function public.fresh_call; create function public.fresh_call(b int) returns int language sql as 'select b + 1'");
    assert.equal(await data(client.rpc(`${table}_call`, { b: 1 })), 2);
    await begin("drop table public.fresh_parts, public.fresh");
    await problem(from().select(), 404, "PGRST205");
  });

  everywhere("what takes too long is ended, and what is too large is not begun", async (version) => {
    const client = as(version, "anon");
    await problem(client.rpc("slow", { seconds: 60 }), 500, "57014");
    assert.equal(await data(client.rpc("slow", { seconds: 0.01 })), 1);
    const name = "x".repeat(100_000);
    await problem(client.from("open").insert({ id: 900, name }), 413, "PGRST102");
    const numbers = (length) => Array.from({ length }, (_, n) => n + 1_000_000);
    assert.deepEqual(await data(client.from("open").select().in("id", [...numbers(4000), 1])), [{ id: 1, name: "one" }]);
    const filters = numbers(1001).reduce((asked, n) => asked.neq("id", n), client.from("open").select());
    await problem(filters, 414, "PGRST100");
    // A head of the request that is too long has no answer of ours, but is no success either.
    const { error, status } = await client.from("open").select().in("id", numbers(8000));
    assert.deepEqual([status, error !== null], [431, true]);
  });

  everywhere("whoever hangs up ends his statement", async (version) => {
    const asleep = () =>
      stage.rows(
        `select pid from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'
         and application_name = 'walcast rest'`,
      );
    const until = (count) =>
      within(
        (async () => {
          // Postgres tells of no such event; look again soon.
          while ((await asleep()).length !== count) await new Promise((resolve) => setTimeout(resolve, 5));
        })(),
        () => `${count} sleeping statements`,
        600,
      );
    const control = new AbortController();
    const client = stage.visit(version, "anon");
    const asked = client.rpc("slow", { seconds: 0.6 }).abortSignal(control.signal).then((answer) => answer);
    await until(1);
    control.abort();
    const { data: none, error, status } = await asked;
    assert.deepEqual([none, status], [null, 0]);
    assert.match(error.message, /^AbortError/);
    await until(0);
    assert.deepEqual(await data(client.from("open").select("id")), [{ id: 1 }]);
  });

  everywhere("many at once are each themselves", async (version) => {
    const asked = Array.from({ length: 80 }, (_, n) => {
      const [name, { role, sub = null }] = Object.entries(CALLERS)[n % 4];
      return data(as(version, name).rpc("who", {}, { get: n % 3 === 0 })).then((who) =>
        assert.deepEqual(who, { role, sub }),
      );
    });
    await Promise.all(asked);
  });

  test("behind a gateway that takes the prefix away, the paths are the same without it", async () => {
    const client = stage.visit(newest, "alice");
    // The part of the client that the whole one makes for itself.
    const rest = new client.rest.constructor(stage.server.url, {
      headers: { Authorization: `Bearer ${stage.token(ALICE)}` },
      schema: "public",
    });
    assert.deepEqual(await data(rest.from("notes").select("title")), [{ title: "of alice" }]);
    assert.deepEqual(await data(rest.rpc("who")), { role: "authenticated", sub: ALICE });
    await problem(rest.from("nothing").select(), 404, "PGRST205");
  });

  test("what is served is described to roles that may know", async () => {
    await problem(as(newest, "anon").getOpenApiSpec(), 401, "42501");
    await problem(as(newest, "alice").getOpenApiSpec(), 403, "42501");
  });
});

describe("rows of a database in trouble", () => {
  const stage = new Rows(SCHEMA, {
    PGRST_DB_POOL: "1",
    PGRST_DB_ANON_ROLE: "nobody",
    WALCAST_REST_WAIT_TIMEOUT_MS: "2000",
  });
  const limit = async (connections) => {
    const format = "select format('alter database %I connection limit %s', current_database(), $1::int) as sql";
    const [{ sql }] = await stage.query(format, [connections]);
    await stage.query(sql);
  };
  /** Nobody gets in from now on, and whoever is in is out. */
  const shut = async () => {
    await limit(0);
    await stage.query(
      `select pg_terminate_backend(pid, 5000) from pg_stat_activity
       where datname = current_database() and application_name = 'walcast rest'`,
    );
  };
  const mend = () => limit(-1);

  test("without an anonymous role, whoever has no token is told to bring one", async () => {
    const answer = await fetch(`${stage.server.url}/rest/v1/open`);
    assert.deepEqual([answer.status, (await answer.json()).code], [401, "PGRST302"]);
    assert.equal(answer.headers.get("www-authenticate"), "Bearer");
    for (const version of VERSIONS) await data(stage.visitor(version, "anon").from("open").select(), 200);
  });

  everywhere("whoever finds no connection in time is told", async (version) => {
    const client = stage.visit(version, "anon");
    await stage.query("begin; lock table public.queue in access exclusive mode");
    let asked;
    try {
      asked = client.from("queue").select().then((answer) => answer);
      const waits = "select pid from pg_locks where relation = 'public.queue'::regclass and not granted";
      await within(
        (async () => {
          while ((await stage.query(waits)).length === 0) await new Promise((resolve) => setTimeout(resolve, 5));
        })(),
        () => "a statement that waits",
      );
      await problem(stage.visit(version, "anon").from("open").select(), 504, "PGRST003");
    } finally {
      await stage.query("rollback");
    }
    assert.deepEqual(await data(asked), []);
  });

  everywhere("a database that lets nobody in is told as such, and asked again by a client that can", async (version) => {
    const client = stage.visit(version, "anon");
    await shut();
    try {
      await problem(client.from("open").insert({ id: 7 }), 503, "53300");
      assert.ok(Number(last(client).headers.get("retry-after")) > 0);
      if (version.isNewest) {
        const asked = data(client.from("open").select("id"), 200);
        const refused = (async () => {
          while (client.answers.length < 2) await new Promise((resolve) => setTimeout(resolve, 5));
        })();
        await within(refused, () => "a refused answer");
        assert.equal(last(client).status, 503);
        await mend();
        assert.deepEqual(await asked, [{ id: 1 }]);
        assert.equal(last(client).sent.get("x-retry-count"), "1");
      } else {
        await problem(client.from("open").select("id"), 503, "53300");
      }
    } finally {
      await mend();
    }
    assert.deepEqual(await data(client.from("open").select("id")), [{ id: 1 }]);
  });
});
