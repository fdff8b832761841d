-- auth.jwt: all claims of the current request; null when there are none.
-- in:     settings request.jwt.claim, request.jwt.claims ('' counts as not set)
-- caller: policies
create or replace function auth.jwt()
returns jsonb
language sql
stable
set search_path = ''
as $function$
    select coalesce(
        nullif(pg_catalog.current_setting('request.jwt.claim', true), ''),
        nullif(pg_catalog.current_setting('request.jwt.claims', true), '')
    )::jsonb
$function$;
