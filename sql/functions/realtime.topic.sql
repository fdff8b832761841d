-- realtime.topic: the topic that is being joined or sent to; null outside of that.
-- caller: policies on realtime.messages
create or replace function realtime.topic()
returns text
language sql
stable
set search_path = ''
as $function$
    select nullif(pg_catalog.current_setting('realtime.topic', true), '')
$function$;
