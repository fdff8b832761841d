-- watch_server: what may go wrong on the server while we run.
-- in:     $1 text  slot name · $2 text[]  names of the logins we made
-- out:    one row: logins bigint, how many of ours exist · current_lsn bigint, end of the log
--         · retained_bytes bigint, log that the slot keeps (null: no such slot, or lost)
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
    ) as retained_bytes;
