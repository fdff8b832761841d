-- guards: who may enter the private rooms of a kind of topic; filled by walcast.guard_topic().
-- topic: the template, map:{id} · policies: those on realtime.messages that say so
-- watches: [{"relation": oid, "columns": ["map_id"]}], tables whose changes have it decided anew; columns in
-- the order of the template's, empty: every topic of the kind
create table walcast.guards (
    topic text primary key,
    policies text[] not null,
    watches jsonb not null,
    made_at timestamptz not null default pg_catalog.now()
);
alter table walcast.guards enable row level security;
revoke all on table walcast.guards from public;
grant select, insert, update, delete on table walcast.guards to public;

-- What is watched is no secret: the service reads it as the powerless login.
create policy readable on walcast.guards for select using (true);
-- Whoever may make policies there.
create policy owners on walcast.guards using (
    exists (
        select from pg_catalog.pg_class as c
        where c.oid = pg_catalog.to_regclass('realtime.messages')
            and pg_catalog.pg_has_role(c.relowner, 'usage')
    )
);
