-- walcast.unroute: takes back what walcast.route() declared.
-- out:    whether there was such a route
create or replace function walcast.unroute(method text, path text)
returns boolean
language plpgsql
volatile
set search_path = ''
as $function$
begin
    delete from walcast.routes as known
    where known.method = unroute.method and known.path = unroute.path;
    if found then
        perform pg_catalog.pg_notify('pgrst', 'reload schema');
        return true;
    end if;
    return false;
end
$function$;
