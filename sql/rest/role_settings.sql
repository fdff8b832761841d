-- role_settings: what `alter role … set …` says of the configured roles.
-- in:     $1 text[]  roles
-- out:    role text · name text · value text; of a setting said twice, what counts comes last
-- caller: rest/roles.rs, every few seconds while requests come in
-- needs:  PostgreSQL 13+, any role
--
-- Only what every user may set: the rest would need rights that the login does not have. The role
-- and the transaction's own are ours to choose.
select
    r.rolname::text,
    p.name,
    pg_catalog.substr(c.setting, pg_catalog.strpos(c.setting, '=') + 1)
from pg_catalog.pg_db_role_setting as s
    join pg_catalog.pg_roles as r on r.oid = s.setrole
    cross join pg_catalog.unnest(s.setconfig) as c (setting)
    join pg_catalog.pg_settings as p
        on pg_catalog.lower(p.name) = pg_catalog.lower(pg_catalog.split_part(c.setting, '=', 1))
where r.rolname = any ($1::text[])
    and p.context = 'user'
    and p.name not in (
        'role', 'session_authorization', 'transaction_isolation', 'transaction_read_only',
        'transaction_deferrable'
    )
    and s.setdatabase in (
        0,
        (select d.oid from pg_catalog.pg_database as d where d.datname = pg_catalog.current_database())
    )
order by s.setdatabase <> 0;
