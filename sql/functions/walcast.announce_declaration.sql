-- walcast.announce_declaration: puts a mark into the log where something was declared, so that the service looks.
-- out:    logical message `walcast.ddl`; and `walcast.after`, which means nothing, behind it (see
--         walcast.announce_ddl)
-- caller: trigger announce on walcast.declarations
-- Never:  what was declared: the service reads that itself
create or replace function walcast.announce_declaration()
returns trigger
language plpgsql
volatile
set search_path = ''
as $function$
begin
    perform pg_catalog.pg_logical_emit_message(true, 'walcast.ddl', 'DECLARE');
    perform pg_catalog.pg_logical_emit_message(true, 'walcast.after', '');
    return null;
end
$function$;

drop trigger if exists announce on walcast.declarations;
create trigger announce after insert or update or delete or truncate on walcast.declarations
    for each statement execute function walcast.announce_declaration();
