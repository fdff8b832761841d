-- walcast.unmap_event: takes back one event of a table; one of walcast.map_table comes again when that is called again.
-- in:     name, of the rule: that of the event, unless it was given another
-- out:    whether there was such an event
create or replace function walcast.unmap_event(relation regclass, name text)
returns boolean
language plpgsql
volatile
set search_path = ''
as $function$
declare
    known jsonb := walcast.mapping_of(unmap_event.relation);
    rules jsonb;
begin
    if known is null then
        return false;
    end if;
    select coalesce(pg_catalog.jsonb_agg(r.value order by r.n), '[]')
    into rules
    from pg_catalog.jsonb_array_elements(known -> 'rules') with ordinality as r (value, n)
    where r.value ->> 'name' <> unmap_event.name;
    return walcast.declare_mapping(relation, known || pg_catalog.jsonb_build_object('rules', rules));
end
$function$;
