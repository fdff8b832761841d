-- roles: those of the configured roles that exist.
-- in:     $1 text[]
-- out:    rows: name text · above bool (superuser, may replicate or create roles) · bypass_rls
-- caller: doctor.rs
select
    r.rolname::text as name,
    r.rolsuper or r.rolreplication or r.rolcreaterole as above,
    r.rolbypassrls as bypass_rls
from pg_catalog.pg_roles as r
where r.rolname = any($1::text[]);
