-- walcast.check_personal_topics: whether these are templates over who a user is.
-- in:     topics, such as user:{sub} and tenant:{claims.tenant} · what names them, for the error
-- caller: walcast.profile, walcast.presence
create or replace function walcast.check_personal_topics(topics text[], what text)
returns void
language plpgsql
immutable
set search_path = ''
as $function$
declare
    topic text;
    name text;
begin
    foreach topic in array coalesce(topics, '{}') loop
        foreach name in array walcast.check_topic(topic, what) loop
            if name <> 'sub' and name !~ '^claims\.[^.]+(\.[^.]+)*$' then
                raise exception 'walcast: %, which is %, names %', what, pg_catalog.quote_literal(topic), name
                    using
                        errcode = '22023',
                        hint = 'What is known of a user when he connects is {sub}, and his token''s {claims.x}.';
            end if;
        end loop;
    end loop;
end
$function$;
