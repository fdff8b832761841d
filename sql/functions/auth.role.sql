-- auth.role: the `role` claim of the current request; null when there is none.
-- in:     settings request.jwt.claim.role, request.jwt.claims ('' counts as not set)
-- caller: policies; without a search_path of its own, so that the planner inlines it
create or replace function auth.role()
returns text
language sql
stable
as $function$
    select coalesce(
        nullif(pg_catalog.current_setting('request.jwt.claim.role', true), ''),
        nullif(pg_catalog.current_setting('request.jwt.claims', true), '')::pg_catalog.jsonb operator(pg_catalog.->>) 'role'
    )
$function$;
