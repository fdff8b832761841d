-- walcast.unmap_table: takes back what walcast.map_table() and walcast.map_event() declared for a table.
-- out:    whether there was anything
create or replace function walcast.unmap_table(relation regclass)
returns boolean
language plpgsql
volatile
set search_path = ''
as $function$
begin
    return walcast.declare_mapping(relation, null);
end
$function$;
