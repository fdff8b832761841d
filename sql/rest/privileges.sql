-- privileges: what the current role may do with the relations and functions of a schema.
-- in:     $1 text  schema
-- out:    one row as every statement of rest/ has it; its body a JSON object
--         relations: arrays of oid, whether the whole of it may be read, inserted, updated, deleted from (`rawd`),
--         and of those that it may not, the numbers of the columns that may be: read, inserted, updated
--         functions: oids
-- caller: rest/openapi, in a transaction of the caller
-- needs:  PostgreSQL 14+, any role
select
    pg_catalog.json_build_object(
        'relations', (
            select
                pg_catalog.json_agg(
                    pg_catalog.json_build_array(
                        may.oid::pg_catalog.int8,
                        pg_catalog.concat(
                            case when may.read then 'r' end,
                            case when may.inserted then 'a' end,
                            case when may.updated then 'w' end,
                            case when may.deleted then 'd' end
                        ),
                        (
                            select pg_catalog.json_agg(a.attnum order by a.attnum)
                            from pg_catalog.pg_attribute as a
                            where not may.read
                                and a.attrelid = may.oid
                                and a.attnum > 0
                                and not a.attisdropped
                                and pg_catalog.has_column_privilege(may.oid, a.attnum, 'select')
                        ),
                        (
                            select pg_catalog.json_agg(a.attnum order by a.attnum)
                            from pg_catalog.pg_attribute as a
                            where not may.inserted
                                and a.attrelid = may.oid
                                and a.attnum > 0
                                and not a.attisdropped
                                and pg_catalog.has_column_privilege(may.oid, a.attnum, 'insert')
                        ),
                        (
                            select pg_catalog.json_agg(a.attnum order by a.attnum)
                            from pg_catalog.pg_attribute as a
                            where not may.updated
                                and a.attrelid = may.oid
                                and a.attnum > 0
                                and not a.attisdropped
                                and pg_catalog.has_column_privilege(may.oid, a.attnum, 'update')
                        )
                    )
                    order by may.oid
                )
            from (
                select
                    c.oid,
                    coalesce(pg_catalog.has_table_privilege(c.oid, 'select'), false) as read,
                    coalesce(pg_catalog.has_table_privilege(c.oid, 'insert'), false) as inserted,
                    coalesce(pg_catalog.has_table_privilege(c.oid, 'update'), false) as updated,
                    coalesce(pg_catalog.has_table_privilege(c.oid, 'delete'), false) as deleted
                from pg_catalog.pg_class as c
                join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
                where n.nspname = $1::text
                    and pg_catalog.has_schema_privilege(n.oid, 'usage')
                    and c.relkind in ('r', 'p', 'v', 'm', 'f')
                    and not c.relispartition
            ) as may
        ),
        'functions', (
            select pg_catalog.json_agg(p.oid::pg_catalog.int8 order by p.oid)
            from pg_catalog.pg_proc as p
            join pg_catalog.pg_namespace as n on n.oid = p.pronamespace
            where n.nspname = $1::text
                and pg_catalog.has_schema_privilege(n.oid, 'usage')
                and pg_catalog.has_function_privilege(p.oid, 'execute')
        )
    )::text as body,
    '1'::text as page_total,
    null::text as total,
    null::text as inserted,
    null::text as location;
