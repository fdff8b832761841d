-- auth.jwt: all claims of the current request; null when there are none.
-- in:     settings request.jwt.claim, request.jwt.claims ('' counts as not set)
-- caller: policies; without a search_path of its own, so that the planner inlines it
create or replace function auth.jwt()
returns jsonb
language sql
stable
as $function$
    select coalesce(
        nullif(pg_catalog.current_setting('request.jwt.claim', true), ''),
        nullif(pg_catalog.current_setting('request.jwt.claims', true), '')
    )::pg_catalog.jsonb
$function$;
