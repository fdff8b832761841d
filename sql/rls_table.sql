-- rls_table: all that decides who may see a table's rows, for the current role and search_path.
-- in:     $1 oid     table
--         $2 text[]  the publications that the log is read through
-- out:    one row; none when the table does not exist
--         facts text  a JSON object, equal text for equal facts: what was compiled from it holds
--                     for as long as this statement gives the same text
-- parts:  "logged" is rls_logged.sql
-- caller: auth/rls/checker/, as the subscriber's role, before and after each check
-- needs:  PostgreSQL 14+, any role that may read pg_policy, pg_depend, pg_proc, pg_roles
with recursive memberships as (
    select m.roleid, m.member, m.xmin::text as version
    from pg_catalog.pg_auth_members as m
    where m.member = (select r.oid from pg_catalog.pg_roles as r where r.rolname = current_user)
    union
    select m.roleid, m.member, m.xmin::text
    from pg_catalog.pg_auth_members as m
    join memberships as inner_role on m.member = inner_role.roleid
)
select
    pg_catalog.jsonb_build_object(
        'name', pg_catalog.format('%I.%I', n.nspname, c.relname),
        'alias', pg_catalog.quote_ident(c.relname),
        'row_security', c.relrowsecurity,
        'active', pg_catalog.row_security_active(c.oid),
        'readable', pg_catalog.has_schema_privilege(n.oid, 'USAGE')
            and pg_catalog.has_any_column_privilege(c.oid, 'SELECT'),
        -- Plans remember which roles they were made for; a change here ends the connection.
        'role', pg_catalog.jsonb_build_array(
            (
                select pg_catalog.jsonb_build_array(r.oid::text, r.rolsuper, r.rolinherit, r.rolbypassrls)
                from pg_catalog.pg_roles as r
                where r.rolname = current_user
            ),
            (
                select pg_catalog.jsonb_agg(
                    pg_catalog.jsonb_build_array(m.roleid::text, m.member::text, m.version, r.rolinherit)
                    order by m.roleid, m.member, m.version
                )
                from memberships as m
                join pg_catalog.pg_roles as r on r.oid = m.member
            )
        ),
        'columns', (
            select coalesce(pg_catalog.jsonb_agg(
                pg_catalog.jsonb_build_object(
                    'number', a.attnum,
                    'name', a.attname,
                    'quoted', pg_catalog.quote_ident(a.attname),
                    'type_oid', a.atttypid::bigint,
                    'type_name', pg_catalog.format_type(a.atttypid, null),
                    'domain', t.typtype = 'd',
                    'generated', a.attgenerated <> '',
                    'selectable', pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT'),
                    'in_key', coalesce(a.attnum = any (i.indkey), false)
                )
                order by a.attnum
            ), '[]')
            from pg_catalog.pg_attribute as a
            join pg_catalog.pg_type as t on t.oid = a.atttypid
            left join pg_catalog.pg_index as i on i.indrelid = c.oid and i.indisprimary
            where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        ),
        'policies', (
            select coalesce(pg_catalog.jsonb_agg(
                pg_catalog.jsonb_build_object(
                    'name', p.polname,
                    'permissive', p.polpermissive,
                    'condition', pg_catalog.pg_get_expr(p.polqual, p.polrelid),
                    -- Attribute numbers of this table; a system column's is negative.
                    'needs', (
                        select coalesce(pg_catalog.jsonb_agg(distinct d.refobjsubid), '[]')
                        from pg_catalog.pg_depend as d
                        where d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass
                            and d.objid = p.oid
                            and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
                            and d.refobjid = c.oid
                            and d.refobjsubid <> 0
                    ),
                    -- pg_depend does not know of whole-row references; the node tree does.
                    'whole_row', p.polqual::text ~ ':varattno 0 ',
                    -- Partitions too, and what they are part of: the log names either.
                    'tables', (
                        select coalesce(pg_catalog.jsonb_agg(distinct read.oid::bigint), '[]')
                        from pg_catalog.pg_depend as d
                        join pg_catalog.pg_class as other on other.oid = d.refobjid
                        cross join lateral (
                            select other.oid
                            union all
                            select t.relid
                            from pg_catalog.pg_partition_tree(other.oid) as t
                            where other.relkind = 'p'
                            union all
                            select a.relid
                            from pg_catalog.pg_partition_ancestors(other.oid) as a
                            where other.relispartition
                        ) as read (oid)
                        where d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass
                            and d.objid = p.oid
                            and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
                            and d.refobjid <> c.oid
                    ),
                    -- It reads a table of whose rows the log does not say all: one that is in none of
                    -- our publications, or only in part; a catalog; one with children.
                    'unlogged', exists (
                        select
                        from pg_catalog.pg_depend as d
                        join pg_catalog.pg_class as other on other.oid = d.refobjid
                        where d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass
                            and d.objid = p.oid
                            and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
                            and d.refobjid <> c.oid
                            and other.relkind in ('r', 'p')
                            and (
                                other.oid < 16384
                                or (
                                    other.relkind = 'r'
                                    and exists (
                                        select
                                        from pg_catalog.pg_inherits as i
                                        where i.inhparent = other.oid
                                    )
                                )
                                or not :logged
                            )
                    ),
                    -- What else it reads cannot be told: itself, a view, a function or an operator
                    -- of the application's own. Known are functions of C, and those whose text
                    -- holds nothing but what takes the claims apart.
                    'opaque', p.polqual::text ~ (':relid ' || c.oid::text || ' ')
                        or exists (
                            select
                            from pg_catalog.pg_depend as d
                            left join pg_catalog.pg_operator as o
                                on d.refclassid = 'pg_catalog.pg_operator'::pg_catalog.regclass
                                and o.oid = d.refobjid
                            left join pg_catalog.pg_proc as f
                                on f.oid = case
                                    when o.oid is not null then o.oprcode::pg_catalog.oid
                                    when d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass
                                        then d.refobjid
                                end
                            left join pg_catalog.pg_language as l on l.oid = f.prolang
                            left join pg_catalog.pg_class as v
                                on d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
                                and v.oid = d.refobjid
                                and v.relkind not in ('r', 'p')
                            where d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass
                                and d.objid = p.oid
                                and (
                                    v.oid is not null
                                    or (
                                        l.lanname not in ('internal', 'c')
                                        and (
                                            f.prosqlbody is not null
                                            or pg_catalog.regexp_replace(
                                                -- Strings and comments first, then the words.
                                                pg_catalog.regexp_replace(
                                                    f.prosrc, '''[^'']*''|--[^\n]*', ' ', 'g'
                                                ),
                                                '\m(select|coalesce|nullif|current_setting'
                                                || '|pg_catalog|as|case|when|then|else|end|is|not|and'
                                                || '|or|true|false|null|uuid|text|jsonb|json|int'
                                                || '|integer|bigint|boolean|operator|begin|return)\M',
                                                '', 'gi'
                                            ) ~ '[^-0-9(),.:;>=#?|[:space:]]'
                                        )
                                    )
                                )
                        ),
                    -- Calls, as the condition prints them, that give the same all through a statement.
                    'stable_calls', (
                        select coalesce(pg_catalog.jsonb_agg(distinct
                            case when pg_catalog.pg_function_is_visible(f.oid) then '' else
                                pg_catalog.quote_ident(s.nspname) || '.'
                            end || pg_catalog.quote_ident(f.proname) || '()'
                        ), '[]')
                        from pg_catalog.pg_depend as d
                        join pg_catalog.pg_proc as f on f.oid = d.refobjid
                        join pg_catalog.pg_namespace as s on s.oid = f.pronamespace
                        where d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass
                            and d.objid = p.oid
                            and d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass
                            and f.provolatile = 's'
                            and f.pronargs = 0
                            and f.prokind = 'f'
                            and not f.proretset
                    ),
                    -- A function that calls itself immutable is computed when a plan is made. If it
                    -- reads the claims all the same, a plan must not outlive one user.
                    'plan_each_time', exists (
                        select
                        from pg_catalog.pg_depend as d
                        join pg_catalog.pg_proc as f on f.oid = d.refobjid
                        join pg_catalog.pg_language as l on l.oid = f.prolang
                        where d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass
                            and d.objid = p.oid
                            and d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass
                            and f.provolatile = 'i'
                            and l.lanname not in ('internal', 'c')
                    )
                )
                order by p.polpermissive, p.polname
            ), '[]')
            from pg_catalog.pg_policy as p
            where p.polrelid = c.oid
                and p.polcmd in ('r', '*')
                and p.polqual is not null
                and (
                    0::oid = any (p.polroles)
                    or exists (
                        select
                        from pg_catalog.unnest(p.polroles) as applies (role)
                        where pg_catalog.pg_has_role(applies.role, 'USAGE')
                    )
                )
        )
    )::text as facts
from pg_catalog.pg_class as c
join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
where c.oid = $1;
