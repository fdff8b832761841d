-- realtime.send: broadcasts a JSON payload to a topic when the caller's transaction commits.
-- in:     payload; an object without `id` gets the message's id · event · topic · private
-- needs:  INSERT on realtime.messages and a policy that allows it, as the caller
-- Never:  fails the caller's transaction: what goes wrong becomes a warning
create or replace function realtime.send(
    payload jsonb,
    event text,
    topic text,
    private boolean default true
)
returns void
language plpgsql
volatile
set search_path = ''
as $function$
declare
    message_id constant uuid := pg_catalog.gen_random_uuid();
    body jsonb := send.payload;
begin
    if pg_catalog.jsonb_typeof(body) = 'object' and not body ? 'id' then
        body := body || pg_catalog.jsonb_build_object('id', message_id);
    end if;
    perform pg_catalog.set_config('realtime.topic', send.topic, true);
    insert into realtime.messages (id, topic, event, private, extension, payload)
    values (message_id, send.topic, send.event, send.private, 'broadcast', body);
exception
    when others then
        raise warning 'WarnSendingBroadcastMessage: %', sqlerrm;
end
$function$;
