-- tasks: workspaces with projects, tasks and members.
-- in:     app.sql
-- out:    schema tasks; its events in rooms workspace:, project:, task: and user:; Socket.IO at /tasks
create schema tasks; grant usage on schema tasks to authenticated;
create domain tasks.cuid as text check (value ~ '^[a-z][a-z0-9]{1,31}$');
create type tasks.member_role as enum ('viewer','member','admin','owner');
create type tasks.task_status as enum ('TODO','IN_PROGRESS','IN_REVIEW','DONE');
create table tasks.users (id tasks.cuid primary key, email text, name text);
create table tasks.workspaces (id tasks.cuid primary key, name text not null, owner_id tasks.cuid not null references tasks.users);
create table tasks.workspace_members (workspace_id tasks.cuid references tasks.workspaces on delete cascade, user_id tasks.cuid references tasks.users,
  role tasks.member_role not null default 'member', joined_at timestamptz not null default now(), primary key (workspace_id, user_id));
create table tasks.workspace_invitations (id tasks.cuid primary key, workspace_id tasks.cuid not null references tasks.workspaces on delete cascade,
  email text not null, role tasks.member_role not null default 'member', status text not null default 'pending' check (status in ('pending','accepted','revoked')), created_at timestamptz not null default now());
create table tasks.projects (id tasks.cuid primary key, workspace_id tasks.cuid not null references tasks.workspaces on delete cascade, name text not null);
create table tasks.tasks (id tasks.cuid primary key, project_id tasks.cuid not null references tasks.projects on delete cascade, workspace_id tasks.cuid not null,
  title text not null, description text, status tasks.task_status not null default 'TODO', assignee_id tasks.cuid, position int not null default 0,
  created_by text default auth.sub(), created_at timestamptz not null default now(), updated_at timestamptz not null default now(), updated_by text);
create table tasks.comments (id tasks.cuid primary key, task_id tasks.cuid not null references tasks.tasks on delete cascade, workspace_id tasks.cuid not null,
  author_id tasks.cuid not null default auth.sub(), body text not null, created_at timestamptz not null default now(), updated_at timestamptz not null default now());
create table tasks.notifications (id bigint generated always as identity primary key, user_id tasks.cuid not null, type text not null, data jsonb not null default '{}', read_at timestamptz, created_at timestamptz not null default now());
create table tasks.activity (id bigint generated always as identity primary key, workspace_id tasks.cuid not null, project_id tasks.cuid, task_id tasks.cuid, actor_id text, verb text not null, data jsonb not null default '{}', created_at timestamptz not null default now());
create function tasks.role_in(w text) returns tasks.member_role language sql stable security definer set search_path = '' as
  $$ select role from tasks.workspace_members where workspace_id = w and user_id = auth.sub() $$;
create function tasks.fill_ws() returns trigger language plpgsql security definer set search_path = '' as $$
begin
  if tg_table_name = 'tasks' then select workspace_id into new.workspace_id from tasks.projects where id = new.project_id;
  else select workspace_id into new.workspace_id from tasks.tasks where id = new.task_id; end if; return new; end $$;
create trigger fill before insert or update of project_id on tasks.tasks for each row execute function tasks.fill_ws();
create trigger fill before insert on tasks.comments for each row execute function tasks.fill_ws();
create function tasks.log_activity() returns trigger language plpgsql security definer set search_path = '' as $$
begin
  insert into tasks.activity (workspace_id, project_id, task_id, actor_id, verb, data)
  values (coalesce(new.workspace_id, old.workspace_id), coalesce(new.project_id, old.project_id), coalesce(new.id, old.id), auth.sub(),
          case tg_op when 'INSERT' then 'task.created' when 'DELETE' then 'task.deleted' else case when new.status is distinct from old.status then 'task.moved' else 'task.updated' end end,
          jsonb_build_object('title', coalesce(new.title, old.title)));
  if tg_op <> 'DELETE' and new.assignee_id is not null and new.assignee_id <> coalesce(auth.sub(), '') and (tg_op = 'INSERT' or new.assignee_id is distinct from old.assignee_id) then
    insert into tasks.notifications (user_id, type, data) values (new.assignee_id, 'task.assigned', jsonb_build_object('taskId', new.id, 'title', new.title, 'by', auth.sub()));
  end if; return null; end $$;
