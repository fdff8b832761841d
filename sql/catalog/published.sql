-- published: the tables whose changes our slot carries.
-- in:     $1 text[]  publications; those that do not exist are left out
-- out:    one row a table, whichever and however many of the publications it is in
--         oid oid · schema text · name text · by_partition boolean: a partitioned table whose
--         changes come under the names of its partitions, all of which the slot carries
-- caller: catalog/mod.rs
-- needs:  PostgreSQL 14+, any role
with listed as (
    select distinct
        c.oid,
        p.schemaname::text as schema,
        p.tablename::text as name
    from pg_catalog.pg_publication_tables as p
    join pg_catalog.pg_namespace as n on n.nspname = p.schemaname
    join pg_catalog.pg_class as c on c.relnamespace = n.oid and c.relname = p.tablename
    where p.pubname = any ($1)
)
select listed.oid, listed.schema, listed.name, false as by_partition
from listed
union all
select c.oid, n.nspname::text, c.relname::text, true
from pg_catalog.pg_class as c
join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
where c.relkind = 'p'
    and not c.relispartition
    and c.oid not in (select listed.oid from listed)
    and case
        when exists (
            select
            from pg_catalog.pg_publication_rel as r
            join pg_catalog.pg_publication as p on p.oid = r.prpubid
            where r.prrelid = c.oid and p.pubname = any ($1)
        ) then true
        else (
            select coalesce(pg_catalog.bool_and(t.relid in (select listed.oid from listed)), false)
            from pg_catalog.pg_partition_tree(c.oid) as t
            where t.isleaf
        )
    end
order by 1;
