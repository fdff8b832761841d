-- walcast.stamp_mapping: says of a new version where in the log it was made.
-- caller: trigger stamp on walcast.mappings
-- Never:  believes what the row says itself
create or replace function walcast.stamp_mapping()
returns trigger
language plpgsql
volatile
set search_path = ''
as $function$
begin
    new.declared_at := pg_catalog.pg_current_wal_insert_lsn();
    new.made_by := session_user;
    new.made_at := pg_catalog.now();
    begin
        select c.system_identifier::text into new.system_id from pg_catalog.pg_control_system() as c;
    exception
        -- Not every server tells. Then it is taken to be of the same cluster.
        when insufficient_privilege then new.system_id := null;
    end;
    return new;
end
$function$;

drop trigger if exists stamp on walcast.mappings;
create trigger stamp before insert on walcast.mappings
    for each row execute function walcast.stamp_mapping();
