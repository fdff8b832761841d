-- walcast.topic_shape: a topic's template with what kind of value stands where, instead of the columns.
-- in:     relation, whose columns they are · template, which is one
-- out:    map:{uuid}; kinds are uuid, int, enum with its type's number, and text
-- caller: walcast.check_mapping_collisions
create or replace function walcast.topic_shape(relation oid, template text)
returns text
language plpgsql
stable
set search_path = ''
as $function$
declare
    pieces text[] := pg_catalog.regexp_split_to_array(template, '\{[^{}]+\}');
    names text[] := array(
        select m.found[1]
        from pg_catalog.regexp_matches(template, '\{([^{}]+)\}', 'g') with ordinality as m (found, n)
        order by m.n
    );
    shape text := pieces[1];
    kind text;
begin
    for place in 1 .. pg_catalog.cardinality(names) loop
        with recursive types as (
            select t.oid, t.typtype, t.typbasetype
            from pg_catalog.pg_attribute as a
            join pg_catalog.pg_type as t on t.oid = a.atttypid
            where a.attrelid = topic_shape.relation and a.attname = names[place] and not a.attisdropped
            union all
            select t.oid, t.typtype, t.typbasetype
            from types as d
            join pg_catalog.pg_type as t on t.oid = d.typbasetype
            where d.typtype = 'd'
        )
        select case
            when t.oid = 'uuid'::regtype then 'uuid'
            when t.oid in ('int2'::regtype, 'int4'::regtype, 'int8'::regtype) then 'int'
            when t.typtype = 'e' then 'enum' || t.oid::text
            else 'text'
        end
        into kind
        from types as t
        where t.typtype <> 'd';
        shape := shape || '{' || coalesce(kind, 'text') || '}' || pieces[place + 1];
    end loop;
    return shape;
end
$function$;
