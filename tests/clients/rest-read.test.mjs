// Reading rows with .from().select(): lists, filters, order, pages, counts. Each question is also asked
// in SQL, as the same caller.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { ALICE, BOB, VERSIONS } from "./harness.mjs";
import { CALLERS, Rows, data, everywhere, last, problem } from "./rest.mjs";

const ODD = `a,b (c) "d" \\ e & f=g % h + i; {j} 'k'`;
const ROWS_MAX = 50;
const quoted = (text) => `'${text.replaceAll("'", "''")}'`;

// Four rows are Alice's, four Bob's, and four everybody's.
const SCHEMA = `
  create type public.mood as enum ('sad', 'fine', 'glad');
  create table public.things (
    id int primary key, owner uuid, title text, body text,
    n int, price numeric(10, 2), big bigint, done boolean, day date, at timestamptz, code uuid,
    mood public.mood, tags text[], nums int[], data jsonb, raw json, span int4range,
    during tstzrange, "Odd Name" text, "dot.ted" int,
    words tsvector generated always as (to_tsvector('english', coalesce(body, ''))) stored
  );
  alter table public.things enable row level security;
  create policy "of everybody" on public.things for select using (owner is null);
  create policy own on public.things for select to authenticated using (owner = auth.uid());
  grant select on public.things to anon, authenticated, service_role;
  insert into public.things (
    id, owner, title, body, n, price, big, done, day, at, code, mood, tags, nums, data, raw, span,
    during, "Odd Name", "dot.ted"
  ) values
    (1, '${ALICE}', 'Apple juice', 'The quick brown fox', 1, 1.50, 9007199254740993, true, '2026-01-01',
     '2026-01-01 00:00:00+00', '11111111-1111-4111-8111-111111111111', 'glad', '{red,sweet}', '{1,2,3}',
     '{"colour": "red", "size": 10, "deep": {"list": [{"a": 1}, {"a": 2}]}}', '{"z": 1.50}', '[1,5)',
     '[2026-01-01,2026-02-01)', 'x', 1),
    (2, '${ALICE}', 'apple pie', 'jumped over the lazy dogs', 2, 2.25, 2, false, '2026-02-01',
     '2026-02-01 12:00:00+02', null, 'sad', '{}', '{}', '{"colour": "green", "size": 9}', null, '[5,9)',
     null, null, 2),
    (3, '${ALICE}', ${quoted(ODD)}, null, 3, null, 3, null, null, null, null, null, null, null, null, null,
     null, null, 'y', 3),
    (4, '${ALICE}', 'Zoë ✓', 'foxes and dogs', null, 4.00, -4, true, '2025-12-31', '2025-12-31 23:59:59+00',
     null, 'fine', '{"a b","c,d"}', '{4}', '{"colour": null}', null, 'empty', null, 'x', null),
    (5, '${BOB}', 'pear', 'a fox', 5, 5.00, 5, false, '2026-03-01', '2026-03-01 00:00:00+00', null, 'glad',
     '{green}', '{5,6}', '{"colour": "red", "size": 2}', null, '[10,20)', null, 'x', null),
    (6, '${BOB}', 'plum', null, 6, 6.00, 6, true, null, null, null, null, '{red}', null, '[1, 2]', null,
     '[1,100)', null, null, 6),
    (7, '${BOB}', 'PEACH 100%', 'the dogs', 7, 7.00, 7, null, '2026-01-01', null,
     '77777777-7777-4777-8777-777777777777', 'sad', '{sweet,sour}', '{1}', '"text"', null, null, null, 'z', null),
    (8, '${BOB}', '', '', 8, 0, 0, false, '2026-01-01', '2026-01-01 00:00:00+00', null, 'fine', null, '{1,2}',
     '{}', null, '(,3]', '[2026-01-15,)', '', null),
    (9, null, 'apple', 'Quick dogs', 1, 9.99, 9, true, '2026-01-09', '2026-01-09 09:09:09+00', null, 'fine',
     '{red,green}', '{9,1}', '{"colour": "red", "size": 10}', '{"z": 9}', '[3,7)', '[2026-01-10,2026-01-12)',
     'x', 9),
    (10, null, 'under_score', 'brown dog', 10, 10.10, 10, false, '2026-01-10', '2026-01-10 10:10:10+00',
     'aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa', 'glad', '{sweet}', '{2}', '{"colour": "blue", "size": 3}',
     null, '[9,10)', null, null, 10),
    (11, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null,
     null, null),
    (12, null, 'apple juice', 'a quick fox', 12, 1.50, 12, true, '2026-12-31', '2026-12-31 12:12:12+00', null,
     'glad', '{red,sweet,sour}', '{1,2,12}', '{"colour": "green", "size": 10, "list": [3, 4]}', null, '[20,30)',
     '[2026-06-01,2026-07-01)', 'x', 12);
  create table public.many (id int primary key, even boolean);
  insert into public.many select n, n % 2 = 0 from generate_series(1, 120) as n;
  grant select on public.many to anon, authenticated, service_role;
  create view public.glad as select id, title from public.things where mood = 'glad' and owner is null;
  grant select on public.glad to anon;
  create schema other;
  create table other.things (id int primary key, name text);
  insert into other.things values (1, 'elsewhere');
  grant usage on schema other to anon, authenticated, service_role;
  grant select on other.things to anon;
  create schema hidden;
  create table hidden.things (id int primary key);
  grant usage on schema hidden to anon;
  grant select on hidden.things to anon;
  analyze public.many;
  create table public.parted (id int, part text, primary key (id, part)) partition by list (part);
  create table public.parted_a partition of public.parted for values in ('a');
  create table public.parted_b partition of public.parted for values in ('b');
  insert into public.parted values (1, 'a'), (2, 'b'), (3, 'b');
  create materialized view public.kept as select part, count(*) as rows from public.parted group by part;
  grant select on public.parted, public.kept to anon;
`;

