-- story-map: user story mapping: maps with steps, releases, stories and comments.
-- in:     app.sql
-- out:    schema storymap; its events in rooms map:{map_id}; Socket.IO at /story-maps
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
  created_at timestamptz not null default now(), created_by uuid default auth.uid(), updated_at timestamptz not null default clock_timestamp(), updated_by uuid);
create table storymap.releases (like storymap.steps including all, description text not null default '');
alter table storymap.releases add foreign key (map_id) references storymap.story_maps on delete cascade;
create table storymap.stories (
  id uuid primary key default gen_random_uuid(), map_id uuid not null references storymap.story_maps on delete cascade,
  step_id uuid references storymap.steps on delete set null,          -- NULL = "Unassigned"
  release_id uuid references storymap.releases on delete set null,    -- NULL = "Unassigned"
  title text not null, description text not null default '', status storymap.story_status not null default 'NOT_READY',
  size numeric, sort_order int not null default 0,
  created_at timestamptz not null default now(), created_by uuid default auth.uid(), updated_at timestamptz not null default clock_timestamp(), updated_by uuid);
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
create function storymap.reorder_releases(map_id uuid, release_ids uuid[]) returns setof storymap.releases language plpgsql set search_path = '' as $$
begin   -- one after the other, so that they are told in this order
  for n in 1 .. coalesce(cardinality($2), 0) loop
    return query update storymap.releases r set sort_order = n - 1
      where r.id = $2[n] and r.map_id = $1 and r.sort_order is distinct from n - 1 returning r.*;
  end loop; end $$;
create function storymap.reorder_steps(map_id uuid, step_ids uuid[]) returns setof storymap.steps language plpgsql set search_path = '' as $$
begin   -- one after the other, so that they are told in this order
  for n in 1 .. coalesce(cardinality($2), 0) loop
    return query update storymap.steps r set sort_order = n - 1
      where r.id = $2[n] and r.map_id = $1 and r.sort_order is distinct from n - 1 returning r.*;
  end loop; end $$;
create function storymap.map_sync(map_id uuid, since timestamptz default '-infinity') returns jsonb language sql stable as $$ select jsonb_build_object(
  'stories',  coalesce((select jsonb_agg(x) from storymap.stories  x where x.map_id = $1 and x.updated_at > $2), '[]'),
  'releases', coalesce((select jsonb_agg(x) from storymap.releases x where x.map_id = $1 and x.updated_at > $2), '[]'),
  'steps',    coalesce((select jsonb_agg(x) from storymap.steps    x where x.map_id = $1 and x.updated_at > $2), '[]'),
  'deleted',  coalesce((select jsonb_object_agg(t, ids) from (select table_name t, jsonb_agg(row_id) ids from storymap.tombstones d where d.map_id = $1 and d.deleted_at > $2 group by 1) q), '{}'),
  'serverTimestamp', clock_timestamp()) $$;
-- Steps and releases are of the story's own map.
create function storymap.same_map() returns trigger language plpgsql security definer set search_path = '' as $$
begin
  if new.step_id is not null and not exists (select from storymap.steps s where s.id = new.step_id and s.map_id = new.map_id)
    or new.release_id is not null and not exists (select from storymap.releases r where r.id = new.release_id and r.map_id = new.map_id)
  then raise exception 'there is no such step or release in this map' using errcode = '23503'; end if;
  return new; end $$;
create trigger same_map before insert or update of step_id, release_id on storymap.stories for each row execute function storymap.same_map();
do $$ declare t text; begin
  foreach t in array array['steps','releases','stories'] loop
    execute format('create trigger stays before update of map_id on storymap.%I for each row when (new.map_id <> old.map_id) execute function app.stays()', t);
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
create policy r on storymap.story_maps for select to authenticated using (created_by = (select auth.uid()) or storymap.has_map_access(id));
create policy i on storymap.story_maps for insert to authenticated with check (created_by = (select auth.uid()));
create policy u on storymap.story_maps for update to authenticated using (storymap.is_admin(id));
create policy d on storymap.story_maps for delete to authenticated using (created_by = (select auth.uid()));
create policy r on storymap.collaborators for select to authenticated using (storymap.has_map_access(map_id));
create policy w on storymap.collaborators for all to authenticated using (storymap.is_admin(map_id)) with check (storymap.is_admin(map_id));
create policy leave on storymap.collaborators for delete to authenticated using (user_id = (select auth.uid()));
create policy r on storymap.comments for select to authenticated using (storymap.has_map_access(map_id));
create policy i on storymap.comments for insert to authenticated with check (author_id = (select auth.uid()) and storymap.has_map_access(map_id));
create policy d on storymap.comments for delete to authenticated using (author_id = (select auth.uid()) or storymap.can_edit(map_id));
alter publication supabase_realtime add table
  storymap.story_maps, storymap.collaborators, storymap.steps, storymap.releases, storymap.stories, storymap.comments;

