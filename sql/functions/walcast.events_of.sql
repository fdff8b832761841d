-- walcast.events_of: which events of clients a declaration is about.
-- in:     a row of walcast.declarations, in parts
-- out:    rows of event
-- caller: walcast.declare
create or replace function walcast.events_of(kind text, name text, declaration jsonb)
returns setof text
language sql
immutable
set search_path = ''
as $function$
    select e.event
    from (
        values
            ('room', $3 ->> 'join_event'),
            ('room', $3 ->> 'leave_event'),
            ('command', $2),
            ('relay', $2),
            ('relay', $3 ->> 'stop_event'),
            ('presence', $3 ->> 'status_event'),
            ('presence', $3 ->> 'heartbeat_event')
    ) as e (kind, event)
    where e.kind = $1 and e.event is not null
$function$;
