-- missing_partitions: statements for the day partitions of realtime.messages that are not there.
-- in:     nothing; days are by UTC, yesterday to three days ahead
-- out:    rows of name text · sql text · why text (null: we may make it); none when the table is
--         missing or not partitioned
-- caller: db/install.rs
-- why:    made apart and attached, which waits for nobody who writes messages; `partition of`
--         would keep them all waiting behind the oldest open transaction that wrote one
select
    'realtime.' || pg_catalog.quote_ident(p.name) as name,
    pg_catalog.format(
        'create table realtime.%1$I (like realtime.messages including all);'
        ' alter table realtime.%1$I enable row level security;'
        ' alter table realtime.%1$I owner to %4$I;'
        ' alter table realtime.messages attach partition realtime.%1$I'
        ' for values from (%2$L) to (%3$L);',
        p.name,
        p.day,
        p.day + interval '1 day',
        pg_catalog.pg_get_userbyid(c.relowner)
    ) as sql,
    case
        when not pg_catalog.pg_has_role(c.relowner, 'usage')
            then 'realtime.messages belongs to ' || pg_catalog.pg_get_userbyid(c.relowner)
    end as why
from pg_catalog.pg_class as c
join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
cross join lateral (
    select
        d as day,
        'messages_' || pg_catalog.to_char(d, 'YYYY_MM_DD') as name
    from pg_catalog.generate_series(
        pg_catalog.date_trunc('day', pg_catalog.timezone('utc', pg_catalog.now())) - interval '1 day',
        pg_catalog.timezone('utc', pg_catalog.now()) + interval '3 days',
        interval '1 day'
    ) as d
) as p
where n.nspname = 'realtime'
    and c.relname = 'messages'
    and c.relkind = 'p'
    and not exists (
        select
        from pg_catalog.pg_class as e
        where e.relnamespace = n.oid and e.relname = p.name
    )
order by p.day;
