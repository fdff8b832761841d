-- realtime.broadcast_changes: broadcasts a row change to a private topic; for use in triggers.
-- in:     topic · event · TG_OP · TG_TABLE_NAME · TG_TABLE_SCHEMA · NEW · OLD · TG_LEVEL
-- out:    a message {schema, table, operation, record, old_record, id}
-- fails:  on statement-level triggers and on anything but INSERT, UPDATE and DELETE
create or replace function realtime.broadcast_changes(
    topic_name text,
    event_name text,
    operation text,
    table_name text,
    table_schema text,
    new record,
    old record,
    level text default 'ROW'
)
returns void
language plpgsql
volatile
set search_path = ''
as $function$
declare
    body jsonb;
begin
    if level is distinct from 'ROW' then
        raise exception 'broadcast_changes works in row-level triggers only, not level %', level;
    end if;
    if operation is null or operation not in ('INSERT', 'UPDATE', 'DELETE') then
        raise exception 'broadcast_changes does not know the operation %', operation;
    end if;
    body := pg_catalog.jsonb_build_object(
        'schema', table_schema,
        'table', table_name,
        'operation', operation,
        'record', case when operation <> 'DELETE' then pg_catalog.to_jsonb(new) end,
        'old_record', case when operation <> 'INSERT' then pg_catalog.to_jsonb(old) end
    );
    perform realtime.send(body, event_name, topic_name);
exception
    when others then
        raise exception 'Failed to process the row: %', sqlerrm using errcode = sqlstate;
end
$function$;
