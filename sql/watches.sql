-- Tables whose rows decide who may be in rooms, with their partitions.
-- out: the topics' template · OID · columns with the template's values, in their order; empty: every topic
select g.topic, p.oid, w.columns
from walcast.guards as g
cross join lateral pg_catalog.jsonb_to_recordset(g.watches) as w(relation oid, columns text[])
join pg_catalog.pg_class as c on c.oid = w.relation
cross join lateral (
    select c.oid
    union
    select t.relid from pg_catalog.pg_partition_tree(c.oid) as t
) as p
order by 1, 2
