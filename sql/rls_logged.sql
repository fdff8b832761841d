-- rls_logged: whether the log tells of every change of one table's rows: it is in one of our
--             publications, with all that happens to all of its rows.
-- in:     other, a row of pg_class · $2 text[]  the publications that the log is read through
-- out:    an expression, boolean
-- caller: a part of rls_table.sql and rls_untold.sql
(
    other.relpersistence = 'p'
    and exists (
        select
        from pg_catalog.pg_publication as b
        where b.pubname = any ($2)
            and b.pubinsert
            and b.pubupdate
            and b.pubdelete
            and b.pubtruncate
            and (
                b.puballtables
                or exists (
                    select
                    from pg_catalog.pg_publication_rel as r
                    where r.prpubid = b.oid
                        -- A row filter, from version 15 on.
                        and pg_catalog.to_jsonb(r) ->> 'prqual' is null
                        and (
                            r.prrelid = other.oid
                            or r.prrelid in (
                                select a.relid
                                from pg_catalog.pg_partition_ancestors(other.oid) as a
                            )
                        )
                )
            )
    )
)
