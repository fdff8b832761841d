-- rows of story-map: one map of alice's; bob edits it, vera looks on. For `walcast dev`, once.
insert into storymap.profiles (id, name, email) values
  ('00000000-0000-4000-8000-00000000000a', 'Alice', 'alice@example.com'),
  ('00000000-0000-4000-8000-00000000000b', 'Bob', 'bob@example.com'),
  ('00000000-0000-4000-8000-00000000000e', 'Vera', 'vera@example.com');
insert into storymap.story_maps (id, title, created_by)
  values ('00000000-0000-4000-8000-0000000000f1', 'A map', '00000000-0000-4000-8000-00000000000a');
insert into storymap.collaborators (map_id, user_id, role) values
  ('00000000-0000-4000-8000-0000000000f1', '00000000-0000-4000-8000-00000000000b', 'editor'),
  ('00000000-0000-4000-8000-0000000000f1', '00000000-0000-4000-8000-00000000000e', 'viewer');
insert into storymap.steps (id, map_id, name)
  values ('00000000-0000-4000-8000-0000000000f2', '00000000-0000-4000-8000-0000000000f1', 'First step');
insert into storymap.releases (id, map_id, name)
  values ('00000000-0000-4000-8000-0000000000f3', '00000000-0000-4000-8000-0000000000f1', 'First release');
