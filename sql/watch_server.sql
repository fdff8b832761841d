-- watch_server: what may go wrong on the server while we run.
-- in:     $1 text  slot name · $2 text[]  names of the logins we made · $3 text[]  publications
--         that must exist
-- out:    one row: logins bigint, how many of ours exist · missing bool, whether a publication is
--         · current_lsn bigint, end of the log · of the slot, null where there is none:
--         retained_bytes bigint (null if lost) · confirmed_lag_bytes bigint · safe_bytes bigint
--         (null without a limit) · catalog_age int, transactions
-- caller: upkeep.rs, every second, as the check login
-- needs:  a primary
select
    (
        select pg_catalog.count(*) from pg_catalog.pg_roles as r
        where r.rolname = any($2::text[])
    ) as logins,
    exists (
        select from pg_catalog.unnest($3::text[]) as w (name)
        where not exists (select from pg_catalog.pg_publication as p where p.pubname = w.name)
    ) as missing,
    pg_catalog.pg_wal_lsn_diff(c.lsn, '0/0')::bigint as current_lsn,
    pg_catalog.pg_wal_lsn_diff(c.lsn, s.restart_lsn)::bigint as retained_bytes,
    pg_catalog.pg_wal_lsn_diff(c.lsn, s.confirmed_flush_lsn)::bigint as confirmed_lag_bytes,
    s.safe_wal_size as safe_bytes,
    pg_catalog.age(s.catalog_xmin) as catalog_age
from (select pg_catalog.pg_current_wal_lsn() as lsn) as c
left join pg_catalog.pg_replication_slots as s on s.slot_name = $1::text;
