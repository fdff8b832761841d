-- settings_plain: makes the transaction the caller's, whose role has no settings of its own.
-- in:     $1 to $10 as in settings.sql
-- out:    one row that says nothing
-- caller: rest/run.rs, first in every other transaction
-- needs:  PostgreSQL 13+, a login that may become the role
--
-- An aggregate over nothing would cost as much as many settings. The role comes last, so that what
-- is set before it is set as a login that nobody else is.
select
    pg_catalog.set_config('search_path', $1, true),
    pg_catalog.set_config('statement_timeout', $2, true),
    pg_catalog.set_config('TimeZone', coalesce($3, pg_catalog.current_setting('TimeZone')), true),
    pg_catalog.set_config('request.method', $4, true),
    pg_catalog.set_config('request.path', $5, true),
    pg_catalog.set_config('request.headers', $6, true),
    pg_catalog.set_config('request.cookies', $7, true),
    pg_catalog.set_config('request.jwt.claims', $8, true),
    pg_catalog.pg_logical_emit_message(true, 'walcast.origin', $10),
    pg_catalog.set_config('role', $9, true);
