-- todos: the schema of `walcast dev`; each user sees and writes only their own rows.
-- in:     roles anon, authenticated, service_role and function auth.uid() (walcast installs them)
-- out:    table public.todos under row level security, in publication supabase_realtime
-- caller: dev/example.rs at each start; leaves rows alone
create table if not exists public.todos (
    id bigint generated always as identity primary key,
    owner uuid not null default auth.uid(),
    title text not null,
    done boolean not null default false,
    created_at timestamptz not null default pg_catalog.now()
);

-- The old row then tells who could see a deleted one, so that deletes reach exactly those.
alter table public.todos replica identity full;

alter table public.todos enable row level security;

do $$
begin
    if not exists (
        select from pg_catalog.pg_policies as p
        where p.schemaname = 'public' and p.tablename = 'todos' and p.policyname = 'own todos'
    ) then
        create policy "own todos" on public.todos
            to authenticated
            using (owner = (select auth.uid()))
            with check (owner = (select auth.uid()));
    end if;

    if not exists (
        select from pg_catalog.pg_publication as p where p.pubname = 'supabase_realtime'
    ) then
        create publication supabase_realtime;
    end if;

    if not exists (
        select from pg_catalog.pg_publication_tables as t
        where t.pubname = 'supabase_realtime' and t.schemaname = 'public' and t.tablename = 'todos'
    ) then
        alter publication supabase_realtime add table public.todos;
    end if;
end
$$;

grant usage on schema public to anon, authenticated, service_role;
grant select, insert, update, delete on public.todos to authenticated, service_role;
-- Without a policy for it, anon sees nothing; with the privilege, that is silence, not an error.
grant select on public.todos to anon;
