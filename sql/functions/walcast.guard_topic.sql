-- walcast.guard_topic: says who may enter the private rooms of a kind of topic, and who may speak there.
-- in:     topic, a template such as map:{id}, whose values stand behind a separator and before another one or
--         the end · reads, a table: whoever may select the row whose columns have these values may enter ·
--         or allows, a boolean function of the values · sends: 'readers', 'nobody', or such a function ·
--         watches: tables whose changes have it decided anew, as 'collaborators(map_id)' with the columns in
--         the order of the template's, or as 'settings': every topic of the kind; the table in reads always is
--         one · roles: to whom it applies
-- out:    policies on realtime.messages, which are the whole of it; a row in walcast.guards for the watches
-- needs:  the right to make policies on realtime.messages; the roles' own rights on what is named
-- Never:  a value that holds a separator; rights beyond the caller's: table and functions are asked as he is
create or replace function walcast.guard_topic(
    topic text,
    reads regclass default null,
    allows regproc default null,
    sends text default 'readers',
    watches text[] default '{}',
    roles name[] default '{authenticated}'
)
returns void
language plpgsql
volatile
set search_path = ''
as $function$
declare
    names text[];
    bare text;
    class text;
    uuid constant text := '[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}';
    types text[];
    groups text[];
    pattern text;
    pieces text[];
    place int;
    value text;
    enters text;
    speaks text;
    called oid;
    role name;
    watch text;
    parts text[];
    relation oid;
    columns text[];
    seen jsonb := '[]';
    prefix text;
    made text[];
