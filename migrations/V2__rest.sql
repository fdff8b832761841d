-- logins: who may keep requests here. No grants to them: a login that has any cannot simply be dropped.
create table walcast.logins (
    name text primary key,
    made_at timestamptz not null default pg_catalog.now()
);
revoke all on table walcast.logins from public;
grant usage on schema walcast to public;

-- requests: writes that were asked for under a key, so that asking again writes nothing.
-- scope: whose key it is · request: digest of what was asked · answer: what it was answered with, null only
-- within the transaction that makes it
create table walcast.requests (
    scope text not null,
    key text not null,
    request text not null,
    answer text,
    made_at timestamptz not null default pg_catalog.now(),
    primary key (scope, key)
);
create index requests_made_at on walcast.requests (made_at);
revoke all on table walcast.requests from public;

-- routes: paths of an application's own that stand for a REST request; filled by walcast.route().
-- path: /api/stories/{id} · target: PATCH /stories?id=eq.{id} · profile, prefer, accept: headers, when the
-- client sends none · body: keys that win over the client's
create table walcast.routes (
    method text not null,
    path text not null,
    target text not null,
    profile text,
    prefer text,
    accept text,
    body jsonb,
    made_at timestamptz not null default pg_catalog.now(),
    primary key (method, path)
);
revoke all on table walcast.routes from public;
grant select on table walcast.routes to public;
