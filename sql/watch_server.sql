-- watch_server: what may go wrong on the server while we run.
-- in:     $1 text  slot name · $2 text[]  names of the logins we made
-- out:    one row: logins bigint, how many of ours exist · current_lsn bigint, end of the log
--         · retained_bytes bigint, log that the slot keeps (null: no such slot, or lost)
--         · lacks_partition boolean: realtime.messages has none for today or for tomorrow
-- caller: upkeep.rs, every few seconds, as the check login
-- needs:  a primary
select
    (
        select pg_catalog.count(*) from pg_catalog.pg_roles as r
        where r.rolname = any($2::text[])
    ) as logins,
    pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), '0/0')::bigint as current_lsn,
    (
        select pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.restart_lsn)::bigint
        from pg_catalog.pg_replication_slots as s
        where s.slot_name = $1::text
    ) as retained_bytes,
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
