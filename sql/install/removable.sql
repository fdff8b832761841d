-- removable: how to remove what we made, in an order that works, and what must stay.
-- in:     nothing
-- out:    rows of kind text · name text · sql text (null: goes with something else) · why text (null: may go)
-- caller: db/install.rs, uninstall
--         partitions go with a table of ours, and one by one from a table that was adopted: only
--         while they are empty, because messages are not ours to delete
-- needs:  functions with a text body leave no trace in pg_depend, so their text is searched
with made as (
    select
        o.kind,
        o.name,
        pg_catalog.split_part(o.name, '(', 1) as bare
    from walcast.objects as o
), callers as (
    select
        pg_catalog.format('%I.%I', n.nspname, p.proname) as caller,
        p.prosrc
    from pg_catalog.pg_proc as p
    join pg_catalog.pg_namespace as n on n.oid = p.pronamespace
    where n.nspname not in ('pg_catalog', 'information_schema', 'walcast')
        and not exists (
            select from made as m
            where m.kind = 'function' and p.oid = pg_catalog.to_regprocedure(m.name)
        )
), policies as (
    select pg_catalog.count(*) as number
    from pg_catalog.pg_policy as p
    where p.polrelid = pg_catalog.to_regclass('realtime.messages')
), kept_functions as (
    select
        m.name,
        (
            select c.caller
            from callers as c
            where pg_catalog.strpos(c.prosrc, m.bare) > 0
            limit 1
        ) as caller
    from made as m
    where m.kind = 'function'
)
select
    m.kind,
    m.name,
    case m.kind
        when 'event trigger' then pg_catalog.format('drop event trigger %I', m.name)
        when 'publication' then pg_catalog.format('drop publication %I', m.name)
        -- Triggers of our own tables, which go last, use some.
        when 'function' then 'drop function ' || m.name
            || case when m.name in (
                'walcast.announce_mapping()', 'walcast.stamp_mapping()', 'walcast.announce_declaration()'
            ) then ' cascade' else '' end
        when 'partition' then case
            when a.is_ours then null
            when pg_catalog.to_regclass(m.name) is null then 'select'
            else pg_catalog.format(
                'begin; set local row_security = off;'
                ' lock table realtime.messages in access exclusive mode;'
                ' do $do$ begin'
                ' if exists (select from %1$s) then raise exception ''it holds messages''; end if;'
                ' drop table %1$s; end $do$; commit',
                m.name
            )
        end
        when 'table' then 'drop table ' || m.name
        when 'type' then 'drop type ' || m.name
        when 'schema' then pg_catalog.format('drop schema %I', m.name)
    end as sql,
    case
        when m.kind = 'role'
            then 'roles belong to the whole cluster; drop it by hand when nothing uses it'
        when m.kind = 'publication' and exists (
            select
            from pg_catalog.pg_publication_tables as t
            where t.pubname = m.name and t.schemaname <> 'realtime'
        )
            then 'it has tables that somebody added'
        when m.kind = 'table' and p.number > 0
            then 'realtime.messages has policies'
        when m.kind = 'function' and f.caller is not null
            then 'function ' || f.caller || ' calls it'
    end as why
from made as m
cross join policies as p
cross join (
    select exists (
        select from walcast.objects as t where t.kind = 'table' and t.name = 'realtime.messages'
    ) as is_ours
) as a
left join kept_functions as f on f.name = m.name
where m.kind <> 'grant'
order by
    pg_catalog.array_position(
        array['event trigger', 'publication', 'function', 'partition', 'table', 'type', 'schema', 'role'],
        m.kind
    ),
    m.name desc;
