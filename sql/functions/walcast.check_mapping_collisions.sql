-- walcast.check_mapping_collisions: whether a topic of a declaration could be one of another template, here or of
-- another table: a value of one table would lead into a room of the other.
-- in:     relation · declaration, checked so far
-- caller: walcast.declare_mapping
-- Never:  looks at declarations that the caller may not see: those of tables he does not own
create or replace function walcast.check_mapping_collisions(relation regclass, declaration jsonb)
returns void
language plpgsql
stable
set search_path = ''
-- Its plan is guessed to be dear: compiling it takes half a second, running it a few milliseconds.
set jit = off
as $function$
declare
    met record;
begin
    with current as (
        select relation::oid as relation, check_mapping_collisions.declaration as declaration
        union all
        select last.relation, last.declaration
        from (
            select distinct on (m.relation) m.relation, m.declaration
            from walcast.mappings as m
            where m.relation <> check_mapping_collisions.relation
            order by m.relation, m.id desc
        ) as last
        where exists (select from pg_catalog.pg_class as c where c.oid = last.relation)
    ),
    told as (
        select distinct c.relation, t.topic, walcast.topic_shape(c.relation, t.topic) as shape
        from current as c
        cross join lateral pg_catalog.jsonb_array_elements(c.declaration -> 'rules') as r (rule)
        cross join lateral pg_catalog.jsonb_array_elements_text(
            case when pg_catalog.jsonb_typeof(r.rule -> 'topics') = 'array'
                then r.rule -> 'topics' else c.declaration -> 'topics' end
        ) as t (topic)
    )
    select own.topic as own, other.topic as other, other.relation::pg_catalog.regclass as relation
    into met
    from told as own
    join told as other on walcast.topics_meet(own.shape, other.shape)
    where own.relation = check_mapping_collisions.relation
    order by 1, 2
    limit 1;
    if found then
        raise exception 'walcast: topic % of % is ambiguous: it could be the same room as % of %',
            pg_catalog.quote_literal(met.own), relation, pg_catalog.quote_literal(met.other), met.relation
            using errcode = '22023', hint = 'Give one of them another word in front of its values.';
    end if;
end
$function$;
