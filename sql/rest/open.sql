-- open: what is asked of a new connection.
-- out:    one row: statement_timeout text, in milliseconds; 0 when there is none
-- caller: rest/pool.rs
-- needs:  PostgreSQL 13+, any role
select s.setting
from pg_catalog.pg_settings as s
where s.name = 'statement_timeout';
