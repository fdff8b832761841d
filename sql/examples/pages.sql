-- pages: pages of components and nested components.
-- in:     app.sql
-- out:    schema pages; its events in rooms entity:{type}:{id} and component:{id}; Socket.IO at /pages
create schema pages; grant usage on schema pages to authenticated;
create table pages.entities (entity_type text, entity_id text, title text, created_by text not null default auth.sub(), primary key (entity_type, entity_id));
create table pages.entity_members (entity_type text, entity_id text, user_id text, role text not null default 'viewer' check (role in ('viewer','editor','admin')),
  primary key (entity_type, entity_id, user_id), foreign key (entity_type, entity_id) references pages.entities on delete cascade);
create table pages.components (id text primary key default gen_random_uuid()::text, entity_type text not null, entity_id text not null, kind text not null default 'text', props jsonb not null default '{}', position int not null default 0,
  created_by text default auth.sub(), created_at timestamptz not null default now(), updated_at timestamptz not null default now(), updated_by text, foreign key (entity_type, entity_id) references pages.entities on delete cascade);
create table pages.nested_components (id text primary key default gen_random_uuid()::text, component_id text not null references pages.components on delete cascade, row_id text not null, entity_type text not null, entity_id text not null,
  kind text not null default 'text', props jsonb not null default '{}', position int not null default 0,
  created_by text default auth.sub(), created_at timestamptz not null default now(), updated_at timestamptz not null default now(), updated_by text);
create function pages.role_in(t text, i text) returns text language sql stable security definer set search_path = '' as
  $$ select case when e.created_by = auth.sub() then 'admin' else m.role end from pages.entities e left join pages.entity_members m on (m.entity_type, m.entity_id, m.user_id) = (e.entity_type, e.entity_id, auth.sub()) where (e.entity_type, e.entity_id) = (t, i) $$;
create function pages.fill_nested() returns trigger language plpgsql security definer set search_path = '' as $$
begin select entity_type, entity_id into new.entity_type, new.entity_id from pages.components where id = new.component_id; return new; end $$;
create trigger fill before insert on pages.nested_components for each row execute function pages.fill_nested();
do $$ declare t text; begin
  foreach t in array array['entities','entity_members','components','nested_components'] loop
    execute format('alter table pages.%I enable row level security', t); execute format('alter table pages.%I replica identity full', t);
    execute format('grant select, insert, update, delete on pages.%I to authenticated', t);
    execute format('create trigger origin before insert or update or delete on pages.%I for each statement execute function app.tag_origin()', t);
  end loop;
  foreach t in array array['components','nested_components'] loop
    execute format('create trigger touch before update on pages.%I for each row execute function app.touch()', t);
    execute format('create policy r on pages.%I for select to authenticated using (pages.role_in(entity_type, entity_id) is not null)', t);
    execute format($f$create policy w on pages.%I for all to authenticated using (pages.role_in(entity_type, entity_id) in ('editor','admin')) with check (pages.role_in(entity_type, entity_id) in ('editor','admin'))$f$, t);
  end loop; end $$;
create policy r on pages.entities for select to authenticated using (created_by = auth.sub() or pages.role_in(entity_type, entity_id) is not null);
create policy i on pages.entities for insert to authenticated with check (created_by = auth.sub());
create policy r on pages.entity_members for select to authenticated using (pages.role_in(entity_type, entity_id) is not null);
create policy w on pages.entity_members for all to authenticated using (pages.role_in(entity_type, entity_id) = 'admin') with check (pages.role_in(entity_type, entity_id) = 'admin');
alter publication supabase_realtime add table
  pages.entities, pages.entity_members, pages.components, pages.nested_components;

-- A component stays on its page, so that who may be in its room is a question of memberships alone.
create trigger stays before update on pages.components for each row
  when ((new.entity_type, new.entity_id) <> (old.entity_type, old.entity_id)) execute function app.stays();
create trigger stays before update on pages.nested_components for each row
  when ((new.component_id, new.entity_type, new.entity_id) <> (old.component_id, old.entity_type, old.entity_id)) execute function app.stays();
create function pages.role_at(component text) returns text language sql stable security definer set search_path = '' as
  $$ select pages.role_in(c.entity_type, c.entity_id) from pages.components c where c.id = $1 $$;
