-- walcast.presence: tells who is online, user by user, whatever connections he has.
-- in:     namespace, null: every one · online, offline: events, with online_payload and offline_payload · topics that
--         hear it, over who the user is, such as presence or user:{sub} · topics_function: () returns setof text or
--         text[], called as the user: more of them · status_event: a client's event that sets his status, which is
--         the status_member of its payload, one of statuses; the first is that of who comes · write: a function
--         (payload jsonb), called as the user with {status, …}; null: it is only remembered · heartbeat_event, which
--         writes at most each write_interval and says nothing
-- out:    whether anything changed
-- needs:  the owner of the database, or of walcast's tables
create or replace function walcast.presence(
    namespace text default null,
    online text default null,
    online_payload jsonb default null,
    offline text default null,
    offline_payload jsonb default null,
    topics text[] default '{}',
    topics_function text default null,
    status_event text default null,
    status_member text default 'status',
    statuses text[] default '{online,away,offline}',
    write text default null,
    heartbeat_event text default null,
    write_interval interval default '15 s'
)
returns boolean
language plpgsql
volatile
set search_path = ''
as $function$
declare
    made jsonb;
begin
    perform walcast.check_event(presence.online, 'online');
    perform walcast.check_event(presence.offline, 'offline');
    perform walcast.check_event(presence.status_event, 'status_event');
    perform walcast.check_event(presence.heartbeat_event, 'heartbeat_event');
    perform walcast.check_payload(presence.online_payload, 'online_payload');
    perform walcast.check_payload(presence.offline_payload, 'offline_payload');
    perform walcast.check_personal_topics(presence.topics, 'a topic of presence');
    if pg_catalog.cardinality(presence.statuses) not between 1 and 16 or '' = any (presence.statuses) then
        raise exception 'walcast.presence: there are 1 to 16 statuses' using errcode = '22023';
    end if;
    if presence.online is null and presence.write is null then
        raise exception 'walcast.presence: it tells nothing and writes nothing'
            using errcode = '22023', hint = 'Say online => an event, or write => a function.';
    end if;
    if presence.status_member = '' then
        raise exception 'walcast.presence: status_member has no name' using errcode = '22023';
    end if;
    if presence.write_interval not between interval '1 s' and interval '1 day' then
        raise exception 'walcast.presence: write_interval is between a second and a day' using errcode = '22023';
    end if;
    select pg_catalog.jsonb_object_agg(m.name, m.value)
    into made
    from (
        values
            ('online', pg_catalog.to_jsonb(presence.online)),
            ('online_payload', presence.online_payload),
            ('offline', pg_catalog.to_jsonb(presence.offline)),
            ('offline_payload', presence.offline_payload),
            ('topics', pg_catalog.to_jsonb(coalesce(presence.topics, '{}'))),
            (
                'topics_function',
                pg_catalog.to_jsonb(walcast.check_callable(presence.topics_function, '', true, 'topics_function'))
            ),
            ('status_event', pg_catalog.to_jsonb(presence.status_event)),
            ('status_member', pg_catalog.to_jsonb(presence.status_member)),
            ('statuses', pg_catalog.to_jsonb(presence.statuses)),
            ('write', pg_catalog.to_jsonb(walcast.check_callable(presence.write, 'jsonb', false, 'write'))),
            ('heartbeat_event', pg_catalog.to_jsonb(presence.heartbeat_event)),
            (
                'write_interval_ms',
                pg_catalog.to_jsonb((1000 * pg_catalog.date_part('epoch', presence.write_interval))::integer)
            )
    ) as m (name, value)
    where m.value is not null;
    return walcast.declare(presence.namespace, 'presence', '', made);
end
$function$;
