-- walcast.profile: makes a namespace of Socket.IO, or says anew what its manners are.
-- in:     namespace, such as /story-maps · token_from: of auth, header and query those where a token may be, the first
--         first · token_missing, token_invalid: what connect_error says · subject: claims that may hold the user's id
--         · error_event, told with {code, message, context} · denied: the message of PERMISSION_DENIED · topics
--         joined when connecting, such as user:{sub}; those that he may not enter are left out · member: a function
--         (topic text) returns jsonb, called as the user: what is known of him, member.x in payloads; the topic is
--         empty when he connects · events_per_second of a connection
-- out:    whether anything changed
-- needs:  the owner of the database, or of walcast's tables
create or replace function walcast.profile(
    namespace text,
    token_from text[] default '{auth,header}',
    token_missing text default 'Authentication token missing',
    token_invalid text default 'Authentication failed',
    subject text[] default '{sub,userId}',
    error_event text default 'error',
    denied text default 'Insufficient permissions',
    topics text[] default '{}',
    member text default null,
    events_per_second integer default null
)
returns boolean
language plpgsql
volatile
set search_path = ''
as $function$
declare
    made jsonb;
begin
    if profile.namespace is null or profile.namespace = '*' then
        raise exception 'walcast.profile: name the namespace'
            using errcode = '22023', hint = 'It begins with /, such as /story-maps; / is that of clients that name none.';
    end if;
    if pg_catalog.cardinality(token_from) not between 1 and 3 or not token_from <@ array['auth', 'header', 'query'] then
        raise exception 'walcast.profile: token_from is %, which is not made of auth, header and query', token_from
            using errcode = '22023';
    end if;
    if pg_catalog.cardinality(subject) not between 1 and 16 or '' = any (subject) then
        raise exception 'walcast.profile: subject does not name 1 to 16 claims' using errcode = '22023';
    end if;
    if events_per_second < 1 then
        raise exception 'walcast.profile: with events_per_second % nobody could say anything', events_per_second
            using errcode = '22023';
    end if;
    if pg_catalog.octet_length(token_missing) not between 1 and 1000
        or pg_catalog.octet_length(token_invalid) not between 1 and 1000
        or pg_catalog.octet_length(denied) not between 1 and 1000
    then
        raise exception 'walcast.profile: token_missing, token_invalid and denied have 1 to 1000 bytes'
            using errcode = '22023';
    end if;
    perform walcast.check_event(error_event, 'error_event');
    perform walcast.check_personal_topics(topics, 'a topic of profile ' || profile.namespace);
    select pg_catalog.jsonb_object_agg(m.name, m.value)
    into made
    from (
        values
            ('token_from', pg_catalog.to_jsonb(profile.token_from)),
            ('token_missing', pg_catalog.to_jsonb(profile.token_missing)),
            ('token_invalid', pg_catalog.to_jsonb(profile.token_invalid)),
            ('subject', pg_catalog.to_jsonb(profile.subject)),
            ('error_event', pg_catalog.to_jsonb(profile.error_event)),
            ('denied', pg_catalog.to_jsonb(profile.denied)),
            ('topics', pg_catalog.to_jsonb(coalesce(profile.topics, '{}'))),
            ('member', pg_catalog.to_jsonb(walcast.check_callable(profile.member, 'text', false, 'member'))),
            ('events_per_second', pg_catalog.to_jsonb(profile.events_per_second))
    ) as m (name, value)
    where m.value is not null;
    return walcast.declare(profile.namespace, 'profile', '', coalesce(made, '{}'));
end
$function$;
