-- rls_untold: whether some of these relations hold rows of which the log does not tell all.
-- in:     $1 oid[]   relations that a policy was seen to read, their indexes too
--         $2 text[]  the publications that the log is read through
-- out:    one row
--         untold boolean
-- parts:  "logged" is rls_logged.sql
-- caller: auth/rls/checker/, after a question about the past
-- needs:  PostgreSQL 14+, any role
select exists (
    select
    from pg_catalog.unnest($1) as read (oid)
    left join pg_catalog.pg_class as other on other.oid = read.oid
    where other.oid is null
        or other.relkind not in ('r', 'p', 'v', 'i', 'I', 't')
        or other.relkind in ('r', 'p')
        and not :logged
) as untold;
