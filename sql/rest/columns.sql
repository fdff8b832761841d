-- columns: of the relations of the exposed schemas, and of the rows that their functions return.
-- in:     $1 text[]  exposed schemas
--         $2 bigint  rows at most
-- out:    a row a column, those of one relation in attribute order
--         relation oid · attnum smallint · name text · type oid · modifier int
--         required boolean: takes no NULL by itself, whatever its type says
--         generated boolean · default_sql text: its own, also an identity's · comment text
-- caller: rest/schema/load.rs
-- needs:  PostgreSQL 14+, any role; an empty search_path
-- note:   pg_get_expr is not told of the relation, which would lock it. An expression that speaks
--         of columns, as those of generated columns may, is not asked for.
select
    a.attrelid as relation,
    a.attnum,
    a.attname::text as name,
    a.atttypid as type,
    a.atttypmod as modifier,
    a.attnotnull as required,
    a.attgenerated <> '' as generated,
    case
        when a.attidentity = 'd' then (
            select pg_catalog.format(
                'pg_catalog.nextval(%L::pg_catalog.regclass)', s.objid::pg_catalog.regclass::text
            )
            from pg_catalog.pg_depend as s
            where s.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
                and s.refobjid = a.attrelid
                and s.refobjsubid = a.attnum
                and s.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
                and s.deptype = 'i'
            limit 1
        )
        when a.attgenerated = '' then pg_catalog.pg_get_expr(v.adbin, 0)
    end as default_sql,
    d.description as comment
from pg_catalog.pg_class as c
join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
join pg_catalog.pg_attribute as a on a.attrelid = c.oid
left join pg_catalog.pg_attrdef as v on v.adrelid = a.attrelid and v.adnum = a.attnum
left join pg_catalog.pg_description as d
    on d.objoid = a.attrelid
    and d.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass
    and d.objsubid = a.attnum
where a.attnum > 0
    and not a.attisdropped
    and c.relpersistence <> 't'
    and (
        (n.nspname = any ($1) and c.relkind in ('r', 'p', 'v', 'm', 'f'))
        or c.oid in (
            select coalesce(nullif(b.typrelid, 0), t.typrelid)
            from pg_catalog.pg_proc as p
            join pg_catalog.pg_namespace as pn on pn.oid = p.pronamespace
            join pg_catalog.pg_type as t on t.oid = p.prorettype
            -- A domain over a domain over rows is not looked through: it returns a value.
            left join pg_catalog.pg_type as b on b.oid = t.typbasetype
            where pn.nspname = any ($1) and p.prokind = 'f'
        )
    )
order by a.attrelid, a.attnum
limit $2;
