-- declarations: what clients of Socket.IO find; filled by walcast.profile() and its like.
-- namespace: such as /story-maps; *, every declared one · kind: profile, room, command, relay, presence
-- name: of a room its topic, of a command and a relay the client's event, else empty
-- declaration: as src/profile reads it
create table walcast.declarations (
    namespace text not null,
    kind text not null check (kind in ('profile', 'room', 'command', 'relay', 'presence')),
    name text not null default '',
    declaration jsonb not null,
    made_by text not null default session_user,
    made_at timestamptz not null default pg_catalog.now(),
    primary key (namespace, kind, name)
);
alter table walcast.declarations enable row level security;
revoke all on table walcast.declarations from public;
grant select, insert, update, delete on table walcast.declarations to public;

-- What is declared is no secret: the service reads it as the powerless login.
create policy readable on walcast.declarations for select using (true);
-- Whoever owns the database, or installed walcast. What clients may do there is up to policies and grants.
create policy owners on walcast.declarations using (
    exists (
        select from pg_catalog.pg_database as d
        where d.datname = pg_catalog.current_database() and pg_catalog.pg_has_role(d.datdba, 'usage')
    )
    or exists (
        select from pg_catalog.pg_class as c
        where c.oid = 'walcast.declarations'::regclass and pg_catalog.pg_has_role(c.relowner, 'usage')
    )
);
