-- walcast.declare: puts a declaration into force, if it is not in force already.
-- in:     as in walcast.declarations; namespace null: every declared one
-- out:    whether anything changed
-- caller: walcast.profile and its like, which have checked it
-- needs:  the owner of the database, or of walcast's tables
create or replace function walcast.declare(namespace text, kind text, name text, declaration jsonb)
returns boolean
language plpgsql
volatile
set search_path = ''
as $function$
declare
    place text := coalesce(declare.namespace, '*');
    other record;
begin
    if not exists (
            select from pg_catalog.pg_database as d
            where d.datname = pg_catalog.current_database() and pg_catalog.pg_has_role(d.datdba, 'usage')
        )
        and not exists (
            select from pg_catalog.pg_class as c
            where c.oid = 'walcast.declarations'::pg_catalog.regclass and pg_catalog.pg_has_role(c.relowner, 'usage')
        )
    then
        raise exception 'walcast: only the owner of the database may say what clients find there'
            using errcode = '42501';
    end if;
    if place <> '*' and (
        place !~ '^/[^,?[:cntrl:]]*$' or pg_catalog.octet_length(place) > 255
    ) then
        raise exception 'walcast: % is no namespace', pg_catalog.quote_literal(place)
            using errcode = '22023', hint = 'It begins with /, has no comma and at most 255 bytes: /story-maps.';
    end if;
    -- One after the other, so that none is passed over.
    perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('walcast.declarations', 0));
    if kind <> 'profile' and place not in ('*', '/') and not exists (
        select from walcast.declarations as d where d.namespace = place and d.kind = 'profile'
    ) then
        raise exception 'walcast: there is no profile %', place
            using
                errcode = '22023',
                hint = pg_catalog.format('Declare it first: select walcast.profile(%L)', place);
    end if;
    if declare.kind = 'relay' and declaration ->> 'stop_event' = declare.name then
        raise exception 'walcast: relay % stops itself', pg_catalog.quote_literal(declare.name)
            using errcode = '22023', hint = 'Give stop_event another name, or say active_member.';
    end if;
    if declare.kind = 'presence' and declaration ->> 'status_event' = declaration ->> 'heartbeat_event' then
        raise exception 'walcast: status_event and heartbeat_event are the same' using errcode = '22023';
    end if;
    select d.namespace, d.kind, d.name, e.event
    into other
    from walcast.declarations as d
    cross join lateral walcast.events_of(d.kind, d.name, d.declaration) as e (event)
    where (d.namespace in (place, '*') or place = '*')
        -- The same of one namespace goes before that of all.
        and (d.kind, d.name) <> (declare.kind, declare.name)
        and (d.kind <> 'room' or declare.kind <> 'room')
        and e.event in (
            select o.event from walcast.events_of(declare.kind, declare.name, declare.declaration) as o (event)
        )
    limit 1;
    if found then
        raise exception 'walcast: the event % of % means something else already: it belongs to % %',
            pg_catalog.quote_literal(other.event),
            case when other.namespace = '*' then 'every namespace' else other.namespace end,
            other.kind,
            pg_catalog.quote_literal(other.name)
            using
                errcode = '22023',
                hint = pg_catalog.format(
                    'Take that away first: select walcast.un%s(%snamespace => %L), or take another event.',
                    other.kind,
                    case when other.kind = 'presence' then '' else pg_catalog.quote_literal(other.name) || ', ' end,
                    nullif(other.namespace, '*')
                );
    end if;
    if (
        select d.declaration from walcast.declarations as d
        where (d.namespace, d.kind, d.name) = (place, declare.kind, declare.name)
    ) is not distinct from declare.declaration then
        return false;
    end if;
    insert into walcast.declarations as known (namespace, kind, name, declaration)
    values (place, declare.kind, declare.name, declare.declaration)
    on conflict on constraint declarations_pkey do update
        set declaration = excluded.declaration, made_by = excluded.made_by, made_at = excluded.made_at;
    return true;
end
$function$;
