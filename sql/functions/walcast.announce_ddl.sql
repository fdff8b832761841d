-- walcast.announce_ddl: puts a mark into the WAL where a command may have changed who sees what.
-- out:    logical message `walcast.ddl` with the command tag, at that transaction's commit; and
--         `walcast.after`, which means nothing, behind it
-- caller: event triggers walcast_ddl and walcast_drop
-- Never:  fails the command it reports; speaks of temporary objects or of mere contents
create or replace function walcast.announce_ddl()
returns event_trigger
language plpgsql
volatile
set search_path = ''
as $function$
declare
    concerns_us boolean;
begin
    if tg_tag in ('REFRESH MATERIALIZED VIEW', 'COMMENT', 'CREATE STATISTICS') then
        return;
    end if;
    if tg_event = 'sql_drop' then
        select pg_catalog.bool_or(not dropped.is_temporary)
        into concerns_us
        from pg_catalog.pg_event_trigger_dropped_objects() as dropped;
    else
        select pg_catalog.bool_or(command.schema_name is distinct from 'pg_temp')
        into concerns_us
        from pg_catalog.pg_event_trigger_ddl_commands() as command;
    end if;
    if concerns_us then
        perform pg_catalog.pg_logical_emit_message(true, 'walcast.ddl', tg_tag);
        -- Decoding orders a message by where it ends and a row by where it begins. This mark is of
        -- a subtransaction, as is whatever has an exception block: the next row of another one,
        -- were it the next record in the log, could come first.
        perform pg_catalog.pg_logical_emit_message(true, 'walcast.after', '');
    end if;
exception
    when others then
        raise warning 'walcast.announce_ddl: %', sqlerrm;
end
$function$;
