-- functions: what a request may call: of the exposed schemas, with arguments that have names, or
--         with a single one that takes the whole body.
-- in:     $1 text[]  exposed schemas
--         $2 bigint  rows at most
-- out:    a row a function
--         oid oid · schema text · name text · comment text
--         inputs oid[] · defaults smallint: how many of the last inputs have one
--         types oid[], modes text[]: of all arguments; null when there are inputs only
--         names text[]: of all arguments; null when there are none
--         variadic boolean: the last input is
--         result oid · returns_set boolean · volatility text: pg_proc.provolatile
-- caller: rest/schema/load.rs
-- needs:  PostgreSQL 14+, any role
-- note:   What only the server itself can call has arguments or a result of kinds that are named.
select
    p.oid,
    n.nspname::text as schema,
    p.proname::text as name,
    d.description as comment,
    p.proargtypes::pg_catalog.oid[] as inputs,
    p.pronargdefaults as defaults,
    p.proallargtypes as types,
    p.proargmodes::text[] as modes,
    p.proargnames as names,
    p.provariadic <> 0 as variadic,
    p.prorettype as result,
    p.proretset as returns_set,
    p.provolatile::text as volatility
from pg_catalog.pg_proc as p
join pg_catalog.pg_namespace as n on n.oid = p.pronamespace
left join pg_catalog.pg_description as d
    on d.objoid = p.oid
    and d.classoid = 'pg_catalog.pg_proc'::pg_catalog.regclass
    and d.objsubid = 0
where n.nspname = any ($1)
    and p.prokind = 'f'
    and not exists (
        select
        from pg_catalog.unnest(p.proargtypes::pg_catalog.oid[] || p.prorettype) as used (type)
        join pg_catalog.pg_type as t on t.oid = used.type
        where t.typtype = 'p'
            and t.typname in (
                'internal', 'trigger', 'event_trigger', 'cstring', 'language_handler',
                'fdw_handler', 'index_am_handler', 'table_am_handler', 'tsm_handler',
                'pg_ddl_command'
            )
    )
order by p.oid
limit $2;
