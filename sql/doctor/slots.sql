-- slots: our slot, and slots that look like an earlier one of ours.
-- in:     $1 text  slot name
-- out:    rows: name text · ours bool · plugin text · here bool (this database) · active bool
--         · temporary bool · wal_status text · retained_bytes bigint (null: unknown or lost)
-- caller: doctor.rs
-- needs:  a primary
select
    s.slot_name::text as name,
    s.slot_name = $1::text as ours,
    s.plugin::text as plugin,
    s.database is not distinct from pg_catalog.current_database() as here,
    s.active,
    s.temporary,
    s.wal_status,
    pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.restart_lsn)::bigint
        as retained_bytes
from pg_catalog.pg_replication_slots as s
where s.slot_name = $1::text
    or (s.slot_name ~ '^walcast' and s.plugin = 'pgoutput' and not s.active)
order by 1;
