-- table: what the log does not say about one table.
-- in:     $1 oid     the table
--         $2 text[]  roles a token may name; those that do not exist are left out
-- out:    one row; none when the table is gone
--         definition json
--             schema, name text · kind, replica_identity "char" · row_security boolean
--             root {oid, schema, name}: the topmost partitioned table above a partition, else null
--             primary_key [text] in key order
--             columns [{attnum, name, type oid, collation oid (0: none), generated boolean,
--                 xid: of whoever defined it last}] in attribute order
--             dropped [{attnum, xid}]: columns that are no more
--             creator xid: of whoever made the table; null for what has no rows
--             snapshot text: what this answer sees
--             types [{oid, name, base oid (domains), element oid and delimiter (arrays),
--                 attributes [{name, type oid}] (composites)}]: every type met in the columns,
--                 within others too
--             roles [{name, columns [text]: may select them (and use the schema),
--                 policy boolean: a permissive select policy names the role or one it inherits,
--                 bypass boolean: no policy is ever asked}]
-- caller: catalog/mod.rs
-- needs:  PostgreSQL 14+, any role: reads only catalogs that PUBLIC may read
with recursive
relation as (
    select c.oid, c.relname, c.relkind, c.relreplident, c.relrowsecurity, c.relforcerowsecurity,
        c.relowner, c.relnamespace, n.nspname
    from pg_catalog.pg_class as c
    join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    where c.oid = $1
),
attribute as (
    select a.attnum, a.attname, a.atttypid, a.attcollation, a.attgenerated <> '' as generated,
        a.xmin::text::pg_catalog.int8 as xid
    from pg_catalog.pg_attribute as a
    where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped
),
met (oid) as (
    select a.atttypid from attribute as a
    union
    select part.oid
    from met
    join pg_catalog.pg_type as t on t.oid = met.oid
    cross join lateral (
        select t.typbasetype where t.typtype = 'd'
        union all
        select t.typelem where t.typoutput = 'pg_catalog.array_out'::pg_catalog.regproc
        union all
        select a.atttypid
        from pg_catalog.pg_attribute as a
        where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
    ) as part (oid)
),
role as (
    select r.oid, r.rolname, r.rolsuper or r.rolbypassrls as unbound
    from pg_catalog.pg_roles as r
    where r.rolname = any ($2)
)
select pg_catalog.json_build_object(
    'schema', relation.nspname,
    'name', relation.relname,
    'kind', relation.relkind,
    'replica_identity', relation.relreplident,
    'row_security', relation.relrowsecurity,
    'root', (
        select pg_catalog.json_build_object(
            'oid', c.oid::pg_catalog.int8, 'schema', n.nspname, 'name', c.relname
        )
        from pg_catalog.pg_class as c
        join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
        where c.oid = pg_catalog.pg_partition_root(relation.oid) and c.oid <> relation.oid
    ),
    'primary_key', (
        select coalesce(pg_catalog.json_agg(a.attname order by key.place), '[]')
        from pg_catalog.pg_index as i
        cross join lateral pg_catalog.unnest(i.indkey::pg_catalog.int2[])
            with ordinality as key (attnum, place)
        join attribute as a on a.attnum = key.attnum
        where i.indrelid = relation.oid and i.indisprimary and key.place <= i.indnkeyatts
    ),
    'columns', (
        select coalesce(
            pg_catalog.json_agg(
                pg_catalog.json_build_object(
                    'attnum', a.attnum,
                    'name', a.attname,
                    'type', a.atttypid::pg_catalog.int8,
                    'collation', a.attcollation::pg_catalog.int8,
                    'generated', a.generated,
                    'xid', a.xid
                )
                order by a.attnum
            ),
            '[]'
        )
        from attribute as a
    ),
    'dropped', (
        select coalesce(
            pg_catalog.json_agg(
                pg_catalog.json_build_object(
                    'attnum', a.attnum, 'xid', a.xmin::text::pg_catalog.int8
                )
                order by a.attnum
            ),
            '[]'
        )
        from pg_catalog.pg_attribute as a
        where a.attrelid = relation.oid and a.attnum > 0 and a.attisdropped
    ),
    -- Nothing ever defines a system column anew.
    'creator', (
        select a.xmin::text::pg_catalog.int8
        from pg_catalog.pg_attribute as a
        where a.attrelid = relation.oid and a.attnum = -1
    ),
    'snapshot', pg_catalog.pg_current_snapshot()::text,
    'types', (
        select coalesce(
            pg_catalog.json_agg(
                pg_catalog.json_build_object(
                    'oid', t.oid::pg_catalog.int8,
                    'name', t.typname,
                    'base', case when t.typtype = 'd' then t.typbasetype::pg_catalog.int8 end,
                    'element', case
                        when t.typoutput = 'pg_catalog.array_out'::pg_catalog.regproc
                            then t.typelem::pg_catalog.int8
                    end,
                    'delimiter', coalesce(e.typdelim, ','),
                    'attributes', case
                        when t.typtype = 'c' then (
                            select coalesce(
                                pg_catalog.json_agg(
                                    pg_catalog.json_build_object(
                                        'name', a.attname, 'type', a.atttypid::pg_catalog.int8
                                    )
                                    order by a.attnum
                                ),
                                '[]'
                            )
                            from pg_catalog.pg_attribute as a
                            where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
                        )
                    end
                )
            ),
            '[]'
        )
        from met
        join pg_catalog.pg_type as t on t.oid = met.oid
        left join pg_catalog.pg_type as e on e.oid = t.typelem
    ),
    'roles', (
        select coalesce(
            pg_catalog.json_agg(
                pg_catalog.json_build_object(
                    'name', role.rolname,
                    'columns', (
                        select coalesce(pg_catalog.json_agg(a.attname order by a.attnum), '[]')
                        from attribute as a
                        where pg_catalog.has_schema_privilege(
                                role.oid, relation.relnamespace, 'usage'
                            )
                            and pg_catalog.has_column_privilege(
                                role.oid, relation.oid, a.attnum, 'select'
                            )
                    ),
                    'policy', exists (
                        select
                        from pg_catalog.pg_policy as p
                        cross join lateral pg_catalog.unnest(p.polroles) as named (oid)
                        where p.polrelid = relation.oid
                            and p.polpermissive
                            and p.polcmd in ('r', '*')
                            and p.polqual is not null
                            and case
                                when named.oid = 0 then true
                                else pg_catalog.pg_has_role(role.oid, named.oid, 'usage')
                            end
                    ),
                    'bypass', role.unbound
                        or not relation.relrowsecurity
                        or (
                            not relation.relforcerowsecurity
                            and pg_catalog.pg_has_role(role.oid, relation.relowner, 'usage')
                        )
                )
            ),
            '[]'
        )
        from role
    )
) as definition
from relation;
