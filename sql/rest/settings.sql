-- settings: makes the transaction the caller's.
-- in:     $1 text  search_path
--         $2 text  statement_timeout, in milliseconds
--         $3 text  time zone, or null to keep it
--         $4 text  request.method, $5 request.path, $6 request.headers, $7 request.cookies
--         $8 text  request.jwt.claims
--         $9 text  role
--         $10 text  who makes the transaction, for the log's readers; null to say nothing
--         $11 text[], $12 text[]  names and values of the role's own settings
-- out:    one row that says nothing
-- caller: rest/run.rs, first in every transaction of a role with settings of its own
-- needs:  PostgreSQL 13+, a login that may become the role
--
-- All end with the transaction. The role's own come after ours, as they would at its login. The
-- role comes last, so that what is set before it is set as a login that nobody else is.
select
    pg_catalog.set_config('search_path', $1, true),
    (
        select pg_catalog.count(pg_catalog.set_config(s.name, s.value, true))
        from rows from (pg_catalog.unnest($11::text[]), pg_catalog.unnest($12::text[]))
            as s (name, value)
    ),
    pg_catalog.set_config('statement_timeout', $2, true),
    pg_catalog.set_config('TimeZone', coalesce($3, pg_catalog.current_setting('TimeZone')), true),
    pg_catalog.set_config('request.method', $4, true),
    pg_catalog.set_config('request.path', $5, true),
    pg_catalog.set_config('request.headers', $6, true),
    pg_catalog.set_config('request.cookies', $7, true),
    pg_catalog.set_config('request.jwt.claims', $8, true),
    pg_catalog.pg_logical_emit_message(true, 'walcast.origin', $10),
    pg_catalog.set_config('role', $9, true);
