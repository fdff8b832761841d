-- server: what the whole server must offer.
-- in:     nothing
-- out:    one row, see the names
-- caller: doctor.rs
select
    pg_catalog.current_setting('server_version_num')::int as version,
    pg_catalog.current_setting('server_version') as version_text,
    pg_catalog.current_setting('wal_level') as wal_level,
    pg_catalog.current_setting('max_replication_slots')::int
        - (select pg_catalog.count(*)::int from pg_catalog.pg_replication_slots) as free_slots,
    pg_catalog.current_setting('max_wal_senders')::int
        - (select pg_catalog.count(*)::int from pg_catalog.pg_stat_replication) as free_senders,
    pg_catalog.current_setting('max_slot_wal_keep_size') as slot_budget,
    pg_catalog.pg_is_in_recovery() as standby,
    pg_catalog.current_setting('server_encoding') as encoding,
    r.rolsuper as superuser,
    pg_catalog.to_regclass('walcast.objects') is not null as installed,
    exists (select from pg_catalog.pg_event_trigger as e where e.evtname = 'walcast_ddl') as announces,
    pg_catalog.to_regprocedure('auth.uid()') is not null as has_uid,
    pg_catalog.to_regclass('realtime.messages') is not null as has_messages,
    (
        select pg_catalog.count(*)::int
        from pg_catalog.generate_series(0, 1) as d
        where pg_catalog.to_regclass(
            'realtime.messages_' || pg_catalog.to_char(
                pg_catalog.timezone('utc', pg_catalog.now()) + d * interval '1 day',
                'YYYY_MM_DD'
            )
        ) is null
            and exists (
                select from pg_catalog.pg_class as c
                where c.oid = pg_catalog.to_regclass('realtime.messages') and c.relkind = 'p'
            )
    ) as missing_partitions
from pg_catalog.pg_roles as r
where r.rolname = current_user;
