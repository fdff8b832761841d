-- walcast.topics_meet: whether one topic could be of two templates that are not the same.
-- in:     two shapes, as of walcast.topic_shape
-- out:    false where no value makes them the same; else true, rather too often
-- caller: walcast.check_mapping_collisions
-- needs:  no value has a :, a / or a separator of its template in it (src/mapping/template.rs)
create or replace function walcast.topics_meet(one text, other text)
returns boolean
language plpgsql
stable
set search_path = ''
as $function$
declare
    value constant text := '\{[^{}]+\}';
    ones text[] := pg_catalog.regexp_split_to_array(one, '[:/]');
    others text[] := pg_catalog.regexp_split_to_array(other, '[:/]');
    seen text;
    wide text;
    apart text;
    front text;
    back text;
    middle text;
    kind text;
    fits boolean;
begin
    if pg_catalog.regexp_replace(one, value, '{}', 'g') = pg_catalog.regexp_replace(other, value, '{}', 'g')
        or pg_catalog.regexp_replace(one, '[^:/]', '', 'g') <> pg_catalog.regexp_replace(other, '[^:/]', '', 'g')
    then
        return false;
    end if;
    for place in 1 .. pg_catalog.cardinality(ones) loop
        continue when ones[place] = others[place];
        -- What has a value in it, by which the other one is read.
        if ones[place] ~ value then
            wide := ones[place];
            seen := others[place];
            apart := pg_catalog.regexp_replace(pg_catalog.regexp_replace(one, value, '', 'g'), '[^.|;@~+=!]', '', 'g');
        elsif others[place] ~ value then
            wide := others[place];
            seen := ones[place];
            apart := pg_catalog.regexp_replace(pg_catalog.regexp_replace(other, value, '', 'g'), '[^.|;@~+=!]', '', 'g');
        else
            return false;
        end if;
        front := pg_catalog.regexp_replace(wide, '\{.*$', '');
        back := pg_catalog.regexp_replace(wide, '^.*\}', '');
        if seen ~ value then
            -- Two uncertain ends: the certain ones must agree as far as both go.
            fits := (
                    pg_catalog.starts_with(front, pg_catalog.regexp_replace(seen, '\{.*$', ''))
                    or pg_catalog.starts_with(pg_catalog.regexp_replace(seen, '\{.*$', ''), front)
                )
                and (
                    pg_catalog.starts_with(
                        pg_catalog.reverse(back), pg_catalog.reverse(pg_catalog.regexp_replace(seen, '^.*\}', ''))
                    )
                    or pg_catalog.starts_with(
                        pg_catalog.reverse(pg_catalog.regexp_replace(seen, '^.*\}', '')), pg_catalog.reverse(back)
                    )
                )
                and array[wide, seen] not in (array['{uuid}', '{int}'], array['{int}', '{uuid}']);
        else
            fits := pg_catalog.starts_with(seen, front)
                and pg_catalog.starts_with(pg_catalog.reverse(seen), pg_catalog.reverse(back))
                and pg_catalog.length(seen) > pg_catalog.length(front) + pg_catalog.length(back);
            if fits and wide ~ '^[^{}]*\{[^{}]+\}[^{}]*$' then
                kind := pg_catalog.substring(wide, '\{([^{}]+)\}');
                middle := pg_catalog.substr(
                    seen,
                    pg_catalog.length(front) + 1,
                    pg_catalog.length(seen) - pg_catalog.length(front) - pg_catalog.length(back)
                );
                fits := pg_catalog.translate(middle, apart, '') = middle
                    and case
                        when kind = 'uuid' then middle ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
                        when kind = 'int' then middle ~ '^-?[0-9]+$'
                        when kind like 'enum%' then exists (
                            select from pg_catalog.pg_enum as e
                            where e.enumtypid = pg_catalog.substr(kind, 5)::oid and e.enumlabel = middle
                        )
                        else true
                    end;
            end if;
        end if;
        if not fits then
            return false;
        end if;
    end loop;
    return true;
end
$function$;
