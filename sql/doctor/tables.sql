-- tables: every published table, and what decides who sees its changes.
-- in:     $1 text[]  publications · $2 text[]  configured roles
-- out:    rows: name text (safe for SQL) · plain text (schema.table)
--         · keyed bool (updates and deletes can be logged) · complete bool (identity full)
--         · row_security bool · policies bigint
--         · uncovered text[]  columns that policies read and the old image does not hold
--         · readers text[]    configured roles that may select some column
--         · blocked text[]    readers without usage on the schema
--         · owners text[]     configured roles that own it, so that policies do not bind them
-- caller: doctor.rs
with published as (
    select distinct c.oid, c.relname, c.relreplident, c.relrowsecurity, c.relforcerowsecurity,
        c.relowner, n.oid as schema, n.nspname
    from pg_catalog.pg_publication_tables as t
    join pg_catalog.pg_namespace as n on n.nspname = t.schemaname
    join pg_catalog.pg_class as c on c.relnamespace = n.oid and c.relname = t.tablename
    where t.pubname = any($1::text[])
), identity as (
    select
        p.oid,
        i.indexrelid is not null as keyed,
        coalesce(
            (select pg_catalog.array_agg(k) from pg_catalog.unnest(i.indkey::int2[]) as k),
            '{}'
        ) as columns
    from published as p
    left join pg_catalog.pg_index as i
        on i.indrelid = p.oid
        and (
            (p.relreplident = 'd' and i.indisprimary)
            or (p.relreplident = 'i' and i.indisreplident)
        )
)
select
    pg_catalog.format('%I.%I', p.nspname, p.relname) as name,
    p.nspname || '.' || p.relname as plain,
    p.relreplident = 'f' or i.keyed as keyed,
    p.relreplident = 'f' as complete,
    p.relrowsecurity as row_security,
    (select pg_catalog.count(*) from pg_catalog.pg_policy as y where y.polrelid = p.oid) as policies,
    array(
        select distinct a.attname::text
        from pg_catalog.pg_policy as y
        join pg_catalog.pg_depend as d
            on d.classid = 'pg_catalog.pg_policy'::regclass
            and d.objid = y.oid
            and d.refclassid = 'pg_catalog.pg_class'::regclass
            and d.refobjid = p.oid
            and d.refobjsubid > 0
        join pg_catalog.pg_attribute as a on a.attrelid = p.oid and a.attnum = d.refobjsubid
        where y.polrelid = p.oid and y.polcmd in ('r', '*') and not a.attnum = any(i.columns)
        order by 1
    ) as uncovered,
    array(
        select r.rolname::text
        from pg_catalog.pg_roles as r
        where r.rolname = any($2::text[])
            and pg_catalog.has_any_column_privilege(r.oid, p.oid, 'select')
        order by 1
    ) as readers,
    array(
        select r.rolname::text
        from pg_catalog.pg_roles as r
        where r.rolname = any($2::text[])
            and pg_catalog.has_any_column_privilege(r.oid, p.oid, 'select')
            and not pg_catalog.has_schema_privilege(r.oid, p.schema, 'usage')
        order by 1
    ) as blocked,
    array(
        select r.rolname::text
        from pg_catalog.pg_roles as r
        where r.rolname = any($2::text[])
            and pg_catalog.pg_has_role(r.oid, p.relowner, 'usage')
            and not p.relforcerowsecurity
            and not r.rolsuper
        order by 1
    ) as owners
from published as p
join identity as i on i.oid = p.oid
order by 1;
