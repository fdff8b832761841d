-- orphan_slots: slots that look like an earlier one of ours, and that nobody reads.
-- in:     $1 text  our slot's name
-- out:    at most 100 rows: name text · retained_bytes bigint (null: unknown or lost); the worst
--         first
-- caller: upkeep.rs, now and then, as the check login
-- needs:  a primary
select
    s.slot_name::text as name,
    pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.restart_lsn)::bigint
        as retained_bytes
from pg_catalog.pg_replication_slots as s
where s.slot_name <> $1::text
    and (s.slot_name ~ '^walcast' or pg_catalog.starts_with(s.slot_name::text, $1::text || '_'))
    and s.plugin = 'pgoutput'
    and not s.active
order by 2 desc nulls last, 1
limit 100;
