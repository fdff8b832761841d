-- reset: puts a connection into the state of a new one, but for what it has prepared.
-- caller: rest/run.rs, behind every transaction, where it can in the message that commits
-- needs:  PostgreSQL 13+, the login that made the connection
--
-- What `discard all` does, without `deallocate all`, and in one message. The login comes first: a
-- function may have become somebody else for good. None of it is planned, so that it costs little.
set session authorization default;
reset role;
close all;
unlisten *;
discard temp;
discard sequences;
reset all;
select pg_catalog.pg_advisory_unlock_all();
