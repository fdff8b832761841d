-- reading: social reading: presence, activity, reading sessions.
-- in:     app.sql
-- out:    schema reading; its events in rooms presence, activity, user:{user_id} and room:{room_name}; paths below
--         /api/; Socket.IO at /reading
create schema reading; grant usage on schema reading to authenticated, anon;
create type reading.presence_status as enum ('online','away','offline');
create type reading.device_type     as enum ('web','mobile','tablet','desktop');
create type reading.activity_type   as enum ('book_started','book_finished','post_created','review_created','session_joined','follow','like','comment');
create type reading.session_status  as enum ('active','ended');
create table reading.user_presence (
  user_id uuid primary key, status reading.presence_status not null default 'offline', device_type reading.device_type not null default 'web',
  is_typing boolean not null default false, typing_location text, last_seen_at timestamptz not null default now(), updated_at timestamptz not null default now());
create table reading.activity_stream (
  id uuid primary key default gen_random_uuid(), user_id uuid not null default auth.uid(), activity_type reading.activity_type not null,
  entity_type text, entity_id uuid, metadata jsonb not null default '{}' check (jsonb_typeof(metadata) = 'object' and length(metadata::text) <= 8192),
  is_public boolean not null default true, created_at timestamptz not null default now(), updated_at timestamptz not null default now());
create table reading.collaboration_sessions (
  id uuid primary key default gen_random_uuid(), room_name text not null unique, created_by uuid not null default auth.uid(), entity_type text, entity_id uuid,
  status reading.session_status not null default 'active', max_participants int not null default 20, created_at timestamptz not null default now(), updated_at timestamptz not null default now(), unique (id, room_name));
create table reading.session_participants (
  session_id uuid, room_name text not null,   -- room_name denormalised so a row routes itself; composite FK stops a client from naming another room
  user_id uuid not null default auth.uid(), is_active boolean not null default true,
  cursor_position jsonb, joined_at timestamptz not null default now(), left_at timestamptz, updated_at timestamptz not null default now(), primary key (session_id, user_id),
  foreign key (session_id, room_name) references reading.collaboration_sessions (id, room_name) on delete cascade);
create index up_status on reading.user_presence (status, last_seen_at desc);            -- 4 pkeys + 2 uniques + these 5 = 11
create index as_public on reading.activity_stream (created_at desc) where is_public;
create index as_user   on reading.activity_stream (user_id, created_at desc);
create index as_type   on reading.activity_stream (activity_type, created_at desc);
create index sp_active on reading.session_participants (session_id, joined_at) where is_active;
create materialized view reading.presence_summary as select status, device_type, count(*) as users, max(last_seen_at) as last_seen_at from reading.user_presence group by 1, 2;
create materialized view reading.activity_trends  as select date_trunc('hour', created_at) as bucket, activity_type, count(*) as n from reading.activity_stream where is_public group by 1, 2;
create function reading.get_online_users(lim int default 100) returns setof reading.user_presence language sql stable as
  $$ select * from reading.user_presence where status = 'online' order by last_seen_at desc limit lim $$;
create function reading.get_feed_activities(lim int default 20, off int default 0, kinds reading.activity_type[] default null) returns setof reading.activity_stream language sql stable as
  $$ select * from reading.activity_stream where (is_public or user_id = auth.uid()) and (kinds is null or activity_type = any (kinds)) order by created_at desc limit lim offset off $$;
create function reading.join_session(room text) returns reading.collaboration_sessions language plpgsql security definer set search_path = '' as $$
declare s reading.collaboration_sessions; n int;
begin
  if auth.uid() is null then raise exception 'not authenticated' using errcode = '28000'; end if;
  insert into reading.collaboration_sessions (room_name) values (room) on conflict (room_name) do update set status = 'active' returning * into s;
  select count(*) into n from reading.session_participants p where p.session_id = s.id and p.is_active and p.user_id <> auth.uid();
  if n >= s.max_participants then raise exception 'session is full' using errcode = 'PT429', hint = 'ROOM_FULL'; end if;
  insert into reading.session_participants (session_id, room_name) values (s.id, s.room_name) on conflict (session_id, user_id) do update set is_active = true, left_at = null, joined_at = now();
  return s; end $$;