create trigger activity after insert or update or delete on tasks.tasks for each row execute function tasks.log_activity();
create trigger touch before update on tasks.tasks for each row execute function app.touch();
create trigger touch before update on tasks.comments for each row execute function app.touch_ts();
do $$ declare t text; begin
  foreach t in array array['users','workspaces','workspace_members','workspace_invitations','projects','tasks','comments','notifications','activity'] loop
    execute format('alter table tasks.%I enable row level security', t);
    execute format('grant select, insert, update, delete on tasks.%I to authenticated', t);
    execute format('alter table tasks.%I replica identity full', t);
    execute format('create trigger origin before insert or update or delete on tasks.%I for each statement execute function app.tag_origin()', t);
  end loop;
  foreach t in array array['workspace_members','workspace_invitations','projects','tasks','comments','activity'] loop
    execute format('create policy r on tasks.%I for select to authenticated using (tasks.role_in(workspace_id) is not null)', t);
  end loop;
  foreach t in array array['projects','tasks'] loop
    execute format($f$create policy w on tasks.%I for all to authenticated using (tasks.role_in(workspace_id) >= 'member') with check (tasks.role_in(workspace_id) >= 'member')$f$, t);
  end loop;
  foreach t in array array['workspace_members','workspace_invitations'] loop
    execute format($f$create policy w on tasks.%I for all to authenticated using (tasks.role_in(workspace_id) >= 'admin') with check (tasks.role_in(workspace_id) >= 'admin')$f$, t);
  end loop;
end $$;
create policy leave on tasks.workspace_members for delete to authenticated using (user_id = auth.sub());
create policy r on tasks.workspaces for select to authenticated using (owner_id = auth.sub() or tasks.role_in(id) is not null);
create policy r on tasks.users for select to authenticated using (id = auth.sub() or exists (select from tasks.workspace_members m where m.user_id = users.id));
create policy ci on tasks.comments for insert to authenticated with check (author_id = auth.sub() and tasks.role_in(workspace_id) is not null);
create policy cu on tasks.comments for update to authenticated using (author_id = auth.sub());
create policy cd on tasks.comments for delete to authenticated using (author_id = auth.sub() or tasks.role_in(workspace_id) >= 'admin');
create policy nr on tasks.notifications for select to authenticated using (user_id = auth.sub());
create policy nu on tasks.notifications for update to authenticated using (user_id = auth.sub());
alter publication supabase_realtime add table
  tasks.workspaces, tasks.workspace_members, tasks.workspace_invitations, tasks.projects, tasks.tasks, tasks.comments,
  tasks.notifications, tasks.activity;

-- What is in a workspace stays there, so that who may be in a room is a question of memberships alone.
create trigger stays before update of workspace_id on tasks.projects for each row when (new.workspace_id <> old.workspace_id) execute function app.stays();
create trigger stays before update on tasks.tasks for each row when (new.workspace_id <> old.workspace_id) execute function app.stays();
create trigger stays before update on tasks.comments for each row when (new.task_id <> old.task_id or new.workspace_id <> old.workspace_id) execute function app.stays();
create function tasks.role_in_project(id text) returns tasks.member_role language sql stable security definer set search_path = '' as
  $$ select tasks.role_in(p.workspace_id) from tasks.projects p where p.id = $1 $$;
create function tasks.role_in_task(id text) returns tasks.member_role language sql stable security definer set search_path = '' as
  $$ select tasks.role_in(t.workspace_id) from tasks.tasks t where t.id = $1 $$;
