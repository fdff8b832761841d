-- fingerprint: one number that is another one after anything changed that decides who may see
--         rows or how they look: policies, functions, views, tables (grants, owner, row security),
--         column grants, composite types and domains, partitions, schemas, roles, memberships and
--         settings. Temporary objects do not count.
-- in:     nothing
-- out:    one row
--         fingerprint bigint
--         snapshot text: what this answer sees
-- caller: catalog/mod.rs, polled
-- needs:  PostgreSQL 14+, any role: reads only catalogs that PUBLIC may read
-- note:   a row's xmin is the transaction that wrote this version of it. Row and xmin are hashed
--         together, with a seed for each catalog. Exclusive or, because rows have no order.
select
    (
        select coalesce(pg_catalog.bit_xor(pg_catalog.hashint8extended(
            (c.oid::pg_catalog.int8 << 32) | c.xmin::pg_catalog.text::pg_catalog.int8, 1
        )), 0)
        from pg_catalog.pg_class as c
        where c.relkind in ('r', 'p', 'v', 'm', 'f') and c.relpersistence <> 't' and c.oid >= 16384
    )
    # (
        select coalesce(pg_catalog.bit_xor(pg_catalog.hashint8extended(
            (p.oid::pg_catalog.int8 << 32) | p.xmin::pg_catalog.text::pg_catalog.int8, 2
        )), 0)
        from pg_catalog.pg_policy as p
    )
    # (
        select coalesce(pg_catalog.bit_xor(pg_catalog.hashint8extended(
            (p.oid::pg_catalog.int8 << 32) | p.xmin::pg_catalog.text::pg_catalog.int8, 3
        )), 0)
        from pg_catalog.pg_proc as p
        join pg_catalog.pg_namespace as n on n.oid = p.pronamespace
        where p.oid >= 16384 and n.nspname !~ '^pg_temp_'
    )
    # (
        select coalesce(pg_catalog.bit_xor(pg_catalog.hashint8extended(
            (r.oid::pg_catalog.int8 << 32) | r.xmin::pg_catalog.text::pg_catalog.int8, 4
        )), 0)
        from pg_catalog.pg_rewrite as r
        join pg_catalog.pg_class as c on c.oid = r.ev_class
        where r.oid >= 16384 and c.relpersistence <> 't'
    )
    # (
        select coalesce(pg_catalog.bit_xor(pg_catalog.hashint8extended(
            (a.attrelid::pg_catalog.int8 << 32) | a.xmin::pg_catalog.text::pg_catalog.int8,
            5 + a.attnum
        )), 0)
        from pg_catalog.pg_attribute as a
        join pg_catalog.pg_class as c on c.oid = a.attrelid
        where a.attacl is not null
            and c.relpersistence <> 't'
            and c.oid >= 16384
    )
    # (
        select coalesce(pg_catalog.bit_xor(pg_catalog.hashint8extended(
            (a.attrelid::pg_catalog.int8 << 32) | a.xmin::pg_catalog.text::pg_catalog.int8,
            10000 + a.attnum
        )), 0)
        from pg_catalog.pg_attribute as a
        join pg_catalog.pg_class as c on c.oid = a.attrelid
        where c.relkind = 'c'
            and c.relpersistence <> 't'
            and c.oid >= 16384
    )
    # (
        select coalesce(pg_catalog.bit_xor(pg_catalog.hashint8extended(
            (t.oid::pg_catalog.int8 << 32) | t.xmin::pg_catalog.text::pg_catalog.int8, -1
        )), 0)
        from pg_catalog.pg_type as t
        join pg_catalog.pg_namespace as n on n.oid = t.typnamespace
        where t.typtype in ('d', 'c') and t.oid >= 16384 and n.nspname !~ '^pg_temp_'
    )
    # (
        select coalesce(pg_catalog.bit_xor(pg_catalog.hashtextextended(
            pg_catalog.concat_ws(' ', i.inhrelid, i.inhparent, i.xmin), -6
        )), 0)
        from pg_catalog.pg_inherits as i
    )
    # (
        select coalesce(pg_catalog.bit_xor(pg_catalog.hashint8extended(
            (n.oid::pg_catalog.int8 << 32) | n.xmin::pg_catalog.text::pg_catalog.int8, -2
        )), 0)
        from pg_catalog.pg_namespace as n
        where n.nspname !~ '^pg_(toast_)?temp_'
    )
    # (
        select coalesce(pg_catalog.bit_xor(pg_catalog.hashtextextended(
            pg_catalog.concat_ws(' ', m.roleid, m.member, m.grantor, m.xmin), -4
        )), 0)
        from pg_catalog.pg_auth_members as m
    )
    # (
        select coalesce(pg_catalog.bit_xor(pg_catalog.hashtextextended(
            pg_catalog.concat_ws(' ', s.setdatabase, s.setrole, s.xmin), -5
        )), 0)
        from pg_catalog.pg_db_role_setting as s
    )
    # (
        select coalesce(pg_catalog.bit_xor(pg_catalog.hashtextextended(
            pg_catalog.concat_ws(
                ' ', r.oid, r.rolsuper, r.rolinherit, r.rolbypassrls, r.rolname
            ),
            -3
        )), 0)
        from pg_catalog.pg_roles as r
    ) as fingerprint,
    pg_catalog.pg_current_snapshot()::text as snapshot;
