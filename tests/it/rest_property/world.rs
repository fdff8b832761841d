//! The tables that requests are about, and what the test knows of them: written down by hand, so
//! that nothing is taken from the code it judges.

/// Tables with foreign keys of every kind, policies, and columns of many types.
pub(super) const SCHEMA: &str = r#"
    create type mood as enum ('sad', 'ok', 'happy');
    create domain email as text check (value like '%@%');
    create table authors (
        id int primary key, name text, mood mood, email email, born date, tags text[],
        prefs jsonb, active boolean);
    create table profiles (author_id int primary key references authors, bio text);
    create table books (
        id int primary key, author_id int references authors, editor_id int references authors,
        title text not null, price numeric(8, 2), at timestamptz, pages int4range, raw json,
        words tsvector);
    create table details (book_id int primary key references books, isbn text unique);
    create table reviews (
        id int primary key, book_id int references books, stars int check (stars between 1 and 5),
        body text default 'none', owner uuid);
    create table tags (id int primary key, label text unique not null);
    create table book_tags (
        book_id int references books, tag_id int references tags, primary key (book_id, tag_id));
    create table categories (id int primary key, parent_id int references categories, name text);
    create table spots (room int, pos int, size real, primary key (room, pos));
    create table stock (
        id int primary key, room int, pos int, amount int default 1 check (amount >= 0),
        foreign key (room, pos) references spots);
    create table guarded (id int primary key, shown text, hidden text);
    create table kinds (
        id int primary key, name text default 'nobody', mood mood default 'ok', email email,
        list int[] default '{1}', doc jsonb default '{"a": 1}', price numeric(6, 2), day date,
        flag boolean default true, uid uuid, "od""d ; na.me" text default 'odd');
    create view cheap with (security_invoker = on) as select id, author_id, title, price from books
        where price < 20;
    create view loud as select id, upper(title) as title from books;

    insert into authors select n, (array['Ann', 'Bob', 'Cid', 'ann', null])[1 + n % 5],
        (array['sad', 'ok', 'happy', null])[1 + n % 4]::mood, 'a' || n % 3 || '@x',
        date '2000-01-01' + n, (array['x', 'y', 'z'])[1 + n % 2 : 3],
        jsonb_build_object('a', n % 3, 'b', array['x', null], 'c', jsonb_build_object('d', n)),
        n % 3 > 0 from generate_series(1, 9) as n;
    insert into profiles select n, 'bio ' || n from generate_series(1, 9, 2) as n;
    insert into books select n, nullif(1 + n % 10, 10), nullif(n % 4, 0),
        (array['Red', 'Blue', 'Red, "Blue"', 'Gr\een', 'a%b_c'])[1 + n % 5], n * 1.5,
        timestamptz '2024-01-01 12:00+00' + n * interval '1 day', int4range(n, n + 5),
        json_build_object('k', n % 3, 'l', json_build_array(n, 'x')),
        to_tsvector('english', (array['fat cats', 'rats ran', 'the cat'])[1 + n % 3])
        from generate_series(1, 24) as n;
    insert into details select n, 'i' || n from generate_series(1, 24, 3) as n;
    insert into reviews select n, nullif(1 + n % 12, 12), 1 + n % 5, (array['good', 'bad', null])[1 + n % 3],
        ('00000000-0000-4000-8000-00000000000' || (array['a', 'b'])[1 + n % 2])::uuid
        from generate_series(1, 40) as n;
    insert into tags select n, 'l' || n from generate_series(1, 6) as n;
    insert into book_tags select b, t from generate_series(1, 24) as b, generate_series(1, 6) as t
        where (b * t) % 5 = 1;
    insert into categories select n, nullif(n / 2, 0), 'c' || n from generate_series(1, 12) as n;
    insert into spots select r, p, r + p / 2.0 from generate_series(1, 3) as r, generate_series(1, 3) as p;
    insert into stock select n, nullif(1 + n % 4, 4), 1 + n % 3, n % 7 from generate_series(1, 15) as n;
    insert into guarded select n, 's' || n, 'h' || n from generate_series(1, 5) as n;
    insert into kinds (id, name, day) select n, 'k' || n, date '2024-01-01' + n from generate_series(1, 6) as n;

    create function priced(low numeric, high numeric default 30) returns setof books
        language sql stable as 'select * from books where price between low and high';

    grant select on all tables in schema public to anon, authenticated, service_role;
    grant insert, update, delete on reviews, stock, tags, kinds, categories, book_tags
        to authenticated, service_role;
    revoke all on guarded from anon, authenticated;
    grant select (id, shown), update (shown), insert (id, shown) on guarded to authenticated;
    alter table reviews enable row level security;
    create policy seen on reviews for select using (stars > 3 or owner = auth.uid());
    create policy made on reviews for insert with check (owner = auth.uid());
    create policy changed on reviews for update using (owner = auth.uid());
    create policy removed on reviews for delete using (owner = auth.uid());
    alter table authors enable row level security;
    create policy active on authors for select to anon, authenticated using (active);
"#;

/// How values of a column are written and what can be asked of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Int,
    Text,
    Numeric,
    Real,
    Bool,
    Date,
    Time,
    Uuid,
    Mood,
    Email,
    Texts,
    Ints,
    Jsonb,
    Json,
    Range,
    Words,
}

/// A column.
pub(super) type Column = (&'static str, Kind);

/// A relation: its name, columns, and key.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) columns: &'static [Column],
    pub(super) key: &'static [&'static str],
    pub(super) is_written: bool,
}

use Kind::{
    Bool, Date, Email, Int, Ints, Json, Jsonb, Mood, Numeric, Range, Real, Text, Texts, Time, Uuid,
    Words,
};

