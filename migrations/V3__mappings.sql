-- mappings: what changes of a table mean to the application; filled by walcast.map_table() and its like.
-- Each row is a version: what was in force before stays, for whoever reads the log from there.
-- relation: OID · declaration: its events, null: none from here on · declared_at: the end of the log then
-- · system_id: of which cluster that is a position
create table walcast.mappings (
    id bigint generated always as identity primary key,
    relation oid not null,
    declaration jsonb,
    declared_at pg_lsn,
    system_id text,
    made_by text not null default session_user,
    made_at timestamptz not null default pg_catalog.now()
);
create index mappings_relation on walcast.mappings (relation, id);
alter table walcast.mappings enable row level security;
revoke all on table walcast.mappings from public;
grant select, insert on table walcast.mappings to public;

-- Whoever owns a table, or the database, says what its changes mean: an event is told to everybody in
-- its room, whatever the table's policies are.
create policy owners_read on walcast.mappings for select using (
    exists (
        select from pg_catalog.pg_class as c
        where c.oid = mappings.relation and pg_catalog.pg_has_role(c.relowner, 'usage')
    )
    or exists (
        select from pg_catalog.pg_database as d
        where d.datname = pg_catalog.current_database() and pg_catalog.pg_has_role(d.datdba, 'usage')
    )
);
create policy owners_declare on walcast.mappings for insert with check (
    exists (
        select from pg_catalog.pg_class as c
        where c.oid = mappings.relation
            and c.relkind in ('r', 'p')
            and (
                pg_catalog.pg_has_role(c.relowner, 'usage')
                or exists (
                    select from pg_catalog.pg_database as d
                    where d.datname = pg_catalog.current_database()
                        and pg_catalog.pg_has_role(d.datdba, 'usage')
                )
            )
    )
);

-- secrets: what declarations are signed with on their way through the log, where anybody may write messages.
create table walcast.secrets (
    name text primary key,
    value text not null
);
revoke all on table walcast.secrets from public;
insert into walcast.secrets (name, value)
values (
    'mappings',
    pg_catalog.replace(pg_catalog.gen_random_uuid()::text || pg_catalog.gen_random_uuid()::text, '-', '')
);