create function tasks.may_join_workspace(id text) returns boolean language sql stable set search_path = '' as $$ select tasks.role_in(id) is not null $$;
create function tasks.may_join_project(id text) returns boolean language sql stable set search_path = '' as $$ select tasks.role_in_project(id) is not null $$;
create function tasks.may_join_task(id text) returns boolean language sql stable set search_path = '' as $$ select tasks.role_in_task(id) is not null $$;
create function tasks.may_speak_in_workspace(id text) returns boolean language sql stable set search_path = '' as $$ select tasks.role_in(id) >= 'member' $$;
create function tasks.may_speak_in_project(id text) returns boolean language sql stable set search_path = '' as $$ select tasks.role_in_project(id) >= 'member' $$;
create function tasks.may_speak_in_task(id text) returns boolean language sql stable set search_path = '' as $$ select tasks.role_in_task(id) >= 'member' $$;
select walcast.guard_topic('workspace:{id}', allows => 'tasks.may_join_workspace', sends => 'tasks.may_speak_in_workspace',
  watches => '{tasks.workspace_members(workspace_id)}');
select walcast.guard_topic('project:{id}', allows => 'tasks.may_join_project', sends => 'tasks.may_speak_in_project',
  watches => '{tasks.workspace_members}');
select walcast.guard_topic('task:{id}', allows => 'tasks.may_join_task', sends => 'tasks.may_speak_in_task',
  watches => '{tasks.workspace_members}');

-- Columns of a task's own; a row that changes its project is deleted in the old one and created in the new one.
select walcast.map_event('tasks.tasks', 'task:created', on_insert => true, topic => 'project:{project_id}',
  payload => '{"taskId": "id", "projectId": "project_id", "workspaceId": "workspace_id", "task": "$row",
    "userId": ["$actor", "created_by"], "timestamp": "$time"}');
select walcast.map_event('tasks.tasks', 'task:moved', on_update_of => '{status}', topics => '{"task:{id}","project:{project_id}"}',
  payload => '{"taskId": "id", "projectId": "project_id", "workspaceId": "workspace_id", "task": "$row", "from": "old.status",
    "to": "status", "userId": ["$actor", "updated_by"], "timestamp": "$time"}');
select walcast.map_event('tasks.tasks', 'task:updated', on_update => true, topics => '{"task:{id}","project:{project_id}"}',
  payload => '{"taskId": "id", "projectId": "project_id", "workspaceId": "workspace_id", "task": "$row", "changes": "$changes",
    "userId": ["$actor", "updated_by"], "timestamp": "$time"}');
select walcast.map_event('tasks.tasks', 'task:deleted', on_delete => true, topics => '{"task:{id}","project:{project_id}"}',
  payload => '{"taskId": "id", "projectId": "project_id", "workspaceId": "workspace_id", "task": {"value": null}, "userId": "$actor",
    "timestamp": "$time"}');

select walcast.map_event('tasks.comments', 'comment:created', on_insert => true, topic => 'task:{task_id}',
  payload => '{"commentId": "id", "taskId": "task_id", "comment": "$row", "userId": ["$actor", "author_id"], "timestamp": "$time"}');
select walcast.map_event('tasks.comments', 'comment:updated', on_update => true, topic => 'task:{task_id}',
  payload => '{"commentId": "id", "taskId": "task_id", "comment": "$row", "userId": ["$actor", "author_id"], "timestamp": "$time"}');
select walcast.map_event('tasks.comments', 'comment:deleted', on_delete => true, topic => 'task:{task_id}',
  payload => '{"commentId": "id", "taskId": "task_id", "comment": {"value": null}, "userId": "$actor", "timestamp": "$time"}');

select walcast.map_event('tasks.workspace_members', 'member:joined', on_insert => true, topic => 'workspace:{workspace_id}',
  payload => '{"workspaceId": "workspace_id", "userId": "user_id", "role": "role", "timestamp": "$time"}');
select walcast.map_event('tasks.workspace_members', 'member:role_changed', on_update_of => '{role}', topic => 'workspace:{workspace_id}',
  payload => '{"workspaceId": "workspace_id", "userId": "user_id", "role": "role", "previousRole": "old.role", "timestamp": "$time"}');
