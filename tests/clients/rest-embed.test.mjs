// Related rows in one request: embedding to one, to many, through a junction, and what can be said
// about what is embedded. Each answer is compared with the same question in SQL.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { ALICE, BOB, VERSIONS } from "./harness.mjs";
import { Rows, data, everywhere, problem } from "./rest.mjs";

const SCHEMA = `
  create table public.writers (id int primary key, name text not null, born int);
  create table public.books (
    id int primary key, title text not null, year int,
    writer int references public.writers, editor int references public.writers
  );
  create table public.covers (book int primary key references public.books, colour text);
  create table public.topics (id int primary key, name text, parent int references public.topics);
  create table public.book_topics (
    book int references public.books, topic int references public.topics, weight int,
    primary key (book, topic)
  );
  create table public.reviews (
    id int primary key, book int not null references public.books, owner uuid, stars int, words text
  );
  create table public.shelves (room text, place int, label text, primary key (room, place));
  create table public.copies (
    id int primary key, book int references public.books, room text, place int,
    foreign key (room, place) references public.shelves
  );
  create view public.new_books as select id, title, writer from public.books where year > 2000;
  create table public.lonely (id int primary key);
  create function public.books_after(after int) returns setof public.books language sql stable as
    'select * from public.books where year > after';

  insert into public.writers values (1, 'Ann', 1950), (2, 'Ben', 1960), (3, 'Cyd', null), (4, 'Dee', 1980);
  insert into public.books values
    (1, 'Alpha', 1990, 1, 2), (2, 'Beta', 2005, 1, null), (3, 'Gamma', 2010, 2, 1),
    (4, 'Delta', null, null, 3), (5, 'Epsilon', 2020, 3, 3);
  insert into public.covers values (1, 'red'), (3, 'blue');
  insert into public.topics values (1, 'all', null), (2, 'art', 1), (3, 'science', 1), (4, 'physics', 3);
  insert into public.book_topics values (1, 2, 5), (1, 3, 1), (2, 3, 2), (3, 4, 9), (5, 2, 1);
  insert into public.reviews values
    (1, 1, null, 5, 'great'), (2, 1, '${ALICE}', 2, 'so so'), (3, 2, '${BOB}', 4, 'good'),
    (4, 3, '${ALICE}', 5, 'great'), (5, 3, '${BOB}', 1, null), (6, 5, null, 3, 'fine');
  insert into public.shelves values ('A', 1, 'top'), ('A', 2, 'low'), ('B', 1, 'far');
  insert into public.copies values (1, 1, 'A', 1), (2, 1, 'B', 1), (3, 2, 'A', 2), (4, 3, null, 1);

  alter table public.reviews enable row level security;
  create policy "of everybody" on public.reviews for select using (owner is null);
  create policy own on public.reviews for select to authenticated using (owner = auth.uid());
  grant select on all tables in schema public to anon, authenticated, service_role;
  revoke select on public.covers from anon;
`;

/** The rows of `sql`, in their order, as one JSON array. */
const list = (sql) => `(select coalesce(json_agg(e), '[]') from (${sql}) as e)`;
/** The one row of `sql`, or null. */
const one = (sql) => `(select row_to_json(e) from (${sql}) as e)`;

