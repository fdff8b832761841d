-- walcast.explain_mapping: what changes of a table mean, in words.
-- out:    a line for each thing to know
-- needs:  the table's owner, or the database's
create or replace function walcast.explain_mapping(relation regclass)
returns setof text
language plpgsql
stable
set search_path = ''
as $function$
declare
    declared jsonb := walcast.mapping_of(explain_mapping.relation);
    rule jsonb;
    topics jsonb;
    occasions text[];
    shown text;
begin
    if declared is null then
        return next pg_catalog.format('%s: no events are declared.', relation);
        return;
    end if;
    return next pg_catalog.format(
        '%s: %s event(s), told in this order.', relation, pg_catalog.jsonb_array_length(declared -> 'rules')
    );
    return next pg_catalog.format(
        'Payloads may show %s; names are written %s.',
        case when pg_catalog.jsonb_typeof(declared -> 'columns') = 'array'
            then (select pg_catalog.string_agg(c.name, ', ') from pg_catalog.jsonb_array_elements_text(declared -> 'columns') as c (name))
            else 'every published column' end,
        case declared ->> 'key_case'
            when 'camel' then 'in camelCase' when 'snake' then 'in snake_case' else 'as they are' end
    );
    return next 'Everybody in a room sees what its events show, whatever the policies and column privileges of the table are: '
        'who may be in the room decides.';
    if declared -> 'ignore' <> '[]' then
        return next pg_catalog.format(
            'An update that changes nothing but %s says nothing.',
            (select pg_catalog.string_agg(c.name, ', ') from pg_catalog.jsonb_array_elements_text(declared -> 'ignore') as c (name))
        );
    end if;
    for rule in select r.value from pg_catalog.jsonb_array_elements(declared -> 'rules') as r (value) loop
        topics := case when pg_catalog.jsonb_typeof(rule -> 'topics') = 'array'
            then rule -> 'topics' else declared -> 'topics' end;
        occasions := array[]::text[];
        if rule -> 'on' ? 'insert' then
            occasions := occasions || 'a row is inserted or comes into the topic'::text;
        end if;
        if rule -> 'on' ? 'update' then
            occasions := occasions || case
                when pg_catalog.jsonb_typeof(rule -> 'update_of') = 'array' then pg_catalog.format(
                    '%s of %s changes',
                    case when (rule ->> 'alone')::boolean then 'nothing but one' else 'one' end,
                    (select pg_catalog.string_agg(c.name, ', ') from pg_catalog.jsonb_array_elements_text(rule -> 'update_of') as c (name))
                )
                else 'a row changes in what no event before this one told' end;
        end if;
        if rule -> 'on' ? 'delete' then
            occasions := occasions || 'a row is deleted or leaves the topic'::text;
        end if;
        select pg_catalog.string_agg(
            case when m.key = '...' then 'the members of ' || (m.value #>> '{}') else m.key || ' = ' || (m.value #>> '{}') end,
            ', '
        )
        into shown
        from pg_catalog.jsonb_each(rule -> 'payload') as m (key, value);
        return next pg_catalog.format('%s: when %s.', rule ->> 'event', pg_catalog.array_to_string(occasions, ', or '));
        if coalesce(rule -> 'when_new', '{}') <> '{}' then
            return next pg_catalog.format('  only if the new row has %s', rule -> 'when_new');
        end if;
        if coalesce(rule -> 'when_old', '{}') <> '{}' then
            return next pg_catalog.format('  only if the old row had %s', rule -> 'when_old');
        end if;
        return next pg_catalog.format(
            '  to %s rooms %s%s',
            case when coalesce(rule ->> 'public', declared ->> 'public')::boolean
                then 'PUBLIC (anybody may join)' else 'private' end,
            (select pg_catalog.string_agg(t.name, ', ') from pg_catalog.jsonb_array_elements_text(topics) as t (name)),
            case when (rule ->> 'exclude_origin')::boolean
                then ', but not to the connection that made the change' else '' end
        );
        return next pg_catalog.format('  saying %s', coalesce(shown, 'nothing more'));
        if pg_catalog.jsonb_typeof(rule -> 'columns') = 'array' then
            return next pg_catalog.format(
                '  where $row is %s',
                (select pg_catalog.string_agg(c.name, ', ') from pg_catalog.jsonb_array_elements_text(rule -> 'columns') as c (name))
            );
        end if;
        if coalesce(rule -> 'lookup', '{}') <> '{}' then
            return next pg_catalog.format(
                '  with what is found in %s',
                (
                    select pg_catalog.string_agg(
                        pg_catalog.format('%s (as %s)', (l.value ->> 'relation')::oid::regclass, l.key), ', '
                    )
                    from pg_catalog.jsonb_each(rule -> 'lookup') as l (key, value)
                )
            );
        end if;
        if rule ->> 'aggregate' is not null then
            return next pg_catalog.format(
                '  once for all rows of a transaction (up to 1000), in the list %s', rule ->> 'aggregate'
            );
        end if;
    end loop;
end
$function$;
