-- writable: what views and foreign tables of the exposed schemas take, triggers considered.
-- in:     $1 text[]  exposed schemas
-- out:    a row a relation
--         oid oid · inserts boolean · updates boolean · deletes boolean
-- caller: rest/schema/load.rs, where it may fail: this locks relations for a moment, and asks
--         foreign data wrappers
-- needs:  PostgreSQL 14+, any role
select
    asked.oid,
    asked.events & 8 <> 0 as inserts,
    asked.events & 4 <> 0 as updates,
    asked.events & 16 <> 0 as deletes
from (
    select c.oid, pg_catalog.pg_relation_is_updatable(c.oid, true) as events
    from pg_catalog.pg_class as c
    join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    where n.nspname = any ($1) and c.relkind in ('v', 'f') and c.relpersistence <> 't'
) as asked;