// What is asked of books, and the same in SQL.
const BOOKS = [
  ["to one, by the name of the column", (q) => q.select("id,writer(name)"),
    `id, ${one("select name from writers w where w.id = b.writer")} as writer`],
  ["to one, by the name of the key", (q) => q.select("id,books_editor_fkey(*)"),
    `id, ${one("select * from writers w where w.id = b.editor")} as books_editor_fkey`],
  ["both ways to one table, by hint and alias",
    (q) => q.select("id,by:writers!writer(name),of:writers!books_editor_fkey(id)"),
    `id, ${one("select name from writers w where w.id = b.writer")} as by,
     ${one("select id from writers w where w.id = b.editor")} as of`],
  ["to many", (q) => q.select("id,copies(id,room)").order("id", { referencedTable: "copies" }),
    `id, ${list("select id, room from copies c where c.book = b.id order by id")} as copies`],
  ["one to one, from the other side", (q) => q.select("id,covers(colour)"),
    `id, ${one("select colour from covers c where c.book = b.id")} as covers`],
  ["many to many", (q) => q.select("id,topics(name)").order("name", { foreignTable: "topics" }),
    `id, ${list(`select name from topics t join book_topics bt on bt.topic = t.id
      where bt.book = b.id order by name`)} as topics`],
  ["many to many, by the junction", (q) => q.select("id,topics!book_topics(name)")
      .order("name", { referencedTable: "topics" }),
    `id, ${list(`select name from topics t join book_topics bt on bt.topic = t.id
      where bt.book = b.id order by name`)} as topics`],
  ["the junction itself, and on from there",
    (q) => q.select("id,book_topics(weight,topics(name))").order("weight", { referencedTable: "book_topics" }),
    `id, ${list(`select weight, ${one("select name from topics t where t.id = bt.topic")} as topics
      from book_topics bt where bt.book = b.id order by weight`)} as book_topics`],
  ["by a key of several columns, and three deep",
    (q) => q.select("title,copies(id,shelves(label,copies(id)))")
      .order("id", { referencedTable: "copies" })
      .order("id", { referencedTable: "copies.shelves.copies" }),
    `title, ${list(`select id, ${one(`select label,
        ${list("select id from copies d where (d.room, d.place) = (s.room, s.place) order by id")} as copies
        from shelves s where (s.room, s.place) = (c.room, c.place)`)} as shelves
      from copies c where c.book = b.id order by id`)} as copies`],
  ["nothing of what is embedded, but all of the rest", (q) => q.select("*,covers()"), "*"],
  ["all of everything", (q) => q.select("*,cover:covers(*),writer(*)"),
    `id, title, year, editor, ${one("select * from covers c where c.book = b.id")} as cover,
     ${one("select * from writers w where w.id = b.writer")} as writer`],
  ["a filter of what is not embedded to one", (q) => q.select("id,writer(name)").is("writer.born", null),
    `id, ${one("select name from writers w where w.id = b.writer and born is null")} as writer`],
  ["inner: rows without are left out", (q) => q.select("id,covers!inner(colour)"),
    `id, ${one("select colour from covers c where c.book = b.id")} as covers`,
    "exists (select from covers c where c.book = b.id)"],
  ["inner, filtered", (q) => q.select("title,by:writers!books_writer_fkey!inner(name)").eq("by.name", "Ann"),
    `title, ${one("select name from writers w where w.id = b.writer")} as by`, "writer = 1"],
  ["inner and unseen", (q) => q.select("title,topics!inner()").eq("topics.name", "art"), "title",
    "id in (select book from book_topics where topic = 2)"],
  ["inner, two deep", (q) => q.select("id,copies!inner(id,shelves!inner(label))").eq("copies.shelves.label", "far"),
    `id, '[{"id": 2, "shelves": {"label": "far"}}]'::json as copies`, "id = 1"],
  ["filters of what is embedded leave the rest alone",
    (q) => q.select("id,copies(id)").eq("copies.room", "A").order("id", { referencedTable: "copies" }),
    `id, ${list("select id from copies c where c.book = b.id and room = 'A' order by id")} as copies`],
  ["an or about what is embedded",
    (q) => q.select("id,copies(id)").or("room.eq.B,place.eq.2", { referencedTable: "copies" })
      .order("id", { referencedTable: "copies" }),
    `id, ${list("select id from copies c where c.book = b.id and (room = 'B' or place = 2) order by id")} as copies`],
  ["several filters, operators and an alias",
    (q) => q.select("id,c:copies(id)").in("c.room", ["A", "B"]).gt("c.id", 1).order("id", { referencedTable: "c" }),
    `id, ${list("select id from copies c where c.book = b.id and room in ('A', 'B') and id > 1 order by id")} as c`],
  ["order and limit of what is embedded",
    (q) => q.select("id,copies(id)").order("id", { ascending: false, referencedTable: "copies" })
      .limit(1, { referencedTable: "copies" }),
    `id, ${list("select id from copies c where c.book = b.id order by id desc limit 1")} as copies`],
  ["a range of what is embedded",
    (q) => q.select("id,topics(id)").order("id", { foreignTable: "topics" }).range(1, 2, { foreignTable: "topics" }),
    `id, ${list("select topic as id from book_topics bt where bt.book = b.id order by 1 offset 1 limit 2")} as topics`],
  ["spread: its columns become ours", (q) => q.select("id,...writer(name,birth:born)"),
    `id, (select name from writers w where w.id = b.writer) as name,
     (select born from writers w where w.id = b.writer) as birth`],
  ["spread, with something embedded in it", (q) => q.select("id,...covers(colour,book(title))"),
    `id, (select colour from covers c where c.book = b.id) as colour,
     (select json_build_object('title', title) from covers c where c.book = b.id) as book`],
  ["those without", (q) => q.select("id,covers(colour)").is("covers", null),
    "id, null::json as covers", "not exists (select from covers c where c.book = b.id)"],
  ["those with one or the other",
    (q) => q.select("id,covers(),copies()").or("covers.not.is.null,copies.not.is.null"), "id",
    "id in (select book from covers union select book from copies)"],
  ["casts, aliases and JSON inside", (q) => q.select("id,writer(year:born::text,name)"),
    `id, ${one("select born::text as year, name from writers w where w.id = b.writer")} as writer`],
];

