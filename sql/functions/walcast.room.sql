-- walcast.room: says how clients of Socket.IO enter and leave a kind of room, and who is told of it.
-- in:     topic, a template over the payload of both events, such as map:{mapId} · namespace, null: every one ·
--         join_event, leave_event · joined_event, told to who joined, with joined_payload · user_payload: one of
--         $users · user_joined, told to the others at the first connection of a user, with user_joined_payload ·
--         user_left, at the end of his last one, with user_left_payload · announce_self: who joined is told too ·
--         member: as in walcast.profile, for this kind of room · capacity: distinct users · denied: the message of
--         ACCESS_DENIED · pattern: {"mapId": "^[0-9]+$"}, what values match · on_join: a function (payload jsonb),
--         called as the user before policies are asked; what it returns is payload too · on_leave: called when
--         his last connection has left
-- out:    whether anything changed
-- needs:  the owner of the database, or of walcast's tables
-- Never:  decides who may enter: the policies of realtime.messages do, see walcast.guard_topic
create or replace function walcast.room(
    topic text,
    namespace text default null,
    join_event text default null,
    leave_event text default null,
    joined_event text default null,
    joined_payload jsonb default null,
    user_payload jsonb default null,
    user_joined text default null,
    user_joined_payload jsonb default null,
    user_left text default null,
    user_left_payload jsonb default null,
    announce_self boolean default false,
    member text default null,
    capacity integer default null,
    denied text default null,
    pattern jsonb default null,
    on_join text default null,
    on_leave text default null
)
returns boolean
language plpgsql
volatile
set search_path = ''
as $function$
declare
    names text[] := walcast.check_topic(room.topic, 'the topic');
    name text;
    value jsonb;
    made jsonb;
begin
    for name, value in
        select e.name, pg_catalog.to_jsonb(e.event)
        from (
            values
                ('join_event', room.join_event),
                ('leave_event', room.leave_event),
                ('joined_event', room.joined_event),
                ('user_joined', room.user_joined),
                ('user_left', room.user_left)
        ) as e (name, event)
    loop
        perform walcast.check_event(value #>> '{}', pg_catalog.format('%s of room %L', name, room.topic));
    end loop;
    for name, value in
        select e.name, e.payload
        from (
            values
                ('joined_payload', room.joined_payload),
                ('user_payload', room.user_payload),
                ('user_joined_payload', room.user_joined_payload),
                ('user_left_payload', room.user_left_payload)
        ) as e (name, payload)
    loop
        perform walcast.check_payload(value, pg_catalog.format('%s of room %L', name, room.topic));
    end loop;
    if room.capacity < 1 then
        raise exception 'walcast.room: with a capacity of % nobody could enter %', capacity, pg_catalog.quote_literal(topic)
            using errcode = '22023';
    end if;
    if pg_catalog.octet_length(room.denied) not between 1 and 1000 then
        raise exception 'walcast.room: denied has 1 to 1000 bytes' using errcode = '22023';
    end if;
    if room.pattern is not null then
        if pg_catalog.jsonb_typeof(room.pattern) <> 'object' then
            raise exception 'walcast.room: pattern is no object'
                using errcode = '22023', hint = 'Write it as {"mapId": "^[0-9]+$"}.';
        end if;
        for name, value in select p.key, p.value from pg_catalog.jsonb_each(room.pattern) as p (key, value) loop
            if not name = any (names) then
                raise exception 'walcast.room: there is a pattern of %, which is not in %',
                    pg_catalog.quote_literal(name), pg_catalog.quote_literal(topic)
                    using errcode = '22023';
            end if;
            if pg_catalog.jsonb_typeof(value) <> 'string' then
                raise exception 'walcast.room: the pattern of % is no text', pg_catalog.quote_literal(name)
                    using errcode = '22023';
            end if;
            -- An error here is of what is no regular expression.
            perform '' ~ (value #>> '{}');
        end loop;
    end if;
    select pg_catalog.jsonb_object_agg(m.name, m.value)
    into made
    from (
        values
            ('join_event', pg_catalog.to_jsonb(room.join_event)),
            ('leave_event', pg_catalog.to_jsonb(room.leave_event)),
            ('joined_event', pg_catalog.to_jsonb(room.joined_event)),
            ('joined_payload', room.joined_payload),
            ('user_payload', room.user_payload),
            ('user_joined', pg_catalog.to_jsonb(room.user_joined)),
            ('user_joined_payload', room.user_joined_payload),
            ('user_left', pg_catalog.to_jsonb(room.user_left)),
            ('user_left_payload', room.user_left_payload),
            ('announce_self', pg_catalog.to_jsonb(coalesce(room.announce_self, false))),
            ('member', pg_catalog.to_jsonb(walcast.check_callable(room.member, 'text', false, 'member'))),
            ('capacity', pg_catalog.to_jsonb(room.capacity)),
            ('denied', pg_catalog.to_jsonb(room.denied)),
            ('pattern', room.pattern),
            ('on_join', pg_catalog.to_jsonb(walcast.check_callable(room.on_join, 'jsonb', false, 'on_join'))),
            ('on_leave', pg_catalog.to_jsonb(walcast.check_callable(room.on_leave, 'jsonb', false, 'on_leave')))
    ) as m (name, value)
    where m.value is not null;
    return walcast.declare(room.namespace, 'room', room.topic, made);
end
$function$;
