-- official: schema realtime as the official container's migrations leave it, object by object of
-- the protocol's list; bodies that nothing here calls are short.
-- in:     ADMIN and KEEPER replaced by the names of two roles: who owns the schema, and who owns
--         what is in it
-- caller: tests/it/dropin.rs, as a superuser
create schema auth authorization ADMIN;
create table auth.schema_migrations (version text primary key);
create function auth.uid() returns uuid language sql stable as
    $$ select (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid $$;
create function auth.role() returns text language sql stable as
    $$ select nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role' $$;
create function auth.jwt() returns jsonb language sql stable as
    $$ select nullif(current_setting('request.jwt.claims', true), '')::jsonb $$;
grant usage on schema auth to anon, authenticated, service_role;

create schema _realtime authorization ADMIN;
create table _realtime.tenants (
    id uuid primary key,
    name text,
    external_id text unique,
    jwt_secret text,
    max_concurrent_users integer not null default 200
);
create table _realtime.extensions (
    id uuid primary key,
    type text,
    settings jsonb,
    tenant_external_id text references _realtime.tenants (external_id) on delete cascade
);
insert into _realtime.tenants
values ('00000000-0000-4000-8000-000000000001', 'realtime-dev', 'realtime-dev', 'encrypted', 200);

create schema realtime authorization ADMIN;
grant usage on schema realtime to anon, authenticated, service_role;
grant all on schema realtime to KEEPER;
create table realtime.schema_migrations (
    version bigint primary key,
    inserted_at timestamp(0) without time zone
);
insert into realtime.schema_migrations values (20211116024918, '2024-01-01'), (20250714121412, '2025-07-14');
create type realtime.action as enum ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'ERROR');
create type realtime.equality_op as enum
    ('eq', 'neq', 'lt', 'lte', 'gt', 'gte', 'in', 'like', 'ilike', 'is', 'match', 'imatch', 'isdistinct');
create type realtime.user_defined_filter as
    (column_name text, op realtime.equality_op, value text, negate boolean);
create type realtime.wal_column as
    (name text, type_name text, type_oid oid, value jsonb, is_pkey boolean, is_selectable boolean);
create type realtime.wal_rls as
    (wal jsonb, is_rls_enabled boolean, subscription_ids uuid[], errors text[]);

create table realtime.messages (
    topic text not null,
    extension text not null,
    payload jsonb,
    event text,
    private boolean default false,
    updated_at timestamp without time zone not null default now(),
    inserted_at timestamp without time zone not null default now(),
    id uuid not null default gen_random_uuid(),
    binary_payload bytea,
    constraint one_payload check (payload is null or binary_payload is null),
    primary key (id, inserted_at)
) partition by range (inserted_at);
alter table realtime.messages enable row level security;
create index messages_inserted_at_topic_index on realtime.messages (inserted_at desc, topic)
    where extension = 'broadcast' and private is true;
grant select, insert, update on realtime.messages to anon, authenticated, service_role;
-- The container has been gone for a while: its last partitions are old ones.
create table realtime.messages_2020_01_01 partition of realtime.messages
    for values from ('2020-01-01') to ('2020-01-02');
insert into realtime.messages (topic, extension, payload, inserted_at)
values ('room', 'broadcast', '{"kept": true}', '2020-01-01 12:00');
create policy members on realtime.messages for select to authenticated
    using (extension in ('broadcast', 'presence'));

create table realtime.subscription (
    id bigint generated always as identity primary key,
    subscription_id uuid not null,
    entity regclass not null,
    filters realtime.user_defined_filter[] not null default '{}',
    claims jsonb not null,
    created_at timestamp without time zone not null default timezone('utc', now()),
    action_filter text default '*' check (action_filter in ('*', 'INSERT', 'UPDATE', 'DELETE')),
    selected_columns text[]
);
create index ix_realtime_subscription_entity on realtime.subscription (entity);
create unique index subscription_key on realtime.subscription
    (subscription_id, entity, filters, action_filter, coalesce(selected_columns, '{}'));
grant select on realtime.subscription to anon, authenticated, service_role;

create function realtime.topic() returns text language sql stable as
    $$ select nullif(current_setting('realtime.topic', true), '')::text $$;
create function realtime.send(payload jsonb, event text, topic text, private boolean default true)
    returns void language plpgsql as $$
begin
    insert into realtime.messages (payload, event, topic, private, extension)
    values (payload, event, topic, private, 'broadcast');
exception when others then
    raise warning 'ErrorSendingBroadcastMessage: %', sqlerrm;
end $$;
create function realtime.send_binary(
    payload bytea, event text, topic text, private boolean default true
) returns void language sql as $$
    insert into realtime.messages (binary_payload, event, topic, private, extension)
    values (payload, event, topic, private, 'broadcast')
$$;
create function realtime.broadcast_changes(
    topic_name text, event_name text, operation text, table_name text, table_schema text,
    new record, old record, level text default 'ROW'
) returns void language plpgsql as $$ begin null; end $$;
create function realtime.apply_rls(wal jsonb, max_record_bytes integer default 1048576)
    returns setof realtime.wal_rls language sql as $$ select null::realtime.wal_rls where false $$;
create function realtime.build_prepared_statement_sql(
    prepared_statement_name text, entity regclass, columns realtime.wal_column[]
) returns text language sql as $$ select '' $$;
create function realtime."cast"(val text, type_ regtype) returns jsonb language sql as
    $$ select to_jsonb(val) $$;
create function realtime.check_equality_op(
    op realtime.equality_op, type_ regtype, val_1 text, val_2 text
) returns boolean language sql as $$ select val_1 = val_2 $$;
create function realtime.is_visible_through_filters(
    columns realtime.wal_column[], filters realtime.user_defined_filter[]
) returns boolean language sql as $$ select true $$;
create function realtime.list_changes(
    publication name, slot_name name, max_changes integer, max_record_bytes integer
) returns table (wal jsonb, is_rls_enabled boolean, subscription_ids uuid[], errors text[])
    language sql as $$ select null::jsonb, false, null::uuid[], null::text[] where false $$;
create function realtime.quote_wal2json(entity regclass) returns text language sql as
    $$ select entity::text $$;
create function realtime.to_regrole(role_name text) returns regrole language sql immutable as
    $$ select role_name::regrole $$;
create function realtime.wal2json_escape_identifier(name text) returns text language sql as
    $$ select name $$;
create function realtime.subscription_check_filters() returns trigger language plpgsql as
    $$ begin return new; end $$;
create trigger tr_check_filters before insert or update on realtime.subscription
    for each row execute function realtime.subscription_check_filters();

alter table realtime.messages owner to KEEPER;
alter table realtime.messages_2020_01_01 owner to KEEPER;
alter table realtime.subscription owner to ADMIN;
alter table realtime.schema_migrations owner to ADMIN;
alter function realtime.topic() owner to KEEPER;
alter function realtime.send(jsonb, text, text, boolean) owner to KEEPER;
alter default privileges for role ADMIN in schema realtime grant all on tables to KEEPER;
alter default privileges for role ADMIN in schema realtime grant all on functions to KEEPER;

create table public.todos (id bigint primary key, owner uuid, title text);
alter table public.todos enable row level security;
create policy own on public.todos to authenticated using (owner = auth.uid());
grant all on public.todos to authenticated;
create function public.tell() returns trigger language plpgsql as $$
begin
    perform realtime.send('{}', 'changed', 'todos');
    return null;
end $$;
create trigger tell after insert on public.todos for each row execute function public.tell();
create publication supabase_realtime for table public.todos;
create publication supabase_realtime_messages_publication for table realtime.messages;
