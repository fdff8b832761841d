-- walcast.check_event: whether a name can be that of an event.
-- in:     name; null is none, and fine · what names it, for the error
-- caller: walcast.profile and its like
-- needs:  the same rules as src/mapping/declaration.rs, which looks again
create or replace function walcast.check_event(name text, what text)
returns void
language plpgsql
immutable
set search_path = ''
as $function$
begin
    if pg_catalog.octet_length(name) not between 1 and 255 or name ~ '[[:cntrl:]]' then
        raise exception 'walcast: % is %, which does not have 1 to 255 bytes without control characters',
            what, pg_catalog.quote_literal(name)
            using errcode = '22023';
    end if;
    if name in ('connect', 'connect_error', 'disconnect', 'disconnecting', 'newListener', 'removeListener') then
        raise exception 'walcast: % is %, a name that clients keep for themselves', what, pg_catalog.quote_literal(name)
            using errcode = '22023', hint = 'Give it another name.';
    end if;
end
$function$;
