-- What clients of Socket.IO find, as it is declared.
-- in:     $1 bigint  rows at most · $2 int  bytes of a declaration; a longer one is none
-- out:    namespace · kind · name · declaration, JSON; those of namespaces themselves first
select
    d.namespace,
    d.kind,
    d.name,
    case when pg_catalog.octet_length(d.declaration::text) <= $2 then d.declaration::text else 'too long' end
from walcast.declarations as d
order by d.kind <> 'profile', d.namespace, d.kind, d.name
limit $1
