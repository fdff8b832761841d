-- realtime.topic: the topic that is being joined or sent to; null outside of that.
-- caller: policies on realtime.messages; without a search_path of its own, so that the planner
--         inlines it
create or replace function realtime.topic()
returns text
language sql
stable
as $function$
    select nullif(pg_catalog.current_setting('realtime.topic', true), '')
$function$;
