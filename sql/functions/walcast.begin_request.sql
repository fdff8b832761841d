-- walcast.begin_request: claims a key for a write, or says what became of the write that has it.
-- in:     scope, whose key it is · key · request, digest of what is asked · lifetime of an answer
-- out:    one row: is_new (write now) · is_same (the same was asked before) · answer (of then)
-- caller: the service's check login, in the transaction of the write; a second one waits for the first one's end
-- Never:  answers a role that the login was set to: keys hold other people's answers
create or replace function walcast.begin_request(
    scope text,
    key text,
    request text,
    lifetime interval
)
returns table (is_new boolean, is_same boolean, answer text)
language plpgsql
volatile
security definer
set search_path = ''
as $function$
begin
    if pg_catalog.current_setting('role') <> 'none'
        or not exists (select from walcast.logins as l where l.name = session_user)
    then
        raise exception 'walcast.begin_request: % is no login of walcast, or not itself', session_user
            using errcode = '42501';
    end if;
    insert into walcast.requests as known (scope, key, request)
    values (begin_request.scope, begin_request.key, begin_request.request)
    on conflict on constraint requests_pkey do update
        set request = excluded.request, answer = null, made_at = excluded.made_at
        where known.made_at < excluded.made_at - begin_request.lifetime;
    if found then
        return query select true, true, null::text;
    else
        return query
            select false, known.request = begin_request.request, known.answer
            from walcast.requests as known
            where known.scope = begin_request.scope and known.key = begin_request.key;
    end if;
end
$function$;