select walcast.map_event('tasks.workspace_members', 'member:left', on_delete => true, topic => 'workspace:{workspace_id}',
  payload => '{"workspaceId": "workspace_id", "userId": "user_id", "role": "role", "timestamp": "$time"}');

select walcast.map_event('tasks.notifications', 'notification:created', on_insert => true, topic => 'user:{user_id}');
select walcast.map_event('tasks.notifications', 'notification:read', on_update_of => '{read_at}', topic => 'user:{user_id}',
  payload => '{"...": "$row"}');
select walcast.map_event('tasks.activity', 'activity:created', on_insert => true, topic => 'workspace:{workspace_id}');
select walcast.map_event('tasks.workspace_invitations', 'invitation:created', on_insert => true, topic => 'workspace:{workspace_id}');
select walcast.map_event('tasks.workspace_invitations', 'invitation:updated', on_update => true, topic => 'workspace:{workspace_id}',
  payload => '{"...": "$row"}');

-- Socket.IO. All writes come by REST or from the database.
create function tasks.member(topic text) returns jsonb language sql stable set search_path = '' as $$
  select jsonb_strip_nulls(jsonb_build_object('name', u.name, 'email', coalesce(u.email, auth.jwt()->>'email')))
  from (select) as one left join tasks.users u on u.id = auth.sub() $$;
select walcast.profile('/tasks', token_from => '{auth,header,query}', error_event => 'connection:error',
  topics => '{"user:{sub}"}', member => 'tasks.member(text)', events_per_second => 100);
select walcast.room('workspace:{workspaceId}', namespace => '/tasks', join_event => 'room:join', leave_event => 'room:leave',
  user_payload => '{"userId": "$sub", "email": "member.email"}', denied => 'Access denied to this workspace',
  pattern => '{"workspaceId": "^[a-z][a-z0-9]{1,31}$"}');
select walcast.room('project:{projectId}', namespace => '/tasks', join_event => 'room:join', leave_event => 'room:leave',
  user_payload => '{"userId": "$sub", "email": "member.email"}', denied => 'Access denied to this project',
  pattern => '{"projectId": "^[a-z][a-z0-9]{1,31}$"}');
select walcast.room('task:{taskId}', namespace => '/tasks', join_event => 'room:join', leave_event => 'room:leave',
  user_payload => '{"userId": "$sub", "email": "member.email"}', denied => 'Access denied to this task',
  pattern => '{"taskId": "^[a-z][a-z0-9]{1,31}$"}');

-- Who is online is told to everybody with whom he shares a workspace.
create function tasks.peer_topics() returns setof text language sql stable set search_path = '' as $$
  select distinct 'user:' || m.user_id from tasks.workspace_members m
  where m.user_id <> auth.sub()
    and m.workspace_id in (select mine.workspace_id from tasks.workspace_members mine where mine.user_id = auth.sub()) $$;
select walcast.presence(namespace => '/tasks',
  online => 'presence:user_online', online_payload => '{"userId": "$sub", "status": "$status", "timestamp": "$time"}',
  offline => 'presence:user_offline', offline_payload => '{"userId": "$sub", "status": {"value": "offline"}, "timestamp": "$time"}',
  topics_function => 'tasks.peer_topics()', status_event => 'presence:update', status_member => 'status',
  statuses => '{online,away,offline}');
select walcast.relay('presence:viewing', 'presence:users_viewing', topic => 'task:{taskId}', namespace => '/tasks',
  payload => '{"taskId": "topic.taskId", "users": "$users"}', key => '{taskId}', gather => 'users', echo => true);
select walcast.relay('typing:start', 'typing:user_typing', topic => 'task:{taskId}', namespace => '/tasks',
  payload => '{"taskId": "topic.taskId", "commentId": "payload.commentId", "userId": "$sub", "userName": "member.name", "timestamp": "$time"}',
  key => '{taskId,commentId}', expires => '3 s', stop_event => 'typing:stop', stopped => 'typing:user_stopped',
  stopped_payload => '{"taskId": "topic.taskId", "commentId": "payload.commentId", "userId": "$sub", "timestamp": "$time"}');
