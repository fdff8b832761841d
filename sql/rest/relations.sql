-- relations: tables, views, materialised views and foreign tables of the exposed schemas.
-- in:     $1 text[]  exposed schemas
--         $2 bigint  rows at most
-- out:    a row a relation
--         oid oid · schema text · name text · kind text: pg_class.relkind
--         is_partition boolean · comment text
-- caller: rest/schema/load.rs
-- needs:  PostgreSQL 14+, any role
select
    c.oid,
    n.nspname::text as schema,
    c.relname::text as name,
    c.relkind::text as kind,
    c.relispartition as is_partition,
    d.description as comment
from pg_catalog.pg_class as c
join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
left join pg_catalog.pg_description as d
    on d.objoid = c.oid
    and d.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass
    and d.objsubid = 0
where n.nspname = any ($1)
    and c.relkind in ('r', 'p', 'v', 'm', 'f')
    and c.relpersistence <> 't'
limit $2;
