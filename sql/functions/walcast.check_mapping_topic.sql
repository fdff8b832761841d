-- walcast.check_mapping_topic: whether a topic template can be told from others, and its columns exist.
-- in:     template, such as map:{map_id} · what names it, for the error
-- caller: walcast.declare_mapping
-- needs:  the same rules as src/mapping/template.rs, which looks again
create or replace function walcast.check_mapping_topic(relation regclass, template text, what text)
returns void
language plpgsql
stable
set search_path = ''
as $function$
declare
    columns text[];
    name text;
    type_oid oid;
    kind "char";
    category "char";
begin
    if template is null or pg_catalog.octet_length(template) not between 1 and 246 then
        raise exception 'walcast: topic % of % does not have 1 to 246 bytes', pg_catalog.quote_nullable(template), what
            using errcode = '22023';
    end if;
    if pg_catalog.regexp_replace(template, '\{[^{}]+\}', '', 'g') ~ '[{}]' then
        raise exception 'walcast: a brace in topic % of % is not part of a {column}',
            pg_catalog.quote_literal(template), what
            using errcode = '22023';
    end if;
    if template ~ '[,*[:cntrl:]]' then
        raise exception 'walcast: topic % of % has a comma, an asterisk or a control character',
            pg_catalog.quote_literal(template), what
            using errcode = '22023';
    end if;
    if template !~ '^[^{}]*([:./|;@~+=!]\{[^{}]+\}(?=$|[:./|;@~+=!])[^{}]*)*$' then
        raise exception 'walcast: topic % of % is ambiguous', pg_catalog.quote_literal(template), what
            using
                errcode = '22023',
                hint = 'A {column} stands behind a separator such as : and before another one or the end: map:{map_id}.';
    end if;
    select pg_catalog.array_agg(found.name[1])
    into columns
    from pg_catalog.regexp_matches(template, '\{([^{}]+)\}', 'g') as found (name);
    perform walcast.check_mapping_columns(relation, columns, 'topic ' || pg_catalog.quote_literal(template) || ' of ' || what);
    foreach name in array coalesce(columns, '{}') loop
        select a.atttypid
        into type_oid
        from pg_catalog.pg_attribute as a
        where a.attrelid = check_mapping_topic.relation and a.attname = name;
        loop
            select t.typtype, t.typcategory, case when t.typtype = 'd' then t.typbasetype else type_oid end
            into kind, category, type_oid
            from pg_catalog.pg_type as t
            where t.oid = type_oid;
            exit when kind <> 'd';
        end loop;
        if kind <> 'e'
            and category <> 'S'
            and type_oid not in ('uuid'::regtype, 'int2'::regtype, 'int4'::regtype, 'int8'::regtype)
        then
            raise exception 'walcast: column % in topic % of % is neither text, an integer, a uuid nor an enum',
                pg_catalog.quote_ident(name), pg_catalog.quote_literal(template), what
                using errcode = '22023';
        end if;
    end loop;
end
$function$;
