-- login_powers: what this login is and may become.
-- in:     $1 text[]  the configured roles · $2 text[]  the publications
-- out:    one row: name, database text · superuser, bypass_rls, replication, create_role, create_db,
--         temporary bool (may make temporary objects)
--         · inherits text[] configured roles whose rights it has without asking
--         · others text[]   roles that it is a direct member of, beyond the configured ones
--         · dangerous text[] roles it could become through them that stand above policies
--         · owned text[]    published tables that it, or a role beyond the configured, owns
--         · missing text[]  configured roles that exist and it may not become
--         · usable bigint   how many of the configured roles it may become
-- caller: db/logins.rs, on the login itself
with reachable as (
    select
        r.*,
        r.rolname = any($1::text[]) as configured
    from pg_catalog.pg_roles as r
    where pg_catalog.pg_has_role(session_user, r.oid, 'member') and r.rolname <> session_user
)
select
    pg_catalog.quote_ident(me.rolname) as name,
    pg_catalog.quote_ident(pg_catalog.current_database()) as database,
    pg_catalog.has_database_privilege(pg_catalog.current_database(), 'temporary') as temporary,
    me.rolsuper as superuser,
    me.rolbypassrls as bypass_rls,
    me.rolreplication
        or exists (select from reachable as r where r.rolname = 'rds_replication') as replication,
    me.rolcreaterole as create_role,
    me.rolcreatedb as create_db,
    array(
        select r.rolname::text from reachable as r
        where r.configured and pg_catalog.pg_has_role(session_user, r.oid, 'usage')
        order by 1
    ) as inherits,
    array(
        select r.rolname::text
        from pg_catalog.pg_auth_members as m
        join pg_catalog.pg_roles as r on r.oid = m.roleid
        where m.member = me.oid and not r.rolname = any($1::text[])
        order by 1
    ) as others,
    array(
        select r.rolname::text from reachable as r
        where r.rolsuper or r.rolreplication or r.rolcreaterole
            or (r.rolbypassrls and not r.configured)
            or r.rolname ~ '^pg_'
        order by 1
    ) as dangerous,
    array(
        select distinct pg_catalog.format('%I.%I', t.schemaname, t.tablename)
        from pg_catalog.pg_publication_tables as t
        join pg_catalog.pg_namespace as n on n.nspname = t.schemaname
        join pg_catalog.pg_class as c on c.relnamespace = n.oid and c.relname = t.tablename
        where t.pubname = any($2::text[])
            and (
                c.relowner = me.oid
                or c.relowner in (select r.oid from reachable as r where not r.configured)
            )
        order by 1
    ) as owned,
    array(
        select r.rolname::text
        from pg_catalog.pg_roles as r
        where r.rolname = any($1::text[])
            and r.rolname <> session_user
            and not pg_catalog.pg_has_role(session_user, r.oid, 'member')
        order by 1
    ) as missing,
    (select pg_catalog.count(*) from reachable as r where r.configured) as usable
from pg_catalog.pg_roles as me
where me.rolname = session_user;
