-- walcast.undeclare: takes a declaration away.
-- in:     namespace, null: that of every namespace · kind · name
-- out:    whether there was one
-- caller: walcast.unroom and its like
-- needs:  the owner of the database, or of walcast's tables
create or replace function walcast.undeclare(namespace text, kind text, name text)
returns boolean
language plpgsql
volatile
set search_path = ''
as $function$
begin
    delete from walcast.declarations as d
    where (d.namespace, d.kind, d.name)
        = (coalesce(undeclare.namespace, '*'), undeclare.kind, undeclare.name);
    return found;
end
$function$;
