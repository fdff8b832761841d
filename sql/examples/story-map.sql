-- story-map: user story mapping: maps with steps, releases, stories and comments.
-- in:     app.sql
-- out:    schema storymap; its events in rooms map:{map_id}
create schema storymap; grant usage on schema storymap to authenticated;
create type storymap.map_role     as enum ('viewer','editor','admin');
create type storymap.story_status as enum ('NOT_READY','READY','IN_PROGRESS','DONE');
create table storymap.profiles (id uuid primary key, name text not null, email text, avatar_url text);
create table storymap.story_maps (
  id uuid primary key default gen_random_uuid(), title text not null, max_users int not null default 5,
  created_by uuid not null default auth.uid(), created_at timestamptz not null default now(), updated_at timestamptz not null default now());
create table storymap.collaborators (
  map_id uuid references storymap.story_maps on delete cascade, user_id uuid references storymap.profiles,
  role storymap.map_role not null default 'viewer', primary key (map_id, user_id));
create table storymap.steps (
  id uuid primary key default gen_random_uuid(), map_id uuid not null references storymap.story_maps on delete cascade,
  name text not null, sort_order int not null default 0,
  created_at timestamptz not null default now(), created_by uuid default auth.uid(), updated_at timestamptz not null default now(), updated_by uuid);
create table storymap.releases (like storymap.steps including all, description text not null default '');
alter table storymap.releases add foreign key (map_id) references storymap.story_maps on delete cascade;
create table storymap.stories (
  id uuid primary key default gen_random_uuid(), map_id uuid not null references storymap.story_maps on delete cascade,
  step_id uuid references storymap.steps on delete set null,          -- NULL = "Unassigned"
  release_id uuid references storymap.releases on delete set null,    -- NULL = "Unassigned"
  title text not null, description text not null default '', status storymap.story_status not null default 'NOT_READY',
  size numeric, sort_order int not null default 0,
  created_at timestamptz not null default now(), created_by uuid default auth.uid(), updated_at timestamptz not null default now(), updated_by uuid);
create table storymap.comments (
  id uuid primary key default gen_random_uuid(), story_id uuid not null references storymap.stories on delete cascade,
  map_id uuid not null,                                               -- denormalised for routing + RLS (filled by trigger)
  content text not null, author_id uuid not null default auth.uid() references storymap.profiles, created_at timestamptz not null default now());
create table storymap.tombstones (                                    -- makes map.sync able to report deletions
  table_name text, row_id uuid, map_id uuid not null, deleted_at timestamptz not null default clock_timestamp(), deleted_by text, primary key (table_name, row_id));
create index on storymap.stories (map_id, updated_at); create index on storymap.steps (map_id, updated_at);
create index on storymap.releases (map_id, updated_at); create index on storymap.comments (map_id); create index on storymap.tombstones (map_id, deleted_at);
create function storymap.has_map_access(m uuid) returns boolean language sql stable security definer set search_path = '' as $$
  select exists (select from storymap.story_maps s where s.id = m and s.created_by = auth.uid())
      or exists (select from storymap.collaborators c where c.map_id = m and c.user_id = auth.uid()) $$;
create function storymap.can_edit(m uuid) returns boolean language sql stable security definer set search_path = '' as $$
  select exists (select from storymap.story_maps s where s.id = m and s.created_by = auth.uid())
      or exists (select from storymap.collaborators c where c.map_id = m and c.user_id = auth.uid() and c.role in ('editor','admin')) $$;
create function storymap.is_admin(m uuid) returns boolean language sql stable security definer set search_path = '' as $$
  select exists (select from storymap.story_maps s where s.id = m and s.created_by = auth.uid())
      or exists (select from storymap.collaborators c where c.map_id = m and c.user_id = auth.uid() and c.role = 'admin') $$;
