-- beside: tables that our slot carries for broadcasts alone.
-- in:     $1 text[]  publications whose changes are shown · $2 text  the publication of messages
-- out:    oid oid: tables of the second that are in none of the first, under whatever name the log
--         gives their rows
-- caller: catalog/mod.rs
-- needs:  PostgreSQL 14+, any role
with listed as (
    select p.pubname = $2 as beside, c.oid
    from pg_catalog.pg_publication_tables as p
    join pg_catalog.pg_namespace as n on n.nspname = p.schemaname
    join pg_catalog.pg_class as c on c.relnamespace = n.oid and c.relname = p.tablename
    where p.pubname = $2 or p.pubname = any ($1)
), shown as (
    select oid from listed where not beside
)
select distinct l.oid
from listed as l
where l.beside
    and $2 <> all ($1)
    and l.oid not in (select oid from shown)
    and not exists (
        select
        from pg_catalog.pg_partition_tree(l.oid) as t
        where t.relid in (select oid from shown)
    )
    and not exists (
        select
        from pg_catalog.pg_partition_ancestors(l.oid) as a
        where a.relid in (select oid from shown)
    );
