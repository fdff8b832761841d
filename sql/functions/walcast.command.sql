-- walcast.command: makes an event of clients call a function, or write a row, as the user.
-- in:     event · function (payload jsonb), which returns one value of any type · or table_name and operation, insert,
--         update or delete (by the primary key, under its columns' names in the payload) · namespace, null: every one
--         · columns that a client may set · ignores: columns that may be in a payload, and are not set; of others it is
--         refused · key_case: of payloads, camel, snake or as_is · version: a column that the
--         row must still have as the payload's version_member says, if that is there · reply_event: the result goes
--         to the caller as this event too · required: members of the payload that are there and not null · failed,
--         failed_message: code and text where something unforeseen happens · denied: the message of
--         PERMISSION_DENIED, null: the profile's
-- out:    whether anything changed
-- needs:  the owner of the database, or of walcast's tables
-- Never:  a right for anybody: policies and grants decide, as in any statement of the user's
create or replace function walcast.command(
    event text,
    function text default null,
    table_name text default null,
    operation text default null,
    namespace text default null,
    columns text[] default null,
    key_case text default 'camel',
    version text default null,
    version_member text default null,
    reply_event text default null,
    required text[] default '{}',
    failed text default 'COMMAND_FAILED',
    failed_message text default 'The command failed',
    denied text default null,
    ignores text[] default '{}'
)
returns boolean
language plpgsql
volatile
set search_path = ''
as $function$
declare
    written pg_catalog.pg_class;
    schema text;
    what text := pg_catalog.format('command %L', command.event);
    called text;
    made jsonb;
begin
    if command.event is null then
        raise exception 'walcast.command: name the event' using errcode = '22023';
    end if;
    perform walcast.check_event(command.event, 'the event of a command');
    perform walcast.check_event(command.reply_event, 'reply_event of ' || what);
    if (command.function is null) = (command.table_name is null) then
        raise exception 'walcast.command: % has either a function or a table', what using errcode = '22023';
    end if;
    if pg_catalog.octet_length(command.failed) not between 1 and 1000
        or pg_catalog.octet_length(command.failed_message) not between 1 and 1000
        or pg_catalog.octet_length(command.denied) not between 1 and 1000
        or pg_catalog.octet_length(command.version_member) not between 1 and 1000
    then
        raise exception 'walcast.command: failed, failed_message, denied and version_member of % have 1 to 1000 bytes', what
            using errcode = '22023';
    end if;
    if '' = any (command.required) or pg_catalog.cardinality(command.required) > 256 then
        raise exception 'walcast.command: % requires a member without a name, or too many', what using errcode = '22023';
    end if;
    if command.function is not null then
        if command.operation is not null or command.columns is not null or command.version is not null
            or command.version_member is not null or pg_catalog.cardinality(command.ignores) > 0
        then
            raise exception 'walcast.command: % calls a function: operation, columns, ignores and version are of tables', what
                using errcode = '22023';
        end if;
    else
        select c.* into written from pg_catalog.pg_class as c where c.oid = pg_catalog.to_regclass(command.table_name);
        if not found then
            raise exception 'walcast.command: there is no table %', pg_catalog.quote_literal(command.table_name)
                using errcode = '42P01', hint = 'Name it with its schema, and create it first.';
        end if;
        if written.relkind not in ('r', 'p') then
            raise exception 'walcast.command: % is no table', written.oid::pg_catalog.regclass
                using errcode = '42809', hint = 'Write a function.';
        end if;
        select n.nspname into schema from pg_catalog.pg_namespace as n where n.oid = written.relnamespace;
        if command.operation is null or command.operation not in ('insert', 'update', 'delete') then
            raise exception 'walcast.command: operation of % is none of insert, update, delete', what using errcode = '22023';
        end if;
        if command.key_case not in ('camel', 'snake', 'as_is') then
            raise exception 'walcast.command: key_case % of % is none of camel, snake, as_is',
                pg_catalog.quote_literal(command.key_case), what
                using errcode = '22023';
        end if;
        if command.operation <> 'delete' and coalesce(pg_catalog.cardinality(command.columns), 0) = 0 then
            raise exception 'walcast.command: % does not say which columns a client may set', what
                using errcode = '22023', hint = 'Say columns => ''{title,description}''.';
        end if;
        if command.operation = 'delete' and command.columns is not null then
            raise exception 'walcast.command: % deletes, and sets no columns', what using errcode = '22023';
        end if;
        perform walcast.check_mapping_columns(
            written.oid,
            pg_catalog.array_remove(
                pg_catalog.array_append(command.columns || coalesce(command.ignores, '{}'), command.version), null
            ),
            what
        );
        if exists (
            select from pg_catalog.pg_attribute as a
            where a.attrelid = written.oid and a.attname = any (command.columns)
                and (a.attgenerated <> '' or a.attidentity = 'a')
        ) then
            raise exception 'walcast.command: % sets a column that Postgres generates', what using errcode = '428C9';
        end if;
        if command.operation = 'insert' and command.version is not null then
            raise exception 'walcast.command: % inserts: no version was there before', what using errcode = '22023';
        end if;
        if command.version is null and command.version_member is not null then
            raise exception 'walcast.command: % has a version_member, and no version', what
                using errcode = '22023', hint = 'Say which column: version => ''updated_at''.';
        end if;
        if command.operation <> 'insert' and not exists (
            select from pg_catalog.pg_index as i where i.indrelid = written.oid and i.indisprimary
        ) then
            raise exception 'walcast.command: % has no primary key to find a row by', written.oid::pg_catalog.regclass
                using errcode = '42830', hint = 'Give it one, or write a function.';
        end if;
    end if;
    called := walcast.check_callable(command.function, 'jsonb', false, 'the function of ' || what);
    select pg_catalog.jsonb_object_agg(m.name, m.value)
    into made
    from (
        values
            ('function', pg_catalog.to_jsonb(called)),
            -- Whether it was then: one that writes all the same is called again.
            (
                'is_stable',
                (
                    select pg_catalog.to_jsonb(p.provolatile <> 'v')
                    from pg_catalog.pg_proc as p
                    where p.oid = pg_catalog.to_regprocedure(called)
                )
            ),
            ('table', case when schema is not null
                then pg_catalog.to_jsonb(pg_catalog.format('%I.%I', schema, written.relname)) end),
            (
                'key',
                (
                    select pg_catalog.jsonb_agg(a.attname order by k.n)
                    from pg_catalog.pg_index as i
                    cross join lateral pg_catalog.unnest(i.indkey::smallint[]) with ordinality as k (attnum, n)
                    join pg_catalog.pg_attribute as a on a.attrelid = i.indrelid and a.attnum = k.attnum
                    where i.indrelid = written.oid and i.indisprimary and k.n <= i.indnkeyatts
                        and command.operation <> 'insert'
                )
            ),
            (
                'others',
                (
                    select pg_catalog.jsonb_agg(a.attname order by a.attnum)
                    from pg_catalog.pg_attribute as a
                    where a.attrelid = written.oid and a.attnum > 0 and not a.attisdropped
                        and command.operation <> 'delete'
                        and a.attname <> all (command.columns || coalesce(command.ignores, '{}'))
                        and not (
                            command.operation = 'update'
                            and exists (
                                select from pg_catalog.pg_index as i
                                where i.indrelid = written.oid and i.indisprimary
                                    and a.attnum = any (i.indkey::smallint[])
                            )
                        )
                )
            ),
            ('operation', pg_catalog.to_jsonb(command.operation)),
            ('columns', pg_catalog.to_jsonb(command.columns)),
            ('key_case', case when schema is not null then pg_catalog.to_jsonb(command.key_case) end),
            ('version', pg_catalog.to_jsonb(command.version)),
            ('version_member', pg_catalog.to_jsonb(command.version_member)),
            ('reply_event', pg_catalog.to_jsonb(command.reply_event)),
            ('required', pg_catalog.to_jsonb(coalesce(command.required, '{}'))),
            ('failed', pg_catalog.to_jsonb(command.failed)),
            ('failed_message', pg_catalog.to_jsonb(command.failed_message)),
            ('denied', pg_catalog.to_jsonb(command.denied))
    ) as m (name, value)
    where m.value is not null;
    return walcast.declare(command.namespace, 'command', command.event, made);
end
$function$;
