-- auth.uid: the `sub` claim of the current request, as a uuid; null when there is none.
-- in:     settings request.jwt.claim.sub, request.jwt.claims ('' counts as not set)
-- caller: policies
create or replace function auth.uid()
returns uuid
language sql
stable
set search_path = ''
as $function$
    select coalesce(
        nullif(pg_catalog.current_setting('request.jwt.claim.sub', true), ''),
        nullif(pg_catalog.current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'
    )::uuid
$function$;
