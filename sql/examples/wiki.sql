-- wiki: a knowledge graph: nodes and edges in knowledge bases.
-- in:     app.sql
-- out:    schema wiki; its events in rooms kb:{kb_id}; Socket.IO at /wiki
create schema wiki; grant usage on schema wiki to authenticated;
create type wiki.kb_role as enum ('reader','writer','admin');
create table wiki.knowledge_bases (id uuid primary key default gen_random_uuid(), name text not null, created_by uuid not null default auth.uid(), max_users int not null default 50);
create table wiki.kb_members (kb_id uuid references wiki.knowledge_bases on delete cascade, user_id uuid, role wiki.kb_role not null default 'reader', primary key (kb_id, user_id));
create table wiki.nodes (id uuid primary key default gen_random_uuid(), kb_id uuid not null references wiki.knowledge_bases on delete cascade, kind text not null default 'page', title text not null, body text not null default '',
  properties jsonb not null default '{}', version int not null default 1, created_by uuid default auth.uid(), created_at timestamptz not null default now(), updated_at timestamptz not null default now(), updated_by uuid);
create table wiki.edges (id uuid primary key default gen_random_uuid(), kb_id uuid not null references wiki.knowledge_bases on delete cascade, source_id uuid not null references wiki.nodes on delete cascade, target_id uuid not null references wiki.nodes on delete cascade,
  relation text not null, created_by uuid default auth.uid(), created_at timestamptz not null default now(), unique (source_id, target_id, relation));
create function wiki.role_in(k uuid) returns wiki.kb_role language sql stable security definer set search_path = '' as
  $$ select case when b.created_by = auth.uid() then 'admin'::wiki.kb_role else m.role end from wiki.knowledge_bases b left join wiki.kb_members m on m.kb_id = b.id and m.user_id = auth.uid() where b.id = k $$;
create function wiki.bump() returns trigger language plpgsql as $$ begin
  if new.version is distinct from old.version then raise exception 'stale version %, current is %', new.version, old.version using errcode = 'PT409'; end if;
  new.version := old.version + 1; return new; end $$;
create trigger a_bump before update on wiki.nodes for each row execute function wiki.bump();
create trigger touch before update on wiki.nodes for each row execute function app.touch();
do $$ declare t text; begin
  foreach t in array array['knowledge_bases','kb_members','nodes','edges'] loop
    execute format('alter table wiki.%I enable row level security', t); execute format('alter table wiki.%I replica identity full', t);
    execute format('grant select, insert, update, delete on wiki.%I to authenticated', t);
    execute format('create trigger origin before insert or update or delete on wiki.%I for each statement execute function app.tag_origin()', t);
  end loop;
  foreach t in array array['kb_members','nodes','edges'] loop
    execute format('create policy r on wiki.%I for select to authenticated using (wiki.role_in(kb_id) is not null)', t);
    execute format($f$create policy w on wiki.%I for all to authenticated using (wiki.role_in(kb_id) >= %L) with check (wiki.role_in(kb_id) >= %L)$f$, t, case t when 'kb_members' then 'admin' else 'writer' end, case t when 'kb_members' then 'admin' else 'writer' end);
  end loop; end $$;
create policy r on wiki.knowledge_bases for select to authenticated using (created_by = (select auth.uid()) or wiki.role_in(id) is not null);
create policy i on wiki.knowledge_bases for insert to authenticated with check (created_by = (select auth.uid()));
alter publication supabase_realtime add table
  wiki.knowledge_bases, wiki.kb_members, wiki.nodes, wiki.edges;

create function wiki.may_write(k uuid) returns boolean language sql stable set search_path = '' as $$ select wiki.role_in(k) >= 'writer' $$;
select walcast.guard_topic('kb:{id}', reads => 'wiki.knowledge_bases', sends => 'wiki.may_write', watches => '{wiki.kb_members(kb_id)}');

select walcast.map_table('wiki.nodes', entity => 'node', topic => 'kb:{kb_id}');
select walcast.map_table('wiki.edges', entity => 'edge', topic => 'kb:{kb_id}', on_update => null);
select walcast.map_event('wiki.kb_members', 'member.joined', on_insert => true, topic => 'kb:{kb_id}', columns => '{user_id,role}');
select walcast.map_event('wiki.kb_members', 'member.role_changed', on_update_of => '{role}', topic => 'kb:{kb_id}',
  payload => '{"userId": "user_id", "role": "role", "previousRole": "old.role"}');
select walcast.map_event('wiki.kb_members', 'member.left', on_delete => true, topic => 'kb:{kb_id}', columns => '{user_id,role}');

-- Socket.IO.
create function wiki.member(topic text) returns jsonb language sql stable set search_path = '' as
  $$ select jsonb_strip_nulls(jsonb_build_object('role', wiki.role_in(app.uuid(substr(topic, 4))))) $$;
select walcast.profile('/wiki', member => 'wiki.member(text)', events_per_second => 100);
select walcast.room('kb:{kbId}', namespace => '/wiki', join_event => 'kb.join', leave_event => 'kb.leave',
  joined_event => 'kb.joined', joined_payload => '{"kbId": "topic.kbId", "users": "$users"}',
  user_payload => '{"userId": "$sub", "role": "member.role", "email": "claims.email"}',
  user_joined => 'presence.join', user_joined_payload => '{"userId": "$sub", "role": "member.role", "email": "claims.email"}',
  user_left => 'presence.leave', user_left_payload => '{"userId": "$sub"}',
  capacity => 100, denied => 'Access denied to this knowledge base',
  pattern => '{"kbId": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"}');
select walcast.command('node.create', table_name => 'wiki.nodes', operation => 'insert', namespace => '/wiki',
  columns => '{kb_id,kind,title,body,properties}', required => '{kbId,title}',
  failed => 'CREATE_FAILED', failed_message => 'Failed to create node');
select walcast.command('node.update', table_name => 'wiki.nodes', operation => 'update', namespace => '/wiki',
  columns => '{kind,title,body,properties}', ignores => '{kb_id}', required => '{id}', version => 'version', version_member => 'version',
  failed => 'UPDATE_FAILED', failed_message => 'Failed to update node');
select walcast.command('node.delete', table_name => 'wiki.nodes', operation => 'delete', namespace => '/wiki', required => '{id}',
  failed => 'DELETE_FAILED', failed_message => 'Failed to delete node');
select walcast.command('edge.create', table_name => 'wiki.edges', operation => 'insert', namespace => '/wiki',
  columns => '{kb_id,source_id,target_id,relation}', required => '{kbId,sourceId,targetId,relation}',
  failed => 'CREATE_FAILED', failed_message => 'Failed to create edge');
select walcast.command('edge.delete', table_name => 'wiki.edges', operation => 'delete', namespace => '/wiki', required => '{id}',
  failed => 'DELETE_FAILED', failed_message => 'Failed to delete edge');
select walcast.relay('typing', 'typing', topic => 'kb:{kbId}', namespace => '/wiki',
  payload => '{"nodeId": "payload.nodeId", "userId": "$sub", "isTyping": {"value": true}, "timestamp": "$time"}',
  key => '{nodeId}', expires => '3 s', active_member => 'isTyping', stopped => 'typing',
  stopped_payload => '{"nodeId": "payload.nodeId", "userId": "$sub", "isTyping": {"value": false}, "timestamp": "$time"}');
select walcast.relay('cursor', 'cursor', topic => 'kb:{kbId}', namespace => '/wiki',
  payload => '{"nodeId": "payload.nodeId", "userId": "$sub", "position": "payload.position", "timestamp": "$time"}',
  min_interval => '100 ms', expires => null);
