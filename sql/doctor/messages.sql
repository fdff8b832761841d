-- messages: what the publication of messages has.
-- in:     $1 text  publication
-- out:    one row when it exists: has_messages bool (inserts into realtime.messages)
--         · others text[]  other tables
-- caller: doctor.rs
with tables as (
    select
        t.schemaname || '.' || t.tablename as name,
        t.schemaname = 'realtime'
            and (t.tablename = 'messages' or exists (
                select
                from pg_catalog.pg_class as c
                join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
                join pg_catalog.pg_inherits as i on i.inhrelid = c.oid
                join pg_catalog.pg_class as m on m.oid = i.inhparent
                where n.nspname = t.schemaname
                    and c.relname = t.tablename
                    and m.relnamespace = n.oid
                    and m.relname = 'messages'
            )) as of_messages
    from pg_catalog.pg_publication_tables as t
    where t.pubname = $1::text
)
select
    p.pubinsert and (
        exists (select from tables where of_messages)
        -- Without partitions it is not listed there.
        or exists (
            select
            from pg_catalog.pg_publication_rel as r
            join pg_catalog.pg_class as c on c.oid = r.prrelid
            join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
            where r.prpubid = p.oid and n.nspname = 'realtime' and c.relname = 'messages'
        )
    ) as has_messages,
    array(select name::text from tables where not of_messages order by 1 limit 10) as others
from pg_catalog.pg_publication as p
where p.pubname = $1::text;