create function storymap.fill_comment() returns trigger language plpgsql security definer set search_path = '' as $$
begin select map_id into new.map_id from storymap.stories where id = new.story_id; return new; end $$;
create trigger fill before insert on storymap.comments for each row execute function storymap.fill_comment();
create function storymap.bury() returns trigger language plpgsql security definer set search_path = '' as $$
begin insert into storymap.tombstones values (tg_table_name, old.id, old.map_id, clock_timestamp(), auth.sub())
      on conflict (table_name, row_id) do update set deleted_at = excluded.deleted_at; return null; end $$;
create function storymap.move_story(id uuid, to_step_id uuid, to_release_id uuid, new_sort_order int default null) returns setof storymap.stories language sql as
  $$ update storymap.stories s set step_id = $2, release_id = $3, sort_order = coalesce($4, s.sort_order) where s.id = $1 returning * $$;
create function storymap.reorder_releases(map_id uuid, release_ids uuid[]) returns setof storymap.releases language sql as
  $$ update storymap.releases r set sort_order = o.n - 1 from unnest($2) with ordinality o(id, n)
     where r.id = o.id and r.map_id = $1 and r.sort_order is distinct from o.n - 1 returning r.* $$;
create function storymap.reorder_steps(map_id uuid, step_ids uuid[]) returns setof storymap.steps language sql as
  $$ update storymap.steps r set sort_order = o.n - 1 from unnest($2) with ordinality o(id, n)
     where r.id = o.id and r.map_id = $1 and r.sort_order is distinct from o.n - 1 returning r.* $$;
create function storymap.map_sync(map_id uuid, since timestamptz default '-infinity') returns jsonb language sql stable as $$ select jsonb_build_object(
  'stories',  coalesce((select jsonb_agg(x) from storymap.stories  x where x.map_id = $1 and x.updated_at > $2), '[]'),
  'releases', coalesce((select jsonb_agg(x) from storymap.releases x where x.map_id = $1 and x.updated_at > $2), '[]'),
  'steps',    coalesce((select jsonb_agg(x) from storymap.steps    x where x.map_id = $1 and x.updated_at > $2), '[]'),
  'deleted',  coalesce((select jsonb_object_agg(t, ids) from (select table_name t, jsonb_agg(row_id) ids from storymap.tombstones d where d.map_id = $1 and d.deleted_at > $2 group by 1) q), '{}'),
  'serverTimestamp', clock_timestamp()) $$;
do $$ declare t text; begin
  foreach t in array array['steps','releases','stories'] loop
    execute format('create trigger touch before update on storymap.%I for each row execute function app.touch()', t);
    execute format('create trigger bury after delete on storymap.%I for each row execute function storymap.bury()', t);
    execute format('create policy r on storymap.%I for select to authenticated using (storymap.has_map_access(map_id))', t);
    execute format('create policy w on storymap.%I for all to authenticated using (storymap.can_edit(map_id)) with check (storymap.can_edit(map_id))', t);
  end loop;
  foreach t in array array['story_maps','collaborators','steps','releases','stories','comments'] loop
    execute format('create trigger origin before insert or update or delete on storymap.%I for each statement execute function app.tag_origin()', t);
    execute format('alter table storymap.%I replica identity full', t);
  end loop;
  foreach t in array array['profiles','story_maps','collaborators','steps','releases','stories','comments','tombstones'] loop
    execute format('alter table storymap.%I enable row level security', t);
    execute format('grant select, insert, update, delete on storymap.%I to authenticated', t);
  end loop;
