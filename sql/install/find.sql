-- find: whether one database object exists, and whose it is.
-- in:     $1 text  kind, as in walcast.objects · $2 text  name
-- out:    one row when it exists: owner name · ours bool (we may alter it)
--         · recorded bool (we made it) · body text (md5, functions only) · recorded_body text
-- caller: db/install.rs
-- needs:  no to_regclass() and the like: they fail where the login may not use the schema
with found as (
    select r.oid as owner, null::text as body
    from pg_catalog.pg_roles as r
    where $1::text = 'role' and r.rolname = $2::text
    union all
    select n.nspowner, null
    from pg_catalog.pg_namespace as n
    where $1::text = 'schema' and n.nspname = $2::text
    union all
    select t.typowner, null
    from pg_catalog.pg_type as t
    join pg_catalog.pg_namespace as n on n.oid = t.typnamespace
    where $1::text = 'type' and n.nspname || '.' || t.typname = $2::text
    union all
    select c.relowner, null
    from pg_catalog.pg_class as c
    join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    where $1::text = 'table' and n.nspname || '.' || c.relname = $2::text
    union all
    select p.proowner, pg_catalog.md5(p.prosrc)
    from pg_catalog.pg_proc as p
    join pg_catalog.pg_namespace as n on n.oid = p.pronamespace
    where $1::text = 'function'
        and pg_catalog.format(
            '%s.%s(%s)', n.nspname, p.proname, pg_catalog.oidvectortypes(p.proargtypes)
        ) = $2::text
    union all
    select p.pubowner, null
    from pg_catalog.pg_publication as p
    where $1::text = 'publication' and p.pubname = $2::text
    union all
    select e.evtowner, null
    from pg_catalog.pg_event_trigger as e
    where $1::text = 'event trigger' and e.evtname = $2::text
)
select
    pg_catalog.pg_get_userbyid(f.owner) as owner,
    pg_catalog.pg_has_role(f.owner, 'usage') as ours,
    o.name is not null as recorded,
    f.body,
    o.body as recorded_body
from found as f
left join walcast.objects as o on o.kind = $1 and o.name = $2::text;
