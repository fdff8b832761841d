-- mapped_tables: what is declared now, with the types of columns as TypeScript has their JSON.
-- in:     nothing
-- out:    one row for each table that is mapped, looked up, or written by a command: oid · name text · id bigint and
--         declaration text (null: it is not mapped) · columns text, a JSON array of {"name", "type", "nullable", "key"}
-- caller: commands/types.rs
-- needs:  whoever owns the tables, or the database
with last as (
    select distinct on (m.relation) m.relation, m.id, m.declaration
    from walcast.mappings as m
    order by m.relation, m.id desc
), tables as (
    select l.relation as oid from last as l where l.declaration is not null
    union
    select (k.value ->> 'relation')::oid
    from last as l
    cross join pg_catalog.jsonb_array_elements(l.declaration -> 'rules') as r (value)
    cross join pg_catalog.jsonb_each(r.value -> 'lookup') as k (key, value)
    union
    select pg_catalog.to_regclass(d.declaration ->> 'table')::oid
    from walcast.declarations as d
    where d.kind = 'command'
)
select
    c.oid,
    pg_catalog.format('%I.%I', n.nspname, c.relname) as name,
    l.id,
    l.declaration::text as declaration,
    (
        select pg_catalog.jsonb_agg(
            pg_catalog.jsonb_build_object(
                'name', a.attname,
                'nullable', not (a.attnotnull or t.typnotnull),
                'key', exists (
                    select
                    from pg_catalog.pg_index as i
                    where i.indrelid = c.oid and i.indisprimary and a.attnum = any (i.indkey)
                ),
                'type', case
                    when b.typcategory = 'A' then 'unknown[]'
                    when b.typtype = 'e' then (
                        select pg_catalog.string_agg(pg_catalog.to_json(e.enumlabel)::text, ' | ' order by e.enumsortorder)
                        from pg_catalog.pg_enum as e
                        where e.enumtypid = b.oid
                    )
                    when b.oid = 'bool'::regtype then 'boolean'
                    when b.oid in (
                        'int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'float4'::regtype, 'float8'::regtype, 'numeric'::regtype
                    ) then 'number'
                    when b.oid in ('json'::regtype, 'jsonb'::regtype) or b.typtype = 'c' then 'unknown'
                    else 'string'
                end
            )
            order by a.attnum
        )
        from pg_catalog.pg_attribute as a
        join pg_catalog.pg_type as t on t.oid = a.atttypid
        cross join lateral (
            with recursive base as (
                select t.oid, t.typtype, t.typcategory, t.typbasetype
                union all
                select u.oid, u.typtype, u.typcategory, u.typbasetype
                from base as d
                join pg_catalog.pg_type as u on u.oid = d.typbasetype
                where d.typtype = 'd'
            )
            select d.oid, d.typtype, d.typcategory from base as d where d.typtype <> 'd'
        ) as b
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    )::text as columns
from tables as m
join pg_catalog.pg_class as c on c.oid = m.oid
join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
left join last as l on l.relation = m.oid and l.declaration is not null
order by name;
