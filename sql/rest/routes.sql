-- routes: paths of an application's own.
-- in:     $1 bigint  rows at most
--         $2 bigint  bytes of one row at most
-- out:    a row a route, in the order of their paths
--         method text · path text · target text, null when the row is too long
--         profile text · prefer text · accept text · body text: JSON
-- caller: rest/schema/load.rs, where it may fail: somebody may hold a lock, or have made another table
-- needs:  walcast.routes, and the right to read it
select
    pg_catalog.left(r.method::text, 10) as method,
    pg_catalog.left(r.path::text, 1000) as path,
    case when fits.it then r.target::text end as target,
    case when fits.it then r.profile::text end as profile,
    case when fits.it then r.prefer::text end as prefer,
    case when fits.it then r.accept::text end as accept,
    case when fits.it then r.body::text end as body
from walcast.routes as r
cross join lateral (
    select
        pg_catalog.octet_length(
            pg_catalog.concat(r.method, r.path, r.target, r.profile, r.prefer, r.accept, r.body)
        ) <= $2 as it
) as fits
order by r.path::text collate "C", r.method::text collate "C"
limit $1;