-- Whoever sees the map may be in its room, and whoever may edit it may speak there.
select walcast.guard_topic('map:{id}', reads => 'storymap.story_maps', sends => 'storymap.can_edit',
  watches => '{storymap.collaborators(map_id)}');

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

-- Socket.IO.
create function storymap.member(topic text) returns jsonb language sql stable set search_path = '' as $$
  select jsonb_strip_nulls(jsonb_build_object(
    'name', coalesce((select p.name from storymap.profiles p where p.id = auth.uid()), auth.jwt()->>'email'),
    'role', (select case when m.created_by = auth.uid() then 'admin' else c.role::text end
      from storymap.story_maps m left join storymap.collaborators c on c.map_id = m.id and c.user_id = auth.uid()
      where m.id = app.uuid(substr($1, 5))))) $$;
select walcast.profile('/story-maps', topics => '{"user:{sub}"}', member => 'storymap.member(text)', events_per_second => 100);
select walcast.room('map:{mapId}', namespace => '/story-maps', join_event => 'map.join', leave_event => 'map.leave',
  joined_event => 'map.joined', joined_payload => '{"mapId": "topic.mapId", "connectedUsers": "$users"}',
  user_payload => '{"id": "$sub", "name": "member.name", "role": "member.role"}',
  user_joined => 'user.joined', user_joined_payload => '{"userId": "$sub", "userName": "member.name"}',
  user_left => 'user.left', user_left_payload => '{"userId": "$sub"}',
  capacity => 5, denied => 'Access denied to this map', pattern => '{"mapId": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"}');

select walcast.command('story.create', table_name => 'storymap.stories', operation => 'insert', namespace => '/story-maps',
  columns => '{map_id,step_id,release_id,title,description}', required => '{mapId,title}',
  failed => 'CREATE_FAILED', failed_message => 'Failed to create story');
select walcast.command('story.update', table_name => 'storymap.stories', operation => 'update', namespace => '/story-maps',
  columns => '{title,description,status,size}', ignores => '{map_id}', required => '{id}',
  version => 'updated_at', version_member => 'baseUpdatedAt',
  failed => 'UPDATE_FAILED', failed_message => 'Failed to update story');
-- A null is "Unassigned"; what is not there stays.
create function storymap.story_move(payload jsonb) returns jsonb language plpgsql set search_path = '' as $$
declare story constant uuid := payload->>'id'; moved storymap.stories;
begin
  update storymap.stories s set
    step_id = case when payload ? 'toStepId' then (payload->>'toStepId')::uuid else s.step_id end,
    release_id = case when payload ? 'toReleaseId' then (payload->>'toReleaseId')::uuid else s.release_id end,
    sort_order = coalesce((payload->>'newSortOrder')::int, s.sort_order)
  where s.id = story returning s.* into moved;
  if not found then perform app.untouched(exists (select from storymap.stories s where s.id = story)); end if;
  return app.camel(to_jsonb(moved));
end $$;
select walcast.command('story.move', 'storymap.story_move(jsonb)', namespace => '/story-maps', required => '{id}',
  failed => 'MOVE_FAILED', failed_message => 'Failed to move story');
select walcast.command('story.delete', table_name => 'storymap.stories', operation => 'delete', namespace => '/story-maps',
  required => '{id}', failed => 'DELETE_FAILED', failed_message => 'Failed to delete story');

select walcast.command('comment.create', table_name => 'storymap.comments', operation => 'insert', namespace => '/story-maps',
  columns => '{story_id,content}', ignores => '{map_id}', required => '{storyId,content}',
  failed => 'CREATE_FAILED', failed_message => 'Failed to create comment');
select walcast.command('comment.delete', table_name => 'storymap.comments', operation => 'delete', namespace => '/story-maps',
  required => '{id}', failed => 'DELETE_FAILED', failed_message => 'Failed to delete comment');

-- New ones stand behind the others.
create function storymap.release_create(payload jsonb) returns jsonb language sql set search_path = '' as $$
  insert into storymap.releases (map_id, name, description, sort_order)
  select m.id, payload->>'name', coalesce(payload->>'description', ''),
    (select coalesce(max(r.sort_order) + 1, 0) from storymap.releases r where r.map_id = m.id)
  from (select (payload->>'mapId')::uuid) as m(id) returning app.camel(to_jsonb(releases)) $$;
create function storymap.step_create(payload jsonb) returns jsonb language sql set search_path = '' as $$
  insert into storymap.steps (map_id, name, sort_order)
  select m.id, payload->>'name', (select coalesce(max(s.sort_order) + 1, 0) from storymap.steps s where s.map_id = m.id)
  from (select (payload->>'mapId')::uuid) as m(id) returning app.camel(to_jsonb(steps)) $$;
