-- walcast.announce_mapping: puts a new version of a table's declaration into the log, signed.
-- out:    logical message `walcast.mapping`: {"mac", "body"}, the body {"id", "relation", "declaration"};
--         and `walcast.after`, which means nothing, behind it (see walcast.announce_ddl)
-- caller: trigger announce on walcast.mappings, once its policies have let the row in
-- Never:  signs anything else: whoever may connect may write such a message, and only this one is believed
create or replace function walcast.announce_mapping()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $function$
declare
    key text;
    body text;
begin
    select s.value into strict key from walcast.secrets as s where s.name = 'mappings';
    body := pg_catalog.jsonb_build_object(
        'id', new.id, 'relation', new.relation::bigint, 'declaration', new.declaration
    )::text;
    perform pg_catalog.pg_logical_emit_message(
        true,
        'walcast.mapping',
        pg_catalog.convert_to(
            pg_catalog.jsonb_build_object(
                'body', body,
                'mac', pg_catalog.encode(
                    pg_catalog.sha256(
                        pg_catalog.convert_to(key, 'UTF8')
                        || pg_catalog.sha256(pg_catalog.convert_to(key || body, 'UTF8'))
                    ),
                    'hex'
                )
            )::text,
            'UTF8'
        )
    );
    perform pg_catalog.pg_logical_emit_message(true, 'walcast.after', '');
    return null;
end
$function$;

drop trigger if exists announce on walcast.mappings;
create trigger announce after insert on walcast.mappings
    for each row execute function walcast.announce_mapping();
