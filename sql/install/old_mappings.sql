-- old_mappings: forgets versions of declarations that no reader of the log can begin with any more.
-- in:     $1 float8  seconds that a version stays after it was replaced: a standby's slots may be behind ours
-- out:    deletes rows of walcast.mappings: those with a newer one of the same table from before every slot, and
--         those of tables that are gone
-- caller: db/install.rs, forget_mappings
delete from walcast.mappings as m
where exists (
        select
        from walcast.mappings as newer
        where newer.relation = m.relation
            and newer.id > m.id
            and newer.made_at < pg_catalog.now() - $1::float8 * interval '1 second'
            and newer.declared_at < coalesce(
                (
                    select pg_catalog.min(least(s.restart_lsn, s.confirmed_flush_lsn))
                    from pg_catalog.pg_replication_slots as s
                    where s.slot_type = 'logical' and s.database = pg_catalog.current_database()
                ),
                pg_catalog.pg_current_wal_insert_lsn()
            )
    )
    or (
        m.made_at < pg_catalog.now() - $1::float8 * interval '1 second'
        and not exists (select from pg_catalog.pg_class as c where c.oid = m.relation)
    )
