-- operator_of: which operator compares values of a type, in a way no user can shadow.
-- in:     $1 oid[]   types
--         $2 text[]  for each, an operator's bare name such as = or ~~*
-- out:    at most one row for each pair; none when the type is gone
--         type_oid oid · name text · type_name text (as an error shows it) · is_enum boolean
--         base_oid oid (the type below all domains; is_enum is about it) · array_oid oid (0 when there is none)
--         operator text (ready to stand between two operands) · right_oid oid
-- caller: subscribe/ask.rs, before the first comparison of a type
-- needs:  PostgreSQL 14+, any role
--
-- Comparisons come from the type's default operator class, which only a superuser can make;
-- pattern operators from the type's own schema and owner; everything else from pg_catalog.
with recursive asked as (
    select distinct a.type_oid, a.name
    from unnest($1::pg_catalog.oid[], $2::pg_catalog.text[]) as a(type_oid, name)
),
types as (
    select a.type_oid, a.name, t.oid as base_oid, t.typtype, t.typbasetype
    from asked as a
    join pg_catalog.pg_type as t on t.oid = a.type_oid
    union all
    select d.type_oid, d.name, t.oid, t.typtype, t.typbasetype
    from types as d
    join pg_catalog.pg_type as t on t.oid = d.typbasetype
    where d.typtype = 'd'
)
select
    b.type_oid,
    b.name,
    pg_catalog.format_type(b.type_oid, null) as type_name,
    b.typtype = 'e' as is_enum,
    b.base_oid,
    declared.typarray as array_oid,
    pg_catalog.format('operator(%I.%s)', coalesce(own.nspname, 'pg_catalog'), b.name) as operator,
    coalesce(
        own.right_oid,
        (
            select o.oprright
            from pg_catalog.pg_operator as o
            where o.oprname = b.name
                and o.oprnamespace = 'pg_catalog'::pg_catalog.regnamespace
                and o.oprleft = b.base_oid
                and o.oprright = b.base_oid
        ),
        case when b.name like '~%' then 'pg_catalog.text'::pg_catalog.regtype else b.base_oid end
    ) as right_oid
from types as b
join pg_catalog.pg_type as declared on declared.oid = b.type_oid
join pg_catalog.pg_type as base on base.oid = b.base_oid
left join lateral (
    select n.nspname, o.oprright as right_oid, 1 as rank
    from pg_catalog.pg_opclass as c
    join pg_catalog.pg_am as m on m.oid = c.opcmethod
    join pg_catalog.pg_amop as p
        on p.amopfamily = c.opcfamily
        and p.amoplefttype = c.opcintype
        and p.amoprighttype = c.opcintype
        and p.amoppurpose = 's'
    join pg_catalog.pg_operator as o on o.oid = p.amopopr
    join pg_catalog.pg_namespace as n on n.oid = o.oprnamespace
    where c.opcdefault
        and c.opcintype = b.base_oid
        and m.amname in ('btree', 'hash')
        and o.oprname = b.name
    union all
    select n.nspname, o.oprright, 2
    from pg_catalog.pg_operator as o
    join pg_catalog.pg_namespace as n on n.oid = o.oprnamespace
    where o.oprname = b.name
        and o.oprnamespace = base.typnamespace
        and o.oprowner = base.typowner
        and o.oprleft = b.base_oid
        and o.oprright = b.base_oid
        and o.oprresult = 'pg_catalog.bool'::pg_catalog.regtype
    order by rank
    limit 1
) as own on true
where b.typtype <> 'd';
