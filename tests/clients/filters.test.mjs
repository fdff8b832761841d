// Every filter operator, plain and negated, against Postgres' own answer to the same question.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { User, VERSIONS, serve } from "./harness.mjs";

const SCHEMA = `
  create table public.t (id int primary key, n int, name text, flag boolean, at timestamptz);
  grant select on public.t to anon;
  alter publication supabase_realtime add table public.t;
`;

// What is inserted: [n, name, flag, at]; nulls, letter case, and characters the grammar uses.
const ROWS = [
  [1, "apple", true, "2026-01-01T00:00:00Z"],
  [2, "Apple pie", false, "2026-06-01T00:00:00Z"],
  [3, "banana", null, null],
  [null, null, null, null],
  [10, "a,b", true, "2026-01-01T01:00:00+01:00"],
  [-5, "(x)", false, "1999-12-31T23:59:59Z"],
  [7, 'say "hi"', true, null],
  [8, "back\\slash", false, null],
  [9, "", true, null],
  [2147483647, "100%", null, null],
  [11, "a.b=eq.c", null, null],
  [12, "ÄÖÜ", null, null],
];

// [filter, the same condition in SQL]
const FILTERS = [
  ["n=eq.2", "n = 2"],
  ["n=neq.2", "n <> 2"],
  ["n=lt.3", "n < 3"],
  ["n=lte.3", "n <= 3"],
  ["n=gt.3", "n > 3"],
  ["n=gte.3", "n >= 3"],
  ["n=in.(1,3,10)", "n in (1, 3, 10)"],
  ["name=like.%pp%", "name like '%pp%'"],
  ["name=ilike.apple%", "name ilike 'apple%'"],
  ["flag=is.null", "flag is null"],
  ["name=match.^[ab]", "name ~ '^[ab]'"],
  ["name=imatch.^[ab]", "name ~* '^[ab]'"],
  ["n=isdistinct.2", "n is distinct from 2"],
  ["n=not.eq.2", "not (n = 2)"],
  ["n=not.neq.2", "not (n <> 2)"],
  ["n=not.lt.3", "not (n < 3)"],
  ["n=not.lte.3", "not (n <= 3)"],
  ["n=not.gt.3", "not (n > 3)"],
  ["n=not.gte.3", "not (n >= 3)"],
  ["n=not.in.(1,3,10)", "not (n in (1, 3, 10))"],
  ["name=not.like.%pp%", "not (name like '%pp%')"],
  ["name=not.ilike.apple%", "not (name ilike 'apple%')"],
  ["flag=not.is.null", "flag is not null"],
  ["name=not.match.^[ab]", "not (name ~ '^[ab]')"],
  ["name=not.imatch.^[ab]", "not (name ~* '^[ab]')"],
  ["n=not.isdistinct.2", "n is not distinct from 2"],
  ["flag=is.true", "flag is true"],
  ["flag=is.false", "flag is false"],
  ["flag=is.unknown", "flag is unknown"],
  ["flag=eq.true", "flag = true"],
  ["n=gt.1,n=lt.10", "n > 1 and n < 10"],
  ["n=gt.1,name=ilike.%a%,flag=not.is.true", "n > 1 and name ilike '%a%' and flag is not true"],
  ['name=eq."a,b"', "name = 'a,b'"],
  ['name=eq."(x)"', "name = '(x)'"],
  ['name=eq."say \\"hi\\""', `name = 'say "hi"'`],
  ['name=eq."back\\\\slash"', "name = 'back\\slash'"],
  ['name=in.("a,b","(x)",banana)', "name in ('a,b', '(x)', 'banana')"],
  ["name=eq.a.b=eq.c", "name = 'a.b=eq.c'"],
  ["name=eq.", "name = ''"],
  ["name=eq.ÄÖÜ", "name = 'ÄÖÜ'"],
  ["at=eq.2026-01-01T00:00:00Z", "at = '2026-01-01T00:00:00Z'"],
  ["at=lt.2026-03-01", "at < '2026-03-01'::timestamptz"],
  ["", "true"],
];

// [filter, what the refusal must say]
const REFUSED = [
  ["nothing=eq.1", /invalid column for filter nothing/],
  ["n=eq.abc", /invalid input syntax for type integer/],
  ["n=is.true", /requires a boolean column/],
  ["flag=is.maybe", /invalid value for is filter/],
  ["n=like.1%", /requires a text-compatible column type/],
  ["name=match.[", /invalid regular expression/],
  ["n=foo.1", /Error parsing `filter` params/],
  ["undefined", /Error parsing `filter` params: \["undefined"\]/],
  ["n=eq.1,,n=eq.2", /must not contain empty segments/],
  ["n=in.1", /must be wrapped by parentheses/],
  [`n=in.(${Array.from({ length: 101 }, (_, n) => n)})`, /Maximum 100/],
];

describe("filters", () => {
  let service;
  let id = 0;
  before(async () => {
    service = await serve(SCHEMA);
  });
  after(() => service.close());

  for (const version of VERSIONS) {
    describe(version.name, () => {
      let user;
      before(() => {
        user = new User(version, service.server);
      });
      after(() => user.close());
      const sql = (text, values) => service.database.query(text, values);

      test("each operator lets through what Postgres says it should", async () => {
        const feeds = await Promise.all(
          FILTERS.map(([filter], n) => user.subscribe(`filter ${n}`, { table: "t", filter })),
        );
        // One socket is in commit order over all its channels: who has this one has the others'.
        const all = await user.subscribe("all", { table: "t" });
        const first = id + 1;
        for (const row of ROWS) {
          await sql("insert into t values ($1, $2, $3, $4, $5)", [++id, ...row]);
        }
        const last = id;
        await sql("insert into t values ($1)", [++id]);
        await all.change((change) => change.new.id === id, "last row");

        const wrong = [];
        for (const [n, [filter, condition]] of FILTERS.entries()) {
          const rows = await sql(
            `select id from t where id between $1 and $2 and (${condition}) order by id`,
            [first, last],
          );
          const expected = rows.map((row) => row.id);
          const heard = feeds[n].changes.map((change) => change.new.id).filter((id) => id <= last);
          if (JSON.stringify(heard) !== JSON.stringify(expected)) {
            const refused = feeds[n].systems.filter(({ status }) => status === "error");
            wrong.push({ filter, expected, heard, refused });
          }
        }
        assert.deepEqual(wrong, []);
      });

      test("updates are filtered on the new row, deletes on what the log has of the old", async () => {
        const feed = await user.subscribe("new row", { table: "t", filter: "n=eq.42" });
        const key = ++id;
        const byKey = await user.subscribe("old key", {
          table: "t",
          event: "DELETE",
          filter: `id=eq.${key}`,
        });
        await sql("insert into t values ($1, 41)", [key]);
        await sql("update t set n = 42 where id = $1", [key]);
        await sql("update t set n = 43 where id = $1", [key]);
        await sql("delete from t where id = $1", [key]);
        await byKey.change((change) => change.old.id === key);
        assert.deepEqual(
          feed.changes.map(({ eventType, new: row }) => [eventType, row.n]),
          [["UPDATE", 42]],
        );
      });

      test("what cannot be understood is refused in words", async () => {
        const feeds = await Promise.all(
          REFUSED.map(([filter], n) => user.subscribe(`refused ${n}`, { table: "t", filter })),
        );
        for (const [n, [filter, words]] of REFUSED.entries()) {
          const { message } = await feeds[n].system(({ status }) => status === "error");
          assert.match(message, words, filter);
        }
      });
    });
  }
});
