-- published: the tables whose changes our slot carries.
-- in:     $1 text[]  publications; those that do not exist are left out
-- out:    one row a table, whichever and however many of the publications it is in
--         oid oid · schema text · name text
-- caller: catalog.rs
-- needs:  PostgreSQL 14+, any role
select distinct
    c.oid,
    p.schemaname::text as schema,
    p.tablename::text as name
from pg_catalog.pg_publication_tables as p
join pg_catalog.pg_namespace as n on n.nspname = p.schemaname
join pg_catalog.pg_class as c on c.relnamespace = n.oid and c.relname = p.tablename
where p.pubname = any ($1)
order by c.oid;