create function pages.may_join_entity(t text, i text) returns boolean language sql stable set search_path = '' as $$ select pages.role_in(t, i) is not null $$;
create function pages.may_join_component(id text) returns boolean language sql stable set search_path = '' as $$ select pages.role_at(id) is not null $$;
create function pages.may_speak_at_entity(t text, i text) returns boolean language sql stable set search_path = '' as $$ select pages.role_in(t, i) in ('editor','admin') $$;
create function pages.may_speak_at_component(id text) returns boolean language sql stable set search_path = '' as $$ select pages.role_at(id) in ('editor','admin') $$;
select walcast.guard_topic('entity:{type}:{id}', allows => 'pages.may_join_entity', sends => 'pages.may_speak_at_entity',
  watches => '{"pages.entity_members(entity_type,entity_id)"}');
select walcast.guard_topic('component:{id}', allows => 'pages.may_join_component', sends => 'pages.may_speak_at_component',
  watches => '{pages.entity_members}');

select walcast.map_event('pages.components', 'component:created', on_insert => true, topic => 'entity:{entity_type}:{entity_id}',
  payload => '{"componentId": "id", "entityType": "entity_type", "entityId": "entity_id", "component": "$row",
    "createdBy": ["created_by", "$actor"], "timestamp": "$time"}');
select walcast.map_event('pages.components', 'component:updated', on_update_of => '{kind,props,position}',
  topics => '{"component:{id}","entity:{entity_type}:{entity_id}"}', columns => '{kind,props,position}', exclude_origin => true,
  payload => '{"componentId": "id", "updates": "$changes", "updatedBy": ["updated_by", "$actor"], "timestamp": "$time"}');
select walcast.map_event('pages.components', 'component:deleted', on_delete => true,
  topics => '{"component:{id}","entity:{entity_type}:{entity_id}"}',
  payload => '{"componentId": "id", "deletedBy": "$actor", "timestamp": "$time"}');

select walcast.map_event('pages.nested_components', 'component:nested-created', on_insert => true, topic => 'component:{component_id}',
  payload => '{"componentId": "component_id", "rowId": "row_id", "nestedComponent": "$row", "createdBy": ["created_by", "$actor"]}');
select walcast.map_event('pages.nested_components', 'component:nested-updated', on_update_of => '{row_id,kind,props,position}',
  topic => 'component:{component_id}', columns => '{row_id,kind,props,position}', exclude_origin => true,
  payload => '{"componentId": "component_id", "rowId": "row_id", "nestedComponentId": "id", "updates": "$changes",
    "updatedBy": ["updated_by", "$actor"], "timestamp": "$time"}');
select walcast.map_event('pages.nested_components', 'component:nested-deleted', on_delete => true, topic => 'component:{component_id}',
  payload => '{"componentId": "component_id", "rowId": "row_id", "nestedComponentId": "id", "deletedBy": "$actor"}');

-- Socket.IO.
select walcast.profile('/pages', token_missing => 'Authentication error: No token provided',
  token_invalid => 'Authentication error: Invalid token', topics => '{"user:{sub}"}', events_per_second => 100);
-- Either room, or both, by what the payload says.
select walcast.room('component:{componentId}', namespace => '/pages', join_event => 'component:subscribe', leave_event => 'component:unsubscribe',
  user_payload => '{"userId": "$sub", "userEmail": "claims.email"}',
  user_joined => 'component:user-joined', user_joined_payload => '{"userId": "$sub", "userEmail": "claims.email"}',
  user_left => 'component:user-left', user_left_payload => '{"userId": "$sub", "userEmail": "claims.email"}',
  announce_self => true, denied => 'Access denied to this component', pattern => '{"componentId": "^[A-Za-z0-9_-]{1,100}$"}');
select walcast.room('entity:{entityType}:{entityId}', namespace => '/pages', join_event => 'component:subscribe', leave_event => 'component:unsubscribe',
  user_payload => '{"userId": "$sub", "userEmail": "claims.email"}',
  user_joined => 'component:user-joined', user_joined_payload => '{"userId": "$sub", "userEmail": "claims.email"}',
  user_left => 'component:user-left', user_left_payload => '{"userId": "$sub", "userEmail": "claims.email"}',
  announce_self => true, denied => 'Access denied to this page',
  pattern => '{"entityType": "^[A-Za-z0-9_-]{1,100}$", "entityId": "^[A-Za-z0-9_-]{1,100}$"}');

