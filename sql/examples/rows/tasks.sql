-- rows of tasks: a workspace of alice's with one project and one task; bob works in it, vera looks on. For `walcast dev`, once.
insert into tasks.users (id, email, name) values
  ('calice', 'alice@example.com', 'Alice'), ('cbob', 'bob@example.com', 'Bob'), ('cvera', 'vera@example.com', 'Vera');
insert into tasks.workspaces (id, name, owner_id) values ('cworkspace', 'A workspace', 'calice');
insert into tasks.workspace_members (workspace_id, user_id, role) values
  ('cworkspace', 'calice', 'owner'), ('cworkspace', 'cbob', 'member'), ('cworkspace', 'cvera', 'viewer');
insert into tasks.projects (id, workspace_id, name) values ('cproject', 'cworkspace', 'A project');
insert into tasks.tasks (id, project_id, title, created_by) values ('ctask', 'cproject', 'A task', 'calice');
