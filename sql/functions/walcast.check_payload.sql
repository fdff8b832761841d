-- walcast.check_payload: whether this says what a payload is made of.
-- in:     payload; null is none, and fine · what names it, for the error
-- caller: walcast.room, walcast.relay, walcast.presence
-- needs:  the same rules as src/profile/payload.rs, which looks again
create or replace function walcast.check_payload(payload jsonb, what text)
returns void
language plpgsql
immutable
set search_path = ''
as $function$
declare
    member text;
    source jsonb;
begin
    if payload is null then
        return;
    end if;
    if pg_catalog.jsonb_typeof(payload) <> 'object' then
        raise exception 'walcast: % is no object', what
            using errcode = '22023', hint = 'Write it as {"userId": "$sub", "name": "member.name"}.';
    end if;
    if (select pg_catalog.count(*) from pg_catalog.jsonb_object_keys(payload)) > 256 then
        raise exception 'walcast: % has more than 256 members', what using errcode = '54000';
    end if;
    for member, source in
        select m.key, s.value
        from pg_catalog.jsonb_each(payload) as m (key, value)
        left join lateral pg_catalog.jsonb_array_elements(
            case when pg_catalog.jsonb_typeof(m.value) = 'array'
                then m.value else pg_catalog.jsonb_build_array(m.value) end
        ) as s (value) on true
    loop
        if source is null
            or pg_catalog.jsonb_typeof(payload -> member) = 'array'
            and pg_catalog.jsonb_array_length(payload -> member) > 16
        then
            raise exception 'walcast: % of % does not have 1 to 16 sources', pg_catalog.quote_ident(member), what
                using errcode = '22023';
        end if;
        if pg_catalog.jsonb_typeof(source) = 'object' and source ? 'value' and source - 'value' = '{}' then
            continue;
        end if;
        if pg_catalog.jsonb_typeof(source) <> 'string'
            or source #>> '{}' !~ '^(\$(sub|time|topic|users|status)|(payload|topic|member|claims)(\.[^.]+){0,16})$'
        then
            raise exception 'walcast: % of % is made of %, which is no source',
                pg_catalog.quote_ident(member), what, source
                using
                    errcode = '22023',
                    hint = 'Sources are payload.x, topic.x, member.x, claims.x, $sub, $time, $topic, $users, $status '
                        || 'and {"value": …}.';
        end if;
    end loop;
end
$function$;
