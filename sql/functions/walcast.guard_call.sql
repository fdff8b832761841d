-- walcast.guard_call: the text of a function's call with the values of a topic. Used by walcast.guard_topic().
-- in:     the function · an expression for the array of values, as text · their types
create or replace function walcast.guard_call(called oid, value text, types text[])
returns text
language sql
stable
set search_path = ''
as $function$
    select pg_catalog.format(
        '%I.%I(%s)',
        n.nspname,
        p.proname,
        (
            select pg_catalog.string_agg(
                pg_catalog.format('%s[%s]::%s', guard_call.value, t.place, t.type), ', ' order by t.place
            )
            from pg_catalog.unnest(guard_call.types) with ordinality as t(type, place)
        )
    )
    from pg_catalog.pg_proc as p
    join pg_catalog.pg_namespace as n on n.oid = p.pronamespace
    where p.oid = guard_call.called
$function$;
