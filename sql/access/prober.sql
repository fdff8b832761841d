-- prober: the role that may put probe rows into realtime.messages whatever its policies say; whether
--         there is a table at all.
-- in:     $1 text[]  the configured roles, the first ones preferred; BYPASSRLS before those that a
--         policy lets insert anything, which servers without BYPASSRLS for users have instead
--         · $2 bool  also those that this login is no member of
-- out:    one row: found bool (there is a table realtime.messages) · prober text (null: none of the
--         roles may)
-- caller: auth/access/pool.rs on connect, as the check login; doctor.rs
select
    m.oid is not null as found,
    (
        select r.rolname::text
        from pg_catalog.pg_roles as r
        cross join lateral (
            select exists (
                select
                from pg_catalog.pg_policy as p
                where p.polrelid = m.oid
                    and p.polpermissive
                    and p.polcmd in ('a', '*')
                    and p.polroles && array[r.oid, 0::oid]
                    and pg_catalog.pg_get_expr(coalesce(p.polwithcheck, p.polqual), m.oid) = 'true'
            ) as by_policy
        ) as admitted
        where r.rolname = any($1::text[])
            and (r.rolbypassrls or admitted.by_policy)
            and ($2::bool or pg_catalog.pg_has_role(session_user, r.oid, 'member'))
            and pg_catalog.has_schema_privilege(r.oid, m.relnamespace, 'usage')
            and pg_catalog.has_table_privilege(r.oid, m.oid, 'insert')
        order by r.rolbypassrls desc, pg_catalog.array_position($1::text[], r.rolname::text)
        limit 1
    ) as prober
from (select) as always
left join (
    select
        c.oid,
        c.relnamespace
    from pg_catalog.pg_class as c
    join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    where n.nspname = 'realtime' and c.relname = 'messages' and c.relkind in ('r', 'p')
) as m on true;
