-- publications: those of the configured publications that exist.
-- in:     $1 text[]
-- out:    rows: name text · all_tables bool · partial bool (leaves out inserts, updates or deletes)
--         · tables bigint
-- caller: doctor.rs
select
    p.pubname::text as name,
    p.puballtables as all_tables,
    not (p.pubinsert and p.pubupdate and p.pubdelete) as partial,
    (
        select pg_catalog.count(*)
        from pg_catalog.pg_publication_tables as t
        where t.pubname = p.pubname
    ) as tables
from pg_catalog.pg_publication as p
where p.pubname = any($1::text[]);
