-- pgoutput-15-*.hex: one message a line, as PostgreSQL 15.18 sends them. Made in an empty database with
-- wal_level = logical, by this script and
--   select encode(data, 'hex') from pg_logical_slot_peek_binary_changes('s', null, null,
--       'proto_version', '1', 'publication_names', 'p', 'messages', 'true');  -- -text
--   … the same with 'binary', 'true';                                         -- -binary
create type mood as enum ('fine');
create table t (id int primary key, note text, m mood);
create table f (id int, note text);
alter table f replica identity full;
alter table f alter column note set storage external;
create publication p for table t, f;
select 1 from pg_create_logical_replication_slot('s', 'pgoutput');
begin;
insert into t values (7, null, 'fine');
update t set note = 'x';
update t set id = 8;
delete from t;
insert into f values (1, repeat('y', 2100));
update f set id = 2;
delete from f where false;
truncate t, f restart identity cascade;
select 1 from pg_logical_emit_message(true, 'walcast.event', 'hello');
commit;
