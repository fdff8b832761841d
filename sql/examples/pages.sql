-- pages: pages of components and nested components.
-- in:     app.sql
-- out:    schema pages; its events in rooms entity:{type}:{id} and component:{id}
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

create function pages.may_join_entity(entity text) returns boolean language sql stable set search_path = '' as
  $$ select pages.role_in(split_part($1, ':', 1), split_part($1, ':', 2)) is not null $$;
create function pages.may_join_component(id text) returns boolean language sql stable security definer set search_path = '' as
  $$ select pages.role_in(c.entity_type, c.entity_id) is not null from pages.components c where c.id = $1 $$;
insert into app.doors values ('entity:([^:]+:[^:]+)', 'pages.may_join_entity(text)'), ('component:([^:]+)', 'pages.may_join_component(text)');

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