create function pages.component_update(payload jsonb) returns jsonb language plpgsql set search_path = '' as $$
declare component constant text := payload->>'componentId'; updates constant jsonb := payload->'updates'; updated pages.components;
begin
  perform app.only(updates, '{kind,props,position}');
  update pages.components c set
    kind = case when updates ? 'kind' then updates->>'kind' else c.kind end,
    props = case when updates ? 'props' then updates->'props' else c.props end,
    position = case when updates ? 'position' then (updates->>'position')::int else c.position end
  where c.id = component returning c.* into updated;
  if not found then perform app.untouched(exists (select from pages.components c where c.id = component)); end if;
  return app.camel(to_jsonb(updated));
end $$;
create function pages.nested_create(payload jsonb) returns jsonb language plpgsql set search_path = '' as $$
declare component constant text := payload->>'componentId'; nested constant jsonb := payload->'nestedComponent'; created pages.nested_components;
begin
  perform app.only(nested, '{id,kind,props,position}');
  if not exists (select from pages.components c where c.id = component) then perform app.untouched(false); end if;
  insert into pages.nested_components (id, component_id, row_id, kind, props, position)
    values (coalesce(nested->>'id', gen_random_uuid()::text), component, payload->>'rowId', coalesce(nested->>'kind', 'text'),
      coalesce(nested->'props', '{}'), coalesce((nested->>'position')::int, 0))
    returning * into created;
  return app.camel(to_jsonb(created));
end $$;
create function pages.nested_update(payload jsonb) returns jsonb language plpgsql set search_path = '' as $$
declare nested constant text := payload->>'nestedComponentId'; component constant text := payload->>'componentId'; updates constant jsonb := payload->'updates';
  updated pages.nested_components;
begin
  perform app.only(updates, '{rowId,kind,props,position}');
  update pages.nested_components n set
    row_id = case when updates ? 'rowId' then updates->>'rowId' else n.row_id end,
    kind = case when updates ? 'kind' then updates->>'kind' else n.kind end,
    props = case when updates ? 'props' then updates->'props' else n.props end,
    position = case when updates ? 'position' then (updates->>'position')::int else n.position end
  where n.id = nested and n.component_id = component returning n.* into updated;
  if not found then perform app.untouched(exists (select from pages.nested_components n where n.id = nested and n.component_id = component)); end if;
  return app.camel(to_jsonb(updated));
end $$;
create function pages.nested_delete(payload jsonb) returns jsonb language plpgsql set search_path = '' as $$
declare nested constant text := payload->>'nestedComponentId'; component constant text := payload->>'componentId'; deleted pages.nested_components;
begin
  delete from pages.nested_components n where n.id = nested and n.component_id = component returning n.* into deleted;
  if not found then perform app.untouched(exists (select from pages.nested_components n where n.id = nested and n.component_id = component)); end if;
  return app.camel(to_jsonb(deleted));
end $$;
select walcast.command('component:update', 'pages.component_update(jsonb)', namespace => '/pages', required => '{componentId,updates}',
  failed => 'UPDATE_FAILED', failed_message => 'Failed to update component');
select walcast.command('component:nested-create', 'pages.nested_create(jsonb)', namespace => '/pages', required => '{componentId,rowId,nestedComponent}',
  failed => 'CREATE_FAILED', failed_message => 'Failed to create nested component');
select walcast.command('component:nested-update', 'pages.nested_update(jsonb)', namespace => '/pages', required => '{componentId,nestedComponentId,updates}',
  failed => 'UPDATE_FAILED', failed_message => 'Failed to update nested component');
select walcast.command('component:nested-delete', 'pages.nested_delete(jsonb)', namespace => '/pages', required => '{componentId,nestedComponentId}',
  failed => 'DELETE_FAILED', failed_message => 'Failed to delete nested component');

select walcast.relay('component:typing', 'component:typing', topic => 'component:{componentId}', namespace => '/pages',
  payload => '{"componentId": "topic.componentId", "userId": "$sub", "userEmail": "claims.email"}', expires => null);
-- Where whose cursor is on the page: at most ten times a second, and the last place always.
select walcast.relay('component:cursor', 'component:cursor', topic => 'entity:{entityType}:{entityId}', namespace => '/pages',
  payload => '{"componentId": "payload.componentId", "userId": "$sub", "userEmail": "claims.email", "position": "payload.position"}',
  min_interval => '100 ms', expires => null);
