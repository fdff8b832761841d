-- routes_fingerprint: one number that is another one after a route was declared, changed or taken back.
-- out:    one row
--         fingerprint bigint
-- caller: rest/schema/load.rs, where it may fail, beside fingerprint.sql
-- needs:  walcast.routes, and the right to read it
select
    coalesce(pg_catalog.bit_xor(pg_catalog.hash_record_extended(
        (r.method, r.path, r.xmin), 11
    )), 0) as fingerprint
from walcast.routes as r;
