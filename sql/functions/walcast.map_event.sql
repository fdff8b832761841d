-- walcast.map_event: one event of a table's own, beside or instead of those of walcast.map_table, and told before them.
-- in:     relation, the table · event, its name · on_insert, on_update, on_update_of (only when one of these columns
--         changed, which the events after it then leave out), on_delete · alone: only when nothing else changed ·
--         when_new, when_old: values, or lists of values, that the new and the old row must have · topic or topics,
--         those of walcast.map_table without · columns of its payload, or payload: members with their sources, see
--         docs/events.md · lookup: {"author": {"from": "profiles", "on": {"id": "author_id"}}} · aggregate: the rows
--         of one transaction as one event, in a list of this name · exclude_origin: not told to the connection
--         that made the change · public: in public rooms · name: of this rule, when an event has several
-- out:    whether anything changed
-- needs:  the table's owner; replica identity full, unless only inserts are told
create or replace function walcast.map_event(
    relation regclass,
    event text,
    on_insert boolean default false,
    on_update boolean default false,
    on_update_of text[] default null,
    on_delete boolean default false,
    alone boolean default false,
    when_new jsonb default '{}',
    when_old jsonb default '{}',
    topic text default null,
    topics text[] default null,
    columns text[] default null,
    payload jsonb default null,
    lookup jsonb default '{}',
    aggregate text default null,
    exclude_origin boolean default false,
    public boolean default null,
    name text default null
)
returns boolean
language plpgsql
volatile
set search_path = ''
as $function$
declare
    places text[] := map_event.topics;
    known jsonb := walcast.mapping_of(map_event.relation);
    title text := coalesce(map_event.name, map_event.event);
    said jsonb := map_event.payload;
    looked jsonb;
    rule jsonb;
    rules jsonb;
begin
    if topic is not null then
        places := pg_catalog.array_prepend(map_event.topic, coalesce(places, '{}'));
    end if;
    if coalesce(pg_catalog.jsonb_typeof(said), 'object') <> 'object'
        or coalesce(pg_catalog.jsonb_typeof(when_new), 'object') <> 'object'
        or coalesce(pg_catalog.jsonb_typeof(when_old), 'object') <> 'object'
        or coalesce(pg_catalog.jsonb_typeof(lookup), 'object') <> 'object'
    then
        raise exception 'walcast.map_event: payload, when_new, when_old and lookup of % are objects',
            pg_catalog.quote_nullable(event)
            using errcode = '22023';
    end if;
    if aggregate is not null and lookup is not null and lookup <> '{}' then
        raise exception 'walcast.map_event: what % gathers cannot be looked up', pg_catalog.quote_nullable(event)
            using errcode = '22023';
    end if;
    if alone and on_update_of is null then
        raise exception 'walcast.map_event: % is alone without on_update_of', pg_catalog.quote_nullable(event)
            using errcode = '22023';
    end if;
    if said is null then
        said := case
            when columns is null and on_delete and not (on_insert or on_update or on_update_of is not null)
                then '{"...": "$key", "deletedBy": "$actor", "deletedAt": "$time"}'::jsonb
            when columns is null and (on_update or on_update_of is not null) and not (on_insert or on_delete)
                then pg_catalog.jsonb_build_object(
                    '...', '["$key", "$changes"]'::jsonb || coalesce(known -> 'settings' -> 'carry', '[]')
                )
            else '{"...": "$row"}'::jsonb
        end;
    end if;
    select
        coalesce(
            pg_catalog.jsonb_object_agg(
                l.key,
                pg_catalog.jsonb_build_object(
                    'relation', (l.value ->> 'from')::regclass::oid::bigint,
                    'on', coalesce(l.value -> 'on', '{}')
                )
            ),
            '{}'
        )
    into looked
    from pg_catalog.jsonb_each(coalesce(lookup, '{}')) as l (key, value);
    rule := pg_catalog.jsonb_strip_nulls(
        pg_catalog.jsonb_build_object(
            'name', title,
            'event', event,
            'on', pg_catalog.to_jsonb(
                pg_catalog.array_remove(
                    array[
                        case when on_insert then 'insert' end,
                        case when on_update or on_update_of is not null then 'update' end,
                        case when on_delete then 'delete' end
                    ],
                    null
                )
            ),
            'update_of', map_event.on_update_of,
            'alone', map_event.alone,
            'topics', places,
            'columns', map_event.columns,
            'lookup', looked,
            'aggregate', map_event.aggregate,
            'exclude_origin', map_event.exclude_origin,
            'public', map_event.public
        )
    ) || pg_catalog.jsonb_build_object(
        -- In these, null is a value.
        'payload', said,
        'when_new', coalesce(when_new, '{}'),
        'when_old', coalesce(when_old, '{}')
    );
    -- In the place of the one of this name; else behind the others and before those of walcast.map_table.
    select
        coalesce(pg_catalog.jsonb_agg(r.rule order by r.is_default, r.n), '[]')
    into rules
    from (
        select
            case when k.value ->> 'name' = title and not k.is_default then rule else k.value end as rule,
            k.is_default,
            k.n
        from (
            select o.value, coalesce((o.value ->> 'default')::boolean, false) as is_default, o.n
            from pg_catalog.jsonb_array_elements(coalesce(known -> 'rules', '[]')) with ordinality as o (value, n)
        ) as k
        where not (k.is_default and k.value ->> 'event' = map_event.event)
        union all
        select rule, false, 1000000
        where not exists (
            select
            from pg_catalog.jsonb_array_elements(coalesce(known -> 'rules', '[]')) as o (value)
            where o.value ->> 'name' = title and not coalesce((o.value ->> 'default')::boolean, false)
        )
    ) as r;
    return walcast.declare_mapping(
        relation,
        coalesce(
            known,
            pg_catalog.jsonb_build_object(
                'key_case', 'camel',
                'columns', null,
                'ignore', array(
                    select a.attname::text
                    from pg_catalog.pg_attribute as a
                    where a.attrelid = map_event.relation
                        and not a.attisdropped
                        and a.attname in ('updated_at', 'updated_by', 'version', 'last_seen_at')
                    order by a.attnum
                ),
                'topics', '[]'::jsonb,
                'public', false
            )
        ) || pg_catalog.jsonb_build_object('rules', rules)
    );
end
$function$;
