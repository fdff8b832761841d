-- collation_of: a collation's name as SQL, and whether equal means equal bytes under it.
-- in:     $1 oid  collation
-- out:    one row; none when it is gone
--         collation text (quoted, with its schema) · is_deterministic boolean
-- caller: subscribe/mod.rs, for a column whose collation is not the database's
-- needs:  PostgreSQL 14+, any role
select
    pg_catalog.format('%I.%I', n.nspname, c.collname) as collation,
    c.collisdeterministic as is_deterministic
from pg_catalog.pg_collation as c
join pg_catalog.pg_namespace as n on n.oid = c.collnamespace
where c.oid = $1;
