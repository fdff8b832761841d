-- old_partitions: partitions of realtime.messages that we made and whose day is long over.
-- in:     $1 int  days to keep
-- out:    rows of name text, safe to put into SQL text
-- caller: db/install.rs, daily
select o.name
from walcast.objects as o
where o.kind = 'partition'
    and o.name ~ '^realtime\.messages_\d{4}_\d{2}_\d{2}$'
    and pg_catalog.to_date(pg_catalog.right(o.name, 10), 'YYYY_MM_DD')
        < pg_catalog.timezone('utc', pg_catalog.now())::date - $1::int
order by o.name;
