-- walcast.check_callable: finds a function that the service calls as its users.
-- in:     function, with its schema, such as storymap.member or storymap.member(text); null is none, and fine
--         · argument it is given: text, jsonb or '' for none · topics: it returns topics, setof text or text[]
--         · what names it, for the error
-- out:    the function, as src/profile/routine.rs reads it
-- caller: walcast.profile and its like
-- Never:  a right for anybody: whoever may not execute it is told so when it is called
create or replace function walcast.check_callable(function text, argument text, topics boolean, what text)
returns text
language plpgsql
stable
set search_path = ''
as $function$
declare
    bare text := pg_catalog.regexp_replace(check_callable.function, '\s*\([^()]*\)\s*$', '');
    given text := pg_catalog.format('%s(%s)', bare, check_callable.argument);
    found_oid oid;
    called pg_catalog.pg_proc;
    schema text;
    kind "char";
begin
    if check_callable.function is null then
        return null;
    end if;
    if check_callable.function ~ '\)\s*$' and pg_catalog.to_regprocedure(check_callable.function) is distinct from
        pg_catalog.to_regprocedure(given)
    then
        raise exception 'walcast: % is %, and it is given %', what, check_callable.function,
            case when argument = '' then 'nothing' else argument end
            using errcode = '42883', hint = pg_catalog.format('Write a function %s.', given);
    end if;
    found_oid := pg_catalog.to_regprocedure(given)::oid;
    if found_oid is null then
        raise exception 'walcast: % is %, and there is no function %', what, check_callable.function, given
            using errcode = '42883', hint = 'Name it with its schema, and create it first.';
    end if;
    select p.* into called from pg_catalog.pg_proc as p where p.oid = found_oid;
    select n.nspname into schema from pg_catalog.pg_namespace as n where n.oid = called.pronamespace;
    select t.typtype into kind from pg_catalog.pg_type as t where t.oid = called.prorettype;
    if called.prokind <> 'f' or called.prorettype in ('trigger'::regtype, 'event_trigger'::regtype) then
        raise exception 'walcast: % is %, which is no function that can be called', what, given using errcode = '42809';
    end if;
    if topics then
        if not (called.proretset and called.prorettype = 'text'::regtype)
            and not (not called.proretset and called.prorettype = 'text[]'::regtype)
        then
            raise exception 'walcast: % is %, which returns neither setof text nor text[]', what, given
                using errcode = '42804';
        end if;
    elsif called.proretset or called.prorettype <> 'void'::regtype and kind = 'p' and called.prorettype <> 'record'::regtype
    then
        raise exception 'walcast: % is %, which does not return one value', what, given
            using errcode = '42804', hint = 'Have it return jsonb: select jsonb_agg(…).';
    end if;
    if exists (select from pg_catalog.pg_roles as r where r.rolname = 'authenticated')
        and not (
            pg_catalog.has_function_privilege('authenticated', found_oid, 'execute')
            and pg_catalog.has_schema_privilege('authenticated', schema, 'usage')
        )
    then
        raise warning 'walcast: % is %, which authenticated may not execute', what, given
            using hint = pg_catalog.format(
                'grant usage on schema %I to authenticated; grant execute on function %s to authenticated;',
                schema, found_oid::pg_catalog.regprocedure
            );
    end if;
    return pg_catalog.format('%I.%I(%s)', schema, called.proname, argument);
end
$function$;