begin
    if guard_topic.topic = '' or pg_catalog.octet_length(guard_topic.topic) > 246 then
        raise exception 'walcast.guard_topic: a topic has 1 to 246 bytes' using errcode = '22023';
    end if;
    if (guard_topic.reads is null) = (guard_topic.allows is null) then
        raise exception 'walcast.guard_topic: give either reads, a table, or allows, a function'
            using errcode = '22023';
    end if;
    names := array(
        select m[1] from pg_catalog.regexp_matches(guard_topic.topic, '\{([^{}]+)\}', 'g') with ordinality as f(m, n)
        order by n
    );
    bare := pg_catalog.regexp_replace(guard_topic.topic, '(?<=[:./|;@~+=!])\{[^{}]+\}(?=$|[:./|;@~+=!])', '', 'g');
    if bare ~ '[{}]' then
        raise exception 'walcast.guard_topic: a value in % is not a whole one', pg_catalog.quote_literal(guard_topic.topic)
            using errcode = '22023', hint = 'A {value} stands behind a separator such as : and before another one or the end.';
    end if;
    if bare ~ '[,*[:cntrl:]]' then
        raise exception 'walcast.guard_topic: % has a comma, an asterisk or a control character in it',
            pg_catalog.quote_literal(guard_topic.topic) using errcode = '22023';
    end if;

    -- What no value may hold: what separates topics everywhere, what separates them here, and what means anything
    -- to a template.
    class := '[^]:/,*{}' || pg_catalog.regexp_replace(bare, '[^.|;@~+=!]', '', 'g') || '[:cntrl:]]+';

    -- Of which types the values are.
    if guard_topic.reads is not null then
        types := array(
            select (
                select pg_catalog.format_type(coalesce(nullif(t.typbasetype, 0), t.oid), null)
                from pg_catalog.pg_attribute as a
                join pg_catalog.pg_type as t on t.oid = a.atttypid
                where a.attrelid = guard_topic.reads and a.attname = n.name and a.attnum > 0 and not a.attisdropped
            )
            from pg_catalog.unnest(names) with ordinality as n(name, place)
            order by n.place
        );
        place := pg_catalog.array_position(types, null);
        if place is not null then
            raise exception 'walcast.guard_topic: % has no column %',
                guard_topic.reads, pg_catalog.quote_ident(names[place])
                using errcode = '42703', hint = 'The values of a topic that is guarded by a table are columns of that table.';
        end if;
        foreach role in array guard_topic.roles loop
            if not pg_catalog.has_any_column_privilege(role, guard_topic.reads::oid, 'select')
                or not pg_catalog.has_schema_privilege(
                    role, (select c.relnamespace from pg_catalog.pg_class as c where c.oid = guard_topic.reads), 'usage'
                )
            then
                raise exception 'walcast.guard_topic: % may not select from %',
                    pg_catalog.quote_ident(role), guard_topic.reads
                    using
                        errcode = '42501',
                        hint = pg_catalog.format(
                            'grant select on %s to %I, with usage of its schema; its policies decide on the rows.',
                            guard_topic.reads,
                            role
                        );
            end if;
        end loop;
    else
        called := guard_topic.allows;
        types := array(
            select pg_catalog.format_type(coalesce(nullif(t.typbasetype, 0), t.oid), null)
            from pg_catalog.pg_proc as p
            cross join lateral pg_catalog.unnest(p.proargtypes::oid[]) with ordinality as a(type, place)
            join pg_catalog.pg_type as t on t.oid = a.type
            where p.oid = called
            order by a.place
        );
        perform 1 from pg_catalog.pg_proc as p
        where p.oid = called and p.prorettype = 'boolean'::pg_catalog.regtype and not p.proretset
            and p.prokind = 'f' and p.pronargs = pg_catalog.cardinality(names);
        if not found then
            raise exception 'walcast.guard_topic: % is no boolean function of the topic''s % value(s)',
                guard_topic.allows, pg_catalog.cardinality(names) using errcode = '42883';
        end if;
    end if;

    -- A pattern that matches the topics of this kind and nothing else, with a group for each value.
    groups := array(
        select case
            when t.type = 'uuid' then uuid
            when t.type = 'smallint' then '-?[0-9]{1,4}'
            when t.type = 'integer' then '-?[0-9]{1,9}'
            when t.type = 'bigint' then '-?[0-9]{1,18}'
            else class
        end
        from pg_catalog.unnest(types) with ordinality as t(type, place)
        order by t.place
    );
    pieces := pg_catalog.regexp_split_to_array(guard_topic.topic, '\{[^{}]+\}');
    pattern := '^';
    for place in 1 .. pg_catalog.cardinality(pieces) loop
        pattern := pattern || pg_catalog.regexp_replace(pieces[place], '([][\\.*+?^$(){}|])', '\\\1', 'g');
        if place <= pg_catalog.cardinality(names) then
            pattern := pattern || '(' || groups[place] || ')';
        end if;
    end loop;
    pattern := pattern || '$';
    value := pg_catalog.format('(pg_catalog.regexp_match(realtime.topic(), %L))', pattern);

    -- Whoever calls is asked as himself: his rights, his policies.
    if guard_topic.reads is not null then
        enters := pg_catalog.format('exists (select from %s as guarded where true', guard_topic.reads);
        for place in 1 .. pg_catalog.cardinality(names) loop
            enters := enters || pg_catalog.format(' and guarded.%I = %s[%s]::%s', names[place], value, place, types[place]);
        end loop;
        enters := enters || ')';
    else
        enters := walcast.guard_call(called, value, types);
    end if;
    enters := pg_catalog.format('realtime.topic() ~ %L and %s', pattern, enters);

    if guard_topic.sends = 'readers' then
        speaks := enters;
    elsif guard_topic.sends <> 'nobody' then
        called := pg_catalog.to_regproc(guard_topic.sends);
        perform 1 from pg_catalog.pg_proc as p
        where p.oid = called and p.prorettype = 'boolean'::pg_catalog.regtype and not p.proretset
            and p.prokind = 'f' and p.pronargs = pg_catalog.cardinality(names);
        if not found then
            raise exception 'walcast.guard_topic: % is neither readers nor nobody nor one boolean function of the topic''s % value(s)',
                pg_catalog.quote_literal(guard_topic.sends), pg_catalog.cardinality(names) using errcode = '42883';
        end if;
        speaks := pg_catalog.format('realtime.topic() ~ %L and %s', pattern, walcast.guard_call(called, value, types));
    end if;

    -- What has it decided anew.
    if guard_topic.reads is not null then
        seen := pg_catalog.jsonb_build_array(
            pg_catalog.jsonb_build_object('relation', guard_topic.reads::oid, 'columns', names)
        );
    end if;
    foreach watch in array guard_topic.watches loop
        parts := pg_catalog.regexp_match(watch, '^\s*(.+?)\s*(?:\(([^()]*)\))?\s*$');
        relation := pg_catalog.to_regclass(parts[1]);
        if relation is null then
            raise exception 'walcast.guard_topic: there is no table % to watch', pg_catalog.quote_literal(parts[1])
                using errcode = '42P01';
        end if;
        columns := case when parts[2] is null then '{}' else pg_catalog.regexp_split_to_array(btrim(parts[2]), '\s*,\s*') end;
        if columns <> '{}' and pg_catalog.cardinality(columns) <> pg_catalog.cardinality(names) then
            raise exception 'walcast.guard_topic: % names % column(s), and the topic has % value(s)',
                pg_catalog.quote_literal(watch), pg_catalog.cardinality(columns), pg_catalog.cardinality(names)
                using errcode = '22023', hint = 'Name one for each value, in their order, or none for every topic of the kind.';
        end if;
        for place in 1 .. pg_catalog.cardinality(columns) loop
            perform 1 from pg_catalog.pg_attribute as a
            where a.attrelid = relation and a.attname = columns[place] and a.attnum > 0 and not a.attisdropped;
            if not found then
                raise exception 'walcast.guard_topic: % has no column %', relation::pg_catalog.regclass, pg_catalog.quote_ident(columns[place])
                    using errcode = '42703';
            end if;
        end loop;
        seen := seen || pg_catalog.jsonb_build_object('relation', relation, 'columns', columns);
    end loop;
    for relation in select (w ->> 'relation')::oid from pg_catalog.jsonb_array_elements(seen) as w loop
        perform 1 from pg_catalog.pg_publication_tables as p
        where pg_catalog.format('%I.%I', p.schemaname, p.tablename)::pg_catalog.regclass::oid = relation;
        if not found then
            raise notice 'walcast.guard_topic: % is in no publication: who is removed there stays until his token is renewed',
                relation::pg_catalog.regclass;
        end if;
    end loop;

    -- Policies in place of those it made before.
    if exists (select from walcast.guards as g where g.topic = guard_topic.topic) then
        perform walcast.unguard_topic(guard_topic.topic);
    end if;
    prefix := 'walcast_guard_' || pg_catalog.left(pg_catalog.md5(guard_topic.topic), 16);
    made := array[prefix || '_enters'];
    execute pg_catalog.format(
        'create policy %I on realtime.messages for select to %s using (%s)',
        made[1], (select pg_catalog.string_agg(pg_catalog.quote_ident(r), ', ') from pg_catalog.unnest(guard_topic.roles) as r), enters
    );
    if speaks is not null then
        made := made || (prefix || '_speaks');
        execute pg_catalog.format(
            'create policy %I on realtime.messages for insert to %s with check (%s)',
            made[2], (select pg_catalog.string_agg(pg_catalog.quote_ident(r), ', ') from pg_catalog.unnest(guard_topic.roles) as r), speaks
        );
    end if;
    insert into walcast.guards (topic, policies, watches) values (guard_topic.topic, made, seen);
end
$function$;
