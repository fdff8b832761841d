-- walcast.end_request: keeps what a write is answered with, for whoever asks again.
-- in:     scope and key as begun · answer
-- caller: the service's check login, in the transaction of the write
create or replace function walcast.end_request(scope text, key text, answer text)
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $function$
begin
    if pg_catalog.current_setting('role') <> 'none'
        or not exists (select from walcast.logins as l where l.name = session_user)
    then
        raise exception 'walcast.end_request: % is no login of walcast, or not itself', session_user
            using errcode = '42501';
    end if;
    update walcast.requests as known
    set answer = end_request.answer
    where known.scope = end_request.scope and known.key = end_request.key;
end
$function$;