create function reading.leave_session(sid uuid) returns void language sql security definer set search_path = '' as
  $$ update reading.session_participants set is_active = false, left_at = now() where session_id = sid and user_id = auth.uid() and is_active $$;
do $$ declare t text; begin
  foreach t in array array['user_presence','activity_stream','collaboration_sessions','session_participants'] loop
    execute format('create trigger %I before update on reading.%I for each row execute function app.touch_ts()', t || '_touch', t);
    execute format('alter table reading.%I enable row level security', t);
    execute format('alter table reading.%I replica identity full', t);
    execute format('grant select, insert, update, delete on reading.%I to authenticated', t);
  end loop; end $$;
grant select on reading.presence_summary, reading.activity_trends to authenticated;
create policy up_r on reading.user_presence for select to authenticated using (true);
create policy up_i on reading.user_presence for insert to authenticated with check (user_id = (select auth.uid()));
create policy up_u on reading.user_presence for update to authenticated using (user_id = (select auth.uid())) with check (user_id = (select auth.uid()));
create policy up_d on reading.user_presence for delete to authenticated using (user_id = (select auth.uid()));
create policy as_r on reading.activity_stream for select to authenticated using (is_public or user_id = (select auth.uid()));
create policy as_i on reading.activity_stream for insert to authenticated with check (user_id = (select auth.uid()));
create policy as_u on reading.activity_stream for update to authenticated using (user_id = (select auth.uid()));
create policy as_d on reading.activity_stream for delete to authenticated using (user_id = (select auth.uid()));
create function app.in_session(sid uuid) returns boolean language sql stable security definer set search_path = '' as
  $$ select exists (select from reading.session_participants p where p.session_id = sid and p.user_id = auth.uid() and p.is_active) $$;
create policy cs_r on reading.collaboration_sessions for select to authenticated using (created_by = (select auth.uid()) or app.in_session(id));
create policy cs_i on reading.collaboration_sessions for insert to authenticated with check (created_by = (select auth.uid()));
create policy cs_u on reading.collaboration_sessions for update to authenticated using (created_by = (select auth.uid()));
create policy sp_r on reading.session_participants for select to authenticated using (user_id = (select auth.uid()) or app.in_session(session_id));
create policy sp_i on reading.session_participants for insert to authenticated with check (user_id = (select auth.uid()));
create policy sp_u on reading.session_participants for update to authenticated using (user_id = (select auth.uid())) with check (user_id = (select auth.uid()));
alter publication supabase_realtime add table
  reading.user_presence, reading.activity_stream, reading.collaboration_sessions, reading.session_participants;

create function reading.may_join_room(name text) returns boolean language sql stable security definer set search_path = '' as
  $$ select exists (select from reading.session_participants p where p.room_name = $1 and p.user_id = auth.uid() and p.is_active) $$;
select walcast.guard_topic('presence', allows => 'app.anybody', sends => 'nobody');
select walcast.guard_topic('activity', allows => 'app.anybody', sends => 'nobody');
select walcast.guard_topic('room:{room_name}', allows => 'reading.may_join_room', watches => '{reading.session_participants(room_name)}');

select walcast.map_event('reading.user_presence', 'presence:update', on_insert => true, on_update_of => '{status,device_type}',
  topic => 'presence', payload => '{"userId": "user_id", "status": "status", "deviceType": "device_type",
    "lastSeenAt": "last_seen_at", "timestamp": "$time"}');

select walcast.map_event('reading.activity_stream', 'activity:new', on_insert => true, when_new => '{"is_public": true}',
  topic => 'activity', payload => '{"userId": "user_id", "activity": "$row", "timestamp": "$time"}');
select walcast.map_event('reading.activity_stream', 'activity:new', name => 'activity:new, not public', on_insert => true,
  when_new => '{"is_public": false}', topic => 'user:{user_id}',
  payload => '{"userId": "user_id", "activity": "$row", "timestamp": "$time"}');
