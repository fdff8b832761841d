-- types: every type a column or an argument may have.
-- in:     $1 bigint  rows at most
-- out:    a row a type
--         oid oid · type_sql text: as SQL, qualified and quoted, without modifier
--         kind text: pg_type.typtype · category text · base oid: below a domain, else 0
--         modifier int: of a domain, else -1 · required boolean: a domain that takes no NULL
--         relation oid: whose rows it has, else 0 · default_sql text: of a domain
--         labels text[]: of an enum, in order
-- caller: rest/schema/load.rs
-- needs:  PostgreSQL 14+, any role; an empty search_path
select
    t.oid,
    pg_catalog.format_type(t.oid, -1) as type_sql,
    t.typtype::text as kind,
    t.typcategory::text as category,
    t.typbasetype as base,
    t.typtypmod as modifier,
    t.typnotnull as required,
    t.typrelid as relation,
    pg_catalog.pg_get_expr(t.typdefaultbin, 0) as default_sql,
    e.labels
from pg_catalog.pg_type as t
join pg_catalog.pg_namespace as n on n.oid = t.typnamespace
left join (
    select l.enumtypid, pg_catalog.array_agg(l.enumlabel::text order by l.enumsortorder) as labels
    from pg_catalog.pg_enum as l
    group by l.enumtypid
) as e on e.enumtypid = t.oid
where n.nspname !~ '^pg_(toast_)?temp_' and n.nspname <> 'pg_toast'
limit $1;
