-- rows of wiki: a knowledge base of alice's; bob writes in it, vera reads. For `walcast dev`, once.
insert into wiki.knowledge_bases (id, name, created_by)
  values ('00000000-0000-4000-8000-0000000000f4', 'A knowledge base', '00000000-0000-4000-8000-00000000000a');
insert into wiki.kb_members (kb_id, user_id, role) values
  ('00000000-0000-4000-8000-0000000000f4', '00000000-0000-4000-8000-00000000000b', 'writer'),
  ('00000000-0000-4000-8000-0000000000f4', '00000000-0000-4000-8000-00000000000e', 'reader');
insert into wiki.nodes (id, kb_id, title, created_by)
  values ('00000000-0000-4000-8000-0000000000f5', '00000000-0000-4000-8000-0000000000f4', 'A page', '00000000-0000-4000-8000-00000000000a');