select walcast.map_event('reading.activity_stream', 'activity:removed', on_update_of => '{is_public}', on_delete => true,
  when_old => '{"is_public": true}', when_new => '{"is_public": false}', topic => 'activity', columns => '{id}');
select walcast.map_event('reading.activity_stream', 'activity:removed', name => 'activity:removed, not public', on_delete => true,
  when_old => '{"is_public": false}', topic => 'user:{user_id}', columns => '{id}');

select walcast.map_event('reading.session_participants', 'collab:user_joined', on_insert => true, on_update_of => '{is_active}',
  when_new => '{"is_active": true}', topic => 'room:{room_name}',
  payload => '{"userId": "user_id", "roomName": "room_name", "timestamp": "$time"}');
select walcast.map_event('reading.session_participants', 'collab:user_left', on_update_of => '{is_active}', on_delete => true,
  when_old => '{"is_active": true}', when_new => '{"is_active": false}', topic => 'room:{room_name}',
  payload => '{"userId": "user_id", "roomName": "room_name", "timestamp": "$time"}');
select walcast.map_event('reading.collaboration_sessions', 'collab:ended', on_update_of => '{status}',
  when_new => '{"status": "ended"}', topic => 'room:{room_name}', payload => '{"sessionId": "id"}');

-- What clients call, by Socket.IO and by REST. Who it is about is who calls, whatever they say.
create function reading.write_presence(payload jsonb) returns jsonb language plpgsql set search_path = '' as $$
declare device constant reading.device_type := coalesce(payload->>'deviceType', payload->>'device_type'); written reading.user_presence;
begin
  insert into reading.user_presence as p (user_id, status, device_type, last_seen_at)
    values (auth.uid(), coalesce(payload->>'status', 'online')::reading.presence_status, coalesce(device, 'web'), clock_timestamp())
    on conflict (user_id) do update set status = excluded.status, device_type = coalesce(device, p.device_type), last_seen_at = excluded.last_seen_at
    returning * into written;
  return app.camel(to_jsonb(written));
end $$;
create function reading.new_activity(payload jsonb) returns jsonb language plpgsql set search_path = '' as $$
declare item constant jsonb := coalesce(payload->'activity', payload); written reading.activity_stream;
begin
  if jsonb_typeof(item) <> 'object' then raise exception 'activity is no object' using errcode = 'PT400'; end if;
  insert into reading.activity_stream (activity_type, entity_type, entity_id, metadata, is_public)
    values (coalesce(item->>'activityType', item->>'activity_type')::reading.activity_type, coalesce(item->>'entityType', item->>'entity_type'),
      coalesce(item->>'entityId', item->>'entity_id')::uuid, coalesce(item->'metadata', '{}'),
      coalesce(item->>'isPublic', item->>'is_public', 'true')::boolean)
    returning * into written;
  return app.camel(to_jsonb(written));
end $$;
-- A session by its name, which makes it where there is none, or by its id.
create function reading.room_of(sid uuid) returns text language sql stable security definer set search_path = '' as
  $$ select s.room_name from reading.collaboration_sessions s where s.id = sid $$;
create function reading.join_room(payload jsonb) returns jsonb language plpgsql set search_path = '' as $$
declare room constant text := coalesce(payload->>'roomName', reading.room_of((payload->>'sessionId')::uuid)); s reading.collaboration_sessions;
begin
  if room is null then
    if payload->>'sessionId' is null then raise exception 'roomName or sessionId is needed' using errcode = 'PT400'; end if;
    raise exception 'There is no such session' using errcode = 'PT404';
  end if;
  if room !~ '^[^]:/,*{}[:cntrl:]]{1,100}$' then raise exception 'roomName cannot be a name' using errcode = 'PT400'; end if;
  s := reading.join_session(room);
  return jsonb_build_object('sessionId', s.id, 'roomName', s.room_name, 'status', s.status);
