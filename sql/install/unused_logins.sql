-- unused_logins: logins that some walcast made for this database, or for one that is gone.
-- in:     $1 int  seconds since they were made, at least
-- out:    rows of name text · connected bool
-- caller: db/logins.rs at start and at uninstall
-- needs:  any login; comments on roles and who is connected are readable by everybody
with made as (
    select
        r.oid,
        r.rolname,
        pg_catalog.substring(d.description, '^walcast login for (.*), made \d+$') as database,
        pg_catalog.substring(d.description, ', made (\d+)$')::bigint as made_at
    from pg_catalog.pg_roles as r
    join pg_catalog.pg_shdescription as d
        on d.objoid = r.oid and d.classoid = 'pg_catalog.pg_authid'::regclass
    where r.rolname ~ '^walcast_(repl|check)_[0-9a-f]{12}$'
        and d.description ~ '^walcast login for .*, made \d{1,18}$'
)
select
    m.rolname::text,
    exists (
        -- One live login of a pair keeps both.
        select
        from pg_catalog.pg_stat_activity as a
        join pg_catalog.pg_roles as s on s.oid = a.usesysid
        where s.rolname ~ '^walcast_(repl|check)_'
            and pg_catalog.right(s.rolname, 12) = pg_catalog.right(m.rolname, 12)
    ) as connected
from made as m
where (
        m.database = pg_catalog.current_database()
        or not exists (select from pg_catalog.pg_database as d where d.datname = m.database)
    )
    and m.made_at <= extract(epoch from pg_catalog.now())::bigint - $1::int
order by m.rolname;
