-- walcast.unroom: takes a kind of room away. Who is in one stays.
-- out:    whether there was one
-- needs:  the owner of the database, or of walcast's tables
create or replace function walcast.unroom(topic text, namespace text default null)
returns boolean
language sql
volatile
set search_path = ''
as $function$
    select walcast.undeclare($2, 'room', $1)
$function$;
