-- fingerprint: one number that is another one after anything changed that a picture of the exposed
--         schemas is made from: relations, columns, types, keys, views, functions, comments. What
--         is not exposed counts too: views, types, defaults and functions may show it.
-- in:     nothing
-- out:    one row
--         fingerprint bigint
--         has_routes boolean: whether there is a table of routes that we may read
-- caller: rest/schema/load.rs, once a second while there are requests
-- needs:  PostgreSQL 14+, any role: reads only catalogs that PUBLIC may read
-- note:   A row's xmin is the transaction that wrote this version of it; row and xmin are hashed
--         together, with a seed for each catalog. Exclusive or, because rows have no order. Of
--         pg_class its content, because TRUNCATE and REFRESH write new versions of the same. Of a
--         default nothing: giving a column another one writes a new version of the column.
select
    (
        select coalesce(pg_catalog.bit_xor(pg_catalog.hash_record_extended(
            (c.oid, c.relname, c.relnamespace, c.relkind, c.relispartition), 1
        )), 0)
        from pg_catalog.pg_class as c
        where c.oid >= 16384
            and c.relkind in ('r', 'p', 'v', 'm', 'f', 'c', 'S')
            and c.relpersistence <> 't'
    )
    # (
        select coalesce(pg_catalog.bit_xor(pg_catalog.hash_record_extended(
            (a.attrelid, a.attnum, a.xmin), 2
        )), 0)
        from pg_catalog.pg_attribute as a
        join pg_catalog.pg_class as c on c.oid = a.attrelid
        where c.oid >= 16384
            and c.relkind in ('r', 'p', 'v', 'm', 'f', 'c')
            and c.relpersistence <> 't'
            and a.attnum > 0
    )
    # (
        select coalesce(pg_catalog.bit_xor(pg_catalog.hash_record_extended((k.oid, k.xmin), 3)), 0)
        from pg_catalog.pg_constraint as k
        join pg_catalog.pg_class as c on c.oid = k.conrelid
        where c.relpersistence <> 't' and k.contype in ('p', 'u', 'f')
    )
    # (
        select coalesce(pg_catalog.bit_xor(pg_catalog.hash_record_extended((r.oid, r.xmin), 4)), 0)
        from pg_catalog.pg_rewrite as r
        join pg_catalog.pg_class as c on c.oid = r.ev_class
        where r.oid >= 16384 and c.relpersistence <> 't'
    )
    # (
        select coalesce(pg_catalog.bit_xor(pg_catalog.hash_record_extended((t.oid, t.xmin), 5)), 0)
        from pg_catalog.pg_trigger as t
        join pg_catalog.pg_class as c on c.oid = t.tgrelid
        where c.relkind = 'v' and c.relpersistence <> 't'
    )
    # (
        select coalesce(pg_catalog.bit_xor(pg_catalog.hash_record_extended((p.oid, p.xmin), 6)), 0)
        from pg_catalog.pg_proc as p
        join pg_catalog.pg_namespace as n on n.oid = p.pronamespace
        where p.oid >= 16384 and n.nspname !~ '^pg_temp_'
    )
    # (
        select coalesce(pg_catalog.bit_xor(pg_catalog.hash_record_extended((t.oid, t.xmin), 7)), 0)
        from pg_catalog.pg_type as t
        join pg_catalog.pg_namespace as n on n.oid = t.typnamespace
        where t.oid >= 16384 and n.nspname !~ '^pg_(toast|temp)'
    )
    # (
        select coalesce(pg_catalog.bit_xor(pg_catalog.hash_record_extended(
            (l.oid, l.xmin), 8
        )), 0)
        from pg_catalog.pg_enum as l
    )
    # (
        select coalesce(pg_catalog.bit_xor(pg_catalog.hash_record_extended(
            (d.classoid, d.objoid, d.objsubid, d.xmin), 9
        )), 0)
        from pg_catalog.pg_description as d
        where d.objoid >= 16384
            and d.classoid in (
                'pg_catalog.pg_class'::pg_catalog.regclass,
                'pg_catalog.pg_proc'::pg_catalog.regclass
            )
    )
    # (
        select coalesce(pg_catalog.bit_xor(pg_catalog.hash_record_extended(
            (n.oid, n.nspname), 10
        )), 0)
        from pg_catalog.pg_namespace as n
        where n.nspname !~ '^pg_(toast_)?temp_'
    ) as fingerprint,
    exists (
        select
        from pg_catalog.pg_class as c
        join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
        where n.nspname = 'walcast'
            and c.relname = 'routes'
            and c.relkind = 'r'
            and not c.relrowsecurity
            and pg_catalog.has_schema_privilege(n.oid, 'usage')
            and pg_catalog.has_table_privilege(c.oid, 'select')
    ) as has_routes;
