-- server: what the whole server must offer.
-- in:     nothing
-- out:    one row, see the names
-- caller: doctor.rs
-- needs:  any login; so no to_regclass(), which fails where it may not use the schema
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
    exists (
        select
        from pg_catalog.pg_class as c
        join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
        where n.nspname = 'walcast' and c.relname = 'objects'
    ) as installed,
    exists (select from pg_catalog.pg_event_trigger as e where e.evtname = 'walcast_ddl') as announces,
    exists (
        select
        from pg_catalog.pg_proc as p
        join pg_catalog.pg_namespace as n on n.oid = p.pronamespace
        where n.nspname = 'auth' and p.proname = 'uid' and p.pronargs = 0
    ) as has_uid,
    exists (
        select
        from pg_catalog.pg_class as c
        join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
        where n.nspname = 'realtime' and c.relname = 'messages'
    ) as has_messages,
    (
        select pg_catalog.pg_get_userbyid(c.relowner)::text
        from pg_catalog.pg_class as c
        join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
        where n.nspname = 'realtime'
            and c.relname = 'messages'
            and c.relkind = 'p'
            and not pg_catalog.pg_has_role(c.relowner, 'usage')
    ) as messages_owner
from pg_catalog.pg_roles as r
where r.rolname = current_user;