-- What is named stands in this order; the answer is the whole of it, the event what has changed.
create function storymap.releases_reorder(payload jsonb) returns jsonb language plpgsql set search_path = '' as $$
declare map constant uuid := payload->>'mapId'; ids constant uuid[] := array(select jsonb_array_elements_text(payload->'releaseIds'));
begin
  if storymap.can_edit(map) is not true then perform app.untouched(storymap.has_map_access(map)); end if;
  perform storymap.reorder_releases(map, ids);
  return jsonb_build_object('updates', (select coalesce(jsonb_agg(jsonb_build_object('id', r.id, 'sortOrder', r.sort_order) order by r.sort_order), '[]')
    from storymap.releases r where r.map_id = map and r.id = any (ids)));
end $$;
create function storymap.steps_reorder(payload jsonb) returns jsonb language plpgsql set search_path = '' as $$
declare map constant uuid := payload->>'mapId'; ids constant uuid[] := array(select jsonb_array_elements_text(payload->'stepIds'));
begin
  if storymap.can_edit(map) is not true then perform app.untouched(storymap.has_map_access(map)); end if;
  perform storymap.reorder_steps(map, ids);
  return jsonb_build_object('updates', (select coalesce(jsonb_agg(jsonb_build_object('id', s.id, 'sortOrder', s.sort_order) order by s.sort_order), '[]')
    from storymap.steps s where s.map_id = map and s.id = any (ids)));
end $$;
select walcast.command('release.create', 'storymap.release_create(jsonb)', namespace => '/story-maps', required => '{mapId,name}',
  failed => 'CREATE_FAILED', failed_message => 'Failed to create release');
select walcast.command('release.update', table_name => 'storymap.releases', operation => 'update', namespace => '/story-maps',
  columns => '{name,description}', ignores => '{map_id}', required => '{id}', version => 'updated_at', version_member => 'baseUpdatedAt',
  failed => 'UPDATE_FAILED', failed_message => 'Failed to update release');
select walcast.command('release.delete', table_name => 'storymap.releases', operation => 'delete', namespace => '/story-maps',
  required => '{id}', failed => 'DELETE_FAILED', failed_message => 'Failed to delete release');
select walcast.command('releases.reorder', 'storymap.releases_reorder(jsonb)', namespace => '/story-maps', required => '{mapId,releaseIds}',
  failed => 'UPDATE_FAILED', failed_message => 'Failed to reorder releases');
select walcast.command('step.create', 'storymap.step_create(jsonb)', namespace => '/story-maps', required => '{mapId,name}',
  failed => 'CREATE_FAILED', failed_message => 'Failed to create step');
select walcast.command('step.update', table_name => 'storymap.steps', operation => 'update', namespace => '/story-maps',
  columns => '{name}', ignores => '{map_id}', required => '{id}', version => 'updated_at', version_member => 'baseUpdatedAt',
  failed => 'UPDATE_FAILED', failed_message => 'Failed to update step');
select walcast.command('step.delete', table_name => 'storymap.steps', operation => 'delete', namespace => '/story-maps',
  required => '{id}', failed => 'DELETE_FAILED', failed_message => 'Failed to delete step');
select walcast.command('steps.reorder', 'storymap.steps_reorder(jsonb)', namespace => '/story-maps', required => '{mapId,stepIds}',
  failed => 'UPDATE_FAILED', failed_message => 'Failed to reorder steps');

-- What changed since; everything where it is not said since when. Its serverTimestamp is the next lastSyncTimestamp: no
-- transaction that was on its way now has touched rows before it.
create function storymap.sync(payload jsonb) returns jsonb language plpgsql set search_path = '' as $$
declare map constant uuid := payload->>'mapId'; settled timestamptz; since jsonb;
begin
  if storymap.has_map_access(map) is not true then
    raise exception 'Access denied to this map' using errcode = 'PT403', hint = 'ACCESS_DENIED';
  end if;
  settled := app.settled_at();
  since := storymap.map_sync(map, coalesce((payload->>'lastSyncTimestamp')::timestamptz, '-infinity'));
  return since || jsonb_build_object('stories', app.camel(since->'stories'), 'releases', app.camel(since->'releases'),
    'steps', app.camel(since->'steps'), 'serverTimestamp', settled);
end $$;
select walcast.command('map.sync', 'storymap.sync(jsonb)', namespace => '/story-maps', required => '{mapId}',
  reply_event => 'map.synced', failed => 'SYNC_FAILED', failed_message => 'Failed to read the map');

-- Who drags what, until he says that he stopped, leaves, or is silent for long.
select walcast.relay('story.drag.start', 'story.dragging', topic => 'map:{mapId}', namespace => '/story-maps',
  payload => '{"storyId": "payload.storyId", "userId": "$sub", "userName": "member.name", "x": "payload.x", "y": "payload.y"}',
  key => '{storyId}', min_interval => '100 ms', expires => '30 s', stop_event => 'story.drag.end',
  stopped => 'story.drag.end', stopped_payload => '{"storyId": "payload.storyId", "userId": "$sub"}');
