-- lacks_partition: whether realtime.messages has no partition for today or for tomorrow.
-- in:     nothing
-- out:    one row: lacks_partition boolean; false where it has no partitions at all
-- caller: upkeep.rs, every few seconds, as the check login; doctor.rs
-- needs:  any login; so no to_regclass(), which fails where it may not use the schema
select
    exists (
        select
        from pg_catalog.pg_class as c
        join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
        cross join pg_catalog.generate_series(0, 1) as d
        where n.nspname = 'realtime'
            and c.relname = 'messages'
            and c.relkind = 'p'
            and not exists (
                select
                from pg_catalog.pg_class as p
                where p.relnamespace = n.oid
                    and p.relname = 'messages_' || pg_catalog.to_char(
                        pg_catalog.timezone('utc', pg_catalog.now()) + d * interval '1 day',
                        'YYYY_MM_DD'
                    )
            )
    ) as lacks_partition;