end $$;
create function reading.leave_room(payload jsonb) returns jsonb language plpgsql set search_path = '' as $$
declare p reading.session_participants;
begin
  select * into p from reading.session_participants q where q.user_id = auth.uid()
    and (q.session_id = (payload->>'sessionId')::uuid or q.room_name = payload->>'roomName');
  if not found then raise exception 'There is no such session' using errcode = 'PT404'; end if;
  perform reading.leave_session(p.session_id);
  return jsonb_build_object('sessionId', p.session_id, 'roomName', p.room_name);
end $$;
create function reading.api_join("roomName" text default null, "sessionId" text default null) returns jsonb language sql set search_path = '' as
  $$ select reading.join_room(jsonb_build_object('roomName', $1, 'sessionId', $2)) $$;
create function reading.api_leave("roomName" text default null, "sessionId" text default null) returns jsonb language sql set search_path = '' as
  $$ select reading.leave_room(jsonb_build_object('roomName', $1, 'sessionId', $2)) $$;
revoke execute on all functions in schema reading from public;
grant execute on all functions in schema reading to authenticated;

alter table reading.user_presence alter column user_id set default auth.uid();
select walcast.route('GET', '/api/presence', 'GET /user_presence?user_id=eq.{claims.sub}', profile => 'reading',
  accept => 'application/vnd.pgrst.object+json');
select walcast.route('PATCH', '/api/presence', 'POST /user_presence?on_conflict=user_id', profile => 'reading',
  prefer => 'resolution=merge-duplicates,return=representation', accept => 'application/vnd.pgrst.object+json');
select walcast.route('DELETE', '/api/presence', 'PATCH /user_presence?user_id=eq.{claims.sub}', profile => 'reading',
  body => '{"status": "offline"}');
select walcast.route('GET', '/api/presence/online',
  'GET /user_presence?status=eq.online&select=user_id,status,device_type,last_seen_at&order=last_seen_at.desc', profile => 'reading');
select walcast.route('GET', '/api/activity', 'GET /activity_stream?order=created_at.desc', profile => 'reading');
select walcast.route('POST', '/api/activity', 'POST /activity_stream', profile => 'reading', prefer => 'return=representation',
  accept => 'application/vnd.pgrst.object+json');
select walcast.route('POST', '/api/collaboration/join', 'POST /rpc/api_join', profile => 'reading');
select walcast.route('POST', '/api/collaboration/leave', 'POST /rpc/api_leave', profile => 'reading');

-- Socket.IO. Everybody hears presence and public activity.
select walcast.profile('/reading', token_missing => 'Missing authentication token',
  topics => '{"user:{sub}","presence","activity"}', events_per_second => 100);
select walcast.room('room:{roomName}', namespace => '/reading', join_event => 'collab:join', leave_event => 'collab:leave',
  user_payload => '{"userId": "$sub"}', denied => 'Access denied to this session',
  pattern => '{"roomName": "^[^:/,*{}]{1,100}$"}',
  on_join => 'reading.join_room(jsonb)', on_leave => 'reading.leave_room(jsonb)');
select walcast.command('activity:new', 'reading.new_activity(jsonb)', namespace => '/reading',
  failed => 'CREATE_FAILED', failed_message => 'Failed to create activity');
-- The row says who is online, and its changes are what the others hear.
select walcast.presence(namespace => '/reading', write => 'reading.write_presence(jsonb)', status_event => 'presence:update',
  status_member => 'status', statuses => '{online,away,offline}', heartbeat_event => 'heartbeat', write_interval => '15 s');
select walcast.relay('typing:indicator', 'typing:indicator', topic => 'presence', namespace => '/reading',
  payload => '{"userId": "$sub", "isTyping": {"value": true}, "location": "payload.location", "timestamp": "$time"}',
  key => '{location}', expires => '3 s', active_member => 'isTyping', echo => true, stopped => 'typing:indicator',
  stopped_payload => '{"userId": "$sub", "isTyping": {"value": false}, "location": "payload.location", "timestamp": "$time"}');
-- Each edit, in order.
select walcast.relay('collab:edit', 'collab:edit', topic => 'room:{roomName}', namespace => '/reading',
  payload => '{"userId": "$sub", "operation": "payload.operation", "cursorPosition": "payload.cursorPosition", "timestamp": "$time"}',
  min_interval => null, expires => null, echo => true);
