-- views: what the views of the exposed schemas, and the views behind them, are made of.
-- in:     $1 text[]  exposed schemas
--         $2 bigint  a longer definition is left out
--         $3 bigint  once all together are longer, the rest is left out
-- out:    a row a view
--         view oid · tree text: its query as pg_node_tree
-- caller: rest/schema/load.rs
-- needs:  PostgreSQL 14+, any role
with recursive needed (oid) as (
    select c.oid
    from pg_catalog.pg_class as c
    join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    where n.nspname = any ($1) and c.relkind in ('v', 'm') and c.relpersistence <> 't'
    union
    select c.oid
    from needed
    join pg_catalog.pg_rewrite as r on r.ev_class = needed.oid and r.rulename = '_RETURN'
    join pg_catalog.pg_depend as d
        on d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
        and d.objid = r.oid
        and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
    join pg_catalog.pg_class as c on c.oid = d.refobjid and c.relkind in ('v', 'm')
),
definition as (
    select
        r.ev_class,
        r.ev_action::text as tree,
        pg_catalog.sum(pg_catalog.octet_length(r.ev_action::text)) over (order by r.ev_class) as bytes
    from needed
    join pg_catalog.pg_rewrite as r on r.ev_class = needed.oid and r.rulename = '_RETURN'
    where pg_catalog.octet_length(r.ev_action::text) <= $2
)
select d.ev_class as view, d.tree
from definition as d
where d.bytes <= $3;
