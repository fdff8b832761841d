-- walcast.unpresence: takes the presence of a namespace away.
-- out:    whether there was one
-- needs:  the owner of the database, or of walcast's tables
create or replace function walcast.unpresence(namespace text default null)
returns boolean
language sql
volatile
set search_path = ''
as $function$
    select walcast.undeclare($1, 'presence', '')
$function$;