const fn table(
    name: &'static str,
    columns: &'static [Column],
    key: &'static [&'static str],
    is_written: bool,
) -> Table {
    Table { name, columns, key, is_written }
}

pub(super) const TABLES: &[Table] = &[
    table(
        "authors",
        &[
            ("id", Int),
            ("name", Text),
            ("mood", Mood),
            ("email", Email),
            ("born", Date),
            ("tags", Texts),
            ("prefs", Jsonb),
            ("active", Bool),
        ],
        &["id"],
        false,
    ),
    table("profiles", &[("author_id", Int), ("bio", Text)], &["author_id"], false),
    table(
        "books",
        &[
            ("id", Int),
            ("author_id", Int),
            ("editor_id", Int),
            ("title", Text),
            ("price", Numeric),
            ("at", Time),
            ("pages", Range),
            ("raw", Json),
            ("words", Words),
        ],
        &["id"],
        false,
    ),
    table("details", &[("book_id", Int), ("isbn", Text)], &["book_id"], false),
    table(
        "reviews",
        &[("id", Int), ("book_id", Int), ("stars", Int), ("body", Text), ("owner", Uuid)],
        &["id"],
        true,
    ),
    table("tags", &[("id", Int), ("label", Text)], &["id"], true),
    table("book_tags", &[("book_id", Int), ("tag_id", Int)], &["book_id", "tag_id"], true),
    table("categories", &[("id", Int), ("parent_id", Int), ("name", Text)], &["id"], true),
    table("spots", &[("room", Int), ("pos", Int), ("size", Real)], &["room", "pos"], false),
    table("stock", &[("id", Int), ("room", Int), ("pos", Int), ("amount", Int)], &["id"], true),
    table("guarded", &[("id", Int), ("shown", Text), ("hidden", Text)], &["id"], true),
    table(
        "kinds",
        &[
            ("id", Int),
            ("name", Text),
            ("mood", Mood),
            ("email", Email),
            ("list", Ints),
            ("doc", Jsonb),
            ("price", Numeric),
            ("day", Date),
            ("flag", Bool),
            ("uid", Uuid),
            ("od\"d ; na.me", Text),
        ],
        &["id"],
        true,
    ),
    table(
        "cheap",
        &[("id", Int), ("author_id", Int), ("title", Text), ("price", Numeric)],
        &["id"],
        false,
    ),
    table("loud", &[("id", Int), ("title", Text)], &["id"], false),
];

pub(super) fn named(name: &str) -> &'static Table {
    TABLES.iter().find(|table| table.name == name).expect("a table")
}

/// A way from one relation to another.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) from: &'static str,
    /// As a client writes it, without an alias.
    pub(super) written: &'static str,
    pub(super) to: &'static str,
    pub(super) is_one: bool,
    /// With `{p}` for a row of `from` and `{c}` for one of `to`.
    pub(super) condition: &'static str,
}

const fn link(
    from: &'static str,
    written: &'static str,
    to: &'static str,
    is_one: bool,
    condition: &'static str,
) -> Link {
    Link { from, written, to, is_one, condition }
}

pub(super) const LINKS: &[Link] = &[
    link("authors", "books!books_author_id_fkey", "books", false, "{c}.author_id = {p}.id"),
    link("authors", "books!editor_id", "books", false, "{c}.editor_id = {p}.id"),
    link("authors", "profiles", "profiles", true, "{c}.author_id = {p}.id"),
    link("authors", "cheap", "cheap", false, "{c}.author_id = {p}.id"),
    link("profiles", "authors", "authors", true, "{c}.id = {p}.author_id"),
    link("books", "authors!author_id", "authors", true, "{c}.id = {p}.author_id"),
    link("books", "authors!books_editor_id_fkey", "authors", true, "{c}.id = {p}.editor_id"),
    link("books", "author_id", "authors", true, "{c}.id = {p}.author_id"),
    link("books", "books_editor_id_fkey", "authors", true, "{c}.id = {p}.editor_id"),
    link("books", "reviews", "reviews", false, "{c}.book_id = {p}.id"),
    link("books", "details", "details", true, "{c}.book_id = {p}.id"),
    link("books", "book_tags", "book_tags", false, "{c}.book_id = {p}.id"),
    link(
        "books",
        "tags",
        "tags",
        false,
        "exists (select from book_tags j where j.book_id = {p}.id and j.tag_id = {c}.id)",
    ),
    link("details", "books", "books", true, "{c}.id = {p}.book_id"),
    link("reviews", "books", "books", true, "{c}.id = {p}.book_id"),
    link("reviews", "cheap", "cheap", true, "{c}.id = {p}.book_id"),
    link("tags", "book_tags", "book_tags", false, "{c}.tag_id = {p}.id"),
    link(
        "tags",
        "books!book_tags",
        "books",
        false,
        "exists (select from book_tags j where j.tag_id = {p}.id and j.book_id = {c}.id)",
    ),
    link("book_tags", "books", "books", true, "{c}.id = {p}.book_id"),
    link("book_tags", "tags", "tags", true, "{c}.id = {p}.tag_id"),
    link("categories", "categories", "categories", false, "{c}.parent_id = {p}.id"),
    link("categories", "parent_id", "categories", true, "{c}.id = {p}.parent_id"),
    link("spots", "stock", "stock", false, "{c}.room = {p}.room and {c}.pos = {p}.pos"),
    link("stock", "spots", "spots", true, "{c}.room = {p}.room and {c}.pos = {p}.pos"),
    link("cheap", "authors", "authors", true, "{c}.id = {p}.author_id"),
    link("cheap", "reviews", "reviews", false, "{c}.book_id = {p}.id"),
];
