-- constraints: primary keys, unique constraints and foreign keys of all schemas, because views of
--         exposed schemas inherit those of the tables behind them.
-- in:     $1 bigint  rows at most
-- out:    a row a constraint
--         name text · kind text: pg_constraint.contype · relation oid · columns smallint[]
--         target oid, target_columns smallint[]: of a foreign key, else 0 and null
-- caller: rest/schema/load.rs
-- needs:  PostgreSQL 14+, any role
-- note:   Foreign keys that partitions have because the whole has them are left out.
select
    k.conname::text as name,
    k.contype::text as kind,
    k.conrelid as relation,
    k.conkey as columns,
    k.confrelid as target,
    k.confkey as target_columns
from pg_catalog.pg_constraint as k
join pg_catalog.pg_class as c on c.oid = k.conrelid
where c.relpersistence <> 't'
    and (k.contype in ('p', 'u') or (k.contype = 'f' and k.conparentid = 0))
order by k.conname, k.oid
limit $1;
