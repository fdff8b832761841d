-- walcast.mapping_of: what is declared for a table now.
-- out:    its declaration; null without one
-- caller: walcast.map_table and its like, as whoever declares
create or replace function walcast.mapping_of(relation oid)
returns jsonb
language sql
stable
set search_path = ''
as $function$
    select m.declaration from walcast.mappings as m where m.relation = $1 order by m.id desc limit 1
$function$;
