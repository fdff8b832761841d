-- slots: our slot, and slots that look like an earlier one of ours.
-- in:     $1 text  slot name
-- out:    rows: name text · ours bool · plugin text · here bool (this database) · active bool
--         · temporary bool · wal_status text · retained_bytes bigint (null: unknown or lost)
--         · catalog_age int, transactions · failover bool (null before version 17)
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
        as retained_bytes,
    pg_catalog.age(s.catalog_xmin) as catalog_age,
    (pg_catalog.to_jsonb(s) operator(pg_catalog.->>) 'failover')::bool as failover
from pg_catalog.pg_replication_slots as s
where s.slot_name = $1::text
    or (
        (s.slot_name ~ '^walcast' or pg_catalog.starts_with(s.slot_name::text, $1::text || '_'))
        and s.plugin = 'pgoutput'
        and not s.active
    )
order by 1;
