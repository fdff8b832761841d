-- app: what the example applications share: who is signed in, when a row was touched, who made a change.
-- in:     schemas auth and walcast and their functions (walcast installs them)
-- out:    auth.sub(); schema app; the private rooms user:{id}
-- caller: before any of story-map.sql, tasks.sql, reading.sql, wiki.sql, pages.sql
-- text flavour: seed 001 uses CUIDs, seed 004 puts the id in claim "userId"
create or replace function auth.sub() returns text language sql stable as
  $$ select coalesce(auth.jwt()->>'sub', auth.jwt()->>'userId') $$;
create schema if not exists app;
grant usage on schema app to anon, authenticated, service_role;
-- server-assigned, per-row strictly monotone updated_at (NOT now(): now() is transaction start, so a later commit can carry an earlier value)
create or replace function app.touch() returns trigger language plpgsql as $$
begin
  new.updated_at := greatest(clock_timestamp(), old.updated_at + interval '1 microsecond');
  new.updated_by := auth.sub();        -- plain assignment (jsonb_populate_record would rewrite TOASTed columns into the WAL)
  return new;
end $$;
create or replace function app.touch_ts() returns trigger language plpgsql as   -- same, for tables without updated_by
  $$ begin new.updated_at := greatest(clock_timestamp(), old.updated_at + interval '1 microsecond'); return new; end $$;
-- one transactional logical message per transaction: who and from which connection (gives deletedBy, updatedBy, sender exclusion, mutation ids)
create or replace function app.tag_origin() returns trigger language plpgsql as $$
declare h jsonb := coalesce(nullif(current_setting('request.headers', true), '')::jsonb, '{}');
begin
  if coalesce(current_setting('app.origin_tagged', true), '') <> pg_current_xact_id()::text then
    perform set_config('app.origin_tagged', pg_current_xact_id()::text, true);
    perform pg_logical_emit_message(true, 'walcast.origin', jsonb_strip_nulls(jsonb_build_object(
      'sub', auth.sub(), 'conn', h->>'x-connection-id', 'mutation', h->>'x-mutation-id'))::text);
  end if;
  return null;
end $$;

-- What commands of the applications share. They run as the caller: his policies decide what is touched.
-- An id from outside; null where it is none.
create function app.uuid(id text) returns uuid language sql immutable set search_path = '' as
  $$ select case when id ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then id::uuid end $$;
-- Names of columns as clients write them, of an object or of each one in a list.
create function app.camel(data jsonb) returns jsonb language sql immutable set search_path = '' as $$
  select case jsonb_typeof(data)
    when 'array' then (select coalesce(jsonb_agg(app.camel(e) order by n), '[]') from jsonb_array_elements(data) with ordinality as a(e, n))
    when 'object' then (select coalesce(jsonb_object_agg((select string_agg(case n when 1 then w else initcap(w) end, '' order by n)
      from regexp_split_to_table(key, '_') with ordinality as k(w, n)), value), '{}') from jsonb_each(data))
    else data end $$;
-- No row was touched: because the caller may not, if he sees it; else there is none.
create function app.untouched(seen boolean) returns void language plpgsql immutable as $$
begin
  if seen then raise exception 'Insufficient permissions' using errcode = 'PT403'; end if;
  raise exception 'Not found' using errcode = 'PT404';
end $$;
-- What a client sets is an object with these names and no others.
create function app.only(data jsonb, names text[]) returns void language plpgsql immutable as $$
declare name text;
begin
  if jsonb_typeof(data) is distinct from 'object' then raise exception 'an object is needed' using errcode = 'PT400'; end if;
  for name in select jsonb_object_keys(data) loop
    if name <> all (names) then raise exception '% cannot be set', name using errcode = 'PT400'; end if;
  end loop;
end $$;
-- The time before which nothing more is committed: rows touched after it may still be on their way. (Its owner is
-- superuser or a member of pg_read_all_stats; otherwise it is just now.)
create function app.settled_at() returns timestamptz language sql volatile security definer set search_path = '' as $$
  select least(clock_timestamp(), min(a.xact_start)) from pg_catalog.pg_stat_activity a
  where a.datname = current_database() and a.backend_xid is not null and a.pid <> pg_backend_pid() $$;
-- Which document a row is of stays as it is: rows that depend on it have a copy, and rooms are guarded by it.
create function app.stays() returns trigger language plpgsql as $$
begin raise exception 'a row of %.% stays where it is', tg_table_schema, tg_table_name using errcode = '23514'; end $$;

-- Who may be in which private room: each application guards its own kinds of topics. A room of one's own:
create function app.is_me(id text) returns boolean language sql stable set search_path = '' as $$ select id = auth.sub() $$;
select walcast.guard_topic('user:{id}', allows => 'app.is_me', sends => 'nobody');
-- Everybody who is signed in.
create function app.anybody() returns boolean language sql stable set search_path = '' as $$ select auth.sub() is not null $$;
