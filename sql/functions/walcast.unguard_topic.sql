-- walcast.unguard_topic: forgets what walcast.guard_topic said about a kind of topic, with its policies.
-- in:     the template as it was given
-- Never:  drops a policy that it did not make
create or replace function walcast.unguard_topic(topic text)
returns void
language plpgsql
volatile
set search_path = ''
as $function$
declare
    guard walcast.guards;
    policy text;
begin
    delete from walcast.guards as g where g.topic = unguard_topic.topic returning * into guard;
    if not found then
        raise exception 'walcast.unguard_topic: there is no guard of %', pg_catalog.quote_literal(unguard_topic.topic)
            using errcode = '22023', hint = 'select topic from walcast.guards shows those there are.';
    end if;
    foreach policy in array guard.policies loop
        execute pg_catalog.format('drop policy if exists %I on realtime.messages', policy);
    end loop;
end
$function$;
