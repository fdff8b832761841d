-- rls_untold: whether some of these relations hold rows of which the log does not tell all.
-- in:     $1 oid[]   relations that a policy was seen to read, their indexes too
--         $2 text[]  the publications that the log is read through
-- out:    one row
--         untold boolean
-- caller: auth/rls/checker.rs, after a question about the past
-- needs:  PostgreSQL 14+, any role
select exists (
    select
    from pg_catalog.unnest($1) as read (oid)
    left join pg_catalog.pg_class as c on c.oid = read.oid
    where c.oid is null
        or c.relkind not in ('r', 'p', 'v', 'i', 'I', 't')
        or c.relkind in ('r', 'p')
        and (
            c.relpersistence <> 'p'
            or not exists (
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
                                    r.prrelid = c.oid
                                    or r.prrelid in (
                                        select a.relid
                                        from pg_catalog.pg_partition_ancestors(c.oid) as a
                                    )
                                )
                        )
                    )
            )
        )
) as untold;
