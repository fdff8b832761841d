-- auth.uid: the `sub` claim of the current request, as a uuid; null when there is none.
-- in:     settings request.jwt.claim.sub, request.jwt.claims ('' counts as not set)
-- caller: policies; without a search_path of its own, so that the planner inlines it
create or replace function auth.uid()
returns uuid
language sql
stable
as $function$
    select coalesce(
        nullif(pg_catalog.current_setting('request.jwt.claim.sub', true), ''),
        nullif(pg_catalog.current_setting('request.jwt.claims', true), '')::pg_catalog.jsonb operator(pg_catalog.->>) 'sub'
    )::pg_catalog.uuid
$function$;
