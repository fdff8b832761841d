-- reset: puts a connection into the state of a new one, but for what it has prepared.
-- caller: rest/pool.rs, behind every transaction, as one message or statement by statement
-- needs:  PostgreSQL 13+, the login that made the connection
--
-- What `discard all` does, without `deallocate all`. The login comes first: a function may have become
-- somebody else for good; then settings, one of which may leave the rest a millisecond. None of it is
-- planned, so that it costs little.
set session authorization default;
reset role;
reset all;
close all;
unlisten *;
discard temp;
discard sequences;
select pg_catalog.pg_advisory_unlock_all();
