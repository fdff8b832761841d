// Calling functions with .rpc(): arguments, what comes back in which shape, and which function is meant.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { ALICE, BOB, VERSIONS } from "./harness.mjs";
import { Rows, data, everywhere, last, problem } from "./rest.mjs";

const SCHEMA = `
  create table public.items (id int primary key, owner uuid, name text, price numeric);
  insert into public.items values
    (1, '${ALICE}', 'one', 1.5), (2, '${ALICE}', 'two', null), (3, '${BOB}', 'three', 3), (4, null, 'four', 4);
  alter table public.items enable row level security;
  create policy own on public.items to authenticated using (owner = auth.uid() or owner is null);
  grant select, insert, update on public.items to authenticated, service_role;
  create table public.said (text text);
  grant insert, select on public.said to anon;
  create type public.point3 as (x int, y int, z text);
  create type public.mood as enum ('sad', 'glad');

  create function public.add(a int, b int default 10) returns int language sql immutable as 'select a + b';
  create function public.hello() returns text language sql stable as $$ select 'hello' $$;
  create function public.nothing() returns void language sql as '';
  create function public.none() returns text language sql stable as 'select null::text';
  create function public.whole(id int) returns public.items language sql stable as
    'select * from public.items where items.id = whole.id';
  create function public.made(x int) returns public.point3 language sql immutable as
    $$ select row(x, x + 1, 'z')::public.point3 $$;
  create function public.items_from(first int) returns setof public.items language sql stable as
    'select * from public.items where id >= first';
  create function public.pairs(n int) returns table (number int, word text) language sql immutable as
    $$ select i, 'w' || i from generate_series(1, n) as i $$;
  create function public.squares(n int) returns setof int language sql immutable as
    'select i * i from generate_series(1, n) as i';
  create function public.out_of(n int, out half int, out rest int) language sql immutable as
    'select n / 2, n % 2';
  create function public.words(n int) returns table (word text) language sql immutable as
    $$ select 'w' || i from generate_series(1, n) as i $$;
  create function public.half(n int, out half int) language sql immutable as 'select n / 2';
  create function public.listed() returns jsonb language sql immutable as $$ select '[{"a": 1}, 2]'::jsonb $$;
  create function public.echo(
    i int default null, f float8 default null, b boolean default null, t text default null, d date default null,
    at timestamptz default null, u uuid default null, m public.mood default null, j json default null,
    jb jsonb default null, ii int[] default null, tt text[] default null, p public.point3 default null
  ) returns json language sql stable as $$
    select json_strip_nulls(json_build_object('i', i, 'f', f, 'b', b, 't', t, 'd', d, 'at', at, 'u', u, 'm', m,
      'j', j, 'jb', jb, 'ii', ii, 'tt', tt, 'p', p))
  $$;
  create function public.sum_of(variadic numbers int[]) returns bigint language sql immutable as
    'select sum(n) from unnest(numbers) as n';
  create function public."Odd Function"("a b" text, "c,d" int) returns text language sql immutable as
    $$ select "a b" || "c,d" $$;
  create function public.twice(a int) returns int language sql immutable as 'select 2 * a';
  create function public.twice(a text) returns text language sql immutable as 'select a || a';
  create function public.twice(a int, times int) returns int language sql immutable as 'select times * a';
  create function public.say(text text) returns bigint language sql as
    'insert into public.said values (text); select count(*) from public.said where said.text = say.text';
  create function public.rename(id int, name text) returns setof public.items language sql as
    'update public.items set name = rename.name where items.id = rename.id returning *';
  create function public.rename_all(name text) returns setof public.items language sql as
    'update public.items set name = rename_all.name returning *';
  create function public.who() returns json language sql stable as $$
    select json_build_object('role', current_user, 'sub', auth.uid(), 'method', current_setting('request.method'),
      'path', current_setting('request.path'),
      'tenant', current_setting('request.headers')::json ->> 'x-tenant') $$;
  create function public.secret() returns int language sql as 'select 1';
  revoke execute on function public.secret from public;
  create function public.body(json) returns json language sql immutable as 'select $1';
  create schema other;
  create function other.hello() returns text language sql immutable as $$ select 'from elsewhere' $$;
  grant usage on schema other to anon;
`;

