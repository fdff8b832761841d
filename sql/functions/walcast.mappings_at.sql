-- walcast.mappings_at: what is declared where a stream of the log begins.
-- in:     start, the position · system, the cluster's identifier
-- out:    {"key", "mappings": [{"id", "relation", "declaration"}]}: what declarations in the log are signed
--         with, and of each table the last version from before; later ones are in the stream
-- caller: feed/declared.rs, as the login that reads the log
-- Never:  answers anybody else: who has the key can declare. Whoever may replicate has read it anyway
create or replace function walcast.mappings_at(start pg_lsn, system text)
returns jsonb
language plpgsql
stable
security definer
set search_path = ''
as $function$
begin
    if not exists (
        select from pg_catalog.pg_roles as r
        where r.rolname = session_user and (r.rolreplication or r.rolsuper)
    ) then
        raise exception 'walcast.mappings_at: % may not read the log', session_user using errcode = '42501';
    end if;
    return pg_catalog.jsonb_build_object(
        'key', (select s.value from walcast.secrets as s where s.name = 'mappings'),
        'mappings', coalesce(
            (
                select
                    pg_catalog.jsonb_agg(
                        pg_catalog.jsonb_build_object(
                            'id', last.id, 'relation', last.relation::bigint, 'declaration', last.declaration
                        )
                    )
                from (
                    select distinct on (m.relation) m.id, m.relation, m.declaration
                    from walcast.mappings as m
                    where m.declared_at < mappings_at.start or m.system_id <> mappings_at.system
                    order by m.relation, m.id desc
                ) as last
                where last.declaration is not null
                    and exists (select from pg_catalog.pg_class as c where c.oid = last.relation)
            ),
            '[]'
        )
    );
end
$function$;
