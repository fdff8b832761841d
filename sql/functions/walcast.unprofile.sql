-- walcast.unprofile: takes a namespace away, with all that is declared for it alone.
-- out:    whether there was one
-- needs:  the owner of the database, or of walcast's tables
create or replace function walcast.unprofile(namespace text)
returns boolean
language plpgsql
volatile
set search_path = ''
as $function$
begin
    delete from walcast.declarations as d where d.namespace = unprofile.namespace and d.namespace <> '*';
    return found;
end
$function$;
