-- walcast.relay: tells a room what a client in it says, without keeping it.
-- in:     event of the client · told: the event that the room hears · topic, a template over the payload · namespace,
--         null: every one · payload, without: all that was sent, and userId · key: members of the payload that tell
--         one thing from another · min_interval between two about one thing; the last one is kept and sent ·
--         expires: without another one it counts as stopped; null: never · stop_event: an event that stops it, with
--         the same key · active_member: a member of the payload that is false to stop it · stopped: the event told
--         when it stopped, with stopped_payload · echo: who sent it hears it too · gather: 'users', the event tells
--         who has it active ($users), at each change of that, one key a connection
-- out:    whether anything changed
-- needs:  the owner of the database, or of walcast's tables
-- Never:  decides who may speak: who is not in the room, is not relayed
create or replace function walcast.relay(
    event text,
    told text,
    topic text,
    namespace text default null,
    payload jsonb default null,
    key text[] default '{}',
    min_interval interval default null,
    expires interval default null,
    stop_event text default null,
    active_member text default null,
    stopped text default null,
    stopped_payload jsonb default null,
    echo boolean default false,
    gather text default null
)
returns boolean
language plpgsql
volatile
set search_path = ''
as $function$
declare
    what text := pg_catalog.format('relay %L', relay.event);
    made jsonb;
begin
    if relay.event is null or relay.told is null then
        raise exception 'walcast.relay: name the event, and what is told' using errcode = '22023';
    end if;
    perform walcast.check_event(relay.event, 'the event of a relay');
    perform walcast.check_event(relay.told, 'what is told by ' || what);
    perform walcast.check_event(relay.stop_event, 'stop_event of ' || what);
    perform walcast.check_event(relay.stopped, 'stopped of ' || what);
    perform walcast.check_topic(relay.topic, 'the topic of ' || what);
    perform walcast.check_payload(relay.payload, 'payload of ' || what);
    perform walcast.check_payload(relay.stopped_payload, 'stopped_payload of ' || what);
    if relay.gather <> 'users' then
        raise exception 'walcast.relay: gather of % is %, and can be users', what, pg_catalog.quote_literal(gather)
            using errcode = '22023';
    end if;
    if '' = any (relay.key) or pg_catalog.cardinality(relay.key) > 16 or relay.active_member = '' then
        raise exception 'walcast.relay: key of % names more than 16 members, or one without a name', what
            using errcode = '22023';
    end if;
    if relay.min_interval not between interval '0' and interval '1 day'
        or relay.expires not between interval '100 ms' and interval '1 day'
    then
        raise exception 'walcast.relay: min_interval and expires of % are between 100 ms and a day', what
            using errcode = '22023';
    end if;
    select pg_catalog.jsonb_object_agg(m.name, m.value)
    into made
    from (
        values
            ('told', pg_catalog.to_jsonb(relay.told)),
            ('topic', pg_catalog.to_jsonb(relay.topic)),
            ('payload', relay.payload),
            ('key', pg_catalog.to_jsonb(coalesce(relay.key, '{}'))),
            (
                'min_interval_ms',
                pg_catalog.to_jsonb((1000 * pg_catalog.date_part('epoch', relay.min_interval))::integer)
            ),
            ('expires_ms', pg_catalog.to_jsonb((1000 * pg_catalog.date_part('epoch', relay.expires))::integer)),
            ('stop_event', pg_catalog.to_jsonb(relay.stop_event)),
            ('active_member', pg_catalog.to_jsonb(relay.active_member)),
            ('stopped', pg_catalog.to_jsonb(relay.stopped)),
            ('stopped_payload', relay.stopped_payload),
            ('echo', pg_catalog.to_jsonb(coalesce(relay.echo, false))),
            ('gather', pg_catalog.to_jsonb(relay.gather))
    ) as m (name, value)
    where m.value is not null;
    return walcast.declare(relay.namespace, 'relay', relay.event, made);
end
$function$;
