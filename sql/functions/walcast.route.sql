-- walcast.route: makes a path of the application's own stand for a REST request.
-- in:     method and path, `/api/…` with segments `{name}` · target, a method and a path below /rest/v1 with its
--         query · profile, prefer, accept: headers, when the client sends none · body: keys that win over the client's
-- needs:  a value in the target is a whole one: `{name}` of the path, or `{claims.sub}` of the token, behind `=`
--         or `.` and before `&` or the end, so that it cannot become another condition
-- Never:  decides who may: the target's own policies do
create or replace function walcast.route(
    method text,
    path text,
    target text,
    profile text default null,
    prefer text default null,
    accept text default null,
    body jsonb default null
)
returns void
language plpgsql
volatile
set search_path = ''
as $function$
declare
    methods constant text := '(GET|POST|PATCH|PUT|DELETE)';
    bare text;
begin
    if route.method !~ ('^' || methods || '$') then
        raise exception 'walcast.route: % is no method', pg_catalog.quote_literal(route.method)
            using errcode = '22023', hint = 'Give one of GET, POST, PATCH, PUT, DELETE.';
    end if;
    if route.path !~ '^/api(/([A-Za-z0-9._~-]+|\{[a-z_][a-z0-9_]*\}))+$'
        or route.path ~ '^/api/(ping|broadcast|tenants)(/|$)'
    then
        raise exception 'walcast.route: % cannot be a path', pg_catalog.quote_literal(route.path)
            using
                errcode = '22023',
                hint = 'It begins with /api/; its segments are words or {names}; ping, broadcast and tenants are taken.';
    end if;
    if route.target !~ ('^' || methods || ' /(rpc/)?[^/?{}]+(\?.*)?$') then
        raise exception 'walcast.route: % cannot be a target', pg_catalog.quote_literal(route.target)
            using errcode = '22023', hint = 'Write it as PATCH /stories?id=eq.{id} or POST /rpc/move_story.';
    end if;
    bare := pg_catalog.regexp_replace(
        route.target, '([=.])\{(claims\.[A-Za-z0-9_.-]+|[a-z_][a-z0-9_]*)\}(?=&|$)', '\1', 'g'
    );
    if bare ~ '[{}]' then
        raise exception 'walcast.route: a value in % is not a whole one', pg_catalog.quote_literal(route.target)
            using errcode = '22023', hint = 'Put it behind = or . and before & or the end: id=eq.{id}.';
    end if;
    if pg_catalog.jsonb_typeof(route.body) <> 'object' then
        raise exception 'walcast.route: the body is no object' using errcode = '22023';
    end if;
    insert into walcast.routes as known (method, path, target, profile, prefer, accept, body)
    values (route.method, route.path, route.target, route.profile, route.prefer, route.accept, route.body)
    on conflict on constraint routes_pkey do update
        set target = excluded.target,
            profile = excluded.profile,
            prefer = excluded.prefer,
            accept = excluded.accept,
            body = excluded.body;
    perform pg_catalog.pg_notify('pgrst', 'reload schema');
end
$function$;