// What is selected, and the same in SQL.
const LISTS = [
  ["*", "*"],
  ["id", "id"],
  [" id ,\n title\t", "id, title"],
  ["id,name:title,again:title", `id, title as name, title as again`],
  ["id,n::text,price::float8,day::timestamptz", "id, n::text, price::float8, day::timestamptz"],
  ["id,as_text:price::text", "id, price::text as as_text"],
  ["id,data->colour", "id, data->'colour' as colour"],
  ["id,data->>colour", "id, data->>'colour' as colour"],
  ["id,hue:data->>colour", "id, data->>'colour' as hue"],
  ["id,data->deep->list->1->a", "id, data->'deep'->'list'->1->'a' as a"],
  ["id,first:data->deep->list->0,last:data->deep->list->-1->>a",
    "id, data->'deep'->'list'->0 as first, data->'deep'->'list'->-1->>'a' as last"],
  ["id,size:data->>size::int", "id, (data->>'size')::int as size"],
  ["id,raw->z,raw->>z", `id, raw->'z' as z, raw->>'z' as z`],
  ["id,first:tags->0,last:tags->>-1", "id, to_jsonb(tags)->0 as first, to_jsonb(tags)->>-1 as last"],
  [`id,"Odd Name"`, `id, "Odd Name"`],
  [`id,odd:"Odd Name",dotted:"dot.ted"`, `id, "Odd Name" as odd, "dot.ted" as dotted`],
  ["id,big,price,at,code,mood,tags,nums,span,during", "id,big,price,at,code,mood,tags,nums,span,during"],
];

