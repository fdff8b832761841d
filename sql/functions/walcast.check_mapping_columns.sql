-- walcast.check_mapping_columns: whether a table has these columns in the log.
-- in:     what names them, for the error
-- caller: walcast.declare_mapping
create or replace function walcast.check_mapping_columns(relation regclass, names text[], what text)
returns void
language plpgsql
stable
set search_path = ''
as $function$
declare
    name text;
    generated "char";
begin
    foreach name in array coalesce(names, '{}') loop
        select a.attgenerated
        into generated
        from pg_catalog.pg_attribute as a
        where a.attrelid = check_mapping_columns.relation
            and a.attname = name
            and a.attnum > 0
            and not a.attisdropped;
        if not found then
            raise exception 'walcast: % names column %, which % does not have',
                what, pg_catalog.quote_ident(name), relation
                using errcode = '42703';
        end if;
        if generated <> '' then
            raise exception 'walcast: % names column % of %, which is generated: the log does not carry it',
                what, pg_catalog.quote_ident(name), relation
                using errcode = '42703';
        end if;
    end loop;
end
$function$;
