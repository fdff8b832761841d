-- rows of pages: a page of alice's with one component; bob edits it, vera looks on. For `walcast dev`, once.
insert into pages.entities (entity_type, entity_id, title, created_by) values ('page', 'page-1', 'A page', 'alice');
insert into pages.entity_members (entity_type, entity_id, user_id, role) values
  ('page', 'page-1', 'bob', 'editor'), ('page', 'page-1', 'vera', 'viewer');
insert into pages.components (id, entity_type, entity_id, props, created_by)
  values ('component-1', 'page', 'page-1', '{"text": "hello"}', 'alice');