// Who filters how, and the same in SQL. Each leaves some rows out and keeps some.
const FILTERS = [
  ["eq: a number", (q) => q.eq("n", 1), "n = 1"],
  ["eq: text of every kind of character", (q) => q.eq("title", ODD), `title = ${quoted(ODD)}`],
  ["eq: text beyond ASCII", (q) => q.eq("title", "Zoë ✓"), "title = 'Zoë ✓'"],
  ["eq: empty text", (q) => q.eq("title", ""), "title = ''"],
  ["eq: a boolean", (q) => q.eq("done", true), "done"],
  ["eq: a uuid", (q) => q.eq("code", "77777777-7777-4777-8777-777777777777"), "n = 7"],
  ["eq: an enum", (q) => q.eq("mood", "glad"), "mood = 'glad'"],
  ["eq: a date", (q) => q.eq("day", "2026-01-01"), "day = '2026-01-01'"],
  ["eq: a time with another offset", (q) => q.eq("at", "2026-02-01T11:00:00+01:00"), "id = 2"],
  ["eq: a number beyond 2^53", (q) => q.eq("big", "9007199254740993"), "big = 9007199254740993"],
  ["eq: inside JSON", (q) => q.eq("data->>colour", "red"), "data->>'colour' = 'red'"],
  ["eq: JSON inside JSON", (q) => q.eq("data->size", 10), "data->'size' = '10'"],
  ["eq: deep inside JSON", (q) => q.eq("data->deep->list->0->>a", 1), "id = 1"],
  ["eq: an odd name", (q) => q.eq("Odd Name", "x"), `"Odd Name" = 'x'`],
  ["eq: a name with a dot", (q) => q.eq('"dot.ted"', 9), `"dot.ted" = 9`],
  ["eq: an array", (q) => q.eq("tags", "{red,sweet}"), "tags = '{red,sweet}'"],
  ["neq", (q) => q.neq("n", 1), "n <> 1"],
  ["gt", (q) => q.gt("price", 4), "price > 4"],
  ["gte", (q) => q.gte("day", "2026-01-09"), "day >= '2026-01-09'"],
  ["lt", (q) => q.lt("big", 0), "big < 0"],
  ["lte", (q) => q.lte("title", "apple"), "title <= 'apple'"],
  ["gte and lt: one column twice", (q) => q.gte("n", 2).lt("n", 7), "n >= 2 and n < 7"],
  ["like", (q) => q.like("title", "apple%"), "title like 'apple%'"],
  ["like: a star for a percent sign", (q) => q.like("title", "*juice"), "title like '%juice'"],
  ["like: an escape", (q) => q.like("title", "under\\_%"), "title like 'under\\_%'"],
  ["like: a percent sign as such", (q) => q.like("title", "%100\\%"), "title like '%100\\%'"],
  ["ilike", (q) => q.ilike("title", "APPLE%"), "title ilike 'APPLE%'"],
  ["likeAllOf", (q) => q.likeAllOf("title", ["a%", "%e"]), "title like all ('{a%,%e}')"],
  ["likeAnyOf", (q) => q.likeAnyOf("title", ["p%", "A%"]), "title like any ('{p%,A%}')"],
  ["ilikeAllOf", (q) => q.ilikeAllOf("title", ["A%", "%JUICE"]), "title ilike all ('{A%,%JUICE}')"],
  ["ilikeAnyOf", (q) => q.ilikeAnyOf("title", ["P*", "zo*"]), "title ilike any ('{P%,zo%}')"],
  ["match operator", (q) => q.filter("title", "match", "^a.*e$"), "title ~ '^a.*e$'"],
  ["imatch operator", (q) => q.filter("title", "imatch", "^A.*E$"), "title ~* '^A.*E$'"],
  ["regexMatch", (q) => q.regexMatch("title", "^(a|p)p?l"), "title ~ '^(a|p)p?l'", "newest"],
  ["regexIMatch", (q) => q.regexIMatch("title", "^P"), "title ~* '^P'", "newest"],
  ["is null", (q) => q.is("done", null), "done is null"],
  ["is true", (q) => q.is("done", true), "done is true"],
  ["is false", (q) => q.is("done", false), "done is false"],
  ["is unknown", (q) => q.filter("done", "is", "unknown"), "done is unknown"],
  ["is not null, in one word", (q) => q.filter("n", "is", "not_null"), "n is not null"],
  ["isdistinct", (q) => q.filter("n", "isdistinct", 1), "n is distinct from 1"],
  ["isDistinct", (q) => q.isDistinct("mood", "glad"), "mood is distinct from 'glad'", "newest"],
  ["in: numbers", (q) => q.in("n", [1, 5, 99]), "n in (1, 5, 99)"],
  ["in: words with commas and parentheses",
    (q) => q.in("title", ["apple", "a,b", "(c)", "plum"]), "title in ('apple', 'plum')"],
  ["in: quotes and backslashes", (q) => q.filter("title", "in", `(${JSON.stringify(ODD)})`),
    `title = ${quoted(ODD)}`],
  ["in: inside JSON", (q) => q.in("data->>colour", ["red", "blue"]), "data->>'colour' in ('red', 'blue')"],
  ["in: JSON", (q) => q.in("data->size", [9, 10]), "data->'size' in ('9', '10')"],
  ["in: words that mean something elsewhere", (q) => q.in("title", ["null", "NULL", "{}", "pear", ""]),
    "title in ('null', 'NULL', '{}', 'pear', '')"],
  ["in: enums", (q) => q.in("mood", ["sad", "fine"]), "mood in ('sad', 'fine')"],
  ["in: uuids", (q) => q.in("owner", [ALICE, BOB]), "owner is not null"],
  ["notIn", (q) => q.notIn("n", [1, 2]), "n not in (1, 2)", "newest"],
  ["contains: an array", (q) => q.contains("tags", ["red", "sweet"]), "tags @> '{red,sweet}'"],
  ["contains: an array of quoted words", (q) => q.contains("tags", ['"c,d"']), `tags @> '{"c,d"}'`],
  ["contains: an object", (q) => q.contains("data", { colour: "red", size: 10 }),
    `data @> '{"colour": "red", "size": 10}'`],
  ["contains: a range", (q) => q.contains("span", "[3,5)"), "span @> '[3,5)'::int4range"],
  ["containedBy: an array", (q) => q.containedBy("nums", [1, 2, 3]), "nums <@ '{1,2,3}'"],
  ["containedBy: an object", (q) => q.containedBy("data", { colour: "red", size: 10, more: 1 }),
    `data <@ '{"colour": "red", "size": 10, "more": 1}'`],
  ["containedBy: a range", (q) => q.containedBy("span", "[1,10)"), "span <@ '[1,10)'::int4range"],
  ["rangeGt", (q) => q.rangeGt("span", "[1,5)"), "span >> '[1,5)'"],
  ["rangeGte", (q) => q.rangeGte("span", "[5,9)"), "span &> '[5,9)'"],
  ["rangeLt", (q) => q.rangeLt("span", "[9,10)"), "span << '[9,10)'"],
  ["rangeLte", (q) => q.rangeLte("span", "[2,9)"), "span &< '[2,9)'"],
  ["rangeAdjacent", (q) => q.rangeAdjacent("span", "[9,20)"), "span -|- '[9,20)'"],
  ["overlaps: an array", (q) => q.overlaps("tags", ["sour", "green"]), "tags && '{sour,green}'"],
  ["overlaps: a range", (q) => q.overlaps("during", "[2026-01-11,2026-01-20)"),
    "during && '[2026-01-11,2026-01-20)'"],
  ["textSearch: a vector", (q) => q.textSearch("words", "'fox' & !'lazy'"),
    "words @@ to_tsquery($$'fox' & !'lazy'$$)"],
  ["textSearch: text", (q) => q.textSearch("body", "quick"), "to_tsvector(body) @@ to_tsquery('quick')"],
  ["textSearch: plain", (q) => q.textSearch("words", "quick dogs", { type: "plain", config: "english" }),
    "words @@ plainto_tsquery('english', 'quick dogs')"],
  ["textSearch: phrase", (q) => q.textSearch("words", "brown fox", { type: "phrase", config: "english" }),
    "words @@ phraseto_tsquery('english', 'brown fox')"],
  ["textSearch: websearch", (q) => q.textSearch("words", '"quick fox" or lazy', { type: "websearch" }),
    `words @@ websearch_to_tsquery('"quick fox" or lazy')`],
  ["textSearch: a configuration", (q) => q.textSearch("body", "the", { config: "simple" }),
    "to_tsvector('simple', body) @@ to_tsquery('simple', 'the')"],
  ["match: several columns", (q) => q.match({ done: true, mood: "glad" }), "done and mood = 'glad'"],
  ["not is null", (q) => q.not("title", "is", null), "title is not null"],
  ["not eq", (q) => q.not("n", "eq", 1), "not n = 1"],
  ["not in", (q) => q.not("n", "in", "(1,2,3)"), "n not in (1, 2, 3)"],
  ["not like", (q) => q.not("title", "like", "%apple%"), "title not like '%apple%'"],
  ["not contains", (q) => q.not("tags", "cs", "{red}"), "not tags @> '{red}'"],
  ["not text search", (q) => q.not("words", "plfts(english)", "dogs"),
    "not words @@ plainto_tsquery('english', 'dogs')"],
  ["or", (q) => q.or("n.eq.1,done.is.false"), "n = 1 or done is false"],
  ["or: an and inside", (q) => q.or("and(n.gt.5,n.lt.9),title.eq.apple"),
    "n > 5 and n < 9 or title = 'apple'"],
  ["or: trees that are negated", (q) => q.or("not.and(n.gt.2,done.is.true),n.not.in.(1,2,5,6,7,8,10)"),
    "not (n > 2 and done is true) or n not in (1, 2, 5, 6, 7, 8, 10)"],
  ["or: quoted values", (q) => q.or(`title.eq.${JSON.stringify(ODD)},n.eq.5`),
    `title = ${quoted(ODD)} or n = 5`],
  ["or: arrays, ranges, JSON", (q) => q.or('tags.cs.{red,sweet},span.ov."[10,11)",data->>colour.eq.blue'),
    "tags @> '{red,sweet}' or span && '[10,11)' or data->>'colour' = 'blue'"],
  ["or: text search and lists", (q) => q.or("words.wfts(english).lazy,n.in.(1,10)"),
    "words @@ websearch_to_tsquery('english', 'lazy') or n in (1, 10)"],
  ["or, twice: both hold", (q) => q.or("n.eq.1,n.eq.2").or("done.is.true,mood.eq.sad"),
    "(n = 1 or n = 2) and (done or mood = 'sad')"],
  ["or: an or inside an and", (q) => q.or("and(or(n.eq.1,n.eq.2),done.is.true)"),
    "(n = 1 or n = 2) and done"],
  ["filter: negated in the operator", (q) => q.filter("n", "not.gt", 5), "not n > 5"],
  ["filter: any of a list", (q) => q.filter("n", "eq(any)", "{1,5,12}"), "n = any ('{1,5,12}')"],
  ["filter: all of a list", (q) => q.filter("n", "gt(all)", "{1,5}"), "n > all ('{1,5}')"],
];

