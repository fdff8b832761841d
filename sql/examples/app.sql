-- app: what the example applications share: who is signed in, when a row was touched, who made a change.
-- in:     schema auth and its functions (walcast installs them)
-- out:    auth.sub(); schema app; who may join what: app.may_join(), and the policy that asks it
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

-- Who may be in which private room. Each application adds its topics to app.doors: a regular expression with one
-- pair of parentheses, and a function that gets what is in it and answers for the signed-in user.
create table app.doors (topic text primary key, may_join regprocedure not null);
create function app.may_join(topic text) returns boolean language plpgsql stable security definer set search_path = '' as $$
declare door record; answer boolean;
begin
  for door in select d.may_join, pg_catalog.regexp_match(may_join.topic, '^' || d.topic || '$') as found from app.doors d loop
    if door.found is not null then
      execute pg_catalog.format('select %s($1)', door.may_join::pg_catalog.oid::pg_catalog.regproc) into answer using door.found[1];
      if answer then return true; end if;
    end if;
  end loop;
  return false;
end $$;
grant execute on function app.may_join(text) to authenticated;
create policy members_hear on realtime.messages for select to authenticated using (app.may_join((select realtime.topic())));
create function app.is_me(id text) returns boolean language sql stable set search_path = '' as $$ select id = auth.sub() $$;
create function app.anybody(ignored text) returns boolean language sql stable set search_path = '' as $$ select true $$;
insert into app.doors values ('user:(.+)', 'app.is_me(text)');
