-- objects: what the installer made in this database, so that it updates and removes nothing else.
-- kind, name: as `db/install.rs` writes them · body: md5 of a function's text as installed
create table walcast.objects (
    kind text not null,
    name text not null,
    body text,
    made_at timestamptz not null default pg_catalog.now(),
    primary key (kind, name)
);
revoke all on table walcast.objects from public;
