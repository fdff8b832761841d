-- prepared: whether a function left prepared statements of its own, which could pass for ours.
-- out:    one row
-- caller: rest/pool.rs, behind calls
-- needs:  PostgreSQL 13+, any role
select exists (select from pg_catalog.pg_prepared_statements as p where p.from_sql);
