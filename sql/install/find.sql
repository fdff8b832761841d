-- find: whether one database object exists, and whose it is.
-- in:     $1 text  kind, as in walcast.objects · $2 text  name
-- out:    one row when it exists: owner name · ours bool (we may alter it)
--         · recorded bool (we made it) · body text (md5, functions only) · recorded_body text
-- caller: db/install.rs
with found as (
    select r.oid as owner, null::text as body
    from pg_catalog.pg_roles as r
    where $1 = 'role' and r.rolname = $2
    union all
    select n.nspowner, null
    from pg_catalog.pg_namespace as n
    where $1 = 'schema' and n.nspname = $2
    union all
    select t.typowner, null
    from pg_catalog.pg_type as t
    where $1 = 'type' and t.oid = pg_catalog.to_regtype($2)
    union all
    select c.relowner, null
    from pg_catalog.pg_class as c
    where $1 = 'table' and c.oid = pg_catalog.to_regclass($2)
    union all
    select p.proowner, pg_catalog.md5(p.prosrc)
    from pg_catalog.pg_proc as p
    where $1 = 'function' and p.oid = pg_catalog.to_regprocedure($2)
    union all
    select p.pubowner, null
    from pg_catalog.pg_publication as p
    where $1 = 'publication' and p.pubname = $2
    union all
    select e.evtowner, null
    from pg_catalog.pg_event_trigger as e
    where $1 = 'event trigger' and e.evtname = $2
)
select
    pg_catalog.pg_get_userbyid(f.owner) as owner,
    pg_catalog.pg_has_role(f.owner, 'usage') as ours,
    o.name is not null as recorded,
    f.body,
    o.body as recorded_body
from found as f
left join walcast.objects as o on o.kind = $1 and o.name = $2;
