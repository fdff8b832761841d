-- walcast.check_topic: whether a text is a topic's template.
-- in:     template, such as map:{mapId} · what names it, for the error
-- out:    the names of its values, in order
-- caller: walcast.profile and its like
-- needs:  the same rules as src/mapping/template.rs, which looks again
create or replace function walcast.check_topic(template text, what text)
returns text[]
language plpgsql
immutable
set search_path = ''
as $function$
begin
    if template is null or pg_catalog.octet_length(template) not between 1 and 246 then
        raise exception 'walcast: % is %, which does not have 1 to 246 bytes', what, pg_catalog.quote_nullable(template)
            using errcode = '22023';
    end if;
    if pg_catalog.regexp_replace(template, '\{[^{}]+\}', '', 'g') ~ '[{}]' then
        raise exception 'walcast: a brace in %, which is %, is not part of a {value}', what, pg_catalog.quote_literal(template)
            using errcode = '22023';
    end if;
    if template ~ '[,*[:cntrl:]]' then
        raise exception 'walcast: %, which is %, has a comma, an asterisk or a control character in it',
            what, pg_catalog.quote_literal(template)
            using errcode = '22023';
    end if;
    if template !~ '^[^{}]*([:./|;@~+=!]\{[^{}]+\}(?=$|[:./|;@~+=!])[^{}]*)*$' then
        raise exception 'walcast: %, which is %, is ambiguous', what, pg_catalog.quote_literal(template)
            using
                errcode = '22023',
                hint = 'A {value} stands behind a separator such as : and before another one or the end: map:{mapId}.';
    end if;
    return array(
        select found.name[1]
        from pg_catalog.regexp_matches(template, '\{([^{}]+)\}', 'g') with ordinality as found (name, n)
        order by found.n
    );
end
$function$;
