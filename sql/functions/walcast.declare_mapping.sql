-- walcast.declare_mapping: puts a declaration into force, if it is one and is not in force already.
-- in:     relation, the table · declaration, as src/mapping/declaration.rs reads it; null: no events from here on
-- out:    whether anything changed
-- caller: walcast.map_table and its like
-- needs:  the table's owner, or the database's: an event is told to everybody in its room, whatever the
--         table's policies and column privileges are
create or replace function walcast.declare_mapping(relation regclass, declaration jsonb)
returns boolean
language plpgsql
volatile
set search_path = ''
as $function$
declare
    sources constant text[] :=
        array['$row', '$changes', '$key', '$actor', '$mutation', '$time', '$operation', '$table'];
    reserved constant text[] :=
        array['connect', 'connect_error', 'disconnect', 'disconnecting', 'newListener', 'removeListener'];
    mapped pg_catalog.pg_class;
    other pg_catalog.pg_class;
    rule jsonb;
    what text;
    topics jsonb;
    topic text;
    list jsonb;
    look_up record;
    source text;
    spread boolean;
begin
    select c.* into mapped from pg_catalog.pg_class as c where c.oid = declare_mapping.relation;
    if mapped.relkind not in ('r', 'p') or mapped.relpersistence <> 'p' then
        raise exception 'walcast: % is no table that the log carries', relation using errcode = '42809';
    end if;
    if not pg_catalog.pg_has_role(mapped.relowner, 'usage')
        and not exists (
            select
            from pg_catalog.pg_database as d
            where d.datname = pg_catalog.current_database() and pg_catalog.pg_has_role(d.datdba, 'usage')
        )
    then
        raise exception 'walcast: only the owner of % may say what its changes mean', relation
            using errcode = '42501';
    end if;
    if declaration is not null then
        if mapped.relkind = 'p'
            and not exists (
                select
                from pg_catalog.pg_publication_rel as r
                join pg_catalog.pg_publication as p on p.oid = r.prpubid
                where r.prrelid = declare_mapping.relation and p.pubviaroot
            )
            and not exists (
                select from pg_catalog.pg_publication as p where p.puballtables and p.pubviaroot
            )
        then
            raise exception 'walcast: % is partitioned, and its changes come under the names of its partitions', relation
                using
                    errcode = '42809',
                    hint = 'Set publish_via_partition_root = true on its publication, or map the partitions.';
        end if;
        if not exists (
            select
            from pg_catalog.pg_publication_tables as t
            join pg_catalog.pg_namespace as n on n.nspname = t.schemaname and n.oid = mapped.relnamespace
            where t.tablename = mapped.relname
        ) then
            raise warning 'walcast: % is in no publication: nothing comes of its changes until it is added to one', relation;
        end if;
        if coalesce(declaration ->> 'key_case', 'camel') not in ('camel', 'snake', 'as_is') then
            raise exception 'walcast: key_case % is none of camel, snake, as_is',
                pg_catalog.quote_literal(declaration ->> 'key_case')
                using errcode = '22023';
        end if;
        perform walcast.check_mapping_columns(
            relation,
            array(
                select c.name
                from pg_catalog.jsonb_array_elements_text(
                    case when pg_catalog.jsonb_typeof(declaration -> 'columns') = 'array'
                        then declaration -> 'columns' else '[]' end
                    || coalesce(declaration -> 'ignore', '[]')
                ) as c (name)
            ),
            'the mapping'
        );
        for topic in select t.name from pg_catalog.jsonb_array_elements_text(declaration -> 'topics') as t (name) loop
            perform walcast.check_mapping_topic(relation, topic, 'the mapping');
        end loop;
        if pg_catalog.jsonb_array_length(declaration -> 'rules') > 64 then
            raise exception 'walcast: % has more than 64 events', relation using errcode = '54000';
        end if;
    end if;
    for rule in select r.value from pg_catalog.jsonb_array_elements(declaration -> 'rules') as r (value) loop
        what := 'event ' || coalesce(pg_catalog.quote_literal(rule ->> 'event'), 'without a name');
        if coalesce(pg_catalog.octet_length(rule ->> 'event'), 0) not between 1 and 255
            or rule ->> 'event' ~ '[[:cntrl:]]'
        then
            raise exception 'walcast: the name of % does not have 1 to 255 bytes', what using errcode = '22023';
        end if;
        if rule ->> 'event' = any (reserved) then
            raise exception 'walcast: % has a name that clients keep for themselves', what using errcode = '22023';
        end if;
        if pg_catalog.jsonb_array_length(rule -> 'on') = 0 then
            raise exception 'walcast: % is about no operation', what
                using errcode = '22023', hint = 'Say on_insert, on_update, on_update_of or on_delete.';
        end if;
        topics := case when pg_catalog.jsonb_typeof(rule -> 'topics') = 'array'
            then rule -> 'topics' else declaration -> 'topics' end;
        if pg_catalog.jsonb_array_length(topics) not between 1 and 8 then
            raise exception 'walcast: % does not have 1 to 8 topics', what using errcode = '22023';
        end if;
        for topic in select t.name from pg_catalog.jsonb_array_elements_text(topics) as t (name) loop
            perform walcast.check_mapping_topic(relation, topic, what);
        end loop;
        if (rule -> 'on' ? 'update' or rule -> 'on' ? 'delete') and mapped.relreplident <> 'f' then
            raise exception 'walcast: % needs the old row, which the log does not carry', what
                using
                    errcode = '55000',
                    hint = pg_catalog.format('alter table %s replica identity full', relation);
        end if;
        perform walcast.check_mapping_columns(
            relation,
            array(
                select c.name
                from pg_catalog.jsonb_array_elements_text(
                    case when pg_catalog.jsonb_typeof(rule -> 'columns') = 'array'
                        then rule -> 'columns' else '[]' end
                    || case when pg_catalog.jsonb_typeof(rule -> 'update_of') = 'array'
                        then rule -> 'update_of' else '[]' end
                ) as c (name)
                union all
                select c.name from pg_catalog.jsonb_object_keys(rule -> 'when_new') as c (name)
                union all
                select c.name from pg_catalog.jsonb_object_keys(rule -> 'when_old') as c (name)
            ),
            what
        );
        for look_up in
            select l.key as name, l.value as declared from pg_catalog.jsonb_each(rule -> 'lookup') as l (key, value)
        loop
            select c.*
            into other
            from pg_catalog.pg_class as c
            where c.oid = (look_up.declared ->> 'relation')::oid and c.relkind in ('r', 'p');
            if not found then
                raise exception 'walcast: look-up % of % names no table', pg_catalog.quote_literal(look_up.name), what
                    using errcode = '42P01';
            end if;
            if not pg_catalog.pg_has_role(mapped.relowner, other.relowner, 'usage') then
                raise exception 'walcast: look-up % of % reads %, which the owner of % does not own',
                    pg_catalog.quote_literal(look_up.name), what, other.oid::regclass, relation
                    using errcode = '42501';
            end if;
            perform walcast.check_mapping_columns(
                other.oid,
                array(select k.name from pg_catalog.jsonb_object_keys(look_up.declared -> 'on') as k (name)),
                'look-up ' || pg_catalog.quote_literal(look_up.name) || ' of ' || what
            );
            perform walcast.check_mapping_columns(
                relation,
                array(select k.value from pg_catalog.jsonb_each_text(look_up.declared -> 'on') as k (key, value)),
                'look-up ' || pg_catalog.quote_literal(look_up.name) || ' of ' || what
            );
            if not exists (
                select
                from pg_catalog.pg_index as i
                where i.indrelid = other.oid
                    and i.indisunique
                    and i.indisvalid
                    and i.indpred is null
                    and i.indexprs is null
                    and (
                        select pg_catalog.array_agg(a.attname::text order by a.attname::text)
                        from pg_catalog.pg_attribute as a
                        where a.attrelid = other.oid
                            and a.attnum = any ((i.indkey::smallint[])[0:i.indnkeyatts - 1])
                    ) = (
                        select pg_catalog.array_agg(k.name order by k.name)
                        from pg_catalog.jsonb_object_keys(look_up.declared -> 'on') as k (name)
                    )
            ) then
                raise exception 'walcast: look-up % of % has no unique index on % to find one row by',
                    pg_catalog.quote_literal(look_up.name), what, other.oid::regclass
                    using errcode = '42830';
            end if;
        end loop;
        for spread, source in
            select m.key = '...', case pg_catalog.jsonb_typeof(s.value) when 'string' then s.value #>> '{}' end
            from pg_catalog.jsonb_each(rule -> 'payload') as m (key, value)
            cross join pg_catalog.jsonb_array_elements(
                case when pg_catalog.jsonb_typeof(m.value) = 'array'
                    then m.value else pg_catalog.jsonb_build_array(m.value) end
            ) as s (value)
            where pg_catalog.jsonb_typeof(s.value) <> 'object' or not s.value ? 'value' or m.key = '...'
        loop
            if source is null then
                raise exception 'walcast: the payload of % has a source that is neither text nor {"value": …}', what
                    using errcode = '22023';
            end if;
            if source like '$%' then
                if not source = any (sources) then
                    raise exception 'walcast: the payload of % names %, which is no source', what, source
                        using errcode = '22023';
                end if;
                if spread and source not in ('$row', '$changes', '$key') then
                    raise exception 'walcast: "..." in the payload of % takes $row, $changes, $key and columns', what
                        using errcode = '22023';
                end if;
            elsif rule -> 'lookup' ? pg_catalog.split_part(source, '.', 1) and source like '%.%' then
                perform walcast.check_mapping_columns(
                    (rule -> 'lookup' -> pg_catalog.split_part(source, '.', 1) ->> 'relation')::oid,
                    array[pg_catalog.substr(source, pg_catalog.strpos(source, '.') + 1)],
                    'the payload of ' || what
                );
            else
                perform walcast.check_mapping_columns(
                    relation,
                    array[pg_catalog.regexp_replace(source, '^(old|new)\.', '')],
                    'the payload of ' || what
                );
            end if;
        end loop;
    end loop;
    perform walcast.check_mapping_collisions(relation, declaration);
    -- One after the other: each is made from the one before.
    perform pg_catalog.pg_advisory_xact_lock(
        pg_catalog.hashtextextended('walcast.mappings', declare_mapping.relation::oid::bigint)
    );
    if walcast.mapping_of(relation) is not distinct from declaration then
        return false;
    end if;
    insert into walcast.mappings (relation, declaration)
    values (declare_mapping.relation, declare_mapping.declaration);
    return true;
end
$function$;
