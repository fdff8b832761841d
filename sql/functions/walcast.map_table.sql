-- walcast.map_table: says what rows of a table are to the application, and where their changes are told.
-- in:     relation, the table · entity, what a row is, such as story: with separator and on_insert, on_update,
--         on_delete it gives the names of three events; null: none but those of walcast.map_event ·
--         topic or topics, such as map:{map_id} · key_case of columns in payloads: camel, snake, as_is ·
--         columns that payloads may show, all without · ignore: columns whose changes alone say nothing ·
--         carry: columns that an update shows though they do not count · delta: the member that holds
--         what changed, none: it is among the others · exclude_origin: which of insert, update, delete are not told
--         to the connection that made the change · public: in public rooms instead of private ones
-- out:    whether anything changed
-- needs:  the table's owner; replica identity full, unless only inserts are told
create or replace function walcast.map_table(
    relation regclass,
    entity text default null,
    topic text default null,
    topics text[] default null,
    key_case text default 'camel',
    columns text[] default null,
    ignore text[] default null,
    carry text[] default null,
    separator text default '.',
    on_insert text default 'created',
    on_update text default 'updated',
    on_delete text default 'deleted',
    delta text default null,
    exclude_origin text[] default '{}',
    public boolean default false
)
returns boolean
language plpgsql
volatile
set search_path = ''
as $function$
declare
    places text[] := map_table.topics;
    ignored text[] := map_table.ignore;
    carried text[] := map_table.carry;
    deleted_by text := case map_table.key_case when 'camel' then 'deletedBy' else 'deleted_by' end;
    deleted_at text := case map_table.key_case when 'camel' then 'deletedAt' else 'deleted_at' end;
    unknown text;
    own jsonb;
    made jsonb := '[]';
begin
    if topic is not null then
        places := pg_catalog.array_prepend(map_table.topic, coalesce(places, '{}'));
    end if;
    if entity is not null and coalesce(pg_catalog.cardinality(places), 0) = 0 then
        raise exception 'walcast.map_table: % has no topic', relation
            using errcode = '22023', hint = 'Say where it is told: topic => ''map:{map_id}''.';
    end if;
    select o.name
    into unknown
    from pg_catalog.unnest(map_table.exclude_origin) as o (name)
    where o.name not in ('insert', 'update', 'delete')
    limit 1;
    if found then
        raise exception 'walcast.map_table: exclude_origin names %, which is none of insert, update, delete',
            pg_catalog.quote_literal(unknown)
            using errcode = '22023';
    end if;
    if ignored is null then
        select coalesce(pg_catalog.array_agg(a.attname::text order by a.attnum), '{}')
        into ignored
        from pg_catalog.pg_attribute as a
        where a.attrelid = map_table.relation
            and not a.attisdropped
            and a.attname in ('updated_at', 'updated_by', 'version', 'last_seen_at');
    end if;
    if carried is null then
        select coalesce(pg_catalog.array_agg(a.attname::text order by a.attnum), '{}')
        into carried
        from pg_catalog.pg_attribute as a
        where a.attrelid = map_table.relation
            and not a.attisdropped
            and a.attname in ('updated_at', 'updated_by', 'version')
            and (map_table.columns is null or a.attname = any (map_table.columns));
    end if;
    own := coalesce(
        (
            select pg_catalog.jsonb_agg(r.value order by r.n)
            from pg_catalog.jsonb_array_elements(walcast.mapping_of(relation) -> 'rules')
                with ordinality as r (value, n)
            where not coalesce((r.value ->> 'default')::boolean, false)
        ),
        '[]'
    );
    if entity is not null then
        select coalesce(pg_catalog.jsonb_agg(d.rule order by d.n), '[]')
        into made
        from (
            select
                o.n,
                pg_catalog.jsonb_build_object(
                    'name', entity || separator || o.verb,
                    'event', entity || separator || o.verb,
                    'on', pg_catalog.jsonb_build_array(o.operation),
                    'payload', o.payload,
                    'exclude_origin', o.operation = any (map_table.exclude_origin),
                    'default', true
                ) as rule
            from (
                values
                    (1, 'insert', on_insert, '{"...": "$row"}'::jsonb),
                    (
                        2,
                        'update',
                        on_update,
                        case when delta is null
                            then pg_catalog.jsonb_build_object(
                                '...', '["$key", "$changes"]'::jsonb || pg_catalog.to_jsonb(carried)
                            )
                            else pg_catalog.jsonb_build_object(
                                '...', '["$key"]'::jsonb || pg_catalog.to_jsonb(carried),
                                delta, '$changes'
                            )
                        end
                    ),
                    (
                        3,
                        'delete',
                        on_delete,
                        pg_catalog.jsonb_build_object('...', '$key', deleted_by, '$actor', deleted_at, '$time')
                    )
            ) as o (n, operation, verb, payload)
            where o.verb is not null
                and not exists (
                    select
                    from pg_catalog.jsonb_array_elements(own) as r (value)
                    where r.value ->> 'event' = entity || separator || o.verb
                )
        ) as d;
    end if;
    return walcast.declare_mapping(
        relation,
        pg_catalog.jsonb_build_object(
            'key_case', map_table.key_case,
            'columns', map_table.columns,
            'ignore', ignored,
            'topics', coalesce(places, '{}'),
            'public', map_table.public,
            'settings', pg_catalog.jsonb_build_object('carry', carried),
            'rules', own || made
        )
    );
end
$function$;
