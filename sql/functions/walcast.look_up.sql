-- walcast.look_up: what an event takes from another table.
-- in:     mapping, a row of walcast.mappings · rule, its number there from 0 · name of the look-up ·
--         columns of the other table · keys, arrays of texts in the order of the look-up's "on"
-- out:    for each key an array of the columns' values, or null where there is no such row
-- caller: feed/lookups.rs, as the check login
-- Never:  reads for who could not: the mapped table's owner has to own the other one too. Answers a
--         role that the login was set to
create or replace function walcast.look_up(mapping bigint, rule integer, name text, columns text[], keys jsonb)
returns jsonb
language plpgsql
stable
security definer
set search_path = ''
set row_security = off
as $function$
declare
    declared jsonb;
    mapped oid;
    other oid;
    shown text;
    same text;
    found jsonb;
begin
    if pg_catalog.current_setting('role') <> 'none'
        or not exists (select from walcast.logins as l where l.name = session_user)
    then
        raise exception 'walcast.look_up: % is no login of walcast, or not itself', session_user
            using errcode = '42501';
    end if;
    select m.relation, m.declaration -> 'rules' -> look_up.rule -> 'lookup' -> look_up.name
    into mapped, declared
    from walcast.mappings as m
    where m.id = look_up.mapping;
    other := (declared ->> 'relation')::oid;
    if not exists (
        select
        from pg_catalog.pg_class as c
        join pg_catalog.pg_class as o on o.oid = other
        where c.oid = mapped and o.relkind in ('r', 'p') and pg_catalog.pg_has_role(c.relowner, o.relowner, 'usage')
    ) then
        raise exception 'walcast.look_up: the owner of % does not own %', mapped::regclass, other::regclass
            using errcode = '42501';
    end if;
    select pg_catalog.string_agg(pg_catalog.format('pg_catalog.to_jsonb(t.%I)', c.name), ', ' order by c.n)
    into shown
    from pg_catalog.unnest(look_up.columns) with ordinality as c (name, n);
    -- The order of a JSON object's members is that of the keys.
    select
        pg_catalog.string_agg(
            pg_catalog.format(
                't.%I = (k.key ->> %s)::%s',
                a.attname,
                o.n - 1,
                pg_catalog.format_type(a.atttypid, null)
            ),
            ' and '
        )
    into same
    from (
        select m.key, pg_catalog.row_number() over (order by m.key collate "C") as n
        from pg_catalog.jsonb_each_text(declared -> 'on') as m (key, value)
    ) as o
    join pg_catalog.pg_attribute as a
        on a.attrelid = other and a.attname = o.key and a.attnum > 0 and not a.attisdropped;
    execute pg_catalog.format(
        'select pg_catalog.jsonb_agg('
        '(select pg_catalog.jsonb_build_array(%s) from %s as t where %s limit 1) order by k.n) '
        'from pg_catalog.jsonb_array_elements($1) with ordinality as k (key, n)',
        coalesce(shown, ''), other::regclass, same
    )
    into found
    using look_up.keys;
    return found;
end
$function$;