const ORDERS = [
  ["up, as if nothing were said", (q) => q.order("n").order("id"), "n, id"],
  ["down", (q) => q.order("price", { ascending: false }).order("id"), "price desc, id"],
  ["down, nulls last", (q) => q.order("n", { ascending: false, nullsFirst: false }).order("id"),
    "n desc nulls last, id"],
  ["up, nulls first", (q) => q.order("day", { nullsFirst: true }).order("id", { ascending: false }),
    "day nulls first, id desc"],
  ["inside JSON", (q) => q.order("data->size").order("data->>colour", { ascending: false }).order("id"),
    "data->'size', data->>'colour' desc, id"],
  ["by an odd name", (q) => q.order("Odd Name").order("id"), `"Odd Name", id`],
  ["by what is not shown, and a page of it", (q) => q.order("big", { ascending: false }).range(1, 4),
    "big desc offset 1 limit 4"],
];

describe("reading rows", () => {
  const stage = new Rows(SCHEMA, {
    PGRST_DB_SCHEMAS: "public,other",
    PGRST_DB_MAX_ROWS: String(ROWS_MAX),
  });
  /** Everybody at every client gets for `build` what `sql` says to the same caller. */
  const same = async (build, sql, only) => {
    for (const caller of Object.keys(CALLERS)) {
      const expected = await stage.as(caller, sql);
      for (const version of VERSIONS) {
        if (only === "newest" && !version.isNewest) continue;
        const found = await data(build(stage.visitor(version, caller)), 200);
        assert.deepEqual(found, expected, `${version.name} as ${caller}`);
      }
    }
  };

  test("each caller sees what the policies let him see", async () => {
    const ids = (from, to) => Array.from({ length: to - from + 1 }, (_, n) => from + n);
    const seen = {
      anon: ids(9, 12),
      alice: [...ids(1, 4), ...ids(9, 12)],
      bob: ids(5, 12),
      service: ids(1, 12),
    };
    for (const version of VERSIONS) {
      for (const [caller, expected] of Object.entries(seen)) {
        const rows = await data(stage.visitor(version, caller).from("things").select("id").order("id"));
        assert.deepEqual(rows.map(({ id }) => id), expected, `${version.name} as ${caller}`);
      }
    }
  });

  for (const [list, sql] of LISTS) {
    test(`select ${JSON.stringify(list)}`, () =>
      same(
        (client) => client.from("things").select(list).order("id"),
        `select ${sql} from public.things order by id`,
      ));
  }

  for (const [name, build, sql, only] of FILTERS) {
    test(name, async () => {
      const [{ all, some }] = await stage.rows(
        `select count(*) as all, count(*) filter (where ${sql}) as some from public.things`,
      );
      assert.ok(some > 0 && some < all, `it keeps ${some} of ${all}`);
      await same(
        (client) => build(client.from("things").select("id")).order("id"),
        `select id from public.things where ${sql} order by id`,
        only,
      );
    });
  }

  test("in: nothing at all is in an empty list", () =>
    same((client) => client.from("things").select("id").in("n", []), "select 1 where false"));

  for (const [name, build, sql] of ORDERS) {
    test(`order: ${name}`, () =>
      same(
        (client) => build(client.from("things").select("id")),
        `select id from public.things order by ${sql}`,
      ));
  }

  test("limit and range cut a page", async () => {
    await same((c) => c.from("things").select("id").order("id").limit(2),
      "select id from public.things order by id limit 2");
    await same((c) => c.from("things").select("id").order("id").range(1, 2),
      "select id from public.things order by id offset 1 limit 2");
    await same((c) => c.from("things").select("id").limit(0), "select 1 where false");
    await same((c) => c.from("things").select("id").range(1000, 1009), "select 1 where false");
  });

  everywhere("a view is read like a table", async (version) => {
    const rows = await data(stage.visitor(version, "anon").from("glad").select("title").order("id"));
    assert.deepEqual(rows, [{ title: "under_score" }, { title: "apple juice" }]);
  });

  everywhere("parts are read as one table, and what is materialised as it was", async (version) => {
    const client = stage.visitor(version, "anon");
    const parted = client.from("parted").select("id", { count: "exact" }).eq("part", "b").order("id");
    assert.deepEqual(await data(parted), [{ id: 2 }, { id: 3 }]);
    const kept = await client.from("kept").select("*", { count: "exact" }).order("part");
    assert.deepEqual([kept.data, kept.count], [[{ part: "a", rows: 1 }, { part: "b", rows: 2 }], 2]);
    await problem(client.from("parted_a").select(), 401, "42501");
  });

  everywhere("another schema is read when it is served, and no other one is", async (version) => {
    const client = stage.visitor(version, "anon");
    const elsewhere = [{ id: 1, name: "elsewhere" }];
    assert.deepEqual(await data(client.schema("other").from("things").select()), elsewhere);
    assert.equal(last(client).sent.get("accept-profile"), "other");
    const settled = stage.visit(version, "anon", { schema: "other" });
    assert.deepEqual(await data(settled.from("things").select()), elsewhere);
    await problem(client.schema("other").from("many").select(), 404, "PGRST205");
    const error = await problem(client.schema("hidden").from("things").select(), 406, "PGRST106");
    assert.match(`${error.message} ${error.details} ${error.hint}`, /public, other/);
    await problem(stage.visitor(version, "alice").schema("other").from("things").select(), 403, "42501");
  });

  everywhere("rows are counted exactly, and the page is told from the whole", async (version) => {
    const client = stage.visitor(version, "anon");
    const many = () => client.from("many").select("id", { count: "exact" }).order("id");
    for (const [asked, rows, count, status, range] of [
      [many(), ROWS_MAX, 120, 206, `0-${ROWS_MAX - 1}/120`],
      [many().range(10, 19), 10, 120, 206, "10-19/120"],
      [many().range(110, 129), 10, 120, 206, "110-119/120"],
      [many().eq("even", true).lt("id", 30), 14, 14, 200, "0-13/14"],
      [many().eq("id", -1), 0, 0, 200, "*/0"],
      [client.from("many").select("id").range(0, 9), 10, null, 200, "0-9/*"],
    ]) {
      const answer = await asked;
      assert.deepEqual([answer.error, answer.count, answer.status], [null, count, status], range);
      assert.equal(answer.data.length, rows);
      assert.equal(last(client).headers.get("content-range"), range);
    }
    assert.match((await many(), last(client)).headers.get("preference-applied"), /count=exact/);
  });

  everywhere("a page can be asked for in a header, too", async (version) => {
    const client = stage.visitor(version, "anon");
    const asked = (range, build = (q) => q, count) =>
      build(client.from("many").select("id", { count }).order("id")).setHeader("Range", range);
    const ids = async (...of) => (await data(asked(...of))).map(({ id }) => id);
    assert.deepEqual(await ids("10-12"), [11, 12, 13]);
    assert.equal(last(client).headers.get("content-range"), "10-12/*");
    assert.deepEqual(await ids("118-"), [119, 120]);
    assert.deepEqual(await ids("1-3", (q) => q.limit(2)), [2]);
    assert.deepEqual(await ids("bytes=0-1", (q) => q.limit(2)), [1, 2]);
    const page = await asked("0-9", (q) => q, "exact");
    assert.deepEqual([page.count, page.data.length, page.status], [120, 10, 206]);
    await problem(asked("3-1"), 416, "PGRST103");
    await problem(asked("500-509", (q) => q, "exact"), 416, "PGRST103");
  });

  everywhere("HEAD counts and fetches nothing", async (version) => {
    for (const [caller, expected] of [["anon", 4], ["alice", 8], ["bob", 8], ["service", 12]]) {
      const client = stage.visitor(version, caller);
      const answer = await client.from("things").select("*", { head: true, count: "exact" });
      assert.deepEqual([answer.error, answer.data, answer.count], [null, null, expected], caller);
      assert.deepEqual([last(client).method, answer.status], ["HEAD", 200]);
    }
    const client = stage.visitor(version, "anon");
    const { count, data: none } = await client.from("many").select("*", { head: true });
    assert.deepEqual([count, none], [null, null]);
    const big = await client.from("many").select("*", { head: true, count: "exact" });
    assert.deepEqual([big.count, big.status, big.error], [120, 206, null]);
  });

  everywhere("the planner's guess is a count, alone and beyond the row limit", async (version) => {
    const client = stage.visitor(version, "anon");
    const counted = async (count, build = (q) => q) => {
      const answer = await build(client.from("many").select("id", { count }));
      assert.equal(answer.error, null);
      assert.match(last(client).headers.get("preference-applied"), new RegExp(`count=${count}`));
      return answer.count;
    };
    // It was analysed, so the guess is as good as a count.
    assert.equal(await counted("planned"), 120);
    assert.equal(await counted("estimated"), 120);
    assert.equal(await counted("estimated", (q) => q.lt("id", 20)), 19);
    assert.equal(await counted("planned", (q) => q.eq("id", 7)), 1);
  });

  everywhere("a page behind the end is an error where the end is known", async (version) => {
    const client = stage.visitor(version, "anon");
    const asked = client.from("many").select("id", { count: "exact" }).range(500, 509);
    const error = await problem(asked, 416, "PGRST103");
    assert.match(error.details, /500.*120/);
    assert.equal(last(client).headers.get("content-range"), "*/120");
  });

  everywhere("single takes one row and nothing else", async (version) => {
    const one = (caller, id) =>
      stage.visitor(version, caller).from("things").select("id,title").eq("id", id).single();
    assert.deepEqual(await data(one("anon", 9), 200), { id: 9, title: "apple" });
    const error = await problem(one("anon", 1), 406, "PGRST116");
    assert.match(error.details, /0 rows/);
    assert.deepEqual(await data(one("alice", 1)), { id: 1, title: "Apple juice" });
    const several = stage.visitor(version, "anon").from("things").select("id").single();
    assert.match((await problem(several, 406, "PGRST116")).details, /4 rows/);
    const cut = stage.visitor(version, "anon").from("things").select("id").order("id").limit(1);
    assert.deepEqual(await data(cut.single()), { id: 9 });
  });

  everywhere("maybeSingle takes one row or none", async (version) => {
    const rows = (build) =>
      build(stage.visitor(version, "anon").from("things").select("id")).maybeSingle();
    assert.deepEqual(await data(rows((q) => q.eq("id", 9)), 200), { id: 9 });
    assert.equal(await data(rows((q) => q.eq("id", 1)), 200), null);
    await problem(rows((q) => q.gt("id", 9)), 406, "PGRST116");
  });

  everywhere("what is not built says so", async (version) => {
    const client = stage.visitor(version, "anon");
    const things = () => client.from("things").select("id");
    for (const [asked, feature] of [
      [things().csv(), /csv/],
      [things().geojson(), /geo\+json/],
      [things().explain(), /plan/],
      [things().explain({ format: "json", analyze: true }), /plan/],
      ...(version.isNewest
        ? [[things().stripNulls(), /nulls=stripped/], [things().single().stripNulls(), /nulls/]]
        : []),
    ]) {
      assert.match((await problem(asked, 400, "PGRST127")).details, feature);
    }
  });

  everywhere("aggregates are off, as they are by default", async (version) => {
    const client = stage.visitor(version, "anon");
    for (const list of ["n.sum()", "count()", "total:n.sum()::text,done"]) {
      const { error, status } = await client.from("things").select(list);
      assert.ok(error && status === 400, `${list}: ${status} ${JSON.stringify(error)}`);
    }
  });

  everywhere("what cannot be read is told why", async (version) => {
    const from = (table) => stage.visitor(version, "anon").from(table);
    const hint = (await problem(from("thing").select(), 404, "PGRST205")).hint;
    assert.match(hint, /things/);
    for (const [asked, status, code] of [
      [from("things").select("nothing"), 400, "42703"],
      [from("things").select().eq("nothing", 1), 400, "42703"],
      [from("things").select().order("nothing"), 400, "42703"],
      [from("things").select().eq("n", "many"), 400, "22P02"],
      [from("things").select().eq("n", "99999999999"), 400, "22003"],
      [from("things").select().eq("day", "2026-02-30"), 400, "22008"],
      [from("things").select().eq("mood", "odd"), 400, "22P02"],
      [from("things").select().filter("n", "about", 1), 400, "PGRST100"],
      [from("things").select().filter("n", "is", "odd"), 400, "PGRST100"],
      [from("things").select().or("n.eq.1,"), 400, "PGRST100"],
      [from("things").select().or("and(n.eq.1"), 400, "PGRST100"],
      [from("things").select("id,,n"), 400, "PGRST100"],
      [from("things").select("id(").limit(1), 400, "PGRST100"],
      [from("things").select("n::nothing"), 400, "42704"],
      [from("things").select("id").like("n", "1%"), 404, "42883"],
      [from("things").select("id").eq("title", "a\u0000b"), 400, "PGRST100"],
      [from("things").select("id").limit(-1), 416, "PGRST103"],
    ]) {
      await problem(asked, status, code);
    }
  });
});