describe("related rows", () => {
  const stage = new Rows(SCHEMA);

  for (const [name, build, sql, where = "true"] of BOOKS) {
    test(name, async () => {
      const expected = await stage.rows(`select ${sql} from books b where ${where} order by b.id`);
      assert.ok(expected.length > 0);
      for (const version of VERSIONS) {
        for (const caller of ["alice", "service"]) {
          const found = await data(build(stage.visitor(version, caller).from("books")).order("id"), 200);
          assert.deepEqual(found, expected, `${version.name} as ${caller}`);
        }
      }
    });
  }

  everywhere("each caller sees of what is embedded what he may see", async (version) => {
    for (const caller of ["anon", "alice", "bob", "service"]) {
      const expected = await stage.as(
        caller,
        `select id, ${list("select id, stars from reviews r where r.book = b.id order by id")} as reviews
         from books b order by id`,
      );
      const client = stage.visitor(version, caller);
      const asked = client.from("books").select("id,reviews(id,stars)").order("id");
      assert.deepEqual(await data(asked.order("id", { referencedTable: "reviews" })), expected, caller);
      const some = client.from("books").select("id,reviews!inner(id)", { count: "exact" }).order("id");
      const reviewed = expected.filter(({ reviews }) => reviews.length > 0);
      const answer = await some;
      assert.deepEqual(answer.data.map(({ id }) => id), reviewed.map(({ id }) => id), caller);
      assert.equal(answer.count, reviewed.length, caller);
    }
    await problem(stage.visitor(version, "anon").from("books").select("covers(colour)"), 401, "42501");
  });

  everywhere("rows are ordered by what each is related to", async (version) => {
    const books = stage.visitor(version, "alice").from("books");
    const asked = books
      .select("id,by:writers!books_writer_fkey(name)")
      .order("by(name)", { ascending: false, nullsFirst: false })
      .order("id");
    const expected = await stage.rows(
      `select b.id, ${one("select name from writers w where w.id = b.writer")} as by from books b
       left join writers v on v.id = b.writer order by v.name desc nulls last, b.id`,
    );
    assert.deepEqual(await data(asked), expected);
  });

  everywhere("a table is related to itself, up and down", async (version) => {
    const topics = () => stage.visitor(version, "alice").from("topics");
    assert.deepEqual(
      await data(topics().select("id,parent(name)").order("id")),
      await stage.rows(
        `select id, ${one("select name from topics p where p.id = t.parent")} as parent from topics t order by id`,
      ),
    );
    const down = topics().select("id,children:topics!parent(id,topics!parent(id))").order("id");
    assert.deepEqual(
      await data(down.order("id", { referencedTable: "children" })),
      await stage.rows(
        `select id, ${list(`select id, ${list("select id from topics e where e.parent = d.id order by id")} as topics
          from topics d where d.parent = t.id order by id`)} as children from topics t order by id`,
      ),
    );
  });

  everywhere("a view has the relationships of its columns", async (version) => {
    const client = stage.visitor(version, "alice");
    assert.deepEqual(
      await data(client.from("new_books").select("title,writers(name)").order("id")),
      await stage.rows(
        `select title, ${one("select name from writers w where w.id = b.writer")} as writers
         from new_books b order by id`,
      ),
    );
    const back = client.from("writers").select("name,new_books(id)").order("id");
    assert.deepEqual(
      await data(back.order("id", { referencedTable: "new_books" })),
      await stage.rows(
        `select name, ${list("select id from new_books b where b.writer = w.id order by id")} as new_books
         from writers w order by w.id`,
      ),
    );
  });

  everywhere("rows of a function have the relationships of their table", async (version) => {
    const client = stage.visitor(version, "alice");
    for (const options of [{}, { get: true }]) {
      const asked = client.rpc("books_after", { after: 2000 }, options).select("id,writer(name)");
      assert.deepEqual(
        await data(asked.order("id")),
        await stage.rows(
          `select id, ${one("select name from writers w where w.id = b.writer")} as writer
           from books b where year > 2000 order by id`,
        ),
      );
    }
  });

  everywhere("single and maybeSingle work with related rows", async (version) => {
    const books = () => stage.visitor(version, "service").from("books").select("title,covers(colour)");
    const alpha = { title: "Alpha", covers: { colour: "red" } };
    assert.deepEqual(await data(books().eq("id", 1).single()), alpha);
    assert.deepEqual(await data(books().eq("id", 1).maybeSingle()), alpha);
    assert.equal(await data(books().eq("id", 99).maybeSingle()), null);
  });

  everywhere("what cannot be embedded is told why", async (version) => {
    const from = (table) => stage.visitor(version, "alice").from(table);
    const several = await problem(from("books").select("writers(name)"), 300, "PGRST201");
    assert.match(several.hint, /'writers!books_writer_fkey'/);
    assert.match(several.hint, /'writers!books_editor_fkey'/);
    assert.deepEqual(
      several.details.map(({ cardinality, embedding }) => [cardinality, embedding]),
      Array(2).fill(["many-to-one", "books with writers"]),
    );
    const none = await problem(from("books").select("lonely(id)"), 400, "PGRST200");
    assert.match(none.details, /'books'.*'lonely'/);
    assert.match((await problem(from("books").select("topic(id)"), 400, "PGRST200")).hint, /'topics'/);
    for (const [asked, status, code] of [
      [from("books").select("id,covers!nothing(colour)"), 400, "PGRST200"],
      [from("books").select("id,writer(nothing)"), 400, "42703"],
      [from("books").select("id").eq("covers.colour", "red"), 400, "PGRST108"],
      [from("books").select("id").order("id", { referencedTable: "copies" }), 400, "PGRST108"],
      [from("books").select("id,copies(id)").order("copies(id)"), 400, "PGRST118"],
      [from("books").select("id,...copies(id)"), 400, "PGRST119"],
      [from("books").select("id,copies(id)").eq("copies", 1), 400, "PGRST120"],
      [from("books").select("id,writer(name"), 400, "PGRST100"],
    ]) {
      await problem(asked, status, code);
    }
  });
});