describe("calling functions", () => {
  const stage = new Rows(SCHEMA, { PGRST_DB_SCHEMAS: "public,other" });
  const as = (version, caller = "anon") => stage.visitor(version, caller);
  const READING = [{}, { get: true }];

  everywhere("arguments are given by name, and the others are as by default", async (version) => {
    for (const options of READING) {
      const call = (name, args) => data(as(version).rpc(name, args, options), 200);
      assert.equal(await call("add", { a: 1, b: 2 }), 3);
      assert.equal(await call("add", { a: 1 }), 11);
      assert.equal(await call("hello"), "hello");
      assert.equal(await call("hello", {}), "hello");
      assert.equal(await call("Odd Function", { "a b": "x, ", "c,d": 7 }), "x, 7");
      assert.equal(last(as(version)).method, options.get ? "GET" : "POST");
    }
    assert.equal(await data(as(version).rpc("add", { a: 1, b: null })), null);
    assert.equal(await data(as(version).rpc("add", { a: 1, b: undefined })), 11);
  });

  everywhere("each argument is read as its type", async (version) => {
    const values = {
      i: -5, f: 1.5, b: true, t: `a,b "c" \\ ✓ & %+`, d: "2026-02-28", at: "2026-01-01T00:00:00+00:00",
      u: ALICE, m: "glad", ii: [1, 2, 3], tt: ["a", "b c"],
    };
    for (const options of READING) {
      assert.deepEqual(await data(as(version).rpc("echo", values, options)), values);
    }
    const only = { j: { a: [1, { b: "c" }] }, jb: [1, "2", { three: null }], p: { x: 1, y: 2, z: "three" }, tt: ['q"', "c,d", "{}"] };
    const found = await data(as(version).rpc("echo", only));
    assert.deepEqual(found, { ...only, jb: [1, "2", {}] });
    const text = as(version).rpc("echo", { j: '{"a":1}', jb: "[1]" }, { get: true });
    assert.deepEqual(await data(text), { j: { a: 1 }, jb: [1] });
    assert.equal(await data(as(version).rpc("sum_of", { numbers: [1, 2, 3] })), 6);
    assert.equal(await data(as(version).rpc("sum_of", { numbers: [1, 2, 3] }, { get: true })), 6);
    for (const args of [{ i: "many" }, { d: "2026-02-30" }, { ii: "no array" }, { m: "odd" }]) {
      for (const options of READING) {
        const { error, status } = await as(version).rpc("echo", args, options);
        assert.match(error?.code ?? "none", /^22/, JSON.stringify(args));
        assert.equal(status, 400);
      }
    }
  });

  everywhere("a function returns a value, an object, or an array", async (version) => {
    for (const options of READING) {
      const call = (name, args) => as(version, "alice").rpc(name, args, options);
      assert.equal(await data(call("none")), null);
      const one = { id: 1, owner: ALICE, name: "one", price: 1.5 };
      assert.deepEqual(await data(call("whole", { id: 1 })), one);
      assert.deepEqual(await data(call("made", { x: 1 })), { x: 1, y: 2, z: "z" });
      assert.deepEqual(await data(call("out_of", { n: 7 })), { half: 3, rest: 1 });
      assert.deepEqual(await data(call("half", { n: 7 })), { half: 3 });
      assert.deepEqual(await data(call("words", { n: 2 })), [{ word: "w1" }, { word: "w2" }]);
      assert.deepEqual(await data(call("listed")), [{ a: 1 }, 2]);
      // Of what is no set there is one, always.
      assert.equal(await data(call("add", { a: 1, b: 2 }).single()), 3);
      assert.equal(await data(call("add", { a: 1, b: 2 }).select()), 3);
      assert.equal(await data(call("add", { a: 1, b: 2 }).maybeSingle()), 3);
      assert.deepEqual(await data(call("whole", { id: 1 }).select("name").single()), { name: "one" });
      assert.deepEqual(await data(call("squares", { n: 3 })), [1, 4, 9]);
      assert.equal(await data(call("squares", { n: 1 }).single()), 1);
      assert.deepEqual(await data(call("squares", { n: 0 })), []);
      assert.deepEqual(await data(call("pairs", { n: 2 })), [{ number: 1, word: "w1" }, { number: 2, word: "w2" }]);
    }
    const nothing = await as(version).rpc("nothing");
    assert.deepEqual([nothing.data, nothing.error, nothing.status], [null, null, 204]);
  });

  everywhere("rows of a function are selected, filtered, ordered and cut like a table's", async (version) => {
    for (const options of READING) {
      const call = (caller = "alice") => as(version, caller).rpc("items_from", { first: 1 }, options);
      for (const caller of ["alice", "bob", "service"]) {
        const expected = await stage.as(caller, "select * from items order by id");
        assert.deepEqual(await data(call(caller).order("id")), expected, caller);
      }
      const some = call().select("id,label:name").neq("name", "two").gt("id", 0).order("id", { ascending: false });
      assert.deepEqual(await data(some), [{ id: 4, label: "four" }, { id: 1, label: "one" }]);
      assert.deepEqual(await data(call().select("id").order("id").range(1, 1)), [{ id: 2 }]);
      assert.deepEqual(await data(call().select("id").or("id.eq.1,price.is.null").order("id")), [{ id: 1 }, { id: 2 }]);
      assert.deepEqual(await data(call().select("name").eq("id", 2).single()), { name: "two" });
      assert.deepEqual(await data(call().select("name").eq("id", 2).maybeSingle()), { name: "two" });
      assert.equal(await data(call().eq("id", 3).maybeSingle()), null);
      await problem(call().single(), 406, "PGRST116");
      const words = as(version).rpc("pairs", { n: 5 }, options).select("word").in("number", [2, 4]).limit(1);
      assert.deepEqual(await data(words), [{ word: "w2" }]);
    }
  });

  everywhere("rows of a function are counted", async (version) => {
    for (const options of READING) {
      const call = (more) => as(version, "alice").rpc("items_from", { first: 1 }, { ...options, ...more });
      const page = await call({ count: "exact" }).order("id").limit(2);
      assert.deepEqual([page.count, page.data.length, page.status, page.error], [3, 2, 206, null]);
      const whole = await call({ count: "exact" }).gt("id", 1);
      assert.deepEqual([whole.count, whole.status], [2, 200]);
    }
    const head = await as(version, "alice").rpc("items_from", { first: 1 }, { head: true, count: "exact" });
    assert.deepEqual([head.count, head.data, head.error, head.status], [3, null, null, 200]);
    assert.equal(last(as(version, "alice")).method, "HEAD");
  });

  test("HEAD with an object among the arguments is a POST that returns nothing", async () => {
    // The oldest writes "[object Object]" into the URL, whoever serves it.
    const client = as(VERSIONS.find(({ isNewest }) => isNewest));
    const answer = await client.rpc("echo", { j: { a: 1 } }, { head: true, count: "exact" });
    assert.deepEqual([answer.error, answer.data, answer.status, answer.count], [null, null, 204, 1]);
    assert.equal(last(client).method, "POST");
    assert.match(last(client).headers.get("preference-applied"), /return=minimal/);
  });

  everywhere("a function that writes is called by POST alone", async (version) => {
    const text = `said by ${version.name}`;
    assert.equal(await data(as(version).rpc("say", { text }), 200), 1);
    assert.match(last(as(version)).headers.get("feed-lsn"), /\//);
    await problem(as(version).rpc("say", { text }, { get: true }), 405, "25006");
    const head = await as(version).rpc("say", { text }, { head: true });
    assert.equal(head.status, 405);
    assert.equal(await data(as(version).rpc("say", { text })), 2);
    const renamed = as(version, "alice").rpc("rename", { id: 1, name: "one" }).select("id,name").single();
    assert.deepEqual(await data(renamed), { id: 1, name: "one" });
    // Under policies, and what is not one row is undone.
    assert.deepEqual(await data(as(version, "bob").rpc("rename", { id: 1, name: "bobs" })), []);
    await problem(as(version, "alice").rpc("rename_all", { name: "lost" }).single(), 406, "PGRST116");
    await problem(as(version, "alice").rpc("rename_all", { name: "lost" }).maxAffected(2), 400, "PGRST124");
    assert.deepEqual(await stage.rows("select id from items where name in ('lost', 'bobs')"), []);
  });

  everywhere("a function sees who calls it, and how", async (version) => {
    for (const [caller, role, sub] of [
      ["anon", "anon", null],
      ["alice", "authenticated", ALICE],
      ["bob", "authenticated", BOB],
      ["service", "service_role", null],
    ]) {
      const client = stage.visit(version, caller, { headers: { "X-Tenant": "seven" } });
      const expected = { role, sub, path: "/rpc/who", tenant: "seven" };
      assert.deepEqual(await data(client.rpc("who")), { ...expected, method: "POST" });
      assert.deepEqual(await data(client.rpc("who", {}, { get: true })), { ...expected, method: "GET" });
    }
  });

  everywhere("another schema's functions are called by its name", async (version) => {
    for (const options of READING) {
      assert.equal(await data(as(version).schema("other").rpc("hello", {}, options)), "from elsewhere");
      await problem(as(version).schema("other").rpc("add", { a: 1 }, options), 404, "PGRST202");
      await problem(as(version).schema("pg_catalog").rpc("now", {}, options), 406, "PGRST106");
    }
  });

  everywhere("which function is meant is told by the names of its arguments", async (version) => {
    for (const options of READING) {
      const call = (name, args) => as(version).rpc(name, args, options);
      assert.equal(await data(call("twice", { a: 2, times: 5 })), 10);
      const several = await problem(call("twice", { a: 2 }), 300, "PGRST203");
      assert.match(several.message, /public\.twice\(a => integer\), public\.twice\(a => text\)/);
      assert.ok(several.hint);
      const unknown = await problem(call("ad", { a: 1 }), 404, "PGRST202");
      assert.match(unknown.details, /public\.ad with parameter a/);
      assert.match(unknown.hint, /public\.add/);
      const other = await problem(call("add", { a: 1, c: 2 }), 404, "PGRST202");
      assert.match(other.message, /public\.add\(a, c\)/);
      assert.match(other.hint, /public\.add\(a, b\)/);
      await problem(call("add", { b: 1 }), 404, "PGRST202");
      await problem(call("add", {}), 404, "PGRST202");
    }
  });

  everywhere("what cannot be called is told why", async (version) => {
    for (const [asked, status, code] of [
      [as(version).rpc("secret"), 401, "42501"],
      [as(version, "alice").rpc("secret"), 403, "42501"],
      [as(version).rpc("body", { a: 1 }), 400, "PGRST127"],
      [as(version).rpc("add", [1, 2]), 400, "PGRST127"],
      [as(version).rpc("pairs", { n: 1 }).select("nothing"), 400, "42703"],
      [as(version).rpc("pairs", { n: 1 }).eq("nothing", 1), 400, "42703"],
      [as(version).rpc("echo", { t: "a\u0000b" }), 400, "22P05"],
      [as(version).rpc("echo", { t: "a\u0000b" }, { get: true }), 400, "PGRST100"],
      [as(version, "alice").rpc("items_from", { first: 1 }).csv(), 400, "PGRST127"],
    ]) {
      await problem(asked, status, code);
    }
  });

  test("a call without a body or its type is one without arguments", async () => {
    const call = (name, init = {}) => fetch(`${stage.server.url}/rest/v1/rpc/${name}`, { method: "POST", ...init });
    assert.equal(await (await call("hello")).json(), "hello");
    assert.equal(await (await call("hello", { body: new Blob(["{}"]) })).json(), "hello");
    assert.equal(await (await call("add", { body: new Blob(['{"a":1}']) })).json(), 11);
  });
});