end $$;
create policy r on storymap.profiles for select to authenticated using (true);
create policy r on storymap.tombstones for select to authenticated using (storymap.has_map_access(map_id));
create policy r on storymap.story_maps for select to authenticated using (created_by = auth.uid() or storymap.has_map_access(id));
create policy i on storymap.story_maps for insert to authenticated with check (created_by = auth.uid());
create policy u on storymap.story_maps for update to authenticated using (storymap.is_admin(id));
create policy d on storymap.story_maps for delete to authenticated using (created_by = auth.uid());
create policy r on storymap.collaborators for select to authenticated using (storymap.has_map_access(map_id));
create policy w on storymap.collaborators for all to authenticated using (storymap.is_admin(map_id)) with check (storymap.is_admin(map_id));
create policy leave on storymap.collaborators for delete to authenticated using (user_id = auth.uid());
create policy r on storymap.comments for select to authenticated using (storymap.has_map_access(map_id));
create policy i on storymap.comments for insert to authenticated with check (author_id = auth.uid() and storymap.has_map_access(map_id));
create policy d on storymap.comments for delete to authenticated using (author_id = auth.uid() or storymap.can_edit(map_id));
alter publication supabase_realtime add table
  storymap.story_maps, storymap.collaborators, storymap.steps, storymap.releases, storymap.stories, storymap.comments;

create function storymap.may_join(id text) returns boolean language plpgsql stable security definer set search_path = '' as
  $$ begin return storymap.has_map_access(id::uuid); exception when invalid_text_representation then return false; end $$;
insert into app.doors values ('map:([^:]+)', 'storymap.may_join(text)');

select walcast.map_table('storymap.stories', entity => 'story', topic => 'map:{map_id}', exclude_origin => '{update}',
  columns => '{id,step_id,release_id,title,description,sort_order,status,size,created_at,created_by,updated_at,updated_by}');
select walcast.map_event('storymap.stories', 'story.created', on_insert => true,
  columns => '{id,step_id,release_id,title,description,sort_order,status,size,created_at,created_by}');
select walcast.map_event('storymap.stories', 'story.moved', on_update_of => '{step_id,release_id,sort_order}',
  columns => '{id,step_id,release_id,sort_order,updated_at,updated_by}', exclude_origin => true);

select walcast.map_table('storymap.releases', entity => 'release', topic => 'map:{map_id}', exclude_origin => '{update}');
select walcast.map_event('storymap.releases', 'release.created', on_insert => true,
  columns => '{id,name,description,sort_order,created_at}');
select walcast.map_event('storymap.releases', 'releases.reordered', on_update_of => '{sort_order}', alone => true,
  columns => '{id,sort_order}', aggregate => 'updates', exclude_origin => true);
select walcast.map_table('storymap.steps', entity => 'step', topic => 'map:{map_id}', exclude_origin => '{update}');
select walcast.map_event('storymap.steps', 'step.created', on_insert => true, columns => '{id,name,sort_order,created_at}');
select walcast.map_event('storymap.steps', 'steps.reordered', on_update_of => '{sort_order}', alone => true,
  columns => '{id,sort_order}', aggregate => 'updates', exclude_origin => true);

select walcast.map_event('storymap.comments', 'comment.created', on_insert => true, topic => 'map:{map_id}',
  lookup => '{"profile": {"from": "storymap.profiles", "on": {"id": "author_id"}}}',
  payload => '{"id": "id", "storyId": "story_id", "content": "content", "author": "profile.name", "authorId": "author_id",
    "avatarUrl": "profile.avatar_url", "createdAt": "created_at"}');
select walcast.map_event('storymap.comments', 'comment.deleted', on_delete => true, topic => 'map:{map_id}',
  columns => '{id,story_id}');

select walcast.map_event('storymap.collaborators', 'collaborator.added', on_insert => true, topic => 'map:{map_id}',
  columns => '{user_id,role}');
select walcast.map_event('storymap.collaborators', 'collaborator.role_changed', on_update_of => '{role}', topic => 'map:{map_id}',
  payload => '{"userId": "user_id", "role": "role", "previousRole": "old.role"}');
select walcast.map_event('storymap.collaborators', 'collaborator.removed', on_delete => true, topic => 'map:{map_id}',
  columns => '{user_id,role}');

select walcast.map_table('storymap.story_maps', entity => 'map', topic => 'map:{id}', on_insert => null, exclude_origin => '{update}');
