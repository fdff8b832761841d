-- walcast.uncommand: takes a command away.
-- out:    whether there was one
-- needs:  the owner of the database, or of walcast's tables
create or replace function walcast.uncommand(event text, namespace text default null)
returns boolean
language sql
volatile
set search_path = ''
as $function$
    select walcast.undeclare($2, 'command', $1)
$function$;
