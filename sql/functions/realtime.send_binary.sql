-- realtime.send_binary: broadcasts bytes to a topic when the caller's transaction commits.
-- in:     payload · event · topic · private
-- needs:  INSERT on realtime.messages and a policy that allows it, as the caller
-- Never:  fails the caller's transaction: what goes wrong becomes a warning
create or replace function realtime.send_binary(
    payload bytea,
    event text,
    topic text,
    private boolean default true
)
returns void
language plpgsql
volatile
set search_path = ''
as $function$
begin
    perform pg_catalog.set_config('realtime.topic', send_binary.topic, true);
    insert into realtime.messages (topic, event, private, extension, binary_payload)
    values (
        send_binary.topic,
        send_binary.event,
        send_binary.private,
        'broadcast',
        send_binary.payload
    );
exception
    when others then
        raise warning 'WarnSendingBroadcastMessage: %', sqlerrm;
end
$function$;
